"""LeRobot's robots and teleoperators by what they can do, against fakes with all the irregularities of the real ones."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from realrl.robots.adapters.lerobot import LeRobotArm, LeRobotHand
from realrl.robots.driver import Channel, checked
from realrl.types import RealrlError

TABLE = (Channel("shoulder.pos", "deg", "position", -90, 90, 60, 300, 5000, step=3.0),
         Channel("gripper.pos", "%", "position", 0, 100, 200, 1000, 20000, step=10.0))


class Follower:
    """An SO-101 as lerobot has it: flat keys, tuples for cameras, `connect` with `calibrate`, a bus that times out now and then."""

    name = "so101_follower"
    observation_features = {"shoulder.pos": float, "gripper.pos": float, "front": (8, 8, 3), "front_depth": (8, 8, 1)}  # noqa: RUF012
    action_features = {"shoulder.pos": float, "gripper.pos": float}  # noqa: RUF012

    def __init__(self):
        self.is_connected, self.is_calibrated, self.calls = False, True, []
        self.at, self.broken, self.picture = {"shoulder.pos": 10.0, "gripper.pos": 50.0}, "", 0
        self.config = SimpleNamespace(disable_torque_on_disconnect=True)
        self.bus = SimpleNamespace(enable_torque=lambda: self.calls.append("on"), disable_torque=lambda: self.calls.append("off"))

    def connect(self, calibrate=True):
        assert not calibrate, "it would ask at the keyboard"
        self.is_connected = True

    def get_observation(self):
        if self.broken == "bus":
            raise ConnectionError("There is no status packet!")
        if self.broken == "bug":
            raise KeyError("Present_Position")
        self.picture += self.broken != "camera"
        seen = {**self.at, "front": np.full((8, 8, 3), self.picture % 250, np.uint8), "front_depth": np.zeros((8, 8, 1), np.uint16)}
        return {k: v for k, v in seen.items() if self.broken != "lacks" or k != "shoulder.pos"}

    def send_action(self, action):
        assert all(isinstance(v, float) for v in action.values())
        self.at = dict(action)
        return action

    def disconnect(self):
        self.calls.append("cut" if self.config.disable_torque_on_disconnect else "disconnected")


class Odd(Follower):
    """LeKiwi's client and its like: `connect` takes nothing, `is_calibrated` is None or a method."""

    is_calibrated = None

    def __init__(self, told=None):
        super().__init__()
        self.is_calibrated = told

    def connect(self):
        self.is_connected = True


@pytest.fixture
def arm():
    made = []

    def make(robot=None, table=TABLE):
        made.append(LeRobotArm(robot or Follower(), table, rate=500))
        return made[-1]

    yield make
    for one in made:
        one._over.set()


def soon(read):
    """What a call gives once it gives something."""
    for _ in range(400):
        try:
            return read()
        except OSError:
            time.sleep(0.005)
    return read()


def test_it_is_a_driver_that_reads_and_moves(arm):
    driver = checked(arm(), "so101")
    reading = soon(driver.read)
    assert reading.measured.tolist() == [10.0, 50.0] and list(reading.images) == ["front"]
    assert driver.state == ("shoulder.pos", "gripper.pos")
    driver.write(np.array([12.0, 60.0]))
    for _ in range(200):
        if driver.read().measured[0] == 12.0:
            break
        time.sleep(0.005)
    assert driver.read().measured.tolist() == [12.0, 60.0]


@pytest.mark.parametrize("broken", ["bus", "bug", "lacks"])
def test_whatever_it_raises_is_a_reading_that_did_not_come(arm, broken):
    robot = Follower()
    driver = arm(robot)
    soon(driver.read)
    robot.broken = broken
    time.sleep(0.05)
    for call in (driver.read, lambda: driver.write(np.zeros(2))):
        with pytest.raises(OSError):
            call()
    robot.broken = ""
    soon(driver.read)


def test_a_picture_that_comes_again_is_as_old_as_it_is(arm):
    robot = Follower()
    driver = arm(robot)
    soon(driver.read)
    robot.broken = "camera"
    time.sleep(0.15)
    reading = driver.read()
    assert reading.stamp - reading.images["front"][0] > 0.08


def test_units_are_demanded_for_every_key_and_for_no_other(arm):
    with pytest.raises(RealrlError, match=r"lacks gripper\.pos"):
        arm(table=TABLE[:1])
    with pytest.raises(RealrlError, match="takes no elbow"):
        arm(table=(*TABLE, replace(TABLE[0], name="elbow.pos")))
    pad = Follower()
    pad.action_features = {"dtype": "float32", "shape": (4,), "names": {"delta_x": 0}}
    with pytest.raises(RealrlError, match="teleoperator"):
        arm(pad)
    blind = Follower()
    blind.observation_features = {"front": (8, 8, 3)}
    with pytest.raises(RealrlError, match="does not observe"):
        arm(blind)


def test_a_robot_that_is_not_calibrated_is_refused_however_it_says_so(arm):
    for told in (False, lambda: False):
        with pytest.raises(RealrlError, match="lerobot-calibrate"):
            arm(Odd(told))
    for told in (None, True, lambda: True):
        soon(arm(Odd(told)).read)


def test_release_is_not_disconnect_and_disconnecting_drops_nothing(arm):
    robot = Follower()
    driver = arm(robot)
    driver.hold()
    driver.close()
    assert robot.calls == ["on", "disconnected"]
    robot = Follower()
    driver = arm(robot)
    driver.release()
    for _ in range(400):  # the thread that owns the robot does it
        if robot.calls:
            break
        time.sleep(0.005)
    assert robot.calls == ["off"]
    driver.close()
    assert robot.calls == ["off", "cut"]


class Motors:
    """A bus of servos: one without torque sags, and goes to its last goal at once when it gets torque."""

    def __init__(self, robot):
        self.robot, self.torque, self.goal, self.fastest = robot, True, dict(robot.at), 0.0

    def sync_read(self, what):
        assert what == "Torque_Enable"
        return {"shoulder": int(self.torque), "gripper": int(self.torque)}

    def enable_torque(self):
        self.torque = True
        self.fastest = max(self.fastest, *(abs(self.goal[k] - v) for k, v in self.robot.at.items()))
        self.robot.at = dict(self.goal)
        self.robot.calls.append("on")

    def disable_torque(self):
        self.torque = False


class Servo(Follower):
    def __init__(self):
        super().__init__()
        self.bus = Motors(self)

    def send_action(self, action):
        self.bus.goal = dict(action)
        if self.bus.torque:
            self.at = dict(action)
        return action


def test_an_arm_that_was_let_go_does_not_jump_to_its_last_goal(arm):
    """Overloaded servos cut themselves off; a parked arm is let go where it is hot."""
    robot = Servo()
    driver = arm(robot)
    soon(driver.read)
    driver.hold()
    driver.order(lambda: None, wait=True)
    assert robot.calls == [], "what has torque is left alone"
    robot.bus.disable_torque()
    robot.at = {"shoulder.pos": -40.0, "gripper.pos": 0.0}
    driver.hold()
    driver.order(lambda: None, wait=True)
    assert robot.calls == ["on"] and robot.bus.fastest == 0 and robot.at["shoulder.pos"] == -40


# ---- people


class Leader:
    """A leader arm, or with events a gamepad."""

    def __init__(self, said, events=None):
        self.said, self.now = said, events
        if events is not None:
            self.get_teleop_events = lambda: self.now

    def get_action(self):
        if self.said is None:
            raise ConnectionError("unplugged")
        return self.said




def test_a_leader_moves_the_robot_by_as_much_as_it_is_moved_and_nothing_jumps():
    leader = Leader({"shoulder.pos": 80.0, "gripper.pos": 20.0})  # far from where the robot is
    with pytest.raises(RealrlError, match="step"):
        LeRobotHand(leader, (replace(TABLE[0], step=None),), leader=True)
    hand = LeRobotHand(leader, TABLE, leader=True)
    assert hand.poll({}, np.zeros(2)) is None
    hand.engaged = True
    assert not hand.poll({}, np.zeros(2)).any()
    leader.said = {"shoulder.pos": 84.5, "gripper.pos": 20.0}
    moved = [hand.poll({}, np.zeros(2))[0] for _ in range(4)]
    assert moved == pytest.approx([1.0, 0.5, 0.0, 0.0])
    leader.said = {"shoulder.pos": None, "gripper.pos": 20.0}
    assert not hand.poll({}, np.zeros(2)).any()
    leader.said = None
    assert not hand.poll({}, np.zeros(2)).any()


def test_a_gamepad_says_who_acts_and_one_that_died_deflected_moves_nothing():
    events = {"is_intervention": True}
    pad, clock = Leader({"delta_x": 0.5, "gripper": 2}, events), SimpleNamespace(now=0.0)
    table = (Channel("x", "m", "pose", 0, 1, 1, 1, 1, step=0.01), Channel("gripper", "m", "position", 0, 1, 1, 1, 1, step=0.01))
    hand = LeRobotHand(pad, table, leader=False, clock=lambda: clock.now)
    assert hand.poll({}, np.zeros(2)).tolist() == [0.5, 1.0]
    clock.now = 0.3
    assert not hand.poll({}, np.zeros(2)).any()
    pad.said = {"delta_x": 0.4, "gripper": 1}
    assert hand.poll({}, np.zeros(2)) == pytest.approx([0.4, 0.0])
    pad.now = {"is_intervention": False}
    assert hand.poll({}, np.zeros(2)) is None
    pad.said, pad.now = {"gripper": None}, {"is_intervention": True}
    assert not hand.poll({}, np.zeros(2)).any()
