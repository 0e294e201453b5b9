"""Flow matching over action chunks (arXiv 2210.02747; pi0, arXiv 2410.24164, section III-A; openpi's `pi0.py`).

**Time runs as in openpi's code and against the papers': t = 1 is noise, t = 0 is the action.** With noise e and action a

    x_t = t e + (1 - t) a,    the network says  v(x_t, t) ~ e - a,    and  x <- x - v / S  leads in S steps from 1 to 0.

Every action of a chunk has a time of its own, so that actions which are already decided (a robot carries them out while the next plan is
made) stand there clean, at t = 0 (training-time form of real-time chunking, arXiv 2512.05964). Letters: B batch, K chunk, A action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from realrl.config import check

Velocity: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(x [B, K, A], t [B, K], or [B, 1] for all actions alike) -> [B, K, A]"""


@dataclass(frozen=True)
class FlowConfig:
    """How actions are drawn; saved with every policy."""

    steps: int = 10
    """S, Euler steps from noise to action."""
    guidance: float = 1.0
    """beta: v = v_without + beta (v_with - v_without), with and without the advantage indicator or the goal (arXiv 2505.23458); 1 = with
    it alone, and half the computation. Large ones leave what the data support."""
    delay: int = 0
    """Most actions of a plan that are already decided when it is made: the robot carries them out meanwhile. 0 = it waits."""

    def __post_init__(self) -> None:
        check(self, steps="[1, 1000]", guidance="[0, 20]", delay="[0, 100]")


def draw_time(count: int, random: torch.Generator) -> Tensor:
    """t [count] ~ 0.001 + 0.999 Beta(1.5, 1), more of it at the noisy end (pi0, appendix B, whose time is 1 - t)."""
    u = torch.rand(count, generator=random, device=random.device)
    return 0.001 + 0.999 * u ** (1 / 1.5)  # the inverse of Beta(1.5, 1)'s distribution x^1.5


def draw_fixed(count: int, chunk: int, delay: int, random: torch.Generator) -> Tensor:
    """[count, K] bool: which first actions are decided already, 0 to `delay` of them, each as likely."""
    first = torch.randint(delay + 1, (count, 1), generator=random, device=random.device)
    return torch.arange(chunk, device=random.device) < first


def mix(action: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t [B, K, A] for t [B, K] or [B, 1]; at t = 0 the action itself."""
    return t[..., None] * noise + (1 - t[..., None]) * action


def flow_loss(velocity: Velocity, action: Tensor, noise: Tensor, t: Tensor, counts: Tensor, weight: Tensor | None = None) -> Tensor:
    """E ||v(x_t, t) - (e - a)||^2, the mean over what counts: neither padded actions, nor dimensions that a robot has not, nor decided
    actions. action, noise: [B, K, A]; t: [B, K] or [B, 1]; counts: [B, K, A] bool; weight: [B] or None. Returns []."""
    error = (velocity(mix(action, noise, t), t) - (noise - action)).square() * counts
    if weight is not None:
        error = error * weight[:, None, None]
    return error.sum() / counts.sum().clamp(min=1)


def euler(velocity: Velocity, noise: Tensor, steps: int, known: Tensor | None = None, fixed: Tensor | None = None) -> Tensor:
    """The chain [B, S+1, K, A] from noise [B, K, A] to the action, its last entry. known [B, K, A], where fixed [B, K]: actions that are
    decided already and stay as they are."""
    x = noise if known is None or fixed is None else torch.where(fixed[..., None], known, noise)
    chain = [x]
    for k in range(steps):
        t = torch.full((len(x), 1), 1 - k / steps, device=x.device)
        if fixed is not None:
            t = t.masked_fill(fixed, 0.0)  # [B, K]
        v = velocity(x, t)
        x = x - (v if fixed is None else v.masked_fill(fixed[..., None], 0.0)) / steps
        chain.append(x)
    return torch.stack(chain, 1)
