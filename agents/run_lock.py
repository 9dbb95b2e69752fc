"""One process a run: two that train in one directory would overwrite each other's checkpoints."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class RunInUse(RuntimeError):
    """Another process trains in this directory."""


@contextmanager
def only_trainer(directory: Path) -> Iterator[None]:
    """Locks a directory; the lock leaves no file behind and ends with the process, however that ends.

    Raises:
        RunInUse: another process holds the lock.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunInUse(f"another process is training in {directory}") from error
        except OSError:
            pass  # a network file system that cannot lock directories; the run is more important than the lock
        yield
    finally:
        os.close(descriptor)
