"""A work cell: one task, its robots, its recordings and its run, what every method needs around its updates (`realrl.types.Cell`).

It records every episode before anyone learns from it (`book`), evaluates with fixed held-out starts (`judge`), keeps the summary
(`account`), and continues after a kill: what is on disk is not collected again, stages with a result are not repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from realrl.cell.account import Account
from realrl.cell.actor import Order
from realrl.cell.book import GROUP, Book
from realrl.cell.collect import Collector, MakeEnv, pack
from realrl.cell.curriculum import Practice
from realrl.cell.demonstrator import of_scene, saved, source
from realrl.cell.judge import Judge, Measure, judged
from realrl.cell.pool import in_turn
from realrl.cell.products import large_products
from realrl.cell.stream import WAITS, Beside, Interleaved, Remembering
from realrl.data.errors import typed
from realrl.data.schema import CAMERA_PREFIXES
from realrl.learn.imitation import worthy
from realrl.memory import keep_freed_memory
from realrl.nets.text import words
from realrl.policies.diffusion import DiffusionPolicy
from realrl.policies.folder import Storable, save_policy
from realrl.robots.embodiment import Embodiment
from realrl.run import Run
from realrl.scene import Scene, device
from realrl.streaming import StreamConfig
from realrl.types import Array, Episode, Intervention, Policy, RealrlError, RewardModel, Source, TaskSpec

PER_TASK = 50_000
"""Starts of a stage that a task has for itself, where a run has several."""


class WorkCell:
    """Collects, records, evaluates and reports for one run. Use it as a context manager."""

    def __init__(self, run: Run, scene: Scene, *, reward: str | None = None, make: MakeEnv | None = None,
                 host: WorkCell | None = None) -> None:
        """make: builds an environment of your own; scene.task is then just its name, and scene.data holds its demonstrations. With one
        worker and one environment every step of it is on disk before anyone learns from it. host: the cell of the run's first task, whose
        recordings, account and workers this one shares."""
        self.run, self.scene, self.simulated, self._reward = run, scene, make is None, reward
        self._others: dict[str, WorkCell] = {}
        self._inside = ExitStack()
        self._place = 0 if host is None else len(host._others) + 1
        open_with = partial(Collector, scene.task, reward=reward, horizon=scene.horizon, sight=scene.sight, randomise=scene.randomise,
                            guard=scene.guard, recall=scene.recall, late=scene.late, make=make,
                            crew=host.collector.crew if host else None)
        self.collector: Collector = open_with(scene.collect)
        self.spec: TaskSpec = self.collector.spec()
        if self.spec.live:
            self.collector = open_with(replace(scene.collect, workers=1, envs_per_worker=1))
        live = self.spec.live or (make is not None and self.collector.workers == self.collector.size == 1)
        if host is not None and _records_alike(host.spec, self.spec):
            self.book: Book = host.book
        else:
            self.book = Book(run.dir / ("dataset" if host is None else f"dataset-{self._place}"), scene.task, self.spec,
                             group=GROUP if make is None else 1, live=live)
        self.account: Account = host.account if host else Account(run, scene.task, scene.seed, self._frames)
        self.judge = Judge(self.account, scene, self.collector, self.spec)

    def __enter__(self) -> WorkCell:
        keep_freed_memory()
        self._inside.enter_context(large_products(device(self.scene.device)))
        return self

    def __exit__(self, *_: object) -> None:
        self._inside.close()
        try:
            for cell in (*self._others.values(), self):
                cell.book.close()
        finally:
            self.account.save()
            for cell in (*self._others.values(), self):
                cell.collector.close()

    def at(self, task: str) -> WorkCell:
        """The cell of another task of this run (`types.Cell.at`)."""
        if task == self.scene.task:
            return self
        if not self.simulated:
            raise RealrlError(f"{self.scene.task}: an environment of your own has one task: leave {task} out of --tasks")
        if task not in self._others:
            self._others[task] = WorkCell(self.run, replace(self.scene, task=task), reward=self._reward, host=self)
        return self._others[task]

    def _frames(self) -> int:
        """Control steps that the run has recorded."""
        books = {id(cell.book): cell.book for cell in (self, *self._others.values())}
        return sum(book.frames for book in books.values())

    # -- practice -------------------------------------------------------------------------------------------------------------

    def seeds(self, stage: int, count: int, first: int = 0) -> list[int]:
        """Training starts of a stage (0..9): disjoint between stages and run seeds, and from every evaluation's."""
        base = (self.scene.seed % 90 + 1) * 10_000_000 + stage * 1_000_000 + self._place * PER_TASK + first
        return list(range(base, base + count))

    def practise(self, label: str, policy: Policy, seeds: Sequence[int], *, greedy: bool = False, noise_seed: int = 0,
                 source: Source = Source.POLICY, plans_only: bool = False, chains: bool = False,
                 human: Intervention | None = None) -> list[Episode]:
        """Episodes of `policy` from the given starts, recorded under `label`, in the order of the seeds.

        What an interrupted run already recorded is read back, not repeated. plans_only: simulated eyes open for the plans alone and the
        last sight is held in between (`CollectConfig.every_frame`). chains: what plans carry in `extra` is kept beside the recording.
        human: see `types.Cell`; what is remembered between episodes is lost with an interruption.
        """
        known = self.book.recorded(label)
        old = self.book.read(label, [s for s in seeds if s in known], chains)
        todo = [s for s in seeds if s not in known]
        fresh: dict[int, Episode] = {}
        with self.book.writing(label, chains) as put, self.run.bar(f"{self._called(label)}: episodes", len(todo)) as advance:
            for episode in self.collector.collect(policy, todo, greedy=greedy, noise_seed=noise_seed, source=source, glance=plans_only,
                                                  recording=self.book.live(label, chains), human=human):
                assert episode.seed is not None
                put(episode)
                fresh[episode.seed] = episode if chains else _without_extra(episode)
                advance(1)
        if seeds:
            self.summary["env_steps"] = self.book.steps_until(label, seeds)
        return [fresh[s] if s in fresh else old[s] for s in seeds]

    def _called(self, label: str) -> str:
        """A label with the task's name, where a run has several and the label does not say it."""
        several = self._place or self._others
        return f"{label} {self.spec.name}" if several and not label.endswith(self.spec.name) else label

    def take_turns(self, label: str, policies: Mapping[str, Policy], seeds: Sequence[int], *,
                   noise_seed: int = 0) -> dict[str, list[Episode]]:
        """See `types.Cell`. An interrupted pool is run again, identically, and only what is missing is recorded."""
        cells = {task: self.at(task) for task in policies}
        book = next(iter(cells.values())).book
        if label not in self.summary.setdefault("pool", {}):
            crews = {task: at.collector.local().one() for task, at in cells.items()}
            known, helps, steps = book.recorded(label), 0, 0
            with book.writing(label, False) as put, self.run.bar(f"{label}: episodes in turn", len(seeds)) as advance:
                for _, episode, helped in in_turn({t: env for t, (env, _) in crews.items()}, policies,
                                                  {t: guard for t, (_, guard) in crews.items()}, seeds, noise_seed=noise_seed):
                    helps, steps = helps + helped, steps + len(episode)
                    if episode.seed not in known:
                        put(episode)
                    advance(1)
            hours = steps * next(iter(cells.values())).spec.dt / 3600
            self.summary["pool"][label] = {"episodes": len(seeds), "hours": hours, "interventions": helps,
                                           "interventions_per_hour": helps / hours}
            self.account.save()
        found = book.labelled(label)
        return {task: sorted((e for e in found if e.task == task), key=lambda e: e.seed or 0) for task in policies}

    def stream(self, label: str, policy: Policy, *, stage: int, warmup: int = 0, noise_seed: int = 0,
               cfg: StreamConfig | None = None, human: Intervention | None = None,
               referee: RewardModel | None = None) -> Interleaved | Beside:
        """One robot that acts while a method learns, see `types.Stream`; both take turns in this process, unless real time is asked for."""
        going_on = {"reward": "dense"} if referee and self.simulated else {}  # until the referee has seen success
        if cfg and cfg.realtime:
            self.collector.close()  # the robot is the actor's
            return Beside(self.book, policy, Order(
                Path(), self.book.dir, self.scene.task, self.spec, label, self.collector.bench(**going_on), pack(policy),
                self.seeds(stage, 1)[0], warmup, noise_seed, cfg, human, referee))
        if cfg and self.spec.live:
            self.tell(f"{label}: the robot", WAITS)
        starts = lambda n: self.seeds(stage, 1, n)[0]
        own = not self.book.is_live
        bench = self.collector.bench(**going_on) if own else self.collector.local()
        self.book.is_live |= human is not None and not isinstance(human, Remembering)  # who does nothing twice is taken down step by step
        return Interleaved(self.book, bench, label, policy, starts, warmup=warmup, noise_seed=noise_seed, again=not self.book.is_live,
                           own=own, human=human, referee=referee)

    def curriculum(self, share: float) -> Practice:
        """Failed starts come back in this share of a round's episodes."""
        return Practice(share, self.scene.seed)

    def demonstrations(self, failures: bool = False, count: int | None = None) -> list[Episode]:
        """What to imitate: the worthy episodes of the scene's data set, or as many successes of its expert as it wants, whose failed
        attempts are recorded too; see `types.Cell`.

        Raises RealrlError for a data set of another task's shape and for an expert that hardly ever succeeds.
        """
        scene = self.scene
        if scene.data is not None:
            return recorded_demonstrations(scene.data, self.spec, several=bool(self._others or self._place), failures=failures,
                                           tell=partial(self.tell, "demonstrations"))[:count]
        if not (self.simulated or self.spec.twin or saved(scene.expert)):
            raise RealrlError(f"{scene.task}: an environment of your own has no scripted expert: record demonstrations and name their "
                              "folder with --data")
        expert, wanted = of_scene(scene, self.spec), scene.demos if count is None else count
        good: list[Episode] = []
        tried = 0
        while len(good) < wanted:
            if tried >= 20 * max(wanted, scene.demos):
                mend = "name another with --expert" if saved(scene.expert) else "lower --demo-noise, or raise --horizon"
                raise RealrlError(f"{scene.task}: the expert succeeded {len(good)} times in {tried} attempts, {wanted} demonstrations "
                                  f"wanted: {mend}")
            batch = self.practise("demonstration", expert, self.seeds(0, wanted, tried), greedy=True, source=source(scene.expert))
            good += [e for e in batch if e.succeeded]
            tried += wanted
        return good[:wanted]

    @property
    def robot(self) -> Embodiment | None:
        """Whose numbers a policy speaks: a task's own, in [-1, 1] already."""
        return None

    # -- what the book and the judge do ---------------------------------------------------------------------------------------

    @property
    def summary(self) -> dict[str, Any]:
        """What will stand in summary.json."""
        return self.account.summary

    def recent(self, count: int) -> list[Episode]:
        """The newest recorded episodes, oldest first."""
        return self.book.recent(count)

    def annotate(self, name: str, label: str | Sequence[str], values: Callable[[list[Episode]], list[Array]]) -> None:
        """A derived column [T] of the episodes recorded under a label or several, once; for `realrl view`."""
        self.book.annotate(name, [label] if isinstance(label, str) else label, values)

    def timed(self, name: str) -> AbstractContextManager[None]:
        """Adds the seconds its body takes to a stage's account."""
        return self.account.timed(name)

    def finish_stage(self, name: str, policy: Policy, n: int, *, version: int = 0, greedy: bool = True,
                     measure: Measure | None = None) -> None:
        """Evaluate a stage's product and add it to summary.json, unless this version of it is there already; see `types.Cell`."""
        if self.judge.finish_stage(name, policy, n, version=version, greedy=greedy, measure=measure):
            self.book.store.compact()

    def judge_demonstrator(self, n: int) -> None:
        """What the demonstrations' expert achieves: the bar for success and cycle time."""
        self.judge.judge_demonstrator(n)

    def keep(self, policy: Storable, name: str = "policy") -> None:
        """Write the run's product into its folder `policy`; that of a further task into `policy-NAME`."""
        folder = self.run.dir / (f"{name}-{self.spec.name}" if self._place else name)
        save_policy(policy, folder, task=self.scene.task, sight=self.scene.sight, recall=self.scene.recall, robot=self.robot)

    def tell(self, stage: str, line: str) -> None:
        """Say what was decided in a stage; it stays in the summary."""
        self.account.tell(stage, line)

    def audit(self, policy: DiffusionPolicy, rounds: int, n: int) -> None:
        """What policies that off-policy evaluation judged are truly worth; never on a robot: a gate refused some of them."""
        if self.simulated and n:
            self.judge.audit(judged(self.run, rounds, policy), n)


def _records_alike(one: TaskSpec, other: TaskSpec) -> bool:
    """Whether episodes of two tasks fit into one data set."""
    return all(getattr(one, name) == getattr(other, name) for name in ("obs_dim", "action_dim", "dt", "senses", "privileged", "live"))


def _without_extra(episode: Episode) -> Episode:
    """As it would be read back."""
    episode.extra = {}
    return episode


def recorded_demonstrations(data: str, spec: TaskSpec, *, several: bool = False, failures: bool = False,
                            tell: Callable[[str], None] = lambda line: None) -> list[Episode]:
    """The worthy episodes of a recorded data set; those of a task bear its name or a text of it. several: the run has other tasks, whose
    episodes may be there, too; of a run's only task also a set is taken that calls it otherwise throughout. failures: also those that are
    known to have failed. Raises RealrlError where it does not fit the task, naming what differs and the mend."""
    from realrl.data.formats import open_dataset  # all formats, which few runs need
    store = open_dataset(data)
    episodes = store.read(images=any(key.startswith(CAMERA_PREFIXES) for key in spec.senses))
    if not episodes or "state" not in episodes[0].obs:
        raise RealrlError(f"{data}: {'no observation.state in it' if episodes else 'an empty data set'}, there is nothing to imitate")
    mine = [words(text) for text in (spec.id, spec.text, *spec.paraphrases)]
    own = [e for e in episodes if words(e.task) in mine]
    if own or several:
        there = sorted({e.task for e in episodes})
        if not own:
            raise RealrlError(f"{data}: none of its episodes is of {spec.id}; its task texts are {', '.join(there)[:300]}: name what it "
                              f"holds with --tasks, or give its episodes that task's text, {spec.text or spec.id!r}")
        if len(own) < len(episodes) and not several:
            other = ", ".join(text for text in there if words(text) not in mine)
            tell(f"{len(episodes) - len(own)} of the {len(episodes)} episodes of {data} are of other tasks ({other[:300]}) and left out")
        episodes = own
    first = episodes[0]
    for key, shape in spec.senses.items():
        if key not in first.obs or first.obs[key].shape[1:] != shape:
            seen = f"has shape {list(first.obs[key].shape[1:])}" if key in first.obs else "is not in it"
            raise RealrlError(f"{data}: observation.{key} {seen}, the run looks at {list(shape)}: record it with the run's sight "
                              "(realrl data demos --sight ...)")
    have, want = (first.obs["state"].shape[-1], first.action.shape[-1]), (spec.obs_dim, spec.action_dim)
    if have != want:
        sight = " and the sight (--sight.kind rgb)" if store.cameras and not spec.senses else ""
        raise RealrlError(f"{data}: {have[0]} observed numbers and {have[1]} actions, {spec.id} has {want[0]} and {want[1]}: "
                          f"name the task it was recorded on, with the --recall{sight} that it had")
    if abs(store.fps - (rate := round(1 / spec.dt))) > 0.005 * rate:  # 29.97 is 30 to a policy
        raise RealrlError(f"{data}: recorded at {store.fps} Hz, {spec.id} runs at {rate} Hz: resample it, or record at {rate} Hz")
    if (largest := max(float(np.abs(e.action).max()) for e in episodes)) > 1.001:
        raise RealrlError(f"{data}: actions reach {largest:.3g}, they must lie in [-1, 1]: divide them by their limits first")
    if not (good := worthy(episodes)):
        raise RealrlError(f"{data}: none of its {len(episodes)} episodes ended in success, and all returns are equal: mark the successes "
                          f"(realrl data label {typed(data)})")
    chosen = {id(e) for e in good}
    return [*good, *(e for e in episodes if failures and e.failed and id(e) not in chosen)]
