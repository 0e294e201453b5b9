"""How a command ends that is interrupted early, or whose output nobody reads: quietly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import realrl

SOURCE = str(Path(realrl.__file__).parents[1])
AMID_IMPORT = """
import os, runpy, signal, sys
module = sys.argv.pop(1)
class Import:
    def find_spec(self, name, *_):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Import())
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("realrl", run_name="__main__", alter_sys=True)
"""
AMID_WORKERS = """
import os, signal, threading
from realrl.cell.collect import Crew
signal.signal(signal.SIGINT, signal.default_int_handler)
crew = Crew(1)
threading.Timer(0.5, os.killpg, (0, signal.SIGINT)).start()  # as a terminal does: all hear it, the clean process amid torch
try:
    crew.start()
    threading.Event().wait(60)
except KeyboardInterrupt:
    print("heard")
crew.close()
"""


def python(code: str, *words: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a fresh interpreter, which a Ctrl-C of its own reaches alone."""
    job = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120, start_new_session=True,
                         env={**os.environ, "PYTHONPATH": SOURCE})
    return job.returncode, job.stdout, job.stderr


def shell(line: str) -> tuple[int, str, str]:
    """The same of a line in which `realrl` is the command; streams are buffered, as they are by default."""
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    job = subprocess.run(["bash", "-c", f'realrl() {{ "{sys.executable}" -m realrl "$@"; }}; set -o pipefail; {line}'], text=True,
                         capture_output=True, timeout=120, env={**settings, "PYTHONPATH": SOURCE})
    return job.returncode, job.stdout, job.stderr


@pytest.mark.parametrize("module", ["realrl.cli", "argparse", "numpy"])
def test_ctrl_c_while_something_is_imported(module: str) -> None:
    """argparse comes with the command line, numpy with the command."""
    code, out, err = python(AMID_IMPORT, module, "tasks", "toy")
    assert (out, err) == ("", "\ninterrupted\n") and code in (130, -2), "the same to a shell"


def test_ctrl_c_while_workers_start_is_for_who_started_them() -> None:
    code, out, err = python(AMID_WORKERS)
    assert (code, out, err) == (0, "heard\n", "")


@pytest.mark.parametrize("words", ["tasks toy", "--help", "train bc --help", "data"])
def test_standard_streams_that_are_closed(words: str) -> None:
    code, _, err = shell(f"realrl {words} >&-")
    assert "Traceback" not in err and code == (2 if words == "data" else 0)
    assert err == "" or words == "data", "its help, which answers a mistake"
    assert shell(f"realrl {words} <&- >&- 2>&-") == (code, "", "")


def test_a_file_that_is_written_does_not_get_what_is_printed(tmp_path: Path) -> None:
    """The first file that is opened would have the number of the stream that is closed."""
    code, _, err = shell(f"realrl data demos --task toy/line --episodes 1 --out '{tmp_path}/set' --workers 1 >&- && "
                         f"realrl data check '{tmp_path}/set'")
    assert code == 0, err


@pytest.mark.parametrize("words", ["tasks", "--version"])
def test_a_pipe_whose_reader_leaves(words: str) -> None:
    assert shell(f"{{ sleep 0.3; realrl {words}; }} | true") == (0, "", "")


def test_a_command_that_nobody_reads_any_more_did_not_do_its_work(tmp_path: Path) -> None:
    """It says so by its code; what it had done is there."""
    line = f"realrl train bc --task toy/line --run '{tmp_path}/run' --demos 4 --demo-noise 0 --imitation.steps 20 --collect.workers 1"
    code, _, err = shell(f"export PYTHONUNBUFFERED=1; {line} | true")
    assert (code, err) == (141, "")
    assert shell(f"{line} --resume")[0] == 0


def test_another_pipe_that_breaks_is_no_reader_that_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from realrl.cli import main, tasks

    def broken(_: object) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(tasks, "_tasks", broken)
    assert main.main(["tasks"]) == 2
    assert capsys.readouterr().err == "error: BrokenPipeError: [Errno 32] Broken pipe\n"


@pytest.mark.parametrize("words", ["--help", "nonsense 2>/dev/full"])
def test_a_device_that_is_full(words: str) -> None:
    code, _, err = shell(f"realrl {words} >/dev/full")
    assert code == 2 and err in ("", "error: a file could not be written (No space left on device); free space\n")
