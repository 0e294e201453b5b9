"""The tables of `benchmarks/admittance.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.lib.helping import rate

Row = dict[str, Any]
HEAD = ("", "method", "success [95 %]", "peak force [N]", "seconds to success", "damping at the end [N s/m]")
TRAINING = ("training", "decisions", "decisions to 90 %", "minutes to 90 %", "minutes")
LOOP = ("step, delay, lag [ms]", "3 kN/m", "10 kN/m", "50 kN/m")


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """A line an arm: first the learned policies', in both worlds, then those through the server, then the scripted trajectory's."""
    out = []
    for method in ("learned", "learned, one way", "served", "scripted"):
        for r in (r for r in rows if r["method"] == method):
            out.append([r["task"], method if method == "scripted" else f"{method}, seed {r['seed']}", rate(r),
                        *(spread(r[key]) for key in ("peak_force_n", "seconds", "damping"))])
    return out


def training(rows: Sequence[Row]) -> list[list[str]]:
    """A line a seed: how soon the skill is learned in simulation."""
    forms = (("steps_to_90", "{:,}"), ("minutes_to_90", "{:.0f}"), ("learning_min", "{:.0f}"))
    return [[f"{r['task']}, seed {r['seed']}{r['method'].removeprefix('training')}", f"{r['steps']:,}",
             *("–" if r[key] is None else form.format(r[key]) for key, form in forms)]
            for r in rows if r["method"].startswith("training")]


def spread(value: dict[str, float] | None) -> str:
    """A mean and its 95 % interval."""
    return "–" if value is None else f"{value['mean']:.1f} ± {value['half']:.1f}"


def loop(rows: Sequence[Row]) -> list[list[str]]:
    """A line a loop: the smallest damping that is stable, over masses of 1 to 6 kg."""
    found: dict[str, list[str]] = {}
    for r in (r for r in rows if r["method"] == "loop"):
        step, delay, lag, _ = (float(x) for x in r["task"].split("/"))
        found.setdefault(f"{1000 * step:g}, {1000 * delay:g}, {1000 * lag:g}", []).append(
            "any" if not r["most"] else f"{r['least']:.0f}–{r['most']:.0f}")
    return [[name, *cells] for name, cells in found.items()]
