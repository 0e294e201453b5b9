"""What policy servers and their clients say to each other: the websocket format of openpi, msgpack with numpy's arrays in it. No pickle.

An array is the map {__ndarray__: true, data, dtype, shape}, a numpy scalar {__npgeneric__: true, data, dtype}, keys as bytes. Nothing that
a stranger sends is allocated beyond what his message holds, and only plain numbers are read.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from realrl.types import RealrlError

ARRAY, SCALAR = b"__ndarray__", b"__npgeneric__"
NUMBERS = "biuf"  # kinds of numpy types that may be sent: neither objects nor records
TYPE = re.compile(r"[<>=|]?[biuf][1248]")
DEEPEST = 8  # maps and lists within one another


def load() -> Any:
    """The msgpack package. Raises RealrlError, with what to install, where it is missing."""
    try:
        import msgpack
    except ImportError as error:
        raise RealrlError(f"policies over the network need msgpack and websockets ({error}): pip install 'realrl[serve]'") from error
    return msgpack


def pack(value: Any) -> bytes:
    """A message: None, bool, numbers, text, bytes, arrays, and lists and maps of them. Raises TypeError for anything else."""
    packed: bytes = load().packb(value, default=_encode)
    return packed


def unpack(data: bytes) -> Any:
    """The inverse of `pack`; arrays are read-only views into the message. Raises RealrlError for what it never writes."""
    try:
        value = load().unpackb(data, object_hook=_decode, strict_map_key=False)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:  # msgpack's own are ValueErrors
        raise RealrlError(f"not a message of msgpack with numpy arrays ({' '.join(str(error).split())[:200] or type(error).__name__})"
                          ) from None
    level = [value]
    for _ in range(DEEPEST):
        level = [v for one in level for v in (one.values() if isinstance(one, dict) else one if isinstance(one, list) else ())]
    if level:
        raise RealrlError(f"a message nested deeper than {DEEPEST} levels")
    return value


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in NUMBERS:
        if isinstance(value, np.ndarray):
            return {ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": list(value.shape)}
        return {SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}
    if isinstance(value, tuple):
        return list(value)
    raise TypeError(f"a {type(value).__name__} cannot be sent")


def _decode(value: dict[Any, Any]) -> Any:
    if ARRAY not in value and SCALAR not in value:
        return value
    name = value[b"dtype"]
    if not isinstance(name, str) or not TYPE.fullmatch(name):
        raise ValueError("an array of no plain numbers")
    kind = np.dtype(name)
    if SCALAR in value:
        with np.errstate(over="ignore"):
            return kind.type(value[b"data"])
    data, shape = value[b"data"], value[b"shape"]
    sides = isinstance(shape, list) and len(shape) <= 8 and all(type(side) is int and 0 <= side < 2**31 for side in shape)
    if not (isinstance(data, bytes) and sides and len(data) == kind.itemsize * math.prod(shape)):
        raise ValueError(f"an array whose {len(data) if isinstance(data, bytes) else 'missing'} bytes are not its shape's")
    return np.frombuffer(data, kind).reshape(shape)

