"""Other environments under the wrappers, and other libraries around them."""

import re
import shlex
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import AddRenderObservation, ResizeObservation
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_models import tiny_model

from agents import VecPerceiverContext
from envs import make_dmc
from perceiver_obs import CausalPerceiverIO, PerceiverContextVectorWrapper, PerceiverContextWrapper

MODEL = tiny_model()


def make_ale() -> gym.Env:
    ale_py = pytest.importorskip("ale_py")
    gym.register_envs(ale_py)
    return ResizeObservation(gym.make("ALE/Pong-v5"), (64, 64))


def make_minigrid() -> gym.Env:
    pytest.importorskip("minigrid")
    env = gym.make("MiniGrid-Empty-5x5-v0", render_mode="rgb_array")
    return ResizeObservation(AddRenderObservation(env, render_only=True), (64, 64))


def make_walker() -> gym.Env:
    return make_dmc("walker-walk", render_quality="fast")


@pytest.mark.parametrize("make", [make_ale, make_minigrid], ids=["ale", "minigrid"])
def test_contexts_of_other_environments_are_those_of_their_frames(make):
    env = PerceiverContextWrapper(make(), MODEL, keep_pixels=True)
    env.action_space.seed(0)
    observations = [env.reset(seed=0)[0]]
    while len(observations) < 12:
        observations.append(env.step(env.action_space.sample())[0])
    env.close()
    video = torch.from_numpy(np.stack([o["pixels"] for o in observations])).permute(0, 3, 1, 2)[None]
    offline = MODEL.extract_context(video)[0].numpy()
    np.testing.assert_allclose(np.stack([o["context"] for o in observations]), offline, atol=1e-5, rtol=0)


def test_torchrl_finds_its_specs_kept():
    torchrl = pytest.importorskip("torchrl.envs")
    from torchrl.envs.utils import check_env_specs

    env = torchrl.GymWrapper(PerceiverContextWrapper(make_walker(), MODEL))
    check_env_specs(env)
    assert env.rollout(5)["next", "observation"].shape == (5, MODEL.context_dim)
    env.close()


@pytest.mark.parametrize("name", ["TQC", "CrossQ", "RecurrentPPO"])
def test_algorithms_of_sb3_contrib_learn_on_contexts(name):
    algorithm = getattr(pytest.importorskip("sb3_contrib"), name)
    venv = VecPerceiverContext(DummyVecEnv([make_walker]), MODEL)
    if name == "RecurrentPPO":
        policy = algorithm("MlpLstmPolicy", venv, n_steps=16, batch_size=16, n_epochs=1)
    else:
        policy = algorithm("MlpPolicy", venv, learning_starts=8, buffer_size=100, batch_size=8)
    policy.learn(20)
    assert policy.predict(venv.reset())[0].shape == (1, 6)
    venv.close()


def test_gymnasiums_vector_wrappers_lie_under_and_around_ours():
    inner = gym.wrappers.vector.RecordEpisodeStatistics(gym.vector.SyncVectorEnv([make_walker] * 2))
    venv = gym.wrappers.vector.NormalizeObservation(PerceiverContextVectorWrapper(inner, MODEL))
    contexts, _ = venv.reset(seed=0)
    for _ in range(3):
        contexts, _, _, _, _ = venv.step(venv.action_space.sample())
    assert contexts.shape == (2, MODEL.context_dim)
    assert np.isfinite(contexts).all()
    venv.close()


def test_the_hyperparameters_for_rl_zoo_train_a_policy_on_contexts(tmp_path, monkeypatch):
    train = pytest.importorskip("rl_zoo3.train").train
    page = Path(__file__).parent.parent / "docs" / "how-to" / "rl-zoo.md"
    (yaml,) = re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
    (command,) = re.findall(r"^python -m rl_zoo3.train (.*)$", page.read_text(), re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    Path("contexts.yml").write_text(yaml)
    quick = ["-n", "140", "--eval-freq", "-1", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["train", *shlex.split(command), *quick])
    train()
    (saved,) = Path("logs").rglob("dmc-cartpole-swingup-v0.zip")
    policy = SAC.load(saved, device="cpu")
    assert policy.observation_space.shape == (CausalPerceiverIO.from_pretrained("dmc-small").context_dim,)
    assert policy.num_timesteps == 140
