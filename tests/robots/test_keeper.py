"""What a robot does when something is wrong with it or with who commands it, on a clock that the test turns."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from realrl.robots.driver import Channel, Held, Reading, checked
from realrl.robots.keeper import Keeper
from realrl.robots.log import ServerLog
from realrl.robots.orders import Answer
from realrl.robots.settings import ServerConfig
from realrl.types import RealrlError

TICK = 0.01
ARM = (Channel("x", "m", "pose", -0.5, 0.5, 0.3, 6.0, 200.0, step=0.02), Channel("grip", "m", "position", 0.0, 0.08, 0.4, 8.0, 400.0))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Arm:
    """An arm that is where it was told to be, and does what a test breaks."""

    clock: Clock
    channels: tuple[Channel, ...] = ARM
    state: tuple[str, ...] = ("x", "grip")
    at: np.ndarray = field(default_factory=lambda: np.array([0.1, 0.04]))
    force: float = 0.0
    faults: tuple[str, ...] = ()
    broken: str = ""
    images: dict = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    sent: list[np.ndarray] = field(default_factory=list)
    delay: int = 0  # ticks

    def read(self):
        if not self.calls:
            self.calls.append("read")
        if self.broken in ("silent", "bug"):
            raise OSError("no packet") if self.broken == "silent" else ZeroDivisionError
        at = np.full(2, np.nan) if self.broken == "nan" else np.zeros(3) if self.broken == "shape" else self.at
        age = 1.0 if self.broken == "old" else TICK * self.delay
        if self.delay:
            at = (self.sent or [at])[-1 - min(self.delay, max(len(self.sent) - 1, 0))]
        return Reading(self.clock.now - age, at, at, np.array([0, 0, self.force]), self.faults, self.images)

    def write(self, command):
        if self.broken == "deaf":
            raise OSError("no answer")
        self.sent.append(np.array(command))
        if self.broken not in ("stuck", "frozen"):
            self.at = np.array(command) + 1e-9 * len(self.sent)
        elif self.broken == "stuck":
            self.at = self.at + 1e-9
        return command

    def __getattr__(self, name):
        if name in ("hold", "brake", "park", "release", "close"):
            return lambda: self.calls.append(name)
        raise AttributeError(name)


class Bench:
    """A keeper with an arm, and time."""

    def __init__(self, **cfg):
        self.clock, self.answers, self.log = Clock(), [], ServerLog(None)
        self.arm = Arm(self.clock)
        settings = replace(ServerConfig(fps=20, log=None, park_after=5.0, park=(0.0, 0.04)), **cfg)
        self.keeper = Keeper(self.arm, settings, self.log, clock=self.clock, deliver=self.answers.append)
        self.seq = 0

    def run(self, seconds: float) -> Bench:
        for _ in range(round(seconds / TICK)):
            self.keeper.tick()
            self.clock.now += TICK
        return self

    def armed(self) -> Bench:
        self.run(0.03).keeper.arm()
        return self

    def act(self, x: float, grip: float = 0.04, **more) -> Answer | None:
        """An action and its period; the answer."""
        self.seq += 1
        before = len(self.answers)
        self.keeper.act(self.seq, np.array([x, grip]), **more)
        for _ in range(8):
            self.run(TICK)
            if len(self.answers) > before:
                return self.answers[-1]
        return None

    @property
    def events(self) -> list[str]:
        return [e["event"] for e in self.log.recent]


def test_it_reads_before_it_writes_and_follows_nobody_until_it_is_armed():
    bench = Bench().run(0.1)
    assert bench.arm.calls == ["read"] and not bench.arm.sent
    with pytest.raises(Held, match="realrl robot arm"):
        bench.keeper.act(1, np.zeros(2))
    bench.keeper.arm()
    bench.run(0.05)
    assert bench.arm.sent[0] == pytest.approx([0.1, 0.04])


def test_an_action_moves_it_and_is_answered_a_period_later():
    bench = Bench().armed()
    answers = [bench.act(0.01) for _ in range(10)]
    assert all(a is not None and a.sent == pytest.approx([0.01, 0.04]) for a in answers)
    bench.run(0.3)
    assert bench.arm.sent[-1] == pytest.approx([0.2, 0.04], abs=1e-5)
    assert [a.seq for a in answers] == list(range(1, 11)) and answers[-1].late == 0
    assert max(c[0] for c in bench.arm.sent) <= 0.2 + 2e-5  # it does not shoot past the last place it was told


def test_what_presses_against_something_does_not_wind_up():
    """With a lead of 5 mm what is commanded stays near a stuck arm, and the first step back moves it back."""
    bench = Bench(watchdog=20.0)
    bench.arm.channels = bench.keeper.channels = (replace(ARM[0], lead=0.005), ARM[1])
    bench.keeper = Keeper(bench.arm, bench.keeper.cfg, bench.log, clock=bench.clock, deliver=bench.answers.append)
    bench.armed().arm.broken = "stuck"
    for _ in range(20):
        bench.act(0.02)
    bench.run(0.2)
    assert bench.arm.sent[-1][0] == pytest.approx(0.1 + 0.005 + 0.02, abs=1e-4)
    bench.act(-0.02)
    bench.run(0.2)
    assert bench.arm.sent[-1][0] == pytest.approx(0.1 + 0.005 - 0.02, abs=1e-4)


def test_the_executed_action_is_told():
    bench = Bench().armed()
    assert bench.act(1.0).sent == pytest.approx([0.02, 0.04])  # no further than a step
    for _ in range(30):
        last = bench.act(1.0)
    assert last.sent[0] == pytest.approx(0.0) and bench.arm.sent[-1][0] <= 0.5  # at the end of its way there is nothing left


def test_old_and_repeated_actions_are_dropped():
    bench = Bench().armed()
    bench.act(0.01)
    bench.keeper.act(1, np.array([0.02, 0.04]))
    bench.keeper.act(0, np.array([0.02, 0.04]))
    assert bench.events.count("dropped") == 2
    bench.act(0.0)
    bench.run(0.1)
    assert bench.arm.sent[-1][0] == pytest.approx(0.11, abs=1e-6)


def test_a_silent_client_is_braked_held_and_parked_and_only_a_person_arms_again():
    bench = Bench().armed()
    for _ in range(5):
        bench.act(0.02)
    bench.run(0.25)
    assert bench.keeper.mode == "held" and "commander" in bench.keeper.faults
    held = bench.arm.sent[-1]
    bench.run(1.0)
    assert bench.arm.sent[-1] == pytest.approx(held, abs=0.01)  # the last command, not zeros
    with pytest.raises(Held):
        bench.keeper.act(99, np.zeros(2))
    bench.run(20.0)
    assert bench.keeper.mode == "parked" and bench.arm.calls[-1] == "park"
    assert bench.arm.sent[-1] == pytest.approx([0.0, 0.04], abs=1e-3)
    bench.keeper.arm()
    assert bench.keeper.mode == "armed" and bench.act(0.01) is not None


def test_a_lost_connection_is_a_dead_client_at_once_and_a_goodbye_is_not():
    bench = Bench().armed()
    bench.act(0.02)
    bench.keeper.leave("its commander is gone")
    assert bench.keeper.mode == "held"
    bench = Bench().armed()
    bench.act(0.02)
    bench.keeper.leave()
    bench.run(0.5)
    assert bench.keeper.mode == "armed" and bench.arm.sent[-1] == pytest.approx(bench.arm.sent[-20])


def test_between_episodes_a_client_may_think():
    bench = Bench().armed()
    bench.act(0.02)
    bench.keeper.finish()
    bench.run(3.0)
    assert bench.keeper.mode == "armed"


def test_an_overrun_ends_where_the_action_led_and_is_not_repeated():
    bench = Bench().armed()
    bench.act(0.01)
    bench.run(0.12)
    assert bench.arm.sent[-1][0] == pytest.approx(0.11, abs=1e-3)
    answer = bench.act(0.01)
    assert answer.late > 0.05 and bench.keeper.overruns == 1 and bench.keeper.mode == "armed"


@pytest.mark.parametrize("broken", ["nan", "shape", "silent", "bug", "old", "deaf"])
def test_a_robot_that_is_not_heard_holds_and_is_held(broken):
    bench = Bench().armed()
    for _ in range(4):
        bench.act(0.02)
    bench.arm.broken = broken
    bench.act(0.02)
    sent = len(bench.arm.sent)
    bench.run(0.3)
    assert bench.keeper.mode == "held"
    assert all(np.isfinite(c).all() for c in bench.arm.sent)
    if broken != "deaf":
        assert np.ptp([c[0] for c in bench.arm.sent[sent + 10:]]) < 1e-9
    with pytest.raises(Held, match="cannot be armed"):
        bench.keeper.arm()
    bench.arm.broken = ""
    bench.run(0.05)
    assert bench.keeper.mode == "held"  # a fault never clears itself
    bench.keeper.arm()


def test_a_lost_packet_is_nothing():
    bench = Bench().armed()
    bench.act(0.02)
    bench.arm.broken = "silent"
    bench.run(0.02)
    bench.arm.broken = ""
    bench.run(0.01)
    assert bench.act(0.02) is not None and bench.keeper.mode == "armed"


def test_encoders_that_stand_while_it_is_moved_are_seen():
    bench = Bench().armed()
    bench.act(0.02)
    bench.arm.broken = "frozen"
    for _ in range(12):
        if bench.keeper.mode == "armed":
            bench.act(0.02)
    assert "no encoder moves" in bench.keeper.faults["readings"]


def test_too_much_force_makes_it_step_back():
    bench = Bench(force=20.0).armed()
    for _ in range(10):
        bench.act(0.02)
    furthest = bench.arm.sent[-1][0]
    bench.arm.force = 30.0
    bench.run(1.0)
    assert "force" in bench.keeper.faults and bench.arm.sent[-1][0] < furthest - 0.05
    with pytest.raises(Held, match="30"):
        bench.keeper.arm()


def test_a_stalled_drive_is_backed_off():
    bench = Bench(stall=(0.03, 0.03)).armed()
    bench.arm.broken = "stuck"
    for _ in range(12):
        if bench.keeper.mode == "armed":
            bench.act(0.02)
    bench.run(3.0)
    assert "stall" in bench.keeper.faults and bench.arm.sent[-1] == pytest.approx(bench.arm.at, abs=1e-3)


def test_an_old_reading_is_no_stalled_drive():
    """What a reading cannot know yet, the arm has not failed to do: it moves at 0.3 m/s, and is seen 0.15 s late."""
    bench = Bench(stall=(0.03, 0.03), stale=0.5).armed()
    bench.arm.delay = 15
    answers = [bench.act(0.02) for _ in range(20)]
    behind = bench.arm.sent[-1][0] - bench.keeper.watch.newest().measured[0]
    assert behind > 0.03 and all(answers) and bench.keeper.mode == "armed"


def test_an_episode_begins_with_a_reading_that_was_taken_once_it_may():
    """With readings 0.15 s late, what is newest when the arm arrives shows it on its way, and a scene that is no more."""
    bench = Bench(stale=0.5, start=(0.2, 0.04)).armed()
    bench.arm.delay = 15
    bench.keeper.reset(0, 0)
    while not bench.answers:
        bench.run(TICK)
    (begins,) = bench.answers
    assert begins.seq == -1 and begins.reading.measured == pytest.approx([0.2, 0.04], abs=1e-3)
    assert bench.act(0.0) is not None


def test_a_pressed_button_stops_it_for_good_and_nothing_moves_it():
    bench = Bench().armed()
    for _ in range(4):
        bench.act(0.02)
    bench.arm.faults = ("estop",)
    bench.run(0.2)
    stopped = bench.arm.sent[-1]
    bench.run(8.0)
    assert bench.keeper.mode == "held" and bench.arm.sent[-1] == pytest.approx(stopped)  # it does not even park
    bench.arm.faults = ()
    bench.run(0.1)
    assert bench.keeper.mode == "held"


def test_hot_drives_are_parked_then_released():
    bench = Bench().armed()
    bench.act(0.02)
    bench.arm.faults = ("hot",)
    bench.run(8.0)
    assert bench.keeper.mode == "parked" and bench.arm.calls[-2:] == ["park", "release"]


def test_an_old_picture_is_flagged_then_stops_it():
    bench = Bench()
    bench.arm.images = {"front": (bench.clock.now + 0.1, np.zeros((2, 2, 3), np.uint8))}
    bench.armed().run(0.25)
    assert "front" in bench.keeper.status()["flags"] and bench.keeper.mode == "armed"
    bench.run(0.6)
    assert "camera front" in bench.keeper.faults


@pytest.mark.parametrize("bad", [np.array([np.nan, 0.04]), np.zeros(3), np.array([np.inf, 0.0])])
def test_actions_that_are_none_hold_and_three_of_them_stop_it(bad):
    bench = Bench().armed()
    for _ in range(3):
        bench.act(0.02)
    for _ in range(3):
        assert bench.keeper.mode == "armed"
        bench.seq += 1
        bench.keeper.act(bench.seq, bad)
        bench.run(0.05)
    assert "actions" in bench.keeper.faults


def test_a_person_who_said_something_long_ago_says_nothing_now():
    bench = Bench().armed()
    bench.act(0.01, source=1)
    sent = bench.act(0.01, source=1, age=0.3)
    bench.run(0.1)
    assert sent.sent[0] == 0 and bench.arm.sent[-1][0] == pytest.approx(0.11, abs=5e-3)


def test_who_takes_over_begins_where_the_robot_is():
    bench = Bench(fps=20).armed()
    for _ in range(4):
        bench.act(0.02)
    places = [c[0] for c in bench.arm.sent]
    bench.act(-0.02, source=1)
    jump = np.abs(np.diff([c[0] for c in bench.arm.sent][len(places) - 2:], n=2)) / TICK**2
    assert jump.max() <= 6.0 * 1.01


def test_a_reset_goes_to_the_start_and_waits_for_a_person():
    bench = Bench(start=(-0.2, 0.08), reset="hand").armed()
    bench.keeper.reset(3)
    bench.run(6.0)
    assert bench.keeper.phase == "waiting" and bench.arm.sent[-1] == pytest.approx([-0.2, 0.08], abs=1e-3)
    with pytest.raises(Held, match="on its way"):
        bench.keeper.act(1, np.zeros(2))
    bench.keeper.ready()
    bench.run(0.02)
    assert bench.answers[-1].seq == -1 and not bench.answers[-1].failed


def test_stop_tells_the_commander_and_stays():
    bench = Bench().armed()
    bench.act(0.02)
    bench.keeper.stop("somebody")
    assert "somebody" in bench.answers[-1].failed
    bench.run(20.0)
    assert bench.keeper.mode == "held"


@pytest.mark.parametrize("change", [{"channels": ()}, {"state": ()}, {"channels": (ARM[0], ARM[0])}, {"channels": ("x",)}])
def test_a_robot_that_does_not_say_what_its_numbers_mean_is_refused(change):
    with pytest.raises(RealrlError):
        checked(replace(Arm(Clock()), **change), "lab")


@pytest.mark.parametrize("change", [{"unit": " "}, {"low": 1.0}, {"velocity": 0.0}, {"jerk": np.nan}, {"kind": "torque"}, {"name": ""}])
def test_a_channel_without_units_and_limits_is_none(change):
    with pytest.raises(RealrlError):
        replace(ARM[0], **change)
