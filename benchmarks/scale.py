"""A dataset of 10,000 episodes and 5 million frames: what it costs to open it and to add an episode.

    python -m benchmarks.scale

Episodes are appended in large groups, the last of them (--singles) one by one, as a robot does. Whenever the dataset reaches 100, 1,000
and 10,000 episodes, one-by-one appends are timed. Opening is timed in fresh processes, and so is their memory. Everything happens in
a temporary folder of about 1 GB (--folder to choose where). Linux only. Writes benchmarks/results/scale.jsonl.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lib.common import RESULTS, Table
from realrl.data.store import Store
from realrl.types import Episode, Source

OPEN = """
import json, sys, time
from realrl.data.store import Store

def peak():  # in kB; getrusage would count the parent's memory from before this program began
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

before = peak()
began = time.perf_counter()
store = Store.open(sys.argv[1])
opened = time.perf_counter() - began
most = peak()
began = time.perf_counter()
store.read([len(store) // 2])
read = time.perf_counter() - began
print(json.dumps({"episodes": len(store), "frames": store.frames, "open_s": opened, "imports_mb": before / 1024, "peak_mb": most / 1024,
                  "read_s": read}))
"""
GROUP = 250  # episodes of one append while the dataset is made


def episode(rng: np.random.Generator, frames: int) -> Episode:
    """A smooth random arm: state [frames + 1, 14], action [frames, 7]."""
    drift = np.cumsum(rng.normal(0, 0.02, (frames + 1, 14)), 0).astype(np.float32)
    action = np.tanh(drift[1:, :7])
    return Episode(obs={"state": drift}, action=action, proposed=action, source=np.full(frames, Source.SCRIPT, np.uint8),
                   reward=np.zeros(frames, np.float32), success=np.zeros(frames, bool), time=np.arange(frames) / 30,
                   starts_plan=np.ones(frames, bool), terminated=False, truncated=True, task="reach", policy="random walk", seed=None)


def grow(store: Store, upto: int, frames: int, rng: np.random.Generator) -> None:
    """Append in groups until the dataset holds `upto` episodes."""
    while len(store) < upto:
        count = min(GROUP, upto - len(store))
        store.append([episode(rng, frames) for _ in range(count)])
        print(f"\r{len(store):,} episodes", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def time_appends(store: Store, count: int, frames: int, rng: np.random.Generator) -> list[float]:
    """Milliseconds of each of `count` appends of one episode."""
    taken = []
    for one in [episode(rng, frames) for _ in range(count)]:
        began = time.perf_counter()
        store.append([one])
        taken.append(1e3 * (time.perf_counter() - began))
    return taken


def open_fresh(folder: Path, times: int) -> dict[str, Any]:
    """What a new process needs to open the dataset, medians of several."""
    found = [json.loads(subprocess.run([sys.executable, "-c", OPEN, str(folder)], check=True, capture_output=True, text=True).stdout)
             for _ in range(times)]
    return {key: statistics.median(f[key] for f in found) for key in found[0]}


def measure(folder: Path, args: argparse.Namespace, table: Table) -> None:
    """Make the dataset and put every figure into the table."""
    rng, store = np.random.default_rng(0), Store.create(folder, task="reach", fps=30)

    def put(measure: str, value: float, unit: str, target: float | None = None, **more: Any) -> None:
        size = {"episodes": len(store), "frames": store.frames}
        table.put({"measure": measure, "value": value, "unit": unit, "target": target, **size, **more})
        print(f"    {value:.3g} {unit}" + (f" (target: under {target:g})" if target else ""))

    for total in [n for n in (100, 1000, 10_000) if n < args.episodes] + [args.episodes]:
        last = total == args.episodes
        singles = min(args.singles if last else args.timed, total - len(store))
        grow(store, total - singles, args.frames, rng)
        taken = time_appends(store, singles, args.frames, rng)
        put(f"append at {total:,} episodes", statistics.median(taken), "ms", n=len(taken), slowest=max(taken))
    found = open_fresh(folder, args.opens)
    put("open", found["open_s"], "s", 2.0, n=args.opens)
    put("peak memory of the process that opens", found["peak_mb"], "MB", 500.0, n=args.opens, imports_mb=found["imports_mb"])
    put("read one episode after opening", 1e3 * found["read_s"], "ms", n=args.opens)
    files = [p for p in folder.rglob("*") if p.is_file()]
    put("size on disk", sum(p.stat().st_size for p in files) / 1e9, "GB", files=len(files))


def main(words: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=10_000)
    parser.add_argument("--frames", type=int, default=500, help="of every episode")
    parser.add_argument("--singles", type=int, default=200, help="how many episodes at the end are appended one by one")
    parser.add_argument("--timed", type=int, default=20, help="appends that are timed on the way, at 100 and at 1,000 episodes")
    parser.add_argument("--opens", type=int, default=3, help="fresh processes that open the dataset")
    parser.add_argument("--folder", type=Path, help="where the dataset is made; it is removed afterwards")
    parser.add_argument("--smoke", action="store_true", help="120 short episodes, to see that the script works; no results are kept")
    args = parser.parse_args(words)
    if args.smoke:
        args.episodes, args.frames, args.singles, args.timed, args.opens = 120, 20, 5, 5, 1
    home = Path(tempfile.mkdtemp(prefix="scale-", dir=args.folder))
    try:
        measure(home / "dataset", args, Table((home if args.smoke else RESULTS) / "scale.jsonl", ("measure",)))
    finally:
        shutil.rmtree(home)
    return 0


if __name__ == "__main__":
    sys.exit(main())
