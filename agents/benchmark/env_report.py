"""The page of a benchmark in one environment: returns after equal steps and after equal time."""

from __future__ import annotations

from pathlib import Path

from agents.benchmark.results import Results, RunResult
from agents.benchmark.suite import METHODS
from agents.benchmark.tables import (
    Runs,
    frames_table,
    markdown_table,
    models,
    over_seeds,
    present,
    select,
    unfinished,
)
from perceiver_obs.reporting.plots import Curve, cost_curves

STYLE = ",.2f"  # rewards may be of any size


def env_curves_picture(runs: Runs) -> bytes:
    """Learning curves as PNG, over environment steps and over wall-clock time."""
    labels = {name: METHODS[name].label for name in present(runs)}
    steps = {label: [_curve(run, "frames", 1) for run in select(runs, name)] for name, label in labels.items()}
    minutes = {label: [_curve(run, "seconds", 60) for run in select(runs, name)] for name, label in labels.items()}
    return cost_curves({"environment steps": steps, "minutes of training": minutes})


def env_page_text(results: Results, results_file: Path) -> str:
    """The page in Markdown."""
    protocol, runs = results.protocol, results.runs
    return f"""# {protocol["env"]}

{_found(runs)}

Written by `perceiver-obs benchmark --env {protocol["env"]}` from `{results_file.as_posix()}`.

![Returns over environment steps and over time](images/{results.suite}.png)

*Mean over seeds, shaded from the lowest seed to the highest; a point is {protocol["eval_episodes"]} deterministic \
episodes.*

{_returns_table(runs)}

Mean ± standard deviation over seeds. Equal time is that of the fastest run: the last evaluation until then. \
Evaluations count as time; collecting and training the Perceiver beforehand do not.

## Frames used

{frames_table(runs)}

## Protocol

One algorithm and one set of settings for every method: {protocol["algorithm"]}, hidden layers of \
{" and ".join(map(str, protocol["net_arch"]))}, learning rate {protocol["learning_rate"]:g}, batches of \
{protocol["batch_size"]}; frames of {protocol["size"]}×{protocol["size"]}; pixels are three stacked frames \
(SB3's VecFrameStack and NatureCNN).
{models(runs)}{unfinished(results)}"""


def return_at(run: RunResult, seconds: float) -> float | None:
    """The return of the last evaluation within so much time; None where there was none yet."""
    within = [point["mean"] for point in run.curve if point["seconds"] <= seconds]
    return within[-1] if within else None


def _curve(run: RunResult, cost: str, unit: float) -> Curve:
    return [point[cost] / unit for point in run.curve], [point["mean"] for point in run.curve]


def _equal_time(runs: Runs) -> float:
    return min(run.seconds for run in runs)


def _at(runs: Runs, method: str, seconds: float) -> list[float]:
    values = [return_at(run, seconds) for run in select(runs, method)]
    return [value for value in values if value is not None]


def _found(runs: Runs) -> str:
    """One sentence: what each method came to in equal time."""
    names, seconds = present(runs), _equal_time(runs)
    means = {name: sum(values) / len(values) for name in names if (values := _at(runs, name, seconds))}
    said = "; ".join(f"{METHODS[name].label} {value:{STYLE}}" for name, value in means.items())
    return f"Mean return in equal time ({seconds / 60:.1f} minutes of training): {said}."


def _returns_table(runs: Runs) -> str:
    seconds = _equal_time(runs)
    rows = [
        ["", f"after {max(run.frames for run in runs):,} steps", f"after {seconds / 60:.1f} minutes", "minutes a run"]
    ]
    for name in present(runs):
        of_method = select(runs, name)
        minutes = sum(run.seconds for run in of_method) / len(of_method) / 60
        at_end = over_seeds([run.final_return for run in of_method], STYLE)
        in_time = over_seeds(_at(runs, name, seconds), STYLE)
        rows.append([METHODS[name].label, at_end, in_time, f"{minutes:.1f}"])
    return markdown_table(rows)
