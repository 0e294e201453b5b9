"""`realrl robot`: serve one, and what a person says to it: arm, ready, stop, park, status."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realrl.cli.parser import Parser, command, group, mistake, number, progress, say, screen, whole

if TYPE_CHECKING:
    from realrl.robots.driver import Driver
    from realrl.robots.settings import ServerConfig

HERE = "ws://127.0.0.1:8770"
URL = f"address that `realrl robot serve` printed (default: {HERE})"
SAID = {"arm": "All is well: let the robot follow again. Faults that are still there are named, and keep it held.",
        "ready": "The scene is set up by hand: the episode may begin.",
        "stop": "Brake and hold now, until a person arms it. No emergency stop: that is a button that cuts the drives.",
        "park": "Go to the place of rest, slowly, and stay there until a person arms it.",
        "status": "What the robot is doing, and what is wrong with it."}


def add(commands: Any) -> None:
    """`robot` and its commands."""
    robot = group(commands, "robot", "Serve a robot, or talk to one that is served.", "realrl robot serve --sim arm/panda-pick")
    inner = robot.add_subparsers(metavar="COMMAND", parser_class=Parser)
    serve = command(inner, "serve", "Own a robot: guard it, watch its commander, park it, keep a log. Policies may die, the arm is safe.",
                    "realrl robot serve my-arm.yaml", _serve)
    serve.add_argument("config", type=Path, nargs="?", metavar="CONFIG", help="YAML file of realrl.robots.settings.ServerConfig")
    serve.add_argument("--sim", metavar="TASK", help="a simulated robot in real time: arm/..., contact/... or quadruped/...; "
                       "of a CONFIG beside it all counts but its driver")
    serve.add_argument("--host", metavar="H", help="address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", type=whole(0), metavar="P", help="port to listen on, 0 for a free one (default: 8770)")
    serve.add_argument("--log", type=Path, metavar="DIR", help="folder for the server's own log (default: robot-log)")
    serve.add_argument("--arm", action="store_true", help="arm it at once: you stand beside it and all is well (a simulated one always is)")
    serve.add_argument("--cameras", nargs="*", default=(), metavar="NAME", help="cameras of a simulated robot: an arm has front "
                       "and side, the peg wrist and side, four legs beside")
    serve.add_argument("--latency-ms", type=number(0, 10_000), default=0.0, metavar="MS", help="age of a simulated robot's readings")
    serve.add_argument("--jitter-ms", type=number(0, 10_000), default=0.0, metavar="MS", help="how much that varies")
    serve.add_argument("--loss", type=number(0, 1), default=0.0, metavar="P", help="share of a simulated robot's packets that are lost")
    serve.add_argument("--fault", action="append", default=[], metavar="NAME=X", help="a simulated robot is broken from the start (see "
                       "realrl robot fault): sign=2, say, for a second channel that counts the other way")
    faults = command(inner, "fault-campaign", "Order every fault on a simulated robot at work, and judge its server by its own log.",
                     "realrl robot fault-campaign --sim arm/panda-pick --times 5", _campaign)
    faults.add_argument("--sim", default="arm/panda-pick", metavar="TASK", help="the simulated robot (default: arm/panda-pick)")
    faults.add_argument("--times", type=whole(1), default=5, metavar="N", help="times of each fault (default: 5)")
    faults.add_argument("--only", type=whole(1), nargs="*", default=(), metavar="NUMBER", help="faults of these numbers alone")
    faults.add_argument("--cameras", nargs="*", default=(), metavar="NAME", help="its cameras, of which one stands still: front side")
    faults.add_argument("--log", type=Path, default=Path("fault-campaign"), metavar="DIR", help="where the server's logs go")
    fault = command(inner, "fault", "Break a simulated robot, or mend it again, while it works: camera, nan, frozen, silent, loss, deaf, "
                    "estop, hot, stall, push, lost, drift, latency, jitter, units, order, sign; none ends them all.",
                    "realrl robot fault estop; realrl robot fault none", _break)
    fault.add_argument("name", metavar="NAME", help="what breaks")
    fault.add_argument("url", nargs="?", default=HERE, metavar="URL", help=URL)
    fault.add_argument("--value", type=number(0, 1e6), default=1.0, metavar="X", help="how much, in the fault's unit: N of push, s of "
                       "latency and jitter, m/s of drift, share of loss, the number of a channel (from 1) of units, order and sign; 0 "
                       "ends it (default: 1)")
    for name, text in SAID.items():
        said = command(inner, name, text, f"realrl robot {name} ws://127.0.0.1:8770", _say)
        said.add_argument("url", nargs="?", default=HERE, metavar="URL", help=URL)
        said.set_defaults(said=name)


def _serve(args: argparse.Namespace) -> int:
    from realrl.robots.driver import checked
    from realrl.robots.server import RobotServer, check
    cfg = _settings(args)
    check(cfg)
    with _alone(args):
        driver, cfg = _robot(args, cfg)
        try:
            server = RobotServer(checked(driver, cfg.name), cfg, arm=args.arm or args.sim is not None,
                                 say=lambda line: print(line, flush=True))
        except BaseException:
            getattr(driver, "close", lambda: None)()  # it may be no driver at all
            raise
        server.run()
    return 0


@contextlib.contextmanager
def _alone(args: argparse.Namespace) -> Iterator[None]:
    """While a CONFIG's robot is served: two processes at one arm would both write to it. Raises RealrlError where it is already."""
    from realrl.files import taken
    if args.sim is not None:
        yield
        return
    with args.config.open("rb") as file:
        if not taken(file.fileno(), 0.0):
            raise mistake()(f"{args.config}: this robot is served already, by another process: end that first, or talk to it (realrl robot "
                            "status)")
        yield


def _settings(args: argparse.Namespace) -> ServerConfig:
    """How it is served. Raises RealrlError where nothing says what."""
    from realrl import config
    from realrl.robots.settings import ServerConfig
    if args.config is None and args.sim is None:
        raise mistake()("give the robot's CONFIG, or --sim TASK for a simulated one (and a CONFIG of what shall be other than usual)")
    cfg = ServerConfig() if args.config is None else config.load(ServerConfig, args.config)
    if args.sim is None and cfg.driver is None:
        raise mistake()(f"{args.config}: it names no driver; add driver: MODULE:FACTORY, see docs/howto/your-robot.md")
    return replace(cfg, **{name: value for name in ("host", "port", "log") if (value := getattr(args, name)) is not None})


def _robot(args: argparse.Namespace, cfg: ServerConfig) -> tuple[Driver, ServerConfig]:
    """What to serve, and how."""
    if args.sim:
        from realrl.robots.sim import simulated
        broken = [_fault(text) for text in args.fault]
        robot, cfg = simulated(args.sim, cfg, cameras=args.cameras, latency=args.latency_ms / 1e3, jitter=args.jitter_ms / 1e3,
                               loss=args.loss)
        try:
            for name, value in broken:
                robot.inject(name, value)
        except ValueError as error:
            robot.close()
            raise mistake()(f"--fault {name}={value:g}: {error}") from None
        return robot, cfg
    from realrl import envs
    assert cfg.driver is not None
    made = envs.own(cfg.driver, said="driver:", what="driver")
    try:
        driver: Driver = made(**cfg.options)
    except (mistake(), OSError):
        raise
    except Exception as error:  # of a driver of one's own, or of its vendor's library
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise mistake()(f"{args.config}: {cfg.driver} could not be built with options {cfg.options} ({why}); REALRL_DEBUG=1 shows "
                        "where") from error
    return driver, cfg


def _fault(text: str) -> tuple[str, float]:
    """The name and size of a fault that --fault says. Raises RealrlError where it says none."""
    name, _, value = text.partition("=")
    try:
        return name, float(value or 1)
    except ValueError:
        raise mistake()(f"--fault {text}: {value} is no number; say NAME=X, e.g. sign=2") from None


def _campaign(args: argparse.Namespace) -> int:
    from rich.table import Table

    from realrl.cell.campaign import campaign, kinds, table
    from realrl.cell.faults import KINDS, Rig
    from realrl.robots.bodies import named
    rig = Rig(named(args.sim), args.log, args.cameras)
    try:
        if not kinds(rig, args.only):
            raise mistake()(f"no fault of number {', '.join(map(str, args.only))} can be ordered on {args.sim}: there are "
                            f"{', '.join(map(str, sorted({kind.number for kind in KINDS})))}; 5 needs --cameras, 14 and 15 what feels")
        trials = list(progress(campaign(rig, args.times, only=args.only), "faults", args.times * len(kinds(rig, args.only))))
    finally:
        rig.close()
    shown = Table("no", "fault", "times", "noticed after (median, most)", "right reactions", "commands beyond a limit", "episodes lost")
    for row in table(trials):
        noticed = "-" if row["median_ms"] is None else f"{row['median_ms']:.0f}, {row['most_ms']:.0f} ms"
        shown.add_row(*map(str, (row["number"], row["fault"], row["times"], noticed, row["right"], row["unsafe"], row["lost"])))
    screen().print(shown)
    return 0 if all(t.reacted and not t.unsafe and not t.lost for t in trials) else 1


def _say(args: argparse.Namespace) -> int:
    from realrl.robots.client import Link
    with Link(args.url, "person") as link:
        status = link.ask({"type": args.said})
    for line in told(status):
        say(line)
    return 0 if status["mode"] == "armed" or args.said in ("stop", "park") else 1


def _break(args: argparse.Namespace) -> int:
    from realrl.robots.client import Link
    with Link(args.url, "person") as link:
        for line in told(link.ask({"type": "fault", "name": args.name, "value": args.value})):
            say(line)
    return 0


def told(status: dict[str, Any]) -> list[str]:
    """A status in lines."""
    lines = [f"{status['name']}: {status['mode']}" + (f", {status['phase']}" if status["phase"] else "")
             + (f", commanded from {status['commander']}" if status.get("commander") else "")]
    lines += [f"  {name}: {why}" for name, why in status["faults"].items()]
    lines += [f"  camera {name}: its pictures come late" for name in status["flags"]]
    lines.append("  at " + ", ".join(f"{name} {value:g}" for name, value in status["measured"].items()))
    lines.append(f"  {status['late_ticks']} late ticks, {status['overruns']} late actions, {status['limited_ticks']} ticks with a limit")
    return lines
