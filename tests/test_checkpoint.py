"""Checkpoints: a run that is killed, stopped or starved of disk goes on to what an unbroken one reaches."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_runs import predictor_settings, tokenizer_settings, write_dataset
from torch import nn

from agents.cli import main
from envs import RolloutDataset, RolloutWriter
from perceiver_obs.settings import settings_to_dict
from perceiver_obs.training.checkpoint import _digest as checkpoint_digest
from perceiver_obs.training.checkpoint import load_checkpoint, save_checkpoint, state_digest
from perceiver_obs.training.loop import make_optimizer
from perceiver_obs.training.settings import RunSettings
from perceiver_obs.training.train_predictor import train_predictor
from perceiver_obs.training.train_tokenizer import TokenizerStage, train_tokenizer

pytest_plugins = ("tiny_data",)
STEPS = 30  # time to be stopped in


def small_model() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def optimize(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(5, 3)).square().mean().backward()
        optimizer.step()


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    model, optimizer = small_model()
    optimize(model, optimizer, 3)
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, model, optimizer, step=3, settings={"steps": 10})
    return path


def test_restored_model_and_optimizer_go_on_alike(tmp_path):
    model, optimizer = small_model()
    optimize(model, optimizer, 3)
    save_checkpoint(tmp_path / "c", model, optimizer, step=3, settings={"steps": 10})
    other, other_optimizer = small_model()
    loaded = load_checkpoint(tmp_path / "c")
    assert (loaded.step, loaded.settings) == (3, {"steps": 10})
    loaded.restore(other, other_optimizer)
    optimize(model, optimizer, 4)
    optimize(other, other_optimizer, 4)
    assert state_digest(model) == state_digest(other)


class Former(nn.Module):
    """As an objective was before: with heads that nothing asked for, the last of the predictor's."""

    def __init__(self, regression: bool):
        super().__init__()
        self.predictor = nn.ModuleDict({"head": nn.Linear(3, 4)})
        if regression:
            self.predictor["regression"] = nn.Linear(4, 4)
        self.latent = nn.ModuleDict(
            {"motion" if regression else "dynamics": nn.Linear(4, 4), "pixels": nn.Linear(4, 2)}
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        dynamics, pixels = self.latent.values()
        return pixels(dynamics(self.predictor["head"](inputs)))


class Current(Former):
    FORMER_TENSORS = {"predictor.regression.": None, "latent.motion.": "latent.dynamics."}

    def __init__(self) -> None:
        super().__init__(regression=False)


def test_checkpoints_of_format_1_go_on_alike(tmp_path):
    """They numbered the optimiser's parameters, those of heads that are gone among them."""
    torch.manual_seed(0)
    former = Former(regression=True)
    optimizer = make_optimizer(former, RunSettings(learning_rate=0.1))
    optimize(former, optimizer, 3)
    tensors = {f"model.{name}": tensor for name, tensor in former.state_dict().items()}
    for number, entries in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in entries.items()}
    content = {"format_version": 1, "step": 3, "minutes": 0.0, "inputs": {}}
    content["settings"] = {"outline_weight": 1.0, "regression_weight": 0.0, "horizons": [0, 1, 2]}
    metadata = {name: json.dumps(value) for name, value in content.items()}
    save_file(tensors, tmp_path / "c", {**metadata, "digest": checkpoint_digest(tensors, metadata)})
    loaded = load_checkpoint(tmp_path / "c")
    assert loaded.settings == {"edge_weight": 1.0, "horizons": [1, 2]}
    current = Current()
    other = make_optimizer(current, RunSettings(learning_rate=0.1))
    loaded.restore(current, other)
    optimize(former, optimizer, 4)
    optimize(current, other, 4)
    for name, tensor in current.state_dict().items():
        assert torch.equal(tensor, former.state_dict()[name.replace("dynamics", "motion")]), name


def test_tensors_that_share_memory_are_saved(tmp_path):
    model = nn.Module()
    model.register_buffer("a", torch.arange(6.0))
    model.register_buffer("b", model.a[2:4])
    save_checkpoint(tmp_path / "c", model, torch.optim.AdamW([torch.zeros(1, requires_grad=True)]), 1, {})
    assert load_checkpoint(tmp_path / "c").tensors["model.b"].tolist() == [2, 3]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_anywhere_is_noticed(checkpoint, tmp_path, data):
    content = bytearray(checkpoint.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans(), label="cut short"):
        content = content[:place]
    else:
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    damaged = tmp_path / "damaged"
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match=r"cut short|damaged|format version|not a training checkpoint"):
        load_checkpoint(damaged)


def test_missing_foreign_and_other_versions_are_named(checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "nothing")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign")
    with pytest.raises(ValueError, match="not a training checkpoint"):
        load_checkpoint(tmp_path / "foreign")
    names = ("step", "minutes", "settings", "inputs", "digest")
    metadata = {"format_version": "7", **dict.fromkeys(names, "0")}
    save_file(load_file(checkpoint), tmp_path / "newer", metadata)
    with pytest.raises(ValueError, match="format version 7, expected 2"):
        load_checkpoint(tmp_path / "newer")


def test_full_disk_is_named_and_leaves_the_last_checkpoint(checkpoint, monkeypatch):
    before = checkpoint.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    model, optimizer = small_model()
    with pytest.raises(OSError, match=r"disk full while writing .*checkpoint.safetensors \(.* needed"):
        save_checkpoint(checkpoint, model, optimizer, step=4, settings={})
    assert checkpoint.read_bytes() == before
    assert sorted(os.listdir(checkpoint.parent)) == ["checkpoint.safetensors"]


def command(run: Path, options: dict) -> list[str]:
    file = run.with_suffix(".json")
    file.write_text(json.dumps(options))
    return ["train-tokenizer", "--settings", str(file)]


def kill_at_first_checkpoint(run: Path, options: dict) -> None:
    process = multiprocessing.get_context("forkserver").Process(target=main, args=(command(run, options),))
    process.start()
    while not (run / "checkpoint.safetensors").exists():
        assert process.is_alive()
        time.sleep(0.005)
    process.kill()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


@pytest.fixture(scope="module")
def unbroken(tiny_data, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "unbroken"
    train_tokenizer(tokenizer_settings(tiny_data, path, steps=STEPS))
    return path


def test_killed_tokenizer_run_ends_like_an_unbroken_one(tiny_data, unbroken, tmp_path):
    killed = tokenizer_settings(tiny_data, tmp_path / "killed", steps=STEPS)
    kill_at_first_checkpoint(tmp_path / "killed", settings_to_dict(killed))
    reached = load_checkpoint(tmp_path / "killed" / "checkpoint.safetensors").step
    assert 3 <= reached < STEPS
    assert reached % 3 == 0
    train_tokenizer(killed)
    assert_same_results(unbroken, tmp_path / "killed")


def test_a_run_that_is_asked_to_stop_ends_like_an_unbroken_one(tiny_data, unbroken, tmp_path, monkeypatch, capsys):
    stopped = tokenizer_settings(tiny_data, tmp_path / "stopped", steps=STEPS)
    batch = TokenizerStage.batch

    def batch_of_a_run_that_is_asked_to_stop(stage, step, rank):
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(stage, step, rank)

    monkeypatch.setattr(TokenizerStage, "batch", batch_of_a_run_that_is_asked_to_stop)
    assert main(command(tmp_path / "stopped", settings_to_dict(stopped))) == 128 + signal.SIGTERM
    reached = load_checkpoint(tmp_path / "stopped" / "checkpoint.safetensors").step
    assert 0 < reached < STEPS
    assert f"stopped at step {reached} of {STEPS}" in capsys.readouterr().err
    monkeypatch.setattr(TokenizerStage, "batch", batch)
    train_tokenizer(stopped)
    assert_same_results(unbroken, tmp_path / "stopped")


def test_predictor_run_stopped_by_time_ends_like_an_unbroken_one(tiny_data, tiny_tokenizer, tmp_path, capsys):
    train_predictor(predictor_settings(tiny_data, tiny_tokenizer, tmp_path / "unbroken", dropout=0.1))
    broken = predictor_settings(tiny_data, tiny_tokenizer, tmp_path / "broken", dropout=0.1, max_minutes=0.0)
    capsys.readouterr()
    train_predictor(broken)
    assert "1 of 6 (time limit)" in capsys.readouterr().out
    train_predictor(broken)
    assert load_checkpoint(tmp_path / "broken" / "checkpoint.safetensors").step == 1
    broken.max_minutes = None
    train_predictor(broken)
    assert_same_results(tmp_path / "unbroken", tmp_path / "broken")


def assert_same_results(one: Path, other: Path) -> None:
    """Bit-identical weights, optimiser and losses."""
    first, second = (load_checkpoint(run / "checkpoint.safetensors") for run in (one, other))
    assert first.step == second.step
    assert first.tensors.keys() == second.tensors.keys()
    assert all(torch.equal(tensor, second.tensors[name]) for name, tensor in first.tensors.items())
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, other)]
    losses = [{row["step"]: row["train/loss"] for row in each if "train/loss" in row} for each in rows]
    assert losses[0] == losses[1]
    steps = [row["step"] for row in rows[1] if "train/loss" in row]
    assert steps == sorted(set(steps))


def test_resuming_with_other_settings_names_the_setting(tiny_data, tiny_tokenizer):
    changed = tokenizer_settings(tiny_data, tiny_tokenizer, code_dim=16)
    with pytest.raises(ValueError, match=r"begun with other settings \(code_dim was 8, is 16\)"):
        train_tokenizer(changed)


def test_a_finished_run_goes_on_when_its_steps_are_raised(tiny_data, tmp_path):
    train_tokenizer(tokenizer_settings(tiny_data, tmp_path, steps=2))
    train_tokenizer(tokenizer_settings(tiny_data, tmp_path, steps=5))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4, 5]
    assert load_checkpoint(tmp_path / "checkpoint.safetensors").step == 5
    assert json.loads((tmp_path / "settings.json").read_text())["steps"] == 5
    assert json.loads((tmp_path / "section.json").read_text())["facts"]["steps"] == "5"


def test_resuming_on_other_data_or_tokenizer_is_refused(tiny_data, tiny_tokenizer, tmp_path):
    grown = write_dataset(tmp_path / "data", [12, 12], size=32)
    train_tokenizer(tokenizer_settings(grown, tmp_path / "tokenizer", steps=2))
    read = RolloutDataset(grown)
    changed = [vars(episode) | {"pixels": 255 - episode.pixels} for episode in read]
    RolloutWriter(grown, read.meta).write_episode(None, **changed[0])
    with pytest.raises(ValueError, match="begun with other data"):
        train_tokenizer(tokenizer_settings(grown, tmp_path / "tokenizer", steps=2))
    shutil.rmtree(grown)
    for episode in changed:  # other frames in files of the same names and sizes
        RolloutWriter(grown, read.meta).write_episode(None, **episode)
    with pytest.raises(ValueError, match="begun with other data"):
        train_tokenizer(tokenizer_settings(grown, tmp_path / "tokenizer", steps=2))
    predictor = predictor_settings(tiny_data, tmp_path / "swapped", tmp_path / "model", steps=1)
    shutil.copytree(tiny_tokenizer, tmp_path / "swapped")
    train_predictor(predictor)
    train_tokenizer(tokenizer_settings(tiny_data, tmp_path / "other", steps=1, seed=1))
    shutil.copy(tmp_path / "other" / "model.safetensors", tmp_path / "swapped" / "model.safetensors")
    with pytest.raises(ValueError, match="begun with other tokenizer"):
        train_predictor(predictor)


def test_checkpoint_of_other_settings_is_refused_even_without_the_settings_file(tiny_data, tmp_path):
    train_tokenizer(tokenizer_settings(tiny_data, tmp_path, steps=2))
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"begun with other settings \(learning_rate"):
        train_tokenizer(tokenizer_settings(tiny_data, tmp_path, steps=2, learning_rate=1.0))


def test_finished_run_is_left_as_it_is(tiny_data, tiny_tokenizer):
    before = {file: file.stat().st_mtime_ns for file in tiny_tokenizer.rglob("*") if file.is_file()}
    train_tokenizer(tokenizer_settings(tiny_data, tiny_tokenizer))
    assert before == {file: file.stat().st_mtime_ns for file in tiny_tokenizer.rglob("*") if file.is_file()}


def test_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(tiny_data, tmp_path):
    wild = {"learning_rate": 1e18, "warmup_steps": 0}
    diverging = tokenizer_settings(tiny_data, tmp_path, steps=30, checkpoint_every=1, **wild)
    with pytest.raises(FloatingPointError, match=r"became (nan|inf) at step \d+; the last good checkpoint is"):
        train_tokenizer(diverging)
    checkpoint = load_checkpoint(tmp_path / "checkpoint.safetensors")
    assert 0 < checkpoint.step < 30
