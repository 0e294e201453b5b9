"""What a flow policy looks with: a frozen network a camera, and whether a camera hangs upside down against training."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from realrl.types import Obs, RealrlError


def eyes_of(senses: Mapping[str, tuple[int, ...]], fetch: bool) -> nn.ModuleDict:
    """A frozen network a camera. fetch: whether its weights are read from their package. Raises RealrlError for what is no picture."""
    if not senses:
        return nn.ModuleDict()
    from realrl.nets.image import ImageTokens  # who has no cameras need not read it
    if wrong := [key for key in senses if not key.startswith("images.")]:
        raise RealrlError(f"observation {wrong[0]!r}: a flow policy looks at pictures: train it with --sight.kind rgb or state")
    return nn.ModuleDict({key.replace(".", "-"): ImageTokens(shape[0], shape[1], fetch) for key, shape in senses.items()})


def thumb(pictures: Tensor) -> Tensor:
    """Grey pictures of 8 x 8 in [0, 1]: uint8 [B, H, W, 3] -> [B, 8, 8]."""
    from realrl.nets.image import pixels
    return nn.functional.adaptive_avg_pool2d(pixels(pictures).mean(1), 8)


def warn_of_turned(obs: Obs, cameras: Sequence[str], thumbs: Tensor) -> None:
    """Warn of a camera that shows the training's mean picture upside down. obs: pictures [B, 1 or more, H, W, 3]; thumbs: [cameras, 8, 8]
    of training."""
    for key, mean in zip(cameras, thumbs, strict=True):
        if key in obs and obs[key].ndim == 5 and float(mean.std()) > 0:
            live = thumb(torch.as_tensor(obs[key][:, 0], device=thumbs.device)).mean(0)
            right, turned = (float(torch.corrcoef(torch.stack([x.flatten(), mean.flatten()]))[0, 1]) for x in (live, live.flip(0, 1)))
            if turned > right + 0.2:
                warnings.warn(f"{key}: the picture is upside down against training (it resembles the mean picture {turned:.2f} when "
                              f"turned, {right:.2f} as it is): turn the camera's picture by 180 degrees", stacklevel=4)
