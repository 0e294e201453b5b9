"""Critics from recorded data alone: implicit Q-learning (arXiv 2110.06169), the critics of RL-100's offline stage.

Decisions are chunks: Q(s, a_1..K). The update never asks what the policy would do, so nothing outside the data is queried.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from realrl.config import check
from realrl.data.views import Encoded, continue_chunks
from realrl.files import derive
from realrl.losses import expectile, explained_variance, td_target
from realrl.nets.mlp import EnsembleMLP, mlp
from realrl.nets.normalise import Whitener


@dataclass(frozen=True)
class CriticConfig:
    """IQL's twin Q and V."""

    steps: int = 3000
    """Gradient steps per fit."""
    batch: int = 256
    """Decisions per step."""
    lr: float = 3e-4
    """AdamW's learning rate."""
    weight_decay: float = 1e-4
    """AdamW's."""
    hidden: int = 256
    """Width of both hidden layers (LayerNorm, SiLU)."""
    expectile: float = 0.8
    """tau of V's regression: 0.5 = mean of the data's actions, 1 = their best."""
    target_rate: float = 0.005
    """Polyak rate of the target Q."""
    whiten: bool = True
    """Whether critics of a policy with eyes see its latents along their principal axes, each scaled to about unit variance."""

    def __post_init__(self) -> None:
        check(self, steps="[1, 1e9]", batch="[1, 1e6]", lr="(0, 1]", weight_decay="[0, 1]", hidden="[1, 16384]", expectile="(0, 1)",
              target_rate="(0, 1]")


class Critics(nn.Module):
    """Twin Q(s, a), its slow copy, and V(s). cond: [B, C] encoded observation; action: [B, K, A]. eyes: the condition is a latent."""

    def __init__(self, cond: int, chunk: int, action: int, cfg: CriticConfig, *, eyes: bool = False) -> None:
        super().__init__()
        self.cfg = cfg
        self.twin = EnsembleMLP(2, cond + chunk * action, 1, (cfg.hidden, cfg.hidden))
        self.target = copy.deepcopy(self.twin).requires_grad_(False)
        self.value = value_net(cond, cfg, eyes=eyes)
        self.white = self.value[0] if isinstance(self.value[0], Whitener) else nn.Identity()
        self.optimiser = torch.optim.AdamW([*self.twin.parameters(), *self.value.parameters()], lr=cfg.lr,
                                           weight_decay=cfg.weight_decay, fused=True)

    def v(self, cond: Tensor) -> Tensor:
        """V(s) [B]."""
        out: Tensor = self.value(cond)
        return out[:, 0]

    def q(self, cond: Tensor, action: Tensor) -> Tensor:
        """min(Q1, Q2) of the slow copy [B]."""
        out: Tensor = self.target(self._pair(cond, action))
        return out[..., 0].amin(0)

    @torch.no_grad()
    def advantage(self, cond: Tensor, action: Tensor) -> Tensor:
        """A = min(Q1, Q2) - V [B] (RL-100, section 4)."""
        return self.q(cond, action) - self.v(cond)

    def _pair(self, cond: Tensor, action: Tensor) -> Tensor:
        return torch.cat([self.white(cond), action.flatten(1)], -1)

    def update(self, cond: Tensor, action: Tensor, reward: Tensor, discount: Tensor, next_cond: Tensor) -> dict[str, Tensor]:
        """One step of L_V = E|tau - 1(u<0)| u^2 and L_Q = E (r + discount V(s') - Q)^2; returns both."""
        pair = self._pair(cond, action)
        with torch.no_grad():
            best = self.target(pair)[..., 0].amin(0)
            target = td_target(reward, discount, self.v(next_cond))
        loss_v = expectile(best - self.v(cond), self.cfg.expectile)
        loss_q = (self.twin(pair)[..., 0] - target).square().mean(-1).sum()
        self.optimiser.zero_grad()
        (loss_v + loss_q).backward()
        self.optimiser.step()
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.twin.parameters(), strict=True):
                slow.lerp_(fast, self.cfg.target_rate)
        return {"loss_v": loss_v.detach(), "loss_q": loss_q.detach()}


def value_net(cond: int, cfg: CriticConfig, *, eyes: bool) -> nn.Sequential:
    """V: [B, cond] -> [B, 1]; eyes: the condition is a policy's latent."""
    net = mlp(cond, 1, (cfg.hidden, cfg.hidden))
    return nn.Sequential(Whitener(cond), *net) if eyes and cfg.whiten else net


def fit_whitener(value: nn.Module, cond: Tensor) -> None:
    """Fit the whitener of a `value_net`, where it has one, to conditions [N, C]; the first time only."""
    if isinstance(value, nn.Sequential) and isinstance(value[0], Whitener):
        value[0].fit(cond)


def fit_critics(critics: Critics, table: Encoded, *, seed: int, log: Any = None, advance: Callable[[int], None] = lambda n: None) -> None:
    """Train for `cfg.steps` on every decision of the table. advance: told of each step."""
    random = torch.Generator(table.cond.device).manual_seed(derive(seed, "critics"))
    fit_whitener(critics.value, table.cond)
    action = continue_chunks(table.action, table.valid, random)
    for step in range(critics.cfg.steps):
        i = torch.randint(len(table), (critics.cfg.batch,), generator=random, device=action.device)
        losses = critics.update(table.cond[i], action[i], table.reward[i], table.discount[i], table.next_cond[i])
        advance(1)
        if log is not None and step % 250 == 249:
            log(step + 1, {f"critic_{k}": float(v) for k, v in losses.items()})


def calibration(critics: Critics, cond: Tensor, returns: Tensor) -> dict[str, Any]:
    """Does V mean anything: explained variance against Monte-Carlo returns [N] of the data, and both means."""
    with torch.no_grad():
        value = critics.v(cond)
    return {"value_explained": explained_variance(value, returns), "value_mean": float(value.mean()), "return_mean": float(returns.mean())}
