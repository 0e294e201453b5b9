"""`realrl train METHOD`: a method's flags are the fields of its configuration."""

from __future__ import annotations

import argparse
import itertools
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realrl.cli.parser import Parser, exhausted, group, interrupted, mistake, say, screen, told

if TYPE_CHECKING:
    from realrl.cell.cell import WorkCell
    from realrl.cell.recorded import RecordedCell
    from realrl.cell.recordings import Material
    from realrl.envs.base import RobotEnv
    from realrl.run import Run
    from realrl.types import Cell, TaskSpec

METHODS = {"rl100": "RL-100: imitation, gated offline RL, online RL, one-step distillation.",
           "bc": "Behaviour cloning with a diffusion policy.",
           "flow": "A flow policy that is told what to do: imitation of several tasks at once.",
           "recap": "Recap: a flow policy that learns from its own experience by being told what was good in it.",
           "robocat": "RoboCat: a generalist over tasks and robots that practises new tasks by itself and gets better.",
           "dida": "DIDA: a policy that sees late, taught by one that does not.",
           "walk": "A Walk in the Park: a quadruped learns to walk from nothing, with CrossQ, DroQ or SAC.",
           "hil-serl": "HIL-SERL: a few demonstrations, then practice with a person's corrections.",
           "daydreamer": "DayDreamer: a robot learns a model of its world while it moves, and what to do in dreams of it.",
           "admittance": "Assembly learned in simulation, adapted on the robot by an online admittance residual."}
TASKS = {"flow": "metaworld/push-v3", "recap": "metaworld/coffee-push-v3",
         "dida": "arm/panda-reach", "walk": "quadruped/go1", "hil-serl": "contact/peg",
         "daydreamer": "quadruped/go1-from-back", "admittance": "assembly/square"}
READERS = ("recap", "robocat")  # methods of several tasks, of which a data set may hold some
IMITATORS = ("rl100", "bc", "flow")  # methods that need no more than a data set
EYES = {"rgb": "images.", "depth": "depth.", "pointcloud": "pointcloud"}  # how what is seen is called
RECORDED = "recorded/"  # begins the name of a task that is a set of recordings
RUN_HELP = """{text}

Every flag below is a field of the configuration. Beside them:
  --run DIR   where everything goes (default: runs/{method}-TASK-TIME)
  --resume    continue the run in DIR, with the configuration it was started with
  --env M:F   an environment of your own: F, a class or function in the module M, builds it; --data then holds its demonstrations
  --robot URL a robot that `realrl robot serve` serves at this address; --data then holds its demonstrations

example: realrl train {method} {task} --seed 1 --run runs/first"""


def add(commands: Any) -> None:
    """A command a method."""
    train = group(commands, "train", "Train a policy: demonstrations, imitation, reinforcement learning. Continues with --resume.",
                  "realrl train rl100 --task metaworld/push-wall-v3 --seed 1 --run runs/push-wall")
    methods = train.add_subparsers(metavar="METHOD", parser_class=Parser)
    for name, text in METHODS.items():
        method = methods.add_parser(name, help=text, add_help=False, allow_abbrev=False)  # its help is the configuration's
        method.add_argument("--run", type=Path)
        method.add_argument("--resume", action="store_true")
        method.add_argument("--env")
        method.add_argument("--robot", metavar="URL")
        method.set_defaults(command=_train, method=name)


def _method(name: str, flags: Sequence[str]) -> tuple[type[Any], Callable[[Any, Cell], dict[str, Any]], Any]:
    """The configuration and the training function of a method, and the values that its flags override where they are not its defaults."""
    if name == "rl100":
        from realrl.algos import rl100
        return rl100.RL100Config, rl100.train, None
    if name == "walk":
        from realrl.algos import walk
        asked = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        asked.add_argument("--algorithm", nargs="?")
        algorithm = asked.parse_known_args(list(flags))[0].algorithm
        return walk.WalkConfig, walk.train, walk.preset(algorithm) if algorithm in walk.ACTORS else None
    if name == "daydreamer":
        from realrl.algos import daydreamer
        asked = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        for flag in ("--preset", "--task"):
            asked.add_argument(flag, nargs="?")
        said = asked.parse_known_args(list(flags))[0]
        return daydreamer.DaydreamerConfig, daydreamer.train, daydreamer.preset(said.preset, said.task)
    if name == "flow":
        from realrl.algos import flow
        return flow.FlowTrainConfig, flow.train, None
    if name == "recap":
        from realrl.algos import recap
        return recap.RecapConfig, recap.train, None
    if name == "robocat":
        from realrl.algos import robocat
        return robocat.RoboCatConfig, robocat.train, None
    if name == "dida":
        from realrl.algos import dida
        return dida.DIDAConfig, dida.train, None
    if name == "hil-serl":
        from realrl.algos import hil_serl
        return hil_serl.HILConfig, hil_serl.train, None
    if name == "admittance":
        from realrl.algos import admittance
        return admittance.AdmittanceConfig, admittance.train, None
    from realrl.algos import bc
    return bc.BCConfig, bc.train, None


def _train(args: argparse.Namespace) -> int:
    from realrl import config, envs
    from realrl.files import disk
    from realrl.run import Run
    flags: list[str] = args.flags
    if args.resume and args.run is None:
        raise mistake()("--resume needs to know which run: add --run DIR")
    saved = [] if args.run is None else [args.run / "config.yaml"]
    base = [f"--config={file}" for file in saved if args.resume and file.is_file() and not _mentions(flags, "--config")]
    cls, train, default = _method(args.method, flags)
    text = RUN_HELP.format(text=METHODS[args.method], method=args.method, task=_example(args.method))
    flags = _several(flags) if args.method == "flow" else flags
    parse = partial(config.parse, cls, [*base, *flags], prog=f"realrl train {args.method}", description=text, default=default)
    cfg = parse()
    chosen = base or args.method in READERS or any(_mentions(flags, flag) for flag in ("--task", "--tasks", "--config"))
    real = bool(args.env or args.robot)
    recorded = cfg.data is not None and not real and (cfg.task.startswith(RECORDED) or not chosen)
    _fit_for(args.method, cfg, recorded)
    if recorded:
        cfg = cfg if chosen else parse(default=_sized(args.method, cfg))
        cfg = replace(cfg, task=RECORDED + Path(cfg.data).resolve().name)
    make = _maker(args, cfg.horizon) if real else partial(envs.make, cfg.task, sight=cfg.sight, randomise=cfg.randomise)
    cfg = cfg if recorded else _found(args, cfg, make, resumed=bool(base))
    if args.robot:  # there is one
        cfg = replace(cfg, collect=replace(cfg.collect, workers=1, envs_per_worker=1))
    folder = args.run or Path("runs", f"{args.method}-{cfg.task.replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}")
    own = ["--env", args.env] if args.env else ["--robot", args.robot] if args.robot else []
    material = _material(args.method, cfg, folder) if recorded else None
    if material and args.method == "flow":
        from realrl.algos.flow import train_on_recordings as train
        from realrl.cell.instructed import settled
        cfg = settled(cfg, material)
    begun = False
    again = shlex.join(["realrl", "train", args.method, "--run", str(folder), "--resume", *own, *flags])
    try:
        with (Run.start(folder, cfg, args.resume, ignore=("stages", "collect", "device"), renewed=_renewed(cfg, base)) as run,
              _cell(run, cfg, make if real else None, material) as cell):
            begun = True
            summary = train(cfg, cell)
        if getattr(cfg, "film", False):
            _film(args.method, cfg, folder, real)
        from realrl.report import write_report  # draws, which takes a second to load
        page = write_report(folder)
    except KeyboardInterrupt:
        return interrupted(f"; continue with: {again}")
    except (mistake(), OSError, RuntimeError) as error:
        gone = begun and args.robot and args.robot in str(error)  # the robot's server, or it says nothing
        if disk(error) or exhausted(error) or gone:
            raise mistake()(f"{told(error)}, then continue with: {again}") from error
        raise
    _report(summary, folder, page, recorded, own)
    return 0


def _found(args: argparse.Namespace, cfg: Any, make: Callable[[], Any], resumed: bool) -> Any:
    """The configuration once its task, environment or robot is known to be there: what is misspelt leaves no folder behind. Raises
    RealrlError."""
    from realrl import envs
    real = bool(args.env or args.robot)
    try:
        spec = _asked(make)
    except mistake() as error:
        if resumed and not real and not envs.known(cfg.task):
            raise mistake()(f"{args.run} was started with --env or --robot: name it again, beside --resume ({error})") from error
        raise
    if not real:
        _together(cfg)
    if real and not resumed:
        _heeded(args, cfg, spec)
    if args.robot and cfg.data:
        _in_order(cfg.data, args.robot)
    return replace(cfg, task=spec.id) if real else cfg


def _heeded(args: argparse.Namespace, cfg: Any, spec: TaskSpec) -> None:
    """Raises RealrlError for what an environment of one's own or a robot would not heed: other tasks than its own, eyes that it has not,
    a scene that varies, and where it alone says how long an episode is."""
    if (tasks := getattr(cfg, "tasks", ())) and spec.id not in tasks and tasks != type(cfg).tasks:
        raise mistake()(f"{', '.join(tasks)}: {spec.id} is the one task here: leave --task and --tasks out")
    kind = cfg.sight.kind
    if kind != "state" and not any(key.startswith(EYES[kind]) for key in spec.senses):
        raise mistake()(f"--sight.kind {kind}: {spec.id} shows {', '.join(spec.senses) or 'the state alone'}: leave --sight.kind out, what "
                        "it shows is looked at")
    if cfg.randomise.active:
        name = next(name for name, value in vars(cfg.randomise).items() if value)
        raise mistake()(f"--randomise.{name}: {spec.id} is not a simulated task of this house, nobody varies its scene: leave it out")
    if args.env and cfg.horizon is not None:
        raise mistake()(f"--horizon {cfg.horizon}: an environment of your own says in its TaskSpec how long an episode is (horizon="
                        f"{spec.horizon}): leave it out")


def _example(method: str) -> str:
    """The flags of a method's first command."""
    if method == "robocat":  # to which one task is none
        return "--tasks metaworld/coffee-push-v3 metaworld/push-v3"
    return f"--task {TASKS.get(method, 'toy/obstacle')}"


def _renewed(cfg: Any, base: list[str]) -> tuple[str, ...]:
    """The fields that a run that goes on from where it was may have otherwise from now on: who says what is solved, and the device that a
    person is at. base: flag that names its saved configuration."""
    from realrl import config
    names: tuple[str, ...] = ("reward",) if hasattr(cfg, "reward") else ()
    if base and hasattr(cfg, "human"):
        from realrl.robots.devices import DEVICES
        names += ("human",) if {config.read(base[0].partition("=")[2]).get("human"), cfg.human} <= DEVICES.keys() else ()
    return names


def _report(summary: dict[str, Any], folder: Path, page: Path, recorded: bool, own: list[str]) -> None:
    """The table of a run that has ended, and where its page and its policy lie. own: flags that name an environment of one's own."""
    from realrl.report import cycled, earned, foresight_table, hindsight_lines, improved, pressed, stage_table
    screen().print(foresight_table(summary) if recorded else stage_table(summary))
    for line in filter(None, (*hindsight_lines(summary), earned(summary), cycled(summary), improved(summary), pressed(summary))):
        say(line)
    print(f"report: {page}")
    if recorded:
        print(f"policy: {folder / 'policy'}")
    elif (folder / "policy" / "policy.json").is_file():
        print(f"policy: {folder / 'policy'}  (try it: {shlex.join(['realrl', 'evaluate', '--policy', str(folder / 'policy'), *own])})")
        if others := sorted(path.name for path in folder.glob("policy-*") if (path / "policy.json").is_file()):
            print(f"other tasks, in the same folder: {', '.join(others)}")


def _maker(args: argparse.Namespace, horizon: int | None) -> Callable[[], RobotEnv]:
    """What builds an environment of one's own, or connects to a robot."""
    if args.env and args.robot:
        raise mistake()("give --env or --robot, not both: a served robot is an environment already")
    if args.method == "admittance":
        raise mistake()("admittance learns in simulation, and judges on simulated arms: leave --env and --robot out; on a robot: "
                        "realrl evaluate --robot URL --policy RUN/policy")
    if args.method == "robocat":
        raise mistake()("robocat learns several tasks and practises others, one environment or robot has one: leave --env and --robot out, "
                        "and name simulated ones with --tasks")
    if args.robot:
        from realrl.robots.client import remote
        return remote(args.robot, horizon)
    from realrl.envs import own
    return own(args.env)


def _in_order(data: str, url: str) -> None:
    """Raises RealrlError where a set has the numbers of the robot at an address in another order: motions would be of another joint."""
    from realrl.data.formats import open_dataset
    from realrl.data.spread import flat_names
    from realrl.robots.client import Link
    from realrl.robots.embodiment import ordered
    features = open_dataset(data).info["features"]
    actions, state = (flat_names(features.get(name, {}).get("names")) for name in ("action", "observation.state"))
    with Link(url, "watcher") as link:
        ordered(data, actions, state, link.welcome["robot"])


def _film(method: str, cfg: Any, folder: Path, real: bool) -> None:
    """A held-out episode of the run's policy as a page and a film in `film`, or trials on the other arm in `insertion`; of a dreamer's
    practice films in `practice`; of Recap's newest practice pages in `values`; for the report, once. real: what was not recorded on a robot
    cannot be filmed."""
    from realrl.cell.evaluate import HELD_OUT
    from realrl.report import insertion
    from realrl.report.view import view
    tell = lambda note: say(f"note: {note}")
    if method == "daydreamer":
        from realrl.report import films
        films.keep(folder, cfg, method, simulated=not real, tell=tell)
    if method == "recap":
        from realrl.report import experience
        say("making films of the newest practice")
        experience.keep(folder, {task.rpartition("/")[2]: task for task in cfg.tasks}, simulated=not real, tell=tell)
        return
    if real:
        return
    if method == "admittance":
        say("making films of a trial on the other arm")
        insertion.keep(folder, {c: cfg.arm(c) for c in cfg.arms()}, cfg, tell)
    elif not (folder / "film").exists():
        say("making a film")
        view(cfg.task, policy=folder / "policy", seed=HELD_OUT, out=folder / "film", mp4=True, tell=tell)


def _together(cfg: Any) -> None:
    """Raises RealrlError where the tasks of a run for several cannot be learned by one policy, or one of them is none."""
    from realrl import envs
    every = [task for name in ("tasks", "held_out", "unseen") for task in getattr(cfg, name, ())]
    if specs := {other: _asked(partial(envs.make, other, sight=cfg.sight, randomise=cfg.randomise)) for other in every}:
        from realrl.learn.flow import together
        together(specs, cfg.policy.reader)


def _fit_for(method: str, cfg: Any, recorded: bool) -> None:
    """Raises RealrlError for a method that recordings are not enough for, for several sets beside a task, and for assembly learned on an
    arm that it is judged on."""
    if recorded and method not in IMITATORS:
        raise mistake()(f"--data {cfg.data}: {method} practises too, in a simulator or on a robot: say where with --task, --env or --robot "
                        f"({', '.join(IMITATORS)} learn from a data set alone)")
    if method == "admittance":
        from realrl.envs.assembly import simulated
        simulated(cfg.task)
    if not recorded and (more := getattr(cfg, "also", ())):
        raise mistake()(f"{more[0]}: several sets are learned from where they themselves are the tasks: leave --tasks out, or make them "
                        "one with 'realrl data merge'")


def _several(flags: Sequence[str]) -> list[str]:
    """`--data A B C` as `--data A --also B C`."""
    at = next((i for i, word in enumerate(flags) if word.partition("=")[0] == "--data"), None)
    if at is None:
        return list(flags)
    first = at + 1 if "=" in flags[at] else at + 2
    more = list(itertools.takewhile(lambda word: not word.startswith("--"), flags[first:]))
    return [*flags[:first], *(["--also"] if more else []), *flags[first:]]


def _sized(method: str, cfg: Any) -> Any:
    """The configuration with defaults that suit its recordings."""
    from realrl.cell import instructed, recordings
    return instructed.sized(cfg) if method == "flow" else recordings.sized(cfg)


def _material(method: str, cfg: Any, folder: Path) -> dict[str, Material]:
    """The recordings of a run that has nothing else, task -> its own, read before it has a folder."""
    from realrl.cell import instructed, recordings
    spare = folder.with_name(f"{folder.name}-cache")
    if method == "flow":
        found = instructed.read_all(cfg, spare)
        from realrl.learn.flow import together
        together({task: material.spec for task, material in found.items()}, instructed.settled(cfg, found).policy.reader)
    else:
        found = {cfg.task: recordings.read(cfg.data, cfg.recorded, cfg.sight, spare)}
    for note in dict.fromkeys(note for material in found.values() for note in material.notes):
        say(f"note: {note}")
    return found


def _cell(run: Run, cfg: Any, make: Callable[[], RobotEnv] | None, material: dict[str, Material] | None) -> WorkCell | RecordedCell:
    """Where the method works: on a robot, or on recordings."""
    if material is None:
        from realrl.cell.cell import WorkCell
        return WorkCell(run, cfg, make=make)
    from realrl.cell.recorded import RecordedCell
    first, *others = material
    return RecordedCell(run, cfg, material[first], {task: material[task] for task in others})


def _asked(make: Callable[[], RobotEnv]) -> TaskSpec:
    """What an environment says of itself. Raises RealrlError where it is none."""
    env = make()
    spec = getattr(env, "task", None)
    if not hasattr(spec, "horizon"):
        raise mistake()(f"--env: it builds a {type(env).__name__}; an environment of your own extends realrl.envs.base.RobotEnv")
    env.close()
    return env.task


def _mentions(words: Sequence[str], flag: str) -> bool:
    return any(word.partition("=")[0] == flag for word in words)
