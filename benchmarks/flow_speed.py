"""What the language-conditioned flow policy costs beside LeRobot's policies with two cameras: a decision, and a sample of training.

    python -m benchmarks.flow_speed --lerobot LEROBOT_ENVIRONMENT/bin/python
    python -m benchmarks.flow_speed --lerobot LEROBOT_ENVIRONMENT/bin/python --parts training --rounds 5

Two cameras of 96 px, 8 numbers of state, 4 of action, one thread. Ours is the flow policy with its defaults, told by text, with ten Euler
steps and with its one-step head; a decision begins with bytes from the cameras. LeRobot's nearest of a size for a processor are ACT (a
transformer that plans a chunk from picture tokens) and its diffusion policy, both with resnet18 and without text; those with text begin
at 450 million parameters. A sample of training is what each one's own training does with it: ours learns from what its frozen eyes said
of a frame once, ACT from the pictures, its eyes included. Everybody takes turns. Writes benchmarks/results/flow_speed.jsonl.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.lib.common import RESULTS, Table
from benchmarks.lib.turns import Child, Stopwatch
from benchmarks.serving import ACTION, PAIR, caller, measure, peer
from realrl.cell.products import large_products
from realrl.learn.fit import ImitationConfig
from realrl.learn.flow import FlowFit, Lessons
from realrl.policies.flow import Body, FlowPolicy, FlowPolicyConfig, Told
from realrl.types import Episode, Obs, RealrlError, Source

STATE, BATCH, STEPS = 8, 64, 100
TASKS = {"open": Told(("open the drawer",)), "close": Told(("close the drawer",))}
TARGETS = {"flow, 10 steps": 40.0, "flow, one step": 15.0}
TIMES = 3.0  # what is aimed at, of LeRobot's nearest
PEER = Path(__file__).parent / "lib" / "lerobot_training.py"
HEAD = ("what", "who", "parameters", "p50, p99 of a decision [ms]", "of the processor [ms]", "target for p99", "training samples/s",
        "of processor time", "times ACT's, by processor time")


def recorded(rng: np.random.Generator) -> Episode:
    """An episode of noise."""
    pictures = {key: rng.integers(0, 256, (STEPS + 1, *shape), np.uint8) for key, shape in PAIR.items()}
    action = rng.uniform(-1, 1, (STEPS, ACTION)).astype(np.float32)
    return Episode(obs={"state": rng.standard_normal((STEPS + 1, STATE), dtype=np.float32), **pictures}, action=action, proposed=action,
                   source=np.full(STEPS, Source.HUMAN, np.uint8), reward=np.zeros(STEPS, np.float32), success=np.zeros(STEPS, bool),
                   time=np.arange(STEPS) / 10, starts_plan=np.ones(STEPS, bool), terminated=False, truncated=True, task="", policy="")


def learner() -> tuple[FlowPolicy, FlowFit, float]:
    """(a policy that knows its frames, its fit, the milliseconds of processor time that its eyes took for a frame, once)."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    policy = FlowPolicy(FlowPolicyConfig(), (Body("arm", STATE, ACTION),), TASKS, senses=PAIR)
    lessons = Lessons(policy, {task: [recorded(rng) for _ in range(2)] for task in TASKS})
    policy.fit_senses(lessons.frames())
    began = time.process_time()
    lessons.encode()
    looked = 1e3 * (time.process_time() - began) / (len(TASKS) * 2 * (STEPS + 1))
    return policy, FlowFit(policy, lessons, ImitationConfig(batch=BATCH), seed=0), looked


class Ours:
    """The fit as a contestant."""

    def __init__(self, fit: FlowFit) -> None:
        self._fit = fit
        self.ask(2)

    def ask(self, units: int) -> dict[str, Any]:
        """So many gradient steps."""
        watch = Stopwatch()
        with large_products():  # as in a run
            for _ in range(units):
                self._fit.update()
        return watch.read()


def decisions(policy: FlowPolicy, lerobot: str, calls: int, table: Table) -> None:
    """A row a contestant."""
    rng = np.random.default_rng(1)
    policy.distilled = True
    told = policy.eval().requires_grad_(False).told("open")
    seen: list[Obs] = [{"state": rng.standard_normal((1, 1, STATE), dtype=np.float32),
                        **{key: rng.integers(0, 256, (1, 1, *shape), np.uint8) for key, shape in PAIR.items()}} for _ in range(20)]
    size = sum(p.numel() for part in (told.eyes, told.prefix, told.actor) for p in part.parameters())
    field = {"flow, 10 steps": caller(told.with_head("flow"), seen), "flow, one step": caller(told.with_head("one-step"), seen)}
    sizes = dict.fromkeys(field, size)
    for who, name in (("act", "LeRobot's ACT"), ("diffusion", "LeRobot's diffusion, 10 steps")):
        field[name], sizes[name] = peer(lerobot, who, "cameras-resnet")
    for name, ms in measure(field, calls, 20)[0].items():
        (p50, p99), (cpu50, cpu99) = (np.percentile(ms[:, i], [50, 99]).tolist() for i in (0, 1))
        table.put({"what": "a decision", "who": name, "parameters": sizes[name], "calls": len(ms), "p50_ms": p50, "p99_ms": p99,
                   "cpu_p50_ms": cpu50, "cpu_p99_ms": cpu99, "target_p99_ms": TARGETS.get(name)})
        print(f"{name}: p50 {p50:.2f} ms, p99 {p99:.2f} ms; of the processor {cpu50:.2f}, {cpu99:.2f}")


def training(fit: FlowFit, looked: float, lerobot: str, rounds: int, table: Table) -> None:
    """A row a contestant."""
    told = json.dumps({"who": "act", "state": STATE, "action": ACTION, "cameras": PAIR, "width": 64, "threads": 1, "stored": 2 * STEPS,
                       "batch": 8})
    theirs = Child([lerobot, str(PEER), told], 1, own=False, mend="is lerobot installed where --lerobot says?")
    mine, spent = Ours(fit), dict[str, list[dict[str, Any]]](flow=[], act=[])
    try:
        for _ in range(rounds):
            spent["flow"].append(mine.ask(10))
            spent["act"].append(theirs.ask(2))
    finally:
        theirs.close()
    samples = {"flow": 10 * BATCH, "act": 2 * 8}
    rate = {who: {clock: samples[who] / float(np.median([s[clock] for s in spent[who]])) for clock in ("wall", "cpu")} for who in spent}
    sizes = {"flow": sum(p.numel() for p in fit.net.parameters()), "act": theirs.about["parameters"]}
    for who, name in (("flow", "flow"), ("act", "LeRobot's ACT, batches of 8")):
        table.put({"what": "training", "who": name, "parameters": sizes[who], "rounds": rounds, "samples_per_s": rate[who]["wall"],
                   "samples_per_cpu_s": rate[who]["cpu"], "times_act": rate[who]["cpu"] / rate["act"]["cpu"],
                   "target_times": TIMES if who == "flow" else None, "look_cpu_ms": looked if who == "flow" else None})
        print(f"{name}: {rate[who]['wall']:.0f} samples/s, {rate[who]['cpu']:.0f} a second of processor time")


def lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line a row."""
    found = []
    for row in rows:
        size = f"{row['parameters'] / 1e6:.2f} M"
        if row["what"] == "training":
            goal = f" (wanted {row['target_times']:g})" if row["target_times"] else ""
            found.append([row["what"], row["who"], size, "-", "-", "-", f"{row['samples_per_s']:.0f}", f"{row['samples_per_cpu_s']:.0f}",
                          f"{row['times_act']:.1f}{goal}"])
        else:
            goal = f"{row['target_p99_ms']:g} ms" if row["target_p99_ms"] else "-"
            found.append([row["what"], row["who"], size, f"{row['p50_ms']:.2f}, {row['p99_ms']:.2f}",
                          f"{row['cpu_p50_ms']:.2f}, {row['cpu_p99_ms']:.2f}", goal, "-", "-", "-"])
    return found


def main(words: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lerobot", required=True, metavar="PYTHON", help="Python of an environment with LeRobot")
    parser.add_argument("--parts", nargs="+", default=["decisions", "training"], choices=["decisions", "training"])
    parser.add_argument("--calls", type=int, default=1000, help="timed decisions of each; a tenth of the slow ones")
    parser.add_argument("--rounds", type=int, default=11, help="turns of training")
    parser.add_argument("--out", type=Path, default=RESULTS / "flow_speed.jsonl")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    table = Table(args.out, ("what", "who"))
    try:
        policy, fit, looked = learner()
        if "training" in args.parts:
            training(fit, looked, args.lerobot, args.rounds, table)
            fit.finish()
        if "decisions" in args.parts:
            decisions(policy, args.lerobot, args.calls, table)
    except RealrlError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
