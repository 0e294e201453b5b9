"""Normalisation of what networks see: of observations for a policy, of latents for the critics. Each is fitted once and then stays."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Normaliser(nn.Module):
    """(x - mean) / std per feature, clipped to +-`limit`. x: [..., D].

    Fitted on the demonstrations only: if it moved with new data, every likelihood ratio against an older policy would be
    wrong. Features that hardly vary (std < floor) are only centred, so that noise in them is not blown up.
    """

    def __init__(self, size: int, *, floor: float = 1e-2, limit: float = 5.0) -> None:
        super().__init__()
        self.floor, self.limit = floor, limit
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """x: [N, D]."""
        self.mean.copy_(x.mean(0))
        self.std.copy_(x.std(0, unbiased=False).clamp(min=self.floor))

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.mean) / self.std).clamp(-self.limit, self.limit)


class Scaler(nn.Module):
    """(x - middle) * gain per feature, for what learns from far more than it is fitted on. x: [..., D]; does nothing before `fit`.

    A robot that practises goes where no demonstration went, so that nothing is clipped, and features of a size that networks learn from
    stay as they are, see `SOUND`. Metres of a table's width are not, nor are newtons: the deviation of those is brought to 0.3 or to 1, by
    no more than `MOST`. What a checkpoint of before does not hold is as before `fit`.
    """

    SOUND, TINY, HUGE = (0.05, 2.0), 0.3, 1.0
    MOST = 100.0

    def __init__(self, size: int) -> None:
        super().__init__()
        self.middle: Tensor
        self.gain: Tensor
        self.register_buffer("middle", torch.zeros(size))
        self.register_buffer("gain", torch.ones(size))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """x: [N, D]."""
        std, (low, high) = x.std(0, unbiased=False), self.SOUND
        gain = (torch.where(std < low, self.TINY, self.HUGE) / std).clamp(max=self.MOST)
        sound = (std >= low) & (std <= high)
        self.gain.copy_(torch.where(sound, 1.0, gain))
        self.middle.copy_(torch.where(sound, 0.0, x.mean(0)))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.middle) * self.gain

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        state.setdefault(prefix + "middle", torch.zeros_like(self.middle))
        state.setdefault(prefix + "gain", torch.ones_like(self.gain))
        super()._load_from_state_dict(state, prefix, *rest)


class Whitener(nn.Module):
    """Latents along their principal axes, each of about unit variance: x [..., D] -> [..., D]; nothing is done to it before `fit`.

    An encoder's latents crowd along a few directions, and a critic is slow to find what the faint ones say. Directions fainter
    than `floor` of the strongest are not raised further, or noise would be.
    """

    def __init__(self, size: int, *, floor: float = 0.02) -> None:
        super().__init__()
        self.floor = floor
        self.mean: Tensor
        self.axes: Tensor
        self.fitted: Tensor
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("axes", torch.eye(size))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """x: [N, D]; the first time only: what was learned behind it would no longer hold."""
        if self.fitted:
            return
        values, axes = torch.linalg.eigh(torch.cov(x.double().T))
        spread = values.clamp(min=0).sqrt()
        self.mean.copy_(x.mean(0))
        self.axes.copy_(axes / (spread + self.floor * spread[-1]).clamp(min=1e-12))
        self.fitted.fill_(True)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) @ self.axes
