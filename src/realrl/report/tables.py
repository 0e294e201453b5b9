"""Numbers in words, and the table of stages for the terminal, for Markdown and for the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from realrl.report.reading import StageRow, number_of, stages_of
from realrl.types import printable

MISSING = "–"


@dataclass(frozen=True)
class Grid:
    """A table: headers, rows of text, and the index of the row to stress (-1: none)."""

    headers: list[str]
    rows: list[list[str]]
    final: int = -1


def percent(fraction: float | None) -> str:
    """Per cent with one decimal, two where one would round a rare failure (or a rare success) away."""
    if fraction is None:
        return MISSING
    text = f"{100 * fraction:.1f}"
    return f"{100 * fraction:.2f} %" if fraction not in (0, 1) and text in ("100.0", "0.0") else f"{text} %"


def interval(stage: StageRow) -> str:
    """The 95 % interval of a stage's success, per cent."""
    return MISSING if stage.low is None or stage.high is None else f"{percent(stage.low)[:-2]} – {percent(stage.high)}"


def count(value: float | None) -> str:
    """A whole number with its thousands set apart."""
    return MISSING if value is None else f"{value:,.0f}"


def figure3(value: float | None) -> str:
    """Three significant figures without an exponent."""
    if value is None:
        return MISSING
    digits = 2 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def duration(seconds: float | None) -> str:
    """Seconds in the unit a person would use."""
    if seconds is None:
        return MISSING
    whole = round(seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if whole < 100:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _latency(stage: StageRow) -> str:
    return MISSING if stage.p50_ms is None else f"{figure3(stage.p50_ms)} / {figure3(stage.p99_ms)}"


COLUMNS: tuple[tuple[str, Callable[[StageRow], str]], ...] = (
    ("Stage", lambda s: s.name),
    ("Success", lambda s: percent(s.rate)),
    ("95 % interval", interval),
    ("n", lambda s: count(s.n)),
    ("Cycle (steps)", lambda s: figure3(s.cycle_steps)),
    ("Cycle (s)", lambda s: figure3(s.cycle_s)),
    ("Successes per hour", lambda s: count(s.per_hour)),
    ("Latency p50 / p99 (ms)", _latency),
    ("Env steps", lambda s: count(s.env_steps)),
    ("Wall", lambda s: duration(s.wall_s)),
)
SHORT = ("Stage", "Success", "95 % interval", "n", "Cycle (steps)", "Latency p50 / p99 (ms)", "Env steps", "Wall")
PAGE = ("Stage", "Success", "95 % interval", "n", "Cycle (steps)", "Cycle (s)", "Successes per hour", "Env steps", "Wall")


def stage_grid(stages: Sequence[StageRow], names: Iterable[str], *, drop_empty: bool = False) -> Grid:
    """The named columns of `COLUMNS`, one row a stage; `drop_empty` leaves out columns that nothing was measured for."""
    columns = [(head, make) for head, make in COLUMNS if head in tuple(names)]
    if drop_empty:
        columns = [(head, make) for head, make in columns if any(make(s) != MISSING for s in stages)]
    return Grid([head for head, _ in columns], [[make(s) for _, make in columns] for s in stages], len(stages) - 1)


def stage_table(summary: Mapping[str, Any]) -> Table:
    """The stages of a run for the terminal. summary: the content of `summary.json`. Raises RealrlError on a field of a wrong kind."""
    grid = stage_grid(stages_of(summary), SHORT)
    table = Table(title=printable(str(summary["task"])) if summary.get("task") else None, title_justify="left", header_style="bold")
    for i, head in enumerate(grid.headers):
        table.add_column(head, justify="right" if i else "left", no_wrap=i == 0)
    for i, row in enumerate(grid.rows):
        table.add_row(*row, style="bold" if i == grid.final else None)
    return table


def markdown_table(summary: Mapping[str, Any]) -> str:
    """The same table as `stage_table` in GitHub's Markdown, ending in a newline. Raises RealrlError on a field of a wrong kind."""
    grid = stage_grid(stages_of(summary), SHORT)
    rule = ["---"] + ["---:"] * (len(grid.headers) - 1)
    return "".join("| " + " | ".join(row) + " |\n" for row in (grid.headers, rule, *grid.rows))


def latency_grid(stages: Sequence[StageRow]) -> Grid:
    """Action latency of the stages that have one, and the plans a second it allows."""
    rate = [count(1000 / s.p99_ms) if s.p99_ms else MISSING for s in stages]
    rows = [[s.name, figure3(s.p50_ms), figure3(s.p99_ms), r] for s, r in zip(stages, rate, strict=True)]
    return Grid(["Stage", "Median (ms)", "99th percentile (ms)", "Plans per second, 99 % of the time"], rows, len(rows) - 1)


def faster(final: StageRow, base: StageRow) -> str:
    """How final's cycle time compares with the demonstrator's, in words; seconds where both have them."""
    new, old = (final.cycle_s, base.cycle_s) if final.cycle_s and base.cycle_s else (final.cycle_steps, base.cycle_steps)
    if not new or not old:
        return ""
    change = 100 * (1 - new / old)
    return "as fast as the demonstrator" if abs(change) < .5 else \
        f"{abs(change):.0f} % {'faster' if change > 0 else 'slower'} than the demonstrator"


def short_count(value: float) -> str:
    """A count for a headline: 612 k, 1.20 M."""
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.0f} k" if value >= 1e4 else f"{value:,.0f}"


def improved(summary: Mapping[str, Any]) -> str:
    """What experience came to beside fine-tuning, in a sentence; nothing for other runs."""
    head = summary.get("headline")
    if not isinstance(head, Mapping) or "throughput_ratio" not in head:
        return ""
    quicker, rested, worse, success, before = (number_of(head, name, "headline") for name in (
        "throughput_ratio", "throughput_ratio_5s", "failure_ratio", "success", "fine_tuned_success"))
    said = ["which had no success" if quicker is None else f"{figure3(quicker)} times as many successes an hour",
            "" if rested is None else f"{figure3(rested)} times with 5 s a reset",
            "which had no failure" if worse is None else f"{figure3(worse)} times as many failures"]
    return (f"All tasks together: {percent(success)} succeed, {percent(before)} after fine-tuning alone: "
            + ", ".join(filter(None, said)) + ".")


def pressed(summary: Mapping[str, Any]) -> str:
    """How hard the arms of an assembly pressed, in a sentence; nothing for other runs."""
    head, end = summary.get("headline"), "peak_force_n"
    if not isinstance(head, Mapping) or end not in head:
        return ""
    forces = {key.removesuffix(end).strip("_") or "braced": number_of(head, key, "headline") for key in head if key.endswith(end)}
    learned = number_of(head, "steps_to_90", "headline")
    return ("Largest force in a trial, on the average: " + ", ".join(f"{arm} {figure3(force)} N" for arm, force in forces.items()) + "."
            + ("" if learned is None else f" In simulation nine of ten episodes succeeded after {count(learned)} decisions."))
