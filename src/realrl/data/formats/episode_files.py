"""Files that hold one episode each, HDF5 or numpy's npz, opened alike: as an HDF5 tree."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from realrl.data.formats import common, hdf5
from realrl.types import RealrlError

ENDINGS = ("hdf5", "h5", "npz")
ENDS = ("terminals", "timeouts", "dones", "done", "is_last", "terminated", "truncated")  # true where an episode ends
CALVIN = "ep_start_end_ids.npy"


def is_one(path: Path) -> bool:
    """Whether a file begins like one of these; never raises."""
    try:
        return hdf5.is_hdf5(path) or (path.suffix == ".npz" and path.is_file() and path.open("rb").read(4) == b"PK\x03\x04")
    except OSError:
        return False


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The tree of arrays in a file. Raises RealrlError for damage, and for a file that does not hold one episode."""
    if (path.parent / CALVIN).is_file():
        raise RealrlError(f"{path.parent} is CALVIN's, a file a frame, which is not read; write a file an episode, rel_actions as action")
    with hdf5.open_file(path) if hdf5.is_hdf5(path) or path.suffix != ".npz" else _npz(path) as file:
        _refuse_several(file, path)
        yield file


def _npz(path: Path) -> Any:
    """An npz as an HDF5 file in memory: arrays of numbers, what has no dimension and texts as attributes. Of what is read by nobody, such
    as objects, which are pickled, the name alone, with a byte of no type."""
    file = hdf5.library().File(str(path), "w", driver="core", backing_store=False)
    objects = list[str]()
    with common.damage(path), zipfile.ZipFile(path) as packed, np.load(path, allow_pickle=False) as arrays:
        if sum(member.file_size for member in packed.infolist()) > common.MAX_BYTES:
            raise RealrlError(f"{path} unpacks to more than {common.MAX_BYTES} bytes; write shorter episodes")
        for name in arrays.files:
            try:
                x = arrays[name]
            except ValueError as error:
                if "pickle" in str(error):
                    objects.append(name)
                    continue
                raise
            if x.dtype.kind in "US":
                file.attrs[name] = str(x.astype(str).reshape(-1)[0]) if x.size else ""
            elif x.dtype.kind in "biuf" and x.ndim:
                file[name] = x
            elif x.dtype.kind in "biuf":
                file.attrs[name] = x
            else:
                objects.append(name)
    seen = any(name.partition("/")[0].startswith(("obs", "state", "qpos")) for name in file)
    if objects and (not seen or any(common.ACTION.search(name) for name in objects)):
        raise RealrlError(f"{path}: {', '.join(objects)[:80]} holds Python objects, which only running code could read; write arrays of "
                          "numbers, a name each")
    for name in objects:
        file[name] = np.zeros(1, "V1")
    return file


def _refuse_several(file: Any, path: Path) -> None:
    """Raise RealrlError for a file with many episodes."""
    there = hdf5.names(file)
    if there == ["data"] or any(name.startswith("traj_") for name in there):
        raise RealrlError(f"{path} holds many episodes, as robomimic's and ManiSkill's files do; import each by itself, not a folder")
    for name in there:
        if name == "episode_ends" or (name in ENDS and _ends_early(file, name)):
            raise RealrlError(f"{path} holds many episodes one after another, by its {name}; write a file for each, or a zarr of "
                              "diffusion_policy's with meta/episode_ends")


def _ends_early(file: Any, name: str) -> bool:
    """Whether flags of this name tell of an end before the last row."""
    found = hdf5.member(file, name)
    if not isinstance(found, hdf5.library().Dataset) or found.dtype.kind not in "biuf":
        return False
    flags = hdf5.array(file, name)
    return flags is not None and flags.ndim > 0 and bool((flags[:-1] > 0).any())
