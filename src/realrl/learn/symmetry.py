"""What is learned in one direction holds in the others: batches turned and mirrored as the work itself may be.

Every decision of a batch is seen through an element of a group, drawn evenly: observation, action and next observation are turned together,
what it paid stays. It shows nothing that did not happen, if the work looks the same so turned.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from realrl.learn.replay import Draws
from realrl.types import Array, Batch


class Turned:
    """`draws`, every decision seen through an element of a group. states [G, n, n], actions [G, a, a]: what an element makes of `state` and
    of an action."""

    def __init__(self, draws: Draws, states: Array, actions: Array) -> None:
        self._draws = draws
        self._states, self._actions = torch.from_numpy(states).float(), torch.from_numpy(actions).float()

    def sample(self, size: int, random: torch.Generator, updates: int = 1) -> Batch:
        """See `Replay.sample`."""
        batch = self._draws.sample(size, random, updates)
        place = batch.action.device
        which = torch.randint(len(self._states), (len(batch),), generator=random, device=place)
        states, actions = self._states.to(place)[which], self._actions.to(place)[which]
        # rows are [history, numbers]: a row vector's product with the transpose
        turned = [{**obs, "state": obs["state"] @ states.mT} for obs in (batch.obs, batch.next_obs)]
        return replace(batch, obs=turned[0], next_obs=turned[1], action=batch.action @ actions.mT)
