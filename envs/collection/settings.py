"""Settings of `collect`, and the environment and metadata of the dataset that they ask for."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.constructors import PrimitiveConstructorSpec

from envs.collection.named_policies import policy_parts
from envs.dmc.environment import DmcEnv
from envs.env_settings import EnvSettings
from envs.frame_observation import FrameObservation


def _address(given: str = "auto", *more: str) -> str | None:
    """An address from the command line, where the option alone is "auto"."""
    if more:
        raise ValueError(f"one address is expected, got {given} {' '.join(more)}")
    return None if given == "None" else given


ClusterAddress = Annotated[
    str | None,
    PrimitiveConstructorSpec(
        nargs=(0, 1),
        metavar="[ADDRESS]",
        instance_from_str=lambda given: _address(*given),
        is_instance=lambda value: value is None or isinstance(value, str),
        str_from_instance=lambda value: [str(value)],
    ),
]


@dataclass(frozen=True, kw_only=True)
class CollectSettings(EnvSettings):
    """Collect rollouts of a task or any environment with worker processes; goes on where it was stopped."""

    out: str = "runs/data"
    """Directory of the dataset. If it holds one collected with the same settings, only what is missing is added."""
    episodes: int = 100
    """Episodes the dataset is to have in the end."""
    max_minutes: float | None = None
    """Minutes after which no further episode is begun, even if some are missing. None: no limit."""
    max_steps: int | None = None
    """Environment steps after which an episode is cut off; None for the time limit of the environment."""
    policy: str = "mixed"
    """What acts: "random" (uniform), "correlated" (noise, from calm to wild; choices that last) or
    "mixed" (one of them each episode). Also the .zip of a Stable-Baselines3 policy (load only what you trust: it holds
    pickles) or a "module:Class".
    Several of these, with commas between, are drawn from for each episode."""
    random_init: bool = False
    """Start from random poses in motion, rather than from the task's own starts. For tasks."""
    states: bool = True
    """Record the true state beside the frames, for probes. With --env it is what is observed beside the frames, or
    instead of them."""
    compress: bool = False
    """Compress frames without loss (zstd): less disk, slower reading."""
    workers: int = 0
    """Worker processes; 0 for one on each core."""
    ray: ClusterAddress = None
    """Let workers be actors of the Ray cluster at this address, on all of its machines.
    "auto" (or the option alone) is the cluster that this machine belongs to, "local" one of this machine's own.
    None: processes of this machine."""
    seed: int = 0
    """Seed of the dataset: it and an episode's number determine the episode."""
    stall_seconds: float = 120.0
    """A worker silent for longer is replaced, and its episode played again."""

    def __post_init__(self):
        for name, low in (("episodes", 1), ("workers", 0), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < low:
                raise ValueError(f"{name} must be an integer of {low} or more, got {value!r}")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps must be 1 or more, or None, got {self.max_steps!r}")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ValueError(f"max_minutes must be positive, or None, got {self.max_minutes!r}")
        if not self.stall_seconds > 0:
            raise ValueError(f"stall_seconds must be positive, got {self.stall_seconds!r}")


def make_collection_env(settings: CollectSettings) -> DmcEnv | FrameObservation:
    """The environment that episodes are played in, with the true state in `info`."""
    policy_parts(settings.policy)
    if settings.random_init and settings.env is not None:
        raise ValueError(f"random_init works for dm_control tasks only, not for {settings.env}")
    return settings.make_env(state_in_info=True)


def dataset_meta(settings: CollectSettings, env: DmcEnv | FrameObservation) -> dict[str, Any]:
    """The metadata of the dataset that `settings` ask for: all that determines its episodes."""
    parts = policy_parts(settings.policy)
    return {
        **env.rollout_meta(settings.states),
        "collection": {
            "policy": parts,
            "policy_sha256": {part: _sha256(part) for part in parts if part.endswith(".zip")},
            "max_steps": settings.max_steps,
            "random_init": settings.random_init,
            "seed": settings.seed,
        },
    }


def _sha256(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
