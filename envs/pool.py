"""Worker processes that play episodes; one that dies, fails or hangs is replaced and its episode played again.

Workers are fresh interpreters, talked to through pipes. Unlike `multiprocessing` this hands down no OpenGL state,
asks for no `if __name__ == "__main__"` in the caller's script, and works from notebooks and standard input.
"""

import contextlib
import errno
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import IO, Any

_log = logging.getLogger(__name__)
_ATTEMPTS = 3  # at each episode: one, and two more on replacement workers; and at starting a worker
_START_SECONDS = 120.0  # importing MuJoCo and SB3 on a busy machine takes its time
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_BLAS_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class CollectionError(RuntimeError):
    """Episodes could not be collected; the message says which, and why."""


class WorkerPool:
    """Plays episodes on worker processes.

    Args:
        settings: what each worker is told first, JSON.
        num_workers: processes at a time.
        stall_seconds: a worker that plays and is silent for longer is taken to hang.
    """

    def __init__(self, settings: dict[str, Any], num_workers: int, stall_seconds: float):
        self._settings = settings
        # Software rendering (llvmpipe) starts a thread on each core unless told otherwise; 0 is none of its own.
        spare = num_cores() // num_workers
        self._variables = {"LP_NUM_THREADS": str(spare) if spare > 1 else "0", **os.environ, **_BLAS_THREADS}
        self._num_workers = num_workers
        self._stall_seconds = stall_seconds
        self._messages: queue.SimpleQueue[tuple[_Worker, dict[str, Any] | None]] = queue.SimpleQueue()
        self._workers: list[_Worker] = []
        self._num_started = 0
        self._num_failed_starts = 0
        self._waiting: deque[int] = deque()
        self._attempts: Counter[int] = Counter()
        self._failures: dict[int, str] = {}

    def play(
        self, episodes: Iterable[int], on_frames: Callable[[int], None], on_done: Callable[[int, int], None]
    ) -> dict[int, str]:
        """Play `episodes`; returns those that failed three times, each with the reason.

        Args:
            on_frames: called with the number of frames rendered since the last call.
            on_done: called with the number of an episode that is on disk, and its frames.

        Raises:
            CollectionError: no worker can be set up, or the disk is full.
        """
        self._waiting.extend(episodes)
        try:
            for _ in range(min(self._num_workers, len(self._waiting))):
                self._start_worker()
            while self._workers:
                worker, message = self._next_message()
                if message is None:
                    self._bury(worker)
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
        name = f"worker {self._num_started}"
        self._workers.append(_Worker(name, self._settings, self._variables, self._messages))
        self._num_started += 1

    def _give_work(self, worker: "_Worker") -> None:
        worker.ready = True
        if self._waiting:
            worker.play(self._waiting.popleft())
        else:
            worker.dismiss()

    def _next_message(self) -> tuple["_Worker", dict[str, Any] | None]:
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

    def _bury(self, worker: "_Worker") -> None:
        """Deal with a worker that has ended: where it was not dismissed, replace it and try its episode again."""
        self._workers.remove(worker)
        if worker.dismissed:
            return
        reason = worker.obituary()
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


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Worker:
    """One `envs.worker` process, and what is known of it."""

    def __init__(self, name: str, settings: dict[str, Any], variables: dict[str, str], messages: "queue.SimpleQueue"):
        self.name = name
        self.ready = False
        self.dismissed = False
        self.episode: int | None = None
        self.failed = False  # of an exception, rather than killed or hung
        self.end: str | None = None  # how it ended, where more than its exit code is known
        self.errno: int | None = None
        self.heard_at = time.monotonic()
        self._last_words: deque[str] = deque(maxlen=20)
        # The caller's import path, so that policies given as "module:Class" are found by workers too.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self._process: Any = subprocess.Popen(
            [sys.executable, "-m", "envs.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**variables, "PYTHONPATH": path},
        )
        self._orders: Any = self._process.stdin
        threading.Thread(target=self._listen, args=(self._process.stdout, messages), daemon=True).start()
        self._stderr_reader = threading.Thread(target=self._read_stderr, args=(self._process.stderr,), daemon=True)
        self._stderr_reader.start()
        self._send(settings)

    def play(self, episode: int) -> None:
        self.episode = episode
        self._send({"episode": episode})

    def dismiss(self) -> None:
        """Let it end; workers end when their input does."""
        self.dismissed, self.episode = True, None
        with contextlib.suppress(BrokenPipeError):
            self._orders.close()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def obituary(self) -> str:
        """Who ended and of what, with the last lines it wrote to standard error."""
        code = self._process.wait()
        self._stderr_reader.join(timeout=5)
        if self.end is None:
            self.end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        work = "while starting" if self.episode is None else f"in episode {self.episode}"
        return "\n".join([f"{self.name} (pid {self._process.pid}) {work} {self.end}", *self._last_words])

    def _send(self, order: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended; its listener will say so
            self._orders.write(json.dumps(order) + "\n")
            self._orders.flush()

    def _listen(self, replies: IO[str], messages: "queue.SimpleQueue") -> None:
        with replies:
            for line in replies:
                messages.put((self, json.loads(line)))
        messages.put((self, None))

    def _read_stderr(self, stderr: IO[str]) -> None:
        with stderr:
            for line in stderr:
                self._last_words.append(line.rstrip())
