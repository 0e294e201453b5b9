"""The environment of "quadruped/...-from-back": a robot that begins on its back and gets no help, see `realrl.envs.quadruped.rising`.

20 decisions a second: an action of 12 numbers in [-1, 1] is a target for each joint, over nearly all of its range. The targets go through a
low-pass filter of 1.5 Hz, stay within 0.2 rad of where the joints are, and are moved there evenly over the step.

`state` [42]: gravity in the trunk's frame [3], gyroscope [3], joints [12], their speeds [12], where they were told to go last [12].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np

from realrl.envs.base import RobotEnv
from realrl.envs.mujoco import legs
from realrl.envs.mujoco.pushes import Pusher
from realrl.envs.mujoco.randomise import randomiser
from realrl.envs.mujoco.sight import Scenery, View, eyes
from realrl.envs.quadruped import RISE_HIGH, RISE_LOW, VARIANTS, rising
from realrl.scene import RandomiseConfig, SightConfig
from realrl.types import Array, Episode, Obs, RealrlError, TaskSpec

HZ, HORIZON, ACTION, SIZE = 20, 250, 12, 42
CUTOFF = 1.5
"""Of the filter on the targets, Hz."""
LEASH = 0.2
"""How far a target may be from its joint, rad."""
KP, KD, STEP = 80.0, 2.0, 0.002
"""Of the servos, N m/rad and N m s/rad; seconds of a physics step."""
PARTS = 5
"""In how many pieces a target is moved to over a control step."""
WALKING = 0.5
"""The walking phase, averaged over the last 2.5 s, that counts as success."""
_LAST = 50


def butterworth(cutoff: float, rate: float) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """(b, a) of the low-pass filter of order 2, both in Hz. (scipy has it too, and takes two seconds to import.)"""
    k = math.tan(math.pi * cutoff / rate)
    scale = 1.0 / (1.0 + math.sqrt(2.0) * k + k * k)
    return (k * k * scale, 2 * k * k * scale, k * k * scale), (1.0, 2 * (k * k - 1) * scale, (1 - math.sqrt(2.0) * k + k * k) * scale)


def _same(seen: Array, recorded: Array) -> bool:
    """Whether two observations [D] are of one moment, as a recording rounds them."""
    return seen.shape == recorded.shape and bool(np.allclose(seen, recorded, rtol=0.0, atol=1e-5))


class RisingEnv(RobotEnv):
    """One robot, see the module. An episode begins on the back; with `carry_on` only the first does, and every other where the robot is."""

    def __init__(self, name: str, reward: str | None = None, horizon: int | None = None, sight: SightConfig | None = None,
                 randomise: RandomiseConfig | None = None) -> None:
        robot, _, variant = name.partition("-")
        looked_at = sight is not None and sight.kind != "state"
        self._model = model = legs.build(robot, kp=KP, kd=KD, dt=STEP, rough=False, shown=looked_at)
        self._data = mujoco.MjData(model)
        hinges = model.actuator_trnid[:, 0]
        self._at, self._to = model.jnt_qposadr[hinges], model.jnt_dofadr[hinges]
        task = TaskSpec("quadruped", name, SIZE, ACTION, HORIZON if horizon is None else horizon, 1 / HZ, VARIANTS[variant].text,
                        control="absolute")
        stage = Scenery(task.id, (View("beside"),) if looked_at else (), tuple(range(SIZE)))
        seen = eyes(sight, stage, model, self._data, ("rgb", "depth"))
        super().__init__(task, reward=reward, kinds=("dense",), native_low=np.tile(RISE_LOW, 4), native_high=np.tile(RISE_HIGH, 4),
                         eyes=seen, whims=randomiser(randomise, model, self._data, seen, ((-1.0, -1.0, 0.0), (1.0, 1.0, 1.0)),
                                                    pushed=True))
        self._pusher = Pusher(randomise, self._data, int(model.body(legs.ROBOTS[robot].trunk).id), task.dt)
        self._b, self._a = butterworth(CUTOFF, HZ)
        self.carry_on = False
        self._alive = False
        self._facts: dict[str, Any] = {}

    def step(self, action: Array) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """One control step of 0.05 s, see `RobotEnv.step`; info: phases (see `rising`), speed (m/s forward), push (N, where it is
        pushed). Raises RealrlError too when the simulation flies apart."""
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated, truncated, {**info, **self._facts}

    def still(self) -> Array:
        """The targets that it has now [12]."""
        return np.clip((self._sent - self._low) / self._half - 1.0, -1.0, 1.0).astype(np.float32)

    def snapshot(self) -> dict[str, Array]:
        """Where the robot is, all that its next episode depends on; nothing before the first."""
        if not self._alive:
            return {}
        return {"physics": self._physics(), "filter": self._filter.copy(), "sent": self._sent.copy()}

    def restore(self, episode: Episode) -> Obs:
        """Where a recorded episode began: where the one that was played before it left the robot, or on the back. Raises RealrlError where
        it is neither: then episodes were played before it that have to be played again, too."""
        began, seed = episode.obs["state"][0], 0 if episode.seed is None else episode.seed
        self.carry_on = self._alive and _same(self._see(), began)
        first, _ = self.reset(seed=seed)
        if _same(first["state"], began):
            return first
        raise RealrlError(f"{self.task.id}: an episode (seed {episode.seed}) began where the one before it had left the robot: play them "
                          "in a row, from one that begins on the back")

    def go_on(self, saved: Mapping[str, Array]) -> None:
        """Go on from a snapshot."""
        if saved:
            mujoco.mj_setState(self._model, self._data, np.asarray(saved["physics"], np.float64), mujoco.mjtState.mjSTATE_INTEGRATION.value)
            self._filter, self._sent = (np.array(saved[key], np.float64) for key in ("filter", "sent"))
            self._alive = True

    def _physics(self) -> Array:
        kind = mujoco.mjtState.mjSTATE_INTEGRATION.value
        state = np.empty(mujoco.mj_stateSize(self._model, kind))
        mujoco.mj_getState(self._model, self._data, state, kind)
        return state

    def _begin(self, seed: int) -> Array:
        data, rng = self._data, self.np_random
        if not (self.carry_on and self._alive):
            mujoco.mj_resetData(self._model, data)
            data.qpos[:3], data.qpos[3:7] = 0.0, (0.0, 1.0, 0.0, 0.0)
            data.qpos[self._at] = np.tile((RISE_LOW + RISE_HIGH) / 2, 4) + rng.uniform(-0.1, 0.1, ACTION)
            legs.lower(self._model, data)
            self._sent = data.qpos[self._at].copy()
            self._filter = np.tile(self._sent, (4, 1))  # targets and filtered targets, each of the last two steps
            self._alive = True
        self._walked = [0.0] * _LAST
        self._pusher.begin(seed)
        return self._see()

    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        data, before = self._data, self._sent
        (b0, b1, b2), (_, a1, a2), (x1, x2, y1, y2) = self._b, self._a, self._filter
        smooth = b0 * action + b1 * x1 + b2 * x2 - a1 * y1 - a2 * y2
        self._filter = np.stack([action, x1, smooth, y1])
        joints = data.qpos[self._at]
        self._sent = np.clip(smooth, joints - LEASH, joints + LEASH)
        pushed = self._pusher.push(self._t)
        for part in range(1, PARTS + 1):
            data.ctrl[:] = before + (self._sent - before) * (part / PARTS)
            mujoco.mj_step(self._model, data, round(1 / (HZ * STEP * PARTS)))
        if not (np.isfinite(data.qpos).all() and np.isfinite(data.qvel).all()):
            raise RealrlError(f"{self.task.id}: the robot's simulation flew apart: look at what is sent to it")
        turn = legs.turned(data.qpos[3:7])
        velocity = data.qvel[:3] @ turn
        reward, phases = rising(float(turn[2, 2]), data.qpos[self._at], velocity)
        self._walked = [*self._walked[1:], float(phases[4])]
        self._facts = {"phases": phases, "speed": float(velocity[0]), **pushed}
        return self._see(), reward, False, sum(self._walked) >= WALKING * _LAST

    def _see(self) -> Array:
        data = self._data
        turn = legs.turned(data.qpos[3:7])
        return np.concatenate([-turn[2], data.qvel[3:6] / 10.0, data.qpos[self._at], data.qvel[self._to] / 25.0, self._sent])
