"""How precisely does a policy's latent know where things are? The simulator's state read out of it linearly, on held-out episodes.

    python -m benchmarks.studies.latent_probe --run runs/bench/vision/peg-insert-side-v3-s0 --part hand=0:3 --part peg=4:7 \\
        --part hole=36:39

Parts of the recorded `privileged` state are regressed on the latents of the run's first rollouts (every 8th frame), 70 % of the episodes
to fit, the others to judge. An error wider than the task's tolerance is a ceiling that RL with a frozen encoder hardly moves. Rows go to
benchmarks/results/latent_probe.jsonl.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.lib.baselines import labelled
from benchmarks.lib.common import RESULTS, Table
from realrl import config, envs
from realrl.algos.rl100 import RL100Config
from realrl.data.store import Store
from realrl.policies.diffusion import DiffusionPolicy
from realrl.run import read_parts
from realrl.types import Array, Episode, RealrlError

EVERY = 8  # frames
RIDGE = 1e-3


def policy_of(run: Path, cfg: RL100Config, stage: str) -> DiffusionPolicy:
    """The policy of a run after a stage."""
    spec = envs.make(cfg.task, sight=cfg.sight).task
    policy = DiffusionPolicy(cfg.policy, spec.obs_dim, spec.action_dim, senses=spec.senses)
    policy.load_state_dict(read_parts(run / "checkpoints" / stage)[1]["policy"])
    return policy.eval()


def latents(policy: DiffusionPolicy, episode: Episode) -> Array:
    """Latents [F, E] of every EVERY-th frame."""
    seen = {key: torch.from_numpy(episode.obs[key][::EVERY]) for key in ("state", *policy.senses)}
    return policy.features(seen).numpy()


def probe(x: Array, y: Array, train: Array) -> tuple[Array, Array]:
    """(root mean square error, spread), each [D], of a ridge regression y [F, D] on x [F, E], judged where `train` [F] is false."""
    one = np.concatenate([x, np.ones((len(x), 1))], 1).astype(np.float64)
    weight = np.linalg.solve(one[train].T @ one[train] + RIDGE * np.eye(one.shape[1]), one[train].T @ y[train])
    error, spread = one[~train] @ weight - y[~train], y[~train] - y[train].mean(0)
    return np.sqrt((error**2).mean(0)), np.sqrt((spread**2).mean(0))


def main(words: list[str] | None = None) -> int:
    """Probe and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of an RL-100 run with eyes")
    parser.add_argument("--stages", nargs="+", default=["imitation", "offline-1"], help="checkpoints to probe")
    parser.add_argument("--part", action="append", required=True, metavar="NAME=FROM:TO", help="a part of the privileged state, metres")
    parser.add_argument("--episodes", type=int, default=100)
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    cfg = config.load(RL100Config, args.run / "config.yaml")
    episodes = labelled(Store.open(args.run / "dataset"), "rollout-1")[:args.episodes]
    if len(episodes) < 4 or "privileged" not in episodes[0].obs:
        raise RealrlError(f"{args.run}: needs at least 4 rollouts with the simulator's state: is it a run with eyes, past its rollouts?")
    table = Table(RESULTS / "latent_probe.jsonl", ("task", "seed", "stage", "part"))
    owner = np.concatenate([[i] * len(e.obs["privileged"][::EVERY]) for i, e in enumerate(episodes)])
    train = owner < 0.7 * len(episodes)
    truth = np.concatenate([e.obs["privileged"][::EVERY] for e in episodes]).astype(np.float64)
    for stage in args.stages:
        policy = policy_of(args.run, cfg, stage)
        x = np.concatenate([latents(policy, e) for e in episodes])
        for name, _, span in (word.partition("=") for word in args.part):
            first, _, last = span.partition(":")
            error, spread = probe(x, truth[:, int(first):int(last)], train)
            table.put({"task": cfg.task, "seed": cfg.seed, "stage": stage, "part": name, "error_mm": (1000 * error).tolist(),
                       "spread_mm": (1000 * spread).tolist(), "episodes": len(episodes), "frames": len(x)})
            print(f"    error {np.round(1000 * error, 1)} mm of {np.round(1000 * spread, 1)} mm")
    return 0


if __name__ == "__main__":
    sys.exit(main())
