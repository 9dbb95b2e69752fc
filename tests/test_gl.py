"""The choice of an OpenGL backend, and what is said where rendering cannot work."""

import subprocess
import sys

import pytest
from fresh_interpreter import run_python


def test_rendering_after_fork_says_what_to_do_and_forkserver_works(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import gymnasium, functools\n"
        "from envs import make_dmc\n"
        "make = functools.partial(make_dmc, 'cartpole-balance', size=16, render_quality='fast')\n"
        "if __name__ == '__main__':\n"
        "    make().reset()\n"
        "    vector = gymnasium.vector.AsyncVectorEnv([make, make], context='forkserver')\n"
        "    print(vector.reset(seed=0)[0].shape)\n"
        "    vector.close()\n"
        "    vector = gymnasium.vector.AsyncVectorEnv([make], context='fork')\n"
        "    try:\n"
        "        vector.reset(seed=0)\n"
        "    except RuntimeError as error:\n"
        "        print('error:', error)\n"
    )
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert "(2, 16, 16, 3)" in result.stdout
    assert "error: this process was forked" in result.stdout
    assert "context='forkserver'" in result.stdout


def test_without_opengl_the_error_names_the_debian_packages():
    # glvnd finds no driver in an empty directory: as on a machine that has none.
    printed = run_python(
        "import ctypes, envs\n"
        "try:\n"
        "    ctypes.CDLL('libOSMesa.so.8')\n"
        "except OSError:\n"
        "    try:\n"
        "        envs.make_dmc()\n"
        "    except RuntimeError as error:\n"
        "        print(error)\n"
        "else:\n"
        "    print('has OSMesa')\n",
        __EGL_VENDOR_LIBRARY_DIRS="/nonexistent",
        DISPLAY="",
        WAYLAND_DISPLAY="",
    )
    if "has OSMesa" in printed:  # it needs no driver, so frames can be rendered and there is no error to read
        pytest.skip("this machine has OSMesa to fall back on")
    assert len(printed.splitlines()) == 1
    assert all(package in printed for package in ("libegl1", "libgl1-mesa-dri", "libosmesa6"))


def test_a_display_is_not_needed_even_if_dm_control_came_first():
    printed = run_python(
        "from dm_control import suite\nimport envs\n"
        "print(envs.make_dmc(size=16, render_quality='fast').reset(seed=0)[0].shape)",
        DISPLAY="",
        WAYLAND_DISPLAY="",
    )
    assert "(16, 16, 3)" in printed


def test_the_users_backend_is_kept():
    script = (
        "import os, envs.dmc.gl\n"
        "for given in ({'MUJOCO_GL': 'egl', 'DISPLAY': ':0'}, {'PYOPENGL_PLATFORM': 'egl'}, {'DISPLAY': ''}):\n"
        "    for name in ('MUJOCO_GL', 'PYOPENGL_PLATFORM', 'DISPLAY'):\n"
        "        os.environ.pop(name, None)\n"
        "    os.environ |= given\n"
        "    envs.dmc.gl.choose_backend()\n"
        "    print(os.environ.get('MUJOCO_GL'))"
    )
    assert run_python(script).split() == ["egl"] * 3


@pytest.mark.parametrize(
    ("variable", "chosen", "words"),
    [
        ("MUJOCO_GL", "osmesa", ("OSMesa is not installed", "libosmesa6", "unset MUJOCO_GL")),
        ("PYOPENGL_PLATFORM", "osmesa", ("OSMesa is not installed", "libosmesa6", "unset PYOPENGL_PLATFORM")),
        ("MUJOCO_GL", "glfw", ("without a display", "MUJOCO_GL=egl", "unset MUJOCO_GL")),
        ("MUJOCO_GL", "1", ("without a display", "MUJOCO_GL=egl", "unset MUJOCO_GL")),
        ("MUJOCO_GL", "egl", ("libegl1", "libgl1-mesa-dri", "unset MUJOCO_GL")),
        ("MUJOCO_GL", "off", ("turns rendering off", "unset MUJOCO_GL")),
    ],
)
def test_a_chosen_backend_that_cannot_render_is_named_with_what_is_missing(variable, chosen, words):
    printed = run_python(
        "import ctypes, envs\n"
        "try:\n"
        "    envs.make_dmc(size=16).reset()\n"
        "except RuntimeError as error:\n"
        "    print(error)\n"
        "else:\n"
        "    print('renders')\n",
        **{"__EGL_VENDOR_LIBRARY_DIRS": "/nonexistent", "DISPLAY": ":77", "WAYLAND_DISPLAY": "", variable: chosen},
    )
    if "renders" in printed and chosen == "osmesa":
        pytest.skip("this machine has OSMesa")
    assert len(printed.splitlines()) == 1, printed
    assert all(word in printed for word in (f"{variable}={chosen}", *words)), printed
