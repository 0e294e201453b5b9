"""Losses, targets and intervals as pure functions. B batch, T time, N decisions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """(low, high) of a proportion, 95 % by default (E. B. Wilson 1927); (0, 1) of nothing."""
    if not n:
        return 0.0, 1.0
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(centre - half, 0.0) if successes else 0.0, min(centre + half, 1.0) if successes < n else 1.0


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation of two equally long lists, e.g. estimates and true success over checkpoints; 0 when either is constant.
    (scipy has it, too, but takes a second and a half to import, which every command would wait for.)"""
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(f"rank correlation needs two lists of equal length >= 2, got {len(x)} and {len(y)}")
    if len(set(x)) == 1 or len(set(y)) == 1:
        return 0.0
    values = np.array([x, y], np.float64)
    below, same = (values[:, :, None] > values[:, None]).sum(2), (values[:, :, None] == values[:, None]).sum(2)
    return float(np.corrcoef(below + (same - 1) / 2)[0, 1])  # equals share the mean of their ranks


def td_target(reward: Tensor, discount: Tensor, next_value: Tensor) -> Tensor:
    """`reward + discount * next_value`, all [B]. The discount carries gamma^n and termination (0), so nobody else needs gamma."""
    return reward + discount * next_value


def expectile(error: Tensor, tau: float) -> Tensor:
    """Asymmetric squared error |tau - 1(u<0)| u^2, mean over the batch; u = target - prediction. IQL (arXiv 2110.06169) eq. 5."""
    weight = torch.where(error < 0, 1.0 - tau, tau)
    return (weight * error.square()).mean()


def gae(reward: Tensor, discount: Tensor, value: Tensor, next_value: Tensor, last: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over concatenated episodes (arXiv 1506.02438, eq. 16).

    reward, discount, value, next_value: [N]; last: [N] bool, true at an episode's final decision, across which nothing is carried. A
    terminated decision has discount 0, a truncated one bootstraps from next_value. Returns (advantage, lambda-return), each [N]."""
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


def kl_to_standard(mean: Tensor, log_std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, I)) of an information bottleneck, summed over the latent (arXiv 1612.00410, eq. 17). [B, E] -> [B]."""
    return 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(-1)


def explained_variance(prediction: Tensor, target: Tensor) -> float:
    """1 - Var(target - prediction) / Var(target), both [N]; 0 where the target does not vary."""
    variance = target.var()
    return float(1 - (target - prediction).var() / variance) if variance > 1e-12 else 0.0


def chamfer(a: Tensor, b: Tensor) -> Tensor:
    """Symmetric Chamfer distance: mean squared distance to the nearest point of the other cloud, both ways added up.

    a: [B, N, 3], b: [B, M, 3] (metres: the result is in square metres). Returns [B]. Gradients reach both clouds. As in arXiv 1612.00603,
    eq. 1, with means for sums, so that the number of points does not matter."""
    if a.ndim != 3 or b.ndim != 3 or a.shape[0] != b.shape[0] or a.shape[2] != b.shape[2] or not a.shape[1] * b.shape[1]:
        raise ValueError(f"chamfer: clouds of shapes {list(a.shape)} and {list(b.shape)}, not [B, N, D] and [B, M, D]")
    to_b, to_a = _nearest(a.detach(), b.detach())
    forth = (a - _pick(b, to_b)).square().sum(-1).mean(1)
    back = (b - _pick(a, to_a)).square().sum(-1).mean(1)
    return forth + back


def _pick(cloud: Tensor, index: Tensor) -> Tensor:
    """Rows [B, N, D] of a cloud [B, M, D] by index [B, N]."""
    return cloud.gather(1, index[..., None].expand(-1, -1, cloud.shape[-1]))


@torch.no_grad()
def _nearest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """For every point its nearest in the other cloud: indices [B, N] into b and [B, M] into a.

    All squared distances come from one product, (|a|^2, a, 1) . (1, -2 b, |b|^2), which only has to tell who is nearest: around the clouds'
    own centre, where little cancels. The distances themselves are then computed from the pairs. A tile of clouds at a time."""
    centre = a.mean(1, keepdim=True)
    a, b = a - centre, b - centre
    one, other = torch.ones_like(a[..., :1]), torch.ones_like(b[..., :1])
    left = torch.cat([a.square().sum(-1, keepdim=True), a, one], -1)
    right = torch.cat([other, -2 * b, b.square().sum(-1, keepdim=True)], -1).transpose(1, 2)
    # Small tiles stay in a core's cache; several threads would wait for each other after each.
    most = 2 ** 17 if not a.is_cuda and torch.get_num_threads() == 1 else 2 ** 24
    tile = max(1, most // (a.shape[1] * b.shape[1]))
    pairs = []
    for x, y in zip(torch.split(left, tile), torch.split(right, tile), strict=True):
        distance = x @ y
        pairs.append((distance.min(2).indices, distance.min(1).indices))  # on a CPU faster than argmin
    return torch.cat([p[0] for p in pairs]), torch.cat([p[1] for p in pairs])
