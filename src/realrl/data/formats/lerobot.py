"""LeRobot's datasets, versions 2.0 to 3.0: opened where they lie, or made into a dataset of ours. Both take the same options.

An import keeps the numbers as they are, what they are called, and the cameras' packets, wherever those can stand alone; what it cannot
keep it says.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa

from realrl.data import depth, footage, schema, tables, video
from realrl.data.errors import is_pointer, refuse_pointer
from realrl.data.footage import Encoded
from realrl.data.formats import common
from realrl.data.formats.common import Imported
from realrl.data.formats.lerobot_v2 import Legacy
from realrl.data.reading import INDICES, Reading, Recordings, elsewhere, imported, proposal, renamed
from realrl.data.schema import ALIASES, Info
from realrl.data.store import Store
from realrl.data.video import Header, Packet
from realrl.types import Array, Episode, RealrlError, Source

NAME = "lerobot"
MISSING = ("error", "episodes", "camera")
TOLD = {"source", *ALIASES["intervention"], *ALIASES["intervene_action"]}  # columns that say who acted
FILM, KEPT = "film/", "kept/"  # entries of `Episode.extra` on their way: packets of a camera, columns that nobody here reads


def detect(path: Path) -> bool:
    """Whether it is the folder of a LeRobot dataset, whole or not."""
    return (path / "meta/info.json").is_file()


def open_dataset(directory: str | Path, *, names: Mapping[str, str] | None = None, cameras: Sequence[str] | None = None,
                 missing: str = "error", tolerance: float | None = None, data_path: str | None = None, video_path: str | None = None
                 ) -> Recordings:
    """A dataset of LeRobot's version 3 (a Store, if nothing is asked for), or of version 2.x to read only.

    names: our column -> theirs, e.g. {"action": "actions", "observation.state": "state"}; cameras: the observation keys to read, all by
    default; missing: what to do without a video (or without an episode's table): "error", leave out its "episodes", or the "camera";
    tolerance: seconds that a picture may be off its frame's time, half a frame by default (`footage.tolerance` says why); data_path,
    video_path: how the files are called, where info.json is wrong. Raises RealrlError for any other version, for folders that hold no
    dataset, and for names and cameras that are not there.
    """
    if missing not in MISSING:
        raise RealrlError(f"missing is {missing!r}, must be one of {', '.join(MISSING)}")
    paths = {name: text for name, text in (("data_path", data_path), ("video_path", video_path)) if text is not None}
    data = _opened(Path(directory), reading := Reading(dict(names or {}), cameras, tolerance, paths))
    return data if missing == "error" else _complete(data, reading, missing)


def _opened(directory: Path, reading: Reading) -> Recordings:
    old = str(schema.read_json(directory).get("codebase_version")).startswith("v2.")
    return Legacy(directory, reading) if old else Store.open(directory, reading)


def described(data: Recordings) -> tuple[Info, pa.Table]:
    """info.json and the episodes' rows of a whole dataset, of version 2 as version 3 would have them."""
    assert isinstance(data, Legacy | Store), "some of its episodes have no rows of their own"
    return data.as_version_3() if isinstance(data, Legacy) else (data.info, data.rows)


# ---- some of it


class Some:
    """Some episodes of a dataset, numbered from 0; otherwise as it is."""

    def __init__(self, data: Recordings, numbers: Sequence[int], note: str) -> None:
        self.dir, self.labels, self._data, self._numbers, self._note = data.dir, data.labels, data, list(numbers), note

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def frames(self) -> int:
        """Control steps in all episodes together."""
        return int(self.lengths.sum())

    @property
    def lengths(self) -> Array:
        """Control steps of each episode, [N]."""
        return np.asarray(self._data.lengths[self._numbers])

    @property
    def notes(self) -> list[str]:
        """What a person should know who reads it."""
        return [*self._data.notes, self._note]

    @property
    def fps(self) -> int | float:
        """Control steps a second."""
        return self._data.fps

    @property
    def tolerance(self) -> float:
        """Seconds that a picture may be off its frame's time."""
        return self._data.tolerance

    @property
    def tasks(self) -> list[str]:
        """Task texts; the position is the task_index."""
        return self._data.tasks

    @property
    def info(self) -> Info:
        """info.json, with counts of what is left."""
        return self._data.info | {"total_episodes": len(self), "total_frames": self.frames}

    @property
    def cameras(self) -> list[str]:
        """Observation keys that are kept as video."""
        return self._data.cameras

    def read(self, indices: Sequence[int] | None = None, images: bool = True) -> list[Episode]:
        """Episodes by index, all by default, see `Store.read`."""
        picked = range(len(self)) if indices is None else indices
        if wrong := [i for i in picked if not 0 <= i < len(self)]:
            raise RealrlError(f"{self.dir}: {len(self)} episodes are read of it, there is no number {wrong[0]}; count from 0")
        return self._data.read([self._numbers[i] for i in picked], images)

    def columns(self, episode: int, pictures: bool = True) -> dict[str, Array]:
        """See `Store.columns`."""
        return self._data.columns(self._numbers[episode], pictures)

    def build(self, index: int, columns: dict[str, Array], films: Mapping[str, Array]) -> Episode:
        """See `Store.build`."""
        return self._data.build(self._numbers[index], columns, films)

    def pictures(self, episode: int, camera: str, stamps: Array | None = None) -> tuple[Path, Array]:
        """See `Store.pictures`."""
        return self._data.pictures(self._numbers[episode], camera, stamps)

    def film(self, episode: int, camera: str) -> Path:
        """See `Store.film`."""
        return self._data.film(self._numbers[episode], camera)

    def table(self, episode: int) -> Path:
        """See `Store.table`."""
        return self._data.table(self._numbers[episode])


def _complete(data: Recordings, reading: Reading, missing: str) -> Recordings:
    """What is whole of a dataset, see `open_dataset`."""
    gone = unfilmed(data)
    if missing == "camera":
        if not gone:
            return data
        left = _opened(data.dir, replace(reading, cameras=[camera for camera in data.cameras if camera not in gone]))
        told = ", ".join(f"{camera} ({len(lost)} of {len(data)} videos are missing)" for camera, lost in gone.items())
        return Some(left, range(len(left)), f"left out: {told}")
    lost = {i for numbers in gone.values() for i in numbers} | {i for i in range(len(data)) if not _there(data, i)}
    if len(lost) == len(data):
        cameras = ", ".join(camera for camera, numbers in gone.items() if len(numbers) == len(data))
        what = f"no video of {cameras} is there" if cameras else "every episode lacks a file"
        raise RealrlError(f"{data.dir}: {what}, so no episode would be left; leave the camera out: "
                          f"{imported('--option', 'missing=camera')}")
    if not lost:
        return data
    told = ", ".join(map(str, sorted(lost)[:9])) + (", ..." if len(lost) > 9 else "")
    return Some(data, [i for i in range(len(data)) if i not in lost], f"left out: {len(lost)} episodes that lack a file ({told})")


def unfilmed(data: Recordings) -> dict[str, list[int]]:
    """Cameras of which a video is missing, and the episodes that lack it."""
    gone = {camera: [i for i in range(len(data)) if not _there(data, i, camera)] for camera in data.cameras}
    return {camera: lost for camera, lost in gone.items() if lost}


def changing(data: Recordings) -> list[int]:
    """The episodes inside which the task changes, by their numbers in the tables. Files that cannot be read are passed over."""
    told = {name: f for name, f in data.info["features"].items() if name in ("task_index", "episode_index")}
    if len(set(data.tasks)) < 2 or len(told) < 2:
        return []
    found = set[int]()
    for path in dict.fromkeys(data.table(i) for i in range(len(data))):
        with contextlib.suppress(RealrlError, OSError):
            task, owner = (x.reshape(-1) for _, x in sorted(tables.read_frames(path, told).items(), reverse=True))
            found |= {*owner[1:][(task[1:] != task[:-1]) & (owner[1:] == owner[:-1])].tolist()}
    return sorted(found)


def astray(data: Recordings, camera: str, episode: int) -> None:
    """Raise RealrlError where a video that is missed is not gone: git-lfs has not fetched it, or such files lie elsewhere."""
    try:
        path = data.film(episode, camera)
    except RealrlError:  # meta/episodes lists none
        return
    refuse_pointer(path)
    if told := elsewhere(data.dir, path, data.info, str(data.info.get("video_path")), "video_path"):
        raise RealrlError(f"{path} is missing, but such files lie elsewhere; {told}")


def _there(data: Recordings, episode: int, camera: str | None = None) -> bool:
    """Whether an episode's video, or its table, is there. Raises RealrlError for one that a link has led out of the folder."""
    try:
        path = data.table(episode) if camera is None else data.film(episode, camera)
    except RealrlError as error:  # meta/episodes lists none
        if "leads out" in str(error):
            raise
        return False
    return os.path.isfile(path) and not is_pointer(path)


# ---- the import


def read(path: Path, *, task: str | None = None, images: bool = True, cameras: Sequence[str] | None = None,
         names: Mapping[str, str] | None = None, state: Sequence[str] | None = None, success: bool = False, last: str = "repeat",
         source: str | None = None, action_range: tuple[float, float] | None = None, keep: Sequence[str] = (), missing: str = "error",
         tolerance: float | None = None, data_path: str | None = None, video_path: str | None = None, packets: bool = False) -> Imported:
    """The episodes of a LeRobot dataset of version 2.0, 2.1 or 3.0.

    task: its text, by default what each episode says; images: false skips the cameras; cameras, names, missing, tolerance, data_path,
    video_path: as for `open_dataset`; state: the observations of numbers that make up obs["state"]; success: true counts the end of every
    episode as one; last: "repeat" lets the last observation stand for the one after the last action where none was recorded, "drop" leaves
    that action out; source: who acted, "human", "policy" or "script", where the set does not say; action_range: (low, high) mapped onto
    [-1, 1]; keep: columns to keep that nobody here reads; packets: cameras come as packets in `extra`, where they can be copied, see
    `taken_out`. Raises RealrlError.
    """
    data = open_dataset(path, names=names, cameras=cameras if images else (), missing=missing if images or missing != "camera" else "error",
                        tolerance=tolerance, data_path=data_path, video_path=video_path)
    plan = _Plan(data, images, common.check_last(last), common.check_range(action_range), success, task, packets,
                 None if source is None else common.source_of(source),
                 [state] if isinstance(state, str) else state, [keep] if isinstance(keep, str) else list(keep))
    info, notes = data.info, [*data.notes, *plan.left_out()]
    if found := proposal(info["features"]):
        notes.append(f"{', '.join(found.values())} might be wanted as {', '.join(found)}: {renamed(found)}")
    if cells := [name for name, f in info["features"].items() if f["dtype"] == "image" and images]:
        notes.append(f"{', '.join(cells)}: pictures in cells become video")
    meta = {"names": {name: f["names"] for name, f in tables.stored(info["features"]).items() if f.get("names")}}
    return Imported(task or (data.tasks or [""])[0], data.fps, str(info.get("robot_type") or "unknown"), plan.episodes(notes), notes, meta,
                    len(data))


@dataclass
class _Plan:
    """One import. codecs: of the cameras that are copied, "" for one that is not; again: cameras -> episodes that are encoded again."""

    data: Recordings
    images: bool
    last: common.Last
    span: tuple[float, float] | None
    success: bool
    task: str | None
    packets: bool
    source: Source | None
    state: Sequence[str] | None
    keep: list[str]
    codecs: dict[str, str] = field(default_factory=dict)
    again: dict[str, int] = field(default_factory=dict)

    def left_out(self) -> list[str]:
        """A note that names the columns which do not come along. Raises RealrlError for one to keep that is not there."""
        known = {*INDICES, "action", "time", "source", "starts_plan", *(alias for names in ALIASES.values() for alias in names)}
        features = self.data.info["features"]
        numbers = tables.stored(features)
        other = [name for name in features if (name not in known or name not in numbers) and not name.startswith("observation.")]
        common.only(self.keep, [name for name in other if name in numbers], "column of numbers", self.data.dir)
        texts = [name for name, f in features.items() if name not in numbers and f["dtype"] not in ("video", "image")]
        other += [name for name in texts if name.startswith("observation.")]
        if not (lost := [name for name in other if name not in self.keep]):
            return []
        able = [name for name in lost if name in numbers]
        hint = f"; --option keep={','.join(able)} keeps {'them' if len(able) > 1 else 'it'}" if able else ""
        return [f"left out: {', '.join(lost)} (columns that nothing here reads){hint}"]

    def episodes(self, notes: list[str]) -> Iterator[Episode]:
        """All of them, lazily; what shows only then is added to the notes."""
        changing = []
        low, high = np.inf, -np.inf
        for i in range(len(self.data)):
            columns = self.data.columns(i, pictures=self.images)
            tasks = columns.get("task_index", np.zeros(1)).reshape(-1)
            if (tasks != tasks[0]).any():
                changing.append(f"{i}: " + ", ".join(repr(self._text(t)) for t in dict.fromkeys(tasks.tolist())))
            films, copied = self._films(i, columns) if self.images else ({}, {})
            episode = self._finished(self.data.build(i, columns, films))
            if self.source is not None and not TOLD & columns.keys():
                episode.source[:] = self.source
            low, high = common.wider(low, high, episode.action)
            episode.action, episode.proposed = (common.scale_actions(x, self.span) if self.span else x
                                                for x in (episode.action, episode.proposed))
            episode.extra = {KEPT + name: columns[name][:len(episode)] for name in self.keep}
            for camera, encoded in copied.items():
                episode.extra |= _packed(camera, encoded)
            yield episode
        if changing:
            notes.append(f"the task changes inside {len(changing)} episodes, an episode has one here and keeps its first ({changing[0]})")
        notes += [f"{camera}: {n} of {len(self.data)} episodes are encoded again, their packets cannot stand alone in a file"
                  for camera, n in self.again.items() if n]
        if self.span:
            notes += common.range_note(low, high, self.span)

    def _text(self, number: int) -> str:
        tasks = self.data.tasks
        return tasks[number] if 0 <= number < len(tasks) else f"task {number}"

    def _finished(self, episode: Episode) -> Episode:
        """As the options want it."""
        if self.state is not None:
            there = [key for key, x in episode.obs.items() if x.dtype.kind in "biuf" and x.ndim == 2]
            episode.obs = common.with_state(episode.obs, common.only(self.state, there, "observation of numbers", self.data.dir))
        if self.last == "drop":
            if (n := len(episode) - 1) < 1:
                raise RealrlError(f"{self.data.dir} has an episode of one frame, without its last action none is left; leave out last=drop")
            cut = {name: getattr(episode, name)[:n] for name in ("action", *common.COLUMNS)}
            episode = replace(episode, obs={key: x[:n + 1] for key, x in episode.obs.items()}, terminated=False, truncated=True, **cut)
        episode.task = episode.task if self.task is None else self.task
        return common.with_success(episode) if self.success else episode

    # ---- cameras

    def _films(self, index: int, columns: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Encoded]]:
        """(pictures that were decoded, observation.<key> -> [T+1, ...], cameras that are copied, by key)."""
        films, copied = {}, {}
        features = self.data.info["features"]
        for camera in self.data.cameras:
            name = f"observation.{camera}"
            path, seconds = self.data.pictures(index, camera, columns.get("timestamp"))
            if not os.path.exists(path):
                self.data.read([index])  # says what to do
            encoded = self._copied(index, camera, path, seconds)
            if encoded is not None:
                copied[camera] = encoded
            else:
                self.again[camera] = self.again.get(camera, 0) + self.packets
                films[name] = footage.read(path, seconds, self.data.tolerance, depth.coding(name, features[name]))
        return films, copied

    def _copied(self, index: int, camera: str, path: Path, seconds: Array) -> Encoded | None:
        """An episode's packets; None where they must be encoded again, as must a whole camera whose first episode cannot be copied."""
        if not self.packets or self.codecs.get(camera) == "":
            return None
        found = self._packets(camera, path, seconds)
        if camera not in self.codecs:
            able = found is not None and (found[0].codec in video.CODECS or self._all(camera))
            self.codecs[camera] = found[0].codec if found is not None and able else ""
        return found if found is not None and found[0].codec == self.codecs[camera] else None

    def _all(self, camera: str) -> bool:
        """Whether every episode can be copied, asked of a codec that nobody encodes here."""
        return all(self._packets(camera, *self.data.pictures(i, camera)) is not None for i in range(len(self.data)))

    def _packets(self, camera: str, path: Path, seconds: Array) -> Encoded | None:
        name = f"observation.{camera}"
        if not os.path.exists(path) or depth.coding(name, self.data.info["features"][name]) is not None:
            return None  # what is coded becomes plain millimetres
        packets = video.segment(path, seconds[:-1], self.data.tolerance)
        if packets is not None and self.last != "drop" and seconds[-1] > seconds[-2]:
            packets = self._with_last(path, seconds, packets)
        if packets is None or (self.last == "drop" and packets[-1].pts != len(packets) - 1):
            return None
        with contextlib.suppress(RealrlError):  # of a codec that mp4 does not hold (VP8); damage shows when the pictures are decoded
            header = replace(video.header(path), fps=Fraction(self.data.fps).limit_denominator(1001))
            return (header, packets) if header.codec in video.CODECS or video.playable(header, packets) else None
        return None

    def _with_last(self, path: Path, seconds: Array, own: list[Packet]) -> list[Packet] | None:
        """The packets and that of the picture after the last action, which lies behind the episode, after copies of the packets that it
        needs (see `footage`) or as it comes."""
        n = len(own)
        for key in (n, max(i for i, p in enumerate(own) if p.key)):
            tail = video.segment(path, seconds[-1] - np.arange(n - key, -1, -1) / self.data.fps, self.data.tolerance)
            if tail is not None and [p.data for p in tail[:-1]] == [p.data for p in own[key:]] and own[-1].pts == n - 1:
                return [*own, Packet(tail[-1].data, n, own[0].dts + n, tail[-1].key)]
        return None


# ---- packets on their way through another process


def _packed(camera: str, encoded: Encoded) -> dict[str, Array]:
    header, packets = encoded
    about = {"codec": header.codec, "pix_fmt": header.pix_fmt, "width": header.width, "height": header.height, "encoder": header.encoder,
             "fps": [header.fps.numerator, header.fps.denominator], "extradata": header.extradata.hex(), "stub": header.stub.hex()}
    return {f"{FILM}{camera}/header": np.frombuffer(json.dumps(about).encode(), np.uint8),
            f"{FILM}{camera}/data": np.frombuffer(b"".join(p.data for p in packets), np.uint8),
            f"{FILM}{camera}/packets": np.array([[len(p.data), p.pts, p.dts, p.key] for p in packets], np.int64)}


def taken_out(episode: Episode) -> tuple[dict[str, Encoded], dict[str, Array]]:
    """(cameras that came as packets, columns to keep) of an imported episode, as `Store.append` takes them; `extra` is emptied."""
    films: dict[str, Encoded] = {}
    kept = {name.removeprefix(KEPT): x for name, x in episode.extra.items() if name.startswith(KEPT)}
    for name, x in episode.extra.items():
        if name.startswith(FILM) and name.endswith("/header"):
            camera, about = name.removeprefix(FILM).removesuffix("/header"), json.loads(x.tobytes())
            header = Header(about["codec"], about["pix_fmt"], about["width"], about["height"], Fraction(*about["fps"]),
                            bytes.fromhex(about["extradata"]), bytes.fromhex(about["stub"]), about["encoder"])
            data, told = episode.extra[f"{FILM}{camera}/data"].tobytes(), episode.extra[f"{FILM}{camera}/packets"]
            ends = np.cumsum(told[:, 0])
            films[camera] = header, [Packet(data[end - size:end], pts, dts, bool(key))
                                     for end, (size, pts, dts, key) in zip(ends.tolist(), told.tolist(), strict=True)]
    episode.extra = {}
    return films, kept
