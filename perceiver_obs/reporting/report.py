"""`report`: what jobs leave in their directories, put together into one self-contained HTML page."""

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from perceiver_obs.files import write_atomic
from perceiver_obs.reporting.page import Film, Page, Section
from perceiver_obs.reporting.policies import (
    CURVE_FILE,
    RECORD_FILE,
    PolicyRun,
    has_learned,
    is_no_better,
    load_policy_run,
    policy_section,
    rivals,
    verdict,
)
from perceiver_obs.reporting.sections import load_section
from perceiver_obs.settings import read_json

ORDER = ("Tokenizer", "Predictor", "Generated future", "Probe")
FIT_FILE, NEXT_COMMAND = "fit.json", "next_command"  # the command that `fit` leaves to be run next
LONGEST_PAUSE = 600  # seconds without a new file that still count as work
LONG = 100_000  # frames, as of DMControl-100k
NEXT = 3
_GYMNASIUM_ID = re.compile(r"-v\d+$")


@dataclass
class ReportSettings:
    """Put the results of several runs together into one self-contained HTML page."""

    out: str = "runs"
    """Directory to write report.html into."""
    runs: tuple[str, ...] = ()
    """Directories of training runs, probes and policies, in the order to show them. None named: all within `out`."""
    title: str = ""
    """Heading of the page. Empty: the environment that the policies act in, or the directory's name."""


def report(settings: ReportSettings) -> Path:
    """Writes the page and returns its path.

    Raises FileNotFoundError naming a directory that holds no results.
    """
    out = Path(settings.out)
    if settings.runs:
        found = [_load(Path(run)) for run in settings.runs]
    else:
        found = []
        for directory in sorted(path for path in out.glob("*") if path.is_dir()):
            with suppress(FileNotFoundError):
                found.append(_load(directory))
    if not found:
        raise FileNotFoundError(f"no directory within {out} holds results to report")
    policies = [each for each in found if isinstance(each, PolicyRun)]
    sections = [each for each in found if isinstance(each, Section)]
    if not settings.runs:
        sections.sort(key=lambda section: ORDER.index(section.title) if section.title in ORDER else len(ORDER))
    page = _page(settings.title or _title(out, policies), out, policies, sections)
    path = out / "report.html"
    write_atomic(path, page.html().encode())
    print(f"report: {page.verdict}\nreport: {path}" if page.verdict else f"report: {path}")
    return path


def _load(directory: Path) -> PolicyRun | Section:
    is_policy = (directory / CURVE_FILE).is_file()
    return load_policy_run(directory) if is_policy else load_section(directory)


def _title(out: Path, policies: Sequence[PolicyRun]) -> str:
    named = dict.fromkeys(policy.env_name for policy in policies if policy.env_name)
    return ", ".join(named or _collected(out)) or out.resolve().name


def _collected(out: Path) -> list[str]:
    """The tasks, or environments' ids, of the datasets within a directory."""
    contracts = [read_json(path).get("frame_contract") or {} for path in sorted(out.glob("*/meta.json"))]
    return list(dict.fromkeys(task for contract in contracts for task in contract.get("tasks") or ()))


def _page(title: str, out: Path, policies: Sequence[PolicyRun], sections: Sequence[Section]) -> Page:
    page = Page(title, sections, subtitle=_when(out), commands=next_commands(out, policies)[:NEXT])
    if not policies:
        judging = next((section for section in sections if section.verdict), None)
        if judging is None:
            return page
        return replace(page, verdict=judging.verdict, is_worse=any(each.is_worse for each in judging.comparisons))
    ours, rival = rivals(policies)
    film = None
    if ours.film is not None:
        film = Film.read(ours.film, f"An episode of the policy on {ours.sees}, as the model sees it ({ours.film}).")
    return replace(
        page,
        verdict=verdict(policies),
        is_worse=not has_learned(ours) or (rival is not None and is_no_better(ours, rival)),
        film=film,
        policy=policy_section(policies),
    )


def _when(out: Path) -> str:
    """The date, and the time in which files were written, without pauses."""
    times = []
    for path in out.rglob("*"):
        with suppress(FileNotFoundError):  # a job that is under way removes its temporary files
            times += [path.stat().st_mtime] if path.is_file() and path.name != "report.html" else []
    times.sort()
    gaps = [after - before for before, after in pairwise(times)]
    minutes = round(sum(gap for gap in gaps if gap < LONGEST_PAUSE) / 60)
    spent = f"{minutes} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
    now = time.localtime()
    return f"perceiver_obs, {now.tm_mday} {time.strftime('%B %Y', now)}" + (f", made in {spent}" if minutes > 1 else "")


def next_commands(out: Path, policies: Sequence[PolicyRun]) -> list[tuple[str, str]]:
    """What may be run next: what for, and the command. The most useful first."""
    own = (
        "A model of your own environment, in twenty minutes",
        f"perceiver-obs fit --env Pendulum-v1 --out {out.parent / 'pendulum'}",
    )
    if not policies:
        fit = out / FIT_FILE
        if fit.is_file() and NEXT_COMMAND in (left := read_json(fit)):
            return [("Train a policy", left[NEXT_COMMAND])]
        model = next(iter(sorted(out.glob("*/model.safetensors"))), None)
        name = "dmc-small" if model is None else str(model.parent)
        tasks = _collected(out)[:1]
        which = "".join(f" {'--env' if _GYMNASIUM_ID.search(task) else '--task'} {task}" for task in tasks)
        return [("Train a policy", f"perceiver-obs train-policy{which} --model {name} --out {out / 'policy'}"), own]
    ours, _ = rivals(policies)
    record = ours.directory / RECORD_FILE
    commands = []
    if not ours.is_evaluated:
        commands.append(("Evaluate it on fresh episodes", f"perceiver-obs evaluate --policy {ours.directory}"))
    if ours.film is None:
        which = f"--env {ours.env_name}" if ours.settings.get("env") else ours.env_name
        watch = f"perceiver-obs watch {which} --model {ours.settings.get('model', 'dmc-small')}"
        film = ours.directory / "watch.gif"
        commands.append(("Watch it", f"{watch} --policy {ours.directory} --out {film}"))
    commands.append(
        (
            "A better policy: go on learning",
            f"perceiver-obs train-policy --settings {record} --total-frames {max(LONG, 2 * ours.frames)}",
        )
    )
    if ours.sees == "contexts" and ours.settings.get("adapt_every") is None:
        data = " ".join(str(path.parent) for path in sorted(out.glob("*/meta.json")))
        commands.append(
            (
                "A model that goes on learning with the policy",
                f"perceiver-obs train-policy --settings {record} --adapt-every 10000"
                f"{' --adapt-data ' + data if data else ''} --out {ours.directory}-adapted",
            )
        )
    return [*commands, own]
