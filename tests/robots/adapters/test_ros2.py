"""Drivers of robots under ROS 2, against a node's side of it: topics, controllers that listen, clocks that differ from ours."""

from __future__ import annotations

import sys
import threading
import time
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from vendors import Follows, Live

from realrl.robots.adapters.ros2 import JointTrajectoryArm, ServoArm
from realrl.robots.driver import Channel, checked
from realrl.types import RealrlError

TABLE = tuple(Channel(name, "rad", "position", -3, 3, 2, 20, 1000, step=0.05) for name in ("lift", "pan"))
SPEEDS = tuple(Channel(name, "rad", "velocity", -3, 3, 2, 20, 1000) for name in ("lift", "pan"))
BOOT = 1e9  # s: ROS's clock counts from elsewhere


class Message(SimpleNamespace):
    """Any message: what is given, and a header."""

    def __init__(self, **given):
        super().__init__(**{"header": SimpleNamespace(stamp=SimpleNamespace(sec=0, nanosec=0)), **given})


def stamp(age: float = 0.0):
    now = BOOT + time.monotonic() - age
    return SimpleNamespace(stamp=SimpleNamespace(sec=int(now), nanosec=int(1e9 * (now % 1))))


class Ros:
    """rclpy, and behind its topics a robot of three joints whose states come in another order. listens: whether its controller does."""

    def __init__(self):
        self.topics, self.sent, self.listens, self.over, self.up = {}, [], 1, threading.Event(), False
        self.place, self.speed, self.seen = Follows([0.5, 0.0, -0.5]), np.zeros(3), time.monotonic()
        self.age = 0.0

    def ok(self):
        return self.up

    def init(self):
        self.up = True

    def try_shutdown(self):
        self.up = False

    def create_node(self, name):
        def publisher(kind, topic, qos):
            return SimpleNamespace(publish=lambda message: self.hear(topic, message), get_subscription_count=lambda: self.listens)

        now = lambda: SimpleNamespace(nanoseconds=int(1e9 * (BOOT + time.monotonic())), to_msg=lambda: stamp().stamp)
        return SimpleNamespace(create_subscription=lambda kind, topic, call, qos: self.topics.update({topic: call}),
                               create_publisher=publisher, get_clock=lambda: SimpleNamespace(now=now), destroy_node=lambda: None)

    def hear(self, topic, message):
        self.sent.append((topic, message))
        if topic.endswith("joint_trajectory"):
            (point,) = message.points
            assert point.time_from_start.nanosec > 0 and message.header.stamp.sec == 0, "at once, and by when"
            self.place.goal = np.array([point.positions[message.joint_names.index("pan")], 0.0,
                                        point.positions[message.joint_names.index("lift")]])
        else:
            assert abs(message.header.stamp.sec - BOOT - time.monotonic()) < 2, "Servo drops what has no stamp"
            self.speed = np.array([message.velocities[1], 0.0, message.velocities[0]])

    def spin(self):
        while not self.over.wait(0.01):
            self.place.goal = self.place.goal + self.speed * (time.monotonic() - self.seen)
            self.seen = time.monotonic()
            at = self.place.now()
            self.topics["/joint_states"](Message(header=stamp(self.age), name=["pan", "finger", "lift"], position=at.tolist(), velocity=[]))


@pytest.fixture
def ros(monkeypatch):
    found = Ros()

    def module(name, **has):
        made = ModuleType(name)
        made.__dict__.update(has)
        monkeypatch.setitem(sys.modules, name, made)

    for name in ("sensor_msgs", "trajectory_msgs", "control_msgs", "moveit_msgs", "builtin_interfaces"):
        module(name)
    monkeypatch.setitem(sys.modules, "rclpy", found)
    executor = SimpleNamespace(add_node=lambda node: None, spin=found.spin, shutdown=found.over.set)
    module("rclpy.executors", SingleThreadedExecutor=lambda: executor)
    module("rclpy.qos", qos_profile_sensor_data="best effort")
    module("sensor_msgs.msg", Image=Message, JointState=Message)
    module("trajectory_msgs.msg", JointTrajectory=Message, JointTrajectoryPoint=Message)
    module("control_msgs.msg", JointJog=Message)
    module("moveit_msgs.msg", ServoStatus=Message)
    module("builtin_interfaces.msg", Duration=Message)
    yield found
    found.over.set()


def test_joints_are_told_apart_by_name_and_follow_trajectories(ros):
    driver = checked(JointTrajectoryArm(TABLE, controller="/arm", cameras={"wrist": "/wrist/image_raw"}), "arm")
    live = Live(driver).armed()
    assert live.at == pytest.approx([-0.5, 0.5], abs=1e-6)
    for _ in range(6):
        live.act([0.05, 0.0])
    assert live.until(lambda: abs(live.at[0] + 0.2) < 1e-3) and live.at[1] == pytest.approx(0.5, abs=1e-3)
    assert {topic for topic, _ in ros.sent} == {"/arm/joint_trajectory"}
    picture = np.arange(2 * 8, dtype=np.uint8).reshape(2, 8)  # a row has a byte to spare, and another
    ros.topics["/wrist/image_raw"](Message(header=stamp(0.3), encoding="bgr8", height=2, width=2, step=8, data=picture.tobytes()))
    when, seen = driver.read().images["wrist"]
    assert seen.tolist() == picture[:, :6].reshape(2, 2, 3)[..., ::-1].tolist() and 0.2 < time.monotonic() - when < 5
    driver.close()
    assert not ros.up


def test_old_states_and_a_controller_that_does_not_listen_stop_it(ros):
    live = Live(JointTrajectoryArm(TABLE), stale=0.6).armed()
    ros.age = 5.0  # a bag is played, or a driver's clock is off
    assert live.until(lambda: "readings" in live.keeper.faults)
    ros.age = 0.0
    live.until(lambda: not live.keeper.watch.blind)
    live.keeper.arm()
    ros.listens = 0
    assert live.until(lambda: "commands" in live.keeper.faults)


def test_servo_gets_speeds_and_what_halts_it_is_a_fault(ros):
    live = Live(ServoArm(SPEEDS)).armed()
    for _ in range(6):
        live.act([0.5, 0.0])
    assert live.at[0] > -0.5 + 0.02 and live.at[1] == pytest.approx(0.5, abs=1e-3)
    live.keeper.finish()
    assert live.until(lambda: not ros.speed.any())
    ros.topics["/servo_node/status"](Message(code=1, message="approaching a singularity"))
    live.run(0.1)
    assert live.keeper.mode == "armed"
    ros.topics["/servo_node/status"](Message(code=2, message="Moved into a singularity"))
    assert live.until(lambda: "singularity" in live.keeper.faults)
    with pytest.raises(RealrlError, match="kind velocity"):
        ServoArm(TABLE)


def test_without_ros_or_a_table_it_says_so(ros, monkeypatch):
    with pytest.raises(RealrlError, match="table of channels"):
        JointTrajectoryArm(())
    driver = JointTrajectoryArm((*TABLE, Channel("elbow", "rad", "position", -3, 3, 2, 20, 1000)))
    with pytest.raises(OSError, match="elbow came"):
        driver.read()
    monkeypatch.setitem(sys.modules, "rclpy", None)
    with pytest.raises(RealrlError, match=r"source its setup\.bash"):
        JointTrajectoryArm(TABLE)
