"""The documentation builds without a broken link, and its snippets run as they stand."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_readme import SMALL

from agents.cli import JOBS, main
from perceiver_obs.settings import parse_settings

ROOT = Path(__file__).parent.parent
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md"))
SMALLER = {**SMALL, "collect": "--episodes 8 --max-steps 20 --workers 1"}


def snippets(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def test_every_link_leads_somewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "ContextEncoder" in (tmp_path / "site" / "reference" / "index.html").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_snippets_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for code in snippets(page, "python"):
        exec(compile(code, str(page), "exec"), {"__name__": "docs"})
    for line in "".join(snippets(page, "bash")).splitlines():
        name, *options = shlex.split(line)[1:]
        assert main([name, *options, *shlex.split(SMALLER[name])]) == 0, line


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page, "sh")], ids=lambda page: page.stem)
def test_commands_that_take_too_long_for_a_test_have_settings_that_exist(page):
    for line in "".join(snippets(page, "sh")).replace("\\\n", "").splitlines():
        name, *options = shlex.split(line)[1:]
        parse_settings(JOBS[name].settings_type(), options, name)


def test_every_stage_of_make_model_has_settings_that_exist(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["make_model.py", "--dry-run", "--state-weight", "1"])
    runpy.run_path(str(ROOT / "benchmarks" / "make_model.py"), run_name="__main__")
    names = []
    for line in capsys.readouterr().out.splitlines():
        name, *options = shlex.split(line)[1:]
        parse_settings(JOBS[name].settings_type(), options, name)
        names.append(name)
    assert list(dict.fromkeys(names)) == [
        "collect",
        "train-policy",
        "evaluate",
        "train-tokenizer",
        "train-predictor",
        "probe",
    ]


@pytest.mark.parametrize("page", ["docs/how-it-works.md", "CONTRIBUTING.md"])
def test_the_files_that_pages_name_exist(page):
    named = re.findall(
        r"`((?:perceiver_obs|envs|agents|tests|objectives|training)/[\w/.]+)`", (ROOT / page).read_text()
    )
    assert len(named) > 5
    missing = [path for path in named if not any((root / path).exists() for root in (ROOT, ROOT / "perceiver_obs"))]
    assert not missing
