"""Augmentation of pictures and point clouds: pure functions whose randomness is the generator's alone.

The draws are made on the generator's device and then moved, so the same CPU generator gives the same result on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from realrl.types import RealrlError

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in brightness (ITU-R BT.601)."""


def random_shift(images: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    """Each picture moved by up to `pad` whole pixels each way, its border repeated (DrQ, arXiv 2004.13649, section 3.1).

    images: [B, H, W, C], or [B, H, W] depth, of any type. Returns the same shape and type.
    """
    move = _draw((2, len(images)), -pad, pad, generator).to(images.device)
    return _window(images, move[0], move[1], images.shape[1], images.shape[2])


def random_crop(images: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    """A window of height x width pixels from anywhere in each picture: [B, H, W, ...] -> [B, height, width, ...]. Any type.

    Raises RealrlError when the window is larger than the pictures.
    """
    room = images.shape[1] - height, images.shape[2] - width
    if min(room) < 0:
        raise RealrlError(f"random_crop: a window of {height} x {width} does not fit into pictures of {images.shape[1]} x "
                          f"{images.shape[2]}: make it smaller")
    top, left = (_draw((len(images),), 0, r, generator).to(images.device) for r in room)
    return _window(images, top, left, height, width)


def colour_jitter(images: Tensor, generator: torch.Generator, *, brightness: float = 0.3, contrast: float = 0.3,
                  saturation: float = 0.3) -> Tensor:
    """Brightness, contrast and saturation of each picture times a factor from [1 - x, 1 + x]: uint8 [B, H, W, 3] -> the same.

    Contrast is about the picture's mean brightness, saturation about each pixel's own. All three together are one 3 x 3 matrix and
    an offset per picture, rounded and clipped once at the end.
    """
    spread = torch.tensor([brightness, contrast, saturation], device=generator.device)
    factors = 1 + spread * (2 * torch.rand(len(images), 3, generator=generator, device=generator.device) - 1)
    bright, strong, vivid = factors.to(images.device)[..., None, None].unbind(1)
    x = images.flatten(1, 2).float()
    luma = torch.tensor(LUMA, device=images.device)
    to_grey = luma[:, None].expand(3, 3)
    matrix = bright * strong * (vivid * torch.eye(3, device=images.device) + (1 - vivid) * to_grey)
    mean = (x.mean(1) @ luma)[:, None, None]
    return torch.baddbmm(bright * (1 - strong) * mean, x, matrix).round_().clamp_(0, 255).to(torch.uint8).view(images.shape)


def point_jitter(points: Tensor, sigma: float, clip: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise of `sigma` metres, cut off at +-`clip`, on the positions; colours stay. points: [B, N, C >= 3] -> the same."""
    shape = (*points.shape[:-1], 3)
    noise = torch.randn(shape, generator=generator, device=generator.device).mul_(sigma).clamp_(-clip, clip)
    moved = points[..., :3] + noise.to(points)
    return moved if points.shape[-1] == 3 else torch.cat([moved, points[..., 3:]], -1)


def point_dropout(points: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Each point is dropped with probability `share`: [B, N, C] -> the same shape.

    A dropped point becomes its cloud's first kept one, which a maximum over points does not see. At least one point is kept.
    """
    drop = (torch.rand(points.shape[:2], generator=generator, device=generator.device) < share).to(points.device)
    first = drop.to(torch.uint8).argmin(1)  # the first kept point; where none is kept, point 0
    kept = points.gather(1, first[:, None, None].expand(-1, 1, points.shape[2]))
    return torch.where(drop[..., None], kept, points)


def _draw(shape: tuple[int, ...], low: int, high: int, generator: torch.Generator) -> Tensor:
    """Whole numbers from low to high, both included."""
    return torch.randint(low, high + 1, shape, generator=generator, device=generator.device)


def _window(images: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """The window of each picture [B, H, W, ...] whose corner is at (top [B], left [B]); beyond the border its pixels are repeated.

    Whole rows first and then pixels within rows: ten times faster on a CPU than one index over rows and columns.
    """
    if images.dtype == torch.uint16:  # torch can copy these but hardly index them
        return _window(images.view(torch.int16), top, left, height, width).view(torch.uint16)
    n, h, w = images.shape[:3]
    depth = images[0, 0, 0].numel()
    row = (top[:, None] + torch.arange(height, device=top.device)).clamp_(0, h - 1)
    column = (left[:, None] + torch.arange(width, device=top.device)).clamp_(0, w - 1)
    row = row + h * torch.arange(n, device=top.device)[:, None]
    rows = images.reshape(n * h, w * depth).index_select(0, row.flatten()).view(n, height, w * depth)
    value = (depth * column[..., None] + torch.arange(depth, device=top.device)).flatten(1)
    return rows.gather(2, value[:, None].expand(-1, height, -1)).view(n, height, width, *images.shape[3:])
