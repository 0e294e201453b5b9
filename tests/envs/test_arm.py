"""The simulated arms: their script solves their tasks, starts belong to their seeds, no command pulls harder than it may."""

from __future__ import annotations

import pickle
from functools import partial

import numpy as np
import pytest

from realrl import envs
from realrl.cell.rollout import rollout
from realrl.envs.mujoco.arm import CLIP, STIFFNESS, ArmWorld
from realrl.robots.guard import box_guard
from realrl.types import RealrlError


@pytest.mark.parametrize("task", ["arm/panda-reach", "arm/panda-pick", "arm/ur5e-pick"])
def test_the_script_solves_it_and_a_seed_is_an_episode(task):
    env = envs.make(task)
    first, second, again = rollout([env], envs.expert(task), [box_guard(env)], [3, 4, 3], greedy=True)
    assert first.succeeded and second.succeeded and first.terminated
    assert np.array_equal(first.obs["state"], again.obs["state"]) and not np.array_equal(first.obs["state"][0], second.obs["state"][0])


def test_a_command_through_the_table_pushes_with_no_more_than_the_spring_may():
    world = ArmWorld()
    world.reset()
    world.setpoint = np.array([0.4, 0.15, -1.0, 0.08])
    for _ in range(1500):
        world.step()
    assert 5 < np.linalg.norm(world.force) < STIFFNESS * CLIP * 1.5 and np.isfinite(world.data.qpos).all()


def test_it_says_what_it_has_not():
    from realrl.scene import RandomiseConfig, SightConfig
    with pytest.raises(RealrlError, match="cameras"):
        envs.make("arm/panda-reach", sight=SightConfig(kind="rgb"))
    with pytest.raises(RealrlError):
        envs.make("arm/panda-reach", randomise=RandomiseConfig(mass=0.2))


def test_an_elbow_that_was_pushed_aside_comes_back_and_the_hand_stays():
    """Seven joints leave the hand one motion too many; an episode begins where the one before ended, and nothing else would undo it."""
    world = ArmWorld("panda", shown=False)
    world.reset()
    tip = world.sensed().tip
    world.step()
    idle = world._idle
    world.data.qpos[:7] += 0.3 * idle
    for _ in range(1000):
        world.step()
    assert abs(idle @ (world.data.qpos[:7] - world.home)) < 0.05
    assert np.linalg.norm(world.sensed().tip - tip) < 0.01


@pytest.mark.parametrize("task", ["arm/panda-reach", "arm/ur5e-pick"])
def test_who_looks_on_sees_how_near_it_is(task: str) -> None:
    """Also in a process of its own, which is sent what it is measured by."""
    progress = pickle.loads(pickle.dumps(envs.progress(task)))
    env = envs.lagged(partial(envs.make, task), 3, 0)
    episode = next(rollout([env], envs.expert(task), [box_guard(env)], [3], greedy=True))
    way = [progress(state) for state in episode.obs["privileged"]]
    assert episode.succeeded and way[0] < -50 and way[-1] > -30 and max(np.diff(way)) < 30, "mm, whatever stands behind"
    assert pickle.loads(pickle.dumps(envs.progress("toy/obstacle")))(np.zeros(3)) == 0.0, "where nobody wrote it down"
