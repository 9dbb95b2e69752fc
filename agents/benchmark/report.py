"""The page of a benchmark: tables and curves, made from the results alone."""

from __future__ import annotations

from pathlib import Path

from agents.benchmark.results import Results
from agents.benchmark.suite import DRQ_AT_100K, METHODS, TASKS
from agents.benchmark.tables import DRQ, Runs, aggregate_table, frames_table, returns_table, select
from perceiver_obs.files import write_atomic
from perceiver_obs.reporting.plots import return_curves


def write_report(results: Results, docs: Path, results_file: Path) -> Path:
    """Writes `SUITE.md` and `images/SUITE.png` into `docs`, the same for the same results; returns the page's path."""
    write_atomic(docs / "images" / f"{results.suite}.png", curves_picture(results.runs))
    page = docs / f"{results.suite}.md"
    write_atomic(page, page_text(results, results_file).encode())
    return page


def curves_picture(runs: Runs) -> bytes:
    """Learning curves as PNG, a panel a task."""
    panels = {
        task: {
            method.label: [([p["frames"] for p in run.curve], [p["mean"] for p in run.curve]) for run in of_task]
            for name, method in METHODS.items()
            if (of_task := select(runs, name, task))
        }
        for task in TASKS
        if any(run.task == task for run in runs)
    }
    return return_curves(panels, DRQ_AT_100K, f"{DRQ}, at 100k")


def page_text(results: Results, results_file: Path) -> str:
    """The page in Markdown."""
    protocol, runs = results.protocol, results.runs
    tuned = ", ".join(f"{name} {value}" for name, value in protocol["hyperparameters"].items())
    return f"""# {results.suite}

Written by `perceiver-obs benchmark {results.suite} --report-only` from `{results_file.as_posix()}`; do not edit.

![Returns over control steps](images/{results.suite}.png)

*Mean over seeds, shaded from the lowest seed to the highest; a point is {protocol["eval_episodes"]} deterministic \
episodes. Dashed: DrQ's published return (Kostrikov et al. 2020, arXiv:2004.13649), from frames of 84×84, for \
orientation.*

## Return after {protocol["total_frames"]:,} control steps

Mean ± standard deviation over seeds.

{returns_table(runs)}

## All tasks together

Returns divided by 1000; 95 % intervals by stratified bootstrap over seeds (rliable). IQM: interquartile mean.

{aggregate_table(runs)}

## Frames used

{frames_table(runs)}

Control steps of the simulator: agent steps times action repeat. Offline are all frames that the features were made \
from before the policy began to learn; for a model that serves several tasks, those of all its tasks. A Perceiver that \
adapts is trained on the online frames too, which count once. The episodes of the evaluations, from which nothing is \
learned, are not counted.

## Protocol

One harness and one set of settings for every method: {protocol["algorithm"]} \
([why](recipe.md#crossq-learns-faster-than-sac)), hidden layers of \
{" and ".join(map(str, protocol["net_arch"]))}, learning rate {protocol["learning_rate"]:g}, batches of \
{protocol["batch_size"]}, {protocol["learning_starts"]:,} random agent steps first, then one update an agent step, \
{tuned}; PlaNet's action repeats, frames of {protocol["size"]}×{protocol["size"]} at \
`render_quality="{protocol["render_quality"]}"`, an evaluation every {protocol["eval_every"]:,} control steps.
{_models(runs)}{_unfinished(results)}"""


def _models(runs: Runs) -> str:
    """Which model made the contexts; a warning where runs with several were thrown together."""
    read = [*select(runs, "context"), *select(runs, "adapted")]
    names = {run.fingerprint or "": run.settings["model"] for run in read}
    if not names:
        return ""
    listed = ", ".join(f"`{name}` (fingerprint `{fingerprint[:12]}`)" for fingerprint, name in sorted(names.items()))
    if len(names) > 1:
        return f"\n**The contexts are those of {len(names)} models, and their means mean little:** {listed}.\n"
    return f"\nThe contexts are those of {listed}.\n"


def _unfinished(results: Results) -> str:
    if not results.unfinished:
        return ""
    lines = [f"- {run.key}: {run.frames:,} control steps so far" for run in results.unfinished]
    return "\n## Not finished\n\nNot in the tables and curves above.\n\n" + "\n".join(lines) + "\n"
