"""Assembly with an arm that feels: "assembly/square" and its sisters (arXiv 2310.10509): pegs into holes, in two worlds.

A Panda holds a peg over a plate with a hole that a camera has seen 2 mm and half a degree wrong (1 sigma), all episode long; the last
millimetres have to be felt. An action is a decision: a velocity [6], to which the set point goes ahead, and a stiffness [6] of the
admittance law that takes the arm there. It is held for as long as the world's `hold`, or until the arm has gone 25 mm or 4 degrees, or,
after a quarter of that time, the force against the motion is 10 N. An episode has 20 decisions; it is solved, and ends, when the tip is
within 3 mm of the bottom.

| | simulation: "square" | "real": "square-real", "triangle-real", ... |
|---|---|---|
| clearance | 0.55 mm on every side | 0.1 mm |
| contacts | soft (solref 20 ms), friction 0.3 | stiff (4 ms), friction 0.3 to 0.6, drawn an episode |
| wrench | noise 0.2 N | noise 0.3 N, a bias that drifts, 8 ms late; the tool's mass known within 10 % |
| arm | no lag | 20 ms of lag, dry friction in the joints |

How the gains come about in "real" is the second word: "square-real" takes the policy's as they are (direct transfer), "-adapted" fits a
residual to them online, and the others are what that is to be compared with: "-manual", "-rule", "-free".

`state` [18]: from the hole's bottom as seen, cm, and the turn, 0.1 rad, in the world's axes; twist, 0.1 m/s and 0.1 rad/s; wrench at the
tip, flattened. `privileged` holds besides what nobody acts on, see `TRUTH`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from realrl.envs.base import RobotEnv, ScriptedPolicy
from realrl.scene import RandomiseConfig, SightConfig
from realrl.types import Array, Policy

SEEN, FULL = 18, 29
"""Numbers of `state`, and of the full state."""
TRUTH: dict[str, Any] = {"way": slice(18, 21), "turn": slice(21, 24), "seconds": 24, "peak": 25, "fits": 26, "failed": 27, "damping": 28}
"""In the full state: from the tip to the bottom of the hole, m; the turn that is missing, rad; seconds since the reset; the largest
filtered force, N; fits of the residual, and those that failed; mean damping along x, y, z in force, N s/m."""
DEPTH, NEAR = 0.020, 0.003
"""Of the goal under the hole's mouth, and how near to it is solved, m."""
SPEED, TURN_SPEED = 0.1, 0.28
"""A full action's velocity, m/s and rad/s."""
AHEAD = 0.25
"""Seconds that the set point is ahead: 25 mm and 4 degrees at full speed."""
SOFT, STIFF = np.array([20.0] * 3 + [2.0] * 3), np.array([200.0] * 3 + [20.0] * 3)
"""Stiffness of an action's -1 and 1, N/m and N m/rad, evenly in its logarithm."""

Control = Literal["direct", "adapted", "manual", "rule", "free"]


@dataclass(frozen=True)
class World:
    """What tells the worlds apart. clearance: on every side, m; solref: of contacts, s; friction: least and most; noise: of force, N, of
    torque a fiftieth; drift: of the wrench's bias, N/s, 1 sigma; delay, lag: s; dry: friction of the large joints, N m; mass: how wrong the
    tool's is known, at most; hold: of a decision at the longest, s."""

    clearance: float
    solref: float
    friction: tuple[float, float]
    noise: float
    drift: float
    delay: float
    lag: float
    dry: float
    mass: float
    hold: float


SIMULATION = World(0.00055, 0.020, (0.3, 0.3), 0.2, 0.0, 0.0, 0.0, 0.0, 0.0, 0.4)
REAL = World(0.0001, 0.004, (0.3, 0.6), 0.3, 0.05, 0.008, 0.020, 0.5, 0.1, 1.2)

SHAPES = ("square", "triangle", "pentagon", "round", "connector")
CONTROLS: tuple[Control, ...] = ("direct", "adapted", "manual", "rule", "free")


@dataclass(frozen=True)
class Level:
    """A task's shape, its world and where the gains come from."""

    shape: str
    world: World
    control: Control


LEVELS = {"square": Level("square", SIMULATION, "direct")} | {
    f"{shape}-real" + ("" if control == "direct" else f"-{control}"): Level(shape, REAL, control)
    for shape in SHAPES for control in CONTROLS}


def names() -> tuple[str, ...]:
    """All task names of this suite."""
    return tuple(LEVELS)


def make(name: str, *, reward: str | None = None, horizon: int | None = None, sight: SightConfig | None = None,
         randomise: RandomiseConfig | None = None) -> RobotEnv:
    """Environment `name` of `names()`; 20 decisions; its reward is dense by default (see `reward_of`), or sparse. Its sights are "rgb" and
    "depth". Raises RealrlError on another, and where the arm's model is not installed."""
    from realrl.envs.mujoco.assembly import AssemblyEnv  # it imports the simulator
    return AssemblyEnv(name, reward, horizon, sight, randomise)


def expert(name: str, path: str | Path | None = None) -> Policy:
    """Who knows where the hole is: over it first, then down, stiff."""
    return ScriptedPolicy(f"assembly/{name}", _insert)


def _insert(states: Array) -> Array:
    """Full states [B, FULL] -> actions [B, 12]."""
    way, turn = states[:, TRUTH["way"]].astype(np.float64), states[:, TRUTH["turn"]].astype(np.float64)
    off = np.abs(way[:, :2]).max(1)
    inside = way[:, 2] > -DEPTH + 0.001
    above = way[:, 2] < -DEPTH - 0.001
    # a sensor's bias moves a soft arm: the set point goes the other way
    drift = np.arctanh(np.clip(states[:, 12:14].astype(np.float64), -0.9, 0.9)) * 10 / STIFF[:2]
    aim = way[:, :2] - np.where(above[:, None], drift, 0.0)
    down = np.where((off < 0.0006) | inside, -1.0, 1.0)  # 1 goes along the plate
    move = np.concatenate([aim / (AHEAD * SPEED), down[:, None], turn / (AHEAD * TURN_SPEED)], 1)
    return np.asarray(np.clip(np.concatenate([move, np.ones_like(move)], 1), -1.0, 1.0))


def reward_of(distance: float, solved: bool, left: int) -> float:
    """10^(-distance / 2 cm), or 1 for the decision that solves it and every one that was left; `distance`: tip to bottom, m."""
    return 1.0 + left if solved else float(10.0 ** (-distance / 0.02))


def progress(state: Array) -> float:
    """How near a full state [FULL] is to the end: the distance, mm, below 0."""
    return -1000.0 * float(np.linalg.norm(state[TRUTH["way"]]))
