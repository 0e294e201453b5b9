"""`realrl data export | import`: other people's formats."""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realrl.cli.data.episodes import EPISODES, append, is_lerobot, recorded
from realrl.cli.parser import Parser, command, mistake, progress, say, whole

if TYPE_CHECKING:
    from realrl.data.formats import Imported
    from realrl.types import Episode


def add(actions: Any) -> None:
    """The two commands."""
    _add_export(actions)
    _add_import(actions)


def _add_export(actions: Any) -> None:
    parser = command(actions, "export", "Write a dataset in another format: robomimic (HDF5), diffusion_policy (zarr) or minari.",
                     "realrl data export demos --format robomimic --out demos.hdf5", _export)
    parser.add_argument("dir", type=Path, metavar="DIR", help="folder of the dataset")
    parser.add_argument("--format", required=True, metavar="F", help="robomimic, diffusion_policy or minari")
    parser.add_argument("--out", type=Path, required=True, metavar="PATH", help="new file or folder")
    parser.add_argument("--episodes", metavar="LIST", help=EPISODES)
    _add_options(parser)


def _export(args: argparse.Namespace) -> int:
    from realrl.data import formats
    from realrl.data.formats import open_dataset
    count, pairs = recorded(args.dir, args.episodes)
    episodes = (episode for _, episode in progress(pairs, f"writing {args.format}", count))
    formats.write(args.format, episodes, args.out, fps=open_dataset(args.dir).fps, **_options(args))
    say(f"{args.out}: {count:,} episodes in the format {args.format}")
    return 0


def _add_import(actions: Any) -> None:
    parser = command(actions, "import", "Make a dataset of another format: robomimic and robosuite HDF5, diffusion_policy zarr, Minari, "
                     "RLDS, pickles of DAPG and HIL-SERL (no code in them is run), LeRobot 1 and 2. The format is found out by itself.",
                     "realrl data import pusht_cchi_v7_replay.zarr.zip --out pusht --action-range 0 512", _import)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="file or folder to read; it stays as it is")
    parser.add_argument("--format", metavar="F", help="which format it is, where that cannot be found out")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder; it appears when it is whole")
    parser.add_argument("--task", metavar="TEXT", help="what the robot is asked to do (default: what the source says)")
    parser.add_argument("--fps", type=whole(1), metavar="N", help="control steps a second (default: what the source says)")
    _add_options(parser)
    parser.add_argument("--codec", choices=("av1", "h264"), default="av1", help="of the videos (default: av1)")


def _import(args: argparse.Namespace) -> int:
    try:
        return _convert(args)
    except mistake() as error:
        raise mistake()(_as_flags(str(error))) from error


def _convert(args: argparse.Namespace) -> int:
    from realrl.data.store import Store
    from realrl.data.tools.edit import staged
    from realrl.types import printable
    with staged(args.out) as folder:
        found = _opened(args)
        first = next(found.episodes, None)
        if first is None:
            raise mistake()(f"{args.source} holds no episode; there is nothing to import")
        found.episodes = map(_shown_names, itertools.chain([first], found.episodes))
        store = Store.create(folder, task=printable(first.task), fps=found.fps, robot_type=printable(found.robot_type), codec=args.codec)
        append(store, progress(found.episodes, f"importing {args.source.name}", found.count))
        store.compact()
        episodes, frames = len(store), store.frames
    for note in found.notes:
        say(f"note: {_as_flags(note)}")
    say(f"{args.out}: {episodes:,} episodes, {frames:,} control steps (look at them: "
          f"{shlex.join(['realrl', 'data', 'info', str(args.out), '--html'])})")
    return 0


def _shown_names(episode: Episode) -> Episode:
    """An episode whose texts hold no control characters, which a dataset of ours refuses."""
    from realrl.types import printable
    episode.task, episode.policy = printable(episode.task), printable(episode.policy)
    return episode


def _as_flags(text: str) -> str:
    """Advice that names the options of `realrl.data.formats`, as one would type them here."""
    text = text.replace("action_range=(low, high)", "--action-range LOW HIGH")
    text = re.sub(r"(?<![\w-])(fps|task|format)=(?!\w)", r"--\1", text)
    return re.sub(r"(?<![\w.-])(success|last|clip|images|image_scale|keys|state|split|filter|source|cameras)=(?=[\w'])", r"--option \1=",
                  text)


def _opened(args: argparse.Namespace) -> Imported:
    """The source of an import. LeRobot's own layouts, of version 2 say, are copied into a new dataset."""
    from realrl.data import formats
    options = _options(args) | {name: value for name in ("task", "fps") if (value := getattr(args, name)) is not None}
    if not is_lerobot(args.source) or (not options and formats.lerobot_v2.detect(args.source)):
        return formats.read(args.source, args.format, **options)
    if args.format or options:
        raise mistake()(f"{args.source} is a LeRobot dataset, it says all that --format, --task, --fps and options could: "
                        "leave them out")
    from realrl.data.formats import open_dataset
    store = open_dataset(args.source)
    episodes = (store.read([i])[0] for i in range(len(store)))
    return formats.Imported((store.tasks or [""])[0], store.fps, str(store.info.get("robot_type") or "unknown"), episodes, count=len(store))


def _add_options(parser: Parser) -> None:
    parser.add_argument("--action-range", type=float, nargs=2, metavar=("LOW", "HIGH"),
                        help="the foreign actions' range, which is [-1, 1] here")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the format, e.g. "
                        "success=true or state=agent_pos,block_pose; a wrong name lists those there are")


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """--action-range and every --option NAME=VALUE: true, false, numbers, lists with commas, else text."""
    options: dict[str, Any] = {} if args.action_range is None else {"action_range": tuple(args.action_range)}
    for word in args.option:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise mistake()(f"--option {word!r} is not understood; write NAME=VALUE, e.g. success=true")
        try:
            value = json.loads(text)
        except ValueError:
            value = text.split(",") if "," in text else text
        options[name.replace("-", "_")] = value
    return options
