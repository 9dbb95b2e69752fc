"""Settings of training runs that take seconds, datasets of noise, and the death of a run."""

from pathlib import Path

import numpy as np

from agents import TrainPolicySettings
from agents.training.policy_files import LearningCurve
from perceiver_obs.data.rollouts import RolloutWriter
from perceiver_obs.training.settings import TrainPredictorSettings, TrainTokenizerSettings


def tokenizer_settings(data: Path, out: Path, **changes) -> TrainTokenizerSettings:
    """Settings of a run that takes a second or two."""
    arguments = {
        "data": (str(data),),
        "out": str(out),
        "steps": 8,
        "batch_size": 4,
        "warmup_steps": 2,
        "evaluate_every": 100,
        "evaluation_clips": 8,
        "checkpoint_every": 3,
        "log_every": 1,
        "base_channels": 4,
        "code_dim": 8,
        "num_codes": 16,
        "device": "cpu",
    }
    return TrainTokenizerSettings(**(arguments | changes))


def predictor_settings(data: Path, tokenizer: Path, out: Path, **changes) -> TrainPredictorSettings:
    """Settings of a run that takes a second or two."""
    arguments = {
        "data": (str(data),),
        "tokenizer": str(tokenizer),
        "out": str(out),
        "steps": 6,
        "batch_size": 4,
        "warmup_steps": 2,
        "evaluate_every": 100,
        "evaluation_clips": 8,
        "checkpoint_every": 3,
        "log_every": 1,
        "clip_length": 8,
        "sequence_length": 4,
        "num_latents": 4,
        "num_latent_channels": 16,
        "num_cross_attention_heads": 2,
        "num_self_attention_layers": 1,
        "device": "cpu",
    }
    return TrainPredictorSettings(**(arguments | changes))


REPEAT = 50  # cartpole's episodes of 1000 control steps take 20 agent steps


def policy_settings(model: Path | str, out: Path, **changes) -> TrainPolicySettings:
    """Settings of a policy's run of 48 agent steps with two evaluations of one episode."""
    arguments = {
        "task": "cartpole-swingup",
        "model": str(model),
        "action_repeat": REPEAT,
        "render_quality": "fast",
        "device": "cpu",
        "total_frames": 48 * REPEAT,
        "eval_every": 24 * REPEAT,
        "eval_episodes": 1,
        "out": out,
        "learning_starts": 8,
        "batch_size": 8,
        "net_arch": (16,),
        "progress_bar": False,
    }
    return TrainPolicySettings(**(arguments | changes))


def rollout_meta(action_size: int, size: int, states: bool, task: str = "noise") -> dict:
    """Metadata of a dataset of noise."""
    contract = {
        "size": size,
        "channels": 3,
        "action_repeat": 2,
        "camera": 0,
        "render_quality": "fast",
        "tasks": [task],
    }
    names = ["position/x", "velocity/x"] if states else None
    env = {"id": "noise", "kwargs": {}}
    return {"env": env, "frame_contract": contract, "action_size": action_size, "state_names": names}


def write_dataset(
    path: Path,
    lengths: list[int],
    action_size: int = 2,
    size: int = 16,
    states: bool = False,
    spread: float = 1.0,
    task: str = "noise",
) -> Path:
    """A dataset of noise whose episodes have `lengths` steps, through the real writer; states deviate by `spread`."""
    random = np.random.default_rng(sum(lengths) + action_size)
    writer = RolloutWriter(path, rollout_meta(action_size, size, states, task))
    for index, steps in enumerate(lengths):
        writer.write_episode(
            index,
            random.integers(0, 256, (steps + 1, size, size, 3), dtype=np.uint8),
            random.uniform(-1, 1, (steps, action_size)).astype(np.float32),
            np.zeros(steps, np.float32),
            terminated=False,
            truncated=True,
            seed=index,
            policy="noise",
            states=random.normal(scale=spread, size=(steps + 1, 2)).astype(np.float32) if states else None,
        )
    return path


def kill_at_second_evaluation(monkeypatch) -> None:
    """Until `monkeypatch.undo()`, trainings of policies die between their second checkpoint and its curve point."""
    append = LearningCurve.append

    def die_at_the_second(curve, point):
        if curve.points:
            raise KeyboardInterrupt
        append(curve, point)

    monkeypatch.setattr(LearningCurve, "append", die_at_the_second)
