"""The Perceiver: latents that read a window of frames, and queries that read a memory.

Perceiver IO (Jaegle et al. 2021, arXiv:2107.14795) with a cross-attention that is causal and windowed in time.
"""

import torch
from torch import Tensor, nn

from perceiver_obs.modules.attention import MLP, Attention, CrossAttentionBlock, SelfAttentionBlock, TrainingDropout


class CausalPerceiverEncoder(nn.Module):
    """Latents of frame t: cross-attention to the inputs of frames t - window + 1 … t, then self-attention.

    All mixing over time happens in that one cross-attention. Time enters as a learned bias for each head, latent
    and age of a frame (relative positions, as in T5, arXiv:1910.10683): nothing depends on absolute time or on
    the length of the clip, and keys and values of a frame are computed once.
    """

    def __init__(
        self,
        num_latents: int,
        channels: int,
        window: int,
        num_cross_attention_heads: int,
        num_self_attention_heads: int,
        num_self_attention_layers: int,
        widening_factor: int,
        dropout: float,
    ):
        super().__init__()
        self.window = window
        # Latents start far apart and their attention selective: what starts alike is slow to become different.
        self.latents = nn.Parameter(torch.randn(num_latents, channels))
        self.input_mlp = MLP(channels, widening_factor, dropout)
        self.input_norm = nn.LayerNorm(channels)
        self.cross_attention = Attention(channels, num_cross_attention_heads)
        nn.init.normal_(self.cross_attention.queries.weight, std=2 / channels**0.5)
        self.age_bias = nn.Parameter(_spread_over_ages(num_cross_attention_heads, num_latents, window))
        self.dropout = TrainingDropout(dropout)
        self.mlp = MLP(channels, widening_factor, dropout)
        self.blocks = nn.Sequential(
            *(
                SelfAttentionBlock(channels, num_self_attention_heads, widening_factor, dropout)
                for _ in range(num_self_attention_layers)
            )
        )
        self.norm = nn.LayerNorm(channels)

    def forward(
        self,
        inputs: Tensor,
        past: Tensor | None = None,
        exists: Tensor | None = None,
        only: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Latents `[B, T, N, C]` of inputs `[B, T, P, C]`, P inputs a frame, and the past to go on from.

        Args:
            past: keys and values `[B, window - 1, P, 2C]` of the frames before, for streaming. None reads the clip
                alone, and returns no past.
            exists: bool `[B, S]`, which of the S frames exist: those of the past, if given, and these. The latents
                of the others mean nothing.
            only: int64 `[A]`, frames to compute latents of, instead of all T.
        """
        frames = inputs.shape[1]
        # Binds what a token is to where it is: attention alone averages over the two separately.
        inputs = inputs + self.input_mlp(inputs)
        keys_values = self.cross_attention.to_keys_values(self.input_norm(inputs))
        if past is not None:
            keys_values = torch.cat([past, keys_values], dim=1)
        return self._attend(keys_values, frames, exists, only), keys_values[:, frames:]

    def _attend(self, keys_values: Tensor, frames: int, exists: Tensor | None, only: Tensor | None) -> Tensor:
        """Latents of the last `frames` of S frames, whose keys and values are `[B, S, P, 2C]`."""
        position = torch.arange(keys_values.shape[1], device=keys_values.device)
        current = position[-frames:] if only is None else position[-frames:][only]
        mask = self._mask(current[:, None] - position, keys_values.shape[2], exists)
        latents = self.latents.expand(len(current), -1, -1).flatten(0, 1)[None]  # their queries are those of all rows
        attended = self.cross_attention(latents, keys_values.flatten(1, 2), mask.flatten(2, 3))
        latents = latents + self.dropout(attended)
        latents = (latents + self.mlp(latents)).unflatten(1, (len(current), -1)).flatten(0, 1)
        return self.norm(self.blocks(latents)).unflatten(0, (len(keys_values), -1))

    def _mask(self, age: Tensor, per_frame: int, exists: Tensor | None) -> Tensor:
        """Attention bias `[1 or B, heads, T, N, S * P]` towards frames of ages `[T, S]`, with P inputs each."""

        def for_each_input(x: Tensor) -> Tensor:
            return x[..., None].expand(*x.shape, per_frame).flatten(-2)

        bias = self.age_bias[:, :, age.clamp(0, self.window - 1)].transpose(1, 2)[None]
        visible = ((age >= 0) & (age < self.window))[None]
        if exists is not None:
            # A frame always sees itself: a softmax over nothing would be NaN.
            visible = visible & (exists[:, None, :] | (age == 0))
        return for_each_input(bias).masked_fill(~for_each_input(visible)[:, None, :, None], float("-inf"))


def _spread_over_ages(num_heads: int, num_latents: int, window: int) -> Tensor:
    """Initial age bias `[heads, latents, window]`: half prefer the current frame, half one of the past each."""
    index = torch.arange(num_heads * num_latents).view(num_latents, num_heads).T
    preferred = torch.where(index % 2 == 0, 0, (index // 2) % window)
    return -0.5 * (torch.arange(window) - preferred[..., None]).abs().float()


class PerceiverDecoder(nn.Module):
    """Queries that read a memory and one another, in blocks of cross- and self-attention."""

    def __init__(self, channels: int, num_heads: int, num_layers: int, widening_factor: int, dropout: float):
        super().__init__()
        self.cross_blocks = nn.ModuleList(
            CrossAttentionBlock(channels, num_heads, widening_factor, dropout) for _ in range(num_layers)
        )
        self.self_blocks = nn.ModuleList(
            SelfAttentionBlock(channels, num_heads, widening_factor, dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(channels)

    def forward(self, queries: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """`[X, P, C]` for queries `[X, P, C]` over memory `[X, M, C]`; the bool mask `[X, M]` is True where known."""
        if mask is not None:
            mask = mask[:, None, None, :]
        for cross_block, self_block in zip(self.cross_blocks, self.self_blocks):
            queries = self_block(cross_block(queries, memory, mask))
        return self.norm(queries)
