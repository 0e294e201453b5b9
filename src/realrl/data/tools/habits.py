"""What spoils imitation though no file is wrong: pauses, joints that are stuck, labels that say nothing, clocks, texts that change.

Thresholds lie beyond what clean recordings of people and of scripted experts show (Adroit's and PushT's people, robosuite's, ALOHA's,
a humanoid's, BridgeData's; experts of the toy tasks, Meta-World and Adroit). Two ways of doing a task are looked for where the start does
not say which is meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from realrl.data import clocks, schema, spread, tables
from realrl.data.reading import PLAIN
from realrl.data.schema import Info
from realrl.data.stats import Stats
from realrl.data.tables import FileKey
from realrl.data.tools.faults import Problem
from realrl.types import Array, RealrlError

MOVES = 0.02  # of a joint's range in the set, away from where the episode began: more than sensors are noisy
PAUSE_S, PAUSE_SHARE = 1.0, 0.1  # people begin within 0.7 s and 7 % of an episode
SMOOTH = 0.25  # mean step over standard deviation; white noise has 1.13, and its range says nothing of motion
AT_LIMIT = 0.6  # of all frames at one end; people reach 0.3 on a joint, experts that switch between full and nothing 0.4
FEW = 100  # frames: fewer say nothing of ends
END = 1e-3  # of its range: so near an end counts as at it
SWITCH = 0.9  # of all frames at both ends: it is open or shut, no joint
GRIPPER = re.compile(r"grip|finger|jaw|claw|hand", re.IGNORECASE)
SAME = 0.95  # of all frames; an action of zeros is equal to a velocity of zeros in up to 0.75
SAMPLED = 1000  # frames of a file that are compared, evenly spread
CLOCK = 0.02  # relative difference of the rates
PLACES, POINTS, DIRECTIONS = 64, 16, 3  # states kept of an episode, compared of it; directions of difference looked along
LEAST_EPISODES, LEAST_SHARE = 10, 0.2  # of one task; of the rarer way
APART = 7.0  # distance of two ways over their scatter; an even spread halved has 3.5, and nothing clean that we saw more than 5.7
FORESEEN = 0.9  # of all pairs that one number of the start puts in order: the person answered to what was found
COLUMNS = ("action", "observation.state", "timestamp", "task_index", "episode_index")


@dataclass
class _Seen:
    """What the files showed, added up. low, high: frames at the ends [A]; same: frames in which action [A] and state [D] are equal."""

    frames: int = 0
    compared: int = 0
    low: Array = field(default_factory=lambda: np.zeros(0))
    high: Array = field(default_factory=lambda: np.zeros(0))
    same: Array = field(default_factory=lambda: np.zeros((0, 0)))
    paused: dict[int, float] = field(default_factory=dict)
    changed: list[int] = field(default_factory=list)
    ticks: list[float] = field(default_factory=list)
    unit: str = ""  # of the timestamps, where it is not seconds
    paths: dict[int, list[tuple[int, int, Array]]] = field(default_factory=dict)  # of a task: episode, steps, states at PLACES places


def habits(root: Path, info: Info, rows: pa.Table, keys: Sequence[FileKey], stats: Stats) -> Iterator[Problem]:
    """Warnings, one a kind, with the episodes they are about. stats: of all columns, as `check_data` left them. Files that cannot be
    read are passed over: who looked at them before has said so."""
    reading = PLAIN.checked(root, info)
    features = info["features"]
    info = info | {"features": reading.features(info)}
    stats = stats | {ours: {stat: np.concatenate([np.reshape(stats[part][stat], -1) for part in parts]) for stat in stats[parts[0]]}
                     for ours, parts in reading.joined.items() if all(part in stats for part in parts)}
    vectors = [name for name in COLUMNS if name in stats and len(stats[name]["min"]) == np.prod(info["features"][name]["shape"])]
    stats = {name: stats[name] for name in vectors}
    if "action" not in stats or not len(rows):
        return
    stored = {part: features[part] for name in stats for part in reading.joined.get(name, [name])}
    seen = _Seen()
    for key in keys:
        here = (rows["data/chunk_index"].to_numpy() == key[0]) & (rows["data/file_index"].to_numpy() == key[1])
        length, index = (rows[c].to_numpy()[here] for c in ("length", "episode_index"))
        try:
            columns = reading.named(tables.read_frames(schema.data_file(root, info, key), stored))
        except (RealrlError, OSError):
            continue
        if len(columns["action"]) == length.sum() and (length > 0).all():
            _look(columns, length, index, float(info["fps"]), stats, seen)
    if seen.frames:
        yield from _told(str(root), info, stats, seen)


def _look(columns: dict[str, Array], length: Array, index: Array, fps: float, stats: Stats, seen: _Seen) -> None:
    """Add one file to what was seen."""
    action = _wide(columns["action"])
    least, span = stats["action"]["min"], _span(stats["action"])
    ends = [((action <= least + END * span) & (least != 0)).sum(0), ((action >= least + span - END * span) & (least + span != 0)).sum(0)]
    seen.low, seen.high = (ends[0] + seen.low, ends[1] + seen.high) if seen.frames else (ends[0], ends[1])
    seen.frames += len(action)
    state = _wide(columns["observation.state"]) if "observation.state" in columns else None
    if state is not None:
        some = np.unique(np.linspace(0, len(action) - 1, SAMPLED).astype(int))
        close = np.abs(action[some][:, :, None] - state[some][:, None, :]) <= 1e-4 * span[:, None]
        seen.same = close.sum(0) + (seen.same if seen.compared else 0)
        seen.compared += len(some)
    first = np.cumsum(length) - length
    for number, start, count in zip(index.tolist(), first.tolist(), length.tolist(), strict=True):
        rows = slice(start, start + count)
        if state is not None and (still := _still(state[rows], stats["observation.state"])) > max(PAUSE_S * fps, PAUSE_SHARE * count):
            seen.paused[number] = still / fps
        if "task_index" in columns and (columns["task_index"][rows] != columns["task_index"][start]).any():
            seen.changed.append(number)
        if state is not None:
            task = int(columns["task_index"][start].item()) if "task_index" in columns else 0
            seen.paths.setdefault(task, []).append((number, count, state[start + np.linspace(0, count - 1, PLACES).astype(int)]))
        if "timestamp" in columns and count > 1:
            stamps = columns["timestamp"][rows].reshape(-1)
            seen.ticks.append(float(np.median(np.diff(clocks.in_seconds(stamps, fps)))))
            seen.unit = clocks.unit(stamps, fps)


def _still(state: Array, stats: dict[str, Array]) -> int:
    """Steps at the beginning of an episode [T, D] in which no joint leaves its place. Columns of noise have no place and do not count."""
    span = _span(stats)
    counts = (np.abs(np.diff(state, axis=0)).sum(0) <= SMOOTH * stats["std"] * max(1, len(state) - 1)) & (span > 0)
    if not counts.any() or not (span[counts] > 0).all():
        return 0
    gone = (np.abs(state - state[0])[:, counts] > MOVES * span[counts]).any(1)
    return int(np.argmax(gone)) if gone.any() else len(state)


def _ways(paths: Sequence[tuple[int, int, Array]], span: Array) -> list[list[int]]:
    """The episodes of two ways of doing one task; empty where there are not two, or the start tells them apart.

    paths: number, steps, states [PLACES, D]. They are compared while most are under way: whoever tries again at the end does nothing else.
    """
    if len(paths) < LEAST_EPISODES or not (moving := span > 0).any():
        return []
    until = np.quantile([steps for _, steps, _ in paths], 0.25) - 1
    looked = np.linspace(0, until, POINTS) * (PLACES - 1)
    at = [(looked / max(1, steps - 1)).round().astype(int).clip(max=PLACES - 1) for _, steps, _ in paths]
    x = np.stack([path[i] for (_, _, path), i in zip(paths, at, strict=True)])[:, :, moving] / span[moving]
    first = _halved((x - x[:, :1]).reshape(len(x), -1))
    if first is None or min(first.mean(), 1 - first.mean()) < LEAST_SHARE or _foreseen(x[:, 0], first):
        return []
    return [[number for (number, _, _), mine in zip(paths, heap, strict=True) if mine] for heap in (first, ~first)]


def _foreseen(starts: Array, first: Array) -> bool:
    """Whether one number of the start [N, D] orders the episodes by their way [N], nearly."""
    higher = (starts[first][:, None] > starts[~first][None]) + 0.5 * (starts[first][:, None] == starts[~first][None])
    share = higher.mean((0, 1))
    return bool(np.maximum(share, 1 - share).max() > FORESEEN)


def _halved(x: Array) -> Array | None:
    """Which rows of x [N, D] are of the first of two heaps, None where there are not two. Heaps are sought along the few directions in
    which the rows differ most, for among many directions any rows fall into two."""
    centred = x - x.mean(0)
    few = centred @ np.linalg.svd(centred, full_matrices=False)[2][:DIRECTIONS].T
    found = [heap for axis in few.T if (heap := _settled(few, axis < 0)) is not None]
    apart, first = max(found, key=lambda heap: heap[0], default=(0.0, None))
    return first if apart > APART else None


def _settled(x: Array, first: Array) -> tuple[float, Array] | None:
    """Two heaps of x [N, D] after each row went to the nearer one, and how far apart they are, in their scatter along the line between
    their middles. first: the rows of the first to begin with."""
    for _ in range(20):
        if not 1 < first.sum() < len(x) - 1:
            return None
        middle, other = x[first].mean(0), x[~first].mean(0)
        place = (x - (middle + other) / 2) @ (middle - other)
        if ((place > 0) == first).all():
            break
        first = place > 0
    scatter = np.sqrt((place[first].var() + place[~first].var()) / 2)
    return float((place[first].mean() - place[~first].mean()) / max(scatter, 1e-12)), first


def _told(where: str, info: Info, stats: Stats, seen: _Seen) -> Iterator[Problem]:
    action, size = stats["action"], len(stats["action"]["min"])
    names = _names(info["features"]["action"], size)
    moving = _span(action) > 0
    first = "import it ('realrl data import'), then " if str(info.get("codebase_version")).startswith("v2.") else ""
    if moving.any() and (idle := _span(action) == 0).any():
        yield Problem("warning", where, f"{_dims('action', idle, names)} never moves", "leave it out, or record what needs it")
    state = stats.get("observation.state")
    if state is not None and len(state["min"]) == size and (dead := moving & (_span(state) == 0)).any():
        yield Problem("warning", where, f"{_dims('observation.state', dead, names)} never moves, while the action of this place does",
                      "look whether its sensor is connected")
    low, high = seen.low / seen.frames, seen.high / seen.frames
    switch = (low + high > SWITCH) & (np.minimum(low, high) > 0.01)
    stuck = (seen.frames >= FEW) & moving & ~switch & ~_grippers(names, size) & (np.maximum(low, high) > AT_LIMIT)
    if stuck.any():
        share = 100 * float(np.maximum(low, high)[stuck].max())
        yield Problem("warning", where, f"{_dims('action', stuck, names)} is at its limit in {share:.0f} % of the frames",
                      "look whether it was clipped, or could not follow")
    if seen.compared and seen.same.size:
        same = moving & ((seen.same / seen.compared).max(1) > SAME)
        if 2 * same.sum() >= moving.sum() > 0:
            yield Problem("warning", where, f"{_dims('action', same, names)} is what observation.state says at the same step",
                          "a clone learns to stay where it is; record the commands, or take the state that follows for the action")
    if seen.paused:
        longest = max(seen.paused, key=lambda n: seen.paused[n])
        yield Problem("warning", where, f"nothing moves at the beginning of {grouped(seen.paused)}, for up to {seen.paused[longest]:.1f} s "
                      f"(episode {longest})", f"{first}cut the pauses off with 'realrl data trim'")
    for paths in seen.paths.values():
        if state is not None and (ways := _ways(paths, _span(state))):
            yield Problem("warning", where, f"one task is done in two ways, {grouped(ways[0])} and {grouped(ways[1])}",
                          f"starts do not tell which: imitation may go between them; {first}keep one of them ('realrl data split'), or use "
                          "chunks")
    tick = float(np.median(seen.ticks)) if seen.ticks else 0.0
    if tick > 0 and abs(tick * info["fps"] - 1) > CLOCK:
        yield Problem("warning", where, f"the timestamps say {1 / tick:.4g} steps a second, meta/info.json {info['fps']:g}",
                      "correct fps there, or resample the recordings")
    if seen.unit:
        yield Problem("warning", where, f"the timestamps are {seen.unit}", "they are read as such; LeRobot wants seconds")
    if seen.changed:
        yield Problem("warning", where, f"the task's text changes inside {grouped(seen.changed)}",
                      "readers take the first one; cut the episodes where it changes")


def _wide(x: Array) -> Array:
    return x.reshape(len(x), -1).astype(np.float64)


def _span(stats: dict[str, Array]) -> Array:
    return np.asarray(stats["max"] - stats["min"], np.float64)


def _names(feature: dict[str, Any], size: int) -> list[str]:
    """What the numbers of a vector are called; empty where that is not told."""
    told = spread.flat_names(feature.get("names"))
    return told if len(told) == size else []


def _grippers(names: list[str], size: int) -> Array:
    """Which actions are no joint: those named so, else by custom the last, and of two arms the last of each."""
    if names:
        return np.array([GRIPPER.search(name) is not None for name in names])
    at = np.arange(size)
    return np.asarray((size > 1) & ((at == size - 1) | ((size >= 12) & (size % 2 == 0) & (at == size // 2 - 1))))


def _dims(what: str, which: Array, names: list[str]) -> str:
    return f"{what} " + ", ".join(f"{i} ({names[i]})" if names else str(i) for i in np.flatnonzero(which).tolist())


def grouped(numbers: Iterable[int], most: int = 6) -> str:
    """Episode numbers as a person would say them: "episodes 0, 3 to 7 (6 in all)"."""
    found = sorted(numbers)
    starts = [n for n, before in zip(found, [None, *found], strict=False) if before is None or n != before + 1]
    stops = [n for n, after in zip(found, [*found[1:], None], strict=True) if after is None or after != n + 1]
    runs = [str(a) if a == b else f"{a} to {b}" for a, b in zip(starts, stops, strict=True)]
    shown = ", ".join(runs[:most]) + (", ..." if len(runs) > most else "")
    return f"episode {shown}" if len(found) == 1 else f"episodes {shown} ({len(found)} in all)"
