"""The grasp critic of HIL-SERL (arXiv 2410.21845, section IV-C): a double DQN (1509.06461) over what a gripper can be told.

A hand's motions are numbers, its grasp is not: shutting is a decision of one step, and nothing lies between it and staying open. So the
commands open, stay and shut have values of their own,

    Q(s, c) -> r - cost [c is not stay] + discount Q'(s', argmax Q(s', .)),

learned from the same batches as the other critics, one step for each of theirs. The policy takes the command of the highest value, always;
others are tried by people alone, in demonstrations and corrections. Learned from is the command that was executed. The cost is for every
command: what moves the fingers takes time, what does not is pointless.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from realrl.learn.sac import SACConfig, adam, adam_scale, gradient_of
from realrl.losses import td_target
from realrl.nets.stack import Flat
from realrl.policies.gaussian import GaussianPolicy
from realrl.scene import COMMAND
from realrl.types import Batch

STAY = 1
"""The place of "stay" among the commands open, stay, shut."""
MARGIN = 0.1
"""By how much, in imitation, a person's command is to be worth more than the others."""


def commands(action: Tensor) -> Tensor:
    """Which command [B] the last numbers of actions [B, K, A] are, the first of K."""
    number = action[:, 0, -1]
    return (number >= COMMAND).long() - (number <= -COMMAND).long() + STAY


class GraspCritic:
    """Teaches `policy.grasp`. cfg: the learner's batch, rates and target; cost: of a command."""

    def __init__(self, policy: GaussianPolicy, cfg: SACConfig, cost: float) -> None:
        self.policy, self.cfg, self.cost = policy, cfg, cost
        self.weights = Flat(policy.grasp)
        self.target = self.weights.value.clone()

    @torch.no_grad()
    def update(self, batch: Batch) -> dict[str, Tensor]:
        """A step for every `cfg.batch` rows of a batch, in their order; means over them."""
        told = commands(batch.action)
        reward = batch.reward - self.cost * (told != STAY)
        columns = (self.policy.encode(batch.obs), told, reward, batch.discount, self.policy.encode(batch.next_obs))
        found = [self._step(*rows) for rows in zip(*(torch.split(x, self.cfg.batch) for x in columns), strict=True)]
        return {name: torch.stack([f[name] for f in found]).mean() for name in found[0]}

    def _step(self, cond: Tensor, told: Tensor, reward: Tensor, discount: Tensor, next_cond: Tensor) -> dict[str, Tensor]:
        net = self.policy.grasp
        best = net(next_cond)[0].argmax(-1, keepdim=True)
        wanted = td_target(reward, discount, net(next_cond, self.weights.views(self.target))[0].gather(-1, best)[:, 0])

        def loss(weights: Tensor) -> tuple[Tensor, tuple[Tensor, list[Tensor]]]:
            q = net(cond, self.weights.views(weights))[0].gather(-1, told[:, None])[:, 0]
            return (q - wanted).square().mean(), (q.detach().mean(), [])

        gradient, value, (q, _) = gradient_of(loss, self.weights.value)
        self._follow(gradient)
        self.target.lerp_(self.weights.value, self.cfg.target_rate or 1.0)
        return {"grasp_loss": value, "grasp_q": q}

    @torch.no_grad()
    def imitate(self, batch: Batch) -> dict[str, Tensor]:
        """A step towards a batch's commands: each worth `MARGIN` more than the others (as in DQfD, 1704.03732, equation 2)."""
        cond, told = self.policy.encode(batch.obs), commands(batch.action)[:, None]

        def loss(weights: Tensor) -> tuple[Tensor, tuple[Tensor, list[Tensor]]]:
            q = self.policy.grasp(cond, self.weights.views(weights))[0]
            others = (q + MARGIN).scatter(-1, told, q.gather(-1, told))
            return (others.amax(-1) - q.gather(-1, told)[:, 0]).mean(), (q.detach().mean(), [])

        gradient, value, _ = gradient_of(loss, self.weights.value)
        self._follow(gradient)
        self.target.copy_(self.weights.value)
        return {"grasp_imitation_loss": value}

    def _follow(self, gradient: Tensor) -> None:
        self.weights.steps += 1
        scale = torch.tensor(adam_scale(self.weights.steps, self.cfg.critic_lr, self.cfg.beta1), device=gradient.device)
        adam(self.weights, gradient, scale, self.cfg.beta1)

    def state_dict(self) -> dict[str, Any]:
        """All that continuing needs beside the policy's weights."""
        return {"target": self.target, "adam": self.weights.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.target.copy_(state["target"])
        self.weights.load_state_dict(state["adam"])
