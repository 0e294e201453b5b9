"""The squashed Gaussian of soft actor-critic: tanh(mean + std * noise), both from one network of the state.

Its weights are one `Stack`; BatchRenorm's statistics are buffers of it and go wherever the weights go.

Where an action's last number commands a gripper, it may be chosen by a critic of its own: the command of the highest value, always
(`realrl.learn.grasp` teaches it). That is part of the policy, and of its folder; the Gaussian then says the motions alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from realrl import config
from realrl.nets.normalise import Scaler
from realrl.nets.stack import Norm, Stack
from realrl.types import Obs, Plan, RealrlError, State

if TYPE_CHECKING:
    from realrl.policies.glance import Glance

LOG_STD = (-20.0, 2.0)  # bounds of the log-deviation before the squashing


@dataclass(frozen=True)
class GaussianConfig:
    """What a squashed Gaussian looks at, how far it plans, and its network."""

    chunk: int = 1
    """K, actions planned and executed per decision."""
    n_obs: int = 1
    """H, observations it sees."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of its ReLU layers."""
    norm: Norm = "none"
    """none; layer: LayerNorm before each ReLU; renorm: BatchRenorm of the input and after each ReLU, as in CrossQ."""
    warmup: int = 1000
    """Updates before BatchRenorm leans on what it has seen."""
    glance: int = 64
    """Numbers that are kept of a camera's picture, where it has cameras."""
    scaled: bool = False
    """Whether numbers of the state that are far too small or large to be learned from are brought to size, by the demonstrations."""

    def __post_init__(self) -> None:
        config.check(self, chunk="[1, 1000]", n_obs="[1, 1000]", hidden="[1, 16384]", warmup="[0, 1e9]", glance="[1, 1024]")
        if not 1 <= len(self.hidden) <= 20:
            raise config.OutOfBounds(GaussianConfig, "hidden", f"must have at least one layer and at most 20, got {len(self.hidden)}")


@dataclass(frozen=True)
class _About:
    """What `GaussianPolicy.describe` says, with its types and bounds."""

    name: str
    obs_dim: int
    action_dim: int
    config: GaussianConfig = field(default_factory=GaussianConfig)
    gripper: bool = False
    senses: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config.check(self, obs_dim="[1, 1e6]", action_dim="[1, 1e4]")
        if self.gripper and (self.action_dim < 2 or self.config.chunk > 1):
            raise config.OutOfBounds(_About, "gripper", "is commanded step by step and beside a motion: it needs chunk 1 and action_dim "
                                     f"2 or more, got {self.config.chunk} and {self.action_dim}")


def squash(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """(action tanh(u) [..., D], its log-density [...]) of u = mean + exp(log_std) * noise (arXiv 1801.01290, appendix C)."""
    u = mean + log_std.exp() * noise
    # log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)), which does not vanish where tanh is 1
    slope = 2 * (math.log(2) - u - nn.functional.softplus(-2 * u))
    return u.tanh(), (-0.5 * noise.square() - log_std - slope).sum(-1) - 0.5 * math.log(2 * math.pi) * u.shape[-1]


class GaussianPolicy(nn.Module):
    """A squashed Gaussian over chunks [B, K, A] in [-1, 1] from `observation.state` [B, H, D], and from the newest pictures of its cameras,
    if it has any, by a frozen network (`Glance`); see `types.Policy`. Greedy: its middle.

    gripper: whether `grasp`, values of the commands -1, 0 and 1, chooses an action's last number, greedy or not.
    """

    KIND: Literal["gaussian", "residual"] = "gaussian"
    head = "mean"  # what it deploys; it has no other product

    def __init__(self, cfg: GaussianConfig, obs_dim: int, action_dim: int, *, gripper: bool = False,
                 senses: Mapping[str, tuple[int, ...]] | None = None, name: str = "gaussian") -> None:
        super().__init__()
        self.senses = {key: tuple(shape) for key, shape in (senses or {}).items()}
        _About(name, obs_dim, action_dim, cfg, gripper, self.senses)  # its bounds
        self.cfg, self.obs_dim, self.action_dim, self.name = cfg, obs_dim, action_dim, name
        self.chunk, self.n_obs = cfg.chunk, cfg.n_obs
        self.gripper, self.moves = gripper, action_dim - gripper
        self.scaler = Scaler(obs_dim) if cfg.scaled else None
        self.glance: Glance | None = None
        if self.senses:
            from realrl.policies.glance import Glance  # who has no cameras need not read it
            self.glance = Glance(self.senses, cfg.glance)
        self.net = Stack(1, self.cond_dim, 2 * cfg.chunk * self.moves, cfg.hidden, norm=cfg.norm, warmup=cfg.warmup)
        if gripper:
            self.grasp = Stack(1, self.cond_dim, 3, cfg.hidden, norm="layer")

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def cond_dim(self) -> int:
        """C, size of the condition."""
        return self.n_obs * self.obs_dim + (self.glance.size if self.glance else 0)

    def encode(self, obs: Mapping[str, Tensor]) -> Tensor:
        """The condition [B, C]: the states one after the other, obs["state"] [B, H, D], and what is kept of the newest pictures, given as
        obs["seen"] [B, H, S] or else as themselves [B, H, ...]. Raises RealrlError on another shape."""
        state = self.scaled(obs["state"]).flatten(1)
        if self.glance is None:
            return state
        seen = obs["seen"][:, -1] if "seen" in obs else self.glance({key: obs[key][:, -1] for key in self.senses})
        return torch.cat([state, seen], -1)

    def scaled(self, state: Tensor) -> Tensor:
        """States [B, H, D] as the networks see them. Raises RealrlError on another shape."""
        if state.shape[1:] != (self.n_obs, self.obs_dim):
            raise RealrlError(f"observation 'state' has shape {list(state.shape[1:])} but the policy was trained on "
                              f"[{self.n_obs}, {self.obs_dim}] (history, features): use the task and n_obs it was trained with")
        return state if self.scaler is None else self.scaler(state)

    def distribution(self, cond: Tensor, p: dict[str, Tensor] | None = None, *,
                     train: bool = False) -> tuple[Tensor, Tensor, list[Tensor]]:
        """(mean, log-deviation, each [B, K*A] before the squashing, what `net.learn` takes). p: the parameters, its own by default."""
        out, found = self.net.run(cond, p, train=train)
        mean, log_std = out[0].chunk(2, -1)
        return mean, log_std.clamp(*LOG_STD), found

    def motion(self, action: Tensor) -> Tensor:
        """What of actions [B, K, A] the Gaussian says, [B, K*moves]."""
        return action[..., :self.moves].flatten(1)

    def sent(self, cond: Tensor, squashed: Tensor) -> Tensor:
        """The motions [B, K*moves] that the squashed Gaussian's numbers are: themselves."""
        return squashed

    def meant(self, cond: Tensor, motion: Tensor) -> Tensor:
        """The numbers of which `sent` makes these motions [B, K*moves]."""
        return motion

    def whole(self, cond: Tensor, motion: Tensor) -> Tensor:
        """Actions [B, K, A] of motions [B, K*moves]: with the gripper's command."""
        plan = motion.view(-1, self.chunk, self.moves)
        if not self.gripper:
            return plan
        command = self.grasp(cond)[0].argmax(-1) - 1
        return torch.cat([plan, command.to(plan.dtype).view(-1, 1, 1)], -1)

    def start(self, batch: int) -> State:
        """It remembers nothing."""
        return {}

    @torch.inference_mode()
    def act(self, obs: Obs, state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
        """Plans from observations (state: [B, H, D]; pictures: uint8 [B, H, ...])."""
        cond = self.encode({"state": torch.as_tensor(obs["state"], dtype=torch.float32, device=self.device),
                            **{key: torch.as_tensor(obs[key], device=self.device) for key in self.senses}})
        mean, log_std, _ = self.distribution(cond)
        if not greedy:
            noise = np.stack([g.standard_normal(mean.shape[1], dtype=np.float32) for g in rng])
            mean = torch.addcmul(mean, log_std.exp(), torch.from_numpy(noise).to(self.device))
        return Plan(self.whole(cond, mean.tanh()).cpu().numpy()), state

    def describe(self) -> dict[str, Any]:
        """What `rebuild` needs, as plain JSON values."""
        return {"head": self.head, "name": self.name, "obs_dim": self.obs_dim, "action_dim": self.action_dim, "gripper": self.gripper,
                "senses": {key: list(shape) for key, shape in self.senses.items()}, "config": config.to_dict(self.cfg)}

    @classmethod
    def rebuild(cls, about: Mapping[str, Any], source: str) -> GaussianPolicy:
        """A policy as described, without its weights. source: the file's name, for errors. Raises RealrlError."""
        told = config.from_dict(_About, {k: v for k, v in about.items() if k in _About.__dataclass_fields__}, source=source)
        return cls(told.config, told.obs_dim, told.action_dim, gripper=told.gripper, senses=told.senses, name=told.name)
