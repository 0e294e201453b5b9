"""A linear chunk from the states a policy sees, which its network corrects.

Recorded joint targets are nearly where the robot is and where it is going; a network that has to draw them whole spends its precision on
that and, with few demonstrations, loses to "keep still". Predicting what a fitted linear map leaves over is the plain remedy (residual
policies, arXiv 1812.03201; targets relative to the state at a chunk's beginning, as in pi0 and UMI, are its special case).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

FAR = 1e30  # as good as no limit


class Reference(nn.Module):
    """action = reference(state) + gain * scale * x, with x in [-1, 1] what the network draws.

    All of it is fitted once, on the demonstrations (`learn.reference`), and saved with the weights. begin, weight: [H*D, K, A] and bias:
    [K, A] of states as the robot reports them; `begin` follows a state wherever it goes, as who holds still does, `weight` no further
    than states were demonstrated, [low, high]: [H*D], for what a regression says beyond is made up. scale: [K, A], what the reference
    leaves over; gain: [A], how far each joint follows the network.
    """

    def __init__(self, features: int, chunk: int, action_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("low", torch.full((features,), -FAR))
        self.register_buffer("high", torch.full((features,), FAR))
        self.register_buffer("begin", torch.zeros(features, chunk, action_dim))
        self.register_buffer("weight", torch.zeros(features, chunk, action_dim))
        self.register_buffer("bias", torch.zeros(chunk, action_dim))
        self.register_buffer("scale", torch.ones(chunk, action_dim))
        self.register_buffer("gain", torch.ones(action_dim))
        self.mean: Tensor
        self.low: Tensor
        self.high: Tensor
        self.begin: Tensor
        self.weight: Tensor
        self.bias: Tensor
        self.scale: Tensor
        self.gain: Tensor

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("low", "high", "begin"):  # policies saved before there were these: one map, anywhere
            state_dict.setdefault(prefix + name, getattr(self, name))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, state: Tensor) -> Tensor:
        """The chunk [B, K, A] that states [B, H, D] suggest."""
        seen = state.flatten(1)
        inside = seen.maximum(self.low).minimum(self.high) - self.mean
        chunk: Tensor = torch.tensordot(seen - self.mean, self.begin, 1) + torch.tensordot(inside, self.weight, 1) + self.bias
        return chunk

    def encode(self, action: Tensor, state: Tensor) -> Tensor:
        """What the network should have drawn for a chunk [B, K, A] in [-1, 1], or for its first actions; as many, in [-1, 1]."""
        first = action.shape[1]
        x: Tensor = (action - self(state)[:, :first]) / self.scale[:first]
        return x.clamp(-1.0, 1.0)

    def decode(self, x: Tensor, state: Tensor) -> Tensor:
        """The chunk [B, K, A] in [-1, 1] that a drawn x [B, K, A] means, or the first actions of one."""
        first = x.shape[1]
        chunk: Tensor = self(state)[:, :first] + self.gain * self.scale[:first] * x
        return chunk.clamp(-1.0, 1.0)
