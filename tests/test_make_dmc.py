"""`make_dmc` against dm_control itself, and Gymnasium's own rules."""

import pickle
import sys
import warnings
from itertools import pairwise

import gymnasium
import numpy as np
import pytest
from fresh_interpreter import run_python
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.utils.env_checker import check_env

import envs
from envs import make_dmc, state_names
from envs.dmc.environment import DmcEnv
from envs.dmc.tasks import PLANET_ACTION_REPEAT


def make(task="walker-walk", **kwargs):
    return make_dmc(task, **{"size": 32, "render_quality": "fast", **kwargs})


def load_reference(task, seed):
    """The same task from dm_control directly, just reset."""
    from dm_control import suite  # here, because imported before an environment is made it looks for a display

    reference = suite.load(*task.split("-"), task_kwargs={"random": seed})
    reference.reset()
    return reference


# What is seen and done


@pytest.mark.parametrize("task", ["walker-walk", "ball_in_cup-catch", "quadruped-walk"])
def test_an_episode_is_the_one_dm_control_plays(task):
    env = make_dmc(task, size=64, action_repeat=3, render_quality="standard")
    frame, _ = env.reset(seed=7)
    reference = load_reference(task, seed=7)
    spec, camera = reference.action_spec(), 2 if task.startswith("quadruped") else 0
    rng = np.random.default_rng(0)
    assert np.array_equal(frame, reference.physics.render(64, 64, camera))
    for _ in range(3):
        action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        frame, reward, terminated, truncated, _ = env.step(action)
        control = spec.minimum + (action.astype(np.float64) + 1) / 2 * (spec.maximum - spec.minimum)
        expected = sum(reference.step(control).reward for _ in range(3))
        assert reward == pytest.approx(expected, rel=1e-9)
        assert np.array_equal(frame, reference.physics.render(64, 64, camera))
        assert not terminated
        assert not truncated


@pytest.mark.parametrize("size", [1, 50, 63])
def test_frames_have_the_size_asked_for_and_are_not_sheared(size):
    env = make(size=size)
    frame, _ = env.reset(seed=0)
    assert frame.shape == (size, size, 3)
    assert frame.dtype == np.uint8
    if size > 1:
        large, _ = make(size=2 * size).reset(seed=0)
        halved = large.reshape(size, 2, size, 2, 3).mean((1, 3))
        assert np.abs(halved - frame).mean() < 4


def test_frames_are_contiguous_and_never_written_to_again():
    env = make()
    frames = [env.reset(seed=0)[0]] + [env.step(env.action_space.sample())[0] for _ in range(3)]
    copies = [frame.copy() for frame in frames]
    rendered = env.render()
    assert np.array_equal(rendered, frames[-1])
    rendered[:] = 0
    assert np.array_equal(env.render(), frames[-1])
    env.step(env.action_space.sample())
    env.reset()
    for frame, copy in zip(frames, copies):
        assert frame.flags.c_contiguous
        assert frame.flags.owndata
        assert np.array_equal(frame, copy)
    assert all(not np.array_equal(a, b) for a, b in pairwise(frames))


def test_fast_rendering_shows_the_same_scene_without_shadows():
    standard, _ = make_dmc(render_quality="standard").reset(seed=0)
    fast, _ = make_dmc(render_quality="fast").reset(seed=0)
    difference = np.abs(standard.astype(int) - fast).mean()
    assert 0 < difference < 15


def test_smooth_rendering_averages_fast_frames_of_four_times_the_size():
    smooth, _ = make_dmc(size=24, render_quality="smooth").reset(seed=0)
    large, _ = make_dmc(size=96, render_quality="fast").reset(seed=0)
    assert np.abs(smooth - large.reshape(24, 4, 24, 4, 3).mean((1, 3))).max() <= 0.5
    assert smooth.flags.c_contiguous
    assert smooth.flags.owndata


def test_smooth_frames_change_evenly_with_equal_moves_of_part_of_a_pixel():
    unevenness = {}
    for quality in ("fast", "smooth"):
        env = make_dmc("cartpole-swingup", size=64, render_quality=quality).unwrapped
        env.reset(seed=0)
        frames = []
        for slider in np.linspace(0.0, 0.1, 17):  # metres; a pixel is about 0.1
            env.physics.data.qpos[:] = slider, 0.0
            env.physics.forward()
            frames.append(env._render_frame().astype(int))
        changes = [np.abs(a - b).sum() for a, b in pairwise(frames)]
        unevenness[quality] = np.std(changes) / np.mean(changes)
    assert unevenness["smooth"] < 0.25 < unevenness["fast"]


def test_cameras_by_name_number_and_default():
    frames = {camera: make(camera=camera).reset(seed=0)[0] for camera in (None, 0, 1, "side", "back", -1)}
    assert np.array_equal(frames[None], frames[0])
    assert np.array_equal(frames["side"], frames[0])
    assert np.array_equal(frames["back"], frames[1])
    assert not np.array_equal(frames["back"], frames["side"])
    assert not np.array_equal(frames[-1], frames["side"])


# Time


def test_the_end_of_the_episode_stops_the_repeat_and_is_a_truncation():
    env = make("cartpole-balance", action_repeat=300)  # 1000 control steps: 300, 300, 300, 100
    env.reset(seed=0)
    reference = load_reference("cartpole-balance", seed=0)
    assert env.unwrapped.max_steps == 4
    for step, control_steps in enumerate([300, 300, 300, 100]):
        _, reward, terminated, truncated, _ = env.step(np.zeros(1, np.float32))
        assert reward == pytest.approx(sum(reference.step(np.zeros(1)).reward for _ in range(control_steps)))
        assert (terminated, truncated) == (False, step == 3)
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(1, np.float32))


def test_a_task_that_ends_by_itself_terminates():
    env = make("lqr-lqr_2_1")
    env.reset(seed=0)
    assert env.unwrapped.max_steps is None
    physics = env.unwrapped.physics
    with physics.reset_context():
        physics.data.qpos[:] = 0  # the goal of the task
    _, _, terminated, truncated, _ = env.step(np.zeros(1, np.float32))
    assert (terminated, truncated) == (True, False)


@pytest.mark.parametrize(
    ("task", "repeat", "fps"), [("walker-walk", 2, 20), ("cartpole-swingup", 8, 12.5), ("fish-swim", 1, 25)]
)
def test_render_fps_is_the_rate_of_frames_in_simulated_time(task, repeat, fps):
    assert make(task, action_repeat=repeat).metadata["render_fps"] == pytest.approx(fps)


@pytest.mark.parametrize(("domain", "repeat"), PLANET_ACTION_REPEAT.items())
def test_planet_action_repeats(domain, repeat):
    task = next(task for task in envs.TASKS if task.startswith(domain + "-"))
    assert make(task, action_repeat="planet").unwrapped.frame_contract["action_repeat"] == repeat


# Seeds


def test_seeds_determine_the_episode():
    env, other = make(), make(seed=5)
    first = env.reset(seed=5)[0]
    assert np.array_equal(other.reset()[0], first)
    assert not np.array_equal(other.reset()[0], first)
    assert np.array_equal(env.reset(seed=5)[0], first)
    assert not np.array_equal(make().reset()[0], make().reset()[0])


def test_seeds_beyond_32_bits():
    env = make()
    frames = [env.reset(seed=seed)[0] for seed in (2**32, 2**32 + 1, 2**64 - 1, 0)]
    assert np.array_equal(env.reset(seed=2**32)[0], frames[0])
    assert all(not np.array_equal(a, b) for i, a in enumerate(frames) for b in frames[:i])


def test_random_starts_differ_from_the_tasks_own():
    env = make("cheetah-run", state_in_info=True)
    speed = slice(env.unwrapped.state_names.index("velocity/rootx"), None)
    plain = np.stack([env.reset(seed=seed)[1]["state"] for seed in range(5)])
    random = np.stack([env.reset(seed=seed, options={"random_init": True})[1]["state"] for seed in range(5)])
    again = env.reset(seed=4, options={"random_init": True})[1]["state"]
    assert np.abs(plain[:, speed]).max() < 0.2 < np.abs(random[:, speed]).max()
    assert random[:, : speed.start].std(0).mean() > 2 * plain[:, : speed.start].std(0).mean()
    assert np.array_equal(again, random[4])


# The true state


def test_state_is_only_given_when_asked_for():
    assert make().reset(seed=0)[1] == {}
    _, info = make(state_in_info=True).reset(seed=0)
    assert info["state"].dtype == np.float32


def test_state_names_and_values_of_walker():
    env = make(state_in_info=True, action_repeat=1)
    names = state_names(env)
    _, info = env.reset(seed=0)
    before = dict(zip(names, info["state"]))
    for _ in range(3):
        *_, info = env.step(np.full(6, 0.1, np.float32))
    qpos, qvel = env.unwrapped.physics.named.data.qpos, env.unwrapped.physics.named.data.qvel
    state = dict(zip(names, info["state"]))

    assert "position/rootx" not in names  # the camera travels with the walker
    assert state["velocity/rootx"] == pytest.approx(qvel["rootx"].item(), abs=1e-5)
    assert state["position/right_knee"] == pytest.approx(qpos["right_knee"].item(), abs=1e-5)
    assert state["position/rooty_cos"] == pytest.approx(np.cos(qpos["rooty"]).item(), abs=1e-5)
    assert state["position/rooty_sin"] == pytest.approx(np.sin(qpos["rooty"]).item(), abs=1e-5)
    assert state["velocity/right_knee"] != before["velocity/right_knee"]


def test_state_holds_targets_and_balls():
    env = make("reacher-easy", state_in_info=True)
    targets = [dict(zip(state_names(env), env.reset(seed=seed)[1]["state"])) for seed in range(2)]
    assert targets[0]["position/target_x"] != targets[1]["position/target_x"]
    position = env.unwrapped.physics.named.data.geom_xpos["target"]
    assert targets[1]["position/target_y"] == pytest.approx(position[1], abs=1e-6)
    assert "position/ball_x" in state_names(make("ball_in_cup-catch"))
    assert "position/slider" in state_names(make("cartpole-swingup"))  # a camera that stands still shows it


def test_quaternions_in_the_state_have_one_sign():
    env = make("fish-upright", state_in_info=True)
    at = state_names(env).index("position/root_qw")
    states = [env.reset(seed=seed, options={"random_init": True})[1]["state"] for seed in range(6)]
    assert all(state[at] >= 0 for state in states)


# Gymnasium's rules


def test_known_tasks_are_those_of_dm_control():
    make().close()
    from dm_control import suite

    assert sorted(envs.TASKS) == sorted("-".join(task) for task in suite.ALL_TASKS)


@pytest.mark.parametrize("task", ["dog-walk", "humanoid_CMU-run", "lqr-lqr_6_2", "stacker-stack_2", "swimmer-swimmer6"])
def test_unusual_tasks_play(task):
    env = make(task, state_in_info=True)
    _, info = env.reset(seed=0, options={"random_init": True})
    assert len(info["state"]) == len(state_names(env)) == len(set(state_names(env)))
    frame, reward, *_, info = env.step(env.action_space.sample())
    assert np.isfinite(reward)
    assert np.isfinite(info["state"]).all()
    assert frame.std() > 0


def test_gymnasium_finds_nothing_to_warn_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make("cartpole-swingup", state_in_info=True).unwrapped)


def test_specs_survive_json_and_pickle():
    env = make_dmc("cartpole-swingup", size=np.int64(40), camera="lookatcart", action_repeat="planet", seed=3)
    first = env.reset()[0]
    for spec in (EnvSpec.from_json(env.spec.to_json()), pickle.loads(pickle.dumps(env.spec))):
        again = gymnasium.make(spec)
        assert again.spec == env.spec
        assert np.array_equal(again.reset()[0], first)
    copy = pickle.loads(pickle.dumps(env.unwrapped))
    assert np.array_equal(copy.reset()[0], first)


def test_a_fresh_interpreter_imports_little_and_knows_the_ids_also_vectorised():
    printed = run_python(
        "import gymnasium, os, sys, envs\n"
        "print(sorted({'torch', 'dm_control', 'mujoco', 'stable_baselines3', 'minari'} & set(sys.modules)))\n"
        "print('MUJOCO_GL' in os.environ)\n"
        "env = gymnasium.make('envs:dmc/walker-run-v0', size=20, render_quality='fast')\n"
        "vector = gymnasium.make_vec('envs:dmc/walker-run-v0', 2, 'async', size=20, render_quality='fast')\n"
        "print(vector.reset(seed=0)[0].shape)\n"
        "vector.close()\n"
        "print(env.reset(seed=0)[0].shape)"
    )
    assert printed.split("\n")[:4] == ["[]", "False", "(2, 20, 20, 3)", "(20, 20, 3)"]


def test_environments_in_one_process_are_independent():
    alone = make(seed=1)
    expected = [alone.reset()[0]] + [alone.step(np.ones(6, np.float32))[0] for _ in range(3)]
    env, other = make(seed=1), make("reacher-easy", seed=2, size=48)
    frames = [env.reset()[0]]
    other.reset()
    for step in range(3):
        if step == 2:
            other.close()
        else:
            other.step(np.ones(2, np.float32))
        frames.append(env.step(np.ones(6, np.float32))[0])
    assert all(np.array_equal(a, b) for a, b in zip(frames, expected))
    env.close()
    env.close()
    with pytest.raises(ClosedEnvironmentError):
        env.reset()


# Bad input


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"task": "walker-wlak"}, "walker-wlak.*walker-walk"),
        ({"task": "ball_in_cup_catch"}, "ball_in_cup_catch.*ball_in_cup-catch"),
        ({"task": "nonsense"}, "nonsense"),
        ({"size": 0}, "size must be.*0"),
        ({"size": 64.5}, "size must be.*64.5"),
        ({"size": 10**6}, "size must be.*1000000"),
        ({"size": True}, "size must be.*True"),
        ({"size": 1025, "render_quality": "smooth"}, "size must be.*1024.*1025"),
        ({"camera": "sied"}, "sied.*side"),
        ({"camera": 2}, "camera must be.*2.*side, back"),
        ({"camera": -2}, "camera must be.*-2"),
        ({"action_repeat": 0}, "action_repeat must be.*0"),
        ({"action_repeat": "dreamer"}, "action_repeat must be.*dreamer"),
        ({"task": "hopper-hop", "action_repeat": "planet"}, "planet.*hopper"),
        ({"render_quality": "ultra"}, "render_quality must be.*ultra"),
        ({"seed": -1}, "seed must be.*-1"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_dmc(**kwargs)


def test_a_missing_dm_control_is_named_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "shimmy.dm_control_compatibility", None)  # what Python takes for "not installed"
    with pytest.raises(ImportError, match=r"need shimmy.dm_control_compatibility.* Python 3.13 .*docs/install.md"):
        make()


def test_bad_actions_are_named():
    env = DmcEnv(size=16, render_quality="fast")
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(6, np.float32))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(6,\)"):
        env.step(np.zeros(5, np.float32))
    with pytest.raises(ValueError, match="finite"):
        env.step(np.full(6, np.nan, np.float32))
