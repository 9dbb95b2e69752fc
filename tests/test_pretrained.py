"""Saving and loading models; checkpoints that are missing, broken or not what they say."""

import json
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model

from perceiver_obs import CausalPerceiverIO, VQPTTokenizer, bundled_models


@pytest.fixture
def saved(tmp_path):
    model = tiny_model(action_dim=2, timescales=("fast", "medium"))
    model.frame_contract = {"size": 64, "action_repeat": 2, "tasks": ["walker-walk"]}
    model.set_context_statistics(torch.randn(64), torch.rand(64) + 0.5)
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


def test_round_trip_keeps_weights_contract_and_contexts(saved, real_video):
    model, directory = saved
    assert sorted(p.name for p in directory.iterdir()) == ["config.json", "model.safetensors"]
    loaded = CausalPerceiverIO.from_pretrained(directory)
    assert not loaded.training
    assert loaded.frame_contract == model.frame_contract
    assert loaded.fingerprint == model.fingerprint
    assert torch.equal(loaded.extract_context(real_video[:, :9]), model.extract_context(real_video[:, :9]))
    again = CausalPerceiverIO.from_pretrained(str(directory))
    again.predictor.encoder.latents.data[0, 0] += 1
    assert again.fingerprint != model.fingerprint


def test_tokenizer_round_trip_and_reuse(tmp_path, real_video):
    tokenizer = VQPTTokenizer(code_dim=16, num_codes=64, base_channels=8, downsample=8).eval()
    tokenizer.save_pretrained(tmp_path)
    loaded = VQPTTokenizer.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode(real_video)[0], tokenizer.encode(real_video)[0])
    model = CausalPerceiverIO.from_tokenizer(
        loaded, video_shape=(4, 3, 64, 64), num_latents=4, num_latent_channels=32, num_self_attention_layers=1
    )
    assert torch.equal(model.tokenizer.encode(real_video)[0], tokenizer.encode(real_video)[0])


def test_statistics_standardise_contexts_that_vary(real_video):
    model = tiny_model()
    model.predictor.encoder.norm.weight.data[:16] *= 100
    contexts = model.extract_context(real_video)[0]
    for _ in range(2):  # a second fit of standardised contexts changes nothing
        model.set_context_statistics(contexts.mean(0), contexts.std(0))
        contexts = model.extract_context(real_video)[0]
        torch.testing.assert_close(contexts.mean(0), torch.zeros(32), atol=1e-3, rtol=0)
        torch.testing.assert_close(contexts[:, :16].std(0), torch.ones(16), atol=1e-2, rtol=0)
    assert contexts[:, 16:].std(0).max() < 0.8
    assert model.context_scale.min() >= 0.1


def test_unknown_names_list_what_there_is():
    with pytest.raises(FileNotFoundError, match=r"'dmc-smal' is neither a directory here nor one of \['dmc-small',"):
        CausalPerceiverIO.from_pretrained("dmc-smal")


def edit_config(directory, **changes):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "config.json").unlink(), r"holds no config\.json"),
        (lambda d: (d / "model.safetensors").unlink(), "missing or not a whole safetensors"),
        (lambda d: (d / "model.safetensors").write_bytes(b""), "not a whole safetensors"),
        (lambda d: (d / "config.json").write_text("{"), "not valid JSON"),
        (lambda d: (d / "config.json").write_text("[]"), "must hold a JSON object, got list"),
        (lambda d: (d / "config.json").write_bytes(b"\xff\xfe"), "not valid JSON"),
        (lambda d: edit_config(d, format_version=99), "format version 99, this version reads 1"),
        (lambda d: edit_config(d, **{"class": "VQPTTokenizer"}), "describes a VQPTTokenizer"),
        (lambda d: edit_config(d, num_latents=9), "does not fit its config.json"),
        (lambda d: edit_config(d, num_self_attention_layers=10**12), r"more than \d+ parameters"),
        (lambda d: edit_config(d, num_decoder_layers=10**12), r"more than \d+ parameters"),
        (lambda d: edit_config(d, surprise=1), "surprise"),
        (lambda d: edit_config(d, downsample="8"), "does not describe"),
        (lambda d: edit_config(d, num_latents=8000, num_latent_channels=8000, base_channels=8000), "does not"),
    ],
)
def test_broken_checkpoints_say_what_is_wrong(saved, damage, message):
    damage(saved[1])
    with pytest.raises(ValueError, match=message):
        CausalPerceiverIO.from_pretrained(saved[1])


def test_a_checkpoint_cut_short_anywhere_is_refused(saved):
    weights = saved[1] / "model.safetensors"
    whole = weights.read_bytes()
    for share in (0.001, 0.3, 0.999):
        weights.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ValueError, match="not a whole safetensors"):
            CausalPerceiverIO.from_pretrained(saved[1])


def test_arguments_that_models_once_had_are_read(saved):
    """`temporal_downsample` could only be false; fingerprints, which policies hold, still count it."""
    model, directory = saved
    edit_config(directory, temporal_downsample=False)
    assert CausalPerceiverIO.from_pretrained(directory).fingerprint == model.fingerprint
    edit_config(directory, temporal_downsample=True)
    with pytest.raises(ValueError, match="temporal_downsample, which is no longer supported"):
        CausalPerceiverIO.from_pretrained(directory)


def test_the_bundled_model_keeps_its_fingerprint():
    """Policies trained on its contexts know it by this."""
    assert CausalPerceiverIO.from_pretrained("dmc-small").fingerprint == "9b7d874d2696e667"


def test_missing_and_surplus_tensors_are_named(saved):
    weights = saved[1] / "model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "extra": torch.zeros(1)}, weights)
    with pytest.raises(ValueError, match="1 tensors differ, first 'extra'"):
        CausalPerceiverIO.from_pretrained(saved[1])
    del tensors["predictor.encoder.latents"]
    save_file(tensors, weights)
    with pytest.raises(ValueError, match=r"predictor\.encoder\.latents"):
        CausalPerceiverIO.from_pretrained(saved[1])


def test_pickles_are_not_run(saved, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (saved[1] / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="not a whole safetensors"):
        CausalPerceiverIO.from_pretrained(saved[1])
    assert not (tmp_path / "ran").exists()


def test_files_of_earlier_versions_lose_what_is_gone_and_keep_their_fingerprint(saved, tmp_path, real_video):
    """They held heads that only training needs; policies are bound to the fingerprint of all of it."""
    model, directory = saved
    weights = load_file(directory / "model.safetensors")
    gone = {"predictor.regression.bias": torch.ones(16), "predictor.inverse_dynamics.0.weight": torch.ones(32, 64)}
    save_file({**weights, **gone}, directory / "model.safetensors")
    loaded = CausalPerceiverIO.from_pretrained(directory)
    assert loaded.state_dict().keys() == weights.keys()
    assert torch.equal(loaded.extract_context(real_video[:, :5]), model.extract_context(real_video[:, :5]))
    assert loaded.fingerprint not in (model.fingerprint, "")
    loaded.save_pretrained(tmp_path / "again")
    again = CausalPerceiverIO.from_pretrained(tmp_path / "again")
    assert again.fingerprint == loaded.fingerprint
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == weights.keys()
    again.context_mean += 1
    assert again.fingerprint not in (loaded.fingerprint, model.fingerprint), "other weights are another model"
    other = CausalPerceiverIO.from_pretrained(directory)
    other.context_mean += 1
    assert other.fingerprint == again.fingerprint
    edit_config(tmp_path / "again", known_as=["abc"])
    with pytest.raises(ValueError, match="fingerprints by fingerprint as known_as"):
        CausalPerceiverIO.from_pretrained(tmp_path / "again")


def test_policies_of_the_bundled_model_still_name_it():
    model = CausalPerceiverIO.from_pretrained("dmc-small")
    assert model.fingerprint == "9b7d874d2696e667"
    with safe_open(bundled_models()["dmc-small"] / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "regression" in name or "inverse" in name]  # noqa: SIM118 (no map)


@pytest.mark.parametrize("name", sorted(bundled_models()) or ["dmc-small"])
def test_bundled_models_load_and_are_small(name, real_video):
    directory = bundled_models()[name]
    model = CausalPerceiverIO.from_pretrained(name)
    assert (directory / "model.safetensors").stat().st_size < 10e6
    assert (directory / "README.md").exists()
    assert model.frame_contract["size"] == 64
    contexts = model.extract_context(real_video)[0]
    assert (contexts[1:] - contexts[:-1]).abs().amax(-1).min() > 1e-3


def test_half_precision_halves_the_file_and_hardly_moves_the_contexts(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "half", half_precision=True)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.75 * sizes[0]
    loaded = CausalPerceiverIO.from_pretrained(tmp_path / "half")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    video = torch.rand(1, 6, *model.video_shape[1:])
    torch.testing.assert_close(loaded.extract_context(video), model.extract_context(video), atol=2e-2, rtol=0)
    assert loaded.fingerprint != model.fingerprint
