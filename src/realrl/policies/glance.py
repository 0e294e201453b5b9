"""What is kept of a picture by learners that update many times a step and cannot afford a camera's tokens: what varies in them most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from realrl.types import RealrlError


class Glance(nn.Module):
    """A few numbers a camera, for learners that update many times a step: where its picture lies along the directions in which the pictures
    of demonstrations vary most, each of about unit deviation: uint8 [B, H, W, 3] each -> [B, cameras * size].

    Before that a frozen network has read it, up to an early map on a fine grid: a hand's last millimetres are in there. `fit` it once; then
    a frame's numbers never change, so that they are all that need be kept of it. The network comes with its package and is no part of
    the weights.
    """

    BLOCKS, GRID, CHANNELS = 5, 8, 40
    FRAMES = 2000  # so many at most are fitted to
    MOST = 5.0  # deviations: pictures unlike all demonstrations are no louder than that

    def __init__(self, senses: Mapping[str, tuple[int, ...]], size: int) -> None:
        """senses: camera -> [H, W, 3]. Raises RealrlError for what is no picture."""
        super().__init__()
        if wrong := [key for key in senses if not key.startswith("images.")]:
            raise RealrlError(f"observation {wrong[0]!r}: this policy looks at pictures or the state alone: train it with --sight.kind rgb "
                              "or state")
        self._senses, self._eyes = dict(senses), dict[str, nn.Module]()
        features = self.GRID ** 2 * self.CHANNELS
        self.mean: Tensor
        self.basis: Tensor
        self.register_buffer("mean", torch.zeros(len(senses), features))
        self.register_buffer("basis", torch.zeros(len(senses), features, size))

    @property
    def size(self) -> int:
        """Numbers of all cameras together."""
        return self.basis.shape[0] * self.basis.shape[2]

    @torch.no_grad()
    def forward(self, seen: Mapping[str, Tensor]) -> Tensor:
        parts = [(self._read(key, seen[key]) - mean) @ basis for key, mean, basis in zip(self._senses, self.mean, self.basis, strict=True)]
        return torch.cat(parts, -1).clamp(-self.MOST, self.MOST)

    @torch.no_grad()
    def fit(self, seen: Mapping[str, Tensor]) -> None:
        """To frames [N, H, W, 3] a camera, of which some, evenly chosen, stand for all."""
        for i, key in enumerate(self._senses):
            rows = torch.linspace(0, len(seen[key]) - 1, min(len(seen[key]), self.FRAMES)).long()
            features = torch.cat([self._read(key, part) for part in torch.split(seen[key][rows], 64)])
            self.mean[i] = features.mean(0)
            self.basis[i] = directions(features - self.mean[i], self.basis.shape[2])

    def _read(self, key: str, pictures: Tensor) -> Tensor:
        """[B, F] of pictures [B, H, W, 3]."""
        self._open()
        found: Tensor = self._eyes[key].to(self.mean.device)(pictures.to(self.mean.device)).flatten(1)
        return found

    def _open(self) -> None:
        """Read the networks from their package, once. Raises RealrlError where it is missing."""
        from realrl.nets.image import ImageTokens
        for key, (height, width, _) in self._senses.items():
            if key not in self._eyes:
                self._eyes[key] = ImageTokens(height, width, blocks=self.BLOCKS, grid=self.GRID)

    def _load_from_state_dict(self, *state: Any) -> None:
        super()._load_from_state_dict(*state)
        if not self.mean.is_meta:  # nor is it a sketch, which never looks
            self._open()


def directions(x: Tensor, size: int, floor: float = 0.01) -> Tensor:
    """The `size` directions [D, size] in which rows x [N, D], of mean 0, vary most, scaled so that x @ directions varies by 1 along each.
    Where it varies less than `floor` of the most, the direction is 0: that is noise."""
    values, vectors = torch.linalg.eigh((x @ x.T).double())  # of N x N: fewer rows than features
    values, vectors = values.flip(0)[:size].clamp(min=0), vectors.flip(1)[:, :size]
    scale = torch.where(values > floor ** 2 * values[0].clamp(min=1e-12), math.sqrt(len(x)) / values.clamp(min=1e-12), 0.0)
    found = x.new_zeros(x.shape[1], size)
    found[:, :len(values)] = x.T @ (vectors * scale).to(x.dtype)
    return found
