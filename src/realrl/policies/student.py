"""The one-step head of a flow policy: the network that learns to draw in one step what the sampler draws in many, guidance absorbed.

One student is for all robots of a policy, so conditions come with the number of the robot that they are of. Letters: B batch, P prefix
tokens, W width, K chunk, A action.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from realrl.generative.flow import euler

if TYPE_CHECKING:
    from realrl.policies.flow import FlowPolicy

TILE = 256  # chains that are drawn at once: four thousand together took 1.7 times as long and 0.8 GB


def owned(cond: Tensor, robot: Tensor | int) -> Tensor:
    """Conditions [B, P W] with the number of their robot, [B] or one for all, behind them: [B, P W + 1]."""
    number = torch.as_tensor(robot, device=cond.device).expand(len(cond))
    return torch.cat([cond, number[:, None].to(cond)], 1)


def whose(cond: Tensor) -> tuple[Tensor, Tensor]:
    """(conditions [B, P W], whose they are [B]) of what `owned` made."""
    return cond[:, :-1], cond[:, -1].long()


class Student(nn.Module):
    """The one-step student as a function (x [B, K, A], t [B], cond [B, P W + 1], see `owned`) -> the clean chunk [B, K, A]: x less
    t times what it says, so that it begins as one Euler step of its teacher."""

    def __init__(self, policy: FlowPolicy) -> None:
        super().__init__()
        self.actor, self.mark = policy.student, policy.mark

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        cond, robot = whose(cond)
        t = t[:, None]
        return x - t[..., None] * self.actor(x, t, self.actor.remember(cond), robot, torch.full_like(robot, self.mark))  # type: ignore[no-any-return]


class Chain:
    """The sampler as the house's distillation takes it (`realrl.generative.diffusion.Chain`)."""

    def __init__(self, policy: FlowPolicy) -> None:
        self.policy, self.cfg = policy, policy.cfg.flow
        self.t = 1 - torch.arange(self.cfg.steps, device=policy.device) / self.cfg.steps
        size = policy.actor.action_in.shape[1]
        self.real = torch.tensor([[i < body.action_dim for i in range(size)] for body in policy.bodies], device=policy.device)

    def sample(self, net: Any, cond: Tensor, noise: Tensor, *, stochastic: bool) -> Tensor:
        """The chains [B, S+1, K, A] from noise [B, 1, K, A], as the policy acts; guidance is in them. Numbers that a robot has not are
        0, as where it acts: noise there would be an error that no student can mend."""
        cond, robot = whose(cond)
        parts = zip(*(torch.split(x, TILE) for x in (cond, robot, noise[:, 0] * self.real[robot][:, None])), strict=True)
        return torch.cat([euler(self.policy.velocity(c, robot=r), x, self.cfg.steps) for c, r, x in parts])
