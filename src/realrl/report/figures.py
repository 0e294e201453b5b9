"""The pages' figures as SVG: panels side by side, success and failures, cycle time, the offline estimate against truth."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from realrl.report.reading import StageRow, counted, family_of, final_stage, number_of, wilson_bounds
from realrl.report.tables import figure3, percent

GREY, BLUE, ORANGE = "#7a828c", "#0072B2", "#D55E00"
# Okabe and Ito's palette: told apart with any common colour blindness and in grey print.
PALETTE = (BLUE, "#E69F00", "#009E73", "#CC79A7", "#56B4E9", ORANGE)
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 8.5, "text.color": "#1c2530", "axes.titlesize": 9,
    "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#9aa3ad", "axes.labelcolor": "#3c4650",
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#e6eaee", "grid.linewidth": .7, "xtick.color": "#3c4650",
    "ytick.color": "#3c4650", "xtick.major.size": 0, "ytick.major.size": 0, "legend.frameon": False, "legend.fontsize": 8,
    "svg.fonttype": "path", "svg.hashsalt": "realrl", "text.parse_math": False,
    "figure.constrained_layout.w_pad": .06, "figure.constrained_layout.h_pad": .06,
}


@dataclass(frozen=True)
class Drawing:
    """A figure as a page embeds it. pictures: (title, SVG as a data address), several side by side as far as the page is wide;
    width: pixels at most, 0 for the page's width."""

    pictures: list[tuple[str, str]]
    alt: str
    caption: str = ""
    width: int = 0


@dataclass(frozen=True)
class Panel:
    """One metric's place in a figure; `draw` puts it on the axes."""

    title: str
    ylabel: str
    xlabel: str
    draw: Callable[[Axes], None]


def _svg(figure: Figure) -> str:
    """Printed by the canvas itself: it draws once, where Figure.savefig finds the layout and draws all of it twice."""
    buffer = io.BytesIO()
    canvas: Any = FigureCanvasSVG(figure)
    canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def small_multiples(panels: Sequence[Panel], alt: str, caption: str = "") -> Drawing | None:
    """Panels side by side, each a picture of its own so that a narrow page has fewer a row; None without any."""
    pictures = []
    for panel in panels:
        figure = Figure(figsize=(3.4, 2.3), layout="constrained")
        axes = figure.add_subplot()
        panel.draw(axes)
        axes.set(ylabel=panel.ylabel, xlabel=panel.xlabel)
        pictures.append((panel.title, _svg(figure)))  # the page sets the title: it may be of any length
    return Drawing(pictures, alt, caption) if pictures else None


def _colours(stages: Sequence[StageRow]) -> list[str]:
    """One colour a stage: grey for the demonstrator, one blue for all offline rounds."""
    kinds = list(dict.fromkeys(family_of(s.name) for s in stages if s.name != "demonstrator"))
    return [GREY if s.name == "demonstrator" else PALETTE[kinds.index(family_of(s.name)) % len(PALETTE)] for s in stages]


def success_figure(stages: Sequence[StageRow]) -> Drawing | None:
    """Success on a plain axis, failures on a logarithmic one: near 100 % only the second shows who is better."""
    stages = [s for s in stages if s.rate is not None]
    if not stages:
        return None
    figure = Figure(figsize=(10, .75 + .42 * len(stages)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.35, 1])
    failure_rates = []
    for y, (stage, colour) in enumerate(zip(stages, _colours(stages), strict=True)):
        rate = stage.rate or 0.0
        low, high = (rate if v is None else v for v in (stage.low, stage.high))
        failure_rates += [1 - rate, 1 - high, 1 - low]
        left.barh(y, 100 * rate, height=.56, color=colour, alpha=.22)
        left.plot([100 * low, 100 * high], [y, y], color=colour, lw=2, solid_capstyle="butt")
        left.plot(100 * rate, y, "o", color=colour, ms=6)
        weight = "bold" if stage is final_stage(stages) else "normal"
        left.text(119, y, percent(rate), va="center", ha="right", fontweight=weight)
        left.text(140, y, f"{round(rate * stage.n):,}/{stage.n:,}" if stage.n else "", va="center", ha="right", fontweight=weight)
        _failure_point(right, y, 1 - rate, 1 - high, 1 - low, colour)
    left.set(xlim=(0, 142), xticks=range(0, 101, 20), xlabel="successful episodes (%)", ylim=(len(stages) - .45, -.55),
             yticks=range(len(stages)), yticklabels=[s.name for s in stages], title="Success")
    lowest = min((v for v in failure_rates if v > 1e-9), default=.01)
    right.set(xscale="log", xlim=(max(1e-5, lowest / 2), 1.1), title="Failures",
              xlabel="failures per 100 episodes (log scale, left is better)")
    right.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g}"))
    right.minorticks_off()
    for axes in (left, right):
        axes.grid(axis="y", visible=False)
    arrows = " Open arrow: no failure seen, so only the interval's upper end is drawn." if any(s.rate == 1 for s in stages) else ""
    return Drawing([("", _svg(figure))], "success and failure rate of every stage with 95 % intervals",
                   "Dots: measured. Lines: 95 % interval." + arrows)


def _failure_point(axes: Axes, y: int, rate: float, low: float, high: float, colour: str) -> None:
    floor = 1e-6
    if rate <= 0:
        axes.plot([floor, max(high, floor)], [y, y], color=colour, lw=2, alpha=.35, solid_capstyle="butt")
        axes.plot(max(high, floor), y, "<", color=colour, mfc="white", ms=7)
        return
    axes.plot([max(low, floor), high], [y, y], color=colour, lw=2, solid_capstyle="butt")
    axes.plot(rate, y, "o", color=colour, ms=6)


def _density(axes: Axes, stage: StageRow, colour: str, *, filled: bool) -> None:
    edges, counts = np.array(stage.edges, float), np.array(stage.counts, float)
    share = 100 * counts / max(counts.sum(), 1) / np.diff(edges)
    label = stage.name + (f", mean {figure3(stage.cycle_steps)} steps" if stage.cycle_steps is not None else "")
    axes.stairs(share, edges, fill=filled, color=colour, alpha=.35 if filled else 1, lw=1.8, label=label)
    if stage.cycle_steps is not None:
        axes.axvline(stage.cycle_steps, color=colour, lw=1.4, ls="--")


def cycle_figures(stages: Sequence[StageRow]) -> tuple[Drawing | None, Drawing | None]:
    """(demonstrator against the final stage, every stage against the demonstrator)."""
    stages = [s for s in stages if sum(s.counts)]
    if not stages:
        return None, None
    base = next((s for s in stages if s.name == "demonstrator"), None)
    others = [s for s in stages if s is not base]
    used = [e for s in stages for left, right, count in zip(s.edges, s.edges[1:], s.counts, strict=False) if count for e in (left, right)]
    span = (min(used), max(used))
    labels: dict[str, Any] = {"xlabel": "steps to success", "ylabel": "share of successes (% per step)", "xlim": span}

    def draw(axes: Axes, stage: StageRow | None) -> None:
        if base is not None:
            _density(axes, base, GREY, filled=True)
        if stage is not None:
            _density(axes, stage, BLUE, filled=False)
        axes.set(**labels)

    figure = Figure(figsize=(7.4, 2.9), layout="constrained")
    axes = figure.add_subplot()
    draw(axes, others[-1] if others else None)
    axes.legend(loc="upper right")
    main = Drawing([("", _svg(figure))], "cycle time, demonstrator against final stage", "Dashed lines: means. Further left is faster.",
                   760)
    panels = [Panel(s.name, labels["ylabel"], labels["xlabel"], partial(draw, stage=s)) for s in others]
    return main, small_multiples(panels, "cycle time of every stage", "Filled grey: demonstrator.") if len(others) > 1 else None


def ope_figure(points: Sequence[Mapping[str, Any]], where: str) -> Drawing:
    """Offline estimate over true success, one mark a checkpoint."""
    figure = Figure(figsize=(6.2, 4.1), layout="constrained")
    axes = figure.add_subplot()
    names = list(dict.fromkeys(str(p.get("stage") or "run") for p in points))
    for i, name in enumerate(names):
        colour, marker = PALETTE[i % len(PALETTE)], "osD^vP"[i % 6]
        for j, point in enumerate(p for p in points if str(p.get("stage") or "run") == name):
            x, y, n = float(point["true_success"]), float(point["estimate"]), number_of(point, "true_n", where)
            low, high = (number_of(point, k, where) for k in ("low", "high"))
            if n and counted(n) and 0 <= x <= 1:
                axes.plot([100 * v for v in wilson_bounds(x, n)], [y, y], color=colour, lw=1, alpha=.45)
            if low is not None and high is not None:
                axes.plot([100 * x, 100 * x], [low, high], color=colour, lw=1, alpha=.45)
            axes.plot(100 * x, y, marker, color=colour, ms=6, mec="white", mew=.6, label=name if j == 0 else None)
    axes.set(xlabel="true success, measured afterwards (%)", ylabel="offline estimate of the policy's value")
    if len(names) > 1:
        axes.legend(loc="best", handletextpad=.2)
    return Drawing([("", _svg(figure))], "offline estimate against true success", "One mark a checkpoint; lines are 95 % intervals.", 640)
