"""An actor beside a learner (`realrl.types.Stream`): the one control loop, step by step, for methods that learn while the robot moves.

`Interleaved`: one process that takes turns: a control step, then as many updates as the method wants. Nothing depends on the clock, so a
run repeats to the bit. What a simulator did after the checkpoint that a resumed run begins from is done again, identically; a robot's
steps, those beside which a person stood, and those that another referee judged cannot be: they are read back, and it goes on with a new
episode.

`Beside`: the robot acts in a process of its own (`cell.actor`), at its rate by the clock. All that it did is read back.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from statistics import median
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from realrl.cell.actor import Acting, Order, Watching, launch
from realrl.cell.book import Book
from realrl.cell.collect import Bench, available_cores
from realrl.cell.mailbox import Mailbox, name, places
from realrl.terminal import console
from realrl.types import Episode, Intervention, Moment, Policy, RealrlError, RewardModel, Stateful

GOODBYE = 30.0
"""Seconds that an actor has to end its episode, finish the recording and close the robot."""

MERCY = 5.0
"""Seconds more, once it was told by a signal."""

UPDATES = 5
"""Of so many the middle one tells how long an update takes: a machine that slept through one makes nobody patient."""

WAITS = ("Between two actions the robot waits while this process learns, and one that is guarded by the clock stops: --stream.realtime "
         "gives it a process of its own.")
"""What is said where they take turns."""

MOST_DEATHS = 3
"""How often an actor is started anew before it did anything."""


@runtime_checkable
class Remembering(Stateful, Protocol):
    """A person whose memory from episode to episode is kept, so that a simulated one does the same again."""


class Interleaved:
    """The stream of one process; use it as a context manager. bench: the robot, one environment; starts: seed of the n-th episode;
    again: whether what was done after a checkpoint is done again (a simulator) or kept (a robot, and whatever a person at a device steers);
    own: the bench is this stream's, which closes it; human: who may take over; referee: who says when the task is done, where it does not
    do so itself."""

    def __init__(self, book: Book, bench: Bench, label: str, policy: Policy, starts: Callable[[int], int], *, warmup: int, noise_seed: int,
                 again: bool, own: bool, human: Intervention | None = None, referee: RewardModel | None = None) -> None:
        self.steps = self.episodes = 0
        self._book, self._bench, self._label, self._starts, self._noise, self._again = book, bench, label, starts, noise_seed, again
        self._own = own
        self._human, self._referee = human, referee
        self._acting = Acting(policy, warmup, book.spec.action_dim, lambda: self.steps)
        self._known = set(book.recorded(label))
        self._writing = ExitStack()
        self._moments: Generator[Moment | Episode] | None = None
        self.between = True

    def __enter__(self) -> Interleaved:
        self._open()
        return self

    def __exit__(self, *error: object) -> None:
        if self._moments is not None:
            self._moments.close()
        self._writing.close()
        if self._own:
            self._bench.close()

    def _open(self) -> None:
        self._put = self._writing.enter_context(self._book.writing(self._label, False))

    def past(self) -> list[Episode]:
        """See `types.Stream`. A robot's steps since the checkpoint count, too, also of an episode that a kill cut off."""
        if self._again:
            seeds = [self._starts(i) for i in range(self.episodes)]
            found = self._book.read(self._label, seeds, False)
            return [found[s] for s in seeds]
        whole = self._book.labelled(self._label, f"{self._label} (recovered)")
        self.episodes, self.steps = len(whole), sum(len(e) for e in whole)
        return whole

    def take(self, *, wait: bool = True) -> list[Moment]:
        """See `types.Stream`: the next control step."""
        if self._moments is None:
            seeds = (self._starts(i) for i in itertools.count(self.episodes))
            self._moments = self._bench.play(self._acting, seeds, noise_seed=self._noise, recording=self._book.live(self._label, False),
                                             human=self._human, referee=self._referee)
        moment = next(self._moments)
        assert isinstance(moment, Moment)
        self.steps += 1
        self.between = moment.step.terminated or moment.step.truncated
        if self.between:
            episode = next(self._moments)
            assert isinstance(episode, Episode)
            self.episodes += 1
            if episode.seed not in self._known:
                self._put(episode)
        return [moment]

    def publish(self, policy: Policy) -> None:
        """See `types.Stream`."""
        self._acting.policy = policy

    def health(self) -> dict[str, float]:
        """Nobody waits for anybody."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """How far it is; what was done until then is on disk afterwards. Raises ValueError within an episode."""
        if not self.between:
            raise ValueError("a stream's checkpoint is taken between two episodes")
        self._writing.close()
        self._open()
        robot = {key: torch.as_tensor(value) for key, value in self._bench.snapshot().items()} if self._again else {}
        return {"episodes": self.episodes, "steps": self.steps, "robot": robot, "referee": _mark(self._referee),
                **({"human": dict(self._human.state_dict())} if isinstance(self._human, Remembering) else {})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; where another referee judges, all that was recorded is read back."""
        self.episodes, self.steps = int(state["episodes"]), int(state["steps"])
        self._again &= state.get("referee", _mark(self._referee)) == _mark(self._referee)
        self._bench.restore({key: value.numpy() for key, value in state.get("robot", {}).items()})
        if isinstance(self._human, Remembering) and "human" in state:
            self._human.load_state_dict(state["human"])


class Beside:
    """The stream whose robot acts in a process of its own; use it as a context manager. what: everything about the robot but its mailbox.

    A learner that begins anew, after it was killed, finds the actor that is still there.
    """

    def __init__(self, book: Book, policy: Policy, order: Order) -> None:
        """order: its mailbox is made here."""
        self.steps = self.episodes = 0
        self.between = True
        self._book, self._policy, self._order = book, policy, order
        self._inside = ExitStack()
        self._process: Any = None
        self._age, self._oldest, self._deaths = 0.0, 0.0, 0
        self._lately: deque[float] = deque(maxlen=UPDATES)  # seconds of updates
        self._before: dict[str, float] = {}  # counts of mailboxes that are gone

    def __enter__(self) -> Beside:
        self._inside.enter_context(self._book.lent())
        threads = torch.get_num_threads()
        torch.set_num_threads(max(1, min(threads, available_cores() - 1)))  # a core is the robot's
        self._inside.callback(torch.set_num_threads, threads)
        self._box = self._found() or self._made()
        self._inside.callback(self._leave)
        return self

    def __exit__(self, *error: object) -> None:
        self._inside.close()

    # -- the actor --------------------------------------------------------------------------------------------------------------------

    def _about(self) -> dict[str, Any]:
        """What an actor that is still there must be of."""
        order, policy = self._order, self._policy
        return {"task": order.task, "label": order.label, "noise": order.noise_seed, "warmup": order.warmup, "chunk": policy.chunk,
                "n_obs": policy.n_obs, "dataset": str(order.dataset.resolve()), "referee": _mark(order.referee)}

    def _found(self) -> Mailbox | None:
        """The mailbox of an actor that outlived its learner. Raises RealrlError where it is of another run or another policy."""
        for box in Mailbox.find(name(self._order.dataset)):
            if not box.alive:
                box.remove()
                continue
            wanted = [[k, str(v.dtype).removeprefix("torch."), list(v.shape)] for k, v in _weights(self._policy).items()]
            if box.layout["about"] != self._about() or box.layout["weights"] != wanted:
                raise RealrlError(f"an actor of another configuration still holds the robot (process {int(box.head['pid'])}): go on with "
                                  "the configuration that it had, or stop that process")
            box.head["wanted"] += 1  # it holds the robot until `past` lets it go
            box.head["learner_beat"] = time.monotonic()
            console(stderr=True).print(f"the actor is still there (process {int(box.head['pid'])}) and goes on")
            return box
        return None

    def _made(self) -> Mailbox:
        order = self._order
        box = Mailbox.create(name(order.dataset), places(order.spec), _weights(self._policy), self._about(), order.cfg.queue)
        self._order = replace(self._order, mailbox=box.path)
        box.head["wanted"] = 1  # it holds the robot until `past` lets it go: what it was sent off with are no weights to act by
        box.head["learner_beat"] = time.monotonic()
        self._process = launch(self._order)
        return box

    def _leave(self) -> None:
        """The actor ends what it does and closes the robot; one that waits for somebody who arms its robot has to be ended: what
        it recorded is on disk."""
        self._box.head["stop"] = 1
        self._gone(GOODBYE)
        if self._there():
            console(stderr=True).print(f"the actor does not end: process {int(self._box.head['pid'])} is stopped")
        for how in (signal.SIGTERM, signal.SIGKILL):
            if self._there():
                with suppress(ProcessLookupError):
                    os.kill(int(self._box.head["pid"]), how)
                self._gone(MERCY)
        self._box.remove()

    def _gone(self, patience: float) -> None:
        """Wait until the actor is gone, but not for ever."""
        deadline = time.monotonic() + patience
        while self._there() and time.monotonic() < deadline:
            self._beat()
            time.sleep(0.02)

    def _there(self) -> bool:
        return bool(self._process.is_alive()) if self._process else self._box.alive

    def _beat(self) -> None:
        self._box.head["learner_beat"] = time.monotonic()

    def _look(self) -> None:
        """Raise RealrlError for what the actor could not do; one that was killed is replaced."""
        if error := bytes(self._box.head["error"]).rstrip(b"\0").decode(errors="replace"):
            raise RealrlError(error)
        if self._there():
            return
        self._deaths += 1
        if self._deaths > MOST_DEATHS:
            raise RealrlError(f"{self._order.task}: the actor's process died {MOST_DEATHS} times before it did a step; what it recorded is "
                              "kept: look whether its memory suffices, then go on with --resume")
        console(stderr=True).print("the actor's process died: another goes on; what it recorded is kept")
        self.episodes += not self.between
        self.between = True
        self._order = replace(self._order, mailbox=self._box.path)
        self._process = launch(self._order)
        self._settle()

    def _settle(self) -> None:
        """Wait until the robot is held and all that was done is in the recording."""
        head = self._box.head
        head["wanted"] += 1
        while head["ready"] != head["wanted"]:
            self._beat()
            self._look()
            time.sleep(0.01)

    def _let_go(self) -> None:
        """The robot goes on from here."""
        head = self._box.head
        head["episodes"], head["steps"] = self.episodes, self.steps
        self.publish(self._policy)
        head["go"] = head["wanted"]

    # -- the stream -------------------------------------------------------------------------------------------------------------------

    def past(self) -> list[Episode]:
        """See `types.Stream`."""
        self._settle()
        found = self._book.labelled(self._order.label, f"{self._order.label} (recovered)", anew=True)
        self.episodes, self.steps = len(found), sum(len(e) for e in found)
        return found

    def take(self, *, wait: bool = True) -> list[Moment]:
        """See `types.Stream`."""
        while not (moments := self._box.take()):
            self._beat()
            self._look()
            if self._box.head["go"] != self._box.head["wanted"]:
                self._let_go()
            if not wait:
                return []
            self._box.head["published"] = time.monotonic()  # nothing to learn from: the weights are as new as they can be
            time.sleep(0.001)
        self._beat()
        self._deaths = 0
        if isinstance(referee := self._order.referee, Watching):
            referee.seen = float(self._box.head["seen"])  # the actor asks a copy of it
        for moment in moments:
            self.episodes += moment.first and not self.between  # one that was cut short
            self.steps += 1
            self.between = moment.step.terminated or moment.step.truncated
            self.episodes += self.between
        return moments

    def publish(self, policy: Policy) -> None:
        """See `types.Stream`."""
        head = self._box.head
        if head["go"] == head["wanted"]:  # else nobody acts by the old ones
            self._age = max(self._age, time.monotonic() - float(head["published"]))
            self._oldest = max(self._oldest, self._age)
            self._lately.append(self._box.silence)
            head["update_s"] = median(self._lately)
        self._policy = policy
        self._box.publish(_weights(policy))
        self._beat()

    def health(self) -> dict[str, float]:
        """How it goes. weights_behind: versions; weights_age_s: the longest between two of them since the last time that somebody asked;
        oldest_weights_s: that of all times; worst_late_ms: of a tick; deadline_misses, ticks, holds: counts, those before the checkpoint
        that a run goes on from included; queued: steps that wait."""
        head, age = self._box.head, self._age
        self._age = 0.0
        return {"weights_age_s": age, "weights_behind": float(head["version"] - head["acting"]), "queued": float(self._box.waiting),
                **self._counts()}

    def _counts(self) -> dict[str, float]:
        """What adds up over a run."""
        head, before = self._box.head, self._before
        sums = {"ticks": float(head["ticks"]), "deadline_misses": float(head["missed"]), "holds": float(head["holds"])}
        most = {"worst_late_ms": 1000 * float(head["worst"]), "oldest_weights_s": self._oldest}
        return {**{name: value + before.get(name, 0.0) for name, value in sums.items()},
                **{name: max(value, before.get(name, 0.0)) for name, value in most.items()}}

    def state_dict(self) -> dict[str, Any]:
        """How it went until now; how far it is the recording says."""
        return {"counts": self._counts(), "before": self._before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; an actor that is still there has gone on counting."""
        self._before = dict(state.get("counts" if self._process else "before", {}))
        self._oldest = float(state.get("counts", {}).get("oldest_weights_s", 0.0))


def _mark(referee: RewardModel | None) -> str:
    """Tells it from others; "" where the task says itself when it is done."""
    return referee.mark if isinstance(referee, Watching) else ""


def _weights(policy: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = policy.state_dict()
    return found
