"""A convolutional network of the Perceiver's own, from frames straight to its inputs."""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

STEM_CHANNELS, CHANNELS, SUMMARY_CHANNELS = 32, 64, 32
STEM_STRIDE, STRIDE = 4, 2


class FrameAdapter(nn.Module):
    """Frames to Perceiver inputs, trained end to end with the contexts.

    Tokens are made for reconstruction; what a policy needs of a frame may be finer than a token. The first
    convolution reduces the size four times, as most of the work of three halvings would lie in the first two.

    Args:
        frame_shape: `(C, H, W)`; H and W are multiples of 8.
        channels: width of an input.
        inputs_per_frame: how many inputs a frame becomes, each a linear map of all its features.

    Raises:
        ValueError: H or W is no multiple of 8.
    """

    def __init__(self, frame_shape: Sequence[int], channels: int, inputs_per_frame: int):
        super().__init__()
        in_channels, height, width = frame_shape
        reduction = STEM_STRIDE * STRIDE
        if height % reduction or width % reduction:
            raise ValueError(f"frames must be multiples of {reduction} high and wide, got {height}x{width}")
        features = SUMMARY_CHANNELS * (height // reduction) * (width // reduction)
        self.convolutions = nn.Sequential(
            nn.Conv2d(in_channels, STEM_CHANNELS, 2 * STEM_STRIDE, STEM_STRIDE, STEM_STRIDE // 2),
            nn.GELU(),
            nn.Conv2d(STEM_CHANNELS, CHANNELS, 2 * STRIDE, STRIDE, STRIDE // 2),
            nn.GELU(),
            nn.Conv2d(CHANNELS, SUMMARY_CHANNELS, 1),
        )
        self.project = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, inputs_per_frame * channels))
        self.which = nn.Parameter(torch.randn(inputs_per_frame, channels) * 0.5)  # distinguishes inputs

    @property
    def num_inputs(self) -> int:
        return len(self.which)

    def forward(self, frames: Tensor) -> Tensor:
        """Inputs `[B, T, inputs_per_frame, channels]` of frames `[B, T, C, H, W]`, nominally in [0, 1]."""
        features = self.convolutions(2 * frames.flatten(0, 1) - 1).flatten(1)
        inputs = rearrange(self.project(features), "(b t) (p c) -> b t p c", b=len(frames), p=self.num_inputs)
        return inputs + self.which
