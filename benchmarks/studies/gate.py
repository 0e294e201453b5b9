"""What foretells that an offline round's candidate is worse than it seems? Finished runs' rounds, walked on past their gates.

    python -m benchmarks.studies.gate          # the runs that `benchmarks/rl100_all.py` left, a round at a time; goes on where it stopped
    python -m benchmarks.studies.gate --base began     # as if re-imitation had been left out: RL goes on from what the round began with

A round is fitted anew as the run fitted it, on the run's own recordings; then PPO goes on for `ITERATIONS`, whatever the gate says, and
after every second one the policy is a candidate. Of each it is noted what one can know without a trial (the estimates, drift, KL,
disagreements of model and critics), beside whether it solves the same starts as what it came from: `STARTS` of a range that no run trains
on and no evaluation uses. Rows go to benchmarks/results/gate.jsonl; `benchmarks/lib/gates.py` makes the table, leave-one-task-out.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.lib.baselines import labelled
from benchmarks.lib.common import RESULTS, Part, Table, run_parts
from realrl import config
from realrl.algos.rl100 import OfflineRound, RL100Config
from realrl.cell.collect import Collector
from realrl.data.store import Store
from realrl.data.views import ChunkView
from realrl.files import derive
from realrl.learn.imitation import generator
from realrl.learn.ope import Gate, evaluate_policies
from realrl.losses import gaussian_kl
from realrl.policies.diffusion import DiffusionPolicy
from realrl.run import read_parts
from realrl.types import Episode, RealrlError

FIRST, STARTS = 960_000_000, 50
"""The first start: behind all training starts, before the held-out ones."""
STATES = 1000
"""Recorded states at which two policies are compared."""
ITERATIONS, EVERY, DRIFT = 10, 2, 0.3
"""Inner iterations of a walk, those between two candidates, and the RMS change of the action at which it ends: twice what a run allows."""
BASES = ("re-imitated", "began")
KEY = ("task", "seed", "round", "base", "iteration")


@dataclass(frozen=True)
class Begun:
    """What a run's offline round m (from 0) began with. started: the policy before re-imitation, cloned: its noise network after, None
    where RL shall go on from the former."""

    cfg: RL100Config
    m: int
    started: DiffusionPolicy
    cloned: dict[str, Tensor] | None
    data: list[Episode]
    tried: list[Episode]

    @classmethod
    def of(cls, folder: Path, cfg: RL100Config, m: int, base: str, collector: Collector) -> Begun:
        """Read from a run whose round m is done; nothing there is changed. Raises RealrlError where the round judged no re-imitation."""
        spec = collector.spec()
        parts = read_parts(folder / "checkpoints" / (f"offline-{m}" if m else "imitation"))[1]
        policy = DiffusionPolicy(cfg.policy, spec.obs_dim, spec.action_dim, name="rl100").eval()
        policy.load_state_dict(parts["policy"])
        judged = read_parts(folder / "checkpoints" / f"offline-{m + 1}-candidates")[1]["judged"]
        nets = {int(record["iteration"]): net for record, net in zip(judged["records"], judged["nets"], strict=True)}
        if policy.encoder or not {-1, 0} <= nets.keys():
            raise RealrlError(f"{folder}: round {m + 1} has eyes or no re-imitation: this study compares noise networks")
        store = Store.open(folder / "dataset")
        data = [e for e in labelled(store, "demonstration") if e.succeeded][:cfg.demos]
        for r in range(m + 1):
            data += labelled(store, f"rollout-{r + 1}")
        tried = labelled(store, parts["trials"]["tried"] if m else "rollout-1-deployed")
        return cls(cfg, m, policy, nets[0] if base == BASES[0] else None, data, tried)

    def view(self, episodes: list[Episode]) -> ChunkView:
        """Episodes as decisions."""
        return ChunkView(episodes, chunk=self.started.chunk, n_obs=self.started.n_obs, gamma=self.cfg.gamma)


class Passing(Gate):
    """A gate that lets everybody pass, and keeps what it was told: scores [N] of each candidate, by iteration."""

    @torch.no_grad()
    def score(self, starts: Tensor | None = None) -> dict[str, Tensor]:
        """Beside the measures what the model could not be trusted with."""
        policy, at = self.policy, self.starts if starts is None else starts
        act = lambda cond, noise: policy.diffusion.sample(policy.net, cond, noise, stochastic=False)[:, -1].clamp(-1.0, 1.0)
        found = evaluate_policies(self.model, self.q, [act], at, (1, policy.chunk, policy.action_dim), seed=derive(self.seed, "gate"))
        return {name: getattr(found, name)[0] for name in ("amq", "returns", "success", "stopped")}

    def judge(self, iteration: int, candidate: Any, incumbent: Any, *, vote: bool = True) -> bool:
        """Every candidate is the next one's incumbent."""
        return super().judge(iteration, candidate, incumbent, vote=False)

    def remember(self, record: dict[str, float], score: Any) -> None:
        """Scores per start, too."""
        super().remember(record, score)
        self.scores = {**getattr(self, "scores", {}), int(record["iteration"]): dict(score)}


class Walk:
    """A round with a gate that refuses nothing. found: what was logged, by iteration."""

    def __init__(self, begun: Begun, horizon: int) -> None:
        cfg = begun.cfg
        self.begun, self.logged = begun, dict[int, dict[str, Any]]()
        decisions = math.ceil((cfg.horizon or horizon) / begun.started.chunk)
        walking = replace(cfg.offline, iterations=ITERATIONS, gate_every=EVERY, max_drift=DRIFT)
        cfg = replace(cfg, ope=replace(cfg.ope, horizon=cfg.ope.horizon or decisions), offline=walking,
                      distill=replace(cfg.distill, beside_rl=0))  # the student is not asked for
        self.policy = begun.started.with_head("ddim")
        self.policy.requires_grad_(True)
        started = None
        if begun.cloned is not None:
            self.policy.net.load_state_dict(begun.cloned)
            started = {k: v.clone() for k, v in begun.started.net.state_dict().items()}
        tried, won = begun.view(begun.tried), [e.succeeded for e in begun.tried]
        view, self.seed = begun.view(begun.data), derive(cfg.seed, "offline", begun.m)
        self.stage = OfflineRound(self.policy, view, cfg, seed=self.seed, log=self._log, started=started, tried=tried, won=won)
        table = view.encoded(self.policy.features, self.policy.drawn)
        self.stage.gate = self.gate = Passing(self.policy, self.stage.model, self.stage.critics.q, table, cfg.offline.measure,
                                              seed=self.seed, log=self._log, tried=tried)
        self.stage.improve(lambda n: None)
        random = generator(self.seed, "seen", device=self.stage.cond.device)
        self.seen = self.stage.cond[torch.randint(len(self.stage.cond), (STATES,), generator=random)]

    def _log(self, iteration: int, values: Any) -> None:
        self.logged.setdefault(iteration, {}).update(values)

    def pairs(self) -> list[tuple[int, int]]:
        """(candidate, what it is held against) by iteration: re-imitation against what the round began with, the others against what RL
        went on from."""
        first = min(self.gate.scores)
        return [(i, 0 if i > 0 else first) for i in sorted(self.gate.scores) if i >= 0]

    def net(self, iteration: int) -> dict[str, Tensor]:
        """The noise network of a candidate."""
        return self.gate.nets[list(self.gate.scores).index(iteration)]

    def policy_of(self, iteration: int) -> DiffusionPolicy:
        """A candidate, to be asked or tried."""
        other = self.policy.with_head("ddim")
        other.net.load_state_dict(self.net(iteration))
        return other

    @torch.no_grad()
    def signs(self, new: int, old: int) -> dict[str, float]:
        """What one can know of a candidate without trying it. Differences are the candidate's less its incumbent's."""
        one, other, stage, ours = self.policy_of(new), self.policy_of(old), self.stage, self.gate.scores
        said: dict[str, float] = {}
        for measure in ("returns", "success", "amq"):
            gain = (ours[new][measure] - ours[old][measure]).double()
            said |= {measure: float(gain.mean()), f"{measure}_low": float(gain.mean() - 1.645 * gain.std() / math.sqrt(len(gain)))}
        said["stopped"] = float((ours[new]["stopped"] - ours[old]["stopped"]).mean())
        chunks = [policy.draw(self.seen, generator(self.seed, "drawn")) for policy in (one, other)]
        said["drift"] = float((chunks[0] - chunks[1]).square().mean().sqrt())
        advantage = [stage.critics.advantage(self.seen, chunk) for chunk in chunks]
        said["critics"] = float((advantage[0] - advantage[1]).mean() / advantage[1].std())
        apart = [self._twins(chunk) for chunk in chunks]
        said["critics_apart"] = apart[0] - apart[1]
        doubt = [self._doubt(chunk) for chunk in chunks]
        said["model_apart"] = doubt[0] - doubt[1]
        said |= self._kl(one, other)
        return said | {name: float(self.logged[0][name]) for name in ("value_explained", "model_r2", "model_error")}

    def _twins(self, chunk: Tensor) -> float:
        """How far the twin critics are apart on chunks at the seen states, in units of their spread over them."""
        q = self.stage.critics.target(torch.cat([self.seen, chunk.flatten(1)], -1))[..., 0]
        return float((q[0] - q[1]).abs().mean() / q.mean(0).std())

    def _doubt(self, chunk: Tensor) -> float:
        """How far the model's elites are apart there, as a part of where a rollout is stopped."""
        model = self.stage.model
        return float(model._disagreement(model.elites(torch.cat([self.seen, chunk.flatten(1)], -1))).mean() / model.limit)

    def _kl(self, one: DiffusionPolicy, other: DiffusionPolicy) -> dict[str, float]:
        """KL(old || new) of a denoising step on the old policy's chains: mean, and the largest of all steps."""
        chain = other.explore(self.seen, generator(self.seed, "chains"))
        k, each = torch.tensor(self.policy.diffusion.likely), []
        for step in k:
            index = step.expand(len(chain))
            means = [p.diffusion.mean(p.net, chain[:, int(step)], index, self.seen) for p in (other, one)]
            each.append(float(gaussian_kl(means[0], means[1], self.policy.diffusion.spread(index)).mean()))
        return {"kl": sum(each) / len(each), "kl_most": max(each)}


def truth(collector: Collector, policy: DiffusionPolicy, n: int) -> str:
    """How a policy's trials end, as it would be deployed: a 1 or 0 for each of n starts."""
    policy.repeats = True
    found = sorted(collector.collect(policy, range(FIRST, FIRST + n), greedy=True), key=lambda e: e.seed or 0)
    return "".join(str(int(e.succeeded)) for e in found)


def judge_round(table: Table, folder: Path, cfg: RL100Config, m: int, base: str, n: int) -> None:
    """One row a candidate; the last row of a round is that of what it began with."""
    with Collector(cfg.task, replace(cfg.collect, workers=1), horizon=cfg.horizon) as collector:
        begun = Begun.of(folder, cfg, m, base, collector)
        walk = Walk(begun, collector.spec().horizon)
        put = partial(_put, table, cfg, m, base)
        for new, old in walk.pairs():
            put(new, {"against": old, "ended": truth(collector, walk.policy_of(new), n), "signs": walk.signs(new, old)})
        put(-1, {"against": None, "ended": truth(collector, begun.started.with_head("ddim"), n), "signs": {}})


def _put(table: Table, cfg: RL100Config, m: int, base: str, iteration: int, values: dict[str, Any]) -> None:
    task = cfg.task.removeprefix("metaworld/")
    table.put({"task": task, "seed": cfg.seed, "round": m + 1, "base": base, "iteration": iteration, **values})
    print(f"    {values['ended'].count('1')} of {len(values['ended'])} starts", flush=True)


def parts(table: Table, folders: list[Path], rounds: list[int], base: str, n: int) -> list[Part]:
    """First rounds first: a task more says more than a round more."""
    found = []
    for m in (number - 1 for number in rounds):
        for folder in folders:
            cfg = config.from_dict(RL100Config, config.read(folder / "config.yaml"), source=str(folder / "config.yaml"))
            if (folder / "checkpoints" / f"offline-{m + 1}").exists():
                key = (cfg.task.removeprefix("metaworld/"), cfg.seed, m + 1, base, -1)
                found.append(Part(f"{folder.name} round {m + 1}, from {base}", lambda key=key: table.find(*key) is not None,
                                  lambda folder=folder, cfg=cfg, m=m: judge_round(table, folder, cfg, m, base, n)))
    return found


def main(words: list[str] | None = None) -> int:
    """Judge what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="where the runs are kept")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="these alone, in this order")
    parser.add_argument("--rounds", type=int, nargs="+", default=[1, 2], help="these alone")
    parser.add_argument("--base", choices=BASES, default=BASES[0], help="what RL goes on from")
    parser.add_argument("--starts", type=int, default=STARTS, help="trials of a candidate")
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="start nothing new after this long")
    parser.add_argument("--results", type=Path, default=RESULTS / "gate.jsonl")
    args = parser.parse_args(words)
    there = sorted(file.parent for file in (args.out / "all").glob("*-defaults/config.yaml"))
    folders = [f for task in args.tasks for f in there if f.name.startswith(f"{task}-s")] if args.tasks else there
    if not folders:
        parser.error(f"{args.out / 'all'}: no run of these in it: see benchmarks/rl100_all.py")
    return min(run_parts(parts(Table(args.results, KEY), folders, args.rounds, args.base, args.starts), args.budget), 1)


if __name__ == "__main__":
    sys.exit(main())
