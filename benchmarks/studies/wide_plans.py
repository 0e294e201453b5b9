"""What a network shall say of plans that are wide for it: RL-100's imitation of the hand's experts, by noise and by the clean chunk.

    REALRL_EXPERTS=DIR OMP_NUM_THREADS=1 python -m benchmarks.studies.wide_plans

20 demonstrations without noise, training seed 0, a skip-net with 256 units; a plan has 4 actions, so 96 (pen) to 120 numbers (relocate).
Relocate also with shorter plans, a wider net and more gradient steps. Rows go to benchmarks/results/wide_plans.jsonl.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.lib.common import RESULTS, Part, Table, arguments, experts_folder, experts_option, overridden, run_parts, slim
from realrl.algos import rl100
from realrl.algos.rl100 import RL100Config
from realrl.cell.cell import WorkCell
from realrl.run import Run
from realrl.scene import CollectConfig

KEY = ("task", "says", "chunk", "hidden", "steps")
HEAD = ("task", "numbers of a plan", "units", "gradient steps", "noise", "velocity", "clean chunk")
TASKS = ("relocate", "pen", "door", "hammer")
SIZES = ((4, 256, 1000),)
MORE = ((2, 256, 1000), (2, 256, 3000), (4, 256, 3000), (4, 512, 3000))
"""(actions of a plan, units of the net, gradient steps); the latter of relocate alone, whose clone by noise fails."""
ACTIONS = {"relocate": 30, "pen": 24, "door": 28, "hammer": 26}


@dataclass(frozen=True)
class Fit:
    """One clone."""

    cfg: RL100Config
    folder: Path
    table: Table

    @property
    def key(self) -> tuple[Any, ...]:
        """Of its row."""
        policy = self.cfg.policy
        return self.cfg.task.partition("/")[2], policy.diffusion.predict, policy.chunk, policy.hidden, self.cfg.imitation.steps

    def part(self) -> Part:
        """Its fit and its evaluation."""
        return Part(" ".join(map(str, self.key)), lambda: self.table.find(*self.key) is not None, self.run)

    def run(self) -> None:
        """Clone, and write the row."""
        folder = self.folder / "-".join(map(str, self.key))
        with Run.start(folder, self.cfg, resume=True, ignore=("collect",)) as run, WorkCell(run, self.cfg) as cell:
            (stage,) = rl100.train(self.cfg, cell)["stages"]
        self.table.put({**dict(zip(KEY, self.key, strict=True)), **slim(stage)})


def lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line a task and size."""
    out = []
    for size in dict.fromkeys((r["task"], r["chunk"], r["hidden"], r["steps"]) for r in rows):
        of = {r["says"]: r["success"] for r in rows if (r["task"], r["chunk"], r["hidden"], r["steps"]) == size}
        told = [f"{100 * of[says]['rate']:.0f} % of {of[says]['n']}" if says in of else "-" for says in ("noise", "velocity", "sample")]
        out.append([size[0], str(size[1] * ACTIONS[size[0]]), str(size[2]), f"{size[3]:,}", *told])
    return out


def main(words: list[str] | None = None) -> int:
    """Fit what is missing."""
    parser = arguments(__doc__ or "", seeds=(0,))
    experts_option(parser)
    parser.add_argument("--says", nargs="+", default=["noise", "sample"], choices=("noise", "velocity", "sample"))
    args, flags = parser.parse_known_args(words)
    base = replace(RL100Config(), demo_noise=0.0, stages=("imitation",), audit_episodes=0, expert=experts_folder(parser, args),
                   collect=CollectConfig(workers=1))
    table, parts = Table((args.out if args.smoke else RESULTS) / "wide_plans.jsonl", KEY), []
    for task in TASKS[: 1 if args.smoke else None]:
        for chunk, hidden, steps in (*SIZES, *(MORE if task == "relocate" and not args.smoke else ())):
            for says in args.says:
                policy = replace(base.policy, chunk=chunk, hidden=hidden, diffusion=replace(base.policy.diffusion, predict=says))
                fit = replace(base.imitation, steps=10 if args.smoke else steps)
                cfg = replace(base, task=f"adroit/{task}", policy=policy, imitation=fit)
                parts.append(Fit(overridden(cfg, flags), args.out / "wide_plans", table).part())
    return min(run_parts(parts, args.budget), 1)


if __name__ == "__main__":
    sys.exit(main())
