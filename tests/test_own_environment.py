"""The commands in an environment that is not of dm_control: from collection to a policy, and what they print."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import small_frames_model
from tiny_worlds import ACTIONS, STEPS

from agents.cli import main
from agents.policies.algorithms import fitting_algorithm
from agents.training.policy_env import make_policy_env
from agents.training.policy_files import PolicyRecord
from agents.training.settings import PolicyEnvSettings
from agents.visualize.episodes import play_at_random
from agents.visualize.settings import GenerateSettings
from envs import RolloutDataset, make_env
from perceiver_obs import ActionEncoding, CausalPerceiverIO
from perceiver_obs.evaluation.features import encode_equal_length

WORLD = "tiny_worlds:TinyWorld-v0"
RETURN = "return 21.0 ± 0.0 over 2 episodes"  # 1 + 2 + … + 6, whatever it does
TRAINING = "--device cpu --total-frames 24 --eval-every 12 --eval-episodes 2 --learning-starts 4 --batch-size 4"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    small_frames_model(action_dim=6).save_pretrained(path)
    return path


def train(out: Path, model: Path, actions: str, options: str = "") -> int:
    line = f"train-policy --env {WORLD} --env-kwargs actions={actions} --size 32 --model {model} --out {out} {TRAINING}"
    return main(f"{line} --net-arch 8 --no-progress-bar {options}".split())


@pytest.mark.parametrize(
    ("actions", "algorithm"), [("box", "CrossQ"), ("discrete", "DQN"), ("multi-discrete", "PPO"), ("bits", "PPO")]
)
def test_a_policy_is_trained_and_evaluated(model, tmp_path, capsys, actions, algorithm):
    out = tmp_path / "policy"
    ppo = "--hyperparameters n_steps 12" if algorithm == "PPO" else ""
    assert train(out, model, actions, ppo) == 0
    printed = capsys.readouterr().out
    assert PolicyRecord.load(out).algorithm == algorithm
    assert ("CrossQ continuous actions only" in printed) == (algorithm != "CrossQ")
    assert f"train-policy: after 12 steps {RETURN}\n" in printed
    assert f"train-policy: {out}/policy.zip, {RETURN}\n" in printed

    assert train(out, model, actions, ppo) == 0  # all is done
    assert capsys.readouterr().out.endswith(f"train-policy: {out}/policy.zip, {RETURN}\n")

    line = f"evaluate --policy {out} --episodes 2 --device cpu --record {tmp_path / 'played'}"
    assert main(line.split()) == 0
    assert capsys.readouterr().out == f"evaluate: {WORLD}, {RETURN}: {out}/evaluation.json\n"
    assert json.loads((out / "evaluation.json").read_text())["task"] == WORLD
    assert RolloutDataset(tmp_path / "played").frame_contract.tasks == ["TinyWorld-v0"]


@pytest.mark.parametrize("actions", ACTIONS)
def test_a_policy_sees_the_contexts_that_its_recorded_episodes_have(model, tmp_path, actions):
    """So actions are read alike by wrapper and recorder, wherever choices begin."""
    settings = PolicyEnvSettings(
        env=WORLD, env_kwargs=(f"actions={actions}",), size=32, model=str(model), device="cpu", backend="torch"
    )
    venv = make_policy_env(settings, record=tmp_path / "data")
    venv.action_space.seed(1)
    seen = [venv.reset()[0]]
    for _ in range(STEPS):
        observation, _, ended, infos = venv.step(np.stack([venv.action_space.sample()]))
        seen.append(infos[0]["terminal_observation"] if ended[0] else observation[0])
    venv.close()
    perceiver, (episode,) = CausalPerceiverIO.from_pretrained(model), RolloutDataset(tmp_path / "data")
    np.testing.assert_allclose(seen, encode_equal_length(perceiver, [episode], torch.device("cpu"))[0], atol=1e-5)
    without = replace(episode, actions=np.zeros_like(episode.actions))
    assert np.abs(seen - encode_equal_length(perceiver, [without], torch.device("cpu"))[0]).max() > 1e-3


def test_the_state_is_a_baseline_and_has_to_be_there(model, tmp_path, capsys):
    assert train(tmp_path / "state", model, "box", "--observation state") == 0
    assert train(tmp_path / "none", model, "box", "--observation state --env-kwargs shows=grey") == 2
    assert f"{WORLD} shows no state beside its frames" in capsys.readouterr().err


def test_a_saved_policy_of_choices_collects(model, tmp_path):
    assert train(tmp_path / "policy", model, "discrete", "--observation state") == 0
    out = tmp_path / "data"
    line = f"collect --env {WORLD} --env-kwargs actions=discrete --size 32 --out {out} --episodes 1 --workers 1"
    assert main([*line.split(), "--policy", str(tmp_path / "policy" / "policy.zip")]) == 0
    assert RolloutDataset(out)[0].policy == "sb3:policy.zip"


@pytest.mark.parametrize("actions", ACTIONS)
def test_a_model_continues_a_fresh_episode(model, tmp_path, actions):
    out = tmp_path / "future"
    line = f"generate --env {WORLD} --env-kwargs actions={actions} --model {model} --out {out} --seed 3 --device cpu"
    assert main(f"{line} --num-context-frames 3 --num-frames 4".split()) == 0
    assert (out / "future.gif").stat().st_size > 0
    kwargs = [f"actions={actions}"]
    settings = GenerateSettings(env=WORLD, env_kwargs=tuple(kwargs), seed=3)
    episode = play_at_random(settings, CausalPerceiverIO.from_pretrained(model), 7)
    env = make_env(WORLD, kwargs, size=32)
    frames = [env.reset(seed=episode.seed)[0]]
    for action in ActionEncoding.from_space(env.action_space).decode(episode.actions):
        frames.append(env.step(np.asarray(action, env.action_space.dtype)[()])[0])
    np.testing.assert_array_equal(episode.pixels, frames)


def test_an_episode_is_recorded_or_fresh():
    with pytest.raises(ValueError, match="one of data or a fresh one of env, got 'runs/data' and 'Pendulum-v1'"):
        GenerateSettings(env="Pendulum-v1", data="runs/data")


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("SAC", "discrete", r"SAC takes continuous actions only, and Game has Discrete.* (?!.*SAC).*DQN.*PPO"),
        ("CrossQ", "bits", "CrossQ takes continuous actions only, and Game has MultiBinary.* (?!.*DQN).*PPO"),
        ("DQN", "multi-discrete", "DQN takes discrete actions only, and Game has MultiDiscrete"),
        ("DQN", "box", "DQN takes discrete actions only, and Game has Box"),
    ],
)
def test_algorithms_that_do_not_take_the_actions_are_refused(name, kind, message):
    with pytest.raises(ValueError, match=message):
        fitting_algorithm(name, ACTIONS[kind], "Game")


@pytest.mark.parametrize(
    "command", ["collect --task", "train-policy --task", "watch", "generate --model dmc-small --data None --task"]
)
def test_an_id_given_as_a_task_names_the_way(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*command.split(), "Pendulum-v1"]) == 2
    message = capsys.readouterr().err
    assert "--env Pendulum-v1" in message


def test_one_thread_unless_the_user_says_otherwise():
    code = "import os, agents.cli as c; c.main(['report', '--out', '/-']); "
    torch, variable = "import torch; print(torch.get_num_threads())", "print(os.environ['OMP_NUM_THREADS'])"
    environment = {"PATH": "", "PYTHONPATH": str(Path(__file__).parents[1])}
    for given, look, threads in (({}, torch, "1"), ({"OMP_NUM_THREADS": "2"}, variable, "2")):
        line = [sys.executable, "-c", code + look]
        done = subprocess.run(line, env=environment | given, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == threads, done.stderr
