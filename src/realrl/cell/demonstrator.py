"""Who shows how it is done: a suite's script or trained expert, or any policy that this house has saved."""

from __future__ import annotations

from pathlib import Path

from realrl import envs
from realrl.envs.base import NoisyPolicy
from realrl.policies.folder import acting, check_fit, for_task, load_policy
from realrl.scene import Scene
from realrl.types import Policy, Source, TaskSpec


def demonstrator(spec: TaskSpec, expert: str | None, noise: float = 0.0) -> Policy:
    """Who demonstrates a task. expert: None, a file or folder of the suite's own (`envs.expert`), or the folder of a policy, which is told
    the task's text if it reads. noise: standard deviation of Gaussian noise on the actions, which are then clipped.

    Raises RealrlError where nobody can show the task, for a policy of another size, and for a folder that is none.
    """
    if not saved(expert):
        return envs.expert(spec.twin or spec.id, expert, noise=noise)
    policy, trained_on = load_policy(str(expert))
    check_fit(policy, spec, expert, trained_on)
    told, _ = acting(for_task(policy, spec.id), str(expert), spec)
    return NoisyPolicy(told, noise) if noise else told


def of_scene(scene: Scene, spec: TaskSpec) -> Policy:
    """The demonstrator of a run. The scene's noise is a script's: a policy shows what it does."""
    return demonstrator(spec, scene.expert, 0.0 if saved(scene.expert) else scene.demo_noise)


def source(expert: str | None) -> Source:
    """Who acts: a script (and a suite's trained expert), or a policy."""
    return Source.POLICY if saved(expert) else Source.SCRIPT


def saved(expert: str | None) -> bool:
    """Whether that is the folder of a policy."""
    return expert is not None and (Path(expert) / "policy.json").is_file()
