"""Contestants that take turns: each a process of its own, in whichever environment has it, that works when it is told to.

A child says who it is in a line of JSON, and for every line with a number does so many units of work and says how long they took. This
module needs nothing but Python: children in other people's environments import it from beside them.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TICK = os.sysconf("SC_CLK_TCK")


class Child:
    """A contestant. command: its Python, script and words; own: whether it is to find this checkout; mend: what its user can do where it
    ends. `about` is what it said of itself. Raises RealrlError, also from `ask`, when it ends."""

    def __init__(self, command: Sequence[str], threads: int, *, own: bool, mend: str) -> None:
        self.name, self._mend = " ".join([Path(command[1]).name, *command[2:]]), mend
        place = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads),
                 "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]) if own else ""}
        self._process = subprocess.Popen(command, env=place, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.about = self._answer()

    def ask(self, units: int) -> dict[str, Any]:
        """So many units of work: what it said of them, with the seconds "wall" and "cpu"."""
        assert self._process.stdin
        print(units, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        from realrl.types import RealrlError  # here, because a child has no realrl
        raise RealrlError(f"{self.name}: its process ended, see above; {self._mend}")

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def pin(threads: int) -> None:
    """Keep this process and those that it starts to so many cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def cpu_seconds() -> float:
    """Processor time of this process and of the worker processes that it has now."""
    spent = time.process_time()
    for worker in multiprocessing.active_children():
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        spent += (int(fields[11]) + int(fields[12])) / TICK  # in user and in kernel mode
    return spent


class Stopwatch:
    """Wall and processor time since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), cpu_seconds()

    def read(self) -> dict[str, float]:
        """Seconds so far: "wall" and "cpu"."""
        return {"wall": time.perf_counter() - self._wall, "cpu": cpu_seconds() - self._cpu}


def serve(work: Callable[[int], Mapping[str, Any] | None], about: Mapping[str, Any]) -> None:
    """Answer until there are no more lines. work: does so many units, and may have something to say of them."""
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        watch = Stopwatch()
        said = work(int(line))
        print(json.dumps({**watch.read(), **(said or {})}), flush=True)
