"""Reading a LeRobot v3.0 folder with suspicion: tables to arrays, statistics, the rules of an episode, the examination of a dataset.

The readers raise RealrlError in one line; `check` turns everything that is wrong into a list and never writes.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from realrl.types import Array, Episode, RealrlError, Source

JOURNAL = "meta/compaction.json"  # what an unfinished compaction was about to delete
DAMAGED = (pa.ArrowException, OSError, ValueError, KeyError)  # what a damaged parquet file may raise
ROW_INDICES = ("episode_index", "length", "data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index",
               "meta/episodes/chunk_index", "meta/episodes/file_index")
Info = dict[str, Any]
FileKey = tuple[int, int]  # (chunk_index, file_index)
Stats = dict[str, dict[str, Array]]
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
STATS = ("min", "max", "mean", "std", *QUANTILES)


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a dataset. severity: "error" (data missing or wrong) or "warning"; mend: what to do about it."""

    severity: str
    where: str
    what: str
    mend: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.where}: {self.what}; {self.mend}"


# ---- readers


def read_info(root: Path) -> Info:
    """meta/info.json. Raises RealrlError unless it describes a version 3 dataset."""
    path = root / "meta/info.json"
    if not path.is_file():
        raise RealrlError(f"{root} is not a LeRobot dataset: meta/info.json is missing; give the folder that holds meta/ and data/")
    try:
        info: Info = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise RealrlError(f"{path} is not readable JSON ({error}); restore it from a copy") from error
    if not isinstance(info, dict) or not str(info.get("codebase_version", "")).startswith("v3."):
        version = info.get("codebase_version") if isinstance(info, dict) else None
        raise RealrlError(f"{path}: codebase_version is {version!r}, only v3.x is read; convert the dataset first")
    kinds: dict[str, tuple[type, ...]] = {"fps": (int, float), "features": (dict,), "data_path": (str,), "chunks_size": (int,)}
    for name, kind in kinds.items():
        if not isinstance(info.get(name), kind):
            raise RealrlError(f"{path}: {name!r} is missing or of the wrong type; restore the file from a copy")
    info.setdefault("data_files_size_in_mb", 100)
    return info


def read_parquet(path: Path) -> pa.Table:
    """A whole small table, page checksums verified. Raises RealrlError naming a file that is damaged."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            return file.read()
    except FileNotFoundError:
        raise
    except DAMAGED as error:
        raise RealrlError(f"{path} is truncated or damaged ({_line(error)}); restore it from a copy") from error


def read_tasks(root: Path) -> list[str]:
    """Task texts by task_index."""
    path = root / "meta/tasks.parquet"
    if not path.exists():
        raise RealrlError(f"{path} is missing; restore it from a copy")
    table = read_parquet(path)
    texts = [name for name in table.column_names if name != "task_index"]
    if "task_index" not in table.column_names or len(texts) != 1:
        raise RealrlError(f"{path} has columns {table.column_names}, wanted task_index and the text; restore it from a copy")
    order = sorted(zip(table["task_index"].to_pylist(), table[texts[0]].to_pylist(), strict=True))
    return [text for _, text in order]


def tasks_table(tasks: Sequence[str]) -> pa.Table:
    """tasks.parquet with the pandas metadata that makes the text the index, written by hand: pandas is no dependency."""
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())})
    columns = [{"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
               for name, kind, numpy in (("task_index", "int64", "int64"), ("task", "unicode", "object"))]
    header = {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object", "metadata": {"encoding": "UTF-8"}}
    pandas = {"index_columns": ["task"], "column_indexes": [header], "columns": columns, "attributes": {},
              "creator": {"library": "pyarrow", "version": pa.__version__}, "pandas_version": "2.3.3"}
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def episode_files(root: Path) -> list[Path]:
    """The episodes tables, oldest first."""
    return sorted(root.glob("meta/episodes/chunk-*/file-*.parquet"))


def newest(tables: Sequence[pa.Table]) -> pa.Table:
    """One table, one row an episode, by episode_index; where two tables (oldest first) hold the same episode the later one counts."""
    empty = pa.table({name: pa.array([], pa.int64()) for name in ROW_INDICES})
    rows = pa.concat_tables([empty, *tables], promote_options="permissive").combine_chunks()
    index = rows["episode_index"].to_numpy()
    _, last = np.unique(index[::-1], return_index=True)
    return rows.take(pa.array(len(index) - 1 - last))


def without_stats(table: pa.Table) -> pa.Table:
    """The episodes table less its wide statistics columns."""
    return table.select([name for name in table.column_names if not name.startswith("stats/")])


def stored(features: Info) -> Info:
    """The features that are columns of the data files (videos are not)."""
    return {name: f for name, f in features.items() if f["dtype"] not in ("video", "image", "string")}


def read_frames(path: Path, features: Info, start: int = 0, stop: int | None = None) -> dict[str, Array]:
    """Rows start..stop of a data file as numpy, each [T, ...] with the feature's dtype; reads only the row groups they are in.

    Raises FileNotFoundError for a missing file and RealrlError for a damaged, short or ill-typed one.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)], dtype=np.int64)
            stop = file.metadata.num_rows if stop is None else stop
            if stop > file.metadata.num_rows:
                raise ValueError(f"{file.metadata.num_rows} frames where {stop} are expected")
            first, last = np.searchsorted(ends, start, side="right"), np.searchsorted(ends, stop, side="left")
            groups = list(range(int(first), min(int(last), len(ends) - 1) + 1))
            table = file.read_row_groups(groups)
        skip = start - (int(ends[first - 1]) if first else 0)
        table = table.slice(skip, stop - start)
        missing = [name for name in stored(features) if name not in table.column_names]
        if missing:
            raise ValueError(f"no column {missing[0]}")
        return {name: _to_numpy(table[name], name, f) for name, f in stored(features).items()}
    except FileNotFoundError:
        raise
    except DAMAGED as error:
        raise RealrlError(f"{path} is truncated, damaged or not as info.json says ({_line(error)}); "
                          "restore it from a copy") from error


def to_arrow(x: Array) -> pa.Array:
    """[T, ...] as a column: scalars for width one, fixed-size lists for vectors, nested lists for more axes."""
    flat = pa.array(np.ascontiguousarray(x).reshape(-1))
    if x.shape[1:] in ((), (1,)):
        return flat
    if x.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(flat, x.shape[1])
    for size in reversed(x.shape[1:]):
        flat = pa.ListArray.from_arrays(pa.array(np.arange(0, len(flat) + 1, size, dtype=np.int32)), flat)
    return flat


def _to_numpy(column: pa.ChunkedArray, name: str, feature: Info) -> Array:
    values = column.combine_chunks()
    rows = len(values)
    while pa.types.is_nested(values.type):
        values = values.flatten()
    if values.null_count:
        raise ValueError(f"{name} has empty cells")
    shape = [] if list(feature["shape"]) == [1] else feature["shape"]
    out: Array = values.to_numpy(zero_copy_only=False).reshape(rows, *shape)
    if out.dtype != np.dtype(feature["dtype"]):
        raise ValueError(f"{name} is {out.dtype}, info.json says {feature['dtype']}")
    return out


def episode(columns: dict[str, Array], row: dict[str, Any]) -> Episode:
    """Columns and row put together again.

    A dataset that others recorded may lack our columns: then the person drove (LeRobot records teleoperation), reward is 0, and
    the last observation, which was never stored, is the last one seen.
    """
    n = len(columns["action"])
    vectors = {name: x.reshape(n, -1) if x.ndim == 1 else x for name, x in columns.items()}
    obs = {}
    for name in (c for c in columns if c.startswith("observation.")):
        x, last = vectors[name], row.get(f"last/{name}")
        end = x[-1] if last is None else np.array(last, x.dtype).reshape(x.shape[1:])
        obs[name.removeprefix("observation.")] = np.concatenate([x, end[None]])
    action, success = vectors["action"], columns.get("next.success", np.zeros(n, bool))
    terminated = row.get("terminated")
    return Episode(
        obs=obs, action=action, proposed=vectors.get("action.proposed", action.copy()),
        source=columns.get("source", np.full(n, Source.HUMAN)).astype(np.uint8), success=success.reshape(n),
        reward=columns.get("next.reward", np.zeros(n)).reshape(n).astype(np.float32),
        time=columns.get("time", columns["timestamp"]).astype(np.float64), starts_plan=columns.get("starts_plan", np.ones(n, bool)),
        terminated=bool(success[-1]) if terminated is None else terminated,
        truncated=not success[-1] if terminated is None else bool(row.get("truncated")),
        task=(row.get("tasks") or [""])[0], policy=row.get("policy") or "", seed=row.get("seed"))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]


# ---- statistics


def episode_stats(columns: dict[str, Array]) -> Stats:
    """Per feature min, max, mean, std, quantiles and count, each [D] over all axes but the last; true counts as one."""
    stats: Stats = {}
    for name, column in columns.items():
        x = column.reshape(-1, column.shape[-1] if column.ndim > 1 else 1).astype(np.float64)
        q = np.quantile(x, list(QUANTILES.values()), axis=0)
        stats[name] = {"min": x.min(0), "max": x.max(0), "mean": x.mean(0), "std": x.std(0), **dict(zip(QUANTILES, q, strict=True)),
                       "count": np.array([len(column)])}
    return stats


def merge_stats(a: Stats, b: Stats) -> Stats:
    """Statistics of both together; quantiles are count-weighted means, as LeRobot merges them."""
    merged: Stats = {}
    for name, y in b.items():
        x = a.get(name)
        if x is None:
            merged[name] = y
            continue
        w = float(y["count"][0]) / float(x["count"][0] + y["count"][0])
        mix = {s: (1 - w) * x[s] + w * y[s] for s in ("mean", *QUANTILES)}
        spread = (1 - w) * (x["std"]**2 + (x["mean"] - mix["mean"])**2) + w * (y["std"]**2 + (y["mean"] - mix["mean"])**2)
        merged[name] = {"min": np.minimum(x["min"], y["min"]), "max": np.maximum(x["max"], y["max"]), "std": np.sqrt(spread),
                        **mix, "count": x["count"] + y["count"]}
    return merged


def stored_stats(root: Path, features: Info, frames: int) -> Stats:
    """stats.json if it covers all frames, else the episodes' own statistics merged anew."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError):
        told = json.loads((root / "meta/stats.json").read_text())
        if all(told[name]["count"][0] == frames for name in features):
            return {name: {s: np.atleast_1d(v) for s, v in told[name].items()} for name in features}
    rows = newest([read_parquet(p) for p in episode_files(root)]).to_pylist()
    stats: Stats = {}
    for row in rows:
        stats = merge_stats(stats, {n: {s: np.array(row[f"stats/{n}/{s}"]) for s in (*STATS, "count")} for n in features})
    return stats


# ---- the rules of one episode


def validate(episode: Episode, where: str, columns: dict[str, Array], features: Info) -> None:
    """Raise RealrlError, naming field and frame, unless the episode may join a dataset with these features.

    columns: the episode as the data file will hold it, each [T, ...].
    """
    n = len(episode)
    if n == 0:
        raise RealrlError(f"{where}: has no frames; drop it")
    if episode.action.ndim != 2:
        raise RealrlError(f"{where}: action has shape {episode.action.shape}, wanted [{n}, A]; give every frame a vector")
    for key, x in episode.obs.items():
        if not key or "/" in key:
            raise RealrlError(f"{where}: observation key {key!r} must not be empty or hold '/'; rename it")
        if x.ndim < 2 or len(x) != n + 1:
            raise RealrlError(f"{where}: observation.{key} has shape {x.shape}, wanted [{n + 1}, ...]: one row a frame and the last one")
    wrong = sorted(set(columns) ^ set(features))
    if wrong:
        side = "is not in the dataset" if wrong[0] in columns else "is missing"
        raise RealrlError(f"{where}: {wrong[0]} {side}; record into a new folder")
    for name, x in columns.items():
        shape = list(x.shape[1:]) or [1]
        if len(x) != n or shape != list(features[name]["shape"]) or str(x.dtype) != features[name]["dtype"]:
            wanted = f"{features[name]['dtype']} {[n, *features[name]['shape']]}"
            raise RealrlError(f"{where}: {name} is {x.dtype} {list(x.shape)}, wanted {wanted}; convert it or use a new folder")
    for name, x in {**columns, **{f"observation.{k}": v for k, v in episode.obs.items()}}.items():
        if x.dtype.kind == "f" and not (ok := np.isfinite(x).reshape(len(x), -1).all(1)).all():
            raise RealrlError(f"{where}: {name} holds NaN or infinity at frame {int(np.argmin(ok))}; drop the episode or mend its source")
    late = np.flatnonzero(np.diff(columns["time"]) <= 0)
    if len(late):
        raise RealrlError(f"{where}: time does not increase at frame {int(late[0]) + 1}; use a monotonic clock")
    if len(bad := np.flatnonzero(~np.isin(columns["source"], [int(s) for s in Source]))):
        raise RealrlError(f"{where}: source is {int(columns['source'][bad[0]])} at frame {int(bad[0])}, wanted 0, 1 or 2")
    if episode.seed is not None and not -2**63 <= episode.seed < 2**63:
        raise RealrlError(f"{where}: seed {episode.seed} does not fit 64 bits; use a smaller one")


# ---- the examination of a dataset


def check(directory: str | Path) -> list[Problem]:
    """Everything wrong with a dataset: tables, counts, holes, values, clocks, leftovers. Reads every frame, writes nothing."""
    root = Path(directory)
    try:
        info = read_info(root)
    except RealrlError as error:
        return [_from_error(error)]
    problems: list[Problem] = []
    tables = []
    for path in episode_files(root):
        try:
            tables.append(read_parquet(path))
        except RealrlError as error:
            problems.append(_from_error(error))
    missing = [name for name in ROW_INDICES[:6] if any(name not in t.column_names for t in tables)]
    if missing:
        return [*problems, Problem("error", f"{root}/meta/episodes", f"no column {missing[0]}", "restore it from a copy")]
    rows = newest([without_stats(t) for t in tables])
    problems += _check_rows(root, rows)
    problems += _check_summaries(root, info, rows)
    problems += _check_leftovers(root, info, rows, sum(len(t) for t in tables))
    for key in _data_keys(rows):
        problems += _check_data(root, info, rows, key)
    return problems


def _from_error(error: RealrlError) -> Problem:
    what, _, mend = str(error).rpartition("; ")
    where, _, rest = what.partition(" ")
    return Problem("error", where.rstrip(":"), rest, mend)


def _check_rows(root: Path, rows: pa.Table) -> Iterator[Problem]:
    where = f"{root}/meta/episodes"
    index, length, start, stop = (rows[c].to_numpy() for c in ("episode_index", "length", "dataset_from_index", "dataset_to_index"))
    holes = sorted(set(range(int(index[-1]) + 1)) - set(index.tolist())) if len(index) else []
    if holes:
        yield Problem("error", where, f"episodes {holes[:5]} have no row ({len(holes)} in all)", "restore the episodes file that held them")
    if len(bad := np.flatnonzero(stop - start != length)):
        yield Problem("error", where, f"episode {index[bad[0]]}: length {length[bad[0]]} is not its span", "restore the file from a copy")
    if len(bad := np.flatnonzero(start != np.concatenate([[0], stop[:-1]]))) and not holes:
        yield Problem("error", where, f"episode {index[bad[0]]} begins at frame {start[bad[0]]}, not where the one before it ends",
                      "restore the file from a copy")


def _check_summaries(root: Path, info: Info, rows: pa.Table) -> Iterator[Problem]:
    frames = int(rows["length"].to_numpy().sum())
    for name, true in {"total_episodes": len(rows), "total_frames": frames}.items():
        if info.get(name) != true:
            yield Problem("warning", f"{root}/meta/info.json", f"{name} is {info.get(name)}, the episodes tables hold {true}",
                          "opening the dataset for use corrects it")
    try:
        tasks = read_tasks(root)
        named = {t for texts in rows["tasks"].to_pylist() for t in texts} if "tasks" in rows.column_names else set()
        if lost := sorted(named - set(tasks)):
            yield Problem("error", f"{root}/meta/tasks.parquet", f"task {lost[0]!r} is used but not listed", "restore it from a copy")
    except RealrlError as error:
        yield _from_error(error)
    path = root / "meta/stats.json"
    try:
        count = json.loads(path.read_text())["action"]["count"][0] if path.exists() else 0
        if count != frames:
            yield Problem("warning", str(path), f"counts {count} frames of {frames}", "the next append rebuilds it")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        yield Problem("warning", str(path), f"is not readable ({_line(error)})", "the next append rebuilds it")


def _check_leftovers(root: Path, info: Info, rows: pa.Table, n_rows: int) -> Iterator[Problem]:
    known = {data_file(root, info, key) for key in _data_keys(rows)}
    for path in sorted(root.glob("data/chunk-*/*.parquet")):
        if path not in known:
            yield Problem("warning", str(path), "no episode refers to it (a writer died)", "ignored; delete it if not needed")
    for path in sorted(root.rglob(".*.tmp")):
        yield Problem("warning", str(path), "unfinished temporary file", "the next append deletes it")
    for path in sorted(root.glob("data/chunk-*/*.orphan*")):
        yield Problem("warning", str(path), "unfinished recording, set aside", "ignored; delete it if not needed")
    if (root / JOURNAL).exists():
        yield Problem("warning", str(root / JOURNAL), "a compaction was interrupted", "opening the dataset for use finishes it")
    elif n_rows != len(rows):
        yield Problem("warning", f"{root}/meta/episodes", f"{n_rows - len(rows)} episodes have two rows; the newer counts", "compact it")


def _data_keys(rows: pa.Table) -> list[FileKey]:
    return list(dict.fromkeys(zip(rows["data/chunk_index"].to_pylist(), rows["data/file_index"].to_pylist(), strict=True)))


def data_file(root: Path, info: Info, key: FileKey) -> Path:
    """Where the data file (chunk_index, file_index) lies."""
    return root / str(info["data_path"]).format(chunk_index=key[0], file_index=key[1])


def _check_data(root: Path, info: Info, rows: pa.Table, key: FileKey) -> list[Problem]:
    path = data_file(root, info, key)
    try:
        columns = read_frames(path, info["features"])
    except FileNotFoundError:
        return [Problem("error", str(path), "is missing", "restore it from a copy")]
    except RealrlError as error:
        return [_from_error(error)]
    here = (rows["data/chunk_index"].to_numpy() == key[0]) & (rows["data/file_index"].to_numpy() == key[1])
    start, length, index = (rows[c].to_numpy()[here] for c in ("dataset_from_index", "length", "episode_index"))
    n = int(length.sum())
    if len(columns["index"]) != n:
        what = f"holds {len(columns['index'])} frames, its episodes have {n}"
        return [Problem("error", str(path), what, "restore it from a copy")]
    frame = np.arange(n) - np.repeat(np.cumsum(length) - length, length)
    owner = np.repeat(index, length)
    problems = []
    for severity, field, what, bad, mend in _faults(columns, frame, owner, np.repeat(start, length), info):
        if bad.any():
            at = int(np.argmax(bad))
            problems.append(Problem(severity, str(path), f"{field} {what} in {int(bad.sum())} frames, first in episode {owner[at]}, "
                                    f"frame {frame[at]}", mend))
    return problems


def _faults(columns: dict[str, Array], frame: Array, owner: Array, start: Array, info: Info
            ) -> Iterator[tuple[str, str, str, Any, str]]:
    """(severity, field, what, bad frames [T], mend) for every rule, over the frames of one file."""
    copy = "restore the file from a copy"
    for field, true in {"episode_index": owner, "frame_index": frame, "index": start + frame}.items():
        yield "error", field, "is not what meta/episodes says", columns[field] != true, copy
    for field, x in columns.items():
        if x.dtype.kind == "f":
            yield "error", field, "is NaN or infinite", ~np.isfinite(x).reshape(len(x), -1).all(1), "drop those episodes"
    yield ("warning", "action", "leaves [-1, 1]", (np.abs(columns["action"].reshape(len(frame), -1)) > 1).any(1),
           "scale the actions before training")
    off = np.abs(columns["timestamp"] - frame / info["fps"]) > 1e-4 + 1e-6 * frame / info["fps"]
    yield "error", "timestamp", "is not frame_index / fps", off, copy
    if "time" in columns:
        yield "error", "time", "does not increase", (np.diff(columns["time"], prepend=-np.inf) <= 0) & (frame > 0), copy
    seen = [x.reshape(len(frame), -1) for name, x in columns.items() if name.startswith("observation.")]
    if seen:
        same = np.concatenate([[False], np.all([(x[1:] == x[:-1]).all(1) for x in seen], axis=0)]) & (frame > 0)
        since = np.arange(len(frame)) - np.maximum.accumulate(np.where(same, 0, np.arange(len(frame))))
        yield ("warning", "observation", f"is frozen for {max(10, int(info['fps']))} frames or more",
               since >= max(10, int(info["fps"])), "look whether a sensor hung")


def describe(directory: str | Path) -> dict[str, Any]:
    """What a dataset holds, without reading frames: counts, success rate (None if unknown), mean length, features, bytes on disk."""
    root = Path(directory)
    info = read_info(root)
    rows = newest([without_stats(read_parquet(p)) for p in episode_files(root)])
    known = {name: [v for v in rows[name].to_pylist() if v is not None] for name in ("success", "policy") if name in rows.column_names}
    success = known.get("success")
    length = rows["length"].to_numpy()
    return {
        "path": str(root), "robot_type": info.get("robot_type"), "fps": info["fps"], "tasks": read_tasks(root),
        "episodes": len(rows), "frames": int(length.sum()), "mean_length": float(length.mean()) if len(rows) else 0.0,
        "success_rate": sum(success) / len(success) if success else None, "policies": dict(Counter(known.get("policy", []))),
        "features": {name: f"{f['dtype']}{list(f['shape'])}" for name, f in info["features"].items()},
        "data_files": len(_data_keys(rows)), "bytes": sum(p.stat().st_size for p in root.rglob("*") if p.is_file())}
