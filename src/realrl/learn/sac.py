"""One soft actor-critic family for learning while a robot acts: SAC, DroQ and CrossQ are values of one configuration.

- SAC (arXiv 1801.01290, with the automatic temperature of 1812.05905), on request with LayerNorm in its critics;
- DroQ (2110.02034): dropout and LayerNorm, many critic updates a step, the actor once for all of them (A Walk in the Park, 2208.07860);
- REDQ's target (2101.05982): the least of m of N critics, drawn anew for every update;
- CrossQ (1902.05605): both halves of a transition in one forward pass under BatchRenorm, and no target networks.

Every target is `batch.reward + batch.discount * next_value`: n-step returns, chunks as one decision, ends and time limits are the batch's
affair. Noise is a function of (seed, number of updates), so that an interrupted run goes on to the same bits.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from realrl.config import OutOfBounds, check
from realrl.files import derive
from realrl.learn.replay import Replay
from realrl.losses import td_target
from realrl.memory import keep_freed_memory
from realrl.nets.stack import Flat, Norm, Stack
from realrl.policies.gaussian import GaussianPolicy, squash
from realrl.types import Batch, Source

BETA2, EPS = 0.999, 1e-8  # Adam's

RATES = ("--sac.critic-lr", "--sac.actor-lr")
"""Flags that keep it from diverging."""


@dataclass(frozen=True)
class SACConfig:
    """Soft actor-critic and what was made of it; see `PRESETS`."""

    utd: int = 1
    """Critic updates per environment step."""
    policy_delay: int = 1
    """Critic updates per update of the actor and the temperature."""
    actor_start: int = 0
    """Updates before the actor follows the critics at all, steps of imitation included."""
    batch: int = 256
    """Transitions per update."""
    gamma: float = 0.99
    """Discount of a control step."""
    n_step: int = 1
    """Decisions that a target looks ahead before it bootstraps."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the critics' ReLU layers."""
    critics: int = 2
    """N, how many Q-functions learn."""
    subset: int = 2
    """m, how many of them, drawn anew for every update, the target takes the least of."""
    actor_q: Literal["mean", "min"] = "min"
    """What the actor climbs: the critics' mean or their least."""
    norm: Norm = "layer"
    """The critics' layers: none, layer (LayerNorm) or renorm (BatchRenorm, CrossQ)."""
    dropout: float = 0.0
    """Share of the critics' features that is left out, in their targets and the actor's loss, too (DroQ)."""
    warmup: int = 1000
    """Updates before BatchRenorm leans on what it has seen."""
    target_rate: float = 0.005
    """Polyak rate of the target critics; 0 = none, both halves of a transition go through the critics at once (CrossQ)."""
    critic_lr: float = 3e-4
    """Adam's learning rate for the critics."""
    actor_lr: float = 3e-4
    """Adam's learning rate for the actor."""
    alpha_lr: float = 3e-4
    """Adam's learning rate for the temperature; 0 = it stays as it is."""
    beta1: float = 0.9
    """Adam's memory of gradients, of actor and critics."""
    alpha: float = 0.1
    """The temperature at first."""
    entropy: float = -0.5
    """Entropy that the temperature steers to, per action number (-0.5: half a nat below an even one)."""
    entropy_backup: bool = True
    """Whether targets value entropy to come."""
    imitation: float = 0.0
    """Weight of imitating what people did, where the critics do not hold the actor's own action for better (as in SiLRI); 0 = none."""

    def __post_init__(self) -> None:
        check(self, utd="[1, 1000]", policy_delay="[1, 1000]", actor_start="[0, 1e9]", batch="[2, 1e6]", gamma="(0, 1]",
              n_step="[1, 1000]", hidden="[1, 16384]", critics="[1, 100]", subset="[1, 100]", dropout="[0, 0.9]", warmup="[0, 1e9]",
              target_rate="[0, 1]", critic_lr="(0, 1]", actor_lr="(0, 1]", alpha_lr="[0, 1]", beta1="[0, 1)", alpha="[0, 1e6]",
              entropy="[-1000, 1000]", imitation="[0, 1e3]")
        if not 1 <= len(self.hidden) <= 20:
            raise OutOfBounds(SACConfig, "hidden", f"must have at least one layer and at most 20, got {len(self.hidden)}")
        if self.subset > self.critics:
            raise OutOfBounds(SACConfig, "subset", f"must be at most critics = {self.critics}, got {self.subset}")
        if self.norm == "renorm" and self.target_rate:
            raise OutOfBounds(SACConfig, "target_rate", "must be 0 with norm renorm: its statistics hold for both halves seen together")
        if self.alpha_lr and not self.alpha:
            raise OutOfBounds(SACConfig, "alpha", "must be above 0 to be learned; for no entropy at all set alpha_lr to 0, too")


SAC_LAYERNORM = SACConfig(utd=2, policy_delay=2)
DROQ = SACConfig(utd=20, policy_delay=20, dropout=0.01, actor_q="mean")
# Gait in Eight has rates of 5e-3. With those a Go1 walked only as long as it learned: within 30 updates the actor's means moved by some
# of its deviations, and what was left at the end of a run stood still. At 2e-3 it begins as soon, and what is left walks. It looks 2 s
# ahead at 40 to 50 decisions a second; 0.97 is that at 20. With 0.99 values rise for longer, beyond what standing is worth, and fall again
# first.
CROSSQ = SACConfig(gamma=0.97, batch=128, norm="renorm", target_rate=0.0, critic_lr=2e-3, actor_lr=2e-3, alpha_lr=5e-3, beta1=0.5,
                   alpha=1.0)
PRESETS = {"crossq": CROSSQ, "droq": DROQ, "sac": SAC_LAYERNORM}


@dataclass
class _Rows:
    """What u updates learn from and their noise: cond, next_cond [u, B, C]; action [u, B, D]; reward, discount [u, B]; human [u, B], 1 for
    what a person did; noise, of the next actions [u, B, D], of the actor [B, D]; subset [u, m]; drop, target_drop: a hidden layer each, the
    places [u, k] that dropout empties; actor_drop: the same [k] in the actor's loss; scales [u, 2], actor_scale, alpha_scale [2]: what
    `adam` needs."""

    cond: Tensor
    action: Tensor
    reward: Tensor
    discount: Tensor
    next_cond: Tensor
    human: Tensor
    noise: Tensor
    actor_noise: Tensor
    subset: Tensor
    drop: list[Tensor]
    target_drop: list[Tensor]
    actor_drop: list[Tensor]
    scales: Tensor
    actor_scale: Tensor
    alpha_scale: Tensor


class _Temperature(nn.Module):
    """alpha, by its logarithm [1]."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor([math.log(alpha) if alpha else -math.inf]))


class SAC:
    """Actor, critics, temperature and their optimisers; see `types.Agent`.

    The weights of each lie in one vector (`Flat`) of which the modules' parameters are views: `policy` always acts with the newest.
    compiled: whether an update's arithmetic is compiled, which takes a while at the first update and gives the same numbers but for
    rounding; `compile_s` says how long it took. seed: of all its noise.
    """

    def __init__(self, policy: GaussianPolicy, cfg: SACConfig, *, seed: int, compiled: bool = False) -> None:
        self.policy, self.cfg, self.seed, self.step, self.compile_s = policy, cfg, seed, 0, 0.0
        keep_freed_memory()
        self.size = policy.chunk * policy.moves
        self.critic = Stack(cfg.critics, policy.cond_dim + self.size, 1, cfg.hidden, norm=cfg.norm, dropout=cfg.dropout,
                            warmup=cfg.warmup).to(policy.device)
        self.temperature = _Temperature(cfg.alpha).to(policy.device)
        self.actor_weights, self.weights, self.log_alpha = Flat(policy.net), Flat(self.critic), Flat(self.temperature)
        self.target = self.weights.value.clone() if cfg.target_rate else None
        self._parts: list[Callable[..., Any]] = [self._ahead, self._critic_update, self._actor_update]
        if compiled:
            self._parts = [_Compiled(part) for part in self._parts]
        self._known: set[tuple[int, bool]] = set()

    @property
    def alpha(self) -> Tensor:
        """The temperature []."""
        return self.log_alpha.value.exp()[0]

    def replay(self) -> Replay:
        """An empty replay of the decisions that it learns from."""
        return Replay(chunk=self.policy.chunk, n_obs=self.policy.n_obs, gamma=self.cfg.gamma, n_step=self.cfg.n_step,
                      device=self.policy.device)

    @property
    def rows(self) -> int:
        """Transitions that one environment step wants: `batch` for each of `utd` updates."""
        return self.cfg.utd * self.cfg.batch

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Critic updates on the rows of a batch, `cfg.batch` at a time in their order, and the actor's that are due among them.

        Returns means over them, as tensors that nobody has waited for. Raises ValueError for a batch that cannot be divided so.
        """
        updates, rest = divmod(len(batch), self.cfg.batch)
        if rest or not updates:
            raise ValueError(f"a batch of {len(batch)} rows, not of a multiple of {self.cfg.batch}")
        cond, next_cond = self.policy.encode(batch.obs), self.policy.encode(batch.next_obs)
        columns = [x.view(updates, self.cfg.batch, *x.shape[1:])
                   for x in (cond, self.policy.motion(batch.action), batch.reward, batch.discount, next_cond,
                             (batch.source == Source.HUMAN).to(cond.dtype))]
        told: list[dict[str, Tensor]] = []
        done = 0
        while done < updates:
            count = min(updates - done, self.cfg.policy_delay - self.step % self.cfg.policy_delay)
            told.append(self._some(*(x[done:done + count] for x in columns)))
            done += count
        return {name: torch.stack([t[name] for t in told if name in t]).mean() for name in {**told[0], **told[-1]}}

    @torch.no_grad()
    def _some(self, *columns: Tensor) -> dict[str, Tensor]:
        """Critic updates up to the actor's next, and that, if it is due."""
        rows, alpha, began = self._rows(*columns), self.alpha, time.monotonic()
        count, (ahead, critic_update, actor_update) = len(rows.reward), self._parts
        next_action, entropy = ahead(rows.next_cond, rows.noise, alpha)
        pair, after = torch.cat([rows.cond, rows.action], -1), torch.cat([rows.next_cond, next_action], -1)
        told = [critic_update(pair[i], after[i], rows.reward[i], rows.discount[i], entropy[i], rows.subset[i], [x[i] for x in rows.drop],
                              [x[i] for x in rows.target_drop], rows.scales[i]) for i in range(count)]
        found: dict[str, Tensor] = {name: torch.stack([t[name] for t in told]).mean() for name in told[0]}
        act = (self.step + count) % self.cfg.policy_delay == 0 and self.step >= self.cfg.actor_start
        if act:
            found |= actor_update(rows.cond[-1], rows.action[-1], rows.human[-1], rows.actor_noise, rows.actor_drop, alpha,
                                  rows.actor_scale, rows.alpha_scale)
        if (count, act) not in self._known:
            self._known.add((count, act))
            self.compile_s += time.monotonic() - began
        self.step += count
        self.weights.steps += count
        self.actor_weights.steps += act
        self.log_alpha.steps += act
        return found

    def _rows(self, *columns: Tensor) -> _Rows:
        """Transitions with the noise of their updates, and where Adam is."""
        cfg, (count, batch) = self.cfg, columns[0].shape[:2]
        place = self.policy.device
        random = torch.Generator(place).manual_seed(derive(self.seed, "sac", self.step))
        noise = torch.randn(count + 1, batch, self.size, generator=random, device=place)
        subset = torch.rand(count, cfg.critics, generator=random, device=place).argsort(1)[:, :cfg.subset]

        def places(updates: int, rows: int) -> list[Tensor]:
            return [torch.randint(cfg.critics * rows * width, (updates, k), generator=random, device=place)
                    for width, k in zip(self.critic.hidden, self.critic.drops(rows), strict=False)]

        drop = places(count, batch if cfg.target_rate else 2 * batch)
        target_drop = places(count, batch) if cfg.target_rate else []
        actor_drop = [x[0] for x in places(1, batch)]
        scales = [adam_scale(self.weights.steps + i + 1, cfg.critic_lr, cfg.beta1) for i in range(count)]
        scales += [adam_scale(self.actor_weights.steps + 1, cfg.actor_lr, cfg.beta1),
                   adam_scale(self.log_alpha.steps + 1, cfg.alpha_lr or 1.0, 0.9)]
        table = torch.tensor(scales, device=place)
        cond, action, reward, discount, next_cond, human = columns
        return _Rows(cond, action, reward, discount, next_cond, human, noise[:count], noise[count], subset, drop, target_drop, actor_drop,
                     table[:-2], table[-2], table[-1])

    def _ahead(self, next_cond: Tensor, noise: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """(a' [u, B, D], what its entropy takes from the next value, [u, B]): the actor stands still meanwhile, so that one pass serves
        all updates."""
        mean, log_std, _ = self.policy.distribution(next_cond.flatten(0, 1), self.actor_weights.views())
        squashed, logp = squash(mean, log_std, noise.flatten(0, 1))
        action = self.policy.sent(next_cond.flatten(0, 1), squashed)
        return action.view(noise.shape), (alpha * logp if self.cfg.entropy_backup else torch.zeros_like(logp)).view(noise.shape[:2])

    def _critic_update(self, pair: Tensor, after: Tensor, reward: Tensor, discount: Tensor, entropy: Tensor, subset: Tensor,
                       drop: list[Tensor], target_drop: list[Tensor], scale: Tensor) -> dict[str, Tensor]:
        """L_Q = sum over critics of E (r + discount (min over m of Q'(s', a') - alpha log pi) - Q(s, a))^2, one step of it.

        pair, after: (s, a) and (s', a'), each [B, C + D]; the others as in `_Rows`, of one update.
        """
        critic, cfg = self.critic, self.cfg

        def target(q: Tensor) -> Tensor:
            q = q.detach() if cfg.subset == cfg.critics else q.detach()[subset]
            return td_target(reward, discount, q.amin(0) - entropy)

        y = None if self.target is None else target(critic(after, self.weights.views(self.target), drop=target_drop)[..., 0])

        def loss(weights: Tensor) -> tuple[Tensor, tuple[Tensor, list[Tensor]]]:
            p = self.weights.views(weights)
            if y is not None:
                (q, found), wanted = critic.run(pair, p, drop=drop), y
                q = q[..., 0]
            else:  # CrossQ: what the critics see of both halves is one batch, so its statistics fit both
                both, found = critic.run(torch.cat([pair, after]), p, drop=drop, train=True)
                q, wanted = both[:, :len(pair), 0], target(both[:, len(pair):, 0])
            return (q - wanted).square().mean(1).sum(), (q.detach().mean(), found)

        gradient, value, (q, found) = gradient_of(loss, self.weights.value)
        critic.learn(found)
        adam(self.weights, gradient, scale, cfg.beta1)
        if self.target is not None:
            self.target.lerp_(self.weights.value, cfg.target_rate)
        return {"critic_loss": value, "q": q}

    def _actor_update(self, cond: Tensor, action: Tensor, human: Tensor, noise: Tensor, drop: list[Tensor], alpha: Tensor, scale: Tensor,
                      alpha_scale: Tensor) -> dict[str, Tensor]:
        """L_pi = E (alpha log pi(a|s) - Q(s, a)) at states [B, C], the critics at rest; then the temperature's step. action [B, D], human
        [B]: what was done there, and 1 where a person did it, for `cfg.imitation`."""
        cfg, q_weights = self.cfg, self.weights.views()

        def loss(weights: Tensor) -> tuple[Tensor, tuple[Tensor, list[Tensor]]]:
            mean, log_std, found = self.policy.distribution(cond, self.actor_weights.views(weights), train=True)
            squashed, logp = squash(mean, log_std, noise)
            q = self.critic(torch.cat([cond, self.policy.sent(cond, squashed)], -1), q_weights, drop=drop)[..., 0]
            value = (alpha * logp - (q.mean(0) if cfg.actor_q == "mean" else q.amin(0))).mean()
            if cfg.imitation:
                trusted = self._trusted(cond, action, human, q.detach())
                value = value + cfg.imitation * (trusted * self._unlike(cond, action, mean, log_std)).mean()
            return value, (-logp.detach().mean(), found)

        gradient, value, (entropy, found) = gradient_of(loss, self.actor_weights.value)
        self.policy.net.learn(found)
        adam(self.actor_weights, gradient, scale, cfg.beta1)
        if cfg.alpha_lr:
            # by the loss log(alpha) (H - wanted), as most do: with alpha (H - wanted), of 1812.05905, small temperatures hardly move
            adam(self.log_alpha, (entropy - cfg.entropy * self.size).view(1), alpha_scale, 0.9)
        return {"actor_loss": value, "entropy": entropy, "alpha": alpha}

    def _trusted(self, cond: Tensor, action: Tensor, human: Tensor, own: Tensor) -> Tensor:
        """1 where a person acted and, for all that the critics agree on, no worse than the actor would have [B] (the per-state weight of
        SiLRI, arXiv 2512.24288, as a threshold): mean of Q(s, a_human) - Q(s, a) above less than one deviation between critics. own: the
        critics' Q(s, a) [N, B]."""
        ahead: Tensor = self.critic(torch.cat([cond, action], -1), self.weights.views())[..., 0].detach() - own
        trusted: Tensor = ahead.mean(0) + ahead.std(0, unbiased=False) >= 0
        return human * trusted

    def _unlike(self, cond: Tensor, action: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
        """How unlikely the actor makes actions [B, D], by their log-density before the squashing, a number's mean [B]."""
        wanted = self.policy.meant(cond, action).clamp(-0.999, 0.999).atanh()
        log_std = log_std.clamp(min=-3.0)  # what is repeated exactly, such as zeros, has a density without bound
        return (log_std + 0.5 * ((wanted - mean) * (-log_std).exp()).square()).mean(-1)

    @torch.no_grad()
    def worth(self, batch: Batch) -> Tensor:
        """Q(s, a) of what was done [B], the critics' mean."""
        pair = torch.cat([self.policy.encode(batch.obs), self.policy.motion(batch.action)], -1)
        q: Tensor = self.critic(pair, self.weights.views())
        return q[..., 0].mean(0)

    @torch.no_grad()
    def imitate(self, batch: Batch) -> dict[str, Tensor]:
        """A step of the actor towards a batch's actions, by their log-density before the squashing; it counts as an update."""
        cond, action = self.policy.encode(batch.obs), self.policy.motion(batch.action)

        def loss(weights: Tensor) -> tuple[Tensor, tuple[Tensor, list[Tensor]]]:
            mean, log_std, found = self.policy.distribution(cond, self.actor_weights.views(weights), train=True)
            fit = self._unlike(cond, action, mean, log_std).mean()
            return fit, (fit.detach(), found)

        gradient, value, (_, found) = gradient_of(loss, self.actor_weights.value)
        self.policy.net.learn(found)
        self.step, self.actor_weights.steps = self.step + 1, self.actor_weights.steps + 1
        table = torch.tensor(adam_scale(self.actor_weights.steps, self.cfg.actor_lr, self.cfg.beta1), device=self.policy.device)
        adam(self.actor_weights, gradient, table, self.cfg.beta1)
        return {"imitation_loss": value}

    def state_dict(self) -> dict[str, Any]:
        """All that continuing needs."""
        return {"policy": self.policy.state_dict(), "critic": self.critic.state_dict(), "target": self.target, "step": self.step,
                "temperature": self.temperature.state_dict(),
                "adam": [f.state_dict() for f in (self.actor_weights, self.weights, self.log_alpha)]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.policy.load_state_dict(state["policy"])
        self.critic.load_state_dict(state["critic"])
        self.temperature.load_state_dict(state["temperature"])
        if self.target is not None:
            self.target.copy_(state["target"])
        for flat, memory in zip((self.actor_weights, self.weights, self.log_alpha), state["adam"], strict=True):
            flat.load_state_dict(memory)
        self.step = int(state["step"])


class _Compiled:
    """A function that is compiled at its first call; where that is not possible (no C++ compiler, most of the time) it runs as it is."""

    def __init__(self, plain: Callable[..., Any]) -> None:
        self._plain, self._fast = plain, torch.compile(plain, dynamic=False)
        self._sure = False

    def __call__(self, *args: Any) -> Any:
        if self._sure:
            return self._fast(*args)
        self._sure = True
        try:
            return self._fast(*args)
        except Exception as error:  # whatever a compiler may raise; what is wrong with the function itself, it raises again
            out = self._plain(*args)
            why = " ".join(str(error).split())[:200]
            warnings.warn(f"an update could not be compiled and runs slower ({why}); a C++ compiler may be missing", stacklevel=2)
            self._fast = self._plain
            return out


Loss = Callable[[Tensor], tuple[Tensor, tuple[Tensor, list[Tensor]]]]


def gradient_of(loss: Loss, weights: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, list[Tensor]]]:
    """(gradient, loss [], what else it told) of a loss at a flat vector of weights."""
    if torch.compiler.is_compiling():
        gradient, (value, told) = torch.func.grad_and_value(loss, has_aux=True)(weights)
        return gradient, value, told
    with torch.enable_grad():
        leaf = weights.detach().requires_grad_()
        value, told = loss(leaf)
        return torch.autograd.grad(value, leaf)[0], value.detach(), told


def adam_scale(step: int, lr: float, beta1: float) -> tuple[float, float]:
    """What `adam` needs of its `step`-th step."""
    rate = lr / (1 - beta1 ** step)
    return 1 / (rate * math.sqrt(1 - BETA2 ** step)), EPS / rate


def adam(flat: Flat, gradient: Tensor, scale: Tensor, beta1: float) -> None:
    """A step of Adam (arXiv 1412.6980), with the learning rate and both corrections of its averages in two numbers."""
    flat.mean.lerp_(gradient, 1 - beta1)
    flat.square.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
    flat.value.addcdiv_(flat.mean, flat.square.sqrt().mul_(scale[0]).add_(scale[1]), value=-1.0)
