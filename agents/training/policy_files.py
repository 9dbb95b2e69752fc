"""What a training leaves on disk: `policy.zip`, its record and learning curve, checkpoints; and who may write there."""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents.adaptation.online_episodes import EPISODES_FILE
from envs.dmc.tasks import DEFAULT_CAMERAS, resolve_action_repeat, split_task
from perceiver_obs.devices import choose_device
from perceiver_obs.files import new_directory, remove_abandoned, write_atomic

FORMAT_VERSION = 1
POLICY_FILE, RECORD_FILE, CURVE_FILE = "policy.zip", "policy.json", "curve.jsonl"
REPLAY_FILE = "replay_buffer.pkl"
PERCEIVER_DIRECTORY = "perceiver"
LOCK_FILE = "run.lock"  # on Windows, where directories cannot be locked
PACKAGES = ("torch", "stable_baselines3", "sb3_contrib", "dm_control", "mujoco", "numpy")
_HALF_WRITTEN = re.compile(r"\.?step-.*\.tmp")  # without the dot by earlier versions


@dataclass(frozen=True)
class PolicyRecord:
    """What must be known of a policy to run it again; `policy.json`.

    Attributes:
        algorithm: its name.
        settings: all settings of the training.
        fingerprint: that of the Perceiver whose contexts the policy reads, or of the projection; None where it
            reads neither.
        offline_data: the rollouts that these features were trained on, as in `data.json` beside a model; empty
            where there were none, None where it is not known.
        provenance: versions and machine of the training.
        adaptation: None where the Perceiver stayed as it was. Else `began_with`, the fingerprint that it had at first,
            and how much it has learned; as it is now, it lies in `perceiver/`.
        privileged: what but frames the Perceiver was trained on ("state"), None where nothing is known.
    """

    algorithm: str
    settings: dict[str, Any]
    fingerprint: str | None
    offline_data: list[dict[str, Any]] | None = None
    provenance: dict[str, str] = field(default_factory=dict)
    adaptation: dict[str, Any] | None = None
    format_version: int = FORMAT_VERSION
    privileged: str | None = None

    @property
    def began_with(self) -> str | None:
        """The fingerprint of the model that the training was begun with."""
        return self.adaptation["began_with"] if self.adaptation else self.fingerprint

    @property
    def env_name(self) -> str:
        """The environment's id, or the task."""
        return self.settings.get("env") or self.settings["task"]

    @property
    def frame_settings(self) -> dict[str, Any]:
        """How the policy's frames were made: those settings, as numbers where they were left to the task."""
        domain, _ = split_task(self.settings["task"])
        camera = self.settings["camera"]
        return {
            "action_repeat": resolve_action_repeat(self.settings["action_repeat"], domain),
            "camera": DEFAULT_CAMERAS.get(domain, 0) if camera is None else camera,
            "render_quality": self.settings["render_quality"],
        }

    def perceiver(self, directory: Path) -> str:
        """Where the model is that the policy in `directory` reads, unless it has been moved."""
        return str(directory / PERCEIVER_DIRECTORY) if self.adaptation else self.settings["model"]

    def save(self, directory: Path) -> None:
        """Writes `policy.json`, whole or not at all."""
        text = json.dumps(asdict(self), indent=2, sort_keys=True, default=str) + "\n"
        write_atomic(directory / RECORD_FILE, text.encode())

    @classmethod
    def load(cls, directory: Path) -> PolicyRecord:
        """Reads `policy.json`.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is not whole, or of another version.
        """
        path = directory / RECORD_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: expected a directory that train-policy wrote")
        try:
            values = json.loads(path.read_text())
            version = values.get("format_version")
            if version != FORMAT_VERSION:
                raise ValueError(f"format version {version!r}, this version reads {FORMAT_VERSION}")
            return cls(**with_provenance(values))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a record of a policy: {error}") from error


def save_policy(algorithm: BaseAlgorithm, directory: Path) -> Path:
    """Writes `policy.zip`, whole or not at all, and returns its path."""
    path = directory / POLICY_FILE
    write_atomic(path, algorithm.save)
    return path


def find_policy(policy: str | Path) -> tuple[Path, PolicyRecord]:
    """The `policy.zip` of a directory that `train_policy` wrote, or that file itself, and its record.

    Raises:
        FileNotFoundError: there is no record, or the training has not finished.
        ValueError: the record is damaged.
    """
    path = Path(policy) if Path(policy).suffix == ".zip" else Path(policy) / POLICY_FILE
    record = PolicyRecord.load(path.parent)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the training has not finished")
    return path, record


class Checkpoints:
    """Checkpoints of one run, a directory each; only the newest is kept.

    A directory is named `step-N` once it is whole, so that a run killed while it writes resumes from the one
    before.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def save(self, algorithm: BaseAlgorithm, save_more: Callable[[Path], None] | None = None) -> None:
        """Stores the algorithm, its replay buffer where it has one, and what `save_more` writes into the directory."""
        remove_abandoned(self.directory, _HALF_WRITTEN)
        final = self.directory / f"step-{algorithm.num_timesteps}"
        with new_directory(final, replace=True) as directory:
            algorithm.save(directory / POLICY_FILE)
            if isinstance(algorithm, OffPolicyAlgorithm):
                algorithm.save_replay_buffer(directory / REPLAY_FILE)
            if save_more is not None:
                save_more(directory)
        for old in self._whole():
            if old != final:
                shutil.rmtree(old)

    def latest(self) -> Path | None:
        """The newest whole checkpoint, None before the first."""
        return max(self._whole(), key=step_of, default=None)

    def drop_replay_buffers(self) -> None:
        """Deletes replay buffers and online episodes, which can take gigabytes. The run can then not be lengthened."""
        for name in (REPLAY_FILE, EPISODES_FILE):
            for path in self.directory.glob(f"step-*/{name}"):
                path.unlink()

    def _whole(self) -> list[Path]:
        return [path for path in self.directory.glob("step-*") if path.name.removeprefix("step-").isdecimal()]


def step_of(checkpoint: Path) -> int:
    """The agent steps after which a checkpoint was stored."""
    return int(checkpoint.name.removeprefix("step-"))


@dataclass(frozen=True)
class CurvePoint:
    """One evaluation: `frames` are simulated control steps (agent steps x action repeat), `seconds` of the
    run."""

    frames: int
    steps: int
    mean_return: float
    std_return: float
    returns: list[float]
    seconds: float


class LearningCurve:
    """Reads and extends `curve.jsonl`.

    Args:
        path: the file; it need not exist.
        steps: how far the run has come. Later points, of a run that was killed after its last checkpoint, are
            dropped, since they will be measured again.
    """

    def __init__(self, path: Path, steps: int) -> None:
        self.path = path
        self.points = [point for point in read_curve(path) if point.steps <= steps] if path.is_file() else []

    def append(self, point: CurvePoint) -> None:
        """Adds a point and writes the file, whole or not at all."""
        self.points.append(point)
        lines = "".join(json.dumps(asdict(point)) + "\n" for point in self.points)
        write_atomic(self.path, lines.encode())


def read_curve(path: Path) -> list[CurvePoint]:
    """The points of a `curve.jsonl`, in order; ValueError if it is damaged."""
    try:
        points = [CurvePoint(**json.loads(line)) for line in path.read_text().splitlines()]
        if not all(isinstance(point.steps, int) for point in points):
            raise TypeError("steps must be whole numbers")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a learning curve: {error}") from error
    return points


class RunInUse(RuntimeError):
    """Another process trains in this directory."""


@contextmanager
def only_trainer(directory: Path) -> Iterator[None]:
    """Locks a directory; the lock ends with the process, however that ends.

    Where locks are not to be had, on some network file systems, the run goes on without: it is more important.

    Raises:
        RunInUse: another process holds the lock.
    """
    fcntl, msvcrt = _optional("fcntl"), _optional("msvcrt")
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


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


def with_provenance(values: dict[str, Any]) -> dict[str, Any]:
    """The entries of a record or a result; earlier versions wrote `made_with`."""
    return {"provenance" if name == "made_with" else name: value for name, value in values.items()}


def provenance(device: str) -> dict[str, str]:
    """Versions by package, and what the computations of `device` run on."""
    return {"python": platform.python_version(), "device": _device(device)} | {name: version(name) for name in PACKAGES}


def _device(device: str) -> str:
    chosen = choose_device(device)
    return torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else f"{chosen.type}, {processor()}"


def processor() -> str:
    """The processor's name, as Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
