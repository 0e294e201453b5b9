"""The table of `benchmarks/through_server.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
HEAD = ("method, task", "policy", "readings late by", "success [95 %]", "n", "steps to success", "control steps learned from",
        "minutes by the clock", "stops")
WAYS = ("rl100", "rl100-near", "rl100-dida", "rl100-late", "hil-serl-init", "hil-serl-on", "hil-serl-dida", "hil-serl")
"""In the table's order, see `benchmarks/through_server.py`."""
WHERE = {"lock-step": "from lock-step simulation, judged there", "before": "the same, through the server",
         "after": "**after learning through the server**", "further": "**after RL-100's online stage on top**"}


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """A line a method, seed and place."""
    out = []
    for row in sorted(rows, key=_place):
        good = row["success"]
        steps = "-" if row["cycle_steps"] is None else f"{row['cycle_steps']:.0f}"
        learned = f"{row['env_steps']:,}" if row["where"] in ("after", "further") else "-"
        out.append([f"{row['method']}, {row['task']}, seed {row['seed']}", WHERE[row["where"]], f"{row['latency_ms']} ms",
                    f"{100 * good['rate']:.0f} % [{100 * good['low']:.0f}, {100 * good['high']:.0f}]", str(good["n"]), steps, learned,
                    f"{row['wall_s'] / 60:.1f}" if "wall_s" in row else "-", str(row.get("stops", "-"))])
    return out


def typed(rows: Sequence[Row]) -> str:
    """What somebody would type for each, with a server at the usual address."""
    return "\n".join(["```", *(row["typed"] for row in sorted(rows, key=_place)), "```"])


def _place(row: Row) -> tuple[int, str, int, int]:
    """Where a row stands among others."""
    return WAYS.index(row["method"]), row["task"], row["seed"], list(WHERE).index(row["where"])
