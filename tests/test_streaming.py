"""Contexts: causal, streamed equal to offline, one row independent of the others, the state a value."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import SIZE
from tiny_models import tiny_model as model_of_any_size

VARIANTS = {
    "2d": {},
    "3d": dict(use_3d_conv=True),
    "fsq": dict(quantizer="fsq"),
    "actions": dict(action_dim=3),
    "timescales": dict(timescales=("fast", "medium", "slow"), context_dim=10),
    "3d-actions-timescales": dict(use_3d_conv=True, action_dim=2, timescales=("fast", "slow")),
    "single-frame-inputs": dict(token_time_kernel=1),
    "summarised-frames": dict(inputs_per_frame=3, keypoints=5, action_dim=2),
    "frames": dict(reads="frames", inputs_per_frame=3, token_time_kernel=1, action_dim=2),
    "frames-3d-timescales": dict(
        reads="frames", inputs_per_frame=2, token_time_kernel=1, use_3d_conv=True, timescales=("fast", "slow")
    ),
}


def tiny_model(**changes):
    """A model of small frames: what is checked here does not depend on their size, and streams are long."""
    return model_of_any_size(**{"video_shape": (4, 3, SIZE, SIZE), **changes})


@pytest.fixture(scope="module")
def real_video(real_video) -> torch.Tensor:
    """uint8 `[1, 60, 3, SIZE, SIZE]`: every other pixel."""
    return real_video[..., ::2, ::2].contiguous()


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys(), scope="module")
def model(request):
    return tiny_model(**request.param)


def episode(model, length: int, batch: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    video = torch.randint(0, 256, (batch, length, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    actions = torch.randn(batch, length, model.action_dim, generator=generator) if model.action_dim else None
    return video, actions


def at(actions: torch.Tensor | None, where) -> torch.Tensor | None:
    return None if actions is None else actions[:, where]


def stream(model, video, actions) -> torch.Tensor:
    state, contexts = model.init_state(len(video)), []
    for t in range(video.shape[1]):
        context, state = model.step(video[:, t], state, at(actions, t))
        contexts.append(context)
    return torch.stack(contexts, dim=1)


def test_no_later_frame_or_action_reaches_a_context(model):
    video, actions = episode(model, 12)
    contexts = model.extract_context(video, actions)
    assert contexts.shape == (2, 12, model.context_dim)
    for t in range(1, 12):
        changed = video.clone()
        changed[:, t:] = 255 - changed[:, t:]
        changed_actions = None if actions is None else torch.cat([actions[:, :t], -actions[:, t:]], dim=1)
        result = model.extract_context(changed, changed_actions)
        assert torch.equal(result[:, :t], contexts[:, :t])
        assert not torch.equal(result[:, t], contexts[:, t])


@pytest.mark.parametrize("colour", [0, 100, 255])
def test_frames_of_one_colour_and_any_memory_layout(model, colour):
    """No variance to normalise by, and tensors as they come from H, W, C frames: where digits get lost."""
    video, actions = episode(model, 6)
    video[:, 2] = colour
    video[1] = colour
    last_channels = video.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    offline = model.extract_context(video, actions)
    torch.testing.assert_close(stream(model, last_channels, actions), offline, atol=1e-5, rtol=0)


def test_receptive_field_is_exact(model):
    field = model.receptive_field
    t = field + 3
    t += -(t + 1) % model.period  # where the longest stride reaches back farthest
    video, actions = episode(model, t + 3)
    contexts = model.extract_context(video, actions)
    older = video.clone()
    older[:, : t - field + 1] = 7
    assert torch.equal(model.extract_context(older, actions)[:, t:], contexts[:, t:])
    older[:, t - field + 1] = 255 - older[:, t - field + 1]
    assert not torch.equal(model.extract_context(older, actions)[:, t], contexts[:, t])


def test_streaming_equals_offline_equals_one_pass_with_gradients(model):
    video, actions = episode(model, 37)
    offline = model.extract_context(video, actions)
    torch.testing.assert_close(stream(model, video, actions), offline, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.contexts(video, actions).detach(), offline, atol=1e-5, rtol=0)


def test_streaming_equals_recomputation_from_a_rolling_buffer(model):
    field = model.receptive_field
    video, actions = episode(model, field + 6, batch=1)
    if actions is not None:
        # The oldest frame of a buffer has lost the action that led to it: it is outside of what is compared.
        field += 1
    streamed = stream(model, video, actions)
    for t in range(field, video.shape[1]):
        begin = t - field + 1
        buffer = slice(begin - begin % model.period, t + 1)
        again = model.extract_context(video[:, buffer], at(actions, buffer))[:, -1]
        torch.testing.assert_close(again, streamed[:, t], atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["2d", "3d-actions-timescales"])
def test_hundreds_of_frames(variant, real_video):
    model = tiny_model(**VARIANTS[variant])
    video = real_video.repeat(1, 7, 1, 1, 1)[:, :400]
    actions = torch.randn(1, 400, model.action_dim) if model.action_dim else None
    offline = model.extract_context(video, actions)
    torch.testing.assert_close(stream(model, video, actions), offline, atol=1e-5, rtol=0)


def test_contexts_differ_from_frame_to_frame(model, real_video):
    contexts = model.extract_context(real_video)[0]
    assert (contexts[1:] - contexts[:-1]).abs().amax(-1).min() > 1e-6


def test_rows_are_independent(model):
    video, actions = episode(model, 9, batch=4)
    together = stream(model, video, actions)
    for row in range(4):
        alone = stream(model, video[row : row + 1], None if actions is None else actions[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=0)
    changed = video.clone()
    changed[2] = 255 - changed[2]
    others = [0, 1, 3]
    assert torch.equal(stream(model, changed, actions)[others], together[others])


def test_a_reset_row_starts_afresh_and_the_others_do_not_notice(model):
    video, actions = episode(model, 14, batch=3)
    state, untouched = model.init_state(3), model.init_state(3)
    for t in range(7):
        _, state = model.step(video[:, t], state, at(actions, t))
        _, untouched = model.step(video[:, t], untouched, at(actions, t))
    state = state.reset(torch.tensor([False, True, False]))
    fresh = model.extract_context(video[1:2, 7:], None if actions is None else actions[1:2, 7:])
    for t in range(7, 14):
        context, state = model.step(video[:, t], state, at(actions, t))
        expected, untouched = model.step(video[:, t], untouched, at(actions, t))
        assert torch.equal(context[[0, 2]], expected[[0, 2]])
        torch.testing.assert_close(context[1], fresh[0, t - 7], atol=1e-5, rtol=0)


def test_a_state_is_a_value(model):
    """Two futures may grow from one state, in any order, without disturbing each other."""
    video, actions = episode(model, 20)
    other, other_actions = episode(model, 20, seed=1)
    offline = model.extract_context(video, actions)
    state = model.init_state(2)
    for t in range(20):
        model.step(other[:, t], state, at(other_actions, t))
        context, following = model.step(video[:, t], state, at(actions, t))
        again, _ = model.step(video[:, t], state, at(actions, t))
        assert torch.equal(context, again)
        torch.testing.assert_close(context, offline[:, t], atol=1e-5, rtol=0)
        state = following


def test_masked_frames_count_as_not_happened(model):
    video, actions = episode(model, 8)
    valid = torch.ones(2, 8, dtype=torch.bool)
    valid[0, :3] = False
    contexts = model.contexts(video, actions, valid).detach()
    later = model.extract_context(video[:1, 3:], None if actions is None else actions[:1, 3:])
    torch.testing.assert_close(contexts[:1, 3:], later, atol=1e-5, rtol=0)
    torch.testing.assert_close(contexts[1], model.extract_context(video, actions)[1], atol=1e-5, rtol=0)


def test_training_mode_changes_nothing(model):
    video, actions = episode(model, 6)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    contexts = model.extract_context(video, actions)
    model.train()
    try:
        assert torch.equal(model.extract_context(video, actions), contexts)
        stream(model, video, actions)
    finally:
        model.eval()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_heads_can_be_trained_on_contexts(model, real_video):
    contexts = model.extract_context(real_video[:, :6])
    assert not contexts.requires_grad
    streamed, _ = model.step(real_video[:, 0], model.init_state(1))
    head = torch.nn.Linear(model.context_dim, 1)
    (head(contexts).sum() + head(streamed).sum()).backward()
    assert head.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.parameters())


def tensors(state) -> list[torch.Tensor]:
    """All that a state holds, in order."""
    found = []
    state.map_rows(lambda tensor: found.append(tensor) or tensor)
    return found


def test_a_state_holds_no_more_after_many_frames_than_at_the_beginning(model):
    frame, state = torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8), model.init_state(1)
    shapes, held = [tensor.shape for tensor in tensors(state)], set()
    for t in range(60):
        _, state = model.step(frame, state)
        assert [tensor.shape for tensor in tensors(state)] == shapes
        if t > 0:
            held.add(sum(tensor.untyped_storage().nbytes() for tensor in tensors(state)))
    assert len(held) == 1


def test_rows_of_a_state_are_reset_selected_and_replaced_alike(model):
    """Every tensor of a state, of whatever layer, against one that is put together by hand."""
    video, actions = episode(model, 6, batch=3)
    state = model.init_state(3)
    for t in range(6):
        _, state = model.step(video[:, t], state, at(actions, t))
    before = [tensor.clone() for tensor in tensors(state)]
    order = torch.tensor([2, 0])
    selected = state.select(order)
    states = (
        model.init_state(3),
        state.reset(torch.tensor([False, True, False])),
        selected,
        model.init_state(3).replace(torch.tensor([0, 1]), selected),
    )
    for old, fresh, reset, few, replaced in zip(before, *map(tensors, states), strict=True):
        assert torch.equal(reset, torch.stack([old[0], fresh[1], old[2]]))
        assert torch.equal(few, old[order])
        assert torch.equal(replaced, torch.stack([old[2], old[0], fresh[2]]))
    assert all(map(torch.equal, before, tensors(state)))


@given(data=st.data())
def test_any_pattern_of_chunks_rows_and_resets(data):
    """Rows that begin anew at random times equal the offline contexts of each of their episodes."""
    model = tiny_model(action_dim=2)
    rows = data.draw(st.integers(1, 4), label="rows")
    length = data.draw(st.integers(2, 14), label="length")
    video, actions = episode(model, length, rows, seed=data.draw(st.integers(0, 99), label="seed"))
    starts = torch.tensor([data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)) for _ in range(length)])
    starts[0] = True
    state, contexts = model.init_state(rows), []
    for t in range(length):
        state = state.reset(starts[t])
        context, state = model.step(video[:, t], state, actions[:, t])
        contexts.append(context)
    contexts = torch.stack(contexts, dim=1)
    for row in range(rows):
        bounds = [*starts[:, row].nonzero().flatten().tolist(), length]
        for begin, end in itertools.pairwise(bounds):
            expected = model.extract_context(video[row : row + 1, begin:end], actions[row : row + 1, begin:end])
            torch.testing.assert_close(contexts[row, begin:end], expected[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(video_shape=(4, 3, 60, 64)), "multiples of downsample=8, got 60x64"),
        (dict(video_shape=(3, 64, 64)), "video_shape"),
        (dict(video_shape=(0, 3, 64, 64)), "video_shape"),
        (dict(timescales=("quick",)), "'quick'"),
        (dict(timescales=("slow", "fast", "slow")), "'slow' twice"),
        (dict(num_latent_channels=30), "30 channels"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(**arguments)


def test_bad_inputs_are_named():
    model = tiny_model()
    frame = torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"\(3, 64, 64\)"):
        model.extract_context(torch.zeros(1, 2, 3, 64, 64))
    with pytest.raises(ValueError, match="1 rows, got 2"):
        model.step(frame.repeat(2, 1, 1, 1), model.init_state(1))
    with pytest.raises(ValueError, match="action_dim=None"):
        model.step(frame, model.init_state(1), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="shape"):
        tiny_model(action_dim=2).step(frame, model.init_state(1), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="NaN"):
        tiny_model(action_dim=2).step(frame, model.init_state(1), torch.full((1, 2), torch.nan))
    with pytest.raises(ValueError, match="batch_size"):
        model.init_state(0)
