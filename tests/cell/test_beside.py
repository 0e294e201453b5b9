"""A robot that acts in a process of its own: its rate, newest weights, what it does without a learner, and what kills lose (nothing)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_live import ONE, Rail

from children import Child
from realrl.cell.actor import Clock
from realrl.cell.cell import WorkCell
from realrl.cell.mailbox import Mailbox, name, places
from realrl.data.store import Store
from realrl.data.tools.check import check
from realrl.policies.gaussian import GaussianConfig, GaussianPolicy
from realrl.robots.clock import Ticker
from realrl.run import Run
from realrl.scene import Scene
from realrl.streaming import StreamConfig
from realrl.types import Array, Moment, Obs, RealrlError, Source, Step, TaskSpec

SCENE = Scene(task="lab/rail", collect=ONE)
FAST = StreamConfig(realtime=True, patience=1.0, weights_age=30.0, alone=300.0, queue=64)
CODE = """import sys, test_beside; from pathlib import Path
test_beside.learner(Path(sys.argv[1]))"""


UNREAD = """import os
reader, writer = os.pipe()
os.dup2(writer, 2)
os.close(reader)
""" + CODE


class Cart(Rail):
    """Fifty times a second, never at its end."""

    def __init__(self, told: Path | None = None) -> None:
        """told: written when it is told that nobody acts."""
        super().__init__()
        self.told = told
        self.task = TaskSpec("lab", "rail", obs_dim=2, action_dim=1, horizon=20, dt=0.02, text="to and fro")

    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        self.x = self.x + np.array([0.02 * float(action[0]), 0.0])
        return np.full(2, np.nan) if self.broken == (self.seed, self._t) else self.x, 0.0, False, False

    def pause(self) -> None:
        """Nobody acts for a while."""
        if self.told:
            self.told.touch()


class Own(Cart):
    """It keeps its own time; every fifth action comes 5 ms late."""

    def __init__(self) -> None:
        super().__init__()
        self.task, self.timing = replace(self.task, live=True), SimpleNamespace(late=0.0)

    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        time.sleep(0.02)
        self.timing.late = 0.005 if self._t % 5 == 0 else 0.0
        return super()._advance(action)


class Dying(Cart):
    """Its sensor dies in the second episode."""

    broken = (11_000_001, 3)


class Waiting(Cart):
    """It is never ready."""

    def _begin(self, seed: int) -> Array:
        time.sleep(300)
        return super()._begin(seed)


def policy(bias: float = 0.0) -> GaussianPolicy:
    """Pushes with tanh(bias), whatever it sees, if it is greedy; hardly noisy."""
    torch.manual_seed(0)
    made = GaussianPolicy(GaussianConfig(hidden=(4,)), 2, 1)
    with torch.no_grad():
        for weights in made.parameters():
            weights.zero_()
        made.net.bias1[0, 0] = torch.tensor([bias, -20.0])
    return made


def learner(folder: Path) -> None:
    """Takes what is done until somebody kills it."""
    with beside(folder) as stream:
        stream.past()
        while True:
            stream.take()


@contextmanager
def beside(folder: Path, *, make: Callable[[], Cart] = Cart, cfg: StreamConfig = FAST,
           starts_with: GaussianPolicy | None = None, referee: Judge | None = None) -> Iterator[Any]:
    """A learner beside a robot."""
    with (Run(folder, resume=True) as run, WorkCell(run, SCENE, make=make) as cell,
          cell.stream("walk", starts_with or policy(), stage=1, cfg=cfg, referee=referee) as stream):
        yield stream


class Judge:
    """Is surer with every step that it sees, and never sure."""

    def __init__(self, mark: str = "one") -> None:
        self.seen, self.mark = 0.0, mark

    def __call__(self, obs: Obs, action: Array, next_obs: Obs) -> tuple[float, float]:
        self.seen += 0.001
        return 0.0, 0.0


def actors(folder: Path) -> list[Mailbox]:
    return [box for box in Mailbox.find(name(folder / "dataset")) if box.alive]


def wait_for(what: Any, seconds: float = 200.0) -> Any:
    """What a condition gives as soon as it holds."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "too late"
        time.sleep(0.01)
    return found


def recording(folder: Path) -> list[Any]:
    assert not [p for p in check(folder / "dataset") if p.severity == "error"]
    return Store.open(folder / "dataset").read()


# ---- the mailbox


def moment(i: int, *, first: bool = False, ends: bool = False) -> Moment:
    state = np.array([i, -i], np.float32)
    step = Step({"state": state}, np.array([0.1 * i], np.float32), np.array([0.2 * i], np.float32), Source.HUMAN, float(i), ends, False,
                ends, 0.5 * i, i % 2 == 0)
    return Moment(step, {"state": state + 1}, 7, first)


def box(slots: int = 8) -> Mailbox:
    return Mailbox.create("test", places(Cart().task), policy().state_dict(), {}, slots)


def test_steps_go_round_the_ring_as_they_were_put_in() -> None:
    here = box()
    there = Mailbox.attach(here.path)
    assert there is not None
    for turn in range(5):
        for i in range(3):
            there.put(moment(i, first=i == 0, ends=i == 2))
        there.put(moment(9, first=True))
        assert here.waiting == 6
        found = here.take()
        assert [m.first for m in found] == [True, False, False], "up to an episode's end"
        for i, m in enumerate(found):
            wanted = moment(i, ends=i == 2)
            assert m.seed == 7 and m.step.source is Source.HUMAN and m.step.reward == i and m.step.terminated == m.step.success == (i == 2)
            assert m.step.time == 0.5 * i and m.step.starts_plan == (i % 2 == 0)
            assert np.array_equal(m.after["state"], wanted.after["state"]) and np.array_equal(m.step.action, wanted.step.action)
            assert np.array_equal(m.step.obs["state"], [i, -i] if i == 0 else found[i - 1].after["state"])
        rest = here.take()
        assert len(rest) == 1 and rest[0].first and here.take() == [] and here.room == 8, turn
    here.remove()
    assert Mailbox.attach(here.path) is None


def test_a_half_written_step_is_not_there_yet() -> None:
    here = box()
    here.put(moment(0, first=True))
    here._ring["reward"][1] = 5.0  # its number is there, its contents are on the way
    assert here.take() == [] and here.take() == []
    here._ring["reward"][1] = 0.0
    assert len(here.take()) == 1
    here.remove()


def test_weights_arrive_whole_and_only_new_ones() -> None:
    here = box()
    there = Mailbox.attach(here.path)
    assert there is not None
    into = policy().state_dict()
    assert there.fetch(into, 0) == 0
    for version in (1, 2, 3):
        here.publish(policy(version).state_dict())
        assert there.fetch(into, version - 1) == version and there.fetch(into, version) == version
        assert float(into["net.bias1"][0, 0, 0]) == version
    here.remove()


def test_a_tick_that_comes_late_is_counted_and_not_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr("realrl.cell.actor.Ticker", partial(Ticker, clock=lambda: now[0], sleep=sleep))
    head = np.zeros((), [("ticks", "i8"), ("missed", "i8"), ("worst", "f8")])
    clock = Clock(0.05, head)
    clock.wait()
    assert now[0] == pytest.approx(100.05) and head["missed"] == 0
    sleep(0.12)
    clock.wait()
    assert (head["ticks"], head["missed"]) == (2, 1) and head["worst"] == pytest.approx(0.07)
    assert now[0] == pytest.approx(100.17), "it does not wait, being late"
    clock.wait()
    assert now[0] == pytest.approx(100.22) and head["missed"] == 1, "a whole period again"


# ---- the two beside each other


def test_it_acts_with_what_was_published_last_and_all_is_recorded(tmp_path: Path) -> None:
    with beside(tmp_path, make=partial(Cart, tmp_path / "told")) as stream:
        assert stream.past() == []
        steps = stream.take()
        stream.publish(policy(2.0))
        while not steps[-1].step.action > 0.5:
            steps += stream.take()
        while stream.episodes < 3 or not stream.between:
            steps += stream.take()
        health = stream.health()
        assert stream.steps == len(steps) == 60 and [m.first for m in steps].count(True) == 3
        assert health["ticks"] >= 60 and health["weights_behind"] == 0 and health["holds"] == 0
        times = np.diff([m.step.time for m in steps[1:20]])
        assert np.median(times) > 0.015, "at its rate, not as fast as it can"
    found = recording(tmp_path)
    whole = [e for e in found if len(e) == 20]
    assert np.array_equal(np.concatenate([e.action for e in whole[:3]]), np.stack([m.step.action for m in steps]))
    assert all(e.truncated for e in found) and len(found) <= 4 and not actors(tmp_path)
    assert (tmp_path / "told").exists(), "the robot was told that nobody acts any more"


def test_a_robot_that_keeps_its_own_time_says_how_late_it_was(tmp_path: Path) -> None:
    with beside(tmp_path, make=Own) as stream:
        stream.past()
        while stream.steps < 40 or not stream.between:
            stream.take()
        health = stream.health()
    assert health["ticks"] >= 40 and abs(5 * health["deadline_misses"] - health["ticks"]) <= 10 and health["worst_late_ms"] == 5


def test_it_holds_until_the_learner_has_its_weights_and_knows_what_was_done(tmp_path: Path) -> None:
    with beside(tmp_path, cfg=replace(FAST, patience=100.0)) as stream:
        head = wait_for(lambda: actors(tmp_path))[0].head
        wait_for(lambda: head["pid"])
        time.sleep(1.5)  # a checkpoint is read, demonstrations are made
        assert head["ticks"] == 0
        stream.publish(policy(2.0))  # weights of the first learner
        assert stream.past() == [] and stream.health()["oldest_weights_s"] == 0, "nobody acted by older ones"
        assert stream.take()[0].first and stream.health()["holds"] == 0


def test_who_watches_hears_how_sure_the_actors_referee_is(tmp_path: Path) -> None:
    """It is asked in the actor's process; the learner's is a copy of it."""
    mine = Judge()
    with beside(tmp_path, referee=mine) as stream:
        stream.past()
        while stream.steps < 25:
            stream.take()
        assert 0.025 <= mine.seen < 1.0


def test_a_killed_learner_finds_the_robot_held_and_goes_on(tmp_path: Path) -> None:
    killed = Child("-c", CODE, tmp_path)
    mine = wait_for(lambda: [b for b in actors(tmp_path) if b.head["written"] > 30])[0]
    killed.signal(signal.SIGKILL)
    assert killed.wait()[0] == -signal.SIGKILL
    wait_for(lambda: mine.head["hold"] == 2)
    done = int(mine.head["ticks"])
    time.sleep(0.1)
    assert mine.head["ticks"] == done, "nothing moves"
    pid = int(mine.head["pid"])
    with Run(tmp_path, resume=True) as run, WorkCell(run, SCENE, make=Cart) as cell:
        assert cell.practise("demonstration", policy(), []) == [], "the recording is the actor's, and may be looked at"
    other = GaussianPolicy(GaussianConfig(hidden=(5,)), 2, 1)
    for change in ({"starts_with": other}, {"referee": Judge()}):
        with pytest.raises(RealrlError, match="another configuration still holds the robot"), beside(tmp_path, **change):
            pass
    with beside(tmp_path) as stream:
        assert len(stream.past()) > 1 and int(stream._box.head["pid"]) == pid, "the same process"
    assert sum(len(e) for e in recording(tmp_path)) == done, "who takes no step moves no robot"
    with beside(tmp_path) as stream:
        past = stream.past()
        assert sum(map(len, past)) == done == stream.steps and stream.episodes == len(past), "to the last step"
        assert stream.take()[0].first
        assert stream.take()[0].seed == past[-1].seed + 1
    assert wait_for(lambda: not actors(tmp_path))
    assert sum(len(e) for e in recording(tmp_path)) >= done + 2


def test_a_robot_is_held_also_where_nobody_reads_why_and_let_go_with_its_terminal(tmp_path: Path) -> None:
    killed = Child("-c", UNREAD, tmp_path)
    mine = wait_for(lambda: [b for b in actors(tmp_path) if b.head["written"] > 30])[0]
    killed.signal(signal.SIGKILL)
    killed.wait()
    wait_for(lambda: mine.head["hold"] == 2)
    time.sleep(0.3)
    os.kill(int(mine.head["pid"]), signal.SIGHUP)  # it is there
    wait_for(lambda: not mine.alive)
    assert not bytes(mine.head["error"]).strip(b"\0")
    assert sum(len(e) for e in recording(tmp_path)) == mine.head["ticks"], "whole"


def test_a_killed_actor_is_replaced_and_loses_nothing(tmp_path: Path) -> None:
    with beside(tmp_path) as stream:
        stream.past()
        steps: list[Moment] = []
        while len(steps) < 25:
            steps += stream.take()
        os.kill(int(actors(tmp_path)[0].head["pid"]), signal.SIGKILL)
        while sum(m.first for m in steps) < 4:
            steps += stream.take()
    found = {e.seed: e for e in recording(tmp_path)}
    for seed in {m.seed for m in steps}:
        mine = np.stack([m.step.action for m in steps if m.seed == seed])
        kept = found[seed].action[:len(mine)]
        assert np.array_equal(kept, mine[:len(kept)]) and len(kept) >= len(mine) - 1, "but for the step under way"


def test_what_the_actor_cannot_do_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RealrlError, match="'state' is NaN or infinite") as error, beside(tmp_path, make=Dying) as stream:
        stream.past()
        while stream.episodes < 5:
            stream.take()
    assert "\n" not in str(error.value) and not actors(tmp_path)
    assert sum(len(e) for e in recording(tmp_path)) > 20, "what was done before is there"


def test_an_actor_that_waits_for_somebody_to_arm_its_robot_does_not_stay_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("realrl.cell.stream.GOODBYE", 0.2)
    monkeypatch.setattr("realrl.cell.stream.MERCY", 1.0)
    with beside(tmp_path, make=Waiting) as stream:
        stream.past()
        stream.take(wait=False)
        mine = wait_for(lambda: [b for b in actors(tmp_path) if b.head["hold"] == 0])[0]
        pid = int(mine.head["pid"])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not actors(tmp_path)


def test_old_weights_hold_the_robot_until_there_are_new_ones(tmp_path: Path, long: bool) -> None:
    if not long:
        pytest.skip("half a minute of starting processes: see `make test-long`")
    cfg = StreamConfig(realtime=True, patience=30.0, weights_age=0.3, queue=64)
    with beside(tmp_path, cfg=cfg) as stream:
        stream.past()
        stream.take()
        wait_for(lambda: actors(tmp_path)[0].head["hold"] == 3)
        while stream.take(wait=False):
            pass
        stream.publish(policy(1.0))
        found = stream.take()[0]
        assert found.first and found.step.action > 0.5 and stream.health()["holds"] >= 1


def test_a_learner_at_work_is_not_silent_however_long_its_updates_take(tmp_path: Path) -> None:
    """Its signs of life come with its updates: by how long these take it is measured, unless somebody said how long to wait."""
    auto, strict = StreamConfig(), StreamConfig(patience=2.0, weights_age=3.0)
    assert (auto.silent_after(0.1), auto.old_after(0.1)) == (5, 10) and (auto.silent_after(20.0), auto.old_after(20.0)) == (60, 60)
    assert (strict.silent_after(20.0), strict.old_after(20.0)) == (2, 3)
    with beside(tmp_path) as stream:
        stream.past()
        for seconds in (0.2, 0.2, 0.6):
            stream.take()
            time.sleep(seconds)
            stream.publish(policy())
        assert 0.2 <= stream._box.head["update_s"] < 0.5, "the middle one"


def test_nobody_for_long_and_the_actor_leaves(tmp_path: Path, long: bool) -> None:
    if not long:
        pytest.skip("half a minute of starting processes: see `make test-long`")
    cfg = StreamConfig(realtime=True, patience=0.2, alone=0.5, queue=64)
    with beside(tmp_path, cfg=cfg) as stream:
        stream.past()
        stream.take()
        process = stream._process
        process.join(60)
        assert process.exitcode == 0 and not Mailbox.find(name(tmp_path / "dataset"))
