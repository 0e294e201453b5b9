"""The judge of a run: what a stage's product achieves from held-out starts, how long it thinks, whether estimates told the truth.

A stage that has its result in the run's account is not judged again.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from realrl.cell.account import Account
from realrl.cell.collect import Collector
from realrl.cell.demonstrator import of_scene, source
from realrl.cell.evaluate import Evaluation, blind, summarise, trials
from realrl.cell.products import small_products
from realrl.files import read_plain, write_json
from realrl.losses import spearman
from realrl.policies.diffusion import DiffusionPolicy
from realrl.policies.exported import sense_type
from realrl.scene import Scene
from realrl.types import Episode, Logbook, Obs, Policy, Source, TaskSpec

Measure = Callable[[Episode], Mapping[str, float]]


class Judge:
    """Evaluates for one run; what it finds stands in the run's account."""

    def __init__(self, account: Account, scene: Scene, collector: Collector, spec: TaskSpec) -> None:
        self.account, self.run, self.scene, self.collector, self.spec = account, account.run, scene, collector, spec

    def evaluate(self, policy: Policy, n: int, *, seed: int = 0, greedy: bool = True, source: Source = Source.POLICY,
                 label: str = "evaluation", measure: Measure | None = None) -> Evaluation:
        """n held-out starts; the episodes are judged, not recorded, and never learned from. measure: see `types.Cell.finish_stage`."""
        told: list[Mapping[str, float]] = []
        with self.run.bar(f"{label}: evaluation", n) as advance:
            def judged(episode: Episode) -> Episode:
                advance(1)
                told.extend([measure(episode)] if measure else [])
                return blind(episode)

            found = trials(self.collector, policy, n, seed=seed, greedy=greedy, source=source, keep=judged)
        # an exact sum: episodes come in the order in which they finish
        means = {name: math.fsum(t[name] for t in told) / len(told) for name in (told[0] if told else ())}
        return replace(summarise(found, self.spec.dt), measured=means)

    def finish_stage(self, name: str, policy: Policy, n: int, *, version: int = 0, greedy: bool = True,
                     measure: Measure | None = None) -> bool:
        """Evaluate a stage's product and add it to summary.json, the newest figures as `headline`; False where this version of
        it is there already."""
        if self.account.finished(name, version):
            return False
        found = self._measure(name, policy, n, Source.POLICY, greedy, measure)
        rate = found["success"]
        self.account.summary["headline"] = {
            "success_pct": 100 * rate["rate"], "success_low_pct": 100 * rate["low"], "episodes": rate["n"],
            "cycle_steps": found["cycle_steps"], "latency_p50_ms": found["latency_ms"]["p50"], "env_steps": self.account.steps()}
        self.account.enter(name, version, found)
        return True

    def judge_demonstrator(self, n: int) -> None:
        """What the demonstrations' expert achieves from the held-out starts; nothing where they were recorded elsewhere, or cost a robot's
        time."""
        scene = self.scene
        if scene.data is None and not self.spec.live and "demonstrator" not in self.account.summary:
            found = self._measure("demonstrator", of_scene(scene, self.spec), n, source(scene.expert))
            self.account.summary["demonstrator"] = {**found, "env_steps": self.account.steps()}

    def audit(self, judged: Iterable[tuple[dict[str, Any], Policy]], n: int) -> None:
        """What policies that off-policy evaluation judged are truly worth, beside what it said of them: ope.json, point by point.

        Estimates of different rounds come from different models, so ranks are compared within a round (`stage`) and averaged.
        """
        file = self.run.dir / "ope.json"
        points = json.loads(read_plain(file))["points"] if file.exists() else []
        known = {(p["stage"], p["iteration"]) for p in points}
        for record, policy in judged:
            if (record["stage"], record["iteration"]) in known:
                continue
            truth = self.evaluate(policy, n, seed=1, label="audit").success
            points.append({**record, "true_success": truth.rate, "true_n": truth.n})
            rounds = [[p for p in points if p["stage"] == stage] for stage in dict.fromkeys(p["stage"] for p in points)]
            ranks = [spearman([p["estimate"] for p in r], [p["true_success"] for p in r]) for r in rounds if len(r) > 2]
            write_json(file, {"points": points, "spearman": float(np.mean(ranks)) if ranks else None})

    def _measure(self, name: str, policy: Policy, n: int, source: Source, greedy: bool = True,
                 measure: Measure | None = None) -> dict[str, Any]:
        result = self.evaluate(policy, n, label=name, source=source, greedy=greedy, measure=measure)
        return {"name": name, **result.to_dict(), "latency_ms": latency(policy, self.spec)}


def judged(run: Logbook, rounds: int, policy: DiffusionPolicy) -> Iterator[tuple[dict[str, Any], DiffusionPolicy]]:
    """Every candidate that a gate judged in a run's offline rounds, with what it said; policy: as the run ended."""
    for name in (f"offline-{m + 1}" for m in range(rounds)):
        found = run.read(f"{name}-candidates")
        kept: dict[str, Any] = found[1]["judged"] if found else {"records": (), "nets": ()}
        for record, net in zip(kept["records"], kept["nets"], strict=True):
            candidate = policy.with_head("ddim")
            candidate.net.load_state_dict(net)
            if candidate.encoder and "encoder" in kept:  # it has learned since
                candidate.encoder.load_state_dict(kept["encoder"])
            yield {"stage": name, **record}, candidate


def latency(policy: Policy, spec: TaskSpec, calls: int = 200, least: int = 50, seconds: float = 0.5) -> dict[str, float]:
    """Milliseconds from observation to plan, one robot, one thread: {"p50", "p99"} over `calls` decisions, or as many as fit into
    `seconds`, but `least` of them."""
    threads, limit = torch.get_num_threads(), time.perf_counter() + seconds
    torch.set_num_threads(1)
    rng, state = [np.random.default_rng(0)], policy.start(1)
    obs = blank(spec, policy.n_obs)
    times: list[float] = []
    while len(times) < 10 + least or (len(times) < 10 + calls and time.perf_counter() < limit):
        before = time.perf_counter()
        with small_products():
            _, state = policy.act(obs, state, greedy=True, rng=rng)
        times.append((time.perf_counter() - before) * 1e3)
    torch.set_num_threads(threads)
    p50, p99 = np.percentile(times[10:], [50, 99])
    return {"p50": float(p50), "p99": float(p99)}


def blank(spec: TaskSpec, n_obs: int) -> Obs:
    """An observation of nothing, each entry [1, n_obs, ...], with the shapes and types of a task."""
    obs: Obs = {"state": np.zeros((1, n_obs, spec.obs_dim), np.float32)}
    if spec.privileged:
        obs["privileged"] = np.zeros((1, n_obs, spec.privileged), np.float32)
    return obs | {key: np.zeros((1, n_obs, *shape), sense_type(key)) for key, shape in spec.senses.items()}
