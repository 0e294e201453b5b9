"""Contact-rich assembly: what the online residual is worth on the other arm, and how soon the skill is learned in simulation.

    OMP_NUM_THREADS=1 python -m benchmarks.admittance --parts loop solve pace          # seconds
    OMP_NUM_THREADS=1 python -m benchmarks.admittance --parts training --seeds 0 1 2   # minutes each
    OMP_NUM_THREADS=1 python -m benchmarks.admittance --parts learned --seeds 0 --shapes square --trials 100
    OMP_NUM_THREADS=1 python -m benchmarks.admittance --parts pace training learned --pivot --seeds 0 --controls direct adapted braced
    OMP_NUM_THREADS=1 python -m benchmarks.admittance --parts training learned --forge --seeds 0 --controls direct adapted braced
    OMP_NUM_THREADS=1 python -m benchmarks.admittance --parts training learned --one-way --seeds 0 --shapes square --controls braced
    OMP_NUM_THREADS=1 python -m benchmarks.admittance --parts served --seeds 0 --shapes square --controls braced --trials 20
    OMP_NUM_THREADS=1 python -m benchmarks.admittance --parts scripted --trials 100

loop: the smallest damping at which a linear contact stays stable, by delay and lag of the loop and stiffness of what is touched. solve: CPU
time of a fit of the residual, six axes that all feel. pace: decisions of the simulation in a second of CPU time. training:
`realrl train admittance`, in simulation. learned: the policy of that in simulation, and in the world that nobody looked at, with every
control; also with the shapes that no training sees; with --pivot, of a policy that sets a block upright; with --forge, of one that is told
a force to keep to; with --one-way, of one that learned without the turned and mirrored decisions. served: the same through the robot's
server, in real time, an action a second. scripted: learned's trials of a trajectory that knows where the hole is, or how far the block is
raised.

Rows go to benchmarks/results/admittance.jsonl; the same command goes on where it was stopped, within a run too, and one that asks for more
--trials than a row has runs them all.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.lib.common import RESULTS, Part, Table, arguments, overridden, run_parts, slim
from benchmarks.through_server import served
from realrl import envs
from realrl.algos.admittance import AdmittanceConfig, measured, train
from realrl.cell.cell import WorkCell
from realrl.cell.collect import Collector
from realrl.cell.evaluate import blind, summarise, trials
from realrl.envs.assembly import CONTROLS, LEVELS, SHAPES
from realrl.policies.folder import load_policy
from realrl.robots.admittance import TunerConfig, Window, critical, fit
from realrl.robots.client import remote
from realrl.run import Run
from realrl.scene import CollectConfig
from realrl.types import Episode, Source

KEY = ("task", "method", "seed")
ONE_WAY = ", one way"
"""Of a policy that learned without the decisions turned and mirrored."""
LOOPS = ((0.001, 0.0, 0.0), (0.001, 0.002, 0.005), (0.001, 0.008, 0.020), (0.008, 0.008, 0.020))
"""Step of the law, delay of the wrench, lag of the servo, s."""
TOUCHED = (3e3, 1e4, 5e4)
"""Stiffness of the contact, N/m."""


def radius(damping: float, mass: float, touched: float, loop: tuple[float, float, float], spring: float = 200.0) -> float:
    """Spectral radius of the law in contact: below 1 it is stable. The servo runs at 1 kHz and follows the law's speed, which is held."""
    step, delay, lag = loop
    h, ratio, late = 0.001, round(step / 0.001), round(delay / 0.001)
    size = 3 + late + 1  # speed, position of the law, position of the arm, its past
    inner = np.eye(size)
    inner[2, 2], inner[2, 1] = 1 - h / (lag + h), h / (lag + h)
    inner[3:] = 0
    inner[3] = inner[2]  # the newest of the past
    inner[np.arange(4, size), np.arange(3, size - 1)] = 1
    law = np.eye(size)
    den = 1 + step * damping / mass + step**2 * spring / mass
    law[0] = 0
    law[0, 0], law[0, 1], law[0, size - 1] = 1 / den, -step * spring / mass / den, -step * touched / mass / den
    law[1] = law[1] + step * law[0]
    return float(np.abs(np.linalg.eigvals(np.linalg.matrix_power(inner, ratio) @ law)).max())


def least_damping(mass: float, touched: float, loop: tuple[float, float, float]) -> float:
    """The smallest damping from which on the contact is stable, N s/m; 0 where any is."""
    grid = np.geomspace(1.0, 5000.0, 120)
    bad = [d for d in grid if radius(float(d), mass, touched, loop) >= 1 - 1e-9]
    if not bad:
        return 0.0
    low, high = float(bad[-1]), float(bad[-1]) * 1.1
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if radius(middle, mass, touched, loop) >= 1 - 1e-9 else (low, middle)
    return high


def solve_ms(calls: int = 100) -> dict[str, float]:
    """CPU milliseconds of a fit on a second of contact on all six axes: {"p50", "p99"}."""
    rng, t = np.random.default_rng(0), np.arange(125) * 0.008
    scale, base, cfg = np.array([1.0] * 3 + [0.05] * 3), critical(np.array([200.0] * 3 + [10.0] * 3)).table(), TunerConfig()
    took = []
    for _ in range(calls + 5):
        wrench = (4 + 8 * np.exp(-3 * t) * np.sin(40 * t))[:, None] * scale + rng.normal(0, 0.2, (125, 6)) * scale
        pose = -wrench / (rng.uniform(2e3, 2e4, 6) * scale)
        window = Window(pose, np.gradient(pose, 0.008, axis=0), wrench, np.full((125, 6), -0.02))
        began = time.process_time()
        fit(window, base, base, cfg)
        took.append(1000 * (time.process_time() - began))
    p50, p99 = np.percentile(took[5:], [50, 99])
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3)}


@dataclass(frozen=True)
class Trials:
    """A policy, or the scripted trajectory, on one arm. policy: the folder of one; seed: of its training; log: where the robot's server
    writes, in a process of its own and in real time; None: in lock-step; how: it learned, as the row says it."""

    table: Table
    task: str
    n: int
    policy: Path | None = None
    seed: int = 0
    log: Path | None = None
    how: str = ""

    @property
    def method(self) -> str:
        """As the row says it."""
        return "served" if self.log else f"learned{self.how}" if self.policy else "scripted"

    def done(self) -> bool:
        """Whether a row of as many lies there."""
        row = self.table.find(self.task, self.method, self.seed)
        return row is not None and row["success"]["n"] >= self.n

    def run(self) -> None:
        """Run them, and write the row."""
        told: list[dict[str, float]] = []

        def keep(episode: Episode) -> Episode:
            told.append(measured(episode))
            return blind(episode)

        task = f"assembly/{self.task}"
        policy, source = (load_policy(self.policy)[0], Source.POLICY) if self.policy else (envs.expert(task), Source.SCRIPT)
        with ExitStack() as stack:
            url = stack.enter_context(served(task, 0, self.log)) if self.log else None
            collector = stack.enter_context(Collector(task, CollectConfig(workers=1, envs_per_worker=1), make=remote(url) if url else None))
            found = trials(collector, policy, self.n, source=source, keep=keep)
            result = slim(summarise(found, 1.0).to_dict())
        seconds = [t["seconds"] for t in told if t["solved"]]
        self.table.put({"task": self.task, "method": self.method, "seed": self.seed,
                        "success": result["success"], "peak_force_n": spread([t["peak"] for t in told]), "seconds": spread(seconds),
                        "damping": spread([t["damping"] for t in told]), "failed_fits": sum(t["failed"] for t in told)})


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Mean and 95 % interval of it, by the normal approximation; None of nothing."""
    if not len(values):
        return None
    half = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return {"mean": round(float(np.mean(values)), 3), "half": round(half, 3), "n": len(values)}


def training(table: Table, cfg: AdmittanceConfig, folder: Path) -> None:
    """A run of the method, or what is left of it, and its row."""
    with Run.start(folder, cfg, resume=True, ignore=("collect",)) as run, WorkCell(run, cfg) as cell:
        summary = train(cfg, cell)
    told = {key: summary["headline"][key] for key in ("steps_to_90", "minutes_to_90", "learning_min")}
    how = "training" if cfg.symmetric else f"training{ONE_WAY}"
    table.put({"task": cfg.task.partition("/")[2], "method": how, "seed": cfg.seed, "steps": summary["env_steps"], **told})


def loop(table: Table) -> None:
    """The table of smallest dampings: over masses of 1 to 6 kg, least and most."""
    for step, delay, lag in LOOPS:
        for touched in TOUCHED:
            found = [least_damping(mass, touched, (step, delay, lag)) for mass in (1.0, 2.0, 3.0, 4.0, 6.0)]
            table.put({"task": f"{step:g}/{delay:g}/{lag:g}/{touched:g}", "method": "loop", "seed": 0, "least": round(min(found), 1),
                       "most": round(max(found), 1)})


def solve(table: Table) -> None:
    """The row of the fit's time."""
    table.put({"task": "fit", "method": "solve", "seed": 0, "cpu_ms": solve_ms()})


def pace(table: Table, name: str, n: int = 20) -> None:
    """The row of a simulation's speed: of n trials of the scripted trajectory, what it and the loop around it take included."""
    task = f"assembly/{name}"
    with Collector(task, CollectConfig(workers=1, envs_per_worker=1)) as collector:
        trials(collector, envs.expert(task), 1, source=Source.SCRIPT)
        began = time.process_time()
        decisions = sum(map(len, trials(collector, envs.expert(task), n, source=Source.SCRIPT)))
        a_second = decisions / (time.process_time() - began)
    table.put({"task": name, "method": "pace", "seed": 0, "decisions_per_cpu_s": round(a_second, 1)})


def main(words: list[str] | None = None) -> int:
    """Run what is missing."""
    parser = arguments(__doc__ or "", seeds=range(3))
    kinds = ["loop", "solve", "pace", "training", "learned", "served", "scripted"]
    parser.add_argument("--parts", nargs="+", default=kinds, choices=kinds)
    parser.add_argument("--trials", type=int, default=100, help="of every arm")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--controls", nargs="+", default=list(CONTROLS), choices=CONTROLS)
    parser.add_argument("--pivot", action="store_true", help="a block that is set upright, in place of pegs")
    parser.add_argument("--forge", action="store_true", help="the policy is told a force to keep to, and pays for what is beyond; square")
    parser.add_argument("--one-way", action="store_true", help="the policy learns without its decisions turned and mirrored")
    args, flags = parser.parse_known_args(words)
    out, results = (args.out / "smoke", args.out / "smoke") if args.smoke else (args.out, RESULTS)
    table, n = Table(results / "admittance.jsonl", KEY), 2 if args.smoke else args.trials
    if args.pivot and args.forge:
        parser.error("--pivot and --forge: nobody pivots by a force to keep to: leave one of them out")
    how = ONE_WAY if args.one_way else ""
    told, skill = "-forge" if args.forge else "", "pivot" if args.pivot else "square"
    home, works = f"{skill}{told}", [skill] if args.pivot or args.forge else args.shapes
    # "real" is for the trials alone
    cfg = AdmittanceConfig(task=f"assembly/{home}", real=f"assembly/{skill}-dev{told}", symmetric=not args.one_way, eval_episodes=1)
    if args.smoke:
        cfg = replace(cfg, steps=40, random_steps=20, compiled=False, sac=replace(cfg.sac, batch=8, hidden=(16,)))
    cfg = replace(overridden(cfg, flags), collect=CollectConfig(workers=1))
    parts = []
    if "loop" in args.parts:
        last = "/".join(f"{x:g}" for x in (*LOOPS[-1], TOUCHED[-1]))
        parts.append(Part("loop", lambda: table.find(last, "loop", 0) is not None, partial(loop, table)))
    if "solve" in args.parts:
        parts.append(Part("solve", lambda: table.find("fit", "solve", 0) is not None, partial(solve, table)))
    if "pace" in args.parts:
        parts.append(Part("pace", lambda: table.find(home, "pace", 0) is not None, partial(pace, table, home)))
    arms = [f"{work}-real{told}" + ("" if how == "direct" else f"-{how}") for work in works for how in args.controls]
    arms = [arm for arm in arms if arm in LEVELS]  # nobody probes before a pivot
    for seed in args.seeds[:1] if args.smoke else args.seeds:
        folder = out / "admittance" / f"s{seed}{'-pivot' if args.pivot else told}{'-one-way' if args.one_way else ''}"
        if "training" in args.parts:
            parts.append(Part(f"training, seed {seed}", lambda seed=seed: table.find(home, f"training{how}", seed) is not None,
                              partial(training, table, replace(cfg, seed=seed), folder)))
        policy = folder / "policy"
        for trials_of in [Trials(table, task, n, policy, seed, how=how) for task in (home, *arms)] if "learned" in args.parts else ():
            parts.append(Part(f"learned, seed {seed}, {trials_of.task}", trials_of.done, trials_of.run))
        for task in arms if "served" in args.parts else ():
            on_robot = Trials(table, task, n, policy, seed, out / "admittance" / "served")
            parts.append(Part(f"served, seed {seed}, {task}", on_robot.done, on_robot.run))
    for trials_of in [Trials(table, task, n) for task in arms] if "scripted" in args.parts else ():
        parts.append(Part(f"scripted, {trials_of.task}", trials_of.done, trials_of.run))
    return min(run_parts(parts, args.budget), 1)


if __name__ == "__main__":
    sys.exit(main())
