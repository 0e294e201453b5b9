"""Episodes taken out of video files into files of their own, packet by packet: nothing is encoded again.

What can be cut so is what begins at a key frame, in a file whose packets come in the order they are shown (ours do, and most that
were made for robots). The result is laid out as `footage` says: the episodes one after the other, then their last pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from realrl.data import video
from realrl.data.footage import Place
from realrl.data.video import Packet
from realrl.files import publish

Span = tuple[int, int, int | None]  # (first picture, how many, the one after the last action) as numbers of pictures in the file


def cut(source: Path, target: Path, spans: Sequence[Span]) -> list[Place] | None:
    """Write some episodes of a video file to another and say where they lie; None when that needs encoding.

    Raises RealrlError when the source is damaged or shorter than the spans, or the target cannot be written.
    """
    header, packets = video.header(source), list(video.packets(source))
    if any(p.pts != i or p.dts != i for i, p in enumerate(packets)):
        return None
    films: list[tuple[list[Packet], Packet | None]] = []
    for first, n, last in spans:
        own = packets[first:first + n]
        if len(own) < n or not own[0].key:
            return None
        films.append((own, packets[last] if last is not None and last < len(packets) else None))
    fps, placed = float(header.fps), [p for own, _ in films for p in own]
    places, start = list[Place](), 0
    for own, end in films:
        n, shown = len(own), None
        if end is not None:  # behind the episodes, and before it what it refers to, back to a key frame
            if len(films) > 1 and not end.key:
                placed += own[max(i for i in range(n) if own[i].key):]
            placed.append(end)
            shown = (len(placed) - 1) / fps
        places.append(Place(start / fps, (start + n) / fps, shown))
        start += n
    publish(target, partial(video.mux, header=header, packets=[replace(p, pts=i, dts=i) for i, p in enumerate(placed)]))
    return places
