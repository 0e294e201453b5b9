"""PPO over the denoising steps of a diffusion policy: the one objective of both RL stages of RL-100 (arXiv 2510.14830, section 4).

Every step k of a decision's chain is an action of a Gaussian sub-policy, pi(x_{k-1} | x_k, s), so the likelihood ratio of each is
known exactly; all steps of a decision share its environment-level advantage (as in DPPO, arXiv 2409.00588).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from realrl.config import check
from realrl.losses import clipped_surrogate, gaussian_kl
from realrl.policies.diffusion import DiffusionPolicy

Embed = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Decisions [B] -> (their conditions [B, C] with gradients to the encoder, its regularisers [])."""


@dataclass(frozen=True)
class PPOConfig:
    """The objective of section 4, J = E sum_k min(r_k A, clip(r_k, 1-eps, 1+eps) A), and how far one fit may move the policy."""

    lr: float = 1e-4
    """Starting learning rate; multiplied or divided by 1.3 after each fit to hold `target_kl`."""
    clip: float = 0.15
    """eps."""
    epochs: int = 5
    """Passes per fit."""
    pairs: float = 0.5
    """Share of the (decision, denoising step) pairs that a pass looks at."""
    minibatch: int = 2500
    """Pairs per gradient step."""
    target_kl: float = 0.02
    """KL(old || new) per denoising step that a fit should end at."""
    max_kl: float = 0.05
    """A fit stops at the minibatch that is past this; one that is so within its first pass begins again at half the learning rate."""
    grad_clip: float = 1.0
    """Largest gradient norm."""
    advantage_clip: float = 5.0
    """Normalised advantages are clipped to +- this."""
    last: int | None = None
    """Only this many of the last stochastic steps enter the objective; None = all. See docs/methods/rl100.md before using it."""

    def __post_init__(self) -> None:
        check(self, lr="(0, 1]", clip="(0, 1)", epochs="[1, 1e6]", pairs="(0, 1]", minibatch="[1, 1e9]", target_kl="(0, 1e3]",
              max_kl="(0, 1e3]", grad_clip="(0, 1e9]", advantage_clip="(0, 1e9]", last="[1, 1e6]")


class DenoisingPPO:
    """Improves a diffusion policy by the clipped objective over its denoising steps.

    Every step k of every decision's chain is an action of a Gaussian sub-policy; all steps share the decision's advantage.
    encoder: whether the policy's encoder learns too (section 3, online); then `fit` needs `embed`. value: V, which `revert` takes back with
    an encoder that learns: it knows no other latents.
    """

    def __init__(self, policy: DiffusionPolicy, cfg: PPOConfig, *, encoder: bool = False, value: torch.nn.Module | None = None) -> None:
        self.policy, self.cfg, self.lr, self.left = policy, cfg, cfg.lr, 1.0
        self.actor = policy.actor if encoder else torch.nn.ModuleDict({"net": policy.net})
        self.seeing = value if encoder and value else torch.nn.Identity()
        self.optimiser = torch.optim.AdamW(self.actor.parameters(), lr=cfg.lr, weight_decay=0.0, fused=True)
        self.steps = policy.diffusion.likely[-(cfg.last or 0):]
        self.likely = torch.tensor(self.steps, device=policy.device)

    @torch.no_grad()
    def means(self, cond: Tensor, chain: Tensor) -> Tensor:
        """Means of all stochastic steps of recorded chains. cond: [N, C]; chain: [N, S+1, K, A] -> [N, L, K, A]."""
        means = [self.policy.diffusion.mean(self.policy.net, chain[:, k], self.likely.new_full((len(cond),), k), cond) for k in self.steps]
        return torch.stack(means, 1)

    def fit(self, cond: Tensor, chain: Tensor, advantage: Tensor, random: torch.Generator, embed: Embed | None = None, *,
            left: float = 1.0) -> dict[str, float]:
        """Improve on N decisions with their chains and advantages [N] under the policy as it is now; returns statistics.

        left: what is left to gain, (0, 1]; the KL of a full step is multiplied by it. Adam does not feel how large advantages are, so a
        solved task, whose advantages are noise, rests only if the step itself is small.

        The reference means are recomputed here, so the ratio is exactly 1 at the start whatever machine drew the chains. A fit that
        goes past `max_kl` stops at once; if that is in its first pass, the learning rate is too high for this network and action: the
        fit is undone and begins again with half of it.
        """
        self.actor.requires_grad_(True).eval()  # no dropout: it would shake the ratio
        spread = (advantage - advantage.mean()) / (advantage.std(correction=int(len(advantage) > 1)) + 1e-8)  # of one: nothing to learn
        advantage = spread.clamp(-self.cfg.advantage_clip, self.cfg.advantage_clip)
        self.left = left
        data, retries = (cond, chain, self.means(cond, chain), advantage), 0
        before = self.keep()
        stats = self._passes(*data, random, embed)
        while stats["kl"] > self.cfg.max_kl and stats["epochs"] == 1:
            self.revert(before)
            stats, retries = self._passes(*data, random, embed), retries + 1
        self._adapt(stats["kl"] / left)
        return {**stats, "lr": self.lr, "retries": retries, "left_to_gain": left}

    def _passes(self, cond: Tensor, chain: Tensor, old: Tensor, advantage: Tensor, random: torch.Generator,
                embed: Embed | None) -> dict[str, float]:
        """Up to `epochs` passes over random pairs, until the KL is past `max_kl`. old: [N, L, K, A], from `means`."""
        cfg, count = self.cfg, len(self.likely)
        kl_k, clip_k, ratio_k, seen = (torch.zeros(count, device=cond.device) for _ in range(4))
        kl, epochs, norms, extra = 0.0, 0, [0.0], 0.0
        while epochs < cfg.epochs and kl <= cfg.max_kl:
            kls = []
            for pairs in self._minibatches(len(cond), random, whole=embed is not None):
                n, step = pairs // count, pairs % count
                seen_as, regulariser = (cond[n], cond.new_zeros(())) if embed is None else _embed_rows(embed, n)
                loss, ratio, divergence = self._objective(seen_as, chain, old[n, step], advantage[n], n, self.likely[step])
                kls.append(float(divergence.mean()))
                kl_k.index_add_(0, step, divergence)
                clip_k.index_add_(0, step, ((ratio - 1).abs() > cfg.clip).float())
                ratio_k.index_add_(0, step, ratio)
                seen.index_add_(0, step, torch.ones_like(ratio))
                if kls[-1] > cfg.max_kl:
                    break
                norms.append(self._step(loss + regulariser))
                extra = float(regulariser.detach())
            kl, epochs = kls[-1] if kls[-1] > cfg.max_kl else float(np.mean(kls)), epochs + 1
        seen = seen.clamp(min=1)
        sigma = self.policy.diffusion.spread(self.likely)
        table = {"kl": kl_k / seen, "clip_fraction": clip_k / seen, "ratio": ratio_k / seen, "sigma": sigma}
        per_step = {f"{name}_{k}": v for name, values in table.items() for k, v in zip(self.steps, values.tolist(), strict=True)}
        return {"kl": kl, "clip_fraction": float((clip_k / seen).mean()), "epochs": epochs,
                "gradient_norm": float(np.mean(norms[1:] or norms)), **({"regularisers": extra} if embed else {}), **per_step}

    def _minibatches(self, decisions: int, random: torch.Generator, *, whole: bool) -> tuple[Tensor, ...]:
        """A pass over a random share of the pairs, `n * L + step` each. whole: a minibatch holds all chosen steps of its decisions,
        because every decision that it touches costs a pass of the encoder."""
        cfg, count, device = self.cfg, len(self.likely), self.likely.device
        if not whole:
            order = torch.randperm(decisions * count, generator=random, device=device)
            return torch.split(order[: max(int(len(order) * cfg.pairs), 1)], cfg.minibatch)
        steps = max(round(count * cfg.pairs), 1)
        chosen = torch.rand(decisions, count, generator=random, device=device).argsort(1)[:, :steps]
        order = torch.randperm(decisions, generator=random, device=device)
        pairs = (order[:, None] * count + chosen[order]).flatten()
        return torch.split(pairs, max(cfg.minibatch // steps, 1) * steps)

    def _objective(self, cond: Tensor, chain: Tensor, old: Tensor, advantage: Tensor, n: Tensor,
                   k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-J on pairs (decision n, step k), each [B]: (loss, ratio [B], KL [B])."""
        diffusion = self.policy.diffusion
        mean = diffusion.mean(self.policy.net, chain[n, k], k, cond)
        after = chain[n, k + 1]
        ratio = (diffusion.logp(after, mean, k) - diffusion.logp(after, old, k)).exp()
        loss = -clipped_surrogate(ratio, advantage, self.cfg.clip).mean()
        return loss, ratio.detach(), gaussian_kl(old, mean.detach(), diffusion.spread(k))

    def _step(self, loss: Tensor) -> float:
        """One gradient step; returns the gradient's norm."""
        self.optimiser.param_groups[0]["lr"] = self.lr * math.sqrt(self.left)  # a step's KL goes as its square
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.actor.parameters(), self.cfg.grad_clip)
        self.optimiser.step()
        return float(norm)

    def _adapt(self, kl: float) -> None:
        """Hold the trust region: without it one run in a few collapses, and a rate small enough for all of them learns nothing. kl: of a
        full step."""
        if kl > 1.5 * self.cfg.target_kl:
            self.lr /= 1.3
        elif kl < self.cfg.target_kl / 1.5:
            self.lr *= 1.3

    def keep(self) -> dict[str, Any]:
        """A copy of the weights that learn, with the optimiser and learning rate, for `revert`."""
        return copy.deepcopy({"actor": self.actor.state_dict(), "value": self.seeing.state_dict(), **self.state_dict()})

    def revert(self, kept: dict[str, Any]) -> None:
        """Back to what `keep` returned, with half the learning rate (half of that again the next time)."""
        kept["lr"] /= 2
        self.actor.load_state_dict(kept["actor"])
        self.seeing.load_state_dict(kept.get("value", {}), strict=False)  # checkpoints did not always hold it
        self.load_state_dict(copy.deepcopy(kept))

    def state_dict(self) -> dict[str, Any]:
        """Optimiser and learning rate; the policy's weights are its own."""
        return {"optimiser": self.optimiser.state_dict(), "lr": self.lr}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.optimiser.load_state_dict(state["optimiser"])
        self.lr = state["lr"]


def fit_value(value: torch.nn.Module, optimiser: torch.optim.Optimizer, cond: Tensor, target: Tensor, epochs: int,
              random: torch.Generator) -> float:
    """V towards its targets [N], lambda_V E (V - Vhat)^2 (section 4) with its own optimiser; returns the last loss. cond: [N, C]."""
    loss = torch.zeros(())
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(cond), generator=random, device=cond.device), 500):
            loss = (value(cond[rows])[:, 0] - target[rows]).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return float(loss.detach())


def _embed_rows(embed: Embed, n: Tensor) -> tuple[Tensor, Tensor]:
    """The conditions of pairs' decisions n [B], each decision encoded once, and the regularisers."""
    rows, back = torch.unique(n, return_inverse=True)
    cond, loss = embed(rows)
    return cond[back], loss
