"""`VecPerceiverContext` under SB3's vector environments, wrappers, callbacks and algorithms."""

import importlib
from functools import partial

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TransformObservation
from moving_square import MovingSquare
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecFrameStack,
    VecNormalize,
    VecTransposeImage,
)
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper
from staggered_envs import LENGTHS, make_short, make_shorts
from staggered_episodes import SEED, all_alone, assert_same_episodes, random_actions
from tiny_models import tiny_model

from agents import VecPerceiverContext
from agents.wrappers.vec_pca import VecFramePCA
from envs import make_dmc
from perceiver_obs.evaluation.frame_pca import FramePCA

ROWS = len(LENGTHS)


@pytest.fixture(scope="module")
def frames():
    """The three staggered environments as an SB3 vector environment of frames; made once, reset often."""
    venv = DummyVecEnv(make_shorts())
    yield venv
    venv.close()


def play(venv, actions):
    """The contexts by row, episode and step, terminal observations included."""
    venv.seed(SEED)
    rows = [[[context]] for context in venv.reset()]
    for action in actions:
        contexts, _, dones, infos = venv.step(action)
        for row in range(ROWS):
            assert ("terminal_observation" in infos[row]) == dones[row]
            if dones[row]:
                rows[row][-1].append(infos[row]["terminal_observation"])
                rows[row].append([contexts[row]])
            else:
                rows[row][-1].append(contexts[row])
    return rows


@pytest.mark.parametrize("action_dim", [None, 1])
def test_every_row_gets_the_contexts_of_its_environment_alone(frames, action_dim):
    venv = VecPerceiverContext(frames, tiny_model(action_dim))
    assert_same_episodes(play(venv, random_actions()), all_alone(action_dim))


def test_workers_in_other_processes_and_channels_first_give_the_same():
    workers = SubprocVecEnv(make_shorts(), start_method="forkserver")
    venv = VecPerceiverContext(VecTransposeImage(workers), tiny_model(action_dim=1))
    assert not workers.has_attr("encoder"), "workers hold no model"
    assert_same_episodes(play(venv, random_actions()), all_alone(1))
    venv.close()


def mirrored_too(make):
    """The environment with a Dict observation: its frames under "pixels", and their mirror images."""
    image = spaces.Box(0, 255, (64, 64, 3), np.uint8)
    space = spaces.Dict({"pixels": image, "mirrored": image})
    return TransformObservation(make(), lambda f: {"pixels": f, "mirrored": f[:, ::-1]}, space)


def assert_terminal_contexts(venv, plain):
    """Plays until an episode has ended; the contexts of `venv`'s Dict observations are those of `plain`."""
    for each in (venv, plain):
        each.seed(SEED)
    observations, contexts = venv.reset(), plain.reset()
    np.testing.assert_array_equal(observations["context"], contexts)
    for action in random_actions()[: LENGTHS[0]]:
        observations, _, dones, infos = venv.step(action)
        contexts, _, _, plain_infos = plain.step(action)
        np.testing.assert_array_equal(observations["context"], contexts)
    assert dones.tolist() == [True, False, False]
    terminal = infos[0]["terminal_observation"]
    assert terminal in venv.observation_space
    np.testing.assert_array_equal(terminal["context"], plain_infos[0]["terminal_observation"])


@pytest.mark.parametrize("transposed", [False, True])
def test_keep_pixels_keeps_the_frames_as_they_come(frames, transposed):
    below = DummyVecEnv(make_shorts())
    venv = VecPerceiverContext(VecTransposeImage(below) if transposed else below, tiny_model(), keep_pixels=True)
    assert venv.observation_space["pixels"].shape == ((3, 64, 64) if transposed else (64, 64, 3))
    assert_terminal_contexts(venv, VecPerceiverContext(frames, tiny_model()))
    below.close()


def test_dict_observations_pass_the_other_entries_through(frames):
    below = DummyVecEnv([partial(mirrored_too, make) for make in make_shorts()])
    venv = VecPerceiverContext(below, tiny_model(), pixels_key="pixels")
    assert set(venv.observation_space) == {"context", "mirrored"}
    assert_terminal_contexts(venv, VecPerceiverContext(frames, tiny_model()))
    below.close()


def test_what_it_refuses(frames):
    model = tiny_model()
    large = DummyVecEnv([partial(make_dmc, "cartpole-swingup", size=84, render_quality="fast")])
    with pytest.raises(ValueError, match=r"\(64, 64, 3\).*\(84, 84, 3\)"):
        VecPerceiverContext(large, model)
    stacked = VecFrameStack(frames, 3)
    with pytest.raises(ValueError, match=r"\(64, 64, 3\).*\(64, 64, 9\)"):
        VecPerceiverContext(stacked, model)
    contexts = VecPerceiverContext(frames, model)
    with pytest.raises(TypeError, match=r"uint8.*float32"):
        VecPerceiverContext(contexts, model)


class Forgetful(VecEnvWrapper):
    """Gives no last observations, as environments that reset their rows in their own way."""

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        observations, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            info.pop("terminal_observation", None)
        return observations, rewards, dones, infos


def test_a_missing_terminal_observation_is_named_with_its_row():
    venv = Forgetful(DummyVecEnv([partial(MovingSquare, length=length) for length in (4, 2)]))
    pca = FramePCA(*(torch.zeros(3 * 64 * 64 * 3, *more) for more in ((), (1,))), torch.ones(1), (64, 64, 3))
    for features in (VecPerceiverContext(venv, tiny_model()), VecFramePCA(venv, pca)):
        features.reset()
        features.step(np.zeros((2, 1), np.float32))
        with pytest.raises(
            ValueError, match=r"environment 1 ended, but infos\[1\]\['terminal_observation'\].*DummyVecEnv"
        ):
            features.step(np.zeros((2, 1), np.float32))


def test_rl_zoo_builds_it_from_its_vec_env_wrapper_key(frames, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    ((dotted, kwargs),) = {"agents.VecPerceiverContext": {"model": str(tmp_path)}}.items()
    module, _, cls = dotted.rpartition(".")
    venv = getattr(importlib.import_module(module), cls)(frames, **kwargs)
    assert venv.reset().shape == (ROWS, venv.encoder.context_dim)


def test_vec_normalize_goes_around_it_and_loads_again(frames, tmp_path):
    model, actions = tiny_model(), random_actions()
    normalized = VecNormalize(VecPerceiverContext(frames, model))
    normalized.seed(SEED)
    normalized.reset()
    for action in actions[:6]:
        observations, *_ = normalized.step(action)
    normalized.save(str(tmp_path / "statistics.pkl"))
    assert (tmp_path / "statistics.pkl").stat().st_size < 20_000, "statistics alone are saved, no weights"
    raw = normalized.get_original_obs()
    loaded = VecNormalize.load(str(tmp_path / "statistics.pkl"), VecPerceiverContext(frames, model))
    np.testing.assert_allclose(loaded.normalize_obs(raw), observations, atol=1e-6)
    loaded.training = False
    loaded.seed(SEED)
    assert loaded.reset().shape == (ROWS, model.context_dim)


@pytest.mark.parametrize(
    ("algorithm", "arguments"),
    [(PPO, {"n_steps": 8, "batch_size": 8}), (SAC, {"learning_starts": 8, "batch_size": 8})],
)
def test_algorithms_learn_and_eval_callback_follows(tmp_path, algorithm, arguments):
    model = tiny_model(action_dim=1)

    def make_venv(lengths):
        makers = [lambda length=length: Monitor(make_short(length)) for length in lengths]
        return VecPerceiverContext(DummyVecEnv(makers), model)

    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    venv, eval_venv = make_venv((5, 9)), make_venv((6,))
    callback = EvalCallback(
        eval_venv,
        n_eval_episodes=2,
        eval_freq=8,
        log_path=str(tmp_path),
        best_model_save_path=str(tmp_path),
        verbose=0,
    )
    policy = algorithm("MlpPolicy", venv, seed=0, device="cpu", **arguments)
    policy.learn(32, callback=callback)
    evaluations = np.load(tmp_path / "evaluations.npz")
    assert evaluations["ep_lengths"].tolist() == [[6, 6]] * 2
    assert np.isfinite(evaluations["results"]).all()
    loaded = algorithm.load(tmp_path / "best_model.zip", env=venv)
    contexts = venv.reset()
    assert loaded.predict(contexts)[0].shape == (2, 1)
    for name, tensor in venv.encoder.model.state_dict().items():
        np.testing.assert_array_equal(tensor, before[name])
    venv.close()
    eval_venv.close()


def test_terminal_contexts_reach_the_replay_buffer():
    """SAC bootstraps from the last context of a truncated episode, not from the next episode's first."""
    venv = VecPerceiverContext(DummyVecEnv([lambda: Monitor(make_short(4))]), tiny_model())
    policy = SAC("MlpPolicy", venv, seed=0, learning_starts=100, buffer_size=16, device="cpu")
    policy.learn(8)
    buffer = policy.replay_buffer
    np.testing.assert_array_equal(buffer.next_observations[:3], buffer.observations[1:4])
    assert buffer.dones[3, 0] == 1
    assert buffer.timeouts[3, 0] == 1
    assert np.abs(buffer.next_observations[3] - buffer.observations[4]).max() > 1e-4
    venv.close()
