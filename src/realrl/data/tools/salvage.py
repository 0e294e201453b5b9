"""Reading parquet files that lost their end.

A parquet file keeps its table of contents at the end; cut it off and no reader opens what is left, though every page before the cut
still says what it is. Here the pages are walked from the front (each has a header with its size and, in our files, its checksum), put
together to columns and row groups as a template has them, and given a new table of contents. Layout: the Apache Parquet format
specification, 2.x (PageHeader, ColumnMetaData, RowGroup, FileMetaData), in Thrift's compact protocol.
"""

from __future__ import annotations

import contextlib
import copy
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from realrl.data import tables, video
from realrl.data.errors import read_json
from realrl.data.schema import DATA_PATH, VIDEO_PATH, Info
from realrl.types import RealrlError

MAGIC = b"PAR1"
DATA, DICTIONARY, DATA_V2 = 0, 2, 3  # page types
Struct = dict[int, tuple[int, Any]]  # field number -> (compact type, value)
BINARY, LIST, STRUCT, I32, I64 = 8, 9, 12, 5, 6
MAX_PAGE = 2**31
DEEPEST = 16  # structs within structs; parquet has six


class Opened:
    """A parquet file read one row group at a time. rebuilt: whether its table of contents had to be made anew."""

    def __init__(self, file: pq.ParquetFile, rebuilt: bool) -> None:
        self._file, self.rebuilt = file, rebuilt
        self.schema_arrow: pa.Schema = file.schema_arrow
        self.num_row_groups: int = file.num_row_groups

    def read_row_group(self, number: int) -> pa.Table:
        """One row group, its checksums verified. Raises one of `tables.DAMAGED`."""
        return self._file.read_row_group(number, use_threads=False)


@contextlib.contextmanager
def opened(path: Path, siblings: Sequence[Path] = (), features: Info | None = None) -> Iterator[Opened | None]:
    """A data file, whole or cut off; None when nothing of it can be read.

    siblings: other files of the same columns, of which one that is whole serves as the template; features: info.json's, from which
    a template is made where there is no such file.
    """
    file, rebuilt = _whole(path), False
    if file is None:
        rebuilt = True
        with contextlib.suppress(OSError, *tables.DAMAGED):
            template = next((t for p in siblings if p != path and (t := _footer(p))), None) or _made_footer(features or {})
            if template and (content := rebuild(path.read_bytes(), template)):
                file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
    try:
        yield Opened(file, rebuilt) if file else None
    finally:
        if file:
            file.close()


def _whole(path: Path) -> pq.ParquetFile | None:
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except tables.DAMAGED:
        return None


def _footer(path: Path) -> Struct | None:
    """The table of contents of a whole file that has a row group."""
    with contextlib.suppress(OSError, *tables.DAMAGED):
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - 8, 0))
            length, magic = struct.unpack("<I4s", file.read(8))
            if magic != MAGIC or length > size - 12:
                return None
            file.seek(size - 8 - length)
            footer, _ = read_struct(file.read(length), 0)
        return footer if footer.get(4, (LIST, (STRUCT, [])))[1][1] else None
    return None


def _made_footer(features: Info) -> Struct | None:
    """The table of contents of a file with one frame of these features."""
    columns = {name: tables.to_arrow(np.zeros((1, *([] if list(f["shape"]) == [1] else f["shape"])), f["dtype"]))
               for name, f in tables.stored(features).items()}
    if not columns:
        return None
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="snappy")
    content = sink.getvalue().to_pybytes()
    (length,) = struct.unpack("<I", content[-8:-4])
    return read_struct(content, len(content) - 8 - length)[0]


# ---- info.json


def refuse_old(root: Path) -> None:
    """Raise RealrlError for a dataset of version 2, which is only read here."""
    info: Any = None
    with contextlib.suppress(OSError, RealrlError):
        info = read_json(root / "meta/info.json")
    if isinstance(info, dict) and str(info.get("codebase_version")).startswith("v2."):
        raise RealrlError(f"{root} is of LeRobot's version 2, which is only read here; mend it with the tools that made it")


def guessed_info(root: Path, files: Sequence[Path]) -> Info:
    """info.json from what data files and videos say themselves. Raises RealrlError when none can be read."""
    for path in files:
        with opened(path, files) as file:
            if file is None or not file.num_row_groups:
                continue
            with contextlib.suppress(*tables.DAMAGED):
                table = file.read_row_group(0)
                steps = np.diff(table["timestamp"].to_numpy()[:1000])
                films = _filmed(root)
                features = {name: _feature(table[name]) for name in table.column_names} | films
                return {"codebase_version": "v3.0", "robot_type": "unknown", "chunks_size": 1000, "data_files_size_in_mb": 100,
                        "video_files_size_in_mb": 200, "fps": round(float(1 / np.median(steps[steps > 0]))),
                        "data_path": DATA_PATH, "video_path": VIDEO_PATH if films else None, "features": features}
    raise RealrlError(f"{root}: neither meta/info.json nor any data file can be read; there is nothing to repair from")


def _filmed(root: Path) -> Info:
    """The cameras, by their folders."""
    features: Info = {}
    for film in sorted((root / "videos").glob("*/chunk-*/file-*.mp4")):
        name = film.parent.parent.name
        with contextlib.suppress(RealrlError):
            told = video.probe(film)
            size = [told["video.height"], told["video.width"], told["video.channels"]]
            features.setdefault(name, {"dtype": "video", "shape": size, "names": ["height", "width", "channels"], "info": told})
    return features


def _feature(column: pa.ChunkedArray) -> dict[str, Any]:
    """A feature as a column of a data file shows it."""
    values, shape = column.slice(0, 1).combine_chunks(), list[int]()
    if pa.types.is_struct(values.type):
        return {"dtype": "image", "shape": [1], "names": None}
    while pa.types.is_nested(values.type):
        inner = values.flatten()
        shape.append(len(inner) // max(len(values), 1))
        values = inner
    kind = "string" if pa.types.is_string(values.type) else str(np.dtype(values.type.to_pandas_dtype()))
    return {"dtype": kind, "shape": shape or [1], "names": None}


# ---- pages to row groups


@dataclass(frozen=True)
class _Page:
    start: int
    stop: int
    kind: int
    values: int
    unpacked: int  # bytes with its header, not compressed


def rebuild(content: bytes, template: Struct) -> bytes | None:
    """The whole row groups at the front of a damaged file as a file of its own; None when there is none.

    template: the table of contents of a file with the same columns, each with the same number of values in every row.
    """
    pages = list(_pages(content))
    group = {number: cell for number, cell in dict(template[4][1][1][0]).items()}
    rows = int(group[3][1])
    widths = [int(column[3][1][5][1]) / rows for column in group[1][1][1]] if rows else []
    if not widths or any(w != int(w) or w < 1 for w in widths):
        return None
    groups: list[Struct] = []
    at = 0
    while at < len(pages) and (found := _row_group(pages, at, [int(w) for w in widths])):
        n, chunks = found
        groups.append(_described(group, n, chunks, len(groups)))
        at += sum(map(len, chunks))
    if not groups:
        return None
    footer = copy.copy(template) | {3: (I64, sum(int(g[3][1]) for g in groups)), 4: (LIST, (STRUCT, groups))}
    packed = write_struct(footer)
    return content[:pages[at - 1].stop] + packed + struct.pack("<I", len(packed)) + MAGIC


def _pages(content: bytes) -> Iterator[_Page]:
    """Pages from the front, up to the first that is not whole."""
    at = len(MAGIC)
    while content[:at] and at < len(content):
        try:
            header, start = read_struct(content, at)
            kind, unpacked, packed = (int(header[number][1]) for number in (1, 2, 3))
            detail = header[{DATA: 5, DICTIONARY: 7, DATA_V2: 8}[kind]][1]
            values = int(detail[1][1])
        except (LookupError, ValueError, TypeError):
            return
        stop = start + packed
        if not (0 <= packed < MAX_PAGE and 0 <= unpacked < MAX_PAGE and values >= 0 and stop <= len(content)):
            return
        if 4 in header and zlib.crc32(content[start:stop]) != int(header[4][1]) & 0xFFFFFFFF:
            return
        yield _Page(at, stop, kind, values, start - at + unpacked)
        at = stop


def _row_group(pages: Sequence[_Page], at: int, widths: Sequence[int]) -> tuple[int, list[Sequence[_Page]]] | None:
    """(rows, the pages of every column) of the row group that begins at a page; None when it is not whole.

    How many rows it has is not written down: every number of pages that the first column may have is tried until the values of
    all other columns agree.
    """
    total = 0
    for page in pages[at:]:
        total += page.values if page.kind != DICTIONARY else 0
        if total % widths[0] == 0 and total and (chunks := _chunks(pages, at, [total // widths[0] * w for w in widths])):
            return total // widths[0], chunks
    return None


def _chunks(pages: Sequence[_Page], at: int, wanted: Sequence[int]) -> list[Sequence[_Page]] | None:
    chunks: list[Sequence[_Page]] = []
    for values in wanted:
        begin, seen = at, 0
        while seen < values:
            if at >= len(pages) or (pages[at].kind == DICTIONARY and at != begin):
                return None
            seen += pages[at].values if pages[at].kind != DICTIONARY else 0
            at += 1
        if seen != values:
            return None
        chunks.append(pages[begin:at])
    return chunks


def _described(template: Mapping[int, tuple[int, Any]], rows: int, chunks: Sequence[Sequence[_Page]], ordinal: int) -> Struct:
    """A RowGroup as the template's, with the places and sizes of these pages."""
    columns = []
    for column, pages in zip(template[1][1][1], chunks, strict=True):
        dictionary = [p for p in pages if p.kind == DICTIONARY]
        data = [p for p in pages if p.kind != DICTIONARY]
        old = column[3][1]
        about = {number: old[number] for number in (1, 2, 3, 4) if number in old}  # type, encodings, path, codec
        about |= {5: (I64, sum(p.values for p in data)), 6: (I64, sum(p.unpacked for p in pages)),
                  7: (I64, pages[-1].stop - pages[0].start), 9: (I64, data[0].start)}
        if dictionary:
            about[11] = (I64, dictionary[0].start)
        columns.append({2: (I64, 0), 3: (STRUCT, about)})
    packed = chunks[-1][-1].stop - chunks[0][0].start
    return {1: (LIST, (STRUCT, columns)), 2: (I64, sum(p.unpacked for pages in chunks for p in pages)), 3: (I64, rows),
            5: (I64, chunks[0][0].start), 6: (I64, packed), 7: (4, ordinal)}


# ---- Thrift's compact protocol, as far as parquet uses it


def read_struct(content: bytes, at: int, depth: int = 0) -> tuple[Struct, int]:
    """(fields, where it ends). Raises IndexError or ValueError on anything that is none."""
    if depth > DEEPEST:
        raise ValueError("nested too deeply")
    fields: Struct = {}
    number = 0
    while True:
        head = content[at]
        at += 1
        if head == 0:
            return fields, at
        kind, step = head & 15, head >> 4
        if step:
            number += step
        else:
            raw, at = _varint(content, at)
            number = _signed(raw)
        fields[number], at = _read(content, at, kind, depth)


def _read(content: bytes, at: int, kind: int, depth: int) -> tuple[tuple[int, Any], int]:
    if kind in (1, 2):  # a truth value is its type
        return (kind, kind == 1), at
    if kind == 3:
        return (kind, content[at]), at + 1
    if kind in (4, I32, I64):
        raw, at = _varint(content, at)
        return (kind, _signed(raw)), at
    if kind == 7:
        return (kind, content[at:at + 8]), at + 8
    if kind == BINARY:
        size, at = _varint(content, at)
        if at + size > len(content):
            raise ValueError("text beyond the end")
        return (kind, content[at:at + size]), at + size
    if kind == LIST:
        return _read_list(content, at, depth + 1)
    if kind == STRUCT:
        fields, at = read_struct(content, at, depth + 1)
        return (kind, fields), at
    raise ValueError(f"type {kind} does not occur in parquet")


def _read_list(content: bytes, at: int, depth: int) -> tuple[tuple[int, Any], int]:
    head, at = content[at], at + 1
    kind, size = head & 15, head >> 4
    if size == 15:
        size, at = _varint(content, at)
    items = []
    for _ in range(size):
        if kind in (1, 2):  # in lists a byte each
            items.append(content[at] == 1)
            at += 1
            continue
        (_, item), at = _read(content, at, kind, depth)
        items.append(item)
    return (LIST, (kind, items)), at


def write_struct(fields: Struct) -> bytes:
    """The inverse of `read_struct`."""
    out, last = bytearray(), 0
    for number in sorted(fields):
        kind, value = fields[number]
        step = number - last
        out += bytes([step << 4 | kind]) if 0 < step < 16 else bytes([kind]) + _packed(number << 1)
        out += _written(kind, value)
        last = number
    return bytes(out) + b"\0"


def _written(kind: int, value: Any) -> bytes:
    if kind in (1, 2):
        return b""
    if kind == 3:
        return bytes([value])
    if kind in (4, I32, I64):
        return _packed(value << 1 if value >= 0 else (-value << 1) - 1)
    if kind == 7:
        return bytes(value)
    if kind == BINARY:
        return _packed(len(value)) + bytes(value)
    if kind == STRUCT:
        return write_struct(value)
    inner, items = value
    head = bytes([len(items) << 4 | inner]) if len(items) < 15 else bytes([0xF0 | inner]) + _packed(len(items))
    return head + b"".join(bytes([1 if item else 2]) if inner in (1, 2) else _written(inner, item) for item in items)


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("number too long")


def _signed(raw: int) -> int:
    return raw >> 1 if not raw & 1 else -(raw >> 1) - 1


def _packed(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
