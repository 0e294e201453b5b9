"""Does a policy keep its rate on a served robot while everything is recorded? 100 actions a second through server, guard and recorder.

    python -m benchmarks.robot_timing --seconds 1800
    python -m benchmarks.robot_timing --seconds 1800 --policy runs/pick/policy     # a trained policy of arm/panda-pick thinks
    python -m benchmarks.robot_timing --seconds 1800 --beside                      # while a learner trains in another process

Jitter is how much the time between two observations differs from the period, as the client sees it; late ticks and late actions are
the server's own counts. Beside it an empty loop wakes as often as the server ticks, with more priority than anything of the robot's: by
what it is late, the machine is. A run that the server's watchdog ends (no action for ten periods) is a row, too, with what was said. Writes
benchmarks/results/robot_timing.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.lib.common import RESULTS, Table
from realrl.cell.deploy import deploy
from realrl.policies.folder import load_policy
from realrl.robots.client import Link, RobotClient
from realrl.robots.log import read_ticks
from realrl.types import Array, Plan, Policy, RealrlError, State

KEY = ("fps", "policy", "beside", "seconds")
FIRST = 10  # steps that are left out
HEAD = ("actions a second", "policy", "beside it", "minutes", "ended by", "steps", "late actions", "late ticks of the server",
        "jitter p50, p99, p99.9, most [ms]", "server's ticks late by p50, p99, p99.9, most [ms]",
        "an empty loop beside it late by p50, p99, p99.9, most [ms]")
TICKS = 200  # of the server, a second
CONFIG = """
name: timing
driver: realrl.robots.sim:SimRobot
options: {{task: arm/panda-pick}}
fps: {fps}
ticks: {ticks}
horizon: 1000000
start: [0.45, 0.0, 0.25, 0.08]
park: [0.45, 0.0, 0.25, 0.08]
watchdog: 10
port: 0
log: {log}
"""
LEARNER = """
import torch
net = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.ReLU(), torch.nn.Linear(512, 512), torch.nn.ReLU(), torch.nn.Linear(512, 8))
optimiser = torch.optim.Adam(net.parameters())
while True:
    loss = net(torch.randn(256, 64)).square().mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
"""

EMPTY = f"""
import json, signal, sys
from realrl.robots.clock import HARDWARE, Ticker, realtime
late, ticker = [], Ticker(1 / {TICKS})
realtime(HARDWARE + 1)
def end(*_):
    json.dump(late, sys.stdout)
    sys.exit()
signal.signal(signal.SIGTERM, end)
while True:
    late.append(ticker.wait())
"""


class Swing:
    """Small motions back and forth; or the small part of what another policy wants, which thinks all the while."""

    chunk, n_obs = 1, 1

    def __init__(self, inner: Policy | None) -> None:
        self.inner, self.name, self._i = inner, inner.name if inner else "swing", 0
        if inner:
            self.chunk, self.n_obs = inner.chunk, inner.n_obs

    def start(self, batch: int) -> State:
        """The inner policy's memory."""
        return self.inner.start(batch) if self.inner else {}

    def act(self, obs: dict[str, Array], state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
        """A plan that stays near the middle."""
        if self.inner:
            _, state = self.inner.act(obs, state, greedy=greedy, rng=rng)
        times = self._i + np.arange(self.chunk)
        self._i += self.chunk
        action = np.zeros((1, self.chunk, 4), np.float32)
        action[0, :, 0] = 0.1 * np.sin(times / 20)
        return Plan(action), state


def main() -> None:
    """Run and write the row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--fps", type=int, default=100)
    parser.add_argument("--policy", type=Path)
    parser.add_argument("--beside", nargs="?", const=True, default=False, metavar="WHAT",
                        help="train a small network beside it; or say what you run beside it yourself")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        row = measure(Path(folder), args)
    Table(RESULTS / "robot_timing.jsonl", KEY).put(row)
    print(row)


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Serve, run, and read what came of it."""
    (folder / "arm.yaml").write_text(CONFIG.format(fps=args.fps, ticks=TICKS, log=folder / "log"))
    server = subprocess.Popen([sys.executable, "-m", "realrl", "robot", "serve", str(folder / "arm.yaml"), "--arm"],
                              stdout=subprocess.PIPE, text=True)
    empty = subprocess.Popen([sys.executable, "-c", EMPTY], stdout=subprocess.PIPE, text=True)
    learner = subprocess.Popen([sys.executable, "-c", LEARNER], env={**os.environ, "OMP_NUM_THREADS": "1"}) if args.beside is True else None
    try:
        assert server.stdout is not None
        url = next(line.split(" is served at ")[1].split()[0] for line in server.stdout if " is served at " in line)
        inner = load_policy(args.policy)[0] if args.policy else None
        env, began, gaps, ended = RobotClient(url), 0.0, list[float](), ""
        steps = deploy(env, Swing(inner), 1, folder=folder / "recorded")
        try:
            for tally in steps:
                gaps += [tally.gaps[-1]] if tally.gaps else []
                began = began or time.monotonic()
                if time.monotonic() > began + args.seconds:
                    break
            env.pause()
        except RealrlError as error:
            if len(gaps) <= FIRST:  # it never ran
                raise
            ended = str(error).removeprefix(f"{url}: ")
        lasted = time.monotonic() - began
        with Link(url, "watcher") as link:
            status = link.ask({"type": "status"})
        steps.close()
        empty.terminate()
        machine = 1e3 * np.array(json.loads(empty.communicate()[0]))[TICKS:]
    finally:
        empty.kill()
        if learner:
            learner.kill()
        server.terminate()
        server.wait(60)
    jitter = 1e3 * np.abs(np.array(gaps[FIRST:]) - 1 / args.fps)
    ticks = 1e3 * np.array([t.late for t in read_ticks(next((folder / "log").iterdir()))])
    share = lambda values: {f"p{q:g}": round(float(np.quantile(values, q / 100)), 3) for q in (50, 99, 99.9)} | {
        "max": round(float(values.max()), 3)}
    return {"fps": args.fps, "policy": str(args.policy) if args.policy else "swing", "beside": args.beside, "seconds": args.seconds,
            "lasted": round(lasted, 1), "ended": ended, "steps": len(gaps),
            "load": os.getloadavg()[0], "jitter_ms": share(jitter), "tick_late_ms": share(ticks), "empty_late_ms": share(machine),
            "later_than_5_ms": {"ticks": int((ticks > 5).sum()), "empty": int((machine > 5).sum())},
            "late_actions": tally.late, "late_ticks": status["late_ticks"], "plan_ms": round(1e3 * float(np.median(tally.plans)), 3)}


def lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line a run."""
    told = lambda values: ", ".join(f"{values[name]:.3g}" for name in ("p50", "p99", "p99.9", "max"))
    beside = {True: "a learner", False: "nothing"}
    return [[str(row["fps"]), row["policy"], beside.get(row["beside"], row["beside"]), f"{row['lasted'] / 60:.1f}",
             row["ended"] or "the clock", f"{row['steps']:,}",
             str(row["late_actions"]), str(row["late_ticks"]), told(row["jitter_ms"]), told(row["tick_late_ms"]),
             told(row["empty_late_ms"]) if "empty_late_ms" in row else "-"] for row in rows]


if __name__ == "__main__":
    main()
