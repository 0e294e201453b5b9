"""A robot under ROS 2 as a driver: `JointTrajectoryArm` for joint_trajectory_controller, `ServoArm` for MoveIt Servo. rclpy is imported
when one is built, not before; how a lab's robot is called stands in the arguments.

Set `interpolate_from_desired_state` in the controller: every command is a trajectory of one point, and replaces the one before. Neither
controller stops by itself for long (`cmd_timeout` is off by default), so their servers' watchdog is ours.
"""

from __future__ import annotations

import ssl  # noqa: F401  # before rclpy, whose libraries bring another one
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from realrl.robots.driver import Channel, Reading
from realrl.types import Array, RealrlError

_HALTS = {2: "singularity", 5: "collision", 6: "joint bound"}
"""Of `moveit_msgs/ServoStatus`: what stops it altogether."""


class _Ros:
    """A node of our own, spun by a thread: the newest joint states by name, the newest pictures."""

    def __init__(self, table: Sequence[Channel], states: str, cameras: Mapping[str, str]) -> None:
        """states: topic of sensor_msgs/JointState; cameras: name -> topic of sensor_msgs/Image. Raises RealrlError without ROS 2."""
        try:
            import rclpy
            from rclpy.executors import SingleThreadedExecutor
            from rclpy.qos import qos_profile_sensor_data
            from sensor_msgs.msg import Image, JointState
        except ModuleNotFoundError as error:
            raise RealrlError(f"a robot under ROS 2 needs {error.name}: install ROS 2 and source its setup.bash before this") from None
        if not table:
            raise RealrlError("ROS 2 does not say what joints may do: give a table of channels, called as the joints are")
        self.channels = tuple(table)
        self.state = (*(c.name for c in self.channels), *(f"speed {c.name}" for c in self.channels))
        self._rclpy: Any = rclpy
        if not rclpy.ok():
            rclpy.init()
        self.node: Any = rclpy.create_node("realrl")
        self._joints: dict[str, tuple[float, float, float]] = {}  # name -> when, place, speed
        self._images: dict[str, tuple[float, Array]] = {}
        self._faults: tuple[str, ...] = ()
        self.node.create_subscription(JointState, states, self._heard, qos_profile_sensor_data)
        for name, topic in cameras.items():
            self.node.create_subscription(Image, topic, partial(self._saw, name), qos_profile_sensor_data)
        self._executor: Any = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._executor.spin, name="ros", daemon=True)

    def read(self) -> Reading:
        """The newest joint states. Raises OSError while a joint is missing."""
        missing = [c.name for c in self.channels if c.name not in self._joints]
        if missing:
            raise OSError(f"no state of {', '.join(missing)} came; there are {', '.join(self._joints) or 'none'}")
        heard = np.array([self._joints[c.name] for c in self.channels])
        return Reading(float(heard[:, 0].min()), heard[:, 1], heard[:, 1:].T.ravel(), faults=self._faults, images=dict(self._images))

    def hold(self) -> None:
        """Its controller holds."""

    def brake(self) -> None:
        """The server's commands brake it."""

    def park(self) -> None:
        """It stands where it rests."""

    def release(self) -> None:
        """Its controller holds it; what lets go of drives is the lab's own."""

    def close(self) -> None:
        """Leave ROS."""
        self._executor.shutdown()
        self._thread.join(5)
        self.node.destroy_node()
        self._rclpy.try_shutdown()

    def _since(self, header: Any) -> float:
        """When a message's content was so, s of `time.monotonic`: as old as ROS's clock says."""
        said = header.stamp.sec + 1e-9 * header.stamp.nanosec
        age = 1e-9 * self.node.get_clock().now().nanoseconds - said if said > 0 else 0.0
        return time.monotonic() - max(age, 0.0)

    def _heard(self, message: Any) -> None:
        if len(message.position) != len(message.name):  # somebody else tells speeds alone there
            return
        when = self._since(message.header)
        speeds = message.velocity if len(message.velocity) == len(message.name) else [0.0] * len(message.name)
        for name, place, speed in zip(message.name, message.position, speeds, strict=True):
            self._joints[name] = (when, float(place), float(speed))

    def _saw(self, name: str, image: Any) -> None:
        if image.encoding not in ("rgb8", "bgr8"):
            self._faults = (f"camera {name} sends {image.encoding}, not rgb8 or bgr8",)
            return
        rows = np.frombuffer(bytes(image.data), np.uint8).reshape(image.height, image.step)[:, :3 * image.width]
        picture = rows.reshape(image.height, image.width, 3)
        self._images[name] = (self._since(image.header), np.ascontiguousarray(picture[..., ::-1] if image.encoding == "bgr8" else picture))


class JointTrajectoryArm(_Ros):
    """`realrl.robots.driver.Driver` of joints under joint_trajectory_controller: channels of kind position, called as its joints are."""

    def __init__(self, table: Sequence[Channel], *, controller: str = "/joint_trajectory_controller", states: str = "/joint_states",
                 cameras: Mapping[str, str] = {}, ahead: float = 0.02) -> None:
        """ahead: s from a command to when its place is to be reached; a little more than from one to the next."""
        super().__init__(table, states, cameras)
        from builtin_interfaces.msg import Duration
        from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint
        self._trajectory, self._point = JointTrajectory, JointTrajectoryPoint
        self._ahead = Duration(sec=int(ahead), nanosec=int(1e9 * (ahead % 1)))
        self._to = self.node.create_publisher(JointTrajectory, f"{controller}/joint_trajectory", 1)
        self._thread.start()

    def write(self, command: Array) -> Array:
        """Where the joints shall be `ahead` from now. Raises OSError while no controller listens."""
        if not self._to.get_subscription_count():
            raise OSError("no controller listens to the trajectories")
        point = self._point(positions=command.tolist(), time_from_start=self._ahead)
        self._to.publish(self._trajectory(joint_names=[c.name for c in self.channels], points=[point]))
        return command


class ServoArm(_Ros):
    """`realrl.robots.driver.Driver` of joints under MoveIt Servo: channels of kind velocity, called as its joints are."""

    def __init__(self, table: Sequence[Channel], *, servo: str = "/servo_node", states: str = "/joint_states",
                 cameras: Mapping[str, str] = {}) -> None:
        """servo: its node. Raises RealrlError for channels that are not velocities."""
        super().__init__(table, states, cameras)
        if wrong := [c.name for c in table if c.kind != "velocity"]:
            raise RealrlError(f"MoveIt Servo takes speeds of joints: make {', '.join(wrong)} channels of kind velocity")
        from control_msgs.msg import JointJog
        from moveit_msgs.msg import ServoStatus
        self._jog = JointJog
        self._to = self.node.create_publisher(JointJog, f"{servo}/delta_joint_cmds", 1)
        self.node.create_subscription(ServoStatus, f"{servo}/status", self._told, 1)
        self._thread.start()

    def write(self, command: Array) -> Array:
        """How fast the joints shall go; after 0.1 s without the next Servo stops by itself. Raises OSError while it does not listen."""
        if not self._to.get_subscription_count():
            raise OSError("no servo node listens to the speeds")
        jog = self._jog(joint_names=[c.name for c in self.channels], velocities=command.tolist())
        jog.header.stamp = self.node.get_clock().now().to_msg()
        self._to.publish(jog)
        return command

    def _told(self, status: Any) -> None:
        code = int(getattr(status.code, "value", status.code))
        self._faults = (_HALTS[code],) if code in _HALTS else ()
