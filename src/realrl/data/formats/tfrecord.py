"""TFRecord files and the `tf.train.Example` messages in them, read without TensorFlow.

A record file is a row of frames: length (8 bytes), masked CRC-32C of it, the record, masked CRC-32C of that (described in
tensorflow/core/lib/io/record_writer.h). An Example is a protocol buffer: a map from a name to a list of bytes, floats or
integers (tensorflow/core/example/feature.proto).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from realrl.data.formats.common import AGAIN
from realrl.types import Array, RealrlError


def records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file, one in memory at a time. Raises RealrlError at the first that is damaged or cut short."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            at = 0
            while at < size:
                record = _record(file, size - at, f"{path}: at byte {at}")
                at += 16 + len(record)
                yield record
    except OSError as error:
        raise RealrlError(f"{path} could not be read ({error.strerror or error})") from error


def _record(file: BinaryIO, left: int, where: str) -> bytes:
    head = file.read(12)
    if len(head) < 12 or masked_crc(head[:8]) != struct.unpack("<I", head[8:])[0]:
        raise RealrlError(f"{where}: no record begins here; the file is truncated, damaged or compressed; unpack it, or {AGAIN}")
    length = struct.unpack("<Q", head[:8])[0]
    if length + 16 > left:
        raise RealrlError(f"{where}: the record says {length} bytes but the file ends before; {AGAIN}")
    record, check = file.read(length), file.read(4)
    if len(check) < 4 or masked_crc(record) != struct.unpack("<I", check)[0]:
        raise RealrlError(f"{where}: the record's checksum is wrong; {AGAIN}")
    return record


def library() -> Any:
    """google_crc32c. Raises RealrlError with the install hint where it is missing."""
    try:
        import google_crc32c
    except ImportError as error:
        raise RealrlError("record files need google-crc32c: pip install 'realrl[data]'") from error
    return google_crc32c


def masked_crc(data: bytes) -> int:
    """The checksum (CRC-32C) as TFRecord stores it."""
    crc = int(library().value(data))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# ---- protocol buffers


def _varint(data: memoryview, at: int, where: str) -> tuple[int, int]:
    value = 0
    for i in range(10):
        if at + i >= len(data):
            break
        value |= (data[at + i] & 127) << (7 * i)
        if data[at + i] < 128:
            return value, at + i + 1
    raise RealrlError(f"{where}: a number in the record does not end; {AGAIN}")


def _fields(data: memoryview, where: str) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a message: bytes for length-delimited and fixed fields, integers for varints."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at, where)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at, where)
            yield tag >> 3, value
            continue
        if kind not in (1, 2, 5):
            raise RealrlError(f"{where}: it is no tf.train.Example; give the record files of an RLDS set, or {AGAIN}")
        size, at = _varint(data, at, where) if kind == 2 else (8 if kind == 1 else 4, at)
        if size > len(data) - at:
            raise RealrlError(f"{where}: a field says {size} bytes but the record ends before; {AGAIN}")
        yield tag >> 3, data[at:at + size]
        at += size


def example(record: bytes, where: str) -> dict[str, Any]:
    """A tf.train.Example as {name: list of bytes | float32 [N] | int64 [N]}. Raises RealrlError when it is none."""
    out: dict[str, Any] = {}
    for number, features in _fields(memoryview(record), where):
        for _, entry in _fields(_message(features, where), where) if number == 1 else ():
            parts = dict(_fields(_message(entry, where), where))
            name = bytes(_message(parts.get(1, b""), where)).decode("utf-8", "replace")
            for kind, values in _fields(_message(parts.get(2, b""), where), where):
                out[name] = _values(kind, _message(values, where), f"{where}: {ascii(name)[:80]}")
    return out


def _message(value: Any, where: str) -> memoryview:
    if isinstance(value, int):
        raise RealrlError(f"{where}: it is no tf.train.Example; give the record files of an RLDS set, or {AGAIN}")
    return memoryview(value)


def _values(kind: int, data: memoryview, where: str) -> Any:
    items = [v for _, v in _fields(data, where)]
    if kind == 1:
        return [_message(v, where) for v in items]
    if kind == 2:
        raw = b"".join(_message(v, where) for v in items)  # packed, or one by one: the same bytes
        if len(raw) % 4:
            raise RealrlError(f"{where}: half a float; {AGAIN}")
        return np.frombuffer(raw, "<f4")
    if kind == 3:
        parts = [np.array([v], np.uint64) if isinstance(v, int) and v < 2**64 else _varints(_message(v, where), where) for v in items]
        return np.concatenate([np.zeros(0, np.uint64), *parts]).astype(np.int64)
    raise RealrlError(f"{where}: it is no tf.train.Example; give the record files of an RLDS set, or {AGAIN}")


def _varints(data: memoryview, where: str) -> Array:
    """Packed varints, [N] uint64, all at once."""
    raw = np.frombuffer(data, np.uint8)
    stop = np.flatnonzero(raw < 128) + 1
    size = np.diff(stop, prepend=0)
    if (len(raw) and raw[-1] >= 128) or (size > 10).any():
        raise RealrlError(f"{where}: a number in the record does not end; {AGAIN}")
    out = np.zeros(len(stop), np.uint64)
    for i in range(int(size.max(initial=0))):
        has = size > i
        out[has] |= (raw[(stop - size)[has] + i] & np.uint64(127)) << np.uint64(7 * i)
    return out
