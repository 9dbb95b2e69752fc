"""Pre-norm attention blocks. Shapes: batch axes B, queries N, keys M, channels C."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


@dataclass(frozen=True)
class BlockSizes:
    """What all attention blocks of a model have in common; the hidden layers of MLPs are `widening_factor` as wide."""

    channels: int
    num_heads: int
    widening_factor: int
    dropout: float


class TrainingDropout(nn.Dropout):
    """Dropout that acts only where gradients are recorded, so that contexts never depend on `train()`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if torch.is_grad_enabled() else x


class MLP(nn.Sequential):
    """LayerNorm, widen, GELU, narrow."""

    def __init__(self, sizes: BlockSizes):
        channels, hidden = sizes.channels, sizes.widening_factor * sizes.channels
        super().__init__(
            nn.LayerNorm(channels),
            nn.Linear(channels, hidden),
            nn.GELU(),
            nn.Linear(hidden, channels),
            TrainingDropout(sizes.dropout),
        )


class Attention(nn.Module):
    """Multi-head attention of queries `[B or 1, N, C]` over keys and values `[B, M, 2C]` made by `to_keys_values`."""

    def __init__(self, sizes: BlockSizes):
        super().__init__()
        channels, self.num_heads = sizes.channels, sizes.num_heads
        if channels % self.num_heads:
            raise ValueError(f"{channels} channels cannot be split over {self.num_heads} attention heads")
        self.norm = nn.LayerNorm(channels)
        self.queries = nn.Linear(channels, channels)
        self.to_keys_values = nn.Linear(channels, 2 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, keys_values: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` broadcasts to `[B, heads, N, M]`: a float bias, or bools that are True where to attend."""
        queries, keys, values = (
            rearrange(t, "b n (h d) -> b h n d", h=self.num_heads)
            for t in (self.queries(self.norm(x)), *keys_values.chunk(2, dim=-1))
        )
        queries = queries.expand(len(keys), -1, -1, -1)
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.out(rearrange(attended, "b h n d -> b n (h d)"))


class SelfAttentionBlock(nn.Module):
    """Self-attention and MLP, each around a skip: `[B, N, C]` in and out."""

    def __init__(self, sizes: BlockSizes):
        super().__init__()
        self.attention = Attention(sizes)
        self.dropout = TrainingDropout(sizes.dropout)
        self.mlp = MLP(sizes)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        keys_values = self.attention.to_keys_values(self.attention.norm(x))
        x = x + self.dropout(self.attention(x, keys_values, mask))
        return x + self.mlp(x)


class CrossAttentionBlock(nn.Module):
    """Cross-attention to a memory `[B, M, C]` and MLP, each around a skip: `[B, N, C]` in and out."""

    def __init__(self, sizes: BlockSizes):
        super().__init__()
        self.memory_norm = nn.LayerNorm(sizes.channels)
        self.attention = Attention(sizes)
        self.dropout = TrainingDropout(sizes.dropout)
        self.mlp = MLP(sizes)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        keys_values = self.attention.to_keys_values(self.memory_norm(memory))
        x = x + self.dropout(self.attention(x, keys_values, mask))
        return x + self.mlp(x)
