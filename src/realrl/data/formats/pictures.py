"""Pictures that lie as JPEG or PNG in an array: rows of bytes, or rows of numbers with zeros behind them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from realrl.data.formats import common, hdf5
from realrl.types import Array, RealrlError

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n"
MAX_PIXELS = 2**24


def encoded(row: bytes) -> bool:
    """Whether a row begins like a picture."""
    return row.startswith((JPEG, PNG))


def compressed(found: Any) -> bool:
    """Whether an HDF5 dataset holds a JPEG or PNG in each row, as far as its first ones say."""
    with common.damage(hdf5.where(found)):
        shape, dtype = found.shape, found.dtype
        bytewise = len(shape) == 1 if dtype.kind in "SO" else len(shape) == 2 and dtype == np.uint8 and shape[1] < MAX_PIXELS
        return bytewise and any(encoded(bytes(row) if isinstance(row, bytes) else np.asarray(row).tobytes()) for row in found[:4])


def rows(group: Any, name: str) -> Array:
    """The pictures of such a dataset [T, H, W, 3], those of 16 bits, depth, [T, H, W]."""
    blobs = hdf5.blobs(hdf5.member(group, name), texts=True)
    if blobs is None:
        numbers = hdf5.array(group, name)
        blobs = [] if numbers is None else [row.tobytes() for row in numbers]
    found = decoded(blobs, f"{hdf5.where(group)}/{name}")
    return np.stack([found] * 3, axis=-1) if found.ndim == 3 and found.dtype == np.uint8 else found  # grey


def decoded(blobs: Sequence[bytes | None], where: str) -> Array:
    """Pictures as uint8 [T, H, W, 3] or [T, H, W], 16-bit PNG as uint16 [T, H, W]; what follows a picture in its row is not looked at.

    Raises RealrlError for damage and for pictures of several sizes.
    """
    from PIL import Image
    frames: list[Array] = []
    for blob in blobs:
        with common.damage(f"{where}: picture {len(frames)}"), Image.open(io.BytesIO(blob or b""), formats=["JPEG", "PNG"]) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"picture of {picture.width} x {picture.height}")
            plain = picture if picture.mode in ("RGB", "L") or picture.mode.startswith("I") else picture.convert("RGB")
            frames.append(np.asarray(plain, np.uint16 if plain.mode.startswith("I") else np.uint8))
        if frames[-1].shape != frames[0].shape or len(frames) * frames[0].nbytes > common.MAX_BYTES:
            raise RealrlError(f"{where}: picture {len(frames) - 1} has another size than the first; write pictures of one size")
    return np.stack(frames) if frames else np.zeros((0, 1, 1, 3), np.uint8)
