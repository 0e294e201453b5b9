"""Columns that others spread over several, `action.left_arm` and `action.gripper`: which belong together, in which order, under what names.

They are laid side by side in the order of meta/modality.json (GR00T's) where it lists them, else of info.json. Columns that say one motion
in two ways (joints and the hand's pose, positions and velocities) are never joined unasked: a person names those that were sent.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from realrl.data import errors, tables
from realrl.data.schema import ALIASES, Info
from realrl.files import within
from realrl.types import Array, RealrlError

FLAGS = "--rename {ours}=COLUMN,COLUMN of 'realrl data import' and --recorded.names {ours}=COLUMN,COLUMN of 'realrl train'"
SPREAD = {"action": re.compile(r"actions?\.(.+)"), "observation.state": re.compile(r"(?:observation\.)?states?\.(.+)")}
NEAR = re.compile(r"actions?_.+|.+[_.]actions?")  # not taken for a part unasked
NO_PART = re.compile(r"(^|[._])(is_pad|mask|valid|original|raw|timestamps?|time|index|id|noise|intervention)$")
# What tells one way to say a motion from another, by the words of a name; what is left of it is the limb.
WAYS = ({"joint": "joints", "joints": "joints", "qpos": "joints", "qvel": "joints", "cartesian": "hand", "eef": "hand", "ee": "hand",
         "tcp": "hand", "pose": "hand", "effector": "hand", "eepose": "hand"},
        {"position": "place", "positions": "place", "pos": "place", "qpos": "place", "pose": "place", "xyz": "place", "velocity": "speed",
         "velocities": "speed", "vel": "speed", "qvel": "speed", "twist": "speed", "effort": "force", "efforts": "force",
         "torque": "force", "torques": "force", "current": "force"},
        {"absolute": "absolute", "abs": "absolute", "relative": "relative", "rel": "relative", "delta": "relative"})
USUAL = (None, "place", "absolute")  # where a name does not say it
TURNS = {"rotation", "orientation", "quat", "quaternion", "rot", "rpy", "euler"}  # of a hand that the place does not say
NO_LIMB = {"arm", "end", "target", "command", "cmd"}


def parts(ours: str, features: Info) -> list[str]:
    """The columns of numbers, in their order, that one of ours is spread over; none where it is there itself."""
    known = {alias for names in ALIASES.values() for alias in names}
    if ours in features:
        return []
    return [name for name in tables.stored(features) if SPREAD[ours].fullmatch(name) and name not in known and not NO_PART.search(name)
            and features[name]["dtype"].startswith(("float", "int", "uint", "bool")) and _narrow(features[name])]


def found(root: Path, features: Info) -> dict[str, list[str]]:
    """Our column -> those that make it up, for what is spread without a doubt."""
    told = {}
    for ours in SPREAD:
        if there := parts(ours, features):
            listed = _listed(root, ours, there)
            if listed or ours != "action" or clash(there) is None:
                told[ours] = listed or there
    return told


def proposal(features: Info) -> list[str]:
    """What might be the action, without those that only say again what one before them does."""
    there = parts("action", features) or [name for name in tables.stored(features) if NEAR.fullmatch(name) and _narrow(features[name])
                                          and not NO_PART.search(name) and not name.startswith("observation")]
    kept: list[str] = []
    for name in there:
        if clash([*kept, name]) is None:
            kept.append(name)
    return kept


def clash(there: Sequence[str]) -> tuple[str, str] | None:
    """The first two of some columns that say the motion of one limb in two ways, None where there are none."""
    return next(((one, other) for one, other in itertools.combinations(there, 2) if _again(_said(one), _said(other))), None)


def _said(name: str) -> tuple[frozenset[str], list[str | None]]:
    """(the limb, the way its motion is said)."""
    words = ["turn" if word in TURNS else word for word in re.split(r"[._/]", name.lower()) if word not in ("action", "actions")]
    ways = [next((way[word] for word in words if word in way), usual) for way, usual in zip(WAYS, USUAL, strict=True)]
    return frozenset(word for word in words if word not in NO_LIMB and not any(word in way for way in WAYS)), ways


def _again(one: tuple[frozenset[str], list[str | None]], other: tuple[frozenset[str], list[str | None]]) -> bool:
    return one[0] == other[0] and (one[1] == other[1] or any(a and b and a != b for a, b in zip(one[1], other[1], strict=True)))


def check(root: Path, ours: str, asked: Sequence[str], features: Info) -> None:
    """Raise RealrlError unless columns can be laid side by side."""
    numbers = tables.stored(features)
    if wrong := [name for name in asked if name not in numbers or not _narrow(features[name])]:
        raise RealrlError(f"{root}: {wrong[0]!r} is no vector of numbers, it cannot be joined into {ours}; leave it out of the names")
    if twice := [name for name, often in Counter(asked).items() if often > 1]:
        raise RealrlError(f"{root}: {twice[0]!r} is to be joined into {ours} twice; name it once")


def feature(ours: str, there: Sequence[str], features: Info) -> Info:
    """What info.json would say of the joined column: names are those of the parts, with the part's before them where two are alike."""
    wide = [int(np.prod(features[name]["shape"])) for name in there]
    own = [flat_names(features[name].get("names")) for name in there]
    short = [(m[1] if (m := SPREAD["action"].fullmatch(name) or SPREAD["observation.state"].fullmatch(name)) else name) for name in there]
    called = [names if len(names) == n else [part] if n == 1 else [f"{part} {i}" for i in range(n)]
              for names, n, part in zip(own, wide, short, strict=True)]
    often = Counter(itertools.chain(*called))
    names = [name if often[name] == 1 else f"{part}.{name}" for part, some in zip(short, called, strict=True) for name in some]
    kind = "float64" if any(features[name]["dtype"] == "float64" for name in there) else "float32"
    return {"dtype": kind, "shape": [sum(wide)], "names": names}


def join(columns: Sequence[Array]) -> Array:
    """Columns [T, ...] side by side [T, A], float32, or float64 where one is."""
    kind = np.float64 if any(x.dtype == np.float64 for x in columns) else np.float32
    return np.concatenate([x.reshape(len(x), -1).astype(kind) for x in columns], axis=1)


def flat_names(names: Any) -> list[str]:
    """A feature's names for its numbers, in whatever nesting others wrote them."""
    if isinstance(names, Mapping):
        if names and all(isinstance(i, int) for i in names.values()):  # name -> place
            return sorted(names, key=lambda n: names[n])
        return [x for part in names.values() for x in flat_names(part)]
    return [x for part in names for x in flat_names(part)] if isinstance(names, list) else [] if names is None else [str(names)]


def _narrow(told: Info) -> bool:
    """Whether a feature is a vector: a matrix of numbers each frame is a plan, or a picture."""
    return bool(sum(n > 1 for n in told["shape"]) <= 1)


def _listed(root: Path, ours: str, there: Sequence[str]) -> list[str]:
    """The parts that meta/modality.json lists, in its order; none where it is absent or lists no column of them."""
    path = root / "meta/modality.json"
    if not path.is_file():
        return []
    within(root, path)
    told: Any = errors.read_json(path)
    entries = told.get(ours.rpartition(".")[2]) if isinstance(told, dict) else None
    if not isinstance(entries, dict):
        return []
    ends = {name.rpartition(".")[2]: name for name in there}
    keys = [about.get("original_key") if isinstance(about, dict) else None for about in entries.values()]
    return list(dict.fromkeys(name for entry, key in zip(entries, keys, strict=True)
                              if (name := key if key in there else ends.get(entry)) is not None))
