"""Tables of a benchmark in Markdown. They say where seeds or tasks are too few, instead of giving an interval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

import numpy as np

from agents.benchmark.estimates import HIGHEST_RETURN, Interval, estimate
from agents.benchmark.results import Results, RunResult
from agents.benchmark.suite import DRQ_AT_100K, METHODS, TASKS

Runs = Sequence[RunResult]
DRQ = "DrQ, published"
NOTHING = "–"


def returns_table(runs: Runs) -> str:
    """Final returns: a row a task, a column a method."""
    methods = present(runs)
    rows = [["task", *(METHODS[name].label for name in methods), DRQ]]
    for task in TASKS:
        cells = [over_seeds([run.final_return for run in select(runs, name, task)]) for name in methods]
        rows.append([task, *cells, str(DRQ_AT_100K[task])])
    return markdown_table(rows)


def aggregate_table(runs: Runs) -> str:
    """Interquartile mean and mean over all tasks, a row a method."""
    rows = [["", "IQM", "mean", "from"]]
    rows += [[METHODS[name].label, *_aggregates(select(runs, name))] for name in present(runs)]
    drq = np.mean(list(DRQ_AT_100K.values())) / HIGHEST_RETURN
    return markdown_table([*rows, [DRQ, NOTHING, f"{drq:.3f}", "published means"]])


def frames_table(runs: Runs) -> str:
    """Frames spent before and while the policy learned, who collected the former, and the time a run took."""
    rows = [["", "control steps", "offline frames rendered", "collected by", "hours a run"]]
    for name in present(runs):
        of_method = select(runs, name)
        known = [run.offline for run in of_method if run.offline is not None]
        online = _range(run.frames for run in of_method)
        hours = f"{median(run.seconds for run in of_method) / 3600:.1f}"
        if len(known) < len(of_method):
            rows.append([METHODS[name].label, f"unknown offline + {online} online", "unknown", "unknown", hours])
            continue
        offline, rendered = (_range(each[key] for each in known) for key in ("control_steps", "rendered"))
        policies = ", ".join(dict.fromkeys(policy for each in known for policy in each["policies"])) or NOTHING
        rows.append([METHODS[name].label, f"{offline} offline + {online} online", rendered, policies, hours])
    return markdown_table(rows)


def models(runs: Runs) -> str:
    """Which models made the contexts; a warning where runs with several were thrown together."""
    of_states = _listed(_models_of(runs, "privileged"))
    trained_on_states = f"\nThose of the model that was trained on states are of {of_states}.\n" if of_states else ""
    names = _models_of(runs, "context") | _models_of(runs, "adapted")
    if not names:
        return trained_on_states
    if len(names) > 1:
        said = f"**The contexts are those of {len(names)} models, and their means mean little:** {_listed(names)}."
    else:
        said = f"The contexts are those of {_listed(names)}."
    return f"\n{said}\n{trained_on_states}"


def _models_of(runs: Runs, method: str) -> dict[str, str]:
    """The models of a method's runs, by fingerprint."""
    return {run.fingerprint or "": run.settings["model"] for run in select(runs, method)}


def _listed(models: Mapping[str, str]) -> str:
    return ", ".join(f"`{name}` (fingerprint `{fingerprint[:12]}`)" for fingerprint, name in sorted(models.items()))


def unfinished(results: Results) -> str:
    """The runs that are not in the tables."""
    if not results.unfinished:
        return ""
    lines = [f"- {run.key}: {run.frames:,} control steps so far" for run in results.unfinished]
    return "\n## Not finished\n\nNot in the tables and curves above.\n\n" + "\n".join(lines) + "\n"


def present(runs: Runs) -> list[str]:
    """The methods that have runs, in the suite's order."""
    return [name for name in METHODS if select(runs, name)]


def select(runs: Runs, method: str, task: str | None = None) -> list[RunResult]:
    """The runs of a method, on one task or on all."""
    return [run for run in runs if run.method == method and task in (None, run.task)]


def over_seeds(returns: Sequence[float], style: str = ".0f") -> str:
    """Mean and standard deviation, and of how many."""
    if len(returns) < 2:
        return f"{returns[0]:{style}} (1 seed)" if returns else NOTHING
    return f"{np.mean(returns):{style}} ± {np.std(returns, ddof=1):{style}} ({len(returns)} seeds)"


def _aggregates(runs: Runs) -> list[str]:
    """IQM, mean, and what they are from: only seeds that every task has."""
    returns = {task: {run.seed: run.final_return for run in runs if run.task == task} for task in TASKS}
    some = sum(bool(of_task) for of_task in returns.values())
    if some < len(TASKS):
        return [NOTHING, NOTHING, f"{some} of {len(TASKS)} tasks: too few"]
    seeds = sorted(set.intersection(*(set(of_task) for of_task in returns.values())))
    if not seeds:
        return [NOTHING, NOTHING, "no seed that every task has"]
    result = estimate(np.array([[returns[task][seed] for task in TASKS] for seed in seeds]))
    source = f"{len(TASKS)} tasks × {len(seeds)} seeds" if len(seeds) > 1 else "1 seed: no interval"
    return [_interval(result.iqm, result.iqm_interval), _interval(result.mean, result.mean_interval), source]


def _interval(value: float, interval: Interval | None) -> str:
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _range(values: Iterable[int]) -> str:
    """One number where all are equal, else the smallest to the largest."""
    every = sorted(values)
    return f"{every[0]:,}" if every[0] == every[-1] else f"{every[0]:,} to {every[-1]:,}"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, the first the head."""
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body])
