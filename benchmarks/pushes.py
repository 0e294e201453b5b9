"""Pushes: does a quadruped walk, or stand, again soon after somebody shoved it, before and after 10 minutes of practice with that?

    OMP_NUM_THREADS=1 python -m benchmarks.pushes --methods walk walk-on walk-pushed --seeds 0
    OMP_NUM_THREADS=1 python -m benchmarks.pushes --tasks go1-from-back --methods dream dream-pushed --seeds 0
    OMP_NUM_THREADS=1 python -m benchmarks.pushes --policies runs/walk/policy runs/pushed/policy

walk is CrossQ's walker after 6,000 steps, as `benchmarks.walk` has it; walk-on goes on for 12,000 steps (10 minutes of the robot) from
there, with its learner and what it practised; walk-pushed does so under pushes: `realrl train walk --after RUN --randomise.push 15`.
dream is the same of a world model's robot, which begins on its back.

Then each is pushed in 60 held-out episodes an impulse, once each, for 0.1 s, from any side, and acts without noise. Well again: within
4 s after the push's beginning it walked at 0.4 m/s over a second (of one that began on its back: it was upright over the last second of
them) and did not fall. Robots that were not so in the second before the push are not counted. 0 N s is no push. Rows go to
benchmarks/results/pushes.jsonl; the same command goes on where it was stopped. --policies: of any policies instead, printed, no row.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.lib.jobs import Job, run_jobs
from benchmarks.lib.pushing import IMPULSES, share, tested
from realrl.algos import daydreamer, walk
from realrl.envs.quadruped import names
from realrl.policies.folder import load_policy
from realrl.scene import RandomiseConfig
from realrl.types import RealrlError

MORE, EPISODES = 12_000, 60
TOY = 40  # steps of an episode where only the script is tried
PUSHES = RandomiseConfig(push=15.0, push_every=5.0)
WALK, DREAM = replace(walk.preset("crossq"), steps=6000), daydreamer.DaydreamerConfig(steps=12_000)
METHODS: dict[str, Any] = {"walk": WALK, "walk-on": replace(WALK, steps=MORE), "walk-pushed": replace(WALK, steps=MORE, randomise=PUSHES),
                           "dream": DREAM, "dream-on": replace(DREAM, steps=MORE),
                           "dream-pushed": replace(DREAM, steps=MORE, randomise=PUSHES)}


def toy_size(cfg: Any) -> Any:
    """The same with budgets that show nothing but that the script works."""
    if isinstance(cfg, walk.WalkConfig):
        sac = replace(cfg.sac, batch=8, hidden=(16,))
        return replace(cfg, sac=sac, policy=replace(cfg.policy, hidden=(16,)), steps=100, random_steps=40, horizon=TOY, eval_episodes=2)
    rssm = replace(cfg.policy.rssm, deter=16, hidden=16, units=16, stoch=4, classes=4, depth=2)
    dream = replace(cfg.dream, batch=4, length=6, last=4, imagine=3, alone=1)
    return replace(cfg, policy=replace(cfg.policy, rssm=rssm), dream=dream, steps=80, prefill=40, ratio=4.0, horizon=TOY, eval_episodes=2)


class Push(Job):
    """One task, method and seed."""

    def run(self) -> None:
        """Learn, be pushed, and write the row."""
        kind, _, then = self.method.partition("-")
        if (kind == "dream") != self.task.endswith("-from-back"):
            raise RealrlError(f"{self.method} is not for quadruped/{self.task}: dream is for robots on their back, walk for others")
        job, small = self, self.cfg.horizon == TOY
        if then:
            first = self.folder.with_name(self.folder.name.replace(f"-{self.method}-", f"-{kind}-"))
            if not (first / "policy" / "policy.json").is_file():
                raise RealrlError(f"{self.method} goes on from {kind}: run that first (--methods {kind})")
            job = replace(self, cfg=replace(self.cfg, after=str(first)))
        summary = job.learn(walk.train if kind == "walk" else daydreamer.train)
        policy, task = load_policy(self.folder / "policy")
        pushed = [tested(task, policy, impulse, 2 if small else EPISODES, every=2.0 if small else None)
                  for impulse in (IMPULSES[::3] if small else IMPULSES)]
        self.put(steps=self.cfg.steps, pushed=pushed, **summary["headline"])


def judge(policies: list[Path]) -> int:
    """Push the robots of some policies, and print what became of them."""
    for place in policies:
        policy, task = load_policy(place)
        for impulse in IMPULSES:
            found = tested(task, policy, impulse, EPISODES)
            well, fell = (share(found[what]) for what in ("recovered", "fell"))
            print(f"{place}  {impulse:g} N s: well again {well}, fell {fell}, {found['pushes']} pushes", flush=True)
    return 0


def main(words: list[str] | None = None) -> int:
    """Run what is missing, or push the robots of --policies."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--policies", type=Path, nargs="+")
    given = parser.parse_known_args(words)[0].policies
    if given:
        return judge(given)
    return run_jobs(Push, __doc__ or "", words, file="pushes", suite="quadruped", tasks=names(), methods=METHODS, toy_size=toy_size,
                    seeds=range(1))


if __name__ == "__main__":
    sys.exit(main())
