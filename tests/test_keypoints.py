"""Keypoints: coordinates of what is in a frame, which follow its motion linearly."""

import pytest
import torch

from perceiver_obs import CausalPerceiverIO
from perceiver_obs.modules.adapters import Keypoints


def finder(grid: tuple[int, int]) -> Keypoints:
    """One keypoint whose logits are the first entry of the code vectors, with no offset."""
    keypoints = Keypoints(code_dim=3, number=1, grid=grid).requires_grad_(False)
    keypoints.look.weight.copy_(torch.tensor([[50.0, 0.0, 0.0]]))
    keypoints.offset.weight.zero_()
    keypoints.offset.bias.zero_()
    return keypoints


def test_a_thing_alone_is_found_where_it_lies():
    vectors = torch.zeros(1, 20, 4, 5, 3)
    for cell in range(20):
        vectors[0, cell, cell // 5, cell % 5, 0] = 1.0
    columns, rows = finder((4, 5))(vectors)[0].T
    assert torch.allclose(columns.view(4, 5), torch.linspace(-2, 2, 5).expand(4, 5), atol=1e-5)
    assert torch.allclose(rows.view(4, 5), torch.linspace(-2, 2, 4)[:, None].expand(4, 5), atol=1e-5)


def test_an_offset_moves_a_keypoint_by_fractions_of_a_token():
    keypoints = finder((4, 4))
    keypoints.offset.weight[0, 1] = 0.25  # columns follow the second entry
    vectors = torch.zeros(1, 3, 4, 4, 3)
    vectors[0, :, 1, 2, 0] = 1.0
    vectors[0, :, 1, 2, 1] = torch.tensor([-1.0, 0.0, 1.0])
    columns, rows = keypoints(vectors)[0].T
    assert torch.allclose(columns.diff(), torch.tensor([0.25, 0.25]), atol=1e-5)
    assert torch.equal(rows, rows[:1].expand(3))


@pytest.mark.parametrize(
    "arguments", [dict(keypoints=4), dict(keypoints=0, inputs_per_frame=2), dict(keypoints=10**6, inputs_per_frame=2)]
)
def test_wrong_numbers_of_keypoints_are_named(arguments):
    with pytest.raises(ValueError, match=f"keypoints must .*got {arguments['keypoints']}"):
        CausalPerceiverIO(video_shape=(4, 3, 32, 32), **arguments)
