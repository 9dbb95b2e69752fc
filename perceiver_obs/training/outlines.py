"""Outlines: the low spatial frequencies of frames, what a context learns positions and motion from fastest."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.rollouts import RolloutDataset
from perceiver_obs.training.data import RolloutClips

CLIPS_TO_FIT = 512  # of each group
MIN_DEVIATION = 1e-3  # of coefficients, relative to the group's largest
MIN_CHANGE = 1e-3


class Outlines(nn.Module):
    """Outlines of frames and how they change, centred and scaled for each group of data (such as a task).

    An outline holds the `order` x `order` lowest coefficients of the two-dimensional cosine transform (DCT-II,
    Ahmed et al. 1974) of each channel. Unlike pixels, they change smoothly with where things are, to fractions of a
    pixel. Each is divided by the root of its standard deviation, halfway between counting coefficients by their
    energy and counting them alike. Changes over k frames are scaled to be as large as outlines are, so that slow
    motion counts.

    Args:
        order: coefficients in each direction, up to the frame's height and width.
        num_groups: groups with a scene of their own.
        frame_shape: `(C, H, W)`.
        max_horizon: the longest change that is scaled.
    """

    rows: Tensor
    columns: Tensor
    mean: Tensor
    scale: Tensor
    change_scale: Tensor

    def __init__(self, order: int, num_groups: int, frame_shape: Sequence[int], max_horizon: int):
        super().__init__()
        channels, height, width = frame_shape
        if not 1 <= order <= min(height, width):
            raise ValueError(f"order must lie in 1 to {min(height, width)}, got {order}")
        self.num_coefficients = channels * order**2
        self.register_buffer("rows", cosine_basis(order, height), persistent=False)
        self.register_buffer("columns", cosine_basis(order, width), persistent=False)
        self.register_buffer("mean", torch.zeros(num_groups, self.num_coefficients))
        self.register_buffer("scale", torch.ones(num_groups, self.num_coefficients))
        self.register_buffer("change_scale", torch.ones(num_groups, max_horizon))

    def coefficients(self, frames: Tensor) -> Tensor:
        """Raw coefficients `[B, T, F]` of frames `[B, T, C, H, W]`, uint8 or float in [0, 1]."""
        frames = frames.float() / 255 if frames.dtype == torch.uint8 else frames.float()
        return (self.rows @ frames @ self.columns.T).flatten(2)

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
        """Outlines `[B, T, F]`, about 1 in size, of frames `[B, T, C, H, W]`; `groups` int64 `[B]`."""
        return (self.coefficients(frames) - self.mean[groups][:, None]) / self.scale[groups][:, None]

    def changes(self, earlier: Tensor, later: Tensor, groups: Tensor, horizon: int) -> Tensor:
        """Changes `[B, A, F]` between outlines `horizon` frames apart, about 1 in size."""
        return (later - earlier) / self.change_scale[groups, horizon - 1][:, None, None]


def task_groups(datasets: Sequence[RolloutDataset]) -> tuple[list[str], list[int]]:
    """The tasks that datasets show, each a group as its scene is its own, and the group of each dataset."""
    shown = ["+".join(dataset.meta["frame_contract"]["tasks"]) for dataset in datasets]
    tasks = sorted(set(shown))
    return tasks, [tasks.index(task) for task in shown]


def fit_outlines(outlines: Outlines, clips: RolloutClips, groups: Sequence[int], seed: int) -> None:
    """Fits the groups of the clips' datasets, each on clips of all its datasets."""
    for group in sorted(set(groups)):
        chosen = [number for number, each in enumerate(groups) if each == group]
        datasets, episodes = [clips.datasets[n] for n in chosen], [clips.episodes[n] for n in chosen]
        of_group = RolloutClips(datasets, episodes, clips.index.clip_length)
        frames = of_group.frames(of_group.index.draw(CLIPS_TO_FIT, seed, 0))
        outlines.fit(group, torch.from_numpy(frames).to(outlines.mean.device))


class OutlineObjective(nn.Module):
    """What contexts learn positions and motion from: to tell outlines, and to pick frames by them.

    Args:
        outlines: fitted to the data.
        context_dim: width D of the contexts.
        action_dim: width of the actions; None foretells without them.
        tell: tell the outline of the frame, the change before and those after, up to the longest horizon.
        pick: pick the frames to come from among all of the batch.
        hidden: width of the heads' hidden layers.
    """

    def __init__(
        self, outlines: Outlines, context_dim: int, action_dim: int | None, tell: bool, pick: bool, hidden: int = 512
    ):
        super().__init__()
        self.outlines = outlines
        self.max_horizon = outlines.change_scale.shape[1]
        sizes = (context_dim, outlines.num_coefficients, self.max_horizon, action_dim, hidden)
        self.head = OutlineHead(*sizes) if tell else None
        self.contrast = OutlineContrast(*sizes) if pick else None

    def forward(
        self, contexts: Tensor, anchors: Tensor, frames: Tensor, groups: Tensor, actions: Tensor | None
    ) -> dict[str, Tensor]:
        """Losses `outline` (squared error) and `contrastive` (cross-entropy), those that were asked for.

        Args:
            contexts: `[B, A, D]`, of frames `anchors`, int64 `[A]`.
            frames: `[B, T, C, H, W]`; T exceeds every anchor by the longest horizon or more.
            groups: int64 `[B]`, which of the outlines' groups each clip is of.
            actions: `[B, T, action_dim]`, the action that led to each frame.
        """
        outlines, ahead = self.outlines(frames, groups), None
        horizons = range(1, self.max_horizon + 1)
        if actions is not None:
            ahead = actions[:, anchors[:, None] + torch.tensor(horizons, device=anchors.device)]
        losses = {}
        if self.head is not None:
            now, before = outlines[:, anchors], outlines[:, (anchors - 1).clamp_min(0)]
            changes = [self.outlines.changes(now, outlines[:, anchors + k], groups, k) for k in horizons]
            targets = torch.stack([now, self.outlines.changes(before, now, groups, 1), *changes], dim=2)
            losses["outline"] = F.mse_loss(self.head(contexts, ahead), targets)
        if self.contrast is not None:
            losses["contrastive"] = self.contrast(contexts, anchors, outlines, ahead)
        return losses


class OutlineHead(nn.Module):
    """From a context to the outline of its frame, to the change that led there, and to the changes to come.

    The changes to come add what the context alone tells and what the actions in between do to it.

    Args:
        context_dim: width D of the contexts.
        num_coefficients: F of the outlines.
        max_horizon: K, the farthest change foretold.
        action_dim: width of the actions; None foretells without them.
        hidden: width of the hidden layer.
    """

    def __init__(self, context_dim: int, num_coefficients: int, max_horizon: int, action_dim: int | None, hidden: int):
        super().__init__()
        self.num_coefficients, self.max_horizon = num_coefficients, max_horizon
        self.of_context = _two_layers(context_dim, hidden, (2 + max_horizon) * num_coefficients)
        self.of_actions = None
        if action_dim and max_horizon:
            self.of_actions = _two_layers(context_dim + max_horizon * (action_dim + 1), hidden, num_coefficients)

    def forward(self, contexts: Tensor, actions: Tensor | None = None) -> Tensor:
        """`[B, A, 2 + K, F]`: the outline now, the change that led to it, the changes over 1 … K frames.

        Args:
            contexts: `[B, A, D]`.
            actions: `[B, A, K, action_dim]` after each context, in order.
        """
        told = self.of_context(contexts).unflatten(-1, (-1, self.num_coefficients))
        if self.of_actions is None or actions is None:
            return told
        # The change over k frames sees the k actions that make it, and not the ones after them.
        horizons = self.max_horizon
        known = torch.ones(horizons, horizons, device=actions.device).tril()
        seen = (actions[:, :, None] * known[:, :, None]).flatten(-2)
        contexts = contexts[:, :, None].expand(-1, -1, horizons, -1)
        which = torch.eye(horizons, device=actions.device).expand(*contexts.shape[:2], -1, -1)
        added = self.of_actions(torch.cat([contexts, seen, which], dim=-1))
        return torch.cat([told[:, :, :2], told[:, :, 2:] + added], dim=2)


class OutlineContrast(nn.Module):
    """Picks the frame `k` steps after a context out of all frames of the batch, by its outline.

    InfoNCE over time (CPC, van den Oord et al. 2018, arXiv:1807.03748; for control ATC, Stooke et al. 2021,
    arXiv:2009.08319): the other frames of the same clip are near misses, which only exact positions and velocities
    tell apart.

    Args:
        context_dim, num_coefficients, max_horizon, action_dim, hidden: as for `OutlineHead`.
        key_dim: width of what is compared.
        temperature: of the softmax over cosine similarities.
    """

    def __init__(
        self,
        context_dim: int,
        num_coefficients: int,
        max_horizon: int,
        action_dim: int | None,
        hidden: int,
        key_dim: int = 64,
        temperature: float = 0.05,
    ):
        super().__init__()
        self.max_horizon, self.action_dim, self.temperature = max_horizon, action_dim, temperature
        inputs = context_dim + max_horizon * (action_dim or 0) + max_horizon + 1
        self.query = _two_layers(inputs, hidden, key_dim)
        self.key = _two_layers(num_coefficients, hidden, key_dim)

    def forward(self, contexts: Tensor, anchors: Tensor, outlines: Tensor, actions: Tensor | None = None) -> Tensor:
        """Cross-entropy of picking the right frame, a scalar.

        Args:
            contexts: `[B, A, D]`, of frames `anchors`, int64 `[A]`.
            outlines: `[B, T, F]` of all frames; T exceeds every anchor by `max_horizon` or more.
            actions: `[B, A, K, action_dim]` after each context, in order; None counts as zeros.
        """
        batch, frames = outlines.shape[:2]
        horizons = torch.arange(self.max_horizon + 1, device=contexts.device)
        inputs = [contexts[:, :, None].expand(-1, -1, len(horizons), -1)]
        if self.action_dim and self.max_horizon:
            if actions is None:
                actions = contexts.new_zeros(*contexts.shape[:2], self.max_horizon, self.action_dim)
            known = (horizons[1:] <= horizons[:, None]).to(actions)
            inputs.append((actions[:, :, None] * known[..., None]).flatten(-2))
        inputs.append(torch.eye(len(horizons), device=contexts.device).expand(*contexts.shape[:2], -1, -1))
        queries = F.normalize(self.query(torch.cat(inputs, dim=-1)), dim=-1).flatten(0, 2)
        keys = F.normalize(self.key(outlines), dim=-1).flatten(0, 1)
        first = torch.arange(batch, device=contexts.device)[:, None, None] * frames
        answers = (first + anchors[:, None] + horizons).flatten()
        return F.cross_entropy(queries @ keys.T / self.temperature, answers)


def _two_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


def cosine_basis(order: int, size: int) -> Tensor:
    """The `order` slowest rows `[order, size]` of the orthonormal DCT-II."""
    k, x = torch.arange(order)[:, None], (torch.arange(size) + 0.5) / size
    norm = torch.where(k == 0, 1.0, 2.0)
    return torch.cos(math.pi * k * x) * (norm / size).sqrt()
