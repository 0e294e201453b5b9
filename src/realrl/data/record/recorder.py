"""Recording frame by frame, without ever making the control loop wait for a disk or an encoder.

`add` copies a frame into a ring in shared memory. Another process (`realrl.data.record.worker`) takes it from there, logs its columns,
encodes its pictures, logs the packets, and puts finished episodes into the dataset. When it falls behind so far that the ring is
full, frames go to a spill file on disk instead, which the recorder says once; none is dropped, and their order is kept.

What survives what:
- kill -9 of the recorder: everything that `add` returned for. The encoder process finishes the work; if it dies too, whoever
  records into the dataset next does, from the ring, which is a file in memory, and the logs.
- kill -9 of the encoder process: everything; it is started again and goes on behind what the logs hold.
- a power cut: every episode that `flush` has returned for (usually committed some tenths of a second after `finish`), and of the
  others what the logs held `sync_s` seconds before; frames still waiting in ring or spill file are lost.
- a full disk: what was accepted stays in the ring until there is room. `add` raises once there is no place left at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from realrl.data.record import worker as encoder
from realrl.data.record.journal import DISCARD, END, FRAME, MAX_CAMERAS, START, Layout, Ring, Spill
from realrl.data.record.recovery import FOLDER, about_record, alone, end_record, owner
from realrl.data.schema import check_names
from realrl.data.store import Store
from realrl.data.video import CODECS, Codec
from realrl.types import Array, Obs, RealrlError, Source, Step

Size = tuple[int, int]


@dataclass(frozen=True)
class RecorderStats:
    """Counts since the recorder was opened. backlog: records not yet in the logs; spilled: frames that found the ring full;
    restarts: times the encoder process was started again; the rest are episodes."""

    frames: int = 0
    spilled: int = 0
    backlog: int = 0
    restarts: int = 0
    finished: int = 0
    committed: int = 0
    discarded: int = 0
    recovered: int = 0
    dropped: int = 0
    refused: int = 0


@dataclass(frozen=True)
class _Film:
    key: str
    shape: tuple[int, ...]
    kind: type[Any]

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.kind).itemsize


class Recorder:
    """Records episodes into a dataset, which is made if it is not there. Use it as a context manager.

    task, policy: what episodes are of unless `start_episode` says otherwise; fps: control steps a second; cameras: name -> (height,
    width) of the observations "images.<name>", uint8 [H, W, 3]; depth: the same for "depth.<name>", uint16 [H, W] millimetres;
    codec: "av1" or "h264", by default what the dataset has, av1 when it is new; options: for the encoder, on top of
    `video.OPTIONS`; min_frames: an unfinished episode that is found with fewer whole steps is dropped instead of recovered;
    ring_mb: memory for frames that wait for the encoder; record_kb: largest row of columns; sync_s: how often logs are flushed
    to the disk; wait_s: how long another recorder's last work is waited for.

    Opening it recovers what a recorder that died has left; `notes` tells what happened. Raises RealrlError when the dataset does not
    fit, the encoder does not open, or another recorder is at work.
    """

    def __init__(self, directory: str | Path, *, task: str, fps: float, cameras: Mapping[str, Size] | None = None,
                 depth: Mapping[str, Size] | None = None, codec: Codec | None = None, policy: str = "", robot_type: str = "unknown",
                 options: Mapping[str, str] | None = None, min_frames: int = 10, ring_mb: int = 128, record_kb: int = 64,
                 sync_s: float = 0.5, wait_s: float = 30.0) -> None:
        self.dir, self.task, self.policy, self.fps = Path(directory), task, policy, fps
        self.notes: list[str] = []  # a line for every episode recovered, dropped or refused, and for trouble
        self._cameras = _cameras(cameras or {}, depth or {})
        check_names(str(self.dir), task=task, policy=policy)
        store = Store.open_or_create(directory, task=task, fps=fps, robot_type=robot_type)
        self._features = store.info["features"] if len(store) else {}
        self._options = dict(options or {})
        self.codec = _codec(self.dir, self._features, codec)
        self._changed = threading.Condition()
        self._stats, self._stuck, self._fatal, self._refusal = RecorderStats(), "", "", ""
        self._settled = 0  # of the finished episodes, how many were committed or refused
        self._ready = self._closing = self._ended = False
        self._layout: Layout | None = None
        self._meta: dict[str, Any] | None = None  # of the episode under way
        self._seq, self._episode, self._frame, self._begun, self._last_time = -1, -1, 0, False, -np.inf
        self._next_index = 0
        self._alone = contextlib.ExitStack()
        self._lock = self._alone.enter_context(alone(self.dir, wait_s))
        try:
            self._ring = Ring.create([c.bytes for c in self._cameras], room=record_kb << 10, budget=ring_mb << 20,
                                     started=time.time_ns(), owner=owner(self.dir / FOLDER))
            self._free, self._taken = deque(range(self._ring.slots)), deque[tuple[int, int]]()
            self._spill = Spill(self.dir / FOLDER, self._ring)
            self._arguments = {"dataset": str(self.dir.absolute()), "ring": str(self._ring.path), "parent": os.getpid(), "fps": fps,
                               "min_frames": min_frames, "sync_s": sync_s, "codec": self.codec, "options": self._options,
                               "cameras": self._camera_records()}
            self._wake, self._launching = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), threading.Lock()
            self._process = self._launch()
            self._supervisor = threading.Thread(target=self._supervise, daemon=True, name="recorder")
            self._supervisor.start()
            self._await_ready()
        except BaseException:
            self._give_up()
            raise

    # ---- recording

    def start_episode(self, *, seed: int | None = None, task: str | None = None, policy: str | None = None) -> None:
        """Begin an episode. Raises RealrlError when one is under way."""
        self._may_record(under_way=False)
        names = {"task": self.task if task is None else task, "policy": self.policy if policy is None else policy}
        check_names(str(self.dir), **names)
        self._meta = {"seed": seed, **names}
        self._episode, self._frame, self._begun, self._last_time = self._episode + 1, 0, False, -np.inf

    def add(self, step: Step) -> None:
        """Record one step: its observation with every camera, its action, and what came of it. Takes what copying takes.

        The step's terminated and truncated are those of `finish`. Raises RealrlError naming the field when a value is not finite, a
        shape or dtype is not the episode's, or time does not increase, and when ring and disk are full; the frame is then not
        recorded, and recording may go on.
        """
        meta = self._may_record(under_way=True)
        numbers, pictures = self._split(step.obs)
        if self._layout is None or not self._begun:
            self._layout = self._checked_layout(numbers, step.action)
        values = {**{f"obs/{k}": x for k, x in numbers.items()}, "action": step.action, "proposed": step.proposed,
                  "source": int(step.source), "reward": step.reward, "success": step.success, "time": step.time,
                  "starts_plan": step.starts_plan}
        self._check_values(values)
        content = self._packed(values)
        if not self._begun:
            about = about_record(**meta, fps=self.fps, codec=self.codec, options=self._options, layout=self._layout,
                                 cameras=self._camera_records())
            self._push(START, about, [])
            self._begun = True
        self._push(FRAME, content, pictures)
        self._frame, self._last_time = self._frame + 1, step.time
        self._count(frames=1)

    def finish(self, last_obs: Obs, *, terminated: bool, truncated: bool, judged: bool = True) -> int:
        """End the episode with the observation that followed its last step. Gives the episode's index in the dataset (unless
        another process appends to it meanwhile). It is committed in the background; `flush` waits for that. judged: whether anything
        said how it ended, see `realrl.types.Episode`.

        Raises RealrlError as `add`; the episode is then still under way.
        """
        self._may_record(under_way=True)
        if not self._begun or self._layout is None:
            raise RealrlError(f"{self.dir}: an episode without frames cannot be finished; discard it")
        numbers, pictures = self._split(last_obs)
        values = {f"obs/{k}": x for k, x in numbers.items()}
        self._check_values(values)
        self._push(END, end_record(terminated, truncated, judged, self._packed(values, obs_only=True)), pictures)
        self._meta = None
        with self._changed:
            self._stats = replace(self._stats, finished=self._stats.finished + 1)
            self._next_index += 1
            return self._next_index - 1

    def discard(self) -> None:
        """Throw the episode under way away."""
        self._may_record(under_way=True)
        if self._begun:
            self._push(DISCARD, b"", [])
        self._meta = None
        self._count(discarded=1)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until every finished episode is in the dataset, safe from power cuts.

        Raises RealrlError when the disk is full, an episode was refused, the encoder process cannot be kept alive, or `timeout`
        seconds are over; nothing is lost by that.
        """
        until = np.inf if timeout is None else time.monotonic() + timeout
        patience = time.monotonic() + 1.0  # a disk that was full may have room again, which is found out soon
        with self._changed:
            while self._settled < self._stats.finished:
                self._raise_trouble(full=time.monotonic() > patience)
                if time.monotonic() > until:
                    raise RealrlError(f"{self.dir}: not all episodes were committed within {timeout} s; {self._stats.backlog} records wait")
                self._changed.wait(0.1)
            refusal, self._refusal = self._refusal, ""
        if refusal:
            raise RealrlError(refusal)

    def close(self) -> None:
        """Wait until everything is in the dataset and end the encoder process. An episode under way is kept as far as it got,
        truncated, as if the recorder had died. Raises RealrlError when the disk is full: opening the dataset again goes on then."""
        if self._closing:
            return
        with self._launching:
            self._closing, self._meta = True, None
            os.close(self._wake)
        self._supervisor.join()
        self._spill.close()
        self._alone.close()
        if self._fatal or self._stuck:
            raise RealrlError(f"{self.dir}: not everything could be committed ({self._fatal or self._stuck}); what is missing is kept "
                              f"in {self.dir / FOLDER}, free space and open the dataset for recording again")

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def stats(self) -> RecorderStats:
        """Counts up to now."""
        with self._changed:
            return replace(self._stats, backlog=self._seq - self._ring.finished())

    # ---- one record

    def _may_record(self, *, under_way: bool) -> dict[str, Any]:
        if self._closing:
            raise RealrlError(f"{self.dir}: the recorder is closed; open another")
        if under_way and self._meta is None:
            raise RealrlError(f"{self.dir}: no episode is under way; call start_episode first")
        if not under_way and self._meta is not None:
            raise RealrlError(f"{self.dir}: an episode is under way; finish or discard it first")
        return self._meta or {}

    def _split(self, obs: Obs) -> tuple[dict[str, Array], list[Array]]:
        """Numbers and pictures, the latter checked and in the cameras' order."""
        pictures = []
        for camera in self._cameras:
            x = obs.get(camera.key)
            if x is None or x.shape != camera.shape or x.dtype != camera.kind:
                told = "is missing" if x is None else f"is {x.dtype} {list(x.shape)}"
                raise RealrlError(f"{self._where()}: {camera.key} {told}, wanted {np.dtype(camera.kind)} {list(camera.shape)}; "
                                  "give every camera its size and dtype")
            pictures.append(x)
        return {k: np.asarray(x) for k, x in obs.items() if not k.startswith(("images.", "depth."))}, pictures

    def _camera_records(self) -> list[dict[str, Any]]:
        return [{"key": c.key, "shape": list(c.shape[:2]), "depth": c.kind is np.uint16} for c in self._cameras]

    def _where(self) -> str:
        return f"{self.dir}: frame {self._frame} of the episode under way"

    def _checked_layout(self, numbers: Mapping[str, Array], action: Array) -> Layout:
        """The layout of this episode, which must be that of the dataset."""
        for key in numbers:
            check_names(self._where(), observation_key=key)
        layout = Layout.of(numbers, np.asarray(action))
        if scalar := next((k for k, x in {**numbers, "action": np.asarray(action)}.items() if x.ndim < 1), None):
            raise RealrlError(f"{self._where()}: {scalar} is a single number; give it as a vector of length 1")
        for name, kind, shape in layout.columns:
            if np.dtype(kind).kind not in "biuf" or np.dtype(kind).itemsize > 8 or not np.dtype(kind).isnative or 0 in shape:
                raise RealrlError(f"{self._where()}: {name.removeprefix('obs/')} is {np.dtype(kind)} {list(shape)}, which a dataset cannot "
                                  "keep; give numbers or truth values of up to 64 bits, at least one")
        if self._layout is not None and layout.columns != self._layout.columns:
            raise RealrlError(f"{self._where()}: its columns are not those of the episode before; record into a new folder")
        wanted = {"action": np.shape(action), **{f"observation.{k}": x.shape for k, x in numbers.items()},
                  **{f"observation.{c.key}": c.shape if len(c.shape) == 3 else (*c.shape, 1) for c in self._cameras}}
        known = {k: tuple(f["shape"]) for k, f in self._features.items() if k == "action" or k.startswith("observation.")}
        for name in sorted(known.keys() | wanted.keys()) if known else []:
            if (wanted.get(name) or (1,)) != known.get(name):
                raise RealrlError(f"{self._where()}: {name} has shape {list(wanted.get(name, ()))}, the dataset has "
                                  f"{list(known.get(name, ()))}; record into a new folder")
        return layout

    def _check_values(self, values: Mapping[str, Any]) -> None:
        if self._layout is not None and {k for k in values if k.startswith("obs/")} != set(self._layout.obs.names or ()):
            raise RealrlError(f"{self._where()}: its observations are not those of the frames before; give every frame the same keys")
        for name, kind, shape in self._layout.columns if self._layout else []:
            if name not in values:
                continue
            x = np.asarray(values[name])
            if x.shape != shape or (name.startswith("obs/") and x.dtype != kind):
                raise RealrlError(f"{self._where()}: {name.removeprefix('obs/')} is {x.dtype} {list(x.shape)}, wanted {np.dtype(kind)} "
                                  f"{list(shape)} as before")
            if x.dtype.kind == "f" and not np.isfinite(x).all():
                raise RealrlError(f"{self._where()}: {name.removeprefix('obs/')} holds NaN or infinity; mend its source")
        if values.get("time", np.inf) <= self._last_time:
            raise RealrlError(f"{self._where()}: time does not increase; use a monotonic clock")
        if values.get("source", 0) not in {int(s) for s in Source}:
            raise RealrlError(f"{self._where()}: source is {values['source']}, wanted 0, 1 or 2")

    def _packed(self, values: Mapping[str, Any], obs_only: bool = False) -> bytes:
        if self._layout is None:
            raise RealrlError(f"{self.dir}: no episode is under way; call start_episode first")
        return self._layout.pack(values, obs_only)

    def _push(self, kind: int, content: bytes, pictures: Sequence[Array]) -> None:
        """Into the ring, or to disk when it is full."""
        if len(content) > self._ring.room:
            raise RealrlError(f"{self._where()}: its columns need {len(content)} bytes; open the recorder with a larger record_kb")
        finished = self._ring.finished()
        while self._taken and self._taken[0][0] <= finished:
            self._free.append(self._taken.popleft()[1])
        seq = self._seq + 1
        head = (seq, self._episode, self._frame, kind)
        if self._free:
            self._ring.write(self._free[0], head, content, pictures)
            self._taken.append((seq, self._free.popleft()))
        else:
            self._spill_record(head, content, pictures)
        self._seq = seq
        with contextlib.suppress(OSError):  # a full pipe wakes it too, and one that died is started again
            os.write(self._wake, b".")

    def _spill_record(self, head: tuple[int, int, int, int], content: bytes, pictures: Sequence[Array]) -> None:
        try:
            self._spill.write(head, content, pictures)
        except OSError as error:
            raise RealrlError(f"{self._where()}: is not recorded, {self._ring.slots} frames wait in memory and the disk takes no more "
                              f"({error.strerror}); free space, then go on") from error
        first = not self._stats.spilled
        self._count(spilled=int(head[3] == FRAME))
        if first and self._stats.spilled:
            self._note(f"{self.dir}: the encoder is {self._ring.slots} frames behind; frames go to disk until it has caught up "
                       "(none is lost). Use codec h264, smaller pictures or fewer cameras if this lasts")

    def _count(self, **more: int) -> None:
        with self._changed:
            self._stats = replace(self._stats, **{k: getattr(self._stats, k) + n for k, n in more.items()})

    def _note(self, text: str) -> None:
        self.notes.append(text)
        warnings.warn(text, stacklevel=2)

    # ---- the encoder process

    def _launch(self) -> subprocess.Popen[bytes]:
        path = os.pathsep.join([str(Path(encoder.__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])])
        with self._launching:
            command = [sys.executable, "-m", encoder.__name__, json.dumps(self._arguments | {"goes_on": self._ready})]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL if self._closing else subprocess.PIPE, stdout=subprocess.PIPE,
                                       pass_fds=[self._lock], env=os.environ | {"PYTHONPATH": path})
            if process.stdin is not None:  # always under the same number: the control loop may be writing to it right now
                self._wake = os.dup2(process.stdin.fileno(), self._wake, inheritable=False)
                process.stdin.close()
                os.set_blocking(self._wake, False)
        return process

    def _supervise(self) -> None:
        """Hear what the encoder process says, and start it again when it dies. Runs in a thread of its own."""
        deaths, seen = 0, -1
        while True:
            for line in self._process.stdout or ():
                self._hear(json.loads(line))
            code = self._process.wait()
            finished = self._ring.finished()
            deaths, seen = (deaths + 1 if finished == seen else 1), finished
            with self._changed:
                if code == 0 or self._fatal or (self._closing and code == encoder.GAVE_UP) or deaths > 3:
                    if code != 0 and not self._fatal:
                        self._fatal = self._stuck or f"the encoder process ended {deaths} times, last with code {code}"
                    self._ended = True
                    self._changed.notify_all()
                    return
                self._stats = replace(self._stats, restarts=self._stats.restarts + 1)
            self._process = self._launch()

    def _hear(self, message: dict[str, Any]) -> None:
        kind, text = message.pop("kind"), message.get("text", "")
        counted = {"committed": "committed", "recovered": "recovered", "dropped": "dropped", "refused": "refused"}
        with self._changed:
            if kind == "ready":
                self._ready = True
                if not self._stats.finished:
                    self._next_index = int(message["episodes"])
            elif kind == "fatal":
                self._fatal = text
            elif kind in ("stuck", "unstuck"):
                self._stuck = text
            elif kind in counted and (kind != "committed" or self._ready):
                self._stats = replace(self._stats, **{counted[kind]: getattr(self._stats, counted[kind]) + 1})
            if kind in ("committed", "refused") and self._ready:
                self._settled += 1
                self._refusal = text or self._refusal
            if kind == "committed" and self._ready:
                self._next_index = int(message["index"]) + 1 + self._stats.finished - self._settled
            self._changed.notify_all()
        if text:
            self._note(text)

    def _await_ready(self) -> None:
        with self._changed:
            while not self._ready:
                self._raise_trouble()
                self._changed.wait(0.1)

    def _give_up(self) -> None:
        """Undo a beginning that failed; nothing was recorded yet, and what others left stays for the next."""
        if hasattr(self, "_launching"):
            with self._launching:
                self._closing = True
                os.close(self._wake)
        if hasattr(self, "_ring"):
            self._ring.unlink()
        self._alone.close()

    def _raise_trouble(self, full: bool = True) -> None:
        if self._fatal or self._ended:
            raise RealrlError(f"{self.dir}: {self._fatal or 'the encoder process has ended'}; what was recorded is kept in "
                              f"{self.dir / FOLDER}")
        if self._stuck and full:
            raise RealrlError(f"{self.dir}: the disk takes no more ({self._stuck}); what was recorded is kept, free space to go on")


def _cameras(pictures: Mapping[str, Size], depth: Mapping[str, Size]) -> list[_Film]:
    found = [*(_Film(f"images.{name}", (*size, 3), np.uint8) for name, size in pictures.items()),
             *(_Film(f"depth.{name}", tuple(size), np.uint16) for name, size in depth.items())]
    for camera in found:
        if not all(c.isalnum() or c in "._-" for c in camera.key) or len(camera.shape[:2]) != 2 or min(camera.shape) < 1:
            raise RealrlError(f"camera {camera.key!r} of size {camera.shape[:2]} is not possible; use letters, digits, '.', '_' and '-', "
                              "and (height, width)")
    if len(found) > MAX_CAMERAS:
        raise RealrlError(f"{len(found)} cameras are too many; at most {MAX_CAMERAS}")
    return found


def _codec(directory: Path, features: Mapping[str, Any], asked: Codec | None) -> Codec:
    """The codec to use: the dataset's, if it has one."""
    told = {(f.get("info") or {}).get("video.codec") for f in features.values() if f["dtype"] == "video"}
    has = next((codec for codec in CODECS if codec in told), None)
    if asked is not None and asked not in CODECS:
        raise RealrlError(f"video codec {asked!r} is not one of {', '.join(CODECS)}; choose one of them")
    if asked is not None and has is not None and asked != has:
        raise RealrlError(f"{directory} holds {has} videos, not {asked}; leave codec out or record into a new folder")
    return asked or has or "av1"
