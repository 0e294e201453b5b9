"""Multilayer perceptrons: a plain one, an ensemble in one batched product, and RL-100's residual skip-net."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class EnsembleLinear(nn.Module):
    """E independent linear layers as one batched product. x: [E, B, I] -> [E, B, O]."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class EnsembleNorm(nn.Module):
    """LayerNorm whose affine parameters differ per member. x: [E, B, D]."""

    def __init__(self, members: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(members, 1, size))
        self.bias = nn.Parameter(torch.zeros(members, 1, size))

    def forward(self, x: Tensor) -> Tensor:
        normal: Tensor = nn.functional.layer_norm(x, x.shape[-1:])
        return normal * self.weight + self.bias


class EnsembleMLP(nn.Module):
    """E independent MLPs with LayerNorm and SiLU. x: [B, I] (shared) or [E, B, I] -> [E, B, O]."""

    def __init__(self, members: int, inputs: int, outputs: int, hidden: Sequence[int] = (256, 256), *, norm: bool = True) -> None:
        super().__init__()
        self.members = members
        sizes = [inputs, *hidden]
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [EnsembleLinear(members, a, b), *([EnsembleNorm(members, b)] if norm else []), nn.SiLU()]
        self.layers = nn.Sequential(*layers, EnsembleLinear(members, sizes[-1], outputs))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x.expand(self.members, *x.shape) if x.ndim == 2 else x)
        return y


def mlp(inputs: int, outputs: int, hidden: Sequence[int] = (256, 256), *, norm: bool = True) -> nn.Sequential:
    """A plain MLP [B, inputs] -> [B, outputs] with (LayerNorm and) SiLU."""
    sizes = [inputs, *hidden]
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), *([nn.LayerNorm(b)] if norm else []), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


def time_table(steps: int, size: int) -> Tensor:
    """Sinusoidal embeddings of the integers 0..steps-1: [steps, size]."""
    frequency = torch.exp(-math.log(10_000.0) * torch.arange(size // 2) / max(size // 2 - 1, 1))
    angle = torch.arange(steps)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer without the module call: at batch 1 these calls made up a sixth of the skip-net's time."""
    return nn.functional.linear(x, layer.weight, layer.bias)


class _Block(nn.Module):
    def __init__(self, size: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.inner = nn.Linear(size, size)
        self.outer = nn.Linear(size, size)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.outer.bias)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        y = nn.functional.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        y = nn.functional.silu(_linear(self.inner, y))
        if self.training:
            y = self.dropout(y)
        return x + _linear(self.outer, y)


class SkipNet(nn.Module):
    """RL-100's single-action backbone: a residual MLP over (noisy chunk, time, condition).

    x: [B, K, A]; t: [B] integers below `steps`; cond: [B, C] -> [B, K, A]. The whole chunk is one flat vector, so it also serves
    short chunks (K <= 8), where it is far faster than a U-Net.
    """

    def __init__(self, chunk: int, action: int, cond: int, *, steps: int, hidden: int = 256, blocks: int = 3,
                 dropout: float = 0.0, time: int = 16) -> None:
        super().__init__()
        self.shape = (chunk, action)
        self.register_buffer("table", time_table(steps, time), persistent=False)
        self.table: Tensor
        self.stem = nn.Linear(chunk * action + cond + time, hidden)
        self.blocks = nn.ModuleList(_Block(hidden, dropout) for _ in range(blocks))
        self.head = nn.Linear(hidden, chunk * action)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        h = _linear(self.stem, torch.cat([x.flatten(1), cond, self.table[t]], -1))
        for block in self.blocks:
            h = block(h)
        return _linear(self.head, nn.functional.silu(h)).view(-1, *self.shape)
