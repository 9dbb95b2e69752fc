"""Low spatial frequencies of frames as targets, on real frames."""

import pytest
import torch
from scipy.fft import dctn

from perceiver_obs.objectives.edge_targets import EdgeTargets, FrameContrast, edges
from perceiver_obs.objectives.latent import Clips, LatentDynamics, LatentObjective, LatentTargets


@pytest.fixture
def clips(real_video):
    """Eight clips of six frames."""
    return real_video[0, :48].unflatten(0, (8, 6))


def fitted(clips, max_horizon=3) -> EdgeTargets:
    edge_targets = EdgeTargets(5, 2, clips.shape[3:], max_horizon)
    edge_targets.fit(0, clips)
    edge_targets.fit(1, clips.flip(-1) // 2)
    return edge_targets


def test_coefficients_are_the_lowest_of_the_cosine_transform(clips):
    edge_targets = EdgeTargets(5, 1, clips.shape[3:], 1)
    expected = dctn(edges(clips.double() / 255).numpy(), axes=(-2, -1), norm="ortho")[..., :5, :5]
    torch.testing.assert_close(
        edge_targets.coefficients(clips), torch.tensor(expected).float().flatten(2), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(edge_targets.coefficients(clips), edge_targets.coefficients(clips.float() / 255))


def test_edges_have_strength_and_direction():
    """A ramp in each direction: the gradient is its slope."""
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    slope = 0.05
    for degrees in (0, 30, 90, 135, 210):
        angle = torch.deg2rad(torch.tensor(float(degrees)))
        ramp = slope * (x * angle.cos() + y * angle.sin())
        maps = edges(torch.stack([2 * ramp, torch.zeros(8, 8)]))  # their mean is the brightness
        assert maps.shape == (3, 8, 8)
        found = maps[:, 1:-1, 1:-1].mean((1, 2))
        expected = slope * torch.stack([(2 * angle).cos(), (2 * angle).sin(), torch.tensor(1.0)])
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_every_group_is_centred_and_scaled_by_itself(clips):
    edge_targets = fitted(clips)
    for group, frames in enumerate([clips, clips.flip(-1) // 2]):
        groups = torch.full((len(clips),), group)
        found = edge_targets(frames, groups)
        torch.testing.assert_close(found.mean((0, 1)), torch.zeros(75), atol=1e-3, rtol=0)
        torch.testing.assert_close(found.square().mean(), torch.tensor(1.0), atol=1e-3, rtol=0)
        for k in (1, 3):
            change = edge_targets.changes(found[:, :-k], found[:, k:], groups, k)
            torch.testing.assert_close(change.square().mean(), torch.tensor(1.0), atol=1e-3, rtol=0)


def test_frames_that_never_change_give_finite_edge_targets(clips):
    edge_targets = EdgeTargets(5, 1, clips.shape[3:], 2)
    still = clips[:1, :1].expand(4, 6, -1, -1, -1)
    edge_targets.fit(0, still)
    found = edge_targets(clips, torch.zeros(len(clips), dtype=torch.long))
    assert found.isfinite().all()


def test_dynamics_are_a_linear_map_of_the_context_and_of_the_actions_in_between():
    torch.manual_seed(0)
    dynamics = LatentDynamics(8, action_dim=2)
    contexts, actions = torch.randn(2, 4, 8), torch.randn(2, 4, 3, 2)
    at_first = dynamics(contexts, 3, actions)
    assert torch.equal(at_first, contexts[:, :, None].expand(2, 4, 4, 8))  # nothing moves before it is learned
    torch.nn.init.normal_(dynamics.transition.weight)
    torch.nn.init.normal_(dynamics.action.weight)
    a, b = dynamics.transition.weight, dynamics.action.weight
    once = contexts @ a.T + actions[:, :, 0] @ b.T
    rollout = dynamics(contexts, 3, actions)
    torch.testing.assert_close(rollout[:, :, 2], once @ a.T + actions[:, :, 1] @ b.T)
    torch.testing.assert_close(dynamics(contexts, 3)[:, :, 2], contexts @ a.T @ a.T)
    for step in range(3):  # an action moves what follows it and nothing before
        other = actions.clone()
        other[:, :, step] += 1
        changed = (dynamics(contexts, 3, other) != rollout).flatten(0, 1).any(-1).any(0)
        assert changed.tolist() == [k > step for k in range(4)]


def test_decoded_edges_and_their_changes_are_compared_with_those_of_the_frames(clips):
    """A context that is the edge target, in a scene that stands still but for one step, decoded as it is."""
    edge_targets = fitted(clips, max_horizon=2)
    objective = LatentObjective(LatentTargets(("a", "b"), clips.shape[2:], ("edge",), 5, 2), 75, None)
    objective.edge_targets, objective.edge_decoder = edge_targets, torch.nn.Identity()
    frames = clips[:, :1].repeat(1, 5, 1, 1, 1)
    groups, anchors = torch.zeros(len(clips), dtype=torch.long), torch.tensor([1, 2])
    contexts = edge_targets(frames, groups)[:, anchors]
    assert objective(contexts, anchors, Clips(frames, groups))["edge"] < 1e-9
    frames[:, 3:] = clips[:, 3:4]
    later = edge_targets(frames, groups)
    far = [edge_targets.changes(later[:, [0]], later[:, [3]], groups, k).square().sum() for k in (1, 2)]
    expected = (far[1] + far[0] + far[1]) / (4 * contexts.numel())  # 2 steps from the first, 1 and 2 from the second
    torch.testing.assert_close(objective(contexts, anchors, Clips(frames, groups))["edge"], expected)


def test_contrast_looks_for_the_frame_of_each_context(clips):
    """With contexts that are the edge targets, the right answers are easy to learn."""
    torch.manual_seed(0)
    edge_targets = fitted(clips)(clips, torch.zeros(len(clips), dtype=torch.long))
    positions = torch.tensor([[0, 1], [2, 3], [4, 5]])
    contrast = FrameContrast(75, 75, hidden=32)
    contexts = edge_targets[:, positions]
    optimizer = torch.optim.AdamW(contrast.parameters(), lr=3e-3)
    for _ in range(60):
        loss = contrast(contexts, edge_targets, positions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    shifted = contrast(contexts, edge_targets, (positions + 1) % 6)
    assert loss < 0.7 < 2 < shifted


def test_an_order_beyond_the_frame_is_refused():
    with pytest.raises(ValueError, match="1 to 64, got 65"):
        EdgeTargets(65, 1, (64, 64), 1)
