"""An environment that draws noise in no time, and says of its frames what it is told to."""

import gymnasium as gym
import numpy as np


class DrawnEnv(gym.Env):
    """Noise uint8 `[size, size, 3]`, in episodes of `length` steps.

    Args:
        contract: what it states as its frame contract; None states none.
        high: what its space says is white.
    """

    def __init__(self, contract: dict | None = None, size: int = 64, length: int = 5, high: int = 255):
        self.observation_space = gym.spaces.Box(0, high, (size, size, 3), np.uint8)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        if contract is not None:
            self.frame_contract = contract
        self._length, self._steps = length, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._steps = 0
        return self._frame(), {}

    def step(self, action):
        self._steps += 1
        return self._frame(), 1.0, False, self._steps == self._length, {}

    def _frame(self):
        space = self.observation_space
        return self.np_random.integers(0, int(space.high.max()) + 1, space.shape, dtype=np.uint8)
