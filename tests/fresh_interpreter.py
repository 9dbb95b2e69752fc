"""Scripts in an interpreter of their own, where nothing is imported and no OpenGL backend chosen."""

import os
import subprocess
import sys


def run_python(script, **variables):
    """Run a script in a fresh interpreter that has no OpenGL backend chosen; returns what it printed."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env={**environment, **variables}
    )
    return result.stdout + result.stderr
