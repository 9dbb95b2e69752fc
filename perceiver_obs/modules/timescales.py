"""Contexts at several timescales: the mean over the last frame, the last 4 and the last 16."""

from collections.abc import Sequence

import torch
from torch import Tensor

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

    def __call__(self, contexts: Tensor, exists: Tensor, recent: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Means `[B, T, D * len(spans)]` over contexts `[B, T, D]`, and the contexts to go on from.

        Args:
            exists: bool `[B, before + T]`, which frames before and of these exist.
            recent: contexts `[B, before, D]` of the frames before; zeros where there were none.
        """
        if not self.before:
            return contexts.repeat(1, 1, len(self.spans)), contexts[:, :0]
        if recent is None:
            recent = contexts.new_zeros(len(contexts), self.before, contexts.shape[2])
        exists = exists.to(contexts.device)
        padded = torch.cat([recent, contexts * exists[:, self.before :, None]], dim=1)
        means = []
        for span in self.spans:
            window = slice(self.before + 1 - span, None)
            count = exists[:, window].unfold(1, span, 1).sum(-1).clamp_min(1)
            means.append(padded[:, window].unfold(1, span, 1).sum(-1) / count[..., None])
        return torch.cat(means, dim=-1), padded[:, -self.before :].clone()
