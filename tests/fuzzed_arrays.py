"""Arrays and spaces that are mostly near what is expected, so that a call is often right but for one thing."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

SIZE, ROWS, ACTIONS = 16, 3, 2
TYPES = [np.uint8, np.int8, np.int64, np.float16, np.float32, np.float64, np.bool_, np.complex64, object]
many = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def arrays(draw, usual, dtype=np.uint8):
    """Of a usual shape and type, or with a change or two."""
    shape = list(usual)
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
        change = draw(st.sampled_from(["drop", "add", "swap", "resize"]))
        place = draw(st.integers(0, max(0, len(shape) - 1)))
        if change == "drop" and shape:
            del shape[place]
        elif change == "add":
            shape.insert(place, draw(st.integers(0, 4)))
        elif change == "swap":
            shape.reverse()
        elif shape:
            shape[place] = draw(st.integers(0, 40))
    kind = draw(st.sampled_from([dtype] * 3 + TYPES))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    array = random.integers(0, 2, shape).astype(kind)
    if np.issubdtype(array.dtype, np.inexact) and array.size and draw(st.booleans()):
        array.flat[0] = draw(st.sampled_from([np.nan, np.inf, -np.inf, 1e30, -1.0]))
    return array


class Given(gym.Env):
    """Shows samples of whatever space it is given; episodes last a few steps."""

    action_space = spaces.Box(-1, 1, (ACTIONS,))

    def __init__(self, space, length=4):
        self.observation_space, self._length, self._steps = space, length, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self._steps += 1
        return self.observation_space.sample(), 0.0, False, self._steps >= self._length, {}


def boxes():
    sides = st.sampled_from([1, 3, SIZE, SIZE, SIZE, 64])
    shapes = st.tuples(sides, sides, st.sampled_from([1, 3, 3, 3, 4, SIZE])) | st.lists(sides, max_size=4).map(tuple)
    kinds = st.sampled_from([np.uint8, np.uint8, np.uint8, np.float32, np.int64])
    return st.builds(lambda shape, kind: spaces.Box(0, 255 if kind == np.uint8 else 1, shape, kind), shapes, kinds)


def observation_spaces():
    """Boxes, dictionaries of them, and spaces that hold no frames at all."""
    keys = st.sampled_from(["pixels", "context", "camera", "touch"])
    return (
        boxes()
        | st.dictionaries(keys, boxes(), max_size=3).map(spaces.Dict)
        | st.sampled_from([spaces.Discrete(3), spaces.Text(4), spaces.Tuple([spaces.Discrete(2)])])
    )


pixels_keys = st.sampled_from([None, None, "pixels", "camera", "context", ""])
