"""Does what an online update learns from some episodes hold in others?

    python -m benchmarks.studies.generalise --run runs/bench/vision/door-s0 --episodes 200

The policy and V that a run's online stage began with explore from starts that no stage has; V and one update of the policy are fitted to
half of the episodes. The gain is E[log pi_new / pi_old * A], A normalised: to first order what the objective rose by. On the half it was
fitted to it rises whatever is learned; on the other half only by what holds there, while the KL, which is paid there as well, moves the
policy about. Rows go to benchmarks/results/generalise.jsonl, one a run and update.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.lib.common import RESULTS, Table
from realrl import config
from realrl.algos.rl100 import RL100Config
from realrl.cell.collect import Collector
from realrl.data.views import ChunkView
from realrl.learn.iql import value_net
from realrl.learn.ppo import DenoisingPPO, PPOConfig, fit_value
from realrl.losses import explained_variance, gae, gaussian_kl, monte_carlo
from realrl.policies.diffusion import DiffusionPolicy
from realrl.run import Run
from realrl.types import Episode, RealrlError

FIRST = 950_000_000
"""The first start: behind all training starts, before the held-out ones."""


def updates(cfg: RL100Config) -> dict[str, PPOConfig]:
    """The run's own, and one pass over all pairs at a small rate."""
    return {"as in the run": cfg.online.ppo, "one pass": replace(cfg.online.ppo, epochs=1, pairs=1.0, lr=1e-5)}


class Half:
    """One half of the episodes: decisions, conditions, chains, advantages."""

    def __init__(self, episodes: list[Episode], policy: DiffusionPolicy, cfg: RL100Config) -> None:
        self.view = ChunkView(episodes, chunk=policy.chunk, n_obs=policy.n_obs, gamma=cfg.gamma, every="plan", device=policy.device)
        table = self.view.encoded(policy.features)
        self.cond, self.after = table.cond, table.next_cond
        self.chain = torch.from_numpy(np.concatenate([e.extra["chain"] for e in episodes])).to(policy.device)

    @torch.no_grad()
    def judge(self, value: nn.Module, lam: float) -> tuple[Tensor, Tensor, float]:
        """(advantages [N], V's targets [N], how much of the returns V explains)."""
        view, now, after = self.view, value(self.cond)[:, 0], value(self.after)[:, 0]
        advantage, _ = gae(view.reward, view.discount, now, after, view.last, lam)
        _, target = gae(view.reward, view.discount, now, after, view.last, 0.95)
        return advantage, target, explained_variance(now, monte_carlo(view.reward, view.discount, after, view.last))

    @torch.no_grad()
    def gain(self, ppo: DenoisingPPO, old: Tensor, advantage: Tensor) -> tuple[float, float, float]:
        """(gain, its standard error over episodes, KL) after an update; old: means [N, L, K, A] before it."""
        cond = self.view.encoded(ppo.policy.features).cond
        new, diffusion = ppo.means(cond, self.chain), ppo.policy.diffusion
        worth = ((advantage - advantage.mean()) / advantage.std()).clamp(-ppo.cfg.advantage_clip, ppo.cfg.advantage_clip)
        each, kl = torch.zeros_like(worth), 0.0
        for i, k in enumerate(ppo.likely):
            step = k.expand(len(cond))
            each += (diffusion.logp(self.chain[:, k + 1], new[:, i], step) - diffusion.logp(self.chain[:, k + 1], old[:, i], step)) * worth
            kl += float(gaussian_kl(old[:, i], new[:, i], diffusion.spread(step)).mean()) / len(ppo.likely)
        each /= len(ppo.likely)
        episode = self.view.episode
        sums = torch.zeros(int(episode.max()) + 1, device=each.device).index_add_(0, episode, each - each.mean())
        return float(each.mean()), float(sums.square().sum().sqrt()) / len(each), kl


def begin(folder: Path, cfg: RL100Config, policy: DiffusionPolicy) -> nn.Module:
    """Load the policy as its online stage found it; returns V. Raises RealrlError for a run without an offline stage."""
    value = value_net(policy.cond_dim, cfg.critic, eyes=policy.encoder is not None)
    with Run(folder, resume=True) as run:
        if not cfg.offline.rounds or run.load(f"offline-{cfg.offline.rounds}", policy=policy, value=value) is None:
            raise RealrlError(f"{folder}: no finished offline stage in it: run it first, or name another run")
    return value


def measure(folder: Path, episodes: int) -> list[dict[str, Any]]:
    """One row an update."""
    cfg = config.from_dict(RL100Config, config.read(folder / "config.yaml"), source=str(folder / "config.yaml"))
    with Collector(cfg.task, replace(cfg.collect, workers=1), horizon=cfg.horizon, sight=cfg.sight) as collector:
        spec = collector.spec()
        policy = DiffusionPolicy(cfg.policy, spec.obs_dim, spec.action_dim, senses=spec.senses).eval()
        value = begin(folder, cfg, policy)
        starts = range(FIRST, FIRST + episodes)
        found = sorted(collector.collect(policy.with_head("ddim"), starts, greedy=False, glance=True), key=lambda e: e.seed or 0)
    fitted, other = (Half(half, policy, cfg) for half in (found[::2], found[1::2]))
    random, optimiser = torch.Generator().manual_seed(0), torch.optim.AdamW(value.parameters(), lr=cfg.online.value_lr)
    for _ in range(3):  # as the rounds that warm V up
        fit_value(value, optimiser, fitted.cond, fitted.judge(value, cfg.online.lam)[1], cfg.online.value_epochs, random)
    (mine, _, _), (its, _, explained) = (half.judge(value, cfg.online.lam) for half in (fitted, other))
    rows = []
    for name, ppo_cfg in updates(cfg).items():
        begin(folder, cfg, policy)
        ppo = DenoisingPPO(policy, ppo_cfg, encoder=policy.encoder is not None and cfg.online.learn_encoder)
        old = [ppo.means(half.cond, half.chain) for half in (fitted, other)]
        look = (lambda rows: policy.regularise(fitted.view.batch(rows).obs, random)) if len(ppo.actor) > 1 else None
        ppo.fit(fitted.cond, fitted.chain, mine, random, look)
        policy.requires_grad_(False)
        there, here = fitted.gain(ppo, old[0], mine), other.gain(ppo, old[1], its)
        rows.append({"run": f"{cfg.task}, {cfg.sight.kind}", "update": name, "gain_fitted": there[0], "gain_other": here[0],
                     "error_other": here[1], "kl_other": here[2], "explained_other": explained, "episodes": episodes,
                     "exploring": float(np.mean([e.succeeded for e in found])), "lam": cfg.online.lam, "last": ppo_cfg.last})
    return rows


def main(words: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of an RL-100 run that has had its offline stage")
    parser.add_argument("--episodes", type=int, default=200)
    args = parser.parse_args(words)
    table = Table(RESULTS / "generalise.jsonl", ("run", "update"))
    try:
        for row in measure(args.run, args.episodes):
            table.put(row)
            print(f"    gain {row['gain_fitted']:.4f} on the fitted half, {row['gain_other']:.4f} +- {1.96 * row['error_other']:.4f} on "
                  f"the other, KL {row['kl_other']:.4f}", flush=True)
    except RealrlError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
