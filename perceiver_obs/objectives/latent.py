"""What is asked of contexts and of what latent dynamics predict from them."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceiver_obs.data.clips import RolloutClips
from perceiver_obs.objectives.edge_targets import EdgeDecoder, EdgeTargets, FrameContrast
from perceiver_obs.objectives.pixels import PixelObjective
from perceiver_obs.objectives.rewards import RewardObjective
from perceiver_obs.objectives.states import StateObjective, StateTargets

CLIPS_TO_FIT = 512  # of each group


class LatentObjective(nn.Module):
    """What contexts learn positions and motion from: to tell edge targets, and to pick frames by them.

    Both are asked of the context itself and of what `LatentDynamics` makes of it for the frames to come, through the
    same head. So a context that tells where things are must also hold how they move, in coordinates that change
    evenly.

    Args:
        edge_targets: what is told; `fit` fits them to the data.
        context_dim: width D of the contexts.
        action_dim: width of the actions; None predicts without them.
        tell: tell the edge target of the frame, the change before and those after, up to the longest horizon.
        pick: pick the frames to come from among all of the batch.
        rewards: predict the rewards of the steps to come.
        num_states: coordinates of the state to regress, None for none.
        pixels: `(C, H, W)` of the frames to draw, None for none.
        hidden: width of the heads' hidden layers.
    """

    def __init__(
        self,
        edge_targets: EdgeTargets,
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
        self.edge_targets = edge_targets
        num_groups = len(edge_targets.mean)
        self.max_horizon = edge_targets.change_scale.shape[1]
        self.motion = LatentDynamics(context_dim, action_dim)
        self.head = EdgeDecoder(context_dim, edge_targets.num_coefficients, hidden) if tell else None
        self.contrast = FrameContrast(context_dim, edge_targets.num_coefficients, hidden) if pick else None
        self.rewards = RewardObjective(context_dim, action_dim, num_groups) if rewards else None
        self.states = None if num_states is None else StateObjective(context_dim, num_states, num_groups)
        self.pixels = None if pixels is None else PixelObjective(context_dim, pixels, num_groups)

    def fit(self, clips: RolloutClips, groups: Sequence[int], seed: int, states: StateTargets | None = None) -> None:
        """Fits what is centred and scaled to the groups of the clips' datasets, each on clips of all of its own.

        `states` are those of the clips' datasets; without them none is fitted.
        """
        device = self.edge_targets.mean.device
        for group in sorted(set(groups)):
            chosen = [number for number, each in enumerate(groups) if each == group]
            datasets, episodes = [clips.datasets[n] for n in chosen], [clips.episodes[n] for n in chosen]
            of_group = RolloutClips(datasets, episodes, clips.index.clip_length)
            places = of_group.index.draw(CLIPS_TO_FIT, seed, 0)
            frames = torch.from_numpy(of_group.frames(places)).to(device)
            self.edge_targets.fit(group, frames)
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
        """Losses `edge` (squared error), `contrastive` (cross-entropy), `reward`, `state` and `pixel` if asked for.

        Args:
            contexts: `[B, A, D]`, of frames `anchors`, int64 `[A]`.
            frames: `[B, T, C, H, W]`; T exceeds every anchor by the longest horizon or more.
            groups: int64 `[B]`, which of the edge targets' groups each clip is of.
            actions: `[B, T, action_dim]`, the action that led to each frame.
            rewards: `[B, T]`, the reward that came with each frame; needed where they are predicted.
            states: `[B, T, S]`, NaN where unknown; needed where they are regressed.
        """
        steps = torch.arange(self.max_horizon + 1, device=anchors.device)
        later = anchors[:, None] + steps
        ahead = None if actions is None else actions[:, later[:, 1:]]
        moved = self.motion(contexts, self.max_horizon, ahead)
        losses = {}
        if self.head is not None or self.contrast is not None:
            edge_targets = self.edge_targets(frames, groups)
        if self.head is not None:
            losses["edge"] = self._telling(contexts, moved, edge_targets, later, groups)
        if self.contrast is not None:
            losses["contrastive"] = self.contrast(moved, edge_targets, later)
        if self.states is not None:
            if states is None:
                raise ValueError("regressing states needs the states of the clips")
            losses["state"] = self.states(moved, states[:, later], groups)
        if self.pixels is not None:
            losses["pixel"] = self.pixels(moved, frames, later, groups)
        if self.rewards is not None:
            if rewards is None:
                raise ValueError("predicting rewards needs the rewards of the clips")
            losses["reward"] = self.rewards(moved[:, :, 1:], ahead, rewards[:, later[:, 1:]], groups)
        return losses

    def _telling(self, contexts: Tensor, moved: Tensor, edge_targets: Tensor, later: Tensor, groups: Tensor) -> Tensor:
        assert self.head is not None
        before = edge_targets[:, (later[:, 0] - 1).clamp_min(0)]
        told = self._edges_and_changes(self.head(self.motion.back(contexts)), self.head(moved), groups)
        return F.mse_loss(told, self._edges_and_changes(before, edge_targets[:, later], groups))

    def _edges_and_changes(self, before: Tensor, edge_targets: Tensor, groups: Tensor) -> Tensor:
        """The edge target now, the change that led to it and those over 1 … K frames, `[2 + K, B, A, F]`.

        Args:
            before: `[B, A, F]`, a frame ago.
            edge_targets: `[B, A, 1 + K, F]`, now and later.
            groups: int64 `[B]`.
        """
        now, *after = edge_targets.unbind(2)
        changes = (self.edge_targets.changes(now, each, groups, k) for k, each in enumerate(after, 1))
        return torch.stack([now, self.edge_targets.changes(before, now, groups, 1), *changes])


class LatentDynamics(nn.Module):
    """Predicts contexts by one linear map, whatever is seen: z(k + 1) = A z(k) + B a(k).

    In which coordinates motion is linear is for the contexts to find: Koopman's view of dynamics, learned as by Lusch
    et al. 2018 (arXiv:1712.09707), with actions as inputs. A second map, R z, goes one frame back.

    Args:
        context_dim: width D of the contexts.
        action_dim: width of the actions; None predicts without them.
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
