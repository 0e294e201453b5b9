"""A policy made in lock-step simulation, on the real-time server of the same robot, which is late: what it loses, and what learning through
the server gives back.

    OMP_NUM_THREADS=1 python -m benchmarks.through_server
    OMP_NUM_THREADS=1 python -m benchmarks.through_server --methods hil-serl --seeds 1

Every part runs the commands that a user would type, the server in a process of its own; by the clock, so a busy machine is part of what is
measured. The ways:

rl100: imitated in lock-step, judged there and through the server, then the online stage alone through the server from that policy.
rl100-near: the same on a robot whose readings are 50 ms late (one control step), with the last two actions in sight.
rl100-dida: as rl100, but through the server the policy teaches one that sees the late readings and its last actions; then RL-100's online
stage goes on from that one, through the server, too.
rl100-late: imitated in a simulation that is as late, and sees its last actions; nothing is learned through the server.
hil-serl-init: imitated in lock-step, with the last actions in sight, which say nothing there; through the server HIL-SERL learns what to
add to that policy, beside the robot (`--stream.realtime`), from the lock-step demonstrations and what it does, without a person.
hil-serl-on: HIL-SERL in lock-step, with the last actions in sight; through the server the same learner goes on, beside the robot, from
demonstrations there and what it does there, with the scripted person, who moves slowly because what is seen is late.
hil-serl-dida: HIL-SERL in lock-step; through the server its policy teaches one that sees late, as in rl100-dida. Nobody helps.
hil-serl: learned from demonstrations through the server, beside the robot (`--stream.realtime`), with the scripted person; its learner is
killed (kill -9) once on the way and started again.

Somebody stands by who arms the robot where it was stopped, which is counted. The held-out starts are the same everywhere. Rows go to
benchmarks/results/through_server.jsonl.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.lib.common import RESULTS, Part, Table, arguments, run_parts, slim
from realrl.data.store import Store
from realrl.files import write_text
from realrl.robots.client import Link
from realrl.robots.log import read_events
from realrl.types import RealrlError

KEY = ("method", "task", "seed", "where")
LATE = 250
"""ms that readings are old in a simulation with `--late 5`: 200 ms of the server, and what its guard takes to ease into motions."""
ROBOT = "watchdog: 20\npace: 1.0\n"
"""Of the simulated robot's server: a learner that shares its machine is late now and then; the way back to the start is quick."""


@dataclass(frozen=True)
class Way:
    """How a method gets onto the robot. method: of the first training; latency: ms that readings are old; simulated, online: flags of the
    two trainings, either may be missing, and {sim} in the second is the first one's folder; stage: that the second ends with; then: its
    method, where it is another; further: flags of RL-100's online stage, which goes on through the server from what that left in {online};
    kill_after: control steps after which its learner is killed once."""

    method: str
    task: str
    latency: int
    simulated: str
    online: str
    stage: str
    then: str = ""
    further: str = ""
    kill_after: int = 0

    @property
    def learner(self) -> str:
        """The method that learns through the server."""
        return self.then or self.method


IMITATED = "--stages imitation --imitation.steps 600 --demos 30"
BESIDE = "--stream.realtime --sac.utd 2"
QUICKER = "--recall 5 --sac.n-step 3 --sac.target-rate 0.02"
WAYS = {
    "rl100": Way("rl100", "arm/panda-reach", 200, IMITATED,
                 "--init {sim}/policy --stages online --online.iterations 8 --online.episodes 40 --online.warmup 1 --online.practice 0 "
                 "--online.save-every 1 --trials.episodes 0", "online"),
    "rl100-near": Way("rl100", "arm/panda-reach", 50, f"{IMITATED} --recall 2",
                      "--init {sim}/policy --recall 2 --stages online --online.iterations 8 --online.episodes 40 --online.warmup 1 "
                      "--online.save-every 1 --trials.episodes 0", "online"),
    "rl100-dida": Way("rl100", "arm/panda-reach", 200, IMITATED,
                      "--init {sim}/policy --rounds 3 --episodes 40 --recall 5 --imitation.steps 600", "dida", then="dida",
                      further="--init {online}/policy --recall 5 --stages online --online.iterations 4 --online.episodes 40 "
                              "--online.warmup 1 --online.save-every 1 --trials.episodes 0"),
    "rl100-late": Way("rl100", "arm/panda-reach", 200, f"{IMITATED} --late 5 --recall 5", "", ""),
    "hil-serl-init": Way("rl100", "arm/panda-reach", 200, f"{IMITATED} --recall 5",
                         "--init {sim}/policy --recall 5 --residual 1 --human none --data {sim}/dataset "
                         f"{BESIDE} --steps 3000 --save-every 1000", "hil-serl", then="hil-serl"),
    "hil-serl-on": Way("hil-serl", "arm/panda-reach", 200, f"{QUICKER} --steps 5000",
                       f"--after {{sim}} {QUICKER} --demos 5 --human scripted --operator.cap 0.25 {BESIDE} --steps 3000 "
                       "--save-every 500", "hil-serl"),
    "hil-serl-dida": Way("hil-serl", "contact/peg-easy", 200, "--steps 5000",
                         "--init {sim}/policy --rounds 3 --episodes 40 --recall 3 --imitation.steps 600", "dida", then="dida"),
    "hil-serl": Way("hil-serl", "contact/peg-easy", 100, "", f"--human scripted {BESIDE} --steps 2500 --save-every 500", "hil-serl",
                    kill_after=800)}
SMOKE = {"rl100": "--policy.hidden 16 --imitation.steps 5 --demos 2 --online.iterations 1 --online.episodes 2",
         "dida": "--policy.hidden 16 --imitation.steps 5 --rounds 1 --episodes 2",
         "hil-serl": "--steps 200 --start 20 --demos 1 --sac.batch 8 --sac.hidden 16 --policy.hidden 16"}
"""By method."""


@dataclass
class Person:
    """Arms the robot where it was stopped, as somebody would who stands beside it."""

    url: str
    over: threading.Event = field(default_factory=threading.Event)

    def stand_by(self) -> None:
        """Until it is over."""
        while not self.over.wait(1.0):
            try:
                with Link(self.url, "person") as link:
                    if link.ask({"type": "status"})["mode"] in ("held", "parked"):
                        link.ask({"type": "arm"})
            except RealrlError:
                continue  # not yet: it is moving


@contextmanager
def served(task: str, latency: int, folder: Path) -> Iterator[str]:
    """The simulated robot of a task in a process of its own, readings `latency` ms old, somebody beside it; its address."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "robot.yaml", ROBOT)
    words = ["robot", "serve", str(folder / "robot.yaml"), "--sim", task, "--latency-ms", str(latency), "--port", "0",
             "--log", str(folder / "log")]
    server = subprocess.Popen([sys.executable, "-m", "realrl", *words], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = next((line.split(" is served at ")[1].split()[0] for line in server.stdout if " is served at " in line), "")
        person = Person(url)
        thread = threading.Thread(target=person.stand_by, daemon=True)
        thread.start()
        yield url
        person.over.set()
        thread.join(10)
    finally:
        server.terminate()
        server.wait(60)


@dataclass(frozen=True)
class Through:
    """One method and seed."""

    name: str
    way: Way
    seed: int
    folder: Path
    table: Table
    episodes: int
    smoke: bool = False
    more: str = ""

    def parts(self) -> list[Part]:
        """Lock-step, through the server before and after, and after going on."""
        found = {"lock-step": self.lock_step, "before": self.before, "after": self.after, "further": self.further}
        way = self.way
        needs = {"lock-step": way.simulated, "before": way.simulated, "after": way.online, "further": way.further}
        wanted = [where for where in found if needs[where]]
        return [Part(f"{self.name}, {self.way.task}, seed {self.seed}: {where}", partial(self._done, where), found[where])
                for where in wanted]

    def _done(self, where: str) -> bool:
        return self.table.find(self.name, self.way.task, self.seed, where) is not None

    def _put(self, where: str, found: dict[str, Any], **more: Any) -> None:
        late = self.way.latency if where != "lock-step" else LATE * ("--late" in self.way.simulated)
        self.table.put({"method": self.name, "task": self.way.task, "seed": self.seed, "where": where, "latency_ms": late,
                        "success": found["success"], "cycle_steps": found["cycle_steps"], **more})

    def _train(self, method: str, words: str) -> list[str]:
        ours = ["--seed", str(self.seed), "--eval-episodes", str(self.episodes)]
        more = SMOKE[method] if self.smoke else self.more
        return ["train", method, *shlex.split(words), *ours, *(["--final-episodes", str(self.episodes)] if method == "rl100" else []),
                *shlex.split(more)]

    def lock_step(self) -> None:
        """Train in simulation, which judges the policy there."""
        run = self.folder / "sim"
        words = self._train(self.way.method, f"--task {self.way.task} {self.way.simulated} --collect.workers 1 --run {run}")
        _realrl([*words, *(["--resume"] * run.exists())])
        summary = _summary(run)
        self._put("lock-step", slim(summary["stages"][-1]), env_steps=summary["stages"][-1]["env_steps"], typed=self._typed(words))

    def before(self) -> None:
        """The same policy through the server."""
        with served(self.way.task, self.way.latency, self.folder / "served-before") as url:
            began = time.monotonic()
            words = shlex.split(f"evaluate --policy {self.folder / 'sim' / 'policy'} --robot {url} --episodes {self.episodes} --json")
            found = json.loads(_realrl(words))
        self._put("before", found, wall_s=round(time.monotonic() - began, 1), typed=self._typed(words, url),
                  **_seen(self.folder / "served-before"))

    def after(self) -> None:
        """Learn through the server; the run judges what it learned through the server, too."""
        run = self.folder / "online"
        with served(self.way.task, self.way.latency, self.folder / "served-after") as url:
            words = self._train(self.way.learner, f"--robot {url} {self.way.online.format(sim=self.folder / 'sim')} --run {run}")
            kept = self._killed(words, run) if self.way.kill_after and not run.exists() else {}
            _realrl([*words, *(["--resume"] if run.exists() else [])])
        summary = _summary(run)
        if kept:
            frames = sum(len(e) for e in Store.open(run / "dataset").read() if e.policy.startswith(self.way.stage))
            kept["lost_steps"] = max(kept["recorded"] - frames, 0)
        stage = next(s for s in summary["stages"] if s["name"] == self.way.stage)
        head = {k: summary["headline"][k] for k in ("human_s", "takeovers") if k in summary["headline"]}
        self._put("after", slim(stage), env_steps=stage["env_steps"], wall_s=round(summary["spent_s"][self.way.stage], 1), **head, **kept,
                  typed=self._typed(words, url), **_seen(self.folder / "served-after"))

    def further(self) -> None:
        """RL-100's online stage goes on through the server; the run judges what came of it through the server, too."""
        run = self.folder / "further"
        with served(self.way.task, self.way.latency, self.folder / "served-further") as url:
            words = self._train("rl100", f"--robot {url} {self.way.further.format(online=self.folder / 'online')} --run {run}")
            _realrl([*words, *(["--resume"] if run.exists() else [])])
        summary = _summary(run)
        stage = next(s for s in summary["stages"] if s["name"] == "online")
        self._put("further", slim(stage), env_steps=stage["env_steps"], wall_s=round(summary["spent_s"]["online"], 1),
                  typed=self._typed(words, url), **_seen(self.folder / "served-further"))

    def _typed(self, words: Sequence[str], url: str = "") -> str:
        """The command as somebody would type it: where runs lie here, and the server's port, are no part of it."""
        return shlex.join(["ws://127.0.0.1:8770" if word == url else word for word in ("realrl", *words)]).replace(
            str(self.folder), f"runs/{self.folder.name}")

    def _killed(self, words: Sequence[str], run: Path) -> dict[str, int]:
        """Kill the learner once so many steps are recorded. Returns how many those were."""
        learner = subprocess.Popen([sys.executable, "-m", "realrl", *words])
        while learner.poll() is None:
            time.sleep(5)
            done = _steps(run)
            if done >= (20 if self.smoke else self.way.kill_after):
                os.kill(learner.pid, signal.SIGKILL)
                learner.wait()
                return {"killed_after": done, "recorded": done}
        raise RealrlError(f"{run}: its learner ended before it was to be killed: see what it said")


def _steps(run: Path) -> int:
    """Steps of practice that lie whole on disk."""
    try:
        store = Store.open(run / "dataset")
        rows = store.rows.select(["policy", "length"]).to_pylist() if len(store) else []
    except (RealrlError, OSError):
        return 0  # it is being written
    return sum(int(row["length"]) for row in rows if row["policy"] != "demonstration")


def _realrl(words: Sequence[str]) -> str:
    """What a command prints. Raises RealrlError where it fails."""
    done = subprocess.run([sys.executable, "-m", "realrl", *words], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RealrlError(f"{shlex.join(['realrl', *words])} ended with {done.returncode}")
    return done.stdout


def _summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


def _seen(folder: Path) -> dict[str, int]:
    """How often the server stopped the robot, by its own log."""
    events = [e for log in sorted((folder / "log").iterdir()) for e in read_events(log)]
    return {"stops": sum(e["event"] == "fault" and e["name"] not in ("idle", "parked") for e in events)}


def main(words: list[str] | None = None) -> int:
    """Run what is missing."""
    parser = arguments(__doc__ or "", seeds=(0,))
    parser.add_argument("--methods", nargs="+", choices=tuple(WAYS), default=list(WAYS))
    parser.add_argument("--task", help="another task than a method's own")
    parser.add_argument("--episodes", type=int, default=100, help="held-out starts (default: 100)")
    args, flags = parser.parse_known_args(words)
    out, results = args.out / "through_server", RESULTS
    if args.smoke:
        out = results = args.out / "smoke"
    table = Table(results / "through_server.jsonl", KEY)
    parts: list[Part] = []
    for seed in args.seeds[:1] if args.smoke else args.seeds:
        for name in args.methods:
            way = replace(WAYS[name], task=args.task or WAYS[name].task)
            folder = out / f"{name}-{way.task.replace('/', '-')}-s{seed}"
            parts += Through(name, way, seed, folder, table, 2 if args.smoke else args.episodes, args.smoke, shlex.join(flags)).parts()
    return min(run_parts(parts, args.budget), 1)


if __name__ == "__main__":
    sys.exit(main())
