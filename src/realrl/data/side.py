"""Side files: columns derived from recordings (returns, values, advantages, labels), versioned by name; no recording is rewritten.

    derived/<name>/v1.parquet, v2.parquet ...    one row a frame, or one row an episode

A version is never overwritten (but a person who labels goes on in the one that the session began). It is tied to the episodes it was
computed from: it holds their counts and a fingerprint of their rows (length, task, policy, seed, outcome, last observation), and is
refused where these are no longer the first episodes of the dataset, in that order. Episodes that were appended since have no rows in it;
the reader says whether that is an error.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from realrl.data import tables
from realrl.data.errors import DAMAGED, line, typed
from realrl.data.schema import data_file, ours, read_info
from realrl.files import publish, within
from realrl.types import Array, RealrlError

Per = Literal["frame", "episode"]
FOLDER = "derived"
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
IDENTITY = ("length", "tasks", "policy", "seed", "success")  # columns of an episode's row that no repair or compaction changes


@dataclass(frozen=True)
class Derived:
    """One version of a side file.

    columns: each [frames, ...] or [episodes, ...] as `per` says; meta: what its writer noted (JSON); missing: how many episodes at
    the end were appended after it was written. Their rows are NaN in columns of floats and None in all others (dtype object).
    """

    name: str
    version: int
    per: Per
    columns: dict[str, Array]
    meta: dict[str, Any] = field(default_factory=dict)
    missing: int = 0


def names(directory: str | Path) -> list[str]:
    """The names that have at least one version; what else lies there (a file browser's notes, say) is passed over."""
    return sorted(p.name for p in Path(directory, FOLDER).glob("*") if re.fullmatch(NAME, p.name) and versions(directory, p.name))


def versions(directory: str | Path, name: str) -> list[int]:
    """Version numbers of a side file, oldest first; empty when there is none."""
    found = (re.fullmatch(r"v([1-9][0-9]*)\.parquet", p.name) for p in _folder(directory, name).glob("v*.parquet"))
    return sorted(int(match[1]) for match in found if match)


def write(directory: str | Path, name: str, columns: Mapping[str, Array], meta: Mapping[str, Any] | None = None, *,
          rows: pa.Table | None = None, version: int | None = None) -> int:
    """Store columns for all episodes there are now, as a new version, and give its number. Once this returns they survive a crash.

    columns: all [frames, ...] or all [episodes, ...], numbers, truth values or text; meta: anything JSON holds (how they were
    computed); rows: the episodes' rows, by default as meta/episodes has them; version: one to replace. Raises RealrlError
    when a column has another length or type, and when the folder cannot be written.
    """
    root = Path(directory)
    rows = _rows(root) if rows is None else rows
    per = _kind(root, name, columns, rows)
    return _publish(root, name, columns, per, meta or {}, rows, version)


def read(directory: str | Path, name: str, version: int | None = None, *, missing: Literal["error", "nan"] = "error",
         rows: pa.Table | None = None) -> Derived:
    """A version of a side file, the newest by default.

    missing: what to do about episodes that were appended since, "error" or "nan" (see `Derived`); rows: as for `write`. Raises
    RealrlError when there is no such version, its file is damaged, or the dataset's first episodes are not those it was computed from.
    """
    root = Path(directory)
    there = versions(root, name)
    if not there or (version is not None and version not in there):
        known = f"there are {', '.join(f'v{v}' for v in there)}" if there else f"there is {', '.join(names(root)) or 'none'}"
        raise RealrlError(f"{root}: no derived column file {name!r}{'' if version is None else f' v{version}'}; {known}")
    version = there[-1] if version is None else version
    path = _folder(root, name) / f"v{version}.parquet"
    within(root, path)
    about = _about(path)
    rows = _rows(root) if rows is None else rows
    if len(rows) < about["episodes"] or fingerprint(rows.slice(0, about["episodes"])) != about["fingerprint"]:
        raise RealrlError(f"{path} was computed from other episodes than {root} holds now (removed or reordered); make it anew, or set "
                          "it aside")
    behind = len(rows) - int(about["episodes"])
    if behind and missing == "error":
        raise RealrlError(f"{path} covers {about['episodes']} episodes of {len(rows)}: {behind} were appended since; compute it anew")
    total = len(rows) if about["per"] == "episode" else int(rows["length"].to_numpy().sum())
    if behind and about["per"] == "frame" and total > (there_are := _frames_on_disk(root, rows)):
        raise RealrlError(f"{root}: meta/episodes counts {total} rows, the data files hold {there_are}; "
                          f"run `realrl data check {typed(root)}`")
    table = tables.read_parquet(path)  # only now: a small file may unfold into as many rows as it likes to say
    try:
        columns = {c: _padded(_from_arrow(table[c]), total) for c in table.column_names}
    except DAMAGED as error:
        raise RealrlError(f"{path} is damaged ({line(error)}); compute it anew") from error
    return Derived(name, version, about["per"], columns, about["meta"], behind)


def fingerprint(rows: pa.Table) -> str:
    """A digest of what identifies episodes, in their order. rows: of the episodes table."""
    digest = hashlib.sha256()
    known = [c for c in rows.column_names if c in IDENTITY or c.startswith("last/")]
    for name in sorted(known):
        try:
            digest.update(json.dumps([name, rows[name].to_pylist()], default=str).encode())
        except DAMAGED as error:
            raise RealrlError(f"meta/episodes: {name} is damaged ({line(error)}); run 'realrl data repair'") from error
    return digest.hexdigest()


# ---- following an edit


def carry(sources: Sequence[Path], picks: Sequence[tuple[int, int, int, int]], out: Path) -> list[str]:
    """Give a dataset made of pieces of others their side files; gives one line for each that could not follow.

    picks: (source, episode, first frame, frame after the last) of every new episode. With one source every version keeps its number;
    with several the newest versions are joined where all sources have that name with the same columns; of columns that have a row an
    episode, such as labels, a source may have none, then its episodes have empty cells.
    """
    notes = []
    lengths = [np.asarray(_rows(s)["length"].to_numpy()) for s in sources]
    for name in dict.fromkeys(name for s in sources for name in names(s)):
        for version in versions(sources[0], name) if len(sources) == 1 else [None]:
            try:
                known = [read(s, name, version, missing="nan") if versions(s, name) else None for s in sources]
                parts = [part or _blank(known, sources[i], name, len(lengths[i])) for i, part in enumerate(known)]
                _write_joined(parts, lengths, picks, out, version)
            except RealrlError as error:
                notes.append(f"derived columns {name!r} stay behind: {error}")
    return notes


def _blank(known: Sequence[Derived | None], source: Path, name: str, rows: int) -> Derived:
    """Empty cells for a source that has nothing under that name, while others have. Raises RealrlError where they have a row a frame."""
    other = next(part for part in known if part)
    if other.per == "frame":
        raise RealrlError(f"{source}: no derived column file {name!r}; there is {', '.join(names(source)) or 'none'}")
    return Derived(name, 0, other.per, {c: _padded(x[:0], rows) for c, x in other.columns.items()})


def _write_joined(parts: Sequence[Derived], lengths: Sequence[Array], picks: Sequence[tuple[int, int, int, int]], out: Path,
                  version: int | None) -> None:
    first = parts[0]
    if any((set(p.columns), p.per) != (set(first.columns), first.per) for p in parts):
        raise RealrlError("the sources hold other columns under that name")
    starts = [np.cumsum(n) - n for n in lengths]
    columns = {}
    for column in first.columns:
        data = [p.columns[column] for p in parts]
        if len({x.shape[1:] for x in data}) > 1:
            raise RealrlError(f"column {column!r} has other shapes in the sources")
        cuts = [data[s][e:e + 1] if first.per == "episode" else data[s][starts[s][e] + a:starts[s][e] + b] for s, e, a, b in picks]
        columns[column] = np.concatenate(cuts) if cuts else data[0][:0]
    _publish(out, first.name, columns, first.per, first.meta, _rows(out), version)


# ---- files


def _folder(directory: str | Path, name: str) -> Path:
    """Where a name's versions lie. Raises RealrlError for a name that is no plain one, or a link that leads elsewhere."""
    if not re.fullmatch(NAME, name):
        raise RealrlError(f"{directory}: {name!r} cannot name derived columns; use letters, digits, '-', '_' and '.'")
    folder = Path(directory) / FOLDER / name
    within(Path(directory), folder)
    return folder


def _rows(root: Path) -> pa.Table:
    info, rows = read_info(root), tables.episodes(root)  # the first complains when this is no dataset
    return rows if ours(info) else tables.filled(rows)


def _kind(root: Path, name: str, columns: Mapping[str, Array], rows: pa.Table) -> Per:
    """Whether the columns are per frame or per episode. Raises RealrlError naming the column that is neither."""
    frames, where = int(rows["length"].to_numpy().sum()), f"{root}: derived columns {name!r}"
    if not columns:
        raise RealrlError(f"{where}: no column given; give at least one")
    for column, values in columns.items():
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "biufUO" or values.ndim < 1:
            raise RealrlError(f"{where}: {column!r} must be an array of numbers, truth values or text")
        if len(values) not in (frames, len(rows)):
            raise RealrlError(f"{where}: {column!r} has {len(values)} rows, wanted {frames} (frames) or {len(rows)} (episodes)")
    if len({len(values) for values in columns.values()}) > 1:
        raise RealrlError(f"{where}: some columns have a row a frame, others a row an episode; write them under two names")
    return "frame" if len(next(iter(columns.values()))) == frames else "episode"


def _publish(root: Path, name: str, columns: Mapping[str, Array], per: Per, meta: Mapping[str, Any], rows: pa.Table,
             version: int | None = None) -> int:
    about = {"per": per, "episodes": len(rows), "frames": int(rows["length"].to_numpy().sum()), "fingerprint": fingerprint(rows),
             "meta": dict(meta)}
    folder = _folder(root, name)
    try:
        table = pa.table({c: _to_arrow(x) for c, x in columns.items()})
        table = table.replace_schema_metadata({"realrl": json.dumps(about, allow_nan=False)})
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise RealrlError(f"{folder}: the columns or their meta cannot be stored ({line(error)})") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            version = version or max(versions(root, name), default=0) + 1
            publish(folder / f"v{version}.parquet", partial(pq.write_table, table, write_page_checksum=True))
    except OSError as error:
        raise RealrlError(f"{folder} could not be written ({error.strerror or error}); free space or mend the permissions") from error
    return version


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One writer at a time, so that two never take the same version."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _about(path: Path) -> dict[str, Any]:
    """The header of a side file, its columns unread. Raises RealrlError when it is not one, or its rows are not as many as it says."""
    try:
        with tables.Parquet(path) as file:
            n, header = file.rows, file.schema.metadata or {}
        about: dict[str, Any] = json.loads(header[b"realrl"])
        episodes, frames = about["episodes"], about["frames"]
        whole = type(episodes) is type(frames) is int and n == {"frame": frames, "episode": episodes}[about["per"]] and episodes >= 0
        whole = whole and isinstance(about["meta"], dict) and isinstance(about["fingerprint"], str)
    except (*DAMAGED, RecursionError) as error:
        raise RealrlError(f"{path} is no file of derived columns ({type(error).__name__}: {line(error)}); set it aside") from error
    if not whole:
        raise RealrlError(f"{path} is damaged: its {n} rows are not what its header says; compute it anew")
    return about


def _frames_on_disk(root: Path, rows: pa.Table) -> int:
    """Rows in the data files that the episodes refer to, by the files' own count. Raises RealrlError for one that cannot be read."""
    info, total = read_info(root), 0
    for key in {(int(c), int(f)) for c, f in zip(*(rows[f"data/{n}_index"].to_numpy() for n in ("chunk", "file")), strict=True)}:
        path = data_file(root, info, key)
        try:
            with tables.Parquet(path) as file:
                total += file.rows
        except DAMAGED as error:
            raise RealrlError(f"{path} is missing or damaged ({line(error)}); run `realrl data check {typed(root)}`") from error
    return total


def _to_arrow(x: Array) -> pa.Array:
    return pa.array(x.tolist()) if x.dtype.kind in "UO" else tables.to_arrow(x)


def _from_arrow(column: pa.ChunkedArray) -> Array:
    """[rows, ...]; text and columns with empty cells as dtype object."""
    values = column.combine_chunks()
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)
    rows, shape = len(values), []
    while pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or pa.types.is_fixed_size_list(values.type):
        inner = values.flatten()
        shape.append(values.type.list_size if pa.types.is_fixed_size_list(values.type) else len(inner) // max(len(values), 1))
        values = inner
    if pa.types.is_nested(values.type):
        raise ValueError(f"a column of {values.type}")
    if values.null_count or pa.types.is_string(values.type):
        return np.array([*values.to_pylist(), None], object)[:-1].reshape(rows, *shape)
    out: Array = values.to_numpy(zero_copy_only=False)
    return out.reshape(rows, *shape).copy()


def _padded(x: Array, rows: int) -> Array:
    """`x` with rows for the episodes it does not know."""
    if len(x) >= rows:
        return x
    kind = x.dtype if x.dtype.kind == "f" else np.dtype(object)
    out = np.full((rows, *x.shape[1:]), np.nan if kind.kind == "f" else None, kind)
    out[:len(x)] = x
    return out
