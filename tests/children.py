"""Python processes that tests run, interrupt and kill, without an interpreter's start each: seconds, where torch is imported.

They are forked from multiprocessing's forkserver, a clean process that has imported what most of them need (see conftest) and run nothing.
"""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.process
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FORKED = multiprocessing.get_context("forkserver")


class Child:
    """`python WORDS` in a process of its own: a script, `-m MODULE` or `-c CODE`; what it prints is kept in files."""

    def __init__(self, *words: str | Path, cwd: Path | None = None) -> None:
        self._said = [Path(tempfile.mkstemp(prefix="realrl-child-")[1]) for _ in range(2)]
        place = os.fspath(cwd or Path.cwd())
        order = ([*map(str, words)], place, dict(os.environ), [*filter(None, sys.path)], self._said)
        self.process = FORKED.Process(target=_python, args=order, daemon=True)  # who is left running at the end is ended
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    @property
    def out(self) -> str:
        """What it has printed so far."""
        return self._said[0].read_text()

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""
        return self.process.exitcode

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self, timeout: float = 300) -> tuple[int, str, str]:
        """(exit code, standard output, standard error) at its end."""
        self.process.join(timeout)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            self.process.join()
        out, err = (path.read_text() for path in self._said)
        for path in self._said:
            path.unlink()
        assert code is not None, f"still running after {timeout:g} s: {out}{err}"
        return code, out, err


def hasty() -> None:
    """In this process how long a policy thinks is measured by twenty decisions, not by as many as percentiles want: no test reads it, and
    every stage of every run asks."""
    from realrl.cell import judge
    judge.latency.__defaults__ = (10, 10, 0.0)


def _python(words: list[str], cwd: str, environment: dict[str, str], path: list[str], said: Sequence[Path]) -> None:
    gc.freeze()  # what it was forked from stays: to look for garbage among it would copy all of it
    hasty()
    multiprocessing.current_process().daemon = False  # it may have children of its own
    signal.signal(signal.SIGINT, signal.default_int_handler)  # who starts tests in the background may have it ignored
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # and it is blocked in those that act beside a learner
    os.chdir(cwd)
    vars(multiprocessing.process)["ORIGINAL_DIR"] = cwd  # as if it had begun here: its own workers will
    server: Any = multiprocessing.forkserver._forkserver
    server.ensure_running = lambda: None  # they come from the server that it comes from
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate(said, 1):
        sys.stdout.flush()
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
    kind = words.pop(0) if words[0] in ("-m", "-c") else "script"
    sys.argv = words
    sys.path[:] = [str(Path(words[0]).resolve().parent) if kind == "script" else "", *path]
    if kind == "-c":
        code, sys.argv[0] = words[0], "-c"
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    elif kind == "-m":
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")
