"""Off-policy evaluation: which of two policies is better, judged from recorded data alone (RL-100, section 5, AM-Q).

An ensemble of transition models is fitted to the recordings and policies are tried in it, from the same start states with the same
noise, so that two policies differ only where they act differently. Two habits of learned models ruin such a judgement, and both are
met here: the model is exploited where it knows nothing (a rollout whose members disagree, or which leaves the range of the data, is
stopped and keeps only the worst reward), and a random batch is mistaken for progress (`gate` asks for a paired lower confidence bound).

Letters: M members, E elites, P policies, N start states, B rows, C size of a condition (an encoded observation), K chunk, A action."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from realrl.config import OutOfBounds, check
from realrl.data.views import ChunkView, Encoded, continue_chunks
from realrl.files import derive
from realrl.nets.mlp import EnsembleMLP
from realrl.types import RealrlError

if TYPE_CHECKING:
    from realrl.policies.diffusion import DiffusionPolicy

Act = Callable[[Tensor, Tensor], Tensor]
"""(condition [B, C], noise [B, S+1, K, A]) -> chunks [B, K, A] in [-1, 1]."""
Value = Callable[[Tensor, Tensor], Tensor]
"""(condition [B, C], chunk [B, K, A]) -> values [B], the smaller of the twin critics'."""
Log = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True)
class OPEConfig:
    """The transition model, its rollouts and the gate."""

    members: int = 7
    """M, networks fitted, each on its own bootstrap of the decisions."""
    elites: int = 5
    """E, the members that predict held-out episodes best; only they are rolled out."""
    hidden: tuple[int, ...] = (256, 256)
    """Hidden layers of a member."""
    lr: float = 2e-3
    """Peak learning rate of AdamW (cosine decay)."""
    weight_decay: float = 1e-4
    """AdamW's."""
    batch: int = 256
    """Decisions per member and gradient step."""
    steps: int = 800
    """Gradient steps of a fit."""
    holdout: float = 0.15
    """Share of the episodes that is held out, to choose the elites and to learn how much they disagree on genuine data."""
    starts: int = 256
    """N, start states of a comparison, two at least, dealt evenly from the first observations of the recorded episodes."""
    horizon: int | None = None
    """Decisions of a rollout; None = the task's whole horizon, short of which a sparse reward is never seen."""
    doubt: float = 0.01
    """Share of a rollout's remaining weight lost per decision when the elites disagree at the limit (less, in proportion, below)."""
    limit: float = 0.95
    """A rollout is stopped where the elites disagree more than at the worst moment of this share of the held-out episodes."""
    slack: float = 0.25
    """How far a rollout may leave the data's range in any feature, as a share of that range, before it is stopped."""
    margin: float = 0.05
    """What a candidate must gain, see `gate`."""
    confidence: float = 1.645
    """Standard errors between the mean gain and the bound that must reach the margin: 1.645 = 95 %, one-sided."""

    def __post_init__(self) -> None:
        check(self, members="[2, 1000]", elites="[2, 1000]", hidden="[1, 16384]", lr="(0, 1]", weight_decay="[0, 1]", batch="[1, 1e6]",
              steps="[1, 1e9]", holdout="(0, 1)", starts="[2, 1e6]", horizon="[1, 1e6]", doubt="[0, 1]", limit="(0, 1]", slack="[0, 1e6]",
              margin="[-1e6, 1e6]", confidence="[0, 100]")
        if self.elites > self.members:
            raise OutOfBounds(OPEConfig, "elites", f"must lie in 2..{self.members} (members), got {self.elites}")


@dataclass
class _Table:
    """Decisions as the model sees them: x [N, C + K*A], change [N, C] in units of `scale`, reward [N], done and whole [N] bool."""

    x: Tensor
    change: Tensor
    reward: Tensor
    done: Tensor
    whole: Tensor
    episode: Tensor


@dataclass
class Prediction:
    """One decision ahead. cond: [B, C]; p_done: [B], probability that the task ends inside it; reward_done, reward_on: [B], the
    decision's reward if it does and if it does not; trust: [B] in [0, 1], 0 where the model is outside its data."""

    cond: Tensor
    p_done: Tensor
    reward_done: Tensor
    reward_on: Tensor
    trust: Tensor


class TransitionModel(nn.Module):
    """An ensemble of MLPs: (condition, chunk) -> the condition's change, whether the task ends, and the reward either way.

    It shares no parameter and no target with the critics, so a policy that learned to please them has not learned to please it. A saved
    `state_dict` holds the elites and all that a rollout needs."""

    def __init__(self, cond: int, chunk: int, action: int, cfg: OPEConfig, *, seed: int) -> None:
        super().__init__()
        if not 1 < cfg.elites <= cfg.members:
            raise RealrlError(f"ope.elites: {cfg.elites} must lie in 2..{cfg.members} (members): one network cannot disagree with itself")
        self.cfg, self.seed, self.size = cfg, seed, cond
        self.inputs, self.outputs = cond + chunk * action, cond + 3
        self.elites = EnsembleMLP(cfg.elites, self.inputs, self.outputs, cfg.hidden).requires_grad_(False)
        shapes = {"scale": cond, "lowest": cond, "highest": cond, "drop": cond, "rise": cond, "poorest": 2, "richest": 2}
        for name, length in shapes.items():
            self.register_buffer(name, torch.zeros(length))
        for name in ("limit", "discount"):
            self.register_buffer(name, torch.zeros(()))
        self.scale: Tensor  # standard deviation of a feature's change, 0 where it never moves
        self.lowest: Tensor  # range of the features in the data ...
        self.highest: Tensor
        self.drop: Tensor  # ... and of their change in one decision, in units of scale
        self.rise: Tensor
        self.poorest: Tensor  # range of a decision's reward, where the task ends inside it and where it goes on
        self.richest: Tensor
        self.limit: Tensor  # disagreement at which a rollout is stopped
        self.discount: Tensor  # gamma^K

    def fit(self, data: Encoded, log: Log | None = None, advance: Callable[[int], None] = lambda n: None) -> dict[str, float]:
        """Fit all members afresh to the decisions of a view with `every="step"` and keep the elites. advance: told of each step.

        Returns `r2` (one-step, of the change, held-out episodes, mean of the elites), `done_ratio` (predicted over true number of endings
        there), `limit` and the losses. Raises RealrlError with fewer than 2 episodes."""
        self.to(data.cond.device)
        cfg, table = self.cfg, self._table(data)
        random = torch.Generator(table.x.device).manual_seed(derive(self.seed, "ope-fit"))
        train, held = _split(table, cfg.holdout, random)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(self.seed, "ope-init"))
            net = EnsembleMLP(cfg.members, self.inputs, self.outputs, cfg.hidden).to(table.x.device)
        optimiser = torch.optim.AdamW(net.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay, fused=True)
        order = train[torch.randint(len(train), (cfg.members, len(train)), generator=random, device=train.device)]
        for step in range(cfg.steps):
            optimiser.param_groups[0]["lr"] = cfg.lr * 0.5 * (1 + math.cos(math.pi * step / cfg.steps))
            rows = order.gather(1, torch.randint(len(train), (cfg.members, cfg.batch), generator=random, device=train.device))
            losses = self._losses(net(table.x[rows]), table, rows)
            loss = sum(v.sum() for v in losses.values())
            assert isinstance(loss, Tensor)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            advance(1)
            if log is not None and (step % 100 == 0 or step == cfg.steps - 1):
                log(step, {f"ope/{k}": float(v.detach().mean()) for k, v in losses.items()})
        return self._choose(net, table, held)

    @torch.no_grad()
    def _table(self, data: Encoded) -> _Table:
        """Learn the data's scales and lay the decisions out."""
        cond, after, chunk = data.cond, data.next_cond, data.action.shape[1]
        whole, done = data.valid.all(1), data.discount == 0
        if not whole.any():
            raise RealrlError(f"no recorded decision ran its {chunk} actions to the end: episodes are too short for this chunk")
        change = after - cond
        std = change[whole].std(0, unbiased=False)
        self.scale.copy_(torch.where(std > 1e-5, std, 0.0))
        change = torch.where(self.scale > 0, change / self.scale.clamp(min=1e-5), 0.0)
        seen = torch.cat([cond, after])
        self.lowest.copy_(seen.amin(0))
        self.highest.copy_(seen.amax(0))
        self.drop.copy_(change[whole].amin(0))
        self.rise.copy_(change[whole].amax(0))
        self.discount.fill_(data.gamma**chunk)
        for i, kind in enumerate((done, whole & ~done)):
            reward = data.reward[kind] if kind.any() else data.reward.new_zeros(1)
            self.poorest[i], self.richest[i] = reward.min(), reward.max()
        action = continue_chunks(data.action, data.valid, torch.Generator(cond.device).manual_seed(derive(self.seed, "ope-continue")))
        return _Table(torch.cat([cond, action.flatten(1)], -1), change, data.reward, done, whole, data.episode)

    def _losses(self, y: Tensor, table: _Table, rows: Tensor) -> dict[str, Tensor]:
        """Each [M]. y: [M, B, C + 3]; rows: [M, B]. A decision cut by a time limit says nothing, one cut by the task's end no change."""
        done, whole, c = table.done[rows], table.whole[rows], self.size
        error = F.huber_loss(y[..., :c], table.change[rows], reduction="none") * (self.scale > 0)
        change = (error.mean(-1) * whole).mean(-1)
        ended = F.binary_cross_entropy_with_logits(y[..., c], done.float(), reduction="none")
        reward = torch.where(done, y[..., c + 1], y[..., c + 2]) - table.reward[rows]
        known = whole | done
        return {"change": change, "done": (ended * known).mean(-1), "reward": (reward.square() * known).mean(-1)}

    @torch.no_grad()
    def _choose(self, net: EnsembleMLP, table: _Table, held: Tensor) -> dict[str, float]:
        """Keep the elites, set the limit of disagreement, and measure."""
        losses = self._losses(net(table.x[held]), table, held.expand(net.members, -1))
        best = torch.stack(list(losses.values())).sum(0).argsort()[: self.cfg.elites]
        self.elites.load_state_dict({k: v[best] for k, v in net.state_dict().items()})
        y, c = self.elites(table.x[held]), self.size
        y[..., :c] *= self.scale > 0
        known, whole = table.whole[held] | table.done[held], table.whole[held]
        error = (y[..., :c] - table.change[held])[:, whole].square().sum()
        total = table.change[held][whole].square().sum() * len(y)
        apart = self._disagreement(y)
        groups = table.episode[held]
        worst = apart.new_zeros(len(table.x)).scatter_reduce(0, groups, apart, "amax")[groups.bincount(minlength=len(table.x)) > 0]
        self.limit.copy_(worst.quantile(self.cfg.limit))
        expected = float(y[..., c].sigmoid().mean(0)[known].sum())
        return {"r2": float(1 - error / total.clamp(min=1e-12)), "done_ratio": expected / max(float(table.done[held].sum()), 1.0),
                "limit": float(self.limit), **{k: float(v[best].mean()) for k, v in losses.items()}}

    def _disagreement(self, y: Tensor) -> Tensor:
        """Root mean square, over the features that move, of the elites' standard deviation. y: [E, B, C + 3] -> [B]."""
        if not (self.scale > 0).any():  # a task of one decision
            return y.new_zeros(y.shape[1])
        return y[..., : self.size][..., self.scale > 0].var(0, unbiased=False).mean(-1).sqrt()

    @torch.no_grad()
    def step(self, cond: Tensor, action: Tensor, member: Tensor) -> Prediction:
        """Advance conditions [B, C] by chunks [B, K, A], each row in the world of its own elite, member [B] in 0..E-1.

        A row keeps its elite for a whole rollout. The elites' mean predicts one step slightly better, but every row then shares one model's
        errors, which a policy can exploit: in a small trial the mean overrated an offline-optimised policy, elites much less."""
        y, c = self.elites(torch.cat([cond, action.flatten(1)], -1)), self.size
        own = y[member, torch.arange(len(cond), device=cond.device)]
        after = cond + torch.maximum(torch.minimum(own[:, :c], self.rise), self.drop) * self.scale
        room = self.cfg.slack * (self.highest - self.lowest) + 1e-3
        inside = ((after >= self.lowest - room) & (after <= self.highest + room)).all(-1)
        apart = self._disagreement(y) / self.limit.clamp(min=1e-6)
        trust = (1 - self.cfg.doubt * apart) * (inside & (apart <= 1))
        reward = torch.maximum(torch.minimum(own[:, c + 1:], self.richest), self.poorest)
        return Prediction(after, own[:, c].sigmoid(), reward[:, 0], reward[:, 1], trust)


def _split(table: _Table, share: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """(training, held-out) rows, by episode: the decisions of one episode overlap."""
    episodes = int(table.episode.max()) + 1
    if episodes < 2:
        raise RealrlError("off-policy evaluation needs at least 2 episodes, one of them to hold out: record more")
    count = min(max(round(share * episodes), 1), episodes - 1)
    chosen = torch.randperm(episodes, generator=random, device=table.x.device)[:count]
    held = torch.isin(table.episode, chosen)
    return (~held).nonzero().squeeze(-1), held.nonzero().squeeze(-1)


@dataclass
class Estimates:
    """What P policies would do from N start states; each [P, N].

    amq: AM-Q, the sum over the decisions of Q. success: probability of ending the task with a reward, for sparse rewards of 0 and 1.
    returns: discounted sum of the rewards; for sparse rewards the discounted success. stopped: share of the rollout's weight that was lost
    because the model could not be trusted."""

    amq: Tensor
    returns: Tensor
    success: Tensor
    stopped: Tensor


def start_conditions(data: Encoded, cfg: OPEConfig) -> Tensor:
    """[N, C]: the first observations of the recorded episodes, spread evenly over them, repeated where there are fewer."""
    first = data.first.nonzero().squeeze(-1)
    i = torch.arange(cfg.starts, device=first.device)
    pick = i * len(first) // cfg.starts if cfg.starts < len(first) else i % len(first)
    return data.cond[first[pick]]


@torch.no_grad()
def evaluate_policies(model: TransitionModel, q: Value, policies: Sequence[Act], start: Tensor, noise: Sequence[int], *,
                      seed: int) -> Estimates:
    """Roll every policy out in the model from `start` [N, C], `cfg.horizon` decisions, start i in the world of elite i mod E.

    noise: the shape (S+1, K, A) of a decision's noise; it depends on seed, decision and start only, so equal policies get exactly equal
    estimates. The end of the task is absorbing."""
    rows = [_rollout(model, q, act, start, tuple(noise), seed) for act in policies]
    return Estimates(*(torch.stack(column) for column in zip(*rows, strict=True)))


def _rollout(model: TransitionModel, q: Value, act: Act, start: Tensor, noise: tuple[int, ...], seed: int) -> tuple[Tensor, ...]:
    """(amq, returns, success, stopped), each [N], of one policy. `alive` is the probability that the task still runs (and the model
    is still trusted). A finished task keeps its reward as the Q of all later decisions, or the sum of Q would punish speed; weight
    that is lost earns the data's worst reward for ever."""
    n, cond = len(start), start.clone()
    member = torch.arange(n, device=start.device) % model.cfg.elites
    amq, returns, success, stopped, kept = torch.zeros(5, n, device=start.device).unbind()
    alive = torch.ones(n, device=start.device)
    worst = float(model.poorest.min() / (1 - model.discount).clamp(min=1e-3))
    discount, step, horizon = 1.0, float(model.discount), model.cfg.horizon
    if horizon is None:
        raise ValueError("OPEConfig.horizon must be a number here: the caller knows how many decisions the task has")
    for t in range(horizon):
        rows = (alive > 1e-3).nonzero().squeeze(-1)
        amq += kept + stopped * worst
        if len(rows):
            random = torch.Generator(start.device).manual_seed(derive(seed, "ope-noise", t))
            action = act(cond[rows], torch.randn((n, *noise), generator=random, device=start.device)[rows])
            after = model.step(cond[rows], action, member[rows])
            weight, lost = alive[rows] * after.trust, alive[rows] * (1 - after.trust)
            ended = weight * after.p_done
            amq[rows] += weight * q(cond[rows], action) + lost * worst
            returns[rows] += discount * (ended * after.reward_done + (weight - ended) * after.reward_on + lost * worst)
            success[rows] += ended * after.reward_done.clamp(0.0, 1.0)
            kept[rows] += ended * after.reward_done
            stopped[rows] += lost
            alive[rows], cond[rows] = weight - ended, after.cond
        discount *= step
    return amq, returns, success, stopped


@dataclass(frozen=True)
class Verdict:
    """The gate's answer. gain: mean paired difference; low: its lower confidence bound; delta: what `low` had to reach."""

    accepted: bool
    candidate: float
    incumbent: float
    gain: float
    low: float
    delta: float


def gate(candidate: Tensor, incumbent: Tensor, *, margin: float, confidence: float, ceiling: float | None = None) -> Verdict:
    """Whether the candidate replaces the incumbent: the lower confidence bound of the mean paired difference is positive and at
    least delta. candidate, incumbent: [N], estimates from the same starts with the same noise.

    Without a ceiling, `margin` is a share of the incumbent's estimate, delta = margin |J| (RL-100, section 5; for AM-Q). With one (1 for a
    success probability), it is a share of what is left to gain, delta = margin (ceiling - J): a policy at 0.97 can never be improved by 5 %
    of itself, but by 5 % of its failures it can. The bound covers the draw of start states alone (N should not pass the distinct starts by
    much), so what passes is tried. Pure: no state, no randomness."""
    if candidate.shape != incumbent.shape or candidate.ndim != 1 or len(candidate) < 2:
        raise ValueError(f"the gate compares two vectors of equal length >= 2, got {list(candidate.shape)} and {list(incumbent.shape)}")
    difference = (candidate - incumbent).double()
    gain = float(difference.mean())
    low = gain - confidence * float(difference.std()) / math.sqrt(len(difference))
    now = float(incumbent.double().mean())
    delta = margin * (abs(now) if ceiling is None else max(ceiling - now, 0.0))
    return Verdict(low > 0 and low >= delta, float(candidate.double().mean()), now, gain, low, delta)


def misjudged(estimate: Tensor, truth: Tensor) -> float:
    """By how much a model misjudges a policy whose real trials are known, beyond what their number explains: the mean difference [],
    less its standard error in squares. estimate, truth: [N], the same measure from the same starts; 0 with fewer than 2 trials."""
    difference = (estimate - truth).double()
    return 0.0 if len(truth) < 2 else math.sqrt(max(float(difference.mean()) ** 2 - float(difference.var()) / len(difference), 0.0))


class Gate:
    """A round's judge (section 5): scores the policy as it is now in the model, compares scores, remembers all of it for the audit. tried:
    real trials of what the round starts from; `check` asks the model about those, and what that finds wrong cannot refuse re-imitation."""

    def __init__(self, policy: DiffusionPolicy, model: TransitionModel, q: Value, table: Encoded, measure: str, *, seed: int, log: Log,
                 tried: ChunkView | None = None) -> None:
        self.policy, self.model, self.q, self.measure, self.seed, self.log = policy, model, q, measure, seed, log
        self.starts, self.error = start_conditions(table, model.cfg), 0.0
        known = None if tried is None else tried.encoded(policy.features, policy.drawn)
        self.tried = None if known is None else (known.cond[known.first], known.returns[known.first])  # beginnings, and returns
        self.records: list[dict[str, float]] = []  # what was judged ...
        self.nets: list[dict[str, Tensor]] = []  # ... and the weights, for the audit

    @torch.no_grad()
    def score(self, starts: Tensor | None = None) -> dict[str, Tensor]:
        """Every measure of the policy's deployed behaviour in the model, per start [N]."""
        policy = self.policy
        act = lambda cond, noise: policy.diffusion.sample(policy.net, cond, noise, stochastic=False)[:, -1].clamp(-1.0, 1.0)
        shape = (1, policy.chunk, policy.action_dim)
        found = evaluate_policies(self.model, self.q, [act], self.starts if starts is None else starts, shape,
                                  seed=derive(self.seed, "gate"))
        return {"amq": found.amq[0], "returns": found.returns[0], "success": found.success[0]}

    def begin(self, started: dict[str, Tensor] | None, won: Sequence[bool]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(noise network, score) that a round's candidates must beat: re-imitation's, which the policy holds, if it passes the gate, else
        that of `started`, the network from before; None where that one cannot be tried. won: how the real trials of it ended: where they
        show that the model misjudges, it has no vote on re-imitation, which the paper does not judge."""
        cloned = self.net()
        self.policy.net.load_state_dict(started or cloned)
        self.check(won)
        before = self.score()
        self.remember({"iteration": -1 if started else 0, "estimate": float(before[self.measure].mean()), "accepted": 1.0}, before)
        self.policy.net.load_state_dict(cloned)
        if started is None:
            return cloned, before
        score = self.score()
        return (cloned, score) if self.judge(0, score, before, vote=self.error == 0) else (started, before)

    def kept(self) -> dict[str, Any]:
        """What the audit needs: all that was judged, with the encoder it was seen with."""
        return {"records": self.records, "nets": self.nets, "encoder": self.policy.encoder.state_dict() if self.policy.encoder else {}}

    def net(self) -> dict[str, Tensor]:
        """A copy of the noise network's weights."""
        return {k: v.clone() for k, v in self.policy.net.state_dict().items()}

    def check(self, won: Sequence[bool]) -> None:
        """Ask the model about the policy whose real trials are known. won: their outcomes."""
        if self.tried is not None and self.measure != "amq":  # nobody has seen a sum of Q
            begun, returned = self.tried
            said = self.score(begun)[self.measure]
            truth = returned if self.measure == "returns" else torch.tensor(won, device=said.device).float()
            self.error = misjudged(said, truth)
            self.log(0, {"model_said": float(said.mean()), "trials_said": float(truth.mean()), "model_error": self.error})

    def judge(self, iteration: int, candidate: Mapping[str, Tensor], incumbent: Mapping[str, Tensor], *, vote: bool = True) -> bool:
        """The paired gate on the configured measure; every measure is remembered. vote: False = the candidate passes, whatever it says."""
        cfg, measure = self.model.cfg, self.measure
        verdict = gate(candidate[measure], incumbent[measure], margin=cfg.margin, confidence=cfg.confidence,
                       ceiling=1.0 if measure == "success" else None)
        accepted = verdict.accepted or not vote
        said = {"ope_estimate": verdict.candidate, "ope_gain": verdict.gain, "ope_low": verdict.low, "accepted": float(accepted)}
        self.log(iteration, said)
        self.remember({"iteration": iteration, "estimate": verdict.candidate, **said}, candidate)
        return accepted

    def remember(self, record: dict[str, float], score: Mapping[str, Tensor]) -> None:
        """Keep what was judged, for the audit after all training."""
        self.records.append({**record, **{f"ope_{k}": float(v.mean()) for k, v in score.items()}})
        self.nets.append(self.net())
