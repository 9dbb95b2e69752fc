"""Sections in the directories of their runs: `section.json`, `figures/`, and `report.html` beside them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from perceiver_obs.files import write_atomic
from perceiver_obs.reporting import plots
from perceiver_obs.reporting.page import Comparison, Figure, Page, Section, Table
from perceiver_obs.settings import read_json

SECTION_FILE = "section.json"


def save_section(directory: str | Path, section: Section) -> None:
    """Keeps a section in a run's directory, figures as `figures/NAME.png`, with `report.html` beside it."""
    directory = Path(directory)
    for figure in section.figures:
        write_atomic(directory / "figures" / f"{figure.name}.png", figure.png)
    content: dict[str, Any] = {"title": section.title, "summary": section.summary, "facts": section.facts}
    content["figures"] = [{"name": f.name, "title": f.title, "caption": f.caption} for f in section.figures]
    content["tables"] = [asdict(table) for table in section.tables]
    content["comparisons"] = [asdict(each) for each in section.comparisons]
    content["verdict"] = section.verdict
    write_atomic(directory / SECTION_FILE, json.dumps(content, indent=2).encode())
    write_atomic(directory / "report.html", Page(section.title, [section]).html().encode())


def load_section(directory: str | Path) -> Section:
    """The section that a run left in its directory; FileNotFoundError where there is none."""
    directory = Path(directory)
    if not (directory / SECTION_FILE).is_file():
        raise FileNotFoundError(f"{directory} holds no results: {SECTION_FILE} is not there")
    content = read_json(directory / SECTION_FILE)
    return Section(
        content["title"],
        content["summary"],
        content["facts"],
        tuple(
            Figure(**figure, png=(directory / "figures" / f"{figure['name']}.png").read_bytes())
            for figure in content["figures"]
        ),
        tuple(_load_table(table) for table in content.get("tables", [])),
        tuple(Comparison(**each) for each in content.get("comparisons", [])),
        content.get("verdict", ""),
    )


def _load_table(content: dict[str, Any]) -> Table:
    rows = tuple(tuple(row) for row in content["rows"])
    return Table(content["title"], tuple(content["columns"]), rows, content["caption"])


def curve_figures(panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]) -> tuple[Figure, ...]:
    """A figure of curves over the steps of a run, without those of fewer than two points; none where none is left."""
    drawn = {
        title: long for title, lines in panels.items() if (long := {n: xy for n, xy in lines.items() if len(xy[0]) > 1})
    }
    return (Figure("curves", "Curves", "Over the steps of the run.", plots.curves(drawn)),) if drawn else ()
