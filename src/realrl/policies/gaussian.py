"""A Gaussian policy over chunks: what the diffusion policy is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from realrl.nets.mlp import mlp
from realrl.nets.normalise import Normaliser
from realrl.policies.diffusion import PolicyConfig
from realrl.types import Obs, Plan, State


class GaussianPolicy(nn.Module):
    """tanh-free diagonal Gaussian over chunks, the policy class of plain IQL (for comparison). See `types.Policy`."""

    def __init__(self, cfg: PolicyConfig, obs_dim: int, action_dim: int, *, name: str = "gaussian") -> None:
        super().__init__()
        self.cfg, self.obs_dim, self.action_dim, self.name = cfg, obs_dim, action_dim, name
        self.chunk, self.n_obs = cfg.chunk, cfg.n_obs
        self.normaliser = Normaliser(obs_dim)
        self.trunk = mlp(cfg.n_obs * obs_dim, cfg.chunk * action_dim, (cfg.hidden,) * cfg.blocks)
        self.log_std = nn.Parameter(torch.full((cfg.chunk, action_dim), -1.0))

    def encode(self, obs: dict[str, Tensor]) -> Tensor:
        """[B, H, D] -> [B, H*D]."""
        out: Tensor = self.normaliser(obs["state"]).flatten(1)
        return out

    def distribution(self, cond: Tensor) -> torch.distributions.Normal:
        """Action distribution [B, K, A]."""
        mean = self.trunk(cond).view(-1, self.chunk, self.action_dim).tanh()
        return torch.distributions.Normal(mean, self.log_std.clamp(-4.0, 1.0).exp().expand_as(mean))

    def start(self, batch: int) -> State:
        """No memory."""
        return {}

    @torch.inference_mode()
    def act(self, obs: Obs, state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
        """The mean when greedy, a sample otherwise."""
        dist = self.distribution(self.encode({"state": torch.as_tensor(obs["state"], dtype=torch.float32)}))
        action = dist.mean
        if not greedy:
            noise = np.stack([g.standard_normal((self.chunk, self.action_dim), dtype=np.float32) for g in rng])
            action = action + dist.stddev * torch.from_numpy(noise)
        return Plan(action.clamp(-1.0, 1.0).numpy()), state
