"""What a learner on all cores loses where something else wants one of them: how OpenMP's threads wait decides it.

    python -m benchmarks.studies.waiting

Steps of a network of a policy's size (6 layers of 256, 512 rows, AdamW) on two threads and on one, alone and beside busy processes, one a
core: with torch as it comes, with what `import realrl` asks for, and with OpenMP's own word for it. Every measurement is a process of its
own, for OpenMP reads its settings once. Rows go to benchmarks/results/waiting.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks.lib.common import RESULTS, Table
from realrl.cell.collect import available_cores

WAYS: dict[str, tuple[str, dict[str, str]]] = {
    "as it comes": ("two, as torch comes", {"OMP_NUM_THREADS": "2"}),
    "realrl": ("two, as realrl asks", {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "1000"}),
    "passive": ("two, OMP_WAIT_POLICY=passive", {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}),
    "one thread": ("one", {"OMP_NUM_THREADS": "1"})}
HEAD = ("beside", "threads wait", "a step [ms]", "processor time of it [ms]")
STEPS = """
import json, sys, time
import torch
from torch import nn
net = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(256, 256), nn.GELU())))
optimiser, x = torch.optim.AdamW(net.parameters(), fused=True), torch.randn(512, 256)
wall, used, n = 0.0, 0.0, -5
while wall < float(sys.argv[1]) or n < 3:
    before = time.perf_counter(), time.process_time()
    optimiser.zero_grad()
    net(x).square().mean().backward()
    optimiser.step()
    n += 1
    if n > 0:
        wall, used = wall + time.perf_counter() - before[0], used + time.process_time() - before[1]
print(json.dumps({"wall_ms": 1e3 * wall / n, "used_ms": 1e3 * used / n, "steps": n}))
"""


@contextmanager
def company(count: int) -> Iterator[None]:
    """So many processes that never wait for anything."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def measure(way: str, seconds: float) -> dict[str, float]:
    """{wall_ms, used_ms: of a step; steps}."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run([sys.executable, "-c", STEPS, str(seconds)], env={**plain, **WAYS[way][1]}, capture_output=True, text=True,
                          check=True)
    return dict(json.loads(done.stdout))


def lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line a measurement."""
    order = sorted(rows, key=lambda row: (row["busy"], list(WAYS).index(row["way"])))
    return [[f"{row['busy']} busy processes" if row["busy"] else "nothing", WAYS[row["way"]][0], f"{row['wall_ms']:.3g}",
             f"{row['used_ms']:.3g}"] for row in order]


def main(words: list[str] | None = None) -> int:
    """Measure every way, alone and in company, in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--turns", type=int, default=3, help="measurements of each, of which the median counts")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, available_cores()], help="busy processes beside it")
    args = parser.parse_args(words)
    table = Table(RESULTS / "waiting.jsonl", ("busy", "way"))
    for busy in args.busy:
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        with company(busy):
            for _ in range(args.turns):
                for way, of in found.items():
                    of.append(measure(way, args.seconds))
        for way, of in found.items():
            table.put({"busy": busy, "way": way, "turns": len(of), **sorted(of, key=lambda m: m["wall_ms"])[len(of) // 2]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
