"""Whether a camera hangs upside down against training."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from realrl.types import Obs


def thumb(pictures: Tensor) -> Tensor:
    """Grey pictures of 8 x 8 in [0, 1]: uint8 [B, H, W, 3] -> [B, 8, 8]."""
    from realrl.nets.image import pixels  # who has no cameras need not read it
    return nn.functional.adaptive_avg_pool2d(pixels(pictures).mean(1), 8)


def mean_pictures(cameras: Sequence[str], frames: Collection[Mapping[str, Tensor]]) -> Tensor:
    """Of every camera the mean thumb [cameras, 8, 8] over all robots that have it, of up to 256 pictures each. frames: of every robot."""
    out = torch.zeros(len(cameras), 8, 8)
    for i, key in enumerate(cameras):
        if shown := [seen[key] for seen in frames if key in seen]:
            out[i] = torch.stack([thumb(x[:: max(1, len(x) // 256)]).mean(0) for x in shown]).mean(0)
    return out


def warn_of_turned(obs: Obs, cameras: Sequence[str], thumbs: Tensor) -> None:
    """Warn of a camera that shows training's mean picture upside down. obs: pictures [B, 1 or more, H, W, 3]; thumbs: [cameras, 8, 8]."""
    for key, mean in zip(cameras, thumbs, strict=True):
        if key in obs and obs[key].ndim == 5 and float(mean.std()) > 0:
            live = thumb(torch.as_tensor(obs[key][:, 0], device=thumbs.device)).mean(0)
            right, turned = (float(torch.corrcoef(torch.stack([x.flatten(), mean.flatten()]))[0, 1]) for x in (live, live.flip(0, 1)))
            if turned > right + 0.2:
                warnings.warn(f"{key}: the picture is upside down against training (it resembles the mean picture {turned:.2f} when "
                              f"turned, {right:.2f} as it is): turn the camera's picture by 180 degrees", stacklevel=4)
