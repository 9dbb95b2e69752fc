"""One episode as a value, and what must hold of it."""

from dataclasses import dataclass
from numbers import Integral
from typing import NamedTuple

import numpy as np

MAX_TAG = 1024
"""Characters of a policy tag."""


class RolloutError(ValueError):
    """A rollout dataset, or something to be written to one, is not as it should be."""


class EpisodeExists(RolloutError):
    """An episode of that number is there already."""


@dataclass(frozen=True, eq=False)
class Episode:
    """One episode of T steps; `actions[t]` leads from frame t to frame t+1.

    Attributes:
        pixels: frames, uint8 `[T+1, H, W, 3]`; read from disk a read-only memory map, or an array where they are
            compressed.
        actions: float32 `[T, A]` in [-1, 1]; `dataset.meta["actions"]` says of what (`perceiver_obs.ActionEncoding`).
        rewards: float32 `[T]`.
        terminated: the task ended the episode.
        truncated: a time limit, the task's or the collection's, ended it.
        seed: what the environment was reset with.
        policy: a tag that says what acted.
        states: true states, float32 `[T+1, S]`, or None; `dataset.meta["state_names"]` names the S entries.
    """

    pixels: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool
    truncated: bool
    seed: int
    policy: str
    states: np.ndarray | None = None

    def __len__(self) -> int:
        """Steps: one less than frames."""
        return len(self.actions)


class Layout(NamedTuple):
    """What every episode of a dataset has in common."""

    size: int
    action_size: int
    state_size: int | None


def check_episode(episode: Episode, layout: Layout) -> None:
    """Raise RolloutError unless the episode's arrays agree with each other and with `layout`."""
    steps = len(episode.actions)
    _check_array("pixels", episode.pixels, (steps + 1, layout.size, layout.size, 3), np.uint8)
    _check_array("actions", episode.actions, (steps, layout.action_size), np.float32)
    if np.abs(episode.actions).max(initial=0.0) > 1.0:
        raise RolloutError(
            f"actions should lie in [-1, 1], got {np.abs(episode.actions).max():g}: encode them by "
            "perceiver_obs.ActionEncoding"
        )
    _check_array("rewards", episode.rewards, (steps,), np.float32)
    if (episode.states is None) != (layout.state_size is None):
        given = "none" if episode.states is None else f"states of shape {episode.states.shape}"
        raise RolloutError(f"the dataset records {layout.state_size or 'no'} state entries, got {given}")
    if episode.states is not None:
        _check_array("states", episode.states, (steps + 1, layout.state_size), np.float32)
    if not (isinstance(episode.seed, Integral) and 0 <= episode.seed < 2**64):
        raise RolloutError(f"seed must be an integer from 0 to 2⁶⁴-1, got {episode.seed!r}")
    if not isinstance(episode.policy, str) or len(episode.policy) > MAX_TAG:
        raise RolloutError(f"the policy tag must be a text of at most {MAX_TAG} characters, got {episode.policy!r:.80}")
    for name in ("terminated", "truncated"):
        if not isinstance(value := getattr(episode, name), bool | np.bool_):
            raise RolloutError(f"{name} must be True or False, got {value!r:.80}")


def _check_array(name: str, array: np.ndarray, shape: tuple, dtype: type) -> None:
    if array.shape != shape or array.dtype != dtype:
        raise RolloutError(f"{name} should be {np.dtype(dtype)} {shape}, got {array.dtype} {array.shape}")
    if array.dtype != np.uint8 and not np.isfinite(array).all():
        raise RolloutError(f"{name} holds NaN or infinite values")
