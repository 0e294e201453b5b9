"""What an off-policy learner draws from: transitions, chunks and stretches as indices into episodes, which grow while a robot acts.

Every frame lies there once, pictures as bytes. Episodes lie one after the other, T steps and T + 1 frames each, so that step i of episode e
sees frame i + e, and what followed n steps is n frames on: inside the episode, never the next row. What is drawn depends on the
generator and on what was put in, in which order; a replay that is filled again from the recording gives the same batches.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from realrl.types import Array, Batch, Episode, Moment, Obs, RealrlError, Segment, Source


class _Column:
    """A tensor that grows at its end, by doubling."""

    def __init__(self, like: Array, device: torch.device | str) -> None:
        self.length = 0
        # 64-bit readings are kept as networks see them
        dtype = torch.float32 if like.dtype == np.float64 else torch.as_tensor(like[:0]).dtype
        self._rows = torch.empty((1024, *like.shape[1:]), dtype=dtype, device=device)

    @property
    def rows(self) -> Tensor:
        """What is in it, [length, ...]."""
        return self._rows[: self.length]

    def put(self, values: Array) -> None:
        """Append values [n, ...]."""
        stop = self.length + len(values)
        if stop > len(self._rows):
            larger = self._rows.new_empty((max(stop, 2 * len(self._rows)), *self._rows.shape[1:]))
            larger[: self.length] = self.rows
            self._rows = larger
        self._rows[self.length:stop] = torch.as_tensor(values)
        self.length = stop


class Replay:
    """Episodes to draw from, the last of which may still be running. One robot fills it; others have their own, see `Mixture`.

    chunk: K, actions of a decision; n_obs: H, observations that a policy looks at; gamma: discount of a step; n_step: decisions that a
    target looks ahead. A decision at step t counts the rewards of n = min(K * n_step, steps left) steps, and what followed them; its
    discount is gamma^n, or 0 where the task ended within. In a running episode only decisions with all their steps are drawn.
    """

    def __init__(self, *, chunk: int = 1, n_obs: int = 1, gamma: float = 0.99, n_step: int = 1, device: str | torch.device = "cpu") -> None:
        self.chunk, self.device, self.reach = chunk, torch.device(device), chunk * n_step
        self._history = torch.arange(1 - n_obs, 1, device=device)
        self._ahead = torch.arange(self.reach, device=device)
        self._powers = torch.tensor([gamma ** n for n in range(self.reach + 1)], dtype=torch.float32, device=device)
        self._frames: dict[str, _Column] = {}
        self._steps: dict[str, _Column] = {}
        self._start = _Column(np.zeros(1, np.int64), device)  # an episode's first step
        self._stop = _Column(np.zeros(1, np.int64), device)  # and the one after its last, so far
        self._ended = _Column(np.zeros(1, bool), device)  # by the task
        self.running, self._first = False, 0  # the newest episode's first step, once more: a GPU would have to be asked for it

    # -- filling ------------------------------------------------------------------------------------------------------------------

    def begin(self, obs: Obs) -> None:
        """An episode begins with an observation, each [...]; the one before, if it was running, is as if a clock had ended it."""
        self._put(self._frames, {key: np.asarray(value)[None] for key, value in obs.items()}, "an observation")
        self._open()

    def add(self, action: Array, reward: float, after: Obs, *, terminated: bool = False, truncated: bool = False,
            source: int = Source.POLICY) -> None:
        """One step of the running episode. action: [A], what was really sent; after: the observation that followed, each [...]."""
        if not self.running:
            raise ValueError("a step without an episode: begin one first")
        frames = {key: np.asarray(value)[None] for key, value in after.items()}
        self._append(frames, np.asarray(action)[None], np.array([reward]), np.array([source]), terminated, "a step")
        self.running = not (terminated or truncated)

    def charge(self, step: int, cost: float) -> None:
        """Take a cost off the reward of a step that is in it."""
        self._steps["reward"].rows[step] -= cost

    def put(self, moments: Iterable[Moment]) -> None:
        """Steps as a stream gives them, see `types.Stream`."""
        for moment in moments:
            step = moment.step
            if moment.first:
                self.begin(step.obs)
            self.add(step.action, step.reward, moment.after, terminated=step.terminated, truncated=step.truncated, source=step.source)

    def extend(self, episodes: Sequence[Episode]) -> None:
        """Whole episodes, in this order. Raises RealrlError for one that holds NaN or has other observations than those before."""
        for episode in episodes:
            who = f"an episode of {episode.policy!r} (seed {episode.seed})"
            self._check(self._frames, episode.obs, who)
            columns: dict[str, Array] = {"action": episode.action, "reward": episode.reward, "source": episode.source}
            self._check(self._steps, columns, who)
            self._open()
            self._append(episode.obs, episode.action, episode.reward, episode.source, episode.terminated, who)
            self.running = False

    def _open(self) -> None:
        for column, value in ((self._start, self.steps), (self._stop, self.steps), (self._ended, 0)):
            column.put(np.array([value]))
        self.running, self._first = True, self.steps

    def _append(self, frames: Mapping[str, Array], action: Array, reward: Array, source: Array, terminated: bool, who: str) -> None:
        steps: dict[str, Array] = {"action": action.astype(np.float32), "reward": reward.astype(np.float32),
                                   "source": source.astype(np.uint8)}
        self._check(self._steps, steps, who)
        self._put(self._frames, frames, who)
        self._put(self._steps, steps, who)
        self._stop.rows[-1] = self.steps
        self._ended.rows[-1] = terminated

    def _put(self, columns: dict[str, _Column], values: Mapping[str, Array], who: str) -> None:
        """All of them or none."""
        self._check(columns, values, who)
        for key, value in values.items():
            if key not in columns:
                columns[key] = _Column(value, self.device)
            columns[key].put(value)

    def _check(self, columns: Mapping[str, _Column], values: Mapping[str, Array], who: str) -> None:
        """Raises RealrlError: one NaN would spoil every weight, one row of another shape every index."""
        for key in {**columns, **values} if columns else values:
            told = list(values[key].shape[1:]) if key in values else "nothing"
            wanted = (list(columns[key].rows.shape[1:]) if key in columns else "nothing") if columns else told
            if told != wanted:
                raise RealrlError(f"{who} has {key!r} of shape {told}, those before {wanted}: leave it out, or take the same robot")
            if values[key].dtype.kind == "f" and not np.isfinite(values[key]).all():
                raise RealrlError(f"{who} holds NaN or infinity in {key!r}: mend the sensor, or leave the episode out")

    # -- drawing ------------------------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Control steps in it."""
        return self._steps["reward"].length if self._steps else 0

    @property
    def episodes(self) -> int:
        """Episodes in it, the running one included."""
        return self._start.length

    def __len__(self) -> int:
        """Decisions that can be drawn."""
        if not self.running:
            return self.steps
        return max(self.steps - self.reach + 1, self._first)

    def batch(self, index: Tensor) -> Batch:
        """The decisions that begin at the steps `index` [B]."""
        episode = torch.searchsorted(self._start.rows, index, right=True) - 1
        start, stop = self._start.rows[episode], self._stop.rows[episode]
        count = (stop - index).clamp(max=self.reach)
        now = index + episode
        frame = (start + episode)[:, None]  # an episode's first
        before, after = ((row[:, None] + self._history).clamp(min=frame) for row in (now, now + count))
        ran = self._ahead < count[:, None]
        ahead = torch.minimum(index[:, None] + self._ahead, stop[:, None] - 1)
        reward = (self._steps["reward"].rows[ahead] * ran * self._powers[:-1]).sum(1)
        over = self._ended.rows[episode] & (index + count == stop)
        act = ahead[:, : self.chunk]
        frames = {key: column.rows for key, column in self._frames.items()}
        return Batch(obs={key: rows[before] for key, rows in frames.items()}, action=self._steps["action"].rows[act], reward=reward,
                     discount=self._powers[count].masked_fill(over, 0.0), next_obs={key: rows[after] for key, rows in frames.items()},
                     valid=ran[:, : self.chunk], source=self._steps["source"].rows[act])

    def sample(self, size: int, random: torch.Generator, updates: int = 1) -> Batch:
        """Uniform batches, with replacement: `updates` of `size` rows, one after the other. Raises ValueError while there is nothing."""
        return self.batch(self._draw(len(self), size * updates, random))

    def segments(self, count: int, length: int, random: torch.Generator, *, early: tuple[int, int] = (0, 0)) -> Segment:
        """Stretches [T, B] of so many steps, drawn by a step in them; each lies within one episode, and begins with an empty memory.
        early: how many of them are drawn from how many first steps alone."""
        index = self._draw(self.steps, count - early[0], random)
        if early[0]:
            index = torch.cat([self._draw(early[1], early[0], random), index])
        episode = torch.searchsorted(self._start.rows, index, right=True) - 1
        start, stop = self._start.rows[episode], self._stop.rows[episode]
        index = torch.maximum(torch.minimum(index, stop - length), start)
        step = index + torch.arange(length, device=self.device)[:, None]
        valid, step = step < stop, torch.minimum(step, stop - 1)
        frame = torch.cat([index[None], step + 1]) + episode
        ended = self._ended.rows[episode] & (step == stop - 1) & valid
        return Segment(obs={key: column.rows[frame] for key, column in self._frames.items()}, action=self._steps["action"].rows[step],
                       reward=self._steps["reward"].rows[step] * valid, terminated=ended, first=index == start, valid=valid, frame=frame,
                       frames=self.frames)

    @property
    def frames(self) -> int:
        """Observations in it."""
        return self.steps + self.episodes

    def _draw(self, among: int, count: int, random: torch.Generator) -> Tensor:
        if not among:
            raise ValueError("nothing to draw from yet")
        return torch.randint(among, (count,), generator=random, device=self.device)


class Draws(Protocol):
    """What batches can be drawn from."""

    def sample(self, size: int, random: torch.Generator, updates: int = 1) -> Batch:
        """`updates` batches of `size` rows, one after the other."""
        ...


class Subset:
    """Some of a replay's steps, drawn evenly: indices into it, so that histories, what followed and returns are those of whole episodes."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._index = _Column(np.zeros(1, np.int64), replay.device)  # rising
        self._steps: list[int] = []  # the same on the host

    def add(self, first: int, stop: int | None = None) -> None:
        """The steps from one up to another, by default that one; behind all that are in it."""
        steps = range(first, first + 1 if stop is None else stop)
        self._index.put(np.array(steps, np.int64))
        self._steps.extend(steps)

    @property
    def steps(self) -> int:
        """Control steps in it."""
        return self._index.length

    def batch(self, index: Tensor) -> Batch:
        """The decisions that begin at its steps `index` [B], counted within it."""
        return self._replay.batch(self._index.rows[index])

    def sample(self, size: int, random: torch.Generator, updates: int = 1) -> Batch:
        """See `Replay.sample`."""
        ready = bisect_left(self._steps, len(self._replay))
        return self.batch(self._replay._draw(ready, size * updates, random))


class Mixture:
    """Several sources in exact shares of every batch, however little each holds; e.g. 50/50 of demonstrations and practice (RLPD)."""

    def __init__(self, *sides: tuple[Draws, float]) -> None:
        """sides: source and share. Raises RealrlError for shares that are not positive numbers."""
        if not sides or not all(0 < share < float("inf") for _, share in sides):
            raise RealrlError(f"shares of a mixture must be above 0, got {', '.join(str(share) for _, share in sides) or 'none'}")
        self._sides = sides

    def counts(self, size: int) -> list[int]:
        """Rows of each side in a batch: what the shares say, the rows left over going to the largest remainders."""
        total = sum(share for _, share in self._sides)
        exact = [size * share / total for _, share in self._sides]
        counts = [int(x) for x in exact]
        for i in sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])[: size - sum(counts)]:
            counts[i] += 1
        return counts

    def sample(self, size: int, random: torch.Generator, updates: int = 1) -> Batch:
        """`updates` batches of `size` rows, each mixed exactly, its sides in their order."""
        parts = [(side.sample(n, random, updates), n) for (side, _), n in zip(self._sides, self.counts(size), strict=True) if n]
        keys = set.intersection(*(set(part.obs) for part, _ in parts))

        def join(*columns: Tensor) -> Tensor:
            rows = [c.view(updates, n, *c.shape[1:]) for c, (_, n) in zip(columns, parts, strict=True)]
            return torch.cat(rows, 1).flatten(0, 1)

        batches = [part for part, _ in parts]
        return Batch(obs={k: join(*(b.obs[k] for b in batches)) for k in batches[0].obs if k in keys},
                     next_obs={k: join(*(b.next_obs[k] for b in batches)) for k in batches[0].obs if k in keys},
                     action=join(*(b.action for b in batches)), reward=join(*(b.reward for b in batches)),
                     discount=join(*(b.discount for b in batches)), valid=join(*(b.valid for b in batches)),
                     source=join(*(b.source for b in batches)))
