"""The environment of "contact/peg...", see `realrl.envs.contact`: a hand under impedance control, its peg and a slot, in MuJoCo."""

from __future__ import annotations

import math
from typing import Any

import mujoco
import numpy as np

from realrl.envs.base import Eyes, NoEyes, RobotEnv
from realrl.envs.contact import DEPTH, FULL, LEVELS, OWN, PICK_FULL, PICK_OWN, PICK_SEEN, PICKS, SEEN, TILTED, TRUTH, WIDE
from realrl.envs.mujoco import grip
from realrl.envs.mujoco.randomise import randomiser
from realrl.envs.mujoco.sight import Scenery, View, eyes
from realrl.scene import RandomiseConfig, SightConfig
from realrl.types import Array, Obs, RealrlError, TaskSpec

HZ, HORIZON, ACTION = 10, 100, 6
STEP = 0.002
"""Seconds of a physics step."""
PEG = (0.010, 0.007, 0.020)
"""Half sizes, m; the tool's point is the middle of its lower end."""
CLEARANCE = 0.0005
"""Between peg and slot, on every side, m."""
FLOOR = 0.024
"""Depth of the slot, m."""
KP, KD, FORCE = 2000.0, 89.0, 15.0
"""Of the spring and damper that move the hand, N/m and N s/m, and the most that the spring pulls with, N: it is never stretched further
than 7.5 mm."""
KP_TURN, KD_TURN, TORQUE = 150.0, 7.0, 3.0
PLACE, YAW_SEEN, JITTER = 0.02, 0.02, 0.0003
"""Where the slot may be off the middle, m; how wrong its turn is seen, 1 sigma, rad; what is wrong anew every step, 1 sigma, m."""
SIDE, HIGH, LOW, LEAN, TURN = 0.04, 0.06, -0.03, 0.15, 0.6
"""The box that the hand is kept in: to the side, up and down from the slot's mouth (m), tilt and turn (rad)."""
_FELT = (8.0, 0.1)
"""N and N m, in units of which force and torque are observed."""
_NOISE = np.array([0.1, 0.1, 0.1, 0.002, 0.002, 0.002])
"""Of the wrist's sensor, 1 sigma, N and N m."""


def _model(friction: float, picks: bool) -> str:
    """A free hand (three slides, three hinges at the peg's tip), and a slot of four walls whose place and turn are set at every reset.
    picks: the peg is not part of the hand, which has fingers instead; pressed with 15 N it creeps in them by 0.05 mm a step, with the
    others' impratio by ten times as much."""
    px, py, pz = PEG
    wall, deep = 0.012 if picks else 0.02, FLOOR / 2
    ix, iy = px + CLEARANCE, py + CLEARANCE
    walls = [(ix + wall / 2, 0, wall / 2, iy + wall), (-ix - wall / 2, 0, wall / 2, iy + wall), (0, iy + wall / 2, ix, wall / 2),
             (0, -iy - wall / 2, ix, wall / 2)]
    joints = "".join(f'<joint name="{n}" type="slide" axis="{a}" damping="{KD}"/>' for n, a in zip("xyz", ("1 0 0", "0 1 0", "0 0 1"),
                                                                                                   strict=True))
    joints += "".join(f'<joint name="{n}" type="hinge" axis="{a}" damping="{KD_TURN}" armature="0.08"/>'
                      for n, a in (("yaw", "0 0 1"), ("pitch", "0 1 0"), ("roll", "1 0 0")))
    servos = "".join(f'<position joint="{n}" kp="{KP}" forcerange="{-FORCE} {FORCE}"/>' for n in "xyz")
    servos += "".join(f'<position joint="{n}" kp="{KP_TURN}" forcerange="{-TORQUE} {TORQUE}"/>' for n in ("yaw", "pitch", "roll"))
    block = "".join(f'<geom type="box" pos="{x} {y} {-deep}" size="{a} {b} {deep}" rgba="0.25 0.45 0.35 1"/>' for x, y, a, b in walls)
    held = f'''<geom name="peg" type="box" pos="0 0 {pz}" size="{px} {py} {pz}" rgba="0.85 0.55 0.2 1"/>
      <geom type="box" pos="0.013 0 0.05" size="0.003 0.006 0.014" rgba="0.3 0.3 0.32 1" contype="0" conaffinity="0"/>
      <geom type="box" pos="-0.013 0 0.05" size="0.003 0.006 0.014" rgba="0.3 0.3 0.32 1" contype="0" conaffinity="0"/>'''
    return f"""
<mujoco model="peg">
  <option timestep="{STEP}" gravity="0 0 0" cone="elliptic" impratio="{50 if picks else 5}" integrator="implicitfast"/>
  <default><geom friction="{friction} 0.005 0.0001" solref="0.004 1" condim="3"/></default>
  <visual><global offwidth="256" offheight="256"/><map znear="0.02"/></visual>
  <worldbody>
    <light pos="0.3 -0.3 1" dir="-0.3 0.3 -1" directional="true" diffuse="0.7 0.7 0.7"/>
    <geom name="table" type="plane" size="0.3 0.3 0.01" pos="0 0 {-FLOOR}" rgba="0.75 0.72 0.68 1"/>
    <camera name="side" pos="0.16 -0.16 0.09" xyaxes="0.707 0.707 0 -0.272 0.272 0.923" fovy="38"/>
    <body name="slot">{block}</body>
    <body name="hand">{joints}
      <inertial pos="0 0 {pz}" mass="1" diaginertia="0.0004 0.0004 0.0004"/>
      {grip.fingers() if picks else held}
      <geom type="box" pos="0 0 0.075" size="0.022 0.012 0.012" rgba="0.4 0.4 0.42 1" contype="0" conaffinity="0"/>
      <camera name="wrist" pos="0 -0.07 0.07" xyaxes="1 0 0 0 0.66 0.75" fovy="60"/>
    </body>{grip.beside(PEG) if picks else ""}
  </worldbody>
  <actuator>{servos}{grip.DRIVES if picks else ""}</actuator>
  {grip.RACK if picks else ""}
</mujoco>"""


class PegEnv(RobotEnv):
    """A peg and its slot, see `realrl.envs.contact`."""

    def __init__(self, name: str, reward: str | None = None, horizon: int | None = None, sight: SightConfig | None = None,
                 randomise: RandomiseConfig | None = None) -> None:
        self._level = level = LEVELS[name]
        self._model = mujoco.MjModel.from_xml_string(_model(level.friction, level.picks))
        self._data = mujoco.MjData(self._model)
        self._grip = grip.Grip(self._model, self._data) if level.picks else None
        self._slot = self._model.body("slot").id
        self._substeps = round(1 / (HZ * STEP))
        full, size = (PICK_FULL, PICKS) if level.picks else (FULL, ACTION)
        task = TaskSpec("contact", name, full, size, HORIZON if horizon is None else horizon, 1 / HZ, level.text, gripper=level.picks)
        views = (View("wrist"), View("side"))
        looked = eyes(sight, Scenery(task.id, views, PICK_OWN if level.picks else OWN), self._model, self._data, ("rgb", "depth"))
        seen: Eyes = NoEyes(PICK_SEEN if level.picks else range(SEEN)) if looked is None else looked
        super().__init__(task, reward=reward, kinds=("sparse", "dense"), eyes=seen,
                         whims=randomiser(randomise, self._model, self._data, looked, ((-0.1, -0.1, 0.0), (0.1, 0.1, 0.1))))
        self.reach = np.array([level.reach] * 3 + [WIDE * level.reach] * 3)
        self._box = PICK_BOX if level.picks else BOX
        self._low = np.full(size, -1.0)

    def step(self, action: Array) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """One control step of 0.1 s, see `RobotEnv.step`; info: depth of the peg (mm), force (N)."""
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated, truncated, {**info, **self._facts}

    def _begin(self, seed: int) -> Array:
        model, data, rng, level = self._model, self._data, self.np_random, self._level
        mujoco.mj_resetData(model, data)
        self._at = np.array([*rng.uniform(-PLACE, PLACE, 2), 0.0])
        if self._grip:
            self._at[:2] = self._at[:2] / PLACE * grip.PLACE + (grip.APART, 0.0)
        self._turn = float(rng.uniform(-level.turn, level.turn))
        model.body_pos[self._slot] = self._at
        model.body_quat[self._slot] = (math.cos(self._turn / 2), 0.0, 0.0, math.sin(self._turn / 2))
        wrong = rng.normal(0.0, level.error, 3)
        wrong[:2] = np.clip(wrong[:2], -2 * level.error, 2 * level.error)
        self._wrong, self._wrong_turn = wrong, float(rng.normal(0.0, YAW_SEEN))
        data.qpos[:6] = [*rng.uniform(-0.01, 0.01, 2), rng.uniform(0.025, 0.045), *rng.uniform(-0.05, 0.05, 3)]
        if self._grip:
            self._grip.begin(rng)
        self.start_from_here()
        return self.look()

    def start_from_here(self) -> None:
        """The hand's place in `data` is where the episode begins."""
        self._start, self.before = self._data.qpos[:4].copy(), np.zeros(ACTION)
        mujoco.mj_forward(self._model, self._data)
        self._facts: dict[str, Any] = {"depth": 0.0, "force": 0.0}

    def slide_away(self) -> None:
        """The slot is out of reach."""
        self._at[:2] = 0.2
        self._model.body_pos[self._slot] = self._at

    @property
    def world(self) -> tuple[Any, Any]:
        """MuJoCo's model and data, for who lets them run by a clock."""
        return self._model, self._data

    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        data = self._data
        c, s = math.cos(data.qpos[3]), math.sin(data.qpos[3])
        steps, still = self._substeps, False
        if self._grip and (still := self._grip.command(action[ACTION])):
            steps = round(grip.BLOCKS / STEP)
        x, y, z, roll, pitch, yaw = action[:ACTION] * self.reach * (not still)
        target = data.qpos[:6] + np.array([c * x - s * y, s * x + c * y, z, yaw, pitch, roll])
        data.ctrl[:6] = np.clip(target, self._box[0], self._box[1])
        mujoco.mj_step(self._model, data, steps)
        if not np.isfinite(data.qpos).all():
            raise RealrlError(f"{self.task.id}: the hand's simulation flew apart: reset it, and look at what is sent to it")
        self.before = action[:ACTION]
        return self.judge()

    def judge(self) -> tuple[Array, float, bool, bool]:
        """What `_advance` gives, of the world as it is."""
        state, lost = self.look(), False
        depth, off = -self._data.qpos[2], float(np.hypot(*state[TRUTH][:2]))
        if self._grip:
            foot = self._grip.foot
            depth, off = -foot[2], float(np.hypot(*(foot[:2] - self._at[:2])))
            lost = self._grip.upright < 0.8 or (depth > 0.005 and off > 0.01)
        success = depth >= DEPTH and off < 0.002
        return state, min(max(depth / DEPTH, 0.0), 1.0), lost, success

    def look(self, drift: float = 0.0) -> Array:
        """The full state. drift: m along each axis that the slot is seen wrong by, besides."""
        data, rng = self._data, self.np_random
        x, y, z, yaw, pitch, roll = data.qpos[:6].tolist()
        c, s = math.cos(yaw), math.sin(yaw)
        way, turn = self._at - (x, y, z), self._turn - yaw
        true = np.array([c * way[0] + s * way[1], c * way[1] - s * way[0], way[2]])
        wrong = self._wrong + drift + rng.normal(0.0, JITTER, 3)
        seen = true + np.array([c * wrong[0] + s * wrong[1], c * wrong[1] - s * wrong[0], wrong[2]])
        vx, vy, vz, wz, wy, wx = data.qvel[:6].tolist()
        self.felt = felt = self._wrench(c, s, pitch, roll) + rng.normal(0.0, _NOISE)
        moved = (c * (x - self._start[0]) + s * (y - self._start[1]), c * (y - self._start[1]) - s * (x - self._start[0]),
                 z - self._start[2], yaw - self._start[3])
        state = np.concatenate([
            seen / 0.02, np.tanh(seen / 0.004), (roll / TILTED, pitch / TILTED, (turn + self._wrong_turn) / 0.1),
            np.array([c * vx + s * vy, c * vy - s * vx, vz]) / 0.05, np.array([wx, wy, wz]) / 0.3,
            np.tanh(felt[:3] / _FELT[0]), np.tanh(felt[3:] / _FELT[1]), self.before, np.array(moved) / (0.02, 0.02, 0.02, 0.2), true,
            (turn,)])
        self._facts = {"depth": -1000.0 * z, "force": float(np.linalg.norm(felt[:3]))}
        if self._grip is None:
            return state
        self._facts["depth"] = -1000.0 * float(self._grip.foot[2])
        way = self._grip.foot - (x, y, z)
        there = np.array([c * way[0] + s * way[1], c * way[1] - s * way[0], way[2]])
        return self._grip.look(state, there, self._grip.turn - yaw, rng.normal(0.0, JITTER, 3))

    def _wrench(self, c: float, s: float, pitch: float, roll: float) -> Array:
        """What the surroundings do to the hand [6]: force (N) and torque about the peg's tip (N m), in the hand's frame. The solver has
        them as forces along the joints; of the hinges each turns about an axis of its own."""
        fx, fy, fz, qz, qy, qx = self._data.qfrc_constraint[:6].tolist()
        fx, fy = c * fx + s * fy, c * fy - s * fx
        cp, sp, cr, sr = math.cos(pitch), math.sin(pitch), math.cos(roll), math.sin(roll)
        fx, fz = cp * fx - sp * fz, sp * fx + cp * fz
        along = (qz + sp * qx) / cp
        return np.array([fx, cr * fy + sr * fz, cr * fz - sr * fy, qx, cr * qy + sr * along, cr * along - sr * qy])


BOX = np.array([[-SIDE, -SIDE, LOW, -TURN, -LEAN, -LEAN], [SIDE, SIDE, HIGH, TURN, LEAN, LEAN]])
PICK_BOX = BOX + np.array([[-0.03, 0, 0, 0, 0, 0], [0.03, 0, 0, 0, 0, 0]])
"""The same where the peg has to be picked, longer."""
