"""Both training stages on rendered frames: they learn, on one process or two, and say what they did."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import predictor_settings, tokenizer_settings, write_dataset
from two_processes import train_on_two_processes

from perceiver_obs import CausalPerceiverIO, VQPTTokenizer
from perceiver_obs.causal_perceiver import MIN_CONTEXT_SCALE
from perceiver_obs.data.clips import leading_actions
from perceiver_obs.data.data_record import read_data_record
from perceiver_obs.data.rollouts import RolloutDataset
from perceiver_obs.objectives.saved_heads import read_heads
from perceiver_obs.reporting.metrics import MetricsLog, curve, read_lines
from perceiver_obs.training.checkpoint import load_checkpoint
from perceiver_obs.training.loop import learning_rate, make_accelerator, make_optimizer
from perceiver_obs.training.settings import RunSettings, TrainPredictorSettings
from perceiver_obs.training.train_predictor import train_predictor
from perceiver_obs.training.train_tokenizer import train_tokenizer

pytest_plugins = ("tiny_data",)


def test_two_processes_end_alike_and_go_on_alike_when_stopped(tiny_data, tmp_path):
    tokenizer = tokenizer_settings(tiny_data, tmp_path / "tokenizer", steps=3)
    predictor = predictor_settings(tiny_data, tmp_path / "tokenizer", tmp_path / "predictor", steps=3)
    train_on_two_processes(tokenizer, predictor)
    for run in ("tokenizer", "predictor"):
        first, second = (json.loads((tmp_path / run / f"rank{rank}.json").read_text()) for rank in range(2))
        assert first == second
        assert first["world"] == 2
        assert first["after"] != first["before"]
        assert first["resumed"] == first["after"]
        assert load_checkpoint(tmp_path / f"{run}-stopped" / "checkpoint.safetensors").step > 1
        assert (tmp_path / run / "report.html").exists()
    CausalPerceiverIO.from_pretrained(tmp_path / "predictor")
    encoded = list((tmp_path / "predictor" / "token_cache").rglob("*.tokens.npy"))
    assert len(encoded) == len(RolloutDataset(tiny_data))


@pytest.mark.slow
def test_torchrun_takes_the_same_command(tiny_data, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = (
        f"-m agents.cli train-tokenizer --data {tiny_data} --out {tmp_path}/run --steps 2 --batch-size 2 "
        "--evaluation-clips 4 --base-channels 4 --code-dim 8 --num-codes 16 --device cpu"
    )
    done = subprocess.run([*torchrun, *command.split()], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("tokenizer: 2 in") == 1
    assert VQPTTokenizer.from_pretrained(tmp_path / "run").num_codes == 16


def test_tokenizer_learns_to_reconstruct(tiny_data, tmp_path):
    settings = tokenizer_settings(
        tiny_data, tmp_path, steps=80, learning_rate=3e-3, base_channels=8, evaluate_every=20, log_every=5
    )
    tokenizer = train_tokenizer(settings)
    assert isinstance(tokenizer, VQPTTokenizer)
    assert not tokenizer.training
    rows = read_lines(tmp_path / "metrics.jsonl")
    steps, psnr = curve(rows, "evaluation/psnr")
    assert steps == [20, 40, 60, 80]
    assert psnr[-1] > psnr[0] + 3
    _, losses = curve(rows, "train/reconstruction_loss")
    assert losses[-1] < losses[0] / 3
    assert list((tmp_path / "tensorboard").iterdir())
    report = (tmp_path / "report.html").read_text()
    assert f"{psnr[-1]:.1f} dB" in report
    assert report.count("data:image/png;base64,") == 3


def test_a_tokenizer_begins_with_another_or_with_a_model_s(tiny_data, tmp_path):
    first = train_tokenizer(tokenizer_settings(tiny_data, tmp_path / "first", steps=4))
    model = CausalPerceiverIO.from_tokenizer(first, (4, *first.check(torch.zeros(1, 1, 3, 64, 64)).shape[2:]))
    model.save_pretrained(tmp_path / "model")
    for begin_with in ("first", "model"):
        settings = tokenizer_settings(
            tiny_data,
            tmp_path / f"{begin_with}-on",
            steps=1,
            learning_rate=1e-12,
            begin_with=str(tmp_path / begin_with),
        )
        trained = train_tokenizer(settings)
        torch.testing.assert_close(dict(trained.named_parameters()), dict(first.named_parameters()))
    with pytest.raises(ValueError, match="num_codes was 16, is 32"):
        train_tokenizer(replace(settings, out=str(tmp_path / "other"), num_codes=32))
    assert {entry["fingerprint"] for entry in read_data_record(tmp_path / "first-on")} == {
        entry["fingerprint"] for entry in read_data_record(tmp_path / "first")
    }


def test_predictor_learns_and_its_contexts_are_standardised(tiny_data, tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("perceiver_obs.training.train_predictor.STATISTICS_BATCHES", 16)
    settings = predictor_settings(
        tiny_data, tiny_tokenizer, tmp_path, steps=60, learning_rate=3e-3, evaluate_every=20, reward_weight=0.0
    )
    model = train_predictor(settings)
    rows = read_lines(tmp_path / "metrics.jsonl")
    _, held_out = curve(rows, "evaluation/cross_entropy")
    assert held_out == sorted(held_out, reverse=True)
    assert held_out[-1] < 0.9 * math.log(16)
    assert {"train/cross_entropy", "train/edge"} <= set(rows[0])
    last = rows[-1]
    assert {f"evaluation/accuracy_{name}" for name in ("model", "copy", "unigram", "bigram")} <= set(last)
    episodes = list(RolloutDataset(tiny_data))
    frames = torch.from_numpy(np.stack([episode.pixels for episode in episodes])).permute(0, 1, 4, 2, 3)
    actions = torch.from_numpy(np.stack([leading_actions(episode.actions, model.action_dim) for episode in episodes]))
    contexts = model.extract_context(frames, actions).flatten(0, 1)
    assert contexts.mean(0).abs().max() < 0.5
    fitted = model.context_scale > MIN_CONTEXT_SCALE
    spread = contexts.std(0)
    assert spread.max() < 1.5
    assert ((spread > 0.5) | ~fitted).all()
    assert (model.context_scale != 1).all()
    assert model.frame_contract["tasks"] == ["cartpole-swingup"]
    assert model.frame_contract["render_quality"] == "fast"
    assert model.frame_contract["data_fingerprint"]
    assert (tmp_path / "report.html").read_text().count("data:image/png;base64,") == 5


def test_the_tokenizer_stays_as_it_was(tiny_tokenizer, tiny_model):
    tokenizer = VQPTTokenizer.from_pretrained(tiny_tokenizer).state_dict()
    inside = CausalPerceiverIO.from_pretrained(tiny_model).tokenizer.state_dict()
    assert all(torch.equal(tensor, inside[name]) for name, tensor in tokenizer.items())


def test_a_training_begins_with_the_weights_of_a_model_and_the_heads_of_its_objective(
    tiny_data, tiny_model, tmp_path, capsys
):
    before = CausalPerceiverIO.from_pretrained(tiny_model)
    settings = predictor_settings(tiny_data, tmp_path / "none", tmp_path / "run", begin_with=str(tiny_model))
    settings.learning_rate = 1e-9
    after = train_predictor(settings)
    for name, tensor in before.predictor.state_dict().items():
        torch.testing.assert_close(after.predictor.state_dict()[name], tensor, atol=1e-6, rtol=0)
    video = torch.randint(0, 256, (1, 6, *before.video_shape[1:]), dtype=torch.uint8)
    old, new = before.extract_context(video)[0], after.extract_context(video)[0]
    assert np.corrcoef(old.flatten(), new.flatten())[0, 1] > 0.9, "the same contexts, centred and scaled anew"
    assert len(read_data_record(tmp_path / "run")) == 1, "the same rollouts count once"
    assert "edge_decoder, contrast, rewards taken up\n" in capsys.readouterr().out
    heads, again = (read_heads(directory) for directory in (tiny_model, tmp_path / "run"))
    assert again.tasks == heads.tasks == ["cartpole-swingup"]
    for name, tensor in heads.tensors.items():
        torch.testing.assert_close(again.tensors[name], tensor, atol=1e-6, rtol=0)
    of_more_tasks = CausalPerceiverIO(**{**before.config(), "action_dim": 3})
    of_more_tasks.save_pretrained(tmp_path / "more")
    narrower = replace(settings, begin_with=str(tmp_path / "more"), out=str(tmp_path / "narrower"), steps=1)
    assert train_predictor(narrower).action_dim == 3, "this data's actions have one dimension"
    with pytest.raises(ValueError, match="num_latents is 4 there and 8 here"):
        train_predictor(replace(settings, out=str(tmp_path / "other"), num_latents=8))


def test_tasks_of_different_action_sizes_train_together(tiny_data, tiny_tokenizer, tmp_path):
    other = write_dataset(tmp_path / "noise", [12, 12, 12], action_size=3, size=32)
    settings = predictor_settings(tiny_data, tiny_tokenizer, tmp_path / "run", steps=2)
    settings.data = (str(tiny_data), f"{other}=2")
    model = train_predictor(settings)
    assert model.action_dim == 3
    assert model.frame_contract["tasks"] == ["cartpole-swingup", "noise"]


def test_a_frame_contract_that_names_no_task_is_enough(tmp_path):
    data = write_dataset(tmp_path / "data", [12, 12, 12], size=32)
    meta = json.loads((data / "meta.json").read_text())
    meta["frame_contract"] = {"size": 32}
    (data / "meta.json").write_text(json.dumps(meta))
    train_tokenizer(tokenizer_settings(data, tmp_path / "tokenizer", steps=1))
    model = train_predictor(predictor_settings(data, tmp_path / "tokenizer", tmp_path / "run", steps=1))
    assert (model.frame_contract["size"], model.frame_contract["tasks"]) == (32, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"perceptual_weight": 0.1, "steps": 1, "evaluation_clips": 1, "batch_size": 1},
        {"pixel_weight": 1.0, "steps": 2},
        {"read_actions": False, "timescales": ("fast", "slow"), "steps": 2},
    ],
)
def test_options_of_the_predictor_train(tiny_data, tiny_tokenizer, tmp_path, changes):
    model = train_predictor(predictor_settings(tiny_data, tiny_tokenizer, tmp_path, **changes))
    assert (model.action_dim is None) == (changes.get("read_actions") is False)
    assert model.context_dim == 16 * len(changes.get("timescales", "1"))
    names = {name for row in read_lines(tmp_path / "metrics.jsonl") for name in row}
    for weight in ("perceptual", "pixel"):
        assert (f"train/{weight}" in names) == (f"{weight}_weight" in changes)
    assert not any("network" in name or "blocks.0.conv" in name for name in model.state_dict())


@pytest.mark.parametrize("temporal_downsample", [False, True])
def test_3d_tokenizer_with_fsq_trains(tiny_data, tmp_path, temporal_downsample):
    settings = tokenizer_settings(
        tiny_data,
        tmp_path,
        steps=2,
        use_3d_conv=True,
        temporal_downsample=temporal_downsample,
        quantizer="fsq",
        foreground_weight=0.0,
        motion_weight=0.0 if temporal_downsample else 0.1,
    )
    tokenizer = train_tokenizer(settings)
    assert tokenizer.temporal_downsample == temporal_downsample
    if temporal_downsample:
        with pytest.raises(ValueError, match="cannot learn motion: set motion_weight to 0"):
            train_tokenizer(tokenizer_settings(tiny_data, tmp_path / "moving", temporal_downsample=True))


def test_without_motion_short_episodes_are_enough(tmp_path):
    data = write_dataset(tmp_path / "data", [5] * 4)
    with pytest.raises(ValueError, match=r"no episode of 12 frames .* leave motion out"):
        train_tokenizer(tokenizer_settings(data, tmp_path / "run", steps=1))
    train_tokenizer(tokenizer_settings(data, tmp_path / "run", steps=1, motion_weight=0.0))


@given(step=st.integers(0, 999), warmup=st.integers(0, 500))
def test_learning_rate_rises_and_falls_with_the_step_alone(step, warmup):
    settings = RunSettings(steps=1000, warmup_steps=warmup, learning_rate=1.0)
    rate = learning_rate(step, settings)
    assert 0 < rate <= 1
    following = learning_rate(step + 1, settings)
    assert following > rate if step + 1 < warmup else following <= rate + 1e-12 or step < warmup
    assert math.isclose(learning_rate(999, settings), 0.1, abs_tol=1e-3)


def test_only_matrices_decay():
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
    module[0].weight.requires_grad_(True)
    frozen = torch.nn.Linear(2, 2).requires_grad_(False)
    module.append(frozen)
    decaying, plain = make_optimizer(module, RunSettings(weight_decay=0.5)).param_groups
    assert [p.shape for p in decaying["params"]] == [(3, 2)]
    assert (decaying["weight_decay"], plain["weight_decay"]) == (0.5, 0)
    assert len(plain["params"]) == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_absent_cuda_device_is_named():
    with pytest.raises(ValueError, match="no CUDA device"):
        make_accelerator(RunSettings(device="cuda"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"held_out_fraction": 1.0}, "held_out_fraction must lie between 0 and 1, got 1.0"),
        ({"device": "tpu"}, "device must be .* got 'tpu'"),
        ({"data": ()}, "names no rollout directory"),
        ({"horizons": (0, 1)}, r"horizons must be numbers of steps from 1 up, got \(0, 1\)"),
        ({"horizons": ()}, r"horizons must be numbers of steps from 1 up, got \(\)"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        (TrainPredictorSettings if "horizons" in changes else RunSettings)(**changes)


def test_clips_longer_than_the_episodes_are_refused_before_training(tiny_data, tmp_path):
    with pytest.raises(ValueError, match=r"no episode of 26 frames \(the longest has 25\)"):
        train_tokenizer(tokenizer_settings(tiny_data, tmp_path, clip_length=26))
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_metrics_of_steps_that_will_be_repeated_are_dropped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    log = MetricsLog(file, tmp_path / "board", step=0)
    for step in range(1, 6):
        log.write(step, {"train/loss": float(step)})
    log.close()
    with open(file, "a") as lines:
        lines.write('{"step": 6, "tra')
    MetricsLog(file, tmp_path / "board", step=3).close()
    assert curve(read_lines(file), "train/loss") == ([1, 2, 3], [1.0, 2.0, 3.0])
