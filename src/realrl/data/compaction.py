"""Fewer, larger files, without a moment at which anything could be lost.

New files get fresh numbers, then one new episodes file that points at them is published: the newest row of an episode counts, so
that rename is the switch. A journal written beforehand names both sides; whoever opens the dataset next deletes the losing one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from realrl.data import footage, tables, video
from realrl.data.errors import DAMAGED, line, read_json, typed
from realrl.data.schema import EPISODES_PATH, Info, data_file, video_file
from realrl.data.tables import FileKey
from realrl.files import inside, publish, sync, write_json
from realrl.types import Array, RealrlError

JOURNAL = "meta/compaction.json"  # what an unfinished compaction was about to delete
FAN = 16  # that many episodes files of about one size become one
Columns = dict[str, Array]


# ---- numbers of files


def after(info: Info, key: FileKey) -> FileKey:
    """The file number after this one."""
    return (key[0] + 1, 0) if key[1] + 1 >= int(info["chunks_size"]) else (key[0], key[1] + 1)


def file_keys(table: pa.Table, prefix: str) -> list[FileKey]:
    """(chunk_index, file_index) of every episode's file, prefix "data" or "videos/<camera>"; None where nothing is told."""
    chunk, file = (table[name].to_pylist() if name in table.column_names else [None] * len(table)
                   for name in (f"{prefix}/chunk_index", f"{prefix}/file_index"))
    return list(zip(chunk, file, strict=True))


def episodes_file(root: Path, key: FileKey) -> Path:
    """Where the episodes file of this number lies."""
    return inside(root, EPISODES_PATH, chunk_index=key[0], file_index=key[1])


# ---- the episodes files


def small_files(rows: Sequence[int]) -> int | None:
    """From which file on to make one of all, for files with these many rows, oldest first; None when there are few.

    Like counting to base 16: `FAN` files of one level (16^k rows and more) become one of the next. So a row is copied once a level,
    and what an append costs does not grow with the dataset.
    """
    sizes, start, level = list(rows), None, 0
    while sizes and level <= max(map(_level, sizes)):
        first = len(sizes)
        while first and _level(sizes[first - 1]) <= level:
            first -= 1
        if sum(_level(n) == level for n in sizes[first:]) >= FAN:
            start, sizes = first, [*sizes[:first], sum(sizes[first:])]
        level += 1
    return start


def _level(rows: int) -> int:
    return (max(rows, 1).bit_length() - 1) // 4


def merge_rows(root: Path, old: Sequence[Path], key: FileKey) -> tuple[Path, pa.Table]:
    """Make one episodes file of some; gives it and its rows."""
    table = numbered(tables.newest([tables.read_rows(p, stats=True) for p in old], root), key)
    path = episodes_file(root, key)
    _journal(root, old, [], path)
    publish(path, partial(pq.write_table, table))
    finish(root)
    return path, table


def numbered(table: pa.Table, key: FileKey, columns: Columns | None = None) -> pa.Table:
    """The rows as the episodes file of this number has them, with some columns replaced."""
    ones = np.ones(len(table), np.int64)
    for name, value in {**(columns or {}), "meta/episodes/chunk_index": ones * key[0], "meta/episodes/file_index": ones * key[1]}.items():
        at, cells = table.schema.get_field_index(name), pa.array(value, from_pandas=True)  # a hole is NaN in numpy
        table = table.append_column(name, cells) if at < 0 else table.set_column(at, name, cells.cast(table.schema.field(at).type))
    return table


# ---- everything


def run(root: Path, info: Info, old_rows: Sequence[Path], key: FileKey) -> bool:
    """Merge small data, video and episodes files into larger ones; whether there were any. key: of the new episodes file."""
    table = tables.newest([tables.read_rows(p, stats=True) for p in old_rows], root)
    data = _data_groups(root, info, table)
    films = {camera: groups for camera in tables.cameras(info["features"]) if (groups := _film_groups(root, info, table, camera))}
    if not data and not films and len(old_rows) <= 1:
        return False
    new_data = _targets(info, table, "data", len(data), partial(data_file, root, info))
    new_films = {camera: _targets(info, table, f"videos/{camera}", len(groups), partial(video_file, root, info, camera))
                 for camera, groups in films.items()}
    commit = episodes_file(root, key)
    old = [*(data_file(root, info, k) for group in data for k in group),
           *(video_file(root, info, c, k) for c, groups in films.items() for group in groups for k in group), *old_rows]
    new = [*new_data.values(), *(path for targets in new_films.values() for path in targets.values())]
    for path in new:
        set_aside(path)
    _journal(root, old, new, commit)
    columns: Columns = {}
    for (target, path), group in zip(new_data.items(), data, strict=True):
        publish(path, partial(tables.merge_files, [data_file(root, info, k) for k in group]))
        _move(columns, table, "data", group, target)
    for camera, groups in films.items():
        for (target, path), group in zip(new_films[camera].items(), groups, strict=True):
            _merge_films(root, info, table, camera, group, path, target, columns)
    publish(commit, partial(pq.write_table, numbered(table, key, columns)))
    finish(root)
    return True


def _groups(keys: Sequence[FileKey], size: Callable[[FileKey], int], limit: int) -> list[list[FileKey]]:
    """Files in order, grouped to a size limit."""
    groups: list[list[FileKey]] = []
    room = 0
    for key in keys:
        needed = size(key)
        if not groups or needed > room:
            groups.append([])
            room = limit
        groups[-1].append(key)
        room -= needed
    return groups


def _data_groups(root: Path, info: Info, table: pa.Table) -> list[list[FileKey]]:
    """Leading groups of one stay as they are; later ones must move too, because LeRobot reads the files in the order of their names."""
    keys = list(dict.fromkeys(file_keys(table, "data")))
    groups = _groups(keys, lambda k: data_file(root, info, k).stat().st_size, int(info["data_files_size_in_mb"]) * 2**20)
    while groups and len(groups[0]) == 1:
        groups.pop(0)
    return groups


def _film_groups(root: Path, info: Info, table: pa.Table, camera: str) -> list[list[FileKey]]:
    """Video files that we wrote, neighbours of one kind, in groups of two and more."""
    columns = [f"videos/{camera}/{name}_timestamp" for name in ("from", "to", "last")]
    if any(name not in table.column_names for name in columns):
        return []
    told: Array = np.isfinite(np.stack([table[name].to_numpy() for name in columns])).all(0)  # an empty cell is NaN here
    ours: dict[FileKey, bool] = {}
    for key, own in zip(file_keys(table, f"videos/{camera}"), told.tolist(), strict=True):
        ours[key] = ours.get(key, True) and own and None not in key
    headers = {key: video.header(video_file(root, info, camera, key)) if own else None for key, own in ours.items()}
    limit = int(info["video_files_size_in_mb"]) * 2**20
    groups = [group for header, keys in groupby(ours, key=headers.__getitem__) if header is not None
              for group in _groups(list(keys), lambda k: video_file(root, info, camera, k).stat().st_size, limit)]
    return [group for group in groups if len(group) > 1]


def _targets(info: Info, table: pa.Table, prefix: str, count: int, path: Callable[[FileKey], Path]) -> dict[FileKey, Path]:
    """Fresh file numbers behind all that are in use, and where those files lie."""
    if not count:
        return {}
    key = max(k for k in file_keys(table, prefix) if None not in k)
    targets = {}
    for _ in range(count):
        key = after(info, key)
        targets[key] = path(key)
    return targets


def _move(columns: Columns, table: pa.Table, prefix: str, group: Sequence[FileKey], target: FileKey) -> Array:
    """Point the episodes of some files to a new one; gives which rows those are."""
    members = set(group)
    here = np.array([k in members for k in file_keys(table, prefix)], bool)
    for name, value in zip(("chunk", "file"), target, strict=True):
        column = f"{prefix}/{name}_index"
        columns.setdefault(column, table[column].to_numpy().copy())[here] = value
    return here


def _merge_films(root: Path, info: Info, table: pa.Table, camera: str, group: Sequence[FileKey], path: Path, target: FileKey,
                 columns: Columns) -> None:
    """Publish one video file made of some, and move its episodes' seconds."""
    prefix, fps = f"videos/{camera}", float(info["fps"])
    keys, number = file_keys(table, prefix), {key: i for i, key in enumerate(group)}
    stop = table[f"{prefix}/to_timestamp"].to_numpy()
    end: dict[FileKey, float] = {}
    for key, seconds in zip(keys, stop.tolist(), strict=True):
        end[key] = max(end.get(key, 0.0), seconds)
    sources = [(video_file(root, info, camera, key), round(fps * end[key])) for key in group]
    moved: list[Callable[[int, float], float]] = []
    publish(path, lambda file: moved.append(footage.merge(sources, file)))
    start, last = (columns.setdefault(f"{prefix}/{name}_timestamp", table[f"{prefix}/{name}_timestamp"].to_numpy().copy())
                   for name in ("from", "last"))
    until = columns.setdefault(f"{prefix}/to_timestamp", stop.copy())
    for i in np.flatnonzero(_move(columns, table, prefix, group, target)):
        source = number[keys[i]]
        length = until[i] - start[i]
        start[i], last[i] = moved[0](source, float(start[i])), moved[0](source, float(last[i]))
        until[i] = start[i] + length


# ---- the journal


def set_aside(path: Path) -> None:
    """Keep, under a name no reader looks for, a file whose episodes row was never written."""
    if path.exists():
        path.replace(path.with_suffix(f".orphan-{time.time_ns()}"))


def _journal(root: Path, old: Sequence[Path], new: Sequence[Path], commit: Path) -> None:
    sides: Mapping[str, Any] = {side: [p.relative_to(root).as_posix() for p in paths]
                                for side, paths in {"old": old, "new": new, "commit": [commit]}.items()}
    write_json(root / JOURNAL, sides)


def finish(root: Path) -> bool:
    """Delete the losing side of the compaction the journal names; whether there was one. The caller holds the lock."""
    journal = root / JOURNAL
    if not journal.exists():
        return False
    try:
        plan, whole = read_json(journal), root.resolve()
        losers = [root / p for p in (plan["old"] if (root / plan["commit"][0]).exists() else plan["new"])]
        losers = [p for p in losers if p.resolve().is_relative_to(whole) and p.suffix in (".parquet", ".mp4")]  # nothing outside its folder
    except (RuntimeError, *DAMAGED) as error:
        raise RealrlError(f"{journal} is damaged ({line(error)}); run 'realrl data repair {typed(root)}'") from error
    try:
        for path in losers:
            path.unlink(missing_ok=True)
        for folder in {p.parent for p in losers if p.parent.is_dir()}:
            sync(folder)
        journal.unlink()
    except OSError as error:
        raise RealrlError(f"{error.filename or journal} could not be removed ({error.strerror}); mend the permissions") from error
    return True
