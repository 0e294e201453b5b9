"""The table of `benchmarks/delays.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

HEAD = ("task", "steps late", "meanwhile", "success [95 %]", "n", "steps to success", "boundary jump", "jerk", "age: mean, worst")
WAYS = {"stop": "holds still", "naive": "goes on", "best": "goes on, best of 8", "prefix": "goes on, plan told so"}


def lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line a task, delay and way, pooled over nothing."""
    out = []
    for row in sorted(rows, key=lambda r: (r["task"], r["seed"], r["delay"], list(WAYS).index(r["how"]))):
        good = row["success"]
        steps = "-" if row["cycle_steps"] is None else f"{row['cycle_steps']:.0f}"
        said = f"{100 * good['rate']:.0f} % [{100 * good['low']:.0f}, {100 * good['high']:.0f}]"
        out.append([f"{row['task'].split('/')[-1]}, seed {row['seed']}", str(row["delay"]), WAYS[row["how"]] if row["delay"] else "-", said,
                    str(good["n"]), steps, f"{row['boundary']:.2f}", f"{row['jerk']:.2f}", f"{row['age']:.1f}, {row['worst_age']:.0f}"])
    return out
