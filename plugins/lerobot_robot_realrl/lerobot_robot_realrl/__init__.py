"""Robots served by realrl (`realrl robot serve`) as a robot type of LeRobot's: `--robot.type=realrl --robot.url=ws://127.0.0.1:8770`.

Whatever LeRobot's command line does, the server's guard has the last word, and brakes, holds and parks when LeRobot dies. It needs
websockets and msgpack, not realrl.
"""

from lerobot_robot_realrl.config_realrl import RealrlRobotConfig
from lerobot_robot_realrl.realrl_robot import RealrlRobot

__all__ = ["RealrlRobot", "RealrlRobotConfig"]
