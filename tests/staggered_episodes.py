"""Real episodes of different lengths, played by environments one at a time: what every shell must reproduce."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from staggered_envs import LENGTHS, make_short
from tiny_models import tiny_model

from perceiver_obs import CausalPerceiverIO, PerceiverContextWrapper

SEED = 5
STEPS = 13
TOLERANCE = 1e-5


def random_actions(num_rows: int = len(LENGTHS), steps: int = STEPS) -> np.ndarray:
    """float32 `[steps, num_rows, 1]` in [-1, 1]."""
    return np.random.default_rng(3).uniform(-1, 1, (steps, num_rows, 1)).astype(np.float32)


@cache
def all_alone(action_dim: int | None, wastes_action_at_reset: bool = False) -> list[list["EpisodeAlone"]]:
    """The episodes of every row under `random_actions`, for the `tiny_model` of `action_dim`."""
    model, actions = tiny_model(action_dim), random_actions()
    return [
        play_alone(model, row, actions[:, row], wastes_action_at_reset=wastes_action_at_reset)
        for row in range(len(LENGTHS))
    ]


@dataclass
class EpisodeAlone:
    """What one environment showed by itself: contexts `[T+1, D]`, frames `[T+1, H, W, C]`, actions `[T+1, A]`."""

    contexts: list[np.ndarray]
    frames: list[np.ndarray]
    actions: list[np.ndarray]


def play_alone(
    model: CausalPerceiverIO, row: int, actions: np.ndarray, *, wastes_action_at_reset: bool = False
) -> list[EpisodeAlone]:
    """Episodes of row `row`'s environment under `actions` `[steps, A]`, through `PerceiverContextWrapper`.

    In NEXT_STEP mode the action at a reset is not taken: `wastes_action_at_reset`.
    """
    env = PerceiverContextWrapper(make_short(LENGTHS[row]), model, keep_pixels=True)
    observation, _ = env.reset(seed=SEED + row)
    episodes = [_begin(observation, actions)]
    ended = False
    for action in actions:
        if ended:
            observation, _ = env.reset()
            episodes.append(_begin(observation, actions))
            ended = False
            if wastes_action_at_reset:
                continue
        observation, _, terminated, truncated, _ = env.step(action)
        episodes[-1].contexts.append(observation["context"])
        episodes[-1].frames.append(observation["pixels"])
        episodes[-1].actions.append(action)
        ended = terminated or truncated
    env.close()
    return episodes


def _begin(observation: dict[str, np.ndarray], actions: np.ndarray) -> EpisodeAlone:
    return EpisodeAlone([observation["context"]], [observation["pixels"]], [np.zeros_like(actions[0])])


def offline_contexts(model: CausalPerceiverIO, episode: EpisodeAlone) -> np.ndarray:
    """`extract_context` of a whole episode, `[T+1, D]`."""
    video = torch.from_numpy(np.stack(episode.frames)).permute(0, 3, 1, 2)[None]
    actions = None if model.action_dim is None else torch.from_numpy(np.stack(episode.actions))[None]
    return model.eval().extract_context(video, actions)[0].numpy()


def assert_same_episodes(rows: list[list[list[np.ndarray]]], alone: list[list[EpisodeAlone]]) -> None:
    """Contexts by row, episode and step equal those of the environments played alone.

    A vector environment that resets at once may have begun one episode more than the environments alone.
    """
    assert len(rows) == len(alone)
    for row, expected in zip(rows, alone, strict=True):
        assert len(row) - len(expected) in (0, 1)
        assert len(expected) >= 2, "no episode ended: the comparison would show little"
        for contexts, episode in zip(row, expected):
            np.testing.assert_allclose(np.stack(contexts), np.stack(episode.contexts), atol=TOLERANCE)
