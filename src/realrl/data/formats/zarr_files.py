"""The arrays of a zarr folder or zip, versions 2 and 3, by the zarr library, with suspicion.

The library follows links out of a folder, waits for pipes and believes any shape; that is looked at before it opens anything.
What a damaged or hostile chunk does to the decompressors below it ends the process that reads (`sandbox`), not this program.
"""

from __future__ import annotations

import math
import os
import re
import stat
import zipfile
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from realrl.data.formats.common import AGAIN, MAX_BYTES, damage
from realrl.files import within
from realrl.types import Array, RealrlError

EXPANSION = 2000  # zstd reaches this on rows of equal frames
SMALL = 64 * 2**20  # bytes that may be declared without storing any: chunks of zeros are often not written
SUFFIX = {".zarray": 2, "zarr.json": 3}  # an array's header -> its version


class Unread(RealrlError):
    """An array that is whole, but not for us: compressed by a codec that is not here, or text. The others can be read without it."""


@cache
def library() -> Any:
    """zarr, its blosc made careful. Raises RealrlError with the install hint where it is missing."""
    try:
        import zarr
        from numcodecs.blosc import Blosc
    except ImportError as error:
        raise RealrlError("zarr folders need zarr: pip install 'realrl[data]'") from error
    trusting = Blosc.decode

    def decode(codec: Any, data: Any, out: Any = None) -> Any:
        """Blosc believes its header's lengths, and gives whatever lies in memory behind a chunk that was cut."""
        raw = memoryview(data).cast("B")
        whole, block, packed = (int.from_bytes(raw[i:i + 4], "little") for i in (4, 8, 12))
        if len(raw) < 16 or packed != len(raw) or not 0 < block <= max(whole, 1) or raw[0] > 2 or not raw[3]:
            raise ValueError("blosc header does not fit the chunk")
        return trusting(codec, data, out)
    Blosc.decode = decode
    return zarr


class Buffer:
    """A tree of arrays in a folder, or in a zip, which is read in place. Raises RealrlError for what leads out of it.

    sizes: bytes of every file by its name in the tree.
    """

    def __init__(self, path: Path) -> None:
        zarr, self.where, self._prefix = library(), path, ""
        if path.is_dir():
            self.sizes = _in_folder(path)
            self._store = zarr.storage.LocalStore(path, read_only=True)
        else:
            with damage(path):
                self.sizes = _in_zip(path)
                self._store = zarr.storage.ZipStore(path, mode="r")
            for name in self.sizes:  # somebody zipped the folder itself: what stands before data/ and meta/
                if name.endswith(tuple(f"/meta/episode_ends/{s}" for s in SUFFIX)):
                    self._prefix = name[:name.rindex("meta/episode_ends/")]
            self.sizes = {name.removeprefix(self._prefix): size for name, size in self.sizes.items()}

    def arrays(self, folder: str) -> list[str]:
        """Names of the arrays in a group, sorted."""
        parts = [PurePosixPath(name) for name in self.sizes]
        return sorted({p.parent.name for p in parts if p.name in SUFFIX and p.parent.parent == PurePosixPath(folder)})

    def array(self, name: str) -> Rows | None:
        """An array by its path in the tree, None when there is none. Raises RealrlError when it can not be read here."""
        version = next((v for suffix, v in SUFFIX.items() if f"{name}/{suffix}" in self.sizes), None)
        if version is None:
            return None
        where = f"{self.where}: {name}"
        try:
            found = self._open(name, version)
        except Unread as error:
            try:
                from imagecodecs.numcodecs import register_codecs
            except ImportError:
                raise error from None
            register_codecs(verbose=False)
            found = self._open(name, version)
        codecs = [str(getattr(c, "codec_id", type(c).__name__)) for c in (*found.filters, *found.compressors)]
        harmful = any("pickle" in c.lower() for c in codecs)
        if found.dtype.kind in "SUT" and not harmful:
            raise Unread(f"{where} holds text; name the arrays to read with keys=NAME,NAME")
        if found.dtype.kind not in "biuf" or found.dtype.itemsize > 8 or not found.shape or harmful:
            raise RealrlError(f"{where} holds {ascii(str(found.dtype))[1:41]} in {', '.join(codecs) or 'the open'}, not plain numbers; "
                              "name the arrays to read with keys=NAME,NAME")
        files = [file for file in self.sizes if file.startswith(f"{name}/")]
        stored = sum(self.sizes[file] for file in files)
        if found.nbytes > EXPANSION * stored + SMALL:
            raise RealrlError(f"{where} declares shape {list(found.shape)} but only {stored} bytes are stored; {AGAIN}")
        chunks = [-(-n // side) for n, side in zip(found.shape, getattr(found, "shards", None) or found.chunks, strict=True)]
        held = sum(not PurePosixPath(file).name.startswith((".z", "zarr.json")) for file in files)
        return Rows(found, where, math.prod(chunks) - held)

    def texts(self, name: str) -> list[str] | None:
        """A row of texts; None where the array holds none, or as objects. Raises RealrlError for damage."""
        version = next((v for suffix, v in SUFFIX.items() if f"{name}/{suffix}" in self.sizes), None)
        with damage(f"{self.where}: {name}"):
            found = None if version is None else library().open_array(self._store, path=self._prefix + name, mode="r", zarr_format=version)
            if found is None or found.dtype.kind not in "SUT" or found.ndim != 1 or found.shape[0] * max(found.dtype.itemsize, 1) > SMALL:
                return None
            if any("pickle" in str(getattr(c, "codec_id", type(c).__name__)).lower() for c in (*found.filters, *found.compressors)):
                return None
            return [x.decode(errors="replace") if isinstance(x, bytes) else str(x) for x in np.asarray(found[:]).tolist()]

    def _open(self, name: str, version: int) -> Any:
        with damage(where := f"{self.where}: {name}"):
            try:
                return library().open_array(self._store, path=self._prefix + name, mode="r", zarr_format=version)
            except ValueError as error:
                if not (codec := re.search(r"codec(?: not available)?: '+(\w+)'", str(error), re.IGNORECASE)):
                    raise
                mend = "pip install imagecodecs reads it" if codec[1].startswith("imagecodecs") else "write it again with blosc or zstd"
                raise Unread(f"{where} is compressed by {codec[1]}, which is not installed; {mend}") from error

    def attributes(self, group: str) -> dict[str, Any]:
        """A group's attributes, empty when there are none. Raises RealrlError for damage."""
        version = 3 if f"{group}/zarr.json" in self.sizes else 2 if f"{group}/.zgroup" in self.sizes else None
        if version is None:
            return {}
        with damage(f"{self.where}: {group}"):
            found = library().open_group(self._store, path=self._prefix + group, mode="r", zarr_format=version, use_consolidated=False)
            return dict(found.attrs.asdict())


class Rows:
    """An array, read some rows at a time. The rows of a chunk that the next read begins in are kept. absent: chunks that are not stored,
    which zarr takes for ones that hold nothing but one value."""

    def __init__(self, found: Any, where: str, absent: int = 0) -> None:
        self._array, self.where, self.absent = found, where, absent
        self.shape: tuple[int, ...] = found.shape
        self.fill = found.fill_value
        self.dtype: np.dtype[Any] = found.dtype.newbyteorder("=")
        self._step: int = (getattr(found, "shards", None) or found.chunks)[0]
        self._kept, self._first = np.zeros(0), 0

    def read(self, start: int, stop: int) -> Array:
        """Rows start..stop. Raises RealrlError outside of the array, for damage, and beyond what memory is given to an episode."""
        if not 0 <= start <= stop <= self.shape[0]:
            raise RealrlError(f"{self.where} has {self.shape[0]} rows, {start} to {stop} were wanted, by meta/episode_ends; {AGAIN}")
        size = (stop - start) * int(np.prod(self.shape[1:], dtype=object)) * self.dtype.itemsize
        if size > MAX_BYTES:
            raise RealrlError(f"{self.where}: rows {start} to {stop} are {size} bytes, at most {MAX_BYTES} are read")
        with damage(self.where):
            return self._read(start, stop)

    def _read(self, start: int, stop: int) -> Array:
        have = self._kept[start - self._first:stop - self._first] if self._first <= start else self._kept[:0]
        begin, step = start + len(have), self._step
        end = min(-(-stop // step) * step, self.shape[0])
        if begin < stop:
            more = np.asarray(self._array[begin:end]).astype(self.dtype, copy=False)
            have = np.concatenate([have, more[:stop - begin]]) if len(have) else more[:stop - begin]
            self._kept, self._first = more[max(0, end - begin - step):], max(begin, end - step)
        return have.copy() if have.base is not None else have


def _in_folder(root: Path) -> dict[str, int]:
    """Bytes of every file below a folder. Raises RealrlError for links that lead out, and for pipes, which would be waited for."""
    found: dict[str, int] = {}
    for parent, folders, files in os.walk(root):
        for path in (Path(parent) / name for name in (*folders, *files)):
            with damage(path):
                mode = path.lstat().st_mode
                if stat.S_ISLNK(mode):
                    within(root, path)
                    mode = path.stat().st_mode if not path.is_dir() else 0
                if stat.S_ISREG(mode):
                    found[path.relative_to(root).as_posix()] = path.stat().st_size
                elif not stat.S_ISDIR(mode):
                    raise RealrlError(f"{path} is a link to a folder, or no plain file; put a copy of what it stands for there (cp -rL)")
    return found


def _in_zip(path: Path) -> dict[str, int]:
    """Bytes of every member. Links and names that would lead outside are refused, though nothing is unpacked."""
    with zipfile.ZipFile(path) as file:
        members = [i for i in file.infolist() if not i.filename.endswith("/")]  # is_dir() fails on a name without letters
    for info in members:
        parts = PurePosixPath(info.filename).parts
        if info.filename.startswith("/") or "\\" in info.filename or ".." in parts or ":" in (parts or ("",))[0]:
            raise RealrlError(f"{path}: member {ascii(info.filename)[:80]} leads outside of the folder; do not trust this file")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise RealrlError(f"{path}: member {ascii(info.filename)[:80]} is a link; pack the files themselves")
    return {info.filename: info.compress_size for info in members}
