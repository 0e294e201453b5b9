"""Other people's datasets, in and out. One module a format; each has

- `NAME`, what a user calls it;
- `detect(path) -> bool`, cheap, never raises;
- `read(path, *, option=...) -> Imported`, options are explicit keyword arguments; raises RealrlError;
- `write(episodes, path, *, fps, ...)` where the format can be written;
- `library()`, where it needs one that is slow to load: loads it.

`detect` runs here; `read` and `write` run in a process of their own (`sandbox`), so their options and `Imported.meta` are plain values.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from realrl.data.errors import is_pointer, refuse_pointer, typed
from realrl.data.formats import aloha, arrow, diffusion_policy, lerobot, maniskill, minari, pickles, rlds, robomimic, sandbox
from realrl.data.formats.common import Imported
from realrl.data.formats.lerobot import open_dataset
from realrl.types import Episode, RealrlError

__all__ = ["FORMATS", "Imported", "detect", "open_dataset", "read", "write"]

FORMATS: dict[str, ModuleType] = {
    module.NAME: module for module in (diffusion_policy, minari, rlds, lerobot, arrow, pickles, maniskill, aloha, robomimic)}


def detect(path: str | Path) -> str:
    """The name of the format of a file or folder. Raises RealrlError when it is absent or none recognises it."""
    path = Path(path)
    if not path.exists():
        raise RealrlError(f"{path} does not exist")
    found = next((name for name, module in FORMATS.items() if module.detect(path)), None)
    if found is None:
        with _fetched(path):
            raise RealrlError(f"{path} is in none of the formats known here ({', '.join(FORMATS)}); {_hint(path)}")
    return found


def _hint(path: Path) -> str:
    """What to do with a set that nobody here recognises."""
    inside = sorted(path.iterdir())[:1000] if path.is_dir() else []
    names = [p.name for p in inside] or [path.name]
    if path.is_dir() and not inside:
        return "there is nothing in it"
    if whole := next((folder for folder in path.resolve().parents if lerobot.detect(folder)), None):
        return f"it is a part of a LeRobot dataset, give the whole folder: {typed(whole)}"
    if several := [p for p in inside if p.is_dir() and lerobot.detect(p)]:
        return f"it holds LeRobot datasets, give them one by one: {', '.join(typed(p) for p in several[:3])}{', ...' * (len(several) > 3)}"
    if led := [p for p in inside if p.is_symlink() and not p.resolve().is_relative_to(path.resolve())]:
        return f"{led[0].name} in it is a link that leads out of it, make a copy without links: cp -rL {typed(path)} NEW"
    if any(name.endswith((".tar", ".tar.gz", ".tgz", ".7z", ".rar")) or (name.endswith(".zip") and ".zarr" not in name) for name in names):
        return "unpack the archive first"
    if any(name.endswith(".npy") for name in names):
        return "objects in .npy are pickled and not opened: write an npz an episode, action [T, A] and what was observed [T, ...]"
    if any(name.endswith((".bag", ".mcap", ".db3")) for name in names):
        return "convert recordings of ROS to LeRobot's layout first"
    if {".zgroup", ".zattrs", "zarr.json"} & set(names):
        told = [name for name in names if not name.startswith((".z", "zarr."))]
        return ("a zarr is read whose arrays lie side by side in data/ and whose episodes end where meta/episode_ends says (this one "
                f"holds {', '.join(ascii(name)[1:-1] for name in told[:6]) or 'nothing'}): write it so")
    return "say which one with format="


def read(path: str | Path, format: str | None = None, **options: Any) -> Imported:
    """Open a foreign dataset; `options` are those of the format's `read`. Raises RealrlError, also later while iterating."""
    path = Path(path)
    if not path.exists():
        raise RealrlError(f"{path} does not exist")
    name = detect(path) if format is None else format
    with _fetched(path):
        found = sandbox.read(name, path, _known(name, _function(name, "read"), options))
    found.episodes = _episodes(found.episodes, path)
    return found


def _episodes(episodes: Iterator[Episode], path: Path) -> Iterator[Episode]:
    with _fetched(path):
        yield from episodes


@contextlib.contextmanager
def _fetched(path: Path) -> Iterator[None]:
    """What git-lfs never fetched looks like damage of any kind: where a reader complains and such a file is there, it is the reason."""
    try:
        yield
    except RealrlError:
        for folder, _, names in [("", [], [str(path)])] if path.is_file() else os.walk(path):
            for name in names:
                if is_pointer(file := Path(folder, name)):
                    refuse_pointer(file)
        raise


def write(format: str, episodes: Iterable[Episode], path: str | Path, *, fps: float, **options: Any) -> None:
    """Write episodes in a foreign format; `options` are those of its `write`. Raises RealrlError when `path` exists already."""
    sandbox.write(format, episodes, Path(path), {"fps": fps} | _known(format, _function(format, "write"), options))


def _function(name: str, what: str) -> Callable[..., Any]:
    if name not in FORMATS:
        raise RealrlError(f"there is no format {name!r}; there are {', '.join(FORMATS)}")
    function = getattr(FORMATS[name], what, None)
    if function is None:
        able = [n for n, module in FORMATS.items() if hasattr(module, what)]
        raise RealrlError(f"{name} can not be {'read' if what == 'read' else 'written'} here; {', '.join(able)} can")
    found: Callable[..., Any] = function
    return found


def _known(name: str, function: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    given = {"write": {"fps"}}.get(function.__name__, set())  # passed by `write` above, not an option
    parameters = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY and p.name not in given]
    if unknown := sorted(options.keys() - set(parameters)):
        raise RealrlError(f"{name} has no option {unknown[0]!r}; it has {', '.join(parameters) or 'none'}")
    return options
