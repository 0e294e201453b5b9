"""An arm over a table, moved by Cartesian impedance: what a lock-step task and the real-time simulated robot have in common.

A Panda, or a UR5e with two fingers of ours. The controller is the one that labs run on the real arms: the hand is drawn to a commanded
place by a spring and a damper, the spring's error is clipped (so that no command, however far, pulls with more than a known force), its
orientation is kept, gravity is compensated. Setpoints are [x, y, z of the finger tips in the world, m; opening of the gripper, m].
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from realrl.envs import arm
from realrl.envs.base import RobotEnv
from realrl.types import Array, RealrlError

LOW, HIGH = np.array([0.30, -0.25, 0.02, 0.0]), np.array([0.65, 0.25, 0.40, 0.08])
"""What setpoints may be."""
START = np.array([0.45, 0.0, 0.25, 0.08])
"""Where an episode begins, and where the arm is parked."""
STEP_S = 0.002
HALF = 0.02  # half the cube's edge, m
STIFFNESS, DAMPING, CLIP = 900.0, 60.0, 0.04  # N/m, N s/m, m: at most 36 N along an axis
TWIST, TWIST_DAMPING, TWIST_CLIP = 40.0, 4.0, 0.3  # N m/rad, N m s/rad, rad
POSTURE, POSTURE_DAMPING = 10.0, 4.0  # N m/rad, N m s/rad, of the one motion of seven joints that leaves the hand where it is
_DOWN = np.array([[1.0, 0, 0], [0, -1.0, 0], [0, 0, -1.0]])


@dataclass(frozen=True)
class Sensed:
    """What the arm's sensors say now. tip: [3] m; speed: [3] m/s; width: of the gripper, m; force: [3] N at the hand, what the world
    does to it, filtered; cube: [3] m."""

    tip: Array
    speed: Array
    width: float
    force: Array
    cube: Array


@dataclass(frozen=True)
class _Make:
    """An arm. package: has its model, in `folder`; home: [N] rad, near where an episode begins; forces: [N] N m, its own limits; hand: the
    body that feels."""

    package: str
    install: str
    folder: str
    home: tuple[float, ...]
    forces: tuple[float, ...]
    hand: str


MAKES = {
    "panda": _Make("gymnasium_robotics", "gymnasium-robotics", "envs/assets/kitchen_franka/franka_assets",
                   (0.0, 0.0, 0.0, -2.0, 0.0, 0.5, 0.8), (87.0,) * 4 + (12.0,) * 3, "panda0_link7"),
    "ur5e": _Make("ogbench", "--no-deps ogbench", "manipspace/descriptions/universal_robots_ur5e",
                  (0.0, -1.57, 1.57, -1.57, -1.57, -1.57), (150.0,) * 3 + (28.0,) * 3, "wrist_3_link"),
}
_FINGER = """<body pos="0 0 0.07"><joint type="slide" axis="0 {side} 0" range="0 0.04"/>
  <geom type="box" size="0.011 0.006 0.045" pos="0 {at} 0.045" mass="0.05" friction="1.2 0.01 0.001" condim="4" rgba="0.2 0.2 0.22 1"/>
</body>"""
_GRIPPER = f"""<body name="gripper" pos="0 0.1 0" quat="-1 1 0 0">
  <geom type="box" size="0.03 0.06 0.035" pos="0 0 0.035" mass="0.8" rgba="0.3 0.3 0.32 1"/>
  {_FINGER.format(side=1, at=0.006)}{_FINGER.format(side=-1, at=-0.006)}
  <site name="end_effector" pos="0 0 0.152"/>
</body>"""
"""In place of the two fingers of a Hand-E: closed they touch, each opens by 40 mm; the site is 8 mm above their ends, as the Panda's is."""


def _folder(robot: str) -> Path:
    make = MAKES[robot]
    found = find_spec(make.package)
    folder = None if found is None or found.origin is None else Path(found.origin).parent / make.folder
    if folder is None or not folder.is_dir():
        raise RealrlError(f"the model of arm/{robot} is not installed: pip install {make.install}")
    return folder


def _part(path: Path, *but: str) -> Any:
    """One of the files that make up an arm's model, without what is ours to say."""
    root = ElementTree.parse(path).getroot()
    for child in [c for c in root if c.tag in ("compiler", "size", *but)]:
        root.remove(child)
    return root


def _inside(root: Any) -> str:
    return "".join(ElementTree.tostring(child, encoding="unicode") for child in root)


def _panda(folder: Path, shown: bool) -> str:
    return f"{_inside(_part(folder / 'assets.xml'))}<worldbody>{_inside(_part(folder / 'chain.xml'))}</worldbody>"


def _ur5e(folder: Path, shown: bool) -> str:
    """With a gripper at its flange. shown: with its looks, 20 meshes that take a second to read."""
    root = _part(folder / "ur5e.xml", "option", "actuator", "keyframe", *(() if shown else ("asset",)))
    for body in root.iter("body"):
        for geom in [] if shown else [g for g in body.findall("geom") if "mesh" in g.attrib]:
            body.remove(geom)
    (flange,) = (body for body in root.iter("body") if body.get("name") == "wrist_3_link")
    flange.append(ElementTree.fromstring(_GRIPPER))
    return _inside(root)


def _model(robot: str, shown: bool) -> Any:
    folder = _folder(robot)
    meshes = folder / ("meshes" if robot == "panda" else "assets")
    return mujoco.MjModel.from_xml_string(f"""
    <mujoco><compiler angle="radian" meshdir="{meshes}"/>
      <option timestep="{STEP_S}" integrator="implicitfast" cone="elliptic"/>
      <visual><global offwidth="640" offheight="480"/><headlight ambient="0.4 0.4 0.4" diffuse="0.5 0.5 0.5"/></visual>
      {(_panda if robot == "panda" else _ur5e)(folder, shown)}
      <worldbody>
        <light pos="0.5 0 2" dir="0 0 -1"/>
        <geom name="table" type="box" size="0.5 0.6 0.02" pos="0.5 0 -0.02" rgba="0.55 0.5 0.45 1"/>
        <camera name="front" pos="1.25 0 0.65" xyaxes="0 1 0 -0.55 0 0.85" fovy="45"/>
        <camera name="side" pos="0.5 -0.95 0.55" xyaxes="1 0 0 0 0.5 0.87" fovy="45"/>
        <body name="cube" pos="0.5 0 {HALF}"><freejoint/>
          <geom name="cube" type="box" size="{HALF} {HALF} {HALF}" mass="0.08" friction="1.2 0.01 0.001" condim="4" solref="0.01 1"
                rgba="0.85 0.2 0.15 1"/></body>
        <site name="goal" type="sphere" size="0.015" pos="0.5 0 0.2" rgba="0.1 0.8 0.2 0.6"/>
      </worldbody></mujoco>""")


class ArmWorld:
    """The arm, a cube on the table and a goal. `setpoint` [4] is where it is drawn to; `step` is one 2 ms step of physics."""

    def __init__(self, robot: str = "panda", *, shown: bool = True) -> None:
        """robot: one of `MAKES`; shown: whether somebody looks. Raises RealrlError where its model is not installed."""
        make = MAKES[robot]
        self.model = model = _model(robot, shown)
        self._home, self._forces = np.array(make.home), np.array(make.forces)
        n = len(make.home)
        self.data = mujoco.MjData(model)
        self.setpoint = START.copy()
        self.stalled = False  # whether the drives push no longer, and brakes hold
        self.push = np.zeros(3)  # N, what else pushes the hand
        self.force = np.zeros(3)
        self._arm, self._fq = slice(0, n), slice(n, n + 2)  # the model's first joints are the arm's, then two fingers, then the cube
        model.dof_damping[self._arm], model.dof_damping[self._fq], model.dof_armature[self._fq] = 2.0, 20.0, 1.0
        self._site, self._cube = model.site("end_effector").id, model.body("cube").id
        if robot == "panda":
            model.site_pos[self._site, 2] = 0.245  # the tips of the fingers, 8 mm of them below
        self._hand = model.body(make.hand).id
        self._cube_q = int(model.jnt_qposadr[model.body_jntadr[self._cube]])
        self._goal = model.site("goal").id
        self._jp, self._jr = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        bodies = model.geom_bodyid.tolist()
        self._mine = [self._hand <= body < self._cube for body in bodies]  # which geoms are the hand's and the fingers'
        for geom, body in enumerate(bodies):  # of the arm, what is above the hand touches nothing
            if 0 < body < self._hand:
                model.geom_contype[geom] = model.geom_conaffinity[geom] = 0
        self.home, self._age, self._idle = self._home, 0, np.zeros(n)
        self.home = self._at_start()

    def _at_start(self) -> Array:
        """[N] joints with the finger tips at `START`, found by letting the controller go there."""
        self.data.qpos[self._arm] = self._home
        self.data.qpos[self._fq] = 0.04
        for _ in range(1500):
            self.step()
        return np.array(self.data.qpos[self._arm])

    def reset(self) -> None:
        """Everything to the start, at rest."""
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[self._arm], self.data.qpos[self._fq] = self.home, START[3] / 2
        self.setpoint, self.stalled, self._age = START.copy(), False, 0
        self.push, self.force = np.zeros(3), np.zeros(3)
        self.place(np.array([0.5, 0.0]), 0.0, self.goal)

    @property
    def goal(self) -> Array:
        """[3] m, where the ball is drawn."""
        return np.array(self.model.site_pos[self._goal])

    def place(self, xy: Array, yaw: float, goal: Array) -> None:
        """Put the cube onto the table at [2] m, turned, at rest; and the goal [3]."""
        at = self._cube_q
        self.data.qpos[at:at + 7] = [*xy, HALF, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
        dof = int(self.model.body_dofadr[self._cube])
        self.data.qvel[dof:dof + 6] = 0
        self.model.site_pos[self._goal] = goal
        mujoco.mj_forward(self.model, self.data)

    def step(self) -> None:
        """2 ms of physics under the controller."""
        model, data = self.model, self.data
        mujoco.mj_step1(model, data)
        mujoco.mj_jacSite(model, data, self._jp, self._jr, self._site)
        model.dof_damping[self._arm] = 200.0 if self.stalled else 2.0
        data.qfrc_applied[self._arm] = data.qfrc_bias[self._arm] if self.stalled else self._torque()
        pull = 600 * (self.setpoint[3] / 2 - data.qpos[self._fq]) - 20 * data.qvel[self._fq]
        data.qfrc_applied[self._fq] = np.minimum(np.maximum(pull, -40.0), 40.0)
        data.xfrc_applied[self._hand, :3] = self.push
        mujoco.mj_step2(model, data)
        self.force += 0.1 * (self._touch() + self.push - self.force)  # a wrist sensor's filter, 18 ms

    def _torque(self) -> Array:
        """[N] N m: spring, damper, and what holds the arm against gravity."""
        data, jp, jr = self.data, self._jp[:, self._arm], self._jr[:, self._arm]
        speed = data.qvel[self._arm]
        stretch = np.minimum(np.maximum(self.setpoint[:3] - data.site_xpos[self._site], -CLIP), CLIP)
        m = _DOWN @ data.site_xmat[self._site].reshape(3, 3).T
        error = 0.5 * np.array([m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]])
        twist = TWIST * np.minimum(np.maximum(error, -TWIST_CLIP), TWIST_CLIP) - TWIST_DAMPING * (jr @ speed)
        torque = jp.T @ (STIFFNESS * stretch - DAMPING * (jp @ speed)) + jr.T @ twist + data.qfrc_bias[self._arm]
        if len(torque) > 6:
            torque += self._posture(jp, jr, speed)
        clipped: Array = np.minimum(np.maximum(torque, -self._forces), self._forces)
        return clipped

    def _posture(self, jp: Array, jr: Array, speed: Array) -> Array:
        """[7] N m: without it the elbow wanders off from one episode to the next, until the hand cannot go where it is drawn to."""
        if self._age % 25 == 0:
            self._idle = np.linalg.svd(np.concatenate([jp, jr]))[2][-1]
        self._age += 1
        along = self._idle @ (POSTURE * (self.home - self.data.qpos[self._arm]) - POSTURE_DAMPING * speed)
        held: Array = along * self._idle
        return held

    def _touch(self) -> Array:
        """[3] N, what touches hand and fingers pushes them with."""
        data, total = self.data, np.zeros(3)
        if data.ncon:
            pairs, wrench = data.contact.geom.tolist(), np.zeros(6)
            for number, (one, two) in enumerate(pairs):
                if self._mine[one] != self._mine[two]:
                    mujoco.mj_contactForce(self.model, data, number, wrench)
                    force = wrench[:3] @ data.contact.frame[number].reshape(3, 3)
                    total += force if self._mine[two] else -force
        return total

    def sensed(self, drift: float = 0.0) -> Sensed:
        """What the sensors say now. drift: m along each axis that the cube is seen wrong by."""
        data = self.data
        return Sensed(np.array(data.site_xpos[self._site]), self._jp @ data.qvel, float(data.qpos[self._fq].sum()),
                      self.force.copy(), data.xpos[self._cube] + drift)


class ArmEnv(RobotEnv):
    """A task of the arm in lock-step, see `realrl.envs.arm`."""

    def __init__(self, name: str, reward: str | None, horizon: int | None) -> None:
        super().__init__(arm.spec(name, horizon), reward=reward, native_low=-arm.STEP, native_high=arm.STEP)
        self.world = ArmWorld(arm.JOBS[name].robot, shown=False)
        self._name = name

    def _begin(self, seed: int) -> Array:
        self.world.reset()
        self.world.place(*arm.start(self._name, seed))
        return arm.observe(self._name, self.world.sensed(), self.world.setpoint, self.world.goal)

    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        """The setpoint goes evenly to where the action moves it."""
        world, steps = self.world, round(arm.DT / STEP_S)
        change = (np.clip(world.setpoint + action, LOW, HIGH) - world.setpoint) / steps
        for _ in range(steps):
            world.setpoint = world.setpoint + change
            world.step()
        seen = world.sensed()
        reward, success = arm.outcome(self._name, seen, world.goal)
        return arm.observe(self._name, seen, world.setpoint, world.goal), reward, False, success
