"""How an environment's actions reach a Perceiver that reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import logger, spaces


class ActionLayout:
    """Turns the actions just taken into rows for the encoder, or into None where it can use none.

    Args:
        action_space: the (single) action space of the environment.
        action_dim: the action size the model reads, None for a model of pixels alone. Smaller actions are
            padded with zeros by the encoder.

    Warns once, when made, if the model reads actions that this environment does not have.
    """

    def __init__(self, action_space: spaces.Space, action_dim: int | None) -> None:
        self.size: int | None = None
        if action_dim is None:
            return
        if isinstance(action_space, spaces.Box) and _size(action_space) <= action_dim:
            self.size = _size(action_space)
            return
        logger.warn(
            f"the model reads actions of up to {action_dim} floats, the environment takes {action_space}; "
            "contexts are computed without actions"
        )

    def rows(self, actions: Any, num_rows: int) -> np.ndarray | None:
        """The actions as float32 `[num_rows, A]`, or None where the model is given none."""
        if self.size is None:
            return None
        return np.asarray(actions, dtype=np.float32).reshape(num_rows, self.size)


def _size(action_space: spaces.Box) -> int:
    return int(np.prod(action_space.shape))
