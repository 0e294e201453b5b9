"""One task, its robots, its data set and its run: what every method needs around its updates, written once.

A work cell records every episode before anyone learns from it, evaluates with fixed held-out starts, and keeps the run's summary.
All of it continues after a kill: episodes on disk are not collected again, stages with a result are not repeated.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from realrl import envs
from realrl.cell.collect import Collector, MakeEnv
from realrl.cell.evaluate import Evaluation, blind, held_out, summarise
from realrl.data import side
from realrl.data.schema import CAMERA_PREFIXES
from realrl.data.store import Store, open_dataset
from realrl.files import write_json
from realrl.learn.imitation import Imitation, worthy
from realrl.learn.ope import spearman
from realrl.run import Run, commit
from realrl.scene import CollectConfig, RandomiseConfig, SightConfig
from realrl.types import Array, Episode, Obs, Policy, RealrlError, Source, TaskSpec

GROUP = 20  # episodes per append: a kill costs at most these, which are collected again, identically


class WorkCell:
    """Collects, records, evaluates and reports for one run. Use it as a context manager."""

    def __init__(self, run: Run, task: str, *, collect: CollectConfig, seed: int, reward: str | None = None,
                 horizon: int | None = None, sight: SightConfig | None = None, randomise: RandomiseConfig | None = None,
                 make: MakeEnv | None = None) -> None:
        """make: builds an environment of your own, see `Collector`; task is then just its name."""
        self.run, self.task, self.seed = run, task, seed
        self.collector = Collector(task, collect, reward=reward, horizon=horizon, sight=sight, randomise=randomise, make=make)
        self.spec = self.collector.spec()
        # Pictures to the bit: a resumed run sees again what it saw.
        self.store = Store.open_or_create(run.dir / "dataset", task=task, fps=round(1 / self.spec.dt), codec="ffv1")
        self.summary: dict[str, Any] = self._read_summary()
        self._began = time.monotonic() - float(self.summary.get("wall_s", 0.0))

    def __enter__(self) -> WorkCell:
        return self

    def __exit__(self, *_: object) -> None:
        self._save_summary()
        self.collector.close()

    # -- data ---------------------------------------------------------------------------------------------------------------

    def seeds(self, stage: int, count: int, first: int = 0) -> list[int]:
        """Training starts of a stage (0..9): disjoint between stages and run seeds, and from every evaluation's."""
        base = (self.seed % 90 + 1) * 10_000_000 + stage * 1_000_000 + first
        return list(range(base, base + count))

    def practise(self, label: str, policy: Policy, seeds: Sequence[int], *, greedy: bool = False, noise_seed: int = 0,
                 source: Source = Source.POLICY, keep_extra: bool = False) -> list[Episode]:
        """Episodes of `policy` from the given starts, recorded under `label`, in the order of the seeds.

        What an interrupted run already recorded is read back, not repeated, except with keep_extra (the denoising chains that
        online learning needs are not stored): then all are run again and only the missing ones are recorded. Online learning looks
        at plans alone, so between them eyes are closed and the last sight is held (`CollectConfig.every_frame`).
        """
        known = self.recorded(label)
        todo = list(seeds) if keep_extra else [s for s in seeds if s not in known]
        fresh: dict[int, Episode] = {}
        unsaved: list[Episode] = []
        try:
            with self.bar(f"{label}: episodes", len(todo)) as advance:
                for episode in self.collector.collect(policy, todo, greedy=greedy, noise_seed=noise_seed, source=source, glance=keep_extra):
                    assert episode.seed is not None
                    episode.policy = label
                    fresh[episode.seed] = episode
                    if episode.seed not in known:
                        unsaved.append(episode)
                    if len(unsaved) >= GROUP:
                        self.store.append(unsaved)
                        unsaved = []
                    advance(1)
        finally:  # an interruption keeps the episodes that are finished
            self.store.append(unsaved)
        rows = self.recorded(label)
        self.summary["env_steps"] = self._steps_until(max((rows[s] for s in seeds), default=-1))
        old = dict(zip(known, self.store.read(list(known.values())), strict=True)) if known and not keep_extra else {}
        return [fresh[s] if s in fresh else old[s] for s in seeds]

    def recorded(self, label: str) -> dict[int, int]:
        """seed -> index of the episodes recorded under a label."""
        if not len(self.store):
            return {}
        rows = self.store.rows.select(["policy", "seed", "episode_index"]).filter(pc.field("policy") == label)
        return {r["seed"]: r["episode_index"] for r in rows.to_pylist() if r["seed"] is not None}

    def recent(self, count: int) -> list[Episode]:
        """The newest recorded episodes, oldest first, [] where there are none; within a label by seed: arrival is left to chance."""
        if not len(self.store):
            return []
        rows = self.store.rows.select(["policy", "seed", "episode_index"]).to_pylist()
        age = {label: i for i, label in enumerate(dict.fromkeys(r["policy"] for r in rows))}
        rows.sort(key=lambda r: (age[r["policy"]], r["seed"]))
        return self.store.read([r["episode_index"] for r in rows[-count:]])

    def annotate(self, name: str, label: str, values: Callable[[list[Episode]], list[Array]]) -> None:
        """A derived column of the run's data set, once: [T] for each episode recorded under a label, NaN elsewhere; for `realrl view`."""
        rows = list(self.recorded(label).values())
        if not rows or name in side.names(self.store.dir):
            return
        ends = np.cumsum(self.store.rows.column("length").to_numpy())
        column = np.full(int(ends[-1]), np.nan, np.float32)
        for index, value in zip(rows, values(self.store.read(rows)), strict=True):
            column[ends[index] - len(value):ends[index]] = value
        side.write(self.store.dir, name, {name: column})

    def _steps_until(self, index: int) -> int:
        """Control steps in the recorded episodes up to this one: what a resumed run repeats is not counted twice."""
        return int(pc.sum(self.store.rows.column("length")[: index + 1]).as_py()) if index >= 0 else 0

    def demonstrations(self, data: str | None, count: int, noise: float, path: str | None) -> list[Episode]:
        """What to imitate: the worthy episodes of a recorded data set, or `count` successes of the task's scripted expert.

        noise: standard deviation on the expert's actions; path: its weights. The expert's failed attempts are recorded too.
        Raises RealrlError for a data set of another task's shape and for an expert that hardly ever succeeds.
        """
        if data is not None:
            return self._recorded_elsewhere(data)
        expert = envs.expert(self.task, path, noise=noise)
        good: list[Episode] = []
        tried = 0
        while len(good) < count:
            if tried >= 20 * count:
                raise RealrlError(f"{self.task}: the expert succeeded {len(good)} times in {tried} attempts, {count} demonstrations "
                                  "wanted: lower --demo-noise")
            batch = self.practise("demonstration", expert, self.seeds(0, count, tried), greedy=True, source=Source.SCRIPT)
            good += [e for e in batch if e.succeeded]
            tried += count
        return good[:count]

    def _recorded_elsewhere(self, data: str) -> list[Episode]:
        store = open_dataset(data)
        episodes = store.read(images=any(key.startswith(CAMERA_PREFIXES) for key in self.spec.senses))
        if not episodes or "state" not in episodes[0].obs:
            raise RealrlError(f"{data}: {'no observation.state in it' if episodes else 'an empty data set'}, there is nothing to imitate")
        have = (episodes[0].obs["state"].shape[-1], episodes[0].action.shape[-1])
        want = (self.spec.obs_dim, self.spec.action_dim)
        rate = round(1 / self.spec.dt)
        largest = max(float(np.abs(e.action).max()) for e in episodes)
        for key, shape in self.spec.senses.items():
            if key not in episodes[0].obs or episodes[0].obs[key].shape[1:] != shape:
                seen = f"has shape {list(episodes[0].obs[key].shape[1:])}" if key in episodes[0].obs else "is not in it"
                raise RealrlError(f"{data}: observation.{key} {seen}, the run looks at {list(shape)}: record it with the run's sight "
                                  "(realrl data demos --sight ...)")
        if have != want:
            raise RealrlError(f"{data}: {have[0]} observed numbers and {have[1]} actions, {self.task} has {want[0]} and {want[1]}: "
                              "name the task it was recorded on")
        if store.fps != rate:
            raise RealrlError(f"{data}: recorded at {store.fps} Hz, {self.task} runs at {rate} Hz: resample it, or record at {rate} Hz")
        if largest > 1.001:
            raise RealrlError(f"{data}: actions reach {largest:.3g}, they must lie in [-1, 1]: divide them by their limits first")
        good = worthy(episodes)
        if not good:
            raise RealrlError(f"{data}: none of its {len(episodes)} episodes is marked a success (next.success) and all returns are equal: "
                              "mark the successes")
        return good

    # -- learning -----------------------------------------------------------------------------------------------------------

    def device(self, wish: str) -> torch.device:
        """ "auto" is the GPU where there is one. Raises RealrlError for a device that is not here."""
        if wish == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            torch.zeros(1, device=wish)
            return torch.device(wish)
        except (RuntimeError, AssertionError, NotImplementedError):
            raise RealrlError(f"--device {wish}: torch finds no such device here; give cpu, or auto for what there is") from None

    def imitate(self, trainer: Imitation, stage: str) -> None:
        """Run a fit to its end, logging its loss under `stage` and saving it every 500 steps; continues an interrupted one."""
        name, steps = f"{stage}-fit", trainer.cfg.steps
        self.run.load(name, trainer=trainer)
        self.run.rewind(stage, trainer.step)
        with self.bar(f"{stage}: cloning", steps) as advance:
            advance(trainer.step)
            while trainer.step < steps:
                losses = trainer.update()
                advance(1)
                if trainer.step % 50 == 0:
                    self.run.log(trainer.step, losses, stage)
                if trainer.step % 500 == 0:
                    self.run.save(name, trainer.step, trainer=trainer)
        trainer.finish()

    # -- evaluation ---------------------------------------------------------------------------------------------------------

    def evaluate(self, policy: Policy, n: int, *, seed: int = 0, greedy: bool = True, source: Source = Source.POLICY,
                 label: str = "evaluation") -> Evaluation:
        """n held-out starts; the episodes are judged, not recorded, and never learned from."""
        episodes = []
        with self.bar(f"{label}: evaluation", n) as advance:
            for episode in self.collector.collect(policy, held_out(n, seed), greedy=greedy, noise_seed=seed, source=source, glance=True):
                episodes.append(blind(episode))
                advance(1)
        return summarise(episodes, self.spec.dt)

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

    def finish_stage(self, name: str, policy: Policy, n: int, *, version: int = 0) -> None:
        """Evaluate a stage's product and add it to summary.json, unless this version of it is there already."""
        known = self.stage(name)
        if known is not None and known.get("version", 0) == version:
            return
        entry = {**self._measure(name, policy, n, Source.POLICY), "wall_s": self.summary.get("spent_s", {}).get(name, 0.0),
                 "version": version}
        self.summary["stages"] = [s for s in self.summary["stages"] if s["name"] != name] + [entry]
        self._save_summary()
        self.store.compact()

    def judge_demonstrator(self, n: int, noise: float, path: str | None) -> None:
        """What the demonstrations' expert achieves from the held-out starts: the bar for success and cycle time."""
        if "demonstrator" not in self.summary:
            self.summary["demonstrator"] = self._measure("demonstrator", envs.expert(self.task, path, noise=noise), n, Source.SCRIPT)

    def audit(self, judged: Iterable[tuple[dict[str, Any], Policy]], n: int) -> None:
        """What policies that off-policy evaluation judged are truly worth, beside what it said of them: ope.json, point by point.

        Estimates of different rounds come from different models, so ranks are compared within a round (`stage`) and averaged.
        """
        file = self.run.dir / "ope.json"
        points = json.loads(file.read_text())["points"] if file.exists() else []
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
        return {"name": name, **result.to_dict(), "latency_ms": latency(policy, self.spec),
                "env_steps": self.store.frames}

    def _read_summary(self) -> dict[str, Any]:
        file = self.run.dir / "summary.json"
        fresh = {"task": self.task, "seed": self.seed, "wall_s": 0.0, "env_steps": 0, "stages": [], "commit": commit()}
        if not file.exists():
            return fresh
        try:
            read: dict[str, Any] = json.loads(file.read_text())
        except ValueError as error:
            raise RealrlError(f"{file}: not valid JSON ({error}): delete it, finished stages are then evaluated again") from None
        return {**fresh, **read}

    def _save_summary(self) -> None:
        self.summary |= {"wall_s": round(time.monotonic() - self._began, 1), "env_steps": self.store.frames}
        write_json(self.run.dir / "summary.json", self.summary)

    # -- progress -----------------------------------------------------------------------------------------------------------

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """A progress bar with a time estimate; the body calls what it is given with the number of things done."""
        columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, transient=True) as progress:
            task = progress.add_task(title, total=total)
            yield lambda n: progress.advance(task, n)

    def logger(self, stage: str) -> Callable[[int, Mapping[str, float]], None]:
        """A function (step, metrics) that logs under a stage."""
        return lambda step, metrics: self.run.log(step, metrics, stage)


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
