"""Privileged training: contexts regress the simulator's state, where rollouts hold it."""

from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from perceiver_obs.data.clips import ClipPlace
from perceiver_obs.data.rollouts import RolloutDataset
from perceiver_obs.data.state_coordinates import StateCoordinates

MIN_DEVIATION = 1e-3


class HasStates(Protocol):
    """An episode, perhaps with true states `[T + 1, S]`."""

    @property
    def states(self) -> NDArray[np.float32] | None: ...


class StateTargets:
    """The states of clips in coordinates that frames can show, NaN where there are none.

    Args:
        datasets: whose clips are drawn.
        coordinates: of each, None where its states have no names.

    Attributes:
        size: S, coordinates of the task that has most; 0 where no dataset has any.
    """

    def __init__(self, datasets: Sequence[Sequence[HasStates]], coordinates: Sequence[StateCoordinates | None]):
        self._datasets, self._coordinates = datasets, coordinates
        self.size = max((len(each.coordinates) for each in coordinates if each is not None), default=0)
        self._of_episode = lru_cache(None)(self._read)  # training asks for the same ones again and again

    @classmethod
    def of(cls, datasets: Sequence[RolloutDataset]) -> "StateTargets":
        """Those that were recorded."""
        return cls(datasets, [_recorded_coordinates(dataset) for dataset in datasets])

    def clips(self, places: Sequence[ClipPlace], length: int, size: int | None = None) -> Tensor:
        """States `[B, length, S]` of clips; NaN beyond those of the task, up to `size`."""
        targets = np.full((len(places), length, self.size if size is None else size), np.nan, np.float32)
        for target, place in zip(targets, places):
            states = self._of_episode(place.dataset, place.episode)
            if states is not None:
                target[:, : states.shape[1]] = states[place.start : place.start + length]
        return torch.from_numpy(targets)

    def _read(self, dataset: int, episode: int) -> NDArray[np.float32] | None:
        """Coordinates `[T + 1, K]` of a whole episode, None where there are none."""
        coordinates, states = self._coordinates[dataset], self._datasets[dataset][episode].states
        return None if coordinates is None or states is None else coordinates(states).astype(np.float32)


class StateObjective(nn.Module):
    """Regresses states linearly from contexts, the frame's own and those that latent dynamics predict.

    Asymmetric information, as when a policy that sees is distilled from one that knows the state (Chen et al. 2019,
    arXiv:1912.12294): the state is needed in training alone.

    Args:
        context_dim: width D of the contexts.
        num_states: S of the states, those of the task that has most.
        num_groups: groups of data (such as tasks) with a state of their own.
    """

    per_group: ClassVar = ("weight", "bias", "mean", "scale")
    padded: ClassVar = True
    mean: Tensor
    scale: Tensor

    def __init__(self, context_dim: int, num_states: int, num_groups: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_groups, context_dim, num_states) / context_dim**0.5)
        self.bias = nn.Parameter(torch.zeros(num_groups, num_states))
        self.register_buffer("mean", torch.zeros(num_groups, num_states))
        self.register_buffer("scale", torch.ones(num_groups, num_states))

    @torch.no_grad()
    def fit(self, group: int, states: Tensor) -> None:
        """Centre and scale a group by states `[..., S]` of its clips; NaN counts for nothing."""
        flat = states.flatten(0, -2)
        mean = flat.nanmean(0)
        deviation = (flat - mean).square().nanmean(0).sqrt()
        self.mean[group] = mean.nan_to_num(0.0)
        self.scale[group] = deviation.nan_to_num(1.0).clamp_min(MIN_DEVIATION)

    def forward(self, predicted: Tensor, states: Tensor, groups: Tensor) -> Tensor:
        """Mean squared error over all known coordinates, each of deviation 1; 0 where none is known.

        Args:
            predicted: contexts after 0 … K steps, `[B, A, 1 + K, D]`.
            states: `[B, A, 1 + K, S]` of these frames, NaN where unknown.
            groups: int64 `[B]`.
        """
        regressed = torch.einsum("bakd,bds->baks", predicted, self.weight[groups]) + self.bias[groups][:, None, None]
        wanted = (states - self.mean[groups][:, None, None]) / self.scale[groups][:, None, None]
        known = ~wanted.isnan()
        errors = (regressed - wanted.nan_to_num(0.0)).square() * known
        return errors.sum() / known.sum().clamp_min(1)


def _recorded_coordinates(dataset: RolloutDataset) -> StateCoordinates | None:
    names = dataset.meta["state_names"]
    if names is None:
        return None
    tasks = dataset.frame_contract.tasks
    return StateCoordinates(names, tasks[0] if len(tasks) == 1 else None)
