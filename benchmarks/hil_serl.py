"""A person in the loop: success without the person against robot time and the person's time, with corrections and without.

    OMP_NUM_THREADS=1 python -m benchmarks.hil_serl --methods corrections demonstrations
    OMP_NUM_THREADS=1 python -m benchmarks.hil_serl --methods hg-dagger cloning --seeds 0 1 2
    OMP_NUM_THREADS=1 python -m benchmarks.hil_serl --methods corrections --tasks peg-hard --steps 20000

A run is `realrl train hil-serl` in one process, physics included. The person is the scripted one of `robots/human.py`, in training alone.
Every 2,500 steps and at the end the policy is judged without noise and without a person from 300 held-out starts; nothing is chosen by it.
Rows go to benchmarks/results/hil_serl.jsonl; the same command goes on where it was stopped, within a run too.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.lib.common import RESULTS, Part, Table, arguments, overridden, run_parts, slim
from realrl.algos.hil_serl import HILConfig, train
from realrl.cell.cell import WorkCell
from realrl.envs.contact import names
from realrl.run import Run
from realrl.scene import CollectConfig

KEY = ("task", "method", "seed")
BASE = HILConfig(steps=10_000, judge_every=2500)
METHODS = {"corrections": BASE, "demonstrations": replace(BASE, human="none"),
           "hg-dagger": replace(BASE, learner="hg-dagger", sac=replace(BASE.sac, utd=1), clone_steps=2000, steps=4000),
           "cloning": replace(BASE, human="none", clone_steps=4000, steps=1, start=10**6)}
"""What is compared: HIL-SERL; the same (RLPD) with the demonstrations alone; imitation of the person, with corrections and without."""


def toy_size(cfg: HILConfig) -> HILConfig:
    """The same with budgets that show nothing but that the script works."""
    sac = replace(cfg.sac, batch=8, hidden=(16,))
    return replace(cfg, sac=sac, policy=replace(cfg.policy, hidden=(16,)), demos=2, steps=min(cfg.steps, 100), start=min(cfg.start, 20),
                   clone_steps=min(cfg.clone_steps, 20), horizon=40, judge_every=50, eval_episodes=4)


@dataclass(frozen=True)
class Job:
    """One task, method and seed."""

    cfg: HILConfig
    folder: Path
    table: Table
    name: str
    method: str

    def part(self) -> Part:
        """Its run."""
        key = (self.name, self.method, self.cfg.seed)
        return Part(f"{self.name} {self.method} seed {self.cfg.seed}", lambda: self.table.find(*key) is not None, self.run)

    def run(self) -> None:
        """Learn, and write the row."""
        with Run.start(self.folder, self.cfg, resume=True, ignore=("collect",)) as run, WorkCell(run, self.cfg) as cell:
            summary = train(self.cfg, cell)
        head: dict[str, Any] = summary["headline"]
        stages = [s for s in summary["stages"] if s["name"].startswith("at ")]
        curve = [{"steps": int(s["name"].removeprefix("at ")), "success": s["success"]["rate"], "cycle_steps": s["cycle_steps"],
                  **s["measured"]} for s in stages]
        self.table.put({"task": self.name, "method": self.method, "seed": self.cfg.seed, "steps": self.cfg.steps,
                        "success": slim(summary["stages"][-1])["success"], "curve": curve, "wall_s": summary["spent_s"]["hil-serl"],
                        **{k: v for k, v in head.items() if k != "success"}})


def main(words: list[str] | None = None) -> int:
    """Run what is missing."""
    parser = arguments(__doc__ or "", seeds=range(3))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--tasks", nargs="+", default=["peg"], choices=names(), metavar="TASK", help="of contact/, e.g. peg peg-hard")
    args, flags = parser.parse_known_args(words)
    out, results = (args.out / "smoke", args.out / "smoke") if args.smoke else (args.out, RESULTS)
    table = Table(results / "hil_serl.jsonl", KEY)
    jobs = []
    for seed in args.seeds[:1] if args.smoke else args.seeds:
        for task in args.tasks:
            for method in args.methods:
                base = overridden(toy_size(METHODS[method]) if args.smoke else METHODS[method], flags)
                cfg = replace(base, task=f"contact/{task}", seed=seed, collect=CollectConfig(workers=1))
                jobs.append(Job(cfg, out / "hil_serl" / f"{task}-{method}-s{seed}", table, task, method))
    return min(run_parts([job.part() for job in jobs], args.budget), 1)


if __name__ == "__main__":
    sys.exit(main())
