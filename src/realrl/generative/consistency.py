"""One-step students: a network that jumps to where the teacher's deterministic chain ends (RL-100, section 4, L_CD).

C_w(x^tau, tau) -> x_0 is regressed on the chain's end point from the same noise, at every noise level the chain visits; half of
the batch sits at tau_S, the only level that acting uses. Generating chains dominates the cost, so a chain is made once and used often.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from realrl.generative.diffusion import Diffusion
from realrl.seeding import derive


@dataclass(frozen=True)
class DistillConfig:
    """The consistency student, C_w(x^tau, tau) -> end of the teacher's chain (section 4, L_CD)."""

    batch: int = 1024
    """Pairs of (noisy chunk, end point) per step."""
    lr: float = 1e-3
    """AdamW's learning rate in the final stage (cosine decay); a third of it beside RL."""
    chains: int = 2000
    """Teacher chains generated beside one RL update."""
    beside_rl: int = 10
    """Student steps beside each online update (lambda_CD of the joint loss: the networks are separate, so only the rate matters)."""
    steps: int = 1500
    """Student steps of the final stage."""


def start_from_teacher(student: nn.Module, teacher: nn.Module) -> None:
    """Copy the teacher's weights except the head, whose meaning changes from noise to clean action."""
    weights = {k: v for k, v in teacher.state_dict().items() if not k.startswith(("head.", "last."))}
    student.load_state_dict(weights, strict=False)


@torch.no_grad()
def teacher_chain(diffusion: Diffusion, teacher: nn.Module, cond: Tensor, generator: torch.Generator, shape: tuple[int, int]) -> Tensor:
    """Deterministic chains [B, S+1, K, A] from fresh noise. cond: [B, C]; shape: (K, A)."""
    noise = torch.randn((len(cond), 1, *shape), generator=generator, device=cond.device)
    return diffusion.sample(teacher, cond, noise, stochastic=False)


class Distillation:
    """Trains the student towards the teacher's chain, which is only ever evaluated.

    Beside RL it is the second term of L_RL + lambda_CD L_CD: the two networks share nothing, so the sum is minimised by stepping
    each on its own term. cond: [N, C] encoded observations throughout.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, diffusion: Diffusion, shape: tuple[int, int], cfg: DistillConfig) -> None:
        """shape: (K, A) of a chunk."""
        self.student, self.teacher = student.requires_grad_(True).eval(), teacher
        self.diffusion, self.shape, self.cfg = diffusion, shape, cfg
        self.optimiser = torch.optim.AdamW(student.parameters(), lr=cfg.lr, weight_decay=0.0)

    def update(self, cond: Tensor, chain: Tensor, random: torch.Generator, lr: float) -> float:
        """One step on cached chains [N, S+1, K, A]. Returns the RMS student-teacher gap of the one-step head."""
        self.optimiser.param_groups[0]["lr"] = lr
        size, steps = self.cfg.batch, self.diffusion.cfg.steps
        rows = torch.randint(len(cond), (size,), generator=random, device=cond.device)
        k = torch.randint(steps, (size,), generator=random, device=cond.device)
        k[: size // 2] = 0
        target = chain[rows, -1].clamp(-1.0, 1.0)
        error = (self.student(chain[rows, k], self.diffusion.t[k], cond[rows]) - target).square()
        self.optimiser.zero_grad()
        error.mean().backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimiser.step()
        return float(error[: size // 2].mean().sqrt().detach())

    def follow(self, cond: Tensor, random: torch.Generator) -> float:
        """A few steps on fresh chains from some of the states; returns the mean gap."""
        states, chain = self._draw(cond, self.cfg.chains, random)
        gaps = [self.update(states, chain, random, self.cfg.lr / 3) for _ in range(self.cfg.beside_rl)]
        return sum(gaps) / max(len(gaps), 1)

    def finish(self, cond: Tensor, seed: int, log: Callable[[int, Mapping[str, float]], None], advance: Callable[[int], None]) -> None:
        """The final stage: `steps` updates with a cosine rate, chains renewed every 500."""
        states, chain = cond, cond
        for step in range(self.cfg.steps):
            random = torch.Generator(cond.device).manual_seed(derive(seed, "distil", step))
            if step % 500 == 0:
                states, chain = self._draw(cond, 10 * self.cfg.chains, random)
            gap = self.update(states, chain, random, self.cfg.lr * 0.5 * (1 + math.cos(math.pi * step / self.cfg.steps)))
            advance(1)
            if step % 100 == 99:
                log(step + 1, {"student_gap": gap})

    def _draw(self, cond: Tensor, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        states = cond[torch.randint(len(cond), (count,), generator=random, device=cond.device)]
        return states, teacher_chain(self.diffusion, self.teacher.eval(), states, random, self.shape)

    def state_dict(self) -> dict[str, Any]:
        """Student and optimiser."""
        return {"student": self.student.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.student.load_state_dict(state["student"])
        self.optimiser.load_state_dict(state["optimiser"])
