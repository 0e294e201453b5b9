"""The guard that counts: between what is asked for and a robot, in its own units and with measured time.

Whatever it is given, what it sends stays inside the limits of every channel in place, speed, acceleration and jerk, and, where the robot
knows where its hand is, inside a workspace. It never sends what it could not brake from: see `realrl.robots.braking`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from realrl.robots.braking import Motion, advance, blend, brake, chase, stop, top_speed
from realrl.robots.driver import Channel
from realrl.types import Array, RealrlError

SLACK = 1e-9  # of a limit; rounding
OUTSIDE = 0.01  # of a channel's range: so far beyond a limit may a robot stand and still be started, from the limit
NEAR = 0.1  # of a channel's range: so far from the last command it is still held by that
SNAP, EASED = 0.01, 0.95  # of a tick's jerk: so near it is there; of the limit of jerk: what is used, the rest is for snapping
PAUSE = 3.0  # periods: after a longer one the robot has come to rest at the last command
_SHARES = np.linspace(1.0, 0.0, 17)

Tip = Callable[[Array], Array]
"""Where the hand is [3] m when the channels are at [C]."""


class Sent(NamedTuple):
    """command: [C] for the driver; bits: [C] bool, where a limit changed what was asked; workspace: whether the box did."""

    command: Array
    bits: Array
    workspace: bool


class MotionGuard:
    """Follows what is asked for as quickly as the limits let it. One guard watches one robot; `reset` begins it."""

    def __init__(self, channels: Sequence[Channel], period: float, *, tip: Tip | None = None,
                 box: tuple[Array, Array] | None = None) -> None:
        """period: s from tick to tick. tip, box: the workspace, low and high corner [3] m. Raises RealrlError for a box without a tip."""
        if box is not None and tip is None:
            raise RealrlError("workspace: this robot does not say where its hand is (its driver has no `tip`), so no box can be kept; "
                              "leave the workspace out, and give its joints narrower limits")
        self.channels, self.period = tuple(channels), period
        columns = [[getattr(c, name) for c in channels] for name in ("low", "high", "velocity", "acceleration", "jerk")]
        self.low, self.high, self.velocity, self.acceleration, self.jerk = (np.array(x, np.float64) for x in columns)
        self.jerk = self.jerk * EASED
        self._speeds = np.array([c.kind == "velocity" for c in channels])
        self._deltas = np.array([c.kind == "delta" for c in channels])
        self._tip, self._box = tip, box
        self.now: Motion | None = None

    @property
    def place(self) -> Array:
        """[C], where the channels have been commanded to."""
        assert self.now is not None, "reset the guard first"
        return self.now.p

    @property
    def still(self) -> bool:
        """Whether what is commanded stands."""
        if self.now is None:
            return True
        return bool((np.abs(self.now.v) < 1e-6 * self.velocity).all() and (np.abs(self.now.a) < 1e-4 * self.acceleration).all())

    def reset(self, measured: Array) -> None:
        """Begin from where the robot is [C], at rest. Raises RealrlError, see `fits`."""
        at = self.fits(measured)
        self.now = Motion(at, np.zeros_like(at), np.zeros_like(at))

    def near(self, measured: Array) -> bool:
        """Whether the robot is near its last command: a soft arm hangs a little behind, and to go to where it hangs would be a jump."""
        return self.now is not None and bool((np.abs(self.fits(measured) - self.now.p) <= NEAR * (self.high - self.low)).all())

    def fits(self, measured: Array) -> Array:
        """Where the robot is [C], inside its limits. Raises RealrlError where that is not finite, or outside the limits."""
        at = np.array(measured, np.float64)
        if at.shape != self.low.shape or not np.isfinite(at).all():
            raise RealrlError(f"the robot says it is at {at.tolist()}, expected {len(self.low)} finite numbers: read it again")
        off = np.maximum(self.low - at, at - self.high)
        worst = int((off / (self.high - self.low)).argmax())
        if off[worst] > OUTSIDE * (self.high - self.low)[worst]:
            c = self.channels[worst]
            raise RealrlError(f"{c.name} is at {at[worst]:.4g} {c.unit}, outside its limits {c.low:g} to {c.high:g}: move it inside by "
                              "hand, or mend the table of limits")
        if not self.inside(at):
            raise RealrlError(f"the hand is at {self.where(at)}, outside the workspace: move it inside by hand, or mend the workspace")
        return np.clip(at, self.low, self.high)

    def observe(self, measured: Array) -> None:
        """Where channels that are sent velocities have got to [C]: what is commanded says it of the others alone."""
        if self.now is not None and self._speeds.any():
            self.now = self.now._replace(p=np.where(self._speeds, np.clip(measured, self.low, self.high), self.now.p))

    def missed(self, command: Array) -> None:
        """What was not carried out of a command [C]: steps that are not repeated have not been gone."""
        if self.now is not None and self._deltas.any():
            self.now = self.now._replace(p=np.where(self._deltas, self.now.p - command, self.now.p))

    def brake(self, dt: float) -> Sent:
        """What to send after dt seconds of stopping; when it stands, the last command."""
        now, dt = self._begin(dt)
        nothing = np.zeros(len(self.low), bool)
        return self._send(now, brake(now, self.acceleration, self.jerk, dt), dt, nothing, False)

    def follow(self, place: Array, rate: Array, dt: float, goal: Array | None = None) -> Sent:
        """What to send after dt seconds of following a reference that will then be at place [C], moving with rate [C] to goal [C].

        It is followed without lag as long as one could still stop at the goal. Of a channel of velocities only the rate counts. What is
        not finite is not followed: the guard brakes.
        """
        goal = place if goal is None else goal
        if not (np.isfinite(place).all() and np.isfinite(rate).all() and np.isfinite(goal).all()):
            return self.brake(dt)
        now, dt = self._begin(dt)
        if dt <= 0 or (self.still and not rate.any() and np.array_equal(place, now.p)):
            return self._send(now, now, dt, np.zeros(len(self.low), bool), False)
        A, J = self.acceleration, self.jerk
        span = self.high - self.low
        place, goal = (np.clip(x, self.low - span, self.high + span) for x in (place, goal))  # a place of 1e300 has no distance
        rate = np.clip(rate, -2 * self.velocity, 2 * self.velocity)
        plan = stop(now, A, J)
        safe = brake(now, A, J, dt, plan)
        wanted, jerk = self._wanted(now, place, rate, goal, dt)
        share = self._share(now, plan.fastest, safe, wanted, jerk, dt)
        bits = share < 1
        then = blend(safe, wanted, share)
        boxed = self._box is not None and not self._stays(then)
        if boxed:
            then = self._boxed(safe, then)
        return self._send(now, then, dt, bits, boxed)

    # ---- one tick

    def _begin(self, dt: float) -> tuple[Motion, float]:
        assert self.now is not None, "reset the guard first"
        if not np.isfinite(dt) or dt <= 0:  # a clock that stands or jumps back
            return self.now, 0.0
        if dt > PAUSE * self.period:  # nothing was sent meanwhile: the robot stands at the last command
            zero = np.zeros_like(self.now.p)
            return Motion(self.now.p, zero, zero), self.period
        return self.now, min(dt, 1.5 * self.period)

    def _wanted(self, now: Motion, place: Array, rate: Array, goal: Array, dt: float) -> tuple[Motion, Array]:
        """Where the quickest way to the reference leads within the limits of acceleration and jerk, and its jerk [C] where it is one."""
        A, J, n = self.acceleration, self.jerk, len(place)
        apart = Motion(now.p - (place - rate * dt), now.v - rate, now.a)  # as seen from the reference
        both = Motion(*(np.concatenate(x) for x in zip(apart, (now.p - goal, now.v, now.a), strict=True)))
        jerks = chase(both, np.tile(A, 2), np.tile(J, 2), dt)
        jerk = np.where(goal >= now.p, np.minimum(jerks[:n], jerks[n:]), np.maximum(jerks[:n], jerks[n:]))
        if self._speeds.any():
            jerk = np.where(self._speeds, _to_speed(now, rate, A, J, dt), jerk)
        tiny = SNAP * J * dt
        landing = (np.abs(apart.p) < tiny * dt * dt) & (np.abs(apart.v) < tiny * dt) & (np.abs(apart.a) < tiny)
        landing &= (jerk == jerks[:n]) & ~self._speeds
        wanted = advance(now, jerk, dt)
        if landing.any():  # it is there but for what a tick's jerk makes a hundred times over
            wanted = Motion(*(np.where(landing, x, y) for x, y in zip((place, rate, 0.0 * rate), wanted, strict=True)))
        return wanted, np.where(landing, 0.0, jerk)

    def _share(self, now: Motion, calm: Array, safe: Motion, wanted: Motion, jerk: Array, dt: float) -> Array:
        """[C], how much of what is wanted, beside braking, leads to where braking still stays inside. calm: the top speed of braking."""
        peak = np.maximum(top_speed(now, jerk, dt), np.abs(wanted.v))
        tall = Motion(*(x[:, None] for x in wanted))
        fine = self._viable(tall, peak[:, None])
        if fine.all():
            return np.ones(len(peak))
        shares = _SHARES
        fine = self._viable(blend(Motion(*(x[:, None] for x in safe)), tall, shares),
                            calm[:, None] + shares * np.maximum(peak - calm, 0.0)[:, None])
        fine[:, -1] = True  # braking itself
        share: Array = shares[fine.argmax(1)]
        return share

    def _viable(self, m: Motion, peak: Array) -> Array:
        """[C, N] whether motions keep to the limits, and braking from them does. peak: [C, N], the fastest on the way there."""
        A, V = self.acceleration[:, None], self.velocity[:, None] * (1 + SLACK)
        plan = stop(m, A, self.jerk[:, None])
        room = SLACK * (self.high - self.low)[:, None]
        inside = (plan.low >= self.low[:, None] - room) & (plan.high <= self.high[:, None] + room)
        fine: Array = inside & (np.abs(m.a) <= A * (1 + SLACK)) & (plan.fastest <= V) & (peak <= V)
        return fine

    def _send(self, before: Motion, then: Motion, dt: float, bits: Array, boxed: bool) -> Sent:
        self.now = Motion(np.clip(then.p, self.low, self.high), then.v, then.a)
        moved = self.now.p - before.p
        command = np.where(self._deltas, moved, self.now.p)
        speed = np.clip(moved / dt, -self.velocity, self.velocity) if dt > 0 else np.zeros_like(moved)
        return Sent(np.where(self._speeds, speed, command), bits, boxed)

    # ---- the workspace

    def where(self, at: Array) -> list[float]:
        """Where the hand is [3] m when the channels are at [C], for people."""
        assert self._tip is not None
        return [round(float(x), 4) for x in self._tip(at)]

    def inside(self, at: Array) -> bool:
        """Whether the hand is in the workspace when the channels are at [C]; everywhere, where there is none."""
        if self._tip is None or self._box is None:
            return True
        tip = np.asarray(self._tip(at), np.float64)
        return tip.shape == (3,) and bool((tip >= self._box[0]).all() and (tip <= self._box[1]).all())

    def _stays(self, m: Motion) -> bool:
        """Whether the hand stays in the box from here to where braking ends, looked at in eight places on the way."""
        plan = stop(m, self.acceleration, self.jerk)
        lasts = float((plan.t1 + plan.t2 + plan.t3).max())
        return all(self.inside(brake(m, self.acceleration, self.jerk, lasts * i / 8).p) for i in range(9 if lasts > 0 else 1))

    def _boxed(self, safe: Motion, wanted: Motion) -> Motion:
        """As much of what is wanted as keeps the hand in the box: all channels together, so that it goes the same way."""
        low, high = 0.0, 1.0
        for _ in range(6):
            middle = (low + high) / 2
            low, high = (middle, high) if self._stays(blend(safe, wanted, middle)) else (low, middle)
        return blend(safe, wanted, low)


def _to_speed(now: Motion, rate: Array, A: Array, J: Array, dt: float) -> Array:
    """The constant jerk [C] over dt after which letting go of the acceleration ends at speed rate."""
    least, most = np.maximum(-J, (-A - now.a) / dt), np.minimum(J, (A - now.a) / dt)
    jerks = least[:, None] + (most - least)[:, None] * np.linspace(0.0, 1.0, 33)
    a = now.a[:, None] + jerks * dt
    ends = now.v[:, None] + dt * (now.a[:, None] + a) / 2 + a * np.abs(a) / (2 * J[:, None])
    chosen: Array = jerks[np.arange(len(rate)), np.abs(ends - rate[:, None]).argmin(1)]
    return chosen
