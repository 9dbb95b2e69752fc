"""`VecPerceiverContext`: a Stable-Baselines3 vector environment whose pixels become contexts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvStepReturn, VecEnvWrapper

from perceiver_obs.actions import readable_actions
from perceiver_obs.context_encoder import ContextEncoder, ModelLike
from perceiver_obs.frame_contract import warn_of_unfamiliar_frames
from perceiver_obs.settings import Backend
from perceiver_obs.wrappers.final_frames import OverwrittenFrames
from perceiver_obs.wrappers.observation_layout import ObservationLayout


@dataclass(frozen=True)
class FramesSeen:
    """What the contexts of one `reset` or `step` were made from; the arrays are its own.

    Attributes:
        number: how many calls of `reset` and `step` there had been, this one included.
        frames: uint8 `[N, H, W, C]`, the newest frame of each row.
        began: bool `[N]`, the rows whose episode begins with that frame.
        actions: float32 `[N, A]` in [-1, 1], the actions just taken; None after a reset, and where the model is
            given none.
        final_frames: by row, uint8 `[H, W, C]`: the last frame of an episode that this step has ended.
        rewards: float `[N]`, of the step; None after a reset.
        states: by row, `info["state"]` `[S]` of its newest frame, where the environment gives it.
        final_states: by row, that of the last frame of an episode that this step has ended.
    """

    number: int
    frames: np.ndarray
    began: np.ndarray
    actions: np.ndarray | None = None
    final_frames: dict[int, np.ndarray] = field(default_factory=dict)
    rewards: np.ndarray | None = None
    states: dict[int, np.ndarray] = field(default_factory=dict)
    final_states: dict[int, np.ndarray] = field(default_factory=dict)


def terminal_observation(infos: Sequence[dict[str, Any]], row: int) -> Any:
    """The last observation of the episode that a step has ended in `row`; ValueError where it is missing."""
    if infos[row].get("terminal_observation") is None:
        raise ValueError(
            f"the episode of environment {row} ended, but infos[{row}]['terminal_observation'] does not hold its last "
            "observation, as SB3 asks of vector environments: use DummyVecEnv or SubprocVecEnv, or have step_wait put "
            "it there before it resets the environment"
        )
    return infos[row]["terminal_observation"]


class VecPerceiverContext(VecEnvWrapper):
    """Replaces the frames of an SB3 vector environment by contexts, with one batched call a step.

    The model lives here, in the parent process: workers of a `SubprocVecEnv` hold none. Where an episode
    ends, `infos[i]["terminal_observation"]` becomes the context of the old episode's last frame, and only
    that row is cleared. Actions are read as by `PerceiverContextWrapper`.

    Args:
        venv: a vector environment of uint8 frames, `(H, W, C)` or, below a `VecTransposeImage`, `(C, H, W)`,
            alone or as one entry of a `Dict`.
        model: a bundled name, a directory, "hf://owner/name" of the hub, or a `CausalPerceiverIO`.
        device: where the model runs: `"auto"`, `"cpu"`, `"cuda"` ...
        backend: `"auto"`, `"torch"` or `"onnx"`; see `ContextEncoder`.
        keep_pixels: keep the frame beside the context, under its own key or `"pixels"`.
        pixels_key: the key of the frame in a `Dict` observation that has several images.

    Attributes:
        encoder: makes the contexts.
        action_encoding: makes the actions that the encoder is given, None where it is given none.
        action_size: floats of such an action, 0 where there are none.
        frame_contracts: how each row's frames are made, None where it does not say.
        state_names: of the entries of `info["state"]`, None where rows do not say or differ.
        seen: what the last contexts were made from, None before the first reset.

    Raises:
        TypeError, ValueError: the frames are not what the model reads, or the `Dict` leaves open which they
            are.

    Example:
        >>> from stable_baselines3 import PPO
        >>> from stable_baselines3.common.vec_env import DummyVecEnv
        >>> from agents import VecPerceiverContext
        >>> from envs import make_dmc
        >>> venv = VecPerceiverContext(DummyVecEnv([lambda: make_dmc("walker-walk")]))
        >>> policy = PPO("MlpPolicy", venv)
    """

    def __init__(
        self,
        venv: VecEnv,
        model: ModelLike = "dmc-small",
        *,
        device: str = "auto",
        backend: Backend = "auto",
        keep_pixels: bool = False,
        pixels_key: str | None = None,
    ) -> None:
        self.encoder = ContextEncoder(model, num_rows=venv.num_envs, device=device, backend=backend)
        self._layout = ObservationLayout.find(
            venv.observation_space,
            self.encoder.frame_shape,
            pixels_key=pixels_key,
            keep_pixels=keep_pixels,
            accept_channels_first=True,
        )
        self.action_encoding = readable_actions(venv, self.encoder.action_dim, type(self).__name__)
        self.frame_contracts = warn_of_unfamiliar_frames(_stated(venv, "frame_contract"), self.encoder.model)
        self.state_names = _common(_stated(venv, "state_names"))
        self.action_size = self.action_encoding.size if self.action_encoding is not None else 0
        self.seen: FramesSeen | None = None
        self._actions: np.ndarray | None = None
        self._calls = 0
        self._overwritten = OverwrittenFrames()
        super().__init__(venv, observation_space=self._layout.space(self.encoder.context_space))

    def reset(self) -> Any:
        """Begins new episodes in all rows; contexts float32 `[N, D]`."""
        observations = self.venv.reset()
        self.encoder.reset()
        self._calls += 1
        frames = self._layout.frames(observations).copy()
        states = _states(self.venv.unwrapped.reset_infos, range(self.num_envs))
        self.seen = FramesSeen(self._calls, frames, np.ones(self.num_envs, bool), states=states)
        return self._layout.replace(observations, self.encoder.push(self.seen.frames))

    def step_async(self, actions: np.ndarray) -> None:
        """Sends the actions on, and remembers them for a model that reads actions.

        Raises:
            ValueError: the model reads actions, and one is not finite or not of the space's shape or choices.
        """
        if self.action_encoding is not None:
            self._actions = self.action_encoding.encode(actions, self.num_envs)
        self.venv.step_async(deepcopy(actions))

    def step_wait(self) -> VecEnvStepReturn:
        """Contexts float32 `[N, D]`, rewards, dones and infos of the step begun by `step_async`."""
        observations, rewards, dones, infos = self.venv.step_wait()
        rows = np.flatnonzero(dones)
        frames = self._layout.frames(observations).copy()
        final_frames = {row: self._layout.frames(terminal_observation(infos, row)).copy() for row in rows.tolist()}
        if self.seen is not None:
            for row, final_frame in final_frames.items():
                self._overwritten.check(self.seen.frames[row], final_frame, frames[row])
        if rows.size > 0:
            self._replace_terminal_observations(infos, rows, np.stack(list(final_frames.values())))
            self.encoder.reset(rows)
        contexts = self.encoder.push(frames, self._actions)
        self._calls += 1
        running, began = np.flatnonzero(~np.array(dones, bool)).tolist(), self.venv.unwrapped.reset_infos
        self.seen = FramesSeen(
            self._calls,
            frames,
            np.array(dones, bool),
            self._actions,
            final_frames,
            np.array(rewards),
            _states(infos, running) | _states(began, rows.tolist()),
            _states(infos, rows.tolist()),
        )
        return self._layout.replace(observations, contexts), rewards, dones, infos

    def _replace_terminal_observations(self, infos: list[dict], rows: np.ndarray, frames: np.ndarray) -> None:
        contexts = self.encoder.peek(frames, rows, None if self._actions is None else self._actions[rows])
        for row, context in zip(rows, contexts, strict=True):
            final = infos[row]["terminal_observation"]
            infos[row]["terminal_observation"] = self._layout.replace(final, context.copy())


def _states(infos: Sequence[dict[str, Any]], rows: Iterable[int]) -> dict[int, np.ndarray]:
    return {row: np.array(infos[row]["state"], np.float32) for row in rows if "state" in infos[row]}


def _stated(venv: VecEnv, name: str) -> list[Any]:
    """What each row states of itself, None where it states nothing."""
    try:
        states = venv.env_method("has_wrapper_attr", name)
    except (AttributeError, NotImplementedError):  # not made of Gymnasium environments
        return [None] * venv.num_envs
    return [venv.get_attr(name, row)[0] if there else None for row, there in enumerate(states)]


def _common(named: Sequence[Sequence[str] | None]) -> tuple[str, ...] | None:
    """The names that all rows state; None where there are none, or where rows differ."""
    first = tuple(named[0] or ())
    return first if first and all(tuple(each or ()) == first for each in named) else None
