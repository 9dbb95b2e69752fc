"""An episode as a model sees it: all that is drawn of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Values = NDArray[np.float64]

LANES = 3  # entries of the state that are shown of each kind


@dataclass(frozen=True)
class Reading:
    """One entry of the state over an episode, `[T]` each: true, and as the context tells it, in `unit`."""

    name: str
    unit: str
    true: Values
    read: Values

    @property
    def error(self) -> float:
        """Root-mean-square error over the episode."""
        return float(np.sqrt(np.square(self.read - self.true).mean()))


@dataclass(frozen=True)
class EpisodeView:
    """All that is drawn of an episode of T frames.

    Attributes:
        title, subtitle: what was played, and how.
        footnote: how the state was read.
        frames, reconstructed: uint8 `[T, H, W, 3]`, as they were and through the tokens.
        predicted: uint8 `[T - horizon, H, W, 3]`; entry t is frame t + horizon, as predicted at frame t.
        horizon: steps predicted ahead.
        rewards: `[T - 1]`.
        step_seconds: simulated time per step.
        traces: `[T, P]`, directions of the context, most important first.
        shares: `[P]`, how much of the context's variance each holds.
        positions, velocities: entries of the state; up to three each are drawn.
        token_shape: `(h, w, Q)` of a frame's tokens.
        context_dim: numbers in a context.
    """

    title: str
    subtitle: str
    footnote: str
    frames: Frames
    reconstructed: Frames
    predicted: Frames
    horizon: int
    rewards: NDArray[np.float32]
    step_seconds: float
    traces: Values
    shares: Values
    positions: Sequence[Reading]
    velocities: Sequence[Reading]
    token_shape: tuple[int, int, int]
    context_dim: int
