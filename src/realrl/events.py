"""TensorBoard's event files, written by whoever logs: an error of the disk comes out there, in no thread that would print a traceback."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from realrl.files import append, unwritable


class Board:
    """A folder of scalars for TensorBoard, in a file of this process. purge: of earlier files readers forget this step and later ones.

    Raises RealrlError where the disk does not take it.
    """

    def __init__(self, folder: Path, purge: int | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        now = time.time_ns()  # files are read in the order of their names
        file = folder / f"events.out.tfevents.{now // 10**9:010d}.{now % 10**9:09d}.{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(file, "xb", buffering=0)  # noqa: SIM115  # open as long as the run is
        except OSError as error:
            raise unwritable(file, error) from error
        self._path, step = file, {} if purge is None else {"step": purge}
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2", **step))
        if step:
            self._write(Event(wall_time=time.time(), session_log=SessionLog(status=SessionLog.START), **step))

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write tag -> value of one step."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _write(self, event: Any) -> None:
        """One record: length, its checksum, data, its checksum."""
        from tensorboard.summary.writer.record_writer import masked_crc32c
        data = event.SerializeToString()
        head = struct.pack("<Q", len(data))
        append(self._file, head + struct.pack("<I", masked_crc32c(head)) + data + struct.pack("<I", masked_crc32c(data)), self._path)

    def close(self) -> None:
        """Close the file; every record is already with the operating system."""
        self._file.close()
