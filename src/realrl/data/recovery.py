"""From the logs of an episode in progress to an episode of the dataset: finished ones whole, others up to their last whole frame.

A folder `recording/<start>-<number>` holds `frames.log` (what the episode is, a record a frame, how it ended) and a log of packets
for every camera. A frame is whole when the columns and all cameras have it. Committing happens exactly once: before an episode is
appended, the log notes how many the dataset has, and whoever finds that note looks whether it was appended after all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from realrl.data.files import taken
from realrl.data.journal import COMMIT, DISCARD, END, FRAME, HEADER, PACKET, START, Layout, Log, read_log, to_json
from realrl.data.store import Store
from realrl.data.video import Header, Packet
from realrl.types import Array, Episode, RealrlError

FOLDER = "recording"  # in a dataset; no reader of datasets looks into it
DONE = "done-"  # begins the name of a folder whose episode is in the dataset, while it is being deleted
FRAMES = "frames.log"
_PACKET = 17  # bytes before a packet's data: pts, dts, key
Tell = Callable[[str, dict[str, Any]], None]  # kind of message and its entries


@dataclass(frozen=True)
class Found:
    """What the logs of one episode hold. rows: one a frame; end: (terminated, truncated, last observations); films: by key."""

    folder: Path
    about: dict[str, Any]
    layout: Layout
    rows: Array
    end: tuple[bool, bool, Array] | None
    films: dict[str, tuple[Header, list[Packet]]]
    discarded: bool
    before: int | None

    @property
    def finished(self) -> bool:
        """Whether all T steps and all T+1 pictures of every camera are there, and how the episode ended."""
        pictures = min((len(packets) for _, packets in self.films.values()), default=len(self.rows) + 1)
        return self.end is not None and len(self.rows) > 0 and pictures > len(self.rows)

    def episode(self) -> tuple[Episode, dict[str, tuple[Header, list[Packet]]]]:
        """The episode without its cameras, and its cameras.

        An unfinished one ends, truncated, where all of its columns and cameras were last seen; what was done there is left out,
        because nobody saw what came of it.
        """
        seen = min([len(self.rows), *(len(packets) for _, packets in self.films.values())])
        n = len(self.rows) if self.finished else max(0, seen - 1)
        last = self.end[2][None] if self.finished and self.end else self.rows[n:n + 1]
        rows = self.rows[:n]
        obs = {name.removeprefix("obs/"): np.concatenate([rows[name], last[name]]) for name in self.layout.obs.names or ()}
        policy = self.about["policy"] if self.finished else f"{self.about['policy']} (recovered)".strip()
        terminated, truncated = self.end[:2] if self.finished and self.end else (False, True)
        episode = Episode(
            obs=obs, action=rows["action"].copy(), proposed=rows["proposed"].copy(), source=rows["source"].copy(),
            reward=rows["reward"].copy(), success=rows["success"].copy(), time=rows["time"].copy(),
            starts_plan=rows["starts_plan"].copy(), terminated=terminated, truncated=truncated, task=self.about["task"],
            policy=policy, seed=self.about["seed"])
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
    """A header from its record."""
    h = json.loads(content)
    return Header(h["codec"], h["pix_fmt"], int(h["width"]), int(h["height"]), Fraction(*h["fps"]), bytes.fromhex(h["extradata"]),
                  bytes.fromhex(h["stub"]), h["encoder"])


def packet_record(packet: Packet) -> bytes:
    """A packet as it is logged."""
    return packet.pts.to_bytes(8, "little", signed=True) + packet.dts.to_bytes(8, "little", signed=True) + bytes([packet.key]) + packet.data


def find(folder: Path) -> Found | None:
    """What the logs in a folder hold; None when not even the beginning of an episode is there.

    Raises RealrlError when the records are whole but not a recording's.
    """
    records = list(read_log(folder / FRAMES))
    if not records or records[0][0] != START:
        return None
    try:
        about: dict[str, Any] = json.loads(records[0][1])
        layout = Layout(about["columns"])
        rows = np.frombuffer(b"".join(content for kind, content in records if kind == FRAME), layout.row)
        end = next(((bool(c[0]), bool(c[1]), np.frombuffer(c[2:], layout.obs)[0] if layout.obs.itemsize else np.zeros((), layout.obs))
                    for kind, c in records if kind == END), None)
        films = {camera["key"]: film for camera in about["cameras"] if (film := _film(camera_log(folder, camera["key"])))}
        kinds = [kind for kind, _ in records]
        before = next((int(json.loads(c)["episodes"]) for kind, c in records if kind == COMMIT), None)
        if len(films) < len(about["cameras"]):
            rows = rows[:0]  # a camera of which nothing is there
        return Found(folder, about, layout, rows, end, films, DISCARD in kinds, before)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise RealrlError(f"{folder} is damaged ({type(error).__name__}: {error}); move it elsewhere to go on without it") from error


def _film(path: Path) -> tuple[Header, list[Packet]] | None:
    """A camera's header and its packets up to the first that is missing."""
    header: Header | None = None
    packets: list[Packet] = []
    for kind, c in read_log(path):
        if kind == HEADER:
            header = read_header(c)
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
        log = Log(found.folder / FRAMES)
        try:
            log.append(COMMIT, to_json({"episodes": len(store)}))
            os.fsync(log.fd)
        except OSError as error:
            raise RealrlError(f"{log.path} could not be written ({error.strerror}); free space") from error
        finally:
            log.close()
    return store.append_encoded(episode, films)


def _already(store: Store, before: int, episode: Episode) -> int | None:
    """The index of this episode among those appended since the dataset had `before`."""
    for index in range(before, len(store)):
        (other,) = store.read([index], images=False)
        if len(other) == len(episode) and (other.time == episode.time).all() and (other.action == episode.action).all():
            return index
    return None


def remove(folder: Path) -> None:
    """Delete an episode's folder; a kill in between leaves nothing that could be taken for an episode."""
    done = folder if folder.name.startswith(DONE) else folder.rename(folder.with_name(DONE + folder.name))
    shutil.rmtree(done, ignore_errors=True)


def settle(store: Store, tell: Tell, *, min_frames: int, only: Callable[[Path, Found | None], bool] = lambda folder, found: True) -> None:
    """Bring every folder of `recording/` to its end, in order: finished episodes and recovered ones into the dataset, the others away.

    An unfinished episode of fewer than `min_frames` whole steps is dropped. only: which folders to look at. What happened to each
    is told: "committed", "recovered" or "dropped" with a line; "refused" when the dataset does not take it (the folder stays).
    Raises RealrlError caused by an OSError when the disk is full.
    """
    root = store.dir / FOLDER
    for folder in sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []:
        if folder.name.startswith(DONE):
            remove(folder)
            continue
        try:
            found = find(folder)
            if only(folder, found):
                _settle(store, tell, folder, found, min_frames)
        except RealrlError as error:
            if isinstance(error.__cause__, OSError):
                raise
            tell("refused", {"text": f"{folder} stays where it is: {error}", "folder": folder.name})


def _settle(store: Store, tell: Tell, folder: Path, found: Found | None, min_frames: int) -> None:
    if found is None or found.discarded:
        remove(folder)
        if found is None:
            tell("dropped", {"text": f"{folder}: an episode that had not begun is dropped", "folder": folder.name})
    elif found.finished:
        index = commit(store, found)
        remove(folder)
        tell("committed", {"index": index, "folder": folder.name})
    else:
        steps = len(found.episode()[0])
        if steps < max(1, min_frames):
            remove(folder)
            text = f"{folder}: an unfinished episode of {steps} whole steps is dropped (fewer than {max(1, min_frames)})"
            tell("dropped", {"text": text, "folder": folder.name})
            return
        index = commit(store, found)
        remove(folder)
        text = f"{folder}: an unfinished episode is recovered to its last whole frame, {steps} steps, as episode {index}, truncated"
        tell("recovered", {"text": text, "index": index, "folder": folder.name})


# ---- who may


@contextlib.contextmanager
def alone(dataset: Path, wait: float) -> Iterator[int]:
    """The right to record into a dataset, as the descriptor of a lock that child processes may hold on to.

    Raises RealrlError when another recorder, or the encoder process of one that died, keeps it longer than `wait` seconds.
    """
    root = dataset / FOLDER
    try:
        root.mkdir(parents=True, exist_ok=True)
        fd = os.open(root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
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
    return hashlib.sha256(f"{lock.read_text()} {told.st_dev} {told.st_ino}".encode()).hexdigest()[:24]


def about_record(*, task: str, policy: str, seed: int | None, fps: float, codec: str, options: Mapping[str, str],
                 cameras: list[dict[str, Any]], layout: Layout) -> bytes:
    """The first record of an episode."""
    return to_json({"task": task, "policy": policy, "seed": seed, "fps": fps, "codec": codec, "options": dict(options),
                    "cameras": cameras, "columns": [[name, kind, list(shape)] for name, kind, shape in layout.columns]})
