"""Opening rollout datasets for training: do they fit together, and which episodes are held out?"""

import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from perceiver_obs.data.rollouts import RolloutDataset
from perceiver_obs.frame_contract import FrameContract


def open_datasets(named: Sequence[str | Path]) -> tuple[list[RolloutDataset], list[float]]:
    """Opens datasets to be mixed, and says how often each is drawn, relative to the others.

    Args:
        named: a directory each, or `directory=weight`. Weights are 1 unless given, and add up where a directory is
            named again.

    Raises ValueError for a weight that is not positive, for a path without a dataset, for one without two whole
    episodes, or if the frames differ in size or channels.
    """
    weights: dict[str, float] = {}
    for path, weight in map(_path_and_weight, named):
        weights[path] = weights.get(path, 0) + weight
    paths = list(weights)
    datasets = [RolloutDataset(path) for path in paths]
    for path, dataset in zip(paths, datasets):
        if len(dataset) < 2:
            raise ValueError(f"{path} holds {len(dataset)} whole episode, at least 2 are needed to hold one out")
        try:
            FrameContract.join([datasets[0].frame_contract, dataset.frame_contract])
        except ValueError as error:
            raise ValueError(f"{paths[0]} and {path} cannot be mixed: {error}") from None
    return datasets, list(weights.values())


def data_paths(named: Sequence[str | Path]) -> list[str]:
    """The directories that `open_datasets` would open, each once."""
    return list(dict.fromkeys(path for path, _ in map(_path_and_weight, named)))


def _path_and_weight(named: str | Path) -> tuple[str, float]:
    named = str(named)
    path, equals, text = named.rpartition("=")
    if not equals or Path(named).is_dir():
        return os.path.normpath(named), 1.0
    try:
        weight = float(text)
    except ValueError:
        return os.path.normpath(named), 1.0
    if not (path and 0 < weight < math.inf):
        raise ValueError(f"the weight of a dataset must be a positive number, as in runs/data=2, got {named!r}")
    return os.path.normpath(path), weight


def joint_contract(datasets: Sequence[RolloutDataset]) -> FrameContract:
    """The frame contract of a model trained on these datasets: all that is in them, and a fingerprint of the data."""
    fingerprints = sorted(dataset.fingerprint for dataset in datasets)
    return FrameContract.join(
        (dataset.frame_contract.counted(dataset.num_frames) for dataset in dict.fromkeys(datasets)),
        hashlib.sha256("".join(fingerprints).encode()).hexdigest(),
    )


def split_episodes(dataset: RolloutDataset, held_out_fraction: float) -> tuple[list[int], list[int]]:
    """Positions in a dataset of the training and of the held-out episodes, at least one of each.

    Which side an episode falls on depends on its number, so that it stays there as a dataset grows.
    """
    places = [_place(number) for number in dataset.indices]
    held_out = {position for position, place in enumerate(places) if place < held_out_fraction}
    held_out |= {int(np.argmin(places))}
    held_out -= {int(np.argmax(places))}
    return [position for position in range(len(dataset)) if position not in held_out], sorted(held_out)


def held_out_first(dataset: RolloutDataset) -> list[int]:
    """All positions in a dataset, in the order in which `split_episodes` would hold them out."""
    return sorted(range(len(dataset)), key=lambda position: _place(dataset.indices[position]))


def _place(number: int) -> float:
    """Evenly spread over [0, 1), fixed for each episode number."""
    return int.from_bytes(hashlib.sha256(str(number).encode()).digest()[:8], "big") / 2**64


def task_groups(datasets: Sequence[RolloutDataset]) -> tuple[list[str], list[int]]:
    """The tasks that datasets show, each a group as its scene is its own, and the group of each dataset."""
    shown = ["+".join(dataset.frame_contract.tasks) for dataset in datasets]
    tasks = sorted(set(shown))
    return tasks, [tasks.index(task) for task in shown]
