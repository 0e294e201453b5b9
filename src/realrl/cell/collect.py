"""Many episodes fast: worker processes that each hold a policy copy and a handful of environments, behind one call.

Seeds are dealt to the workers in a fixed order and every episode has its own noise, so the result does not depend on timing.
"""

from __future__ import annotations

import functools
import gc
import io
import multiprocessing as mp
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, runtime_checkable

import torch

from realrl import envs
from realrl.cell.rollout import Recording, play, rollout
from realrl.envs.base import RobotEnv
from realrl.robots.guard import box_guard
from realrl.scene import CollectConfig, GuardConfig, RandomiseConfig, SightConfig
from realrl.types import Episode, Guard, Intervention, Moment, Policy, RealrlError, RewardModel, Source, TaskSpec

MakeEnv = Callable[[], RobotEnv]


@runtime_checkable
class Continuing(Protocol):
    """An environment that, with `carry_on`, begins an episode where the one before left the robot: nobody puts it back."""

    carry_on: bool

    def snapshot(self) -> dict[str, Any]:
        """All that its next episode depends on, as arrays."""

    def go_on(self, saved: Mapping[str, Any]) -> None:
        """Go on from a snapshot."""


@runtime_checkable
class _Resting(Protocol):
    """An environment that wants to know that nobody acts for a while, see `realrl.robots.client`."""

    def pause(self) -> None: ...


class Collector:
    """Runs episodes of one task. Use it as a context manager, or call `close`."""

    def __init__(self, task: str, cfg: CollectConfig | None = None, *, reward: str | None = None, horizon: int | None = None,
                 sight: SightConfig | None = None, randomise: RandomiseConfig | None = None, guard: GuardConfig | None = None,
                 recall: int = 0, late: int = 0, make: MakeEnv | None = None, crew: Crew | None = None) -> None:
        """recall, late: see `RobotEnv.lag`. make: builds an environment of your own for a task that `realrl.envs` does not know; a function
        of a module, because the workers are sent its name. crew: of another collector, to share its workers."""
        cfg = cfg or CollectConfig()
        self.task = task
        self._make: MakeEnv = make or functools.partial(envs.make, task, reward=reward, horizon=horizon, sight=sight,
                                                        randomise=randomise)
        if recall or late:
            self._make = functools.partial(envs.lagged, self._make, recall, late)
        self._guard = guard or GuardConfig()
        self.workers, self.size = cfg.workers or available_cores(), cfg.envs_per_worker
        self._every_frame = cfg.every_frame or make is not None  # a robot's cameras run anyway
        self._local: Bench | None = None
        self.crew = crew or Crew(self.workers)

    def spec(self) -> TaskSpec:
        """What the task is; makes an environment to ask, and closes it."""
        env = self._make()
        env.close()
        return env.task

    def __enter__(self) -> Collector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def collect(self, policy: Policy, seeds: Sequence[int], *, greedy: bool, noise_seed: int = 0,
                source: Source = Source.POLICY, glance: bool = False, recording: Recording | None = None,
                human: Intervention | None = None) -> Iterator[Episode]:
        """Yield an episode for every seed, as they finish. The order is not fixed; sort by `episode.seed` where it matters.

        glance: simulated eyes open only where a plan begins, see `rollout`; for who needs no more than the plans. recording: takes
        down every step of one robot, in this process. human: watches one robot after the other, in this process, and may take over.
        Raises RealrlError when a worker dies, with what it said, and when the policy cannot be sent to one.
        """
        glance = glance and not self._every_frame and human is None
        if human:
            yield from self.local().attended(policy, seeds, greedy, noise_seed, human, recording)
            return
        if recording or self.workers == 1 or len(seeds) < 2 * self.workers:
            yield from self.local().run(policy, seeds, greedy, noise_seed, source, glance, recording)
            return
        blob = pack(policy)
        busy = self.crew.start()
        try:
            for w, pipe in enumerate(list(busy)):
                self._send(pipe, busy[pipe], (self.bench(), blob, list(seeds[w::self.workers]), greedy, noise_seed, int(source), glance))
            while busy:
                for ready in wait(list(busy)):
                    assert isinstance(ready, Connection)
                    answer = self._receive(ready, busy[ready])
                    if answer is None:
                        del busy[ready]
                    else:
                        yield answer
        finally:
            if busy:  # the caller stopped early or a worker died: nothing half-read may reach the next call
                self.close()

    def local(self) -> Bench:
        """This process's own environments, which `collect` uses, too: where there is one robot, the robot."""
        self._local = self._local or self.bench()
        return self._local

    def bench(self, **changes: Any) -> Bench:
        """Environments of the task that are made as they are needed, with their guards. changes: of what `envs.make` is asked for."""
        return Bench(self.task, self.size, functools.partial(self._make, **changes) if changes else self._make, self._guard)

    def _receive(self, pipe: Connection, process: Any) -> Episode | None:
        try:
            kind, value = pipe.recv()
        except (EOFError, OSError):  # OSError: it died in the middle of an episode's bytes
            raise self._died(process) from None
        if kind == "error":
            raise RealrlError(f"{self.task}: collection failed in a worker: {value}")
        episode: Episode | None = value
        return episode

    def _send(self, pipe: Connection, process: Any, order: tuple[Any, ...]) -> None:
        try:
            pipe.send(order)
        except OSError:
            raise self._died(process) from None

    def _died(self, process: Any) -> RealrlError:
        process.join(5)
        return RealrlError(f"{self.task}: a collection worker died (exit code {process.exitcode}): run again with --resume; "
                           "if it repeats, use --collect.workers 1 to see why")

    def close(self) -> None:
        """Stop the workers and close this process's environments (a robot's port and brakes)."""
        if self._local:
            self._local.close()
            self._local = None
        self.crew.close()


class Crew:
    """Worker processes, started when they are needed; each keeps the environments of every task that it was asked for."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._members: dict[Connection, Any] = {}

    @property
    def processes(self) -> list[Any]:
        """Those that were started."""
        return list(self._members.values())

    def start(self) -> dict[Connection, Any]:
        """The way to every worker, and its process; waiting for orders."""
        context = processes()
        while len(self._members) < self.workers:
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(there,), daemon=True)
            process.start()
            there.close()
            self._members[here] = process
        return dict(self._members)

    def close(self) -> None:
        """Stop them."""
        for pipe in self._members:
            pipe.close()
        for process in self._members.values():
            process.terminate()
            process.join(10)
        self._members = {}


class Bench:
    """Environments of one task with their guards, made as they are needed."""

    def __init__(self, task: str, size: int, make: MakeEnv, guard: GuardConfig) -> None:
        self.task, self.size, self._make, self._guard = task, size, make, guard
        self.envs: list[Any] = []

    def run(self, policy: Policy, seeds: Sequence[int], greedy: bool, noise_seed: int, source: Source,
            glance: bool, recording: Recording | None = None) -> Iterator[Episode]:
        """Whole episodes, see `rollout`."""
        while len(self.envs) < min(self.size, len(seeds)):
            self.envs.append(self._make())
        yield from rollout(self.envs, policy, [box_guard(e, self._guard) for e in self.envs], seeds, greedy=greedy, noise_seed=noise_seed,
                           task=self.task, source=source, glance=glance, recording=recording)

    def attended(self, policy: Policy, seeds: Sequence[int], greedy: bool, noise_seed: int, human: Intervention,
                 recording: Recording | None) -> Iterator[Episode]:
        """Whole episodes of one robot beside which a person stands."""
        for found in self.play(policy, seeds, greedy=greedy, noise_seed=noise_seed, recording=recording, human=human):
            if isinstance(found, Episode):
                yield found

    def play(self, policy: Policy, seeds: Iterable[int], *, noise_seed: int, recording: Recording | None,
             greedy: bool = False, pace: Callable[[], None] | None = None, human: Intervention | None = None,
             referee: RewardModel | None = None) -> Generator[Moment | Episode]:
        """One robot step by step, exploring unless it is `greedy`, see `rollout.play`."""
        self._robot()
        yield from play(self.envs[:1], policy, [box_guard(self.envs[0], self._guard)], seeds, greedy=greedy, noise_seed=noise_seed,
                        task=self.task, recording=recording, pace=pace, human=human, referee=referee)

    def _robot(self) -> Any:
        """The one robot; where it can, it goes on from where an episode left it."""
        if not self.envs:
            self.envs.append(self._make())
        if isinstance(self.envs[0], Continuing):
            self.envs[0].carry_on = True
        return self.envs[0]

    def one(self) -> tuple[Any, Guard]:
        """The one robot, and its guard."""
        robot = self._robot()
        return robot, box_guard(robot, self._guard)

    def rest(self) -> None:
        """Nobody acts for a while, and nothing is wrong: a robot holds."""
        for env in self.envs:
            if isinstance(env, _Resting):
                env.pause()

    def snapshot(self) -> dict[str, Any]:
        """Between two episodes: where the one robot is, {} where an episode begins anew anyhow."""
        robot = self._robot()
        return robot.snapshot() if isinstance(robot, Continuing) else {}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from a snapshot."""
        if saved:
            self._robot().go_on(saved)

    def close(self) -> None:
        """Close the environments (a robot's port and brakes)."""
        for env in self.envs:
            env.close()
        self.envs = []
        gc.collect()  # simulators sit in reference cycles, and Python does not see how many megabytes hang on each


def processes() -> Any:
    """How workers and actors are started: forked from a clean process that has imported this module, and torch with it, once for all of
    them (to fork from here is unsafe beside torch's threads and GL contexts). Where there is no such thing, each imports it anew.

    Ctrl-C, which a terminal sends to all of them, is for who started them and ends them: theirs would be a traceback of whatever they were
    doing. They have it blocked from before their first instruction, the imports included."""
    if "forkserver" not in mp.get_all_start_methods():
        return mp.get_context("spawn")
    context = mp.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    resource_tracker.ensure_running()  # whose start would unblock it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


class _Packer(pickle.Pickler):
    """Pickles what holds tensors of any device as if they lay in the memory of the processor."""

    def reducer_override(self, obj: Any) -> Any:
        """See `pickle.Pickler`."""
        elsewhere = type(obj) is torch.Tensor and obj.device.type != "cpu"  # a parameter holds such a one
        return obj.cpu().__reduce_ex__(pickle.HIGHEST_PROTOCOL) if elsewhere else NotImplemented


def pack(policy: Policy) -> bytes:
    """A policy as other processes are sent it: there it acts on the CPU, wherever it learns, or every one of them would need a part of the
    GPU. Raises RealrlError for one that cannot be sent."""
    sent = io.BytesIO()
    try:
        _Packer(sent).dump(policy)
        return sent.getvalue()
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise RealrlError(f"policy {policy.name!r} cannot be sent to worker processes ({error}): build it from functions and classes "
                          "of a module, or use --collect.workers 1") from None


class _Left(Exception):
    """Whoever gave the orders closed the pipe: it wants no more, or is gone."""


def _work(pipe: Connection) -> None:
    torch.set_num_threads(1)
    benches: dict[str, Bench] = {}
    while True:
        try:
            bench, blob, seeds, greedy, noise_seed, source, glance = pipe.recv()
        except (EOFError, OSError):  # OSError: it was closed with something still unread
            return
        try:
            bench = benches.setdefault(bench.task, bench)
            for episode in bench.run(pickle.loads(blob), seeds, greedy, noise_seed, Source(source), glance):
                _tell(pipe, ("episode", episode))
            _tell(pipe, ("done", None))
        except _Left:
            return
        except RealrlError as error:
            pipe.send(("error", str(error)))
        except BaseException:  # the traceback would be lost with the process: hand it to the parent, then die
            pipe.send(("error", traceback.format_exc()))
            raise


def _tell(pipe: Connection, news: tuple[str, Episode | None]) -> None:
    try:
        pipe.send(news)
    except OSError:
        raise _Left from None


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
