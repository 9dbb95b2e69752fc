"""SB3's algorithms by name, set up alike for contexts, states and pixels."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import stable_baselines3
from gymnasium import spaces
from stable_baselines3 import DDPG, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.vec_env import VecEnv

from perceiver_obs.isolation import isolated

CONTINUOUS_ONLY = ("CrossQ", "DDPG", "SAC", "TD3", "TQC")
DISCRETE_ONLY = ("DQN", "QRDQN")
TARGET_UPDATE = 250  # steps between copies of DQN's target network; SB3's 10,000 is for millions of frames

# For `load`: the replay buffer's class follows from n_steps again. SB3 warns if it comes from the file.
CHOOSES_BUFFER = {"replay_buffer_class": None}
EXPLORATION_NOISE = 0.1  # of the action range [-1, 1]; TD3 and DDPG do not explore by themselves


def algorithm_class(name: str) -> type[BaseAlgorithm]:
    """The class of an algorithm of stable_baselines3, or of sb3_contrib where that is installed.

    Raises:
        ValueError: there is none of this name that trains on plain observations.
    """
    known = _known()
    if name not in known:
        raise ValueError(f"unknown algorithm {name!r}; {_available(known)}")
    return known[name]


def fitting_algorithm(name: str | None, space: spaces.Space, env_name: str) -> str:
    """The algorithm to train with actions of `space`: the one named, else SAC, DQN for `Discrete`, PPO for the others.

    Says so in one line where SAC cannot.

    Raises:
        ValueError: the algorithm is unknown, or does not take such actions.
    """
    continuous, discrete = isinstance(space, spaces.Box), isinstance(space, spaces.Discrete)
    if name is None:
        name = "SAC" if continuous else "DQN" if discrete else "PPO"
        if not continuous:
            print(f"train-policy: {name}, as {env_name} takes {space} and SAC continuous actions only")
        return name
    algorithm_class(name)
    unfit = () if continuous else CONTINUOUS_ONLY if discrete else (*CONTINUOUS_ONLY, *DISCRETE_ONLY)
    if name in (DISCRETE_ONLY if continuous else unfit):
        takes = "discrete" if name in DISCRETE_ONLY else "continuous"
        known = {each for each in _known() if each not in (DISCRETE_ONLY if continuous else unfit)}
        raise ValueError(f"{name} takes {takes} actions only, and {env_name} has {space}; {_available(known)}")
    return name


def _available(names: Iterable[str]) -> str:
    more = "" if _contrib() else " (and, with sb3-contrib installed, others such as CrossQ and QRDQN)"
    return f"available are {', '.join(sorted(names))}{more}"


def _known() -> dict[str, type[BaseAlgorithm]]:
    return {**_trainable(stable_baselines3), **_contrib()}


def load_to_act(name: str, path: Path, device: str, venv: VecEnv | None = None) -> BaseAlgorithm:
    """A trained policy of algorithm `name` that only acts: it has no replay buffer, which could take gigabytes."""
    custom_objects = {"buffer_size": 1, **CHOOSES_BUFFER}
    with isolated(device=device):  # SB3 seeds all generators with the seed of the training
        return algorithm_class(name).load(path, env=venv, device=device, custom_objects=custom_objects)


def make_algorithm(
    name: str,
    venv: VecEnv,
    *,
    policy: str,
    net_arch: list[int],
    learning_rate: float,
    batch_size: int,
    off_policy: Mapping[str, Any],
    hyperparameters: Mapping[str, Any],
    **common: Any,
) -> BaseAlgorithm:
    """An untrained algorithm.

    Args:
        name: as for `algorithm_class`.
        venv: what it trains in.
        policy: "MlpPolicy" or "CnnPolicy".
        net_arch: widths of the hidden layers.
        learning_rate: of all its optimisers.
        batch_size: transitions a gradient step.
        off_policy: arguments only for algorithms with a replay buffer.
        hyperparameters: arguments of the user's, which win over all others.
        common: arguments every algorithm takes, such as `seed` and `device`.

    Raises:
        ValueError: the name is unknown, or the algorithm does not take one of the hyperparameters.
    """
    cls = algorithm_class(name)
    arguments: dict[str, Any] = {"learning_rate": learning_rate, **common}
    if name != "A2C":
        arguments["batch_size"] = batch_size
    if issubclass(cls, OffPolicyAlgorithm):
        # As many gradient steps as transitions collected, for any number of environments.
        arguments |= {"train_freq": 1, "gradient_steps": -1, **off_policy}
    if name in DISCRETE_ONLY:
        arguments["target_update_interval"] = TARGET_UPDATE
    if issubclass(cls, (TD3, DDPG)):
        size = np.prod(venv.action_space.shape or (1,)).astype(int)
        arguments["action_noise"] = NormalActionNoise(np.zeros(size), np.full(size, EXPLORATION_NOISE))
    arguments |= hyperparameters
    policy_kwargs: dict[str, Any] = {"net_arch": net_arch}
    if policy == "CnnPolicy" and policy not in cls.policy_aliases:  # as CrossQ, which names none, but can
        policy, policy_kwargs["features_extractor_class"] = "MlpPolicy", NatureCNN
    try:
        return cls(policy, venv, policy_kwargs=policy_kwargs, **arguments)
    except TypeError as error:
        raise ValueError(f"{name} does not take the hyperparameters {dict(hyperparameters)}: {error}") from error


def _contrib() -> dict[str, type[BaseAlgorithm]]:
    try:
        return _trainable(importlib.import_module("sb3_contrib"))
    except ModuleNotFoundError:
        return {}


def _trainable(module: Any) -> dict[str, type[BaseAlgorithm]]:
    members = {name: getattr(module, name) for name in module.__all__}
    return {
        name: member
        for name, member in members.items()
        if isinstance(member, type)
        and issubclass(member, BaseAlgorithm)
        and "MlpPolicy" in member.policy_aliases
        # ARS takes no gradients, and MaskablePPO needs masks that these tasks do not have.
        and name not in ("ARS", "MaskablePPO")
    }
