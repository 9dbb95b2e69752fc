"""`OnlineEpisodes`: the frames and actions that a policy's contexts were made from, episode by episode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agents.wrappers.vec_context import FramesSeen
from perceiver_obs.data.episode import Episode
from perceiver_obs.data.episode_files import DAMAGED_ZIP_ERRORS
from perceiver_obs.files import write_atomic

EPISODES_FILE = "online_episodes.npz"
PARTS, STATES = ("pixels", "actions", "rewards"), "states"


@dataclass(frozen=True, eq=False)
class OnlineEpisode:
    """An episode, or as much of it as has happened.

    Attributes:
        pixels: uint8 `[T + 1, H, W, C]`.
        actions: float32 `[T, A]`.
        rewards: float32 `[T]`.
        states: true states float32 `[T + 1, S]`, None where they are not known of every frame.
    """

    pixels: NDArray[np.uint8]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32]
    states: NDArray[np.float32] | None = None

    @property
    def steps(self) -> int:
        """T, the transitions."""
        return len(self.actions)


class OnlineEpisodes:
    """Every frame of the rows of a `VecPerceiverContext`, in memory: H·W·C bytes a frame, 12 kB at 64×64.

    Args:
        num_rows: rows of the environment.
        action_size: A, numbers of an action; 0 where contexts are made without them.
    """

    def __init__(self, num_rows: int, action_size: int) -> None:
        self._action_size = action_size
        self._whole: list[list[OnlineEpisode]] = [[] for _ in range(num_rows)]
        self._frames: list[list[np.ndarray]] = [[] for _ in range(num_rows)]
        self._actions: list[list[np.ndarray]] = [[] for _ in range(num_rows)]
        self._rewards: list[list[float]] = [[] for _ in range(num_rows)]
        self._states: list[list[np.ndarray]] = [[] for _ in range(num_rows)]

    def add(self, seen: FramesSeen) -> None:
        """Keeps what a step has shown; `seen` must be of the step after the last one, or of the first."""
        for row, frame in enumerate(seen.frames):
            if self._frames[row]:
                self._actions[row].append(self._action(seen, row))
                assert seen.rewards is not None  # of a step
                self._rewards[row].append(float(seen.rewards[row]))
                if row in seen.final_frames:
                    self._add_frame(row, seen.final_frames[row], seen.final_states.get(row))
                    self._end(row)
            self._add_frame(row, frame, seen.states.get(row))

    def begin(self, seen: FramesSeen) -> None:
        """Keeps the first frames after a reset; episodes that it broke off end where they were."""
        for row, frame in enumerate(seen.frames):
            self._end(row)
            self._add_frame(row, frame, seen.states.get(row))

    def begin_with(self, rows: Sequence[Sequence[Episode]], states: bool) -> None:
        """Keeps whole episodes that came before the first reset, in order, for each row, with or without states."""
        for whole, episodes in zip(self._whole, rows, strict=True):
            for each in episodes:
                actions = each.actions[:, : self._action_size]
                known = each.states if states else None
                whole.append(OnlineEpisode(np.array(each.pixels), actions, each.rewards, known))

    def rows(self) -> list[list[OnlineEpisode]]:
        """For each row its episodes in order, the running one last."""
        return [[*whole, *([self._running(row)] if self._frames[row] else [])] for row, whole in enumerate(self._whole)]

    def save(self, path: Path) -> None:
        """Writes all episodes into an `.npz`; raises OSError on a full disk."""
        arrays: dict[str, np.ndarray] = {}
        for row, episodes in enumerate(self.rows()):
            for number, episode in enumerate(episodes):
                kept = {part: getattr(episode, part) for part in (*PARTS, STATES)}
                arrays |= {f"{row}/{number:06d}/{part}": each for part, each in kept.items() if each is not None}
        write_atomic(path, lambda file: np.savez(file, allow_pickle=False, **arrays))

    def load(self, path: Path) -> None:
        """Reads what `save` wrote, into an object that has kept nothing. Running episodes count as broken off.

        Raises FileNotFoundError if there is no such file, ValueError if it is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                for name in sorted(name.removesuffix("/pixels") for name in archive.files if name.endswith("/pixels")):
                    row = int(name.split("/")[0])
                    states = archive[f"{name}/{STATES}"] if f"{name}/{STATES}" in archive.files else None
                    pixels, actions, rewards = (archive[f"{name}/{part}"] for part in PARTS)
                    self._whole[row].append(OnlineEpisode(pixels, actions, rewards, states))
        except (ValueError, KeyError, IndexError, *DAMAGED_ZIP_ERRORS) as error:
            raise ValueError(f"{path} does not hold online episodes: {error}") from error

    def _action(self, seen: FramesSeen, row: int) -> np.ndarray:
        return np.zeros(0, np.float32) if seen.actions is None else seen.actions[row].copy()

    def _running(self, row: int) -> OnlineEpisode:
        actions = np.array(self._actions[row], np.float32).reshape(len(self._actions[row]), self._action_size)
        states = np.stack(self._states[row]) if len(self._states[row]) == len(self._frames[row]) else None
        return OnlineEpisode(np.stack(self._frames[row]), actions, np.array(self._rewards[row], np.float32), states)

    def _end(self, row: int) -> None:
        if self._frames[row]:
            self._whole[row].append(self._running(row))
        self._frames[row], self._actions[row], self._rewards[row], self._states[row] = [], [], [], []

    def _add_frame(self, row: int, frame: np.ndarray, state: np.ndarray | None) -> None:
        self._frames[row].append(frame.copy())
        if state is not None:
            self._states[row].append(state)
