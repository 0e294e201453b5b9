"""Checkpoints without pickle: state dicts as JSON and named tensors, in a folder whose every version is there whole or not at all.

    state-000007.json + tensors-000007.safetensors
"""

from __future__ import annotations

import json
import math
import operator
import os
import zlib
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from realrl import config
from realrl.files import read_json, read_plain, sync, write_bytes, write_text
from realrl.types import RealrlError, Stateful

Part = Stateful | Mapping[str, Any]
FORMAT: Final = 1  # raise it when old ones can no longer be read


# ---- trees: state dicts as JSON and named tensors -----------------------------------------------------------------------------


def encode(tree: Any, tensors: MutableMapping[str, Tensor], name: str = "") -> Any:
    """`tree` as plain JSON; tensors and arrays go into `tensors` under their path ("policy/net/0/weight") as copies on the CPU.

    What JSON lacks is tagged: tuples, dicts with other than plain string keys, infinities and NaN. Floats keep every bit and ints may
    have any size. Raises RealrlError, naming the path, on anything else (no pickle).
    """
    if tree is None or isinstance(tree, bool | str):
        return tree
    if isinstance(tree, np.generic):
        return {"$scalar": _put(torch.from_numpy(np.array(tree)), tensors, name)}
    if isinstance(tree, int):
        return int(tree)
    if isinstance(tree, float):
        return tree if math.isfinite(tree) else {"$float": str(tree)}
    if isinstance(tree, Tensor):
        return {"$tensor": _put(tree, tensors, name)}
    if isinstance(tree, np.ndarray) and tree.dtype.kind in "biufc":
        return {"$array": _put(torch.from_numpy(np.array(tree, tree.dtype.newbyteorder("="), order="C")), tensors, name)}
    if isinstance(tree, list | tuple):
        items = [encode(v, tensors, f"{name}/{i}") for i, v in enumerate(tree)]
        return items if isinstance(tree, list) else {"$tuple": items}
    if isinstance(tree, Mapping):
        pairs = [(k, encode(v, tensors, f"{name}/{k}" if name else str(k))) for k, v in tree.items()]
        if all(isinstance(k, str) and not k.startswith("$") for k, _ in pairs):
            return dict(pairs)
        return {"$dict": [[encode(k, tensors, f"{name}/key"), v] for k, v in pairs]}
    raise RealrlError(f"a checkpoint cannot hold a {type(tree).__name__} (at '{name}'); give numbers, strings, lists, dicts or arrays")


def _put(tensor: Tensor, tensors: MutableMapping[str, Tensor], name: str) -> str:
    """Store a copy (shared storage and device aside) under `name`, or under a name near it if that is taken; the name used."""
    unique, n = name, 1
    while unique in tensors:
        unique, n = f"{name}~{n}", n + 1
    tensors[unique] = tensor.detach().to("cpu", copy=True).contiguous()
    return unique


def decode(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `encode`. Raises KeyError when a tensor is absent, others of `UNFIT` on what `encode` never writes."""
    if isinstance(tree, list):
        return [decode(v, tensors) for v in tree]
    if not isinstance(tree, dict):
        return tree
    if len(tree) == 1:
        tag, value = next(iter(tree.items()))
        if tag in _DECODERS:
            return _DECODERS[tag](value, tensors)
    return {k: decode(v, tensors) for k, v in tree.items()}


_DECODERS: Final[dict[str, Callable[[Any, Mapping[str, Tensor]], Any]]] = {
    "$tensor": lambda value, tensors: tensors[value],
    "$array": lambda value, tensors: tensors[value].numpy(),
    "$scalar": lambda value, tensors: tensors[value].numpy()[()],
    "$float": lambda value, tensors: float(value),
    "$tuple": lambda value, tensors: tuple(decode(v, tensors) for v in value),
    "$dict": lambda value, tensors: {decode(k, tensors): decode(v, tensors) for k, v in value},
}


UNFIT: Final = (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError)


# ---- checkpoint folders ---------------------------------------------------------------------------------------------------------


def save_parts(path: str | os.PathLike[str], step: int, parts: Mapping[str, Part], *, keep: int = 1) -> None:
    """Write a new version of the checkpoint in the folder `path`, then remove all but the last `keep`.

    The tensors come first and state-<version>.json last, each by temporary file, fsync and rename: a version exists from the moment
    its JSON does, so at every moment either the old version or the new one is whole. Other files in the folder are left alone.
    """
    folder = Path(path)
    tensors: dict[str, Tensor] = {}
    trees = {name: encode(part if isinstance(part, Mapping) else part.state_dict(), tensors, name) for name, part in parts.items()}
    data = safetensors.torch.save(tensors)
    old = versions(folder)
    version = max(old, default=0) + 1
    state = {"format": FORMAT, "step": operator.index(step), "crc32": zlib.crc32(data), "parts": trees}
    state["check"] = _checksum(state)
    write_bytes(folder / f"tensors-{version:06d}.safetensors", data)
    write_text(folder / f"state-{version:06d}.json", json.dumps(state, allow_nan=False))
    _prune(folder, set(([*old, version])[-max(keep, 1):]))


def _checksum(state: Mapping[str, Any]) -> int:
    """Over all that a state file says."""
    return zlib.crc32(json.dumps({name: value for name, value in state.items() if name != "check"}).encode())


def versions(folder: Path) -> list[int]:
    """The versions a checkpoint folder holds, oldest first."""
    names = [p.stem.removeprefix("state-") for p in folder.glob("state-*.json")]
    return sorted(int(n) for n in names if n.isdecimal())


def _prune(folder: Path, keep: set[int]) -> None:
    """Remove old versions, each JSON before its tensors, and what killed processes left behind."""
    for pattern in (".state-*.tmp", ".tensors-*.tmp", "state-*.json", "tensors-*.safetensors"):
        for file in folder.glob(pattern):
            number = file.stem.partition("-")[2]
            if not (number.isdecimal() and int(number) in keep):
                file.unlink(missing_ok=True)
    sync(folder)


def read_parts(path: str | os.PathLike[str]) -> tuple[int, dict[str, Any]]:
    """(step, the state of every part) of the newest version in a checkpoint folder; tensors on the CPU.

    Raises:
        RealrlError: no checkpoint there, a damaged or missing file, or one of another format; names the file and the mend.
    """
    folder = Path(path)
    while True:
        known = versions(folder)
        if not known:
            raise RealrlError(f"no checkpoint in {folder}; give a folder that holds state-*.json and tensors-*.safetensors")
        try:
            return _read_version(folder, known[-1])
        except FileNotFoundError as error:  # either gone for good, or a running job has just written the next version
            if versions(folder)[-1:] == known[-1:]:
                raise RealrlError(f"{error.filename} is missing{_mend(folder, known[-1])}") from error
        except OSError as error:  # a ring of links, another's file
            raise RealrlError(f"{folder} cannot be read ({error.strerror or error}){_mend(folder, known[-1])}") from error


def _read_version(folder: Path, version: int) -> tuple[int, dict[str, Any]]:
    state_file, tensor_file = folder / f"state-{version:06d}.json", folder / f"tensors-{version:06d}.safetensors"
    try:
        state = read_json(state_file)
        layout, step, crc, trees = state["format"], state["step"], state.get("crc32"), state["parts"]
    except (RealrlError, KeyError, TypeError, AttributeError) as error:
        raise RealrlError(f"{state_file} is damaged{_mend(folder, version)}") from error
    if layout != FORMAT:
        raise RealrlError(f"{state_file} has checkpoint format {config.shown(layout)}, this realrl reads {FORMAT}; "
                          "load it with the realrl that wrote it")
    whole = isinstance(trees, dict) and isinstance(step, int) and 0 <= step < 2**62
    if not whole or state.get("check", _checksum(state)) != _checksum(state):  # checkpoints did not always hold it
        raise RealrlError(f"{state_file} is damaged{_mend(folder, version)}")
    data = read_plain(tensor_file, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    if zlib.crc32(data) != crc:
        raise RealrlError(f"{tensor_file} is damaged or truncated{_mend(folder, version)}")
    try:
        tensors = safetensors.torch.load(data)
        return step, {name: decode(tree, tensors) for name, tree in trees.items()}
    except (safetensors.SafetensorError, *UNFIT) as error:
        raise RealrlError(f"{tensor_file} does not hold what {state_file.name} names{_mend(folder, version)}") from error


def _mend(folder: Path, version: int) -> str:
    others = versions(folder)[:-1]
    if others:
        return f"; delete the two files numbered {version:06d} to fall back on version {others[-1]:06d}"
    return f"; restore it from a backup, or delete the folder {folder} to redo that stage"


def restore(states: Mapping[str, Any], parts: Mapping[str, Any], source: str | os.PathLike[str]) -> None:
    """Load `states`, as `read_parts` gives them, into objects; plain dicts are replaced in place. `source` names the file in errors.

    Raises:
        RealrlError: a part the checkpoint does not hold, or whose shapes or names do not fit.
    """
    for name, part in parts.items():
        if name not in states:
            raise RealrlError(f"{source}: the checkpoint has no part '{name}'{config.nearest(name, states)}")
        if isinstance(part, nn.Module) and isinstance(states[name], Mapping):
            finite(states[name], f"{source}: part '{name}'", "the training diverged: delete the folder and lower the learning rate")
        try:
            if isinstance(part, MutableMapping):
                found = dict(states[name])
                part.clear()
                part.update(found)
            else:
                part.load_state_dict(states[name])
        except UNFIT as error:
            why = " ".join(str(error).split())[:400]
            raise RealrlError(f"{source}: part '{name}' does not fit ({why}); build it with the config.yaml it was saved with") from error


def finite(weights: Mapping[str, Any], where: str, mend: str) -> None:
    """Raise RealrlError, its line begun with `where` and ended with `mend`, where a tensor holds NaN or an infinity."""
    for name, value in weights.items():
        if isinstance(value, Tensor) and not bool(value.isfinite().all()):
            raise RealrlError(f"{where} holds {name} with NaN or infinite values; {mend}")
