"""Hashes of what episodes hold, so that no dataset is taken for another, and none read in place of an earlier one.

The hash of an episode's frames is written into its `.npz`; all else there is hashed as it is read. Datasets of earlier
versions hold no such hash: theirs is found once and kept in `digests.json`.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from perceiver_obs.files import write_atomic

PIXELS_DIGEST = "pixels_sha256"
"""Entry of an episode's `.npz`."""

Stamp = tuple[str, int, int]
"""Name, bytes and time of change (ns) of a file."""


def stamp(file: Path) -> Stamp | None:
    """What changes when a file is written anew; None where it is missing."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return file.name, status.st_size, status.st_mtime_ns


def pixels_digest(pixels: np.ndarray) -> str:
    """SHA-256 of frames `[T+1, H, W, 3]`, in hexadecimal."""
    digest = hashlib.sha256(f"{pixels.dtype} {pixels.shape} ".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def episode_digest(arrays: Mapping[str, np.ndarray], of_pixels: str) -> str:
    """SHA-256 of all that an episode holds, however its frames are stored."""
    digest = hashlib.sha256(of_pixels.encode())
    for name in sorted(arrays.keys() - {PIXELS_DIGEST}):
        digest.update(f"\n{name} {arrays[name].dtype} {arrays[name].shape} ".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


class FoundDigests:
    """Hashes of frames that could not be relied on to have been written with them.

    They stay in `digests.json` by name, size and time of the file, where the dataset's directory can be written to.
    """

    def __init__(self, directory: Path):
        self._file = directory / "digests.json"
        self._changed = False
        try:
            kept = json.loads(self._file.read_text())
            self._kept = {(str(name), size, time): str(digest) for name, size, time, digest in kept}
        except (OSError, ValueError, TypeError, RecursionError):
            self._kept = {}

    def digest(self, file: Stamp, pixels: Callable[[], np.ndarray]) -> str:
        """The hash of the frames in a file, which `pixels` reads where it has to be found."""
        if file not in self._kept:
            self._kept[file] = pixels_digest(pixels())
            self._changed = True
        return self._kept[file]

    def keep(self) -> None:
        """Write down what was found."""
        if self._changed:
            rows = [[*file, digest] for file, digest in sorted(self._kept.items())]
            with suppress(OSError):
                write_atomic(self._file, (json.dumps(rows, indent=0) + "\n").encode())
