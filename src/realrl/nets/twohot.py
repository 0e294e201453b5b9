"""Numbers of any size as targets of networks: flattened by symlog, or as a distribution over bins (DreamerV3, arXiv 2301.04104)."""

from __future__ import annotations

import torch
from torch import Tensor


def symlog(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|): large numbers made small, small ones left alone (DreamerV3, arXiv 2301.04104, eq. 9)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """The inverse of `symlog`."""
    return x.sign() * x.abs().expm1()


def symexp_bins(count: int, reach: float = 20.0) -> Tensor:
    """The numbers [count] that a two-hot code stands on: symexp of even steps from -reach to reach, exactly symmetric about 0.
    Raises ValueError for an even count, which has no middle."""
    if count % 2 == 0:
        raise ValueError(f"{count} bins have no middle: take an odd number")
    half = symexp(torch.linspace(-reach, 0.0, count // 2 + 1, dtype=torch.float64)).float()
    return torch.cat([half, -half[:-1].flip(0)])


def twohot_mean(logits: Tensor, bins: Tensor) -> Tensor:
    """The mean [...] of a distribution [..., N] over bins [N]; both sides are taken off each other from the middle outwards, so that an
    even one has the mean 0 exactly."""
    half = len(bins) // 2
    low, _, high = torch.split_with_sizes(logits.float().softmax(-1), [half, 1, half], -1)
    return ((high - low.flip(-1)) * bins[half + 1:]).sum(-1)


def twohot_loss(logits: Tensor, bins: Tensor, *targets: Tensor) -> Tensor:
    """Cross-entropy [...] of a distribution [..., N] with the two-hot code of numbers [...]: all weight on the two neighbouring bins, so
    that their mean is the number (DreamerV3, eq. 10). Beyond the outermost bins the code is theirs. Of several targets the sum."""
    target = torch.stack(targets, -1).clamp(bins[0], bins[-1])
    above = torch.searchsorted(bins, target).clamp(1, len(bins) - 1)
    low, high = bins[above - 1], bins[above]
    share = (target - low) / (high - low)
    below, beyond = logits.float().log_softmax(-1).gather(-1, torch.cat([above - 1, above], -1)).chunk(2, -1)
    return -torch.lerp(below, beyond, share).sum(-1)
