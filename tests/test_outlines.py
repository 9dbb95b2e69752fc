"""Low spatial frequencies of frames as targets, on real frames."""

import pytest
import torch
from scipy.fft import dctn

from perceiver_obs.training.outlines import OutlineContrast, OutlineHead, Outlines


@pytest.fixture
def clips(real_video):
    """Eight clips of six frames."""
    return real_video[0, :48].unflatten(0, (8, 6))


def fitted(clips, max_horizon=3) -> Outlines:
    outlines = Outlines(5, 2, clips.shape[2:], max_horizon)
    outlines.fit(0, clips)
    outlines.fit(1, clips.flip(-1) // 2)
    return outlines


def test_coefficients_are_the_lowest_of_the_cosine_transform(clips):
    outlines = Outlines(5, 1, clips.shape[2:], 1)
    expected = dctn(clips.double().numpy() / 255, axes=(-2, -1), norm="ortho")[..., :5, :5]
    torch.testing.assert_close(
        outlines.coefficients(clips), torch.tensor(expected).float().flatten(2), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(outlines.coefficients(clips), outlines.coefficients(clips.float() / 255))


def test_every_group_is_centred_and_scaled_by_itself(clips):
    outlines = fitted(clips)
    for group, frames in enumerate([clips, clips.flip(-1) // 2]):
        groups = torch.full((len(clips),), group)
        found = outlines(frames, groups)
        torch.testing.assert_close(found.mean((0, 1)), torch.zeros(75), atol=1e-3, rtol=0)
        torch.testing.assert_close(found.square().mean(), torch.tensor(1.0), atol=1e-3, rtol=0)
        for k in (1, 3):
            change = outlines.changes(found[:, :-k], found[:, k:], groups, k)
            torch.testing.assert_close(change.square().mean(), torch.tensor(1.0), atol=1e-3, rtol=0)


def test_frames_that_never_change_give_finite_outlines(clips):
    outlines = Outlines(5, 1, clips.shape[2:], 2)
    still = clips[:1, :1].expand(4, 6, -1, -1, -1)
    outlines.fit(0, still)
    found = outlines(clips, torch.zeros(len(clips), dtype=torch.long))
    assert found.isfinite().all()


def test_a_change_to_come_sees_the_actions_that_make_it_and_no_later_ones():
    torch.manual_seed(0)
    head = OutlineHead(8, 5, max_horizon=3, action_dim=2, hidden=16)
    contexts, actions = torch.randn(2, 4, 8), torch.randn(2, 4, 3, 2)
    told = head(contexts, actions)
    assert told.shape == (2, 4, 5, 5)
    for step in range(3):
        other = actions.clone()
        other[:, :, step] += 1
        moved = (head(contexts, other) != told).flatten(0, 1).any(-1).any(0)
        assert moved.tolist() == [False, False, *(k >= step for k in range(3))]


def test_contrast_looks_for_the_frame_k_steps_ahead(clips):
    """With a context that holds the outlines of its frame and the next, the right answers are easy to learn."""
    torch.manual_seed(0)
    outlines = fitted(clips)(clips, torch.zeros(len(clips), dtype=torch.long))
    anchors = torch.tensor([0, 2, 4])
    contrast = OutlineContrast(150, 75, max_horizon=1, action_dim=None, hidden=32)
    contexts = torch.cat([outlines[:, anchors], outlines[:, anchors + 1]], dim=-1)
    optimizer = torch.optim.AdamW(contrast.parameters(), lr=3e-3)
    for _ in range(60):
        loss = contrast(contexts, anchors, outlines)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    shifted = contrast(contexts, anchors - torch.tensor([0, 1, 1]), outlines)
    assert loss < 0.7 < 2 < shifted


def test_an_order_beyond_the_frame_is_refused():
    with pytest.raises(ValueError, match="1 to 64, got 65"):
        Outlines(65, 1, (3, 64, 64), 1)
