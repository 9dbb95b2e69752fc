"""What a model tells of the data it was trained on: frames are counted, and who acted in them is named."""

import json

import pytest
from tiny_runs import predictor_settings, tokenizer_settings, write_dataset

from perceiver_obs import bundled_models
from perceiver_obs.data.data_record import (
    DATA_FILE,
    OfflineFrames,
    describe_datasets,
    offline_frames,
    read_data_record,
    write_data_record,
)
from perceiver_obs.data.rollouts import RolloutDataset, RolloutWriter
from perceiver_obs.training.train_predictor import train_predictor
from perceiver_obs.training.train_tokenizer import train_tokenizer

pytest_plugins = ("tiny_data",)


def test_a_record_counts_control_steps_and_images_and_names_policies(tiny_data, tmp_path):
    """6 episodes of 24 steps at repeat 2 by both kinds of noise, and two of noise at repeat 2 by nobody knows whom."""
    other = write_dataset(tmp_path / "other", [5, 7])
    datasets = [RolloutDataset(tiny_data), RolloutDataset(other)]
    write_data_record(tmp_path / "model", datasets)
    entries = read_data_record(tmp_path / "model")
    assert entries == describe_datasets(datasets)
    assert [entry["fingerprint"] for entry in entries] == [dataset.fingerprint for dataset in datasets]
    counted = offline_frames(entries)
    assert counted == OfflineFrames(6 * 24 * 2 + 12 * 2, 6 * 25 + 14, ("random", "correlated", "unknown"))
    write_data_record(tmp_path / "made of it", datasets[1:], before=entries)
    assert read_data_record(tmp_path / "made of it") == entries


def test_datasets_of_equal_shape_are_both_counted(tmp_path):
    datasets = [RolloutDataset(write_dataset(tmp_path / name, [5, 7])) for name in ("a", "b")]
    write_data_record(tmp_path / "one", datasets)  # the same noise: one is a copy of the other
    assert len(read_data_record(tmp_path / "one")) == 1
    writer = RolloutWriter(tmp_path / "c", datasets[0].meta)
    for episode in datasets[0]:
        writer.write_episode(None, **vars(episode) | {"pixels": 255 - episode.pixels})
    write_data_record(tmp_path / "two", [datasets[0], RolloutDataset(tmp_path / "c")])
    entries = read_data_record(tmp_path / "two")
    assert [entry["name"] for entry in entries] == ["a", "c"]
    assert offline_frames(entries).rendered == 2 * (6 + 8)


def test_a_model_counts_what_its_tokenizer_was_trained_on(tiny_data, tmp_path):
    other = write_dataset(tmp_path / "other", [24] * 6)
    train_tokenizer(tokenizer_settings(other, tmp_path / "tokenizer", steps=1))
    train_predictor(predictor_settings(tiny_data, tmp_path / "tokenizer", tmp_path / "model", steps=1))
    assert read_data_record(tmp_path / "model") == describe_datasets([RolloutDataset(p) for p in (other, tiny_data)])


def test_no_data_is_no_frames_and_no_record_is_unknown(tmp_path):
    assert offline_frames([]) == OfflineFrames(0, 0, ())
    assert read_data_record(tmp_path) is None


@pytest.mark.parametrize("name", sorted(bundled_models()))
def test_bundled_models_tell_their_frames(name):
    entries = read_data_record(bundled_models()[name])
    assert entries is not None
    counted = offline_frames(entries)
    assert counted.control_steps > counted.rendered > 0
    assert counted.policies


@pytest.mark.parametrize("content", ["{", '{"frames": 3}', "[3]", json.dumps([{"frames": 3, "episodes": 1}])])
def test_damaged_records_are_named(tmp_path, content):
    (tmp_path / DATA_FILE).write_text(content)
    with pytest.raises(ValueError, match=r"data\.json is not a record"):
        read_data_record(tmp_path)
