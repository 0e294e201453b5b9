"""Recording frame by frame: what comes back, journals cut at every byte, full disks, encoder processes that die, mistakes of the user."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from realrl.data.record import journal, recovery
from realrl.data.record import worker as encoder
from realrl.data.record.journal import FRAME, PACKET, START, Log, Ring, Spill, read_log
from realrl.data.record.recorder import Recorder
from realrl.data.record.worker import Channel
from realrl.data.store import Store
from realrl.data.tools.check import check
from realrl.types import Array, Episode, Obs, RealrlError, Source, Step

SIZE = (24, 32)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def observation(t: int, size: tuple[int, int] = SIZE) -> Obs:
    """A picture whose brightness tells the time, depth that is exact, and a state."""
    picture = np.full((*size, 3), 20 + 5 * (t % 40), np.uint8)
    return {"images.top": picture, "depth.wrist": (np.indices((9, 7)).sum(0) * 997 + t).astype(np.uint16),
            "state": np.array([t, 2 * t], np.float32), "gripper": np.array([t], np.float64)}


def step(t: int, **changes: Any) -> Step:
    values = {"obs": observation(t), "proposed": np.array([t / 100, 0], np.float32), "action": np.array([t / 100, 0.5], np.float32),
              "source": Source.HUMAN if t == 2 else Source.POLICY, "reward": 0.25 * t, "terminated": False, "truncated": False,
              "success": t == 5, "time": 10 + t / 30, "starts_plan": t % 4 == 0}
    return Step(**values | changes)


def opened(folder: Path, **changes: Any) -> Recorder:
    told: dict[str, Any] = {"task": "stack", "fps": 30, "cameras": {"top": SIZE}, "depth": {"wrist": (9, 7)}, "codec": "h264",
                            "ring_mb": 1, "min_frames": 3}
    return Recorder(folder, **told | changes)


def record(r: Recorder, steps: int, **about: Any) -> int:
    r.start_episode(**about)
    for t in range(steps):
        r.add(step(t))
    return r.finish(observation(steps), terminated=True, truncated=False)


def times(film: Array) -> Array:
    """The time that each picture tells."""
    return np.round((film.reshape(len(film), -1).mean(1) - 20) / 5).astype(int)


def right(e: Episode, steps: int) -> None:
    assert len(e) == steps
    assert (times(e.obs["images.top"]) == np.arange(steps + 1) % 40).all()
    for t in range(steps + 1):
        wanted = observation(t)
        assert (e.obs["depth.wrist"][t] == wanted["depth.wrist"]).all() and (e.obs["state"][t] == wanted["state"]).all()
    assert (e.action[:, 0] == (np.arange(steps) / 100).astype(np.float32)).all()


def wait_for(true: Callable[[], object], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def errors(folder: Path) -> list[str]:
    return [str(p) for p in check(folder) if p.severity == "error"]


# ---- what is recorded


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_episodes_come_back_as_they_were_recorded(tmp_path: Path, codec: str) -> None:
    with opened(tmp_path, codec=codec) as r:
        assert record(r, 8, seed=3) == 0
        assert record(r, 5, task="unstack", policy="expert") == 1
        r.flush()
        assert r.stats.committed == 2 and r.stats.backlog == 0 and r.stats.frames == 13
        assert not list((tmp_path / "recording").glob("0*"))
    first, second = Store.open(tmp_path).read()
    right(first, 8)
    right(second, 5)
    assert (first.seed, first.task, second.task, second.policy) == (3, "stack", "unstack", "expert")
    assert first.source.tolist() == [0, 0, 1, 0, 0, 0, 0, 0] and first.success.tolist() == [t == 5 for t in range(8)]
    assert first.reward.tolist() == [0.25 * t for t in range(8)] and first.starts_plan.tolist() == [t % 4 == 0 for t in range(8)]
    assert first.terminated and not first.truncated and (first.proposed[:, 1] == 0).all()
    assert (first.time == 10 + np.arange(8) / 30).all()
    assert errors(tmp_path) == []


def test_a_recorder_without_cameras(tmp_path: Path) -> None:
    with Recorder(tmp_path, task="reach", fps=20) as r:
        r.start_episode()
        for t in range(4):
            r.add(step(t, obs={"state": np.array([t], np.float32)}))
        r.finish({"state": np.array([4], np.float32)}, terminated=False, truncated=True)
    (e,) = Store.open(tmp_path).read()
    assert e.obs["state"][:, 0].tolist() == [0, 1, 2, 3, 4] and e.truncated
    assert errors(tmp_path) == []


def test_frames_that_find_the_ring_full_go_to_disk_and_keep_their_order(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="none is lost"), opened(tmp_path, ring_mb=0) as r:
        os.kill(r._process.pid, signal.SIGSTOP)
        assert record(r, 150) == 0
        assert r.stats.spilled > 100
        os.kill(r._process.pid, signal.SIGCONT)
        assert record(r, 20) == 1
        r.flush()
        assert len([n for n in r.notes if "none is lost" in n]) == 1
    for e, steps in zip(Store.open(tmp_path).read(), (150, 20), strict=True):
        right(e, steps)
    assert not list((tmp_path / "recording").glob("spill*"))


def test_a_discarded_episode_leaves_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as r:
        r.start_episode()
        r.discard()
        r.start_episode()
        for t in range(5):
            r.add(step(t))
        r.discard()
        assert record(r, 4) == 0
    assert len(Store.open(tmp_path)) == 1
    assert {p.name for p in (tmp_path / "recording").iterdir()} == {".lock"}


def test_the_datasets_codec_is_kept(tmp_path: Path) -> None:
    with opened(tmp_path, codec="h264") as r:
        record(r, 4)
    with opened(tmp_path, codec=None) as r:
        assert r.codec == "h264" and record(r, 4) == 1
    with pytest.raises(RealrlError, match="holds h264 videos, not av1"):
        opened(tmp_path, codec="av1")


# ---- processes that die


def test_an_encoder_process_that_is_killed_is_started_again(tmp_path: Path) -> None:
    with opened(tmp_path) as r:
        r.start_episode()
        for t in range(90):
            r.add(step(t))
            if t in (20, 50):
                os.kill(r._process.pid, signal.SIGKILL)
                time.sleep(0.3)
        r.finish(observation(90), terminated=True, truncated=False)
        record(r, 6)
        r.flush()
        assert r.stats.restarts == 2
    for e, steps in zip(Store.open(tmp_path).read(), (90, 6), strict=True):
        right(e, steps)
    assert errors(tmp_path) == []


STANDING = """
import pathlib, threading
from realrl.data import footage, video
footage.STUCK = 0.5
encode = video.PacketEncoder.encode
def standing(self, frame):
    flag = pathlib.Path({flag!r})
    if self._count == 7 and not flag.exists():
        flag.touch()
        threading.Event().wait()
    return encode(self, frame)
video.PacketEncoder.encode = standing
"""


def test_an_encoder_that_stands_still_ends_its_process_and_another_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "sitecustomize.py").write_text(STANDING.format(flag=str(tmp_path / "stood")))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"), prepend=os.pathsep)
    with opened(tmp_path / "d") as r:
        record(r, 20)
        r.flush(30.0)
        assert (tmp_path / "stood").exists() and r.stats.restarts == 1
    right(Store.open(tmp_path / "d").read()[0], 20)
    assert errors(tmp_path / "d") == []


def test_an_unfinished_episode_is_recovered_when_the_recorder_closes(tmp_path: Path) -> None:
    with opened(tmp_path, policy="bc") as r:
        r.start_episode()
        for t in range(7):
            r.add(step(t))
    assert any("recovered to its last whole frame, 6 steps" in n for n in r.notes)
    (e,) = Store.open(tmp_path).read()
    right(e, 6)
    assert e.truncated and not e.terminated and e.policy == "bc (recovered)"
    assert e.success[5] and e.judged, "a frame said that it was solved"
    with opened(tmp_path) as r:
        r.start_episode()
        r.add(step(0))
    assert any("1 whole steps is dropped" in n or "0 whole steps is dropped" in n for n in r.notes)
    assert len(Store.open(tmp_path)) == 1


def test_two_recorders_do_not_share_a_dataset(tmp_path: Path) -> None:
    with opened(tmp_path) as r:
        with pytest.raises(RealrlError, match="being recorded into by another process"):
            opened(tmp_path, wait_s=0.2)
        record(r, 4)
    assert len(Store.open(tmp_path)) == 1


# ---- power cuts: the ring is gone, the logs end anywhere


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of one episode with another under way, 8 frames in the logs, as a power cut leaves it."""
    live, left = (tmp_path_factory.mktemp(name) / "set" for name in ("live", "left"))
    with opened(live) as r:
        record(r, 6)
        r.flush()
        r.start_episode(seed=77)
        for t in range(8):
            r.add(step(t))
        while r.stats.backlog:
            time.sleep(0.01)
        shutil.copytree(live, left)
        r.discard()
    return left


def logs(folder: Path) -> dict[Path, list[int]]:
    """Every log of the unfinished episode, and where each of its records ends."""
    found = {}
    for path in sorted((folder / "recording").glob("*/*.log")):
        ends = np.cumsum([9 + len(content) for _, content in read_log(path)]).tolist()
        assert ends[-1] == path.stat().st_size
        found[path] = ends
    return found


def test_a_log_cut_at_any_byte_keeps_every_whole_frame(cut: Path, tmp_path: Path) -> None:
    work = shutil.copytree(cut, tmp_path / "set")
    seen = 0
    for path, ends in logs(work).items():
        whole = path.read_bytes()
        first_frame = [kind for kind, _ in read_log(path)].index(FRAME if path.name == "frames.log" else PACKET)
        for size in range(ends[-4], len(whole)):
            os.truncate(path, size)
            frames = sum(end <= size for end in ends) - first_frame
            found = recovery.find(path.parent)
            assert found is not None and not found.finished
            episode, films = found.episode()
            assert len(episode) == frames - 1 and {len(packets) for _, packets in films.values()} == {frames}
            path.write_bytes(whole)
            seen += 1
    assert seen > 300


def test_recording_goes_on_after_a_cut_log(cut: Path, tmp_path: Path) -> None:
    for number, (original, ends) in enumerate(logs(cut).items()):
        for size, wanted in ((ends[-1], 7), (ends[-2] + 5, 6), (ends[-3], 5), (3, None)):
            work = shutil.copytree(cut, tmp_path / f"{number}-{size}")
            os.truncate(work / original.relative_to(cut), size)
            notes: list[str] = []
            recovery.settle(Store.open(work), lambda kind, told, notes=notes: notes.append(kind), min_frames=3)
            episodes = Store.open(work).read()
            right(episodes[0], 6)
            assert notes == (["dropped"] if wanted is None else ["recovered"])
            if wanted:
                right(episodes[1], wanted)
                assert episodes[1].seed == 77 and episodes[1].truncated
            assert errors(work) == [] and not list((work / "recording").glob("0*"))
    with opened(work) as r:
        assert record(r, 4) == len(episodes)
    assert errors(work) == []


def test_flipped_bits_in_a_log_end_it_there(cut: Path, tmp_path: Path) -> None:
    work = shutil.copytree(cut, tmp_path / "set")
    for path, ends in logs(work).items():
        damaged = bytearray(path.read_bytes())
        damaged[ends[-3] + 12] ^= 1
        path.write_bytes(damaged)
    found = recovery.find(path.parent)
    assert found is not None and len(found.episode()[0]) == 5


def test_an_episode_is_committed_once_though_the_commit_is_repeated(cut: Path, tmp_path: Path) -> None:
    work = shutil.copytree(cut, tmp_path / "set")
    (folder,) = (work / "recording").glob("0*")
    found = recovery.find(folder)
    assert found is not None
    assert recovery.commit(Store.open(work), found) == 1  # and now the process dies before it removes the folder
    recovery.settle(Store.open(work), lambda kind, told: None, min_frames=3)
    assert len(Store.open(work)) == 2 and not folder.exists()


def test_a_folder_that_cannot_join_is_kept_and_named(cut: Path, tmp_path: Path) -> None:
    work = shutil.copytree(cut, tmp_path / "set")
    (folder,) = (work / "recording").glob("0*")
    (_, start), *rest = read_log(folder / "frames.log")
    (folder / "frames.log").unlink()
    log = Log(folder / "frames.log")
    log.append(START, json.dumps(json.loads(start) | {"columns": [["action", "<f4", [3]]]}).encode())
    for kind, content in rest:
        log.append(kind, content)
    log.close()
    with opened(work) as r:
        assert any("stays where it is" in n for n in r.notes) and r.stats.refused == 1
        record(r, 4)
        r.start_episode()
        r.discard()
    assert folder.exists() and len(Store.open(work)) == 2


# ---- full disks


def test_a_limit_on_file_sizes_stops_nothing_that_was_accepted(tmp_path: Path) -> None:
    with opened(tmp_path, ring_mb=1) as r:
        record(r, 4)
        r.flush()
        resource.prlimit(r._process.pid, resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))
        record(r, 60)
        with pytest.raises(RealrlError, match="the disk takes no more"):
            r.flush()
        assert record(r, 10) == 2
        resource.prlimit(r._process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        r.flush()
    for e, steps in zip(Store.open(tmp_path).read(), (4, 60, 10), strict=True):
        right(e, steps)
    assert errors(tmp_path) == []


class Line:
    """A channel to an encoder process's threads, and what they said."""

    def __init__(self) -> None:
        self.inbox, self.wake = os.pipe()
        self.heard, outbox = os.pipe()
        self.channel = Channel(os.getppid(), self.inbox, outbox)

    def said(self) -> list[tuple[str, str]]:
        os.set_blocking(self.heard, False)
        try:
            lines = os.read(self.heard, 2**16).decode().splitlines()
        except BlockingIOError:
            return []
        return [(m["kind"], m["text"]) for m in map(json.loads, lines)]


def full_until(event: threading.Event, name: str) -> Callable[[], str]:
    def act() -> str:
        if not event.is_set():
            raise OSError(f"no room for {name}")
        return name

    return act


def test_the_recorder_hears_that_the_disk_is_full_as_long_as_any_thread_meets_it() -> None:
    line, room = Line(), [threading.Event(), threading.Event()]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(line.channel.insist, full_until(room[0], "first"))
        wait_for(lambda: line.channel._stuck)
        second = pool.submit(line.channel.insist, full_until(room[1], "second"))
        wait_for(lambda: len(line.channel._stuck) == 2)
        room[1].set()
        assert second.result(10) == "second"
        time.sleep(0.3)  # the first has tried again meanwhile
        assert line.said() == [("stuck", "no room for first")]
        room[0].set()
        assert first.result(10) == "first"
    assert line.said() == [("unstuck", "")]


def test_a_thread_does_not_wait_for_a_byte_that_another_has_read(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line()
    monkeypatch.setattr(encoder.select, "select", lambda inbox, *rest: (inbox, [], []))  # there was one, and it is gone
    with ThreadPoolExecutor(1) as pool:
        waited = pool.submit(line.channel.wait, 0.0)
        try:
            waited.result(10)
            assert not line.channel.gone
        finally:
            os.close(line.wake)
    line.channel.wait(0.0)
    assert line.channel.gone


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of two megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("needs mount, which is not installed")
    if done.returncode:
        pytest.skip(f"needs to mount a small file system, which is refused here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_refuses_frames_but_loses_none(small_disk: Path) -> None:
    folder, ballast = small_disk / "set", small_disk / "ballast"
    with opened(folder, ring_mb=0) as r:
        record(r, 10)
        r.flush()
        with ballast.open("wb", buffering=0) as file, pytest.raises(OSError):
            while True:
                file.write(bytes(4096))
        r.start_episode()
        accepted = 0
        with pytest.raises(RealrlError, match="frames wait in memory and the disk takes no more"):
            for t in range(10_000):
                r.add(step(t))
                accepted += 1
        ballast.unlink()
        deadline = time.monotonic() + 60
        while r.stats.backlog and time.monotonic() < deadline:
            time.sleep(0.05)
        for t in range(accepted, accepted + 5):  # the same episode goes on
            r.add(step(t))
        assert r.finish(observation(accepted + 5), terminated=True, truncated=False) == 1
        r.flush(60)
    for e, steps in zip(Store.open(folder).read(), (10, accepted + 5), strict=True):
        right(e, steps)
    assert errors(folder) == []


def test_a_disk_that_stays_full_is_reported_and_opening_again_goes_on(small_disk: Path) -> None:
    folder, ballast = small_disk / "set", small_disk / "ballast"
    r = opened(folder, ring_mb=1)
    record(r, 6)
    r.flush()
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(bytes(512))
    record(r, 6)
    with pytest.raises(RealrlError, match="not everything could be committed"):
        r.close()
    ballast.unlink()
    with opened(folder) as r:
        assert record(r, 4) == 2
    for e, steps in zip(Store.open(folder).read(), (6, 6, 4), strict=True):
        right(e, steps)
    assert errors(folder) == []


# ---- mistakes


@pytest.mark.parametrize(("changes", "told"), [
    ({"action": np.array([0, np.nan], np.float32)}, "action holds NaN"),
    ({"time": 9.0}, "time does not increase"),
    ({"source": 7}, "source is 7"),
    ({"action": np.zeros(3, np.float32)}, r"action is float32 \[3\], wanted float32 \[2\]"),
    ({"obs": observation(1) | {"images.top": np.zeros((24, 33, 3), np.uint8)}}, r"images.top is uint8 \[24, 33, 3\]"),
    ({"obs": {k: x for k, x in observation(1).items() if k != "depth.wrist"}}, "depth.wrist is missing"),
    ({"obs": observation(1) | {"gripper": np.array(1.0)}}, r"gripper is float64 \[\]"),
    ({"obs": observation(1) | {"extra": np.zeros(2)}}, "give every frame the same keys"),
    ({"obs": observation(1) | {"state": np.array([np.inf, 0], np.float32)}}, "state holds NaN or infinity")])
def test_a_bad_frame_is_refused_and_recording_goes_on(recorder: Recorder, changes: dict[str, Any], told: str) -> None:
    recorder.start_episode()
    recorder.add(step(0))
    with pytest.raises(RealrlError, match=told):
        recorder.add(step(1, **changes))
    recorder.add(step(1))
    recorder.discard()


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with opened(tmp_path_factory.mktemp("mistakes")) as r:
        yield r


def test_calls_in_the_wrong_order(recorder: Recorder) -> None:
    with pytest.raises(RealrlError, match="call start_episode first"):
        recorder.add(step(0))
    recorder.start_episode()
    with pytest.raises(RealrlError, match="an episode is under way"):
        recorder.start_episode()
    with pytest.raises(RealrlError, match="without frames cannot be finished"):
        recorder.finish(observation(0), terminated=True, truncated=False)
    recorder.discard()


def test_another_dataset_than_the_frames(tmp_path: Path) -> None:
    with opened(tmp_path) as r:
        record(r, 4)
    with pytest.raises(RealrlError, match="30 fps, not 50"):
        opened(tmp_path, fps=50)
    with opened(tmp_path, cameras={"top": (24, 40)}) as r:
        r.start_episode()
        with pytest.raises(RealrlError, match=r"observation\.images\.top has shape"):
            r.add(step(0, obs=observation(0, (24, 40))))


@pytest.mark.parametrize(("changes", "told"), [
    ({"cameras": {"../up": SIZE}}, "camera 'images.../up'"), ({"cameras": {"top": (0, 4)}}, "is not possible"),
    ({"codec": "vp9"}, "'vp9' is not one of av1, h264"), ({"options": {"preset": "no such"}}, "does not open")])
def test_a_recorder_that_cannot_be(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(RealrlError, match=told):
        opened(tmp_path, **changes)


# ---- the ring itself


def test_ring_and_spill_hand_records_over_in_order(tmp_path: Path) -> None:
    ring = Ring.create([12, 4], room=64, budget=0, started=1, owner="test")
    try:
        spill, reader = Spill(tmp_path, ring), Spill(tmp_path, ring)
        pictures = [np.arange(12, dtype=np.uint8).reshape(2, 2, 3), np.array([[7, 8]], np.uint16)]
        other = Ring.attach(ring.path)
        assert other is not None and other.slots == 4 and other.sizes == (12, 4)
        for seq in range(200):
            if seq % 50 < 2:
                ring.write(seq % 4, (seq, 0, seq, FRAME), b"x%d" % seq, pictures)
            else:
                spill.write((seq, 0, seq, FRAME), b"x%d" % seq, pictures)
            record = other.take(seq) or reader.take(seq)
            assert record is not None and record.content == b"x%d" % seq and record.frame == seq
            assert bytes(record.image(0)) == pictures[0].tobytes() and bytes(record.image(1)) == pictures[1].tobytes()
            ring.done[:] = seq
            reader.sweep()
        assert other.take(300) is None and reader.take(300) is None and len(list(tmp_path.iterdir())) == 1
        assert [found.path for found in Ring.left("test")] == [ring.path]
    finally:
        ring.unlink()
    assert Ring.attach(ring.path) is None


@pytest.fixture
def spilling(tmp_path: Path) -> Any:
    """(a ring, the writing end of its spill files, the reading one)."""
    ring = Ring.create([12], room=64, budget=0, started=1, owner="test")
    yield ring, Spill(tmp_path, ring), Spill(tmp_path, ring)
    ring.unlink()


PICTURE = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)


def test_a_reader_may_look_at_any_moment_of_a_spill(spilling: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, spill, reader = spilling
    write, early = journal._write_at, []

    def watched(fd: int, data: memoryview, at: int) -> None:
        early.append(reader.take(seq))
        for i in range(len(data)):  # byte by byte, as slow as can be
            write(fd, data[i:i + 1], at + i)
            if i + 1 < len(data):
                early.append(reader.take(seq))

    monkeypatch.setattr(journal, "_write_at", watched)
    for seq in range(5, 8):
        early.clear()
        spill.write((seq, 1, seq - 5, FRAME), b"x%d" % seq, [PICTURE])
        assert early and not any(early), "nothing is there before it is whole"
        record = reader.take(seq)
        assert record is not None and record.content == b"x%d" % seq and bytes(record.image(0)) == PICTURE.tobytes()


@pytest.mark.parametrize("room", range(64 + 2 + 12 + 8))  # head, content, picture, number
def test_a_record_that_did_not_fit_does_not_hide_the_next(spilling: Any, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    ring, spill, reader = spilling
    write, left = journal._write_at, [room]

    def full(fd: int, data: memoryview, at: int) -> None:
        fits = data[:left[0]]
        write(fd, fits, at)
        left[0] -= len(fits)
        if len(fits) < len(data):
            raise OSError(28, "No space left on device")

    spill.write((5, 1, 0, FRAME), b"x5", [PICTURE])
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(journal, "_write_at", full)
        spill.write((6, 1, 1, FRAME), b"x6", [PICTURE])
    assert reader.take(5) is not None and reader.take(6) is None
    ring.write(0, (6, 1, 1, FRAME), b"x6", [PICTURE])  # a place in the ring was free by then
    assert ring.take(6) is not None and reader.take(7) is None
    spill.write((7, 1, 2, FRAME), b"x7", [PICTURE])
    record = reader.take(7)
    assert record is not None and record.content == b"x7" and bytes(record.image(0)) == PICTURE.tobytes()
