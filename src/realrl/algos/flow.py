"""A flow policy that is told what to do: several tasks at once, from demonstrations (pi0, arXiv 2410.24164, without its language model).

Demonstrations of every task in, one policy folder out. The data are the tasks' scripted experts or recorded sets with task texts; a
simulated task is judged by its success from held-out starts, one by one, with its own text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from realrl.config import OutOfBounds
from realrl.files import derive
from realrl.generative.diffusion import DistillConfig
from realrl.learn.fit import ImitationConfig, imitate
from realrl.learn.flow import FlowFit, Lessons, cells_of, distil, judge, listed, make_policy
from realrl.policies.flow import FlowPolicyConfig
from realrl.scene import Scene, device
from realrl.types import Cell

COFFEE = ("metaworld/coffee-push-v3", "metaworld/coffee-pull-v3", "metaworld/coffee-button-v3")
"""Three tasks around one coffee machine."""


FIT = ImitationConfig(steps=3000, batch=128)


@dataclass(frozen=True)
class FlowTrainConfig(Scene):
    """Imitation of several tasks by one policy that is told which."""

    task: str = ""
    """The first of the tasks; leave it to --tasks."""
    tasks: tuple[str, ...] = COFFEE
    """Environments, separated by spaces or commas, see `realrl tasks`."""
    demos: int = 40
    """Successful demonstrations to ask each task's expert for."""
    policy: FlowPolicyConfig = field(default_factory=FlowPolicyConfig)
    """The policy."""
    imitation: ImitationConfig = FIT
    """The fit."""
    one_step: bool = False
    """Whether the policy is distilled to one step, too."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """That distillation."""
    eval_episodes: int = 100
    """Held-out episodes of every task after a stage."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", listed(self.task, self.tasks, COFFEE))
        object.__setattr__(self, "task", self.task or self.tasks[0])
        super().__post_init__()
        if self.policy.goals:
            raise OutOfBounds(FlowTrainConfig, "policy.goals", "are taught by robocat alone: leave it out")


def train(cfg: FlowTrainConfig, cell: Cell) -> dict[str, Any]:
    """Imitate all tasks, evaluate each, and leave the policy in the run's folder `policy`; returns the summary. Continues an interrupted
    run. Raises RealrlError for tasks with one text."""
    torch.manual_seed(derive(cfg.seed, "weights"))
    cells = cells_of(cell, cfg.task, cfg.tasks)
    policy = make_policy(cfg.policy, cells, name="flow").to(device(cfg.device))
    lessons = Lessons(policy, {task: at.demonstrations() for task, at in cells.items()})
    for odd in policy.fit_senses(lessons.frames()):
        cell.tell("imitation", odd)
    lessons.encode()
    with cell.timed("imitation"):
        imitate(cell.run, FlowFit(policy, lessons, cfg.imitation, seed=derive(cfg.seed, "imitation")), "imitation")
    cell.keep(policy.told(cfg.task))
    judge(cells, "imitation", policy, cfg.eval_episodes)
    if cfg.one_step:
        distil(cell, policy, lessons, cfg.distill, derive(cfg.seed, "one-step"))
        cell.keep(policy.told(cfg.task))
        judge(cells, "one-step", policy.with_head("one-step"), cfg.eval_episodes)
    return cell.summary
