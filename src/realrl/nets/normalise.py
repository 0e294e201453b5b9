"""Observation normalisation, fitted once on the demonstrations and then part of the policy for good."""

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
