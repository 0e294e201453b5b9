"""What the simulated robots are made of: a world of `realrl.envs`, its channels in physical units, and how it breaks.

A body's world is the one of the lock-step task of the same name, and so is what a policy is shown; but here a clock drives it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from realrl.envs import arm, assembly, contact, quadruped
from realrl.robots.driver import Channel
from realrl.types import Array, RealrlError

FORCE_LIMIT = 40.0  # N


class Body(Protocol):
    """One robot and its surroundings. model, data: MuJoCo's; channels, state: see `realrl.robots.driver.Driver`; served: fields of
    `realrl.robots.settings.ServerConfig`, what belongs to the task; reward: sparse or dense, what `outcome` gives; truth: [F] the
    simulator's full state at the last `sense`, None where what is sensed is all of it. Some have a `tip`, where the hand is [3] m when the
    channels are at [C].
    """

    model: Any
    data: Any
    channels: tuple[Channel, ...]
    state: tuple[str, ...]
    served: Mapping[str, Any]
    reward: str
    truth: Array | None

    def drive(self, command: Array) -> None:
        """Where it shall go from now on, [C]."""

    def step(self, stalled: bool, push: float) -> None:
        """A step of physics. stalled: its drives do not push and its brakes hold; push: N upward at the hand (or trunk)."""

    def sense(self, drift: float) -> tuple[Array, Array, Array | None]:
        """(measured [C], state [D], force [3] N or None) now. drift: m (rad) that what it believes of its goal is wrong by."""
        ...

    def begin(self, seed: int) -> None:
        """The scene of a seed."""

    def outcome(self) -> tuple[float, bool, bool]:
        """See `realrl.robots.driver.Tasked`; asked once a period."""
        ...

    def lose(self) -> None:
        """What it works on gets lost."""


class ArmBody:
    """The arms of `realrl.envs.arm`: the hand is drawn to a place by a spring."""

    reward = "sparse"
    truth: Array | None = None

    def __init__(self, name: str, shown: bool) -> None:
        from realrl.envs.mujoco.arm import HIGH, LOW, START, ArmWorld
        self._name, job = name, arm.JOBS[name]
        self.world = ArmWorld(job.robot, shown=shown)
        self.world.reset()
        self.model, self.data, self.state = self.world.model, self.world.data, job.state
        names, limits = ("x", "y", "z", "width"), ((0.3, 6.0, 200.0),) * 3 + ((0.4, 8.0, 400.0),)
        self.channels = tuple(Channel(name, "m", "pose" if name != "width" else "position", float(LOW[i]), float(HIGH[i]), *limits[i],
                                      step=float(arm.STEP[i])) for i, name in enumerate(names))
        at = tuple(START.tolist())
        self.served: Mapping[str, Any] = {"text": job.text, "fps": 1 / arm.DT, "horizon": job.horizon, "start": at, "park": at,
                                          "force": FORCE_LIMIT, "stall": (0.06, 0.06, 0.06, 0.09)}

    def drive(self, command: Array) -> None:
        """See `Body`."""
        self.world.setpoint = np.array(command, np.float64)

    def step(self, stalled: bool, push: float) -> None:
        """See `Body`."""
        self.world.stalled, self.world.push = stalled, np.array([0.0, 0.0, push])
        self.world.step()

    def sense(self, drift: float) -> tuple[Array, Array, Array | None]:
        """See `Body`."""
        seen = self.world.sensed(drift)
        return np.array([*seen.tip, seen.width]), arm.observe(self._name, seen, self.world.setpoint, self.world.goal), seen.force

    def begin(self, seed: int) -> None:
        """Cube and goal; the hand stays."""
        self.world.place(*arm.start(self._name, seed))

    def outcome(self) -> tuple[float, bool, bool]:
        """A success ends the task."""
        _, success = arm.outcome(self._name, self.world.sensed(), self.world.goal)
        return float(success), success, success

    def tip(self, at: Array) -> Array:
        """The hand is where it is told to be."""
        return at[:3]

    def lose(self) -> None:
        """The cube falls off the table."""
        self.world.place(np.array([0.5, 0.8]), 0.0, self.world.goal)


class PegBody:
    """The peg of `realrl.envs.contact`. An action goes on from where the hand is, as it does there, but along the world's axes."""

    reward = "sparse"
    truth: Array | None = None

    def __init__(self, name: str, shown: bool) -> None:
        from realrl.envs.mujoco import peg
        from realrl.envs.mujoco.live import Live
        self._env = env = peg.PegEnv(name)
        env.reset(seed=0)
        (self.model, self.data), self._reach = env.world, env.reach
        self.state = contact.STATE[:contact.SEEN]
        self._order = [0, 1, 2, 5, 4, 3]  # channels say roll, pitch, yaw; the joints are yaw, pitch, roll
        limits = ((0.25, 6.0, 400.0),) * 3 + ((1.5, 36.0, 2400.0),) * 3
        low, high = peg.BOX[:, self._order].tolist()
        names, steps = ("x", "y", "z", "roll", "pitch", "yaw"), env.reach.tolist()
        self.channels = tuple(Channel(name, "m" if i < 3 else "rad", "pose", low[i], high[i], *limits[i], step=steps[i], lead=0.0)
                              for i, name in enumerate(names))
        at = (0.0, 0.0, 0.035, 0.0, 0.0, 0.0)
        self.served: Mapping[str, Any] = {"text": env.task.text, "fps": peg.HZ, "horizon": env.task.horizon, "start": at,
                                          "park": at, "force": FORCE_LIMIT}
        self._live = Live(self.model, self.data, self.model.nbody - 1, 5000.0)  # the hand is the last body
        self._went: deque[Array] = deque(maxlen=round(1 / (peg.HZ * peg.STEP)) + 1)
        self._force, self._push = np.zeros(3), 0.0
        self.data.qpos[:] = np.array(at)[self._order]
        self.drive(np.array(at))

    def drive(self, command: Array) -> None:
        """See `Body`."""
        self.data.ctrl[:] = np.asarray(command)[self._order]

    def step(self, stalled: bool, push: float) -> None:
        """See `Body`."""
        self._push = push
        self._live.step(stalled, push)
        self._went.append(self.data.ctrl[self._order])

    def sense(self, drift: float) -> tuple[Array, Array, Array | None]:
        """See `Body`. The action before is what the command has gone in a period."""
        if self._went:
            self._env.before = np.clip((self._went[-1] - self._went[0]) / self._reach, -1.0, 1.0)
        self.truth = state = self._env.look(drift)
        pushed = np.array([0.0, 0.0, self._push])
        self._force += 0.1 * (self._env.felt[:3] + pushed - self._force)  # a wrist sensor's filter, 18 ms
        return self.data.qpos[self._order], state[:contact.SEEN], self._force.copy()

    def begin(self, seed: int) -> None:
        """Another slot, under a hand that stands where it was sent: one that is still on its way may be inside."""
        sent = self.data.ctrl.copy()
        self._env.reset(seed=seed)
        self.data.qpos[:] = self.data.ctrl[:] = sent
        self._env.start_from_here()
        self._force[:] = 0.0
        self._went.clear()

    def outcome(self) -> tuple[float, bool, bool]:
        """A success ends the task."""
        *_, success = self._env.judge()
        return float(success), success, success

    def tip(self, at: Array) -> Array:
        """The hand is where it is told to be."""
        return at[:3]

    def lose(self) -> None:
        """The slot slides out of reach."""
        self._env.slide_away()


class AssemblyBody:
    """The arms that feel of `realrl.envs.assembly`: six numbers say where the set point of the admittance law is, six how stiff it is; of
    who pivots, three each. An action's set point is ahead of where the arm is, as it is there; a decision lasts a second, and the guard
    takes the set point there."""

    reward = "dense"
    truth: Array | None = None

    def __init__(self, name: str, shown: bool) -> None:
        from realrl.envs.mujoco.assembly import AssemblyEnv
        from realrl.scene import SightConfig
        self._env = env = AssemblyEnv(name, sight=SightConfig("rgb") if shown else None, beside=True)
        env.reset(seed=0)
        (self.model, self.data), level = env.world, assembly.LEVELS[name]
        self._seen = level.seen
        self.state = assembly.STATE[:len(self._seen)]
        self._half = half = level.numbers // 2
        # a peg's set point goes down only, a pivot's rather up: what is called z is where the middle of it is, under or over the tip
        reach = [assembly.AHEAD * x for x in (*[assembly.SPEED] * 3, *[assembly.TURN_SPEED] * 3)]
        middle = env.work.rise(0.0)
        self._over = np.eye(2 * half)[2] * middle * reach[2]
        reach[2] *= env.work.rise(1.0) - middle
        centre, names = [*env.work.centre, 0.0, 0.0, 0.0], ("x", "y", "z", "roll", "pitch", "yaw")[:half]
        places = [Channel(n, "m" if i < 3 else "rad", "pose", centre[i] - 0.1 - 0.1 * (i > 2), centre[i] + 0.1 + 0.1 * (i > 2),
                          *((0.25, 6.0, 400.0) if i < 3 else (1.5, 36.0, 2400.0)), step=reach[i], lead=0.0) for i, n in enumerate(names)]
        self._soft, self._stiff = np.log(level.springs)
        springs = [Channel(f"stiffness {n}", "ln(N/m)" if i < 3 else "ln(N m/rad)", "position", float(self._soft[i]), float(self._stiff[i]),
                           10.0, 200.0, 2e4) for i, n in enumerate(names)]
        self.channels = (*places, *springs)
        self._since, self._told = 0, env.look(0.0)
        self._command = np.concatenate([self._told[0][:half], self._stiff[:half]])
        at = tuple(np.round(self._command, 6).tolist())
        self.served: Mapping[str, Any] = {"text": env.task.text, "fps": 1.0, "horizon": 50, "start": at, "park": at, "force": 100.0}
        self.drive(np.array(at))

    def drive(self, command: Array) -> None:
        """See `Body`."""
        self._command, half = np.array(command, np.float64), self._half
        springs = self._stiff.copy()
        springs[:half] = np.clip(self._command[half:], self._soft[:half], springs[:half])
        self._env.follow(np.pad(self._command[:half], (0, 6 - half)), np.exp(springs))

    def step(self, stalled: bool, push: float) -> None:
        """See `Body`."""
        self._env.live(stalled, push)
        self._since += 1

    def sense(self, drift: float) -> tuple[Array, Array, Array | None]:
        """See `Body`. An interface that tells 250 times a second."""
        if self._since >= 4:
            self._since, self._told = 0, self._env.look(drift)
        place, self.truth, force = self._told
        return np.concatenate([place[:self._half], self._command[self._half:]]) + self._over, self.truth[self._seen], force

    def begin(self, seed: int) -> None:
        """The tool is put over another hole, and its sensor is tared."""
        self._env.reset(seed=seed)
        self._since = 4
        self.drive(self._command)

    def outcome(self) -> tuple[float, bool, bool]:
        """A success ends the task."""
        reward, solved = self._env.judge()
        return reward, solved, solved

    def lose(self) -> None:
        """What it works on slides out of reach."""
        self._env.work.lose()


class LegsBody:
    """The quadrupeds of `realrl.envs.quadruped`: an action is a pose of the joints."""

    reward = "dense"
    truth: Array | None = None

    def __init__(self, name: str, shown: bool) -> None:
        from realrl.envs.mujoco import walking
        from realrl.envs.mujoco.live import Live
        self._env = env = walking.QuadrupedEnv(name, shown=shown)
        env.reset(seed=0)
        (self.model, self.data), self.state = env.world, quadruped.state_names(quadruped.VARIANTS[name.partition("-")[2]].goal)
        low, high, least, most = np.stack([*env.stops, env.pose - env.box, env.pose + env.box]).tolist()
        self.channels = tuple(Channel(" ".join(joint), "rad", "position", low[i], high[i], 20.0, 1000.0, 1e5, aim=(least[i], most[i]))
                              for i, joint in enumerate(quadruped.JOINTS))
        at = tuple(env.pose.tolist())
        self.served: Mapping[str, Any] = {"text": env.task.text, "fps": walking.HZ, "ticks": 200.0, "horizon": env.task.horizon,
                                          "start": at, "park": at}
        self._live = Live(self.model, self.data, 1, 500.0)  # the trunk is the first body
        self.drive(env.pose)

    def drive(self, command: Array) -> None:
        """See `Body`."""
        self._command = np.array(command, np.float64)
        self._env.aim(self._command)

    def step(self, stalled: bool, push: float) -> None:
        """See `Body`."""
        self._live.step(stalled, push)

    def sense(self, drift: float) -> tuple[Array, Array, Array | None]:
        """See `Body`."""
        state = self._env.look(drift)
        return self._env.joints, state, None

    def begin(self, seed: int) -> None:
        """It is put back onto its feet."""
        self._env.reset(seed=seed)
        self.drive(self._command)

    def outcome(self) -> tuple[float, bool, bool]:
        """A fall ends the task."""
        _, reward, fell, success = self._env.judge()
        return reward, fell, success

    def lose(self) -> None:
        """It loses its feet: it is thrown onto its back."""
        self.data.qpos[2:7] = 0.4, 0.0, 1.0, 0.0, 0.0


def tasks() -> list[str]:
    """What can be served. Not the quadrupeds that get up by a script or whose actions are filtered (nobody acts meanwhile, or
    somebody twice), nor the one on its back, whose world is another; nor the peg that has to be picked. Of the arms that assemble those
    whose physics are of a millisecond, but none that probes before a trial."""
    walks = {name: quadruped.VARIANTS[name.partition("-")[2]] for name in quadruped.names()}
    legs = [name for name, walk in walks.items() if not (walk.fallen or walk.filtered or walk.goal == "rise")]
    pegs = [name for name, level in contact.LEVELS.items() if not level.picks]
    feel = [name for name, level in assembly.LEVELS.items() if level.world.dt == 0.001 and level.control != "probed"]
    found = {"arm": arm.names(), "assembly": feel, "contact": pegs, "quadruped": legs}
    return [f"{suite}/{name}" for suite, names in found.items() for name in names]


def named(task: str) -> str:
    """A task that can be served. Raises RealrlError on one that is none's."""
    if task not in (known := tasks()):
        from realrl.config import nearest
        suite = [name for name in known if name.partition("/")[0] == task.partition("/")[0]]
        raise RealrlError(f"no simulated robot does {task!r}{nearest(task, suite or ['arm/panda-pick', 'contact/peg', 'quadruped/go1'])}")
    return task


def body(task: str, shown: bool = False) -> Body:
    """The robot of a task, shown: with what pictures need. Raises RealrlError on a task that is none's."""
    suite, _, name = named(task).partition("/")
    makes: dict[str, Callable[[str, bool], Body]] = {"arm": ArmBody, "assembly": AssemblyBody, "contact": PegBody, "quadruped": LegsBody}
    return makes[suite](name, shown)
