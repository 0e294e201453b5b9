"""A compliant arm: the admittance law, and a residual on its gains that is fitted while it works (arXiv 2310.10509).

    M e'' + D e' + K e = F,   e = x - x_d,   all diagonal, in the world's axes, about the tool's point

`Law` turns a measured wrench into motion, once a millisecond, with an implicit step that no gain can make diverge. `Tuner` looks at the
newest second of that and chooses gains anew twice a second. Its bounds are the method: a replayed force does not react, so the fit alone
would always rather have a stiffer spring.

    base = critical([200.0] * 3 + [10.0] * 3)
    law, tuner = Law(base), Tuner(beside=True)
    law.begin(position, quaternion)
    for i in itertools.count():  # once a millisecond
        wrench = read_wrench()
        move(*law.step(wrench, goal, facing))
        if i % 8 == 0 and tuner.see(law.pose, law.twist, wrench, law.seen(goal, facing), base):
            law.gains = tuner.gains(base)

A guard on force and motion belongs outside of it (`realrl.robots.motion`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from typing import Literal

import numpy as np

from realrl.config import OutOfBounds, check
from realrl.robots.law import AXES, MASS, Gains, Law, LimitsConfig, critical, saturated
from realrl.types import Array

__all__ = ["AXES", "LEAST", "MASS", "MOST", "Gains", "Law", "LimitsConfig", "Mode", "Tuner", "TunerConfig", "Window", "critical", "fit",
           "saturated"]

BEFORE, SHARE, SEEN = 2, 0.7, np.array([1e-4] * 3 + [1e-3] * 3)
"""Samples before contact that belong to it; an axis's share of the force, above which it is no friction of what slides; ways below which
noise alone makes a slope, m and rad."""
FEELS, FELT = np.array([2.0, 2.0, 2.0, 0.1, 0.1, 0.1]), 5
"""What counts as contact, N and N m, and how many samples of it: noise and a bias that drifts are none."""

Mode = Literal["fit", "rule", "free"]
Solved = tuple[Array, Array, Array, Array]


@dataclass(frozen=True)
class TunerConfig:
    """What bounds a fitted gain, and how it is fitted."""

    mode: Mode = "fit"
    """fit: within bounds; rule: no fit, damping as the stability rule has it alone; free: the fit without bounds."""
    every: float = 0.5
    """Seconds between two fits."""
    window: float = 1.0
    """Seconds that a fit looks back."""
    dt: float = 0.008
    """Seconds between two samples of it."""
    delay: float = 0.008
    """Of the sensor, s."""
    lag: float = 0.020
    """Of the arm behind the law, s: with the sensor's delay, what makes a stiff contact unstable."""
    share: float = 0.7
    """Damping is at least this times delay and lag times the stiffness of what is touched."""
    margin: float = 1.1
    """And at least this times the smallest one that is stable, for the mass in force: with short delays, or a large mass, that is more."""
    damping: float = 450.0
    """It never grows beyond this, N s/m, or what the policy asks for: more is not for every arm's own loop."""
    turn_damping: float = 30.0
    """The same about an axis, N m s."""
    ratio: float = 0.7
    """Least damping ratio."""
    force: float = 10.0
    """A spring pulls with at most this, N: K <= force / (x_d - x)."""
    torque: float = 1.0
    """The same about an axis, N m."""
    slow: float = 3.0
    """Where damping had to grow, stiffness grows to at least damping over this, s, as far as the pull allows."""
    change: float = 0.5
    """A fit changes a gain by at most this share of it; the rules for force and damping may ask for more."""
    prior: float = 1.0
    """Weight of (log u - log u_0)²."""
    speed_weight: float = 0.01
    """Weight of the squared velocity beside the squared position error, s²."""
    lasting: bool = False
    """Whether what was hard stays so for as long as contact lasts: what gives way seems the softer the farther it goes along."""
    expected: float = 0.0
    """Stiffness of a contact as it is believed before the first, along x, y and z, N/m: that one is damped for it; 0 = by the policy."""

    def __post_init__(self) -> None:
        check(self, every="[0.01, 100]", window="[0.05, 100]", dt="(0, 1]", delay="[0, 1]", lag="[0, 1]", share="[0, 10]", margin="[0, 10]",
              damping="[2, 1e5]", turn_damping="[0.1, 1e4]", ratio="[0, 100]", force="(0, 1e4]", torque="(0, 1e3]", slow="(0, 1e6]",
              change="(0, 1)", prior="[0, 1e6]", speed_weight="[0, 1e6]", expected="[0, 1e6]")
        if self.every < self.dt:
            raise OutOfBounds(TunerConfig, "every", f"must be at least dt, got {self.every} and {self.dt}")
        if self.window < max(SHORTEST * self.dt, self.delay + self.dt):
            raise OutOfBounds(TunerConfig, "window", f"must hold {SHORTEST} samples and the delay, got {self.window} s of {self.dt} s each")


SHORTEST, NONE = 5, 1e-9
"""Samples of a window, at least; stiffness that has a logarithm and is none."""
LEAST = np.array([[0.3, 2.0, 10.0]] * 3 + [[0.03, 0.1, 1.0]] * 3)
MOST = np.array([[10.0, 450.0, 2000.0]] * 3 + [[1.0, 30.0, 100.0]] * 3)
"""What no gain falls below or rises above, [6, 3]: mass, damping (see `TunerConfig`), stiffness; without bounds a hundred times further."""


def limits(base: Array, cfg: TunerConfig) -> tuple[Array, Array]:
    """(least, most), each [6, 3], of all gains: `LEAST` and `MOST`, or the policy's own [6, 3] where those lie beyond; no spring stays
    none."""
    most = MOST.copy()
    most[:, 1] = [cfg.damping] * 3 + [cfg.turn_damping] * 3
    return np.minimum(LEAST, base), np.where(base > 0, np.maximum(most, base), 0.0)


@dataclass
class Window:
    """Samples of a moving arm. pose, goal: [T, 6], m and rad (rotation vectors); twist, wrench: [T, 6]."""

    pose: Array
    twist: Array
    wrench: Array
    goal: Array

    @property
    def sound(self) -> bool:
        """Whether every number is finite and none is absurd."""
        return all(np.isfinite(x).all() and np.abs(x).max(initial=0.0) < 1e6 for x in (self.pose, self.twist, self.wrench, self.goal))


def touched(window: Window, cfg: TunerConfig) -> Array:
    """How stiff the surroundings and the arm together are along each axis [6], N/m and N m/rad; 0 where nothing was touched, or where force
    and way hardly change.

    The most, over every time that contact lasted, of how much force changed over how far the arm went: extremes need not be of the same
    moment, and an arm that bounces is out of step with what it feels. The arm lags what is commanded; the sensor tells late.
    """
    from scipy.signal import lfilter
    share, late = cfg.dt / (cfg.lag + cfg.dt), round(cfg.delay / cfg.dt)
    arm, _ = lfilter([share], [1.0, share - 1.0], window.pose, axis=0, zi=(1 - share) * window.pose[:1])
    pose, felt = arm[:max(len(arm) - late, 0)], window.wrench[late:]
    out = np.zeros(AXES)
    for axis in np.flatnonzero(_felt(window)).tolist():
        edge = np.flatnonzero(np.diff(np.abs(felt[:, axis]) > FEELS[axis], prepend=False, append=False))
        for begin, end in edge.reshape(-1, 2).tolist():
            # the way into it counts, too
            way, force = (float(np.ptp(x[max(begin - BEFORE, 0):end, axis])) for x in (pose, felt))
            peak = felt[begin + int(np.abs(felt[begin:end, axis]).argmax()), 3 * (axis // 3):][:3]
            if way > SEEN[axis] and abs(peak[axis % 3]) > SHARE * np.linalg.norm(peak):
                out[axis] = max(out[axis], (force - FEELS[axis] / 4) / way)
    return np.minimum(out, 1e5)


def _felt(window: Window) -> Array:  # along which axes [6] there was contact
    return np.asarray((np.abs(window.wrench) > FEELS).sum(0) >= FELT)


def begun(window: Window) -> Array:
    """Along which axes [6] contact began within a window: after `FELT` samples of less than half of what counts as one."""
    out = np.zeros(AXES, bool)
    for axis in np.flatnonzero(_felt(window)).tolist():
        force = np.abs(window.wrench[:, axis])
        free = np.convolve(force < FEELS[axis] / 2, np.ones(FELT), "valid") == FELT
        out[axis] = free.any() and bool((force[int(free.argmax()) + FELT:] > FEELS[axis]).any())
    return out


@lru_cache(256)
def needed(stiffness: float, mass: float, cfg: TunerConfig) -> float:
    """Damping that keeps a contact of a stiffness from bouncing, N s/m (or N m s): share (delay + lag) k, or a margin more than the least
    that is stable at all, which for large masses and soft contacts is (delay + lag) k itself."""
    least = least_stable(stiffness, mass, cfg.delay, cfg.lag)
    return max(cfg.share * (cfg.delay + cfg.lag) * stiffness, cfg.margin * least)


def least_stable(stiffness: float, mass: float, delay: float, lag: float) -> float:
    """The damping at which M s² + D s + k exp(-s delay) / (1 + s lag) has its roots on the imaginary axis, k the contact's stiffness: with
    less the arm bounces on it ever higher. The arm's own spring, which only helps, is left out."""
    if stiffness <= 0 or delay + lag <= 0:
        return 0.0
    low, high = 0.0, math.sqrt(stiffness / mass)  # the frequency, at which the real part is 0
    for _ in range(40):
        w = (low + high) / 2
        real = (math.cos(w * delay) - w * lag * math.sin(w * delay)) / (1 + (w * lag) ** 2)
        low, high = (w, high) if stiffness * real > mass * w * w else (low, w)
    return stiffness * (math.sin(high * delay) + high * lag * math.cos(high * delay)) / (high * (1 + (high * lag) ** 2))


def stable_damping(window: Window, cfg: TunerConfig, mass: Array | Sequence[float] = MASS) -> Array:
    """What is `needed` [6] on what a window touched, by an arm of a mass [6]."""
    return np.array([needed(float(k), float(m), cfg) for k, m in zip(touched(window, cfg), mass, strict=True)])


def bounds(window: Window, base: Array, now: Array, cfg: TunerConfig) -> tuple[Array, Array]:
    """(least, most), each [6, 3], of the next gains. base: u_0; now: the gains in force; both [6, 3].

    The spring's pull and the damping that stays stable win over how much a fit may change, stability over everything.
    """
    least, most = limits(base, cfg)
    if cfg.mode == "free":
        return np.minimum(LEAST / 100, least), most * 100
    low, high = np.maximum(least, now * (1 - cfg.change)), np.minimum(most, now * (1 + cfg.change))
    high[:, 2] = np.minimum(high[:, 2], stiffest(window, cfg))
    high = np.maximum(high, np.minimum(least, most))
    low[:, 1] = np.minimum(np.maximum(low[:, 1], stable_damping(window, cfg, high[:, 0])), most[:, 1])
    high[:, 1] = np.maximum(high[:, 1], low[:, 1])
    return np.minimum(low, high), high


def projected(gains: Array, low: Array, high: Array, most: Array, cfg: TunerConfig) -> Array:
    """The nearest gains [6, 3] that keep to their bounds, and whose damping has the least ratio as far as the highest damping there is,
    most [6]."""
    out = np.clip(gains, low, high)
    if cfg.mode != "free":
        out[:, 1] = np.clip(np.maximum(out[:, 1], 2 * cfg.ratio * np.sqrt(out[:, 0] * out[:, 2])), low[:, 1], most)
    return out


def replay(gains: Array, start: Array, force: Array, goal: Array, dt: float) -> Array:
    """Positions [T] of one axis under the law with gains [3] and forces [T] that do not react, from start = (x, v). The law's own step, as
    a filter of second order: den x+ = (2 + h D/M) x - x- + h²/M (F + K x_d)."""
    from scipy.signal import lfilter
    m, d, k = gains
    den = 1 + dt * d / m + dt * dt * k / m
    b, a = [dt * dt / m / den], [1.0, -(2 + dt * d / m) / den, 1 / den]
    before = start[0] - dt * start[1]
    out, _ = lfilter(b, a, force + k * goal, zi=[-a[1] * start[0] - a[2] * before, -a[2] * start[0]])
    return np.asarray(out)


def slopes(gains: Array, moved: Array, error: Array, dt: float) -> Array:
    """How a replay's positions change [3, T] with log-gains: the same filter, of what each gain multiplies. moved: the way since the sample
    before, from one before the first on [T + 1]; error: to the goal [T]."""
    from scipy.signal import lfilter
    m, d, k = gains
    pushed, whole = np.stack([m * (moved[:-1] - moved[1:]), -d * dt * moved[1:], -k * dt * dt * error]), m + dt * d + dt * dt * k
    return np.asarray(lfilter([1 / whole], [1.0, -(2 * m + dt * d) / whole, m / whole], pushed))


def fit(window: Window, base: Array, now: Array, cfg: TunerConfig) -> Array:
    """New gains [6, 3] from the newest window: the least position and velocity errors of the replay over log-gains, near those of the
    policy. base: u_0; now: those in force; both [6, 3]. Axes on which nothing was felt stay. Raises ArithmeticError where it fails."""
    if not window.sound:
        raise ArithmeticError("a window with numbers that are none")
    low, high = bounds(window, base, now, cfg)
    most = limits(base, cfg)[1][:, 1]
    if cfg.mode == "rule":
        return np.stack([base[:, 0], np.minimum(np.maximum(base[:, 1], low[:, 1]), most), base[:, 2]], 1)
    found = now.copy()
    for axis in np.flatnonzero(_felt(window)).tolist():
        u0, first, least, highest = (np.maximum(x[axis], NONE) for x in (base, now, low, high))
        found[axis] = _axis(window, axis, u0, first, least, highest, cfg)
    out = projected(found, low, high, most, cfg)
    if not np.isfinite(out).all():
        raise ArithmeticError("the fit found no gains")
    return out


def _axis(window: Window, axis: int, base: Array, now: Array, low: Array, high: Array, cfg: TunerConfig) -> Array:
    from scipy.optimize import minimize
    force, goal, start = window.wrench[:, axis], window.goal[:, axis], np.array([window.pose[0, axis], window.twist[0, axis]])
    scale = max(float(np.mean((window.pose[:, axis] - goal) ** 2)), 1e-10)
    at = np.log(base)

    def cost(u: Array) -> tuple[float, Array]:
        gains, off = np.exp(u), u - at
        path = replay(gains, start, force, goal, cfg.dt)
        moved, error = np.diff(path, prepend=(start[0] - cfg.dt * start[1], start[0])), path - goal
        fast = cfg.speed_weight / cfg.dt**2 * moved[1:]  # what a slope of the speeds adds, summed by parts
        pulled = slopes(gains, moved, error, cfg.dt) @ (error + fast - np.append(fast[1:], 0.0))
        paid = (error @ error + fast @ moved[1:]) / len(path) / scale + cfg.prior * off @ off
        return float(paid), 2 * (pulled / len(path) / scale + cfg.prior * off)

    slope = np.array([-0.5, 1.0, -0.5])
    damped = {"type": "ineq", "fun": lambda u: slope @ u - math.log(2 * cfg.ratio), "jac": lambda u: slope}
    first = np.log(np.clip(now, low, high))
    done = minimize(cost, first, jac=True, method="SLSQP", bounds=np.log(np.stack([low, high], 1)), options={"maxiter": 12, "ftol": 1e-4},
                    constraints=() if cfg.mode == "free" or low[1] >= 2 * cfg.ratio * math.sqrt(high[0] * high[2]) else damped)
    if not np.isfinite(done.x).all() or not done.fun <= cost(first)[0] * 1.5:
        raise ArithmeticError(f"axis {axis}: {done.message}")
    return np.asarray(np.exp(done.x))


@dataclass
class Tuner:
    """The residual of an arm at work: u = u_0 exp(du), where u_0 are the gains that a policy asks for and du lasts.

    beside: fit in a second thread, as a real arm must; otherwise in turns with the law, which repeats to the bit. fits, failed, late:
    counts; with a failed or late one the last good residual stays. trouble: why the last one failed."""

    cfg: TunerConfig = field(default_factory=TunerConfig)
    beside: bool = False

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(1) if self.beside else None
        if self.beside:
            for name in ("scipy.optimize", "scipy.signal"):  # now: on a busy machine they take as long as ten fits
                import_module(name)
        self.begin()

    def begin(self) -> None:
        """A new trial: no residual yet."""
        self.fits = self.failed = self.late = 0
        self.trouble = ""
        self.residual = np.zeros((AXES, 3))
        self._least: Array | None = None  # damping [6] that what was or will be touched asks for, whatever stiffness comes
        self._pull = np.full(AXES, np.inf)  # stiffness [6] that pulls no harder than it may, whatever a policy asks for
        self._stiff = [0.0] * AXES  # in force
        self._rows: deque[Array] = deque(maxlen=round(self.cfg.window / self.cfg.dt))
        self._since = 0
        self._running: Future[Solved] | None = None

    @property
    def _bounded(self) -> bool:  # not before there is something to bound
        return self.cfg.mode == "fit" and bool(self.fits or self.cfg.expected)

    def gains(self, base: Gains) -> Gains:
        """What is in force where a policy asks for `base`."""
        cfg, table = self.cfg, base.table() * np.exp(self.residual)
        least, most = limits(base.table(), cfg)
        if self._least is None:
            self._least = np.array([needed(cfg.expected, float(m), cfg) for m in base.mass[:3]] + [0.0] * 3)
        damping = np.minimum(self._least, most[:, 1])
        if self._bounded:
            most[:, 2] = np.minimum(most[:, 2], np.maximum(self._pull, least[:, 2]))
            table[:, 2] = np.maximum(table[:, 2], np.minimum(most[:, 2], damping / cfg.slow))
            low = np.stack([least[:, 0], np.maximum(least[:, 1], damping), least[:, 2]], 1)
            table = projected(table, low, most, most[:, 1], cfg)
        elif cfg.mode == "rule":
            table[:, 1] = np.maximum(base.damping, damping)
        self._stiff = table[:, 2].tolist()
        return Gains(*table.T)

    def see(self, pose: Sequence[float], twist: Sequence[float], wrench: Sequence[float], goal: Sequence[float], base: Gains) -> bool:
        """One sample, every `cfg.dt` seconds: pose and goal [6] (m, rotation vectors), as the law has them. Whether gains changed."""
        self._rows.append(np.array([pose, twist, wrench, goal], np.float64))
        self._since += 1
        if self._running is not None and self._running.done():
            return self._adopt(self._running)
        softer = self._bounded and self._pulled(pose, goal)
        if self._since < round(self.cfg.every / self.cfg.dt):
            return softer
        self._since = 0
        if self._running is not None:
            self.late += 1
            return softer
        window, u0, now = Window(*np.stack(self._rows).transpose(1, 0, 2)), base.table(), self.gains(base).table()
        if self._pool is not None:
            self._running = self._pool.submit(_solve, window, u0, now, self.cfg)
            return softer
        job: Future[Solved] = Future()
        try:
            job.set_result(_solve(window, u0, now, self.cfg))
        except Exception as error:
            job.set_exception(error)
        return self._adopt(job) or softer

    def _pulled(self, pose: Sequence[float], goal: Sequence[float]) -> bool:
        """Whether a set point went so far ahead that the springs in force pull harder than they may: they become softer at once."""
        found = False
        for i, (x, to, k, most) in enumerate(zip(pose, goal, self._stiff, pulls(self.cfg), strict=True)):
            if k * abs(to - x) > most * 1.001:
                self._pull[i], found = most / abs(to - x), True
        return found

    def _adopt(self, job: Future[Solved]) -> bool:
        self._running = None
        try:
            self.residual, stable, self._pull, anew = job.result()
        except Exception as error:  # whatever a solver may raise: an arm that moves needs gains, and has good ones
            self.failed, self.trouble = self.failed + 1, f"{type(error).__name__}: {error}"
            return False
        least = np.zeros(AXES) if self._least is None else self._least
        # what was hard is forgotten slowly, and only where something softer was touched
        self._least = np.maximum(stable, np.where((stable > 0) & anew, least / 2, least))
        self.fits += 1
        return True

    def close(self) -> None:
        """End the second thread."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _solve(window: Window, base: Array, now: Array, cfg: TunerConfig) -> Solved:
    """(residual [6, 3], stable damping [6], stiffness that pulls no harder than it may [6], whether what was hard may be forgotten [6])."""
    with np.errstate(all="ignore"):
        found = fit(window, base, now, cfg)
    residual = np.log(np.maximum(found, NONE) / np.maximum(base, NONE)) if cfg.mode != "rule" else np.zeros_like(found)
    most = limits(base, cfg)[1][:, 1]
    stable = np.minimum(stable_damping(window, cfg, found[:, 0]), most) if cfg.mode != "free" else np.zeros(AXES)
    return residual, stable, stiffest(window, cfg), begun(window) if cfg.lasting else np.ones(AXES, bool)


def pulls(cfg: TunerConfig) -> tuple[float, ...]:
    """How hard a spring may pull along and about the axes [6], N and N m."""
    return (cfg.force,) * 3 + (cfg.torque,) * 3


def stiffest(window: Window, cfg: TunerConfig) -> Array:
    """Stiffness [6] up to which a spring to the set points of a window pulls no harder than it may."""
    return np.asarray(np.array(pulls(cfg)) / np.maximum(np.abs(window.goal - window.pose).max(0), NONE))
