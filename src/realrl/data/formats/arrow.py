"""LeRobot's early datasets (before codebase version 2): one Arrow table `train/data-*.arrow`, videos beside it in `videos/`.

A camera's cell is {path, timestamp}: which video, and where in it. There is no observation after the last action, and often
no task, reward or rate; the rate follows from the timestamps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from realrl.data import video
from realrl.data.formats import actions, common, senses
from realrl.data.formats.common import Imported
from realrl.types import Array, Episode, RealrlError, Source

NAME = "lerobot-arrow"
BOOKKEEPING = {"episode_index", "frame_index", "timestamp", "index", "action", "next.reward", "next.done", "next.success",
               "episode_data_index_from", "episode_data_index_to", "task_index"}


def detect(path: Path) -> bool:
    """Whether it is such a table, or a folder that holds one in `train/`."""
    try:
        return bool(_tables(path))
    except OSError:
        return False


def read(path: Path, *, task: str | None = None, fps: float | None = None, last: str = "repeat", source: str = "human",
         action: str | Sequence[str] | None = None, action_range: tuple[float, float] | None = None, images: bool = True) -> Imported:
    """The episodes of an early LeRobot folder (or of its arrow file).

    task: its text, by default the folder's name; fps: by default what the timestamps say; last: "repeat" lets the last
    observation stand for the one after the last action, "drop" leaves that action out; source: who acted, "human", "policy" or
    "script"; action: the columns that are the action, side by side, by default `action`, else all of `action.*`; action_range:
    (low, high) mapped onto [-1, 1]; images: false skips the videos. Without an action column (UMI) the state that follows is taken for
    the action.
    Raises RealrlError for a damaged table, columns that are missing, and videos that are missing or lie outside the folder.
    """
    path, who, ending, span = Path(path), common.source_of(source), common.check_last(last), common.check_range(action_range)
    files = _tables(path)
    if not files:
        raise RealrlError(f"{path} holds no train/*.arrow; give the folder that holds train/ and videos/")
    root = files[0].parent.parent
    table = pa.concat_tables([_read_table(f) for f in files]) if len(files) > 1 else _read_table(files[0])
    columns = {name: _numbers(table[name], name, root) for name in table.column_names if not pa.types.is_struct(table[name].type)}
    for name in ("episode_index", "timestamp"):
        if columns.get(name, np.zeros((0, 0))).ndim != 1 or not len(columns[name]):
            raise RealrlError(f"{root}: the table has no column {name!r} with one number a frame; it is no LeRobot table")
    called, joined = _joined(columns, action, root)
    cameras = [name for name in table.column_names if pa.types.is_struct(table[name].type)]
    spans, notes = _spans(columns["episode_index"], root), joined
    rate, said = _rate(columns["timestamp"], spans, fps, root)
    if "action" not in columns:
        if "observation.state" not in columns:
            raise RealrlError(f"{root}: the table has neither action nor observation.state; nothing can be learned from it")
        notes.append("no action column: the state that follows is taken for the action, and the last frame ends the episode")
    if "next.success" not in columns:
        notes.append("the table does not say which episodes succeeded, so that stays unknown")
    beside = sorted(name for name in columns if name not in BOOKKEEPING and not name.startswith("observation."))
    if beside:
        notes.append(f"kept in memory only, in `extra`: {', '.join(beside)}")
    actions = columns.get("action", columns.get("observation.state", np.zeros(1)))
    notes += [*said, *common.range_note(float(actions.min(initial=0)), float(actions.max(initial=0)), span)]
    text = root.name if task is None else task
    seen = senses.names({n.removeprefix("observation."): (x.shape, x.dtype) for n, x in columns.items() if n.startswith("observation.")},
                        root)

    levels = senses.Levels()

    def episodes() -> Iterator[Episode]:
        levels.episodes = episodes
        for number, (a, b) in enumerate(spans):
            where = f"{root}: episode {number}"
            obs: dict[str, Array] = {}
            for name, ours in seen.items():
                x = columns[f"observation.{name}"][a:b]
                if images or not ours.startswith("images."):
                    x = x if ours.startswith(senses.SENSES) else x.reshape(b - a, -1)
                    obs[ours] = senses.converted(x, ours, f"{where}: {name}", levels=levels)
            for camera in cameras if images else ():
                obs[_camera_key(camera, root)] = _pictures(table[camera].slice(a, b - a), root, 1 / rate)
            yield _episode(obs, {n: x[a:b] for n, x in columns.items()}, beside, rate, text, who, ending, span, where)
    return Imported(text, rate, "unknown", episodes(), notes, {"names": called}, len(spans))


def _joined(columns: dict[str, Array], action: str | Sequence[str] | None, root: Path) -> tuple[dict[str, list[str]], list[str]]:
    """Put the action's columns, and the state's, side by side in their place; gives (column -> what its numbers are called, notes)."""
    wide = {name: int(np.prod(x.shape[1:])) for name, x in columns.items()}
    plain = {name: n for name, n in wide.items() if not name.startswith("observation.")}
    found = {"action": actions.parts(action, plain, root) if action is not None or any(
        name == "action" or actions.PART.fullmatch(name) for name in plain) else []}
    if "observation.state" not in columns:
        found["observation.state"] = [name for name in wide if actions.STATE.fullmatch(name)]
    called, notes = dict[str, list[str]](), list[str]()
    for ours, parts in found.items():
        if parts and parts != [ours]:
            called[ours] = actions.names(parts, wide) or [f"{ours} {i}" for i in range(wide[parts[0]])]
            notes.append(f"{ours} is {' + '.join(parts)}, side by side in this order")
            columns[ours] = actions.column([columns.pop(name) for name in parts], parts, str(root))
    return called, notes


def _tables(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == ".arrow" else []
    return sorted(p for p in path.glob("train/*.arrow") if p.is_file())


def _read_table(path: Path) -> pa.Table:
    """A whole arrow stream or file, its offsets verified before anything follows them."""
    with common.damage(path):
        with pa.OSFile(str(path)) as file:
            head = file.read(6)
            file.seek(0)
            table = (pa.ipc.open_file(file) if head == b"ARROW1" else pa.ipc.open_stream(file)).read_all()
        table.validate(full=True)
        if len(set(table.column_names)) != len(table.column_names):
            raise ValueError("it has two columns of one name")
        return table


def _numbers(column: pa.ChunkedArray, name: str, root: Path) -> Array:
    """A column of numbers as [T], [T, D] or, of lists of lists, [T, ...]."""
    kind, rows = column.type, len(column)
    with common.damage(f"{root}: column {ascii(name)[:60]}"):
        values = column.combine_chunks()
        size: list[int] = []
        while pa.types.is_fixed_size_list(values.type) or pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
            if values.null_count:
                raise ValueError("it has empty cells")
            lists, values = values, values.flatten()
            size.append(len(values) // max(len(lists), 1))
            if not pa.types.is_fixed_size_list(lists.type) and (lists.value_lengths().to_numpy() != size[-1]).any():
                raise ValueError("its vectors differ in length")
        if values.null_count or not any(f(values.type) for f in (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean)):
            raise ValueError(f"it is {kind}, not numbers in every cell")
        out: Array = values.to_numpy(zero_copy_only=False)
        return out.reshape(rows, *size)


def _spans(index: Array, root: Path) -> list[tuple[int, int]]:
    """(first row, last row + 1) of each episode. Raises RealrlError when an episode is not in one piece."""
    cuts = [0, *(np.flatnonzero(np.diff(index)) + 1).tolist(), len(index)]
    if len({int(index[a]) for a in cuts[:-1]}) != len(cuts) - 1:
        raise RealrlError(f"{root}: an episode's frames are not next to one another in the table; sort it by episode_index and frame_index")
    return list(pairwise(cuts))


def _rate(timestamp: Array, spans: list[tuple[int, int]], fps: float | None, root: Path) -> tuple[float, list[str]]:
    """Frames a second, and what to say about it."""
    given = common.rate_of(fps, root)
    steps = np.concatenate([np.zeros(0), *(np.diff(timestamp[a:b].astype(np.float64)) for a, b in spans)])
    middle = float(np.median(steps)) if len(steps) and np.isfinite(steps).all() else 0.0
    if given is None and (middle < 1e-3 or abs(round(1 / middle) * middle - 1) > 0.05):
        raise RealrlError(f"{root}: the timestamps do not say how many frames a second ({middle:g} s apart); give fps=")
    rate = given or round(1 / middle)
    late = int((np.abs(steps - 1 / rate) > 0.5 / rate).sum())
    return rate, [f"{late} frames are more than half a period early or late for {rate} frames a second"] if late else []


def _camera_key(name: str, root: Path) -> str:
    short = name.removeprefix("observation.").removeprefix("images.")
    return "images." + common.key_name(short, root)


def _pictures(column: pa.ChunkedArray, root: Path, period: float) -> Array:
    """The frames that the cells point at, uint8 [T, H, W, 3]."""
    cells = column.combine_chunks()
    names = {f.name for f in cells.type}
    if not {"path", "timestamp"} <= names:
        raise RealrlError(f"{root}: a column of structures that are no video frames ({', '.join(map(ascii, sorted(names)))[:80]})")
    paths, at = cells.field("path").to_pylist(), cells.field("timestamp").to_pylist()
    if any(not isinstance(p, str) for p in paths) or any(not isinstance(t, float) for t in at):
        raise RealrlError(f"{root}: a camera's cells lack a path or a timestamp; images=False reads the numbers alone")
    shape = {(info["video.height"], info["video.width"]) for info in (video.probe(_inside(root, p)) for p in dict.fromkeys(paths))}
    if (size := 3 * len(paths) * max(h * w for h, w in shape)) > common.MAX_BYTES:
        raise RealrlError(f"{root}: an episode's pictures would take {size} bytes; read it with images=False")
    pieces, start = [], 0
    for i in range(1, len(paths) + 1):
        if i == len(paths) or paths[i] != paths[start]:
            # single precision timestamps, and videos whose first frame is not at zero: nearest within half a period
            pieces.append(video.decode(_inside(root, paths[start]), at[start:i], tolerance_s=0.5 * period))
            start = i
    if len({p.shape[1:] for p in pieces}) != 1 or pieces[0].ndim != 4:
        raise RealrlError(f"{root}: the videos of one camera differ in size, or are not in colour; nothing can be stacked")
    return np.concatenate(pieces)


def _inside(root: Path, name: str) -> Path:
    """A video of the folder. Raises RealrlError for a name that leads out of it, by "..", as absolute path or by a link."""
    try:
        file = (root / name).resolve()
        good = file.is_relative_to(root.resolve()) and file.suffix == ".mp4" and file.is_file()
    except (OSError, ValueError, RuntimeError):
        good = False
    if not good:
        raise RealrlError(f"{root}: the table names the video {ascii(name)[:120]}, which is not an mp4 file inside this folder")
    return file


def _episode(obs: dict[str, Array], rows: dict[str, Array], beside: list[str], fps: float, task: str, source: Source, last: common.Last,
             span: tuple[float, float] | None, where: str) -> Episode:
    n = len(rows["timestamp"])
    action = rows["action"] if "action" in rows else rows["observation.state"][1:]
    if not len(action):
        raise RealrlError(f"{where} is one frame without an action; nothing can be learned from it")
    success, reward = (rows[k].reshape(n, -1)[:, 0] if k in rows and rows[k].size else None for k in ("next.success", "next.reward"))
    won = None if success is None else success.astype(bool)[:len(action)]
    ended = won is not None and bool(won[-1])
    return common.episode(obs, common.scale_actions(action, span), fps=fps, task=task, source=source, last=last,
                          policy="human" if source == Source.HUMAN else "", success=won,
                          reward=None if reward is None else reward[:len(action)], terminated=ended, truncated=not ended,
                          extra={n: rows[n] for n in beside}, where=where)
