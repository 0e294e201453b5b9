"""Point clouds: DP3's PointNet (arXiv 2403.03954, section IV-A) that trains on the points that matter, and a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from realrl.nets.mlp import mlp
from realrl.types import RealrlError

TILE = 2048
"""Points in one pass without gradients: their widest features (2 MB) stay in a core's cache, and 64 clouds take half the time."""
SHARED = 16 * TILE
"""The same where several threads share a pass: on busy cores they wait for each other after every small operation."""
FITTED = 1_000_000
"""Points that `fit` looks at, at most."""


class PointNet(nn.Module):
    """An MLP on every point, the maximum of every channel over the points, and a projection. [B, N, C] -> [B, out].

    The order of the points and repeated points do not matter. `norm` puts a LayerNorm behind every linear layer of the per-point
    MLP, as DP3 does. Points (metres) are first moved by `centre` [3] and divided by `scale` [], buffers that `fit` sets and the
    weights carry; colours pass as they are. `bf16` computes the MLP in half the precision (autocast): for GPUs.

    Training computes gradients through the winners alone, the points that are the maximum of some channel: at most one a channel,
    about a hundred of 512. In the plain form (`winners=False`) the others' gradient is zero, and the MLP treats every point on its
    own, so value and gradient are the same; a step with 64 clouds was 1.7 to 4.2 times as fast on one thread of a CPU.
    """

    def __init__(self, channels: int = 3, out: int = 64, hidden: Sequence[int] = (64, 128, 256), norm: bool = True, *,
                 bf16: bool = False, winners: bool = True) -> None:
        super().__init__()
        if channels < 3:
            raise RealrlError(f"PointNet: a point of {channels} numbers has no position: give 3 (x, y, z) or 6 (and a colour)")
        self.channels, self.out, self.bf16, self.winners = channels, out, bf16, winners
        layers: list[nn.Module] = []
        for a, b in pairwise([channels, *hidden]):
            layers += [nn.Linear(a, b), *([nn.LayerNorm(b)] if norm else []), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(hidden[-1], out), nn.LayerNorm(out))
        self.centre: Tensor
        self.scale: Tensor
        self.register_buffer("centre", torch.zeros(3))
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def fit(self, points: Tensor) -> None:
        """Set `centre` and `scale` so that the box of the points [..., C >= 3] fills [-1, 1] along its longest side.

        The box is that of the inner 98 % along each axis, as a depth camera's stray points lie anywhere. Points that are not finite
        are ignored. Raises RealrlError when none is left.
        """
        xyz = points[..., :3].reshape(-1, 3)
        xyz = xyz[::max(1, len(xyz) // FITTED)]
        xyz = xyz[xyz.isfinite().all(-1)].sort(0).values
        if not len(xyz):
            raise RealrlError("PointNet.fit: not one finite point among the clouds: look at the recordings' `observation.pointcloud`")
        cut = len(xyz) // 100
        low, high = xyz[cut], xyz[len(xyz) - 1 - cut]
        self.centre.copy_((low + high) / 2)
        self.scale.copy_(((high - low).max() / 2).clamp(min=1e-3))

    def normalise(self, points: Tensor) -> Tensor:
        """Positions in the units of `fit`; further columns as they are. [..., C] -> [..., C]."""
        xyz = (points[..., :3] - self.centre) / self.scale
        return xyz if points.shape[-1] == 3 else torch.cat([xyz, points[..., 3:]], -1)

    def forward(self, points: Tensor) -> Tensor:
        """points: [B, N, C] -> [B, out]. Raises RealrlError when the points have another number of columns than the network."""
        if points.ndim != 3 or points.shape[-1] != self.channels or not points.shape[1]:
            raise RealrlError(f"point cloud of shape {list(points.shape)}: the network takes [batch, points >= 1, {self.channels}]; "
                              "record and train with the same colour setting")
        x = self.normalise(points)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            peak = self._peak(x)
        out: Tensor = self.head(peak.to(x.dtype))
        return out

    def _peak(self, x: Tensor) -> Tensor:
        """The maximum of every channel over the points: [B, N, C] -> [B, hidden[-1]]."""
        learns = torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.layers.parameters()))
        if not learns:
            return torch.cat([self.layers(part).amax(1) for part in self._tiles(x)])
        if self.winners:
            x = self._gather_winners(x)
        peak: Tensor = self.layers(x).max(1).values
        return peak

    @staticmethod
    def _tiles(x: Tensor) -> tuple[Tensor, ...]:
        tile = TILE if torch.get_num_threads() == 1 else SHARED
        return (x,) if x.is_cuda else torch.split(x, max(1, tile // x.shape[1]))

    def _gather_winners(self, x: Tensor) -> Tensor:
        """The points of each cloud that win some channel, filled up with others to the same number: [B, N, C] -> [B, W, C], W <= N."""
        with torch.no_grad():
            # The last ReLU does not change who is largest; where all are negative it lets no gradient through anyway.
            best = torch.cat([self.layers[:-1](part).max(1).indices for part in self._tiles(x)])
            wins = torch.zeros(x.shape[:2], device=x.device).scatter_(1, best, 1.0)
            most = min(best.shape[1], x.shape[1]) if x.is_cuda else int(wins.sum(1).max())  # a GPU would have to wait for the count
            index = wins.topk(most, 1, sorted=False).indices
        return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


class CloudDecoder(nn.Module):
    """A cloud from a latent vector, to be compared by `losses.chamfer`: [B, latent] -> [B, points, 3], in the units it is taught."""

    def __init__(self, latent: int, points: int = 128, hidden: Sequence[int] = (256, 256)) -> None:
        super().__init__()
        self.points = points
        self.net = mlp(latent, 3 * points, hidden)

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.net(z)
        return out.view(-1, self.points, 3)
