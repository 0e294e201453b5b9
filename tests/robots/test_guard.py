"""The guard: nothing outside the limits, and nothing that is not a number, ever reaches the robot."""

import numpy as np
import pytest

from realrl import envs
from realrl.robots.guard import LimitGuard, box_guard
from realrl.types import RealrlError

OBS = {"state": np.zeros(1, np.float32)}


def test_clips_to_the_box_and_counts():
    guard = LimitGuard([-1, -0.5], [1, 0.5])
    assert guard(OBS, np.array([0.3, -0.2], np.float32)) == pytest.approx([0.3, -0.2])
    assert (guard.changed, guard.held) == (0, 0)
    assert guard(OBS, np.array([7.0, -7.0])) == pytest.approx([1.0, -0.5])
    assert (guard.changed, guard.held) == (1, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_what_is_not_finite_becomes_the_hold_action(bad):
    guard = LimitGuard([-1, -1], [1, 1], hold=[0.25, -0.5])
    with np.errstate(over="ignore"):
        assert guard(OBS, np.array([0.0, bad])) == pytest.approx([0.25, -0.5])
    assert (guard.changed, guard.held) == (1, 1)


def test_hold_is_zero_brought_into_the_box():
    assert LimitGuard([-1, 0.2], [1, 0.5])(OBS, np.full(2, np.nan)) == pytest.approx([0.0, 0.2])


def test_rate_limit_holds_within_an_episode_and_resets():
    guard = LimitGuard([-1, -1], [1, 1], max_delta=[0.1, 0.4])
    guard(OBS, np.zeros(2))
    assert guard(OBS, np.ones(2)) == pytest.approx([0.1, 0.4])
    assert guard(OBS, np.ones(2)) == pytest.approx([0.2, 0.8])
    assert guard(OBS, np.full(2, np.nan)) == pytest.approx([0.1, 0.4])  # towards hold, no faster than anything else
    guard.reset()
    assert guard(OBS, np.ones(2)) == pytest.approx([1.0, 1.0])
    guard.reset(last=np.array([-1.0, -1.0]))
    assert guard(OBS, np.ones(2)) == pytest.approx([-0.9, -0.6])


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


def test_what_it_returns_is_the_callers():
    guard = LimitGuard([-1], [1], max_delta=0.1)
    asked = np.zeros(1, np.float32)
    guard(OBS, asked)[:] = 9.0
    assert asked == 0.0 and guard(OBS, np.ones(1)) == pytest.approx([0.1])


@pytest.mark.parametrize(("arguments", "line"), [
    (dict(low=[-1], high=[1, 1]), "both be"), (dict(low=-1, high=1), "both be"), (dict(low=[1], high=[-1]), "low <= high"),
    (dict(low=[-np.inf], high=[1]), "finite"), (dict(low=[-1], high=[1], max_delta=0), "positive"),
    (dict(low=[-1], high=[1], max_delta=[1, 1]), "max_delta"), (dict(low=[-1], high=[1], hold=[2]), "hold"),
    (dict(low=[-1], high=[1], hold=[np.nan]), "hold"), (dict(low=[-1], high=[1], hold=[0, 0]), "hold")])
def test_mistakes_get_one_line(arguments, line):
    with pytest.raises(RealrlError, match=line):
        LimitGuard(**arguments)


def test_wrong_shape():
    with pytest.raises(RealrlError, match=r"shape \[3\]"):
        LimitGuard([-1], [1])(OBS, np.zeros(3))


def test_box_guard():
    guard = box_guard(envs.make("toy/obstacle"))
    assert guard(OBS, np.array([3.0, -0.5])) == pytest.approx([1.0, -0.5])
