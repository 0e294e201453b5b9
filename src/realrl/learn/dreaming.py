"""What a learner in dreams keeps beside its networks: its optimiser, and the states that were there when it last looked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from realrl.nets.rssm import Latent, RSSMConfig
from realrl.types import Segment


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
        norms = zip(torch._foreach_norm(ps), torch._foreach_norm(gs), strict=True)
        gs = list(torch._foreach_mul(gs, [(self._clip * p.clamp(min=self.FLOOR) / g.clamp(min=1e-12)).clamp(max=1.0) for p, g in norms]))
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
    """The states that observations had when they were last looked at, by their number in the replay."""

    def __init__(self, cfg: RSSMConfig, place: torch.device) -> None:
        self._classes = cfg.classes
        self.deter = torch.zeros(1024, cfg.deter, dtype=torch.float16, device=place)
        self.code = torch.zeros(1024, cfg.stoch, dtype=torch.uint8, device=place)
        self.known = torch.zeros(1024, dtype=torch.bool, device=place)

    def _reach(self, count: int) -> None:
        """Make room for so many."""
        while len(self.known) < count:
            self.deter, self.code, self.known = (_doubled(x) for x in (self.deter, self.code, self.known))

    def put(self, s: Segment, states: Latent) -> None:
        """Keep the states [T + 1, B, ...] of stretches."""
        there = torch.cat([torch.ones_like(s.valid[:1]), s.valid])
        frame = s.frame[there]
        self._reach(int(frame.max()) + 1)
        self.deter[frame] = states.deter[there].to(torch.float16)
        self.code[frame] = states.stoch[there].view(len(frame), -1, self._classes).argmax(-1).to(torch.uint8)
        self.known[frame] = True

    def get(self, frame: Tensor) -> tuple[Latent, Tensor]:
        """(states [B, ...], which of them are known [B])."""
        self._reach(int(frame.max()) + 1)
        codes = nn.functional.one_hot(self.code[frame].long(), self._classes)
        return Latent(self.deter[frame].float(), codes.flatten(-2).float()), self.known[frame]

    def state_dict(self) -> dict[str, Any]:
        """All of it, up to the last one known."""
        count = int(self.known.nonzero().max()) + 1 if bool(self.known.any()) else 0
        return {"deter": self.deter[:count].clone(), "code": self.code[:count].clone(), "known": self.known[:count].clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._reach(count := len(state["known"]))
        self.known.zero_()
        for mine, name in ((self.deter, "deter"), (self.code, "code"), (self.known, "known")):
            mine[:count] = state[name]


def _doubled(rows: Tensor) -> Tensor:
    """Rows with as many zeros behind them. (Under autocast a CPU does not concatenate halves.)"""
    more = rows.new_zeros(2 * len(rows), *rows.shape[1:])
    more[:len(rows)] = rows
    return more
