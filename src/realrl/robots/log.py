"""The server's own log: what happened, and every tick. A thread of its own writes it; a disk that is full or slow never touches control.

A folder a start: `events.jsonl`, a line an event with its time; `ticks-N.msgpack`, a row a tick, the newest `FILES` files of `LARGEST`
bytes. What cannot be written is counted in `lost`.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from realrl.files import append, open_append, printable
from realrl.robots.clock import LOG, urgent
from realrl.types import Array, RealrlError

FILES, LARGEST, WAITING = 8, 2**26, 20_000


class Tick(NamedTuple):
    """A row. time: monotonic s; late: s; mode: of the server; measured, aim, command: [C]; limited: which limits bit, a number a channel;
    seq: of the newest action."""

    time: float
    late: float
    mode: str
    measured: list[float]
    aim: list[float]
    command: list[float]
    limited: list[int]
    seq: int


class ServerLog:
    """Use it as a context manager; `event` and `tick` return at once. folder: None keeps the newest events in memory alone."""

    def __init__(self, folder: Path | None) -> None:
        self.folder, self.lost = folder, 0
        self.recent: deque[dict[str, Any]] = deque(maxlen=1000)
        self._waiting: deque[Tick | dict[str, Any]] = deque()
        self._wake, self._closing = threading.Event(), False
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._thread.start()

    @classmethod
    def begun(cls, folder: Path) -> ServerLog:
        """A log in a new folder of a folder, called after the second. Raises RealrlError where it cannot be made."""
        name = time.strftime("%Y%m%d-%H%M%S")
        for also in ("", *(f"-{i}" for i in range(2, 100))):
            try:
                (folder / f"{name}{also}").mkdir(parents=True)
            except FileExistsError:
                if (folder / f"{name}{also}").is_dir():  # another server that was started in the same second
                    continue
                raise RealrlError(f"{folder}: no folder, and no log can be written there: name another with --log") from None
            except OSError as error:
                raise RealrlError(f"{folder}: the log cannot be written there ({error.strerror}): name another folder with --log") from None
            return cls(folder / f"{name}{also}")
        raise RealrlError(f"{folder / name}: a hundred servers were started in one second: name another folder with --log")

    def __enter__(self) -> ServerLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def event(self, what: str, **about: Any) -> None:
        """Something happened."""
        entry = {"time": time.monotonic(), "wall": time.time(), "event": what, **about}
        self.recent.append(entry)
        self._put(entry)

    def tick(self, row: Tick) -> None:
        """A tick is done."""
        self._put(row)

    def _put(self, entry: Tick | dict[str, Any]) -> None:
        if self.folder is None:
            return
        if len(self._waiting) >= WAITING:
            self.lost += 1
        else:
            self._waiting.append(entry)
        if isinstance(entry, dict):
            self._wake.set()

    def close(self) -> None:
        """Write what waits, for up to 2 s."""
        self._closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def _write(self) -> None:
        assert self.folder is not None
        import msgpack
        urgent(LOG)  # whoever is put off while others wait for Python's lock puts them off
        packer, number, size = msgpack.Packer(use_single_float=True), 0, 0
        while not (self._closing and not self._waiting):
            self._wake.wait(0.25)
            self._wake.clear()
            events, rows = [], bytearray()
            while self._waiting:
                entry = self._waiting.popleft()
                if isinstance(entry, dict):
                    events.append(json.dumps(entry, default=str) + "\n")
                else:
                    rows += packer.pack([msgpack.Timestamp.from_unix(entry.time), *entry[1:]])
            try:
                self._append("events.jsonl", "".join(events).encode())
                self._append(f"ticks-{number:04d}.msgpack", bytes(rows))
            except (RealrlError, OSError):
                self.lost += len(events) + bool(rows)
            size += len(rows)
            if size > LARGEST:
                number, size = number + 1, 0
                (self.folder / f"ticks-{number - FILES:04d}.msgpack").unlink(missing_ok=True)

    def _append(self, name: str, data: bytes) -> None:
        assert self.folder is not None
        if data:
            with open_append(self.folder / name) as file:
                size = file.seek(0, 2)
                try:
                    append(file, data, self.folder / name)
                except RealrlError:
                    file.truncate(size)  # of a full disk: half a row would spoil all that follow
                    raise


def read_events(folder: Path) -> list[dict[str, Any]]:
    """The events of a start, oldest first; a last line that a kill cut off is left out."""
    lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def read_ticks(folder: Path) -> Iterator[Tick]:
    """The ticks of a start, oldest first."""
    import msgpack
    for file in sorted(folder.glob("ticks-*.msgpack")):
        with file.open("rb") as stream:
            for row in msgpack.Unpacker(stream, max_buffer_size=2**27):
                yield Tick(row[0].to_unix(), *row[1:])


def describe(event: dict[str, Any]) -> str:
    """An event as a line for people."""
    about = " ".join(f"{k}={v}" for k, v in event.items() if k not in ("time", "wall", "event"))
    return printable(f"{time.strftime('%H:%M:%S', time.localtime(event['wall']))} {event['event']} {about}")


def numbers(values: Array) -> list[float]:
    """For a row."""
    plain: list[float] = np.asarray(values, np.float64).tolist()
    return plain
