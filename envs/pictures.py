"""Where an observation shows a frame, and that frame made square."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import gymnasium
import numpy as np
from gymnasium import spaces
from PIL import Image

from perceiver_obs.frame_contract import check_pixel_range

Fit = Literal["letterbox", "crop"]
FITS = get_args(Fit)
AUTO, OBSERVATION, RENDER = "auto", "observation", "render"
LEAST_SIDE = 16  # pixels; smaller images, such as MiniGrid's 7 x 7, are symbols rather than pictures


def square_frame(frame: np.ndarray, size: int, fit: Fit) -> np.ndarray:
    """A frame uint8 `[H, W, 3]` as a fresh `[size, size, 3]`: with black bars ("letterbox"), or its middle ("crop")."""
    height, width = frame.shape[:2]
    if fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        frame = frame[top : top + side, left : left + side]
        height = width = side
    longest = max(height, width)
    inner = max(1, round(height * size / longest)), max(1, round(width * size / longest))
    if inner != (height, width):
        method = Image.Resampling.BOX if longest > size else Image.Resampling.BILINEAR
        picture = Image.fromarray(np.ascontiguousarray(frame)).resize(inner[::-1], method)
        frame = np.asarray(picture)
    if inner == (size, size):
        return np.array(frame, order="C")
    whole = np.zeros((size, size, 3), np.uint8)
    top, left = (size - inner[0]) // 2, (size - inner[1]) // 2
    whole[top : top + inner[0], left : left + inner[1]] = frame
    return whole


def find_frames(env: gymnasium.Env, frames_from: str) -> tuple[str, ...] | None:
    """The keys to the frame in an observation, none of them where it is the observation; None where it is rendered."""
    space = env.observation_space
    if frames_from == AUTO:
        found = frame_paths(space)
        if len(found) > 1:
            keys = ", ".join("/".join(path) for path in found)
            raise ValueError(f"{env} shows several images ({keys}): choose one by frames_from, or 'render'")
        frames_from = "/".join(found[0]) or OBSERVATION if found else RENDER
    if frames_from == RENDER:
        if env.render_mode != "rgb_array":
            raise ValueError(
                f"{env} shows no frames: its observation is {space}, and it cannot be rendered "
                f'(render_mode is {env.render_mode!r}, "rgb_array" is needed)'
            )
        return None
    entries = dict(space_entries(space))
    path = () if () in entries and frames_from == OBSERVATION else tuple(frames_from.split("/"))
    if path not in entries:
        known = ", ".join("/".join(each) or OBSERVATION for each in entries)
        raise ValueError(f"frames_from={frames_from!r} is not in the observation, which has {known}; or 'render'")
    entry = entries[path]
    if not isinstance(entry, spaces.Box) or entry.dtype != np.uint8 or not channels_last(entry.shape):
        raise ValueError(
            f"frames_from={frames_from!r} should be uint8 frames [H, W, 3], [H, W, 1], [H, W] or [3, H, W], got {entry}"
        )
    check_pixel_range(entry, frames_from)
    return path


def frame_paths(space: spaces.Space) -> list[tuple[str, ...]]:
    return [path for path, entry in space_entries(space) if is_picture(entry)]


def is_picture(space: spaces.Space) -> bool:
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
        return False
    shape = channels_last(space.shape or ())
    return shape is not None and min(shape[:2]) >= LEAST_SIDE


def space_entries(space: spaces.Space, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], spaces.Space]]:
    """Paths and spaces of all entries that are no `Dict` themselves."""
    if not isinstance(space, spaces.Dict):
        yield above, space
        return
    for key, entry in space.spaces.items():
        yield from space_entries(entry, (*above, key))


def channels_last(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """`(H, W, C)` of frames of this shape, None where they are none."""
    if len(shape) == 2:
        return (*shape, 1)
    if len(shape) == 3 and shape[2] in (1, 3):
        return shape
    return (*shape[1:], shape[0]) if len(shape) == 3 and shape[0] in (1, 3) else None
