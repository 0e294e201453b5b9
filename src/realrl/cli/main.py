"""The command line: `realrl train | evaluate | export | serve | view | data | reward | robot | preflight | calibrate | deploy | report |
tasks | doctor`, a file each.

Every file has `add`, with the command's flags, beside the function it runs, which returns its exit code: 0 done, 1 something was found
wrong, 2 a mistake the user can mend (one line `error: ...` on standard error; REALRL_DEBUG=1 adds the traceback), 130 interrupted,
141 given up because nobody reads its output any more.
Heavy imports stay inside these functions, so that help, lists and complaints come at once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
import traceback
from collections.abc import Sequence
from typing import TextIO

from realrl import __version__
from realrl.cli import data, deploy, doctor, evaluate, export, preflight, report, reward, robot, serve, tasks, train, view
from realrl.cli.parser import Command, Parser, exhausted, group, interrupted, mistake, told
from realrl.terminal import warn_in_a_line


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command (by default that of sys.argv) and return its exit code. --help and --version leave by SystemExit."""
    with contextlib.suppress(AttributeError):  # a test's standard output cannot be set
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a name that the terminal cannot show is spelt out
    warn_in_a_line()
    code = 141
    try:
        _check_names(sys.argv[1:] if argv is None else argv)
        try:
            args, flags = build_parser().parse_known_args(argv)
            args.flags = flags  # of a method's configuration; elsewhere there are none
            command: Command = args.command
            code = command(args)
        except SystemExit:  # --help, --version
            code = 0
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except SystemExit:  # before what follows is asked, which imports half of the house
        raise
    except KeyboardInterrupt:
        return interrupted()
    except (mistake(), OSError, RuntimeError) as error:  # OSError: a full or read-only disk, a name that is too long
        if isinstance(error, BrokenPipeError) and _unread():  # `realrl tasks | head`: nobody is left to tell
            _silence(sys.stdout)
            return code
        if isinstance(error, RuntimeError) and not exhausted(error):
            raise
        if isinstance(error, OSError):
            _silence(sys.stdout)  # it may be standard output that is full
        return _complain(error)
    return code


def _complain(error: Exception) -> int:
    """A mistake in a line on standard error; gives its exit code, whatever becomes of the line."""
    from realrl.files import printable
    try:
        if os.environ.get("REALRL_DEBUG", "0") != "0":
            traceback.print_exc()
        print("error: " + "\n".join(map(printable, str(told(error)).splitlines())), file=sys.stderr)
    except OSError:  # it is full, or nobody reads it
        _silence(sys.stderr)
    return 2


def _check_names(words: Sequence[str]) -> None:
    """Raise RealrlError for a word that is no text here."""
    try:
        "".join(words).encode()
    except UnicodeEncodeError:
        from realrl.data.errors import legible
        for word in words:
            legible(word)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; parsing sets `command` to the function to call."""
    top = group(None, "realrl", "From demonstrations to deployment-grade robot policies by reinforcement learning on the real robot.",
                "realrl train rl100 --task metaworld/push-wall-v3 --run runs/main\n"
                "  realrl evaluate --policy runs/main/policy --episodes 500")
    top.add_argument("--version", action="version", version=f"realrl {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", parser_class=Parser)
    for part in (train, evaluate, export, serve, view, data, reward, robot, preflight, deploy, report, tasks, doctor):
        part.add(commands)
    return top


def _unread() -> bool:
    """Whether standard output is a pipe whose reader has left; else it is another pipe that broke, of an encoder or a robot."""
    with contextlib.suppress(OSError, ValueError):  # a test's standard output has no descriptor
        ask = select.poll()
        ask.register(sys.stdout.fileno(), 0)  # for nothing but its end
        return bool(ask.poll(0))
    return False


def _silence(stream: TextIO) -> None:
    """Nothing more goes there: what Python still holds for it would fail when it leaves."""
    with contextlib.suppress(OSError, ValueError):  # a test's streams have no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
