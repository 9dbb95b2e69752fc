"""`add_rollouts`: the replay buffer holds what it would if the policy had played the recorded episodes itself."""

import os
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.save_util import load_from_pkl
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_envs import LENGTH as PAINTED
from tiny_envs import Painted
from tiny_models import SIZE, offline_contexts, small_frames_model
from tiny_runs import REPEAT, kill_at_second_evaluation, policy_settings, rollout_meta

from agents import AdaptContext, VecPerceiverContext, add_rollouts, train_policy
from agents.training.policy_files import PolicyRecord
from envs import RecordRollouts, RolloutDataset, make_dmc
from perceiver_obs import ActionEncoding
from perceiver_obs.data.data_record import write_data_record
from perceiver_obs.data.rollouts import RolloutWriter

LENGTH = 11
TOLERANCE = 1e-5
COLUMNS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def make_short(path=None):
    env = TimeLimit(make_dmc("cartpole-swingup", size=SIZE, action_repeat=2, render_quality="fast"), LENGTH)
    return env if path is None else RecordRollouts(env, path)


def make_policy(num_envs=1, path=None, cls=SAC, **changes):
    venv = VecPerceiverContext(DummyVecEnv([partial(make_short, path)] * num_envs), small_frames_model())
    arguments = {"learning_starts": 1000, "buffer_size": 500} if cls is SAC else {}
    return cls("MlpPolicy", venv, **(arguments | changes), policy_kwargs={"net_arch": [8]}, seed=0, device="cpu")


def episodes_of(path, lengths, terminated, action_size=1, **contract):
    """A dataset of episodes of noise that looks like the environment's own, but for changes to the contract."""
    contract = {**make_short().get_wrapper_attr("frame_contract"), **contract}
    meta = {**rollout_meta(action_size, SIZE, states=False), "frame_contract": contract}
    size = contract["size"]
    writer, random = RolloutWriter(path, meta), np.random.default_rng(0)
    for index, (steps, ends) in enumerate(zip(lengths, terminated)):
        pixels = random.integers(0, 256, (steps + 1, size, size, 3), dtype=np.uint8)
        actions = random.uniform(-1, 1, (steps, action_size)).astype(np.float32)
        rewards = (10 * index + np.arange(steps)).astype(np.float32)
        writer.write_episode(index, pixels, actions, rewards, ends, not ends, seed=0, policy="noise")
    return path


def test_the_buffer_is_that_of_the_policy_that_recorded(tmp_path):
    recorder = make_policy(path=tmp_path / "data")
    recorder.learn(3 * LENGTH + 4)  # the last episode is broken off, and so not recorded
    policy = make_policy()
    assert add_rollouts(policy, [tmp_path / "data", str(tmp_path / "data")]) == 3 * LENGTH
    assert policy.replay_buffer.size() == 3 * LENGTH
    for name in COLUMNS:
        expected, found = (getattr(each.replay_buffer, name)[: 3 * LENGTH] for each in (recorder, policy))
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, err_msg=name)
    assert np.flatnonzero(policy.replay_buffer.timeouts).tolist() == [LENGTH - 1, 2 * LENGTH - 1, 3 * LENGTH - 1]
    policy.learning_starts = 0
    policy.learn(3)
    assert policy._n_updates == 3


@pytest.mark.parametrize(
    ("algorithm", "space"),
    [
        (SAC, spaces.Box(-2, 2, (2,))),
        (SAC, spaces.Box(np.float32([0, -50]), np.float32([4, 50]))),
        (DQN, spaces.Discrete(3)),
    ],
    ids=str,
)
def test_actions_are_in_the_buffers_unit(tmp_path, algorithm, space):
    """Whatever the environment's: SAC's scaled by the policy, DQN's choices as numbers."""

    def make(path=None):
        env = Painted(space) if path is None else RecordRollouts(Painted(space), path)
        venv = VecPerceiverContext(DummyVecEnv([lambda: env]), small_frames_model(action_dim=3))
        return algorithm("MlpPolicy", venv, buffer_size=100, learning_starts=100, seed=0, device="cpu")

    recorder, policy = make(tmp_path / "data"), make()
    recorder.learn(3 * PAINTED)
    assert add_rollouts(policy, [tmp_path / "data"]) == 3 * PAINTED
    for name in COLUMNS:
        expected, found = (getattr(each.replay_buffer, name)[: 3 * PAINTED] for each in (recorder, policy))
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, err_msg=name)
    if algorithm is SAC:
        assert 0.5 < np.abs(policy.replay_buffer.actions[: 3 * PAINTED]).max() <= 1
        actions = ActionEncoding.from_space(space).decode(RolloutDataset(tmp_path / "data")[0].actions)
        scaled = policy.policy.scale_action(actions.astype(np.float32))
        np.testing.assert_array_equal(policy.replay_buffer.actions[:PAINTED, 0], scaled)
    else:
        assert set(policy.replay_buffer.actions[: 3 * PAINTED].ravel()) == {0, 1, 2}


def test_actions_of_another_kind_or_unit_are_no_secret(tmp_path):
    def recorded(name, space):
        env = RecordRollouts(Painted(space), tmp_path / name)
        env.reset()
        for _ in range(PAINTED):
            env.step(env.action_space.sample())
        return [tmp_path / name]

    venv = VecPerceiverContext(DummyVecEnv([lambda: Painted(spaces.Box(-2, 2, (2,)))]), small_frames_model(3))
    policy = SAC("MlpPolicy", venv, buffer_size=100, device="cpu")
    with pytest.raises(ValueError, match="has one-hot actions of 2 choices, the environment takes actions of shape"):
        add_rollouts(policy, recorded("choices", spaces.Discrete(2)))
    with pytest.raises(ValueError, match="has bits of shape"):
        add_rollouts(policy, recorded("bits", spaces.MultiBinary(2)))
    with pytest.warns(UserWarning, match=r"normalised from \(-1.0, -1.0\) to .* from \(-2.0, -2.0\)"):
        add_rollouts(policy, recorded("unit", spaces.Box(-1, 1, (2,))))


def test_rows_get_whole_episodes_and_are_cut_to_the_shortest(tmp_path):
    data = episodes_of(tmp_path / "data", [5, 4, 3, 2], [True, True, False, True])
    policy = make_policy(num_envs=2)
    assert add_rollouts(policy, [data]) == 2 * 6  # 5 + 3 in one row, 4 + 2 in the other
    buffer = policy.replay_buffer
    assert buffer.rewards[:6].T.tolist() == [[0, 1, 2, 3, 4, 20], [10, 11, 12, 13, 30, 31]]
    assert buffer.dones[:6].T.tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 0, 1]]
    assert buffer.timeouts[:6].T.tolist() == [[0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]]
    encoder = policy.get_env().encoder
    episode = RolloutDataset(data)[2]
    encoder.reset()
    first = encoder.push(np.stack([episode.pixels[0]] * 2), np.zeros((2, 1), np.float32))[0]
    second = encoder.push(np.stack([episode.pixels[1]] * 2), np.stack([episode.actions[0]] * 2))[0]
    np.testing.assert_allclose(buffer.observations[5, 0], first, atol=TOLERANCE)
    np.testing.assert_allclose(buffer.next_observations[5, 0], second, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cls": PPO}, "add_rollouts needs an algorithm with a replay buffer such as SAC, got PPO"),
        ({"buffer_size": 10}, "room for 10 transitions, the rollouts hold 15: make buffer_size larger"),
        ({"num_envs": 4}, "4 rows need an episode each, the rollouts hold 3"),
    ],
)
def test_policies_that_cannot_take_them_are_refused(tmp_path, changes, message):
    data = episodes_of(tmp_path / "data", [6, 5, 4], [False] * 3)
    with pytest.raises(ValueError, match=message):
        add_rollouts(make_policy(**changes), [data])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["walker-walk"]}, "task walker-walk is new, the environment shows cartpole-swingup"),
        ({"action_repeat": 8}, "action_repeat is 8, the environment shows 2"),
        ({"render_quality": "smooth"}, "render_quality is 'smooth', the environment shows 'fast'"),
        ({"size": 64}, "size is 64, the environment shows 32"),
        ({"action_size": 2}, r"has actions of shape \(2,\), the environment \(1,\)"),
    ],
)
def test_rollouts_that_do_not_fit_are_refused(tmp_path, changes, message):
    policy = make_policy()
    with pytest.raises(ValueError, match=message):
        add_rollouts(policy, [episodes_of(tmp_path / "data", [4], [False], **changes)])
    assert policy.replay_buffer.size() == 0


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["nowhere"], "no rollout dataset at nowhere"),
        ([], "1 rows need an episode each, the rollouts hold 0"),
        ("nowhere", "a sequence of rollout directories is needed, got 'nowhere' alone"),
    ],
)
def test_paths_that_hold_nothing_are_refused(paths, message):
    with pytest.raises(ValueError, match=message):
        add_rollouts(make_policy(), paths)


@pytest.mark.parametrize("num_envs", [1, 2])
def test_adapt_context_makes_their_contexts_anew_too(tmp_path, num_envs):
    """Also where a row's last episode was cut: 9 + 7 steps in one row, 8 in the other."""
    data = episodes_of(tmp_path / "data", [9, 8, 7], [False] * 3)
    policy = make_policy(num_envs)
    adapt = AdaptContext(
        every=10 * num_envs, steps=2, batch_size=4, learning_rate=1e-2, prior_data=[data], token_cache=tmp_path
    )
    policy.learn(15 * num_envs, callback=adapt)
    assert adapt.adaptations == 1
    assert adapt.frames.offline == 24 * 2, "an agent step takes two control steps"
    assert adapt.perceiver.fingerprint != small_frames_model().fingerprint
    lengths = {1: [[9, 8, 7]], 2: [[8], [8]]}[num_envs]
    for row, steps in enumerate(lengths):
        place = 0
        for episode, count in zip(RolloutDataset(data)[row::num_envs], steps):
            contexts = offline_contexts(adapt.perceiver, episode.pixels, list(episode.actions))
            now = slice(place, place + count)
            found = policy.replay_buffer.observations[now, row], policy.replay_buffer.next_observations[now, row]
            np.testing.assert_allclose(found, [contexts[:count], contexts[1 : count + 1]], atol=TOLERANCE)
            place += count
    assert policy.replay_buffer.size() == place + 15


def test_adapt_context_refuses_what_it_has_no_frames_of(tmp_path):
    policy = make_policy()
    add_rollouts(policy, [episodes_of(tmp_path / "data", [4], [False])])
    with pytest.raises(ValueError, match="the frames of only 0 were kept"):
        policy.learn(5, callback=AdaptContext(token_cache=tmp_path / "tokens"))


@pytest.fixture
def settings(tmp_path):
    """A run whose buffer begins with 6 times 24 transitions."""
    model = tmp_path / "model"
    small_frames_model().save_pretrained(model)
    write_data_record(model, [])
    data = episodes_of(tmp_path / "data", [24] * 6, [False] * 6, action_repeat=REPEAT)
    return policy_settings(model, tmp_path / "run", size=SIZE, prior_data=(str(data),))


@pytest.mark.parametrize("adapt_every", [None, 32 * REPEAT])
def test_a_run_begins_with_them_once(settings, monkeypatch, adapt_every):
    (data,) = settings.prior_data
    settings = replace(settings, prior_data=(data, os.path.relpath(data)), adapt_every=adapt_every, adapt_steps=2)
    kill_at_second_evaluation(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train_policy(settings)
    monkeypatch.undo()
    train_policy(settings)
    (replay,) = settings.out.glob("checkpoints/*/replay_buffer.pkl")
    assert load_from_pkl(replay).size() == 6 * 24 + 47  # a step's transition is stored after its checkpoint
    record = PolicyRecord.load(settings.out)
    assert [each["fingerprint"] for each in record.offline_data] == [RolloutDataset(data).fingerprint]
    if adapt_every:
        assert record.adaptation["frames"].startswith("7,200 offline + 2,400 online")


def test_a_run_with_other_rollouts_is_not_gone_on_with(settings):
    train_policy(settings)
    with pytest.raises(ValueError, match="was begun with other settings"):
        train_policy(replace(settings, prior_data=(), total_frames=60 * REPEAT))
