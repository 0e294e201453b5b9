"""`realrl data info | check | repair | replay`: what a dataset holds, what is wrong with it, what it does."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realrl.cli.data.episodes import EPISODES, recorded
from realrl.cli.parser import command, mistake, progress, say, screen, stdout_kept_clean, whole

if TYPE_CHECKING:
    from realrl.types import Episode

ALIKE = 3  # problems of one kind that are printed; version 2 of LeRobot has a file an episode
JSON = "print one JSON object on standard output, and nothing else there"


def add(actions: Any) -> None:
    """The four commands."""
    for one in (_add_info, _add_check, _add_repair, _add_replay):
        one(actions)


def _add_info(actions: Any) -> None:
    parser = command(actions, "info", "What a dataset holds; with --html also as a page with pictures, curves and everything that is "
                     "wrong.", "realrl data info runs/main/dataset --html", _info)
    parser.add_argument("dir", type=Path, metavar="DIR", help="folder of the dataset")
    parser.add_argument("--html", nargs="?", const="", metavar="FILE", help="write a page (default: DIR.html, beside the folder)")
    parser.add_argument("--pictured", type=whole(0), default=24, metavar="N", help="episodes with thumbnails on the page (default: 24)")
    parser.add_argument("--json", action="store_true", help=JSON)


def _info(args: argparse.Namespace) -> int:
    from realrl.data.tools.check import describe
    about = describe(args.dir)
    if args.html is not None:
        from realrl.report.dataset import write_page
        file = Path(args.html) if args.html else args.dir.resolve().with_name(args.dir.resolve().name + ".html")
        about["html"] = str(write_page(args.dir, file, pictured=args.pictured, each=progress))
    if args.json:
        print(json.dumps(about))
        return 0
    _print_info(args.dir, about)
    if args.html is not None:
        say(f"page: {about['html']}")
    return 0


def _print_info(directory: Path, about: dict[str, Any]) -> None:
    from rich.table import Table

    from realrl.types import printable
    films = f", {about['video_files']:,} video files" if about["video_files"] else ""
    rows = {
        "tasks": "\n".join(map(printable, about["tasks"])), "episodes": f"{about['episodes']:,}", "control steps": f"{about['frames']:,}",
        "mean length": f"{about['mean_length']:.1f} steps, {about['mean_length'] / about['fps']:.2f} s",
        "rate": f"{about['fps']:g} steps/s",
        "success": _success(about),
        "robot": printable(str(about["robot_type"] or "unknown")),
        "recorded by": "\n".join(f"{printable(str(name)) or 'unknown'}: {count:,} episodes" for name, count in about["policies"].items())
        or "unknown",
        "columns": "\n".join(printable(f"{name}  {kind}") for name, kind in about["features"].items()),
        "on disk": f"{about['bytes'] / 2**20:.1f} MiB, {about['data_files']:,} data file{'s' * (about['data_files'] != 1)}{films}"}
    table = Table(show_header=False, title=printable(str(directory)), title_justify="left")
    for name, value in rows.items():
        table.add_row(name, value)
    screen().print(table)


def _success(about: dict[str, Any]) -> str:
    """How episodes ended, and how many of them people judged."""
    rate, ended, said = about["success_rate"], about["outcomes"], about["labels"]
    told = "unknown" if rate is None else f"{100 * rate:.1f} % of the episodes"
    if ended["unknown"] and rate is not None:
        told = f"{100 * rate:.1f} % of {ended['success'] + ended['failure']:,} episodes, {ended['unknown']:,} are unknown"
    by_hand = ", ".join(f"{count:,} {word}" for word, count in said.items() if count)
    return f"{told} (labels: {by_hand})" if by_hand else told


def _add_check(actions: Any) -> None:
    parser = command(actions, "check", "Read every frame of a dataset and print all that is wrong; exit code 1 on errors. Changes "
                     "nothing.", "realrl data check runs/main/dataset --images", _check)
    parser.add_argument("dir", type=Path, metavar="DIR", help="folder of the dataset")
    parser.add_argument("--limits", type=float, nargs=2, default=(-1.0, 1.0), metavar=("LOW", "HIGH"), help="of actions (default: -1 1)")
    parser.add_argument("--images", action="store_true", help="decode every picture too: finds damaged videos and frozen cameras; slow")
    parser.add_argument("--json", action="store_true", help=JSON)


def _check(args: argparse.Namespace) -> int:
    from realrl.data.tools.check import check
    from realrl.data.tools.faults import alike
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
    for kind in alike(problems):
        for problem in kind[:ALIKE]:
            say(problem)
        if more := kind[ALIKE:]:
            say(f"{kind[0].severity}: {len(more)} more like the one before, up to {more[-1].where} (--json lists them all)")
    say(f"{args.dir}: {errors} errors, {len(problems) - errors} warnings" if problems else f"{args.dir}: nothing wrong")
    return 1 if errors else 0


def _add_repair(actions: Any) -> None:
    parser = command(actions, "repair", "Make a damaged dataset whole again: summaries from the tables, tables from what can still be "
                     "read. Nothing is deleted: what was before is kept in DIR/repair-TIME.", "realrl data repair demos --dry-run", _repair)
    parser.add_argument("dir", type=Path, metavar="DIR", help="folder of the dataset")
    parser.add_argument("--images", action="store_true", help="decode every picture too, to find damage inside videos; slow")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done; exit code 1 if there is anything")


def _repair(args: argparse.Namespace) -> int:
    from realrl.data.tools.check import check
    from realrl.data.tools.repair import repair
    done = repair(args.dir, dry_run=args.dry_run, decode=args.images, each=lambda pieces: progress(pieces, "repairing"))
    for line in done.lines:
        say(line)
    if not done.lines:
        say(f"{args.dir}: nothing to repair")
        return 0
    if args.dry_run:
        say(f"{args.dir}: {done.kept} episodes would be kept and {len(done.lost)} dropped; nothing was changed (leave out --dry-run)")
        return 1
    left = [problem for problem in check(args.dir) if problem.severity == "error"]
    for problem in left:
        say(problem)
    backup = f"; what was before is in {done.backup}" if done.backup else ""
    say(f"{args.dir}: {done.kept} episodes, {len(done.lost)} dropped, {len(left)} errors left{backup}")
    return 1 if left else 0


def _add_replay(actions: Any) -> None:
    parser = command(actions, "replay", "Play recorded actions in a simulator from where the recording began, and say how far it drifts "
                     "from what was recorded; exit code 1 when an episode leaves the tolerance.",
                     "realrl data replay demos --task metaworld/push-wall-v3 --episodes 0:5", _replay)
    parser.add_argument("dir", type=Path, metavar="DIR", help="folder of the dataset, or a file that `import` reads")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--task", metavar="TASK", help="task it was recorded on, see `realrl tasks`")
    where.add_argument("--env", metavar="M:F", help="an environment of your own: F, a class or function in the module M, builds it")
    parser.add_argument("--episodes", metavar="LIST", help=EPISODES)
    parser.add_argument("--max-delta", type=float, metavar="D", help="largest change of an action a step that the guard lets through "
                        "(default: no limit but the box)")
    parser.add_argument("--tolerance", type=float, default=1e-3, metavar="D",
                        help="distance between recorded and replayed observation that counts as the same (default: 0.001)")
    parser.add_argument("--json", action="store_true", help=JSON)


def _replay(args: argparse.Namespace) -> int:
    numbers: list[int] = []
    with stdout_kept_clean() if args.json else contextlib.nullcontext():
        from realrl.cell.playback import replay
        from realrl.envs import own
        from realrl.scene import GuardConfig
        count, pairs = recorded(args.dir, args.episodes)

        def episodes() -> Iterator[Episode]:
            for number, episode in progress(pairs, f"replaying on {args.task or args.env}", count):
                numbers.append(number)
                yield episode

        limits = GuardConfig(args.max_delta)
        world = own(args.env)() if args.env else args.task
        played = replay(episodes(), world, tolerance=args.tolerance, guard=limits)
        results = [{**result.to_dict(), "episode": numbers[-1]} for result in played]
        if args.env:
            world.close()
    place = args.task or args.env
    apart = sum(result["first_beyond"] is not None for result in results)
    if args.json:
        print(json.dumps({"path": str(args.dir), "task": place, "tolerance": args.tolerance, "beyond": apart, "episodes": results}))
        return 1 if apart else 0
    from rich.table import Table

    from realrl.types import printable
    table = Table("episode", "steps", "start", "median", "largest", "last", "first beyond", "success", title_justify="left",
                  title=printable(f"{args.dir} on {place}: distance from what was recorded"))
    for r in results:
        ended = {(True, True): "yes", (False, False): "no", (True, False): "recorded only", (False, True): "replayed only"}.get(
            (r["success_recorded"], r["success_replayed"]), f"{'yes' if r['success_replayed'] else 'no'} (recording: unknown)")
        table.add_row(str(r["episode"]), str(r["steps"]), *(f"{r[name]:.3g}" for name in ("start", "median", "largest", "last")),
                      "never" if r["first_beyond"] is None else f"step {r['first_beyond']}", ended)
    screen().print(table)
    say(f"{len(results) - apart} of {len(results)} episodes stay within {args.tolerance:g}")
    return 1 if apart else 0
