"""Datasets made of pieces of others: the machinery under `edit` and `repair`.

A piece is a run of frames of one recorded episode. `assemble` writes a whole dataset from pieces in a folder of its own: tables are
renumbered; video files are linked (or copied, where the file system cannot link), or their packets copied, and never encoded again.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from realrl.data import clocks, depth, footage, tables
from realrl.data.compaction import file_keys
from realrl.data.errors import DAMAGED, line, typed
from realrl.data.footage import Place
from realrl.data.reading import left_out, seen
from realrl.data.schema import (
    ALIASES,
    DATA_PATH,
    EPISODES_PATH,
    VIDEO_PATH,
    Info,
    data_file,
    ours,
    outcome,
    read_info,
    row_schema,
    video_file,
    won,
)
from realrl.data.stats import column_stats, stored_stats
from realrl.data.tables import VIDEO_FIELDS, FileKey, cameras, stored
from realrl.data.tools import cuts
from realrl.data.words import OUTCOMES
from realrl.types import Array, RealrlError


@dataclass(frozen=True)
class Piece:
    """Frames start..stop of episode number `episode` of source number `source`. solved: cut behind a success that ends the task."""

    source: int
    episode: int
    start: int
    stop: int
    solved: bool = False


READ_AHEAD = 2**22  # bytes of row groups that are read at once
Each = Callable[[Sequence[Piece]], Iterable[Piece]]  # the pieces again, with a progress bar


class SourceSet:
    """A dataset to take pieces from: its description, its rows with their statistics, and its frames.

    notes: what of it is left out. Raises RealrlError when it is no dataset, or when its episodes are not numbered 0..N-1.
    """

    def __init__(self, directory: str | Path) -> None:
        self.dir = Path(directory)
        self.info = seen(self.dir, read_info(self.dir))  # what the whole set shows counts for a part of it, too
        rows = tables.episodes(self.dir, stats=True)
        self.rows = rows if ours(self.info) else tables.filled(rows)
        self._number, self.length, self.begin, self._chunk, self._file = (
            self.rows[c].to_numpy() for c in
            ("episode_index", "length", "dataset_from_index", "data/chunk_index", "data/file_index"))
        every = rows["episode_index"].to_numpy()
        if (every != np.arange(len(every))).any():
            raise RealrlError(f"{self.dir}: episodes are not numbered 0..{len(every) - 1}; run `realrl data repair {typed(self.dir)}`")
        if (self.length < 1).any():
            raise RealrlError(f"{self.dir}: episode {np.argmin(self.length)} has no frames; run `realrl data repair {typed(self.dir)}`")
        empty = left_out(sorted({*every.tolist()} - {*self._number.tolist()}))
        self.notes = [f"{note}; the others are counted from 0" for note in empty]
        self.tasks = tables.read_tasks(self.dir, int(self.length.sum()))
        self._open: tuple[FileKey, tables.Parquet, int] | None = None
        self._last: tuple[FileKey, int, int, pa.Table] | None = None

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    @property
    def features(self) -> Info:
        """info.json's features."""
        features: Info = self.info["features"]
        return features

    def whole(self, number: int = 0, episodes: Iterable[int] | None = None) -> list[Piece]:
        """All frames of some episodes (all by default), with this as source `number`."""
        return [Piece(number, e, 0, int(self.length[e])) for e in (range(len(self)) if episodes is None else episodes)]

    def frames(self, episode: int) -> pa.Table:
        """An episode's rows of the data file, in the order in which they were recorded. Raises RealrlError when they are not there."""
        key = (int(self._chunk[episode]), int(self._file[episode]))
        path = data_file(self.dir, self.info, key)
        mend = f"run `realrl data repair {typed(self.dir)}`"
        try:
            begin, table = self._groups(path, key, episode)
        except FileNotFoundError as error:
            raise RealrlError(f"{path} is missing; {mend}") from error
        except DAMAGED as error:
            raise RealrlError(f"{path} is truncated or damaged ({line(error)}); {mend}") from error
        rows = table.slice(int(self.begin[episode]) - begin, int(self.length[episode]))
        if len(rows) != self.length[episode] or (rows["episode_index"].to_numpy() != self._number[episode]).any():
            raise RealrlError(f"{path} does not hold episode {episode} where meta/episodes says; {mend}")
        at = clocks.order(rows["frame_index"].to_numpy()) if "frame_index" in rows.column_names else None
        return rows if at is None else rows.take(pa.array(at))

    def _groups(self, path: Path, key: FileKey, episode: int) -> tuple[int, pa.Table]:
        """(dataset-wide number of its first frame, the row groups an episode lies in); the last answer is kept."""
        start = int(self.begin[episode])
        stop = start + int(self.length[episode])
        if self._last and self._last[0] == key and self._last[1] <= start and stop <= self._last[2]:
            return self._last[1], self._last[3]
        if self._open is None or self._open[0] != key:
            self.close()
            self._open = (key, tables.Parquet(path), int(self.begin[(self._chunk == key[0]) & (self._file == key[1])].min()))
        _, file, base = self._open
        groups = file.groups(start - base, stop - base)
        first, last, ahead = groups.start, groups.stop, 0
        while last < len(file.bytes) and (ahead := ahead + file.bytes[last]) < READ_AHEAD:  # the next episodes will be asked for next
            last += 1
        table = file.read(range(first, last))
        begin = base + (int(file.ends[first - 1]) if first else 0)
        self._last = (key, begin, begin + len(table), table)
        return begin, table

    def close(self) -> None:
        """Let go of the data file that was read last."""
        if self._open:
            self._open[1].close()
        self._open = self._last = None


def assemble(sources: Sequence[SourceSet], pieces: Sequence[Piece], out: Path, each: Each = iter) -> list[str]:
    """Write the dataset made of `pieces` into the empty folder `out`; gives a line for what a user should know of it.

    The sources must agree in features, rate and robot. Raises RealrlError when a source is damaged, and OSError when `out` cannot
    be written.
    """
    return _Assembly(sources, pieces, out).write(each)


class _Assembly:
    """One new dataset under way. changes: column of the episodes table -> row -> what it becomes."""

    def __init__(self, sources: Sequence[SourceSet], pieces: Sequence[Piece], out: Path) -> None:
        self.sources, self.pieces, self.out = sources, pieces, out
        self.info = copy.deepcopy(sources[0].info) | {"codebase_version": "v3.0", "data_path": DATA_PATH}
        self.features: Info = self.info["features"]
        self.rows = _taken_rows(sources, pieces)
        self.changes: dict[str, dict[int, Any]] = {}
        self._counted: dict[str, Array] = {}  # feature -> which rows have statistics of it
        used = {text for texts in self.rows["tasks"].to_pylist() for text in texts or []}
        every = list(dict.fromkeys(t for s in sources for t in s.tasks))
        self.tasks = [t for t in every if t in used] or every[:1]
        # a text that no row names may still be some frame's task
        self.task_of = [np.array([self.tasks.index(t) if t in self.tasks else 0 for t in s.tasks] or [0]) for s in sources]

    def write(self, each: Each) -> list[str]:
        """The whole folder, summaries last."""
        self._write_data(each)
        notes = [note for camera in cameras(self.features) for note in self._place_camera(camera)]
        lengths = [p.stop - p.start for p in self.pieces]
        for name, values in {"episode_index": range(len(lengths)), "length": lengths, "meta/episodes/chunk_index": [0] * len(lengths),
                             "meta/episodes/file_index": [0] * len(lengths)}.items():
            self.changes[name] = dict(enumerate(values))
        self.info |= {"total_episodes": len(lengths), "total_frames": sum(lengths), "total_tasks": len(self.tasks),
                      "splits": {"train": f"0:{len(lengths)}"}, "video_path": VIDEO_PATH if cameras(self.features) else None}
        _write_file(self.out / "meta/tasks.parquet", partial(pq.write_table, tables.tasks_table(self.tasks)))
        rows = partial(pq.write_table, _changed(self.rows, self.changes, row_schema(self.features)), write_page_checksum=True)
        _write_file(self.out / EPISODES_PATH.format(chunk_index=0, file_index=0), rows)
        try:
            stats = stored_stats(self.out, self.features, sum(lengths)) if lengths else {}
        except (KeyError, ValueError, TypeError) as error:
            raise RealrlError(f"{self.sources[0].dir}/meta/episodes: its statistics do not fit together ({line(error)}); "
                              f"run `realrl data repair {typed(self.sources[0].dir)}`") from error
        summary = {name: {k: v.tolist() for k, v in s.items()} for name, s in stats.items()}
        for name, value in {"stats": summary, "info": self.info}.items():
            _write_file(self.out / f"meta/{name}.json", partial(shutil.copyfileobj, io.BytesIO(json.dumps(value, indent=1).encode())))
        return notes

    def _change(self, row: int, cells: dict[str, Any]) -> None:
        for name, value in cells.items():
            self.changes.setdefault(name, {})[row] = value

    # ---- frames

    def _write_data(self, each: Each) -> None:
        """The data files, one row group a piece; a new file when one has reached the size limit."""
        limit, per_chunk = int(self.info["data_files_size_in_mb"]) * 2**20, int(self.info["chunks_size"])
        number, begin, schema, file = 0, 0, None, _DataFile()
        try:
            for i, piece in enumerate(each(self.pieces)):
                if file.size >= limit:
                    file.close()
                    number += 1
                try:
                    table = self._renumbered(i, piece, begin)
                    schema = schema or table.schema
                    if table.schema != schema:  # not in place: a slice of structs with a child of nulls does not survive a cast
                        table = table.take(pa.array(range(len(table)))).cast(schema)
                except (pa.ArrowException, ValueError, TypeError, LookupError) as error:
                    raise RealrlError(f"{self.sources[piece.source].dir}: episode {piece.episode} does not fit info.json ({line(error)}); "
                                      f"run `realrl data repair {typed(self.sources[piece.source].dir)}`") from error
                key = {"chunk_index": number // per_chunk, "file_index": number % per_chunk}
                file.write(self.out / DATA_PATH.format(**key), table)
                self._change(i, {"data/chunk_index": key["chunk_index"], "data/file_index": key["file_index"],
                                 "dataset_from_index": begin, "dataset_to_index": begin + len(table)})
                begin += len(table)
        finally:
            file.close()
            for source in self.sources:
                source.close()

    def _renumbered(self, row: int, piece: Piece, begin: int) -> pa.Table:
        """A piece's frames under their new numbers."""
        source, n = self.sources[piece.source], piece.stop - piece.start
        whole = source.frames(piece.episode)
        table = whole.slice(piece.start, n).select([name for name in self.features if name in whole.column_names])
        frame = np.arange(n, dtype=np.int64)
        new: dict[str, Array] = {"episode_index": np.full(n, row), "index": begin + frame}
        if "task_index" in table.column_names:
            old, known = table["task_index"].to_numpy(), self.task_of[piece.source]
            if not ((old >= 0) & (old < len(known))).all():
                raise RealrlError(f"{source.dir}: episode {piece.episode} has a task_index that meta/tasks.parquet does not list; "
                                  f"run `realrl data repair {typed(source.dir)}`")
            new["task_index"] = known[old]
        if trimmed := n < len(whole):
            new |= {"frame_index": frame, **self._cut(row, piece, whole)}
            if "timestamp" in whole.column_names:
                new["timestamp"] = clocks.like(whole["timestamp"].to_numpy(), frame, self.info["fps"])
        for name, values in new.items():
            if name in table.column_names:
                at = table.schema.get_field_index(name)
                table = table.set_column(at, table.schema.field(at), pa.array(values).cast(table.schema.field(at).type))
        counted = {name: f for name, f in stored(self.features).items()
                   if name in table.column_names and (trimmed or name in new or self._lacks_stats(row, name))}
        if not trimmed and len(self.sources) > 1:
            self._note_success(row, piece, whole)
        arrays = {name: tables.to_numpy(table[name], name, f) for name, f in counted.items()}
        for name, stats in column_stats(arrays).items():
            self._change(row, {f"stats/{name}/{stat}": value.tolist() for stat, value in stats.items()})
        return table

    def _cut(self, row: int, piece: Piece, whole: pa.Table) -> dict[str, Array]:
        """Columns that a trim changes beside the numbers; notes what it changes in the episode's row."""
        flags = {name: np.array(whole[name].slice(piece.start, piece.stop - piece.start).to_numpy(zero_copy_only=False))
                 for name in ("starts_plan", "next.done", "next.truncated") if name in whole.column_names}
        if piece.start:  # the seed no longer leads to where it begins, and a plan begins there
            self._change(row, {"seed": None})
            if "starts_plan" in flags:
                flags["starts_plan"][0] = True
        if piece.stop == len(whole):
            return flags
        for name, value in (("next.done", True), ("next.truncated", not piece.solved)):
            if name in flags:
                flags[name][-1] = value
        self._change(row, {"terminated": piece.solved, "truncated": not piece.solved})
        self._note_success(row, piece, whole)
        for name, f in stored(self.features).items():
            if name.startswith("observation.") and name in whole.column_names:  # the frame after the cut is the last one seen
                after = tables.to_numpy(whole[name].slice(piece.stop, 1), name, f)
                self._change(row, {f"last/{name}": after.reshape(-1).tolist()})
        return flags

    def _note_success(self, row: int, piece: Piece, whole: pa.Table) -> None:
        """Write into the episode's row what its frames say of success, where the row does not say it (or not of what was cut): beside
        the rows of others an empty cell would say that it is unknown, as it does where the source has such cells."""
        source = self.sources[piece.source].rows
        cells = {name: source[name][piece.episode].as_py() for name in OUTCOMES if name in source.column_names}
        told = next((name for name in ALIASES["next.success"] if name in self.features and name in whole.column_names), None)
        flags = None if told is None else won({told: tables.to_numpy(whole[told], told, self.features[told])}, len(whole))
        if flags is not None:
            cut = piece.stop < len(whole) and (flags.any() or outcome(cells) is False)
            if cut or not cells:
                self._change(row, {"success": bool(flags[piece.stop - 1])})

    def _lacks_stats(self, row: int, feature: str) -> bool:
        name = f"stats/{feature}/count"
        if feature not in self._counted:
            known = name in self.rows.column_names
            self._counted[feature] = self.rows[name].is_valid().to_numpy() if known else np.zeros(len(self.rows), bool)
        return not self._counted[feature][row]

    # ---- videos

    def _place_camera(self, camera: str) -> list[str]:
        """The video files of a camera, and where each piece lies in them; gives a line for each file that holds more than its pieces.

        A file all of whose episodes are kept is linked. Of others the pieces are copied out, so that tools which count pictures
        find what they expect, and what was deleted is gone; where that needs encoding the file is linked as it is.
        """
        columns = [f"videos/{camera}/{name}" for name in VIDEO_FIELDS]
        if missing := [c for c in columns[:4] if c not in self.rows.column_names]:
            raise RealrlError(f"{self.sources[0].dir}/meta/episodes has no column {missing[0]}; "
                              f"run 'realrl data repair {typed(self.sources[0].dir)}'")
        cells = self.rows.select([c for c in columns if c in self.rows.column_names]).to_pylist()
        by_file: dict[tuple[int, FileKey], list[int]] = {}
        for i, piece in enumerate(self.pieces):
            if None in [cells[i][c] for c in columns[:4]]:
                raise RealrlError(f"{self.sources[piece.source].dir}: episode {piece.episode} does not say where its video of {camera} "
                                  f"lies; run `realrl data repair {typed(self.sources[piece.source].dir)}`")
            by_file.setdefault((piece.source, (cells[i][columns[0]], cells[i][columns[1]])), []).append(i)
        owners: list[dict[FileKey, list[int]]] = [{} for _ in self.sources]
        for source, owner in zip(self.sources, owners, strict=True):
            for e, known in enumerate(file_keys(source.rows, f"videos/{camera}")):
                owner.setdefault(known, []).append(e)
        per_chunk, notes = int(self.info["chunks_size"]), []
        for number, ((owned, old_key), members) in enumerate(by_file.items()):
            source, key = self.sources[owned], (number // per_chunk, number % per_chunk)
            path, target = (video_file(root, info, camera, k) for root, info, k in (
                (source.dir, source.info, old_key), (self.out, {"video_path": VIDEO_PATH}, key)))
            if not path.is_file():
                raise RealrlError(f"{path} is missing; run `realrl data repair {typed(source.dir)}`")
            old = [Place.of(cells[i], camera) for i in members]
            whole = [self.pieces[i].episode for i in members] == owners[owned][old_key] and all(
                self.pieces[i].stop - self.pieces[i].start == self._length(i) for i in members)
            places = None if whole else cuts.cut(path, target, self._spans(members, old))
            if places is None:
                _link(path, target)
                places = self._moved(members, old)
                if not whole:
                    notes.append(f"{path} cannot be cut without encoding it again, so it is shared whole; tools that count pictures "
                                 "instead of reading timestamps will misread it")
            for i, place in zip(members, places, strict=True):
                self._change(i, dict(zip(columns, (*key, place.start, place.stop, place.last), strict=True)))
                n = self.pieces[i].stop - self.pieces[i].start
                if n < self._length(i) or self._lacks_stats(i, camera):
                    seen = footage.stats(target, place, n, float(self.info["fps"]), depth.coding(camera, self.features[camera]))
                    self._change(i, {f"stats/{camera}/{stat}": value.tolist() for stat, value in seen.items()})
        return notes

    def _length(self, row: int) -> int:
        """How many frames the episode of a piece has in its source."""
        piece = self.pieces[row]
        return int(self.sources[piece.source].length[piece.episode])

    def _spans(self, members: Sequence[int], old: Sequence[Place]) -> list[cuts.Span]:
        """Pieces as pictures of their file."""
        fps, spans = float(self.info["fps"]), []
        for i, place in zip(members, old, strict=True):
            piece, first = self.pieces[i], round(place.start * fps)
            goes_on = piece.stop < self._length(i) or round((place.stop - place.start) * fps) > self._length(i)
            last = first + piece.stop if goes_on else None if place.last is None else round(place.last * fps)
            spans.append((first + piece.start, piece.stop - piece.start, last))
        return spans

    def _moved(self, members: Sequence[int], old: Sequence[Place]) -> list[Place]:
        """Where pieces lie in the file as it is."""
        fps, places = float(self.info["fps"]), []
        for i, place in zip(members, old, strict=True):
            piece, start = self.pieces[i], place.start + self.pieces[i].start / fps
            stop = start + (piece.stop - piece.start) / fps  # the picture after a cut is the last one seen
            places.append(Place(start, stop, stop) if piece.stop < self._length(i) else Place(start, place.stop, place.last))
        return places


class _DataFile:
    """The data file that is being written, if any."""

    def __init__(self) -> None:
        self._file: BinaryIO | None = None
        self._writer: pq.ParquetWriter | None = None

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._file.tell() if self._file else 0

    def write(self, path: Path, table: pa.Table) -> None:
        """Add a row group, to the file that is open or else to a new one at `path`."""
        if self._file is None or self._writer is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("xb")
            self._writer = pq.ParquetWriter(self._file, table.schema, compression="snappy", write_page_checksum=True)
        self._writer.write_table(table, row_group_size=max(1, len(table)))

    def close(self) -> None:
        """Finish the file and see it onto the disk."""
        file, writer, self._file, self._writer = self._file, self._writer, None, None
        if file and writer:
            with file:
                writer.close()
                file.flush()
                os.fsync(file.fileno())


def _taken_rows(sources: Sequence[SourceSet], pieces: Sequence[Piece]) -> pa.Table:
    """The sources' rows of the pieces, in their order, as they are."""
    offset = np.cumsum([0, *map(len, sources)])
    wanted = pa.array([int(offset[p.source]) + p.episode for p in pieces], pa.int64())
    try:
        table = pa.concat_tables([s.rows for s in sources], promote_options="permissive")
    except pa.ArrowException:  # statistics, once as a list and once as nested lists, say: let the values decide
        names = list(dict.fromkeys(name for s in sources for name in s.rows.column_names))
        cells = {name: [v for s in sources for v in (s.rows[name].to_pylist() if name in s.rows.column_names else [None] * len(s))]
                 for name in names}
        try:
            table = pa.table(cells)
        except pa.ArrowException as error:
            raise RealrlError(f"the episodes tables of {' and '.join(str(s.dir) for s in sources)} do not fit together ({line(error)}); "
                              "repair them first") from error
    return table.take(wanted).combine_chunks()


def _changed(rows: pa.Table, changes: dict[str, dict[int, Any]], kinds: pa.Schema) -> pa.Table:
    """The rows with some cells replaced; columns that did not exist begin empty. kinds: types of new columns."""
    for name, cells in changes.items():
        at = rows.schema.get_field_index(name)
        values = rows[name].to_pylist() if at >= 0 else [None] * len(rows)
        for row, value in cells.items():
            values[row] = value
        if at >= 0:
            rows = rows.set_column(at, rows.schema.field(at), pa.array(values, rows.schema.field(at).type))
        elif cells:
            rows = rows.append_column(name, pa.array(values, kinds.field(name).type if name in kinds.names else None))
    return rows


def _link(source: Path, target: Path) -> None:
    """A hard link, or a copy where there are none: nobody ever writes into a finished video file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        os.link(source.resolve(), target)
        return
    with source.open("rb") as read:
        _write_file(target, partial(shutil.copyfileobj, read, length=2**20))


def _write_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:  # never into a file that is there: it may be a link to a recording
        write(file)
        file.flush()
        os.fsync(file.fileno())
