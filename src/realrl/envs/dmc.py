"""DeepMind's control suite (arXiv 1801.00690; the dm_control package) from its numbers: "dmc/walker-walk" and its sisters.

As world models are measured on it: an action holds for two of the suite's frames, whose rewards, each in [0, 1], are added up; an episode
is 1000 frames and nothing ends it before, so a return is of 1000 at most. What is observed are the suite's own numbers in its own order.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from realrl.envs.base import RobotEnv, pick_reward
from realrl.envs.mujoco import randomise as whims
from realrl.envs.mujoco.gl import windowless
from realrl.envs.mujoco.sight import Scenery, View, eyes
from realrl.scene import RandomiseConfig, SightConfig, SightKind
from realrl.types import Array, Policy, RealrlError, TaskSpec

REPEAT, FRAMES = 2, 1000
"""Frames that an action holds, and those of an episode. Published tables count frames, `horizon` counts actions."""

_TASKS = {"walker-stand": "stand up on two legs", "walker-walk": "walk forward on two legs at 1 m/s",
          "walker-run": "run forward on two legs at 8 m/s", "cheetah-run": "run forward on a front and a back leg at 10 m/s"}


def names() -> tuple[str, ...]:
    """All task names of this suite, domain-task."""
    return tuple(_TASKS)


def make(name: str, *, reward: str | None = None, horizon: int | None = None, sight: SightConfig | None = None,
         randomise: RandomiseConfig | None = None) -> RobotEnv:
    """Environment `name` of `names()`: its reward is dense, its horizon 500 actions unless given, its sights are "rgb" and "depth". Raises
    RealrlError on another reward or sight, and on randomisation."""
    whims.refuse(f"dmc/{name}", randomise, "its returns are held against published ones")
    return ControlEnv(name, reward, FRAMES // REPEAT if horizon is None else horizon, sight)


def expert(name: str, path: str | None = None) -> Policy:
    """Always raises RealrlError: nobody scripted these."""
    raise RealrlError(f"dmc/{name} has no scripted expert: train a policy by reinforcement learning and record its episodes")


class ControlEnv(RobotEnv):
    """One of the suite's tasks under this project's episode rules."""

    def __init__(self, name: str, reward: str | None, horizon: int, sight: SightConfig | None = None) -> None:
        with windowless():
            from dm_control import suite
        pick_reward(f"dmc/{name}", reward, ("dense",))
        domain, _, job = name.partition("-")
        inner: Any = suite.load(domain, job, {"time_limit": math.inf, "random": 0}, {"flat_observation": True})
        seen, done = inner.observation_spec()["observations"], inner.action_spec()
        task = TaskSpec("dmc", name, seen.shape[0], done.shape[0], horizon, REPEAT * inner.control_timestep(), _TASKS[name])
        model, data = inner.physics.model.ptr, inner.physics.data.ptr
        cameras = tuple(View(model.camera(i).name) for i in range(model.ncam))
        kinds: tuple[SightKind, ...] = ("rgb", "depth")
        looked = eyes(sight, Scenery(task.id, cameras, tuple(range(task.obs_dim))), model, data, kinds)
        super().__init__(task, reward=reward, kinds=("dense",), native_low=done.minimum, native_high=done.maximum, eyes=looked)
        self._inner = inner

    def _begin(self, seed: int) -> Array:
        self._inner.task._random = np.random.RandomState(self.np_random.bit_generator)  # where its starts come from
        state: Array = self._inner.reset().observation["observations"]
        return state

    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        total = 0.0
        for _ in range(REPEAT):
            told = self._inner.step(action)
            total += told.reward
            if told.last():
                break
        return told.observation["observations"], total, bool(told.last()), False

    def close(self) -> None:
        """Free the simulator and the eyes."""
        super().close()
        self._inner.close()
