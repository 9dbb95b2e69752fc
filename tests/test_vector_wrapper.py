"""`PerceiverContextVectorWrapper` in every autoreset mode equals environments played one at a time."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TransformObservation
from hypothesis import given
from hypothesis import strategies as st
from moving_square import MovingSquare
from staggered_envs import LENGTHS, make_short, make_shorts
from staggered_episodes import (
    SEED,
    STEPS,
    TOLERANCE,
    all_alone,
    assert_same_episodes,
    offline_contexts,
    random_actions,
)
from tiny_models import tiny_model

from envs import make_dmc
from perceiver_obs import PerceiverContextVectorWrapper, PerceiverContextWrapper

MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]
ROWS = len(LENGTHS)


@pytest.fixture(scope="module")
def vectors():
    """The three staggered environments as a vector environment of frames, for each mode; made once, reset often."""
    venvs = {mode: SyncVectorEnv(make_shorts(), autoreset_mode=mode) for mode in MODES}
    close = [venv.close for venv in venvs.values()]
    for venv in venvs.values():
        venv.close = lambda: None  # before Gymnasium 1.3 a wrapper that is let go closes what it wraps
    yield venvs
    for really_close in close:
        really_close()


def play_vector(venv, mode, actions):
    """The contexts by row, episode and step, `final_obs` included."""
    contexts, _ = venv.reset(seed=SEED)
    rows = [[[context]] for context in contexts]
    ended = np.zeros(ROWS, dtype=bool)
    for action in actions:
        if mode == AutoresetMode.DISABLED and ended.any():
            contexts, _ = venv.reset(options={"reset_mask": ended})
            for row in range(ROWS):
                if ended[row]:
                    rows[row].append([contexts[row]])
                else:
                    np.testing.assert_array_equal(contexts[row], rows[row][-1][-1])
        contexts, _, terminations, truncations, infos = venv.step(action)
        now_ended = terminations | truncations
        for row in range(ROWS):
            if mode == AutoresetMode.NEXT_STEP and ended[row]:
                rows[row].append([contexts[row]])
            elif mode == AutoresetMode.SAME_STEP and now_ended[row]:
                rows[row][-1].append(infos["final_obs"][row])
                rows[row].append([contexts[row]])
            else:
                rows[row][-1].append(contexts[row])
        if mode == AutoresetMode.SAME_STEP and now_ended.any():
            np.testing.assert_array_equal(infos["_final_obs"], now_ended)
            assert [final is None for final in infos["final_obs"]] == (~now_ended).tolist()
        ended = now_ended
    return rows


@pytest.mark.parametrize("action_dim", [None, 1])
@pytest.mark.parametrize("mode", MODES)
def test_every_row_gets_the_contexts_of_its_environment_alone(vectors, mode, action_dim):
    model = tiny_model(action_dim)
    alone = all_alone(action_dim, wastes_action_at_reset=mode == AutoresetMode.NEXT_STEP)
    venv = PerceiverContextVectorWrapper(vectors[mode], model)
    assert_same_episodes(play_vector(venv, mode, random_actions()), alone)
    for episode in alone[0]:
        np.testing.assert_allclose(np.stack(episode.contexts), offline_contexts(model, episode), atol=TOLERANCE)


def test_environments_in_other_processes_give_the_same():
    mode = AutoresetMode.SAME_STEP
    workers = AsyncVectorEnv(make_shorts(), context="forkserver", autoreset_mode=mode)
    venv = PerceiverContextVectorWrapper(workers, tiny_model(action_dim=1))
    assert_same_episodes(play_vector(venv, mode, random_actions()), all_alone(1))
    venv.close()


@pytest.fixture(scope="module")
def endless():
    """A vector environment with manual resets, and as many single ones, whose episodes nothing ends."""
    model = tiny_model(action_dim=1)
    makers = [partial(make_short, 10_000)] * ROWS
    venv = PerceiverContextVectorWrapper(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED), model)
    singles = [PerceiverContextWrapper(make(), model) for make in makers]
    yield venv, singles
    venv.close()
    for single in singles:
        single.close()


@given(st.lists(st.none() | st.lists(st.booleans(), min_size=ROWS, max_size=ROWS).filter(any), max_size=8))
def test_any_pattern_of_masked_resets_equals_single_environments(endless, pattern):
    venv, singles = endless
    expected = np.stack([single.reset(seed=SEED + row)[0] for row, single in enumerate(singles)])
    contexts, _ = venv.reset(seed=SEED)
    np.testing.assert_allclose(contexts, expected, atol=TOLERANCE)
    for action, mask in zip(random_actions(), pattern):
        if mask is None:
            contexts, *_ = venv.step(action)
            expected = np.stack([single.step(a)[0] for single, a in zip(singles, action)])
        else:
            options = {"reset_mask": np.array(mask)}
            contexts, _ = venv.reset(options=options)
            assert "reset_mask" in options, "the caller's options are left as they were"
            for row in np.flatnonzero(mask):
                expected[row] = singles[row].reset()[0]
        np.testing.assert_allclose(contexts, expected, atol=TOLERANCE)


@pytest.mark.parametrize("mode", MODES)
def test_masked_resets_work_in_every_mode(vectors, mode):
    model = tiny_model()
    venv = PerceiverContextVectorWrapper(vectors[mode], model)
    venv.reset(seed=SEED)
    for _ in range(3):
        before, *_ = venv.step(random_actions()[0])
    mask = np.array([True, False, False])
    after, _ = venv.reset(options={"reset_mask": mask}, seed=[SEED, None, None])
    alone = PerceiverContextWrapper(make_short(3), model)
    np.testing.assert_allclose(after[0], alone.reset(seed=SEED)[0], atol=TOLERANCE)
    np.testing.assert_array_equal(after[1:], before[1:])
    following, *_ = venv.step(random_actions()[1])
    np.testing.assert_allclose(following[0], alone.step(random_actions()[1, 0])[0], atol=TOLERANCE)
    alone.close()


def with_brightness(make):
    """The environment with a Dict observation: its frames under "camera", and their mean."""
    image = spaces.Box(0, 255, (64, 64, 3), np.uint8)
    space = spaces.Dict({"camera": image, "brightness": spaces.Box(0, 255, (1,), np.float32)})
    return TransformObservation(make(), lambda f: {"camera": f, "brightness": np.array([f.mean()], np.float32)}, space)


def within(length):
    """Frames in a dictionary within the observation."""
    env = MovingSquare(length=length)
    robot = {"camera": env.observation_space, "speed": spaces.Box(0, 255, (1,), np.float32)}
    space = spaces.Dict({"robot": spaces.Dict(robot)})
    return TransformObservation(
        env, lambda f: {"robot": {"camera": f, "speed": np.array([f.argmax()], np.float32)}}, space
    )


@pytest.mark.parametrize("keep_pixels", [False, True])
def test_frames_in_a_dictionary_within(keep_pixels):
    model, mode = tiny_model(), AutoresetMode.SAME_STEP
    makers = [partial(MovingSquare, length=length) for length in (2, 3)]
    plain = PerceiverContextVectorWrapper(SyncVectorEnv(makers, autoreset_mode=mode), model)
    dicts = SyncVectorEnv([partial(within, length) for length in (2, 3)], autoreset_mode=mode)
    venv = PerceiverContextVectorWrapper(dicts, model, keep_pixels=keep_pixels)
    assert set(venv.single_observation_space["robot"]) == {"speed"} | ({"camera"} if keep_pixels else set())
    observations, contexts = venv.reset(seed=0)[0], plain.reset(seed=0)[0]
    for action in np.full((2, 2, 1), 0.3, np.float32):
        np.testing.assert_array_equal(observations["context"], contexts)
        observations, _, _, truncations, infos = venv.step(action)
        contexts, *_, plain_infos = plain.step(action)
        assert observations in venv.observation_space
    assert truncations.tolist() == [True, False]
    final = infos["final_obs"][0]
    assert final in venv.single_observation_space
    np.testing.assert_array_equal(final["context"], plain_infos["final_obs"][0])


@pytest.mark.parametrize("mode", MODES)
def test_dict_observations_and_kept_frames(vectors, mode):
    model = tiny_model()
    plain = PerceiverContextVectorWrapper(vectors[mode], model)
    for keep_pixels in (False, True):
        dicts = SyncVectorEnv([partial(with_brightness, make) for make in make_shorts()], autoreset_mode=mode)
        venv = PerceiverContextVectorWrapper(dicts, model, keep_pixels=keep_pixels)
        keys = {"context", "brightness"} | ({"camera"} if keep_pixels else set())
        assert set(venv.single_observation_space) == keys
        observations, _ = venv.reset(seed=SEED)
        contexts, _ = plain.reset(seed=SEED)
        np.testing.assert_array_equal(observations["context"], contexts)
        for action in random_actions()[: LENGTHS[0]]:
            observations, _, _, truncations, infos = venv.step(action)
            contexts, *_, plain_infos = plain.step(action)
            assert observations in venv.observation_space
            np.testing.assert_array_equal(observations["context"], contexts)
        assert truncations.tolist() == [True, False, False]
        if mode == AutoresetMode.SAME_STEP:
            final = infos["final_obs"][0]
            assert final in venv.single_observation_space
            np.testing.assert_array_equal(final["context"], plain_infos["final_obs"][0])
            assert final["brightness"] != observations["brightness"][0]
        venv.close()


def test_spaces_are_those_of_contexts_and_observations_are_owned(vectors):
    model = tiny_model()
    venv = PerceiverContextVectorWrapper(vectors[AutoresetMode.NEXT_STEP], model)
    single = spaces.Box(-np.inf, np.inf, (model.context_dim,), np.float32)
    assert venv.single_observation_space == single
    assert venv.observation_space == spaces.Box(-np.inf, np.inf, (ROWS, model.context_dim), np.float32)
    contexts, _ = venv.reset(seed=SEED)
    assert contexts in venv.observation_space
    kept = contexts.copy()
    venv.step(random_actions()[0])
    np.testing.assert_array_equal(contexts, kept)
    contexts.fill(7.0)
    again, _ = venv.reset(seed=SEED)
    np.testing.assert_array_equal(again, kept)


def test_gymnasiums_own_wrappers_go_around_it(vectors):
    venv = PerceiverContextVectorWrapper(vectors[AutoresetMode.SAME_STEP], tiny_model())
    venv = gym.wrappers.vector.RecordEpisodeStatistics(venv)
    venv.reset(seed=SEED)
    lengths = []
    for action in random_actions():
        *_, infos = venv.step(action)
        if "episode" in infos:
            lengths += infos["episode"]["l"][infos["_episode"]].tolist()
    expected = sorted(length for length in LENGTHS for _ in range(STEPS // length))
    assert sorted(lengths) == expected


def test_a_missing_autoreset_mode_is_taken_for_next_step(vectors, monkeypatch):
    venv = vectors[AutoresetMode.NEXT_STEP]
    monkeypatch.delitem(venv.metadata, "autoreset_mode")
    with pytest.warns(UserWarning, match="NEXT_STEP is assumed"):
        venv = PerceiverContextVectorWrapper(venv, tiny_model())
    alone = all_alone(None, wastes_action_at_reset=True)
    assert_same_episodes(play_vector(venv, AutoresetMode.NEXT_STEP, random_actions()), alone)


def test_what_it_refuses(vectors):
    model = tiny_model()
    venv = PerceiverContextVectorWrapper(vectors[AutoresetMode.DISABLED], model)
    with pytest.raises(ResetNeeded):
        venv.step(random_actions()[0])
    with pytest.raises(ResetNeeded, match="reset_mask"):
        venv.reset(options={"reset_mask": np.array([True, False, True])})
    venv.reset(seed=SEED)
    with pytest.raises((ValueError, AssertionError), match="reset_mask"):  # the environment's: Gymnasium 1.2 asserts
        venv.reset(options={"reset_mask": np.array([True, False])})
    large = SyncVectorEnv([partial(make_dmc, "cartpole-swingup", size=84, render_quality="fast")])
    with pytest.raises(ValueError, match=r"\(64, 64, 3\).*\(84, 84, 3\)"):
        PerceiverContextVectorWrapper(large, model)
    large.close()


def test_other_rendering_than_in_training_warns(vectors):
    model = tiny_model()
    model.frame_contract = {"render_quality": "standard", "action_repeat": 4}
    with pytest.warns(UserWarning, match="render_quality is 'fast', the model was trained with 'standard'"):
        PerceiverContextVectorWrapper(vectors[AutoresetMode.NEXT_STEP], model)
