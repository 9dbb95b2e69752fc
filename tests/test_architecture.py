"""Imports run one way: from a folder to those before it, and never in a circle."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("perceiver_obs", "envs", "agents")
# Folders and packages' own files; each imports itself and what comes before it.
FOLDERS = (
    "perceiver_obs.modules",
    "perceiver_obs",
    "perceiver_obs.wrappers",
    "perceiver_obs.data",
    "perceiver_obs.reporting",
    "perceiver_obs.objectives",
    "perceiver_obs.training",
    "perceiver_obs.evaluation",
    "envs.dmc",
    "envs",
    "envs.collection",
    "agents.wrappers",
    "agents.policies",
    "agents.adaptation",
    "agents.training",
    "agents.benchmark",
    "agents.visualize",
    "agents",
)
MODULE_LIBRARIES = {"torch", "einops", "vector_quantize_pytorch"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


FILES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def imports(path: Path) -> set[str]:
    """All that a file imports, at any depth of its code, for typing too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def imported_files(path: Path) -> set[str]:
    """Files of the project that a file imports; a package's own `__init__` only hands on what others define."""
    return {name for name in imports(path) if name in FILES}


def folder(module: str) -> str:
    return module.rpartition(".")[0]


@pytest.mark.parametrize("module", [name for name in FILES if not name.endswith("__init__")])
def test_imports_run_one_way(module):
    allowed = FOLDERS[: FOLDERS.index(folder(module)) + 1]
    wrong = {name for name in imported_files(FILES[module]) if folder(name) not in allowed}
    assert not wrong, f"{module} imports {sorted(wrong)}"
    later = set(PACKAGES[PACKAGES.index(module.split(".")[0]) + 1 :])  # what their __init__ hands on, too
    assert not later & {name.split(".")[0] for name in imports(FILES[module])}


def test_no_file_imports_itself_by_way_of_others():
    list(TopologicalSorter({name: imported_files(path) for name, path in FILES.items()}).static_order())


def test_layers_use_three_libraries():
    standard = set(sys.stdlib_module_names)
    for name, path in FILES.items():
        if folder(name) == "perceiver_obs.modules":
            used = {n.split(".")[0] for n in imports(path)} - standard - {"perceiver_obs"}
            assert used <= MODULE_LIBRARIES, f"{name} imports {sorted(used - MODULE_LIBRARIES)}"


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("from perceiver_obs import *", ["stable_baselines3", "dm_control", "matplotlib", "envs", "agents"]),
        ("from envs import *", ["torch", "perceiver_obs.causal_perceiver", "dm_control", "agents"]),
        ("from perceiver_obs.data.rollouts import *", ["torch", "envs"]),
        # Progress bars: before it has set how often they draw.
        ("import agents.cli", ["torch", "stable_baselines3", "dm_control", "tqdm"]),
    ],
)
def test_importing_one_part_does_not_import_the_others(code, absent):
    code = f"import sys\n{code}\nprint([m for m in {absent} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
