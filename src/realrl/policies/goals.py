"""The goals that a policy keeps: how its tasks looked when they were done, from other starts than those it will act from.

A goal of the very episode would give the answer away. So a policy is shown, in every episode, one of the ends that it was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from realrl.nets.transformer import PICTURE, Goal
from realrl.types import State

Means: TypeAlias = Literal["both", "text", "goal"]
"""By what a policy that can be shown goals knows what to do."""
KEPT = 16
"""Goals that are kept of every task."""


class GoalBank(nn.Module):
    """Up to `KEPT` goals a task, as the network sees them. tasks: how many; size: numbers of a state; cameras: what else is seen."""

    def __init__(self, tasks: int, size: int, cameras: Sequence[str]) -> None:
        super().__init__()
        self.cameras = list(cameras)
        self.count: Tensor
        self.state: Tensor
        self.pictures: Tensor
        self.register_buffer("count", torch.zeros(tasks, dtype=torch.int64))
        self.register_buffer("state", torch.zeros(tasks, KEPT, size))
        self.register_buffer("pictures", torch.zeros(tasks, KEPT, len(cameras), *PICTURE, dtype=torch.float16))

    @torch.no_grad()
    def keep(self, task: int, state: Tensor, pictures: Mapping[str, Tensor]) -> None:
        """Keep goals of a task in place of those before, evenly chosen. state: [N, D]; pictures: each [N, 16, 112]."""
        rows = torch.linspace(0, len(state) - 1, min(KEPT, len(state))).round().long()
        self.count[task] = len(rows)
        self.state[task, :len(rows)] = state[rows]
        for i, key in enumerate(self.cameras):
            self.pictures[task, :len(rows), i] = pictures[key][rows]

    def draw(self, task: int, state: State, rng: Sequence[np.random.Generator]) -> State:
        """The memory with the number of its goal [B] in it, drawn where an episode begins, and where it is told another task amid one that
        keeps fewer goals, or was shown none."""
        count = int(self.count[task])
        shown = state["goal"].tolist() if "goal" in state else [-1] * len(rng)
        drawn = [i if 0 <= i < count else int(g.integers(count)) for i, g in zip(shown, rng, strict=True)]
        return state | {"goal": torch.tensor(drawn)}

    def goal(self, task: int, number: Tensor, means: Means) -> Goal:
        """Goals of these numbers [B]."""
        rows = number.to(self.count.device)
        given, told = (torch.full_like(rows, means != other, dtype=torch.bool) for other in ("text", "goal"))
        seen = self.pictures[task, rows]
        return Goal(self.state[task, rows], {key: seen[:, i] for i, key in enumerate(self.cameras)}, given, told)
