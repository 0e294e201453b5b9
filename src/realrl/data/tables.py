"""Parquet to numpy and back, read with suspicion: what is damaged, short or of another type raises RealrlError in one line."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from realrl.data import cells, depth, words
from realrl.data.errors import BLIND, DAMAGED, legible, line, mend, plain
from realrl.data.words import FRAMES
from realrl.files import within
from realrl.types import Array, RealrlError

Features = dict[str, Any]
FileKey = tuple[int, int]  # (chunk_index, file_index)
ROW_INDICES = ("episode_index", "length", "data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index",
               "meta/episodes/chunk_index", "meta/episodes/file_index")
REQUIRED = ROW_INDICES[:6]
VIDEO_FIELDS = {"chunk_index": pa.int64(), "file_index": pa.int64(), "from_timestamp": pa.float64(), "to_timestamp": pa.float64(),
               "last_timestamp": pa.float64()}  # the columns videos/<camera>/...; the last one is ours
NUMBERED = re.compile(r"chunk-(\d{1,9})/file-(\d{1,9})\.parquet")

MOST_TASKS = 10**6  # in a set; a larger task_index is damage
SIDE = 8  # pixels: fewer are no picture
TAKE_OUT = "take it out of meta/info.json if nobody needs it"
EVEN = f"write vectors of one length there, or {TAKE_OUT}"


class Unlike(ValueError):
    """A column is whole, but not what info.json says; the text ends with what mends that."""


def stored(features: Features) -> Features:
    """The features that are columns of numbers in the data files (videos, pictures and texts are not), and words of success."""
    return {name: f for name, f in features.items() if _numeric(f["dtype"]) or (f["dtype"] == "string" and name in FRAMES)}


def cameras(features: Features) -> Features:
    """The features that are videos, depth included."""
    return {name: f for name, f in features.items() if f["dtype"] == "video"}


def numeric(kind: pa.DataType) -> str:
    """The dtype of the numbers in cells of this type, "" where they hold none."""
    while pa.types.is_nested(kind) and not pa.types.is_struct(kind):
        kind = kind.value_type
    plain = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return str(np.dtype(kind.to_pandas_dtype())) if plain else ""


def _numeric(dtype: str) -> bool:
    try:
        return np.dtype(dtype).kind in "biuf"
    except TypeError:
        return False


# ---- a file


ROOM, UNFOLDS, ROWS = 2**28, 256, 64
"""What a file may unfold to in memory: so many bytes, and so many times its size; and how many rows a byte of it may stand for."""


class Parquet:
    """A parquet file, page checksums verified, whose footer is not believed beyond what its bytes can hold.

    names: of its columns; rows: how many; ends: how many up to the end of each row group; bytes: of each row group, unpacked. A context
    manager. Raises FileNotFoundError, RealrlError for what is no plain file, and else one of `DAMAGED`.
    """

    def __init__(self, path: Path) -> None:
        legible(path)
        size = plain(path).stat().st_size
        self.room = ROOM + UNFOLDS * size
        self._file = pq.ParquetFile(path, page_checksum_verification=True)
        self.schema: pa.Schema = self._file.schema_arrow
        self.names: list[str] = self.schema.names
        groups = [self._file.metadata.row_group(i) for i in range(self._file.num_row_groups)]
        self.ends: Array = np.cumsum([g.num_rows for g in groups], dtype=np.int64)
        self.bytes = [int(g.total_byte_size) for g in groups]
        self.rows = int(self.ends[-1]) if groups else 0
        if len(set(self.names)) < len(self.names):
            self.close()
            raise ValueError("two of its columns have one name")
        if max(self.rows, self._file.metadata.num_rows) > ROWS * size or sum(self.bytes) > self.room:
            self.close()
            raise ValueError(f"it says that it has {self.rows:,} rows of {sum(self.bytes):,} bytes, and has {size:,} bytes")

    def __enter__(self) -> Parquet:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def groups(self, start: int, stop: int) -> range:
        """The row groups that rows start..stop lie in."""
        first, last = np.searchsorted(self.ends, start, side="right"), np.searchsorted(self.ends, stop, side="left")
        return range(int(first), min(int(last), len(self.ends) - 1) + 1)

    def cells(self, name: str, rows: int = 1) -> Iterator[pa.Array]:
        """A column's cells, some rows at a time; only their pages are read."""
        return (batch.column(0) for batch in self._file.iter_batches(rows, columns=[name]))

    def read(self, groups: Sequence[int] | None = None, names: Sequence[str] | None = None) -> pa.Table:
        """Some row groups and columns, by default all. Raises one of `DAMAGED`, also when they unfold beyond what such a file may."""
        groups, names = range(len(self.ends)) if groups is None else groups, self.names if names is None else names
        meta, parts = self._file.metadata, tuple(f"{name}." for name in names)  # a column of lists has a path of several words
        columns = [i for i in range(meta.num_columns) if f"{meta.schema.column(i).path}.".startswith(parts)]
        values = sum(meta.row_group(g).column(i).num_values for g in groups for i in columns)
        if 8 * values > self.room:
            raise ValueError(f"its {values:,} values need more than {self.room:,} bytes")
        batches, room = [], self.room
        for batch in self._file.iter_batches(1024, row_groups=list(groups), columns=list(names)):
            for at, column in enumerate(batch.columns):
                if pa.types.is_dictionary(column.type):  # each of its rows may be the longest of its texts
                    room -= len(column) * max((len(text) for text in column.dictionary.to_pylist() if isinstance(text, str)), default=8)
                    if room >= 0:
                        batch = batch.set_column(at, batch.schema.field(at).with_type(column.type.value_type), column.dictionary_decode())
            room -= batch.nbytes
            if room < 0:
                raise ValueError(f"its texts need more than {self.room:,} bytes")
            batches.append(batch)
        table = pa.Table.from_batches(batches) if batches else self.schema.empty_table()
        return table.select(names)


# ---- small tables


def read_parquet(path: Path, leave: str | None = None) -> pa.Table:
    """A whole small table, less the columns whose names begin with `leave`.

    Raises RealrlError naming a file that is damaged.
    """
    try:
        with Parquet(path) as file:
            return file.read(names=[name for name in file.names if leave is None or not name.startswith(leave)])
    except FileNotFoundError:
        raise
    except DAMAGED as error:
        raise RealrlError(f"{path} is truncated or damaged ({line(error)}); {mend(path)}") from error


def read_tasks(root: Path, frames: int) -> list[str]:
    """Task texts; the position is the task_index, and a number that is left out has none. frames: of all episodes; more tasks than that
    (and some of episodes that never came) cannot be."""
    path = root / "meta/tasks.parquet"
    within(root, path)
    try:
        with Parquet(path) as file:
            if file.rows > max(frames, 1000):
                raise ValueError(f"{file.rows:,} tasks for {frames:,} frames")
            texts = [f.name for f in file.schema
                     if {f.type, getattr(f.type, "value_type", None)} & {pa.string(), pa.large_string()}]
            text = next((name for name in ("task", "__index_level_0__", *texts) if name in texts), None)
            if "task_index" not in file.names or text is None:
                raise ValueError(f"its columns are {', '.join(file.names)}, wanted task_index and the text")
            table = file.read(names=["task_index", text])
            told = dict(zip(table["task_index"].to_pylist(), table[text].to_pylist(), strict=True))
            if told and not 0 <= min(told) <= max(told) < MOST_TASKS:
                raise ValueError(f"tasks have the numbers {min(told)} to {max(told)}")
    except FileNotFoundError as error:
        raise RealrlError(f"{path} is missing; {mend(path)}") from error
    except DAMAGED as error:
        raise RealrlError(f"{path} is truncated or damaged ({line(error)}); {mend(path)}") from error
    return [str(told.get(i) or "") for i in range(max(told, default=-1) + 1)]


def tasks_table(tasks: Sequence[str]) -> pa.Table:
    """tasks.parquet with the pandas metadata that makes the text the index, written by hand: pandas is no dependency."""
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())})
    columns = [{"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
               for name, kind, numpy in (("task_index", "int64", "int64"), ("task", "unicode", "object"))]
    header = {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object", "metadata": {"encoding": "UTF-8"}}
    pandas = {"index_columns": ["task"], "column_indexes": [header], "columns": columns, "attributes": {},
              "creator": {"library": "pyarrow", "version": pa.__version__}, "pandas_version": "2.3.3"}
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


# ---- the episodes table


def episode_files(root: Path) -> list[Path]:
    """The episodes tables, oldest first."""
    numbered = ((NUMBERED.fullmatch(f"{p.parent.name}/{p.name}"), p) for p in root.glob("meta/episodes/chunk-*/file-*.parquet"))
    return [p for _, p in sorted((tuple(map(int, m.groups())), p) for m, p in numbered if m)]


def read_rows(path: Path, stats: bool = False) -> pa.Table:
    """One episodes table, by default less its many statistics. Raises RealrlError unless its indices are whole numbers, all there,
    and where videos lie is told in numbers."""
    within(path.parents[3], path)
    table = read_parquet(path, None if stats else "stats/")
    if missing := [name for name in REQUIRED if name not in table.column_names]:
        raise RealrlError(f"{path} has no column {missing[0]}; {mend(path)}")
    for at, name in enumerate(table.column_names):
        kind = pa.int64() if name in ROW_INDICES else VIDEO_FIELDS.get(name.rpartition("/")[2]) if name.startswith("videos/") else None
        if kind is None:
            continue
        try:
            column = table[name].cast(kind)
        except DAMAGED as error:
            raise RealrlError(f"{path}: {name} is not numbers ({line(error)}); {mend(path)}") from error
        if name in REQUIRED and column.null_count:
            raise RealrlError(f"{path}: {name} has empty cells; {mend(path)}")
        table = table.set_column(at, name, column)
    return _texts(table) if "tasks" in table.column_names else table


def _texts(rows: pa.Table) -> pa.Table:
    """Rows with their tasks as lists of texts, where they can be: some write a text by itself, or empty lists alone, which have no type."""
    kind, told = pa.list_(pa.string()), rows["tasks"]
    with contextlib.suppress(*DAMAGED):
        alone = pa.types.is_string(told.type) or pa.types.is_large_string(told.type)
        told = pa.array([None if text is None else [text] for text in told.to_pylist()], kind) if alone else told.cast(kind)
    return rows.set_column(rows.schema.get_field_index("tasks"), "tasks", told)


def without_stats(table: pa.Table) -> pa.Table:
    """The episodes table less its wide statistics columns."""
    return table.select([name for name in table.column_names if not name.startswith("stats/")])


def episodes(root: Path, stats: bool = False) -> pa.Table:
    """The rows of all episodes, see `read_rows` and `newest`."""
    return newest([read_rows(path, stats) for path in episode_files(root)], root)


def newest(tables: Sequence[pa.Table], root: Path) -> pa.Table:
    """One table, one row an episode, by episode_index; where two tables (oldest first) hold the same episode the later one counts. Rows of
    one number whose frames begin apart are of two episodes.

    root: the dataset. Raises RealrlError when they do not fit together.
    """
    empty = pa.table({name: pa.array([], pa.int64()) for name in ROW_INDICES})
    try:
        rows = pa.concat_tables([empty, *tables], promote_options="permissive").combine_chunks()
    except DAMAGED as error:
        raise RealrlError(f"{root}/meta/episodes: its files do not fit together ({line(error)}); {mend(root / 'meta')}") from error
    index = rows["episode_index"].to_numpy()
    if (np.diff(index) > 0).all():
        return rows
    begins = np.stack([index, rows["dataset_from_index"].to_numpy()])
    _, last = np.unique(begins[:, ::-1], axis=1, return_index=True)
    return rows.take(pa.array(len(index) - 1 - last))


def filled(rows: pa.Table) -> pa.Table:
    """The rows of episodes that have a frame."""
    return rows.filter(pc.greater(rows["length"], 0)) if len(rows) else rows


# ---- frames


def read_frames(path: Path, features: Features, start: int = 0, stop: int | None = None, *, pictures: bool = False, whole: bool = False
                ) -> dict[str, Array]:
    """Rows start..stop of a data file as numpy, each [T, ...] with the feature's dtype; reads only the row groups they are in.

    pictures: also decode features of dtype "image", to uint8 [T, H, W, 3], or uint16 [T, H, W]; whole: they must be all of the file's.
    Raises FileNotFoundError for a missing file and RealrlError for a damaged, short or ill-typed one.
    """
    numbers = stored(features)
    wanted = [*numbers, *(name for name, f in features.items() if pictures and f["dtype"] == "image")]
    try:
        with Parquet(path) as file:
            stop = file.rows if stop is None else stop
            if stop > file.rows:
                raise ValueError(f"{file.rows} frames where {stop} are expected")
            if whole and file.rows > stop:
                raise Unlike(f"it holds {file.rows} frames, meta/episodes.jsonl says {stop}; correct the length there, or fetch it again")
            if missing := [name for name in wanted if name not in file.names]:
                raise Unlike(_lacking(missing[0], features[missing[0]]))
            groups = file.groups(start, stop)
            skipped = int(file.ends[groups[0] - 1]) if groups and groups[0] else 0
            table = file.read(groups, wanted).slice(start - skipped, stop - start)
        return {name: to_numpy(table[name], name, features[name]) if name in numbers else
                _pictures(table[name], f"{path}: {name}", path, start, features[name]) for name in wanted}
    except FileNotFoundError:
        raise
    except Unlike as error:
        raise RealrlError(f"{path}: {error}") from error
    except DAMAGED as error:
        raise RealrlError(f"{path} is truncated, damaged or not as info.json says ({line(error)}); {mend(path)}") from error


def _pictures(column: pa.ChunkedArray, where: str, path: Path, start: int, feature: Any) -> Array:
    """The pictures of a feature's cells [T, ...], as `cells` and `depth.cells` read them."""
    return depth.cells(cells.decoded(column, where, path, start, depth.told(feature).get(cells.FRACTIONS)), where, feature)


def _lacking(name: str, feature: Any) -> str:
    """What to do about a column that no data file has."""
    blind = "" if feature["dtype"] != "image" else f"{BLIND}, or "
    return f"it has no column {name}, which info.json lists; {blind}take it out of meta/info.json, or fetch the file anew"


def glance(path: Path, features: Features) -> None:
    """Look at the pictures that a data file keeps in cells: that every cell has one, and that the first and last of a row group decode.

    Raises RealrlError for the first that is none.
    """
    names = [name for name, f in features.items() if f["dtype"] == "image"]
    try:
        with Parquet(path) as file:
            if lost := [name for name in names if name not in file.names]:
                raise RealrlError(f"{path}: {_lacking(lost[0], features[lost[0]])}")
            for group, end in enumerate(file.ends.tolist()) if names else ():
                table = file.read([group], names)
                for name in table.column_names:
                    if cells.numbers(table[name]):
                        _pictures(table[name], f"{path}: {name}", path, 0, features[name])
                        continue
                    column = table[name].combine_chunks()
                    plain = not pa.types.is_struct(column.type) or column.type.get_field_index("bytes") < 0
                    empty = column.is_null() if plain else column.field("bytes").is_null()
                    wanted = sorted({0, len(column) - 1, *np.flatnonzero(empty.to_numpy(zero_copy_only=False)).tolist()[:9]})
                    for i in wanted:
                        where = f"{path}: {name}, row {end - len(column) + i}"
                        depth.cells(cells.picture(column[i].as_py(), where, path)[None], where, features[name])
    except (FileNotFoundError, *DAMAGED):  # who reads its numbers says so
        return


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


def to_numpy(column: pa.ChunkedArray, name: str, feature: Features) -> Array:
    """A column as [T, ...], an empty cell of floats as NaN. Others write a wider float or integer than info.json says, or whole numbers or
    flags in another type, whose values the type said can hold; anything else raises `Unlike`."""
    if name in FRAMES and (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return words.numbers(column.to_pylist(), name)
    values, dtype, shape = column.combine_chunks(), np.dtype(feature["dtype"]), list(feature["shape"])
    rows, size, there = len(values), math.prod(shape), None
    if pa.types.is_nested(values.type) and values.null_count:
        there = values.is_valid().to_numpy(zero_copy_only=False)
        values = values.filter(values.is_valid())
    try:
        values = _flat(values, feature.get("names"))
    except ValueError as error:
        raise Unlike(f"{name} has cells of several lengths; {EVEN}") from error
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        raise Unlike(f"{name} is text, info.json says {dtype}; write numbers there, or {TAKE_OUT}")
    if dtype.kind != "f" and (values.null_count or there is not None):
        raise Unlike(f"{name} has empty cells; leave it out of meta/info.json if nobody needs it, else fill them")
    full = rows if there is None else int(there.sum())
    if len(values) != full * size:
        if not full or len(values) % full:
            raise Unlike(f"{name} has frames of several lengths, info.json says {shape}; {EVEN}")
        raise Unlike(f"{name} has {len(values) // full} numbers a frame, info.json says {shape}; correct its shape in meta/info.json, or "
                     "keep such episodes apart")
    flat: Array = values.to_numpy(zero_copy_only=False)
    if flat.dtype.kind != dtype.kind and not _fits(flat, dtype):
        raise Unlike(f"{name} is {flat.dtype}, info.json says {dtype}; correct its dtype in meta/info.json")
    flat = flat.astype(dtype, copy=False)
    if there is not None:
        held, flat = flat.reshape(full, size), np.full((rows, size), np.nan, dtype)
        flat[there] = held
    return flat.reshape(rows, *([] if shape == [1] else shape))


def _flat(values: pa.Array, names: Any = None) -> pa.Array:
    """The numbers of nested cells one after the other; of a struct its fields side by side, in the order of the names where they are its
    fields'. Moments are seconds since the first of them, durations seconds."""
    while pa.types.is_nested(values.type) and not pa.types.is_struct(values.type):
        values = values.flatten()
    kind = values.type
    if pa.types.is_struct(kind):
        fields = dict(zip((field.name for field in kind), values.flatten(), strict=True))
        order = names if isinstance(names, list) and sorted(map(str, names)) == sorted(fields) else fields
        parts = [np.asarray(_flat(fields[name]).to_numpy(zero_copy_only=False)).reshape(len(values), -1) for name in order]
        return pa.array(np.concatenate(parts, axis=1).reshape(-1)) if all(x.dtype.kind in "biuf" for x in parts) else pa.array(
            ["text"] * sum(x.size for x in parts))
    if pa.types.is_timestamp(kind) or pa.types.is_duration(kind):
        ticks = values.cast(pa.int64())
        since = pc.min(ticks) if pa.types.is_timestamp(kind) and len(ticks) > ticks.null_count else pa.scalar(0)
        return pc.divide(pc.subtract(ticks, since).cast(pa.float64()), {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}[kind.unit])
    return values.cast(pa.float64()) if pa.types.is_decimal(kind) else values


def _fits(flat: Array, dtype: np.dtype[Any]) -> bool:
    """Whether numbers of another kind are all values of this type; floats round."""
    if flat.dtype.kind not in "biuf":
        return False
    with np.errstate(invalid="ignore"):
        return dtype.kind == "f" or bool((flat.astype(dtype) == flat).all())


def pictured(feature: Any) -> bool:
    """Whether frames of a feature are pictures in three colours written as numbers, [H, W, 3] or [3, H, W]."""
    sides = feature["shape"]
    return _numeric(feature["dtype"]) and len(sides) == 3 and 3 in (sides[0], sides[2]) and sorted(sides)[1] >= SIDE


# ---- writing


def write_row_groups(tables: Iterable[pa.Table], file: BinaryIO) -> None:
    """One row group an episode, each page with its checksum. Lists are measurements, which hardly repeat: looking for what a dictionary
    could hold made up half of the time that a point cloud took to write."""
    writer: pq.ParquetWriter | None = None
    for table in tables:
        plain = [entry.name for entry in table.schema if not pa.types.is_nested(entry.type)]
        writer = writer or pq.ParquetWriter(file, table.schema, compression="snappy", write_page_checksum=True, use_dictionary=plain)
        writer.write_table(table, row_group_size=max(1, len(table)))
    if writer:
        writer.close()


def merge_files(sources: Sequence[Path], file: BinaryIO) -> None:
    """The episodes of some data files in order; damage raises before anything is published."""
    def episodes() -> Iterator[pa.Table]:
        first: pa.Schema | None = None
        for path in sources:
            table = read_parquet(path)
            first = first or table.schema
            if table.schema != first:
                try:
                    table = table.select(first.names).cast(first)
                except DAMAGED as error:
                    raise RealrlError(f"{path} and {sources[0]} have different columns ({line(error)}); they cannot share a file"
                                      ) from error
            cuts = np.flatnonzero(np.diff(table["episode_index"].to_numpy(), prepend=-1, append=-1)).tolist()
            yield from (table.slice(a, b - a) for a, b in pairwise(cuts))
    write_row_groups(episodes(), file)
