"""Learning curves from the rows of metrics.jsonl: what a reader looks for first in front, everything else behind a fold."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from realrl.report.figures import BLUE, ORANGE, Panel, small_multiples
from realrl.report.reading import EACH_STEP, family_of, values_of
from realrl.report.tables import MISSING, Grid
from realrl.types import Array

# What a reader looks for first, in this order: (panel title, axis label, factor, names it is logged under).
WELL_KNOWN: tuple[tuple[str, str, float, tuple[str, ...]], ...] = (
    ("Success of training rollouts", "success (%)", 100, ("success_rate", "success", "rollout_success", "train_success")),
    ("Loss", "loss", 1, ("loss", "bc_loss", "loss_bc")),
    ("Mean advantage", "advantage (reward)", 1, ("advantage_mean", "mean_advantage", "advantage")),
    ("KL to the behaviour policy", "KL (nats)", 1, ("kl", "approx_kl", "kl_mean")),
    ("Reward a control step", "reward", 1, ("reward_per_step",)),
    ("Surprise of the world model", "KL (nats)", 1, ("surprise",)),
    ("Replayed steps for each control step", "steps", 1, ("train_ratio",)),
    ("Deviation of its actions", "share of half their range", 1, ("deviation",)),
    ("Drift of the action in a round", "RMS shift (action units)", 1, ("drift",)),
    ("Clip fraction", "clipped (%)", 100, ("clip_fraction", "clip_frac", "clipfrac")),
    ("Explained variance of V", "explained (1 = all)", 1, ("value_explained", "explained_variance", "value_explained_variance")),
    ("Exploration noise", "sigma (action units)", 1, ("sigma", "sigma_mean")),
    ("Probability ratio", "ratio new / old", 1, ("ratio", "ratio_mean")),
    ("OPE estimate", "estimate", 1, ("ope_estimate", "ope")),
    ("Student-teacher gap", "RMS gap (action units)", 1, ("student_teacher_gap", "student_gap", "gap")),
)
GATE = ("ope_gain", "ope_low", "accepted")
TRIALS = ("exploring", "deployed", "gap")
BOOKKEEPING = {"stage", "step", "time", "env_steps", "iteration", "round", "epoch", "seed", "wall_s", *GATE, *TRIALS}


@dataclass(frozen=True)
class Series:
    """One metric over one stage. x: [N]; y: [N], or [N, K] for a metric of K values a row (say, one a denoising step)."""

    stage: str
    x: Array
    y: Array


def curves(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The curves of every family of stages, as the template wants them: title, main and further figure, tables of what was measured
    once a stage, and how many further metrics there are."""
    parts = []
    for family in dict.fromkeys(family_of(str(r.get("stage") or "run")) for r in rows):
        own = [r for r in rows if family_of(str(r.get("stage") or "run")) == family]
        main, rest = _panels(own)
        gate = [r for r in own if values_of(r.get("accepted")) and values_of(r.get("ope_gain"))]
        caption = f"OPE gate: {sum(bool(r['accepted']) for r in gate)} of {len(gate)} candidates accepted; " \
                  "the line under a dot ends at the lower confidence bound." if gate else ""
        once, rest_once = _measured_once(own)
        if not main and not once:
            main, once, rest, rest_once = rest, rest_once, [], None
        if main or once:
            parts.append({"title": family[:1].upper() + family[1:].replace("-imitation", " imitation"),
                          "main": small_multiples(main, f"curves of {family}", caption), "once": once,
                          "rest": small_multiples(rest, f"further curves of {family}"), "rest_once": rest_once,
                          "count": len(rest) + (len(rest_once.rows) if rest_once else 0)})
    return parts


def _series(rows: Sequence[Mapping[str, Any]], key: str, factor: float) -> tuple[str, list[Series]]:
    """A metric of every stage in `rows`, and the name of the x axis. Rows without a (finite) value are left out."""
    held = [r for r in rows if values_of(r.get(key)) is not None]
    by_env = all(isinstance(r.get("env_steps"), (int, float)) for r in held)
    series = []
    for stage in dict.fromkeys(str(r.get("stage") or "run") for r in held):
        own = [r for r in held if str(r.get("stage") or "run") == stage]
        values = [values_of(r[key]) for r in own]
        width = max(len(v) for v in values if v is not None)
        y = np.array([[*v, *[math.nan] * (width - len(v))] for v in values if v is not None]) * factor
        x = np.array([r["env_steps"] if by_env else (values_of(r.get("step")) or [i])[0] for i, r in enumerate(own)], float)
        series.append(Series(stage, x, y if width > 1 else y[:, 0]))
    return "environment steps" if by_env else "training step", series


def _known(key: str) -> int:
    """The metric's rank among the well-known names, or their number."""
    last = key.removesuffix(EACH_STEP).rsplit("/", 1)[-1].lower()
    return next((i for i, known in enumerate(WELL_KNOWN) if last in known[3]), len(WELL_KNOWN))


def _metrics(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of what was logged, the well-known ones first."""
    return sorted(dict.fromkeys(k for r in rows for k, v in r.items() if k not in BOOKKEEPING and values_of(v)), key=_known)


def _only_dots(series: Sequence[Series]) -> bool:
    """Whether no stage has two numbers that a line could join."""
    return all(len(s.x) == 1 and s.y.ndim == 1 for s in series)


def _panels(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Panel], list[Panel]]:
    """(well-known, other) panels of one family of stages."""
    main: list[Panel] = []
    rest: list[Panel] = []
    if gate := [r for r in rows if values_of(r.get("ope_gain"))]:
        main.append(Panel("OPE gate", "gain over behaviour policy", "candidate, in order", partial(_draw_gate, rows=gate)))
    if tried := [r for r in rows if all(values_of(r.get(name)) for name in ("exploring", "deployed"))]:
        xlabel, explored = _series(tried, "exploring", 100)
        both = [replace(one, stage=name) for name, one in (("exploring", explored[0]), ("deployed", _series(tried, "deployed", 100)[1][0]))]
        main.append(Panel("What explores and what is deployed", "success (%)", xlabel, partial(_draw_lines, series=both)))
    for key in _metrics(rows):
        title, ylabel, factor, _ = WELL_KNOWN[_known(key)] if _known(key) < len(WELL_KNOWN) else (key, "", 1.0, ())
        xlabel, series = _series(rows, key, factor)
        group = main if _known(key) < len(WELL_KNOWN) else rest
        if (lines := [s for s in series if s.y.ndim == 1]) and not _only_dots(series):
            group.append(Panel(title, ylabel, xlabel, partial(_draw_lines, series=lines)))
        tables = [s for s in series if s.y.ndim == 2]
        span = (min(np.nanmin(s.y) for s in tables), max(np.nanmax(s.y) for s in tables)) if tables else (0.0, 1.0)
        for one in tables:
            where = f", {one.stage}" if len(series) > 1 else ""
            if len(one.x) == 1:
                line = Series(one.stage, np.arange(1.0, one.y.shape[1] + 1), one.y[0])
                group.append(Panel(title + where, ylabel, "denoising step", partial(_draw_lines, series=[line])))
            else:
                group.append(Panel(title + where, "denoising step", xlabel, partial(_draw_heat, series=one, label=ylabel, span=span)))
    return main, rest


def _measured_once(rows: Sequence[Mapping[str, Any]]) -> tuple[Grid | None, Grid | None]:
    """(well-known, other) metrics of which every stage has one number at most: a table says more than a panel of one dot."""
    stages = list(dict.fromkeys(str(r.get("stage") or "run") for r in rows))
    known: list[list[str]] = []
    other: list[list[str]] = []
    for key in _metrics(rows):
        title, ylabel, factor, _ = WELL_KNOWN[_known(key)] if _known(key) < len(WELL_KNOWN) else (key, "", 1.0, ())
        _, series = _series(rows, key, factor)
        if _only_dots(series):
            found = {s.stage: f"{s.y[0]:.3g}" for s in series}
            name = title + "".join(f" {unit}" for unit in re.findall(r"\(.*\)", ylabel))
            (known if ylabel else other).append([name, *(found.get(stage, MISSING) for stage in stages)])
    headers = ["Measured once", *stages]
    return Grid(headers, known) if known else None, Grid(headers, other) if other else None


def _blocks(values: Array, count: int, reduce: Callable[..., Any]) -> Array:
    """values [N, ...] reduced over `count` runs of neighbours: [min(N, count), ...]."""
    return np.stack([reduce(part, axis=0) for part in np.array_split(values, min(len(values), count))])


def _draw_lines(axes: Axes, series: Sequence[Series]) -> None:
    colours = [BLUE] if len(series) == 1 else [tuple(c) for c in matplotlib.colormaps["viridis"](np.linspace(0, .85, len(series)))]
    for one, colour in zip(series, colours, strict=True):
        good = np.isfinite(one.y)
        x, y = one.x[good], one.y[good]
        if len(x) > 120:
            x, low, high, y = (_blocks(x, 60, np.mean), *(_blocks(y, 60, f) for f in (np.min, np.max, np.mean)))
            axes.fill_between(x, low, high, color=colour, alpha=.16, lw=0)
        axes.plot(x, y, color=colour, lw=1.6, marker="o" if len(x) < 25 else "", ms=3, label=one.stage)
    if len(series) > 1:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, handlelength=1.2, columnspacing=1, borderpad=0)
    axes.margins(x=.02)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(_short_steps))


def _short_steps(x: float, _: object = None) -> str:
    return f"{x / 1e6:g} M" if abs(x) >= 1e6 else f"{x / 1e3:g} k" if abs(x) >= 1e4 else f"{x:g}"


def _draw_heat(axes: Axes, series: Series, label: str, span: tuple[float, float]) -> None:
    values = _blocks(series.y, 80, np.mean)
    left, right = float(series.x.min()), float(series.x.max())
    steps = values.shape[1]
    half = (right - left) / (2 * max(len(values) - 1, 1)) or .5  # a cell's middle is where it was measured
    image = axes.imshow(values.T, aspect="auto", origin="lower", cmap="cividis", interpolation="nearest", vmin=span[0], vmax=span[1],
                        extent=(left - half, right + half, .5, steps + .5))
    axes.grid(visible=False)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(_short_steps))
    bar = axes.figure.colorbar(image, ax=axes, label=label, pad=.02)
    bar.outline.set_visible(False)


def _draw_gate(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Each candidate's estimated gain and its lower bound: a full dot was accepted, a hollow one sent back."""
    axes.axhline(0, color="#9aa3ad", lw=1)
    for i, row in enumerate(rows, 1):
        gain, low, taken = float(row["ope_gain"]), values_of(row.get("ope_low")), bool(row.get("accepted"))
        colour = BLUE if taken else ORANGE
        if low:
            axes.plot([i, i], [low[0], gain], color=colour, lw=1.4)
        axes.plot(i, gain, "o", color=colour, mfc=colour if taken else "white", ms=5)
        if i > 1 and row.get("stage") != rows[i - 2].get("stage"):
            axes.axvline(i - .5, color="#9aa3ad", lw=.8, ls=":")
    axes.plot([], [], "o", color=BLUE, ms=5, label="accepted")
    axes.plot([], [], "o", color=ORANGE, mfc="white", ms=5, label="sent back")
    axes.legend(loc="lower center", ncols=2, handletextpad=.2, columnspacing=1)
    axes.margins(y=.25)
    axes.set_xlim(.5, len(rows) + .5)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
