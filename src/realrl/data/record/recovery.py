"""From the logs of an episode in progress to an episode of the dataset: finished ones whole, others up to their last whole frame.

A folder `recording/<start>-<number>` holds `frames.log` (what the episode is, a record a frame, how it ended) and a log of packets
for every camera. A frame is whole when the columns and all cameras have it. Committing happens exactly once: before an episode is
appended, the log notes how many the dataset has, and whoever finds that note looks whether it was appended after all.

A folder may come from anywhere: its logs are read with suspicion, no link in it is followed, and where a log is damaged before its end
(which a crash does not do) what could not be taken into the dataset is kept as `recording/.damaged-<start>-<number>`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from realrl.data.errors import line
from realrl.data.record.journal import COMMIT, DISCARD, END, FRAME, HEADER, PACKET, START, Layout, Log, damaged, read_log, to_json
from realrl.data.store import Store
from realrl.data.video import ENCODERS, MAX_PIXELS, Header, Packet
from realrl.files import publish, taken
from realrl.types import Array, Episode, RealrlError

FOLDER = "recording"  # in a dataset; no reader of datasets looks into it
DONE = "done-"  # begins the name of a folder whose episode is in the dataset, while it is being deleted
DAMAGED = ".damaged-"  # begins the name of a folder of which not everything could be taken; nobody looks into it again
FRAMES = "frames.log"
BEFORE = "frames.log.damaged"  # a copy of the log as it was found, when it was damaged before its end
_PACKET = 17  # bytes before a packet's data: pts, dts, key
Tell = Callable[[str, dict[str, Any]], None]  # kind of message and its entries


@dataclass(frozen=True)
class Found:
    """What the logs of one episode hold. rows: one a frame; end: (terminated, truncated, judged, last observations); films: by key;
    damaged: a log holds more behind a damaged record."""

    folder: Path
    about: dict[str, Any]
    layout: Layout
    rows: Array
    end: tuple[bool, bool, bool, Array] | None
    films: dict[str, tuple[Header, list[Packet]]]
    discarded: bool
    before: int | None
    damaged: bool = False

    @property
    def finished(self) -> bool:
        """Whether all T steps and all T+1 pictures of every camera are there, and how the episode ended."""
        pictures = min((len(packets) for _, packets in self.films.values()), default=len(self.rows) + 1)
        return self.end is not None and len(self.rows) > 0 and pictures > len(self.rows)

    def episode(self) -> tuple[Episode, dict[str, tuple[Header, list[Packet]]]]:
        """The episode without its cameras, and its cameras.

        An unfinished one ends, truncated, where all of its columns and cameras were last seen; what was done there is left out,
        because nobody saw what came of it, and nothing says whether it would have succeeded.
        """
        seen = min([len(self.rows), *(len(packets) for _, packets in self.films.values())])
        n = len(self.rows) if self.finished else max(0, seen - 1)
        last = self.end[3][None] if self.finished and self.end else self.rows[n:n + 1]
        rows = self.rows[:n]
        obs = {name.removeprefix("obs/"): np.concatenate([rows[name], last[name]]) for name in self.layout.obs.names or ()}
        policy = self.about["policy"] if self.finished else f"{self.about['policy']} (recovered)".strip()
        terminated, truncated, judged = self.end[:3] if self.finished and self.end else (False, True, bool(rows["success"].any()))
        episode = Episode(
            obs=obs, action=rows["action"].copy(), proposed=rows["proposed"].copy(), source=rows["source"].copy(),
            reward=rows["reward"].copy(), success=rows["success"].copy(), time=rows["time"].copy(),
            starts_plan=rows["starts_plan"].copy(), terminated=terminated, truncated=truncated, task=self.about["task"],
            policy=policy, seed=self.about["seed"], judged=judged)
        return episode, {key: (header, packets[:n + 1]) for key, (header, packets) in self.films.items()}


def camera_log(folder: Path, key: str) -> Path:
    """Where the packets of a camera (its observation key) are logged."""
    return folder / f"{key}.log"


def header_record(header: Header) -> bytes:
    """A header as it is logged."""
    return to_json({"codec": header.codec, "pix_fmt": header.pix_fmt, "width": header.width, "height": header.height,
                    "fps": [header.fps.numerator, header.fps.denominator], "extradata": header.extradata.hex(),
                    "stub": header.stub.hex(), "encoder": header.encoder})


def read_header(content: bytes) -> Header:
    """A header from its record. Raises ValueError, KeyError, TypeError or ArithmeticError when it is none of ours."""
    h = json.loads(content)
    header = Header(h["codec"], h["pix_fmt"], int(h["width"]), int(h["height"]), Fraction(*h["fps"]), bytes.fromhex(h["extradata"]),
                    bytes.fromhex(h["stub"]), h["encoder"])
    if header.codec not in ENCODERS or not all(isinstance(text, str) for text in (header.pix_fmt, header.encoder)):
        raise ValueError(f"no codec of ours: {line(ValueError(header.codec))}")
    if not 0 < header.fps < 1e6 or header.fps != header.fps.limit_denominator(1001):
        raise ValueError("a rate that no encoder of ours has")
    return header


def packet_record(packet: Packet) -> bytes:
    """A packet as it is logged."""
    return packet.pts.to_bytes(8, "little", signed=True) + packet.dts.to_bytes(8, "little", signed=True) + bytes([packet.key]) + packet.data


def find(folder: Path) -> Found | None:
    """What the logs in a folder hold; None when not even the beginning of an episode is there.

    Raises RealrlError when the records are whole but not a recording's, when the beginning is damaged but frames follow it, and for
    a log that is a link or no file.
    """
    frames = _plain(folder / FRAMES)
    try:
        records = list(read_log(frames))
        if not records or records[0][0] != START:
            if records or damaged(frames):
                raise ValueError(f"{FRAMES} does not begin with what the episode is, but frames follow")
            return None
        about = _about(records[0][1])
        layout = _layout(about["columns"])
        rows = _rows([content for kind, content in records if kind == FRAME], layout.row)
        end = next((_end(content, layout) for kind, content in records if kind == END), None)
        logs = {camera["key"]: _plain(camera_log(folder, camera["key"])) for camera in about["cameras"]}
        films = {camera["key"]: film for camera in about["cameras"] if (film := _film(logs[camera["key"]], camera))}
        kinds = [kind for kind, _ in records]
        before = next((int(json.loads(c)["episodes"]) for kind, c in records if kind == COMMIT), None)
        if len(films) < len(about["cameras"]):
            rows = rows[:0]  # a camera of which nothing is there
        spoilt = _plain(folder / BEFORE).exists() or any(map(damaged, (frames, *logs.values())))
        return Found(folder, about, layout, rows, end, films, DISCARD in kinds, before, spoilt)
    except (ValueError, LookupError, TypeError, ArithmeticError, AttributeError, RecursionError, MemoryError, OSError) as error:
        # not "from error": what is caused by an OSError is taken for a full disk and tried again
        raise RealrlError(f"{folder} is damaged ({type(error).__name__}: {line(error)}); move it elsewhere to go on without it") from None


def end_record(terminated: bool, truncated: bool, judged: bool, last: bytes) -> bytes:
    """How an episode ended, as it is logged. last: its last observations, packed."""
    return bytes([terminated, truncated | (not judged) << 1]) + last


def _end(content: bytes, layout: Layout) -> tuple[bool, bool, bool, Array]:
    """`end_record`, read. Raises LookupError or ValueError where it is none."""
    last = _rows([content[2:]], layout.obs)[0] if layout.obs.itemsize else np.zeros((), layout.obs)
    return bool(content[0]), bool(content[1] & 1), not content[1] & 2, last


def _plain(path: Path) -> Path:
    """The path again. Raises RealrlError when it is there but a link, a pipe or a folder, and so nothing that a recorder made."""
    try:
        plain = stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return path
    except (OSError, ValueError) as error:
        raise RealrlError(f"{path} is not readable ({line(error)}); move its folder elsewhere to go on without it") from None
    if not plain:
        raise RealrlError(f"{path} is a link, a pipe or a folder, not a file that a recorder made; move it elsewhere")
    return path


def _about(content: bytes) -> dict[str, Any]:
    """What an episode is, from its first record. Raises ValueError, KeyError or TypeError when that is not as `about_record` has it."""
    about: dict[str, Any] = json.loads(content)
    for text in (about["task"], about["policy"]):
        if not isinstance(text, str):
            raise TypeError("task or policy is no text")
        text.encode()  # half a surrogate pair fits no table
    if about["seed"] is not None and not (type(about["seed"]) is int and abs(about["seed"]) < 2**63):
        raise ValueError("the seed is no whole number of 64 bits")
    keys = [camera["key"] for camera in about["cameras"]]
    if not all(key.startswith(("images.", "depth.")) and all(c.isalnum() or c in "._-" for c in key) for key in keys):
        raise ValueError("a camera has a name that could be another file's")
    if len(set(keys)) < len(keys):
        raise ValueError("two cameras have one name")
    for camera in about["cameras"]:
        height, width = camera["shape"]
        if not (type(height) is type(width) is int and min(height, width) > 0 and height * width <= MAX_PIXELS):
            raise ValueError(f"a camera cannot be of size {line(ValueError([height, width]))}")
    return about


def _layout(columns: Any) -> Layout:
    """The columns of a frame. Raises ValueError or TypeError when they are not those of `Layout.of`."""
    if any(not re.fullmatch(r"[<|]?[biuf?][1248]?", kind) for _, kind, _ in columns):
        raise ValueError("a column holds other things than numbers")
    if any(type(n) is not int or n < 1 for _, _, shape in columns for n in shape):
        raise ValueError("a column has a shape that cannot be")
    layout = Layout([(name.encode().decode(), kind, shape) for name, kind, shape in columns])
    rest = [column for column in layout.columns if not column[0].startswith("obs/")]
    action = [shape for name, _, shape in rest if name == "action"][0]  # noqa: RUF015 - a missing one is an IndexError, not StopIteration
    wanted = [("action", np.dtype("<f4").str, action), ("proposed", np.dtype("<f4").str, action),
              *((name, np.dtype(kind).str, ()) for name, kind in Layout.scalars.items())]
    if rest != wanted or not action or any(not shape for name, _, shape in layout.columns if name.startswith("obs/")):
        raise ValueError("its columns are not those of a recording")
    return layout


def _rows(contents: list[bytes], dtype: np.dtype[Any]) -> Array:
    """Packed rows. Raises ValueError when one has another size."""
    if any(len(content) != dtype.itemsize for content in contents):
        raise ValueError(f"a frame has not the {dtype.itemsize} bytes of its columns")
    return np.frombuffer(b"".join(contents), dtype)


def _film(path: Path, camera: Mapping[str, Any]) -> tuple[Header, list[Packet]] | None:
    """A camera's header and its packets up to the first that is missing. Raises ValueError when the header is another camera's."""
    header: Header | None = None
    packets: list[Packet] = []
    for kind, c in read_log(path):
        if kind == HEADER:
            header = read_header(c)
            if [header.height, header.width, header.depth] != [*camera["shape"], camera["depth"]]:
                raise ValueError(f"{path.name} holds another camera than {FRAMES} says")
        elif kind == PACKET:
            packet = Packet(c[_PACKET:], int.from_bytes(c[:8], "little", signed=True), int.from_bytes(c[8:16], "little", signed=True),
                            bool(c[16]))
            if packet.pts != len(packets):
                break
            packets.append(packet)
    return None if header is None else (header, packets)


# ---- into the dataset


def commit(store: Store, found: Found) -> int:
    """Append what was found, unless that already happened; gives the episode's index. The folder stays. Raises as Store."""
    episode, films = found.episode()
    if found.before is not None and (there := _already(store, found.before, episode)) is not None:
        return there
    if found.before is None:
        try:
            if found.damaged and not (found.folder / BEFORE).exists():  # opening the log cuts off what follows the damage
                with (found.folder / FRAMES).open("rb") as log:
                    publish(found.folder / BEFORE, partial(shutil.copyfileobj, log))
            marked = Log(found.folder / FRAMES)
            try:
                marked.append(COMMIT, to_json({"episodes": len(store)}))
                os.fsync(marked.fd)
            finally:
                marked.close()
        except OSError as error:
            raise RealrlError(f"{found.folder / FRAMES} could not be written ({error.strerror}); free space") from error
    return store.append_encoded(episode, films)


def _already(store: Store, before: int, episode: Episode) -> int | None:
    """The index of this episode among those appended since the dataset had `before`."""
    for index in range(max(0, before), len(store)):
        try:
            (other,) = store.read([index], images=False)
        except RealrlError as error:  # without its cause: a file that is missing is no full disk
            raise RealrlError(str(error)) from None
        if np.array_equal(other.time, episode.time) and np.array_equal(other.action, episode.action):
            return index
    return None


def remove(folder: Path) -> None:
    """Delete an episode's folder; a kill in between leaves nothing that could be taken for an episode."""
    done = folder if folder.name.startswith(DONE) else _renamed(folder, DONE)
    shutil.rmtree(done, ignore_errors=True)


def _renamed(folder: Path, prefix: str) -> Path:
    """The folder under a name that is free."""
    new = folder.with_name(prefix + folder.name)
    while os.path.lexists(new):
        new = new.with_name(f"{new.name}-again")
    return folder.rename(new)


def settle(store: Store, tell: Tell, *, min_frames: int, only: Callable[[Path, Found | None], bool] = lambda folder, found: True) -> None:
    """Bring every folder of `recording/` to its end, in order: finished episodes and recovered ones into the dataset, the others away.

    An unfinished episode of fewer than `min_frames` whole steps is dropped. only: which folders to look at. What happened to each
    is told: "committed", "recovered" or "dropped" with a line; "refused" when the dataset does not take it (the folder stays).
    Raises RealrlError caused by an OSError when the disk is full, and one without a cause when `recording` is a link.
    """
    root = store.dir / FOLDER
    _no_link(root)
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and p.name[0] != ".") if root.is_dir() else []:
        try:
            _ours(folder)
            if folder.name.startswith(DONE):
                remove(folder)
                continue
            found = find(folder)
            if only(folder, found):
                _settle(store, tell, folder, found, min_frames)
        except RealrlError as error:
            if isinstance(error.__cause__, OSError):
                raise
            tell("refused", {"text": " ".join(f"{folder} stays where it is: {error}".split()), "folder": folder.name})


def _no_link(folder: Path) -> None:
    """Raise RealrlError for a link: what it leads to is not ours to empty."""
    if folder.is_symlink():
        raise RealrlError(f"{folder} is a link, and recordings are kept inside their dataset; remove the link")


def _ours(folder: Path) -> None:
    """Raise RealrlError unless a recorder made this folder: nothing else may be deleted."""
    _no_link(folder)
    if not re.fullmatch(rf"({DONE})?[0-9]{{20,}}-[0-9]{{6,}}(-again)*", folder.name):
        raise RealrlError(f"{folder.name!r} is no name that a recorder gives; move it elsewhere")


def _settle(store: Store, tell: Tell, folder: Path, found: Found | None, min_frames: int) -> None:
    if found is None or found.discarded:
        remove(folder)
        if found is None:
            tell("dropped", {"text": f"{folder}: an episode that had not begun is dropped", "folder": folder.name})
    elif found.finished:
        index = commit(store, found)
        text = _let_go(found)
        tell("committed", {"index": index, "folder": folder.name, **({"text": f"{folder} is episode {index}{text}"} if text else {})})
    else:
        steps = len(found.episode()[0])
        if steps < max(1, min_frames):
            text = f"{folder}: an unfinished episode of {steps} whole steps is dropped (fewer than {max(1, min_frames)}){_let_go(found)}"
            tell("dropped", {"text": text, "folder": folder.name})
            return
        index = commit(store, found)
        text = f"{folder}: an unfinished episode is recovered to its last whole frame, {steps} steps, as episode {index}, truncated"
        tell("recovered", {"text": text + _let_go(found), "index": index, "folder": folder.name})


def _let_go(found: Found) -> str:
    """Delete a folder that is settled; one that holds more behind a damaged record is kept, and the text says where."""
    if not found.damaged:
        remove(found.folder)
        return ""
    return f"; its logs are damaged before their end, and are kept in {_renamed(found.folder, DAMAGED)}"


# ---- who may


@contextlib.contextmanager
def alone(dataset: Path, wait: float) -> Iterator[int]:
    """The right to record into a dataset, as the descriptor of a lock that child processes may hold on to.

    Raises RealrlError when another recorder, or the encoder process of one that died, keeps it longer than `wait` seconds.
    """
    root = dataset / FOLDER
    _no_link(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        fd = os.open(_plain(root / ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise RealrlError(f"{root} could not be made ({error.strerror}); the dataset is not writable here") from error
    try:
        if not taken(fd, wait):
            raise RealrlError(f"{dataset} is being recorded into by another process; wait for it or end it")
        if len(os.pread(fd, 64, 0)) != 32:
            os.ftruncate(fd, 0)
            os.pwrite(fd, os.urandom(16).hex().encode(), 0)
        yield fd
    finally:
        os.close(fd)


def owner(recording: Path) -> str:
    """A name for this folder, by which its rings are found: not that of a copy of it, nor of another that gets its place on disk."""
    lock = recording / ".lock"
    told = lock.stat()
    return hashlib.sha256(lock.read_bytes() + f" {told.st_dev} {told.st_ino}".encode()).hexdigest()[:24]


def about_record(*, task: str, policy: str, seed: int | None, fps: float, codec: str, options: Mapping[str, str],
                 cameras: list[dict[str, Any]], layout: Layout) -> bytes:
    """The first record of an episode."""
    return to_json({"task": task, "policy": policy, "seed": seed, "fps": fps, "codec": codec, "options": dict(options),
                    "cameras": cameras, "columns": [[name, kind, list(shape)] for name, kind, shape in layout.columns]})
