"""Depth in video of fewer than 16 bits: what the codes in its pictures mean.

Our own depth is 16-bit FFV1, millimetres as they are. LeRobot spreads the metres between two limits over 12-bit codes, evenly or, by
default, evenly in the logarithm of (metres + shift), and keeps limits and shift in the camera's `info`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from realrl.data.errors import BLIND
from realrl.types import Array, RealrlError

CODES = {"12le": 2**12, "gray16": 2**16}  # what a pixel format has in its name -> its codes
UNTOLD = f"{BLIND}, or keep depth as 16-bit millimetres (gray16le)"


@dataclass(frozen=True)
class Coding:
    """LeRobot's 12-bit coding, or steps of 16 bits. low, high, shift: metres; pixels: what is in the pixel format's name."""

    low: float
    high: float
    shift: float
    log: bool
    pixels: str = "12le"

    def millimetres(self, picture: Any) -> Array:
        """uint16 [H, W], to the millimetre, of a decoded frame whose first plane holds the codes. Raises ValueError for another."""
        if self.pixels not in picture.format.name:
            raise ValueError(f"its pictures are {picture.format.name}, info.json says that they are depth in {self.pixels}")
        plane = picture.planes[0]
        return self.meant(np.frombuffer(plane, np.uint16).reshape(plane.height, -1)[:, :plane.width])

    def meant(self, codes: Array) -> Array:
        """uint16, to the millimetre, of codes of any shape."""
        return _table(self)[np.minimum(codes, CODES[self.pixels] - 1)]


@lru_cache
def _table(coding: Coding) -> Array:
    """What each code means."""
    count, low, high = CODES[coding.pixels], coding.low, coding.high
    share = np.arange(count) / (count - 1)
    if coding.log:
        low, high = np.log(low + coding.shift), np.log(high + coding.shift)
    metres = low + share * (high - low)
    if coding.log:
        metres = np.exp(metres) - coding.shift
    return np.rint(1000 * metres).clip(0, 2**16 - 1).astype(np.uint16)


def told(feature: Mapping[str, Any]) -> dict[str, Any]:
    """What a camera's feature says of its pictures; LeRobot has kept that under two names."""
    found = [about for name in ("video_info", "info") if isinstance(about := feature.get(name), dict)]
    return {key.removeprefix("video."): value for about in found for key, value in about.items() if value is not None}


def is_depth(feature: Mapping[str, Any]) -> bool:
    """Whether a camera is one of depth: what says so, or pictures of grey in more than 8 bits, which are nothing else."""
    about = told(feature)
    return bool(about.get("is_depth_map")) or re.match(r"gray\d\d", str(about.get("pix_fmt"))) is not None


def coding(name: str, feature: Mapping[str, Any]) -> Coding | None:
    """How the depth of a camera is coded; None for plain pictures and for 16-bit millimetres.

    Raises RealrlError for depth whose coding nobody tells, which would pass for colours or for another distance.
    """
    if not is_depth(feature):
        return None
    entries = ("pix_fmt", "depth_min", "depth_max", "shift", "use_log", "depth_unit", "depth_scale")
    about: dict[str, Any] = dict.fromkeys(entries) | told(feature)
    pixels, low, high, shift, log, unit, scale = (about[entry] for entry in entries)
    if (pixels is None or str(pixels).startswith("gray16")) and low is None and high is None:
        if isinstance(scale, int | float) and 0 < scale < 1e3:  # metres a step, as depth cameras say it
            return None if abs(scale - 1e-3) < 1e-9 else Coding(0.0, scale * (CODES["gray16"] - 1), 0.0, False, "gray16")
        if unit in (None, "mm", "millimeter", "millimeters", "millimetre", "millimetres"):
            return None
        raise RealrlError(f"{name} is depth in {pixels} and in {unit}, and whole numbers of {unit} are no picture: write how many metres a "
                          'step is into its info in meta/info.json ("depth_scale": 0.001 for millimetres); else ' + BLIND)
    known = all(isinstance(x, int | float) and np.isfinite(x) for x in (low, high, shift)) and isinstance(log, bool) and low < high
    if "12le" in str(pixels) and known and (low + shift > 0 or not log):
        return Coding(float(low), float(high), float(shift), log)
    raise RealrlError(f"{name} is depth in {pixels}, coded in a way that info.json does not tell; {UNTOLD}")


def cells(pictures: Array, where: str, feature: Mapping[str, Any]) -> Array:
    """Pictures of a feature that a table keeps in its cells, uint8 [T, H, W, 3] as they are, distances as uint16 [T, H, W] millimetres.

    Raises RealrlError as `coding`, for distances that are told and lie in 8 bits, and for distances among colours.
    """
    if pictures.ndim == 3 and not is_depth(feature):
        raise RealrlError(f"{where} is of 16 bits, distances, and the set's first picture is not: if all of this camera are, say so in "
                          f'meta/info.json, in the feature\'s "info": {{"is_depth_map": true}}; else {BLIND}')
    if pictures.ndim == 4 and is_depth(feature):
        raise RealrlError(f"{where} is depth, as info.json has it, in pictures of 8 bits, whose unit nobody tells; {UNTOLD}")
    how = coding(where, {"info": told(feature) | {"is_depth_map": True}}) if pictures.ndim == 3 else None  # 16 bits are nothing else
    return pictures if how is None else how.meant(pictures)
