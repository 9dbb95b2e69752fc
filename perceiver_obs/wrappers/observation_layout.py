"""Where an observation holds its frame, and what stands there once the frame has become a context."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from perceiver_obs.frame_contract import check_pixel_range

CONTEXT_KEY = "context"
PIXELS_KEY = "pixels"


@dataclass(frozen=True)
class ObservationLayout:
    """Splits observations into frames and the rest, and puts contexts in the frames' place.

    Works alike on one observation and on a batch: only the last three axes of a frame are looked at.
    Make one with `find`.
    """

    source: spaces.Space
    frame_key: str | None  # the frame's key in a Dict observation, None where the frame is the observation
    kept_key: str | None  # the key the frame is kept under, None where it is dropped
    channels_first: bool

    @classmethod
    def find(
        cls,
        space: spaces.Space,
        frame_shape: tuple[int, int, int],
        *,
        pixels_key: str | None = None,
        keep_pixels: bool = False,
        accept_channels_first: bool = False,
    ) -> ObservationLayout:
        """Finds the frame in an environment's (single) observation space and checks that it fits the model.

        Args:
            space: a `Box` of frames, or a `Dict` with one entry of frames.
            frame_shape: `(H, W, C)` that the model reads.
            pixels_key: the frame's key in a `Dict` with several images. For a plain `Box` of frames, the key
                they are kept under (`"pixels"` when None).
            keep_pixels: whether observations keep the frame beside the context.
            accept_channels_first: also take `(C, H, W)`, as Stable-Baselines3 lays images out.

        Raises:
            TypeError: the space is neither a `Box` nor a `Dict`, or the frame is not uint8.
            ValueError: the frame's shape is not what the model reads, its space does not go from 0 to 255, the key is
                missing or ambiguous, or a `Dict` already has an entry named `"context"`.
        """
        if isinstance(space, spaces.Dict):
            key = pixels_key if pixels_key is not None else _only_image_key(space)
            if key not in space.spaces:
                raise ValueError(f"pixels_key={key!r} is not in the observation; it has {list(space.spaces)}")
            if CONTEXT_KEY in space.spaces and not (key == CONTEXT_KEY and not keep_pixels):
                raise ValueError(
                    f"the observation already has an entry named {CONTEXT_KEY!r} ({list(space.spaces)}); "
                    "rename it, since the wrapper puts the context there"
                )
            channels_first = _check_frame_space(space[key], frame_shape, f"observation[{key!r}]", accept_channels_first)
            return cls(space, key, key if keep_pixels else None, channels_first)
        channels_first = _check_frame_space(space, frame_shape, "the observation", accept_channels_first)
        kept_key = pixels_key if pixels_key is not None else PIXELS_KEY
        if keep_pixels and kept_key == CONTEXT_KEY:
            raise ValueError(f"pixels_key={kept_key!r} is the context's own key; choose another for the frames")
        return cls(space, None, kept_key if keep_pixels else None, channels_first)

    def space(self, context: spaces.Box) -> spaces.Box | spaces.Dict:
        """The observation space with the space of contexts in the frame's place."""
        if isinstance(self.source, spaces.Dict):
            rest = {key: space for key, space in self.source.spaces.items() if self._stays(key)}
            return spaces.Dict({**rest, CONTEXT_KEY: context})
        if self.kept_key is None:
            return context
        return spaces.Dict({CONTEXT_KEY: context, self.kept_key: self.source})

    def frames(self, observations: Any) -> np.ndarray:
        """The frames of one observation, `[H, W, C]`, or of a batch, `[N, H, W, C]`; C-contiguous."""
        frames = np.asarray(observations if self.frame_key is None else observations[self.frame_key])
        if self.channels_first:
            frames = np.moveaxis(frames, -3, -1)
        return np.ascontiguousarray(frames)

    def replace(self, observations: Any, contexts: np.ndarray) -> Any:
        """The observations with `contexts` (`[D]` or `[N, D]`) in the place of their frames.

        Kept frames are copies: an environment may draw the next frame into the same memory.
        """
        if isinstance(observations, Mapping):
            rest = {key: value for key, value in observations.items() if self._stays(key)}
            if self.kept_key is not None:
                rest[self.kept_key] = np.array(rest[self.kept_key])
            return {**rest, CONTEXT_KEY: contexts}
        if self.kept_key is None:
            return contexts
        return {CONTEXT_KEY: contexts, self.kept_key: np.array(observations)}

    def _stays(self, key: str) -> bool:
        return key != self.frame_key or self.kept_key is not None


def _only_image_key(space: spaces.Dict) -> str:
    images = [key for key, entry in space.spaces.items() if _is_image(entry)]
    if len(images) != 1:
        raise ValueError(
            "expected exactly one uint8 image of three axes in the Dict observation, found "
            f"{images or 'none'} among {list(space.spaces)}; say which one with pixels_key"
        )
    return images[0]


def _is_image(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


def _check_frame_space(
    space: spaces.Space, frame_shape: tuple[int, int, int], name: str, accept_channels_first: bool
) -> bool:
    """Whether the frames come channels first; raises where the model cannot read them."""
    height, width, channels = frame_shape
    expected = f"uint8 frames of shape {(height, width, channels)} (height, width, channels)"
    if not isinstance(space, spaces.Box):
        raise TypeError(f"{name} must be a Box of {expected}, got {space}")
    if space.dtype != np.uint8:
        raise TypeError(f"{name} must hold {expected}, got dtype {space.dtype} and shape {space.shape}")
    check_pixel_range(space, name)
    if space.shape == (height, width, channels):
        return False
    if space.shape == (channels, height, width):
        if accept_channels_first:
            return True
        raise ValueError(
            f"{name} is laid out (channels, height, width) = {space.shape}, expected {expected}; wrap the "
            "environment in gymnasium.wrappers.TransformObservation with np.transpose(frame, (1, 2, 0)) first"
        )
    raise ValueError(
        f"{name} must hold {expected}, as the model was trained on, got shape {space.shape}; resize or "
        "convert them first (gymnasium.wrappers.ResizeObservation, TransformObservation)"
    )
