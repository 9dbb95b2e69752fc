"""Arrays of any shape, type and range at the public entry points: a sound result, or ValueError or TypeError."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import tiny_model

from perceiver_obs import ContextEncoder, PerceiverContextWrapper

SIZE, ROWS, ACTIONS = 16, 3, 2
REFUSED = (ValueError, TypeError)
TYPES = [np.uint8, np.int8, np.int64, np.float16, np.float32, np.float64, np.bool_, np.complex64, object]
many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def model():
    return tiny_model(ACTIONS, video_shape=(3, 3, SIZE, SIZE))


@st.composite
def arrays(draw, usual):
    """Mostly near a usual shape and type, so that a call is often right but for one thing."""
    shape = list(usual)
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
        change = draw(st.sampled_from(["drop", "add", "swap", "resize"]))
        place = draw(st.integers(0, max(0, len(shape) - 1)))
        if change == "drop" and shape:
            del shape[place]
        elif change == "add":
            shape.insert(place, draw(st.integers(0, 4)))
        elif change == "swap":
            shape.reverse()
        elif shape:
            shape[place] = draw(st.integers(0, 40))
    kind = draw(st.sampled_from([np.uint8, np.float32, *TYPES]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    array = random.integers(0, 2, shape).astype(kind)
    if np.issubdtype(array.dtype, np.inexact) and array.size and draw(st.booleans()):
        array.flat[0] = draw(st.sampled_from([np.nan, np.inf, -np.inf, 1e30, -1.0]))
    return array


def tensor(array):
    try:
        return torch.from_numpy(array)
    except TypeError:
        return array  # not even a tensor


@many
@given(frames=arrays((ROWS, SIZE, SIZE, 3)), actions=st.none() | arrays((ROWS, ACTIONS)))
def test_pushed_frames_and_actions(model, frames, actions):
    encoder = ContextEncoder(model, ROWS, "cpu")
    encoder.push(np.zeros((ROWS, SIZE, SIZE, 3), np.uint8))
    try:
        contexts = encoder.push(frames, actions)
    except REFUSED:
        return
    assert contexts.shape == (ROWS, model.context_dim)
    assert np.isfinite(contexts).all()
    assert frames.shape == (ROWS, SIZE, SIZE, 3)
    assert frames.dtype == np.uint8


@many
@given(
    rows=st.one_of(
        st.none(),
        st.lists(st.integers(-2, ROWS + 1), max_size=4),
        st.lists(st.booleans(), max_size=4).map(np.array),
        st.sampled_from([1, "rows", 1.5, {}, [[0]], [0.5], [True, 2], np.zeros((ROWS, 1), bool)]),
    )
)
def test_rows(model, rows):
    encoder = ContextEncoder(model, ROWS, "cpu")
    frames = np.zeros((ROWS, SIZE, SIZE, 3), np.uint8)
    encoder.push(frames)
    try:
        encoder.reset(rows)
    except REFUSED:
        with pytest.raises(REFUSED):
            encoder.push(frames, rows=rows)
        with pytest.raises(REFUSED):
            encoder.peek(frames, rows=rows)
        return
    assert encoder.push(frames).shape == (ROWS, model.context_dim)


@many
@given(video=arrays((1, 5, 3, SIZE, SIZE)), actions=st.none() | arrays((1, 5, ACTIONS)))
def test_clips(model, video, actions):
    video, actions = tensor(video), None if actions is None else tensor(actions)
    try:
        contexts = model.extract_context(video, actions)
    except REFUSED:
        return
    assert contexts.shape == (*video.shape[:2], model.context_dim)
    assert torch.isfinite(contexts).all()


@many
@given(video=arrays((1, 3, 3, SIZE, SIZE)))
def test_tokens_there_and_back(model, video):
    tokenizer = model.tokenizer
    try:
        tokens, _, _ = tokenizer.encode(tensor(video))
    except REFUSED:
        return
    assert ((tokens >= 0) & (tokens < tokenizer.num_codes)).all()
    assert tokenizer.decode(tokens).shape == video.shape


@many
@given(tokens=arrays((1, 3, 2, 2, 2)))
def test_tokens_that_nobody_made(model, tokens):
    try:
        decoded = model.tokenizer.decode(tensor(tokens))
    except REFUSED:
        return
    assert decoded.ndim == 5
    assert torch.isfinite(decoded).all()


class Given(gym.Env):
    """Shows samples of whatever space it is given."""

    action_space = spaces.Box(-1, 1, (ACTIONS,))

    def __init__(self, space):
        self.observation_space = space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


def boxes():
    sides = st.sampled_from([1, 3, SIZE, SIZE, SIZE, 64])
    shapes = st.tuples(sides, sides, st.sampled_from([1, 3, 3, 3, 4, SIZE])) | st.lists(sides, max_size=4).map(tuple)
    kinds = st.sampled_from([np.uint8, np.uint8, np.uint8, np.float32, np.int64])
    return st.builds(lambda shape, kind: spaces.Box(0, 255 if kind == np.uint8 else 1, shape, kind), shapes, kinds)


@many
@given(
    space=boxes()
    | st.dictionaries(st.sampled_from(["pixels", "context", "camera", "touch"]), boxes(), max_size=3).map(spaces.Dict)
    | st.sampled_from([spaces.Discrete(3), spaces.Text(4), spaces.Tuple([spaces.Discrete(2)])]),
    keep_pixels=st.booleans(),
    pixels_key=st.sampled_from([None, None, "pixels", "camera", "context", ""]),
)
def test_observation_spaces(model, space, keep_pixels, pixels_key):
    try:
        env = PerceiverContextWrapper(Given(space), model, keep_pixels=keep_pixels, pixels_key=pixels_key)
    except REFUSED:
        return
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    observation, *_ = env.step(env.action_space.sample())
    assert observation in env.observation_space
