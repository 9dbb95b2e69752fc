"""The rooms of the house import downward only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODELS = {
    "perceiver_obs.isolation",
    "perceiver_obs.hub",
    "perceiver_obs.presets",
    "perceiver_obs.modules",
    "perceiver_obs.tokenizer",
    "perceiver_obs.generation",
    "perceiver_obs.predictor",
    "perceiver_obs.causal_perceiver",
}

# Room -> what it may import of the project, at any depth of the code.
MAY_IMPORT = {
    "perceiver_obs/files.py": set(),
    "perceiver_obs/isolation.py": set(),
    "perceiver_obs/hub.py": {"perceiver_obs.files", "perceiver_obs.isolation"},
    "perceiver_obs/context_space.py": set(),
    "perceiver_obs/frame_contract.py": {"perceiver_obs.causal_perceiver"},
    "perceiver_obs/devices.py": set(),
    "perceiver_obs/presets.py": set(),
    "perceiver_obs/actions.py": set(),
    "perceiver_obs/modules": {"perceiver_obs.modules"},
    "perceiver_obs/tokenizer.py": {"perceiver_obs.modules", "perceiver_obs.hub"},
    "perceiver_obs/generation.py": {"perceiver_obs.modules", "perceiver_obs.predictor"},
    "perceiver_obs/predictor.py": {"perceiver_obs.modules", "perceiver_obs.tokenizer", "perceiver_obs.generation"},
    "perceiver_obs/causal_perceiver.py": MODELS,
    "perceiver_obs/step_graph.py": MODELS,
    "perceiver_obs/onnx_step.py": {"perceiver_obs.causal_perceiver", "perceiver_obs.step_graph"},
    "perceiver_obs/context_encoder.py": {
        "perceiver_obs.causal_perceiver",
        "perceiver_obs.onnx_step",
        "perceiver_obs.context_space",
        "perceiver_obs.devices",
        "perceiver_obs.hub",
        "perceiver_obs.isolation",
    },
    "perceiver_obs/wrappers": {
        "perceiver_obs.actions",
        "perceiver_obs.context_encoder",
        "perceiver_obs.frame_contract",
        "perceiver_obs.hub",
        "perceiver_obs.wrappers",
    },
    "perceiver_obs/training": {
        *MODELS,
        "perceiver_obs.devices",
        "perceiver_obs.files",
        "perceiver_obs.frame_contract",
        "perceiver_obs.training",
        "envs",
    },
    "envs": {
        "envs",
        "perceiver_obs.actions",
        "perceiver_obs.files",
        "perceiver_obs.frame_contract",
        "perceiver_obs.isolation",
    },
    "agents": {"agents", "perceiver_obs", "envs"},
}
MODULE_LIBRARIES = {"torch", "einops", "vector_quantize_pytorch"}


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def room_files(room: str) -> list[Path]:
    path = ROOT / room
    return [path] if path.suffix == ".py" else sorted(path.rglob("*.py"))


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_run_downward(room):
    for path in room_files(room):
        ours = {n for n in imports(path) if n.split(".")[0] in ("perceiver_obs", "envs", "agents")}
        allowed = MAY_IMPORT[room]
        # `from perceiver_obs import X` names the package too; what it brings is checked by its own name.
        wrong = {n for n in ours if not any(n == a or n.startswith(a + ".") for a in allowed)} - {"perceiver_obs"}
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_layers_use_three_libraries():
    standard = set(sys.stdlib_module_names)
    for path in room_files("perceiver_obs/modules"):
        used = {n.split(".")[0] for n in imports(path)} - standard - {"perceiver_obs"}
        assert used <= MODULE_LIBRARIES, f"{path.name} imports {sorted(used - MODULE_LIBRARIES)}"


@pytest.mark.parametrize(
    ("package", "absent"),
    [
        ("perceiver_obs", ["stable_baselines3", "dm_control", "matplotlib", "envs", "agents"]),
        ("envs", ["torch", "perceiver_obs.causal_perceiver", "perceiver_obs.context_encoder", "dm_control", "agents"]),
    ],
)
def test_importing_one_package_does_not_import_the_others(package, absent):
    code = f"import sys\nfrom {package} import *\nprint([m for m in {absent} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
