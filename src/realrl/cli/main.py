"""The command line: `realrl train | evaluate | view | data | report | tasks | doctor`.

Every command is one function, here or (those on datasets) in `cli_data`, that returns its exit code: 0 done, 1 something was found
wrong, 2 a mistake the user can mend (one line `error: ...` on standard error; REALRL_DEBUG=1 adds the traceback), 130 interrupted.
Heavy imports stay inside the commands, so that help, lists and complaints come at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realrl import __version__
from realrl.cli import data as cli_data
from realrl.cli.parser import Command, Parser, add, group, interrupted, mistake, progress, screen, stdout_kept_clean, whole

if TYPE_CHECKING:
    from realrl.scene import SightConfig
    from realrl.types import Cell, TaskSpec

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
        return interrupted()
    except BrokenPipeError:  # `realrl tasks | head`: nobody is left to tell
        _silence()
        return 0
    except (mistake(), OSError) as error:  # OSError: a full or read-only disk, a name that is too long
        if os.environ.get("REALRL_DEBUG", "0") != "0":
            traceback.print_exc()
        from realrl.files import printable
        lines = "\n".join(map(printable, str(_told(error)).splitlines()))
        print(f"error: {lines}", file=sys.stderr)
        if isinstance(error, OSError):
            _silence()  # it may be standard output that is full
        return 2
    return code


def _silence() -> None:
    """Nothing more goes to standard output: what Python still holds for it would fail when it leaves."""
    with contextlib.suppress(OSError, ValueError):  # a test's standard output has no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _told(error: Exception) -> Exception:
    """An error as a line that a user can act on."""
    from realrl.files import disk, unwritable
    if not isinstance(error, OSError):
        return error
    what = error.filename or "a file"
    return unwritable(what, error) if disk(error) else mistake()(f"{what}: {error.strerror or error}; check the path")


# -- the parser -----------------------------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; parsing sets `command` to the function to call."""
    top = group(None, "realrl", "From demonstrations to deployment-grade robot policies by reinforcement learning on the real robot.",
                 "realrl train rl100 --task metaworld/push-wall-v3 --run runs/main\n"
                 "  realrl evaluate --policy runs/main/policy --episodes 500")
    top.add_argument("--version", action="version", version=f"realrl {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", parser_class=Parser)
    train = group(commands, "train", "Train a policy: demonstrations, imitation, reinforcement learning. Continues with --resume.",
                   "realrl train rl100 --task metaworld/push-wall-v3 --seed 1 --run runs/push-wall")
    _add_methods(train.add_subparsers(metavar="METHOD", parser_class=Parser))
    _add_evaluate(commands)
    _add_view(commands)
    data = group(commands, "data", "Record, examine, edit, mend and convert datasets (LeRobot v3.0 layout).",
                 "realrl data info runs/main/dataset")
    cli_data.add_commands(data.add_subparsers(metavar="ACTION", parser_class=Parser))
    _add_others(commands)
    return top


def _add_methods(methods: Any) -> None:
    for name, text in METHODS.items():
        method = methods.add_parser(name, help=text, add_help=False, allow_abbrev=False)  # its help is the configuration's
        method.add_argument("--run", type=Path)
        method.add_argument("--resume", action="store_true")
        method.set_defaults(command=_train, method=name)


def _add_evaluate(commands: Any) -> None:
    parser = add(commands, "evaluate", "Success, cycle time and latency of a saved policy, from held-out starts that no training sees.",
                  "realrl evaluate --policy runs/main/policy --episodes 500 --json > result.json", _evaluate)
    parser.add_argument("--policy", type=Path, required=True, metavar="DIR", help="folder of a saved policy, e.g. runs/main/policy")
    parser.add_argument("--task", metavar="TASK", help="task to run it on (default: the one it was trained on)")
    parser.add_argument("--episodes", type=whole(1), default=100, metavar="N", help="held-out episodes (default: 100)")
    parser.add_argument("--seed", type=whole(0), default=0, metavar="S", help="which set of held-out starts (default: 0)")
    parser.add_argument("--head", choices=("ddim", "one-step"), help="which product acts (default: the one the policy was saved with)")
    parser.add_argument("--sampler", choices=("mean", "ddim", "sampled"), help="how the ddim head acts: its chain with the noise left out, "
                        "with eta = 0, or with its noise (default: as it was saved)")
    parser.add_argument("--horizon", type=whole(1), metavar="STEPS", help="steps until an episode is cut off (default: the task's own)")
    parser.add_argument("--workers", type=whole(0), default=0, metavar="W", help="worker processes (default: one a CPU core)")
    parser.add_argument("--robustness", action="store_true", help="also under changed light, colours, cameras, clutter, friction and mass")
    parser.add_argument("--save-failures", type=whole(1), metavar="N", help="keep the first N failures as a dataset and a page")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where failures go (default: failures-HEAD beside the policy)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output, and nothing else there")


def _add_view(commands: Any) -> None:
    parser = add(commands, "view", "What a policy sees, as a page: cameras, clouds that turn, actions, rewards, on one time line. Of a "
                 "task (its expert or a policy runs now), of a recorded dataset, or of a run.", "realrl view runs/main/dataset --episodes "
                 "0,3,7\n  realrl view metaworld/door-open-v3 --policy runs/main/policy --mp4", _view)
    parser.add_argument("what", metavar="TASK|DATASET|RUN", help="name of a task, folder of a dataset, or folder of a run")
    parser.add_argument("--episodes", metavar="LIST", help=f"{cli_data.EPISODES}; of a task, starts counted from --seed")
    parser.add_argument("--worst", type=whole(1), metavar="N", help="the N worst recorded ones: failures first, then by return")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write to (default: beside the dataset, in the run, view-TASK)")
    parser.add_argument("--policy", type=Path, metavar="DIR", help="who acts on a task (default: its scripted expert, else chance)")
    parser.add_argument("--seed", type=whole(0), default=0, metavar="S", help="start of a task's episode (default: 0)")
    parser.add_argument("--sight", metavar="KINDS", help="what to look at a task with: state, or some of "
                        "rgb,depth,pointcloud; the episode is played again for each (default: rgb)")
    parser.add_argument("--mp4", action="store_true", help="also a film of every episode")
    parser.add_argument("--rerun", action="store_true", help="also a recording for the Rerun viewer, which opens where there is a display")


def _add_others(commands: Any) -> None:
    report = add(commands, "report", "Write a run's report.html from its files, finished or not.", "realrl report runs/main", _report)
    report.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    tasks = add(commands, "tasks", "List the tasks there are.", "realrl tasks metaworld", _tasks)
    tasks.add_argument("filter", nargs="?", default="", metavar="FILTER", help="only names that contain this")
    add(commands, "doctor", "Versions, devices and rendering of this machine; how to get what is missing.", "realrl doctor", _doctor)


# -- train ----------------------------------------------------------------------------------------------------------------------

METHODS = {"rl100": "RL-100: imitation, gated offline RL, online RL, one-step distillation.",
           "bc": "Behaviour cloning with a diffusion policy."}
RUN_HELP = """{text}

Every flag below is a field of the configuration. Beside them:
  --run DIR   where everything goes (default: runs/{method}-TASK-TIME)
  --resume    continue the run in DIR, with the configuration it was started with

example: realrl train {method} --task toy/obstacle --seed 1 --run runs/first"""


def _method(name: str) -> tuple[type[Any], Callable[[Any, Cell], dict[str, Any]]]:
    """The configuration and the training function of a method."""
    if name == "rl100":
        from realrl.algos import rl100
        return rl100.RL100Config, rl100.train
    from realrl.algos import bc
    return bc.BCConfig, bc.train


def _train(args: argparse.Namespace) -> int:
    from realrl import config, envs
    from realrl.cell.cell import WorkCell
    from realrl.files import disk
    from realrl.report import stage_table, write_report
    from realrl.run import Run
    flags: list[str] = args.flags
    if args.resume and args.run is None:
        raise mistake()("--resume needs to know which run: add --run DIR")
    saved = [] if args.run is None else [args.run / "config.yaml"]
    base = [f"--config={file}" for file in saved if args.resume and file.is_file() and not _mentions(flags, "--config")]
    cls, train = _method(args.method)
    text = RUN_HELP.format(text=METHODS[args.method], method=args.method)
    cfg = config.parse(cls, [*base, *flags], prog=f"realrl train {args.method}", description=text)
    envs.make(cfg.task, sight=cfg.sight, randomise=cfg.randomise).close()  # a misspelt task leaves no folder behind
    folder = args.run or Path("runs", f"{args.method}-{cfg.task.replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}")
    again = shlex.join(["realrl", "train", args.method, "--run", str(folder), "--resume", *flags])
    try:
        with Run.start(folder, cfg, args.resume, ignore=("stages", "collect", "device")) as run, WorkCell(run, cfg) as cell:
            summary = train(cfg, cell)
        page = write_report(folder)
    except KeyboardInterrupt:
        return interrupted(f"; continue with: {again}")
    except (mistake(), OSError) as error:
        if disk(error):
            raise mistake()(f"{_told(error)}, then continue with: {again}") from error
        raise
    screen().print(stage_table(summary))
    print(f"report: {page}")
    if (folder / "policy" / "policy.json").is_file():
        print(f"policy: {folder / 'policy'}  (try it: {shlex.join(['realrl', 'evaluate', '--policy', str(folder / 'policy')])})")
    return 0


def _mentions(words: Sequence[str], flag: str) -> bool:
    return any(word.partition("=")[0] == flag for word in words)


# -- evaluate -------------------------------------------------------------------------------------------------------------------


def _evaluate(args: argparse.Namespace) -> int:
    with stdout_kept_clean() if args.json else contextlib.nullcontext():
        result = _measure(args)
    if args.json:
        print(json.dumps(result, allow_nan=False))
        return 0
    from realrl.report import stage_table
    changed = [{"name": f"under: {change}", **found} for change, found in result.get("robustness", {}).items()]
    screen().print(stage_table({"task": result["task"], "stages": [{"name": result["head"], **result}, *changed]}))
    if seeds := result["failures"]:
        more = f" and {len(seeds) - SHOWN} more (--json lists all)" if len(seeds) > SHOWN else ""
        print(f"failed starts: {', '.join(map(str, seeds[:SHOWN]))}{more}")
    for what in ("failures_page", "report"):
        if what in result:
            print(f"{what.partition('_')[0]}: {result[what]}")
    return 0


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    """What `evaluate --json` prints."""
    from realrl.cell.collect import Collector
    from realrl.cell.evaluate import summarise, trials
    from realrl.cell.judge import latency
    from realrl.cell.robustness import robustness, scene_changes
    from realrl.policies.folder import check_fit, load_policy
    from realrl.report import failures, write_report
    from realrl.scene import CollectConfig
    policy, trained_on = load_policy(args.policy)
    task, sight = args.task or trained_on, _sight(args.policy)
    spec = _spec(task, args.horizon, sight)
    check_fit(policy, spec, args.policy, trained_on)
    if args.head == "one-step" and not policy.distilled:
        raise mistake()(f"{args.policy}: its one-step head was never trained; use --head ddim, or run the stage one-step on it")
    policy = policy.with_head(args.head or policy.head)
    if args.sampler:
        if policy.head != "ddim":
            raise mistake()(f"--sampler {args.sampler} is about the ddim head, {args.policy} acts with one step: add --head ddim")
        policy = policy.with_sampler(args.sampler)
    out = args.out or args.policy.resolve().parent / f"failures-{policy.head}"
    if args.save_failures:
        failures.room(out)  # before anything long
    if args.robustness:
        scene_changes(task, sight)
    kept = failures.FirstFailures(args.save_failures or 0)
    with Collector(task, CollectConfig(workers=args.workers), horizon=args.horizon, sight=sight) as collector:
        watch = lambda episodes: progress(episodes, f"evaluating on {task}", args.episodes)
        finished = trials(collector, policy, args.episodes, seed=args.seed, plans_only=not args.save_failures,  # films need every frame
                          keep=kept.pick, watch=watch)
    result = summarise(finished, spec.dt).to_dict()
    other: dict[str, Any] = {}
    if args.robustness:
        under = robustness(policy, task, args.episodes, sight=sight, collect=CollectConfig(workers=args.workers), dt=spec.dt,
                           horizon=args.horizon, seed=args.seed, watch=progress)
        other = {"robustness": {change: {k: found.to_dict()[k] for k in ("success", "cycle_steps")} for change, found in under}}
    if page := kept.save(out, task=task, dt=spec.dt, each=progress):
        other["failures_page"] = str(page)
        if (run := page.parent.parent).joinpath("metrics.jsonl").is_file():
            other["report"] = str(write_report(run))  # it shows them
    told = ("success", "cycle_steps", "cycle_s", "successes_per_hour", "episode_return", "failures")
    return {**{name: result[name] for name in told}, **other, "latency_ms": latency(policy, spec), "task": task,
            "policy": str(args.policy), "head": policy.head, "seed": args.seed, "episodes": args.episodes}


def _sight(policy: Path) -> SightConfig:
    """What a saved policy saw in training."""
    from realrl import config
    from realrl.policies.folder import read_policy_json
    from realrl.scene import SightConfig
    return config.from_dict(SightConfig, read_policy_json(policy).get("sight", {}), source=str(policy / "policy.json"))


def _spec(task: str, horizon: int | None = None, sight: SightConfig | None = None) -> TaskSpec:
    """A task's description. Raises RealrlError on an unknown one or where its simulator is missing."""
    from realrl import envs
    env = envs.make(task, horizon=horizon, sight=sight)
    env.close()
    return env.task


# -- view -----------------------------------------------------------------------------------------------------------------------


def _view(args: argparse.Namespace) -> int:
    from realrl.data.tools.edit import episode_numbers
    from realrl.report.view import recording, view
    numbers = None if args.episodes is None else episode_numbers(args.episodes)
    files = view(args.what, episodes=numbers, worst=args.worst, out=args.out, policy=args.policy, seed=args.seed,
                 sights=args.sight and args.sight.split(","), mp4=args.mp4, rerun=args.rerun, each=progress,
                 tell=lambda note: print(note, file=sys.stderr))
    for file in files:
        print(f"{file}  ({file.stat().st_size / 1e6:.1f} MB)")
    if (recordings := [file for file in files if file.suffix == ".rrd"]) and not recording.show(recordings):
        print(f"look at them where there is a display: {shlex.join(['rerun', *map(str, recordings)])}")
    return 0


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
    from realrl.cli import doctor
    findings = doctor.report()
    doctor.show(findings)
    return 0 if doctor.healthy(findings) else 1
