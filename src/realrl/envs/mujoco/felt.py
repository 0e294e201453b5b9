"""Pictures of a trial of "assembly/...", with the wrench that the arm felt drawn beside its tool."""

from __future__ import annotations

from collections.abc import Iterator

import mujoco
import numpy as np

from realrl.envs.assembly import TRACE
from realrl.envs.mujoco import render
from realrl.envs.mujoco.assembly import AssemblyEnv
from realrl.types import Array

ARROWS = (("force", 0.002, (0.9, 0.1, 0.1, 1.0)), ("torque", 0.05, (0.1, 0.3, 0.9, 1.0)))
"""What is drawn: m for a newton, and for a newton metre; colours."""


def pictures(env: AssemblyEnv, trace: Array, every: int = 5, size: int = 480) -> Iterator[Array]:
    """uint8 [size, size, 3] of what the arm of a trial did: force as a red arrow, 10 mm are 5 N, torque as a blue one, 10 mm are 0.2 N m.

    env: as the trial left it; trace: what it kept, see `AssemblyEnv`; every: so many rows of it, 8 ms each, make one picture.
    """
    model, data = env.work.shown()
    drawn, option = render.scene(model, without_hidden=False)
    camera = mujoco.MjvCamera()
    camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, model.camera("side").id
    studio = render.studio("felt", model, size, size)
    try:
        for row in trace[::every]:
            data.qpos[:] = row[TRACE["posture"]]
            mujoco.mj_forward(model, data)
            mujoco.mjv_updateScene(model, data, option, mujoco.MjvPerturb(), camera, mujoco.mjtCatBit.mjCAT_ALL, drawn)
            start = data.site("tip").xpos + env.work.beside
            for what, scale, colour in ARROWS:
                arrow, kind = drawn.geoms[drawn.ngeom], mujoco.mjtGeom.mjGEOM_ARROW
                mujoco.mjv_initGeom(arrow, kind, np.zeros(3), np.zeros(3), np.zeros(9), np.array(colour, np.float32))
                mujoco.mjv_connector(arrow, kind, 0.004, start, start + scale * row[TRACE[what]])
                drawn.ngeom += 1
            picture = studio.shoot(drawn, colour=True, depth=None)[0]
            assert picture is not None
            yield picture
    finally:
        render.leave(studio)
