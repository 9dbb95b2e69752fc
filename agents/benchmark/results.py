"""Results of a benchmark as data: read from finished runs, kept in one JSON file, a line a run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agents.benchmark.suite import METHODS, TASKS, Protocol, RunKey
from agents.training.policy_files import (
    CURVE_FILE,
    POLICY_FILE,
    RECORD_FILE,
    CurvePoint,
    PolicyRecord,
    read_curve,
    with_provenance,
)
from agents.training.settings import TrainPolicySettings
from perceiver_obs.data.data_record import offline_frames
from perceiver_obs.files import write_atomic
from perceiver_obs.settings import check_same_settings, read_json, setting_changes, settings_to_dict

FORMAT_VERSION = 1


@dataclass(frozen=True)
class RunResult:
    """One run, finished or not.

    Attributes:
        method, task, seed: which run it is.
        settings: of its training.
        fingerprint: of the model whose features the policy read, at first where it adapted; None where it read none.
        offline: frames spent before the policy began to learn (`control_steps`, `rendered`) and the `policies` that
            acted in them; None where the model does not tell.
        curve: an entry an evaluation, with `frames`, `mean`, `std` and `returns`; `seconds` of the run until then,
            which runs of earlier versions do not tell.
        seconds: wall time, evaluations included.
        ended: when its last file was written, UTC in ISO 8601; None for one that is not finished.
        provenance: versions and machine.
    """

    method: str
    task: str
    seed: int
    settings: dict[str, Any]
    fingerprint: str | None
    offline: dict[str, Any] | None
    curve: list[dict[str, Any]]
    seconds: float
    ended: str | None
    provenance: dict[str, str]

    @property
    def key(self) -> RunKey:
        """Which run it is."""
        return RunKey(self.method, self.task, self.seed)

    @property
    def frames(self) -> int:
        """Control steps that the policy learned from."""
        return self.curve[-1]["frames"] if self.curve else 0

    @property
    def final_return(self) -> float:
        """Mean return of the last evaluation."""
        return self.curve[-1]["mean"]


@dataclass(frozen=True)
class Results:
    """All runs of a suite: `protocol` holds the settings they share, `runs` the finished ones, in order."""

    suite: str
    protocol: dict[str, Any]
    runs: tuple[RunResult, ...] = ()
    unfinished: tuple[RunResult, ...] = ()

    def merge(self, found: Iterable[RunResult]) -> Results:
        """With the runs found on this machine: they replace those of the same key, all others stay."""
        found = list(found)
        runs = {run.key: run for run in (*self.runs, *(run for run in found if run.ended))}
        unfinished = [run for run in found if run.key not in runs]
        return replace(self, runs=_sorted(runs.values()), unfinished=_sorted(unfinished))

    def save(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        head = {"suite": self.suite, "format_version": FORMAT_VERSION, "protocol": self.protocol}
        unfinished = [{**asdict(run.key), "frames": run.frames} for run in self.unfinished]
        lines = ",\n".join("  " + json.dumps(asdict(run)) for run in self.runs)
        text = json.dumps(head, indent=1).removesuffix("\n}")
        text += f',\n "unfinished": {json.dumps(unfinished)},\n "runs": [\n{lines}\n ]\n}}\n'
        write_atomic(path, text.encode())

    @classmethod
    def load(cls, path: Path, suite: str, protocol: Protocol) -> Results:
        """Reads the finished runs in a file; without a file there are none.

        Raises:
            ValueError: it is damaged, of another version, or its runs followed another protocol.
        """
        empty = cls(suite, protocol.shared())
        if not path.is_file():
            return empty
        content = read_json(path)
        if (content.get("suite"), content.get("format_version")) != (suite, FORMAT_VERSION):
            raise ValueError(f"{path} does not hold results of {suite} in format version {FORMAT_VERSION}")
        try:
            defaults = settings_to_dict(TrainPolicySettings())  # of settings that its version did not know
            before = {name: defaults[name] for name in empty.protocol} | content["protocol"]
            changes = setting_changes(before, empty.protocol)
            runs = tuple(RunResult(**with_provenance(run)) for run in content["runs"])
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged: {error!r}") from error
        if changes:
            raise ValueError(f"{path} holds results of another protocol ({changes}); choose another results file")
        return replace(empty, runs=runs)


def find_runs(root: Path, protocol: Protocol) -> list[RunResult]:
    """Every run of the suite's methods and tasks that has begun below `root`; raises as `read_run` does."""
    found = []
    for method in METHODS:
        for task in protocol.known_tasks:
            for directory in sorted((root / method / task).glob("seed-*")):
                number = directory.name.removeprefix("seed-")
                if number.isdecimal() and (run := read_run(root, RunKey(method, task, int(number)), protocol)):
                    found.append(run)
    return found


def read_run(root: Path, key: RunKey, protocol: Protocol) -> RunResult | None:
    """What there is of a run, None where it has not begun.

    Raises:
        ValueError: its record is damaged, or it was trained by other settings than the protocol's.
    """
    directory = key.directory(root)
    if not (directory / RECORD_FILE).is_file():
        return None
    record = PolicyRecord.load(directory)
    wanted = protocol.run(key.method, key.task, key.seed)
    check_same_settings(record.settings, wanted, f"the run in {directory}", protocol.fixed)
    points = read_curve(directory / CURVE_FILE) if (directory / CURVE_FILE).is_file() else []
    policy = directory / POLICY_FILE
    finished = policy.is_file() and _reaches(points, protocol.total_frames)
    return RunResult(
        **asdict(key),
        settings=record.settings,
        fingerprint=record.began_with,
        offline=_offline(key, record),
        curve=[_point(point) for point in points],
        seconds=round(points[-1].seconds, 1) if points else 0.0,
        ended=datetime.fromtimestamp(policy.stat().st_mtime, UTC).isoformat(timespec="seconds") if finished else None,
        provenance=record.provenance,
    )


def _point(point: CurvePoint) -> dict[str, Any]:
    values = {"frames": point.frames, "mean": point.mean_return, "std": point.std_return, "returns": point.returns}
    return {**values, "seconds": round(point.seconds, 1)}


def _reaches(points: list[CurvePoint], total_frames: int) -> bool:
    """Whether no whole agent step is left in the budget after the last evaluation."""
    return bool(points) and points[-1].frames + points[-1].frames // points[-1].steps > total_frames


def _offline(key: RunKey, record: PolicyRecord) -> dict[str, Any] | None:
    data = record.offline_data if METHODS[key.method].features else []
    return None if data is None else json.loads(json.dumps(asdict(offline_frames(data))))


def _sorted(runs: Iterable[RunResult]) -> tuple[RunResult, ...]:
    methods = list(METHODS)

    def place(run: RunResult) -> tuple[int, int, int]:
        return methods.index(run.method), TASKS.index(run.task) if run.task in TASKS else 0, run.seed

    return tuple(sorted(runs, key=place))
