"""Statistics of features, as LeRobot keeps them: of one episode, merged, and those of a whole dataset.

Numbers have shape [D]; cameras [C, 1, 1] in [0, 1], a fraction of the largest value a pixel can have.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from realrl.data import tables
from realrl.data.errors import plain, read_json
from realrl.types import Array, RealrlError

Stats = dict[str, dict[str, Array]]
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
STATS = ("min", "max", "mean", "std", *QUANTILES)
LARGEST_SIDE = 150  # pixels that are looked at along the longer side of an image


def column_stats(columns: dict[str, Array], *, quantiles: bool = True) -> Stats:
    """Per feature min, max, mean, std, quantiles and count, each [D] over all axes but the last; true counts as one."""
    flat = {name: column.reshape(-1, column.shape[-1] if column.ndim > 1 else 1).astype(np.float64) for name, column in columns.items()}
    with np.errstate(invalid="ignore"):  # where a number is infinite, which whoever examines it says
        stats: Stats = {name: {"min": x.min(0), "max": x.max(0), "mean": x.mean(0), "std": x.std(0),
                               "count": np.array([len(columns[name])])} for name, x in flat.items()}
    for rows in {len(x) for x in flat.values()} if quantiles else ():  # a call costs more than its sorting: one for all of a length
        names = [name for name, x in flat.items() if len(x) == rows]
        found = np.quantile(np.hstack([flat[n] for n in names]), list(QUANTILES.values()), axis=0)
        ends = np.cumsum([flat[n].shape[1] for n in names])
        for name, part in zip(names, np.split(found, ends[:-1], axis=1), strict=True):
            stats[name] |= dict(zip(QUANTILES, part, strict=True))
    return stats


def sampled_frames(frames: int) -> Array:
    """Which frames of an episode its image statistics look at, [N] increasing: all of 100, and sqrt(sqrt(T))^3 of more."""
    wanted = min(frames, max(100, int(frames**0.75)))
    return np.unique(np.linspace(0, frames - 1, wanted).round().astype(np.int64))


def image_stats(frames: Iterable[Array]) -> dict[str, Array]:
    """Statistics of some frames (each uint8 [H, W, C] or uint16 [H, W]), each [C, 1, 1] in [0, 1]; count is of frames.

    Exact over the pixels that are looked at: they are counted by value, so an episode's size does not matter.
    """
    counts: Array | None = None
    n = 0
    for frame in frames:
        step = max(1, -(-max(frame.shape[:2]) // LARGEST_SIDE))
        small = frame[::step, ::step].reshape(-1, frame.shape[2] if frame.ndim == 3 else 1)
        levels = np.iinfo(frame.dtype).max + 1
        seen = np.stack([np.bincount(small[:, c], minlength=levels) for c in range(small.shape[1])])
        counts, n = (seen if counts is None else counts + seen), n + 1
    if counts is None:
        raise ValueError("no frames")
    value = np.arange(counts.shape[1]) / (counts.shape[1] - 1)
    total = counts.sum(1, keepdims=True)
    mean = (counts * value).sum(1) / total[:, 0]
    spread = np.sqrt((counts * (value - mean[:, None])**2).sum(1) / total[:, 0])
    below = np.cumsum(counts, 1)
    at = {name: value[(below < q * total).sum(1).clip(max=len(value) - 1)] for name, q in QUANTILES.items()}
    first, last = (counts > 0).argmax(1), counts.shape[1] - 1 - (counts[:, ::-1] > 0).argmax(1)
    found = {"min": value[first], "max": value[last], "mean": mean, "std": spread, **at}
    return {name: x.reshape(-1, 1, 1) for name, x in found.items()} | {"count": np.array([n])}


def merge_stats(a: Stats, b: Stats) -> Stats:
    """Statistics of both together; quantiles are count-weighted means, as LeRobot merges them."""
    merged: Stats = {}
    for name, y in b.items():
        x = a.get(name)
        if x is None:
            merged[name] = y
            continue
        w = float(y["count"][0]) / float(x["count"][0] + y["count"][0])
        mix = {s: (1 - w) * x[s] + w * y[s] for s in ("mean", *QUANTILES) if s in x and s in y}
        spread = (1 - w) * (x["std"]**2 + (x["mean"] - mix["mean"])**2) + w * (y["std"]**2 + (y["mean"] - mix["mean"])**2)
        merged[name] = {"min": np.minimum(x["min"], y["min"]), "max": np.maximum(x["max"], y["max"]), "std": np.sqrt(spread),
                        **mix, "count": x["count"] + y["count"]}
    return merged


def stored_stats(root: Path, features: dict[str, Any], frames: int) -> Stats:
    """stats.json if it covers all frames, else the episodes' own statistics merged anew."""
    numbers = tables.stored(features)
    told: Any = None
    with contextlib.suppress(FileNotFoundError):
        plain(root / "meta/stats.json")
        with contextlib.suppress(RealrlError):
            told = read_json(root / "meta/stats.json")
    with contextlib.suppress(ValueError, LookupError, TypeError):
        if all(told[name]["count"][0] == frames for name in numbers) and told.keys() >= tables.cameras(features).keys():
            return {name: {s: np.atleast_1d(v) for s, v in told[name].items()} for name in features if name in told}
    stats: Stats = {}
    for row in tables.episodes(root, stats=True).to_pylist():
        stats = merge_stats(stats, row_stats(row, list(features)))
    return stats


def row_stats(row: dict[str, Any], names: Sequence[str]) -> Stats:
    """The statistics in an episodes row, of the features that have them."""
    return {n: {s: np.array(row[f"stats/{n}/{s}"]) for s in (*STATS, "count") if row.get(f"stats/{n}/{s}") is not None}
            for n in names if row.get(f"stats/{n}/count") is not None}
