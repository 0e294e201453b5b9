"""How a robot is served: what stands in the YAML file of `realrl robot serve`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from realrl.config import OutOfBounds, check


@dataclass(frozen=True)
class ServerConfig:
    """A robot, its task and when its server stops it."""

    name: str = "robot"
    """What the robot is called in recordings and on screens."""
    driver: str | None = None
    """What drives it: MODULE:FACTORY, a class or function that builds a `realrl.robots.driver.Driver`."""
    text: str = ""
    """The task, in words."""
    fps: float = 20.0
    """Actions a second."""
    ticks: float = 100.0
    """Commands to the robot a second; the guard runs at each of them."""
    horizon: int = 200
    """Actions until an episode is cut off."""
    start: tuple[float, ...] = ()
    """Where an episode begins, each channel in its unit; nowhere in particular by default."""
    park: tuple[float, ...] = ()
    """Where the arm rests, each channel in its unit; where it stands by default."""
    pace: float = 0.3
    """Speed of the ways to start and park, as a share of each channel's limit."""
    reset: Literal["scripted", "hand"] = "scripted"
    """Who sets the scene up: nobody or the driver, scripted; a person, who then says `realrl robot ready`."""
    workspace: tuple[float, ...] = ()
    """Where the hand may be, m: low x y z, high x y z. The driver has to know where its hand is."""
    force: float | None = None
    """N at the hand at which the robot stops and steps back; it has to measure its force."""
    stall: tuple[float, ...] = ()
    """How far a channel may stay behind what it was sent for 0.3 s, each in its unit, before it counts as stalled; unwatched by default."""
    watchdog: float = 3.0
    """Actions that may be late before the client counts as dead; more for a learner that thinks between two actions."""
    stale: float = 0.2
    """s without a fresh and finite reading after which the robot is held for good."""
    camera_stale: float = 0.5
    """s after which a camera's newest picture is too old to act on."""
    park_after: float = 60.0
    """s that a held robot, or one nobody commands, waits for somebody before it parks; one that was stopped waits for a person."""
    host: str = "127.0.0.1"
    """Address to listen on. Any but this computer's own asks for a token."""
    port: int = 8770
    """Port to listen on, 0 for any that is free."""
    token: Path | None = None
    """File that holds the token, at least 16 characters; who does not know it is refused."""
    log: Path | None = Path("robot-log")
    """Folder for the server's own log, a folder in it for every start; None writes none."""
    options: dict[str, Any] = field(default_factory=dict)
    """What the driver's factory is given, by name: texts, numbers, lists."""

    def __post_init__(self) -> None:
        check(self, fps="[0.1, 1000]", ticks="[10, 2000]", horizon="[1, 1e6]", pace="(0, 1]", force="(0, 1e5]", stall="(0, 1e6]",
              watchdog="[1, 1e5]", stale="[0.02, 10]", camera_stale="[0.02, 60]", park_after="[0, 1e6]", port="[0, 65535]",
              start="[-1e6, 1e6]", park="[-1e6, 1e6]", workspace="[-1e3, 1e3]")
        if self.ticks < self.fps:
            raise OutOfBounds(ServerConfig, "ticks", f"must be at least fps, {self.fps:g}, got {self.ticks:g}")
        box = self.workspace
        if box and (len(box) != 6 or not all(a < b for a, b in zip(box, box[3:], strict=False))):
            raise OutOfBounds(ServerConfig, "workspace", f"must be six numbers, low corner then high corner, got {self.workspace}")
