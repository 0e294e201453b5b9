"""Episodes on disk in LeRobot's dataset layout, version 3.0: numbers in parquet, cameras in mp4.

Every append publishes its video files (one a camera), one data file and one episodes file. The episodes file is the commit: a file
that no episodes row names does not exist for a reader, so whatever dies when, an episode is wholly there or not there. `info.json`
and `stats.json` are summaries, rebuilt from the episodes files when they fell behind. The many small episodes files are merged as they
come, like the digits of a counter (`compaction.small_files`), so that opening stays fast and an append costs what the episode costs.

What LeRobot has no place for travels in the episodes row: the observation after the last action (`last/observation.<key>`, and for
cameras `videos/<key>/last_timestamp`, see `footage`), `terminated`, `truncated`, `success`, `policy` and `seed`.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from realrl.data import compaction, depth, footage, schema, tables, video
from realrl.data.compaction import JOURNAL
from realrl.data.errors import DAMAGED, holds_recordings, line, typed
from realrl.data.footage import Encoded, Place
from realrl.data.incoming import Incoming, checked, publish_films
from realrl.data.labels import Labels
from realrl.data.reading import PLAIN, USUAL, Reading, absent, imported, left_out, require_action, seen
from realrl.data.reading import Recordings as Recordings
from realrl.data.schema import Info
from realrl.data.stats import Stats, column_stats, merge_stats, stored_stats
from realrl.data.tables import FileKey
from realrl.data.video import Codec
from realrl.files import lock, publish, write_json
from realrl.types import Array, Episode, RealrlError


class Store:
    """A folder of episodes. Make one by `create`, `open` or `open_or_create`.

    Any number of processes may read; writers take turns through an advisory lock that is held for one call, and see each
    other's episodes. `lock_wait` is how many seconds a writer waits for its turn. `codec` is for the cameras of a dataset that has
    none yet; afterwards that of its first episode counts. reading: how somebody else's set is read; nothing can be added to it then.
    """

    lock_wait: float = 10.0

    def __init__(self, directory: str | Path, codec: Codec = "av1", reading: Reading = PLAIN) -> None:
        self.dir, self.labels = Path(directory), Labels(Path(directory), lambda: self.rows)
        if codec not in video.CODECS:
            raise RealrlError(f"video codec {codec!r} is not one of {', '.join(video.CODECS)}; choose one of them")
        self.codec: Codec = codec
        self._info = seen(self.dir, schema.read_info(self.dir, reading.paths))
        self._reading = reading.checked(self.dir, self._info)
        self._tables: dict[Path, pa.Table] = {}
        self._tasks: list[str] = []
        self._stats: Stats | None = None
        self._swept, self._counted = False, True  # counted: whether episodes are numbered from 0 without a hole
        self._rows: pa.Table | None = None
        self._clock: tuple[FileKey, Array] | None = None  # the timestamps of the data file that was asked for last
        self._last_films: dict[str, FileKey] = {}  # the newest video file of each camera
        self._numbers = self._from = self._to = self._chunk = self._file = np.zeros(0, np.int64)
        self._reload()
        if self._reading.plain and ((self.dir / JOURNAL).exists() or (schema.ours(self._info) and self.info != self._info)):
            with contextlib.suppress(RealrlError), self._locked(wait=0.0):  # a live writer, or a read-only disk, is no error
                self._write_info()

    @classmethod
    def create(cls, directory: str | Path, *, task: str, fps: float, robot_type: str = "unknown", codec: Codec = "av1") -> Store:
        """A new, empty dataset. task: the text of task 0; fps: control steps a second, such as 10 or 29.97; codec: of its cameras.

        Raises RealrlError if one is there.
        """
        root = Path(directory)
        if not 0 < fps < 1e6:
            raise RealrlError(f"{root}: fps is {fps}, must be a number above 0")
        if (root / "meta/info.json").exists():
            raise RealrlError(f"{root} already holds a dataset; open it or choose another folder")
        if holds_recordings(root):
            raise RealrlError(f"{root} holds recordings but meta/info.json is missing; run 'realrl data repair {typed(root)}'")
        if root.exists() and (not root.is_dir() or {p.name for p in root.iterdir()} - {"meta", ".lock"}):
            raise RealrlError(f"{root} is not empty and not a dataset; choose a new folder")
        schema.check_names(str(root), task=task, robot_type=robot_type)
        publish(root / "meta/tasks.parquet", partial(pq.write_table, tables.tasks_table([task])))
        write_json(root / "meta/info.json", schema.new_info(robot_type, fps))
        return cls(root, codec)

    @classmethod
    def open(cls, directory: str | Path, reading: Reading = PLAIN) -> Store:
        """An existing dataset. Raises RealrlError when the folder holds none or its tables cannot be read."""
        return cls(directory, reading=reading)

    @classmethod
    def open_or_create(cls, directory: str | Path, *, task: str, fps: float, robot_type: str = "unknown", codec: Codec = "av1") -> Store:
        """Continue a dataset or begin it. Raises RealrlError when the existing one runs at another fps."""
        if not (Path(directory) / "meta/info.json").exists():
            return cls.create(directory, task=task, fps=fps, robot_type=robot_type, codec=codec)
        store = cls(directory, codec)
        if abs(store.fps - fps) > 1e-6 * fps:
            raise RealrlError(f"{directory} was recorded at {store.fps} fps, not {fps}; use its rate or another folder")
        return store

    def __len__(self) -> int:
        return len(self._to)

    @property
    def frames(self) -> int:
        """Control steps in all episodes together."""
        return int(self.lengths.sum())

    @property
    def fps(self) -> int | float:
        """Control steps a second."""
        return schema.rate(self._info)

    @property
    def lengths(self) -> Array:
        """Control steps of each episode, [N]."""
        return np.asarray(self._to - self._from)

    @property
    def notes(self) -> list[str]:
        """What a person should know who reads it."""
        empty = {int(i) for t in self._tables.values() for i in t["episode_index"].to_numpy()[t["length"].to_numpy() < 1]}
        return [*self._reading.notes, *left_out(sorted(empty))]

    @property
    def tasks(self) -> list[str]:
        """Task texts; the position is the task_index."""
        return list(self._tasks)

    @property
    def info(self) -> Info:
        """A copy of info.json, with counts that are true and the columns as they are read."""
        return copy.deepcopy(self._info | {"features": self._reading.features(self._info)}) | self._true_totals()

    @property
    def cameras(self) -> list[str]:
        """Observation keys that are kept as video: "images.<camera>" and "depth.<camera>"."""
        return [name.removeprefix("observation.") for name in self._reading.films(self._info)]

    @property
    def rows(self) -> pa.Table:
        """The episodes' metadata, one row each (policy, seed, length, success, where its videos lie, ...)."""
        if self._rows is None:
            rows = tables.newest(list(self._tables.values()), self.dir)
            self._rows = rows if schema.ours(self._info) else tables.filled(rows)
        return self._rows

    # ---- reading

    def read(self, indices: Sequence[int] | None = None, images: bool = True) -> list[Episode]:
        """Episodes by index (all by default), in that order, equal to what was appended except for `extra` and labels.

        Pictures come back as the codec kept them: depth is exact, colour nearly so. images: False leaves cameras out, and needs
        no video file. Raises RealrlError for an index that is not there and for files that are missing or damaged.
        """
        picked = list(range(len(self))) if indices is None else [int(i) for i in indices]
        if wrong := [i for i in picked if not 0 <= i < len(self)]:
            raise RealrlError(f"{self.dir} holds {len(self)} episodes, there is no number {wrong[0]}; count from 0")
        try:
            return self._read(picked, images)
        except FileNotFoundError as error:  # another process may have compacted since this one looked
            if set(tables.episode_files(self.dir)) == set(self._tables):
                raise absent(self.dir, Path(str(error.filename or error)), self._info, USUAL) from error
            self._reload()
            return self._read(picked, images)

    def _read(self, picked: list[int], images: bool) -> list[Episode]:
        rows, columns = self._rows_of(picked), self._columns(picked, images)
        made = {i: self.build(i, columns[i], self._films(i, columns[i]) if images else {}, rows[i]) for i in columns}
        return [made[i] for i in picked]

    def _rows_of(self, picked: list[int]) -> dict[int, dict[str, Any]]:
        taken = self.labels.onto(self.rows.take(pa.array(picked, pa.int64())).to_pylist() if picked else [], picked)
        return dict(zip(picked, taken, strict=True))

    def _columns(self, picked: list[int], pictures: bool) -> dict[int, dict[str, Array]]:
        """The columns of some episodes, by number, see `columns`."""
        require_action(self.dir, self._reading.features(self._info))
        by_file: dict[FileKey, list[int]] = {}
        for i in picked:
            by_file.setdefault((int(self._chunk[i]), int(self._file[i])), []).append(i)
        found: dict[int, dict[str, Array]] = {}
        for key, members in by_file.items():
            base = self._base(key)
            start, stop = int(self._from[members].min()) - base, int(self._to[members].max()) - base
            columns = tables.read_frames(self.data_file(key), self._reading.stored(self._info), start, stop, pictures=pictures)
            for i in members:
                span = slice(int(self._from[i]) - base - start, int(self._to[i]) - base - start)
                if "episode_index" in columns and not (columns["episode_index"][span] == self._numbers[i]).all():
                    raise RealrlError(f"{self.data_file(key)} does not hold episode {i} where meta/episodes says; "
                                      f"run `realrl data check {typed(self.dir)}`")
                found[i] = self._reading.named({k: v[span].copy() for k, v in columns.items()})
        return found

    def _base(self, key: FileKey) -> int:
        """The dataset-wide number of a data file's first frame."""
        return int(self._from[(self._chunk == key[0]) & (self._file == key[1])].min())

    def columns(self, episode: int, pictures: bool = True) -> dict[str, Array]:
        """All columns of an episode that are numbers, each [T, ...]. pictures: also those that are pictures in cells."""
        try:
            return self._columns([episode], pictures)[episode]
        except FileNotFoundError as error:
            raise absent(self.dir, self.table(episode), self._info, USUAL) from error

    def build(self, index: int, columns: dict[str, Array], films: Mapping[str, Array], row: Mapping[str, Any] | None = None) -> Episode:
        """The episode made of its `columns` and its films, observation.<key> -> [T+1, ...]. row: as meta/episodes has it."""
        try:
            return schema.episode(columns, self._rows_of([index])[index] if row is None else row, films, self._tasks, float(self.fps))
        except DAMAGED as error:
            raise RealrlError(f"{self.dir}: episode {index} does not fit info.json ({line(error)}); "
                              f"run `realrl data check {typed(self.dir)}`") from error

    def _films(self, index: int, columns: Mapping[str, Array]) -> dict[str, Array]:
        found = {}
        for name, theirs in self._reading.films(self._info).items():
            path, seconds = self.pictures(index, name.removeprefix("observation."), columns.get("timestamp"))
            found[name] = footage.read(path, seconds, self.tolerance, depth.coding(name, self._info["features"][theirs]))
        return found

    @property
    def tolerance(self) -> float:
        """Seconds that a picture may be off its frame's time."""
        return self._reading.close(self.fps)

    def pictures(self, episode: int, camera: str, stamps: Array | None = None) -> tuple[Path, Array]:
        """Where the pictures of an observation key lie: the mp4, and the second in it of each of the T+1 observations, [T+1], for
        `video.decode`. stamps: the episode's timestamps [T] where they are known. Raises RealrlError for no such episode or camera."""
        path, row = self._film(episode, camera)
        length = int(self._to[episode] - self._from[episode])
        if length > (path.stat().st_size if path.exists() else 2**24):  # a picture takes a byte at least
            raise RealrlError(f"{path} cannot hold {length} pictures, as meta/episodes has it; run 'realrl data repair {typed(self.dir)}'")
        place = Place.of(row, self._reading.theirs(f"observation.{camera}"), f"{self.dir}/")
        stamps = self._stamps(episode) if stamps is None else stamps
        return path, footage.seconds(path, place, length, float(self.fps), stamps, self.tolerance)

    def film(self, episode: int, camera: str) -> Path:
        """The mp4 that an episode's pictures of an observation key lie in, whether it is there or not."""
        return self._film(episode, camera)[0]

    def _film(self, episode: int, camera: str) -> tuple[Path, dict[str, Any]]:
        theirs = self._reading.film(self, self._info, episode, camera)
        wanted = [c for c in self.rows.column_names if c.startswith(f"videos/{theirs}/") or c == "episode_index"]  # a row has many
        (row,) = self.rows.select(wanted).slice(episode, 1).to_pylist()
        return self._video_file(row, theirs), row

    def _stamps(self, episode: int) -> Array | None:
        """The timestamps of an episode [T], where the tables have any. The last file's are remembered."""
        key, told = (int(self._chunk[episode]), int(self._file[episode])), tables.stored(self._info["features"]).get("timestamp")
        if told is None:
            return None
        if self._clock is None or self._clock[0] != key:
            try:
                self._clock = key, tables.read_frames(self.data_file(key), {"timestamp": told})["timestamp"]
            except FileNotFoundError:  # who reads its numbers will say so
                return None
        base = self._base(key)
        return self._clock[1][int(self._from[episode]) - base:int(self._to[episode]) - base].reshape(-1)

    def table(self, episode: int) -> Path:
        """The data file that an episode's numbers lie in, whether it is there or not."""
        return self.data_file((int(self._chunk[episode]), int(self._file[episode])))

    def data_file(self, key: FileKey) -> Path:
        """Where the data file (chunk_index, file_index) lies."""
        return schema.data_file(self.dir, self._info, key)

    def _video_file(self, row: Mapping[str, Any], camera: str) -> Path:
        chunk, file = (row.get(f"videos/{camera}/{name}_index") for name in ("chunk", "file"))
        if chunk is None or file is None:
            raise RealrlError(f"{self.dir}: no video file of {camera} is listed for episode {row['episode_index']}; read with images=False "
                              f"or leave it out: {imported('--option', 'missing=camera')}, or missing=episodes")
        return schema.video_file(self.dir, self._info, camera, (int(chunk), int(file)))

    # ---- writing

    def append(self, episodes: Sequence[Episode], *, videos: Sequence[Mapping[str, Encoded]] = (),
               columns: Sequence[Mapping[str, Array]] = (), names: Mapping[str, Any] | None = None) -> range:
        """Add episodes; once this returns they survive a crash. Gives their indices.

        Observations called "images.<camera>" (uint8 [T+1, H, W, 3]) and "depth.<camera>" (uint16 [T+1, H, W], millimetres, kept
        exactly) become video, one file a camera for all episodes of this call. All of them are checked before anything is written.
        videos: of each episode, the cameras that come encoded, as `append_encoded` takes them, or with T packets where nobody filmed what
        followed the last action; columns: of each, more columns to keep, [T, ...]; names: column -> what its numbers are called, for a
        dataset's first episodes. Raises RealrlError naming episode, field and frame of a value that is not finite, a shape or dtype other
        than the dataset's, an empty episode, or time that does not increase.
        """
        if not episodes:
            return range(len(self), len(self))
        known = self._info["features"] if len(self) else {}
        takes = [Incoming(e, *schema.observations(e, known)) for e in episodes]
        for take, encoded in zip(takes, videos, strict=bool(videos)):
            take.encoded, take.last = {f"observation.{k}": (header, list(packets)) for k, (header, packets) in encoded.items()}, False
        for take, kept in zip(takes, columns, strict=bool(columns)):
            take.kept = kept
        if any(take.films for take in takes):  # encoding takes long: outside the lock, and not for episodes that will be refused
            self._checked(takes, names)
            for take in takes:
                take.encode(self._codec, self.fps)
        return self._append(takes, names)

    def append_encoded(self, episode: Episode, videos: Mapping[str, Encoded], stats: Mapping[str, dict[str, Array]] | None = None
                       ) -> int:
        """Add one episode whose cameras were encoded while it ran; once this returns it survives a crash. Gives its index.
        episode: without its cameras in `obs`; videos: observation key ("images.<camera>", "depth.<camera>") -> (header, T+1 packets) of a
        `PacketEncoder` of its own; stats: observation key -> `stats.image_stats` of some pictures, else they are decoded for it. Raises
        RealrlError as `append`, and when packets are not that or differ from the dataset in size, codec or rate."""
        return self._append([Incoming(episode, {f"observation.{k}": x for k, x in episode.obs.items()}, {},
                                   {f"observation.{k}": (v[0], list(v[1])) for k, v in videos.items()},
                                   stats={f"observation.{k}": s for k, s in (stats or {}).items()})])[0]

    def _codec(self, camera: str) -> Codec:
        told = (self._info["features"].get(camera, {}).get("info") or {}).get("video.codec")
        return next((codec for codec in video.CODECS if codec == told), self.codec)

    def _checked(self, takes: Sequence[Incoming], names: Mapping[str, Any] | None) -> tuple[Info, list[dict[str, Array]], list[str], Array]:
        """See `incoming.checked`. Raises RealrlError also when this object is not how the dataset really is."""
        if not (self._reading.plain and self._counted):
            raise RealrlError(f"{self.dir} was opened under other names, with some of its cameras, or has holes in its episodes' numbers; "
                              f"to add to it open it as it is, and close the holes: 'realrl data repair {typed(self.dir)}'")
        known = self._info["features"] if len(self) else None
        return checked(self.dir, takes, known, names or {}, fps=self.fps, first=len(self), frames=self.frames, tasks=self._tasks)

    def _append(self, takes: Sequence[Incoming], names: Mapping[str, Any] | None = None) -> range:
        with self._locked():
            first = len(self)
            features, columns, tasks, starts = self._checked(takes, names)
            if tasks != self._tasks:  # first, so that a reader never meets a task_index without its text
                publish(self.dir / "meta/tasks.parquet", partial(pq.write_table, tables.tasks_table(tasks)))
                self._tasks = tasks
            if features != self._info["features"]:
                self._info["features"] = features
                self._info["video_path"] = schema.VIDEO_PATH if self._cameras else self._info.get("video_path")
                self._write_info()  # a dataset with rows always says what its columns are
            self._publish_episodes(takes, columns, starts)
            with contextlib.suppress(RealrlError):  # the episodes are safe; what follows is made good by whoever opens or appends next
                self._write_stats()
                self._write_info()
                self._merge_small_tables()
            return range(first, len(self))

    def _publish_episodes(self, takes: Sequence[Incoming], columns: Sequence[dict[str, Array]], starts: Array) -> None:
        """Video files and data file, then the episodes file that makes them count, then what this object remembers."""
        if self._stats is None:
            self._stats = stored_stats(self.dir, self._info["features"], self.frames)
        first, data_key, row_key, stats = len(self), self._next_data_key(), self._next_row_key(), self._stats
        last_films = {camera: self._next_key(self._last_films.get(camera)) for camera in self._cameras}
        files = {camera: schema.video_file(self.dir, self._info, camera, key) for camera, key in last_films.items()}
        filmed = publish_films(takes, last_films, files, float(self.fps))
        rows = []
        for i, take in enumerate(takes):
            own = column_stats(columns[i]) | take.stats
            stats = merge_stats(stats, own)
            rows.append(schema.row(take.episode, take.numbers, first + i, int(starts[i]), data_key, row_key, own) | filmed[i])
        data, path = self.data_file(data_key), compaction.episodes_file(self.dir, row_key)
        compaction.set_aside(data)  # left by a writer that died before its episodes row
        publish(data, partial(tables.write_row_groups, [pa.table({k: tables.to_arrow(x) for k, x in c.items()}) for c in columns]))
        table = pa.Table.from_pylist(rows, schema=schema.row_schema(self._info["features"]))
        publish(path, partial(pq.write_table, table))
        self._tables[path], self._rows, self._stats = tables.without_stats(table), None, stats
        self._last_films |= last_films
        self._numbers, self._from, self._to = (np.append(x, more) for x, more in zip(
            (self._numbers, self._from, self._to), (np.arange(first, first + len(takes)), starts[:-1], starts[1:]), strict=True))
        self._chunk, self._file = (np.append(x, np.full(len(takes), k)) for x, k in zip((self._chunk, self._file), data_key, strict=True))

    def compact(self) -> None:
        """Merge small data and video files into larger ones (up to data_files_size_in_mb, video_files_size_in_mb), and the episodes
        files into one; nothing is encoded again. A kill at any moment loses nothing, see `compaction`."""
        with self._locked():
            if compaction.run(self.dir, self._info, list(self._tables), self._next_row_key()):
                self._reload()

    # ---- state

    @contextlib.contextmanager
    def _locked(self, wait: float | None = None) -> Iterator[None]:
        """The right to write, with this object's view of the folder brought up to date."""
        with lock(self.dir / ".lock", self.lock_wait if wait is None else wait):
            if compaction.finish(self.dir) or set(tables.episode_files(self.dir)) != set(self._tables):
                self._reload()
            if not self._swept:  # nobody else writes now, so every temporary file is a dead writer's
                for path in schema.unfinished(self.dir):
                    path.unlink(missing_ok=True)
                self._swept = True
            yield

    def _reload(self) -> None:
        """Read the tables that changed since the last look."""
        self._info, self._clock = seen(self.dir, schema.read_info(self.dir, self._reading.paths)), None
        for _ in range(3):
            with contextlib.suppress(FileNotFoundError):  # compacted away by another process since it was listed
                files = tables.episode_files(self.dir)
                self._tables = {p: self._tables[p] if p in self._tables else tables.read_rows(p) for p in files}
                break
        self._stats, self._rows = None, None
        self._tasks = tables.read_tasks(self.dir, int(self.rows["length"].to_numpy().sum()))
        self._numbers, self._from, self._to, self._chunk, self._file = (self.rows[name].to_numpy() for name in (
            "episode_index", "dataset_from_index", "dataset_to_index", "data/chunk_index", "data/file_index"))
        self._counted = np.array_equal(self._numbers, np.arange(len(self)))
        fine = self._counted or (not schema.ours(self._info) and (self._numbers >= 0).all())  # others may have taken some out
        if not (fine and (self._to > self._from).all() and (self._from >= 0).all()):
            raise RealrlError(f"{self.dir}/meta/episodes does not number its episodes 0..{len(self) - 1}; "
                              f"run `realrl data check {typed(self.dir)}`")
        keys = {c: set(compaction.file_keys(self.rows, f"videos/{c}")) for c in self._cameras}
        self._last_films = {c: max(known) for c, found in keys.items() if (known := [k for k in found if None not in k])}

    @property
    def _cameras(self) -> Info:
        return tables.cameras(self._info["features"])

    def _merge_small_tables(self) -> None:
        start = compaction.small_files([len(t) for t in self._tables.values()])
        if start is not None:
            old = list(self._tables)[start:]
            path, table = compaction.merge_rows(self.dir, old, self._next_row_key())
            self._tables = {p: t for p, t in self._tables.items() if p not in old} | {path: tables.without_stats(table)}
            self._rows = None

    def _true_totals(self) -> Info:
        splits = self._info.get("splits") or {}  # others may have made several; one covers everything
        return {"total_episodes": len(self), "total_frames": self.frames, "total_tasks": len(self._tasks),
                "splits": splits if len(splits) > 1 else {"train": f"0:{len(self)}"}}

    def _write_info(self) -> None:
        self._info |= self._true_totals()
        write_json(self.dir / "meta/info.json", self._info)

    def _write_stats(self) -> None:
        stats = {name: {k: v.tolist() for k, v in s.items()} for name, s in (self._stats or {}).items()}
        write_json(self.dir / "meta/stats.json", stats, nan=True)

    def _next_key(self, last: FileKey | None) -> FileKey:
        return (0, 0) if last is None else compaction.after(self._info, last)

    def _next_data_key(self) -> FileKey:
        return self._next_key((int(self._chunk[-1]), int(self._file[-1])) if len(self) else None)

    def _next_row_key(self) -> FileKey:
        return self._next_key(max(((int(p.parent.name.split("-")[1]), int(p.stem.split("-")[1])) for p in self._tables), default=None))


def open_dataset(directory: str | Path, **reading: Any) -> Recordings:
    """A dataset of any version of the layout, see `realrl.data.formats.open_dataset`: where people look for it first."""
    from realrl.data import formats
    return formats.open_dataset(directory, **reading)
