"""A look at an HDF5 file from another process, before this one opens it.

The library reads damaged files with little care: some end the interpreter, some are never finished. So a small process opens
the file first and goes through everything that a reader may touch (members, attributes, shapes, types, chunk lists, all but the
bulk of large arrays). If it dies or takes more processor time than any whole file of that size could need, the file is damaged.
One process serves all files; it ends with this one. It knows nothing of the package: this file is also its program.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

BULK = 2**20  # bytes of an array that is still read to see whether it can be
SECONDS = 3.0  # of processor time for a small file
SECONDS_PER_BYTE = 1 / (3 * 2**20)
_ERRORS = (OSError, KeyError, ValueError, TypeError, RuntimeError, OverflowError, MemoryError, AttributeError)


class Prober:
    """Asks the process, and starts it when there is none."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._owner, self._lock = 0, threading.Lock()
        self._safe: set[tuple[str, int, int, int]] = set()

    def safe(self, path: Path) -> bool:
        """Whether the library goes through the file without dying or turning in circles. Raises OSError when it is not there."""
        state = path.stat()
        key = (str(path.resolve()), state.st_ino, state.st_size, state.st_mtime_ns)
        with self._lock:
            if key not in self._safe and self._ask(key[0], SECONDS + state.st_size * SECONDS_PER_BYTE):
                self._safe.add(key)
            return key in self._safe

    def _ask(self, path: str, seconds: float) -> bool:
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self._process, self._owner = self._start(), os.getpid()
        question, answer = self._process.stdin, self._process.stdout
        if question is None or answer is None:
            return False
        try:
            question.write(json.dumps([path, seconds]) + "\n")
            question.flush()
            if answer.readline() == "done\n":
                return True
        except BrokenPipeError:
            pass
        self._process.wait()
        return False

    def _start(self) -> subprocess.Popen[str]:
        """The packages of this process, whatever lies in the working directory: -I keeps Python from looking there."""
        packages = json.dumps([p for p in sys.path if p])
        return subprocess.Popen([sys.executable, "-I", __file__, packages], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                stderr=subprocess.DEVNULL, text=True)


def look(path: str) -> None:
    """Go through a file; errors of the library are no concern here, they come again, as errors, where the file is read."""
    import h5py

    def visit(_: str, found: Any) -> None:
        with contextlib.suppress(*_ERRORS):
            for name in found.attrs:
                with contextlib.suppress(*_ERRORS):
                    found.attrs[name]
            if isinstance(found, h5py.Group):
                for name in found:
                    found.get(name, getlink=True)
            else:
                inside = not found.is_virtual and found.external is None
                if inside and found.size * found.dtype.itemsize + found.id.get_storage_size() <= BULK:
                    found[()]
                elif inside and found.dtype.kind == "O" and found.size <= BULK:
                    for row in range(len(found)):
                        found[row]

    with contextlib.suppress(*_ERRORS), h5py.File(path, "r") as file:
        visit("/", file)
        file.visititems(visit)


def main() -> None:
    """Answer "done" to each [path, seconds] that comes in; the clock ends the process."""
    sys.path[:] = json.loads(sys.argv[1])
    for line in sys.stdin:
        path, seconds = json.loads(line)
        if hasattr(signal, "setitimer"):  # its signal ends the process
            signal.setitimer(signal.ITIMER_PROF, seconds)
        look(path)
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, 0)
        print("done", flush=True)


prober = Prober()

if __name__ == "__main__":
    main()
