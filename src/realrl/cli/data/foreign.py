"""`realrl data export | import`: other people's formats."""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realrl.cli.data.episodes import EPISODES, GROUP, MUCH, recorded
from realrl.cli.parser import Parser, command, mistake, progress, say

if TYPE_CHECKING:
    from realrl.data.footage import Encoded
    from realrl.data.formats import Imported
    from realrl.data.store import Store
    from realrl.types import Array, Episode

OPTIONS = ("success|last|clip|images|image_scale|keys|state|split|filter|source|cameras|missing|tolerance|keep|data_path|video_path|"
           "colours")
MANY = 500  # episodes per append, where no pictures are decoded


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
    parser = command(actions, "import", "Make a dataset of another format: HDF5 of robomimic, robosuite, ALOHA and ManiSkill, "
                     "diffusion_policy zarr, Minari, RLDS, pickles of DAPG and HIL-SERL (no code in them is run), LeRobot. The format is "
                     "found out by itself.",
                     "realrl data import pusht_cchi_v7_replay.zarr.zip --out pusht --action-range 0 512", _import)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="file or folder to read; it stays as it is")
    parser.add_argument("--format", metavar="F", help="which format it is, where that cannot be found out")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder; it appears when it is whole")
    parser.add_argument("--task", metavar="TEXT", help="what the robot is asked to do (default: what the source says)")
    parser.add_argument("--fps", type=_rate, metavar="N", help="control steps a second (default: what the source says)")
    parser.add_argument("--rename", action="append", default=[], metavar="OURS=THEIRS", help="of LeRobot's layouts: a column that has "
                        "another name there, e.g. action=actions, observation.state=state, or several to be joined, "
                        "action=action.arm,action.hand; as often as needed")
    parser.add_argument("--leave-out", metavar="LIST", help=f"{EPISODES}, that are not wanted")
    _add_options(parser)
    parser.add_argument("--codec", choices=("av1", "h264"), help="encode all videos so (default: packets are copied where they can "
                        "stand alone, else av1)")


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
        found, numbers = _opened(args), list[int]()
        found.episodes = _wanted(found.episodes, found.count, args, numbers)
        first = next(found.episodes, None)
        if first is None:
            raise mistake()(f"{args.source} holds no episode; there is nothing to import")
        found.episodes = map(_shown_names, itertools.chain([first], found.episodes))
        told: dict[str, Any] = {"task": printable(first.task), "fps": found.fps, "robot_type": printable(found.robot_type)}
        store = Store.create(folder, **told, codec=args.codec or "av1")
        try:
            _append(store, progress(found.episodes, f"importing {args.source.name}", found.count), found.meta.get("names"))
        except mistake() as error:
            raise mistake()(_of_source(str(error), folder, args.source, numbers)) from error
        store.compact()
        episodes, frames = len(store), store.frames
    for note in found.notes:
        say(f"note: {_as_flags(note)}")
    say(f"{args.out}: {episodes:,} episodes, {frames:,} control steps (look at them: "
          f"{shlex.join(['realrl', 'data', 'info', str(args.out), '--html'])})")
    return 0


def _wanted(episodes: Iterator[Episode], count: int | None, args: argparse.Namespace, numbers: list[int]) -> Iterator[Episode]:
    """The episodes that are not left out; their numbers in the source are added to `numbers` as they come."""
    from realrl.data.tools.edit import episode_numbers
    gone = set(episode_numbers(args.leave_out, count, args.source)) if args.leave_out else set()
    for number, episode in enumerate(episodes):
        if number not in gone:
            numbers.append(number)
            yield episode


def _of_source(text: str, folder: Path, source: Path, numbers: list[int]) -> str:
    """What a store refused of an episode, said of the source, with the flag that leaves it out."""
    told = re.fullmatch(rf"{re.escape(str(folder))}: episode (\d+) \(number \d+ of this append\): (.*); [^;]*", text)
    if told is None:
        return text.replace(str(folder), str(source))
    number = numbers[int(told[1])]
    column = re.match(r"observation\.\S+(?= holds NaN)", told[2])
    spare = ""
    if column and column[0] != "observation.state":  # mostly the same in every episode, and nothing that anybody acts upon
        if (source / "meta/info.json").is_file():
            spare = f", or do without that column: take {column[0]} out of meta/info.json"
        elif source.suffix in (".zarr", ".hdf5", ".h5"):
            spare = ", or do without that array: --option keys=NAME,NAME names the others"
    return f"{source}: episode {number}: {told[2]}; mend its source, or leave it out: --leave-out {number}{spare}"


def _append(store: Store, episodes: Iterable[Episode], names: Any) -> None:
    """Record episodes in groups, as large as a video file may be, of films that may share one."""
    from realrl.data.formats.lerobot import taken_out
    waiting: list[tuple[Episode, dict[str, Encoded], dict[str, Array]]] = []
    size = 0

    def flush() -> None:
        if waiting:
            group, films, kept = zip(*waiting, strict=True)
            store.append(group, videos=films, columns=kept, names=names)
            waiting.clear()

    for episode in episodes:
        films, kept = taken_out(episode)
        if size > MUCH or len(waiting) >= (MANY if films else GROUP) or (waiting and _headers(films) != _headers(waiting[0][1])):
            flush()
            size = 0
        waiting.append((episode, films, kept))
        size += sum(x.nbytes for x in episode.obs.values()) + sum(len(p.data) for _, packets in films.values() for p in packets)
    flush()


def _headers(films: dict[str, Encoded]) -> dict[str, Any]:
    return {camera: header for camera, (header, _) in films.items()}


def _rate(text: str) -> int | float:
    """A rate as one types it, 10 or 29.97."""
    try:
        fps = float(text)
    except ValueError:
        fps = 0.0
    if not 0 < fps < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no rate above 0")
    return int(fps) if fps.is_integer() else fps


def _shown_names(episode: Episode) -> Episode:
    """An episode whose texts hold no control characters, which a dataset of ours refuses."""
    from realrl.types import printable
    episode.task, episode.policy = printable(episode.task), printable(episode.policy)
    return episode


def _as_flags(text: str) -> str:
    """Advice that names the options of `realrl.data.formats`, as one would type them here."""
    text = text.replace("action_range=(low, high)", "--action-range LOW HIGH")
    text = re.sub(r"(?<![\w-])(fps|task|format)=(?!\w)", r"--\1", text)
    text = re.sub(r"(?<![\w-])format=(\w+)", r"--format \1", text)
    return re.sub(rf"(?<![\w.-])(?<!--option )(?<!--option ')({OPTIONS})=(?=[\w'])", r"--option \1=", text)


def _opened(args: argparse.Namespace) -> Imported:
    """The source of an import."""
    from realrl.data import formats
    options = _options(args) | {name: value for name in ("task", "fps") if (value := getattr(args, name)) is not None}
    if args.rename:
        options["names"] = dict(_pair(word) for word in args.rename)
    name = args.format or formats.detect(args.source)
    return formats.read(args.source, name, **options, **({"packets": args.codec is None} if name == formats.lerobot.NAME else {}))


def _pair(word: str) -> tuple[str, str]:
    ours, _, theirs = word.partition("=")
    if not ours or not theirs:
        raise mistake()(f"--rename {word!r} is not understood; write OURS=THEIRS, e.g. action=actions")
    return ours, theirs


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
            value = {"True": True, "False": False, "None": None}.get(text, text.split(",") if "," in text else text)
        options[name.replace("-", "_")] = value
    return options
