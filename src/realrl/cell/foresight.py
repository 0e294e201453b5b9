"""How well a policy foresees recorded actions it was not fitted to, beside three predictors that anybody can build.

It is what can be said of a policy without a robot: whether it has learned more than "keep still", than the mean action and than a ridge
regression. A small error does not promise success (small errors add up where nobody corrects them), a large one rules it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from realrl.data.views import ChunkView
from realrl.learn.reference import fit_reference, resting, unseen_loss
from realrl.nets.reference import Reference
from realrl.policies.diffusion import DiffusionPolicy
from realrl.robots.embodiment import Embodiment
from realrl.types import Array, Batch, Policy

MOST = 2000  # decisions that are looked at, evenly spread


@dataclass(frozen=True)
class Foresight:
    """Mean absolute errors of predicted chunks. errors: predictor -> [A], in each joint's own unit; decisions: how many were predicted,
    of so many episodes, or of parts of them (cut)."""

    robot: Embodiment
    errors: Mapping[str, Array]
    decisions: int
    episodes: int
    cut: bool

    def share(self, who: str) -> float:
        """The error as a share of the joint's range between its limits, averaged over the joints: comparable whatever the units."""
        return float(np.mean(self.errors[who] / (2 * self.robot.half)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"decisions": self.decisions, "episodes": self.episodes, "cut": self.cut, "joints": list(self.robot.actions),
                "units": list(self.robot.units),
                "errors": {who: [float(x) for x in error] for who, error in self.errors.items()},
                "mean_error": {who: float(np.mean(error)) for who, error in self.errors.items()},
                "error_of_range": {who: self.share(who) for who in self.errors}}


@dataclass
class Examiner:
    """Asks predictors for the chunks of some held-out decisions. seen: what was fitted to; unseen: what is asked for."""

    robot: Embodiment
    seen: ChunkView
    unseen: ChunkView
    baselines: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rows = torch.linspace(0, len(self.unseen) - 1, min(len(self.unseen), MOST)).long()
        self.batch: Batch = self.unseen.batch(self.rows.to(self.unseen.reward.device))
        self.truth = self.batch.action.cpu().numpy() * self.robot.half + self.robot.middle  # also what went beyond the limits
        self.valid = self.batch.valid.cpu().numpy()
        self.baselines = {"keep still": self._keep_still(), "mean action": self._mean_action(), "ridge": self._ridge()}

    def judge(self, said: Mapping[str, Array]) -> Foresight:
        """Errors of everybody. said: name -> chunks [N, K, A] in the robot's units, see `ask`."""
        errors = {name: self.error(chunks) for name, chunks in ({**said} | self.baselines).items()}
        return Foresight(self.robot, errors, len(self.rows), int(self.unseen.episode.max()) + 1, self.unseen.cut)

    def ask(self, policy: Policy, greedy: bool, among: Array | None = None) -> Array:
        """A policy's chunks for the held-out decisions, [N, K, A] in the robot's units. among: [n] the places of some, by default all."""
        among, found = np.arange(len(self.rows)) if among is None else among, []
        for places in np.split(among, range(256, len(among), 256)):
            part = {key: values[torch.from_numpy(places)].cpu().numpy() for key, values in self.batch.obs.items()}
            noise = [np.random.default_rng(place) for place in places]
            plan, _ = policy.act(part, policy.start(len(noise)), greedy=greedy, rng=noise)
            found.append(plan.action)
        return self.robot.to_robot(np.concatenate(found))

    def denoising_loss(self, policy: DiffusionPolicy) -> float:
        """The imitation loss of a diffusion policy on the held-out decisions."""
        place = policy.device
        obs = {key: x.to(place) for key, x in self.batch.obs.items()}
        return unseen_loss(policy, replace(self.batch, obs=obs, action=self.batch.action.to(place), valid=self.batch.valid.to(place)), 0)

    def error(self, chunks: Array) -> Array:
        """Mean absolute error of each joint, [A], over what was really done."""
        mask = self.valid[..., None]
        wrong: Array = (np.abs(chunks - self.truth) * mask).sum((0, 1)) / mask.sum()
        return wrong

    def _keep_still(self) -> Array:
        """The measured state as the target of every step; where nothing measures a joint, what `resting` says."""
        rest = self.robot.to_robot(resting(self.seen.actions.cpu().numpy(), self.robot))
        state, still = self.batch.obs["state"][:, -1].cpu().numpy(), self.robot.followers
        held = np.where(still >= 0, state[:, np.maximum(still, 0)], rest)
        return np.broadcast_to(held[:, None], self.truth.shape)

    def _mean_action(self) -> Array:
        mean = self.robot.to_robot(self.seen.actions.cpu().numpy()).mean(0)
        return np.broadcast_to(mean, self.truth.shape)

    def _ridge(self) -> Array:
        """Ridge regression from the states that the policy sees, each joint with the penalty that leaving episodes out prefers."""
        history, width = self.batch.obs["state"].shape[1:]
        ridge = Reference(history * width, *self.truth.shape[1:])
        fit_reference(ridge, self.seen, ridge=True)
        return self.robot.to_robot(ridge(self.batch.obs["state"].cpu()).numpy())
