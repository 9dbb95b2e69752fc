"""The rollout store: what goes in comes out, and whatever is broken is named."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from noise_episodes import ACTION_SIZE, SIZE, episode, meta

from envs import EpisodeExists, RolloutDataset, RolloutError, RolloutWriter
from perceiver_obs import ActionEncoding
from perceiver_obs.data import content_hash

FIELDS = ("pixels", "actions", "rewards", "terminated", "truncated", "seed", "policy", "states")


@pytest.fixture
def dataset(tmp_path):
    """A directory with episodes 0, 1 and 2."""
    writer = RolloutWriter(tmp_path / "data", meta())
    for index in range(3):
        writer.write_episode(index, **episode(steps=3 + index, seed=index))
    return tmp_path / "data"


# What goes in comes out


@given(
    steps=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    states=st.booleans(),
    compress=st.booleans(),
    terminated=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
    policy=st.text(st.characters(exclude_categories=["C"]), max_size=20),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_episodes_come_back_as_they_were(tmp_path, steps, states, compress, terminated, seed, policy):
    shutil.rmtree(tmp_path / "data", ignore_errors=True)
    writer = RolloutWriter(tmp_path / "data", meta(states), compress=compress)
    given_ = [
        episode(count, states, seed=i) | {"terminated": terminated, "seed": seed, "policy": policy}
        for i, count in enumerate(steps)
    ]
    for index in reversed(range(len(steps))):  # in any order
        writer.write_episode(index, **given_[index])
    read = RolloutDataset(tmp_path / "data")
    assert [len(item) for item in read] == steps
    assert read.lengths == [count + 1 for count in steps]
    assert read.num_frames == sum(read.lengths)
    for expected, found in zip(given_, read):
        for name in FIELDS:
            value = getattr(found, name)
            assert np.array_equal(value, expected[name]), name
            if isinstance(value, np.ndarray):
                assert value.dtype == expected[name].dtype


def test_frames_are_read_by_memory_map_and_cannot_be_changed(dataset):
    pixels = RolloutDataset(dataset)[0].pixels
    assert isinstance(pixels, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        pixels[0] = 0


def test_a_growing_dataset_shows_whole_episodes_only(dataset):
    (dataset / "episodes" / "000001.npz").unlink()  # as while episode 1 is being written
    data = RolloutDataset(dataset)
    assert data.indices == [0, 2]
    assert [item.seed for item in data] == [0, 2]
    RolloutWriter(dataset, meta()).write_episode(1, **episode(seed=9))
    assert [item.seed for item in RolloutDataset(dataset)] == [0, 9, 2]
    assert [item.seed for item in RolloutDataset(dataset)[1:]] == [9, 2]


def test_the_fingerprint_follows_the_data(dataset, tmp_path):
    before = RolloutDataset(dataset).fingerprint
    assert RolloutDataset(shutil.copytree(dataset, tmp_path / "copy")).fingerprint == before
    RolloutWriter(dataset, meta()).write_episode(3, **episode())
    assert RolloutDataset(dataset).fingerprint != before
    other = RolloutWriter(tmp_path / "other", meta(action_size=2, collection={"seed": 1}))
    for index in range(3):
        other.write_episode(index, **episode(steps=3 + index, seed=index))
    assert RolloutDataset(tmp_path / "other").fingerprint != before


def compressed(dataset, path):
    """The same episodes, their frames compressed."""
    read = RolloutDataset(dataset)
    writer = RolloutWriter(path, read.meta, compress=True)
    for index, item in zip(read.indices, read):
        writer.write_episode(index, **vars(item))
    return path


def forget_hashes(dataset):
    """As datasets were before episodes held hashes."""
    for file in (dataset / "episodes").glob("*.npz"):
        rewrite(file, pixels_sha256=None)


def write_all(path, seeds, steps=4):
    writer = RolloutWriter(path, meta())
    for index, seed in enumerate(seeds):
        writer.write_episode(index, **episode(steps, seed=seed) | {"seed": 0})
    return path


def test_the_fingerprint_is_of_the_content_and_not_of_how_it_is_stored(dataset, tmp_path):
    before = RolloutDataset(dataset).fingerprint
    assert RolloutDataset(compressed(dataset, tmp_path / "zstd")).fingerprint == before
    for copy_file in (shutil.copy, shutil.copy2):  # times of now, and times of then
        copy = tmp_path / copy_file.__name__
        assert RolloutDataset(shutil.copytree(dataset, copy, copy_function=copy_file)).fingerprint == before
    forget_hashes(dataset)
    assert RolloutDataset(dataset).fingerprint == before


def test_every_part_of_an_episode_counts_for_the_fingerprint(tmp_path):
    first = episode()
    changes = {
        "pixels": 255 - first["pixels"],
        "actions": -first["actions"],
        "rewards": -first["rewards"],
        "states": -first["states"],
        "terminated": True,
        "truncated": False,
        "seed": 1,
        "policy": "other",
    }
    assert changes.keys() == first.keys()
    found = set()
    for name, changed in [("none", first), *((name, first | {name: value}) for name, value in changes.items())]:
        RolloutWriter(tmp_path / name, meta()).write_episode(0, **changed)
        found.add(RolloutDataset(tmp_path / name).fingerprint)
    RolloutWriter(tmp_path / "number", meta()).write_episode(1, **first)
    found.add(RolloutDataset(tmp_path / "number").fingerprint)
    assert len(found) == len(changes) + 2


def test_frames_written_over_others_change_the_fingerprint(dataset):
    before = RolloutDataset(dataset).fingerprint
    frames = np.load(dataset / PIXELS)
    np.save(dataset / PIXELS, 255 - frames)
    assert RolloutDataset(dataset).fingerprint != before
    np.save(dataset / PIXELS, frames)
    assert RolloutDataset(dataset).fingerprint == before


def test_frames_without_a_hash_are_hashed_once(dataset, monkeypatch):
    before = RolloutDataset(dataset).fingerprint
    assert not (dataset / "digests.json").exists()
    forget_hashes(dataset)
    hashed = []
    found = content_hash.pixels_digest
    monkeypatch.setattr(content_hash, "pixels_digest", lambda pixels: hashed.append(len(pixels)) or found(pixels))
    assert RolloutDataset(dataset).fingerprint == before
    assert hashed == [4, 5, 6]
    assert RolloutDataset(dataset).fingerprint == before
    assert len(hashed) == 3
    np.save(dataset / PIXELS, 255 - np.load(dataset / PIXELS))
    assert RolloutDataset(dataset).fingerprint != before
    assert hashed[3:] == [5]
    (dataset / "digests.json").write_text('[["000000.pixels.npy"]]')
    assert RolloutDataset(dataset).fingerprint != before
    assert hashed[4:] == [4, 5, 6]


# Nothing is overwritten


def test_an_episode_is_never_overwritten(dataset):
    before = RolloutDataset(dataset).fingerprint
    for compress in (False, True):
        with pytest.raises(EpisodeExists, match=r"episode 1 is in .* already"):
            RolloutWriter(dataset, meta(), compress=compress).write_episode(1, **episode(seed=9))
    assert RolloutDataset(dataset).fingerprint == before
    assert len(list((dataset / "episodes").iterdir())) == 6


def test_the_next_free_number_is_taken_whoever_writes(tmp_path):
    first, second = (RolloutWriter(tmp_path, meta(), compress=compress) for compress in (False, True))
    taken = [writer.write_episode(None, **episode(seed=seed)) for seed, writer in enumerate([first, second] * 3)]
    assert taken == list(range(6))
    assert first.write_episode(9, **episode(seed=9)) == 9
    assert second.write_episode(None, **episode(seed=10)) == 10
    assert [item.seed for item in RolloutDataset(tmp_path)] == [*range(6), 9, 10]


def test_frames_of_a_killed_writer_are_not_taken_for_those_of_the_next(tmp_path):
    writer = RolloutWriter(tmp_path, meta(), compress=True)
    (tmp_path / "episodes" / "000000.pixels.npy").write_bytes(b"half")
    np.save(tmp_path / "episodes" / "000007.pixels.npy", episode(seed=1)["pixels"])
    assert writer.write_episode(None, **episode(seed=2)) == 0
    assert writer.write_episode(7, **episode(seed=3)) == 7
    for item, seed in zip(RolloutDataset(tmp_path), (2, 3)):
        np.testing.assert_array_equal(item.pixels, episode(seed=seed)["pixels"])


def test_writers_in_several_processes_keep_all_their_episodes(tmp_path):
    script = (
        "import sys\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from noise_episodes import episode, meta\n"
        "from envs import EpisodeExists, RolloutWriter\n"
        "writer, first = RolloutWriter(sys.argv[1], meta(), compress=sys.argv[3] == '0'), 1000 * int(sys.argv[3])\n"
        "input()\n"
        "for number in range(60):\n"
        "    index = None if number % 2 else 2 * number  # both ask for some numbers\n"
        "    try:\n"
        "        print(writer.write_episode(index, **episode(1 + number % 5, seed=first + number)), first + number)\n"
        "    except EpisodeExists:\n"
        "        assert index is not None\n"
    )
    command = [sys.executable, "-c", script, tmp_path / "data", os.path.dirname(__file__)]
    processes = [
        subprocess.Popen([*command, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for number in range(2)
    ]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    written = {}
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        pairs = [tuple(map(int, line.split())) for line in output.splitlines()]
        assert len(pairs) >= 30
        assert not written.keys() & dict(pairs).keys()
        written |= dict(pairs)
    data = RolloutDataset(tmp_path / "data")
    assert {index: item.seed for index, item in zip(data.indices, data)} == written
    for item in data:
        np.testing.assert_array_equal(item.pixels, episode(len(item), seed=item.seed)["pixels"])
    assert len(list((tmp_path / "data" / "episodes").iterdir())) == 2 * len(data)


# A dataset that changes while it is open


@pytest.mark.parametrize("read_before", [False, True])
@pytest.mark.parametrize("compress", [False, True])
def test_an_episode_rewritten_while_the_dataset_is_open_is_refused(tmp_path, read_before, compress):
    """The same shapes, in files of the same names: nothing of the old may be mixed with the new."""
    data = RolloutDataset(write_all(tmp_path / "data", [1, 2, 3]))
    held = [*data] if read_before else []
    shutil.rmtree(tmp_path / "data" / "episodes")
    writer = RolloutWriter(tmp_path / "data", meta(), compress=compress)
    for index in (0, 1):
        writer.write_episode(index, **episode(4, seed=10 + index))
    for index in range(3):
        with pytest.raises(RolloutError, match=f"episode {index} of .* was deleted or written anew.*open it again"):
            data[index]
    with pytest.raises(RolloutError, match="open it again"):
        data.fingerprint  # noqa: B018
    for item, seed in zip(held, [1, 2, 3]):
        np.testing.assert_array_equal(item.pixels, episode(4, seed=seed)["pixels"])
    again = RolloutDataset(tmp_path / "data")
    assert [item.seed for item in again] == [10, 11]


def test_episodes_added_while_a_dataset_is_open_change_nothing(dataset):
    data = RolloutDataset(dataset)
    before = RolloutDataset(dataset).fingerprint
    RolloutWriter(dataset, meta()).write_episode(None, **episode(seed=7))
    assert [item.seed for item in data] == [0, 1, 2]
    assert data.fingerprint == before
    assert len(RolloutDataset(dataset)) == 4


# Links


def test_a_dataset_may_be_linked_but_its_files_may_not_lead_elsewhere(dataset, tmp_path):
    before = RolloutDataset(dataset).fingerprint
    (tmp_path / "link").symlink_to(dataset)
    assert RolloutDataset(tmp_path / "link").fingerprint == before
    RolloutWriter(tmp_path / "link", meta()).write_episode(None, **episode(seed=3))
    assert len(RolloutDataset(dataset)) == 4
    linked = tmp_path / "linked"
    RolloutWriter(linked, meta())
    for file in (dataset / "episodes").iterdir():
        (linked / "episodes" / file.name).symlink_to(file)
    with pytest.raises(RolloutError, match=r"npz leads out of the dataset, to .*: copy the files \(`cp -rL`") as error:
        RolloutDataset(linked)
    assert str(linked) in str(error.value)
    subprocess.run(["cp", "-rL", linked, tmp_path / "copied"], check=True)
    assert len(RolloutDataset(tmp_path / "copied")) == 4


# What does not belong is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixels": np.zeros((5, SIZE, SIZE, 3), np.uint8)}, r"pixels should be uint8 \(6, 8, 8, 3\).*\(5, 8, 8, 3\)"),
        ({"pixels": np.zeros((6, SIZE, SIZE, 3), np.float32)}, "pixels should be uint8.*float32"),
        ({"pixels": np.zeros((6, 9, 9, 3), np.uint8)}, r"\(6, 9, 9, 3\)"),
        ({"actions": np.zeros((5, 3), np.float32)}, r"actions should be float32 \(5, 2\).*\(5, 3\)"),
        ({"actions": np.zeros((5, 2))}, "float64"),
        ({"actions": np.full((5, 2), -1.5, np.float32)}, r"actions should lie in \[-1, 1\], got 1.5"),
        ({"rewards": np.zeros(4, np.float32)}, "rewards should be"),
        ({"states": None}, "3 state entries, got none"),
        ({"states": np.zeros((6, 4), np.float32)}, r"states should be float32 \(6, 3\)"),
        ({"seed": -1}, "seed must be.*-1"),
        ({"policy": "x" * 5000}, "policy tag"),
    ],
)
def test_episodes_that_do_not_fit_are_refused(tmp_path, changes, message):
    writer = RolloutWriter(tmp_path / "data", meta())
    with pytest.raises(RolloutError, match=message):
        writer.write_episode(0, **(episode() | changes))
    assert not any((tmp_path / "data" / "episodes").iterdir())


def test_metadata_that_lacks_something_is_refused(tmp_path):
    incomplete = {key: value for key, value in meta().items() if key != "action_size"}
    with pytest.raises(RolloutError, match="action_size"):
        RolloutWriter(tmp_path / "data", incomplete)
    with pytest.raises(RolloutError, match="size"):
        RolloutWriter(tmp_path / "data", meta(frame_contract={}))
    with pytest.raises(RolloutError, match="'actions': expected how actions are encoded, got 'as sent'"):
        RolloutWriter(tmp_path / "data", meta(actions="as sent"))
    with pytest.raises(RolloutError, match="actions of 3 floats, and action_size=2"):
        RolloutWriter(tmp_path / "data", meta(actions=ActionEncoding.unit(3).meta))


def test_a_dataset_says_how_its_actions_are_encoded(dataset):
    assert RolloutDataset(dataset).meta["actions"] == ActionEncoding.unit(ACTION_SIZE).meta


def test_actions_that_were_once_written_as_sent_are_read_as_executed(dataset):
    actions = np.array(RolloutDataset(dataset)[1].actions)
    actions[0] = 1.7, -9
    rewrite(dataset / ARRAYS, actions=actions)
    np.testing.assert_array_equal(RolloutDataset(dataset)[1].actions, np.clip(actions, -1, 1))


def test_writing_on_with_other_settings_is_refused(dataset):
    with pytest.raises(RolloutError, match="action_size is 2 there and 3 here"):
        RolloutWriter(dataset, meta(action_size=3))
    RolloutWriter(dataset, meta(versions={"mujoco": "0.0"}))  # newer software may go on


# What is broken is named when the dataset is opened


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


def rewrite(path, **changes):
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files} | changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})


def edit_meta(dataset, **changes):
    path = dataset / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def claim_shape(path, shape):
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def replace_by_link(path, target):
    target.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(target)


PIXELS, ARRAYS = "episodes/000001.pixels.npy", "episodes/000001.npz"
BREAKAGES = {
    "frames cut short": (lambda d: cut(d / PIXELS, -7), "000001.pixels.npy has .* bytes, should have"),
    "frames empty": (lambda d: cut(d / PIXELS, 0), "000001.pixels.npy is not a whole"),
    "frames missing": (lambda d: (d / PIXELS).unlink(), "000001.pixels.npy.* is missing"),
    "fewer frames": (
        lambda d: np.save(d / PIXELS, np.zeros((4, 8, 8, 3), np.uint8)),
        r"\(5, 8, 8, 3\).*\(4, 8, 8, 3\)",
    ),
    "pickled frames": (lambda d: np.save(d / PIXELS, np.array([{}, []], object)), "object"),
    "absurd size": (lambda d: claim_shape(d / PIXELS, (10**12, 8, 8, 3)), r"is uint8 \(1000000000000, 8, 8, 3\)"),
    "garbled header": (lambda d: (d / PIXELS).write_bytes((d / PIXELS).read_bytes().replace(b"3)", b"3(")), "whole"),
    "arrays cut short": (lambda d: cut(d / ARRAYS, -30), "000001.npz is cut short or damaged"),
    "no actions": (lambda d: rewrite(d / ARRAYS, actions=None), "lacks 'actions'"),
    "wrong rewards": (lambda d: rewrite(d / ARRAYS, rewards=np.zeros(9, np.float32)), "rewards.*should be"),
    "actions of another size": (lambda d: rewrite(d / ARRAYS, actions=np.zeros((4, 7), np.float32)), "actions.*should"),
    "no states": (lambda d: rewrite(d / ARRAYS, states=None), "lacks 'states'"),
    "pickled arrays": (lambda d: rewrite(d / ARRAYS, rewards=np.array([None] * 4, object)), "rewards.*object"),
    "leads outside": (lambda d: replace_by_link(d / PIXELS, d.parent / "elsewhere.npy"), "leads out of the dataset"),
    "other version": (lambda d: edit_meta(d, format_version=99), "format version 99"),
    "other format": (lambda d: edit_meta(d, format="lmdb"), "does not describe a rollout dataset"),
    "meta of wrong type": (lambda d: edit_meta(d, action_size="2"), "action_size"),
    "meta cut short": (lambda d: cut(d / "meta.json", 20), "not JSON"),
    "no meta": (lambda d: (d / "meta.json").unlink(), "there is no rollout dataset at"),
    "no episodes": (lambda d: [f.unlink() for f in (d / "episodes").iterdir()], "holds no whole episode"),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_broken_datasets_are_named(dataset, breakage):
    do_break, message = BREAKAGES[breakage]
    do_break(dataset)
    with pytest.raises(RolloutError, match=message) as error:
        RolloutDataset(dataset)
    assert str(dataset) in str(error.value)


def test_an_empty_place_is_no_dataset(tmp_path):
    with pytest.raises(RolloutError, match="there is no rollout dataset at"):
        RolloutDataset(tmp_path)
    with pytest.raises(RolloutError, match="there is no rollout dataset at"):
        RolloutDataset(tmp_path / "nowhere")


def test_damage_inside_a_file_is_named_when_it_is_read(tmp_path):
    writer = RolloutWriter(tmp_path / "data", meta(), compress=True)
    writer.write_episode(0, **episode())
    frames = tmp_path / "data" / "episodes" / "000000.pixels.npy.zst"
    frames.write_bytes(frames.read_bytes()[:-20])
    with pytest.raises(RolloutError, match=r"episode 0 of .* cannot be read"):
        RolloutDataset(tmp_path / "data")[0]


# A disk that is full


def test_a_full_disk_is_named_and_leaves_no_half_episode(tmp_path):
    """On a file system of 300 kB, if this process may mount one; an episode takes 200."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], capture_output=True)
    if mount.returncode:
        pytest.skip("only root may mount a small disk")
    try:
        writer = RolloutWriter(disk / "data", meta())
        writer.write_episode(0, **episode(steps=1000))
        with pytest.raises(
            OSError, match=r"disk full while writing .*000001.pixels.npy \(No space left.* 0.2 MB needed"
        ) as error:
            writer.write_episode(1, **episode(steps=1000))
        assert error.value.errno == 28
        assert sorted(os.listdir(disk / "data" / "episodes")) == ["000000.npz", "000000.pixels.npy"]
        assert len(RolloutDataset(disk / "data")) == 1
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_file_size_limit_is_named_and_leaves_nothing(tmp_path):
    """The same without root, by a limit on the size of files."""
    script = (
        "import resource, signal, sys\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from noise_episodes import episode, meta\n"
        "from envs import RolloutWriter\n"
        "writer = RolloutWriter(sys.argv[1], meta())\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "try:\n"
        "    writer.write_episode(0, **episode(steps=1000))\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )
    here = os.path.dirname(__file__)
    result = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "data", here], capture_output=True, text=True, timeout=60
    )
    assert "could not write" in result.stdout, result.stderr
    assert "000000.pixels.npy" in result.stdout
    assert not any((tmp_path / "data" / "episodes").iterdir())
