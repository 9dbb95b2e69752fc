"""`RecordRollouts`: the episodes that somebody else plays, such as a policy in training, become rollouts on disk."""

from copy import deepcopy
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium
import numpy as np

from perceiver_obs.data.describe import describe_env, recorded_actions, shows_states
from perceiver_obs.data.rollouts import RolloutWriter


class RecordRollouts(gymnasium.Wrapper):
    """Writes every episode that is played to its end; the environment stays as it is.

    A policy visits what exploration never does. Recorded while it learns, its episodes are data to train a Perceiver
    on. Running again adds to what is there; episodes that were broken off are left out.

    All is recorded by value, whatever becomes of the arrays later. Actions are recorded as `perceiver_obs` reads them
    (`ActionEncoding`): normalised by the bounds of `env` and clipped to them, choices one-hot. States are recorded
    where `env` says that `info["state"]` holds them (`state_in_info` and `state_names`, as `make_dmc` does).

    A step after an episode's end begins the next, as with `gymnasium.wrappers.Autoreset`.

    Args:
        env: gives square RGB frames, uint8 `[size, size, 3]`.
        path: directory of the dataset, which other recorders may write to at the same time.
        policy: tag of what acts.

    Raises:
        RolloutError: observations or actions are none that can be recorded, or the directory holds a dataset of
            another environment.
        ValueError: an action is not finite, or not of the space's shape or choices.
        OSError: when an episode ends, the disk is full.
    """

    def __init__(self, env: gymnasium.Env, path: str | Path, *, policy: str = "policy"):
        super().__init__(env)
        self._encoding = recorded_actions(env, type(self).__name__)
        self._keeps_states = shows_states(env)
        meta = describe_env(env, self._encoding, self._keeps_states)
        self._writer = RolloutWriter(path, {**meta, "collection": {"policy": [policy]}})
        self._policy = policy
        self._seed = 0
        self._clear()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins an episode. It is recorded with the seed of the last reset that had one."""
        frame, info = self.env.reset(seed=seed, options=options)
        self._seed = self._seed if seed is None else seed
        self._clear()
        self._add(frame, info)
        return frame, info

    def step(self, action: Any) -> tuple[np.ndarray, SupportsFloat, bool, bool, dict[str, Any]]:
        """Takes a step, and writes the episode where that ends it."""
        encoded = self._encoding.encode(action)[0]
        frame, reward, terminated, truncated, info = self.env.step(deepcopy(action))
        begins = not self._frames  # an Autoreset below took no step, as the last one had ended the episode
        self._add(frame, info)
        if begins:
            return frame, reward, terminated, truncated, info
        self._actions.append(encoded)
        self._rewards.append(float(reward))
        if terminated or truncated:
            self._writer.write_episode(
                None,
                pixels=np.stack(self._frames),
                actions=np.stack(self._actions),
                rewards=np.array(self._rewards, np.float32),
                terminated=bool(terminated),
                truncated=bool(truncated),
                seed=self._seed,
                policy=self._policy,
                states=np.stack(self._states) if self._keeps_states else None,
            )
            self._clear()
        return frame, reward, terminated, truncated, info

    def _clear(self) -> None:
        self._frames: list[np.ndarray] = []
        self._states: list[np.ndarray] = []
        self._actions: list[np.ndarray] = []
        self._rewards: list[float] = []

    def _add(self, frame: np.ndarray, info: dict[str, Any]) -> None:
        self._frames.append(np.array(frame))
        if self._keeps_states:
            self._states.append(np.array(info["state"], np.float32))
