"""How methods that learn while a robot moves want the two to go on; `cell.stream` does it."""

from __future__ import annotations

from dataclasses import dataclass

from realrl.config import check

PATIENCE, AGE = 5.0, 10.0
"""Seconds that a learner may be silent, and that its weights may be old, where nobody says how many."""
UPDATES = 3.0
"""And as many times as long as one of its updates takes, where that is more: a learner that is at work is not silent."""


@dataclass(frozen=True)
class StreamConfig:
    """How an actor and a learner go beside each other."""

    realtime: bool = False
    """Whether the robot has a process of its own and keeps its rate by the clock, whatever the learner does; else they take turns, as fast
    as they can, and a run can be repeated to the bit."""
    patience: float = 0.0
    """Seconds without a sign of life of the learner after which the actor ends the episode and holds the robot; 0: 5, or three times what
    an update takes, if that is longer."""
    weights_age: float = 0.0
    """Seconds that weights may be old before the robot is held; 0: 10, or three times what an update takes, if that is longer."""
    alone: float = 600.0
    """Seconds without any learner after which the actor closes the robot and leaves."""
    queue: int = 2048
    """Steps that may wait for the learner before the robot is held."""

    def __post_init__(self) -> None:
        check(self, patience="[0, 1e6]", weights_age="[0, 1e6]", alone="(0, 1e6]", queue="[16, 1e6]")

    def silent_after(self, update: float) -> float:
        """Seconds. update: that the learner's updates take."""
        return self.patience or max(PATIENCE, UPDATES * update)

    def old_after(self, update: float) -> float:
        """Seconds. update: that the learner's updates take."""
        return self.weights_age or max(AGE, UPDATES * update)
