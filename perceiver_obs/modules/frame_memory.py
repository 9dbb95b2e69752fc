"""The ring of the last frames' keys and values, as a value that is passed from step to step."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class _Log:
    """Append-only storage shared by the memories that grew from one another."""

    keys: Tensor  # [B, capacity, P, C]
    values: Tensor
    used: int


@dataclass(frozen=True)
class FrameMemory:
    """Keys and values of up to `window - 1` past frames for each row of a batch.

    Frames are written once into a log of twice the window and read as views of it; when the log is full, the
    window moves to the front of a new one. A memory is a value: appending to it leaves it as it was, because a
    log is only ever written behind the last frame that anyone holds.

    Attributes:
        window: frames that a query sees, itself included.
        seen: `[B]` int64 on the CPU, frames since each row's episode began. Frames before are masked.
    """

    window: int
    seen: Tensor
    end: int = 0
    log: _Log | None = field(default=None, repr=False)

    @classmethod
    def empty(cls, batch_size: int, window: int) -> "FrameMemory":
        return cls(window, torch.zeros(batch_size, dtype=torch.long))

    def append(self, keys: Tensor, values: Tensor) -> tuple["FrameMemory", Tensor, Tensor, Tensor | None]:
        """Add T frames `[B, T, P, C]`.

        Returns:
            the new memory; keys and values `[B, S, P, C]` of the past frames that are still in sight and the
            new ones; and which of the S frames exist for each row, `[B, S]`, or None where all do.
        """
        new_frames, past = keys.shape[1], min(self.end, self.window - 1)
        log = self.log
        # Somebody else may have grown from the same memory: what they wrote stays theirs.
        if log is None or log.used != self.end or self.end + new_frames > log.keys.shape[1]:
            log = self._new_log(keys, past, new_frames)
        start = log.used
        log.keys[:, start : start + new_frames] = keys
        log.values[:, start : start + new_frames] = values
        log.used = end = start + new_frames
        memory = FrameMemory(self.window, self.seen + new_frames, end, log)
        exists = None
        if past and int(self.seen.min()) < past:
            exists = torch.arange(past + new_frames) >= past - self.seen[:, None]
        return memory, log.keys[:, start - past : end], log.values[:, start - past : end], exists

    def _new_log(self, like: Tensor, past: int, new_frames: int) -> _Log:
        capacity = max(2 * self.window, past + new_frames)
        shape = (like.shape[0], capacity, *like.shape[2:])
        log = _Log(like.new_empty(shape), like.new_empty(shape), past)
        if past:
            assert self.log is not None
            log.keys[:, :past] = self.log.keys[:, self.end - past : self.end]
            log.values[:, :past] = self.log.values[:, self.end - past : self.end]
        return log

    def reset(self, rows: Tensor) -> "FrameMemory":
        """Forget everything of the rows where the bool mask `[B]` is True."""
        return FrameMemory(self.window, self.seen.masked_fill(rows.cpu(), 0), self.end, self.log)

    def select(self, rows: Tensor) -> "FrameMemory":
        """A memory of the given rows (int64 `[M]`) alone."""
        if self.log is None:
            return FrameMemory(self.window, self.seen[rows.cpu()])
        past = min(self.end, self.window - 1)
        keep = slice(self.end - past, self.end)
        log = _Log(self.log.keys[rows, keep], self.log.values[rows, keep], past)
        return FrameMemory(self.window, self.seen[rows.cpu()], past, log)

    def replace(self, rows: Tensor, other: "FrameMemory") -> "FrameMemory":
        """This memory with the given rows (int64 `[M]`) taken from `other`, whose batch size is M."""
        if other.log is None:
            seen = self.seen.clone()
            seen[rows.cpu()] = other.seen
            return FrameMemory(self.window, seen, self.end, self.log)
        # Both align at their last frame; rows with less past are masked by `seen`.
        past = min(max(self.end, other.end), self.window - 1)
        shape = (len(self.seen), max(2 * self.window, past), *other.log.keys.shape[2:])
        log = _Log(other.log.keys.new_zeros(shape), other.log.keys.new_zeros(shape), past)
        for source, target_rows in ((self, slice(None)), (other, rows)):
            if source.log is not None:
                known = min(source.end, past)
                span = slice(past - known, past)
                log.keys[target_rows, span] = source.log.keys[:, source.end - known : source.end]
                log.values[target_rows, span] = source.log.values[:, source.end - known : source.end]
        seen = self.seen.clone()
        seen[rows.cpu()] = other.seen
        return FrameMemory(self.window, seen, past, log)
