"""Contexts at several timescales: the mean over the last frame, the last 4 and the last 16."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from perceiver_obs.modules.streaming import existing

SPANS = {"fast": 1, "medium": 4, "slow": 16}  # frames


class Timescales:
    """Concatenates the means over the last 1, 4 and 16 contexts, of those that exist.

    Args:
        names: among "fast", "medium" and "slow"; none means "fast" alone.

    Attributes:
        spans: frames of each mean.
        before: earlier frames that the longest of them reads.
    """

    def __init__(self, names: Sequence[str]):
        unknown = [name for name in names if name not in SPANS]
        if unknown:
            raise ValueError(f"timescales must be among {list(SPANS)}, got {unknown[0]!r}")
        self.spans = tuple(SPANS[name] for name in names) or (1,)
        self.before = max(self.spans) - 1

    def __call__(
        self, contexts: Tensor, recent: Tensor | None = None, seen: Tensor | None = None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Means `[B, T, D * len(spans)]` over contexts `[B, T, D]`, and the contexts to go on from.

        Args:
            recent: contexts `[B, before, D]` of the frames before, zeros where there were none; None for all zeros.
            seen: int64 `[B]`, frames before these; None for none.
            valid: bool `[B, T]`, which of these frames exist; None for all.
        """
        if not self.before:
            return contexts.repeat(1, 1, len(self.spans)), contexts[:, :0]
        batch, frames, width = contexts.shape
        if recent is None:
            recent = contexts.new_zeros(batch, self.before, width)
        if seen is None:
            seen = torch.zeros(batch, dtype=torch.long, device=contexts.device)
        exists = existing(seen, self.before, frames)
        if valid is not None:
            exists = exists & F.pad(valid.to(exists.device), (self.before, 0), value=True)
        padded = torch.cat([recent, contexts * exists[:, self.before :, None]], dim=1)
        means = []
        for span in self.spans:
            window = slice(self.before + 1 - span, None)
            count = exists[:, window].unfold(1, span, 1).sum(-1).clamp_min(1)
            means.append(padded[:, window].unfold(1, span, 1).sum(-1) / count[..., None])
        return torch.cat(means, dim=-1), padded[:, -self.before :].clone()
