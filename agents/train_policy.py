"""`train_policy`: an SB3 policy on contexts, or on one of the baselines, resumable at any time."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from agents.algorithms import algorithm_class, make_algorithm
from agents.episodes import play_episodes
from agents.fingerprint import check_fingerprint
from agents.learning_curve import CURVE_FILE, CurvePoint, LearningCurve
from agents.policy_env import PolicyEnvSettings, make_policy_env
from agents.policy_files import POLICY_FILE, REPLAY_FILE, Checkpoints, PolicyRecord, save_policy, step_of

EVALUATION_SEED = 1_000_000  # far from the seeds of training, so that no start is shared
_MAY_CHANGE = {"total_frames", "out", "device", "progress_bar", "eval_every", "eval_episodes", "model"}


@dataclass(frozen=True, kw_only=True)
class TrainPolicySettings(PolicyEnvSettings):
    """How a policy is trained."""

    algorithm: str = "SAC"
    """Algorithm of stable_baselines3 ("SAC", "PPO", "TD3" ...) or of sb3_contrib where installed ("TQC"
    ...)."""
    total_frames: int = 200_000
    """Length of the training in frames: control steps, that is agent steps times action repeat."""
    eval_every: int = 10_000
    """Frames between evaluations, which are also the checkpoints."""
    eval_episodes: int = 5
    """Episodes of an evaluation, with the deterministic policy."""
    out: Path = Path("runs/policy")
    """Directory of the run. If it holds a run with these settings, that is resumed."""
    seed: int = 0
    """Seed of networks, exploration and environments."""
    num_envs: int = 1
    """Environments run side by side, each in a process of its own."""
    learning_rate: float = 3e-4
    """Learning rate of all the algorithm's optimisers."""
    batch_size: int = 256
    """Transitions a gradient step."""
    net_arch: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of policy and value networks."""
    learning_starts: int = 1000
    """Agent steps with random actions before the first gradient step (algorithms with a replay buffer)."""
    buffer_size: int = 100_000
    """Transitions the replay buffer holds; stacked pixels take about 75 kB each."""
    hyperparameters: dict[str, int | float | str] = field(default_factory=dict)
    """Further arguments of the algorithm, as "--hyperparameters gamma 0.98 tau 0.01"."""
    progress_bar: bool = True
    """Show a progress bar with agent steps per second and time left."""


def train_policy(settings: TrainPolicySettings) -> Path:
    """Trains a policy and returns the path of its `policy.zip`.

    Beside it the run leaves `policy.json` (settings, and the Perceiver's fingerprint), `curve.jsonl` (a line
    an evaluation), `tensorboard/`, and `checkpoints/` with the newest checkpoint. A run that was killed
    resumes from that one; a finished run returns at once, or goes on where `total_frames` has grown.

    Raises:
        ValueError: a setting is out of range, the algorithm is unknown, or the directory holds a run with
            other settings.
        WrongPerceiver: the directory holds a run on another Perceiver's contexts.
    """
    _check(settings)
    settings.out.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(settings.out / "checkpoints")
    checkpoint = checkpoints.latest()
    venv = make_policy_env(settings, settings.num_envs)
    try:
        record = PolicyRecord(settings.algorithm, asdict(settings), _fingerprint(venv, settings))
        if checkpoint is not None:
            _check_same_run(PolicyRecord.load(settings.out), record, settings.out)
        repeat = venv.get_attr("frame_contract", 0)[0]["action_repeat"]
        total_steps = max(1, settings.total_frames // repeat)
        policy_file = settings.out / POLICY_FILE
        if checkpoint is not None and step_of(checkpoint) >= total_steps and policy_file.exists():
            return policy_file
        if checkpoint is None:
            algorithm = _new(settings, venv, total_steps)
        else:
            algorithm = _resumed(settings, venv, checkpoint)
        record.save(settings.out)
        _learn(settings, algorithm, total_steps, checkpoints, repeat)
        return save_policy(algorithm, settings.out)
    finally:
        venv.close()


def _learn(
    settings: TrainPolicySettings,
    algorithm: BaseAlgorithm,
    total_steps: int,
    checkpoints: Checkpoints,
    action_repeat: int,
) -> None:
    evaluation_venv = make_policy_env(settings, settings.num_envs)
    curve = LearningCurve(settings.out / CURVE_FILE, algorithm.num_timesteps)
    try:
        algorithm.learn(
            max(0, total_steps - algorithm.num_timesteps),
            callback=FollowTraining(settings, evaluation_venv, curve, checkpoints, action_repeat),
            reset_num_timesteps=False,
            tb_log_name=settings.algorithm,
            progress_bar=settings.progress_bar,
        )
    finally:
        evaluation_venv.close()


class FollowTraining(BaseCallback):
    """Evaluates the policy at intervals, extends the learning curve, and stores a checkpoint each time."""

    def __init__(
        self,
        settings: TrainPolicySettings,
        venv: VecEnv,
        curve: LearningCurve,
        checkpoints: Checkpoints,
        action_repeat: int,
    ) -> None:
        super().__init__()
        self._settings = settings
        self._venv = venv
        self._curve = curve
        self._checkpoints = checkpoints
        self._action_repeat = action_repeat
        self._began = time.monotonic()
        self._seconds_before = curve.points[-1].seconds if curve.points else 0.0

    def _on_step(self) -> bool:
        every = max(1, self._settings.eval_every // self._action_repeat)
        done = self._curve.points[-1].steps if self._curve.points else 0
        if self.num_timesteps // every > done // every:
            self._evaluate()
        return True

    def _on_training_end(self) -> None:
        if not self._curve.points or self._curve.points[-1].steps < self.num_timesteps:
            self._evaluate()

    def _evaluate(self) -> None:
        settings = self._settings
        returns, lengths = play_episodes(
            self.model, self._venv, settings.eval_episodes, seed=settings.seed + EVALUATION_SEED
        )
        point = CurvePoint(
            frames=self.num_timesteps * self._action_repeat,
            steps=self.num_timesteps,
            mean_return=float(np.mean(returns)),
            std_return=float(np.std(returns)),
            returns=returns,
            seconds=self._seconds_before + time.monotonic() - self._began,
        )
        self.logger.record("eval/mean_return", point.mean_return)
        self.logger.record("eval/std_return", point.std_return)
        self.logger.record("eval/mean_length", float(np.mean(lengths)))
        self.logger.record("time/frames", point.frames)
        self.logger.dump(self.num_timesteps)
        # The checkpoint first: a curve that lacks its last point is measured again, one that is ahead is cut.
        self._checkpoints.save(self.model)
        self._curve.append(point)


def _new(settings: TrainPolicySettings, venv: VecEnv, total_steps: int) -> BaseAlgorithm:
    return make_algorithm(
        settings.algorithm,
        venv,
        policy="CnnPolicy" if settings.observation == "pixels" else "MlpPolicy",
        net_arch=list(settings.net_arch),
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        off_policy={
            "buffer_size": min(settings.buffer_size, total_steps),
            "learning_starts": settings.learning_starts,
        },
        hyperparameters=settings.hyperparameters,
        seed=settings.seed,
        device=settings.device,
        tensorboard_log=str(settings.out / "tensorboard"),
    )


def _resumed(settings: TrainPolicySettings, venv: VecEnv, checkpoint: Path) -> BaseAlgorithm:
    algorithm = algorithm_class(settings.algorithm).load(
        checkpoint / POLICY_FILE,
        env=venv,
        device=settings.device,
        tensorboard_log=str(settings.out / "tensorboard"),
    )
    if isinstance(algorithm, OffPolicyAlgorithm):
        algorithm.load_replay_buffer(checkpoint / REPLAY_FILE)
    # The seed itself would play the run's first episodes and exploration again.
    algorithm.set_random_seed(settings.seed + algorithm.num_timesteps)
    return algorithm


def _fingerprint(venv: VecEnv, settings: TrainPolicySettings) -> str | None:
    return venv.encoder.fingerprint if settings.observation == "context" else None  # type: ignore[attr-defined]


def _check(settings: TrainPolicySettings) -> None:
    algorithm_class(settings.algorithm)
    positive = ("total_frames", "eval_every", "eval_episodes", "num_envs", "batch_size", "buffer_size")
    for name in positive:
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} must be 1 or more, got {getattr(settings, name)}")


def _check_same_run(before: PolicyRecord, now: PolicyRecord, out: Path) -> None:
    old, new = _comparable(before.settings), _comparable(now.settings)
    changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if changed:
        listed = ", ".join(f"{name} was {old.get(name)!r}, is {new.get(name)!r}" for name in changed)
        raise ValueError(f"{out} holds a run with other settings ({listed}); choose another out directory")
    check_fingerprint(now.fingerprint, before.fingerprint, f"the run in {out}")


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as JSON holds them, without those that may change between parts of a run."""
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    return {name: value for name, value in listed.items() if name not in _MAY_CHANGE}
