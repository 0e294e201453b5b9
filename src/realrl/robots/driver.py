"""What a robot has to offer to be served: a table of its channels with units and limits, and seven short functions.

A driver is written once per arm, and knows nothing of policies, networks or guards. It is called from one thread, a hundred times a
second or so; `read` and `write` return at once. docs/howto/your-robot.md has one in full.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from realrl.config import OutOfBounds, check
from realrl.types import Array, RealrlError

Kind = Literal["position", "velocity", "delta", "pose"]


class Held(RealrlError):
    """The robot does not follow: why, and what to do."""


@dataclass(frozen=True)
class Channel:
    """One number that is sent to the robot.

    kind: position, where a joint (or gripper) shall be; pose, a coordinate of where the hand shall be; velocity, how fast a joint shall
    go; delta, by how much a joint shall move until the next command. low, high: where what it moves may be, in `unit`; velocity,
    acceleration, jerk: the most of each, in unit/s, unit/s2 and unit/s3. step: by how much one action of a policy may move it; None:
    actions say where it shall be (or, of a velocity, how fast), and not by how much it shall move. lead: how far what is commanded may run
    ahead of where it is when the next step is added; 0 goes on from the measured place, so that nothing winds up while it is pressed
    against something; None: as far as it may be. aim: between which places an action of a policy may send it; None: low and high.
    """

    name: str
    unit: str
    kind: Kind
    low: float
    high: float
    velocity: float
    acceleration: float
    jerk: float
    step: float | None = None
    lead: float | None = None
    aim: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check(self, low="[-1e6, 1e6]", high="[-1e6, 1e6]", velocity="(0, 1e6]", acceleration="(0, 1e6]", jerk="(0, 1e9]",
              step="(0, 1e6]", lead="[0, 1e6]")
        if not re.fullmatch(r"[\w. -]{1,64}", self.name):
            raise OutOfBounds(Channel, "name", f"must be a word of at most 64 letters, got {self.name[:80]!r}")
        if not self.unit.strip():
            raise OutOfBounds(Channel, "unit", f"of {self.name} is empty: say rad, deg, m ..., numbers without a unit move no robot")
        if not self.low < self.high:
            raise OutOfBounds(Channel, "low", f"of {self.name} must lie below high, got {self.low:g} and {self.high:g}")
        if self.step is not None and self.kind == "velocity":
            raise OutOfBounds(Channel, "step", f"of {self.name} makes no sense for a velocity, leave it out")
        if self.aim is not None and not (self.low <= self.aim[0] < self.aim[1] <= self.high):
            raise OutOfBounds(Channel, "aim", f"of {self.name} must be two places inside {self.low:g} to {self.high:g}, got {self.aim}")
        if self.step is None and self.lead is not None:
            raise OutOfBounds(Channel, "lead", f"of {self.name} makes no sense without a step, leave it out")


@dataclass
class Reading:
    """What a robot measured. stamp: `time.monotonic` seconds when it was so; measured: [C] each channel's place, in its unit; state: [D]
    what a policy is shown; force: [3] N at the hand, None where nothing measures it; faults: what the robot itself reports, a word each
    ("estop", "hot" ...); images: name -> (stamp, uint8 [H, W, 3]), the newest of each camera; truth: [F] what a simulation knows of its
    world besides, for scripts alone, None where `state` is all of it.
    """

    stamp: float
    measured: Array
    state: Array
    force: Array | None = None
    faults: tuple[str, ...] = ()
    images: Mapping[str, tuple[float, Array]] = field(default_factory=dict)
    truth: Array | None = None


class Driver(Protocol):
    """A robot."""

    @property
    def channels(self) -> Sequence[Channel]:
        """What is sent to it."""
        ...

    @property
    def state(self) -> Sequence[str]:
        """The names of what `Reading.state` holds."""
        ...

    def read(self) -> Reading:
        """What is measured now. Raises OSError where the robot did not answer: the server tries again."""
        ...

    def write(self, command: Array) -> Array:
        """Send [C] and return what was really sent. Raises OSError where it did not arrive."""
        ...

    def hold(self) -> None:
        """Stay, with torque on."""
        ...

    def brake(self) -> None:
        """Something is wrong: the vendor's own stop, where it has one; the server brakes by its commands beside it."""
        ...

    def park(self) -> None:
        """The arm stands at its place of rest: engage what holds it there."""
        ...

    def release(self) -> None:
        """Let go of the drives. Called when it is parked, or too hot to hold."""
        ...

    def close(self) -> None:
        """Disconnect. The drives stay as they are."""
        ...


@runtime_checkable
class Tasked(Protocol):
    """A driver that can set its task up and judge it: a simulated robot, or a cell with sensors for both."""

    def begin(self, seed: int) -> None:
        """Put the scene into the start that belongs to a seed; the arm stands at its start already."""
        ...

    def outcome(self) -> tuple[float, bool, bool]:
        """(reward, whether the task itself ended, whether it is solved now), once a period of the commander's. The reward is 1 where it is
        solved, or what the attribute `reward = "dense"` announces."""
        ...


@runtime_checkable
class Recovers(Protocol):
    """A driver of a robot that latches faults of its own, a reflex or a protective stop."""

    def recover(self) -> None:
        """A person says that all is well: clear them. It may take a second, and is called from another thread than the rest."""
        ...


def reach(channel: Channel) -> tuple[float, float]:
    """What a policy's actions -1 and 1 mean of a channel, in its unit (a velocity's: per second)."""
    if channel.kind == "velocity" or channel.step is not None:
        most = channel.step or channel.velocity
        return -most, most
    return channel.aim or (channel.low, channel.high)


def checked(driver: Driver, name: str) -> Driver:
    """The driver, if it says what its numbers mean. Raises RealrlError for one without a table of channels: it is not moved."""
    channels = tuple(getattr(driver, "channels", ()))
    if not channels or not all(isinstance(c, Channel) for c in channels):
        raise RealrlError(f"{name}: its driver has no table of channels with units and limits, so nothing can guard it; give it "
                          "`channels`, a realrl.robots.driver.Channel for each number that is sent")
    names = [c.name for c in channels]
    if len(set(names)) < len(names):
        raise RealrlError(f"{name}: two channels are called {max(names, key=names.count)!r}; give each a name of its own")
    missing = [what for what in ("read", "write", "hold", "brake", "park", "release", "close") if not callable(getattr(driver, what, None))]
    if missing or not getattr(driver, "state", ()):
        raise RealrlError(f"{name}: its driver lacks {', '.join(missing) or 'the names of its state'}; see realrl.robots.driver.Driver")
    return driver


def fault_in(reading: Reading, channels: int, state: int) -> str:
    """What is wrong with the form of a reading, "" where nothing is."""
    if np.shape(reading.measured) != (channels,) or np.shape(reading.state) != (state,):
        return f"a reading of {np.shape(reading.measured)} and {np.shape(reading.state)} numbers, must be {channels} and {state}"
    if not (np.isfinite(reading.measured).all() and np.isfinite(reading.state).all() and math.isfinite(reading.stamp)):
        return "a reading that is NaN or infinite"
    for name, (stamp, image) in reading.images.items():
        if not (math.isfinite(stamp) and isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,)):
            return f"a picture of {name} that is none: give (stamp in s, an array of uint8 [height, width, 3])"
    return ""
