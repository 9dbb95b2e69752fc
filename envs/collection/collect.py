"""Collecting rollouts: parallel, resumable, and the same whatever the number of workers."""

import dataclasses
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tqdm import tqdm

from envs.collection.pool import CollectionError, Messages, Worker, WorkerPool
from envs.collection.process_worker import ProcessWorker, num_cores, worker_variables
from envs.collection.settings import CollectSettings, dataset_meta, make_collection_env
from perceiver_obs.data.rollouts import RolloutDataset, RolloutWriter, whole_episodes
from perceiver_obs.files import remove_abandoned


def collect(settings: CollectSettings, *, progress: bool = True) -> RolloutDataset:
    """Collect the episodes that `settings.out` still lacks.

    Killed at any moment, it loses no more than the episodes being played; run again, it goes on. An episode is
    determined by `settings.seed` and its number, whatever the number of workers.

    Args:
        settings: what to collect; those of a dataset already there must be the same (`episodes`, `max_minutes`,
            `workers`, `compress`, `ray` and `stall_seconds` may differ).
        progress: show a progress bar with frames per second and the time left.

    Returns:
        The dataset, which may hold more episodes than asked for, if it did before, and fewer, if time was up.

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

        failures = pool.play(missing, on_frames=bar.update, on_done=shorten, max_minutes=settings.max_minutes)
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
    from envs.collection.ray_worker import RayWorker, ray_cluster

    def start_on_ray(number: int, messages: Messages) -> Worker:
        return RayWorker(f"worker {number}", settings, writer, messages)

    with ray_cluster(settings.ray) as cores:
        yield WorkerPool(start_on_ray, min(settings.workers or cores, max(episodes, 1)), settings.stall_seconds)
