"""The page of a suite's benchmark: tables and curves, made from the results alone."""

from __future__ import annotations

from pathlib import Path

from agents.benchmark.env_report import env_curves_picture, env_page_text
from agents.benchmark.results import Results
from agents.benchmark.suite import DRQ_AT_100K, METHODS, SUITE, TASKS
from agents.benchmark.tables import DRQ, Runs, aggregate_table, frames_table, models, returns_table, select, unfinished
from perceiver_obs.files import write_atomic
from perceiver_obs.reporting.plots import return_curves


def write_report(results: Results, docs: Path, results_file: Path) -> Path:
    """Writes `SUITE.md` and `images/SUITE.png` into `docs`, the same for the same results; returns the page's path."""
    of_suite = results.suite == SUITE
    picture = curves_picture(results.runs) if of_suite else env_curves_picture(results.runs)
    text = page_text(results, results_file) if of_suite else env_page_text(results, results_file)
    write_atomic(docs / "images" / f"{results.suite}.png", picture)
    page = docs / f"{results.suite}.md"
    write_atomic(page, text.encode())
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
{models(runs)}{unfinished(results)}"""
