"""How late everything is, measured on the live robot: readings, the network, each channel's motion, each camera."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from realrl.config import check, from_dict, to_dict
from realrl.files import read_json, write_json
from realrl.robots.client import Link, RobotClient
from realrl.robots.clock import CLIENT, hurried
from realrl.types import Array, Plan, Policy, RealrlError, State

LONGEST = 0.5  # s: later than this nothing is looked for
SWING_S = 1.0  # of a period of the motion


@dataclass(frozen=True)
class Latency:
    """Seconds. reading: from when it was so to when it was sent; link: there and back; channels: from a command to the motion that follows;
    cameras: from when it was so to when its picture was sent."""

    robot: str
    reading: float
    link: float
    channels: dict[str, float] = field(default_factory=dict)
    cameras: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self, reading="[0, 10]", link="[0, 10]")

    @property
    def whole(self) -> float:
        """From the world, by the slowest eye, through the policy's computer, to the slowest channel."""
        return max([self.reading, *self.cameras.values()]) + self.link + max(self.channels.values(), default=0.0)

    def save(self, path: Path) -> None:
        """As JSON."""
        write_json(path, to_dict(self))

    @classmethod
    def load(cls, path: Path) -> Latency:
        """What `save` wrote. Raises RealrlError."""
        try:
            return from_dict(cls, read_json(path, most=2**20), source=str(path))
        except OSError as error:
            raise RealrlError(f"{path} cannot be read ({error.strerror}): measure it with realrl calibrate latency") from None


class _Ear(threading.Thread):
    """Looks at the robot a hundred times a second."""

    def __init__(self, url: str, token: str | None = None) -> None:
        super().__init__(daemon=True)
        self._link, self.over = Link(url, "watcher", token), threading.Event()
        self.seen: list[dict[str, Any]] = []
        self.trips: list[float] = []

    def run(self) -> None:
        """Until `over`."""
        while not self.over.is_set():
            begun = time.monotonic()
            try:
                self.seen.append(self._link.ask({"type": "look"}))
            except RealrlError:
                break
            self.trips.append(time.monotonic() - begun)
            time.sleep(max(0.01 - self.trips[-1], 0.0))
        self._link.close()


def calibrate(env: RobotClient, *, share: float = 0.04, swings: int = 4, seed: int = 0) -> Latency:
    """Swing every channel by a share of its range and see how late what follows is. Raises RealrlError where the robot does not follow."""
    env.reset(seed=seed)
    late, cameras = {}, dict[str, float]()
    seen: list[dict[str, Any]] = []
    trips: list[float] = []
    for channel, about in enumerate(env.about["channels"]):
        ear = _Ear(env.link.url)
        ear.start()
        with hurried(CLIENT):
            _swing(env, channel, share, swings)
        env.pause()
        ear.over.set()
        ear.join(5)
        seen, trips = seen + ear.seen, trips + ear.trips
        lag = _channel(ear.seen, channel)
        if lag is not None:
            late[about["name"]] = lag
        for name, value in _cameras(ear.seen, channel).items():
            cameras.setdefault(name, value)
    reading = float(np.median([s["now"] - s["stamp"] for s in seen]))
    return Latency(env.about["name"], max(reading, 0.0), float(np.median(trips)), late, cameras)


def _swing(env: RobotClient, channel: int, share: float, swings: int) -> None:
    about, dt, still = env.about["channels"][channel], env.task.dt, env.still()
    assert still is not None
    steps = about["step"] is not None or about["kind"] == "velocity"
    size = share * (about["high"] - about["low"])
    if env.measured[channel] + size > about["high"]:
        size = -size
    unit = (about["step"] or about["velocity"] * dt) if steps else (about["high"] - about["low"]) / 2

    def place(t: float) -> float:
        return float(size * (1 - np.cos(2 * np.pi * t / SWING_S)) / 2)

    for i in range(round(swings * SWING_S / dt)):
        action = np.array(still, np.float32)
        now = place((i + 1) * dt) - (place(i * dt) if steps else 0.0)
        action[channel] = (0.0 if steps else still[channel]) + now / unit
        _, _, terminated, truncated, _ = env.step(np.clip(action, -1, 1))
        if terminated or truncated:
            env.reset(seed=0)


def _channel(seen: Sequence[dict[str, Any]], channel: int) -> float | None:
    """s from a command to the motion: the shift that lays one over the other best; None where nothing moved."""
    at = np.array([s["now"] for s in seen])
    commanded = np.array([s["commanded"][channel] for s in seen])
    stamps = np.array([s["stamp"] for s in seen])
    measured = np.array([s["measured"][channel] for s in seen])
    if len(seen) < 50 or np.ptp(measured) < 0.2 * np.ptp(commanded) or np.ptp(commanded) == 0:
        return None
    lags = np.arange(0.0, LONGEST, 0.001)
    kept = stamps > stamps[0] + LONGEST
    alike = [float(np.corrcoef(np.interp(stamps[kept] - lag, at, commanded), measured[kept])[0, 1]) for lag in lags]
    return float(lags[int(np.argmax(alike))])


def _cameras(seen: Sequence[dict[str, Any]], channel: int) -> dict[str, float]:
    """Camera -> s from when it was so to when its picture was sent: its stamp's age, and how much later than the encoders it saw the
    motion; a camera that sees too little of it counts with its stamp's age alone."""
    stamps = np.array([s["stamp"] for s in seen])
    measured = np.array([s["measured"][channel] for s in seen])
    found = {}
    for name in seen[0]["images"] if seen else ():
        new = {s["images"][name]["stamp"]: s["images"][name]["image"].astype(np.float32) for s in seen if name in s["images"]}
        age = float(np.median([s["now"] - s["images"][name]["stamp"] for s in seen]))
        found[name] = age + (_hidden(np.array(list(new)), np.stack(list(new.values())), stamps, measured) if len(new) > 20 else 0.0)
    return found


def _hidden(at: Array, pictures: Array, stamps: Array, measured: Array) -> float:
    """s that pictures [N] lag behind their stamps: their first principal change laid over the encoder's motion."""
    flat = pictures.reshape(len(pictures), -1)[:, ::7]
    flat = flat - flat.mean(0)
    _, _, axes = np.linalg.svd(flat @ flat.T)
    shown = axes[0]
    lags = np.arange(-0.1, LONGEST, 0.002)
    kept = at > at[0] + LONGEST
    if kept.sum() < 10:
        return 0.0
    alike = [abs(float(np.corrcoef(np.interp(at[kept] - lag, stamps, measured), shown[kept])[0, 1])) for lag in lags]
    best = int(np.argmax(alike))
    return max(float(lags[best]), 0.0) if alike[best] > 0.8 else 0.0


class Around:
    """Another policy, with something added to how it acts."""

    def __init__(self, inner: Policy) -> None:
        self.name, self.chunk, self.n_obs, self.start, self._inner = inner.name, inner.chunk, inner.n_obs, inner.start, inner
        for name in ("interrupt", "done"):  # the control loop looks for them
            if hasattr(inner, name):
                setattr(self, name, getattr(inner, name))


class Ahead(Around):
    """A policy whose plans begin where the robot will be once it moves: what is already due when a plan arrives is left out.

    For policies that were trained where nothing is late. As many actions are dropped as the delay is long and the plan has to spare.
    """

    def __init__(self, inner: Policy, delay: float, dt: float) -> None:
        super().__init__(inner)
        self.steps = round(delay / dt)

    def act(self, obs: dict[str, Array], state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
        """The later part of the inner plan."""
        plan, state = self._inner.act(obs, state, greedy=greedy, rng=rng)
        dropped = min(self.steps, plan.action.shape[1] - self.chunk)
        return Plan(plan.action[:, dropped:], plan.extra), state
