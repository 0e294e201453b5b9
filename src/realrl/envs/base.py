"""What all suites share: the task's description, the episode rules of an environment, and scripted experts.

A suite is one module beside this one with three functions: `names()`, `make(name, *, reward, horizon, sight, randomise)` and
`expert(name, path)`. Its environment fills in two methods, `_begin` and `_advance`; the rules that must not differ between
suites (seeding, clipping, reward kinds, who ends an episode, what an observation with eyes holds) are here, once.
"""

from __future__ import annotations

import operator
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, SupportsIndex, cast

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from realrl.types import Array, Obs, Plan, Policy, RealrlError, State, TaskSpec


class Eyes(Protocol):
    """What an environment sees beside its state: `realrl.envs.mujoco.sight.Sight` for MuJoCo, a drawing for a toy."""

    senses: Mapping[str, tuple[int, ...]]
    """The shape of every key that `look` returns."""
    own: Sequence[int]
    """Which numbers of the simulator's full state are the robot's own (proprioception)."""

    def look(self, *, first: bool) -> Obs:
        """The observations of `senses` now; first: the episode has just begun."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class NoEyes:
    """No cameras: what is known of the world is told in numbers. own: which of the full state's."""

    def __init__(self, own: Sequence[int]) -> None:
        self.senses: Mapping[str, tuple[int, ...]] = {}
        self.own = own

    def look(self, *, first: bool) -> Obs:
        """Nothing beside the state."""
        return {}

    def close(self) -> None:
        """Nothing to free."""


class Whims(Protocol):
    """What differs from episode to episode: `realrl.envs.mujoco.randomise.Randomiser`."""

    def restore(self) -> None:
        """Undo what the episode before had."""
        ...

    def apply(self, seed: int) -> None:
        """Draw what belongs to an episode's seed."""
        ...


class RobotEnv(gymnasium.Env[Obs, Array]):
    """One robot and one task. Observation {"state": float32 [D]}, action float32 [A] in [-1, 1].

    With eyes `state` holds the robot's own joints alone, the keys of `task.senses` what is seen (`images.<cam>` uint8 [H, W, 3],
    `depth.<cam>` uint16 [H, W] mm, `pointcloud` float32 [N, 3 or 6] m), and `privileged` the simulator's full state, for experts.

    Actions are clipped to [-1, 1] and rescaled to `native_low`..`native_high`, the bounds of the suite. Rewards:
    "sparse" pays 1 at the first success and terminates there; "dense" pays the suite's own reward and goes on.
    `succeeded` says whether the task is solved at this very step (`info["success"]` repeats it for people). An episode is truncated at
    the horizon.

    `watching` may be turned off where nobody will look at what the next steps show: their observations then hold what was seen last, as
    behind a camera that is slower than the control. The first and the last observation of an episode are always fresh.

    `lag` makes readings late, and tells beside the state what they do not show yet.
    """

    def __init__(self, task: TaskSpec, *, reward: str | None = "sparse", kinds: Sequence[str] = ("sparse", "dense"),
                 native_low: Array | float = -1.0, native_high: Array | float = 1.0,
                 eyes: Eyes | None = None, whims: Whims | None = None) -> None:
        """task: as without eyes; reward: one of `kinds`, None for the first. Raises RealrlError on another or a horizon below 1."""
        self.reward_kind = pick_reward(task.id, reward, kinds)
        if task.horizon < 1:
            raise RealrlError(f"{task.id}: horizon is {task.horizon}, it must be at least 1 step")
        if eyes is not None:
            task = replace(task, obs_dim=len(eyes.own), senses=dict(eyes.senses), privileged=task.obs_dim)
        self.task = task
        self.watching = True
        self.succeeded = False
        self._eyes, self._whims = eyes, whims
        self._seen: Obs = {}
        self.observation_space = cast("gymnasium.Space[Obs]", Dict(spaces(task)))
        self.action_space = Box(-1.0, 1.0, (task.action_dim,), np.float32)
        self._low = np.broadcast_to(np.asarray(native_low, np.float64), (task.action_dim,))
        self._half = (np.broadcast_to(np.asarray(native_high, np.float64), (task.action_dim,)) - self._low) / 2
        self._t = -1  # -1: no episode is running
        self._delayed, self._recalled = deque[Obs](maxlen=1), deque[Array](maxlen=0)  # no older than the next to be seen; actions

    def lag(self, recall: int, late: int = 0) -> None:
        """From now on `state` ends with the last `recall` actions [recall * A], the newest last, as they were carried out (before the
        first what keeps the robot still), and all that is seen is `late` control steps old, as on a robot whose readings take that long.
        Where readings are as late as `recall` steps at most, a state tells again all that matters: it is what was, and what has been done
        about it since (delayed Markov decision processes, arXiv 2010.02966). Reward and end stay those of now, and the full
        state of now is `privileged`, for experts. Once, before the first episode. Raises RealrlError for a robot that is to be later than
        it is."""
        task = self.task
        if late and task.live:
            raise RealrlError(f"{task.id}: readings of a robot are as late as they are, and it is {late} steps that are asked for: leave "
                              "--late out (realrl robot serve --sim has --latency-ms)")
        self._delayed, self._recalled = deque(maxlen=late + 1), deque(maxlen=recall)
        if recall or late:
            self.task = replace(task, obs_dim=task.obs_dim + recall * task.action_dim, privileged=task.privileged or task.obs_dim)
            self.observation_space = cast("gymnasium.Space[Obs]", Dict(spaces(self.task)))

    def reset(self, *, seed: SupportsIndex | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        """Start the episode that belongs to `seed`: the same one whatever this object or process ran before.

        Raises RealrlError without a seed >= 0: an unseeded episode could never be repeated.
        """
        if seed is None or operator.index(seed) < 0:
            raise RealrlError(f"{self.task.id}: reset needs a seed >= 0, e.g. reset(seed=0), so that the episode can be repeated")
        seed = operator.index(seed)  # numpy's integers are welcome, gymnasium wants Python's
        super().reset(seed=seed)
        self._t, self.succeeded = 0, False
        if self._whims is None:
            return self._observe(self._begin(seed), first=True), {"success": False}
        self._whims.restore()
        state = self._begin(seed)
        self._whims.apply(seed)
        return self._observe(state, first=True), {"success": False}

    def step(self, action: Array) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """One control step. Raises RealrlError on an action that is not finite or not [A], or when no episode is running."""
        if self._t < 0:
            raise RealrlError(f"{self.task.id}: no episode is running, call reset(seed=...) first")
        action = np.asarray(action, np.float64)
        if action.shape != (self.task.action_dim,) or not np.isfinite(action).all():
            raise RealrlError(f"{self.task.id}: an action must be {self.task.action_dim} finite numbers in [-1, 1], got {action}")
        native = self._low + (np.clip(action, -1.0, 1.0) + 1.0) * self._half
        found = self._advance(native)
        if not isinstance(found, tuple) or len(found) != 4:
            raise RealrlError(f"{self.task.id}: _advance returned {found!r:.200}, wanted are four things: state, reward, whether the task "
                              "ended, whether it is solved")
        state, reward, terminated, success = found
        self._recalled.append(self._carried_out(action))
        if self.reward_kind == "sparse":
            reward, terminated = float(success), terminated or success
        self._t += 1
        self.succeeded = bool(success)
        truncated = not terminated and self._t >= self.task.horizon
        if terminated or truncated:
            self._t = -1
        return self._observe(state, last=terminated or truncated), float(reward), bool(terminated), truncated, {"success": self.succeeded}

    def still(self) -> Array | None:
        """The action [A] that keeps the robot where it is now, None where nobody knows: the first action of an episode may differ from
        it by no more than the guard allows. Zeros under relative control; an environment under absolute control says its own."""
        return np.zeros(self.task.action_dim, np.float32) if self.task.control == "relative" else None

    def close(self) -> None:
        """Free the eyes; a suite frees its simulator beside it."""
        if self._eyes is not None:
            self._eyes.close()

    @abstractmethod
    def _begin(self, seed: int) -> Array:
        """Put the world into the start that belongs to `seed` (`self.np_random` is seeded with it) and return the state [D]."""

    @abstractmethod
    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        """Run one control step with a native action [A]: (state [D], own reward, whether the task itself ended, success)."""

    def _carried_out(self, action: Array) -> Array:
        """What became of an action [A] that was asked for, in [-1, 1]."""
        return np.clip(action, -1.0, 1.0)

    def _observe(self, state: Array, *, first: bool = False, last: bool = False) -> Obs:
        """The observation that follows, at the simulator's full state [D]; first, last: of an episode."""
        return self._as_seen(self._look(state, first=first, last=last), first)

    def _as_seen(self, now: Obs, first: bool) -> Obs:
        """What is seen when `now` would be: see `lag`."""
        late, recall = self._delayed.maxlen != 1, self._recalled.maxlen
        if not (late or recall):
            return now
        if first:
            self._delayed.clear()
            still = self.still()
            self._recalled.extend([np.zeros(self.task.action_dim) if still is None else still] * (recall or 0))
        self._delayed.append(now)
        seen = self._delayed[0]
        return {**seen, "state": np.concatenate([seen["state"], *self._recalled], dtype=np.float32), "privileged": full_state(now)}

    def _look(self, state: Array, *, first: bool = False, last: bool = False) -> Obs:
        """The observation at the simulator's full state [D]; first, last: of an episode."""
        try:
            state = np.array(state, np.float32)  # a copy: simulators hand out views of buffers they write again
        except (TypeError, ValueError) as error:
            raise RealrlError(f"{self.task.id}: _begin or _advance returned {state!r:.200} for a state, wanted are numbers") from error
        size = self.task.privileged or self.task.obs_dim  # with `lag` the first is what the second was
        if state.shape != (size,):
            raise RealrlError(f"{self.task.id}: a state of shape {list(state.shape)}, its TaskSpec says {size} numbers: "
                              "mend obs_dim or what _begin and _advance return")
        if self._eyes is None:
            return {"state": state}
        if self.watching or first or last:
            self._seen = self._eyes.look(first=first)
        return {"state": state[list(self._eyes.own)], "privileged": state, **self._seen}


def spaces(task: TaskSpec) -> dict[str, gymnasium.Space[Any]]:
    """The space of every observation: float32 without bounds, but for pictures and depths, whose integers have theirs."""
    spaces: dict[str, gymnasium.Space[Any]] = {"state": Box(-np.inf, np.inf, (task.obs_dim,), np.float32)}
    if task.privileged:
        spaces["privileged"] = Box(-np.inf, np.inf, (task.privileged,), np.float32)
    for key, shape in task.senses.items():
        kind = key.partition(".")[0]
        if kind == "images":
            spaces[key] = Box(0, 255, shape, cast(Any, np.uint8))
        elif kind == "depth":
            spaces[key] = Box(0, 65535, shape, cast(Any, np.uint16))
        else:
            spaces[key] = Box(-np.inf, np.inf, shape, np.float32)
    return spaces


def pick_reward(task: str, reward: str | None, kinds: Sequence[str]) -> str:
    """The reward asked for, the first of `kinds` for None. Raises RealrlError when the task does not have it."""
    if reward is None:
        return kinds[0]
    if reward not in kinds:
        raise RealrlError(f"{task}: no {reward!r} reward, this task has {' and '.join(map(repr, kinds))}")
    return reward


def full_state(obs: Obs) -> Array:
    """The simulator's state in an observation, with eyes or without."""
    return obs["privileged"] if "privileged" in obs else obs["state"]


class ScriptedPolicy:
    """A memoryless expert: `control` maps states [B, D] to actions [B, A]; what exceeds [-1, 1] is clipped."""

    chunk = 1
    n_obs = 1

    def __init__(self, name: str, control: Callable[[Array], Array]) -> None:
        self.name = name
        self._control = control

    def start(self, batch: int) -> State:
        """Nothing to remember."""
        return {}

    def act(self, obs: Obs, state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
        """obs["privileged"], or obs["state"] without eyes: [B, H, D], the last of H counts -> action [B, 1, A]. `greedy` and `rng`
        change nothing here."""
        action = np.asarray(self._control(full_state(obs)[:, -1]), np.float32)
        return Plan(np.clip(action, -1.0, 1.0)[:, None]), state


class NoisyPolicy:
    """Another policy with Gaussian noise of standard deviation `noise` on its actions, then clipped: a worse demonstrator.

    The noise is the demonstrator's own, so it is added when `greedy` too; it comes from each row's generator.
    """

    def __init__(self, inner: Policy, noise: float) -> None:
        if not noise >= 0:
            raise RealrlError(f"expert {inner.name}: noise is {noise}, a standard deviation cannot be negative")
        self.name = f"{inner.name}+noise{noise:g}"
        self.chunk, self.n_obs = inner.chunk, inner.n_obs
        self._inner, self._noise = inner, noise

    def start(self, batch: int) -> State:
        """Fresh memory of the inner policy."""
        return self._inner.start(batch)

    def act(self, obs: Obs, state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
        """The inner plan [B, K, A] with noise."""
        plan, state = self._inner.act(obs, state, greedy=greedy, rng=rng)
        noise = np.stack([g.standard_normal(plan.action.shape[1:]) for g in rng]) * self._noise
        return Plan(np.clip(plan.action + noise, -1.0, 1.0).astype(np.float32), plan.extra), state
