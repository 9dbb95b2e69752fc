"""Environments as a model knows them, and episodes played in them: to watch, to continue, to learn the state from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from agents.training.policy_files import PolicyRecord
from agents.training.trained_policy import find_record, make_any_policy
from agents.visualize.settings import GenerateSettings, SeenEnvSettings, WatchSettings
from envs.collection.named_policies import make_policy
from envs.collection.policies import Policy, PolicyContext
from envs.collection.settings import CollectSettings
from envs.collection.worker import play_episode
from envs.dmc.environment import DmcEnv
from envs.env_settings import EnvSettings
from envs.frame_observation import FrameObservation
from perceiver_obs.causal_perceiver import CausalPerceiverIO
from perceiver_obs.data.rollouts import Episode, RolloutDataset
from perceiver_obs.frame_contract import SETTINGS, FrameContract, warn_of_unfamiliar_frames
from perceiver_obs.reporting.episode_view import LANES
from perceiver_obs.settings import near_matches

WATCHED = 1_000_000  # the episode's number: none that a dataset of the same seed would hold
OF_ANY = ("action_repeat", "env_kwargs", "frames_from", "fit", "info_keys")
FIT_STEPS, MOST_FIT_FRAMES = 125, 8000


def make_watched_env(
    settings: WatchSettings, model: CausalPerceiverIO, dataset: RolloutDataset | None
) -> DmcEnv | FrameObservation:
    """`make_seen_env`, also as the policy and the data know it.

    Raises ValueError where environment, model, policy, data and what is to be shown do not fit together.
    """
    record = find_record(settings.policy)
    if record is not None and record.env_name != settings.env_name:
        raise ValueError(f"the policy {settings.policy} was trained on {record.env_name}, not {settings.env_name}")
    env = make_seen_env(settings, model, _of_policy(record, settings), _of_data(dataset, settings))
    _check_names(settings.show, env.state_names)
    if dataset is not None:
        _check_data(dataset, env)
    return env


def make_seen_env(
    settings: SeenEnvSettings, model: CausalPerceiverIO, *known: Mapping[str, Any]
) -> DmcEnv | FrameObservation:
    """The environment; what its settings leave open is as in the first of `known` that says so, else as in the model.

    Raises ValueError where environment and model do not fit together.
    """
    _, channels, height, width = model.video_shape
    if channels != 3 or height != width:
        raise ValueError(f"environments show square RGB frames, {settings.model} reads {(channels, height, width)}")
    names = SETTINGS if settings.env is None else OF_ANY
    sources = [{name: each.get(name) for name in names} for each in (*known, _of_model(model, settings))]
    chosen: dict[str, Any] = {}
    for source in (*reversed(sources), vars(settings)):  # of what is given, the setting counts most
        given = {name: source.get(name) for name in (*SETTINGS, *OF_ANY)}
        chosen |= {name: value for name, value in given.items() if value not in (None, (), [])}
    which = EnvSettings(task=settings.task, env=settings.env, size=height, **chosen)
    env = which.make_env(state_in_info=True)
    if model.action_dim is not None and env.action_size > model.action_dim:
        raise ValueError(
            f"{settings.env_name} takes actions of {env.action_size} numbers, {settings.model} reads {model.action_dim}"
        )
    warn_of_unfamiliar_frames([env.frame_contract], model)
    return env


def _of_policy(record: PolicyRecord | None, settings: WatchSettings) -> dict[str, Any]:
    if record is None:
        return {}
    return record.frame_settings if settings.env is None else record.settings


def _of_data(dataset: RolloutDataset | None, settings: WatchSettings) -> dict[str, Any]:
    if dataset is None:
        return {}
    contract = dataset.frame_contract.to_json()
    return contract if settings.env is None else {"action_repeat": contract["action_repeat"]}


def _of_model(model: CausalPerceiverIO, settings: SeenEnvSettings) -> dict[str, Any]:
    contract = FrameContract.of(model.frame_contract)
    if settings.env is None:
        return vars(contract.commonest(settings.task))
    variant = contract.commonest(settings.env.rpartition(":")[2])
    return {"action_repeat": variant.action_repeat} if variant.task == settings.env.rpartition(":")[2] else {}


def _check_names(show: Sequence[str], names: Sequence[str]) -> None:
    for name in show:
        if name not in names:
            raise ValueError(f"show has {name!r}, which is not in the state; {near_matches(name, names)}")
    for kind in ("position/", "velocity/"):
        if sum(name.startswith(kind) for name in show) > LANES:
            raise ValueError(f"show has more than {LANES} names that begin with {kind!r}: {', '.join(show)}")


def _check_data(dataset: RolloutDataset, env: DmcEnv | FrameObservation) -> None:
    names = dataset.meta["state_names"]
    if names is None and env.state_names:
        raise ValueError(f"{dataset.path} was collected without states; collect it with states")
    if tuple(names or ()) != env.state_names:
        raise ValueError(f"{dataset.path} holds states of another task ({', '.join(names[:3])} …)")
    if len(dataset) < 2:
        raise ValueError(f"{dataset.path} holds {len(dataset)} whole episode, the read-out needs at least 2")
    contract = FrameContract.of(env.frame_contract)
    if differences := contract.differences(dataset.frame_contract, "the episode is played with"):
        raise ValueError(f"{dataset.path} has other frames: {'; '.join(differences)}")


def play_at_random(settings: GenerateSettings, model: CausalPerceiverIO, num_frames: int) -> Episode:
    """A fresh episode under uniformly random actions, of so many frames unless it ends before."""
    env = make_seen_env(settings, model)
    try:
        how = CollectSettings(max_steps=num_frames - 1, seed=settings.seed)
        return play_episode(env, make_policy("random", _policy_context(env)), how, WATCHED)
    finally:
        env.close()


def _policy_context(env: DmcEnv | FrameObservation) -> PolicyContext:
    return PolicyContext(env.action_space, env.frame_contract["size"], 1 / env.metadata["render_fps"], env.state_names)


def play_watched(
    settings: WatchSettings, env: DmcEnv | FrameObservation, dataset: RolloutDataset | None
) -> tuple[Episode, list[Episode]]:
    """The episode to watch, and others to fit the read-out on; none of these where there is no state to read."""
    context = _policy_context(env)
    policy = make_any_policy(
        settings.policy,
        context,
        deterministic=settings.deterministic,
        device=settings.device,
        model=settings.model,
    )
    num_others = settings.episodes if dataset is None and env.state_names else 0
    longest, fit_steps = (min(steps, env.max_steps or steps) for steps in (settings.max_steps, FIT_STEPS))
    with tqdm(total=longest + 1 + num_others * (fit_steps + 1), unit="frame", desc="play") as bar:

        def play(policy: Policy, index: int, steps: int, random_init: bool = False) -> Episode:
            how = CollectSettings(max_steps=steps, random_init=random_init, seed=settings.seed)
            return play_episode(env, policy, how, index, bar.update)

        episode = play(policy, WATCHED, longest)
        if dataset is not None and env.state_names:
            wanted = max(2, min(len(dataset), MOST_FIT_FRAMES // max(dataset.lengths)))
            return episode, [dataset[int(i)] for i in np.linspace(0, len(dataset) - 1, wanted).round()]
        noise = make_policy("correlated", context)
        others = [
            play(noise if index % 2 else policy, WATCHED + 1 + index, fit_steps, settings.env is None and index % 2 > 0)
            for index in range(num_others)
        ]
    return episode, others
