"""An arm over a table, in lock-step: "arm/panda-reach", "arm/panda-pick" and the same of a UR5e, "arm/ur5e-reach", "arm/ur5e-pick";
`realrl robot serve --sim` runs them in real time.

20 decisions a second. An action of 4 numbers in [-1, 1] moves the place that the hand is drawn to, by up to 12.5 mm along each axis, and
the opening of the gripper by up to 20 mm; zeros keep it still. What is observed: the finger tips [m], the opening [m],
the tips' speed [m/s], the place commanded [m, 4 numbers], for "-pick" the cube [m], and the goal [m].

- "-reach": the finger tips to the goal, to within 15 mm.
- "-pick": grasp the cube and hold it at the goal, to within 30 mm.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from realrl.envs.base import RobotEnv, ScriptedPolicy
from realrl.files import derive
from realrl.scene import RandomiseConfig, SightConfig
from realrl.types import Array, Policy, TaskSpec

if TYPE_CHECKING:
    from realrl.envs.mujoco.arm import Sensed

DT = 0.05
STEP = np.array([0.0125, 0.0125, 0.0125, 0.02])
"""The largest change of the setpoint a decision, m."""
_OWN = ("x", "y", "z", "width", "speed x", "speed y", "speed z", "aim x", "aim y", "aim z", "aim width")


@dataclass(frozen=True)
class Job:
    """What is to be done. robot: "panda" or "ur5e"; cube: whether it is about the cube; near: m; horizon: steps."""

    robot: str
    text: str
    cube: bool
    near: float
    horizon: int

    @property
    def state(self) -> tuple[str, ...]:
        """Names of what is observed."""
        return (*_OWN, *(("cube x", "cube y", "cube z") if self.cube else ()), "goal x", "goal y", "goal z")


JOBS = {f"{robot}-{what}": job for robot in ("panda", "ur5e") for what, job in (
    ("reach", Job(robot, "move the finger tips to the green ball", False, 0.015, 80)),
    ("pick", Job(robot, "pick up the cube and hold it at the green ball", True, 0.03, 200)))}


def names() -> tuple[str, ...]:
    """All task names of this suite."""
    return tuple(JOBS)


def spec(name: str, horizon: int | None = None) -> TaskSpec:
    """What a task is."""
    job = JOBS[name]
    return TaskSpec("arm", name, len(job.state), 4, job.horizon if horizon is None else horizon, DT, job.text)


def start(name: str, seed: int) -> tuple[Array, float, Array]:
    """(cube's place [2], its angle, goal [3]) that belong to a seed, m and rad."""
    rng = np.random.default_rng(derive(seed, name))
    goal = rng.uniform([0.38, -0.18, 0.12], [0.58, 0.18, 0.30])
    return rng.uniform([0.40, -0.15], [0.56, 0.15]), float(rng.uniform(-0.3, 0.3)), goal


def observe(name: str, seen: Sensed, setpoint: Array, goal: Array) -> Array:
    """The state [D], see `Job.state`."""
    cube = [seen.cube] if JOBS[name].cube else []
    return np.concatenate([seen.tip, [seen.width], seen.speed, setpoint, *cube, goal])


def outcome(name: str, seen: Sensed, goal: Array) -> tuple[float, bool]:
    """(reward, success) now: minus the distance to the goal, and whether it is near enough."""
    job = JOBS[name]
    off = float(np.linalg.norm((seen.cube if job.cube else seen.tip) - goal))
    return -off, off < job.near


def reaching(state: Array) -> float:
    """How near a state [14] of "-reach" is to the end, mm: less what the finger tips have to go."""
    return -1000.0 * float(np.linalg.norm(state[:3] - state[11:14]))


def picking(state: Array) -> float:
    """How near a state [17] of "-pick" is to the end, mm: less what the tips have to go to the cube, and the cube to the goal."""
    tip, cube, goal = state[:3], state[11:14], state[14:17]
    return -1000.0 * float(np.linalg.norm(tip - cube) + np.linalg.norm(cube - goal))


def make(name: str, *, reward: str | None = None, horizon: int | None = None, sight: SightConfig | None = None,
         randomise: RandomiseConfig | None = None) -> RobotEnv:
    """Environment `name` of `names()`; default reward sparse. It has no eyes and nothing in it is randomised: a robot's server has
    cameras."""
    from realrl.envs.mujoco import randomise as whims
    from realrl.envs.mujoco.arm import ArmEnv
    from realrl.envs.mujoco.sight import sees
    sees(f"arm/{name}", sight, (), "realrl robot serve has cameras")
    whims.refuse(f"arm/{name}", randomise, "its server has faults of its own")
    return ArmEnv(name, reward, horizon)


def expert(name: str, path: str | Path | None = None) -> Policy:
    """A script that solves the task; path is not used."""
    return ScriptedPolicy(f"arm-{name}", _pick if JOBS[name].cube else _reach)


def _reach(state: Array) -> Array:
    """Straight to the goal. state: [B, 14]."""
    aim, goal = state[:, 7:10], state[:, -3:]
    return np.concatenate([(goal - aim) / STEP[:3], np.ones((len(state), 1))], 1)


def _pick(state: Array) -> Array:
    """Above the cube, down, close, to the goal. state: [B, 17]."""
    tip, width, aim, cube, goal = state[:, :3], state[:, 3:4], state[:, 7:10], state[:, 11:14], state[:, -3:]
    aside = np.linalg.norm(tip[:, :2] - cube[:, :2], axis=1, keepdims=True)
    at = (aside < 0.012) & (np.abs(tip[:, 2:] - cube[:, 2:]) < 0.012)
    held = at & (width < 0.047)
    above = np.concatenate([cube[:, :2], np.where(aside < 0.012, cube[:, 2:], cube[:, 2:] + 0.08)], 1)
    there = np.where(held, goal, np.where(at, aim, above))
    return np.concatenate([np.clip((there - aim) / STEP[:3], -1, 1), np.where(at, -1.0, 1.0)], 1)
