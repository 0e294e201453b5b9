"""Batches that are turned: every element as often as any other, observation, action and next observation together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from realrl.learn.symmetry import Turned
from realrl.types import Batch


class Rows:
    """Always the same batches."""

    def __init__(self, size: int) -> None:
        draw = torch.Generator().manual_seed(1)
        obs, following = ({"state": torch.randn(size, 1, 5, generator=draw)} for _ in range(2))
        self.batch = Batch(obs, torch.randn(size, 1, 3, generator=draw), torch.randn(size, generator=draw), torch.ones(size), following,
                           torch.ones(size, 1, dtype=torch.bool), torch.zeros(size, 1, dtype=torch.uint8))

    def sample(self, size: int, random: torch.Generator, updates: int = 1) -> Batch:
        assert size * updates == len(self.batch)
        return self.batch


def test_a_decision_is_turned_whole_and_by_every_element() -> None:
    rows = Rows(256)
    states, actions = np.stack([np.eye(5), -np.eye(5)]), np.stack([np.eye(3), np.eye(3)[[1, 2, 0]]])
    turned, plain = Turned(rows, states, actions).sample(64, torch.Generator().manual_seed(0), 4), rows.batch
    kept = (turned.obs["state"] == plain.obs["state"]).flatten(1).all(1)
    assert 90 < int(kept.sum()) < 166
    sign = torch.where(kept, 1.0, -1.0)[:, None, None]
    assert torch.equal(turned.obs["state"], plain.obs["state"] * sign)
    assert torch.equal(turned.next_obs["state"], plain.next_obs["state"] * sign)
    assert torch.equal(turned.action, torch.where(kept[:, None, None], plain.action, plain.action[..., [1, 2, 0]]))
    assert torch.equal(turned.reward, plain.reward) and torch.equal(turned.discount, plain.discount)


def test_the_same_seed_turns_the_same_rows() -> None:
    rows, group = Rows(32), np.stack([np.eye(5), -np.eye(5)])
    draws = Turned(rows, group, np.stack([np.eye(3)] * 2))
    one, two = (draws.sample(32, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one.obs["state"], two.obs["state"])


def test_an_element_that_mixes_numbers_is_refused() -> None:
    mixed = np.eye(5)
    mixed[0, 1] = 1.0
    with pytest.raises(ValueError, match="move numbers to other places"):
        Turned(Rows(32), np.stack([np.eye(5), mixed]), np.stack([np.eye(3)] * 2))
