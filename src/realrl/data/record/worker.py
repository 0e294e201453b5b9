"""The encoder process of a recorder: takes records from the ring, logs and encodes them, commits finished episodes.

It outlives the process that records: when that one is gone, whatever it wrote into the ring is still encoded, the unfinished episode
is recovered, and only then this process ends. When this one is killed, the recorder starts another, which goes on behind what
the logs hold; an encoder that stands still (`footage.STUCK`) ends it for that. A full disk stops it until there is room; meanwhile the
recorder fills the ring and then cannot accept more.

Run by `realrl.data.record.recorder` as `python -m realrl.data.record.worker JSON`.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from realrl.data import footage
from realrl.data.record.journal import DISCARD, END, FRAME, HEADER, PACKET, START, Log, Record, Ring, Spill, folder_name, read_log
from realrl.data.record.recovery import FOLDER, FRAMES, Found, camera_log, header_record, owner, packet_record, settle
from realrl.data.store import Store
from realrl.data.video import Packet, PacketEncoder
from realrl.types import RealrlError

GAVE_UP = 3  # exit code: the disk stayed full after the recorder had gone
STOOD_STILL = 4  # exit code: an encoder made nothing of a picture
PATIENCE_S = 3.0  # how long a full disk is waited for, once the recorder is gone
T = TypeVar("T")


class Channel:
    """To and from the recorder: a byte comes in with every record, lines of JSON go out. Any thread may use it.

    parent: the recorder's process, 0 when there is none any more; inbox, outbox: descriptors.
    """

    def __init__(self, parent: int, inbox: int = 0, outbox: int = 1) -> None:
        self.parent, self.inbox, self.outbox = parent, inbox, outbox
        self._lock = threading.RLock()
        self._stuck: set[int] = set()  # threads that the disk takes nothing from
        self._refused: set[str] = set()
        self._gone_at: float | None = None if parent else time.monotonic()
        if parent:
            os.set_blocking(inbox, False)  # another thread may have read what `select` saw

    @property
    def gone(self) -> bool:
        """Whether the recorder has closed or died."""
        if self._gone_at is None and os.getppid() != self.parent:
            self._gone_at = time.monotonic()
        return self._gone_at is not None

    def wait(self, seconds: float) -> None:
        """Sleep until a record may have come."""
        if self.gone:
            return
        ready, _, _ = select.select([self.inbox], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            if ready and not os.read(self.inbox, 65536):
                self._gone_at = time.monotonic()

    def tell(self, kind: str, entries: dict[str, Any]) -> None:
        """Report to the recorder, if there still is one; that a folder is refused, once."""
        if kind == "refused":
            if entries["folder"] in self._refused:
                return
            self._refused.add(entries["folder"])
        with self._lock, contextlib.suppress(OSError):
            os.write(self.outbox, json.dumps({"kind": kind, **entries}).encode() + b"\n")

    def insist(self, act: Callable[[], T]) -> T:
        """Do something that writes, again and again while the disk is full. Ends the process when nobody waits for it any more."""
        since: float | None = None
        while True:
            try:
                result = act()
            except (OSError, RealrlError) as error:
                if isinstance(error, RealrlError) and not isinstance(error.__cause__, OSError):
                    raise
                self._report(str(error))
                since = since or time.monotonic()
                if self._gone_at is not None and time.monotonic() - max(since, self._gone_at) > PATIENCE_S:
                    os._exit(GAVE_UP)
                time.sleep(0.1)
                self.wait(0.0)  # whether the recorder has gone meanwhile
            else:
                if since is not None:
                    self._report("")
                return result

    def _report(self, trouble: str) -> None:
        """Tell that the disk is full when the first thread meets it, and that it has room when none does any more.

        Under one lock with the telling: otherwise the news of one thread may overtake another's, and the last the recorder heard
        is that all is well while it waits for a thread that is stuck.
        """
        with self._lock:
            before = bool(self._stuck)
            (self._stuck.add if trouble else self._stuck.discard)(threading.get_ident())
            if before != bool(self._stuck):
                self.tell("stuck" if trouble else "unstuck", {"text": trouble})


_since: dict[int, float] = {}  # threads that are in an encoder, and since when


@contextlib.contextmanager
def encoding() -> Iterator[None]:
    """Around whatever an encoder does: SVT-AV1 now and then waits for itself for ever, and a thread that waits in it cannot be ended."""
    me = threading.get_ident()
    _since[me] = time.monotonic()
    try:
        yield
    finally:
        del _since[me]


def _watch() -> None:
    """End this process, and only it, when an encoder stands still."""
    while all(time.monotonic() - since < footage.STUCK for since in list(_since.values())):
        time.sleep(0.5)
    sys.stderr.write(f"realrl: a video encoder made nothing of a picture for {footage.STUCK:g} s; another one goes on where it stood\n")
    sys.stderr.flush()
    os._exit(STOOD_STILL)


def new_encoder(camera: dict[str, Any], about: dict[str, Any]) -> PacketEncoder:
    """The encoder of a camera of an episode. Raises RealrlError when it does not open."""
    height, width = camera["shape"]
    return PacketEncoder(width, height, about["fps"], about["codec"], depth=camera["depth"],
                         options=None if camera["depth"] else about["options"])


class Film:
    """One camera of one episode; used by that camera's thread alone."""

    def __init__(self, folder: Path, camera: dict[str, Any], about: dict[str, Any], channel: Channel) -> None:
        with encoding():
            self.encoder = new_encoder(camera, about)
        self.kind = np.dtype(np.uint16 if camera["depth"] else np.uint8)
        self.channel = channel
        self.log = channel.insist(lambda: Log(camera_log(folder, camera["key"])))
        self.first = self.have = self.log.counts.get(PACKET, 0)  # frames below `first` were logged by a process that died
        self.waiting: deque[int] = deque()  # sequence numbers of frames whose packets the encoder still holds
        if not self.log.counts.get(HEADER):
            channel.insist(lambda: self.log.append(HEADER, header_record(self.encoder.header)))

    def add(self, record: Record, camera: int) -> None:
        """Encode and log the picture of a record, unless it is logged already."""
        if record.frame < self.have:
            return
        picture = np.frombuffer(record.image(camera), self.kind).reshape(self.encoder.shape)
        self.waiting.append(record.seq)
        with encoding():
            packets = self.encoder.encode(picture)
        self._log(packets)

    def finish(self) -> None:
        """Log what the encoder still holds and close."""
        with encoding():
            packets = self.encoder.finish()
        self._log(packets)
        self.waiting.clear()
        self.log.close()

    def close(self) -> None:
        """Close without the rest."""
        with encoding():
            self.encoder.close()
        self.log.close()

    def _log(self, packets: list[Packet]) -> None:
        for p in packets:
            content = packet_record(Packet(p.data, p.pts + self.first, p.dts + self.first, p.key))
            self.channel.insist(partial(self.log.append, PACKET, content))
            self.have += 1
            self.waiting.popleft()


class OpenEpisode:
    """One episode under way: its folder, the log of its columns, its cameras' films."""

    def __init__(self, recording: Path, record: Record, ring: Ring, channel: Channel) -> None:
        self.folder = recording / folder_name(ring.started, record.episode)
        self.channel = channel
        channel.insist(lambda: self.folder.mkdir(exist_ok=True))
        self.log = channel.insist(lambda: Log(self.folder / FRAMES))
        self.about: dict[str, Any] = json.loads(record.content) if record.kind == START else self._about()
        self.films: list[Film | None] = [None] * len(ring.sizes)
        self.open = 1 + len(ring.sizes)  # threads that have not met its end yet

    def _about(self) -> dict[str, Any]:
        about: dict[str, Any] = json.loads(next(content for kind, content in read_log(self.folder / FRAMES) if kind == START))
        return about

    def write(self, record: Record) -> None:
        """Log a record's columns, unless they are logged already."""
        known = self.log.counts.get(record.kind, 0)
        if known <= (record.frame if record.kind == FRAME else 0):
            self.channel.insist(lambda: self.log.append(record.kind, record.content))
        if record.kind in (END, DISCARD):
            self.log.close()

    def film(self, record: Record, camera: int) -> int:
        """Encode a camera's picture of a record; gives the number up to which this camera's log is complete."""
        film = self.films[camera]
        if film is None:
            film = self.films[camera] = Film(self.folder, self.about["cameras"][camera], self.about, self.channel)
        if record.kind in (FRAME, END):
            film.add(record, camera)
        if record.kind == END:
            film.finish()
        elif record.kind == DISCARD:
            film.close()
        return film.waiting[0] - 1 if film.waiting else record.seq


class Worker:
    """Takes what a ring and its spill files hold, in order, until there is no more and the recorder is gone.

    One thread takes and logs columns, one a camera encodes, one commits, one flushes to the disk every `sync_s` seconds.
    """

    def __init__(self, store: Store, ring: Ring, channel: Channel, *, min_frames: int, sync_s: float) -> None:
        self.store, self.ring, self.channel, self.min_frames, self.sync_s = store, ring, channel, min_frames, sync_s
        self.recording = store.dir / FOLDER
        self.spill = Spill(self.recording, ring)
        self.takes: dict[int, OpenEpisode] = {}
        self.jobs: list[queue.Queue[tuple[OpenEpisode, Record] | None]] = [queue.Queue(8) for _ in ring.sizes]
        self.ended: queue.Queue[Path | None] = queue.Queue()
        self._lock, self._stop = threading.Lock(), threading.Event()

    def run(self) -> None:
        """All of it; returns when everything that was written is in the logs and every finished episode in the dataset."""
        seq = self.ring.finished() + 1
        first = self._take(seq)
        self._commit_earlier(first.episode if first else sys.maxsize)
        cameras = [threading.Thread(target=_or_die, args=(self._encode, i)) for i in range(len(self.jobs))]
        others = [threading.Thread(target=_or_die, args=(act,), daemon=True) for act in (self._commit, self._sync)]
        for thread in (*cameras, *others):
            thread.start()
        while True:
            gone = self.channel.gone
            record = self._take(seq)
            if record is not None:
                self._handle(record)
                seq += 1
            elif gone:
                break
            else:
                self.channel.wait(0.25)
                self.spill.sweep()
        for jobs in self.jobs:
            jobs.put(None)
        for thread in cameras:
            thread.join()
        self._stop.set()
        self.ended.put(None)
        for thread in others:
            thread.join()
        self.spill.close()

    def _take(self, seq: int) -> Record | None:
        return self.ring.take(seq) or self.spill.take(seq)

    def _commit_earlier(self, episode: int) -> None:
        """Episodes that a process before this one logged to their end, but could not commit."""
        name = folder_name(self.ring.started, episode)

        def complete(folder: Path, found: Found | None) -> bool:
            return found is not None and (found.finished or found.discarded) and folder.name < name

        self.channel.insist(lambda: settle(self.store, self.channel.tell, min_frames=self.min_frames, only=complete))

    def _handle(self, record: Record) -> None:
        take = self.takes.get(record.episode)
        if take is None:
            take = OpenEpisode(self.recording, record, self.ring, self.channel)
            self.takes = {record.episode: take}
        take.write(record)
        for jobs in self.jobs:
            jobs.put((take, record))
        self.ring.done[0] = record.seq
        self._passed(take, record)

    def _encode(self, camera: int) -> None:
        while (job := self.jobs[camera].get()) is not None:
            take, record = job
            self.ring.done[1 + camera] = take.film(record, camera)
            self._passed(take, record)

    def _passed(self, take: OpenEpisode, record: Record) -> None:
        """The last thread to meet an episode's end hands it on. Nothing of it is in the ring by then."""
        if record.kind not in (END, DISCARD):
            return
        with self._lock:
            take.open -= 1
            last = take.open == 0
        if last:
            self.ended.put(take.folder)

    def _commit(self) -> None:
        while (folder := self.ended.get()) is not None:
            def ours(path: Path, found: Found | None, name: str = folder.name) -> bool:
                return path.name == name
            self.channel.insist(lambda: settle(self.store, self.channel.tell, min_frames=self.min_frames, only=ours))

    def _sync(self) -> None:
        while not self._stop.wait(self.sync_s):
            for take in list(self.takes.values()):
                for log in [take.log, *(film.log for film in take.films if film)]:
                    with contextlib.suppress(OSError):  # closed meanwhile; its episode is being committed
                        os.fdatasync(log.fd)


def _or_die(act: Callable[..., None], *args: Any) -> None:
    """A thread that fails takes the process with it: the recorder sees that, and starts another."""
    try:
        act(*args)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        os._exit(1)


# ---- before, during and after a recording


def resume(store: Store, channel: Channel, *, min_frames: int, keep: bytes = b"") -> None:
    """Bring to its end what recorders before this one left: their rings, then their folders. The caller holds the lock.

    keep: the token of the ring that is about to be recorded into.
    """
    recording = store.dir / FOLDER
    rings = [ring for ring in Ring.left(owner(recording)) if ring.token != keep]
    for ring in rings:
        Worker(store, ring, _Orphan(channel), min_frames=min_frames, sync_s=3600.0).run()
    channel.insist(lambda: settle(store, channel.tell, min_frames=min_frames))
    for path in recording.glob("spill-*.raw"):
        path.unlink(missing_ok=True)
    for ring in rings:
        ring.unlink()


class _Orphan(Channel):
    """The channel of a ring into which nothing is recorded any more; reports go to the recorder of now."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(0)
        self.tell = channel.tell  # type: ignore[method-assign]


def main(arguments: list[str]) -> int:
    """Serve one recorder to its end. arguments: one JSON object, see `Recorder`."""
    told = json.loads(arguments[0])
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # those end the recorder, and its end is what this process waits for
        signal.signal(name, signal.SIG_IGN)
    threading.Thread(target=_watch, daemon=True).start()
    channel, min_frames = Channel(told["parent"]), told["min_frames"]
    ring = Ring.attach(told["ring"])
    if ring is None:
        return 1
    try:
        store = Store.open(told["dataset"])
        store.lock_wait = 600.0
        if not told["goes_on"]:
            for camera in told["cameras"]:
                with encoding():
                    new_encoder(camera, told).close()  # so that a codec that is not there is known before the robot moves
            resume(store, channel, min_frames=min_frames, keep=ring.token)
        channel.tell("ready", {"episodes": len(store)})
        Worker(store, ring, channel, min_frames=min_frames, sync_s=told["sync_s"]).run()
        resume(store, channel, min_frames=min_frames)
    except RealrlError as error:
        channel.tell("fatal", {"text": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
