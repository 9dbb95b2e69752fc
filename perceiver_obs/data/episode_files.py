"""The two files of an episode: frames in `NNNNNN.pixels.npy`, everything else in `NNNNNN.npz`."""

import contextlib
import io
import math
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from perceiver_obs.data.content_hash import PIXELS_DIGEST, Stamp, pixels_digest, stamp
from perceiver_obs.data.episode import MAX_TAG, Episode, EpisodeExists, Layout, RolloutError
from perceiver_obs.files import locked, publish, written_aside

# What zipfile raises for files that are no zip, cut short, of another version, encrypted, or of another content.
DAMAGED_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)
_MAX_HEADER = 4096  # bytes; ours take 128
_NUMBERED = re.compile(r"(\d{6,})\.npz")


def write_episode(folder: Path, index: int | None, episode: Episode, compress: bool) -> int:
    """Write an episode under a number that no other has, and return it; nothing is ever replaced.

    Both files are whole before either gets its name, the `.npz` last: a failure on the way leaves no `.npz`, and so
    no episode.

    Args:
        folder: where episodes lie; `meta.json` beside it is what writers lock while they give out a number.
        index: the number; None for the next after all that are there.

    Raises:
        EpisodeExists: there is an episode `index`.
    """
    pixels = np.ascontiguousarray(episode.pixels)
    arrays: dict[str, Any] = {
        "actions": episode.actions,
        "rewards": episode.rewards,
        "terminated": np.bool_(episode.terminated),
        "truncated": np.bool_(episode.truncated),
        "seed": np.uint64(episode.seed),
        "policy": np.str_(episode.policy),
        PIXELS_DIGEST: np.str_(pixels_digest(pixels)),
    }
    if episode.states is not None:
        arrays["states"] = episode.states

    def write_pixels(file: BinaryIO) -> None:
        # Not by `np.save`, whose `tofile` loses the reason when the disk is full.
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(pixels))
        file.write(pixels.data)

    def write_compressed_pixels(file: BinaryIO) -> None:
        with _zstandard().ZstdCompressor().stream_writer(file, closefd=False) as stream:
            write_pixels(stream)

    name_pixels, write = (_compressed_file, write_compressed_pixels) if compress else (_pixels_file, write_pixels)
    number = max(episode_numbers(folder), default=-1) + 1 if index is None else int(index)
    with (
        written_aside(name_pixels(folder, number), write, pixels.nbytes) as new_pixels,
        written_aside(_arrays_file(folder, number), lambda file: np.savez(file, allow_pickle=False, **arrays)) as new,
        locked(folder.parent / "meta.json") as alone,
    ):
        while True:
            if not _arrays_file(folder, number).exists():
                if alone or index is not None:  # frames without an `.npz` are of a writer that was killed
                    _pixels_file(folder, number).unlink(missing_ok=True)
                    _compressed_file(folder, number).unlink(missing_ok=True)
                with contextlib.suppress(FileExistsError):  # without locks another writer may be faster
                    publish(new_pixels, name_pixels(folder, number))
                    publish(new, _arrays_file(folder, number))
                    return number
            if index is not None:
                raise EpisodeExists(f"episode {index} is in {folder} already, and episodes never change")
            number += 1


def episode_numbers(folder: Path) -> list[int]:
    """Numbers of the whole episodes in a folder, in order."""
    names = (_NUMBERED.fullmatch(file.name) for file in folder.glob("*.npz"))
    return sorted(int(name[1]) for name in names if name)


def file_stamps(folder: Path, index: int) -> tuple[Stamp | None, Stamp | None]:
    """Stamps of an episode's `.npz` and of the file of its frames."""
    pixels = stamp(_pixels_file(folder, index)) or stamp(_compressed_file(folder, index))
    return stamp(_arrays_file(folder, index)), pixels


def read_arrays(folder: Path, index: int) -> dict[str, np.ndarray]:
    """Read what an episode holds beside its frames."""
    with np.load(_arrays_file(folder, index), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def read_episode(folder: Path, index: int, layout: Layout, arrays: Mapping[str, np.ndarray]) -> Episode:
    """An episode that `inspect_episode` has passed, given its `arrays`; raw frames stay on disk."""
    raw = _pixels_file(folder, index)
    if raw.exists():
        pixels = np.load(raw, mmap_mode="r", allow_pickle=False)
    else:
        pixels = _decompress(_compressed_file(folder, index), (len(arrays["actions"]) + 1, layout.size, layout.size, 3))
    return Episode(
        pixels=pixels,
        # Copies, as `arrays` are kept. Actions were once written as sent, not as the environment clipped them.
        actions=np.clip(arrays["actions"], -1.0, 1.0),
        rewards=arrays["rewards"].copy(),
        terminated=bool(arrays["terminated"]),
        truncated=bool(arrays["truncated"]),
        seed=int(arrays["seed"]),
        policy=str(arrays["policy"]),
        states=arrays["states"].copy() if "states" in arrays else None,
    )


def inspect_episode(folder: Path, index: int, layout: Layout) -> int:
    """Check both files by their headers and sizes alone, and return the number of frames.

    Raises:
        RolloutError: a file is missing, cut short, of another shape or dtype than `layout` and the other file say,
            or lies outside `folder`.
    """
    arrays_file, raw = _arrays_file(folder, index), _pixels_file(folder, index)
    pixels_file = raw if raw.exists() else _compressed_file(folder, index)
    for file in (arrays_file, pixels_file):
        if file.is_symlink() and (target := _target(file)).parent != folder.resolve():
            raise RolloutError(
                f"{file.name} leads out of the dataset, to {target}: copy the files (`cp -rL` follows such links), or "
                "link the whole dataset's directory instead"
            )
        if not file.is_file():
            raise RolloutError(f"{file.name} is missing")
    num_frames = _check_arrays_file(arrays_file, layout) + 1
    if pixels_file == raw:
        _check_pixels_file(raw, (num_frames, layout.size, layout.size, 3))
    return num_frames


def _target(link: Path) -> Path:
    try:
        return link.resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise RolloutError(f"{link.name} is a link that leads nowhere: {error}") from None


def _check_arrays_file(file: Path, layout: Layout) -> int:
    """Returns the number of steps."""
    try:
        with zipfile.ZipFile(file) as archive:
            headers = {name.removesuffix(".npy"): _header(archive.open(name)) for name in archive.namelist()}
    except (*DAMAGED_ZIP_ERRORS, RolloutError) as error:
        raise RolloutError(f"{file.name} is cut short or damaged: {error}") from None
    digest_shape, digest_dtype = headers.pop(PIXELS_DIGEST, ((), np.dtype("U64")))
    if digest_shape != () or digest_dtype.kind != "U" or digest_dtype.itemsize != 4 * 64:
        raise RolloutError(f"{PIXELS_DIGEST} in {file.name} should be a text of 64 characters")
    steps = headers["actions"][0][0] if headers.get("actions", ((),))[0] else 0
    expected = {
        "actions": ((steps, layout.action_size), "float32"),
        "rewards": ((steps,), "float32"),
        "terminated": ((), "bool"),
        "truncated": ((), "bool"),
        "seed": ((), "uint64"),
    }
    if layout.state_size is not None:
        expected["states"] = ((steps + 1, layout.state_size), "float32")
    for name in [*expected, "policy"]:
        if name not in headers:
            raise RolloutError(f"{file.name} lacks {name!r}")
    if "states" in headers and layout.state_size is None:
        raise RolloutError(f"{file.name} holds states, which meta.json does not name")
    for name, (shape, dtype) in expected.items():
        if headers[name] != (shape, np.dtype(dtype)):
            raise RolloutError(f"{name} in {file.name} should be {dtype} {shape}, is {_show(headers[name])}")
    tag_shape, tag_dtype = headers["policy"]
    if tag_shape != () or tag_dtype.kind != "U" or tag_dtype.itemsize > 4 * MAX_TAG:
        raise RolloutError(f"policy in {file.name} should be a short text, is {_show(headers['policy'])}")
    return steps


def _check_pixels_file(file: Path, shape: tuple[int, ...]) -> None:
    with open(file, "rb") as stream:
        try:
            found = _header(stream)
        except RolloutError as error:
            raise RolloutError(f"{file.name} is not a whole .npy file: {error}") from None
        data_start = stream.tell()
    if found != (shape, np.dtype(np.uint8)):
        raise RolloutError(f"{file.name} should be uint8 {shape}, as the actions and meta.json say, is {_show(found)}")
    size, expected = file.stat().st_size, data_start + math.prod(shape)
    if size != expected:
        raise RolloutError(f"{file.name} has {size} bytes, should have {expected}")


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    start = stream.tell()
    beginning = io.BytesIO(stream.read(_MAX_HEADER))  # a header may say of itself that it is gigabytes long
    try:
        version = np.lib.format.read_magic(beginning)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(beginning)
    except Exception as error:  # NumPy lets through whatever its parser meets, tokenizer errors among it
        raise RolloutError(f"no .npy header ({error})") from error
    stream.seek(start + beginning.tell())
    return shape, dtype


def _decompress(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    limit = math.prod(shape) + 4096  # frames and their header: a crafted file may not fill the memory
    zstandard = _zstandard()
    try:
        with open(file, "rb") as stream, zstandard.ZstdDecompressor().stream_reader(stream) as reader:
            data = io.BytesIO(reader.read(limit))
    except zstandard.ZstdError as error:
        raise RolloutError(f"{file.name} is cut short or damaged: {error}") from None
    found = _header(data)
    if found != (shape, np.dtype(np.uint8)):
        raise RolloutError(f"{file.name} should hold uint8 {shape}, holds {_show(found)}")
    if len(frames := data.read()) != math.prod(shape):
        raise RolloutError(f"{file.name} holds {len(frames)} bytes of frames, should hold {math.prod(shape)}")
    return np.frombuffer(frames, np.uint8).reshape(shape)


def _zstandard():
    try:
        import zstandard
    except ImportError:
        raise ImportError("compressed rollouts need zstandard: pip install 'perceiver-obs[zstd]'") from None
    return zstandard


def _arrays_file(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.npz"


def _pixels_file(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.pixels.npy"


def _compressed_file(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.pixels.npy.zst"


def _show(header: tuple[tuple[int, ...], np.dtype]) -> str:
    return f"{header[1]} {header[0]}"
