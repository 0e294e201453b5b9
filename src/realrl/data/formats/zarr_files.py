"""zarr arrays, versions 2 and 3, in a folder or a zip, read with suspicion.

The zarr library opens whatever codec a file names, one that unpickles among them, and follows links out of the folder. Here
are the few codecs that recordings use, each told beforehand how much it may give: a file can be refused, but neither run
anything, nor read beside itself, nor ask for more memory than its size justifies.
Sources: zarr storage specification version 2; zarr core protocol version 3.0; blosc 1 chunk header.
"""

from __future__ import annotations

import bz2
import itertools
import json
import lzma
import math
import os
import stat
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from realrl.data.formats.common import MAX_BYTES, line
from realrl.files import within
from realrl.types import Array, RealrlError

EXPANSION = 2000  # zstd reaches this on rows of equal frames
SMALL = 64 * 2**20  # bytes that may be declared without storing any: chunks of zeros are often not written
MAX_CHUNKS = 200_000  # looked for in one read
DAMAGED = (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, OverflowError, MemoryError, ImportError, zlib.error,
           lzma.LZMAError, zipfile.BadZipFile)  # what zip, JSON and the codecs raise on damage
SUFFIX = {".zarray": "v2", "zarr.json": "v3"}
BYTES_LIKE = ("blosc", "zstd", "gzip", "zlib", "bz2", "lzma", "lz4", "crc32c")


class Files(Protocol):
    """A tree of small files."""

    where: Path

    def get(self, name: str, limit: int) -> bytes | None:
        """The bytes of a file, None when there is none. Raises RealrlError when they are more than `limit`."""
        ...

    def under(self, folder: str) -> dict[str, int]:
        """Bytes of every file below a folder, by its name relative to it."""
        ...


class Folder:
    """A folder; a link that leads outside of it is refused."""

    def __init__(self, root: Path) -> None:
        self.where = root

    def get(self, name: str, limit: int) -> bytes | None:
        path = self.where / name
        within(self.where, path)
        try:
            if not path.exists():
                return None
            if not path.is_file():
                raise RealrlError(f"{path} is no plain file; restore the folder from a copy")
            with path.open("rb") as file:
                return _limited(file.read(limit + 1), limit, path)
        except (OSError, ValueError) as error:
            raise RealrlError(f"{path} can not be read ({line(error)}); mend the disk or the permissions") from error

    def under(self, folder: str) -> dict[str, int]:
        found: dict[str, int] = {}
        top = self.where / folder
        within(self.where, top)
        try:
            for parent, folders, files in os.walk(top):
                if links := [name for name in folders if (Path(parent) / name).is_symlink()]:
                    raise RealrlError(f"{Path(parent) / links[0]} is a link, which is not followed; copy what it leads to (cp -rL)")
                found |= {(Path(parent) / name).relative_to(top).as_posix(): os.lstat(Path(parent) / name).st_size for name in files}
        except OSError as error:
            raise RealrlError(f"{top} can not be read ({line(error)}); mend the disk or the permissions") from error
        return found


class Zip:
    """A zip file, read in place: nothing is unpacked. Links and names that would lead outside are refused all the same."""

    def __init__(self, path: Path) -> None:
        self.where = path
        try:
            self._zip = zipfile.ZipFile(path)
        except DAMAGED as error:
            raise RealrlError(f"{path} is truncated or no zip file ({line(error)}); restore it from a copy") from error
        members = [i for i in self._zip.infolist() if not i.filename.endswith("/")]  # is_dir() fails on a name without letters
        for info in members:
            parts = PurePosixPath(info.filename).parts
            if info.filename.startswith("/") or "\\" in info.filename or ".." in parts or ":" in (parts or ("",))[0]:
                raise RealrlError(f"{path}: member {ascii(info.filename)[:80]} leads outside of the folder; do not trust this file")
            if stat.S_ISLNK(info.external_attr >> 16):
                raise RealrlError(f"{path}: member {ascii(info.filename)[:80]} is a link; pack the files themselves")
        self._prefix = _common_folder([i.filename for i in members])
        self._members = {i.filename.removeprefix(self._prefix): i for i in members}

    def get(self, name: str, limit: int) -> bytes | None:
        info = self._members.get(name)
        if info is None:
            return None
        try:
            with self._zip.open(info) as file:
                return _limited(file.read(limit + 1), limit, f"{self.where}: {name}")
        except DAMAGED as error:
            raise RealrlError(f"{self.where}: {name} is truncated or damaged ({line(error)}); restore the file from a copy") from error

    def under(self, folder: str) -> dict[str, int]:
        start = f"{folder}/"
        return {name[len(start):]: info.compress_size for name, info in self._members.items() if name.startswith(start)}


def open_files(path: Path) -> Files:
    """The folder or zip at `path`."""
    return Folder(path) if path.is_dir() else Zip(path)


def _common_folder(names: list[str]) -> str:
    """What stands before data/ and meta/ when somebody zipped the folder itself; else nothing."""
    for name in names:
        if name.endswith(("/meta/episode_ends/.zarray", "/meta/episode_ends/zarr.json")):
            return name[:name.rindex("meta/episode_ends/")]
    return ""


def _limited(found: bytes, limit: int, what: object) -> bytes:
    if len(found) > limit:
        raise RealrlError(f"{what} is larger than the {limit} bytes that belong there; restore the file from a copy")
    return found


# ---- arrays


@dataclass(frozen=True)
class Codec:
    """A step from the bytes on disk towards the chunk. size: bytes it has to give, None where it gives an array."""

    name: str
    settings: dict[str, Any]
    size: int | None


class ZarrArray:
    """One array: `shape`, `dtype`, and rows by `read`. Raises RealrlError for a codec or a type that is not read here."""

    def __init__(self, files: Files, name: str, kind: str, text: bytes) -> None:
        self._files, self.name, self.where = files, name, f"{files.where}: {name}"
        try:
            header = json.loads(text)
            self._parse_v2(header) if kind == "v2" else self._parse_v3(header)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
            raise RealrlError(f"{self.where}: the array's header is damaged ({line(error)}); restore it from a copy") from error
        if not self.shape or len(self.shape) != len(self._chunks) or min(*self.shape, *self._chunks, 0) < 0 or 0 in self._chunks:
            raise RealrlError(f"{self.where}: shape {list(self.shape)} and chunks {list(self._chunks)} do not fit; restore it from a copy")
        stored = sum(files.under(name).values())
        if self.nbytes(0, self.shape[0]) > EXPANSION * stored + SMALL or math.prod(self._chunks) * self.dtype.itemsize > MAX_BYTES:
            raise RealrlError(f"{self.where} declares shape {list(self.shape)} but only {stored} bytes are stored; restore it from a copy")
        self._latest: tuple[tuple[int, ...], Array | None] | None = None

    def nbytes(self, start: int, stop: int) -> int:
        """Bytes of some rows in memory."""
        return (stop - start) * math.prod(self.shape[1:]) * self.dtype.itemsize

    def read(self, start: int, stop: int) -> Array:
        """Rows start..stop. Raises RealrlError outside of the array, for damage, and beyond what memory is given to an episode."""
        if not 0 <= start <= stop <= self.shape[0]:
            raise RealrlError(f"{self.where} has {self.shape[0]} rows, {start} to {stop} were wanted; restore it from a copy")
        grid = [range(start // self._chunks[0], -(-stop // self._chunks[0]))]
        grid += [range(-(-s // c)) for s, c in zip(self.shape[1:], self._chunks[1:], strict=True)]
        if self.nbytes(start, stop) > MAX_BYTES or math.prod(len(g) for g in grid) > MAX_CHUNKS:
            raise RealrlError(f"{self.where}: rows {start} to {stop} are {self.nbytes(start, stop)} bytes, at most {MAX_BYTES} are read")
        out = np.full((stop - start, *self.shape[1:]), self._fill, self.dtype)
        for index in itertools.product(*grid):
            block = self._chunk(index)
            if block is None:
                continue
            first = index[0] * self._chunks[0]
            a, b = max(start, first), min(stop, first + self._chunks[0])
            ends = [min((i + 1) * c, s) for i, c, s in zip(index[1:], self._chunks[1:], self.shape[1:], strict=True)]
            there = tuple(slice(i * c, e) for i, c, e in zip(index[1:], self._chunks[1:], ends, strict=True))
            out[(slice(a - start, b - start), *there)] = block[(slice(a - first, b - first), *(slice(0, s.stop - s.start) for s in there))]
        return out

    def _chunk(self, index: tuple[int, ...]) -> Array | None:
        if self._latest is None or self._latest[0] != index:  # neighbouring episodes share a chunk
            self._latest = (index, self._decode(index))
        return self._latest[1]

    def _decode(self, index: tuple[int, ...]) -> Array | None:
        name = f"{self.name}/{self._prefix}{self._separator.join(map(str, index))}"
        size = math.prod(self._chunks) * self.dtype.itemsize
        data: Any = self._files.get(name, size + size // 8 + 2**16)  # what does not compress grows a little
        if data is None:
            return None
        try:
            for codec in reversed(self._codecs):
                data = decode(codec, data)
            flat = data.reshape(-1).view(self.dtype) if isinstance(data, np.ndarray) else np.frombuffer(data, self.dtype)
            if isinstance(data, np.ndarray) and data.dtype != self.dtype:
                raise ValueError(f"the codec gave {data.dtype}, not {self.dtype}")
            order = self._order
            block = flat.reshape([self._chunks[i] for i in order]).transpose(np.argsort(order))
        except DAMAGED as error:
            raise RealrlError(f"{self._files.where}: {name} is truncated or damaged ({line(error)}); restore it from a copy") from error
        native: Array = block.astype(self.dtype.newbyteorder("="), copy=False)
        return native

    def _parse_v2(self, header: dict[str, Any]) -> None:
        self.shape, self._chunks = (tuple(int(n) for n in header[k]) for k in ("shape", "chunks"))
        self.dtype = _plain(header["dtype"] if isinstance(header["dtype"], str) else "O", self.where)
        if header.get("filters"):
            raise RealrlError(f"{self.where} uses the filter {_ids(header['filters'])}, which is not read here; rewrite it without filters")
        self._fill = _fill(header.get("fill_value"))
        self._separator, self._prefix = _separator(header.get("dimension_separator", "."), self.where), ""
        self._order = list(range(len(self.shape)))[::-1 if header.get("order") == "F" else 1]
        size = math.prod(self._chunks) * self.dtype.itemsize
        settings = header.get("compressor")
        self._codecs = [] if settings is None else [_known(str(settings["id"]), dict(settings), size, self.where)]

    def _parse_v3(self, header: dict[str, Any]) -> None:
        if header["node_type"] != "array" or header["chunk_grid"]["name"] != "regular":
            raise ValueError("not an array with a regular grid")
        self.shape = tuple(int(n) for n in header["shape"])
        self._chunks = tuple(int(n) for n in header["chunk_grid"]["configuration"]["chunk_shape"])
        self.dtype = _plain(header["data_type"] if isinstance(header["data_type"], str) else "O", self.where)
        self._fill = _fill(header.get("fill_value"))
        keys = header["chunk_key_encoding"]
        default = keys["name"] == "default"
        self._separator = _separator((keys.get("configuration") or {}).get("separator", "/" if default else "."), self.where)
        self._prefix = f"c{self._separator}" if default else ""
        self._order, self._codecs = list(range(len(self.shape))), []
        size = math.prod(self._chunks) * self.dtype.itemsize
        for entry in header["codecs"]:
            name, settings = str(entry["name"]).removeprefix("numcodecs."), dict(entry.get("configuration") or {})
            if name == "transpose":
                self._order = [self._order[int(i)] for i in settings["order"]]
            elif name == "bytes":
                self.dtype = self.dtype.newbyteorder(">" if settings.get("endian") == "big" else "<")
            else:
                self._codecs.append(_known(name, settings, size, self.where))
                size = size + 4 if name == "crc32c" else size
        if sum(c.name != "crc32c" for c in self._codecs) > 1:
            raise RealrlError(f"{self.where} is compressed twice, which is not read here; rewrite it with one compressor")


def open_array(files: Files, name: str) -> ZarrArray | None:
    """An array by its path in the tree, None when there is none. Raises RealrlError when it can not be read here."""
    for suffix, kind in SUFFIX.items():
        text = files.get(f"{name}/{suffix}", 2**20)
        if text is not None:
            return ZarrArray(files, name, kind, text)
    return None


def array_names(files: Files, folder: str) -> list[str]:
    """Names of the arrays in a group, sorted."""
    return sorted(name.rsplit("/", 1)[0] for name in files.under(folder)
                  if name.count("/") == 1 and name.rsplit("/", 1)[1] in SUFFIX)


def attributes(files: Files, group: str) -> dict[str, Any]:
    """A group's attributes, empty when there are none. Raises RealrlError when they are no JSON object."""
    for name, inner in ((f"{group}/.zattrs", None), (f"{group}/zarr.json", "attributes")):
        text = files.get(name, 2**26)
        if text is None:
            continue
        try:
            value = json.loads(text)
            value = value if inner is None else value.get(inner, {})
        except (ValueError, AttributeError, RecursionError) as error:
            raise RealrlError(f"{files.where}: {name} is not JSON ({line(error)}); restore it from a copy") from error
        if isinstance(value, dict):
            return value
        raise RealrlError(f"{files.where}: {name} is no JSON object; restore it from a copy")
    return {}


# ---- codecs


def decode(codec: Codec, data: Any) -> Any:
    """Bytes before the codec, exactly `codec.size` of them, or the image it holds. Raises one of DAMAGED."""
    name, size = codec.name, codec.size
    if size is None:
        import numcodecs
        return np.asarray(numcodecs.get_codec({**codec.settings, "id": name}).decode(data))
    if name == "crc32c":
        body, told = bytes(data[:-4]), int.from_bytes(data[-4:], "little")
        import google_crc32c  # the zarr library needs it too
        if len(data) < 4 or int(google_crc32c.value(body)) != told:
            raise ValueError("checksum mismatch")
        return body
    if name in ("gzip", "zlib", "bz2", "lzma"):
        return _exactly(_standard(name, bytes(data), size), size)
    out = np.empty(size, np.uint8)
    if name == "blosc":
        _check_blosc(data, size)
    if name == "lz4" and (len(data) < 4 or int.from_bytes(data[:4], "little") != size):
        raise ValueError("lz4 header does not fit the chunk")
    import numcodecs
    found = numcodecs.get_codec({"id": name}).decode(data, out)
    if len(memoryview(found).cast("B")) != size:
        raise ValueError(f"chunk of {len(found)} bytes, not {size}")
    return out.data


def _standard(name: str, data: bytes, size: int) -> bytes:
    """At most size + 1 bytes from one of Python's own decompressors."""
    if name == "bz2":
        return bz2.BZ2Decompressor().decompress(data, size + 1)
    if name == "lzma":
        return lzma.LZMADecompressor(memlimit=2**28).decompress(data, size + 1)
    return zlib.decompressobj(31 if name == "gzip" else 15).decompress(data, size + 1)


def _exactly(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise ValueError(f"chunk of {len(data)} bytes, not {size}")
    return data


def _check_blosc(data: Any, size: int) -> None:
    """The decompressor trusts the header's three lengths, so they must be true: whole, block, compressed."""
    head = bytes(data[:16])
    whole, block, packed = (int.from_bytes(head[i:i + 4], "little") for i in (4, 8, 12))
    if len(head) < 16 or whole != size or packed != len(data) or not 0 < block <= max(size, 1) or head[0] > 2 or not head[3]:
        raise ValueError("blosc header does not fit the chunk")


def _known(name: str, settings: dict[str, Any], size: int, where: str) -> Codec:
    """The codec of that name. Raises RealrlError for one that is not among those read here."""
    try:
        import numcodecs
    except ImportError as error:
        raise RealrlError("zarr arrays need numcodecs: pip install 'realrl[data]'") from error
    if name.startswith("imagecodecs_") and name.replace("_", "").isalnum():
        if name in numcodecs.registry.codec_registry:
            return Codec(name, settings, None)
        raise RealrlError(f"{where} is compressed by {name}; install imagecodecs and register its codecs "
                          "(imagecodecs.numcodecs.register_codecs()), or rewrite it with blosc")
    if name not in BYTES_LIKE:
        raise RealrlError(f"{where} uses the codec {ascii(name)[:40]}, which is not read here; rewrite it with one of "
                          f"{', '.join(BYTES_LIKE)}")
    return Codec(name, settings, size)


def _plain(name: str, where: str) -> np.dtype[Any]:
    """A type of plain numbers. Raises RealrlError for any other."""
    dtype = np.dtype(name)
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise RealrlError(f"{where} holds {ascii(name)[:40]}, not plain numbers; leave it out")
    return dtype


def _fill(value: Any) -> float | int | bool:
    if value is None:
        return 0
    number = {"NaN": np.nan, "Infinity": np.inf, "-Infinity": -np.inf}.get(value) if isinstance(value, str) else value
    if not isinstance(number, (int, float)):
        raise ValueError(f"fill_value is {ascii(value)[:40]}")
    return number


def _separator(value: Any, where: str) -> str:
    if value not in (".", "/"):
        raise RealrlError(f"{where}: chunks are separated by {ascii(value)[:10]}, must be . or /; restore it from a copy")
    return str(value)


def _ids(filters: Any) -> str:
    return ", ".join(ascii(f.get("id") if isinstance(f, dict) else f)[:40] for f in filters) if isinstance(filters, list) else "?"
