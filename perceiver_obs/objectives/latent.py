"""What is asked of contexts and of what latent dynamics predict from them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceiver_obs.data.clips import RolloutClips
from perceiver_obs.objectives.edge_targets import EdgeDecoder, EdgeTargets, FrameContrast
from perceiver_obs.objectives.pixels import PixelObjective
from perceiver_obs.objectives.rewards import RewardObjective
from perceiver_obs.objectives.states import StateObjective, StateTargets

CLIPS_TO_FIT = 512  # of each group
HIDDEN = 512
FITTED = ("edge_targets", "pixels", "states", "rewards")


@dataclass(frozen=True)
class LatentTargets:
    """What of the data contexts learn from.

    Attributes:
        tasks: of the groups of data that have a scene, rewards and states of their own; "" where unknown.
        frame_shape: `(C, H, W)`.
        heads: names of losses, among "edge", "contrastive", "reward", "state" and "pixel".
        edge_order: spatial frequencies of the edge targets, in each direction.
        horizon: steps ahead that latent dynamics predict.
        num_states: coordinates of the state, of the task that has most.
    """

    tasks: Sequence[str]
    frame_shape: Sequence[int]
    heads: Collection[str]
    edge_order: int = 10
    horizon: int = 6
    num_states: int = 0


@dataclass(frozen=True)
class Clips:
    """What losses compare with.

    Attributes:
        frames: `[B, T, C, H, W]`.
        groups: int64 `[B]`, the number of each clip's task.
        actions: `[B, T, action_dim]`, the action that led to each frame.
        rewards: `[B, T]`, the reward that came with each frame; needed where they are predicted.
        states: `[B, T, S]`, NaN where unknown; needed where they are regressed.
    """

    frames: Tensor
    groups: Tensor
    actions: Tensor | None = None
    rewards: Tensor | None = None
    states: Tensor | None = None


@dataclass
class SavedHeads:
    """The heads of a run before: tensors by name, and the tasks of its groups."""

    tasks: Sequence[str]
    tensors: Mapping[str, Tensor] = field(repr=False)


class LatentObjective(nn.Module):
    """What contexts learn positions and motion from: to predict edge targets, to pick frames by them, and others.

    All is asked of the context itself and of what `LatentDynamics` makes of it for the frames to come, through the
    same heads. So a context from which positions are decoded must also hold velocities, in coordinates that change
    evenly. Heads are needed in training alone; a later run may take them up.

    Args:
        targets: what is predicted, of which data; `fit` fits what is centred and scaled to it.
        context_dim: width D of the contexts.
        action_dim: width of the actions; None predicts without them.
    """

    def __init__(self, targets: LatentTargets, context_dim: int, action_dim: int | None):
        super().__init__()
        self.targets, self.max_horizon = targets, targets.horizon
        tasks, heads = len(targets.tasks), targets.heads
        self.edge_targets = EdgeTargets(targets.edge_order, tasks, targets.frame_shape[1:], targets.horizon)
        size = context_dim, self.edge_targets.num_coefficients, HIDDEN
        self.dynamics = LatentDynamics(context_dim, action_dim)
        self.edge_decoder = EdgeDecoder(*size) if "edge" in heads else None
        self.contrast = FrameContrast(*size) if "contrastive" in heads else None
        self.rewards = RewardObjective(context_dim, action_dim, tasks) if "reward" in heads else None
        self.states = StateObjective(context_dim, targets.num_states, tasks) if "state" in heads else None
        self.pixels = PixelObjective(context_dim, targets.frame_shape, tasks) if "pixel" in heads else None
        self._taken_up: dict[str, set[int]] = {}

    def fit(
        self,
        clips: RolloutClips,
        groups: Sequence[int],
        seed: int,
        states: StateTargets | None = None,
        parts: Collection[str] = FITTED,
    ) -> None:
        """Fits what is centred and scaled to the groups of the clips' datasets, each on clips of all of its own.

        What a former run has fitted to a group stays.

        Args:
            clips: of which datasets.
            groups: the number of each dataset's task.
            seed: of the clips that are drawn.
            states: of the datasets; without them none is fitted.
            parts: what to fit.
        """
        device = self.edge_targets.mean.device
        for group in sorted(set(groups)):
            new = [
                name for name in parts if getattr(self, name) is not None and group not in self._taken_up.get(name, ())
            ]
            if not new:
                continue
            chosen = [number for number, each in enumerate(groups) if each == group]
            of_group = clips.only(chosen)
            places = of_group.index.draw(CLIPS_TO_FIT, seed, 0)
            frames = torch.from_numpy(of_group.frames(places)).to(device)
            if "edge_targets" in new:
                self.edge_targets.fit(group, frames)
            if "pixels" in new and self.pixels is not None:
                self.pixels.fit(group, frames)
            if "states" in new and self.states is not None and states is not None:
                own = [replace(place, dataset=chosen[place.dataset]) for place in places]
                known = states.clips(own, clips.index.clip_length, self.targets.num_states)
                self.states.fit(group, known.to(device))
            if "rewards" in new and self.rewards is not None:
                self.rewards.fit(group, torch.from_numpy(of_group.rewards(places)[:, 1:]).to(device))

    @torch.no_grad()
    def take_up(self, saved: SavedHeads) -> None:
        """Goes on from the heads of a run before, where their shapes fit; of groups, from those of the same task."""
        known = [(group, task) for group, task in enumerate(self.targets.tasks) if task and task in saved.tasks]
        groups = {group: saved.tasks.index(task) for group, task in known}
        for name, part in self._parts().items():
            on_edges = name in ("edge_decoder", "contrast")
            if on_edges and "edge_targets" not in self._taken_up:
                continue  # they are fitted to other coefficients
            former = {key.removeprefix(f"{name}."): t for key, t in saved.tensors.items() if key.startswith(f"{name}.")}
            if _load(part, former, groups):
                self._taken_up[name] = set(groups)

    def learned_anew(self, group: int | None = None) -> list[str]:
        """Names of heads that no run before has trained, at all or for a group."""
        parts = self._parts()
        new = [name for name in parts if name not in self._taken_up]
        if group is not None:
            new += [name for name, taken in self._taken_up.items() if _per_group(parts[name]) and group not in taken]
        return new

    def _parts(self) -> dict[str, nn.Module]:
        return dict(self.named_children())

    def forward(self, contexts: Tensor, anchors: Tensor, clips: Clips) -> dict[str, Tensor]:
        """Losses `edge` (squared error), `contrastive` (cross-entropy), `reward`, `state` and `pixel` if asked for.

        Args:
            contexts: `[B, A, D]`, of frames `anchors`, int64 `[A]`.
            clips: whose frames exceed every anchor by the longest horizon or more.
        """
        groups, steps = clips.groups, torch.arange(self.max_horizon + 1, device=anchors.device)
        later = anchors[:, None] + steps
        ahead = None if clips.actions is None else clips.actions[:, later[:, 1:]]
        rollout = self.dynamics(contexts, self.max_horizon, ahead)
        losses = {}
        if self.edge_decoder is not None or self.contrast is not None:
            edge_targets = self.edge_targets(clips.frames, groups)
        if self.edge_decoder is not None:
            losses["edge"] = self._edge_loss(contexts, rollout, edge_targets, later, groups)
        if self.contrast is not None:
            losses["contrastive"] = self.contrast(rollout, edge_targets, later)
        if self.states is not None:
            if clips.states is None:
                raise ValueError("regressing states needs the states of the clips")
            losses["state"] = self.states(rollout, clips.states[:, later], groups)
        if self.pixels is not None:
            losses["pixel"] = self.pixels(rollout, clips.frames, later, groups)
        if self.rewards is not None:
            if clips.rewards is None:
                raise ValueError("predicting rewards needs the rewards of the clips")
            losses["reward"] = self.rewards(rollout[:, :, 1:], ahead, clips.rewards[:, later[:, 1:]], groups)
        return losses

    def _edge_loss(
        self, contexts: Tensor, rollout: Tensor, edge_targets: Tensor, later: Tensor, groups: Tensor
    ) -> Tensor:
        assert self.edge_decoder is not None
        before = edge_targets[:, (later[:, 0] - 1).clamp_min(0)]
        decoded_before, decoded = self.edge_decoder(self.dynamics.inverse(contexts)), self.edge_decoder(rollout)
        predicted = self._edges_and_changes(decoded_before, decoded, groups)
        return F.mse_loss(predicted, self._edges_and_changes(before, edge_targets[:, later], groups))

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
    et al. 2018 (arXiv:1712.09707), with actions as inputs. A second map, R z, is their inverse: one frame back.

    Args:
        context_dim: width D of the contexts.
        action_dim: width of the actions; None predicts without them.
    """

    def __init__(self, context_dim: int, action_dim: int | None):
        super().__init__()
        self.transition = nn.Linear(context_dim, context_dim, bias=False)
        self.inverse = nn.Linear(context_dim, context_dim, bias=False)
        for each in (self.transition, self.inverse):
            nn.init.eye_(each.weight)
        self.action = None
        if action_dim:
            self.action = nn.Linear(action_dim, context_dim, bias=False)
            nn.init.zeros_(self.action.weight)

    def forward(self, contexts: Tensor, steps: int, actions: Tensor | None = None) -> Tensor:
        """The rollout: contexts after 0 … `steps` steps, `[B, A, 1 + steps, D]`.

        Args:
            contexts: `[B, A, D]`.
            steps: how many.
            actions: `[B, A, steps, action_dim]` after each context, in order; None counts as zeros.
        """
        rollout = [contexts]
        for step in range(steps):
            following = self.transition(rollout[-1])
            if self.action is not None and actions is not None:
                following = following + self.action(actions[:, :, step])
            rollout.append(following)
        return torch.stack(rollout, dim=2)


def _per_group(part: nn.Module) -> Sequence[str]:
    """Names of a head's tensors whose first axis is that of the groups."""
    return getattr(part, "per_group", ())


def _load(part: nn.Module, former: Mapping[str, Tensor], groups: Mapping[int, int]) -> bool:
    """Loads a head, of tensors by group the rows of `groups` (here: there); False, and nothing, where it does not fit.

    The last axis of tensors that are `padded` holds what the task with most of it has; of others the rest is unused.
    """
    own, by_group, padded = part.state_dict(), _per_group(part), getattr(part, "padded", False)
    if own.keys() != former.keys():
        return False
    for name, tensor in own.items():
        axes = slice(int(name in by_group), -1 if padded else None)
        if tensor.ndim != former[name].ndim or tensor.shape[axes] != former[name].shape[axes]:
            return False
        if name in by_group and max(groups.values(), default=0) >= len(former[name]):
            return False
    for name, tensor in own.items():
        if name not in by_group:
            tensor.copy_(former[name])
            continue
        width = min(tensor.shape[-1], former[name].shape[-1])
        for here, there in groups.items():
            if tensor.ndim == 1:
                tensor[here] = former[name][there]
            else:
                tensor[here, ..., :width] = former[name][there, ..., :width].to(tensor)
    return True
