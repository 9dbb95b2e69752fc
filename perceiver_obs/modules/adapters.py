"""What turns tokens, actions and positions into Perceiver inputs."""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from perceiver_obs.modules.causal_conv import CausalConv
from perceiver_obs.modules.video import check_tensor

MAX_KEYPOINTS = 8192


def grid_positions(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Sine and cosine features `[height * width, channels]` of grid coordinates, for any grid.

    Half of the channels code the row, half the column, at wavelengths of 2π to 2π·100 tokens
    (Vaswani et al. 2017, arXiv:1706.03762, with a base that suits small grids).
    """
    quarter = math.ceil(channels / 4)
    frequencies = 100 ** (-torch.arange(quarter, dtype=torch.float32, device=device) / quarter)
    rows = torch.arange(height, device=device)[:, None, None].expand(height, width, 1) * frequencies
    columns = torch.arange(width, device=device)[None, :, None].expand(height, width, 1) * frequencies
    features = torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()], dim=-1)
    return features.flatten(0, 1)[:, :channels]


class TokenAdapter(nn.Module):
    """Code vectors to Perceiver inputs: centre, scale, project, add positions.

    A scene's background hardly changes; centring every position by its own mean lets the few tokens that move
    stand out. `set_statistics` fits mean and scale on data; they are saved with the weights.

    Args:
        grid: `(h, w)` to centre each position by itself; None centres each channel, for any grid.
        time_kernel: frames that each input reads.
        inputs_per_frame: None makes each token an input. A number makes that many inputs, each a linear map of
            the frame's whole grid, as a convolutional network's flattened last layer is; it needs `grid`. 0 makes
            none: tokens are then only standardised and placed, for queries.
        keypoints: None, or how many `Keypoints` of the grid the maps are of, in place of the grid itself.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        code_dim: int,
        channels: int,
        grid: tuple[int, int] | None,
        time_kernel: int,
        inputs_per_frame: int | None = None,
        keypoints: int | None = None,
    ):
        super().__init__()
        if inputs_per_frame is not None and (grid is None or inputs_per_frame < 0):
            raise ValueError(f"inputs_per_frame must be 0 or more and needs a grid, got {inputs_per_frame} for {grid}")
        if keypoints is not None and (not inputs_per_frame or not 1 <= keypoints <= MAX_KEYPOINTS):
            raise ValueError(f"keypoints must lie in 1 to {MAX_KEYPOINTS} and need inputs_per_frame, got {keypoints}")
        self.channels = channels
        self.time_kernel = time_kernel
        self.inputs_per_frame = inputs_per_frame
        self.keypoints = None if keypoints is None or grid is None else Keypoints(code_dim, keypoints, grid)
        self.register_buffer("mean", torch.zeros(*(grid or (1, 1)), code_dim))
        self.register_buffer("scale", torch.ones(code_dim))
        self.project: CausalConv | None = None
        if inputs_per_frame is None or grid is None:
            self.project = CausalConv(code_dim, channels, 1, time_kernel=time_kernel)
        elif inputs_per_frame:
            width = grid[0] * grid[1] * code_dim if keypoints is None else 2 * keypoints
            self.project = CausalConv(width, inputs_per_frame * channels, 1, time_kernel=time_kernel)
            assert self.project.conv.bias is not None
            nn.init.normal_(self.project.conv.bias, std=0.5)  # distinguishes inputs, as positions do tokens
        self.position = nn.Linear(channels, channels)

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """`mean` `[h, w, code_dim]` or `[code_dim]`, `std` `[code_dim]`, of the training frames' code vectors."""
        self.mean.copy_(mean if self.mean.shape[:2] != (1, 1) or mean.ndim == 1 else mean.mean((0, 1)))
        self.scale.copy_(std.clamp_min(1e-4))

    def num_inputs(self, grid: Sequence[int]) -> int:
        """Inputs of a frame of `(h, w)` tokens."""
        return grid[0] * grid[1] if self.inputs_per_frame is None else self.inputs_per_frame

    def init_past(self, batch_size: int, grid: Sequence[int]) -> Tensor | None:
        """The past of `batch_size` episodes that have not begun, of frames of `(h, w)` tokens."""
        if self.project is None or self.time_kernel == 1:
            return None
        height, width = grid if self.inputs_per_frame is None else (1, 1)
        return self.project.init_past(batch_size, height, width)

    def standardize(self, vectors: Tensor) -> Tensor:
        return (vectors - self.mean) / self.scale

    def forward(
        self, vectors: Tensor, past: Tensor | None = None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Inputs `[B, T, h * w or inputs_per_frame, channels]` of code vectors `[B, T, h, w, code_dim]`."""
        assert self.project is not None
        height, width = vectors.shape[2:4]
        x = self.standardize(vectors)
        if self.inputs_per_frame is not None:
            if self.keypoints is not None:
                x = self.keypoints(x)[..., None, None, :]
            x, past = self.project(rearrange(x, "b t h w c -> b t (h w c) 1 1"), past, valid)
            return rearrange(x, "b t (m c) 1 1 -> b t m c", m=self.inputs_per_frame), past
        x = rearrange(x, "b t h w c -> b t c h w")
        x, past = self.project(x, past, valid)
        return rearrange(x, "b t c h w -> b t (h w) c") + self.positions(height, width), past

    def positions(self, height: int, width: int) -> Tensor:
        return self.position(grid_positions(height, width, self.channels, self.mean.device))


class Keypoints(nn.Module):
    """Spatial softmax keypoints: coordinates of what each of them has learned to find in a frame.

    Each keypoint gives every token a logit, and its coordinates are the mean under their softmax, as in Levine et al.
    2016 (arXiv:1504.00702), with an offset that a linear map reads from the code vectors, for fractions of a token.
    Coordinates follow motion linearly, where a map of the whole grid is nonlinear in it.

    Args:
        code_dim: width of the code vectors.
        number: of keypoints.
        grid: `(h, w)`, tokens of a frame.
    """

    coordinates: Tensor

    def __init__(self, code_dim: int, number: int, grid: tuple[int, int]):
        super().__init__()
        rows, columns = (torch.linspace(-2, 2, length) for length in grid)
        coordinates = torch.stack([columns.expand(grid), rows[:, None].expand(grid)], dim=-1)
        self.register_buffer("coordinates", coordinates.flatten(0, 1)[..., None], persistent=False)
        self.look = nn.Linear(code_dim, number)  # gives the logits; named as in saved weights
        self.offset = nn.Linear(code_dim, 2 * number)
        nn.init.normal_(self.look.weight, std=0.5)
        nn.init.normal_(self.offset.weight, std=0.04)

    def forward(self, vectors: Tensor) -> Tensor:
        """Columns, then rows, `[B, T, 2 * number]`, -2 to 2 over the grid, of code vectors `[B, T, h, w, code_dim]`."""
        vectors = vectors.flatten(2, 3)
        weights = self.look(vectors).softmax(dim=2)
        offsets = rearrange(self.offset(vectors), "b t p (xy n) -> b t p xy n", xy=2)
        return (weights[..., None, :] * (self.coordinates + offsets)).sum(dim=2).flatten(2)


class ActionAdapter(nn.Module):
    """Actions `[..., action_dim]` to one input each; a learned vector stands for "no action"."""

    def __init__(self, action_dim: int, channels: int):
        super().__init__()
        self.action_dim = action_dim
        self.project = nn.Linear(action_dim, channels)
        self.none = nn.Parameter(torch.randn(channels) * 0.02)

    def forward(self, actions: Tensor | None, known: Tensor | None, shape: Sequence[int]) -> Tensor:
        """Inputs `[*shape, channels]`; "no action" where `actions` is None or the mask `known` is False."""
        if actions is None:
            return self.none.expand(*shape, -1)
        projected = self.project(actions)
        return projected if known is None else torch.where(known[..., None], projected, self.none)


def check_actions(actions: Tensor, action_dim: int, shape: Sequence[int]) -> None:
    """ValueError unless actions are `[*shape, A]` with A <= action_dim, and finite."""
    check_tensor(actions, "actions")
    if actions.shape[:-1] != torch.Size(shape) or actions.shape[-1] > action_dim:
        raise ValueError(
            f"actions must have shape {[*shape, action_dim]} (or a smaller last axis), got {tuple(actions.shape)}"
        )
    if not actions.isfinite().all():
        raise ValueError("actions hold NaN or infinite values")


def pad_actions(actions: Tensor, action_dim: int, shape: Sequence[int]) -> Tensor:
    """Actions `[*shape, action_dim]`: checked, clipped to [-1, 1], and the missing dimensions filled with zeros."""
    check_actions(actions, action_dim, shape)
    clipped, missing = actions.clamp(-1, 1).float(), action_dim - actions.shape[-1]
    return torch.nn.functional.pad(clipped, (0, missing)) if missing else clipped
