"""Episodes on disk in LeRobot's dataset layout, version 3.0, for low-dimensional features.

Every append publishes one data file and one episodes file. The episodes file is the commit: a data file that no episodes row
names does not exist for a reader, so whatever dies when, an episode is wholly there or not there. `info.json` and `stats.json`
are summaries that anyone can rebuild from the episodes files, and that are rebuilt when they fell behind.

LeRobot has no frame for the observation after the last action; it travels in the episodes row as `last/observation.<key>`
(flattened), together with `terminated`, `truncated`, `success`, `policy` and `seed`.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from realrl.data import check as disk
from realrl.data.check import JOURNAL, STATS, FileKey, Info, Stats
from realrl.types import Array, Episode, RealrlError, Source

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"


class Store:
    """A folder of episodes. Make one by `create`, `open` or `open_or_create`.

    Any number of processes may read; writers take turns through an advisory lock that is held for one call, and see each
    other's episodes. `lock_wait` is how many seconds a writer waits for its turn.
    """

    lock_wait: float = 10.0

    def __init__(self, directory: str | Path) -> None:
        self.dir = Path(directory)
        self._info = disk.read_info(self.dir)
        self._tables: dict[Path, pa.Table] = {}
        self._tasks: list[str] = []
        self._stats: Stats | None = None
        self._swept = False
        self._reload()
        if (self.dir / JOURNAL).exists() or self.info != self._info:
            with contextlib.suppress(RealrlError), self._locked(wait=0.0):  # a live writer, or a read-only disk, is no error
                self._write_info()

    @classmethod
    def create(cls, directory: str | Path, *, task: str, fps: int, robot_type: str = "unknown") -> Store:
        """A new, empty dataset. task: the text of task 0; fps: control steps a second. Raises RealrlError if one is there."""
        root = Path(directory)
        if fps <= 0 or int(fps) != fps:
            raise RealrlError(f"{root}: fps is {fps}, must be a whole number above 0")
        if (root / "meta/info.json").exists():
            raise RealrlError(f"{root} already holds a dataset; open it or choose another folder")
        if root.exists() and (not root.is_dir() or {p.name for p in root.iterdir()} - {"meta", ".lock"}):
            raise RealrlError(f"{root} is not empty and not a dataset; choose a new folder")
        _publish(root / "meta/tasks.parquet", partial(pq.write_table, disk.tasks_table([task])))
        info = {
            "codebase_version": "v3.0", "robot_type": robot_type, "total_episodes": 0, "total_frames": 0, "total_tasks": 1,
            "chunks_size": 1000, "data_files_size_in_mb": 100, "video_files_size_in_mb": 200, "fps": int(fps),
            "splits": {"train": "0:0"}, "data_path": DATA_PATH, "video_path": None, "features": {}}
        _publish_json(root / "meta/info.json", info)
        return cls(root)

    @classmethod
    def open(cls, directory: str | Path) -> Store:
        """An existing dataset. Raises RealrlError when the folder holds none or its tables cannot be read."""
        return cls(directory)

    @classmethod
    def open_or_create(cls, directory: str | Path, *, task: str, fps: int, robot_type: str = "unknown") -> Store:
        """Continue a dataset or begin it. Raises RealrlError when the existing one runs at another fps."""
        if not (Path(directory) / "meta/info.json").exists():
            return cls.create(directory, task=task, fps=fps, robot_type=robot_type)
        store = cls(directory)
        if store.fps != fps:
            raise RealrlError(f"{directory} was recorded at {store.fps} fps, not {fps}; use its rate or another folder")
        return store

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    @property
    def frames(self) -> int:
        """Control steps in all episodes together."""
        return int(self._to[-1]) if len(self) else 0

    @property
    def fps(self) -> int:
        """Control steps a second."""
        return int(self._info["fps"])

    @property
    def tasks(self) -> list[str]:
        """Task texts; the position is the task_index."""
        return list(self._tasks)

    @property
    def info(self) -> Info:
        """A copy of info.json, with counts that are true."""
        return copy.deepcopy(self._info) | self._true_totals()

    # ---- reading

    def read(self, indices: Sequence[int] | None = None) -> list[Episode]:
        """Episodes by index (all by default), in that order, equal to what was appended except for `extra`."""
        picked = list(range(len(self))) if indices is None else [int(i) for i in indices]
        if wrong := [i for i in picked if not 0 <= i < len(self)]:
            raise RealrlError(f"{self.dir} holds {len(self)} episodes, there is no number {wrong[0]}; count from 0")
        try:
            return self._read(picked)
        except FileNotFoundError as error:  # another process may have compacted since this one looked
            if set(disk.episode_files(self.dir)) == set(self._tables):
                raise RealrlError(f"{error.filename or error}: a data file is missing; run `realrl data check {self.dir}`") from error
            self._reload()
            return self._read(picked)

    def _read(self, picked: list[int]) -> list[Episode]:
        rows = dict(zip(picked, self.rows.take(pa.array(picked, pa.int64())).to_pylist(), strict=True)) if picked else {}
        by_file: dict[FileKey, list[int]] = {}
        for i in picked:
            by_file.setdefault((int(self._chunk[i]), int(self._file[i])), []).append(i)
        episodes: dict[int, Episode] = {}
        for key, members in by_file.items():
            base = int(self._from[(self._chunk == key[0]) & (self._file == key[1])].min())
            start, stop = int(self._from[members].min()) - base, int(self._to[members].max()) - base
            columns = disk.read_frames(self.data_file(key), self._info["features"], start, stop)
            for i in members:
                span = slice(int(self._from[i]) - base - start, int(self._to[i]) - base - start)
                if not (columns["episode_index"][span] == i).all():
                    raise RealrlError(f"{self.data_file(key)} does not hold episode {i} where meta/episodes says; "
                                      f"run `realrl data check {self.dir}`")
                episodes[i] = disk.episode({k: v[span].copy() for k, v in columns.items()}, rows[i])
        return [episodes[i] for i in picked]

    def data_file(self, key: FileKey) -> Path:
        """Where the data file (chunk_index, file_index) lies."""
        return disk.data_file(self.dir, self._info, key)

    # ---- writing

    def append(self, episodes: Sequence[Episode]) -> range:
        """Add episodes; once this returns they survive a crash. Gives their indices.

        All of them are checked before anything is written. Raises RealrlError naming episode, field and frame of a value that
        is not finite, a shape or dtype other than the dataset's, an empty episode, or time that does not increase.
        """
        if not episodes:
            return range(len(self), len(self))
        with self._locked():
            first, starts = len(self), self.frames + np.cumsum([0, *map(len, episodes)])
            tasks = list(dict.fromkeys([*self._tasks, *(e.task for e in episodes)]))
            columns = [_columns(e, self.fps, first + i, int(starts[i]), tasks.index(e.task)) for i, e in enumerate(episodes)]
            features = self._info["features"] if first else _features(columns[0])
            for i, episode in enumerate(episodes):
                disk.validate(episode, f"{self.dir}: episode {first + i} (number {i} of this append)", columns[i], features)
            if tasks != self._tasks:  # first, so that a reader never meets a task_index without its text
                _publish(self.dir / "meta/tasks.parquet", partial(pq.write_table, disk.tasks_table(tasks)))
                self._tasks = tasks
            if features != self._info["features"]:
                self._info["features"] = features
                self._write_info()  # a dataset with rows always says what its columns are
            self._publish_episodes(episodes, columns, starts)
            _publish_json(self.dir / "meta/stats.json",
                          {name: {k: v.tolist() for k, v in s.items()} for name, s in (self._stats or {}).items()})
            self._write_info()
            return range(first, len(self))

    def _publish_episodes(self, episodes: Sequence[Episode], columns: Sequence[dict[str, Array]], starts: Array) -> None:
        """Data file, then the episodes file that makes it count, then what this object remembers."""
        if self._stats is None:
            self._stats = disk.stored_stats(self.dir, self._info["features"], self.frames)
        first, data_key, row_key, stats, rows = len(self), self._next_data_key(), self._next_row_key(), self._stats, []
        for i, episode in enumerate(episodes):
            own = disk.episode_stats(columns[i])
            stats = disk.merge_stats(stats, own)
            rows.append(_row(episode, first + i, int(starts[i]), data_key, row_key, own))
        data, path = self.data_file(data_key), self._episodes_file(row_key)
        _set_aside(data)  # left by a writer that died before its episodes row
        _publish(data, partial(_write_row_groups, [pa.table({k: disk.to_arrow(x) for k, x in c.items()}) for c in columns]))
        table = pa.Table.from_pylist(rows, schema=_row_schema(self._info["features"]))
        _publish(path, partial(pq.write_table, table))
        self._tables[path] = disk.without_stats(table)
        self._set_rows(pa.concat_tables([self.rows, self._tables[path]], promote_options="permissive"))
        self._stats = stats

    def compact(self) -> None:
        """Merge small files into larger ones (up to data_files_size_in_mb). A kill at any moment loses nothing.

        New data files get fresh numbers, then one new episodes file that points at them is published: the newest row of an
        episode counts, so that rename is the switch. A journal written beforehand names both sides; whoever opens the
        dataset next deletes the losing one.
        """
        with self._locked():
            plan, old_rows = self._merge_plan(), disk.episode_files(self.dir)
            if not plan and len(old_rows) <= 1:
                return
            chunk, file, key, row_key = self._chunk.copy(), self._file.copy(), self._next_data_key(), self._next_row_key()
            merged: dict[FileKey, list[FileKey]] = {}
            for group in plan:
                here = np.isin(self._chunk * 2**32 + self._file, [c * 2**32 + f for c, f in group])
                chunk[here], file[here] = key
                merged[key], key = group, self._after(key)
            table = disk.newest([disk.read_parquet(p) for p in old_rows])
            ones, commit = np.ones(len(table), np.int64), self._episodes_file(row_key)
            for name, value in {"data/chunk_index": chunk, "data/file_index": file, "meta/episodes/chunk_index": ones * row_key[0],
                                "meta/episodes/file_index": ones * row_key[1]}.items():
                table = table.set_column(table.schema.get_field_index(name), name, pa.array(value))
            old = [*(self.data_file(k) for group in plan for k in group), *old_rows]
            new = {self.data_file(k): [self.data_file(g) for g in group] for k, group in merged.items()}
            for path in new:
                _set_aside(path)
            _publish_json(self.dir / JOURNAL, {side: [p.relative_to(self.dir).as_posix() for p in paths] for side, paths in
                                               {"old": old, "new": list(new), "commit": [commit]}.items()})
            for path, sources in new.items():
                _publish(path, partial(_merge_files, sources))
            _publish(commit, partial(pq.write_table, table))
            _finish_compaction(self.dir)
            self._reload()

    def _merge_plan(self) -> list[list[FileKey]]:
        """Data files in order, grouped to the size limit. Leading groups of one stay as they are; later ones must move too,
        because LeRobot reads the files in the order of their names."""
        limit = int(self._info["data_files_size_in_mb"]) * 2**20
        plan: list[list[FileKey]] = []
        room = 0
        for key in dict.fromkeys(zip(self._chunk.tolist(), self._file.tolist(), strict=True)):
            size = self.data_file(key).stat().st_size
            if not plan or size > room:
                plan.append([])
                room = limit
            plan[-1].append(key)
            room -= size
        while plan and len(plan[0]) == 1:
            plan.pop(0)
        return plan

    # ---- state

    @contextlib.contextmanager
    def _locked(self, wait: float | None = None) -> Iterator[None]:
        """The right to write, with this object's view of the folder brought up to date."""
        with _lock(self.dir / ".lock", self.lock_wait if wait is None else wait):
            if _finish_compaction(self.dir) or set(disk.episode_files(self.dir)) != set(self._tables):
                self._reload()
            if not self._swept:  # nobody else writes now, so every temporary file is a dead writer's
                for path in self.dir.rglob(".*.tmp"):
                    path.unlink(missing_ok=True)
                self._swept = True
            yield

    def _reload(self) -> None:
        """Read the tables that changed since the last look."""
        self._info, self._tasks = disk.read_info(self.dir), disk.read_tasks(self.dir)
        for _ in range(3):
            with contextlib.suppress(FileNotFoundError):  # compacted away by another process since it was listed
                files = disk.episode_files(self.dir)
                self._tables = {p: self._tables.get(p) or disk.without_stats(disk.read_parquet(p)) for p in files}
                break
        self._stats = None
        self._set_rows(disk.newest(list(self._tables.values())))
        if self.rows["episode_index"].to_pylist() != list(range(len(self))):
            raise RealrlError(f"{self.dir}/meta/episodes does not number its episodes 0..{len(self) - 1}; "
                              f"run `realrl data check {self.dir}`")

    def _set_rows(self, rows: pa.Table) -> None:
        self.rows = rows  # the episodes' metadata, one row each (policy, seed, length, success, ...)
        self._from, self._to, self._chunk, self._file = (
            rows[name].to_numpy() for name in ("dataset_from_index", "dataset_to_index", "data/chunk_index", "data/file_index"))

    def _true_totals(self) -> Info:
        splits = self._info.get("splits") or {}  # others may have made several; one covers everything
        return {"total_episodes": len(self), "total_frames": self.frames, "total_tasks": len(self._tasks),
                "splits": splits if len(splits) > 1 else {"train": f"0:{len(self)}"}}

    def _write_info(self) -> None:
        self._info |= self._true_totals()
        _publish_json(self.dir / "meta/info.json", self._info)

    def _after(self, key: FileKey) -> FileKey:
        return (key[0] + 1, 0) if key[1] + 1 >= int(self._info["chunks_size"]) else (key[0], key[1] + 1)

    def _next_data_key(self) -> FileKey:
        return self._after((int(self._chunk[-1]), int(self._file[-1]))) if len(self) else (0, 0)

    def _next_row_key(self) -> FileKey:
        used = [(int(p.parent.name.split("-")[1]), int(p.stem.split("-")[1])) for p in self._tables]
        return self._after(max(used)) if used else (0, 0)

    def _episodes_file(self, key: FileKey) -> Path:
        return self.dir / EPISODES_PATH.format(chunk_index=key[0], file_index=key[1])


# ---- an episode as columns and as a row


def _columns(episode: Episode, fps: int, index: int, first: int, task_index: int) -> dict[str, Array]:
    """The columns of the data file, each [T, ...]. first: the dataset-wide number of frame 0."""
    frame = np.arange(len(episode), dtype=np.int64)
    last = frame == len(episode) - 1
    return {
        **{f"observation.{key}": x[:-1] for key, x in episode.obs.items()},
        "action": episode.action, "action.proposed": episode.proposed,
        "next.reward": np.asarray(episode.reward, np.float32), "next.done": last & (episode.terminated or episode.truncated),
        "next.success": np.asarray(episode.success, bool), "next.truncated": last & episode.truncated,
        "intervention": np.asarray(episode.source) == Source.HUMAN, "source": np.asarray(episode.source, np.int64),
        "starts_plan": np.asarray(episode.starts_plan, bool), "time": np.asarray(episode.time, np.float64),
        "timestamp": (frame / fps).astype(np.float32), "frame_index": frame, "episode_index": np.full_like(frame, index),
        "index": first + frame, "task_index": np.full_like(frame, task_index)}


def _features(columns: dict[str, Array]) -> Info:
    return {name: {"dtype": str(x.dtype), "shape": list(x.shape[1:]) or [1], "names": None} for name, x in columns.items()}


def _row_schema(features: Info) -> pa.Schema:
    fields = [*((name, pa.int64()) for name in disk.ROW_INDICES), ("tasks", pa.list_(pa.string())), ("terminated", pa.bool_()),
              ("truncated", pa.bool_()), ("success", pa.bool_()), ("policy", pa.string()), ("seed", pa.int64())]
    fields += [(f"last/{name}", pa.list_(pa.from_numpy_dtype(f["dtype"]))) for name, f in features.items()
               if name.startswith("observation.")]
    for name in features:
        fields += [(f"stats/{name}/{stat}", pa.list_(pa.float64())) for stat in STATS] + [(f"stats/{name}/count", pa.list_(pa.int64()))]
    return pa.schema(fields)


def _row(episode: Episode, index: int, first: int, data_key: FileKey, row_key: FileKey, stats: Stats) -> dict[str, Any]:
    """The episode's row of the episodes table."""
    return {
        "episode_index": index, "tasks": [episode.task], "length": len(episode), "data/chunk_index": data_key[0],
        "data/file_index": data_key[1], "dataset_from_index": first, "dataset_to_index": first + len(episode),
        "meta/episodes/chunk_index": row_key[0], "meta/episodes/file_index": row_key[1], "terminated": bool(episode.terminated),
        "truncated": bool(episode.truncated), "success": episode.succeeded, "policy": episode.policy, "seed": episode.seed,
        **{f"last/observation.{key}": x[-1].reshape(-1).tolist() for key, x in episode.obs.items()},
        **{f"stats/{name}/{stat}": v.tolist() for name, s in stats.items() for stat, v in s.items()}}


# ---- files


def _publish(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write under a temporary name, fsync, rename, fsync the folder: the file is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        new = [p for p in path.parents if not p.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        for folder in {path.parent, *(p.parent for p in new)}:
            _sync(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RealrlError(f"{path} could not be written ({error.strerror or error}); free space or mend the permissions") from error


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _publish_json(path: Path, value: Any) -> None:
    _publish(path, lambda f: f.write(json.dumps(value, indent=1).encode()))


def _write_row_groups(tables: Iterable[pa.Table], file: BinaryIO) -> None:
    """One row group an episode, each page with its checksum."""
    writer: pq.ParquetWriter | None = None
    for table in tables:
        writer = writer or pq.ParquetWriter(file, table.schema, compression="snappy", write_page_checksum=True)
        writer.write_table(table, row_group_size=max(1, len(table)))
    if writer:
        writer.close()


def _merge_files(sources: Sequence[Path], file: BinaryIO) -> None:
    """The episodes of some data files in order; damage raises before anything is published."""
    def episodes() -> Iterator[pa.Table]:
        for path in sources:
            table = disk.read_parquet(path)
            cuts = np.flatnonzero(np.diff(table["episode_index"].to_numpy(), prepend=-1, append=-1)).tolist()
            yield from (table.slice(a, b - a) for a, b in pairwise(cuts))
    _write_row_groups(episodes(), file)


def _set_aside(path: Path) -> None:
    """Keep, under a name no reader looks for, a data file whose episodes row was never written."""
    if path.exists():
        path.replace(path.with_suffix(f".orphan-{time.time_ns()}"))


def _finish_compaction(root: Path) -> bool:
    """Delete the losing side of the compaction the journal names; whether there was one. The caller holds the lock."""
    journal = root / JOURNAL
    if not journal.exists():
        return False
    try:
        plan = json.loads(journal.read_text())
        losers = [root / p for p in (plan["old"] if (root / plan["commit"][0]).exists() else plan["new"])]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise RealrlError(f"{journal} is damaged ({error}); delete it, then run `realrl data check {root}`") from error
    for path in losers:
        if path.resolve().is_relative_to(root.resolve()) and path.suffix == ".parquet":  # a journal must not reach outside its folder
            path.unlink(missing_ok=True)
    for folder in {p.parent for p in losers if p.parent.exists()}:
        _sync(folder)
    journal.unlink()
    return True


@contextlib.contextmanager
def _lock(path: Path, wait: float) -> Iterator[None]:
    """Hold an advisory lock. Raises RealrlError when another process keeps it longer than `wait` seconds."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise RealrlError(f"{path} could not be opened ({error.strerror}); the dataset is not writable here") from error
    try:
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = os.pread(fd, 20, 0).decode() or "unknown"
                    raise RealrlError(f"{path.parent} is being written by process {holder}; wait for it or end it") from None
                time.sleep(0.005)
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(fd)  # also gives the lock back
