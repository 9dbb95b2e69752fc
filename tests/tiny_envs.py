"""Environments of drawn frames, whose episodes do not depend on the actions, for what happens at their boundary."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from tiny_models import SIZE

LENGTH = 4
UNIT = spaces.Box(-1.0, 1.0, (2,), np.float32)


class Painted(gym.Env):
    """Shows noise that depends on the step alone.

    Args:
        action_space: of any kind.
        spoils_actions: multiplies each action in place, as if it rescaled it.
        one_buffer: draws all frames into the same array, and all states.
        length: steps of an episode.
    """

    observation_space = spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
    state_names = ("position/step",)

    def __init__(
        self,
        action_space: spaces.Space = UNIT,
        *,
        spoils_actions: bool = False,
        one_buffer: bool = False,
        state_in_info: bool = False,
        length: int = LENGTH,
    ) -> None:
        self.action_space = action_space
        self.state_in_info = state_in_info
        self.taken: list[Any] = []
        self._spoils_actions, self._one_buffer, self._length = spoils_actions, one_buffer, length
        self._frame, self._state = np.zeros((SIZE, SIZE, 3), np.uint8), np.zeros(1, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._step = 0
        return self._look()

    def step(self, action):
        self.taken.append(np.array(action))
        if self._spoils_actions:
            action *= 40
        self._step += 1
        frame, info = self._look()
        return frame, float(self._step), False, self._step == self._length, info

    def _look(self) -> tuple[np.ndarray, dict[str, Any]]:
        if not self._one_buffer:
            self._frame, self._state = self._frame.copy(), self._state.copy()
        self._frame[:] = painted_frame(self._step)
        self._state[:] = self._step
        return self._frame, {"state": self._state} if self.state_in_info else {}


def painted_frame(step: int) -> np.ndarray:
    """What `Painted` shows after `step` steps."""
    return np.random.default_rng(step).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
