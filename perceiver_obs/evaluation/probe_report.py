"""The results of a probe as tables and pictures."""

from collections.abc import Iterable, Sequence

import numpy as np

from perceiver_obs.data.state_coordinates import Coordinate
from perceiver_obs.evaluation.probe_data import ProbeSet, ProbeTask
from perceiver_obs.evaluation.regression import ProbeResult
from perceiver_obs.reporting import plots
from perceiver_obs.reporting.page import Comparison, Figure, Section, Table

KINDS = {"positions": "position/", "velocities": "velocity/", "rewards": "reward/"}
OF_STATE = ("positions", "velocities")
MEAN = "mean"
BASELINES = ("PCA of 3 frames", "random weights")


def mean_r2(result: ProbeResult, prefix: str) -> float:
    """Mean R² over the coordinates whose names begin with `prefix` and that have one; NaN if there are none."""
    return _mean(score.r2 for name, score in result.scores.items() if name.startswith(prefix))


def mean_r2_of_tasks(
    results: Sequence[ProbeResult], episodes: str, features: str, regression: str, prefix: str
) -> float:
    """Mean over the tasks of `mean_r2`, of one kind of features and of regression on one set of episodes."""
    chosen = [r for r in results if (r.episodes, r.features, r.regression) == (episodes, features, regression)]
    return _mean(mean_r2(result, prefix) for result in chosen)


def kinds(results: Sequence[ProbeResult]) -> dict[str, str]:
    """The kinds of coordinates that were regressed at all, each with the prefix of its names.

    A state of which nobody knows what are velocities, as of any environment, is all called positions: "state" here.
    """
    names = {name for result in results for name in result.scores}
    found = {kind: prefix for kind, prefix in KINDS.items() if any(name.startswith(prefix) for name in names)}
    if "velocities" in found:
        return found
    return {"state" if kind == "positions" else kind: prefix for kind, prefix in found.items()}


def summary_tables(results: Sequence[ProbeResult], tasks: Sequence[ProbeTask]) -> list[Table]:
    """For each set and regression the tasks and their mean, then limbs that look alike."""
    tables = []
    for episodes in _names(result.episodes for result in results):
        for regression in _names(result.regression for result in results):
            chosen = [r for r in results if (r.episodes, r.regression) == (episodes, regression)]
            tables.append(_task_table(episodes, regression, chosen, _left_out(chosen, tasks)))
    for task in tasks:
        of_task = [result for result in results if result.task == task.name]
        tables += [table for each in task.sets if (table := _twin_table(task, each, of_task))]
    return tables


def coordinate_tables(results: Sequence[ProbeResult], tasks: Sequence[ProbeTask]) -> list[Table]:
    """For each task and set each coordinate from the context, with errors in its unit."""
    tables = []
    for task in tasks:
        of_context = [r for r in results if r.task == task.name and r.features == "context"]
        tables += [_coordinate_table(task, each, of_context) for each in task.sets]
    return tables


def markdown(tables: Sequence[Table]) -> str:
    """Tables as a page of Markdown, ready for a model card."""
    return "\n".join(_markdown_table(table) for table in tables)


def print_tables(tables: Sequence[Table]) -> None:
    """Prints tables to the terminal."""
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console()
    for table in tables:
        drawn = RichTable(title=table.title, caption=table.caption, title_justify="left", caption_justify="left")
        for place, name in enumerate(table.columns):
            drawn.add_column(name, justify="right" if place else "left", no_wrap=not place)
        for row in table.rows:
            if row[0] == MEAN:
                drawn.add_section()
            drawn.add_row(*row)
        console.print(drawn)


def probe_section(
    model: str, results: Sequence[ProbeResult], tables: Sequence[Table], notes: Sequence[str], command: str
) -> Section:
    """What a probe has to show; `command` is what to try where a baseline has more of the state."""
    tasks, sets, regressions, features = (
        _names(getattr(result, name) for result in results) for name in ("task", "episodes", "regression", "features")
    )
    facts, figures, comparisons = {}, [], []
    for episodes in sets:
        groups = {}
        for kind, prefix in kinds(results).items():
            means = {r: mean_r2_of_tasks(results, episodes, "context", r, prefix) for r in regressions}
            facts[f"{kind}, {episodes}"] = ", ".join(f"{r} R² {value:.2f}" for r, value in means.items())
            comparisons += _beside_baselines(f"{kind}, {episodes}", results, episodes, regressions[-1], prefix, command)
            for regression in regressions:
                groups[f"{kind}, {regression}"] = {
                    name: mean_r2_of_tasks(results, episodes, name, regression, prefix) for name in features
                }
        caption = (
            f"Mean R² over the coordinates, and over {len(tasks)} tasks: 1 is perfect, 0 is as good as the "
            "best constant. Bars below 0 are cut."
        )
        figures.append(
            Figure(f"probe_{episodes}", f"Read from features, {episodes}", caption, plots.bars(groups, "mean R²"))
        )
    for number, task in enumerate(tasks):  # bars of both regressions would be too many to read
        drawn = (task, "context", regressions[-1])
        of_context = [r for r in results if (r.task, r.features, r.regression) == drawn]
        dimensions = {
            name.replace("/", "\n"): {r.episodes: r.scores[name].r2 for r in of_context}
            for name in of_context[0].scores
        }
        caption = "R² of each coordinate; the tables hold the errors in the coordinates' own units."
        title = f"Each coordinate from the context, {task}, {regressions[-1]}"
        figures.append(Figure(f"probe_task_{number + 1}", title, caption, plots.bars(dimensions, "R²")))
    what = "the reward" if [*kinds(results)] == ["rewards"] else "the true state and the reward"
    summary = " ".join([f"How much of {what} the contexts of {model} carry.", *notes])
    return Section("Probe", summary, facts, tuple(figures), tuple(tables), tuple(comparisons), verdict(results))


def verdict(results: Sequence[ProbeResult]) -> str:
    """One sentence: whether contexts beat the baselines in exploration, in what and by how much; "" without them.

    By the last regression, and by means over all tasks. A baseline worse than the best constant counts as that.
    """
    episodes, regression = results[0].episodes, results[-1].regression
    said, lost = [], []
    for kind, prefix in kinds(results).items():
        means = {f: mean_r2_of_tasks(results, episodes, f, regression, prefix) for f in ("context", *BASELINES)}
        context = means.pop("context")
        means = {name: np.maximum(value, 0) for name, value in means.items()}
        if np.isnan([context, *means.values()]).any():  # not probed, or it does not vary
            continue
        margins = (f"{context - value:+.2f} to {name}" for name, value in means.items())
        said.append(f"{kind} R² {context:.2f} ({', '.join(margins)})")
        lost += [f"{name} in {kind}" for name, value in means.items() if not context > value]
    if not said:
        unmoved = any(result.features in BASELINES for result in results)
        return "Nothing that is recorded varies, so there is nothing to judge contexts by." if unmoved else ""
    lead = f"do not beat {' and '.join(lost)}" if lost else f"beat {' and '.join(BASELINES)}"
    return f"Contexts {lead}: {'; '.join(said)}."


def _beside_baselines(
    name: str, results: Sequence[ProbeResult], episodes: str, regression: str, prefix: str, command: str
) -> list[Comparison]:
    """The context's R² beside that of the best baseline; nothing where none was probed."""
    means = {f: mean_r2_of_tasks(results, episodes, f, regression, prefix) for f in ("context", *BASELINES)}
    context = means.pop("context")
    means = {f: value for f, value in means.items() if np.isfinite(value)}
    if not means or not np.isfinite(context):
        return []
    best = max(means, key=means.__getitem__)
    return [Comparison(f"{name}, {regression} R²", context, means[best], best, ".2f", command)]


def _task_table(episodes: str, regression: str, results: Sequence[ProbeResult], left_out: str) -> Table:
    features = _names(result.features for result in results)
    found = {(result.task, result.features): result for result in results}
    tasks, prefixes = _names(result.task for result in results), kinds(results).values()
    rows = [
        (task, *(_together(mean_r2(found[task, name], prefix) for prefix in prefixes) for name in features))
        for task in tasks
    ]
    means = (
        (mean_r2_of_tasks(results, episodes, name, regression, prefix) for prefix in prefixes) for name in features
    )
    rows.append((MEAN, *map(_together, means)))
    title = f"{episodes.capitalize()}, {regression}: mean R² of {' / '.join(kinds(results))}"
    return Table(title, ("task", *features), tuple(rows), left_out)


def _left_out(results: Sequence[ProbeResult], tasks: Sequence[ProbeTask]) -> str:
    names = [
        f"{task.name} {name}"
        for task in tasks
        for name in _names(n for r in results if r.task == task.name for n, s in r.scores.items() if np.isnan(s.r2))
    ]
    if not names:
        return "No coordinate is left out."
    return f"Left out, as they vary less than a tenth as much as in exploration, or not at all: {', '.join(names)}."


def _twin_table(task: ProbeTask, each: ProbeSet, results: Sequence[ProbeResult]) -> Table | None:
    """Sums and differences of limbs that look alike; None where there are none."""
    twins = [c for c in task.coordinates if c.twins]
    if not twins:
        return None
    limbs = _names(_limb(coordinate) for coordinate in twins)
    by_limb = {(_limb(coordinate), coordinate.twins): coordinate.name for coordinate in twins}
    names = {
        twin: [[c.name for c in twins if c.twins == twin and c.name.startswith(KINDS[kind])] for kind in OF_STATE]
        for twin in ("sum", "difference")
    }
    rows = []
    for result in results:
        if result.episodes == each.name:
            r2 = {name: score.r2 for name, score in result.scores.items()}
            means = (_together(_mean(r2[n] for n in of_kind) for of_kind in names[twin]) for twin in names)
            cells = (_together(r2[by_limb[limb, twin]] for twin in names) for limb in limbs)
            rows.append((f"{result.features}, {result.regression}", *means, *cells))
    title = f"{task.name}, {each.name}: R² of limbs that look alike"
    caption = (
        "sums, differences: mean of positions / velocities. Limbs: right + left / right - left. Sums say how well "
        "limbs are seen, differences also which is which."
    )
    return Table(title, ("features", "sums", "differences", *limbs), tuple(rows), caption)


def _limb(coordinate: Coordinate) -> str:
    kind, _, name = coordinate.name.partition("/")
    return name.split("left_")[-1] + (" velocity" if kind == "velocity" else "")


def _coordinate_table(task: ProbeTask, each: ProbeSet, of_context: Sequence[ProbeResult]) -> Table:
    chosen = [result for result in of_context if result.episodes == each.name]
    columns = [f"{result.regression} {measure}" for result in chosen for measure in ("R²", "RMSE")]
    rows = []
    for coordinate in task.coordinates:
        if coordinate.name not in chosen[0].scores:
            continue
        scores = [result.scores[coordinate.name] for result in chosen]
        cells = [cell for score in scores for cell in (_number(score.r2), f"{score.rmse:.2g}")]
        rows.append((coordinate.name, coordinate.unit, f"{scores[0].deviation:.2g}", *cells))
    episodes, frames = len(each.test), sum(each.test.lengths)
    title = f"{task.name}, {each.name}: each coordinate from the context"
    caption = f"On {frames:,} frames of {episodes} episodes. Deviation and error (RMSE) in the coordinate's unit."
    return Table(title, ("coordinate", "unit", "deviation", *columns), tuple(rows), caption)


def _markdown_table(table: Table) -> str:
    lines = [table.columns, ("---", *["---:"] * (len(table.columns) - 1)), *table.rows]
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"**{table.title}**\n\n{rows}\n" + (f"\n{table.caption}\n" if table.caption else "")


def _together(values: Iterable[float]) -> str:
    return " / ".join(map(_number, values))


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{round(value, 2) + 0:.2f}"  # + 0: no "-0.00"


def _mean(values: Iterable[float]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")


def _names(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
