"""`RecordRollouts`: what is written is what was played, and the environment stays as it is."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import (
    Autoreset,
    ClipAction,
    DtypeObservation,
    FlattenObservation,
    GrayscaleObservation,
    ResizeObservation,
    TransformAction,
)
from moving_square import MovingSquare
from tiny_envs import UNIT, Painted, painted_frame
from tiny_models import SIZE, tiny_model
from tiny_runs import REPEAT, policy_settings

from agents import EvaluateSettings, evaluate, train_policy
from envs import CollectSettings, RecordRollouts, RolloutDataset, RolloutError, make_dmc
from envs.collection.worker import make_players, play_episode


def make(**kwargs):
    arguments = {"size": 32, "render_quality": "fast", "action_repeat": 250, "state_in_info": True}
    return make_dmc("cartpole-swingup", **(arguments | kwargs))


def play(env, episodes, seed=None):
    """Frames, actions, rewards and states of whole episodes."""
    random, played = np.random.default_rng(0), []
    for number in range(episodes):
        frame, info = env.reset(seed=seed if number == 0 else None)
        frames, actions, rewards, states, ended = [frame], [], [], [info["state"]], False
        while not ended:
            actions.append(random.uniform(-1, 1, 1).astype(np.float32))
            frame, reward, terminated, truncated, info = env.step(actions[-1])
            frames.append(frame)
            rewards.append(reward)
            states.append(info["state"])
            ended = terminated or truncated
        played.append((np.stack(frames), np.stack(actions), np.float32(rewards), np.stack(states)))
    return played


def test_what_is_written_is_what_was_played(tmp_path):
    env, bare = RecordRollouts(make(), tmp_path, policy="mine"), make()
    played, reference = play(env, 2, seed=5), play(bare, 2, seed=5)
    env.reset()
    env.step(np.zeros(1, np.float32))  # broken off: not written
    env.close()
    bare.close()
    dataset = RolloutDataset(tmp_path)
    assert len(dataset) == 2
    for episode, mine, others in zip(dataset, played, reference):
        for name, value, other in zip(("pixels", "actions", "rewards", "states"), mine, others):
            np.testing.assert_array_equal(getattr(episode, name), value)
            np.testing.assert_array_equal(value, other)
        assert (episode.policy, episode.seed, episode.terminated, episode.truncated) == ("mine", 5, False, True)


def test_an_autoreset_below_begins_a_new_episode(tmp_path):
    env, action = RecordRollouts(Autoreset(make()), tmp_path / "autoreset"), np.ones(1, np.float32)
    env.reset(seed=3)
    for _ in range(9):  # two episodes of four steps, and between them the step that only resets
        env.step(action)
    env.close()
    env = RecordRollouts(make(), tmp_path / "by-hand")
    for seed in (3, None):
        env.reset(seed=seed)
        for _ in range(4):
            env.step(action)
    env.close()
    recorded, expected = RolloutDataset(tmp_path / "autoreset"), RolloutDataset(tmp_path / "by-hand")
    assert len(recorded) == len(expected) == 2
    for one, other in zip(recorded, expected):
        for name in ("pixels", "actions", "rewards", "states"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_several_environments_and_later_runs_add_to_one_dataset(tmp_path):
    for _ in range(2):
        first, second = RecordRollouts(make(), tmp_path), RecordRollouts(make(), tmp_path)
        played = [*play(first, 2, seed=1), *play(second, 1, seed=2), *play(first, 1, seed=3)]
        for env in (first, second):
            env.close()
    dataset = RolloutDataset(tmp_path)
    assert dataset.indices == list(range(8))
    assert [episode.seed for episode in dataset] == [1, 1, 2, 3] * 2
    for episode, (frames, *_) in zip(dataset[4:], played):
        np.testing.assert_array_equal(episode.pixels, frames)


def test_recorders_in_two_processes_keep_every_episode(tmp_path):
    script = (
        "import sys\n"
        f"sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "from envs import RecordRollouts\n"
        "from moving_square import MovingSquare\n"
        "env = RecordRollouts(MovingSquare(size=32, length=2), sys.argv[1])\n"
        "env.reset()\n"
        "print('ready', flush=True)\n"
        "input()\n"
        "for number in range(6):\n"
        "    env.reset(seed=int(sys.argv[2]) + number)\n"
        "    env.step(env.action_space.sample())\n"
        "    env.step(env.action_space.sample())\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, tmp_path, seed], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for seed in ("0", "10")
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    dataset = RolloutDataset(tmp_path)
    assert dataset.indices == list(range(12))
    assert sorted(episode.seed for episode in dataset) == [*range(6), *range(10, 16)]
    env = MovingSquare(size=32)
    for episode in dataset:
        np.testing.assert_array_equal(episode.pixels[0], env.reset(seed=episode.seed)[0])


def test_another_environment_is_refused(tmp_path):
    RecordRollouts(make(), tmp_path).close()
    other = make(size=48)
    with pytest.raises(RolloutError, match="size is 48, the dataset has 32"):
        RecordRollouts(other, tmp_path)
    other.close()


def test_without_states_none_are_recorded(tmp_path):
    env = RecordRollouts(make(state_in_info=False), tmp_path)
    env.reset(seed=0)
    for _ in range(4):
        env.step(np.ones(1, np.float32))
    env.close()
    assert RolloutDataset(tmp_path)[0].states is None


@pytest.mark.parametrize("num_envs", [1, 2])
def test_train_policy_records_what_it_trains_on(tmp_path, num_envs):
    tiny_model(action_dim=1).save_pretrained(tmp_path / "model")
    settings = policy_settings(
        tmp_path / "model", tmp_path / "run", record=tmp_path / "data", num_envs=num_envs, total_frames=44 * REPEAT
    )
    train_policy(settings)
    dataset = RolloutDataset(tmp_path / "data")
    assert len(dataset) == 2
    assert [len(episode) for episode in dataset] == [20, 20]
    assert dataset[0].policy == "training:context"
    assert dataset.meta["state_names"]


def test_evaluate_records_what_it_plays_and_adds_to_it(tmp_path):
    tiny_model(action_dim=1).save_pretrained(tmp_path / "model")
    train_policy(policy_settings(tmp_path / "model", tmp_path / "run", total_frames=22 * REPEAT))
    settings = EvaluateSettings(policy=tmp_path / "run", episodes=2, record=tmp_path / "data")
    results = [evaluate(settings), evaluate(replace(settings, seed=3))]
    dataset = RolloutDataset(tmp_path / "data")
    assert len(dataset) == 4
    returns = [sum(episode.rewards) for episode in dataset]
    np.testing.assert_allclose(returns, results[0].returns + results[1].returns, atol=1e-5)
    assert dataset[0].policy == "policy:context"
    assert dataset[0].states is not None


def record_painted(path, actions, wrap=lambda env: env, **arguments):
    """One episode of `Painted` under `actions`, whose caller spoils every array that it gives or gets."""
    painted = Painted(**arguments)
    env = RecordRollouts(wrap(painted), path)
    frame, info = env.reset(seed=0)
    for action in actions:
        sent = np.array(action)
        frame[:] = 0
        if "state" in info:
            info["state"][:] = -1
        frame, _, _, _, info = env.step(sent)
        sent *= 0
    frame[:] = 0
    (episode,) = dataset = RolloutDataset(path)
    return episode, dataset.meta


FOUR = np.float32([[0.5, 1.7], [-1, 0], [-9, 0.25], [2, -2]])


def test_any_environment_of_frames_is_recorded_by_value(tmp_path):
    """Whatever environment, policy and caller do to the arrays later."""
    episode, meta = record_painted(
        tmp_path, FOUR, action_space=spaces.Box(-2, 2, (2,)), spoils_actions=True, one_buffer=True, state_in_info=True
    )
    np.testing.assert_array_equal(episode.pixels, [painted_frame(step) for step in range(5)])
    np.testing.assert_array_equal(episode.states, np.arange(5, dtype=np.float32)[:, None])
    np.testing.assert_array_equal(episode.actions, np.clip(FOUR, -2, 2) / 2)
    assert meta["actions"] == {"encoding": "normalised", "shape": [2], "low": [-2, -2], "high": [2, 2]}
    assert (meta["action_size"], meta["state_names"]) == (2, ["position/step"])
    assert meta["frame_contract"] == {
        "size": SIZE,
        "channels": 3,
        "tasks": ["unknown"],
        "action_repeat": None,
        "camera": None,
        "render_quality": None,
    }


def test_states_are_left_out_where_the_environment_has_none(tmp_path):
    episode, meta = record_painted(tmp_path, FOUR)
    assert episode.states is None
    assert meta["state_names"] is None


@pytest.mark.parametrize(
    ("space", "actions", "rows", "entry"),
    [
        (spaces.Discrete(3, start=1), [1, 3, 2, 2], np.eye(3)[[0, 2, 1, 1]], {"choices": [3], "start": [1]}),
        (spaces.MultiDiscrete([2, 1]), [[0, 0], [1, 0]] * 2, [[1, 0, 1], [0, 1, 1]] * 2, {"choices": [2, 1]}),
        (spaces.MultiBinary(2), [[0, 1], [1, 1]] * 2, [[0, 1], [1, 1]] * 2, {"encoding": "bits"}),
    ],
    ids=str,
)
def test_choices_are_recorded_one_hot(tmp_path, space, actions, rows, entry):
    episode, meta = record_painted(tmp_path, actions, action_space=space)
    np.testing.assert_array_equal(episode.actions, rows)
    assert meta["actions"].items() >= entry.items()


def test_actions_are_recorded_as_what_lies_below_clips_them(tmp_path):
    episode, meta = record_painted(tmp_path, 10 * FOUR, ClipAction, action_space=spaces.Box(-2, 2, (2,)))
    np.testing.assert_array_equal(episode.actions, np.clip(10 * FOUR, -2, 2) / 2)
    assert meta["actions"]["high"] == [2, 2]


def test_wrappers_that_change_actions_are_named(tmp_path):
    with pytest.warns(UserWarning, match="TransformAction below RecordRollouts changes actions"):
        RecordRollouts(TransformAction(Painted(), np.tanh, None), tmp_path)


def test_what_is_not_finite_is_neither_taken_nor_recorded(tmp_path):
    painted = Painted()
    env = RecordRollouts(painted, tmp_path)
    env.reset()
    with pytest.raises(ValueError, match="neither NaN nor infinite"):
        env.step(np.float32([0, np.nan]))
    assert painted.taken == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Painted(spaces.Dict({"gas": spaces.Discrete(2)})), "cannot be recorded: actions of Dict"),
        (lambda: GrayscaleObservation(Painted()), "expected square RGB frames"),
        (lambda: ResizeObservation(Painted(), (16, 32)), "expected square RGB frames"),
        (lambda: FlattenObservation(Painted()), "expected square RGB frames"),
        (lambda: DtypeObservation(Painted(), np.float32), "expected frames of dtype uint8"),
    ],
)
def test_what_cannot_be_recorded_is_refused_before_any_work(tmp_path, make, message):
    with pytest.raises(RolloutError, match=message):
        RecordRollouts(make(), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_frames_that_a_wrapper_resized_are_recorded_in_their_size(tmp_path):
    env = RecordRollouts(ResizeObservation(make(), (16, 16)), tmp_path)
    play(env, 1)
    env.close()
    (episode,) = dataset = RolloutDataset(tmp_path)
    assert dataset.meta["frame_contract"]["size"] == 16
    assert episode.pixels.shape == (5, 16, 16, 3)


def test_a_dataset_that_does_not_say_how_actions_are_encoded_can_be_added_to(tmp_path):
    record_painted(tmp_path / "unit", FOUR, action_space=UNIT)
    record_painted(tmp_path / "wide", FOUR, action_space=spaces.Box(-2, 2, (2,)))
    for name in ("unit", "wide"):
        file = tmp_path / name / "meta.json"
        meta = json.loads(file.read_text())
        del meta["actions"]
        file.write_text(json.dumps(meta))
    RecordRollouts(Painted(), tmp_path / "unit")
    with pytest.raises(RolloutError, match=r"actions is .*-1\.0.* there and .*-2\.0.* here"):
        RecordRollouts(Painted(spaces.Box(-2, 2, (2,))), tmp_path / "wide")


class Careless:
    """Works in place on what it sees, sends what its bounds do not hold, and uses one array for all actions."""

    def __init__(self, context):
        self.action = np.zeros(context.action_size, np.float32)

    def begin(self, rng):
        self.action[:] = 1.9
        return "careless"

    def act(self, frame, state):
        frame //= 2
        state -= 5
        self.action -= 0.6
        return self.action


def test_a_careless_policy_spoils_no_episode():
    settings = CollectSettings(
        task="cartpole-swingup", size=SIZE, render_quality="fast", max_steps=4, policy=f"{__name__}:Careless"
    )
    env, policy = make_players(settings)
    episode, again = (play_episode(env, policy, settings, 0) for _ in range(2))
    np.testing.assert_allclose(episode.actions[:, 0], [1, 0.7, 0.1, -0.5], atol=1e-6)
    frame, info = env.reset(seed=episode.seed, options={"random_init": False})
    np.testing.assert_array_equal(episode.pixels[0], frame)
    np.testing.assert_array_equal(episode.states[0], info["state"])
    for step, action in enumerate(episode.actions):
        frame, *_, info = env.step(action)
        np.testing.assert_array_equal(episode.pixels[step + 1], frame)
        np.testing.assert_array_equal(episode.states[step + 1], info["state"])
    env.close()
    for name in vars(episode):
        np.testing.assert_array_equal(getattr(again, name), getattr(episode, name))


def test_what_is_done_to_an_episode_that_was_read_stays_there(tmp_path):
    record_painted(tmp_path, FOUR, state_in_info=True)
    dataset = RolloutDataset(tmp_path)
    before = dataset[0]
    for name in ("actions", "rewards", "states"):
        read = getattr(dataset[0], name)
        read *= 0
        np.testing.assert_array_equal(getattr(dataset[0], name), getattr(before, name))
        assert getattr(before, name).any()
