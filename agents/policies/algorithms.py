"""SB3's algorithms by name, set up alike for contexts, states and pixels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import sb3_contrib
import stable_baselines3
from gymnasium import spaces
from stable_baselines3 import DDPG, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.vec_env import VecEnv

CONTINUOUS_ONLY = ("CrossQ", "DDPG", "SAC", "TD3", "TQC")
DISCRETE_ONLY = ("DQN", "QRDQN")
TARGET_UPDATE = 250  # steps between copies of DQN's target network; SB3's 10,000 is for millions of frames
EXPLORATION_NOISE = 0.1  # of the action range [-1, 1]; TD3 and DDPG do not explore by themselves


def algorithm_class(name: str) -> type[BaseAlgorithm]:
    """The class of an algorithm of stable_baselines3 or sb3_contrib.

    Raises:
        ValueError: there is none of this name that trains on plain observations.
    """
    known = _known()
    if name not in known:
        raise ValueError(f"unknown algorithm {name!r}; {_available(known)}")
    return known[name]


def fitting_algorithm(name: str | None, space: spaces.Space, env_name: str, pixels: bool = False) -> str:
    """The algorithm to train with actions of `space`: the one named, or else the one that has been measured to be best.

    That is CrossQ (docs/recipe.md), SAC where the policy sees pixels, on which these were not compared. Where neither
    can, it is DQN for `Discrete` and PPO for the others, and a line says so.

    Raises:
        ValueError: the algorithm is unknown, or does not take such actions.
    """
    continuous, discrete = isinstance(space, spaces.Box), isinstance(space, spaces.Discrete)
    if name is None:
        if continuous:
            return "SAC" if pixels else "CrossQ"
        name = "DQN" if discrete else "PPO"
        print(f"train-policy: {name}, as {env_name} takes {space} and CrossQ continuous actions only")
        return name
    algorithm_class(name)
    unfit = () if continuous else CONTINUOUS_ONLY if discrete else (*CONTINUOUS_ONLY, *DISCRETE_ONLY)
    if name in (DISCRETE_ONLY if continuous else unfit):
        takes = "discrete" if name in DISCRETE_ONLY else "continuous"
        known = {each for each in _known() if each not in (DISCRETE_ONLY if continuous else unfit)}
        raise ValueError(f"{name} takes {takes} actions only, and {env_name} has {space}; {_available(known)}")
    return name


def _available(names: Iterable[str]) -> str:
    return f"available are {', '.join(sorted(names))}"


def _known() -> dict[str, type[BaseAlgorithm]]:
    return _trainable(stable_baselines3) | _trainable(sb3_contrib)


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
