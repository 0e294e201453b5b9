"""Recap against fine-tuning, filtered cloning, advantage-weighted regression, and against itself with an indicator that says nothing.

    OMP_NUM_THREADS=1 python -m benchmarks.recap
    OMP_NUM_THREADS=1 python -m benchmarks.recap --groups colours --policy.width 32 --policy.plan 2 --policy.chunk 2 --pretraining.steps 300
    OMP_NUM_THREADS=1 python -m benchmarks.recap --groups coffee plate --seeds 0 1 2 --rounds 2 --rollouts 150
    OMP_NUM_THREADS=1 python -m benchmarks.recap --sweep defaults --seeds 0 1 2 --rivals rl100 ppo
    OMP_NUM_THREADS=1 python -m benchmarks.recap --sweep rollouts-300 --seeds 0 1 2 --compare filtered awr
    OMP_NUM_THREADS=1 python -m benchmarks.recap --groups ten --sweep defaults --seeds 0 --compare filtered awr shuffled
    OMP_NUM_THREADS=1 python -m benchmarks.recap --sweep rounds-2 positive-10 positive-50 ahead-8

A run pre-trains on all tasks of a group, fine-tunes each, lets it practise beside a scripted person, and learns from the same data in
every way that is compared; each is judged from held-out starts of its own task's text, pooled over the tasks. Controls: `shuffled` learns
the same indicators in any order, `unmarked` and `negative` are Recap's policy told nothing and told to act badly, `swapped` is told
another task's text; `guided-2` is Recap's with a guidance of 2. `--rivals`: RL-100, and its online stage alone (PPO), begin with what the
fine-tuned policies show and are given as many episodes of a task as Recap practised (benchmarks/lib/rivals.py); a row counts them. A row a
group, sweep, seed and method in benchmarks/results/recap.jsonl; the same command goes on where it was stopped, within a run too. The clock
is the simulator's: planning time is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.lib.common import RESULTS, Part, Table, arguments, overridden, run_parts
from benchmarks.lib.jobs import Job
from benchmarks.lib.rivals import RIVALS, rival
from realrl.algos.recap import RecapConfig, train
from realrl.cell.cell import WorkCell
from realrl.cell.evaluate import wilson
from realrl.policies.flow import FlowPolicyConfig
from realrl.policies.folder import load_policy
from realrl.run import Run
from realrl.scene import CollectConfig

KEY = ("task", "sweep", "seed", "method")
GROUPS = {"colours": ("red", "blue"), "coffee": ("coffee-push-v3", "coffee-pull-v3"),
          "plate": ("plate-slide-v3", "plate-slide-back-v3", "plate-slide-side-v3", "plate-slide-back-side-v3"),
          "ten": ("coffee-button-v3", "coffee-push-v3", "coffee-pull-v3", "plate-slide-v3", "plate-slide-back-v3", "push-v3",
                  "pick-place-v3", "peg-insert-side-v3", "box-close-v3", "door-open-v3")}
"""Tasks that are learned together, of metaworld; those of one name share a scene. The colours are toys, minutes of one core."""
BASE = RecapConfig(policy=FlowPolicyConfig(), rounds=1, compare=("filtered", "positive", "awr", "shuffled"), marks=True, guidances=(2.0,))
OWN = {"policy": RecapConfig().policy, "rounds": 2, "compare": (), "marks": False, "guidances": ()}
SWEEPS: dict[str, Mapping[str, Any]] = {
    "base": {}, "defaults": OWN, "rounds-2": OWN, "rollouts-300": {**OWN, "rollouts": 300},
    **{f"positive-{p}": {"positive": p / 100} for p in (10, 30, 50)}, **{f"ahead-{n}": {"ahead": n} for n in (8, 200)}}
"""What else is tried: `realrl train recap` as it comes, two rounds with guidance (`rounds-2`: the same with fits that flags made smaller);
300 episodes of practice a task and round in place of 100; the share of practised actions that is taken for good; the steps that an
advantage looks ahead. Guidance is a way of acting and is judged in every run (`--guidances`)."""


def toy_size(cfg: RecapConfig) -> RecapConfig:
    """The same with budgets that show nothing but that the script works."""
    small = {"steps": 4, "batch": 8}
    policy = replace(cfg.policy, width=16, heads=2, expert=1, plan=4, chunk=4, reader="words", flow=replace(cfg.policy.flow, steps=2))
    return replace(cfg, demos=2, rollouts=5, eval_episodes=3, policy=policy, value=replace(cfg.value, steps=4, hidden=(8,), every=2),
                   pretraining=replace(cfg.pretraining, **small), finetuning=replace(cfg.finetuning, **small),
                   task="", tasks=("toy/red", "toy/blue"), compare=cfg.compare[:1])


@dataclass(frozen=True)
class Group(Job):
    """One group, sweep and seed: a run, and a row of it a method."""

    sweep: str

    def part(self) -> Part:
        """Its run; it is done when its last row is there."""
        key = (self.task, self.sweep, self.cfg.seed)
        return Part(f"{self.task} {self.sweep} seed {self.cfg.seed}", lambda: self.table.find(*key, "swapped") is not None, self.run)

    def run(self) -> None:
        """Learn, judge under swapped texts, and write the rows."""
        with Run.start(self.folder, self.cfg, resume=True, ignore=("collect",)) as run, WorkCell(run, self.cfg) as cell:
            summary = train(self.cfg, cell)
            cells = [cell.at(task) for task in self.cfg.tasks]
            for at, other in zip(cells, [*cells[1:], cells[0]], strict=True):
                policy, _ = load_policy(run.dir / ("policy" if at is cell else f"policy-{at.spec.name}"))
                assert policy.KIND == "flow"
                at.finish_stage(f"swapped {at.spec.name}", policy.told(other.spec.id), self.cfg.eval_episodes)
            names = [at.spec.name for at in cells]
            dt = cell.spec.dt
        found = {s["name"]: s for s in summary["stages"]}
        for method in dict.fromkeys(name.rpartition(" ")[0] for name in found):
            self.write(method, {name: found[f"{method} {name}"] for name in names}, dt, env_steps=summary["env_steps"],
                       wall_s=summary["wall_s"], values=summary["values"] if method == "fine-tuned" else {})

    def write(self, method: str, of: Mapping[str, Mapping[str, Any]], dt: float, **more: Any) -> None:
        """The row of a method. of: task -> its stage in summary.json; dt: seconds a control step."""
        n, steps = sum(s["success"]["n"] for s in of.values()), sum(s["steps"] for s in of.values())
        good = round(sum(s["success"]["rate"] * s["success"]["n"] for s in of.values()))
        self.table.put({"task": self.task, "sweep": self.sweep, "seed": self.cfg.seed, "method": method,
                        "success": vars(wilson(good, n)), "per_hour": 3600 * good / (steps * dt),
                        "per_hour_5s": 3600 * good / (steps * dt + 5 * n), "by_task": {
                            name: {"success": s["success"], "cycle_steps": s["cycle_steps"]} for name, s in of.items()},
                        "latency_ms": next(iter(of.values()))["latency_ms"], **more})


@dataclass(frozen=True)
class Rival(Group):
    """Another method on the tasks of a group's run, which is there."""

    def part(self) -> Part:
        """A run a task."""
        key = (self.task, self.sweep, self.cfg.seed, self.method)
        return Part(f"{self.task} {self.sweep} seed {self.cfg.seed}, {self.method}", lambda: self.table.find(*key) is not None, self.run)

    def run(self) -> None:
        """Learn each task, and write the row of all."""
        if not (self.folder / "fine-tuned").exists():  # a run of before they were kept
            self.learn(train)
        found = {task.partition("/")[2]: rival(self.method, self.cfg, self.folder, i) for i, task in enumerate(self.cfg.tasks)}
        self.write(self.method, {name: run.product for name, run in found.items()}, next(iter(found.values())).dt,
                   env_steps=sum(run.env_steps for run in found.values()), wall_s=sum(run.wall_s for run in found.values()),
                   episodes={name: run.episodes for name, run in found.items()})


def main(words: list[str] | None = None) -> int:
    """Run what is missing."""
    parser = arguments(__doc__ or "", seeds=range(1))
    parser.add_argument("--groups", nargs="+", default=["coffee"], choices=list(GROUPS))
    parser.add_argument("--sweep", nargs="+", default=["base"], choices=list(SWEEPS))
    parser.add_argument("--rivals", nargs="*", default=[], choices=RIVALS)
    args, flags = parser.parse_known_args(words)
    out, results = (args.out / "smoke", args.out / "smoke") if args.smoke else (args.out, RESULTS)
    table, jobs = Table(results / "recap.jsonl", KEY), []
    for group in args.groups:
        suite = "toy" if group == "colours" else "metaworld"
        tasks = tuple(f"{suite}/{name}" for name in GROUPS[group])
        for sweep in args.sweep:
            base = overridden(replace(BASE, **SWEEPS[sweep], task="", tasks=tasks, collect=CollectConfig(workers=1)), flags)
            base = toy_size(base) if args.smoke else base
            for seed in args.seeds[:1] if args.smoke else args.seeds:
                job = Group(replace(base, seed=seed), out / "recap" / f"{group}-{sweep}-s{seed}", table, group, "", sweep)
                jobs += [job, *(Rival(job.cfg, job.folder, table, group, who, sweep) for who in args.rivals)]
    return min(run_parts([job.part() for job in jobs], args.budget), 1)


if __name__ == "__main__":
    sys.exit(main())
