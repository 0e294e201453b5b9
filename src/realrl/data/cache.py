"""Camera frames decoded once into memory-mapped files, so that training gathers images at the speed of memory.

A camera's cache at one size is a folder of its own: `frames-<n>.bin`, the frames of all episodes one after the other without any
header, and `index.json`, which names that file, says how many episodes of it count, and holds a fingerprint of each. Frames are
written behind the end that the index knows and synced before the index moves on (temporary file, fsync, rename), so a build that
is killed continues where the index stands, and any number of processes may read while one builds. Appended episodes extend the
file. An episode that changed, or that compaction moved, starts a new file with the episodes before it; who has mapped the old one
keeps it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from realrl.data import depth, video
from realrl.data.errors import OTHER_SIZE, mend, plain, read_json, typed
from realrl.data.schema import camera_shape
from realrl.data.store import Recordings as Recordings
from realrl.files import lock, write_json
from realrl.terminal import console
from realrl.types import Array, RealrlError

Size = tuple[int, int]  # height, width
VERSION = 1
BLOCK = 64  # frames that are resized and written at a time
COMMIT_S = 5.0  # seconds of work that a kill may cost
PATIENCE_S = 7 * 86400.0  # how long another process may take to build
EDGE = 65536  # bytes at either end of a video that its fingerprint looks at: the tables of an mp4 lie there


@dataclass(frozen=True)
class FilmTable:
    """A camera's pictures as one table: a row for each of the T + 1 observations of every episode, in the order of the dataset.

    Episode e of E owns the rows first[e] to first[e + 1]; where its last observation was not filmed the row repeats the one before.
    key: observation key; fps: control steps a second; shape: of one frame, [H, W, 3] for uint8 colours or [H, W] for uint16 depth;
    root: the dataset; paths: its videos; file [E]: which of them an episode is in; seconds [F]: when a row is shown there; first: [E + 1];
    tolerance: seconds that a picture may be off that; coding: of depth that is not kept as it is.
    """

    key: str
    fps: float
    shape: tuple[int, ...]
    root: Path
    paths: tuple[Path, ...]
    file: Array
    seconds: Array
    first: Array
    tolerance: float
    coding: depth.Coding | None

    @classmethod
    def of(cls, data: Recordings, key: str) -> FilmTable:
        """Raises RealrlError when the dataset has no such camera."""
        placed = [data.pictures(e, key) for e in range(len(data))]
        paths = {path: i for i, path in enumerate(dict.fromkeys(path for path, _ in placed))}
        name = f"observation.{key}"
        feature = data.info["features"][name]
        height, width, *_ = camera_shape(feature)
        with contextlib.suppress(RealrlError, StopIteration):  # what info.json says may be a wish; who decodes says what is damaged
            told = video.probe(next(path for path in paths if path.exists()))
            height, width = told["video.height"], told["video.width"]
        shape = (height, width) if depth.is_depth(feature) else (height, width, 3)
        return cls(key, data.fps, shape, data.dir, tuple(paths), np.array([paths[path] for path, _ in placed]),
                   np.concatenate([times for _, times in placed]), np.cumsum([0, *(len(times) for _, times in placed)]),
                   data.tolerance, depth.coding(name, feature))

    @property
    def dtype(self) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
        """Of a frame's values."""
        return np.dtype(np.uint8) if len(self.shape) == 3 else np.dtype(np.uint16)

    @property
    def frame_bytes(self) -> int:
        """Memory of one frame."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Memory of all frames."""
        return int(self.first[-1]) * self.frame_bytes

    def resized(self, size: Size | None) -> FilmTable:
        """The same camera with frames of another height and width."""
        return self if size is None else replace(self, shape=(*size, *self.shape[2:]))

    def file_of(self, rows: Array) -> Array:
        """Which of `paths` holds each of these rows."""
        owner: Array = self.file[np.searchsorted(self.first, rows, "right") - 1]
        return owner

    @cached_property
    def fingerprints(self) -> list[str]:
        """One an episode: of its place, its length and the video's content, as far as size, head and tail tell."""
        content = [f"{os.path.relpath(path, self.root)} {_content(path)}" for path in self.paths]
        facts = zip(self.file.tolist(), np.diff(self.first).tolist(), self.seconds[self.first[:-1]].tolist(),
                    self.seconds[self.first[1:] - 1].tolist(), strict=True)
        return [hashlib.sha256(f"{content[file]} {count} {start!r} {last!r} {self.fps}".encode()).hexdigest()[:16]
                for file, count, start, last in facts]


def cameras(data: Recordings, names: Sequence[str] | None = None) -> dict[str, FilmTable]:
    """The cameras of a dataset (or those named) by observation key. Raises RealrlError when it has none or not the one named."""
    if not len(data) or not data.cameras:
        raise RealrlError(f"{data.dir} has no {'cameras' if len(data) else 'episodes'}; record some, or train without images (ChunkView)")
    return {key: FilmTable.of(data, key) for key in names or data.cameras}


def resize(frames: Array, size: Size | None) -> Array:
    """Frames [N, H, W, 3] uint8 (or [N, H, W] uint16) at another height and width.

    Colours by bilinear filtering over the whole area that a new pixel covers; depth by the nearest pixel, because a mean of two
    distances is neither. A policy trained on resized frames needs its live images resized by this very function.
    """
    if size is None or frames.shape[1:3] == size:
        return frames
    if frames.ndim == 3:
        rows, columns = ((np.arange(new) * 2 + 1) * old // (2 * new) for new, old in zip(size, frames.shape[1:], strict=True))
        return np.ascontiguousarray(frames[:, rows][:, :, columns])
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
    return np.ascontiguousarray(small.permute(0, 2, 3, 1).numpy())


class FrameCache:
    """Decoded frames of all episodes of a dataset, mapped from disk. Make one by `build`, which also opens what is there."""

    def __init__(self, found: Mapping[str, FilmTable], files: Mapping[str, Path]) -> None:
        self.cameras = dict(found)
        self.files = dict(files)
        self._maps = {key: _mapped(files[key], camera) for key, camera in found.items()}

    @classmethod
    def build(cls, data: Recordings, *, folder: str | Path | None = None, size: Size | None = None, names: Sequence[str] | None = None,
              workers: int | None = None, progress: bool = True) -> FrameCache:
        """Decode what is not decoded yet, saying first how much that is, and map it all.

        folder: where caches are kept, `<dataset>/cache` by default; size: (height, width) of the cached frames, the recorded one by
        default; names: cameras, all by default; workers: threads, one a core by default; progress: announcement and bar on stderr.
        Another process that builds the same cache is waited for. Raises RealrlError when the disk has too little room or cannot
        be written, and when a video is damaged or does not belong to the tables; the episodes before it stay cached.
        """
        if size is not None and min(size) < 1:
            raise RealrlError(f"frames cannot be resized to {size[0]} x {size[1]} pixels; give a height and a width above 0")
        recorded = cameras(data, names)
        base = _base(data.dir, folder)
        homes = {key: base / f"observation.{key}" / ("full" if size is None else f"{size[0]}x{size[1]}") for key in recorded}
        small = {key: camera.resized(size) for key, camera in recorded.items()}
        for _ in range(3):
            with contextlib.suppress(FileNotFoundError):  # replaced by another process between two looks
                files = {key: _complete(homes[key], camera) for key, camera in small.items()}
                if all(files.values()):
                    return cls(small, {key: file for key, file in files.items() if file})
            try:
                with _turn(base, progress):
                    _build([_Part.plan(homes[key], recorded[key], small[key]) for key in recorded], base, workers, progress)
            except OSError as error:
                raise RealrlError(f"{base}: the cache cannot be written ({error.strerror or error}); free space there or give another "
                                  "folder, what is done is kept") from error
        raise RealrlError(f"{base} changes all the time: another process keeps building it from other recordings; give another folder")

    @property
    def nbytes(self) -> int:
        """Bytes of all frames together."""
        return sum(camera.nbytes for camera in self.cameras.values())

    def gather(self, rows: Mapping[str, Array]) -> dict[str, Tensor]:
        """Frames [*shape, H, W, 3] uint8 (depth: [*shape, H, W] uint16) of every camera's table at these rows, of any shape."""
        found = {}
        for key, wanted in rows.items():
            camera = self.cameras[key]
            flat = self._maps[key].index_select(0, torch.as_tensor(wanted).reshape(-1))
            typed = flat if camera.dtype == np.uint8 else flat.view(torch.uint16)
            found[key] = typed.reshape(*wanted.shape, *camera.shape)
        return found


# ---- building


def _build(parts: Sequence[_Part], base: Path, workers: int | None, progress: bool) -> None:
    """Extend every camera's file to all episodes. The caller holds the lock."""
    parts = [part for part in parts if part.missing]
    frames, needed = sum(part.missing for part in parts), sum(part.room for part in parts)
    if not frames:
        return
    free = shutil.disk_usage(base).free
    if needed > free:
        raise RealrlError(f"{base}: decoding {frames:,} frames takes {needed / 1e9:.2f} GB, only {free / 1e9:.2f} GB are free; "
                          "give another folder or a smaller size, or train without a cache")
    shown = console(stderr=True, quiet=not progress)
    shown.print(f"decoding {frames:,} frames of {len(parts)} cameras: {needed / 1e9:.2f} GB to {base} ({free / 1e9:.0f} GB free)",
                  highlight=False, soft_wrap=True)
    columns = (TextColumn("decoding", markup=False), BarColumn(), MofNCompleteColumn(), TextColumn("frames", markup=False),
               TimeRemainingColumn())
    with Progress(*columns, console=shown, transient=True, disable=not progress) as bar, ThreadPoolExecutor(workers or cores()) as pool:
        task = bar.add_task("decoding", total=frames)
        for part in parts:
            part.begin()
            with contextlib.closing(part.run(pool)) as counts:  # at once, or Ctrl-C would wait for all that is planned
                for count in counts:
                    bar.advance(task, count)


@dataclass
class _Part:
    """One camera's file while it is built. source: the file that already holds the first `done` episodes, if any does."""

    home: Path
    recorded: FilmTable
    cached: FilmTable
    file: Path
    source: Path | None
    done: int

    @classmethod
    def plan(cls, home: Path, recorded: FilmTable, cached: FilmTable) -> _Part:
        """Go on behind the episodes that still are what they were: in a new file if others of the old one are not."""
        index = _Index.read(home)
        done = index.valid(cached, home)
        source = home / index.file if done else None
        if source and done == len(index.fingerprints):
            return cls(home, recorded, cached, source, source, done)
        number = 1 + max((int(p.stem.split("-")[1]) for p in _files(home)), default=-1)
        return cls(home, recorded, cached, home / f"frames-{number}.bin", source, done)

    @property
    def missing(self) -> int:
        """Frames still to decode."""
        return int(self.cached.first[-1] - self.cached.first[self.done])

    @property
    def room(self) -> int:
        """Bytes that the disk must have for them."""
        there = self.file.stat().st_size if self.file.exists() else 0
        return max(0, self.cached.nbytes - there)

    def begin(self) -> None:
        """Make the file, with the episodes that can be kept, and drop the files that no index names."""
        self.home.mkdir(parents=True, exist_ok=True)
        if self.file != self.source:
            with self.file.open("wb") as file:
                if self.source:
                    with self.source.open("rb") as old:
                        _copy(old, file, int(self.cached.first[self.done]) * self.cached.frame_bytes)
            self.source = self.file
        fd = os.open(self.file, os.O_RDWR | os.O_NOFOLLOW)
        self.commit(self.done, fd)
        os.close(fd)
        for path in _files(self.home):
            if path != self.file:
                path.unlink()

    def run(self, pool: ThreadPoolExecutor) -> Generator[int, None, None]:
        """Decode the missing episodes, yielding the frames of each; the index follows every few seconds and at the end."""
        last, committed = self.done, time.monotonic()
        fd = os.open(self.file, os.O_RDWR | os.O_NOFOLLOW)
        futures = [pool.submit(self._write, fd, e) for e in range(self.done, len(self.cached.file))]
        try:
            for future in futures:
                count = future.result()
                last += 1
                if time.monotonic() > committed + COMMIT_S:
                    self.commit(last, fd)
                    committed = time.monotonic()
                yield count
        finally:  # also when a video is damaged or the user has had enough
            for future in futures:
                future.cancel()
            wait(futures)  # nobody must write to a file that is closed
            self.commit(last, fd)
            os.close(fd)

    def commit(self, episodes: int, fd: int) -> None:
        """Sync the frames, then let the index count this many episodes."""
        os.fsync(fd)
        self.done = episodes
        _Index(self.file.name, self.cached.shape, self.cached.fingerprints[:episodes]).write(self.home)

    def _write(self, fd: int, episode: int) -> int:
        """Decode one episode to its place in the file; its number of frames."""
        size, at = (self.cached.shape[0], self.cached.shape[1]), int(self.cached.first[episode])
        pictures, count = _episode_frames(self.recorded, episode), 0
        while block := list(islice(pictures, BLOCK)):
            data = memoryview(resize(np.stack(block), size).tobytes())
            offset = (at + count) * self.cached.frame_bytes
            while data:
                written = os.pwrite(fd, data, offset)
                data, offset = data[written:], offset + written
            count += len(block)
        return count


def _episode_frames(camera: FilmTable, episode: int) -> Iterator[Array]:
    """Every frame of an episode in order. Raises RealrlError when the video holds others than the tables say."""
    path, half, mend = camera.paths[camera.file[episode]], 0.5 / camera.fps, f"run `realrl data check {typed(camera.root)}`"
    wanted = camera.seconds[camera.first[episode]:camera.first[episode + 1]].tolist()
    last = wanted.pop() if abs(wanted[-1] - wanted[-2] - 1 / camera.fps) > camera.tolerance else None  # not filmed, or kept elsewhere
    seen, shown, frame = 0, 0.0, np.empty(0)
    for seconds, frame in video.frames(path, wanted[0] - half, wanted[-1] + half, camera.coding):
        if seen == len(wanted) or abs(seconds - wanted[seen]) > camera.tolerance:
            raise RealrlError(f"{path}: episode {episode} has a frame at {seconds:.4f} s that the tables do not know; {mend}")
        if frame.shape != camera.shape:
            raise RealrlError(f"{path}: its frames are {list(frame.shape)}, those of the first film {list(camera.shape)}; {OTHER_SIZE}")
        yield frame
        shown, seen = seconds, seen + 1
    while 0 < seen < len(wanted) and wanted[seen] - shown <= camera.tolerance:  # as `video.decode` takes it for the nearest
        yield frame
        seen += 1
    if seen < len(wanted):
        lag = (len(wanted) - seen + 0.1) / camera.fps
        raise RealrlError(f"{path} ends after {seen} of the {len(wanted)} frames of episode {episode}; if the last picture may stand for "
                          f"the rest, --recorded.tolerance {lag:.2g} of 'realrl train' lets it; {mend}")
    if last is not None:
        yield frame if last == wanted[-1] else video.decode(path, [last], camera.tolerance, camera.coding)[0]


# ---- the index


_DATA = re.compile(r"frames-\d{1,9}\.bin")


@dataclass(frozen=True)
class _Index:
    """What index.json says: the file, a frame's shape, and the fingerprints of the episodes that are whole."""

    file: str
    shape: tuple[int, ...]
    fingerprints: list[str]

    @classmethod
    def read(cls, home: Path) -> _Index:
        """What is there; nothing counts when the index is absent, damaged or of another version."""
        try:
            index = read_json(home / "index.json")
            if index["version"] == VERSION and _DATA.fullmatch(index["file"]):  # a name, so that it cannot lead elsewhere
                return cls(index["file"], tuple(index["shape"]), list(index["fingerprints"]))
        except (OSError, RealrlError, LookupError, TypeError):
            pass
        return cls("", (), [])

    def write(self, home: Path) -> None:
        """Publish it."""
        write_json(home / "index.json", {"version": VERSION, "file": self.file, "shape": self.shape, "fingerprints": self.fingerprints})

    def valid(self, camera: FilmTable, home: Path) -> int:
        """How many leading episodes are cached as they are now."""
        file = home / self.file
        if self.shape != camera.shape or file.is_symlink() or not file.is_file():
            return 0
        whole = np.searchsorted(camera.first, file.stat().st_size // camera.frame_bytes, "right") - 1
        pairs = zip(self.fingerprints[:whole], camera.fingerprints, strict=False)
        return next((e for e, (a, b) in enumerate(pairs) if a != b), min(len(self.fingerprints), int(whole)))


def _complete(home: Path, camera: FilmTable) -> Path | None:
    """The file that holds all episodes as they are now."""
    index = _Index.read(home)
    return home / index.file if index.valid(camera, home) == len(camera.file) else None


def _files(home: Path) -> list[Path]:
    return [p for p in home.glob("frames-*.bin") if _DATA.fullmatch(p.name)]


def _mapped(path: Path, camera: FilmTable) -> Tensor:
    """All frames as bytes [F, frame_bytes], read from disk when they are touched; writing to them would stay in memory."""
    shape = (int(camera.first[-1]), camera.frame_bytes)
    return torch.from_numpy(np.memmap(path, np.uint8, "c", shape=shape))


# ---- places


def _base(dataset: Path, folder: str | Path | None) -> Path:
    """The folder of this dataset's caches; in a folder of the user's choice several datasets may live side by side."""
    if folder is None:
        return dataset / "cache"
    whole = dataset.resolve()
    return Path(folder) / f"{whole.name}-{hashlib.sha256(str(whole).encode()).hexdigest()[:8]}"


def _content(path: Path) -> str:
    """What tells a video from another at the price of two reads."""
    try:
        with plain(path).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest = hashlib.sha256(str(size).encode())
            for at in (0, max(0, size - EDGE)):
                file.seek(at)
                digest.update(file.read(EDGE))
            return digest.hexdigest()[:16]
    except OSError as error:
        raise RealrlError(f"{path} cannot be read ({error.strerror}); {mend(path)}") from error


def _copy(source: BinaryIO, target: BinaryIO, size: int) -> None:
    while size:
        if not (data := source.read(min(size, 2**24))):
            raise OSError(errno.EIO, f"{source.name} lost its end")
        target.write(data)
        size -= len(data)


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _turn(base: Path, progress: bool) -> Iterator[None]:
    """Hold the right to build; whoever comes second waits and then finds it built."""
    base.mkdir(parents=True, exist_ok=True)
    if not os.access(base, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock(base / ".lock", 0.0))
        except RealrlError:
            console(stderr=True, quiet=not progress).print(f"waiting for another process that builds {base}", soft_wrap=True)
            stack.enter_context(lock(base / ".lock", PATIENCE_S))
        yield
