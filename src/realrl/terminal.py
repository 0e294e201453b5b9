"""What people read while something runs: text on a terminal, exactly as it was given."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # lists and help need none of it
    from rich.console import Console


def console(*, stderr: bool = False, quiet: bool = False, width: int | None = None) -> Console:
    """A console that shows brackets and colons of paths, tasks and packages as they are: rich by itself takes `[name]` for a style, which
    then lacks in `pip install 'realrl[name]'`, ends with an error at `[/name]`, and makes a picture of `:door:`. Style what is ours with
    `rich.text.Text`.

    width: characters a line; the terminal's own by default.
    """
    from rich.console import Console
    return Console(stderr=stderr, quiet=quiet, width=width, markup=False, emoji=False)
