"""`train_policy`: an SB3 policy on contexts, or on one of the baselines, resumable at any time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from agents.adaptation.adapt_context import AdaptContext, FrameBudget
from agents.adaptation.prior_rollouts import add_rollouts
from agents.policies.algorithms import algorithm_class, fitting_algorithm, make_algorithm
from agents.policies.frozen_perceiver import check_fingerprint
from agents.training.evaluate import said_return
from agents.training.follow_training import FollowTraining
from agents.training.policy_env import make_policy_env
from agents.training.policy_files import (
    CURVE_FILE,
    PERCEIVER_DIRECTORY,
    POLICY_FILE,
    REPLAY_FILE,
    Checkpoints,
    LearningCurve,
    PolicyRecord,
    only_trainer,
    provenance,
    read_curve,
    save_policy,
    step_of,
)
from agents.training.settings import TrainPolicySettings
from agents.wrappers.vec_context import VecPerceiverContext
from agents.wrappers.vec_pca import VecFramePCA
from perceiver_obs.data.data_record import describe_datasets, offline_frames, read_data_record
from perceiver_obs.data.rollouts import RolloutDataset, deduplicate
from perceiver_obs.data.splits import data_paths
from perceiver_obs.hub import find_pretrained
from perceiver_obs.settings import check_same_settings, settings_to_dict
from perceiver_obs.training.adaptation import training_settings
from perceiver_obs.training.objective import PRIVILEGED


def train_policy(settings: TrainPolicySettings) -> Path:
    """Trains a policy and returns the path of its `policy.zip`.

    Beside it the run leaves `policy.json` (settings, and the Perceiver's fingerprint), `curve.jsonl` (a line
    an evaluation), `tensorboard/`, and `checkpoints/` with the newest checkpoint. A run that was killed
    resumes from that one; a finished run returns at once, or goes on where `total_frames` has grown (its replay
    buffer keeps its size, so holds the newest transitions only). What the settings leave open is as it was when the
    run began. With `adapt_every` the adapted Perceiver lies in `perceiver/`, and checkpoints hold all frames that the
    policy saw (12 kB each at 64×64).

    Raises:
        ValueError: a setting is out of range, the algorithm is unknown, or the directory holds a run with
            other settings.
        WrongPerceiver: the directory holds a run on another Perceiver's contexts.
        RunInUse: another process is training in the directory.
    """
    checkpoints = Checkpoints(settings.out / "checkpoints")
    begun = PolicyRecord.load(settings.out) if checkpoints.latest() else None
    settings = _completed(settings, begun.settings if begun else None)
    _check(settings)
    settings.out.mkdir(parents=True, exist_ok=True)
    with only_trainer(settings.out), ExitStack() as stack:
        checkpoint = checkpoints.latest()
        venv = make_policy_env(settings, settings.num_envs, settings.record, state_in_info=_adapts_to_states(settings))
        stack.enter_context(closing(venv))
        record = PolicyRecord(
            algorithm_name(settings),
            settings_to_dict(settings),
            _fingerprint(venv),
            _offline_data(settings),
            provenance(settings.device),
            privileged=_privileged(venv),
        )
        if checkpoint is not None:
            begun = PolicyRecord.load(settings.out)
            check_same_settings(begun.settings, settings, f"the run in {settings.out}")
            check_fingerprint(record.began_with, begun.began_with, f"the run in {settings.out}")
            # The policy of a shorter run stays usable until the longer one ends.
            record = replace(record, fingerprint=begun.fingerprint, adaptation=begun.adaptation)

        repeat = venv.get_attr("frame_contract", 0)[0]["action_repeat"]
        total_steps = max(1, settings.total_frames // repeat)
        policy_file = settings.out / POLICY_FILE
        if checkpoint is not None and step_of(checkpoint) >= total_steps and policy_file.exists():
            return _say_result(policy_file)
        if checkpoint is None:
            algorithm = _new(settings, venv, total_steps)
        else:
            algorithm = _resumed(settings, venv, checkpoint)
        record.save(settings.out)

        evaluation_venv = stack.enter_context(closing(make_policy_env(settings, settings.num_envs)))
        curve = LearningCurve(settings.out / CURVE_FILE, algorithm.num_timesteps)
        adapt = None
        if settings.adapt_every is not None:
            adapt = _adapt_context(settings, settings.adapt_every // repeat, evaluation_venv)
            if checkpoint is not None:
                adapt.load(checkpoint)
        follow = FollowTraining(settings, evaluation_venv, curve, checkpoints, repeat, adapt)
        algorithm.learn(
            max(0, total_steps - algorithm.num_timesteps),
            callback=[follow] if adapt is None else [follow, adapt],
            reset_num_timesteps=False,
            tb_log_name=algorithm_name(settings),
            progress_bar=settings.progress_bar,
        )

        if adapt is not None:
            policy_file.unlink(missing_ok=True)  # never beside a Perceiver that it was not trained with
            adapt.save_perceiver(settings.out / PERCEIVER_DIRECTORY)
            _with_adaptation(record, adapt).save(settings.out)
        return _say_result(save_policy(algorithm, settings.out))


def algorithm_name(settings: TrainPolicySettings) -> str:
    """The algorithm of settings that are complete."""
    assert settings.algorithm is not None
    return settings.algorithm


def _completed(settings: TrainPolicySettings, begun_with: Mapping[str, Any] | None) -> TrainPolicySettings:
    """The settings with an algorithm and its own defaults; ValueError where it cannot train in the environment."""
    name = settings.algorithm
    if name is None and begun_with is not None:
        name = begun_with["algorithm"]
    if name is not None:
        algorithm_class(name)
    space: spaces.Space = spaces.Box(-1, 1)  # as all tasks take
    if settings.env is not None:
        env = settings.make_env(state_in_info=False)
        env.close()
        space = env.action_space
    name = fitting_algorithm(name, space, settings.env_name, pixels=settings.observation == "pixels")
    return settings.completed(name, begun_with)


def _check(settings: TrainPolicySettings) -> None:
    positive = ["total_frames", "eval_every", "eval_episodes", "num_envs", "batch_size", "buffer_size"]
    if settings.adapt_every is not None:
        positive += ["adapt_every", "adapt_steps"]
    for name in positive:
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} must be 1 or more, got {getattr(settings, name)}")
    for name, given in (("adapt_every", settings.adapt_every is not None), ("prior_data", bool(settings.prior_data))):
        if given and settings.observation != "context":
            raise ValueError(f'{name} needs the observation "context", got {settings.observation!r}')
        if given and not issubclass(algorithm_class(algorithm_name(settings)), OffPolicyAlgorithm):
            raise ValueError(f"{name} needs an algorithm with a replay buffer such as SAC, got {settings.algorithm}")


def _new(settings: TrainPolicySettings, venv: VecEnv, total_steps: int) -> BaseAlgorithm:
    prior = sum(dataset.num_frames for dataset in _open(settings.prior_data))
    assert settings.learning_rate is not None  # as they are complete
    algorithm = make_algorithm(
        algorithm_name(settings),
        venv,
        policy="CnnPolicy" if settings.observation == "pixels" else "MlpPolicy",
        net_arch=list(settings.net_arch),
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        off_policy={
            "buffer_size": min(settings.buffer_size, total_steps + prior),
            "learning_starts": settings.learning_starts,
        },
        hyperparameters=settings.hyperparameters,
        seed=settings.seed,
        device=settings.device,
        tensorboard_log=str(settings.out / "tensorboard"),
    )
    if settings.prior_data and settings.adapt_every is None:  # AdaptContext adds them itself
        add_rollouts(algorithm, settings.prior_data)
    return algorithm


def _resumed(settings: TrainPolicySettings, venv: VecEnv, checkpoint: Path) -> BaseAlgorithm:
    # The replay buffer's class follows from n_steps again. SB3 warns if it comes from the file.
    custom_objects: dict[str, Any] = {"replay_buffer_class": None}
    if settings.adapt_every is not None:  # AdaptContext is about to bring the Perceiver that the policy was saved with
        custom_objects["observation_space"] = venv.observation_space
    algorithm = algorithm_class(algorithm_name(settings)).load(
        checkpoint / POLICY_FILE,
        env=venv,
        device=settings.device,
        custom_objects=custom_objects,
        tensorboard_log=str(settings.out / "tensorboard"),
    )
    if isinstance(algorithm, OffPolicyAlgorithm):
        algorithm.load_replay_buffer(checkpoint / REPLAY_FILE)
    # The seed itself would play the run's first episodes and exploration again.
    algorithm.set_random_seed(settings.seed + algorithm.num_timesteps)
    return algorithm


def _adapt_context(settings: TrainPolicySettings, every: int, evaluation_venv: VecEnv) -> AdaptContext:
    """Adaptation every so many agent steps; evaluations follow the Perceiver."""
    model = find_pretrained(settings.model)
    return AdaptContext(
        settings.adapt_data,
        every=max(1, every),
        steps=settings.adapt_steps,
        learning_rate=settings.adapt_learning_rate,
        prior_data=settings.prior_data,
        training=training_settings(model),
        heads=model,
        token_cache=settings.out / "token_cache",
        evaluation_envs=[evaluation_venv],
        seed=settings.seed,
    )


def _with_adaptation(record: PolicyRecord, adapt: AdaptContext) -> PolicyRecord:
    """The record with the Perceiver as it is now, and the frames that it and the policy have cost."""
    online, offline = adapt.frames.online, record.offline_data
    if offline is None:
        frames = f"unknown offline + {online:,} online"
    else:
        frames = str(FrameBudget(offline_frames(offline).control_steps, online))
    adaptation = {
        "began_with": record.began_with,
        "adaptations": adapt.adaptations,
        "gradient_steps": adapt.gradient_steps,
        "online_frames": online,
        "frames": f"{frames}; all frames that the policy met are also trained on",
    }
    privileged = adapt.perceiver.frame_contract.get(PRIVILEGED)
    return replace(record, fingerprint=adapt.perceiver.fingerprint, adaptation=adaptation, privileged=privileged)


def _adapts_to_states(settings: TrainPolicySettings) -> bool:
    """Whether adaptations regress the true state, as the training of the model did."""
    training = None if settings.adapt_every is None else training_settings(find_pretrained(settings.model))
    return training is not None and training.state_weight > 0


def _privileged(venv: VecEnv) -> str | None:
    """What the Perceiver was trained with beside frames, as its contract says."""
    return venv.encoder.model.frame_contract.get(PRIVILEGED) if isinstance(venv, VecPerceiverContext) else None


def _offline_data(settings: TrainPolicySettings) -> list[dict] | None:
    """What the features were trained on, and what adaptations and the replay buffer add to it."""
    if not settings.reads_features:
        return []
    known = read_data_record(find_pretrained(settings.model))
    added = describe_datasets(_open((*data_paths(settings.adapt_data), *settings.prior_data)))
    if known is None:
        return None
    fingerprints = {entry["fingerprint"] for entry in known}
    return known + [entry for entry in added if entry["fingerprint"] not in fingerprints]


def _open(directories: Sequence[str]) -> list[RolloutDataset]:
    return deduplicate(map(RolloutDataset, directories))


def _fingerprint(venv: VecEnv) -> str | None:
    return venv.encoder.fingerprint if isinstance(venv, (VecPerceiverContext, VecFramePCA)) else None


def _say_result(policy: Path) -> Path:
    curve = policy.parent / CURVE_FILE
    for last in read_curve(curve)[-1:] if curve.is_file() else []:
        print(f"train-policy: {policy}, return {said_return(last.mean_return, last.std_return, len(last.returns))}")
    return policy
