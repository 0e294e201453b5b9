"""The process that opens other people's files: whatever happens in it, this one goes on and the user reads one line."""

from __future__ import annotations

import itertools
import pickle
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from format_samples import assert_same, sample

from realrl.data import formats
from realrl.data.formats import sandbox
from realrl.types import RealrlError

FAULTS = """
import ctypes, json, os, pickle, signal, sys, time
sys.path[:] = json.loads(sys.argv[1])
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from format_samples import sample
from realrl.data import formats
from realrl.data.formats import common, sandbox

def spin(path):
    signal.signal(signal.SIGALRM, signal.SIG_IGN)  # the clock is the other limit
    while True:
        pass

def imported(episodes):
    return common.Imported("t", 10, "r", episodes, meta={"a": [1, float("inf"), None]})

def half():
    yield sample(0)
    ctypes.string_at(0)

def endless():
    while True:
        yield sample(0)

def objects(path):
    sandbox._packed = lambda one: ({"episode": {}, "arrays": [["obs", "x", "|O", [1]]]}, [np.zeros(1)])
    return imported(iter([sample(0)]))

def unfinished(episodes, path):
    with common.published(path) as temporary:
        temporary.write_text("x")
        next(episodes)
        os.abort()

for name, read in {
        "abort": lambda path: os.abort(), "segfault": lambda path: ctypes.string_at(0), "spin": spin, "bug": lambda path: 1 / 0,
        "sleep": lambda path: time.sleep(9999), "memory": lambda path: [bytearray(2**28) for _ in range(10**5)],
        "write": lambda path: path.write_text("x"), "write below": lambda path: os.write(os.open(path, os.O_RDWR), bytes(10)),
        "program": lambda path: os.system("true"), "unpickle": lambda path: pickle.loads(path.read_bytes()),
        "delete": lambda path: path.unlink(),
        "connect": lambda path: __import__("socket").create_connection(("127.0.0.1", 9)),
        "half": lambda path: imported(half()), "endless": lambda path: imported(endless()),
        "objects": objects}.items():
    formats.FORMATS[name] = SimpleNamespace(read=read, write=unfinished)
sandbox.serve(formats.FORMATS, int(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def server() -> sandbox.Server:
    return sandbox.Server(FAULTS)


@pytest.fixture
def path(tmp_path: Path, server: sandbox.Server, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that faulty formats read: of the kind that a reader runs code of, if it can."""
    monkeypatch.setattr(sandbox, "SERVER", server)
    monkeypatch.setattr(sandbox, "SECONDS", 0.1)
    (tmp_path / "a.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "owned").encode() + b"'\ntR.")
    return tmp_path / "a.bin"


@pytest.mark.parametrize("fault", ["abort", "segfault", "spin", "sleep", "memory"])
def test_what_ends_a_reader_is_one_line(path: Path, fault: str) -> None:
    with pytest.raises(RealrlError) as caught:
        sandbox.read(fault, path, {})
    text = str(caught.value)
    assert "\n" not in text and str(path) in text and "download or copy it again" in text
    one = {"observations": np.ones((4, 3)), "actions": np.ones((4, 2)), "rewards": np.zeros(4)}
    (path.parent / "good.pkl").write_bytes(pickle.dumps([one]))
    assert len(list(sandbox.read("pickle", path.parent / "good.pkl", {}).episodes)) == 1


@pytest.mark.parametrize("fault", ["write", "write below", "program", "unpickle", "delete", "connect"])
def test_a_reader_can_neither_write_nor_run_anything(path: Path, fault: str) -> None:
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match=r"PermissionError|File too large"):
        sandbox.read(fault, path, {})
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"] and path.read_bytes() == before


def test_a_bug_stays_a_bug(path: Path) -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        sandbox.read("bug", path, {})


def test_episodes_come_one_by_one_until_the_reader_dies(path: Path) -> None:
    imported = sandbox.read("half", path, {})
    assert (imported.task, imported.fps, imported.robot_type, imported.count) == ("t", 10, "r", None)
    assert imported.meta == {"a": [1, float("inf"), None]}
    assert_same(next(imported.episodes), sample(0))
    with pytest.raises(RealrlError, match="fails on it"):
        next(imported.episodes)
    some = sandbox.read("endless", path, {}).episodes
    assert len(list(itertools.islice(some, 3))) == 3


def test_nothing_but_numbers_and_text_comes_out(path: Path) -> None:
    with pytest.raises(RealrlError, match="fails on it"):
        next(sandbox.read("objects", path, {}).episodes)
    with pytest.raises(RealrlError, match="no text, number or list"):
        sandbox.read("abort", path, {"keys": object()})


def test_arrays_of_every_kind_come_through() -> None:
    ours, theirs = (sandbox._Line(end) for end in socket.socketpair())
    odd = sample(1, 3, images=False)
    odd.extra.update(scalar=np.array(1.5), text=np.array("<xml/> é"), none=np.zeros((0, 3), np.int64), big=np.arange(3, dtype=">i4"),
                     turned=np.arange(12).reshape(3, 4).T)
    odd.seed = np.int64(2**62)  # type: ignore[assignment]
    ours.send(*sandbox._packed(odd))
    came = sandbox._unpacked(theirs.receive())
    assert_same(came, odd)
    assert came.extra.keys() == odd.extra.keys() and str(came.extra["text"]) == "<xml/> é"
    for name, x in odd.extra.items():
        np.testing.assert_array_equal(came.extra[name], x)
        assert came.extra[name].dtype == x.dtype and came.extra[name].shape == x.shape and came.extra[name].flags.writeable
    for line in (ours, theirs):
        line.close()


def test_a_server_that_was_killed_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SERVER", sandbox.Server())
    formats.write("robomimic", [sample()], tmp_path / "x.hdf5", fps=10)
    process: Any = sandbox.SERVER._process
    process.kill()
    process.wait()
    assert len(list(formats.read(tmp_path / "x.hdf5").episodes)) == 1
    monkeypatch.setattr(sandbox, "SERVER", sandbox.Server("raise SystemExit(3)"))
    with pytest.raises(RuntimeError, match=r"did not start \(code 3\)"):
        formats.read(tmp_path / "x.hdf5")


def test_a_writer_that_dies_leaves_nothing(path: Path) -> None:
    with pytest.raises(RealrlError, match="free space") as caught:
        sandbox.write("abort", itertools.repeat(sample()), path.with_name("new"), {})
    assert "\n" not in str(caught.value) and [p.name for p in path.parent.iterdir()] == ["a.bin"]
