"""Aggregate scores over tasks and seeds with interval estimates (Agarwal et al. 2021, arXiv:2108.13264)."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from perceiver_obs.isolation import isolated

HIGHEST_RETURN = 1000.0
REPETITIONS = 2000
Interval = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """Interquartile mean and mean of normalised scores, with 95 % bootstrap intervals; None from one seed alone."""

    iqm: float
    mean: float
    iqm_interval: Interval | None
    mean_interval: Interval | None


def check_rliable() -> None:
    """Raises RuntimeError that says how to install rliable, where it is not."""
    if find_spec("rliable") is None:
        raise RuntimeError("the interval estimates need rliable: pip install 'perceiver-obs[benchmark]'")


def estimate(returns: NDArray[np.float64]) -> Estimate:
    """The estimate from final returns `[seeds, tasks]`.

    The bootstrap draws seeds anew for each task (stratified), so that the intervals say what other seeds would
    give on the same tasks.
    """
    from rliable import library, metrics

    scores = returns / HIGHEST_RETURN

    def aggregates(sample: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array([metrics.aggregate_iqm(sample), metrics.aggregate_mean(sample)])

    iqm, mean = map(float, aggregates(scores))
    if len(scores) < 2:
        return Estimate(iqm, mean, None, None)
    with isolated(0):  # rliable draws from NumPy's global generator, whatever random state it is given
        low, high = library.get_interval_estimates({"": scores}, aggregates, reps=REPETITIONS)[1][""]
    return Estimate(iqm, mean, (float(low[0]), float(high[0])), (float(low[1]), float(high[1])))
