"""Conditional 1-D U-Net over an action chunk (Diffusion Policy, arXiv 2303.04137, section IV-A; RL-100's chunk backbone)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from realrl.nets.mlp import time_table


def _conv(inputs: int, outputs: int, kernel: int, groups: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2), nn.GroupNorm(groups, outputs), nn.Mish())


class _Residual(nn.Module):
    """Two convolutions with FiLM (scale and shift) from the condition in between. x: [B, C, K]; cond: [B, E]."""

    def __init__(self, inputs: int, outputs: int, cond: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.first = _conv(inputs, outputs, kernel, groups)
        self.second = _conv(outputs, outputs, kernel, groups)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(cond, 2 * outputs))
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        scale, shift = self.film(cond)[..., None].chunk(2, 1)
        y: Tensor = self.second(self.first(x) * (1 + scale) + shift) + self.skip(x)
        return y


class _Level(nn.ModuleList):
    """Residual blocks in a row under one condition."""

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        for block in self:
            x = block(x, cond)
        return x


class UNet1d(nn.Module):
    """x: [B, K, A]; t: [B] integers below `steps`; cond: [B, C] -> [B, K, A]. K may be any length: it is padded inside."""

    def __init__(self, action: int, cond: int, *, steps: int, sizes: Sequence[int] = (256, 512, 1024), kernel: int = 5,
                 groups: int = 8, time: int = 128) -> None:
        super().__init__()
        self.register_buffer("table", time_table(steps, time), persistent=False)
        self.table: Tensor
        self.multiple = 2 ** (len(sizes) - 1)
        self.embed = nn.Sequential(nn.Linear(time, 4 * time), nn.Mish(), nn.Linear(4 * time, time))
        width = time + cond
        pairs = list(zip([action, *sizes[:-1]], sizes, strict=True))
        block = functools.partial(_Residual, cond=width, kernel=kernel, groups=groups)
        self.down = nn.ModuleList(_Level([block(a, b), block(b, b)]) for a, b in pairs)
        self.shrink = nn.ModuleList(nn.Conv1d(b, b, 3, 2, 1) for b in sizes[:-1])
        self.middle = _Level([block(sizes[-1], sizes[-1]), block(sizes[-1], sizes[-1])])
        self.up = nn.ModuleList(_Level([block(2 * b, a), block(a, a)]) for a, b in reversed(pairs[1:]))
        self.grow = nn.ModuleList(nn.ConvTranspose1d(a, a, 4, 2, 1) for a, _ in reversed(pairs[1:]))
        self.last = nn.Sequential(_conv(sizes[0], sizes[0], kernel, groups), nn.Conv1d(sizes[0], action, 1))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        length = x.shape[1]
        h = nn.functional.pad(x.transpose(1, 2), (0, -length % self.multiple))
        cond = torch.cat([self.embed(self.table[t]), cond], -1)
        skips: list[Tensor] = []
        for level, blocks in enumerate(self.down):
            h = blocks(h, cond)
            skips.append(h)
            if level < len(self.shrink):
                h = self.shrink[level](h)
        h = self.middle(h, cond)
        for blocks, grow in zip(self.up, self.grow, strict=True):
            h = grow(blocks(torch.cat([h, skips.pop()], 1), cond))
        y: Tensor = self.last(h).transpose(1, 2)
        return y[:, :length]
