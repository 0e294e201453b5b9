"""The pictures of an open video near some seconds, by jumping to key frames where that is shorter than decoding on.

Files of others are of every kind: where groups of pictures are open (x265's default), some pictures are decoded behind a key frame, shown
before it, and need what lies further back; and an H.264 key frame of that kind is none that a strict decoder begins with.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

from realrl.data.errors import BLIND, DRIFT, LATE, mend
from realrl.types import Array, RealrlError

NEAR = 4  # times the tolerance, which is half a frame: what is off by more did not drift, and the nearest picture is of another moment
SLACK = 1e-4  # seconds that are no difference: clocks of other units, and stamps in 32 bits


class Player:
    """A video container, its stream, and the path that errors name. Not to be used after an error."""

    def __init__(self, path: str | Path, container: Any, stream: Any) -> None:
        self._path, self._container, self._stream = path, container, stream
        self._whole = False  # it plays from its beginning alone

    def nearest(self, wanted: Array, tolerance: float) -> Iterator[Any]:
        """The picture for each of these increasing seconds [N]. Raises RealrlError where none is within the tolerance."""
        pictures: Iterator[Any] = iter(())
        previous: Any = None
        current: Any = None
        for t in wanted.tolist():
            if not np.isfinite(t):
                raise RealrlError(f"{self._path}: a frame at {t} s was asked for; give finite seconds")
            if current is None or self._key_between(current, t):
                pictures, previous = self.begin(t), None
                current = next(pictures, None)
            while current is not None and current.time < t - SLACK:
                previous, current = current, next(pictures, None)
            best = min((p for p in (previous, current) if p is not None), key=lambda p: abs(p.time - t), default=None)
            if best is None or abs(best.time - t) > tolerance:
                nearest = "it has no frame there" if best is None else f"the nearest is at {best.time:.4f} s"
                late = best is not None and previous is None and best.time > t  # than the film begins
                near = best is not None and abs(best.time - t) <= NEAR * tolerance
                nearest += ", where the film begins" if late else ""
                raise RealrlError(f"{self._path}: no frame within {tolerance:g} s of {t:.4f} s ({nearest}); "
                                  f"{f'{LATE}; else ' if late else ''}{f'{DRIFT}; else ' if near else ''}{BLIND}")
            yield best

    def begin(self, seconds: float) -> Iterator[Any]:
        """The pictures from one at or before this time on, from the first where there is none."""
        at, entries = 0 if self._whole else max(0, int((seconds + SLACK) / self._stream.time_base)), self._stream.index_entries
        while True:
            pictures = self._pictures(at)
            first = next(pictures, None)
            here = entries.search_timestamp(at, backward=True)
            earlier = entries.search_timestamp(entries[here].timestamp - 1, backward=True) if here >= 0 else -1
            if self._whole or earlier < 0 or (first is not None and first.time <= seconds + SLACK):
                return itertools.chain([] if first is None else [first], pictures)
            at = entries[earlier].timestamp  # a key frame is found by when it is decoded, and this one is shown too late

    def _key_between(self, current: Any, t: float) -> bool:
        """Whether a key frame lies after the current picture and at or before t, so that jumping is shorter than decoding on."""
        entries = self._stream.index_entries
        at = entries.search_timestamp(int(t / self._stream.time_base), backward=True)
        return not self._whole and bool(at >= 0 and entries[at].timestamp > current.pts)

    def _pictures(self, at: int) -> Iterator[Any]:
        """What is decoded from the key frame at or before `at` on; from the beginning where that is none to begin with."""
        shown = -np.inf
        try:
            for picture in self._decoded(at):
                shown = picture.time
                yield picture
        except av.error.InvalidDataError:
            if at <= 0:
                raise
            self._whole = True
            yield from (picture for picture in self._decoded(0) if picture.time > shown)

    def _decoded(self, at: int) -> Iterator[Any]:
        """Less what is decoded behind the key frame and shown before it."""
        self._container.seek(at, stream=self._stream)
        begin: int | None = None
        for packet in self._container.demux(self._stream):
            if packet.size and packet.pts is not None:
                begin = packet.pts if begin is None else begin
                if packet.pts < begin:
                    continue
            for picture in packet.decode():
                if picture.is_corrupt or picture.pts is None:
                    raise RealrlError(f"{self._path} is damaged near {picture.time or 0.0:.3f} s; {inside_mend(self._path)}")
                yield picture


def inside_mend(path: str | Path) -> str:
    """What to do about damage that only shows when pictures are decoded."""
    advice = mend(path)
    return f"{advice[:-1]} --images'" if advice.startswith("run 'realrl data repair") else advice
