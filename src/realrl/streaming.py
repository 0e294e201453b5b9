"""How methods that learn while a robot moves want the two to go on; `cell.stream` does it."""

from __future__ import annotations

from dataclasses import dataclass

from realrl.config import check


@dataclass(frozen=True)
class StreamConfig:
    """How an actor and a learner go beside each other."""

    realtime: bool = False
    """Whether the robot has a process of its own and keeps its rate by the clock, whatever the learner does; else they take turns, as fast
    as they can, and a run can be repeated to the bit."""
    patience: float = 5.0
    """Seconds without a sign of life of the learner after which the actor ends the episode and holds the robot."""
    weights_age: float = 10.0
    """Seconds that weights may be old before the robot is held."""
    alone: float = 600.0
    """Seconds without any learner after which the actor closes the robot and leaves."""
    queue: int = 2048
    """Steps that may wait for the learner before the robot is held."""

    def __post_init__(self) -> None:
        check(self, patience="(0, 1e6]", weights_age="(0, 1e6]", alone="(0, 1e6]", queue="[16, 1e6]")
