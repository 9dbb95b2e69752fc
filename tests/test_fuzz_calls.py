"""Arrays of any shape, type and range at the public entry points: a sound result, or ValueError or TypeError."""

import numpy as np
import pytest
import torch
from damaged_files import ODD_VALUES
from fuzzed_arrays import ACTIONS, ROWS, SIZE, Given, arrays, many, observation_spaces, pixels_keys
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_model

from agents import AdaptContext, load_policy
from perceiver_obs import CausalPerceiverIO, ContextEncoder, PerceiverContextWrapper

REFUSED = (ValueError, TypeError)


@pytest.fixture(scope="module")
def model():
    return tiny_model(ACTIONS, video_shape=(3, 3, SIZE, SIZE))


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


@many
@given(space=observation_spaces(), keep_pixels=st.booleans(), pixels_key=pixels_keys)
def test_observation_spaces(model, space, keep_pixels, pixels_key):
    try:
        env = PerceiverContextWrapper(Given(space), model, keep_pixels=keep_pixels, pixels_key=pixels_key)
    except REFUSED:
        return
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    observation, *_ = env.step(env.action_space.sample())
    assert observation in env.observation_space


@pytest.mark.parametrize("name", ["data", "every", "steps", "batch_size", "learning_rate", "online_share", "seed"])
@pytest.mark.parametrize("value", ODD_VALUES, ids=lambda value: repr(value)[:12])
def test_odd_arguments_of_adaptation(name, value):
    try:
        AdaptContext(**{name: value})
    except REFUSED:
        return
    assert name == "data" or isinstance(value, int | float)


@pytest.mark.parametrize("value", ODD_VALUES, ids=lambda value: repr(value)[:12])
def test_odd_arguments_of_encoders_and_models(model, value):
    nowhere = pytest.raises((*REFUSED, OSError))
    if not isinstance(value, int):  # those may name a GPU
        with nowhere:
            ContextEncoder(model, ROWS, value)
    with nowhere:
        ContextEncoder(model, ROWS, "cpu", value)
    with nowhere:
        ContextEncoder(value, ROWS, "cpu")
    with nowhere:
        CausalPerceiverIO.from_pretrained(value)
    with nowhere:
        CausalPerceiverIO.from_preset(value)
    with nowhere:
        load_policy(value)
    if value != 10**12:  # as many rows as that are a matter of memory
        with nowhere:
            model.init_state(value)
