"""Other people's files are opened in a process of their own, never in this one.

The libraries that read them are written in C and trust what they read: damaged or hostile files end the interpreter, turn in
circles, or ask for all memory there is. So a server is started once that has loaded the libraries and touches no file. For each
dataset it forks a reader with little room: memory and time are limited by the kernel, no file may be written, no process started,
no connection made, and nothing unpickled into code. The reader sends its episodes one by one, as JSON and the bytes of arrays,
so that nothing it says can run here. If it dies, that is one RealrlError.

Writing goes the same way, with no limits but the caller's own: on a full disk the library behind h5py ends its process.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import math
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from realrl.data.formats import common
from realrl.data.formats.common import Imported
from realrl.types import Array, Episode, RealrlError

MEMORY = max(2**31, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)  # bytes for a reader, beyond its libraries
SECONDS = 30.0  # of processor time until the next episode must be there; as much again for every `BULK` bytes of the dataset
BULK = 2**27
PATIENCE = 5  # times as long by the clock: disks may be slow
MAX_HEADER = 2**28
PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from realrl.data import formats
formats.sandbox.serve(formats.FORMATS, int(sys.argv[2]))
"""
REFUSED = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen", "socket.connect", "socket.bind",
           "socket.getaddrinfo", "pickle.find_class", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink",
           "os.truncate", "os.chmod", "os.kill")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def read(name: str, path: Path, options: Mapping[str, Any]) -> Imported:
    """What the format `name` reads at `path`, read elsewhere. Raises RealrlError, also while the episodes come."""
    line = SERVER.ask("read", name, path, options, seconds=SECONDS)
    found = Imported(**line.answer(_died(path))["imported"], episodes=iter(()))
    found.episodes = _episodes(line, path, found.notes)
    return found


def _episodes(line: _Line, path: Path, notes: list[str]) -> Iterator[Episode]:
    """They, and then the notes that only reading them brought up."""
    with contextlib.closing(line):
        while "episode" in (told := line.answer(_died(path))):
            yield _unpacked(told)
        notes += told["notes"]


def write(name: str, episodes: Iterable[Episode], path: Path, options: Mapping[str, Any]) -> None:
    """Episodes in the format `name`, written elsewhere. Raises RealrlError, and what `episodes` raises; then nothing is left behind."""
    ended = f"{path} could not be written, the process that writes it ended; free space or mend the permissions"
    with contextlib.closing(SERVER.ask("write", name, path, options, size=resource.getrlimit(resource.RLIMIT_FSIZE)[0])) as line:
        pid = line.answer(ended)["pid"]
        try:
            with contextlib.suppress(ConnectionError):  # it has said why
                for episode in episodes:
                    line.send(*_packed(episode))
                line.send({"end": True})
            line.answer(ended)
        finally:
            line.drain()
            for left in ("tmp", "folder"):
                common.remove(path.with_name(f".{path.name}.{pid}.{left}"))


def _died(path: Path) -> str:
    return (f"{path} is so damaged that the library below fails on it: it crashed, took too long, or more than {MEMORY / 1e9:.0f} GB of "
            f"memory; {common.AGAIN}, or make it smaller")


# ---- what is said: a line of JSON, then the arrays it names


class _Line:
    """A connection between this process and one that reads or writes."""

    def __init__(self, end: socket.socket) -> None:
        self._socket, self._file = end, io.BufferedReader(socket.SocketIO(end, "r"), 2**16)

    def send(self, told: Mapping[str, Any], arrays: Iterable[Array] = ()) -> None:
        """Raises ConnectionError when the other side is gone, TypeError for what is no plain value."""
        self._socket.sendall(json.dumps(told, default=_plain).encode() + b"\n")
        for x in arrays:
            self._socket.sendall(np.asarray(x, order="C").reshape(-1).view(np.uint8).data)

    def receive(self) -> dict[str, Any]:
        """What came, its arrays in the entry "arrays". Raises ValueError, KeyError or TypeError for nonsense, EOFError at the end."""
        told: dict[str, Any] = json.loads(self._file.readline(MAX_HEADER) or "0")
        if not told:
            raise EOFError
        told["arrays"] = {(group, key): _array(self._file, dtype, shape) for group, key, dtype, shape in told.get("arrays", ())}
        return told

    def answer(self, died: str) -> dict[str, Any]:
        """`receive`, where an answer may also be a complaint. Raises RealrlError, with the text `died` when none came."""
        try:
            told = self.receive()
        except (EOFError, ConnectionError, ValueError, KeyError, TypeError, MemoryError, RecursionError) as error:
            raise RealrlError(died) from error
        if "bug" in told:
            raise RuntimeError(told["bug"])
        if "error" in told:
            raise RealrlError(told["error"])
        return told

    def drain(self) -> None:
        """Say that no more comes, and wait until the other side has gone."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            while self._file.read1():
                pass

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no plain value")


def _array(file: io.BufferedReader[Any], dtype: str, shape: list[int]) -> Array:
    kind = np.dtype(dtype)
    if kind.kind not in "biufU" or math.prod(shape) * kind.itemsize > MEMORY:
        raise ValueError(f"an array of {dtype}{shape}")
    x = np.empty(shape, kind)
    rest = x.reshape(-1).view(np.uint8).data
    while rest:
        if not (got := file.readinto(rest)):
            raise EOFError
        rest = rest[got:]
    return x


def _packed(one: Episode) -> tuple[dict[str, Any], list[Array]]:
    arrays = {("", name): getattr(one, name) for name in ("action", *common.COLUMNS)}
    arrays |= {(group, key): np.asarray(x) for group in ("obs", "extra") for key, x in getattr(one, group).items()}
    return ({"episode": common.facts(one), "arrays": [[*name, x.dtype.str, list(x.shape)] for name, x in arrays.items()]},
            list(arrays.values()))


def _unpacked(told: dict[str, Any]) -> Episode:
    groups: dict[str, dict[str, Any]] = {"": {}, "obs": {}, "extra": {}}
    for (group, key), x in told["arrays"].items():
        groups[group][key] = x
    return Episode(**told["episode"], **groups[""], obs=groups["obs"], extra=groups["extra"])


# ---- the server


class Server:
    """The process that has loaded the libraries; it is started when it is first needed, and ends with this one."""

    def __init__(self, program: str = PROGRAM) -> None:
        self._program, self._owner, self._lock = program, 0, threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def ask(self, what: str, name: str, path: Path, options: Mapping[str, Any], **limits: float) -> _Line:
        """A connection to a new process that does it. Raises RealrlError for an option that is no plain value."""
        ours, theirs = socket.socketpair()
        line = _Line(ours)
        with theirs, self._lock:
            socket.send_fds(self._running(), [b"\n"], [theirs.fileno()])
        where = None
        with contextlib.suppress(OSError):
            where = os.getcwd()
        try:
            line.send({"do": what, "format": name, "path": str(path), "options": options, "cwd": where, **limits})
        except (TypeError, ValueError) as error:
            line.close()
            raise RealrlError(f"an option of {name} is no text, number or list of them ({common.line(error)})") from error
        return line

    def _running(self) -> socket.socket:
        if self._control is None or self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self._control, theirs = socket.socketpair()
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-c", self._program, json.dumps([p for p in sys.path if p]), str(theirs.fileno())],
                    pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    env=os.environ | {"OPENBLAS_NUM_THREADS": "1"}, start_new_session=True)  # one thread, or it could not fork
            self._owner = os.getpid()
            if self._control.recv(1) != b"+":
                raise RuntimeError(f"the process that opens foreign files did not start (code {self._process.wait()})")
        return self._control


SERVER = Server()


def serve(formats: Mapping[str, ModuleType], control: int) -> None:
    """Fork a process for each connection that comes, until there is nobody left to send one."""
    with contextlib.suppress(OSError):  # where the machine has less memory to give than it says, readers go first
        Path("/proc/self/oom_score_adj").write_text("1000")
    sys.dont_write_bytecode = True
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    for module in formats.values():
        with contextlib.suppress(RealrlError):
            getattr(module, "library", lambda: None)()
    gc.freeze()  # or each reader would copy all of it when it collects garbage
    with socket.socket(fileno=control) as door:
        door.sendall(b"+")
        while fds := socket.recv_fds(door, 1, 1)[1]:
            if not os.fork():
                door.close()
                _serve_one(formats, _Line(socket.socket(fileno=fds[0])))
            os.close(fds[0])


def _serve_one(formats: Mapping[str, ModuleType], line: _Line) -> None:
    """Do what is asked and end the process, before a library can do so in its own way."""
    path = "the file"
    try:
        asked = line.receive()
        path = asked["path"]
        if asked["cwd"]:
            os.chdir(asked["cwd"])
        (_read if asked["do"] == "read" else _write)(formats[asked["format"]], line, asked)
    except (ConnectionError, EOFError):  # nobody listens any more
        pass
    except RealrlError as error:
        _last(line, {"error": str(error)})
    except MemoryError:
        _last(line, {"error": _died(Path(path))})
    except BaseException:
        _last(line, {"bug": f"in the process that was to read {path}:\n{traceback.format_exc()}"})
    finally:
        os._exit(0)


def _last(line: _Line, told: dict[str, Any]) -> None:
    with contextlib.suppress(ConnectionError):
        line.send(told)


def _read(module: ModuleType, line: _Line, asked: dict[str, Any]) -> None:
    path = Path(asked["path"])
    seconds = asked["seconds"] * (1 + _size(path) / BULK)
    _limit(resource.RLIMIT_AS, _used() + MEMORY)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_CORE, 0)
    sys.addaudithook(_fence)

    def deadline() -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime + seconds))
        signal.alarm(math.ceil(PATIENCE * seconds))

    def say(told: dict[str, Any], arrays: Iterable[Array] = ()) -> None:
        signal.alarm(0)  # whoever listens may take its time
        line.send(told, arrays)
        deadline()

    deadline()
    found: Imported = module.read(path, **asked["options"])
    about = {k: v for k, v in vars(found).items() if k != "episodes"}
    known = len(found.notes)
    say({"imported": about})
    for episode in found.episodes:
        say(*_packed(episode))
    say({"end": True, "notes": found.notes[known:]})


def _write(module: ModuleType, line: _Line, asked: dict[str, Any]) -> None:
    _limit(resource.RLIMIT_FSIZE, asked["size"])
    line.send({"pid": os.getpid()})

    def episodes() -> Iterator[Episode]:
        while "episode" in (told := line.receive()):
            yield _unpacked(told)
    module.write(episodes(), Path(asked["path"]), **asked["options"])
    line.send({"end": True})


def _fence(event: str, args: tuple[Any, ...]) -> None:
    """What a reader has no business with. Raises PermissionError."""
    writes = event == "open" and isinstance(args[2], int) and args[2] & WRITING and args[0] != os.devnull
    if event in REFUSED or writes:
        raise PermissionError(f"{event} while a foreign file is read")


def _limit(kind: int, most: int) -> None:
    """Lower a limit of this process, where the system has it."""
    hard = resource.getrlimit(kind)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _used() -> int:
    """Bytes of address space in use."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 2**32


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    sizes = [path, *(Path(folder, name) for folder, _, names in os.walk(path) for name in names)]
    return sum(p.lstat().st_size for p in sizes if os.path.lexists(p))
