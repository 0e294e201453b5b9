"""The same work by others' code and by ours, on one machine, in turns: online RL, imitation, plans at batch 1.

    python -m venv DPPO; DPPO/bin/pip install torch gym==0.22.0 hydra-core omegaconf einops   # and this project's dependencies
    git clone https://github.com/irom-princeton/dppo CODE
    python -m venv LEROBOT; LEROBOT/bin/pip install lerobot
    python -m benchmarks.peers --dppo DPPO/bin/python --dppo-code CODE --lerobot LEROBOT/bin/python

Each contestant is a process of its own, kept to the same cores, and a round gives each its turn; medians over rounds. Wall time is what
passed, processor time what was computed, which on a machine that others use, too, is the fairer one; the ratios are of processor time.

online: milliseconds for every environment step of a round, collection and update apart. Ours is RL-100's online stage with its defaults,
as a run does it and without the recording; theirs is DPPO's public agent, whole, with the settings that it publishes for a gym task and
for a robomimic task, on the same Meta-World task. Both begin with untrained networks, so that every episode lasts its 200 steps and no
fit ends early. imitation: gradient steps of the U-Net diffusion policy, beside LeRobot's with as many parameters, horizon and batch
the same. plan: an observation to a plan at batch 1, as benchmarks/serving.py measures it. Writes benchmarks/results/peers.jsonl.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.lib.common import RESULTS, ROOT, Table
from benchmarks.lib.turns import Child
from benchmarks.serving import ACTION, CASES, caller, look, measure, peer
from realrl.policies.diffusion import DiffusionPolicy
from realrl.types import RealrlError

LIB = ROOT / "benchmarks" / "lib"
Made = list[tuple[str, Callable[[], Child]]]
"""Who, and what makes their process."""
DPPO = {"DPPO, gym settings": "gym/finetune/hopper-v2/ft_ppo_diffusion_mlp.yaml",
        "DPPO, robomimic settings": "robomimic/finetune/square/ft_ppo_diffusion_mlp.yaml"}
UNET = {"state": 40, "split": 20, "action": 4, "chunk": 16, "observations": 2, "width": 64, "cameras": {}, "batch": 64, "stored": 10_000}
"""What both imitate: noise of a robot's size."""
NEEDS = {"online": "--dppo PYTHON --dppo-code DIR (a checkout of github.com/irom-princeton/dppo)", "imitation": "--lerobot PYTHON",
         "plan": "--lerobot PYTHON"}


@dataclass
class Contestant:
    """One that takes turns. units: of work a turn; spent: what it said of each turn."""

    who: str
    child: Child
    units: int = 1
    spent: list[dict[str, Any]] = field(default_factory=list)

    def turn(self) -> None:
        """Work."""
        self.spent.append(self.child.ask(self.units))


def race(made: Made, units: int, rounds: int) -> list[Contestant]:
    """Everybody's turns: the order is reversed from round to round."""
    found: list[Contestant] = []
    try:
        for who, make in made:
            found.append(Contestant(who, make(), units))
            print(f"    {who} is ready: {found[-1].child.about}", flush=True)
        for i in range(rounds):
            for contestant in found[::-1] if i % 2 else found:
                contestant.turn()
                print(f"    {contestant.who}: {contestant.spent[-1]}", flush=True)
    finally:
        for contestant in found:
            contestant.child.close()
    return found


def ours(who: str, threads: int, **told: Any) -> Child:
    """A child of this project."""
    words = json.dumps({"who": who, "threads": threads, **told})
    return Child([sys.executable, str(LIB / "our_turns.py"), words], threads, own=True, mend="it is this project's own")


# ---- online


def milliseconds(turns: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """{"cpu", "wall"} -> {"all", "collect", "update"} -> of every turn, for an environment step."""
    def of(turn: dict[str, Any], part: str, clock: str) -> float:
        collect, whole = turn["collect"][clock], turn[clock]
        return 1e3 * float({"all": whole, "collect": collect, "update": whole - collect}[part]) / float(turn["steps"])

    return {clock: {part: [of(t, part, clock) for t in turns] for part in ("all", "collect", "update")} for clock in ("cpu", "wall")}


def online(args: argparse.Namespace, threads: int, table: Table) -> None:
    """A row a contestant; those of DPPO say how many times longer each part takes than ours."""
    told = {"task": args.task, "episodes": args.episodes}
    made: Made = [("realrl", partial(ours, "online", threads, **told)),
                  ("realrl, not recorded", partial(ours, "online, not recorded", threads, **told))]
    for who in args.settings if args.dppo else ():
        words = [str(Path(args.dppo_code).resolve()), DPPO[who], args.task, str(args.steps), str(threads)]
        made.append((who, partial(Child, [args.dppo, str(LIB / "dppo_peer.py"), *words], threads, own=True,
                                  mend="has --dppo's environment what its code imports, and this project's dependencies?")))
    found = race(made, 1, args.rounds)
    costs = {c.who: milliseconds(c.spent) for c in found}
    for c in found:
        if any(t.get("epochs", c.child.about["epochs"]) < c.child.about["epochs"] or t.get("success") for t in c.spent):
            raise RealrlError(f"{c.who}: a fit ended early, or an untrained policy succeeded: nothing can be compared, name another --task")
        row = {"what": "online", "who": c.who, "threads": threads, "task": args.task, "rounds": args.rounds, **c.child.about,
               "steps": c.spent[-1]["steps"],
               **{f"{clock}_ms": {part: float(np.median(x)) for part, x in parts.items()} for clock, parts in costs[c.who].items()}}
        for base in ("realrl", "realrl, not recorded") if c.who in DPPO else ():
            row[f"times {base}"] = {clock: {part: _ratio(x, costs[base][clock][part]) for part, x in parts.items()}
                                    for clock, parts in costs[c.who].items()}
        table.put(row)


def _ratio(theirs: Sequence[float], mine: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return float(np.median(np.array(theirs) / np.array(mine)))


# ---- imitation


def imitation(args: argparse.Namespace, threads: int, table: Table) -> None:
    """A row a contestant; LeRobot's says how many times longer its step takes than ours."""
    made: Made = [("realrl", partial(ours, "imitation", threads, **UNET))]
    if args.lerobot:
        words = json.dumps({"who": "diffusion", "threads": threads, **UNET})
        made.append(("LeRobot", partial(Child, [args.lerobot, str(LIB / "lerobot_training.py"), words], threads, own=False,
                                        mend="is lerobot installed where --lerobot says?")))
    found = race(made, args.fits, 2 * args.rounds + 1)
    for c in found:
        row = {"what": "imitation", "who": c.who, "threads": threads, "rounds": len(c.spent), "batch": UNET["batch"], **c.child.about,
               **{f"{clock}_ms": 1e3 * float(np.median([t[clock] for t in c.spent])) / args.fits for clock in ("cpu", "wall")}}
        if c is not found[0]:
            row["times realrl"] = {clock: _ratio(*([t[clock] for t in x.spent] for x in (c, found[0]))) for clock in ("cpu", "wall")}
        table.put(row)


# ---- plans


def plan(args: argparse.Namespace, threads: int, table: Table) -> None:
    """A row a contestant, from an observation to a guarded action; LeRobot's has no guard."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    _, cfg, obs_dim, *_ = CASES["unet"]
    policy = DiffusionPolicy(cfg, obs_dim, ACTION).eval().requires_grad_(False)
    seen = [look(policy, np.random.default_rng(0)) for _ in range(20)]
    size = sum(p.numel() for p in policy.net.parameters())
    calls = {f"{n}, realrl": caller(policy.with_head(head), seen) for n, head in (("10 steps", "ddim"), ("one step", "one-step"))}
    sizes = dict.fromkeys(calls, size)
    if args.lerobot:
        calls["10 steps, LeRobot"], sizes["10 steps, LeRobot"] = peer(args.lerobot, "diffusion", "unet")
    found = {who: np.median(ms, 0) for who, ms in measure(calls, args.calls, 4)[0].items()}
    for who, (wall, cpu) in found.items():
        row = {"what": "plan", "who": who, "threads": threads, "parameters": sizes[who], "cpu_ms": float(cpu), "wall_ms": float(wall)}
        if (theirs := found.get("10 steps, LeRobot")) is not None and theirs is not found[who]:
            row["times faster"] = {"cpu": float(theirs[1] / cpu), "wall": float(theirs[0] / wall)}
        table.put(row)


# ---- the script

CONTESTS = {"online": online, "imitation": imitation, "plan": plan}


def main(words: list[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contests", nargs="+", default=list(CONTESTS), choices=list(CONTESTS))
    parser.add_argument("--dppo", metavar="PYTHON", help="Python of an environment that has what DPPO's agent imports, and this project")
    parser.add_argument("--dppo-code", metavar="DIR", help="a checkout of DPPO's repository")
    parser.add_argument("--lerobot", metavar="PYTHON", help="Python of an environment with lerobot")
    parser.add_argument("--settings", nargs="+", default=list(DPPO), choices=list(DPPO), help="whose settings DPPO takes")
    parser.add_argument("--task", default="metaworld/peg-insert-side-v3")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="cores of each contestant; plans have one")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--episodes", type=int, default=100, help="of our round")
    parser.add_argument("--steps", type=int, default=20_000, help="environment steps of an iteration of DPPO's")
    parser.add_argument("--fits", type=int, default=20, help="gradient steps of imitation a turn")
    parser.add_argument("--calls", type=int, default=800, help="timed decisions; a tenth with ten steps")
    parser.add_argument("--out", type=Path, default=RESULTS / "peers.jsonl")
    args = parser.parse_args(words)
    args.dppo = args.dppo if args.dppo_code else None
    table, left = Table(args.out, ("what", "who", "threads")), 0
    for name in args.contests:
        if not (args.dppo if name == "online" else args.lerobot):
            print(f"{name}: nobody to compare with, give {NEEDS[name]}", file=sys.stderr)
        for threads in args.threads if name != "plan" else [1]:
            try:
                CONTESTS[name](args, threads, table)
            except RealrlError as error:
                print(f"{name}: not run: {error}", file=sys.stderr)
                left = 1
    return left


if __name__ == "__main__":
    sys.exit(main())
