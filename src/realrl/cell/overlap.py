"""Plans while moving: what a robot does while its next plan is being made, where that takes longer than a control step.

`Overlap` turns a policy of chunks into one that decides at every step. Who plans from the observation of step t has the plan at t + delay:

- "stop" asks when a plan is used up, and holds the robot meanwhile;
- "naive" asks that many steps earlier, goes on with the old plan, and leaves out of the new one what is over when it comes;
- "best" draws several such plans and takes the one that agrees best with what the robot does meanwhile (as Bidirectional Decoding does,
  arXiv 2408.17355);
- "prefix" tells the policy what is decided for those steps, so that its plan goes on from there. A flow policy that was trained for it
  (training-time real-time chunking, arXiv 2512.05964; `--policy.flow.delay`) is needed.

In lock-step simulation the delay is counted in steps and repeats to the bit; with `beside` plans are made in a thread and come when they
come.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np

from realrl.config import check
from realrl.types import Array, Obs, Plan, Policy, RealrlError, State

How = Literal["stop", "naive", "best", "prefix"]
WAYS: tuple[How, ...] = get_args(How)
PROBES, SPARE = 5, 1.5  # plans that are timed before the first attempt, and how much longer than the slowest a plan may take


@dataclass(frozen=True)
class OverlapConfig:
    """How plans follow one another."""

    how: How = "naive"
    """What happens while a plan is made."""
    delay: int = 1
    """Control steps from an observation to the plan that was made of it."""
    samples: int = 8
    """Plans that "best" draws."""

    def __post_init__(self) -> None:
        check(self, delay="[0, 1000]", samples="[1, 1000]")


@dataclass
class _Run:
    """One robot's plans. queue: actions of the plan in use [K, A]; at: place of the next one; ask: place at which a plan is asked for;
    stop: place after the last one that may be used; age: steps since what the plan was made of was seen; waited: steps since a plan was
    asked for, -1 where none is; coming: that plan, or who makes it; last: the newest action [A]."""

    queue: Array | None = None
    at: int = 0
    ask: int = 0
    stop: int = 0
    age: int = 0
    waited: int = -1
    coming: Array | Future[Any] | None = None
    last: Array | None = None


class Overlap:
    """A policy that decides at every step, out of one that plans chunks.

    relative: an action of zeros keeps the robot where it is; else the last action does. An episode's first plan is waited for: the robot
    stands still then. The steps' `extra` hold age (steps since what an action was planned from was seen) and begins (a plan's first).
    Raises RealrlError where plans are too short for the delay, or the policy cannot do what is asked of it.
    """

    chunk = 1

    def __init__(self, inner: Policy, cfg: OverlapConfig, *, relative: bool, beside: bool = False) -> None:
        self.name, self.n_obs, self.overruns = inner.name, inner.n_obs, 0
        self._inner, self._cfg, self._relative = inner, cfg, relative
        self._pool = ThreadPoolExecutor(1) if beside else None
        memory = inner.start(1)
        if strange := memory.keys() - {"ahead", "decided"}:
            raise RealrlError(f"{inner.name} remembers {', '.join(sorted(strange))} from plan to plan: its plans cannot be made ahead")
        able = memory["ahead"].shape[1] if "ahead" in memory else 0
        if cfg.how == "prefix" and cfg.delay and getattr(inner, "head", "") == "one-step":
            raise RealrlError(f"the one-step head of {inner.name} is told nothing of what is decided: act with its flow head, or take "
                              "another way than prefix")
        if cfg.how == "prefix" and able < cfg.delay:
            raise RealrlError(f"{inner.name} was trained for {able} decided actions, {cfg.delay} are to be: train a flow policy with "
                              f"--policy.flow.delay {cfg.delay}, or take another way than prefix")

    def start(self, batch: int) -> State:
        """No plans yet."""
        runs = np.empty(batch, object)
        runs[:] = [_Run() for _ in range(batch)]
        return cast(State, {"runs": runs})

    def interrupt(self, state: State, row: int) -> None:
        """Somebody else moved this robot: its plans are forgotten."""
        _runs(state)[row] = _Run()

    def act(self, obs: Obs, state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
        """The next action of each robot [B, 1, A]."""
        runs: list[_Run] = list(_runs(state))
        begins = np.zeros(len(runs), bool)
        for _ in range(2):  # long before a plan ends the next one may have to be asked for, as soon as it begins
            if asking := [i for i, run in enumerate(runs) if run.waited < 0 and run.at >= run.ask]:
                self._ask(asking, runs, obs, greedy, rng)
            begins |= [self._take(run) for run in runs]
        action = np.stack([self._next(run) for run in runs])[:, None]
        ages = np.array([run.age for run in runs], np.float32)
        for run in runs:
            run.age, run.waited = run.age + 1, run.waited + (run.waited >= 0)
        return Plan(action, {"age": ages, "begins": begins}), state

    def _ask(self, rows: list[int], runs: list[_Run], obs: Obs, greedy: bool, rng: Sequence[np.random.Generator]) -> None:
        """Have plans made for some robots, of what they see now."""
        groups = [rows] if self._pool is None else [[i] for i in rows]
        for group in groups:
            decided = [self._decided(runs[i]) for i in group]
            job = decided, {key: x[group] for key, x in obs.items()}, greedy, [rng[i] for i in group]
            if self._pool is None:
                for i, plan in zip(group, self._plans(*job), strict=True):
                    runs[i].coming = plan
            else:
                runs[group[0]].coming = self._pool.submit(self._plans, *job)
        for i in rows:
            runs[i].waited = 0

    def _plans(self, decided: Sequence[Array], obs: Obs, greedy: bool, rng: Sequence[np.random.Generator]) -> list[Array]:
        """A plan [K, A] for each robot. decided: what it does meanwhile [<= delay, A]."""
        if self._cfg.how != "best":
            return list(self._inner.act(obs, self._told(decided), greedy=greedy, rng=rng)[0].action)
        many = [i for i in range(len(decided)) for _ in range(self._cfg.samples)]
        seen, draws = {key: x[many] for key, x in obs.items()}, [rng[i] for i in many]
        drawn = self._inner.act(seen, self._inner.start(len(many)), greedy=greedy, rng=draws)[0].action
        plans = drawn.reshape(len(decided), self._cfg.samples, *drawn.shape[1:])
        apart = [np.square(own[:, :len(known)] - known).sum((1, 2)) for own, known in zip(plans, decided, strict=True)]
        return [own[int(np.argmin(off))] for own, off in zip(plans, apart, strict=True)]

    def _decided(self, run: _Run) -> Array:
        """What the robot will do until a plan that is asked for now is there [<= delay, A]."""
        if run.queue is None:
            return np.zeros((0, 1), np.float32)
        return run.queue[run.at:run.at if self._cfg.how == "stop" else min(run.at + self._cfg.delay, run.stop)]

    def _told(self, decided: Sequence[Array]) -> State:
        """The inner policy's state, which says what is decided where it can be told."""
        state = self._inner.start(len(decided))
        if self._cfg.how == "prefix":
            for i, known in enumerate(decided):
                if len(known):
                    state["ahead"][i, :len(known)] = state["ahead"].new_tensor(known)
                    state["decided"][i] = len(known)
        return state

    def _take(self, run: _Run) -> bool:
        """Go over to the plan that was asked for, if it is there."""
        if run.waited < 0 or not self._there(run):
            return False
        plan = run.coming.result()[0] if isinstance(run.coming, Future) else run.coming
        assert plan is not None
        over = 0 if run.queue is None or self._cfg.how == "stop" else run.waited
        count = min(self._inner.chunk, len(plan) - over)
        delay = self._cfg.delay if self._cfg.how != "stop" else 0
        if count < 1 or len(plan) < over + max(count - delay, 0) + delay:
            raise RealrlError(f"{self.name} plans {len(plan)} steps, too few for a delay of {self._cfg.delay}: train it with --policy.plan "
                              f"{self._cfg.delay + max(self._inner.chunk, self._cfg.delay)} or more, or take the way 'stop'")
        run.queue, run.at, run.age, run.waited, run.coming = plan, over, run.waited, -1, None
        run.ask = over + max(count - delay, 0)
        run.stop = over + count if self._cfg.how == "stop" else len(plan)
        return True

    def _there(self, run: _Run) -> bool:
        if run.queue is None:
            return True  # the robot stands: a plan that is still in the making is waited for
        return run.coming.done() if isinstance(run.coming, Future) else run.waited >= self._cfg.delay

    def _next(self, run: _Run) -> Array:
        """The next action, or what holds the robot where the plan is used up."""
        assert run.queue is not None
        if run.at < run.stop:
            run.last = run.queue[run.at]
            run.at += 1
            return run.last
        self.overruns += self._cfg.how != "stop"
        assert run.last is not None
        return np.zeros_like(run.last) if self._relative else run.last


def _runs(state: State) -> Array:
    """The robots' plans [B]: an array of objects, of which the control loop takes and replaces rows as of any state."""
    return cast(Array, state["runs"])


def steps_of(policy: Policy, obs: Obs, dt: float) -> tuple[int, float]:
    """(control steps that a plan takes with something to spare, the slowest of a few in seconds). obs: of one robot [1, n, ...]."""
    slowest = 0.0
    for i in range(PROBES + 1):
        begun = time.monotonic()
        policy.act(obs, policy.start(1), greedy=True, rng=[np.random.default_rng(i)])
        slowest = max(slowest, time.monotonic() - begun) if i else 0.0  # the first one makes what all others use
    return math.ceil(SPARE * slowest / dt), slowest
