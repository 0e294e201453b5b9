"""The simulated robots: their tables are kept, their worlds are those of the lock-step tasks, and they are served as hardware is."""

from __future__ import annotations

import argparse
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_motion import orders, stays_inside

from realrl import envs
from realrl.cell.rollout import rollout
from realrl.cli.robot import _robot, _settings
from realrl.envs.base import ScriptedPolicy
from realrl.envs.contact import LEVELS, Careful
from realrl.robots.bodies import body, tasks
from realrl.robots.client import RobotClient
from realrl.robots.guard import box_guard
from realrl.robots.log import read_ticks
from realrl.robots.motion import MotionGuard
from realrl.robots.server import RobotServer
from realrl.robots.settings import ServerConfig
from realrl.robots.sim import SimRobot, simulated
from realrl.types import RealrlError


@pytest.mark.parametrize("task", ["arm/ur5e-pick", "contact/peg", "quadruped/go1"])
def test_no_sequence_of_orders_gets_beyond_the_limits_of_its_table(task):
    made = body(task)
    n = len(made.channels)

    @settings(max_examples=8, deadline=None)
    @given(orders(n), st.integers(0, 2**32), st.lists(st.floats(0, 1), min_size=n, max_size=n))
    def kept(asked, seed, at):
        stays_inside(MotionGuard(made.channels, 1 / made.served.get("ticks", 100.0)), np.array(at), asked, seed)

    kept()


def test_every_table_holds_where_its_robot_begins_and_parks_and_names_what_is_seen():
    for task in ("arm/panda-reach", "arm/ur5e-pick", "contact/peg-hard", "quadruped/go2", "quadruped/go1-command", "quadruped/go1-paper"):
        made = body(task)
        measured, state, _ = made.sense(0.0)
        for what in ("start", "park"):
            assert all(c.low <= x <= c.high for c, x in zip(made.channels, made.served[what], strict=True)), task
        assert measured.shape == (len(made.channels),) and state.shape == (len(made.state),) == (len(set(made.state)),), task


def test_what_gets_up_by_a_script_is_not_served():
    assert not any("from-back" in task or "fallen" in task for task in tasks()) and "quadruped/go1-filter" not in tasks()
    with pytest.raises(RealrlError, match="did you mean 'arm/ur5e-pick'"):
        body("arm/ur5-pick")


def test_legs_moved_by_a_clock_go_as_in_lock_step():
    """The same targets, held as long, make the same observations, rewards and fall."""
    env, made, rng = envs.make("quadruped/go1"), body("quadruped/go1"), np.random.default_rng(0)
    obs, _ = env.reset(seed=4)
    made.begin(4)
    made.drive(env.pose)
    assert made.sense(0.0)[1] == pytest.approx(obs["state"], abs=1e-6)
    for _ in range(40):
        action = rng.uniform(-1, 1, 12)
        obs, reward, fell, _, _ = env.step(action)
        made.drive(env.pose + env.box * action)
        for _ in range(25):
            made.step(False, 0.0)
        assert made.sense(0.0)[1] == pytest.approx(obs["state"], abs=1e-4)
        assert made.outcome() == (pytest.approx(reward, abs=1e-4), fell, False)
        if fell:
            break


@pytest.mark.parametrize("task", ["arm/ur5e-pick", "contact/peg", "quadruped/go1"])
def test_what_breaks_in_it_is_felt(task):
    made = body(task)
    there = np.array(made.served["start"])
    made.drive(there)
    for _ in range(50):
        made.step(False, 0.0)
    before, seen, force = made.sense(0.0)
    made.drive(there - 0.02)
    for _ in range(50):  # its drives do not push
        made.step(True, 0.0)
    assert np.abs(made.sense(0.0)[0] - before)[:3].max() < 0.01
    for _ in range(50):
        made.step(False, 0.0)
    assert np.abs(made.sense(0.0)[0] - before)[:3].max() > 0.01
    for _ in range(100):
        made.step(False, 30.0)
        pushed = made.sense(0.0)[2]
    assert (force is None and task.startswith("quadruped")) or pushed[2] > 15
    assert np.abs(made.sense(0.5)[1] - seen).max() > 0.1
    made.lose()
    made.step(False, 0.0)
    assert not made.outcome()[2]


def test_a_configuration_beside_the_simulated_robot_changes_how_it_is_served(tmp_path):
    (tmp_path / "brisk.yaml").write_text("watchdog: 20\npace: 1.0\n")
    args = argparse.Namespace(config=tmp_path / "brisk.yaml", sim="arm/panda-reach", host=None, port=0, log=None, cameras=(), fault=[],
                              latency_ms=100.0, jitter_ms=0.0, loss=0.0)
    driver, cfg = _robot(args, _settings(args))
    driver.close()
    assert (cfg.watchdog, cfg.pace, cfg.name, cfg.horizon, cfg.port) == (20.0, 1.0, "panda-reach", 80, 0) and driver.twin == args.sim
    with pytest.raises(RealrlError, match="or --sim TASK"):
        _settings(argparse.Namespace(config=None, sim=None))


def test_a_robot_that_was_put_together_wrongly_follows_all_the_same(tmp_path):
    """Its server sees nothing of it: what goes there and what is read of it agree."""
    args = argparse.Namespace(config=None, sim="arm/panda-reach", host=None, port=0, log=None, cameras=(), fault=["sign=2"],
                              latency_ms=0.0, jitter_ms=0.0, loss=0.0)
    driver, _ = _robot(args, _settings(args))
    there = driver.read().measured
    there[1] = 0.02
    driver.write(there)
    until = time.monotonic() + 10
    while abs(driver.read().measured[1] - 0.02) > 2e-3 and time.monotonic() < until:
        time.sleep(0.01)
    told = driver.read()
    assert abs(told.measured[1] - 0.02) < 2e-3 and abs(told.state[1] + 0.02) < 2e-3, "y is between limits of equal size"
    driver.inject("none")
    right = driver.read().state
    driver.inject("order", 1)
    assert np.allclose(driver.read().state[:3], right[[1, 0, 2]], atol=1e-3)
    driver.inject("order", 0)
    driver.inject("units", 3)
    assert np.allclose(driver.read().state[:3], right[:3] * [1, 1, 1000], rtol=0.01, atol=1e-3)
    driver.close()
    for wrong, words in (("sign=9", "one of 1, 2, 3"), ("sign=two", "two is no number"), ("sgn=1", "known are none")):
        args.fault = [wrong]
        with pytest.raises(RealrlError, match=words):
            _robot(args, _settings(args))


def served(task, tmp_path, policy, seeds, **cfg):
    """Episodes on a served robot; it is parked at the end."""
    driver, given_cfg = simulated(task, ServerConfig(port=0, log=tmp_path, watchdog=20.0, stale=3.0, **cfg))
    server = RobotServer(driver, given_cfg, arm=True, say=lambda line: None)
    server.start()
    try:
        env = RobotClient(server.url)
        found = list(rollout([env], policy(driver), [box_guard(env)], seeds, greedy=True))
        env.close()
    finally:
        server.close()
    assert server.keeper.mode == "parked"
    return found


def test_a_simulated_arm_keeps_its_hand_in_a_workspace(tmp_path):
    driver, cfg = simulated("arm/panda-reach", ServerConfig(port=0, log=tmp_path, watchdog=20.0, stale=3.0,
                                                            workspace=(0.3, -0.2, 0.0, 0.5, 0.2, 0.4)))
    server = RobotServer(driver, cfg, arm=True, say=lambda line: None)
    server.start()
    try:
        env = RobotClient(server.url, horizon=1000)
        env.reset(seed=0)
        for _ in range(30):
            env.step(np.array([1.0, 0.0, 0.0, 0.0]))
        assert env.measured[0] == pytest.approx(0.5, abs=0.01)
        env.close()
    finally:
        server.close()
    assert max(t.command[0] for t in read_ticks(next(tmp_path.iterdir()))) <= 0.5


@pytest.mark.parametrize("task", ["arm/panda-reach", "arm/ur5e-reach"])
def test_a_simulated_arm_is_served_and_solves_its_task(task, tmp_path):
    """The whole of it, once: physics in real time, a script that moves it, success, parking."""
    (episode,) = served(task, tmp_path, lambda driver: envs.expert(task), [0])
    assert episode.succeeded and episode.obs["state"].shape[1] == 14


def test_a_peg_is_pressed_home_on_a_served_robot(tmp_path):
    """The careful demonstrator, who knows where the slot is; it is solved twice, so the hand came out again by itself."""
    def careful(driver):
        control = Careful(LEVELS["peg-easy"].reach)
        return ScriptedPolicy("careful", lambda state: control(driver.body._env.look()[None]))

    episodes = served("contact/peg-easy", tmp_path, careful, [0, 1], ticks=200.0)
    assert all(e.succeeded and e.terminated and e.obs["state"].shape[1] == 27 for e in episodes)


def test_a_quadruped_stands_is_paid_for_it_and_is_lifted_after_a_fall(tmp_path):
    def thrown(driver):
        steps = iter(range(1000))

        def control(state):
            if next(steps) == 5:
                driver.inject("lost")
            return np.zeros((1, 12))
        return ScriptedPolicy("stand", control)

    fallen, stood = served("quadruped/go1", tmp_path, thrown, [0, 1], horizon=25)
    assert fallen.terminated and not fallen.succeeded and 5 < len(fallen) < 12 and fallen.reward[1] > 3
    assert stood.truncated and len(stood) == 25 and stood.reward[-1] > 3


def test_what_a_busy_machine_let_it_wait_is_made_up_for(monkeypatch):
    """A world that skips what it was late for goes slower than the clock of whoever commands it."""
    robot = SimRobot("contact/peg-easy")
    robot.close()
    robot._over.clear()

    class Late:
        skipped = waits = 0

        def __init__(self, period):
            self.period = period

        def wait(self):
            self.waits, self.skipped = self.waits + 1, self.skipped + (3, 10**6)[self.waits]
            if self.waits == 2:
                robot._over.set()
            return 0.0

    monkeypatch.setattr("realrl.robots.sim.Ticker", Late)
    began, step = robot.body.data.time, robot.body.model.opt.timestep
    living = threading.Thread(target=robot._live)
    living.start()
    living.join()
    assert robot.body.data.time - began == pytest.approx(5 * step)
