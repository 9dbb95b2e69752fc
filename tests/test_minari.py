"""Rollouts to Minari and back."""

import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

import envs.minari
from envs import (
    CollectSettings,
    RolloutDataset,
    RolloutError,
    RolloutWriter,
    collect,
    export_minari,
    import_minari,
    make_dmc,
)
from perceiver_obs import ActionEncoding

pytestmark = pytest.mark.filterwarnings("ignore:.*is set to None", "ignore:env_spec is None")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    out = tmp_path_factory.mktemp("minari") / "data"
    settings = CollectSettings(
        task="reacher-easy", out=str(out), episodes=3, max_steps=6, size=48, render_quality="fast", workers=1
    )
    return collect(settings, progress=False)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def test_minari_reads_what_is_exported(dataset, root):
    assert export_minari(dataset.path, "dmc/reacher-v0", author="nobody") == root / "dmc" / "reacher-v0"
    exported = minari.load_dataset("dmc/reacher-v0")
    assert (exported.total_episodes, exported.total_steps) == (3, 18)
    for ours, theirs in zip(dataset, exported):
        assert np.array_equal(theirs.observations, ours.pixels)
        assert np.array_equal(theirs.actions, ours.actions)
        assert np.array_equal(theirs.rewards, ours.rewards)
        assert np.array_equal(theirs.infos["state"], ours.states)
        assert theirs.truncations.tolist() == [False] * 5 + [True]
        assert not theirs.terminations.any()
    env = exported.recover_environment()
    assert env.observation_space == exported.observation_space
    assert np.array_equal(env.reset(seed=dataset[0].seed)[0], dataset[0].pixels[0])


def test_a_round_trip_changes_nothing(dataset, tmp_path):
    export_minari(dataset, "reacher-v3", root=tmp_path / "elsewhere")
    back = import_minari("reacher-v3", tmp_path / "back", root=tmp_path / "elsewhere")
    assert back.meta == dataset.meta
    assert back.fingerprint == dataset.fingerprint
    for ours, theirs in zip(dataset, back):
        for name in vars(ours):
            assert np.array_equal(getattr(theirs, name), getattr(ours, name)), name


def test_datasets_of_others_can_be_imported(root, tmp_path):
    env = make_dmc("pendulum-swingup", size=40, render_quality="fast")
    frames = np.stack([env.reset(seed=0)[0]] + [env.step(np.ones(1, np.float32))[0] for _ in range(3)])
    ends = np.array([False, False, True])
    buffer = EpisodeBuffer(
        observations=frames,
        actions=np.ones((3, 1), np.float32),
        rewards=np.arange(3.0),
        terminations=ends,
        truncations=~ends & False,
    )
    minari.create_dataset_from_buffers("theirs-v0", [buffer, buffer], env=env, jpeg_encoding=False)
    data = import_minari("theirs-v0", tmp_path / "data")
    assert len(data) == 2
    assert np.array_equal(data[1].pixels, frames)
    assert data[1].rewards.tolist() == [0, 1, 2]
    assert (data[1].terminated, data[1].truncated, data[1].states) == (True, False, None)
    assert data[1].policy == "minari:theirs-v0"
    assert data.meta["env"]["id"] == "dmc/pendulum-swingup-v0"


def half_broken(dataset_id):
    """A Minari dataset whose second episode cannot be stored; returns how to mend it."""
    env = make_dmc("pendulum-swingup", size=40, render_quality="fast")
    frames = np.stack([env.reset(seed=0)[0]] + [env.step(np.ones(1, np.float32))[0] for _ in range(3)])
    ends = np.array([False, False, True])

    def write(rewards):
        buffers = [
            EpisodeBuffer(
                observations=frames,
                actions=np.ones((3, 1), np.float32),
                rewards=np.array(each),
                terminations=ends,
                truncations=~ends & False,
            )
            for each in rewards
        ]
        minari.create_dataset_from_buffers(dataset_id, buffers, env=env, jpeg_encoding=False)

    write([[0.0, 1.0, 2.0], [0.0, np.nan, 2.0]])

    def mend():
        minari.delete_dataset(dataset_id)
        write([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])

    return mend


def test_a_failed_import_leaves_nothing_and_can_be_tried_again(root, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # Minari asks before it deletes
    mend = half_broken("theirs-v0")
    (tmp_path / "here").mkdir()
    with pytest.raises(RolloutError, match="rewards holds NaN"):
        import_minari("theirs-v0", tmp_path / "here" / "data")
    assert not list((tmp_path / "here").iterdir())
    mend()
    assert len(import_minari("theirs-v0", tmp_path / "here" / "data")) == 2
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["data"]


def test_of_two_imports_at_once_one_wins_and_the_other_is_told(dataset, root, tmp_path, monkeypatch):
    export_minari(dataset, "reacher-v0")
    write_episode, others = RolloutWriter.write_episode, []

    def write_while_another_imports(writer, *arguments, **fields):
        if not others:
            others.append(None)
            others[0] = import_minari("reacher-v0", tmp_path / "data")
        return write_episode(writer, *arguments, **fields)

    monkeypatch.setattr(RolloutWriter, "write_episode", write_while_another_imports)
    with pytest.raises(RolloutError, match=r"data exists already"):
        import_minari("reacher-v0", tmp_path / "data")
    assert RolloutDataset(tmp_path / "data").fingerprint == others[0].fingerprint == dataset.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "minari"]


def test_a_failed_export_leaves_nothing_and_spares_that_of_another(dataset, root, monkeypatch):
    """The second export fails at its second episode, in the middle of which another writes the same dataset."""
    to_buffer, calls = envs.minari._to_buffer, []

    def fail_at_the_second(*episode):
        calls.append(episode)
        if len(calls) == 2:
            export_minari(dataset, "dmc/reacher-v0", root)
            raise MemoryError
        return to_buffer(*episode)

    monkeypatch.setattr("envs.minari._to_buffer", fail_at_the_second)
    with pytest.raises(MemoryError):
        export_minari(dataset, "dmc/reacher-v0")
    assert [path.name for path in root.iterdir()] == ["dmc"]
    exported = minari.load_dataset("dmc/reacher-v0")
    assert exported.total_episodes == 3
    assert minari.list_local_datasets().keys() == {"dmc/reacher-v0"}
    calls.clear()
    monkeypatch.setattr("envs.minari._new_dataset_path", lambda dataset_id: root / dataset_id)  # seen too early
    monkeypatch.setattr("envs.minari._to_buffer", to_buffer)
    with pytest.raises(ValueError, match="reacher-v0 already"):
        export_minari(dataset, "dmc/reacher-v0")
    assert minari.load_dataset("dmc/reacher-v0").total_episodes == 3


def theirs(action_space, actions):
    """A Minari dataset of one episode of somebody else's, of frames of noise."""
    frames = np.random.default_rng(0).integers(0, 256, (len(actions) + 1, 16, 16, 3), dtype=np.uint8)
    ends = np.arange(len(actions)) == len(actions) - 1
    buffer = EpisodeBuffer(
        observations=frames,
        actions=actions,
        rewards=np.zeros(len(actions)),
        terminations=ends,
        truncations=ends & False,
    )
    observation_space = spaces.Box(0, 255, frames.shape[1:], np.uint8)
    minari.create_dataset_from_buffers(
        "theirs-v0",
        [buffer],
        observation_space=observation_space,
        action_space=action_space,
        jpeg_encoding=False,
    )


@pytest.mark.parametrize(
    ("space", "actions", "rows"),
    [
        (spaces.Box(-50, 50, (2,)), np.float32([[37, -50], [0, 60]]), np.float32([[0.74, -1], [0, 1]])),
        (spaces.Box(np.float32([0]), np.float32([3])), np.float32([[1], [0.1]]), np.float32([[-1 / 3], [-2.8 / 3]])),
        (spaces.Box(-1, 1, (1,)), np.float32([[0.1], [1.7]]), np.float32([[0.1], [1]])),
        (spaces.Discrete(3, start=1), np.array([1, 3]), [[1, 0, 0], [0, 0, 1]]),
        (spaces.MultiDiscrete([2, 3]), np.array([[1, 0], [0, 2]]), [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]),
        (spaces.MultiBinary(2), np.array([[1, 0], [0, 1]], np.int8), [[1, 0], [0, 1]]),
    ],
    ids=str,
)
def test_actions_of_any_unit_are_imported_encoded_and_exported_as_they_were(root, tmp_path, space, actions, rows):
    theirs(space, actions)
    data = import_minari("theirs-v0", tmp_path / "data")
    np.testing.assert_allclose(data[0].actions, rows, atol=1e-6)
    assert data.meta["actions"] == ActionEncoding.from_space(space).meta
    export_minari(data, "ours-v0")
    exported = minari.load_dataset("ours-v0")
    assert type(exported.action_space) is type(space)
    taken = np.clip(actions, space.low, space.high) if isinstance(space, spaces.Box) else actions
    np.testing.assert_allclose(exported[0].actions, taken, rtol=1e-6)
    assert exported[0].actions[0] in exported.action_space
    back = import_minari("ours-v0", tmp_path / "back")
    assert back.meta == data.meta
    np.testing.assert_array_equal(back[0].actions, data[0].actions)


def test_an_export_that_does_not_say_how_actions_are_encoded_has_them_normalised(root, tmp_path):
    theirs(spaces.Box(-1, 1, (1,)), np.float32([[0.5], [1.7]]))
    source = minari.load_dataset("theirs-v0")
    meta = import_minari("theirs-v0", tmp_path / "first").meta
    source.storage.update_metadata({"rollouts": {name: meta[name] for name in meta if name != "actions"}})
    data = import_minari("theirs-v0", tmp_path / "data")
    np.testing.assert_array_equal(data[0].actions, np.float32([[0.5], [1]]))


def test_actions_that_cannot_be_encoded_are_named(root, tmp_path):
    theirs(spaces.Box(-1, 1, (1,)), np.float32([[0.5], [np.nan]]))
    with pytest.raises(RolloutError, match="episode 0: actions must be finite"):
        import_minari("theirs-v0", tmp_path / "nan")


def test_what_cannot_be_converted_is_named(dataset, root, tmp_path):
    export_minari(dataset, "reacher-v0")
    with pytest.raises(ValueError, match="reacher-v0 already"):
        export_minari(dataset, "reacher-v0")
    with pytest.raises(ValueError, match="got 'reacher'"):
        export_minari(dataset, "reacher")
    with pytest.raises(RolloutError, match="exists already"):
        import_minari("reacher-v0", tmp_path)
    with pytest.raises(FileNotFoundError, match="missing-v0"):
        import_minari("missing-v0", tmp_path / "data")
    with pytest.raises(RolloutError, match="no rollout dataset"):
        export_minari(RolloutDataset(tmp_path).path, "other-v0")
    vectors = EpisodeBuffer(
        observations=np.zeros((2, 4), np.float32),
        actions=np.zeros((1, 1), np.float32),
        rewards=[0.0],
        terminations=[False],
        truncations=[True],
    )
    minari.create_dataset_from_buffers(
        "vectors-v0",
        [vectors],
        observation_space=spaces.Box(-1, 1, (4,), np.float32),
        action_space=spaces.Box(-1, 1, (1,), np.float32),
    )
    with pytest.raises(RolloutError, match="square RGB frames"):
        import_minari("vectors-v0", tmp_path / "data")
    assert not (tmp_path / "data").exists()
