"""Bringing a damaged dataset back to a whole one, in its place, without deleting anything.

What is changed or set aside is kept in `<dir>/repair-<time>/`: summaries that were made anew, files that nothing refers to or that
cannot be read, and, where episodes had to go or to be renumbered, the whole dataset as it was (videos are shared, by hard links).
The new tables are made in that folder first and put in place by renames; a repair that was killed between them is finished by the
next one.
"""

from __future__ import annotations

import itertools
import os
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from realrl.data import compaction, footage, labels, schema, side, tables, video
from realrl.data.errors import legible, plain, read_json
from realrl.data.footage import Place
from realrl.data.record import recovery
from realrl.data.record.recorder import Recorder
from realrl.data.stats import stored_stats
from realrl.data.store import Store
from realrl.data.tools.pieces import Each, assemble
from realrl.data.tools.remains import Remains, WholeEpisode, what
from realrl.files import lock, publish, sync, write_json
from realrl.types import Array, RealrlError

SLACK = 1e-3  # seconds between where a picture of ours should be and where it is; others' are read where `footage` finds them
FOLDERS = schema.FOLDERS
SWAP = "swap.json"  # in a backup: which folders are still to be exchanged


@dataclass
class Repaired:
    """What a repair did, or would do. lines: one for each thing; lost: episode (its old number) -> why it could not be kept;
    kept: how many episodes there are now; backup: where what was before lies, None when nothing was changed."""

    lines: list[str] = field(default_factory=list)
    lost: dict[int, str] = field(default_factory=dict)
    kept: int = 0
    backup: Path | None = None


def repair(directory: str | Path, *, dry_run: bool = False, decode: bool = False, each: Each = iter) -> Repaired:
    """Make a dataset whole again and say what was done.

    dry_run: only say it; decode: also decode every picture, to find damage inside videos; each: wraps the episodes in a progress bar.
    Raises RealrlError when there is nothing to repair from, another process is writing, or the folder cannot be written.
    """
    root = Path(directory)
    if not root.is_dir() or not any((root / name).is_dir() for name in ("meta", "data")):
        raise RealrlError(f"{root} is not a dataset: it holds neither meta/ nor data/; give the folder that does")
    legible(root)
    _refuse_strange(root)
    if dry_run:
        done = _plan(root, decode)[1]
        done.lines += ["a recording that was interrupted is brought to its end"] if _recordings(root) else []
        return done
    try:
        with lock(root / ".lock", 10.0):
            done = _repair(root, decode, each)
        done.lines += _finish_recordings(root)
        return done
    except OSError as error:
        raise RealrlError(f"{error.filename or root} could not be changed ({error.strerror or error}); free space or mend the "
                          "permissions, then repair again") from error


def _refuse_strange(root: Path) -> None:
    """Raise RealrlError for a link, a pipe or a device in any folder that a repair may change: what it leads to is not ours to move."""
    swaps = [p for p in root.glob("repair-*") if any(os.path.lexists(p / name) for name in (SWAP, "new"))]
    for top in (*(root / name for name in (*FOLDERS, recovery.FOLDER)), *swaps):
        for path in itertools.chain([top], (Path(at, name) for at, folders, files in os.walk(top) for name in folders + files)):
            if path.is_symlink():
                raise RealrlError(f"{root}: {path.relative_to(root)} is a link; copy it there (cp -rL), then repair")
            if path.exists() and not path.is_dir():
                plain(path)


def _plan(root: Path, decode: bool) -> tuple[Remains, Repaired]:
    remains = Remains(root)
    _Films(remains, decode).match()
    remains.settle()
    lines = [*remains.lines, *(f"episode {e} is dropped: {why}" for e, why in sorted(remains.lost.items()))]
    if remains.rewrite:
        lines.append(f"{len(remains.takes)} episodes are written anew, numbered from 0")
    lines += [f"{remains.name(path)} is set aside" + ("" if path in remains.unreadable else ", no episode refers to it")
              for path in remains.strays()]
    lines += [f"meta/{name} is made anew" for name in _stale(remains)] if not remains.rewrite else []
    return remains, Repaired(lines, remains.lost, len(remains.takes))


def _repair(root: Path, decode: bool, each: Each) -> Repaired:
    before = _finish_swaps(root) + _finish_compaction(root)
    remains, done = _plan(root, decode)
    done.lines[:0] = before
    stale, strays = _stale(remains), remains.strays()
    if not (remains.rewrite or stale or strays):
        return done
    done.backup = backup = _backup_folder(root)
    if remains.rewrite:
        done.lines += _rewrite(root, remains, backup, each)
        return done
    _set_aside(strays, root, backup)
    for name, write in stale.items():
        if (root / "meta" / name).exists():
            (backup / "old/meta").mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / "meta" / name, backup / "old/meta" / name)
        write()
    return done


def _backup_folder(root: Path) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    names = (root / f"repair-{stamp}{suffix}" for suffix in ("", *(f"-{i}" for i in range(2, 1000))))
    folder = next(name for name in names if not name.exists())
    folder.mkdir()
    return folder


# ---- summaries


def _stale(remains: Remains) -> dict[str, Callable[[], object]]:
    """The summaries that do not say what the episodes say -> how to write each."""
    root, info = remains.dir, remains.info
    frames = int(remains.length.sum())
    true: dict[str, Any] = {"total_episodes": len(remains.takes), "total_frames": frames, "total_tasks": len(remains.tasks)}
    splits = info.get("splits")
    if not isinstance(splits, dict) or len(splits) <= 1:
        true["splits"] = {"train": f"0:{len(remains.takes)}"}
    stale: dict[str, Callable[[], object]] = {}
    if any(info.get(name) != value for name, value in true.items()) or not _read(root / "meta/info.json"):
        stale["info.json"] = partial(write_json, root / "meta/info.json", info | true)
    told = _read(root / "meta/stats.json")
    counts = [told.get(name, {}).get("count") if isinstance(told.get(name), dict) else None for name in tables.stored(info["features"])]
    known = any(name.startswith("stats/") for name in remains.rows.column_names)  # others may never have had any
    if frames and known and any(count != [frames] for count in counts) and not remains.rewrite:
        stale["stats.json"] = partial(_write_stats, root, info, frames)
    try:
        listed = tables.read_tasks(root, frames)
    except (RealrlError, OSError):
        listed = []
    if listed != remains.tasks:
        stale["tasks.parquet"] = partial(publish, root / "meta/tasks.parquet", partial(pq.write_table, tables.tasks_table(remains.tasks)))
    return stale


def _write_stats(root: Path, info: Mapping[str, Any], frames: int) -> None:
    (root / "meta/stats.json").unlink(missing_ok=True)  # a copy is in the backup
    stats = stored_stats(root, info["features"], frames)
    write_json(root / "meta/stats.json", {name: {k: v.tolist() for k, v in s.items()} for name, s in stats.items()}, nan=True)


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, {} when it cannot be read."""
    try:
        value = read_json(path)
    except (OSError, RealrlError):
        return {}
    return value if isinstance(value, dict) else {}


# ---- new tables in the place of old ones


def _rewrite(root: Path, remains: Remains, backup: Path, each: Each) -> list[str]:
    """Write what is kept as a dataset of its own, then swap it in; gives a line for what a user should know."""
    new = backup / "new"
    new.mkdir()
    notes = assemble([remains], remains.whole(), new, each) + _carry(root, remains, new)
    for path in (*new.rglob("*"), new):
        if path.is_dir():
            sync(path)
    _set_aside(remains.strays(), root, backup)
    swap = {name: {"had": (root / name).exists(), "gets": (new / name).exists()} for name in FOLDERS}
    write_json(backup / SWAP, swap)
    _swap(root, backup)
    return notes


def _carry(root: Path, remains: Remains, new: Path) -> list[str]:
    """Side files follow the episodes, as long as the rows they belong to can be read."""
    try:
        rows = [row for t in remains.takes if (row := remains.read_as(t)) is not None]
        if len(rows) < len(remains.takes):
            raise RealrlError("episodes have lost their rows")
        return side.carry([root], [(0, row, 0, t.length) for row, t in zip(rows, remains.takes, strict=True)], new)
    except RealrlError as error:
        left = [f"derived columns {name!r} stay behind in the backup: {error}" for name in side.names(root) if name != labels.NAME]
    try:
        labels.follow(root, [t.number for t in remains.takes], new)
    except RealrlError as error:
        left.append(f"labels stay behind in the backup: {error}")
    return left


def _swap(root: Path, backup: Path) -> None:
    """Move old folders out and new ones in, whichever of these moves are still to be done."""
    plan, old, new = _swap_plan(root, backup), backup / "old", backup / "new"
    old.mkdir(exist_ok=True)
    for name, told in plan.items():
        if told["had"] and not (old / name).exists():
            _move(root / name, old / name)
        if told["gets"] and (new / name).exists():
            _move(new / name, root / name)
    (backup / SWAP).unlink()
    new.rmdir()
    sync(backup)
    sync(root)


def _swap_plan(root: Path, backup: Path) -> dict[str, dict[str, bool]]:
    """What swap.json says. Raises RealrlError when that is not what a repair wrote and left: then folders could go anywhere."""
    plan, new = _read(backup / SWAP), backup / "new"

    def fits(name: str) -> bool:
        told = plan[name]
        places = {"had": (root, backup / "old"), "gets": (new, root)}
        return isinstance(told, dict) and told.keys() == places.keys() and all(
            told[key] is False or (told[key] is True and any((folder / name).is_dir() for folder in places[key])) for key in places)

    if plan.keys() == set(FOLDERS) and new.is_dir() and all(map(fits, FOLDERS)) and all(
            plan.get(p.name, {}).get("gets") for p in new.iterdir()):
        return plan
    raise RealrlError(f"{backup / SWAP} does not fit what lies beside it and is not followed; move {backup.name} out of {root}")


def _finish_swaps(root: Path) -> list[str]:
    """Finish what a killed repair had begun, and remove what it had only prepared."""
    lines = []
    for backup in sorted(p for p in root.glob("repair-*") if p.is_dir()):
        if (backup / SWAP).is_file():
            _swap(root, backup)
            lines.append(f"a repair that was interrupted is finished; what was before lies in {backup / 'old'}")
        elif (backup / "new").is_dir():
            shutil.rmtree(backup / "new")
    return lines


def _finish_compaction(root: Path) -> list[str]:
    journal = root / compaction.JOURNAL
    try:
        return ["an interrupted compaction is finished"] if compaction.finish(root) else []
    except RealrlError:
        _move(journal, _backup_folder(root) / "aside" / compaction.JOURNAL)
        return [f"{compaction.JOURNAL} is damaged and set aside"]


def _recordings(root: Path) -> bool:
    """Whether a recorder that died left something."""
    return any(not path.name.startswith(".") for path in (root / recovery.FOLDER).glob("*"))


def _finish_recordings(root: Path) -> list[str]:
    """Bring to its end what recorders that died left; whoever records into the dataset next would do the same."""
    if not _recordings(root):
        return []
    store = Store.open(root)
    known = len(store)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the recorder's notes, which are told below
        with Recorder(root, task=(store.tasks or [""])[0], fps=store.fps, min_frames=1) as recorder:
            recorder.flush()
            notes = list(recorder.notes)
    return [f"an interrupted recording is brought to its end: {len(Store.open(root)) - known} episodes are added", *notes]


def _set_aside(paths: Sequence[Path], root: Path, backup: Path) -> None:
    for path in paths:
        to = backup / "aside" / path.relative_to(root)
        _move(path, to.with_name(to.name.lstrip(".")))  # hidden temporary files are deleted by whoever writes next


def _move(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    path.replace(to)
    sync(to.parent)
    sync(path.parent)


# ---- videos


class _Films:
    """Whether the pictures of episodes are where the rows say, and where those of episodes lie whose rows are lost."""

    def __init__(self, remains: Remains, decode: bool) -> None:
        self.remains, self.decode = remains, decode
        self.fps, self._own = float(remains.info["fps"]), schema.ours(remains.info)
        self._slack = SLACK if self._own else footage.tolerance(self.fps)
        self._times: dict[Path, Array | str] = {}

    def match(self) -> None:
        """Move the takes whose pictures are gone to `lost`; leave out a camera of which nothing is there."""
        for camera in tables.cameras(self.remains.info["features"]):
            self._guess(camera)
            gone = {take.number: reason for i, take in enumerate(self.remains.takes) if (reason := self._fault(i, take, camera))}
            if gone and len(gone) == len(self.remains.takes):  # better a dataset without that camera than none
                self.remains.leave_out(camera)
                continue
            self.remains.takes = [take for take in self.remains.takes if take.number not in gone]
            self.remains.lost |= gone

    def _fault(self, number: int, take: WholeEpisode, camera: str) -> str:
        """Why an episode's pictures cannot be used, "" if they can. number: its place among the takes."""
        path, prefix = self.remains.film(take, camera), f"videos/{camera}"
        start, stop, last = (self.remains.cell(take, f"{prefix}/{name}_timestamp") for name in ("from", "to", "last"))
        if path is None or start is None or stop is None:
            return f"nothing says where its video of {camera} lies"
        shown = self._shown(path)
        if isinstance(shown, str):
            return shown
        place = Place(float(start), float(stop), None if last is None else float(last))
        wanted = footage.seconds(path, place, take.length, self.fps, self._stamps(number), self._slack)
        after = np.searchsorted(shown, wanted).clip(0, len(shown) - 1)
        gaps = np.minimum(np.abs(shown[after] - wanted), np.abs(shown[np.maximum(after - 1, 0)] - wanted))
        if (gaps[:-1] > self._slack).any():
            return f"{self.remains.name(path)} does not hold its pictures"
        if self.decode and (reason := self._undecodable(path, wanted[:-1])):
            return f"its video of {camera} does not decode ({reason})"
        if gaps[-1] > self._slack or (self.decode and self._undecodable(path, wanted[-1:])):
            self.remains.lines.append(f"episode {take.number}: the last picture of {camera} is gone, the one before it stands for it")
            take.cells |= {f"{prefix}/last_timestamp": None, f"{prefix}/to_timestamp": float(start) + take.length / self.fps}
            self.remains.rewrite = True
        return ""

    def _stamps(self, number: int) -> Array | None:
        """The timestamps [T] of an episode that others recorded, by which its pictures may lie."""
        table = None if self._own else self.remains.frames(number)
        if table is None or "timestamp" not in table.column_names:
            return None
        return tables.to_numpy(table["timestamp"], "timestamp", {"dtype": "float64", "shape": [1]})

    def _undecodable(self, path: Path, seconds: Array) -> str:
        """Why these pictures of a file cannot be decoded, "" if they can."""
        try:
            video.decode(path, seconds, self._slack)
        except RealrlError as error:
            return what(error)
        return ""

    def _shown(self, path: Path) -> Array | str:
        """When the pictures of a file are shown, seconds [N], or why it cannot be read."""
        if path not in self._times:
            name = self.remains.name(path)
            try:
                found = video.times(path) if path.exists() else None
                self._times[path] = f"{name} is missing" if found is None else found if len(found) else f"{name} holds no picture"
            except RealrlError as error:
                self._times[path] = f"{name} cannot be read ({what(error)})"
        return self._times[path]

    def _guess(self, camera: str) -> None:
        """Places for episodes without a row: every append made one data file and one video file a camera, so the data files and
        the video files that no row knows belong together in the order of their names, if their lengths agree."""
        known = self.remains.films(camera)
        spare = [p for p in sorted(self.remains.dir.glob(f"videos/{camera}/chunk-*/file-*.mp4")) if p not in known]
        by_file: dict[Path, list[WholeEpisode]] = {}
        for take in self.remains.takes:
            if take.row is None:
                by_file.setdefault(take.path, []).append(take)
        for path, members in by_file.items():
            total = sum(t.length for t in members)
            film = next((p for p in spare if not isinstance(shown := self._shown(p), str)
                         and total <= len(shown) <= total + 2 * len(members)), None)
            if film is None:
                continue
            spare = spare[spare.index(film) + 1:]
            key = (int(film.parent.name.rpartition("-")[2]), int(film.stem.rpartition("-")[2]))
            start = 0
            for take in members:
                last = take.length / self.fps if len(members) == 1 and len(self._shown(film)) > total else None
                cells = (*key, start / self.fps, (start + take.length) / self.fps, last)
                take.cells |= {f"videos/{camera}/{name}": cell for name, cell in zip(tables.VIDEO_FIELDS, cells, strict=True)}
                start += take.length
            self.remains.lines.append(f"{self.remains.name(path)} and {self.remains.name(film)} belong together, by their lengths")
