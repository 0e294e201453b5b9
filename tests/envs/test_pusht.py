"""PushT: exact resets, recordings that play again as they were recorded, the two observations, the error lines."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from realrl import envs
from realrl.envs import pusht
from realrl.types import Array, Obs, RealrlError

pytest.importorskip("gym_pusht", reason="needs gym-pusht (pip install 'realrl[sim]')")


@pytest.fixture(scope="module")
def world() -> Iterator[pusht.PushTEnv]:
    env = pusht.PushTEnv("pusht", "dense", pusht.HORIZON)
    yield env
    env.close()


def states(first: Obs, env: Any, actions: Array) -> Array:
    return np.stack([first["state"], *(env.step(a)[0]["state"] for a in actions)])


def wild(count: int = 60, seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 2))


def test_the_tasks_are_listed_and_say_what_they_are() -> None:
    assert {"pusht/pusht", "pusht/keypoints"} <= set(envs.tasks())
    env = envs.make("pusht/keypoints")
    assert (env.task.obs_dim, env.task.action_dim, env.task.horizon, env.task.dt) == (18, 2, 300, 0.1)
    assert env.observation_space.contains(env.reset(seed=3)[0])
    env.close()


def test_an_episode_depends_on_its_seed_alone(world: pusht.PushTEnv) -> None:
    alone = states(envs.make("pusht/pusht").reset(seed=5)[0], _started(5), wild())
    for other in (1, 2):
        states(world.reset(seed=other)[0], world, wild(30, other))
    assert np.array_equal(states(world.reset(seed=5)[0], world, wild()), alone)
    assert not np.array_equal(world.reset(seed=6)[0]["state"], alone[0])


def _started(seed: int) -> Any:
    env = envs.make("pusht/pusht", reward="dense")
    env.reset(seed=seed)
    return env


def test_reset_to_puts_the_block_where_it_is_told(world: pusht.PushTEnv) -> None:
    for angle in (0.1, 1.5, 3.0, 6.0):
        want = np.array([100, 450, 250, 200, angle])
        obs, info = world.reset_to(want)
        assert np.allclose(obs["state"], want, atol=1e-4) and info["success"] is False
    own = world._inner.reset(options={"reset_to_state": want})[0]
    assert np.abs(own[2:4] - want[2:4]).max() > 1  # gym-pusht's own goes the other way round: the reason for ours


def test_reset_to_leaves_nothing_of_the_episode_before(world: pusht.PushTEnv) -> None:
    start = [200.0, 330.0, 230.0, 260.0, 2.0]
    first = states(world.reset_to(start)[0], world, wild())
    states(world.reset(seed=9)[0], world, wild(40, 9))
    assert np.array_equal(states(world.reset_to(start)[0], world, wild()), first)


def test_actions_are_places_on_the_table(world: pusht.PushTEnv) -> None:
    for corner in ([100.0, 400.0], [400.0, 100.0]):
        world.reset_to([256, 450, 256, 256, 0.7])
        for _ in range(20):
            obs = world.step(pusht.to_action(np.array(corner)))[0]
        assert np.allclose(obs["state"][:2], corner, atol=1.0)


def test_coverage_is_the_reward_and_its_threshold_the_success(world: pusht.PushTEnv) -> None:
    info = world.reset_to([50, 50, 256, 256, np.pi / 4])[1]
    assert info["coverage"] > 0.999
    _, reward, terminated, _, info = world.step(pusht.to_action(np.array([50.0, 50.0])))
    assert reward == info["coverage"] and info["success"] is True and not terminated  # the dense reward goes on
    away = world.reset_to([50, 50, 256, 400, np.pi / 4])[1]
    assert away["coverage"] < 0.5
    assert world.step(np.array([-0.8, -0.8]))[4]["success"] is False
    sparse = pusht.PushTEnv("pusht", None, 300)
    sparse.reset_to([50, 50, 256, 256, np.pi / 4])
    _, reward, terminated, truncated, _ = sparse.step(pusht.to_action(np.array([50.0, 50.0])))
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert pusht.score(np.array([0.1, 0.475, 0.2])) == pytest.approx(0.5) and pusht.score(np.array([0.99])) == 1.0


def test_keypoints_are_the_blocks_corners(world: pusht.PushTEnv) -> None:
    seen = pusht.PushTEnv("keypoints", None, 300)
    for seed in range(4):
        state = world.reset(seed=seed)[0]["state"]
        corners = seen.reset(seed=seed)[0]["state"]
        theirs = seen._inner.get_keypoints(seen._inner._block_shapes)
        for corner in corners[2:].reshape(-1, 2):
            assert np.linalg.norm(theirs - corner, axis=1).min() < 1e-3
        assert np.allclose(pusht.keypoints(state[None])[0], corners, atol=1e-3)
        assert np.allclose(pusht._pose(corners.astype(np.float64)), state, atol=1e-3)


def test_human_episodes_play_again(shared_data: Path, world: pusht.PushTEnv) -> None:
    with np.load(shared_data / "pusht_human" / "pusht_human_lowdim.npz") as stored:
        state, action, ends = stored["state"], stored["action"], stored["episode_ends"]
    for begin, end in zip([0, *ends[:5]], ends[:5], strict=False):
        actions = pusht.to_action(action[begin:end - 1])
        again = states(world.reset_to(state[begin])[0], world, actions)
        assert np.abs(world.difference(state[begin:end], again)).max() < 2e-3  # px


def test_the_image_is_the_one_of_the_recordings(shared_data: Path, world: pusht.PushTEnv) -> None:
    formats = pytest.importorskip("realrl.data.formats")
    read = formats.read(shared_data / "pusht_human" / "pusht_cchi_v7_replay.zarr.zip", keys=("img", "state"))
    episode = next(iter(read.episodes))
    world.reset_to(episode.obs["state"][0])
    ours, theirs = world.image().astype(int), episode.obs["images.img"][0].astype(int)
    assert ours.shape == theirs.shape and world.image().dtype == np.uint8
    assert (np.abs(ours - theirs).max(-1) > 60).mean() < 0.02  # the same scene but for smoothed edges


def test_mistakes_get_one_clear_line(world: pusht.PushTEnv) -> None:
    with pytest.raises(RealrlError, match="5 finite numbers"):
        world.reset_to([1, 2, 3])
    with pytest.raises(RealrlError, match="5 finite numbers"):
        world.reset_to([1, 2, 3, 4, np.nan])
    with pytest.raises(RealrlError, match="people demonstrate it"):
        envs.expert("pusht/pusht")
    with pytest.raises(RealrlError, match="needs a seed"):
        world.reset()


def test_without_the_simulator_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gym_pusht", None)
    with pytest.raises(RealrlError, match=r"pip install 'realrl\[sim\]'"):
        envs.make("pusht/pusht")
