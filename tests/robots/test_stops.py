"""What has been stopped stays stopped, whatever asks it to move, until a person arms it; and what it then does first."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from test_keeper import TICK, Bench

from realrl.cell.campaign import unsafe
from realrl.robots.driver import Held
from realrl.robots.log import Tick
from realrl.types import RealrlError


def moving(**cfg) -> Bench:
    """At work."""
    bench = Bench(**cfg).armed()
    for _ in range(8):
        bench.act(0.02)
    return bench


def stands(bench: Bench, seconds: float = 12.0) -> bool:
    """Whether nothing is commanded to move, for a while from now."""
    before = len(bench.arm.sent)
    last = bench.arm.sent[-1]
    bench.run(seconds)
    return all(np.abs(c - last).max() < 1e-6 for c in bench.arm.sent[before:])


def test_whoever_ran_it_cannot_park_what_a_person_has_stopped():
    """`realrl deploy` parks whatever happened; somebody may lie under the arm."""
    bench = moving()
    bench.keeper.stop("somebody")
    bench.run(0.5)
    bench.keeper.park("10.0.0.7:5000")
    assert bench.keeper.mode == "held" and stands(bench)
    bench.keeper.park("10.0.0.8:6000", person=True)
    bench.run(8.0)
    assert bench.keeper.mode == "parked"


def test_a_button_that_is_let_go_moves_nothing():
    bench = moving()
    bench.arm.faults = ("estop",)
    bench.run(0.2)
    bench.keeper.park("10.0.0.7:5000")
    with pytest.raises(Held, match="estop"):
        bench.keeper.park("10.0.0.8:6000", person=True)
    bench.run(0.5)
    bench.arm.faults = ()
    assert bench.keeper.mode == "held" and stands(bench)


def test_a_button_that_is_pressed_again_on_the_way_to_park_ends_it():
    bench = moving()
    bench.arm.faults = ("estop",)
    bench.run(0.2)
    bench.arm.faults = ()
    bench.run(0.1)
    bench.keeper.park("10.0.0.8:6000", person=True)
    bench.run(0.3)
    assert bench.keeper.mode == "parking"
    bench.arm.faults = ("estop",)
    bench.run(0.3)
    bench.arm.faults = ()
    assert bench.keeper.mode == "held" and stands(bench)


@pytest.mark.parametrize("how", ["stop", "estop"])
def test_who_steps_back_from_a_push_is_stopped_all_the_same(how):
    bench = moving(force=20.0, pace=0.05)
    bench.arm.force = 30.0
    bench.run(0.2)
    assert "force" in bench.keeper.faults
    if how == "stop":
        bench.keeper.stop("somebody")
    bench.arm.faults = ("estop",) if how == "estop" else ()
    bench.run(0.3)
    bench.arm.force, bench.arm.faults = 0.0, ()
    assert stands(bench, 5.0)


def test_a_robot_whose_own_stop_fails_is_stopped_all_the_same():
    bench = Bench(start=(0.4, 0.04)).armed()
    bench.keeper.reset(0)
    bench.run(0.3)

    def broken():
        raise OSError("the bus is gone")

    bench.arm.brake = broken
    bench.keeper.stop("somebody")
    bench.run(0.5)
    assert bench.keeper.mode == "held" and stands(bench)


def test_a_cell_that_cannot_set_itself_up_or_judge_holds_the_robot():
    for name in ("begin", "outcome"):
        bench = Bench(start=(0.1, 0.04))
        bench.arm.begin, bench.arm.outcome = lambda seed: None, lambda: (0.0, False, False)
        setattr(bench.arm, name, lambda *_: 1 / 0)
        bench.armed().keeper.reset(0)
        bench.run(0.5)
        if name == "outcome":
            bench.act(0.01)
        assert bench.keeper.mode == "held" and "division by zero" in bench.keeper.faults["cell"]
        assert "division by zero" in bench.answers[-1].failed


def test_an_arm_that_was_led_by_hand_while_its_drives_were_cut_is_not_sent_back():
    """Nothing is written until a person arms it, and then from where it is."""
    bench = moving()
    bench.arm.faults = ("estop",)
    bench.run(0.3)
    bench.arm.broken, bench.arm.at = "stuck", bench.arm.at - [0.06, 0.0]  # by hand: 6 % of its range
    bench.run(0.3)
    bench.arm.faults = ()
    before = len(bench.arm.sent)
    bench.run(1.0)
    assert len(bench.arm.sent) == before, "who lets go of a button has armed nothing"
    there = bench.arm.at.copy()
    bench.arm.broken = ""
    bench.keeper.arm()
    bench.run(0.1)
    assert bench.arm.sent[before] == pytest.approx(there, abs=1e-4)


def worst(bench: Bench, since: int) -> float:
    """The fastest that was commanded from then on, m/s."""
    return float(np.abs(np.diff([c[0] for c in bench.arm.sent[since - 1:]])).max() / TICK)


def test_arming_makes_no_jump_however_soon_and_wherever_the_arm_is():
    """Where the arm is behind by more than a little: its command goes there, and does not jump there."""
    bench = moving()
    bench.arm.broken = "stuck"
    for _ in range(8):
        bench.act(0.02)
    assert bench.arm.sent[-1][0] - bench.arm.at[0] > 0.1
    bench.keeper.latch("commander", "its commander is gone")
    before = len(bench.arm.sent)
    bench.keeper.arm()  # it still brakes
    bench.run(3.0)
    assert worst(bench, before) <= 0.3 * 1.001
    assert bench.arm.sent[-1][0] == pytest.approx(bench.arm.at[0], abs=2e-3), "it does not go on pulling"


def test_arming_what_was_let_go_waits_until_the_command_stands():
    bench = moving()
    bench.arm.faults = ("estop",)
    bench.run(0.02)
    bench.arm.faults = ()
    bench.run(TICK)
    with pytest.raises(Held, match="still brakes"):
        bench.keeper.arm()
    before = len(bench.arm.sent)
    bench.run(1.0).keeper.arm()
    bench.run(0.5)
    assert worst(bench, before) <= 0.3 * 1.001


def test_a_control_loop_that_stood_still_holds_the_robot():
    """By SIGSTOP, or a computer that sleeps: what was asked for before is no longer what anybody wants."""
    bench = Bench(start=(0.4, 0.04)).armed()
    bench.keeper.reset(0)
    bench.run(0.3)
    bench.clock.now += 5.0
    bench.run(0.05)
    assert bench.keeper.mode == "held" and "5.0" in bench.keeper.faults["late"] and stands(bench, 2.0)


def test_the_way_to_park_goes_on_slowly_after_it_was_in_the_way():
    """A robot that is not heard on its way is waited for; then it goes on as slowly as before, and not to where it should be by now."""
    bench = Bench(park=(-0.4, 0.04)).armed()
    bench.keeper.park("somebody")
    bench.run(0.5)
    bench.arm.broken = "silent"
    bench.run(0.15)
    bench.arm.broken = ""
    before = len(bench.arm.sent)
    bench.run(20.0)
    speed = np.abs(np.diff([c[0] for c in bench.arm.sent[before - 1:]])).max() / TICK
    assert bench.keeper.mode == "parked" and speed < 0.3 * 0.3 / 2 * 1.2


def test_the_server_that_ends_does_not_move_what_was_stopped():
    bench = moving()
    bench.keeper.stop("somebody")
    bench.run(0.3)
    bench.keeper.park("the server's end")
    assert stands(bench)


def test_brakes_that_do_not_engage_are_not_relied_upon():
    """Nothing lets go of the drives of an arm that is held by them alone."""
    bench = moving()

    def broken():
        raise OSError("the brake's valve is stuck")

    bench.arm.park = broken
    bench.keeper.park("somebody")
    bench.run(8.0)
    assert bench.keeper.mode == "held" and "valve" in bench.keeper.faults["park"]
    assert stands(bench), "it does not try again and again"


@pytest.mark.parametrize("seed", range(12))
def test_nothing_that_anybody_asks_in_whatever_order_gets_a_command_beyond_a_limit(seed):
    """Commanders, persons, faults and a clock that stumbles; of commands that follow one another. Where nothing was sent for a while a
    motion begins anew, from where the arm is."""
    rng, bench = np.random.default_rng(seed), Bench(force=50.0, stall=(0.05, 0.05), start=(0.3, 0.02), park_after=1.0)
    ticks: list[Tick] = []
    write = bench.arm.write

    def noted(command):
        ticks.append(Tick(bench.clock.now, 0.0, "", [], [], command.tolist(), [], 0))
        return write(command)

    bench.arm.write = noted
    keeper, arm = bench.keeper, bench.arm

    def act():
        bench.seq += 1
        keeper.act(bench.seq, rng.choice([-1, 1], 2) * 10.0 ** rng.integers(-3, 6), source=int(rng.integers(2)))

    def breaks():
        arm.broken = rng.choice(["", "", "silent", "nan", "deaf", "stuck", "old"])
        arm.faults = ("estop",) if rng.random() < 0.2 else ("hot",) if rng.random() < 0.1 else ()
        arm.force = float(rng.choice([0.0, 0.0, 0.0, 80.0]))

    def led():
        arm.at = np.clip(arm.at + rng.normal(0, 0.1, 2) * [1, 0.1], [-0.5, 0.0], [0.5, 0.08]) if not keeper.running else arm.at

    asks = [act] * 12 + [breaks] * 2 + [led, keeper.arm, keeper.arm, keeper.arm, keeper.finish, lambda: keeper.leave("gone"), keeper.ready,
                                        lambda: keeper.reset(1), lambda: keeper.stop("one"), lambda: keeper.park("one"),
                                        lambda: keeper.park("one", person=True), lambda: setattr(bench.clock, "now", bench.clock.now + 4.0)]
    for _ in range(400):
        with contextlib.suppress(RealrlError):
            asks[int(rng.integers(len(asks)))]()
        for _ in range(int(rng.integers(12))):
            keeper.tick()
            bench.clock.now += TICK * float(rng.uniform(0.6, 1.4))
    assert len(ticks) > 200 and unsafe(ticks, arm.channels, TICK) == 0
