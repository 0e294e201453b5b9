"""HDF5 read with suspicion: no member that lies in another file, no object types, nothing larger than what the file can hold."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from realrl.data.formats.common import AGAIN, MAX_BYTES, damage, line
from realrl.types import Array, RealrlError

MAGIC = b"\x89HDF\r\n\x1a\n"
EXPANSION = 1100  # deflate reaches 1032
MAX_ROWS = 10**5  # of strings, or of compressed pictures in one episode
SMALL = 2**20  # bytes that may be declared without storing any, e.g. rewards that are all the fill value


def library() -> Any:
    """h5py. Raises RealrlError with the install hint where it is missing."""
    try:
        import h5py
    except ImportError as error:
        raise RealrlError("HDF5 files need h5py: pip install 'realrl[data]'") from error
    return h5py


def is_hdf5(path: Path) -> bool:
    """Whether a file begins like HDF5; never raises."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except (OSError, ValueError):
        return False


def open_file(path: Path) -> Any:
    """The file, for reading. Raises RealrlError when it is not HDF5 or is cut short."""
    h5py = library()
    if not is_hdf5(path):
        raise RealrlError(f"{path} is not an HDF5 file; give the .hdf5 file itself")
    with damage(path):
        return h5py.File(path, "r")


@contextlib.contextmanager
def create(path: Path) -> Iterator[Any]:
    """A new h5py.File. Raises OSError when the disk is full."""
    try:
        with library().File(path, "w") as file:
            yield file
            file.flush()
    except RuntimeError as error:  # what h5py makes of it while it closes
        raise OSError(str(error)) from error


def names(group: Any) -> list[str]:
    """Names of a group's members, sorted."""
    with damage(where(group)):
        return sorted(str(name) for name in group)


def in_order(group: Any) -> list[str]:
    """Names of a group's members as they were written, where the file keeps that, else sorted."""
    with damage(where(group)):
        return [str(name) for name in group]


def member(group: Any, name: str) -> Any | None:
    """A group or dataset by its name or path "a/b", None when there is none. Raises RealrlError for a link, or data outside: it may lead
    to another file."""
    h5py = library()
    *above, name = name.split("/")
    for one in above:
        if (inner := subgroup(group, one)) is None:
            return None
        group = inner
    with damage(where(group)):
        link = group.get(name, getlink=True)
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise RealrlError(f"{where(group)}: {shown(name)} is a link; make a file without links (h5copy -f soft,ext)")
        found = group[name]
        if isinstance(found, h5py.Dataset) and (found.is_virtual or found.external is not None):
            raise RealrlError(f"{where(group)}/{shown(name)} keeps its data in another file; make a copy that holds everything (h5repack)")
        return found


def subgroup(group: Any, name: str) -> Any | None:
    """A group, None when there is none. Raises RealrlError when the member is something else."""
    found = member(group, name)
    if found is not None and not isinstance(found, library().Group):
        raise RealrlError(f"{where(group)}: {shown(name)} is no group of arrays, as the format has there; write it as one")
    return found


def dataset(group: Any, name: str) -> Any | None:
    """A dataset of numbers that lies wholly in this file, None when there is none. Raises RealrlError for any other."""
    found, place = member(group, name), f"{where(group)}/{shown(name)}"
    if found is None:
        return None
    if not isinstance(found, library().Dataset):
        raise RealrlError(f"{place} is a group of arrays, not an array; write it as one array, or read without it")
    with damage(place):
        dtype, shape, stored = found.dtype, found.shape, int(found.id.get_storage_size())
    if dtype.kind not in "biuf" or dtype.itemsize > 8 or shape is None:
        raise RealrlError(f"{place} holds {dtype}, not plain numbers; keys=NAME,NAME names what to read instead")
    if math.prod(shape) * dtype.itemsize > min(MAX_BYTES, EXPANSION * stored + SMALL):
        raise RealrlError(f"{place} declares shape {list(shape)} but only {stored} bytes are stored; {AGAIN}")
    return found


def leaves(group: Any, depth: int = 0, order: Callable[[Any], list[str]] = names) -> dict[str, Any]:
    """Every dataset of a tree of groups by its path below it, "a/b", sorted, or in another order. Raises RealrlError as `member` does, and
    for a deep tree."""
    if depth > 8:
        raise RealrlError(f"{where(group)} holds groups in groups in groups, more than are read; write them with fewer")
    found: dict[str, Any] = {}
    for name in order(group):
        inner = member(group, name)
        if isinstance(inner, library().Group):
            found |= {f"{name}/{below}": x for below, x in leaves(inner, depth + 1, order).items()}
        else:
            found[name] = inner
    return found


def array(group: Any, name: str) -> Array | None:
    """All numbers of a dataset, None when there is none. Raises RealrlError as `dataset` does, and for damage."""
    found = dataset(group, name)
    if found is None:
        return None
    with damage(f"{where(group)}/{shown(name)}"):
        values: Array = np.asarray(found[()])
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def blobs(found: Any, texts: bool = False) -> list[bytes] | None:
    """The rows of a dataset [T] whose rows are bytes of any length, None when it is no such dataset. texts: also those of texts, which may
    have one length with zeros behind them. Raises RealrlError for damage."""
    with damage(where(found)):
        text = library().check_string_dtype(found.dtype) if texts else None
        padded = text is not None and text.length is not None
        if found.ndim != 1 or (text is None and library().check_vlen_dtype(found.dtype) != np.uint8):
            return None
        if len(found) > MAX_ROWS:
            raise RealrlError(f"{where(found)} has {len(found)} rows, at most {MAX_ROWS} are read; write the episode in parts")
        if padded and found.size * found.dtype.itemsize > min(MAX_BYTES, EXPANSION * int(found.id.get_storage_size()) + SMALL):
            raise RealrlError(f"{where(found)} declares {len(found)} rows of {found.dtype.itemsize} bytes, fewer are stored; {AGAIN}")
        return [bytes(row) if text is not None else row.tobytes() for row in found[()]]


def texts(group: Any, name: str) -> list[str]:
    """A dataset of strings. Raises RealrlError when it is something else, or larger than a list of names would be."""
    found, place = member(group, name), f"{where(group)}/{shown(name)}"
    with damage(place):
        plain = isinstance(found, library().Dataset) and ((found.dtype.kind == "S" and found.dtype.itemsize < 1024)
                                                          or library().check_string_dtype(found.dtype))
        if found is None or not plain or found.size > MAX_ROWS:
            raise RealrlError(f"{place} is no list of names; delete it, or write it as one")
        return [t.decode("utf-8", "replace") for t in found[()].reshape(-1).tolist()]


def attribute(group: Any, name: str) -> Any | None:
    """An attribute as plain Python: a string, a number, a list of numbers; None when there is none or it is something else."""
    with damage(where(group)):
        value = group.attrs.get(name)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist() if value.dtype.kind in "biuf" else None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return value if isinstance(value, (bool, int, float, list)) else None


def text(group: Any, name: str) -> str | None:
    """A text that is an attribute or a dataset of one; None when there is none. Raises RealrlError for a link, and for damage."""
    told = attribute(group, name)
    found = None if told else member(group, name)
    with damage(where(group)):
        if isinstance(found, library().Dataset) and found.size == 1 and library().check_string_dtype(found.dtype) is not None:
            value = np.asarray(found[()]).reshape(-1)[0]
            told = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return told if isinstance(told, str) and told else None


def json_attribute(group: Any, name: str) -> dict[str, Any]:
    """An attribute that holds a JSON object; empty when there is none. Raises RealrlError when it holds something else."""
    text = attribute(group, name)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise RealrlError(f"{where(group)}: attribute {name!r} is not JSON ({line(error)}); correct or delete the attribute") from error
    if not isinstance(value, dict):
        raise RealrlError(f"{where(group)}: attribute {name!r} is no JSON object; correct or delete the attribute")
    return value


def shown(name: str) -> str:
    """A name as it can be printed."""
    return ascii(name)[1:-1][:80]


def where(found: Any) -> str:
    """File and group or dataset, for an error."""
    with contextlib.suppress(Exception):
        return f"{found.file.filename}: {ascii(found.name)[1:-1][:120]}".removesuffix(": /")
    return "an HDF5 file"
