"""A saved Stable-Baselines3 policy as a behaviour policy; imports SB3 and torch only when one is made."""

import importlib
import json
import zipfile
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from envs.collection.policies import PolicyContext


class Sb3Policy:
    """Acts by sampling from a policy saved with `model.save(...)`.

    It may observe the true state (`info["state"]`), frames, or frames stacked along the channels as `VecFrameStack`
    stacks them, channels last or first; which of these is read off its observation space. Statistics of a
    `VecNormalize` are not part of the file, so policies trained behind one do not act as they did there.

    An SB3 file holds pickles: loading one can run code, so load only what you trust.

    Args:
        path: the `.zip`.
        context: what it will act in.

    Raises:
        ValueError: the file is no SB3 policy, or it observes or does something else than the environment gives.
    """

    def __init__(self, path: str | Path, context: PolicyContext):
        import torch

        from perceiver_obs.isolation import isolated

        torch.set_num_threads(1)
        self._isolated = isolated
        self._tag = f"sb3:{Path(path).name}"
        # Without this, loading an off-policy algorithm would set up the replay buffer it was trained with.
        with isolated():  # SB3 seeds all generators with the seed of the training
            self._model = algorithm_class(path).load(path, device="cpu", custom_objects={"buffer_size": 1})
        self._context, self._actions = context, context.check_actions(self._model.action_space, path)
        if (maker := getattr(self._model.observation_space, "fingerprint", None)) is not None:
            raise ValueError(
                f"{path} acts on contexts of the model of fingerprint {maker}, which are not made here: "
                'use a directory of train-policy, or a "module:Class" that makes them'
            )
        self._frames: deque[np.ndarray] = deque()
        self._num_frames, self._channels_first = _observed_frames(path, self._model.observation_space, context)
        self._blank = np.zeros((context.frame_size, context.frame_size, 3), np.uint8)

    def begin(self, rng: np.random.Generator) -> str:
        self._rng = rng
        self._frames = deque([self._blank] * self._num_frames, maxlen=self._num_frames)
        return self._tag

    def act(self, frame: np.ndarray, state: np.ndarray) -> np.ndarray:
        observation = state
        if self._num_frames:
            self._frames.append(frame)
            observation = np.concatenate(self._frames, axis=-1)
            if self._channels_first:
                observation = observation.transpose(2, 0, 1)
        with self._isolated(int(self._rng.integers(2**32))):
            action, _ = self._model.predict(observation, deterministic=False)
        return self._context.as_taken(action, self._actions)


def algorithm_class(path: str | Path) -> Any:
    """The SB3 (or sb3-contrib) algorithm that saved the policy at `path`, recognised by the file's own settings."""
    try:
        with zipfile.ZipFile(path) as archive:
            data = json.loads(archive.read("data"))
        module = data["policy_class"]["__module__"]
    except (zipfile.BadZipFile, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a policy saved by Stable-Baselines3: {error!r}") from error
    name = _algorithm_name(module, data)
    package = "sb3_contrib" if name in ("TQC", "CrossQ", "TRPO", "QRDQN", "ARS") else "stable_baselines3"
    if name is None:
        raise ValueError(f"{path} was saved by an algorithm that is not known here (its policy is from {module})")
    return getattr(importlib.import_module(package), name)


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


def _observed_frames(path: str | Path, space, context: PolicyContext) -> tuple[int, bool]:
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
