"""The judge of a run: what a stage's product achieves from held-out starts, how long it thinks, whether estimates told the truth.

What it finds is the run's summary.json. A stage that has its result is not judged again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from realrl import envs
from realrl.cell.collect import Collector
from realrl.cell.evaluate import Evaluation, blind, summarise, trials
from realrl.files import read_plain, write_json
from realrl.learn.ope import spearman
from realrl.run import Run, commit
from realrl.scene import Scene
from realrl.types import Episode, Obs, Policy, RealrlError, Source, TaskSpec


class Judge:
    """Evaluates for one run and keeps its summary. steps: control steps recorded so far."""

    def __init__(self, run: Run, scene: Scene, collector: Collector, spec: TaskSpec, steps: Callable[[], int]) -> None:
        self.run, self.scene, self.collector, self.spec, self._steps = run, scene, collector, spec, steps
        self.summary: dict[str, Any] = self._read()
        self._began = time.monotonic() - float(self.summary.get("wall_s", 0.0))

    def evaluate(self, policy: Policy, n: int, *, seed: int = 0, greedy: bool = True, source: Source = Source.POLICY,
                 label: str = "evaluation") -> Evaluation:
        """n held-out starts; the episodes are judged, not recorded, and never learned from."""
        with self.run.bar(f"{label}: evaluation", n) as advance:
            def judged(episode: Episode) -> Episode:
                advance(1)
                return blind(episode)

            found = trials(self.collector, policy, n, seed=seed, greedy=greedy, source=source, keep=judged)
        return summarise(found, self.spec.dt)

    def stage(self, name: str) -> dict[str, Any] | None:
        """A finished stage's entry in the summary."""
        found: dict[str, Any] | None = next((s for s in self.summary["stages"] if s["name"] == name), None)
        return found

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the seconds its body takes to a stage's account, also those of earlier, interrupted processes."""
        began = time.monotonic()
        try:
            yield
        finally:
            spent = self.summary.setdefault("spent_s", {})
            spent[name] = round(spent.get(name, 0.0) + time.monotonic() - began, 1)

    def finish_stage(self, name: str, policy: Policy, n: int, *, version: int = 0) -> bool:
        """Evaluate a stage's product and add it to summary.json; False where this version of it is there already."""
        known = self.stage(name)
        if known is not None and known.get("version", 0) == version:
            return False
        entry = {**self._measure(name, policy, n, Source.POLICY), "wall_s": self.summary.get("spent_s", {}).get(name, 0.0),
                 "version": version}
        self.summary["stages"] = [s for s in self.summary["stages"] if s["name"] != name] + [entry]
        self.save()
        return True

    def judge_demonstrator(self, n: int) -> None:
        """What the demonstrations' expert achieves from the held-out starts; nothing where they were recorded elsewhere."""
        scene = self.scene
        if scene.data is None and "demonstrator" not in self.summary:
            expert = envs.expert(scene.task, scene.expert, noise=scene.demo_noise)
            self.summary["demonstrator"] = self._measure("demonstrator", expert, n, Source.SCRIPT)

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

    def _measure(self, name: str, policy: Policy, n: int, source: Source) -> dict[str, Any]:
        result = self.evaluate(policy, n, label=name, source=source)
        return {"name": name, **result.to_dict(), "latency_ms": latency(policy, self.spec), "env_steps": self._steps()}

    def _read(self) -> dict[str, Any]:
        file = self.run.dir / "summary.json"
        fresh = {"task": self.scene.task, "seed": self.scene.seed, "wall_s": 0.0, "env_steps": 0, "stages": [], "commit": commit()}
        if not file.exists():
            return fresh
        try:
            read: dict[str, Any] = json.loads(read_plain(file))
        except ValueError as error:
            raise RealrlError(f"{file}: not valid JSON ({error}): delete it, finished stages are then evaluated again") from None
        return {**fresh, **read}

    def save(self) -> None:
        """Write summary.json."""
        self.summary |= {"wall_s": round(time.monotonic() - self._began, 1), "env_steps": self._steps()}
        write_json(self.run.dir / "summary.json", self.summary)


def latency(policy: Policy, spec: TaskSpec, calls: int = 200) -> dict[str, float]:
    """Milliseconds from observation to plan, one robot, one thread: {"p50", "p99"} over `calls` decisions."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rng, state = [np.random.default_rng(0)], policy.start(1)
    obs = blank(spec, policy.n_obs)
    times = []
    for _ in range(calls + 20):
        before = time.perf_counter()
        _, state = policy.act(obs, state, greedy=True, rng=rng)
        times.append((time.perf_counter() - before) * 1e3)
    torch.set_num_threads(threads)
    p50, p99 = np.percentile(times[20:], [50, 99])
    return {"p50": float(p50), "p99": float(p99)}


def blank(spec: TaskSpec, n_obs: int) -> Obs:
    """An observation of nothing, each entry [1, n_obs, ...], with the shapes and types of a task."""
    kinds = {"images": np.uint8, "depth": np.uint16}
    obs: Obs = {"state": np.zeros((1, n_obs, spec.obs_dim), np.float32)}
    if spec.privileged:
        obs["privileged"] = np.zeros((1, n_obs, spec.privileged), np.float32)
    return obs | {key: np.zeros((1, n_obs, *shape), kinds.get(key.partition(".")[0], np.float32)) for key, shape in spec.senses.items()}
