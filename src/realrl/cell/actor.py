"""The actor's process: one robot at its control rate, while a learner in another process trains (`stream.Beside`).

Every step is recorded here before the learner gets it; what the learner sends are weights. Where the learner is silent or its weights grow
old, the actor ends the episode, holds the robot, says why, and goes on when there are fresh weights. It outlives its learner: a new one
finds it holding, reads the recording and lets it go on. Without any for long it closes the robot and leaves.
"""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from realrl.cell.book import Book
from realrl.cell.collect import Bench, processes
from realrl.cell.mailbox import Mailbox
from realrl.cell.rollout import Foresighted, Mindful
from realrl.robots.clock import CLIENT, Ticker, realtime
from realrl.streaming import StreamConfig
from realrl.terminal import console, warn_in_a_line
from realrl.types import Array, Episode, Intervention, Moment, Obs, Plan, Policy, RealrlError, RewardModel, State, TaskSpec

BEAT = 0.1
"""Seconds between two signs of life."""
GO, NEW, SILENT, OLD, FULL, STOP = range(6)
HOLDS = {NEW: "a learner begins", SILENT: "the learner is silent (--stream.patience)", OLD: "its weights are old (--stream.weights-age)",
         FULL: "the learner does not take what is done", STOP: "the learner said so"}
"""Why a robot is held."""
LATE = 0.1
"""A tick misses its deadline when it ends later than that share of the period."""


class Acting:
    """A policy for the control loop; for the first `warmup` control steps even noise from the episode's own generator."""

    n_obs: int

    def __init__(self, policy: Policy, warmup: int, action_dim: int, steps: Callable[[], int]) -> None:
        self.policy, self._warmup, self._size, self._steps = policy, warmup, action_dim, steps
        self.name, self.chunk, self.n_obs = policy.name, policy.chunk, policy.n_obs

    def start(self, batch: int) -> State:
        return self.policy.start(batch)

    def act(self, obs: Obs, state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
        if self._steps() >= self._warmup:
            return self.policy.act(obs, state, greedy=greedy, rng=rng)
        noise: list[Array] = [g.uniform(-1, 1, (self.chunk, self._size)) for g in rng]
        return Plan(np.stack(noise).astype(np.float32)), state

    def interrupt(self, state: State, row: int) -> None:
        """Somebody else moved this robot: what the policy had decided is not done, if it decides ahead."""
        if isinstance(self.policy, Foresighted):
            self.policy.interrupt(state, row)

    def done(self, state: State, row: int, action: Array) -> None:
        """What this robot was really told to do [A]."""
        if isinstance(self.policy, Mindful):
            self.policy.done(state, row, action)


class _Fresh(Acting):
    """With the newest weights at every plan."""

    def __init__(self, box: Mailbox, order: Order, steps: Callable[[], int]) -> None:
        policy: Any = pickle.loads(order.policy)
        super().__init__(policy, order.warmup, order.spec.action_dim, steps)
        self._box, self._weights, self._version = box, policy.state_dict(), 0

    def act(self, obs: Obs, state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
        self._version = self._box.fetch(self._weights, self._version)
        self._box.head["acting"] = self._version
        return super().act(obs, state, greedy=greedy, rng=rng)


@runtime_checkable
class Experienced(Protocol):
    """A person who behaves by what happened before, and learns it from the recording."""

    def recall(self, episodes: Iterable[Episode]) -> None: ...


@runtime_checkable
class Watching(Protocol):
    """Who says when the task is done, and how sure it is now. mark: what tells it from others."""

    seen: float
    mark: str


@runtime_checkable
class _Punctual(Protocol):
    """A robot that keeps its own time, and says how late an action came (`timing.late`, s), see `realrl.robots.client`."""

    timing: Any


@dataclass(frozen=True)
class Order:
    """All that an actor needs to know. dataset: the recording's folder; policy: pickled, its weights come through the mailbox; start: seed
    of the first episode, the others follow it."""

    mailbox: Path
    dataset: Path
    task: str
    spec: TaskSpec
    label: str
    bench: Bench
    policy: bytes
    start: int
    warmup: int
    noise_seed: int
    cfg: StreamConfig
    human: Intervention | None = None
    referee: RewardModel | None = None


class Clock:
    """Keeps a control period [s] by deadlines, and counts those that are missed. A tick that comes late is not made up for by hurrying the
    next ones."""

    def __init__(self, period: float, head: Any) -> None:
        self._period, self._head = period, head
        self._ticker: Ticker | None = None

    def rest(self) -> None:
        """The next tick begins a new count."""
        self._ticker = None

    def wait(self) -> None:
        """Sleep until this tick's deadline."""
        self._ticker = self._ticker or Ticker(self._period)
        if self.note(self._ticker.wait()):
            self.rest()

    def note(self, late: float) -> bool:
        """Count a tick that ended so late [s]; whether it missed its deadline."""
        head, missed = self._head, late > LATE * self._period
        head["ticks"] += 1
        head["worst"] = max(float(head["worst"]), late)
        head["missed"] += missed
        return missed


class Actor:
    """See the module."""

    def __init__(self, order: Order, box: Mailbox, book: Book) -> None:
        self._order, self._box, self._book, self._cfg = order, box, book, order.cfg
        self._acting = _Fresh(box, order, lambda: self._steps)
        self._clock = Clock(order.spec.dt, box.head)
        self._steps = self._episodes = 0
        self._stopped = False
        signal.signal(signal.SIGTERM, self._stop)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # the terminal was closed, and there is no nohup
            signal.signal(signal.SIGHUP, self._stop)

    def _stop(self, *_: object) -> None:
        self._stopped = True

    def run(self) -> None:
        """Until the learner, or a signal, says stop, or nobody has been here for `alone` seconds."""
        with self._book.writing(self._order.label, False):
            while self._wait():
                self._play()

    # -- holding --------------------------------------------------------------------------------------------------------------------

    def _wait(self) -> bool:
        """Hold the robot until there is a learner with fresh weights; False where it is time to leave."""
        told = GO
        while (why := self._why()) not in (GO, STOP):
            if why == NEW and self._box.head["ready"] != self._box.head["wanted"]:
                self._give_over()
            if why != told and why != NEW:
                self._box.head["holds"] += 1
                say(f"the robot is held: {HOLDS[why]}")
            told = why
            self._box.head["hold"] = why
            if self._box.silence > self._cfg.alone:
                say(f"nobody has asked for the robot for {self._cfg.alone:g} s: it is let go")
                return False
            time.sleep(0.01)
        self._box.head["hold"] = GO
        self._clock.rest()
        return why == GO

    def _give_over(self) -> None:
        """All that was done is in the recording, where a new learner reads it."""
        with self._book.writing(self._order.label, False):
            pass  # its end waits until all is there
        self._box.forget()
        self._box.head["ready"] = self._box.head["wanted"]

    def _why(self) -> int:
        """Why the robot has to be held now, `GO` where it has not."""
        head, now = self._box.head, time.monotonic()
        if self._stopped or head["stop"]:
            return STOP
        if head["go"] != head["wanted"]:
            return NEW
        if self._box.silence > self._cfg.silent_after(update := float(head["update_s"])):
            return SILENT
        if self._steps > self._order.warmup and now - float(head["published"]) > self._cfg.old_after(update):
            return OLD
        return FULL if self._box.room < 4 else GO

    # -- acting ---------------------------------------------------------------------------------------------------------------------

    def _play(self) -> None:
        """Go on from episode to episode until there is a reason to hold; what is under way then ends there, cut short."""
        order, head = self._order, self._box.head
        self._steps, self._episodes = int(head["steps"]), int(head["episodes"])
        recording = self._book.live(order.label, False)
        assert recording is not None
        starts = itertools.count(order.start + self._episodes)
        moments = order.bench.play(self._acting, starts, noise_seed=order.noise_seed, recording=recording,
                                   pace=None if order.spec.live else self._clock.wait,  # a robot keeps its own time
                                   human=order.human, referee=order.referee)
        for found in moments:
            if isinstance(found, Episode):
                self._episodes += 1
                gc.collect()
                self._clock.rest()
            else:
                self._steps += 1
                if isinstance(robot := order.bench.envs[0], _Punctual):
                    self._clock.note(float(robot.timing.late))
                if isinstance(order.referee, Watching):
                    head["seen"] = order.referee.seen
                self._box.put(found)
                if found.step.terminated or found.step.truncated:
                    continue  # its episode comes next
            if self._why() != GO:
                moments.close()
                order.bench.rest()
                if isinstance(found, Moment):
                    recording.cut(found.after)
                break
        head["steps"], head["episodes"] = self._steps, self._episodes + isinstance(found, Moment)



# ---- the process


def say(line: str) -> None:
    """Tell whoever is there. The learner, and the terminal or pipe that both write to, may be gone: the robot is held all the same."""
    with suppress(OSError, SystemExit):  # what rich makes of a pipe that nobody reads
        console(stderr=True).print(line)


def launch(order: Order) -> Any:
    """A process that acts as ordered, and goes on when this one is killed."""
    process = processes().Process(target=_main, args=(pickle.dumps(order),), name="actor")
    process.start()
    return process


def _main(packed: bytes) -> None:
    order: Order = pickle.loads(packed)
    warn_in_a_line()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the learner's, who says stop
    torch.set_num_threads(1)
    box = Mailbox.attach(order.mailbox)
    if box is None:
        return  # its learner is gone already
    box.head["pid"] = os.getpid()
    threading.Thread(target=_beat, args=(box.head,), daemon=True).start()
    try:
        _run(order, box)
    except RealrlError as error:
        box.head["error"] = str(error).encode()[:2000]
    except BaseException:  # it would be lost with the process
        box.head["error"] = traceback.format_exc().encode()[-2000:]
        raise
    finally:
        if box.silence > order.cfg.silent_after(float(box.head["update_s"])):
            box.remove()  # nobody is there who would


def _run(order: Order, box: Mailbox) -> None:
    book = Book(order.dataset, order.task, order.spec, live=True)
    try:
        actor = Actor(order, box, book)
        if isinstance(order.human, Experienced):  # another actor's died, or all of the run did
            order.human.recall(book.labelled(order.label, anew=True))
        for line in realtime(CLIENT):  # between episodes garbage may take its time
            say(f"note: {line}")
        actor.run()
    finally:
        order.bench.close()
        book.close()


def _beat(head: Any) -> None:
    while True:
        head["actor_beat"] = time.monotonic()
        time.sleep(BEAT)
