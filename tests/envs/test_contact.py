"""The peg: what is sent to the hand and felt by it, against the laws written out; starts, success, and what is seen of the slot."""

from __future__ import annotations

import math
from typing import Any

import mujoco
import numpy as np
import pytest

from realrl import envs
from realrl.cell.rollout import rollout
from realrl.envs import contact
from realrl.envs.mujoco import peg
from realrl.robots.guard import box_guard
from realrl.scene import SightConfig
from realrl.types import Array, RealrlError

DOWN = np.array([0, 0, -1.0, 0, 0, 0])
HELD = [name for name, level in contact.LEVELS.items() if not level.picks]


def world(name: str = "peg", seed: int = 3) -> peg.PegEnv:
    env = peg.PegEnv(name)
    env.reset(seed=seed)
    return env


def put(env: peg.PegEnv, aside: float, height: float) -> None:
    """The hand at rest, turned as the slot is, so far off its middle along its first axis, so high over its mouth."""
    data, turn = env._data, env._turn
    data.qpos[:] = [env._at[0] + math.cos(turn) * aside, env._at[1] + math.sin(turn) * aside, height, turn, 0, 0]
    data.qvel[:] = 0


def press(env: peg.PegEnv, steps: int = 20) -> dict[str, Any]:
    for _ in range(steps):
        _, _, terminated, _, info = env.step(DOWN)
        if terminated:
            break
    return {**info, "steps": env._t}


def test_an_episode_depends_on_its_seed_alone() -> None:
    env, other = world(), world("peg", 9)
    actions = np.random.default_rng(0).uniform(-1, 1, (12, 6))

    def played(e: peg.PegEnv) -> Array:
        return np.stack([e.reset(seed=5)[0]["privileged"], *(e.step(a)[0]["privileged"] for a in actions)])

    assert np.array_equal(played(env), played(other))
    assert not np.array_equal(env.reset(seed=6)[0]["state"], env.reset(seed=5)[0]["state"])


@pytest.mark.parametrize("name", HELD)
def test_starts_are_as_the_table_says(name: str) -> None:
    env, level = peg.PegEnv(name), contact.LEVELS[name]
    wrong, turns = [], []
    for seed in range(60):
        env.reset(seed=seed)
        x, y, z, *turn = env._data.qpos
        assert abs(x) < 0.01 and abs(y) < 0.01 and 0.025 < z < 0.045 and np.abs(turn).max() < 0.05
        assert np.abs(env._at[:2]).max() <= 0.02 and abs(env._turn) <= level.turn
        wrong.append(env._wrong)
        turns.append(env._wrong_turn)
    assert np.abs(np.array(wrong)[:, :2]).max() <= 2 * level.error
    assert 0.7 < np.std(np.array(wrong)[:, :2]) / level.error < 1.1 and 0.01 < np.std(turns) < 0.03
    assert env._model.geom("peg").friction[0] == level.friction and env.task.horizon == 100


def test_the_spring_is_clipped_in_every_physics_step() -> None:
    """The same episode with the law written out between physics steps: pull = clip(kp (target - at)), less kd times the speed."""
    env = world()
    data, model = env._data, env._model
    by_hand = mujoco.MjData(model)
    by_hand.qpos[:] = data.qpos
    assert model.opt.timestep <= 0.002 and env._substeps * model.opt.timestep == pytest.approx(env.task.dt)
    most = np.array([15.0] * 3 + [3.0] * 3)
    for action in ([1.0, 0.3, 0, 0, 0, 1], [-1, -1, -1, 1, -1, 0], [0, 0, -1, 0, 0, 0], [0, 0, -1, 0, 0, 0]):
        env.step(np.array(action))
        target, by_hand.ctrl[:] = data.ctrl.copy(), 0.0
        for _ in range(env._substeps):
            stretch = np.array([2000.0] * 3 + [150.0] * 3) * (target - by_hand.qpos)
            by_hand.ctrl[:] = target
            mujoco.mj_step(model, by_hand)
            assert np.allclose(by_hand.actuator_force, np.clip(stretch, -most, most), atol=1e-6)
    assert np.allclose(by_hand.qpos, data.qpos, atol=1e-9)


def test_an_action_goes_so_far_in_the_hands_own_heading() -> None:
    env = world()
    env._data.qpos[:], env._data.qvel[:] = [0, 0, 0.04, 0.5, 0, 0], 0.0
    env.step(np.array([0.5, 0, 0, 0, 0, 0.5]))
    moved = env._data.qpos[:2] / 0.004
    assert moved == pytest.approx([math.cos(0.5), math.sin(0.5)], abs=0.08)  # a hundredth of a second is missing to the target
    assert env._data.qpos[3] - 0.5 == pytest.approx(0.024, abs=0.003)
    for _ in range(30):
        env.step(np.array([1.0, 0, 1, 0, 1, 0]))
    at = env._data.qpos
    assert np.abs(at[:2]).max() <= peg.SIDE + 1e-3 and at[2] <= peg.HIGH + 1e-3 and at[4] <= peg.LEAN + 1e-3


def test_it_goes_in_where_it_fits_and_nowhere_else() -> None:
    env = world()
    put(env, 0.0, 0.003)
    inside = press(env)
    assert inside["success"] and inside["depth"] >= 15 and inside["steps"] <= 4
    env.reset(seed=3)
    put(env, 0.003, 0.003)
    beside = press(env)
    assert not beside["success"] and beside["depth"] < 0.5
    assert beside["force"] == pytest.approx(15.0, abs=0.5), "the spring's limit, and no more"
    least = min(env._data.contact.dist)
    assert -5e-5 < least <= 0, "contacts are stiff: a twentieth of a millimetre at most"


def test_what_is_felt_is_the_contacts_forces_in_the_hands_frame() -> None:
    """Against the sum over MuJoCo's contacts, about the peg's tip."""
    env = world()
    put(env, 0.004, 0.001)
    env._data.qpos[4:] = 0.03, -0.05
    for _ in range(4):
        env.step(np.array([0.3, 0.2, -1, 0, 0, 0.4]))
    data, model = env._data, env._model
    yaw, pitch, roll = data.qpos[3:]
    # what a step leaves behind belongs to the state before its last physics step; compute both at the state that is there
    mujoco.mj_forward(model, data)
    found = env._wrench(math.cos(yaw), math.sin(yaw), pitch, roll)
    force, torque, hand = np.zeros(3), np.zeros(3), model.body("hand").id
    for i in range(data.ncon):
        c, local = data.contact[i], np.zeros(6)
        mujoco.mj_contactForce(model, data, i, local)
        sign = 1.0 if model.geom_bodyid[c.geom2] == hand else -1.0
        world_force = sign * c.frame.reshape(3, 3).T @ local[:3]
        force += world_force
        torque += np.cross(c.pos - data.body("hand").xpos, world_force)
    turn = data.body("hand").xmat.reshape(3, 3)
    assert data.ncon and np.linalg.norm(force) > 5
    assert np.allclose(found, [*(turn.T @ force), *(turn.T @ torque)], atol=1e-6)


def test_the_policy_sees_the_slot_where_it_is_not() -> None:
    env = world()
    seen = []
    for _ in range(20):
        obs, *_ = env.step(np.zeros(6))
        seen.append(0.02 * obs["state"][:3] - obs["privileged"][contact.TRUTH][:3])
    yaw = env._data.qpos[3]
    c, s = math.cos(yaw), math.sin(yaw)
    wrong = [c * env._wrong[0] + s * env._wrong[1], c * env._wrong[1] - s * env._wrong[0], env._wrong[2]]
    assert np.mean(seen, 0) == pytest.approx(wrong, abs=3e-4), "wrong by the same all episode long"
    assert 1e-4 < np.std(seen, 0).mean() < 6e-4, "and by a little more at every step"
    assert obs["state"].shape == (27,) and env.task.obs_dim == 27 and env.task.privileged == contact.FULL
    assert np.array_equal(obs["state"], obs["privileged"][:27])


@pytest.mark.parametrize(("name", "manner"), [(name, manner) for name in contact.names() for manner in contact.MANNERS
                                              if (name, manner) != ("pick-peg", "tilting")])
def test_the_expert_and_its_progress(name: str, manner: str) -> None:
    env, policy = envs.make(f"contact/{name}"), envs.expert(f"contact/{name}", manner, noise=0.1)
    found = list(rollout([env], policy, [box_guard(env)], range(6), greedy=True))
    assert all(e.succeeded and e.terminated for e in found)
    for e in found:
        way = [envs.progress(f"contact/{name}")(s) for s in e.obs["privileged"]]
        assert way[0] < -20 and way[-1] > 10
    assert envs.progress("toy/obstacle")(np.zeros(3)) == 0.0


def test_who_tilts_touches_with_a_corner_wherever_the_slot_may_be() -> None:
    """The corner that is low comes down inside the slot, for any place of it within two sigma of the hardest level."""
    env = world("peg-hard")
    for wrong in ([0.004, 0.004], [-0.004, 0.004], [0.004, -0.004], [-0.004, -0.004]):
        dipped = {}
        for manner in contact.MANNERS:
            act = contact.MANNERS[manner](contact.LEVELS["peg-hard"].reach)
            obs, _ = env.reset(seed=4)
            for _ in range(50):  # it believes in a wrong place until it touches
                told = obs["privileged"][None].astype(np.float64)
                told[0, contact.TRUTH][:2] += wrong
                obs, *_, info = env.step(act(told)[0].astype(np.float32))
                if info["force"] > 2:
                    break
            x, y = obs["privileged"][contact.TILT] * contact.TILTED
            dipped[manner] = 1000 * (obs["privileged"][contact.TRUTH][2] + 0.010 * np.sin(-y) + 0.007 * np.sin(x))
        assert dipped["tilting"] > 0.6, (wrong, dipped)
        assert abs(dipped["upright"]) < 0.3, f"who is upright stands on the rim: {wrong}, {dipped}"


def test_a_task_is_shown_in_a_manner_of_its_own_and_refuses_one_that_it_does_not_have() -> None:
    state = world("peg-hard").reset(seed=4)[0]["privileged"][None, None].astype(np.float32)
    for name in contact.names():
        if not contact.LEVELS[name].picks:
            own, told = (envs.expert(f"contact/{name}", m).act({"state": state}, {}, greedy=True, rng=[])[0].action
                         for m in (None, contact.LEVELS[name].manner))
            assert np.array_equal(own, told)
    assert envs.expert("contact/peg", "tilting").name == "contact/peg-tilting", "its recordings are not taken for the other's"
    for name, manner in (("peg", "sideways"), ("pick-peg", "tilting")):
        with pytest.raises(RealrlError, match=f"contact/{name}: its expert's manner is upright.*got {manner}: leave --expert out"):
            envs.expert(f"contact/{name}", manner)


def test_a_hand_with_eyes_is_not_told_where_the_slot_is() -> None:
    try:
        env: Any = envs.make("contact/peg", sight=SightConfig("rgb", cameras=("wrist", "side"), height=64, width=64))
    except RealrlError as error:
        pytest.skip(f"no OpenGL: {error}")
    plain, pictures = world(seed=1), []
    for seed in (1, 2):
        obs, _ = env.reset(seed=seed)
        assert obs["state"].shape == (24,) and env.task.obs_dim == 24
        pictures.append(obs)
    for key in ("images.wrist", "images.side"):
        assert pictures[0][key].shape == (64, 64, 3) and pictures[0][key].std() > 10
        assert not np.array_equal(pictures[0][key], pictures[1][key])
    first, whole = env.reset(seed=1)[0]["state"], plain.reset(seed=1)[0]["privileged"]
    assert np.array_equal(first, whole[[6, 7, *range(9, 31)]]), "its lean, not the turn that is missing"
    moved, _, _, _, _ = env.step(DOWN)
    assert np.array_equal(moved["privileged"], plain.step(DOWN)[0]["privileged"]), "the same episode"
    assert not np.array_equal(moved["images.wrist"], pictures[0]["images.wrist"])
    env.close()
    picks = envs.make("contact/pick-peg", sight=SightConfig("rgb", cameras=("side",), height=64, width=64))
    seen = [picks.reset(seed=seed)[0] for seed in (1, 2)]
    assert seen[0]["state"].shape == (26,) and seen[0]["state"][25] == 1.0, "of the fingers it knows how far they are open"
    assert not np.array_equal(seen[0]["images.side"], seen[1]["images.side"])
    picks.close()


# ---- the peg that has to be picked


def picked(seed: int = 3, noise: float = 0.0, until_held: bool = True) -> tuple[peg.PegEnv, list[dict[str, Array]], list[Array]]:
    """An episode of the expert's, until it holds the peg or to its end: the environment, what was seen and done."""
    env, policy = peg.PegEnv("pick-peg"), envs.expert("contact/pick-peg", noise=noise)
    seen, done, rng = [env.reset(seed=seed)[0]], [], [np.random.default_rng(seed)]
    while not (until_held and contact.holds(seen[-1]["privileged"])):
        plan, _ = policy.act({"state": seen[-1]["privileged"][None, None]}, {}, greedy=True, rng=rng)
        done.append(plan.action[0, 0])
        obs, _, terminated, truncated, _ = env.step(done[-1])
        seen.append(obs)
        if terminated or truncated:
            break
    return env, seen, done


def test_a_peg_is_picked_and_then_pressed_in() -> None:
    env, seen, done = picked(until_held=False, noise=0.1)
    assert env.succeeded and 25 < len(done) < 50 and env._t == -1 and env._facts["depth"] >= 15
    assert env.task.gripper and env.task.action_dim == 7 and seen[0]["state"].shape == (36,) == (env.task.obs_dim,)
    commands = [float(a[6]) for a in done]
    assert sum(c >= 0.5 for c in commands) == 1 and not any(c <= -0.5 for c in commands)
    _, again, _ = picked(until_held=False, noise=0.1)
    assert all(np.array_equal(a["privileged"], b["privileged"]) for a, b in zip(seen, again, strict=True))
    way = [contact.picking(obs["privileged"]) for obs in seen]
    assert way[0] < -120 and way[-1] > 10 and max(np.diff(way)) > 30, "to hold it is a leap"


def test_starts_of_the_peg_that_has_to_be_picked() -> None:
    env = peg.PegEnv("pick-peg")
    for seed in range(60):
        obs, _ = env.reset(seed=seed)
        assert np.abs(env._grip.foot - (-0.03, 0, 0)).max() <= 0.008 and abs(env._grip.turn) <= 0.2  # type: ignore[union-attr]
        assert np.abs(env._at - (0.03, 0, 0)).max() <= 0.008 and abs(env._turn) <= 0.2
        assert obs["state"][-1] == 1.0 and not contact.holds(obs["privileged"]), "an open and empty hand"
        env.step(np.zeros(7))
        assert env._grip.upright > 0.9999 and abs(env._grip.foot[2]) < 1e-4, "it stands"  # type: ignore[union-attr]


def test_a_command_that_moves_the_fingers_takes_longer_and_the_hand_stands_still() -> None:
    env, _, _ = picked()
    data = env._data

    def told(number: float) -> tuple[float, float]:
        """(seconds, mm that the hand went) of a step that goes aside, with a command."""
        before, at = data.time, data.qpos[:3].copy()
        env.step(np.array([0, 0.5, 0, 0, 0, 0, number]))
        return round(data.time - before, 6), 1000 * float(np.abs(data.qpos[:3] - at).max())

    assert told(1.0)[0] == 0.1, "what is shut already is not shut again"
    assert told(0.49) == (0.1, pytest.approx(5.0, abs=1.0)) and told(-0.49)[0] == 0.1 and contact.holds(env.look())
    seconds, went = told(-0.5)
    assert seconds == 0.6 and went < 2.0 and env.look()[contact.OPENING] == pytest.approx(1.0, abs=0.02)


def test_the_peg_is_held_by_friction_and_felt_through_the_fingers() -> None:
    env, _, _ = picked()
    up = np.array([0, 0, 0.8, 0, 0, 0, 0])
    for _ in range(3):
        env.step(up)
    env.step(np.zeros(7))
    held = env._grip.foot - env._data.qpos[:3]  # type: ignore[union-attr]
    c, s = math.cos(env._data.qpos[3]), math.sin(env._data.qpos[3])
    assert env._wrench(c, s, *env._data.qpos[4:6])[:3] == pytest.approx([0, 0, -0.03 * 9.81], abs=0.02), "its weight"
    for _ in range(12):  # back onto the table, as hard as it can
        env.step(np.array([*DOWN, 0]))
    now = env._grip.foot - env._data.qpos[:3]  # type: ignore[union-attr]
    assert env._facts["force"] == pytest.approx(15.0, abs=1.0) and np.abs(now - held).max() < 0.001 and contact.holds(env.look())


def test_a_peg_that_falls_ends_the_episode_in_failure() -> None:
    env, _, _ = picked()
    for action in [[0, 0, 1, 0, 0, 0, 0]] * 2 + [[1, 0.5, 0, 0, 0, 0, 0]] * 7:  # beside the slot
        env.step(np.array(action, float))
    ended = [env.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))[1:4]]
    while not ended[-1][1] and not ended[-1][2]:
        ended.append(env.step(np.zeros(7))[1:4])
    assert ended[-1] == (0.0, True, False) and not env.succeeded and len(ended) < 5
    env.reset(seed=1)
    for _ in range(30):
        env.step(np.array([1.0, 1.0, 1, 0, 0, 1, 0]))
    at = env._data.qpos
    assert at[0] <= 0.07 + 1e-3 and at[1] <= peg.SIDE + 1e-3 and at[2] <= peg.HIGH + 1e-3 and at[3] <= peg.TURN + 1e-3, "its box is longer"
    with pytest.raises(RealrlError, match="an action must be 7 finite numbers"):
        env.step(np.zeros(6))


@pytest.mark.parametrize("name", ["peg", "pick-peg"])
def test_a_mirrored_action_does_what_the_mirror_shows(name: str) -> None:
    """But for the sensor's noise and where the hand stands."""
    states, actions = envs.symmetries(f"contact/{name}")
    env = envs.make(f"contact/{name}")
    asked = np.array([0.5, 0.3, -0.2, 0.4, -0.3, 0.2, 0.0][:actions.shape[1]])
    known = [*range(3), *range(6, 15), *range(21, 27)]  # but what is near, and felt

    def done(action: Array) -> Array:
        before = env.reset(seed=5)[0]["state"][known]
        for _ in range(2):
            after = env.step(action.astype(np.float32))[0]["state"][known]
        moved: Array = (after - before).astype(np.float64)
        return moved

    plain = done(asked)
    for seen, act in zip(states, actions, strict=True):
        assert done(act @ asked) == pytest.approx(np.diag(seen)[known] * plain, abs=0.12)
        assert np.array_equal(seen @ seen, np.eye(len(seen)))
    assert np.abs(plain).min() > 0.07  # or a wrong sign would pass


def test_actions_that_end_a_state_are_mirrored_with_it() -> None:
    states, actions = envs.symmetries("contact/peg", recall=2)
    assert states.shape == (4, 27 + 12, 27 + 12) and np.array_equal(states[:, 27:33, 27:33], actions)
    assert np.array_equal(states[:, 33:, 33:], actions) and not states[:, :27, 27:].any()


def test_where_nobody_wrote_down_a_mirror_there_is_none() -> None:
    assert envs.symmetries("metaworld/push-v3") is None and envs.symmetries("my-arm") is None
