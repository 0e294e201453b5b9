"""The commands on datasets: `realrl data demos | info | check | repair | merge | split | delete-episodes | trim | replay | export |
import`, each a function that returns its exit code, as in `cli`."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from realrl.cli.parser import add, interrupted, mistake, progress, screen, stdout_kept_clean, whole

if TYPE_CHECKING:
    from realrl.cell.collect import Collector
    from realrl.data.formats import Imported
    from realrl.data.store import Store
    from realrl.data.tools.edit import Edited
    from realrl.types import Episode, Policy

T = TypeVar("T")
GROUP = 20  # episodes per append to a dataset
MUCH = 2**28  # bytes of observations in memory that are appended at once
EPISODES = "episodes, counted from 0: 3,7,10:20 (the end of a range is not part of it)"


def add_commands(actions: Any) -> None:
    """Add every command on datasets to the parser of `realrl data`."""
    _add_recording(actions)
    _add_examining(actions)
    _add_editing(actions)
    _add_foreign(actions)


def _add_recording(actions: Any) -> None:
    demos = add(actions, "demos", "Record demonstrations of a task's scripted expert, failed attempts included. The same command "
                "continues an interrupted recording.", "realrl data demos --task metaworld/push-wall-v3 --episodes 20 --out demos", _demos)
    demos.add_argument("--task", required=True, metavar="TASK", help="task to demonstrate, see `realrl tasks`")
    demos.add_argument("--episodes", type=whole(1), required=True, metavar="N", help="successful demonstrations wanted in all")
    demos.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the dataset, new or to be continued")
    demos.add_argument("--noise", type=float, default=0.0, metavar="STD", help="noise on the expert's actions, of [-1, 1] (default: 0)")
    demos.add_argument("--expert", metavar="PATH", help="the expert's weights, for suites whose expert is a network (adroit)")
    demos.add_argument("--sight", choices=("rgb", "depth", "pointcloud"), help="what is seen beside the robot's joints (default: state)")
    demos.add_argument("--cameras", nargs="+", metavar="CAMERA", help="cameras to look through (default: the task's choice)")
    demos.add_argument("--size", type=whole(1), nargs=2, default=(84, 84), metavar=("HEIGHT", "WIDTH"), help="of pictures (default: 84 84)")
    demos.add_argument("--points", type=whole(1), default=512, metavar="N", help="of a cloud (default: 512)")
    demos.add_argument("--colour", action="store_true", help="points of a cloud carry their colour")
    demos.add_argument("--frame", choices=("world", "hand"), default="world", help="a cloud's origin, as in the run to come (world)")
    demos.add_argument("--seed", type=whole(0), default=0, metavar="S", help="which set of starts (default: 0)")
    demos.add_argument("--workers", type=whole(0), default=0, metavar="W", help="worker processes (default: one a CPU core)")


def _add_examining(actions: Any) -> None:
    info = add(actions, "info", "What a dataset holds; with --html also as a page with pictures, curves and everything that is wrong.",
               "realrl data info runs/main/dataset --html", _info)
    check = add(actions, "check", "Read every frame of a dataset and print all that is wrong; exit code 1 on errors. Changes nothing.",
                "realrl data check runs/main/dataset --images", _check)
    repair = add(actions, "repair", "Make a damaged dataset whole again: summaries from the tables, tables from what can still be read. "
                 "Nothing is deleted: what was before is kept in DIR/repair-TIME.", "realrl data repair demos --dry-run", _repair)
    replay = add(actions, "replay", "Play recorded actions in a simulator from where the recording began, and say how far it drifts from "
                 "what was recorded; exit code 1 when an episode leaves the tolerance.",
                 "realrl data replay demos --task metaworld/push-wall-v3 --episodes 0:5", _replay)
    for parser in (info, check, repair):
        parser.add_argument("dir", type=Path, metavar="DIR", help="folder of the dataset")
    replay.add_argument("dir", type=Path, metavar="DIR", help="folder of the dataset, or a file that `import` reads")
    info.add_argument("--html", nargs="?", const="", metavar="FILE", help="write a page (default: DIR.html, beside the folder)")
    info.add_argument("--pictured", type=whole(0), default=24, metavar="N", help="episodes with thumbnails on the page (default: 24)")
    check.add_argument("--limits", type=float, nargs=2, default=(-1.0, 1.0), metavar=("LOW", "HIGH"), help="of actions (default: -1 1)")
    check.add_argument("--images", action="store_true", help="decode every picture too: finds damaged videos and frozen cameras; slow")
    repair.add_argument("--images", action="store_true", help="decode every picture too, to find damage inside videos; slow")
    repair.add_argument("--dry-run", action="store_true", help="only say what would be done; exit code 1 if there is anything")
    replay.add_argument("--task", required=True, metavar="TASK", help="task it was recorded on, see `realrl tasks`")
    replay.add_argument("--episodes", metavar="LIST", help=EPISODES)
    replay.add_argument("--tolerance", type=float, default=1e-3, metavar="D",
                        help="distance between recorded and replayed observation that counts as the same (default: 0.001)")
    for parser in (info, check, replay):
        parser.add_argument("--json", action="store_true", help="print one JSON object on standard output, and nothing else there")


def _add_editing(actions: Any) -> None:
    merge = add(actions, "merge", "Several datasets of one robot as one.", "realrl data merge monday tuesday --out week", _merge)
    split = add(actions, "split", "A dataset as several, each a folder below OUT.",
                "realrl data split demos --by train=0.8,test=0.2 --shuffle 0 --out parts", _split)
    delete = add(actions, "delete-episodes", "A dataset less some of its episodes.",
                 "realrl data delete-episodes demos --episodes 3,7,10:20 --out good", _delete)
    trim = add(actions, "trim", "A dataset whose episodes begin later or end earlier.",
               "realrl data trim demos --start 10 --after-success --out short", _trim)
    merge.add_argument("dirs", type=Path, nargs="+", metavar="DIR", help="folders of the datasets, in the order wanted")
    for parser in (split, delete, trim):
        parser.add_argument("dir", type=Path, metavar="DIR", help="folder of the dataset, which stays as it is")
    for parser in (merge, split, delete, trim):
        parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="new folder; it appears when it is whole")
    split.add_argument("--by", required=True, metavar="HOW", help="'success'; fractions (0.8,0.2 or train=0.8,test=0.2); or episodes "
                       "(0:80,80:100 or train=0:80,test=80:100)")
    split.add_argument("--shuffle", type=whole(0), metavar="SEED", help="deal episodes to fractions at random (default: in order)")
    delete.add_argument("--episodes", metavar="LIST", help=EPISODES)
    delete.add_argument("--failed", action="store_true", help="all that did not end in success")
    trim.add_argument("--start", type=whole(0), default=0, metavar="N", help="frames to cut from the start of every episode (default: 0)")
    trim.add_argument("--end", type=whole(0), default=0, metavar="N", help="frames to cut from the end of every episode (default: 0)")
    trim.add_argument("--after-success", action="store_true", help="cut what follows the first success")
    trim.add_argument("--episodes", metavar="LIST", help=f"cut only these {EPISODES}")
    trim.add_argument("--keep", nargs="+", default=[], metavar="E=A:B", help="of episode E keep frames A to B alone, e.g. 3=20:180")


def _add_foreign(actions: Any) -> None:
    exporting = add(actions, "export", "Write a dataset in another format: robomimic (HDF5), diffusion_policy (zarr) or minari.",
                    "realrl data export demos --format robomimic --out demos.hdf5", _export)
    importing = add(actions, "import", "Make a dataset of another format: robomimic and robosuite HDF5, diffusion_policy zarr, Minari, "
                    "RLDS, pickles of DAPG and HIL-SERL (no code in them is run), LeRobot 1 and 2. The format is found out by itself.",
                    "realrl data import pusht_cchi_v7_replay.zarr.zip --out pusht --action-range 0 512", _import)
    exporting.add_argument("dir", type=Path, metavar="DIR", help="folder of the dataset")
    importing.add_argument("source", type=Path, metavar="SOURCE", help="file or folder to read; it stays as it is")
    importing.add_argument("--format", metavar="F", help="which format it is, where that cannot be found out")
    exporting.add_argument("--format", required=True, metavar="F", help="robomimic, diffusion_policy or minari")
    exporting.add_argument("--out", type=Path, required=True, metavar="PATH", help="new file or folder")
    importing.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder; it appears when it is whole")
    exporting.add_argument("--episodes", metavar="LIST", help=EPISODES)
    importing.add_argument("--task", metavar="TEXT", help="what the robot is asked to do (default: what the source says)")
    importing.add_argument("--fps", type=whole(1), metavar="N", help="control steps a second (default: what the source says)")
    for parser in (exporting, importing):
        parser.add_argument("--action-range", type=float, nargs=2, metavar=("LOW", "HIGH"),
                            help="the foreign actions' range, which is [-1, 1] here")
        parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the format, e.g. "
                            "success=true or state=agent_pos,block_pose; a wrong name lists those there are")
    importing.add_argument("--codec", choices=("av1", "h264"), default="av1", help="of the videos (default: av1)")


# -- recording ------------------------------------------------------------------------------------------------------------------


def _demos(args: argparse.Namespace) -> int:
    from realrl import envs
    from realrl.cell.collect import Collector
    from realrl.data.store import Store
    from realrl.scene import CollectConfig
    expert = envs.expert(args.task, args.expert, noise=args.noise)
    sight = envs.SightConfig(kind=args.sight or "state", cameras=tuple(args.cameras) if args.cameras else None, height=args.size[0],
                             width=args.size[1], points=args.points, colour=args.colour, frame=args.frame)
    envs.make(args.task, sight=sight).close()  # a wrong camera is named before a folder is made
    store = Store.open_or_create(args.out, task=args.task, fps=_rate(args.task))
    try:
        with Collector(args.task, CollectConfig(workers=args.workers), sight=sight) as collector:
            good, tried = _record(store, collector, expert, args)
    except KeyboardInterrupt:
        return interrupted(f"; {len(store)} episodes are safe in {args.out}, the same command continues")
    _say(f"{args.out}: {good} demonstrations of {args.task} and {tried - good} failed attempts "
          f"(look at them: {shlex.join(['realrl', 'data', 'info', str(args.out)])})")
    return 0


def _rate(task: str) -> int:
    """Control steps a second of a task. Raises RealrlError on an unknown one or where its simulator is missing."""
    from realrl import envs
    env = envs.make(task)
    env.close()
    return round(1 / env.task.dt)


def _record(store: Store, collector: Collector, expert: Policy, args: argparse.Namespace) -> tuple[int, int]:
    """Attempts from consecutive starts until enough succeeded: (successes, attempts).

    The next round tries as many starts as successes are missing, so an interrupted recording and a whole one end with the same
    episodes. Starts lie below every evaluation's, see `evaluate.HELD_OUT`.
    """
    from realrl.types import Source
    first = (args.seed % 90 + 1) * 10_000_000
    known = _outcomes(store, args.task, expert.name)
    good = tried = 0
    while good < args.episodes:
        if tried >= max(20 * args.episodes, 100):
            raise mistake()(f"{args.task}: the expert succeeded {good} times in {tried} attempts, {args.episodes} demonstrations wanted: "
                             "lower --noise or --episodes")
        starts = range(first + tried, first + tried + args.episodes - good)
        todo = [seed for seed in starts if seed not in known]
        episodes = collector.collect(expert, todo, greedy=True, noise_seed=args.seed, source=Source.SCRIPT)
        _append(store, progress(episodes, f"demonstrating {args.task}", len(todo)))
        known = _outcomes(store, args.task, expert.name)
        good, tried = good + sum(known[seed] for seed in starts), tried + len(starts)
    return good, tried


def _append(store: Store, episodes: Iterable[Any]) -> None:
    """Record episodes as they come; an interruption records those that are finished."""
    waiting: list[Any] = []
    try:
        for episode in episodes:
            waiting.append(episode)
            if len(waiting) >= GROUP or sum(x.nbytes for e in waiting for x in e.obs.values()) > MUCH:
                store.append(waiting)
                waiting = []
    finally:
        store.append(waiting)


def _outcomes(store: Store, task: str, policy: str) -> dict[int, bool]:
    """seed -> success of what a policy already recorded on a task."""
    rows = store.rows.select(["policy", "seed", "success", "tasks"]).to_pylist() if len(store) else []
    return {row["seed"]: row["success"] for row in rows if row["policy"] == policy and task in row["tasks"] and row["seed"] is not None}


# -- examining ------------------------------------------------------------------------------------------------------------------


def _info(args: argparse.Namespace) -> int:
    from realrl.data.tools.check import describe
    about = describe(args.dir)
    if args.html is not None:
        from realrl.report.dataset import write_page
        file = Path(args.html) if args.html else args.dir.resolve().with_name(args.dir.resolve().name + ".html")
        about["html"] = str(write_page(args.dir, file, pictured=args.pictured, each=lambda items, what: _bar(items, what)))
    if args.json:
        print(json.dumps(about))
        return 0
    _print_info(args.dir, about)
    if args.html is not None:
        _say(f"page: {about['html']}")
    return 0


def _print_info(directory: Path, about: dict[str, Any]) -> None:
    from rich.table import Table

    from realrl.types import printable
    rate = about["success_rate"]
    films = f", {about['video_files']:,} video files" if about["video_files"] else ""
    rows = {
        "tasks": "\n".join(map(printable, about["tasks"])), "episodes": f"{about['episodes']:,}", "control steps": f"{about['frames']:,}",
        "mean length": f"{about['mean_length']:.1f} steps, {about['mean_length'] / about['fps']:.2f} s",
        "rate": f"{about['fps']:g} steps/s",
        "success": "unknown" if rate is None else f"{100 * rate:.1f} % of the episodes",
        "robot": printable(str(about["robot_type"] or "unknown")),
        "recorded by": "\n".join(f"{printable(str(name))}: {count:,} episodes" for name, count in about["policies"].items()) or "unknown",
        "columns": "\n".join(printable(f"{name}  {kind}") for name, kind in about["features"].items()),
        "on disk": f"{about['bytes'] / 2**20:.1f} MiB, {about['data_files']:,} data files{films}"}
    table = Table(show_header=False, title=printable(str(directory)), title_justify="left")
    for name, value in rows.items():
        table.add_row(name, value)
    screen().print(table, markup=False)


def _check(args: argparse.Namespace) -> int:
    from realrl.data.tools.check import check
    low, high = args.limits
    if not low < high:
        raise mistake()(f"--limits {low:g} {high:g}: the lower limit comes first")
    problems = check(args.dir, decode=args.images, limits=(low, high))
    errors = sum(problem.severity == "error" for problem in problems)
    if args.json:
        import dataclasses
        print(json.dumps({"path": str(args.dir), "errors": errors, "warnings": len(problems) - errors,
                          "problems": [dataclasses.asdict(problem) for problem in problems]}))
        return 1 if errors else 0
    for problem in problems:
        _say(problem)
    _say(f"{args.dir}: {errors} errors, {len(problems) - errors} warnings" if problems else f"{args.dir}: nothing wrong")
    return 1 if errors else 0


def _repair(args: argparse.Namespace) -> int:
    from realrl.data.tools.check import check
    from realrl.data.tools.repair import repair
    done = repair(args.dir, dry_run=args.dry_run, decode=args.images, each=lambda pieces: _bar(pieces, "repairing"))
    for line in done.lines:
        _say(line)
    if not done.lines:
        _say(f"{args.dir}: nothing to repair")
        return 0
    if args.dry_run:
        _say(f"{args.dir}: {done.kept} episodes would be kept and {len(done.lost)} dropped; nothing was changed (leave out --dry-run)")
        return 1
    left = [problem for problem in check(args.dir) if problem.severity == "error"]
    for problem in left:
        _say(problem)
    backup = f"; what was before is in {done.backup}" if done.backup else ""
    _say(f"{args.dir}: {done.kept} episodes, {len(done.lost)} dropped, {len(left)} errors left{backup}")
    return 1 if left else 0


def _replay(args: argparse.Namespace) -> int:
    numbers: list[int] = []
    with stdout_kept_clean() if args.json else contextlib.nullcontext():
        from realrl.cell.playback import replay
        count, pairs = _recorded(args.dir, args.episodes)

        def episodes() -> Iterator[Episode]:
            for number, episode in _bar(pairs, f"replaying on {args.task}", count):
                numbers.append(number)
                yield episode

        results = [{**result.to_dict(), "episode": numbers[-1]} for result in replay(episodes(), args.task, tolerance=args.tolerance)]
    apart = sum(result["first_beyond"] is not None for result in results)
    if args.json:
        print(json.dumps({"path": str(args.dir), "task": args.task, "tolerance": args.tolerance, "beyond": apart, "episodes": results}))
        return 1 if apart else 0
    from rich.table import Table
    table = Table("episode", "steps", "start", "median", "largest", "last", "first beyond", "success", title=f"{args.dir} on {args.task}: "
                  "distance from what was recorded", title_justify="left")
    for r in results:
        ended = {(True, True): "yes", (False, False): "no"}.get((r["success_recorded"], r["success_replayed"]),
                                                                "recorded only" if r["success_recorded"] else "replayed only")
        table.add_row(str(r["episode"]), str(r["steps"]), *(f"{r[name]:.3g}" for name in ("start", "median", "largest", "last")),
                      "never" if r["first_beyond"] is None else f"step {r['first_beyond']}", ended)
    screen().print(table, markup=False)
    _say(f"{len(results) - apart} of {len(results)} episodes stay within {args.tolerance:g}")
    return 1 if apart else 0


# -- editing --------------------------------------------------------------------------------------------------------------------


def _merge(args: argparse.Namespace) -> int:
    from realrl.data.tools import edit
    return _edited(edit.merge(args.dirs, args.out, each=lambda pieces: _bar(pieces, "merging")))


def _split(args: argparse.Namespace) -> int:
    from realrl.data.tools import edit
    parts = edit.split(args.dir, args.out, args.by, shuffle=args.shuffle, each=lambda pieces: _bar(pieces, "splitting"))
    return _edited(*parts.values())


def _delete(args: argparse.Namespace) -> int:
    from realrl.data.tools import edit
    if args.episodes is None and not args.failed:
        raise mistake()("which episodes? give --episodes LIST or --failed")
    return _edited(edit.delete_episodes(args.dir, args.out, () if args.episodes is None else args.episodes, failed=args.failed,
                                        each=lambda pieces: _bar(pieces, "copying")))


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
                             episodes=args.episodes, each=lambda pieces: _bar(pieces, "trimming")))


def _edited(*made: Edited) -> int:
    for one in made:
        for note in one.notes:
            _say(f"note: {note}")
        _say(f"{one.path}: {one.episodes:,} episodes, {one.frames:,} control steps")
    return 0


# -- other formats --------------------------------------------------------------------------------------------------------------


def _export(args: argparse.Namespace) -> int:
    from realrl.data import formats
    from realrl.data.formats import open_dataset
    count, pairs = _recorded(args.dir, args.episodes)
    episodes = (episode for _, episode in _bar(pairs, f"writing {args.format}", count))
    formats.write(args.format, episodes, args.out, fps=open_dataset(args.dir).fps, **_options(args))
    _say(f"{args.out}: {count:,} episodes in the format {args.format}")
    return 0


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
        _append(store, _bar(found.episodes, f"importing {args.source.name}", found.count))
        store.compact()
        episodes, frames = len(store), store.frames
    for note in found.notes:
        _say(f"note: {_as_flags(note)}")
    _say(f"{args.out}: {episodes:,} episodes, {frames:,} control steps (look at them: "
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
    return re.sub(r"(?<![\w.-])(success|last|clip|images|keys|state|split|filter|source|cameras)=(?=[\w'])", r"--option \1=", text)


def _is_lerobot(path: Path) -> bool:
    return (path / "meta/info.json").is_file()


def _opened(args: argparse.Namespace) -> Imported:
    """The source of an import. LeRobot's own layouts, of version 2 say, are copied into a new dataset."""
    from realrl.data import formats
    options = _options(args) | {name: value for name in ("task", "fps") if (value := getattr(args, name)) is not None}
    if not _is_lerobot(args.source) or (not options and formats.lerobot_v2.detect(args.source)):
        return formats.read(args.source, args.format, **options)
    if args.format or options:
        raise mistake()(f"{args.source} is a LeRobot dataset, it says all that --format, --task, --fps and options could: "
                        "leave them out")
    from realrl.data.formats import open_dataset
    store = open_dataset(args.source)
    episodes = (store.read([i])[0] for i in range(len(store)))
    return formats.Imported((store.tasks or [""])[0], store.fps, str(store.info.get("robot_type") or "unknown"), episodes, count=len(store))


def _recorded(path: Path, chosen: str | None) -> tuple[int | None, Iterator[tuple[int, Episode]]]:
    """(how many, number and episode of each, read one by one) of a dataset or of a file in another format."""
    from realrl.data import formats
    from realrl.data.formats import open_dataset
    from realrl.data.tools import edit
    if path.is_file() or (not _is_lerobot(path) and any(module.detect(path) for module in formats.FORMATS.values())):
        found = formats.read(path)
        if chosen is None:
            return found.count, enumerate(found.episodes)
        wanted = set(edit.episode_numbers(chosen, found.count, path))
        return len(wanted), ((number, episode) for number, episode in enumerate(found.episodes) if number in wanted)
    store = open_dataset(path)
    numbers = range(len(store)) if chosen is None else edit.episode_numbers(chosen, len(store), path)
    return len(numbers), ((number, store.read([number])[0]) for number in numbers)


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


def _say(text: object) -> None:
    """A line on standard output. It may name what stands in other people's files: what a terminal would obey is spelt out."""
    from realrl.types import printable
    print(printable(str(text)))


def _bar(items: Iterable[T], title: str, total: int | None = None) -> Iterable[T]:
    """The items with a progress bar that is gone when they are."""
    return progress(items, title, len(items) if total is None and isinstance(items, Sequence) else total)
