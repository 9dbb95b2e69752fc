"""`ContextSpace`: the observation space of contexts, which knows the model that makes them."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces


class ContextSpace(spaces.Box):
    """`Box(-inf, inf, (D,), float32)` with the fingerprint of the model that makes what lies in it.

    A policy is saved with its observation space by Stable-Baselines3, which compares that with the environment's in
    `load(..., env=env)` and `set_env`: so contexts of another model are refused. A plain `Box` of the same bounds is
    equal, since it says nothing of a model.

    Args:
        size: width D.
        fingerprint: of the model's weights. It may be set anew, where the model is replaced.
    """

    def __init__(self, size: int, fingerprint: str) -> None:
        super().__init__(-np.inf, np.inf, (size,), np.float32)
        self.fingerprint = fingerprint

    def __eq__(self, other: Any) -> bool:
        """Whether both hold vectors of the same bounds, and as far as known of the same model."""
        if isinstance(other, ContextSpace) and other.fingerprint != self.fingerprint:
            return False
        return super().__eq__(other)

    def __repr__(self) -> str:
        return f"ContextSpace({self.shape[0]}, made by the model of fingerprint {self.fingerprint})"
