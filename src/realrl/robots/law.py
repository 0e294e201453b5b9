"""The admittance law: how a wrench that is felt moves an arm.

    M e'' + D e' + K e = F,   e = x - x_d,   all diagonal, in the world's axes, about the tool's point

`Law` takes an implicit step of it once a millisecond, which no gain can make diverge, within limits of wrench and speed; it holds where
what comes in cannot be believed. Where its gains come from is `realrl.robots.admittance`'s affair, or a person's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from realrl.config import check
from realrl.robots.turns import rotation_vector, turned
from realrl.types import Array, RealrlError

AXES = 6
MASS = (1.0, 1.0, 1.0, 0.1, 0.1, 0.1)
"""Of the arm that is pretended, kg and kg m²."""


@dataclass(frozen=True)
class Gains:
    """Diagonals of M (kg, kg m²), D (N s/m, N m s) and K (N/m, N m/rad), each [6]: along x, y, z, then about them."""

    mass: Array
    damping: Array
    stiffness: Array

    def __post_init__(self) -> None:
        for name in ("mass", "damping", "stiffness"):
            object.__setattr__(self, name, _six(name, getattr(self, name), 0.0 if name == "stiffness" else 1e-9))

    def table(self) -> Array:
        """[6, 3]: mass, damping, stiffness of every axis."""
        return np.stack([self.mass, self.damping, self.stiffness], 1)


def _six(name: str, value: Array | Sequence[float], least: float) -> Array:
    """[6]. Raises RealrlError on anything else, and on numbers that are none or less than `least`."""
    numbers = np.asarray(value, np.float64)
    if numbers.shape != (AXES,) or not np.isfinite(numbers).all() or (numbers < least).any():
        raise RealrlError(f"admittance: {name} must be {AXES} finite positive numbers (x, y, z, about x, y, z), got {numbers}")
    return numbers


def critical(stiffness: Array | Sequence[float], mass: Array | Sequence[float] = MASS, ratio: float = 1.0) -> Gains:
    """Gains of a spring [6] with damping D = 2 ratio sqrt(K M)."""
    stiffness, mass = _six("stiffness", stiffness, 0.0), _six("mass", mass, 1e-9)
    return Gains(mass, np.maximum(2 * ratio * np.sqrt(stiffness * mass), 1e-3), stiffness)


@dataclass(frozen=True)
class LimitsConfig:
    """What a `Law` never exceeds."""

    force: float = 40.0
    """Of the wrench that is let in, by its norm, N."""
    torque: float = 4.0
    """The same of torque, N m."""
    speed: float = 0.25
    """Of the motion, by its norm, m/s."""
    turn: float = 1.0
    """The same, rad/s."""
    dead_force: float = 0.0
    """Force that counts as none, N; what is beyond it counts less that."""
    dead_torque: float = 0.0
    """The same of torque, N m."""
    stuck: int = 100
    """Identical wrenches in a row that make a sensor a dead one; 0 = never."""

    def __post_init__(self) -> None:
        check(self, force="(0, 1e4]", torque="(0, 1e3]", speed="(0, 10]", turn="(0, 100]", dead_force="[0, 100]", dead_torque="[0, 10]",
              stuck="[0, 1e6]")


class Law:
    """The law in discrete time. dt: seconds of a step. held: steps on which it stood still because what came in could not be believed.

    Its pose and twist are the commanded ones; nothing measured but the wrench comes in, so it cannot drift against itself."""

    def __init__(self, gains: Gains, limits: LimitsConfig | None = None, dt: float = 1e-3) -> None:
        if not 0 < dt <= 1:
            raise RealrlError(f"admittance: dt must be the seconds of a step, above 0 and at most 1, got {dt}")
        self.limits, self.dt, self.held = limits or LimitsConfig(), dt, 0
        self.gains = gains
        self.begin((0.0, 0.0, 0.0))

    @property
    def gains(self) -> Gains:
        """In force from the next step on."""
        return self._gains

    @gains.setter
    def gains(self, gains: Gains) -> None:
        self._gains = gains
        self._table = gains.table().tolist()

    def begin(self, position: Sequence[float], quaternion: Sequence[float] = (1.0, 0.0, 0.0, 0.0)) -> None:
        """Be here, at rest. position: m; quaternion: w first. Raises RealrlError where that is no pose."""
        place, facing = [float(x) for x in position], [float(x) for x in quaternion]
        size = math.sqrt(sum(x * x for x in facing))
        if (len(place), len(facing)) != (3, 4) or not math.isfinite(sum(place) + size) or size < 1e-6:
            raise RealrlError(f"admittance: begin needs a position [3], m, and a quaternion [4], w first, got {place} and {facing}")
        self.position, self.quaternion = place, facing if abs(size - 1) < 1e-9 else [x / size for x in facing]
        self._origin = self.quaternion
        self.twist = [0.0] * AXES
        self._last: tuple[float, ...] = ()
        self._same = 0

    @property
    def pose(self) -> list[float]:
        """Where it is [6]: position, m, and its turn since `begin` as a rotation vector in the world's axes, rad."""
        return self.seen(self.position, self.quaternion)

    def seen(self, position: Sequence[float], quaternion: Sequence[float] | None = None) -> list[float]:
        """A set point in the numbers of `pose`. They are small whichever way the tool points, where a rotation vector from the world's
        axes jumps by a whole turn for a tool that looks down."""
        return [*position, *(rotation_vector(quaternion, self._origin) if quaternion is not None else (0.0, 0.0, 0.0))]

    def step(self, wrench: Sequence[float], position: Sequence[float],
             quaternion: Sequence[float] | None = None) -> tuple[list[float], list[float]]:
        """Where to be one step on, (position, quaternion). wrench: what the surroundings do to the tool [6], N and N m, world's axes, at
        its point; position, quaternion: of the set point, the orientation of `begin` by default.

        v+ = (v + h/M (F - K e)) / (1 + h D/M + h² K/M): backward Euler, stable with any positive gains. With a wrench or a set point that
        is not finite, or a wrench that has not changed for `limits.stuck` steps, it holds.
        """
        goal = self._origin if quaternion is None else quaternion
        if not self._believed(wrench) or not math.isfinite(sum(position) + sum(goal)):
            self.held += 1
            self.twist = [0.0] * AXES
            return self.position, self.quaternion
        limits, h, old, q = self.limits, self.dt, self.twist, self.quaternion
        felt = saturated(wrench[:3], limits.force, limits.dead_force) + saturated(wrench[3:], limits.torque, limits.dead_torque)
        error = [self.position[i] - position[i] for i in range(3)] + rotation_vector(q, goal)
        new = [(old[i] + h / m * (felt[i] - k * error[i])) / (1 + h * d / m + h * h * k / m) for i, (m, d, k) in enumerate(self._table)]
        self.twist = saturated(new[:3], limits.speed) + saturated(new[3:], limits.turn)
        self.position = [self.position[i] + h * self.twist[i] for i in range(3)]
        self.quaternion = turned(q, [h * w for w in self.twist[3:]])
        return self.position, self.quaternion

    def _believed(self, wrench: Sequence[float]) -> bool:
        now = tuple(wrench)
        self._same = self._same + 1 if now == self._last else 0
        self._last = now
        return math.isfinite(sum(now)) and not 0 < self.limits.stuck <= self._same


def saturated(vector: Sequence[float], most: float, dead: float = 0.0) -> list[float]:
    """A vector [3] with its norm at most `most`, after `dead` has been taken off it."""
    x, y, z = vector
    size = math.sqrt(x * x + y * y + z * z)
    if size <= dead:
        return [0.0, 0.0, 0.0]
    scale = min(size - dead, most) / size
    return [x * scale, y * scale, z * scale]
