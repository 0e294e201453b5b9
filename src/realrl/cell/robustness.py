"""What becomes of a policy when the scene is not the one it was trained in: success under one change at a time, and under all.

The changes are drawn anew for every episode, from its seed, so two policies meet the same ones. The starts are the held-out ones of
`realrl.cell.evaluate`, so every row of the table differs from the unchanged one in nothing but the change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Protocol

from realrl import envs
from realrl.cell.collect import Collector
from realrl.cell.evaluate import Evaluation, summarise, trials
from realrl.scene import CollectConfig, RandomiseConfig, SightConfig
from realrl.types import Episode, Policy

CHANGES = {
    "light": RandomiseConfig(light=0.5), "colours": RandomiseConfig(colour=0.15), "camera moved": RandomiseConfig(camera=0.02, angle=2.0),
    "distractors": RandomiseConfig(distractors=4), "friction": RandomiseConfig(friction=0.3), "mass": RandomiseConfig(mass=0.3),
    "all of them": RandomiseConfig(light=0.5, colour=0.15, camera=0.02, angle=2.0, distractors=4, friction=0.3, mass=0.3)}
"""One row each. Magnitudes of a work cell that was moved, repainted and worn, see `RandomiseConfig` for their units."""



class Watch(Protocol):
    """Wraps episodes, e.g. in a progress bar."""

    def __call__(self, episodes: Iterable[Episode], /, title: str, total: int) -> Iterable[Episode]: ...


def scene_changes(task: str, sight: SightConfig) -> None:
    """Raise RealrlError where a task's scene cannot be changed: before anything long."""
    envs.make(task, sight=sight, randomise=CHANGES["friction"]).close()


def changes(sight: SightConfig) -> dict[str, RandomiseConfig]:
    """The changes that reach a policy: without eyes those of the physics, without colours nothing of light and paint; rays see paint, but
    no light."""
    coloured = sight.kind == "pointcloud" and sight.colour
    names = {"friction", "mass"} if sight.kind == "state" else set(CHANGES)
    if not (sight.kind == "rgb" or (coloured and sight.source == "depth")):
        names -= {"light"}
    if not (sight.kind == "rgb" or coloured):
        names -= {"colours"}
    return {name: change for name, change in CHANGES.items() if name in names}


def robustness(policy: Policy, task: str, n: int, *, sight: SightConfig, collect: CollectConfig, dt: float, horizon: int | None = None,
               seed: int = 0, recall: int = 0, late: int = 0,
               watch: Watch = lambda episodes, title, total: episodes) -> Iterator[tuple[str, Evaluation]]:
    """(change, what n held-out episodes under it say) for every change that reaches the policy, as they are finished.

    dt: seconds of a control step; recall, late: see `realrl.envs.base.RobotEnv.lag`; watch: wraps the episodes, e.g. in a progress bar.
    Raises RealrlError for a task whose scene cannot be changed.
    """
    for name, change in changes(sight).items():
        with Collector(task, collect, horizon=horizon, sight=sight, randomise=change, recall=recall, late=late) as collector:
            found = trials(collector, policy, n, seed=seed, watch=partial(watch, title=name, total=n))
            yield name, summarise(found, dt)
