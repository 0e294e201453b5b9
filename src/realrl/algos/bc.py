"""Behaviour cloning with a diffusion policy (Diffusion Policy, arXiv 2303.04137; the first stage of RL-100, section 2).

Demonstrations in, a policy folder out. The data are a task's scripted expert or any recorded data set of the same task.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from realrl.data.views import ChunkView
from realrl.files import derive
from realrl.learn.imitation import Imitation, ImitationConfig, imitate
from realrl.policies.diffusion import DiffusionPolicy, PolicyConfig
from realrl.policies.folder import save_policy
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


def train(cfg: BCConfig, cell: Cell) -> dict[str, Any]:
    """Imitate, evaluate, and leave the policy in the run's folder `policy`; returns the summary. Continues an interrupted run."""
    torch.manual_seed(derive(cfg.seed, "weights"))
    spec = cell.spec
    policy = DiffusionPolicy(cfg.policy, spec.obs_dim, spec.action_dim, senses=spec.senses, name="bc").to(device(cfg.device))
    view = ChunkView(cell.demonstrations(), chunk=policy.chunk, n_obs=policy.n_obs, gamma=1.0, device=policy.device)
    policy.fit_senses(view.frames)
    with cell.timed("imitation"):
        imitate(cell.run, Imitation(policy, view, cfg.imitation, seed=derive(cfg.seed, "imitation")), "imitation")
    save_policy(policy, cell.run.dir / "policy", task=cfg.task, sight=cfg.sight)
    cell.judge_demonstrator(cfg.eval_episodes)
    cell.finish_stage("imitation", policy.with_head("ddim"), cfg.eval_episodes)
    return cell.summary
