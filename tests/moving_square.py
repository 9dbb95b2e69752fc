"""An environment that is cheap to step, with frames of every size: a square that follows the action."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class MovingSquare(gym.Env):
    """uint8 frames `(size, size, 3)`; episodes of `length` steps."""

    metadata = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"

    def __init__(self, size: int = 64, length: int = 6):
        self.size, self.length = size, length
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.place = 0, int(self.np_random.integers(self.size))
        return self._frame(), {}

    def step(self, action):
        self.time, self.place = self.time + 1, self.place + round(8 * float(action[0]))
        return self._frame(), 1.0, False, self.time == self.length, {}

    def render(self):
        return self._frame()

    def _frame(self):
        frame = np.zeros((self.size, self.size, 3), np.uint8)
        frame[:8, :8] = 200
        return np.roll(frame, self.place, axis=1)
