"""Training and evaluating policies on real tasks: what a run leaves behind, resuming it, and what it refuses."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import tyro
from gymnasium import spaces
from sb3_contrib import CrossQ
from stable_baselines3 import SAC
from stable_baselines3.common.save_util import load_from_pkl
from tiny_models import tiny_model
from tiny_runs import REPEAT, kill_at_second_evaluation, policy_settings

from agents import (
    EvaluateSettings,
    PolicyEnvSettings,
    TrainPolicySettings,
    WrongPerceiver,
    evaluate,
    load_policy,
    make_policy_env,
    train_policy,
)
from agents.policies.algorithms import fitting_algorithm
from agents.training.policy_files import PolicyRecord, read_curve
from envs import make_dmc
from envs.collection.sb3_policy import load_sb3
from perceiver_obs import CausalPerceiverIO, PerceiverContextWrapper


@pytest.fixture(scope="module")
def perceiver(tmp_path_factory):
    """A directory with a model of random weights that reads cartpole's actions."""
    directory = tmp_path_factory.mktemp("perceiver")
    tiny_model(action_dim=1).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def trained(perceiver, tmp_path_factory):
    """The settings of a finished run of CrossQ on contexts."""
    settings = policy_settings(perceiver, tmp_path_factory.mktemp("trained"))
    assert train_policy(settings) == settings.out / "policy.zip"
    return settings


def test_a_run_leaves_policy_record_curve_checkpoint_and_scalars(trained):
    record = json.loads((trained.out / "policy.json").read_text())
    assert record["fingerprint"] == CausalPerceiverIO.from_pretrained(trained.model).fingerprint
    assert record["settings"]["task"] == "cartpole-swingup"
    points = read_curve(trained.out / "curve.jsonl")
    assert [(point.steps, point.frames) for point in points] == [(24, 24 * REPEAT), (48, 48 * REPEAT)]
    assert all(len(point.returns) == 1 and np.isfinite(point.mean_return) for point in points)
    assert [path.name for path in (trained.out / "checkpoints").iterdir()] == ["step-48"]
    assert list((trained.out / "tensorboard").glob("*/events*"))
    assert not list(trained.out.rglob("*.tmp*"))


def test_what_is_left_open_is_what_learned_fastest(trained):
    record = PolicyRecord.load(trained.out)
    chosen = {name: record.settings[name] for name in ("algorithm", "learning_rate", "hyperparameters")}
    assert chosen == {"algorithm": "CrossQ", "learning_rate": 1e-3, "hyperparameters": {"ent_coef": "auto_0.1"}}
    policy, venv, _ = load_policy(trained.out, device="cpu")
    venv.close()
    assert isinstance(policy, CrossQ)
    assert (policy.learning_rate, policy.ent_coef) == (1e-3, "auto_0.1")
    mine = TrainPolicySettings(learning_rate=1e-4, hyperparameters={"gamma": 0.9, "ent_coef": "auto"})
    assert mine.completed("CrossQ").learning_rate == 1e-4
    assert mine.completed("CrossQ").hyperparameters == {"gamma": 0.9, "ent_coef": "auto"}
    assert TrainPolicySettings().completed("PPO").learning_rate == 3e-4
    assert TrainPolicySettings().completed("PPO").hyperparameters == {}


@pytest.mark.parametrize(
    ("space", "pixels", "algorithm"),
    [
        (spaces.Box(-1, 1, (2,)), False, "CrossQ"),
        (spaces.Box(-1, 1, (2,)), True, "SAC"),
        (spaces.Discrete(3), False, "DQN"),
        (spaces.Discrete(3), True, "DQN"),
        (spaces.MultiBinary(3), False, "PPO"),
    ],
)
def test_the_algorithm_fits_actions_and_observation(space, pixels, algorithm):
    assert fitting_algorithm(None, space, "Game", pixels) == algorithm


def test_a_run_of_an_earlier_version_goes_on_as_it_was_begun(perceiver, tmp_path):
    """When nothing was said, it was SAC; the record had another word for its provenance and knew fewer settings."""
    begun = policy_settings(
        perceiver, tmp_path, algorithm="SAC", total_frames=24 * REPEAT, hyperparameters={"tau": 0.1}
    )
    train_policy(begun)
    record = json.loads((tmp_path / "policy.json").read_text())
    assert record["provenance"]["mujoco"]
    record["made_with"] = record.pop("provenance")
    del record["settings"]["fit"]
    (tmp_path / "policy.json").write_text(json.dumps(record))
    policy = train_policy(policy_settings(perceiver, tmp_path, total_frames=30 * REPEAT))
    assert isinstance(load_sb3(policy), SAC)
    settings = PolicyRecord.load(tmp_path).settings
    assert (settings["algorithm"], settings["learning_rate"], settings["hyperparameters"]) == (
        "SAC",
        3e-4,
        {"tau": 0.1},
    )
    with pytest.raises(ValueError, match=r"other settings \(algorithm was 'SAC', is 'CrossQ'\)"):
        train_policy(policy_settings(perceiver, tmp_path, algorithm="CrossQ", total_frames=30 * REPEAT))
    with pytest.raises(ValueError, match=r"other settings \(hyperparameters was {'tau': 0.1}, is {'tau': 0.2}\)"):
        train_policy(policy_settings(perceiver, tmp_path, hyperparameters={"tau": 0.2}, total_frames=30 * REPEAT))


def test_evaluation_is_that_of_the_policy_in_the_environment(trained, tmp_path):
    """The same deterministic episodes, played by hand through the single wrapper."""
    out = tmp_path / "result.json"
    result = evaluate(EvaluateSettings(policy=trained.out, episodes=2, seed=7, device="cpu", out=out))
    policy, venv, _ = load_policy(trained.out, device="cpu")
    venv.close()
    env = make_dmc("cartpole-swingup", action_repeat=REPEAT, render_quality="fast")
    env = PerceiverContextWrapper(env, trained.model, device="cpu")
    returns = []
    for seed in (7, None):
        context, _ = env.reset(seed=seed)
        total, ended = 0.0, False
        while not ended:
            action, _ = policy.predict(context, deterministic=True)
            context, reward, terminated, truncated, _ = env.step(action)
            total, ended = total + reward, terminated or truncated
        returns.append(total)
    env.close()
    np.testing.assert_allclose(result.returns, returns, atol=1e-3)
    assert result.lengths == [20, 20]
    assert result.frames == 2 * 1000
    assert result.mean == pytest.approx(np.mean(result.returns))
    assert json.loads(out.read_text())["returns"] == result.returns


@pytest.mark.parametrize(
    ("observation", "algorithm", "hyperparameters"),
    [
        ("state", "PPO", {"n_steps": 24}),
        ("pixels", "TD3", {}),
        ("pixels", "CrossQ", {}),
        ("context", "TQC", {"gamma": 0.9, "n_steps": 3}),
    ],
)
def test_baselines_and_other_algorithms_share_the_harness(perceiver, tmp_path, observation, algorithm, hyperparameters):
    settings = policy_settings(
        perceiver,
        tmp_path,
        observation=observation,
        algorithm=algorithm,
        hyperparameters=hyperparameters,
        total_frames=24 * REPEAT,
        buffer_size=100,
    )
    policy = train_policy(settings)
    assert [point.steps for point in read_curve(tmp_path / "curve.jsonl")] == [24]
    result = evaluate(EvaluateSettings(policy=policy, episodes=1, device="cpu"))
    assert result.observation == observation
    assert (result.fingerprint is None) == (observation != "context")
    assert (tmp_path / "evaluation.json").exists()


def test_what_the_policy_sees():
    common = {"task": "cartpole-swingup", "action_repeat": REPEAT, "render_quality": "fast"}
    pixels = make_policy_env(PolicyEnvSettings(observation="pixels", **common))
    assert pixels.observation_space.shape == (9, 64, 64)
    state = make_policy_env(PolicyEnvSettings(observation="state", **common))
    reference = make_dmc("cartpole-swingup", action_repeat=REPEAT, state_in_info=True)
    for venv in (pixels, state):
        venv.seed(3)
    frames, states = pixels.reset(), state.reset()
    frame, info = reference.reset(seed=3)
    np.testing.assert_array_equal(states[0], info["state"])
    assert not frames[0, :6].any()
    np.testing.assert_allclose(frames[0, 6:].mean(), frame.mean(), atol=10)
    action = np.array([0.5], np.float32)
    np.testing.assert_array_equal(state.step([action])[0][0], reference.step(action)[4]["state"])
    for env in (pixels, state, reference):
        env.close()


def test_environments_side_by_side(perceiver):
    settings = PolicyEnvSettings(
        task="cartpole-swingup", model=perceiver, action_repeat=REPEAT, render_quality="fast", device="cpu"
    )
    venv = make_policy_env(settings, num_envs=2)
    venv.seed(0)
    contexts = venv.reset()
    single = make_policy_env(settings)
    single.seed(0)
    np.testing.assert_allclose(contexts[:1], single.reset(), atol=1e-5)
    venv.close()
    single.close()


def test_onnx_runtime_gives_policies_the_same_contexts(action_model, tmp_path):
    action_model.save_pretrained(tmp_path)
    common = {"task": "cartpole-swingup", "model": str(tmp_path), "action_repeat": REPEAT, "render_quality": "fast"}
    contexts = []
    for backend in ("torch", "onnx"):
        venv = make_policy_env(PolicyEnvSettings(device="cpu", backend=backend, **common))
        assert venv.encoder.backend == backend
        venv.seed(0)
        contexts.append([venv.reset(), *(venv.step(np.full((1, 1), 0.5, np.float32))[0] for _ in range(3))])
        venv.close()
    np.testing.assert_allclose(*contexts, atol=1e-4)


def test_a_killed_run_resumes_from_its_last_checkpoint(perceiver, tmp_path, monkeypatch):
    """Killed after its second checkpoint was written, before the curve had that point."""
    settings = policy_settings(perceiver, tmp_path)
    kill_at_second_evaluation(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train_policy(settings)
    monkeypatch.undo()
    assert not (tmp_path / "policy.zip").exists()
    half_written = tmp_path / "checkpoints" / "step-900.tmp"
    half_written.mkdir()
    (half_written / "policy.zip").write_bytes(b"half")
    longer = replace(settings, total_frames=72 * REPEAT)
    before = torch.get_rng_state()
    path = train_policy(longer)
    assert not torch.equal(before, torch.get_rng_state())
    steps = [point.steps for point in read_curve(tmp_path / "curve.jsonl")]
    assert steps == [24, 49, 72], "the lost point is measured again, none twice"
    policy, venv, _ = load_policy(path, device="cpu")
    venv.close()
    assert policy.num_timesteps == 72
    assert [each.name for each in (tmp_path / "checkpoints").iterdir()] == ["step-72"]
    changed = path.stat().st_mtime_ns
    assert train_policy(longer) == path
    assert path.stat().st_mtime_ns == changed, "a finished run returns at once"


def test_replay_buffers_survive_resuming(trained, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(trained.out, out)
    train_policy(replace(trained, out=out, total_frames=52 * REPEAT))
    old = load_from_pkl(trained.out / "checkpoints" / "step-48" / "replay_buffer.pkl")
    new = load_from_pkl(out / "checkpoints" / "step-52" / "replay_buffer.pkl")
    # SB3 stores a step's transition after its callbacks, so that a checkpoint lacks the newest.
    assert (old.pos, old.buffer_size) == (47, 48)
    assert new.full
    assert new.pos == 47 + 4 - 48
    np.testing.assert_array_equal(new.observations[3:47], old.observations[3:47])


def test_another_perceiver_is_refused(trained, tmp_path):
    other = tmp_path / "other"
    tiny_model(action_dim=1, seed=9).save_pretrained(other)
    with pytest.raises(WrongPerceiver, match="fingerprint"):
        evaluate(EvaluateSettings(policy=trained.out, model=str(other), device="cpu"))
    with pytest.raises(WrongPerceiver, match="fingerprint"):
        train_policy(replace(trained, model=str(other)))
    moved = tmp_path / "moved"
    shutil.copytree(trained.model, moved)
    settings = EvaluateSettings(policy=trained.out, model=str(moved), episodes=1, device="cpu", out=tmp_path / "e.json")
    assert evaluate(settings).lengths == [20]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "SACK"}, r"unknown algorithm 'SACK'; available are .*SAC.*TQC"),
        ({"algorithm": "DQN"}, r"DQN takes discrete actions only, .* available are (?!.*DQN).*PPO.*SAC"),
        ({"algorithm": "QRDQN"}, r"QRDQN takes discrete actions only, .* available are (?!.*DQN).*PPO.*SAC"),
        ({"total_frames": 0}, "total_frames must be 1 or more, got 0"),
        ({"num_envs": 0}, "num_envs must be 1 or more, got 0"),
        ({"task": "walker-fly"}, "walker-fly"),
        ({"size": 32}, r"\(64, 64, 3\).*\(32, 32, 3\)"),
        ({"hyperparameters": {"gama": 0.9}}, "CrossQ does not take the hyperparameters.*gama"),
    ],
)
def test_settings_that_cannot_work_are_named(perceiver, tmp_path, changes, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        train_policy(policy_settings(perceiver, tmp_path, **changes))
    assert not list(tmp_path.iterdir()), "the directory is free for the corrected settings"


def test_a_directory_with_another_run_is_refused(trained):
    with pytest.raises(ValueError, match=r"other settings \(batch_size was 8, is 16, seed was 0, is 1\)"):
        train_policy(replace(trained, seed=1, batch_size=16))


def test_damaged_or_missing_files_are_named(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"policy\.json is missing"):
        evaluate(EvaluateSettings(policy=tmp_path))
    shutil.copy(trained.out / "policy.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"policy\.zip is missing"):
        evaluate(EvaluateSettings(policy=tmp_path))
    record = json.loads((tmp_path / "policy.json").read_text())
    for text, message in [
        (json.dumps(record)[:-30], "not a record of a policy"),
        (json.dumps(record | {"format_version": 99}), "format version 99"),
        ("[]", "not a record of a policy"),
    ]:
        (tmp_path / "policy.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            evaluate(EvaluateSettings(policy=tmp_path))
    with pytest.raises(ValueError, match="episodes must be 1 or more, got 0"):
        evaluate(EvaluateSettings(policy=trained.out, episodes=0))


@pytest.mark.parametrize("settings", [TrainPolicySettings, EvaluateSettings])
def test_every_setting_is_explained_on_the_command_line(settings, capsys):
    with pytest.raises(SystemExit):
        tyro.cli(settings, args=["--help"])
    helptext = " ".join(capsys.readouterr().out.replace("│", " ").split())
    helptext = re.sub(r", --no-[a-z-]+", "", helptext)
    for name in settings.__dataclass_fields__:
        option = "--" + name.replace("_", "-") + " "  # other texts may end with its name
        described = helptext.split(option, 1)[1].split(" --", 1)[0]
        assert len(described.split("(default", 1)[0].split()) > 3, f"{option} has no explanation"
