"""`RecordRollouts`: the episodes that somebody else plays, such as a policy in training, become rollouts on disk."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from envs.rollouts import RolloutError, RolloutWriter
from perceiver_obs.actions import ActionEncoding, executed_actions
from perceiver_obs.frame_contract import check_pixel_range


class RecordRollouts(gymnasium.Wrapper):
    """Writes every episode that is played to its end; the environment stays as it is.

    A policy visits what exploration never does. Recorded while it learns, its episodes are data to train a Perceiver
    on. Running again adds to what is there; episodes that were broken off are left out.

    All is recorded by value, whatever becomes of the arrays later. Actions are recorded as `perceiver_obs` reads them
    (`ActionEncoding`): normalised by the bounds of `env` and clipped to them, choices one-hot. States are recorded
    where `env` says that `info["state"]` holds them (`state_in_info` and `state_names`, as `make_dmc` does).

    A step after an episode's end begins the next, as with `gymnasium.wrappers.Autoreset`.

    Args:
        env: gives square RGB frames, uint8 `[size, size, 3]`.
        path: directory of the dataset, which other recorders may write to at the same time.
        policy: tag of what acts.

    Raises:
        RolloutError: observations or actions are none that can be recorded, or the directory holds a dataset of
            another environment.
        ValueError: an action is not finite, or not of the space's shape or choices.
        OSError: when an episode ends, the disk is full.
    """

    def __init__(self, env: gymnasium.Env, path: str | Path, *, policy: str = "policy"):
        super().__init__(env)
        try:
            self._encoding = executed_actions(env, type(self).__name__)
        except TypeError as error:
            raise RolloutError(f"{env} cannot be recorded: {error}") from None
        self._keeps_states = env.has_wrapper_attr("state_in_info") and bool(env.get_wrapper_attr("state_in_info"))
        meta = _describe(env, self._encoding, self._keeps_states)
        self._writer = RolloutWriter(path, {**meta, "collection": {"policy": [policy]}})
        self._policy = policy
        self._seed = 0
        self._clear()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins an episode. It is recorded with the seed of the last reset that had one."""
        frame, info = self.env.reset(seed=seed, options=options)
        self._seed = self._seed if seed is None else seed
        self._clear()
        self._add(frame, info)
        return frame, info

    def step(self, action: Any) -> tuple[np.ndarray, SupportsFloat, bool, bool, dict[str, Any]]:
        """Takes a step, and writes the episode where that ends it."""
        encoded = self._encoding.encode(action)[0]
        frame, reward, terminated, truncated, info = self.env.step(deepcopy(action))
        begins = not self._frames  # an Autoreset below took no step, as the last one had ended the episode
        self._add(frame, info)
        if begins:
            return frame, reward, terminated, truncated, info
        self._actions.append(encoded)
        self._rewards.append(float(reward))
        if terminated or truncated:
            self._writer.write_episode(
                None,
                pixels=np.stack(self._frames),
                actions=np.stack(self._actions),
                rewards=np.array(self._rewards, np.float32),
                terminated=bool(terminated),
                truncated=bool(truncated),
                seed=self._seed,
                policy=self._policy,
                states=np.stack(self._states) if self._keeps_states else None,
            )
            self._clear()
        return frame, reward, terminated, truncated, info

    def _clear(self) -> None:
        self._frames: list[np.ndarray] = []
        self._states: list[np.ndarray] = []
        self._actions: list[np.ndarray] = []
        self._rewards: list[float] = []

    def _add(self, frame: np.ndarray, info: dict[str, Any]) -> None:
        self._frames.append(np.array(frame))
        if self._keeps_states:
            self._states.append(np.array(info["state"], np.float32))


def describe_foreign(spec: EnvSpec | None, frames: spaces.Space, actions: ActionEncoding) -> dict[str, Any]:
    """A dataset's metadata, as far as an environment's spec and the space of its frames tell it.

    Raises:
        RolloutError: the frames are not uint8 `[size, size, 3]`.
    """
    shape = frames.shape
    if not isinstance(frames, spaces.Box) or shape is None or len(shape) != 3 or shape[0] != shape[1] or shape[2] != 3:
        raise RolloutError(f"expected square RGB frames as observations, got {frames}")
    if frames.dtype != np.uint8:
        raise RolloutError(f"expected frames of dtype uint8, got {frames.dtype}")
    try:
        check_pixel_range(frames, "the observation")
    except ValueError as error:
        raise RolloutError(str(error)) from None
    env_id = spec.id if spec else "unknown"
    kwargs = json.loads(json.dumps(spec.kwargs if spec else {}, default=repr))
    contract = {"size": shape[0], "channels": 3, "tasks": [env_id]}
    return {
        "env": {"id": env_id, "kwargs": kwargs},
        "frame_contract": {**contract, "action_repeat": None, "camera": None, "render_quality": None},
        "action_size": actions.size,
        "actions": actions.meta,
        "state_names": None,
    }


def _describe(env: gymnasium.Env, actions: ActionEncoding, states: bool) -> dict[str, Any]:
    meta = describe_foreign(env.spec, env.observation_space, actions)
    size = meta["frame_contract"]["size"]
    if env.has_wrapper_attr("rollout_meta"):
        meta = {**meta, **env.get_wrapper_attr("rollout_meta")(states), "action_size": actions.size}
    else:
        if env.has_wrapper_attr("frame_contract"):
            meta["frame_contract"] |= env.get_wrapper_attr("frame_contract")
        if states:
            meta["state_names"] = list(env.get_wrapper_attr("state_names"))
    meta["frame_contract"] = {**meta["frame_contract"], "size": size}  # a wrapper may have resized the frames
    return meta
