"""The guard: the last word over every action before it reaches the robot."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import ArrayLike

from realrl.scene import GuardConfig
from realrl.types import Array, Obs, RealrlError


class LimitGuard:
    """Keeps actions in a box and, if asked, limits how much they change from one step to the next.

    What it returns is always a finite [A] float32 in the box, whatever it was given. An action that is not finite (NaN, infinity)
    never passes: `hold` is sent instead, under the same limits, and counted in `held`. `changed` counts the actions that were
    altered in any way. One guard watches one robot; call `reset` between episodes.
    """

    def __init__(self, low: ArrayLike, high: ArrayLike, max_delta: ArrayLike | None = None, hold: ArrayLike = "last") -> None:
        """low, high: [A]. max_delta: largest change a step, a number or [A], None for no limit. hold: "last" repeats what was sent
        last, or `reset`'s `last`, and where there is neither sends zeros; "zeros" always does (a stop under velocity and delta
        control, a jump under absolute control); [A] in the box is a pose of one's own. Zeros are brought into the box.

        Raises RealrlError on an empty or unbounded box, on another shape, a max_delta that is not positive, or a hold outside.
        """
        self.set_limits(low, high)
        self._max_delta = None if max_delta is None else self._as_delta(max_delta)
        self._repeats = isinstance(hold, str) and hold == "last"
        self._hold = np.zeros_like(self.low) if isinstance(hold, str) and hold in ("last", "zeros") else self._as_hold(hold)
        self.held = self.changed = 0
        self._last: Array | None = None

    @property
    def low(self) -> Array:
        """The lower limit [A]; read-only, see `set_limits`."""
        return self._box[0]

    @property
    def high(self) -> Array:
        """The upper limit [A]; read-only, see `set_limits`."""
        return self._box[1]

    def set_limits(self, low: ArrayLike, high: ArrayLike) -> None:
        """Another box from the next action on, even in flight: it wins over `max_delta`, so a narrower one takes effect at once.

        low, high: [A]. Raises RealrlError, and keeps the old box, where they are not finite, cross, or have another shape.
        """
        box = _numbers(low, "low"), _numbers(high, "high")
        if box[0].ndim != 1 or not len(box[0]) or box[0].shape != box[1].shape:
            raise RealrlError(f"guard: low {list(box[0].shape)} and high {list(box[1].shape)} must both be [A]")
        if hasattr(self, "_box") and box[0].shape != self.low.shape:
            raise RealrlError(f"guard: new limits of shape {list(box[0].shape)}, this robot takes {list(self.low.shape)}")
        if not (np.isfinite(box).all() and (box[0] <= box[1]).all()):
            raise RealrlError(f"guard: low {box[0].tolist()} and high {box[1].tolist()} must be finite with low <= high")
        self._box = box  # both at once, for a loop in another thread

    def _as_hold(self, hold: ArrayLike) -> Array:
        still = _numbers(hold, "hold")
        if still.shape != self.low.shape or not ((still >= self.low) & (still <= self.high)).all():
            raise RealrlError(f"guard: hold {still.tolist()} must be {len(self.low)} numbers between low {self.low.tolist()} and high "
                              f"{self.high.tolist()}")
        return still

    def _as_delta(self, max_delta: ArrayLike) -> Array:
        delta = _numbers(max_delta, "max_delta")
        if delta.shape not in ((), self.low.shape) or not (delta > 0).all():
            raise RealrlError(f"guard: max_delta {delta.tolist()} must be a positive number or {len(self.low)} of them")
        return np.broadcast_to(delta, self.low.shape)

    def reset(self, last: Array | None = None) -> None:
        """Forget the last episode's action. last: [A], what the robot is doing now, so that the first change is limited too.

        Raises RealrlError, and forgets nothing, where `last` is not finite (a joint encoder that dropped out) or has another shape.
        """
        now = None if last is None else _numbers(last, "last")
        if now is not None and (now.shape != self.low.shape or not np.isfinite(now).all()):
            got = now.tolist() if now.shape == self.low.shape else f"of shape {list(now.shape)}"
            raise RealrlError(f"guard: last is {got}, expected {len(self.low)} finite numbers: read the robot again before it moves")
        self._last = now

    def __call__(self, obs: Obs, action: Array) -> Array:
        """action: [A] -> the action [A] float32 to send. Raises RealrlError on another shape: then nothing may be sent."""
        asked, (low, high) = _numbers(action, "action"), self._box
        if asked.shape != low.shape:
            raise RealrlError(f"guard: got an action of shape {list(asked.shape)}, this robot takes {list(low.shape)}")
        finite = bool(np.isfinite(asked).all())
        last = None if self._last is None else np.clip(self._last, low, high)
        safe = asked if finite else last if self._repeats and last is not None else self._hold
        if self._max_delta is not None and last is not None:
            with np.errstate(over="ignore"):  # the edge of float32 is no limit
                safe = np.clip(safe, last - self._max_delta, last + self._max_delta)
        sent: Array = np.clip(safe, low, high)
        self.held += not finite
        self.changed += not np.array_equal(sent, asked)
        self._last = sent.copy()
        return sent


def _numbers(values: ArrayLike, what: str) -> Array:
    """A float32 copy nobody can change. Raises RealrlError on what no array can be made of."""
    try:
        with np.errstate(over="ignore"):  # too large for float32 is infinite, which every caller refuses
            copy = np.array(values, np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise RealrlError(f"guard: {what} is no array of numbers ({' '.join(str(error).split())})") from None
    copy.flags.writeable = False
    return copy


def box_guard(env: gymnasium.Env[Obs, Array], cfg: GuardConfig | None = None) -> LimitGuard:
    """A guard with the bounds of an environment's action space. Raises RealrlError when that is not a bounded [A] box."""
    cfg, space = cfg or GuardConfig(), env.action_space
    absolute = getattr(getattr(env, "task", None), "control", "relative") == "absolute"
    if not isinstance(space, Box):
        raise RealrlError(f"guard: needs a box of actions, the environment has {space}")
    hold = cfg.hold if cfg.hold != "auto" else "last" if absolute else "zeros"
    return LimitGuard(space.low, space.high, cfg.max_delta, hold)
