"""Small recordings for the tests of the data tools."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from realrl.data.store import Store
from realrl.data.tools.check import check
from realrl.types import Episode

FPS = 20
SIZE = 32  # pixels of a picture's side


def episode(number: int, frames: int = 0, *, cameras: Sequence[str] = (), **changes: Any) -> Episode:
    """An episode whose numbers say where they come from: state[t] = (number, t). Even ones end in success, at the last frame."""
    rng = np.random.default_rng(number)
    n = frames or 6 + number % 5
    time = np.arange(n + 1)
    obs = {"state": np.stack([np.full(n + 1, number), time], 1).astype(np.float32)}
    for camera in cameras:
        film = np.zeros((n + 1, SIZE, SIZE, 3), np.uint8)
        film[:] = (40 + 8 * time)[:, None, None, None]  # brightness says which frame it is
        film[:, : SIZE // 2, :, 0] = 10 + 20 * (number % 10)  # and the colour above which episode
        obs[camera] = film
    good = number % 2 == 0
    made: dict[str, Any] = {
        "obs": obs, "action": rng.uniform(-1, 1, (n, 2)).astype(np.float32), "proposed": rng.uniform(-1, 1, (n, 2)).astype(np.float32),
        "source": rng.integers(0, 3, n).astype(np.uint8), "reward": rng.normal(size=n).astype(np.float32),
        "success": (time[1:] == n) & good, "time": 5.0 + np.arange(n) / FPS, "starts_plan": np.arange(n) % 3 == 0,
        "terminated": good, "truncated": not good, "task": f"task {number % 3}", "policy": f"policy {number}", "seed": 100 + number}
    return Episode(**{**made, **changes})


def record(directory: Path, numbers: Sequence[int], *, per_append: int = 2, robot: str = "arm", fps: int = FPS, **more: Any) -> Path:
    """A dataset of such episodes, some to a file."""
    store = Store.create(directory, task="task 0", fps=fps, robot_type=robot)
    for i in range(0, len(numbers), per_append):
        store.append([episode(n, **more) for n in numbers[i:i + per_append]])
    return directory


def digest(e: Episode) -> str:
    """One hash over everything a recording of numbers must keep; pictures, which are compressed, are left out."""
    h = hashlib.sha256()
    arrays = {**{k: x for k, x in e.obs.items() if x.dtype != np.uint8}, "action": e.action, "proposed": e.proposed, "source": e.source,
              "reward": e.reward, "success": e.success, "time": e.time, "starts_plan": e.starts_plan}
    for name, x in sorted(arrays.items()):
        h.update(f"{name} {x.dtype} {x.shape}".encode() + np.ascontiguousarray(x).tobytes())
    h.update(repr((e.terminated, e.truncated, e.task, e.policy, e.seed)).encode())
    return h.hexdigest()


def digests(directory: Path) -> list[str]:
    return [digest(e) for e in Store.open(directory).read()]


def errors(directory: Path) -> list[str]:
    """What `check` calls an error."""
    return [str(p) for p in check(directory) if p.severity == "error"]


def tree(directory: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file() and p.name != ".lock"}
