"""Rewards as an auxiliary objective of contexts."""

import torch

from perceiver_obs.objectives.rewards import RewardObjective


def test_rewards_are_learned_whatever_their_scale_for_each_group():
    """Two groups with rewards of opposite sign and very different size, and one that never gives any."""
    torch.manual_seed(0)
    objective = RewardObjective(context_dim=3, action_dim=2, num_groups=3)
    rollout, actions = torch.randn(60, 4, 5, 3), torch.randn(60, 4, 5, 2)
    groups = torch.arange(60) % 3
    size = torch.tensor([1000.0, -0.01, 0.0])[groups][:, None, None]
    rewards = size * (rollout[..., 0] + actions[..., 1])
    for group in range(3):
        objective.fit(group, rewards[groups == group])
    untrained = float(objective(rollout, actions, rewards, groups).detach())
    assert 0.1 < untrained < 1
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    for _ in range(200):
        loss = objective(rollout, actions, rewards, groups)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1 * untrained
    assert objective(rollout, None, rewards, groups) > 3 * loss, "the actions were read"
