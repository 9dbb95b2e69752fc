"""The behaviour policies that the option `--policy` names."""

import importlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from envs.collection.policies import CorrelatedNoise, Policy, PolicyContext, UniformRandom
from envs.collection.sb3_policy import Sb3Policy
from perceiver_obs.settings import near_matches

BUILT_IN = ("random", "correlated")


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


def make_policy(policy: str, context: PolicyContext, deterministic: bool = False) -> Policy:
    """Make what `policy` names: a part of `policy_parts`, or a `Mixture` of several.

    SB3 policies act by samples or, where `deterministic`, by their most likely action.
    """
    policies = [_make_one(part, context, deterministic) for part in policy_parts(policy)]
    return policies[0] if len(policies) == 1 else Mixture(policies)


def _make_one(name: str, context: PolicyContext, deterministic: bool) -> Policy:
    if name == "random":
        return UniformRandom(context)
    if name == "correlated":
        return CorrelatedNoise(context)
    if name.endswith(".zip"):
        return Sb3Policy(name, context, deterministic)
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)(context)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"policy {name!r} cannot be imported: {error}") from error
