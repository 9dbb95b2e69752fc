"""The results of a probe as a table and as pictures."""

from collections.abc import Mapping, Sequence

import numpy as np

from perceiver_obs.training import pictures
from perceiver_obs.training.probe_regression import ProbeResult
from perceiver_obs.training.report import Figure, Section

KINDS = {"positions": "position/", "velocities": "velocity/"}


def mean_r2(result: ProbeResult, prefix: str) -> float:
    """Mean R² over the state dimensions whose names begin with `prefix` and which vary; NaN if there are none."""
    values = [score.r2 for name, score in result.scores.items() if name.startswith(prefix) and np.isfinite(score.r2)]
    return float(np.mean(values)) if values else float("nan")


def print_table(results: Sequence[ProbeResult]) -> None:
    """Prints, for each set of episodes, ridge scores of every dimension and the means of all regressions."""
    from rich.console import Console
    from rich.table import Table

    for episodes in dict.fromkeys(result.episodes for result in results):
        chosen = [result for result in results if result.episodes == episodes]
        linear = [result for result in chosen if result.regression == "ridge"]
        table = Table(title=f"{episodes}, held out: R² and root-mean-square error of ridge regression")
        table.add_column("state dimension")
        table.add_column("deviation", justify="right")
        for result in linear:
            table.add_column(result.features, justify="right")
        for dimension, first in linear[0].scores.items():
            scores = [result.scores[dimension] for result in linear]
            cells = [f"{score.r2:5.2f}  {score.rmse:.2g}" for score in scores]
            table.add_row(dimension, f"{first.deviation:.2g}", *cells)
        for regression in dict.fromkeys(result.regression for result in chosen):
            table.add_section()
            for kind, prefix in KINDS.items():
                means = [mean_r2(result, prefix) for result in chosen if result.regression == regression]
                table.add_row(f"mean of {kind}, {regression}", "", *(f"{mean:.2f}" for mean in means))
        Console().print(table)


def probe_section(model: str, results: Sequence[ProbeResult], test_frames: Mapping[str, int]) -> Section:
    """What a probe has to show."""
    figures, facts = [], {}
    for number, episodes in enumerate(dict.fromkeys(result.episodes for result in results)):
        chosen = [result for result in results if result.episodes == episodes]
        groups = {
            f"{kind}, {regression}": {r.features: mean_r2(r, prefix) for r in chosen if r.regression == regression}
            for kind, prefix in KINDS.items()
            for regression in dict.fromkeys(r.regression for r in chosen)
        }
        of_context = [result for result in chosen if result.features == "context"]
        dimensions = {
            name.replace("/", "\n"): {r.regression: r.scores[name].r2 for r in of_context}
            for name in of_context[0].scores
        }
        for kind, prefix in KINDS.items():
            facts[f"{kind}, {episodes}"] = ", ".join(f"{r.regression} R² {mean_r2(r, prefix):.2f}" for r in of_context)
        figures += [
            Figure(
                f"probe_{number + 1}",
                f"State from features, {episodes}",
                f"Mean R² over the state's dimensions on {test_frames[episodes]:,} held-out frames: 1 is perfect, 0 is "
                "as good as the best constant. Bars below 0 are cut. Dimensions that hardly vary are left out.",
                pictures.bars(groups, "mean R²"),
            ),
            Figure(
                f"probe_dimensions_{number + 1}",
                f"Each dimension from the context, {episodes}",
                "R² of each dimension of the state; probe.json holds the errors in the state's own units.",
                pictures.bars(dimensions, "R²"),
            ),
        ]
    return Section("State probe", f"What the contexts of {model} tell of the true state.", facts, tuple(figures))
