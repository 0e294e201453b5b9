"""The disk, and seeds: files that are there whole or not at all, one writer at a time, no path that leads out of its folder; and noise
that is a function of what it is for, never of a generator's running state."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import operator
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from realrl.types import HIDDEN as HIDDEN
from realrl.types import RealrlError
from realrl.types import printable as printable

FIELD = re.compile(r"\{(\w+)(?::0?(\d)d)?\}")  # all that LeRobot's path templates use; str.format would run whatever a file says


def inside(root: Path, template: str, **fields: int | str) -> Path:
    """The path below `root` that a template such as "data/chunk-{chunk_index:03d}/file.parquet" names.

    Raises RealrlError when it needs an unknown field or leads, by "..", as an absolute path or through a link, out of `root`.
    """
    def value(match: re.Match[str]) -> str:
        name, width = match.groups()
        if name not in fields:
            raise RealrlError(f"{root}/meta/info.json: the path {template!r} asks for {name!r}, known are {', '.join(fields)}; correct it, "
                              f"or run 'realrl data repair {root}'")
        given = fields[name]
        return f"{given:0{width}d}" if width and isinstance(given, int) else str(given)

    relative = FIELD.sub(value, template)
    if "{" in relative or "}" in relative or "\0" in relative or not relative:
        raise RealrlError(f"{root}/meta/info.json: the path {template!r} is not understood; correct it, or run 'realrl data repair {root}'")
    path = root / relative
    within(root, path)
    return path


def within(root: Path, path: Path) -> None:
    """Raise RealrlError unless `path`, links followed, lies below `root`."""
    try:
        safe = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError):  # a ring of links
        safe = False
    if not safe:
        raise RealrlError(f"{path} leads out of {root}; a dataset keeps its files inside its folder, copy them there (cp -rL)")


def publish(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write under a temporary name, fsync, rename, fsync the folder: the file is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        new = [p for p in path.parents if not p.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # a dead writer's, or a link that would be followed
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        for folder in {path.parent, *(p.parent for p in new)}:
            sync(folder)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise RealrlError(f"{path} could not be written ({error.strerror or error}); free space or mend the permissions") from error
        raise


def sync(folder: Path) -> None:
    """Make renames and removals in a folder survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """`publish` of bytes."""
    publish(Path(path), lambda file: file.write(data))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """`publish` of a text."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], value: Any, *, nan: bool = False) -> None:
    """`publish` of a JSON document. nan: whether it may hold NaN and infinities, which JSON does not have but its readers take; else
    they raise ValueError."""
    write_text(path, json.dumps(value, indent=1, allow_nan=nan) + "\n")


def plain(path: Path) -> Path:
    """The path again, for readers that open files themselves. Raises RealrlError for what could be waited for or read for ever: a pipe,
    a socket, a device, a folder; FileNotFoundError where nothing is."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise RealrlError(f"{path} is no plain file; put a copy of the file there")
    return path


def read_plain(path: str | os.PathLike[str], most: int = 2**30) -> bytes:
    """The bytes of a plain file. What could be waited for or read for ever is refused at once.

    Raises RealrlError for a pipe, a socket, a device or a folder, and above `most` bytes; OSError as `open` does.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe without a writer opens at once
    about = os.fstat(fd)
    if not stat.S_ISREG(about.st_mode):
        os.close(fd)
        raise RealrlError(f"{path} is no plain file; put a copy of the file there")
    with open(fd, "rb") as file:
        if about.st_size > most:
            raise RealrlError(f"{path} has {about.st_size:,} bytes, at most {most:,} make sense here; check what it is")
        return file.read()


def set_aside(path: Path) -> None:
    """Keep, under a name no reader looks for, a file whose episodes row was never written."""
    if path.exists():
        path.replace(path.with_suffix(f".orphan-{time.time_ns()}"))


def taken(fd: int, wait: float) -> bool:
    """Take the advisory lock of an open file; False when another process still keeps it after `wait` seconds."""
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.005)


@contextlib.contextmanager
def lock(path: Path, wait: float) -> Iterator[None]:
    """Hold an advisory lock. Raises RealrlError when another process keeps it longer than `wait` seconds."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)  # a link could lead anywhere
    except OSError as error:
        raise RealrlError(f"{path} could not be opened ({error.strerror}); the folder is not writable, or the lock is a link") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise RealrlError(f"{path} is no plain file; remove it")
        if not taken(fd, wait):
            holder = os.pread(fd, 20, 0).decode() or "unknown"
            raise RealrlError(f"{path.parent} is being written by process {holder}; wait for it or end it")
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(fd)  # also gives the lock back


def derive(seed: int, *tags: int | str) -> int:
    """A 63-bit seed that depends on nothing but its arguments: the same in every process, on every machine and Python."""
    names = [tag if isinstance(tag, str) else operator.index(tag) for tag in (seed, *tags)]
    return int.from_bytes(hashlib.sha256(json.dumps(names).encode()).digest()[:8], "big") >> 1
