"""Pictures that a data file keeps in its cells: PNG or JPEG and the like, the name of a file beside the tables, or plain numbers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa

from realrl.data.errors import BLIND, DAMAGED, DEEP, line
from realrl.files import read_plain, within
from realrl.types import Array, RealrlError

PICTURES = {b"\x89PNG": "png", b"\xff\xd8\xff": "mjpeg", b"RIFF": "webp", b"BM": "bmp", b"II*\0": "tiff", b"MM\0*": "tiff", b"GIF8": "gif"}
FRACTIONS = "fractions"  # in a feature's info: whether its pictures in floats are fractions of 1
OTHERS = {b"\xff\x0a": "JPEG XL", b"\0\0\0\x0cJXL ": "JPEG XL", b"\0\0\0\x0cjP  ": "JPEG 2000", b"\xff\x4f\xff\x51": "JPEG 2000"}


def decoded(column: pa.ChunkedArray, where: str, path: Path, first: int, fractions: bool | None = None) -> Array:
    """Pictures kept in cells (struct with bytes, or plain bytes) as uint8 [T, H, W, 3]; those of 16 bits, depth, as uint16 [T, H, W].
    fractions: see `pixels`."""
    if numbers(column):
        return pixels(column, where, fractions)
    found = [picture(cell, f"{where}, row {first + i}", path) for i, cell in enumerate(column.to_pylist())]
    if len(shapes := list(dict.fromkeys(picture.shape for picture in found))) > 1:
        sizes = " and ".join(f"{height} x {width}" for height, width, *_ in shapes[:2])
        raise RealrlError(f"{where} has pictures of several sizes ({sizes}); {BLIND}")
    return np.stack(found)


def numbers(column: pa.ChunkedArray) -> bool:
    """Whether the pictures are written as numbers."""
    return pa.types.is_nested(column.type) and not pa.types.is_struct(column.type)


def in_fractions(batches: Iterable[pa.Array]) -> bool:
    """Whether pictures of floats are fractions of 1, and no levels to 255, by the first that tells; where there is nothing but 0 and 1
    they are. batches: of cells that hold lists of numbers."""
    for values in batches:
        while pa.types.is_nested(values.type):
            values = values.flatten()
        rows = values.to_numpy(zero_copy_only=False)
        if rows.max(initial=0) > 1 or ((rows > 0) & (rows < 1)).any():
            return not rows.max(initial=0) > 1
    return True


def pixels(column: pa.ChunkedArray, where: str, fractions: bool | None = None) -> Array:
    """Pictures written as lists of lists of numbers, in either order of axes, bytes or fractions of 1, as uint8 [T, H, W, 3]. fractions:
    which of both floats are in this set; None: as these look."""
    values, sides = column.combine_chunks(), list[int]()
    while pa.types.is_nested(values.type):
        outer, empty = max(1, len(values)), values.null_count
        values = values.flatten()
        sides.append(len(values) // outer)
        if empty or len(values) != outer * sides[-1]:
            raise RealrlError(f"{where} has frames that are empty, or of several sizes; {BLIND}")
    if len(sides) != 3 or 3 not in (sides[0], sides[2]):
        raise RealrlError(f"{where} has {sides} numbers a frame, which is no picture in three colours; {BLIND}")
    rows: Array = values.to_numpy(zero_copy_only=False).reshape(-1, *sides)
    rows = rows if sides[2] == 3 else np.moveaxis(rows, 1, 3)
    most = rows.max(initial=0)
    if not (rows.min(initial=0) >= 0 and most <= 255):  # nor where one is NaN
        raise RealrlError(f"{where} has pictures with values outside 0 to 255; {BLIND}")
    small = rows.dtype.kind == "f" and (most <= 1 if fractions is None else fractions)
    if small and most > 1:
        raise RealrlError(f"{where} has pictures of fractions, 0 to 1, and of levels, to {most:g}; {BLIND}")
    pixels: Array = np.rint(rows * np.float32(255) if small else rows).astype(np.uint8)
    return pixels


def picture(cell: Any, where: str, path: Path) -> Array:
    """One picture. path: of the data file, in whose data set a picture's file may lie. Raises RealrlError where there is none."""
    while isinstance(cell, dict) and len(cell) == 1 and isinstance(inner := next(iter(cell.values())), dict):  # one dictionary in another
        cell = inner
    content = cell.get("bytes") or _beside(cell.get("path"), path) if isinstance(cell, dict) else cell
    if not isinstance(content, bytes):
        named = cell.get("path") if isinstance(cell, dict) else None
        what = f"names the picture file {ascii(named)[:80]}, which is not there" if named else "is empty"
        what = "holds text, no picture" if isinstance(cell, str) and cell else what
        raise RealrlError(f"{where} {what}; {BLIND}")
    codec = next((codec for magic, codec in PICTURES.items() if content.startswith(magic)), None)
    if codec is None:
        others = (kind for magic, kind in OTHERS.items() if content.startswith(magic))
        kind = "AVIF or HEIF" if content[4:8] == b"ftyp" else next(others, "none that is known here")
        raise RealrlError(f"{where} holds a picture of a kind that is not read, {kind}; write PNG or JPEG, or {BLIND}")
    try:
        context: Any = av.CodecContext.create(codec, "r")
        context.options = {"max_pixels": str(2**26)}
        pictures = [*context.decode(av.Packet(content)), *context.decode(None)]
        out: Array = pictures[0].to_ndarray(format="gray16le" if pictures[0].format.name.startswith("gray16") else "rgb24")
    except DAMAGED as error:
        raise RealrlError(f"{where} holds a picture that does not decode ({line(error)}); {BLIND}") from error
    return out


def _beside(name: Any, path: Path) -> bytes | None:
    """A picture file that a cell names, relative to the data set that the data file is of."""
    root = next((root for root in path.parents[:DEEP] if (root / "meta").is_dir()), None)
    if root is None or not isinstance(name, str) or not name or "\0" in name or Path(name).is_absolute():
        return None
    within(root, root / name)
    return read_plain(root / name, 2**26) if (root / name).is_file() else None
