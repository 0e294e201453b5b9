"""Pictures of a MuJoCo model without a display: OpenGL by EGL, which uses a GPU where there is one, or by OSMesa on the processor.

A context is made when the first picture is taken, in the process that takes it. What it holds (meshes, textures) depends on the model
file alone, so that all environments of a task in a process share one, see `Studio`.
"""

from __future__ import annotations

import atexit
import os
from typing import Any

import mujoco
import numpy as np

from realrl.envs.mujoco.gl import PACKAGES, backend
from realrl.envs.mujoco.sight import Mark
from realrl.types import Array, RealrlError

VISIBLE = (0, 1, 2)
HIDDEN = 5
"""The geom group of what is drawn in pictures, but is no part of a cloud."""


def _context(width: int, height: int) -> Any:
    """A GL context for pictures of up to this size, made current."""
    name = backend()
    os.environ["MUJOCO_GL"] = name  # MuJoCo reads it when it looks up OpenGL's functions
    try:
        if name == "egl":
            from mujoco.egl import GLContext
        else:
            from mujoco.osmesa import GLContext
        context = GLContext(width, height)
        context.make_current()
    except Exception as error:  # whatever PyOpenGL and the driver say
        raise RealrlError(f"OpenGL by {name} does not start ({type(error).__name__}: {error}): apt-get install {PACKAGES}, or try "
                          f"MUJOCO_GL={'osmesa' if name == 'egl' else 'egl'}") from None
    return context


class Studio:
    """One OpenGL context for pictures of one size of one model file. Get it by `studio`, give it back by `leave`."""

    def __init__(self, model: Any, height: int, width: int) -> None:
        self._rect = mujoco.MjrRect(0, 0, width, height)
        self._gl = _context(width, height)
        before = model.vis.global_.offwidth, model.vis.global_.offheight, model.vis.quality.offsamples, model.vis.quality.shadowsize
        quality, size = model.vis.quality, model.vis.global_
        size.offwidth, size.offheight, quality.offsamples, quality.shadowsize = width, height, 0, 0  # several times as fast
        self._context: Any = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50.value)
        size.offwidth, size.offheight, quality.offsamples, quality.shadowsize = before
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        self.users = 0
        self._laid: object = None
        atexit.register(self.close)  # after EGL's own, so that it runs before it

    def lay(self, model: Any, which: object) -> None:
        """Draw the model's height fields as they are now from here on. which: names them, so that the same ones are not sent again."""
        if model.nhfield and which != self._laid:
            self._gl.make_current()
            for number in range(model.nhfield):
                mujoco.mjr_uploadHField(model, self._context, number)
            self._laid = which

    def shoot(self, scene: Any, *, colour: bool, depth: tuple[float, float] | None) -> tuple[Array | None, Array | None]:
        """The picture, uint8 [H, W, 3], and the depth, float32 [H, W] m, of a scene, each where asked for.

        depth: the distances [m] of the near and far clipping planes; what lies at the far one has depth 0.
        """
        self._gl.make_current()
        height, width = self._rect.height, self._rect.width
        picture = np.empty((height, width, 3), np.uint8) if colour else None
        if picture is not None:
            mujoco.mjr_render(self._rect, scene, self._context)
            mujoco.mjr_readPixels(picture, None, self._rect, self._context)
            picture = picture[::-1].copy()
        if depth is None:
            return picture, None
        raw, flags, (near, far) = np.empty((height, width), np.float32), scene.flags.copy(), depth
        for flag in (mujoco.mjtRndFlag.mjRND_SEGMENT, mujoco.mjtRndFlag.mjRND_IDCOLOR):  # what is see-through is solid, too
            scene.flags[flag] = 1
        mujoco.mjr_render(self._rect, scene, self._context)
        mujoco.mjr_readPixels(None, raw, self._rect, self._context)
        scene.flags[:] = flags
        deep = raw[::-1].astype(np.float64)  # reversed: 1 at the near plane, 0 at the far one
        return picture, np.where(deep > 0, near * far / (near + deep * (far - near)), 0.0).astype(np.float32)

    def close(self) -> None:
        """Free the context."""
        atexit.unregister(self.close)
        self._gl.make_current()
        self._context.free()
        self._gl.free()


_STUDIOS: dict[tuple[str, int, int], Studio] = {}


def studio(task: str, model: Any, height: int, width: int) -> Studio:
    """The studio for a task's pictures in this process, made by the first who asks. Raises RealrlError where OpenGL is missing."""
    key = (task, height, width)
    if key not in _STUDIOS:
        _STUDIOS[key] = Studio(model, height, width)
    _STUDIOS[key].users += 1
    return _STUDIOS[key]


def leave(used: Studio) -> None:
    """Give a studio back; the last to leave frees it."""
    used.users -= 1
    if used.users == 0:
        for key in [k for k, v in _STUDIOS.items() if v is used]:
            del _STUDIOS[key]
        used.close()


_UNPAINTED = np.array([0.5, 0.5, 0.5, 1.0], np.float32)


def own_paint(model: Any) -> Array:
    """Which geoms [G] are drawn in their own colour: those without a material, and those whose colour is not the default, which the
    renderer prefers to the material's."""
    plain: Array = (model.geom_matid < 0) | np.any(model.geom_rgba != _UNPAINTED, axis=-1)
    return plain


def scene(model: Any, *, without_hidden: bool) -> tuple[Any, Any]:
    """An empty scene for a model, with what is slow switched off, and the options of what is drawn in it."""
    drawn = mujoco.MjvScene(model, maxgeom=model.ngeom + model.nsite + 200)
    for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
        drawn.flags[flag] = 0
    option = mujoco.MjvOption()
    option.geomgroup[HIDDEN] = not without_hidden
    return drawn, option


def add(drawn: Any, solid: Mark) -> None:
    """Draw one more thing into a scene."""
    kind = mujoco.mjtGeom.mjGEOM_SPHERE if solid.ball else mujoco.mjtGeom.mjGEOM_BOX
    mujoco.mjv_initGeom(drawn.geoms[drawn.ngeom], kind, solid.size, solid.centre, np.eye(3).ravel(),
                        solid.rgba.astype(np.float32))
    drawn.geoms[drawn.ngeom].segid = drawn.ngeom
    drawn.ngeom += 1
