"""Regressions from features to states, and their scores on held-out episodes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from perceiver_obs.isolation import isolated

Array = NDArray[np.float64]
RIDGE_PENALTIES = np.logspace(-6, 2, 17)
MLP_WIDTH = 256
MLP_EPOCHS = 40
MLP_BATCH = 256
CONSTANT = 1e-6


@dataclass(frozen=True)
class Standardizer:
    """Mean 0 and deviation 1 over the data it was fitted on; constant columns become 0."""

    mean: Array
    scale: Array

    @classmethod
    def fit(cls, values: Array) -> "Standardizer":
        scale = values.std(axis=0)
        return cls(values.mean(axis=0), np.where(scale > CONSTANT, scale, np.inf))

    def __call__(self, values: Array) -> Array:
        return (values - self.mean) / self.scale

    def undo(self, values: Array) -> Array:
        return values * np.where(np.isinf(self.scale), 0, self.scale) + self.mean


def ridge(
    features: Array, states: Array, validation_features: Array, validation_states: Array, test: Sequence[Array]
) -> list[Array]:
    """Linear predictions of states `[N, S]` from features `[N, D]`, for each array of test features `[M, D]`.

    Closed form on standardised features; each dimension takes the penalty that does best on the validation
    episodes, and all but the choice of penalty uses the training episodes alone.
    """
    standard_x, standard_y = Standardizer.fit(features), Standardizer.fit(states)
    x, y = standard_x(features), standard_y(states)
    variances, directions = np.linalg.eigh(x.T @ x / len(x))
    projected = directions.T @ (x.T @ y / len(x))
    weights = np.stack([directions @ (projected / (np.maximum(variances, 0) + p)[:, None]) for p in RIDGE_PENALTIES])
    validation_x, validation_y = standard_x(validation_features), standard_y(validation_states)
    errors = np.stack([np.square(validation_x @ w - validation_y).mean(axis=0) for w in weights])
    best = np.take_along_axis(weights, errors.argmin(axis=0)[None, None], axis=0)[0]
    return [standard_y.undo(standard_x(each) @ best) for each in test]


def mlp(
    features: Array,
    states: Array,
    validation_features: Array,
    validation_states: Array,
    test: Sequence[Array],
    seed: int,
) -> list[Array]:
    """As `ridge`, by a network with two hidden layers, kept as it was when validation episodes came out best."""
    standard_x, standard_y = Standardizer.fit(features), Standardizer.fit(states)

    def tensors(*arrays: Array) -> list[torch.Tensor]:
        return [torch.from_numpy(each.astype(np.float32)) for each in arrays]

    x, y = tensors(standard_x(features), standard_y(states))
    validation_x, validation_y = tensors(standard_x(validation_features), standard_y(validation_states))
    with isolated(seed):
        network = nn.Sequential(
            nn.Linear(x.shape[1], MLP_WIDTH),
            nn.GELU(),
            nn.Linear(MLP_WIDTH, MLP_WIDTH),
            nn.GELU(),
            nn.Linear(MLP_WIDTH, y.shape[1]),
        )
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, MLP_EPOCHS)
        best_error, best_weights = float("inf"), network.state_dict()
        for _ in range(MLP_EPOCHS):
            for rows in torch.randperm(len(x)).split(MLP_BATCH):
                optimizer.zero_grad()
                (network(x[rows]) - y[rows]).square().mean().backward()
                optimizer.step()
            schedule.step()
            with torch.no_grad():
                error = float((network(validation_x) - validation_y).square().mean())
            if error < best_error:
                best_error = error
                best_weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.load_state_dict(best_weights)
    with torch.no_grad():
        outputs = [network(tensors(standard_x(each))[0]).numpy().astype(np.float64) for each in test]
    return [standard_y.undo(output) for output in outputs]


@dataclass(frozen=True)
class Score:
    """How one dimension of the state came out on held-out frames.

    Attributes:
        r2: 1 is perfect, 0 as good as the constant that fits these frames best, less is worse than it. NaN where
            the dimension does not vary, or too little to be judged by it.
        rmse: root-mean-square error in the state's own units.
        deviation: standard deviation of the dimension on these frames, in the same units.
    """

    r2: float
    rmse: float
    deviation: float


def score(states: Array, predictions: Array, least: Array | float = 0.0) -> list[Score]:
    """Scores of predictions `[N, S]`, one a dimension; no R² where the deviation is not above `least` (`[S]`)."""
    rmse = np.sqrt(np.square(predictions - states).mean(axis=0))
    deviation = states.std(axis=0)
    varies = deviation > np.maximum(least, CONSTANT)
    r2 = np.where(varies, 1 - np.square(rmse / np.maximum(deviation, CONSTANT)), np.nan)
    return [Score(*map(float, each)) for each in zip(r2, rmse, deviation)]


@dataclass(frozen=True)
class ProbeResult:
    """Scores of one regression from one kind of features on the test episodes of one set of a task.

    Attributes:
        scores: by name of the coordinate.
    """

    task: str
    episodes: str
    features: str
    regression: str
    scores: dict[str, Score]


VALIDATION_EVERY = 5


def read_states(contexts: Sequence[Array], states: Sequence[Array], new_contexts: Array) -> Array:
    """States `[T, S]` of another episode, by ridge regression on the contexts `[T, D]` and states `[T, S]` of several.

    Every fifth of these episodes, the first included, serves to choose the penalties. At least two are needed.
    """
    validation = range(0, len(contexts), VALIDATION_EVERY)
    training = [number for number in range(len(contexts)) if number not in validation]
    x, y = (np.concatenate([each[i] for i in training]) for each in (contexts, states))
    validation_x, validation_y = (np.concatenate([each[i] for i in validation]) for each in (contexts, states))
    return ridge(x, y, validation_x, validation_y, [new_contexts])[0]


def main_directions(contexts: Array, count: int) -> tuple[Array, Array]:
    """An episode's contexts `[T, D]` along their principal directions `[T, count]`, and the share of the variance in
    each; fewer where the episode has fewer frames."""
    centred = contexts - contexts.mean(axis=0)
    _, lengths, directions = np.linalg.svd(centred, full_matrices=False)
    directions, squares = directions[:count], np.square(lengths)
    # A direction may point either way: choose the way that its largest entry points.
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
    return centred @ (directions * np.sign(largest)).T, squares[:count] / max(float(squares.sum()), 1e-12)
