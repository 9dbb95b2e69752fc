"""What we require can be had for later versions of Python, as far as metadata says; `make resolve` asks pip."""

import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
NOT_FOR_3_13 = {"dm-control", "labmaze"}  # the one asks for the other, which has no package for it: docs/install.md


@cache
def installed(name: str) -> tuple[str, SpecifierSet, list[Requirement]] | None:
    """The version of a package, the versions of Python that it admits, and its requirements."""
    try:
        package = distribution(name)
    except PackageNotFoundError:  # of another version of Python alone
        return None
    admitted = SpecifierSet(package.metadata["Requires-Python"] or "")
    return package.version, admitted, [Requirement(text) for text in package.requires or []]


def required(requirements: list[Requirement], version: str, extras: set[str]) -> Iterator[Requirement]:
    """Those that a version of Python and the extras ask for."""
    for requirement in requirements:
        asked = {"python_version": version, "python_full_version": f"{version}.0"}
        if requirement.marker is None or any(
            requirement.marker.evaluate({**asked, "extra": extra}) for extra in extras | {""}
        ):
            yield requirement


def everything(version: str) -> dict[str, list[Requirement]]:
    """All that is required on a version of Python, directly or by others, by name: its requirements."""
    texts = [*PROJECT["dependencies"], *(text for each in PROJECT["optional-dependencies"].values() for text in each)]
    found: dict[str, list[Requirement]] = {}
    waiting = list(required([Requirement(text) for text in texts], version, set()))
    seen = set()
    while waiting:
        requirement = waiting.pop()
        name, asked = canonicalize_name(requirement.name), str(requirement)
        if asked in seen or name == "perceiver-obs":
            continue
        seen.add(asked)
        found.setdefault(name, []).append(requirement)
        if (package := installed(name)) is not None:
            waiting += required(package[2], version, requirement.extras)
    return found


@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_all_that_is_required_admits_later_versions_of_python(version):
    assert version in SpecifierSet(PROJECT["requires-python"])
    found = everything(version)
    assert found.keys() >= {"torch", "mujoco", "gymnasium", "ray", "h5py", "numpy"}, "what others require, and extras"
    for name, requirements in found.items():
        if (package := installed(name)) is None:
            continue
        held, admitted, _ = package
        assert f"{version}.9" in admitted, f"{name} {held} needs Python {admitted}"
        for requirement in requirements:
            assert requirement.specifier.contains(held, prereleases=True), f"{requirement} is required, {held} is here"


def test_what_cannot_be_had_for_python_3_13_is_not_asked_for_there():
    assert everything("3.12").keys() >= NOT_FOR_3_13
    assert not everything("3.13").keys() & NOT_FOR_3_13
