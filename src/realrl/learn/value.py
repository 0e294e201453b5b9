"""Values as distributions over bins, and Recap's value of being somewhere in a task (pi*0.6, arXiv 2511.14759, section IV-A).

A step costs 1, success costs nothing more, failure costs as much as there is: R_t = -(steps still to do) / (steps a task may take), in
[-1, 0], and -1 in all of a failed episode. A network says how likely each of 201 bins of it is; cross-entropy on what happened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from realrl.config import check
from realrl.learn.fit import generator
from realrl.losses import spearman
from realrl.nets.mlp import EnsembleMLP
from realrl.types import Array, Episode


class Bins:
    """`count` values evenly from `low` to `high`, and distributions over them."""

    def __init__(self, low: float, high: float, count: int) -> None:
        self.low, self.high, self.count = low, high, count

    def place(self, x: Tensor) -> Tensor:
        """Where values lie among the bins, [...] in 0..count-1, those beyond the ends at the ends."""
        return ((x - self.low) / (self.high - self.low) * (self.count - 1)).clamp(0, self.count - 1)

    def nearest(self, x: Tensor) -> Tensor:
        """The number of the nearest bin, [...]."""
        return self.place(x).round().long()

    def mean(self, logits: Tensor) -> Tensor:
        """The mean [...] of distributions [..., count]."""
        return logits.softmax(-1) @ torch.linspace(self.low, self.high, self.count, device=logits.device)


BINS = Bins(-1.0, 0.0, 201)


@dataclass(frozen=True)
class ValueConfig:
    """The value network and its fit."""

    members: int = 3
    """Networks; the least of their values counts, so that one that is wrong praises nobody."""
    hidden: tuple[int, ...] = (128, 128)
    """Widths of their layers."""
    steps: int = 600
    """Gradient steps at most."""
    batch: int = 256
    """Steps of episodes per gradient step."""
    lr: float = 5e-4
    """Learning rate of AdamW."""
    decay: float = 1e-2
    """Weight decay."""
    noise: float = 0.1
    """Standard deviation of what is added to its inputs in the fit, of theirs: without, it remembers episodes by their starts."""
    held_out: float = 0.2
    """Share of the episodes that the fit does not see: it ends with the weights that told most about these."""
    every: int = 50
    """Gradient steps between two looks at them."""

    def __post_init__(self) -> None:
        check(self, members="[1, 100]", hidden="[1, 16384]", steps="[1, 1e9]", batch="[1, 1e6]", lr="(0, 1]", decay="[0, 1]",
              noise="[0, 10]", held_out="(0, 0.9]", every="[1, 1e9]")


class Value(nn.Module):
    """What being somewhere in a task is worth: [B, D] of a state under an instruction -> logits [members, B, 201]. Without an indicator:
    it speaks of what was done, not of what could be."""

    def __init__(self, cfg: ValueConfig, inputs: int) -> None:
        super().__init__()
        self.net = EnsembleMLP(cfg.members, inputs, BINS.count, cfg.hidden)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out

    @torch.no_grad()
    def value(self, x: Tensor) -> Tensor:
        """[B], the least that a member says."""
        return BINS.mean(self(x)).amin(0)


def returns(episode: Episode, limit: int) -> Array:
    """R_t [T] of an episode of a task that may take `limit` steps. One that nobody says the end of counts as failed."""
    steps = len(episode)
    if not episode.succeeded:
        return np.full(steps, -1.0, np.float32)
    left: Array = -np.arange(steps - 1, -1, -1) / limit
    return left.clip(-1.0).astype(np.float32)


def advantages(value: Array, target: Array, limit: int, ahead: int | None) -> Array:
    """A_t [T] of an episode. value, target: V and R [T]; ahead: N steps after which V is asked, None for the end of the episode.

    N steps of -1 each and the value of where they lead, less the value of where they began; past the end the return itself.
    """
    out: Array = target - value
    if ahead is not None and ahead < len(value):
        out = out.copy()
        out[:-ahead] = value[ahead:] - ahead / limit - value[:-ahead]
    return out


class ValueFit:
    """Cross-entropy on returns; ends with the weights that were best on held-out episodes. See `learn.fit.Fit`.

    x: [N, D]; target: [N] returns; episode: [N] which one; before: of episodes that were in an earlier fit of these weights, whether it
    held them out. They stay on their side: weights that learned from an episode know what becomes of it.
    """

    def __init__(self, value: Value, cfg: ValueConfig, x: Tensor, target: Tensor, episode: Tensor, *, seed: int,
                 before: Mapping[int, bool] | None = None) -> None:
        self.value, self.cfg, self.x, self.target, self.episode, self.seed = value, cfg, x, target, episode, seed
        count, before = int(episode.max()) + 1, before or {}
        new = [i for i in np.random.default_rng(seed).permutation(count).tolist() if i not in before]
        new = new[:max(1, round(cfg.held_out * len(new)))]
        self.chosen = [*(i for i, held in before.items() if held), *new][:count - 1]  # one at least is learned from
        back = torch.isin(episode.cpu(), torch.tensor(self.chosen, dtype=torch.int64))
        self.fitted, self.held = (~back).nonzero().flatten(), back.nonzero().flatten()
        self.optimiser = torch.optim.AdamW(value.parameters(), lr=cfg.lr, weight_decay=cfg.decay, fused=True)
        self.step, self.steps, self.best_loss = 0, cfg.steps, math.inf
        self.best: dict[str, Tensor] = {k: v.clone() for k, v in value.state_dict().items()}

    def update(self) -> dict[str, Tensor]:
        """One gradient step; every `every` of them a look at what is held out."""
        random = generator(self.seed, "value", self.step)
        rows = self.fitted[torch.randint(len(self.fitted), (self.cfg.batch,), generator=random)].to(self.x.device)
        seen = self.x[rows] + self.cfg.noise * torch.randn(len(rows), self.x.shape[1], generator=random).to(self.x.device)
        loss = self.entropy(rows, seen).mean()
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.step += 1
        if self.step % self.cfg.every == 0 and len(self.held):
            with torch.no_grad():
                found = float(self.entropy(self.held.to(self.x.device)).mean())
            if found < self.best_loss:
                self.best_loss, self.best = found, {k: v.clone() for k, v in self.value.state_dict().items()}
        return {"value_loss": loss.detach()}

    def entropy(self, rows: Tensor, x: Tensor | None = None) -> Tensor:
        """-log p of the bins that happened, [members, B]. x: other inputs [B, D] for these rows."""
        logits = self.value(self.x[rows] if x is None else x)
        target = BINS.nearest(self.target[rows]).expand(len(logits), -1)
        return nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(target.shape)

    @torch.no_grad()
    def quality(self) -> dict[str, float]:
        """On the held-out episodes: cross-entropy (log 201 = 5.30 for who knows nothing), rank correlation of value and return, over all
        and the mean within those that succeeded (does it know how far it is?), and the chance that a success's mean value is above a
        failure's (does it know what will fail?); 0 and 0.5 where there are none."""
        rows = self.held if len(self.held) else self.fitted
        x, target, which = self.x[rows.to(self.x.device)], self.target[rows.to(self.x.device)].cpu(), self.episode[rows]
        found = self.value.value(x).cpu()
        some = slice(None, None, 1 + len(rows) // 1000)
        of = [(found[which == e], target[which == e]) for e in sorted(set(which.tolist()))]
        good = [v.mean() for v, r in of if r[-1] > -1]
        bad = [v.mean() for v, r in of if r[-1] <= -1]
        above = float((torch.stack(good)[:, None] > torch.stack(bad)).float().mean()) if good and bad else 0.5
        within = [spearman(v.tolist(), r.tolist()) for v, r in of if r[-1] > -1 and len(r) > 1]
        return {"entropy": float(self.entropy(rows.to(self.x.device)).mean()), "uniform": math.log(BINS.count),
                "spearman": spearman(found[some].tolist(), target[some].tolist()) if len(rows) > 1 else 0.0,
                "spearman_within": sum(within) / max(len(within), 1), "success_above_failure": above, "held_out": float(len(rows))}

    def validate(self) -> dict[str, float]:
        """The best cross-entropy so far on what is held out."""
        return {"value_held_out": self.best_loss} if math.isfinite(self.best_loss) else {}

    def finish(self) -> None:
        """Back to the best weights."""
        if math.isfinite(self.best_loss):
            self.value.load_state_dict(self.best)
        self.value.eval()

    def state_dict(self) -> dict[str, Any]:
        """Weights, the best ones, optimiser and step."""
        return {"value": self.value.state_dict(), "best": self.best, "best_loss": self.best_loss, "optimiser": self.optimiser.state_dict(),
                "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.value.load_state_dict(state["value"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.best, self.best_loss, self.step = dict(state["best"]), float(state["best_loss"]), int(state["step"])


def threshold(advantage: Array, positive: float) -> float:
    """The advantage that this share of what is given is above."""
    return float(np.quantile(advantage, 1 - positive))


def column(parts: Sequence[Array]) -> Array:
    """Per-step arrays of episodes one after the other."""
    return np.concatenate(list(parts)) if parts else np.zeros(0, np.float32)
