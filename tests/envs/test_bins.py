"""Two bins: the moves one by one, what pays, and a script that carries."""

from __future__ import annotations

import numpy as np
import pytest

from realrl import envs
from realrl.cell.rollout import rollout
from realrl.envs.bins import CELL, DOWN, FORWARD, GRIP, LEFT, OWN, RIGHT
from realrl.envs.mujoco.bins import BinsEnv
from realrl.robots.guard import box_guard
from realrl.types import Array


def do(env: BinsEnv, *choices: int) -> list[float]:
    return [env.step(np.eye(6, dtype=np.float32)[c])[1] for c in choices]


def under(env: BinsEnv, number: int = 0) -> None:
    """A thing lies under the hand, which hovers in the middle of its bin."""
    env._cell, env._target = np.zeros(2, int), env._over()
    env._cell = np.zeros(2, int)
    env._move(1.0)
    at = env._free[number]
    env._data.qpos[at:at + 7] = [0.0, (2 * env._side - 1) * 0.14, 0.02, 1, 0, 0, 0]
    env._data.qvel[:] = 0


@pytest.fixture
def world() -> BinsEnv:
    env = BinsEnv("panda-one")
    env.reset(seed=1)
    return env


def test_a_thing_is_taken_carried_over_and_let_go_by_itself(world: BinsEnv) -> None:
    under(world)
    assert do(world, DOWN, GRIP) == [0.0, 1.0] and world._holds
    over = LEFT if world._side == 0 else RIGHT
    side = world._side
    assert do(world, DOWN, over, over, over) == [0.0, 0.0, 0.0, 10.0], "up, to the edge, and across"
    thing = world._data.qpos[world._free[0]:world._free[0] + 3]
    assert (thing[1] > 0) == (side == 0) and abs(abs(thing[1]) - 0.14) < 0.115 and thing[2] < 0.03, "it lies in the other bin"
    assert not world._holds and not world._shut and world._up and world._side == 1 - side
    assert not world.succeeded and world._carried == 1


def test_to_let_go_before_costs(world: BinsEnv) -> None:
    under(world)
    assert do(world, DOWN, GRIP, DOWN, GRIP) == [0.0, 1.0, 0.0, -1.0]
    assert world._data.qpos[world._free[0] + 2] < 0.03, "it fell"


def test_nothing_is_grasped_where_nothing_is_and_the_hand_stays_down(world: BinsEnv) -> None:
    under(world)
    world._data.qpos[world._free[0] + 1] *= -1  # into the other bin
    assert do(world, DOWN, GRIP, DOWN) == [0.0, 0.0, 0.0]
    assert not world._up, "up it goes only with something in it"
    over = LEFT if world._side == 0 else RIGHT
    side = world._side
    do(world, GRIP, over, over, over, over)
    assert world._side == side, "it does not leave the bin without anything"


def test_what_the_robot_knows_of_itself(world: BinsEnv) -> None:
    under(world)
    obs, *_ = world.step(np.eye(6, dtype=np.float32)[FORWARD])
    state = obs["state"]
    assert state.shape == (OWN + 3,) and state[0] == pytest.approx(1.0, abs=0.1) and state[3] == pytest.approx(1.0, abs=0.02), "cells"
    assert (state[4:6].sum(), state[6:9].tolist()) == (1.0, [1.0, 0.0, 1.0])
    assert world.task.discrete and world.task.action_dim == 6


def test_things_are_seen_from_the_hand_the_nearest_first() -> None:
    env = BinsEnv("panda")
    env.reset(seed=3)
    for choice in (FORWARD, LEFT, FORWARD, RIGHT):
        obs, *_ = env.step(np.eye(6, dtype=np.float32)[choice])
        hand, things = obs["state"][:3] * CELL, obs["state"][OWN:].reshape(3, 3) * CELL
        far = np.linalg.norm(things[:, :2], axis=1)
        assert (far[1:] >= far[:-1]).all(), "whichever they are"
        there = np.array([env._data.qpos[at:at + 3] for at in env._free])
        assert np.allclose(sorted((hand + things).tolist()), sorted(there.tolist()), atol=1e-5)


def test_its_readings_have_names() -> None:
    for task in ("bins/panda", "bins/panda-one"):
        env = envs.make(task)
        assert len(envs.state_names(task)) == env.task.obs_dim
        env.close()
    assert envs.state_names("bins/panda")[OWN - 1:OWN + 1] == ("up", "thing 1 x") and envs.state_names("toy/reach") == ()


def test_the_script_carries_and_the_same_seed_is_the_same_episode() -> None:
    env = envs.make("bins/panda", horizon=40)
    one, two = (next(rollout([env], envs.expert("bins/panda"), [box_guard(env)], [7], greedy=True)) for _ in range(2))
    assert one.reward.sum() > 25 and np.array_equal(one.obs["state"], two.obs["state"]) and one.success.any()
    assert set(np.unique(one.reward)) == {0.0, 1.0, 10.0}
    env.close()


def test_chance_hardly_ever_grasps() -> None:
    env = BinsEnv("panda")
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    found: list[Array] = [np.array(do(env, int(rng.integers(6)))) for _ in range(100)]
    assert np.concatenate(found).sum() < 5
