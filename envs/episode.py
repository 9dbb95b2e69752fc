"""One episode and its two files: frames in `NNNNNN.pixels.npy`, everything else in `NNNNNN.npz`."""

import io
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import numpy as np

from envs.files import write_atomic

# What zipfile raises for files that are no zip, cut short, of another version, encrypted, or of another content.
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)
_MAX_TAG = 1024
_MAX_HEADER = 4096  # bytes; ours take 128


class RolloutError(ValueError):
    """A rollout dataset, or something to be written to one, is not as it should be."""


@dataclass(frozen=True, eq=False)
class Episode:
    """One episode of T steps; `actions[t]` leads from frame t to frame t+1.

    Attributes:
        pixels: frames, uint8 `[T+1, H, W, 3]`; read from disk a read-only memory map, or an array where they are
            compressed.
        actions: float32 `[T, A]` in [-1, 1]; `dataset.meta["actions"]` says of what (`perceiver_obs.ActionEncoding`).
        rewards: float32 `[T]`.
        terminated: the task ended the episode.
        truncated: a time limit, the task's or the collection's, ended it.
        seed: what the environment was reset with.
        policy: a tag that says what acted.
        states: true states, float32 `[T+1, S]`, or None; `dataset.meta["state_names"]` names the S entries.
    """

    pixels: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool
    truncated: bool
    seed: int
    policy: str
    states: np.ndarray | None = None

    def __len__(self) -> int:
        """Steps: one less than frames."""
        return len(self.actions)


class Layout(NamedTuple):
    """What every episode of a dataset has in common."""

    size: int
    action_size: int
    state_size: int | None


def check_episode(episode: Episode, layout: Layout) -> None:
    """Raise RolloutError unless the episode's arrays agree with each other and with `layout`."""
    steps = len(episode.actions)
    _check_array("pixels", episode.pixels, (steps + 1, layout.size, layout.size, 3), np.uint8)
    _check_array("actions", episode.actions, (steps, layout.action_size), np.float32)
    if np.abs(episode.actions).max(initial=0.0) > 1.0:
        raise RolloutError(
            f"actions should lie in [-1, 1], got {np.abs(episode.actions).max():g}: encode them by "
            "perceiver_obs.ActionEncoding"
        )
    _check_array("rewards", episode.rewards, (steps,), np.float32)
    if (episode.states is None) != (layout.state_size is None):
        given = "none" if episode.states is None else f"states of shape {episode.states.shape}"
        raise RolloutError(f"the dataset records {layout.state_size or 'no'} state entries, got {given}")
    if episode.states is not None:
        _check_array("states", episode.states, (steps + 1, layout.state_size), np.float32)
    if not (isinstance(episode.seed, Integral) and 0 <= episode.seed < 2**64):
        raise RolloutError(f"seed must be an integer from 0 to 2⁶⁴-1, got {episode.seed!r}")
    if not isinstance(episode.policy, str) or len(episode.policy) > _MAX_TAG:
        raise RolloutError(
            f"the policy tag must be a text of at most {_MAX_TAG} characters, got {episode.policy!r:.80}"
        )
    for name in ("terminated", "truncated"):
        if not isinstance(value := getattr(episode, name), bool | np.bool_):
            raise RolloutError(f"{name} must be True or False, got {value!r:.80}")


def write_episode(folder: Path, index: int, episode: Episode, compress: bool) -> None:
    """Write both files, the `.npz` last: a failure on the way leaves no `.npz`, and so no episode."""
    arrays: dict[str, Any] = {
        "actions": episode.actions,
        "rewards": episode.rewards,
        "terminated": np.bool_(episode.terminated),
        "truncated": np.bool_(episode.truncated),
        "seed": np.uint64(episode.seed),
        "policy": np.str_(episode.policy),
    }
    if episode.states is not None:
        arrays["states"] = episode.states
    pixels = np.ascontiguousarray(episode.pixels)

    def write_pixels(file: BinaryIO) -> None:
        # Not by `np.save`, whose `tofile` loses the reason when the disk is full.
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(pixels))
        file.write(pixels.data)

    def write_compressed_pixels(file: BinaryIO) -> None:
        with _zstandard().ZstdCompressor().stream_writer(file, closefd=False) as stream:
            write_pixels(stream)

    raw = _pixels_file(folder, index)
    if compress:
        write_atomic(_compressed(raw), write_compressed_pixels)
    else:
        write_atomic(raw, write_pixels)
    write_atomic(_arrays_file(folder, index), lambda file: np.savez(file, allow_pickle=False, **arrays))


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
        pixels = _decompress(_compressed(raw), (len(arrays["actions"]) + 1, layout.size, layout.size, 3))
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
    pixels_file = raw if raw.exists() else _compressed(raw)
    for file in (arrays_file, pixels_file):
        if not file.is_file():
            raise RolloutError(f"{file.name} is missing")
        if file.resolve().parent != folder.resolve():
            raise RolloutError(f"{file.name} leads out of the dataset, to {file.resolve()}")
    num_frames = _check_arrays_file(arrays_file, layout) + 1
    if pixels_file == raw:
        _check_pixels_file(raw, (num_frames, layout.size, layout.size, 3))
    return num_frames


def _check_arrays_file(file: Path, layout: Layout) -> int:
    """Returns the number of steps."""
    try:
        with zipfile.ZipFile(file) as archive:
            headers = {name.removesuffix(".npy"): _header(archive.open(name)) for name in archive.namelist()}
    except (*DAMAGED, RolloutError) as error:
        raise RolloutError(f"{file.name} is cut short or damaged: {error}") from None
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
    if tag_shape != () or tag_dtype.kind != "U" or tag_dtype.itemsize > 4 * _MAX_TAG:
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


def _check_array(name: str, array: np.ndarray, shape: tuple, dtype: type) -> None:
    if array.shape != shape or array.dtype != dtype:
        raise RolloutError(f"{name} should be {np.dtype(dtype)} {shape}, got {array.dtype} {array.shape}")
    if array.dtype != np.uint8 and not np.isfinite(array).all():
        raise RolloutError(f"{name} holds NaN or infinite values")


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


def _compressed(file: Path) -> Path:
    return file.with_name(file.name + ".zst")


def _show(header: tuple[tuple[int, ...], np.dtype]) -> str:
    return f"{header[1]} {header[0]}"
