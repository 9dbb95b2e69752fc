"""The policies that a report shows: what their directories hold, their curves, and a verdict in one sentence."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perceiver_obs.reporting import plots
from perceiver_obs.reporting.metrics import read_lines
from perceiver_obs.reporting.page import Comparison, Figure, Section, Table
from perceiver_obs.settings import read_json

CURVE_FILE, RECORD_FILE, EVALUATION_FILE = "curve.jsonl", "policy.json", "evaluation.json"
BEST_OF_TASKS = 1000  # return of a task of dm_control at the most: a reward up to 1 for each of 1,000 control steps
SEEN = {"state": "true state", "pixels": "stacked pixels, CNN", "pca": "PCA of stacked frames"}


@dataclass(frozen=True)
class PolicyRun:
    """A policy's training, as its directory shows it.

    Attributes:
        directory: where it lies.
        sees: what it learns from, for legends: "contexts", "random weights", "true state" ...
        is_baseline: whether that is something else than contexts of a trained model.
        settings: of the training; empty where its record is missing.
        evaluations: the points of its learning curve, one or more.
        returns: of single episodes: of `evaluate`, else of the last point.
        is_evaluated: whether they are of `evaluate`, so of fresh episodes.
    """

    directory: Path
    sees: str
    is_baseline: bool
    settings: dict[str, Any]
    evaluations: list[dict[str, Any]]
    returns: tuple[float, ...]
    is_evaluated: bool

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        return float(np.std(self.returns))

    @property
    def frames(self) -> int:
        return self.evaluations[-1]["frames"]

    @property
    def env_name(self) -> str:
        return self.settings.get("env") or self.settings.get("task", "")

    @property
    def said(self) -> str:
        """The return, as "612 ± 30"."""
        return f"{self.mean:.{_digits(self.mean)}f} ± {self.std:.{_digits(self.mean)}f}"

    @property
    def film(self) -> Path | None:
        """An animation in its directory, the newest."""
        films = [path for suffix in ("gif", "webp") for path in self.directory.glob(f"*.{suffix}")]
        return max(films, key=lambda path: path.stat().st_mtime, default=None)


def load_policy_run(directory: str | Path) -> PolicyRun:
    """What a policy's directory holds.

    Raises:
        FileNotFoundError: it holds no learning curve.
        ValueError: no evaluation is in it yet.
    """
    directory = Path(directory)
    if not (directory / CURVE_FILE).is_file():
        raise FileNotFoundError(f"{directory} holds no results: {CURVE_FILE} is not there")
    evaluations = read_lines(directory / CURVE_FILE)
    if not evaluations:
        raise ValueError(f"{directory / CURVE_FILE} holds no evaluation yet")
    record = read_json(directory / RECORD_FILE) if (directory / RECORD_FILE).is_file() else {}
    settings = record.get("settings", {})
    returns = tuple(evaluations[-1].get("returns") or (evaluations[-1]["mean_return"],))
    if is_evaluated := (directory / EVALUATION_FILE).is_file():
        returns = tuple(read_json(directory / EVALUATION_FILE)["returns"])
    observation = settings.get("observation", "context")
    untrained = record.get("offline_data") == []  # the model has learned from nothing
    sees = SEEN.get(observation) or ("random weights" if untrained else "contexts")
    return PolicyRun(directory, sees, sees != "contexts", settings, evaluations, returns, is_evaluated)


def rivals(policies: Sequence[PolicyRun]) -> tuple[PolicyRun, PolicyRun | None]:
    """The policy that a report is about, and the best baseline in the same environment.

    The first that is filmed and no baseline, and not the best, which luck may have chosen. The true state is no rival:
    it is what contexts can reach at most.
    """
    ours = min(policies, key=lambda p: (p.is_baseline, p.film is None))
    others = [
        p
        for p in policies
        if p is not ours and p.is_baseline and p.env_name == ours.env_name and p.settings.get("observation") != "state"
    ]
    return ours, max(others, key=lambda p: p.mean, default=None)


def is_no_better(ours: PolicyRun, rival: PolicyRun) -> bool:
    """Whether the difference is within twice its standard error, or against us."""
    error = math.sqrt(sum(p.std**2 / len(p.returns) for p in (ours, rival)))
    return ours.mean - rival.mean <= 2 * error


def has_learned(policy: PolicyRun) -> bool:
    """Whether its return has risen since the first evaluation by more than one standard deviation of that."""
    first = policy.evaluations[0]
    return len(policy.evaluations) < 2 or policy.mean > first["mean_return"] + first.get("std_return", 0.0)


def verdict(policies: Sequence[PolicyRun]) -> str:
    """What was learned and how good it is, in one sentence."""
    ours, rival = rivals(policies)
    steps = ours.evaluations[-1].get("steps")
    spent = f"{steps:,} steps ({ours.frames:,} frames)" if steps and steps != ours.frames else f"{ours.frames:,} steps"
    best = f" of at most {BEST_OF_TASKS:,}" if ours.settings.get("env") is None and ours.settings else ""
    learned = f"{ours.settings.get('algorithm') or 'a policy'} learned {ours.env_name or 'the task'} from {ours.sees}"
    said = f"In {spent} {learned} to a return of {ours.said}{best}"
    if not has_learned(ours):
        said = f"In {spent} nothing was learned yet of {ours.env_name or 'the task'} from {ours.sees}"
        return f"{said}: a return of {ours.said}{best}, no clear rise since the first evaluation."
    if rival is None:
        return f"{said}; no baseline stands beside it."
    beside = f"{rival.said} from {rival.sees}"
    if rival.frames != ours.frames:
        beside += f" after {rival.frames:,} frames"
    if ours.mean <= rival.mean:
        return f"{said}, which is no better than {beside}."
    if is_no_better(ours, rival):
        return f"{said}, which is not clearly better than {beside}."
    against = f"{ours.mean / rival.mean:.1f} times the" if rival.mean > 0 else "against"
    return f"{said}, {against} {beside}."


def policy_section(policies: Sequence[PolicyRun]) -> Section:
    """Curves of all policies in one figure, and a table, the one that the report is about first."""
    ours, rival = rivals(policies)
    policies = sorted(policies, key=lambda policy: policy is not ours)
    names = _names(policies)
    long = {names[p.directory]: p.evaluations for p in policies if len(p.evaluations) > 1}
    figures: tuple[Figure, ...] = ()
    if long:
        caption = (
            "Return of evaluation episodes over the frames (control steps) that a policy has learned from; the band is "
            "one standard deviation of an evaluation's episodes. One run each."
        )
        figures = (Figure("learning_curve", "Learning curves", caption, plots.learning_curve(long)),)
    rows = tuple(
        (
            names[p.directory],
            p.said,
            f"{len(p.returns)} {'fresh' if p.is_evaluated else 'in training'}",
            f"{p.frames:,}",
            _minutes(p.evaluations[-1].get("seconds")),
        )
        for p in policies
    )
    table = Table("Returns", ("policy on", "return", "episodes", "frames", "time"), rows, "Mean ± standard deviation.")
    comparisons: tuple[Comparison, ...] = ()
    if rival is not None:
        longer = (
            f"perceiver-obs train-policy --settings {ours.directory / RECORD_FILE} --total-frames {2 * ours.frames}"
        )
        comparisons = (Comparison("return of the policy", ours.mean, rival.mean, rival.sees, ".1f", longer),)
    return Section("Policy", "", {}, figures, (table,), comparisons)


def _names(policies: Sequence[PolicyRun]) -> dict[Path, str]:
    """What each policy sees; with its directory's name where several see the same."""
    seen = [policy.sees for policy in policies]
    return {p.directory: p.sees if seen.count(p.sees) == 1 else f"{p.sees} ({p.directory.name})" for p in policies}


def _digits(number: float) -> int:
    return 0 if abs(number) >= 100 else 1 if abs(number) >= 1 else 2


def _minutes(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds / 60:.1f} min"
