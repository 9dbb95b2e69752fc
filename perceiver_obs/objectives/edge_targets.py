"""Edge targets: the low spatial frequencies of the edges in a frame, from which contexts learn motion fastest."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_DEVIATION = 1e-3  # of coefficients, relative to the group's largest
MIN_CHANGE = 1e-3
EDGE_MAPS = 3
MIN_GRADIENT = 2e-3  # change in brightness over two pixels, in [0, 1]


class EdgeTargets(nn.Module):
    """Edge targets of frames and how they change, centred and scaled for each group of data (such as a task).

    An edge target holds the `order` x `order` lowest coefficients of the two-dimensional cosine transform (DCT-II,
    Ahmed et al. 1974) of each map of `edges`. Unlike pixels, they change smoothly with where things are and how they
    are turned, to fractions of a pixel. Each is divided by the root of its standard deviation, halfway between
    counting coefficients by their energy and counting them alike. Changes over k frames are scaled to be as large as
    edge targets are, so that slow motion counts.

    Args:
        order: coefficients in each direction, up to the frame's height and width.
        num_groups: groups with a scene of their own.
        frame_size: `(H, W)`, pixels.
        max_horizon: the longest change that is scaled.
    """

    per_group: ClassVar = ("mean", "scale", "change_scale")
    rows: Tensor
    columns: Tensor
    mean: Tensor
    scale: Tensor
    change_scale: Tensor

    def __init__(self, order: int, num_groups: int, frame_size: Sequence[int], max_horizon: int):
        super().__init__()
        height, width = frame_size
        if not 1 <= order <= min(height, width):
            raise ValueError(f"order must lie in 1 to {min(height, width)}, got {order}")
        self.frame_size = (height, width)
        self.num_coefficients = EDGE_MAPS * order**2
        self.register_buffer("rows", cosine_basis(order, height), persistent=False)
        self.register_buffer("columns", cosine_basis(order, width), persistent=False)
        self.register_buffer("mean", torch.zeros(num_groups, self.num_coefficients))
        self.register_buffer("scale", torch.ones(num_groups, self.num_coefficients))
        self.register_buffer("change_scale", torch.ones(num_groups, max_horizon))

    def coefficients(self, frames: Tensor) -> Tensor:
        """Raw coefficients `[B, T, F]` of frames `[B, T, C, H, W]`, uint8 or float in [0, 1]."""
        frames = frames.float() / 255 if frames.dtype == torch.uint8 else frames.float()
        return (self.rows @ edges(frames) @ self.columns.T).flatten(2)

    @torch.no_grad()
    def fit(self, group: int, frames: Tensor) -> None:
        """Centre and scale a group by clips of its frames, `[B, T, C, H, W]` with T above the longest horizon."""
        raw = self.coefficients(frames)
        mean, deviation = raw.mean((0, 1)), raw.flatten(0, 1).std(0)
        root = deviation.clamp_min(MIN_DEVIATION * float(deviation.max().clamp_min(1e-6))).sqrt()
        centred = (raw - mean) / root
        size = centred.square().mean().sqrt().clamp_min(1e-6)
        self.mean[group], self.scale[group] = mean, root * size
        for k in range(1, self.change_scale.shape[1] + 1):
            change = (centred[:, k:] - centred[:, :-k]) / size
            self.change_scale[group, k - 1] = change.square().mean().sqrt().clamp_min(MIN_CHANGE)

    def forward(self, frames: Tensor, groups: Tensor) -> Tensor:
        """Edge targets `[B, T, F]`, about 1 in size, of frames `[B, T, C, H, W]`; `groups` int64 `[B]`."""
        return (self.coefficients(frames) - self.mean[groups][:, None]) / self.scale[groups][:, None]

    def changes(self, earlier: Tensor, later: Tensor, groups: Tensor, horizon: int) -> Tensor:
        """Changes `[B, A, F]` between edge targets `horizon` frames apart, about 1 in size."""
        return (later - earlier) / self.change_scale[groups, horizon - 1][:, None, None]


class EdgeDecoder(nn.Sequential):
    """From contexts `[..., D]` to the edge targets `[..., F]` of their frames."""

    def __init__(self, context_dim: int, num_coefficients: int, hidden: int):
        super().__init__(
            nn.Linear(context_dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, num_coefficients),
        )


class FrameContrast(nn.Module):
    """Picks the frame of each context out of all frames of the batch, by its edge target.

    InfoNCE over time (CPC, van den Oord et al. 2018, arXiv:1807.03748; for control ATC, Stooke et al. 2021,
    arXiv:2009.08319): the other frames of the same clip are near misses, which only exact positions and velocities
    separate.

    Args:
        context_dim: width D of the contexts.
        num_coefficients: F of the edge targets.
        hidden: width of the hidden layers.
        key_dim: width of what is compared.
        temperature: of the softmax over cosine similarities.
    """

    def __init__(
        self, context_dim: int, num_coefficients: int, hidden: int, key_dim: int = 64, temperature: float = 0.05
    ):
        super().__init__()
        self.temperature = temperature
        self.query = _two_layers(context_dim, hidden, key_dim)
        self.key = _two_layers(num_coefficients, hidden, key_dim)

    def forward(self, contexts: Tensor, edge_targets: Tensor, positions: Tensor) -> Tensor:
        """Cross-entropy of picking the right frame, a scalar.

        Args:
            contexts: `[B, A, K, D]`, predicted or of the frame itself.
            edge_targets: `[B, T, F]` of all frames.
            positions: the frame of each context in its clip, int64 `[A, K]`.
        """
        batch, frames = edge_targets.shape[:2]
        queries = F.normalize(self.query(contexts), dim=-1).flatten(0, 2)
        keys = F.normalize(self.key(edge_targets), dim=-1).flatten(0, 1)
        first = torch.arange(batch, device=contexts.device)[:, None, None] * frames
        return F.cross_entropy(queries @ keys.T / self.temperature, (first + positions).flatten())


def _two_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


def edges(frames: Tensor) -> Tensor:
    """Three maps `[..., 3, H, W]` of the edges in frames `[..., C, H, W]`, float in [0, 1].

    Where brightness (the mean of the channels) changes by a gradient of length g at angle φ, they hold g·cos 2φ,
    g·sin 2φ and g: how strong an edge is and how it is turned, whichever side is brighter. (The doubled angle is that
    of the structure tensor, Bigün and Granlund 1987; edges by direction are good targets to learn features from, see
    HOG in Wei et al. 2021, arXiv:2112.09133.) Gradients are central differences, 0 on the frame's border.
    """
    brightness = frames.mean(-3)
    across = brightness[..., 1:-1, 2:] - brightness[..., 1:-1, :-2]
    down = brightness[..., 2:, 1:-1] - brightness[..., :-2, 1:-1]
    length = (across.square() + down.square() + MIN_GRADIENT**2).sqrt()
    cosine = across / length
    # cos 2φ = 2 cos² φ - 1 and sin 2φ = 2 sin φ cos φ
    maps = torch.stack([2 * across * cosine - length, 2 * down * cosine, length], dim=-3)
    return F.pad(maps / 2, (1, 1, 1, 1))


def cosine_basis(order: int, size: int) -> Tensor:
    """The `order` slowest rows `[order, size]` of the orthonormal DCT-II."""
    k, x = torch.arange(order)[:, None], (torch.arange(size) + 0.5) / size
    norm = torch.where(k == 0, 1.0, 2.0)
    return torch.cos(math.pi * k * x) * (norm / size).sqrt()
