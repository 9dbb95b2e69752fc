"""What a probe is fitted and tested on: episodes of each task, explored and played by a policy."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from perceiver_obs.data.rollouts import Episode, RolloutDataset, deduplicate
from perceiver_obs.data.splits import held_out_first, split_episodes
from perceiver_obs.data.state_coordinates import Coordinate, StateCoordinates
from perceiver_obs.evaluation.targets import REWARDS, Targets, state_targets

EXPLORATION, ON_POLICY = "exploration", "on-policy"
VALIDATION_FRACTION = 0.2
TEST_EPISODES = 0.25  # at most, of `max_episodes`


class EpisodeList(Sequence[Episode]):
    """Episodes of several datasets, opened when asked for: each open one holds a file.

    Args:
        places: datasets and positions in them.
    """

    def __init__(self, places: Iterable[tuple[RolloutDataset, int]]):
        self.places = list(places)

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, i: int) -> Episode: ...
    @overload
    def __getitem__(self, i: slice) -> "EpisodeList": ...
    def __getitem__(self, i: "int | slice") -> "Episode | EpisodeList":
        if isinstance(i, slice):
            return EpisodeList(self.places[i])
        dataset, position = self.places[i]
        return dataset[position]

    def __iter__(self) -> Iterator[Episode]:
        return (dataset[position] for dataset, position in self.places)

    @property
    def lengths(self) -> list[int]:
        """Frames of each episode."""
        return [dataset.lengths[position] for dataset, position in self.places]

    @property
    def fingerprint(self) -> str:
        """Hash over the datasets and the episodes' numbers."""
        digest = hashlib.sha256()
        for dataset in dict.fromkeys(dataset for dataset, _ in self.places):
            numbers = [dataset.indices[position] for other, position in self.places if other is dataset]
            digest.update(f"{dataset.fingerprint} {numbers}".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class ProbeSet:
    """Episodes of one kind. None is in two of `training`, `validation` and `test`.

    Attributes:
        name: "exploration" or "on-policy".
        datasets: what they are of.
        training: to fit regressions on.
        validation: to choose their penalties on.
        test: to report.
        supervision: `training`, and what `max_episodes` left out of it.
    """

    name: str
    datasets: tuple[RolloutDataset, ...]
    training: EpisodeList
    validation: EpisodeList
    test: EpisodeList
    supervision: EpisodeList


@dataclass(frozen=True)
class ProbeTask:
    """What a probe reads of one task; `state` is None where none was recorded."""

    name: str
    state: Targets | None
    sets: tuple[ProbeSet, ...]

    @property
    def targets(self) -> tuple[Targets, ...]:
        """What is regressed, each by regressions of its own: the state where there is one, and the rewards."""
        return (REWARDS,) if self.state is None else (self.state, REWARDS)

    @property
    def coordinates(self) -> list[Coordinate]:
        """Of all targets, in their order."""
        return [coordinate for each in self.targets for coordinate in each.coordinates]


def probe_tasks(
    data: Sequence[str], on_policy: Sequence[str], held_out_fraction: float, fitted_fraction: float, max_episodes: int
) -> list[ProbeTask]:
    """The tasks of the datasets, each with one or two sets of episodes.

    Args:
        data: rollouts of exploration; `held_out_fraction` of each is tested on.
        on_policy: rollouts of policies; `fitted_fraction` of each is fitted on, the rest tested on.
        max_episodes: at most so many fitted episodes of each task and set, and a quarter as many tested ones.

    Raises:
        ValueError: a dataset has too few episodes; the datasets of a task hold states of different kinds; a task has
            on-policy episodes and no exploration; a dataset is named in both.
    """
    explored, played = ([_long_enough(dataset) for dataset in _open(paths)] for paths in (data, on_policy))
    if both := {d.path.resolve() for d in explored} & {d.path.resolve() for d in played}:
        raise ValueError(f"{both.pop()} is named as exploration and as on-policy: its episodes can be only one")
    tasks = dict.fromkeys(_task(dataset) for dataset in explored)
    if unknown := {_task(dataset) for dataset in played} - tasks.keys():
        raise ValueError(f"there are on-policy episodes of {', '.join(sorted(unknown))}, but no exploration of it")
    found = []
    for task in tasks:
        groups = {EXPLORATION: explored, ON_POLICY: played}
        of_task = {name: [d for d in group if _task(d) == task] for name, group in groups.items()}
        state = _state(task, [dataset for group in of_task.values() for dataset in group])
        splits = {
            EXPLORATION: [split_episodes(dataset, held_out_fraction) for dataset in of_task[EXPLORATION]],
            ON_POLICY: [_split_on_policy(dataset, fitted_fraction) for dataset in of_task[ON_POLICY]],
        }
        sets = [_probe_set(name, of_task[name], splits[name], max_episodes) for name in groups if of_task[name]]
        found.append(ProbeTask(task, state, tuple(sets)))
    return found


def _open(paths: Sequence[str]) -> list[RolloutDataset]:
    return deduplicate(RolloutDataset(Path(path)) for path in paths)


def _long_enough(dataset: RolloutDataset) -> RolloutDataset:
    if len(dataset) < 3:
        raise ValueError(f"{dataset.path} holds {len(dataset)} episodes; probing takes at least 3")
    return dataset


def _task(dataset: RolloutDataset) -> str:
    return "+".join(dataset.frame_contract.tasks or ["unknown task"])


def _state(task: str, datasets: Sequence[RolloutDataset]) -> Targets | None:
    first = datasets[0]
    for dataset in datasets:
        if dataset.meta["state_names"] != first.meta["state_names"]:
            raise ValueError(f"{first.path} and {dataset.path} hold states of different kinds")
    names = first.meta["state_names"]
    return state_targets(StateCoordinates(names, task)) if names else None


def _split_on_policy(dataset: RolloutDataset, fitted_fraction: float) -> tuple[list[int], list[int]]:
    """Fitted and tested positions; what a training holds out is tested first of all."""
    num_fitted = min(max(2, round(fitted_fraction * len(dataset))), len(dataset) - 1)
    order = held_out_first(dataset)
    num_tested = len(dataset) - num_fitted
    return sorted(order[num_tested:]), sorted(order[:num_tested])


def _probe_set(
    name: str, datasets: Sequence[RolloutDataset], splits: Sequence[tuple[list[int], list[int]]], max_episodes: int
) -> ProbeSet:
    fitted, test = (
        _in_turn([[(dataset, position) for position in split[side]] for dataset, split in zip(datasets, splits)])
        for side in (0, 1)
    )
    chosen = fitted[:max_episodes]
    num_validation = max(1, round(VALIDATION_FRACTION * len(chosen)))
    return ProbeSet(
        name,
        tuple(datasets),
        training=EpisodeList(chosen[num_validation:]),
        validation=EpisodeList(chosen[:num_validation]),
        test=EpisodeList(test[: max(1, int(TEST_EPISODES * max_episodes))]),
        supervision=EpisodeList(fitted[num_validation:]),
    )


def _in_turn(parts: Sequence[Sequence[tuple[RolloutDataset, int]]]) -> list[tuple[RolloutDataset, int]]:
    """One of each part, then the next of each, so that whoever takes the first few takes some of all."""
    longest = max(map(len, parts))
    return [part[place] for place in range(longest) for part in parts if place < len(part)]
