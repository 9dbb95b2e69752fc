"""Last frames of episodes that a vector environment has reset before anyone could read them."""

from __future__ import annotations

import numpy as np
from gymnasium import logger


class OverwrittenFrames:
    """Warns, once, of an environment that draws all frames into one buffer.

    A vector environment that resets within the step keeps the last observation without copying it. The reset then
    draws over it: what comes out as the last frame is the first of the next episode.
    """

    def __init__(self) -> None:
        self._warned = False

    def check(self, before: np.ndarray, final: np.ndarray, first: np.ndarray) -> None:
        """Compares frames: the last of an episode with the one before it, and with the first of the next."""
        # In a scene that stands still the last frame is the first of the next by rights.
        if self._warned or not np.array_equal(final, first) or np.array_equal(final, before):
            return
        self._warned = True
        logger.warn(
            "the last frame of an episode is, pixel by pixel, the first of the next: the environment seems to draw "
            "all frames into one buffer, so that its reset destroys the last frame, and the contexts of last frames "
            "are wrong. Let it return copies: gymnasium.wrappers.TransformObservation(env, copy.deepcopy, None)"
        )
