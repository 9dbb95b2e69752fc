"""Workers that are processes of this machine.

They are fresh interpreters, talked to through pipes. Unlike `multiprocessing` this hands down no OpenGL state, asks
for no `if __name__ == "__main__"` in the caller's script, and works from notebooks and standard input.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from typing import IO, Any

from envs.collection.pool import Messages, Worker

_BLAS_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def worker_variables(cores_each: int) -> dict[str, str]:
    """Environment variables for a worker that shares a machine with others.

    Software rendering (llvmpipe) starts a thread on each core unless told otherwise; 0 is none of its own. The import
    path is the caller's, so that policies given as "module:Class" are found by workers too.
    """
    rendering = os.environ.get("LP_NUM_THREADS", str(cores_each) if cores_each > 1 else "0")
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return {"LP_NUM_THREADS": rendering, "PYTHONPATH": path, **_BLAS_THREADS}


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ProcessWorker(Worker):
    """One `envs.collection.worker` process.

    Args:
        name: for messages to the user.
        settings: the first line it gets, JSON.
        variables: environment variables it has beside ours, or in their place.
        messages: see `Worker`.
    """

    def __init__(self, name: str, settings: dict[str, Any], variables: dict[str, str], messages: Messages):
        super().__init__(name)
        self._stderr_tail: deque[str] = deque(maxlen=20)
        self._process: Any = subprocess.Popen(
            [sys.executable, "-m", "envs.collection.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **variables},
        )
        self._commands: Any = self._process.stdin
        threading.Thread(target=self._listen, args=(self._process.stdout, messages), daemon=True).start()
        self._stderr_reader = threading.Thread(target=self._read_stderr, args=(self._process.stderr,), daemon=True)
        self._stderr_reader.start()
        self._send(settings)

    def play(self, episode: int) -> None:
        self.episode = episode
        self._send({"episode": episode})

    def stop(self) -> None:
        """Let it end; workers end when their input does."""
        self.stopped, self.episode = True, None
        with contextlib.suppress(BrokenPipeError):
            self._commands.close()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def failure_message(self) -> str:
        """Who ended and of what, with the last lines it wrote to standard error."""
        code = self._process.wait()
        self._stderr_reader.join(timeout=5)
        if self.end is None:
            self.end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        work = "while starting" if self.episode is None else f"in episode {self.episode}"
        return "\n".join([f"{self.name} (pid {self._process.pid}) {work} {self.end}", *self._stderr_tail])

    def _send(self, command: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended; its listener will say so
            self._commands.write(json.dumps(command) + "\n")
            self._commands.flush()

    def _listen(self, replies: IO[str], messages: Messages) -> None:
        with replies:
            for line in replies:
                messages.put((self, json.loads(line)))
        messages.put((self, None))

    def _read_stderr(self, stderr: IO[str]) -> None:
        with stderr:
            for line in stderr:
                self._stderr_tail.append(line.rstrip())
