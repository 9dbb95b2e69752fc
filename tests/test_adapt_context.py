"""`AdaptContext`: after the Perceiver has learned, everything that holds contexts holds those of the new one."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from global_state import untouched
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecFrameStack, VecMonitor, VecNormalize
from tiny_envs import LENGTH, Painted, painted_frame
from tiny_models import SIZE, offline_contexts, small_frames_model, tiny_model
from tiny_runs import write_dataset

from agents import (
    AdaptContext,
    VecPerceiverContext,
)
from agents.adaptation.online_episodes import OnlineEpisode, OnlineEpisodes
from agents.adaptation.replay_contexts import catch_up
from envs import make_dmc
from perceiver_obs.context_encoder import ContextEncoder
from perceiver_obs.data.rollouts import RolloutDataset
from perceiver_obs.data.state_coordinates import StateCoordinates
from perceiver_obs.objectives.saved_heads import read_heads
from perceiver_obs.training.adaptation import Adaptation, OnlineData, training_settings
from perceiver_obs.training.settings import TrainPredictorSettings

pytest_plugins = ("tiny_data",)

LENGTHS = (11, 14)  # of the episodes of each row; a clip of the tiny models takes 7 frames
TOLERANCE = 1e-5


def make_short(length: int) -> gym.Env:
    return TimeLimit(make_dmc("cartpole-swingup", size=SIZE, action_repeat=2, render_quality="fast"), length)


class Recorder(VecEnvWrapper):
    """Keeps frames `[T + 1]` and actions `[T]` of all episodes of each row, as they come from the environments."""

    def reset(self):
        frames = self.venv.reset()
        self.rows = [[([frame.copy()], [])] for frame in frames]
        return frames

    def step_async(self, actions):
        self.actions = np.array(actions, np.float32)
        super().step_async(actions)

    def step_wait(self):
        frames, rewards, dones, infos = self.venv.step_wait()
        for row, episodes in enumerate(self.rows):
            episodes[-1][1].append(self.actions[row])
            episodes[-1][0].append(infos[row]["terminal_observation"].copy() if dones[row] else frames[row].copy())
            if dones[row]:
                episodes.append(([frames[row].copy()], []))
        return frames, rewards, dones, infos


def make_venv(model, num_envs=1):
    recorder = Recorder(DummyVecEnv([partial(make_short, length) for length in LENGTHS[:num_envs]]))
    return VecPerceiverContext(recorder, model), recorder


def make_policy(venv, cls=SAC, **changes):
    arguments = {"buffer_size": 1000, "learning_starts": 6, "batch_size": 8, "policy_kwargs": {"net_arch": [8]}}
    return cls("MlpPolicy", venv, **(arguments | changes), gradient_steps=-1, seed=0, device="cpu")


def callback(tmp_path, **changes):
    """Small adaptations whose steps are large, so that contexts change well above rounding errors."""
    arguments = {"every": 20, "steps": 3, "batch_size": 4, "learning_rate": 1e-2, "token_cache": tmp_path / "tokens"}
    return AdaptContext(**(arguments | changes))


def assert_contexts_of(model, policy, recorder, steps):
    """Replay buffer and last observation hold what `model` gives for the recorded episodes."""
    buffer = policy.replay_buffer
    for row, episodes in enumerate(recorder.rows):
        contexts = [offline_contexts(model, frames, actions) for frames, actions in episodes]
        before = np.concatenate([each[:-1] for each in contexts])
        after = np.concatenate([each[1:] for each in contexts])
        assert len(before) == steps
        for number in range(steps - buffer.size(), steps):
            place = number % buffer.buffer_size
            np.testing.assert_allclose(buffer.observations[place, row], before[number], atol=TOLERANCE)
            np.testing.assert_allclose(buffer.next_observations[place, row], after[number], atol=TOLERANCE)
        np.testing.assert_allclose(policy._last_obs[row], contexts[-1][-1], atol=TOLERANCE)


@pytest.mark.parametrize(
    ("num_envs", "buffer_size", "cls", "changes"),
    [
        (1, 1000, SAC, {}),
        (1, 17, TD3, {"token_time_kernel": 1}),
        (2, 1000, SAC, {"action_dim": None}),
        (2, 37, SAC, {"use_3d_conv": True, "timescales": ("fast", "medium")}),
    ],
)
def test_all_contexts_are_those_of_the_adapted_perceiver(tiny_data, tmp_path, num_envs, buffer_size, cls, changes):
    """Episodes end before, at and after adaptations; the last of these lies in the midst of one."""
    model = small_frames_model(**changes)
    venv, recorder = make_venv(model, num_envs)
    policy = make_policy(VecMonitor(venv), cls, buffer_size=buffer_size)
    adapt = callback(tmp_path, data=[tiny_data], every=20 * num_envs)
    policy.learn(45 * num_envs, adapt)
    assert adapt.adaptations == 2
    assert len(recorder.rows[0]) == 5
    new = venv.encoder.model
    assert venv.encoder.fingerprint == adapt.perceiver.fingerprint != model.fingerprint
    frames, actions = recorder.rows[0][0]
    assert (
        np.abs(offline_contexts(new, frames, actions) - offline_contexts(model, frames, actions)).max()
        > 100 * TOLERANCE
    )
    assert_contexts_of(new, policy, recorder, steps=45)
    venv.close()


def test_an_encoder_catches_up_with_episodes_of_any_length_at_every_timescale():
    """Only the last frames are read again, from one on at which every timescale goes on as if it had seen all."""
    model = small_frames_model(video_shape=(1, 3, SIZE, SIZE), timescales=("fast", "medium", "slow"))
    random = np.random.default_rng(0)
    running = [
        OnlineEpisode(
            random.integers(0, 256, (length, SIZE, SIZE, 3), dtype=np.uint8),
            random.uniform(-1, 1, (length - 1, 1)).astype(np.float32),
            np.zeros(length - 1, np.float32),
        )
        for length in (1, 17, 20, 49, 59)
    ]
    expected = [offline_contexts(model, list(episode.pixels), list(episode.actions))[-1] for episode in running]
    caught_up = catch_up(ContextEncoder(model, len(running), "cpu", "torch"), running)
    np.testing.assert_allclose(caught_up, expected, atol=TOLERANCE)


SETTINGS = TrainPredictorSettings(edge_weight=1.0, clip_length=7, batch_size=4, learning_rate=3e-3)


def learner(data, token_cache, model=None, share=0.5, settings=SETTINGS, state_names=None, heads=None):
    """An adaptation of which only the given arguments differ."""
    online = OnlineData("cartpole-swingup", share, state_names)
    device = torch.device("cpu")
    return Adaptation(model or small_frames_model(), data, settings, online, token_cache, device, heads)


def test_the_perceiver_learns_to_predict_the_online_episodes(tiny_data, tmp_path, monkeypatch):
    model = small_frames_model()
    model.set_context_statistics(torch.full((32,), 0.1), torch.full((32,), 0.5))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adaptation = learner([], tmp_path, model)
    episodes = RolloutDataset(tiny_data)[:3]
    phases, train = [], Adaptation._train

    def note(self, online, states, steps):
        before = self.model.fingerprint, offline_contexts(self.model, episodes[0].pixels, list(episodes[0].actions))
        losses = train(self, online, states, steps)
        after = self.model.fingerprint, offline_contexts(self.model, episodes[0].pixels, list(episodes[0].actions))
        phases.append((before[0] == after[0], np.array_equal(before[1], after[1])))
        return losses

    monkeypatch.setattr(Adaptation, "_train", note)
    first, last = adaptation.learn(episodes, 10), [adaptation.learn(episodes, 10) for _ in range(5)][-1]
    assert adaptation.steps == 10 + 6 * 10
    assert phases == [(False, True)] + 6 * [(False, False)], "what predicts learns alone at first"
    assert last["cross_entropy"] < 0.7 * first["cross_entropy"]
    assert last["edge"] < 0.97 * first["edge"]
    for name, tensor in adaptation.model.state_dict().items():
        fixed = "tokenizer" in name or name in (
            "context_mean",
            "context_scale",
            "predictor.token_adapter.mean",
            "predictor.token_adapter.scale",
        )
        if fixed:
            assert torch.equal(tensor, before[name]), name
    learned = "predictor.token_adapter.project.conv.weight"
    assert not torch.equal(adaptation.model.state_dict()[learned], before[learned])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "a copy learns"


@pytest.mark.parametrize("changes", [{}, {"reads": "frames", "inputs_per_frame": 2, "token_time_kernel": 1}])
def test_heads_that_a_run_has_left_go_on_and_need_no_steps_alone(tiny_data, tmp_path, monkeypatch, changes):
    model, episodes = small_frames_model(**changes), RolloutDataset(tiny_data)[:3]
    first = learner([], tmp_path, model)
    assert first.heads == "objective heads: all are learned anew"
    phases, train = [], Adaptation._train

    def note(self, online, states, steps):
        before = offline_contexts(self.model, episodes[0].pixels, list(episodes[0].actions))
        losses = train(self, online, states, steps)
        after = offline_contexts(self.model, episodes[0].pixels, list(episodes[0].actions))
        phases.append(np.array_equal(before, after))
        return losses

    monkeypatch.setattr(Adaptation, "_train", note)
    first.learn(episodes, 2)
    assert phases == [True, False], "heads learn alone at first, whatever the Perceiver reads"
    first.save_model(tmp_path / "model")
    settings = training_settings(tmp_path / "model")
    assert settings == SETTINGS
    again = learner([], tmp_path, first.model, settings=settings, heads=tmp_path / "model")
    for name, tensor in read_heads(tmp_path / "model").tensors.items():
        assert torch.equal(tensor, again._objective.latent.state_dict()[name]), name
        assert torch.equal(tensor, first._objective.latent.state_dict()[name]), name
    phases.clear()
    again.learn(episodes, 2)
    assert phases == [False]
    assert again.steps == 2
    other = Adaptation(
        first.model, [], settings, OnlineData("walker-walk"), tmp_path, torch.device("cpu"), tmp_path / "model"
    )
    assert other.heads.endswith("taken up; new tasks: walker-walk")
    phases.clear()
    other.learn(episodes, 1)
    assert phases == [True, False], "what is by task is new"


def test_states_of_online_episodes_are_regressed(tiny_data, tmp_path):
    dataset = RolloutDataset(tiny_data)
    settings = TrainPredictorSettings(state_weight=1.0, edge_weight=0.0, clip_length=7, batch_size=4, reward_weight=0.0)
    adaptation = learner([], tmp_path, settings=settings, state_names=dataset.meta["state_names"])
    first = adaptation.learn(dataset[:2], 3)["state"]
    assert 0.1 < first < 20
    assert adaptation.learn(dataset[:2], 30)["state"] < first
    assert adaptation.model.frame_contract["privileged"] == "state"
    other = write_dataset(tmp_path / "without", [20, 20], action_size=1, size=SIZE, task="cartpole-swingup")
    stateless = learner([other], tmp_path, settings=settings, state_names=dataset.meta["state_names"])
    stateless.learn(dataset[:2], 1)
    fitted = stateless._objective.latent.states
    known = np.concatenate(
        [StateCoordinates(dataset.meta["state_names"], "cartpole-swingup")(e.states) for e in dataset[:2]]
    )
    np.testing.assert_allclose(fitted.mean[0, :5], known.mean(0), atol=0.3 * known.std(0).max())
    assert (fitted.scale[0, :5] != 1).all(), "scaled by the states that are known, those online"
    unnamed = learner([tiny_data], tmp_path, settings=settings, share=1.0)
    assert unnamed.learn(dataset[:2], 1)["state"] == 0, "states without names are not known"
    with pytest.raises(ValueError, match="regressing states needs"):
        learner([], tmp_path, settings=settings)


def test_the_result_depends_on_data_and_seed_and_leaves_other_random_numbers_alone(tiny_data, tmp_path):
    episodes = RolloutDataset(tiny_data)[:]

    def fingerprint(online, **changes):
        model = small_frames_model()
        with untouched():
            adaptation = learner([tiny_data], tmp_path, model, **changes)
            adaptation.learn(online, 2)
        return adaptation.model.fingerprint

    same = fingerprint(episodes[:2])
    assert fingerprint(episodes[:2]) == same
    assert fingerprint(episodes[2:4]) != same
    assert fingerprint(episodes[:2], share=0.25) != same
    assert fingerprint(episodes[:2], share=0.0) == fingerprint(episodes[2:4], share=0.0)


def test_evaluation_environments_and_the_logger_hear_of_it(tmp_path):
    venv, _ = make_venv(small_frames_model())
    other, _ = make_venv(small_frames_model())
    policy = make_policy(venv)
    adapt = callback(tmp_path, evaluation_envs=[VecMonitor(other)], every=10)
    policy.learn(11, adapt)
    assert adapt.adaptations == 1
    assert other.encoder.fingerprint == venv.encoder.fingerprint == adapt.perceiver.fingerprint
    assert {"adaptation/edge", "adaptation/cross_entropy"} <= policy.logger.name_to_value.keys()
    assert adapt.frames.offline == 0
    assert adapt.frames.online == 11 * 2, "an agent step takes two control steps"
    for each in (venv, other):
        each.close()


def test_none_comes_at_the_end_and_a_second_call_goes_on(tmp_path):
    """Also where the environment is reset in between, in the midst of an episode."""
    venv, recorder = make_venv(small_frames_model())
    policy = make_policy(venv)
    adapt = callback(tmp_path, every=10)
    policy.learn(10, adapt)
    assert adapt.adaptations == 0
    policy.learn(8, adapt, reset_num_timesteps=False)
    assert adapt.adaptations == 1, "the one that was left out is made up for"
    assert_contexts_of(adapt.perceiver, policy, recorder, steps=18)
    episodes = recorder.rows[0]
    policy._last_obs = None
    policy.learn(5, adapt, reset_num_timesteps=False)
    assert adapt.adaptations == 2
    recorder.rows[0] = [*episodes, *recorder.rows[0]]
    assert_contexts_of(adapt.perceiver, policy, recorder, steps=23)
    venv.close()


def test_a_policy_saved_after_adaptations_is_refused_by_another_perceiver(tmp_path):
    model = small_frames_model()
    venv, follower = VecMonitor(make_venv(model)[0]), VecMonitor(make_venv(model)[0])
    policy = make_policy(venv)
    policy.save(tmp_path / "before")
    adapt = callback(tmp_path, every=10, evaluation_envs=[follower])
    policy.learn(11, adapt)
    policy.save(tmp_path / "after")
    adapt.perceiver.save_pretrained(tmp_path / "perceiver")
    fingerprint = adapt.perceiver.fingerprint
    for holder in (venv, venv.venv, follower, follower.venv, policy, policy.policy, policy.actor):
        assert holder.observation_space.fingerprint == fingerprint
    unadapted, adapted = make_venv(model)[0], make_venv(str(tmp_path / "perceiver"))[0]
    with pytest.raises(ValueError, match=f"fingerprint {fingerprint}.* != .*fingerprint {model.fingerprint}"):
        SAC.load(tmp_path / "after", env=unadapted, device="cpu")
    with pytest.raises(ValueError, match=f"fingerprint {model.fingerprint}.* != .*fingerprint {fingerprint}"):
        SAC.load(tmp_path / "before", env=adapted, device="cpu")
    loaded = SAC.load(tmp_path / "after", env=adapted, device="cpu")
    again = callback(tmp_path, every=10)
    loaded.learn(11, again)
    assert again.perceiver.fingerprint != fingerprint
    assert loaded.observation_space.fingerprint == again.perceiver.fingerprint, "though it shares no space"
    for each in (venv, follower, unadapted, adapted):
        each.close()


class Reset(BaseCallback):
    """Resets the training environment, as callbacks that look at it may."""

    def _on_step(self) -> bool:
        if self.n_calls == 7:
            self.training_env.reset()
        return True


def evaluate_there(venv):
    return EvalCallback(venv, n_eval_episodes=1, eval_freq=7, verbose=0)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("intruder", [evaluate_there, lambda venv: Reset()])
@pytest.mark.filterwarnings("ignore:.*EvalCallback.*:UserWarning", "ignore:Training and eval env")
def test_steps_that_others_take_are_not_kept(tmp_path, intruder, first):
    venv, _ = make_venv(small_frames_model())
    policy, adapt = make_policy(venv), callback(tmp_path)
    callbacks = [intruder(policy.get_env()), adapt] if first else [adapt, intruder(policy.get_env())]
    with pytest.raises(ValueError, match="by something else than the training, such as an EvalCallback"):
        policy.learn(19, callbacks)
    (episodes,) = adapt._online.rows()
    assert [episode.steps for episode in episodes] == [6 if first else 7]
    venv.close()


def test_an_evaluation_of_its_own_goes_on_beside_it(tmp_path):
    venv, recorder = make_venv(small_frames_model())
    other, _ = make_venv(small_frames_model())
    policy, adapt = make_policy(venv), callback(tmp_path, evaluation_envs=[other])
    policy.learn(25, [adapt, evaluate_there(other)])
    assert adapt.adaptations == 1
    assert_contexts_of(adapt.perceiver, policy, recorder, steps=25)
    for each in (venv, other):
        each.close()


def test_an_evaluation_between_two_calls_of_learn_leaves_nothing_behind(tmp_path):
    """It ends with an episode's beginning, which is not the end of the policy's own; SB3 does not reset for it."""
    venv, recorder = make_venv(small_frames_model())
    policy, adapt = make_policy(venv), callback(tmp_path)
    policy.learn(8, adapt)
    episodes = recorder.rows[0]
    evaluate_policy(policy, venv, n_eval_episodes=1, warn=False)
    with pytest.raises(ValueError, match="reset it before `learn`"):
        policy.learn(8, adapt, reset_num_timesteps=False)
    venv.reset()
    policy.learn(14, adapt, reset_num_timesteps=False)
    assert adapt.adaptations == 1
    recorder.rows[0] = [*episodes, *recorder.rows[0]]
    assert_contexts_of(adapt.perceiver, policy, recorder, steps=22)
    venv.close()


@pytest.mark.parametrize("num_envs", [1, 2])
def test_states_are_those_of_the_frames(tmp_path, num_envs):
    """`Painted` states its step; of an episode's end the last state counts, not that of the next one's beginning."""
    venv = DummyVecEnv([lambda: Painted(state_in_info=True)] * num_envs)
    context = VecPerceiverContext(venv, small_frames_model(2))
    assert context.state_names == ("position/step",)
    context.reset()
    online = OnlineEpisodes(num_envs, context.action_size)
    online.begin(context.seen)
    for _ in range(2 * LENGTH + 2):
        context.step(np.zeros((num_envs, 2), np.float32))
        online.add(context.seen)
    online.save(tmp_path / "online.npz")
    loaded = OnlineEpisodes(num_envs, context.action_size)
    loaded.load(tmp_path / "online.npz")
    for row in (*online.rows(), *loaded.rows()):
        assert [episode.states[:, 0].tolist() for episode in row] == [list(range(n + 1)) for n in (LENGTH, LENGTH, 2)]
        for episode in row:
            for frame, state in zip(episode.pixels, episode.states, strict=True):
                np.testing.assert_array_equal(frame, painted_frame(int(state[0])))
    without = VecPerceiverContext(DummyVecEnv([Painted]), small_frames_model(2))
    without.reset()
    online = OnlineEpisodes(1, 2)
    online.begin(without.seen)
    assert online.rows()[0][0].states is None


def test_frames_survive_saving_and_loading(tmp_path):
    venv, recorder = make_venv(small_frames_model(), num_envs=2)
    venv.reset()
    kept = OnlineEpisodes(2, 1)
    kept.begin(venv.seen)
    for action in np.linspace(-1, 1, 2 * 25, dtype=np.float32).reshape(25, 2, 1):
        venv.step(action)
        kept.add(venv.seen)
    assert sum(episode.steps for episode in kept.rows()[0]) == 25
    kept.save(tmp_path / "kept.npz")
    loaded = OnlineEpisodes(2, 1)
    loaded.load(tmp_path / "kept.npz")
    for episodes, again, recorded in zip(kept.rows(), loaded.rows(), recorder.rows, strict=True):
        assert len(recorded) > 1
        for episode, other, (frames, actions) in zip(episodes, again, recorded, strict=True):
            for each in (episode, other):
                np.testing.assert_array_equal(each.pixels, np.stack(frames))
                np.testing.assert_array_equal(each.actions, np.reshape(actions, (-1, 1)))
    loaded.begin(venv.seen)
    assert sum(episode.steps for episode in loaded.rows()[0]) == 25
    venv.close()


class Blind(gym.ActionWrapper):
    """Takes more numbers than the Perceiver reads."""

    def __init__(self, env):
        super().__init__(env)
        self.action_space = gym.spaces.Box(-1, 1, (3,), np.float32)

    def action(self, action):
        return action[:1]


def refused(message, make, tmp_path, **changes):
    with pytest.raises(ValueError, match=message):
        make().learn(12, callback(tmp_path, **({"every": 5} | changes)))


def test_what_it_cannot_work_with_is_named(tiny_data, tmp_path):
    venv, recorder = make_venv(small_frames_model())
    frames = recorder.venv
    refused("replay buffer such as SAC, got PPO", lambda: PPO("MlpPolicy", venv, n_steps=4, batch_size=4), tmp_path)
    refused("VecNormalize lies around", lambda: make_policy(VecNormalize(venv)), tmp_path)
    refused("VecFrameStack lies around", lambda: make_policy(VecFrameStack(venv, 2)), tmp_path)
    refused("needs a VecPerceiverContext", lambda: SAC("MlpPolicy", frames, buffer_size=10), tmp_path)
    larger = DummyVecEnv([partial(make_dmc, "cartpole-swingup", render_quality="fast")])
    pixels = VecPerceiverContext(larger, tiny_model(), keep_pixels=True)
    refused("contexts alone", lambda: SAC("MultiInputPolicy", pixels, buffer_size=10), tmp_path)
    blind = VecPerceiverContext(DummyVecEnv([lambda: Blind(make_short(9))]), small_frames_model())
    refused("cannot read those of", lambda: make_policy(blind), tmp_path)
    lean = {"replay_buffer_kwargs": {"handle_timeout_termination": False}, "optimize_memory_usage": True}
    refused("optimize_memory_usage", lambda: make_policy(venv, **lean), tmp_path)
    refused("longest online episode has 6 so far", lambda: make_policy(venv), tmp_path)
    refused("online_share must be a number from 0 to 1, got 2", lambda: make_policy(venv), tmp_path, online_share=2)
    refused("no rollout dataset at", lambda: make_policy(venv), tmp_path, data=[tmp_path / "nowhere"])
    large = VecPerceiverContext(larger, tiny_model())
    refused(
        r"has frames \(3, 32, 32\).*\(3, 64, 64\)",
        lambda: make_policy(large),
        tmp_path,
        data=[tiny_data],
    )
    begun = make_policy(venv)
    begun.learn(3)
    with pytest.raises(ValueError, match="steps that AdaptContext has not seen"):
        begun.learn(9, callback(tmp_path), reset_num_timesteps=False)
    begun._last_obs = None
    with pytest.raises(ValueError, match="holds 3 transitions of each row, but the frames of only 0 were kept"):
        begun.learn(9, callback(tmp_path), reset_num_timesteps=False)
    for name in ("every", "steps", "batch_size"):
        with pytest.raises(ValueError, match=f"{name} must be an integer of 1 or more, got 0"):
            AdaptContext(**{name: 0})
    with pytest.raises(ValueError, match="a sequence of directories"):
        AdaptContext(data="runs/data")
    for each in (venv, blind, large):
        each.close()
