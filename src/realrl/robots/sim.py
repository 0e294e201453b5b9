"""A simulated robot that behaves like one: its physics run in real time whatever its server or anybody else does, and it can be broken.

Its own thread steps the world 500 times a second (or as often as its physics ask for). `read` and `write` go through a connection with
latency, jitter and loss; `inject` orders faults. Cameras are drawn by another thread.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from realrl.files import derive
from realrl.robots.bodies import body
from realrl.robots.clock import CAMERAS, HARDWARE, Ticker, urgent
from realrl.robots.driver import Reading
from realrl.robots.settings import ServerConfig
from realrl.types import Array

CATCH_UP = 0.2
"""s of its world that it makes up for where the machine let it wait: on a busy one an arm would be slower than the clock says."""


@dataclass
class Faults:
    """What is wrong with it now. latency, jitter: s that a reading is old, and how much that varies; loss: share of reads that fail; nan: a
    channel's encoder says NaN; frozen: encoders say what they said; silent: it answers nothing; camera: cameras stand still; estop: the
    button is pressed; hot: its drives are; stall: they do not push; push: N that something pushes the hand (or trunk) with, upward; drift:
    m/s (a walker's: rad/s) that its idea of where to go drifts away; lost: what it works on gets lost, once; deaf: commands do not
    arrive. units, order, sign: it was put together wrongly, the number from 1 of a channel of which the state tells in another unit, or in
    the place of the next such channel, or whose drive and encoder count the other way."""

    latency: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    nan: float = 0.0
    frozen: float = 0.0
    silent: float = 0.0
    camera: float = 0.0
    estop: float = 0.0
    hot: float = 0.0
    stall: float = 0.0
    push: float = 0.0
    drift: float = 0.0
    lost: float = 0.0
    deaf: float = 0.0
    units: float = 0.0
    order: float = 0.0
    sign: float = 0.0


NUMBERED = ("units", "order", "sign")


class SimRobot:
    """The robot of a task as a driver, see `realrl.robots.bodies`. twin: that task, whose scripts know this robot, too."""

    def __init__(self, task: str, *, cameras: Sequence[str] = (), size: int = 96, latency: float = 0.0, jitter: float = 0.0,
                 loss: float = 0.0, seed: int = 0) -> None:
        """task: one of `realrl.robots.bodies.tasks`. Raises RealrlError on another."""
        self.body = made = body(task, bool(cameras))
        self._rng = np.random.default_rng(derive(seed, "sim robot"))
        self.channels, self.state, self.reward = made.channels, made.state, made.reward
        self.tip = getattr(made, "tip", None)
        self.told = {number: self.state.index(c.name) for number, c in enumerate(self.channels, 1) if c.name in self.state}
        self.twin = task
        self.faults = self._usual = Faults(latency=latency, jitter=jitter, loss=loss)
        self._lock, self._over = threading.Lock(), threading.Event()
        self._step_s = float(made.model.opt.timestep)
        self._past: deque[Reading] = deque(maxlen=int(1.0 / self._step_s))
        self._images: dict[str, tuple[float, Array]] = {}
        self.drifted = 0.0
        self.slow = 0
        self._sense(time.monotonic())
        self._threads = [threading.Thread(target=self._live, name="physics", daemon=True)]
        if cameras:
            self._eyes = _Cameras(self, cameras, size)
            self._threads.append(threading.Thread(target=self._eyes.live, name="cameras", daemon=True))
        for thread in self._threads:
            thread.start()
        until = time.monotonic() + 30
        while len(self._images) < len(cameras) and time.monotonic() < until:
            time.sleep(0.01)

    # ---- the driver

    def read(self) -> Reading:
        """What was so a latency ago. Raises OSError where a packet is lost."""
        wrong = self.faults
        if wrong.silent or (wrong.loss and self._rng.random() < wrong.loss):
            raise OSError("no packet came")
        age = wrong.latency + (wrong.jitter * float(self._rng.random()) if wrong.jitter else 0.0)
        with self._lock:
            past = list(self._past) if age else [self._past[-1]]
            images = dict(self._images)
        reading = past[-1]
        if age:
            want = time.monotonic() - age
            reading = next((r for r in reversed(past) if r.stamp <= want), past[0])
        if wrong.nan:
            reading = replace(reading, measured=np.where(np.arange(len(reading.measured)) == 0, np.nan, reading.measured))
        return replace(self._as_wired(reading), images=images)

    def write(self, command: Array) -> Array:
        """Where it goes from now on. Raises OSError where it did not arrive."""
        if self.faults.deaf:
            raise OSError("no acknowledgement came")
        with self._lock:
            self.body.drive(self._turned(command))
        return command

    def hold(self) -> None:
        """Its drives are on."""

    def brake(self) -> None:
        """Its controller holds; there is no brake of its own."""

    def park(self) -> None:
        """Its brakes engage."""

    def release(self) -> None:
        """Its brakes are engaged, the drives may go."""

    def close(self) -> None:
        """End its threads."""
        self._over.set()
        for thread in self._threads:
            thread.join(5)

    # ---- the task

    def begin(self, seed: int) -> None:
        """The scene to where it belongs; the robot has moved to the start by itself."""
        with self._lock:
            self.body.begin(seed)
            self.drifted = 0.0
            self._sense(time.monotonic())

    def outcome(self) -> tuple[float, bool, bool]:
        """As the body says."""
        with self._lock:
            return self.body.outcome()

    def inject(self, name: str, value: Any = 1.0) -> None:
        """Order a fault, or with 0 end it; "none" ends all. Raises ValueError on another."""
        if name == "none":
            self.faults = replace(self._usual)
        elif name not in Faults.__dataclass_fields__ or isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"no fault {name[:20]!r} with a number: known are none, {', '.join(Faults.__dataclass_fields__)}")
        elif name in NUMBERED and value and value not in (known := self.told if name != "sign" else range(1, len(self.channels) + 1)):
            raise ValueError(f"{name} is of one channel of {self.body.served.get('name', self.twin)}: its number is one of "
                             f"{', '.join(map(str, known)) or 'none'}, got {value:g}")
        else:
            self.faults = replace(self.faults, **{name: float(value)})

    # ---- how it was put together

    def _as_wired(self, reading: Reading) -> Reading:
        """A reading as whoever has mistaken a unit, an order or a sign tells it."""
        wrong = self.faults
        if wrong.sign:
            reading = replace(reading, measured=self._turned(reading.measured))
        if wrong.units:
            state, unit = reading.state.copy(), self.channels[int(wrong.units) - 1].unit
            state[self.told[int(wrong.units)]] *= 180 / np.pi if unit == "rad" else 1000.0
            reading = replace(reading, state=state)
        if wrong.order:
            state, places = reading.state.copy(), list(self.told.values())
            here = places.index(self.told[int(wrong.order)])
            pair = [places[here], places[(here + 1) % len(places)]]
            state[pair] = state[pair[::-1]]
            reading = replace(reading, state=state)
        return reading

    def _turned(self, at: Array) -> Array:
        """Places of the channels [C], of which one may count the other way."""
        if not (channel := int(self.faults.sign)):
            return at
        turned, limits = np.array(at, np.float64), self.channels[channel - 1]
        turned[channel - 1] = limits.low + limits.high - turned[channel - 1]
        return turned

    # ---- its own life

    def _live(self) -> None:
        urgent(HARDWARE)
        ticker, owed = Ticker(self._step_s), 1
        while not self._over.is_set():
            wrong, before = self.faults, ticker.skipped
            with self._lock:
                if wrong.lost:
                    self.body.lose()
                    self.faults = replace(wrong, lost=0.0)
                self.drifted += owed * wrong.drift * self._step_s
                for _ in range(owed):
                    self.body.step(bool(wrong.stall or wrong.estop), wrong.push)
                if not wrong.frozen:
                    self._sense(time.monotonic())
                else:  # an interface that goes on sending what it has
                    self._past.append(replace(self._past[-1], stamp=time.monotonic(), faults=self._reports()))
            self.slow += ticker.wait() > self._step_s
            owed = 1 + min(ticker.skipped - before, int(CATCH_UP / self._step_s))

    def _reports(self) -> tuple[str, ...]:
        return tuple(name for name in ("estop", "hot") if getattr(self.faults, name))

    def _sense(self, now: float) -> None:
        measured, state, force = self.body.sense(self.drifted)
        self._past.append(Reading(now, measured, state, force, self._reports(), truth=self.body.truth))


class _Cameras:
    """Draws what cameras see, 30 times a second or as often as the machine can."""

    def __init__(self, robot: SimRobot, names: Sequence[str], size: int) -> None:
        from realrl.envs.mujoco.live import Views
        self._robot = robot
        self._views = Views(robot.body.model, robot.body.data, names, size)

    def live(self) -> None:
        """The thread's life."""
        urgent(CAMERAS)
        robot, ticker = self._robot, Ticker(1 / 30)
        while not robot._over.is_set():
            if not robot.faults.camera:
                with robot._lock:
                    stamp = time.monotonic()
                    self._views.take()
                images = {name: (stamp, image) for name, image in self._views.draw().items()}
                with robot._lock:
                    robot._images = images
            ticker.wait()
        with contextlib.suppress(Exception):
            self._views.close()


def simulated(task: str, cfg: ServerConfig, **how: Any) -> tuple[SimRobot, ServerConfig]:
    """The simulated robot of a task, "arm/panda-pick", and how it is served: as its task says, but for what the configuration does."""
    robot, usual = SimRobot(task, **how), ServerConfig()
    old = 3 * (how.get("latency", 0.0) + how.get("jitter", 0.0))  # s: what is ordered late is not stale
    own = {"name": task.partition("/")[2], **robot.body.served}
    given = {name: value for name, value in own.items() if getattr(cfg, name) == getattr(usual, name)}
    return robot, replace(cfg, **given, stale=max(cfg.stale, old))
