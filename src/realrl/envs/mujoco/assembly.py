"""The environment of "assembly/...", see `realrl.envs.assembly`: a Panda under admittance control, its peg and a hole, in MuJoCo."""

from __future__ import annotations

import math
from collections import deque

import mujoco
import numpy as np

from realrl.envs.assembly import AHEAD, DEPTH, FULL, LEVELS, NEAR, SOFT, SPEED, STIFF, TURN_SPEED, reward_of
from realrl.envs.base import Eyes, NoEyes, RobotEnv
from realrl.envs.mujoco.panda import HOLE, TOOL, Wrist, build
from realrl.envs.mujoco.randomise import randomiser
from realrl.envs.mujoco.sight import Scenery, View, eyes
from realrl.robots.admittance import Gains, Law, LimitsConfig, Mode, Tuner, TunerConfig, critical, rotation_vector, turned
from realrl.scene import RandomiseConfig, SightConfig
from realrl.types import Array, RealrlError, TaskSpec

HORIZON, ACTION = 20, 12
TORQUE_SHARE = np.array([1.0, 1.0, 1.0, 0.02, 0.02, 0.02])
"""Torque's noise and bias, N m, for what force has, N."""
SEEN_WRONG, TURN_WRONG = 0.002, math.radians(0.5)
SIDE, BOX_TURN = 0.04, math.radians(5)
"""What set points are kept within: to the side of the hole as seen, m, and the turn, rad."""
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
MANUAL = Gains(np.array([3.0] * 3 + [0.3] * 3), np.array([300.0] * 3 + [15.0] * 3), np.array([200.0] * 3 + [20.0] * 3))
"""The paper's gains by hand, along the axes; about them, ours."""


class AssemblyEnv(RobotEnv):
    """An arm with a peg over its hole, see `realrl.envs.assembly`. trace: a list that is to be filled with a row (`TRACE`) every 8 ms;
    None: nobody asks."""

    def __init__(self, name: str, reward: str | None = None, horizon: int | None = None, sight: SightConfig | None = None,
                 randomise: RandomiseConfig | None = None, *, beside: bool = False) -> None:
        """beside: the residual is fitted in a second thread, as whoever is driven by a clock needs; it does not repeat to the bit then."""
        self._level = level = LEVELS[name]
        world = self._world = level.world
        shown = sight is not None and sight.kind != "state"
        self._model, self._home = build(level.shape, world.clearance[0], shown, world.dt)
        model, self._data = self._model, mujoco.MjData(self._model)
        model.dof_frictionloss[:7] = np.array([1.0] * 4 + [0.3] * 3) * world.dry
        self._tool, self._noises = model.body("tool").id, list[list[float]]()
        self._plate, self._tip, self._wrist_site = model.body("plate").id, model.site("tip").id, model.site("wrist").id
        steps = HORIZON if horizon is None else horizon
        # a recording's clock counts whole decisions a second; how long they truly were is observed
        task = TaskSpec("assembly", name, FULL, ACTION, steps, min(world.hold[1], 1.0), f"put the {level.shape} peg into its hole")
        looked = eyes(sight, Scenery(task.id, (View("side"),), tuple(level.seen)), model, self._data, ("rgb", "depth"))
        seen: Eyes = NoEyes(level.seen) if looked is None else looked
        super().__init__(task, reward=reward, kinds=("dense", "sparse"), eyes=seen,
                         whims=randomiser(randomise, model, self._data, looked, ((0.3, -0.2, 0.0), (0.7, 0.2, 0.3))))
        # of every wall of the hole: where it is at the least clearance, and outwards
        walls = [g for g in range(model.ngeom) if model.geom_bodyid[g] == self._plate and model.geom(g).name != "floor"]
        turns = 2 * np.arctan2(model.geom_quat[walls, 3], model.geom_quat[walls, 0])
        self._walls, self._walls_at = walls, model.geom_pos[walls].copy()
        self._outwards = np.stack([np.sin(turns), -np.cos(turns), 0 * turns], 1)
        self._law = Law(critical(STIFF), LimitsConfig(speed=FASTEST), world.dt)
        modes: dict[str, Mode] = {"adapted": "fit", "braced": "fit", "probed": "fit", "rule": "rule", "free": "free"}
        mode = modes.get(level.control)
        self._tuner = Tuner(TunerConfig(mode=mode, expected=EXPECTED if level.control == "braced" else 0.0), beside) if mode else None
        self._jac, self._pull = np.zeros((6, model.nv)), np.zeros(model.nv)
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
        at = HOLE + rng.uniform((-0.03, -0.03, -0.005), (0.03, 0.03, 0.005))
        self._turn = float(rng.uniform(-0.03, 0.03))
        model.body_pos[self._plate], model.body_quat[self._plate] = at, (math.cos(self._turn / 2), 0, 0, math.sin(self._turn / 2))
        self._goal = at - (0, 0, DEPTH)
        self._bottom = self._goal.tolist()
        self._wrong, self._wrong_turn = np.array([*rng.normal(0, SEEN_WRONG, 2).clip(-0.005, 0.005), 0.0]), float(rng.normal(0, TURN_WRONG))
        model.geom_pos[self._walls] = self._walls_at + self._outwards * (rng.uniform(*world.clearance) - world.clearance[0])
        model.geom_friction[:, 0] = rng.uniform(*world.friction)
        model.geom_solref[:, 0] = rng.uniform(*world.solref)
        self._wrist = Wrist(TOOL[0] * (1 + float(rng.uniform(-world.mass, world.mass))))
        self._limit = float(rng.uniform(*self._level.limit)) if self._level.limit else 0.0
        self._slow = float(np.exp(rng.uniform(*np.log(world.slow))))
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
        self._law.gains = critical(STIFF)
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
        deepest, left = self._bottom[2] + DEPTH - 0.003, round(2.0 / dt)
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
        base = self._gains(action[6:])
        self._run(action[:6], base)
        if not np.isfinite(self._data.qpos).all():
            raise RealrlError(f"{self.task.id}: the arm's simulation flew apart: reset it, and look at what is sent to it")
        reward, solved = self.judge()
        return self._state(), reward, solved, solved

    def _gains(self, asked: Array) -> Gains:
        """Of an action's last numbers [6] in [-1, 1]."""
        if self._level.control == "manual":
            return MANUAL
        return critical(SOFT * (STIFF / SOFT) ** ((asked + 1) / 2), ratio=self._slow)

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
                if self._distance() < NEAR or gone > FAR * 0.98 or angle > FAR_TURN or (against > STOP_FORCE and 4 * i >= steps):
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
                above = self._place()[2] - self._bottom[2]
                self.trace.append([self._steps * self._world.dt, above, *self._felt, *law.gains.damping[:3], *law.gains.stiffness[:3],
                                   *self._q])
        return wrench

    def _set_point(self, move: Array, ahead: Array) -> tuple[list[float], list[float], list[float]]:
        """(position, orientation, velocity [3]) that an action's first numbers [6] ask for, `ahead` [6] seconds from
        where the arm is; kept near the hole as it is seen."""
        move = move.copy()
        move[2] = (move[2] - 1) / 2  # only down
        seen = self._goal + self._wrong
        there = np.array(self._law.position) + ahead[:3] * SPEED * move[:3]
        there[:2] = np.clip(there[:2], seen[:2] - SIDE, seen[:2] + SIDE)
        now = np.array(rotation_vector(self._law.quaternion))
        aim = np.clip(now + ahead[3:] * TURN_SPEED * move[3:], (-BOX_TURN, -BOX_TURN, -2 * BOX_TURN), (BOX_TURN, BOX_TURN, 2 * BOX_TURN))
        return there.tolist(), turned((1.0, 0.0, 0.0, 0.0), aim.tolist()), (SPEED * move[:3]).tolist()

    def _distance(self) -> float:
        """From the tip to the bottom, m."""
        return math.dist(self._data.site_xpos[self._tip].tolist(), self._bottom)

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
        mujoco.mj_mulM(model, data, self._pull, world.servo * (self._asked - self._q) + 2 * math.sqrt(world.servo) * (speed - self._speed))
        np.minimum(np.maximum(self._pull + self._bias, -TORQUE), TORQUE, out=self._torque)
        mujoco.mj_step(model, data)

    def _state(self, drift: float = 0.0) -> Array:
        """The full state. drift: by how much further the hole is seen wrong along x, m."""
        data, law = self._data, self._law
        tip, facing = data.site_xpos[self._tip], np.array(rotation_vector(self._facing()))
        way = self._goal - tip
        seen, turn = -(way + self._wrong + (drift, 0, 0)), facing - (0, 0, self._turn)
        twist = np.array(law.twist)
        wrench = np.array(self._late[0])
        gains = law.gains.damping
        counts = (self._tuner.fits, self._tuner.failed) if self._tuner else (0, 0)
        told = (self._steps * self._world.dt, self._peak, *counts, float(gains[:3].mean()))
        return np.concatenate([seen / 0.01, (turn + np.array([0, 0, self._wrong_turn])) / 0.1, twist / 0.1, np.tanh(wrench[:3] / 10),
                               np.tanh(wrench[3:] / 0.5), way, -turn, told, [self._limit / 10]])

    def shown(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """(model, data) of the arm with its looks, over the plate where it is now, for pictures."""
        model, _ = build(self._level.shape, self._level.world.clearance[0], True)
        plate = model.body("plate").id
        model.body_pos[plate], model.body_quat[plate] = self._model.body_pos[self._plate], self._model.body_quat[self._plate]
        return model, mujoco.MjData(model)

    # -- driven by a clock, see `realrl.robots.bodies` ----------------------------------------------------------------------------

    @property
    def world(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """(model, data)."""
        return self._model, self._data

    def follow(self, place: Array, stiffness: Array) -> None:
        """From now on the set point is at a place [6], m and rotation vector, kept near the hole as it is seen, with a spring [6]."""
        seen, box = (self._goal + self._wrong)[:2], BOX_TURN * np.array([1, 1, 2])
        self._base = MANUAL if self._level.control == "manual" else critical(stiffness)
        self._set = ([*np.clip(place[:2], seen - SIDE, seen + SIDE).tolist(), float(place[2])],
                     turned((1.0, 0.0, 0.0, 0.0), np.clip(place[3:], -box, box).tolist()))
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
        """(where the tip is [6], the full state, the filtered force [3], N). drift: of where the hole is seen, m."""
        place = np.array([*self._place(), *rotation_vector(self._facing())])
        return place, self._state(drift), np.array(self._felt[:3])

    def judge(self) -> tuple[float, bool]:
        """(reward, whether it is solved now) of a decision that ends here."""
        distance, beyond = self._distance(), self._worst - self._limit if self._limit else 0.0
        self._worst = 0.0
        return reward_of(distance, distance < NEAR, beyond), distance < NEAR

    def slide_away(self) -> None:
        """The plate is out of reach."""
        self._model.body_pos[self._plate] = (HOLE[0], 1.0, HOLE[2])
        self._goal = self._goal + np.array([0.0, 1.0, 0.0])
        self._bottom = self._goal.tolist()
