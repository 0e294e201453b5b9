"""What a robot's numbers mean: names, units and limits of its actions, what it senses, its rate. Policies think in [-1, 1]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from realrl.config import OutOfBounds, check, shown
from realrl.types import Array, RealrlError

Control = Literal["absolute", "relative"]
RATE = 0.05  # relative difference that is none


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


class Meant(NamedTuple):
    """A policy that was trained on recordings: the robot that recorded them, the policy's name, what it sees beside the state ("images.top"
    -> shape)."""

    robot: Embodiment
    name: str
    senses: Mapping[str, tuple[int, ...]]


def fits(policy: Embodiment, robot: Mapping[str, Any], name: object) -> str:
    """What nobody can know about a policy on a served robot, "" where all is told. robot: what its server says of it; name: of the policy.

    Raises RealrlError for another number, order, unit or kind of actions and for another rate: motions would be of another size or joint.
    """
    channels, mend = robot["channels"], "'realrl preflight' lays the robot beside the recordings"
    theirs, mine = [str(c["name"]) for c in channels], list(policy.actions)
    if len(theirs) != len(mine):
        raise RealrlError(f"{name} has {len(mine)} actions, the robot {len(theirs)} ({', '.join(theirs)}): give the policy of this robot")
    if sorted(theirs) == sorted(mine) and theirs != mine:
        raise RealrlError(f"{name} has its actions in the order {', '.join(mine)}, the robot {', '.join(theirs)}: serve them in that order")
    if sorted(robot["state"]) == sorted(policy.state) and list(robot["state"]) != list(policy.state):
        raise RealrlError(f"{name} sees {', '.join(policy.state)}, the robot shows {', '.join(robot['state'])}: show it in that order")
    for channel, unit in zip(channels, policy.units, strict=True):
        if unit and unit != channel["unit"]:
            raise RealrlError(f"{name} was trained on {unit}, the robot's {channel['name']} is in {channel['unit']}: serve it in {unit}")
    relative = all(c["step"] is not None or c["kind"] == "velocity" for c in channels)
    if relative != (policy.control == "relative"):
        raise RealrlError(f"{name} says {'how to move' if policy.control == 'relative' else 'where to be'}, the robot is told "
                          f"{'how to move' if relative else 'where to be'}: serve it the other way, or train with --recorded.control")
    if abs(float(robot["fps"]) - policy.fps) > RATE * policy.fps:
        raise RealrlError(f"{name} was recorded at {policy.fps:g} actions a second, the robot is served at {robot['fps']:g}: serve it at "
                          "that rate")
    untold = [c["name"] for c, unit in zip(channels, policy.units, strict=True) if not unit]
    return "" if not untold else (f"nobody said in which units {name} was recorded (--recorded.units of 'realrl train'): its numbers are "
                                  f"taken for the robot's ({', '.join(dict.fromkeys(c['unit'] for c in channels))}); {mend}")


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
