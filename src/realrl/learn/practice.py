"""Robots that practise while they learn: when one first reached something, in steps and in seconds by the clock, and how one goes on from
where an earlier run ended."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from realrl.types import Episode, Moment, RealrlError, Stateful

CLOCK = ("ticks", "deadline_misses", "worst_late_ms", "holds", "oldest_weights_s")
"""What the headline says of a run in real time."""


T = TypeVar("T", bound=Mapping[str, Any])


def sound(told: T, steps: int, *rates: str) -> T:
    """What updates told, numbers or tensors of one. rates: flags that keep learning from diverging. Raises RealrlError where it is NaN or
    infinite: weights that are never reach the robot."""
    import torch  # what is practised may be read without
    values = torch.stack([torch.as_tensor(value).float() for value in told.values()])
    if not bool(values.isfinite().all()):
        wrong = next(name for name, value in told.items() if not math.isfinite(float(value)))
        raise RealrlError(f"after {steps} control steps the updates' {wrong} is {float(told[wrong])}: learning diverged, and the robot "
                          "stops. What was done is recorded; --resume goes on from the last checkpoint, and a lower "
                          f"{' or '.join(rates)} wants a new run")
    return told


class Milestone(ABC):
    """steps: that were done; first: the step at which what is looked for was so first; first_s: seconds by the clock until then; seconds:
    until now. A checkpoint holds the seconds, the recording the rest."""

    def __init__(self) -> None:
        self.steps = 0
        self.first: int | None = None
        self.first_s: float | None = None
        self.seconds, self._clock = 0.0, time.monotonic()

    @property
    def first_min(self) -> float | None:
        """`first_s` in minutes."""
        return None if self.first_s is None else round(self.first_s / 60, 3)

    @abstractmethod
    def see(self, moments: Sequence[Moment]) -> None:
        """Steps as they are done; `count` each."""

    @abstractmethod
    def reread(self, episode: Episode) -> None:
        """The steps of a recorded episode; `count` each."""

    def remember(self, episodes: Sequence[Episode]) -> None:
        """Steps of before; the clock of a run that was killed since its checkpoint stood still, theirs did not."""
        self.seconds = max(self.seconds, float(sum(e.time[-1] - e.time[0] for e in episodes)))
        for episode in episodes:
            self.reread(episode)
        self._clock = time.monotonic()

    def count(self, reached: bool) -> None:
        """A step, after which what is looked for is so, or not."""
        self.steps += 1
        if reached and self.first is None:
            self.first = self.steps
            self.first_s = self.seconds if self.first_s is None else self.first_s

    def tick(self) -> None:
        """Look at the clock."""
        now = time.monotonic()
        self.seconds, self._clock = self.seconds + now - self._clock, now

    def state_dict(self) -> dict[str, Any]:
        """What no recording says."""
        return {"seconds": self.seconds, "first_s": self.first_s}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.seconds, self.first_s = state["seconds"], state["first_s"]


class Earlier:
    """What a run of the same method left, for one that goes on from there: its learner as it was at its last checkpoint, and what it
    practised."""

    def __init__(self, folder: str | None, name: str) -> None:
        """folder: of that run, None: there is none; name: of its checkpoint and its practice. Raises RealrlError where the folder is not
        of such a run."""
        self._states: dict[str, Any] = {}
        self._folder, self._name, self._from = folder, name, ""
        if folder is None:
            return
        from realrl.checkpoint import read_parts  # few runs go on from another
        place = Path(folder, "checkpoints", name)
        if not place.is_dir():
            raise RealrlError(f"--after {folder}: there is no checkpoint {name!r} in it: name the folder of a finished run of this method")
        self._from, (_, self._states) = str(place), read_parts(place)

    @property
    def actor(self) -> Mapping[str, Any]:
        """Its weights, by their names in the policy; none without a folder."""
        found: Mapping[str, Any] = self._states.get("agent", {}).get("policy", {})
        return found

    @cached_property
    def episodes(self) -> list[Episode]:
        """Of that practice, in order; none without a folder."""
        if self._folder is None:
            return []
        from realrl.data.store import Store
        store = Store.open(Path(self._folder, "dataset"))
        rows = store.rows.select(["policy", "episode_index"]).to_pylist()
        return store.read([r["episode_index"] for r in rows if r["policy"] in (self._name, f"{self._name} (recovered)")])

    def hand_over(self, agent: Stateful, anew: Sequence[str] = (), **more: Any) -> None:
        """The learner goes on as it was, if there was one. anew: what of its state begins again; more: what belongs to it, by its name in
        the checkpoint. Raises RealrlError where it was of another size."""
        if self._states:
            from realrl.checkpoint import restore
            own = agent.state_dict()
            states = {**self._states, "agent": {**self._states["agent"], **{name: own[name] for name in anew}}}
            try:
                restore(states, {"agent": agent, **more}, self._from)
            except RealrlError as error:
                mend = f"take its values (--config {self._folder}/config.yaml), and a task with as many numbers to observe and to act with"
                raise RealrlError(f"--after {self._folder}: what it learned cannot go on here; {mend}: {error}") from error
