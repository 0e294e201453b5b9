"""Episodes on disk in LeRobot's dataset layout, version 3.0: numbers in parquet, cameras in mp4.

Every append publishes its video files (one a camera), one data file and one episodes file. The episodes file is the commit: a file
that no episodes row names does not exist for a reader, so whatever dies when, an episode is wholly there or not there. `info.json`
and `stats.json` are summaries that anyone can rebuild from the episodes files, and that are rebuilt when they fell behind. The many
small episodes files are merged as they come, like the digits of a counter (`compaction.small_files`), so that opening stays fast and
an append costs what the episode costs.

What LeRobot has no place for travels in the episodes row: the observation after the last action (`last/observation.<key>`, and for
cameras `videos/<key>/last_timestamp`, see `footage`), `terminated`, `truncated`, `success`, `policy` and `seed`.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from realrl.data import compaction, footage, schema, tables, video
from realrl.data.compaction import JOURNAL
from realrl.data.errors import DAMAGED, holds_recordings, line
from realrl.data.footage import Encoded, Place
from realrl.data.labels import Labels
from realrl.data.schema import Info
from realrl.data.stats import Stats, column_stats, image_stats, merge_stats, sampled_frames, stored_stats
from realrl.data.tables import FileKey
from realrl.data.video import Codec
from realrl.files import lock, publish, write_json
from realrl.types import Array, Episode, RealrlError


@dataclass
class _Incoming:
    """An episode on its way to the disk. films: its cameras' pictures, None when they came encoded; stats: of cameras."""

    episode: Episode
    numbers: dict[str, Array]
    films: dict[str, Array] | None
    encoded: dict[str, Encoded] = field(default_factory=dict)
    stats: Stats = field(default_factory=dict)


class Recordings(Protocol):
    """What can be read of a dataset, whatever its layout: a `Store`, or one that `realrl.data.formats` reads where it lies."""

    dir: Path
    labels: Labels

    def __len__(self) -> int: ...

    @property
    def frames(self) -> int: ...

    @property
    def fps(self) -> int: ...

    @property
    def tasks(self) -> list[str]: ...

    @property
    def info(self) -> Info: ...

    @property
    def cameras(self) -> list[str]: ...

    def read(self, indices: Sequence[int] | None = None, images: bool = True) -> list[Episode]: ...

    def pictures(self, episode: int, camera: str) -> tuple[Path, Array]: ...


class Store:
    """A folder of episodes. Make one by `create`, `open` or `open_or_create`.

    Any number of processes may read; writers take turns through an advisory lock that is held for one call, and see each
    other's episodes. `lock_wait` is how many seconds a writer waits for its turn. `codec` is for the cameras of a dataset that has
    none yet; afterwards that of its first episode counts.
    """

    lock_wait: float = 10.0

    def __init__(self, directory: str | Path, codec: Codec = "av1") -> None:
        self.dir, self.labels = Path(directory), Labels(Path(directory), lambda: self.rows)
        if codec not in video.CODECS:
            raise RealrlError(f"video codec {codec!r} is not one of {', '.join(video.CODECS)}; choose one of them")
        self.codec: Codec = codec
        self._info = schema.read_info(self.dir)
        self._tables: dict[Path, pa.Table] = {}
        self._tasks: list[str] = []
        self._stats: Stats | None = None
        self._swept = False
        self._rows: pa.Table | None = None
        self._last_films: dict[str, FileKey] = {}  # the newest video file of each camera
        self._from = self._to = self._chunk = self._file = np.zeros(0, np.int64)
        self._reload()
        if (self.dir / JOURNAL).exists() or self.info != self._info:
            with contextlib.suppress(RealrlError), self._locked(wait=0.0):  # a live writer, or a read-only disk, is no error
                self._write_info()

    @classmethod
    def create(cls, directory: str | Path, *, task: str, fps: int, robot_type: str = "unknown", codec: Codec = "av1") -> Store:
        """A new, empty dataset. task: the text of task 0; fps: control steps a second; codec: of its cameras.

        Raises RealrlError if one is there.
        """
        root = Path(directory)
        if fps <= 0 or int(fps) != fps:
            raise RealrlError(f"{root}: fps is {fps}, must be a whole number above 0")
        if (root / "meta/info.json").exists():
            raise RealrlError(f"{root} already holds a dataset; open it or choose another folder")
        if holds_recordings(root):
            raise RealrlError(f"{root} holds recordings but meta/info.json is missing; run 'realrl data repair {root}'")
        if root.exists() and (not root.is_dir() or {p.name for p in root.iterdir()} - {"meta", ".lock"}):
            raise RealrlError(f"{root} is not empty and not a dataset; choose a new folder")
        schema.check_names(str(root), task=task, robot_type=robot_type)
        publish(root / "meta/tasks.parquet", partial(pq.write_table, tables.tasks_table([task])))
        info = {
            "codebase_version": "v3.0", "robot_type": robot_type, "total_episodes": 0, "total_frames": 0, "total_tasks": 1,
            "chunks_size": 1000, "data_files_size_in_mb": 100, "video_files_size_in_mb": 200, "fps": int(fps),
            "splits": {"train": "0:0"}, "data_path": schema.DATA_PATH, "video_path": None, "features": {}}
        write_json(root / "meta/info.json", info)
        return cls(root, codec)

    @classmethod
    def open(cls, directory: str | Path) -> Store:
        """An existing dataset. Raises RealrlError when the folder holds none or its tables cannot be read."""
        return cls(directory)

    @classmethod
    def open_or_create(cls, directory: str | Path, *, task: str, fps: int, robot_type: str = "unknown", codec: Codec = "av1") -> Store:
        """Continue a dataset or begin it. Raises RealrlError when the existing one runs at another fps."""
        if not (Path(directory) / "meta/info.json").exists():
            return cls.create(directory, task=task, fps=fps, robot_type=robot_type, codec=codec)
        store = cls(directory, codec)
        if store.fps != fps:
            raise RealrlError(f"{directory} was recorded at {store.fps} fps, not {fps}; use its rate or another folder")
        return store

    def __len__(self) -> int:
        return len(self._to)

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

    @property
    def cameras(self) -> list[str]:
        """Observation keys that are kept as video: "images.<camera>" and "depth.<camera>"."""
        return [name.removeprefix("observation.") for name in self._cameras]

    @property
    def rows(self) -> pa.Table:
        """The episodes' metadata, one row each (policy, seed, length, success, where its videos lie, ...)."""
        if self._rows is None:
            self._rows = tables.newest(list(self._tables.values()), self.dir)
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
                kind = "video" if str(error.filename).endswith(".mp4") else "data"
                hint = " (images=False reads the numbers alone)" if kind == "video" else ""
                raise RealrlError(f"{error.filename or error}: a {kind} file is missing; run `realrl data check {self.dir}`{hint}"
                                  ) from error
            self._reload()
            return self._read(picked, images)

    def _read(self, picked: list[int], images: bool) -> list[Episode]:
        taken = self.labels.onto(self.rows.take(pa.array(picked, pa.int64())).to_pylist() if picked else [], picked)
        rows = dict(zip(picked, taken, strict=True))
        by_file: dict[FileKey, list[int]] = {}
        for i in picked:
            by_file.setdefault((int(self._chunk[i]), int(self._file[i])), []).append(i)
        episodes: dict[int, Episode] = {}
        for key, members in by_file.items():
            base = int(self._from[(self._chunk == key[0]) & (self._file == key[1])].min())
            start, stop = int(self._from[members].min()) - base, int(self._to[members].max()) - base
            columns = tables.read_frames(self.data_file(key), self._info["features"], start, stop, pictures=images)
            for i in members:
                span = slice(int(self._from[i]) - base - start, int(self._to[i]) - base - start)
                if "episode_index" in columns and not (columns["episode_index"][span] == i).all():
                    raise RealrlError(f"{self.data_file(key)} does not hold episode {i} where meta/episodes says; "
                                      f"run `realrl data check {self.dir}`")
                if i not in episodes:
                    films = self._films(rows[i], int(self._to[i] - self._from[i])) if images else {}
                    episodes[i] = self._episode(i, {k: v[span].copy() for k, v in columns.items()}, rows[i], films)
        return [episodes[i] for i in picked]

    def _episode(self, index: int, columns: dict[str, Array], row: Mapping[str, Any], films: Mapping[str, Array]) -> Episode:
        try:
            return schema.episode(columns, row, films, self._tasks)
        except DAMAGED as error:
            raise RealrlError(f"{self.dir}: episode {index} does not fit info.json ({line(error)}); "
                              f"run `realrl data check {self.dir}`") from error

    def _films(self, row: Mapping[str, Any], length: int) -> dict[str, Array]:
        return {camera: footage.read(self._video_file(row, camera), Place.of(row, camera), length, float(self._info["fps"]))
                for camera in self._cameras if camera.startswith("observation.")}

    def pictures(self, episode: int, camera: str) -> tuple[Path, Array]:
        """Where the pictures of an observation key lie: the mp4, and the second in it of each of the T+1 observations, [T+1].

        Pass them to `video.decode`. Raises RealrlError when there is no such episode or camera.
        """
        name = f"observation.{camera}"
        if not 0 <= episode < len(self) or name not in self._cameras:
            raise RealrlError(f"{self.dir} has no camera {camera!r} in an episode {episode}; it has {len(self)} episodes and the cameras "
                              f"{', '.join(self.cameras) or '(none)'}")
        wanted = [c for c in self.rows.column_names if c.startswith(f"videos/{name}/") or c == "episode_index"]  # a row has many
        (row,) = self.rows.select(wanted).slice(episode, 1).to_pylist()
        length, path = int(self._to[episode] - self._from[episode]), self._video_file(row, name)
        if length > (path.stat().st_size if path.exists() else 2**24):  # a picture takes a byte at least
            raise RealrlError(f"{path} cannot hold {length} pictures, as meta/episodes has it; run 'realrl data repair {self.dir}'")
        return path, Place.of(row, name).times(length, float(self._info["fps"]))

    def data_file(self, key: FileKey) -> Path:
        """Where the data file (chunk_index, file_index) lies."""
        return schema.data_file(self.dir, self._info, key)

    def _video_file(self, row: Mapping[str, Any], camera: str) -> Path:
        chunk, file = (row.get(f"videos/{camera}/{name}_index") for name in ("chunk", "file"))
        if chunk is None or file is None:
            raise RealrlError(f"{self.dir}: no video file of {camera} is listed for episode {row['episode_index']}; read with images=False")
        return schema.video_file(self.dir, self._info, camera, (int(chunk), int(file)))

    # ---- writing

    def append(self, episodes: Sequence[Episode]) -> range:
        """Add episodes; once this returns they survive a crash. Gives their indices.

        Observations called "images.<camera>" (uint8 [T+1, H, W, 3]) and "depth.<camera>" (uint16 [T+1, H, W], millimetres, kept
        exactly) become video, one file a camera for all episodes of this call.
        All of them are checked before anything is written. Raises RealrlError naming episode, field and frame of a value that
        is not finite, a shape or dtype other than the dataset's, an empty episode, or time that does not increase.
        """
        if not episodes:
            return range(len(self), len(self))
        known = self._info["features"] if len(self) else {}
        takes = [_Incoming(e, *schema.observations(e, known)) for e in episodes]
        if any(take.films for take in takes):  # encoding takes long: outside the lock, and not for episodes that will be refused
            self._checked(takes)
            for take in takes:
                self._encode(take)
        return self._append(takes)

    def append_encoded(self, episode: Episode, videos: Mapping[str, Encoded], stats: Mapping[str, dict[str, Array]] | None = None
                       ) -> int:
        """Add one episode whose cameras were encoded while it ran; once this returns it survives a crash. Gives its index.

        episode: without its cameras in `obs`; videos: observation key ("images.<camera>", "depth.<camera>") -> (header, packets)
        of a `PacketEncoder` of its own, T+1 packets numbered from 0, the picture after the last action included; stats:
        observation key -> `stats.image_stats` of a sample of pictures, otherwise some are decoded again for it.
        Raises RealrlError as `append`, and when packets are not that or differ from the dataset in size, codec or rate.
        """
        return self._append([_Incoming(episode, {f"observation.{k}": x for k, x in episode.obs.items()}, None,
                                   {f"observation.{k}": (v[0], list(v[1])) for k, v in videos.items()},
                                   {f"observation.{k}": s for k, s in (stats or {}).items()})])[0]

    def _encode(self, take: _Incoming) -> None:
        films = take.films or {}
        for name in films:
            take.stats[name] = image_stats(films[name][sampled_frames(len(take.episode))])
        if films:
            orders = [(film, self._codec(name)) for name, film in films.items()]
            take.encoded = dict(zip(films, footage.encode(orders, self.fps), strict=True))

    def _codec(self, camera: str) -> Codec:
        told = (self._info["features"].get(camera, {}).get("info") or {}).get("video.codec")
        return next((codec for codec in video.CODECS if codec == told), self.codec)

    def _checked(self, takes: Sequence[_Incoming]) -> tuple[Info, list[dict[str, Array]], list[str], Array]:
        """(features, columns of each, task texts, first frame of each and of the next) if all of them may join, else RealrlError."""
        first, starts = len(self), self.frames + np.cumsum([0, *(len(t.episode) for t in takes)])
        tasks = list(dict.fromkeys([*self._tasks, *(t.episode.task for t in takes)]))
        columns = [schema.columns(t.episode, t.numbers, self.fps, first + i, int(starts[i]), tasks.index(t.episode.task))
                   for i, t in enumerate(takes)]
        features: Info = self._info["features"] if first else schema.features(columns[0]) | {
            name: footage.feature(f"{self.dir}: {name}", (takes[0].films or {}).get(name), (takes[0].encoded.get(name) or (None,))[0])
            for name in takes[0].films or takes[0].encoded}
        for i, take in enumerate(takes):
            where = f"{self.dir}: episode {first + i} (number {i} of this append)"
            schema.validate(take.episode, where, columns[i], take.films, features)
            if take.films is None:
                schema.same_names(where, take.encoded, tables.cameras(features))
            for name, encoded in take.encoded.items():
                footage.check_encoded(where, name, encoded, len(take.episode), features[name], float(self._info["fps"]))
        return features, columns, tasks, starts

    def _append(self, takes: Sequence[_Incoming]) -> range:
        with self._locked():
            first = len(self)
            features, columns, tasks, starts = self._checked(takes)
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

    def _publish_episodes(self, takes: Sequence[_Incoming], columns: Sequence[dict[str, Array]], starts: Array) -> None:
        """Video files and data file, then the episodes file that makes them count, then what this object remembers."""
        if self._stats is None:
            self._stats = stored_stats(self.dir, self._info["features"], self.frames)
        first, data_key, row_key, stats = len(self), self._next_data_key(), self._next_row_key(), self._stats
        filmed, last_films = self._publish_films(takes)
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
        self._from, self._to = np.append(self._from, starts[:-1]), np.append(self._to, starts[1:])
        self._chunk, self._file = (np.append(x, np.full(len(takes), k)) for x, k in zip((self._chunk, self._file), data_key, strict=True))

    def _publish_films(self, takes: Sequence[_Incoming]) -> tuple[list[dict[str, Any]], dict[str, FileKey]]:
        """One video file a camera; (what each episode's row says of them, their numbers). Fills in statistics that are missing."""
        rows: list[dict[str, Any]] = [{} for _ in takes]
        keys = {camera: self._next_key(self._last_films.get(camera)) for camera in self._cameras}
        for camera, key in keys.items():
            header, packets, places = footage.joined([t.encoded[camera] for t in takes], [len(t.episode) for t in takes])
            path = schema.video_file(self.dir, self._info, camera, key)
            compaction.set_aside(path)
            publish(path, partial(video.mux, header=header, packets=packets))
            for row, take, place in zip(rows, takes, places, strict=True):
                values = (*key, place.start, place.stop, place.last)
                row |= {f"videos/{camera}/{name}": value for name, value in zip(tables.VIDEO_FIELDS, values, strict=True)}
                if camera not in take.stats:
                    take.stats[camera] = footage.stats(path, place, len(take.episode), self.fps)
        return rows, keys

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
        self._info = schema.read_info(self.dir)
        for _ in range(3):
            with contextlib.suppress(FileNotFoundError):  # compacted away by another process since it was listed
                files = tables.episode_files(self.dir)
                self._tables = {p: self._tables[p] if p in self._tables else tables.read_rows(p) for p in files}
                break
        self._stats, self._rows = None, None
        self._tasks = tables.read_tasks(self.dir, int(self.rows["length"].to_numpy().sum()))
        index, self._from, self._to, self._chunk, self._file = (self.rows[name].to_numpy() for name in (
            "episode_index", "dataset_from_index", "dataset_to_index", "data/chunk_index", "data/file_index"))
        if not (np.array_equal(index, np.arange(len(index))) and (self._to > self._from).all() and (self._from >= 0).all()):
            raise RealrlError(f"{self.dir}/meta/episodes does not number its episodes 0..{len(self) - 1}; "
                              f"run `realrl data check {self.dir}`")
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
