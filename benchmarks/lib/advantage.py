"""The table of `benchmarks/recap.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
METHODS = {"fine-tuned": "fine-tuning", "recap-1": "**Recap, round 1**", "recap-2": "**Recap, round 2**",
           "guided-1.5": "Recap, last round, guidance 1.5", "guided-2": "**Recap, last round, guidance 2**",
           "filtered": "filtered cloning",
           "positive": "advantage-filtered cloning", "awr": "advantage-weighted regression", "shuffled": "shuffled indicator",
           "unmarked": "Recap, told nothing", "negative": "Recap, told to act badly", "swapped": "Recap, told another task",
           "rl100": "RL-100 from fine-tuning, as many episodes", "ppo": "PPO from fine-tuning, as many episodes"}
HEAD = ("tasks, sweep", "method", "seeds", "success [95 %]", "n", "successes/h", "with 5 s a reset", "throughput to fine-tuning",
        "failures to it", "by task [%]")


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """A line a group, sweep and method, pooled over its seeds; ratios are to the fine-tuning of the same runs."""
    from realrl.cell.evaluate import wilson
    out = []
    for task, sweep in sorted({(r["task"], r["sweep"]) for r in rows}):
        mine = [r for r in rows if (r["task"], r["sweep"]) == (task, sweep)]
        base = [r for r in mine if r["method"] == "fine-tuned"]
        for method, name in METHODS.items():
            of = [r for r in mine if r["method"] == method]
            if not of:
                continue
            n = sum(r["success"]["n"] for r in of)
            rate = wilson(round(sum(r["success"]["rate"] * r["success"]["n"] for r in of)), n)
            tasks = {t: 100 * sum(r["by_task"][t]["success"]["rate"] for r in of) / len(of) for t in of[0]["by_task"]}
            told = f"{100 * rate.rate:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
            out.append([f"{task}, {sweep}", name, str(len(of)), told, str(n), f"{mean(of, 'per_hour'):,.0f}",
                        f"{mean(of, 'per_hour_5s'):,.0f}", ratio(mean(of, "per_hour"), mean(base, "per_hour")),
                        ratio(1 - rate.rate, 1 - success(base)),
                        ", ".join(f"{t} {rate:.0f}" for t, rate in tasks.items())])
    return out


def mean(of: Sequence[Row], key: str) -> float:
    """The mean of a figure over seeds, 0 where there are none."""
    return sum(r[key] for r in of) / max(len(of), 1)


def success(of: Sequence[Row]) -> float:
    """The pooled success, 1 where there are none."""
    return sum(r["success"]["rate"] * r["success"]["n"] for r in of) / n if (n := sum(r["success"]["n"] for r in of)) else 1.0


def ratio(a: float, b: float) -> str:
    """a / b, "-" of nothing."""
    return f"{a / b:.2f}" if b > 0 else "-"
