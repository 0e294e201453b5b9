"""Does off-policy evaluation rank policies that really differ? One model a run, every stage's policy, true success beside it.

    python -m benchmarks.studies.ope_stages                    # every finished Meta-World run of the seeds under runs/bench

The candidates of one gate differ by less than an audit of 50 episodes can see (see ope.py). Here the critics and the transition model
are fitted anew, as the first offline round fits them and on its data alone, and judge the policies after imitation, each offline round
and online RL, deployed as they were evaluated. The truth is the run's own evaluation. Rows go to benchmarks/results/ope_stages.jsonl.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.lib.baselines import Offline
from benchmarks.lib.common import RESULTS, Part, Table, arguments, run_parts
from benchmarks.studies.ope import interval, pooled
from realrl import config, envs
from realrl.algos.rl100 import RL100Config
from realrl.files import derive
from realrl.learn.iql import Critics, fit_critics
from realrl.learn.ope import TransitionModel, evaluate_policies, start_conditions
from realrl.policies.diffusion import DiffusionPolicy
from realrl.run import read_parts

MEASURES = ("amq", "returns", "success")


def stages(run: Path) -> list[tuple[str, dict[str, Any]]]:
    """(stage, weights) of every checkpoint, in order."""
    names = ["imitation", *sorted(p.name for p in (run / "checkpoints").glob("offline-[0-9]")), "online"]
    found = [(name, read_parts(run / "checkpoints" / name)[1]) for name in names if (run / "checkpoints" / name).exists()]
    return [(name, parts["stage"]["policy"] if name == "online" else parts["policy"]) for name, parts in found]


def judge_run(table: Table, truth: Table, run: Path, cfg: RL100Config) -> None:
    """Fit once, judge every stage, one row each."""
    data = Offline.of(run, cfg)
    start, task = data.start, cfg.task.partition("/")[2]
    horizon = cfg.ope.horizon or math.ceil(envs.make(cfg.task).task.horizon / start.chunk)
    view, seed = data.view([*data.demos, *data.rollouts]), derive(cfg.seed, "ope-stages")
    seen = view.encoded(start.features)
    cond = seen.cond
    torch.manual_seed(seed)
    critics = Critics(cond.shape[1], start.chunk, start.action_dim, cfg.critic)
    fit_critics(critics, seen, seed=seed)
    model = TransitionModel(cond.shape[1], start.chunk, start.action_dim, replace(cfg.ope, horizon=horizon), seed=seed)
    model.fit(seen)
    for name, weights in stages(run):
        policy = DiffusionPolicy(cfg.policy, start.obs_dim, start.action_dim)
        policy.load_state_dict(weights)
        policy.eval()

        def act(cond: torch.Tensor, noise: torch.Tensor, policy: DiffusionPolicy = policy) -> torch.Tensor:
            return policy.diffusion.sample(policy.net, cond, noise, stochastic=False)[:, -1].clamp(-1.0, 1.0)

        found = evaluate_policies(model, critics.q, [act], start_conditions(seen, cfg.ope),
                                  (1, start.chunk, start.action_dim), seed=seed)
        row = truth.find(task, cfg.seed, name)
        if row is not None:
            table.put({"task": task, "seed": cfg.seed, "stage": name, "true_success": row["success"]["rate"], "true_n": row["success"]["n"],
                       **{f"ope_{m}": float(getattr(found, m).mean()) for m in MEASURES}, "stopped": float(found.stopped.mean())})


def summarise(table: Table) -> None:
    """Rank correlation within runs, pooled over them."""
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in (r for r in table.rows if r["stage"] != "all"):
        runs.setdefault((row["task"], row["seed"]), []).append(row)
    for measure in MEASURES:
        points = [[(r[f"ope_{measure}"], r["true_success"]) for r in rows] for rows in runs.values()]
        low, high = interval(points)
        table.put({"task": measure, "seed": None, "stage": "all", "spearman": pooled(points), "low": low, "high": high,
                   "runs": len(points), "policies": sum(map(len, points))})
        print(f"    {measure}: {pooled(points):+.2f} [{low:+.2f}, {high:+.2f}]")


def main(words: list[str] | None = None) -> int:
    """Run what is missing, then correlate."""
    args = arguments(__doc__ or "", seeds=(0, 1, 2)).parse_args(words)
    table = Table(RESULTS / "ope_stages.jsonl", ("task", "seed", "stage"))
    truth = Table(RESULTS / "metaworld.jsonl", ("task", "seed", "method"))
    parts = []
    for run in sorted((args.out / "metaworld").glob("*-s[0-9]")):
        cfg = config.load(RL100Config, run / "config.yaml")
        if cfg.seed in args.seeds and (run / "checkpoints" / "online").exists():
            key = (cfg.task.partition("/")[2], cfg.seed, "online")
            parts.append(Part(f"{run.name}: model and stages", lambda key=key: table.find(*key) is not None,
                              lambda run=run, cfg=cfg: judge_run(table, truth, run, cfg)))
    code = run_parts(parts, args.budget)
    if any(r["stage"] != "all" for r in table.rows):
        summarise(table)
    return min(code, 1)


if __name__ == "__main__":
    sys.exit(main())
