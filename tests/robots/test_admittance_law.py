"""The admittance law against its filter and its energy; a residual that no window can bring out of its bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.signal import lfilter
from scipy.spatial.transform import Rotation

from realrl.robots.admittance import (
    LEAST,
    MOST,
    Gains,
    Law,
    LimitsConfig,
    Tuner,
    TunerConfig,
    Window,
    begun,
    bounds,
    critical,
    fit,
    replay,
    saturated,
    slopes,
    stable_damping,
    touched,
)
from realrl.robots.turns import rotation_vector, turned
from realrl.types import Array, RealrlError

WIDE = LimitsConfig(force=1e4, torque=1e3, speed=10.0, turn=100.0, stuck=0)
SPRING = np.array([200.0] * 3 + [10.0] * 3)
positive = st.floats(0.01, 1e4)


def energy(law: Law) -> float:
    """Of the pretended mass and spring, along x, y and z, set point 0."""
    mass, _, stiffness = law.gains.table()[:3].T
    return 0.5 * float(np.sum(mass * np.square(law.twist[:3])) + np.sum(stiffness * np.square(law.position)))


@given(arrays(float, 6, elements=positive), arrays(float, 6, elements=positive), arrays(float, 6, elements=st.floats(0, 1e4)),
       st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_it_never_gives_more_than_it_gets(mass: Array, damping: Array, stiffness: Array, seed: int) -> None:
    """Energy of the pretended mass and spring grows by no more than the wrench's work, at any gains; a millisecond or eight."""
    rng = np.random.default_rng(seed)
    for dt in (0.001, 0.008):
        law = Law(Gains(mass, damping, stiffness), WIDE, dt)
        law.begin(rng.normal(0, 0.02, 3))
        for _ in range(30):
            before, force = energy(law), rng.normal(0, 10, 3)
            law.step([*force, 0, 0, 0], (0, 0, 0))
            work = dt * float(np.dot(force, law.twist[:3]))
            if np.linalg.norm(law.twist[:3]) < WIDE.speed * 0.999:
                assert energy(law) <= before + work + 1e-9 * (1 + before + abs(work))


def test_it_is_the_filter_that_the_fit_replays() -> None:
    rng, goal = np.random.default_rng(0), 0.01
    force = rng.normal(0, 5, 400)
    gains = critical(SPRING)
    law = Law(gains, WIDE, 0.001)
    law.begin((0.003, 0.0, 0.0))
    told = [law.step([f, 0, 0, 0, 0, 0], (goal, 0, 0))[0][0] for f in force]
    np.testing.assert_allclose(replay(gains.table()[0], np.array([0.003, 0.0]), force, np.full(400, goal), 0.001), told, atol=1e-13)


def test_a_turn_is_pulled_back_in_the_worlds_axes() -> None:
    law = Law(critical(SPRING), WIDE)
    goal = Rotation.from_rotvec([0.3, -0.2, 0.5])
    start = Rotation.from_rotvec([0.0, 0.1, 0.0]) * goal
    law.begin((0, 0, 0), np.roll(start.as_quat(), 1))
    for i in range(3000):
        law.step([i * 1e-12, 0, 0, 0, 0, 0], (0, 0, 0), np.roll(goal.as_quat(), 1).tolist())
        if i == 100:
            left = rotation_vector(law.quaternion, np.roll(goal.as_quat(), 1).tolist())
            assert 0.02 < left[1] < 0.1 and abs(left[0]) + abs(left[2]) < 1e-6, "about the axis that it was turned about"
    assert np.linalg.norm(rotation_vector(law.quaternion, np.roll(goal.as_quat(), 1).tolist())) < 1e-4


@given(arrays(float, 3, elements=st.floats(-2, 2)), arrays(float, 3, elements=st.floats(-1.5, 1.5)))
@settings(max_examples=50, deadline=None)
def test_turns_agree_with_scipys(one: Array, two: Array) -> None:
    q = turned(turned((1, 0, 0, 0), one.tolist()), two.tolist())
    rotation = Rotation.from_rotvec(two) * Rotation.from_rotvec(one)
    assert abs(np.dot(np.roll(rotation.as_quat(), 1), q)) == pytest.approx(1, abs=1e-9)
    back = Rotation.from_rotvec(rotation_vector(q, turned((1, 0, 0, 0), one.tolist())))
    assert (back.inv() * Rotation.from_rotvec(two)).magnitude() < 1e-6


@given(arrays(float, 6, elements=st.floats(-1e6, 1e6)))
@settings(max_examples=50, deadline=None)
def test_no_wrench_moves_it_faster_than_it_may(wrench: Array) -> None:
    law = Law(critical(SPRING), LimitsConfig(speed=0.1, turn=0.5))
    for _ in range(50):
        law.step(wrench.tolist(), (0, 0, 0))
        assert np.linalg.norm(law.twist[:3]) <= 0.1 + 1e-12 and np.linalg.norm(law.twist[3:]) <= 0.5 + 1e-12
    # 40 N against 200 N/m
    assert np.linalg.norm(law.position) <= 0.2 + 1e-9


def test_small_wrenches_count_as_none() -> None:
    assert saturated((0.3, 0, 0), 10, dead=0.5) == [0, 0, 0] and saturated((1.5, 0, 0), 10, dead=0.5) == [1.0, 0, 0]
    assert saturated((0, 30, 40), 5) == pytest.approx([0, 3, 4])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_dead_sensor_makes_it_hold(bad: float) -> None:
    law = Law(critical(SPRING))
    law.step([5, 0, 0, 0, 0, 0], (0.02, 0, 0))
    place = list(law.position)
    assert law.twist[0] > 0
    law.step([bad, 0, 0, 0, 0, 0], (0.02, 0, 0))
    assert law.position == place and law.twist == [0] * 6 and law.held == 1
    law.step([5, 0, 0, 0, 0, 0], (0.02, 0, 0))
    assert law.position[0] > place[0], "it goes on when the sensor does"


def test_a_stuck_sensor_makes_it_hold() -> None:
    law = Law(critical(SPRING), LimitsConfig(stuck=5))
    for _ in range(12):
        law.step([5, 0, 0, 0, 0, 0], (0.02, 0, 0))
    assert law.held == 7


def test_gains_that_are_none_are_refused_in_one_line() -> None:
    with pytest.raises(RealrlError, match="damping must be 6 finite positive"):
        Gains(np.ones(6), np.full(6, np.nan), np.ones(6))


# ---- the residual


def pressed(seed: int = 0, k: float = 8000.0) -> Window:
    """A second on a surface at 0 along z: N and m."""
    rng, t = np.random.default_rng(seed), np.arange(125) * 0.008
    pose, wrench = rng.normal(0, 1e-5, (125, 6)), rng.normal(0, 0.2, (125, 6)) * ([1.0] * 3 + [0.01] * 3)
    pose[:, 2] = -5e-4 - 4e-4 * np.sin(40 * t) * np.exp(-3 * t)
    arm = lfilter([8 / 28], [1, -20 / 28], pose[:, 2], zi=[20 / 28 * pose[0, 2]])[0]  # 20 ms behind
    wrench[1:, 2] += -k * arm[:-1]  # and told 8 ms later
    wrench[0, 2] += -k * arm[0]
    goal = np.tile([0, 0, -0.02, 0, 0, 0], (125, 1))
    return Window(pose, np.gradient(pose, 0.008, axis=0), wrench, goal)


def test_how_stiff_a_surface_is_comes_from_the_window() -> None:
    k = touched(pressed(), TunerConfig())
    assert k[2] == pytest.approx(8000, rel=0.1) and (k[[0, 1, 3, 4, 5]] == 0).all()


def bouncing(aside: float = 0.0) -> Window:
    """A second of ten touches, 80 N each, out of step with the arm by a quarter of a turn; a share of the force aside."""
    rng, t = np.random.default_rng(0), np.arange(125) * 0.008
    pose, wrench = rng.normal(0, 1e-5, (125, 6)), rng.normal(0, 0.2, (125, 6)) * ([1.0] * 3 + [0.01] * 3)
    pose[:, 2] = 8e-4 * np.sin(2 * np.pi * 10 * t)
    wrench[:, 2] += 80 * np.maximum(0, np.sin(2 * np.pi * 10 * (t - 0.025 - 0.028)))
    pose[:, 0], wrench[:, 0] = 0.2 * pose[:, 2], wrench[:, 0] + aside * wrench[:, 2]
    return Window(pose, np.gradient(pose, 0.008, axis=0), wrench, np.tile([0, 0, -0.02, 0, 0, 0], (125, 1)))


def flying() -> Window:
    """A second in the air: noise, and a bias of a newton."""
    rng = np.random.default_rng(0)
    pose, wrench = np.zeros((125, 6)), rng.normal(0, 0.3, (125, 6)) * ([1.0] * 3 + [0.02] * 3)
    pose[:, 2], wrench[:, 2] = np.linspace(0.02, 0.0, 125), wrench[:, 2] + 1.0
    return Window(pose, np.gradient(pose, 0.008, axis=0), wrench, np.tile([0, 0, -0.02, 0, 0, 0], (125, 1)))


def test_an_arm_that_bounces_knows_that_it_is_hard_and_friction_is_no_wall() -> None:
    assert (touched(bouncing(), TunerConfig())[[0, 2]] > [-1, 2e4]).all()
    k = touched(bouncing(aside=0.5), TunerConfig())
    assert k[0] == 0 < k[2], "half of the force aside is friction"


def test_in_the_air_nothing_is_fitted_and_nothing_forgotten() -> None:
    base, air = critical(SPRING), flying()
    np.testing.assert_array_equal(fit(air, base.table(), base.table(), TunerConfig()), base.table())
    tuner = Tuner(TunerConfig(mode="rule"))

    def second(window: Window) -> None:
        for i in range(125):
            tuner.see(window.pose[i], window.twist[i], window.wrench[i], window.goal[i], base)

    second(bouncing())
    hard = tuner.gains(base).damping[2]
    assert hard > 10 * base.damping[2]
    for _ in range(5):
        second(air)
    assert tuner.gains(base).damping[2] == hard
    second(pressed(k=8000.0))
    second(pressed(k=8000.0))
    assert base.damping[2] < tuner.gains(base).damping[2] < hard / 2, "something softer was touched"


def test_what_is_expected_is_damped_for_and_given_up_where_something_softer_is_touched() -> None:
    base, soft = critical(SPRING), pressed(k=4000.0)
    tuner = Tuner(TunerConfig(expected=1e4))
    first = tuner.gains(base)
    assert first.damping[2] == pytest.approx(0.7 * 0.028 * 1e4) and first.damping[5] == base.damping[5]
    assert first.stiffness[2] == base.stiffness[2], "200 N/m are enough for that"
    for _ in range(2):
        for i in range(125):
            tuner.see(soft.pose[i], soft.twist[i], soft.wrench[i], soft.goal[i], base)
    later = tuner.gains(base).damping
    assert later[2] < first.damping[2] / 1.5 and later[0] == pytest.approx(first.damping[0]), "nothing was touched along x"


def going_along(after: int = 0) -> Window:
    """A second of pushing something along x, with 5 N, that gives way by 20 mm a second; after: the sample from which on it is touched."""
    rng, t = np.random.default_rng(0), np.arange(125) * 0.008
    pose, wrench = rng.normal(0, 1e-5, (125, 6)), rng.normal(0, 0.2, (125, 6)) * ([1.0] * 3 + [0.01] * 3)
    pose[after:, 0] += 0.02 * (t[after:] - t[after])
    wrench[after:, 0] -= 5 + 0.5 * t[after:]
    goal = pose + np.eye(6)[0] * 0.02
    return Window(pose, np.gradient(pose, 0.008, axis=0), wrench, goal)


@pytest.mark.parametrize("lasting", [False, True])
def test_what_goes_along_is_no_softer_for_that(lasting: bool) -> None:
    assert not begun(going_along()).any() and begun(going_along(40)).tolist() == [True] + [False] * 5
    assert begun(bouncing()).tolist()[2] and not begun(flying()).any()
    base, tuner = critical(SPRING), Tuner(TunerConfig(lasting=lasting, expected=1e4))
    expected = tuner.gains(base).damping[0]

    def second(window: Window) -> float:
        for i in range(125):
            tuner.see(window.pose[i], window.twist[i], window.wrench[i], window.goal[i], base)
        return float(tuner.gains(base).damping[0])

    assert 0 < touched(going_along(), TunerConfig())[0] < 100, "by force over way it is as soft as the spring"
    for _ in range(3):
        pushed = second(going_along())
    assert pushed == pytest.approx(expected) if lasting else pushed < expected / 2
    assert second(going_along(40)) < 0.7 * expected, "a touch that begins says how hard it is"


def test_the_fit_without_bounds_always_wants_a_stiffer_spring_and_the_bounds_forbid_it() -> None:
    base = critical(SPRING).table()
    free = fit(pressed(), base, base, TunerConfig(mode="free", prior=0.001))
    held = fit(pressed(), base, base, TunerConfig())
    assert free[2, 2] > 2 * base[2, 2] and free[2, 2] * 0.02 > 10
    assert held[2, 2] * 0.0209 <= 10.0 + 1e-6
    assert held[2, 1] >= 0.7 * 0.028 * 8000 * 0.9, "stability wins over how much a fit may change"
    np.testing.assert_array_equal(held[[0, 1, 3, 4, 5]], base[[0, 1, 3, 4, 5]])  # nothing was felt there
    rule = fit(pressed(), base, base, TunerConfig(mode="rule"))
    assert rule[2, 1] == pytest.approx(held[2, 1], rel=0.3)
    np.testing.assert_array_equal(rule[:, [0, 2]], base[:, [0, 2]])


def test_a_fit_knows_its_slopes() -> None:
    """Against differences: the replay's with every log-gain."""
    rng, gains, start, dt = np.random.default_rng(3), np.array([1.3, 40.0, 220.0]), np.array([0.004, -0.02]), 0.008
    force, goal = rng.normal(0, 3, 60), np.full(60, 0.01)
    path = replay(gains, start, force, goal, dt)
    found = slopes(gains, np.diff(path, prepend=(start[0] - dt * start[1], start[0])), path - goal, dt)
    for i in range(3):
        up, down = (replay(gains * np.exp(sign * 1e-5 * np.eye(3)[i]), start, force, goal, dt) for sign in (1, -1))
        np.testing.assert_allclose(found[i], (up - down) / 2e-5, atol=1e-7 * float(np.abs(found[i]).max()))


hostile = arrays(float, (20, 4, 6), elements=st.one_of(st.floats(-1e3, 1e3), st.floats(allow_nan=True, allow_infinity=True)))


@given(hostile, st.floats(20, 200), st.booleans())
@settings(max_examples=30, deadline=None)
def test_no_window_brings_a_gain_out_of_its_bounds(rows: Array, stiffness: float, lasting: bool) -> None:
    cfg = TunerConfig(every=0.08, window=0.16, lasting=lasting)
    tuner, base = Tuner(cfg), critical(SPRING * stiffness / 200)
    for row in rows:
        now = tuner.gains(base).table()
        if tuner.see(*row, base):
            tuned = tuner.gains(base).table()
            assert (tuned >= LEAST * (1 - 1e-9)).all() and (tuned <= MOST * (1 + 1e-9)).all()
            window = Window(*np.stack(list(tuner._rows)).transpose(1, 0, 2))
            low, _ = bounds(window, base.table(), now, cfg)
            stable = np.minimum(stable_damping(window, cfg), MOST[:, 1])
            assert (tuned[:, 1] >= stable * (1 - 1e-9)).all() and (low[:, 1] >= stable * (1 - 1e-9)).all()
    assert tuner.fits + tuner.failed == 2


def test_a_failed_solve_leaves_the_last_good_gains() -> None:
    tuner, base, good = Tuner(), critical(SPRING), pressed()
    def second(spoil: float) -> None:
        for i in range(63):
            tuner.see(good.pose[i], good.twist[i], good.wrench[i] + spoil, good.goal[i], base)
    second(0.0)
    kept = tuner.gains(base).table()
    assert tuner.fits == 1 and kept[2, 1] > 3 * base.damping[2]
    second(np.nan)
    assert (tuner.fits, tuner.failed) == (1, 1)
    np.testing.assert_array_equal(tuner.gains(base).table(), kept)
    tuner.begin()
    np.testing.assert_array_equal(tuner.gains(base).table(), base.table())


def test_beside_the_law_a_late_solve_is_counted_and_nothing_waits() -> None:
    tuner, base, good = Tuner(TunerConfig(every=0.016), beside=True), critical(SPRING), pressed()
    for i in range(4000):
        tuner.see(good.pose[i % 125], good.twist[i % 125], good.wrench[i % 125], good.goal[i % 125], base)
    tuner.close()
    assert tuner.late > 0 and tuner.fits + tuner.late + tuner.failed >= 1990, "each that was due was begun or counted"
