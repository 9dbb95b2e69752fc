"""Outlines: the low spatial frequencies of a frame's edges, what a context learns positions and motion from fastest."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.rollouts import RolloutDataset
from perceiver_obs.training.data import RolloutClips
from perceiver_obs.training.pixel_objective import PixelObjective
from perceiver_obs.training.rewards import RewardObjective
from perceiver_obs.training.state_objective import StateObjective, StateTargets

CLIPS_TO_FIT = 512  # of each group
MIN_DEVIATION = 1e-3  # of coefficients, relative to the group's largest
MIN_CHANGE = 1e-3
EDGE_MAPS = 3
FAINT = 2e-3  # of a change in brightness over two pixels, in [0, 1]


class Outlines(nn.Module):
    """Outlines of frames and how they change, centred and scaled for each group of data (such as a task).

    An outline holds the `order` x `order` lowest coefficients of the two-dimensional cosine transform (DCT-II,
    Ahmed et al. 1974) of each map of `edges`. Unlike pixels, they change smoothly with where things are and how they
    are turned, to fractions of a pixel. Each is divided by the root of its standard deviation, halfway between
    counting coefficients by their energy and counting them alike. Changes over k frames are scaled to be as large as
    outlines are, so that slow motion counts.

    Args:
        order: coefficients in each direction, up to the frame's height and width.
        num_groups: groups with a scene of their own.
        frame_size: `(H, W)`, pixels.
        max_horizon: the longest change that is scaled.
    """

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
        """Outlines `[B, T, F]`, about 1 in size, of frames `[B, T, C, H, W]`; `groups` int64 `[B]`."""
        return (self.coefficients(frames) - self.mean[groups][:, None]) / self.scale[groups][:, None]

    def changes(self, earlier: Tensor, later: Tensor, groups: Tensor, horizon: int) -> Tensor:
        """Changes `[B, A, F]` between outlines `horizon` frames apart, about 1 in size."""
        return (later - earlier) / self.change_scale[groups, horizon - 1][:, None, None]


def task_groups(datasets: Sequence[RolloutDataset]) -> tuple[list[str], list[int]]:
    """The tasks that datasets show, each a group as its scene is its own, and the group of each dataset."""
    shown = ["+".join(dataset.frame_contract.tasks) for dataset in datasets]
    tasks = sorted(set(shown))
    return tasks, [tasks.index(task) for task in shown]


class OutlineObjective(nn.Module):
    """What contexts learn positions and motion from: to tell outlines, and to pick frames by them.

    Both are asked of the context itself and of what `LinearMotion` makes of it for the frames to come, through the
    same head. So a context that tells where things are must also hold how they move, in coordinates that change
    evenly.

    Args:
        outlines: what is told; `fit` fits them to the data.
        context_dim: width D of the contexts.
        action_dim: width of the actions; None foretells without them.
        tell: tell the outline of the frame, the change before and those after, up to the longest horizon.
        pick: pick the frames to come from among all of the batch.
        rewards: foretell the rewards of the steps to come.
        num_states: coordinates of the state to regress, None for none.
        pixels: `(C, H, W)` of the frames to draw, None for none.
        hidden: width of the heads' hidden layers.
    """

    def __init__(
        self,
        outlines: Outlines,
        context_dim: int,
        action_dim: int | None,
        tell: bool,
        pick: bool,
        rewards: bool = False,
        num_states: int | None = None,
        pixels: Sequence[int] | None = None,
        hidden: int = 512,
    ):
        super().__init__()
        self.outlines = outlines
        num_groups = len(outlines.mean)
        self.max_horizon = outlines.change_scale.shape[1]
        self.motion = LinearMotion(context_dim, action_dim)
        self.head = OutlineHead(context_dim, outlines.num_coefficients, hidden) if tell else None
        self.contrast = OutlineContrast(context_dim, outlines.num_coefficients, hidden) if pick else None
        self.rewards = RewardObjective(context_dim, action_dim, num_groups) if rewards else None
        self.states = None if num_states is None else StateObjective(context_dim, num_states, num_groups)
        self.pixels = None if pixels is None else PixelObjective(context_dim, pixels, num_groups)

    def fit(self, clips: RolloutClips, groups: Sequence[int], seed: int, states: StateTargets | None = None) -> None:
        """Fits what is centred and scaled to the groups of the clips' datasets, each on clips of all of its own.

        `states` are those of the clips' datasets; without them none is fitted.
        """
        device = self.outlines.mean.device
        for group in sorted(set(groups)):
            chosen = [number for number, each in enumerate(groups) if each == group]
            datasets, episodes = [clips.datasets[n] for n in chosen], [clips.episodes[n] for n in chosen]
            of_group = RolloutClips(datasets, episodes, clips.index.clip_length)
            places = of_group.index.draw(CLIPS_TO_FIT, seed, 0)
            frames = torch.from_numpy(of_group.frames(places)).to(device)
            self.outlines.fit(group, frames)
            if self.pixels is not None:
                self.pixels.fit(group, frames)
            if self.states is not None and states is not None:
                own = [replace(place, dataset=chosen[place.dataset]) for place in places]
                self.states.fit(group, states.clips(own, clips.index.clip_length).to(device))
            if self.rewards is not None:
                self.rewards.fit(group, torch.from_numpy(of_group.rewards(places)[:, 1:]).to(device))

    def forward(
        self,
        contexts: Tensor,
        anchors: Tensor,
        frames: Tensor,
        groups: Tensor,
        actions: Tensor | None,
        rewards: Tensor | None = None,
        states: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Losses `outline` (squared error), `contrastive` (cross-entropy), `reward`, `state` and `pixel` if asked for.

        Args:
            contexts: `[B, A, D]`, of frames `anchors`, int64 `[A]`.
            frames: `[B, T, C, H, W]`; T exceeds every anchor by the longest horizon or more.
            groups: int64 `[B]`, which of the outlines' groups each clip is of.
            actions: `[B, T, action_dim]`, the action that led to each frame.
            rewards: `[B, T]`, the reward that came with each frame; needed where they are foretold.
            states: `[B, T, S]`, NaN where unknown; needed where they are regressed.
        """
        steps = torch.arange(self.max_horizon + 1, device=anchors.device)
        later = anchors[:, None] + steps
        ahead = None if actions is None else actions[:, later[:, 1:]]
        moved = self.motion(contexts, self.max_horizon, ahead)
        losses = {}
        if self.head is not None or self.contrast is not None:
            outlines = self.outlines(frames, groups)
        if self.head is not None:
            losses["outline"] = self._telling(contexts, moved, outlines, later, groups)
        if self.contrast is not None:
            losses["contrastive"] = self.contrast(moved, outlines, later)
        if self.states is not None:
            if states is None:
                raise ValueError("regressing states needs the states of the clips")
            losses["state"] = self.states(moved, states[:, later], groups)
        if self.pixels is not None:
            losses["pixel"] = self.pixels(moved, frames, later, groups)
        if self.rewards is not None:
            if rewards is None:
                raise ValueError("foretelling rewards needs the rewards of the clips")
            losses["reward"] = self.rewards(moved[:, :, 1:], ahead, rewards[:, later[:, 1:]], groups)
        return losses

    def _telling(self, contexts: Tensor, moved: Tensor, outlines: Tensor, later: Tensor, groups: Tensor) -> Tensor:
        assert self.head is not None
        before = outlines[:, (later[:, 0] - 1).clamp_min(0)]
        told = self._outline_and_changes(self.head(self.motion.back(contexts)), self.head(moved), groups)
        return F.mse_loss(told, self._outline_and_changes(before, outlines[:, later], groups))

    def _outline_and_changes(self, before: Tensor, outlines: Tensor, groups: Tensor) -> Tensor:
        """The outline now, the change that led to it and those over 1 … K frames, `[2 + K, B, A, F]`.

        Args:
            before: `[B, A, F]`, a frame ago.
            outlines: `[B, A, 1 + K, F]`, now and later.
            groups: int64 `[B]`.
        """
        now, *after = outlines.unbind(2)
        changes = (self.outlines.changes(now, each, groups, k) for k, each in enumerate(after, 1))
        return torch.stack([now, self.outlines.changes(before, now, groups, 1), *changes])


class LinearMotion(nn.Module):
    """Foretells contexts by one linear map, whatever is seen: z(k + 1) = A z(k) + B a(k).

    In which coordinates motion is linear is for the contexts to find: Koopman's view of dynamics, learned as by Lusch
    et al. 2018 (arXiv:1712.09707), with actions as inputs. A second map, R z, goes one frame back.

    Args:
        context_dim: width D of the contexts.
        action_dim: width of the actions; None foretells without them.
    """

    def __init__(self, context_dim: int, action_dim: int | None):
        super().__init__()
        self.forth = nn.Linear(context_dim, context_dim, bias=False)
        self.back = nn.Linear(context_dim, context_dim, bias=False)
        for each in (self.forth, self.back):
            nn.init.eye_(each.weight)
        self.of_action = None
        if action_dim:
            self.of_action = nn.Linear(action_dim, context_dim, bias=False)
            nn.init.zeros_(self.of_action.weight)

    def forward(self, contexts: Tensor, steps: int, actions: Tensor | None = None) -> Tensor:
        """Contexts after 0 … `steps` steps, `[B, A, 1 + steps, D]`.

        Args:
            contexts: `[B, A, D]`.
            steps: how many.
            actions: `[B, A, steps, action_dim]` after each context, in order; None counts as zeros.
        """
        moved = [contexts]
        for step in range(steps):
            following = self.forth(moved[-1])
            if self.of_action is not None and actions is not None:
                following = following + self.of_action(actions[:, :, step])
            moved.append(following)
        return torch.stack(moved, dim=2)


class OutlineHead(nn.Sequential):
    """From contexts `[..., D]` to the outlines `[..., F]` of their frames."""

    def __init__(self, context_dim: int, num_coefficients: int, hidden: int):
        super().__init__(
            nn.Linear(context_dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, num_coefficients),
        )


class OutlineContrast(nn.Module):
    """Picks the frame of each context out of all frames of the batch, by its outline.

    InfoNCE over time (CPC, van den Oord et al. 2018, arXiv:1807.03748; for control ATC, Stooke et al. 2021,
    arXiv:2009.08319): the other frames of the same clip are near misses, which only exact positions and velocities
    tell apart.

    Args:
        context_dim: width D of the contexts.
        num_coefficients: F of the outlines.
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

    def forward(self, contexts: Tensor, outlines: Tensor, places: Tensor) -> Tensor:
        """Cross-entropy of picking the right frame, a scalar.

        Args:
            contexts: `[B, A, K, D]`, foretold or of the frame itself.
            outlines: `[B, T, F]` of all frames.
            places: the frame of each context in its clip, int64 `[A, K]`.
        """
        batch, frames = outlines.shape[:2]
        queries = F.normalize(self.query(contexts), dim=-1).flatten(0, 2)
        keys = F.normalize(self.key(outlines), dim=-1).flatten(0, 1)
        first = torch.arange(batch, device=contexts.device)[:, None, None] * frames
        return F.cross_entropy(queries @ keys.T / self.temperature, (first + places).flatten())


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
    length = (across.square() + down.square() + FAINT**2).sqrt()
    cosine = across / length
    # cos 2φ = 2 cos² φ - 1 and sin 2φ = 2 sin φ cos φ
    maps = torch.stack([2 * across * cosine - length, 2 * down * cosine, length], dim=-3)
    return F.pad(maps / 2, (1, 1, 1, 1))


def cosine_basis(order: int, size: int) -> Tensor:
    """The `order` slowest rows `[order, size]` of the orthonormal DCT-II."""
    k, x = torch.arange(order)[:, None], (torch.arange(size) + 0.5) / size
    norm = torch.where(k == 0, 1.0, 2.0)
    return torch.cos(math.pi * k * x) * (norm / size).sqrt()
