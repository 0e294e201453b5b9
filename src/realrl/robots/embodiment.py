"""What a robot's numbers mean: names, units and limits of its actions, what it senses, its rate. Policies think in [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from realrl.config import OutOfBounds, check, shown
from realrl.types import Array

Control = Literal["absolute", "relative"]


@dataclass(frozen=True)
class Embodiment:
    """A robot as a policy's folder describes it, enough to refuse another one.

    actions, state: a name a number; units: of the actions, "" where nobody said; low, high: what [-1, 1] means in those units; cameras:
    what the policy calls a camera -> what the recording calls it; fps: actions a second; control: whether an action says where to be
    (absolute) or how to move (relative); drives: for each action the number of the state that follows it, -1 for none.
    """

    robot: str
    actions: tuple[str, ...]
    units: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    state: tuple[str, ...]
    fps: float
    control: Control = "absolute"
    cameras: dict[str, str] = field(default_factory=dict)
    drives: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check(self, fps="(0, 1e6]", low="[-1e9, 1e9]", high="[-1e9, 1e9]", drives="[-1, 1e6]")
        for name in ("units", "low", "high"):
            if len(getattr(self, name)) != len(self.actions):
                raise OutOfBounds(Embodiment, name, f"must have an entry for each of the {len(self.actions)} actions, got "
                                  f"{shown(getattr(self, name))}")
        if any(not -1 <= i < len(self.state) for i in self.drives) or len(self.drives) not in (0, len(self.actions)):
            raise OutOfBounds(Embodiment, "drives", f"must say of each action which of the {len(self.state)} numbers of the state follows "
                              f"it, got {shown(self.drives)}")
        for i, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            if not low < high:
                raise OutOfBounds(Embodiment, "low", f"must lie below high, action {i} ({self.actions[i]}) has {low:g} and {high:g}")

    @property
    def followers(self) -> Array:
        """[A], the number of the state that follows each action, -1 for none."""
        return np.array(self.drives or [-1] * len(self.actions))

    @property
    def middle(self) -> Array:
        """[A], what 0 means."""
        middle: Array = (np.array(self.low) + np.array(self.high)) / 2
        return middle

    @property
    def half(self) -> Array:
        """[A], the robot's units in one of a policy's."""
        half: Array = (np.array(self.high) - np.array(self.low)) / 2
        return half

    def to_box(self, action: Array) -> Array:
        """Actions [..., A] of the robot as a policy's, [-1, 1] inside the limits."""
        boxed: Array = ((action - self.middle) / self.half).astype(np.float32)
        return boxed

    def to_robot(self, action: Array) -> Array:
        """A policy's actions [..., A] in the robot's units, inside its limits."""
        return np.clip(action, -1.0, 1.0) * self.half + self.middle


def limits(actions: Array, episodes: int) -> tuple[Array, Array]:
    """(low [A], high [A]) of recorded actions [N, A] of so many episodes, with some room beyond what they reached: a twentieth of the
    range, and more of few episodes, for the next one goes the further beyond them the fewer they are.

    They keep a policy near what was shown; what a robot may do, its guard knows. A joint that hardly moves keeps a hundredth of the
    others' median range, or its noise would be stretched over [-1, 1].
    """
    low, high = actions.min(0).astype(np.float64), actions.max(0).astype(np.float64)
    span, room = high - low, max(0.05, 1 / max(episodes, 1))
    least = max(1e-2 * float(np.median(span)), 1e-6 * float(np.abs(actions).max(initial=0.0)), 1e-9)
    half = np.maximum(span * (1 + 2 * room), least) / 2
    middle = (low + high) / 2
    return middle - half, middle + half
