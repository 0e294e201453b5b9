"""Fetch, a mobile manipulator's arm over a table (gymnasium-robotics): "fetch/reach", "fetch/push", "fetch/pick-place".

25 decisions a second. Action [4]: the hand's motion and the gripper's. State: what the package observes (the hand's place, the object's,
fingers, speeds; [25], without an object [10]) and the goal [3]. Success, as the package has it: the hand, or the object, is within 5 cm
of the goal. The demonstrators are short scripts. An episode depends on its seed alone; one that would begin solved draws another start.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from realrl.envs.base import RobotEnv, ScriptedPolicy
from realrl.envs.mujoco import randomise as whims
from realrl.envs.mujoco.sight import Mark, Scenery, View, eyes
from realrl.scene import RandomiseConfig, SightConfig
from realrl.types import Array, Policy, RealrlError, TaskSpec

HORIZON = 100
_CLASSES = {"reach": ("reach", "MujocoFetchReachEnv"), "push": ("push", "MujocoFetchPushEnv"),
            "pick-place": ("pick_and_place", "MujocoFetchPickAndPlaceEnv")}
_TEXTS = {"reach": ("bring the hand to the red ball", "move the fingers to the ball in the air", "put the hand where the ball is"),
          "push": ("push the box over the table to the red ball", "shove the box to the ball", "slide the black box onto the red mark"),
          "pick-place": ("pick up the box and hold it at the red ball", "carry the box to the ball", "grasp the box, bring it to the mark")}
_OWN = (0, 1, 2, 9, 10, 20, 21, 22, 23, 24)  # the hand's place, fingers, and their speeds
_BOX = ((1.0, 0.4, 0.4), (1.6, 1.1, 0.95))
_STEP = 0.05
"""The hand's motion an action of 1 asks for, m."""


def names() -> tuple[str, ...]:
    """All task names of this suite."""
    return tuple(_CLASSES)


def make(name: str, *, reward: str | None = None, horizon: int | None = None, sight: SightConfig | None = None,
         randomise: RandomiseConfig | None = None) -> RobotEnv:
    """Environment `name` of `names()`: reward "sparse" (default) or "dense" (minus the distance); horizon 100 steps of 40 ms."""
    whims.refuse(f"fetch/{name}", randomise, "its scene differs from start to start")
    return FetchEnv(name, reward, HORIZON if horizon is None else horizon, sight)


def expert(name: str, path: str | None = None) -> Policy:
    """A script. Raises RealrlError when given a path: it needs no file."""
    if path is not None:
        raise RealrlError(f"fetch/{name}: its expert is a script and takes no file, leave out the path {path!r}")
    return ScriptedPolicy(f"script:{name}", functools.partial(_control, name))


def _control(name: str, states: Array) -> Array:
    """The script's actions [B, 4] at states [B, D]; a function of the module, so that worker processes can be sent it."""
    return np.stack([{"reach": _reach, "push": _push, "pick-place": _pick}[name](s.astype(np.float64)) for s in states])


def _to(hand: Array, place: Array, grip: float) -> Array:
    """Towards a place; grip: 1 opens, -1 closes."""
    return np.array([*np.clip((place - hand) / _STEP, -1, 1), grip])


def _reach(s: Array) -> Array:
    return _to(s[:3], s[-3:], 0.0)


def _push(s: Array) -> Array:
    """Behind the box, from above where it is in the way, then through it to the goal."""
    hand, box, goal = s[:3], s[3:6], s[-3:]
    way = (goal - box)[:2]
    ahead = way / max(float(np.linalg.norm(way)), 1e-6)
    behind = box[:2] - 0.09 * ahead
    off = hand[:2] - box[:2]
    side = abs(float(ahead[0] * off[1] - ahead[1] * off[0]))
    if float(off @ ahead) < -0.03 and side < 0.025 and hand[2] < box[2] + 0.03:  # it stands behind: push
        return _to(hand, np.array([*(box[:2] + 0.05 * ahead - 0.6 * (off - (off @ ahead) * ahead)), box[2]]), -1.0)
    if np.linalg.norm(hand[:2] - behind) < 0.02:
        return _to(hand, np.array([*behind, box[2]]), -1.0)
    if hand[2] < box[2] + 0.08:
        return _to(hand, np.array([*hand[:2], box[2] + 0.14]), -1.0)
    return _to(hand, np.array([*behind, box[2] + 0.12]), -1.0)


def _pick(s: Array) -> Array:
    """Above the box, down with open fingers, close, to the goal."""
    hand, box, width, goal = s[:3], s[3:6], float(s[9] + s[10]), s[-3:]
    off = box - hand
    if np.linalg.norm(off) < 0.02 and width < 0.055:  # held
        return _to(hand, goal, -1.0)
    if np.linalg.norm(off) < 0.012:
        return np.array([0.0, 0.0, 0.0, -1.0])
    if np.linalg.norm(off[:2]) < 0.012:
        return _to(hand, box, 1.0)
    above = 0.06 if hand[2] < box[2] + 0.09 else 0.1
    return _to(hand, np.array([box[0], box[1], box[2] + above]), 1.0)


class FetchEnv(RobotEnv):
    """One of the tasks."""

    def __init__(self, name: str, reward: str | None, horizon: int, sight: SightConfig | None) -> None:
        import importlib
        module, kind = _CLASSES[name]
        sim: Any = getattr(importlib.import_module(f"gymnasium_robotics.envs.fetch.{module}"), kind)(reward_type="dense")
        self._sim, self._site = sim, sim.model.site("target0").id
        size = 10 if name == "reach" else 25
        text, *others = _TEXTS[name]
        task = TaskSpec("fetch", name, size + 3, 4, horizon, float(sim.dt), text, paraphrases=tuple(others))
        own = tuple(range(size)) if name == "reach" else _OWN
        still = frozenset(sim.model.body(i).name for i in range(sim.model.nbody)
                          if not any(part in sim.model.body(i).name for part in ("gripper", "object")))
        stage = Scenery(task.id, (View("external_camera_0", fovy=42.0),), own, _BOX, still,
                        lambda: [Mark(sim.goal, np.full(3, 0.02), sim.model.site_rgba[self._site])], self._settle,
                        hand=lambda: sim.data.site("robot0:grip").xpos)
        super().__init__(task, reward=reward, eyes=eyes(sight, stage, sim.model, sim.data))

    def _begin(self, seed: int) -> Array:
        while True:
            obs, _ = self._sim.reset(seed=seed)
            if not self._sim._is_success(obs["achieved_goal"], obs["desired_goal"]):
                break
            seed = int(self._sim.np_random.integers(2**31))
        self._settle()
        return self._state(obs)

    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        obs, reward, _, _, info = self._sim.step(action.astype(np.float32))
        return self._state(obs), float(reward), False, bool(info["is_success"])

    def _state(self, obs: Any) -> Array:
        out: Array = np.concatenate([obs["observation"], obs["desired_goal"]])
        return out

    def close(self) -> None:
        """Free eyes and simulator."""
        super().close()
        self._sim.close()

    def _settle(self) -> None:
        """The goal's ball to the goal."""
        model, data = self._sim.model, self._sim.data
        at = data.site_xpos[self._site]
        model.site_pos[self._site] += self._sim.goal - at
        at[:] = self._sim.goal
