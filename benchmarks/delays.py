"""Plans that come late: what a robot may do meanwhile, at delays of 0 to 8 control steps, in lock-step simulation.

    OMP_NUM_THREADS=1 python -m benchmarks.delays
    OMP_NUM_THREADS=1 python -m benchmarks.delays --tasks metaworld/peg-insert-side-v3 --episodes 100

One flow policy a task and seed, imitated with up to 8 decided actions, is judged from the same held-out starts in every way of
`realrl.cell.overlap`. Boundary: mean distance between the last action of a plan and the first of the next one, over that of two actions
within a plan; jerk: root mean square of the third difference of the actions per control step; age: control steps from what was
seen to an action planned from it, mean and worst: nothing that happens is answered sooner. Rows go to
benchmarks/results/delays.jsonl.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lib.common import RESULTS, Part, Table, arguments, overridden, run_parts
from realrl import envs
from realrl.algos.flow import FIT, FlowTrainConfig, train
from realrl.cell.cell import WorkCell
from realrl.cell.evaluate import held_out, summarise
from realrl.cell.overlap import WAYS, How, Overlap, OverlapConfig
from realrl.cell.rollout import rollout
from realrl.generative.flow import FlowConfig
from realrl.policies.flow import FlowPolicyConfig
from realrl.policies.folder import load_policy
from realrl.robots.guard import box_guard
from realrl.run import Run
from realrl.scene import CollectConfig
from realrl.types import Episode

KEY = ("task", "seed", "how", "delay")
DELAYS = (0, 1, 2, 4, 8)
TASKS = ("metaworld/push-wall-v3", "metaworld/peg-insert-side-v3")
POLICY = FlowPolicyConfig(plan=16, chunk=8, flow=FlowConfig(delay=8))
BASE = FlowTrainConfig(policy=POLICY, imitation=replace(FIT, steps=2000), eval_episodes=20)
SLOTS = 10
"""Robots at once."""


@dataclass(frozen=True)
class Delays:
    """One task and seed."""

    cfg: FlowTrainConfig
    folder: Path
    table: Table
    episodes: int

    def parts(self) -> list[Part]:
        """A row for every way and delay; without a delay all ways are one."""
        return [Part(f"{self.cfg.task} seed {self.cfg.seed}: {how}, {delay} steps late",
                     partial(self._done, how, delay), partial(self.judge, how, delay))
                for delay in DELAYS for how in WAYS if delay or how == "stop"]

    def _done(self, how: How, delay: int) -> bool:
        return self.table.find(self.cfg.task, self.cfg.seed, how, delay) is not None

    def judge(self, how: How, delay: int) -> None:
        """Run the held-out starts, and write the row."""
        if not (self.folder / "policy").exists():
            with Run.start(self.folder, self.cfg, resume=True, ignore=("collect",)) as run, WorkCell(run, self.cfg) as cell:
                train(self.cfg, cell)
        robots = [envs.make(self.cfg.task) for _ in range(SLOTS)]
        about = robots[0].task
        policy = Overlap(load_policy(self.folder / "policy")[0], OverlapConfig(how, delay), relative=about.control == "relative")
        episodes = list(rollout(robots, policy, [box_guard(robot) for robot in robots], held_out(self.episodes), greedy=True))
        for robot in robots:
            robot.close()
        found = summarise(episodes, about.dt).to_dict()
        self.table.put({"task": self.cfg.task, "seed": self.cfg.seed, "how": how, "delay": delay, "success": found["success"],
                        "cycle_steps": found["cycle_steps"], "overruns": policy.overruns, **motion(episodes)})


def motion(episodes: Sequence[Episode]) -> dict[str, float]:
    """How actions went on at the boundaries of plans, and how old they were."""
    between, within, jerk, age = [], [], [], []
    for episode in episodes:
        begins, step = episode.extra["begins"], np.linalg.norm(np.diff(episode.action, axis=0), axis=1)
        between.append(step[begins[1:len(step) + 1]])
        within.append(step[~begins[1:len(step) + 1]])
        jerk.append(np.square(np.diff(episode.action, n=3, axis=0)).sum(1))
        age.append(episode.extra["age"])
    ages, jumps, usual = np.concatenate(age), np.concatenate(between), np.concatenate(within)
    return {"boundary": float(jumps.mean() / usual.mean()), "jerk": float(np.sqrt(np.concatenate(jerk).mean())), "age": float(ages.mean()),
            "worst_age": float(ages.max())}


def main(words: list[str] | None = None) -> int:
    """Run what is missing."""
    parser = arguments(__doc__ or "", seeds=(0,))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), metavar="TASK")
    parser.add_argument("--episodes", type=int, default=100, help="held-out starts (default: 100)")
    args, flags = parser.parse_known_args(words)
    base, out, results = overridden(BASE, flags), args.out / "delays", RESULTS
    if args.smoke:
        small = replace(POLICY, width=16, heads=2, expert=1, reader="words", flow=replace(POLICY.flow, steps=2))
        base = replace(base, policy=small, imitation=replace(FIT, steps=4, batch=8), demos=2, eval_episodes=2)
        out = results = args.out / "smoke"
    table = Table(results / "delays.jsonl", KEY)
    parts: list[Part] = []
    for seed in args.seeds[:1] if args.smoke else args.seeds:
        for task in ("toy/reach",) if args.smoke else args.tasks:
            cfg: Any = replace(base, task=task, tasks=(task,), seed=seed, collect=CollectConfig(workers=1))
            job = Delays(cfg, out / f"{task.replace('/', '-')}-s{seed}", table, 3 if args.smoke else args.episodes)
            parts += job.parts()
    return min(run_parts(parts, args.budget), 1)


if __name__ == "__main__":
    sys.exit(main())
