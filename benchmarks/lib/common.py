"""What all benchmark scripts share: result files, a time budget, held-out evaluation, and where numbers come from.

A script is a list of parts. A part whose result lies in the script's file of rows is not run again, so a script that was stopped, or
that ran out of its budget, goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from realrl import config
from realrl.cell.collect import Collector, MakeEnv
from realrl.cell.evaluate import evaluate
from realrl.files import lock, write_text
from realrl.run import commit
from realrl.scene import CollectConfig, SightConfig
from realrl.types import Policy, RealrlError, Source

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


class Table:
    """A file of rows, one a line as JSON, written after every row; a row is known by its `key` columns, and replaces its like."""

    def __init__(self, file: Path, key: Sequence[str]) -> None:
        self.file, self.key, self._revision = file, tuple(key), revision()
        self.rows: list[dict[str, Any]] = read_rows(file)

    def find(self, *values: Any) -> dict[str, Any] | None:
        """The row with these key values."""
        return next((r for r in self.rows if tuple(r.get(k) for k in self.key) == values), None)

    def put(self, row: dict[str, Any]) -> None:
        """Add a row, stamped with commit, command and machine, and save the file."""
        stamped = {**row, "command": command(), "commit": self._revision, "machine": machine()}
        same = tuple(row.get(k) for k in self.key)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(str(self.file.resolve()).encode()).hexdigest()[:24]
        with lock(Path(tempfile.gettempdir()) / f"realrl-rows-{name}.lock", wait=60):  # runs beside this one write there, too
            self.rows = [r for r in read_rows(self.file) if tuple(r.get(k) for k in self.key) != same] + [stamped]
            write_text(self.file, "".join(json.dumps(r, ensure_ascii=False, allow_nan=False) + "\n" for r in self.rows))
        success = row.get("success")
        note = f"success {success['rate']:.3f} [{success['low']:.3f}, {success['high']:.3f}] n={success['n']}" if success else ""
        print("  ".join(str(v) for v in (*same, note) if v != ""), flush=True)


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a result file; [] when there is none. Raises RealrlError when it is damaged."""
    if not file.exists():
        return []
    mend = "restore it from the repository, or delete it to run everything again"
    rows = []
    for number, line in enumerate(filter(None, file.read_text(encoding="utf-8").split("\n")), 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise RealrlError(f"{file}, line {number}: not valid JSON ({error}): {mend}") from None
        if not isinstance(rows[-1], dict):
            raise RealrlError(f"{file}, line {number}: holds no row: {mend}")
    return rows


def command() -> str:
    """The command line that is running, with paths relative to the checkout so that it can be repeated elsewhere, and without `--out`,
    `--results` and `--keep`: where somebody's runs, rows and logs lie is no part of it."""
    def plain(word: str) -> str:
        return os.path.relpath(word, ROOT) if os.path.isabs(word) else word

    spec = getattr(sys.modules["__main__"], "__spec__", None)
    script = ["-m", spec.name] if spec and spec.name.startswith("benchmarks.") else [os.path.relpath(os.path.abspath(sys.argv[0]), ROOT)]
    words = sys.argv[1:]
    for flag in ("--out", "--results", "--keep"):
        if flag in words:
            at = words.index(flag)
            del words[at:at + 2]
    return shlex.join(["python", *script, *map(plain, words)])


def revision() -> str:
    """The commit of what runs, "-dirty" where the code was edited since: rows that were added meanwhile are no code."""
    code = ["git", "-C", str(ROOT), "status", "--porcelain", "--", "src", "benchmarks", ":(exclude)benchmarks/results"]
    try:
        edited = subprocess.run(code, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit().removesuffix("-dirty") + ("-dirty" if edited else "")


def machine() -> dict[str, Any]:
    """The class of machine: nothing that names it."""
    return {"cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(), "cpu": _cpu(),
            "system": platform.system(), "python": platform.python_version(), "torch": torch.__version__,
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None}


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def published_tables(files: Path, folder: Path) -> Path:
    """Tables that were published flat, in a folder where LeRobot v3 has them. Raises RealrlError where one is absent."""
    places = {"info.json": "meta/info.json", "tasks.parquet": "meta/tasks.parquet", "file-000.parquet": "data/chunk-000/file-000.parquet",
              "episodes_file-000.parquet": "meta/episodes/chunk-000/file-000.parquet"}
    for name, place in places.items():
        if not (files / name).is_file():
            raise RealrlError(f"{files / name} is absent: see --help for where the recordings come from")
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(files / name, folder / place)
    return folder


# -- parts and the time they may take ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One piece of a benchmark. done: whether its result is there already; run: makes it."""

    name: str
    done: Callable[[], bool]
    run: Callable[[], None]


def run_parts(parts: Sequence[Part], minutes: float | None) -> int:
    """Run what is missing, in order; start nothing new when the budget is used up. Returns the number of parts left over.

    A part that the user has to mend something for (RealrlError) is reported in one line, and the others go on.
    """
    began, left = time.monotonic(), 0
    for part in parts:
        if part.done():
            continue
        if minutes is not None and time.monotonic() - began > 60 * minutes:
            left += 1
            continue
        print(f"-- {part.name}", flush=True)
        try:
            part.run()
        except RealrlError as error:
            print(f"{part.name}: not run: {error}", file=sys.stderr, flush=True)
            left += 1
    if left:
        print(f"{left} of {len(parts)} parts left: the same command goes on where this stopped", flush=True)
    return left


def arguments(description: str, seeds: Sequence[int]) -> argparse.ArgumentParser:
    """The options that the learning benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog="Other flags override the run's configuration, e.g. --online.iterations 40")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds), help="training seeds")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="where runs are kept")
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="start nothing new after this long")
    parser.add_argument("--smoke", action="store_true", help="toy-size budgets, to see that the script works; results go to OUT/smoke")
    return parser


def experts_option(parser: argparse.ArgumentParser) -> None:
    """Add --experts, for tasks whose demonstrator is a trained network."""
    parser.add_argument("--experts", type=Path, default=os.environ.get("REALRL_EXPERTS"), help="folder of the Adroit experts' npz files; "
                        "default: the environment variable REALRL_EXPERTS")


def experts_folder(parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    """What --experts names; without it the script ends, saying how to name it."""
    if args.experts is None:
        parser.error("Adroit's experts are trained networks: name their folder with --experts DIR or REALRL_EXPERTS")
    return str(args.experts)


def overridden(base: T, flags: Sequence[str]) -> T:
    """A configuration with dotted command-line flags on top."""
    if not flags:
        return base
    with tempfile.TemporaryDirectory() as folder:
        config.save(base, Path(folder) / "base.yaml")
        return config.parse(type(base), ["--config", str(Path(folder) / "base.yaml"), *flags], prog="overrides", description="")


# -- held-out evaluation -----------------------------------------------------------------------------------------------


def judge(task: str, policy: Policy, n: int, *, horizon: int | None, collect: CollectConfig, dt: float,
          source: Source = Source.POLICY, sight: SightConfig | None = None, make: MakeEnv | None = None,
          greedy: bool = True) -> dict[str, Any]:
    """A policy's deployed behaviour (its exploring one where not `greedy`) from the n fixed held-out starts that every method is judged
    on; an `Evaluation` as a dict."""
    with Collector(task, collect, horizon=horizon, sight=sight, make=make) as collector:
        return slim(evaluate(collector, policy, n, dt=dt, source=source, greedy=greedy).to_dict())


def slim(result: dict[str, Any]) -> dict[str, Any]:
    """What a result row keeps of an evaluation or of a stage in summary.json."""
    kept = ("success", "cycle_steps", "cycle_s", "successes_per_hour", "episode_return", "failures", "latency_ms")
    return {k: result[k] for k in kept if k in result}
