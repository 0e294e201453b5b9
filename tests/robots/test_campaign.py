"""The judge of faults: what it calls unsafe is, and a few real faults go through it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from realrl.robots.campaign import Trial, campaign, table, unsafe
from realrl.robots.driver import Channel
from realrl.robots.faults import Rig
from realrl.robots.log import Tick

LIMITS = (Channel("x", "m", "pose", 0.0, 1.0, 0.5, 5.0, 200.0),)


def ticks(places: np.ndarray, dt: float = 0.01) -> list[Tick]:
    return [Tick(i * dt, 0.0, "armed", [], [], [float(x)], [0, 0], i) for i, x in enumerate(places)]


def test_a_command_beyond_a_limit_is_counted() -> None:
    t = np.arange(200) * 0.01
    calm = 0.5 + 0.1 * np.sin(t)
    assert unsafe(ticks(calm), LIMITS) == 0
    assert unsafe(ticks(calm + 0.6), LIMITS) > 0  # place
    assert unsafe(ticks(0.2 + 0.51 * t[:100]), LIMITS) > 0  # speed
    assert unsafe(ticks(0.5 + 0.02 * np.sin(20 * t)), LIMITS) > 0  # acceleration
    jumped = calm.copy()
    jumped[100:] += 2e-4
    assert unsafe(ticks(jumped), LIMITS) > 0  # jerk


def test_the_table_counts() -> None:
    rows = table([Trial(1, "a", 0.1, True, False, 0), Trial(1, "a", 0.3, False, True, 2), Trial(2, "b", None, True, False, 0)])
    assert rows[0] == {"number": 1, "fault": "a", "times": 2, "median_ms": 200.0, "most_ms": 300.0, "right": 1, "unsafe": 2, "lost": 1}
    assert rows[1]["median_ms"] is None


@pytest.mark.slow
def test_some_faults_on_a_simulated_robot_in_a_process_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("websockets")
    rig = Rig("arm/panda-reach", tmp_path)
    try:
        trials = list(campaign(rig, 1, only=(3, 11, 13, 17)))
    finally:
        rig.close()
    assert len(trials) == 4 and all(t.reacted and not t.unsafe and not t.lost for t in trials), trials
