"""A compliant arm: the admittance law, and a residual on its gains that is fitted while it works (arXiv 2310.10509).

    M e'' + D e' + K e = F,   e = x - x_d,   all diagonal, in the world's axes, about the tool's point

`Law` turns a measured wrench into motion, once a millisecond, with an implicit step that no gain can make diverge. `Tuner` looks at the
newest second of that and chooses gains anew twice a second. Its bounds are the method: a replayed force does not react, so the fit alone
would always rather have a stiffer spring.

    law = Law(critical(np.array([200.0] * 3 + [10.0] * 3)))
    law.begin(position, quaternion)
    while True:
        position, quaternion = law.step(read_wrench(), goal_position, goal_quaternion)
        move(position, quaternion)  # once a millisecond

A guard on force and motion belongs outside of it (`realrl.robots.motion`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from typing import Literal

import numpy as np

from realrl.config import check
from realrl.robots.turns import rotation_vector, turned
from realrl.types import Array, RealrlError

AXES = 6
MASS = (1.0, 1.0, 1.0, 0.1, 0.1, 0.1)
"""Of the arm that is pretended, kg and kg m²."""
BEFORE, SHARE, SEEN = 2, 0.7, np.array([1e-4] * 3 + [1e-3] * 3)
"""Samples before contact that belong to it; an axis's share of the force, above which it is no friction of what slides; ways below which
noise alone makes a slope, m and rad."""
FEELS, FELT = np.array([2.0, 2.0, 2.0, 0.1, 0.1, 0.1]), 5
"""What counts as contact, N and N m, and how many samples of it: noise and a bias that drifts are none."""

Mode = Literal["fit", "rule", "free"]
Solved = tuple[Array, Array, Array, Array]


@dataclass(frozen=True)
class Gains:
    """Diagonals of M (kg, kg m²), D (N s/m, N m s) and K (N/m, N m/rad), each [6]: along x, y, z, then about them."""

    mass: Array
    damping: Array
    stiffness: Array

    def __post_init__(self) -> None:
        for name in ("mass", "damping", "stiffness"):
            value = np.asarray(getattr(self, name), np.float64)
            least = 0.0 if name == "stiffness" else 1e-9
            if value.shape != (AXES,) or not np.isfinite(value).all() or (value < least).any():
                raise RealrlError(f"admittance: {name} must be {AXES} finite positive numbers (x, y, z, about x, y, z), got {value}")
            object.__setattr__(self, name, value)

    def table(self) -> Array:
        """[6, 3]: mass, damping, stiffness of every axis."""
        return np.stack([self.mass, self.damping, self.stiffness], 1)


def critical(stiffness: Array, mass: Array | Sequence[float] = MASS, ratio: float = 1.0) -> Gains:
    """Gains of a spring [6] with damping D = 2 ratio sqrt(K M)."""
    mass = np.asarray(mass, np.float64)
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
    """The law in discrete time. dt: seconds of a step. held: steps on which it stood still because the sensor could not be believed.

    Its pose and twist are the commanded ones; nothing measured but the wrench comes in, so it cannot drift against itself."""

    def __init__(self, gains: Gains, limits: LimitsConfig | None = None, dt: float = 1e-3) -> None:
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
        """Be here, at rest. position: m; quaternion: w first."""
        self.position, self.quaternion = [float(x) for x in position], [float(x) for x in quaternion]
        self.twist = [0.0] * AXES
        self._last: tuple[float, ...] = ()
        self._same = 0

    def step(self, wrench: Sequence[float], position: Sequence[float],
             quaternion: Sequence[float] | None = None) -> tuple[list[float], list[float]]:
        """Where to be one step on, (position, quaternion). wrench: what the surroundings do to the tool [6], N and N m, world's axes, at
        its point; position, quaternion: of the set point, the orientation of `begin` by default.

        v+ = (v + h/M (F - K e)) / (1 + h D/M + h² K/M): backward Euler, stable with any positive gains. With a wrench that is not finite,
        or has not changed for `limits.stuck` steps, it holds.
        """
        if not self._believed(wrench):
            self.held += 1
            self.twist = [0.0] * AXES
            return self.position, self.quaternion
        limits, h, old, q = self.limits, self.dt, self.twist, self.quaternion
        felt = saturated(wrench[:3], limits.force, limits.dead_force) + saturated(wrench[3:], limits.torque, limits.dead_torque)
        error = [self.position[i] - position[i] for i in range(3)] + rotation_vector(q, (1.0, 0.0, 0.0, 0.0) if quaternion is None
                                                                                    else quaternion)
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


# ---- the residual


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
        check(self, every="[0.01, 100]", window="[0.05, 100]", dt="(0, 1]", delay="[0, 1]", lag="[0, 1]", share="[0, 10]", ratio="[0, 100]",
              force="(0, 1e4]", torque="(0, 1e3]", slow="(0, 1e6]", change="(0, 1)", prior="[0, 1e6]", speed_weight="[0, 1e6]",
              expected="[0, 1e6]")


LEAST = np.array([[0.3, 2.0, 10.0]] * 3 + [[0.03, 0.1, 1.0]] * 3)
MOST = np.array([[10.0, 450.0, 2000.0]] * 3 + [[1.0, 30.0, 100.0]] * 3)
"""What no gain falls below or rises above, [6, 3]: mass, damping, stiffness; without bounds a hundred times further each."""


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
    pose, felt = arm[:len(arm) - late], window.wrench[late:]
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


def stable_damping(window: Window, cfg: TunerConfig) -> Array:
    """The damping [6] that keeps a contact from bouncing: share (delay + lag) k, see docs/methods/admittance.md."""
    return cfg.share * (cfg.delay + cfg.lag) * touched(window, cfg)


def bounds(window: Window, now: Array, cfg: TunerConfig) -> tuple[Array, Array]:
    """(least, most), each [6, 3], of the next gains. now: the gains [6, 3] in force.

    The spring's pull and the damping that stays stable win over how much a fit may change, stability over everything.
    """
    if cfg.mode == "free":
        return LEAST / 100, MOST * 100
    low, high = np.maximum(LEAST, now * (1 - cfg.change)), np.minimum(MOST, now * (1 + cfg.change))
    high[:, 2] = np.minimum(high[:, 2], stiffest(window, cfg))
    low[:, 1] = np.clip(np.maximum(low[:, 1], stable_damping(window, cfg)), None, MOST[:, 1])
    high = np.maximum(high, LEAST)
    high[:, 1] = np.maximum(high[:, 1], low[:, 1])
    return np.minimum(low, high), high


def projected(gains: Array, low: Array, high: Array, cfg: TunerConfig) -> Array:
    """The nearest gains [6, 3] that keep to their bounds, and whose damping has the least ratio as far as the highest damping there is."""
    out = np.clip(gains, low, high)
    if cfg.mode != "free":
        out[:, 1] = np.clip(np.maximum(out[:, 1], 2 * cfg.ratio * np.sqrt(out[:, 0] * out[:, 2])), low[:, 1], MOST[:, 1])
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
    low, high = bounds(window, now, cfg)
    if cfg.mode == "rule":
        return np.stack([base[:, 0], np.minimum(np.maximum(base[:, 1], low[:, 1]), MOST[:, 1]), base[:, 2]], 1)
    found = now.copy()
    for axis in np.flatnonzero(_felt(window)).tolist():
        found[axis] = _axis(window, axis, base[axis], now[axis], low[axis], high[axis], cfg)
    out = projected(found, low, high, cfg)
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
    counts; with a failed or late one the last good residual stays."""

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
        self.residual = np.zeros((AXES, 3))
        self._least = np.zeros((AXES, 3))  # damping that what was or will be touched asks for, whatever stiffness comes
        self._least[:3, 1] = min(self.cfg.share * (self.cfg.delay + self.cfg.lag) * self.cfg.expected, MOST[0, 1])
        self._most = MOST.copy()  # and stiffness that pulls no harder than it may, whatever a policy asks for
        self._rows: deque[Array] = deque(maxlen=round(self.cfg.window / self.cfg.dt))
        self._since = 0
        self._running: Future[Solved] | None = None

    def gains(self, base: Gains) -> Gains:
        """What is in force where a policy asks for `base`."""
        table = base.table() * np.exp(self.residual)
        if self.cfg.mode == "fit" and (self.fits or self.cfg.expected):
            table[:, 2] = np.maximum(table[:, 2], np.minimum(self._most[:, 2], self._least[:, 1] / self.cfg.slow))
            table = projected(table, np.maximum(LEAST, self._least), self._most, self.cfg)
        elif self.cfg.mode == "rule":
            table[:, 1] = np.maximum(base.damping, self._least[:, 1])
        return Gains(*table.T)

    def see(self, pose: Sequence[float], twist: Sequence[float], wrench: Sequence[float], goal: Sequence[float], base: Gains) -> bool:
        """One sample, every `cfg.dt` seconds: pose and goal [6] (m, rotation vectors), as the law has them. Whether gains changed."""
        self._rows.append(np.array([pose, twist, wrench, goal], np.float64))
        self._since += 1
        if self._running is not None and self._running.done():
            return self._adopt(self._running, base)
        if self._since < round(self.cfg.every / self.cfg.dt):
            return False
        self._since = 0
        if self._running is not None:
            self.late += 1
            return False
        window, u0, now = Window(*np.stack(self._rows).transpose(1, 0, 2)), base.table(), self.gains(base).table()
        if self._pool is not None:
            self._running = self._pool.submit(_solve, window, u0, now, self.cfg)
            return False
        job: Future[Solved] = Future()
        try:
            job.set_result(_solve(window, u0, now, self.cfg))
        except ArithmeticError as error:
            job.set_exception(error)
        return self._adopt(job, base)

    def _adopt(self, job: Future[Solved], base: Gains) -> bool:
        self._running = None
        try:
            self.residual, stable, self._most[:, 2], anew = job.result()
        except ArithmeticError:
            self.failed += 1
            return False
        least = self._least[:, 1]  # what was hard is forgotten slowly, and only where something softer was touched
        self._least[:, 1] = np.maximum(stable, np.where((stable > 0) & anew, least / 2, least))
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
    residual = np.log(found / np.maximum(base, 1e-9)) if cfg.mode != "rule" else np.zeros_like(found)
    stable = np.minimum(stable_damping(window, cfg), MOST[:, 1]) if cfg.mode != "free" else np.zeros(AXES)
    return residual, stable, stiffest(window, cfg), begun(window) if cfg.lasting else np.ones(AXES, bool)


def stiffest(window: Window, cfg: TunerConfig) -> Array:
    """Stiffness [6] up to which a spring to the set points of a window pulls no harder than it may."""
    pull = np.array([cfg.force] * 3 + [cfg.torque] * 3)
    return np.asarray(np.clip(pull / np.maximum(np.abs(window.goal - window.pose).max(0), 1e-9), LEAST[:, 2], MOST[:, 2]))
