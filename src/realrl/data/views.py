"""Episodes as contiguous tensors on the training device: transitions, action chunks and their discounts, by vectorised gathers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from realrl.types import Array, Batch, Episode, RealrlError


@dataclass(frozen=True)
class Encoded:
    """Decisions whose observations were encoded once: what critics, model, gate and student share while the encoder stands still.

    cond, next_cond: [N, C] encoded observations before and after; action: [N, K, A]; valid: [N, K] bool; reward, discount, returns: [N]
    as in `Batch`, returns to the end of the recording; episode: [N] which one; first, last: [N] bool, of its episode.
    """

    cond: Tensor
    next_cond: Tensor
    action: Tensor
    valid: Tensor
    reward: Tensor
    discount: Tensor
    returns: Tensor
    episode: Tensor
    first: Tensor
    last: Tensor
    gamma: float

    def __len__(self) -> int:
        return len(self.reward)


class ChunkView:
    """All decisions of a set of episodes as one table.

    A decision at step t covers n = min(K, steps left) actions. Its reward is sum_{j<n} gamma^j r_{t+j} and its discount gamma^n,
    or 0 if the task ended inside it; a time limit keeps the discount (RL-100, section 1). `every="step"` lists a decision at each
    step (imitation and critics profit from the overlap), `every="plan"` only where plans began (on-policy learning).
    A plan that a person cut short counts the steps that ran. Padding repeats the last action and is not `valid`.
    """

    def __init__(self, episodes: Sequence[Episode], *, chunk: int, n_obs: int, gamma: float, every: str = "step",
                 device: str | torch.device = "cpu") -> None:
        """Raises RealrlError without episodes, on numbers that are not finite and, by plan, when a plan ran longer than `chunk`."""
        if not episodes:
            raise RealrlError("no episodes to learn from: record or import some first (realrl data demos)")
        for number, episode in enumerate(episodes):
            _check_finite(episode, number)
        self.chunk, self.gamma, self.cut = chunk, gamma, all(e.cut for e in episodes)
        lengths = np.array([len(e) for e in episodes])
        first_frame = np.concatenate([[0], np.cumsum(lengths + 1)[:-1]])
        first_step = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        tables = [_decisions(e, chunk, gamma, every) for e in episodes]
        which = np.repeat(np.arange(len(episodes)), [len(t) for t, *_ in tables])
        start, count, reward, discount, returns = (np.concatenate(column) for column in zip(*tables, strict=True))
        reach = np.arange(chunk)[None]
        history = np.arange(1 - n_obs, 1)[None]

        def frame(t: Array) -> Array:
            rows: Array = first_frame[which, None] + np.maximum(t[:, None] + history, 0)
            return rows

        def put(x: Array) -> Tensor:
            return torch.as_tensor(x).to(device)

        self.frames = {k: put(np.concatenate([e.obs[k] for e in episodes])) for k in episodes[0].obs}
        self.actions = put(np.concatenate([e.action for e in episodes]))
        self.sources = put(np.concatenate([e.source for e in episodes]))
        self._obs, self._next = put(frame(start)), put(frame(start + count))
        self._act = put(first_step[which, None] + start[:, None] + np.minimum(reach, count[:, None] - 1))
        self.valid = put(reach < count[:, None])
        self.reward, self.discount = put(reward.astype(np.float32)), put(discount.astype(np.float32))
        self.returns = put(returns.astype(np.float32))  # discounted, to the end of the recording, nothing bootstrapped
        self.episode = put(which)
        self.start = put(start)
        self.last = put(np.append(which[1:] != which[:-1], True))
        self.first = put(np.insert(which[1:] != which[:-1], 0, True))

    def __len__(self) -> int:
        return len(self.reward)

    def _at(self, rows: Tensor) -> dict[str, Tensor]:
        """Frames at these rows [...]; CUDA does not index 16-bit depth as what it is."""
        return {k: v.view(torch.int16)[rows].view(v.dtype) if v.dtype == torch.uint16 else v[rows] for k, v in self.frames.items()}

    @torch.no_grad()
    def encoded(self, features: Callable[[Mapping[str, Tensor]], Tensor],
                drawn: Callable[[Tensor, Tensor], Tensor] | None = None) -> Encoded:
        """The decisions as `features` sees their frames: [F, ...] -> [F, E], asked once for every frame that a decision looks at; a
        condition [C] is H of them in a row. drawn: what a policy's network draws for chunks [N, K, A] from states [N, H, D], where that is
        not the chunk itself."""
        used, place = torch.unique(torch.cat([self._obs, self._next]), return_inverse=True)
        seen = features(self._at(used))
        now, after = place.tensor_split(2)
        action = self.actions[self._act] if drawn is None else drawn(self.actions[self._act], self.frames["state"][self._obs])
        return Encoded(seen[now].flatten(1), seen[after].flatten(1), action, self.valid, self.reward, self.discount,
                       self.returns, self.episode, self.first, self.last, self.gamma)

    def rows(self, index: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Rows [B, H] of `frames` before and after the decisions at `index`; episodes lie one after the other, T + 1 rows each."""
        return self._obs[index], self._next[index]

    def chunks(self, index: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """(actions [B, K, A], which of them ran [B, K]) of the decisions at `index`."""
        return self.actions[self._act[index]], self.valid[index]

    def batch(self, index: Tensor | slice = slice(None)) -> Batch:
        """The decisions at `index` [B] (all of them by default)."""
        (now, after), act = self.rows(index), self._act[index]
        return Batch(obs=self._at(now), action=self.actions[act], reward=self.reward[index], discount=self.discount[index],
                     next_obs=self._at(after), valid=self.valid[index], source=self.sources[act])

    def sample(self, size: int, generator: torch.Generator) -> Batch:
        """A uniform batch, with replacement."""
        return self.batch(torch.randint(len(self), (size,), generator=generator, device=self.reward.device))


def _check_finite(episode: Episode, number: int) -> None:
    """One NaN would silently turn every weight into NaN."""
    for name, values in {**episode.obs, "action": episode.action, "reward": episode.reward}.items():
        if values.dtype.kind != "f":
            continue
        bad = ~np.isfinite(values).reshape(len(values), -1).all(1)
        if bad.any():
            raise RealrlError(f"{episode.task}: episode {number} of {episode.policy!r} (seed {episode.seed}) holds NaN or infinity in "
                              f"{name!r} at step {int(bad.argmax())}: leave it out, `realrl data check DIR` lists all of them")


def _decisions(episode: Episode, chunk: int, gamma: float, every: str) -> tuple[Array, Array, Array, Array, Array]:
    """(start, count, reward, discount, return to the episode's end) of an episode's decisions, each [N]."""
    length = len(episode)
    if every == "step":
        start = np.arange(length)
        stop = np.minimum(start + chunk, length)
    else:
        start = np.flatnonzero(episode.starts_plan)
        stop = np.append(start[1:], length)
    count = stop - start
    if count.max() > chunk:
        raise RealrlError(f"{episode.task}: a recorded plan ran {count.max()} steps but the view takes chunks of {chunk}: "
                          "give the chunk it was recorded with")
    padded = np.concatenate([episode.reward.astype(np.float64), np.zeros(chunk)])
    ran = np.arange(chunk) < count[:, None]
    reward = (padded[start[:, None] + np.arange(chunk)] * ran) @ gamma ** np.arange(chunk)
    discount = gamma ** count.astype(np.float64)
    if episode.terminated:
        discount[stop == length] = 0.0
    backwards = accumulate(episode.reward[::-1].tolist(), lambda after, now: now + gamma * after)
    to_go = np.array(list(backwards), np.float64)[::-1]
    return start, count, reward, discount, to_go[start]


def continue_chunks(action: Tensor, valid: Tensor, random: torch.Generator) -> Tensor:
    """Chunks [B, K, A] whose unused tail goes on like another chunk, picked at random, instead of repeating the last action.

    Only a chunk that ended the task is cut, so a constant tail would give the ending away to whatever learns from chunks, and a
    real policy's chunks, which have none, would seem not to end it. valid: [B, K] bool.
    """
    donors = valid.all(1).nonzero().squeeze(-1)
    if not len(donors):
        return action
    donor = action[donors[torch.randint(len(donors), (len(action),), generator=random, device=action.device)]]
    rows, last = torch.arange(len(action), device=action.device), (valid.sum(1) - 1).clamp(min=0)
    tail = action[rows, last][:, None] + donor - donor[rows, last][:, None]
    return torch.where(valid[..., None], action, tail.clamp(-1.0, 1.0))
