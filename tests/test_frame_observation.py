"""Any Gymnasium environment as frames: where they come from, how they become square, what is collected from them."""

import os

import gymnasium as gym
import numpy as np
import pytest
import tiny_worlds
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from tiny_envs import Painted
from tiny_worlds import PICTURE, STEPS

from envs import (
    CollectSettings,
    EnvSettings,
    FrameObservation,
    RecordRollouts,
    RolloutDataset,
    RolloutWriter,
    collect,
    make_dmc,
    make_env,
)
from envs.collection.named_policies import make_policy
from envs.collection.policies import PolicyContext
from envs.frame_observation import parse_kwargs
from envs.pictures import square_frame
from perceiver_obs import ActionEncoding

WORLD = "tiny_worlds:TinyWorld-v0"
HALF = PICTURE.reshape(12, 2, 24, 2, 3).mean(axis=(1, 3))  # of both height and width


@pytest.mark.parametrize(
    ("shows", "source", "camera"),
    [
        ("state", "auto", "render"),
        ("state", "render", "render"),
        ("frames", "auto", "observation"),
        ("frames", "observation", "observation"),
        ("first", "auto", "observation"),
        ("dict", "auto", "observation/camera"),
        ("two", "right", "observation/right"),
    ],
)
def test_frames_come_from_where_they_are(shows, source, camera):
    env = make_env(WORLD, {"shows": shows}, size=24, frames_from=source)
    frame, _ = env.reset(seed=0)
    assert np.all(frame[:6] == 0), "a bar above"
    assert np.all(frame[18:] == 0), "and one below"
    np.testing.assert_allclose(frame[6:18].astype(float), HALF, atol=0.51)
    assert env.frame_contract == {
        "size": 24,
        "channels": 3,
        "tasks": ["TinyWorld-v0"],
        "action_repeat": 1,
        "camera": camera,
        "render_quality": "24x48 letterbox",
    }


def test_grey_frames_become_rgb():
    frame, _ = make_env(WORLD, ["shows=grey"], size=24).reset(seed=0)
    for channel in range(3):
        np.testing.assert_allclose(frame[6:18, :, channel].astype(float), HALF[:, :, 0], atol=0.51)


def test_a_crop_is_the_middle():
    env = make_env(WORLD, size=24, fit="crop")
    np.testing.assert_array_equal(env.reset(seed=0)[0], PICTURE[:, 12:36])
    assert env.frame_contract["render_quality"] == "24x48 crop"


def test_frames_that_fit_are_copied_as_they_are():
    frame = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    squared = square_frame(frame, 16, "letterbox")
    np.testing.assert_array_equal(squared, frame)
    assert not np.shares_memory(squared, frame)
    assert square_frame(frame, 40, "crop").shape == (40, 40, 3)
    assert square_frame(frame[:1, :], 8, "letterbox").shape == (8, 8, 3)


def test_the_state_is_what_is_observed_beside_frames():
    env = make_env(WORLD, {"shows": "dict"}, state_in_info=True)
    env.reset(seed=0)
    _, _, _, _, info = env.step(env.action_space.sample())
    by_name = dict(zip(env.state_names, info["state"].tolist()))
    assert by_name == {
        "position/lamp_0": 0,
        "position/lamp_1": 1,
        "position/step_0": 1,
        "position/step_1": 2,
    }
    assert make_env(WORLD, {"shows": "grey"}, state_in_info=True).state_names == ()


class Windy(tiny_worlds.TinyWorld):
    """Tells the wind in its info."""

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0], self.told()

    def step(self, action):
        return *super().step(action)[:4], self.told()

    def told(self):
        return {"wind": np.array([self._step, -1]), "gust": self._step / 2, "station": "here"}


def test_numbers_of_info_are_part_of_the_state_where_they_are_named():
    env = FrameObservation(Windy(render_mode="rgb_array"), info_keys=("gust", "wind"), state_in_info=True)
    assert env.state_names[2:] == ("position/gust_0", "position/wind_0", "position/wind_1")
    assert env.rollout_meta(states=True)["state_names"] == list(env.state_names)
    env.reset(seed=0)
    for step in (1, 2):
        state = env.step(env.action_space.sample())[4]["state"]
        assert state.dtype == np.float32
        assert state[2:].tolist() == [step / 2, step, -1]
    alone = FrameObservation(Windy(shows="grey"), info_keys=("gust",), state_in_info=True)
    assert alone.reset(seed=0)[1]["state"].tolist() == [0]
    with pytest.raises(ValueError, match="'rain', which is not in the info, which has wind, gust, station"):
        FrameObservation(Windy(shows="grey"), info_keys=("rain",))
    with pytest.raises(ValueError, match="'station', which is no number and no array of them: 'here'"):
        FrameObservation(Windy(shows="grey"), info_keys=("station",))
    with pytest.raises(ValueError, match="'gust', which is not in the info"):
        EnvSettings(env=WORLD, info_keys=("gust",)).make_env(state_in_info=True)


def test_pygame_looks_for_no_screen_where_there_is_none(monkeypatch):
    for screen, driver in ((":0", None), ("", "dummy")):
        monkeypatch.setenv("SDL_VIDEODRIVER", "")
        monkeypatch.delenv("SDL_VIDEODRIVER")
        monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
        monkeypatch.setenv("DISPLAY", screen)
        make_env(WORLD)
        assert os.environ.get("SDL_VIDEODRIVER") == driver


def test_an_action_lasts_and_an_episode_ends_it():
    env = make_env(WORLD, action_repeat=4)
    env.reset(seed=0)
    assert env.max_steps == 2
    first, second = (env.step(np.float32([0, 0]))[1:4] for _ in range(2))
    assert first == (1 + 2 + 3 + 4, False, False)
    assert second == (5 + 6, False, True)
    assert env.metadata["render_fps"] == 2.5
    assert env.frame_contract["action_repeat"] == 4


def test_what_an_environment_states_of_its_frames_is_kept():
    class Stated(tiny_worlds.TinyWorld):
        frame_contract = {
            "tasks": ["hall"],
            "camera": "ceiling",
            "action_repeat": 3,
            "render_quality": None,
            "size": 48,
        }

    contract = FrameObservation(Stated(shows="frames"), size=16, action_repeat=2).frame_contract
    assert (contract["tasks"], contract["camera"], contract["action_repeat"]) == (["hall"], "ceiling", 6)
    assert (contract["size"], contract["render_quality"]) == (16, "24x48 letterbox")


def test_gymnasium_finds_nothing_wrong():
    check_env(FrameObservation(gym.make(WORLD, render_mode="rgb_array")), skip_render_check=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_env("TinyWrld-v0"), "cannot make TinyWrld-v0.*TinyWorld.*module:ID"),
        (lambda: make_env(WORLD, ["fog=1"]), r"cannot make .*TinyWorld-v0\(fog=1\).*fog"),
        (lambda: make_env(WORLD, ["fog"]), "env_kwargs must be key=value, or one JSON object, got 'fog'"),
        (lambda: make_env(WORLD, ["{fog"]), "env_kwargs is no JSON object"),
        (lambda: make_env(WORLD, ["shows=two"]), r"several images \(left, right\): choose one by frames_from"),
        (lambda: make_env(WORLD, frames_from="camera"), "'camera' is not in the observation, which has observation"),
        (lambda: make_env(WORLD, ["shows=dict"], frames_from="step"), "'step' should be uint8 frames"),
        (lambda: make_env(WORLD, fit="stretch"), "fit must be one of .*letterbox.*'stretch'"),
        (lambda: FrameObservation(gym.make(WORLD)), "cannot be rendered"),
        (
            lambda: make_dmc("Pendulum-v1"),
            r"Gymnasium environment: --env Pendulum-v1 in collect, .*envs.make_env\('Pendulum-v1'\)",
        ),
    ],
)
def test_what_cannot_be_made_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_arguments_are_json_or_python_or_text():
    assert parse_kwargs(["a=1", "b=0.5", "c=true", "d=False", "e=None", "f=rgb", "g=[1, 2]", "h=x=y"]) == {
        "a": 1, "b": 0.5, "c": True, "d": False, "e": None, "f": "rgb", "g": [1, 2], "h": "x=y",
    }  # fmt: skip
    assert parse_kwargs(['{"a": {"b": 1}}']) == {"a": {"b": 1}}


# What is collected


@pytest.mark.parametrize("actions", tiny_worlds.ACTIONS)
def test_every_kind_of_action_is_collected(tmp_path, actions):
    settings = CollectSettings(
        env=WORLD, env_kwargs=(f"actions={actions}",), out=str(tmp_path / "data"), episodes=4, size=16, workers=1
    )
    data = collect(settings, progress=False)
    encoding = ActionEncoding.from_space(tiny_worlds.ACTIONS[actions])
    assert data.meta["actions"] == encoding.meta
    assert data.meta["env"] == {"id": "TinyWorld-v0", "kwargs": {"render_mode": "rgb_array", "actions": actions}}
    assert data.meta["frame_contract"]["tasks"] == ["TinyWorld-v0"]
    assert data.meta["state_names"] == ["position/observation_0", "position/observation_1"]
    env = make_env(WORLD, settings.env_kwargs, size=16)
    for episode in data:
        assert len(episode) == STEPS
        np.testing.assert_array_equal(episode.states[:, 1], 2 * np.arange(STEPS + 1))
        np.testing.assert_array_equal(episode.rewards, 1 + np.arange(STEPS))
        np.testing.assert_array_equal(episode.pixels[0], env.reset(seed=episode.seed)[0])
        assert encoding.encode(encoding.decode(episode.actions), STEPS) == pytest.approx(episode.actions, abs=1e-6)
    assert {episode.policy.partition("(")[0] for episode in data} == {"random", "correlated"}


@pytest.mark.parametrize("kind", ["discrete", "multi-discrete", "bits"])
def test_correlated_choices_last(kind):
    space = tiny_worlds.ACTIONS[kind]
    context = PolicyContext(space, 16, 0.05, ())
    shares = {}
    for name in ("random", "correlated"):
        policy, kept = make_policy(name, context), []
        for seed in range(30):
            policy.begin(np.random.default_rng(seed))
            actions = np.array([policy.act(None, None) for _ in range(60)])
            assert all(space.contains(action) for action in actions.astype(space.dtype))
            kept.append(np.mean(actions[1:] == actions[:-1]))
        shares[name] = kept
        assert {tuple(np.ravel(action)) for action in actions} > {tuple(np.ravel(actions[0]))}
    assert max(shares["random"]) < 0.75
    assert max(shares["correlated"]) > 0.9
    assert np.mean(shares["correlated"]) > np.mean(shares["random"]) + 0.2


def test_random_actions_fill_their_bounds():
    space = tiny_worlds.ACTIONS["box"]
    policy = make_policy("random", PolicyContext(space, 16, 0.05, ()))
    policy.begin(np.random.default_rng(0))
    actions = np.array([policy.act(None, None) for _ in range(2000)])
    np.testing.assert_allclose(actions.min(axis=0), space.low, atol=0.02)
    np.testing.assert_allclose(actions.max(axis=0), space.high, atol=0.02)
    np.testing.assert_allclose(actions.mean(axis=0), [0, 0.5], atol=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": WORLD, "camera": 1}, "camera works for dm_control tasks only, got 1"),
        ({"env": WORLD, "render_quality": "fast"}, "render_quality works for dm_control tasks only, got 'fast'"),
        ({"env": WORLD, "random_init": True}, "random_init works for dm_control tasks only"),
        ({"env": WORLD, "action_repeat": "planet"}, "action_repeat must be a number"),
        ({"fit": "crop"}, "fit works with --env only, got 'crop' for walker-walk"),
        ({"task": "CartPole-v1"}, "--env CartPole-v1"),
    ],
)
def test_settings_of_the_other_kind_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        collect(CollectSettings(out=str(tmp_path / "data"), **changes), progress=False)


# What is written by hand


def write(writer, size, actions):
    steps = len(actions)
    pixels = np.zeros((steps + 1, size, size, 3), np.uint8)
    writer.write_episode(None, pixels, actions, np.zeros(steps, np.float32), False, True, 0, "by hand")


def test_a_writer_describes_an_environment_as_a_recorder_does(tmp_path):
    env = make_env(WORLD, size=16, state_in_info=True)
    meta = RolloutWriter(tmp_path / "data", env=env).meta
    recorded = RecordRollouts(env, tmp_path / "recorded")._writer.meta
    assert recorded == {**meta, "collection": {"policy": ["policy"]}}
    assert meta["frame_contract"] == env.frame_contract
    assert meta["state_names"] == list(env.state_names)
    assert meta["actions"] == ActionEncoding.from_space(env.action_space).meta
    plain = RolloutWriter(tmp_path / "plain", env=Painted(spaces.Discrete(3)))
    assert (plain.meta["action_size"], plain.meta["state_names"]) == (3, None)


def test_a_writer_takes_the_description_in_keywords(tmp_path):
    space = spaces.Discrete(3)
    writer = RolloutWriter(tmp_path, task="my-robot", size=16, action_space=space)
    write(writer, 16, ActionEncoding.from_space(space).encode([0, 2], 2))
    data = RolloutDataset(tmp_path)
    assert data.frame_contract.tasks == ["my-robot"]
    assert (data.frame_contract.size, data.frame_contract.only("camera")) == (16, None)
    np.testing.assert_array_equal(data[0].actions, [[1, 0, 0], [0, 0, 1]])


@pytest.mark.parametrize("given", [{}, {"task": "a"}, {"action_space": spaces.Discrete(2)}, {"meta": {}, "task": "a"}])
def test_a_writer_needs_one_description(tmp_path, given):
    with pytest.raises(TypeError, match="needs one of"):
        RolloutWriter(tmp_path, **given)
