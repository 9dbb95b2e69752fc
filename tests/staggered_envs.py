"""Environments whose episodes end at different times; apart, so that worker processes need not import torch."""

from functools import partial

import gymnasium as gym
from gymnasium.wrappers import TimeLimit

from envs import make_dmc

LENGTHS = (3, 4, 7)


def make_short(length: int) -> gym.Env:
    """cartpole-swingup that is truncated after `length` steps."""
    env = make_dmc("cartpole-swingup", render_quality="fast", action_repeat=4)
    return TimeLimit(env, length)


def make_shorts() -> list[partial[gym.Env]]:
    """One maker for each of `LENGTHS`."""
    return [partial(make_short, length) for length in LENGTHS]
