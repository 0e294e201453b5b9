"""One set of weights, three samplers: what the choice of the deterministic chain does to a policy before and after RL.

    python -m benchmarks.studies.samplers                      # every finished Meta-World run under runs/bench

mean: the stochastic chain with its noise left out, which is what is deployed; ddim: the eta = 0 chain; exploring: the stochastic
chain itself, which RL improves. All from the same held-out starts. Rows go to benchmarks/results/samplers.jsonl.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.lib.common import RESULTS, Part, Table, arguments, run_parts
from realrl import config, envs
from realrl.algos.rl100 import RL100Config
from realrl.cell.collect import Collector
from realrl.cell.evaluate import evaluate
from realrl.policies.diffusion import DiffusionPolicy
from realrl.run import read_parts
from realrl.scene import CollectConfig

STAGES = ("imitation", "online")
SAMPLERS = ("mean", "ddim", "exploring")


def policy_of(run: Path, cfg: RL100Config, stage: str, sampler: str) -> DiffusionPolicy:
    """The policy after a stage, with another sampler."""
    spec = envs.make(cfg.task).task
    policy = DiffusionPolicy(cfg.policy, spec.obs_dim, spec.action_dim, name=f"{stage} {sampler}")
    parts = read_parts(run / "checkpoints" / stage)[1]
    policy.load_state_dict(parts["policy"] if stage == "imitation" else parts["stage"]["policy"])
    return policy.with_sampler("ddim" if sampler == "ddim" else "mean")


def measure(table: Table, run: Path, stage: str, sampler: str, episodes: int) -> None:
    """One row."""
    cfg = config.load(RL100Config, run / "config.yaml")
    with Collector(cfg.task, CollectConfig(workers=1)) as collector:
        result = evaluate(collector, policy_of(run, cfg, stage, sampler), episodes, dt=envs.make(cfg.task).task.dt,
                          greedy=sampler != "exploring")
    table.put({"task": cfg.task.partition("/")[2], "seed": cfg.seed, "stage": stage, "sampler": sampler,
               "success": result.to_dict()["success"], "cycle_steps": result.cycle_steps})


def main(words: list[str] | None = None) -> int:
    """Run what is missing."""
    parser = arguments(__doc__ or "", seeds=(0,))
    parser.add_argument("--episodes", type=int, default=200, help="held-out episodes per row")
    args = parser.parse_args(words)
    table = Table((args.out / "smoke" if args.smoke else Path(RESULTS)) / "samplers.jsonl", ("task", "seed", "stage", "sampler"))
    parts = []
    for run in sorted((args.out / ("smoke/metaworld" if args.smoke else "metaworld")).glob("*-s*")):
        seed = int(run.name.rpartition("-s")[2]) if run.name.rpartition("-s")[2].isdigit() else -1
        if seed not in args.seeds:
            continue
        for stage in STAGES:
            for sampler in SAMPLERS:
                key = (run.name.rpartition("-s")[0], seed, stage, sampler)
                parts.append(Part(" ".join(map(str, key)), lambda key=key: table.find(*key) is not None,
                                  lambda run=run, key=key: measure(table, run, key[2], key[3], 4 if args.smoke else args.episodes)))
    return min(run_parts(parts, args.budget), 1)


if __name__ == "__main__":
    sys.exit(main())
