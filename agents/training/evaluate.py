"""`evaluate`: the return of a trained policy, over whole episodes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from agents.training.policy_files import find_policy
from agents.training.settings import EvaluateSettings
from agents.training.trained_policy import load_policy
from perceiver_obs.files import write_atomic


@dataclass(frozen=True)
class Evaluation:
    """Returns of whole episodes, in order of their end; `frames` are control steps, all episodes together.

    `privileged` says what but frames the Perceiver was trained on ("state").
    """

    mean: float
    std: float
    returns: list[float]
    lengths: list[int]
    frames: int
    task: str
    observation: str
    fingerprint: str | None
    privileged: str | None = None


def evaluate(settings: EvaluateSettings) -> Evaluation:
    """Plays episodes with a trained policy and writes the result as JSON.

    Raises:
        FileNotFoundError: there is no policy, or its `policy.json` is missing.
        ValueError: a file is damaged, or a setting is out of range.
        RolloutError: `record` holds rollouts of another environment.
        WrongPerceiver: the Perceiver is not the one that the policy was trained with.
    """
    for name in ("episodes", "num_envs"):
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} must be 1 or more, got {getattr(settings, name)}")
    policy, venv, record = load_policy(
        settings.policy,
        num_envs=settings.num_envs,
        model=settings.model,
        device=settings.device,
        record=settings.record,
    )
    try:
        returns, lengths = play_episodes(
            policy, venv, settings.episodes, seed=settings.seed, deterministic=settings.deterministic
        )
        repeat = venv.get_attr("frame_contract", 0)[0]["action_repeat"]
    finally:
        venv.close()
    result = Evaluation(
        mean=float(np.mean(returns)),
        std=float(np.std(returns)),
        returns=returns,
        lengths=lengths,
        frames=sum(lengths) * repeat,
        task=record.env_name,
        observation=record.settings["observation"],
        fingerprint=record.fingerprint,
        privileged=record.privileged,
    )
    out = settings.out if settings.out is not None else find_policy(settings.policy)[0].parent / "evaluation.json"
    write_atomic(out, (json.dumps(asdict(result), indent=2) + "\n").encode())
    print(f"evaluate: {result.task}, return {said_return(result.mean, result.std, len(returns))}: {out}")
    return result


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
