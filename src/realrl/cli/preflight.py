"""`realrl preflight` and `realrl calibrate`: a served robot examined before a policy moves it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from realrl.cli.parser import Parser, command, group, say, whole

URL = "address that `realrl robot serve` printed"


def add(commands: Any) -> None:
    """Both commands."""
    parser = command(commands, "preflight", "The live robot beside the recordings a policy was trained on: units, order of joints, rate, "
                     "ranges, cameras, the sign of each channel, which is moved a little. Where something is off the robot is "
                     "stopped until a person arms it, and the exit code is 1.",
                     "realrl preflight --robot ws://127.0.0.1:8770 --data demos/plug", _preflight)
    parser.add_argument("--robot", required=True, metavar="URL", help=URL)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="data set that the policy was trained on")
    parser.add_argument("--no-probe", action="store_true", help="move nothing (but the way to the start)")
    parser.add_argument("--seed", type=whole(0), default=0, metavar="S", help="start to go to (default: 0)")
    calibrate = group(commands, "calibrate", "Measure a served robot.", "realrl calibrate latency --robot ws://127.0.0.1:8770")
    inner = calibrate.add_subparsers(metavar="WHAT", parser_class=Parser)
    latency = command(inner, "latency", "How late readings, motions and pictures are: each channel is swung a little.",
                      "realrl calibrate latency --robot ws://127.0.0.1:8770 --out latency.json", _latency)
    latency.add_argument("--robot", required=True, metavar="URL", help=URL)
    latency.add_argument("--out", type=Path, default=Path("latency.json"), metavar="FILE", help="where it is kept (default: latency.json)")


def _preflight(args: argparse.Namespace) -> int:
    from realrl.cell.preflight import preflight
    from realrl.robots.client import RobotClient
    env = RobotClient(args.robot, horizon=100_000)
    try:
        found = preflight(env, args.data, probe=not args.no_probe, seed=args.seed)
    finally:
        env.close()
    for finding in found:
        say(f"{'ok  ' if finding.fine else 'OFF '} {finding.text}")
    if all(finding.fine for finding in found):
        return 0
    say(f"The robot is stopped: mend what is off, then let it follow again with realrl robot arm {args.robot}")
    return 1


def _latency(args: argparse.Namespace) -> int:
    from realrl.cell.latency import calibrate
    from realrl.robots.client import RobotClient
    env = RobotClient(args.robot, horizon=100_000)
    try:
        found = calibrate(env)
    finally:
        env.close()
    found.save(args.out)
    say(f"readings {1e3 * found.reading:.1f} ms old, the link {1e3 * found.link:.1f} ms there and back")
    for what, late in (("channel", found.channels), ("camera", found.cameras)):
        for name, value in late.items():
            say(f"{what} {name}: {1e3 * value:.0f} ms")
    say(f"in all {1e3 * found.whole:.0f} ms, {found.whole / env.task.dt:.1f} actions; kept in {args.out}")
    return 0
