"""A policy pool (RoboCat, arXiv 2306.11706): tasks that undo one another, run in turn by one robot, without resets.

One task's end is the next one's start, so that a robot practises for hours and every task from many starts. The next task is the one of
those that can be done from here that waited longest. Where none can, or all that was tried of late failed, somebody puts the scene in
order: an intervention, which is counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from realrl.cell.rollout import rollout
from realrl.types import Array, Env, Episode, Guard, Policy, RealrlError

PATIENCE = 4
"""Failures in a row after which somebody comes."""
World = dict[str, Array]


@runtime_checkable
class Shared(Protocol):
    """An environment that can go on in the world that another task's left."""

    def world(self) -> World:
        """All that the world is now."""

    def enter(self, world: World | None) -> None:
        """The next episode begins in this world; None: in a start of its own, once more."""

    def startable(self, world: World) -> bool:
        """Whether the task is still to be done in this world, and can be."""


def in_turn(envs: Mapping[str, Env], policies: Mapping[str, Policy], guards: Mapping[str, Guard], seeds: Sequence[int], *,
            noise_seed: int) -> Iterator[tuple[str, Episode, bool]]:
    """(task, episode, whether somebody put the scene in order before it) for every seed; who sets up at first is not counted. Raises
    RealrlError for a task whose world cannot be shared."""
    for task, env in envs.items():
        if not isinstance(env, Shared):
            raise RealrlError(f"{task}: its world cannot be handed on to another task, so that it has to be reset: turn --pool off, or "
                              "name tasks of ogbench's scene")
    shared: dict[str, Any] = dict(envs)
    world: World | None = None
    waiting, failed = list(envs), 0
    for number, seed in enumerate(seeds):
        ready = [] if world is None or failed >= PATIENCE else [task for task in waiting if shared[task].startable(world)]
        task = ready[0] if ready else waiting[0]
        shared[task].enter(world if ready else None)
        waiting.remove(task)
        waiting.append(task)
        (episode,) = rollout([envs[task]], policies[task], [guards[task]], [seed], greedy=False, noise_seed=noise_seed, task=task)
        world = shared[task].world()
        helped = not ready and number > 0
        failed = 0 if episode.succeeded else (1 if helped else failed + 1)
        shared[task].enter(None)
        yield task, episode, helped
