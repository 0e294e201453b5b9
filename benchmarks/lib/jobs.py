"""Benchmarks of methods that learn while a robot moves: a run for every task, method and seed, and its row."""

from __future__ import annotations

import multiprocessing as mp
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.lib.common import RESULTS, Part, Table, arguments, overridden, run_parts
from realrl.cell.cell import WorkCell
from realrl.cell.mailbox import Mailbox, name
from realrl.run import Run
from realrl.scene import CollectConfig

KEY = ("task", "method", "seed")
AWAY = 10.0  # seconds without a learner
Told = Callable[[dict[str, Any]], None]


class _Cell(WorkCell):
    """A cell that tells how its run stands after every evaluation."""

    def __init__(self, run: Run, cfg: Any, judged: Told | None) -> None:
        super().__init__(run, cfg)
        self._judged = judged

    def finish_stage(self, *args: Any, **kwargs: Any) -> None:
        super().finish_stage(*args, **kwargs)
        if self._judged:
            self._judged(self.summary)


@dataclass(frozen=True)
class Job(ABC):
    """One task, method and seed; a benchmark says what its `train` is and what goes into the row."""

    cfg: Any
    folder: Path
    table: Table
    task: str
    method: str

    def part(self) -> Part:
        """Its run; one of which there is only a row that was cut off goes on."""
        return Part(f"{self.task} {self.method} seed {self.cfg.seed}", lambda: not (self.row() or {"cut": True}).get("cut"), self.run)

    def row(self, method: str | None = None) -> dict[str, Any] | None:
        """What is known of it, or of another method with the same task and seed."""
        return self.table.find(self.task, method or self.method, self.cfg.seed)

    def learn(self, train: Callable[[Any, WorkCell], dict[str, Any]], judged: Told | None = None) -> dict[str, Any]:
        """The run, or what is left of it, on whatever device; its summary. judged: is given the summary after every evaluation."""
        with Run.start(self.folder, self.cfg, resume=True, ignore=("collect", "device")) as run, _Cell(run, self.cfg, judged) as cell:
            return train(self.cfg, cell)

    def die(self, train: Callable[[Any, WorkCell], dict[str, Any]]) -> None:
        """Half of a run in real time, in a process that is killed (-9) then; its robot's waits for another learner."""
        process = mp.get_context("spawn").Process(target=self.learn, args=(train,))
        process.start()
        mine = name(self.folder / "dataset")
        while process.is_alive() and not any(box.head["ticks"] > self.cfg.steps / 2 for box in Mailbox.find(mine)):
            time.sleep(0.1)
        process.kill()
        process.join()
        time.sleep(AWAY)

    def put(self, **row: Any) -> None:
        """Write the row."""
        self.table.put({"task": self.task, "method": self.method, "seed": self.cfg.seed, **row})

    @abstractmethod
    def run(self) -> None:
        """Learn, and write the row."""


def run_jobs(kind: type[Job], doc: str, words: list[str] | None, *, file: str, suite: str, tasks: Sequence[str], methods: Mapping[str, Any],
             toy_size: Callable[[Any], Any], seeds: Sequence[int]) -> int:
    """Run what is missing. file: name of the results and of the runs' folder; tasks: of `suite`, or with "" named in full, the first one by
    default; toy_size: a configuration with budgets that show nothing but that the script works."""
    parser = arguments(doc, seeds=seeds)
    parser.add_argument("--methods", nargs="+", default=list(methods), choices=list(methods))
    parser.add_argument("--tasks", nargs="+", default=[tasks[0]], choices=tasks, metavar="TASK", help=f"of {suite}/: {' '.join(tasks)}")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder where rows are kept")
    args, flags = parser.parse_known_args(words)
    out, results = (args.out / "smoke", args.out / "smoke") if args.smoke else (args.out, args.results)
    table = Table(results / f"{file}.jsonl", KEY)
    jobs = []
    for task in args.tasks:
        for method in args.methods:
            base = overridden(toy_size(methods[method]) if args.smoke else methods[method], flags)
            for seed in args.seeds[:1] if args.smoke else args.seeds:
                full = f"{suite}/{task}" if suite else task
                cfg = replace(base, task=full, seed=seed, collect=CollectConfig(workers=1))
                jobs.append(kind(cfg, out / file / f"{task.replace('/', '-')}-{method}-s{seed}", table, task, method))
    return min(run_parts([job.part() for job in jobs], args.budget), 1)
