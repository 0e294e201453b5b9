"""Twenty faults that a simulated robot can be made to have while it works, and the served robot on which they are ordered.

A served robot is a process of its own here, as on a real cell; clients are killed, packets lost, buttons pressed. What came of it is
judged in `realrl.cell.campaign`. See docs/howto/your-robot.md for the table of faults. One is none of the server's: a robot that was put
together wrongly does all that it is told, and only who lays it beside recordings of the right one sees that (`realrl.cell.preflight`).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from realrl.cell.preflight import preflight
from realrl.cell.rollout import rollout
from realrl.data.store import Store
from realrl.robots.client import Link, RobotClient
from realrl.robots.clock import CLIENT, hurried
from realrl.robots.driver import Held
from realrl.robots.guard import box_guard
from realrl.types import Array, Obs, Plan, RealrlError

QUIET = 0.4  # s of work before a fault
RECORDED = 5  # episodes of a robot as it should be
_CLIENT = """
import sys, time, numpy as np
from realrl.robots.client import Link
link = Link(sys.argv[1], "commander")
low, high = (np.array(link.welcome["robot"][end]) for end in ("low", "high"))
middle, half = (low + high) / 2, (high - low) / 2
print("here", flush=True)
for seq in range(1, 10**6):
    link.send({"type": "act", "epoch": link.epoch, "seq": seq, "action": middle + 0.5 * half * np.sin(seq / 9)})
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


class Wander:
    """A policy that moves about, for recordings of how a robot moves: each channel goes its own way, and turns now and then."""

    name, chunk, n_obs = "wander", 1, 1

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def start(self, batch: int) -> dict[str, Any]:
        """Where each is bound, [B, A]."""
        return {"way": np.zeros((batch, self.channels))}

    def act(self, obs: Obs, state: dict[str, Any], *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, dict[str, Any]]:
        """A step on, or off into another direction."""
        pushed = np.stack([one.uniform(-1, 1, self.channels) for one in rng])
        way = np.clip(0.8 * state["way"] + 0.4 * pushed, -1, 1)
        return Plan(way[:, None].astype(np.float32)), {"way": way}


class Rig:
    """A served simulated robot, a person and a commander. url: of its server; wrong: the fault with which it was started, "" for none;
    names: of what the fault under way has to be said, of one at least, if there are any."""

    def __init__(self, task: str, folder: Path, cameras: Sequence[str] = ()) -> None:
        self.task, self.folder, self.cameras = task, folder, tuple(cameras)
        self.process: subprocess.Popen[str] | None = None
        self._hurry = contextlib.ExitStack()
        self.log = folder
        self._right: Path | None = None
        self.restart()

    def restart(self, wrong: str = "") -> None:
        """A server anew, of a robot that is as it should be or wrong from the start: "sign=2"."""
        self.wrong = wrong
        self.names: Sequence[str] = ()
        before = set(self.folder.iterdir()) if self.folder.is_dir() else set()
        while (name := self.folder / time.strftime("%Y%m%d-%H%M%S")) in before:  # its log's folder is called after the second
            time.sleep(0.1)
        how = ["--port", "0", "--log", str(self.folder), *[f"--fault={wrong}"] * bool(wrong), "--cameras", *self.cameras]
        self.process = subprocess.Popen([sys.executable, "-m", "realrl", "robot", "serve", "--sim", self.task, *how],
                                        stdout=subprocess.PIPE, text=True)
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
        low, self.high = (np.array(self.about[end]) for end in ("low", "high"))
        self.middle = (low + self.high) / 2
        self.height = [i for i, c in enumerate(self.about["channels"]) if c["name"] == "z"]

    def close(self) -> None:
        """End everything."""
        self._hurry.close()
        self.end()
        if self._right is not None:
            shutil.rmtree(self._right, ignore_errors=True)

    def end(self) -> None:
        """End the server, in peace."""
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

    def recordings(self) -> Path:
        """A data set of this robot as it should be, made when it is asked for first. Raises RealrlError where preflight, laid beside it,
        finds anything wrong with that very robot: it could not be believed of another."""
        if self._right is None:
            self._right = Path(tempfile.mkdtemp())
            self.leave()
            with contextlib.closing(RobotClient(self.url, horizon=max(int(5 * self.about["fps"]), 40))) as env:
                episodes = list(rollout([env], Wander(env.task.action_dim), [box_guard(env)], range(RECORDED), greedy=True))
                Store.create(self._right / "set", task=env.task.id, fps=round(self.about["fps"])).append(episodes)
            with contextlib.closing(RobotClient(self.url, horizon=100_000)) as env:
                off = [f.text for f in preflight(env, self._right / "set") if not f.fine]
            if off:
                raise RealrlError(f"{self.task}: preflight finds fault with a robot that is as it was recorded: {'; '.join(off)}")
        return self._right / "set"

    def status(self) -> dict[str, Any]:
        """What the server says now."""
        return self.person.ask({"type": "status"})

    def inject(self, name: str, value: float = 1.0) -> None:
        """Break something."""
        self.person.ask({"type": "fault", "name": name, "value": value})

    def armed(self) -> None:
        """All is well, and somebody commands."""
        if self.wrong:
            self.end()
            self.restart()
        self.names = ()
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
            self._hurry.enter_context(hurried(CLIENT))  # what is on trial is the server, not how busy this computer is

    def act(self, share: Array | float | None, **more: Any) -> bool:
        """An action and its period, share: of what its channels may be asked for, -1 to 1, None: one of a wrong size; whether it was
        answered."""
        assert self.commander is not None
        self.seq += 1
        action = np.zeros(len(self.high) + 1) if share is None else self.middle + share * (self.high - self.middle)
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
        """Move about for a while, at least a step, and not downwards: what presses on a table is stopped; whether every action was
        answered."""
        n = len(self.high)
        way, until = rng.uniform(-1, 1, n), time.monotonic() + seconds
        while True:
            way = np.clip(0.8 * way + 0.4 * rng.uniform(-1, 1, n), -1, 1)
            way[self.height] = np.abs(way[self.height])
            if not self.act(way, **more):
                return False
            if time.monotonic() >= until:
                return True


@dataclass(frozen=True)
class Kind:
    """A fault. do: makes it happen, gives the time when it did; event: what the log must then say (a fault's name, or an event's); within:
    s; stops: whether the robot is then held (else the episode goes on); needs: what its server has to watch for it."""

    number: int
    name: str
    do: Callable[[Rig, np.random.Generator], float]
    event: str
    within: float
    stops: bool
    needs: Literal["", "camera", "force", "stall"] = ""


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
    way, second = np.zeros(len(rig.high)), list(rig.status()["measured"].values())[1]
    way[1] = -np.sign(second or 1.0)
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
    rig.act(0.0)
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
    begun = time.monotonic()
    bad = [np.nan, np.inf, None]
    for _ in range(3):
        rig.act(bad[int(rng.integers(3))])
    return begun


def far(rig: Rig, rng: np.random.Generator) -> float:
    """The first command is far away."""
    begun = time.monotonic()
    rig.leave()
    rig.armed()
    for _ in range(8):
        rig.act(rng.choice([-1e3, 1e3], len(rig.high)))
    return begun


def handed(first: int, then: int) -> Callable[[Rig, np.random.Generator], float]:
    """Somebody else acts from one step to the next, and wants to go the other way."""
    def do(rig: Rig, rng: np.random.Generator) -> float:
        way = rng.choice([-1.0, 1.0], len(rig.high))
        way[rig.height] = 0.0
        for _ in range(6):
            rig.act(way, source=first)
        begun = time.monotonic()
        for _ in range(6):
            rig.act(-way, source=then)
        return begun
    return do


def unplugged(rig: Rig, rng: np.random.Generator) -> float:
    """The device says what it said a while ago."""
    begun = time.monotonic()
    for _ in range(5):
        rig.act(1.0, source=1, age=0.2 + float(rng.random()))
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
        rig.act(0.5)
        time.sleep(period * (1.0 + 0.9 * float(rng.random())))
    return begun


def reordered(rig: Rig, rng: np.random.Generator) -> float:
    """Old messages come again."""
    assert rig.commander is not None
    begun = time.monotonic()
    for _ in range(5):
        rig.act(0.3)
        rig.commander.send({"type": "act", "epoch": rig.commander.epoch, "seq": int(rng.integers(rig.seq)),
                            "action": -rig.high})
    return begun


def cornered(rig: Rig, rng: np.random.Generator) -> float:
    """Full speed into the limits."""
    begun, way = time.monotonic(), rng.choice([-1.0, 1.0], len(rig.high))
    way[rig.height] = 1.0  # not into the table: that is another fault
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


def put_together_wrongly(rig: Rig, rng: np.random.Generator) -> float:
    """A unit, an order or a sign is wrong from the start, and somebody asks whether the robot is the one of the recordings."""
    data, names = rig.recordings(), [c["name"] for c in rig.about["channels"]]
    told = [number for number, name in enumerate(names, 1) if name in rig.about["state"]]
    fault = str(rng.choice(["sign", "units", "order"] if len(told) > 1 else ["sign"]))
    number = int(rng.choice(told)) if fault != "sign" else int(rng.integers(len(names))) + 1
    rig.end()
    rig.restart(f"{fault}={number}")
    next_told = told[(told.index(number) + 1) % len(told)] if fault == "order" else number
    rig.names = (names[number - 1], names[next_told - 1])
    begun = time.monotonic()
    with contextlib.suppress(Held), contextlib.closing(RobotClient(rig.url, horizon=100_000)) as env:
        preflight(env, data)
    return begun


def some(*ways: Callable[[Rig, np.random.Generator], float]) -> Callable[[Rig, np.random.Generator], float]:
    """One of several ways."""
    return lambda rig, rng: ways[int(rng.integers(len(ways)))](rig, rng)


KINDS = (
    Kind(1, "client dead or hung", client_dies, "commander", 0.35, True),
    Kind(2, "server dead, started again", server_dies, "armed", 180.0, False),
    Kind(3, "actions NaN or of a wrong size", senseless, "actions", 0.4, True),
    Kind(4, "encoders NaN or frozen", some(injected("nan", 1, 0.5), injected("frozen", 1, 0.6)), "readings", 0.6, True),
    Kind(5, "camera stands still", injected("camera", 1, 0.9), "camera", 0.75, True, "camera"),
    Kind(6, "packets lost", injected("loss", 0.05, 1.0), "", 0.0, False),
    Kind(7, "first command far away", far, "", 0.0, False),
    Kind(8, "takeover mismatch", handed(0, 1), "source", 0.1, False),
    Kind(9, "hand-back", handed(1, 0), "source", 0.1, False),
    Kind(10, "device unplugged, deflected", unplugged, "unfit", 0.1, False),
    Kind(11, "two commanders", second, "refused", 0.5, False),
    Kind(12, "overrun", overrun, "", 0.0, False),
    Kind(13, "old messages, again and out of order", reordered, "dropped", 0.2, False),
    Kind(14, "drives stall", blocked, "stall", 1.2, True, "stall"),
    Kind(14, "drives hot", injected("hot", 1, 0.3), "hot", 0.1, True),
    Kind(15, "force", injected("push", 60, 0.4), "force", 0.2, True, "force"),
    Kind(16, "into the limits", cornered, "", 0.0, False),
    Kind(17, "emergency stop", injected("estop", 1, 0.3), "estop", 0.1, True),
    Kind(18, "server ended at work", server_ends, "released", 40.0, True),
    Kind(19, "a unit, an order or a sign wrong", put_together_wrongly, "stop", 120.0, True),
    Kind(20, "viewer that reads nothing", slow_viewer, "", 0.0, False),
)
