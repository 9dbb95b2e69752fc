"""Spaces, masks, arrays and settings of any kind around environments: a sound result, or a clear error."""

import dataclasses
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from damaged_files import ODD_VALUES
from fuzzed_arrays import ACTIONS, ROWS, SIZE, Given, arrays, boxes, many, observation_spaces, pixels_keys
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_models import tiny_model
from tiny_runs import rollout_meta

from agents import PerceiverFeaturesExtractor, VecPerceiverContext
from agents.cli import JOBS, main
from envs import RolloutDataset, RolloutError, RolloutWriter, make_dmc
from envs.collection.named_policies import make_policy
from envs.collection.policies import PolicyContext
from perceiver_obs import PerceiverContextVectorWrapper

REFUSED = (ValueError, TypeError)
MAKE_DMC = ["task", "size", "camera", "action_repeat", "render_quality", "seed", "state_in_info"]
ODD_TEXTS = [
    "",
    "-1",
    "0",
    "1e309",
    "nan",
    "-inf",
    "None",
    "null",
    "x" * 5000,
    "../..",
    "\x00",
    "é",
    "[]",
    "{}",
    "1" * 40,
]
NO_TASK = "nothing-here"
NOT_THERE = {
    "collect": ["--task", NO_TASK],
    "train-policy": ["--task", NO_TASK],
    "benchmark": ["--tasks", NO_TASK],
    "watch": [NO_TASK],
    "fit": ["--task", NO_TASK],
}
FRAMES = spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def model():
    return tiny_model(ACTIONS, video_shape=(3, 3, SIZE, SIZE))


@many
@given(
    space=observation_spaces(),
    keep_pixels=st.booleans(),
    pixels_key=pixels_keys,
    mode=st.sampled_from(AutoresetMode),
)
def test_spaces_of_vector_environments(model, space, keep_pixels, pixels_key, mode):
    rows = [partial(Given, space, length) for length in (1, 2, 5)]
    envs = SyncVectorEnv(rows, autoreset_mode=mode)
    try:
        envs = PerceiverContextVectorWrapper(envs, model, keep_pixels=keep_pixels, pixels_key=pixels_key)
    except REFUSED:
        return
    observations, _ = envs.reset(seed=0)
    assert observations in envs.observation_space
    for _ in range(3):
        observations, _, _, ended, _ = envs.step(envs.action_space.sample())
        assert observations in envs.observation_space
        if mode == AutoresetMode.DISABLED and ended.any():
            observations, _ = envs.reset(options={"reset_mask": ended})
            assert observations in envs.observation_space


@many
@given(mask=arrays((ROWS,), np.bool_) | st.sampled_from([None, [], [True] * ROWS, 1, "rows", {}]))
def test_masks(model, mask):
    envs = SyncVectorEnv([partial(Given, FRAMES)] * ROWS, autoreset_mode=AutoresetMode.DISABLED)
    envs = PerceiverContextVectorWrapper(envs, model)
    before, _ = envs.reset(seed=0)
    before = before.copy()
    try:
        after, _ = envs.reset(options={"reset_mask": mask})
    except (*REFUSED, AssertionError):  # Gymnasium asserts
        assert envs.step(envs.action_space.sample())[0].shape == before.shape
        return
    began = np.ones(ROWS, bool) if mask is None else mask
    assert began.dtype == np.bool_
    np.testing.assert_array_equal(after[~began], before[~began])


@many
@given(space=observation_spaces(), keep_pixels=st.booleans(), pixels_key=pixels_keys)
def test_spaces_of_sb3(model, space, keep_pixels, pixels_key):
    try:
        envs = DummyVecEnv([partial(Given, space, length) for length in (1, 3)])
        envs = VecPerceiverContext(envs, model, keep_pixels=keep_pixels, pixels_key=pixels_key)
    except (*REFUSED, NotImplementedError):  # SB3 has no Text and no Tuple
        return
    observations = envs.reset()
    for _ in range(3):
        rows = observations if isinstance(observations, dict) else {"": observations}
        kinds = envs.observation_space.spaces if isinstance(observations, dict) else {"": envs.observation_space}
        assert all(rows[name][row] in kinds[name] for name, row in product(kinds, range(2)))
        observations, *_ = envs.step(np.zeros((2, ACTIONS), np.float32))


@many
@given(
    space=boxes() | st.integers(1, 4).map(lambda n: spaces.Box(0, 255, (SIZE, SIZE, 3 * n), np.uint8)),
    layout=st.sampled_from([None, None, "HWC", "CHW", "WHC"]),
    observations=arrays((2, SIZE, SIZE, 9), np.float32),
)
def test_stacks_of_frames(model, space, layout, observations):
    try:
        extractor = PerceiverFeaturesExtractor(space, model, layout=layout)
    except REFUSED:
        return
    features = extractor(torch.zeros(2, *space.shape))
    assert features.shape == (2, model.context_dim)
    assert torch.isfinite(features).all()


@many
@given(
    pixels=arrays((4, SIZE, SIZE, 3)),
    actions=arrays((3, ACTIONS), np.float32),
    rewards=arrays((3,), np.float32),
    states=st.none() | arrays((4, 2), np.float32),
    odd=st.dictionaries(
        st.sampled_from(["seed", "policy", "index", "terminated"]), st.sampled_from(ODD_VALUES), max_size=1
    ),
)
def test_episodes_that_are_written_are_read_back(tmp_path_factory, pixels, actions, rewards, states, odd):
    path = tmp_path_factory.mktemp("written")
    writer = RolloutWriter(path, rollout_meta(ACTIONS, SIZE, states=states is not None))
    rest = {"index": 0, "terminated": False, "truncated": True, "seed": 1, "policy": "any"} | odd
    try:
        writer.write_episode(pixels=pixels, actions=actions, rewards=rewards, states=states, **rest)
    except REFUSED:
        with pytest.raises(RolloutError, match="holds no whole episode"):
            RolloutDataset(path)
        return
    (episode,) = RolloutDataset(path)
    for name, value in {"pixels": pixels, "actions": actions, "rewards": rewards, "states": states}.items():
        np.testing.assert_array_equal(getattr(episode, name), value)


@many
@given(argument=st.sampled_from(MAKE_DMC), value=st.sampled_from(ODD_VALUES))
def test_arguments_of_make_dmc(argument, value):
    try:
        env = make_dmc(**{"task": "cartpole-swingup", "render_quality": "fast", "size": SIZE} | {argument: value})
    except REFUSED:
        return
    assert env.reset()[0] in env.observation_space
    env.close()


@many
@given(
    name=st.text(max_size=12)
    | st.sampled_from([":", "os:", "os:path", ":x", ".:a", "..:a", "os:getcwd", "a.zip", ",", "random,", "\x00.zip"])
)
def test_names_of_policies(name):
    try:
        policy = make_policy(name, PolicyContext(spaces.Box(-1, 1, (1,)), SIZE, 0.1, ()))
    except REFUSED:
        return
    policy.begin(np.random.default_rng(0))


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """An empty directory, in which no command finds what it needs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("empty"))
        yield


@pytest.mark.parametrize("command", JOBS)
@settings(many, max_examples=many.max_examples // 2)
@given(choice=st.integers(0, 10**6), value=st.sampled_from(ODD_TEXTS))
def test_options_of_commands(empty, command, choice, value):
    """Each command is asked for a task or for files that are not there, and has an odd value beside."""
    names = [field.name for field in dataclasses.fields(JOBS[command].settings_type())]
    option = f"--{names[choice % len(names)].replace('_', '-')}"
    try:
        code = main([command, *NOT_THERE.get(command, ()), option, value])
    except SystemExit as end:  # the parser's
        code = end.code
    assert code == 2
