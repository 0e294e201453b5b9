"""The command line: `realrl train | evaluate | data | report | tasks | doctor`.

Every command is one function here that returns its exit code: 0 done, 1 something was found wrong, 2 a mistake the user can mend
(one line `error: ...` on standard error; REALRL_DEBUG=1 adds the traceback), 130 interrupted. Heavy imports stay inside the
commands, so that help, lists and complaints come at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from realrl import __version__

if TYPE_CHECKING:
    from rich.console import Console

    from realrl.collect import Collector
    from realrl.data.store import Store
    from realrl.envs import TaskSpec
    from realrl.run import Run
    from realrl.types import Policy

T = TypeVar("T")
Command = Callable[[argparse.Namespace], int]
GROUP = 20  # episodes per append to a dataset
SHOWN = 20  # failed starts that `evaluate` lists; --json has them all


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command (by default that of sys.argv) and return its exit code. --help and --version leave by SystemExit."""
    try:
        args, flags = build_parser().parse_known_args(argv)
        args.flags = flags  # of a method's configuration; elsewhere there are none
        command: Command = args.command
        code = command(args)
        sys.stdout.flush()
    except SystemExit:
        raise
    except KeyboardInterrupt:
        return _interrupted("")
    except BrokenPipeError:  # `realrl tasks | head`: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except _mistake() as error:
        if os.environ.get("REALRL_DEBUG", "0") != "0":
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2
    return code


def _mistake() -> type[Exception]:
    """RealrlError, imported when it is needed."""
    from realrl.types import RealrlError
    return RealrlError


def _interrupted(hint: str) -> int:
    print(f"\ninterrupted{hint}", file=sys.stderr)
    return 130


# -- the parser -----------------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """argparse that answers what it does not know with the nearest thing it knows, in one line."""

    strict = False  # whether every flag must be its own: so for a command, not for a group of commands

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but a misspelt flag is named before a missing one."""
        words = sys.argv[1:] if args is None else list(args)
        for word in words if self.strict else ():
            flag = word.partition("=")[0]
            if flag.startswith("--") and flag not in self._option_string_actions:
                self._unknown("option", flag, self._option_string_actions)
        space, extra = super().parse_known_args(words, namespace)
        if self.strict and extra:
            self.error(f"unexpected argument {extra[0]!r}")
        return space, extra

    def error(self, message: str) -> Any:
        """Raise RealrlError instead of printing the usage and leaving."""
        if found := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            what = message.partition(":")[0].removeprefix("argument ")
            self._unknown(what.lower(), found[1], re.findall(r"[\w-]+", found[2]))
        raise _mistake()(f"{message} (see `{self.prog} --help`)")

    def _unknown(self, what: str, name: str, known: Iterable[str]) -> None:
        from realrl.config import nearest
        raise _mistake()(f"unknown {what} '{name}'{nearest(name, [k for k in known if len(k) > 2])} (see `{self.prog} --help`)")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; parsing sets `command` to the function to call."""
    top = _group(None, "realrl", "From demonstrations to deployment-grade robot policies by reinforcement learning on the real robot.",
                 "realrl train rl100 --task metaworld/push-wall-v3 --run runs/main\n"
                 "  realrl evaluate --policy runs/main/policy --episodes 500")
    top.add_argument("--version", action="version", version=f"realrl {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", parser_class=_Parser)
    train = _group(commands, "train", "Train a policy: demonstrations, imitation, reinforcement learning. Continues with --resume.",
                   "realrl train rl100 --task metaworld/push-wall-v3 --seed 1 --run runs/push-wall")
    _add_methods(train.add_subparsers(metavar="METHOD", parser_class=_Parser))
    _add_evaluate(commands)
    data = _group(commands, "data", "Record and examine datasets (LeRobot v3.0 layout).", "realrl data info runs/main/dataset")
    _add_data(data.add_subparsers(metavar="ACTION", parser_class=_Parser))
    _add_others(commands)
    return top


def _group(commands: Any, name: str, text: str, example: str) -> _Parser:
    """A parser that only holds commands: called without one, it shows its help."""
    parser = _add(commands, name, text, example, lambda args: 2)

    def show_help(args: argparse.Namespace) -> int:
        parser.print_help(sys.stderr)
        return 2

    parser.set_defaults(command=show_help)
    parser.strict = False
    return parser


def _add(commands: Any, name: str, text: str, example: str, command: Command) -> _Parser:
    """A command with its help and an example."""
    options: dict[str, Any] = {"description": text, "epilog": f"example:\n  {example}", "allow_abbrev": False,
                               "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser: _Parser = commands.add_parser(name, help=text, **options) if commands else _Parser(name, **options)
    parser.set_defaults(command=command)
    parser.strict = True
    return parser


def _whole(low: int) -> Callable[[str], int]:
    """Reads a whole number of at least `low`."""
    def read(text: str) -> int:
        if not re.fullmatch(r"\d+", text) or int(text) < low:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {low}, got '{text}'")
        return int(text)
    return read


def _add_methods(methods: Any) -> None:
    for name, text in METHODS.items():
        method = methods.add_parser(name, help=text, add_help=False, allow_abbrev=False)  # its help is the configuration's
        method.add_argument("--run", type=Path)
        method.add_argument("--resume", action="store_true")
        method.set_defaults(command=_train, method=name)


def _add_evaluate(commands: Any) -> None:
    parser = _add(commands, "evaluate", "Success, cycle time and latency of a saved policy, from held-out starts that no training sees.",
                  "realrl evaluate --policy runs/main/policy --episodes 500 --json > result.json", _evaluate)
    parser.add_argument("--policy", type=Path, required=True, metavar="DIR", help="folder of a saved policy, e.g. runs/main/policy")
    parser.add_argument("--task", metavar="TASK", help="task to run it on (default: the one it was trained on)")
    parser.add_argument("--episodes", type=_whole(1), default=100, metavar="N", help="held-out episodes (default: 100)")
    parser.add_argument("--seed", type=_whole(0), default=0, metavar="S", help="which set of held-out starts (default: 0)")
    parser.add_argument("--head", choices=("ddim", "one-step"), help="which product acts (default: the one the policy was saved with)")
    parser.add_argument("--horizon", type=_whole(1), metavar="STEPS", help="steps until an episode is cut off (default: the task's own)")
    parser.add_argument("--workers", type=_whole(0), default=0, metavar="W", help="worker processes (default: one a CPU core)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output, and nothing else there")


def _add_data(actions: Any) -> None:
    demos = _add(actions, "demos", "Record demonstrations of a task's scripted expert, failed attempts included. The same command "
                 "continues an interrupted recording.", "realrl data demos --task metaworld/push-wall-v3 --episodes 20 --out demos", _demos)
    demos.add_argument("--task", required=True, metavar="TASK", help="task to demonstrate, see `realrl tasks`")
    demos.add_argument("--episodes", type=_whole(1), required=True, metavar="N", help="successful demonstrations wanted in all")
    demos.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the dataset, new or to be continued")
    demos.add_argument("--noise", type=float, default=0.0, metavar="STD", help="noise on the expert's actions, of [-1, 1] (default: 0)")
    demos.add_argument("--expert", metavar="PATH", help="the expert's weights, for suites whose expert is a network (adroit)")
    demos.add_argument("--seed", type=_whole(0), default=0, metavar="S", help="which set of starts (default: 0)")
    demos.add_argument("--workers", type=_whole(0), default=0, metavar="W", help="worker processes (default: one a CPU core)")
    info = _add(actions, "info", "What a dataset holds.", "realrl data info runs/main/dataset", _info)
    check = _add(actions, "check", "Read every frame of a dataset and print all that is wrong; exit code 1 on errors. Changes nothing.",
                 "realrl data check runs/main/dataset", _check)
    for parser in (info, check):
        parser.add_argument("dir", type=Path, metavar="DIR", help="folder of the dataset")


def _add_others(commands: Any) -> None:
    report = _add(commands, "report", "Write a run's report.html from its files, finished or not.", "realrl report runs/main", _report)
    report.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    tasks = _add(commands, "tasks", "List the tasks there are.", "realrl tasks metaworld", _tasks)
    tasks.add_argument("filter", nargs="?", default="", metavar="FILTER", help="only names that contain this")
    _add(commands, "doctor", "Versions, devices and rendering of this machine; how to get what is missing.", "realrl doctor", _doctor)


# -- train ----------------------------------------------------------------------------------------------------------------------

METHODS = {"rl100": "RL-100: imitation, gated offline RL, online RL, one-step distillation.",
           "bc": "Behaviour cloning with a diffusion policy."}
RUN_HELP = """{text}

Every flag below is a field of the configuration. Beside them:
  --run DIR   where everything goes (default: runs/{method}-TASK-TIME)
  --resume    continue the run in DIR, with the configuration it was started with

example: realrl train {method} --task toy/obstacle --seed 1 --run runs/first"""


def _method(name: str) -> tuple[type[Any], Callable[[Any, Run], dict[str, Any]]]:
    """The configuration and the training function of a method."""
    if name == "rl100":
        from realrl.algos import rl100
        return rl100.RL100Config, rl100.train
    from realrl.algos import bc
    return bc.BCConfig, bc.train


def _train(args: argparse.Namespace) -> int:
    from realrl import config, envs
    from realrl.report import stage_table, write_report
    from realrl.run import Run
    flags: list[str] = args.flags
    if args.resume and args.run is None:
        raise _mistake()("--resume needs to know which run: add --run DIR")
    saved = [] if args.run is None else [args.run / "config.yaml"]
    base = [f"--config={file}" for file in saved if args.resume and file.is_file() and not _mentions(flags, "--config")]
    cls, train = _method(args.method)
    text = RUN_HELP.format(text=METHODS[args.method], method=args.method)
    cfg = config.parse(cls, [*base, *flags], prog=f"realrl train {args.method}", description=text)
    envs.make(cfg.task).close()  # a misspelt task leaves no folder behind
    folder = args.run or Path("runs", f"{args.method}-{cfg.task.replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}")
    again = shlex.join(["realrl", "train", args.method, "--run", str(folder), "--resume", *flags])
    try:
        with Run.start(folder, cfg, args.resume, ignore=("stages", "collect", "device")) as run:
            summary = train(cfg, run)
    except KeyboardInterrupt:
        return _interrupted(f"; continue with: {again}")
    _screen().print(stage_table(summary))
    print(f"report: {write_report(folder)}")
    if (folder / "policy" / "policy.json").is_file():
        print(f"policy: {folder / 'policy'}  (try it: {shlex.join(['realrl', 'evaluate', '--policy', str(folder / 'policy')])})")
    return 0


def _mentions(words: Sequence[str], flag: str) -> bool:
    return any(word.partition("=")[0] == flag for word in words)


# -- evaluate -------------------------------------------------------------------------------------------------------------------


def _evaluate(args: argparse.Namespace) -> int:
    with _stdout_kept_clean() if args.json else contextlib.nullcontext():
        result = _measure(args)
    if args.json:
        print(json.dumps(result, allow_nan=False))
        return 0
    from realrl.report import stage_table
    _screen().print(stage_table({"task": result["task"], "stages": [{"name": result["head"], **result}]}))
    if seeds := result["failures"]:
        more = f" and {len(seeds) - SHOWN} more (--json lists all)" if len(seeds) > SHOWN else ""
        print(f"failed starts: {', '.join(map(str, seeds[:SHOWN]))}{more}")
    return 0


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    """What `evaluate --json` prints."""
    from realrl.collect import CollectConfig, Collector
    from realrl.evaluate import held_out, summarise
    from realrl.policy import load_policy
    from realrl.workcell import latency
    policy, trained_on = load_policy(args.policy)
    task = args.task or trained_on
    spec = _spec(task, args.horizon)
    if (spec.obs_dim, spec.action_dim) != (policy.obs_dim, policy.action_dim):
        raise _mistake()(f"{args.policy} was trained on {trained_on}, with {policy.obs_dim} observation and {policy.action_dim} action "
                         f"numbers, but {task} has {spec.obs_dim} and {spec.action_dim}: give the task it was trained on")
    if args.head == "one-step" and not policy.distilled:
        raise _mistake()(f"{args.policy}: its one-step head was never trained; use --head ddim, or run the stage one-step on it")
    policy = policy.with_head(args.head or policy.head)
    with Collector(task, CollectConfig(workers=args.workers), horizon=args.horizon) as collector:
        episodes = collector.collect(policy, held_out(args.episodes, args.seed), greedy=True, noise_seed=args.seed)
        result = summarise(list(_progress(episodes, f"evaluating on {task}", args.episodes)), spec.dt).to_dict()
    kept = ("success", "cycle_steps", "cycle_s", "successes_per_hour", "episode_return", "failures")
    return {**{name: result[name] for name in kept}, "latency_ms": latency(policy, spec.obs_dim), "task": task,
            "policy": str(args.policy), "head": policy.head, "seed": args.seed, "episodes": args.episodes}


def _spec(task: str, horizon: int | None = None) -> TaskSpec:
    """A task's description. Raises RealrlError on an unknown one or where its simulator is missing."""
    from realrl import envs
    env = envs.make(task, horizon=horizon)
    env.close()
    return env.task


@contextlib.contextmanager
def _stdout_kept_clean() -> Iterator[None]:
    """What anyone prints meanwhile, simulators and worker processes included, goes to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _progress(items: Iterable[T], title: str, total: int) -> Iterable[T]:
    """The items, with a progress bar on standard error."""
    from rich.console import Console
    from rich.progress import track
    return track(items, title, total=total, console=Console(stderr=True), transient=True)


def _screen() -> Console:
    """Standard output for tables; a file or a pipe has no width, so it gets one that fits them."""
    from rich.console import Console
    return Console(width=None if sys.stdout.isatty() else 140)


# -- data -----------------------------------------------------------------------------------------------------------------------


def _demos(args: argparse.Namespace) -> int:
    from realrl import envs
    from realrl.collect import CollectConfig, Collector
    from realrl.data.store import Store
    expert = envs.expert(args.task, args.expert, noise=args.noise)
    store = Store.open_or_create(args.out, task=args.task, fps=round(1 / _spec(args.task).dt))
    try:
        with Collector(args.task, CollectConfig(workers=args.workers)) as collector:
            good, tried = _record(store, collector, expert, args)
    except KeyboardInterrupt:
        return _interrupted(f"; {len(store)} episodes are safe in {args.out}, the same command continues")
    print(f"{args.out}: {good} demonstrations of {args.task} and {tried - good} failed attempts "
          f"(look at them: {shlex.join(['realrl', 'data', 'info', str(args.out)])})")
    return 0


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
            raise _mistake()(f"{args.task}: the expert succeeded {good} times in {tried} attempts, {args.episodes} demonstrations wanted: "
                             "lower --noise or --episodes")
        starts = range(first + tried, first + tried + args.episodes - good)
        todo = [seed for seed in starts if seed not in known]
        episodes = collector.collect(expert, todo, greedy=True, noise_seed=args.seed, source=Source.SCRIPT)
        _append(store, _progress(episodes, f"demonstrating {args.task}", len(todo)))
        known = _outcomes(store, args.task, expert.name)
        good, tried = good + sum(known[seed] for seed in starts), tried + len(starts)
    return good, tried


def _append(store: Store, episodes: Iterable[Any]) -> None:
    """Record episodes as they come; an interruption records those that are finished."""
    waiting: list[Any] = []
    try:
        for episode in episodes:
            waiting.append(episode)
            if len(waiting) >= GROUP:
                store.append(waiting)
                waiting = []
    finally:
        store.append(waiting)


def _outcomes(store: Store, task: str, policy: str) -> dict[int, bool]:
    """seed -> success of what a policy already recorded on a task."""
    rows = store.rows.select(["policy", "seed", "success", "tasks"]).to_pylist() if len(store) else []
    return {row["seed"]: row["success"] for row in rows if row["policy"] == policy and task in row["tasks"] and row["seed"] is not None}


def _info(args: argparse.Namespace) -> int:
    from rich.table import Table

    from realrl.data.check import describe
    about = describe(args.dir)
    rate = about["success_rate"]
    rows = {
        "tasks": "\n".join(about["tasks"]), "episodes": f"{about['episodes']:,}", "control steps": f"{about['frames']:,}",
        "mean length": f"{about['mean_length']:.1f} steps, {about['mean_length'] / about['fps']:.2f} s",
        "rate": f"{about['fps']:g} steps/s",
        "success": "unknown" if rate is None else f"{100 * rate:.1f} % of the episodes", "robot": about["robot_type"] or "unknown",
        "recorded by": "\n".join(f"{name}: {count:,} episodes" for name, count in about["policies"].items()) or "unknown",
        "columns": "\n".join(f"{name}  {kind}" for name, kind in about["features"].items()),
        "on disk": f"{about['bytes'] / 2**20:.1f} MiB, {about['data_files']:,} data files"}
    table = Table(show_header=False, title=str(args.dir), title_justify="left")
    for name, value in rows.items():
        table.add_row(name, value)
    _screen().print(table, markup=False)
    return 0


def _check(args: argparse.Namespace) -> int:
    from realrl.data.check import check
    problems = check(args.dir)
    for problem in problems:
        print(problem)
    errors = sum(problem.severity == "error" for problem in problems)
    print(f"{args.dir}: {errors} errors, {len(problems) - errors} warnings" if problems else f"{args.dir}: nothing wrong")
    return 1 if errors else 0


# -- the others -----------------------------------------------------------------------------------------------------------------


def _report(args: argparse.Namespace) -> int:
    from realrl.report import write_report
    print(write_report(args.run))
    return 0


def _tasks(args: argparse.Namespace) -> int:
    from realrl import envs
    found = [task for task in envs.tasks() if args.filter in task]
    if not found:
        envs.make(args.filter)  # raises, naming the nearest task
    print("\n".join(found))
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from realrl import doctor
    findings = doctor.report()
    doctor.show(findings)
    return 0 if doctor.healthy(findings) else 1
