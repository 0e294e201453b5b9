"""What can be wrong with one file of a dataset: its frames against the tables, its videos against both."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from realrl.data import clocks, depth, schema, tables, video
from realrl.data.errors import LATE, OTHER_SIZE, line, mend, read_json
from realrl.data.footage import CLOCK, Place, present, tolerance
from realrl.data.reading import PLAIN, USUAL, absent
from realrl.data.schema import Info
from realrl.data.stats import Stats, column_stats, merge_stats
from realrl.data.tables import FileKey
from realrl.data.words import FRAMES
from realrl.types import Array, RealrlError, printable

COPY = "correct meta/info.json, or fetch the file that belongs to it"  # no repair can know which of them is right
STILL = 0.05  # levels of 255: pictures whose mean difference is below this are the same, encoded again; a sensor's noise is more
MOSTLY = 0.9  # share of such pictures in a frozen stretch: an encoder now and then changes its mind about one that stays the same


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a dataset. severity: "error" (data missing or wrong) or "warning"; mend: what to do about it."""

    severity: str
    where: str
    what: str
    mend: str

    def __str__(self) -> str:
        return printable(f"{self.severity}: {self.where}: {self.what}; {self.mend}")


def alike(problems: Iterable[Problem]) -> list[list[Problem]]:
    """The problems by their kind, in the order in which the kinds are found; of a kind is what differs in file and numbers alone."""
    kinds: dict[tuple[str, ...], list[Problem]] = {}
    for p in problems:
        kinds.setdefault((p.severity, *(re.sub(r"\d[\d.e+-]*", "#", text) for text in (p.what, p.mend))), []).append(p)
    return list(kinds.values())


def from_error(root: Path, error: RealrlError, severity: str = "error") -> Problem:
    """What a reader complained of, as a problem. root: the data set, in whose name there may be spaces."""
    text = str(error)
    what, _, mend = text.rpartition("; " if "; " in text else ": ")
    folder = str(root) if what.startswith(str(root)) else ""
    where, _, rest = what.removeprefix(folder).partition(" ")
    return Problem(severity, (folder + where).rstrip(":"), rest, mend)


# ---- numbers


def check_data(root: Path, info: Info, rows: pa.Table, key: FileKey, limits: tuple[float, float], stats: Stats) -> list[Problem]:
    """What is wrong with one data file; adds the statistics of its columns to `stats`."""
    try:
        path = schema.data_file(root, info, key)
        columns = tables.read_frames(path, info["features"])
        tables.glance(path, PLAIN.features(info))
    except FileNotFoundError:
        return [from_error(root, absent(root, path, info, USUAL))]
    except RealrlError as error:
        return [from_error(root, error)]
    here = (rows["data/chunk_index"].to_numpy() == key[0]) & (rows["data/file_index"].to_numpy() == key[1])
    start, length, index = (rows[c].to_numpy()[here] for c in ("dataset_from_index", "length", "episode_index"))
    lie = np.argsort(start, kind="stable") if not schema.ours(info) else np.arange(len(start))
    start, length, index = start[lie], length[lie], index[lie]  # others' episodes may lie in another order than that of their numbers
    n, held = int(length.sum()), len(next(iter(columns.values()), ()))
    if held != n or (length < 1).any():
        return [Problem("error", str(path), f"holds {held} frames, its episodes have {n}", mend(path))]
    stats |= merge_stats(stats, column_stats(columns, quantiles=False))
    first = np.cumsum(length) - length
    columns, mixed = _sorted(columns, first, n)
    frame, owner = np.arange(n) - np.repeat(first, length), np.repeat(index, length)
    problems = [Problem("warning", str(path), f"the frames of episode {index[i]} lie in another order than frame_index says",
                        "read in that of frame_index; LeRobot reads them as they lie") for i in mixed]
    for severity, field, what, bad, advice in (*_wrong(columns, frame, owner, np.repeat(start, length), info, mend(path)),
                                               *_suspect(columns, frame, first, info, limits)):
        if bad.any():
            at = int(np.argmax(bad))
            problems.append(Problem(severity, str(path), f"{field} {what} in {int(bad.sum())} frames, first in episode {owner[at]}, "
                                    f"frame {frame[at]}", advice))
    return problems


def _sorted(columns: dict[str, Array], first: Array, n: int) -> tuple[dict[str, Array], list[int]]:
    """(a file's columns [n, ...] in the order in which the frames of each episode are read, the places of episodes that were mixed).
    first: the row at which each episode begins."""
    if "frame_index" not in columns:
        return columns, []
    spans = [(i, start, clocks.order(columns["frame_index"][start:stop]))
             for i, (start, stop) in enumerate(itertools.pairwise([*first.tolist(), n]))]
    rows = np.arange(n)
    for _, start, at in spans:
        if at is not None:
            rows[start:start + len(at)] = start + at
    mixed = [i for i, _, at in spans if at is not None]
    return {name: x[rows] for name, x in columns.items()} if mixed else columns, mixed


Fault = tuple[str, str, str, Any, str]  # severity, field, what, bad frames [T], mend


def _wrong(columns: dict[str, Array], frame: Array, owner: Array, start: Array, info: Info, repair: str) -> Iterator[Fault]:
    """What must not be, over the frames of one file; stamps of others' clocks may. repair: what mends it."""
    own = schema.ours(info)
    for field, true in {"episode_index": owner, "frame_index": frame, "index": start + frame}.items():
        if field in columns:
            steps = field != "episode_index" and bool((np.diff(columns[field])[frame[1:] > 0] == 1).all())
            kind, advice = ("warning", "read all the same, in their order") if steps and not own else ("error", repair)
            yield kind, field, "is not what meta/episodes says", columns[field] != true, advice
    for field, x in columns.items():
        if x.dtype.kind == "f" and (own or field != "timestamp"):
            said = np.ones(len(x), bool) if own else ~_unsaid(field, x, owner)
            yield "error", field, "is NaN or infinite", ~np.isfinite(x).reshape(len(x), -1).all(1) & said, repair
    if "timestamp" in columns:
        off = ~(np.abs(columns["timestamp"].reshape(-1) - frame / info["fps"]) <= 1e-4 + 1e-6 * frame / info["fps"])
        kind, advice = ("error", repair) if own else ("warning", "read all the same, pictures where the stamps say so; LeRobot refuses it")
        yield kind, "timestamp", "is not frame_index / fps", off, advice
    if "time" in columns:
        yield "error", "time", "does not increase", (np.diff(columns["time"], prepend=-np.inf) <= 0) & (frame > 0), repair


def _unsaid(field: str, x: Array, owner: Array) -> Array:
    """The frames [T] of episodes in which a column that tells how they went was never filled in. owner: of each frame, [T]."""
    if not schema.says_nothing(field, np.full(1, np.nan)):
        return np.zeros(len(x), bool)
    _, episode = np.unique(owner, return_inverse=True)
    filled = np.bincount(episode, np.isfinite(x).reshape(len(x), -1).any(1)) > 0
    return ~filled[episode] | (field in FRAMES)


def _suspect(columns: dict[str, Array], frame: Array, first: Array, info: Info, limits: tuple[float, float]) -> Iterator[Fault]:
    """What may be meant, but mostly is a sensor or a scale gone wrong. first: the row at which each episode begins."""
    n, long = len(frame), max(10, int(info["fps"]))
    action = columns["action"].reshape(n, -1) if "action" in columns else np.zeros((n, 1))
    yield ("warning", "action", f"leaves [{limits[0]:g}, {limits[1]:g}]", ((action < limits[0]) | (action > limits[1])).any(1),
           "'realrl train bc --data DIR' alone scales them by itself; for a task, --action-range LOW HIGH of 'realrl data import' does")
    seen = {name: x.reshape(n, -1) for name, x in columns.items() if name.startswith("observation.")}
    if not seen:
        return
    same = np.concatenate([[False], np.all([(x[1:] == x[:-1]).all(1) for x in seen.values()], axis=0)]) & (frame > 0)
    since = np.arange(n) - np.maximum.accumulate(np.where(same, 0, np.arange(n)))
    yield "warning", "observation", f"is frozen for {long} frames or more", since >= long, "look whether a sensor hung"
    lengths = np.diff(np.append(first, n))

    def moves(x: Array) -> Array:
        """Per episode, whether anything of x [T, D] changes."""
        changed = np.concatenate([[False], (x[1:] != x[:-1]).any(1)]) & (frame > 0)
        return np.asarray(np.logical_or.reduceat(changed, first))

    for name, x in seen.items():
        dead = ~moves(x) & moves(action) & (lengths >= long)
        yield "warning", name, "never changes while the actions do", np.repeat(dead, lengths), "look whether it is connected"


def check_drift(root: Path, stats: Stats, frames: int) -> Iterator[Problem]:
    """Where stats.json is not what the frames say. stats: computed from all of them."""
    path = root / "meta/stats.json"
    try:
        told = read_json(path)
        for name, true in stats.items():
            if name not in told or told[name]["count"][0] != frames or true["count"][0] != frames:
                continue
            size = np.maximum(true["max"] - true["min"], np.abs(true["mean"])) + 1e-9
            for stat in ("min", "max", "mean", "std"):
                off = np.abs(np.asarray(told[name][stat], np.float64).reshape(size.shape) - true[stat])
                if not (off <= 1e-3 * size + 1e-6).all():
                    yield Problem("warning", str(path), f"{stat} of {name} is off by {float(off.max()):.3g}",
                                  "delete it, the next append rebuilds it")
                    break
    except FileNotFoundError:
        return
    except RealrlError:
        return  # told already, by who looked at its counts
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        yield Problem("warning", str(path), f"is not readable ({line(error)})", "delete it, the next append rebuilds it")


# ---- videos


def check_video(root: Path, info: Info, camera: str, key: FileKey, rows: Sequence[Mapping[str, Any]], decode: bool,
                size: tuple[int, int] | None = None) -> list[Problem]:
    """What is wrong with one video file and its episodes' rows. size: height and width of the camera's first film, where that counts."""
    try:
        path = schema.video_file(root, info, camera, key)
        if not path.exists():
            told, (first, last) = from_error(root, absent(root, path, info, USUAL)), (rows[i]["episode_index"] for i in (0, -1))
            whose = f"episode {first}" if first == last else f"episodes {first} to {last}"
            return [replace(told, what=f"the video of {whose} {told.what}")]
        coding = depth.coding(camera, info["features"][camera])
        times, found = video.times(path), video.probe(path)
        if not schema.ours(info):  # a look at the first says what holds for all
            next(video.frames(path, coding=coding), None)
        kind, spans = [*_kind(path, info, camera, found, size)], [*_spans(path, info, camera, rows, times)]
        if not schema.ours(info) and not any(p.severity == "error" for p in spans):  # each frame has its picture, whatever the film's rate
            kind = [replace(p, severity="warning", mend="each frame has its picture, read all the same") if " fps, " in p.what else p
                    for p in kind]
        problems = kind + spans
        if any(p.severity == "error" for p in problems) and _by_stamps(root, info, camera, rows, times):
            problems = [p if p.mend == COPY and "fps" not in p.what else
                        replace(p, severity="warning", mend="read where the timestamps say; LeRobot does so, too") for p in problems]
        if decode and not any(p.severity == "error" for p in problems):
            problems += _frozen(path, root, info, camera, rows)
        return problems
    except RealrlError as error:
        return [from_error(root, error)]


def first_size(root: Path, info: Info, camera: str, keys: Sequence[FileKey]) -> tuple[int, int] | None:
    """Height and width of the first of a camera's films that can be opened, by which its others are measured (`cache.FilmTable`)."""
    for key in keys:
        with contextlib.suppress(RealrlError, FileNotFoundError):  # who checks that film says it
            found = video.probe(schema.video_file(root, info, camera, key))
            return int(found["video.height"]), int(found["video.width"])
    return None


def _kind(path: Path, info: Info, camera: str, found: Mapping[str, Any], first: tuple[int, int] | None) -> Iterator[Problem]:
    """first: height and width of the camera's first film, by which others' sets are read."""
    feature = info["features"][camera]
    height, width, *_ = schema.camera_shape(feature)
    size = (found["video.height"], found["video.width"])
    if first is not None and size != first:
        yield Problem("error", str(path), f"pictures are {size[0]} x {size[1]}, those of the camera's first film {first[0]} x {first[1]}",
                      OTHER_SIZE)
    elif size != (height, width):
        kind, advice = ("error", COPY) if first is None else ("warning", "read all the same, LeRobot goes by info.json")
        yield Problem(kind, str(path), f"pictures are {size[0]} x {size[1]}, info.json says {height} x {width}", advice)
    told = (feature.get("info") or {}).get("video.codec")
    if told is not None and told != found["video.codec"]:
        yield Problem("warning", str(path), f"is {found['video.codec']}, info.json says {told}", "correct info.json")
    if abs(found["video.fps"] - info["fps"]) > 1e-3 * info["fps"]:
        yield Problem("error", str(path), f"runs at {found['video.fps']:g} fps, info.json says {info['fps']:g}", COPY)


def _spans(path: Path, info: Info, camera: str, rows: Sequence[Mapping[str, Any]], times: Array) -> Iterator[Problem]:
    fps = float(info["fps"])
    end = times[-1] + 1 / fps if len(times) else 0.0
    late = len(times) > 0 and times[0] > tolerance(fps) and not schema.ours(info)
    repair = f"its first picture is at {times[0]:.4f} s, so {LATE}, else {mend(path)}" if late else mend(path)
    for row in rows:
        place, length, name = Place.of(row, camera), int(row["length"]), f"episode {row['episode_index']}"
        if not 0 <= place.start < place.stop < np.inf:
            yield Problem("error", str(path), f"{name} lies from {place.start:g} s to {place.stop:g} s", repair)
        elif place.stop > end + tolerance(fps):
            yield Problem("error", str(path), f"{name} ends at {place.stop:.3f} s, the video at {end:.3f} s", repair)
        elif (held := int(((times > place.start - 0.5 / fps) & (times < place.stop - 0.5 / fps)).sum())) < length:
            yield Problem("error", str(path), f"holds {held} pictures of {name}, its table {length} frames", repair)
        else:
            wanted = place.times(length, fps)
            at = np.searchsorted(times, wanted).clip(1, max(1, len(times) - 1))
            off = np.minimum(np.abs(times[np.minimum(at, len(times) - 1)] - wanted), np.abs(times[at - 1] - wanted))
            if (worst := float(off.max())) > tolerance(fps):
                yield Problem("error", str(path), f"{name} has no picture within half a frame of frame {int(np.argmax(off))}", repair)
            elif worst > CLOCK + 1e-6:
                yield Problem("warning", str(path), f"{name} has pictures that are {1000 * worst:.2g} ms off their frames",
                              f"read all the same; LeRobot wants tolerance_s={2 * worst:.2g}")


def _by_stamps(root: Path, info: Info, camera: str, rows: Sequence[Mapping[str, Any]], times: Array) -> bool:
    """Whether every frame has a picture where its timestamp says, though frames do not come at the set's rate."""
    told, irregular = {name: f for name, f in info["features"].items() if name in ("timestamp", "episode_index")}, False
    fps = float(info["fps"])
    for row in rows:
        try:
            columns = tables.read_frames(schema.data_file(root, info, (row["data/chunk_index"], row["data/file_index"])), told)
            mine = columns["episode_index"] == row["episode_index"] if len(columns) == 2 else np.zeros(0, bool)
            stamps = columns["timestamp"][mine].reshape(-1) if mine.any() else np.zeros(0)
            if len(stamps) != row["length"]:  # nor is a length believed before
                return False
            wanted = Place.of(row, camera).times(len(stamps), fps, stamps)[:-1]
        except (RealrlError, FileNotFoundError):
            return False
        if not present(times, wanted, tolerance(fps)):
            return False
        irregular |= not np.allclose(stamps, np.arange(len(stamps)) / fps, rtol=0, atol=CLOCK)
    return irregular


def _frozen(path: Path, root: Path, info: Info, camera: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[Problem]:
    """Runs of one picture while the actions change; decoding also finds damage."""
    fps, long, coding = float(info["fps"]), max(10, int(info["fps"])), depth.coding(camera, info["features"][camera])
    for row in rows:
        place, length = Place.of(row, camera), int(row["length"])
        changes, before = np.zeros(length), None
        span = place.start - 0.5 / fps, place.start + (length - 0.5) / fps
        for i, (_, picture) in enumerate(video.frames(path, *span, coding)):
            small = picture[::4, ::4].astype(np.float32)
            if before is not None and i < length:
                changes[i] = np.abs(small - before).mean()
            before = small
        video.decode(path, place.times(length, fps)[-1:], tolerance(fps), coding)  # may lie elsewhere in the file, and be damaged
        count = np.cumsum(np.append(0, (changes < STILL) & (np.arange(length) > 0)))
        still = np.flatnonzero(count[long:] - count[:-long] >= MOSTLY * long)
        if len(still) and _acts(root, info, row, int(still[0]), long):
            yield Problem("warning", str(path), f"{camera} shows one picture for {long} frames or more while the actions change, first in "
                          f"episode {row['episode_index']}, near frame {int(still[0])}", "look whether the camera hung")


def _acts(root: Path, info: Info, row: Mapping[str, Any], start: int, long: int) -> bool:
    """Whether the actions change in `long` frames of an episode from `start` on; unknown counts as yes."""
    try:
        columns = tables.read_frames(schema.data_file(root, info, (row["data/chunk_index"], row["data/file_index"])),
                                     {name: f for name, f in info["features"].items() if name in ("action", "episode_index")})
    except (RealrlError, FileNotFoundError):
        return True
    if not {"action", "episode_index"} <= columns.keys():
        return True
    action = columns["action"][columns["episode_index"] == row["episode_index"]][start:start + long]
    return bool(len(action) and (action != action[0]).any())
