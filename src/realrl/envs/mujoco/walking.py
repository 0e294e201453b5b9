"""The environment of "quadruped/..." tasks, see `realrl.envs.quadruped`: one robot, walking on its ground in MuJoCo."""

from __future__ import annotations

import math
from collections import deque
from typing import Any, NamedTuple

import mujoco
import numpy as np

from realrl.envs.base import RobotEnv
from realrl.envs.mujoco import legs
from realrl.envs.mujoco.pushes import Pusher
from realrl.envs.mujoco.randomise import randomiser
from realrl.envs.mujoco.sight import Scenery, View, eyes
from realrl.envs.quadruped import REST, SMOOTH, SPEED, VARIANTS, Goal, allowed, command_reward, paper_reward, walk_reward
from realrl.scene import RandomiseConfig, SightConfig
from realrl.types import Array, Obs, RealrlError, TaskSpec

HZ = 20
HORIZON = 400
TILT = math.radians(30.0)
"""Roll or pitch of a fall."""
LAST = 5.0
"""Success is judged over so many seconds."""
CUTOFF = 4.0
"""Of the action filter, Hz."""
ACTION = 12
START = 0.2
"""How far the direction to walk in may lie off the one that the robot faces at the start, rad."""
_SIZES: dict[Goal, int] = {"walk": 47, "command": 48, "paper": 46}
_PAPER = ((0.05, 0.7, -1.4), 60.0, 10.0, 0.001)
"""The paper's simulation: stand pose, kp, kd, seconds of a physics step. (kd 10 would be unstable at 2 ms.)"""
_REDRAW = 100
"""Steps that a command holds."""
TRIES = 4
"""To get up from a fall, before a person lifts the robot."""
_TUCK = (0.0, 1.3, -2.7)


class Sensed(NamedTuple):
    """What the robot's sensors say. joints, speeds: [12] rad, rad/s; gyro: [3] rad/s; velocity: [3] m/s and gravity: [3], a unit vector,
    in the trunk's frame; quat: [4], w first; roll, pitch, yaw: rad."""

    joints: Array
    speeds: Array
    gyro: Array
    velocity: Array
    gravity: Array
    quat: Array
    roll: float
    pitch: float
    yaw: float


class QuadrupedEnv(RobotEnv):
    """One robot on its ground, see the module."""

    def __init__(self, name: str, reward: str | None = None, horizon: int | None = None, sight: SightConfig | None = None,
                 randomise: RandomiseConfig | None = None, *, shown: bool = False) -> None:
        """shown: with what pictures need, whoever takes them."""
        robot, _, variant = name.partition("-")
        about, made = VARIANTS[variant], legs.ROBOTS[robot]
        self._about = about
        stand, kp, kd, dt = _PAPER if about.goal == "paper" else (made.stand, made.kp, made.kd, 0.002)
        looked_at = shown or (sight is not None and sight.kind != "state")
        self._model = model = legs.build(robot, kp=kp, kd=kd, dt=dt, rough=about.rough, shown=looked_at)
        self._data = mujoco.MjData(model)
        self._substeps = round(1 / (HZ * dt))
        hinges = model.actuator_trnid[:, 0]
        self._at, self._to = model.jnt_qposadr[hinges], model.jnt_dofadr[hinges]
        self._feet = [int(model.geom(leg + made.foot).id) for leg in legs.LEGS]
        self._friction = model.geom_friction[self._feet, 0].copy()
        self.pose = np.tile(stand, 4)
        self.stops = self._low_stop, self._high_stop = model.jnt_range[hinges].T
        nearest = np.minimum(self._high_stop - self.pose, self.pose - self._low_stop)
        self.box = 0.95 * nearest if about.wide else np.tile(made.box, 4)
        task = TaskSpec("quadruped", name, _SIZES[about.goal], ACTION, HORIZON if horizon is None else horizon, 1 / HZ, about.text,
                        control="absolute")
        stage = Scenery(task.id, (View("beside"),) if looked_at else (), tuple(range(task.obs_dim)))
        seen = eyes(sight, stage, model, self._data, ("rgb", "depth"))
        super().__init__(task, reward=reward, kinds=("dense",), native_low=self.pose - self.box, native_high=self.pose + self.box,
                         eyes=seen, whims=randomiser(randomise, model, self._data, seen, ((-1.0, -1.0, 0.0), (1.0, 1.0, 1.0)),
                                                    pushed=True))
        self._pusher = Pusher(randomise, self._data, int(model.body(made.trunk).id), task.dt)
        self._swing = np.array(made.swing)
        if about.filtered:
            from scipy.signal import butter  # it takes two seconds to import
            self._b, self._a = butter(2, CUTOFF, fs=HZ)

    # ---- an episode

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        """Start the episode that belongs to `seed`, see `RobotEnv.reset`. options: {"command": (forward, left, turning)} in m/s and rad/s,
        for "-command": one for the whole episode.

        The robot stands, as low as it goes without touching the ground. "-fallen": it was dropped, anyhow turned, and got up by a script
        in at most `TRIES` tries, or else was lifted; `info` has the tries and whether it was lifted.
        """
        self._fixed = self._asked(options)
        obs, info = super().reset(seed=seed, options=options)
        return obs, {**info, **self._facts}

    def step(self, action: Array) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """One control step of 0.05 s, see `RobotEnv.step`; info: speed (m/s forward), net and path (m since the start), feet (which of
        `legs.LEGS` are on the ground), fell, change (of the action sent, its size on average over the joints), push (N, where it is
        pushed). Raises RealrlError too when
        a joint or the trunk reads no number."""
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated, truncated, {**info, **self._facts}

    def still(self) -> Array:
        """The stand pose [12]: zeros."""
        return np.zeros(ACTION, np.float32)

    def _begin(self, seed: int) -> Array:
        model, data, rng = self._model, self._data, self.np_random
        model.geom_friction[self._feet, 0] = self._friction
        if self._about.rough:
            legs.bumps(model, rng)
            model.geom_friction[self._feet, 0] *= rng.uniform(0.75, 1.25)
        self._before, self._judged, self._memory = np.zeros(ACTION), np.zeros(ACTION), np.zeros((2, ACTION))
        self._command = self._draw()
        self._pusher.begin(seed)
        alike = self._about.goal == "paper"
        told = self._get_up(rng) if self._about.fallen else {}
        if told.get("lifted", True):
            self._place(np.array([1.0, 0.0, 0.0, 0.0]), self.pose + (0.0 if alike else rng.uniform(-0.03, 0.03, ACTION)))
        self._heading = self._sense().yaw + (0.0 if alike else rng.uniform(-START, START))
        self._steps, self._from, self._last = 0, data.qpos[:2].copy(), data.qpos[:2].copy()
        self._window: deque[Any] = deque(maxlen=min(self._wanted(), self.task.horizon))
        self._facts: dict[str, Any] = {"speed": 0.0, "net": 0.0, "path": 0.0, "change": 0.0, "fell": False, "feet": np.zeros(4, bool),
                                       **told}
        return self._see(self._sense())

    @property
    def world(self) -> tuple[Any, Any]:
        """MuJoCo's model and data, for who lets them run by a clock."""
        return self._model, self._data

    @property
    def joints(self) -> Array:
        """[12] rad."""
        return np.array(self._data.qpos[self._at])

    def look(self, drift: float = 0.0) -> Array:
        """The observation of the world as it is. drift: rad that the way to go is believed wrong by."""
        sensed = self._sense()
        return self._see(sensed._replace(yaw=sensed.yaw + drift))

    def aim(self, action: Array) -> None:
        """Where the servos take the joints [12], rad."""
        sent = (action - self.pose) / self.box
        self._before = self._smooth(sent) if self._about.filtered else sent
        self._data.ctrl[:] = self.pose + self.box * self._before

    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        self.aim(action)
        pushed = self._pusher.push(self._t)
        mujoco.mj_step(self._model, self._data, self._substeps)
        found = self.judge()
        self._facts |= pushed
        return found

    def judge(self) -> tuple[Array, float, bool, bool]:
        """What `_advance` gives, of the world as it is; once a control step, for it keeps books."""
        data, moved = self._data, self._before - self._judged
        self._judged = self._before
        if not (np.isfinite(data.qpos).all() and np.isfinite(data.qvel).all()):
            raise RealrlError(f"{self.task.id}: {self._broken()} reads no finite number: the robot (or its simulation) flew apart; "
                              "reset it, and if it happens again look at that joint and at what is sent to it")
        sensed = self._sense()
        self._steps += 1
        fell = max(abs(sensed.roll), abs(sensed.pitch)) > TILT
        reward, success = self._judge(sensed, moved, fell)
        if self._steps % _REDRAW == 0:
            self._command = self._draw()
        return self._see(sensed), reward, fell, success

    def _judge(self, now: Sensed, moved: Array, fell: bool) -> tuple[float, bool]:
        """(reward, success) of the step that led here; keeps the books that `info` shows. moved: the change of the action that was sent."""
        goal, place = self._about.goal, self._data.qpos[:2]
        forward, left = _level(now)
        off = now.yaw - self._heading
        asked = math.cos(off) * forward - math.sin(off) * left if goal == "walk" else forward
        path = self._facts["path"] + math.dist(place, self._last)
        self._last = place.copy()
        self._facts = {"speed": asked, "net": math.dist(place, self._from), "path": path,
                       "change": float(np.abs(moved).mean()), "fell": fell, "feet": self._grounded()}
        change = float(np.mean(moved * moved)) * (SMOOTH if self._about.smooth else 1.0)
        tilt, torque = now.roll ** 2 + now.pitch ** 2, float(np.sum(self._data.actuator_force ** 2))
        if goal == "paper":
            return paper_reward(float(now.velocity[0]), now.pitch, float(now.gyro[2])), self._kept(asked, fell)
        if goal == "walk":
            return walk_reward(asked, float(now.gyro[2]), tilt, torque, change), self._kept(asked, fell)
        did = np.array([forward, left, now.gyro[2]])
        error = did - self._command
        self._facts["error"] = error
        return command_reward(error, self._command, tilt, torque, change), self._followed(did, fell)

    # ---- parts of an episode

    def _kept(self, speed: float, fell: bool) -> bool:
        """Whether the robot has walked at `SPEED` on average over the last seconds, and stands."""
        self._window.append(speed)
        return self._full() and not fell and sum(self._window) >= SPEED * len(self._window)

    def _followed(self, did: Array, fell: bool) -> bool:
        """Whether the mean velocity [3] of the last 2.5 s is as near to the command as is `allowed`."""
        self._window.append(did)
        error = np.abs(np.mean(self._window, 0) - self._command)
        return self._full() and not fell and bool((error <= allowed(self._command)).all())

    def _grounded(self) -> Array:
        """Which feet [4] touch the ground."""
        touching = self._data.contact.geom.ravel().tolist()  # a list is searched sooner than an array of a few numbers
        return np.array([foot in touching for foot in self._feet])

    def _wanted(self) -> int:
        """Steps that success is judged over."""
        return round(LAST * HZ / (2 if self._about.goal == "command" else 1))

    def _full(self) -> bool:
        return len(self._window) == self._window.maxlen

    def _draw(self) -> Array:
        """The command [3] for the steps to come."""
        if self._about.goal != "command" or self._fixed is not None:
            return np.zeros(3) if self._fixed is None else self._fixed
        drawn: Array = self.np_random.uniform(*np.array(self._about.commands))
        return drawn if self.np_random.uniform() >= REST else np.zeros(3)

    def _asked(self, options: dict[str, Any] | None) -> Array | None:
        """The command [3] in the options of a reset. Raises RealrlError on anything else in them."""
        if not options:
            return None
        command = np.asarray(options.get("command", np.nan), np.float64)
        if set(options) != {"command"} or self._about.goal != "command" or command.shape != (3,) or not np.isfinite(command).all():
            raise RealrlError(f"{self.task.id}: the only option of a reset is \"command\" of the -command variant, three numbers: m/s "
                              f"forward, m/s to the left, rad/s to the left; got {options}")
        return command

    def _place(self, quat: Array, joints: Array) -> None:
        """Put the robot down at the origin, at rest, as low as it goes."""
        mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[:3], self._data.qpos[3:7], self._data.qpos[self._at] = 0.0, quat, joints
        legs.lower(self._model, self._data)

    def _get_up(self, rng: np.random.Generator) -> dict[str, Any]:
        """A fall, anyhow turned, and the tries to get up from it: how many, and whether the robot has to be lifted after all."""
        quat, joints = rng.standard_normal(4), rng.uniform(self._low_stop, self._high_stop)
        self._place(quat / np.linalg.norm(quat), joints)
        self._go(joints, 1.0)
        for tries in range(1, TRIES + 1):
            gravity = self._sense().gravity
            self._go(np.tile(_TUCK, 4), 0.4)
            if gravity[2] > -0.85:  # it lies on its side or back
                for seconds, swing in zip((0.5, 0.3), self._swing, strict=True):
                    self._go(self._swung(swing, bool(gravity[1] > 0)), seconds)
                self._go(np.tile(_TUCK, 4), 0.5)
            self._go(self.pose, 0.7)
            self._go(self.pose, 0.3)
            if self._sense().gravity[2] < -0.95 and self._grounded().all():
                return {"tries": tries, "lifted": False}
        return {"tries": TRIES, "lifted": True}

    def _swung(self, swing: Array, left: bool) -> Array:
        """The joints [12] of a swing [2, 3]: the first row for the legs on the side that lies low, hips turned outward by what it says."""
        low = np.array([(leg[1] == "L") == left for leg in legs.LEGS])
        joints: Array = np.where(low[:, None], swing[0], swing[1])
        joints[:, 0] *= [1 if leg[1] == "L" else -1 for leg in legs.LEGS]
        return joints.ravel()

    def _go(self, joints: Array, seconds: float) -> None:
        """Move the joints to [12] over the first three fifths of so many seconds, and hold them there."""
        data, steps = self._data, round(seconds * HZ)
        first, last = data.qpos[self._at].copy(), np.clip(joints, self._low_stop, self._high_stop)
        for step in range(1, steps + 1):
            data.ctrl[:] = first + (last - first) * min(1.0, step / (0.6 * steps))
            mujoco.mj_step(self._model, data, self._substeps)

    def _smooth(self, action: Array) -> Array:
        """A second-order Butterworth filter, whose past is the stand pose at first."""
        (b0, b1, b2), (_, a1, a2), (first, second) = self._b, self._a, self._memory
        out: Array = b0 * action + first
        self._memory = np.stack([b1 * action - a1 * out + second, b2 * action - a2 * out])
        return out

    def _broken(self) -> str:
        """The first thing that reads no number."""
        data = self._data
        for leg, at, to in zip(range(ACTION), self._at, self._to, strict=True):
            if not (np.isfinite(data.qpos[at]) and np.isfinite(data.qvel[to])):
                return f"joint {self._model.actuator(leg).name}"
        return "the trunk"

    def _sense(self) -> Sensed:
        qpos, qvel = self._data.qpos, self._data.qvel
        turn = legs.turned(qpos[3:7])
        return Sensed(qpos[self._at], qvel[self._to], qvel[3:6], qvel[:3] @ turn, -turn[2], qpos[3:7], math.atan2(turn[2, 1], turn[2, 2]),
                      -math.asin(min(1.0, max(-1.0, turn[2, 0]))), math.atan2(turn[1, 0], turn[0, 0]))

    def _see(self, s: Sensed) -> Array:
        """The observation, in the order that the module's page in docs/methods has."""
        goal = self._about.goal
        if goal == "paper":
            return np.concatenate([s.joints, s.speeds, s.gyro, s.velocity, s.quat, self._before])
        joints = (s.joints - self.pose, s.speeds / 25.0, s.gyro / 10.0)
        off = s.yaw - self._heading
        end = self._command if goal == "command" else (math.cos(off), math.sin(off))
        return np.concatenate([*joints, s.velocity, s.gravity, end, self._before])


def _level(now: Sensed) -> tuple[float, float]:
    """The speed over the ground along and to the left of where the trunk points, m/s."""
    (vx, vy, vz), (sr, cr, sp, cp) = now.velocity, (math.sin(now.roll), math.cos(now.roll), math.sin(now.pitch), math.cos(now.pitch))
    return cp * vx + sp * (sr * vy + cr * vz), cr * vy - sr * vz
