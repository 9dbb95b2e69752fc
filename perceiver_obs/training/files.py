"""Writing files so that a crash or a full disk never leaves half of one."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def clear_disk_errors(path: Path, num_bytes: int | None = None) -> Iterator[None]:
    """Turns a full disk into an OSError that says which file did not fit; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        need = f"{num_bytes / 1e6:.1f} MB needed, " if num_bytes is not None else ""
        free = shutil.disk_usage(path.parent).free / 1e6
        raise OSError(
            error.errno, f"disk full while writing {path} ({need}{free:.1f} MB free); what was there before is intact"
        ) from error


def write_atomically(path: str | Path, content: bytes) -> None:
    """Writes a file under a temporary name, flushes it to disk and renames it over the old one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with clear_disk_errors(path, len(content)), open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
