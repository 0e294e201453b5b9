"""RoboCat: is practice by itself worth anything, is variety, and does a goal say what to do?

    OMP_NUM_THREADS=1 python -m benchmarks.robocat
    OMP_NUM_THREADS=1 python -m benchmarks.robocat --groups four --seeds 0 1 2 --compare demonstrations simulator scratch
    OMP_NUM_THREADS=1 python -m benchmarks.robocat --groups ur5e --seeds 0 1 2
    OMP_NUM_THREADS=1 python -m benchmarks.robocat --groups sawyer two-robots --seeds 0 1 2 --sweep base guidance-1.5 no-foresight

A run is the whole cycle of a group: `fine-tuned-1` before practice, `generalist-2` after it. Controls, from the same cycle's data and as
many gradient steps as a generalist: `demonstrations` (no own episodes), `simulator` (its labels in place of the classifier's),
`no-failures`, `more-demonstrations` (as many as there were own successes: the upper bound), `random-goals` (as many episodes that were
shown other tasks' goals: the lower); `scratch` (a held-out task's demonstrations alone) and
`fine-tuned-2` (the next generalist fine-tuned); the next generalist shown goals alone, told by text alone, and shown another task's goals,
which must fail. `variety-0`, `-1` and `-2` are fresh weights, the first and the next generalist fine-tuned to the few demonstrations of
tasks that none of them has seen. "panda": a robot that the generalist does not know, by `fine-tuned-1` and `scratch` (with --demos 100
--few 100).
Success from held-out starts, pooled over a group's held-out tasks (for variety: its unseen ones); a row a group, sweep, seed and method in
benchmarks/results/robocat.jsonl. The same command goes on where it was stopped, within a run too.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.lib.common import RESULTS, Part, Table, arguments, overridden, run_parts
from benchmarks.lib.jobs import Job
from benchmarks.lib.practising import METHODS
from realrl.algos.robocat import RoboCatConfig, train
from realrl.cell.evaluate import wilson
from realrl.scene import CollectConfig

KEY = ("task", "sweep", "seed", "method")
SMALL = tuple(f"metaworld/{name}-v3" for name in ("coffee-push", "coffee-button", "push"))
SAWYER = tuple(f"metaworld/{name}-v3" for name in ("coffee-push", "coffee-button", "push", "pick-place", "drawer-open", "window-open"))
UR5E = tuple(f"ogbench/{name}" for name in ("drawer-close", "window-open", "window-close", "button-drawer"))
HELD_OUT = ("metaworld/coffee-pull-v3", "metaworld/box-close-v3")
GROUPS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "toys": (("toy/red", "toy/line"), ("toy/blue",), ("toy/obstacle",)),
    "small": (SMALL, HELD_OUT, ()),
    "sawyer": (SAWYER, HELD_OUT, ("metaworld/shelf-place-v3", "metaworld/hammer-v3")),
    "four": (SMALL, (*HELD_OUT, "metaworld/pick-place-v3", "metaworld/door-open-v3"),
             ("metaworld/pick-place-wall-v3", "metaworld/push-wall-v3")),
    "ur5e": (UR5E, ("ogbench/cube", "ogbench/drawer-open"), ("ogbench/button-window",)),
    "panda": (SMALL, ("arm/panda-pick",), ()),
    "two-robots": ((*SAWYER, *UR5E), (*HELD_OUT, "ogbench/cube"), ("metaworld/shelf-place-v3", "metaworld/hammer-v3"))}
"""Group -> (tasks of the first generalist, tasks that are practised, tasks that no generalist sees)."""
BASE = RoboCatConfig(compare=("demonstrations", "simulator", "no-failures", "more-demonstrations", "random-goals", "scratch", "fine-tuned"),
                     swapped=True)
SWEEPS: dict[str, Mapping[str, Any]] = {
    "base": {}, "defaults": {"compare": (), "swapped": False}, "rounds-2": {"rounds": 2}, "rounds-3": {"rounds": 3},
    "no-foresight": {"foresight": 0.0}, "hindsight-alone": {"other": 0.0},
    **{f"guidance-{w}": {"guidance": w} for w in (1.5, 2.0, 3.0)}, **{f"few-{n}": {"few": n} for n in (3, 10, 25, 50, 100)}}
"""What else is tried: the cycle alone, as `realrl train robocat` does it; more rounds of it; no auxiliary task, no goals of other episodes,
guidance on the goal, how many demonstrations a held-out task has."""


def swept(cfg: RoboCatConfig, changes: Mapping[str, Any]) -> RoboCatConfig:
    """A configuration with a sweep's change."""
    if "guidance" in changes:
        return replace(cfg, policy=replace(cfg.policy, flow=replace(cfg.policy.flow, guidance=changes["guidance"])))
    return replace(cfg, **changes) if {"few", "compare", "rounds"} & changes.keys() else replace(cfg, goals=replace(cfg.goals, **changes))


def toy_size(cfg: RoboCatConfig) -> RoboCatConfig:
    """The same with budgets that show nothing but that the script works."""
    small = {"steps": 4, "batch": 8}
    policy = replace(cfg.policy, width=16, heads=2, expert=1, plan=4, chunk=4, reader="words", flow=replace(cfg.policy.flow, steps=2))
    tasks, held_out, unseen = GROUPS["toys"]
    return replace(cfg, demos=3, few=2, practice=8, labelled=4, eval_episodes=3, policy=policy, compare=cfg.compare[:2],
                   classifier=replace(cfg.classifier, steps=4, batch=8, hidden=(8,)), generalist=replace(cfg.generalist, **small),
                   finetuning=replace(cfg.finetuning, **small), task="", tasks=tasks, held_out=held_out, unseen=unseen)


@dataclass(frozen=True)
class Group(Job):
    """One group, sweep and seed: a run, and a row of it a method."""

    sweep: str

    def part(self) -> Part:
        """Its run; it is done when its last row is there."""
        key = (self.task, self.sweep, self.cfg.seed)
        return Part(f"{self.task} {self.sweep} seed {self.cfg.seed}", lambda: self.table.find(*key, "classifier") is not None, self.run)

    def run(self) -> None:
        """Run the cycle, and write the rows."""
        summary = self.learn(train)
        known = {task.partition("/")[2] for task in (*self.cfg.held_out, *self.cfg.unseen)}
        found: dict[str, list[dict[str, Any]]] = {}
        for s in summary["stages"]:
            method, _, name = s["name"].rpartition(" ")
            if name in known and method in METHODS:
                found.setdefault(method, []).append(s)
        own = [row for row in summary["lineage"] if row["origin"] == "practice"]
        for method, of in found.items():
            n, good = sum(s["success"]["n"] for s in of), sum(round(s["success"]["rate"] * s["success"]["n"]) for s in of)
            self.table.put({"task": self.task, "sweep": self.sweep, "seed": self.cfg.seed, "method": method,
                            "success": vars(wilson(good, n)), "by_task": {s["name"].rpartition(" ")[2]: s["success"] for s in of},
                            "few": self.cfg.few, "practised": sum(row["episodes"] for row in own), "wall_s": summary["wall_s"]})
        self.table.put({"task": self.task, "sweep": self.sweep, "seed": self.cfg.seed, "method": "classifier",
                        "by_task": summary.get("classifier", {})})


def main(words: list[str] | None = None) -> int:
    """Run what is missing."""
    parser = arguments(__doc__ or "", seeds=range(1))
    parser.add_argument("--groups", nargs="+", default=["small"], choices=list(GROUPS))
    parser.add_argument("--sweep", nargs="+", default=["base"], choices=list(SWEEPS))
    args, flags = parser.parse_known_args(words)
    out, results = (args.out / "smoke", args.out / "smoke") if args.smoke else (args.out, RESULTS)
    table, jobs = Table(results / "robocat.jsonl", KEY), []
    for group in args.groups:
        tasks, held_out, unseen = GROUPS[group]
        for sweep in args.sweep:
            base = replace(swept(BASE, SWEEPS[sweep]), task="", tasks=tasks, held_out=held_out, unseen=unseen,
                           collect=CollectConfig(workers=1))
            base = toy_size(overridden(base, flags)) if args.smoke else overridden(base, flags)
            jobs += [Group(replace(base, seed=seed), out / "robocat" / f"{group}-{sweep}-s{seed}", table, group, "", sweep)
                     for seed in (args.seeds[:1] if args.smoke else args.seeds)]
    return min(run_parts([job.part() for job in jobs], args.budget), 1)


if __name__ == "__main__":
    sys.exit(main())
