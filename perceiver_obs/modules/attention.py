"""Pre-norm attention blocks. Shapes: batch axes B, queries N, keys M, channels C."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class TrainingDropout(nn.Dropout):
    """Dropout that acts only where gradients are recorded, so that contexts never depend on `train()`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if torch.is_grad_enabled() else x


class MLP(nn.Sequential):
    """LayerNorm, widen, GELU, narrow."""

    def __init__(self, channels: int, widening_factor: int, dropout: float):
        super().__init__(
            nn.LayerNorm(channels),
            nn.Linear(channels, widening_factor * channels),
            nn.GELU(),
            nn.Linear(widening_factor * channels, channels),
            TrainingDropout(dropout),
        )


class Attention(nn.Module):
    """Multi-head attention of queries `[B or 1, N, C]` over keys and values `[B, M, 2C]` made by `to_keys_values`."""

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"{channels} channels cannot be split over {num_heads} attention heads")
        self.num_heads = num_heads
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

    def __init__(self, channels: int, num_heads: int, widening_factor: int, dropout: float):
        super().__init__()
        self.attention = Attention(channels, num_heads)
        self.dropout = TrainingDropout(dropout)
        self.mlp = MLP(channels, widening_factor, dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        keys_values = self.attention.to_keys_values(self.attention.norm(x))
        x = x + self.dropout(self.attention(x, keys_values, mask))
        return x + self.mlp(x)


class CrossAttentionBlock(nn.Module):
    """Cross-attention to a memory `[B, M, C]` and MLP, each around a skip: `[B, N, C]` in and out."""

    def __init__(self, channels: int, num_heads: int, widening_factor: int, dropout: float):
        super().__init__()
        self.memory_norm = nn.LayerNorm(channels)
        self.attention = Attention(channels, num_heads)
        self.dropout = TrainingDropout(dropout)
        self.mlp = MLP(channels, widening_factor, dropout)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        keys_values = self.attention.to_keys_values(self.memory_norm(memory))
        x = x + self.dropout(self.attention(x, keys_values, mask))
        return x + self.mlp(x)
