"""The table of `benchmarks/daydreamer.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
POINTS = 24  # of a curve of rewards: longer ones are told by 6,000 steps
HEAD = ("", "seed", "reward a step of practice, by 1,000 control steps (by 6,000 where they are many); dmc: return of an episode, by "
        "10,000 frames",
        "upright; stands; walks at step",
        "held out: reward a step; with noise", "control steps", "train ratio", "updates/s", "minutes")


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """A line a task, method and seed."""
    return [[f"{r['task']}, {r['method']}", str(r["seed"]), curve(r),
             "; ".join(told(r[name]) for name in ("upright", "stands", "walks")) if "phases" in r else "-",
             f"{r['greedy_reward_per_step']:.2f}; {r['noisy_reward_per_step']:.2f}", f"{r['env_steps']:,}", f"{r['train_ratio']:.0f}",
             f"{r['updates_per_s']:.2f}", f"{r['wall_min']:.0f}"] for r in sorted(rows, key=lambda r: (r["task"], r["method"], r["seed"]))]


def curve(row: Row) -> str:
    """How practice went."""
    if not row["task"].startswith("dmc/"):
        points = row["curve"]
        every = 6 if len(points) > POINTS else 1
        return " ".join(f"{sum(points[i:i + every]) / len(points[i:i + every]):.2f}" for i in range(0, len(points), every))
    found = row["returns"]  # of a thousand frames each
    return " ".join(f"{sum(found[i:i + 10]) / len(found[i:i + 10]):.0f}" for i in range(0, len(found), 10))


def told(step: int | None) -> str:
    """When it was, if it was."""
    return "never" if step is None else f"{step:,}"
