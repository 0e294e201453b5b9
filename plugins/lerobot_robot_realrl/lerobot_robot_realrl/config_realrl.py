"""The configuration of a served robot."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.robots.config import RobotConfig


@RobotConfig.register_subclass("realrl")
@dataclass(kw_only=True)
class RealrlRobotConfig(RobotConfig):
    """url: what `realrl robot serve` printed; token: for a server on another computer, by default what the environment variable
    REALRL_ROBOT_TOKEN holds."""

    url: str = "ws://127.0.0.1:8770"
    token: str | None = None
