"""Clips of rollouts. A batch is a pure function of (seed, step, rank), so that a run's place in the data is its
step number and nothing else."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

OPEN_EPISODES = 64
BACKGROUND_FRAMES = 15
FOREGROUND_CONTRAST = 0.1


class Recorded(Protocol):
    """An episode as clips need it.

    Frames uint8 `[T + 1, H, W, C]`, and between them actions float32 `[T, A]` and rewards float32 `[T]`.
    """

    @property
    def pixels(self) -> NDArray[np.uint8]: ...
    @property
    def actions(self) -> NDArray[np.float32]: ...
    @property
    def rewards(self) -> NDArray[np.float32]: ...


Batch = TypeVar("Batch")
Dataset = TypeVar("Dataset", bound=Sequence[Recorded])


@dataclass(frozen=True)
class ClipPlace:
    """Where a clip lies: frames `start`, `start + 1`, … of an episode of a dataset."""

    dataset: int
    episode: int
    start: int


class ClipIndex:
    """Every clip of `clip_length` frames in a set of episodes.

    Args:
        lengths: for each dataset a mapping from episode index to its number of frames.
        clip_length: frames of a clip. Shorter episodes are left out; ValueError if a dataset has none left.
        weights: how often each dataset is drawn, relative to the others; None draws them evenly.
    """

    def __init__(self, lengths: Sequence[dict[int, int]], clip_length: int, weights: Sequence[float] | None = None):
        self.clip_length = clip_length
        self._shares = None
        if weights is not None and len(set(weights)) > 1:
            self._shares = np.array(weights, np.float64) / sum(weights)
        self._episodes: list[NDArray[np.int64]] = []
        self._first_clips: list[NDArray[np.int64]] = []
        for number, frames in enumerate(lengths):
            usable = {index: n for index, n in frames.items() if n >= clip_length}
            if not usable:
                raise ValueError(
                    f"dataset {number} has no episode of {clip_length} frames (the longest has "
                    f"{max(frames.values(), default=0)}): shorten the clips or collect longer episodes"
                )
            num_clips = [n - clip_length + 1 for n in usable.values()]
            self._episodes.append(np.array(list(usable)))
            self._first_clips.append(np.cumsum([0, *num_clips]))

    def __len__(self) -> int:
        return int(sum(first[-1] for first in self._first_clips))

    def draw(self, batch_size: int, seed: int, step: int, rank: int = 0) -> list[ClipPlace]:
        """The clips of one batch: a dataset by its weight, then one of its clips evenly."""
        random = np.random.default_rng([seed, step, rank])
        if self._shares is None:
            datasets = random.integers(len(self._episodes), size=batch_size)
        else:
            datasets = random.choice(len(self._episodes), batch_size, p=self._shares)
        places = []
        for dataset in datasets:
            first_clips = self._first_clips[dataset]
            clip = random.integers(first_clips[-1])
            row = np.searchsorted(first_clips, clip, side="right") - 1
            places.append(ClipPlace(int(dataset), int(self._episodes[dataset][row]), int(clip - first_clips[row])))
        return places


class RolloutClips(Generic[Dataset]):
    """Clips of frames and actions from datasets, on disk or in memory, whose frames have one size.

    Args:
        datasets: what to draw from.
        episodes: for each dataset the indices of the episodes to use.
        clip_length: frames of a clip.
        weights: how often each dataset is drawn, relative to the others; None draws them evenly.

    Attributes:
        datasets, episodes, weights: as given.
        index: which clips there are.
        action_dim: size of the largest action; smaller ones are padded with zeros.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        episodes: Sequence[Sequence[int]],
        clip_length: int,
        weights: Sequence[float] | None = None,
    ):
        actions = [{i: dataset[i].actions for i in chosen} for dataset, chosen in zip(datasets, episodes)]
        self.datasets, self.episodes, self.weights = datasets, episodes, weights
        self.action_dim = max(a.shape[1] for of_dataset in actions for a in of_dataset.values())
        self._actions = [{i: leading_actions(a, self.action_dim) for i, a in each.items()} for each in actions]
        self.index = ClipIndex([{i: len(a) for i, a in each.items()} for each in self._actions], clip_length, weights)
        self._episode = lru_cache(OPEN_EPISODES)(lambda dataset, episode: self.datasets[dataset][episode])
        self._background = lru_cache(None)(lambda dataset, episode: _background(self._episode(dataset, episode)))

    def only(self, chosen: Sequence[int]) -> "RolloutClips[Dataset]":
        """The clips of some of the datasets, numbered anew."""
        weights = None if self.weights is None else [self.weights[number] for number in chosen]
        datasets, episodes = [self.datasets[n] for n in chosen], [self.episodes[n] for n in chosen]
        return RolloutClips(datasets, episodes, self.index.clip_length, weights)

    def of_length(self, clip_length: int) -> "RolloutClips[Dataset]":
        """Clips of another length, of the same episodes."""
        return RolloutClips(self.datasets, self.episodes, clip_length, self.weights)

    def frames(self, places: Sequence[ClipPlace]) -> NDArray[np.uint8]:
        """The frames of clips, `[B, T, C, H, W]`."""
        length = self.index.clip_length
        clips = [self._episode(p.dataset, p.episode).pixels[p.start : p.start + length] for p in places]
        return np.ascontiguousarray(np.stack(clips).transpose(0, 1, 4, 2, 3))

    def actions(self, places: Sequence[ClipPlace]) -> NDArray[np.float32]:
        """The actions `[B, T, A]` that led to each frame; zeros where an episode starts."""
        length = self.index.clip_length
        return np.stack([self._actions[p.dataset][p.episode][p.start : p.start + length] for p in places])

    def rewards(self, places: Sequence[ClipPlace]) -> NDArray[np.float32]:
        """The rewards `[B, T]` that came with each frame; zero where an episode starts."""
        clips = np.zeros((len(places), self.index.clip_length), np.float32)
        for clip, place in zip(clips, places):
            came = self._episode(place.dataset, place.episode).rewards
            first = max(place.start, 1)
            clip[first - place.start :] = came[first - 1 : place.start - 1 + len(clip)]
        return clips

    def foreground(self, places: Sequence[ClipPlace], frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """How much each pixel differs from its episode's median frame: `[B, T, 1, H, W]` in [0, 1].

        A difference of `FOREGROUND_CONTRAST` (of full scale) or more counts 1.
        """
        background = np.stack([self._background(p.dataset, p.episode) for p in places])[:, None]
        difference = np.abs(frames.astype(np.int16) - background).max(axis=2, keepdims=True)
        return np.minimum(difference / np.float32(255 * FOREGROUND_CONTRAST), 1, dtype=np.float32)


def leading_actions(actions: NDArray[np.float32], action_dim: int) -> NDArray[np.float32]:
    """From actions `[T, A]` of an episode to `[T + 1, action_dim]`: for each frame the one that led to it.

    The first frame gets zeros, and so do the dimensions that the task does not have.
    """
    led = np.zeros((len(actions) + 1, action_dim), np.float32)
    led[1:, : actions.shape[1]] = actions
    return led


def _background(episode: Recorded) -> NDArray[np.int16]:
    """Median over frames spread through an episode, `[C, H, W]`."""
    chosen = np.linspace(0, len(episode.pixels) - 1, BACKGROUND_FRAMES).round().astype(int)
    return np.median(episode.pixels[chosen], axis=0).astype(np.int16).transpose(2, 0, 1)


def prefetch(make_batch: Callable[[int], Batch], steps: range) -> Iterator[Batch]:
    """Batches of `steps` in order, each made in a thread while the one before it is in use."""
    with ThreadPoolExecutor(max_workers=1) as executor:
        pending = None
        for step in steps:
            current = pending or executor.submit(make_batch, step)
            pending = executor.submit(make_batch, step + 1) if step + 1 in steps else None
            yield current.result()
