"""ContextEncoder: rows, resets, peeks, and a model that nobody can change from outside."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_model

from perceiver_obs import CausalPerceiverIO, ContextEncoder

MODEL = tiny_model(action_dim=2)


def frames(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, 64, 64, 3), dtype=np.uint8)


def offline(model: CausalPerceiverIO, history: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The context of the last of the (frame, action) pairs of one episode."""
    video = torch.from_numpy(np.stack([f for f, _ in history])).permute(0, 3, 1, 2)[None]
    actions = torch.from_numpy(np.stack([a for _, a in history]))[None]
    return model.extract_context(video, actions)[0, -1].numpy()


@pytest.mark.parametrize(("backend", "tolerance"), [("torch", 1e-5), ("onnx", 1e-4)])
@given(data=st.data())
def test_any_sequence_of_calls_equals_the_offline_contexts(action_model, backend, tolerance, data):
    """Pushes of all or some rows, peeks and resets in any order, against a history kept by hand."""
    rows = data.draw(st.integers(1, 4), label="rows")
    encoder = ContextEncoder(action_model, rows, "cpu", backend)
    history = [[] for _ in range(rows)]
    subsets = st.lists(st.integers(0, rows - 1), unique=True, max_size=rows)
    for number in range(data.draw(st.integers(1, 12), label="calls")):
        call = data.draw(st.sampled_from(["push", "push", "push_rows", "peek", "reset", "reset_mask"]))
        chosen = list(range(rows)) if call == "push" else data.draw(subsets, label=call)
        pixels, actions = frames(len(chosen), number), np.full((len(chosen), 6), number / 7, np.float32)
        if call.startswith("reset"):
            mask = np.isin(np.arange(rows), chosen)
            encoder.reset(mask if call == "reset_mask" else chosen)
            for row in chosen:
                history[row] = []
            continue
        if call == "peek":
            contexts = encoder.peek(pixels, chosen, actions)
        else:
            contexts = encoder.push(pixels, actions, rows=None if call == "push" else chosen)
        assert contexts.shape == (len(chosen), encoder.context_dim)
        assert contexts.dtype == np.float32
        for i, row in enumerate(chosen):
            seen = [*history[row], (pixels[i], actions[i])]
            np.testing.assert_allclose(contexts[i], offline(action_model, seen), atol=tolerance, rtol=0)
            if call != "peek":
                history[row] = seen


def test_nothing_the_caller_does_to_the_model_reaches_the_encoder():
    model = tiny_model()
    encoder, reference = ContextEncoder(model, 1), ContextEncoder(tiny_model(), 1)
    model.train()
    for parameter in model.parameters():
        parameter.data.add_(1)
    encoder.model.train()
    assert not any(p.requires_grad for p in encoder.model.parameters())
    for number in range(6):
        np.testing.assert_array_equal(encoder.push(frames(1, number)), reference.push(frames(1, number)))


def test_contexts_are_the_callers_own():
    encoder = ContextEncoder(MODEL, 2)
    first = encoder.push(frames(2, 0))
    kept = first.copy()
    first[:] = np.nan
    encoder.push(frames(2, 1))
    encoder.reset()
    np.testing.assert_array_equal(encoder.push(frames(2, 0)), kept)


def test_models_by_name_are_shared_in_a_process(tmp_path):
    MODEL.save_pretrained(tmp_path)
    first, second = ContextEncoder(str(tmp_path)), ContextEncoder(tmp_path, 3)
    assert first.model is second.model
    assert first.fingerprint == MODEL.fingerprint
    other = tiny_model(action_dim=2)
    other.predictor.encoder.latents.data.add_(1)
    other.save_pretrained(tmp_path)
    assert ContextEncoder(tmp_path).fingerprint == other.fingerprint


def test_frames_need_not_be_contiguous():
    flipped = frames(1, 0)[:, ::-1]
    expected = ContextEncoder(MODEL).push(np.ascontiguousarray(flipped))
    np.testing.assert_array_equal(ContextEncoder(MODEL).push(flipped), expected)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_frames_may_be_read_only(backend):
    shown = frames(1, 0)
    shown.flags.writeable = False
    contexts = ContextEncoder(MODEL, device="cpu", backend=backend).push(shown)
    np.testing.assert_allclose(contexts, ContextEncoder(MODEL).push(frames(1, 0)), atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.push(frames(3, 0)), r"uint8 \(2, 64, 64, 3\) .*got uint8 \(3, 64, 64, 3\)"),
        (lambda e: e.push(frames(2, 0).astype(np.float32)), "float32"),
        (lambda e: e.push(frames(2, 0).transpose(0, 3, 1, 2)), r"\(2, 3, 64, 64\)"),
        (lambda e: e.push(frames(2, 0)[..., :1]), r"\(2, 64, 64, 1\)"),
        (lambda e: e.push(frames(2, 0), np.zeros((2, 3))), "up to 2"),
        (lambda e: e.push(frames(2, 0), np.full((2, 2), np.nan)), "NaN"),
        (lambda e: e.reset([2]), "0 to 1, got"),
        (lambda e: e.reset([-1]), "0 to 1, got"),
        (lambda e: e.reset(np.array([True])), r"\(2,\), got \(1,\)"),
        (lambda e: e.reset([0.5]), "row numbers"),
        (lambda e: e.push(frames(2, 0), rows=[1, 1]), "must not repeat"),
    ],
)
def test_bad_input_is_named_and_costs_nothing(call, message):
    encoder, reference = ContextEncoder(MODEL, 2), ContextEncoder(MODEL, 2)
    encoder.push(frames(2, 7))
    reference.push(frames(2, 7))
    with pytest.raises(ValueError, match=message):
        call(encoder)
    np.testing.assert_array_equal(encoder.push(frames(2, 8)), reference.push(frames(2, 8)))


def test_devices_and_models_that_are_not_there():
    with pytest.raises(ValueError, match="cuda:99"):
        ContextEncoder(MODEL, device="cuda:99")
    with pytest.raises(ValueError, match="'gpu'"):
        ContextEncoder(MODEL, device="gpu")
    with pytest.raises(ValueError, match="num_rows"):
        ContextEncoder(MODEL, 0)
    with pytest.raises(ValueError, match="got int"):
        ContextEncoder(3)
    with pytest.raises(ValueError, match="action_dim=None"):
        ContextEncoder(tiny_model()).push(frames(1, 0), np.zeros((1, 1)))
