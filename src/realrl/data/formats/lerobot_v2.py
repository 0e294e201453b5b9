"""LeRobot's dataset layout 2.x: one parquet and one mp4 a camera for every episode, descriptions in JSON lines. Never written.

`lerobot` opens it, to read episodes and pictures by their number as a `Store` does, and imports it.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from realrl.data import depth, errors, footage, schema, tables
from realrl.data.errors import DAMAGED, line
from realrl.data.footage import Place
from realrl.data.labels import Labels
from realrl.data.reading import PLAIN, Reading, absent, imported, left_out, require_action, seen
from realrl.data.schema import Info
from realrl.data.words import OUTCOMES
from realrl.files import inside, read_plain, within
from realrl.types import Array, Episode, RealrlError

DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"


class Legacy:
    """A folder of episodes in version 2.0 or 2.1, to read as a `Store` is read. They are numbered from 0 in the order of their own
    numbers, which may have holes; those without a frame are left out.

    Raises RealrlError when its descriptions are missing or damaged.
    """

    def __init__(self, directory: str | Path, reading: Reading = PLAIN) -> None:
        self.dir = Path(directory)
        self.labels = Labels(self.dir, lambda: self.rows)
        self._info = schema.read_json(self.dir) | dict(reading.paths)
        path = self.dir / "meta/info.json"
        if not str(self._info.get("codebase_version")).startswith("v2."):
            raise RealrlError(f"{path}: codebase_version is {self._info.get('codebase_version')!r}, wanted v2.x; open it with "
                              "realrl.data.formats.open_dataset")
        schema.check_info(path, self._info, {})
        self._info = seen(self.dir, self._info)
        self._reading = reading.checked(self.dir, self._info)
        self._chunks = self._info.get("chunks_size", 1000)
        if not (isinstance(self._chunks, int) and self._chunks > 0):
            raise RealrlError(f"{path}: chunks_size is {self._chunks!r}, must be a whole number above 0; correct it")
        rows = list(self._lines("episodes.jsonl", {"episode_index": int, "length": int}))
        self._rows = [row for row in rows if row["length"] > 0]
        self.empty = [int(row["episode_index"]) for row in rows if row["length"] < 1]
        self._notes = left_out(self.empty)
        told = self._lines("tasks.jsonl", {"task_index": int, "task": str}) if (self.dir / "meta/tasks.jsonl").exists() else ()
        texts = {int(x["task_index"]): str(x["task"]) for x in told}  # without that file episodes say themselves what they are about
        if max(texts, default=0) >= tables.MOST_TASKS:
            raise RealrlError(f"{self.dir}/meta/tasks.jsonl: there is no task number {max(texts)}; correct it")
        self._tasks = [texts.get(i, "") for i in range(max(texts, default=-1) + 1)]

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def frames(self) -> int:
        """Control steps in all episodes together."""
        return sum(row["length"] for row in self._rows)

    @property
    def lengths(self) -> Array:
        """Control steps of each episode, [N]."""
        return np.array([row["length"] for row in self._rows], np.int64)

    @property
    def notes(self) -> list[str]:
        """What a person should know who reads it."""
        return [*self._reading.notes, *self._notes]

    @property
    def fps(self) -> int | float:
        """Control steps a second."""
        return schema.rate(self._info)

    @property
    def tolerance(self) -> float:
        """Seconds that a picture may be off its frame's time."""
        return self._reading.close(self.fps)

    @property
    def tasks(self) -> list[str]:
        """Task texts; the position is the task_index."""
        return list(self._tasks)

    @property
    def info(self) -> Info:
        """A copy of info.json, with the columns as they are read."""
        return copy.deepcopy(self._info | {"features": self._reading.features(self._info)})

    @property
    def cameras(self) -> list[str]:
        """Observation keys that are kept as video."""
        return [name.removeprefix("observation.") for name in self._reading.films(self._info)]

    @property
    def rows(self) -> pa.Table:
        """What identifies the episodes, see `realrl.data.side`."""
        texts = [[str(t) for t in row.get("tasks") or []] for row in self._rows]
        return pa.table({"length": [row["length"] for row in self._rows], "tasks": pa.array(texts, pa.list_(pa.string()))})

    def as_version_3(self) -> tuple[Info, pa.Table]:
        """info.json and the episodes table that version 3 would have of these files, for who reads only those; nothing is written.

        Every file holds one episode. The running number of frames, which nobody reads, is left out of the columns.
        """
        info, rows, length = self.info, self.rows, self.lengths
        numbers = np.array([row["episode_index"] for row in self._rows], np.int64)
        told = {"episode_index": numbers, "dataset_from_index": np.cumsum(length) - length, "dataset_to_index": np.cumsum(length),
                "data/chunk_index": numbers // self._chunks, "data/file_index": numbers}
        for camera in tables.cameras(info["features"]):
            told |= {f"videos/{camera}/chunk_index": numbers // self._chunks, f"videos/{camera}/file_index": numbers,
                     f"videos/{camera}/from_timestamp": np.zeros(len(self)), f"videos/{camera}/to_timestamp": length / float(self.fps)}
        if any(name in row for row in self._rows for name in OUTCOMES):
            told["success"] = pa.array([schema.outcome(row | {schema.LABEL: None}) for row in self._rows], pa.bool_())
        for name, column in told.items():
            rows = rows.append_column(name, pa.array(column))
        for name, usual in (("data_path", DATA_PATH), ("video_path", VIDEO_PATH)):
            path = str(info.get(name) or usual)
            info[name] = path.replace("{episode_chunk", "{chunk_index").replace("{episode_index", "{file_index")
        if self._reading.joined:  # in the files they lie apart
            info["features"] = copy.deepcopy(self._info["features"])
        info["features"].pop("index", None)
        return info, rows

    def read(self, indices: Sequence[int] | None = None, images: bool = True) -> list[Episode]:
        """Episodes by index (all by default), in that order. images: False leaves cameras out, and needs no video file.

        Raises RealrlError for an index that is not there and for files that are missing, damaged or short.
        """
        picked = list(range(len(self))) if indices is None else [int(i) for i in indices]
        if wrong := [i for i in picked if not 0 <= i < len(self)]:
            raise RealrlError(f"{self.dir} holds {len(self)} episodes, there is no number {wrong[0]}; count from 0")
        return [self._episode(i, images) for i in picked]

    def columns(self, episode: int, pictures: bool = True) -> dict[str, Array]:
        """All columns of an episode that are numbers, each [T, ...]. pictures: also those that are pictures in cells."""
        require_action(self.dir, self._reading.features(self._info))
        path, length = self.table(episode), self._rows[episode]["length"]
        try:
            columns = tables.read_frames(path, self._reading.stored(self._info), 0, length, pictures=pictures, whole=True)
        except FileNotFoundError as error:
            raise self._absent(path) from error
        except OSError as error:
            raise RealrlError(f"{path} is not readable ({line(error)}); mend the permissions or the disk") from error
        return self._reading.named(columns)

    def build(self, index: int, columns: dict[str, Array], films: Mapping[str, Array]) -> Episode:
        """The episode made of its `columns` and its films, observation.<key> -> [T+1, ...]."""
        (row,) = self.labels.onto([dict(self._rows[index])], [index])
        try:
            return schema.episode(columns, row, films, self._tasks, float(self.fps))
        except (*DAMAGED, RecursionError) as error:
            raise RealrlError(f"{self.table(index)} does not fit info.json ({line(error)}); "
                              f"{errors.mend(self.table(index))}") from error

    def pictures(self, episode: int, camera: str, stamps: Array | None = None) -> tuple[Path, Array]:
        """Where the pictures of an observation key lie: the mp4, and the second in it of each of the T+1 observations, [T+1].

        stamps: the episode's timestamps [T] where they are known already.
        """
        path, length = self.film(episode, camera), self._rows[episode]["length"]
        if length > (path.stat().st_size if os.path.exists(path) else 2**24):  # a picture takes a byte at least
            raise RealrlError(f"{path} cannot hold {length} pictures, as meta/episodes.jsonl has it; {errors.mend(path)}")
        if stamps is None:
            stamps = self._stamps(episode)
        place = Place(0.0, length / float(self.fps), None)
        return path, footage.seconds(path, place, length, float(self.fps), stamps, self.tolerance)

    def film(self, episode: int, camera: str) -> Path:
        """The mp4 of an episode's observation key, whether it is there or not."""
        return self._path("video_path", VIDEO_PATH, episode, self._reading.film(self, self._info, episode, camera))

    def table(self, episode: int) -> Path:
        """The parquet file of an episode, whether it is there or not."""
        return self._path("data_path", DATA_PATH, episode)

    def _episode(self, index: int, images: bool) -> Episode:
        columns, films = self.columns(index, images), {}
        for name, theirs in self._reading.films(self._info).items() if images else ():
            path, seconds = self.pictures(index, name.removeprefix("observation."), columns.get("timestamp"))
            try:
                coding = depth.coding(name, self._info["features"][theirs])
                films[name] = footage.read(path, seconds, self.tolerance, coding)
            except FileNotFoundError as error:
                raise self._absent(path) from error
            except OSError as error:
                raise RealrlError(f"{path} is not readable ({line(error)}); mend the permissions or the disk") from error
        return self.build(index, columns, films)

    def _stamps(self, episode: int) -> Array | None:
        """The timestamps of an episode [T], where its table has any."""
        told = tables.stored(self._info["features"]).get("timestamp")
        try:
            return None if told is None else tables.read_frames(self.table(episode), {"timestamp": told})["timestamp"].reshape(-1)
        except FileNotFoundError:  # who reads its numbers will say so
            return None

    # ---- where files lie

    def _path(self, name: str, usual: str, episode: int, camera: str = "") -> Path:
        template, index = str(self._info.get(name) or usual), self._rows[episode]["episode_index"]
        try:
            path = inside(self.dir, template, episode_chunk=index // self._chunks, episode_index=index, video_key=camera)
        except RealrlError as error:
            if "leads out" in str(error):
                raise
            raise RealrlError(f"{str(error).split('; ')[0]}; say how the files are called: "
                              f"{imported('--option', f'{name}={usual}')}") from error
        if not str(path.relative_to(self.dir)).isprintable():
            raise RealrlError(f"{self.dir}/meta/info.json: the path {template!r} of {camera!r} is not printable; rename it")
        return _no_pipe(path)

    def _absent(self, path: Path) -> RealrlError:
        """A file that is not where info.json says."""
        return absent(self.dir, path, self._info, {"data_path": DATA_PATH, "video_path": VIDEO_PATH})

    def _lines(self, name: str, wanted: dict[str, type]) -> Iterator[dict[str, Any]]:
        """A file of JSON lines, sorted by its first wanted entry, which counts from 0 and no two lines share."""
        path = self.dir / "meta" / name
        within(self.dir, path)
        errors.refuse_pointer(path)
        try:  # not splitlines, which also cuts at characters that a JSON text may hold, such as U+2028
            texts = read_plain(_no_pipe(path)).decode("utf-8-sig").split("\n")
            lines = [json.loads(text) for text in dict.fromkeys(map(str.strip, texts)) if text]  # what was written twice counts once
        except FileNotFoundError as error:
            raise RealrlError(f"{path} is missing; fetch the set again, or restore the file from a copy") from error
        except (OSError, ValueError, RecursionError) as error:
            raise RealrlError(f"{path} is not readable ({line(error)}); fetch it again, or restore it from a copy") from error
        first = next(iter(wanted))
        for x in lines:  # as other tools write them: 25.0 frames, one task's text by itself
            if isinstance(x, dict):
                x |= {k: int(v) for k, v in x.items() if wanted.get(k) is int and isinstance(v, float) and v.is_integer()}
                x |= {"tasks": [x["tasks"]]} if isinstance(x.get("tasks"), str) else {}
        if any(not isinstance(x, dict) or any(type(x.get(k)) is not kind for k, kind in wanted.items()) for x in lines):
            raise RealrlError(f"{path}: a line lacks {' or '.join(wanted)}; correct it, or fetch it again")
        numbers = sorted(x[first] for x in lines)
        if any(n < 0 for n in numbers) or len(set(numbers)) < len(numbers):
            raise RealrlError(f"{path}: {first} is below 0, or the same in two lines; correct it, or fetch it again")
        if any(not isinstance(x.get("tasks", []), list) for x in lines):
            raise RealrlError(f"{path}: tasks is no list; correct it, or fetch it again")
        return iter(sorted(lines, key=lambda x: int(x[first])))


def _no_pipe(path: Path) -> Path:
    """The path again. Raises RealrlError for a folder, and for a pipe, which would be waited for without end."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise RealrlError(f"{path} is no file; put a copy of the file there")
    return path
