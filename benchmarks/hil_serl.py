"""A person in the loop: success without the person against robot time and the person's time, with corrections and without.

    OMP_NUM_THREADS=1 python -m benchmarks.hil_serl --methods corrections demonstrations nobody
    OMP_NUM_THREADS=1 python -m benchmarks.hil_serl --methods corrections hg-dagger cloning --seeds 0 1 2
    OMP_NUM_THREADS=1 python -m benchmarks.hil_serl --methods corrections --tasks peg-hard --steps 30000
    OMP_NUM_THREADS=1 python -m benchmarks.hil_serl --methods corrections gripper-as-motion --tasks pick-peg
    OMP_NUM_THREADS=1 python -m benchmarks.hil_serl --methods corrections --tasks pick-cube-anywhere
    OMP_NUM_THREADS=1 python -m benchmarks.hil_serl --methods pictures pictures-judged
    OMP_NUM_THREADS=1 python -m benchmarks.hil_serl --methods corrections residual asks chunks --seeds 31 --steps 2500 --eval-episodes 100

A run is `realrl train hil-serl` in one process, physics included. The person is the scripted one of `robots/human.py`, in training alone.
Every 2,500 steps and at the end the policy is judged without noise and without a person from 300 held-out starts; nothing is chosen by it.
hg-dagger and cloning are given as many of the person's seconds as the row of `corrections` with their task and seed says it took, beside
the 20 demonstrations that all have: to correct, and for more demonstrations.
pictures-judged is told in practice when it is done by a classifier of what its camera sees, fitted to 40 other demonstrations that stay
where they ended; it is judged by the task. killed is the same with the robot in a process of its own, at 10 Hz by the clock; its learner is
killed (-9) halfway and begins again ten seconds later, while the robot's process waits.
Rows go to benchmarks/results/hil_serl.jsonl, after every evaluation: a run that was stopped has a row up to there, marked as cut. The same
command goes on where it was stopped, within a run too.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.lib.common import slim
from benchmarks.lib.jobs import Job, run_jobs
from realrl import envs
from realrl.algos import bc
from realrl.algos.bc import BCConfig
from realrl.algos.hil_serl import HILConfig, train
from realrl.cli.main import main as realrl
from realrl.envs import contact, gymhil
from realrl.scene import SightConfig
from realrl.streaming import StreamConfig
from realrl.types import RealrlError

BASE = HILConfig(judge_every=2500, expert="upright")
METHODS = {"corrections": BASE, "gripper-as-motion": replace(BASE, grasp_critic=False), "demonstrations": replace(BASE, human="none"),
           "nobody": replace(BASE, human="none", prior_share=0.0), "residual": BASE, "asks": replace(BASE, help_after=20),
           "chunks": replace(BASE, policy=replace(BASE.policy, chunk=4)),
           "imitating": replace(BASE, clone_steps=1000, sac=replace(BASE.sac, imitation=0.1, actor_start=3000)),
           "tilting-person": replace(BASE, expert="tilting"),
           "mirrored": replace(BASE, expert=None, symmetric=True),
           "ten-critics": replace(BASE, sac=replace(BASE.sac, critics=10)),
           "long-memory": replace(BASE, policy=replace(BASE.policy, n_obs=16)),
           "pictures": replace(BASE, sight=SightConfig("rgb")), "pictures-judged": replace(BASE, sight=SightConfig("rgb")),
           "killed": replace(BASE, judge_every=0, sight=SightConfig("rgb"), stream=StreamConfig(realtime=True)),
           "hg-dagger": replace(BASE, learner="hg-dagger", sac=replace(BASE.sac, utd=1), clone_steps=2000),
           "cloning": replace(BASE, human="none", clone_steps=4000, steps=1, start=10**6)}
"""What is compared: HIL-SERL; on "pick-peg" the same without a grasp critic; the same (RLPD) with the demonstrations alone, and without
these (plain soft actor-critic); a residual on what `realrl train bc` makes of the same demonstrations; a person who comes when asked; four
motions a decision; a cloned start, critics that learn alone for 500 control steps, and from then on people imitated where the critics do
not know better; ten critics, of which targets take the less of two, as in RLPD; sixteen observations instead of six; a person who tilts the
peg, as `realrl train hil-serl` has it, where all others have one who holds it upright; the same (upright on "pick-peg") with decisions seen
in mirrors; from the pictures of a camera at the wrist, which see where the slot is, with the task's reward and with one learned from
pictures, which is also done in real time; imitation of the person, with corrections and without."""
HAS_GRIPPER = "pick-peg"
JUDGED = ("pictures-judged", "killed")
EQUAL = ("hg-dagger", "cloning")  # have the same seconds of a person as corrections


def toy_size(cfg: HILConfig) -> HILConfig:
    """The same with budgets that show nothing but that the script works."""
    sac = replace(cfg.sac, batch=8, hidden=(16,))
    return replace(cfg, sac=sac, policy=replace(cfg.policy, hidden=(16,)), demos=2, steps=min(cfg.steps, 100), start=min(cfg.start, 20),
                   clone_steps=min(cfg.clone_steps, 20), horizon=40, judge_every=50, eval_episodes=4)


@dataclass(frozen=True)
class Practice(Job):
    """One task, method and seed. base: what a residual's base achieves; extra: seconds of a person's that went into more demonstrations."""

    base: dict[str, Any] | None = None
    extra: float = 0.0

    def run(self) -> None:
        """Learn, and write the row."""
        if self.method == "residual" and not self.cfg.init:
            return self.on_clone().run()
        if self.method in EQUAL and not (self.extra or self.cfg.operator.shift):
            return self.with_equal_seconds().run()
        if self.method in JUDGED and not self.cfg.reward:
            return self.with_referee().run()
        if self.method == "killed" and not self.folder.exists():
            self.die(train)
        summary = self.learn(train, self.note)
        head: dict[str, Any] = dict(summary["headline"])
        head["human_s"] = round(head["human_s"] + self.extra, 3)
        self.put(steps=self.cfg.steps, success=slim(summary["stages"][-1])["success"], curve=curve(summary),
                 wall_s=summary["spent_s"]["hil-serl"], demos=self.cfg.demos, **{k: v for k, v in head.items() if k != "success"},
                 **({"base": self.base} if self.base else {}))

    def note(self, summary: dict[str, Any]) -> None:
        """Write the row up to the last evaluation."""
        stage, points = summary["stages"][-1], curve(summary)
        if not stage["name"].startswith("at "):
            return  # the end, of which `run` makes the row
        last = points[-1]
        cycle, told = last["cycle_steps"], {k: last[k] for k in ("cycle_steps", "human_share", "human_s", "takeovers", "demo_steps")}
        self.put(cut=True, steps=self.cfg.steps, success=stage["success"], curve=points, wall_s=summary["wall_s"], demos=self.cfg.demos,
                 success_low=stage["success"]["low"], episodes=stage["success"]["n"], transitions=last["steps"],
                 cycle_ratio=None if cycle is None else round(cycle / last["demo_steps"], 4), **told)

    def with_equal_seconds(self) -> Practice:
        """The same with the seconds that the person spent on corrections. Raises RealrlError where that is not known."""
        row, dt = self.row("corrections"), envs.make(self.cfg.task).task.dt
        if row is None:
            raise RealrlError(f"its person has as many seconds as that of corrections with seed {self.cfg.seed}, of which there is no row: "
                              "run that first (--methods corrections)")
        if self.method == "hg-dagger":
            shift = max(round(row["human_s"] / dt), 1)
            return replace(self, cfg=replace(self.cfg, operator=replace(self.cfg.operator, shift=shift)))
        demo = dt * (row["demo_steps"] if "demo_steps" in row else row["cycle_steps"] / row["cycle_ratio"])  # older rows have none
        more = max(round(row["human_s"] / demo), 1)
        return replace(self, cfg=replace(self.cfg, demos=self.cfg.demos + more), extra=more * demo)

    def with_referee(self) -> Practice:
        """The same with a classifier of success, by the commands of docs/howto/human-in-the-loop.md, on starts of their own."""
        folder, cfg = self.folder.with_name(f"{self.folder.name}-referee"), self.cfg
        shown, fitted = str(folder / "linger"), str(folder / "fitted")
        record = ["--task", cfg.task, "--episodes", "40", "--noise", str(cfg.demo_noise), "--sight", "rgb", "--linger", "--out", shown]
        steps = (["data", "demos", *record, "--seed", str(1000 + cfg.seed), "--workers", "1"], ["reward", "label", shown, "--near", "1"],
                 ["reward", "fit", shown, "--out", fitted])
        for words in () if Path(fitted, "classifier.json").is_file() else steps:
            if code := realrl(words):
                raise RealrlError(f"realrl {' '.join(words[:2])} ended with {code}")
        return replace(self, cfg=replace(cfg, reward=fitted))

    def on_clone(self) -> Practice:
        """The same on a frozen clone, which is trained if there is none."""
        cfg, folder = self.cfg, self.folder.with_name(f"{self.folder.name}-base")
        clone = BCConfig(task=cfg.task, seed=cfg.seed, demos=cfg.demos, demo_noise=cfg.demo_noise, expert=cfg.expert,
                         horizon=cfg.horizon, eval_episodes=cfg.eval_episodes, collect=cfg.collect)
        clone = replace(clone, imitation=replace(clone.imitation, steps=min(clone.imitation.steps, cfg.steps)))
        judged = slim(replace(self, cfg=clone, folder=folder).learn(bc.train)["stages"][-1])
        return replace(self, cfg=replace(cfg, init=str(folder / "policy")), base={k: judged[k] for k in ("success", "cycle_steps")})


def curve(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """What was found on the way."""
    return [{"steps": int(s["name"].removeprefix("at ")), "success": s["success"]["rate"], "cycle_steps": s["cycle_steps"], **s["measured"]}
            for s in summary["stages"] if s["name"].startswith("at ")]


def main(words: list[str] | None = None) -> int:
    """Run what is missing."""
    typed = sys.argv if words is None else words
    cubes = any(name in typed for name in gymhil.names())
    tasks = list(gymhil.names()) if cubes else sorted(contact.names(), key=lambda task: task != "peg")  # the middle one first
    picks = cubes or HAS_GRIPPER in typed
    methods = {name: replace(cfg, expert=None) if cubes else cfg for name, cfg in METHODS.items() if picks or name != "gripper-as-motion"}
    return run_jobs(Practice, __doc__ or "", words, file="hil_serl", suite="gymhil" if cubes else "contact", tasks=tasks,
                    methods=methods, toy_size=toy_size, seeds=range(3))


if __name__ == "__main__":
    sys.exit(main())
