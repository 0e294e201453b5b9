"""Meta-World: all 50 tasks; a seed is an episode; what is skipped for speed changes neither observations nor success."""

import copy
import sys

import mujoco
import numpy as np
import pytest
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from scipy.spatial.transform import Rotation

from realrl import envs
from realrl.cell.rollout import rollout
from realrl.envs import metaworld
from realrl.envs.metaworld import Turn
from realrl.types import Policy, RealrlError

STEPS = 100
pytestmark = pytest.mark.filterwarnings("ignore:Constant")  # pytest undoes the module's own filter


@pytest.fixture(scope="module", params=metaworld.names())
def pair(request):
    """(task, sparse environment, dense one): the dense one pays the package's own reward, with its own touching test and stacking."""
    task = f"metaworld/{request.param}"
    sparse = envs.make(task)
    with pytest.MonkeyPatch.context() as patch:  # a quarter of a second to compile the same scene again
        patch.setattr(mujoco.MjModel, "from_xml_path", lambda path: copy.copy(sparse._sim.model))
        dense = envs.make(task, reward="dense")
    assert dense._sim.model is not sparse._sim.model
    del dense._sim.touching_object, dense._sim._get_curr_obs_combined_no_goal  # the methods of the package show again
    assert dense._sim.touching_object.__func__ is SawyerXYZEnv.touching_object
    return task, sparse, dense


def replay(env, seed, actions):
    """[T+1, 39] states and [T] successes along given actions, past success too."""
    states, successes = [env.reset(seed=seed)[0]["state"]], []
    for action in actions:
        state, _, _, success = env._advance(action)
        states.append(state)
        successes.append(success)
    return np.array(states), np.array(successes, bool)


def follow(env, expert, seed):
    """The actions of an expert in an environment, for STEPS steps whatever happens: [STEPS, 4]."""
    state, rng, actions = env.reset(seed=seed)[0]["state"], [np.random.default_rng(seed)], []
    for _ in range(STEPS):
        plan, _ = expert.act({"state": state[None, None]}, {}, greedy=True, rng=rng)
        actions.append(plan.action[0, 0].astype(np.float64))
        state = env._advance(actions[-1])[0].astype(np.float32)
    return np.array(actions)


def test_a_seed_is_an_episode(pair):
    _, sparse, dense = pair
    actions = np.random.default_rng(0).uniform(-1, 1, (12, 4))
    first, other = replay(sparse, 5, actions)[0], replay(sparse, 6, actions)[0]
    again = replay(sparse, 5, actions)[0]
    assert np.array_equal(first, again), "the same object, after another episode"
    replay(dense, 6, actions * 0.5)
    assert np.array_equal(replay(dense, 5, actions)[0], first), "another object, whose first episode was another"
    assert not np.array_equal(first[0], other[0]), "seeds give different starts"
    assert np.array_equal(first[0, 18:36], first[0, :18]), "there is no earlier frame: the first one is repeated"
    assert first.shape == (13, 39) and np.isfinite(first).all() and first[0, 36:].any(), "the goal is shown"


def test_what_is_skipped_changes_nothing(pair):
    task, sparse, dense = pair
    expert = envs.expert(task, noise=0.1)
    assert isinstance(expert, Policy) and expert.chunk == 1
    actions = follow(dense, expert, 1)
    plain, fast = replay(dense, 1, actions), replay(sparse, 1, actions)
    assert np.array_equal(plain[0], fast[0]) and np.array_equal(plain[1], fast[1])
    assert len(np.unique(actions, axis=0)) > STEPS / 2
    sparse.reset(seed=1)
    ran = [sparse.step(a) for a in actions[:1 + int(fast[1].argmax())]]  # argmax of none is 0: one step
    assert [r for _, r, *_ in ran] == fast[1][:len(ran)].astype(float).tolist()
    assert ran[-1][2] == fast[1].any() and not any(terminated for _, _, terminated, *_ in ran[:-1])


def test_a_turn_is_scipys():
    matrices = [np.eye(3), *Rotation.random(500, 0).as_matrix()]
    matrices += Rotation.from_euler("xyz", np.pi * np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0]])).as_matrix().tolist()
    for matrix in map(np.array, matrices):
        assert np.allclose(Turn.from_matrix(matrix).as_quat(), Rotation.from_matrix(matrix).as_quat(), rtol=0, atol=1e-15)


def test_tasks_with_turns_are_the_packages(monkeypatch):
    env = envs.make("metaworld/stick-pull-v3")
    module = sys.modules[type(env._sim).__module__]
    assert module.Rotation is Turn
    actions = np.random.default_rng(0).uniform(-1, 1, (60, 4))
    quick = replay(env, 3, actions)[0]
    monkeypatch.setattr(module, "Rotation", Rotation)
    assert np.allclose(quick, replay(env, 3, actions)[0], rtol=0, atol=1e-12)


def test_touching_is_the_packages():
    """On a task whose expert grasps: both answers occur and both tests agree at every step."""
    env = envs.make("metaworld/pick-place-v3")
    actions, seen = follow(env, envs.expert("metaworld/pick-place-v3"), 1), []
    env.reset(seed=1)
    for action in actions:
        env._advance(action)
        body = env._sim._get_id_main_object()
        seen.append(env._touching(body))
        assert SawyerXYZEnv.touching_object(env._sim, body) == seen[-1]
    assert 10 < sum(seen) < STEPS - 10


@pytest.mark.parametrize("name", ["reach-v3", "door-open-v3", "drawer-close-v3", "hammer-v3", "assembly-v3", "pick-place-v3"])
def test_experts_succeed(name):
    env = envs.make(f"metaworld/{name}")
    done = list(rollout([env], envs.expert(f"metaworld/{name}"), [lambda obs, action: action], range(4), greedy=True))
    assert all(e.succeeded and e.terminated and e.reward.sum() == e.reward[-1] == 1.0 for e in done)


def test_dense_reward_goes_on_after_success():
    env = envs.make("metaworld/reach-v3", reward="dense", horizon=120)
    e, = rollout([env], envs.expert("metaworld/reach-v3"), [lambda obs, action: action], [0], greedy=True)
    assert e.success.any() and len(e) == 120 and e.truncated and not e.terminated
    assert len(np.unique(e.reward)) > 20 and e.reward[-1] > e.reward[0]


def test_there_are_fifty_and_each_says_what_it_is():
    assert len(metaworld.names()) == 50
    spec = envs.make("metaworld/peg-insert-side-v3").task
    assert (spec.obs_dim, spec.action_dim, spec.horizon, spec.dt) == (39, 4, 200, pytest.approx(0.0125))


def test_mistakes_get_one_line():
    with pytest.raises(RealrlError, match="horizon is 0"):
        envs.make("metaworld/reach-v3", horizon=0)
    with pytest.raises(RealrlError, match="takes no file"):
        envs.expert("metaworld/reach-v3", "expert.npz")
    with pytest.raises(RealrlError, match="no scripted expert comes with this task"):
        metaworld.expert("juggle-v3")
