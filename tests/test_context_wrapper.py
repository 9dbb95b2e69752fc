"""`PerceiverContextWrapper` on real environments: contexts, spaces, specs, and what it refuses."""

import importlib
import json
import pickle
import warnings
from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import Autoreset, TransformObservation
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from staggered_envs import LENGTHS, make_short
from staggered_episodes import (
    SEED,
    TOLERANCE,
    all_alone,
    assert_same_episodes,
    offline_contexts,
    play_alone,
    random_actions,
)
from tiny_models import tiny_model

from envs import make_dmc
from perceiver_obs import PerceiverContextWrapper

IMAGE = spaces.Box(0, 255, (64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def cartpole():
    """Made once, reset often: tests that close it make their own."""
    env = make_dmc("cartpole-swingup", render_quality="fast")
    yield env
    env.close()


def transformed(env, function, space):
    """The environment with other observations, made from its real frames."""
    return TransformObservation(env, function, space)


def roll(env, steps=3):
    """The observations of a short seeded rollout."""
    env.action_space.seed(0)
    observations = [env.reset(seed=1)[0]]
    observations += [env.step(env.action_space.sample())[0] for _ in range(steps)]
    return observations


@pytest.mark.parametrize("action_dim", [None, 1, 4])
def test_contexts_equal_the_whole_episode_offline(action_dim):
    model = tiny_model(action_dim)
    episodes = play_alone(model, 2, random_actions()[:, 2])
    assert len(episodes) == 2
    for episode in episodes:
        np.testing.assert_allclose(np.stack(episode.contexts), offline_contexts(model, episode), atol=TOLERANCE)


def test_an_autoreset_below_begins_a_new_context():
    model = tiny_model(action_dim=1)
    env = PerceiverContextWrapper(Autoreset(make_short(LENGTHS[0])), model)
    episodes, ended = [[env.reset(seed=SEED)[0]]], False
    for action in random_actions()[:, 0]:
        if ended:
            episodes.append([])
        context, _, terminated, truncated, _ = env.step(action)
        episodes[-1].append(context)
        ended = terminated or truncated
    env.close()
    assert_same_episodes([episodes], all_alone(1, wastes_action_at_reset=True)[:1])


def test_actions_reach_the_model():
    model = tiny_model(action_dim=1)
    actions = random_actions()[:, 0]
    still = play_alone(model, 0, np.zeros_like(actions))[0]
    moved = play_alone(model, 0, actions)[0]
    still.actions = moved.actions
    np.testing.assert_array_equal(still.contexts[0], moved.contexts[0])
    assert np.abs(offline_contexts(model, still) - np.stack(still.contexts)).max() > 1e-4


def test_contexts_are_float32_of_the_declared_space_and_owned(cartpole, model):
    env = PerceiverContextWrapper(cartpole, model)
    assert env.observation_space == spaces.Box(-np.inf, np.inf, (model.context_dim,), np.float32)
    first = roll(env)
    assert all(observation in env.observation_space for observation in first)
    assert not any(np.shares_memory(a, b) for a, b in pairwise(first))
    kept = [observation.copy() for observation in first]
    for observation in first:
        observation.fill(7.0)
    np.testing.assert_array_equal(roll(env), kept)


def test_keep_pixels_keeps_the_frames(cartpole, model):
    frames = roll(cartpole)
    observations = roll(PerceiverContextWrapper(cartpole, model, keep_pixels=True))
    assert set(observations[0]) == {"context", "pixels"}
    for observation, frame in zip(observations, frames, strict=True):
        np.testing.assert_array_equal(observation["pixels"], frame)


@pytest.mark.parametrize("keep_pixels", [False, True])
def test_dict_observations_pass_the_other_entries_through(cartpole, model, keep_pixels):
    space = spaces.Dict({"camera": IMAGE, "brightness": spaces.Box(0, 255, (1,), np.float32)})
    dict_env = transformed(
        cartpole,
        lambda frame: {"camera": frame, "brightness": np.array([frame.mean()], np.float32)},
        space,
    )
    plain = roll(PerceiverContextWrapper(cartpole, model))
    env = PerceiverContextWrapper(dict_env, model, keep_pixels=keep_pixels)
    observations = roll(env)
    assert set(env.observation_space) == {"context", "brightness"} | ({"camera"} if keep_pixels else set())
    for observation, context in zip(observations, plain, strict=True):
        assert observation in env.observation_space
        assert observation["brightness"] > 0
        np.testing.assert_array_equal(observation["context"], context)


NESTED = spaces.Dict(
    {
        "robot": spaces.Dict({"camera": IMAGE, "speed": spaces.Box(0, 255, (1,), np.float32)}),
        "eye": spaces.Dict({"left": spaces.Dict({"image": IMAGE})}),
        "goal": spaces.Box(0, 255, (1,), np.float32),
    }
)


def nested(env):
    """The frame in a dictionary within, and its mirror image in another."""

    def observe(frame):
        brightness = np.array([frame.mean()], np.float32)
        robot = {"camera": frame, "speed": brightness}
        return {"robot": robot, "eye": {"left": {"image": frame[:, ::-1]}}, "goal": brightness}

    return transformed(env, observe, NESTED)


@pytest.mark.parametrize("keep_pixels", [False, True])
@pytest.mark.parametrize("key", ["robot/camera", "eye/left/image"])
def test_a_frame_in_a_dictionary_within_is_found_by_its_path(cartpole, model, key, keep_pixels):
    mirrored = transformed(cartpole, lambda frame: frame[:, ::-1], IMAGE)
    plain = roll(PerceiverContextWrapper(cartpole if key == "robot/camera" else mirrored, model))
    env = PerceiverContextWrapper(nested(cartpole), model, pixels_key=key, keep_pixels=keep_pixels)
    check_env(env, skip_render_check=True)
    expected = {"robot": {"camera", "speed"}, "eye": {"left"}, "goal": None, "context": None}
    if not keep_pixels:
        expected = {**expected, "robot": {"speed"}} if key == "robot/camera" else expected
        expected = {name: entry for name, entry in expected.items() if key == "robot/camera" or name != "eye"}
    found = {
        name: set(entry) if isinstance(entry, spaces.Dict) else None for name, entry in env.observation_space.items()
    }
    assert found == expected
    for observation, context in zip(roll(env), plain, strict=True):
        assert observation in env.observation_space
        np.testing.assert_array_equal(observation["context"], context)


def test_the_only_image_is_found_within_and_others_are_named(cartpole, model):
    with pytest.raises(ValueError, match=r"found \['eye/left/image', 'robot/camera'\].*pixels_key"):
        PerceiverContextWrapper(nested(cartpole), model)
    with pytest.raises(ValueError, match=r"pixels_key='robot' is not .* has \[.*'robot/camera', 'robot/speed'\]"):
        PerceiverContextWrapper(nested(cartpole), model, pixels_key="robot")
    space = spaces.Dict({"robot": spaces.Dict({"camera": IMAGE})})
    env = PerceiverContextWrapper(transformed(cartpole, lambda frame: {"robot": {"camera": frame}}, space), model)
    assert list(env.observation_space) == ["context"]
    np.testing.assert_array_equal(roll(env)[3]["context"], roll(PerceiverContextWrapper(cartpole, model))[3])


def two_cameras(env):
    space = spaces.Dict({"front": IMAGE, "back": IMAGE})
    return transformed(env, lambda frame: {"front": frame, "back": frame[:, ::-1]}, space)


def test_pixels_key_chooses_among_several_images(cartpole, model):
    with pytest.raises(ValueError, match=r"exactly one uint8 image.*pixels_key"):
        PerceiverContextWrapper(two_cameras(cartpole), model)
    with pytest.raises(ValueError, match=r"pixels_key='left' is not in the observation"):
        PerceiverContextWrapper(two_cameras(cartpole), model, pixels_key="left")
    front = PerceiverContextWrapper(two_cameras(cartpole), model, pixels_key="front")
    assert set(front.observation_space) == {"back", "context"}
    plain = roll(PerceiverContextWrapper(cartpole, model))
    np.testing.assert_array_equal(roll(front)[3]["context"], plain[3])
    mirrored = PerceiverContextWrapper(two_cameras(cartpole), model, pixels_key="back")
    assert np.abs(roll(mirrored)[3]["context"] - plain[3]).max() > 1e-4


def grey(frame):
    return frame.mean(axis=-1, keepdims=True).astype(np.uint8)


@pytest.mark.parametrize(
    ("function", "space", "error", "message"),
    [
        (
            lambda f: f[::2, ::2],
            spaces.Box(0, 255, (32, 32, 3), np.uint8),
            ValueError,
            r"\(64, 64, 3\).*\(32, 32, 3\)",
        ),
        (grey, spaces.Box(0, 255, (64, 64, 1), np.uint8), ValueError, r"\(64, 64, 3\).*\(64, 64, 1\)"),
        (
            lambda f: f.transpose(2, 0, 1),
            spaces.Box(0, 255, (3, 64, 64), np.uint8),
            ValueError,
            r"\(channels, height, width\).*TransformObservation",
        ),
        (
            lambda f: f / np.float32(255),
            spaces.Box(0, 1, (64, 64, 3), np.float32),
            TypeError,
            r"uint8.*float32",
        ),
        (
            lambda f: f[None],
            spaces.Box(0, 255, (1, 64, 64, 3), np.uint8),
            ValueError,
            r"\(64, 64, 3\).*\(1, 64, 64, 3\)",
        ),
        (lambda f: int(f[0, 0, 0]), spaces.Discrete(256), TypeError, r"Box.*Discrete"),
        (
            lambda f: {"pixels": f, "context": f.mean()},
            spaces.Dict({"pixels": IMAGE, "context": spaces.Box(0, 255, (), np.float32)}),
            ValueError,
            "already has an entry named 'context'",
        ),
        (
            lambda f: {"mean": f.mean()},
            spaces.Dict({"mean": spaces.Box(0, 255, (), np.float32)}),
            ValueError,
            r"found none among \['mean'\]",
        ),
    ],
    ids=["size", "channels", "layout", "dtype", "rank", "not a box", "context key taken", "no image"],
)
def test_frames_that_the_model_cannot_read_are_refused_at_construction(
    cartpole, model, function, space, error, message
):
    with pytest.raises(error, match=f"(?s){message}"):
        PerceiverContextWrapper(transformed(cartpole, function, space), model)


def test_steps_follow_gymnasiums_conventions(model):
    env = PerceiverContextWrapper(make_short(2), model)
    action = np.zeros(1, np.float32)
    with pytest.raises(ResetNeeded):
        env.step(action)
    env.reset(seed=0)
    env.step(action)
    assert env.step(action)[3], "the time limit truncates"
    fresh = env.reset(seed=0)[0]
    np.testing.assert_array_equal(fresh, env.reset(seed=0)[0])
    env.close()


def test_close_reaches_the_environment(model):
    closed = []

    class Watched(gym.Wrapper):
        def close(self):
            closed.append(True)
            super().close()

    PerceiverContextWrapper(Watched(make_short(2)), model).close()
    assert closed == [True]


@pytest.mark.filterwarnings("ignore:.*(too low|too high|infinity|Casting|unwrapped version).*")
@pytest.mark.parametrize("keep_pixels", [False, True])
def test_checkers_of_gymnasium_and_sb3_pass(model, keep_pixels):
    env = make_dmc("cartpole-swingup", render_quality="fast")
    env = PerceiverContextWrapper(env, model, keep_pixels=keep_pixels)
    sb3_check_env(env)
    check_env(env)  # closes it


def test_specs_survive_json_and_pickle(cartpole, model, tmp_path):
    model.save_pretrained(tmp_path)
    env = PerceiverContextWrapper(cartpole, tmp_path, device="cpu", keep_pixels=True)
    expected = roll(env)
    from_json = EnvSpec.from_json(env.spec.to_json())
    from_pickle = pickle.loads(pickle.dumps(env.spec))
    assert len(pickle.dumps(env.spec)) < 10_000, "the weights are not in the spec"
    for spec in (from_json, from_pickle):
        again = gym.make(spec)
        for before, after in zip(expected, roll(again), strict=True):
            np.testing.assert_array_equal(before["context"], after["context"])
            np.testing.assert_array_equal(before["pixels"], after["pixels"])
        again.close()


def test_specs_with_a_model_object_survive_pickle_but_not_json(cartpole, model):
    env = PerceiverContextWrapper(cartpole, model)
    again = gym.make(pickle.loads(pickle.dumps(env.spec)))
    np.testing.assert_array_equal(roll(env)[2], roll(again)[2])
    again.close()
    with pytest.raises(TypeError, match="CausalPerceiverIO is not JSON serializable"):
        env.spec.to_json()


def test_gymnasium_makes_it_from_module_and_id_and_in_vectors(model, tmp_path):
    model.save_pretrained(tmp_path)
    wrapper = PerceiverContextWrapper.wrapper_spec(model=str(tmp_path))
    assert json.loads(json.dumps(wrapper.kwargs)) == {"model": str(tmp_path)}
    env = PerceiverContextWrapper(gym.make("envs:dmc/cartpole-swingup-v0", render_quality="fast"), str(tmp_path))
    single = env.reset(seed=1)[0]
    env.close()
    venv = gym.make_vec(
        "envs:dmc/cartpole-swingup-v0",
        num_envs=2,
        wrappers=[lambda env: PerceiverContextWrapper(env, str(tmp_path))],
        render_quality="fast",
    )
    contexts, _ = venv.reset(seed=[1, 2])
    assert contexts.shape == (2, model.context_dim)
    np.testing.assert_array_equal(contexts[0], single)
    assert np.abs(contexts[0] - contexts[1]).max() > 0
    venv.close()


@pytest.mark.parametrize(
    "name", ["perceiver_obs.PerceiverContextWrapper", "perceiver_obs.wrappers.PerceiverContextWrapper"]
)
def test_rl_zoo_builds_it_from_its_env_wrapper_key(cartpole, model, tmp_path, name):
    model.save_pretrained(tmp_path)
    ((dotted, kwargs),) = {name: {"model": str(tmp_path), "keep_pixels": True}}.items()
    module, _, cls = dotted.rpartition(".")
    env = getattr(importlib.import_module(module), cls)(cartpole, **kwargs)
    assert set(env.reset(seed=0)[0]) == {"context", "pixels"}


def test_actions_that_do_not_fit_are_left_out_with_one_warning():
    walker = make_dmc("walker-walk", render_quality="fast")
    with pytest.warns(UserWarning, match="actions of up to 2 floats") as caught:
        env = PerceiverContextWrapper(walker, tiny_model(action_dim=2))
    roll(env)
    assert len([w for w in caught if "actions of up to" in str(w.message)]) == 1
    env.close()


def test_other_rendering_than_in_training_warns(cartpole):
    model = tiny_model()
    model.frame_contract = dict(cartpole.unwrapped.frame_contract)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PerceiverContextWrapper(cartpole, model)
    model.frame_contract |= {"render_quality": "standard", "tasks": ["walker-walk"]}
    with pytest.warns(UserWarning, match=r"render_quality is 'fast'.*'standard'; task cartpole-swingup is new"):
        PerceiverContextWrapper(cartpole, model)
