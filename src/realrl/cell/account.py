"""A run's account: what stands in its summary.json, kept while it runs and picked up by a resumed one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from realrl.files import read_plain, write_json
from realrl.run import Run, commit
from realrl.types import RealrlError


class Account:
    """summary.json of a run. steps: control steps recorded so far."""

    def __init__(self, run: Run, task: str, seed: int, steps: Callable[[], int]) -> None:
        self.run, self.steps = run, steps
        self.summary: dict[str, Any] = self._read({"task": task, "seed": seed, "wall_s": 0.0, "env_steps": 0, "stages": [],
                                                   "commit": commit()})
        self._began = time.monotonic() - float(self.summary.get("wall_s", 0.0))

    def stage(self, name: str) -> dict[str, Any] | None:
        """A finished stage's entry."""
        found: dict[str, Any] | None = next((s for s in self.summary["stages"] if s["name"] == name), None)
        return found

    def finished(self, name: str, version: int = 0) -> bool:
        """Whether this version of a stage has its entry."""
        known = self.stage(name)
        return known is not None and bool(known.get("version", 0) == version)

    def enter(self, name: str, version: int, found: dict[str, Any]) -> None:
        """Add a stage's results, in place of those of an older version, and write it all."""
        entry = {**found, "env_steps": self.steps(), "wall_s": self.summary.get("spent_s", {}).get(name), "version": version}
        self.summary["stages"] = [s for s in self.summary["stages"] if s["name"] != name] + [entry]
        self.save()

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the seconds its body takes to a stage's account, also those of earlier, interrupted processes."""
        began = time.monotonic()
        try:
            yield
        finally:
            spent = self.summary.setdefault("spent_s", {})
            spent[name] = round(spent.get(name, 0.0) + time.monotonic() - began, 1)

    def tell(self, stage: str, line: str) -> None:
        """Say what was decided in a stage, once, and keep it for the report."""
        told = self.summary.setdefault("decisions", {})
        if told.get(stage) != line:
            print(line, flush=True)
        told[stage] = line

    def save(self) -> None:
        """Write summary.json, unless somebody deleted or moved the run: nothing of it shall stand there anew."""
        if not self.run.dir.is_dir():
            return
        self.summary |= {"wall_s": round(time.monotonic() - self._began, 1), "env_steps": self.steps()}
        write_json(self.run.dir / "summary.json", self.summary)

    def _read(self, fresh: dict[str, Any]) -> dict[str, Any]:
        file = self.run.dir / "summary.json"
        if not file.exists():
            return fresh
        try:
            read: dict[str, Any] = json.loads(read_plain(file))
        except ValueError as error:
            raise RealrlError(f"{file}: not valid JSON ({error}): delete it, finished stages are then evaluated again") from None
        return {**fresh, **read}
