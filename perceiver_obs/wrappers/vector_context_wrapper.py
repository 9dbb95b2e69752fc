"""`PerceiverContextVectorWrapper`: a Gymnasium vector environment whose pixels become contexts."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
from gymnasium import logger
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from perceiver_obs.actions import readable_actions
from perceiver_obs.context_encoder import ContextEncoder, ModelLike
from perceiver_obs.frame_contract import Stated, warn_of_unfamiliar_frames
from perceiver_obs.settings import Backend
from perceiver_obs.wrappers.final_frames import OverwrittenFrames
from perceiver_obs.wrappers.observation_layout import ObservationLayout


class PerceiverContextVectorWrapper(VectorWrapper):
    """Replaces the frames of a vector environment by contexts, with one model and one batched call a step.

    Each row gets the context its environment would get alone, in all of Gymnasium's autoreset modes:

    - `NEXT_STEP`: the row starts anew on the step after its episode ended, as its environment does.
    - `SAME_STEP`: `infos["final_obs"]` becomes the context of the *old* episode's last frame, and the
      returned row the context of the new episode's first.
    - `DISABLED`: `reset(options={"reset_mask": mask})` starts the rows in the mask anew; the others keep
      their last context, since no frame of theirs is new.

    Actions are read as by `PerceiverContextWrapper`, each row's by the single action space.

    Args:
        env: a vector environment of uint8 frames `(H, W, C)`, alone or as one entry of a `Dict`.
        model, device, backend, keep_pixels, pixels_key: as for `PerceiverContextWrapper`.

    Example:
        >>> import gymnasium as gym
        >>> from envs import make_dmc
        >>> from perceiver_obs import PerceiverContextVectorWrapper
        >>> venv = gym.vector.SyncVectorEnv([lambda: make_dmc("walker-walk")] * 2)
        >>> venv = PerceiverContextVectorWrapper(venv)
        >>> contexts, infos = venv.reset(seed=0)
        >>> contexts.shape == (2, venv.encoder.context_dim)
        True
        >>> venv.close()
    """

    def __init__(
        self,
        env: VectorEnv,
        model: ModelLike = "dmc-small",
        *,
        device: str = "auto",
        backend: Backend = "auto",
        keep_pixels: bool = False,
        pixels_key: str | None = None,
    ) -> None:
        super().__init__(env)
        self.autoreset_mode = _autoreset_mode(env)
        self.encoder = ContextEncoder(model, num_rows=env.num_envs, device=device, backend=backend)
        self._layout = ObservationLayout.find(
            env.single_observation_space,
            self.encoder.frame_shape,
            pixels_key=pixels_key,
            keep_pixels=keep_pixels,
        )
        self._actions = readable_actions(env, self.encoder.action_dim, type(self).__name__)
        warn_of_unfamiliar_frames(_frame_contracts(env), self.encoder.model)
        self.single_observation_space = self._layout.space(self.encoder.context_space)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self._contexts: np.ndarray | None = None
        self._frames: np.ndarray | None = None  # the newest, where the next step may replace some before they are seen
        self._overwritten = OverwrittenFrames()
        self._ended = np.zeros(env.num_envs, dtype=bool)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begins new episodes in all rows, or in those of `options["reset_mask"]` (bool `[N]`).

        Raises:
            gymnasium.error.ResetNeeded: a mask was given before any reset of all rows.
        """
        mask = None if options is None else options.get("reset_mask")
        if mask is not None and self._contexts is None:
            raise ResetNeeded("Cannot reset some rows (reset_mask) before all rows have been reset once")
        # The environment checks the mask and takes it out of the dictionary: it must not be the caller's.
        observations, infos = self.env.reset(
            seed=seed,  # type: ignore[arg-type]  # vector environments take lists of seeds
            options=None if options is None else dict(options),
        )
        frames = self._layout.frames(observations)
        self._remember(frames)
        if mask is None or self._contexts is None:
            self.encoder.reset()
            self._contexts = self.encoder.push(frames)
            self._ended[:] = False
        else:
            rows = np.flatnonzero(mask)
            self.encoder.reset(rows)
            self._contexts[rows] = self.encoder.push(frames[rows], rows=rows)
            self._ended[rows] = False
        return self._layout.replace(observations, self._contexts.copy()), infos

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Steps all rows; see the class for what becomes of rows whose episode ends.

        Raises:
            gymnasium.error.ResetNeeded: no episode has begun.
            ValueError: the model reads actions, and one is not finite or not of the space's shape or choices.
        """
        if self._contexts is None:
            raise ResetNeeded("Cannot call env.step() before calling env.reset()")
        action_rows = None if self._actions is None else self._actions.encode(actions, self.num_envs)
        observations, rewards, terminations, truncations, infos = self.env.step(deepcopy(actions))
        frames = self._layout.frames(observations)
        ended = np.logical_or(terminations, truncations)
        if self.autoreset_mode == AutoresetMode.SAME_STEP:
            infos = self._with_final_contexts(infos, frames, action_rows)
            begun = ended
        elif self.autoreset_mode == AutoresetMode.NEXT_STEP:
            begun = self._ended
        else:
            begun = np.zeros_like(ended)
        self._ended = ended
        if begun.any():
            self.encoder.reset(begun)
        self._remember(frames)
        self._contexts = self.encoder.push(frames, action_rows)
        observations = self._layout.replace(observations, self._contexts.copy())
        return observations, rewards, terminations, truncations, infos

    def _remember(self, frames: np.ndarray) -> None:
        if self.autoreset_mode == AutoresetMode.SAME_STEP:
            self._frames = frames.copy()

    def _with_final_contexts(
        self, infos: dict[str, Any], frames: np.ndarray, actions: np.ndarray | None
    ) -> dict[str, Any]:
        """`infos` with contexts in `final_obs`, computed from the rows' state before it is cleared."""
        rows = np.flatnonzero(infos.get("_final_obs", ()))
        if rows.size == 0:
            return infos
        final_obs = infos["final_obs"]
        finals = [_row(final_obs, row) for row in rows]
        final_frames = np.stack([self._layout.frames(final) for final in finals])
        assert self._frames is not None  # of the reset before
        for row, final_frame in zip(rows, final_frames, strict=True):
            self._overwritten.check(self._frames[row], final_frame, frames[row])
        contexts = self.encoder.peek(
            final_frames,
            rows,
            None if actions is None else actions[rows],
        )
        final_contexts = np.full(self.num_envs, None, dtype=object)
        for row, final, context in zip(rows, finals, contexts, strict=True):
            final_contexts[row] = self._layout.replace(final, context.copy())
        return {**infos, "final_obs": final_contexts}


def _row(observations: Any, row: Any) -> Any:
    """One row of `final_obs`: an array of observations, or a dictionary of arrays where the env batches
    it."""
    if isinstance(observations, dict):
        return {key: _row(value, row) for key, value in observations.items()}
    return observations[row]


def _frame_contracts(env: VectorEnv) -> list[Stated | None]:
    """The frame contract of each row, None where it states none; a row without one cannot be asked in a worker."""
    call = getattr(env.unwrapped, "call", None)
    if call is None:
        return [getattr(env, "frame_contract", None)] * env.num_envs
    states = call("has_wrapper_attr", "frame_contract")
    if all(states):
        return list(call("frame_contract"))
    rows = getattr(env.unwrapped, "envs", None)  # of one process, asked one by one
    return [
        row.get_wrapper_attr("frame_contract") if there and row is not None else None
        for row, there in zip(rows or [None] * env.num_envs, states)
    ]


def _autoreset_mode(env: VectorEnv) -> AutoresetMode:
    mode = env.metadata.get("autoreset_mode")
    if mode is None:
        logger.warn("%s", f"{env} has no 'autoreset_mode' in its metadata; NEXT_STEP is assumed")
        return AutoresetMode.NEXT_STEP
    return AutoresetMode(mode)
