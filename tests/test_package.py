"""The wheel and the sdist hold all that runs outside the checkout, weights too."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
USE = """
import numpy as np
from pathlib import Path
import agents, envs, perceiver_obs
assert Path(perceiver_obs.__file__).is_relative_to({place!r}), perceiver_obs.__file__
encoder = perceiver_obs.ContextEncoder()
print(encoder.push(np.zeros((1, 64, 64, 3), np.uint8)).shape)
"""


def build(kind: str, out: Path) -> Path:
    """From a copy, so that nothing of earlier builds gets in and nothing is left behind."""
    source = out / "source"
    for part in ("perceiver_obs", "envs", "agents"):
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / part, source)
    code = f"import setuptools.build_meta as b; print(b.build_{kind}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return out / done.stdout.splitlines()[-1]


def test_a_wheel_runs_outside_the_checkout(tmp_path):
    pytest.importorskip("setuptools")
    wheel = build("wheel", tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "runs/"))]
    assert "perceiver_obs/reporting/page.html.jinja" in names
    place = str(tmp_path / "installed")
    environment = {**os.environ, "PYTHONPATH": place}
    done = subprocess.run(
        [sys.executable, "-c", USE.format(place=place)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "(1, 128)" in done.stdout


def test_an_sdist_holds_the_same(tmp_path):
    pytest.importorskip("setuptools")
    with tarfile.open(build("sdist", tmp_path)) as archive:
        names = {Path(*Path(name).parts[1:]).as_posix() for name in archive.getnames()}
    for name in (
        "pyproject.toml",
        "perceiver_obs/pretrained/dmc-small/model.safetensors",
        "perceiver_obs/reporting/page.html.jinja",
        "agents/wrappers/vec_context.py",
    ):
        assert name in names
