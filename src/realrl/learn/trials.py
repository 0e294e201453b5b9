"""Real trials: which of two policies is better, when to go back to the older one, when a task is solved. Pure functions.

Products are tried from the same training starts with the same noise, so that only disputed starts, which one of two policies solves and
the other does not, say anything about them (Q. McNemar 1947). Evaluation starts decide nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from realrl.config import check
from realrl.files import derive
from realrl.losses import wilson
from realrl.types import Cell, Episode

if TYPE_CHECKING:
    from realrl.policies.diffusion import DiffusionPolicy, Head


@dataclass(frozen=True)
class TrialsConfig:
    """Real trials of what would be deployed: what a stage made is held against what it began with, and the better one goes on."""

    episodes: int = 70
    """Trials of each product, all from the same training starts; at most two thirds of `offline.rollouts`, which they are a part of, and
    `online.episodes`. 0 = none, whatever a stage made is kept."""
    every: int = 7
    """Every so many online rounds, counted from the last one back, a round tries what would be deployed instead of learning."""
    back: float = 0.5
    """A product goes back when it solved fewer starts, and an equally good one would have lost as many of the disputed starts with at
    most this probability (one-sided McNemar test): 0.5 = whenever it solved fewer, 0.05 = only when that is hardly luck."""
    sure: float = 0.05
    """The same where going back costs more: the online policy returns to its best weights in mid-training, a student is held back."""
    enough: float = 0.995
    """Online RL ends where the lower confidence bound of the success since the trials before, exploring and deployed, reaches this."""
    rest: float = 0.05
    """Share of failures below which RL takes smaller steps, in proportion, see `left_to_gain`; 0 = never."""

    def __post_init__(self) -> None:
        check(self, episodes="[0, 1e5]", every="[1, 1e6]", back="[0, 0.5]", sure="[0, 0.5]", enough="(0, 1]", rest="[0, 1]")


@dataclass(frozen=True)
class Duel:
    """Two policies from the same n starts. new, old: starts that each solved; gained, lost: disputed starts, which only the new one and
    only the old one solved."""

    n: int
    new: int
    old: int
    gained: int
    lost: int

    def luck(self) -> float:
        """Probability that a new policy which is as good as the old one loses at least as many of the disputed starts: the exact one-sided
        McNemar test, a binomial tail."""
        disputed = self.gained + self.lost
        return sum(math.comb(disputed, k) for k in range(self.lost, disputed + 1)) / (1 << disputed)

    def worse(self, level: float) -> bool:
        """Whether the new policy solved fewer starts, by luck with a probability of at most `level`; 0.5 = fewer is enough."""
        return self.lost > self.gained and self.luck() <= level

    def __str__(self) -> str:
        return f"{100 * self.new / max(self.n, 1):.0f} % of {self.n} trials against {100 * self.old / max(self.n, 1):.0f} %"


def duel(new: Sequence[bool], old: Sequence[bool]) -> Duel:
    """Compare what two policies solved, start by start; where one was tried from fewer, the others do not count."""
    pairs = list(zip(new, old, strict=False))
    return Duel(len(pairs), sum(a for a, _ in pairs), sum(b for _, b in pairs), sum(a and not b for a, b in pairs),
                sum(b and not a for a, b in pairs))


def lower(successes: int, n: int, z: float = 1.645) -> float:
    """Lower confidence bound of a success rate (Wilson 1927; one-sided 95 % by default); 0 without a trial."""
    return wilson(successes, n, z)[0]


def left_to_gain(won: Sequence[bool], rest: float) -> float:
    """How much of a step RL may still take, (0, 1]: the share of failures, as a part of `rest`, at most 1; 1 without trials.

    Advantages are normalised, so once nearly every trial succeeds they are noise of full size. The share is Laplace's, (failures + 1) /
    (n + 2): a few trials without a failure do not stop anything.
    """
    return min(1.0, (len(won) - sum(won) + 1) / (len(won) + 2) / rest) if rest and won else 1.0


class Trials:
    """The real trials of a run, and what they say of the policy as it stands.

    won: how its own ended, start by start; tried: label of those that it began its offline round with; lines: what was decided, by stage,
    for people; gaps: how often exploring was compared with them.
    """

    PARTS = ("won", "tried", "lines", "gaps")

    def __init__(self, cell: Cell, cfg: TrialsConfig, seed: int) -> None:
        self.cell, self.cfg, self.seed = cell, cfg, seed
        self.won: list[bool] = []
        self.tried = "rollout-1-deployed"
        self.lines: dict[str, str] = {}
        self.gaps = 0

    def run(self, policy: DiffusionPolicy, label: str, most: int, *, head: Head = "ddim", plans_only: bool = True,
            others: bool = False) -> list[Episode]:
        """At most so many trials of a policy as it would be deployed: always from the same training starts (or others), same noise."""
        count = min(self.cfg.episodes, most)
        starts, noise = self.cell.seeds(2, count, others * count), derive(self.seed, "trials") % 2**31
        acting = policy.with_head(head)
        acting.repeats = True
        return self.cell.practise(label, acting, starts, greedy=True, noise_seed=noise, plans_only=plans_only) if starts else []

    def stand(self, policy: DiffusionPolicy, label: str, most: int) -> None:
        """Try the policy as it stands, if nobody has."""
        self.won = self.won or [e.succeeded for e in self.run(policy, label, most)]

    def rollouts(self, policy: DiffusionPolicy, demos: Sequence[Episode], m: int, most: int) -> tuple[list[Episode], list[Episode]]:
        """(what offline round m learns from, demonstrations and what the rounds 0..m explored; the trials of what it starts from), `most`
        episodes a round in all.

        Nobody learns from trials: they would no longer be evidence, and on peg-insert-side a round learned worse with them.
        """
        share = 2 * most // 3
        tried = self.run(policy, self.tried, share, plans_only=False)
        data = list(demos)
        for r in range(m + 1):
            starts, noise = self.cell.seeds(1, most - min(self.cfg.episodes, share), r * most), derive(self.seed, "rollout", r) % 2**31
            data += (explored := self.cell.practise(f"rollout-{r + 1}", policy.with_head("ddim"), starts, noise_seed=noise))
        self.won = [e.succeeded for e in tried]
        self.gap([e.succeeded for e in explored], self.won)
        return data, tried

    def settle(self, policy: DiffusionPolicy, began: Mapping[str, Any], others: Sequence[Mapping[str, Any]], m: int, most: int) -> bool:
        """Try the product of offline round m, then it with the noise networks of `others`, until one solves no fewer starts than what the
        round began with; go back to that where none does. Whether it did. Of `others` nothing can be seen where that one solved every
        start, nothing is tried or nobody ever succeeds: the gate's word stands."""
        stage, product = f"offline round {m + 1}", {key: value.clone() for key, value in policy.state_dict().items()}
        same = all(torch.equal(value, began[key]) for key, value in product.items() if not key.startswith("student."))
        others = [net for net in others if not all(torch.equal(value, began[f"net.{key}"]) for key, value in net.items())]
        others = [] if all(self.won) else others
        if same and not others:
            self.lines[stage] = f"{stage} changed nothing: no candidate passed the gate"
            return False
        for net in [*[{}] * (not same), *others]:
            policy.load_state_dict({**product, **{f"net.{key}": value for key, value in net.items()}})
            label = f"rollout-{m + 2}-deployed{'-again' if net else ''}"
            tried = self.run(policy, label, 2 * most // 3, plans_only=False)
            if net and not any(self.won + [e.succeeded for e in tried]):
                self.lines[f"{stage}, without RL,"] = f"{stage}, without RL, was sent back: none of {len(tried)} trials succeeds"
            elif not self.challenge(stage + ", without RL," * bool(net), tried, self.cfg.back, label).worse(self.cfg.back):
                return False
        policy.load_state_dict(began)
        return True

    def challenge(self, stage: str, tried: Sequence[Episode], level: float, label: str = "") -> Duel:
        """A stage's product, by its trials, against the policy as it stands: it takes that one's place unless it is worse."""
        won = [e.succeeded for e in tried]
        back = (said := duel(won, self.won)).worse(level)
        if tried:
            self.lines[stage] = f"{stage} {'was sent back' if back else 'stays'}: {said}"
        if not back:
            self.won, self.tried = won, label or self.tried
        return said

    def solved(self, stage: str, ended: Sequence[bool], left: int) -> bool:
        """Whether hardly anything fails any more, by how episodes ended since the trials before. left: rounds that this saves."""
        if (enough := (bound := lower(sum(ended), len(ended))) >= self.cfg.enough) and left:
            told = f"{sum(ended)} of the {len(ended)} episodes since the trials before succeeded, at least {100 * bound:.1f} % of all"
            self.lines[f"{stage}, solved"] = f"{stage} is the last one, {left} before its time: {told}"
        return enough

    def runoff(self, stage: str, newest: DiffusionPolicy, best: Mapping[str, Tensor], label: str, won: list[bool]) -> bool:
        """Whether the newest policy goes on, which solved fewer of the usual starts (`won`) than the weights that were best of several:
        who is chosen among several by the same starts is flattered by them, so both are tried from others."""
        other = newest.with_head("ddim")
        other.load_state_dict(best, strict=False)
        said = duel(*([e.succeeded for e in self.run(policy, f"{label}-{name}", len(won), others=True)]
                      for policy, name in ((newest, "newest"), (other, "best"))))
        self.won = self.won if (back := said.worse(self.cfg.back)) else won
        self.lines[stage] = f"{stage} {'was sent back' if back else 'stays'}, by other starts than the best was chosen by: {said}"
        return not back

    def gap(self, explored: Sequence[bool], won: Sequence[bool]) -> None:
        """Note how exploring and deployed trials of one policy ended."""
        self.gaps += 1
        self.cell.run.rewind("trials", self.gaps - 1)
        if explored and won:
            a, b = sum(explored) / len(explored), sum(won) / len(won)
            said = {"exploring": a, "deployed": b, "gap": a - b, "env_steps": self.cell.summary["env_steps"]}
            self.cell.run.log(self.gaps, said, "trials")

    def tell(self) -> None:
        """Say what was decided."""
        for stage, line in self.lines.items():
            self.cell.tell(stage, line)

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return copy.deepcopy({name: getattr(self, name) for name in self.PARTS})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        for name in self.PARTS:
            setattr(self, name, copy.deepcopy(state[name]))
