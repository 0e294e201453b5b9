"""Two fingers and a peg that stands on a table, for the hand of `realrl.envs.mujoco.peg`: what "contact/pick-peg" has besides.

The fingers shut along the peg's shorter side, coupled as on a rack, and hold it by friction alone: what the slot does to the peg, the hand
feels through them, and a peg that was taken askew is carried askew.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from realrl.envs.contact import WIDTH
from realrl.scene import COMMAND
from realrl.types import Array

BLOCKS = 0.6
"""Seconds that it takes to open or shut them, in which the hand stands still."""
PLACE, APART, TURN = 0.008, 0.03, 0.2
"""Where the peg may be off its place, m; how far that is, and the slot's, from the middle, m; the peg's turn, at most, rad."""
WRONG = 0.0005
"""How wrong the peg is seen, 1 sigma, m: the same all episode long, and the turn by 0.02 rad."""
_FORCE, _MASS = 25.0, 0.03
"""N of each finger, which moves with 0.1 m/s at most; kg of the peg."""
_PAD = 0.003
"""Radius of a finger's pad, a bar along the peg's longer side, m: it touches the peg in two points, which MuJoCo solves twice as fast as
the four of a box."""
_SHUT, _GRIPS = WIDTH - 0.0005, 'friction="1.2 0.02 0.001" priority="1" contype="2" conaffinity="2"'


def fingers() -> str:
    """Two slides in the hand's body, whose pads reach over the peg's upper half."""
    return "".join(f"""
      <body name="{name}" pos="0 {side * (WIDTH + _PAD)} 0.032">
        <joint name="{name}" type="slide" axis="0 {-side} 0" range="0 {_SHUT}" limited="true" damping="250" armature="0.02"/>
        <geom type="capsule" fromto="-0.006 0 0 0.006 0 0" size="{_PAD}" mass="0.03" rgba="0.3 0.3 0.32 1" {_GRIPS}/>
        <geom type="box" pos="0 0 0.02" size="0.005 0.003 0.012" mass="0.01" rgba="0.3 0.3 0.32 1" contype="0" conaffinity="0"/>
      </body>""" for name, side in (("left", 1), ("right", -1)))


def beside(half: tuple[float, float, float]) -> str:
    """The peg and the table that it stands on, on which it slides when it is pushed, and rarely topples. half: the peg's sizes."""
    return f"""
    <geom name="stand" type="box" pos="-0.04 0 -0.012" size="0.032 0.05 0.012" rgba="0.6 0.58 0.55 1"
          friction="0.1 0.005 0.0001" priority="1"/>
    <body name="peg" pos="{-APART} 0 0"><freejoint/>
      <geom name="peg" type="box" pos="0 0 {half[2]}" size="{half[0]} {half[1]} {half[2]}" mass="{_MASS}" rgba="0.85 0.55 0.2 1"
            contype="3" conaffinity="3"/>
    </body>"""


DRIVES = "".join(f'<position joint="{name}" kp="20000" forcerange="{-_FORCE} {_FORCE}"/>' for name in ("left", "right"))
RACK = '<equality><joint joint1="left" joint2="right" solref="0.004 1"/></equality>'


class Grip:
    """The fingers and the peg of a model made of these parts; `shut`: what they were told last."""

    def __init__(self, model: Any, data: Any) -> None:
        self._data, self._body, self._joint = data, model.body("peg").id, int(model.jnt_qposadr[model.body("peg").jntadr[0]])
        self.shut, self.before = False, 0.0

    def begin(self, rng: np.random.Generator) -> None:
        """The peg onto its table, the fingers open."""
        turn = float(rng.uniform(-TURN, TURN))
        place = (-APART + rng.uniform(-PLACE, PLACE), rng.uniform(-PLACE, PLACE), 0.0)
        self._data.qpos[self._joint:self._joint + 7] = (*place, math.cos(turn / 2), 0.0, 0.0, math.sin(turn / 2))
        self._data.xfrc_applied[self._body, 2] = -9.81 * _MASS  # nothing else has a weight
        self._wrong, self._wrong_turn = rng.normal(0.0, WRONG, 3), float(rng.normal(0.0, 0.02))
        self.shut, self.before = False, 0.0

    def command(self, number: float) -> bool:
        """Open or shut them, or leave them; whether they have to move for it."""
        wanted = number > 0 if abs(number) >= COMMAND else self.shut
        moves, self.shut, self.before = wanted != self.shut, wanted, number
        self._data.ctrl[6:8] = _SHUT if wanted else 0.0
        return moves

    @property
    def foot(self) -> Array:
        """The middle of the peg's lower end [3], m."""
        found: Array = self._data.qpos[self._joint:self._joint + 3]
        return found

    @property
    def turn(self) -> float:
        """The peg's, rad."""
        w, x, y, z = self._data.qpos[self._joint + 3:self._joint + 7].tolist()
        return math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))

    @property
    def upright(self) -> float:
        """1 where the peg stands, 0 where it lies."""
        _, x, y, _ = self._data.qpos[self._joint + 3:self._joint + 7].tolist()
        return float(1 - 2 * (x * x + y * y))

    def look(self, state: Array, true: Array, turn: float, noise: Array) -> Array:
        """The full state, from what the hand knows without fingers [35]. true, turn: the way [3] and the turn from the hand to the peg;
        noise: of this step [3]. What is near is told of the peg: the slot from its foot."""
        seen = true + self._wrong + noise
        opening = (2 * WIDTH - float(self._data.qpos[6:8].sum())) / WIDTH - 1
        near = np.tanh((0.02 * state[:3] - seen) / 0.004)
        return np.concatenate([state[:3], near, state[6:], [self.before], seen / 0.02, np.tanh(seen / 0.004),
                               [(turn + self._wrong_turn) / 0.1, opening], true, [turn]])
