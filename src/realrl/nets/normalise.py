"""Normalisation of what networks see: of observations for a policy, of latents for the critics. Each is fitted once and then stays."""

from __future__ import annotations

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
