"""Gymnasium's MuJoCo tasks, version 5: "gym/HalfCheetah-v5" and its sisters, with their own rewards.

Their measure is the return, so there is no success and no sparse reward; a fall is a true termination. Actions are in [-1, 1]
and rescaled to each robot's own bounds (Humanoid +-0.4, InvertedPendulum +-3, Pusher +-2).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium

from realrl.envs.base import RobotEnv, pick_reward
from realrl.envs.mujoco.randomise import randomiser
from realrl.envs.mujoco.sight import Box, Scenery, View, eyes
from realrl.scene import RandomiseConfig, SightConfig, SightKind
from realrl.types import Array, Policy, RealrlError, TaskSpec

_TASKS: dict[str, tuple[int, str]] = {  # name -> (horizon, text); horizons are gymnasium's own
    "HalfCheetah-v5": (1000, "run forward as fast as possible"),
    "Hopper-v5": (1000, "hop forward on one leg without falling"),
    "Walker2d-v5": (1000, "walk forward on two legs without falling"),
    "Ant-v5": (1000, "run forward on four legs without falling"),
    "Humanoid-v5": (1000, "walk forward on two legs without falling"),
    "HumanoidStandup-v5": (1000, "stand up from lying"),
    "Swimmer-v5": (1000, "swim forward as fast as possible"),
    "InvertedPendulum-v5": (1000, "keep the pole upright"),
    "InvertedDoublePendulum-v5": (1000, "keep both poles upright"),
    "Reacher-v5": (50, "bring the fingertip to the target"),
    "Pusher-v5": (100, "push the object to the goal"),
}
_FLOOR: Box = ((-1.0, -1.0, 0.0), (1.0, 1.0, 1.0))
"""Where distractors may lie."""


def names() -> tuple[str, ...]:
    """All task names of this suite."""
    return tuple(_TASKS)


def make(name: str, *, reward: str | None = None, horizon: int | None = None, sight: SightConfig | None = None,
         randomise: RandomiseConfig | None = None) -> RobotEnv:
    """Environment `name` of `names()`. Raises RealrlError on reward="sparse" and on point clouds: these tasks have neither."""
    return LocomotionEnv(name, reward, horizon, sight, randomise)


def expert(name: str, path: str | Path | None = None) -> Policy:
    """Always raises RealrlError: nobody scripted these."""
    raise RealrlError(f"gym/{name} has no scripted expert: train a policy by reinforcement learning and record its episodes")


class LocomotionEnv(RobotEnv):
    """A gymnasium MuJoCo environment under this project's episode rules."""

    def __init__(self, name: str, reward: str | None, horizon: int | None, sight: SightConfig | None = None,
                 randomise: RandomiseConfig | None = None) -> None:
        default_horizon, text = _TASKS[name]
        pick_reward(f"gym/{name}", reward, ("dense",))
        inner: Any = gymnasium.make(name, disable_env_checker=True).unwrapped
        task = TaskSpec("gym", name, inner.observation_space.shape[0], inner.action_space.shape[0],
                        default_horizon if horizon is None else horizon, float(inner.dt), text)
        names = (inner.model.camera(i).name for i in range(inner.model.ncam))
        cameras = tuple(View(name) for name in names if name)
        stage = Scenery(task.id, cameras, tuple(range(task.obs_dim)))
        kinds: tuple[SightKind, ...] = ("rgb", "depth") if cameras else ()
        seen = eyes(sight, stage, inner.model, inner.data, kinds, "" if cameras else "its model has no camera")
        super().__init__(task, reward=reward, kinds=("dense",), native_low=inner.action_space.low, native_high=inner.action_space.high,
                         eyes=seen, whims=randomiser(randomise, inner.model, inner.data, seen, _FLOOR))
        self._inner = inner

    def _begin(self, seed: int) -> Array:
        state: Array = self._inner.reset(seed=seed)[0]
        return state

    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        state, reward, fell, _, _ = self._inner.step(action)
        return state, reward, fell, False

    def close(self) -> None:
        """Free the simulator and the eyes."""
        super().close()
        self._inner.close()
