"""`realrl report`: a run's page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from realrl.cli.parser import command


def add(commands: Any) -> None:
    """`report` and its flags."""
    parser = command(commands, "report", "Write a run's report.html from its files, finished or not.", "realrl report runs/main", _report)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")


def _report(args: argparse.Namespace) -> int:
    from realrl.report import write_report
    print(write_report(args.run))
    return 0
