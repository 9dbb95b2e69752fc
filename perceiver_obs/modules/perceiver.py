"""The Perceiver: latents that read a window of frames, and queries that read a memory.

Perceiver IO (Jaegle et al. 2021, arXiv:2107.14795) with a cross-attention that is causal and windowed in time.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from perceiver_obs.modules.attention import (
    MLP,
    Attention,
    BlockSizes,
    CrossAttentionBlock,
    SelfAttentionBlock,
    TrainingDropout,
)
from perceiver_obs.modules.timescales import Timescale

Rings = tuple[Tensor, ...]


class CausalPerceiverEncoder(nn.Module):
    """Latents of frame t: cross-attention to the inputs of frames up to t, then self-attention.

    All mixing over time happens in that one cross-attention. Every timescale has latents of its own, which read the
    frames of its stride and attend to one another alone; their mean is what the timescale gives. Time enters as a
    learned bias for each head, latent and age of a frame in strides (relative positions, as in T5, arXiv:1910.10683),
    and keys and values of a frame are computed once, for all timescales.

    Args:
        num_latents: latents N of the first timescale. Further ones have half as many: they see the frame again only
            to put the past in relation to it, and all together must stay cheap.
        num_layers: self-attention blocks over them.
        sizes: of the blocks, C channels.
        window: frames W that the latents of each timescale read.
        strides: of the timescales, R of them.

    Attributes:
        counts: latents of each timescale, M of all.
        alike: bool `[M, M]`, which latents are of one timescale; None where all are.
    """

    alike: Tensor | None

    def __init__(
        self,
        num_latents: int,
        num_layers: int,
        sizes: BlockSizes,
        window: int,
        strides: Sequence[int] = (1,),
    ):
        super().__init__()
        channels, num_heads = sizes.channels, sizes.num_heads
        self.timescales = tuple(Timescale(stride, window) for stride in strides)
        # Latents start far apart and their attention selective: what starts alike is slow to become different.
        self.latents = nn.Parameter(torch.randn(num_latents, channels))
        self.input_mlp = MLP(sizes)
        self.input_norm = nn.LayerNorm(channels)
        self.cross_attention = Attention(sizes)
        nn.init.normal_(self.cross_attention.queries.weight, std=2 / channels**0.5)
        self.age_bias = nn.Parameter(_spread_over_ages(num_heads, num_latents, window))
        self.dropout = TrainingDropout(sizes.dropout)
        self.mlp = MLP(sizes)
        self.blocks = nn.ModuleList(SelfAttentionBlock(sizes) for _ in range(num_layers))
        self.norm = nn.LayerNorm(channels)
        # Those of the first timescale bear the names that models of one timescale have.
        fewer = max(1, num_latents // 2)
        self.further_latents = nn.ParameterList(torch.randn(fewer, channels) for _ in strides[1:])
        self.further_biases = nn.ParameterList(_spread_over_ages(num_heads, fewer, window) for _ in strides[1:])
        self.counts = [num_latents, *(fewer for _ in strides[1:])]
        timescale = torch.tensor([number for number, count in enumerate(self.counts) for _ in range(count)])
        alike = timescale[:, None] == timescale if len(strides) > 1 else None
        self.register_buffer("alike", alike, persistent=False)

    @property
    def all_latents(self) -> Tensor:
        """Those of all timescales in a row, `[M, C]`."""
        return torch.cat([self.latents, *self.further_latents])

    @property
    def all_biases(self) -> list[nn.Parameter]:
        """`[heads, latents, W]` of each timescale."""
        return [self.age_bias, *self.further_biases]

    def forward(
        self,
        inputs: Tensor,
        rings: Rings | None = None,
        first: Tensor | None = None,
        only: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> tuple[Tensor, Rings]:
        """Means of latents `[B, T, R, C]` of inputs `[B, T, P, C]`, P inputs a frame, and the rings to go on from.

        Args:
            rings: keys and values `[B, length, P, 2C]` of frames before, for each timescale, for streaming. None reads
                the clip alone, and returns none.
            first: int64 `[B]`, the index of the first of these frames in its episode; None for 0. Frames of negative
                index do not exist, and their latents mean nothing.
            only: int64 `[A]`, frames whose latents are computed, instead of all T.
            hidden: int64 `[B]`, how many of the frames before its own a latent of stride 1 does not see.
        """
        # Binds what a token is to where it is: attention alone averages over the two separately.
        inputs = inputs + self.input_mlp(inputs)
        new = self.cross_attention.to_keys_values(self.input_norm(inputs))
        index = torch.arange(new.shape[1], device=new.device)[None]
        if first is not None:
            index = index + first[:, None]
        elif hidden is not None:
            index = index.expand(len(hidden), -1)
        if rings is None:
            latents = self._attend(new, self._biases(index if only is None else index[:, only], [], index, hidden))
            return latents, ()
        memory = torch.cat([*rings, new], dim=1)
        biases = self._biases(index, [scale.held(index[:, 0]) for scale in self.timescales], index, hidden)
        return self._attend(memory, biases), self._following(memory, index)

    def _following(self, memory: Tensor, index: Tensor) -> Rings:
        """Rings after frames `index` `[B, T]`, which are the last of a memory `[B, S, P, 2C]`, behind all rings."""
        rows, rings, begin = torch.arange(len(memory), device=memory.device)[:, None], [], 0
        shared = memory.shape[1] - index.shape[1]
        for scale in self.timescales:
            place = scale.following(index[:, 0], index.shape[1])
            place = place + torch.where(place < scale.length, begin, shared - scale.length)
            rings.append(memory[rows, place])
            begin += scale.length
        return tuple(rings)

    def _biases(self, current: Tensor, held: Sequence[Tensor], index: Tensor, hidden: Tensor | None) -> Tensor:
        """Attention bias `[B or 1, heads, A, M, S]` of frames `current` `[B or 1, A]`.

        It is towards the S frames that the rings of the timescales hold, `held` `[B, length]` each, and after them
        those of `index` `[B or 1, T]`, which all timescales read.
        """
        read = torch.cat([*held, index], dim=1)[:, None]
        place, begin, biases = torch.arange(read.shape[-1], device=read.device), 0, []
        shared = read.shape[-1] - index.shape[-1]
        for number, (scale, age_bias) in enumerate(zip(self.timescales, self.all_biases, strict=True)):
            bucket, visible = scale.reads(current[..., None], read)
            if hidden is not None and scale.stride == 1:
                visible = visible & ((bucket == 0) | (bucket > hidden[:, None, None]))
            if len(held) > 1:
                end = begin + held[number].shape[1]
                visible = visible & (((place >= begin) & (place < end)) | (place >= shared))
                begin = end
            bias = age_bias[:, :, bucket].permute(2, 0, 3, 1, 4)
            biases.append(bias.masked_fill(~visible[:, None, :, None], float("-inf")))
        return torch.cat(biases, dim=3)

    def _attend(self, keys_values: Tensor, biases: Tensor) -> Tensor:
        """Means `[B, A, R, C]` by keys and values `[B, S, P, 2C]` and biases `[B or 1, heads, A, M, S]`."""
        frames, per_frame = biases.shape[2], keys_values.shape[2]
        mask = biases[..., None].expand(*biases.shape, per_frame).flatten(-2).flatten(2, 3)
        latents = self.all_latents.expand(frames, -1, -1).flatten(0, 1)[None]  # their queries are those of all rows
        latents = latents + self.dropout(self.cross_attention(latents, keys_values.flatten(1, 2), mask))
        latents = (latents + self.mlp(latents)).unflatten(1, (frames, -1)).flatten(0, 1)
        for block in self.blocks:
            latents = block(latents, self.alike)
        latents = self.norm(latents).unflatten(0, (len(keys_values), -1))
        return torch.stack([own.mean(dim=2) for own in latents.split(self.counts, dim=2)], dim=2)


def _spread_over_ages(num_heads: int, num_latents: int, window: int) -> Tensor:
    """Initial age bias `[heads, latents, window]`: half prefer the current frame, half one of the past each."""
    index = torch.arange(num_heads * num_latents).view(num_latents, num_heads).T
    preferred = torch.where(index % 2 == 0, 0, (index // 2) % window)
    return -0.5 * (torch.arange(window) - preferred[..., None]).abs().float()


class PerceiverDecoder(nn.Module):
    """Queries that read a memory and one another, in blocks of cross- and self-attention."""

    def __init__(self, num_layers: int, sizes: BlockSizes):
        super().__init__()
        self.cross_blocks = nn.ModuleList(CrossAttentionBlock(sizes) for _ in range(num_layers))
        self.self_blocks = nn.ModuleList(SelfAttentionBlock(sizes) for _ in range(num_layers))
        self.norm = nn.LayerNorm(sizes.channels)

    def forward(self, queries: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """`[X, P, C]` for queries `[X, P, C]` over memory `[X, M, C]`; the bool mask `[X, M]` is True where known."""
        if mask is not None:
            mask = mask[:, None, None, :]
        for cross_block, self_block in zip(self.cross_blocks, self.self_blocks):
            queries = self_block(cross_block(queries, memory, mask))
        return self.norm(queries)
