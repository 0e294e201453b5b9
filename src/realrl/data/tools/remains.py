"""What is left of a damaged dataset: which episodes are whole, where their frames are, what is wrong with the rest. Reads only.

Every row group of every data file is read by itself, so damage in one place costs the episodes that lie there and no others. The
episodes table is believed where it can be read; an episode whose row is lost but whose frames are whole gets a new one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from realrl.data import clocks, schema, tables
from realrl.data.errors import DAMAGED, line
from realrl.data.schema import Info
from realrl.data.tables import Parquet, cameras, stored
from realrl.data.tools.pieces import SourceSet
from realrl.data.tools.salvage import guessed_info, refuse_old
from realrl.data.words import OUTCOMES
from realrl.types import Array, RealrlError

Part = tuple[int, int, int]  # (row group, first row, row after the last)
UNKNOWN_TASK = "unknown task"


@dataclass
class WholeEpisode:
    """An episode whose frames are whole. row: its place in the episodes table, None when that is lost; mends: columns to set right."""

    number: int
    path: Path
    parts: list[Part]
    length: int
    row: int | None = None
    mends: list[str] = field(default_factory=list)
    cells: dict[str, Any] = field(default_factory=dict)
    """Cells of its row that are new."""


class Remains(SourceSet):
    """A damaged dataset as a source of pieces: its episodes are those that can be kept, counted from 0.

    takes: these; lost: number -> why, of those that cannot; lines: what is wrong otherwise, one line each; unreadable and strays:
    files that cannot be read, and that nothing refers to; rewrite: whether tables must be renumbered (else only summaries are wrong).
    Raises RealrlError when there is nothing to work on.
    """

    def __init__(self, directory: str | Path) -> None:
        self.dir = Path(directory)
        self.takes: list[WholeEpisode] = []
        self.lost: dict[int, str] = {}
        self.lines: list[str] = []
        self.unreadable: list[Path] = []
        self.rewrite = self._tasks_lost = False
        self._group: tuple[Path, int, pa.Table] | None = None
        self._reading: tuple[Path, Parquet] | None = None
        self._cells: dict[str, list[Any]] = {}
        self.info: Info = {}
        self._files = sorted(self.dir.glob("data/**/*.parquet"))
        self._read_rows()
        self.info = self._read_info()
        self.tasks = self._read_tasks()
        self._check_stats()
        self._find_frames()
        self.settle()

    def settle(self) -> None:
        """Work out the rows of `takes`, which others may have shortened since."""
        self._check_rows()
        self.rows = self._kept_rows()
        self.length = np.array([t.length for t in self.takes], np.int64)

    def frames(self, episode: int) -> pa.Table:
        """A kept episode's frames, with the columns that were wrong set right."""
        take = self.takes[episode]
        table = self._in_order(pa.concat_tables([self._read_group(take.path, g).slice(a, b - a) for g, a, b in take.parts]))
        n, frame = take.length, np.arange(take.length)
        task = np.full(n, self.tasks.index(self.cell(take, "tasks")[0]))
        old = table["time"].to_numpy() if "time" in table.column_names else np.zeros(1)
        stamps = table["timestamp"].to_numpy() if "timestamp" in table.column_names else np.zeros(1)
        right = {"frame_index": frame, "timestamp": clocks.like(stamps, frame, self.info["fps"]), "task_index": task,
                 "time": old[0] + frame / self.info["fps"]}
        for name in take.mends:
            at = table.schema.get_field_index(name)
            if at >= 0:
                table = table.set_column(at, table.schema.field(at), pa.array(right[name]).cast(table.schema.field(at).type))
        return table

    def read_as(self, take: WholeEpisode) -> int | None:
        """Which episode a kept one is for who reads the set as it is: of others' sets those without a frame are left out."""
        if take.row is None or schema.ours(self.info):
            return take.row
        held = self._all_rows["length"].to_numpy() > 0
        return int(held[:take.row].sum()) if held[take.row] else None

    def name(self, path: Path) -> str:
        """A file as people are told of it."""
        return path.relative_to(self.dir).as_posix()

    def close(self) -> None:
        """Let go of the data file that was read last."""
        if self._reading:
            self._reading[1].close()
        self._group = self._reading = None

    # ---- the tables about episodes

    def _read_rows(self) -> None:
        """All rows that can be read, in the order of their numbers."""
        found = []
        for path in tables.episode_files(self.dir):
            try:
                found.append(tables.read_rows(path, stats=True))
            except (RealrlError, OSError) as error:
                self._is_unreadable(path, error)
        try:
            self._all_rows = tables.newest(found, self.dir)
        except RealrlError as error:  # they do not fit together: the columns that all need are enough
            self.lines.append(f"the episodes tables do not fit together, what only some of them say is left out ({what(error)})")
            common = set.intersection(*({(f.name, f.type) for f in t.schema} for t in found))
            self._all_rows = tables.newest([t.select(sorted(name for name, _ in common)) for t in found], self.dir)
        numbers = self._all_rows["episode_index"].to_numpy()
        self._shared = len(np.unique(numbers)) < len(numbers)
        if self._shared:
            numbers, self.rewrite = np.arange(len(numbers)), True
            at = self._all_rows.schema.get_field_index("episode_index")
            self._all_rows = self._all_rows.set_column(at, "episode_index", pa.array(numbers))
            self.lines.append("episodes that share a number get one each, in the order of their frames")
        self._row_of = {int(e): i for i, e in enumerate(numbers)}

    def _is_unreadable(self, path: Path, error: Exception) -> None:
        self.unreadable.append(path)
        self.lines.append(f"{self.name(path)} cannot be read ({what(error)})")
        self.rewrite = True

    def _read_info(self) -> Info:
        refuse_old(self.dir)
        try:
            info = schema.read_info(self.dir)
        except RealrlError as error:
            info = guessed_info(self.dir, self._files)
            self.lines.append(f"what meta/info.json does not say is worked out from the data files ({what(error)})")
        names = self._columns()
        gone = [name for name in stored(info["features"]) if self._files and names and name not in names]
        if gone:
            self.lines.append(f"no data file has the columns {', '.join(gone)}; info.json no longer lists them")
            self.rewrite = True
        return info | {"features": {name: f for name, f in info["features"].items() if name not in gone}}

    def _columns(self) -> set[str]:
        """Names of columns that at least one data file has."""
        names: set[str] = set()
        for path in self._files:
            with contextlib.suppress(*DAMAGED), Parquet(path) as file:
                names |= set(file.names)
        return names

    def _read_tasks(self) -> list[str]:
        try:
            found = tables.read_tasks(self.dir, int(np.abs(self._all_rows["length"].to_numpy()).sum()) or 2**40)  # no row: no limit
        except (RealrlError, OSError) as error:
            found = []
            self.lines.append(f"the tasks are taken from the episodes table ({what(error)})")
            self.rewrite = self._tasks_lost = True
        said = self._all_rows["tasks"].to_pylist() if "tasks" in self._all_rows.column_names else []
        return found + [text for text in dict.fromkeys(text for texts in said for text in texts or []) if text not in found]

    def _task(self, number: int) -> str:
        """The text of a task whose rows are lost."""
        if self._tasks_lost or not 0 <= number < len(self.tasks):
            text = f"{UNKNOWN_TASK} {number}"
            self.tasks += [] if text in self.tasks else [text]
            return text
        return self.tasks[number]

    # ---- frames

    def _check_stats(self) -> None:
        """Leave out statistics that are incomplete or of another shape than their feature; they are computed anew."""
        names = self._all_rows.column_names
        for feature, f in self.features.items():
            own = [name for name in names if name.startswith(f"stats/{feature}/") and "/" not in name.removeprefix(f"stats/{feature}/")]
            width = schema.camera_shape(f)[-1] if f["dtype"] == "video" else f["shape"][-1]
            needed = {f"stats/{feature}/{stat}" for stat in ("min", "max", "mean", "std", "count")}
            if own and not (set(own) >= needed and len({str(self._all_rows[name].is_null().to_pylist()) for name in own}) == 1 and all(
                    _lists_of(self._all_rows[name], 1 if name.endswith("/count") else int(width)) for name in own)):
                self._all_rows = self._all_rows.drop_columns(own)
                self.lines.append(f"the episodes' statistics of {feature} are damaged and computed anew")
                self.rewrite = True

    def _find_frames(self) -> None:
        """Fill in `takes` and `lost` from all data files."""
        found: dict[int, list[WholeEpisode]] = {}
        wrong: dict[int, str] = {}
        for path in self._files:
            last = -1
            for number, parts, table in self._episodes(path):
                self.rewrite |= number < last
                take, last = WholeEpisode(number, path, parts, len(table), self._row_of.get(number)), number
                if (sorted_ := self._in_order(table)) is not table:
                    self.lines.append(f"episode {number}: its frames are put in the order of frame_index")
                    self.rewrite, table = True, sorted_
                if reason := self._fault(take, table):
                    wrong.setdefault(number, f"{self.name(path)}: {reason}")
                else:
                    found.setdefault(number, []).append(take)
        for number in sorted({*self._row_of, *found, *wrong}):
            row = self._row_of.get(number)
            told = None if row is None else self._told_file(row)
            candidates = sorted(found.get(number, []), key=lambda t: t.path != told)
            if not candidates:
                gone, empty = told is not None and not told.exists(), row is not None and self._all_rows["length"][row].as_py() == 0
                why = "it has no frames" if empty else f"{self.name(told)} is missing" if told and gone else "its frames are damaged"
                self.lost[number] = wrong.get(number, why)
                continue
            self.takes.append(candidates[0])
            self.rewrite |= candidates[0].path != told
            if row is None:
                self.lines.append(f"episode {number}: its row is lost, it gets a new one")

    def _in_order(self, table: pa.Table) -> pa.Table:
        """An episode's frames in the order in which they were recorded."""
        index = table["frame_index"].to_numpy() if "frame_index" in table.column_names else np.zeros(0)
        at = clocks.order(index)
        return table if at is None else table.take(pa.array(at))

    def _told_file(self, row: int) -> Path | None:
        try:
            key = tuple(int(self._all_rows[f"data/{name}_index"][row].as_py()) for name in ("chunk", "file"))
            return schema.data_file(self.dir, self.info, (key[0], key[1]))
        except RealrlError:
            return None

    def _episodes(self, path: Path) -> Iterator[tuple[int, list[Part], pa.Table]]:
        """(number, where, frames) of every run of one episode's frames in a data file; damaged row groups end a run."""
        number, parts, pieces = -1, list[Part](), list[pa.Table]()
        try:
            opened = Parquet(path)
        except DAMAGED as error:
            self._is_unreadable(path, error)
            return
        with opened as file:
            told = self._told_numbers(path, file)
            for g in range(len(file.ends)):
                try:
                    table = file.read([g])
                    index = table["episode_index"].to_numpy() if told is None else told[int(file.ends[g]) - len(table):int(file.ends[g])]
                except DAMAGED as error:
                    self.lines.append(f"{self.name(path)}: row group {g} is damaged ({what(error)})")
                    self.rewrite = True
                    index = np.zeros(0, np.int64)
                cuts = [0, *(np.flatnonzero(np.diff(index)) + 1).tolist(), len(index)] if len(index) else []
                for a, b in pairwise(cuts) if cuts else [(0, 0)]:
                    here = int(index[a]) if b else -1
                    if pieces and here != number:
                        yield number, parts, pa.concat_tables(pieces)
                    if here != number:
                        number, parts, pieces = here, [], []
                    if b:
                        parts.append((g, a, b))
                        pieces.append(table.slice(a, b - a))
            if pieces:
                yield number, parts, pa.concat_tables(pieces)

    def _told_numbers(self, path: Path, file: Parquet) -> Array | None:
        """Which episode each row [N] of a data file is of, by the episodes table, where several share a number, there or in the file."""
        mine = [i for i in self._row_of.values() if self._told_file(i) == path]
        number, start, length = (self._all_rows[name].to_numpy()[mine] for name in ("episode_index", "dataset_from_index", "length"))
        if len(mine) < 2 - self._shared or length.sum() != file.rows or "episode_index" not in file.names:
            return None
        try:
            if not self._shared and len(pc.unique(file.read(names=["episode_index"])["episode_index"])) != 1:
                return None
        except DAMAGED:
            return None
        if not self._shared:
            self.lines.append(f"{self.name(path)} gives all of its episodes one number, those of the episodes table count")
        self.rewrite, order = True, np.argsort(start, kind="stable")
        return np.repeat(number[order], length[order])

    def _read_group(self, path: Path, group: int) -> pa.Table:
        if self._reading is None or self._reading[0] != path:
            self.close()
            self._reading = (path, Parquet(path))
        if self._group is None or self._group[:2] != (path, group):
            self._group = (path, group, self._reading[1].read([group]))
        return self._group[2]

    def _fault(self, take: WholeEpisode, table: pa.Table) -> str:
        """Why an episode's frames cannot be kept, "" if they can; notes in the take what must be set right."""
        try:
            columns = {name: tables.to_numpy(table[name], name, f) for name, f in stored(self.info["features"]).items()}
        except KeyError as error:
            return f"it has no column {error}"
        except DAMAGED as error:
            return f"it does not fit info.json ({line(error)})"
        n, frame = len(table), np.arange(len(table))
        if take.row is not None and n != (told := int(self.cell(take, "length"))):
            return f"{n} of its {told} frames are left"
        for name, x in columns.items():
            if x.dtype.kind == "f" and not (ok := np.isfinite(x).reshape(n, -1).all(1)).all() and not (
                    schema.says_nothing(name, x) and not schema.ours(self.info)):
                return f"{name} is NaN or infinite at frame {int(np.argmin(ok))}"
        given = columns.get("frame_index", frame).reshape(n)
        if take.row is None and (given != frame).any():
            return "its row is lost and its frames are not all there"
        time = columns.get("timestamp", frame / self.info["fps"]).reshape(n)
        off = np.abs(time - frame / self.info["fps"]) > 1e-4 + 1e-6 * frame / self.info["fps"]
        if not schema.ours(self.info):  # a clock of its own, by which its pictures may lie
            off = ~np.isfinite(time) | (np.diff(time, prepend=-np.inf) <= 0)
        task = columns.get("task_index", np.zeros(n, np.int64)).reshape(n)
        wrong = {"frame_index": (given != frame).any(), "timestamp": off.any(),
                 "task_index": not self._tasks_lost and bool(((task < 0) | (task >= len(self.tasks))).any()),
                 "time": bool((np.diff(columns.get("time", frame).reshape(n)) <= 0).any())}
        take.mends = [name for name, bad in wrong.items() if bad]
        for name in take.mends:
            self.lines.append(f"episode {take.number}: {name} is set right from the rate and the tables")
        if self._tasks_lost and "task_index" in columns:
            take.mends.append("task_index")
        if take.row is None:
            take.cells |= _ending(columns, self._judged())
        if not self.cell(take, "tasks"):
            take.cells["tasks"] = [self._task(int(task[0]))]
        index = columns.get("index", np.zeros(0)).reshape(-1)
        if take.row is not None and len(index) and index[0] != self.cell(take, "dataset_from_index"):
            self.rewrite = True
        self.rewrite |= bool(take.mends)
        return ""

    # ---- what else there is

    def leave_out(self, camera: str) -> None:
        """Make this a dataset that never had a camera, because nothing of it is left."""
        self.info = self.info | {"features": {name: f for name, f in self.features.items() if name != camera}}
        prefixes = (f"videos/{camera}/", f"stats/{camera}/")
        self._all_rows = self._all_rows.select([name for name in self._all_rows.column_names if not name.startswith(prefixes)])
        for take in self.takes:
            take.cells = {name: cell for name, cell in take.cells.items() if not name.startswith(prefixes)}
        self.lines.append(f"no episode has pictures of {camera}; the dataset no longer lists that camera")
        self.rewrite = True

    def cell(self, take: WholeEpisode, name: str) -> Any:
        """A cell of an episode's row, None where it is unknown."""
        if name in take.cells:
            return take.cells[name]
        if take.row is None or name not in self._all_rows.column_names:
            return None
        if name not in self._cells:
            self._cells[name] = self._all_rows[name].to_pylist()
        return self._cells[name][take.row]

    def film(self, take: WholeEpisode, camera: str) -> Path | None:
        """The file that an episode's pictures of a camera are in."""
        key = [self.cell(take, f"videos/{camera}/{name}_index") for name in ("chunk", "file")]
        return None if None in key else schema.video_file(self.dir, self.info, camera, (int(key[0]), int(key[1])))

    def films(self, camera: str) -> set[Path | None]:
        """The files of a camera that rows know, those of lost episodes included."""
        return {self.film(WholeEpisode(-1, self.dir, [], 0, row), camera) for row in self._row_of.values()}

    def strays(self) -> list[Path]:
        """Files in the dataset's folders that nothing refers to."""
        used = {t.path for t in self.takes} | {self.film(t, c) for t in self.takes for c in cameras(self.info["features"])}
        files = [p for folder in ("data", "videos") for p in (self.dir / folder).rglob("*") if p.is_file() and p not in used]
        return sorted({*files, *schema.unfinished(self.dir), *self.unreadable})

    # ---- rows

    def _check_rows(self) -> None:
        """Whether the tables must be renumbered."""
        self.takes.sort(key=lambda t: t.number)
        starts = np.cumsum([0, *(t.length for t in self.takes)])[:-1]
        self.rewrite |= bool(self.lost) or any(
            take.row is None or take.number != i or (self.cell(take, "dataset_from_index"), self.cell(take, "dataset_to_index"))
            != (int(starts[i]), int(starts[i]) + take.length) for i, take in enumerate(self.takes))

    def _judged(self) -> bool:
        """Whether episodes of this dataset are judged: not where every row that is left has an empty cell for it."""
        told = [self._all_rows[name] for name in OUTCOMES if name in self._all_rows.column_names]
        return not told or not len(self._all_rows) or any(cells.null_count < len(cells) for cells in told)

    def _kept_rows(self) -> pa.Table:
        """The episodes table of what is kept, renumbered by whoever assembles it."""
        rows = self._all_rows.take(pa.array([t.row for t in self.takes], pa.int64()))
        kinds = {f.name: f.type for f in schema.row_schema(self.info["features"])}
        for name in sorted({name for t in self.takes for name in t.cells}):
            at = rows.schema.get_field_index(name)
            old = rows[name].to_pylist() if at >= 0 else [None] * len(self.takes)
            column = pa.array([t.cells.get(name, cell) for t, cell in zip(self.takes, old, strict=True)],
                              rows.schema.field(at).type if at >= 0 else kinds[name])
            rows = rows.set_column(at, name, column) if at >= 0 else rows.append_column(name, column)
        return rows


def what(error: Exception) -> str:
    """An error's text without its advice, which a repair follows."""
    text = line(error)
    return text.rpartition("; ")[0] or text


def _ending(columns: dict[str, Array], judged: bool) -> dict[str, Any]:
    """How an episode without a row ended, from its last frame. judged: whether no success in any frame is a failure."""
    done, cut = (None if (x := schema.aliased(columns, name)) is None else bool(x.reshape(-1)[-1])
                 for name in ("next.done", "next.truncated"))
    flags = schema.won(columns, len(next(iter(columns.values()))))
    success = None if flags is None else bool(flags[-1])
    known = done is not None and cut is not None
    success = success or (success if judged else None)
    return {"success": success, "terminated": done and not cut if known else None, "truncated": cut if known else None}


def _lists_of(column: pa.ChunkedArray, width: int) -> bool:
    """Whether every cell is empty or a list of so many numbers (or lists of them)."""
    if not pa.types.is_list(column.type):
        return False
    inner = column.type
    while pa.types.is_list(inner):
        inner = inner.value_type
    lengths = set(pc.unique(pc.list_value_length(column)).to_pylist())
    return (pa.types.is_floating(inner) or pa.types.is_integer(inner)) and lengths <= {width, None}
