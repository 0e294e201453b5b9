"""`realrl view`: what a policy sees, as a page."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from realrl.cli.data.episodes import EPISODES
from realrl.cli.parser import command, mistake, progress, whole


def add(commands: Any) -> None:
    """`view` and its flags."""
    parser = command(commands, "view", "What a policy sees, as a page: cameras, clouds that turn, actions, rewards, on one time line. Of a "
                     "task (its expert or a policy runs now), of a recorded dataset, or of a run.",
                     "realrl view runs/main/dataset --episodes 0,3,7\n"
                     "  realrl view metaworld/door-open-v3 --policy runs/main/policy --mp4", _view)
    parser.add_argument("what", metavar="TASK|DATASET|RUN", help="name of a task, folder of a dataset, or folder of a run")
    parser.add_argument("--episodes", metavar="LIST", help=f"{EPISODES}; of a task, starts counted from --seed")
    parser.add_argument("--worst", type=whole(1), metavar="N", help="the N worst recorded ones: failures first, then by return")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write to (default: beside the dataset, in the run, view-TASK)")
    parser.add_argument("--policy", type=Path, metavar="DIR", help="who acts on a task (default: its scripted expert, else chance)")
    parser.add_argument("--seed", type=whole(0), default=0, metavar="S", help="start of a task's episode (default: 0)")
    parser.add_argument("--sight", metavar="KINDS", help="what to look at a task with: state, or some of "
                        "rgb,depth,pointcloud; the episode is played again for each (default: rgb)")
    parser.add_argument("--mp4", action="store_true", help="also a film of every episode")
    parser.add_argument("--rerun", action="store_true", help="also a recording for the Rerun viewer, which opens where there is a display")


def _view(args: argparse.Namespace) -> int:
    from realrl import envs
    from realrl.data.tools.edit import episode_numbers
    from realrl.report.view import recording, view
    numbers = None if args.episodes is None else episode_numbers(args.episodes)
    if not Path(args.what).exists() and not envs.known(args.what):
        try:
            envs.make(args.what)
        except mistake() as error:
            raise mistake()(f"{error}; nor is there a folder of this name") from None
    files = view(args.what, episodes=numbers, worst=args.worst, out=args.out, policy=args.policy, seed=args.seed,
                 sights=args.sight and args.sight.split(","), mp4=args.mp4, rerun=args.rerun, each=progress,
                 tell=lambda note: print(note, file=sys.stderr))
    for file in files:
        size = file.stat().st_size
        print(f"{file}  ({f'{size / 1e6:.1f} MB' if size >= 1e6 else f'{size / 1e3:.0f} kB'})")
    if (recordings := [file for file in files if file.suffix == ".rrd"]) and not recording.show(recordings):
        print(f"look at them where there is a display: {shlex.join(['rerun', *map(str, recordings)])}")
    return 0
