"""The state read from contexts by a linear map, and the directions in which contexts vary."""

from collections.abc import Sequence

import numpy as np

from perceiver_obs.training.probe_regression import Array, ridge

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
