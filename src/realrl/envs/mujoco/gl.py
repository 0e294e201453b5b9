"""Which OpenGL works here without a display: EGL, which uses a GPU where there is one, or OSMesa on the processor."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from realrl.types import RealrlError

PACKAGES = "libosmesa6 libegl1 libgl1 libgl1-mesa-dri libegl-mesa0 libgles2 libglx-mesa0"
"""What Debian and Ubuntu call both back ends and the drivers they need."""


@functools.cache
def egl_works() -> bool:
    """Whether EGL has a device (a GPU, or Mesa's processor one) that starts. Asks the library itself; draws nothing."""
    path = ctypes.util.find_library("EGL")
    if path is None:
        return False
    try:
        egl = ctypes.CDLL(path)
        egl.eglGetProcAddress.restype = ctypes.c_void_p
        query: Any = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
        display: Any = egl.eglGetProcAddress(b"eglGetPlatformDisplayEXT")
    except (OSError, AttributeError):
        return False
    if not query or not display:
        return False
    devices, count = (ctypes.c_void_p * 16)(), ctypes.c_int(0)
    list_devices = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(query)
    if not list_devices(16, devices, ctypes.byref(count)):
        return False
    get = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)(display)
    egl.eglInitialize.argtypes = [ctypes.c_void_p] * 3
    for device in devices[:count.value]:
        shown = get(0x313F, device, None)  # EGL_PLATFORM_DEVICE_EXT
        if shown and egl.eglInitialize(shown, None, None):
            return True
    return False


def osmesa_works() -> bool:
    """Whether the library of OSMesa is there."""
    return ctypes.util.find_library("OSMesa") is not None


_KNOWN = ("", "egl", "osmesa", "glfw", "glx", "enable", "enabled", "on", "true", "1", "disable", "disabled", "off", "false", "0")


def check() -> None:
    """Raise RealrlError where MUJOCO_GL asks for what does not work here: MuJoCo would fail while it is imported, whatever is drawn."""
    asked = os.environ.get("MUJOCO_GL", "").lower().strip()
    if asked not in _KNOWN:
        raise RealrlError(f"MUJOCO_GL={asked} is no back end: set it to egl or osmesa, or unset it")
    if asked in ("egl", "osmesa"):
        backend()


@functools.cache
def backend() -> str:
    """"egl" or "osmesa": what MUJOCO_GL says, else EGL where it works, else OSMesa. Raises RealrlError where there is neither."""
    asked = os.environ.get("MUJOCO_GL", "").lower().strip()
    works: dict[str, Callable[[], bool]] = {"egl": egl_works, "osmesa": osmesa_works}
    if asked in works:
        if not works[asked]():
            raise RealrlError(f"MUJOCO_GL={asked}, but {asked} does not work here: apt-get install {PACKAGES}, or unset MUJOCO_GL")
        return asked
    chosen = next((name for name, test in works.items() if test()), None)
    if chosen is None:
        raise RealrlError(f"no OpenGL to take pictures with: apt-get install {PACKAGES}; a cloud by rays (sight.source) needs none")
    return chosen


@contextmanager
def windowless() -> Iterator[None]:
    """Import dm_control in here: it looks for a display to open windows on, which nobody here does, and complains of none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="glfw")
        yield
