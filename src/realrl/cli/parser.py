"""What every command of the command line shares: a parser that teaches, and the two streams it writes to."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from realrl.terminal import console

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")
Command = Callable[[argparse.Namespace], int]


def mistake() -> type[Exception]:
    """RealrlError, imported when it is needed."""
    from realrl.types import RealrlError
    return RealrlError


def interrupted(hint: str = "") -> int:
    """What Ctrl-C leaves on standard error; gives its exit code."""
    print(f"\ninterrupted{hint}", file=sys.stderr)
    return 130


class Parser(argparse.ArgumentParser):
    """argparse that answers what it does not know with the nearest thing it knows, in one line."""

    strict = False  # whether every flag must be its own: so for a command, not for a group of commands

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but a misspelt flag is named before a missing one."""
        words = sys.argv[1:] if args is None else list(args)
        for word in words if self.strict else ():
            flag = word.partition("=")[0]
            if flag.startswith("--") and flag not in self._option_string_actions:
                self._unknown("option", flag, self._option_string_actions)
        space, extra = super().parse_known_args(words, namespace)
        if self.strict and extra:
            self.error(f"unexpected argument {extra[0]!r}")
        return space, extra

    def error(self, message: str) -> Any:
        """Raise RealrlError instead of printing the usage and leaving."""
        if found := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            what = message.partition(":")[0].removeprefix("argument ")
            self._unknown(what.lower(), found[1], re.findall(r"[\w-]+", found[2]))
        raise mistake()(f"{message} (see `{self.prog} --help`)")

    def _unknown(self, what: str, name: str, known: Iterable[str]) -> None:
        from realrl.config import nearest
        raise mistake()(f"unknown {what} '{name}'{nearest(name, [k for k in known if len(k) > 2])} (see `{self.prog} --help`)")


def group(commands: Any, name: str, text: str, example: str) -> Parser:
    """A parser that only holds commands: called without one, it shows its help."""
    parser = command(commands, name, text, example, lambda args: 2)

    def show_help(args: argparse.Namespace) -> int:
        parser.print_help(sys.stderr)
        return 2

    parser.set_defaults(command=show_help)
    parser.strict = False
    return parser


def command(commands: Any, name: str, text: str, example: str, run: Command) -> Parser:
    """A command with its help and an example."""
    options: dict[str, Any] = {"description": text, "epilog": f"example:\n  {example}", "allow_abbrev": False,
                               "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser: Parser = commands.add_parser(name, help=text, **options) if commands else Parser(name, **options)
    parser.set_defaults(command=run)
    parser.strict = True
    return parser


def whole(low: int) -> Callable[[str], int]:
    """Reads a whole number of at least `low`."""
    def read(text: str) -> int:
        if not re.fullmatch(r"\d+", text) or int(text) < low:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {low}, got '{text}'")
        return int(text)
    return read


def number(low: float, high: float) -> Callable[[str], float]:
    """Reads a number from `low` to `high`."""
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be a number from {low:g} to {high:g}, got '{text}'")
        return value
    return read


def device_flag(parser: Parser) -> None:
    """`--device`, of a command that lets a policy act; `scene.device` reads it."""
    parser.add_argument("--device", default="cpu", metavar="D", help="where the policy acts: cpu (default; small networks are "
                        "soonest there), cuda, or auto for the GPU where there is one")


@contextlib.contextmanager
def stdout_kept_clean() -> Iterator[None]:
    """What anyone prints meanwhile, simulators and worker processes included, goes to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def progress(items: Iterable[T], title: str, total: int | None = None) -> Iterable[T]:
    """The items, with a progress bar on standard error; where that is a file or a pipe, with a line of it now and then.

    total: how many there are, where the items do not say.
    """
    total = len(items) if total is None and isinstance(items, Sequence) else total
    return (_drawn if sys.stderr.isatty() else _logged)(items, title, total)


def _drawn(items: Iterable[T], title: str, total: int | None) -> Iterator[T]:
    """A bar; `rich.progress.track` would take brackets in its title for styles."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from realrl.types import printable
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        yield from bar.track(items, total, description=printable(title))


def _logged(items: Iterable[T], title: str, total: int | None) -> Iterator[T]:
    """A line every tenth of the way, no two within 3 s, and every 30 s; none of what is done before."""
    begun = last = time.monotonic()
    shown = done = 0
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= 30 or (total and now - last >= 3 and 10 * (done - shown) >= total):
            share = f" of {total} ({100 * done // total} %)" if total and done <= total else ""  # it was only expected
            print(f"{title}: {done}{share} after {now - begun:.0f} s", file=sys.stderr, flush=True)
            last, shown = now, done


def screen() -> Console:
    """Standard output for tables; a file or a pipe has no width, so it gets one that fits them."""
    return console(width=None if sys.stdout.isatty() else 140)


def say(text: object, *, now: bool = False) -> None:
    """A line on standard output. It may name what stands in other people's files: what a terminal would obey is spelt out. now: into a
    file or a pipe, too, where lines wait for one another otherwise."""
    from realrl.types import printable
    print(printable(str(text)), flush=now)


def exhausted(error: Exception) -> bool:
    """Whether a GPU had no memory left."""
    torch = sys.modules.get("torch")  # who has not imported it asked no GPU for anything
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def told(error: Exception) -> Exception:
    """An error as a line that a user can act on."""
    from realrl.files import disk, unwritable
    if exhausted(error):
        what = ". ".join(str(error).split(". ")[:2]).strip(". ")
        return mistake()(f"{what}: make batches smaller, end what else is on the GPU, or give --device cpu")
    if not isinstance(error, OSError):
        return error
    if disk(error):
        return unwritable(error.filename or "a file", error)
    if error.filename is None:  # no file: a device, a camera, a connection, in the words of whoever noticed
        return mistake()(f"{type(error).__name__}: {error}")
    return mistake()(f"{error.filename}: {error.strerror or error}; check the path")
