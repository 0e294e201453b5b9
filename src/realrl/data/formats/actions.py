"""Which arrays of a foreign set make up the action, where it may be spread over several."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from realrl.data import spread
from realrl.data.formats import common, hdf5
from realrl.types import Array, RealrlError

PART = re.compile(r"(?:joint_|q)?actions?[./](.+)")
STATE = re.compile(r"observations?\.states?\.(.+)")
NEAR = re.compile(r"(.*[_./])?(actions?|master|leader|command|commands)([_./].*)?")  # what may be meant, but is not taken unasked


def parts(asked: str | Sequence[str] | None, there: Mapping[str, int], where: Path) -> list[str]:
    """The names of the arrays that lie side by side as the action, in this order. there: name -> numbers in a row, in the file's order.

    Those asked for; else `action` or `actions`; else all of a group of this name, but one of them alone if it is as wide as all others
    together. Raises RealrlError, with the option that mends it, where there is none and where two say one motion in two ways.
    """
    if asked is not None:
        return common.only([*asked.split(",")] if isinstance(asked, str) else asked, list(there), "array", where)
    if whole := [name for name in ("action", "actions") if name in there]:
        return whole[:1]
    found = [name for name in there if PART.fullmatch(name) and not spread.NO_PART.search(name)]
    if len(found) > 2 and (whole := [name for name in found if 2 * there[name] == sum(there[n] for n in found)]):
        return whole[:1]
    kept: list[str] = []
    for name in found:
        if spread.clash([*kept, name]) is None:
            kept.append(name)
    if clash := spread.clash(found):
        raise RealrlError(f"{where}: the action is spread over several arrays, and {clash[0]} and {clash[1]} say one thing in two ways; "
                          f"name those that were sent, in their order: --option action={','.join(kept)}")
    if not found:
        near = [name for name in there if NEAR.fullmatch(name)]
        raise RealrlError(f"{where} has no action; say which of {', '.join(near or there)[:300] or 'nothing'} was sent: "
                          "--option action=NAME, or NAME,NAME for several side by side")
    return found


def names(found: Sequence[str], wide: Mapping[str, int]) -> list[str] | None:
    """What the numbers of joined arrays are called, None for a single one."""
    if len(found) < 2:
        return None
    short = [m[1] if (m := PART.fullmatch(name) or STATE.fullmatch(name)) else name for name in found]
    return [part if wide[name] == 1 else f"{part} {i}" for name, part in zip(found, short, strict=True) for i in range(wide[name])]


def said(found: Sequence[str]) -> list[str]:
    """The note on it."""
    return [f"action is {' + '.join(found)}, side by side in this order; --option action=NAME,NAME says another"] if len(found) > 1 else []


def held(one: Any) -> dict[str, int]:
    """What `parts` chooses from in an HDF5 group: the arrays `action` or `actions` and below, by path -> numbers in a row."""
    found: dict[str, Any] = {}
    for name in ("actions", "action"):
        inner = hdf5.member(one, name)
        if isinstance(inner, hdf5.library().Group):
            found |= {f"{name}/{below}": x for below, x in hdf5.leaves(inner, order=hdf5.in_order).items()}
        elif inner is not None:
            found[name] = inner
    return {name: int(np.prod(x.shape[1:])) for name, x in found.items() if x.shape and x.dtype.kind in "biuf"}


def near(one: Any, every: bool) -> dict[str, int]:
    """The other arrays of an HDF5 group that an action may be, by name -> numbers in a row. every: not only what is called like one."""
    arrays = {name: x for name in hdf5.names(one) if (x := hdf5.member(one, name)) is not None and not isinstance(x, hdf5.library().Group)}
    return {name: int(np.prod(x.shape[1:])) for name, x in arrays.items() if x.shape and x.dtype.kind in "biuf"
            and (every or (NEAR.fullmatch(name) and len(x.shape) == 2))}


def column(columns: Sequence[Array], found: Sequence[str], where: str) -> Array:
    """The arrays of an episode side by side [T, A], a single one as it is. Raises RealrlError where they differ in length."""
    if len({len(x) for x in columns}) > 1:
        raise RealrlError(f"{where}: {' and '.join(found)} have {', '.join(str(len(x)) for x in columns)} rows; write as many of each")
    return columns[0] if len(columns) == 1 else np.concatenate([x.reshape(len(x), -1).astype(np.float64) for x in columns], axis=1)
