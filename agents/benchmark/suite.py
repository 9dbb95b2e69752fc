"""The arena: tasks, protocol and one set of policy settings for every method that is compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agents.benchmark.features import BenchmarkFeatures
from agents.training.settings import Observation, TrainPolicySettings

DRQ_AT_100K = {
    "cartpole-swingup": 759,
    "reacher-easy": 601,
    "cheetah-run": 344,
    "walker-walk": 612,
    "ball_in_cup-catch": 913,
    "finger-spin": 901,
}
"""Returns of DrQ after 100k environment steps, as published (Kostrikov et al. 2020, https://arxiv.org/abs/2004.13649)."""
TASKS = tuple(DRQ_AT_100K)
POLICY = {
    "algorithm": "CrossQ",
    "learning_rate": 1e-3,
    "batch_size": 256,
    "net_arch": (256, 256),
    "learning_starts": 1000,
    "buffer_size": 100_000,
    "hyperparameters": {"ent_coef": "auto_0.1"},
}
"""CrossQ (Bhatt et al. 2024, https://arxiv.org/abs/1902.05605) is SAC with batch normalisation and without target
networks. In 100k steps from the true state of cheetah-run SAC learned a fifth as much (docs/recipe.md)."""
ADAPT = {"adapt_every": 10_000, "adapt_steps": 300, "adapt_learning_rate": 3e-4}
# May differ between machines.
INCIDENTAL = ("model", "adapt_data", "out", "device", "backend", "progress_bar", "record")
OF_A_RUN = ("task", "observation", "seed", "prior_data", *ADAPT, *INCIDENTAL)  # all else is the protocol


@dataclass(frozen=True)
class Method:
    """A way of seeing the task.

    Attributes:
        label: its name in tables and pictures.
        observation: what the policy sees.
        features: makes what `model` names for a task and seed, where the policy reads features.
        adapts: whether the model goes on learning on what the policy sees.
    """

    label: str
    observation: Observation
    features: Callable[[BenchmarkFeatures, str, int], str] | None = None
    adapts: bool = False


METHODS = {
    "context": Method("context, frozen", "context", BenchmarkFeatures.context),
    "adapted": Method("context, adapted", "context", BenchmarkFeatures.context, adapts=True),
    "state": Method("true state", "state"),
    "pixels": Method("pixels, CNN", "pixels"),
    "pca": Method("PCA of 3 frames", "pca", BenchmarkFeatures.pca),
    "random": Method("context, random weights", "context", BenchmarkFeatures.random),
}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How long a run is and how often it is evaluated. The defaults are DMControl-100k; others are for trying out."""

    total_frames: int = 100_000
    """Length of a run in frames: control steps of the simulator, that is agent steps times action repeat."""
    eval_every: int = 10_000
    """Frames between evaluations."""
    eval_episodes: int = 10
    """Episodes of an evaluation, with the deterministic policy."""

    def run(self, method: str, task: str, seed: int, **changes: Any) -> TrainPolicySettings:
        """The settings of one run; `changes` are those outside the protocol, such as `out`."""
        arguments: dict[str, Any] = {
            "task": task,
            "observation": METHODS[method].observation,
            "action_repeat": "planet",
            "render_quality": "smooth",
            "total_frames": self.total_frames,
            "eval_every": self.eval_every,
            "eval_episodes": self.eval_episodes,
            "seed": seed,
            **POLICY,
            **(ADAPT if METHODS[method].adapts else {}),
        }
        return TrainPolicySettings(**arguments | changes)

    def shared(self) -> dict[str, Any]:
        """The settings that all runs have in common, in plain values."""
        settings = asdict(self.run("state", TASKS[0], 0))
        return {name: value for name, value in settings.items() if name not in OF_A_RUN}


@dataclass(frozen=True)
class RunKey:
    """Which run it is."""

    method: str
    task: str
    seed: int

    def directory(self, root: Path) -> Path:
        """Where its files are."""
        return root / self.method / self.task / f"seed-{self.seed}"

    def __str__(self) -> str:
        return f"{self.method}, {self.task}, seed {self.seed}"
