"""Rewards as a teacher: what decides about them shall stand out in contexts."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_DEVIATION = 1e-3
HIDDEN = 256


class RewardObjective(nn.Module):
    """Predicts the rewards of the steps to come from contexts that are moved along.

    Transitions and rewards are what the baseline of Tomar et al. 2021 (arXiv:2111.07775) learns from.
    Rewards are centred and scaled for each group of data (such as a task), whose number the head is told.

    Args:
        context_dim: width D of the contexts.
        action_dim: width of the actions; None predicts without them.
        num_groups: groups with a reward of their own.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, context_dim: int, action_dim: int | None, num_groups: int):
        super().__init__()
        self.action_dim = action_dim or 0
        self.read = nn.Linear(context_dim + self.action_dim, HIDDEN)
        self.of_group = nn.Embedding(num_groups, HIDDEN)
        self.tell = nn.Sequential(nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 1))
        self.register_buffer("mean", torch.zeros(num_groups))
        self.register_buffer("scale", torch.ones(num_groups))

    @torch.no_grad()
    def fit(self, group: int, rewards: Tensor) -> None:
        """Centre and scale a group by rewards of its clips, any shape. What hardly varies is not blown up."""
        self.mean[group] = rewards.mean()
        self.scale[group] = rewards.std().clamp_min(MIN_DEVIATION)

    def forward(self, moved: Tensor, actions: Tensor | None, rewards: Tensor, groups: Tensor) -> Tensor:
        """Squared error, linear where it exceeds a deviation, a scalar.

        So rewards that the data it was fitted to hardly had, as a policy comes to earn, do not drown the rest.

        Args:
            moved: contexts after 1 … K steps, `[B, A, K, D]`.
            actions: `[B, A, K, action_dim]`, the action that led there; None counts as zeros.
            rewards: `[B, A, K]`, that came with it.
            groups: int64 `[B]`.
        """
        if self.action_dim:
            if actions is None:
                actions = moved.new_zeros(*moved.shape[:3], self.action_dim)
            moved = torch.cat([moved, actions], dim=-1)
        told = self.tell(self.read(moved) + self.of_group(groups)[:, None, None])[..., 0]
        wanted = (rewards - self.mean[groups][:, None, None]) / self.scale[groups][:, None, None]
        return F.smooth_l1_loss(told, wanted)
