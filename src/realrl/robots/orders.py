"""What a robot's keeper is asked for and what it answers: where to go by when, what its commander is owed, poses of a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from realrl.robots.driver import Reading
from realrl.robots.motion import MotionGuard
from realrl.types import Array, RealrlError


@dataclass
class Reference:
    """The place to be [C] goes evenly from one to another, then stays. begun: s; lasts: [C] s."""

    place: Array
    goal: Array
    begun: float
    lasts: Array

    def at(self, now: float) -> tuple[Array, Array]:
        """(place [C], rate [C]) at a time."""
        lasts = np.maximum(self.lasts, 1e-9)
        share = np.clip((now - self.begun) / lasts, 0.0, 1.0)
        return self.place + share * (self.goal - self.place), np.where(share < 1, (self.goal - self.place) / lasts, 0.0)


@dataclass
class Answer:
    """What a commander is told after its action (or its reset). proposed, sent: [C], as actions are given; limited: which limits bit
    since the last answer; late: s that the action came after its time."""

    seq: int
    reading: Reading
    sent: Array
    limited: Array
    reward: float = 0.0
    terminated: bool = False
    success: bool = False
    late: float = 0.0
    failed: str = ""


@dataclass
class Client:
    """The commander's part of the state. seq: of its newest action; due: when it is answered, None: nothing is owed."""

    seq: int = -1
    due: float | None = None
    answered: float = 0.0
    late: float = 0.0
    bad: int = 0
    sent: Array = field(default_factory=lambda: np.zeros(0))
    source: int = 0


def pose(given: Sequence[float], guard: MotionGuard, what: str) -> Array | None:
    """A pose [C] of a configuration, None where none is given. Raises RealrlError where the robot cannot be there."""
    if not given:
        return None
    at, channels = np.array(given, np.float64), guard.channels
    if at.shape != guard.low.shape or not ((at >= guard.low) & (at <= guard.high)).all():
        raise RealrlError(f"{what} {list(given)} must be {len(channels)} numbers inside the limits of the channels "
                          f"{', '.join(f'{c.name} {c.low:g} to {c.high:g} {c.unit}' for c in channels)}")
    if not guard.inside(at):
        raise RealrlError(f"{what} {list(given)} puts the hand at {guard.where(at)}, outside the workspace: mend the one or the other")
    return at
