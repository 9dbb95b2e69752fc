"""`PerceiverContextWrapper`: one Gymnasium environment whose pixels become contexts."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils import RecordConstructorArgs

from perceiver_obs.actions import readable_actions
from perceiver_obs.context_encoder import ContextEncoder, ModelLike
from perceiver_obs.frame_contract import warn_of_unfamiliar_frames
from perceiver_obs.hub import directory_name
from perceiver_obs.settings import Backend
from perceiver_obs.wrappers.observation_layout import ObservationLayout


class PerceiverContextWrapper(gym.Wrapper, RecordConstructorArgs):
    """Replaces the frame in each observation by the Perceiver's context of the episode so far.

    The observation space becomes `Box(-inf, inf, (D,), float32)`. With a `Dict` observation, or with
    `keep_pixels`, it becomes a `Dict` that holds the context under `"context"` and the other entries
    unchanged.

    Args:
        env: gives uint8 frames `(H, W, C)` of the model's size, alone or as one entry of a `Dict`.
        model: a bundled name, a directory, "hf://owner/name" of the hub, or a `CausalPerceiverIO`. With a
            string, `env.spec` survives JSON and pickle; with an object pickle only, and it carries the weights.
        device: where the model runs: `"auto"`, `"cpu"`, `"cuda"` ...
        backend: what computes the contexts: `"auto"` (ONNX Runtime on a CPU, PyTorch elsewhere), `"torch"` or
            `"onnx"`; see `ContextEncoder`.
        keep_pixels: keep the frame beside the context, under its own key or `"pixels"`.
        pixels_key: the key of the frame in a `Dict` observation that has several images; `"robot/camera"` is the
            frame `"camera"` in a `Dict` `"robot"`.

    Raises:
        TypeError, ValueError: the frames are not what the model reads (size, channels, layout, dtype), or the
            `Dict` leaves open which entry they are.

    Where the model reads actions, it is given the one just taken, as floats in [-1, 1] (`ActionEncoding`): of a `Box`
    normalised by its bounds and clipped to them, of `Discrete` and `MultiDiscrete` one-hot, of `MultiBinary` the bits.
    It is copied before the environment sees it. Other spaces, and actions larger than the model reads, are warned
    about and not read.

    A step after an episode's end begins a new context, as `gymnasium.wrappers.Autoreset` begins a new episode.

    Example:
        >>> from envs import make_dmc
        >>> from perceiver_obs import PerceiverContextWrapper
        >>> env = PerceiverContextWrapper(make_dmc("walker-walk"))
        >>> context, info = env.reset(seed=0)
        >>> context.shape == env.observation_space.shape
        True
        >>> env.close()
    """

    def __init__(
        self,
        env: gym.Env,
        model: ModelLike = "dmc-small",
        *,
        device: str = "auto",
        backend: Backend = "auto",
        keep_pixels: bool = False,
        pixels_key: str | None = None,
    ) -> None:
        if isinstance(model, Path):
            model = directory_name(model)  # so that the spec survives JSON
        # Copying the arguments would copy a model object's weights, and strings need no copy.
        RecordConstructorArgs.__init__(
            self,
            _disable_deepcopy=True,
            model=model,
            device=device,
            backend=backend,
            keep_pixels=keep_pixels,
            pixels_key=pixels_key,
        )
        gym.Wrapper.__init__(self, env)
        self.encoder = ContextEncoder(model, num_rows=1, device=device, backend=backend)
        self._layout = ObservationLayout.find(
            env.observation_space,
            self.encoder.frame_shape,
            pixels_key=pixels_key,
            keep_pixels=keep_pixels,
        )
        self._actions = readable_actions(env, self.encoder.action_dim, type(self).__name__)
        stated = env.get_wrapper_attr("frame_contract") if env.has_wrapper_attr("frame_contract") else None
        warn_of_unfamiliar_frames([stated], self.encoder.model)
        self.observation_space = self._layout.space(self.encoder.context_space)
        self._has_reset = False
        self._ended = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins an episode; the context knows only its first frame."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.encoder.reset()
        self._has_reset = True
        self._ended = False
        return self._observation(observation), info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Takes a step and adds the new frame, with the action that led to it, to the context.

        Raises:
            gymnasium.error.ResetNeeded: no episode has begun.
            ValueError: the model reads actions, and this one is not finite or not of the space's shape or choices.
        """
        if not self._has_reset:
            raise ResetNeeded("Cannot call env.step() before calling env.reset()")
        led_here = None if self._actions is None else self._actions.encode(action)
        observation, reward, terminated, truncated, info = self.env.step(deepcopy(action))
        if self._ended:  # an Autoreset below took no step, but began a new episode
            self.encoder.reset()
        self._ended = bool(terminated or truncated)
        return self._observation(observation, led_here), reward, terminated, truncated, info

    def _observation(self, observation: Any, actions: np.ndarray | None = None) -> Any:
        frames = self._layout.frames(observation)[None]
        return self._layout.replace(observation, self.encoder.push(frames, actions)[0])
