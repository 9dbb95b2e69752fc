"""Motion as an auxiliary objective of the tokenizer's encoder, on real frames."""

import pytest
import torch

from perceiver_obs import VQPTTokenizer
from perceiver_obs.objectives.motion import CLIP_LENGTH, HORIZON, MotionObjective
from perceiver_obs.training.settings import TrainTokenizerSettings
from perceiver_obs.training.train_tokenizer import TokenizerObjective


@pytest.fixture
def clips(real_video):
    """Five clips."""
    return real_video[0, : 5 * CLIP_LENGTH].unflatten(0, (5, CLIP_LENGTH))


@pytest.fixture
def objective(clips):
    torch.manual_seed(0)
    tokenizer = VQPTTokenizer(code_dim=8, num_codes=16, downsample=8, base_channels=8, use_3d_conv=False)
    motion = MotionObjective(8 * 8 * 8, ["walker-walk"], clips.shape[2:], edge_order=6, action_dim=2)
    motion.latent.edge_targets.fit(0, clips)
    return TokenizerObjective(tokenizer, motion, TrainTokenizerSettings())


def test_the_encoder_learns_to_predict_edge_targets_and_their_changes(clips, objective):
    actions, groups = torch.randn(5, CLIP_LENGTH, 2), torch.zeros(5, dtype=torch.long)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=2e-3)
    before = [p.clone() for p in objective.tokenizer.encoder.parameters()]
    losses = []
    for _ in range(40):
        parts = objective(clips[:, :1], clips=clips, actions=actions, groups=groups)
        motion = {name: parts[name] for name in ("edge", "contrastive")}
        losses.append({name: float(value.detach()) for name, value in motion.items()})
        optimizer.zero_grad()
        sum(motion.values()).backward()
        optimizer.step()
    assert all(losses[-1][name] < losses[0][name] / 2 for name in losses[0])
    assert not any(torch.equal(a, b) for a, b in zip(before, objective.tokenizer.encoder.parameters()))
    assert all(p.grad is None for p in objective.tokenizer.decoder.parameters())


def test_what_is_predicted_was_not_seen(clips, objective):
    """The frames to come are targets alone: no gradient comes from reading them."""
    encoded = []
    encode = objective.tokenizer.encode_vectors
    objective.tokenizer.encode_vectors = lambda video: encoded.append(video) or encode(video)
    objective(
        clips[:, :1], clips=clips, actions=torch.zeros(5, CLIP_LENGTH, 2), groups=torch.zeros(5, dtype=torch.long)
    )
    assert len(encoded) == 1
    assert torch.equal(encoded[0], clips[:, : CLIP_LENGTH - HORIZON])
