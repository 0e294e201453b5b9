"""RL-100 on every Meta-World task whose scripted expert ever succeeds, from state, with one set of defaults: what a newcomer can expect.

    python -m benchmarks.rl100_all                                        # about fifty tasks, hours; goes on where it was stopped
    python -m benchmarks.rl100_all --tasks fetch/push adroit/relocate --experts DIR                          # tasks of other suites
    python -m benchmarks.rl100_all --tasks stick-pull-v3 --seeds 7 --setting "sigma 0.3" --policy.diffusion.sigma-max 0.3

Nothing is tuned to a task, and nothing was chosen by the held-out starts. Rows go to benchmarks/results/rl100_all.jsonl, all stages of
a task when its run has ended.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.lib.common import RESULTS, Part, Table, arguments, experts_folder, experts_option, overridden, run_parts, slim
from benchmarks.lib.comparison import toy_size
from realrl import envs
from realrl.algos import rl100
from realrl.algos.rl100 import RL100Config
from realrl.cell.cell import WorkCell
from realrl.run import Run

KEY = ("task", "seed", "setting", "method")
DEFAULTS = "defaults"
LOOKING = ("collect", "audit_episodes", "eval_episodes", "final_episodes")  # change nothing of what is learned


def main(words: list[str] | None = None) -> int:
    """Run what is missing."""
    known = [name.partition("/")[2] for name in envs.tasks() if name.startswith("metaworld/")]
    parser = arguments(__doc__ or "", seeds=(0,))
    parser.add_argument("--tasks", nargs="+", default=known, metavar="TASK", help="Meta-World's (all, by default) or SUITE/TASK")
    experts_option(parser)
    parser.add_argument("--setting", default=DEFAULTS, help="what the rows call a configuration that further flags change")
    parser.add_argument("--audit", action=argparse.BooleanOptionalAction, default=False, help="also what every judged candidate is worth")
    args, flags = parser.parse_known_args(words)
    base, out, results = overridden(RL100Config(), flags), args.out, RESULTS
    plain = RL100Config()
    if replace(base, **{name: getattr(plain, name) for name in LOOKING}) != plain and args.setting == DEFAULTS:
        parser.error(f"{' '.join(flags)} change the defaults: say what the rows shall call that with --setting")
    if args.smoke:
        base, out, results = replace(toy_size(base), horizon=80), args.out / "smoke", args.out / "smoke"
    base = base if args.audit else replace(base, audit_episodes=0)
    table = Table(Path(results) / "rl100_all.jsonl", KEY)
    experts = experts_folder(parser, args) if any(task.startswith("adroit/") for task in args.tasks) else None

    def job(task: str, seed: int) -> Job:
        found = task if "/" in task else f"metaworld/{task}"
        cfg = replace(base, task=found, seed=seed)
        if found.startswith("adroit/"):  # the trained experts of the hand, which noise makes drop everything
            cfg = replace(cfg, expert=experts, demo_noise=0.0)
        return Job(cfg, out / "all", args.setting, table)

    jobs = [job(task, seed) for seed in args.seeds for task in args.tasks]
    return min(run_parts([job.part() for job in jobs], args.budget), 1)


@dataclass(frozen=True)
class Job:
    """One task, training seed and setting."""

    cfg: RL100Config
    folder: Path
    setting: str
    table: Table

    @property
    def name(self) -> str:
        """The task as the table calls it: Meta-World's without their suite."""
        return self.cfg.task.removeprefix("metaworld/")

    def part(self) -> Part:
        """The whole method; done when its last row is there."""
        found = lambda: self.table.find(self.name, self.cfg.seed, self.setting, "run") is not None
        return Part(f"{self.name} seed {self.cfg.seed}, {self.setting}", found, self.run)

    def run(self) -> None:
        """Train, or go on; then a row a stage, and one of the run with what its trials decided."""
        folder = self.folder / f"{self.name}-s{self.cfg.seed}-{self.setting}".replace("/", "-").replace(" ", "-")
        with (Run.start(folder, self.cfg, resume=True, ignore=LOOKING) as run, WorkCell(run, self.cfg) as cell):
            summary = rl100.train(self.cfg, cell)
        for stage in (summary["demonstrator"], *summary["stages"]):
            self._put(stage["name"], **slim(stage), env_steps=stage["env_steps"])
        self._put("run", env_steps=summary["env_steps"], wall_s=summary["wall_s"], decisions=summary.get("decisions", {}))

    def _put(self, method: str, **values: object) -> None:
        self.table.put({"task": self.name, "seed": self.cfg.seed, "setting": self.setting, "method": method, **values})


if __name__ == "__main__":
    sys.exit(main())
