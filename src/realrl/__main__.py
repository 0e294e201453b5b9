"""`python -m realrl`, and the command `realrl`: what has to hold before the command line is imported, which takes a moment."""

import os
import signal
import sys


def main() -> int:
    """The command line's exit code, see `realrl.cli.main`. While it is imported, Ctrl-C ends the process with 130 and one line; once the
    command is over, without one."""
    _stand()
    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.default_int_handler:  # not where somebody wants it ignored, as nohup and a shell's & do
        signal.signal(signal.SIGINT, _leave)
    from realrl.cli.main import main as run
    signal.signal(signal.SIGINT, usual)
    code = run()
    if usual is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # all is done; Python would tell it by a traceback of what it tidies up
    return code


def _stand() -> None:
    """Open what was closed before us (`realrl tasks >&-`): Python has None for it, and the next file that is opened would take its number
    and get what others print."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # as long as the process; the lowest free number is its own


def _leave(*_: object) -> None:
    """Nothing has begun, so there is nothing to tidy up; an exception amid an import may come out as anything."""
    os.write(2, b"\ninterrupted\n")
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
