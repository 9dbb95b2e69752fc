"""VQPTTokenizer: shapes, causality, gradients, codebooks that stay put."""

import pytest
import torch

from perceiver_obs import VQPTTokenizer


def tokenizer(**changes) -> VQPTTokenizer:
    torch.manual_seed(0)
    return VQPTTokenizer(**{"code_dim": 16, "num_codes": 64, "base_channels": 8, "downsample": 4, **changes})


KINDS = [
    dict(use_3d_conv=False),
    dict(use_3d_conv=True),
    dict(use_3d_conv=True, quantizer="fsq"),
    dict(use_3d_conv=False, num_quantizers=1),
    dict(use_3d_conv=True, num_quantizers=3, downsample=8),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_shapes_for_every_length(kind, frames):
    t = tokenizer(**kind)
    video = torch.rand(2, frames, 3, 32, 48)
    tokens, vq_loss, perplexity = t.encode(video)
    grid = (2, frames, 32 // t.downsample, 48 // t.downsample)
    assert tokens.shape == (grid if t.num_quantizers == 1 else (*grid, t.num_quantizers))
    assert tokens.dtype == torch.int64
    assert 0 <= tokens.min() <= tokens.max() < t.num_codes
    assert vq_loss >= 0
    assert 1 <= perplexity <= t.num_codes
    assert t.decode(tokens).shape == video.shape
    assert t(video).reconstruction.shape == video.shape


@pytest.mark.parametrize("frames", [1, 2, 3, 6, 7])
def test_temporal_downsample_halves_tokens_and_gives_every_frame_back(frames):
    t = tokenizer(temporal_downsample=True)
    video = torch.rand(1, frames, 3, 32, 32)
    tokens = t.encode(video)[0]
    assert tokens.shape[1] == (frames + 1) // 2
    assert t.decode(tokens, num_frames=frames).shape == video.shape
    assert t(video).reconstruction.shape == video.shape


@pytest.mark.parametrize("kind", [*KINDS, dict(temporal_downsample=True)])
def test_nothing_leaks_from_later_frames(kind):
    t = tokenizer(**kind).eval()
    video = torch.rand(1, 8, 3, 32, 32)
    vectors, tokens = t.encode_vectors(video), t.encode(video)[0]
    per_token = 2 if t.temporal_downsample else 1
    for cut in range(per_token, 8, per_token):
        changed = video.clone()
        changed[:, cut:] = torch.rand_like(changed[:, cut:])
        seen = cut // per_token
        assert torch.equal(t.encode_vectors(changed)[:, :seen], vectors[:, :seen])
        assert torch.equal(t.encode(changed)[0][:, :seen], tokens[:, :seen])
        decoded = t.decode(torch.cat([tokens[:, :seen], (tokens[:, seen:] + 1) % t.num_codes], dim=1))
        assert torch.equal(decoded[:, :cut], t.decode(tokens)[:, :cut])
    assert not torch.equal(t.encode_vectors(changed), vectors)


def test_clip_length_does_not_change_how_a_frame_is_coded():
    t = tokenizer().eval()
    video = torch.rand(1, 10, 3, 32, 32)
    torch.testing.assert_close(t.encode_vectors(video[:, :5]), t.encode_vectors(video)[:, :5])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_encoder_through_the_tokens(kind):
    t = tokenizer(**kind, commitment_weight=0.0, diversity_weight=0.0)
    t(torch.rand(2, 3, 3, 32, 32)).reconstruction_loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in t.encoder.parameters())
    assert t.encoder.layers[0].conv.weight.grad.abs().sum() > 0


def test_decoding_needs_nothing_but_tokens():
    t = tokenizer().eval()
    tokens = t.encode(torch.rand(1, 3, 3, 32, 32))[0]
    fresh = tokenizer()
    fresh.load_state_dict(t.state_dict())
    for parameter in fresh.encoder.parameters():
        parameter.data.zero_()
    assert torch.equal(fresh.decode(tokens), t.decode(tokens))
    other = t.decode((tokens + 7) % t.num_codes)
    assert (other - t.decode(tokens)).abs().mean() > 1e-3


@pytest.mark.parametrize("mode", [True, False])
def test_only_training_passes_move_the_codebooks(mode):
    t = tokenizer().train(mode)
    before = {k: v.clone() for k, v in t.state_dict().items()}
    video = torch.rand(2, 2, 3, 32, 32)
    t.encode(video), t.decode(t.encode(video)[0]), t.quantize(t.encode_vectors(video))
    with torch.no_grad():
        t(video)
    assert all(torch.equal(v, before[k]) for k, v in t.state_dict().items())
    t(video)
    moved = any(not torch.equal(v, before[k]) for k, v in t.state_dict().items())
    assert moved is mode


def test_nothing_is_born_in_the_first_pass():
    t = tokenizer()
    names = set(t.state_dict())
    parameters = {id(p) for p in t.parameters()}
    t(torch.rand(1, 5, 3, 32, 32)).loss.backward()
    assert set(t.state_dict()) == names
    assert {id(p) for p in t.parameters()} == parameters


def test_training_lowers_the_error_and_uses_the_codes(real_video):
    t = tokenizer(use_3d_conv=False, num_codes=32, num_quantizers=2, base_channels=16, downsample=8)
    optimizer = torch.optim.AdamW(t.parameters(), lr=2e-3)
    losses = []
    for step in range(60):
        frames = real_video[:, step % 50 : step % 50 + 8]
        out = t(frames)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(out.reconstruction_loss.item())
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])
    assert t.encode(real_video)[2] > 4


def test_adapt_codebook_fits_a_new_domain_and_leaves_the_convolutions(real_video):
    t = tokenizer()
    convolutions = {k: v.clone() for k, v in t.state_dict().items() if not k.startswith("quantizer")}
    before = t.encode(real_video[:, :20])[1]
    t.adapt_codebook(real_video[:, :20], passes=20)
    assert t.encode(real_video[:, :20])[1] < 0.5 * before
    assert all(torch.equal(t.state_dict()[k], v) for k, v in convolutions.items())
    with pytest.raises(ValueError, match="fsq"):
        tokenizer(quantizer="fsq").adapt_codebook(real_video)
    with pytest.raises(ValueError, match="at least one video"):
        t.adapt_codebook([])


def test_uint8_is_read_as_fractions_and_float_passes():
    t = tokenizer().eval()
    video = torch.randint(0, 256, (1, 2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(t.encode_vectors(video), t.encode_vectors(video.float() / 255))
    assert t.encode_vectors(video.float() / 255 * 1.5 - 0.1).isfinite().all()


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (torch.rand(2, 3, 32, 32), "4 axes"),
        (torch.rand(1, 2, 1, 32, 32), "3 channels, got 1"),
        (torch.rand(1, 2, 32, 32, 3), "before height"),
        (torch.rand(1, 2, 3, 30, 32), "multiples of 4, got 30x32"),
        (torch.rand(1, 0, 3, 32, 32), "at least one frame"),
        (torch.zeros(1, 2, 3, 32, 32, dtype=torch.int64), "int64"),
        (torch.full((1, 2, 3, 32, 32), float("nan")), "NaN"),
        (torch.full((1, 2, 3, 32, 32), float("inf")), "infinite"),
    ],
)
def test_bad_videos_are_named(video, message):
    with pytest.raises(ValueError, match=message):
        tokenizer().encode(video)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(1, 2, 8, 8, dtype=torch.long), "got"),
        (torch.zeros(1, 2, 8, 8, 3, dtype=torch.long), r"\[B, T, h, w, 4\]"),
        (torch.zeros(1, 2, 8, 8, 4), "integers"),
        (torch.full((1, 2, 8, 8, 4), 64), r"\[0, 64\)"),
        (torch.full((1, 2, 8, 8, 4), -1), r"\[0, 64\), got -1"),
    ],
)
def test_bad_tokens_are_named(tokens, message):
    with pytest.raises(ValueError, match=message):
        tokenizer().decode(tokens)


@pytest.mark.parametrize(
    "arguments",
    [dict(downsample=3), dict(downsample=1), dict(num_codes=1), dict(quantizer="pq"), dict(code_dim=0)],
)
def test_bad_arguments_are_named(arguments):
    with pytest.raises(ValueError, match=str(next(iter(arguments.values())))):
        tokenizer(**arguments)
