"""A world model learned while the robot moves: reward a step against robot time, and when a robot is upright, stands and walks.

    OMP_NUM_THREADS=1 python -m benchmarks.daydreamer --tasks quadruped/go1-from-back --methods cpu --seeds 0
    OMP_NUM_THREADS=1 python -m benchmarks.daydreamer --tasks bins/panda --methods choices untaught camera --seeds 0
    OMP_NUM_THREADS=1 python -m benchmarks.daydreamer --methods realtime --seeds 0
    OMP_NUM_THREADS=1 python -m benchmarks.daydreamer --methods crossq sac --seeds 0 1 2
    OMP_NUM_THREADS=1 python -m benchmarks.daydreamer --tasks bins/panda --methods dqn --seeds 0 1 2
    OMP_NUM_THREADS=1 python -m benchmarks.daydreamer --tasks metaworld/button-press-topdown-v3 --methods eyes --seeds 0
    python -m benchmarks.daydreamer --tasks dmc/walker-walk --methods control wide --seeds 0 1 2 --steps 25000

cpu is `realrl train daydreamer` as it is by default, in one process that takes turns; realtime is the same with the robot in a process of
its own, at its rate by the clock; choices is what the bins have by default: demonstrations in half of each batch at first, and ever
fewer; untaught has none of them; imitation has nothing else (the actor learns from no dream, the robot's actions are random); camera sees
pictures and the robot's own readings; control is what the control suite has by default (two frames a control step), wide
a model between DreamerV3's sizes 1m and 12m there, learned from as often as its own; eyes sees pictures and an arm's own readings,
half of each batch are demonstrations at first. Rivals without a model act in turns as cpu does: crossq and sac as walking has them, dqn
where a robot chooses (`benchmarks.lib.dreamless`); --minutes M holds them to a dreamer's wall time. The curve has the
mean reward a step of every 1,000 control steps of practice, noise and all; of the bins and the suite all returns are kept, too.
Rows go to benchmarks/results/daydreamer.jsonl; the same command goes on where it was stopped, within a run too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.lib import dreamless
from benchmarks.lib.common import slim
from benchmarks.lib.dreamless import RivalConfig
from benchmarks.lib.jobs import Job, run_jobs
from realrl.algos.daydreamer import PRESETS, DaydreamerConfig, DreamConfig, train
from realrl.data.store import Store
from realrl.envs.bins import names as bins
from realrl.envs.dmc import names as dmc
from realrl.envs.quadruped import REACHED, risen
from realrl.learn.sac import PRESETS as SAC
from realrl.nets.rssm import RSSMConfig
from realrl.policies.gaussian import GaussianConfig
from realrl.policies.recurrent import RecurrentConfig
from realrl.streaming import StreamConfig
from realrl.types import Array, Episode

CPU = DaydreamerConfig()
CHOICES = PRESETS["choices"]
METHODS = {"cpu": CPU, "realtime": replace(CPU, stream=StreamConfig(realtime=True)), "choices": CHOICES,
           "untaught": replace(CHOICES, demo_share=0.0),
           "imitation": replace(CHOICES, dream=replace(CHOICES.dream, alone=10**9, imagine=1)),
           "camera": replace(CHOICES, sight=replace(CHOICES.sight, kind="rgb")), "control": PRESETS["control"],
           "wide": replace(PRESETS["control"], ratio=512.0,
                           policy=RecurrentConfig(RSSMConfig(deter=512, stoch=32, classes=16, hidden=256, units=256)),
                           dream=DreamConfig(batch=32, length=32, last=16, lr=1e-4, warmup=500)),
           "eyes": replace(PRESETS["control"], sight=replace(CPU.sight, kind="rgb"), demo_share=0.5, steps=20_000),
           "crossq": RivalConfig(), "sac": RivalConfig(learner="sac", sac=SAC["sac"], policy=GaussianConfig()),
           "dqn": RivalConfig(learner="dqn", steps=40_000, prefill=400)}
TASKS = ("quadruped/go1-from-back", *(f"bins/{name}" for name in bins()), *(f"dmc/{name}" for name in dmc()),
         "metaworld/button-press-topdown-v3")
EVERY, HELD = 1000, 50
"""Steps of a point of the curve; steps in nine tenths of which a phase has to be reached to count as reached."""


def toy_size(cfg: Any) -> Any:
    """The same with budgets that show nothing but that the script works."""
    if isinstance(cfg, RivalConfig):
        return replace(cfg, sac=replace(cfg.sac, batch=8, hidden=(16,)), policy=replace(cfg.policy, hidden=(16,)), units=16, batch=8,
                       steps=120, prefill=40, horizon=40, eval_episodes=2)
    rssm = replace(cfg.policy.rssm, deter=16, hidden=16, units=16, stoch=4, classes=4, depth=2)
    dream = replace(cfg.dream, batch=4, length=6, last=min(cfg.dream.last, 4), imagine=3)
    return replace(cfg, policy=replace(cfg.policy, rssm=rssm), dream=dream, steps=120, prefill=40, ratio=4.0,
                   horizon=100 if cfg.demo_share else 40, demos=2, eval_episodes=2)


class Dream(Job):
    """One task, method and seed."""

    def run(self) -> None:
        """Learn, and write the row."""
        rival = isinstance(self.cfg, RivalConfig)
        summary = self.learn(dreamless.train if rival else train)
        label = dreamless.LABEL if rival else "daydreamer"
        episodes = Store.open(self.folder / "dataset").read(images=False)
        practice = sorted((e for e in episodes if e.policy == label), key=lambda e: e.time[0])
        stage = next(s for s in summary["stages"] if s["name"] == label)
        told = phases(practice) if self.task.startswith("quadruped/") else {"returns": [round(float(e.reward.sum()), 3) for e in practice]}
        self.put(success=slim(stage)["success"], curve=means(np.concatenate([e.reward for e in practice])), **told, **summary["headline"])


def means(values: Array) -> list[float]:
    """Of every so many steps."""
    return [round(float(np.mean(values[i:i + EVERY])), 3) for i in range(0, len(values), EVERY)]


def phases(practice: Sequence[Episode]) -> dict[str, Any]:
    """How far each phase was in practice, and the first step at which it had been reached over `HELD` steps: upright, stands, walks."""
    table = np.concatenate([risen(e.obs["state"][1:], e.reward) for e in practice])
    reached = {"upright": table[:, 0] > 0.9, "stands": (table[:, :4] > REACHED).all(1), "walks": table[:, 4] > 0.5}
    out: dict[str, Any] = {"phases": [[round(float(v), 3) for v in table[i:i + EVERY].mean(0)] for i in range(0, len(table), EVERY)]}
    for name, yes in reached.items():
        often = np.convolve(yes.astype(int), np.ones(HELD, int), "valid") if len(yes) >= HELD else np.zeros(0)
        hits = np.flatnonzero(often >= 0.9 * HELD)
        out[name] = int(hits[0]) + HELD if len(hits) else None
    return out


def main(words: list[str] | None = None) -> int:
    """Run what is missing."""
    return run_jobs(Dream, __doc__ or "", words, file="daydreamer", suite="", tasks=TASKS, methods=METHODS, toy_size=toy_size,
                    seeds=range(3))


if __name__ == "__main__":
    sys.exit(main())
