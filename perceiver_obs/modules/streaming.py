"""What streaming carries from frame to frame, as values that are passed in and out of a step.

Every tensor of a state has a row for each episode and holds zeros where nothing has happened. So one mapping of rows
serves all layers and backends, and a row that is set to zero is the row of a new episode.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, Self

import torch
from torch import Tensor


class StreamingState:
    """Base of frozen dataclasses whose fields are tensors `[B, ...]`, further states, tuples of these, or None.

    None stands for what a model never carries. Nothing is changed in place: old states stay valid.
    """

    def map_rows(self, change: Callable[..., Tensor], *others: Self) -> Self:
        """A state of `change(mine, *theirs)` for each tensor and its counterparts in `others`."""
        return _map(change, self, *others)

    def reset(self, rows: Tensor) -> Self:
        """Begin a new episode in the rows where the bool mask `[B]` is True; the others stay bit-identical."""
        return self.map_rows(lambda x: x.masked_fill(rows.to(x.device).view(-1, *[1] * (x.ndim - 1)), 0))

    def select(self, rows: Tensor) -> Self:
        """The state of rows (int64 `[M]`) alone."""
        return self.map_rows(lambda x: x[rows.to(x.device)])

    def replace(self, rows: Tensor, other: Self) -> Self:
        """This state with rows (int64 `[M]`) taken from `other`, which holds M rows."""
        return self.map_rows(lambda mine, theirs: mine.index_copy(0, rows.to(mine.device), theirs), other)


def _map(change: Callable[..., Tensor], *values: Any) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return change(*values)
    if isinstance(first, tuple):
        return tuple(_map(change, *each) for each in zip(*values, strict=True))
    if isinstance(first, StreamingState):
        names = [field.name for field in fields(first)]  # type: ignore[arg-type]  # subclasses are dataclasses
        return replace(first, **{name: _map(change, *(getattr(v, name) for v in values)) for name in names})  # type: ignore[type-var]
    return first


def existing(seen: Tensor, before: int, frames: int) -> Tensor:
    """Which of the `before` frames before and of the next `frames` belong to a row's episode.

    Args:
        seen: int64 `[B]`, frames since each row's episode began.

    Returns:
        bool `[B, before + frames]`, in order of time.
    """
    return torch.arange(before + frames, device=seen.device) >= before - seen[:, None]
