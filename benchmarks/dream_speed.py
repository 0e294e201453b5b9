"""What an update of a world model with its actor and critic costs, beside a public PyTorch implementation, on a core or on a GPU.

    python -m venv PEER; PEER/bin/pip install torch numpy tensorboard pyyaml
    git clone https://github.com/NM512/dreamerv3-torch CODE
    python -m benchmarks.dream_speed --peer PEER/bin/python --code CODE
    python -m benchmarks.dream_speed --peer PEER/bin/python --code CODE --device cuda --threads 4

Each contestant is a process of its own, kept to the same cores, and a round gives each its turn, in an order that is reversed from round to
round; what is reported are medians over rounds, ratios round by round: of processor time on a core, of time by the clock on a GPU. All
learn from stretches of noise of a walker's size (24 readings, 6 actions), with networks of the same widths and layers, the same
batch, dreams from every observation of it, of the same length; a unit is an update with the drawing of its batch. reinforce, through: how
the actor learns. Parts are measured in turns of their own, with a halt after each. On a GPU "realrl" repeats what it recorded once,
"realrl, told anew" does not; "halves" are bf16 of ours and theirs as it does it, fp16. Writes benchmarks/results/dream_speed.jsonl.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lib.common import RESULTS, ROOT, Table
from benchmarks.lib.turns import Child
from realrl.types import RealrlError

SCRIPT = str(ROOT / "benchmarks" / "lib" / "dreamers.py")
SIZES: dict[str, dict[str, int]] = {
    "small": {"deter": 128, "units": 128, "stoch": 16, "classes": 8, "layers": 2, "batch": 16, "length": 32, "horizon": 15},
    "middle": {"deter": 256, "units": 256, "stoch": 16, "classes": 16, "layers": 2, "batch": 16, "length": 32, "horizon": 15},
    "large": {"deter": 512, "units": 512, "stoch": 32, "classes": 32, "layers": 2, "batch": 16, "length": 64, "horizon": 15}}
"""small: about what `--preset cpu` has; large: what the peer has by default."""
ACTORS = {"reinforce": False, "through": True}
PEER = "dreamerv3-torch"
OURS: dict[str, dict[str, bool]] = {"realrl": {}, "realrl, told anew": {"graph": False}, "realrl, halves": {"half": True}}
THEIRS: dict[str, dict[str, bool]] = {PEER: {}, f"{PEER}, halves": {"half": True}}
TARGET = 2.0


class Contestant:
    """One that takes turns. told: what it is to do; own: whether it is this project's."""

    def __init__(self, who: str, python: str, told: dict[str, Any], units: int) -> None:
        self.who, self.half, self._units = who, told["half"], units
        self.turns, self.parts = list[dict[str, float]](), list[dict[str, float]]()
        self.own = told["who"] == "realrl"
        self.child = Child([python, "-W", "ignore", SCRIPT, json.dumps(told)], told["threads"], own=self.own,
                           mend="has --peer's environment torch, numpy, tensorboard and pyyaml, and is --code the checkout?")

    def turn(self, parts: bool) -> None:
        """Work."""
        said = self.child.ask(-self._units if parts else self._units)
        if parts:
            self.parts.append(said["parts"])
        else:
            self.turns.append({clock: 1e3 * said[clock] / self._units for clock in ("wall", "cpu")})

    def of(self, clock: str) -> list[float]:
        """Milliseconds an update, turn by turn."""
        return [turn[clock] for turn in self.turns]


def race(args: argparse.Namespace, size: str, actor: str) -> list[dict[str, Any]]:
    """Rows of one size and one way to learn."""
    told = {**SIZES[size], "device": args.device, "threads": args.threads, "through": ACTORS[actor], "half": False, "graph": True}
    field = {who: (sys.executable, {**told, "who": "realrl", **more}) for who, more in OURS.items()}
    field |= {who: (args.peer, {**told, "who": "peer", "code": str(args.code), **more}) for who, more in THEIRS.items()}
    if args.device == "cpu":  # there is nothing to record there, and the peer has no halves
        field = {who: field[who] for who in ("realrl", PEER)}
    field = {who: field[who] for who in field if args.who is None or who in args.who}
    with ThreadPoolExecutor() as pool:  # each takes a while to import and to warm up
        made = [pool.submit(partial(Contestant, who, *what, args.units)) for who, what in field.items()]
    try:
        found = [one.result() for one in made]
        for i in range(args.rounds):
            for contestant in found[::-1] if i % 2 else found:
                contestant.turn(parts=False)
        for contestant in found:
            contestant.turn(parts=True)
    finally:
        for one in made:
            if not one.exception():
                one.result().child.close()
    return [row(c, found, size, actor, args) for c in found]


def row(mine: Contestant, field: list[Contestant], size: str, actor: str, args: argparse.Namespace) -> dict[str, Any]:
    """What one is worth, beside the peer of its precision."""
    clock = "cpu" if args.device == "cpu" else "wall"
    told = {"size": size, "actor": actor, "who": mine.who, "device": args.device, "threads": args.threads, "rounds": args.rounds,
            "turn": args.units, **SIZES[size], **mine.child.about, "wall_ms": float(np.median(mine.of("wall"))),
            "cpu_ms": float(np.median(mine.of("cpu"))), "updates_per_s": 1e3 / float(np.median(mine.of(clock))), "parts_ms": mine.parts[0]}
    base = next((c for c in field if not c.own and c.half == mine.half), None)
    if mine.own and base:
        low, middle, high = np.percentile(np.array(base.of(clock)) / np.array(mine.of(clock)), [25, 50, 75])
        told |= {"times": float(middle), "times_quartiles": [float(low), float(high)], "target": TARGET}
    return told


def main(words: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default=sys.executable, metavar="PYTHON", help="the Python of the peer's environment")
    parser.add_argument("--code", type=Path, required=True, metavar="DIR", help="a checkout of github.com/NM512/dreamerv3-torch")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1, help="cores that each contestant may use")
    parser.add_argument("--sizes", nargs="+", default=["small", "middle"], choices=list(SIZES))
    parser.add_argument("--actors", nargs="+", default=list(ACTORS), choices=list(ACTORS))
    parser.add_argument("--who", nargs="+", choices=[*OURS, *THEIRS], help="these contestants alone")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each")
    parser.add_argument("--units", type=int, default=3, help="updates of a turn")
    parser.add_argument("--out", type=Path, default=RESULTS / "dream_speed.jsonl")
    args = parser.parse_args(words)
    table, left = Table(args.out, ("device", "size", "actor", "who", "threads")), 0
    for size in args.sizes:
        for actor in args.actors:
            try:
                for found in race(args, size, actor):
                    table.put(found)
                    print(f"    {found['wall_ms']:.1f} ms by the clock, {found['cpu_ms']:.1f} of processors; {found.get('times', 1.0):.2f} "
                          f"times the peer; {', '.join(f'{k} {v:.1f}' for k, v in found['parts_ms'].items())}", flush=True)
            except RealrlError as error:
                print(f"{size}, {actor}: {error}", file=sys.stderr)
                left = 1
    return left


if __name__ == "__main__":
    sys.exit(main())
