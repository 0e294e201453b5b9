"""The guard: the last word over every action before it reaches the robot."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import ArrayLike

from realrl.types import Array, Obs, RealrlError


class LimitGuard:
    """Keeps actions in a box and, if asked, limits how much they change from one step to the next.

    An action that is not finite (NaN, infinity) never passes: `hold` is sent instead, under the same limits, and counted in
    `held`. `changed` counts the actions that were altered in any way. One guard watches one robot; call `reset` between
    episodes.
    """

    def __init__(self, low: ArrayLike, high: ArrayLike, max_delta: ArrayLike | None = None, hold: ArrayLike | None = None) -> None:
        """low, high: [A]. max_delta: largest change a step, a number or [A], None for no limit. hold: [A] in the box, what makes
        the robot stay where it is; None for zeros brought into the box, right for velocity and delta control.

        Raises RealrlError on an empty or unbounded box, on another shape, a max_delta that is not positive, or a hold outside.
        """
        self.low, self.high = np.array(low, np.float32), np.array(high, np.float32)
        if self.low.ndim != 1 or self.low.shape != self.high.shape:
            raise RealrlError(f"guard: low {list(self.low.shape)} and high {list(self.high.shape)} must both be [A]")
        if not (np.isfinite(self.low).all() and np.isfinite(self.high).all() and (self.low <= self.high).all()):
            raise RealrlError(f"guard: low {self.low} and high {self.high} must be finite with low <= high")
        self.hold = np.clip(np.zeros_like(self.low), self.low, self.high) if hold is None else self._as_hold(hold)
        self.max_delta = None if max_delta is None else self._as_delta(max_delta)
        self.held = self.changed = 0
        self._last: Array | None = None

    def _as_hold(self, hold: ArrayLike) -> Array:
        still = np.array(hold, np.float32)
        if still.shape != self.low.shape or not ((still >= self.low) & (still <= self.high)).all():
            raise RealrlError(f"guard: hold {still} must be {len(self.low)} numbers between low {self.low} and high {self.high}")
        return still

    def _as_delta(self, max_delta: ArrayLike) -> Array:
        delta = np.array(max_delta, np.float32)
        if delta.shape not in ((), self.low.shape) or not (delta > 0).all():
            raise RealrlError(f"guard: max_delta {delta} must be a positive number or {len(self.low)} of them")
        return np.broadcast_to(delta, self.low.shape)

    def reset(self, last: Array | None = None) -> None:
        """Forget the last episode's action. last: [A], what the robot is doing now, so that the first change is limited too."""
        self._last = None if last is None else np.clip(np.asarray(last, np.float32), self.low, self.high)

    def __call__(self, obs: Obs, action: Array) -> Array:
        """action: [A] -> the action [A] float32 to send. Raises RealrlError on another shape."""
        asked = np.asarray(action, np.float32)
        if asked.shape != self.low.shape:
            raise RealrlError(f"guard: got an action of shape {list(asked.shape)}, this robot takes {list(self.low.shape)}")
        finite = bool(np.isfinite(asked).all())
        safe = np.clip(asked if finite else self.hold, self.low, self.high)
        if self.max_delta is not None and self._last is not None:
            safe = np.clip(safe, self._last - self.max_delta, self._last + self.max_delta)
        self.held += not finite
        self.changed += not np.array_equal(safe, asked)
        self._last = safe
        sent: Array = safe.copy()
        return sent


def box_guard(env: gymnasium.Env[Obs, Array]) -> LimitGuard:
    """A guard with the bounds of an environment's action space. Raises RealrlError when that is not a bounded [A] box."""
    space = env.action_space
    if not isinstance(space, Box):
        raise RealrlError(f"guard: needs a box of actions, the environment has {space}")
    return LimitGuard(space.low, space.high)
