"""Saved Stable-Baselines3 policies: loading, and acting with one; imports SB3 and torch only when one is loaded."""

from __future__ import annotations

import importlib
import json
import zipfile
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from envs.collection.policies import PolicyContext

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

IN_CONTRIB = ("TQC", "CrossQ", "TRPO", "QRDQN", "ARS")


def load_sb3(path: str | Path, device: str = "cpu", venv: VecEnv | None = None) -> BaseAlgorithm:
    """A policy saved with `model.save(...)` that only acts: it has no replay buffer, which could take gigabytes.

    An SB3 file holds pickles: loading one can run code, so load only what you trust.

    Raises:
        ValueError: the file is no SB3 policy, or does not fit `venv`.
    """
    from perceiver_obs.isolation import isolated

    # The replay buffer's class follows from n_steps again. SB3 warns if it comes from the file.
    custom_objects = {"buffer_size": 1, "replay_buffer_class": None}
    with isolated(device=device):  # SB3 seeds all generators with the seed of the training
        return algorithm_class(path).load(path, env=venv, device=device, custom_objects=custom_objects)


class Sb3Policy:
    """Acts by a policy that `load_sb3` loads.

    It may observe the true state (`info["state"]`), frames, or frames stacked along the channels as `VecFrameStack`
    stacks them, channels last or first; which of these is read off its observation space. Statistics of a
    `VecNormalize` are not part of the file, so policies trained behind one do not act as they did there.

    Args:
        path: the `.zip`.
        context: what it will act in.
        deterministic: take the most likely action instead of a sample.
        device: where it runs.

    Raises:
        ValueError: the file is no SB3 policy, or it observes or does something else than the environment gives.
    """

    def __init__(self, path: str | Path, context: PolicyContext, deterministic: bool = False, device: str = "cpu"):
        from perceiver_obs.isolation import isolated

        self._isolated = isolated
        self._tag = f"sb3:{Path(path).name}"
        self._deterministic = deterministic
        self._policy = load_sb3(path, device)
        self._context, self._actions = context, context.check_actions(self._policy.action_space, path)
        self._look(path)

    def _look(self, path: str | Path) -> None:
        """Finds out what the policy observes."""
        space, size = self._policy.observation_space, self._context.frame_size
        if (maker := getattr(space, "fingerprint", None)) is not None:
            raise ValueError(
                f"{path} acts on contexts of the model of fingerprint {maker}, which are not made here: "
                'use a directory of train-policy, or a "module:Class" that makes them'
            )
        self._num_frames, self._channels_first = _observed_frames(path, space, self._context)
        self._blank = np.zeros((size, size, 3), np.uint8)

    def begin(self, rng: np.random.Generator) -> str:
        """Starts an episode, whose samples `rng` decides."""
        self._rng = rng
        self._frames = deque([self._blank] * self._num_frames, maxlen=self._num_frames)
        return self._tag

    def act(self, frame: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Chooses an action of the environment's space."""
        return self._context.as_taken(self._choose(self._observe(frame, state)), self._actions)

    def _choose(self, observation: np.ndarray) -> np.ndarray:
        """The policy's action, in the space it was trained in."""
        with self._isolated(int(self._rng.integers(2**32))):
            return self._policy.predict(observation, deterministic=self._deterministic)[0]

    def _observe(self, frame: np.ndarray, state: np.ndarray) -> np.ndarray:
        if not self._num_frames:
            return state
        self._frames.append(frame)
        observation = np.concatenate(self._frames, axis=-1)
        return observation.transpose(2, 0, 1) if self._channels_first else observation


def algorithm_class(path: str | Path) -> Any:
    """The SB3 (or sb3-contrib) algorithm that saved the policy at `path`, recognised by the file's own settings."""
    try:
        with zipfile.ZipFile(path) as archive:
            data = json.loads(archive.read("data"))
        module = data["policy_class"]["__module__"]
    except (zipfile.BadZipFile, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a policy saved by Stable-Baselines3: {error!r}") from error
    name = _algorithm_name(module, data)
    if name is None:
        raise ValueError(f"{path} was saved by an algorithm that is not known here (its policy is from {module})")
    return getattr(importlib.import_module("sb3_contrib" if name in IN_CONTRIB else "stable_baselines3"), name)


def _algorithm_name(policy_module: str, data: dict) -> str | None:
    """Off-policy algorithms have policies of their own; the on-policy ones share theirs and differ in settings."""
    by_module = {"sac": "SAC", "td3": "TD3", "tqc": "TQC", "crossq": "CrossQ", "dqn": "DQN", "qrdqn": "QRDQN"}
    for part in policy_module.split("."):
        if part in by_module:
            return by_module[part]
    if not policy_module.startswith("stable_baselines3.common.policies"):
        return None
    if "clip_range" in data:
        return "PPO"
    return "TRPO" if "cg_max_steps" in data else "A2C"


def _observed_frames(path: str | Path, space: spaces.Space, context: PolicyContext) -> tuple[int, bool]:
    """(stacked frames, channels first) that a policy observes; (0, False) where it observes the state."""
    size, shape = context.frame_size, space.shape
    if context.state_names and shape == (len(context.state_names),):
        return 0, False
    if shape is not None and len(shape) == 3:
        if shape[:2] == (size, size) and shape[2] % 3 == 0:
            return shape[2] // 3, False
        if shape[1:] == (size, size) and shape[0] % 3 == 0:
            return shape[0] // 3, True
    raise ValueError(
        f"{path} observes {space}, which is neither the true state ({len(context.state_names)} entries) "
        f"nor frames of {size}×{size} pixels, single or stacked"
    )
