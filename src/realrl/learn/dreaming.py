"""What a learner in dreams has beside its networks: its numbers, its optimiser, the states that it saw last, its books."""

from __future__ import annotations

import copy
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from realrl.config import OutOfBounds, check
from realrl.losses import td_target
from realrl.nets.rssm import Latent, RSSMConfig
from realrl.types import Episode, Moment, Segment

T = TypeVar("T")
BEHIND = 40
"""Control steps for which updates are made up later, where a learner is slower than its robot."""
SLOW = 0.1
"""Share of all updates that may have been let go before somebody is told."""
LATELY = 2500
"""Control steps that the headline's reward is a mean of."""


@dataclass(frozen=True)
class DreamConfig:
    """How the learner learns: DreamerV3's losses."""

    batch: int = 16
    """Stretches of an update."""
    length: int = 32
    """Steps of each."""
    last: int = 8
    """Observations at the end of each from which it dreams on."""
    imagine: int = 15
    """Steps of a dream."""
    remember: bool = True
    """Whether stretches begin with the state that was there when they were last looked at, rather than with none."""
    pixels: bool = False
    """Whether pictures are reconstructed, too, and not the robot's readings alone."""
    gamma: float = 1 - 1 / 333
    """Discount of a control step."""
    lam: float = 0.95
    """Of the lambda-return."""
    centre: bool = False
    """Whether values are told from what the mean reward would be worth for ever, so that they need not climb there first."""
    through: bool = False
    """Whether the actor follows the gradient of returns through the dream (DayDreamer; continuous actions alone), not REINFORCE."""
    entropy: float = 3e-4
    """What a nat of the actor's entropy is worth, in normalised returns."""
    spread: float = 0.0
    """The deviation of continuous actions that the entropy's worth is moved for (DayDreamer); 0: it stays."""
    imitate: float = 1.0
    """Weight of the actor's likelihood of what was shown, where demonstrations are in the batch; it reaches into the model, whose states
    then tell what matters for it."""
    free: float = 1.0
    """Nats of KL, of all categoricals together, that cost nothing."""
    dyn: float = 1.0
    """Weight of the KL that teaches what to expect."""
    rep: float = 0.1
    """Weight of the KL that makes what is seen easy to expect."""
    replayed: float = 0.3
    """Weight of the critic's loss on what was really done; it reaches into the model."""
    slow: float = 0.02
    """Share of the critic that its slow copy takes over in an update."""
    lr: float = 4e-5
    """Learning rate."""
    warmup: int = 1000
    """Updates over which it rises from nothing."""
    alone: int = 0
    """Updates of model and critic alone, in which the robot's actions are random still; dreams of nothing teach nothing."""
    clip: float = 0.3
    """The largest gradient of a tensor, as a share of the tensor's own norm."""

    def __post_init__(self) -> None:
        check(self, batch="[1, 65536]", length="[2, 4096]", last="[2, 4096]", imagine="[1, 1000]", gamma="(0, 1]", lam="[0, 1]",
              entropy="[0, 100]", spread="[0, 1]", imitate="[0, 1e3]", free="[0, 100]", dyn="[0, 100]", rep="[0, 100]",
              replayed="[0, 100]", slow="(0, 1]", lr="(0, 1]", warmup="[0, 1e9]", alone="[0, 1e9]", clip="(0, 1e9]")
        if self.centre and self.gamma == 1:
            raise OutOfBounds(DreamConfig, "gamma", "must be below 1 where values are centred: the mean reward for ever is worth no number")
        if self.last > self.length + 1:
            raise OutOfBounds(DreamConfig, "last", f"must be at most length + 1 = {self.length + 1}, got {self.last}")


class Given(NamedTuple):
    """What chance and memory add to stretches. seen [T + 1, B, S, C], dreamt [H, N, S, C]: exponential, of which states are drawn; chance
    [H, N, A], of which actions are; state, found: what is remembered of the first observations, and of which [B]."""

    seen: Tensor
    dreamt: Tensor
    chance: Tensor
    state: Latent
    found: Tensor


class Dream(NamedTuple):
    """feature [H + 1, N, F], the states; action [H, N, A]; told: what the actor's distributions at them were, see `distribution`."""

    feature: Tensor
    action: Tensor
    told: tuple[Tensor, Tensor]


class LaProp:
    """RMS first, momentum afterwards (arXiv 2002.04839), behind gradients that are clipped tensor by tensor (AGC, arXiv 2102.06171)."""

    BETA1, BETA2, EPS, FLOOR = 0.9, 0.999, 1e-20, 1e-3

    def __init__(self, parameters: Sequence[Tensor], *, lr: float, warmup: int, clip: float) -> None:
        """lr: the rate, to which it rises from nothing over `warmup` steps; clip: a gradient's longest, as a share of its tensor's norm."""
        self.parameters, self._lr, self._warmup, self._clip = list(parameters), lr, warmup, clip
        self.square, self.momentum = ([torch.zeros_like(p) for p in self.parameters] for _ in range(2))

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None], done: int) -> None:
        """One step after `done` others."""
        ps = self.parameters
        gs = [torch.zeros_like(p) if g is None else g for p, g in zip(ps, gradients, strict=True)]
        of, to = (torch.stack(torch._foreach_norm(x)) for x in (gs, ps))
        gs = list(torch._foreach_mul(gs, (self._clip * to.clamp(min=self.FLOOR) / of.clamp(min=1e-12)).clamp(max=1.0).unbind()))
        torch._foreach_lerp_(self.square, torch._foreach_mul(gs, gs), 1 - self.BETA2)
        scale = torch._foreach_div(self.square, 1 - self.BETA2 ** (done + 1))
        torch._foreach_sqrt_(scale)
        torch._foreach_add_(scale, self.EPS)
        torch._foreach_lerp_(self.momentum, torch._foreach_div(gs, scale), 1 - self.BETA1)
        rate = self._lr * min(1.0, (done + 1) / max(self._warmup, 1)) / (1 - self.BETA1 ** (done + 1))
        torch._foreach_add_(ps, self.momentum, alpha=-rate)

    def state_dict(self) -> dict[str, Any]:
        """Its two memories."""
        return {"square": self.square, "momentum": self.momentum}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        for mine, its in ((self.square, state["square"]), (self.momentum, state["momentum"])):
            torch._foreach_copy_(mine, list(its))


class Memory:
    """The states that observations had when they were last looked at, by their number in the replay. A row before all others is nobody's:
    what was never there is written to it, so that a device need not be asked which rows those are. seen: of what readings a state is: a
    recording may hold a step more than a learner heard of before the actor died, and all that follows has other numbers then."""

    def __init__(self, cfg: RSSMConfig, place: torch.device) -> None:
        self._classes = cfg.classes
        self.deter = torch.zeros(1024, cfg.deter, dtype=torch.float16, device=place)
        self.code = torch.zeros(1024, cfg.stoch, dtype=torch.uint8, device=place)
        self.known = torch.zeros(1024, dtype=torch.bool, device=place)
        self.seen = torch.zeros(1024, dtype=torch.int64, device=place)

    def _reach(self, count: int) -> None:
        """Make room for so many observations."""
        while len(self.known) <= count:
            self.deter, self.code, self.known, self.seen = (_doubled(x) for x in (self.deter, self.code, self.known, self.seen))

    def put(self, s: Segment, states: Latent) -> None:
        """Keep the states [T + 1, B, ...] of stretches."""
        self._reach(s.frames)
        row = torch.cat([s.frame[:1] + 1, (s.frame[1:] + 1) * s.valid]).flatten()
        self.deter[row] = states.deter.flatten(0, 1).to(torch.float16)
        self.code[row] = states.stoch.view(len(row), -1, self._classes).argmax(-1).to(torch.uint8)
        self.seen[row] = _marks(s.obs["state"]).flatten()
        self.known.index_fill_(0, row, True)
        self.known[:1].zero_()

    def get(self, s: Segment) -> tuple[Latent, Tensor]:
        """(states [B, ...] of the first observations of stretches, which of them are known [B])."""
        self._reach(s.frames)
        row = s.frame[0] + 1
        codes = nn.functional.one_hot(self.code[row].long(), self._classes)
        return Latent(self.deter[row].float(), codes.flatten(-2).float()), self.known[row] & (self.seen[row] == _marks(s.obs["state"][0]))

    def state_dict(self) -> dict[str, Any]:
        """All of it, up to the last one known."""
        stop = int(self.known.nonzero().max()) + 1 if bool(self.known.any()) else 1
        return {name: x[1:stop].clone() for name, x in self._columns().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._reach(count := len(state["known"]))
        self.known.zero_()
        for name, mine in self._columns().items():
            mine[1:count + 1] = state.get(name, 0)  # what of readings nobody wrote down is of others

    def _columns(self) -> dict[str, Tensor]:
        return {"deter": self.deter, "code": self.code, "known": self.known, "seen": self.seen}


def _marks(readings: Tensor) -> Tensor:
    """A number [...] for readings [..., D]: their bits, added up."""
    return readings.float().view(torch.int32).sum(-1)


def halves(place: torch.device) -> bool:
    """Whether products of numbers of half the precision are fast there."""
    return bool(torch.cpu._is_avx512_bf16_supported() if place.type == "cpu" else place.type == "cuda" and torch.cuda.is_bf16_supported())


class Recorded(Generic[T]):
    """A function of tensors, whose kernels a GPU is told of once (a CUDA graph) and then repeats: where they are small, telling costs
    more than running. Its first `WARM` calls just run, as do those with other shapes. What it returns is written over by the next call.

    function: asks the device for nothing, draws nothing, and changes what is not its own in place; it is the same at every call. One that
    cannot be recorded goes on as it is, after a warning.
    """

    WARM = 3

    def __init__(self, function: Callable[..., T]) -> None:
        self._function, self._calls = function, 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *given: Any) -> T:
        self._calls += 1
        if self._calls == self.WARM + 1:
            self._record(given)
        if self._graph is None:
            return self._function(*given)
        mine, its = list(tensors(self._given)), list(tensors(given))
        if [x.shape for x in mine] != [x.shape for x in its]:
            return self._function(*given)
        for place, value in zip(mine, its, strict=True):
            place.copy_(value)
        self._graph.replay()
        return self._told

    def _record(self, given: tuple[Any, ...]) -> None:
        self._given, graph = copy.deepcopy(given), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._told = self._function(*self._given)
        except RuntimeError as error:
            warnings.warn(f"an update cannot be recorded, and goes on slower: {error}", stacklevel=2)
            return
        self._graph = graph


def tensors(value: Any) -> Iterator[Tensor]:
    """All that are in it: a tensor, or a dataclass, mapping or sequence of such; numbers are passed over."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        yield from tensors(vars(value))
    elif isinstance(value, Mapping | Sequence) and not isinstance(value, str):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from tensors(inner)


def _doubled(rows: Tensor) -> Tensor:
    """Rows with as many zeros behind them. (Under autocast a CPU does not concatenate halves.)"""
    more = rows.new_zeros(2 * len(rows), *rows.shape[1:])
    more[:len(rows)] = rows
    return more


def slim(episode: Episode, seen: Sequence[str], discrete: bool) -> Episode:
    """What is remembered of it; a choice is what it was taken for, one-hot."""
    action = np.eye(episode.action.shape[1], dtype=np.float32)[episode.action.argmax(1)] if discrete else episode.action
    return replace(episode, obs={key: episode.obs[key] for key in seen}, action=action)


def slim_step(moment: Moment, seen: Sequence[str], discrete: bool) -> Moment:
    """The same of a step."""
    step, action = moment.step, moment.step.action
    action = np.eye(len(action), dtype=np.float32)[action.argmax()] if discrete else action
    return replace(moment, step=replace(step, obs={key: step.obs[key] for key in seen}, action=action),
                   after={key: moment.after[key] for key in seen})


class Books:
    """How it goes. steps: seen so far; let_go: updates that will not be made; seconds: by the clock; most: updates between two steps;
    before: updates that an earlier run made. done, of its methods: updates made, those included."""

    def __init__(self, ratio: float, rows: int, prefill: int) -> None:
        """ratio: replayed steps for every control step; rows: of an update; prefill: control steps before the first."""
        self._rows, self.prefill, self._per_step = rows, prefill, ratio / rows
        self.steps, self.before, self.let_go, self.seconds, self._clock = 0, 0, 0.0, 0.0, time.monotonic()
        self.most = int(self._per_step) + 1
        self._lately: deque[float] = deque(maxlen=LATELY)
        self.told: list[dict[str, Tensor]] = []
        self.line, self._rewards, self._mark = 0, list[float](), (0, 0.0)

    def see(self, rewards: Iterable[float]) -> None:
        """Steps as they are done."""
        found = [float(r) for r in rewards]
        self.steps += len(found)
        self._lately.extend(found)
        self._rewards += found

    def owed(self, done: int) -> float:
        """Updates that are due."""
        return max(self.steps - self.prefill, 0) * self._per_step - (done - self.before) - self.let_go

    def tick(self, done: int) -> None:
        """Look at the clock; what is due since too long is let go."""
        now = time.monotonic()
        self.let_go += max(self.owed(done) - BEHIND * self._per_step - 1, 0.0)
        self.seconds, self._clock = self.seconds + now - self._clock, now

    def ratio(self, done: int) -> float:
        """Replayed steps for every control step since learning began."""
        return (done - self.before) * self._rows / max(self.steps - self.prefill, 1)

    def lines(self, done: int) -> dict[str, float]:
        """Means since the last line."""
        updates, seconds = self._mark
        out = {"reward_per_step": float(np.mean(self._rewards)), "train_ratio": self.ratio(done),
               "updates_per_s": (done - updates) / max(self.seconds - seconds, 1e-9)}
        if self.told:
            out |= {name: float(torch.stack([t[name].float() for t in self.told]).mean()) for name in self.told[0]}
        self.mark(done)
        return out

    def mark(self, done: int) -> None:
        """The next line begins here."""
        self.told.clear()
        self._rewards.clear()
        self.line, self._mark = self.steps, (done, self.seconds)

    def remarks(self, done: int, acted: int, alone: int) -> dict[str, str]:
        """What somebody should be told at the end. acted: updates of the actor; alone: those at first that it had no part in."""
        out, asked = {}, max(self.steps - self.prefill, 0) * self._per_step
        if not acted:
            out["daydreamer"] = (f"The actor has learned nothing: {done} updates were made, {alone} are the model's alone. Give more "
                                 "--steps or --ratio, or less --prefill or --dream.alone.")
        if self.let_go > SLOW * asked:
            out["daydreamer: pace"] = (
                f"The learner is slower than the robot: it made {done - self.before:,} of the {asked:,.0f} updates that --ratio asks for, "
                f"so each step was learned from {self.ratio(done):.3g} times. A smaller model or batch (--policy.rssm.deter, "
                "--policy.rssm.units, --dream.batch, --dream.length) or a faster device makes more.")
        return out

    def headline(self, done: int) -> dict[str, Any]:
        """The run in a few numbers; the reward is that of the last `LATELY` steps of practice, noise and all."""
        return {"reward_per_step": round(float(np.mean(self._lately)), 4), "env_steps": self.steps,
                "train_ratio": round(self.ratio(done), 2), "updates_per_s": round((done - self.before) / max(self.seconds, 1e-9), 3),
                "wall_min": round(self.seconds / 60, 3)}

    def state_dict(self) -> dict[str, Any]:
        """What no recording says."""
        return {"seconds": self.seconds, "let_go": self.let_go, "before": self.before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.seconds, self.let_go, self._clock = state["seconds"], state["let_go"], time.monotonic()
        self.before = int(state.get("before", 0))  # no checkpoint of before had any


# -- its mathematics -----------------------------------------------------------------------------------------------------


def lambda_return(reward: Tensor, discount: Tensor, value: Tensor, lam: float) -> Tensor:
    """G[t] = reward[t] + discount[t] ((1 - lam) value[t] + lam G[t + 1]), the last with value alone (DreamerV3, eq. 7).

    All [T, ...], time-major: what followed step t, the discount of it (0 where the task ended), and the value of where it led.
    """
    out, ahead = [], value[-1]
    for t in range(len(reward) - 1, -1, -1):
        ahead = td_target(reward[t], discount[t], (1 - lam) * value[t] + lam * ahead)
        out.append(ahead)
    return torch.stack(out[::-1])


def categorical_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) [...] of categoricals given by probabilities [..., S, C], none of them 0, summed over all S of them."""
    return (p * (p.log() - q.log())).sum((-2, -1))


def exponential(shape: Sequence[int], random: torch.Generator) -> Tensor:
    """Draws, on the generator's device; sooner than `exponential_`."""
    return torch.rand(tuple(shape), generator=random, device=random.device).log_().neg_()


def normal(shape: Sequence[int], random: torch.Generator) -> Tensor:
    """Draws, on the generator's device."""
    return torch.randn(tuple(shape), generator=random, device=random.device)
