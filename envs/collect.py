"""Collecting rollouts: parallel, resumable, and the same whatever the number of workers."""

import dataclasses
import hashlib
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from envs.dmc import DmcEnv
from envs.env_settings import EnvSettings
from envs.frame_observation import FrameObservation
from envs.policies import policy_parts
from envs.pool import CollectionError, Messages, Worker, WorkerPool
from envs.process_worker import ProcessWorker, num_cores, worker_variables
from envs.rollouts import RolloutDataset, RolloutWriter, whole_episodes
from perceiver_obs.files import remove_abandoned


@dataclass(frozen=True, kw_only=True)
class CollectSettings(EnvSettings):
    """Collect rollouts of a task or any environment with worker processes; goes on where it was stopped."""

    out: str = "runs/data"
    """Directory of the dataset. If it holds one collected with the same settings, only what is missing is added."""
    episodes: int = 100
    """Episodes the dataset is to have in the end."""
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
    ray: str | None = dataclasses.field(default=None, metadata={"alone": "auto"})
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
        if not self.stall_seconds > 0:
            raise ValueError(f"stall_seconds must be positive, got {self.stall_seconds!r}")


def collect(settings: CollectSettings, *, progress: bool = True) -> RolloutDataset:
    """Collect the episodes that `settings.out` still lacks.

    Killed at any moment, it loses no more than the episodes being played; run again, it goes on. An episode is
    determined by `settings.seed` and its number, whatever the number of workers.

    Args:
        settings: what to collect; those of a dataset already there must be the same (`episodes`, `workers`,
            `compress`, `ray` and `stall_seconds` may differ).
        progress: show a progress bar with frames per second and the time left.

    Returns:
        The dataset, which may hold more episodes than asked for, if it did before.

    Raises:
        ValueError: a setting is not valid, or (`RolloutError`) the directory holds a dataset with other settings.
        CollectionError: episodes failed again and again (the others are there, and running again retries), no worker
            could be set up, or the disk is full.
    """
    env = make_collection_env(settings)
    steps = settings.max_steps or env.max_steps
    if steps is None:
        raise ValueError(f"episodes of {settings.env_name} have no time limit that is known: give max_steps")
    writer = RolloutWriter(settings.out, dataset_meta(settings, env), compress=settings.compress)
    env.close()

    out = Path(settings.out)
    remove_abandoned(out / "episodes", re.compile(".*"))
    present = set(whole_episodes(out))
    missing = [index for index in range(settings.episodes) if index not in present]
    with ExitStack() as stack:
        pool = stack.enter_context(_worker_pool(settings, writer, len(missing)))
        bar = tqdm(
            total=len(missing) * (steps + 1), unit="frame", desc=f"collect {settings.env_name}", disable=not progress
        )
        stack.enter_context(bar)

        def shorten(index: int, frames: int) -> None:
            bar.total -= steps + 1 - frames  # for episodes that the task ended early

        failures = pool.play(missing, on_frames=bar.update, on_done=shorten)
    if failures:
        reasons = "\n".join(failures.values())
        raise CollectionError(
            f"{len(failures)} of {len(missing)} episodes could not be collected ({', '.join(map(str, failures))}); "
            f"the others are in {out}, and running again tries these once more.\n{reasons}"
        )
    return RolloutDataset(out)


@contextmanager
def _worker_pool(settings: CollectSettings, writer: RolloutWriter, episodes: int) -> Iterator[WorkerPool]:
    if settings.ray is None:
        workers = max(1, min(settings.workers or num_cores(), episodes))
        variables = worker_variables(num_cores() // workers)

        def start(number: int, messages: Messages) -> Worker:
            return ProcessWorker(f"worker {number}", dataclasses.asdict(settings), variables, messages)

        yield WorkerPool(start, workers, settings.stall_seconds)
        return
    from envs.ray_worker import RayWorker, ray_cluster

    def start_on_ray(number: int, messages: Messages) -> Worker:
        return RayWorker(f"worker {number}", settings, writer, messages)

    with ray_cluster(settings.ray) as cores:
        yield WorkerPool(start_on_ray, min(settings.workers or cores, max(episodes, 1)), settings.stall_seconds)


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
