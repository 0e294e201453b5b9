"""The environment of "assembly/...", see `realrl.envs.assembly`: a Panda under admittance control and what it is at, in MuJoCo."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import mujoco
import numpy as np

from realrl.envs.assembly import AHEAD, DEPTH, LEVELS, SPEED, TURN_SPEED
from realrl.envs.base import Eyes, NoEyes, RobotEnv
from realrl.envs.mujoco.holes import Insertion
from realrl.envs.mujoco.panda import TOOL, Wrist
from realrl.envs.mujoco.pivot import Pivoting
from realrl.envs.mujoco.randomise import randomiser
from realrl.envs.mujoco.sight import Scenery, View, eyes
from realrl.robots.admittance import Gains, Law, LimitsConfig, Mode, Tuner, TunerConfig, critical
from realrl.robots.turns import rotation_vector, turned
from realrl.scene import RandomiseConfig, SightConfig
from realrl.types import Array, RealrlError, TaskSpec

HORIZON = 20
TORQUE_SHARE = np.array([1.0, 1.0, 1.0, 0.02, 0.02, 0.02])
"""Torque's noise and bias, N m, for what force has, N."""
BOX_TURN = math.radians(5)
"""What turns of set points are kept within, about the vertical twice as far, rad."""
STOP_FORCE, FAR, FAR_TURN = 10.0, 0.025, math.radians(4)
FASTEST = 0.05
"""The law's speed, at most, m/s: what bounds the first touch."""
TORQUE = np.array([87.0] * 4 + [12.0] * 3)
TARED = 60.0
"""Seconds after which a bias drifts no further, however long nobody resets the arm."""
CORNER = 100.0
"""Of the wrench's low-pass filter, Hz."""
AGAIN, SAMPLE = 0.010, 0.008
"""Seconds between two Jacobians, and between two samples for the residual."""
EXPECTED = 1e4
"""Stiffness of a contact that "-braced" expects before it has felt one, N/m."""
MANUAL, MANUAL_PIVOT = (Gains(np.array([m] * 3 + [m / 10] * 3), np.array([300.0] * 3 + [15.0] * 3), np.array([k] * 3 + [20.0] * 3))
                        for m, k in ((3.0, 200.0), (4.0, 300.0)))
"""The paper's gains by hand, along the axes; about them, ours."""


class Work(Protocol):
    """What an arm is at: `Insertion` or `Pivoting`. model, data: MuJoCo's; home: joints [7] of the start; goal: what the way is told to
    [3], m; wrong, wrong_turn: how wrong that and its turn are seen, m and rad; unit: in which the way is observed, m; text: what is asked
    for; centre: about which the arm works [3], m, from its base; beside: where a film's arrows begin [3], m from the tip."""

    model: Any
    data: Any
    home: Array
    goal: Array
    wrong: Array
    turn: float
    wrong_turn: float
    unit: float
    text: str
    centre: Sequence[float]
    beside: Sequence[float]

    def begin(self, rng: np.random.Generator) -> None:
        """Draw what an episode has, in a model whose data were reset."""

    def rise(self, up: float) -> float:
        """What share of the highest speed an action's third number in [-1, 1] asks for, upwards."""
        ...

    def kept(self, place: Array) -> Array:
        """A set point [3], m, no farther from the goal as it is seen than one may be."""
        ...

    def solved(self) -> bool:
        """Whether it is done now."""
        ...

    def reward(self, beyond: float) -> float:
        """Of a decision that ends now; beyond: N by which its largest force was beyond what was told."""
        ...

    def depth(self) -> float:
        """How far it is, as the trace tells it."""
        ...

    def truth(self) -> Sequence[float]:
        """What the full state has besides."""
        ...

    def shown(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """(model, data) with looks, its surroundings as they are now, for pictures."""
        ...

    def lose(self) -> None:
        """What is worked on is out of reach."""


class AssemblyEnv(RobotEnv):
    """An arm at its work, see `realrl.envs.assembly`. trace: a list that is to be filled with a row (`TRACE`) every 8 ms;
    None: nobody asks."""

    def __init__(self, name: str, reward: str | None = None, horizon: int | None = None, sight: SightConfig | None = None,
                 randomise: RandomiseConfig | None = None, *, beside: bool = False) -> None:
        """beside: the residual is fitted in a second thread, as whoever is driven by a clock needs; it does not repeat to the bit then."""
        self._level = level = LEVELS[name]
        world = self._world = level.world
        shown = sight is not None and sight.kind != "state"
        self.work = work = Pivoting(level.block, world, shown) if level.block else Insertion(level.shape, world, shown)
        self._model, self._data, self._home = work.model, work.data, work.home
        model = self._model
        model.dof_frictionloss[:7] = np.array([1.0] * 4 + [0.3] * 3) * world.dry
        self._tool, self._noises = model.body("tool").id, list[list[float]]()
        self._tip, self._wrist_site = model.site("tip").id, model.site("wrist").id
        steps = HORIZON if horizon is None else horizon
        # a recording's clock counts whole decisions a second; how long they truly were is observed
        task = TaskSpec("assembly", name, level.full, level.numbers, steps, min(world.hold[1], 1.0), work.text)
        looked = eyes(sight, Scenery(task.id, (View("side"),), tuple(level.seen)), model, self._data, ("rgb", "depth"))
        seen: Eyes = NoEyes(level.seen) if looked is None else looked
        super().__init__(task, reward=reward, kinds=("dense", "sparse"), eyes=seen,
                         whims=randomiser(randomise, model, self._data, looked, ((0.3, -0.2, 0.0), (0.7, 0.2, 0.3))))
        self._soft, self._stiff = level.springs
        self._manual = MANUAL_PIVOT if level.block else MANUAL
        self._law = Law(critical(self._stiff), LimitsConfig(speed=FASTEST), world.dt)
        modes: dict[str, Mode] = {"adapted": "fit", "braced": "fit", "probed": "fit", "rule": "rule", "free": "free"}
        mode = modes.get(level.control)
        fitting = TunerConfig(mode=mode or "fit", expected=EXPECTED if level.control == "braced" else 0.0, lasting=level.block is not None)
        self._tuner = Tuner(fitting, beside) if mode else None
        self._jac, self._wish, self._pull = np.zeros((6, model.nv)), np.zeros(model.nv), np.zeros(model.nv)
        self.trace: list[list[float]] | None = None
        self._cut = 1 - math.exp(-2 * math.pi * CORNER * world.dt)
        self._again, self._sample = round(AGAIN / world.dt), round(SAMPLE / world.dt)
        data = self._data  # views that stay: looking them up anew costs as much as a step of the physics
        self._q, self._speed, self._bias, self._torque = data.qpos[:7], data.qvel[:7], data.qfrc_bias[:7], data.qfrc_applied[:7]
        self._sensors, self._axes = data.sensordata, data.site_xmat[self._wrist_site]

    # -- an episode ---------------------------------------------------------------------------------------------------------------

    def _begin(self, seed: int) -> Array:
        model, data, rng, world = self._model, self._data, self.np_random, self._world
        mujoco.mj_resetData(model, data)
        self.work.begin(rng)
        self._wrist = Wrist(TOOL[0] * (1 + float(rng.uniform(-world.mass, world.mass))))
        self._limit = float(rng.uniform(*self._level.limit)) if self._level.limit else 0.0
        self._slow = float(np.exp(rng.uniform(*np.log(world.slow))))
        self._damped, self._firm = np.ones(6), np.ones(6)
        if world.uneven > 1.0:
            self._damped[:3] = world.uneven ** rng.uniform(-0.5, 0.5, 3)
            least, most = world.firm
            self._firm[:3] = least * (most / least) ** rng.uniform(0.0, 1.0, 3)
        self._decision = round(float(rng.uniform(*world.hold)) / world.dt)
        self._drift = rng.normal(0, world.drift, 6) * TORQUE_SHARE
        self._q[:] = self._home + rng.normal(0, 0.002, 7)
        mujoco.mj_forward(model, data)
        self._asked = self._q.copy()
        self._lagged, self._felt = np.zeros(6), [0.0] * 6
        self._late: deque[list[float]] = deque([[0.0] * 6], maxlen=1 + round(world.delay / world.dt))
        self._steps, self._peak, self._worst = 0, 0.0, 0.0
        if self._tuner:
            self._tuner.begin()
        self._law.gains = critical(self._stiff)
        self._hold(rng)
        if self._level.control == "probed":
            self._probe()
        return self._state()

    def _hold(self, rng: np.random.Generator) -> None:
        """Stand still until the sensor's bias is known: the mean of 50 readings; the first ones are of an arm that settles."""
        total = np.zeros(6)
        for i in range(150):
            self._servo([0.0] * 6)
            self._steps += 1
            if i >= 100:
                total += self._wrist.external(self._sensors.tolist(), self._axes.tolist())
        noise = rng.normal(0, self._world.noise / math.sqrt(50), 6) * TORQUE_SHARE
        self._zero = (total / 50 + noise).tolist()
        self._steps = 0
        self._law.begin(self._place(), self._facing())

    def _probe(self) -> None:
        """A gentle touch with the gains by hand, which bounce on nothing here: down at 10 mm/s, two seconds on what is there, back. What
        remains of it is the damping that the touched asks for."""
        assert self._tuner is not None
        law, start, dt = self._law, list(self._law.position), self._world.dt
        law.gains, facing, z = MANUAL, list(law.quaternion), start[2]
        deepest, left = float(self.work.goal[2]) + DEPTH - 0.003, round(2.0 / dt)
        while left and law.position[2] > deepest:
            left -= left < round(2.0 / dt) or math.hypot(*self._late[0][:3]) > STOP_FORCE / 4
            # up and down by a newton, so that a slope can be seen
            press = STOP_FORCE / 2 + math.sin(2 * math.pi * left * dt)
            z = max(z - 0.010 * dt, law.position[2] - press / MANUAL.stiffness[2])
            self._tick(self._noise(1)[0], [start[0], start[1], z], facing, MANUAL)
        while law.position[2] < start[2] - 0.001:
            self._tick(self._noise(1)[0], [start[0], start[1], start[2] + 0.01], facing, MANUAL)
        self._tuner.residual[:], self._worst = 0.0, 0.0

    def _place(self) -> list[float]:
        return list(self._data.site_xpos[self._tip].tolist())

    def _facing(self) -> list[float]:
        quat = np.zeros(4)
        mujoco.mju_mat2Quat(quat, self._data.site_xmat[self._tip])
        return list(quat.tolist())

    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        half = len(action) // 2
        base = self._gains(action[half:])
        self._run(np.pad(action[:half], (0, 6 - half)), base)
        if not np.isfinite(self._data.qpos).all():
            raise RealrlError(f"{self.task.id}: the arm's simulation flew apart: reset it, and look at what is sent to it")
        reward, solved = self.judge()
        return self._state(), reward, solved, solved

    def _gains(self, asked: Array) -> Gains:
        """Of an action's last numbers in [-1, 1], [6] or [3]: what keeps the tool's turn is as stiff as it may be then."""
        if self._level.control == "manual":
            return self._manual
        share = (np.pad(asked, (0, 6 - len(asked)), constant_values=1.0) + 1) / 2
        gains = critical(self._soft * (self._stiff / self._soft) ** share, ratio=self._slow)
        return replace(gains, damping=gains.damping * self._damped, stiffness=gains.stiffness * self._firm)

    def _run(self, move: Array, base: Gains) -> None:
        """Go where `move` [6] says for as long as a decision lasts."""
        law, tuner = self._law, self._tuner
        steps = self._decision
        carried = self._level.carried
        ahead = base.damping / base.stiffness if carried else np.full(6, AHEAD)
        position, facing, speed = self._set_point(move, ahead)
        start, facing_then = list(law.position), list(law.quaternion)
        size = math.sqrt(sum(s * s for s in speed)) or 1.0
        law.gains = tuner.gains(base) if tuner else base
        noise = self._noise(steps)
        for i in range(steps):
            if carried:  # K (x_d - x) = D v
                position, facing, _ = self._set_point(move, ahead)
            wrench = self._tick(noise[i], position, facing, base)
            if i % 4 == 0:
                p = law.position
                gone = math.sqrt((p[0] - start[0]) ** 2 + (p[1] - start[1]) ** 2 + (p[2] - start[2]) ** 2)
                angle = math.sqrt(sum(x * x for x in rotation_vector(law.quaternion, facing_then)))
                against = -sum(f * s for f, s in zip(wrench, speed, strict=False)) / size
                if self.work.solved() or gone > FAR * 0.98 or angle > FAR_TURN or (against > STOP_FORCE and 4 * i >= steps):
                    break

    def _noise(self, steps: int) -> list[list[float]]:
        return list((self.np_random.normal(0, self._world.noise, (steps, 6)) * TORQUE_SHARE).tolist())

    def _tick(self, noise: list[float], position: list[float], facing: list[float], base: Gains) -> list[float]:
        """One step towards a set point; the wrench as it was felt. base: the gains that are asked for."""
        law, tuner = self._law, self._tuner
        wrench = self._feel(noise)
        law.step(wrench, position, facing)
        self._servo(law.twist)
        self._steps += 1
        if self._steps % self._sample == 0:
            if tuner and tuner.see([*law.position, *rotation_vector(law.quaternion)], law.twist, wrench,
                                   [*position, *rotation_vector(facing)], base):
                law.gains = tuner.gains(base)
            if self.trace is not None:
                self.trace.append([self._steps * self._world.dt, self.work.depth(), *self._felt, *law.gains.damping[:3],
                                   *law.gains.stiffness[:3], *self._data.qpos])
        return wrench

    def _set_point(self, move: Array, ahead: Array) -> tuple[list[float], list[float], list[float]]:
        """(position, orientation, velocity [3]) that an action's first numbers [6] ask for, `ahead` [6] seconds from
        where the arm is; kept near the goal as it is seen."""
        move = move.copy()
        move[2] = self.work.rise(move[2])
        there = self.work.kept(np.array(self._law.position) + ahead[:3] * SPEED * move[:3])
        now = np.array(rotation_vector(self._law.quaternion))
        aim = np.clip(now + ahead[3:] * TURN_SPEED * move[3:], (-BOX_TURN, -BOX_TURN, -2 * BOX_TURN), (BOX_TURN, BOX_TURN, 2 * BOX_TURN))
        return there.tolist(), turned((1.0, 0.0, 0.0, 0.0), aim.tolist()), (SPEED * move[:3]).tolist()

    # -- sensor and servo ---------------------------------------------------------------------------------------------------------

    def _feel(self, noise: list[float]) -> list[float]:
        """The wrench at the tip as the law gets it: filtered, with its bias, late."""
        felt, seconds, cut = self._felt, min(self._steps * self._world.dt, TARED), self._cut
        now = self._wrist.external(self._sensors.tolist(), self._axes.tolist())
        for i in range(6):
            felt[i] += cut * (now[i] - self._zero[i] + self._drift[i] * seconds - felt[i])
        self._worst = max(self._worst, math.sqrt(felt[0] ** 2 + felt[1] ** 2 + felt[2] ** 2))
        self._peak = max(self._peak, self._worst)
        self._late.append([f + n for f, n in zip(felt, noise, strict=True)])
        return self._late[0]

    def _servo(self, twist: list[float]) -> None:
        """One step of the physics. twist: of the tip, as the law wants it: damped least squares to the joints, inverse dynamics there."""
        model, data, world = self._model, self._data, self._world
        if self._steps % self._again == 0:
            mujoco.mj_jacSite(model, data, self._jac[:3], self._jac[3:], self._tip)
            jac = self._jac[:, :7]
            self._inverse = jac.T @ np.linalg.inv(jac @ jac.T + 1e-5 * np.eye(6))
            rest = self._home - self._asked
            self._idle = rest - self._inverse @ (jac @ rest)
        want = np.array(twist)
        if world.lag:
            self._lagged += (want - self._lagged) * (world.dt / (world.lag + world.dt))
            want = self._lagged
        speed = self._inverse @ want + self._idle
        self._asked += world.dt * speed
        self._wish[:7] = world.servo * (self._asked - self._q) + 2 * math.sqrt(world.servo) * (speed - self._speed)
        mujoco.mj_mulM(model, data, self._pull, self._wish)
        np.minimum(np.maximum(self._pull[:7] + self._bias, -TORQUE), TORQUE, out=self._torque)
        mujoco.mj_step(model, data)

    def _state(self, drift: float = 0.0) -> Array:
        """The full state. drift: by how much further the goal is seen wrong along x, m."""
        data, law, work = self._data, self._law, self.work
        tip, facing = data.site_xpos[self._tip], np.array(rotation_vector(self._facing()))
        way = work.goal - tip
        seen, turn = -(way + work.wrong + (drift, 0, 0)), facing - (0, 0, work.turn)
        twist = np.array(law.twist)
        wrench = np.array(self._late[0])
        gains = law.gains.damping
        counts = (self._tuner.fits, self._tuner.failed) if self._tuner else (0, 0)
        told = (self._steps * self._world.dt, self._peak, *counts, float(gains[:3].mean()))
        return np.concatenate([seen / work.unit, (turn + np.array([0, 0, work.wrong_turn])) / 0.1, twist / 0.1, np.tanh(wrench[:3] / 10),
                               np.tanh(wrench[3:] / 0.5), way, -turn, told, [self._limit / 10], work.truth()])

    # -- driven by a clock, see `realrl.robots.bodies` ----------------------------------------------------------------------------

    @property
    def world(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """(model, data)."""
        return self._model, self._data

    def follow(self, place: Array, stiffness: Array) -> None:
        """From now on the set point is at a place [6], m and rotation vector, kept near the goal as it is seen, with a spring [6]."""
        box = BOX_TURN * np.array([1, 1, 2])
        self._base = self._manual if self._level.control == "manual" else critical(stiffness)
        self._set = (self.work.kept(place[:3]).tolist(), turned((1.0, 0.0, 0.0, 0.0), np.clip(place[3:], -box, box).tolist()))
        self._law.gains = self._tuner.gains(self._base) if self._tuner else self._base

    def live(self, stalled: bool, push: float) -> None:
        """A step of the clock. stalled: the drives hold; push: N upward at the tool."""
        self._data.xfrc_applied[self._tool, 2] = push
        if not self._noises:
            self._noises = self._noise(1000)
        noise = self._noises.pop()
        if stalled:
            self._feel(noise)
            self._law.begin(self._law.position, self._law.quaternion)
            self._servo([0.0] * 6)
            self._steps += 1
        else:
            self._tick(noise, *self._set, self._base)

    def look(self, drift: float) -> tuple[Array, Array, Array]:
        """(where the tip is [6], the full state, the filtered force [3], N). drift: of where the goal is seen, m."""
        place = np.array([*self._place(), *rotation_vector(self._facing())])
        return place, self._state(drift), np.array(self._felt[:3])

    def judge(self) -> tuple[float, bool]:
        """(reward, whether it is solved now) of a decision that ends here."""
        beyond = self._worst - self._limit if self._limit else 0.0
        self._worst = 0.0
        return self.work.reward(beyond), self.work.solved()
