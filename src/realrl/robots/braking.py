"""Stopping in the least time under limits of acceleration and jerk, in closed form, for any number of channels at once.

Who can always say where braking would end can always keep a limit: go on as long as braking from where that leads stays inside, else
brake. Braking is three stretches of constant jerk: the acceleration goes to the peak of deceleration, stays there, comes back to zero
together with the speed. Its own tail is the same manoeuvre again, so that whoever begins it inside the limits can finish it at any
rate of ticks, however uneven.

All functions take arrays of any one shape: p place, v speed, a acceleration; A, J the largest acceleration and jerk, |a| <= A.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from realrl.types import Array


class Motion(NamedTuple):
    """Place, speed and acceleration."""

    p: Array
    v: Array
    a: Array


class Stop(NamedTuple):
    """How one stops. side: the sign of the speed to lose; t1, t2, t3: s of the three stretches; end, low, high: the place where one
    stands, and between which places one was on the way; fastest: the largest |v| on the way."""

    side: Array
    t1: Array
    t2: Array
    t3: Array
    end: Array
    low: Array
    high: Array
    fastest: Array


def advance(m: Motion, jerk: Array | float, t: Array | float) -> Motion:
    """After t seconds of constant jerk."""
    half = m.a + jerk * t * 0.5
    return Motion(m.p + t * (m.v + t * (m.a * 0.5 + jerk * t / 6)), m.v + half * t, m.a + jerk * t)


def stop(m: Motion, A: Array, J: Array) -> Stop:
    """How to stop from a motion in the least time."""
    released = m.v + m.a * np.abs(m.a) / (2 * J)  # the speed once the acceleration has gone back to zero
    side = np.where(released >= 0, 1.0, -1.0)
    v, a, over = side * m.v, side * m.a, side * released
    peak = np.minimum(np.sqrt(np.maximum(J * v + a * a / 2, 0.0)), A)
    t1, t3 = np.maximum(a + peak, 0.0) / J, peak / J
    t2 = np.where(peak >= A, np.maximum(v + a * a / (2 * J) - A * A / J, 0.0) / A, 0.0)
    one = advance(Motion(np.zeros_like(v), v, a), -J, t1)
    two = advance(one, 0.0, t2)
    gone = advance(two, J, t3).p
    turn = np.maximum(a - np.sqrt(np.maximum(a * a + 2 * J * v, 0.0)), 0.0) / J  # when it stops going backward, if it does
    back = np.where(v < 0, advance(Motion(np.zeros_like(v), v, a), -J, turn).p, 0.0)
    ahead = np.maximum(gone, 0.0)
    low, high = np.where(side > 0, back, -ahead), np.where(side > 0, ahead, -back)
    return Stop(side, t1, t2, t3, m.p + side * gone, m.p + low, m.p + high, np.maximum(np.abs(m.v), over))


def brake(m: Motion, A: Array, J: Array, t: Array | float, plan: Stop | None = None) -> Motion:
    """After t seconds of stopping. plan: how, where that is known already."""
    plan = plan or stop(m, A, J)
    left = np.asarray(t, np.float64)
    now = m
    for length, jerk in ((plan.t1, -plan.side * J), (plan.t2, 0.0 * J), (plan.t3, plan.side * J)):
        part = np.minimum(left, length)
        now, left = advance(now, jerk, part), left - part
    still = left > 0  # rounding leaves nothing behind once one stands
    return Motion(np.where(still, plan.end, now.p), np.where(still, 0.0, now.v), np.where(still, 0.0, np.clip(now.a, -A, A)))


def chase(m: Motion, A: Array, J: Array, dt: float) -> Array:
    """The constant jerk [C] over the next dt after which stopping would end at place 0: the quickest way there that can still stop.

    m: [C], relative to what is chased, place and speed.
    """
    least, most = np.maximum(-J, (-A - m.a) / dt), np.minimum(J, (A - m.a) / dt)
    wide, row = Motion(*(x[:, None] for x in m)), np.arange(len(m.p))
    for _ in range(2):  # twice closer to where the end, which grows with the jerk, is zero
        jerks = least[:, None] + (most - least)[:, None] * _GRID
        ends = stop(advance(wide, jerks, dt), A[:, None], J[:, None]).end
        upper = np.where(ends[:, -1] < 0, len(_GRID) - 1, np.maximum((ends >= 0).argmax(1), 1))
        least, most = jerks[row, upper - 1], jerks[row, upper]
    e0, e1 = ends[row, upper - 1], ends[row, upper]
    share = np.clip(-e0 / np.where(e1 > e0, e1 - e0, 1.0), 0.0, 1.0)
    chosen = least + share * (most - least)
    linear = -(np.stack([m.p / dt**3, m.v / dt**2, m.a / dt]) * _GAINS).sum(0)  # ends at rest in a few ticks, from nearby
    near = (np.abs(linear) <= J) & (np.abs(m.p) < J * dt**3) & (np.abs(m.v) < 2 * J * dt**2) & (np.abs(m.a + linear * dt) <= A)
    nearest: Array = np.where(near, linear, chosen)
    return nearest


def _gains(pole: float) -> Array:
    """[3, 1] of place, speed and acceleration in ticks, which shrink all three by `pole` a tick (Ackermann's formula)."""
    step, push = np.array([[1, 1, 0.5], [0, 1, 1], [0, 0, 1]]), np.array([1 / 6, 1 / 2, 1])
    reach = np.stack([push, step @ push, step @ step @ push], 1)
    wanted = np.linalg.matrix_power(step - pole * np.eye(3), 3)
    gains: Array = (np.linalg.inv(reach)[-1] @ wanted)[:, None]
    return gains


_GRID, _GAINS = np.linspace(0.0, 1.0, 13), _gains(0.3)


def blend(one: Motion, other: Motion, share: Array | float) -> Motion:
    """Between two motions: share 0 is the first."""
    return Motion(*(x + share * (y - x) for x, y in zip(one, other, strict=True)))


def top_speed(m: Motion, jerk: Array, dt: float) -> Array:
    """The largest |v| during dt of constant jerk."""
    then = m.v + dt * (m.a + jerk * dt * 0.5)
    turn = np.where(jerk != 0, -m.a / np.where(jerk != 0, jerk, 1.0), -1.0)
    between = np.where((turn > 0) & (turn < dt), m.v + m.a * turn * 0.5, 0.0)
    top: Array = np.maximum(np.maximum(np.abs(m.v), np.abs(then)), np.abs(between))
    return top
