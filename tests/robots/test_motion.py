"""Whatever it is asked, the guard sends nothing outside the limits, and braking ends where the closed form says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realrl.robots.braking import Motion, brake, stop
from realrl.robots.driver import Channel
from realrl.robots.motion import MotionGuard
from realrl.types import Array, RealrlError

PERIOD = 0.01
CHANNELS = (Channel("elbow", "rad", "position", -1, 1, 2.0, 10.0, 500.0), Channel("x", "m", "pose", 0, 0.5, 0.3, 6.0, 200.0),
            Channel("wheel", "rad", "velocity", -1, 1, 1.0, 5.0, 100.0), Channel("wrist", "rad", "delta", -2, 2, 1.0, 5.0, 50.0))
numbers = st.one_of(st.floats(-3, 3), st.sampled_from([np.nan, np.inf, -np.inf, 1e300, -1e300, 0.0]))


def orders(channels: int):
    """Sequences of what may be asked for: (place [C], rate [C], ticks, whether to brake instead)."""
    asked = st.lists(numbers, min_size=channels, max_size=channels)
    return st.lists(st.tuples(asked, asked, st.integers(1, 30), st.booleans()), min_size=1, max_size=12)


def steps(places: Array, times: Array) -> tuple[Array, Array, Array]:
    """Mean speeds [T-1, C], accelerations and jerks between samples taken at uneven times."""
    dt = np.diff(times)[:, None]
    v = np.diff(places, axis=0) / dt
    a = np.diff(v, axis=0) / ((dt[1:] + dt[:-1]) / 2)
    j = np.diff(a, axis=0) / ((dt[2:] + dt[1:-1] + dt[:-2]) / 3)
    return v, a, j


def travelled(guard: MotionGuard, start: Array, asked: list[tuple[list[float], list[float], int, bool]], seed: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    guard.reset(start)
    times, places = [0.0], [guard.place.copy()]
    for place, rate, ticks, braked in asked:
        for _ in range(ticks):
            dt = rng.uniform(0.2, 1.5) * guard.period
            sent = guard.brake(dt) if braked else guard.follow(np.array(place), np.array(rate), dt)
            assert np.isfinite(sent.command).all()
            times.append(times[-1] + dt)
            places.append(guard.place.copy())
    return np.array(places), np.array(times)


@settings(max_examples=60, deadline=None)
@given(orders(4), st.integers(0, 2**32), st.tuples(*[st.floats(0, 1)] * 4))
def test_no_sequence_of_orders_gets_beyond_a_limit(asked, seed, at):
    guard = MotionGuard(CHANNELS, PERIOD)
    stays_inside(guard, np.array(at), asked, seed)


def stays_inside(guard: MotionGuard, at: Array, asked: list[tuple[list[float], list[float], int, bool]], seed: int) -> None:
    """at: [C] in [0, 1], where it begins."""
    places, times = travelled(guard, guard.low + at * (guard.high - guard.low), asked, seed)
    v, a, j = steps(places, times)
    column = lambda name: np.array([getattr(c, name) for c in guard.channels])
    assert (places >= guard.low).all() and (places <= guard.high).all()
    assert (np.abs(v) <= column("velocity") * (1 + 1e-6)).all()
    assert (np.abs(a) <= column("acceleration") * (1 + 1e-6)).all()
    assert (np.abs(j) <= column("jerk") * (1 + 1e-6)).all()


def test_a_limit_is_kept_at_full_speed():
    """Driven into the wall with all it has, it stops there and not a step further."""
    guard = MotionGuard(CHANNELS[:1], PERIOD)
    guard.reset(np.array([-1.0]))
    for _ in range(400):
        sent = guard.follow(np.array([5.0]), np.array([0.0]), PERIOD)
    assert sent.command == pytest.approx([1.0], abs=2e-3) and sent.command[0] <= 1.0 and sent.bits[0]


@settings(max_examples=200, deadline=None)
@given(st.tuples(st.floats(-2, 2), st.floats(-3, 3)), st.floats(0.5, 9), st.floats(5, 300), st.integers(2, 40))
def test_braking_ends_where_it_says_at_any_rate_of_ticks(at, A, J, ticks):
    speed, push = at[0], min(max(at[1], -A), A)
    A, J = np.array([A]), np.array([J])
    now = Motion(np.zeros(1), np.array([speed]), np.array([push]))
    plan = stop(now, A, J)
    lasts = float((plan.t1 + plan.t2 + plan.t3)[0])
    seen = [0.0]
    for _ in range(ticks):
        now = brake(now, A, J, lasts / ticks)
        seen.append(float(now.p[0]))
        assert abs(now.a[0]) <= A[0] + 1e-9 and abs(now.v[0]) <= plan.fastest[0] + 1e-9
    assert now.v == pytest.approx([0], abs=1e-6) and now.p == pytest.approx(plan.end, abs=1e-6)
    assert min(seen) >= plan.low[0] - 1e-9 and max(seen) <= plan.high[0] + 1e-9


def test_it_arrives_and_stands():
    guard = MotionGuard(CHANNELS[:2], PERIOD)
    guard.reset(np.array([0.0, 0.2]))
    for _ in range(300):
        sent = guard.follow(np.array([0.7, 0.4]), np.zeros(2), PERIOD)
    assert guard.still and sent.command == pytest.approx([0.7, 0.4], abs=1e-9) and not sent.bits.any()


def test_what_is_followed_evenly_is_followed_without_lag():
    guard, place = MotionGuard(CHANNELS[:1], PERIOD), 0.0
    guard.reset(np.zeros(1))
    for _ in range(100):
        place += 0.5 * PERIOD
        guard.follow(np.array([place]), np.array([0.5]), PERIOD, goal=np.ones(1))
    assert guard.place == pytest.approx([place], abs=1e-6)


def test_velocities_reach_the_speed_and_stop_before_the_end_of_the_joint():
    guard, at = MotionGuard(CHANNELS[2:3], PERIOD), np.zeros(1)
    guard.reset(at)
    speeds = []
    for _ in range(400):
        sent = guard.follow(at, np.array([0.8]), PERIOD)
        at = at + sent.command * PERIOD
        guard.observe(at)
        speeds.append(float(sent.command[0]))
    assert max(speeds) == pytest.approx(0.8, abs=0.01) and at[0] <= 1 + 1e-6 and at[0] > 0.95 and abs(speeds[-1]) < 0.05


def test_deltas_add_up_to_where_it_is():
    guard = MotionGuard(CHANNELS[3:], PERIOD)
    guard.reset(np.array([0.5]))
    moved = sum(float(guard.follow(np.array([0.7]), np.zeros(1), PERIOD).command[0]) for _ in range(200))
    assert moved == pytest.approx(0.2) and guard.brake(PERIOD).command == pytest.approx([0])


@pytest.mark.parametrize("dt", [0.0, -1.0, np.nan, np.inf])
def test_a_clock_that_stands_or_jumps_sends_the_last_command(dt):
    guard = MotionGuard(CHANNELS[:1], PERIOD)
    guard.reset(np.zeros(1))
    for _ in range(10):
        before = guard.follow(np.ones(1), np.zeros(1), PERIOD).command
    assert guard.follow(np.ones(1), np.zeros(1), dt).command == pytest.approx(before, abs=1e-12)


def test_after_a_pause_it_begins_at_rest():
    """The robot has stood at the last command meanwhile; going on at speed would be a jump."""
    guard = MotionGuard(CHANNELS[:1], PERIOD)
    guard.reset(np.zeros(1))
    for _ in range(30):
        before = guard.follow(np.ones(1), np.zeros(1), PERIOD).command
    assert guard.follow(np.ones(1), np.zeros(1), 1.0).command - before < 0.5 * 500 * PERIOD**3


@pytest.mark.parametrize("at", [[np.nan], [1.2], [0.0, 0.0]])
def test_it_does_not_begin_where_it_must_not_be(at):
    with pytest.raises(RealrlError, match=r"read it again|outside its limits"):
        MotionGuard(CHANNELS[:1], PERIOD).reset(np.array(at))


def two_links(q: Array) -> Array:
    """A planar arm of two links of 0.5 m."""
    return np.array([np.cos(q[0]) + np.cos(q[0] + q[1]), np.sin(q[0]) + np.sin(q[0] + q[1]), 0.0]) / 2


@pytest.mark.parametrize("seed", range(4))
def test_the_hand_stays_in_its_workspace(seed):
    joints = [Channel(name, "rad", "position", -3, 3, 2.0, 10.0, 500.0) for name in ("shoulder", "elbow")]
    box = np.array([0.2, -0.6, -1.0]), np.array([0.9, 0.6, 1.0])
    guard, rng, bit = MotionGuard(joints, PERIOD, tip=two_links, box=box), np.random.default_rng(seed), False
    guard.reset(np.array([0.5, -1.0]))
    for _ in range(12):
        goal = rng.uniform(-3, 3, 2)
        for _ in range(25):
            bit |= guard.follow(goal, np.zeros(2), PERIOD).workspace
            tip = two_links(guard.place)
            assert (tip >= box[0] - 1e-3).all() and (tip <= box[1] + 1e-3).all()
    assert bit


def test_a_box_needs_to_know_where_the_hand_is():
    with pytest.raises(RealrlError, match="tip"):
        MotionGuard(CHANNELS, PERIOD, box=(np.zeros(3), np.ones(3)))


def test_whether_an_arm_hangs_near_its_last_command_is_known():
    guard = MotionGuard(CHANNELS[:1], PERIOD)
    assert not guard.near(np.zeros(1))
    guard.reset(np.zeros(1))
    for _ in range(100):
        last = guard.follow(np.array([0.5]), np.zeros(1), PERIOD).command
    assert guard.near(last - 0.05) and not guard.near(np.array([-0.8]))
    guard.reset(np.array([-0.8]))  # it was moved by hand
    assert guard.brake(PERIOD).command == pytest.approx([-0.8])
