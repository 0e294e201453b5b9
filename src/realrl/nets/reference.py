"""A linear chunk from the states a policy sees, which its network corrects.

Recorded joint targets are nearly where the robot is and where it is going; a network that has to draw them whole spends its precision on
that and, with few demonstrations, loses to "keep still". Predicting what a fitted linear map leaves over is the plain remedy (residual
policies, arXiv 1812.03201; targets relative to the state at a chunk's beginning, as in pi0 and UMI, are its special case).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Reference(nn.Module):
    """action = reference(state) + gain * scale * x, with x in [-1, 1] what the network draws.

    All of it is fitted once, on the demonstrations (`learn.reference`), and saved with the weights. weight: [H*D, K, A] and bias: [K, A]
    of states as the robot reports them; scale: [K, A], what the reference leaves over; gain: [A], how far each joint follows the network.
    """

    def __init__(self, features: int, chunk: int, action_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("weight", torch.zeros(features, chunk, action_dim))
        self.register_buffer("bias", torch.zeros(chunk, action_dim))
        self.register_buffer("scale", torch.ones(chunk, action_dim))
        self.register_buffer("gain", torch.ones(action_dim))
        self.mean: Tensor
        self.weight: Tensor
        self.bias: Tensor
        self.scale: Tensor
        self.gain: Tensor

    def forward(self, state: Tensor) -> Tensor:
        """The chunk [B, K, A] that states [B, H, D] suggest."""
        chunk: Tensor = torch.tensordot(state.flatten(1) - self.mean, self.weight, 1) + self.bias
        return chunk

    def encode(self, action: Tensor, state: Tensor) -> Tensor:
        """What the network should have drawn for a chunk [B, K, A] in [-1, 1]; [B, K, A] in [-1, 1]."""
        x: Tensor = (action - self(state)) / self.scale
        return x.clamp(-1.0, 1.0)

    def decode(self, x: Tensor, state: Tensor) -> Tensor:
        """The chunk [B, K, A] in [-1, 1] that a drawn x [B, K, A] means."""
        chunk: Tensor = self(state) + self.gain * self.scale * x
        return chunk.clamp(-1.0, 1.0)
