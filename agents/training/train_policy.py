"""`train_policy`: an SB3 policy on contexts, or on one of the baselines, resumable at any time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from agents.adaptation.adapt_context import AdaptContext
from agents.adaptation.prior_rollouts import add_rollouts
from agents.policies.algorithms import CHOOSES_BUFFER, algorithm_class, fitting_algorithm, make_algorithm
from agents.policies.frozen_perceiver import check_fingerprint
from agents.training.adapt_run import adapted_record, adapts_to_states, make_adapt
from agents.training.evaluate import said_return
from agents.training.follow_training import FollowTraining
from agents.training.learning_curve import CURVE_FILE, LearningCurve, read_curve
from agents.training.policy_env import make_policy_env
from agents.training.policy_files import (
    PERCEIVER_DIRECTORY,
    POLICY_FILE,
    REPLAY_FILE,
    Checkpoints,
    PolicyRecord,
    made_with,
    save_policy,
    setting_changes,
    step_of,
)
from agents.training.run_lock import only_trainer
from agents.training.settings import RESUMABLE, TrainPolicySettings, recorded_settings
from agents.wrappers.vec_context import VecPerceiverContext
from agents.wrappers.vec_pca import VecFramePCA
from perceiver_obs.data.data_record import describe_datasets, read_data_record
from perceiver_obs.data.rollouts import RolloutDataset, deduplicate
from perceiver_obs.data.splits import data_paths
from perceiver_obs.hub import find_pretrained
from perceiver_obs.training.objective import PRIVILEGED


def train_policy(settings: TrainPolicySettings) -> Path:
    """Trains a policy and returns the path of its `policy.zip`.

    Beside it the run leaves `policy.json` (settings, and the Perceiver's fingerprint), `curve.jsonl` (a line
    an evaluation), `tensorboard/`, and `checkpoints/` with the newest checkpoint. A run that was killed
    resumes from that one; a finished run returns at once, or goes on where `total_frames` has grown (its replay
    buffer keeps its size, so holds the newest transitions only). With `adapt_every` the adapted Perceiver lies in
    `perceiver/`, and checkpoints hold all frames that the policy saw (12 kB each at 64×64).

    Raises:
        ValueError: a setting is out of range, the algorithm is unknown, or the directory holds a run with
            other settings.
        WrongPerceiver: the directory holds a run on another Perceiver's contexts.
        RunInUse: another process is training in the directory.
    """
    settings = replace(settings, algorithm=_algorithm(settings))
    _check(settings)
    settings.out.mkdir(parents=True, exist_ok=True)
    with only_trainer(settings.out):
        return _train(settings)


def _train(settings: TrainPolicySettings) -> Path:
    checkpoints = Checkpoints(settings.out / "checkpoints")
    checkpoint = checkpoints.latest()
    venv = make_policy_env(settings, settings.num_envs, settings.record, state_in_info=adapts_to_states(settings))
    try:
        record = PolicyRecord(
            _named(settings),
            asdict(settings),
            _fingerprint(venv),
            _offline_data(settings),
            made_with(settings.device),
            privileged=venv.encoder.model.frame_contract.get(PRIVILEGED)
            if isinstance(venv, VecPerceiverContext)
            else None,
        )
        if checkpoint is not None:
            before = PolicyRecord.load(settings.out)
            _check_same_run(before, record, settings.out)
            # The policy of a shorter run stays usable until the longer one ends.
            record = replace(record, fingerprint=before.fingerprint, adaptation=before.adaptation)
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
        adapt = _learn(settings, algorithm, total_steps, checkpoints, repeat)
        if adapt is not None:
            policy_file.unlink(missing_ok=True)  # never beside a Perceiver that it was not trained with
            adapt.save_perceiver(settings.out / PERCEIVER_DIRECTORY)
            adapted_record(record, adapt).save(settings.out)
        return _say_result(save_policy(algorithm, settings.out))
    finally:
        venv.close()


def _say_result(policy: Path) -> Path:
    curve = policy.parent / CURVE_FILE
    for last in read_curve(curve)[-1:] if curve.is_file() else []:
        print(f"train-policy: {policy}, return {said_return(last.mean_return, last.std_return, len(last.returns))}")
    return policy


def _learn(
    settings: TrainPolicySettings,
    algorithm: BaseAlgorithm,
    total_steps: int,
    checkpoints: Checkpoints,
    action_repeat: int,
) -> AdaptContext | None:
    """Trains to the end, and returns what adapted the Perceiver, if anything did."""
    evaluation_venv = make_policy_env(settings, settings.num_envs)
    curve = LearningCurve(settings.out / CURVE_FILE, algorithm.num_timesteps)
    try:
        adapt = None
        if settings.adapt_every is not None:
            adapt = make_adapt(settings, evaluation_venv, action_repeat)
            if (checkpoint := checkpoints.latest()) is not None:
                adapt.load(checkpoint)
        follow = FollowTraining(settings, evaluation_venv, curve, checkpoints, action_repeat, adapt)
        algorithm.learn(
            max(0, total_steps - algorithm.num_timesteps),
            callback=[follow] if adapt is None else [follow, adapt],
            reset_num_timesteps=False,
            tb_log_name=_named(settings),
            progress_bar=settings.progress_bar,
        )
        return adapt
    finally:
        evaluation_venv.close()


def _new(settings: TrainPolicySettings, venv: VecEnv, total_steps: int) -> BaseAlgorithm:
    prior = sum(dataset.num_frames for dataset in _open(settings.prior_data))
    algorithm = make_algorithm(
        _named(settings),
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
    algorithm = algorithm_class(_named(settings)).load(
        checkpoint / POLICY_FILE,
        env=venv,
        device=settings.device,
        # AdaptContext is about to bring the Perceiver that the policy was saved with.
        custom_objects=CHOOSES_BUFFER | ({"observation_space": venv.observation_space} if settings.adapt_every else {}),
        tensorboard_log=str(settings.out / "tensorboard"),
    )
    if isinstance(algorithm, OffPolicyAlgorithm):
        algorithm.load_replay_buffer(checkpoint / REPLAY_FILE)
    # The seed itself would play the run's first episodes and exploration again.
    algorithm.set_random_seed(settings.seed + algorithm.num_timesteps)
    return algorithm


def _open(directories: Sequence[str]) -> list[RolloutDataset]:
    return deduplicate(map(RolloutDataset, directories))


def _fingerprint(venv: VecEnv) -> str | None:
    return venv.encoder.fingerprint if isinstance(venv, (VecPerceiverContext, VecFramePCA)) else None


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


def _algorithm(settings: TrainPolicySettings) -> str:
    """The algorithm of a run; ValueError where it cannot train in the environment."""
    if settings.algorithm is not None:
        algorithm_class(settings.algorithm)
    if settings.env is None:
        return fitting_algorithm(settings.algorithm, spaces.Box(-1, 1), settings.task)  # as all tasks take
    env = settings.make_env(state_in_info=False)
    env.close()
    return fitting_algorithm(settings.algorithm, env.action_space, settings.env)


def _named(settings: TrainPolicySettings) -> str:
    assert settings.algorithm is not None  # chosen as training begins
    return settings.algorithm


def _check(settings: TrainPolicySettings) -> None:
    positive = ("total_frames", "eval_every", "eval_episodes", "num_envs", "batch_size", "buffer_size")
    for name in positive:
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} must be 1 or more, got {getattr(settings, name)}")
    for name, given in (("adapt_every", settings.adapt_every is not None), ("prior_data", bool(settings.prior_data))):
        if given and settings.observation != "context":
            raise ValueError(f'{name} needs the observation "context", got {settings.observation!r}')
        if given and not issubclass(algorithm_class(_named(settings)), OffPolicyAlgorithm):
            raise ValueError(f"{name} needs an algorithm with a replay buffer such as SAC, got {settings.algorithm}")
    if settings.adapt_every is None:
        return
    for name in ("adapt_every", "adapt_steps"):
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} must be 1 or more, got {getattr(settings, name)}")


def _check_same_run(before: PolicyRecord, now: PolicyRecord, out: Path) -> None:
    changes = setting_changes(recorded_settings(before.settings), now.settings, RESUMABLE)
    if changes:
        raise ValueError(f"{out} holds a run with other settings ({changes}); choose another out directory")
    check_fingerprint(now.began_with, before.began_with, f"the run in {out}")
