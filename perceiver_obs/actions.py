"""Actions as the Perceiver reads them and rollouts hold them: what is executed, as floats in [-1, 1].

Imports no torch, so that recording needs none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self, get_args

import gymnasium as gym
import numpy as np
from gymnasium import logger, spaces
from gymnasium.vector import VectorActionWrapper, VectorEnv, VectorWrapper
from gymnasium.wrappers import ClipAction, RescaleAction
from gymnasium.wrappers.vector import VectorizeTransformAction
from numpy.typing import NDArray

Kind = Literal["normalised", "one-hot", "bits"]
UNBOUNDED = 1e9  # bounds from here on are none; dm_control gives actuators without limits 1e10


@dataclass(frozen=True)
class ActionEncoding:
    """Turns actions of a space into rows of floats in [-1, 1], and back.

    - `Box` ("normalised"): entries are clipped to their bounds and scaled, so that the lower becomes -1 and the upper
      1. An entry without bounds is clipped to [-1, 1] as it is; one whose bounds are equal becomes 0.
    - `Discrete` and `MultiDiscrete` ("one-hot"): one float a choice, 1 where it is taken and 0 elsewhere.
    - `MultiBinary` ("bits"): its bits, 0 or 1.

    Make one with `from_space`, `from_meta` or `unit`.

    Attributes:
        kind: as above.
        shape: of an action, as the environment takes it.
        low, high: for "normalised", what -1 and 1 stand for, by entry.
        choices, start: for "one-hot", the number of choices and the first of them, by entry.

    Example:
        >>> from gymnasium import spaces
        >>> from perceiver_obs import ActionEncoding
        >>> ActionEncoding.from_space(spaces.Box(-2, 2, (2,))).encode([1.0, 5.0])
        array([[0.5, 1. ]], dtype=float32)
        >>> ActionEncoding.from_space(spaces.Discrete(3)).encode(2)
        array([[0., 0., 1.]], dtype=float32)
    """

    kind: Kind
    shape: tuple[int, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    choices: tuple[int, ...] = ()
    start: tuple[int, ...] = ()

    @classmethod
    def from_space(cls, space: spaces.Space) -> Self:
        """The encoding of a `Box`, `Discrete`, `MultiDiscrete` or `MultiBinary`; warns of a `Box` without bounds.

        Raises:
            TypeError: any other space.
        """
        if isinstance(space, spaces.Box):
            low, high = (bound.astype(np.float64).ravel() for bound in (space.low, space.high))
            bounded = (low > -UNBOUNDED) & (high < UNBOUNDED)
            if not bounded.all():
                logger.warn(
                    "%s",
                    f"{space} has no bounds to normalise actions by: they are read and recorded as they are, "
                    "clipped to [-1, 1]",
                )
            low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
            return cls("normalised", space.shape, tuple(low.tolist()), tuple(high.tolist()))
        if isinstance(space, spaces.Discrete):
            return cls("one-hot", (), choices=(int(space.n),), start=(int(space.start),))
        if isinstance(space, spaces.MultiDiscrete):
            choices, start = space.nvec.ravel().tolist(), space.start.ravel().tolist()
            return cls("one-hot", space.shape, choices=tuple(choices), start=tuple(start))
        if isinstance(space, spaces.MultiBinary):
            return cls("bits", space.shape)
        raise TypeError(f"actions of {space} cannot be read as floats: only Box, Discrete, MultiDiscrete, MultiBinary")

    @classmethod
    def unit(cls, size: int) -> Self:
        """That of `Box(-1, 1, (size,))`."""
        return cls("normalised", (size,), (-1.0,) * size, (1.0,) * size)

    @classmethod
    def from_meta(cls, entry: Any) -> Self:
        """What `meta` gave, from a dataset's `meta.json`.

        Raises:
            ValueError: it is none.
        """
        try:
            kind, shape = entry["encoding"], tuple(map(int, entry["shape"]))
            low, high = (tuple(map(float, entry.get(name, ()))) for name in ("low", "high"))
            choices, start = (tuple(map(int, entry.get(name, ()))) for name in ("choices", "start"))
        except (TypeError, KeyError, ValueError, AttributeError):
            raise ValueError(f"expected how actions are encoded, got {entry!r:.200}") from None
        encoding, count = cls(kind, shape, low, high, choices, start), math.prod(shape)
        bounds, parts = (count if kind == "normalised" else 0), (count if kind == "one-hot" else 0)
        whole = (len(low), len(high), len(choices), len(start)) == (bounds, bounds, parts, parts)
        if kind not in get_args(Kind) or not whole or not np.isfinite([*low, *high]).all():
            raise ValueError(f"expected how actions are encoded, got {entry!r:.200}")
        return encoding

    @property
    def meta(self) -> dict[str, Any]:
        """The encoding as an entry of a dataset's `meta.json`."""
        entry: dict[str, Any] = {"encoding": self.kind, "shape": list(self.shape)}
        if self.kind == "normalised":
            entry |= {"low": list(self.low), "high": list(self.high)}
        elif self.kind == "one-hot":
            entry |= {"choices": list(self.choices), "start": list(self.start)}
        return entry

    @property
    def size(self) -> int:
        """A, floats of an encoded action."""
        return sum(self.choices) if self.kind == "one-hot" else math.prod(self.shape)

    def __str__(self) -> str:
        if self.kind == "one-hot":
            return f"one-hot actions of {' + '.join(map(str, self.choices))} choices"
        return f"{'bits' if self.kind == 'bits' else 'actions'} of shape {self.shape}"

    def space(self) -> spaces.Space:
        """The space of the actions that `decode` gives, with the bounds that they are normalised by."""
        if self.kind == "bits":
            return spaces.MultiBinary(self.shape)
        if self.kind == "one-hot":
            if not self.shape:
                return spaces.Discrete(self.choices[0], start=self.start[0])
            nvec, start = (np.reshape(each, self.shape) for each in (self.choices, self.start))
            return spaces.MultiDiscrete(nvec, start=start)
        low, high = (np.reshape(bound, self.shape) for bound in (self.low, self.high))
        return spaces.Box(low, high, dtype=np.float64)  # type: ignore[arg-type]  # a dtype's class is one

    def encode(self, actions: Any, num_rows: int = 1) -> NDArray[np.float32]:
        """Rows float32 `[num_rows, A]` of as many actions; never a view of what was given.

        Raises:
            ValueError: a number is not finite, or actions are of another shape or none of the choices.
        """
        given, entries = np.asarray(actions), math.prod(self.shape)
        if given.size != num_rows * entries or given.dtype.kind not in "biuf":
            raise ValueError(f"expected {num_rows} of {self}, got {given.dtype} of shape {given.shape}")
        if not np.isfinite(given).all():
            raise ValueError(f"actions must be finite, neither NaN nor infinite, got {given.tolist()!r:.200}")
        values = given.reshape(num_rows, entries).astype(np.float64)
        if self.kind == "normalised":
            low, high = self._limits
            centre, half = (low + high) / 2, (high - low) / 2
            scaled = (np.minimum(np.maximum(values, low), high) - centre) / np.where(half > 0, half, 1.0)
            # Clipped again, as the division may round up.
            return np.minimum(np.maximum(scaled, -1.0), 1.0).astype(np.float32)
        first, last = self._limits
        if not ((values == np.rint(values)) & (values >= first) & (values <= last)).all():
            raise ValueError(f"expected integers from {first.tolist()} to {last.tolist()}, got {given.tolist()!r:.200}")
        if self.kind == "bits":
            return values.astype(np.float32)
        rows = np.zeros((num_rows, self.size), np.float32)
        rows[np.arange(num_rows)[:, None], self._offsets + (values - first).astype(np.int64)] = 1.0
        return rows

    def decode(self, rows: NDArray[np.floating]) -> NDArray[Any]:
        """Actions `[N, *shape]` in the environment's own unit, from rows `[N, A]`: float64, or int64 of choices."""
        if self.kind == "normalised":
            low, high = self._limits
            values = (low + high) / 2 + rows.astype(np.float64) * (high - low) / 2
        elif self.kind == "bits":
            values = rows.astype(np.int64)
        else:
            parts = np.split(rows, self._offsets[1:], axis=1)
            values = np.stack([part.argmax(axis=1) for part in parts], axis=1) + np.array(self.start)
        return values.reshape(len(rows), *self.shape)

    @cached_property
    def _limits(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """The least and the greatest number that an action may have, by entry."""
        if self.kind == "normalised":
            return np.array(self.low), np.array(self.high)
        if self.kind == "one-hot":
            return np.array(self.start), np.array(self.start) + np.array(self.choices) - 1
        count = math.prod(self.shape)
        return np.zeros(count, np.int64), np.ones(count, np.int64)

    @cached_property
    def _offsets(self) -> NDArray[np.int64]:
        """Where the floats of each choice begin."""
        return np.cumsum([0, *self.choices[:-1]])


def dataset_actions(meta: Mapping[str, Any]) -> ActionEncoding:
    """How the actions of a rollout dataset are encoded; one that does not say has them normalised to [-1, 1]."""
    if "actions" not in meta:
        return ActionEncoding.unit(meta["action_size"])
    return ActionEncoding.from_meta(meta["actions"])


def executed_actions(env: Any, user: str) -> ActionEncoding:
    """The encoding of the actions that an environment executes, by its own bounds or those of what it clips to.

    Args:
        env: a Gymnasium environment or vector environment, or a vector environment or a policy of SB3.
        user: who reads them, for the warning of wrappers that change actions in ways of their own.

    Raises:
        TypeError: the action space is none of those of `ActionEncoding`.
    """
    space, changed_by = _single_action_space(env), []
    for layer in _layers(env):
        wrapper = layer.wrapper if isinstance(layer, VectorizeTransformAction) else layer
        if isinstance(wrapper, ClipAction):
            if _single_action_space(layer) == space:  # its own has no bounds
                space = _single_action_space(layer.env)
        elif isinstance(wrapper, (gym.ActionWrapper, VectorActionWrapper)) and not isinstance(wrapper, RescaleAction):
            changed_by.append(type(wrapper).__name__)
    encoding = ActionEncoding.from_space(space)
    if changed_by:
        logger.warn(
            "%s",
            f"{', '.join(dict.fromkeys(changed_by))} below {user} changes actions in a way of its own: what is read is "
            f"what was sent, not what is executed. Where possible let it lie around {user}",
        )
    return encoding


def readable_actions(env: Any, action_dim: int | None, user: str) -> ActionEncoding | None:
    """`executed_actions` where a model of `action_dim` can read them, else None, with a warning if it reads any."""
    if action_dim is None:
        return None
    size = ""
    try:
        encoding = executed_actions(env, user)
        if encoding.size <= action_dim:
            return encoding
        size = f" ({encoding.size} floats)"
    except TypeError:
        pass
    logger.warn(
        "%s",
        f"the model reads actions of up to {action_dim} floats, the environment takes {_single_action_space(env)}"
        f"{size}; contexts are computed without actions",
    )
    return None


def _single_action_space(env: Any) -> spaces.Space:
    return env.single_action_space if isinstance(env, VectorEnv) else env.action_space


def _layers(env: Any) -> Iterator[Any]:
    """Wrappers from the outermost inwards and what they wrap, environments of this process in a vector included."""
    while isinstance(env, (gym.Wrapper, VectorWrapper)) or "venv" in getattr(env, "__dict__", {}):
        yield env
        env = env.env if isinstance(env, (gym.Wrapper, VectorWrapper)) else env.venv
    yield env
    if not isinstance(env, gym.Env):
        for single in getattr(env, "__dict__", {}).get("envs", ()):
            yield from _layers(single)
