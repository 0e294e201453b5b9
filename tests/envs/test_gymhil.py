"""gym-hil's cube: its script picks it, a seed is an episode, what ends one, the package's own numbers, eyes, and where it is missing."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import numpy as np
import pytest

from realrl import envs
from realrl.cell.rollout import rollout
from realrl.envs import gymhil
from realrl.robots.guard import box_guard
from realrl.scene import RandomiseConfig, SightConfig
from realrl.types import RealrlError

needs = pytest.mark.skipif(find_spec("gym_hil") is None, reason="needs gym-hil: pip install --no-deps gym-hil")


@needs
def test_the_script_picks_it_and_a_seed_is_an_episode() -> None:
    task = "gymhil/pick-cube-anywhere"
    env, other = envs.make(task), envs.make(task)
    found = list(rollout([env], envs.expert(task), [box_guard(env)], [1, 2, 1], greedy=True))
    (elsewhere,) = rollout([other], envs.expert(task), [box_guard(other)], [2], greedy=True)
    assert all(e.succeeded and e.terminated and e.reward.sum() == 1 and 10 < len(e) < 50 for e in found)
    assert np.array_equal(found[0].obs["state"], found[2].obs["state"]) and np.array_equal(found[1].obs["state"], elsewhere.obs["state"])
    assert not np.array_equal(found[0].obs["state"][0], found[1].obs["state"][0])
    assert envs.progress(task)(found[0].obs["state"][-1]) > envs.progress(task)(found[0].obs["state"][0]) + 50
    assert env.task.gripper and set(np.unique(found[0].action[:, 3])) == {0.0, 1.0}


@needs
def test_what_the_package_observes_and_what_ends_an_episode() -> None:
    env = envs.make("gymhil/pick-cube", reward="dense", horizon=3)
    state = env.reset(seed=4)[0]["state"]
    assert np.array_equal(state, env.reset(seed=5)[0]["state"]), "the cube always lies at one place, as the package has it"
    assert np.allclose(state[18:21] * 0.1 + gymhil.MIDDLE, [0.5, 0, state[20] * 0.1 + 0.1]) and np.abs(state[:7]).max() < 1e-6
    assert np.allclose(state[21:24] * gymhil.NEAR, (state[18:21] - state[15:18]) * 0.1, atol=1e-6)
    before = state[15:18]
    for command, grip in ((1.0, 1.0), (0.3, 1.0), (-1.0, 0.0)):  # shut, stay, open
        after, reward, _, over, _ = env.step(np.array([1.0, 0.0, 0.0, command]))
        assert after["state"][14] == grip and 0 < reward < 1
    assert over and after["state"][15] > before[0] + 0.2, "in 10 cm"
    world = env._sim  # type: ignore[attr-defined]
    env.reset(seed=0)
    world.data.joint("block").qpos[1] = 0.3
    assert env.step(np.zeros(4))[2:4] == (True, False) and not env.succeeded, "a cube that is gone ends it"


@needs
def test_it_can_be_looked_at() -> None:
    env = envs.make("gymhil/pick-cube", sight=SightConfig(kind="rgb", height=64, width=64, cameras=("front", "handcam_rgb")))
    obs, _ = env.reset(seed=0)
    assert obs["images.front"].std() > 5 and obs["images.handcam_rgb"].shape == (64, 64, 3) and obs["state"].shape == (18,)
    env.close()
    with pytest.raises(RealrlError, match="the package's own scene"):
        envs.make("gymhil/pick-cube", randomise=RandomiseConfig(mass=0.2))


def test_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gym_hil", None)
    with pytest.raises(RealrlError, match=r"gymhil/pick-cube: its simulator is not installed .*pip install --no-deps gym-hil"):
        envs.make("gymhil/pick-cube")
    with pytest.raises(RealrlError, match="its expert is a script and takes no file"):
        envs.expert("gymhil/pick-cube", "x")
