"""Fits the linear reference of a policy (`nets.reference`), and says by unseen episodes how far the network that corrects it is followed.

Each joint chooses by leaving episodes out among these beginnings: keep still, which is the number that its action drives or, where actions
are motions, none; that and going on as it moves; its mean; a line through the one measured number that it goes with most; that and its
rate of change. A ridge over all numbers adds what they tell beside it, no further than they were demonstrated, with a penalty that is
chosen in the same way and may be so large that it adds nothing. Two are chosen, the best and the simplest that is as good as any, and the
reference says what lies halfway between them: by so few episodes one cannot tell which of the two is right, and the mean of two maps errs
less than they do. So few episodes end near "go on as you move", many near ridge.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from realrl.data.views import ChunkView
from realrl.files import derive
from realrl.generative.diffusion import imitation_loss
from realrl.nets.reference import FAR, Reference
from realrl.policies.diffusion import DiffusionPolicy
from realrl.robots.embodiment import Embodiment
from realrl.types import Array, Batch

if TYPE_CHECKING:
    from realrl.learn.imitation import Decisions

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 1e3, 1e9)  # of the ridge, against features of unit variance; the last adds nothing
BEGINNINGS = ("hold", "hold and motion", "mean", "line", "line and motion")
SHORTEST = 8  # decisions of one recording that are left out together
FOLDS, ROWS = 5, 20_000  # episodes are left out in so many groups; no more decisions than that are looked at
SPREAD = 3.0  # what the network draws reaches this many standard deviations of what the reference leaves over
GAINS, CHANCE = (0.0, 0.25, 0.5, 0.75, 1.0), 0.05
GROUPS = 4  # episodes, or stretches of fewer, that have to agree
LOOKS, PATIENCE = 12, 4  # at unseen episodes during a fit; so many without gain end it, once there was some
UNSEEN = 256  # decisions of them that are looked at on the way
NEVER = 0.9  # standard deviations: further from no motion than that, half of the time, is a command of two values
REACH = 0.1  # of the range in which a number was demonstrated: how far beyond it the ridge believes it
Linear = tuple[Array, Array, Array]  # begin, weight [F, K, A], bias [K, A], see `Reference`


def fit_reference(reference: Reference, view: ChunkView, robot: Embodiment | None = None, *, ridge: bool = False) -> None:
    """Fit all but the gain, which becomes 1, on the decisions of some demonstrations, whose actions lie in [-1, 1].

    robot: what its actions mean; without it nothing is known to be held. ridge: an ordinary ridge regression, to compare with: from the
    mean alone, with the penalty that leaving episodes out prefers, believed anywhere.
    """
    rows = torch.linspace(0, len(view) - 1, min(len(view), ROWS)).long()
    batch = view.batch(rows.to(view.reward.device))
    state, action = batch.obs["state"].cpu().double().numpy(), batch.action.cpu().double().numpy()
    valid, episode = batch.valid.cpu().numpy(), view.episode[rows].cpu().numpy()
    table = _Table(state, action, robot, FAR if ridge else REACH)
    begin, weight, bias = _chosen(table, valid, _folds(episode, view.chunk if view.cut else 0), ridge)
    left = (action - table.chunks(begin, weight, bias)) * valid[..., None]
    spread = np.sqrt((left ** 2).sum(0) / np.maximum(valid.sum(0), 1)[:, None])
    scale = np.maximum(SPREAD * spread, 1e-3)  # of the half range: a joint that hardly moves does not explode
    low, high = table.mean + table.reach
    for name, value in {"mean": table.mean, "low": low, "high": high, "begin": begin, "weight": weight, "bias": bias, "scale": scale,
                        "gain": np.ones(action.shape[-1])}.items():
        getattr(reference, name).copy_(torch.from_numpy(value))


@torch.no_grad()
def unseen_loss(policy: DiffusionPolicy, batch: Batch, seed: int) -> float:
    """The imitation loss on decisions that a policy was not fitted to; seed: of its noise."""
    wanted, random = policy.drawn(batch.action, batch.obs["state"]), torch.Generator(policy.device).manual_seed(seed)
    return float(imitation_loss(policy.diffusion, policy.net, wanted, batch.valid, _encoded(policy, batch.obs), random))


@torch.no_grad()
def follow(policy: DiffusionPolicy, batch: Batch, episode: Tensor, seed: int) -> float:
    """`trust` a policy's network by what it draws for decisions that it was not fitted to; episode: [B]; seed: of its noise."""
    assert policy.reference is not None
    drawn = policy.draw(_encoded(policy, batch.obs), torch.Generator(policy.device).manual_seed(seed))
    return trust(policy.reference, drawn, batch.obs["state"], batch.action, batch.valid, episode)


def _encoded(policy: DiffusionPolicy, obs: Mapping[str, Tensor], size: int = 128) -> Tensor:
    """Conditions [B, C], `size` at a time: many pictures at once would fill the memory with what their layers make of them."""
    return torch.cat([policy.encode({key: x[i:i + size] for key, x in obs.items()}) for i in range(0, len(obs["state"]), size)])


def trust(reference: Reference, drawn: Tensor, state: Tensor, action: Tensor, valid: Tensor, episode: Tensor) -> float:
    """Set the gain of each joint to what foresees episodes best that the network was not fitted to, if they agree on it: a gain above 0 has
    to lower their mean absolute error by more than chance would one time in twenty (Student's t over the episodes). No joint is followed
    unless one gain for all of them does so, too: of many joints some always seem better. Gives what is left of the reference's error, in
    the mean over the joints: 1 where the network is not followed at all.

    drawn: [N, K, A], what the network said there; state: [N, H, D]; action: [N, K, A]; valid: [N, K] bool; episode: [N]; of fewer than
    four episodes, stretches stand for them, and fewer than four decisions say nothing.
    """
    if len(episode) < GROUPS:
        reference.gain.zero_()
        return 1.0
    base, mask = reference(state), valid[..., None].to(action.dtype)
    names, group = torch.unique(episode, return_inverse=True)
    if len(names) < GROUPS:
        group = torch.arange(len(episode), device=episode.device) * GROUPS // len(episode)
    groups = torch.nn.functional.one_hot(group).to(action.dtype)  # [N, G]
    steps = groups.T @ mask.sum(1)  # [G, 1]
    error = torch.stack([groups.T @ ((base + gain * reference.scale * drawn - action).abs() * mask).sum(1) / steps for gain in GAINS])
    better = error[:1] - error  # [gains, G, A]
    from scipy.special import stdtrit
    sure = float(stdtrit(better.shape[1] - 1, 1 - CHANCE)) / better.shape[1] ** 0.5
    mean, together = better.mean(1), better.mean(2)
    if not bool((together.mean(1) > sure * together.std(1)).any()):
        reference.gain.zero_()
        return 1.0
    chosen = torch.where(mean > sure * better.std(1), mean, 0.0).argmax(0)  # the first where none is better: 0
    reference.gain.copy_(torch.tensor(GAINS, device=error.device)[chosen])
    left = 1 - mean.gather(0, chosen[None])[0] / error[0].mean(0).clamp_min(1e-9)
    return float(left.mean())


class Witness:
    """Episodes that an imitation does not see. They say what it has learned, and where the policy has a reference they choose the weights:
    those that leave the least of the reference's error, as far as they are followed. When nothing is gained any more the fit may end, for
    few episodes are soon known by heart, with pictures above all. Fewer than `GROUPS` of them that are no longer than so many plans are no
    witness: stretches of one episode that are shorter than a plan foresee the same actions.

    view: of all decisions; unseen: [N], which of them the fit does not see; steps: of the fit.
    """

    def __init__(self, policy: DiffusionPolicy, view: Decisions, unseen: Tensor, steps: int, seed: int) -> None:
        self.policy, self.view, self.unseen, self.seed = policy, view, unseen, seed
        self.net: torch.nn.Module = policy.actor  # what is fitted
        self.chooses = policy.reference is not None
        self.every = max(steps // LOOKS, 1)
        self.able = able(unseen, view.episode[unseen], policy.chunk)
        self.best: dict[str, Tensor] = {}
        self.left, self.looked, self.found = math.inf, 0, 0  # of the error; the steps of the newest look and of the best one

    def content(self, step: int, averaged: torch.nn.Module) -> bool:
        """Judge the averaged weights where it is time; whether the fit should go on."""
        if not self.chooses or step % self.every:
            return True
        now = {name: x.clone() for name, x in self.net.state_dict().items()}
        self.net.load_state_dict(averaged.state_dict())
        self._look(step)
        self.net.load_state_dict(now)
        self.net.train()
        return self.left >= 1 or step - self.found < PATIENCE * self.every

    def finish(self, step: int) -> None:
        """Judge the policy's weights at the fit's end, too; then it has the best of all, followed as far as they foresee what is unseen."""
        if self.chooses:
            if self.looked < step:
                self._look(step)
            self.net.load_state_dict(self.best)
            self._follow(len(self.unseen))

    def _look(self, step: int) -> None:
        left, self.looked = self._follow(UNSEEN), step
        if left < self.left:
            self.left, self.found = left, step
            self.best = {name: x.clone() for name, x in self.net.state_dict().items()}

    def _follow(self, most: int) -> float:
        """Let the weights be followed as far as some unseen decisions say; what that leaves of the reference's error."""
        rows = self.unseen[::1 + (len(self.unseen) - 1) // most]
        self.net.eval()
        if not self.able and self.policy.reference is not None:
            self.policy.reference.gain.zero_()
            return 1.0
        return follow(self.policy, self.view.batch(rows), self.view.episode[rows], derive(self.seed, "trust"))

    def validate(self) -> dict[str, float]:
        """The denoising loss there with the weights as they are, and what the best ones left of the reference's error."""
        self.net.eval()
        loss = unseen_loss(self.policy, self.view.batch(self.unseen[::4]), derive(self.seed, "validation"))
        self.net.train()
        return {"validation": loss, **({"reference_error_left": self.left} if self.best else {})}

    def state_dict(self) -> dict[str, Any]:
        """The best weights and where they were found."""
        return {"best": self.best, "looks": [self.left, self.looked, self.found]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.best = dict(state["best"])
        self.left, self.looked, self.found = state["looks"]


def able(unseen: Tensor, episode: Tensor, chunk: int) -> bool:
    """Whether decisions that a fit does not see can be its witness; episode: [N] that they are of."""
    return len(unseen) >= GROUPS * chunk or len(torch.unique(episode)) >= GROUPS


def kept_back(episode: Tensor, share: float, wanted: int = 0) -> tuple[Tensor, Tensor]:
    """(decisions to fit, at most 1,024 to validate with): whole episodes, evenly spread, at least four or a fifth of them, for fewer decide
    by chance; of a single one its last stretch, longer than the share where so many decisions are wanted and a quarter of it has them.

    episode: [N], which one a decision is of.
    """
    count = int(episode.max()) + 1
    if count == 1:
        place = torch.arange(len(episode), device=episode.device)
        start = min(len(episode) * (1 - share), max(len(episode) - wanted, 0.75 * len(episode)))
        back = place >= max(min(start, len(episode) - 1), 1)  # one at least on either side
    else:
        many = min(max(1, count // 5 if count < 20 else 4, round(share * count)), count - 1)
        picked = ((torch.arange(many, device=episode.device) + 0.5) * count / many).long()
        back = torch.isin(episode, picked)
    rows = back.nonzero().squeeze(-1)
    return (~back).nonzero().squeeze(-1), rows[torch.linspace(0, len(rows) - 1, min(len(rows), 1024), device=rows.device).long()]


def _folds(episode: Array, stretch: int = 0) -> Array:
    """Which group [N] a decision is left out with: its episode's, or its stretch of the only one. stretch: decisions, where episodes are
    stretches of one recording: what lies between them is asked for, so no whole one is left out, but what a plan or eight steps see."""
    if stretch:
        return np.arange(len(episode)) // max(stretch, SHORTEST) % FOLDS
    names, number = np.unique(episode, return_inverse=True)
    return number % FOLDS if len(names) > 1 else np.arange(len(episode)) * FOLDS // len(episode)


def _chosen(table: _Table, valid: Array, fold: Array, ridge: bool) -> Linear:
    """Of each joint the mean of the candidate that foresees best what was left out and of the simplest one that does it as well as any (the
    best alone, for a ridge), fitted to all."""
    errors, beginnings = [], ("mean",) if ridge else BEGINNINGS
    for left_out in np.unique(fold):
        held = fold == left_out
        seen, mask = table[~held], valid[held][..., None]
        unseen = table[held].within(seen.reach)
        wrong = ((np.abs(unseen.chunks(*found) - unseen.action) * mask).sum((0, 1)) for found in seen.candidates(beginnings))
        errors.append(np.array(list(wrong)) / max(mask.sum(), 1))
    error = np.stack(errors)
    best = error.mean(0).argmin(0)  # [A]
    simple = best if ridge else _simplest(error)
    found = list(table.candidates(beginnings))
    joints = range(table.action.shape[-1])
    begin, weight, bias = (np.stack([(found[best[j]][part][..., j] + found[simple[j]][part][..., j]) / 2 for j in joints], -1)
                           for part in range(3))
    return begin, weight, bias


def _simplest(error: Array) -> Array:
    """Of each joint, [A], the candidate with the heaviest penalty, and the first of these, that is worse than the best by no more than the
    difference's standard error over the groups left out: few episodes flatter what bends most. error: [groups, candidates, A]."""
    groups, candidates, joints = error.shape
    more = error - np.take_along_axis(error, error.mean(0).argmin(0)[None, None], 1)
    doubt = more.std(0, ddof=1) / np.sqrt(groups) if groups > 1 else np.zeros((candidates, joints))
    beginning, penalty = np.divmod(np.arange(candidates), len(PENALTIES))
    order = np.lexsort((beginning, -penalty))  # simplest first
    found: Array = order[(more.mean(0) <= doubt)[order].argmax(0)]
    return found


class _Table:
    """Decisions as rows: features [N, F] = H states in a row, and the chunks [N, K, A] that followed."""

    def __init__(self, state: Array, action: Array, robot: Embodiment | None, reach: float, mean: Array | None = None,
                 spread: Array | None = None) -> None:
        self.state, self.action, self.robot, self.further, self.width = state, action, robot, reach, state.shape[-1]
        flat = state.reshape(len(state), -1)
        self.mean = flat.mean(0) if mean is None else mean
        deviation = flat.std(0)
        moving = deviation[deviation > 0]
        floor = 1e-2 * np.median(moving) + 1e-9 if len(moving) else 1.0
        self.spread = np.maximum(deviation, floor) if spread is None else spread
        self.features = self.inside = flat - self.mean
        low, high = self.features.min(0), self.features.max(0)
        self.reach = np.stack([low, high]) + reach * (high - low) * np.array([[-1.0], [1.0]])  # [2, F]

    def within(self, reach: Array) -> _Table:
        """These rows, in which a ridge sees only what lies in the reach [2, F] of others."""
        self.inside = self.features.clip(*reach)
        return self

    def __getitem__(self, rows: Array) -> _Table:
        """Some of the rows, measured in the same units."""
        return _Table(self.state[rows], self.action[rows], self.robot, self.further, self.mean, self.spread)

    def chunks(self, begin: Array, weight: Array, bias: Array) -> Array:
        """What a reference says of every row, [N, K, A]."""
        flat: Array = self.features @ begin.reshape(len(begin), -1) + self.inside @ weight.reshape(len(weight), -1)
        return flat.reshape(self.action.shape) + bias

    def candidates(self, beginnings: Sequence[str]) -> Iterator[Linear]:
        """Every beginning with every penalty."""
        scaled = self.features / self.spread
        centre = scaled.mean(0)
        scaled = scaled - centre
        values, vectors = np.linalg.eigh(scaled.T @ scaled / len(scaled))
        for beginning in beginnings:
            if beginning.startswith("hold") and self.robot is None:
                continue
            line, bias = self._begin(beginning)
            absolute = self.robot is not None and self.robot.control == "absolute"
            begin, line = (line, np.zeros_like(line)) if absolute else (np.zeros_like(line), line)
            left = (self.action - self.chunks(begin, line, bias)).reshape(len(scaled), -1)
            shared = vectors.T @ (scaled.T @ left) / len(scaled)
            for penalty in PENALTIES:
                more = (vectors @ (shared / (values + penalty)[:, None])).reshape(len(centre), *bias.shape)
                yield begin, line + more / self.spread[:, None, None], bias - np.tensordot(centre, more, 1)

    def _begin(self, kind: str) -> tuple[Array, Array]:
        """(weight [F, K, A], bias [K, A]) of a beginning of every joint."""
        bias, weight = self.action.mean(0), np.zeros((self.features.shape[1], *self.action.shape[1:]))
        if kind == "mean":
            return weight, bias
        if kind.startswith("hold"):
            return self._held(weight, kind.endswith("motion"))
        last = self.features.shape[1] - self.width  # where the newest state begins
        for joint, number in enumerate(_followed(self.features[:, last:], self.action[:, 0])):
            now = self.features[:, last + number]
            inputs = [now]
            if kind.endswith("motion") and last:
                inputs.append(now - self.features[:, last - self.width + number])
            slope, bias[:, joint] = _line(np.stack(inputs, -1), self.action[:, :, joint])  # [f, K], [K]
            weight[last + number, :, joint] += slope.sum(0)
            if kind.endswith("motion") and last:
                weight[last - self.width + number, :, joint] -= slope[-1]
        return weight, bias

    def _held(self, weight: Array, motion: bool) -> tuple[Array, Array]:
        """To keep still: at the number that the robot says an action drives, with no motion, or at the mean where neither is known. motion:
        and what the motion so far adds, of the number that is driven or whose motion the action goes with most. weight: zeros."""
        assert self.robot is not None
        last, absolute = self.features.shape[1] - self.width, self.robot.control == "absolute"
        rate = self.features[:, last:] - self.features[:, last - self.width:last] if motion and last else None
        held = self.robot.followers if absolute else np.full(self.action.shape[-1], -1)
        moved = held if absolute or rate is None else _followed(rate, self.action[:, 0])
        first = self.action[:, 0]
        rest = np.where(_two_valued(first, self.robot), first.mean(0), resting(first, self.robot))
        bias = np.broadcast_to(rest, weight.shape[1:]).copy()
        for joint, unit in enumerate(1 / self.robot.half):
            left = self.action[:, :, joint] - bias[:, joint]
            if (number := held[joint]) >= 0:
                weight[last + number, :, joint] = unit
                bias[:, joint] = (self.mean[last + number] - self.robot.middle[joint]) * unit
                left = self.action[:, :, joint] - bias[:, joint] - self.features[:, last + number, None] * unit
            if rate is not None and (number := moved[joint]) >= 0:
                mean = self.mean[last + number] - self.mean[last - self.width + number]
                went = rate[:, number] + mean
                slope = went @ left / max(went @ went, 1e-15)  # [K], of a line through 0: what stands still stays
                weight[last + number, :, joint] += slope
                weight[last - self.width + number, :, joint] -= slope
                bias[:, joint] += slope * mean
        return weight, bias


def resting(action: Array, robot: Embodiment) -> Array:
    """What each joint is told that nothing measures when it is to keep still, [A]: no motion, if its actions [N, A], in [-1, 1], are
    motions and lie about zero, else their mean (a gripper among motions)."""
    mean, none = action.mean(0), -robot.middle / robot.half
    found: Array = np.where((np.abs(mean - none) < action.std(0)) & (robot.control == "relative"), none, mean)
    return found


def _two_valued(action: Array, robot: Embodiment) -> Array:
    """Which joints [A] are told one of two things, open or close, and hardly ever the middle: that is no motion. action: [N, A]."""
    away = np.abs(action + robot.middle / robot.half)
    found: Array = np.median(away, 0) > NEVER * action.std(0)
    return found


def _followed(state: Array, action: Array) -> list[int]:
    """For each action the number of the state with the largest correlation."""
    s, a = state - state.mean(0), action - action.mean(0)
    norm = np.sqrt((s ** 2).sum(0))[:, None] * np.sqrt((a ** 2).sum(0))[None]
    found: list[int] = np.abs(s.T @ a / np.maximum(norm, 1e-12)).argmax(0).tolist()
    return found


def _line(x: Array, y: Array) -> tuple[Array, Array]:
    """(slope [f, K], y at x = 0 [K]) of least squares, with a trace of a penalty for numbers that do not move. x: [N, f]; y: [N, K]."""
    centre, middle = x.mean(0), y.mean(0)
    gram = (x - centre).T @ (x - centre) / len(x)
    gram += (1e-6 * gram.diagonal().max() + 1e-15) * np.eye(len(gram))
    slope = np.linalg.solve(gram, (x - centre).T @ (y - middle) / len(x))
    return slope, middle - centre @ slope
