"""`realrl data merge | split | delete-episodes | trim`: a new dataset out of others, which stay as they are."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realrl.cli.data.episodes import EPISODES
from realrl.cli.parser import command, mistake, progress, say, whole

if TYPE_CHECKING:
    from realrl.data.tools.edit import Edited

SOURCE = "folder of the dataset, which stays as it is"
OUT = "new folder; it appears when it is whole"


def add(actions: Any) -> None:
    """The four commands."""
    for one in (_add_merge, _add_split, _add_delete, _add_trim):
        one(actions)


def _add_merge(actions: Any) -> None:
    parser = command(actions, "merge", "Several datasets of one robot as one.", "realrl data merge monday tuesday --out week", _merge)
    parser.add_argument("dirs", type=Path, nargs="+", metavar="DIR", help="folders of the datasets, in the order wanted")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help=OUT)


def _merge(args: argparse.Namespace) -> int:
    from realrl.data.tools import edit
    return _edited(edit.merge(args.dirs, args.out, each=lambda pieces: progress(pieces, "merging")))


def _add_split(actions: Any) -> None:
    parser = command(actions, "split", "A dataset as several, each a folder below OUT.",
                     "realrl data split demos --by train=0.8,test=0.2 --shuffle 0 --out parts", _split)
    parser.add_argument("dir", type=Path, metavar="DIR", help=SOURCE)
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help=OUT)
    parser.add_argument("--by", required=True, metavar="HOW", help="'success'; fractions (0.8,0.2 or train=0.8,test=0.2); or episodes "
                        "(0:80,80:100 or train=0:80,test=80:100)")
    parser.add_argument("--shuffle", type=whole(0), metavar="SEED", help="deal episodes to fractions at random (default: in order)")


def _split(args: argparse.Namespace) -> int:
    from realrl.data.tools import edit
    parts = edit.split(args.dir, args.out, args.by, shuffle=args.shuffle, each=lambda pieces: progress(pieces, "splitting"))
    return _edited(*parts.values())


def _add_delete(actions: Any) -> None:
    parser = command(actions, "delete-episodes", "A dataset less some of its episodes.",
                     "realrl data delete-episodes demos --episodes 3,7,10:20 --out good", _delete)
    parser.add_argument("dir", type=Path, metavar="DIR", help=SOURCE)
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help=OUT)
    parser.add_argument("--episodes", metavar="LIST", help=EPISODES)
    parser.add_argument("--failed", action="store_true", help="all that failed; what is unknown stays")


def _delete(args: argparse.Namespace) -> int:
    from realrl.data.tools import edit
    if args.episodes is None and not args.failed:
        raise mistake()("which episodes? give --episodes LIST or --failed")
    return _edited(edit.delete_episodes(args.dir, args.out, () if args.episodes is None else args.episodes, failed=args.failed,
                                        each=lambda pieces: progress(pieces, "copying")))


def _add_trim(actions: Any) -> None:
    parser = command(actions, "trim", "A dataset whose episodes begin later or end earlier.",
                     "realrl data trim demos --start 10 --after-success --out short", _trim)
    parser.add_argument("dir", type=Path, metavar="DIR", help=SOURCE)
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help=OUT)
    parser.add_argument("--start", type=whole(0), default=0, metavar="N", help="frames to cut from the start of every episode (default: 0)")
    parser.add_argument("--end", type=whole(0), default=0, metavar="N", help="frames to cut from the end of every episode (default: 0)")
    parser.add_argument("--after-success", action="store_true", help="cut what follows the first success")
    parser.add_argument("--episodes", metavar="LIST", help=f"cut only these {EPISODES}")
    parser.add_argument("--keep", nargs="+", default=[], metavar="E=A:B", help="of episode E keep frames A to B alone, e.g. 3=20:180")


def _trim(args: argparse.Namespace) -> int:
    from realrl.data.tools import edit
    keep = {}
    for word in args.keep:
        episode, _, span = word.partition("=")
        first, _, stop = span.partition(":")
        if not all(re.fullmatch(r"[0-9]{1,18}", part) for part in (episode, first, stop)):
            raise mistake()(f"--keep {word!r} is not understood; write EPISODE=FIRST:STOP, e.g. 3=20:180")
        keep[int(episode)] = (int(first), int(stop))
    return _edited(edit.trim(args.dir, args.out, start=args.start, end=args.end, after_success=args.after_success, keep=keep,
                             episodes=args.episodes, each=lambda pieces: progress(pieces, "trimming")))


def _edited(*made: Edited) -> int:
    for one in made:
        for note in one.notes:
            say(f"note: {note}")
        say(f"{one.path}: {one.episodes:,} episodes, {one.frames:,} control steps")
    return 0
