"""Behaviour policies that rollouts are collected with.

A policy is made once per worker and begins anew with each episode, from that episode's random generator alone, so
that an episode does not depend on which worker played which episodes before.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from envs.tasks import near_matches

BUILT_IN = ("random", "correlated")


@dataclass(frozen=True)
class PolicyContext:
    """What a policy may know when it is made.

    Attributes:
        action_size: entries of an action.
        frame_size: height and width of the frames, pixels.
        step_seconds: simulated time per environment step.
        state_names: the entries of the true state.
    """

    action_size: int
    frame_size: int
    step_seconds: float
    state_names: tuple[str, ...]


class Policy(Protocol):
    """What `make_policy` gives; any class of this form can be named as "module:Class"."""

    def begin(self, rng: np.random.Generator) -> str:
        """Start an episode and return the tag it is recorded under."""

    def act(self, frame: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Choose an action, `[A]` in [-1, 1], from the frame, uint8 `[H, W, 3]`, and the true state `[S]`."""


class UniformRandom:
    """Every action entry independent and uniform in [-1, 1]."""

    def __init__(self, context: PolicyContext):
        self._size = context.action_size

    def begin(self, rng: np.random.Generator) -> str:
        self._rng = rng
        return "random"

    def act(self, frame: np.ndarray, state: np.ndarray) -> np.ndarray:
        return self._rng.uniform(-1.0, 1.0, self._size)


class CorrelatedNoise:
    """Ornstein-Uhlenbeck noise; each episode draws its own strength and correlation time, from calm to wild.

    Strength (standard deviation before clipping to [-1, 1]) is log-uniform in 0.05 to 1.5, correlation time in
    0.05 to 1 second. On cartpole the noise would drive the cart off the picture, so there the action also pulls
    the cart back to the middle, by a spring and a damper on its true position and velocity.
    """

    def __init__(self, context: PolicyContext):
        self._size = context.action_size
        self._step_seconds = context.step_seconds
        names = context.state_names
        self._cart = None
        if "position/slider" in names:
            self._cart = names.index("position/slider"), names.index("velocity/slider")

    def begin(self, rng: np.random.Generator) -> str:
        self._rng = rng
        self._strength = np.exp(rng.uniform(np.log(0.05), np.log(1.5)))
        correlation_seconds = np.exp(rng.uniform(np.log(0.05), np.log(1.0)))
        self._decay = np.exp(-self._step_seconds / correlation_seconds)
        self._noise = rng.normal(size=self._size)
        return f"correlated(strength={self._strength:.2f},seconds={correlation_seconds:.2f})"

    def act(self, frame: np.ndarray, state: np.ndarray) -> np.ndarray:
        fresh = self._rng.normal(size=self._size)
        self._noise = self._decay * self._noise + np.sqrt(1 - self._decay**2) * fresh
        action = self._strength * self._noise
        if self._cart is not None:
            position, velocity = state[list(self._cart)]
            action = np.clip(action, -1.0, 1.0) - position - 0.3 * velocity
        return np.clip(action, -1.0, 1.0)


class Mixture:
    """Draws one of several policies for each episode, all equally likely."""

    def __init__(self, policies: Sequence[Policy]):
        self._policies = policies

    def begin(self, rng: np.random.Generator) -> str:
        self._policy = self._policies[int(rng.integers(len(self._policies)))]
        return self._policy.begin(rng)

    def act(self, frame: np.ndarray, state: np.ndarray) -> np.ndarray:
        return self._policy.act(frame, state)


def policy_parts(policy: str) -> list[str]:
    """The policies that a setting names, checked as far as is possible without loading them.

    Raises:
        ValueError: a part is neither a built-in name, nor a file, nor "module:Class"; or the setting is empty.
    """
    if policy == "mixed":
        return list(BUILT_IN)
    parts = [part.strip() for part in policy.split(",")]
    for part in parts:
        if part in BUILT_IN or ":" in part or (part.endswith(".zip") and Path(part).is_file()):
            continue
        if part.endswith(".zip"):
            raise ValueError(f"there is no SB3 policy at {part}")
        raise ValueError(
            f"unknown policy {part!r}; {near_matches(part, [*BUILT_IN, 'mixed'])} (or the .zip of an SB3 policy, "
            "'module:Class', or several of these with commas between)"
        )
    return parts


def make_policy(policy: str, context: PolicyContext) -> Policy:
    """Make what `policy` names: a part of `policy_parts`, or a `Mixture` of several."""
    policies = [_make_one(part, context) for part in policy_parts(policy)]
    return policies[0] if len(policies) == 1 else Mixture(policies)


def _make_one(name: str, context: PolicyContext) -> Policy:
    if name == "random":
        return UniformRandom(context)
    if name == "correlated":
        return CorrelatedNoise(context)
    if name.endswith(".zip"):
        from envs.sb3_policy import Sb3Policy

        return Sb3Policy(name, context)
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)(context)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"policy {name!r} cannot be imported: {error}") from error
