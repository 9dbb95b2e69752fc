"""Rewards as an auxiliary objective: what decides about them shall stand out in contexts."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_DEVIATION = 1e-3
HIDDEN = 256


class RewardObjective(nn.Module):
    """Predicts the rewards of the steps to come from the contexts of a rollout of latent dynamics.

    Transitions and rewards are what the baseline of Tomar et al. 2021 (arXiv:2111.07775) learns from.
    Rewards are centred and scaled for each group of data (such as a task), whose number the head reads.

    Args:
        context_dim: width D of the contexts.
        action_dim: width of the actions; None predicts without them.
        num_groups: groups with a reward of their own.
    """

    per_group: ClassVar = ("of_group.weight", "mean", "scale")
    mean: Tensor
    scale: Tensor

    def __init__(self, context_dim: int, action_dim: int | None, num_groups: int):
        super().__init__()
        self.action_dim = action_dim or 0
        self.read = nn.Linear(context_dim + self.action_dim, HIDDEN)
        self.of_group = nn.Embedding(num_groups, HIDDEN)
        self.predict = nn.Sequential(nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 1))
        self.register_buffer("mean", torch.zeros(num_groups))
        self.register_buffer("scale", torch.ones(num_groups))

    @torch.no_grad()
    def fit(self, group: int, rewards: Tensor) -> None:
        """Centre and scale a group by rewards of its clips, any shape. What hardly varies is not blown up."""
        self.mean[group] = rewards.mean()
        self.scale[group] = rewards.std().clamp_min(MIN_DEVIATION)

    def forward(self, rollout: Tensor, actions: Tensor | None, rewards: Tensor, groups: Tensor) -> Tensor:
        """Squared error, linear where it exceeds a deviation, a scalar.

        So rewards that the data it was fitted to hardly had, as a policy comes to earn, do not drown the rest.

        Args:
            rollout: contexts after 1 … K steps, `[B, A, K, D]`.
            actions: `[B, A, K, action_dim]`, the action that led there; None counts as zeros.
            rewards: `[B, A, K]`, that came with it.
            groups: int64 `[B]`.
        """
        if self.action_dim:
            if actions is None:
                actions = rollout.new_zeros(*rollout.shape[:3], self.action_dim)
            rollout = torch.cat([rollout, actions], dim=-1)
        predicted = self.predict(self.read(rollout) + self.of_group(groups)[:, None, None])[..., 0]
        wanted = (rewards - self.mean[groups][:, None, None]) / self.scale[groups][:, None, None]
        return F.smooth_l1_loss(predicted, wanted)
