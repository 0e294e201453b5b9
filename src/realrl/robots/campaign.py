"""Twenty faults, ordered on purpose on a simulated robot while it works, and judged by what its server's own log says.

A served robot is a process of its own here, as on a real cell; clients are killed, packets lost, buttons pressed. Of each trial is asked:
was it noticed, and how soon; was the reaction the right one; did any command leave the limits; did an episode end that should have gone
on. See docs/howto/your-robot.md for the table of faults.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from realrl.robots.client import Link
from realrl.robots.clock import CLIENT, urgent
from realrl.robots.driver import Channel
from realrl.robots.log import Tick, read_events, read_ticks
from realrl.types import Array, RealrlError

QUIET = 0.4  # s of work before a fault
TOLERANCE = 0.01  # of a limit: stamps of ticks are not exact
_CLIENT = """
import sys, time, numpy as np
from realrl.robots.client import Link
link = Link(sys.argv[1], "commander")
print("here", flush=True)
for seq in range(1, 10**6):
    link.send({"type": "act", "epoch": link.epoch, "seq": seq, "action": np.array([0.01, 0.0, 0.0, 0.0]) * np.sin(seq / 9)})
    link.receive(5)
"""

_VIEWER = """
import sys, time
from realrl.robots.client import Link
link = Link(sys.argv[1], "watcher")
print("here", flush=True)
while True:
    link.send({"type": "look"})
    time.sleep(1e-3)
"""


class Rig:
    """A served simulated robot, a person and a commander. url: of its server."""

    def __init__(self, task: str, folder: Path, cameras: Sequence[str] = ()) -> None:
        self.task, self.folder, self.cameras = task, folder, tuple(cameras)
        self.process: subprocess.Popen[str] | None = None
        self.log = folder
        self.restart()

    def restart(self) -> None:
        """A server anew."""
        before = set(self.folder.iterdir()) if self.folder.is_dir() else set()
        while (name := self.folder / time.strftime("%Y%m%d-%H%M%S")) in before:  # its log's folder is called after the second
            time.sleep(0.1)
        self.process = subprocess.Popen([sys.executable, "-m", "realrl", "robot", "serve", "--sim", self.task, "--port", "0", "--log",
                                         str(self.folder), "--cameras", *self.cameras], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None and name is not None
        for line in self.process.stdout:
            if found := re.search(r"ws://\S+", line):
                self.url = found[0]
                break
        else:
            raise RealrlError(f"the simulated robot's server ended with {self.process.wait()}: try realrl robot serve --sim {self.task}")
        self.log = max(set(self.folder.iterdir()) - before)
        self.person = Link(self.url, "person")
        self.commander: Link | None = None
        self.seq = 0
        self.about = self.person.welcome["robot"]

    def close(self) -> None:
        """End everything."""
        self.leave()
        self.person.close()
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(40)

    def leave(self) -> None:
        """The commander says goodbye."""
        if self.commander is not None:
            with contextlib.suppress(RealrlError):
                self.commander.send({"type": "bye", "epoch": self.commander.epoch})
            self.commander.close()
            self.commander = None

    def status(self) -> dict[str, Any]:
        """What the server says now."""
        return self.person.ask({"type": "status"})

    def inject(self, name: str, value: float = 1.0) -> None:
        """Break something."""
        self.person.ask({"type": "fault", "name": name, "value": value})

    def armed(self) -> None:
        """All is well, and somebody commands."""
        self.inject("none")
        until = time.monotonic() + 30
        while True:
            try:
                if self.status()["mode"] == "armed" or self.person.ask({"type": "arm"})["mode"] == "armed":
                    break
            except RealrlError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
        if self.commander is None:
            self.commander, self.seq = Link(self.url, "commander"), 0
            urgent(CLIENT, *threading.enumerate())  # what is on trial is the server, not how busy this computer is

    def act(self, action: Array, **more: Any) -> bool:
        """An action and its period; whether it was answered."""
        assert self.commander is not None
        self.seq += 1
        try:
            self.commander.send({"type": "act", "epoch": self.commander.epoch, "seq": self.seq, "action": action, **more})
            while self.commander.receive(2.0, self.seq).get("seq", -2) < self.seq:
                pass
        except RealrlError:
            return False
        return True

    def pause(self) -> None:
        """The episode is over: nobody has to be heard."""
        if self.commander is not None:
            self.commander.send({"type": "end", "epoch": self.commander.epoch})

    def work(self, seconds: float, rng: np.random.Generator, **more: Any) -> bool:
        """Move about for a while, at least a step; whether every action was answered."""
        high = np.array(self.about["high"])
        way, until = rng.uniform(-1, 1, len(high)) * high, time.monotonic() + seconds
        while True:
            way = np.clip(0.8 * way + 0.4 * rng.uniform(-1, 1, len(high)) * high, -high, high)
            if not self.act(way, **more):
                return False
            if time.monotonic() >= until:
                return True


@dataclass(frozen=True)
class Kind:
    """A fault. do: makes it happen, gives the time when it did; event: what the log must then say (a fault's name, or an event's); within:
    s; stops: whether the robot is then held (else the episode goes on)."""

    number: int
    name: str
    do: Callable[[Rig, np.random.Generator], float]
    event: str
    within: float
    stops: bool


@dataclass(frozen=True)
class Trial:
    """What the server's log says of one fault. noticed: s until the event, None where it never came; lost: an episode ended that should
    have gone on; unsafe: commands beyond a limit since the trial before."""

    number: int
    name: str
    noticed: float | None
    reacted: bool
    lost: bool
    unsafe: int


def injected(name: str, value: float, lasts: float) -> Callable[[Rig, np.random.Generator], float]:
    """Breaks the simulated robot while it works."""
    def do(rig: Rig, rng: np.random.Generator) -> float:
        begun = time.monotonic()
        rig.inject(name, value)
        rig.work(lasts, rng)
        return begun
    return do


def blocked(rig: Rig, rng: np.random.Generator) -> float:
    """The drives do not push, and the arm is asked to go to the other side."""
    begun = time.monotonic()
    rig.inject("stall")
    way = np.zeros(len(rig.about["high"]))
    way[1] = -np.sign(rig.status()["measured"]["y"] or 1.0) * rig.about["high"][1]
    while time.monotonic() < begun + 1.5 and rig.act(way):
        pass
    return begun


def client_dies(rig: Rig, rng: np.random.Generator) -> float:
    """Another process commands, and is killed or stopped."""
    rig.leave()
    process = subprocess.Popen([sys.executable, "-c", _CLIENT, rig.url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(QUIET + 0.2 * float(rng.random()))
    begun = time.monotonic()
    os.kill(process.pid, signal.SIGKILL if rng.random() < 0.5 else signal.SIGSTOP)
    time.sleep(0.6)
    process.kill()
    process.wait()
    return begun


def server_dies(rig: Rig, rng: np.random.Generator) -> float:
    """The server is killed, and another started."""
    assert rig.process is not None
    rig.process.kill()
    rig.process.wait()
    rig.act(np.zeros(len(rig.about["high"])))
    begun = time.monotonic()
    rig.person.close()
    rig.commander = None
    rig.restart()
    return begun


def server_ends(rig: Rig, rng: np.random.Generator) -> float:
    """The server is asked to end, in the middle of work."""
    assert rig.process is not None
    begun = time.monotonic()
    rig.process.terminate()
    rig.process.wait(40)
    return begun


def senseless(rig: Rig, rng: np.random.Generator) -> float:
    """Three actions that are none."""
    begun, n = time.monotonic(), len(rig.about["high"])
    bad = [np.full(n, np.nan), np.zeros(n + 1), np.full(n, np.inf)]
    for _ in range(3):
        rig.act(bad[int(rng.integers(3))])
    return begun


def far(rig: Rig, rng: np.random.Generator) -> float:
    """The first command is far away."""
    begun = time.monotonic()
    rig.leave()
    rig.armed()
    for _ in range(8):
        rig.act(rng.choice([-1e3, 1e3], len(rig.about["high"])))
    return begun


def handed(first: int, then: int) -> Callable[[Rig, np.random.Generator], float]:
    """Somebody else acts from one step to the next, and wants to go the other way."""
    def do(rig: Rig, rng: np.random.Generator) -> float:
        high = np.array(rig.about["high"]) * rng.choice([-1, 1], len(rig.about["high"]))
        for _ in range(6):
            rig.act(high, source=first)
        begun = time.monotonic()
        for _ in range(6):
            rig.act(-high, source=then)
        return begun
    return do


def unplugged(rig: Rig, rng: np.random.Generator) -> float:
    """The device says what it said a while ago."""
    begun = time.monotonic()
    for _ in range(5):
        rig.act(np.array(rig.about["high"]), source=1, age=0.2 + float(rng.random()))
    return begun


def second(rig: Rig, rng: np.random.Generator) -> float:
    """Another commander."""
    begun = time.monotonic()
    with contextlib.suppress(RealrlError), Link(rig.url, "commander"):
        pass
    return begun


def overrun(rig: Rig, rng: np.random.Generator) -> float:
    """The client thinks for up to two periods too long."""
    begun, period = time.monotonic(), 1 / rig.about["fps"]
    for _ in range(4):
        rig.act(np.array(rig.about["high"]) * 0.5)
        time.sleep(period * (1.0 + 0.9 * float(rng.random())))
    return begun


def reordered(rig: Rig, rng: np.random.Generator) -> float:
    """Old messages come again."""
    assert rig.commander is not None
    begun = time.monotonic()
    for _ in range(5):
        rig.act(np.array(rig.about["high"]) * 0.3)
        rig.commander.send({"type": "act", "epoch": rig.commander.epoch, "seq": int(rng.integers(rig.seq)),
                            "action": -np.array(rig.about["high"])})
    return begun


def cornered(rig: Rig, rng: np.random.Generator) -> float:
    """Full speed into the limits."""
    begun, way = time.monotonic(), rng.choice([-1.0, 1.0], len(rig.about["high"])) * np.array(rig.about["high"])
    way[2] = abs(way[2])  # not into the table: that is another fault
    for _ in range(40):
        rig.act(way)
    return begun


def slow_viewer(rig: Rig, rng: np.random.Generator) -> float:
    """Somebody in another process asks for everything and reads nothing."""
    rig.pause()
    with subprocess.Popen([sys.executable, "-c", _VIEWER, rig.url], stdout=subprocess.PIPE, text=True) as viewer:
        assert viewer.stdout is not None
        viewer.stdout.readline()
        begun = time.monotonic()
        rig.work(1.0, rng)
        viewer.kill()
    return begun


def some(*ways: Callable[[Rig, np.random.Generator], float]) -> Callable[[Rig, np.random.Generator], float]:
    """One of several ways."""
    return lambda rig, rng: ways[int(rng.integers(len(ways)))](rig, rng)


KINDS = (
    Kind(1, "client dead or hung", client_dies, "commander", 0.35, True),
    Kind(2, "server dead, started again", server_dies, "armed", 60.0, False),
    Kind(3, "actions NaN or of a wrong size", senseless, "actions", 0.4, True),
    Kind(4, "encoders NaN or frozen", some(injected("nan", 1, 0.5), injected("frozen", 1, 0.6)), "readings", 0.6, True),
    Kind(5, "camera stands still", injected("camera", 1, 0.9), "camera front", 0.75, True),
    Kind(6, "packets lost", injected("loss", 0.05, 1.0), "", 0.0, False),
    Kind(7, "first command far away", far, "", 0.0, False),
    Kind(8, "takeover mismatch", handed(0, 1), "source", 0.1, False),
    Kind(9, "hand-back", handed(1, 0), "source", 0.1, False),
    Kind(10, "device unplugged, deflected", unplugged, "unfit", 0.1, False),
    Kind(11, "two commanders", second, "refused", 0.5, False),
    Kind(12, "overrun", overrun, "", 0.0, False),
    Kind(13, "old messages, again and out of order", reordered, "dropped", 0.2, False),
    Kind(14, "drives stall", blocked, "stall", 1.2, True),
    Kind(14, "drives hot", injected("hot", 1, 0.3), "hot", 0.1, True),
    Kind(15, "force", injected("push", 60, 0.4), "force", 0.2, True),
    Kind(16, "into the limits", cornered, "", 0.0, False),
    Kind(17, "emergency stop", injected("estop", 1, 0.3), "estop", 0.1, True),
    Kind(18, "server ended at work", server_ends, "released", 40.0, True),
    Kind(20, "viewer that reads nothing", slow_viewer, "", 0.0, False),
)


def campaign(rig: Rig, times: int, *, only: Sequence[int] = (), seed: int = 0) -> Iterator[Trial]:
    """Every kind of fault so many times, in turn."""
    rng = np.random.default_rng(seed)
    for _ in range(times):
        for kind in KINDS:
            if (only and kind.number not in only) or (kind.event.startswith("camera") and not rig.cameras):
                continue
            yield _trial(rig, kind, rng)


def _trial(rig: Rig, kind: Kind, rng: np.random.Generator) -> Trial:
    rig.armed()
    since = time.monotonic()
    rig.work(QUIET, rng)
    log = rig.log
    begun = kind.do(rig, rng)
    if not kind.stops:
        rig.pause()
    well = kind.stops or rig.status()["mode"] == "armed"
    if kind.do is server_dies:
        log, since = rig.log, 0.0
    noticed = _noticed(log, kind.event, begun) if kind.event else 0.0
    reacted = noticed is not None and noticed <= max(kind.within, 1e-9)
    if kind.do is server_ends:
        reacted = reacted and _order(log) == ["parked", "released"]
        rig.commander = None
        rig.person.close()
        rig.restart()
    elif kind.stops:
        reacted = reacted and _stays_held(rig)
    ticks = [t for t in read_ticks(log) if t.time >= since]
    return Trial(kind.number, kind.name, noticed if kind.event else None, reacted, not well, unsafe(ticks, channels(rig.about)))


def _noticed(log: Path, what: str, begun: float, patience: float = 3.0) -> float | None:
    """s until the log says something."""
    until = time.monotonic() + patience
    while True:
        with contextlib.suppress(OSError):
            for event in read_events(log):
                if event["time"] >= begun - 0.02 and what in (event["event"], event["event"] == "fault" and event["name"]):
                    return max(float(event["time"]) - begun, 0.0)
        if time.monotonic() > until:
            return None
        time.sleep(0.1)


def _order(log: Path) -> list[str]:
    return [e["event"] for e in read_events(log) if e["event"] in ("parked", "released", "left holding")][-2:]


def _stays_held(rig: Rig) -> bool:
    """The cause gone, it is still held: no fault clears itself."""
    rig.inject("none")
    time.sleep(0.3)
    return str(rig.status()["mode"]) != "armed"


def channels(about: dict[str, Any]) -> tuple[Channel, ...]:
    """The table of limits that a server tells."""
    return tuple(Channel(**c) for c in about["channels"])


def unsafe(ticks: Sequence[Tick], limits: Sequence[Channel]) -> int:
    """How many of the logged commands left a limit of place, speed, acceleration or jerk. Where nothing was commanded for a while (parked,
    held by hand) what follows is another motion."""
    if len(ticks) < 5:
        return 0
    at = np.array([t.command for t in ticks])
    dt = np.diff([t.time for t in ticks])[:, None]
    low, high, velocity, acceleration, jerk = (np.array([getattr(c, name) for c in limits])
                                               for name in ("low", "high", "velocity", "acceleration", "jerk"))
    bad = np.zeros(len(ticks), bool)
    bad |= ((at < low - 1e-6) | (at > high + 1e-6)).any(1)
    going = (dt[:, 0] > 1e-4) & (dt[:, 0] < 0.015)  # what the guard takes as one motion
    v = np.diff(at, axis=0) / np.maximum(dt, 1e-4)
    bad[1:] |= going & (np.abs(v) > velocity * (1 + TOLERANCE)).any(1)
    a = np.diff(v, axis=0) / ((dt[1:] + dt[:-1]) / 2)
    both = going[1:] & going[:-1]
    bad[2:] |= both & (np.abs(a) > acceleration * (1 + TOLERANCE)).any(1)
    j = np.diff(a, axis=0) / ((dt[2:] + dt[1:-1] + dt[:-2]) / 3)
    bad[3:] |= both[1:] & both[:-1] & (np.abs(j) > jerk * (1 + TOLERANCE)).any(1)
    return int(bad.sum())


def table(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """A row a fault: how often, noticed (median and most, ms), reacted, limits left, episodes lost."""
    rows = []
    for name in dict.fromkeys(t.name for t in trials):
        own = [t for t in trials if t.name == name]
        seen = [1e3 * t.noticed for t in own if t.noticed is not None]
        median, most = (round(float(np.median(seen)), 1), round(max(seen), 1)) if seen else (None, None)
        rows.append({"number": own[0].number, "fault": name, "times": len(own), "median_ms": median, "most_ms": most,
                     "right": sum(t.reacted for t in own), "unsafe": sum(t.unsafe for t in own), "lost": sum(t.lost for t in own)})
    return rows
