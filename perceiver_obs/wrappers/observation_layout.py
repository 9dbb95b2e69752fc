"""Where an observation holds its frame, and what stands there once the frame has become a context."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    frame_path: tuple[str, ...]  # the keys to the frame in a Dict observation, none where it is the observation
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
            space: a `Box` of frames, or a `Dict` with one entry of frames, itself or in a `Dict` within it.
            frame_shape: `(H, W, C)` that the model reads.
            pixels_key: the frame's key in a `Dict` with several images, `"robot/camera"` where it lies in a `Dict`
                within. For a plain `Box` of frames, the key they are kept under (`"pixels"` when None).
            keep_pixels: whether observations keep the frame beside the context.
            accept_channels_first: also take `(C, H, W)`, as Stable-Baselines3 lays images out.

        Raises:
            TypeError: the space is neither a `Box` nor a `Dict`, or the frame is not uint8.
            ValueError: the frame's shape is not what the model reads, its space does not go from 0 to 255, the key is
                missing or ambiguous, or a `Dict` already has an entry named `"context"`.
        """
        if isinstance(space, spaces.Dict):
            entries = {"/".join(path): (path, entry) for path, entry in _entries(space)}
            key = pixels_key if pixels_key is not None else _only_image_key(space)
            if key not in entries:
                raise ValueError(f"pixels_key={key!r} is not in the observation; it has {list(entries)}")
            path, frame_space = entries[key]
            if CONTEXT_KEY in space.spaces and not (path == (CONTEXT_KEY,) and not keep_pixels):
                raise ValueError(
                    f"the observation already has an entry named {CONTEXT_KEY!r} ({list(space.spaces)}); "
                    "rename it, since the wrapper puts the context there"
                )
            channels_first = _check_frame_space(
                frame_space, frame_shape, f"observation[{key!r}]", accept_channels_first
            )
            return cls(space, path, key if keep_pixels else None, channels_first)
        channels_first = _check_frame_space(space, frame_shape, "the observation", accept_channels_first)
        kept_key = pixels_key if pixels_key is not None else PIXELS_KEY
        if keep_pixels and kept_key == CONTEXT_KEY:
            raise ValueError(f"pixels_key={kept_key!r} is the context's own key; choose another for the frames")
        return cls(space, (), kept_key if keep_pixels else None, channels_first)

    def space(self, context: spaces.Box) -> spaces.Box | spaces.Dict:
        """The observation space with the space of contexts in the frame's place."""
        if isinstance(self.source, spaces.Dict):
            rest = self.source if self.kept_key is not None else _without(self.source, self.frame_path, spaces.Dict)
            return spaces.Dict({**rest, CONTEXT_KEY: context})
        if self.kept_key is None:
            return context
        return spaces.Dict({CONTEXT_KEY: context, self.kept_key: self.source})

    def frames(self, observations: Any) -> np.ndarray:
        """The frames of one observation, `[H, W, C]`, or of a batch, `[N, H, W, C]`; C-contiguous."""
        for key in self.frame_path:
            observations = observations[key]
        frames = np.asarray(observations)
        if self.channels_first:
            frames = np.moveaxis(frames, -3, -1)
        return np.ascontiguousarray(frames)

    def replace(self, observations: Any, contexts: np.ndarray) -> Any:
        """The observations with `contexts` (`[D]` or `[N, D]`) in the place of their frames.

        Kept frames are copies: an environment may draw the next frame into the same memory.
        """
        if self.frame_path:
            rest = (
                _with_own_frame(observations, self.frame_path)
                if self.kept_key is not None
                else (_without(observations, self.frame_path, dict))
            )
            return {**rest, CONTEXT_KEY: contexts}
        if self.kept_key is None:
            return contexts
        return {CONTEXT_KEY: contexts, self.kept_key: np.array(observations)}


def _entries(space: spaces.Dict, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], spaces.Space]]:
    """Paths and spaces of all entries that are no `Dict` themselves."""
    for key, entry in space.spaces.items():
        if isinstance(entry, spaces.Dict):
            yield from _entries(entry, (*above, key))
        else:
            yield (*above, key), entry


def _without(entries: Mapping, path: Sequence[str], make: Callable[[dict], Any]) -> Any:
    """Nested entries but the one at `path`, and but the dictionaries that this leaves empty."""
    rest = {key: entry for key, entry in entries.items() if key != path[0]}
    if len(path) > 1 and (inner := _without(entries[path[0]], path[1:], make)):
        rest[path[0]] = inner
    return make(rest)


def _with_own_frame(entries: Any, path: Sequence[str]) -> Any:
    """Nested entries with a copy of the frame at `path`."""
    if not path:
        return np.array(entries)
    return {**entries, path[0]: _with_own_frame(entries[path[0]], path[1:])}


def _only_image_key(space: spaces.Dict) -> str:
    images = ["/".join(path) for path, entry in _entries(space) if _is_image(entry)]
    if len(images) != 1:
        raise ValueError(
            "expected exactly one uint8 image of three axes in the Dict observation, found "
            f"{images or 'none'} among {['/'.join(path) for path, _ in _entries(space)]}; say which one with pixels_key"
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
        raise TypeError(
            f"{name} must hold {expected}, got dtype {space.dtype} and shape {space.shape}; "
            f"envs.FrameObservation(env, size={height}) makes such frames of any environment"
        )
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
        f"{name} must hold {expected}, as the model was trained on, got shape {space.shape}; "
        f"envs.FrameObservation(env, size={height}) makes such frames of any environment"
    )
