"""PerceiverTokenPredictor and generation: what is seen, what is predicted, how it is drawn."""

import itertools

import pytest
import torch
from tiny_models import tiny_model

from perceiver_obs import CausalPerceiverIO, PerceiverTokenPredictor, VQPTTokenizer
from perceiver_obs.modules.sampling import Sampling


def video(frames: int = 7, batch: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, frames, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("quantizers", [1, 2])
def test_forward_shapes(quantizers):
    model = tiny_model(num_quantizers=quantizers)
    out = model(video(), num_context_frames=4)
    grid = (2, 3, 8, 8) if quantizers == 1 else (2, 3, 8, 8, quantizers)
    assert out["predicted_tokens"].shape == grid
    assert out["logits"].shape == (*grid, 64)
    assert out["reconstructed"].shape == (2, 7, 3, 64, 64)
    assert out["loss"].isfinite()


def test_a_bare_predictor_serves_any_frame_size():
    tokenizer = VQPTTokenizer(code_dim=16, num_codes=32, downsample=4, base_channels=8, num_quantizers=2)
    predictor = PerceiverTokenPredictor(
        tokenizer,
        num_latents=4,
        num_latent_channels=32,
        num_cross_attention_heads=2,
        num_self_attention_layers=1,
        sequence_length=4,
    )
    for size in ((32, 32), (24, 40)):
        out = predictor(torch.rand(1, 5, 3, *size), num_context_frames=2)
        assert out["reconstructed"].shape == (1, 5, 3, *size)
        assert predictor.generate(torch.rand(1, 2, 3, *size), num_frames=3).shape == (1, 3, 3, *size)


def test_predictions_see_the_context_frames_alone():
    model = tiny_model(action_dim=2)
    frames, actions = video(), torch.randn(2, 7, 2)
    out = model(frames, 4, actions)
    changed = torch.cat([frames[:, :4], 1 - frames[:, 4:]], dim=1)
    other = model(changed, 4, actions)
    assert torch.equal(other["predicted_tokens"], out["predicted_tokens"])
    assert torch.equal(other["logits"][..., 0, :], out["logits"][..., 0, :])
    changed = torch.cat([1 - frames[:, :4], frames[:, 4:]], dim=1)
    assert not torch.equal(model(changed, 4, actions)["logits"], out["logits"])


def test_actions_in_between_condition_the_horizons_they_precede():
    model = tiny_model(action_dim=2)
    frames, actions = video(), torch.randn(2, 7, 2)
    logits = model(frames, 4, actions)["logits"]
    late = actions.clone()
    late[:, 6] += 1
    changed = model(frames, 4, late)["logits"]
    assert torch.equal(changed[:, :2], logits[:, :2])
    assert not torch.equal(changed[:, 2], logits[:, 2])


def test_condition_steers_predictions_and_is_checked():
    model = tiny_model(condition_dim=3)
    frames = video()
    plain = model(frames, 4)["logits"]
    one_of_two = torch.ones(2, 3)
    one_of_two[0] = torch.nan
    conditioned = model(frames, 4, condition=one_of_two)["logits"]
    torch.testing.assert_close(conditioned[0], plain[0])
    assert not torch.allclose(conditioned[1], plain[1], atol=1e-3)
    with pytest.raises(ValueError, match=r"\[2, 3\], got \[2, 4\]"):
        model(frames, 4, condition=torch.ones(2, 4))
    with pytest.raises(ValueError, match="condition_dim=None"):
        tiny_model()(frames, 4, condition=torch.ones(2, 3))
    assert model.generate(frames, 2, condition=torch.ones(2, 3)).shape[1] == 2


@pytest.mark.parametrize("context_frames", [0, 7, -1])
def test_context_frames_out_of_range_are_named(context_frames):
    with pytest.raises(ValueError, match=rf"1 to 6 for 7 frames, got {context_frames}"):
        tiny_model()(video(), context_frames)
    with pytest.raises(ValueError, match="sequence_length=4"):
        tiny_model()(video(), 2)


@pytest.mark.parametrize("mode", ["autoregressive", "maskgit"])
def test_generation_goes_past_the_window_and_does_not_freeze(mode):
    """A trained length of 4, 15 frames asked for: every one drawn anew, and all of them different."""
    model = tiny_model(action_dim=2)
    torch.manual_seed(0)
    frames = model.generate(video(5), 15, mode=mode, actions=torch.randn(2, 20, 2), steps=3)
    assert frames.shape == (2, 15, 3, 64, 64)
    assert frames.min() >= 0
    assert frames.max() <= 1
    assert (frames[:, 1:] - frames[:, :-1]).abs().amax((0, 2, 3, 4)).min() > 1e-4


def test_maskgit_draws_again_what_is_not_kept():
    """Every token passes through the mask until it is drawn; kept ones are seen by the later rounds."""
    model = tiny_model()
    seen = []
    original = model.predictor.predict

    def spy(context, last, horizons, actions, condition, visible):
        seen.append(0 if visible is None else int(visible[1].sum()))
        return original(context, last, horizons, actions, condition, visible)

    model.predictor.predict = spy
    model.generate(video(4, batch=1), 1, mode="maskgit", steps=6)
    assert seen[0] == 0
    assert all(a < b < 64 for a, b in itertools.pairwise(seen))
    assert len(seen) == 6


def test_what_is_visible_changes_the_prediction_of_the_rest():
    predictor = tiny_model().predictor
    context, one = torch.randn(1, 32), torch.ones(1, dtype=torch.long)
    last, vectors = torch.randn(2, 1, 8, 8, 16)
    visible = torch.zeros(1, 8, 8, dtype=torch.bool)
    masked = predictor.predict(context, last, one, visible=(vectors, visible))
    torch.testing.assert_close(masked, predictor.predict(context, last, one))
    visible[:, :4] = True
    assert not torch.allclose(predictor.predict(context, last, one, visible=(vectors, visible))[:, 32:], masked[:, 32:])


def test_a_prediction_starts_from_the_last_frame():
    predictor = tiny_model().predictor
    context, one = torch.randn(1, 32), torch.ones(1, dtype=torch.long)
    last = torch.randn(1, 8, 8, 16)
    changed = last.clone()
    changed[:, 3, 5] += 1
    moved = (predictor.predict(context, changed, one) - predictor.predict(context, last, one)).norm(dim=-1)
    assert moved.argmax() == 3 * 8 + 5


def test_greedy_generation_is_repeatable_and_sampling_is_not():
    model = tiny_model()
    frames = video(4)
    assert torch.equal(model.generate(frames, 3, temperature=0), model.generate(frames, 3, temperature=0))
    assert not torch.equal(model.generate(frames, 3), model.generate(frames, 3))


def test_top_k_and_nucleus_keep_the_most_likely():
    logits = torch.tensor([3.0, 2.0, 1.0, 0.0, -9.0]).repeat(4000, 1)
    assert set(Sampling(top_k=2).draw(logits)[0].tolist()) == {0, 1}
    # Probabilities .64, .24, .09, .03: the nucleus of .7 is the first two, that of .1 the first alone.
    assert set(Sampling(top_p=0.7).draw(logits)[0].tolist()) == {0, 1}
    assert set(Sampling(top_p=0.1).draw(logits)[0].tolist()) == {0}
    assert set(Sampling().draw(logits)[0].tolist()) >= {0, 1, 2, 3}
    share = (Sampling().draw(logits)[0] == 0).float().mean()
    assert abs(float(share) - float(logits[0].softmax(-1)[0])) < 0.05
    assert (Sampling(temperature=0).draw(logits)[0] == 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_frames=0), "num_frames"),
        (dict(num_frames=2, mode="diffusion"), "'diffusion'"),
        (dict(num_frames=2, temperature=-1.0), "temperature"),
        (dict(num_frames=2, temperature=float("nan")), "temperature"),
        (dict(num_frames=2, top_k=0), "top_k"),
        (dict(num_frames=2, top_p=1.5), "top_p"),
        (dict(num_frames=2, mode="maskgit", steps=0), "steps"),
        (dict(num_frames=2, actions=torch.zeros(2, 4, 2)), r"\[2, 6, A\]"),
    ],
)
def test_bad_generation_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(action_dim=2).generate(video(4), **arguments)


def test_reconstruct_decodes_the_tokens_and_nothing_else(real_video):
    model = tiny_model()
    clip = real_video[:, :5]
    decoded = model.reconstruct(clip)
    assert decoded.shape == clip.shape
    assert torch.equal(decoded, model.tokenizer.decode(model.tokenizer.encode(clip)[0]).clamp(0, 1))
    with pytest.raises(ValueError, match=r"\(3, 32, 32\)"):
        model.reconstruct(torch.rand(1, 2, 3, 32, 32))


def test_a_tokenizer_at_half_rate_is_refused():
    tokenizer = VQPTTokenizer(temporal_downsample=True, base_channels=8)
    with pytest.raises(ValueError, match="temporal_downsample"):
        PerceiverTokenPredictor(tokenizer)
    with pytest.raises(ValueError, match="temporal_downsample"):
        CausalPerceiverIO.from_tokenizer(tokenizer, (4, 3, 64, 64))
