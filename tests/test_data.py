"""Clips, splits and the token cache: what training reads is what was recorded."""

import os
import shutil

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import write_dataset

from perceiver_obs import VQPTTokenizer
from perceiver_obs.data.clips import ClipIndex, ClipPlace, RolloutClips, leading_actions, prefetch
from perceiver_obs.data.rollouts import RolloutDataset, RolloutError, RolloutWriter
from perceiver_obs.data.splits import data_paths, joint_contract, open_datasets, split_episodes
from perceiver_obs.training import token_cache
from perceiver_obs.training.quality import NextTokenBaselines, count_codes, psnr, token_accuracies
from perceiver_obs.training.token_cache import TokenCache, encode_frames

pytest_plugins = ("tiny_data",)

SMALL_TOKENIZER = {"code_dim": 8, "num_codes": 16, "downsample": 4, "base_channels": 4, "num_quantizers": 2}


@given(
    lengths=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=3),
    clip_length=st.integers(1, 5),
    seed=st.integers(0, 2**32),
    step=st.integers(0, 10**6),
    rank=st.integers(0, 7),
)
def test_clips_lie_in_their_episodes_and_depend_on_seed_step_and_rank_alone(lengths, clip_length, seed, step, rank):
    frames = [dict(enumerate(each)) for each in lengths]
    if any(max(each) < clip_length for each in lengths):
        with pytest.raises(ValueError, match=f"no episode of {clip_length} frames"):
            ClipIndex(frames, clip_length)
        return
    places = ClipIndex(frames, clip_length).draw(16, seed, step, rank)
    assert places == ClipIndex(frames, clip_length).draw(16, seed, step, rank)
    for place in places:
        assert 0 <= place.start <= lengths[place.dataset][place.episode] - clip_length


def test_every_clip_is_drawn_and_ranks_and_steps_differ():
    index = ClipIndex([{0: 5, 3: 2, 4: 7}, {1: 4}], clip_length=3)
    drawn = {place for step in range(200) for place in index.draw(8, seed=0, step=step)}
    assert len(drawn) == len(index) == 3 + 5 + 2
    assert index.draw(8, 0, 1) != index.draw(8, 0, 2)
    assert index.draw(8, 0, 1, rank=0) != index.draw(8, 0, 1, rank=1)


def test_datasets_are_mixed_evenly_whatever_their_sizes():
    index = ClipIndex([{0: 1000}, {0: 3}], clip_length=3)
    from_small = [place.dataset for step in range(100) for place in index.draw(10, 0, step)]
    assert 0.4 < np.mean(from_small) < 0.6


def test_datasets_are_drawn_by_their_weights(tmp_path):
    named = [str(write_dataset(tmp_path / name, [9, 9, 9])) for name in ("a", "b", "x=y")]
    datasets, weights = open_datasets([f"{named[0]}=3", named[1], f"{named[2]}=0.5", f"{named[1]}/=0.5"])
    assert [dataset.path.name for dataset in datasets] == ["a", "b", "x=y"]
    assert weights == [3, 1.5, 0.5], "weights of a directory that is named again add up"
    assert data_paths([f"{named[0]}=3", named[2], named[0]]) == [named[0], named[2]]
    clips = RolloutClips(datasets, [[0, 1, 2]] * 3, 4, weights)
    for each in (clips, clips.of_length(5), clips.only([0, 1, 2])):
        drawn = [place.dataset for step in range(100) for place in each.index.draw(20, 0, step)]
        np.testing.assert_allclose(np.bincount(drawn) / len(drawn), [0.6, 0.3, 0.1], atol=0.03)
    of_two = clips.only([2, 0]).index
    assert 0.1 < np.mean([place.dataset == 0 for place in of_two.draw(2000, 0, 0)]) < 0.2
    assert RolloutClips(datasets, [[0, 1, 2]] * 3, 4, [2, 2, 2]).index.draw(9, 1, 2) == RolloutClips(
        datasets, [[0, 1, 2]] * 3, 4
    ).index.draw(9, 1, 2)
    for weight in ("0", "-1", "nan", "inf"):
        with pytest.raises(ValueError, match=f"must be a positive number, as in runs/data=2, got '.*a={weight}'"):
            open_datasets([f"{named[0]}={weight}"])
    with pytest.raises(ValueError, match="no rollout dataset at"):
        open_datasets([f"{named[0]}=twice"])


def test_frames_actions_and_rewards_are_those_of_the_episodes(tmp_path):
    paths = [write_dataset(tmp_path / "a", [6, 9], action_size=2), write_dataset(tmp_path / "b", [8, 8], action_size=3)]
    datasets, _ = open_datasets([str(path) for path in paths])
    clips = RolloutClips(datasets, [[0, 1], [0, 1]], clip_length=4)
    places = [ClipPlace(0, 1, 0), ClipPlace(0, 1, 3), ClipPlace(1, 0, 5)]
    frames, actions, rewards = clips.frames(places), clips.actions(places), clips.rewards(places)
    assert frames.dtype == np.uint8
    assert frames.shape == (3, 4, 3, 16, 16)
    assert actions.shape == (3, 4, 3)
    assert rewards.shape == (3, 4)
    for row, place in enumerate(places):
        episode = datasets[place.dataset][place.episode]
        for time in range(4):
            frame = place.start + time
            np.testing.assert_array_equal(frames[row, time], episode.pixels[frame].transpose(2, 0, 1))
            led = episode.actions[frame - 1] if frame else np.zeros(episode.actions.shape[1])
            np.testing.assert_array_equal(actions[row, time, : len(led)], led)
            assert not actions[row, time, len(led) :].any()
            assert rewards[row, time] == (episode.rewards[frame - 1] if frame else 0)


def test_leading_actions_begin_with_zeros():
    led = leading_actions(np.ones((3, 1), np.float32), action_dim=2)
    assert led.tolist() == [[0, 0], [1, 0], [1, 0], [1, 0]]


def test_foreground_is_what_leaves_the_median_frame(tiny_data):
    dataset = RolloutDataset(tiny_data)
    clips = RolloutClips([dataset], [[0]], clip_length=25)
    place = [ClipPlace(0, 0, 0)]
    foreground = clips.foreground(place, clips.frames(place))
    assert foreground.shape == (1, 25, 1, 32, 32)
    assert foreground.min() == 0
    assert foreground.max() == 1
    changed = (dataset[0].pixels != dataset[0].pixels[0]).any(axis=(0, 3))
    assert not foreground[0, :, 0][:, ~changed].any()
    assert foreground[0, :, 0][:, changed].any()


def test_split_has_both_sides_and_stays_as_a_dataset_grows(tmp_path):
    sides: dict[int, set[str]] = {}
    for size in (2, 3, 20, 60):
        dataset = RolloutDataset(write_dataset(tmp_path / str(size), [1] * size))
        training, held_out = split_episodes(dataset, 0.2)
        assert training
        assert held_out
        assert sorted(training + held_out) == list(range(size))
        if size >= 20:
            for index in training:
                sides.setdefault(index, set()).add("training")
            for index in held_out:
                sides.setdefault(index, set()).add("held out")
    assert all(len(side) == 1 for side in sides.values())


def test_only_alike_frames_are_mixed(tmp_path):
    small, large = write_dataset(tmp_path / "a", [4, 4]), write_dataset(tmp_path / "b", [4, 4], size=32)
    with pytest.raises(ValueError, match="frames of size 16 and 32 do not go together"):
        open_datasets([str(small), str(large)])
    single = write_dataset(tmp_path / "c", [4])
    with pytest.raises(ValueError, match="1 whole episode"):
        open_datasets([str(single)])
    with pytest.raises(ValueError, match="nowhere"):
        open_datasets([str(tmp_path / "nowhere")])


def test_joint_contract_holds_all_that_differs(tiny_data, tmp_path):
    rendered = RolloutDataset(tiny_data)
    contract = joint_contract([rendered])
    assert contract.tasks == ["cartpole-swingup"]
    assert contract.size == 32
    noise = RolloutDataset(write_dataset(tmp_path / "noise", [3, 3], size=32))
    joint = joint_contract([rendered, noise])
    assert joint.tasks == ["cartpole-swingup", "noise"]
    assert joint.data_fingerprint != contract.data_fingerprint
    assert joint == joint_contract([noise, rendered])


def test_prefetch_keeps_the_order_and_passes_errors_on():
    assert list(prefetch(lambda step: step * step, range(3, 7))) == [9, 16, 25, 36]

    def broken(step: int) -> int:
        if step == 2:
            raise OSError("gone")
        return step

    batches = prefetch(broken, range(4))
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(OSError, match="gone"):
        next(batches)


@pytest.mark.parametrize("use_3d_conv", [False, True])
def test_cached_vectors_and_tokens_are_the_tokenizers(tiny_data, monkeypatch, use_3d_conv):
    torch.manual_seed(0)
    tokenizer = VQPTTokenizer(**SMALL_TOKENIZER, use_3d_conv=use_3d_conv).eval()
    pixels = RolloutDataset(tiny_data)[0].pixels
    monkeypatch.setattr(token_cache, "FRAMES_AT_ONCE", 7)
    vectors, tokens = encode_frames(tokenizer, pixels)
    video = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())[None]
    with torch.no_grad():
        whole = tokenizer.encode_vectors(video)[0]
    assert vectors.dtype == np.float16
    assert tokens.dtype == np.uint16
    np.testing.assert_allclose(vectors, whole, atol=2e-3)
    assert (tokens == tokenizer.encode(video)[0][0].numpy()).mean() > 0.999


def test_token_cache_encodes_what_is_missing_and_nothing_else(tiny_data, tmp_path):
    dataset = RolloutDataset(tiny_data)
    torch.manual_seed(0)
    tokenizer = VQPTTokenizer(**SMALL_TOKENIZER, use_3d_conv=False)
    TokenCache(tmp_path, tokenizer, [dataset]).fill(Accelerator(cpu=True))
    files = sorted(tmp_path.rglob("*.npy"))
    assert len(files) == 2 * len(dataset)
    gone = next(file for file in files if file.name == "000002.tokens.npy")
    content = gone.read_bytes()
    gone.unlink()
    times = {file: os.stat(file).st_mtime_ns for file in files if file.name[:6] != "000002"}
    TokenCache(tmp_path, tokenizer, [dataset]).fill(Accelerator(cpu=True))
    assert gone.read_bytes() == content
    assert times == {file: os.stat(file).st_mtime_ns for file in times}
    other = VQPTTokenizer(**SMALL_TOKENIZER, use_3d_conv=False)
    TokenCache(tmp_path, other, [dataset]).fill(Accelerator(cpu=True))
    assert len(list(tmp_path.rglob("*.npy"))) == 4 * len(dataset)


def test_token_cache_never_takes_a_dataset_for_another(tiny_data, tmp_path):
    """Other frames in files of the same names and sizes: elsewhere, and in the same place."""
    torch.manual_seed(0)
    tokenizer = VQPTTokenizer(**SMALL_TOKENIZER, use_3d_conv=False)
    original = RolloutDataset(tiny_data)

    def write(path, change):
        writer = RolloutWriter(path, original.meta)
        for episode in original:
            writer.write_episode(None, **vars(episode) | {"pixels": change(episode.pixels)})
        return RolloutDataset(path)

    def check(datasets):
        cache = TokenCache(tmp_path / "cache", tokenizer, datasets)
        cache.fill(Accelerator(cpu=True))
        for number, dataset in enumerate(datasets):
            for position, episode in enumerate(dataset):
                vectors, tokens = encode_frames(tokenizer, episode.pixels)
                np.testing.assert_array_equal(cache.tokens(number, position), tokens)
                np.testing.assert_array_equal(cache.vectors(number, position), vectors)

    same, inverse = write(tmp_path / "a", lambda pixels: pixels), write(tmp_path / "b", lambda pixels: 255 - pixels)
    assert same.fingerprint == original.fingerprint
    assert not np.array_equal(*(encode_frames(tokenizer, each[0].pixels)[1] for each in (same, inverse)))
    check([same, inverse])
    shutil.rmtree(tmp_path / "a")
    rewritten = write(tmp_path / "a", lambda pixels: pixels[:, ::-1])
    check([inverse, rewritten])
    with pytest.raises(RolloutError, match="open it again"):
        TokenCache(tmp_path / "other cache", tokenizer, [same]).fill(Accelerator(cpu=True))


def test_token_cache_gives_clips_and_statistics(tiny_data, tmp_path):
    dataset = RolloutDataset(tiny_data)
    tokenizer = VQPTTokenizer(**SMALL_TOKENIZER, use_3d_conv=False)
    cache = TokenCache(tmp_path, tokenizer, [dataset])
    cache.fill(Accelerator(cpu=True))
    vectors, tokens = cache.clips([ClipPlace(0, 3, 5), ClipPlace(0, 1, 0)], length=4)
    assert vectors.shape == (2, 4, 8, 8, 8)
    assert tokens.shape == (2, 4, 8, 8, 2)
    np.testing.assert_array_equal(vectors[0], cache.vectors(0, 3)[5:9].astype(np.float32))
    np.testing.assert_array_equal(tokens[1], cache.tokens(0, 1)[:4])
    every = np.concatenate([cache.vectors(0, episode).astype(np.float64) for episode in range(4)])
    mean, deviation = cache.statistics([[0, 1, 2, 3]])
    np.testing.assert_allclose(mean, every.mean(0), atol=1e-5)
    np.testing.assert_allclose(deviation, np.sqrt(np.square(every - every.mean(0)).mean((0, 1, 2))), rtol=1e-3)


def test_token_cache_refuses_tokens_of_every_other_frame(tiny_data, tmp_path):
    tokenizer = VQPTTokenizer(**SMALL_TOKENIZER, temporal_downsample=True)
    with pytest.raises(ValueError, match="temporal_downsample"):
        TokenCache(tmp_path, tokenizer, [RolloutDataset(tiny_data)])


def test_baselines_count_what_they_say():
    tokens = np.array([0, 1, 2, 0, 1, 2, 0, 1])[:, None, None, None]
    baselines = NextTokenBaselines(num_codes=4)
    baselines.fit(tokens)
    now, then = tokens[:-1], tokens[1:]
    forecasts = baselines.forecast(now)
    np.testing.assert_array_equal(forecasts["bigram"], then)
    np.testing.assert_array_equal(forecasts["copy"], now)
    assert (forecasts["unigram"] == 0).all()
    scores = token_accuracies(forecasts, now, then)
    assert scores["bigram"] == scores["bigram_moving"] == 1
    assert scores["copy"] == scores["copy_moving"] == 0
    assert "copy_moving" not in token_accuracies({"copy": now}, now, now)


def test_the_baseline_of_changes_leaves_out_staying():
    tokens = np.array([0, 0, 0, 1, 0, 0, 2, 0, 1])[:, None, None, None]  # 0 stays thrice, 1 follows it twice, 2 once
    baselines = NextTokenBaselines(num_codes=4)
    baselines.fit(tokens)
    forecasts = baselines.forecast(tokens[:4])
    assert forecasts["bigram"].ravel().tolist() == [0, 0, 0, 0]
    assert forecasts["change"].ravel().tolist() == [1, 1, 1, 0]


def test_token_accuracies_tell_what_changes_from_what_stays():
    now = np.array([[0, 0], [1, 1], [2, 2], [3, 3]])  # four places of two codebooks
    then = np.array([[0, 0], [1, 1], [2, 0], [0, 0]])
    scores = token_accuracies({"copy": now, "right": then}, now, then)
    assert scores == {
        "copy": 5 / 8,
        "copy_moving": 1 / 4,
        "copy_changing": 0.0,
        **dict.fromkeys(("right", "right_moving", "right_changing"), 1.0),
    }
    assert token_accuracies({"copy": now}, now, now) == {"copy": 1.0}


def test_figures_of_merit_by_hand():
    assert psnr(0.01) == pytest.approx(20)
    counts = count_codes(np.array([[[0, 3], [0, 1]]]), num_codes=4)
    assert counts.tolist() == [[2, 0, 0, 0], [0, 1, 0, 1]]
