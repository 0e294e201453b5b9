"""What the fuzz tests share: small valid files of every kind, ways to damage them, and a reader in a process of its own.

Damaged files go to a child process, because the libraries below us are written in C: a crash there must be a finding, not the
end of the tests. The child watches itself: opening a file outside the folder it was given, starting a process, connecting
somewhere or letting the standard library unpickle anything is reported like a crash.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pickle
import platform
import resource
import select
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent
PATIENCE = 30.0  # seconds for one small file; a healthy read takes some hundredths
MEMORY = 3 * 2**30  # bytes of address space beyond what the imports took
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "socket.getaddrinfo",
             "pickle.find_class", "shutil.rmtree")
OWN_PROGRAM = "hdf5_probe.py"  # the process of ours that looks at HDF5 files first, because their library crashes


# ---- samples


def episodes(n: int = 2, steps: int = 4, camera: str | None = "images.top") -> list[Any]:
    """Tiny episodes with a state and, where wanted, a camera."""
    from realrl.types import Episode

    rng, out = np.random.default_rng(0), []
    for number in range(n):
        obs = {"state": rng.normal(size=(steps + 1, 3)).astype(np.float32)}
        if camera:
            obs[camera] = np.full((steps + 1, 32, 32, 3), 40 * (number + 1), np.uint8)
        action = rng.uniform(-1, 1, (steps, 2)).astype(np.float32)
        out.append(Episode(obs=obs, action=action, proposed=action.copy(), source=np.ones(steps, np.uint8), success=np.zeros(steps, bool),
                           reward=np.zeros(steps, np.float32), time=np.arange(steps) / 10, starts_plan=np.ones(steps, bool),
                           terminated=False, truncated=True, task="pick", policy="human", seed=number))
    return out


def dataset(root: Path) -> Path:
    from realrl.data.store import Store

    store = Store.create(root, task="pick", fps=10, codec="h264")
    store.append(episodes())
    return root


def robomimic(root: Path) -> Path:
    from realrl.data import formats

    formats.write("robomimic", episodes(), root / "a.hdf5", fps=10)
    return root / "a.hdf5"


def zarr_folder(root: Path) -> Path:
    from realrl.data import formats

    formats.write("diffusion_policy", episodes(), root / "a.zarr", fps=10)
    return root / "a.zarr"


def zarr_zip(root: Path) -> Path:
    from realrl.data import formats

    formats.write("diffusion_policy", episodes(), root / "a.zarr.zip", fps=10)
    return root / "a.zarr.zip"


def minari(root: Path) -> Path:
    from realrl.data import formats

    formats.write("minari", episodes(camera=None), root / "a-v0", fps=10)
    return root / "a-v0"


def dapg(root: Path) -> Path:
    one = {"observations": np.ones((4, 3)), "actions": np.ones((4, 2)), "rewards": np.zeros(4), "init_state_dict": {"qpos": np.ones(3)}}
    (root / "a.pickle").write_bytes(pickle.dumps([one, dict(one)], protocol=3))
    return root / "a.pickle"


def hil_serl(root: Path) -> Path:
    obs = [{"state": np.full((1, 3), i, np.float32), "wrist": np.full((1, 8, 8, 3), i, np.uint8)} for i in range(5)]
    steps = [{"observations": obs[i], "actions": np.zeros(2), "next_observations": obs[i + 1], "rewards": np.float64(i == 3), "masks": 1.0,
              "dones": i == 3, "infos": {"succeed": i == 3, "intervene_action": np.zeros(2), "grasp_penalty": 0.0}} for i in range(4)]
    (root / "a.pkl").write_bytes(pickle.dumps(steps, protocol=4))
    return root / "a.pkl"


def rlds(root: Path) -> Path:
    sys.path.insert(0, str(FOLDER / "formats"))
    import test_rlds

    return test_rlds.folder(root / "cups", test_rlds.columns(), test_rlds.columns())


def arrow(root: Path) -> Path:
    sys.path.insert(0, str(FOLDER / "formats"))
    import test_arrow

    return test_arrow.folder(root / "push")


# ---- readers: what a user would do with a file of unknown origin


def read_dataset(path: Path) -> None:
    """Open, read, check and describe; when the data cannot be read, `check` must still say so without raising."""
    from realrl.data.check import check, describe
    from realrl.data.store import open_dataset
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


READERS: dict[str, Callable[[Path], None]] = {"dataset": read_dataset, "foreign": read_foreign, "video": read_video}


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


class _Watch:
    """Notes every file that Python opens outside `inside`, and every forbidden event."""

    def __init__(self) -> None:
        self.inside: Path | None = None
        self.seen: list[str] = []
        # libraries load lazily: their own files may be read, never written
        places = {sys.prefix, sys.base_prefix, *sys.path, "/usr", "/lib", "/proc", "/sys", "/dev"}
        self.libraries = tuple(str(Path(p).resolve()) for p in places if p and Path(p).resolve() != Path("/"))
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.inside is None:
            return
        if event in FORBIDDEN and not (event == "subprocess.Popen" and OWN_PROGRAM in str(args[1])):
            self.seen.append(f"{event} {str(args)[:200]}")
        if event == "open" and isinstance(args[0], (str, bytes)):
            name = os.path.realpath(os.fsdecode(args[0]))
            writes = bool((args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) if isinstance(args[2], int) else False
            if name != os.devnull and not name.startswith(str(self.inside)) and (writes or not name.startswith(self.libraries)):
                self.seen.append(f"open {name} {args[1]}")


def _serve() -> None:
    from realrl.types import RealrlError

    ours = (f"realrl.data.{name}" for name in ("check", "store", "formats", "video"))
    for name in ("h5py", "zarr", "minari", "PIL.Image", *ours):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)  # libraries look around while they load; that is not what is watched
    platform.processor()

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries may print
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if Path("/proc/self/statm").exists() else 2**32
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
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
