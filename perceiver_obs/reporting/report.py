"""Reports: what jobs leave in their directories, put together into one self-contained HTML page."""

import base64
import html
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from perceiver_obs.files import write_atomic
from perceiver_obs.reporting import plots
from perceiver_obs.reporting.metrics import read_lines
from perceiver_obs.settings import read_json

SECTION_FILE = "section.json"
CURVE_FILE = "curve.jsonl"
ORDER = ("Tokenizer", "Predictor", "State probe", "Generated future", "Policy")


@dataclass(frozen=True)
class Figure:
    """A picture with a title and a line that says how to read it."""

    name: str
    title: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class Table:
    """Rows of text, the first entry of each a label, with a title and a line that says how to read them."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """What one job has to show: facts by name, tables and figures."""

    title: str
    summary: str
    facts: dict[str, str] = field(default_factory=dict)
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass
class ReportSettings:
    """Put the results of several runs together into one self-contained HTML page."""

    out: str = "runs"
    """Directory to write report.html into."""
    runs: tuple[str, ...] = ()
    """Directories of training runs, probes and policies, in the order to show them. None named: all within `out`."""
    title: str = "perceiver_obs"
    """Heading of the page."""


def report(settings: ReportSettings) -> Path:
    """Writes the page and returns its path.

    Raises FileNotFoundError naming a directory that holds no results.
    """
    sections = [load_section(run) for run in settings.runs] or find_sections(settings.out)
    path = Path(settings.out) / "report.html"
    write_atomic(path, page(settings.title, sections).encode())
    print(f"report: {path}")
    return path


def find_sections(directory: str | Path) -> list[Section]:
    """What the runs directly within a directory have to show, in the order of the jobs."""
    found = []
    for run in sorted(path for path in Path(directory).glob("*") if path.is_dir()):
        with suppress(FileNotFoundError):
            found.append(load_section(run))
    if not found:
        raise FileNotFoundError(f"no directory within {directory} holds results to report")
    return sorted(found, key=lambda section: ORDER.index(section.title) if section.title in ORDER else len(ORDER))


def save_section(directory: str | Path, section: Section) -> None:
    """Keeps a section in a run's directory, figures as `figures/NAME.png`, with `report.html` beside it."""
    directory = Path(directory)
    for figure in section.figures:
        write_atomic(directory / "figures" / f"{figure.name}.png", figure.png)
    figures = [{"name": f.name, "title": f.title, "caption": f.caption} for f in section.figures]
    content = {"title": section.title, "summary": section.summary, "facts": section.facts, "figures": figures}
    content["tables"] = [asdict(table) for table in section.tables]
    write_atomic(directory / SECTION_FILE, json.dumps(content, indent=2).encode())
    write_atomic(directory / "report.html", page(section.title, [section]).encode())


def load_section(directory: str | Path) -> Section:
    """The section that a run left in its directory; of a policy run, its learning curve."""
    directory = Path(directory)
    if (directory / SECTION_FILE).is_file():
        content = read_json(directory / SECTION_FILE)
        figures = tuple(
            Figure(**figure, png=(directory / "figures" / f"{figure['name']}.png").read_bytes())
            for figure in content["figures"]
        )
        tables = tuple(_load_table(table) for table in content.get("tables", []))
        return Section(content["title"], content["summary"], content["facts"], figures, tables)
    if (directory / CURVE_FILE).is_file():
        return policy_section(directory)
    raise FileNotFoundError(f"{directory} holds no results: neither {SECTION_FILE} nor {CURVE_FILE} is there")


def _load_table(content: dict[str, Any]) -> Table:
    rows = tuple(tuple(row) for row in content["rows"])
    return Table(content["title"], tuple(content["columns"]), rows, content["caption"])


def policy_section(directory: Path) -> Section:
    """The learning curve of a policy from its lines `{"frames": …, "mean_return": …, "std_return": …}`."""
    evaluations = read_lines(directory / CURVE_FILE)
    if not evaluations:
        raise ValueError(f"{directory / CURVE_FILE} holds no evaluation yet")
    last, best = evaluations[-1], max(evaluations, key=lambda e: e["mean_return"])
    curve = Figure(
        "learning_curve",
        "Learning curve",
        "Mean return of evaluation episodes over the environment frames spent; the band is one standard deviation.",
        plots.learning_curve({directory.name: evaluations}),
    )
    facts = {
        "return at the end": f"{last['mean_return']:.1f} ± {last.get('std_return', 0):.1f}",
        "best evaluation": f"{best['mean_return']:.1f} at {best['frames']:,} frames",
        "environment frames": f"{last['frames']:,}",
    }
    return Section("Policy", f"A policy trained on contexts, in {directory}.", facts, (curve,))


def page(title: str, sections: Sequence[Section]) -> str:
    """One HTML page with pictures inside, that needs no other file."""
    body = "".join(_section_html(section) for section in sections)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>{STYLE}</style></head>
<body><h1>{html.escape(title)}</h1>{body}</body></html>
"""


def _section_html(section: Section) -> str:
    facts = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in section.facts.items()
    )
    tables = "".join(_table_html(table) for table in section.tables)
    figures = "".join(_figure_html(figure) for figure in section.figures)
    summary = f"<p>{html.escape(section.summary)}</p>"
    return f"<section><h2>{html.escape(section.title)}</h2>{summary}<dl>{facts}</dl>{tables}{figures}</section>"


def _table_html(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return (
        f"<figure><h3>{html.escape(table.title)}</h3><div><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
        f"</table></div><figcaption>{html.escape(table.caption)}</figcaption></figure>"
    )


def _figure_html(figure: Figure) -> str:
    picture = base64.b64encode(figure.png).decode()
    title, caption = html.escape(figure.title), html.escape(figure.caption)
    return (
        f'<figure><h3>{title}</h3><img alt="{title}" src="data:image/png;base64,{picture}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #24292f; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; } h2 { border-bottom: 1px solid #d0d7de; padding-bottom: .2rem; margin-top: 2.5rem; }
h3 { font-size: 1rem; margin: 0 0 .4rem; }
dl { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0; }
dl div { background: #f6f8fa; border-radius: 6px; padding: .45rem .8rem; }
dt { font-size: .75rem; color: #57606a; } dd { margin: 0; font-weight: 600; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } figure div { overflow-x: auto; }
th, td { padding: .2rem .9rem .2rem 0; text-align: right; border-bottom: 1px solid #d0d7de; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1.6rem 0; } img { max-width: 100%; } figcaption { color: #57606a; font-size: .87rem; }
"""
