"""One self-contained HTML page: what there is to show as values, and their rendering by a Jinja2 template."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template

MIME_TYPES = {".gif": "image/gif", ".webp": "image/webp", ".png": "image/png"}


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
class Comparison:
    """A number beside that of its best baseline; more is better.

    Attributes:
        name: of what is measured.
        value, baseline: the numbers.
        baseline_name: what the baseline is.
        style: how they are written, as for `format`.
        command: what to try where the baseline is better.
    """

    name: str
    value: float
    baseline: float
    baseline_name: str
    style: str = ".2f"
    command: str = ""

    @property
    def is_worse(self) -> bool:
        return not self.value > self.baseline

    @property
    def text(self) -> str:
        """The number, and the baseline's."""
        return f"{self.value:{self.style}} ({self.baseline_name}: {self.baseline:{self.style}})"


@dataclass(frozen=True)
class Section:
    """What one job has to show: facts by name, numbers beside baselines, tables and figures; in a sentence, what it
    found, where it judges a model."""

    title: str
    summary: str
    facts: dict[str, str] = field(default_factory=dict)
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    verdict: str = ""


@dataclass(frozen=True)
class Film:
    """An animated picture, as bytes of a GIF or WebP."""

    data: bytes
    suffix: str
    caption: str

    @classmethod
    def read(cls, path: Path, caption: str) -> "Film":
        return cls(path.read_bytes(), path.suffix, caption)


@dataclass(frozen=True)
class Page:
    """All of a page, in the order in which it is shown.

    Attributes:
        title: the heading.
        subtitle: when it was made, and how long that took.
        verdict: one sentence.
        is_worse: whether the verdict is that a baseline is as good.
        film: of the policy.
        policy: its curves and table.
        sections: of the other jobs.
        commands: what to run next: what for, and the command.
    """

    title: str
    sections: Sequence[Section] = ()
    subtitle: str = ""
    verdict: str = ""
    is_worse: bool = False
    film: Film | None = None
    policy: Section | None = None
    commands: Sequence[tuple[str, str]] = ()

    @property
    def worse(self) -> list[Comparison]:
        """What is no better than a baseline, all sections together."""
        shown = [self.policy] if self.policy else []
        return [each for section in (*shown, *self.sections) for each in section.comparisons if each.is_worse]

    def html(self) -> str:
        """The page, with pictures inside, that needs no other file."""
        return _template().render(page=self)


@cache
def _template() -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("perceiver_obs", "reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = _data_uri
    return environment.get_template("page.html.jinja")


def _data_uri(data: bytes, suffix: str) -> str:
    return f"data:{MIME_TYPES[suffix]};base64,{base64.b64encode(data).decode()}"
