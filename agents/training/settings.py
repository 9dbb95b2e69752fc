"""Settings of `fit`, `train-policy` and `evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from envs.env_settings import EnvSettings
from perceiver_obs.settings import Backend, resumable

Observation = Literal["context", "state", "pixels", "pca"]


@dataclass(frozen=True, kw_only=True)
class PolicyEnvSettings(EnvSettings):
    """An environment and how the policy sees it."""

    observation: Observation = "context"
    """What the policy sees: "context" (the Perceiver's) or a baseline, "state" (the true state; with --env what
    is observed beside the frames),
    "pixels" (three stacked frames, for a CNN) or "pca" (principal components of three stacked frames)."""
    model: str = resumable("dmc-small")
    """Perceiver that makes the contexts: bundled name, directory, or "hf://owner/name" of the hub.
    For "pca", the directory of a fitted projection; "state" and "pixels" need none."""
    device: str = resumable("auto")
    """Where the Perceiver and the policy run: "auto", "cpu", "cuda" ..."""
    backend: Backend = resumable("auto")
    """What computes contexts: "torch", "onnx" for ONNX Runtime on the CPU, or "auto", which takes that on a CPU."""

    @property
    def reads_features(self) -> bool:
        """Whether `model` stands between the frames and the policy."""
        return self.observation in ("context", "pca")


@dataclass(frozen=True, kw_only=True)
class TrainPolicySettings(PolicyEnvSettings):
    """Train a policy on contexts or on a baseline, evaluated on the way; goes on where it was stopped."""

    algorithm: str | None = None
    """Algorithm of stable_baselines3 ("SAC", "PPO" ...) or sb3_contrib ("CrossQ", "TQC" ...).
    None: CrossQ, and SAC on pixels; with Discrete actions DQN, with other choices PPO."""
    total_frames: int = resumable(200_000)
    """Length of the training in frames: control steps, that is agent steps times action repeat."""
    eval_every: int = resumable(10_000)
    """Frames between evaluations, which are also the checkpoints."""
    eval_episodes: int = resumable(5)
    """Episodes of an evaluation, with the deterministic policy."""
    out: Path = resumable(Path("runs/policy"))
    """Directory of the run. If it holds a run with these settings, that is resumed."""
    seed: int = 0
    """Seed of networks, exploration and environments."""
    num_envs: int = 1
    """Environments run side by side, each in a process of its own."""
    learning_rate: float | None = None
    """Learning rate of all the algorithm's optimisers. None: 1e-3 for CrossQ, 3e-4 for all others."""
    batch_size: int = 256
    """Transitions a gradient step."""
    net_arch: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of policy and value networks."""
    learning_starts: int = 1000
    """Agent steps with random actions before the first gradient step (algorithms with a replay buffer)."""
    buffer_size: int = 100_000
    """Transitions the replay buffer holds; stacked pixels take about 75 kB each."""
    hyperparameters: dict[str, int | float | str] = field(default_factory=dict)
    """Further arguments of the algorithm, as "--hyperparameters gamma 0.98 tau 0.01". CrossQ has ent_coef auto_0.1
    unless it is given here."""
    adapt_every: int | None = None
    """Frames between adaptations, in which the Perceiver goes on learning on what the policy has seen.
    For observation "context" and algorithms with a replay buffer. None leaves the Perceiver as it is."""
    adapt_steps: int = 300
    """Gradient steps of an adaptation."""
    adapt_learning_rate: float = 3e-4
    """Learning rate of adaptations."""
    adapt_data: tuple[str, ...] = resumable(())
    """Rollout directories that adaptations mix in, best those that the Perceiver was trained on; runs/data=2 is drawn
    from twice as often as the others."""
    prior_data: tuple[str, ...] = ()
    """Rollout directories that the replay buffer begins with, of the task and with frames as the policy sees them.
    For observation "context" and algorithms with a replay buffer."""
    record: Path | None = resumable(None)
    """Directory for the episodes that the policy trains on, as rollouts with states: data for a Perceiver that
    knows where policies go. None keeps none."""
    progress_bar: bool = resumable(True)
    """Show a progress bar with agent steps per second and time left."""

    def completed(self, algorithm: str, begun_with: Mapping[str, Any] | None = None) -> TrainPolicySettings:
        """With what was left open: as the run was begun, if it was, else what learned fastest with the algorithm."""
        crossq = algorithm == "CrossQ"  # measured in docs/recipe.md
        rate, more = (1e-3, {"ent_coef": "auto_0.1"}) if crossq else (3e-4, {})
        if begun_with is not None:
            rate, more = begun_with["learning_rate"], begun_with["hyperparameters"]
        return replace(
            self,
            algorithm=algorithm,
            learning_rate=rate if self.learning_rate is None else self.learning_rate,
            hyperparameters={**more, **self.hyperparameters},
        )


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Evaluate a trained policy on fresh episodes."""

    policy: Path = Path("runs/policy")
    """Directory that train-policy wrote, or the policy.zip in it."""
    episodes: int = 10
    """Number of episodes."""
    seed: int = 2_000_000
    """Seed of the episodes' starts; training evaluates on others."""
    num_envs: int = 1
    """Environments run side by side, each in a process of its own."""
    deterministic: bool = True
    """Take the policy's most likely action instead of a sample."""
    model: str | None = None
    """Where the Perceiver's checkpoint lies now, if not where it lay in training. It must be the same one."""
    device: str = "auto"
    """Where the Perceiver and the policy run: "auto", "cpu", "cuda" ..."""
    out: Path | None = None
    """JSON file of the result; None for evaluation.json beside the policy."""
    record: Path | None = None
    """Directory that the episodes are added to as rollouts with states, for the on-policy part of a probe or for
    training. None keeps none."""


@dataclass(frozen=True, kw_only=True)
class FitSettings(EnvSettings):
    """Make a Perceiver for an environment in a given time: collect, train, probe, report. Goes on where it was
    stopped."""

    out: Path = resumable(Path("runs/fit"))
    """Directory of all that is made; the model lies in `model`."""
    minutes: float = 20.0
    """Time for it all, on this machine."""
    policy: str = "mixed"
    """What acts while episodes are collected, as in `collect`."""
    max_steps: int | None = None
    """Environment steps after which an episode is cut off; None for the time limit of the environment."""
    data: tuple[Path, ...] = ()
    """Directories of recordings to train on in place of collecting."""
    begin_with: str | None = None
    """Model to go on from, with its tokenizer as it is (bundled name, directory or "hf://owner/name"). None: a new
    Perceiver, and a tokenizer that goes on from that of dmc-small."""
    seed: int = 0
    """Seed of episodes, weights and every random choice."""

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise ValueError(f"minutes must be positive, got {self.minutes}")
