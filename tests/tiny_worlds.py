"""Registers small environments under ids, as a user's own module does: "tiny_worlds:TinyWorld-v0"."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

ACTIONS = {
    "box": spaces.Box(np.float32([-2, 0]), np.float32([2, 1])),
    "discrete": spaces.Discrete(3, start=2),
    "multi-discrete": spaces.MultiDiscrete([2, 4], start=[1, 0]),
    "bits": spaces.MultiBinary(3),
}
PICTURE = np.arange(24 * 48 * 3, dtype=np.uint32).reshape(24, 48, 3).astype(np.uint8)
STEPS = 6


class TinyWorld(gym.Env):
    """Observes its step and renders a picture 24 high and 48 wide; refuses actions that are not of its space.

    Args:
        actions: a key of `ACTIONS`.
        shows: "state" or, as its observation, "grey" `[24, 48]`, "first" `[3, 24, 48]`, "dict" or "two" images.
        render_mode: as Gymnasium asks for.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, actions: str = "box", shows: str = "state", render_mode: str | None = None):
        self.action_space, self.render_mode, self._shows = ACTIONS[actions], render_mode, shows
        image = {"grey": (24, 48), "first": (3, 24, 48)}.get(shows, (24, 48, 3))
        frames, step = spaces.Box(0, 255, image, np.uint8), spaces.Box(0, STEPS, (2,), np.float32)
        several = {"dict": ("camera",), "two": ("left", "right")}.get(shows, ())
        if several:
            self.observation_space = spaces.Dict(
                {"step": step, "lamp": spaces.Discrete(2), **dict.fromkeys(several, frames)}
            )
        else:
            self.observation_space = step if shows == "state" else frames

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._step = 0
        return self._look(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        {action if isinstance(self.action_space, spaces.Discrete) else 0: "a table of choices looks them up"}
        self._step += 1
        return self._look(), float(self._step), False, False, {}

    def render(self) -> np.ndarray:
        return PICTURE + np.uint8(self._step)

    def _look(self) -> Any:
        step = np.float32([self._step, 2 * self._step])
        if self._shows == "state":
            return step
        frame = self.render()
        if self._shows in ("dict", "two"):
            images = {key: frame for key in self.observation_space.spaces if key not in ("step", "lamp")}
            return {"step": step, "lamp": self._step % 2, **images}
        return {"grey": frame[:, :, 0], "first": frame.transpose(2, 0, 1)}.get(self._shows, frame)


gym.register("TinyWorld-v0", entry_point="tiny_worlds:TinyWorld", max_episode_steps=STEPS)
gym.register("LongerTinyWorld-v0", entry_point="tiny_worlds:TinyWorld", max_episode_steps=4 * STEPS)
