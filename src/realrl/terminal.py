"""What people read while something runs: text on a terminal, exactly as it was given."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # lists and help need none of it
    from rich.console import Console


FORMAT = warnings.formatwarning


def console(*, stderr: bool = False, quiet: bool = False, width: int | None = None) -> Console:
    """A console that shows brackets and colons of paths, tasks and packages as they are: rich by itself takes `[name]` for a style, which
    then lacks in `pip install 'realrl[name]'`, ends with an error at `[/name]`, and makes a picture of `:door:`. Style what is ours with
    `rich.text.Text`.

    width: characters a line; the terminal's own by default.
    """
    from rich.console import Console
    return Console(stderr=stderr, quiet=quiet, width=width, markup=False, emoji=False)


def warn_in_a_line() -> None:
    """From now on this process tells its warnings so."""
    warnings.formatwarning = _in_a_line


def _in_a_line(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """Our warnings are for people, who care for no line of code; those of others are as Python shows them."""
    if category is UserWarning and Path(filename).is_relative_to(Path(__file__).parent):
        return f"warning: {message}\n"
    return FORMAT(message, category, filename, lineno, line)
