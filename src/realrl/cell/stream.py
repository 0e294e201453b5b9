"""An actor beside a learner (`realrl.types.Stream`): the one control loop, step by step, for methods that learn while the robot moves.

Here both are one process that takes turns: a control step, then as many updates as the method wants. Nothing depends on the clock, so a
run repeats to the bit. What a simulator did after the checkpoint that a resumed run begins from is done again, identically; a robot's
steps cannot be, they are read back and the robot goes on with a new episode.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from realrl.cell.book import Book
from realrl.cell.collect import Bench
from realrl.types import Array, Episode, Moment, Obs, Plan, Policy, State


class _Acting:
    """The policy that was published last; for the first `warmup` control steps even noise from the episode's own generator."""

    n_obs: int

    def __init__(self, policy: Policy, warmup: int, action_dim: int, steps: Callable[[], int]) -> None:
        self.policy, self._warmup, self._size, self._steps = policy, warmup, action_dim, steps
        self.name, self.chunk, self.n_obs = policy.name, policy.chunk, policy.n_obs

    def start(self, batch: int) -> State:
        return self.policy.start(batch)

    def act(self, obs: Obs, state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
        if self._steps() >= self._warmup:
            return self.policy.act(obs, state, greedy=greedy, rng=rng)
        noise: list[Array] = [g.uniform(-1, 1, (self.chunk, self._size)) for g in rng]
        return Plan(np.stack(noise).astype(np.float32)), state


class Interleaved:
    """The stream of one process; use it as a context manager. bench: the robot, one environment; starts: seed of the n-th episode;
    again: whether what was done after a checkpoint is done again (a simulator) or kept (a robot)."""

    def __init__(self, book: Book, bench: Bench, label: str, policy: Policy, starts: Callable[[int], int], *, warmup: int, noise_seed: int,
                 again: bool) -> None:
        self.steps = self.episodes = 0
        self._book, self._bench, self._label, self._starts, self._noise, self._again = book, bench, label, starts, noise_seed, again
        self._acting = _Acting(policy, warmup, book.spec.action_dim, lambda: self.steps)
        self._known = set(book.recorded(label))
        self._writing = ExitStack()
        self._moments: Generator[Moment | Episode] | None = None
        self.between = True

    def __enter__(self) -> Interleaved:
        self._open()
        return self

    def __exit__(self, *error: object) -> None:
        if self._moments is not None:
            self._moments.close()
        self._writing.close()
        if self._again:
            self._bench.close()

    def _open(self) -> None:
        self._put = self._writing.enter_context(self._book.writing(self._label, False))

    def past(self) -> list[Episode]:
        """See `types.Stream`. A robot's steps since the checkpoint count, too, also of an episode that a kill cut off."""
        if self._again:
            seeds = [self._starts(i) for i in range(self.episodes)]
            found = self._book.read(self._label, seeds, False)
            return [found[s] for s in seeds]
        whole = self._book.labelled(self._label, f"{self._label} (recovered)")
        self.episodes, self.steps = len(whole), sum(len(e) for e in whole)
        return whole

    def take(self) -> list[Moment]:
        """See `types.Stream`: the next control step."""
        if self._moments is None:
            seeds = (self._starts(i) for i in itertools.count(self.episodes))
            self._moments = self._bench.play(self._acting, seeds, noise_seed=self._noise, recording=self._book.live(self._label, False))
        moment = next(self._moments)
        assert isinstance(moment, Moment)
        self.steps += 1
        self.between = moment.step.terminated or moment.step.truncated
        if self.between:
            episode = next(self._moments)
            assert isinstance(episode, Episode)
            self.episodes += 1
            if episode.seed not in self._known:
                self._put(episode)
        return [moment]

    def publish(self, policy: Policy) -> None:
        """See `types.Stream`."""
        self._acting.policy = policy

    def state_dict(self) -> dict[str, Any]:
        """How far it is; what was done until then is on disk afterwards. Raises ValueError within an episode."""
        if not self.between:
            raise ValueError("a stream's checkpoint is taken between two episodes")
        self._writing.close()
        self._open()
        return {"episodes": self.episodes, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.episodes, self.steps = int(state["episodes"]), int(state["steps"])
