"""This project's side of benchmarks/peers.py, one contestant a process: `python benchmarks/lib/our_turns.py DESCRIPTION`.

DESCRIPTION is JSON: "who" ("online" and "online, not recorded": a unit is one round of RL-100's online stage, collection and update;
"imitation": a unit is one gradient step), "threads", and what the case needs.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.lib.turns import Stopwatch, pin, serve
from realrl.algos.rl100 import Online, OnlineConfig, RL100Config
from realrl.cell.cell import WorkCell
from realrl.cell.products import large_products
from realrl.data.views import ChunkView
from realrl.learn.imitation import Imitation, ImitationConfig
from realrl.memory import keep_freed_memory
from realrl.policies.diffusion import DiffusionPolicy, PolicyConfig
from realrl.run import Run
from realrl.scene import CollectConfig
from realrl.types import Episode, Policy

Work = Callable[[int], dict[str, Any] | None]


class Timed(WorkCell):
    """A cell that knows how long it practised last. recorded: whether that goes to the disk."""

    recorded = True
    spent: dict[str, float]

    def practise(self, label: str, policy: Policy, seeds: Sequence[int], **options: Any) -> list[Episode]:
        """See `WorkCell.practise`."""
        watch = Stopwatch()
        if self.recorded:
            episodes = super().practise(label, policy, seeds, **options)
        else:
            collected = self.collector.collect(policy, seeds, greedy=False, noise_seed=options["noise_seed"], glance=True)
            by_seed = {e.seed: e for e in collected}
            episodes = [by_seed[s] for s in seeds]
        self.spent = watch.read()
        return episodes


def settings(told: Mapping[str, Any]) -> RL100Config:
    """RL-100's defaults, on as many processes as cores."""
    return RL100Config(task=told["task"], collect=CollectConfig(workers=told["threads"]), online=OnlineConfig(episodes=told["episodes"]))


def online(cfg: RL100Config, cell: Timed) -> tuple[Work, dict[str, Any]]:
    """(rounds of RL-100's online stage, past the warm-up of V, from an untrained policy; what it is)."""
    torch.manual_seed(0)
    policy = DiffusionPolicy(cfg.policy, cell.spec.obs_dim, cell.spec.action_dim)
    cell.summary["env_steps"] = 0
    stage = Online(policy, None, cfg, cell.curriculum(cfg.online.practice))
    stage.iteration = cfg.online.warmup
    warm = cell.seeds(4, min(cfg.online.episodes, cell.collector.size * cell.collector.workers))  # that makes the environments
    sum(1 for _ in cell.collector.collect(policy.with_head("ddim"), warm, greedy=False, glance=True))

    def rounds(count: int) -> dict[str, Any]:
        for _ in range(count):
            stats = stage.round(cell)
        return {"collect": cell.spent, "steps": int(stats["round_steps"]), "epochs": int(stats["epochs"]),
                "retries": int(stats["retries"]), "success": stats["success_rate"]}

    ppo, steps = cfg.online.ppo, len(policy.diffusion.likely)
    return rounds, {"parameters": sum(p.numel() for p in policy.net.parameters()), "envs": cell.collector.size * cell.collector.workers,
                    "denoising": policy.cfg.diffusion.steps, "learned": steps, "epochs": ppo.epochs, "minibatch": ppo.minibatch,
                    "pairs": ppo.pairs}


def made_up(count: int, state: int, action: int) -> list[Episode]:
    """Episodes of noise, of 100 steps each, `count` steps together."""
    random, found = np.random.default_rng(0), []
    for _ in range(max(count // 100, 1)):
        act = random.uniform(-1, 1, (100, action)).astype(np.float32)
        end = np.arange(100) == 99
        found.append(Episode({"state": random.standard_normal((101, state), dtype=np.float32)}, act, act, np.zeros(100, np.uint8),
                             end.astype(np.float32), end, np.arange(100) * 0.1, np.arange(100) % 4 == 0, True, False, "", "", 0))
    return found


def imitation(told: Mapping[str, Any]) -> tuple[Work, dict[str, Any]]:
    """(gradient steps of imitation, what it is)."""
    cfg = PolicyConfig(chunk=told["chunk"], n_obs=told["observations"], net="unet", hidden=told["width"])
    torch.manual_seed(0)
    policy = DiffusionPolicy(cfg, told["state"], told["action"])
    view = ChunkView(made_up(told["stored"], told["state"], told["action"]), chunk=cfg.chunk, n_obs=cfg.n_obs, gamma=1.0)
    fit = Imitation(policy, view, ImitationConfig(steps=100_000, batch=told["batch"]), seed=0)

    def train(count: int) -> None:
        for _ in range(count):
            fit.update()

    train(2)
    return train, {"parameters": sum(p.numel() for p in policy.net.parameters())}


def main() -> None:
    """Serve."""
    told = json.loads(sys.argv[1])
    pin(told["threads"])
    torch.set_num_threads(told["threads"])
    if told["who"] == "imitation":
        keep_freed_memory()
        with large_products():
            serve(*imitation(told))
        return
    cfg = settings(told)
    with tempfile.TemporaryDirectory() as folder, Run.start(f"{folder}/run", cfg) as run, Timed(run, cfg) as cell:
        cell.recorded = told["who"] == "online"
        serve(*online(cfg, cell))


if __name__ == "__main__":
    main()
