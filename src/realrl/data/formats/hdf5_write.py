"""HDF5 files written so that a full disk is an error and not the end of the program.

The library behind h5py writes what it has cached when its objects go, where no error can be raised: on a full disk it ends the
interpreter. Here it writes to a `Disk` that never refuses; from the first failed write on, the rest stays in memory, and the
error is raised at the next `check` or at the end, when the library has let go of the file.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from realrl.data.formats.hdf5 import library

PAGE = 4096


class Disk(io.RawIOBase):
    """A file for h5py. What does not fit on the disk is kept in pages of memory, so that reading gives what was written."""

    def __init__(self, path: Path) -> None:
        self._file, self._at, self._pages = path.open("w+b", buffering=0), 0, dict[int, bytearray]()
        self.error: OSError | None = None

    def check(self) -> None:
        """Raise the OSError of the first write that failed."""
        if self.error:
            raise self.error

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size()}[whence]
        self._at = start + offset
        return self._at

    def truncate(self, size: int | None = None) -> int:
        size = self._at if size is None else size
        try:
            self._file.truncate(size)
        except OSError as error:
            self.error = self.error or error
        return size

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        view[:] = self._read(self._at, len(view))
        self._at += len(view)
        return len(view)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while not self.error and done < len(view):
            try:
                self._file.seek(self._at + done)
                done += self._file.write(view[done:])
            except OSError as error:
                self.error = error
        if self.error:
            self._remember(self._at + done, bytes(view[done:]))
        self._at += len(view)
        return len(view)

    def close(self) -> None:
        self._file.close()
        super().close()

    def _size(self) -> int:
        return max(self._file.seek(0, io.SEEK_END), PAGE * (1 + max(self._pages, default=-1)))

    def _read(self, start: int, length: int) -> bytes:
        self._file.seek(start)
        found = bytearray(self._file.read(length) or b"").ljust(length, b"\0")
        for number, page in self._pages.items():
            a, b = max(start, number * PAGE), min(start + length, (number + 1) * PAGE)
            if a < b:
                found[a - start:b - start] = page[a - number * PAGE:b - number * PAGE]
        return bytes(found)

    def _remember(self, start: int, data: bytes) -> None:
        for number in range(start // PAGE, -(-(start + len(data)) // PAGE)):
            page = self._pages.get(number) or bytearray(self._read(number * PAGE, PAGE))
            a, b = max(start, number * PAGE), min(start + len(data), (number + 1) * PAGE)
            page[a - number * PAGE:b - number * PAGE] = data[a - start:b - start]
            self._pages[number] = page


@contextlib.contextmanager
def create(path: Path) -> Iterator[tuple[Any, Disk]]:
    """(a new h5py.File, the disk below it). Raises the OSError of a full disk at the end at the latest."""
    with contextlib.closing(Disk(path)) as disk:
        with library().File(disk, "w") as file:
            yield file, disk
        disk.check()
