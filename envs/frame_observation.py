"""`make_env` and `FrameObservation`: any Gymnasium environment as square RGB frames, with their frame contract."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from envs.dmc.gl import choose_backend
from envs.pictures import (
    AUTO,
    FITS,
    OBSERVATION,
    RENDER,
    Fit,
    channels_last,
    find_frames,
    frame_paths,
    is_picture,
    space_entries,
    square_frame,
)
from perceiver_obs.actions import ActionEncoding, executed_actions
from perceiver_obs.data.describe import describe_foreign
from perceiver_obs.settings import whole_number

DEFAULT_FPS = 30.0  # of environments that do not say how fast they run


def make_env(
    env_id: str,
    kwargs: Mapping[str, Any] | Sequence[str] = (),
    *,
    size: int = 64,
    frames_from: str = AUTO,
    fit: Fit = "letterbox",
    action_repeat: int | None = None,
    info_keys: Sequence[str] = (),
    state_in_info: bool = False,
) -> FrameObservation:
    """Make any registered Gymnasium environment as one of frames, uint8 `[size, size, 3]`.

    Args:
        env_id: as `gymnasium.make` takes it; "module:ID" imports a module that registers the id.
        kwargs: of the environment: a mapping, or texts as `parse_kwargs` reads them.
        size, frames_from, fit, action_repeat, info_keys, state_in_info: see `FrameObservation`.

    Raises:
        ValueError: there is no such environment, it does not take `kwargs`, or it shows no frames.
        ImportError: the module cannot be imported.
    """
    arguments = parse_kwargs(kwargs)
    with suppress(RuntimeError):  # for MuJoCo's; others need no OpenGL
        choose_backend()
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):  # pygame would complain of it
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
    try:
        env = gymnasium.make(env_id, **arguments)
        if frames_from == RENDER or (frames_from == AUTO and not frame_paths(env.observation_space)):
            env.close()
            env = gymnasium.make(env_id, **{"render_mode": "rgb_array", **arguments})
        return FrameObservation(
            env,
            size=size,
            frames_from=frames_from,
            fit=fit,
            action_repeat=action_repeat or 1,
            info_keys=info_keys,
            state_in_info=state_in_info,
        )
    except (gymnasium.error.Error, TypeError) as error:
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        unknown = isinstance(error, gymnasium.error.UnregisteredEnv) and ":" not in env_id
        hint = "; one that another package registers is named module:ID" if unknown else ""
        raise ValueError(f"cannot make {env_id}({given}): {error}{hint}") from error


def parse_kwargs(given: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
    """Keyword arguments from texts: one JSON object, or `key=value` each, values being JSON or else text.

    `True`, `False` and `None` are read as Python writes them, too. A mapping is taken as it is.

    Raises:
        ValueError: a text is neither.
    """
    if isinstance(given, Mapping):
        return dict(given)
    if len(given) == 1 and given[0].lstrip().startswith("{"):
        try:
            return json.loads(given[0])
        except json.JSONDecodeError as error:
            raise ValueError(f"env_kwargs is no JSON object: {error}, got {given[0]!r}") from None
    arguments = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"env_kwargs must be key=value, or one JSON object, got {text!r}")
        arguments[key] = _value(value)
    return arguments


def _value(text: str) -> Any:
    python = {"True": True, "False": False, "None": None}
    try:
        return python[text] if text in python else json.loads(text)
    except json.JSONDecodeError:
        return text


class FrameObservation(gymnasium.Wrapper, RecordConstructorArgs):
    """Shows any environment as square RGB frames, uint8 `[size, size, 3]`, each an array of its own.

    Grey frames become RGB, channels first become last. Frames are shrunk by the mean over areas and enlarged
    bilinearly. What stands beside a frame, or in its place where it is rendered, is the state: its `Box`, `Discrete`,
    `MultiDiscrete` and `MultiBinary` entries, flattened, and what `info_keys` name.

    Args:
        env: gives frames as its observation or as an entry of a `Dict`, or renders them (`render_mode="rgb_array"`).
        size: height and width of the frames, pixels.
        frames_from: where frames are: "observation", "render", or the key of a `Dict` observation ("robot/camera"
            within another). "auto": the observation or the one image in it, else what is rendered. Images of less than
            16 pixels a side count as symbols there.
        fit: how frames that are not square become so: "letterbox" with black bars, or "crop" to the middle.
        action_repeat: environment steps that an action lasts; rewards add up, and an episode's end stops it.
        info_keys: entries of `info` that are part of the state: numbers or arrays of them, in the info of every reset
            and step.
        state_in_info: put the state, float32 `[S]`, into `info["state"]`, where there is any.

    Attributes:
        frame_contract: says all this, with the environment's id as the task.
        state_names, state_units: of the entries of the state; none where there is no state.
        state_in_info: whether `info["state"]` is there.
        max_steps: steps until the registered time limit, None where there is none.

    Raises:
        ValueError: there are no frames, more than one image, or an argument is none of the above.

    Example:
        >>> import gymnasium as gym
        >>> from envs import FrameObservation
        >>> env = FrameObservation(gym.make("CartPole-v1", render_mode="rgb_array"))
        >>> env.reset(seed=0)[0].shape
        (64, 64, 3)
    """

    def __init__(
        self,
        env: gymnasium.Env,
        *,
        size: int = 64,
        frames_from: str = AUTO,
        fit: Fit = "letterbox",
        action_repeat: int = 1,
        info_keys: Sequence[str] = (),
        state_in_info: bool = False,
    ) -> None:
        RecordConstructorArgs.__init__(
            self,
            size=size,
            frames_from=frames_from,
            fit=fit,
            action_repeat=action_repeat,
            info_keys=info_keys,
            state_in_info=state_in_info,
        )
        gymnasium.Wrapper.__init__(self, env)
        self._size = whole_number("size", size, 1, 4096)
        self._repeat = whole_number("action_repeat", action_repeat, 1, 1000)
        if fit not in FITS:
            raise ValueError(f"fit must be one of {FITS}, got {fit!r}")
        self._fit = fit
        space = env.observation_space
        self._path = find_frames(env, frames_from)
        entries = dict(space_entries(space))
        self._info_keys = tuple(info_keys)
        if self._path is None or info_keys:
            first = self._numbers(env.reset()[1])
        if self._path is None:
            height, width, _ = self._rendered().shape
        else:
            height, width, _ = channels_last(entries[self._path].shape or ()) or (0, 0, 0)
        self._state_entries = {
            path: entry
            for path, entry in entries.items()
            if not is_picture(entry)
            and isinstance(entry, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary)
        }
        self.state_names = tuple(
            f"position/{'/'.join(path) or OBSERVATION}_{number}"
            for path, entry in self._state_entries.items()
            for number in range(spaces.flatdim(entry))
        )
        for key in self._info_keys:
            self.state_names += tuple(f"position/{key}_{number}" for number in range(len(first[key])))
        self.state_units = ("",) * len(self.state_names)
        self.state_in_info = state_in_info and bool(self.state_names)
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.metadata = {**env.metadata, "render_fps": (env.metadata.get("render_fps") or DEFAULT_FPS) / self._repeat}
        limit = env.spec.max_episode_steps if env.spec else None
        self.max_steps = None if limit is None else -(-limit // self._repeat)
        self.frame_contract: dict[str, Any] = {
            "size": size,
            "channels": 3,
            "tasks": [env.spec.id if env.spec else type(env.unwrapped).__name__],
            "action_repeat": self._repeat,
            "camera": RENDER if self._path is None else "/".join((OBSERVATION, *self._path)),
            "render_quality": f"{height}x{width}" + (f" {fit}" if height != width else ""),
        }
        if env.has_wrapper_attr("frame_contract"):
            stated = {
                name: value for name, value in env.get_wrapper_attr("frame_contract").items() if value is not None
            }
            self.frame_contract |= {**stated, "size": size, "channels": 3}
            if isinstance(repeat := stated.get("action_repeat"), int):
                self.frame_contract["action_repeat"] = repeat * self._repeat
        self.action_size = self._action_encoding().size

    def rollout_meta(self, states: bool) -> dict[str, Any]:
        """What the metadata of a dataset of this environment's episodes says of it; with or without states."""
        meta = describe_foreign(self.env.spec, self.observation_space, self._action_encoding())
        names = list(self.state_names) if states and self.state_names else None
        return {**meta, "frame_contract": self.frame_contract, "state_names": names}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins an episode and returns its first frame."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._frame(observation), self._info(observation, info)

    def step(self, action: Any) -> tuple[np.ndarray, SupportsFloat, bool, bool, dict[str, Any]]:
        """Takes up to `action_repeat` steps and returns the frame they lead to."""
        total = 0.0
        for _ in range(self._repeat):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return self._frame(observation), total, terminated, truncated, self._info(observation, info)

    def _action_encoding(self) -> ActionEncoding:
        try:
            return executed_actions(self.env, type(self).__name__)
        except TypeError as error:
            raise ValueError(str(error)) from None

    def _picture(self, observation: Any) -> np.ndarray:
        """The frame as the environment gives it, uint8 `[H, W, 3]`."""
        if self._path is None:
            return self._rendered()
        for key in self._path:
            observation = observation[key]
        frame = np.asarray(observation)
        if frame.ndim == 2:
            frame = frame[:, :, None]
        elif frame.shape != channels_last(frame.shape):
            frame = frame.transpose(1, 2, 0)
        return np.broadcast_to(frame, (*frame.shape[:2], 3))

    def _rendered(self) -> np.ndarray:
        frame: Any = self.env.render()
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] < 3:
            got = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
            raise ValueError(f"{self.env} should render frames uint8 [H, W, 3], got {got}")
        return frame[:, :, :3]

    def _frame(self, observation: Any) -> np.ndarray:
        return square_frame(self._picture(observation), self._size, self._fit)

    def _info(self, observation: Any, info: dict[str, Any]) -> dict[str, Any]:
        if not self.state_in_info:
            return info
        parts = []
        for path, entry in self._state_entries.items():
            value = observation
            for key in path:
                value = value[key]
            parts.append(np.asarray(spaces.flatten(entry, value), np.float32))
        return {**info, "state": np.concatenate([*parts, *self._numbers(info).values()])}

    def _numbers(self, info: dict[str, Any]) -> dict[str, np.ndarray]:
        """The entries of `info` that are part of the state, each float32 `[N]`."""
        for key in self._info_keys:
            if key not in info:
                raise ValueError(f"info_keys names {key!r}, which is not in the info, which has {', '.join(info)}")
            if not np.issubdtype(np.asarray(info[key]).dtype, np.number):
                raise ValueError(f"info_keys names {key!r}, which is no number and no array of them: {info[key]!r:.80}")
        return {key: np.asarray(info[key], np.float32).reshape(-1) for key in self._info_keys}
