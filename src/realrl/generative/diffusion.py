"""Denoising diffusion over action chunks, with the per-step likelihoods that RL needs.

RL-100 (arXiv 2510.14830), section 2: noise prediction, stochastic DDIM whose clipped sigma is the same in the mean, in the noise and in the
log-probability. The K-step chain is the denoising MDP: state x_k, sub-action x_{k-1}."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from realrl.config import OutOfBounds, check
from realrl.files import derive
from realrl.losses import gaussian_logp

NoiseNet = Callable[[Tensor, Tensor, Tensor], Tensor]
Sampler: TypeAlias = Literal["mean", "ddim", "sampled"]


@dataclass(frozen=True)
class DiffusionConfig:
    """The noise schedule and its sampler; saved with every checkpoint, because mixing samplers between stages destroys a policy."""

    train_steps: int = 100
    """T, noise levels seen in imitation."""
    steps: int = 10
    """S, denoising steps at act time."""
    offset: int = 5
    """Noise level of the last denoising step; the chain visits offset + i T/S. Above 0 every stochastic step has room for noise worth
    learning from: with 0 the last of them has sigma 0.025, and its likelihood ratio alone uses up the whole trust region."""
    sigma_min: float = 0.01
    """Smallest noise of a stochastic step (inside the DDIM bound)."""
    sigma_max: float = 0.8
    """Largest noise of a stochastic step (inside the DDIM bound). The larger, the further one update may move a policy."""
    predict: Literal["auto", "noise", "sample", "velocity"] = "auto"
    """What the network says of a noisy chunk: its noise, as in the paper; the clean chunk, which the paper finds worse for RL; or their
    difference sqrt(abar) eps - sqrt(1 - abar) a (arXiv 2202.00512, section 4): the clean chunk where noise is large, noise where it is
    small. `Diffusion.leverage` says why that matters to RL. auto: noise, and the clean chunk of a plan that is wide for its network."""
    greedy: Sampler = "mean"
    """How it is deployed. mean: the stochastic sampler with its noise left out, the mode of what RL improves; ddim: the probability-flow
    chain (eta = 0), another policy, which RL with a large sigma does not improve alike; sampled: the stochastic sampler as it is, often
    the best of what was cloned from people's recordings. The one-step student of a sampled chain follows the eta = 0 one."""

    def __post_init__(self) -> None:
        check(self, train_steps="[1, 10000]", steps="[1, 10000]", offset="[0, 10000]", sigma_min="(0, 1e3]", sigma_max="(0, 1e3]")
        if self.sigma_min > self.sigma_max:
            raise OutOfBounds(DiffusionConfig, "sigma_min", f"must be at most sigma_max ({self.sigma_max}), got {self.sigma_min}")
        if self.steps > self.train_steps:
            raise OutOfBounds(DiffusionConfig, "steps", f"must lie in 1..{self.train_steps} (train_steps), got {self.steps}")
        if self.offset >= self.stride + self.train_steps % self.steps:
            raise OutOfBounds(DiffusionConfig, "offset", f"must lie in 0..{self.stride - 1} (train_steps / steps - 1), got {self.offset}")

    @property
    def stride(self) -> int:
        """Noise levels from one denoising step to the next."""
        return self.train_steps // self.steps


class Diffusion(nn.Module):
    """Schedule and sampler; no learned weights. Chunks are [B, K, A] in [-1, 1]; step k counts from 0 (pure noise) to S-1 (last).

    The final step lands on the clean action, where the DDIM bound leaves no room for noise (sigma = 0); it is deterministic and does not
    enter a likelihood. `likely` lists the steps that do. `heat` []: online RL may turn the sampling noise down (`OnlineConfig.cool`): sigma
    is multiplied by this in the noise and in the likelihood alone, so that at 0 the stochastic chain is the deterministic one that is
    deployed (`greedy` "mean")."""

    def __init__(self, cfg: DiffusionConfig) -> None:
        super().__init__()
        self.cfg = cfg
        with torch.device("cpu"):  # also where a policy is only sketched, on the meta device: `likely` needs numbers
            self._make_tables(cfg)
        self.abar: Tensor
        self.now: Tensor
        self.after: Tensor
        self.sigma: Tensor
        self.direction: Tensor
        self.t: Tensor
        self.heat: Tensor

    def _make_tables(self, cfg: DiffusionConfig) -> None:
        abar = squared_cosine(cfg.train_steps)
        t = torch.arange(cfg.steps - 1, -1, -1) * cfg.stride + cfg.offset
        now, after = abar[t], torch.cat([abar[t[1:]], abar.new_ones(1)])
        sigma = ddpm_sigma(now, after).clamp(cfg.sigma_min, cfg.sigma_max).minimum((1 - after).sqrt())
        tables = {"abar": abar, "now": now, "after": after, "sigma": sigma, "direction": (1 - after - sigma**2).clamp(min=0).sqrt()}
        for name, value in tables.items():
            self.register_buffer(name, value.float(), persistent=False)
        self.register_buffer("t", t, persistent=False)
        self.likely: list[int] = [k for k in range(cfg.steps) if sigma[k] > 0]
        self.register_buffer("heat", torch.ones(()))  # the one buffer that is saved: it is learned with

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        state_dict.setdefault(f"{prefix}heat", torch.ones_like(self.heat))  # checkpoints did not always hold it
        super()._load_from_state_dict(state_dict, prefix, *others)

    def corrupt(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps. x0, noise: [B, K, A]; t: [B] in 0..T-1."""
        abar = self.abar[t][:, None, None]
        return abar.sqrt() * x0 + (1 - abar).sqrt() * noise

    def wanted(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What the network ought to say of `corrupt(x0, t, noise)`: noise, clean chunk or velocity, as configured. [B, K, A]."""
        if self.cfg.predict == "velocity":
            abar = self.abar[t][:, None, None]
            return abar.sqrt() * noise - (1 - abar).sqrt() * x0
        return x0 if self.cfg.predict == "sample" else noise

    def mean(self, net: NoiseNet, x: Tensor, k: Tensor, cond: Tensor, *, stochastic: bool = True) -> Tensor:
        """Mean of the sub-policy at step k [B]: where x [B, K, A] goes next. Section 2 of the paper's method, stochastic DDIM."""
        said = net(x, self.t[k], cond)
        now, after = self.now[k][:, None, None], self.after[k][:, None, None]
        if self.cfg.predict in ("noise", "auto"):
            eps, clean = said, ((x - (1 - now).sqrt() * said) / now.sqrt()).clamp(-1.0, 1.0)
        else:
            clean = (said if self.cfg.predict == "sample" else now.sqrt() * x - (1 - now).sqrt() * said).clamp(-1.0, 1.0)
            eps = (x - now.sqrt() * clean) / (1 - now).sqrt()
        direction = self.direction[k][:, None, None] if stochastic else (1 - after).clamp(min=0).sqrt()
        return after.sqrt() * clean + direction * eps

    def logp(self, x_next: Tensor, mean: Tensor, k: Tensor) -> Tensor:
        """Log-probability [B] of landing on x_next [B, K, A] at step k [B], which must be one of `likely`."""
        return gaussian_logp(x_next, mean, self.spread(k))

    def leverage(self) -> Tensor:
        """|d mean / d net| / sigma [L] at the steps of `likely`: how far, in standard deviations of its noise, the sub-policy of a step
        moves when the network's word changes by 1. The KL of a change goes as its square, so where the steps differ much, the one with
        the most uses up RL's trust region, and the others stand still."""
        k = torch.tensor(self.likely, device=self.sigma.device)
        x = torch.zeros(len(k), 1, 1, device=k.device)

        def at(said: float) -> Tensor:
            return self.mean(lambda *_: torch.full_like(x, said), x, k, x).flatten()

        return (at(1e-3) - at(0.0)).abs() / 1e-3 / self.spread(k)  # the mean is linear where nothing is clipped

    def spread(self, k: Tensor) -> Tensor:
        """Standard deviation of the noise at steps k [...]."""
        return self.heat * self.sigma[k]

    def sample(self, net: NoiseNet, cond: Tensor, noise: Tensor, *, stochastic: bool) -> Tensor:
        """Run the whole chain. cond: [B, C]; noise: [B, S+1, K, A] (row 0 starts it, row k+1 is step k's; a deterministic chain
        needs row 0 only, see `DiffusionConfig.greedy`). Returns the chain [B, S+1, K, A]; its last entry is the action chunk."""
        x = noise[:, 0]
        same_mean = stochastic or self.cfg.greedy == "mean"
        chain = [x]
        for k in range(self.cfg.steps):
            index = torch.full((len(x),), k, device=x.device)
            x = self.mean(net, x, index, cond, stochastic=same_mean)
            if stochastic and k in self.likely:  # asking the table would make a GPU wait
                x = x + self.heat * self.sigma[k] * noise[:, k + 1]
            chain.append(x)
        return torch.stack(chain, 1)


def squared_cosine(steps: int) -> Tensor:
    """abar_t, t = 0..steps-1, of the squared-cosine schedule (arXiv 2102.09672, eq. 17), betas capped at 0.999. [steps] float64."""
    def level(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - level((i + 1) / steps) / level(i / steps), 0.999) for i in range(steps)]
    return (1 - torch.tensor(betas, dtype=torch.float64)).cumprod(0)


def ddpm_sigma(now: Tensor, after: Tensor) -> Tensor:
    """Standard deviation of DDIM with eta = 1 between noise levels abar `now` -> `after` (arXiv 2010.02502, eq. 16)."""
    return ((1 - after) / (1 - now) * (1 - now / after)).clamp(min=0).sqrt()


def imitation_loss(diffusion: Diffusion, net: NoiseNet, action: Tensor, valid: Tensor, cond: Tensor, generator: torch.Generator,
                   weight: Tensor | None = None) -> Tensor:
    """L_IL = E ||eps - eps_theta(a^tau, tau, c)||^2 over valid actions, or of the clean chunk or velocity where that is predicted.

    action: [B, K, A]; valid: [B, K]; weight: [B] or None."""
    t = torch.randint(diffusion.cfg.train_steps, (len(action),), generator=generator, device=action.device)
    noise = torch.randn(action.shape, generator=generator, device=action.device)
    wanted = diffusion.wanted(action, t, noise)
    error = (net(diffusion.corrupt(action, t, noise), t, cond) - wanted).square().mean(-1) * valid
    if weight is not None:
        error = error * weight[:, None]
    return error.sum() / valid.sum().clamp(min=1)


# -- the one-step student: section 4, L_CD --------------------------------------------------------------------------------------


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

    def __post_init__(self) -> None:
        check(self, batch="[1, 1e6]", lr="(0, 1]", chains="[1, 1e7]", beside_rl="[0, 1e6]", steps="[1, 1e9]")


def start_from_teacher(student: nn.Module, teacher: nn.Module) -> None:
    """Copy the teacher's weights except the head, whose meaning changes from noise to clean action."""
    weights = {k: v for k, v in teacher.state_dict().items() if not k.startswith(("head.", "last."))}
    student.load_state_dict(weights, strict=False)


@torch.no_grad()
def teacher_chain(diffusion: Chain, teacher: nn.Module, cond: Tensor, generator: torch.Generator, shape: tuple[int, int]) -> Tensor:
    """Deterministic chains [B, S+1, K, A] from fresh noise. cond: [B, C]; shape: (K, A)."""
    noise = torch.randn((len(cond), 1, *shape), generator=generator, device=cond.device)
    return diffusion.sample(teacher, cond, noise, stochastic=False)


class Chain(Protocol):
    """What a student is taught: the cfg.steps S steps of a sampler, `Diffusion`'s or a flow's. t: [S], what it is told of each."""

    @property
    def t(self) -> Tensor: ...

    @property
    def cfg(self) -> Any: ...

    def sample(self, net: Any, cond: Tensor, noise: Tensor, *, stochastic: bool) -> Tensor:
        """See `Diffusion.sample`."""
        ...


class Distillation:
    """Trains the student towards the teacher's chain, which is only ever evaluated.

    Beside RL it is the second term of L_RL + lambda_CD L_CD: the two networks share nothing, so the sum is minimised by stepping each on
    its own term. cond: [N, C] encoded observations throughout."""

    def __init__(self, student: nn.Module, teacher: nn.Module, diffusion: Chain, shape: tuple[int, int], cfg: DistillConfig) -> None:
        """shape: (K, A) of a chunk."""
        self.student, self.teacher = student.requires_grad_(True).eval(), teacher
        self.diffusion, self.shape, self.cfg = diffusion, shape, cfg
        self.optimiser = torch.optim.AdamW(student.parameters(), lr=cfg.lr, weight_decay=0.0, fused=True)

    def update(self, cond: Tensor, chain: Tensor, random: torch.Generator, lr: float) -> Tensor:
        """One step on cached chains [N, S+1, K, A]. Returns the RMS student-teacher gap [] of the one-step head."""
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
        return error[: size // 2].detach().mean().sqrt()  # type: ignore[no-any-return]

    def follow(self, cond: Tensor, random: torch.Generator) -> float:
        """A few steps on fresh chains from some of the states; returns the mean gap."""
        states, chain = self._draw(cond, self.cfg.chains, random)
        gaps = [self.update(states, chain, random, self.cfg.lr / 3) for _ in range(self.cfg.beside_rl)]
        return float(torch.stack(gaps).mean()) if gaps else 0.0

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
                log(step + 1, {"student_gap": float(gap)})

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
