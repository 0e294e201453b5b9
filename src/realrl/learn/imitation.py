"""Imitation: fit a diffusion policy to recorded actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from realrl.data.views import ChunkView
from realrl.files import derive
from realrl.generative.diffusion import imitation_loss
from realrl.learn.fit import Averaged, cosine, reseed
from realrl.learn.fit import ImitationConfig as ImitationConfig
from realrl.learn.fit import generator as generator
from realrl.learn.fit import imitate as imitate
from realrl.policies.diffusion import DiffusionPolicy
from realrl.types import Batch, Episode, Logbook

if TYPE_CHECKING:
    from realrl.learn.reference import Witness
    from realrl.robots.embodiment import Embodiment


class Decisions(Protocol):
    """What is imitated: `ChunkView`, or `ImageWindows` where pictures stay on disk. episode: [N], which one a decision is of."""

    @property
    def episode(self) -> Tensor: ...

    def __len__(self) -> int: ...

    def batch(self, index: Tensor) -> Batch: ...


class Imitation:
    """L_IL of RL-100, section 2: noise prediction on recorded chunks; the averaged weights become the policy's.

    Where the policy has an encoder it is trained too, with its regularisers: L_IL + L_recon + L_KL (section 3), unless cond [N, C] holds
    the decisions' conditions already (`ChunkView.encoded`). Call `update` cfg.steps times, then `finish`; `state_dict` holds all that
    continuing needs. weight: [N] per decision, None for plain cloning.
    """

    def __init__(self, policy: DiffusionPolicy, view: Decisions, cfg: ImitationConfig, *, seed: int, weight: Tensor | None = None,
                 cond: Tensor | None = None) -> None:
        self.policy, self.view, self.cfg, self.seed = policy, view, cfg, seed
        self.weight, self.cond = weight, cond
        self.actor = policy.actor.requires_grad_(True).train()
        self.average = Averaged(self.actor, cfg.ema)
        self.optimiser = torch.optim.AdamW(self.actor.parameters(), lr=cfg.lr, betas=(0.95, 0.999), weight_decay=cfg.weight_decay,
                                           fused=True)
        self.step, self.steps = 0, cfg.steps
        self.fitted: Tensor | None = None
        self.witness: Witness | None = None
        if cfg.validation:
            from realrl.learn.reference import GROUPS, Witness, kept_back
            self.fitted, unseen = kept_back(view.episode, cfg.validation, GROUPS * policy.chunk)
            self.witness = Witness(policy, view, unseen, cfg.steps, seed)

    def update(self) -> dict[str, Tensor]:
        """One gradient step; returns the losses: "loss" of the denoising, and the encoder's regularisers."""
        random = generator(self.seed, "imitation", self.step, device=self.policy.device)
        reseed(derive(self.seed, "dropout", self.step), self.policy.device)
        size = len(self.view) if self.fitted is None else len(self.fitted)
        index = torch.randint(size, (self.cfg.batch,), generator=random, device=self.policy.device)
        index = index if self.fitted is None else self.fitted[index]
        batch = self.view.batch(index)
        self.optimiser.param_groups[0]["lr"] = self.cfg.lr * cosine(self.step, self.cfg.steps, self.cfg.warmup)
        cond, regularisers = self.policy.embed(batch.obs, random) if self.cond is None else (self.cond[index], {})
        wanted = self.policy.drawn(batch.action, batch.obs["state"])
        loss = imitation_loss(self.policy.diffusion, self.policy.net, wanted, batch.valid, cond, random,
                              None if self.weight is None else self.weight[index])
        self.optimiser.zero_grad()
        torch.stack([loss, *regularisers.values()]).sum().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.actor.parameters(), 1.0)
        self.optimiser.step()
        self.average.update_parameters(self.actor)
        self.step += 1
        if self.witness is not None and not self.witness.content(self.step, self.average.module):
            self.steps = self.step
        return {"loss": loss.detach(), **{name: value.detach() for name, value in regularisers.items()}}

    def validate(self) -> dict[str, float]:
        """The loss on episodes that the fit does not see, with the weights as they are."""
        return {} if self.witness is None else self.witness.validate()

    def finish(self) -> None:
        """Give the policy the averaged weights; with a reference, the best of them, followed as far as they foresee what was not seen."""
        self.actor.load_state_dict(self.average.module.state_dict())
        self.actor.eval()
        if self.witness is not None:
            self.witness.finish(self.step)

    def state_dict(self) -> dict[str, Any]:
        """Weights, average, optimiser and step."""
        return {"actor": self.actor.state_dict(), "average": self.average.state_dict(), "optimiser": self.optimiser.state_dict(),
                "step": self.step, "steps": self.steps, "witness": self.witness.state_dict() if self.witness else {}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.actor.load_state_dict(state["actor"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.steps = state["step"], state.get("steps", self.steps)
        if self.witness is not None and state.get("witness"):
            self.witness.load_state_dict(state["witness"])


def prepare(policy: DiffusionPolicy, view: ChunkView, robot: Embodiment | None = None) -> None:
    """Fit what a policy fits once, on its demonstrations: normalisers, and a reference where it has one. robot: what its numbers mean."""
    policy.fit_senses(view.frames)
    if policy.reference is not None:
        from realrl.learn.reference import fit_reference
        fit_reference(policy.reference, view, robot)


def worthy(episodes: Sequence[Episode]) -> list[Episode]:
    """What is worth imitating: the successes, and stretches of one, cut after it was chosen; where none is known (locomotion), the better
    half by return; where returns do not differ either, all of which nobody says how they ended, for people record what they want
    repeated; else nothing."""
    if any(e.succeeded for e in episodes):
        return [e for e in episodes if e.succeeded or e.cut]
    returns = [float(e.reward.sum()) for e in episodes]
    if not returns or max(returns) <= min(returns):
        return [e for e in episodes if not e.judged]
    middle = float(np.median(returns))
    return [e for e, value in zip(episodes, returns, strict=True) if value >= middle]


def reimitate(run: Logbook, policy: DiffusionPolicy, view: ChunkView, cfg: ImitationConfig, stage: str, seed: int,
              encoder: bool) -> dict[str, Tensor] | None:
    """pi <- IL(D) on the successes so far. encoder: whether that trains the encoder, too, where there is one. Returns the noise network
    as it was; None where the encoder has learned, which its latents were."""
    before = {k: v.clone() for k, v in policy.net.state_dict().items()}
    cond = None if encoder else view.encoded(policy.features).cond
    imitate(run, Imitation(policy, view, cfg, seed=seed, cond=cond), stage)
    return None if policy.encoder and encoder else before
