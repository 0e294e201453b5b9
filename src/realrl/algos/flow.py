"""A flow policy that is told what to do: several tasks at once, from demonstrations (pi0, arXiv 2410.24164, without its language model).

Demonstrations of every task in, one policy folder out. The data are the tasks' scripted experts or recorded sets with task texts; a
simulated task is judged by its success from held-out starts, one by one, with its own text. Recordings alone are enough: each of their
texts is a task then, and what they foresee of episodes that were kept back is compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from realrl.config import OutOfBounds
from realrl.files import derive
from realrl.generative.diffusion import DistillConfig
from realrl.learn.fit import ImitationConfig, imitate
from realrl.learn.flow import FlowFit, Lessons, cells_of, distil, listed, make_policy, together
from realrl.policies.flow import Body, FlowPolicy, FlowPolicyConfig, Told
from realrl.scene import Scene, device
from realrl.types import Cell, Episode

COFFEE = ("metaworld/coffee-push-v3", "metaworld/coffee-pull-v3", "metaworld/coffee-button-v3")
"""Three tasks around one coffee machine."""


FIT = ImitationConfig(steps=3000, batch=128)


@dataclass(frozen=True)
class FlowTrainConfig(Scene):
    """Imitation of several tasks by one policy that is told which."""

    task: str = ""
    """The first of the tasks; leave it to --tasks."""
    tasks: tuple[str, ...] = COFFEE
    """Environments, separated by spaces or commas, see `realrl tasks`; without them the texts of --data are the tasks."""
    also: tuple[str, ...] = ()
    """More recorded sets where there is no task: `--data A B C` is `--data A --also B C`."""
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
        if self.also and self.data is None:
            raise OutOfBounds(FlowTrainConfig, "also", "names more sets beside that of --data: name one there")
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
    lessons = _learn(cfg, cell, policy, {task: at.demonstrations() for task, at in cells.items()}, cells)
    cell.keep(policy.told(cfg.task))
    judge(cells, "imitation", policy, cfg.eval_episodes)
    if cfg.one_step:
        distil(cell, policy, lessons, cfg.distill, derive(cfg.seed, "one-step"))
        cell.keep(policy.told(cfg.task))
        judge(cells, "one-step", policy.with_head("one-step"), cfg.eval_episodes)
    return cell.summary


def train_on_recordings(cfg: FlowTrainConfig, cell: Cell) -> dict[str, Any]:
    """The same from recordings alone. The tasks of cfg are their robots, every text of a robot is a task of the policy. Each robot has a
    folder, `policy` the first one, with the same weights and its own numbers."""
    torch.manual_seed(derive(cfg.seed, "weights"))
    robots = {task: cell.at(task) for task in cfg.tasks}
    policy, shown = by_text(cfg.policy, robots, name="flow")
    policy = policy.to(device(cfg.device))
    lessons = _learn(cfg, cell, policy, {task: of for task, (_, of) in shown.items()}, {task: at for task, (at, _) in shown.items()})
    _finish(robots, "imitation", policy)
    if cfg.one_step:
        if policy.followed:
            distil(cell, policy, lessons, cfg.distill, derive(cfg.seed, "one-step"))
        policy.distilled = True  # where the references act alone, one step says what ten say
        _finish(robots, "one-step", policy)
    return cell.summary


def judge(cells: Mapping[str, Cell], stage: str, policy: FlowPolicy, n: int) -> None:
    """Evaluate a stage's product on every task with its own text; entered as "stage task"."""
    for task, at in cells.items():
        at.finish_stage(f"{stage} {at.spec.name}", policy.told(task), n)


def by_text(cfg: FlowPolicyConfig, robots: Mapping[str, Cell], *, name: str) -> tuple[FlowPolicy, dict[str, tuple[Cell, list[Episode]]]]:
    """(a policy for recordings, every text of each robot a task, task -> (the robot's cell, its demonstrations)). A task is called by its
    text, and by its robot, too, where several have it. robots: in the order of the policy's bodies."""
    together({task: at.spec for task, at in robots.items()}, cfg.reader)
    tasks: dict[str, Told] = {}
    shown: dict[str, tuple[Cell, list[Episode]]] = {}
    for body, at in enumerate(robots.values()):
        for episode in at.demonstrations():
            text = episode.task
            task = next((task for task, told in tasks.items() if told == Told((text,), body)), "")
            if not task:
                task = f"{text} ({at.spec.name})" if text in tasks else text
                tasks[task], shown[task] = Told((text,), body), (at, [])
            shown[task][1].append(episode)
    bodies = [Body(at.spec.name, at.spec.obs_dim, at.spec.action_dim, dict(at.spec.senses)) for at in robots.values()]
    return FlowPolicy(cfg, bodies, tasks, name=name), shown


def _learn(cfg: FlowTrainConfig, cell: Cell, policy: FlowPolicy, shown: Mapping[str, list[Episode]], cells: Mapping[str, Cell]) -> Lessons:
    """Imitate what was shown of every task, task -> demonstrations; its cell knows whose numbers they are."""
    if policy.reference is not None:
        from realrl.learn.flow_reference import fit_references
        fit_references(policy, shown, {task: at.robot for task, at in cells.items()})
    lessons = Lessons(policy, shown)
    for odd in policy.fit_senses(lessons.frames()):
        cell.tell("imitation", odd)
    lessons.encode()
    with cell.timed("imitation"):
        imitate(cell.run, FlowFit(policy, lessons, cfg.imitation, seed=derive(cfg.seed, "imitation")), "imitation")
    return lessons


def _finish(robots: Mapping[str, Cell], stage: str, policy: FlowPolicy) -> None:
    """Keep a stage's product in every robot's folder, and compare it with what that robot really did."""
    for number, at in enumerate(robots.values()):
        mine = next(task for task, told in policy.tasks.items() if told.body == number)
        own = f" {at.spec.name}" if number else ""
        at.keep(policy.told(mine), f"policy-{at.spec.name}" if number else "policy")
        at.finish_stage(f"{stage}{own}", policy.told(mine).with_head("one-step" if stage == "one-step" else "flow"), 0)
