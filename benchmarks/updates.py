"""Updates a second of the off-policy learner, beside sbx (JAX) and stable-baselines3, on one machine and in turns; and a look at acting.

    python -m venv /tmp/peers && /tmp/peers/bin/pip install sbx-rl stable-baselines3
    python -m benchmarks.updates --peers /tmp/peers/bin/python
    python -m benchmarks.updates --peers /tmp/peers/bin/python --methods droq --rounds 5

Each contestant is a process of its own on the same cores; a round gives each its turn, and what is reported are medians over rounds, ratios
round by round. All have networks of 256-256, two critics, batches of 256 drawn from 10,000 transitions (46 observed numbers, 12 actions),
and read the losses after every call. droq: 20 critic updates and one of the actor a call; sac, crossq: one of each. Compiling (ours and
JAX's) is timed apart. Writes benchmarks/results/updates.jsonl.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.lib.common import RESULTS, ROOT, Table
from benchmarks.lib.peers import ACTION, OBS, UPDATES
from benchmarks.lib.turns import Child
from realrl.policies.gaussian import GaussianConfig, GaussianPolicy
from realrl.types import RealrlError

TARGETS = {"droq": 1.5, "sac": 1.0, "crossq": 1.0}  # times sbx
ACT_MS = 0.2
HEAD = ("method", "who", "cores", "updates/s", "an update, ms of the processor", "times sbx [quartiles]", "by processor time", "target",
        "one action, p50, p99 [ms]")
PEERS = {"sac": ("sbx", "sb3"), "droq": ("sbx",), "crossq": ("sbx",)}


class Contestant:
    """A process that trains when it is told to."""

    def __init__(self, who: str, method: str, python: str, threads: int) -> None:
        self.who, self.updates, self.rates, self.cpu = who, UPDATES[method], list[float](), list[float]()
        self._child = Child([python, str(ROOT / "benchmarks/lib/peers.py"), who, method, str(threads)], threads,
                            own=who.startswith("realrl"), mend="are sbx-rl and stable-baselines3 installed where --peers says?")
        self.ready, self.close = float(self._child.about["ready"]), self._child.close
        self.calls = 1
        while (spent := self._child.ask(self.calls)["wall"]) < 0.5:  # as many as make half a second or more
            self.calls = max(2 * self.calls, round(self.calls * 0.8 / max(spent, 0.01)))

    def turn(self) -> None:
        """One round's turn."""
        took = self._child.ask(self.calls)
        self.rates.append(self.updates * self.calls / took["wall"])
        self.cpu.append(self.updates * self.calls / took["cpu"])


def race(method: str, peers: str, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Rows of one method."""
    field: list[Contestant] = []
    try:
        for who in ("realrl", "realrl-eager", *PEERS[method]):
            field.append(Contestant(who, method, peers if who in ("sbx", "sb3") else sys.executable, threads))
            print(f"    {method}: {who} ready after {field[-1].ready:.0f} s", flush=True)
        for turn in range(rounds):
            for contestant in field if turn % 2 else field[::-1]:
                contestant.turn()
    finally:
        for contestant in field:
            contestant.close()
    base = next(c for c in field if c.who == "sbx")
    return [_row(method, contestant, base, threads, rounds) for contestant in field]


def _row(method: str, mine: Contestant, base: Contestant, threads: int, rounds: int) -> dict[str, Any]:
    ratios, cpu = (np.array(a) / np.array(b) for a, b in ((mine.rates, base.rates), (mine.cpu, base.cpu)))
    low, middle, high = (float(x) for x in np.percentile(ratios, [25, 50, 75]))
    return {"method": method, "who": mine.who, "threads": threads, "rounds": rounds, "updates_per_s": float(np.median(mine.rates)),
            "updates_per_cpu_s": float(np.median(mine.cpu)), "times_sbx": middle, "times_sbx_quartiles": [low, high],
            "times_sbx_by_cpu": float(np.median(cpu)), "ready_s": mine.ready, "target": TARGETS[method] if mine.who == "realrl" else None}


def acting(norm: str, calls: int) -> dict[str, Any]:
    """From an observation to a noisy action, batch 1, one thread."""
    torch.set_num_threads(1)
    policy = GaussianPolicy(GaussianConfig(norm=norm), OBS, ACTION).requires_grad_(False)  # type: ignore[arg-type]
    noise, times = np.random.default_rng(0), []
    for _ in range(calls + 50):
        obs = noise.standard_normal((1, 1, OBS), dtype=np.float32)
        before = time.perf_counter()
        policy.act({"state": obs}, {}, greedy=False, rng=[noise])
        times.append((time.perf_counter() - before) * 1e3)
    p50, p99 = (float(x) for x in np.percentile(times[50:], [50, 99]))
    return {"method": "act", "who": f"realrl, norm {norm}", "threads": 1, "calls": calls, "p50_ms": p50, "p99_ms": p99, "target": ACT_MS}


def main(words: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", required=True, metavar="PYTHON", help="the Python of an environment with sbx-rl and stable-baselines3")
    parser.add_argument("--methods", nargs="+", default=list(UPDATES), choices=list(UPDATES))
    parser.add_argument("--threads", type=int, default=1, help="cores that each contestant may use")
    parser.add_argument("--rounds", type=int, default=21, help="turns of each")
    parser.add_argument("--out", type=Path, default=RESULTS / "updates.jsonl")
    args = parser.parse_args(words)
    table = Table(args.out, ("method", "who", "threads"))
    try:
        for method in args.methods:
            for row in race(method, args.peers, args.threads, args.rounds):
                table.put(row)
                print(f"    {row['updates_per_s']:.0f} updates/s, {row['times_sbx']:.2f} x sbx [{row['times_sbx_quartiles'][0]:.2f}, "
                      f"{row['times_sbx_quartiles'][1]:.2f}], by CPU time {row['times_sbx_by_cpu']:.2f}")
    except RealrlError as error:
        print(error, file=sys.stderr)
        return 1
    for norm in ("none", "renorm"):
        table.put(row := acting(norm, 2000))
        print(f"    p50 {row['p50_ms']:.3f} ms, p99 {row['p99_ms']:.3f} ms")
    return 0


def lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line a contestant, and one a way of acting."""
    found = []
    for row in rows:
        if row["method"] == "act":
            found.append(["acting", row["who"], str(row["threads"]), *["-"] * 4, f"{row['target']:g} ms",
                          f"{row['p50_ms']:.3f}, {row['p99_ms']:.3f}"])
            continue
        low, high = row["times_sbx_quartiles"]
        goal = f"{TARGETS[row['method']]:g}" if row["who"] == "realrl" else "-"
        found.append([row["method"], row["who"], str(row["threads"]), f"{row['updates_per_s']:.0f}",
                      f"{1e3 / row['updates_per_cpu_s']:.2f}", f"{row['times_sbx']:.2f} [{low:.2f}, {high:.2f}]",
                      f"{row['times_sbx_by_cpu']:.2f}", goal, "-"])
    return found


if __name__ == "__main__":
    sys.exit(main())
