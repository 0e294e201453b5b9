"""The examination of a dataset: everything that is wrong as a list; nothing is written.

`check` reads every number and looks into every video file; decoding all pictures, which takes long, is an option.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from realrl.data import compaction, labels, schema, tables
from realrl.data.errors import DAMAGED, line, mend, read_json
from realrl.data.formats.lerobot_v2 import Legacy
from realrl.data.reading import PLAIN, proposal, renamed, require_action, seen
from realrl.data.schema import Info
from realrl.data.stats import Stats
from realrl.data.tables import FileKey
from realrl.data.tools.faults import Problem, check_data, check_drift, check_video, first_size, from_error
from realrl.data.tools.habits import habits
from realrl.types import RealrlError

__all__ = ["Problem", "check", "describe"]
UNREAD = "correct it; nobody here reads it"


def check(directory: str | Path, *, decode: bool = False, limits: tuple[float, float] = (-1.0, 1.0)) -> list[Problem]:
    """Everything wrong with a dataset: tables, counts, holes, values, clocks, videos, statistics, leftovers.

    Reads every number and the index of every video, writes nothing. decode: also decode all pictures, to find damage inside videos
    and cameras that froze; limits: what actions must stay within.
    """
    root = Path(directory)
    problems: list[Problem] = []
    try:
        info, rows = _described(root, problems)
    except RealrlError as error:
        return [*problems, from_error(root, error)]
    if not len(rows) and any(p.severity == "error" for p in problems):
        return problems
    problems += _check_use(root, info, rows)
    problems += _check_labels(root, rows)
    stats: Stats = {}
    for key in _keys(rows, "data"):
        problems += check_data(root, info, rows, key, limits, stats)
    problems += habits(root, info, rows, _keys(rows, "data"), stats)
    problems += check_drift(root, stats, int(rows["length"].to_numpy().sum()))
    for camera in tables.cameras(info["features"]):
        problems += _check_camera(root, info, rows, camera, decode)
    return problems


def _described(root: Path, problems: list[Problem]) -> tuple[Info, pa.Table]:
    """info.json and the episodes' rows; what is wrong with these two and the folder is added to `problems`."""
    if (old := _legacy(root)) is not None:
        info, rows = old.as_version_3()
        problems += [Problem("warning", f"{root}/meta/episodes.jsonl", note, "nothing reads them") for note in old.notes
                     if note.startswith("left out")]
        problems += _check_counts(root, info, rows, UNREAD, len(old.empty))
        return info, rows
    info, found = seen(root, schema.read_info(root)), []
    for path in tables.episode_files(root):
        try:
            found.append(tables.read_rows(path))
        except RealrlError as error:
            problems.append(from_error(root, error))
    rows = tables.newest(found, root)
    problems += _check_rows(root, rows, schema.ours(info))
    problems += _check_counts(root, info, rows, "opening the dataset for use corrects it" if schema.ours(info) else UNREAD)
    twice = sum(len(t) for t in found) - len(rows)
    rows = rows if schema.ours(info) else tables.filled(rows)
    problems += _check_summaries(root, rows, "the next append rebuilds it" if schema.ours(info) else UNREAD)
    problems += _check_leftovers(root, info, rows, twice)
    return info, rows


def _legacy(root: Path) -> Legacy | None:
    """The dataset, if it is one of version 2."""
    return Legacy(root) if str(schema.read_json(root).get("codebase_version")).startswith("v2.") else None


def _check_use(root: Path, info: Info, rows: pa.Table) -> Iterator[Problem]:
    """What no training takes."""
    where, features = f"{root}/meta/info.json", PLAIN.checked(root, info).features(info)
    try:
        require_action(root, features)
    except RealrlError as error:
        yield from_error(root, error)
    if features and not len(rows):
        yield Problem("error", f"{root}/meta/episodes", "there is no episode", "record some, or fetch the set anew")
    found = proposal(features)
    if not any(name.startswith("observation.") for name in features) and not ("action" in found and len(found) > 1):  # told with the action
        yield Problem("error", where, f"there is no observation, no column 'observation.…' among {', '.join(features)[:120]}",
                      f"nothing can be learned from it; of another name: {renamed(found or {'observation.state': 'COLUMN'})}")


def _check_rows(root: Path, rows: pa.Table, ours: bool) -> Iterator[Problem]:
    where, repair = f"{root}/meta/episodes", mend(root / "meta")
    index, length, start, stop = (rows[c].to_numpy() for c in ("episode_index", "length", "dataset_from_index", "dataset_to_index"))
    numbers, often = np.unique(index, return_counts=True)
    if (often > 1).any():
        kind, advice = ("error", repair) if ours else ("warning", "each is read")
        yield Problem(kind, where, f"episodes {numbers[often > 1][:5].tolist()} are several each, by one number", advice)
    holes = int(index[-1]) + 1 - len(numbers) if len(index) else 0
    if holes:
        before = np.flatnonzero(np.diff(index, prepend=-1) > 1)[0]
        first = int(index[before - 1]) + 1 if before else 0
        missing = list(range(first, min(int(index[before]), first + 5)))
        kind, advice = ("error", repair) if ours else ("warning", "read all the same")
        yield Problem(kind, where, f"episodes {missing} have no row ({holes} in all)", advice)
    if len(bad := np.flatnonzero(stop - start != length)):
        yield Problem("error", where, f"episode {index[bad[0]]}: length {length[bad[0]]} is not its span", repair)
    if len(bad := np.flatnonzero(length < 1)):
        kind, advice = ("error", repair) if ours else ("warning", "it is left out")
        yield Problem(kind, where, f"episode {index[bad[0]]} has no frames ({len(bad)} in all)", advice)
    lie = np.arange(len(start)) if ours else np.argsort(start, kind="stable")  # others' may lie in another order than that of their numbers
    if len(bad := lie[np.flatnonzero(start[lie] != np.concatenate([[0], stop[lie][:-1]]))]) and not holes:
        yield Problem("error", where, f"episode {index[bad[0]]} begins at frame {start[bad[0]]}, not where the one before it ends",
                      repair)


def _check_counts(root: Path, info: Info, rows: pa.Table, advice: str, empty: int = 0) -> Iterator[Problem]:
    """empty: episodes without a frame, whose rows are left out."""
    for name, true in {"total_episodes": len(rows) + empty, "total_frames": int(rows["length"].to_numpy().sum())}.items():
        if info.get(name) != true:
            yield Problem("warning", f"{root}/meta/info.json", f"{name} is {info.get(name)}, the episodes tables hold {true}", advice)


def _check_summaries(root: Path, rows: pa.Table, advice: str) -> Iterator[Problem]:
    """advice: what mends statistics."""
    frames = int(rows["length"].to_numpy().sum())
    try:
        tasks = tables.read_tasks(root, frames)
        named = {t for texts in rows["tasks"].to_pylist() for t in texts or []} if "tasks" in rows.column_names else set()
        if lost := sorted(map(str, named - set(tasks))):
            yield Problem("error", f"{root}/meta/tasks.parquet", f"task {lost[0]!r} is used but not listed", mend(root / "meta"))
    except RealrlError as error:
        yield from_error(root, error)
    except DAMAGED as error:
        yield Problem("error", f"{root}/meta/episodes", f"tasks are no lists of texts ({line(error)})", mend(root / "meta"))
    path = root / "meta/stats.json"
    try:
        count = read_json(path)["action"]["count"][0] if path.exists() else 0
        if count != frames:
            yield Problem("warning", str(path), *((f"counts {count} frames of {frames}", advice) if path.exists() else
                                                  ("is missing", "LeRobot wants one; nobody here needs it")))
    except RealrlError as error:
        yield from_error(root, error, "warning" if path.is_file() else "error")
    except (LookupError, TypeError) as error:
        yield Problem("warning", str(path), f"is not readable ({line(error)})", advice)


def _check_labels(root: Path, rows: pa.Table) -> Iterator[Problem]:
    try:
        labels.read(root, rows)
    except RealrlError as error:
        yield from_error(root, error)


def _check_leftovers(root: Path, info: Info, rows: pa.Table, twice: int) -> Iterator[Problem]:
    known = set()
    for prefix in ("data", *(f"videos/{camera}" for camera in tables.cameras(info["features"]))):
        for key in _keys(rows, prefix):
            try:
                known.add(_file(root, info, prefix, key))
            except RealrlError as error:
                yield from_error(root, error)
    for path in sorted([*root.glob("data/chunk-*/*.parquet"), *root.glob("videos/**/*.mp4")]):
        if path not in known:
            yield Problem("warning", str(path), "no episode refers to it (a writer died)", "ignored; delete it if not needed")
    for path in schema.unfinished(root):
        yield Problem("warning", str(path), "unfinished temporary file", "the next append deletes it")
    for path in sorted([*root.glob("data/chunk-*/*.orphan*"), *root.glob("videos/**/*.orphan*")]):
        yield Problem("warning", str(path), "unfinished recording, set aside", "ignored; delete it if not needed")
    if (root / compaction.JOURNAL).exists():
        yield Problem("warning", str(root / compaction.JOURNAL), "a compaction was interrupted", "opening the dataset for use finishes it")
    elif twice:
        yield Problem("warning", f"{root}/meta/episodes", f"{twice} rows are of episodes that have a newer one, which counts",
                      "read all the same")


def _check_camera(root: Path, info: Info, rows: pa.Table, camera: str, decode: bool) -> list[Problem]:
    prefix = f"videos/{camera}"
    columns = [f"{prefix}/{name}" for name in tables.VIDEO_FIELDS if name != "last_timestamp"]
    if len(rows) and (missing := [c for c in columns if c not in rows.column_names]):
        return [Problem("error", f"{root}/meta/episodes", f"no column {missing[0]}", mend(root / "meta"))]
    extra = [c for c in (f"{prefix}/last_timestamp",) if c in rows.column_names]
    by_file: dict[FileKey, list[dict[str, Any]]] = {}
    if len(rows):
        for row in rows.select(["episode_index", "length", "data/chunk_index", "data/file_index", *columns, *extra]
                               ).to_pylist():
            by_file.setdefault((row[columns[0]], row[columns[1]]), []).append(row)
    problems = []
    size = None if schema.ours(info) else first_size(root, info, camera, [key for key in by_file if None not in key])
    for key, members in by_file.items():
        if None in key:
            problems.append(Problem("error", f"{root}/meta/episodes", f"episode {members[0]['episode_index']} has no video of {camera}",
                                    f"read with images=False, or {mend(root / 'meta')}"))
        else:
            problems += check_video(root, info, camera, key, members, decode, size)
    return problems


def _keys(rows: pa.Table, prefix: str) -> list[FileKey]:
    if f"{prefix}/chunk_index" not in rows.column_names or f"{prefix}/file_index" not in rows.column_names:
        return []
    return [key for key in dict.fromkeys(compaction.file_keys(rows, prefix)) if None not in key]


def _file(root: Path, info: Info, prefix: str, key: FileKey) -> Path:
    if prefix == "data":
        return schema.data_file(root, info, key)
    return schema.video_file(root, info, prefix.removeprefix("videos/"), key)


def describe(directory: str | Path) -> dict[str, Any]:
    """What a dataset holds, without reading pictures or numbers: counts, how episodes ended, mean length, features, bytes on disk.

    success_rate: of the episodes of which something says how they ended, None where that is none; outcomes, labels: how many ended in
    "success", "failure" and "unknown", and how many of these a person said.
    """
    root = Path(directory)
    if (old := _legacy(root)) is not None:
        (info, rows), tasks = old.as_version_3(), old.tasks
    else:
        info, rows = schema.read_info(root), tables.filled(tables.episodes(root))
        tasks = tables.read_tasks(root, int(rows["length"].to_numpy().sum()))
    policies = [v for v in rows["policy"].to_pylist() if v is not None] if "policy" in rows.column_names else []
    ended = Counter(labels.WORD[good] for good in labels.outcomes(root, info, rows))
    judged = ended["success"] + ended["failure"]
    said = Counter(word for word in labels.read(root, rows)[schema.LABEL] if word)
    length = rows["length"].to_numpy()
    films = tables.cameras(info["features"])
    return {
        "path": str(root), "robot_type": info.get("robot_type"), "fps": info["fps"], "tasks": list(filter(None, tasks)) or tasks,
        "episodes": len(rows), "frames": int(length.sum()), "mean_length": float(length.mean()) if len(rows) else 0.0,
        "success_rate": ended["success"] / judged if judged else None, "policies": dict(Counter(policies)),
        "outcomes": {word: ended[word] for word in labels.CHOICES}, "labels": {word: said[word] for word in labels.CHOICES},
        "features": {name: f"{f['dtype']}{list(f['shape'])}" for name, f in info["features"].items()},
        "data_files": len(_keys(rows, "data")), "video_files": sum(len(_keys(rows, f"videos/{camera}")) for camera in films),
        "bytes": sum(p.stat().st_size for p in root.rglob("*") if p.is_file())}
