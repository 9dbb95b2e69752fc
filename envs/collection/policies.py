"""Behaviour policies that rollouts are collected with.

A policy is made once per worker and begins anew with each episode, from that episode's random generator alone, so
that an episode does not depend on which worker played which episodes before.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from gymnasium import spaces

from perceiver_obs.actions import ActionEncoding


@dataclass(frozen=True)
class PolicyContext:
    """What a policy may know when it is made.

    Attributes:
        action_space: of the environment: a `Box`, `Discrete`, `MultiDiscrete` or `MultiBinary`.
        frame_size: height and width of the frames, pixels.
        step_seconds: simulated time per environment step.
        state_names: the entries of the true state; none where it is not known.
    """

    action_space: spaces.Space
    frame_size: int
    step_seconds: float
    state_names: tuple[str, ...]

    @property
    def actions(self) -> ActionEncoding:
        """How the actions are encoded as floats."""
        return ActionEncoding.from_space(self.action_space)

    @property
    def action_size(self) -> int:
        """Floats of an encoded action."""
        return self.actions.size

    def check_actions(self, space: spaces.Space, path: str | Path) -> ActionEncoding:
        """The encoding of the actions of a policy saved at `path`; ValueError where the environment takes others."""
        actions, known = ActionEncoding.from_space(space), self.actions
        if (actions.kind, actions.shape, actions.choices) != (known.kind, known.shape, known.choices):
            raise ValueError(f"{path} gives {actions}, the environment takes {known}")
        return actions

    def as_taken(self, action: np.ndarray, actions: ActionEncoding) -> np.ndarray:
        """A policy's action as the environment takes it: SB3's choices count from 0, whatever the first is called."""
        return self.actions.decode(actions.encode(action))[0] if actions.kind == "one-hot" else action


class Policy(Protocol):
    """What `make_policy` gives; any class of this form can be named as "module:Class"."""

    def begin(self, rng: np.random.Generator) -> str:
        """Start an episode and return the tag it is recorded under."""

    def act(self, frame: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Choose an action of the environment's space from the frame, uint8 `[H, W, 3]`, and the true state `[S]`."""


class UniformRandom:
    """Every action entry independent and uniform: between its bounds, [-1, 1] where it has none, or of its choices."""

    def __init__(self, context: PolicyContext):
        self._actions = context.actions

    def begin(self, rng: np.random.Generator) -> str:
        self._rng = rng
        return "random"

    def act(self, frame: np.ndarray, state: np.ndarray) -> np.ndarray:
        return random_action(self._actions, self._rng)


class CorrelatedNoise:
    """Actions that last: each episode draws its own correlation time, log-uniform in 0.05 to 1 second.

    In a `Box` they are Ornstein-Uhlenbeck noise of an own strength each episode, from calm to wild. Choices and bits
    are drawn anew, each by itself, as often as the correlation time says, and kept in between.

    Strength (standard deviation in bounds scaled to [-1, 1], to which it is clipped) is log-uniform in 0.05 to 1.5.
    On dm_control's cartpole the noise would drive the cart off the picture, so there the action also pulls
    the cart back to the middle, by a spring and a damper on its true position and velocity.
    """

    def __init__(self, context: PolicyContext):
        self._actions = context.actions
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
        if self._actions.kind != "normalised":
            self._held = random_action(self._actions, rng)
            return f"correlated(seconds={correlation_seconds:.2f})"
        self._noise = rng.normal(size=self._actions.size)
        return f"correlated(strength={self._strength:.2f},seconds={correlation_seconds:.2f})"

    def act(self, frame: np.ndarray, state: np.ndarray) -> np.ndarray:
        if self._actions.kind != "normalised":
            keeps = self._rng.random(self._actions.shape) < self._decay
            self._held = np.where(keeps, self._held, random_action(self._actions, self._rng))
            return self._held
        fresh = self._rng.normal(size=self._actions.size)
        self._noise = self._decay * self._noise + np.sqrt(1 - self._decay**2) * fresh
        action = self._strength * self._noise
        if self._cart is not None:
            position, velocity = state[list(self._cart)]
            action = np.clip(action, -1.0, 1.0) - position - 0.3 * velocity
        return self._actions.decode(np.clip(action, -1.0, 1.0)[None])[0]


def random_action(actions: ActionEncoding, rng: np.random.Generator) -> np.ndarray:
    """A uniformly random action, `actions.shape`, in the environment's own unit."""
    if actions.kind == "normalised":
        return actions.decode(rng.uniform(-1.0, 1.0, actions.size)[None])[0]
    if actions.kind == "bits":
        return rng.integers(0, 2, actions.shape)
    start, choices = (np.reshape(each, actions.shape) for each in (actions.start, actions.choices))
    return start + rng.integers(0, choices)
