"""RL-100 on HalfCheetah, Hopper and Walker2d from medium-level data, measured by the return of an episode.

    python -m benchmarks.rl100_locomotion --tasks HalfCheetah-v5 --seeds 0

The data are made here: PPO with a Gaussian policy (gaussian_ppo.py) is trained until its training episodes reach about the return of
D4RL's "medium" sets (LEVELS), or for as many steps as it is given, and 50 episodes of its stochastic policy are recorded, whatever they
are worth. Then: imitation of all of them, online RL
(GAE on V, the clipped objective over denoising steps), the one-step student. There is no offline stage: these tasks have no success.
Rows go to benchmarks/results/locomotion.jsonl; the same command goes on where it was stopped.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.lib import gaussian_ppo
from benchmarks.lib.baselines import improve
from benchmarks.lib.common import RESULTS, Part, Table, arguments, overridden, run_parts
from benchmarks.lib.comparison import KEY, toy_size
from benchmarks.rl100_adroit import imitate
from realrl.algos import rl100
from realrl.algos.rl100 import OnlineConfig, RL100Config
from realrl.cell.cell import WorkCell
from realrl.cell.collect import Collector
from realrl.cell.evaluate import held_out
from realrl.data.views import ChunkView
from realrl.files import derive
from realrl.generative.diffusion import DiffusionConfig
from realrl.learn.imitation import ImitationConfig
from realrl.learn.ppo import PPOConfig
from realrl.nets.mlp import mlp
from realrl.policies.diffusion import DiffusionPolicy, PolicyConfig
from realrl.policies.folder import load_policy, save_policy
from realrl.run import Run
from realrl.types import Episode, Policy

LEVELS = {"HalfCheetah-v5": 4500.0, "Hopper-v5": 1400.0, "Walker2d-v5": 2800.0}
"""Return at which the data's own training stops; D4RL's medium sets average 4770, 1422 and 2852."""


def settings(task: str) -> RL100Config:
    """Single-action control as in the paper's locomotion; nobody practises failed starts where nothing is ever a success. V starts from
    nothing and learns from whole returns: from bootstrapped ones it needs a dozen rounds to reach the height of hundreds, and until it
    is there a fall costs too little. A gait is easily lost, so a round moves the policy a quarter as far, and its noise is cooled."""
    online = OnlineConfig(iterations=40, episodes=20, practice=0.0, lam=0.9, value_lam=1.0, value_epochs=10, cool=0.3,
                          ppo=PPOConfig(target_kl=0.005, last=5))
    return RL100Config(
        task=f"gym/{task}", policy=PolicyConfig(chunk=1, diffusion=DiffusionConfig(sigma_max=0.8)), imitation=ImitationConfig(steps=5000),
        stages=("imitation", "online", "one-step"), online=online, eval_episodes=50, final_episodes=100)


@dataclass(frozen=True)
class Job:
    """One task and seed."""

    cfg: RL100Config
    folder: Path
    table: Table
    name: str
    level: float
    data_steps: int
    online_steps: int
    episodes: int = 50

    def parts(self) -> list[Part]:
        """In the order they need each other."""
        stages: dict[str, Callable[[], None]] = {"medium data": self.medium, "imitation": self.imitation, "online": self.online}
        def done(method: str) -> bool:
            return self.table.find(self.name, self.cfg.seed, method) is not None

        label = f"{self.name} seed {self.cfg.seed}"
        return [Part(f"{label}: {method}", lambda method=method: done(method), run) for method, run in stages.items()]

    # -- medium-level data ------------------------------------------------------------------------------------------------------

    def medium(self) -> None:
        """PPO up to the level, then episodes of its stochastic policy."""
        began, cfg = time.monotonic(), self.cfg
        with (Run(self.folder / "ppo", resume=True) as run, Run(self.folder / "medium", resume=True) as place,
              WorkCell(place, replace(cfg, horizon=None)) as cell):
            agent = gaussian_ppo.PPO(cell.spec.obs_dim, cell.spec.action_dim, seed=derive(cfg.seed, "ppo"))
            run.load("ppo", agent=agent)
            with cell.run.bar("ppo: steps", self.data_steps) as advance:
                advance(agent.count)
                reached = gaussian_ppo.train(agent, cell.collector, level=self.level, steps=self.data_steps, seed=derive(cfg.seed, "ppo"),
                                             save=lambda: run.save("ppo", agent.count, agent=agent), advance=advance)
            run.save("ppo", agent.count, agent=agent)
            cell.practise("medium", agent.actor, cell.seeds(0, self.episodes), noise_seed=derive(cfg.seed, "medium") % 2**31)
            data = self._data(cell)
        self._put("medium data", _returns(data), env_steps=agent.count, level=self.level, reached=reached,
                  curve=agent.returns, wall_s=round(time.monotonic() - began, 1))

    def _data(self, cell: WorkCell) -> list[Episode]:
        return cell.book.store.read(sorted(cell.book.recorded("medium").values()))

    # -- the method ---------------------------------------------------------------------------------------------------------------

    def imitation(self) -> None:
        """All episodes, good or bad."""
        began = time.monotonic()
        with Run(self.folder / "medium", resume=True) as run, WorkCell(run, replace(self.cfg, horizon=None)) as cell:
            data = self._data(cell)
        policy = imitate(self.cfg, data, self.folder / "imitation")
        wall = round(time.monotonic() - began, 1)
        self._put("imitation", self._judge(policy.with_head("ddim"), self.cfg.eval_episodes), env_steps=sum(map(len, data)), wall_s=wall)

    def online(self) -> None:
        """Online RL from the imitation policy for a number of environment steps, then the one-step student."""
        cfg, (policy, _) = self.cfg, load_policy(self.folder / "imitation")
        policy.requires_grad_(True)
        torch.manual_seed(derive(cfg.seed, "online"))
        run = Run.start(self.folder / "online", cfg, resume=True, ignore=("collect",))
        with run, WorkCell(run, cfg) as cell:
            stage = rl100.Online(policy, gaussian_ppo.Scaled(mlp(policy.n_obs * policy.obs_dim, 1, (cfg.critic.hidden,) * 2)), cfg,
                                 cell.curriculum(cfg.online.practice))
            spent = improve(cell, stage, self.online_steps)
            self._distil(policy, cell)
            save_policy(policy, self.folder / "policy", task=cfg.task)
        wall = float(cell.summary["wall_s"])
        for method, head in (("one-step", "one-step"), ("online", "ddim")):
            self._put(method, self._judge(policy.with_head(head), cfg.final_episodes), env_steps=spent, wall_s=wall)

    def _distil(self, policy: DiffusionPolicy, cell: WorkCell) -> None:
        view = ChunkView(cell.recent(40), chunk=policy.chunk, n_obs=policy.n_obs, gamma=self.cfg.gamma)
        cond = view.encoded(policy.features).cond
        cell.run.rewind("one-step", 0)
        with cell.run.bar("one-step: distilling", self.cfg.distill.steps) as advance:
            policy.distillation(self.cfg.distill).finish(cond, derive(self.cfg.seed, "one-step"), cell.run.logger("one-step"), advance)

    def _judge(self, policy: Policy, n: int) -> dict[str, Any]:
        with Collector(self.cfg.task, self.cfg.collect, horizon=self.cfg.horizon) as collector:
            return _returns(list(collector.collect(policy, held_out(n), greedy=True)))

    def _put(self, method: str, result: dict[str, Any], **more: Any) -> None:
        self.table.put({"task": self.name, "seed": self.cfg.seed, "method": method, **result, **more})


def _returns(episodes: list[Episode]) -> dict[str, Any]:
    """Mean return of an episode with its 95 % interval (normal, over episodes) and the mean length."""
    totals = np.array([float(e.reward.sum()) for e in episodes])
    half = 1.96 * float(totals.std(ddof=1)) / len(totals) ** 0.5 if len(totals) > 1 else 0.0
    mean = float(totals.mean())
    return {"return": {"mean": mean, "n": len(totals), "low": mean - half, "high": mean + half},
            "episode_steps": float(np.mean([len(e) for e in episodes]))}


def main(words: list[str] | None = None) -> int:
    """Run what is missing."""
    parser = arguments(__doc__ or "", seeds=(0,))
    parser.add_argument("--tasks", nargs="+", default=list(LEVELS), choices=list(LEVELS))
    parser.add_argument("--data-steps", type=int, default=2_000_000, help="the data's own training stops here where it does not reach "
                        "the level")
    parser.add_argument("--online-steps", type=int, default=1_000_000, help="environment steps of online RL")
    args, flags = parser.parse_known_args(words)
    small: dict[str, Any] = {}
    out, results = args.out, RESULTS
    if args.smoke:
        out, results, small = args.out / "smoke", args.out / "smoke", {"episodes": 4}
        args.tasks, args.seeds, args.data_steps, args.online_steps = ["Hopper-v5"], args.seeds[:1], 300, 200
    table = Table(Path(results) / "locomotion.jsonl", KEY)
    jobs = []
    for seed in args.seeds:
        for task in args.tasks:
            cfg = replace(overridden(toy_size(settings(task)) if args.smoke else settings(task), flags), seed=seed)
            folder = out / "locomotion" / f"{task}-s{seed}"
            jobs.append(Job(cfg, folder, table, task, LEVELS[task], args.data_steps, args.online_steps, **small))
    parts = [part for phase in zip(*(job.parts() for job in jobs), strict=True) for part in phase]
    return min(run_parts(parts, args.budget), 1)


if __name__ == "__main__":
    sys.exit(main())
