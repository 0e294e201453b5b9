"""Goals for a flow policy's fit: how an episode ended (hindsight), or how another success of the same task did (RoboCat, arXiv 2306.11706).

What was done in a failure is right for where it led, and for nothing that it was told: it is shown its own end, and no instruction.
Beside the actions a policy may foresee what will be seen a little later, as RoboCat predicts the tokens of future pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from realrl.config import check
from realrl.learn.flow import Lessons
from realrl.nets.transformer import Goal
from realrl.types import Array


@dataclass(frozen=True)
class GoalConfig:
    """What a fit shows as goals."""

    other: float = 0.5
    """Share of a success's goals that are ends of other successes of the task, the rest its own; acting sees others' ends alone."""
    hide_goal: float = 0.2
    """How often the goal is hidden."""
    hide_text: float = 0.3
    """How often the instruction is hidden."""
    foresight: float = 0.1
    """Weight of foreseeing what will be seen; 0 = it does not."""
    ahead: int = 8
    """Steps that it foresees."""

    def __post_init__(self) -> None:
        check(self, other="[0, 1]", hide_goal="[0, 1]", hide_text="[0, 1]", foresight="[0, 1e3]", ahead="[1, 1e4]")


class Goals:
    """What every decision of encoded lessons may be shown. worthy: task -> of its episodes, in their order, whether they count as
    successes [E]; their ends are the goals that the policy keeps."""

    def __init__(self, lessons: Lessons, worthy: Mapping[str, Array], cfg: GoalConfig) -> None:
        self.lessons, self.cfg, self.policy = lessons, cfg, lessons.policy
        offset, now, last, good, pools = 0, [], [], [], []
        for task, view, seen in zip(lessons.tasks, lessons.views, lessons.seen, strict=True):
            ends = view.rows()[1][view.last, 0] + offset  # [E]
            fine = torch.as_tensor(worthy[task], dtype=torch.bool, device=ends.device)
            now.append(view.rows()[0][:, 0] + offset)
            last.append(ends[view.episode])
            good.append(fine[view.episode])
            pools.append(ends[fine] if bool(fine.any()) else ends[:0])
            offset += len(seen["state"])
        self.now, self.last, self.good, self.pools = torch.cat(now), torch.cat(last), torch.cat(good), pools
        self.seen = {key: torch.cat([seen[key] for seen in lessons.seen]) for key in lessons.seen[0]}
        self.size = torch.tensor([max(1, len(pool)) for pool in pools], device=self.now.device)
        self.first = self.size.cumsum(0) - self.size
        none = self.now.new_zeros(1)  # of a task without a success nobody asks for another's end
        self.pool = torch.cat([pool if len(pool) else none for pool in pools])
        dims = torch.tensor([b.obs_dim for b in self.policy.bodies], device=self.now.device)
        self.real = torch.arange(self.seen["state"].shape[1], device=self.now.device) < dims[:, None]  # [R, D]
        self.spread = {key: x[::max(1, len(x) // 2000)].float().mean(1).var(0).mean() for key, x in self.seen.items() if key != "state"}
        self.keep()

    def keep(self) -> None:
        """Give the policy the ends of these successes, to be shown when it acts."""
        bank, tasks = self.policy.goals, list(self.policy.tasks)
        assert bank is not None, "a policy that is shown goals"
        for task, pool in zip(self.lessons.tasks, self.pools, strict=True):
            if len(pool):
                bank.keep(tasks.index(task), self.seen["state"][pool], {key: self.seen[key][pool] for key in self.policy.eyes.slots})

    def draw(self, index: Tensor, random: torch.Generator) -> Goal:
        """Goals of decisions [B]."""
        index, cfg = index.to(self.now.device), self.cfg
        u = torch.rand(4, len(index), generator=random).to(self.now.device)
        task = self.lessons.task.to(index.device)[index]
        another = self.pool[self.first[task] + (u[0] * self.size[task]).long()]
        good = self.good[index]
        rows = torch.where(good & (u[1] < cfg.other), another, self.last[index])
        return Goal(self.seen["state"][rows], {key: self.seen[key][rows] for key in self.policy.eyes.slots},
                    given=u[2] >= cfg.hide_goal, told=good & (u[3] >= cfg.hide_text))

    def foresight(self, cond: Tensor, robot: Tensor, index: Tensor) -> Tensor:
        """The weighted loss [] of what is expected to be seen `ahead` steps later, or at the end of the episode."""
        if not self.cfg.foresight:
            return cond.new_zeros(())
        index = index.to(self.now.device)
        rows = torch.minimum(self.now[index] + self.cfg.ahead, self.last[index])
        state, look = self.policy.prefix.foresee(cond, robot)
        real = self.real[robot]
        loss = ((state - self.seen["state"][rows]).square() * real).sum() / real.sum()
        if look is not None:
            mean = torch.stack([self.seen[key][rows].float().mean(1) for key in self.policy.eyes.slots]).mean(0)
            loss = loss + (look - mean).square().mean() / torch.stack(list(self.spread.values())).mean().clamp(min=1e-6)
        return self.cfg.foresight * loss
