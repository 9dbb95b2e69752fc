"""What a policy leaves on disk: `policy.zip`, `policy.json` beside it, and checkpoints to resume from."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from perceiver_obs.training.files import clear_disk_errors, write_atomically

FORMAT_VERSION = 1
POLICY_FILE, RECORD_FILE, REPLAY_FILE = "policy.zip", "policy.json", "replay_buffer.pkl"


@dataclass(frozen=True)
class PolicyRecord:
    """What must be known of a policy to run it again; `policy.json`.

    `fingerprint` is that of the Perceiver whose contexts the policy reads, None where it reads none.
    """

    algorithm: str
    settings: dict[str, Any]
    fingerprint: str | None
    format_version: int = FORMAT_VERSION

    def save(self, directory: Path) -> None:
        """Writes `policy.json`, whole or not at all."""
        text = json.dumps(asdict(self), indent=2, sort_keys=True, default=str) + "\n"
        write_atomically(directory / RECORD_FILE, text.encode())

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
            return cls(**values)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a record of a policy: {error}") from error


def save_policy(algorithm: BaseAlgorithm, directory: Path) -> Path:
    """Writes `policy.zip`, whole or not at all, and returns its path."""
    path = directory / POLICY_FILE
    temporary = path.with_name("policy.tmp.zip")
    with clear_disk_errors(path):
        algorithm.save(temporary)
    os.replace(temporary, path)
    return path


class Checkpoints:
    """Checkpoints of one run, a directory each; only the newest is kept.

    A directory is named `step-N` once it is whole, so that a run killed while it writes resumes from the one
    before.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def save(self, algorithm: BaseAlgorithm) -> None:
        """Stores the algorithm, and its replay buffer where it has one."""
        with self._new(algorithm.num_timesteps) as directory:
            algorithm.save(directory / POLICY_FILE)
            if isinstance(algorithm, OffPolicyAlgorithm):
                algorithm.save_replay_buffer(directory / REPLAY_FILE)

    def latest(self) -> Path | None:
        """The newest whole checkpoint, None before the first."""
        return max(self._whole(), key=step_of, default=None)

    def _whole(self) -> list[Path]:
        return [path for path in self.directory.glob("step-*") if path.suffix != ".tmp"]

    @contextmanager
    def _new(self, step: int) -> Iterator[Path]:
        final = self.directory / f"step-{step}"
        temporary = final.with_suffix(".tmp")
        for leftover in self.directory.glob("*.tmp"):
            shutil.rmtree(leftover)
        temporary.mkdir(parents=True)
        with clear_disk_errors(final):
            yield temporary
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
        for old in self._whole():
            if old != final:
                shutil.rmtree(old)


def step_of(checkpoint: Path) -> int:
    """The agent steps after which a checkpoint was stored."""
    return int(checkpoint.name.removeprefix("step-"))
