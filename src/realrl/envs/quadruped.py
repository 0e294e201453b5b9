"""A quadruped that learns to walk: "quadruped/go1" and its sisters, after A Walk in the Park (arXiv 2208.07860).

20 decisions a second. An action of 12 numbers in [-1, 1] says where the joints shall go, the stand pose +- a box; servos do the rest. A
task is a robot ("go1", "go2", "a1") and perhaps a variant:

- "go1": walk forward at 0.5 m/s or more, in the direction faced at the start; "go1-rough" over bumps with a friction drawn an episode;
  "go1-filter" with a low-pass filter on the actions; "go1-smooth" with a higher
  price for changes of the action; "go1-wide" with nearly all of the joints' range (the paper's ablation).
- "go1-command": follow a velocity (forward, sideways, turning) that is drawn anew every 5 s; "go1-pace": one that is straight forward.
- "go1-fallen": walk forward, from a fall: every episode's robot lies somehow and gets up first, see `QuadrupedEnv.reset`.
- "go1-paper": what the paper's simulation observes and rewards, with its stand pose and gains.
- "go1-from-back": from its back onto its feet and away, after DayDreamer (arXiv 2206.14176): nothing ends or resets it while it learns,
  see `rising`; what is observed and how it is driven is its own.

Any of them may be pushed (`RandomiseConfig.push`): horizontally, on the trunk, every few seconds.

What is observed is what a robot has: its encoders, its gyroscope, the velocity that it estimates from its legs, its attitude. `info`
holds what people want to see: speed, path, net distance, feet on the ground, whether it fell.

A robot's success is to have walked at 0.5 m/s or more, on average over the last 5 s, and to stand; with a command, to have followed it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from realrl.envs.base import RobotEnv
from realrl.scene import RandomiseConfig, SightConfig
from realrl.types import Array, Policy, RealrlError

SPEED = 0.5
"""What counts as walking, m/s."""
FULL = 10.0
"""The reward of a step without fault."""
# weights of the reward, see `walk_reward`
YAW, ATTITUDE, TORQUE, CHANGE = 0.1, 10.0, 3e-4, 0.1
TURN = 0.25
"""What share of following a command is turning as commanded."""
REACH = 0.5, 0.8
"""Over how much, beyond what is allowed, the pay for following falls to nothing: m/s, rad/s."""
SMOOTH = 4.0
"""How much more `-smooth` asks for a change of the action."""
COMMANDS = ((-0.4, -0.3, -0.8), (0.8, 0.3, 0.8))
"""Lowest and highest command: m/s forward, m/s to the left, rad/s to the left."""
REST = 0.1
"""How many commands in all are to stand."""

Goal = Literal["walk", "command", "paper", "rise"]


@dataclass(frozen=True)
class Variant:
    """What a task asks for, and of what."""

    text: str
    goal: Goal = "walk"
    rough: bool = False
    filtered: bool = False
    smooth: bool = False
    wide: bool = False
    fallen: bool = False
    commands: tuple[tuple[float, float, float], tuple[float, float, float]] = COMMANDS


VARIANTS = {
    "": Variant("walk forward"),
    "rough": Variant("walk forward over bumps", rough=True),
    "filter": Variant("walk forward, with a filter on the actions", filtered=True),
    "smooth": Variant("walk forward, gently on the gears", smooth=True),
    "wide": Variant("walk forward, with nearly all of the joints' range", wide=True),
    "command": Variant("walk as commanded: forward, sideways, turning", "command"),
    "pace": Variant("walk forward as fast as commanded", "command", commands=((0.0, 0.0, 0.0), (0.8, 0.0, 0.0))),
    "fallen": Variant("get up from a fall and walk forward", fallen=True),
    "paper": Variant("walk forward, as in A Walk in the Park", "paper"),
    "from-back": Variant("roll over, stand up and walk", "rise"),
}
ROBOTS = ("go1", "go2", "a1")
"""See `realrl.envs.mujoco.legs` for what they are."""


JOINTS = tuple((leg, part) for leg in ("FR", "FL", "RR", "RL") for part in ("hip", "thigh", "knee"))
"""In the order of actions."""


def state_names(goal: Goal) -> tuple[str, ...]:
    """Names of the numbers that are observed, see docs/methods/walk.md and, of a robot on its back, docs/methods/daydreamer.md."""
    joints = [" ".join(joint) for joint in JOINTS]
    if goal == "rise":
        return (*(f"{what} {axis}" for what in ("gravity", "gyro") for axis in "xyz"), *joints, *(f"speed {joint}" for joint in joints),
                *(f"target {joint}" for joint in joints))
    turned = ("quat w", "quat x", "quat y", "quat z") if goal == "paper" else ("gravity x", "gravity y", "gravity z")
    end = {"walk": ("cos off", "sin off"), "command": ("wanted forward", "wanted left", "wanted turning"), "paper": ()}[goal]
    return (*joints, *(f"speed {joint}" for joint in joints), *(f"gyro {axis}" for axis in "xyz"), *(f"velocity {axis}" for axis in "xyz"),
            *turned, *end, *(f"action {joint}" for joint in joints))


def names() -> tuple[str, ...]:
    """All task names of this suite."""
    return tuple(f"{robot}-{variant}" if variant else robot for robot in ROBOTS for variant in VARIANTS)


def make(name: str, *, reward: str | None = None, horizon: int | None = None, sight: SightConfig | None = None,
         randomise: RandomiseConfig | None = None) -> RobotEnv:
    """Environment `name` of `names()`; its reward is dense, its sights are "rgb" and "depth". Raises RealrlError on another."""
    if VARIANTS[name.partition("-")[2]].goal == "rise":
        from realrl.envs.mujoco.rising import RisingEnv
        return RisingEnv(name, reward, horizon, sight, randomise)
    from realrl.envs.mujoco.walking import QuadrupedEnv  # it imports the simulator
    return QuadrupedEnv(name, reward, horizon, sight, randomise)


def expert(name: str, path: str | Path | None = None) -> Policy:
    """Always raises RealrlError: nobody scripted these."""
    raise RealrlError(f"quadruped/{name} has no scripted expert: it learns to walk from nothing")


def symmetries(name: str) -> tuple[Array, Array] | None:
    """How walking looks the same: (what an element makes of `state` [2, n, n], and of an action [2, 12, 12]): as it is, and in a mirror
    that has left for right. None of "-paper", whose stand pose leans to one side; of "-from-back", where nobody wrote it down; and where
    velocities are asked for: every step tells of all of them anyhow, and in mirrors fewer were followed (docs/methods/walk.md)."""
    goal = VARIANTS[name.partition("-")[2]].goal
    if goal in ("paper", "rise", "command"):
        return None
    joint = np.kron(np.kron(np.eye(2), 1.0 - np.eye(2)), np.diag([-1.0, 1.0, 1.0]))  # the other leg of a pair; hips open the other way
    about, along = [-1.0, 1.0, -1.0], [1.0, -1.0, 1.0]
    n = len(state_names(goal))
    mirror = np.zeros((n, n))
    for first in (0, 12, n - 12):
        mirror[first:first + 12, first:first + 12] = joint
    mirror[24:n - 12, 24:n - 12] = np.diag([*about, *along, *along, 1.0, -1.0])
    return np.stack([np.eye(n), mirror]), np.stack([np.eye(12), joint])


def motion(state: Array, dt: float) -> tuple[Array, Array]:
    """(speed [T] as `info` has it, velocity over the ground [T, 2] in a frame that stands still), m/s, of observations [T, D] in a row.

    What a robot knows of itself suffices: its velocity, its attitude, and the angle to where it shall go; with a command it knows none,
    there its gyroscope is added up. dt: seconds of a control step. Raises RealrlError for observations of another size.
    """
    if (size := state.shape[1]) not in (46, 47, 48):
        raise RealrlError(f"an observation of {size} numbers tells no speed: take a task of quadruped/..., but none from-back (those are "
                          "for `realrl train daydreamer`), or observe what the others do (46, 47 or 48 numbers, see docs/methods/walk.md)")
    if size == 46:
        w, x, y, z = state[:, 30:34].T.astype(np.float64)
        forward, left = _level(state, np.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]))
        off = np.arctan2(2 * (x * y + w * z), 1 - 2 * (y * y + z * z))
    else:
        forward, left = _level(state, -state[:, 30:33].T.astype(np.float64))
        off = np.arctan2(state[:, 34], state[:, 33]) if size == 47 else np.cumsum(10 * dt * state[:, 26])
    over = np.stack([np.cos(off) * forward - np.sin(off) * left, np.sin(off) * forward + np.cos(off) * left], 1)
    return (over[:, 0] if size == 47 else forward), over


def _level(state: Array, up: Array) -> tuple[Array, Array]:
    """The speeds [T] over the ground along and to the left of where the trunk points, m/s. up: [3, T], upward in the trunk's frame."""
    vx, vy, vz = state[:, 27:30].T.astype(np.float64)
    cos_pitch = np.maximum(np.hypot(up[1], up[2]), 1e-9)
    sin_roll, cos_roll = up[1] / cos_pitch, up[2] / cos_pitch
    return cos_pitch * vx - up[0] * (sin_roll * vy + cos_roll * vz), cos_roll * vy - sin_roll * vz


def commanded(state: Array) -> bool:
    """Whether observations [T, D] tell what velocity is commanded."""
    return bool(state.shape[-1] == 48)


def following(state: Array) -> tuple[Array, Array]:
    """(velocity, command), each [T, 3]: forward and to the left in m/s, turning to the left in rad/s, of observations [T, 48] in a row."""
    forward, left = _level(state, -state[:, 30:33].T.astype(np.float64))
    return np.stack([forward, left, 10.0 * state[:, 26]], 1), state[:, 33:36].astype(np.float64)


def commands(task: str) -> Array:
    """Lowest and highest command [2, 3] that a task draws; `COMMANDS` for one that is not of this suite."""
    about = VARIANTS.get(task.partition("/")[2].partition("-")[2])
    return np.array(about.commands if about else COMMANDS)


def allowed(command: Array) -> Array:
    """How far [..., 3] a mean velocity may be from a command that is followed: a fifth, or 0.1 where that asks for little."""
    return np.maximum(0.2 * np.abs(command), 0.1)


# ---- rewards


def tolerance(speed: float) -> float:
    """1 for a speed in [0.5, 1] m/s, falling evenly to 0 one m/s away from there: 0.5 at rest."""
    return max(0.0, 1.0 - max(0.0, SPEED - speed, speed - 1.0))


def paper_reward(forward: float, pitch: float, turning: float) -> float:
    """A Walk in the Park's reward. forward: m/s along the trunk; pitch: rad; turning: rad/s."""
    return FULL * (tolerance(forward * math.cos(pitch)) - YAW * abs(turning))


def walk_reward(forward: float, turning: float, tilt: float, torque: float, change: float) -> float:
    """Ours: never negative, as in Gait in Eight (arXiv 2503.08375), and forward is the direction asked for, not where the trunk points.

    forward: m/s; turning: rad/s; tilt: roll^2 + pitch^2, rad^2; torque: sum of squares, (N m)^2; change: mean square of the action's
    change since the step before.
    """
    return FULL * max(0.0, tolerance(forward) - YAW * abs(turning) - ATTITUDE * tilt - TORQUE * torque - CHANGE * change)


def command_reward(error: Array, command: Array, tilt: float, torque: float, change: float) -> float:
    """Following a command. error, command: how far off, and what is asked for, each [3]: m/s forward and to the left, rad/s to the left.
    The rest as `walk_reward`."""
    (ahead, aside, turned), (forward, left, turning) = error.tolist(), command.tolist()
    paid = followed(math.hypot(ahead, aside), turned, math.hypot(forward, left), turning)
    return FULL * max(0.0, float(paid) - ATTITUDE * tilt - TORQUE * torque - CHANGE * change)


def followed(error: Any, turn_error: Any, speed: Any, turning: Any) -> Any:
    """What `command_reward` pays for following alone, of 1: all of it to who is as near as is allowed. error, turn_error: how far off, m/s
    and rad/s; speed, turning: what is commanded. Numbers, arrays or tensors."""
    return (1.0 - TURN) * _near(error, speed, REACH[0]) + TURN * _near(abs(turn_error), abs(turning), REACH[1])


def _near(off: Any, wanted: Any, reach: float) -> Any:
    """1 within what is `allowed` of so much, for every gait sways; from there it falls evenly to nothing, over `reach` or more: to a third
    for who stands while much is wanted, so that whoever is far off is told which way to go, and standing is worth leaving."""
    free = _larger(0.2 * wanted, 0.1)
    return _larger(1.0 - _larger(off - free, 0.0) / _larger(1.5 * (wanted - free), reach), 0.0)


def _larger(one: Any, two: Any) -> Any:
    """Of two numbers, arrays or tensors."""
    return (one + two + abs(one - two)) / 2.0


# ---- from its back

REACHED = 0.7
"""A phase counts as reached above that, and only then the next one pays."""
RISE_LOW = np.array([-0.787, -0.995, -2.679])
"""Least targets of hip, thigh and knee, rad: 1 % of an A1's range each."""
RISE_HIGH = np.array([0.787, 3.665, -1.628])
"""Largest ones: 99, 90 and 60 %."""
RISE_STAND = np.tile(RISE_LOW + np.array([0.5, 0.4, 1.0]) * (RISE_HIGH - RISE_LOW), 4)
"""Where it stands, [12] rad: 0, -0.2 and 1 in actions."""
RISE_SPEED = 0.3
"""From here on going forward pays in full, m/s."""
PHASES = ("upright", "hips", "thighs", "knees", "walking")
"""Of the reward, in the order in which they are reached."""


def rising(up: float, joints: Array, velocity: Array) -> tuple[float, Array]:
    """(reward of a step, how far each phase is [5], in [0, 1], the last in [-1, 1]): upright, hips, thighs and knees as when it stands,
    walking. Each pays only once the one before is reached; together at most 14, and 5 for lying on the back.

    up: the vertical part of the trunk's own upward axis; joints: [12] rad; velocity: [3] m/s in the trunk's frame. (DayDreamer's A1.)
    """
    off = np.abs(joints - RISE_STAND) / np.tile(np.maximum(RISE_HIGH - RISE_STAND[:3], RISE_STAND[:3] - RISE_LOW), 4)
    hips, thighs, knees = (1.0 - off.reshape(4, 3).clip(0.0, 1.0).mean(0)).tolist()
    phases = [(up + 1.0) / 2.0]
    for closeness in (hips, thighs, knees):
        phases.append(closeness if phases[-1] > REACHED else 0.0)
    forward, size = float(velocity[0]), float(np.linalg.norm(velocity))
    straight = max(0.0, forward) / size if size > 1e-6 else 0.0
    phases.append(straight * min(max(forward / RISE_SPEED, -1.0), 1.0) if phases[-1] > REACHED else 0.0)
    return sum(phases[:4]) + 5.0 * (phases[4] + 1.0), np.array(phases)


def risen(state: Array, reward: Array) -> Array:
    """How far each of `PHASES` was [T, 5] after steps that were followed by observations [T, 42] and paid rewards [T]. (No sensor tells the
    velocity, the reward does.)"""
    first = np.array([rising(-float(s[2]), s[6:18].astype(np.float64), np.zeros(3))[1][:4] for s in state]).reshape(-1, 4)
    return np.column_stack([first, (reward.astype(np.float64) - first.sum(1)) / 5.0 - 1.0])


def rises(task: str) -> bool:
    """Whether a task's robot begins on its back, so that `risen` tells of it."""
    suite, _, name = task.partition("/")
    return suite == "quadruped" and name in names() and VARIANTS[name.partition("-")[2]].goal == "rise"
