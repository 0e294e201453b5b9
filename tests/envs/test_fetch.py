"""Fetch: its scripts solve its tasks, a seed is an episode that does not begin solved, and it can be looked at."""

from __future__ import annotations

import numpy as np
import pytest

from realrl import envs
from realrl.cell.rollout import rollout
from realrl.robots.guard import box_guard
from realrl.scene import RandomiseConfig, SightConfig
from realrl.types import RealrlError


@pytest.mark.parametrize("name", ["reach", "push", "pick-place"])
def test_the_script_solves_it_and_a_seed_is_an_episode(name: str) -> None:
    task = f"fetch/{name}"
    env, other = envs.make(task), envs.make(task)
    found = list(rollout([env], envs.expert(task), [box_guard(env)], [*range(12), 3], greedy=True))
    (elsewhere,) = rollout([other], envs.expert(task), [box_guard(other)], [3], greedy=True)
    assert sum(e.succeeded for e in found) >= 12 and np.mean([len(e) for e in found]) > 2
    assert np.array_equal(found[3].obs["state"], found[12].obs["state"]) and np.array_equal(found[3].obs["state"], elsewhere.obs["state"])
    assert not np.array_equal(found[3].obs["state"][0], found[4].obs["state"][0])


def test_no_start_is_solved_already() -> None:
    env = envs.make("fetch/push")
    for seed in range(40):
        state = env.reset(seed=seed)[0]["state"]
        assert np.linalg.norm(state[3:6] - state[-3:]) > 0.05


def test_it_can_be_looked_at_and_the_goal_is_seen() -> None:
    env = envs.make("fetch/pick-place", sight=SightConfig(kind="rgb", height=64, width=64))
    obs, _ = env.reset(seed=1)
    (key,) = env.task.senses
    assert obs[key].shape == (64, 64, 3) and obs["state"].shape == (10,) and obs["privileged"].shape == (28,)
    seen = obs[key].astype(int)
    assert ((seen[..., 0] > 120) & (seen[..., 1] < 80) & (seen[..., 2] < 80)).any(), "the red ball"
    env.close()
    with pytest.raises(RealrlError, match="differs from start to start"):
        envs.make("fetch/reach", randomise=RandomiseConfig(mass=0.2))
