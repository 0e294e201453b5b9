"""The environment of "bins/...", see `realrl.envs.bins`, in MuJoCo: a Panda's hand on a Cartesian drive, two bins, and cubes.

The arm behind the hand is neither simulated nor drawn, and the hand passes through the bins' walls, not through what lies in them.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from realrl.envs.base import RobotEnv
from realrl.envs.bins import BACK, CELL, CELLS, DOWN, FORWARD, GRIP, LEFT, LOADS, OWN, RIGHT
from realrl.envs.mujoco.randomise import randomiser
from realrl.envs.mujoco.sight import Scenery, View, eyes
from realrl.scene import RandomiseConfig, SightConfig
from realrl.types import Array, Obs, RealrlError, TaskSpec

DT, HORIZON, STEP = 0.5, 100, 0.004
"""Seconds of a decision, decisions of an episode, seconds of a physics step."""
MIDDLE, HALF, WALL, RIM = 0.14, 0.115, 0.006, 0.05
"""A bin's middle lies so far to the side; half of its inner side; thickness and height of its walls, m."""
CUBE, OPEN = 0.02, 0.08
"""Half a cube's edge; the gripper's widest opening, m."""
HIGH, LOW = 0.16, 0.022
"""Where the finger tips hover and where they grasp, m."""
ENOUGH = 2
"""Things to carry for success."""
_COLOURS = ("0.85 0.2 0.15 1", "0.95 0.75 0.1 1", "0.2 0.65 0.3 1")
_MOVES = {FORWARD: (1, 0), BACK: (-1, 0), LEFT: (0, 1), RIGHT: (0, -1)}
_GRASPED = (0.015, 0.985)


def _model(things: int) -> Any:
    """Two bins, a hand on three slides with two fingers, and cubes."""
    half, high = HALF + WALL, RIM / 2
    walls = [(x, y, a, b) for side in (-MIDDLE, MIDDLE) for x, y, a, b in (
        (half, side, WALL, half + WALL), (-half, side, WALL, half + WALL), (0, side + half, half, WALL), (0, side - half, half, WALL))]
    boxes = "".join(f'<geom type="box" pos="{x} {y} {high}" size="{a} {b} {high}" rgba="0.3 0.35 0.45 1"/>' for x, y, a, b in walls)
    cubes = "".join(f'<body name="thing{i}" pos="0 0 {0.1 + 0.1 * i}"><freejoint/><geom type="box" size="{CUBE} {CUBE} {CUBE}" mass="0.05" '
                    f'condim="4" contype="3" conaffinity="3" rgba="{_COLOURS[i % 3]}"/></body>' for i in range(things))
    slides = "".join(f'<joint name="{n}" type="slide" axis="{a}" damping="60"/>' for n, a in zip("xyz", ("1 0 0", "0 1 0", "0 0 1"),
                                                                                              strict=True))
    fingers = "".join(f'''<body name="finger{i}" pos="0 {s * 0.006} 0"><joint name="f{i}" type="slide" axis="0 {s} 0" range="0 {OPEN / 2}"
        limited="true" damping="12"/><geom type="box" pos="0 0 0.02" size="0.011 0.006 0.03" mass="0.05" contype="2" conaffinity="2"
        condim="4" rgba="0.25 0.25 0.28 1"/></body>''' for i, s in enumerate((1, -1)))
    servos = "".join(f'<position joint="{n}" kp="900" forcerange="-40 40"/>' for n in "xyz")
    servos += "".join(f'<position joint="f{i}" kp="600" forcerange="-15 15"/>' for i in range(2))
    return mujoco.MjModel.from_xml_string(f"""
<mujoco model="bins">
  <option timestep="{STEP}" cone="elliptic" impratio="10" integrator="implicitfast"/>
  <default><geom friction="1.2 0.01 0.001" solref="0.01 1"/></default>
  <visual><global offwidth="256" offheight="256"/><map znear="0.02"/></visual>
  <worldbody>
    <light pos="0.3 -0.3 1.5" dir="-0.2 0.2 -1" directional="true" diffuse="0.7 0.7 0.7"/>
    <geom name="table" type="plane" size="0.6 0.6 0.01" rgba="0.75 0.72 0.68 1"/>
    <camera name="front" pos="-0.42 0 0.62" xyaxes="0 -1 0 0.83 0 0.56" fovy="48"/>
    {boxes}{cubes}
    <body name="hand" gravcomp="1">{slides}<inertial pos="0 0 0.08" mass="0.8" diaginertia="0.001 0.001 0.001"/>
      <geom type="box" pos="0 0 0.07" size="0.02 0.05 0.02" rgba="0.9 0.9 0.92 1" contype="0" conaffinity="0"/>{fingers}</body>
  </worldbody>
  <actuator>{servos}</actuator>
</mujoco>""")


class BinsEnv(RobotEnv):
    """The hand and the bins, see the module."""

    def __init__(self, name: str, reward: str | None = None, horizon: int | None = None, sight: SightConfig | None = None,
                 randomise: RandomiseConfig | None = None) -> None:
        load = LOADS[name]
        self._model = model = _model(load.things)
        self._data = mujoco.MjData(model)
        self._free = [int(model.jnt_qposadr[model.body_jntadr[model.body(f"thing{i}").id]]) for i in range(load.things)]
        self._hand = [int(model.joint(n).qposadr[0]) for n in "xyz"]
        self._fingers = [int(model.joint(f"f{i}").qposadr[0]) for i in range(2)]
        task = TaskSpec("bins", name, OWN + 3 * load.things, 6, HORIZON if horizon is None else horizon, DT, load.text, discrete=True)
        looked = eyes(sight, Scenery(task.id, (View("front"),), tuple(range(OWN))), model, self._data, ("rgb", "depth"))
        super().__init__(task, reward=reward, kinds=("dense",), eyes=looked,
                         whims=randomiser(randomise, model, self._data, looked, ((-0.3, -0.3, 0.0), (0.3, 0.3, 0.3))))

    def step(self, action: Array) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """One move, see `RobotEnv.step`; info: carried, how many things so far."""
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated, truncated, {**info, "carried": self._carried}

    # ---- an episode

    def _begin(self, seed: int) -> Array:
        data, rng = self._data, self.np_random
        mujoco.mj_resetData(self._model, data)
        spots = [(x, y) for x in range(-2, 3, 2) for y in range(-2, 3, 2)]  # apart from each other, and out of the corners' reach
        for spot, at in zip(rng.permutation(len(spots)), self._free, strict=False):
            x, y = spots[spot]
            side = rng.choice((-1.0, 1.0))
            turn = rng.uniform(-0.4, 0.4)
            place = np.array([x * CELL, side * MIDDLE + y * CELL]) + rng.uniform(-0.012, 0.012, 2)
            data.qpos[at:at + 7] = [*place, CUBE, np.cos(turn / 2), 0, 0, np.sin(turn / 2)]
        self._side = 1 if data.qpos[self._free[0] + 1] > 0 else 0
        self._cell, self._up, self._shut, self._holds, self._carried = rng.integers(-2, 3, 2), True, False, False, 0
        self._target = self._over()
        data.qpos[self._hand], data.qpos[self._fingers] = self._target[:3], OPEN / 2
        self._move(0.1)
        return self._see()

    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        choice, reward = int(np.argmax(action)), 0.0
        if choice in _MOVES:
            reward = self._across() if self._crosses(choice) else self._to(choice)
        elif choice == GRIP:
            reward = self._grip()
        elif choice == DOWN and (self._up or self._holds):
            self._up = not self._up
            self._move(DT)
            self._check()
        if not np.isfinite(self._data.qpos).all():
            raise RealrlError(f"{self.task.id}: the simulation flew apart: reset it, and look at what is sent to it")
        return self._see(), reward, False, self._carried >= ENOUGH

    # ---- moves

    def _crosses(self, choice: int) -> bool:
        """Whether a move leaves the bin for the other one, with something in the hand and at a height."""
        towards = LEFT if self._side == 0 else RIGHT
        edge = CELLS // 2 if self._side == 0 else -(CELLS // 2)
        return choice == towards and self._holds and self._up and self._cell[1] == edge

    def _to(self, choice: int) -> float:
        reach = CELLS // 2
        self._cell = np.clip(self._cell + _MOVES[choice], -reach, reach)
        self._move(DT)
        self._check()
        return 0.0

    def _across(self) -> float:
        """Over the divide, let go, and on to a cell anywhere: 10, unless it was lost on the way."""
        self._side = 1 - self._side
        self._cell = np.array([self._cell[0], 0])
        self._move(2 * DT)
        self._check()
        held, self._shut, self._holds = self._holds, False, False
        self._move(DT)
        self._cell = self.np_random.integers(-(CELLS // 2), CELLS // 2 + 1, 2)
        self._move(DT)
        self._carried += held
        return 10.0 * held

    def _grip(self) -> float:
        """Open or close; a grasp is what keeps the fingers from closing."""
        held, self._shut, self._holds = self._holds, not self._shut, False
        self._move(DT)
        if self._shut:
            self._holds = self._grasping()
            return float(self._holds)
        return -1.0 if held else 0.0

    def _check(self) -> None:
        """Whether what was held still is."""
        self._holds = self._holds and self._grasping()

    def _grasping(self) -> bool:
        return self._shut and _GRASPED[0] < self._opening() < _GRASPED[1]

    def _opening(self) -> float:
        """Of the fingers, 0 to 1."""
        return float(self._data.qpos[self._fingers].sum()) / OPEN

    def _over(self) -> Array:
        """Where the hand shall be [3], m."""
        return np.array([self._cell[0] * CELL, (2 * self._side - 1) * MIDDLE + self._cell[1] * CELL, HIGH if self._up else LOW])

    def _move(self, seconds: float) -> None:
        """To where the hand shall be, evenly over three fifths of so many seconds, and rest there."""
        data, parts, start = self._data, 10, self._target
        self._target = self._over()
        data.ctrl[3:] = -0.01 if self._shut else OPEN / 2
        for part in range(1, parts + 1):
            data.ctrl[:3] = start + (self._target - start) * min(1.0, part / (0.6 * parts))
            mujoco.mj_step(self._model, data, round(seconds / (STEP * parts)))

    def _see(self) -> Array:
        data, side, holds = self._data, self._side, self._holds
        hand = data.qpos[self._hand]
        off = np.stack([data.qpos[at:at + 3] - hand for at in self._free])
        near = off[np.linalg.norm(off[:, :2], axis=1).argsort()]
        own = [*hand / CELL, self._opening(), side == 0, side == 1, not holds, holds, self._up]
        return np.concatenate([own, near.ravel() / CELL])
