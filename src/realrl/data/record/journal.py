"""What a recording in progress is kept in: a ring of frames in shared memory, and logs on disk.

The control loop writes records into the ring (and into a spill file when the ring is full); the encoder process takes them from
there, in order of their sequence numbers, and appends them to the logs. The ring is a file in memory that outlives both processes,
so a record that was written is lost only with the power.

A log is a file of records, each `length, crc, kind, content`; whatever follows the last whole record does not count.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import struct
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from realrl.types import Array, RealrlError

START, FRAME, END, DISCARD, COMMIT, HEADER, PACKET = range(7)  # kinds of records
MAGIC = b"realrl ring 1\0\0\0"
_HEAD = struct.Struct("<qqqqqI20x")  # of a slot: seq, episode, frame, kind, size, crc of the content
_NUMBER = struct.Struct("<q")  # its beginning
_TOP = struct.Struct("<16s16sqqqqq")  # of the ring: magic, token, started, slots, room for a record's content, stride, cameras
_DONE, _SIZES, _SLOTS = 256, 1024, 4096  # where the counters, the cameras' frame sizes and the slots begin
MAX_CAMERAS = 64
_RECORD = struct.Struct("<IIB")  # of a log's record: length of the content, crc of kind and content, kind
LARGEST = 2**28  # bytes; no record is larger, so a damaged length (or a file with holes) asks for no more memory


@dataclass(frozen=True)
class Record:
    """One record as the encoder process takes it. frame: its number in the episode; images: (buffer or open file, offset)."""

    seq: int
    episode: int
    frame: int
    kind: int
    content: bytes
    place: tuple[mmap.mmap | int, int]
    sizes: tuple[int, ...]

    def image(self, camera: int) -> memoryview:
        """The raw bytes of a camera's frame. Raises OSError when a spill file cannot be read."""
        at = self.place[1] + sum(self.sizes[:camera])
        if isinstance(self.place[0], int):
            return memoryview(os.pread(self.place[0], self.sizes[camera], at))
        return memoryview(self.place[0])[at:at + self.sizes[camera]]


class Ring:
    """Fixed slots in a shared file, one record each, written by one process and read by another. Make one by `create` or `attach`.

    done: int64 [1 + cameras], the last sequence number that the log of the columns, and each camera's log, hold. A slot may be
    written again once all of them have passed its number.
    """

    def __init__(self, path: Path, memory: mmap.mmap) -> None:
        self.path, self.memory = path, memory
        magic, self.token, self.started, self.slots, self.room, self.stride, cameras = _TOP.unpack_from(memory)
        if magic != MAGIC or not 0 <= cameras <= MAX_CAMERAS or _SLOTS + self.slots * self.stride != len(memory):
            raise ValueError("no ring")
        self.done: Array = np.ndarray((1 + cameras,), np.int64, memory, _DONE)
        self.sizes: tuple[int, ...] = tuple(np.ndarray((cameras,), np.int64, memory, _SIZES).tolist())
        self._seqs: Array = np.ndarray((self.slots,), np.int64, memory, _SLOTS, (self.stride,))

    @classmethod
    def create(cls, sizes: Sequence[int], *, room: int, budget: int, started: int, owner: str) -> Ring:
        """A new ring. sizes: bytes of each camera's frame; room: bytes for a record's content; budget: bytes in all, but never
        less than four slots; owner: the name under which `left` finds it. Raises RealrlError when there is no memory for it."""
        stride = -(-(_HEAD.size + room + sum(sizes)) // 4096) * 4096
        slots = min(max(4, budget // stride), 4096)
        size = _SLOTS + slots * stride
        path, memory = memory_file(f"realrl-{owner}-", ".ring", size, "give the recorder a smaller ring_mb")
        np.ndarray((1 + len(sizes),), np.int64, memory, _DONE)[:] = -1
        np.ndarray((len(sizes),), np.int64, memory, _SIZES)[:] = sizes
        np.ndarray((slots,), np.int64, memory, _SLOTS, (stride,))[:] = -1
        _TOP.pack_into(memory, 0, MAGIC, os.urandom(16), started, slots, room, stride, len(sizes))
        return cls(path, memory)

    @classmethod
    def attach(cls, path: str | Path) -> Ring | None:
        """The ring that another process made; None when there is none (any more)."""
        try:
            with open(path, "r+b") as file:
                return cls(Path(path), mmap.mmap(file.fileno(), 0))
        except (OSError, ValueError, struct.error):
            return None

    @classmethod
    def left(cls, owner: str) -> list[Ring]:
        """The rings of this owner that are there, oldest first; only files of this user. One that was never completed is deleted."""
        rings = []
        for path in (p for folder in memory_folders() for p in folder.glob(f"realrl-{owner}-*.ring")):
            if not path.is_symlink() and path.stat().st_uid == os.geteuid():
                if ring := cls.attach(path):
                    rings.append(ring)
                else:
                    path.unlink(missing_ok=True)
        return sorted(rings, key=lambda ring: ring.started)

    def write(self, slot: int, head: tuple[int, int, int, int], content: bytes, images: Sequence[Array]) -> None:
        """Fill a slot. head: seq, episode, frame, kind. The number comes last: it makes the record count."""
        at = _SLOTS + slot * self.stride
        self._seqs[slot] = -1
        self.memory[at + _HEAD.size:at + _HEAD.size + len(content)] = content
        where = at + _HEAD.size + self.room
        for image in images:
            np.copyto(np.ndarray(image.shape, image.dtype, self.memory, where), image)
            where += image.nbytes
        _HEAD.pack_into(self.memory, at, -1, *head[1:], len(content), zlib.crc32(content))
        self._seqs[slot] = head[0]

    def take(self, seq: int) -> Record | None:
        """The record with this number, when it is here."""
        found = np.flatnonzero(self._seqs == seq)
        if not len(found):
            return None
        at = _SLOTS + int(found[0]) * self.stride
        content = self.memory[at + _HEAD.size:at + _HEAD.size + self.room]
        return _record(_HEAD.unpack_from(self.memory, at), content, self.memory, at + _HEAD.size + self.room, self.sizes)

    def finished(self) -> int:
        """The number up to which everything is in the logs."""
        return int(self.done.min())

    def unlink(self) -> None:
        """Remove the ring; who still has it mapped keeps its memory."""
        self.path.unlink(missing_ok=True)


def memory_folders() -> list[Path]:
    """Where a file that processes share may lie, best first."""
    memory = Path("/dev/shm")
    return [*([memory] if memory.is_dir() else []), Path(tempfile.gettempdir())]


def memory_file(prefix: str, suffix: str, size: int, less: str) -> tuple[Path, mmap.mmap]:
    """A new file of so many bytes, zeros, that processes may share. less: how to want less of it. Raises RealrlError without room."""
    for folder in memory_folders():
        fd, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=folder)
        try:
            os.ftruncate(fd, size)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(fd, 0, size)  # a full memory disk says so now, instead of killing the process later
            return Path(name), mmap.mmap(fd, size)
        except OSError:
            os.unlink(name)
        finally:
            os.close(fd)
    raise RealrlError(f"there is no room for {size >> 20} MB in {' or '.join(map(str, memory_folders()))}; free space there, or {less}")


def _record(head: tuple[Any, ...], content: bytes, holder: mmap.mmap | int, images: int, sizes: tuple[int, ...]) -> Record | None:
    seq, episode, frame, kind, size, crc = head
    if not 0 <= size <= len(content) or zlib.crc32(content[:size]) != crc:
        return None
    return Record(seq, episode, frame, kind, content[:size], (holder, images), sizes)


class Spill:
    """Frames that found the ring full, as slots in files of a folder: `spill-000000.raw` and so on, 64 records each.

    One process writes, another reads; a file is deleted by the reader once a later one exists and everything in it is in the logs.
    """

    per_file = 64

    def __init__(self, folder: Path, ring: Ring) -> None:
        self.folder, self.ring = folder, ring
        self._written = 0
        self._file: tuple[int, int] | None = None  # (number of the file, descriptor)
        self._kept: dict[int, tuple[int, int]] = {}  # number of a file -> (descriptor, last seq seen in it)
        self._next = 0  # the record that is looked at next

    def path(self, number: int) -> Path:
        """Where a file lies; the name holds the ring's start so that two recordings never meet."""
        return self.folder / f"spill-{self.ring.started:020d}-{number:06d}.raw"

    def write(self, head: tuple[int, int, int, int], content: bytes, images: Sequence[Array]) -> None:
        """Append a record. Raises OSError when the disk is full; the record is then not there.

        Its number is -1 until all the rest is written: the reader looks at any moment, and would take a hole, or what is left of a
        record that did not fit, for one that is behind it, and never come back.
        """
        number, index = divmod(self._written, self.per_file)
        if self._file is None or self._file[0] != number:
            self.close()
            self._file = (number, os.open(self.path(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644))
        fd, at = self._file[1], index * self.ring.stride
        _write_at(fd, memoryview(_HEAD.pack(-1, *head[1:], len(content), zlib.crc32(content)) + content), at)
        where = at + _HEAD.size + self.ring.room
        for image in images:
            _write_at(fd, memoryview(image.tobytes()), where)
            where += image.nbytes
        _write_at(fd, memoryview(_NUMBER.pack(head[0])), at)
        self._written += 1

    def take(self, seq: int) -> Record | None:
        """The record with this number, when it is here; numbers must be asked for in rising order."""
        while True:
            number, index = divmod(self._next, self.per_file)
            fd = self._reader(number)
            at = index * self.ring.stride
            head = os.pread(fd, _HEAD.size, at) if fd is not None else b""
            if fd is None or len(head) < _HEAD.size:
                return None
            fields = _HEAD.unpack(head)
            if fields[0] > seq or fields[0] < 0:
                return None
            if fields[0] == seq and fields[1] >= 0:
                content = os.pread(fd, self.ring.room, at + _HEAD.size)
                record = _record(fields, content, fd, at + _HEAD.size + self.ring.room, self.ring.sizes)
                if record is not None:
                    self._kept[number] = (fd, seq)
                return record
            self._next += 1

    def _reader(self, number: int) -> int | None:
        """A file to read from: this one, or when it was used up and deleted the next that is there."""
        if number not in self._kept:
            later = [n for n in self._numbers() if n > number]
            try:  # after the listing: files are made in order, so where a later one is, this one was
                self._kept[number] = (os.open(self.path(number), os.O_RDONLY | os.O_CLOEXEC), -1)
            except FileNotFoundError:
                if not later:
                    return None
                self._next = min(later) * self.per_file
                return self._reader(min(later))
        return self._kept[number][0]

    def _numbers(self) -> list[int]:
        pattern = self.path(0).name.replace("000000.raw", "*.raw")
        numbers = [path.stem.rsplit("-", 1)[1] for path in self.folder.glob(pattern)]
        return [int(n) for n in numbers if n.isascii() and n.isdecimal()]

    def sweep(self) -> None:
        """Delete files whose records are all in the logs, but for the one that may still grow."""
        finished = self.ring.finished()
        for number in sorted(self._kept)[:-1]:
            fd, last = self._kept[number]
            if last <= finished and self._next // self.per_file > number:
                os.close(fd)
                del self._kept[number]
                self.path(number).unlink(missing_ok=True)

    def close(self) -> None:
        """Close what is open; the files stay."""
        if self._file is not None:
            os.close(self._file[1])
            self._file = None
        for fd, _ in self._kept.values():
            os.close(fd)
        self._kept = {}


def _write_at(fd: int, data: memoryview, at: int) -> None:
    while len(data):
        n = os.pwrite(fd, data, at)
        data, at = data[n:], at + n


# ---- logs


class Log:
    """An append-only file of records. Opening one cuts off what follows its last whole record."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)  # a link would have its target cut
        self.counts: dict[int, int] = {}
        self.size = 0
        for kind, content in read_log(path):
            self.counts[kind] = self.counts.get(kind, 0) + 1
            self.size += _RECORD.size + len(content)
        os.ftruncate(self.fd, self.size)

    def append(self, kind: int, content: bytes) -> None:
        """Add a record. Raises OSError when the disk is full; the file then ends where it did before."""
        tag = bytes([kind])
        head = _RECORD.pack(len(content), zlib.crc32(content, zlib.crc32(tag)), kind)
        try:
            _write_at(self.fd, memoryview(head + content), self.size)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self.fd, self.size)
            raise
        self.size += len(head) + len(content)
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


def read_log(path: Path) -> Iterator[tuple[int, bytes]]:
    """(kind, content) of the whole records of a log, up to the first damaged one; nothing when there is no file."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        left = os.fstat(file.fileno()).st_size
        while len(head := file.read(_RECORD.size)) == _RECORD.size:
            length, crc, kind = _RECORD.unpack(head)
            left -= _RECORD.size + length
            if left < 0 or length > LARGEST:
                return
            content = file.read(length)
            if len(content) < length or zlib.crc32(content, zlib.crc32(bytes([kind]))) != crc:
                return
            yield kind, content


def damaged(path: Path) -> bool:
    """Whether whole records follow a damaged one. A crash never leaves that: it cuts a log off, or spoils its last record."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return False
    with file:
        file.seek(sum(_RECORD.size + len(content) for _, content in read_log(path)))
        return _holds_record(file.read(2**22)[1:])


def _holds_record(data: bytes) -> bool:
    """Whether a whole record with content begins at any byte; the search is given up after 256 MB of checksums."""
    raw, patience = np.frombuffer(data, np.uint8), 2**28
    n = len(raw) - _RECORD.size + 1
    if n < 1:
        return False
    length = sum((raw[i:i + n].astype(np.int64) << 8 * i for i in range(4)), np.zeros(n, np.int64))
    likely = (raw[8:8 + n] <= PACKET) & (length > 0) & (np.arange(n) + _RECORD.size + length <= len(raw))
    for at in np.flatnonzero(likely).tolist():
        size, crc, kind = _RECORD.unpack_from(data, at)
        if zlib.crc32(memoryview(data)[at + _RECORD.size:at + _RECORD.size + size], zlib.crc32(bytes([kind]))) == crc:
            return True
        patience -= size + 64
        if patience < 0:
            break
    return False


# ---- the columns of a frame


class Layout:
    """The columns of a frame as one packed row: observations under "obs/<key>", then those of `realrl.types.Episode`."""

    scalars: Mapping[str, str] = {"source": "u1", "reward": "<f4", "success": "?", "time": "<f8", "starts_plan": "?"}

    def __init__(self, columns: Sequence[tuple[str, str, Sequence[int]]]) -> None:
        self.columns = [(name, np.dtype(kind).str, tuple(shape)) for name, kind, shape in columns]
        self.row = np.dtype(self.columns)
        self.obs = np.dtype([c for c in self.columns if c[0].startswith("obs/")])

    @classmethod
    def of(cls, obs: Mapping[str, Array], action: Array) -> Layout:
        """The layout of frames with these observations (cameras left out) and actions of this size."""
        vectors = [(f"obs/{key}", x.dtype.str, x.shape) for key, x in sorted(obs.items())]
        return cls([*vectors, ("action", "<f4", action.shape), ("proposed", "<f4", action.shape),
                    *((name, kind, ()) for name, kind in cls.scalars.items())])

    def pack(self, values: Mapping[str, Any], obs_only: bool = False) -> bytes:
        """One row from values by column name. Raises KeyError, ValueError or TypeError when one is missing or does not fit."""
        row = np.zeros((), self.obs if obs_only else self.row)
        for name in row.dtype.names or ():
            row[name] = values[name]
        return row.tobytes()


def folder_name(started: int, episode: int) -> str:
    """The folder of an episode in progress; names sort in the order of recording."""
    return f"{started:020d}-{episode:06d}"


def to_json(value: Mapping[str, Any]) -> bytes:
    """A JSON document as bytes."""
    return json.dumps(value).encode()
