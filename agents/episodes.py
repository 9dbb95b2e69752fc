"""Playing whole episodes with a policy."""

from __future__ import annotations

from typing import Any, cast

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv


def said_return(mean: float, std: float, episodes: int) -> str:
    """A return as it is printed: "-137.2 ± 35.0 over 5 episodes"."""
    return f"{mean:,.1f} ± {std:,.1f} over {episodes} episode{'' if episodes == 1 else 's'}"


def play_episodes(
    policy: BaseAlgorithm, venv: VecEnv, episodes: int, *, seed: int, deterministic: bool = True
) -> tuple[list[float], list[int]]:
    """Returns and lengths (agent steps) of `episodes` whole episodes, in order of their end.

    Equal seeds give equal starts, shared out over the environments of `venv`.
    """
    venv.seed(seed)
    result: Any = evaluate_policy(policy, venv, episodes, deterministic=deterministic, return_episode_rewards=True)
    returns, lengths = cast(tuple[list[float], list[int]], result)
    return [float(value) for value in returns], [int(value) for value in lengths]
