"""Other people's clocks: stamps in another unit than seconds, frames that lie in another order than they were recorded in."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from realrl.types import Array

UNITS = {"milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}
ALIKE = 2.0  # times the rate of the set: so far off may stamps be that are in a unit


def unit(stamps: Array, fps: float) -> str:
    """In which unit increasing stamps [T] are, by their median step beside a set's rate; "" for seconds and what is none of them."""
    step = float(np.median(np.diff(np.asarray(stamps, np.float64)))) * fps if len(stamps) > 1 else 0.0
    return next((name for name, size in UNITS.items() if size / ALIKE < step < size * ALIKE), "")


def tick(ticks: Array) -> float:
    """The median step of a clock [T] whose unit nobody tells, in seconds: nanoseconds, say, where these would be absurd; 0 where it says
    nothing."""
    step = float(np.median(ticks)) if ticks.size else 0.0
    spans = ((1.0, 1e-3, 5.0), (1e3, 5.0, 2e3), (1e6, 2e3, 2e6), (1e9, 2e6, 2e9))
    return next((step / size for size, low, high in spans if low < step < high), 0.0)


def in_seconds(stamps: Array, fps: float) -> Array:
    """Stamps [T] in seconds, float64."""
    found: Array = np.asarray(stamps, np.float64) / UNITS.get(unit(stamps, fps), 1.0)
    return found


def like(there: Array, frames: Array, fps: float) -> Array:
    """Stamps of frames that follow each other at the rate, in the unit and type of those there [T]."""
    since = frames / fps
    if there.dtype.kind == "M":
        tick = np.datetime_data(there.dtype)[0]
        ticks = since * {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}[tick]
        found: Array = there[:1] + np.rint(ticks).astype(f"timedelta64[{tick}]")
        return found
    since = since * UNITS.get(unit(there, fps), 1.0)
    return np.rint(since).astype(there.dtype) if there.dtype.kind in "iu" else since.astype(np.float32)


def order(frame_index: Array) -> Array | None:
    """The rows [T] of an episode in the order of their frame_index [T]; None where they lie in it, or it numbers them not one by one."""
    numbers = np.asarray(frame_index).reshape(-1)
    at = np.argsort(numbers, kind="stable")
    return at if len(numbers) and (np.diff(numbers) < 0).any() and (np.diff(numbers[at]) == 1).all() else None


def in_order(columns: Mapping[str, Array]) -> dict[str, Array]:
    """An episode's columns [T, ...], their rows in the order in which they were recorded."""
    at = order(columns["frame_index"]) if "frame_index" in columns else None
    return dict(columns) if at is None else {name: x[at] for name, x in columns.items()}
