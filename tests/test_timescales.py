"""Timescales: what each remembers, streamed equal to offline at every phase, and learned in training."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import SIZE, tiny_model
from tiny_runs import predictor_settings, rollout_meta, tokenizer_settings

from perceiver_obs import CausalPerceiverIO, ContextEncoder
from perceiver_obs.data.rollouts import RolloutWriter
from perceiver_obs.training.train_predictor import train_predictor
from perceiver_obs.training.train_tokenizer import train_tokenizer

NAMES = ("fast", "medium", "slow")
WINDOW, LENGTH = 2, 70  # the slow ring is full after 32 frames
VARIANTS = {
    "frames": dict(reads="frames", inputs_per_frame=2, token_time_kernel=1, action_dim=2),
    "tokens": dict(inputs_per_frame=3, keypoints=5, token_time_kernel=2),
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys(), scope="module")
def model(request) -> CausalPerceiverIO:
    return tiny_model(**{"video_shape": (WINDOW, 3, SIZE, SIZE), "timescales": NAMES, **request.param})


def episodes(model: CausalPerceiverIO, count: int = 3) -> tuple[torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (count, LENGTH, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    actions = torch.rand(count, LENGTH, model.action_dim, generator=generator) * 2 - 1 if model.action_dim else None
    return video, actions


def span(actions: torch.Tensor | None, where) -> torch.Tensor | None:
    return None if actions is None else actions[:, where]


def test_chunks_of_any_length_equal_single_steps_and_one_pass(model):
    video, actions = episodes(model)
    whole = model.contexts(video, actions).detach()
    for lengths in ([1], [5, 1, 17, 2], [16], [40, 3]):
        state, begin, contexts = model.init_state(len(video)), 0, []
        while begin < LENGTH:
            chunk = slice(begin, begin + lengths[len(contexts) % len(lengths)])
            context, state = model.advance(video[:, chunk], state, span(actions, chunk))
            contexts.append(context)
            begin = chunk.stop
        torch.testing.assert_close(torch.cat(contexts, dim=1).detach(), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_rows_whose_episodes_began_at_different_frames(model, backend):
    """Rows at other phases of the strides, of which one begins anew, each equal its own episode offline."""
    video, actions = episodes(model)
    begins = {0: [0], 1: [3, 41], 2: [14]}
    encoder = ContextEncoder(model, 3, "cpu", backend)
    contexts = []
    for t in range(LENGTH):
        encoder.reset([row for row, of_row in begins.items() if t in of_row])
        frames = video[:, t].permute(0, 2, 3, 1).numpy()
        contexts.append(encoder.push(frames, None if actions is None else actions[:, t].numpy()))
    streamed = np.stack(contexts, axis=1)
    for row, of_row in begins.items():
        for begin, end in zip(of_row, [*of_row[1:], LENGTH]):
            led = None if actions is None else actions[row : row + 1, begin:end]
            offline = model.extract_context(video[row : row + 1, begin:end], led)[0].numpy()
            np.testing.assert_allclose(streamed[row, begin:end], offline, atol=1e-5, rtol=1e-5)


def test_each_timescale_reads_the_frames_of_its_stride_and_its_own():
    model = tiny_model(video_shape=(WINDOW, 3, SIZE, SIZE), timescales=NAMES, **VARIANTS["frames"])
    t = 37
    video = episodes(model, count=1)[0][:, : t + 2].repeat(t + 3, 1, 1, 1, 1)
    for row in range(t + 2):
        video[row, row] = 255 - video[row, row]
    *changed, unchanged = model.extract_context(video)[:, t]
    differs = torch.stack(changed).sub(unchanged).abs() > 1e-6
    read = {name: set(differs[:, model.part_of(name)].any(1).nonzero().flatten().tolist()) for name in NAMES}
    assert read == {"fast": {36, 37}, "medium": {32, 36, 37}, "slow": {16, 32, 37}}
    assert model.receptive_field == WINDOW * 16


def test_a_timescale_is_read_by_itself(model):
    video, actions = (None if x is None else x[:, :6] for x in episodes(model))
    contexts = model.extract_context(video, actions)
    width = model.context_dim // 3
    for number, name in enumerate(NAMES):
        alone = model.extract_context(video, actions, timescale=name)
        assert torch.equal(alone, contexts[..., number * width : (number + 1) * width])
        assert torch.equal(model.encode(video, actions, timescale=name), alone)
    assert torch.equal(model.encode(video, actions), contexts)
    with pytest.raises(ValueError, match=r"'fast', 'medium', 'slow'.*'quick'"):
        model.encode(video, actions, timescale="quick")
    with pytest.raises(ValueError, match=r"'fast'.*'slow'"):
        tiny_model().extract_context(torch.zeros(1, 1, 3, 64, 64), timescale="slow")


def test_a_clip_from_within_an_episode_is_read_by_its_place():
    """What training reads: frames before the clip are missing, but strides are counted from the episode's start."""
    model = tiny_model(video_shape=(WINDOW, 3, SIZE, SIZE), timescales=NAMES, **VARIANTS["frames"])
    video, _ = episodes(model)
    observed = model.predictor.observe(video)[0]
    whole, _ = model.predictor.encode(observed)
    first = torch.tensor([0, 16, 32])
    clips = torch.stack([row[begin : begin + 38] for row, begin in zip(observed, first.tolist())])
    contexts, _ = model.predictor.encode(clips, first=first)
    for row, begin in enumerate(first.tolist()):
        expected = whole[row, begin + 31 : begin + 38]
        torch.testing.assert_close(contexts[row, 31:], expected, atol=1e-5, rtol=0)
    elsewhere, _ = model.predictor.encode(clips, first=first + 5)
    fast, slow = model.part_of("fast"), model.part_of("slow")
    torch.testing.assert_close(elsewhere[..., fast], contexts[..., fast], atol=1e-5, rtol=0)
    assert (elsewhere[:, 31:, slow] - contexts[:, 31:, slow]).abs().max() > 0.01


def test_hidden_frames_are_those_before_its_own_and_of_the_fast_timescale_alone(model):
    video, _ = episodes(model)
    observed = model.predictor.observe(video)[0]
    contexts, _ = model.predictor.encode(observed)
    hidden, _ = model.predictor.encode(observed, hidden=torch.tensor([0, 1, 0]))
    assert torch.equal(hidden[[0, 2]], contexts[[0, 2]])
    fast = model.part_of("fast")
    assert torch.equal(hidden[1, :, fast.stop :], contexts[1, :, fast.stop :])
    assert torch.equal(hidden[1, 0], contexts[1, 0])
    assert ((hidden[1, 1:, fast] - contexts[1, 1:, fast]).abs().amax(-1) > 0).all()


CUE_STEPS, CUE_SIZE, ASKED = 39, 16, 35


def write_cues(path: Path, episodes: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Episodes whose first frame shows a colour, noise after it; videos `[N, T, C, H, W]` and cues -1 or 1 `[N]`."""
    random = np.random.default_rng(seed)
    meta = rollout_meta(1, CUE_SIZE, states=True, task="cue") | {"state_names": ["position/cue"]}
    writer = RolloutWriter(path, meta)
    cues = np.where(np.arange(episodes) % 2, 1, -1)
    videos = random.integers(0, 256, (episodes, CUE_STEPS + 1, CUE_SIZE, CUE_SIZE, 3), dtype=np.uint8)
    videos[:, 0] = np.where(cues[:, None, None, None] > 0, (255, 0, 0), (0, 0, 255))
    for index, (video, cue) in enumerate(zip(videos, cues)):
        writer.write_episode(
            index,
            video,
            np.zeros((CUE_STEPS, 1), np.float32),
            np.zeros(CUE_STEPS, np.float32),
            terminated=False,
            truncated=True,
            seed=index,
            policy="none",
            states=np.full((CUE_STEPS + 1, 1), cue, np.float32),
        )
    return torch.from_numpy(videos).permute(0, 1, 4, 2, 3), cues


def share_right(model: CausalPerceiverIO, timescale: str | None, train, test) -> float:
    """Cues of other episodes that a ridge regression reads from the contexts of one late frame."""
    (x, y), (test_x, test_y) = (
        (model.encode(video, timescale=timescale)[:, ASKED].double().numpy(), cues) for video, cues in (train, test)
    )
    weights = np.linalg.solve(x.T @ x + 10 * np.eye(x.shape[1]), x.T @ y)
    return float((np.sign(test_x @ weights) == test_y).mean())


def test_training_teaches_the_slow_timescale_what_the_fast_one_cannot_see(tmp_path):
    train, test = write_cues(tmp_path / "data", 64, seed=0), write_cues(tmp_path / "test", 64, seed=1)
    train_tokenizer(tokenizer_settings(tmp_path / "data", tmp_path / "tokenizer", steps=1, motion_weight=0.0))
    only_states = dict.fromkeys(["cross_entropy_weight", "edge_weight", "contrastive_weight", "reward_weight"], 0.0)

    def trained(*timescales: str) -> CausalPerceiverIO:
        settings = predictor_settings(
            tmp_path / "data",
            tmp_path / "tokenizer",
            tmp_path / "-".join(timescales),
            timescales=timescales,
            sequence_length=3,
            clip_length=CUE_STEPS + 1,
            reads="frames",
            inputs_per_frame=2,
            keypoints=None,
            read_actions=False,
            state_weight=1.0,
            horizons=(1,),
            latent_horizon=1,
            steps=30,
            batch_size=6,
            learning_rate=3e-3,
            checkpoint_every=1000,
            evaluation_clips=2,
            **only_states,
        )
        return train_predictor(settings)

    both, fast = trained("fast", "slow"), trained("fast")
    assert share_right(both, None, train, test) > 0.95
    assert share_right(both, "slow", train, test) > 0.95
    assert share_right(both, "fast", train, test) < 0.75
    assert share_right(fast, None, train, test) < 0.75
