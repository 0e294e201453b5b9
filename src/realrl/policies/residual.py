"""A residual on a frozen policy (as in ResFiT, arXiv 2509.19301): what the base says, and a bounded correction of it that is learned,

    a = clip(a_base + scale tanh(u)),   u ~ N(mean, std) of the state and a_base.

The base's plans are carried out action by action, each corrected by what is seen then. The correction's last layer begins at zero, so that
the greedy policy is the base at first. A folder holds both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from realrl import config
from realrl.policies.gaussian import GaussianConfig, GaussianPolicy
from realrl.types import Array, Episode, Obs, Plan, RealrlError, Source, State, TaskSpec

if TYPE_CHECKING:
    from pathlib import Path

    from realrl.policies.diffusion import DiffusionPolicy

BASES = ("diffusion", "gaussian")
"""What a residual stands on: policies that remember nothing and are told nothing."""


@dataclass(frozen=True)
class _About:
    """What `ResidualPolicy.describe` says, with its types and bounds."""

    name: str
    base: dict[str, Any]
    scale: float
    config: GaussianConfig = field(default_factory=GaussianConfig)

    def __post_init__(self) -> None:
        config.check(self, scale="(0, 1]")
        if self.base.get("kind") not in BASES:
            raise config.OutOfBounds(_About, "base", f"must be a {' or '.join(BASES)} policy, got {config.shown(self.base.get('kind'))}")


class ResidualPolicy(GaussianPolicy):
    """One action at a time, [B, 1, A] in [-1, 1], from `observation.state` [B, H, D]; see `types.Policy`. Greedy: the Gaussian's middle;
    the base acts greedily always. scale: how far a number of an action may be moved, of 1; a gripper's command is a number like others.

    What learns it gives `encode` one key more, "base" [B, H, A], see `Observer`. Raises RealrlError for a base that sees more than the
    state, and for chunks.
    """

    KIND: Literal["residual"] = "residual"

    def __init__(self, base: DiffusionPolicy | GaussianPolicy, cfg: GaussianConfig, scale: float, *, name: str = "residual") -> None:
        if base.senses:
            raise RealrlError(f"a residual looks at the state alone, its base also at {', '.join(base.senses)}: name a base that sees none")
        if cfg.chunk > 1:
            raise RealrlError(f"a residual corrects one action at a time, got policy.chunk {cfg.chunk}: leave it out, the base's plans may "
                              "be as long as they are")
        super().__init__(cfg, base.obs_dim, base.action_dim, name=name)
        self.scale, self.n_obs = scale, max(cfg.n_obs, base.n_obs)
        self.base = base.requires_grad_(False)
        last = len(self.net.hidden)
        for part in ("weight", "bias"):
            self.net.get_parameter(f"{part}{last}").data.zero_()

    @property
    def cond_dim(self) -> int:
        """C, size of the condition."""
        return self.cfg.n_obs * self.obs_dim + self.action_dim

    def encode(self, obs: Mapping[str, Tensor]) -> Tensor:
        """The condition [B, C]: the observations one after the other, and what the base says now."""
        return torch.cat([self.scaled(obs["state"])[:, -self.cfg.n_obs:].flatten(1), obs["base"][:, -1]], -1)

    def sent(self, cond: Tensor, squashed: Tensor) -> Tensor:
        """The actions [B, A] of corrections [B, A] in [-1, 1]."""
        return (cond[:, -self.action_dim:] + self.scale * squashed).clamp(-1.0, 1.0)

    def meant(self, cond: Tensor, motion: Tensor) -> Tensor:
        """The corrections of actions [B, A]; beyond [-1, 1] for what it cannot reach."""
        return (motion - cond[:, -self.action_dim:]) / self.scale

    # -- acting -------------------------------------------------------------------------------------------------------------------

    def start(self, batch: int) -> State:
        """No plan of the base's, all of it carried out."""
        return {"plan": torch.zeros(batch, self.base.chunk, self.action_dim), "at": torch.full((batch,), self.base.chunk)}

    @torch.inference_mode()
    def act(self, obs: Obs, state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
        """One action each from observations (state: [B, H, D])."""
        said, state = self.follow(obs, state, rng)
        cond = self.encode({"state": torch.as_tensor(obs["state"], dtype=torch.float32, device=self.device),
                            "base": said[:, None].to(self.device)})
        mean, log_std, _ = self.distribution(cond)
        if not greedy:
            noise = np.stack([g.standard_normal(mean.shape[1], dtype=np.float32) for g in rng])
            mean = torch.addcmul(mean, log_std.exp(), torch.from_numpy(noise).to(self.device))
        return Plan(self.sent(cond, mean.tanh())[:, None].cpu().numpy()), state

    def follow(self, obs: Obs, state: State, rng: Sequence[np.random.Generator]) -> tuple[Tensor, State]:
        """(what the base says now [B, A], the memory after it): its plan's next action; of a new plan where that is used up."""
        plan, at = state["plan"].clone(), state["at"].clone()
        due = (at >= self.base.chunk).nonzero()[:, 0]
        if len(due):
            seen = {"state": obs["state"][due.numpy()][:, -self.base.n_obs:]}
            found, _ = self.base.act(seen, {}, greedy=True, rng=[rng[i] for i in due.tolist()])
            plan[due], at[due] = torch.from_numpy(found.action[:, :self.base.chunk]), 0
        return plan[torch.arange(len(at)), at], {"plan": plan, "at": at + 1}

    def interrupt(self, state: State, row: int) -> None:
        """Somebody else moved this robot: the base plans anew."""
        state["at"] = state["at"].index_fill(0, torch.tensor(row), self.base.chunk)  # not in place: it was made in inference mode

    # -- in a folder --------------------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """What `rebuild` needs, as plain JSON values."""
        return {"head": self.head, "name": self.name, "obs_dim": self.obs_dim, "action_dim": self.action_dim, "scale": self.scale,
                "config": config.to_dict(self.cfg), "base": {"kind": self.base.KIND, **self.base.describe()}}

    @classmethod
    def rebuild(cls, about: Mapping[str, Any], source: str) -> ResidualPolicy:
        """A policy as described, without its weights. source: the file's name, for errors. Raises RealrlError."""
        from realrl.policies.diffusion import DiffusionPolicy
        told = config.from_dict(_About, {k: v for k, v in about.items() if k in _About.__dataclass_fields__}, source=source)
        kind: type[DiffusionPolicy | GaussianPolicy] = DiffusionPolicy if told.base["kind"] == "diffusion" else GaussianPolicy
        policy = cls(kind.rebuild(told.base, f"{source}: its base"), told.config, told.scale, name=told.name)
        if (policy.obs_dim, policy.action_dim) != (about["obs_dim"], about["action_dim"]):
            raise RealrlError(f"{source}: it has {about['obs_dim']} observation and {about['action_dim']} action numbers, its base "
                              f"{policy.obs_dim} and {policy.action_dim}: the file is damaged, save the policy again")
        return policy


def residual_on(folder: str | Path, spec: TaskSpec, cfg: GaussianConfig, scale: float, *, name: str) -> ResidualPolicy:
    """An untaught residual on the policy in a folder. Raises RealrlError where that is none for the task, or not of `BASES`."""
    from realrl.policies.diffusion import DiffusionPolicy
    from realrl.policies.folder import check_fit, load_policy, refuse_recorded
    base, task = load_policy(folder)
    if not isinstance(base, DiffusionPolicy | GaussianPolicy) or base.KIND not in BASES:
        raise RealrlError(f"{folder}: a {base.KIND} policy, a residual needs a {' or '.join(BASES)} policy under it: name another")
    refuse_recorded(folder, spec)
    check_fit(base, spec, folder, task)
    return ResidualPolicy(base, cfg, scale, name=name)


class Observer:
    """What a learner keeps of the observations of episodes: the state; what its policy makes of pictures; and what a residual's base says,
    as the acting policy hears it, by the noise of the control loop's generators, and with a new plan after every step that somebody
    else did."""

    def __init__(self, policy: GaussianPolicy, noise_seed: int) -> None:
        """noise_seed: the stream's."""
        self._policy, self._noise = policy if isinstance(policy, ResidualPolicy) else None, noise_seed
        self._glance, self._cameras = policy.glance, list(policy.senses)

    def begin(self, obs: Obs, seed: int) -> Obs:
        """Of an episode's first observation."""
        if self._policy:
            self._rng, self._state = np.random.default_rng([self._noise, seed]), self._policy.start(1)
            self._frames: deque[Array] = deque([obs["state"]] * self._policy.n_obs, self._policy.n_obs)
        return self._keep(obs)

    def after(self, obs: Obs, source: int) -> Obs:
        """Of the one after a step, who did it."""
        if self._policy:
            self._frames.append(obs["state"])
            if source != Source.POLICY:
                self._policy.interrupt(self._state, 0)
        return self._keep(obs)

    def whole(self, episode: Episode) -> Obs:
        """Of a whole episode, each [T + 1, ...]."""
        if self._policy is None:
            return {"state": episode.obs["state"], **self._seen(episode.obs)}
        states = episode.obs["state"]
        kept = [self.begin({"state": states[0]}, episode.seed or 0),
                *(self.after({"state": state}, who) for state, who in zip(states[1:], episode.source, strict=True))]
        return {key: np.stack([frame[key] for frame in kept]) for key in kept[0]}

    def _keep(self, obs: Obs) -> Obs:
        if self._policy is None:
            return {"state": obs["state"], **{key: rows[0] for key, rows in self._seen({k: obs[k][None] for k in self._cameras}).items()}}
        said, self._state = self._policy.follow({"state": np.stack(self._frames)[None]}, self._state, [self._rng])
        self._rng.standard_normal(self._policy.action_dim, dtype=np.float32)  # the correction's, which is drawn after it
        return {"state": obs["state"], "base": said[0].numpy()}

    def _seen(self, obs: Obs) -> Obs:
        """What is kept of pictures [N, H, W, 3] a camera: "seen" [N, S]."""
        if self._glance is None:
            return {}
        parts = zip(*(torch.split(torch.from_numpy(np.ascontiguousarray(obs[key])), 64) for key in self._cameras), strict=True)
        return {"seen": torch.cat([self._glance(dict(zip(self._cameras, part, strict=True))) for part in parts]).cpu().numpy()}
