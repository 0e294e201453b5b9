"""Plays recorded actions in a simulator from where the recording began, and says how far the two drift apart.

A simulator that can begin where a recording began has a method `restore(episode) -> first observation`:
- "pusht/...": disc and block as first observed;
- "quadruped/...-from-back": where the episode that was played before it left the robot, or on its back;
- "adroit/door": hand, arm and door frame, worked out from the first observation;
- "robosuite/NAME" and "robosuite-1.0/NAME", for recordings of robosuite alone: the simulator's first state, see
  `realrl.envs.robosuite`.
Any other begins from the seed that the episode was recorded with. An environment may also have `difference(recorded, replayed)`, for
observations that are no plain vectors (an angle that jumps by 2 pi).

`replay` works on what `data.store.Store.read` and `data.formats.read` give.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from realrl import envs
from realrl.cell.collect import Continuing
from realrl.envs import robosuite
from realrl.envs.base import RobotEnv
from realrl.robots.guard import box_guard
from realrl.scene import GuardConfig
from realrl.types import Array, Episode, Obs, RealrlError

TOLERANCE = 1e-3
LONG = 100_000  # steps: no clock cuts a replay short


@runtime_checkable
class Restores(Protocol):
    """An environment that can begin where a recording began."""

    def restore(self, episode: Episode) -> Obs:
        """The first observation, as replayed. Raises RealrlError when the recording does not hold it."""
        ...


@runtime_checkable
class _Compares(Protocol):
    """An environment whose observations are compared in its own way."""

    def difference(self, recorded: Array, replayed: Array) -> Array:
        """[T, D], [T, D] -> [T, any], what lies between them."""
        ...


@dataclass(frozen=True)
class Replay:
    """One episode played again. distance: [n+1] norm of the difference between recorded and replayed observation, the start first,
    n the steps that ran (fewer than recorded where the task ended sooner); first: the first step (0: the start) further apart than
    the tolerance, None without one; recorded, succeeded: whether the recording (None: unknown) and its replay ended in success.
    """

    episode: int
    distance: Array
    first: int | None
    recorded: bool | None
    succeeded: bool
    observed: Array
    """[n+1, D], what the replay saw."""

    def __len__(self) -> int:
        return len(self.distance) - 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values: start, median, largest and last distance."""
        return {"episode": self.episode, "steps": len(self), "start": float(self.distance[0]), "median": float(np.median(self.distance)),
                "largest": float(self.distance.max()), "last": float(self.distance[-1]), "first_beyond": self.first,
                "success_recorded": self.recorded, "success_replayed": self.succeeded}


def replay(episodes: Iterable[Episode], env: RobotEnv | str, *, tolerance: float = TOLERANCE,
           guard: GuardConfig | None = None) -> Iterator[Replay]:
    """Play every episode's actions and compare, one after the other. env: an environment, or a task's name for `player`;
    guard: what stands between the recording and a robot.

    The success of a replay is judged over the same steps as the recording's: at the last one. Raises RealrlError when an episode
    does not fit the environment (shapes, a start that cannot be restored) or the tolerance is not above 0.
    """
    if not tolerance > 0:
        raise RealrlError(f"a tolerance of {tolerance} finds nothing or everything: give one above 0, e.g. {TOLERANCE}")
    world = player(env) if isinstance(env, str) else env
    try:
        for number, episode in enumerate(episodes):
            yield _play(world, episode, number, tolerance, guard)
    finally:
        if world is not env:
            world.close()


def player(task: str) -> RobotEnv:
    """The environment of a task for replays: it does not end at success (dense reward) nor by a clock.

    "robosuite/NAME" and "robosuite-1.0/NAME" are there for replays only. Raises RealrlError as `envs.make` does.
    """
    suite, _, name = task.partition("/")
    if suite in robosuite.SUITES:
        return robosuite.make(suite, name, horizon=LONG)
    return envs.make(task, reward="dense", horizon=LONG)


def _play(env: RobotEnv, episode: Episode, number: int, tolerance: float, limits: GuardConfig | None) -> Replay:
    recorded = episode.obs.get("state")
    if recorded is None:
        raise RealrlError(f"episode {number}: it has no observation.state to compare a replay with")
    want = (env.task.obs_dim, env.task.action_dim)
    if (recorded.shape[-1], episode.action.shape[-1]) != want:
        raise RealrlError(f"episode {number}: {recorded.shape[-1]} observed numbers and {episode.action.shape[-1]} actions, {env.task.id} "
                          f"has {want[0]} and {want[1]}: name the task it was recorded on")
    largest = float(np.abs(episode.action).max(initial=0.0))
    if largest > 2.0:
        raise RealrlError(f"episode {number}: actions reach {largest:.3g}, far outside [-1, 1]: import it with the range of its actions")
    obs = _begin(env, episode, number)
    seen, guard, success = [obs["state"]], box_guard(env, limits), False
    guard.reset(env.still())
    for action in episode.action:
        obs, _, terminated, truncated, _ = env.step(guard(obs, action))
        seen.append(obs["state"])
        success = env.succeeded
        if terminated or truncated:
            break
    observed = np.stack(seen)
    gap = _difference(env, np.asarray(recorded[:len(observed)], np.float64), observed.astype(np.float64))
    distance = np.linalg.norm(gap, axis=-1)
    beyond = ~(distance <= tolerance)  # NaN counts
    return Replay(number, distance, int(beyond.argmax()) if beyond.any() else None,
                  episode.succeeded if episode.judged else None, success, observed)


def _begin(env: RobotEnv, episode: Episode, number: int) -> Obs:
    """Where the recording says, by restoring it or by its seed."""
    if isinstance(env, Restores):
        try:
            return env.restore(episode)
        except RealrlError:
            if episode.seed is None or isinstance(env, Continuing):
                raise
    if episode.seed is None:
        raise RealrlError(f"episode {number}: it names no seed and {env.task.id} cannot begin at a recorded state: it cannot be replayed")
    return env.reset(seed=episode.seed)[0]


def _difference(env: RobotEnv, recorded: Array, replayed: Array) -> Array:
    if isinstance(env, _Compares):
        return env.difference(recorded, replayed)
    gap: Array = replayed - recorded
    return gap
