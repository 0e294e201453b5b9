"""The table of `benchmarks/hil_serl.py`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]
GOAL = 0.99


def best(row: Row) -> str:
    """The first judged step at which the policy succeeded in `GOAL` of the held-out starts or more; – where none was judged."""
    if not row["curve"]:
        return "–"
    found = next((point["steps"] for point in row["curve"] if point["success"] >= GOAL), None)
    return "never" if found is None else f"{found:,}"


def rate(row: Row) -> str:
    """Success with its interval."""
    s = row["success"]
    return f"{100 * s['rate']:.1f} % [{100 * s['low']:.1f}, {100 * s['high']:.1f}], n = {s['n']}"


def curve(row: Row) -> str:
    """Success on the way, in per cent."""
    return ", ".join(f"{100 * point['success']:.0f}" for point in row["curve"]) or "–"


COLUMNS: dict[str, Callable[[Row], str]] = {
    "success without help [95 %]": rate, "on the way, every 2,500 steps [%]": curve, f"steps to {100 * GOAL:.0f} %": best,
    "cycle (steps)": lambda r: "–" if r["cycle_steps"] is None else f"{r['cycle_steps']:.1f}",
    "of the demonstrations'": lambda r: "–" if r["cycle_ratio"] is None else f"{r['cycle_ratio']:.2f}",
    "human share, last 50": lambda r: f"{100 * r['human_share']:.1f} %", "human seconds": lambda r: f"{r['human_s']:.0f}",
    "takeovers": lambda r: f"{r['takeovers']:.0f}", "transitions": lambda r: f"{r['transitions']:,}{' so far' if r.get('cut') else ''}",
    "minutes": lambda r: f"{r['wall_s'] / 60:.0f}",
    "late ticks": lambda r: f"{r['deadline_misses']:.0f} of {r['ticks']:,.0f}" if r.get("ticks") else "–"}
HEAD = ("", "", *COLUMNS)
ORDER = ("corrections", "tilting-person", "mirrored", "pictures", "pictures-judged", "killed", "imitating", "residual", "ten-critics",
         "long-memory", "chunks", "asks", "gripper-as-motion", "demonstrations", "nobody", "hg-dagger", "cloning")


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """A line a run, and above those of one task, method and budget the median of their success and its range."""
    out = []
    tasks = list(dict.fromkeys(r["task"] for r in rows))
    groups = sorted({(r["task"], r["steps"], r["method"]) for r in rows}, key=lambda g: (tasks.index(g[0]), -g[1], ORDER.index(g[2])))
    for task, steps, method in groups:
        of = sorted((r for r in rows if (r["task"], r["steps"], r["method"]) == (task, steps, method)), key=lambda r: r["seed"])
        found = [100 * r["success"]["rate"] for r in of]
        told = f"{statistics.median(found):.1f} % [{min(found):.1f}, {max(found):.1f}]"
        many = f"{len(of)} seed{'s' if len(of) > 1 else ''}, {steps:,} step{'s' if steps > 1 else ''}"
        out.append([f"**{task}, {method}**", many, told, *[""] * (len(COLUMNS) - 1)])
        out += [["", f"seed {r['seed']}", *(make(r) for make in COLUMNS.values())] for r in of]
        out += [["", "its base", rate(r["base"]), *[""] * (len(COLUMNS) - 1)] for r in of if "base" in r]
    return out
