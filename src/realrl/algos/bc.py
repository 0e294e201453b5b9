"""Behaviour cloning with a diffusion policy (Diffusion Policy, arXiv 2303.04137; the first stage of RL-100, section 2).

Demonstrations in, a policy folder out. The data are a task's scripted expert or any recorded data set of the same task.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from realrl.data.views import ChunkView
from realrl.files import derive
from realrl.generative.diffusion import DistillConfig, start_from_teacher
from realrl.learn.imitation import Imitation, ImitationConfig, imitate, prepare
from realrl.policies.diffusion import DiffusionPolicy, PolicyConfig
from realrl.scene import Scene, device
from realrl.types import Cell


@dataclass(frozen=True)
class BCConfig(Scene):
    """Behaviour cloning on one task."""

    task: str = "metaworld/push-wall-v3"
    """Environment, see `realrl tasks`."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """The diffusion policy."""
    imitation: ImitationConfig = field(default_factory=ImitationConfig)
    """The fit."""
    one_step: bool = False
    """Whether the policy is distilled to one step, too (RL-100, section 4)."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """That distillation."""


def train(cfg: BCConfig, cell: Cell) -> dict[str, Any]:
    """Imitate, evaluate, and leave the policy in the run's folder `policy`; returns the summary. Continues an interrupted run."""
    torch.manual_seed(derive(cfg.seed, "weights"))
    spec = cell.spec
    policy = DiffusionPolicy(cfg.policy, spec.obs_dim, spec.action_dim, senses=spec.senses, name="bc").to(device(cfg.device))
    view = ChunkView(cell.demonstrations(), chunk=policy.chunk, n_obs=policy.n_obs, gamma=1.0, device=policy.device)
    prepare(policy, view, cell.robot)
    with cell.timed("imitation"):
        imitate(cell.run, Imitation(policy, view, cfg.imitation, seed=derive(cfg.seed, "imitation")), "imitation")
    cell.keep(policy)
    cell.judge_demonstrator(cfg.eval_episodes)
    cell.finish_stage("imitation", policy.with_head("ddim"), cfg.eval_episodes)
    if cfg.one_step:
        _distil(cfg, cell, policy, view)
    return cell.summary


def _distil(cfg: BCConfig, cell: Cell, policy: DiffusionPolicy, view: ChunkView) -> None:
    """Teach the policy's student its own chain at the demonstrations' observations; the folder then holds both heads."""
    start_from_teacher(policy.student, policy.net)
    cell.run.rewind("one-step", 0)
    with cell.run.bar("one-step: distilling", cfg.distill.steps) as advance, cell.timed("one-step"):
        policy.distillation(cfg.distill).finish(view.encoded(policy.features).cond, derive(cfg.seed, "one-step"),
                                                cell.run.logger("one-step"), advance)
    policy.distilled = True
    cell.keep(policy)
    cell.finish_stage("one-step", policy.with_head("one-step"), cfg.eval_episodes)
