"""RL-100 on the paper's four Meta-World tasks from state, beside its demonstrator, offline baselines and DPPO's settings.

    python -m benchmarks.rl100_metaworld                                  # everything, three seeds
    python -m benchmarks.rl100_metaworld --tasks push-wall-v3 --seeds 0 --no-baselines --budget 60

Rows go to benchmarks/results/metaworld.jsonl as they are measured; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.lib.common import RESULTS, Table, arguments, overridden, run_parts
from benchmarks.lib.comparison import KEY, Comparison, demonstrators, in_phases, toy_size
from realrl.algos.rl100 import RL100Config

TASKS = ("push-wall-v3", "peg-insert-side-v3", "box-close-v3", "disassemble-v3")


def main(words: list[str] | None = None) -> int:
    """Run what is missing."""
    parser = arguments(__doc__ or "", seeds=(0, 1, 2))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="Meta-World tasks")
    parser.add_argument("--baselines", action=argparse.BooleanOptionalAction, default=True, help="also what a sceptic would try")
    args, flags = parser.parse_known_args(words)
    base = overridden(RL100Config(), flags)
    out, results, extra = args.out, RESULTS, {}
    if args.smoke:
        base, out, results, extra = toy_size(base), args.out / "smoke", args.out / "smoke", {"extra": 10}
        args.tasks, args.seeds = args.tasks[:1], args.seeds[:1]
    table = Table(Path(results) / "metaworld.jsonl", KEY)
    configs = [replace(base, task=f"metaworld/{task}", seed=seed) for seed in args.seeds for task in args.tasks]
    comparisons = [Comparison(cfg, out / "metaworld" / f"{_short(cfg)}-s{cfg.seed}", table, _short(cfg), **extra) for cfg in configs]
    first = [part for task in args.tasks for part in demonstrators(replace(base, task=f"metaworld/{task}"), table, task)]
    return min(run_parts(in_phases(first, comparisons, baselines=args.baselines), args.budget), 1)


def _short(cfg: RL100Config) -> str:
    return cfg.task.partition("/")[2]


if __name__ == "__main__":
    sys.exit(main())
