"""The disk, and seeds: files whole or not at all, one writer at a time, no way out of a folder; noise that depends on what it is for."""

from __future__ import annotations

import contextlib
import errno
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
    """Raise RealrlError unless `path`, links followed, lies below `root`, or is a link there to a blob of the hub's cache around it."""
    safe = False
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # a ring of links
        home, found = root.resolve(), path.resolve()
        blob = path.is_symlink() and home.parent.name == "snapshots" and found.parent == home.parent.with_name("blobs")
        safe = (path.parent.resolve() if blob else found).is_relative_to(home)  # any other way to a blob could be written through
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
            raise unwritable(path, error) from error
        raise


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def unwritable(path: object, error: OSError) -> RealrlError:
    """What a full or read-only disk is answered with; raise it from `error`."""
    mend = "free space" if error.errno in FULL else "mend the permissions"
    return RealrlError(f"{path} could not be written ({error.strerror or error}); {mend}")


def disk(error: BaseException | None) -> bool:
    """Whether an error is the disk's, full, read-only or broken, or comes from one that is: whoever mends it can go on."""
    while error is not None:
        if isinstance(error, OSError):
            return error.errno in (*FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
        error = error.__cause__
    return False


def sweep(folder: Path) -> None:
    """Remove the temporary files that `publish` left in a folder when its process was killed."""
    for file in folder.glob(".*.tmp"):
        owner = writer(file)
        if owner and (owner == os.getpid() or not alive(owner)):  # our number, when it was another's
            file.unlink(missing_ok=True)


def writer(temporary: Path) -> int | None:
    """The process that `publish` wrote a temporary file in; None for another kind of file."""
    owner = re.fullmatch(r"\..+\.(\d{1,9})\.tmp", temporary.name)
    return int(owner[1]) if owner else None


def alive(process: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


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


DEEPEST = 100  # levels of a JSON document: whoever walks over it may recurse


def read_json(path: str | os.PathLike[str], *, nan: bool = False, most: int = 2**28) -> Any:
    """The JSON document in a plain file. Raises RealrlError, naming the file, on whatever `parse_json` and `read_plain` refuse; OSError."""
    return parse_json(read_plain(path, most), str(path), nan=nan)


def parse_json(data: bytes, where: str, *, nan: bool = False) -> Any:
    """A JSON document as plain values: UTF-8, no name twice in an object, at most `DEEPEST` levels, whole numbers that a
    float can hold, text that can be written again.

    nan: whether NaN and infinities, which are no JSON, may stand in it. Raises RealrlError; where: what its line begins with.
    """
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_int=_whole, parse_constant=None if nan else _refuse)
        level = [value]
        for _ in range(DEEPEST):
            level = [v for one in level for v in (one.values() if isinstance(one, dict) else one if isinstance(one, list) else ())]
        if level:
            raise ValueError(f"nested deeper than {DEEPEST} levels")
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half a character cannot be printed or saved
    except RecursionError:
        raise RealrlError(f"{where} is not valid JSON (nested too deep); restore or delete it") from None
    except ValueError as error:
        raise RealrlError(f"{where} is not valid JSON ({str(error)[:200]}); restore or delete it") from error
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in an object")
    return found


def _whole(digits: str) -> int:
    if len(digits) > 300:  # more than a float can hold, and it would be asked to
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _refuse(constant: str) -> Any:
    raise ValueError(f"it holds {constant}")


def open_append(path: Path) -> BinaryIO:
    """A plain file to append to, unbuffered, made where there is none. Raises RealrlError for a link, which would lead the writer to
    another file, a pipe or a device, and where the disk does not let it be written."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if path.is_symlink() or error.errno in (errno.ENXIO, errno.EISDIR):
            raise RealrlError(f"{path} is a link or no plain file; put a copy of the file there") from error
        raise unwritable(path, error) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise RealrlError(f"{path} is no plain file; put a copy of the file there")
    return open(fd, "ab", buffering=0)


def append(file: BinaryIO, data: bytes, path: Path) -> None:
    """Write all of `data` to an unbuffered file. Raises RealrlError where the disk does not take it."""
    try:
        while data:
            data = data[file.write(data):]  # a disk that fills up takes a part first
    except OSError as error:
        raise unwritable(path, error) from error


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
            holder = re.sub(r"\D", "", os.pread(fd, 20, 0).decode("latin-1")) or "unknown"
            raise RealrlError(f"{path.parent} is being written by process {holder}; wait for it or end it")
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)
        except OSError as error:  # a full disk, a pipe
            raise unwritable(path, error) from error
        yield
    finally:
        os.close(fd)  # also gives the lock back


def derive(seed: int, *tags: int | str) -> int:
    """A 63-bit seed that depends on nothing but its arguments: the same in every process, on every machine and Python."""
    names = [tag if isinstance(tag, str) else operator.index(tag) for tag in (seed, *tags)]
    return int.from_bytes(hashlib.sha256(json.dumps(names).encode()).digest()[:8], "big") >> 1
