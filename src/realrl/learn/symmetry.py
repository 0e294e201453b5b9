"""What is learned in one direction holds in the others: batches turned and mirrored as the work itself may be.

Every decision of a batch is seen through an element of a group, drawn evenly: observation, action and next observation are turned together,
what it paid stays. It shows nothing that did not happen, if the work looks the same so turned.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from realrl.learn.replay import Draws
from realrl.types import Array, Batch


class Turned:
    """`draws`, every decision seen through an element of a group. states [G, n, n], actions [G, a, a]: what an element makes of `state` and
    of an action; it moves numbers to other places and changes signs, no more. Raises ValueError for one that does anything else."""

    def __init__(self, draws: Draws, states: Array, actions: Array) -> None:
        self._draws = draws
        self._states, self._actions = _Moves(states), _Moves(actions)

    def sample(self, size: int, random: torch.Generator, updates: int = 1) -> Batch:
        """See `Replay.sample`."""
        batch = self._draws.sample(size, random, updates)
        which = torch.randint(len(self._states.source), (len(batch),), generator=random, device=batch.action.device)
        turned = [{**obs, "state": self._states(obs["state"], which)} for obs in (batch.obs, batch.next_obs)]
        return replace(batch, obs=turned[0], next_obs=turned[1], action=self._actions(batch.action, which))


class _Moves:
    """Elements [G, n, n] that move numbers and change signs. source: where each number comes from [G, n]; sign [G, n]. (Rows of thousands
    of decisions are gathered in a hundredth of the time that as many matrix products take.)"""

    def __init__(self, elements: Array) -> None:
        size = np.abs(elements)
        if not (np.isin(size, (0.0, 1.0)).all() and (size.sum(1) == 1).all() and (size.sum(2) == 1).all()):
            raise ValueError("an element of a group does more than to move numbers to other places and to change their signs")
        self.source = torch.from_numpy(size.argmax(2))
        self.sign = torch.from_numpy(elements.sum(2)).float()

    def __call__(self, rows: Tensor, which: Tensor) -> Tensor:
        """rows [B, T, n], each seen through the element [B]."""
        self.source, self.sign = self.source.to(rows.device), self.sign.to(rows.device)
        return rows.take_along_dim(self.source[which][:, None], -1) * self.sign[which][:, None]
