"""info.json made anew from what data files and videos say themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from realrl.data import clocks, tables, video
from realrl.data.errors import DAMAGED, read_json
from realrl.data.schema import DATA_PATH, VIDEO_PATH, Info
from realrl.data.spread import flat_names
from realrl.data.tables import Parquet
from realrl.types import RealrlError


def refuse_old(root: Path) -> None:
    """Raise RealrlError for a dataset of version 2, which is only read here."""
    info: Any = None
    with contextlib.suppress(OSError, RealrlError):
        info = read_json(root / "meta/info.json")
    if isinstance(info, dict) and str(info.get("codebase_version")).startswith("v2."):
        raise RealrlError(f"{root} is of LeRobot's version 2, which is only read here; mend it with the tools that made it")


def guessed_info(root: Path, files: Sequence[Path]) -> Info:
    """info.json from what data files and videos say themselves, and what is sound of the one there is. Raises RealrlError when none of the
    files can be read."""
    old: Any = None
    with contextlib.suppress(OSError, RealrlError):
        old = read_json(root / "meta/info.json")
    old = old if isinstance(old, dict) else {}
    for path in files:
        with contextlib.suppress(*DAMAGED), Parquet(path) as file:
            table = file.read([0])
            steps = np.diff(tables.to_numpy(table["timestamp"].slice(0, 1000), "timestamp", {"dtype": "float64", "shape": [1]}))
            step = clocks.tick(steps[steps > 0])
            if not step and not _sound("fps", old.get("fps")):
                raise RealrlError(f"{root}: neither meta/info.json nor timestamps tell its rate; write fps into meta/info.json")
            films = _filmed(root)
            told: Any = old.get("features")
            told = told if isinstance(told, dict) else {}
            features = {name: _kept(told.get(name), found) for name, found in
                        ({name: _feature(table[name]) for name in table.column_names} | films).items()}
            made = {"codebase_version": "v3.0", "robot_type": "unknown", "chunks_size": 1000, "data_files_size_in_mb": 100,
                    "video_files_size_in_mb": 200, "fps": _rate(1 / step) if step else old["fps"],
                    "data_path": DATA_PATH, "video_path": VIDEO_PATH if films else None}
            return made | {name: old[name] for name in made if _sound(name, old.get(name))} | {"features": features}
    raise RealrlError(f"{root}: neither meta/info.json nor any data file can be read; there is nothing to repair from")


def _sound(name: str, told: Any) -> bool:
    """Whether an entry of a damaged info.json can be believed."""
    if name == "fps":
        return isinstance(told, int | float) and not isinstance(told, bool) and 0 < told < 1e6
    return isinstance(told, str) and bool(told) if name in ("robot_type", "data_path", "video_path") else False


def _kept(told: Any, found: dict[str, Any]) -> dict[str, Any]:
    """A feature as the files show it, with the names and, where it can be, the type that info.json says."""
    if not isinstance(told, dict) or found["dtype"] in ("video", "image"):
        return found if not isinstance(told, dict) else found | {"info": told["info"]} if isinstance(told.get("info"), dict) else found
    kind = told.get("dtype")
    alike = isinstance(kind, str) and kind in ("float16", "float32", "float64") and found["dtype"].startswith("float")
    named = isinstance(told.get("names"), list | dict) and len(flat_names(told["names"])) == int(np.prod(found["shape"]))
    return found | ({"dtype": kind} if alike else {}) | ({"names": told["names"]} if named else {})


def _rate(fps: float) -> int | float:
    """What timestamps of 32 bits mean: a whole number, or one like 29.97, which differs from it by a thousandth."""
    whole = round(fps)
    return whole if abs(fps - whole) < 5e-4 * fps else round(fps, 3)


def _filmed(root: Path) -> Info:
    """The cameras, by their folders."""
    features: Info = {}
    for film in sorted((root / "videos").glob("*/chunk-*/file-*.mp4")):
        name = film.parent.parent.name
        with contextlib.suppress(RealrlError):
            told = video.probe(film)
            size = [told["video.height"], told["video.width"], told["video.channels"]]
            features.setdefault(name, {"dtype": "video", "shape": size, "names": ["height", "width", "channels"], "info": told})
    return features


def _feature(column: pa.ChunkedArray) -> dict[str, Any]:
    """A feature as a column of a data file shows it."""
    values, shape = column.slice(0, 1).combine_chunks(), list[int]()
    if pa.types.is_struct(values.type):
        return {"dtype": "image", "shape": [1], "names": None}
    while pa.types.is_nested(values.type):
        inner = values.flatten()
        shape.append(len(inner) // max(len(values), 1))
        values = inner
    clock = pa.types.is_timestamp(values.type) or pa.types.is_duration(values.type)
    kind = "string" if pa.types.is_string(values.type) else "float64" if clock else str(np.dtype(values.type.to_pandas_dtype()))
    return {"dtype": kind, "shape": shape or [1], "names": None}
