"""What goes on beside the training of a policy: evaluations, the learning curve, checkpoints."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from agents.adaptation.adapt_context import AdaptContext
from agents.training.evaluate import play_episodes, said_return
from agents.training.policy_files import Checkpoints, CurvePoint, LearningCurve

if TYPE_CHECKING:
    from agents.training.settings import TrainPolicySettings

EVALUATION_SEED = 1_000_000  # far from the seeds of training, so that no start is shared


class FollowTraining(BaseCallback):
    """Evaluates the policy at intervals, extends the learning curve, and stores a checkpoint each time.

    Args:
        settings: of the training.
        venv: to evaluate in.
        curve: to extend.
        checkpoints: where they go.
        action_repeat: control steps of an agent step.
        adapt: is stored with them. It must be called after this callback: SB3 stores a step's transition after its
            callbacks, so that a checkpoint lacks the newest, and its frames must not be among those kept.
    """

    def __init__(
        self,
        settings: TrainPolicySettings,
        venv: VecEnv,
        curve: LearningCurve,
        checkpoints: Checkpoints,
        action_repeat: int,
        adapt: AdaptContext | None = None,
    ) -> None:
        super().__init__()
        self._settings = settings
        self._venv = venv
        self._curve = curve
        self._checkpoints = checkpoints
        self._action_repeat = action_repeat
        self._adapt = adapt
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
        self._checkpoints.save(self.model, None if self._adapt is None else self._adapt.save)
        self._curve.append(point)
        said = said_return(point.mean_return, point.std_return, len(returns))
        print(f"train-policy: after {point.steps:,} steps return {said}", flush=True)
