"""What a probe regresses from features: the recorded state, and the rewards around each frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from perceiver_obs.data.episode import Episode
from perceiver_obs.data.state_coordinates import Coordinate, StateCoordinates

STEPS_AHEAD = 5


@dataclass(frozen=True)
class Targets:
    """Quantities that one regression reads together.

    Attributes:
        coordinates: one for each of K columns.
        read: float64 `[T + 1, K]` of an episode; NaN in the rows of frames where one of them is not known.
    """

    coordinates: tuple[Coordinate, ...]
    read: Callable[[Episode], NDArray[np.float64]]


def state_targets(coordinates: StateCoordinates) -> Targets:
    """The recorded state, in coordinates that frames can show."""
    return Targets(coordinates.coordinates, lambda episode: coordinates(np.asarray(episode.states)))


def rewards_around(episode: Episode) -> NDArray[np.float64]:
    """`[T + 1, 2]`: the reward of the step that led to each frame, and the mean of the next five rewards.

    After the end of a task the rewards are 0. After a time limit nobody knows them: the mean is of those that are
    left, and the last frame has none; the first has no step that led to it.
    """
    after = np.full(STEPS_AHEAD, 0.0 if episode.terminated else np.nan)
    ahead = sliding_window_view(np.concatenate([episode.rewards, after]), STEPS_AHEAD)
    known = np.isfinite(ahead)
    with np.errstate(invalid="ignore"):
        mean = np.where(known, ahead, 0).sum(axis=1) / known.sum(axis=1)
    led_here = np.concatenate([[np.nan], episode.rewards])
    return np.where(np.isfinite(led_here + mean)[:, None], np.stack([led_here, mean], axis=1), np.nan)


REWARDS = Targets((Coordinate("reward/now", ""), Coordinate(f"reward/next_{STEPS_AHEAD}", "")), rewards_around)
