"""Assembly with an arm that feels: "assembly/square" and its sisters (arXiv 2310.10509): pegs into holes, in simulation and
on another arm; and "assembly/pivot", a block that is set upright against a wall.

A Panda holds a peg over a plate with a hole that a camera has seen 2 mm and half a degree wrong (1 sigma), all episode long; the last
millimetres have to be felt. An action is a decision: a velocity [6], to which the set point goes ahead, and a stiffness [6] of the
admittance law that takes the arm there. It is held for as long as the world's `hold`, or until the arm has gone 25 mm or 4 degrees, or,
after a quarter of that time, the force against the motion is 10 N. An episode has 20 decisions; it is solved, and ends, when the tip is
within 3 mm of the bottom.

| | simulation: "square" | "dev": "square-dev", ... | "real": "square-real", "triangle-real", ... |
|---|---|---|---|
| clearance on every side | 0.15 to 0.55 mm | 0.1 mm | 0.105 mm |
| contacts | soft: solref 6 to 30 ms, friction 0.2 to 0.6 | stiff: 4 ms, 0.3 to 0.6 | 3.32 ms, 0.403 to 0.5 |
| wrench | noise 0.2 N, a bias that drifts by 0.03 N/s | noise 0.3 N, 0.05 N/s, 8 ms late | noise 0.3 N, 0.045 N/s, 9 ms late |
| arm | no lag, no friction | 20 ms of lag, 0.5 N m in the joints | 24.9 ms, 0.796 N m |
| law's damping | 1 to 10 times what is asked for | as asked for | as asked for |
| tool's mass, known within | 10 % | 10 % | 5.1 % |
| a decision lasts at most | 0.4 to 1.2 s | 2.5 s | 2.5 s |

Ranges are drawn anew for every episode. "square-plain" is the simulation without them: 0.55 mm, 20 ms, 0.3, the damping as asked for,
0.4 s, no drift, the mass known; "square-published" has the paper's law, whose set point goes with the arm. "dev" is what adaptation was
built in; "real" was drawn by a fixed seed, see docs/methods/admittance.md.

How the gains come about on the other arms is the second word: "square-real" takes the policy's as they are (direct transfer), "-adapted"
fits a residual to them online, and the others are what that is to be compared with: "-manual", "-rule", "-free". "-braced" is "-adapted"
by who expects a contact of 10 kN/m before the first touch, and is damped for it; "-probed" after a gentle touch of the plate, before the
trial and counted with it. With both the first touch at speed is made with adapted gains.

"pivot", "pivot-dev", "pivot-real", "pivot-real-braced", ...: a block lies on a table, its end at a wall, and has to be set upright there by
a rod that pushes and lifts it with nothing but friction. Nobody sees the block; where table and wall meet is seen 2 mm and half a degree
wrong. An action is a velocity [3], downwards half as fast as upwards, and a stiffness [3] of 100 to 200 N/m along the axes; the rod does
not turn. It is solved, and ends, within 5 degrees of upright. The worlds are those of the pegs, but that decisions of the simulation last
0.6 s and more, its three axes are up to 3 times as damped as one another and up to 2.5 times as stiff as asked for, each by itself, and
the block is drawn anew, too:

| | simulation | "dev" | "real" |
|---|---|---|---|
| length, thickness | 90 to 110 mm, 35 to 45 mm | 100 mm, 40 mm | 108 mm, 42.4 mm |
| mass | 80 to 160 g | 120 g | 144 g |
| the rod's friction | 0.6 to 1 | 0.8 | 0.722 |

"square-forge" and "square-real-forge", "...-forge-braced", ...: the policy is told a force that it shall not exceed, and pays for what is
beyond (FORGE, arXiv 2408.04587). It is drawn anew for every episode, 5 to 30 N, in simulation, and 15 N on the other arms.

`state` [18], or [19] with a force to keep to: from the hole's bottom as seen, cm, and the turn, 0.1 rad, in the world's axes; twist,
0.1 m/s and 0.1 rad/s; wrench at the tip, flattened; that force, 10 N. Of a pivot: from the corner as seen, 3 cm. `privileged`
holds besides what nobody acts on, see `TRUTH`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from realrl.envs.base import RobotEnv, ScriptedPolicy
from realrl.scene import RandomiseConfig, SightConfig
from realrl.types import Array, Policy, RealrlError

SEEN, FULL, PIVOT_FULL, LIMIT = 18, 30, 34, 29
"""Numbers of `state`, and of the full state, a pivot's as well; which of them is the force to keep to, 10 N, which is observed where
there is one."""
STATE = (*(f"{what} {axis}" for what in ("way", "twist", "wrench") for axis in ("x", "y", "z", "roll", "pitch", "yaw")), "force to keep to")
"""Names of the numbers of `state`; the last one where there is one."""
TRUTH: dict[str, Any] = {"way": slice(18, 21), "turn": slice(21, 24), "seconds": 24, "peak": 25, "fits": 26, "failed": 27, "damping": 28,
                         "lean": 30, "edge": slice(31, 34)}
"""In the full state: from the tip to the bottom of the hole (a pivot's corner), m; the turn that is missing, rad; seconds since the reset;
the largest filtered force, N; fits of the residual, and those that failed; mean damping along x, y, z in force, N s/m. Of a pivot besides:
how far the block is raised, rad; from the tip to the edge of it that has to come up, m."""
TRACE: dict[str, Any] = {"seconds": 0, "above": 1, "force": slice(2, 5), "torque": slice(5, 8), "damping": slice(8, 11),
                         "stiffness": slice(11, 14), "joints": slice(14, 21), "posture": slice(14, None)}
"""In a row of an environment's `trace`: seconds since the reset; the tip's height over the hole's bottom, m, or how far the block is
raised, rad; the filtered wrench, N and N m; damping and stiffness along x, y, z in force; the joints, rad; all that the simulator's
positions are, the joints first."""
DEPTH, NEAR = 0.020, 0.003
"""Of the goal under the hole's mouth, and how near to it is solved, m."""
UPRIGHT = math.radians(5)
"""How near to upright a block is as good as that, rad."""
SEEN_WRONG, TURN_WRONG = 0.002, math.radians(0.5)
"""How wrong the goal and its turn are seen, 1 sigma, m and rad."""
SPEED, TURN_SPEED = 0.1, 0.28
"""A full action's velocity, m/s and rad/s."""
AHEAD = 0.25
"""Seconds that the set point is ahead: 25 mm and 4 degrees at full speed."""
SOFT, STIFF = np.array([20.0] * 3 + [2.0] * 3), np.array([200.0] * 3 + [20.0] * 3)
"""Stiffness of an action's -1 and 1, N/m and N m/rad, evenly in its logarithm."""
PIVOT_SOFT = np.array([100.0] * 3 + [20.0] * 3)
"""Of an action's -1 where a block is pivoted: its turn is kept, stiff."""

Control = Literal["direct", "adapted", "manual", "rule", "free", "probed", "braced"]
Range = tuple[float, float]


@dataclass(frozen=True)
class World:
    """What tells the worlds apart; ranges are least and most of what is drawn anew for an episode.

    clearance: on every side, m, a range for the square alone; solref: of contacts, s; friction; slow: how many times as large as the policy
    asks the law's damping is; hold: of a decision at the longest, s; noise: of force, N, of torque a fiftieth; drift: of the wrench's bias,
    N/s, 1 sigma; delay, lag: s; dry: friction of the large joints, N m; mass: how wrong the tool's is known, at most; servo: stiffness of
    the joints' loop over their inertia, 1/s²; dt: of a step, s; uneven, firm: what a residual does to gains, axis by axis: how many times
    as damped one may be as another is, at most, and how many times as stiff as asked for.
    """

    clearance: Range
    solref: Range
    friction: Range
    slow: Range
    hold: Range
    noise: float
    drift: float
    delay: float
    lag: float
    dry: float
    mass: float
    servo: float
    dt: float
    uneven: float = 1.0
    firm: Range = (1.0, 1.0)


def _always(value: float) -> Range:
    return value, value


PLAIN = World(_always(0.00055), _always(0.020), _always(0.3), _always(1.0), _always(0.4), noise=0.2, drift=0.0, delay=0.0, lag=0.0, dry=0.0,
              mass=0.0, servo=1e4, dt=0.002)
SIMULATION = replace(PLAIN, clearance=(0.00015, 0.00055), solref=(0.006, 0.030), friction=(0.2, 0.6), slow=(1.0, 10.0), hold=(0.4, 1.2),
                     drift=0.03, mass=0.1)
DEV = World(_always(0.0001), _always(0.004), (0.3, 0.6), _always(1.0), _always(2.5), noise=0.3, drift=0.05, delay=0.008, lag=0.020, dry=0.5,
            mass=0.1, servo=2500.0, dt=0.001)
REAL = World(_always(0.000105), _always(0.00332), (0.403, 0.5), _always(1.0), _always(2.5), noise=0.3, drift=0.045, delay=0.009, lag=0.0249,
             dry=0.796, mass=0.051, servo=2500.0, dt=0.001)

@dataclass(frozen=True)
class Block:
    """What is pivoted; ranges of what is drawn anew for an episode. length, thick: m; mass: kg; grip: friction of the rod that does it."""

    length: Range
    thick: Range
    mass: Range
    grip: Range


BLOCK, BLOCK_DEV = (Block((0.09, 0.11), (0.035, 0.045), (0.08, 0.16), (0.6, 1.0)),
                    Block(_always(0.1), _always(0.04), _always(0.12), _always(0.8)))
BLOCK_REAL = Block(_always(0.108), _always(0.0424), _always(0.144), _always(0.722))

TOLD = _always(15.0)
"""The force to keep to on the other arms, N."""
SHAPES = ("square", "triangle", "pentagon", "round", "connector")
CONTROLS: tuple[Control, ...] = ("direct", "adapted", "manual", "rule", "free", "probed", "braced")


@dataclass(frozen=True)
class Level:
    """A task's shape, its world and where the gains come from. carried: whether the set point goes with the arm, as in the paper's
    simulation: stiffness acts through the damping alone, and a velocity is a velocity; limit: the force to keep to, N, a range of what is
    drawn anew, None where nobody says; block: what is pivoted, None of a peg."""

    shape: str
    world: World
    control: Control
    carried: bool = False
    limit: Range | None = None
    block: Block | None = None

    @property
    def full(self) -> int:
        """Numbers of the full state."""
        return PIVOT_FULL if self.block else FULL

    @property
    def numbers(self) -> int:
        """Of an action: who pivots does not turn."""
        return 6 if self.block else 12

    @property
    def springs(self) -> tuple[Array, Array]:
        """Stiffness of an action's -1 and 1 [6], N/m and N m/rad, evenly in its logarithm."""
        return PIVOT_SOFT if self.block else SOFT, STIFF

    @property
    def seen(self) -> list[int]:
        """Which numbers of the full state are observed."""
        return [*range(SEEN), *([LIMIT] if self.limit else [])]


def _levels(name: str, world: World, shape: str = "square", limit: Range | None = None) -> dict[str, Level]:
    return {name + ("" if control == "direct" else f"-{control}"): Level(shape, world, control, limit=limit) for control in CONTROLS}


LEVELS = {"square": Level("square", SIMULATION, "direct"), "square-plain": Level("square", PLAIN, "direct"),
          "square-published": Level("square", SIMULATION, "direct", carried=True),
          "square-forge": Level("square", SIMULATION, "direct", limit=(5.0, 30.0)),
          **_levels("square-dev", DEV), **_levels("square-dev-forge", DEV, limit=TOLD), **_levels("square-real-forge", REAL, limit=TOLD)}
for _shape in SHAPES:
    LEVELS |= _levels(f"{_shape}-real", REAL, _shape)
LEVELS["pivot"] = Level("block", replace(SIMULATION, hold=(0.6, 1.2), uneven=3.0, firm=(1.0, 2.5)), "direct", block=BLOCK)
for _name, _world, _block in (("pivot-dev", DEV, BLOCK_DEV), ("pivot-real", REAL, BLOCK_REAL)):
    LEVELS |= {name: replace(level, block=_block) for name, level in _levels(_name, _world, "block").items() if level.control != "probed"}


def names() -> tuple[str, ...]:
    """All task names of this suite."""
    return tuple(LEVELS)


def make(name: str, *, reward: str | None = None, horizon: int | None = None, sight: SightConfig | None = None,
         randomise: RandomiseConfig | None = None) -> RobotEnv:
    """Environment `name` of `names()`; 20 decisions; its reward is dense by default (see `reward_of`), or sparse. Its sights are "rgb" and
    "depth". Raises RealrlError on another, and where the arm's model is not installed."""
    from realrl.envs.mujoco.assembly import AssemblyEnv  # it imports the simulator
    return AssemblyEnv(name, reward, horizon, sight, randomise)


def other(task: str) -> str:
    """The task of the arm that nobody looked at, for a policy that learns in `task`: of "assembly/pivot", "assembly/pivot-real"."""
    level = _level(task)
    skill = "pivot" if level.block else level.shape
    return f"assembly/{skill}-real" + ("-forge" if level.limit else "")


def simulated(task: str) -> None:
    """Raises RealrlError for a task that nothing is learned in: another arm, on which policies are judged."""
    known = [f"assembly/{name}" for name, level in LEVELS.items() if level.control == "direct" and f"{name}-braced" not in LEVELS]
    if task not in known:
        raise RealrlError(f"task must be of {', '.join(known)}, got {task}, another arm, where nothing is learned: judge there with --real")


def others(task: str) -> list[str]:
    """The tasks of other arms, gains as they are, that a policy of `task` can do: they show and take the same numbers."""
    level = _level(task)
    return [f"assembly/{name}" for name, there in LEVELS.items()
            if f"{name}-braced" in LEVELS and (there.numbers, there.full, there.seen) == (level.numbers, level.full, level.seen)]


def _level(task: str) -> Level:
    suite, _, name = task.partition("/")
    if suite != "assembly" or name not in LEVELS:
        raise RealrlError(f"{task}: nobody assembles there: take a task of `realrl tasks assembly`")
    return LEVELS[name]


def symmetries(name: str) -> tuple[Array, Array]:
    """How the work of task `name` looks the same: (what an element makes of `state` [G, n, n], and of an action [G, a, a]). A square
    hole can be turned by right angles and mirrored; others and a block at its wall be mirrored. The first leaves all as it is."""
    level = LEVELS[name]
    mirror = np.diag([-1.0, 1.0, 1.0] if level.shape == "connector" else [1.0, -1.0, 1.0])  # its latch is in y
    quarter = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    turns = 4 if level.shape == "square" else 1
    elements = [np.linalg.matrix_power(quarter, k) @ side for k in range(turns) for side in (np.eye(3), mirror)]
    return (np.stack([_seen_as(g, len(level.seen)) for g in elements]), np.stack([_done_as(g, level.numbers) for g in elements]))


def _seen_as(g: Array, numbers: int) -> Array:
    """Of `state`: arrows turn, and what turns about an axis changes its sense where g mirrors."""
    about = g * np.linalg.det(g)
    out = np.eye(numbers)
    for i, part in enumerate((g, about) * 3):
        out[3 * i:3 * i + 3, 3 * i:3 * i + 3] = part
    return out


def _done_as(g: Array, numbers: int) -> Array:
    """Of an action: so do velocities; stiffness goes with its axis, whatever the sign."""
    parts = [g, g * np.linalg.det(g), np.abs(g), np.abs(g)] if numbers == 12 else [g, np.abs(g)]
    out = np.zeros((numbers, numbers))
    for i, part in enumerate(parts):
        out[3 * i:3 * i + 3, 3 * i:3 * i + 3] = part
    return out


def expert(name: str, path: str | Path | None = None) -> Policy:
    """Who knows where the hole is: over it first, then down, stiff; or how far a block is raised: with its edge, round the corner."""
    return ScriptedPolicy(f"assembly/{name}", _raise if LEVELS[name].block else _insert)


TOUCHING = 0.010
"""How far the block's edge is at most from the middle of a rod that touches it, m."""


def _raise(states: Array) -> Array:
    """Full states [B, PIVOT_FULL] -> actions [B, 6]."""
    lean, edge = states[:, TRUTH["lean"]].astype(np.float64), states[:, TRUTH["edge"]].astype(np.float64)
    sin, cos = np.sin(lean), np.cos(lean)
    # along the circle on which the edge goes, when the rod touches it, and into the block, so that friction holds
    along, into = np.where(edge[:, 0] < TOUCHING, 0.018, 0.0), 0.025
    ahead, up = along * sin + into * cos, along * cos - into * sin
    move = np.stack([ahead, np.clip(edge[:, 1], -0.005, 0.005), up], 1) / (AHEAD * SPEED)
    move[:, 2] = (move[:, 2] - 0.25) / 0.75
    return np.asarray(np.clip(np.concatenate([move, np.ones_like(move)], 1), -1.0, 1.0))


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


SOLVED = 20.0
"""Reward of the decision that solves it: what 20 more at the bottom would bring. The same whenever that is, because nobody observes the
time; that sooner is better, the discount says."""


FINE, FINED = 0.01, 40.0
"""What a newton beyond the force to keep to costs a decision, and how many of them count."""


def reward_of(distance: float, solved: bool, beyond: float = 0.0) -> float:
    """10^(-distance / 2 cm), or `SOLVED`, less the fine. distance: tip to bottom, m; beyond: how far the decision's largest force was
    beyond what was told, N."""
    return (SOLVED if solved else float(10.0 ** (-distance / 0.02))) - FINE * min(max(beyond, 0.0), FINED)


def pivot_reward(lean: float, beyond: float = 0.0) -> float:
    """How far a block is raised, of what is upright; `SOLVED` where it is, less the fine. lean: rad; beyond: see `reward_of`."""
    solved = lean > math.pi / 2 - UPRIGHT
    return (SOLVED if solved else max(lean, 0.0) / (math.pi / 2)) - FINE * min(max(beyond, 0.0), FINED)


def told(state: Array) -> dict[str, float]:
    """What a trial says by its last full state: its seconds, the largest filtered force (N), fits and failed fits of the residual, the
    damping at its end (N s/m)."""
    return {name: float(state[TRUTH[name]]) for name in ("seconds", "peak", "fits", "failed", "damping")}


def progress(state: Array) -> float:
    """How near a full state is to the end: the distance, mm, below 0; of a pivot the degrees that are missing."""
    if len(state) == PIVOT_FULL:
        return math.degrees(float(state[TRUTH["lean"]])) - 90.0
    return -1000.0 * float(np.linalg.norm(state[TRUTH["way"]]))
