"""Does the deployed policy follow the one that RL improves? Adroit door from a few noisy demonstrations, online RL alone, in two ways.

    python -m benchmarks.studies.cooling --experts ../shared/data/adroit_hand_dapg/policies_npz --seeds 0

RL improves the denoising chain with its noise; deployed is the chain without. "constant" keeps the noise as it is, "cooled" turns it
down to a tenth over the rounds (`OnlineConfig.cool`). Rows go to benchmarks/results/cooling.jsonl: the policies before and after from the
held-out starts, without noise ("online") and with it ("exploring"), and the success of every round's training episodes ("curve"). The
same command goes on where it was stopped.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.lib.common import RESULTS, Table, arguments, experts_folder, experts_option, overridden, run_parts
from benchmarks.lib.comparison import KEY, Comparison, in_phases, toy_size
from benchmarks.rl100_adroit import settings
from realrl.algos.rl100 import RL100Config

VARIANTS = {"constant": 1.0, "cooled": 0.1}


def base() -> RL100Config:
    """Noise in the demonstrations is what the clone explores with (docs/methods/rl100.md); no offline rounds, to see the online stage."""
    cfg = settings("door", horizon=100)
    online = replace(cfg.online, iterations=20, lam=0.3, ppo=replace(cfg.online.ppo, lr=3e-5, last=5))
    return replace(cfg, demos=10, demo_noise=0.25, imitation=replace(cfg.imitation, steps=1500), online=online,
                   offline=replace(cfg.offline, rounds=0), audit_episodes=0, eval_episodes=200, final_episodes=200)


def main(words: list[str] | None = None) -> int:
    """Run what is missing."""
    parser = arguments(__doc__ or "", seeds=(0, 1, 2))
    experts_option(parser)
    args, flags = parser.parse_known_args(words)
    out, results = (args.out / "smoke", args.out / "smoke") if args.smoke else (args.out, RESULTS)
    table = Table(Path(results) / "cooling.jsonl", KEY)
    start = overridden(toy_size(base()) if args.smoke else base(), flags)
    start = replace(start, expert=experts_folder(parser, args), offline=replace(start.offline, rounds=0))
    comparisons = [Comparison(replace(start, seed=seed, online=replace(start.online, cool=cool)), out / "cooling" / f"{name}-s{seed}",
                              table, name) for seed in args.seeds for name, cool in VARIANTS.items()]
    parts = [part for c in comparisons for part in [*in_phases([], [c], baselines=False), c.exploring(), c.curve()]]
    return min(run_parts(parts, args.budget), 1)


if __name__ == "__main__":
    sys.exit(main())
