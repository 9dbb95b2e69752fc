"""A policy carries the fingerprint of the Perceiver that made its contexts through SB3's own save and load."""

import pickle
import warnings
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from drawn_env import DrawnEnv
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_checker import check_env as check_sb3
from stable_baselines3.common.vec_env import DummyVecEnv, VecExtractDictObs, VecMonitor, VecNormalize
from tiny_models import tiny_model

from agents import VecPerceiverContext
from envs.collection.named_policies import make_policy
from envs.collection.policies import PolicyContext
from perceiver_obs import PerceiverContextVectorWrapper, PerceiverContextWrapper
from perceiver_obs.context_space import ContextSpace


@pytest.fixture(scope="module")
def models():
    return tiny_model(seed=0), tiny_model(seed=1)


def make_wrapped(model, **changes):
    return DummyVecEnv([lambda: PerceiverContextWrapper(DrawnEnv(), model, **changes)])


def make_vec(model, **changes):
    return VecPerceiverContext(DummyVecEnv([DrawnEnv]), model, **changes)


def make_monitored(model, **changes):
    return VecMonitor(make_vec(model, **changes))


def make_normalized(model, **changes):
    return VecNormalize(make_vec(model, **changes))


def make_extracted(model):
    return VecExtractDictObs(make_vec(model, keep_pixels=True), "context")


def ppo(venv, policy="MlpPolicy"):
    return PPO(policy, venv, n_steps=4, batch_size=4, policy_kwargs={"net_arch": [4]}, device="cpu")


@pytest.mark.parametrize("make", [make_wrapped, make_vec, make_monitored, make_normalized, make_extracted])
def test_contexts_of_another_perceiver_are_refused(models, tmp_path, make):
    one, other = models
    ppo(make(one)).save(tmp_path / "policy")
    same = make(one)
    loaded = PPO.load(tmp_path / "policy", env=same, device="cpu")
    assert loaded.predict(same.reset())[0].shape == (1, 2)
    unlike = f"fingerprint {one.fingerprint}.* != .*fingerprint {other.fingerprint}"
    with pytest.raises(ValueError, match=unlike):
        PPO.load(tmp_path / "policy", env=make(other), device="cpu")
    alone = PPO.load(tmp_path / "policy", device="cpu")
    assert alone.observation_space.fingerprint == one.fingerprint
    with pytest.raises(ValueError, match=unlike):
        alone.set_env(make(other))
    alone.set_env(same)
    alone.learn(4)


def test_it_holds_for_contexts_beside_pixels(models, tmp_path):
    one, other = models
    ppo(make_vec(one, keep_pixels=True), "MultiInputPolicy").save(tmp_path / "policy")
    PPO.load(tmp_path / "policy", env=make_wrapped(one, keep_pixels=True), device="cpu")
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        PPO.load(tmp_path / "policy", env=make_vec(other, keep_pixels=True), device="cpu")


def test_policies_that_were_saved_without_a_fingerprint_still_load(models, tmp_path):
    plain = gym.spaces.Box(-np.inf, np.inf, (32,), np.float32)
    venv = make_vec(models[0])
    venv.observation_space = plain
    ppo(venv).save(tmp_path / "policy")
    loaded = PPO.load(tmp_path / "policy", env=make_vec(models[1]), device="cpu")
    assert type(loaded.observation_space) is gym.spaces.Box


def test_a_space_is_equal_to_those_that_may_hold_the_same():
    space = ContextSpace(3, "abc")
    box = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    assert space == ContextSpace(3, "abc") == pickle.loads(pickle.dumps(space))
    assert pickle.loads(pickle.dumps(space)).fingerprint == "abc"
    assert space == box
    assert box == space
    assert space != ContextSpace(3, "abd")
    assert space != ContextSpace(4, "abc")
    assert gym.spaces.Dict(context=space) != gym.spaces.Dict(context=ContextSpace(3, "abd"))
    assert "fingerprint abc" in repr(space)


@pytest.mark.parametrize("cls", [SyncVectorEnv, AsyncVectorEnv])
def test_gymnasium_takes_it_for_a_box(models, cls):
    model = models[0]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(infinity|Inf|spec|render).*")
        check_env(PerceiverContextWrapper(DrawnEnv(), model), skip_render_check=True)
        check_sb3(PerceiverContextWrapper(DrawnEnv(), model))
    venv = cls([partial(wrap, model)] * 2)
    assert venv.single_observation_space.fingerprint == model.fingerprint
    contexts, _ = venv.reset(seed=0)
    assert contexts.shape == (2, 32)
    venv.close()
    outer = PerceiverContextVectorWrapper(cls([DrawnEnv] * 2), model)
    assert outer.single_observation_space.fingerprint == model.fingerprint
    assert outer.observation_space.shape == (2, 32)
    outer.close()


def wrap(model):
    return PerceiverContextWrapper(DrawnEnv(), model)


def test_a_replaced_model_is_named_by_the_space(models):
    one, other = models
    for shell in (PerceiverContextWrapper(DrawnEnv(), one), make_vec(one)):
        shell.encoder.set_model(other)
        assert shell.observation_space.fingerprint == other.fingerprint


def test_a_policy_on_contexts_is_not_taken_for_one_on_states(models, tmp_path):
    SAC("MlpPolicy", make_vec(models[0]), buffer_size=10, device="cpu").save(tmp_path / "policy.zip")
    names = tuple(f"position/{number}" for number in range(32))
    with pytest.raises(ValueError, match=f"contexts of the model of fingerprint {models[0].fingerprint}"):
        make_policy(str(tmp_path / "policy.zip"), PolicyContext(gym.spaces.Box(-1, 1, (2,)), 64, 0.05, names))


@pytest.mark.parametrize("shell", [PerceiverContextWrapper, lambda env, model: make_shown(env, model)])
@pytest.mark.parametrize("bounds", [(0, 1), (0, 254), (1, 255)])
def test_frames_that_mean_something_else_than_0_to_255_are_refused(models, shell, bounds):
    env = DrawnEnv()
    env.observation_space = gym.spaces.Box(*bounds, (64, 64, 3), np.uint8)
    with pytest.raises(ValueError, match=f"frames from 0 to 255, its space goes from {bounds[0]} to {bounds[1]}"):
        shell(env, models[0])


def make_shown(env, model):
    return VecPerceiverContext(DummyVecEnv([lambda: env]), model)


def test_one_pixel_of_another_range_is_enough(models):
    high = np.full((64, 64, 3), 255, np.uint8)
    high[5, 6, 2] = 1
    env = DrawnEnv()
    env.observation_space = gym.spaces.Dict(image=gym.spaces.Box(np.zeros_like(high), high, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"observation\['image'\] must hold frames from 0 to 255"):
        PerceiverContextWrapper(env, models[0])
