"""What the metadata of a dataset says of the environment that its episodes were played in."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from perceiver_obs.actions import ActionEncoding, executed_actions
from perceiver_obs.data.episode import RolloutError
from perceiver_obs.frame_contract import check_pixel_range


def describe_data(
    task: str,
    size: int,
    actions: ActionEncoding,
    state_names: Sequence[str] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A dataset's metadata where nothing is known of how frames are made but what they show.

    Args:
        task: name of the environment, robot or scene.
        size: height and width of the frames, pixels.
        actions: how they are encoded.
        state_names: of the entries of the state, None where none is recorded.
        kwargs: of the environment.
    """
    contract = {"size": size, "channels": 3, "tasks": [task]}
    return {
        "env": {"id": task, "kwargs": json.loads(json.dumps(kwargs or {}, default=repr))},
        "frame_contract": {**contract, "action_repeat": None, "camera": None, "render_quality": None},
        "action_size": actions.size,
        "actions": actions.meta,
        "state_names": None if state_names is None else list(state_names),
    }


def describe_foreign(spec: EnvSpec | None, frames: spaces.Space, actions: ActionEncoding) -> dict[str, Any]:
    """A dataset's metadata, as far as an environment's spec and the space of its frames tell it.

    Raises:
        RolloutError: the frames are not uint8 `[size, size, 3]`.
    """
    shape = frames.shape
    if not isinstance(frames, spaces.Box) or shape is None or len(shape) != 3 or shape[0] != shape[1] or shape[2] != 3:
        raise RolloutError(f"expected square RGB frames as observations, got {frames}: wrap it in FrameObservation")
    if frames.dtype != np.uint8:
        raise RolloutError(f"expected frames of dtype uint8, got {frames.dtype}")
    try:
        check_pixel_range(frames, "the observation")
    except ValueError as error:
        raise RolloutError(str(error)) from None
    return describe_data(spec.id if spec else "unknown", shape[0], actions, kwargs=spec.kwargs if spec else None)


def recorded_actions(env: gymnasium.Env, user: str) -> ActionEncoding:
    """`executed_actions` of an environment; RolloutError where its actions cannot be recorded."""
    try:
        return executed_actions(env, user)
    except TypeError as error:
        raise RolloutError(f"{env} cannot be recorded: {error}") from None


def describe_env(env: gymnasium.Env, actions: ActionEncoding, states: bool) -> dict[str, Any]:
    """A dataset's metadata, with all that `env` tells of itself: `rollout_meta`, `frame_contract`, `state_names`.

    Raises:
        RolloutError: its observations cannot be recorded.
    """
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


def shows_states(env: gymnasium.Env) -> bool:
    """Whether `info["state"]` of an environment holds its state."""
    return env.has_wrapper_attr("state_in_info") and bool(env.get_wrapper_attr("state_in_info"))
