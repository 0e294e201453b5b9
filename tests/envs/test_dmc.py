"""The control suite: frames, rewards and starts are the package's own, a seed is an episode, and it can be looked at."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from realrl import envs
from realrl.cell.rollout import rollout
from realrl.envs import dmc
from realrl.envs.mujoco import gl
from realrl.robots.guard import box_guard
from realrl.scene import RandomiseConfig, SightConfig
from realrl.types import Array, Obs, Plan, RealrlError, State

needs = pytest.mark.skipif(not all(find_spec(name) for name in ("dm_control", "dm_env", "lxml")),
                           reason="needs the control suite: pip install --no-deps dm_control dm_env lxml")
needs_gl = pytest.mark.skipif(not (gl.egl_works() or gl.osmesa_works()), reason=f"needs OpenGL: apt-get install {gl.PACKAGES}")


@needs
def test_nothing_is_said_of_a_display_that_is_not_there() -> None:
    bare = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    child = subprocess.run([sys.executable, "-c", "from realrl import envs; envs.make('dmc/cheetah-run')"], env=bare, capture_output=True)
    assert (child.returncode, child.stderr) == (0, b"")


class Kicking:
    """Full force this way and that, each in a step's turn."""

    name, chunk, n_obs = "kicking", 1, 1

    def start(self, batch: int) -> State:
        return {"t": np.zeros(batch)}

    def act(self, obs: Obs, state: State, *, greedy: bool, rng: list[np.random.Generator]) -> tuple[Plan, State]:
        action: Array = np.stack([np.sin(t + np.arange(6)) for t in state["t"]]).astype(np.float32)
        return Plan(action[:, None]), {"t": state["t"] + 1}


@needs
@pytest.mark.parametrize("name", dmc.names())
def test_it_is_the_packages_own_two_frames_at_a_time(name: str) -> None:
    from dm_control import suite
    env = envs.make(f"dmc/{name}", horizon=20)
    obs, _ = env.reset(seed=3)
    theirs = suite.load(*name.split("-"), {"random": np.random.RandomState(np.random.Generator(np.random.PCG64(3)).bit_generator)})
    first = theirs.reset()
    assert np.array_equal(obs["state"], np.concatenate([np.ravel(v) for v in first.observation.values()]).astype(np.float32))
    for t in range(20):
        action = np.sin(t + np.arange(env.task.action_dim))
        obs, reward, terminated, truncated, info = env.step(action)
        frames = [theirs.step(action) for _ in range(2)]
        assert reward == pytest.approx(sum(f.reward for f in frames)) and 0 <= reward <= 2
        assert np.allclose(obs["state"], np.concatenate([np.ravel(v) for v in frames[1].observation.values()]), atol=1e-6)
        assert not terminated and truncated == (t == 19) and not info["success"]
    assert env.task.dt == pytest.approx(2 * theirs.control_timestep())
    env.close()


@needs
def test_an_episode_is_a_thousand_frames_and_its_seeds() -> None:
    env, other = envs.make("dmc/walker-walk"), envs.make("dmc/walker-walk")
    first, second, again = rollout([env], Kicking(), [box_guard(env)], [3, 4, 3], greedy=True)
    (elsewhere,) = rollout([other], Kicking(), [box_guard(other)], [3], greedy=True)
    assert len(first) == 500 and not first.terminated and 0 < first.reward.sum() < 1000
    for episode in (again, elsewhere):
        assert np.array_equal(first.obs["state"], episode.obs["state"]) and np.array_equal(first.reward, episode.reward)
    assert not np.array_equal(first.obs["state"][0], second.obs["state"][0])


@needs
@needs_gl
def test_it_can_be_looked_at() -> None:
    env = envs.make("dmc/walker-walk", sight=SightConfig(kind="rgb", height=48, width=48))
    plain = envs.make("dmc/walker-walk")
    (obs, _), (blind, _) = env.reset(seed=1), plain.reset(seed=1)
    key = next(iter(env.task.senses))
    assert obs[key].shape == (48, 48, 3) and obs[key].std() > 5 and np.array_equal(obs["privileged"], blind["state"])
    env.close()


@needs
def test_mistakes_get_one_line() -> None:
    for told, said in (({"reward": "sparse"}, "no 'sparse' reward"), ({"randomise": RandomiseConfig(mass=0.2)}, "published ones"),
                       ({"sight": SightConfig(kind="pointcloud")}, "dmc/walker-walk")):
        with pytest.raises(RealrlError, match=said):
            envs.make("dmc/walker-walk", **told)
    with pytest.raises(RealrlError, match="no scripted expert"):
        envs.expert("dmc/walker-walk")


def test_without_its_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "dm_control", None)
    with pytest.raises(RealrlError, match=r"dmc/walker-walk: its simulator is not installed .*pip install --no-deps dm_control"):
        envs.make("dmc/walker-walk")
