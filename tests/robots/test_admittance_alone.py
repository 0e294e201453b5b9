"""The compliance controller used alone, as on an arm of one's own: what it makes of bad input, other loops, masses and tools, and of
solvers that fail."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.admittance import least_damping
from realrl.config import OutOfBounds
from realrl.robots import admittance
from realrl.robots.admittance import Gains, Law, LimitsConfig, Tuner, TunerConfig, critical
from realrl.types import Array, RealrlError

SPRING = [200.0] * 3 + [10.0] * 3
DOWN = (0.0, 1.0, 0.0, 0.0)
"""Of a tool that looks down, w first, as a Panda's flange does."""


def noisy(rng: np.random.Generator, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> list[float]:
    """A wrench [6] as a sensor tells it."""
    return list((np.array([x, y, z, 0, 0, 0]) + rng.normal(0, 0.2, 6) * ([1.0] * 3 + [0.01] * 3)).tolist())


# ---- the law


def test_a_set_point_without_an_orientation_keeps_the_one_of_the_beginning() -> None:
    law, rng = Law(critical(SPRING)), np.random.default_rng(0)
    law.begin((0.4, 0.0, 0.3), DOWN)
    for _ in range(500):
        law.step(noisy(rng), (0.4, 0.0, 0.3))
    assert abs(np.dot(law.quaternion, DOWN)) > math.cos(0.02), "a tool that looks down does not turn over"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_set_point_that_is_none_makes_it_hold_and_it_goes_on_after(bad: float) -> None:
    law, rng = Law(critical(SPRING)), np.random.default_rng(0)
    law.begin((0.4, 0.0, 0.3))
    place, _ = law.step(noisy(rng), (bad, 0.0, 0.3))
    place, _ = law.step(noisy(rng), (0.4, 0.0, 0.3), (1.0, bad, 0.0, 0.0))
    assert place == [0.4, 0.0, 0.3] and law.held == 2
    law.step(noisy(rng), (0.5, 0.0, 0.3))
    assert law.twist[0] > 0 and law.held == 2


@pytest.mark.parametrize(("place", "facing"), [((math.nan, 0, 0), DOWN), ((0, 0), DOWN), ((0, 0, 0), (0, 0, 0, 0)), ((0, 0, 0), (0, 0, 0))])
def test_a_beginning_that_is_no_pose_is_refused(place: Any, facing: Any) -> None:
    with pytest.raises(RealrlError, match="begin needs a position"):
        Law(critical(SPRING)).begin(place, facing)


def test_steps_and_springs_that_are_none_are_refused() -> None:
    for dt in (0.0, -0.001, math.nan, 1000.0):
        with pytest.raises(RealrlError, match="dt must be the seconds of a step"):
            Law(critical(SPRING), dt=dt)
    with pytest.raises(RealrlError, match="stiffness must be 6 finite"):
        critical([200.0, 200.0, 200.0])
    with pytest.raises(RealrlError, match="stiffness must be 6 finite"):
        critical([-1.0] * 6)
    with pytest.raises(RealrlError, match="mass must be 6 finite"):
        critical(SPRING, [0.0] * 6)


# ---- the residual


@pytest.mark.parametrize("wrong", [{"every": 0.01, "dt": 0.5}, {"window": 0.05, "dt": 0.1}, {"window": 0.1, "delay": 0.2}])
def test_a_window_that_holds_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(OutOfBounds):
        TunerConfig(**wrong)


@pytest.mark.parametrize("loop", [(0.002, 0.005), (0.004, 0.010), (0.008, 0.020), (0.020, 0.0), (0.0, 0.030)])
def test_what_is_needed_is_stable_in_every_loop_for_every_mass_and_contact(loop: tuple[float, float]) -> None:
    delay, lag = loop
    cfg = TunerConfig(delay=delay, lag=lag)
    for mass in (0.3, 1.0, 3.0, 10.0):
        for k in (500.0, 3e3, 1e4, 5e4):
            assert admittance.needed(k, mass, cfg) >= least_damping(mass, k, (0.001, delay, lag)) * 1.05
            if cfg.margin * admittance.least_stable(k, mass, delay, lag) < cfg.share * (delay + lag) * k:
                assert admittance.needed(k, mass, cfg) == pytest.approx(cfg.share * (delay + lag) * k)
    assert admittance.needed(0.0, 1.0, cfg) == admittance.needed(1e4, 1.0, TunerConfig(delay=0.0, lag=0.0)) == 0.0


def pressed(loop: tuple[float, float], touched: float, mass: float) -> tuple[Array, Law, Tuner]:
    """(force [8000], N, law, tuner) of eight seconds of pressing on a linear contact, N/m, from 5 mm above it."""
    delay, lag = loop
    rng, base = np.random.default_rng(0), critical(SPRING, [mass] * 3 + [mass / 10] * 3)
    law, tuner = Law(base), Tuner(TunerConfig(delay=delay, lag=lag))
    law.begin((0.0, 0.0, 0.005), DOWN)
    late = deque([0.0], maxlen=1 + round(delay * 1000))
    arm, speed, told, goal = 0.005, 0.0, [], (0.0, 0.0, -0.02)
    for i in range(8000):
        wrench = noisy(rng, 0, 0, late[0])
        law.step(wrench, goal)
        if i % 8 == 0 and tuner.see(law.pose, law.twist, wrench, law.seen(goal), base):
            law.gains = tuner.gains(base)
        speed += (law.twist[2] - speed) * 0.001 / (lag + 0.001)
        arm += 0.001 * speed
        told.append(max(0.0, -touched * arm))
        late.append(told[-1])
    return np.array(told), law, tuner


@pytest.mark.parametrize(("loop", "touched", "mass"), [((0.002, 0.005), 1e4, 1.0), ((0.002, 0.005), 1e4, 3.0),
                                                       ((0.004, 0.010), 1e4, 3.0), ((0.008, 0.020), 3e3, 3.0)])
def test_it_comes_to_rest_on_what_bounces(loop: tuple[float, float], touched: float, mass: float) -> None:
    """Loops and masses other than those of the simulated arms, where (delay + lag) k is needed and not seven tenths of it."""
    force, law, tuner = pressed(loop, touched, mass)
    assert force[:2000].std() > 2 and force[-2000:].std() < 1 and force[-2000:].mean() > 4
    assert tuner.failed == 0 and law.gains.damping[2] > least_damping(mass, touched, (0.001, *loop))


def second(tuner: Tuner, law: Law, base: Gains, push: Callable[[int], list[float]], goal: tuple[float, ...],
           facing: tuple[float, ...] | None = None) -> bool:
    """A second of the loop; whether gains changed."""
    changed = False
    for i in range(1000):
        wrench = push(i)
        law.step(wrench, goal, facing)
        if i % 8 == 0 and tuner.see(law.pose, law.twist, wrench, law.seen(goal, facing), base):
            law.gains, changed = tuner.gains(base), True
    return changed


def test_a_tool_that_looks_down_is_no_softer_for_that() -> None:
    """Its rotation vector from the world's axes jumps between pi and -pi; its turn since the beginning does not."""
    rng, base = np.random.default_rng(0), critical(SPRING)
    law, tuner = Law(base), Tuner()
    law.begin((0.0, 0.0, 0.0), DOWN)
    second(tuner, law, base, lambda i: [*noisy(rng)[:3], *(0.3 * np.sin(0.02 * i + np.arange(3)) + rng.normal(0, 0.01, 3)).tolist()],
           (0.0, 0.0, 0.0), DOWN)
    assert tuner.fits == 2 and np.abs(law.pose[3:]).max() < 0.2
    assert tuner.gains(base).stiffness[3:].min() > 4, "no spring that pulls over a whole turn"


def test_gains_of_the_policy_beyond_the_bounds_are_not_taken_from_it() -> None:
    """More damping than any fit would find, say, is what an arm on a hard surface was given by hand."""
    rng, base = np.random.default_rng(0), Gains(np.full(6, 20.0), np.full(6, 1000.0), np.array([3000.0] * 3 + [200.0] * 3))
    law, tuner = Law(base), Tuner()
    second(tuner, law, base, lambda i: noisy(rng, 0, 0, 5 + 0.5 * math.sin(0.01 * i)), (0.0, 0.0, -0.001))
    found = tuner.gains(base)
    assert tuner.fits == 2 and (found.damping >= 450).all() and (found.mass > 10).all() and found.stiffness[0] > 2000
    stiff = TunerConfig(damping=900.0)
    assert admittance.bounds(window_of(tuner), critical(SPRING).table(), critical(SPRING).table(), stiff)[1].max(0)[1] <= 900


def window_of(tuner: Tuner) -> admittance.Window:
    return admittance.Window(*np.stack(list(tuner._rows)).transpose(1, 0, 2))


def test_an_axis_without_a_spring_stays_without() -> None:
    """Led by hand, say: a spring that a fit invents would pull to a set point that nobody keeps."""
    rng, base = np.random.default_rng(0), Gains(np.array([1.0] * 3 + [0.1] * 3), np.full(6, 40.0), np.array([0.0, 0, 200, 0, 0, 0]))
    law, tuner = Law(base), Tuner(TunerConfig(expected=1e4))
    law.gains = tuner.gains(base)
    assert law.gains.stiffness[0] == 0
    second(tuner, law, base, lambda i: noisy(rng, 6 + 3 * math.sin(0.02 * i), 0, 4), (0.3, 0.0, -0.02))
    assert tuner.fits == 2 and tuner.failed == 0
    assert tuner.gains(base).stiffness.tolist()[:2] == [0, 0] and tuner.gains(base).stiffness[2] > 0


def test_a_set_point_that_jumps_pulls_no_harder_than_it_may() -> None:
    rng, base = np.random.default_rng(0), critical(SPRING)
    law, tuner = Law(base, LimitsConfig(speed=0.02)), Tuner()
    second(tuner, law, base, lambda i: noisy(rng, 0, 0, 4), (0.0, 0.0, -0.02))
    second(tuner, law, base, lambda i: noisy(rng, 0, 0, 4), (0.0, 0.0, -0.02))
    wrench = noisy(rng)
    assert tuner.see(law.pose, law.twist, wrench, law.seen((0.0, 0.0, -0.2)), base), "at once, not with the next fit"
    assert tuner.gains(base).stiffness[2] * (0.2 + law.position[2]) <= 10.1


@pytest.mark.parametrize("error", [ValueError("array must not contain infs"), MemoryError(), np.linalg.LinAlgError("singular")])
@pytest.mark.parametrize("beside", [False, True])
def test_whatever_a_solver_raises_the_last_good_gains_stay(monkeypatch: pytest.MonkeyPatch, error: Exception, beside: bool) -> None:
    rng, base = np.random.default_rng(0), critical(SPRING)
    law, tuner = Law(base), Tuner(TunerConfig(expected=1e4), beside=beside)

    def fails(*args: Any) -> Array:
        raise error

    monkeypatch.setattr(admittance, "fit", fails)
    before = tuner.gains(base).table()
    second(tuner, law, base, lambda i: noisy(rng, 0, 0, 4), (0.0, 0.0, -0.02))
    if isinstance(tuner._running, Future):
        tuner._running.exception()
        second(tuner, law, base, lambda i: noisy(rng, 0, 0, 4), (0.0, 0.0, -0.02))
    assert tuner.failed >= 1 and tuner.fits == 0 and type(error).__name__ in tuner.trouble
    np.testing.assert_array_equal(tuner.gains(base).table(), before)
    tuner.close()


def test_the_ten_lines_of_its_page_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pressed onto a surface of 5 kN/m for two seconds by a tool that looks down, with the residual fitted beside."""
    page = Path(__file__).resolve().parents[2] / "docs" / "methods" / "admittance.md"
    lines = page.read_text(encoding="utf-8").partition("## A compliant arm in ten lines")[2].split("```")[1]
    assert len(lines.strip().splitlines()) == 10
    rng, at = np.random.default_rng(0), [[0.0, 0.0, 0.001]]

    def move(position: list[float], quaternion: list[float]) -> None:
        at.append(list(position))
        if len(at) > 2000:
            raise StopIteration

    here: dict[str, Any] = {"position": at[0], "quaternion": DOWN, "goal": (0.0, 0.0, -0.02), "move": move,
                            "read": lambda: noisy(rng, z=max(0.0, -5000 * at[-1][2]))}
    with pytest.raises(StopIteration):
        exec(compile(lines, str(page), "exec"), here)
    tuner, law = here["tuner"], here["law"]
    tuner.close()
    assert tuner.fits >= 1 and tuner.failed == 0 and law.held == 0
    assert 2 < -5000 * at[-1][2] < 20 and law.gains.damping[2] > 50
