"""The table of `benchmarks/dream_speed.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
HEAD = ("device, sizes", "the actor learns by", "who", "ms an update, by the clock; of processors", "updates/s",
        "ms of: batch; world model; dreams, actor and critic; gradients; optimiser", "parameters", "times the peer [quartiles]", "target")
NAMES = {"reinforce": "REINFORCE", "through": "gradients through the dream"}


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """A line a device, size, way to learn and contestant; what a GPU repeats as it was recorded has no parts to be told apart."""
    return [[f"{r['device']}, {r['size']}: {r['batch']} x {r['length']}, {r['deter']} and {r['units']} wide, {r['stoch']} x {r['classes']}",
             NAMES[r["actor"]], r["who"], f"{r['wall_ms']:.1f}; {r['cpu_ms']:.1f}", f"{r['updates_per_s']:.1f}",
             "; ".join(f"{ms:.1f}" if ms else "-" for ms in r["parts_ms"].values()), f"{r['parameters'] / 1e6:.2f} M",
             f"{r['times']:.2f} [{r['times_quartiles'][0]:.2f}, {r['times_quartiles'][1]:.2f}]" if "times" in r else "-",
             f"{r['target']:g}" if "target" in r else "-"] for r in rows]
