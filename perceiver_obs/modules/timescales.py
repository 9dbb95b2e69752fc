"""Timescales: which frames of the past latents read, and the rings that hold these frames in streaming."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STRIDES = {"fast": 1, "medium": 4, "slow": 16}  # frames


def strides_of(names: Sequence[str]) -> tuple[int, ...]:
    """Frames from one that is read to the next, for each name; ValueError for an unknown or repeated one."""
    for number, name in enumerate(names):
        if name not in STRIDES:
            raise ValueError(f"timescales must be among {list(STRIDES)}, got {name!r}")
        if name in names[:number]:
            raise ValueError(f"timescales must differ, got {name!r} twice")
    return tuple(STRIDES[name] for name in names)


@dataclass(frozen=True)
class Timescale:
    """Reads frame t itself, and of the frames before it those whose index is a multiple of `stride`.

    Counted in strides, of `window` buckets: frame j lies in bucket t // stride - j // stride, from 0 up. Indices are
    counted from an episode's first frame, so that a frame which is kept stays in memory until its bucket is full, and
    a ring of `window` frames spans `window * stride`.

    Attributes:
        stride: frames from one that is read to the next.
        window: buckets W.
    """

    stride: int
    window: int

    @property
    def span(self) -> int:
        """Frames that latents may depend on, their own included."""
        return self.stride * self.window

    @property
    def length(self) -> int:
        """Frames that a ring holds: the bucket of frame t itself may hold another frame, but for a stride of 1."""
        return self.window - (self.stride == 1)

    def reads(self, t: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        """Of frames t and j (int64, to be broadcast): the bucket of j, in 0 to W - 1, and whether t reads it.

        Frames of negative index never happened; a frame always reads itself, as a softmax over nothing would be NaN.
        """
        bucket = _whole(t, self.stride) - _whole(j, self.stride)
        visible = (j >= 0) & (j < t) & (bucket < self.window)
        if self.stride > 1:
            visible = visible & (j % self.stride == 0)
        return bucket.clamp(0, self.window - 1), visible | (j == t)

    def held(self, seen: Tensor) -> Tensor:
        """Indices `[B, length]` of the frames that a ring holds after `seen` `[B]` frames, oldest first."""
        back = torch.arange(self.length - 1, -1, -1, device=seen.device)
        return (_whole(seen[:, None] - 1, self.stride) - back) * self.stride

    def following(self, seen: Tensor, frames: int) -> Tensor:
        """Places `[B, length]` of what a ring holds after `frames` more, among those in it and these behind them."""
        wanted, newest = self.held(seen + frames), self.held(seen)[:, -1:]
        in_ring = self.length - 1 - _whole(newest - wanted, self.stride)
        return torch.where(wanted >= seen[:, None], wanted - seen[:, None] + self.length, in_ring)


def _whole(x: Tensor, stride: int) -> Tensor:
    return x if stride == 1 else x.div(stride, rounding_mode="floor")
