"""Principal components of a few stacked frames: the linear features that contexts are compared with."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from perceiver_obs.data.rollouts import Episode
from perceiver_obs.files import write_atomic
from perceiver_obs.isolation import isolated

STACKED_FRAMES = 3
PCA_FILE = "pca.safetensors"
PCA_SAMPLES = 1500
OVERSAMPLING = 32  # directions beyond those kept; without, the last ones kept are not principal components
SMALLEST_SCALE = 1e-3  # of the largest; what varies less is rounding error


@dataclass(frozen=True)
class FramePCA:
    """Projects stacked frames onto their principal components, each scaled to deviation 1 on the data of the fit.

    Attributes:
        mean: `[S·H·W·C]`, of stacked frames in [0, 1].
        components: `[S·H·W·C, K]`, K directions of length 1.
        scale: `[K]`, deviation of each component on the data of the fit.
        frame_shape: `(H, W, C)`.
    """

    mean: Tensor
    components: Tensor
    scale: Tensor
    frame_shape: tuple[int, ...]

    @classmethod
    def fit(cls, episodes: Sequence[Episode], num_components: int, seed: int) -> "FramePCA":
        """Fits `num_components` (fewer where there are fewer frames) on frames drawn from all episodes."""
        random = np.random.default_rng(seed)
        frames = [(e, time) for e in range(len(episodes)) for time in range(len(episodes[e].pixels))]
        chosen = [frames[place] for place in random.permutation(len(frames))[:PCA_SAMPLES]]
        sample = _flatten(np.stack([stack_frames(episodes[e].pixels, [time])[0] for e, time in chosen]))
        mean = sample.mean(0)
        rank = min(num_components + OVERSAMPLING, *sample.shape)
        with isolated(seed):
            components = torch.pca_lowrank(sample - mean, rank, center=False, niter=4)[2][:, :num_components]
        deviation = ((sample - mean) @ components).std(0)
        scale = deviation.clamp_min(SMALLEST_SCALE * float(deviation.max()))
        return cls(mean, components, scale, episodes[0].pixels.shape[1:])

    @property
    def num_components(self) -> int:
        """The width K of the features."""
        return self.components.shape[1]

    @property
    def fingerprint(self) -> str:
        """Hash of the projection, 16 hexadecimal digits."""
        digest = hashlib.sha256(str(self.frame_shape).encode())
        for tensor in (self.mean, self.components, self.scale):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()[:16]

    def __call__(self, stacks: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features `[N, K]` of stacks `[N, S, H, W, C]` in the order of `stack_frames`."""
        return (((_flatten(stacks) - self.mean) @ self.components) / self.scale).numpy()

    def save(self, directory: str | Path) -> None:
        """Writes `pca.safetensors` into a directory."""
        tensors = {"mean": self.mean, "components": self.components.contiguous(), "scale": self.scale}
        shape = ",".join(map(str, self.frame_shape))
        write_atomic(Path(directory) / PCA_FILE, save(tensors, metadata={"frame_shape": shape}))

    @classmethod
    def load(cls, directory: str | Path) -> "FramePCA":
        """Reads `pca.safetensors`.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or holds something else.
        """
        path = Path(directory) / PCA_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: expected a directory that FramePCA.save wrote")
        try:
            with safe_open(path, "pt") as file:
                metadata: dict[str, Any] = file.metadata() or {}
                shape = tuple(int(size) for size in metadata["frame_shape"].split(","))
                mean, components, scale = (file.get_tensor(name) for name in ("mean", "components", "scale"))
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{path} holds no whole PCA of frames: {error}") from error
        width = STACKED_FRAMES * int(np.prod(shape))
        if mean.shape != (width,) or scale.ndim != 1 or components.shape != (width, len(scale)):
            raise ValueError(f"{path} holds no whole PCA of frames: tensors do not fit frames of {shape}")
        return cls(mean, components, scale, shape)


def stack_frames(pixels: NDArray[np.uint8], times: Sequence[int]) -> NDArray[np.uint8]:
    """Stacks `[N, S, H, W, C]` of the last frames up to each time, newest first, from an episode `[T, H, W, C]`.

    Before an episode's start its first frame stands in.
    """
    back = np.arange(STACKED_FRAMES)
    return np.asarray(pixels)[np.maximum(np.asarray(times)[:, None] - back, 0)]


def _flatten(stacks: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(stacks.reshape(len(stacks), -1).astype(np.float32) / np.float32(255))
