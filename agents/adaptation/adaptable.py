"""Which algorithms and environments `AdaptContext` and `add_rollouts` work with."""

from __future__ import annotations

from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecCheckNan, VecEnv, VecEnvWrapper, VecMonitor

from agents.wrappers.vec_context import VecPerceiverContext
from perceiver_obs.context_space import ContextSpace


def context_env(venv: VecEnv, user: str = "AdaptContext") -> VecPerceiverContext:
    """The `VecPerceiverContext` in a stack of wrappers that leave contexts as they are; ValueError where none is."""
    while isinstance(venv, (VecMonitor, VecCheckNan)):
        venv = venv.venv
    if isinstance(venv, VecPerceiverContext):
        return venv
    inner: VecEnv = venv
    while isinstance(inner, VecEnvWrapper) and not isinstance(inner, VecPerceiverContext):
        inner = inner.venv
    if isinstance(inner, VecPerceiverContext):
        raise ValueError(
            f"{type(venv).__name__} lies around VecPerceiverContext and may change the contexts: remove it"
        )
    raise ValueError(f"{user} needs a VecPerceiverContext, got {type(venv).__name__}")


def check_adaptable(model: BaseAlgorithm, user: str = "AdaptContext") -> VecPerceiverContext:
    """The environment of an algorithm that learns on contexts alone; ValueError says why `user` cannot work with it."""
    if not isinstance(model, OffPolicyAlgorithm):
        raise ValueError(f"{user} needs an algorithm with a replay buffer such as SAC, got {type(model).__name__}")
    venv = model.get_env()
    assert venv is not None
    if isinstance(model.observation_space, spaces.Dict):
        raise ValueError(f"{user} needs contexts alone, got observations with {list(model.observation_space)}")
    context = context_env(venv, user)
    if context.encoder.action_dim is not None and not context.action_size:
        raise ValueError(f"the Perceiver reads actions, but cannot read those of {context.action_space}")
    buffer = replay_buffer(model)
    if isinstance(buffer, DictReplayBuffer) or buffer.optimize_memory_usage:
        raise ValueError(f"{user} needs a plain ReplayBuffer without optimize_memory_usage")
    return context


def replay_buffer(model: BaseAlgorithm) -> ReplayBuffer:
    """The replay buffer of an algorithm that `check_adaptable` has passed."""
    assert isinstance(model, OffPolicyAlgorithm)
    assert model.replay_buffer is not None  # there since the algorithm was made
    return model.replay_buffer


def renew_fingerprints(model: BaseAlgorithm, fingerprint: str) -> None:
    """Says in all observation spaces of an algorithm and its environment which Perceiver makes the contexts now.

    An algorithm shares the environment's space, unless it was loaded from a file.
    """
    holders: list[object] = [model, *model.policy.modules(), replay_buffer(model)]
    venv = model.get_env()
    while venv is not None:
        holders.append(venv)
        venv = venv.venv if isinstance(venv, VecEnvWrapper) else None
    for holder in holders:
        if isinstance(space := getattr(holder, "observation_space", None), ContextSpace):
            space.fingerprint = fingerprint
