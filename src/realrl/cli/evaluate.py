"""`realrl evaluate`: a saved policy from held-out starts."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from realrl.cli.acting import add_head, product
from realrl.cli.parser import command, device_flag, mistake, progress, screen, stdout_kept_clean, whole

if TYPE_CHECKING:
    from collections.abc import Callable

    from realrl.envs.base import RobotEnv
    from realrl.policies.folder import Saved
    from realrl.robots.embodiment import Embodiment
    from realrl.scene import CollectConfig, SightConfig
    from realrl.types import Episode, TaskSpec

SHOWN = 20  # failed starts that `evaluate` lists; --json has them all


def add(commands: Any) -> None:
    """`evaluate` and its flags."""
    parser = command(commands, "evaluate", "Success, cycle time and latency of a saved policy, from held-out starts that no training sees.",
                     "realrl evaluate --policy runs/main/policy --episodes 500 --json > result.json", _evaluate)
    parser.add_argument("--policy", type=_place, required=True, metavar="DIR", help="folder of a saved policy, e.g. runs/main/policy; or "
                        "ws://HOST:PORT, where `realrl serve` serves one (its token in REALRL_TOKEN)")
    parser.add_argument("--task", metavar="TASK", help="task to run it on (default: the one it was trained on); beside --env and --robot, "
                        "which of a flow policy's tasks that is")
    parser.add_argument("--env", metavar="M:F", help="an environment of your own: F, a class or function in the module M, builds it")
    parser.add_argument("--robot", metavar="URL", help="a robot that `realrl robot serve` serves at this address")
    parser.add_argument("--max-delta", type=float, metavar="D", help="largest change of an action a step that the guard lets through "
                        "(default: no limit but the box)")
    parser.add_argument("--episodes", type=whole(1), default=100, metavar="N", help="held-out episodes (default: 100)")
    parser.add_argument("--seed", type=whole(0), default=0, metavar="S", help="which set of held-out starts (default: 0)")
    add_head(parser)
    parser.add_argument("--sampler", choices=("mean", "ddim", "sampled"), help="how the ddim head acts: its chain with the noise left out, "
                        "with eta = 0, or with its noise (default: as it was saved)")
    parser.add_argument("--horizon", type=whole(1), metavar="STEPS", help="steps until an episode is cut off (default: the task's own)")
    parser.add_argument("--late", type=whole(0), default=0, metavar="STEPS", help="control steps that readings are late, in simulation "
                        "(default: 0)")
    parser.add_argument("--workers", type=whole(0), default=0, metavar="W", help="worker processes (default: one a CPU core)")
    device_flag(parser)
    parser.add_argument("--robustness", action="store_true", help="also under changed light, colours, cameras, clutter, friction and mass")
    parser.add_argument("--text", metavar="WORDS", help="what a flow policy is told to do (default: the task's own text)")
    parser.add_argument("--blind", action="store_true", help="also with black pictures: does it look?")
    parser.add_argument("--swap-text", action="store_true", help="also told to do another task that it knows: does it read?")
    parser.add_argument("--paraphrase", action="store_true", help="also told in words that nobody trained it on")
    parser.add_argument("--save-failures", type=whole(1), metavar="N", help="keep the first N failures as a dataset and a page")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where failures go (default: failures-HEAD beside the policy)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output, and nothing else there")


def _evaluate(args: argparse.Namespace) -> int:
    with stdout_kept_clean() if args.json else contextlib.nullcontext():
        result = _measure(args)
    if args.json:
        print(json.dumps(result, allow_nan=False))
        return 0
    from realrl.report import stage_table
    changed = [{"name": f"under: {change}", **found} for change, found in result.get("robustness", {}).items()]
    changed += [{"name": change, **found} for change, found in result.get("understanding", {}).items()]
    screen().print(stage_table({"task": result["task"], "stages": [{"name": result["head"], **result}, *changed]}))
    if abs(result["episode_return"] - result["success"]["rate"]) > 1e-3:  # more is paid than success
        print(f"return: {result['episode_return']:.4g} an episode, on average")
    if measured := result.get("measured"):
        print("means over all episodes: " + ", ".join(f"{name} {value:.4g}" for name, value in measured.items()))
    if seeds := result["failures"]:
        more = f" and {len(seeds) - SHOWN} more (--json lists all)" if len(seeds) > SHOWN else ""
        print(f"failed starts: {', '.join(map(str, seeds[:SHOWN]))}{more}")
    for what in ("failures_page", "report"):
        if what in result:
            print(f"{what.partition('_')[0]}: {result[what]}")
    return 0


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    """What `evaluate --json` prints."""
    from realrl import envs
    from realrl.cell.collect import Collector
    from realrl.cell.evaluate import summarise, trials
    from realrl.cell.judge import latency
    from realrl.cell.robustness import robustness, scene_changes
    from realrl.cell.understanding import variants
    from realrl.policies.folder import check_fit, read_recall
    from realrl.report import failures, write_report
    from realrl.scene import CollectConfig, GuardConfig
    from realrl.serve.client import RemotePolicy
    policy, trained_on, sight = _loaded(args)
    task = args.task or trained_on
    if task.startswith("recorded/") and not (args.env or args.robot):
        raise mistake()(f"{args.policy} was imitated from recordings ({task}), there is nothing here to try it in: name its robot with "
                        "--env, or a simulator that speaks its numbers with --task; its held-out errors are in its run's report")
    make = _maker(args, policy)
    recall = policy.recall if isinstance(policy, RemotePolicy) else read_recall(args.policy)
    env = make() if make else envs.make(task, horizon=args.horizon, sight=sight)
    env.lag(recall, args.late)
    env.close()
    spec = env.task
    task = spec.id if make else task
    policy = _told(policy, task, args)
    check_fit(policy, spec, args.policy, trained_on)
    policy = _in_box(product(policy, args.policy, args.head, args.sampler), args, spec)
    others = dict(variants(policy, spec, blind=args.blind, swap=args.swap_text, paraphrase=args.paraphrase))
    out = args.out or (Path() if isinstance(args.policy, str) else args.policy.resolve().parent) / f"failures-{policy.head}"
    if args.save_failures:
        failures.room(out)  # before anything long
    if args.robustness:
        scene_changes(task, sight)  # raises for an environment of one's own, whose scene nobody knows how to change
    kept, said = failures.FirstFailures(args.save_failures or 0), Said(spec)
    with Collector(task, _workers(args, CollectConfig), horizon=args.horizon, sight=sight, guard=GuardConfig(args.max_delta),
                   recall=recall, late=args.late, make=make) as collector:
        watch = lambda episodes: progress(episodes, f"evaluating on {task}", args.episodes)
        finished = trials(collector, policy, args.episodes, seed=args.seed, plans_only=not args.save_failures,  # films need every frame
                          keep=lambda e: kept.pick(said.hear(e)), watch=watch)
        understood = {name: summarise(trials(collector, who, args.episodes, seed=args.seed, watch=watch), spec.dt).to_dict()
                      for name, who in others.items()}
    result = summarise(finished, spec.dt).to_dict()
    other: dict[str, Any] = {"understanding": {name: _short(found) for name, found in understood.items()}} if understood else {}
    other |= said.means()
    if args.robustness:
        under = robustness(policy, task, args.episodes, sight=sight, collect=CollectConfig(workers=args.workers), dt=spec.dt,
                           horizon=args.horizon, seed=args.seed, recall=recall, late=args.late, watch=progress)
        other["robustness"] = {change: _short(found.to_dict()) for change, found in under}
    if page := kept.save(out, task=task, dt=spec.dt, each=progress):
        other["failures_page"] = str(page)
        if (run := page.parent.parent).joinpath("metrics.jsonl").is_file():
            other["report"] = str(write_report(run))  # it shows them
    told = ("success", "cycle_steps", "cycle_s", "successes_per_hour", "episode_return", "failures")
    return {**{name: result[name] for name in told}, **other, "latency_ms": latency(policy, spec), "task": task,
            "policy": str(args.policy), "head": policy.head, "seed": args.seed, "episodes": args.episodes}


def _told(policy: Saved, task: str, args: argparse.Namespace) -> Saved:
    """The policy as it does what it is tried at, or what --text says; where that is an environment of one's own or a robot, --task says
    which of a flow policy's tasks that is. Raises RealrlError."""
    from realrl.policies.folder import for_task
    if not (args.task and (args.env or args.robot)):
        return for_task(policy, task, args.text)
    if policy.KIND != "flow":
        raise mistake()(f"--task {args.task}: beside --env and --robot it says which of a flow policy's tasks is done, a {policy.KIND} "
                        "policy does one: leave it out")
    return policy.told(args.task).told(args.task, args.text)  # raises for a task that it does not know


class Said:
    """What the trials of a task say besides, see `envs.told`."""

    def __init__(self, spec: TaskSpec) -> None:
        from realrl import envs
        self._tell, self._all = envs.told(spec.twin or spec.id), list[dict[str, float]]()

    def hear(self, episode: Episode) -> Episode:
        """An episode, as it was."""
        self._all.extend([self._tell(episode.obs["privileged"][-1])] if self._tell else [])
        return episode

    def means(self) -> dict[str, dict[str, float]]:
        """Over all that were heard, as `measured`; nothing where they say nothing."""
        return {"measured": {name: sum(t[name] for t in self._all) / len(self._all) for name in self._all[0]}} if self._all else {}


def _short(found: dict[str, Any]) -> dict[str, Any]:
    """What is said of an evaluation beside another one."""
    return {name: found[name] for name in ("success", "cycle_steps")}


def _place(text: str) -> Path | str:
    """Where a policy is: a folder, or a server's address."""
    return text if "://" in text else Path(text)


def _loaded(args: argparse.Namespace) -> tuple[Saved, str, SightConfig]:
    """(the policy, the task that it was trained on, what it saw there)."""
    from realrl.policies.folder import load_policy
    from realrl.scene import device
    place = device(args.device)
    if place.type != "cpu":
        if args.workers > 1 or isinstance(args.policy, str):
            raise mistake()(f"--device {args.device} is for a policy that acts in this process: leave --workers and ws:// addresses out")
        args.workers = 1
    if not isinstance(args.policy, str):
        return *load_policy(args.policy, place), _sight(args.policy)
    from realrl.scene import SightConfig
    from realrl.serve.client import RemotePolicy
    remote = RemotePolicy(args.policy, os.environ.get("REALRL_TOKEN") or None)
    if remote.senses and not (args.env or args.robot):
        raise mistake()(f"{args.policy}: its policy sees {', '.join(remote.senses)}, and its server does not say how those are drawn: "
                        "evaluate its folder where it is, or try it on a robot with --robot")
    return cast("Saved", remote), remote.task, SightConfig()  # it says as much of itself as a saved one


def _sight(policy: Path) -> SightConfig:
    """What a saved policy saw in training."""
    from realrl import config
    from realrl.policies.folder import read_policy_json
    from realrl.scene import SightConfig
    return config.from_dict(SightConfig, read_policy_json(policy).get("sight", {}), source=str(policy / "policy.json"))


def _maker(args: argparse.Namespace, policy: Saved) -> Callable[[], RobotEnv] | None:
    """What builds an environment of one's own or connects to a robot, which is told what the policy's numbers mean; None without --env and
    --robot."""
    if not (args.env or args.robot):
        return None
    if args.horizon or args.robustness:
        raise mistake()("--env and --robot: an environment of your own has its own horizon and scene: leave --horizon and --robustness out")
    if args.robot:
        from realrl.robots.client import remote
        from realrl.robots.embodiment import Meant
        robot = _spoken(args, policy)
        return remote(args.robot, speaks=None if robot is None else Meant(robot, str(args.policy), policy.senses))
    from realrl.envs import own
    return own(args.env)


def _in_box(policy: Saved, args: argparse.Namespace, spec: TaskSpec) -> Saved:
    """The policy as it acts in an environment: one of recordings in the numbers of these, which is said on standard error."""
    robot = None if args.robot else _spoken(args, policy)
    if robot is None:
        return policy
    from realrl.robots.embodiment import boxed
    from realrl.terminal import console
    found, said = boxed(policy, robot, args.policy, spec.id, 1 / spec.dt)
    console(stderr=True).print(f"note: {said}", soft_wrap=True, highlight=False, markup=False)
    return cast("Saved", found)


def _spoken(args: argparse.Namespace, policy: Saved) -> Embodiment | None:
    """The robot whose recordings a policy was trained on, None for one of a task."""
    from realrl.policies.folder import read_robot
    return getattr(policy, "robot", None) if isinstance(args.policy, str) else read_robot(args.policy)


def _workers(args: argparse.Namespace, config: type[CollectConfig]) -> CollectConfig:
    """One robot of one's own unless workers are asked for."""
    return config(workers=1, envs_per_worker=1) if (args.env or args.robot) and not args.workers else config(workers=args.workers)
