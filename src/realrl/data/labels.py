"""How episodes ended: what people said of them, kept beside the recording (`derived/labels/`), never in it; and else what it says itself.

A label is "success", "failure" or "unknown", with who gave it, when and how. Whoever reads an episode gets it with its label: it counts
more than the recording (`schema.episode`).
"""

from __future__ import annotations

import contextlib
import getpass
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from realrl.data import clocks, schema, side, tables
from realrl.data.schema import LABEL as LABEL
from realrl.data.schema import Info
from realrl.data.words import OUTCOMES
from realrl.files import lock, unwritable
from realrl.types import Array, RealrlError

CHOICES = ("success", "failure", "unknown")
WORD = {True: "success", False: "failure", None: "unknown"}
NAME = "labels"  # of the side file
COLUMNS = (LABEL, "by", "at", "how")  # text each, empty where nobody said anything


class Labels:
    """The newest labels of a dataset, read when they are needed and again when somebody has labelled since. heeded: False leaves them
    out, for who looks for what the recording itself says."""

    def __init__(self, directory: Path, rows: Callable[[], pa.Table]) -> None:
        """rows: gives the rows of all episodes."""
        self._dir, self.rows, self.heeded = directory, rows, True
        self._seen: tuple[int, ...] = ()
        self._given: list[str | None] = []

    def onto(self, rows: list[dict[str, Any]], numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Episodes' rows, each with its label as one more entry. numbers: which episodes they are of.

        Raises RealrlError when the labels are damaged, or those of other episodes.
        """
        version = max(side.versions(self._dir, NAME), default=0) if self.heeded else 0
        if version:
            about = os.stat(self._dir / side.FOLDER / NAME / f"v{version}.parquet")
            seen = (version, about.st_mtime_ns, about.st_size, about.st_ino)
            if seen != self._seen:
                self._given, self._seen = read(self._dir, self.rows())[LABEL], seen
        for row, i in zip(rows, numbers, strict=True):  # what others keep under that name is no label
            row[LABEL] = self._given[i] if version and i < len(self._given) else None
        return rows


def read(directory: str | Path, rows: pa.Table) -> dict[str, list[str | None]]:
    """What people said: `COLUMNS`, each with an entry an episode. rows: of all episodes."""
    root = Path(directory)
    if not side.versions(root, NAME):
        return {name: [None] * len(rows) for name in COLUMNS}
    found = side.read(root, NAME, missing="nan", rows=rows)
    columns = {name: [None if x is None else str(x) for x in found.columns.get(name, np.full(len(rows), None, object)).tolist()]
               for name in COLUMNS}
    if any(len(x) != len(rows) for x in columns.values()) or not {*columns[LABEL]} <= {*CHOICES, None}:
        raise RealrlError(f"{root / side.FOLDER / NAME}/v{found.version}.parquet holds no labels of episodes; set it aside")
    return columns


def give(directory: str | Path, rows: pa.Table, chosen: Mapping[int, str], how: str, version: int | None = None) -> int:
    """Add labels to those there are and give their version. Once this returns they survive a crash.

    rows: of all episodes; chosen: episode -> one of `CHOICES`; how: by which rule; version: what the same person began in this session,
    to write on in as long as it is the newest. Raises RealrlError where the folder cannot be written, naming the way out.
    """
    root = Path(directory)
    try:
        (root / side.FOLDER).mkdir(exist_ok=True)
    except OSError as error:
        raise RealrlError(f"{unwritable(root / side.FOLDER, error)}, or label a copy of the dataset that is yours") from error
    with lock(root / side.FOLDER / ".labels.lock", 10.0):
        columns = read(root, rows)
        told = {"by": _who(), "at": datetime.now(UTC).isoformat(timespec="seconds"), "how": how}
        for episode, label in chosen.items():
            for name, value in {LABEL: label, **told}.items():
                columns[name][episode] = value
        newest = max(side.versions(root, NAME), default=0)
        return side.write(root, NAME, {name: np.array([*x, None], object)[:-1] for name, x in columns.items()}, rows=rows,
                          version=version if version == newest else None)


def follow(directory: str | Path, numbers: Sequence[int], out: str | Path) -> None:
    """Give a repaired dataset the labels of the episodes it keeps, by their old numbers: rows are lost that would prove which they were.

    Raises RealrlError when they cannot be read.
    """
    version = max(side.versions(directory, NAME), default=0)
    table = tables.read_parquet(Path(directory) / side.FOLDER / NAME / f"v{version}.parquet") if version else None
    if table is not None and LABEL in table.column_names:
        old = {name: table[name].to_pylist() if name in table.column_names else [] for name in COLUMNS}
        new = {name: np.array([*(cells[i] if i < len(cells) else None for i in numbers), None], object)[:-1] for name, cells in old.items()}
        side.write(out, NAME, new)


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # nobody with that number, in a container
        return str(os.getuid())


def outcomes(directory: str | Path, info: Info, rows: pa.Table) -> list[bool | None]:
    """Whether each episode ended in success, None where nothing says so: by its label, its row, and else its last frame.

    rows: of all episodes. Of data files only the column of successes is read, and only where rows say nothing; what is damaged there
    is unknown here, and named by `realrl data check`. Raises RealrlError for damaged labels.
    """
    root = Path(directory)
    named = [name for name in OUTCOMES if name in rows.column_names]
    cells = Labels(root, lambda: rows).onto(rows.select(["length", *named]).to_pylist(), range(len(rows)))
    found = [schema.outcome(row) for row in cells]
    open_ones = [i for i, (row, known) in enumerate(zip(cells, found, strict=True)) if known is None and not row.get(LABEL)]
    for i, flags in _flags(root, info, rows, open_ones).items():
        if flags.any() or not named:
            found[i] = bool(flags[-1])
    return found


def _flags(root: Path, info: Info, rows: pa.Table, wanted: Sequence[int]) -> dict[int, Array]:
    """Success of every frame of some episodes, of those whose data file can be read and says it."""
    name = next((alias for alias in schema.ALIASES["next.success"] if alias in tables.stored(info["features"])), None)
    if name is None or not wanted:
        return {}
    start, stop, chunk, file = (rows[c].to_numpy() for c in ("dataset_from_index", "dataset_to_index", "data/chunk_index",
                                                             "data/file_index"))
    found: dict[int, Array] = {}
    for key in {(int(chunk[i]), int(file[i])) for i in wanted}:
        here = (chunk == key[0]) & (file == key[1])
        with contextlib.suppress(RealrlError, FileNotFoundError):
            told = {n: info["features"][n] for n in (name, "frame_index") if n in info["features"]}
            columns, base = tables.read_frames(schema.data_file(root, info, key), told), int(start[here].min())
            spans = {i: clocks.in_order({n: x[start[i] - base:stop[i] - base] for n, x in columns.items()})[name]
                     for i in wanted if here[i]}
            found |= {i: flags for i, x in spans.items() if x.size and (flags := schema.won({name: x}, len(x))) is not None}
    return found
