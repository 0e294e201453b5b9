"""A flow policy that corrects linear references, one a robot: their fit, and the decisions that say how far its network is followed.

As for a diffusion policy (`learn.reference`), robot by robot. A reference reads no text: what an instruction changes, the network draws, so
that it matters exactly as far as the network is followed, which episodes decide that it was not fitted to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from realrl.data.views import ChunkView
from realrl.files import derive
from realrl.generative.flow import euler
from realrl.learn.fit import generator
from realrl.learn.reference import GROUPS, LOOKS, Witness, able, fit_reference, kept_back, trust
from realrl.policies.flow import FlowPolicy
from realrl.types import Episode

if TYPE_CHECKING:
    from realrl.learn.flow import FlowFit, Lessons
    from realrl.robots.embodiment import Embodiment

ENOUGH = 3
"""Episodes of a task of which one may be kept from the fit."""


def fit_references(policy: FlowPolicy, episodes: Mapping[str, Sequence[Episode]], robots: Mapping[str, Embodiment | None]) -> None:
    """Fit the references of a policy that has some. episodes, robots: task -> its demonstrations, and what their numbers mean."""
    for body in range(len(policy.bodies)):
        if (reference := policy.reference_of(body)) is None:
            return
        mine = [task for task in episodes if policy.tasks[task].body == body]
        told = [replace(e, obs={"state": e.obs["state"]}) for task in mine for e in episodes[task]]
        view = ChunkView(told, chunk=policy.cfg.plan, n_obs=policy.n_obs, gamma=1.0, device=policy.device)
        fit_reference(reference, view, robots[mine[0]])


def unseen_of(lessons: Lessons, share: float) -> tuple[Tensor, Tensor]:
    """(decisions to fit, those to validate with), robot by robot as `kept_back` has them. Of several tasks whole episodes are kept of those
    alone that have `ENOUGH`, so that each is learned; where none has, the last stretch of every task."""
    policy, fitted, back = lessons.policy, [], []
    of_robot = [[t for t, task in enumerate(lessons.tasks) if policy.tasks[task].body == body] for body in range(len(policy.bodies))]
    for tasks in filter(None, of_robot):
        rich = [t for t in tasks if len(tasks) == 1 or int(lessons.views[t].episode[-1]) + 1 >= ENOUGH]
        groups = [rich] if rich else [[t] for t in tasks]
        for group in groups:
            rows = torch.cat([lessons.first[t] + torch.arange(int(lessons.sizes[t])) for t in group])
            episode = lessons.episode[rows] - lessons.episode[rows[0]]
            if len(group) > 1:
                episode = torch.unique(episode, return_inverse=True)[1]
            keep, leave = kept_back(episode if rich else torch.zeros_like(episode), share, GROUPS * policy.chunk)
            fitted.append(rows[keep])
            back.append(rows[leave])
        fitted += [lessons.first[t] + torch.arange(int(lessons.sizes[t])) for t in tasks if rich and t not in rich]
    return torch.cat(fitted), torch.cat(back)


class FlowWitness(Witness):
    """Decisions that the fit of a flow policy does not see, see `Witness`; each robot follows the network as far as its own say."""

    def __init__(self, fit: FlowFit, unseen: Tensor) -> None:
        """unseen: [N], the decisions; not `Witness`'s own beginning, which looks at one table of one robot."""
        policy, lessons = fit.policy, fit.lessons
        self.flow, self.lessons, self.unseen, self.seed = policy, lessons, unseen, fit.seed
        self.net: nn.Module = fit.net
        self.chooses = policy.reference is not None
        self.every = max(fit.cfg.steps // LOOKS, 1)
        self.best, self.left, self.looked, self.found = {}, float("inf"), 0, 0
        robot = torch.tensor([policy.tasks[task].body for task in lessons.tasks])
        self.robot = robot[lessons.task]

    def _follow(self, most: int) -> float:
        rows = self.unseen[::1 + (len(self.unseen) - 1) // most]
        self.net.eval()
        left = [self._followed(body, rows[self.robot[rows] == body]) for body in range(len(self.flow.bodies))]
        return sum(left) / len(left)

    @torch.no_grad()
    def _followed(self, body: int, rows: Tensor) -> float:
        """One robot's, by these decisions of it."""
        reference, lessons = self.flow.reference_of(body), self.lessons
        assert reference is not None
        if not len(rows) or not able(rows, lessons.episode[rows], self.flow.chunk):
            reference.gain.zero_()
            return 1.0
        rows = lessons.order(rows)
        state, action, valid = lessons.recorded(rows)
        drawn = self.draw(rows)[..., :action.shape[-1]]
        return trust(reference, drawn, state, action, valid, lessons.episode[rows].to(state.device))

    def draw(self, rows: Tensor, size: int = 256) -> Tensor:
        """What the flow draws for decisions in the order of the lessons, [N, K, A] of the widest robot, each told its own text."""
        policy, random, found = self.flow, generator(derive(self.seed, "trust")), []
        for part in torch.split(rows, size):
            batch = self.lessons.batch(part)
            cond = policy.prefix(batch.state, batch.text, batch.pictures, batch.robot)
            noise = torch.randn(batch.action.shape, generator=random).to(policy.device) * batch.real[:, None]
            found.append(euler(policy.velocity(cond, robot=batch.robot), noise, policy.cfg.flow.steps)[:, -1].clamp(-1.0, 1.0))
        return torch.cat(found)

    def validate(self) -> dict[str, float]:
        """What the best weights so far leave of the references' error."""
        return {"reference_error_left": self.left} if self.best else {}
