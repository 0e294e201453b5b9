"""The guard: nothing outside the limits, and nothing that is not a number, ever reaches the robot."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realrl import envs
from realrl.config import from_dict
from realrl.robots.guard import GuardConfig, LimitGuard, box_guard
from realrl.types import RealrlError

OBS = {"state": np.zeros(1, np.float32)}
NAN = np.full(2, np.nan)


def test_clips_to_the_box_and_counts():
    guard = LimitGuard([-1, -0.5], [1, 0.5])
    assert guard(OBS, np.array([0.3, -0.2], np.float32)) == pytest.approx([0.3, -0.2])
    assert (guard.changed, guard.held) == (0, 0)
    assert guard(OBS, np.array([7.0, -7.0])) == pytest.approx([1.0, -0.5])
    assert (guard.changed, guard.held) == (1, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_what_is_not_finite_becomes_the_hold_action(bad):
    guard = LimitGuard([-1, -1], [1, 1], hold=[0.25, -0.5])
    assert guard(OBS, np.array([0.0, bad])) == pytest.approx([0.25, -0.5])
    assert (guard.changed, guard.held) == (1, 1)


def test_hold_repeats_what_was_sent_last():
    guard = LimitGuard([-1, 0.2], [1, 0.9])
    assert guard(OBS, NAN) == pytest.approx([0.0, 0.2])  # nothing was sent yet: zeros brought into the box
    guard(OBS, np.array([0.7, 3.0]))
    assert guard(OBS, NAN) == pytest.approx([0.7, 0.9]) and guard(OBS, NAN) == pytest.approx([0.7, 0.9])
    guard.reset(last=np.array([-0.4, 0.3]))
    assert guard(OBS, NAN) == pytest.approx([-0.4, 0.3])
    guard.reset()
    assert guard(OBS, NAN) == pytest.approx([0.0, 0.2])


def test_hold_of_zeros_stops_a_robot_that_is_sent_velocities():
    guard = LimitGuard([-1, 0.2], [1, 0.9], hold="zeros")
    guard(OBS, np.array([0.7, 0.5]))
    assert guard(OBS, NAN) == pytest.approx([0.0, 0.2])


def test_rate_limit_holds_within_an_episode_and_resets():
    guard = LimitGuard([-1, -1], [1, 1], max_delta=[0.1, 0.4], hold="zeros")
    guard(OBS, np.zeros(2))
    assert guard(OBS, np.ones(2)) == pytest.approx([0.1, 0.4])
    assert guard(OBS, np.ones(2)) == pytest.approx([0.2, 0.8])
    assert guard(OBS, NAN) == pytest.approx([0.1, 0.4])  # towards hold, no faster than anything else
    guard.reset()
    assert guard(OBS, np.ones(2)) == pytest.approx([1.0, 1.0])
    guard.reset(last=np.array([-1.0, -1.0]))
    assert guard(OBS, np.ones(2)) == pytest.approx([-0.9, -0.6])


@pytest.mark.parametrize("last", [[np.nan, 0], [0, -np.inf], [0, 1e300], [[0, 0]], np.zeros((3, 2)), [0], 0, "here", [[0], [0, 0]]])
def test_reset_takes_only_a_place_a_robot_can_be_at(last):
    guard = LimitGuard([-1, -1], [1, 1], max_delta=0.1)
    guard(OBS, np.zeros(2))
    with pytest.raises(RealrlError, match="guard: last"):
        guard.reset(last)
    assert guard(OBS, np.ones(2)) == pytest.approx([0.1, 0.1])  # nothing was forgotten


def test_limits_narrowed_in_flight_win_over_the_rate():
    guard = LimitGuard([-1, -1], [1, 1], max_delta=0.1, hold=[1, 1])
    guard(OBS, np.ones(2))
    guard.set_limits([-0.2, -0.2], [0.2, 0.2])
    assert guard(OBS, np.ones(2)) == pytest.approx([0.2, 0.2])
    assert guard(OBS, np.zeros(2)) == pytest.approx([0.1, 0.1])
    assert guard(OBS, NAN) == pytest.approx([0.2, 0.2])  # what to hold has to obey as well
    with pytest.raises(ValueError, match="read-only"):
        guard.low[:] = -1  # a limit that nobody has looked at
    for low, high in (([0, np.nan], [1, 1]), ([1, 1], [0, 0]), ([-1], [1]), ([-1, -1], [np.inf, 1])):
        with pytest.raises(RealrlError, match="guard"):
            guard.set_limits(low, high)
    assert (guard.low == np.float32(-0.2)).all() and (guard.high == np.float32(0.2)).all()


def test_random_stream_never_breaks_a_limit():
    rng = np.random.default_rng(0)
    guard = LimitGuard([-0.7, 0.1, -3], [0.7, 0.9, -2], max_delta=0.05)
    sent = []
    for _ in range(300):
        action = rng.normal(0, 3, 3)
        action[rng.random(3) < 0.05] = np.nan
        sent.append(guard(OBS, action))
    sent = np.array(sent)
    assert (sent >= guard.low).all() and (sent <= guard.high).all()
    assert np.abs(np.diff(sent, axis=0)).max() <= 0.05 + 1e-6
    assert guard.held > 20


ANY = st.one_of(st.floats(-2, 2), st.floats(), st.sampled_from([math.nan, math.inf, -math.inf, 1e39, -1e300, 3.4e38]))
VECTOR = st.one_of(st.lists(ANY, min_size=2, max_size=2), st.lists(ANY, max_size=3), st.lists(st.lists(ANY, max_size=2), max_size=3), ANY,
                   st.sampled_from(["x", None, [None, 1], [10**400, 0], [[1], [1, 2]], np.zeros((1, 2)), np.zeros(2, np.float64)]))
EVENTS = st.one_of(st.tuples(st.just("act"), VECTOR), st.tuples(st.just("reset"), VECTOR), st.tuples(st.just("box"), VECTOR, VECTOR),
                   st.tuples(st.just("write"), ANY))
HOLDS = st.one_of(st.sampled_from(["last", "zeros"]), st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=2))


@settings(max_examples=300, deadline=None)
@given(HOLDS, st.one_of(st.none(), st.floats(1e-3, 3), st.just([0.25, math.inf])), st.lists(EVENTS, max_size=25))
def test_no_sequence_of_hostile_inputs_gets_a_limit_broken(hold, max_delta, events):
    guard = LimitGuard([-1, -1], [1, 1], max_delta, hold)
    most = np.broadcast_to(np.inf if max_delta is None else max_delta, 2)
    before = None  # what the next action may differ from by `most` at the most
    for name, *given_values in events:
        try:
            if name == "act":
                sent = guard(OBS, given_values[0])
            elif name == "reset":
                guard.reset(given_values[0])
            elif name == "box":
                guard.set_limits(*given_values)
            else:
                guard.low[:] = guard.high[0] = given_values[0]
        except (RealrlError, ValueError):  # refused: nothing was sent, nothing changes
            assert name != "write" or (guard.low <= guard.high).all()
            continue
        if name == "reset":
            before = None if given_values[0] is None else np.array(given_values[0], np.float64)
        if before is not None:
            before = np.clip(before, guard.low, guard.high)  # only a narrower box may push
        if name == "act":
            assert sent.shape == (2,) and sent.dtype == np.float32 and np.isfinite(sent).all()
            assert (sent >= guard.low).all() and (sent <= guard.high).all()
            if before is not None:
                assert (np.abs(sent - before) <= most + 1e-6 * (1 + np.abs(before))).all()
            before = sent.astype(np.float64)


def test_what_it_returns_is_the_callers():
    guard = LimitGuard([-1], [1], max_delta=0.1)
    asked = np.zeros(1, np.float32)
    guard(OBS, asked)[:] = 9.0
    assert asked == 0.0 and guard(OBS, np.ones(1)) == pytest.approx([0.1])


@pytest.mark.parametrize(("arguments", "line"), [
    (dict(low=[-1], high=[1, 1]), "both be"), (dict(low=-1, high=1), "both be"), (dict(low=[1], high=[-1]), "low <= high"),
    (dict(low=[], high=[]), "both be"), (dict(low=["a"], high=[1]), "no array of numbers"),
    (dict(low=[-np.inf], high=[1]), "finite"), (dict(low=[-1], high=[1], max_delta=0), "positive"),
    (dict(low=[-1], high=[1], max_delta=np.nan), "positive"), (dict(low=[-1], high=[1], max_delta="fast"), "max_delta"),
    (dict(low=[-1], high=[1], max_delta=[1, 1]), "max_delta"), (dict(low=[-1], high=[1], hold=[2]), "hold"),
    (dict(low=[-1], high=[1], hold="lsat"), "hold"),
    (dict(low=[-1], high=[1], hold=[np.nan]), "hold"), (dict(low=[-1], high=[1], hold=[0, 0]), "hold")])
def test_mistakes_get_one_line(arguments, line):
    with pytest.raises(RealrlError, match=line):
        LimitGuard(**arguments)


def test_wrong_shape():
    with pytest.raises(RealrlError, match=r"shape \[3\]"):
        LimitGuard([-1], [1])(OBS, np.zeros(3))


def test_box_guard():
    env = envs.make("toy/obstacle")
    guard = box_guard(env)
    assert guard(OBS, np.array([3.0, -0.5])) == pytest.approx([1.0, -0.5])
    assert guard(OBS, NAN) == pytest.approx([0.0, 0.0]), "under relative control zeros let it stand"
    env.task = replace(env.task, control="absolute")
    guard = box_guard(env)
    guard(OBS, np.array([3.0, -0.5]))
    assert guard(OBS, NAN) == pytest.approx([1.0, -0.5]), "under absolute control the last command does"
    slow = box_guard(env, GuardConfig(max_delta=0.1, hold="zeros"))
    slow(OBS, np.array([1.0, -0.5]))
    assert slow(OBS, NAN) == pytest.approx([0.9, -0.4])


@pytest.mark.parametrize("fields", [{"max_delta": 0}, {"max_delta": -1.0}, {"max_delta": math.nan}, {"max_delta": math.inf},
                                    {"hold": "first"}])
def test_a_configuration_out_of_bounds_gets_one_line(fields):
    with pytest.raises(RealrlError, match=next(iter(fields))):
        from_dict(GuardConfig, fields)
