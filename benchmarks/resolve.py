"""Whether pip finds our dependencies for later versions of Python, from metadata alone: nothing is installed."""

import subprocess
import tempfile
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

VERSIONS = ("3.12", "3.13")
EXTRAS = ("benchmark", "minari", "perceptual", "ray", "zstd")
FROM_SOURCE = {"rliable"}  # pip builds such packages for the Python that it runs on only
PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]


def requirements(version: str) -> Iterator[str]:
    """What is needed on a version. Its markers are read here: pip reads them for the Python that it runs on."""
    extras = [text for name in EXTRAS for text in PROJECT["optional-dependencies"][name]]
    for text in (*PROJECT["dependencies"], *extras):
        requirement = Requirement(text)
        wanted = requirement.marker is None or requirement.marker.evaluate({"python_version": version})
        if wanted and requirement.name not in FROM_SOURCE:
            requirement.marker = None
            yield str(requirement)


with tempfile.TemporaryDirectory() as folder:
    venv.create(folder, with_pip=True)
    pip = [f"{folder}/bin/python", "-m", "pip", "install", "-q"]
    # Earlier ones download in a dry run what they have resolved: gigabytes, as the wheels are those for a GPU.
    subprocess.run([*pip, "--upgrade", "pip>=26"], check=True)
    pip += ["--dry-run", "--ignore-installed", "--target", f"{folder}/nowhere"]
    pip += ["--use-feature=fast-deps", "--only-binary=:all:"]
    for version in VERSIONS:
        assert SpecifierSet(PROJECT["requires-python"]).contains(f"{version}.0"), version
        subprocess.run([*pip, "--python-version", version, "torch==2.13.0", *requirements(version)], check=True)
        print(f"Python {version}: all found", flush=True)
