"""The table of `benchmarks/serving.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

TIMES = {"p50 [ms]": "p50_ms", "p99 [ms]": "p99_ms", "processor, p50 [ms]": "cpu_p50_ms", "processor, p99 [ms]": "cpu_p99_ms",
         "cold, p50 [ms]": "cold_ms"}
HEAD = ("from an observation to a guarded action", "", "parameters", *TIMES, "target for p99", "decisions")


def lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line a case and contestant."""
    def target(row: dict[str, Any]) -> str:
        return "-" if row["target_p99_ms"] is None else f"{row['target_p99_ms']:g} ms"

    def times(row: dict[str, Any]) -> list[str]:
        return [f"{row[key]:.3f}" if key in row else "-" for key in TIMES.values()]

    return [[r["what"], r["method"], f"{r['parameters'] / 1e6:.2f} M", *times(r), target(r), f"{r['calls']:,}"] for r in rows]
