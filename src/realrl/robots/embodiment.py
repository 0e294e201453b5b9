"""What a robot's numbers mean: names, units and limits of its actions, what it senses, its rate. Policies think in [-1, 1]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from realrl.config import OutOfBounds, check, shown
from realrl.types import Array, Obs, Plan, Policy, RealrlError, State

Control = Literal["absolute", "relative"]
RATE = 0.05  # relative difference that is none


@dataclass(frozen=True)
class Embodiment:
    """A robot as a policy's folder describes it, enough to refuse another one.

    actions, state: a name a number; units: of the actions, "" where nobody said; low, high: what [-1, 1] means in those units; cameras:
    what the policy calls a camera -> what the recording calls it; fps: actions a second; control: whether an action says where to be
    (absolute) or how to move (relative); drives: for each action the number of the state that follows it, -1 for none; reached: of each
    action the furthest from 0 that was recorded, in its unit, nothing where that is not known.
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
    reached: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check(self, fps="(0, 1e6]", low="[-1e9, 1e9]", high="[-1e9, 1e9]", drives="[-1, 1e6]", reached="[0, 1e9]")
        for name in ("units", "low", "high"):
            if len(getattr(self, name)) != len(self.actions):
                raise OutOfBounds(Embodiment, name, f"must have an entry for each of the {len(self.actions)} actions, got "
                                  f"{shown(getattr(self, name))}")
        if len(self.reached) not in (0, len(self.actions)):
            raise OutOfBounds(Embodiment, "reached", f"must have an entry for each of the {len(self.actions)} actions or none, got "
                              f"{shown(self.reached)}")
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


def ordered(data: object, actions: Sequence[str], state: Sequence[str], robot: Mapping[str, Any]) -> None:
    """Raise RealrlError where recordings have a robot's actions or its state in another order. actions, state: what the recordings call
    their numbers, nothing where they do not say; robot: what its server says of it."""
    for what, mine, theirs in (("actions", list(actions), [str(c["name"]) for c in robot["channels"]]),
                               ("state", list(state), [str(name) for name in robot["state"]])):
        if sorted(mine) == sorted(theirs) and mine != theirs:
            raise RealrlError(f"{data} has its {what} in the order {', '.join(mine)}, the robot {', '.join(theirs)}: serve the robot in "
                              "that order, or record the data in the robot's")


class InBox:
    """A policy of recordings, in an environment that takes the recorded numbers as they are, in [-1, 1]: what is sent is what was recorded,
    not a share of the policy's own limits. Otherwise it is that policy."""

    def __init__(self, policy: Policy, robot: Embodiment) -> None:
        self._policy, self._robot = policy, robot

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_policy" not in self.__dict__:  # while it is sent to another process
            raise AttributeError(name)
        return getattr(self._policy, name)

    def act(self, obs: Obs, state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
        """As `Policy.act`, in the environment's numbers."""
        plan, state = self._policy.act(obs, state, greedy=greedy, rng=rng)
        return replace(plan, action=np.clip(self._robot.to_robot(plan.action), -1.0, 1.0).astype(np.float32)), state


def boxed(policy: Policy, robot: Embodiment, name: object, task: str, fps: float) -> tuple[InBox, str]:
    """(a policy of recordings for an environment whose actions are in [-1, 1], what to say of it). name: of the policy.

    Raises RealrlError where the recorded numbers cannot be such actions: they have a unit, or go beyond.
    """
    mend = ("import the recordings with --action-range LOW HIGH, what -1 and 1 mean there ('realrl data import'), and train on that, or "
            "give its robot with --robot")
    if units := sorted({unit for unit in robot.units if unit}):
        raise RealrlError(f"{name} was trained on recordings in {', '.join(units)}, {task} takes actions in [-1, 1]: {mend}")
    reach = np.array(robot.reached) if robot.reached else np.maximum(np.abs(robot.low), np.abs(robot.high))
    if reach.max() > 1 + 2e-3:
        far = int(reach.argmax())
        raise RealrlError(f"{name} was trained on recordings whose {robot.actions[far]} reaches {reach[far]:.3g}, {task} takes actions in "
                          f"[-1, 1]: {mend}")
    rate = "" if abs(fps - robot.fps) <= RATE * robot.fps else f"; it was recorded at {robot.fps:g} actions a second, {task} has {fps:g}"
    return InBox(policy, robot), f"{name} acts in the numbers of its recordings, which are taken for {task}'s own{rate}"


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
