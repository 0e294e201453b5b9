"""The diffusion policy with its two products, DDIM chain and one step.

It holds its normaliser and its sampler, so a folder written by `policies.folder.save_policy` is all that a robot needs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from realrl import config
from realrl.generative.diffusion import Diffusion, DiffusionConfig, Distillation, DistillConfig, Sampler
from realrl.nets.encoder import WHOLE as FRAMES
from realrl.nets.encoder import Encoder, EncoderConfig
from realrl.nets.mlp import SkipNet
from realrl.nets.normalise import Normaliser
from realrl.nets.unet1d import UNet1d
from realrl.types import Array, Obs, Plan, RealrlError, State

if TYPE_CHECKING:
    from realrl.nets.reference import Reference

Head = Literal["ddim", "one-step"]
WHOLE = 4
"""A batch whose episodes have to repeat to the bit is filled up to a multiple of this: odd rows go through other routines on the CPU,
whose last bits differ, and an episode that is collected again after a kill, in other company, would not be the same."""


@dataclass(frozen=True)
class PolicyConfig:
    """What a diffusion policy looks at, how far it plans, and its network."""

    chunk: int = 4
    """K, actions planned and executed per decision; 1 = single-action control."""
    n_obs: int = 1
    """H, observations it sees (Meta-World's 39 numbers hold two frames already)."""
    net: Literal["skip", "unet"] = "skip"
    """skip: residual MLP, fast, for short chunks; unet: 1-D U-Net, for chunks of 8 and more."""
    hidden: int = 256
    """Width of the skip-net, or the U-Net's first level (doubled at each of three levels)."""
    blocks: int = 3
    """Residual blocks of the skip-net."""
    dropout: float = 0.0
    """Dropout of the skip-net, in imitation only."""
    reference: Literal["none", "linear"] = "none"
    """What the network's chunk is added to. none: nothing, the network draws the whole action (RL-100); linear: a linear map of the states
    it sees, fitted on the demonstrations, which is what few recordings of a robot in its own units need."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    """Noise schedule and sampler."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """What it makes of pictures or a point cloud, where the task has them."""

    def __post_init__(self) -> None:
        config.check(self, chunk="[1, 1000]", n_obs="[1, 1000]", hidden="[1, 16384]", blocks="[0, 200]", dropout="[0, 1]")
        if self.net == "unet" and self.hidden % 8:
            raise config.OutOfBounds(PolicyConfig, "hidden", f"must be a multiple of 8 in a U-Net, got {self.hidden}")


@dataclass(frozen=True)
class _About:
    """What `DiffusionPolicy.describe` says, with its types and bounds, so that a file is believed only where it makes sense."""

    head: Head
    name: str
    obs_dim: int
    action_dim: int
    config: PolicyConfig
    senses: dict[str, tuple[int, ...]] = field(default_factory=dict)
    distilled: bool = False

    def __post_init__(self) -> None:
        config.check(self, obs_dim="[1, 1e6]", action_dim="[1, 1e4]")
        for key, shape in self.senses.items():
            sides, most = {"pointcloud": (2, 10**6), "images": (3, 2048), "depth": (2, 2048)}.get(key.partition(".")[0], (0, 0))
            if len(shape) != sides or not all(0 < side <= most for side in shape):
                raise config.OutOfBounds(_About, "senses", f"has {config.shown(key)} of shape {config.shown(shape)}: there are pointcloud "
                                         "[points, 3 or 6], images.<camera> [height, width, 3] and depth.<camera> [height, width]")


def wide(cfg: PolicyConfig, action_dim: int) -> bool:
    """Whether a plan has more numbers than a quarter of its skip-net's units, which let a number of the noise through by two: it is badly
    predicted then, the clean chunk well, and late (docs/benchmarks.md, "Plans that are wide for their network")."""
    return cfg.net == "skip" and 4 * cfg.chunk * action_dim > cfg.hidden


def resolved(cfg: PolicyConfig, action_dim: int) -> PolicyConfig:
    """The same with "auto" as what it is: the clean chunk of a wide plan, the noise of others."""
    if cfg.diffusion.predict != "auto":
        return cfg
    return replace(cfg, diffusion=replace(cfg.diffusion, predict="sample" if wide(cfg, action_dim) else "noise"))


def make_net(cfg: PolicyConfig, action_dim: int, cond: int) -> nn.Module:
    """The noise (or clean-action) network: (x [B, K, A], t [B], cond [B, C]) -> [B, K, A]."""
    steps = cfg.diffusion.train_steps
    if cfg.net == "skip":
        return SkipNet(cfg.chunk, action_dim, cond, steps=steps, hidden=cfg.hidden, blocks=cfg.blocks, dropout=cfg.dropout)
    return UNet1d(action_dim, cond, steps=steps, sizes=(cfg.hidden, 2 * cfg.hidden, 4 * cfg.hidden))


class DiffusionPolicy(nn.Module):
    """A denoising policy over chunks [B, K, A] in [-1, 1] from `observation.state` [B, H, D] and its senses; see `types.Policy`.

    senses: key -> shape of one frame of every observation beside the state that it looks at (`TaskSpec.senses`); with none, the condition
    is the normalised state itself and there is no encoder. `head` picks the product: "ddim" runs the S-step chain (stochastic while
    exploring, deterministic when greedy), "one-step" the consistency student C(x, tau_S), one network call. fetch: False leaves
    a pretrained image network's weights to whoever loads them.
    """

    KIND: Literal["diffusion"] = "diffusion"

    def __init__(self, cfg: PolicyConfig, obs_dim: int, action_dim: int, *, senses: Mapping[str, tuple[int, ...]] | None = None,
                 name: str = "policy", fetch: bool = True) -> None:
        super().__init__()
        self.cfg = cfg = resolved(cfg, action_dim)
        self.obs_dim, self.action_dim, self.name = obs_dim, action_dim, name
        self.chunk, self.n_obs, self.senses = cfg.chunk, cfg.n_obs, {k: tuple(v) for k, v in (senses or {}).items()}
        self.head: Head = "ddim"
        self.distilled = False  # whether the one-step head was ever taught
        self.repeats = False  # whether it repeats to the bit in other company when it does not explore, too, which costs a robot time
        self.normaliser = Normaliser(obs_dim)
        self.diffusion = Diffusion(cfg.diffusion)
        self.encoder = Encoder(cfg.encoder, obs_dim, self.senses, fetch=fetch) if self.senses else None
        self.net = make_net(cfg, action_dim, self.cond_dim)
        self.student = make_net(cfg, action_dim, self.cond_dim)
        self.reference: Reference | None = None
        if cfg.reference == "linear":
            from realrl.nets.reference import Reference
            self.reference = Reference(cfg.n_obs * obs_dim, cfg.chunk, action_dim)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.normaliser.mean.device

    @property
    def cond_dim(self) -> int:
        """C, size of the condition."""
        return self.n_obs * (self.cfg.encoder.latent if self.encoder else self.obs_dim)

    @property
    def actor(self) -> nn.ModuleDict:
        """What imitation and online RL train: the noise network, and the encoder where there is one."""
        return nn.ModuleDict({"net": self.net, **({"encoder": self.encoder} if self.encoder else {})})

    def fit_senses(self, frames: Mapping[str, Tensor]) -> None:
        """Fit the normalisers on the demonstrations' frames, each [F, ...]; never again, see `Normaliser`."""
        self.normaliser.fit(frames["state"])
        if self.encoder:
            self.encoder.fit(frames)

    def encode(self, obs: Mapping[str, Tensor]) -> Tensor:
        """The condition c_t [B, C]: normalised, encoded, concatenated observations. obs["state"]: [B, H, D], senses [B, H, ...]."""
        if self.encoder is None:
            return self._state(obs).flatten(1)
        frames = self._frames(obs)
        z: Tensor = self.encoder(*frames)
        return z.view(-1, self.cond_dim)

    def embed(self, obs: Mapping[str, Tensor], random: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """(condition [B, C], regularisers by name) for imitation; without an encoder the same as `encode` and nothing to regularise."""
        if self.encoder is None:
            return self.encode(obs), {}
        z, losses = self.encoder.embed(*self._frames(obs), random, stack=self.n_obs)
        return z.view(-1, self.cond_dim), losses

    def regularise(self, obs: Mapping[str, Tensor], random: torch.Generator) -> tuple[Tensor, Tensor]:
        """(condition [B, C] with gradients to the encoder, regularisers []) for online RL."""
        assert self.encoder is not None
        mean, loss = self.encoder.regularise(*self._frames(obs), random)
        return mean.view(-1, self.cond_dim), loss

    @torch.no_grad()
    def features(self, frames: Mapping[str, Tensor]) -> Tensor:
        """What the condition holds of each frame [F, ...]: the encoder's latent [F, E], or the normalised state [F, D] without one."""
        if self.encoder is None:
            state: Tensor = self.normaliser(frames["state"])
            return state
        pieces = [self.encoder(self.normaliser(frames["state"][i:i + FRAMES]), {k: frames[k][i:i + FRAMES] for k in self.senses})
                  for i in range(0, len(frames["state"]), FRAMES)]
        return torch.cat(pieces)

    def _state(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Normalised state [B, H, D], checked."""
        state = obs["state"]
        if state.shape[1:] != (self.n_obs, self.obs_dim):
            raise RealrlError(f"observation 'state' has shape {list(state.shape[1:])} but the policy was trained on "
                              f"[{self.n_obs}, {self.obs_dim}] (history, features): use the task and n_obs it was trained with")
        out: Tensor = self.normaliser(state)
        return out

    def _frames(self, obs: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """State [B*H, D] and senses [B*H, ...], checked."""
        seen = {}
        for key, shape in self.senses.items():
            if key not in obs:
                raise RealrlError(f"observation {key!r} is missing, the policy looks at {', '.join(self.senses)}: give the environment or "
                                  "data set the same --sight as in training")
            if obs[key].shape[1:] != (self.n_obs, *shape):
                raise RealrlError(f"observation {key!r} has shape {list(obs[key].shape[1:])} but the policy was trained on "
                                  f"{[self.n_obs, *shape]} (history, ...): use the sight it was trained with")
            seen[key] = obs[key].flatten(0, 1)
        return self._state(obs).flatten(0, 1), seen

    def drawn(self, action: Tensor, state: Tensor) -> Tensor:
        """What the network has to draw for chunks [B, K, A] from states [B, H, D]: what a reference leaves over, or all of them."""
        return action if self.reference is None else self.reference.encode(action, state)

    def one_step(self, x: Tensor, cond: Tensor, k: int = 0) -> Tensor:
        """The consistency student's clean action from x [B, K, A] at the noise level of denoising step k."""
        t = self.diffusion.t[k].expand(len(x))
        y: Tensor = self.student(x, t, cond)
        return y.clamp(-1.0, 1.0)

    @torch.no_grad()
    def explore(self, cond: Tensor, random: torch.Generator) -> Tensor:
        """Stochastic chains [B, S+1, K, A] at encoded observations cond [B, C]: what RL samples."""
        shape = (len(cond), self.cfg.diffusion.steps + 1, self.chunk, self.action_dim)
        return self.diffusion.sample(self.net, cond, torch.randn(shape, generator=random, device=cond.device), stochastic=True)

    @torch.no_grad()
    def draw(self, cond: Tensor, random: torch.Generator) -> Tensor:
        """What the deployed chain draws at encoded observations cond [B, C]: [B, K, A] in [-1, 1]."""
        noise = torch.randn((len(cond), 1, self.chunk, self.action_dim), generator=random, device=cond.device)
        return self.diffusion.sample(self.net, cond, noise, stochastic=False)[:, -1].clamp(-1.0, 1.0)

    def distillation(self, cfg: DistillConfig) -> Distillation:
        """The training of this policy's student towards its own chain, L_CD of RL-100, section 4."""
        return Distillation(self.student, self.net, self.diffusion, (self.chunk, self.action_dim), cfg)

    def start(self, batch: int) -> State:
        """A diffusion policy remembers nothing."""
        return {}

    @torch.inference_mode()
    def act(self, obs: Obs, state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
        """Plan chunks from observations (state: [B, H, D]). Exploring with the DDIM head returns the chain [B, S+1, K, A]."""
        seen = {k: torch.as_tensor(obs[k], device=self.device) for k in self.senses if k in obs}
        cond = self.encode({"state": torch.as_tensor(obs["state"], dtype=torch.float32, device=self.device), **seen})
        explore = not greedy and self.head == "ddim"
        noisy = explore or (self.head == "ddim" and self.cfg.diffusion.greedy == "sampled")
        rows = self.cfg.diffusion.steps + 1 if noisy else 1
        shape = (rows, self.chunk, self.action_dim)
        noise = torch.from_numpy(np.stack([g.standard_normal(shape, dtype=np.float32) for g in rng])).to(self.device)
        if (noisy or self.repeats) and len(noise) % WHOLE:
            filled = torch.arange(len(noise) + -len(noise) % WHOLE, device=self.device) % len(noise)
            cond, noise = cond[filled], noise[filled]
        if self.head == "one-step":
            return Plan(self._sent(self.one_step(noise[:, 0], cond)[: len(rng)], obs)), state
        chain = self.diffusion.sample(self.net, cond, noise, stochastic=noisy)[: len(rng)]
        return Plan(self._sent(chain[:, -1].clamp(-1.0, 1.0), obs), {"chain": chain.cpu().numpy()} if explore else {}), state

    def _sent(self, x: Tensor, obs: Obs) -> Array:
        """The chunks [B, K, A] that drawn x mean."""
        if self.reference is not None:
            x = self.reference.decode(x, torch.as_tensor(obs["state"], dtype=torch.float32, device=self.device))
        return x.cpu().numpy()

    def with_head(self, head: Head, name: str | None = None) -> DiffusionPolicy:
        """A frozen copy that acts with the given head."""
        other = copy.deepcopy(self).eval().requires_grad_(False)
        other.head, other.name = head, name or self.name
        return other

    def with_sampler(self, sampler: Sampler) -> DiffusionPolicy:
        """A frozen copy that is deployed by another sampler, see `DiffusionConfig.greedy`; the weights are the same."""
        other = self.with_head("ddim")
        other.cfg = replace(self.cfg, diffusion=replace(self.cfg.diffusion, greedy=sampler))
        other.diffusion = Diffusion(other.cfg.diffusion).to(self.device)
        other.diffusion.load_state_dict(self.diffusion.state_dict())
        return other

    def describe(self) -> dict[str, Any]:
        """What `rebuild` needs, as plain JSON values."""
        return {"head": self.head, "name": self.name, "obs_dim": self.obs_dim, "action_dim": self.action_dim, "senses": self.senses,
                "distilled": self.distilled, "config": config.to_dict(self.cfg)}

    @classmethod
    def rebuild(cls, about: Mapping[str, Any], source: str) -> DiffusionPolicy:
        """A policy as described, without its weights. source: the file's name, for errors. Raises RealrlError."""
        told = config.from_dict(_About, {k: v for k, v in about.items() if k in _About.__dataclass_fields__}, source=source)
        policy = cls(told.config, told.obs_dim, told.action_dim, senses=told.senses, name=told.name, fetch=False)
        policy.head, policy.distilled = told.head, told.distilled
        return policy
