"""Writing files and directories whole or not at all, whoever else writes there.

What is being written lies beside its target as `.NAME.PID-RANDOM.tmp`, a name that nobody else uses, and is locked
while its writer lives: so leftovers of killed writers can be told from the work of others, in other processes,
containers or machines.
"""

import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import BufferedWriter
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Content = bytes | Callable[[BufferedWriter], object]
"""What to write, or a function that writes it to the open file."""

OURS = re.compile(r"\..+\.\d+-[0-9a-f]{16}\.tmp")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_OCCUPIED = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_LONG_AGO = 24 * 3600  # seconds; leftovers that cannot be known by their lock are known by their age


def write_atomic(path: str | Path, content: Content, *, replace: bool = True) -> None:
    """Write a file whole or not at all, together with the directories it lies in.

    Args:
        path: the file.
        content: bytes, or a function that writes to the open file.
        replace: whether a file that is there already is replaced.

    Raises:
        FileExistsError: `replace` is False, and the file is there already.
        OSError: it could not be written; the message says which file and why, on a full disk with the megabytes
            needed and free. What was there before is intact.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path, content) as temporary:
        if replace:
            os.replace(temporary, path)
        else:
            publish(temporary, path)


@contextmanager
def written_aside(path: Path, content: Content, num_bytes: int | None = None) -> Iterator[Path]:
    """The content of `path`, on disk under a temporary name beside it; removed in the end if it is still there.

    Args:
        path, content: as of `write_atomic`.
        num_bytes: how much a function writes, for the message about a full disk.

    Raises OSError as `write_atomic` does.
    """
    _sweep_once(path.parent)
    temporary = _temporary_name(path)
    num_bytes = num_bytes if callable(content) else len(content)
    with _could_not_write(path, num_bytes):
        temporary.touch(exist_ok=False)
    try:
        with _in_use(temporary):
            with _could_not_write(path, num_bytes):
                _fill(temporary, content)
            yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Give a written file its name; FileExistsError where another has that name, even one of this moment."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists():
            raise FileExistsError(errno.EEXIST, "exists already", str(path)) from None
        os.rename(temporary, path)


@contextmanager
def new_directory(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Fill a directory under a temporary name; it becomes `path` when all went well, or nothing does.

    Raises:
        FileExistsError: `replace` is False, and something else has become `path` meanwhile.
        OSError: the disk is full.
    """
    path = Path(path)
    with name_full_disk(path), scratch_directory(path) as temporary:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        if not (replace and path.exists()):
            rename_directory(temporary, path)
            return
        with scratch_directory(path) as before:
            os.rename(path, before / path.name)
            rename_directory(temporary, path)


def rename_directory(temporary: Path, path: Path) -> None:
    """Give a directory its name; FileExistsError where there is something of that name."""
    try:
        os.rename(temporary, path)
    except OSError as error:
        if error.errno in _OCCUPIED:
            raise FileExistsError(errno.EEXIST, "exists already", str(path)) from None
        raise


@contextmanager
def scratch_directory(path: Path) -> Iterator[Path]:
    """An empty directory beside `path`, hidden; removed in the end if it is still there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep_once(path.parent)
    temporary = _temporary_name(path)
    temporary.mkdir()
    try:
        with _in_use(temporary):
            temporary.mkdir(exist_ok=True)  # swept before it was locked
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_abandoned(folder: Path, pattern: re.Pattern[str] = OURS) -> None:
    """Delete temporary files and directories whose writers are dead; those of writers at work stay."""
    for path in folder.glob("*.tmp"):
        if pattern.fullmatch(path.name) and _is_abandoned(path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()


@contextmanager
def name_full_disk(path: Path, num_bytes: int | None = None) -> Iterator[None]:
    """Turns a full disk into an OSError that says which file did not fit; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        need = f"{num_bytes / 1e6:.1f} MB needed, " if num_bytes is not None else ""
        free = shutil.disk_usage(path.parent).free / 1e6
        raise OSError(
            error.errno,
            f"disk full while writing {path} ({os.strerror(error.errno)}: {need}{free:.1f} MB free); "
            "what was there before is intact",
        ) from error


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock of an existing file, after waiting for it; it ends with the process, however that ends.

    Gives False, and no lock, where the system or the file system has none.
    """
    if fcntl is None:
        yield False
        return
    descriptor, held = _open_for_lock(path), False
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            held = True
        yield held
    finally:
        if held:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # at once, even where a forked process has the descriptor too
        os.close(descriptor)


@contextmanager
def _could_not_write(path: Path, num_bytes: int | None) -> Iterator[None]:
    try:
        with name_full_disk(path, num_bytes):
            yield
    except OSError as error:
        if error.errno in _FULL:
            raise
        reason = error.strerror or "the disk took only part of it"
        raise OSError(error.errno, f"could not write {path} ({reason})") from error


@contextmanager
def _in_use(temporary: Path) -> Iterator[None]:
    """Locks a temporary, as a sign that its writer lives."""
    if fcntl is None:
        yield
        return
    descriptor = _open_for_lock(temporary)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_abandoned(temporary: Path) -> bool:
    try:
        if fcntl is not None:
            descriptor = _open_for_lock(temporary)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                return False
            except OSError:
                pass  # no locks here
            finally:
                os.close(descriptor)
        return time.time() - temporary.stat().st_mtime > _LONG_AGO
    except OSError:  # gone, or not ours to touch
        return False


def _fill(temporary: Path, content: Content) -> None:
    try:
        with open(temporary, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):
            os.truncate(temporary, 0)  # so that its part of the disk counts as free
        raise


def _open_for_lock(path: Path) -> int:
    """Open for writing where that is possible, as network file systems ask for before they lock."""
    try:
        return os.open(path, os.O_RDWR)
    except (IsADirectoryError, PermissionError):
        return os.open(path, os.O_RDONLY)


@cache
def _sweep_once(folder: Path) -> None:
    remove_abandoned(folder)


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name[:50]}.{os.getpid()}-{secrets.token_hex(8)}.tmp")


def _flush(file: Path) -> None:
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())
