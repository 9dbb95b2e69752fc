"""Convolutions over frames that never look ahead.

All of them take and return `[B, T, C, H, W]`. A layer that reads past frames keeps the last few of its inputs
as its *past*, a tensor `[B, time_kernel - 1, C, H, W]` that is passed in and out; zeros stand for frames that
have not happened. Norms act on one frame at a time: statistics over time would leak the future.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Past = tuple[Tensor, ...]


class CausalConv(nn.Module):
    """Spatial convolution over the current frame and the `time_kernel - 1` frames before it.

    The frames are stacked along the channels of a 2D convolution, which computes the same sums as a 3D
    convolution padded on the left and leaves one code path for 2D and 3D.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        time_kernel: int = 1,
    ):
        super().__init__()
        self.time_kernel = time_kernel
        self.in_channels = in_channels
        self.conv = nn.Conv2d(in_channels * time_kernel, out_channels, kernel, stride=stride, padding=padding)

    def init_past(self, batch_size: int, height: int, width: int) -> Tensor:
        """Zeros `[B, time_kernel - 1, C, H, W]`: no frame has happened."""
        return self.conv.weight.new_zeros(batch_size, self.time_kernel - 1, self.in_channels, height, width)

    def forward(
        self, x: Tensor, past: Tensor | None = None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """`valid` `[B, T]` marks frames that exist; the others are read as zeros by later frames."""
        batch, frames = x.shape[:2]
        if self.time_kernel > 1:
            if valid is not None:
                x = x * valid[:, :, None, None, None]
            if past is None:
                past = x.new_zeros(batch, self.time_kernel - 1, *x.shape[2:])
            x = torch.cat([past, x], dim=1)
            past = x[:, -(self.time_kernel - 1) :].clone()
            x = torch.cat([x[:, i : i + frames] for i in range(self.time_kernel)], dim=2)
        if x.shape[3:] == self.conv.kernel_size == (1, 1):
            # The same sums; on CPUs the convolution takes several times as long over a single place.
            weights = self.conv.weight[:, :, 0, 0]
            return F.linear(x[..., 0, 0], weights, self.conv.bias)[..., None, None], past
        return self.conv(x.flatten(0, 1)).unflatten(0, (batch, frames)), past


class FrameNorm(nn.GroupNorm):
    """Group normalisation of each frame by itself."""

    def __init__(self, channels: int):
        super().__init__(next(g for g in (8, 4, 2, 1) if channels % g == 0), channels)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a skip; the first also reads past frames where `time_kernel > 1`."""

    def __init__(self, channels: int, time_kernel: int = 1):
        super().__init__()
        self.norm1, self.norm2 = FrameNorm(channels), FrameNorm(channels)
        self.conv1 = CausalConv(channels, channels, 3, padding=1, time_kernel=time_kernel)
        self.conv2 = CausalConv(channels, channels, 3, padding=1)

    def forward(
        self, x: Tensor, past: Tensor | None = None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        y, past = self.conv1(F.silu(self.norm1(x)), past, valid)
        y, _ = self.conv2(F.silu(self.norm2(y)))
        return x + y, past


class _CausalStack(nn.Module):
    """Layers in sequence, threading each temporal layer's past."""

    layers: nn.ModuleList

    def _temporal(self) -> Iterator[CausalConv]:
        return (m for m in self.modules() if isinstance(m, CausalConv) and m.time_kernel > 1)

    @property
    def lookback(self) -> int:
        """How many frames before the current one the output depends on."""
        return sum(conv.time_kernel - 1 for conv in self._temporal())

    def forward(self, x: Tensor, past: Past | None = None, valid: Tensor | None = None) -> tuple[Tensor, Past]:
        pending = iter(past) if past is not None else None
        new_past = []
        for layer in self.layers:
            if isinstance(layer, ResidualBlock) and layer.conv1.time_kernel > 1:
                x, layer_past = layer(x, next(pending) if pending is not None else None, valid)
                new_past.append(layer_past)
            elif isinstance(layer, (ResidualBlock, CausalConv)):
                x, _ = layer(x)
            else:
                x = layer(x)
        return x, tuple(new_past)


class CausalEncoder(_CausalStack):
    """Frames to feature maps: reduce the size by `strides`, one level after the other, doubling the channels."""

    def __init__(
        self, in_channels: int, out_channels: int, strides: Sequence[int], base_channels: int, time_kernel: int
    ):
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for level, stride in enumerate(strides):
            width = base_channels * 2**level
            layers += [
                CausalConv(channels, width, 2 * stride, stride=stride, padding=stride // 2),
                ResidualBlock(width, time_kernel),
            ]
            channels = width
        layers += [FrameNorm(channels), nn.SiLU(), CausalConv(channels, out_channels, 1)]
        self.layers = nn.ModuleList(layers)

    def init_past(self, batch_size: int, frame_size: Sequence[int]) -> Past:
        """The past of `batch_size` episodes that have not begun, of frames of `(H, W)` pixels."""
        height, width = frame_size
        past: list[Tensor] = []
        for layer in self.layers:
            if isinstance(layer, CausalConv):
                height, width = height // layer.conv.stride[0], width // layer.conv.stride[1]
            elif isinstance(layer, ResidualBlock) and layer.conv1.time_kernel > 1:
                past.append(layer.conv1.init_past(batch_size, height, width))
        return tuple(past)


class CausalDecoder(_CausalStack):
    """Feature maps to frames: the encoder's mirror image, by pixel shuffle (Shi et al. 2016, arXiv:1609.05158)."""

    def __init__(
        self, in_channels: int, out_channels: int, strides: Sequence[int], base_channels: int, time_kernel: int
    ):
        super().__init__()
        channels = base_channels * 2 ** (len(strides) - 1)
        layers: list[nn.Module] = [CausalConv(in_channels, channels, 1)]
        for level, stride in reversed(list(enumerate(strides))):
            width = base_channels * 2 ** (level - 1) if level else out_channels
            layers += [
                ResidualBlock(channels, time_kernel),
                FrameNorm(channels),
                nn.SiLU(),
                CausalConv(channels, stride**2 * width, 3, padding=1),
                nn.PixelShuffle(stride),
            ]
            channels = width
        self.layers = nn.ModuleList(layers)


class TemporalDownsample(nn.Module):
    """Merge pairs of frames: T in, ceil(T / 2) out; an odd last frame is paired with itself."""

    def __init__(self, channels: int):
        super().__init__()
        self.merge = nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] % 2:
            x = torch.cat([x, x[:, -1:]], dim=1)
        return rearrange(self.merge(rearrange(x, "b (t p) c h w -> b t h w (p c)", p=2)), "b t h w c -> b t c h w")


class TemporalUpsample(nn.Module):
    """Undo `TemporalDownsample`: T in, 2 T out."""

    def __init__(self, channels: int):
        super().__init__()
        self.split = nn.Linear(channels, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.split(rearrange(x, "b t c h w -> b t h w c")), "b t h w (p c) -> b (t p) c h w", p=2)
