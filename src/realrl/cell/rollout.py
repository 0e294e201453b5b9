"""The control loop: observe, plan, human, guard, step, record, pace. A robot is a batch of one; simulation runs many.

Slots work decision by decision: one batched plan for all, then every slot carries out its chunk, so the network always sees the
largest batch there is. An episode's noise comes from a generator of its own, seeded by (noise seed, episode seed): the episode is
the same whatever else is in the batch and whichever worker runs it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from realrl.cell.products import small_products
from realrl.robots.human import Attendant
from realrl.types import Array, Env, Episode, Guard, Intervention, Moment, Obs, Policy, RealrlError, RewardModel, Source, State, Step


class Recording(Protocol):
    """Takes an episode down step by step, see `realrl.cell.book`."""

    def begin(self, seed: int) -> None:
        """An episode begins."""
        ...

    def step(self, step: Step) -> None:
        """One step: when this returns, a kill can no longer lose it. Raises RealrlError where it cannot be recorded."""
        ...

    def end(self, episode: Episode) -> None:
        """The episode as a whole, with the observation that followed its last step."""
        ...


@runtime_checkable
class _Forgetful(Protocol):
    """A guard that remembers its last action."""

    def reset(self, last: Array | None = None) -> None: ...


@runtime_checkable
class _Poised(Protocol):
    """An environment that knows which action keeps its robot where it is, see `realrl.envs.base.RobotEnv`."""

    def still(self) -> Array | None: ...


@runtime_checkable
class Foresighted(Protocol):
    """A policy that has decided more than its last plan carried out."""

    def interrupt(self, state: State, row: int) -> None: ...


@runtime_checkable
class Mindful(Protocol):
    """A policy that remembers what was done, which need not be what it wanted: a guard, a robot or a person may have decided otherwise."""

    def done(self, state: State, row: int, action: Array) -> None: ...


@runtime_checkable
class _Beginning(Protocol):
    """Who wants to know that an episode begins."""

    def begin(self, seed: int) -> None: ...


@runtime_checkable
class _Knowing(Protocol):
    """An environment that knows whether its task is solved at this very step."""

    succeeded: bool


@runtime_checkable
class _Distant(Protocol):
    """A robot behind a server, which says what it made of an action and wants to know who chose it, see `realrl.robots.client`."""

    who: int
    sent: Array | None


@runtime_checkable
class _Watchful(Protocol):
    """An environment with eyes that may be closed, see `realrl.envs.base.RobotEnv`."""

    watching: bool


@dataclass
class _Slot:
    """One robot and the episode it is in."""

    env: Env
    guard: Guard
    recording: Recording | None = None
    noise_seed: int = 0
    seed: int = -1
    rng: np.random.Generator = field(default_factory=np.random.default_rng)
    frames: list[Obs] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    extras: list[dict[str, Array]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.knows = isinstance(self.env, _Knowing)  # asked once: it costs as much as a step
        self.distant = isinstance(self.env, _Distant)
        self.watchful = isinstance(self.env, _Watchful)

    def solved(self, reward: float, terminated: bool) -> bool:
        """Whether the task is solved now: the environment's word, or a reward that ends the episode."""
        return bool(self.env.succeeded) if self.knows else terminated and reward > 0  # type: ignore[attr-defined]

    def begin(self, seed: int) -> None:
        obs, _ = self.env.reset(seed=seed)
        self.seed, self.frames, self.steps, self.extras = seed, [obs], [], []
        self.rng = np.random.default_rng([self.noise_seed, seed])
        if isinstance(self.guard, _Forgetful):
            self.guard.reset(self.env.still() if isinstance(self.env, _Poised) else None)  # not from the episode before
        if self.recording:
            _check_readings(self, obs)
            self.recording.begin(seed)

    def history(self, length: int) -> list[Obs]:
        """The last `length` observations, an episode's first one repeated."""
        return [self.frames[max(i, 0)] for i in range(len(self.frames) - length, len(self.frames))]


@dataclass
class Pace:
    """Keeps a fixed control period [s]; a step that comes late is not made up for by hurrying the next ones."""

    period: float
    due: float = 0.0

    def wait(self) -> None:
        """Sleep until the next tick."""
        now = time.monotonic()
        self.due = max(self.due + self.period, now) if self.due else now + self.period
        time.sleep(max(self.due - now, 0.0))


def rollout(envs: Sequence[Env], policy: Policy, guards: Sequence[Guard], seeds: Sequence[int], **options: Any) -> Iterator[Episode]:
    """Run one whole episode for every seed and yield each as it finishes; `play` without the steps on the way, and with its options."""
    for found in play(envs, policy, guards, seeds, **options):
        if isinstance(found, Episode):
            yield found


def play(envs: Sequence[Env], policy: Policy, guards: Sequence[Guard], seeds: Iterable[int], *, greedy: bool, noise_seed: int = 0,
         task: str = "", source: Source = Source.POLICY, human: Intervention | None = None, pace: Callable[[], None] | None = None,
         glance: bool = False, recording: Recording | None = None, referee: RewardModel | None = None) -> Generator[Moment | Episode]:
    """Run one whole episode for every seed, and yield every step as it is done and every episode as it finishes.

    recording: takes down every step of one robot, before anybody can learn from it; it wants one environment. referee: says in the task's
    place what is rewarded and when it is done, for one robot; where the environment ends an episode all the same, it is as if a clock had.

    envs, guards: one of each per slot. greedy: the policy's deployed behaviour, else its exploring one. An intervention takes
    effect at the very step and ends the running plan. glance: simulated eyes open only for what a plan will be made from and at an
    episode's end; in between the last sight is held (of a history at the end all but the last frame may be, too).

    Raises ValueError when envs and guards do not pair up, for a glance with a person, who may end a plan at any step, and for a
    recording of several robots at once; RealrlError where a recorded robot's reading is not finite.
    """
    _refuse(len(envs), len(guards), glance and human is not None, recording is not None)
    unseen = max(policy.chunk - policy.n_obs, 0) if glance else 0
    _watch(envs)
    slots, waiting = [], iter(seeds)
    attending = human if isinstance(human, Attendant) else None
    told = [x for x in (attending, referee) if isinstance(x, _Beginning)]

    def begin(slot: _Slot, seed: int) -> None:
        slot.begin(seed)
        for one in told:
            one.begin(seed)

    for env, guard, seed in zip(envs, guards, waiting, strict=False):
        slots.append(_Slot(env, guard, recording, noise_seed))
        begin(slots[-1], seed)
    state, mindful = policy.start(len(slots)), policy if isinstance(policy, Mindful) else None
    while slots:
        with small_products():
            plan, state = policy.act(_stack(slots, policy.n_obs), state, greedy=greedy, rng=[s.rng for s in slots])
        keep = []
        for i, slot in enumerate(slots):
            slot.extras.append({k: v[i] for k, v in plan.extra.items()})
            over = yield from _carry_out(slot, plan.action[i, :policy.chunk], source, human, attending, pace, unseen, referee)
            if not over:
                if slot.steps[-1].source == Source.HUMAN and isinstance(policy, Foresighted):
                    policy.interrupt(state, i)
                if mindful and not np.array_equal(slot.steps[-1].action, slot.steps[-1].proposed):
                    mindful.done(state, i, slot.steps[-1].action)
                keep.append(i)
                continue
            episode = _finish(slot, task, policy.name)
            if attending:
                attending.end(episode.succeeded)
            if recording:
                recording.end(episode)
            yield episode
            following = next(waiting, None)
            if following is not None:
                begin(slot, following)
                _forget(state, policy, i)
                keep.append(i)
        if len(keep) < len(slots):
            slots = [slots[i] for i in keep]
            state = {k: v[keep] for k, v in state.items()}


def _watch(envs: Sequence[Env]) -> None:
    for env in envs:
        if isinstance(env, _Watchful):
            env.watching = True


def _refuse(envs: int, guards: int, helped_glance: bool, recorded: bool) -> None:
    """What `play` cannot do."""
    if envs != guards:
        raise ValueError(f"{envs} envs but {guards} guards: every robot needs its own")
    if helped_glance:
        raise ValueError("glance=True with a human: the next plan may begin at any step, so every step must be seen")
    if recorded and envs > 1:
        raise ValueError(f"a recording of {envs} robots at once: one recorder takes down one robot")


def _stack(slots: Sequence[_Slot], length: int) -> Obs:
    histories = [s.history(length) for s in slots]
    return {k: np.stack([np.stack([f[k] for f in h]) for h in histories]) for k in histories[0][0]}


def _carry_out(slot: _Slot, plan: Array, source: Source, human: Intervention | None, attending: Attendant | None,
               pace: Callable[[], None] | None, unseen: int, referee: RewardModel | None) -> Generator[Moment, None, bool]:
    """Execute a plan [K, A] until it is used up, a person takes over, or the episode ends. Yields the steps, returns whether it ended.

    attending: the person, where they stay for whole episodes; unseen: how many steps from the plan's beginning nobody will look at.
    """
    for j, proposed in enumerate(plan):
        obs = slot.frames[-1]
        if unseen and slot.watchful:
            slot.env.watching = j >= unseen  # type: ignore[attr-defined]
        taken = human.poll(obs, proposed) if human else None
        action = slot.guard(obs, proposed if taken is None else taken)
        who = source if taken is None else Source.HUMAN
        if slot.distant:
            slot.env.who = int(who)  # type: ignore[attr-defined]
        after, reward, terminated, truncated, _ = slot.env.step(action)
        if slot.distant:
            action = slot.env.sent  # type: ignore[attr-defined]  # its own guard had the last word
        solved = slot.solved(float(reward), terminated)
        if referee:
            reward, done = referee(obs, action, after)
            solved, terminated, truncated = done >= 0.5, done >= 0.5, (truncated or terminated) and done < 0.5
        if attending and not terminated and (said := attending.verdict):
            reward, solved = float(said == "success"), said == "success"
            terminated, truncated = said != "abort", said == "abort"
        slot.steps.append(Step(obs, proposed, action, who, float(reward), terminated, truncated, solved, time.monotonic(), j == 0))
        slot.frames.append(after)
        if slot.recording:
            slot.recording.step(slot.steps[-1])
            _check_readings(slot, after)
        if pace:
            pace()
        yield Moment(slot.steps[-1], after, slot.seed, first=len(slot.steps) == 1)
        if terminated or truncated:
            return True
        if taken is not None:
            return False
    return False


def _finish(slot: _Slot, task: str, policy: str) -> Episode:
    keys = slot.extras[0].keys() if slot.extras else ()
    extra = {k: np.stack([e[k] for e in slot.extras]) for k in keys}
    return Episode.from_steps(slot.steps, slot.frames[-1], task=task, policy=policy, seed=slot.seed, extra=extra)


def _check_readings(slot: _Slot, obs: Obs) -> None:
    """Nobody may act on a dead sensor: what was recorded so far is kept, and the robot stops here."""
    for key, values in obs.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise RealrlError(f"start {slot.seed}: the reading {key!r} is NaN or infinite after {len(slot.steps)} steps; the episodes "
                              "before are recorded: mend the sensor, then go on with --resume")


def _forget(state: State, policy: Policy, row: int) -> None:
    for key, fresh in policy.start(1).items():
        kept = state[key]  # what was made in inference mode must not be written into outside it
        state[key] = kept.clone() if isinstance(kept, Tensor) else kept.copy()
        state[key][row] = fresh[0]
