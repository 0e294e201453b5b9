"""Who keeps a robot safe while others command it: modes, latched faults, the watchdog, the way to start and park; one `tick` at a time.

The robot is `armed` (it follows), `held` (something was wrong: it braked and stays where its last command left it), on its way to be
`parked`, or parked. From anywhere but armed only a person's `arm` leads back, and only once the cause is gone.

The control thread calls `tick`; any thread may call the rest. Nothing in here knows of networks; time is what the clock says.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from realrl.robots.driver import Driver, Held, Reading, Recovers, Tasked, checked
from realrl.robots.log import ServerLog, Tick, numbers
from realrl.robots.motion import MotionGuard, Sent
from realrl.robots.settings import ServerConfig
from realrl.robots.watch import REPORTS, Watch
from realrl.types import Array, RealrlError

Mode = Literal["armed", "held", "parking", "parked"]
BAD = 3  # actions in a row that make no sense
AGED = 0.15  # s: what a person's device said longer ago is not what they want now
BACK = 0.3  # s: so far back along its way a robot goes that pushed too hard


@dataclass
class Reference:
    """The place to be [C] goes evenly from one to another, then stays. begun: s; lasts: [C] s."""

    place: Array
    goal: Array
    begun: float
    lasts: Array

    def at(self, now: float) -> tuple[Array, Array]:
        """(place [C], rate [C]) at a time."""
        lasts = np.maximum(self.lasts, 1e-9)
        share = np.clip((now - self.begun) / lasts, 0.0, 1.0)
        return self.place + share * (self.goal - self.place), np.where(share < 1, (self.goal - self.place) / lasts, 0.0)


@dataclass
class Answer:
    """What a commander is told after its action (or its reset). proposed, sent: [C], as actions are given; limited: which limits bit
    since the last answer; late: s that the action came after its time."""

    seq: int
    reading: Reading
    sent: Array
    limited: Array
    reward: float = 0.0
    terminated: bool = False
    success: bool = False
    late: float = 0.0
    failed: str = ""


@dataclass
class _Client:
    """The commander's part of the state. seq: of its newest action; due: when it is answered, None: nothing is owed."""

    seq: int = -1
    due: float | None = None
    answered: float = 0.0
    late: float = 0.0
    bad: int = 0
    sent: Array = field(default_factory=lambda: np.zeros(0))
    source: int = 0


class Keeper:
    """One robot. `deliver` is called with every answer to its commander, mostly from the control thread."""

    def __init__(self, driver: Driver, cfg: ServerConfig, log: ServerLog, *, clock: Callable[[], float] = time.monotonic,
                 deliver: Callable[[Answer], None] = lambda answer: None) -> None:
        self.driver, self.cfg, self.log, self._clock, self.deliver = checked(driver, cfg.name), cfg, log, clock, deliver
        self.channels = tuple(driver.channels)
        box = (np.array(cfg.workspace[:3]), np.array(cfg.workspace[3:])) if cfg.workspace else None
        self.guard = MotionGuard(self.channels, 1 / cfg.ticks, tip=getattr(driver, "tip", None), box=box)
        self.start = _pose(cfg.start, self, "start")
        self.rest = _pose(cfg.park, self, "park")
        self._steps = np.array([np.inf if c.step is None else c.step for c in self.channels])
        self._leads = np.array([np.inf if c.lead is None else c.lead for c in self.channels])
        self._speeds = np.array([c.kind == "velocity" for c in self.channels])
        self.watch = Watch(driver, cfg, self.guard)
        self._lock = threading.RLock()
        self.mode: Mode = "held"
        self.faults: dict[str, str] = {"new": "the server has just started"}
        self.running = False  # an episode is under way: its commander has to be heard
        self.phase: Literal["", "moving", "waiting", "ready", "looking"] = ""  # of a reset
        self._begun = 0.0  # when the scene was set up
        self.episode = 0
        self._seed = 0
        self._client = _Client()
        self._reference: Reference | None = None
        self._places: deque[tuple[float, Array]] = deque(maxlen=int(BACK * cfg.ticks) + 1)
        self._since = clock()  # nobody commands since
        self._last: float | None = None
        self._limited = np.zeros(len(self.channels), bool)
        self.led = False  # whether somebody is there who may command
        self._alone = True  # whether it may park without being told
        self.late_ticks = self.overruns = self.limits = 0

    # ---- what people and commanders ask for

    def arm(self) -> None:
        """A person says that all is well: what the robot itself latched is cleared, where its driver can. Raises Held where it is not."""
        if self.mode != "armed" and isinstance(self.driver, Recovers):
            self.driver.recover()  # this may take a second; the control loop goes on
        with self._lock:
            trouble = self.watch.wrong_now(self._clock())
            if self.mode == "armed":
                return
            if trouble:
                raise Held(f"the robot cannot be armed: {trouble}; mend that first")
            assert self.watch.reading is not None
            self.guard.reset(self.watch.reading.measured)
            self.driver.hold()
            self.watch.forget()
            self.faults, self.mode, self.running, self.phase, self._alone = {}, "armed", False, "", True
            self._reference, self._client = None, _Client(seq=self._client.seq, sent=np.zeros(len(self.channels)))
            self._since = self._clock()
            self._places.clear()
            self.log.event("armed", at=numbers(self.guard.place))

    def stop(self, who: str) -> None:
        """Brake and hold, from whomever; it does not even park until a person says so."""
        with self._lock:
            self._alone = False
            self.latch("stop", f"{who} pressed stop")

    def park(self, who: str) -> None:
        """Go to rest."""
        with self._lock:
            self.faults.setdefault("parked", f"{who} parked it")
            if self.mode == "armed":
                self.latch("parked", f"{who} parked it")
            self._park()

    def latch(self, name: str, why: str) -> None:
        """Something is wrong: brake, hold, and follow nobody until a person arms again."""
        with self._lock:
            if name not in self.faults:
                self.faults[name] = why
                self.log.event("fault", name=name, why=why, mode=self.mode)
            if self.mode in ("armed", "parking"):
                self.mode, self._since = "held", self._clock()
                self._end(why)
                self.driver.brake()
                self._reference = None

    def reset(self, seed: int, seq: int = 0) -> None:
        """Go to the start, set the scene up; answered when an episode may begin. seq: of the asking. Raises Held."""
        with self._lock:
            self._must_follow()
            self._end("")
            self._client.seq = max(self._client.seq, seq)
            self._seed, self.phase, self.episode = seed, "moving", self.episode + 1
            self._since = self._clock()
            self._go(self.start if self.start is not None else self.guard.place, self.cfg.pace)
            self.log.event("reset", seed=seed, episode=self.episode)

    def ready(self) -> None:
        """A person has set the scene up."""
        with self._lock:
            if self.phase == "waiting":
                self.phase = "ready"

    def act(self, seq: int, action: Array, *, source: int = 0, age: float = 0.0) -> None:
        """A commander's action [C], answered a period later. What is old or out of order is dropped. Raises Held."""
        with self._lock:
            self._must_follow()
            now, mine = self._clock(), self._client
            if seq <= mine.seq:
                self.log.event("dropped", seq=seq, newest=mine.seq)
                return
            if self.phase:
                raise Held("the robot is on its way to the start: wait for the answer to the reset")
            period, first = 1 / self.cfg.fps, not self.running
            mine.seq, self.running = seq, True
            mine.late = 0.0 if first else max(now - mine.answered - period, 0.0)
            self.overruns += mine.late > 0
            mine.due = now + period if first else max(mine.answered + period, now + period / 2)
            if mine.source != source:
                mine.source = source
                self.log.event("source", source=source, seq=seq)
                self._reference = None  # who takes over begins from where the robot is
            self._take(np.asarray(action, np.float64), age, now)

    def _take(self, action: Array, age: float, now: float) -> None:
        """Make an action the place to go to; hold where it cannot be one."""
        mine, fits = self._client, action.shape == (len(self.channels),) and bool(np.isfinite(action).all())
        mine.bad = 0 if fits else mine.bad + 1
        at = self.guard.place
        mine.sent = np.where(np.isfinite(self._steps) | self._speeds, 0.0, at)
        if not fits or age > AGED:
            self.log.event("unfit", seq=mine.seq, why=f"{age:.2f} s old" if fits else "not finite, or of another size")
            self._reference = None
            if mine.bad >= BAD:
                self.latch("actions", f"{BAD} actions in a row were not finite, or of another size")
            return
        was, here = at if self._reference is None else self._reference.goal, self.watch.newest().measured
        was = np.clip(was, here - self._leads, here + self._leads)
        steps = np.isfinite(self._steps)
        wish = np.where(steps, was + np.clip(action, -self._steps, self._steps), action)
        if self._speeds.any():
            wish = np.where(self._speeds, at + np.clip(action, -self.guard.velocity, self.guard.velocity) / self.cfg.fps, wish)
        goal = np.clip(wish, self.guard.low, self.guard.high)
        mine.sent = np.where(steps, goal - was, np.where(self._speeds, (goal - at) * self.cfg.fps, goal))
        begin, guard = at if self._reference is None else self._reference.at(now)[0], self.guard
        speed = np.minimum(np.abs(goal - begin) * self.cfg.fps, guard.velocity)
        brakes = speed / (2 * guard.acceleration) + guard.acceleration / (2 * guard.jerk)  # s: so much later it is there, that whoever
        self._reference = Reference(begin, goal, now, 1 / self.cfg.fps + brakes)  # streams actions is not braked between two of them

    def finish(self) -> None:
        """The episode is over, the robot holds, its commander may think."""
        with self._lock:
            self._end("")

    def enter(self) -> None:
        """Somebody has come who may command."""
        with self._lock:
            self.led = True

    def leave(self, why: str = "") -> None:
        """The commander is gone. why: where it did not say goodbye."""
        with self._lock:
            if why and (self.running or self.phase):
                self.latch("commander", why)
            self._end("")
            self._client.seq, self.led = -1, False
            self._since = self._clock()

    def _end(self, why: str) -> None:
        """Nobody is followed any longer. why: what the commander is told, where it did not end the episode itself."""
        mine, owed = self._client, self.running or bool(self.phase)
        self.running, self.phase, mine.due = False, "", None
        if owed and self.mode == "armed":
            self._reference = None
        if owed and why:
            self.deliver(Answer(mine.seq, self.watch.newest(), mine.sent, self._limited.copy(), failed=why))

    def _must_follow(self) -> None:
        if self.mode != "armed":
            why = "; ".join(self.faults.values()) or self.mode
            raise Held(f"the robot is {self.mode} ({why}): see to it, then arm it with `realrl robot arm`")

    # ---- one tick

    def tick(self, late: float = 0.0) -> None:
        """Read, judge, command, log: call it `cfg.ticks` times a second from one thread. late: s, for the log."""
        now = self._clock()
        trouble = self.watch.look(now)
        with self._lock:
            dt = 0.0 if self._last is None else now - self._last
            self._last = now
            self.late_ticks += late > 1 / self.cfg.ticks
            self._judge(trouble, now)
            sent = self._command(now, dt, trouble)
            if sent is not None:
                self._limited |= sent.bits
                self.limits += bool(sent.bits.any())
                self._places.append((now, self.guard.place))
            self._answer(now)
            self._log(now, late, sent)
        if sent is not None:
            self.watch.write(sent.command, now)

    def _judge(self, trouble: Mapping[str, str], now: float) -> None:
        """Latch what is wrong: with the robot, and with whoever commands it."""
        if self.mode == "parked":
            return
        for name, why in trouble.items():
            if name not in self.faults:
                back = name in ("force", "stall") and self.mode == "armed"
                self._alone = self._alone and (name == "hot" or not why.startswith(REPORTS))
                self.latch(name, why)
                if back:
                    self._retract(name)
        if self.mode == "armed" and self.running and self._client.due is None:
            silent = now - self._client.answered
            if silent > self.cfg.watchdog / self.cfg.fps:
                self.latch("commander", f"no action came for {silent:.2f} s")
        left = not self.running and not self.phase and now - self._since > self.cfg.park_after
        if left and self.mode == "armed" and not self.led:
            self.latch("idle", f"nobody commanded it for {self.cfg.park_after:g} s")
        if self.mode == "held" and self._alone and (left or "hot" in trouble):
            self._park()

    def _command(self, now: float, dt: float, trouble: Mapping[str, str]) -> Sent | None:
        """What to send at this tick; None: nothing."""
        if self.mode == "parked" or self.guard.now is None:
            return None
        reference = self._reference
        still = [name for name, why in trouble.items() if name != "hot" and why.startswith(REPORTS)]
        if self.mode == "parking":  # it needs no eyes
            still += [name for name in trouble if name != "hot" and not name.startswith("camera")]
        if reference is None or self.watch.blind or still:
            return self.guard.brake(dt)
        sent = self.guard.follow(*reference.at(now), dt, reference.goal)
        if self.mode == "parking" and self._arrived(now, reference):
            self.mode = "parked"
            self.driver.park()
            if "hot" in self.faults:
                self.driver.release()
            self.log.event("parked", at=numbers(self.guard.place))
        return sent

    def _answer(self, now: float) -> None:
        """Tell the commander what it waits for, when it is time."""
        if self.phase:
            self._set_up(now)
        mine = self._client
        if mine.due is None or now < mine.due - 0.5 / self.cfg.ticks or self.mode != "armed":
            return
        reward, terminated, success = self.driver.outcome() if isinstance(self.driver, Tasked) else (0.0, False, False)
        mine.answered = mine.due if now - mine.due < 1 / self.cfg.ticks else now  # deadlines do not add up lateness
        mine.due = None
        self.deliver(Answer(mine.seq, self.watch.newest(), mine.sent, self._limited.copy(), reward, terminated, success, mine.late))
        self._limited[:] = False

    def _set_up(self, now: float) -> None:
        """The steps of a reset."""
        if self.phase == "moving" and self._reference is not None and self._arrived(now, self._reference):
            self.phase = "waiting" if self.cfg.reset == "hand" else "ready"
            if self.phase == "waiting":
                self.log.event("waiting", why="a person sets the scene up, then says realrl robot ready")
        if self.phase == "ready":
            if isinstance(self.driver, Tasked):
                self.driver.begin(self._seed)
            self._begun, self.phase, self._reference = self._clock(), "looking", None
            self.watch.look(now)
        if self.phase == "looking" and self.watch.newest().stamp >= self._begun:  # the answer shows the scene that was set up
            self.phase = ""
            mine = self._client
            mine.sent, mine.due, mine.answered = self.still(), None, now
            self._limited[:] = False
            self.deliver(Answer(-1, self.watch.newest(), mine.sent, self._limited.copy()))

    def _arrived(self, now: float, reference: Reference) -> bool:
        near = np.abs(self.guard.place - reference.goal) <= 1e-3 * (self.guard.high - self.guard.low)
        return bool(now - reference.begun >= reference.lasts.max() and near.all() and self.guard.still)

    def _log(self, now: float, late: float, sent: Sent | None) -> None:
        if sent is None:
            return
        reading = self.watch.reading
        aim = self._reference.goal if self._reference is not None else self.guard.place
        self.log.tick(Tick(now, late, self.mode, numbers(reading.measured) if reading else [], numbers(aim), numbers(sent.command),
                           [*sent.bits.astype(int).tolist(), int(sent.workspace)], self._client.seq))

    # ---- ways to go by itself

    def _go(self, goal: Array, pace: float) -> None:
        here = self.guard.place
        lasts = (np.abs(goal - here) / (pace * self.guard.velocity)).max(initial=0.0)
        self._reference = Reference(here.copy(), np.array(goal), self._clock(), np.full(len(here), lasts))

    def _park(self) -> None:
        if self.mode in ("parking", "parked") or self.guard.now is None:
            return
        self.mode = "parking"
        self.log.event("parking")
        goal = self.guard.place if self.rest is None else self.rest
        self._go(np.where(self._speeds, self.guard.place, goal), self.cfg.pace / 2)

    def _retract(self, why: str) -> None:
        """Back along the way: to where it came from where it pushed, to where it is where it cannot move."""
        reading = self.watch.reading
        if why == "stall" and reading is not None:
            goal = np.clip(reading.measured, self.guard.low, self.guard.high)
        else:
            goal = self._places[0][1] if self._places else self.guard.place
        self._go(goal, self.cfg.pace)
        self.log.event("back", to=numbers(goal))

    def still(self) -> Array:
        """[C], the action that keeps the robot where it is."""
        return np.where(np.isfinite(self._steps) | self._speeds, 0.0, self.guard.place if self.guard.now is not None else 0.0)

    def status(self) -> Mapping[str, Any]:
        """For people."""
        with self._lock:
            reading = self.watch.reading
            measured = {} if reading is None else {c.name: round(float(x), 4) for c, x in zip(self.channels, reading.measured, strict=True)}
            return {"name": self.cfg.name, "mode": self.mode, "faults": dict(self.faults), "running": self.running, "phase": self.phase,
                    "episode": self.episode, "measured": measured, "late_ticks": self.late_ticks, "overruns": self.overruns,
                    "limited_ticks": self.limits, "flags": list(self.watch.flags), "log_lost": self.log.lost}


def _pose(given: tuple[float, ...], keeper: Keeper, what: str) -> Array | None:
    if not given:
        return None
    pose = np.array(given, np.float64)
    if pose.shape != keeper.guard.low.shape or not ((pose >= keeper.guard.low) & (pose <= keeper.guard.high)).all():
        raise RealrlError(f"{keeper.cfg.name}: {what} {list(given)} must be {len(keeper.channels)} numbers inside the limits of the "
                          f"channels {', '.join(f'{c.name} {c.low:g} to {c.high:g} {c.unit}' for c in keeper.channels)}")
    return pose
