"""`evaluate`: the return of a trained policy, over whole episodes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from agents.policies.algorithms import load_to_act
from agents.policies.frozen_perceiver import check_fingerprint
from agents.training.policy_env import make_policy_env
from agents.training.policy_files import POLICY_FILE, PolicyRecord
from agents.training.settings import EvaluateSettings, PolicyEnvSettings
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
    out = settings.out if settings.out is not None else _directory(settings.policy) / "evaluation.json"
    write_atomic(out, (json.dumps(asdict(result), indent=2) + "\n").encode())
    print(f"evaluate: {result.task}, return {said_return(result.mean, result.std, len(returns))}: {out}")
    return result


def load_policy(
    path: str | Path,
    *,
    num_envs: int = 1,
    model: str | None = None,
    device: str = "auto",
    record: Path | None = None,
) -> tuple[BaseAlgorithm, VecEnv, PolicyRecord]:
    """A trained policy to act with, the environments it acts in, and its record.

    Args:
        path: a directory that `train_policy` wrote, or the `policy.zip` in it.
        num_envs: environments to make.
        model: where the Perceiver's checkpoint lies now, if not where it lay in training.
        device: where the Perceiver and the policy run.
        record: directory that whole episodes are written to as rollouts.

    Raises:
        FileNotFoundError, ValueError, WrongPerceiver: as for `evaluate`.
    """
    directory = _directory(Path(path))
    saved = PolicyRecord.load(directory)
    if not (directory / POLICY_FILE).is_file():
        raise FileNotFoundError(f"{directory / POLICY_FILE} is missing: the training has not finished")
    known = {entry.name for entry in fields(PolicyEnvSettings)}
    settings = {name: value for name, value in saved.settings.items() if name in known} | {"device": device}
    settings["model"] = model if model is not None else saved.perceiver(directory)
    venv = make_policy_env(PolicyEnvSettings(**settings), num_envs, record, recorded_as="policy")
    try:
        if saved.fingerprint is not None:
            found = venv.encoder.fingerprint  # type: ignore[attr-defined]
            check_fingerprint(found, saved.fingerprint, f"the policy in {directory}")
        policy = load_to_act(saved.algorithm, directory / POLICY_FILE, device, venv)
    except BaseException:
        venv.close()
        raise
    return policy, venv, saved


def _directory(policy: Path) -> Path:
    return policy.parent if policy.suffix == ".zip" else policy


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
