"""DayDreamer (arXiv 2206.14176): a robot learns a model of its world while it moves, and what to do in dreams of that model.

The model is DreamerV3's (arXiv 2301.04104): a recurrent state-space model of categoricals, from which readings, rewards and ends are told.
Beside the acting robot, the learner draws stretches of what it remembers, fits the model to them, dreams on from where they end for 15
steps, and improves actor and critic on those dreams alone.

What of it is where: the model in `nets/rssm.py`, symlog and two-hot codes in `nets/twohot.py`, acting in `policies/recurrent.py`, memory in
`learn/replay.py`, the optimiser in `learn/dreaming.py`. This file has the learner, its presets, the loop.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from realrl.config import OutOfBounds, check
from realrl.files import derive
from realrl.learn.dreaming import (
    Books,
    Dream,
    DreamConfig,
    Given,
    LaProp,
    Memory,
    Recorded,
    categorical_kl,
    exponential,
    halves,
    lambda_return,
    normal,
    slim,
    slim_step,
)
from realrl.learn.practice import CLOCK, Earlier, sound
from realrl.learn.replay import Replay
from realrl.memory import keep_freed_memory
from realrl.nets.rssm import Latent, Painter, RSSMConfig, head, slot
from realrl.nets.twohot import symexp_bins, symlog, twohot_loss, twohot_mean
from realrl.policies.recurrent import RecurrentConfig, RecurrentPolicy
from realrl.scene import Scene, SightConfig, device
from realrl.streaming import StreamConfig
from realrl.types import Cell, Segment

BINS = 255
"""Of rewards and values, even in symlog from -20 to 20."""

CPU = DreamConfig(batch=16, length=16, last=4, gamma=0.985, centre=True, through=True, spread=0.32, slow=0.1, lr=4e-4, warmup=200,
                  alone=300)
"""A core has little time: short stretches, which begin where memory was, few starts of dreams, a horizon of some hundred updates."""


@dataclass(frozen=True)
class DaydreamerConfig(Scene):
    """A world model learned while the robot moves; `--preset` has five sets of values."""

    task: str = "quadruped/go1-from-back"
    """Environment, see `realrl tasks`."""
    preset: Literal["cpu", "choices", "control", "daydreamer", "v3"] = "cpu"
    """Whose values all that follows has by default: cpu (for a core), choices (the same where a robot chooses: the bins' own), control
    (the control suite's), daydreamer (the paper's sizes) or v3 (DreamerV3's smallest)."""
    sight: SightConfig = field(default_factory=lambda: SightConfig(height=64, width=64))
    """What the policy sees: the state, or pictures beside it."""
    policy: RecurrentConfig = field(default_factory=lambda: RecurrentConfig(RSSMConfig(deter=128, classes=8, hidden=128, units=128)))
    """Model and actor."""
    dream: DreamConfig = field(default_factory=lambda: CPU)
    """The learner."""
    stream: StreamConfig = field(default_factory=StreamConfig)
    """How robot and learner go beside each other."""
    steps: int = 20_000
    """Control steps to learn for; the episode that is under way then is finished."""
    minutes: float = 1e9
    """Minutes by the clock after which it ends in any case, likewise after the episode that is under way."""
    prefill: int = 1000
    """Control steps of random actions at first, before anything is learned; none with `after`."""
    after: str | None = None
    """Folder of an earlier run, whose learner goes on here with what that run practised, e.g. under pushes."""
    ratio: float = 128.0
    """Replayed steps for every control step: of how often each is learned from. A learner that is slower is told so by `train_ratio`."""
    demo_share: float = 0.0
    """Share of a batch's stretches that are demonstrations' at first; it falls evenly to nothing over `steps`. 0: none are asked for."""
    bf16: bool = True
    """Whether, with pictures, most of the arithmetic is in half the precision, where the processor can."""
    cuda_graph: bool = True
    """Whether an NVIDIA GPU is told of an update's kernels once and repeats them, rather than told every time anew."""
    save_every: int = 2000
    """Control steps after which the next end of an episode brings a checkpoint."""
    log_every: int = 500
    """Control steps between two lines of the curves."""
    eval_episodes: int = 20
    """Held-out episodes at the end: so many without noise, so many with."""
    film: bool = True
    """Whether the report gets films: a held-out episode, and practice after 5, 10, 20, 40 and 60 minutes of the robot's time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, steps="[1, 1e9]", minutes="(0, 1e9]", prefill="[1, 1e9]", ratio="(0, 1e6]", demo_share="[0, 1]", save_every="[1, 1e9]",
              log_every="[1, 1e9]")
        if self.data is not None and not self.demo_share:
            raise OutOfBounds(DaydreamerConfig, "data", "has no use here, everything is learned from nothing: give --demo-share 0.5, too")


PRESETS = {
    "cpu": DaydreamerConfig(),
    "choices": DaydreamerConfig(
        preset="choices", task="bins/panda",
        policy=RecurrentConfig(RSSMConfig(deter=128, stoch=32, classes=8, hidden=256, units=256, sharp=6.0)),
        dream=DreamConfig(batch=16, length=16, last=4, imagine=12, gamma=0.97, centre=True, rep=0.03, slow=0.1, entropy=1e-3, lr=1e-3,
                          warmup=50, alone=300), steps=6000, prefill=400, demo_share=0.5),
    "control": DaydreamerConfig(
        preset="control", task="dmc/walker-walk",
        dream=replace(CPU, gamma=1 - 1 / 333, centre=False, through=False, spread=0.0), steps=50_000),
    "daydreamer": DaydreamerConfig(
        preset="daydreamer", policy=RecurrentConfig(RSSMConfig(deter=256, hidden=256, stoch=32, classes=32, prior_layers=3, units=512,
                                                               layers=4, depth=48)),
        dream=DreamConfig(batch=32, length=32, last=32, remember=False, pixels=True, gamma=0.995, lr=1e-4, through=True,
                          spread=0.32), steps=72_000, prefill=5000, ratio=512.0),
    "v3": DaydreamerConfig(
        preset="v3", policy=RecurrentConfig(RSSMConfig(deter=512, hidden=64, stoch=32, classes=4, blocks=8, prior_layers=2, units=64,
                                                       layers=3, depth=4)),
        dream=DreamConfig(batch=16, length=64, last=64, pixels=True), steps=72_000, prefill=1000, ratio=512.0),
}
"""cpu: what a core does eight updates a second of; choices: the same for a robot that chooses among few moves and is shown how; control:
it for tasks that last, with DreamerV3's actor and discount; daydreamer: what the paper has for its quadruped; v3: its size1m."""


def preset(name: str | None, task: str | None) -> DaydreamerConfig | None:
    """The values that are overridden where a preset was asked for by its name, or none: then the bins have those of choices, the control
    suite of control. None for a name that is none."""
    return PRESETS.get(name or {"bins": "choices", "dmc": "control"}.get((task or "").partition("/")[0], "cpu"))


# ---- the learner


Gradients = tuple[Sequence[Tensor | None], Sequence[Tensor], Latent, dict[str, Tensor]]


class Dreamer:
    """Model, actor, critic and their optimiser; see `types.Agent`. seed: of all its noise, a function of it and the number of updates;
    cuda_graph: whether a GPU is told of an update's kernels once."""

    def __init__(self, policy: RecurrentPolicy, cfg: DreamConfig, *, seed: int, bf16: bool = False, cuda_graph: bool = True) -> None:
        size, place = policy.cfg.rssm, policy.device
        self.policy, self.cfg, self.seed, self.step, self._bf16 = policy, cfg, seed, 0, bf16
        self.heads = nn.ModuleDict({"state": head(size, policy.obs_dim), "reward": head(size, BINS, 0.0), "goes_on": head(size, 1),
                                    "critic": head(size, BINS, 0.0)}).to(place)
        self.painters = nn.ModuleDict({slot(key): Painter(size, shape) for key, shape in policy.senses.items()
                                       if cfg.pixels}).to(place)
        self.slow = copy.deepcopy(self.heads["critic"]).requires_grad_(False)
        self.bins = symexp_bins(BINS).to(place)
        self.range = torch.zeros((), device=place)  # of returns, from the 5th to the 95th in a hundred
        self.level = torch.zeros((), device=place)  # the mean reward
        self.worth = torch.full((), cfg.entropy, device=place)  # of a nat of entropy
        self._ends_at, self._turns = (torch.tensor(x, device=place) for x in ([0.05, 0.95], [1 / 1.05, 1.05]))
        self.through = cfg.through and not policy.discrete
        self._parts = nn.ModuleDict({"policy": policy, "heads": self.heads, "painters": self.painters})
        self._actor = list(policy.actor.parameters())
        its = {id(p) for p in self._actor}
        self._rest = [p for p in self._parts.parameters() if id(p) not in its]
        self.optimiser, self.practice = (LaProp(ps, lr=cfg.lr, warmup=cfg.warmup, clip=cfg.clip) for ps in (self._rest, self._actor))
        self.acted = 0  # updates of the actor, whose first come later
        self.memory = Memory(size, place)
        self._records: dict[bool, Recorded[Gradients]] | None = {} if cuda_graph and place.type == "cuda" else None

    def _precision(self) -> AbstractContextManager[Any]:
        """Half of it, where it pays. A context of its own for every part of an update: weights are cast once in each."""
        return torch.autocast(self.policy.device.type, torch.bfloat16) if self._bf16 else nullcontext()

    def update(self, segment: Segment, shown: int = 0) -> dict[str, Tensor]:
        """One step on stretches of episodes, the first so many of them shown by somebody; its losses and what else is worth a curve, as
        tensors that nobody has waited for."""
        given = self._given(segment, torch.Generator(self.policy.device).manual_seed(derive(self.seed, "dream", self.step)))
        mean = (segment.reward * segment.valid).sum() / segment.valid.sum()
        self.level.lerp_(mean, max(0.01, 1 / (self.step + 1)))
        acts = self.step >= self.cfg.alone
        learned, own, states, told = self._running(acts, shown)(segment, given)
        self.optimiser.step(learned, self.step)
        if shown or acts:
            self.practice.step(own, self.acted)
            self.acted += 1
        with torch.no_grad():
            torch._foreach_lerp_(list(self.slow.parameters()), list(self.heads["critic"].parameters()), self.cfg.slow)
        self.step += 1
        if self.cfg.remember:
            self.memory.put(segment, states)
        return dict(zip(told, torch.stack(list(told.values())), strict=True))  # a copy: what was recorded writes to the same place again

    def _given(self, s: Segment, random: torch.Generator) -> Given:
        cfg, size, discrete = self.cfg, self.policy.cfg.rssm, self.policy.discrete
        rows, dreams = s.frame.shape, (cfg.imagine, cfg.last * s.frame.shape[1])
        seen, dreamt = (exponential((*shape, size.stoch, size.classes), random) for shape in (rows, dreams))
        return Given(seen, dreamt, (exponential if discrete else normal)((*dreams, self.policy.action_dim), random), *self.memory.get(s))

    def _running(self, acts: bool, shown: int) -> Callable[[Segment, Given], Gradients]:
        """`_gradients`, recorded where that pays: with what was shown no two updates need be alike."""
        run = partial(self._gradients, acts=acts, shown=shown)
        if shown or self._records is None:
            return run
        return self._records.setdefault(acts, Recorded(run))

    def _gradients(self, s: Segment, given: Given, acts: bool, shown: int) -> Gradients:
        """(gradients of model and critic, of the actor, states [T + 1, B, ...], what `update` tells): all of an update that is the same
        from one to the next, and asks the device for nothing."""
        with self._precision():
            losses, states, told = self._model(s, given)
        last, counts = self._ends(s)
        starts = Latent(*(x.gather(0, last[..., None].expand(-1, -1, x.shape[-1])) for x in states))
        with self._precision():
            dream = self._imagine(starts.detach(), given)
        with self._precision():
            behaviour, returns, more = self._behave(dream, counts, acts)
            losses |= behaviour
            losses["replayed"] = self.cfg.replayed * self._replayed(s, starts, last, counts, returns)
            acting = losses.pop("actor") * acts
            learning = torch.stack(list(losses.values())).sum()
            if shown:
                taught = self.cfg.imitate * self._imitation(s, states.feature, shown)
                acting, learning = acting + taught, learning + taught
        learned = torch.autograd.grad(learning, self._rest, allow_unused=True, retain_graph=shown > 0)
        own = torch.autograd.grad(acting, self._actor)  # where a dream's graph ends
        told = {**losses, "actor": acting, **told, **more}
        return learned, own, states.detach(), {name: x.detach().float() for name, x in told.items()}

    # -- the model

    def _model(self, s: Segment, given: Given) -> tuple[dict[str, Tensor], Latent, dict[str, Tensor]]:
        """(losses, states at the observations [T + 1, B, ...], what else is told): to reconstruct, to expect what is seen, to tell rewards
        and ends (DreamerV3, eq. 2 to 4)."""
        cfg, rssm = self.cfg, self.policy.rssm
        there = torch.cat([torch.ones_like(s.valid[:1]), s.valid])
        action = torch.cat([torch.zeros_like(s.action[:1]), s.action])
        known = (given.state, given.found & ~s.first) if cfg.remember else None
        states, post = rssm.observe(self.policy.encoder(s.obs), action, None, given.seen, known)
        prior = rssm.prior(states.deter)
        weight = there.float() / there.sum()
        seen = weight if known is None else weight * torch.cat([~known[1][None], torch.ones_like(s.valid)])
        feature = states.feature
        losses = {"state": (self.heads["state"](feature).float() - symlog(s.obs["state"])).square().sum(-1)}
        for key in self.policy.senses if cfg.pixels else ():
            losses[slot(key)] = (self.painters[slot(key)](feature).float() - s.obs[key] / 255.0).square().sum((-3, -2, -1))
        kl = categorical_kl(post.detach(), prior)
        losses["dyn"] = cfg.dyn * kl.clamp(min=cfg.free)
        losses["rep"] = cfg.rep * categorical_kl(post, prior.detach()).clamp(min=cfg.free)
        out = {name: (loss * seen).sum() for name, loss in losses.items()}
        steps, valid = feature[1:], s.valid / s.valid.sum()
        out["reward"] = (twohot_loss(self.heads["reward"](steps), self.bins, s.reward) * valid).sum()
        goes_on = nn.functional.binary_cross_entropy_with_logits(
            self.heads["goes_on"](steps)[..., 0].float(), (~s.terminated).float(), reduction="none")
        out["goes_on"] = (goes_on * valid).sum()
        return out, states, {"surprise": (kl.detach() * seen).sum() / seen.sum()}

    def _ends(self, s: Segment) -> tuple[Tensor, Tensor]:
        """Which observations are the last of each stretch [K, B], and which of them count [K, B]: they are there, and the task goes on."""
        stop = s.valid.sum(0) + 1
        wanted = stop - self.cfg.last + torch.arange(self.cfg.last, device=stop.device)[:, None]
        last = wanted.clamp(min=0)
        over = torch.cat([torch.zeros_like(s.terminated[:1]), s.terminated]).gather(0, last)
        return last, (wanted >= 0) & ~over

    # -- dreams

    def _imagine(self, starts: Latent, given: Given) -> Dream:
        """Dreams of H steps from N = K * B states, by the actor; with a graph only if it learns through it."""
        with torch.set_grad_enabled(self.through):
            policy, rssm = self.policy, self.policy.rssm
            state = Latent(*(x.flatten(0, 1).float() for x in starts))
            features, actions, told = [state.feature], list[Tensor](), list[tuple[Tensor, Tensor]]()
            for t in range(self.cfg.imagine):
                told.append(policy.distribution(features[-1].detach()))
                actions.append(policy.draw(told[-1], given.chance[t]))
                state = rssm.dream(state, actions[-1], given.dreamt[t])
                features.append(state.feature)
            first, second = (torch.stack(x) for x in zip(*told, strict=True))
            return Dream(torch.stack(features), torch.stack(actions), (first, second))

    def foretold(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """(reward, discount), each [H, N], of the steps that led to the dreamt states [H, N, F]."""
        ends = self.heads["goes_on"](feature)[..., 0].float()
        return twohot_mean(self.heads["reward"](feature), self.bins), self.cfg.gamma * ends.sigmoid()

    def _behave(self, dream: Dream, counts: Tensor, acts: bool) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
        """(losses of actor and critic, lambda-returns at the starts [K, B], what else is told), DreamerV3, eq. 5 to 11. acts: whether the
        actor learns already."""
        cfg, feature = self.cfg, dream.feature.detach().requires_grad_(self.through)
        logits = self.heads["critic"](feature)
        with torch.set_grad_enabled(self.through):
            value, (reward, discount) = self.value(logits), self.foretold(feature[1:])
            returns = lambda_return(reward, discount, value[1:], cfg.lam)
        target, deeper = returns.detach(), discount.detach()[:-1]
        weight = torch.cat([counts.flatten()[None].float(), deeper]).cumprod(0) / counts.sum().clamp(min=1) / cfg.imagine
        low, high = target.masked_fill(~counts.flatten(), math.nan).nanquantile(self._ends_at)
        self.range.lerp_((high - low).nan_to_num(0.0), 0.01)
        told = dream.told if self.through else self.policy.distribution(feature[:-1])
        logp, entropy = self.policy.logp(told, dream.action.detach())
        if cfg.spread and not self.policy.discrete and acts:  # each dimension's entropy as a normal of that deviation has
            short = entropy.detach().mean() / self.policy.action_dim < math.log(cfg.spread * math.sqrt(2 * math.pi * math.e))
            self.worth.mul_(torch.where(short, self._turns[1], self._turns[0])).clamp_(1e-5, 1.0)
        more = {"return": target.mean(), "value": value.detach().mean(), "entropy": entropy.detach().mean(), "return_range": self.range,
                "worth": self.worth, "dreamt_reward": reward.detach().mean(),
                **({} if self.policy.discrete else {"deviation": told[1].detach().mean()})}
        scale = weight / self.range.clamp(min=1.0)
        if self.through:  # the returns' gradient is taken to the dream's states, and goes on from there with the actor's
            gain = (scale * returns).sum()
            slope, = torch.autograd.grad(gain, feature, retain_graph=True)
            gain = gain.detach() + (slope * (dream.feature - dream.feature.detach())).sum()
            entropy = entropy + (1.001 - told[0].square()).log().sum(-1)  # of what was squashed: a middle at its end has no gradient
        else:
            gain = (scale * (target - value[:-1]) * logp).sum()
        losses = {"actor": -gain - (weight * self.worth * entropy).sum(),
                  "critic": (weight * self._critic_loss(logits[:-1], feature[:-1], target)).sum()}
        return losses, target[0].view_as(counts), more

    def _imitation(self, s: Segment, feature: Tensor, shown: int) -> Tensor:
        """How unlikely the actor finds what was done in the first so many stretches."""
        logp, _ = self.policy.logp(self.policy.distribution(feature[:-1, :shown]), s.action[:, :shown])
        weight = s.valid[:, :shown].float()
        return -(logp * weight).sum() / weight.sum()

    @property
    def _base(self) -> Tensor:
        """What values are told from."""
        return self.level * (1 / (1 - self.cfg.gamma) if self.cfg.centre else 0.0)

    def value(self, logits: Tensor) -> Tensor:
        """Told by logits [..., BINS]."""
        return twohot_mean(logits, self.bins) + self._base

    def _critic_loss(self, logits: Tensor, feature: Tensor, target: Tensor) -> Tensor:
        """Of values [...] told by logits [..., BINS]: to be the returns, and not to run away from the slow copy."""
        with torch.no_grad():
            slow = twohot_mean(self.slow(feature), self.bins)
        return twohot_loss(logits, self.bins, target - self._base, slow)

    def _replayed(self, s: Segment, starts: Latent, last: Tensor, counts: Tensor, returns: Tensor) -> Tensor:
        """The critic's loss on what was really done at the last observations, continued by the returns that were dreamt from each."""
        step = last[:-1].clamp(max=len(s.reward) - 1)
        reward, over = s.reward.gather(0, step), s.terminated.gather(0, step)
        target = lambda_return(reward, self.cfg.gamma * (~over).float(), returns[1:], self.cfg.lam)
        feature, weight = starts.feature[:-1], counts[:-1] / counts[:-1].sum().clamp(min=1)
        return (weight * self._critic_loss(self.heads["critic"](feature), feature, target)).sum()

    @torch.no_grad()
    def foresee(self, s: Segment, seen: int) -> Tensor:
        """Readings as they are expected after the first `seen` observations, without looking again: their symlog [T + 1 - seen, B, D]."""
        rssm, random = self.policy.rssm, torch.Generator(self.policy.device).manual_seed(derive(self.seed, "foresee"))
        noise = exponential((*s.frame.shape, rssm.cfg.stoch, rssm.cfg.classes), random)
        action = torch.cat([torch.zeros_like(s.action[:1]), s.action])
        embed = self.policy.encoder({key: value[:seen] for key, value in s.obs.items()})
        states, _ = rssm.observe(embed, action[:seen], None, noise[:seen])
        state, out = Latent(states.deter[-1], states.stoch[-1]), list[Tensor]()
        for t in range(seen, len(action)):
            state = rssm.dream(state, action[t], noise[t])
            out.append(self.heads["state"](state.feature))
        return torch.stack(out)

    # -- on disk

    def state_dict(self) -> dict[str, Any]:
        """Everything that goes on, and what of (`RecurrentPolicy.rebuild`)."""
        return {"about": self.policy.describe(), "step": self.step, "acted": self.acted, "parts": self._parts.state_dict(),
                "slow": self.slow.state_dict(), "optimiser": self.optimiser.state_dict(), "practice": self.practice.state_dict(),
                "memory": self.memory.state_dict(), "range": self.range.clone(), "level": self.level.clone(), "worth": self.worth.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        for part, name in ((self._parts, "parts"), (self.slow, "slow"), (self.optimiser, "optimiser"), (self.practice, "practice"),
                           (self.memory, "memory")):
            part.load_state_dict(state[name])
        for mine, name in ((self.range, "range"), (self.level, "level"), (self.worth, "worth")):
            mine.copy_(state[name])
        self.step, self.acted = int(state["step"]), int(state["acted"])


# ---- learning


def train(cfg: DaydreamerConfig, cell: Cell) -> dict[str, Any]:
    """Learn, evaluate without noise and with, leave the policy in the run's folder `policy`; returns the summary with its `headline`.
    Continues an interrupted run."""
    torch.manual_seed(derive(cfg.seed, "weights"))
    spec, place, earlier = cell.spec, device(cfg.device), Earlier(cfg.after, "daydreamer")
    books = Books(cfg.ratio, cfg.dream.batch * cfg.dream.length, 0 if cfg.after else cfg.prefill)
    policy = RecurrentPolicy(cfg.policy, spec.obs_dim, spec.action_dim, senses=spec.senses, discrete=spec.discrete, name="daydreamer")
    agent = Dreamer(policy.to(place), cfg.dream, seed=derive(cfg.seed, "learner"), bf16=cfg.bf16 and bool(policy.senses) and halves(place),
                    cuda_graph=cfg.cuda_graph)
    if books.prefill >= cfg.steps:
        cell.tell("daydreamer: prefill", f"All {cfg.steps:,} steps are random, nothing is learned: give more --steps or less --prefill.")
    with cell.timed("daydreamer"):
        health = learn(cfg, cell, agent, books, earlier)
    for name, line in books.remarks(agent.step, agent.acted, cfg.dream.alone).items():
        cell.tell(name, line)
    policy.requires_grad_(False).wander.zero_()
    cell.keep(policy)
    for name, quiet in (("daydreamer", True), ("daydreamer-noisy", False)):
        cell.finish_stage(name, policy, cfg.eval_episodes, greedy=quiet, measure=lambda e: {"reward_per_step": float(e.reward.mean())})
    greedy, noisy = (round(stage["measured"]["reward_per_step"], 4) for stage in cell.summary["stages"][-2:])
    cell.summary["headline"] = {**books.headline(agent.step), "greedy_reward_per_step": greedy, "noisy_reward_per_step": noisy,
                                **{name: health[name] for name in CLOCK if name in health}}
    return cell.summary


def learn(cfg: DaydreamerConfig, cell: Cell, agent: Dreamer, books: Books, earlier: Earlier) -> dict[str, float]:
    """Act, and learn from what is remembered as often as `ratio` says, until the robot has made its steps; checkpoints between episodes
    only. Returns how robot and learner got along, see `types.Stream.health`."""
    policy, place = agent.policy, agent.policy.device
    keep_freed_memory()
    shows = cell.demonstrations() if cfg.demo_share else []  # before there is a robot that would have to wait
    policy.wander.fill_(1.0)
    with cell.stream("daydreamer", policy, stage=1, noise_seed=derive(cfg.seed, "daydreamer") % 2**31, cfg=cfg.stream) as stream:
        saved = cell.run.load("daydreamer", agent=agent, stream=stream, books=books)
        if saved is None:
            earlier.hand_over(agent, anew=("memory",))
            saved, books.before = 0, agent.step
        replay, seen = Replay(device=place), ("state", *policy.senses)
        replay.extend([slim(e, seen, policy.discrete) for e in shows])
        shown = replay.steps
        replay.extend([slim(e, seen, policy.discrete) for e in earlier.episodes])
        for episode in stream.past():
            replay.extend([slim(episode, seen, policy.discrete)])
            books.see(episode.reward)
        books.mark(agent.step)
        cell.run.rewind("daydreamer", stream.steps)
        with cell.run.bar("daydreamer: control steps", cfg.steps, stream.steps) as advance:
            while (stream.steps < cfg.steps and books.seconds < 60 * cfg.minutes) or not stream.between:
                policy.wander.fill_(float(stream.steps < books.prefill or agent.step < cfg.dream.alone))
                moments = stream.take(wait=books.owed(agent.step) < 1)
                replay.put(slim_step(m, seen, policy.discrete) for m in moments)
                books.see([m.step.reward for m in moments])
                for _ in range(min(int(books.owed(agent.step)), books.most)):
                    random = torch.Generator(place).manual_seed(derive(cfg.seed, "replay", agent.step))
                    early = round(cfg.dream.batch * cfg.demo_share * max(0.0, 1 - stream.steps / cfg.steps)), shown
                    told = agent.update(replay.segments(cfg.dream.batch, cfg.dream.length, random, early=early), early[0])
                    books.told.append(sound(told, stream.steps, "--dream.lr"))
                    stream.publish(policy)
                advance(len(moments))
                books.tick(agent.step)
                if stream.steps // cfg.log_every > books.line // cfg.log_every:
                    cell.run.log(stream.steps, {**books.lines(agent.step), **stream.health()}, "daydreamer")
                if stream.between and stream.steps - saved >= cfg.save_every:
                    cell.run.save("daydreamer", saved := stream.steps, agent=agent, stream=stream, books=books)
        cell.run.save("daydreamer", stream.steps, agent=agent, stream=stream, books=books)
        return stream.health()
