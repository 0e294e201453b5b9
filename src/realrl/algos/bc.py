"""Behaviour cloning with a diffusion policy (Diffusion Policy, arXiv 2303.04137; the first stage of RL-100, section 2).

Demonstrations in, a policy folder out. The data are a task's scripted expert or any recorded data set of the same task.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from realrl.cell.cell import WorkCell
from realrl.cell.collect import MakeEnv
from realrl.data.views import ChunkView
from realrl.files import derive
from realrl.learn.imitation import Imitation, ImitationConfig
from realrl.policies.diffusion import DiffusionPolicy, PolicyConfig
from realrl.policies.folder import save_policy
from realrl.run import Run
from realrl.scene import CollectConfig, RandomiseConfig, SightConfig


@dataclass(frozen=True)
class BCConfig:
    """Behaviour cloning on one task."""

    task: str = "metaworld/push-wall-v3"
    """Environment, see `realrl tasks`."""
    seed: int = 0
    """Seeds networks, starts and batches."""
    data: str | None = None
    """A recorded data set (folder) whose successes are imitated; None = ask the task's scripted expert."""
    demos: int = 20
    """Successful demonstrations to ask the expert for."""
    demo_noise: float = 0.3
    """Standard deviation of the noise on the expert's actions."""
    expert: str | None = None
    """File or folder with the expert's weights, for suites whose expert is a network."""
    sight: SightConfig = field(default_factory=SightConfig)
    """What the policy sees: the state, pictures, depth or a point cloud."""
    randomise: RandomiseConfig = field(default_factory=RandomiseConfig)
    """How the simulated scene varies from episode to episode."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """The diffusion policy."""
    imitation: ImitationConfig = field(default_factory=ImitationConfig)
    """The fit."""
    collect: CollectConfig = field(default_factory=CollectConfig)
    """Workers for demonstrations and evaluation."""
    eval_episodes: int = 200
    """Held-out episodes."""
    device: str = "auto"
    """auto, cpu or cuda."""


def train(cfg: BCConfig, run: Run, *, make: MakeEnv | None = None) -> dict[str, Any]:
    """Imitate, evaluate, and leave the policy in the run's folder `policy`; returns the summary. Continues an interrupted run.

    make: builds an environment of your own; cfg.task is then just its name, and cfg.data holds its demonstrations.
    """
    torch.manual_seed(derive(cfg.seed, "weights"))
    with WorkCell(run, cfg.task, collect=cfg.collect, seed=cfg.seed, sight=cfg.sight, randomise=cfg.randomise,
                  make=make) as cell:
        spec = cell.spec
        policy = DiffusionPolicy(cfg.policy, spec.obs_dim, spec.action_dim, senses=spec.senses, name="bc").to(cell.device(cfg.device))
        episodes = cell.demonstrations(cfg.data, cfg.demos, cfg.demo_noise, cfg.expert)  # the longest last: a mistake above costs nothing
        view = ChunkView(episodes, chunk=policy.chunk, n_obs=policy.n_obs, gamma=1.0, device=policy.device)
        policy.fit_senses(view.frames)
        with cell.timed("imitation"):
            cell.imitate(Imitation(policy, view, cfg.imitation, seed=derive(cfg.seed, "imitation")), "imitation")
        save_policy(policy, run.dir / "policy", task=cfg.task, sight=cfg.sight)
        if cfg.data is None:
            cell.judge_demonstrator(cfg.eval_episodes, cfg.demo_noise, cfg.expert)
        cell.finish_stage("imitation", policy.with_head("ddim"), cfg.eval_episodes)
        return cell.summary
