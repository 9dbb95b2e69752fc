"""The rollout store: a directory a dataset, two files an episode, readable by memory map.

    meta.json                    format version, environment, frame contract, versions
    episodes/000000.pixels.npy   uint8 [T+1, H, W, 3] (or .pixels.npy.zst, compressed without loss)
    episodes/000000.npz          actions, rewards, ends, seed, policy tag, states, hash of the frames

An episode's `.npz` is written last: where it is, the episode is whole. Files never change once written. Any number of
writers, in any number of processes, may add to one dataset.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib.metadata import version
from numbers import Integral
from pathlib import Path
from typing import Any, overload

import gymnasium
import numpy as np
from gymnasium import spaces

from perceiver_obs.actions import ActionEncoding, dataset_actions
from perceiver_obs.data.content_hash import PIXELS_DIGEST, FoundDigests, episode_digest
from perceiver_obs.data.describe import describe_data, describe_env, recorded_actions, shows_states
from perceiver_obs.data.episode import Episode, Layout, RolloutError, check_episode
from perceiver_obs.data.episode_files import (
    DAMAGED_ZIP_ERRORS,
    episode_numbers,
    file_stamps,
    inspect_episode,
    read_arrays,
    read_episode,
    write_episode,
)
from perceiver_obs.files import write_atomic
from perceiver_obs.frame_contract import FrameContract

FORMAT = "perceiver-obs-rollouts"
FORMAT_VERSION = 1
_REQUIRED = {"env": dict, "frame_contract": dict, "action_size": int, "state_names": list | None}


class RolloutDataset(Sequence[Episode]):
    """The whole episodes of a finished or growing dataset, in the order of their numbers.

    Every episode's files are checked as the dataset is opened, by headers and sizes, so that a broken one is found
    before any work is done. Episodes written later are seen by opening it again; one that was deleted and written anew
    since is refused (RolloutError) rather than mixed with what was read of it before.

    Args:
        path: the dataset's directory.

    Attributes:
        meta: the contents of `meta.json`.
        indices: the number of each episode.
        lengths: frames of each episode.
        num_frames: frames of all episodes together.

    Raises:
        RolloutError: there is no dataset at `path`, it holds no whole episode or is of another format version, or
            an episode's files are cut short, disagree with each other or lie outside the directory.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.meta = read_meta(self.path)
        self.indices = whole_episodes(self.path)
        if not self.indices:
            raise RolloutError(f"{self.path} holds no whole episode")
        self._layout = _layout(self.meta)
        self._folder = self.path / "episodes"
        self._stamps = {index: file_stamps(self._folder, index) for index in self.indices}
        self.lengths = [self._inspect(index) for index in self.indices]
        self.num_frames = sum(self.lengths)
        # All but the frames stays in memory once read: training asks for the actions again and again.
        self._arrays: dict[int, dict[str, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, i: int) -> Episode: ...
    @overload
    def __getitem__(self, i: slice) -> list[Episode]: ...
    def __getitem__(self, i: int | slice) -> Episode | list[Episode]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        index = self.indices[i]
        with self._reading(index):
            episode = read_episode(self._folder, index, self._layout, self._read_arrays(index))
        return episode

    def __iter__(self) -> Iterator[Episode]:
        return (self[i] for i in range(len(self)))

    @property
    def frame_contract(self) -> FrameContract:
        """How the frames were made."""
        return FrameContract.of(self.meta["frame_contract"])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the metadata and the content of every episode, in hexadecimal.

        Copies have that of the original, also where their frames are compressed.
        """
        found = FoundDigests(self.path)
        digest = hashlib.sha256(json.dumps(self.meta, sort_keys=True).encode())
        for position, index in enumerate(self.indices):
            with self._reading(index):
                arrays = self._read_arrays(index)
            of_arrays, of_pixels = self._stamps[index]
            assert of_arrays is not None  # they were inspected
            assert of_pixels is not None
            # The `.npz` is written last. Frames that are not older may be others, or come from a copy without times.
            if PIXELS_DIGEST in arrays and of_pixels[2] < of_arrays[2]:
                pixels = str(arrays[PIXELS_DIGEST])
            else:
                pixels = found.digest(of_pixels, lambda position=position: self[position].pixels)  # type: ignore[misc]
            digest.update(f"\n{index} {episode_digest(arrays, pixels)}".encode())
        found.keep()
        return digest.hexdigest()

    def _inspect(self, index: int) -> int:
        try:
            return inspect_episode(self._folder, index, self._layout)
        except (OSError, ValueError) as error:
            raise RolloutError(f"episode {index} of {self.path} is broken: {error}") from error

    def _read_arrays(self, index: int) -> dict[str, np.ndarray]:
        if index not in self._arrays:
            self._arrays[index] = read_arrays(self._folder, index)
        return self._arrays[index]

    @contextmanager
    def _reading(self, index: int) -> Iterator[None]:
        """Refuses what was read of an episode whose files are not those that were there when this was opened."""
        failure: Exception | None = None
        try:
            yield
        except (OSError, ValueError, *DAMAGED_ZIP_ERRORS) as error:
            failure = error
        if file_stamps(self._folder, index) != self._stamps[index]:
            self._arrays.pop(index, None)
            raise RolloutError(
                f"episode {index} of {self.path} was deleted or written anew while the dataset was open: open it again"
            ) from failure
        if failure is not None:
            raise RolloutError(f"episode {index} of {self.path} cannot be read: {failure}") from failure


def deduplicate(datasets: Iterable[RolloutDataset]) -> list[RolloutDataset]:
    """A dataset for each directory among them: one that was named twice, however it was spelled, comes once."""
    return list({dataset.path.resolve(): dataset for dataset in datasets}.values())


class RolloutWriter:
    """Adds episodes to a dataset, which it makes where there is none. Any number of writers may share one.

    What the data are of is said in one of three ways: by the environment, `RolloutWriter(path, env=env)`; by `task`,
    `size`, `action_space` and `state_names`; or by all of the metadata.

    Args:
        path: the dataset's directory.
        env: gives frames uint8 `[size, size, 3]`; its `frame_contract` is taken, and its `state_names` where it puts
            the state into `info`. `envs.make_env` and `envs.FrameObservation` make such environments.
        task: name of the environment, robot or scene.
        size: height and width of the frames, pixels.
        action_space: how actions are encoded follows from it (`ActionEncoding.from_space`).
        state_names: of the entries of the state, "position/…" or "velocity/…"; None records none.
        meta: `env` (`id` and `kwargs`), `frame_contract`, `action_size`, `state_names` (None where no states are
            recorded), `actions` (`ActionEncoding.meta`; normalised to [-1, 1] where it is left out) and whatever else
            describes the data; format and versions are added. To write on to a dataset, all but the versions must be
            the same.
        compress: store frames compressed by zstd: without loss, but read whole and not by memory map.

    Raises:
        RolloutError: `meta` lacks an entry, `env` cannot be recorded, or `path` holds a dataset with other metadata.
        TypeError: the data are described in none of these ways, or in several.

    Example:
        >>> from gymnasium import spaces
        >>> from envs import RolloutWriter
        >>> writer = RolloutWriter("runs/mine", task="my-robot", size=64, action_space=spaces.Box(-1, 1, (2,)))
    """

    def __init__(
        self,
        path: str | Path,
        meta: Mapping[str, Any] | None = None,
        *,
        env: gymnasium.Env | None = None,
        task: str | None = None,
        size: int = 64,
        action_space: spaces.Space | None = None,
        state_names: Sequence[str] | None = None,
        compress: bool = False,
    ):
        if sum(each is not None for each in (meta, env, task)) != 1 or (task is None) != (action_space is None):
            raise TypeError("RolloutWriter needs one of: env; task, size and action_space; or meta")
        if env is not None:
            meta = describe_env(env, recorded_actions(env, type(self).__name__), shows_states(env))
        elif task is not None:
            assert action_space is not None
            meta = describe_data(task, size, ActionEncoding.from_space(action_space), state_names)
        assert meta is not None
        self.path = Path(path)
        self.compress = compress
        # Through JSON and back, to compare equal with what is read from a file (tuples become lists).
        self.meta = json.loads(json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **meta}))
        self.meta.setdefault("versions", _versions())
        _check_meta(self.meta, "the metadata of a dataset")
        self.meta.setdefault("actions", dataset_actions(self.meta).meta)
        self._layout = _layout(self.meta)
        meta_file = self.path / "meta.json"
        if not meta_file.exists():
            if whole_episodes(self.path):
                raise RolloutError(f"{self.path} holds episodes but no meta.json: choose another directory")
            with suppress(FileExistsError):  # of another writer, at this moment
                write_atomic(meta_file, (json.dumps(self.meta, indent=2) + "\n").encode(), replace=False)
        _check_same(self.path, read_meta(self.path), self.meta)
        (self.path / "episodes").mkdir(exist_ok=True)

    def write_episode(
        self,
        index: int | None,
        pixels: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        terminated: bool,
        truncated: bool,
        seed: int,
        policy: str,
        states: np.ndarray | None = None,
    ) -> int:
        """Write an episode; the arguments beside its number are the fields of `Episode`.

        Args:
            index: the episode's number; None for the next that nobody else has, or will have.

        Returns:
            The number.

        Raises:
            EpisodeExists: there is an episode `index` already; nothing is overwritten.
            RolloutError: shapes or dtypes disagree with each other or with the metadata, a number is not finite, or
                `index` is no number of an episode.
            OSError: the disk is full or failing; the episode does not become part of the dataset.
        """
        if index is not None and (not isinstance(index, Integral) or isinstance(index, bool) or index < 0):
            raise RolloutError(f"an episode's number must be an integer of 0 or more, or None, got {index!r:.80}")
        episode = Episode(pixels, actions, rewards, terminated, truncated, seed, policy, states)
        check_episode(episode, self._layout)
        return write_episode(self.path / "episodes", index, episode, self.compress)


def whole_episodes(path: Path) -> list[int]:
    """Numbers of the episodes that are whole, in order; none where there is no dataset."""
    return episode_numbers(path / "episodes")


def read_meta(path: Path) -> dict[str, Any]:
    """The contents of a dataset's `meta.json`, checked; raises RolloutError."""
    meta_file = path / "meta.json"
    try:
        meta = json.loads(meta_file.read_text())
    except FileNotFoundError:
        raise RolloutError(f"there is no rollout dataset at {path} (no meta.json)") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RolloutError(f"{meta_file} is not JSON: {error}") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise RolloutError(f"{meta_file} does not describe a rollout dataset (no format {FORMAT!r})")
    if meta.get("format_version") != FORMAT_VERSION:
        raise RolloutError(
            f"{path} has format version {meta.get('format_version')!r}, this version reads {FORMAT_VERSION}"
        )
    _check_meta(meta, str(meta_file))
    return meta


def _check_meta(meta: Mapping[str, Any], where: str) -> None:
    for key, kind in _REQUIRED.items():
        if key not in meta or not isinstance(meta[key], kind):
            raise RolloutError(f"{where} needs {key!r} (all of {', '.join(_REQUIRED)}), got {meta.get(key)!r}")
    try:
        encoded = dataset_actions(meta).size
    except ValueError as error:
        raise RolloutError(f"{where}, 'actions': {error}") from None
    if encoded != meta["action_size"]:
        raise RolloutError(f"{where} has actions of {encoded} floats, and action_size={meta['action_size']!r}")
    size = meta["frame_contract"].get("size")
    if not isinstance(size, int) or size < 1:
        raise RolloutError(f"{where} needs a frame_contract with a 'size' in pixels, got {size!r}")
    try:
        FrameContract.of(meta["frame_contract"])
    except ValueError as error:
        raise RolloutError(f"{where} holds a malformed frame_contract: {error}") from None


def _check_same(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    found = {"actions": ActionEncoding.unit(found["action_size"]).meta, **found}  # older ones do not say
    keys = sorted((set(found) | set(wanted)) - {"versions"})
    differences = []
    for key in (key for key in keys if found.get(key) != wanted.get(key)):
        words: list[str] = []
        if key == "frame_contract":
            there, here = (FrameContract.of(meta[key]) for meta in (found, wanted))
            words = there.differences(here, "the dataset has")
        text = f": {', '.join(words)}" if words else f" is {found.get(key)!r} there and {wanted.get(key)!r} here"
        differences.append(key + text)
    if differences:
        raise RolloutError(f"{path} holds a dataset with other settings: {'; '.join(differences)}")


def _layout(meta: Mapping[str, Any]) -> Layout:
    names = meta["state_names"]
    return Layout(meta["frame_contract"]["size"], meta["action_size"], None if names is None else len(names))


def _versions() -> dict[str, str]:
    return {package: version(package) for package in ("dm-control", "gymnasium", "mujoco", "numpy", "shimmy")}
