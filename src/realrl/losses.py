"""Losses and targets as pure functions. B batch, T time, N decisions."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def td_target(reward: Tensor, discount: Tensor, next_value: Tensor) -> Tensor:
    """`reward + discount * next_value`, all [B]. The discount carries gamma^n and termination (0), so nobody else needs gamma."""
    return reward + discount * next_value


def expectile(error: Tensor, tau: float) -> Tensor:
    """Asymmetric squared error |tau - 1(u<0)| u^2, mean over the batch; u = target - prediction. IQL (arXiv 2110.06169) eq. 5."""
    weight = torch.where(error < 0, 1.0 - tau, tau)
    return (weight * error.square()).mean()


def gae(reward: Tensor, discount: Tensor, value: Tensor, next_value: Tensor, last: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over concatenated episodes (arXiv 1506.02438, eq. 16).

    reward, discount, value, next_value: [N]; last: [N] bool, true at an episode's final decision, across which nothing is carried.
    A terminated decision has discount 0, a truncated one bootstraps from next_value. Returns (advantage, lambda-return), each [N].
    """
    delta = (td_target(reward, discount, next_value) - value).tolist()
    carry = torch.where(last, torch.zeros_like(discount), discount * lam).tolist()
    out, running = [0.0] * len(delta), 0.0
    for i in range(len(delta) - 1, -1, -1):
        running = delta[i] + carry[i] * running
        out[i] = running
    advantage = torch.tensor(out, dtype=value.dtype, device=value.device)
    return advantage, advantage + value


def monte_carlo(reward: Tensor, discount: Tensor, next_value: Tensor, last: Tensor) -> Tensor:
    """Discounted return of every decision [N]; a truncated episode is closed with next_value, a terminated one with nothing."""
    zero = torch.zeros_like(reward)
    advantage, _ = gae(reward, discount, zero, torch.where(last, next_value, zero), last, 1.0)
    return advantage


def clipped_surrogate(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """PPO's pessimistic objective min(r A, clip(r, 1-eps, 1+eps) A), elementwise (arXiv 1707.06347, eq. 7)."""
    return torch.minimum(ratio * advantage, ratio.clamp(1.0 - clip, 1.0 + clip) * advantage)


def gaussian_logp(x: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """log N(x; mean, sigma^2 I) summed over the last two dimensions. x, mean: [B, K, A]; sigma: [B] > 0. Returns [B]."""
    size = x.shape[-1] * x.shape[-2]
    square = ((x - mean) / sigma[:, None, None]).square().sum((-2, -1))
    return -0.5 * square - size * (sigma.log() + 0.5 * math.log(2 * math.pi))


def gaussian_kl(mean_p: Tensor, mean_q: Tensor, sigma: Tensor) -> Tensor:
    """KL between two Gaussians of equal sigma. mean_p, mean_q: [B, K, A]; sigma: [B]. Returns [B]."""
    return 0.5 * ((mean_p - mean_q) / sigma[:, None, None]).square().sum((-2, -1))


def explained_variance(prediction: Tensor, target: Tensor) -> float:
    """1 - Var(target - prediction) / Var(target), both [N]; 0 where the target does not vary."""
    variance = target.var()
    return float(1 - (target - prediction).var() / variance) if variance > 1e-12 else 0.0
