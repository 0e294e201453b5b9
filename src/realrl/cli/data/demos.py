"""`realrl data demos`: record a task's scripted expert."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realrl.cli.data.episodes import append
from realrl.cli.parser import command, interrupted, mistake, progress, say, whole

if TYPE_CHECKING:
    from realrl.cell.collect import Collector
    from realrl.data.store import Store
    from realrl.types import Policy


def add(actions: Any) -> None:
    """`demos` and its flags."""
    parser = command(actions, "demos", "Record demonstrations of a task's scripted expert, failed attempts included. The same command "
                     "continues an interrupted recording.",
                     "realrl data demos --task metaworld/push-wall-v3 --episodes 20 --out demos", _demos)
    parser.add_argument("--task", required=True, metavar="TASK", help="task to demonstrate, see `realrl tasks`")
    parser.add_argument("--episodes", type=whole(1), required=True, metavar="N", help="successful demonstrations wanted in all")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the dataset, new or to be continued")
    parser.add_argument("--noise", type=float, default=0.0, metavar="STD", help="noise on the expert's actions, of [-1, 1] (default: 0)")
    parser.add_argument("--expert", metavar="WHO", help="folder of a saved policy that demonstrates, an expert's weights where "
                        "the suite's expert is a network (adroit), or a manner (contact/peg: upright, tilting)")
    parser.add_argument("--sight", choices=("rgb", "depth", "pointcloud"), help="what is seen beside the robot's joints (default: state)")
    parser.add_argument("--cameras", nargs="+", metavar="CAMERA", help="cameras to look through (default: the task's choice)")
    parser.add_argument("--size", type=whole(1), nargs=2, default=(84, 84), metavar=("HEIGHT", "WIDTH"),
                        help="of pictures (default: 84 84)")
    parser.add_argument("--points", type=whole(1), default=512, metavar="N", help="of a cloud (default: 512)")
    parser.add_argument("--colour", action="store_true", help="points of a cloud carry their colour")
    parser.add_argument("--frame", choices=("world", "hand"), default="world", help="a cloud's origin, as in the run to come (world)")
    parser.add_argument("--linger", action="store_true", help="go on after success, to the last step: for frames to tell success by (see "
                        "`realrl reward label`)")
    parser.add_argument("--seed", type=whole(0), default=0, metavar="S", help="which set of starts (default: 0)")
    parser.add_argument("--workers", type=whole(0), default=0, metavar="W", help="worker processes (default: one a CPU core)")


def _demos(args: argparse.Namespace) -> int:
    from realrl import envs
    from realrl.cell.collect import Collector
    from realrl.cell.demonstrator import demonstrator
    from realrl.data.store import Store
    from realrl.scene import CollectConfig
    sight = envs.SightConfig(kind=args.sight or "state", cameras=tuple(args.cameras) if args.cameras else None, height=args.size[0],
                             width=args.size[1], points=args.points, colour=args.colour, frame=args.frame)
    env = envs.make(args.task, sight=sight, reward="dense" if args.linger else None)  # a wrong camera is named before a folder is made
    env.close()
    expert = demonstrator(env.task, args.expert, args.noise)
    store = Store.open_or_create(args.out, task=args.task, fps=_rate(args.task))
    try:
        with Collector(args.task, CollectConfig(workers=args.workers), sight=sight, reward="dense" if args.linger else None) as collector:
            good, tried = _record(store, collector, expert, args)
    except KeyboardInterrupt:
        return interrupted(f"; {len(store)} episodes are safe in {args.out}, the same command continues")
    say(f"{args.out}: {good} demonstrations of {args.task} and {tried - good} failed attempts "
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
    from realrl.cell.demonstrator import source
    first = (args.seed % 90 + 1) * 10_000_000
    known = _outcomes(store, args.task, expert.name)
    good = tried = 0
    while good < args.episodes:
        if tried >= max(20 * args.episodes, 100):
            raise mistake()(f"{args.task}: the expert succeeded {good} times in {tried} attempts, {args.episodes} demonstrations wanted: "
                             "lower --noise or --episodes")
        starts = range(first + tried, first + tried + args.episodes - good)
        todo = [seed for seed in starts if seed not in known]
        episodes = collector.collect(expert, todo, greedy=True, noise_seed=args.seed, source=source(args.expert))
        append(store, progress(episodes, f"demonstrating {args.task}", len(todo)))
        known = _outcomes(store, args.task, expert.name)
        good, tried = good + sum(known[seed] for seed in starts), tried + len(starts)
    return good, tried


def _outcomes(store: Store, task: str, policy: str) -> dict[int, bool]:
    """seed -> success of what a policy already recorded on a task."""
    rows = store.rows.select(["policy", "seed", "success", "tasks"]).to_pylist() if len(store) else []
    mine = [row for row in rows if row["policy"] == policy and task in row["tasks"] and row["seed"] is not None]
    return {row["seed"]: bool(row["success"]) for row in mine}
