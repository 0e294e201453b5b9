"""A policy's memory in the control loop is made in inference mode, and written into outside it: at an episode's end, by a person."""

from __future__ import annotations

import numpy as np
import torch

from realrl import envs
from realrl.cell.rollout import rollout
from realrl.generative.flow import FlowConfig
from realrl.policies.flow import FlowPolicy, FlowPolicyConfig, Told, body_of
from realrl.robots.guard import box_guard
from realrl.types import Array, Obs


class Once:
    """A person who takes over in every fifth step."""

    steps = 0

    def poll(self, obs: Obs, proposed: Array) -> Array | None:
        self.steps += 1
        return np.zeros_like(proposed) if self.steps % 5 == 0 else None


def test_plans_that_overlap_over_more_starts_than_robots_and_beside_a_person() -> None:
    env = envs.make("toy/red", horizon=12)
    torch.manual_seed(0)
    cfg = FlowPolicyConfig(plan=4, chunk=2, width=16, heads=2, expert=1, reader="words", flow=FlowConfig(steps=2, delay=2))
    policy = FlowPolicy(cfg, [body_of(env.task)], {"toy/red": Told((env.task.text,))})
    alone = list(rollout([env], policy, [box_guard(env)], range(3), greedy=True))
    again = list(rollout([env], policy, [box_guard(env)], [2], greedy=True))
    assert len(alone) == 3 and np.array_equal(alone[2].action, again[0].action), "nothing is remembered of the episode before"
    helped = list(rollout([env], policy, [box_guard(env)], range(2), greedy=True, human=Once()))
    assert all((e.source == 1).any() for e in helped)
