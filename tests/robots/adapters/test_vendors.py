"""Drivers of vendors' arms under a keeper that ticks in real time, each against the other side as it behaves (`vendors.py`)."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from vendors import FrankaServer, Franky, Live, Mode, Rtde

from realrl.robots.adapters.franka_http import FrankaHttp
from realrl.robots.adapters.franky import FrankyArm
from realrl.robots.adapters.ur_rtde import UrArm
from realrl.robots.driver import Held, checked
from realrl.types import RealrlError


@pytest.fixture
def closing():
    """Closes what a test opens."""
    opened = []
    yield lambda thing: opened.append(thing) or thing
    for thing in reversed(opened):
        thing.close()


@pytest.fixture
def franky(monkeypatch):
    module = Franky()
    monkeypatch.setitem(sys.modules, "franky", module)
    return module


@pytest.fixture
def ur(monkeypatch):
    arm = Rtde()
    monkeypatch.setitem(sys.modules, "rtde_control", arm)
    monkeypatch.setitem(sys.modules, "rtde_receive", arm)
    return arm


# ---- HIL-SERL's server


def test_the_hand_goes_where_it_is_sent_and_turns_from_pointing_down(closing):
    server = closing(FrankaServer())
    driver = closing(checked(FrankaHttp(server.url, rate=100), "franka"))
    live = Live(driver).armed()
    assert live.at == pytest.approx([0.5, 0, 0.3, 0, 0, 0, 1], abs=1e-3)  # -q is the same turn as q
    for _ in range(8):
        live.act([0.01, 0, 0, 0.0, 0.0, 0.05, 0])
    assert live.until(lambda: live.keeper.guard.still and live.at[0] > 0.51 and live.at[5] > 0.05)
    live.run(0.1)
    goal = Rotation.from_quat(server.pose.goal[3:]) * Rotation.from_quat([1, 0, 0, 0]).inv()
    assert goal.as_rotvec() == pytest.approx([0, 0, live.at[5]], abs=1e-3)
    assert live.at[:3] == pytest.approx([server.pose.goal[0], 0, 0.3], abs=1e-3)
    assert driver.read().force == pytest.approx([1, 2, 3]) and driver.read().state.shape == (len(driver.state),)


def test_the_gripper_is_told_once_and_only_who_arms_clears_a_reflex(closing):
    server = closing(FrankaServer())
    live = Live(closing(FrankaHttp(server.url, rate=100)), stall=(0.015,) * 3 + (0.08,) * 3 + (5.0,)).armed()
    for _ in range(6):
        live.act([0, 0, 0, 0, 0, 0, -1])
    assert server.said.count("/close_gripper") == 1 and "/open_gripper" not in server.said
    assert server.said.count("/clearerr") == 1
    server.reflex = True
    with pytest.raises(Held):
        for _ in range(40):
            live.act([0.01, 0, 0, 0, 0, 0, -1])
    assert "stall" in live.keeper.faults and server.reflex
    live.run(1.0)
    _armed_by_a_person(live)
    assert live.until(lambda: not server.reflex) and live.keeper.mode == "armed"


def test_a_reflex_that_is_cleared_moves_nothing_and_the_end_of_the_server_clears_none(closing):
    """The spring of its controller is still drawn to where the arm was told to be before; and a half open gripper stays half open."""
    server = closing(FrankaServer())
    server.gripper = 0.3
    driver = closing(FrankaHttp(server.url, rate=100))
    live = Live(driver, stall=(0.015,) * 3 + (0.08,) * 3 + (5.0,)).armed()
    assert not {"/close_gripper", "/open_gripper"} & set(server.said)
    server.reflex = True
    with pytest.raises(Held):
        for _ in range(40):
            live.act([0.01, 0, 0, 0, 0, 0, 0])
    driver.hold()
    driver.order(lambda: None, wait=True)
    assert server.reflex, "who ends a server has looked at nothing"
    server.pose.place = server.pose.goal = server.pose.now() + np.array([-0.03, 0, 0, 0, 0, 0, 0])  # led by hand
    before = server.pose.now()[:3].copy()
    live.run(1.0)
    _armed_by_a_person(live)
    live.run(0.3)
    assert not server.reflex and server.pose.now()[:3] == pytest.approx(before, abs=2e-3)


def test_a_server_that_is_gone_is_no_reading_and_is_found_again(closing):
    with pytest.raises(RealrlError, match=r"franka_server\.py"):
        FrankaHttp("http://127.0.0.1:9")
    server = closing(FrankaServer())
    live = Live(closing(FrankaHttp(server.url, rate=100))).armed()
    answer = server.answer
    server.answer = lambda path, given: (500, "<html>Internal Server Error</html>")
    assert live.until(lambda: "readings" in live.keeper.faults)
    server.answer = answer
    assert live.until(lambda: not live.keeper.watch.blind) and live.keeper.mode == "held"


# ---- franky


def test_a_franka_follows_and_a_reflex_is_cleared_by_who_arms(franky, closing):
    driver = closing(FrankyArm("172.16.0.2"))
    live = Live(checked(driver, "fr3")).armed()
    begin = live.at.copy()
    for _ in range(6):
        live.act([0.05] + [0.0] * 6)
    assert live.until(lambda: abs(live.at[0] - begin[0] - 0.3) < 1e-3) and live.at[1:] == pytest.approx(begin[1:], abs=1e-6)
    franky.robot.mode = Mode.Reflex
    assert live.until(lambda: "reflex" in live.keeper.faults) and "recovered" not in franky.robot.calls
    live.run(0.2)
    assert live.keeper.mode == "held"
    _armed_by_a_person(live)
    assert franky.robot.calls == ["recovered"] and live.keeper.mode == "armed"
    franky.robot.mode = Mode.UserStopped
    assert live.until(lambda: "estop" in live.keeper.faults)
    with pytest.raises(Held, match="estop"):
        _armed_by_a_person(live)
    driver.release()
    driver.close()
    assert franky.robot.calls[-1] == "stopped"


def _armed_by_a_person(live: Live) -> None:
    """While the control loop goes on, as it does in a server."""
    import threading
    raised = []

    def arm():
        try:
            live.keeper.arm()
        except Held as error:
            raised.append(error)

    thread = threading.Thread(target=arm)
    thread.start()
    live.until(lambda: not thread.is_alive())
    if raised:
        raise raised[0]


def test_a_franka_that_is_not_there_or_has_no_library(franky, monkeypatch):
    with pytest.raises(RealrlError, match="FCI"):
        FrankyArm("10.0.0.1")
    monkeypatch.setitem(sys.modules, "franky", None)
    with pytest.raises(RealrlError, match="pip install franky-control"):
        FrankyArm("172.16.0.2")


# ---- ur_rtde


def test_a_ur_follows_and_its_watchdog_is_kicked_while_nothing_is_sent(ur, closing):
    driver = closing(UrArm("192.168.1.2"))
    live = Live(checked(driver, "ur5e")).run(0.4)
    assert ur.program, "reading kicks it"
    live.armed()
    for _ in range(6):
        live.act([0.0, 0.05] + [0.0] * 4)
    assert live.until(lambda: abs(live.at[1] + 1.57 - 0.3) < 1e-3)
    live.keeper.park("somebody")
    assert live.until(lambda: live.keeper.mode == "parked") and live.until(lambda: "servoStop" in ur.calls)


def test_a_protective_stop_is_latched_and_the_program_sent_anew_by_who_arms(ur, closing):
    live = Live(closing(UrArm("192.168.1.2"))).armed()
    ur.protective = True
    assert live.until(lambda: "protective stop" in live.keeper.faults)
    with pytest.raises(Held, match="protective"):
        _armed_by_a_person(live)
    ur.protective = False  # unlocked at the pendant
    live.run(0.3)
    assert live.keeper.mode == "held" and "uploaded" not in ur.calls
    _armed_by_a_person(live)
    assert "uploaded" in ur.calls and live.keeper.mode == "armed"


def test_a_ur_whose_clock_stands_is_a_reading_that_did_not_come(ur, closing):
    live = Live(closing(UrArm("192.168.1.2"))).armed()
    ur.stands = True
    assert live.until(lambda: "readings" in live.keeper.faults)
    with pytest.raises(RealrlError, match="remote control"):
        UrArm("10.0.0.1")


def test_whoever_dies_the_watchdog_ends_the_program(ur, closing):
    driver = closing(UrArm("192.168.1.2"))
    driver.halt()  # the process is gone
    time.sleep(0.15)
    assert not driver._control.isProgramRunning()


SIGNATURES = """
import franky, rtde_control, rtde_receive
robot = franky.Robot
for name in ("state", "has_errors", "recover_from_errors", "poll_motion", "move", "stop"):
    assert hasattr(robot, name), name
assert {"Reflex", "UserStopped", "Guiding", "Idle", "Move"} <= set(franky.RobotMode.__members__)
assert {"q", "dq", "O_F_ext_hat_K", "robot_mode"} <= set(dir(franky.RobotState)) and franky.RealtimeConfig.Ignore
franky.JointMotion(franky.JointState([0.0] * 7), return_when_finished=False)
assert "asynchronous: bool" in robot.move.__doc__
control, receive = rtde_control.RTDEControlInterface, rtde_receive.RTDEReceiveInterface
for name in ("setWatchdog", "kickWatchdog", "isProgramRunning", "reuploadScript", "servoJ", "servoStop", "stopScript", "disconnect"):
    assert hasattr(control, name), name
for name in ("isConnected", "reconnect", "getTimestamp", "getActualQ", "getActualQd", "getActualTCPPose", "getActualTCPForce",
             "isProtectiveStopped", "isEmergencyStopped", "getRobotMode", "disconnect"):
    assert hasattr(receive, name), name
"""


def test_the_real_libraries_have_what_is_called():
    """VENDORS_PYTHON: a Python with franky-control and ur-rtde."""
    python = os.environ.get("VENDORS_PYTHON")
    if not python:
        pytest.skip("VENDORS_PYTHON names no Python with franky-control and ur-rtde")
    found = subprocess.run([python, "-c", SIGNATURES], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr


def test_ends_without_an_arm_are_said_at_once(ur):
    with pytest.raises(RealrlError, match="6 joints"):
        UrArm("192.168.1.2", table=UrArm("192.168.1.2").channels[:2])
    assert np.isfinite([c.low for c in UrArm("192.168.1.2").channels]).all()
