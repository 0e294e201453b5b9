"""A run's directory: resolved configuration, metrics, atomic checkpoints, resume.

    runs/main/config.yaml      what was asked for, every field
              meta.json        commit, versions, command line, host; one more entry under `resumed` for every resume
              metrics.jsonl    one line a log call; the truth that curves and reports are drawn from
              tb/<stage>/      the same for TensorBoard
              checkpoints/<name>/state-000007.json + tensors-000007.safetensors

Noise comes from `derive(seed, stage, step)`, never from a generator's running state, so a checkpoint needs no RNG states and a resumed
run draws what the uninterrupted one would have drawn.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import operator
import os
import platform
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, SupportsFloat

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from realrl import config
from realrl.files import sync, write_bytes, write_json, write_text
from realrl.types import RealrlError, Stateful

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Part = Stateful | Mapping[str, Any]
FORMAT: Final = 1  # of checkpoints; raise it when old ones can no longer be read
PACKAGES: Final = ("realrl", "torch", "numpy", "mujoco", "gymnasium", "metaworld")


# ---- trees: state dicts as JSON and named tensors -----------------------------------------------------------------------------


def encode(tree: Any, tensors: MutableMapping[str, Tensor], name: str = "") -> Any:
    """`tree` as plain JSON; tensors and arrays go into `tensors` under their path ("policy/net/0/weight") as copies on the CPU.

    What JSON lacks is tagged: tuples, dicts with other than plain string keys, infinities and NaN. Floats keep every bit and ints may
    have any size. Raises RealrlError, naming the path, on anything else (no pickle).
    """
    if tree is None or isinstance(tree, bool | str):
        return tree
    if isinstance(tree, np.generic):
        return {"$scalar": _put(torch.from_numpy(np.array(tree)), tensors, name)}
    if isinstance(tree, int):
        return int(tree)
    if isinstance(tree, float):
        return tree if math.isfinite(tree) else {"$float": str(tree)}
    if isinstance(tree, Tensor):
        return {"$tensor": _put(tree, tensors, name)}
    if isinstance(tree, np.ndarray) and tree.dtype.kind in "biufc":
        return {"$array": _put(torch.from_numpy(np.array(tree, tree.dtype.newbyteorder("="), order="C")), tensors, name)}
    if isinstance(tree, list | tuple):
        items = [encode(v, tensors, f"{name}/{i}") for i, v in enumerate(tree)]
        return items if isinstance(tree, list) else {"$tuple": items}
    if isinstance(tree, Mapping):
        pairs = [(k, encode(v, tensors, f"{name}/{k}" if name else str(k))) for k, v in tree.items()]
        if all(isinstance(k, str) and not k.startswith("$") for k, _ in pairs):
            return dict(pairs)
        return {"$dict": [[encode(k, tensors, f"{name}/key"), v] for k, v in pairs]}
    raise RealrlError(f"a checkpoint cannot hold a {type(tree).__name__} (at '{name}'); give numbers, strings, lists, dicts or arrays")


def _put(tensor: Tensor, tensors: MutableMapping[str, Tensor], name: str) -> str:
    """Store a copy (shared storage and device aside) under `name`, or under a name near it if that is taken; the name used."""
    unique, n = name, 1
    while unique in tensors:
        unique, n = f"{name}~{n}", n + 1
    tensors[unique] = tensor.detach().to("cpu", copy=True).contiguous()
    return unique


def decode(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `encode`. Raises KeyError when a tensor is absent."""
    if isinstance(tree, list):
        return [decode(v, tensors) for v in tree]
    if not isinstance(tree, dict):
        return tree
    if len(tree) == 1:
        tag, value = next(iter(tree.items()))
        if tag in _DECODERS:
            return _DECODERS[tag](value, tensors)
    return {k: decode(v, tensors) for k, v in tree.items()}


_DECODERS: Final[dict[str, Callable[[Any, Mapping[str, Tensor]], Any]]] = {
    "$tensor": lambda value, tensors: tensors[value],
    "$array": lambda value, tensors: tensors[value].numpy(),
    "$scalar": lambda value, tensors: tensors[value].numpy()[()],
    "$float": lambda value, tensors: float(value),
    "$tuple": lambda value, tensors: tuple(decode(v, tensors) for v in value),
    "$dict": lambda value, tensors: {decode(k, tensors): decode(v, tensors) for k, v in value},
}


# ---- checkpoint folders ---------------------------------------------------------------------------------------------------------


def save_parts(path: str | os.PathLike[str], step: int, parts: Mapping[str, Part], *, keep: int = 1) -> None:
    """Write a new version of the checkpoint in the folder `path`, then remove all but the last `keep`.

    The tensors come first and state-<version>.json last, each by temporary file, fsync and rename: a version exists from the moment
    its JSON does, so at every moment either the old version or the new one is whole. Other files in the folder are left alone.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    trees = {name: encode(part if isinstance(part, Mapping) else part.state_dict(), tensors, name) for name, part in parts.items()}
    data = safetensors.torch.save(tensors)
    old = _versions(folder)
    version = max(old, default=0) + 1
    state = {"format": FORMAT, "step": operator.index(step), "crc32": zlib.crc32(data), "parts": trees}
    write_bytes(folder / f"tensors-{version:06d}.safetensors", data)
    write_text(folder / f"state-{version:06d}.json", json.dumps(state, allow_nan=False))
    _prune(folder, set(([*old, version])[-max(keep, 1):]))


def _versions(folder: Path) -> list[int]:
    """The versions a checkpoint folder holds, oldest first."""
    names = [p.stem.removeprefix("state-") for p in folder.glob("state-*.json")]
    return sorted(int(n) for n in names if n.isdecimal())


def _prune(folder: Path, keep: set[int]) -> None:
    """Remove old versions, each JSON before its tensors, and what killed processes left behind."""
    for pattern in (".state-*.tmp", ".tensors-*.tmp", "state-*.json", "tensors-*.safetensors"):
        for file in folder.glob(pattern):
            number = file.stem.partition("-")[2]
            if not (number.isdecimal() and int(number) in keep):
                file.unlink(missing_ok=True)
    sync(folder)


def read_parts(path: str | os.PathLike[str]) -> tuple[int, dict[str, Any]]:
    """(step, the state of every part) of the newest version in a checkpoint folder; tensors on the CPU.

    Raises:
        RealrlError: no checkpoint there, a damaged or missing file, or one of another format; names the file and the mend.
    """
    folder = Path(path)
    while True:
        versions = _versions(folder)
        if not versions:
            raise RealrlError(f"no checkpoint in {folder}; give a folder that holds state-*.json and tensors-*.safetensors")
        try:
            return _read_version(folder, versions[-1])
        except FileNotFoundError as error:  # either gone for good, or a running job has just written the next version
            if _versions(folder)[-1:] == versions[-1:]:
                raise RealrlError(f"{error.filename} is missing{_mend(folder, versions[-1])}") from error


def _read_version(folder: Path, version: int) -> tuple[int, dict[str, Any]]:
    state_file, tensor_file = folder / f"state-{version:06d}.json", folder / f"tensors-{version:06d}.safetensors"
    try:
        state = json.loads(state_file.read_text(encoding="utf-8"))
        layout, step, crc, trees = state["format"], state["step"], state.get("crc32"), state["parts"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RealrlError(f"{state_file} is damaged{_mend(folder, version)}") from error
    if layout != FORMAT:
        raise RealrlError(f"{state_file} has checkpoint format {layout}, this realrl reads {FORMAT}; load it with the realrl that wrote it")
    data = tensor_file.read_bytes()
    if zlib.crc32(data) != crc:
        raise RealrlError(f"{tensor_file} is damaged or truncated{_mend(folder, version)}")
    try:
        tensors = safetensors.torch.load(data)
        return step, {name: decode(tree, tensors) for name, tree in trees.items()}
    except (safetensors.SafetensorError, KeyError) as error:
        raise RealrlError(f"{tensor_file} does not hold what {state_file.name} names{_mend(folder, version)}") from error


def _mend(folder: Path, version: int) -> str:
    others = _versions(folder)[:-1]
    if others:
        return f"; delete the two files numbered {version:06d} to fall back on version {others[-1]:06d}"
    return f"; restore it from a backup, or delete the folder {folder} to redo that stage"


def restore(states: Mapping[str, Any], parts: Mapping[str, Any], source: str | os.PathLike[str]) -> None:
    """Load `states`, as `read_parts` gives them, into objects; plain dicts are replaced in place. `source` names the file in errors.

    Raises:
        RealrlError: a part the checkpoint does not hold, or whose shapes or names do not fit.
    """
    for name, part in parts.items():
        if name not in states:
            raise RealrlError(f"{source}: the checkpoint has no part '{name}'{config.nearest(name, states)}")
        if isinstance(part, MutableMapping):
            part.clear()
            part.update(states[name])
            continue
        try:
            part.load_state_dict(states[name])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            why = " ".join(str(error).split())[:400]
            raise RealrlError(f"{source}: part '{name}' does not fit ({why}); build it with the config.yaml it was saved with") from error


# ---- the run --------------------------------------------------------------------------------------------------------------------


class Run:
    """A run's directory, open for writing. Use `Run.start` for a job; `Run(dir, resume=True)` to append to an existing one.

    keep: how many versions of each checkpoint stay on disk.
    """

    def __init__(self, dir: str | os.PathLike[str], *, resume: bool = False, keep: int = 1) -> None:
        self.dir, self.keep = Path(dir), keep
        self._metrics = self.dir / "metrics.jsonl"
        if not resume and _occupied(self.dir):
            raise RealrlError(f"the run directory {self.dir} is not empty; continue it with --resume or name another one")
        self.dir.mkdir(parents=True, exist_ok=True)
        _cut_half_line(self._metrics)
        self._file: BinaryIO = open(self._metrics, "ab")  # noqa: SIM115  # open as long as the run is
        self._boards: dict[str, SummaryWriter] = {}
        self._warned: set[str] = set()

    @classmethod
    def start(cls, dir: str | os.PathLike[str], cfg: Any, resume: bool = False, *, ignore: Sequence[str] = (), keep: int = 1) -> Run:
        """Open a run for the configuration `cfg`. With `resume`, continues what is there and starts afresh where nothing is.

        `ignore` names fields (dotted; a group names all in it) that a resumed run may change.

        Raises:
            RealrlError: the directory holds something and `resume` is false; or the saved configuration differs.
        """
        folder, saved = Path(dir), Path(dir) / "config.yaml"
        again = _occupied(folder)
        if again and resume:
            if not saved.exists():
                raise RealrlError(f"{folder} holds files but no config.yaml, so it is not a run to resume; name another directory")
            changed = config.differences(config.read(saved), config.to_dict(cfg), ignore=ignore)
            if changed:
                raise RealrlError(f"cannot resume {folder}: its config.yaml differs in {'; '.join(changed)}."
                                  " Repeat the original options, or name another directory")
        run = cls(folder, resume=resume, keep=keep)
        if not again:
            config.save(cfg, saved)
        run._record_start()
        return run

    def _record_start(self) -> None:
        file, entry = self.dir / "meta.json", _circumstances()
        if file.exists():
            first = json.loads(file.read_text(encoding="utf-8"))
            entry = {**first, "resumed": [*first.get("resumed", []), entry]}
        write_json(file, entry)

    def log(self, step: int, metrics: Mapping[str, SupportsFloat | None], stage: str = "") -> None:
        """Append one line to metrics.jsonl and scalars `stage/name` to TensorBoard. NaN and infinities become null, with a warning."""
        clash = {"stage", "step", "time"} & metrics.keys()
        if clash:
            raise ValueError(f"metrics may not be called {sorted(clash)}: the line has fields of these names")
        values = {name: self._finite(name, value, stage, step) for name, value in metrics.items()}
        line = {"stage": stage, "step": operator.index(step), "time": round(time.time(), 3), **values}
        self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._file.flush()
        board = self._board(stage)
        for name, value in values.items():
            if value is not None:
                board.add_scalar(f"{stage}/{name}" if stage else name, value, step)

    def _finite(self, name: str, value: SupportsFloat | None, stage: str, step: int) -> float | None:
        number = None if value is None else float(value)
        if number is None or math.isfinite(number):
            return number
        if name not in self._warned:
            self._warned.add(name)
            warnings.warn(f"metric '{name}' is {number} at step {step} of stage '{stage}'; logged as null", RuntimeWarning, stacklevel=3)
        return None

    def _board(self, stage: str, purge: int | None = None) -> SummaryWriter:
        """One TensorBoard folder a stage, so that a rewind can purge its own steps only."""
        if stage not in self._boards:
            from torch.utils.tensorboard import SummaryWriter  # a second to import
            self._boards[stage] = SummaryWriter(str(self.dir / "tb" / stage), purge_step=purge, flush_secs=5)
        return self._boards[stage]

    def logger(self, stage: str) -> Callable[[int, Mapping[str, float]], None]:
        """A function (step, metrics) that logs under a stage."""
        return lambda step, metrics: self.log(step, metrics, stage)

    def bar(self, title: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Progress with a time estimate; the body calls what it is given with the number of things done."""
        return progress_bar(title, total)

    def rewind(self, stage: str, step: int) -> None:
        """Forget what `stage` logged after `step`: call it after loading a checkpoint of that step, or curves would double."""
        lines = read_metrics(self.dir)
        kept = [line for line in lines if line["stage"] != stage or line["step"] <= step]
        if len(kept) == len(lines):
            return
        self._file.close()
        write_text(self._metrics, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = open(self._metrics, "ab")  # noqa: SIM115
        if stage in self._boards:
            self._boards.pop(stage).close()
        self._board(stage, purge=step + 1)

    def save(self, name: str, step: int, /, **parts: Part) -> None:
        """Write the checkpoint `name` (see `save_parts`). Parts: anything with a state_dict, or plain mappings."""
        save_parts(self.dir / "checkpoints" / name, step, parts, keep=self.keep)

    def load(self, name: str, /, **parts: Any) -> int | None:
        """Load the checkpoint `name` into objects (or dicts, in place); its step, or None if there is none. Raises RealrlError."""
        folder = self.dir / "checkpoints" / name
        if not _versions(folder):
            return None
        step, states = read_parts(folder)
        restore(states, parts, folder)
        return step

    def read(self, name: str) -> tuple[int, dict[str, Any]] | None:
        """(step, states) of the checkpoint `name` without loading it into anything, or None if there is none. Raises RealrlError."""
        folder = self.dir / "checkpoints" / name
        return read_parts(folder) if _versions(folder) else None

    def close(self) -> None:
        """Flush and close the metrics. Not needed for safety: every line is already with the operating system."""
        self._file.close()
        while self._boards:
            self._boards.popitem()[1].close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; in a file or a pipe a line at the beginning, every half minute and at the end. Yields a function that is told
    how many more things are done."""
    if not sys.stdout.isatty():
        with _lines(title, total) as advance:
            yield advance
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda n: progress.advance(task, n)


@contextlib.contextmanager
def _lines(title: str, total: int) -> Iterator[Callable[[int], None]]:
    began = said = time.monotonic()
    done = 0

    def advance(n: int) -> None:
        nonlocal done, said
        done, now = done + n, time.monotonic()
        if now - said >= 30 and done:
            said = now
            print(f"{title}: {done} of {total}, about {(now - began) / done * max(total - done, 0):.0f} s to go", flush=True)

    yield advance
    if total:
        print(f"{title}: {done} of {total} in {time.monotonic() - began:.0f} s", flush=True)


def device(wish: str) -> torch.device:
    """ "auto" is the GPU where there is one. Raises RealrlError for a device that is not here."""
    if wish == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=wish)
        return torch.device(wish)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise RealrlError(f"--device {wish}: torch finds no such device here; give cpu, or auto for what there is") from None


def read_metrics(dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All whole lines of a run's metrics.jsonl in order; [] when there is none. Raises RealrlError on a line that is no JSON."""
    file = Path(dir) / "metrics.jsonl"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    lines = text[:text.rfind("\n") + 1].splitlines()  # a killed process may leave half a line at the end
    out = []
    for number, line in enumerate(lines, 1):
        try:
            out.append(json.loads(line))
        except ValueError as error:
            raise RealrlError(f"{file}, line {number} is not JSON; remove that line") from error
    return out


def _cut_half_line(file: Path) -> None:
    if file.exists() and (data := file.read_bytes()) and not data.endswith(b"\n"):
        with open(file, "r+b") as f:
            f.truncate(data.rfind(b"\n") + 1)


def _occupied(folder: Path) -> bool:
    """Whether a folder holds anything but the hidden temporary files of a killed process and an empty metrics.jsonl."""
    if folder.exists() and not folder.is_dir():
        raise RealrlError(f"{folder} is a file; name a directory for the run")
    files = [p for p in folder.iterdir() if not p.name.startswith(".")] if folder.exists() else []
    return any(p.name != "metrics.jsonl" or p.stat().st_size for p in files)


def _circumstances() -> dict[str, Any]:
    """Where, when and with what a job runs."""
    return {"commit": commit(), "versions": {name: _version(name) for name in PACKAGES}, "python": platform.python_version(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "command": sys.argv, "platform": platform.platform(),
            "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def commit() -> str:
    """The commit of the source this runs from, "-dirty" when edited since, or "unknown"."""
    source = Path(__file__).resolve().parent
    if "site-packages" in source.parts:  # installed: a repository around it would be someone else's
        return "unknown"
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or "unknown"
    except (OSError, subprocess.SubprocessError):
        return "unknown"
