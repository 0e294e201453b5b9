"""What the fuzz tests share: what a user would do with a file of each kind (`samples`), and a process of its own that does it.

Damaged files go to a child process, because the libraries below us are written in C: a crash there must be a finding, not the
end of the tests. The child watches itself: opening a file outside the folder it was given, starting a process, connecting
somewhere or letting the standard library unpickle anything is reported like a crash.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import platform
import resource
import select
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

FOLDER = Path(__file__).resolve().parent
PATIENCE = 30.0  # seconds for one small file; a healthy read takes some hundredths
MEMORY = 3 * 2**30  # bytes of address space beyond what the imports took
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "socket.getaddrinfo",
             "pickle.find_class", "shutil.rmtree")
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
WATCHED = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
import fuzzing
from realrl.data import formats
fuzzing.watch_readers()
formats.sandbox.serve(formats.FORMATS, int(sys.argv[2]))
"""  # the process of ours that opens foreign files, watched like the child


# ---- readers: what a user would do with a file of unknown origin


def read_dataset(path: Path) -> None:
    """Open, read, check and describe; when the data cannot be read, `check` must still say so without raising."""
    from realrl.data.formats import open_dataset
    from realrl.data.tools.check import check, describe
    from realrl.types import RealrlError

    check(path, decode=True)
    for step in (lambda: describe(path), lambda: open_dataset(path).read()):
        with contextlib.suppress(RealrlError):
            step()


def read_foreign(path: Path) -> None:
    from realrl.data import formats

    list(formats.read(path).episodes)


def read_video(path: Path) -> None:
    from realrl.data import video
    from realrl.types import RealrlError

    for step in (lambda: video.decode(path, [0.0, 0.1]), lambda: list(video.frames(path)), lambda: video.times(path),
                 lambda: video.probe(path), lambda: list(video.packets(path))):
        with contextlib.suppress(RealrlError):
            step()


def read_legacy(path: Path) -> None:
    """Open, read with and without pictures, and ask where pictures lie, which does not read the tables."""
    from realrl.data.formats import open_dataset
    from realrl.data.formats.lerobot_v2 import Legacy
    from realrl.types import RealrlError

    data = open_dataset(path)
    for images in (True, False):
        with contextlib.suppress(RealrlError):
            data.read(images=images)
    if isinstance(data, Legacy):
        _ = data.info, data.frames, data.fps, data.tasks
        for episode, camera in ((e, c) for e in range(len(data)) for c in data.cameras):
            with contextlib.suppress(RealrlError):
                data.pictures(episode, camera)


def read_side(path: Path) -> None:
    """The newest versions, and an edit that keeps all episodes where they are, which reads every version."""
    from realrl.data import side
    from realrl.data.store import Store
    from realrl.types import RealrlError

    for name in side.names(path):
        with contextlib.suppress(RealrlError):
            side.read(path, name)
    length = Store.open(path).rows["length"].to_pylist()
    side.carry([path], [(0, e, 0, n) for e, n in enumerate(length)], path)


def read_recording(path: Path) -> None:
    """What opening a dataset for recording does: bring what was left to its end. Nothing may vanish without a word, what the dataset
    had must be there afterwards, and doing it again must add nothing."""
    from realrl.data.record import recovery
    from realrl.data.store import Store

    store = Store.open(path)
    before, folders = len(store), {p.name for p in (path / "recording").glob("0*") if p.is_dir()}
    told: dict[str, str] = {}
    thrown: set[str] = set()
    for _ in range(2):
        thrown |= _settled(store, told)
        if len(store) - before != sum(kind in ("committed", "recovered") for kind in told.values()):
            raise AssertionError(f"{len(store) - before} episodes were added, told was {told}")
    left = {p.name for p in (path / "recording").glob("0*")}
    silent = folders - told.keys() - (thrown - left)
    if silent:
        raise AssertionError(f"nothing was said of {silent}")
    if len(Store.open(path).read(images=False)) != len(store):
        raise AssertionError("the dataset is not readable any more")
    if any(kind == "refused" and name not in left for name, kind in told.items()):
        raise AssertionError(f"a folder that was refused is gone: {told}")
    with recovery.alone(path, 1.0):
        recovery.owner(path / "recording")


def _settled(store: Any, told: dict[str, str]) -> set[str]:
    """Settle, and put what was told of each folder into `told`; gives those that were thrown away by whoever recorded them."""
    from realrl.data.record import recovery
    from realrl.types import RealrlError

    thrown: set[str] = set()

    def tell(kind: str, entries: dict[str, Any]) -> None:
        if "\n" in entries.get("text", ""):
            raise AssertionError(f"several lines: {entries}")
        told[entries["folder"]] = kind

    def seen(folder: Path, found: Any) -> bool:
        if found is not None and found.discarded:
            thrown.add(folder.name)
        return True
    try:
        recovery.settle(store, tell, min_frames=1, only=seen)
    except RealrlError as error:
        if isinstance(error.__cause__, OSError):
            raise AssertionError(f"taken for a full disk, so tried again without end: {error}") from error
        raise
    return thrown


READERS: dict[str, Callable[[Path], None]] = {"dataset": read_dataset, "foreign": read_foreign, "video": read_video, "legacy": read_legacy,
                                              "side": read_side, "recording": read_recording}


# ---- the child


class Child:
    """A process that reads files; it is replaced when it dies or hangs."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, arguments: list[str]) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, *arguments], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)

    def read(self, reader: str, path: Path, inside: Path) -> str:
        """"read", "refused", or what went wrong: an exception with its traceback, an escape, a crash, a hang."""
        if self.process is None or self.process.poll() is not None:
            self.start([str(Path(__file__).resolve())])
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([reader, str(path), str(inside)]).encode() + b"\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            self.close()
            return f"hang: no answer within {PATIENCE:g} s"
        answer = self.process.stdout.readline()
        return str(json.loads(answer)) if answer else f"crash: the process ended with code {self.process.wait()}"

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


class Escape(BaseException):
    """Nothing that reads files catches it."""


class _Watch:
    """Notes every file that Python opens outside `inside`, and every forbidden event. raising: raise `Escape` at once, too."""

    def __init__(self, raising: bool = False) -> None:
        self.inside: Path | None = None
        self.raising = raising
        self.seen: list[str] = []
        # libraries load lazily: their own files may be read, never written
        places = {sys.prefix, sys.base_prefix, *sys.path, "/usr", "/lib", "/proc", "/sys", "/dev"}
        self.libraries = tuple(str(Path(p).resolve()) for p in places if p and Path(p).resolve() != Path("/"))
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.inside is None:
            return
        ours = (event == "subprocess.Popen" and WATCHED in args[1],
                event == "shutil.rmtree" and Path(args[0]).name.startswith("done-") and self._within(args[0]))  # a settled recording
        changed = [x for x in args[:2] if isinstance(x, (str, bytes, os.PathLike))] if event in CHANGES else []
        if event in ("os.remove", "os.rmdir") and args[1] != -1:  # a name in a folder that is open, as rmtree does
            changed = []
        if (event in FORBIDDEN and not any(ours)) or not all(map(self._within, changed)):
            self.seen.append(f"{event} {str(args)[:200]}")
        if event == "open" and isinstance(args[0], (str, bytes)):
            name = os.path.realpath(os.fsdecode(args[0]))
            writes = bool((args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) if isinstance(args[2], int) else False
            if not writes and not os.path.isabs(os.fsdecode(args[0])):  # likewise; nothing of ours opens a relative name
                return
            if name != os.devnull and not name.startswith(str(self.inside)) and (writes or not name.startswith(self.libraries)):
                self.seen.append(f"open {name} {args[1]}")
        if self.seen and self.raising:
            self.inside = None
            raise Escape(self.seen[-1])

    def _within(self, path: Any) -> bool:
        """Whether what would be changed lies inside; its folder's links are followed, its own is what is renamed or removed."""
        folder, name = os.path.split(os.path.abspath(os.fsdecode(path)))
        return self.inside is not None and Path(os.path.realpath(folder), name).is_relative_to(self.inside)


def watch_readers() -> None:
    """In the process that forks the readers of foreign files: what escapes from one of them is told like a bug of it."""
    from realrl.data import formats

    watch, plain = _Watch(raising=True), formats.sandbox._read
    formats.FORMATS["escape"] = SimpleNamespace(read=lambda path: Path("/etc/hostname").read_text())  # type: ignore[assignment]

    def read(module: Any, line: Any, asked: dict[str, Any]) -> None:
        watch.inside = Path(asked["path"]).resolve().parent
        plain(module, line, asked)
    formats.sandbox._read = read


def _serve() -> None:
    from realrl.data.formats import sandbox
    from realrl.types import RealrlError

    sandbox.SERVER = sandbox.Server(WATCHED)

    ours = (f"realrl.data.{name}" for name in ("tools.check", "store", "formats", "video", "side", "record.recovery"))
    for name in ("PIL.Image", *ours):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)  # libraries look around while they load; that is not what is watched
    platform.processor()

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries may print
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if Path("/proc/self/statm").exists() else 2**32
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.fsync = lambda fd: None  # power cuts are other tests' business, and waiting for disks takes most of the time
    watch = _Watch()
    for line in sys.stdin:
        reader, path, inside = json.loads(line)
        watch.inside, watch.seen = Path(inside).resolve(), []
        try:
            READERS[reader](Path(path))
            answer = "read"
        except RealrlError as error:
            answer = "refused" if "\n" not in str(error) else f"a refusal of several lines: {error}"
        except BaseException:  # whatever it is, it is the finding
            answer = "exception: " + traceback.format_exc()
        watch.inside = None
        answers.write(json.dumps("escape: " + "; ".join(watch.seen) if watch.seen else answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
