"""`VecFramePCA`: an SB3 vector environment whose pixels become principal components of three stacked frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvStepReturn, VecEnvWrapper

from agents.wrappers.vec_context import terminal_observation
from perceiver_obs.context_space import ContextSpace
from perceiver_obs.evaluation.frame_pca import STACKED_FRAMES, FramePCA
from perceiver_obs.frame_contract import check_pixel_range
from perceiver_obs.wrappers.final_frames import OverwrittenFrames


class VecFramePCA(VecEnvWrapper):
    """Replaces the frames of an SB3 vector environment by a linear projection: a baseline for contexts.

    Where an episode ends, `infos[i]["terminal_observation"]` becomes the features of the old episode's last
    frames, and the new episode starts from its own first frame alone.

    Args:
        venv: a vector environment of uint8 frames `(H, W, C)`.
        pca: a directory that `FramePCA.save` wrote, or the projection itself.

    Raises:
        FileNotFoundError: the directory holds no projection.
        ValueError: the projection is damaged, or the frames are not what it was fitted on.
    """

    def __init__(self, venv: VecEnv, pca: str | Path | FramePCA) -> None:
        self.encoder = pca if isinstance(pca, FramePCA) else FramePCA.load(pca)
        expected, space = self.encoder.frame_shape, venv.observation_space
        if not isinstance(space, spaces.Box) or space.shape != expected or space.dtype != np.uint8:
            raise ValueError(f"the PCA reads uint8 frames {expected} (H, W, C), the environment gives {space}")
        check_pixel_range(space, "the observation")
        self._stacks = np.zeros((venv.num_envs, STACKED_FRAMES, *expected), np.uint8)
        self._overwritten = OverwrittenFrames()
        features = ContextSpace(self.encoder.num_components, self.encoder.fingerprint)
        super().__init__(venv, observation_space=features)

    def reset(self) -> np.ndarray:
        """Begins new episodes in all rows; features float32 `[N, K]`."""
        self._stacks[:] = np.asarray(self.venv.reset())[:, None]
        return self.encoder(self._stacks)

    def step_wait(self) -> VecEnvStepReturn:
        """Features float32 `[N, K]`, rewards, dones and infos."""
        observations, rewards, dones, infos = self.venv.step_wait()
        frames = np.asarray(observations)
        for row in np.flatnonzero(dones).tolist():
            last = np.asarray(terminal_observation(infos, row))
            self._overwritten.check(self._stacks[row, 0], last, frames[row])
            infos[row]["terminal_observation"] = self.encoder(_push(self._stacks[row : row + 1], last[None]))[0]
        self._stacks = _push(self._stacks, frames)
        self._stacks[dones] = frames[dones, None]
        return self.encoder(self._stacks), rewards, dones, infos


def _push(stacks: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Stacks `[N, S, H, W, C]`, newest first, with new frames `[N, H, W, C]`."""
    return np.concatenate([frames[:, None], stacks[:, :-1]], axis=1)
