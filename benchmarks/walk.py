"""Learning to walk: steps and minutes until a quadruped keeps 0.5 m/s for five seconds, and how it walks at the end.

    OMP_NUM_THREADS=1 python -m benchmarks.walk --methods crossq
    OMP_NUM_THREADS=1 python -m benchmarks.walk --methods droq sac --seeds 0 1 2
    OMP_NUM_THREADS=1 python -m benchmarks.walk --methods crossq --tasks go1-rough go1-wide a1
    OMP_NUM_THREADS=1 python -m benchmarks.walk --methods crossq-20k --tasks go1-rough --seeds 0 1 2
    OMP_NUM_THREADS=1 python -m benchmarks.walk --methods realtime killed --seeds 0
    OMP_NUM_THREADS=1 python -m benchmarks.walk --methods crossq --tasks go1-command --steps 40000 --seeds 0

realtime is crossq with the robot in a process of its own, at 20 Hz by the clock; of killed the learner is killed (-9) halfway and begins
again ten seconds later, while the robot's process waits.

Of go1-command the row has, beside what the run's headline says of commands that are drawn, how each of a fixed grid of them was followed.

A run is `realrl train walk` in one process, physics included, and then 20 held-out episodes of 20 s without and 20 with the policy's noise.
Rows go to benchmarks/results/walk.jsonl; the same command goes on where it was stopped, within a run too.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from benchmarks.lib.commanding import judged
from benchmarks.lib.common import slim
from benchmarks.lib.jobs import Job, run_jobs
from realrl.algos.walk import WalkConfig, preset, train
from realrl.envs.quadruped import VARIANTS, names
from realrl.policies.folder import load_policy
from realrl.streaming import StreamConfig

HALF = 10
METHODS = {"crossq": replace(preset("crossq"), steps=6000), "droq": preset("droq"), "sac": preset("sac"),
           "droq-10": replace(preset("droq"), sac=replace(preset("droq").sac, utd=HALF, policy_delay=HALF))}
METHODS |= {f"crossq-{steps // 1000}k": replace(METHODS["crossq"], steps=steps) for steps in (10_000, 20_000)}
METHODS["gentle"] = replace(METHODS["crossq-10k"], price=1.0)
METHODS |= {name: replace(METHODS["crossq"], stream=StreamConfig(realtime=True)) for name in ("realtime", "killed")}
"""What is compared; droq-10 makes half the paper's updates, gentle charges changes of the action once the robot walks, crossq-10k is the
same run without, crossq-20k one of the paper's length."""


def toy_size(cfg: WalkConfig) -> WalkConfig:
    """The same with budgets that show nothing but that the script works."""
    sac = replace(cfg.sac, batch=8, hidden=(16,))
    return replace(cfg, sac=sac, policy=replace(cfg.policy, hidden=(16,)), steps=100, random_steps=40, horizon=40, eval_episodes=2)


class Walk(Job):
    """One task, method and seed."""

    def run(self) -> None:
        """Learn, and write the row."""
        if self.method == "killed" and not self.folder.exists():
            self.die(train)
        summary = self.learn(train)
        told: dict[str, Any] = {}
        if VARIANTS[self.task.partition("-")[2]].goal == "command":
            policy, task = load_policy(self.folder / "policy")
            toy = self.cfg.horizon is not None
            told = {"commands": judged(task, policy, starts=1, seconds=1.0) if toy else judged(task, policy)}
        success: dict[str, Any] = {stage["name"]: slim(stage)["success"] for stage in summary["stages"]}
        self.put(steps=summary["env_steps"], success=success["walk"], success_noisy=success["walk-noisy"], **told, **summary["headline"])


def main(words: list[str] | None = None) -> int:
    """Run what is missing."""
    return run_jobs(Walk, __doc__ or "", words, file="walk", suite="quadruped", tasks=names(), methods=METHODS, toy_size=toy_size,
                    seeds=range(5))


if __name__ == "__main__":
    sys.exit(main())
