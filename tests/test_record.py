"""`RecordRollouts`: what is written is what was played, and the environment stays as it is."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from gymnasium.wrappers import Autoreset
from tiny_models import tiny_model
from tiny_runs import REPEAT, policy_settings

from agents import EvaluateSettings, evaluate, train_policy
from envs import RecordRollouts, RolloutDataset, RolloutError, make_dmc


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
        "from envs import RecordRollouts, make_dmc\n"
        "env = make_dmc('cartpole-swingup', size=32, render_quality='fast', action_repeat=500, state_in_info=True)\n"
        "env = RecordRollouts(env, sys.argv[1])\n"
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
    env = make()
    for episode in dataset:
        np.testing.assert_array_equal(episode.pixels[0], env.reset(seed=episode.seed)[0])
    env.close()


def test_another_environment_is_refused(tmp_path):
    RecordRollouts(make(), tmp_path).close()
    other = make(size=48)
    with pytest.raises(RolloutError, match="frame_contract"):
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
