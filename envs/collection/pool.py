"""Workers that play episodes; one that dies, fails or hangs is replaced and its episode played again."""

import contextlib
import errno
import logging
import math
import queue
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

_log = logging.getLogger(__name__)
_ATTEMPTS = 3  # at each episode: one, and two more on replacement workers; and at starting a worker
_START_SECONDS = 120.0  # importing MuJoCo and SB3 on a busy machine takes its time
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class CollectionError(RuntimeError):
    """Episodes could not be collected; the message says which, and why."""


class Worker(ABC):
    """Plays one episode at a time, somewhere.

    It puts what it has to say into `messages` as `(worker, message)`, a message being one of
    `envs.collection.worker`, and None when it has ended, however that came.
    """

    def __init__(self, name: str):
        self.name = name
        self.ready = False
        self.stopped = False
        self.episode: int | None = None
        self.failed = False  # of an exception, rather than killed or hung
        self.end: str | None = None  # how it ended, where that is known
        self.errno: int | None = None
        self.heard_at = time.monotonic()

    @abstractmethod
    def play(self, episode: int) -> None:
        """Begins to play an episode."""

    @abstractmethod
    def stop(self) -> None:
        """Lets it end; there is no more to do."""

    @abstractmethod
    def kill(self) -> None:
        """Ends it at once."""

    @abstractmethod
    def failure_message(self) -> str:
        """Who ended and of what, after its end."""


Messages = queue.SimpleQueue[tuple[Worker, dict[str, Any] | None]]


class WorkerPool:
    """Plays episodes on several workers.

    Args:
        start: starts a worker, given its number and where it puts its messages.
        num_workers: workers at a time.
        stall_seconds: a worker that plays and is silent for longer is taken to hang.
    """

    def __init__(self, start: Callable[[int, Messages], Worker], num_workers: int, stall_seconds: float):
        self._start = start
        self._num_workers = num_workers
        self._stall_seconds = stall_seconds
        self._messages: Messages = queue.SimpleQueue()
        self._workers: list[Worker] = []
        self._num_started = 0
        self._num_failed_starts = 0
        self._waiting: deque[int] = deque()
        self._attempts: Counter[int] = Counter()
        self._failures: dict[int, str] = {}
        self._deadline = math.inf

    def play(
        self,
        episodes: Iterable[int],
        on_frames: Callable[[int], None],
        on_done: Callable[[int, int], None],
        max_minutes: float | None = None,
    ) -> dict[int, str]:
        """Play `episodes`; returns those that failed three times, each with the reason.

        Args:
            on_frames: called with the number of frames rendered since the last call.
            on_done: called with the number of an episode that is on disk, and its frames.
            max_minutes: after which no further episode is begun; those being played are played to their end.

        Raises:
            CollectionError: no worker can be set up, or the disk is full.
        """
        self._waiting.extend(episodes)
        self._deadline = math.inf if max_minutes is None else time.monotonic() + 60 * max_minutes
        try:
            for _ in range(min(self._num_workers, len(self._waiting))):
                self._start_worker()
            while self._workers:
                worker, message = self._next_message()
                if message is None:
                    self._handle_exit(worker)
                elif "rendered" in message:
                    on_frames(message["rendered"])
                elif "failed" in message:
                    worker.failed, worker.errno = True, message["errno"]
                    worker.end = f"failed: {message['error']}"
                else:
                    if "done" in message:
                        on_done(message["done"], message["frames"])
                    self._give_work(worker)
        finally:
            for worker in self._workers:
                worker.kill()
        return self._failures

    def _start_worker(self) -> None:
        self._workers.append(self._start(self._num_started, self._messages))
        self._num_started += 1

    def _give_work(self, worker: Worker) -> None:
        worker.ready = True
        if self._waiting and time.monotonic() < self._deadline:
            worker.play(self._waiting.popleft())
        else:
            worker.stop()

    def _next_message(self) -> tuple[Worker, dict[str, Any] | None]:
        """The next message of a worker, None being its end; kills those that hang while it waits."""
        while True:
            for worker in self._workers:
                limit = self._stall_seconds if worker.ready else max(self._stall_seconds, _START_SECONDS)
                if time.monotonic() - worker.heard_at > limit:
                    worker.end = f"gave no sign of life for {limit:g} s"
                    worker.kill()
            with contextlib.suppress(queue.Empty):
                worker, message = self._messages.get(timeout=0.5)
                worker.heard_at = time.monotonic()
                return worker, message

    def _handle_exit(self, worker: Worker) -> None:
        """Deal with a worker that has ended: where it was not stopped, replace it and try its episode again."""
        self._workers.remove(worker)
        if worker.stopped:
            return
        reason = worker.failure_message()
        if not worker.ready:
            self._num_failed_starts += 1
            # An error while starting would come again; a kill (out of memory, say) may not.
            if worker.failed or self._num_failed_starts == _ATTEMPTS:
                raise CollectionError(reason)
        elif worker.errno in _DISK_FULL:
            raise CollectionError(reason)
        _log.warning("%s", reason.splitlines()[0])
        if worker.episode is not None:
            self._attempts[worker.episode] += 1
            if self._attempts[worker.episode] < _ATTEMPTS:
                self._waiting.append(worker.episode)
            else:
                self._failures[worker.episode] = reason
        if self._waiting:
            self._start_worker()
