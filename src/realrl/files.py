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
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from realrl.types import RealrlError

FIELD = re.compile(r"\{(\w+)(?::0?(\d)d)?\}")  # all that LeRobot's path templates use; str.format would run whatever a file says


def inside(root: Path, template: str, **fields: int | str) -> Path:
    """The path below `root` that a template such as "data/chunk-{chunk_index:03d}/file.parquet" names.

    Raises RealrlError when it needs an unknown field or leads, by "..", as an absolute path or through a link, out of `root`.
    """
    def value(match: re.Match[str]) -> str:
        name, width = match.groups()
        if name not in fields:
            raise RealrlError(f"{root}/meta/info.json: the path {template!r} asks for {name!r}; use {', '.join(fields)}")
        given = fields[name]
        return f"{given:0{width}d}" if width and isinstance(given, int) else str(given)

    relative = FIELD.sub(value, template)
    if "{" in relative or "}" in relative or "\0" in relative or not relative:
        raise RealrlError(f"{root}/meta/info.json: the path {template!r} is not understood; restore the file from a copy")
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
        with temporary.open("wb") as file:
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


def publish_json(path: Path, value: Any) -> None:
    """`publish` of a JSON document."""
    publish(path, lambda f: f.write(json.dumps(value, indent=1).encode()))


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
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)  # a link could lead to anybody's file
    except OSError as error:
        raise RealrlError(f"{path} could not be opened ({error.strerror}); the dataset is not writable here, or its lock is a link"
                          ) from error
    try:
        if not taken(fd, wait):
            holder = os.pread(fd, 20, 0).decode() or "unknown"
            raise RealrlError(f"{path.parent} is being written by process {holder}; wait for it or end it")
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(fd)  # also gives the lock back


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file so that, whatever dies when, `path` holds either the old text or the new one (temporary file, fsync, rename)."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """`write_text` for bytes. The temporary file is hidden and carries the process id."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make renames inside a folder survive a power failure."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write JSON atomically. Raises ValueError on NaN and infinities, which JSON does not have."""
    write_text(path, json.dumps(obj, indent=1, allow_nan=False) + "\n")


def derive(seed: int, *tags: int | str) -> int:
    """A 63-bit seed that depends on nothing but its arguments: the same in every process, on every machine and Python."""
    names = [tag if isinstance(tag, str) else operator.index(tag) for tag in (seed, *tags)]
    return int.from_bytes(hashlib.sha256(json.dumps(names).encode()).digest()[:8], "big") >> 1
