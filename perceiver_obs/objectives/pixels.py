"""Reconstruction from the context: what decodes to a frame has to hold where every limb is."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from perceiver_obs.modules.video import as_float_video

GRID_CHANNELS, UPSAMPLED_CHANNELS = 64, 48
REDUCTION = 8  # of the frame's height and width, to the grid that the decoder begins with
FULL_CONTRAST = 0.1  # of [0, 1]: pixels that differ this much from the background count most
MOVING_WEIGHT = 16.0  # what they count more than the background
MIN_VARIANCE = 1e-5


class PixelObjective(nn.Module):
    """Decodes a context's frame, and one that latent dynamics predict, in colours whitened over the data.

    Each group's mean frame is left out, as it depends on no context; pixels that differ from it weigh up to 17 times as
    much, as bodies are small in their frames.

    Args:
        context_dim: width D of the contexts.
        frame_shape: `(C, H, W)`; H and W are multiples of 8.
        num_groups: groups of data (such as tasks) with a scene of their own.
    """

    per_group: ClassVar = ("background", "whitening")
    background: Tensor
    whitening: Tensor

    def __init__(self, context_dim: int, frame_shape: Sequence[int], num_groups: int):
        super().__init__()
        channels, height, width = frame_shape
        if height % REDUCTION or width % REDUCTION:
            raise ValueError(f"frames must be multiples of {REDUCTION} high and wide, got {height}x{width}")
        grid = (GRID_CHANNELS, height // REDUCTION, width // REDUCTION)
        self.decoder = nn.Sequential(
            nn.Linear(context_dim, 512),
            nn.GELU(),
            nn.Linear(512, grid[0] * grid[1] * grid[2]),
            nn.Unflatten(1, grid),
            nn.GELU(),
            nn.Conv2d(GRID_CHANNELS, GRID_CHANNELS, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(GRID_CHANNELS, 4 * UPSAMPLED_CHANNELS, 1),
            nn.PixelShuffle(2),
            nn.GELU(),
            nn.Conv2d(UPSAMPLED_CHANNELS, 16 * channels, 1),
            nn.PixelShuffle(4),
        )
        self.register_buffer("background", torch.zeros(num_groups, *frame_shape))
        self.register_buffer("whitening", torch.eye(channels).repeat(num_groups, 1, 1))

    @torch.no_grad()
    def fit(self, group: int, frames: Tensor) -> None:
        """Fit a group's background and colours to clips of its frames, `[B, T, C, H, W]`."""
        flat = _as_float(frames).flatten(0, 1)
        background = flat.mean(0)
        colours = (flat - background).movedim(1, -1).flatten(0, -2)
        covariance = colours.T @ colours / len(colours) + MIN_VARIANCE * torch.eye(colours.shape[1]).to(colours)
        variances, directions = torch.linalg.eigh(covariance)
        self.background[group] = background
        self.whitening[group] = directions @ (variances.rsqrt()[:, None] * directions.T)

    def forward(self, predicted: Tensor, frames: Tensor, later: Tensor, groups: Tensor) -> Tensor:
        """Weighted squared error, 1 for the background alone, of the frame and one of those to come, sampled evenly.

        Args:
            predicted: contexts after 0 … K steps, `[B, A, 1 + K, D]`.
            frames: `[B, T, C, H, W]`, uint8 or float in [0, 1].
            later: int64 `[A, 1 + K]`, their places in the clips.
            groups: int64 `[B]`.
        """
        steps = [0]
        if predicted.shape[2] > 1:
            steps.append(int(torch.randint(1, predicted.shape[2], ())))
        wanted = _as_float(frames)[:, later[:, steps]] - self.background[groups][:, None, None]
        weights = 1 + MOVING_WEIGHT * (wanted.abs().amax(3, keepdim=True) / FULL_CONTRAST).clamp(max=1)
        wanted = torch.einsum("bij,bakjhw->bakihw", self.whitening[groups], wanted)
        decoded = self.decoder(predicted[:, :, steps].flatten(0, 2)).view_as(wanted)
        return (weights * (decoded - wanted).square()).mean() / (weights * wanted.square()).mean().clamp_min(1e-6)


def _as_float(frames: Tensor) -> Tensor:
    return as_float_video(frames, frames.shape[2], 1)
