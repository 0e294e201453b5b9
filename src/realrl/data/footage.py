"""Where an episode's pictures lie in video files, how they get there and how they come back.

An episode has one picture more than it has actions. LeRobot knows the T pictures that belong to actions, and tools that read its
datasets count on a file holding those of its episodes one after the other and nothing between. So a file of ours holds

    episode 0's T0 pictures, episode 1's T1, ... , then the last pictures of all of them

and an episodes row says, beside LeRobot's `videos/<camera>/from_timestamp` and `to_timestamp` (from + T / fps), where the last
picture is: `videos/<camera>/last_timestamp`, empty where it was never filmed. Packets are only ever copied: behind the episodes go the
last few packets of each, back to a key frame, so that nothing that is played refers across a seam.

In other people's sets the pictures are where the tables' timestamps say, which LeRobot, too, goes by: frames that come as they please,
and files that were joined with a little drift.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Unfinished
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from realrl.data import clocks, video
from realrl.data.depth import Coding
from realrl.data.errors import BLIND
from realrl.data.stats import image_stats, sampled_frames
from realrl.data.video import Codec, Header, Packet
from realrl.types import Array, RealrlError

Encoded = tuple[Header, Sequence[Packet]]  # all T+1 pictures of one camera of one episode, or T where the last was not filmed
STUCK, TRIES = 20.0, 3  # seconds without a frame after which an encoder stands still for good; encoders that are tried
CLOCK = 1e-4  # seconds that a timestamp may be off frame_index / fps for LeRobot; closer ones mean just that


@dataclass(frozen=True)
class Place:
    """Where an episode lies in a video file, seconds: its T pictures in [start, stop), the one after the last action at `last`."""

    start: float
    stop: float
    last: float | None

    @classmethod
    def of(cls, row: Mapping[str, Any], camera: str, root: str = "") -> Place:
        """As an episodes row has it. root: of the dataset and a slash, for an error. Raises RealrlError when it says nothing of this
        camera."""
        start, stop, last = (row.get(f"videos/{camera}/{name}_timestamp") for name in ("from", "to", "last"))
        if start is None or stop is None:
            raise RealrlError(f"{root}meta/episodes does not tell where episode {row.get('episode_index')} lies in its video of {camera}; "
                              f"{BLIND}")
        return cls(float(start), float(stop), None if last is None else float(last))

    def times(self, length: int, fps: float, stamps: Array | None = None) -> Array:
        """Seconds [T+1] of every observation's picture in the file; where the last one was not recorded, the one before it again.

        stamps: the tables' timestamps [T], counted from `start`, in any unit; without them the pictures follow each other at the set's
        rate. Raises RealrlError when the row's numbers are not finite.
        """
        if not all(np.isfinite(t) and abs(t) < 1e9 for t in (self.start, self.stop, self.last or 0.0)):
            raise RealrlError(f"a video from {self.start} s to {self.stop} s, as meta/episodes has it, cannot be; run `realrl data check`")
        seen = self.start + np.arange(length + 1) / fps
        own, stamps = False, None if stamps is None else clocks.in_seconds(stamps, fps)
        if stamps is not None and len(stamps) == length and np.isfinite(stamps).all() and (np.diff(stamps) > 0).all():
            own = not np.allclose(stamps, seen[:-1] - self.start, rtol=0, atol=CLOCK)
            seen[:-1] = self.start + stamps if own else seen[:-1]
        if own or round((self.stop - self.start) * fps) <= length:  # a segment may also just go on
            seen[-1] = seen[-2] if self.last is None else self.last
        return seen


def tolerance(fps: float) -> float:
    """Seconds between a frame's time in the tables and its picture that are let pass by default: half a frame. Nearer to a picture than to
    any other it is that one's; LeRobot's own 0.1 ms refuse sets that were joined or cut by others' tools for a drift nobody sees."""
    return 0.5 / fps


def seconds(path: Path, place: Place, length: int, fps: float, stamps: Array | None, tolerance_s: float) -> Array:
    """`Place.times` by the tables' timestamps; by the number of the frame where those are a clock of their own, which the video did not
    follow: no picture of this episode is where they say, and one is at every 1 / fps."""
    own, regular = place.times(length, fps, stamps), place.times(length, fps)
    if (own[:-1] == regular[:-1]).all() or not path.exists():
        return own
    shown = video.times(path)
    mine = shown[(shown > place.start - 0.5 / fps) & (shown < place.stop - 0.5 / fps)]
    mine = mine if len(mine) >= length else shown  # else the rows do not say how long the film really is
    return regular if not present(mine, own[:-1], tolerance_s) and present(shown, regular, tolerance_s) else own


def present(shown: Array, wanted: Array, tolerance_s: float) -> bool:
    """Whether there is a picture within the tolerance of each of these seconds. shown: when pictures are, increasing."""
    at = np.searchsorted(shown, wanted).clip(1, max(1, len(shown) - 1))
    return len(shown) > 1 and bool((np.minimum(np.abs(shown[at] - wanted), np.abs(shown[at - 1] - wanted)) <= tolerance_s).all())


def encode(films: Sequence[tuple[Array, Codec]], fps: float) -> list[Encoded]:
    """Every film, uint8 [T+1, H, W, 3] or (depth, whose codec is fixed) uint16 [T+1, H, W], as packets; several at a time. Raises
    RealrlError where encoders stand still, see `_patiently`."""
    def one(order: tuple[Array, Codec], alive: Callable[[], None]) -> Encoded:
        film, codec = order
        encoder = video.PacketEncoder(film.shape[2], film.shape[1], fps, codec, depth=film.ndim == 3)
        packets = list[Packet]()
        for frame in film:
            packets += encoder.encode(frame)
            alive()
        return encoder.header, packets + encoder.finish()

    with ThreadPoolExecutor(min(len(films), os.cpu_count() or 1) or 1) as pool:
        return list(pool.map(lambda order: _patiently(lambda alive: one(order, alive)), films))


def _patiently(work: Callable[[Callable[[], None]], Encoded]) -> Encoded:
    """What the work gives, which says from time to time that it is alive. Where it does not for `STUCK` seconds it is left alone and begun
    anew: SVT-AV1 now and then waits for itself for ever, and a thread that waits in it cannot be ended."""
    for _ in range(TRIES):
        done, last = Future[Encoded](), [time.monotonic()]

        def run(done: Future[Encoded] = done, last: list[float] = last) -> None:
            try:
                done.set_result(work(lambda: last.__setitem__(0, time.monotonic())))
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=run, name="encoder", daemon=True).start()
        while time.monotonic() - last[0] < STUCK:
            try:
                return done.result(min(STUCK, 1.0))
            except Unfinished:
                if done.done():  # the work's own
                    raise
        warnings.warn(f"a video encoder made nothing of a frame for {STUCK:g} s; the film is encoded anew", stacklevel=2)
    raise RealrlError(f"{TRIES} video encoders one after another stood still for {STUCK:g} s each: free the machine, or use another codec, "
                      "h264")


def feature(name: str, film: Array | None, header: Header | None) -> dict[str, Any]:
    """The feature of a camera, from what it delivers or from how that was encoded. Raises RealrlError when that is no picture."""
    if header is not None:
        height, width, depth, info = header.height, header.width, header.depth, header.info
    elif film is not None:
        colour = film.dtype == np.uint8 and film.ndim == 4 and film.shape[-1] == 3
        if not colour and not (film.dtype == np.uint16 and film.ndim == 3):
            raise RealrlError(f"{name} is {film.dtype} {list(film.shape)}; a camera is uint8 [T+1, H, W, 3], depth uint16 [T+1, H, W]: "
                              "convert it or call it by another name")
        height, width, depth = film.shape[1], film.shape[2], film.ndim == 3
        info = {"video.is_depth_map": depth}
    else:
        raise ValueError("neither film nor header")
    return {"dtype": "video", "shape": [height, width, 1 if depth else 3], "names": ["height", "width", "channels"], "info": info}


def check_encoded(where: str, name: str, encoded: Encoded, length: int, feature: Mapping[str, Any], fps: float, last: bool = True) -> None:
    """Raise RealrlError unless these packets are T+1 pictures as this camera of the dataset delivers them; without `last` T will do."""
    header, packets = encoded
    whole = sorted(p.pts for p in packets) == list(range(len(packets))) and len(packets) in (length + last, length + 1)
    whole = whole and packets[0].key and packets[0].pts == 0 and (len(packets) == length or packets[-1].pts == length)
    if not whole or any(p.dts != packets[0].dts + i for i, p in enumerate(packets)):
        raise RealrlError(f"{where}: {name} must have {length + 1} packets numbered from 0, in the order they are decoded and beginning "
                          f"with a key frame, it has {len(packets)}; encode one picture an observation, the last one included")
    told = feature.get("info") or {}
    for entry in ("video.height", "video.width", "video.codec", "video.is_depth_map"):
        if told.get(entry, header.info[entry]) != header.info[entry]:
            raise RealrlError(f"{where}: {name} was encoded with {entry} {header.info[entry]}, the dataset has {told[entry]}; "
                              "use the dataset's settings or record into a new folder")
    if abs(float(header.fps) - fps) > 1e-3:
        raise RealrlError(f"{where}: {name} was encoded at {float(header.fps):g} fps, the dataset runs at {fps:g}; use its rate")


def joined(films: Sequence[Encoded], lengths: Sequence[int]) -> tuple[Header, list[Packet], list[Place]]:
    """The packets of one file that holds some episodes, each with T = length actions, and where they lie in it."""
    header, fps = films[0][0], float(films[0][0].fps)
    if any(other != header for other, _ in films):
        raise RealrlError("episodes of one camera were encoded with different settings; append them one by one")
    delay = max(-own[0].dts for _, own in films)  # one decoder plays all of them
    packets: list[Packet] = []
    for (_, own), n in zip(films, lengths, strict=True):
        packets += _moved(own[:n], len(packets), delay)
    places, start = [], 0
    for (_, own), n in zip(films, lengths, strict=True):
        last = None
        if len(own) > n:  # one episode's last picture follows it anyway
            packets += _moved(own[n if len(films) == 1 else max(i for i in range(n + 1) if own[i].key):], len(packets), delay)
            last = (len(packets) - 1) / fps
        places.append(Place(start / fps, (start + n) / fps, last))
        start += n
    return header, packets, places


def _moved(packets: Sequence[Packet], to: int, delay: int = 0) -> Iterator[Packet]:
    """The same packets, the first of them at frame `to`."""
    return (Packet(p.data, to + p.pts - packets[0].pts, to + i - delay, p.key) for i, p in enumerate(packets))


def read(path: Path, seconds: Array, tolerance_s: float, coding: Coding | None = None) -> Array:
    """An episode's pictures at these seconds [T+1]: uint8 [T+1, H, W, 3], or uint16 [T+1, H, W] for depth.

    Raises FileNotFoundError, and RealrlError when the file is damaged or shorter than the tables say.
    """
    if not path.exists():
        raise FileNotFoundError(2, "missing", str(path))
    return video.decode(path, seconds, tolerance_s, coding)


def stats(path: Path, place: Place, length: int, fps: float, coding: Coding | None = None) -> dict[str, Array]:
    """Statistics of an episode's pictures, from a sample of them."""
    return image_stats(video.decode(path, place.times(length, fps)[sampled_frames(length)], tolerance(fps), coding))


# ---- several files into one


def merge(sources: Sequence[tuple[Path, int]], file: BinaryIO) -> Callable[[int, float], float]:
    """Write several files of ours into one without encoding anything.

    sources: (path, how many pictures lie before its last ones). Gives a function from (number of the source, seconds in it) to
    seconds in the new file. Raises RealrlError when a file is damaged, shorter, or of another kind than the first.
    """
    header = video.header(sources[0][0])
    fps, begin = float(header.fps), np.cumsum([0, *(n for _, n in sources)])
    tails: list[list[Packet]] = []

    def episodes() -> Iterator[Packet]:
        for (path, n), offset in zip(sources, begin[:-1].tolist(), strict=True):
            if video.header(path) != header:
                raise RealrlError(f"{path} and {sources[0][0]} were encoded with different settings; they cannot share a file")
            count = 0
            tail: list[Packet] = []
            for packet in video.packets(path):
                if packet.pts != count or packet.dts != count:
                    raise RealrlError(f"{path}: picture {count} is not where it should be; run `realrl data check`")
                if packet.key and count <= n:
                    tail = []
                tail.append(packet)
                if count < n:
                    yield Packet(packet.data, packet.pts + offset, packet.dts + offset, packet.key)
                count += 1
            if count < n:
                raise RealrlError(f"{path} holds {count} pictures, its episodes have {n}; run `realrl data check`")
            tails.append(tail if count > n else [])
        at = int(begin[-1])
        for tail in tails:
            yield from _moved(tail, at)
            at += len(tail)

    video.mux(file, header, episodes())
    behind = begin[-1] + np.cumsum([0, *map(len, tails)])

    def moved(source: int, seconds: float) -> float:
        n = sources[source][1]
        frame = round(seconds * fps)
        if frame <= n and not tails[source]:
            return float((begin[source] + frame) / fps)
        return float((begin[source] + frame if frame < n else behind[source] + frame - tails[source][0].pts) / fps)

    return moved
