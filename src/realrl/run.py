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
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, Final, SupportsFloat

import torch
from torch import nn

from realrl import config
from realrl.checkpoint import Part, finite, read_parts, restore, save_parts, versions
from realrl.events import Board
from realrl.files import append, lock, open_append, parse_json, read_json, read_plain, sweep, unwritable, write_json, write_text
from realrl.terminal import console
from realrl.types import RealrlError

OWN: Final = ("config.yaml", "meta.json", "metrics.jsonl", "summary.json", "ope.json", "tb", "checkpoints", "policy")  # of a run's folder
PACKAGES: Final = ("realrl", "torch", "numpy", "mujoco", "gymnasium", "metaworld")


class Run:
    """A run's directory, open for writing, by one process at a time. Use `Run.start` for a job; `Run(dir, resume=True)` to append to an
    existing one. Raises RealrlError where another process writes it, where its files are links or not what a run writes, on a full disk.

    keep: how many versions of each checkpoint stay on disk.
    """

    def __init__(self, dir: str | os.PathLike[str], *, resume: bool = False, keep: int = 1) -> None:
        self.dir, self.keep = Path(dir), keep
        self._metrics = self.dir / "metrics.jsonl"
        if not resume:
            _vacant(self.dir)
        try:
            self.dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.dir, error) from error
        self._boards: dict[str, Board] = {}
        self._warned: set[str] = set()
        with contextlib.ExitStack() as held:
            held.enter_context(lock(self.dir / ".lock", 0.0))
            _inspect(self.dir)
            if not resume and _vacant(self.dir):  # still, now that no other process can begin here
                _clear(self.dir)
            for folder in (self.dir, self.dir / "policy", *(self.dir / "checkpoints").glob("*")):
                sweep(folder)
            self._file: BinaryIO = held.enter_context(open_append(self._metrics))
            _cut_half_line(self._file)
            self._held = held.pop_all()

    @classmethod
    def start(cls, dir: str | os.PathLike[str], cfg: Any, resume: bool = False, *, ignore: Sequence[str] = (),
              renewed: Sequence[str] = (), keep: int = 1) -> Run:
        """Open a run for the configuration `cfg`. With `resume`, continues what is there and starts afresh where nothing is.

        `ignore` names fields (dotted; a group names all in it) that a resumed run may change, `renewed` those that it may change for good:
        they are saved. Fields that came with a later version have their defaults in an older run.

        Raises:
            RealrlError: the directory holds something and `resume` is false; or the saved configuration differs.
        """
        folder, saved = Path(dir), Path(dir) / "config.yaml"
        again = resume and _occupied(folder)
        if again and not saved.exists():
            raise RealrlError(f"{folder} holds files but no config.yaml, so it is not a run to resume; name another directory")
        run = cls(folder, resume=resume, keep=keep)
        try:
            if not again:
                config.save(cfg, saved)
            else:
                before, now = _known(saved, type(cfg)), config.to_dict(cfg)
                if changed := config.differences(before, now, ignore=(*ignore, *renewed)):
                    raise RealrlError(f"cannot resume {folder}: its config.yaml differs in {'; '.join(changed)}."
                                      " Repeat the original options, or name another directory")
                if any(before[name] != now[name] for name in renewed):
                    config.save(config.from_dict(type(cfg), {**before, **{name: now[name] for name in renewed}}), saved)
            run._record_start()
        except BaseException:
            run.close()
            raise
        return run

    def _record_start(self) -> None:
        file, entry = self.dir / "meta.json", _circumstances()
        if file.exists():
            first = read_json(file)
            entry = {**first, "resumed": [*first.get("resumed", []), entry]}
        write_json(file, entry)

    def log(self, step: int, metrics: Mapping[str, SupportsFloat | None], stage: str = "") -> None:
        """Append one line to metrics.jsonl and scalars `stage/name` to TensorBoard. NaN and infinities become null, with a warning."""
        clash = {"stage", "step", "time"} & metrics.keys()
        if clash:
            raise ValueError(f"metrics may not be called {sorted(clash)}: the line has fields of these names")
        values = {name: self._finite(name, value, stage, step) for name, value in metrics.items()}
        line = {"stage": stage, "step": operator.index(step), "time": round(time.time(), 3), **values}
        append(self._file, json.dumps(line, allow_nan=False).encode() + b"\n", self._metrics)
        self._board(stage).add(step, {f"{stage}/{name}" if stage else name: v for name, v in values.items() if v is not None})

    def _finite(self, name: str, value: SupportsFloat | None, stage: str, step: int) -> float | None:
        number = None if value is None else float(value)
        if number is None or math.isfinite(number):
            return number
        if name not in self._warned:
            self._warned.add(name)
            warnings.warn(f"metric '{name}' is {number} at step {step} of stage '{stage}'; logged as null", stacklevel=3)
        return None

    def _board(self, stage: str, purge: int | None = None) -> Board:
        """One TensorBoard folder a stage, so that a rewind can purge its own steps only."""
        if stage not in self._boards:
            self._boards[stage] = Board(self.dir / "tb" / stage, purge)
        return self._boards[stage]

    def logger(self, stage: str) -> Callable[[int, Mapping[str, float]], None]:
        """A function (step, metrics) that logs under a stage."""
        return lambda step, metrics: self.log(step, metrics, stage)

    def bar(self, title: str, total: int, done: int = 0) -> AbstractContextManager[Callable[..., None]]:
        """Progress with a time estimate; the body calls what it is given with the number of things done, and perhaps a note. done: what an
        earlier process did, which says nothing of how long the rest takes."""
        return progress_bar(title, total, done)

    def rewind(self, stage: str, step: int) -> None:
        """Forget what `stage` logged after `step`: call it after loading a checkpoint of that step, or curves would double."""
        lines = read_metrics(self.dir)
        kept = [line for line in lines if line["stage"] != stage or line["step"] <= step]
        if len(kept) == len(lines):
            return
        self._file.close()
        write_text(self._metrics, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = self._held.enter_context(open_append(self._metrics))
        if stage in self._boards:
            self._boards.pop(stage).close()
        self._board(stage, purge=step + 1)

    def save(self, name: str, step: int, /, **parts: Part) -> None:
        """Write the checkpoint `name` (see `save_parts`). Parts: anything with a state_dict, or plain mappings.

        Raises RealrlError for a network whose weights are no longer finite, where the disk is full, and where somebody deleted or moved
        the run.
        """
        if not os.fstat(self._file.fileno()).st_nlink or not self._metrics.exists():
            raise RealrlError(f"{self.dir}: its metrics.jsonl was deleted or moved while the run wrote there; a run that was moved whole "
                              "is continued where it is now, with --resume")
        for part, network in parts.items():
            if isinstance(network, nn.Module):
                finite(network.state_dict(), f"{self.dir}: {name}: the network '{part}'", "its training diverged: lower the learning rate")
        save_parts(self.dir / "checkpoints" / name, step, parts, keep=self.keep)

    def load(self, name: str, /, **parts: Any) -> int | None:
        """Load the checkpoint `name` into objects (or dicts, in place); its step, or None if there is none. Raises RealrlError."""
        folder = self.dir / "checkpoints" / name
        if not versions(folder):
            return None
        step, states = read_parts(folder)
        restore(states, parts, folder)
        return step

    def read(self, name: str) -> tuple[int, dict[str, Any]] | None:
        """(step, states) of the checkpoint `name` without loading it into anything, or None if there is none. Raises RealrlError."""
        folder = self.dir / "checkpoints" / name
        return read_parts(folder) if versions(folder) else None

    def close(self) -> None:
        """Close the metrics and let others write here. Not needed for safety: every line is already with the operating system."""
        self._held.close()
        while self._boards:
            self._boards.popitem()[1].close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def progress_bar(title: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """A bar on a terminal; in a file or a pipe a line every half minute and at the end. Yields a function that is told how many more things
    are done, and what to say of it if anything: below the bar, in as many lines as that takes. done: what another process did before.

    Beyond the total, of which an episode that is under way takes no notice, the bar is full and says what it waits for."""
    if not sys.stdout.isatty():
        with _lines(title, total, done) as advance:
            yield advance
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.text import Text
    columns = (TextColumn("{task.description:<28}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn())
    said = Text()

    class Noted(Progress):
        """A terminal may be too narrow for a note beside the bar, and who steers has to read it whole."""

        def get_renderables(self) -> Iterator[Any]:
            yield from super().get_renderables()
            if said.plain:
                yield said

    with Noted(*columns, console=console(), transient=True) as progress:
        task = progress.add_task(title, total=total, completed=min(done, total))
        so_far = done

        def more(n: int, note: str = "") -> None:
            nonlocal so_far
            so_far += n
            said.plain = "; ".join(filter(None, (_beyond(so_far, total), note)))
            progress.update(task, completed=min(so_far, total))

        yield more


def _beyond(done: int, total: int) -> str:
    """What is said of more than was asked for, "" where it is not."""
    return f"{done - total} beyond, until the episode under way ends" if done > total else ""


@contextlib.contextmanager
def _lines(title: str, total: int, before: int) -> Iterator[Callable[..., None]]:
    began = said = time.monotonic()
    done = before

    def advance(n: int, note: str = "") -> None:
        nonlocal done, said
        done, now = done + n, time.monotonic()
        if now - said >= 30 and done > before:
            said = now
            left = _beyond(done, total) or f"about {(now - began) / (done - before) * (total - done):.0f} s to go"
            print(f"{title}: {min(done, total)} of {total}, {left}{f'; {note}' if note else ''}", flush=True)

    yield advance
    if total and (done > before or not before):
        new = f", {done - before} of them now," if before else "," if done > total else ""
        beyond = f" and {done - total} beyond, to an episode's end" if done > total else ""
        print(f"{title}: {min(done, total)} of {total}{beyond}{new} in {time.monotonic() - began:.0f} s", flush=True)


def read_metrics(dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All whole lines of a run's metrics.jsonl in order; [] when there is none. Raises RealrlError on a line that is no JSON."""
    file = Path(dir) / "metrics.jsonl"
    lines = read_plain(file).split(b"\n")[:-1] if file.exists() else []  # a killed process may leave half a line at the end
    out = []
    for number, line in enumerate(lines, 1):
        try:
            out.append(parse_json(line, "it", nan=True))
        except RealrlError as error:
            raise RealrlError(f"{file}, line {number} is not JSON in UTF-8; remove that line") from error
    return out


def _cut_half_line(file: BinaryIO) -> None:
    data = os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)
    if not data.endswith(b"\n"):
        os.ftruncate(file.fileno(), data.rfind(b"\n") + 1)


def _inspect(folder: Path) -> None:
    """Raise RealrlError where a run's files are links, which would lead its writer elsewhere, or do not hold what a run writes there."""
    for name in OWN:
        for path in (folder / name, *(folder / name).rglob("*")):
            if path.is_symlink():
                raise RealrlError(f"{path} is a link; a run keeps its files inside its folder, put a copy there (cp -rL)")
    for name, shape in SHAPES.items():
        if (folder / name).exists() and not _fits(read_json(folder / name), shape):
            raise RealrlError(f"{folder / name} does not hold what a run writes there; restore it, or delete it to find anew what it says")
    for number, line in enumerate(read_metrics(folder), 1):
        if not _fits(line, {"stage": str, "step": int}):
            raise RealrlError(f"{folder / 'metrics.jsonl'}, line {number} has no stage and step; remove that line")


SHAPES: Final[dict[str, Any]] = {
    "meta.json": {"resumed?": list},
    "summary.json": {"stages?": [{"name": str, "version?": int}], "wall_s?": float, "spent_s?": {"*": float}, "demonstrator?": dict,
                     "decisions?": {"*": str}},
    "ope.json": {"points": [{"stage": str, "iteration": int, "estimate": float, "true_success": float}]}}
"""What a resumed run relies on: field -> its kind, float for any number, [kind] for a list of it; "?" ends what may be absent, "*"
stands for every field."""


def _fits(value: Any, shape: Any) -> bool:
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(v, shape[0]) for v in value)
    if isinstance(shape, dict):
        if not isinstance(value, dict) or "*" in shape:
            return isinstance(value, dict) and all(_fits(v, shape["*"]) for v in value.values())
        known = {name.removesuffix("?"): (kind, name.endswith("?")) for name, kind in shape.items()}
        return all(_fits(value[n], kind) if n in value else free for n, (kind, free) in known.items())
    if shape in (int, float):
        return isinstance(value, (int, float) if shape is float else int) and not isinstance(value, bool) and abs(value) < 2**62
    return isinstance(value, shape)


def _occupied(folder: Path) -> bool:
    """Whether a folder holds anything but the hidden temporary files of a killed process and an empty metrics.jsonl."""
    if folder.exists() and not folder.is_dir():
        raise RealrlError(f"{folder} is a file; name a directory for the run")
    files = [p for p in folder.iterdir() if not p.name.startswith(".")] if folder.exists() else []
    return any(p.name != "metrics.jsonl" or p.stat().st_size for p in files)


BEGUN: Final = frozenset((".lock", "config.yaml", "meta.json", "metrics.jsonl", "summary.json", "dataset/meta/info.json",
                          "dataset/meta/tasks.parquet"))  # what a run has before its first episode, line or checkpoint


def _vacant(folder: Path) -> bool:
    """Whether `_clear` has to precede a run that begins here. Raises RealrlError where something would be lost."""
    if _barren(folder):
        return True
    if _occupied(folder):
        raise RealrlError(f"the run directory {folder} is not empty; continue it with --resume or name another one")
    return False


def _barren(folder: Path) -> bool:
    """Whether a run began here and nothing has come of it: a mistake, an expert that is not there, ended it at once. One may begin anew.
    A config.yaml alone is no such run: somebody may have written it."""
    if not all((folder / name).is_file() for name in ("config.yaml", "meta.json")):
        return False
    files = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())
    return (all(name in BEGUN for name in files) and not any(p.stat().st_size for p in (folder / "metrics.jsonl",) if p.exists())
            and not _found(folder / "summary.json"))


def _found(summary: Path) -> bool:
    """Whether a summary says what somebody waited for, or cannot be read."""
    try:
        about = read_json(summary) if summary.exists() else {}
    except (RealrlError, OSError):
        return True
    return not isinstance(about, dict) or any(about.get(name) for name in ("stages", "demonstrator", "decisions", "pool"))


def _clear(folder: Path) -> None:
    """Take away what a run that came to nothing left; its lock is ours."""
    shutil.rmtree(folder / "dataset", ignore_errors=True)
    for name in ("meta.json", "summary.json", "config.yaml"):
        (folder / name).unlink(missing_ok=True)


def _known(saved: Path, kind: type[Any]) -> dict[str, Any]:
    """The tree of a saved configuration, with the defaults of fields that it does not know."""
    tree = config.read(saved)
    try:
        return config.to_dict(config.from_dict(kind, tree))
    except RealrlError:  # fields that are gone, or values that are not allowed any more: the comparison names them
        return tree


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
