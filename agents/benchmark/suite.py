"""The benchmark: tasks, protocol and one algorithm for every method that is compared."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal

from agents.training.settings import Observation, TrainPolicySettings
from envs.env_settings import EnvSettings, OwnEnvSettings, file_name
from perceiver_obs.settings import resumable_names, settings_to_dict

SUITE = "dmc100k"
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
ALGORITHM = "CrossQ"
"""For all methods, pixels too. CrossQ (Bhatt et al. 2024, https://arxiv.org/abs/1902.05605) is SAC with batch
normalisation and without target networks. In 100k steps from the true state of cheetah-run SAC learned a fifth as much
(docs/recipe.md)."""
ADAPT = {"adapt_every": 10_000, "adapt_steps": 300, "adapt_learning_rate": 3e-4}
ADAPTATIONS = 10  # in a run
OF_THE_SUITE = {"total_frames", "eval_every", "eval_episodes"}  # of the protocol; its other settings are for --env
OF_A_RUN = {"task", "observation", "seed", "prior_data", *ADAPT}


@dataclass(frozen=True)
class Method:
    """A way of seeing the task.

    Attributes:
        label: its name in tables and pictures.
        observation: what the policy sees.
        features: the method of `BenchmarkFeatures` that makes what `model` names for a task and seed, where the policy
            reads features.
        adapts: whether the model goes on learning on what the policy sees.
    """

    label: str
    observation: Observation
    features: Literal["context", "privileged", "pca", "random"] | None = None
    adapts: bool = False


METHODS = {
    "context": Method("context, frozen", "context", "context"),
    "adapted": Method("context, adapted", "context", "context", adapts=True),
    "state": Method("true state", "state"),
    "pixels": Method("pixels, CNN", "pixels"),
    "pca": Method("PCA of 3 frames", "pca", "pca"),
    "random": Method("context, random weights", "context", "random"),
    "privileged": Method("context, trained on states", "context", "privileged"),
}


@dataclass(frozen=True, kw_only=True)
class Protocol(OwnEnvSettings):
    """What is run, how long a run is and how often it is evaluated. The defaults are DMControl-100k; others are for
    trying out, and for one environment of one's own."""

    action_repeat: int | None = None
    """Environment steps that an action lasts, with --env. None: 1."""
    algorithm: str | None = None
    """With --env, algorithm of SB3 or sb3_contrib for all methods, pixels too. None: CrossQ; with Discrete actions
    DQN, with other choices PPO."""
    total_frames: int = 100_000
    """Length of a run in frames: control steps of the simulator, that is agent steps times action repeat."""
    eval_every: int = 10_000
    """Frames between evaluations."""
    eval_episodes: int = 10
    """Episodes of an evaluation, with the deterministic policy."""

    def run(self, method: str, task: str, seed: int, **changes: Any) -> TrainPolicySettings:
        """The settings of one run; `changes` are those outside the protocol, such as `out`."""
        arguments: dict[str, Any] = {
            **self.env_settings(task),
            "observation": METHODS[method].observation,
            "total_frames": self.total_frames,
            "eval_every": self.eval_every,
            "eval_episodes": self.eval_episodes,
            "seed": seed,
            **(self._adapt if METHODS[method].adapts else {}),
        }
        return TrainPolicySettings(**arguments | changes).completed(self._facts.algorithm)

    def env_settings(self, task: str) -> dict[str, Any]:
        """The environment of a task, as `EnvSettings` have it."""
        if self.env is None:
            return {"task": task, "action_repeat": "planet", "render_quality": "smooth"}
        names = ("action_repeat", *(field.name for field in fields(OwnEnvSettings)))
        return {name: getattr(self, name) for name in names}

    @property
    def name(self) -> str:
        """The suite's, or the environment's as directories and files have it."""
        return SUITE if self.env is None else file_name(self.env)

    @property
    def known_tasks(self) -> tuple[str, ...]:
        """The suite's, or the one environment."""
        return TASKS if self.env is None else (self.name,)

    @property
    def left_out(self) -> dict[str, str]:
        """Methods that the environment leaves no way to, each with the reason."""
        facts, out = self._facts, {}
        if self.env is not None:
            out["privileged"] = "the bundled model of states has not seen it; give one of your own as the model"
        if not facts.has_state:
            out["state"] = "it shows no state beside its frames"
        if not facts.has_replay_buffer:
            out["adapted"] = f"{facts.algorithm} has no replay buffer"
        return out

    @property
    def _facts(self) -> EnvFacts:
        if self.env is None:
            return EnvFacts(ALGORITHM, has_replay_buffer=True, has_state=True)
        return _env_facts(EnvSettings(**self.env_settings(self.name)), self.algorithm)

    @property
    def _adapt(self) -> dict[str, Any]:
        """Of shorter runs as many adaptations as of one of the suite."""
        return ADAPT if self.env is None else {**ADAPT, "adapt_every": max(1, self.total_frames // ADAPTATIONS)}

    def shared(self) -> dict[str, Any]:
        """The settings that all runs have in common, as JSON holds them."""
        settings = self.run("state", self.known_tasks[0], 0)
        of_a_run = OF_A_RUN | (resumable_names(settings) - self.fixed)
        return {name: value for name, value in settings_to_dict(settings).items() if name not in of_a_run}

    @property
    def fixed(self) -> set[str]:
        """Settings that a run may be resumed with anew, but not one of the benchmark."""
        return {field.name for field in fields(Protocol)}


@dataclass(frozen=True)
class EnvFacts:
    """What an environment's spaces decide: the algorithm, and whether there is a state to learn from."""

    algorithm: str
    has_replay_buffer: bool
    has_state: bool


@cache
def _env_facts(settings: EnvSettings, algorithm: str | None) -> EnvFacts:
    # Here, as settings are read without SB3.
    from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

    from agents.policies.algorithms import algorithm_class, fitting_algorithm

    env = settings.make_env(state_in_info=True)
    env.close()
    name = fitting_algorithm(algorithm, env.action_space, settings.env_name)
    return EnvFacts(name, issubclass(algorithm_class(name), OffPolicyAlgorithm), bool(env.state_names))


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
