"""RL-100 and its rivals on one task and training seed, as parts of a benchmark.

Everything a row says was measured on the same fixed held-out starts; no checkpoint, seed or threshold is chosen by them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.lib.baselines import EXTRA, OFFLINE, Offline, dppo
from benchmarks.lib.common import Part, Table, judge, slim
from realrl import envs
from realrl.algos import rl100
from realrl.algos.rl100 import RL100Config
from realrl.cell.cell import WorkCell
from realrl.cell.collect import MakeEnv
from realrl.policies.diffusion import DiffusionPolicy
from realrl.policies.folder import load_policy
from realrl.run import Run, read_metrics
from realrl.types import Episode, RealrlError, Source

KEY = ("task", "seed", "method")


@dataclass(frozen=True)
class Comparison:
    """One task and training seed. name: the task in the table; demos: D_0 where the run does not record it (a run with `init`); make:
    builds the environment where it is not the task's own."""

    cfg: RL100Config
    folder: Path
    table: Table
    name: str
    extra: int = EXTRA
    demos: Callable[[], list[Episode]] | None = None
    make: MakeEnv | None = None

    def missing(self, *methods: str) -> bool:
        """Whether a row of these is absent."""
        return any(self.table.find(self.name, self.cfg.seed, m) is None for m in methods)

    def parts(self, *, baselines: bool) -> list[list[Part]]:
        """Phases of parts, the shortest first; each phase needs the one before."""
        rounds = [f"offline-{m + 1}" for m in range(self.cfg.offline.rounds)]
        first = [] if self.cfg.init else ["imitation"]
        label = f"{self.name} seed {self.cfg.seed}"
        offline = Part(f"{label}: imitation and offline RL", lambda: not self.missing(*first, *rounds), self.train_offline)
        online = Part(f"{label}: online RL and one step", lambda: not self.missing("online", "one-step"), self.train_online)
        rivals = [Part(f"{label}: {name}", lambda name=name: not self.missing(name), lambda name=name: self.baseline(name))
                  for name in OFFLINE] if baselines else []
        dppo_part = [Part(f"{label}: DPPO's settings", lambda: not self.missing("dppo"), self.dppo)] if baselines else []
        return [[offline], rivals, [online], dppo_part]

    def train_offline(self) -> None:
        """Imitation and the offline rounds, and the audit of off-policy evaluation (see benchmarks/studies/ope.py)."""
        self._train(self.cfg, ("offline",) if self.cfg.init else ("imitation", "offline"))

    def train_online(self) -> None:
        """The whole method; what is finished is not repeated."""
        audited = replace(self.cfg, audit_episodes=0)
        self._train(audited, tuple(s for s in self.cfg.stages if not (s == "imitation" and self.cfg.init)))

    def _train(self, cfg: RL100Config, stages: Any) -> None:
        cfg = replace(cfg, stages=stages)
        with (Run.start(self.folder, cfg, resume=True, ignore=("stages", "collect", "audit_episodes")) as run,
              WorkCell(run, cfg, make=self.make) as cell):
            summary = rl100.train(cfg, cell)
        for stage in summary["stages"]:
            if self.missing(stage["name"]):
                self._put(stage["name"], slim(stage), env_steps=stage["env_steps"], wall_s=stage["wall_s"], run_wall_s=summary["wall_s"])

    def baseline(self, name: str) -> None:
        """One of `baselines.OFFLINE`."""
        began = time.monotonic()
        data = Offline.of(self.folder, self.cfg, self.demos() if self.demos else None)
        policy = OFFLINE[name](data, self.extra)
        wall = time.monotonic() - began
        other = {}
        if isinstance(policy, DiffusionPolicy):  # a policy that was only cloned may be better under the usual chain
            other["eta0"] = self._judge(policy.with_sampler("ddim"), self.cfg.eval_episodes)["success"]
        self._put(name, self._judge(policy, self.cfg.eval_episodes), **other, env_steps=data.steps, wall_s=round(wall, 1))

    def dppo(self) -> None:
        """DPPO's settings, with as many environment steps as our rollouts and online stage took after imitation."""
        online = self.table.find(self.name, self.cfg.seed, "online")
        before = self.table.find(self.name, self.cfg.seed, "imitation")
        if not (online and before):
            raise RealrlError("it gets as many environment steps as our online stage took, which is not finished")
        steps = online["env_steps"] - before["env_steps"]
        policy, spent, wall = dppo(self.folder.with_name(self.folder.name + "-dppo"), self.folder, self.cfg, steps, self.make)
        self._put("dppo", self._judge(policy, self.cfg.final_episodes), env_steps=spent, wall_s=round(wall, 1))

    def exploring(self) -> Part:
        """The online policy with its sampling noise, as RL ran it; a part, because not every table asks."""
        def run() -> None:
            online = self.table.find(self.name, self.cfg.seed, "online")
            if not online:
                raise RealrlError("it judges the online policy, which is not finished")
            policy = load_policy(self.folder / "policy")[0].with_head("ddim")
            last = [line for line in read_metrics(self.folder) if line["stage"] == "online"][-1]
            policy.diffusion.heat.fill_(last["heat"])  # the noise of its last rounds
            self._put("exploring", self._judge(policy, self.cfg.final_episodes, greedy=False), env_steps=online["env_steps"], wall_s=0.0)

        return Part(f"{self.name} seed {self.cfg.seed}: the online policy exploring", lambda: not self.missing("exploring"), run)

    def curve(self) -> Part:
        """The success of the online stage's training episodes, round by round; a part, because not every table asks."""
        def run() -> None:
            rounds = [line for line in read_metrics(self.folder) if line["stage"] == "online"]
            self.table.put({"task": self.name, "seed": self.cfg.seed, "method": "curve", "env_steps": [r["env_steps"] for r in rounds],
                            "success_rate": [r["success_rate"] for r in rounds], "kl": [r.get("kl") for r in rounds]})

        return Part(f"{self.name} seed {self.cfg.seed}: curve", lambda: not self.missing("curve"), run)

    def _judge(self, policy: Any, n: int, *, greedy: bool = True) -> dict[str, Any]:
        return judge(self.cfg.task, policy, n, horizon=self.cfg.horizon, collect=self.cfg.collect, dt=step_seconds(self.cfg.task),
                     make=self.make, sight=self.cfg.sight, greedy=greedy)

    def _put(self, method: str, result: dict[str, Any], **more: Any) -> None:
        self.table.put({"task": self.name, "seed": self.cfg.seed, "method": method, **result, **more})


def demonstrators(cfg: RL100Config, table: Table, name: str) -> list[Part]:
    """The task's expert, with the demonstrations' noise and without, from the held-out starts."""
    def run(method: str, noise: float) -> None:
        began = time.monotonic()
        result = judge(cfg.task, envs.expert(cfg.task, cfg.expert, noise=noise), cfg.eval_episodes, horizon=cfg.horizon,
                       collect=cfg.collect, dt=step_seconds(cfg.task), source=Source.SCRIPT)
        table.put({"task": name, "seed": None, "method": method, **result, "noise": noise, "env_steps": 0,
                   "wall_s": round(time.monotonic() - began, 1)})

    kinds = {"demonstrator": cfg.demo_noise, "clean demonstrator": 0.0} if cfg.demo_noise else {"demonstrator": 0.0}
    return [Part(f"{name}: {method}", lambda method=method: table.find(name, None, method) is not None,
                 lambda method=method, noise=noise: run(method, noise)) for method, noise in kinds.items()]


def in_phases(first: Sequence[Part], comparisons: Sequence[Comparison], *, baselines: bool) -> list[Part]:
    """All parts, the demonstrators and then phase by phase over all tasks and seeds, so that the longest come last."""
    phases = zip(*(c.parts(baselines=baselines) for c in comparisons), strict=True)
    return [*first, *(part for phase in phases for parts in phase for part in parts)]


def step_seconds(task: str) -> float:
    """Seconds of a control step."""
    env = envs.make(task)
    env.close()
    return env.task.dt


def toy_size(cfg: RL100Config) -> RL100Config:
    """The same configuration with budgets that show nothing but that the script works."""
    return replace(
        cfg, demos=3, eval_episodes=4, final_episodes=4, audit_episodes=2, imitation=replace(cfg.imitation, steps=40, warmup=10),
        policy=replace(cfg.policy, blocks=1, diffusion=replace(cfg.policy.diffusion, steps=3)),
        critic=replace(cfg.critic, steps=20), ope=replace(cfg.ope, steps=20, starts=8, horizon=5),
        offline=replace(cfg.offline, rounds=1, rollouts=4, iterations=2, gate_every=1, states=32, reimitation=10),
        online=replace(cfg.online, iterations=2, episodes=4, warmup=1),
        distill=replace(cfg.distill, steps=10, chains=20, beside_rl=1, batch=32), trials=replace(cfg.trials, episodes=2, every=1),
        collect=replace(cfg.collect, workers=1, envs_per_worker=4))
