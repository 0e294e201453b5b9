"""`realrl deploy`: a policy at work on a served robot, with a dashboard and keys."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realrl.cli.acting import add_head, add_words, chooser
from realrl.cli.parser import command, device_flag, interrupted, mistake, say, whole
from realrl.terminal import console

if TYPE_CHECKING:
    from realrl.cell.deploy import Tally
    from realrl.cell.overlap import How
    from realrl.policies.folder import Saved
    from realrl.robots.client import RobotClient
    from realrl.types import Policy


def add(commands: Any) -> None:
    """`deploy` and its flags."""
    parser = command(commands, "deploy", "Run a policy on a robot that `realrl robot serve` serves: dashboard, keys, everything recorded; "
                     "parks on Ctrl-C, on any error and at the end.",
                     "realrl deploy --policy runs/main/policy --robot ws://127.0.0.1:8770 --episodes 20", _deploy)
    parser.add_argument("--policy", type=Path, required=True, metavar="DIR", help="folder of a saved policy, e.g. runs/main/policy")
    parser.add_argument("--robot", required=True, metavar="URL", help="address that `realrl robot serve` printed")
    add_words(parser)
    add_head(parser)
    parser.add_argument("--episodes", type=whole(1), default=20, metavar="N", help="attempts (default: 20)")
    parser.add_argument("--seed", type=whole(0), default=0, metavar="S", help="start of the first attempt (default: 0)")
    parser.add_argument("--horizon", type=whole(1), metavar="STEPS", help="steps until an attempt is cut off (default: the server's)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="data set that is recorded (default: deployed/ROBOT-TIME)")
    parser.add_argument("--latency", type=Path, metavar="FILE", help="of realrl calibrate latency: plans of a policy from a simulation "
                        "begin so much later")
    parser.add_argument("--overlap", choices=("stop", "naive", "best", "prefix"), help="plan while the robot moves, for networks that take "
                        "longer than a control step: hold the robot meanwhile, leave out what is over, take the best of 8 so, or go on "
                        "from what is decided (a flow policy with --policy.flow.delay)")
    device_flag(parser)
    parser.add_argument("--no-record", action="store_true", help="record nothing")


def _deploy(args: argparse.Namespace) -> int:
    say(f"loading {args.policy}, then connecting to {args.robot}", now=True)  # both take seconds
    import torch

    from realrl.cell.deploy import Operator, Tally, deploy
    from realrl.cell.latency import Ahead, Latency
    from realrl.policies.folder import check_fit, load_policy, read_recall, read_robot
    from realrl.robots.client import RobotClient
    from realrl.robots.embodiment import Meant
    from realrl.scene import device
    torch.set_num_threads(1)
    loaded, task = chooser(args)(*load_policy(args.policy, device(args.device)))
    policy: Policy = loaded
    robot = read_robot(args.policy)
    env = RobotClient(args.robot, horizon=args.horizon, speaks=None if robot is None else Meant(robot, str(args.policy), loaded.senses))
    try:
        env.lag(read_recall(args.policy))
        check_fit(loaded, env.task, args.policy, task)
        if args.latency and args.overlap == "prefix":
            raise mistake()("--latency shifts plans, --overlap prefix goes on from their beginning: leave one of them out")
        if args.latency:
            policy = Ahead(loaded, Latency.load(args.latency).whole, env.task.dt)
        policy = _overlapping(policy, env, args.overlap)
    except BaseException:
        env.close()
        raise
    folder = None if args.no_record else args.out or Path("deployed", f"{env.task.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    operator, tally = Operator(env), Tally()
    try:
        with _keys(operator.press), _dashboard(env) as show:
            for _ in deploy(env, policy, args.episodes, folder=folder, seed=args.seed, operator=operator, tally=tally,
                            text=_said(loaded, env)):
                show(tally)
    except KeyboardInterrupt:
        return interrupted(f"; the robot is {tally.left}" if tally.left else "")
    finally:
        if tally.left.startswith("held"):
            say(f"the robot is {tally.left}")
        if tally.steps:
            for line in tally.lines(env, over=True):
                say(line)
            if overruns := getattr(policy, "overruns", 0):
                say(f"{overruns} steps had no plan yet: the robot was held")
            if folder is not None:
                say(f"recorded: {folder}")
    return 0


def _said(policy: Saved, env: RobotClient) -> str:
    """What recordings say was to be done: what the policy was told. A robot that judges its attempts itself judges its own task, whatever
    else was said; that these differ is told."""
    from realrl.nets.text import words
    said, its = policy.text if policy.KIND == "flow" else "", env.task.text or env.task.id
    if not said or words(said) in [words(text) for text in (its, *env.task.paraphrases)]:
        return ""
    if env.about["judged"]:
        say(f"note: the policy is told {said!r}, the robot judges {its!r}: so the recordings call it")
        return ""
    return said


def _overlapping(policy: Policy, env: RobotClient, how: How | None) -> Policy:
    """The policy, planning beside its own motion if that is wished for; says so where it would be needed."""
    from realrl.cell.overlap import Overlap, OverlapConfig, steps_of
    steps, slowest = steps_of(policy, env.nothing(policy.n_obs), env.task.dt)
    told = f"a plan takes {1e3 * slowest:.0f} ms, a control step {1e3 * env.task.dt:.0f} ms"
    if how is None:
        if slowest > env.task.dt:
            say(f"{told}: the robot waits for every plan; see --overlap")
        return policy
    say(f"{told}: plans are asked for {steps} steps ahead")
    return Overlap(policy, OverlapConfig(how, steps), relative=env.task.control == "relative", beside=True)


@contextlib.contextmanager
def _keys(press: Callable[[str], None]) -> Iterator[None]:
    """Hands over every key that is pressed, and says which there are; where there is no keyboard, says that."""
    if not sys.stdin.isatty():
        say("no keyboard here: nobody takes over", now=True)
        yield
        return
    import termios
    import tty

    from realrl.cell.deploy import HELP
    print(HELP, file=sys.stdout if sys.stdout.isatty() else sys.stderr, flush=True)  # to who has the keyboard, not into a file
    keyboard = sys.stdin.fileno()
    before, over = termios.tcgetattr(keyboard), threading.Event()

    def read() -> None:
        while not over.is_set():
            if select.select([keyboard], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):  # the terminal was closed
                    if typed := os.read(keyboard, 1024):  # all of it: what Python's own buffer holds nobody would be woken for
                        for key in typed.decode("utf-8", "ignore").lower():
                            press(key)
                        continue
                return

    tty.setcbreak(keyboard)
    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(1)
        with contextlib.suppress(termios.error):  # as above
            termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _dashboard(env: RobotClient) -> Iterator[Callable[[Tally], None]]:
    """Shows the tally twice a second from a thread of its own; to a file or a pipe, a line an attempt."""
    newest: list[Tally] = []
    if not sys.stdout.isatty():
        done = 0

        def line(tally: Tally) -> None:
            nonlocal done
            if tally.episodes > done:
                done = tally.episodes
                say(f"attempt {done}: {'; '.join(tally.lines(env)[1:3])}", now=True)

        yield line
        return
    from rich.live import Live
    over = threading.Event()

    def draw() -> None:
        with Live(console=console(), auto_refresh=False, transient=True) as live:
            while not over.wait(0.5):
                if newest:
                    live.update("\n".join(newest[-1].lines(env)), refresh=True)

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    try:
        yield lambda tally: newest.__setitem__(slice(None), [tally])
    finally:
        over.set()
        thread.join(2)
