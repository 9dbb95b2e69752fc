"""`add_rollouts`: a replay buffer that begins with recorded episodes, for what a policy hardly meets by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from gymnasium import logger, spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents.adaptation.adaptable import check_adaptable, replay_buffer
from agents.wrappers.vec_context import VecPerceiverContext
from perceiver_obs.actions import ActionEncoding, dataset_actions, executed_actions
from perceiver_obs.data.rollouts import Episode, RolloutDataset, deduplicate
from perceiver_obs.evaluation.features import encode_equal_length
from perceiver_obs.frame_contract import FrameContract


def add_rollouts(algorithm: BaseAlgorithm, paths: Sequence[str | Path]) -> int:
    """Puts the transitions of recorded episodes into the replay buffer of a policy on contexts.

    The contexts are those that the Perceiver of the algorithm's environment gives, and the actions are in the buffer's
    unit, as if the policy had taken them. Call it before `learn`. A time
    limit counts as in SB3: the step before it has a future. With several rows each gets whole episodes in turn, as
    many transitions as the row that has least.

    Args:
        algorithm: an off-policy one, such as SAC, with "MlpPolicy" on a `VecPerceiverContext`.
        paths: rollout directories, of the environment's task and with frames made as it makes them; one that is
            named twice is taken once.

    Returns:
        how many transitions were added, in all rows together.

    Raises:
        ValueError: the algorithm or its environment are others, the frames or actions are not those of the
            environment, there are fewer episodes than rows, or more transitions than the buffer has room for.

    Example:
        >>> from stable_baselines3 import SAC
        >>> from stable_baselines3.common.vec_env import DummyVecEnv
        >>> from agents import VecPerceiverContext, add_rollouts
        >>> from envs import make_dmc
        >>> venv = VecPerceiverContext(DummyVecEnv([lambda: make_dmc("walker-walk")]))
        >>> policy = SAC("MlpPolicy", venv)
        >>> add_rollouts(policy, ["runs/expert"])
        >>> policy.learn(50_000)
    """
    if isinstance(paths, (str, Path)):
        raise ValueError(f"a sequence of rollout directories is needed, got {paths!r} alone")
    venv = check_adaptable(algorithm, "add_rollouts")
    rows = prior_episodes([RolloutDataset(path) for path in paths], venv)
    fill(algorithm, rows, venv)
    return sum(len(episode) for row in rows for episode in row)


def prior_episodes(datasets: Sequence[RolloutDataset], venv: VecPerceiverContext) -> list[list[Episode]]:
    """The episodes that each row's part of a replay buffer begins with, equally many steps; errors as above."""
    datasets = deduplicate(datasets)
    for dataset in datasets:
        _check(dataset, venv)
    episodes = [episode for dataset in datasets for episode in dataset]
    if len(episodes) < venv.num_envs:
        raise ValueError(f"{venv.num_envs} rows need an episode each, the rollouts hold {len(episodes)}")
    rows = [episodes[row :: venv.num_envs] for row in range(venv.num_envs)]
    steps = min(sum(len(episode) for episode in row) for row in rows)
    return [_first_steps(row, steps) for row in rows]


def fill(algorithm: BaseAlgorithm, rows: Sequence[Sequence[Episode]], venv: VecPerceiverContext) -> None:
    """Adds the transitions of what `prior_episodes` gives; ValueError where there is no room for all."""
    buffer = replay_buffer(algorithm)
    steps, room = sum(len(episode) for episode in rows[0]), buffer.buffer_size - buffer.size()
    if room < steps:
        raise ValueError(
            f"the replay buffer has room for {room * len(rows):,} transitions, the rollouts hold "
            f"{steps * len(rows):,}: make buffer_size larger"
        )
    encoding = _encoding(venv)
    made = [[_transitions(episode, algorithm, encoding, venv) for episode in row] for row in rows]
    # Observations, next observations, actions, rewards, dones and timeouts, each [steps, rows, ...].
    columns = [np.stack([np.concatenate([e[kind] for e in row]) for row in made], axis=1) for kind in range(6)]
    for observations, following, actions, rewards, dones, timeouts in zip(*columns):
        infos = [{"TimeLimit.truncated": bool(timeout)} for timeout in timeouts]
        buffer.add(observations, following, actions, rewards, dones, infos)


def _first_steps(episodes: Sequence[Episode], steps: int) -> list[Episode]:
    """As many episodes as have `steps` together, the last broken off where it has more."""
    found = []
    for episode in episodes:
        if 0 < steps < len(episode):
            episode = replace(
                episode,
                pixels=episode.pixels[: steps + 1],
                actions=episode.actions[:steps],
                rewards=episode.rewards[:steps],
                terminated=False,
                truncated=True,
                states=None if episode.states is None else episode.states[: steps + 1],
            )
        if steps > 0:
            found.append(episode)
        steps -= len(episode)
    return found


def _transitions(
    episode: Episode, algorithm: BaseAlgorithm, encoding: ActionEncoding, venv: VecPerceiverContext
) -> tuple[np.ndarray, ...]:
    contexts = encode_equal_length(venv.encoder.model, [episode], venv.encoder.device)[0]
    dones = np.arange(len(episode)) == len(episode) - 1
    actions = encoding.decode(episode.actions).astype(venv.action_space.dtype)
    if isinstance(venv.action_space, spaces.Box):
        assert isinstance(algorithm, OffPolicyAlgorithm)  # as `check_adaptable` says
        actions = algorithm.policy.scale_action(actions)  # as SB3 stores them
    return contexts[:-1], contexts[1:], actions, episode.rewards, dones, dones & (not episode.terminated)


def _check(dataset: RolloutDataset, venv: VecPerceiverContext) -> None:
    size, _, channels = venv.encoder.frame_shape
    for contract in venv.frame_contracts:
        shown = replace(contract or FrameContract(), size=size, channels=channels)
        if differences := shown.differences(dataset.frame_contract, "the environment shows"):
            raise ValueError(f"{dataset.path} has other frames: {'; '.join(differences)}")
    recorded, taken = dataset_actions(dataset.meta), _encoding(venv)
    if recorded.kind == taken.kind == "normalised" and recorded.size != taken.size:
        raise ValueError(f"{dataset.path} has actions of shape {recorded.shape}, the environment {taken.shape}")
    if (recorded.kind, recorded.size, recorded.choices) != (taken.kind, taken.size, taken.choices):
        raise ValueError(f"{dataset.path} has {recorded}, the environment takes {taken}")
    if (recorded.low, recorded.high) != (taken.low, taken.high):
        logger.warn(
            "%s",
            f"the actions of {dataset.path} are normalised from {recorded.low} to {recorded.high}, those of the "
            f"environment from {taken.low} to {taken.high}: alike only where a wrapper rescales them",
        )


def _encoding(venv: VecPerceiverContext) -> ActionEncoding:
    if venv.action_encoding is not None:
        return venv.action_encoding
    try:
        return executed_actions(venv, "VecPerceiverContext")
    except TypeError as error:
        raise ValueError(str(error)) from None
