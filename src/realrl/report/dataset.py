"""A dataset as one self-contained page: what it holds, how its episodes went, what its columns and cameras look like, what is wrong.

Rates and lengths are of all episodes; the curves of columns are of a sample of them, and the page says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes

from realrl.data import labels, schema, tables
from realrl.data.formats import open_dataset
from realrl.data.formats.lerobot import described
from realrl.data.reading import Recordings
from realrl.data.schema import Info
from realrl.data.tools.check import check, describe
from realrl.data.tools.faults import alike
from realrl.files import write_text
from realrl.report.figures import BLUE, GREY, ORANGE, PALETTE, STYLE, Drawing, Panel, small_multiples
from realrl.report.pictures import film_strip, short, tell_once
from realrl.report.reading import wilson_bounds
from realrl.report.tables import MISSING, Grid, count, duration, figure3, percent
from realrl.report.template import render
from realrl.types import Array, RealrlError

T = TypeVar("T")
Each = Callable[[Sequence[T], str], Iterable[T]]
SAMPLE = 200  # episodes whose columns are drawn
MOST_FEATURES, MOST_LINES, MOST_PROBLEMS = 24, 6, 200
BOOKKEEPING = {"timestamp", "frame_index", "episode_index", "index", "task_index", "time", "starts_plan", "source",
               "next.done", "next.truncated"}


@dataclass
class _Data:
    """A dataset, its info.json and its episodes' rows."""

    store: Recordings
    info: Info
    rows: pa.Table

    @classmethod
    def of(cls, store: Recordings) -> _Data:
        """An opened dataset."""
        return cls(store, *described(store))

    def __len__(self) -> int:
        return len(self.rows)


@dataclass
class _Sample:
    """Some episodes' numbers. columns: name -> [T, D] of each; human: fraction of steps that a person chose, of each episode
    in the dataset, None where nothing tells."""

    episodes: list[int]
    columns: dict[str, list[Array]]
    human: Array | None


def write_page(directory: str | Path, file: str | Path, *, pictured: int = 24, each: Each[Any] = lambda items, what: items) -> Path:
    """Write the page of a dataset to `file` and return its path.

    pictured: episodes that get thumbnails; each: wraps what takes long in a progress bar. Raises RealrlError when there is no
    dataset, its tables cannot be read, or the page cannot be written.
    """
    root, target = Path(directory), Path(file)
    data = _Data.of(open_dataset(root))
    about, sample = describe(root), _sample(data, each)
    problems = alike(check(root))
    success = _success(data)
    length = data.rows["length"].to_numpy()
    with matplotlib.rc_context(STYLE):
        html = render("dataset.html", {
            "title": root.resolve().name, "lead": _lead(about), "tiles": _tiles(about, length, success, sample.human),
            "kicker": " · ".join([f"LeRobot dataset {data.info['codebase_version']}", short(str(about["robot_type"] or "unknown robot")),
                                  f"{about['fps']:g} steps/s"]),
            "counts": _counts(data, length, success, sample.human), "columns": _columns(data),
            "problems": [{"severity": p.severity, "text": short(f"{_inside(root, p.where)}: {p.what}"), "mend": p.mend, "more": len(more)}
                         for p, *more in problems[:MOST_PROBLEMS]],
            "more_problems": sum(map(len, problems[MOST_PROBLEMS:])), "episodes": _episode_figure(length, success, sample.human),
            "features": _feature_figures(sample, float(about["fps"])), "sampled": len(sample.episodes), "total": len(data),
            "cards": _cards(data, success, sample.human, pictured, each), "cameras": bool(data.store.cameras)})
    try:
        write_text(target, html)
    except OSError as error:
        raise RealrlError(f"{target} could not be written ({error.strerror or error}); free space or choose another file") from error
    return target


def _inside(root: Path, where: str) -> str:
    return where.removeprefix(f"{root}/")


# ---- numbers


def _sample(data: _Data, each: Each[Any]) -> _Sample:
    """Columns of evenly spaced episodes; who acted, of all. Files that cannot be read are left to the list of problems."""
    features = tables.stored(data.info["features"])
    picked = np.unique(np.linspace(0, len(data) - 1, min(len(data), SAMPLE)).round().astype(int)).tolist() if len(data) else []
    wanted, human = set(picked), np.full(len(data), np.nan)
    shown = [name for name in features if name not in BOOKKEEPING][:MOST_FEATURES]
    columns: dict[str, list[Array]] = {name: [] for name in shown}
    length, index, keys = (data.rows["length"].to_numpy(), np.arange(len(data)), list(zip(
        data.rows["data/chunk_index"].to_pylist(), data.rows["data/file_index"].to_pylist(), strict=True)))
    by_file: dict[tuple[int, int], list[int]] = {}
    for e, key in zip(index.tolist(), keys, strict=True):
        by_file.setdefault(key, []).append(e)
    who = next((alias for alias in schema.ALIASES["intervention"] if alias in features), None)
    seen: list[int] = []
    for key, members in each(list(by_file.items()), "reading columns"):
        names = [*(shown if wanted & set(members) else []), *([who] if who else [])]
        try:
            frames, wanted_columns = int(length[members].sum()), {name: features[name] for name in names}
            found = tables.read_frames(schema.data_file(data.store.dir, data.info, key), wanted_columns, 0, frames) if names else {}
        except (RealrlError, FileNotFoundError):
            continue
        start = 0
        for e in members:
            span = slice(start, start + int(length[e]))
            start = span.stop
            if who:
                human[e] = np.mean(found[who][span].astype(bool)) if len(found[who][span]) else np.nan
            if e in wanted:
                seen.append(e)
                for name in shown:
                    x = found[name][span]
                    columns[name].append(x.reshape(len(x), -1).astype(np.float64))
    return _Sample(seen, {name: xs for name, xs in columns.items() if xs}, human if who else None)


def _success(data: _Data) -> Array | None:
    """Whether each episode succeeded [N], as float with NaN for unknown; None when nothing tells."""
    told = np.array([np.nan if good is None else float(good) for good in labels.outcomes(data.store.dir, data.info, data.rows)])
    return told if np.isfinite(told).any() else None


def _lead(about: dict[str, Any]) -> str:
    tasks = about["tasks"]
    what = f"of “{short(tasks[0])}”" if len(tasks) == 1 else f"of {len(tasks)} tasks"
    return (f"{about['episodes']:,} episodes {what}: {about['frames']:,} control steps, "
            f"{duration(about['frames'] / about['fps'])} of robot time.")


def _rate(known: Array | None) -> str:
    return MISSING if known is None or not np.isfinite(known).any() else percent(float(np.nanmean(known)))


def _tiles(about: dict[str, Any], length: Array, success: Array | None, human: Array | None) -> list[dict[str, str]]:
    tiles = []
    if success is not None and np.isfinite(success).any():
        n = int(np.isfinite(success).sum())
        low, high = wilson_bounds(float(np.nanmean(success)), n)
        tiles.append({"what": "Success", "value": _rate(success),
                      "detail": f"95 % interval {percent(low)[:-2]} – {percent(high)}\nn = {count(n)} episodes"
                      + (f", {count(len(success) - n)} are unknown" if n < len(success) else "")})
    else:
        tiles.append({"what": "Success", "value": "unknown", "detail": "nothing says how episodes ended:\nrealrl data label"})
    if human is not None and np.isfinite(human).any():
        steps = float(np.nansum(human * length) / max(length[np.isfinite(human)].sum(), 1))
        tiles.append({"what": "Steps by a person", "value": percent(steps), "detail": f"{_rate(human > 0)} of the episodes have any"})
    mean = float(length.mean()) if len(length) else 0.0
    tiles.append({"what": "Episode length", "value": f"{mean / about['fps']:.1f} s", "detail": f"mean of {mean:.0f} steps\n"
                  + (f"from {length.min()} to {length.max()} steps" if len(length) else "")})
    films = f", {about['video_files']:,} videos" if about["video_files"] else ""
    files = f"{about['data_files']:,} table" + "s" * (about["data_files"] != 1)
    tiles.append({"what": "On disk", "value": _size(about["bytes"]), "detail": files + films})
    return tiles


def _size(size: float) -> str:
    units = iter(("B", "KiB", "MiB", "GiB"))
    unit = next(units)
    while size >= 1024 and unit != "GiB":
        size, unit = size / 1024, next(units)
    return f"{figure3(size) if size < 100 else count(size)} {unit}"


def _counts(data: _Data, length: Array, success: Array | None, human: Array | None) -> list[Grid]:
    """Episodes by task, and by who recorded them."""
    grids = []
    names = data.rows.column_names
    groups = {"Task": [", ".join(texts or []) for texts in data.rows["tasks"].to_pylist()] if "tasks" in names else [],
              "Recorded by": [name or "unknown" for name in data.rows["policy"].to_pylist()] if "policy" in names else []}
    for what, values in groups.items():
        rows = []
        for value in dict.fromkeys(values):
            here = np.array([v == value for v in values])
            rows.append([short(value) or "(no text)", count(here.sum()), f"{length[here].mean():.1f}",
                         _rate(None if success is None else success[here]), _rate(None if human is None else human[here])])
        if rows:
            grids.append(Grid([what, "Episodes", "Mean length (steps)", "Success", "Steps by a person"], rows[:100]))
    return grids


def _columns(data: _Data) -> Grid:
    rows = []
    for name, f in data.info["features"].items():
        film = f.get("info") or {}
        kind = str(f["dtype"])
        if kind == "video":
            kind = f"video ({short(str(film.get('video.codec', 'unknown codec')))}{', depth' if film.get('video.is_depth_map') else ''})"
        axes = f.get("names")
        names = axes if isinstance(axes, list) else [x for v in axes.values() for x in v] if isinstance(axes, dict) else []
        rows.append([short(name), short(kind), " × ".join(map(str, f["shape"])), short(", ".join(map(str, names)))])
    return Grid(["Column", "Type", "Shape", "Names"], rows)


# ---- curves


def _episode_figure(length: Array, success: Array | None, human: Array | None) -> Drawing | None:
    if not len(length):
        return None
    panels = [Panel("Episode lengths", "episodes", "steps", partial(_draw_lengths, length=length, success=success))]
    for title, x in (("Success over time", success), ("Steps by a person over time", human)):
        if x is not None and np.isfinite(x).any():
            panels.append(Panel(title, "% of the last episodes", "episode", partial(_draw_running, x=x)))
    return small_multiples(panels, "lengths, success and interventions of the episodes",
                           "Curves: mean of the last tenth of the episodes (at least five).")


def _draw_lengths(axes: Axes, length: Array, success: Array | None) -> None:
    edges = np.histogram_bin_edges(length, bins=min(30, max(5, len(np.unique(length)))))
    axes.stairs(np.histogram(length, edges)[0], edges, fill=True, color=GREY, alpha=.45, label="all")
    if success is not None and (success == 0).any():
        axes.stairs(np.histogram(length[success == 0], edges)[0], edges, fill=True, color=ORANGE, alpha=.8, label="failed")
        axes.legend()


def _draw_running(axes: Axes, x: Array) -> None:
    window = max(5, len(x) // 10)
    known = np.isfinite(x)
    total, n = (np.cumsum(v) for v in (np.where(known, x, 0.0), known.astype(float)))
    before = np.maximum(np.arange(len(x)) - window, -1)
    share = (total - np.where(before >= 0, total[before], 0)) / np.maximum(n - np.where(before >= 0, n[before], 0), 1)
    axes.plot(np.arange(len(x)), 100 * share, color=BLUE, lw=1.6)
    axes.set(ylim=(-3, 103))


def _feature_figures(sample: _Sample, fps: float) -> list[tuple[str, Drawing]]:
    """For each column how its values are spread, and how they run over an episode."""
    figures = []
    for name, xs in sample.columns.items():
        finite = [(e, x) for e, x in zip(sample.episodes, xs, strict=True) if np.isfinite(x).all()]
        if not finite:
            continue
        rows, (number, middle) = [x for _, x in finite], finite[len(finite) // 2]
        values = np.concatenate(rows)
        if np.isin(values, (0.0, 1.0)).all():
            panels = [Panel("Over an episode", "true (%)", "seconds", partial(_draw_share, xs=rows, fps=fps))]
        else:
            panels = [Panel("Values", "value", "dimension", partial(_draw_spread, x=values)) if values.shape[1] > MOST_LINES else
                      Panel("Values", "share (%)", "value", partial(_draw_histogram, x=values)),
                      Panel("Over an episode", "value", "seconds", partial(_draw_series, xs=rows, fps=fps))]
        panels.append(Panel(f"In episode {number}", "value", "seconds", partial(_draw_one, x=middle, fps=fps)))
        drawing = small_multiples(panels, f"values of {name}, and how they run over an episode")
        if drawing is not None:
            figures.append((short(name), drawing))
    return figures


def _draw_histogram(axes: Axes, x: Array) -> None:
    low, high = float(x.min()), float(x.max())
    edges = np.linspace(low, high, 41) if high > low else np.array([low - .5, low + .5])
    for d in range(x.shape[1]):
        counts, _ = np.histogram(x[:, d], edges)
        axes.stairs(100 * counts / max(len(x), 1), edges, color=PALETTE[d % len(PALETTE)], lw=1.3, label=str(d))
    if x.shape[1] > 1:
        axes.legend(ncols=2, title="dimension", title_fontsize=8, loc="upper right")
        axes.set_ylim(0, 1.35 * axes.get_ylim()[1])


def _draw_spread(axes: Axes, x: Array) -> None:
    """Per dimension a line from the 1 % to the 99 % quantile, a bar from 10 % to 90 %, a dot at the median."""
    q01, q10, q50, q90, q99 = np.quantile(x, [.01, .1, .5, .9, .99], axis=0)
    at = np.arange(x.shape[1])
    axes.vlines(at, q01, q99, color=BLUE, lw=.8, alpha=.6)
    axes.vlines(at, q10, q90, color=BLUE, lw=3, alpha=.35)
    axes.plot(at, q50, "o", color=BLUE, ms=2.4)


def _draw_one(axes: Axes, x: Array, fps: float) -> None:
    step = max(1, len(x) // 400)
    for d in range(min(x.shape[1], MOST_LINES)):
        axes.plot(np.arange(0, len(x), step) / fps, x[::step, d], color=PALETTE[d % len(PALETTE)], lw=1)


def _draw_share(axes: Axes, xs: Sequence[Array], fps: float) -> None:
    grid = _grid(xs)
    for d in range(min(xs[0].shape[1], MOST_LINES)):
        axes.plot(grid / fps, [100 * np.mean([x[t, d] for x in xs if len(x) > t]) for t in grid], color=PALETTE[d % len(PALETTE)], lw=1.6)
    axes.set(ylim=(-3, 103))


def _grid(xs: Sequence[Array]) -> Array:
    """Steps at which most episodes still run."""
    until = int(np.quantile([len(x) for x in xs], .95))
    return np.unique(np.linspace(0, max(until - 1, 0), 80).round().astype(int))


def _draw_series(axes: Axes, xs: Sequence[Array], fps: float) -> None:
    """Median and the band from 10 % to 90 % of the episodes that still run, for the first few dimensions."""
    grid = _grid(xs)
    for d in range(min(xs[0].shape[1], MOST_LINES)):
        band = np.array([np.quantile([x[t, d] for x in xs if len(x) > t], [.1, .5, .9]) for t in grid])
        colour = PALETTE[d % len(PALETTE)]
        axes.fill_between(grid / fps, band[:, 0], band[:, 2], color=colour, alpha=.15, lw=0)
        axes.plot(grid / fps, band[:, 1], color=colour, lw=1.3)


# ---- pictures


def _cards(data: _Data, success: Array | None, human: Array | None, pictured: int, each: Each[Any]) -> list[dict[str, Any]]:
    """What the page shows of single episodes: facts and thumbnails."""
    if not data.store.cameras or not len(data) or not pictured:
        return []
    picked = np.unique(np.linspace(0, len(data) - 1, min(len(data), pictured)).round().astype(int)).tolist()
    rows, cards = data.rows, []
    for e in each(picked, "drawing thumbnails"):
        texts = rows["tasks"][e].as_py() if "tasks" in rows.column_names else None
        facts = [f"{rows['length'][e].as_py()} steps", short((texts or ["no task text"])[0])]
        if human is not None and human[e] > 0:
            facts.append(f"{percent(float(human[e]))} by a person")
        outcome = "unknown" if success is None or np.isnan(success[e]) else "success" if success[e] else "failed"
        films = [film_strip(data.store, e, camera) for camera in data.store.cameras]
        cards.append({"number": e, "facts": facts, "outcome": outcome, "films": films})
    tell_once(cards)
    return cards
