"""The environments that policies are trained and evaluated in: one environment, seen in one of four ways."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecFrameStack,
    VecTransposeImage,
)

from agents.training.settings import PolicyEnvSettings
from agents.wrappers.vec_context import VecPerceiverContext
from agents.wrappers.vec_pca import VecFramePCA
from envs import RecordRollouts

FRAME_STACK = 3


def make_policy_env(
    settings: PolicyEnvSettings,
    num_envs: int = 1,
    record: Path | None = None,
    recorded_as: str = "training",
    *,
    state_in_info: bool = False,
) -> VecEnv:
    """Makes `num_envs` environments, in processes of their own where there are several.

    Each is wrapped in a `Monitor`, so that returns are those of the task. Observations are contexts float32
    `[N, D]`, states float32 `[N, S]`, stacked frames uint8 `[N, 3·3, H, W]`, or their principal components
    float32 `[N, K]`. Where `record` names a directory, whole episodes are written there as rollouts, tagged
    `recorded_as` and what the policy sees. `state_in_info` puts the true state into `info["state"]`, which no policy
    sees.
    """
    tag = f"{recorded_as}:{settings.observation}"
    make: list[Callable[[], gym.Env]] = [partial(_make_one, settings, record, tag, state_in_info)] * num_envs
    # A fork after rendering hangs in the OpenGL driver; forkserver starts workers from a clean process.
    venv: VecEnv = DummyVecEnv(make) if num_envs == 1 else SubprocVecEnv(make, start_method="forkserver")
    if settings.observation == "context":
        device = "auto" if settings.backend == "onnx" else settings.device  # the policy may be elsewhere
        return VecPerceiverContext(venv, settings.model, device=device, backend=settings.backend)
    if settings.observation == "pca":
        return VecFramePCA(venv, settings.model)
    if settings.observation == "pixels":
        return VecTransposeImage(VecFrameStack(venv, FRAME_STACK))
    return venv


class StateObservation(gym.Wrapper):
    """Shows the policy `info["state"]`, float32 `[S]`, instead of the frame."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        size = len(env.get_wrapper_attr("state_names"))
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins an episode and returns its first state."""
        _, info = self.env.reset(seed=seed, options=options)
        return info.pop("state"), info

    def step(self, action: Any) -> tuple[np.ndarray, SupportsFloat, bool, bool, dict[str, Any]]:
        """Takes a step and returns the state it leads to."""
        _, reward, terminated, truncated, info = self.env.step(action)
        return info.pop("state"), reward, terminated, truncated, info


class ChoicesFromZero(gym.Wrapper):
    """Counts choices from 0, as SB3 does, where those of the environment begin elsewhere."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        space: Any = env.action_space
        self._start = space.start
        if isinstance(space, spaces.Discrete):
            self.action_space = spaces.Discrete(space.n)
        else:
            self.action_space = spaces.MultiDiscrete(space.nvec)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Takes the choice that is meant."""
        return self.env.step(action + self._start)


def _make_one(settings: PolicyEnvSettings, record: Path | None, tag: str, state_in_info: bool) -> gym.Env:
    sees_state = settings.observation == "state"
    env: gym.Env = settings.make_env(
        # Where the policy sees the state, nobody looks at the frames unless they are recorded.
        render_quality="fast" if sees_state and record is None else None,
        state_in_info=state_in_info or sees_state or record is not None,
    )
    if sees_state and not env.get_wrapper_attr("state_names"):
        raise ValueError(f"{settings.env_name} shows no state beside its frames: choose another observation")
    if record is not None:
        env = RecordRollouts(env, record, policy=tag)
    if np.any(getattr(env.action_space, "start", 0)):
        env = ChoicesFromZero(env)
    return Monitor(StateObservation(env) if sees_state else env)
