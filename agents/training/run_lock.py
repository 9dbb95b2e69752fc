"""One process a run: two that train in one directory would overwrite each other's checkpoints."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOCK_FILE = "run.lock"  # on Windows, where directories cannot be locked


class RunInUse(RuntimeError):
    """Another process trains in this directory."""


@contextmanager
def only_trainer(directory: Path) -> Iterator[None]:
    """Locks a directory; the lock ends with the process, however that ends.

    Where locks are not to be had, on some network file systems, the run goes on without: it is more important.

    Raises:
        RunInUse: another process holds the lock.
    """
    fcntl, msvcrt = _module("fcntl"), _module("msvcrt")
    held = BlockingIOError if fcntl else PermissionError
    descriptor = os.open(directory, os.O_RDONLY) if fcntl else os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT)
    try:
        try:
            if fcntl:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            elif msvcrt:
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except held as error:
            raise RunInUse(f"another process is training in {directory}") from error
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None
