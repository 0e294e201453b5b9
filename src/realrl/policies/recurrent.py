"""A policy that remembers: the acting half of a world model. What is seen goes into the recurrent state, and an actor looks at that alone.

Its memory is passed by hand (`types.Policy`): the latent state, the action before, and a random action that is held for a while, with
which it explores before it has learned anything (`wander`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from realrl import config
from realrl.nets.rssm import RSSM, Encoder, Latent, RSSMConfig, drawn, head
from realrl.types import Array, Obs, Plan, RealrlError, State

LEAST = 0.1
"""The smallest deviation of a continuous action."""


@dataclass(frozen=True)
class RecurrentConfig:
    """A policy with a world model's memory."""

    rssm: RSSMConfig = field(default_factory=RSSMConfig)
    """Sizes."""
    hold: tuple[int, int] = (10, 30)
    """Steps that a random action is held at first, from least to most: what changes at every step gets a robot nowhere. Half of all joints
    are told to go to one of their ends. Choices are drawn anew at every step."""

    def __post_init__(self) -> None:
        config.check(self, hold="[1, 10000]")
        if len(self.hold) != 2 or self.hold[0] > self.hold[1]:
            raise config.OutOfBounds(RecurrentConfig, "hold", f"must be two numbers, the least first, got {config.shown(self.hold)}")


@dataclass(frozen=True)
class _About:
    """What `RecurrentPolicy.describe` says, with its types and bounds."""

    name: str
    obs_dim: int
    action_dim: int
    discrete: bool
    senses: dict[str, tuple[int, ...]]
    config: RecurrentConfig = field(default_factory=RecurrentConfig)

    def __post_init__(self) -> None:
        config.check(self, obs_dim="[1, 1e6]", action_dim="[1, 1e4]")


class RecurrentPolicy(nn.Module):
    """One action at a time, [B, 1, A], from `observation.state` [B, 1, D] and the cameras of `senses`. See `types.Policy`.

    discrete: an action is one of A, one-hot. Raises RealrlError for a sense that is no picture, or whose sides are no multiples of 16.
    """

    KIND: Literal["recurrent"] = "recurrent"
    head = "actor"  # what it deploys; it has no other product
    chunk = n_obs = 1

    def __init__(self, cfg: RecurrentConfig, obs_dim: int, action_dim: int, *, senses: Mapping[str, tuple[int, ...]] | None = None,
                 discrete: bool = False, name: str = "recurrent") -> None:
        super().__init__()
        self.cfg, self.obs_dim, self.action_dim, self.discrete, self.name = cfg, obs_dim, action_dim, discrete, name
        self.senses = {key: tuple(shape) for key, shape in (senses or {}).items()}
        for key, shape in self.senses.items():
            if not key.startswith("images.") or len(shape) != 3 or any(side % 16 or not side for side in shape[:2]):
                raise RealrlError(f"a recurrent policy sees pictures whose sides are multiples of 16, not {key} {list(shape)}: give "
                                  "--sight.kind rgb --sight.height 64 --sight.width 64")
        self.encoder = Encoder(cfg.rssm, obs_dim, self.senses)
        self.rssm = RSSM(cfg.rssm, self.encoder.size, action_dim)
        self.actor = head(cfg.rssm, action_dim if discrete else 2 * action_dim, 0.01)
        self.register_buffer("wander", torch.zeros(()))
        self.wander: Tensor

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.wander.device

    # -- the actor's distribution -------------------------------------------------------------------------------------------------

    def distribution(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Of the action at features [..., F]: mean and deviation, each [..., A]; discrete, log-chances [..., A], and nothing."""
        out = self.actor(feature).float()
        if self.discrete:
            mix = self.cfg.rssm.unimix
            return ((1 - mix) * out.softmax(-1) + mix / self.action_dim).log(), out[..., :0]
        mean, spread = out.chunk(2, -1)
        return mean.tanh(), (1 - LEAST) * (spread + 2).sigmoid() + LEAST

    def draw(self, told: tuple[Tensor, Tensor], noise: Tensor) -> Tensor:
        """An action [..., A] of a distribution. noise: [..., A], normal; discrete, exponential."""
        return drawn(told[0][..., None, :].detach().exp(), noise[..., None, :]) if self.discrete else torch.addcmul(told[0], told[1], noise)

    def logp(self, told: tuple[Tensor, Tensor], action: Tensor) -> tuple[Tensor, Tensor]:
        """(log-probability of actions [..., A], entropy), each [...]."""
        if self.discrete:
            return (told[0] * action).sum(-1), -(told[0].exp() * told[0]).sum(-1)
        mean, std = told
        log = std.log()
        return (-0.5 * ((action - mean) / std).square() - log - 0.9189385).sum(-1), (log + 1.4189385).sum(-1)

    # -- acting -------------------------------------------------------------------------------------------------------------------

    def start(self, batch: int) -> State:
        """An empty memory, and no random action under way."""
        like, latent = self.wander, self.rssm.start(batch)
        return {"deter": latent.deter, "stoch": latent.stoch, "action": like.new_zeros(batch, self.action_dim),
                "held": like.new_zeros(batch, self.action_dim), "left": like.new_zeros(batch)}

    @torch.no_grad()
    def act(self, obs: Obs, state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
        """One action each. Greedy: the distribution's middle; the latent state is drawn all the same. Raises RealrlError for observations
        of another shape."""
        if obs["state"].shape[1:] != (1, self.obs_dim):
            raise RealrlError(f"observation 'state' has shape {list(obs['state'].shape[1:])} but the policy was trained on "
                              f"[1, {self.obs_dim}] (history, features): use the task that it was trained with")
        seen = {key: torch.as_tensor(obs[key][:, -1]).to(self.device) for key in ("state", *self.senses)}
        cfg = self.cfg.rssm
        deter = self.rssm.step(Latent(state["deter"], state["stoch"]), self.rssm.act(state["action"]))
        noise = self._drawn([g.standard_exponential((cfg.stoch, cfg.classes), np.float32) for g in rng])
        stoch = drawn(self.rssm.posterior(deter, self.rssm.post_embed(self.encoder(seen))), noise)
        told = self.distribution(torch.cat([deter, stoch], -1))
        after = {"deter": deter, "stoch": stoch, "held": state["held"], "left": state["left"]}
        if self.wander > 0 and not greedy:
            action, after["held"], after["left"] = self._wandering(state, rng)
        elif greedy:
            action = nn.functional.one_hot(told[0].argmax(-1), self.action_dim).float() if self.discrete else told[0]
        else:
            draw = (np.random.Generator.standard_exponential if self.discrete else np.random.Generator.standard_normal)
            action = self.draw(told, self._drawn([draw(g, self.action_dim, np.float32) for g in rng]))
        action = action.clamp(-1.0, 1.0)
        return Plan(action.cpu().numpy()[:, None]), {**after, "action": action}

    def done(self, state: State, row: int, action: Array) -> None:
        """What one robot was really told to do [A]: its memory is of that, as what it was trained on is. (A choice is one-hot there.)"""
        told = torch.as_tensor(action, dtype=torch.float32).to(self.device)
        state["action"] = state["action"].clone()
        state["action"][row] = nn.functional.one_hot(told.argmax(), self.action_dim).float() if self.discrete else told

    def _wandering(self, state: State, rng: Sequence[np.random.Generator]) -> tuple[Tensor, Tensor, Tensor]:
        """(random actions, what is held, steps that are left of it)."""
        held, left = state["held"].clone(), state["left"].clone()
        for i, g in enumerate(rng):
            if left[i] <= 0:
                left[i] = 1.0 if self.discrete else float(g.integers(self.cfg.hold[0], self.cfg.hold[1] + 1))
                held[i] = self._drawn([np.eye(self.action_dim, dtype=np.float32)[g.integers(self.action_dim)] if self.discrete
                                       else g.uniform(-2, 2, self.action_dim).clip(-1, 1).astype(np.float32)])[0]
        return held, held, left - 1

    def _drawn(self, rows: Sequence[Array]) -> Tensor:
        return torch.from_numpy(np.stack(rows)).to(self.device)

    # -- in a folder --------------------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """What `rebuild` needs, as plain JSON values."""
        return {"head": self.head, "name": self.name, "obs_dim": self.obs_dim, "action_dim": self.action_dim, "discrete": self.discrete,
                "senses": {key: list(shape) for key, shape in self.senses.items()}, "config": config.to_dict(self.cfg)}

    @classmethod
    def rebuild(cls, about: Mapping[str, Any], source: str) -> RecurrentPolicy:
        """A policy as described, without its weights. source: the file's name, for errors. Raises RealrlError."""
        told = config.from_dict(_About, {k: v for k, v in about.items() if k in _About.__dataclass_fields__}, source=source)
        return cls(told.config, told.obs_dim, told.action_dim, senses=told.senses, discrete=told.discrete, name=told.name)
