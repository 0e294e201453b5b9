"""LeRobot's dataset layout 2.x: one parquet and one mp4 a camera for every episode, descriptions in JSON lines. Never written.

Not only imported: `open_dataset` opens it to read episodes and pictures by their number, as a `Store` does.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from realrl.data import footage, schema, tables
from realrl.data.errors import DAMAGED, line
from realrl.data.footage import Place
from realrl.data.formats.common import Imported
from realrl.data.labels import Labels
from realrl.data.schema import Info
from realrl.data.store import Recordings, Store
from realrl.files import inside, within
from realrl.types import Array, Episode, RealrlError

NAME = "lerobot-v2"
DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"


def open_dataset(directory: str | Path) -> Recordings:
    """A dataset of LeRobot's version 3 (a Store), or of version 2.x to read only.

    Raises RealrlError for any other version and for folders that hold no dataset.
    """
    return Legacy(directory) if _version(Path(directory)).startswith("v2.") else Store.open(directory)


def detect(path: Path) -> bool:
    """Whether it is the folder of such a dataset."""
    try:
        return path.is_dir() and _version(path).startswith("v2.")
    except (RealrlError, OSError):
        return False


def read(path: Path, *, images: bool = True) -> Imported:
    """The episodes of a dataset of version 2.x. images: false skips the cameras. Raises RealrlError."""
    found = Legacy(path)
    return Imported((found.tasks or [""])[0], found.fps, str(found.info.get("robot_type") or "unknown"),
                    (found.read([i], images)[0] for i in range(len(found))), count=len(found))


def _version(directory: Path) -> str:
    return str(schema.read_json(directory).get("codebase_version"))


class Legacy:
    """A folder of episodes in version 2.0 or 2.1, to read as a `Store` is read.

    Raises RealrlError when its descriptions are missing, damaged, or do not number the episodes 0..N-1.
    """

    def __init__(self, directory: str | Path) -> None:
        self.dir = Path(directory)
        self.labels = Labels(self.dir, lambda: self.rows)
        self._info = schema.read_json(self.dir)
        path = self.dir / "meta/info.json"
        if not str(self._info.get("codebase_version")).startswith("v2."):
            raise RealrlError(f"{path}: codebase_version is {self._info.get('codebase_version')!r}, wanted v2.x; open it with "
                              "realrl.data.formats.open_dataset")
        schema.check_info(path, self._info, {})
        self._chunks = self._info.get("chunks_size", 1000)
        if not (isinstance(self._chunks, int) and self._chunks > 0):
            raise RealrlError(f"{path}: chunks_size is {self._chunks!r}, must be a whole number above 0; restore the file from a copy")
        self._rows = self._lines("episodes.jsonl", {"episode_index": int, "length": int})
        self._tasks = [str(line["task"]) for line in self._lines("tasks.jsonl", {"task_index": int, "task": str})]

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def frames(self) -> int:
        """Control steps in all episodes together."""
        return sum(row["length"] for row in self._rows)

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
        """A copy of info.json."""
        return copy.deepcopy(self._info)

    @property
    def cameras(self) -> list[str]:
        """Observation keys that are kept as video."""
        return [name.removeprefix("observation.") for name in self._cameras]

    @property
    def _cameras(self) -> list[str]:
        return [name for name in tables.cameras(self._info["features"]) if name.startswith("observation.")]

    @property
    def rows(self) -> pa.Table:
        """What identifies the episodes, see `realrl.data.side`."""
        texts = [[str(t) for t in row.get("tasks") or []] for row in self._rows]
        return pa.table({"length": [row["length"] for row in self._rows], "tasks": pa.array(texts, pa.list_(pa.string()))})

    def read(self, indices: Sequence[int] | None = None, images: bool = True) -> list[Episode]:
        """Episodes by index (all by default), in that order. images: False leaves cameras out, and needs no video file.

        Raises RealrlError for an index that is not there and for files that are missing, damaged or short.
        """
        picked = list(range(len(self))) if indices is None else [int(i) for i in indices]
        if wrong := [i for i in picked if not 0 <= i < len(self)]:
            raise RealrlError(f"{self.dir} holds {len(self)} episodes, there is no number {wrong[0]}; count from 0")
        return [self._episode(i, images) for i in picked]

    def pictures(self, episode: int, camera: str) -> tuple[Path, Array]:
        """Where the pictures of an observation key lie: the mp4, and the second in it of each of the T+1 observations, [T+1]."""
        name = f"observation.{camera}"
        if not 0 <= episode < len(self) or name not in self._cameras:
            raise RealrlError(f"{self.dir} has no camera {camera!r} in an episode {episode}; it has {len(self)} episodes and the cameras "
                              f"{', '.join(self.cameras) or '(none)'}")
        length, path = self._rows[episode]["length"], self._path(self._info.get("video_path") or VIDEO_PATH, episode, name)
        if length > (path.stat().st_size if os.path.exists(path) else 2**24):  # a picture takes a byte at least
            raise RealrlError(f"{path} cannot hold {length} pictures, as meta/episodes.jsonl has it; restore them from a copy")
        return path, self._place(length).times(length, self._info["fps"])

    def _episode(self, index: int, images: bool) -> Episode:
        path = self._path(self._info.get("data_path") or DATA_PATH, index)
        (row,) = self.labels.onto([dict(self._rows[index])], [index])
        try:
            columns = tables.read_frames(path, self._info["features"], 0, row["length"], pictures=images)
            films = {name: footage.read(self._path(self._info.get("video_path") or VIDEO_PATH, index, name), self._place(row["length"]),
                                        row["length"], self._info["fps"]) for name in self._cameras if images}
        except FileNotFoundError as error:
            hint = " (images=False reads the numbers alone)" if str(error.filename).endswith(".mp4") else ""
            raise RealrlError(f"{error.filename or path} is missing; restore it from a copy{hint}") from error
        except OSError as error:
            raise RealrlError(f"{path} or its videos are not readable ({line(error)}); restore them from a copy") from error
        try:
            return schema.episode(columns, row, films, self._tasks)
        except (*DAMAGED, RecursionError) as error:
            raise RealrlError(f"{path} does not fit info.json ({line(error)}); restore it from a copy") from error

    def _place(self, length: int) -> Place:
        return Place(0.0, length / float(self._info["fps"]), None)

    def _path(self, template: Any, index: int, camera: str = "") -> Path:
        path = inside(self.dir, str(template), episode_chunk=index // self._chunks, episode_index=index, video_key=camera)
        if not str(path.relative_to(self.dir)).isprintable():
            raise RealrlError(f"{self.dir}/meta/info.json: the path {template!r} of {camera!r} is not printable; rename it")
        return _no_pipe(path)

    def _lines(self, name: str, wanted: dict[str, type]) -> list[dict[str, Any]]:
        """A file of JSON lines, sorted by its first wanted entry, which must count from 0."""
        path = self.dir / "meta" / name
        within(self.dir, path)
        try:  # not splitlines, which also cuts at characters that a JSON text may hold, such as U+2028
            lines = [json.loads(text) for text in _no_pipe(path).read_text().split("\n") if text.strip()]
        except FileNotFoundError as error:
            raise RealrlError(f"{path} is missing; restore it from a copy") from error
        except (OSError, ValueError, RecursionError) as error:
            raise RealrlError(f"{path} is not readable ({line(error)}); restore it from a copy") from error
        first = next(iter(wanted))
        if any(not isinstance(x, dict) or any(type(x.get(k)) is not kind for k, kind in wanted.items()) for x in lines):
            raise RealrlError(f"{path}: a line lacks {' or '.join(wanted)}; restore it from a copy")
        lines.sort(key=lambda x: int(x[first]))
        if [x[first] for x in lines] != list(range(len(lines))) or any(x.get("length", 1) < 1 for x in lines):
            raise RealrlError(f"{path} does not count {first} from 0 to {len(lines) - 1} with lengths above 0; restore it from a copy")
        for x in lines:
            if not isinstance(x.get("tasks", []), list):
                raise RealrlError(f"{path}: tasks is no list; restore it from a copy")
        return lines


def _no_pipe(path: Path) -> Path:
    """The path again. Raises RealrlError for a folder, and for a pipe, which would be waited for without end."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise RealrlError(f"{path} is no file; restore it from a copy")
    return path
