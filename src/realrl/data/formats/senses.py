"""What a robot sees, found among a foreign set's arrays by shape and name, and brought into the house's form.

- Colour pictures [T, H, W, 3] or [T, 3, H, W], with or without alpha, are `images.<name>`, uint8 [T, H, W, 3]; other numbers than
  bytes only where the name says so. Grey ones in bytes, [T, H, W] or a channel of one before or behind, are, too, in three alike.
- Whole numbers of a pixel that are neither, what a pixel belongs to, are `masks.<name>`, as they are.
- Distances [T, H, W], a channel of one before or behind, whose name has the word depth, are `depth.<name>`, uint16 millimetres.
- Clouds of floats [T, P, 3 or 6] are `pointcloud`, float32 in metres, colours in [0, 1]; several are `pointcloud.<name>`.

All else keeps its name, rows of one number become [T, 1].
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from realrl.data.formats import common
from realrl.types import Array, RealrlError

SENSES = ("images.", "depth.", "pointcloud", "masks.")  # what observations that are no numbers begin with
LEAST_SIDE = 8  # pixels
LEAST_POINTS = 32  # of an array that is a cloud by its shape alone; fewer are key points
DEPTH = re.compile(r"(^|[_.])depth([_.]|$)", re.IGNORECASE)
PICTURE = re.compile(r"rgb|ima?ge?|colou?r|cam|pic|view|frame|video|pixel", re.IGNORECASE)
GREY = re.compile(r"gr[ae]y|mono|infra|(^|[_.])ir([_.]|$)", re.IGNORECASE)
MASK = re.compile(r"(^|[_.])(seg|mask)|segment|instance", re.IGNORECASE)
CLOUD = re.compile(r"cloud|(^|[_.])(pcd|pcl|pc)([_.]|$)", re.IGNORECASE)
MEND = "write the set without it"
KEYS = "name the others with keys=NAME,NAME"  # where the format has this option
METRES, NEAR = 50.0, 0.1  # what is nearer than all but a tenth of a robot's picture is below it in metres, above it in millimetres


class Levels:
    """Whether colours in floats are fractions of 1 or levels to 255, and distances in floats metres. One for a whole set: an episode in
    which there is nothing but 0 and 1 says neither, and is what others of the set are. episodes: all of them anew, to look at until one
    tells."""

    def __init__(self) -> None:
        self.episodes: Callable[[], Iterable[Any]] = tuple
        self._found: dict[str, bool] = {}
        self._metres: dict[str, bool] = {}
        self._looking = False

    def fractions(self, ours: str, rows: Array) -> bool:
        """Whether an episode's pictures [T, ...] of a camera are fractions; where no episode tells, they are."""
        if rows.dtype.kind != "f" or not (rows.min(initial=0) >= 0 and rows.max(initial=0) <= 1):
            self._found[ours] = False
            return False
        if ((rows > 0) & (rows < 1)).any():
            self._found[ours] = True
            return True
        if ours not in self._found and not self._looking and rows.any():
            self._looking = True
            any(ours in self._found for _ in self.episodes())
            self._looking = False
            self._found.setdefault(ours, True)
        return self._found.get(ours, True)


    def metres(self, ours: str, rows: Array) -> bool:
        """Whether an episode's distances [T, ...] of a camera are metres, by the first episode in which anything was seen."""
        seen = rows[rows > 0] if ours not in self._metres else rows[:0]  # nothing was measured where it is 0
        if seen.size:
            self._metres[ours] = not float(np.quantile(seen, NEAR)) > METRES
        return self._metres.get(ours, True)


def names(found: Mapping[str, tuple[Sequence[int], Any]], where: Path, suffix: str = "", mend: str = MEND) -> dict[str, str]:
    """Our name of every array. found: its own name -> (shape [T, ...], dtype); suffix: what its pictures' names end with, which is cut
    off; mend: how to read without one, for errors. Raises RealrlError where two would have one name."""
    kinds = {name: kind(name, shape, np.dtype(dtype)) for name, (shape, dtype) in found.items()}
    clouds = [name for name, sense in kinds.items() if sense == "pointcloud"]
    ours: dict[str, str] = {}
    for name, sense in kinds.items():
        common.key_name(name, where)
        if sense == "images":
            ours[name] = "images." + (name.removeprefix("images.").removesuffix(suffix) or name)
        elif sense == "depth":
            ours[name] = "depth." + (name.removeprefix("depth.").removesuffix("_depth") or name)
        elif sense == "masks":
            ours[name] = "masks." + name.removeprefix("masks.")
        elif sense == "pointcloud" and not name.startswith("pointcloud."):
            ours[name] = sense if len(clouds) == 1 or name in ("point_cloud", sense) else f"{sense}.{name}"
        else:
            ours[name] = name
    twice = [name for name, count in Counter(ours.values()).items() if count > 1]
    if twice:
        both = [name for name, own in ours.items() if own == twice[0]]
        raise RealrlError(f"{where}: {both[0]} and {both[1]} would both be called {twice[0]}; {mend}")
    return ours


def kind(name: str, shape: Sequence[int], dtype: np.dtype[Any]) -> str:
    """What an array of rows [T, ...] is: "images", "depth", "pointcloud", "masks", or "" for numbers."""
    size, plane = tuple(shape[1:]), _plane(tuple(shape[1:]))
    if _channels(size, dtype) is not None and (dtype == np.uint8 or PICTURE.search(name)):
        return "images"
    if len(plane) == 2 and min(plane) >= LEAST_SIDE:
        if DEPTH.search(name) and dtype.kind in "uif":
            return "depth"
        if MASK.search(name) and dtype.kind in "uib":
            return "masks"
        if dtype == np.uint8 and (PICTURE.search(name) or GREY.search(name)):
            return "images"
    if dtype.kind == "f" and len(size) == 2:
        named = CLOUD.search(name) is not None
        if (size[1] in (3, 6) and size[0] >= (1 if named else LEAST_POINTS)) or (named and size[0] in (3, 6) and size[1] > 6):
            return "pointcloud"
    return ""


def converted(rows: Array, ours: str, where: str, scale: float | None = None, mend: str = MEND, levels: Levels | None = None
              ) -> Array:
    """Rows [T, ...] of an array in the form of what `names` called it. scale: what pixels are multiplied by to reach 0..255, by default
    1, and 255 for fractions in 0..1; mend: how to read without the array, for errors; levels: of the whole set.

    Raises RealrlError for pixels that are none, and for distances without a unit.
    """
    levels = levels or Levels()
    if ours.startswith("images."):
        axis = _channels(rows.shape[1:], rows.dtype)
        if axis is None and len(plane := _plane(rows.shape[1:])) == 2 and rows.dtype == np.uint8:
            return np.repeat(rows.reshape(len(rows), *plane, 1), 3, axis=3)
        if axis is None:
            raise RealrlError(f"{where}: rows of {list(rows.shape[1:])} are no pictures, others of it are; {mend}")
        rows = np.ascontiguousarray((rows if axis == 2 else np.moveaxis(rows, 1, 3))[..., :3])
        if scale is None and levels.fractions(ours, rows):
            return np.rint(rows * np.float32(255)).astype(np.uint8)
        return common.to_images(rows, scale, where, mend)
    if ours.startswith("masks."):
        return rows.reshape(len(rows), *_plane(rows.shape[1:]))
    if ours.startswith("depth."):
        return _millimetres(rows, ours, where, mend, levels)
    if ours.startswith("pointcloud"):
        cloud = common.numbers(rows if rows.shape[-1] in (3, 6) else np.swapaxes(rows, 1, 2))
        colours = cloud[..., 3:]
        if colours.size and colours.min() >= 0 and not levels.fractions(ours, colours):
            cloud = np.concatenate([cloud[..., :3], colours / np.float32(255)], axis=-1)
        return cloud
    return common.numbers(rows[:, None] if rows.ndim == 1 else rows)


def _channels(size: Sequence[int], dtype: np.dtype[Any]) -> int | None:
    """Where the three colours of a picture [H, W, 3] or [3, H, W] are, None for no picture; a fourth is alpha in bytes only."""
    colours = (3, 4) if dtype == np.uint8 else (3,)
    if len(size) == 3 and dtype.kind in "uif":
        for axis, sides in ((2, size[:2]), (0, size[1:])):
            if size[axis] in colours and min(sides) >= LEAST_SIDE:
                return axis
    return None


def _plane(size: Sequence[int]) -> tuple[int, ...]:
    """[H, W] of [H, W], [H, W, 1] and [1, H, W]."""
    return tuple(size[:2]) if len(size) == 3 and size[2] == 1 else tuple(size[1:]) if len(size) == 3 and size[0] == 1 else tuple(size)


def _millimetres(rows: Array, ours: str, where: str, mend: str, levels: Levels) -> Array:
    """Distances in metres (floats) or millimetres as uint16 [T, H, W]."""
    rows = rows.reshape(len(rows), *_plane(rows.shape[1:]))
    if rows.dtype == np.uint16:
        return rows
    if rows.dtype.itemsize == 1:
        raise RealrlError(f"{where}: distances in 8 bits have no unit that is known here; {mend}")
    if not np.isfinite(rows).all():
        raise RealrlError(f"{where}: depth is NaN or infinite somewhere; {mend}")
    metres = rows.dtype.kind == "f" and levels.metres(ours, rows)
    return np.clip(np.rint(rows.astype(np.float64) * (1000.0 if metres else 1.0)), 0, 65535).astype(np.uint16)
