"""Who keeps a robot safe while others command it: modes, latched faults, the watchdog, the way to start and park; one `tick` at a time.

The robot is `armed` (it follows), `held` (something was wrong: it braked and stays where its last command left it), on its way to be
`parked`, or parked. From anywhere but armed only a person's `arm` leads back, and only once the cause is gone. What a person or the robot's
own button has stopped, and what may have been without drives or eyes, moves for nobody else: not even to park, see `Keeper.park`.

The control thread calls `tick`; any thread may call the rest. Nothing in here knows of networks; time is what the clock says.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from realrl.robots.driver import Driver, Held, Recovers, Tasked, checked
from realrl.robots.log import ServerLog, Tick, numbers
from realrl.robots.motion import PAUSE, MotionGuard, Sent
from realrl.robots.orders import Answer, Client, Reference, pose
from realrl.robots.settings import ServerConfig
from realrl.robots.watch import REPORTS, Watch
from realrl.types import Array, RealrlError

Mode = Literal["armed", "held", "parking", "parked"]
BAD = 3  # actions in a row that make no sense
AGED = 0.15  # s: what a person's device said longer ago is not what they want now
BACK = 0.3  # s: so far back along its way a robot goes that pushed too hard
QUIET = 2  # ticks without a command, after which a motion may begin anew
STOOD = 3.0  # s without a tick: what was asked for before that nobody may want any longer


class Keeper:
    """One robot. `deliver` is called with every answer to its commander, mostly from the control thread."""

    def __init__(self, driver: Driver, cfg: ServerConfig, log: ServerLog, *, clock: Callable[[], float] = time.monotonic,
                 deliver: Callable[[Answer], None] = lambda answer: None) -> None:
        self.driver, self.cfg, self.log, self._clock, self.deliver = checked(driver, cfg.name), cfg, log, clock, deliver
        self.channels = tuple(driver.channels)
        box = (np.array(cfg.workspace[:3]), np.array(cfg.workspace[3:])) if cfg.workspace else None
        self.guard = MotionGuard(self.channels, 1 / cfg.ticks, tip=getattr(driver, "tip", None), box=box)
        self.start = pose(cfg.start, self.guard, f"{cfg.name}: start")
        self.rest = pose(cfg.park, self.guard, f"{cfg.name}: park")
        if len(cfg.stall) not in (0, len(self.channels)):
            raise RealrlError(f"{cfg.name}: stall {list(cfg.stall)} must be {len(self.channels)} numbers, one a channel ("
                              f"{', '.join(c.name for c in self.channels)}), or be left out")
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
        self._client = Client()
        self._reference: Reference | None = None
        self._places: deque[tuple[float, Array]] = deque(maxlen=int(BACK * cfg.ticks) + 1)
        self._since = clock()  # nobody commands since
        self._last: float | None = None
        self._ticked = np.inf  # when the last tick ended
        self._limited = np.zeros(len(self.channels), bool)
        self.led = False  # whether somebody is there who may command
        self._alone = True
        self._loose = True  # whether it may have moved by itself, or been moved, since it was commanded
        self._trouble: Mapping[str, str] = {}  # at the newest tick
        self._quiet = QUIET  # ticks since something was sent
        self.late_ticks = self.overruns = self.limits = 0

    # ---- what people and commanders ask for

    @property
    def alone(self) -> bool:
        """Whether it may park without a person's word."""
        return self._alone

    def arm(self) -> None:
        """A person says that all is well: what the robot itself latched is cleared, where its driver can. Raises Held where it is not."""
        if self.mode != "armed" and isinstance(self.driver, Recovers):
            self._must("recover")  # this may take a second; the control loop goes on
        with self._lock:
            trouble = self.watch.wrong_now(self._clock())
            if self.mode == "armed":
                return
            if trouble:
                raise Held(f"the robot cannot be armed: {trouble}; mend that first")
            assert self.watch.reading is not None
            self._reference, there = None, self.watch.reading.measured
            self._gather(there)
            self._must("hold")
            self.watch.forget()
            self.faults, self.mode, self.running, self.phase, self._alone = {}, "armed", False, "", True
            self._client = Client(seq=self._client.seq, sent=np.zeros(len(self.channels)))
            self._since = self._clock()
            self._places.clear()
            self.log.event("armed", at=numbers(self.guard.place))

    def _gather(self, there: Array) -> None:
        """Begin from where the robot is [C]. What has held it all the time goes on, without a jump; what may have let it go does not send
        it back. Raises Held while it brakes, RealrlError where it is outside its limits."""
        if self._loose:
            if self._quiet < QUIET:
                raise Held("the robot still brakes: arm it once it stands")
            self.guard.reset(there)
        elif not self.guard.near(there):  # pushed away against its drives
            self._go(self.guard.fits(there), self.cfg.pace)
        self._loose = False

    def stop(self, who: str, why: str = "") -> None:
        """Brake and hold, from whomever; it does not even park until a person says so."""
        with self._lock:
            self._alone = False
            self.latch("stop", f"{who} pressed stop" + f": {why}" * bool(why))

    def park(self, who: str, *, person: bool = False) -> bool:
        """Go to rest, slowly; whether it does. What was stopped does so for a person alone. Raises Held where something is in a person's
        way."""
        with self._lock:
            wrong = self._in_the_way() if self._alone or person else "; ".join(self.faults.values())
            if wrong and self.mode not in ("parking", "parked"):
                self.log.event("not parked", who=who, why=wrong)
                if self.mode == "armed":
                    self.latch("parked", f"{who} would have parked it")
                if person:
                    raise Held(f"the robot cannot park: {wrong}; mend that first")
                return False
            self.faults.setdefault("parked", f"{who} parked it")
            if self.mode == "armed":
                self.latch("parked", f"{who} parked it")
            if (wrong := self._park()) and person:
                raise Held(f"the robot cannot park: {wrong}")
            return self.mode in ("parking", "parked")

    def latch(self, name: str, why: str) -> None:
        """Something is wrong: brake, hold, and follow nobody until a person arms again."""
        with self._lock:
            if name not in self.faults:
                self.faults[name] = why
                self.log.event("fault", name=name, why=why, mode=self.mode)
            self._reference = None  # of a step back, too
            if self.mode in ("armed", "parking"):
                self.mode, self._since = "held", self._clock()
                self._end(why)
                self._try("brake")

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
            self._last, self._trouble = now, trouble
            self.late_ticks += late > 1 / self.cfg.ticks
            self._judge(trouble, now)
            if now - self._ticked > STOOD and (self.running or self.phase or self._reference is not None):
                self.latch("late", f"the control loop stood still for {now - self._ticked:.1f} s")
            sent = self._command(now, dt, trouble)
            if sent is not None:
                self._limited |= sent.bits
                self.limits += bool(sent.bits.any())
                self._places.append((now, self.guard.place))
            self._answer(now)
            self._log(now, late, sent)
            self._ticked = self._clock()
        self._quiet = self._quiet + 1 if sent is None else 0
        if sent is None:
            self.watch.idle()
        else:
            self.watch.write(sent.command, now)

    def _judge(self, trouble: Mapping[str, str], now: float) -> None:
        """Latch what is wrong: with the robot, and with whoever commands it."""
        if self.mode == "parked":
            return
        for name, why in trouble.items():
            away = name == "readings" or _reported(name, why)
            self._loose, self._alone = self._loose or away or name == "stall", self._alone and not away
            if name not in self.faults:
                back = name in ("force", "stall") and self.mode == "armed"
                self.latch(name, why)
                if back:
                    self._retract(name)
        if self.mode == "parking" and (wrong := self._in_the_way()):
            self.latch("parking", wrong)
            self.faults.pop("parking")  # it has a name already
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
        reference, let_go = self._reference, self._loose and self.mode == "held"
        if let_go and reference is not None and self._arrived(now, reference):
            reference = self._reference = None  # it has stepped back
        if self.mode == "parked" or self.guard.now is None or (let_go and reference is None and self.guard.still):
            return None
        brakes = self.watch.blind or any(_reported(name, why) for name, why in trouble.items())
        if reference is not None and (brakes or dt > PAUSE / self.cfg.ticks) and (self.phase or self.mode != "armed"):
            reference.begun += dt  # its own ways are gone slowly, whatever kept it: not to where it should be by now
        if reference is None or brakes:
            return self.guard.brake(dt)
        sent = self.guard.follow(*reference.at(now), dt, reference.goal)
        if self.mode == "parking" and self._arrived(now, reference):
            self._rest()
        return sent

    def _rest(self) -> None:
        """It has arrived where it rests."""
        wrong = self._try("park")
        if wrong:  # nothing holds it but its drives
            self._alone = False
            self.latch("park", wrong)
            return
        self.mode, self._loose = "parked", True
        if "hot" in self.faults:
            self._try("release")
        self.log.event("parked", at=numbers(self.guard.place))

    def _answer(self, now: float) -> None:
        """Tell the commander what it waits for, when it is time."""
        if self.phase:
            self._set_up(now)
        mine = self._client
        if mine.due is None or now < mine.due - 0.5 / self.cfg.ticks or self.mode != "armed":
            return
        reward, terminated, success = 0.0, False, False
        if isinstance(self.driver, Tasked):
            try:
                reward, terminated, success = self.driver.outcome()
            except Exception as error:  # a cell's own mistakes must not leave its robot without anybody who brakes it
                self.latch("cell", f"the cell could not judge: {error!r}")
                return
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
                try:
                    self.driver.begin(self._seed)
                except Exception as error:  # as above
                    self.latch("cell", f"the cell could not set itself up: {error!r}")
                    return
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

    def _in_the_way(self) -> str:
        """What it cannot park for, in words, "" for nothing: it needs no eyes, and may be hot."""
        return "; ".join(why for name, why in self._trouble.items() if name != "hot" and not name.startswith("camera"))

    def _park(self) -> str:
        """Set out for where it rests; why it does not, "" where it does."""
        if self.mode in ("parking", "parked") or self.guard.now is None or self._in_the_way():
            return self._in_the_way()
        try:
            self._gather(self.watch.newest().measured)
        except RealrlError as error:
            self._since = self._clock()  # and tries again, where it may
            return str(error)
        self.mode = "parking"
        self.log.event("parking")
        goal = self.guard.place if self.rest is None else self.rest
        self._go(np.where(self._speeds, self.guard.place, goal), self.cfg.pace / 2)
        return ""

    def _retract(self, why: str) -> None:
        """Back along the way: to where it came from where it pushed, to where it is where it cannot move."""
        reading = self.watch.reading
        if why == "stall" and reading is not None:
            goal = np.clip(reading.measured, self.guard.low, self.guard.high)
        else:
            goal = self._places[0][1] if self._places else self.guard.place
        self._go(goal, self.cfg.pace)
        self.log.event("back", to=numbers(goal))

    # ---- a driver's own mistakes

    def _try(self, what: str) -> str:
        """Call a function of the driver: what went wrong, in words, "" for nothing."""
        try:
            getattr(self.driver, what)()
        except Exception as error:  # what vendors raise is in no contract
            self.log.event(f"{what} failed", error=repr(error))
            return f"the driver's {what} failed: {error!r}"
        return ""

    def _must(self, what: str) -> None:
        """Call a function of the driver that a person waits for. Raises Held."""
        if wrong := self._try(what):
            raise Held(f"the robot cannot be armed: {wrong}; mend that first")

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


def _reported(name: str, why: str) -> bool:
    """Whether trouble is what the robot itself says, and so bad that nothing moves it: its drives may be cut."""
    return name != "hot" and why.startswith(REPORTS)
