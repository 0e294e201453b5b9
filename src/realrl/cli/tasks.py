"""`realrl tasks`: the tasks there are."""

from __future__ import annotations

import argparse
from typing import Any

from realrl.cli.parser import command


def add(commands: Any) -> None:
    """`tasks` and its flags."""
    parser = command(commands, "tasks", "List the tasks there are.", "realrl tasks metaworld", _tasks)
    parser.add_argument("filter", nargs="?", default="", metavar="FILTER", help="only names that contain this")


def _tasks(args: argparse.Namespace) -> int:
    from realrl import envs
    found = [task for task in envs.tasks() if args.filter in task]
    if not found:
        envs.make(args.filter)  # raises, naming the nearest task
    print("\n".join(found))
    return 0
