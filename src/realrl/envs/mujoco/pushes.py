"""Pushes: now and then somebody shoves a robot's trunk, and it has to keep its feet.

A push is a horizontal force on the trunk's centre of mass that lasts `LASTS` seconds and has the impulse asked for. An episode's pushes
follow from its seed alone: who reads its recording knows when they came, and from where.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from realrl.scene import RandomiseConfig
from realrl.types import Array

LASTS = 0.1
"""Seconds that a push lasts (DayDreamer's robot was shoved about as long)."""
_STREAM = 0x9054
"""Keeps these draws apart from the task's own, which come from the same seed."""


@dataclass(frozen=True)
class Schedule:
    """The pushes of an episode. seed: its own; impulse: of each, N s; first: control step at which the first one begins; every, lasts:
    steps from one to the next, and of each; dt: seconds of a step."""

    seed: int
    impulse: float
    first: int
    every: int
    lasts: int
    dt: float

    def force(self, step: int) -> Array:
        """[2] N during a control step, in the directions of the world's x and y."""
        number, since = divmod(step - self.first, self.every)
        if number < 0 or since >= self.lasts:
            return np.zeros(2)
        angle = np.random.default_rng([self.seed, _STREAM, number]).uniform(0.0, 2 * math.pi)
        return self.impulse / (self.lasts * self.dt) * np.array([math.cos(angle), math.sin(angle)])


def schedule(cfg: RandomiseConfig, seed: int, dt: float) -> Schedule:
    """The pushes of the episode of `seed`: the first after half to all of `push_every` seconds, then one every `push_every`.
    dt: seconds of a control step."""
    lasts = max(1, round(LASTS / dt))
    every = max(lasts + 1, round(cfg.push_every / dt))
    first = int(np.random.default_rng([seed, _STREAM]).integers((every + 1) // 2, every + 1))
    return Schedule(seed, cfg.push, first, every, lasts, dt)


class Pusher:
    """Pushes a body of a MuJoCo world as `randomise` asks for, in place; nothing where that asks for none."""

    def __init__(self, cfg: RandomiseConfig | None, data: Any, body: int, dt: float) -> None:
        """body: its number; dt: seconds of a control step."""
        self._cfg = cfg if cfg is not None and cfg.push else None
        self._data, self._body, self._dt = data, body, dt
        self._now: Schedule | None = None

    def begin(self, seed: int) -> None:
        """An episode begins."""
        self._now = schedule(self._cfg, seed, self._dt) if self._cfg else None

    def push(self, step: int) -> dict[str, float]:
        """Apply the force of control step `step` of the episode; what `info` shows of it: push, its size in N."""
        if self._now is None:
            return {}
        force = self._data.xfrc_applied[self._body, :2] = self._now.force(step)
        return {"push": float(np.linalg.norm(force))}
