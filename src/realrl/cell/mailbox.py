"""What an actor and its learner share: a file in memory that both map, and that outlives either of them.

Steps go one way, through a ring of fixed places; weights go the other, through two places of which the newer counts; and each leaves the
time of its last sign of life. The actor never waits here: weights that are just being written it takes a step later.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from realrl.data.record.journal import memory_file, memory_folders
from realrl.envs.base import spaces
from realrl.types import Moment, Obs, RealrlError, Source, Step, TaskSpec

MAGIC = b"realrl actor 4\n"
TOP = 16384  # bytes before the head: magic and layout
DEAD = 3.0
"""Seconds without a sign of life after which an actor's process is taken for dead; it gives one ten times a second."""
_HEAD = np.dtype([
    # what the learner says
    ("learner_beat", "f8"), ("wanted", "i8"), ("go", "i8"), ("stop", "i8"), ("episodes", "i8"), ("steps", "i8"), ("version", "i8"),
    ("published", "f8"), ("update_s", "f8"), ("read", "i8"),
    # and the actor
    ("actor_beat", "f8"), ("pid", "i8"), ("ready", "i8"), ("written", "i8"), ("acting", "i8"), ("hold", "i8"), ("ticks", "i8"),
    ("missed", "i8"), ("worst", "f8"), ("holds", "i8"), ("seen", "f8"), ("error", "S2000")])


def places(spec: TaskSpec) -> np.dtype[Any]:
    """One place of the ring: a step and the observation after it, or (`begins`) the one that an episode begins with."""
    seen = [(f"obs/{key}", space.dtype, space.shape) for key, space in sorted(spaces(spec).items())]
    size = (spec.action_dim,)
    return np.dtype([("number", "i8"), ("crc", "u4"), ("begins", "?"), ("seed", "i8"), ("action", "f4", size), ("proposed", "f4", size),
                     ("source", "u1"), ("reward", "f4"), ("terminated", "?"), ("truncated", "?"), ("success", "?"), ("time", "f8"),
                     ("starts_plan", "?"), *seen])


def name(dataset: Path) -> str:
    """Of the mailbox of whoever records into a data set."""
    return hashlib.sha256(str(dataset.resolve()).encode()).hexdigest()[:24]


class Mailbox:
    """The shared file. Make one by `create`, find one by `find`; head: what each side says, see `_HEAD`."""

    def __init__(self, path: Path, memory: mmap.mmap, layout: Mapping[str, Any]) -> None:
        self.path, self.layout, self._memory = path, layout, memory
        self._lock = path.open("rb")
        place = np.dtype([tuple(tuple(x) if isinstance(x, list) else x for x in entry) for entry in layout["place"]])
        self.head: Any = np.ndarray((), _HEAD, memory, TOP)
        at = TOP + _HEAD.itemsize + (-_HEAD.itemsize) % 64
        self._ring: Any = np.ndarray((layout["slots"],), place, memory, at)
        at += self._ring.nbytes + (-self._ring.nbytes) % 64
        self._weights = [_views(memory, at + i * _room(layout["weights"]), layout["weights"]) for i in range(2)]
        self._frame: Obs = {}
        self._seed = -1

    @classmethod
    def create(cls, name: str, place: np.dtype[Any], weights: Mapping[str, Tensor], about: Mapping[str, Any], slots: int) -> Mailbox:
        """A new one. name: by which `find` knows it; weights: as large as those that will be published; about: what both must agree on.
        Raises RealrlError without room."""
        sizes = [[key, str(value.dtype).removeprefix("torch."), list(value.shape)] for key, value in weights.items()]
        layout = {"place": [[entry[0], *entry[1:]] for entry in place.descr if entry[0]], "weights": sizes, "slots": slots,
                  "about": dict(about)}
        text = json.dumps(layout).encode()
        top = MAGIC + len(text).to_bytes(8, "little")
        if len(top) + len(text) > TOP:
            raise RealrlError(f"a policy of {len(sizes)} tensors is more than an actor of its own process can be told of: act in turns")
        size = TOP + _HEAD.itemsize + place.itemsize * slots + 2 * _room(sizes) + 256
        path, memory = memory_file(f"realrl-{name}-", ".actor", size, "let the queue hold fewer steps")
        box = cls(path, memory, json.loads(text))
        box._ring["number"] = -1
        memory[len(top):len(top) + len(text)] = text
        memory[:len(top)] = top  # last: now it can be found
        return box

    @classmethod
    def attach(cls, path: Path) -> Mailbox | None:
        """The one at a path, None where there is none or it was never finished."""
        try:
            with open(path, "r+b") as file:
                memory = mmap.mmap(file.fileno(), 0)
            if memory[:len(MAGIC)] != MAGIC:
                return None
            start = len(MAGIC) + 8
            size = int.from_bytes(memory[len(MAGIC):start], "little")
            return cls(path, memory, json.loads(memory[start:start + size]))
        except (OSError, ValueError):
            return None

    @classmethod
    def find(cls, name: str) -> list[Mailbox]:
        """Those of a name that lie here, only files of this user."""
        paths = [p for folder in memory_folders() for p in folder.glob(f"realrl-{name}-*.actor")]
        mine = [p for p in paths if not p.is_symlink() and p.stat().st_uid == os.geteuid()]
        return [box for p in mine if (box := cls.attach(p))]

    def remove(self) -> None:
        """Nobody will find it again; who has it goes on with it."""
        self.path.unlink(missing_ok=True)

    @property
    def silence(self) -> float:
        """Seconds since the learner's last sign of life."""
        return time.monotonic() - float(self.head["learner_beat"])

    @property
    def alive(self) -> bool:
        """Whether there is an actor, as far as its signs of life say."""
        return time.monotonic() - float(self.head["actor_beat"]) < DEAD

    # -- steps --------------------------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Places that were filled and not read yet."""
        return int(self.head["written"]) - int(self.head["read"])

    def put(self, moment: Moment) -> None:
        """A step; before an episode's first one what it began with. The actor looks at `room` beforehand."""
        step = moment.step
        if moment.first:
            self._fill({"begins": True, "seed": moment.seed}, step.obs)
        self._fill({"begins": False, "seed": moment.seed, "action": step.action, "proposed": step.proposed, "source": step.source,
                    "reward": step.reward, "terminated": step.terminated, "truncated": step.truncated, "success": step.success,
                    "time": step.time, "starts_plan": step.starts_plan}, moment.after)

    @property
    def room(self) -> int:
        """Places that are free."""
        return len(self._ring) - self.waiting

    def _fill(self, values: Mapping[str, Any], obs: Obs) -> None:
        number = int(self.head["written"])
        place = self._ring[number % len(self._ring):][:1]
        for key, value in {**values, **{f"obs/{key}": value for key, value in obs.items()}}.items():
            place[key][0] = value
        place["number"], place["crc"] = number, 0
        place["crc"] = zlib.crc32(place.tobytes())
        self.head["written"] = number + 1

    def take(self) -> list[Moment]:
        """The steps that came since, oldest first, up to an episode's end."""
        moments: list[Moment] = []
        while not (moments and _ends(moments[-1])) and (found := self._next()) is not None:
            obs = {key.removeprefix("obs/"): np.array(found[key]) for key in found.dtype.names if key.startswith("obs/")}
            seed, first = int(found["seed"]), bool(found["begins"])
            if not first:
                moments.append(Moment(_step(found, self._frame), obs, seed, first=self._seed == -1))
            self._frame, self._seed = obs, -1 if first else seed
        return moments

    def _next(self) -> Any:
        """The next place, copied; None where there is none, or not wholly yet: on some processors its parts come in any order."""
        number = int(self.head["read"])
        if number >= int(self.head["written"]):
            return None
        place = self._ring[number % len(self._ring):][:1].copy()
        told, place["crc"] = int(place["crc"][0]), 0
        if int(place["number"][0]) != number or zlib.crc32(place.tobytes()) != told:
            return None
        self.head["read"] = number + 1
        return place[0]

    def forget(self) -> None:
        """The steps that nobody read are read elsewhere."""
        self.head["read"] = int(self.head["written"])

    # -- weights ------------------------------------------------------------------------------------------------------------------

    def publish(self, weights: Mapping[str, Tensor]) -> None:
        """The learner's newest weights."""
        weights = {key: value.cpu() for key, value in weights.items()}  # a GPU is waited for before anybody else has to wait
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # the kernel frees it when its holder dies
        version = int(self.head["version"]) + 1
        for key, place in self._weights[version % 2].items():
            place.copy_(weights[key])
        self.head["version"] = version
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        self.head["published"] = time.monotonic()

    def fetch(self, into: Mapping[str, Tensor], known: int) -> int:
        """Copy the newest weights unless they are `known`; the version that is there now. Never waits."""
        if int(self.head["version"]) == known:
            return known
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return known
        version = int(self.head["version"])
        for key, place in self._weights[version % 2].items():
            into[key].copy_(place)
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        return version


def _ends(moment: Moment) -> bool:
    return moment.step.terminated or moment.step.truncated


def _step(found: Any, obs: Obs) -> Step:
    return Step(obs, np.array(found["proposed"]), np.array(found["action"]), Source(int(found["source"])), float(found["reward"]),
                bool(found["terminated"]), bool(found["truncated"]), bool(found["success"]), float(found["time"]),
                bool(found["starts_plan"]))


def _room(weights: Sequence[Sequence[Any]]) -> int:
    """Bytes for one set of weights, each on a line of its own in the cache."""
    return sum(_bytes(kind, shape) for _, kind, shape in weights)


def _bytes(kind: str, shape: Sequence[int]) -> int:
    size = int(getattr(torch, kind).itemsize)
    return -(-int(np.prod(shape, dtype=np.int64)) * size // 64) * 64


def _views(memory: mmap.mmap, at: int, weights: Sequence[Sequence[Any]]) -> dict[str, Tensor]:
    """name -> tensor over the shared bytes."""
    views = {}
    for key, kind, shape in weights:
        count = int(np.prod(shape, dtype=np.int64))
        views[key] = torch.frombuffer(memory, dtype=getattr(torch, kind), count=count, offset=at).view(shape)
        at += _bytes(kind, shape)
    return views
