"""Reports and pictures: self-contained, escaped, and drawn from any shapes that runs produce."""

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from perceiver_obs.reporting import plots
from perceiver_obs.reporting.report import (
    Figure,
    ReportSettings,
    Section,
    Table,
    find_sections,
    load_section,
    page,
    report,
    save_section,
)


def size_of(png: bytes) -> tuple[int, int]:
    image = Image.open(io.BytesIO(png))
    image.load()
    return image.size


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


SECTION = Section(
    "Tokenizer",
    "Frames <to> tokens & back.",
    {"held-out PSNR": "30.1 dB"},
    (Figure("curves", "Curves", "Over the steps.", plots.code_usage(np.array([[3, 2, 0]]))),),
    (Table("Errors <m>", ("task", "a & b"), (("walker", "1 / 2"), ("mean", "–")), "Less is better."),),
)


class Structure(HTMLParser):
    """Collects tags and their links, and fails on tags that are not closed in order."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href") and value]
        if tag not in ("meta", "img", "!doctype"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_page_holds_everything_itself_and_escapes_text():
    structure = Structure(page("A <title>", [SECTION, SECTION]))
    assert structure.open == []
    assert len(structure.links) == 2
    assert all(link.startswith("data:image/png;base64,") for link in structure.links)
    assert "Frames <to> tokens & back." in structure.text
    assert "A <title>" in structure.text
    assert all(text in structure.text for text in ("Errors <m>", "a & b", "1 / 2", "Less is better."))
    assert not re.search(r"https?://", page("x", [SECTION]))


def test_sections_survive_their_directory(tmp_path):
    save_section(tmp_path / "run", SECTION)
    assert load_section(tmp_path / "run") == SECTION
    assert (tmp_path / "run" / "report.html").exists()


def test_sections_of_before_there_were_tables_load(tmp_path):
    save_section(tmp_path, SECTION)
    content = json.loads((tmp_path / "section.json").read_text())
    del content["tables"]
    (tmp_path / "section.json").write_text(json.dumps(content))
    assert load_section(tmp_path) == replace(SECTION, tables=())


def test_report_of_runs_within_a_directory_is_in_the_order_of_the_jobs(tmp_path, capsys):
    for name, title in (("a", "State probe"), ("b", "Predictor"), ("c", "Tokenizer")):
        save_section(tmp_path / name, Section(title, "…"))
    (tmp_path / "data").mkdir()
    policy = tmp_path / "policy"
    policy.mkdir()
    points = [{"frames": 2000 * i, "mean_return": 10.0 * i, "std_return": 2.0} for i in range(1, 4)]
    (policy / "curve.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    assert [s.title for s in find_sections(tmp_path)] == ["Tokenizer", "Predictor", "State probe", "Policy"]
    path = report(ReportSettings(out=str(tmp_path)))
    assert str(path) in capsys.readouterr().out
    assert "30.0 ± 2.0" in path.read_text()
    chosen = report(ReportSettings(out=str(tmp_path), runs=(str(policy), str(tmp_path / "a")))).read_text()
    assert chosen.index("<h2>Policy") < chosen.index("<h2>State probe")
    assert "<h2>Tokenizer" not in chosen


def test_directories_without_results_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load_section(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds results to report"):
        report(ReportSettings(out=str(tmp_path)))
    (tmp_path / "curve.jsonl").write_text("")
    with pytest.raises(ValueError, match="no evaluation yet"):
        load_section(tmp_path)


@given(count=st.integers(1, 20), height=st.integers(1, 100), width=st.integers(1, 100))
def test_frame_tables_of_any_size(count, height, width):
    frames = noise(count, height, width, 3)
    columns, rows = size_of(plots.reconstructions(frames, frames))
    assert columns >= count * width
    assert rows >= 3 * height


def test_frames_in_a_table_are_the_frames(tmp_path):
    frames = noise(2, 8, 8, 3)
    table = np.asarray(Image.open(io.BytesIO(plots.frame_table({"frames": frames}))).convert("RGB"))
    colours = {tuple(pixel) for pixel in table.reshape(-1, 3)}
    assert {tuple(pixel) for pixel in frames.reshape(-1, 3)} <= colours


def test_filmstrip_shows_what_was_predicted_below_what_happened():
    happened, predicted = noise(12, 8, 8, 3), noise(6, 8, 8, 3)
    every = size_of(plots.filmstrip(happened, predicted))
    fewer = size_of(plots.filmstrip(happened, predicted, every=3))
    assert every[0] > fewer[0]


def test_gif_has_every_frame(tmp_path):
    plots.write_gif(tmp_path / "future.gif", noise(7, 16, 16, 3), noise(4, 16, 16, 3), frames_per_second=20)
    animation = Image.open(tmp_path / "future.gif")
    assert animation.n_frames == 7
    assert animation.info["duration"] == 50
    assert animation.size == (16 * 4 * 2 + 4, 16 * 4 + 8)


def test_charts_take_gaps_and_empty_lines():
    size_of(plots.bars({"positions": {"context": 0.9, "PCA": float("nan")}, "velocities": {"context": -3.0}}, "R²"))
    size_of(plots.curves({"loss": {"training": ([1, 2], [3.0, 0.1]), "held out": ([], [])}}))
    size_of(plots.code_usage(np.array([[5, 0, 1], [1, 1, 1]])))
    size_of(plots.learning_curve({"policy": [{"frames": 0, "mean_return": 1.0}]}))
