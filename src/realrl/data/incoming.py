"""Episodes on their way into a dataset: what they bring, and whether they may join."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from realrl.data import compaction, footage, schema, tables, video
from realrl.data.footage import Encoded
from realrl.data.schema import Info
from realrl.data.stats import Stats, image_stats, sampled_frames
from realrl.data.tables import FileKey
from realrl.data.video import Codec
from realrl.files import publish
from realrl.types import Array, Episode


@dataclass
class Incoming:
    """An episode on its way to the disk. films: its cameras' pictures, of those that did not come encoded; kept: columns beside ours;
    stats: of cameras; last: whether all cameras must have seen what followed the last action."""

    episode: Episode
    numbers: dict[str, Array]
    films: dict[str, Array]
    encoded: dict[str, Encoded] = field(default_factory=dict)
    kept: Mapping[str, Array] = field(default_factory=dict)
    stats: Stats = field(default_factory=dict)
    last: bool = True

    def encode(self, codec: Callable[[str], Codec], fps: float) -> None:
        """Make packets of the pictures. codec: of a camera."""
        for name, film in self.films.items():
            self.stats[name] = image_stats(film[sampled_frames(len(self.episode))])
        if self.films:
            orders = [(film, codec(name)) for name, film in self.films.items()]
            self.encoded |= dict(zip(self.films, footage.encode(orders, fps), strict=True))


def checked(root: Path, takes: Sequence[Incoming], known: Info | None, names: Mapping[str, Any], *, fps: float, first: int, frames: int,
            tasks: Sequence[str]) -> tuple[Info, list[dict[str, Array]], list[str], Array]:
    """(features, columns of each, task texts, first frame of each and of the next) if all of them may join, else RealrlError.

    known: the dataset's features, None before its first episode; names: column -> what its numbers are called; first, frames, tasks: how
    many episodes and frames there are, and their tasks.
    """
    starts = frames + np.cumsum([0, *(len(t.episode) for t in takes)])
    tasks = list(dict.fromkeys([*tasks, *(t.episode.task for t in takes)]))
    columns = []
    for i, take in enumerate(takes):
        own = schema.columns(take.episode, take.numbers, fps, first + i, int(starts[i]), tasks.index(take.episode.task))
        columns.append(own | {name: x for name, x in take.kept.items() if name not in own})
    features: Info = known or schema.features(columns[0], names) | {
        name: footage.feature(f"{root}: {name}", takes[0].films.get(name), (takes[0].encoded.get(name) or (None,))[0])
        for name in takes[0].films | takes[0].encoded}
    for i, take in enumerate(takes):
        where = f"{root}: episode {first + i} (number {i} of this append)"
        schema.same_names(where, take.films | take.encoded, tables.cameras(features))
        schema.validate(take.episode, where, columns[i], take.films, features, take.kept)
        for name, encoded in take.encoded.items():
            footage.check_encoded(where, name, encoded, len(take.episode), features[name], fps, take.last)
    return features, columns, tasks, starts


def publish_films(takes: Sequence[Incoming], keys: Mapping[str, FileKey], files: Mapping[str, Path], fps: float) -> list[dict[str, Any]]:
    """Write one video file a camera, under its number and path; gives what each episode's row says of them. Fills in statistics that are
    missing."""
    rows: list[dict[str, Any]] = [{} for _ in takes]
    for camera, key in keys.items():
        header, packets, places = footage.joined([t.encoded[camera] for t in takes], [len(t.episode) for t in takes])
        compaction.set_aside(files[camera])
        publish(files[camera], partial(video.mux, header=header, packets=packets))
        for row, take, place in zip(rows, takes, places, strict=True):
            values = (*key, place.start, place.stop, place.last)
            row |= {f"videos/{camera}/{name}": value for name, value in zip(tables.VIDEO_FIELDS, values, strict=True)}
            if camera not in take.stats:
                take.stats[camera] = footage.stats(files[camera], place, len(take.episode), fps)
    return rows
