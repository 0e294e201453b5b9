"""The table of `benchmarks/walk.py`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
COLUMNS = {"steps to 0.5 m/s": ("steps_to_half_mps", 0), "minutes to it": ("minutes_to_half_mps", 1), "speed [m/s]": ("speed_mps", 2),
           "net distance of path": ("net_of_path", 2), "falls a minute": ("falls_per_minute", 1),
           "change of the action": ("action_change", 2), "strides [Hz]": ("stride_hz", 1), "change of sines": ("sine_change", 2),
           "falls while learning": ("falls_learning", 0),
           "minutes of learning": ("wall_min", 1), "late ticks": ("deadline_misses", 0)}
HEAD = ("", "", *COLUMNS)


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """A line a run, and above those of one task and method the medians over its seeds with their range. What was measured without the
    policy's noise and with it stands in one cell, in this order."""
    out = []
    for task, method in sorted({(r["task"], r["method"]) for r in rows}):
        of = sorted((r for r in rows if (r["task"], r["method"]) == (task, method)), key=lambda r: r["seed"])
        walked = f"{sum(r['steps_to_half_mps'] is not None for r in of)} of {len(of)} walk"
        some = [(f"**{task}, {method}**", walked, of), *(("", f"seed {r['seed']}", [r]) for r in of)]
        out += [[name, which, *(told(rs, *column) for column in COLUMNS.values())] for name, which, rs in some]
    return out


def told(of: Sequence[Row], key: str, digits: int) -> str:
    """One figure of these runs: its median, and its range where there are several."""
    values = [r[key] for r in of if r.get(key) is not None]
    nothing = "never" if key in of[0] else "-"
    low, middle, high = (f"{f(values):,.{digits}f}" for f in (min, statistics.median, max)) if values else ("", nothing, "")
    noisy = f"; {told(of, f'noisy_{key}', digits)}" if f"noisy_{key}" in of[0] else ""
    return (f"{middle} [{low}, {high}]" if len(values) > 1 else middle) + noisy
