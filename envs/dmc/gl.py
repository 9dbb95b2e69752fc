"""The OpenGL backend that MuJoCo renders with, settled before dm_control's first import."""

import ctypes
import importlib
import os
import sys
import warnings
from collections.abc import Callable
from functools import cache

NO_OPENGL = (
    "no OpenGL library to render with: install EGL (Debian: apt-get install libegl1 libgl1-mesa-dri) "
    "or OSMesa (apt-get install libosmesa6)"
)

# By MUJOCO_GL: what is missing where the backend does not work, and how to get it.
_MISSING = {
    "egl": "EGL is not installed, or has no driver: apt-get install libegl1 libgl1-mesa-dri (Debian)",
    "osmesa": "OSMesa is not installed: apt-get install libosmesa6 (Debian)",
    "glfw": "GLFW opens no window without a display: run under xvfb-run, or choose MUJOCO_GL=egl",
}
_GLFW_TOO = ("on", "enable", "enabled", "true", "1")  # as dm_control reads the variable
_OFF = ("off", "disable", "disabled", "false", "0")
_OSMESA_LIBRARIES = ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so")
_EGL_PLATFORM_DEVICE = 0x313F  # EGL_PLATFORM_DEVICE_EXT
_rendered_here = False
_forked_after_render = False


def choose_backend() -> None:
    """Have dm_control render with EGL, else OSMesa, unless the user has chosen by `MUJOCO_GL`.

    dm_control reads the variable at its first import; left to itself it takes GLFW, which aborts the process where
    there is no display. Where it was imported before this, it is made to choose again.

    Raises:
        RuntimeError: what the user has chosen cannot render here; or nothing is chosen, and there is neither EGL nor
            OSMesa, nor a display for GLFW.
    """
    for variable in ("MUJOCO_GL", "PYOPENGL_PLATFORM"):
        if chosen := os.environ.get(variable):
            _check_choice(variable, chosen)
            break
    if os.environ.get("MUJOCO_GL"):
        return
    platform = os.environ.get("PYOPENGL_PLATFORM")
    if platform in ("egl", "osmesa"):
        os.environ["MUJOCO_GL"] = platform
    elif sys.platform != "linux":
        return  # GLFW needs no X server there, and dm_control finds it by itself
    elif _egl_works():
        os.environ["MUJOCO_GL"] = "egl"
    elif _loads(*_OSMESA_LIBRARIES):
        os.environ["MUJOCO_GL"] = "osmesa"
    elif _glfw_works():
        return
    else:
        raise RuntimeError(NO_OPENGL)
    if "dm_control._render" in sys.modules:
        importlib.reload(sys.modules["dm_control._render"])


def before_render() -> None:
    """Call before every render: refuses where rendering would hang.

    Raises:
        RuntimeError: this process was forked from one that had rendered; the copied OpenGL driver state deadlocks.
    """
    global _rendered_here
    if _forked_after_render:
        raise RuntimeError(
            "this process was forked from one that had already rendered, and rendering here would hang: start worker "
            "processes with 'forkserver' or 'spawn' (AsyncVectorEnv(..., context='forkserver'), "
            "SubprocVecEnv(..., start_method='forkserver')), or before the first reset in the parent"
        )
    _rendered_here = True


def _after_fork_in_child() -> None:
    global _forked_after_render
    _forked_after_render = _forked_after_render or _rendered_here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _check_choice(variable: str, chosen: str) -> None:
    if chosen in _OFF:
        raise RuntimeError(f"{variable}={chosen} turns rendering off, and observations are rendered: unset {variable}")
    backend = "glfw" if chosen in _GLFW_TOO else chosen
    works: dict[str, Callable[[], bool]] = {
        "egl": _egl_works,
        "osmesa": lambda: _loads(*_OSMESA_LIBRARIES),
        "glfw": _glfw_works,
    }
    if sys.platform == "linux" and backend in works and not works[backend]():
        raise RuntimeError(f"{variable}={chosen} was chosen, but {_MISSING[backend]}, or unset {variable}")


@cache
def _glfw_works() -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return bool(importlib.import_module("glfw").init())
        except ImportError:
            return False


def _loads(*names: str) -> bool:
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False


@cache
def _egl_works() -> bool:
    """Whether EGL is installed with a driver behind it: one of its devices gives a display.

    Asked of EGL itself and not by importing PyOpenGL, which keeps to the first platform it was imported with.
    """
    try:
        egl = ctypes.CDLL("libEGL.so.1")
    except OSError:
        return False
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    query_address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    display_address = egl.eglGetProcAddress(b"eglGetPlatformDisplayEXT")
    if not query_address or not display_address:
        return False
    query_devices = ctypes.CFUNCTYPE(
        ctypes.c_uint, ctypes.c_int, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_int)
    )(query_address)
    get_display = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)(display_address)
    devices = (ctypes.c_void_p * 10)()
    count = ctypes.c_int(0)
    if not query_devices(10, devices, ctypes.byref(count)):
        return False
    egl.eglInitialize.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    displays = (get_display(_EGL_PLATFORM_DEVICE, device, None) for device in devices[: count.value])
    return any(display and egl.eglInitialize(display, None, None) for display in displays)
