"""A policy at work on a served robot, with a person beside it: every step recorded, every attempt counted, parked whatever happens."""

from __future__ import annotations

import gc
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from realrl.cell.evaluate import Rate, wilson
from realrl.cell.latency import Around
from realrl.cell.rollout import play
from realrl.data.record.recorder import Recorder
from realrl.robots.client import RobotClient
from realrl.robots.clock import CLIENT, hurried
from realrl.robots.guard import box_guard
from realrl.types import Array, Episode, Moment, Obs, Policy, RealrlError, Source, Step

AGED = 0.15  # s: a key that was pressed longer ago is no longer held
JOG = 0.05  # of a channel's range a step, where actions are places
PAIRS = ("qa", "ws", "ed", "rf", "tg", "yh", "uj", "ik")
"""Keys that move a channel up and down."""
HELP = "tab take over / give back   enter success   x failure   z discard   n next   q/a w/s e/d ... move while taken over"


class Operator:
    """What a person says by keys. `press` may be called from any thread; the loop asks by `poll`."""

    def __init__(self, env: RobotClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._env, self._clock = env, clock
        self.took_over = self.discards = False
        self._key, self._pressed = "", -np.inf

    def press(self, key: str) -> None:
        """A key, as a terminal sends it."""
        if key == "\t":
            self.took_over, self._key = not self.took_over, ""
        elif key in ("\r", "\n"):
            self._env.verdict = "success"
        elif key == "x":
            self._env.verdict = "failure"
        elif key in ("z", "n"):
            self.discards, self._env.verdict = key == "z", "over"
        else:
            self._key, self._pressed = key, self._clock()

    def poll(self, obs: Obs, proposed: Array) -> Array | None:
        """The person's action while they have taken over: where the robot is, but for the channel whose key is held."""
        if not self.took_over:
            return None
        action = np.array(self._env.still(), np.float32)
        if self._clock() - self._pressed <= AGED:
            for channel, pair in zip(range(len(action)), PAIRS, strict=False):
                if self._key in pair and self._key:
                    steps = self._env.about["channels"][channel]["step"] is not None or self._env.task.control == "relative"
                    action[channel] += (1 if self._key == pair[0] else -1) * (1.0 if steps else 2 * JOG)
        return np.clip(action, -1.0, 1.0)


@dataclass
class Tally:
    """What has happened up to now. late: actions that came after their time; limited: actions that a limit of the robot held back; gaps:
    s between the newest steps; ages: s that the newest readings were old; acted: steps by who chose them; under_way: whether an attempt is
    not over yet."""

    episodes: int = 0
    successes: int = 0
    judged: int = 0
    discarded: int = 0
    steps: int = 0
    late: int = 0
    limited: int = 0
    takeovers: int = 0
    acted: Counter[str] = field(default_factory=Counter)
    gaps: deque[float] = field(default_factory=lambda: deque(maxlen=2000))
    ages: deque[float] = field(default_factory=lambda: deque(maxlen=2000))
    plans: deque[float] = field(default_factory=lambda: deque(maxlen=2000))
    notes: list[str] = field(default_factory=list)
    last: str = ""
    under_way: bool = False
    left: str = ""
    """How the robot is at the end, in words."""

    @property
    def rate(self) -> Rate | None:
        """Success among the attempts that somebody or something judged."""
        return wilson(self.successes, self.judged) if self.judged else None

    def lines(self, env: RobotClient, over: bool = False) -> list[str]:
        """For a screen; over: no attempt follows, and one that is under way was cut short."""
        gaps, found = np.array(self.gaps or [np.nan]), self.rate
        told = "nothing judged yet" if found is None else f"{found.rate:.0%} of {found.n} (95 %: {found.low:.0%} to {found.high:.0%})"
        tail = f"period {1e3 * np.median(gaps):.1f} ms (wanted {1e3 * env.task.dt:.1f}), p99 {1e3 * np.quantile(gaps, 0.99):.1f}"
        think = f"plan {1e3 * np.median(self.plans or [np.nan]):.1f} ms, reading {1e3 * np.median(self.ages or [np.nan]):.1f} ms old"
        now = f"episode {self.episodes + 1}, step {self.steps}, now acting: {self.last or '-'}"
        if over:
            counted = f"{self.episodes} episode{'s' * (self.episodes != 1)}"
            now = f"{counted}, {self.steps} steps{', one more was cut short' if self.under_way else ''}"
        return [f"{env.task.id}: {now}",
                f"success {told}, {self.discarded} discarded", f"{tail}, {self.late} late actions", think,
                f"{self.limited} actions held back by a limit, {self.takeovers} takeovers, steps by "
                + (", ".join(f"{who} {n}" for who, n in self.acted.items()) or "nobody"), *self.notes[-2:]]


class _Taken:
    """Takes episodes down; a recorder that fails says so once and never stops the robot, see `realrl.cell.rollout.Recording`."""

    def __init__(self, recorder: Recorder | None, operator: Operator, tally: Tally, env: RobotClient) -> None:
        self._recorder, self._operator, self._tally, self._env = recorder, operator, tally, env

    def _try(self, what: Callable[[Recorder], object]) -> None:
        if self._recorder is None:
            return
        try:
            what(self._recorder)
        except (RealrlError, OSError) as error:
            self._recorder = None
            self._tally.notes.append(f"no longer recording: {error}")

    def begin(self, seed: int) -> None:
        """An episode begins."""
        self._try(lambda r: r.start_episode(seed=seed))

    def step(self, step: Step) -> None:
        """One step."""
        self._try(lambda r: r.add(step))

    def end(self, episode: Episode) -> None:
        """Keep it, or forget what the person threw away."""
        last = {key: values[-1] for key, values in episode.obs.items()}
        if self._operator.discards:
            self._try(lambda r: r.discard())
        else:
            self._try(lambda r: r.finish(last, terminated=episode.terminated, truncated=episode.truncated,
                                         judged=_told(episode, self._env)))


def deploy(env: RobotClient, policy: Policy, episodes: int, *, folder: Path | None, seed: int = 0,
           operator: Operator | None = None, tally: Tally | None = None, text: str = "") -> Iterator[Tally]:
    """Run attempts and yield the tally after every step. folder: of the data set that is recorded; None: nothing is; tally: to be filled;
    text: what was to be done, by default the robot's task.

    Whatever ends it, Ctrl-C, an exception or the last attempt, the robot is parked. Raises RealrlError as the robot's server does.
    """
    operator, tally = operator or Operator(env), tally or Tally()
    recorder = None if folder is None else _recorder(env, folder, policy.name, text)
    timed = _Timed(policy, tally)
    try:
        _warm(env, policy)
        with hurried(CLIENT, whole=True) as refused:
            tally.notes += refused
            steps = play([env], timed, [box_guard(env)], range(seed, seed + episodes), greedy=True, noise_seed=seed,
                         task=text or env.task.text, human=operator, recording=_Taken(recorder, operator, tally, env))
            before = None
            for found in steps:
                if isinstance(found, Moment):
                    before = _count(tally, found, env, before)
                else:
                    _judge(tally, found, operator, env)
                    before = None
                    gc.collect()
                yield tally
    finally:
        try:
            tally.left = env.park()
        finally:
            env.close()
            if recorder is not None:
                recorder.close()


def _count(tally: Tally, moment: Moment, env: RobotClient, before: Moment | None) -> Moment:
    step = moment.step
    who = Source(step.source).name.lower()
    if before is not None and not moment.first:
        tally.gaps.append(step.time - before.step.time)
        tally.takeovers += step.source == Source.HUMAN and before.step.source != Source.HUMAN
    tally.steps, tally.under_way = tally.steps + 1, True
    tally.late += env.timing.late > 0
    tally.limited += env.timing.limited > 0
    tally.ages.append(env.timing.age)
    tally.acted[who] += 1
    tally.last = who
    return moment


def _told(episode: Episode, env: RobotClient) -> bool:
    """Whether a person or the robot said how an attempt ended; the clock alone says nothing."""
    return episode.terminated or bool(env.about["judged"])


def _judge(tally: Tally, episode: Episode, operator: Operator, env: RobotClient) -> None:
    tally.episodes, tally.under_way = tally.episodes + 1, False
    if operator.discards:
        tally.discarded += 1
    elif _told(episode, env):
        tally.judged += 1
        tally.successes += episode.succeeded
    operator.discards, env.verdict = False, None


class _Timed(Around):
    """A policy whose plans are timed."""

    def __init__(self, inner: Policy, tally: Tally) -> None:
        super().__init__(inner)
        self._tally = tally

    def act(self, obs, state, *, greedy, rng):  # type: ignore[no-untyped-def]
        """As the policy."""
        begun = time.monotonic()
        found = self._inner.act(obs, state, greedy=greedy, rng=rng)
        self._tally.plans.append(time.monotonic() - begun)
        return found


def _warm(env: RobotClient, policy: Policy) -> None:
    """A few plans of nothing, so that the first real one is as quick as the others."""
    for _ in range(5):
        policy.act(env.nothing(policy.n_obs), policy.start(1), greedy=True, rng=[np.random.default_rng(0)])


def _recorder(env: RobotClient, folder: Path, name: str, text: str) -> Recorder:
    films = {k.removeprefix("images."): (s[0], s[1]) for k, s in env.task.senses.items() if k.startswith("images.")}
    return Recorder(folder, task=text or env.task.text or env.task.id, fps=round(1 / env.task.dt), cameras=films, policy=name,
                    robot_type=str(env.about["name"]))
