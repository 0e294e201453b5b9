"""Environment steps per second with every kind of eyes, on one core, and what farthest point sampling costs.

    python -m benchmarks.rendering                       # EGL where it works, else OSMesa
    MUJOCO_GL=osmesa python -m benchmarks.rendering      # rows of their own
    python -m benchmarks.rendering --tasks metaworld/box-close-v3 --steps 30 --kinds rays

A step is everything: physics, rendering or rays, sampling. Its time is the processor's, of all threads of this process together, so
that what else runs on the machine hardly counts; the process is bound to one core and Mesa to one thread. Of several rounds the median
is given, and the fastest beside it. Actions are random, the task does not end. "at plans of K" looks at every Kth step alone, as online
rounds and evaluations do. Writes benchmarks/results/rendering.jsonl.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ["LP_NUM_THREADS"] = "1"  # Mesa's, read when it starts

import numpy as np

from benchmarks.lib.common import RESULTS, Table
from realrl import envs
from realrl.envs import clouds
from realrl.envs.mujoco import gl
from realrl.scene import SightConfig

TASKS = ("metaworld/peg-insert-side-v3", "metaworld/box-close-v3", "adroit/door")
TARGET = 120.0  # steps/s of Meta-World with a cloud of 512 points
PLANS = (2, 4)
TWO = {"metaworld": ("corner2", "corner"), "adroit": ("fixed", "vil_camera")}


def sights(task: str) -> dict[str, SightConfig | None]:
    """name -> what is seen; a cloud looks through two cameras unless it says one."""
    two = TWO[task.partition("/")[0]]
    one = two[:1]
    return {
        "state": None,
        "rgb 84": SightConfig("rgb"), "rgb 2 x 96": SightConfig("rgb", cameras=two, height=96, width=96),
        "depth 84": SightConfig("depth"),
        "cloud 512 by rays": SightConfig("pointcloud", source="rays"),
        "cloud 512 by rays, one camera": SightConfig("pointcloud", source="rays", cameras=one),
        "cloud 1024 by rays": SightConfig("pointcloud", source="rays", points=1024),
        "cloud 512 by depth": SightConfig("pointcloud", source="depth"),
        "cloud 512 by depth, one camera": SightConfig("pointcloud", source="depth", cameras=one),
        "cloud 1024 by depth": SightConfig("pointcloud", source="depth", points=1024),
    }


def needs_gl(sight: SightConfig | None) -> bool:
    """Whether OpenGL draws anything for it."""
    return sight is not None and not (sight.kind == "pointcloud" and sight.source == "rays")


def rounds(work: Callable[[], Any], count: int, times: int) -> list[float]:
    """Processor seconds of one call of `work`, averaged over `count` calls; one value for each of `times` rounds."""
    taken = []
    for _ in range(times):
        before = time.process_time()
        for _ in range(count):
            work()
        taken.append((time.process_time() - before) / count)
    return taken


def stepping(task: str, sight: SightConfig | None, steps: int, times: int, plan: int = 1) -> list[float]:
    """Processor seconds of a step, for each round; plan: steps from one look to the next."""
    env = envs.make(task, reward="dense", horizon=steps * (times + 1) + 2, sight=sight)
    env.reset(seed=0)
    rng, count = np.random.default_rng(0), itertools.count(1)

    def work() -> None:
        env.watching = next(count) % plan == 0
        env.step(rng.uniform(-1, 1, env.task.action_dim))

    rounds(work, min(steps, 10), 1)
    taken = rounds(work, steps, times)
    env.close()
    return taken


def sampling(table: Table, times: int) -> None:
    """Farthest point sampling of a cloud as rays and as a depth camera give it, by both samplers."""
    for many, n in ((1000, 512), (2000, 1024), (7000, 512), (7000, 1024)):
        points = np.random.default_rng(0).uniform(-0.5, 0.5, (many, 3)).astype(np.float32)
        for name, sampler in {"fpsample": clouds.farthest, "own": clouds.farthest_plainly}.items():
            taken = rounds(functools.partial(sampler, points, n), 5, times)
            table.put({"task": f"{n} of {many} points", "sight": f"sampling by {name}", "gl": None, "ms": 1e3 * float(np.median(taken)),
                       "best_ms": 1e3 * min(taken)})
            print(f"    {1e3 * float(np.median(taken)):.2f} ms")


def main(words: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--kinds", nargs="+", default=[""], help="only sights with one of these in their name")
    parser.add_argument("--steps", type=int, default=60, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(words)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    table = Table(RESULTS / "rendering.jsonl", ("task", "sight", "gl"))
    drawn_by = gl.backend()
    for task in args.tasks:
        looks = [(name, sight, 1) for name, sight in sights(task).items()]
        looks += [(f"cloud 512 by rays, at plans of {k}", SightConfig("pointcloud"), k) for k in PLANS]
        for name, sight, plan in looks:
            if not any(kind in name for kind in args.kinds):
                continue
            taken = stepping(task, sight, args.steps, args.rounds, plan)
            rate = 1 / float(np.median(taken))
            target = TARGET if name.startswith("cloud 512") and plan == 1 and task.startswith("metaworld") else None
            table.put({"task": task, "sight": name, "gl": drawn_by if needs_gl(sight) else None, "steps_per_s": rate,
                       "best_steps_per_s": 1 / min(taken), "ms": 1e3 / rate, "steps": args.steps, "rounds": args.rounds,
                       "target_steps_per_s": target})
            print(f"    {rate:.0f} steps/s (best {1 / min(taken):.0f}), {1e3 / rate:.2f} ms a step")
    if "" in args.kinds:
        sampling(table, args.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
