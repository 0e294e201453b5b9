"""`realrl data ACTION`: record, examine, edit, mend and convert datasets."""

from typing import Any

from realrl.cli.data import demos, edit, examine, foreign, label
from realrl.cli.parser import Parser, group


def add(commands: Any) -> None:
    """The commands on datasets."""
    data = group(commands, "data", "Record, examine, edit, mend and convert datasets (LeRobot v3.0 layout).",
                 "realrl data info runs/main/dataset")
    actions = data.add_subparsers(metavar="ACTION", parser_class=Parser)
    for part in (demos, examine, label, edit, foreign):
        part.add(actions)
