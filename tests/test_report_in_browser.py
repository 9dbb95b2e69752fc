"""The report in a real browser: nothing is wider than the window, and film and curves are there to see."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_report import SECTION, make_policy, noise

from perceiver_obs.reporting.page import Comparison, Section, Table
from perceiver_obs.reporting.report import ReportSettings, report
from perceiver_obs.reporting.sections import save_section

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
MEASURE = """<script>addEventListener("load", () => parent.postMessage(JSON.stringify({
  window: innerWidth,
  page: document.documentElement.scrollWidth,
  pictures: [...document.images].map(i => [i.alt, i.naturalWidth, i.naturalHeight, i.getBoundingClientRect().right]),
}), "*"))</script>"""
# A headless window is never narrower than 500 pixels; a frame in it is.
FRAME = """<!doctype html><script>onmessage = e => document.documentElement.dataset.measured = e.data</script>
<iframe src="report.html" width="WIDTH" height="1000" style="border: 0"></iframe>"""
HEIGHT = 1600

pytestmark = [
    pytest.mark.usefixtures("pictures"),
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A report with all that there can be: long words, wide tables, commands, a film, curves of several policies."""
    out = tmp_path_factory.mktemp("a_directory_with_a_name_that_is_longer_than_a_telephone_is_wide") / "runs"
    policy = make_policy(out / "policy", [100.0, 300.0, 600.0])
    make_policy(out / "policy-random-weights", [90.0, 120.0, 130.0], learned_from=())
    frames = [Image.fromarray(noise(600, 900, 3)) for _ in range(2)]
    frames[0].save(policy / "watch.gif", save_all=True, append_images=frames[1:])
    wide = Table("Wide", tuple(f"column {i}" for i in range(30)), (tuple("0.123" for _ in range(30)),))
    worse = Comparison("x" * 60, 0.1, 0.2, "y" * 60, ".2f", "perceiver-obs train-predictor " + "--data a/b/c " * 30)
    save_section(out / "model", Section("Predictor", "…", {"z" * 60: "z" * 60}, SECTION.figures, (wide,), (worse,)))
    path = report(ReportSettings(out=str(out)))
    path.write_text(path.read_text().replace("</body>", f"{MEASURE}</body>"))
    return path


def browse(page: Path, width: int, option: str, home: Path) -> str:
    """What headless chromium prints."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1"]
    flags += [f"--user-data-dir={home}", f"--window-size={width},{HEIGHT}", option, page.as_uri()]
    return subprocess.run([str(CHROMIUM), *flags], capture_output=True, text=True, timeout=300, check=True).stdout


@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_fits_the_window_and_shows_film_and_curves(page, tmp_path, width):
    frame = page.parent / f"{width}.html"
    frame.write_text(FRAME.replace("WIDTH", str(width)))
    found = re.search('data-measured="([^"]*)"', browse(frame, 1400, "--dump-dom", tmp_path / "profile"))
    measured = json.loads(html.unescape(found[1]))
    assert measured["window"] == width
    assert measured["page"] <= width
    pictures = {alt: (natural_width, natural_height) for alt, natural_width, natural_height, _ in measured["pictures"]}
    assert pictures["An episode of the policy"] == (900, 600)
    assert min(pictures["Learning curves"]) > 200
    assert all(right <= width for *_, right in measured["pictures"])

    picture = tmp_path / "page.png"
    browse(page, width, f"--screenshot={picture}", tmp_path / "profile")
    with Image.open(picture) as image:
        assert image.size == (width, HEIGHT)
        assert len(np.unique(np.asarray(image.convert("L")))) > 50  # the film's noise, at least
