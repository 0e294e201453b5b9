"""What holds for every suite: names, spaces, episode rules, errors, and above all that a seed is an episode."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import realrl
from children import Child
from realrl import envs
from realrl.types import Policy, RealrlError

TASKS = ["toy/identity", "toy/obstacle", "toy/line", "toy/reach", "gym/HalfCheetah-v5", "gym/Hopper-v5", "gym/Walker2d-v5", "gym/Ant-v5",
         "gym/Reacher-v5", "gym/Pusher-v5", "gym/InvertedPendulum-v5", "adroit/door", "adroit/hammer", "adroit/pen",
         "adroit/relocate", "metaworld/door-open-v3", "metaworld/peg-insert-side-v3"]


def digest(env, seed, steps=25):
    """A fingerprint of all that an episode under seeded random actions shows, to the last bit."""
    rng = np.random.default_rng(seed)
    seen = hashlib.sha256()
    obs, _ = env.reset(seed=seed)
    for _ in range(steps):
        seen.update(obs["state"].tobytes())
        obs, reward, terminated, truncated, info = env.step(rng.uniform(-1, 1, env.task.action_dim))
        seen.update(repr((float(reward), terminated, truncated, info["success"])).encode())
        if terminated or truncated:
            break
    return seen.hexdigest() + obs["state"].tobytes().hex()[:16]


def python(code):
    """What a fresh Python process prints."""
    env = {**os.environ, "PYTHONPATH": str(Path(next(iter(realrl.__path__))).parent)}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout


def leave_a_mess(env):
    """Full force, cut off in the middle of an episode."""
    env.reset(seed=8)
    for _ in range(60):
        _, _, terminated, truncated, _ = env.step(np.ones(env.task.action_dim))
        if terminated or truncated:
            break


def test_same_seed_same_episode_in_any_process_after_any_episodes():
    code = ("import sys; sys.path.insert(0, sys.argv[1]); import test_suites as t\n"
            "for task in t.TASKS: print(task, t.digest(t.envs.make(task, reward='dense'), 3))")
    status, printed, error = Child("-c", code, Path(__file__).parent).wait()
    assert status == 0, error
    elsewhere = dict(line.split() for line in printed.splitlines() if line.startswith(tuple(TASKS)))
    assert set(elsewhere) == set(TASKS)
    for task in TASKS:
        env = envs.make(task, reward="dense")  # so that the suite's own reward is compared too
        other = digest(env, 7, steps=120)
        leave_a_mess(env)
        assert digest(env, 3) == elsewhere[task], task
        assert digest(env, 7, steps=120) == other, task


@pytest.mark.parametrize("task", TASKS)
def test_interface(task):
    env = envs.make(task, horizon=3)
    spec = env.task
    assert spec.id == task and spec.horizon == 3 and spec.dt > 0 and spec.text
    assert env.action_space.shape == (spec.action_dim,) and (env.action_space.high == 1).all() and (env.action_space.low == -1).all()
    obs, info = env.reset(seed=np.int64(2))
    assert env.observation_space.contains(obs) and obs["state"].shape == (spec.obs_dim,) and info == {"success": False}
    first = obs["state"].copy()
    for t in range(3):
        after, reward, terminated, truncated, info = env.step(np.zeros(spec.action_dim, np.float32))
        assert env.observation_space.contains(after) and type(reward) is float
        assert type(terminated) is type(truncated) is type(info["success"]) is bool
        if terminated or truncated:
            assert terminated != truncated and (terminated or t == 2)
            break
    assert np.array_equal(obs["state"], first), "an observation handed out must not change later"
    with pytest.raises(RealrlError, match="no episode is running"):
        env.step(np.zeros(spec.action_dim))


@pytest.mark.parametrize("task", ["toy/obstacle", "gym/Pusher-v5", "adroit/door"])
def test_actions_outside_are_clipped_and_bad_ones_refused(task):
    env = envs.make(task)
    ends = []
    for scale in (1.0, 5.0):
        env.reset(seed=0)
        ends.append(env.step(np.full(env.task.action_dim, scale))[0]["state"])
    assert np.array_equal(*ends)
    for bad in (np.full(env.task.action_dim, np.nan), np.zeros(env.task.action_dim + 1)):
        with pytest.raises(RealrlError, match=f"{env.task.action_dim} finite numbers"):
            env.step(bad)


def test_actions_reach_the_suites_own_bounds():
    import gymnasium
    ours, theirs = envs.make("gym/InvertedPendulum-v5"), gymnasium.make("InvertedPendulum-v5").unwrapped
    state = ours.reset(seed=4)[0]["state"]
    assert np.array_equal(state, theirs.reset(seed=4)[0].astype(np.float32))
    for a in (0.5, -1.0, 0.25):
        obs, reward, terminated, *_ = ours.step(np.array([a]))
        theirs_obs, theirs_reward, theirs_terminated, *_ = theirs.step(np.array([3 * a]))
        assert np.array_equal(obs["state"], theirs_obs.astype(np.float32)) and (reward, terminated) == (theirs_reward, theirs_terminated)


def test_fall_terminates_and_clock_truncates():
    env = envs.make("gym/Hopper-v5")
    env.reset(seed=0)
    while True:
        _, _, terminated, truncated, info = env.step(np.ones(3))
        if terminated or truncated:
            break
    assert terminated and not truncated and not info["success"]


def test_tasks_are_cheap_and_complete():
    printed = python("import sys; from realrl import envs; names = envs.tasks()\n"
                     "assert not {'mujoco', 'metaworld'} & set(sys.modules); print(len(names))")
    names = envs.tasks()
    assert int(printed) == len(names) == len(set(names)) and set(TASKS) <= set(names)
    from realrl.envs import metaworld
    assert {n for n in names if n.startswith("metaworld/")} == {f"metaworld/{n}" for n in metaworld.names()}


@pytest.mark.parametrize(("asked", "meant"), [
    ("metaworld/peg-insert-sid-v3", "metaworld/peg-insert-side-v3"), ("peg-insert-side-v3", "metaworld/peg-insert-side-v3"),
    ("peg-insert-side", "metaworld/peg-insert-side-v3"), ("door", "adroit/door"), ("HalfCheetah", "gym/HalfCheetah-v5"),
    ("adroid/hammer", "adroit/hammer")])
def test_unknown_task_is_answered_with_the_nearest(asked, meant):
    for call in (envs.make, envs.expert):
        with pytest.raises(RealrlError, match=f"no task '{asked}'.*did you mean '{meant}'"):
            call(asked)


def test_other_mistakes_get_one_line():
    with pytest.raises(RealrlError, match=r"no task 'xyzzy'.*realrl tasks"):
        envs.make("xyzzy")
    with pytest.raises(RealrlError, match="no 'sparse' reward"):
        envs.make("gym/Hopper-v5", reward="sparse")
    with pytest.raises(RealrlError, match=r"no 'shaped' reward.*'sparse' and 'dense'"):
        envs.make("toy/line", reward="shaped")
    with pytest.raises(RealrlError, match="horizon is 0"):
        envs.make("adroit/pen", horizon=0)
    for seed in (None, -1):
        with pytest.raises(RealrlError, match="reset needs a seed"):
            envs.make("toy/line").reset(seed=seed)
    with pytest.raises(RealrlError, match="no scripted expert"):
        envs.expert("gym/Hopper-v5")
    with pytest.raises(RealrlError, match="hand_dapg"):
        envs.expert("adroit/door")


def test_missing_simulator_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)  # what Python does for a package that cannot be imported
    with pytest.raises(RealrlError, match="pip install gymnasium-robotics"):
        envs.make("adroit/door")


def adroit_episode(name, policy, seed, **options):
    """(steps, summed reward, success) of one episode."""
    env = envs.make(f"adroit/{name}", **options)
    obs, _ = env.reset(seed=seed)
    total, steps, memory = 0.0, 0, policy.start(1)
    while True:
        plan, memory = policy.act({"state": obs["state"][None, None]}, memory, greedy=True, rng=[np.random.default_rng(0)])
        obs, reward, terminated, truncated, info = env.step(plan.action[0, 0])
        total, steps = total + reward, steps + 1
        if terminated or truncated:
            return steps, total, info["success"]


@pytest.mark.parametrize("name", ["door", "hammer", "pen", "relocate"])
def test_adroit_experts(name, shared_data):
    policy = envs.expert(f"adroit/{name}", shared_data / "adroit_hand_dapg" / "policies_npz" / f"{name}.npz")
    assert isinstance(policy, Policy)
    results = [adroit_episode(name, policy, seed) for seed in range(5)]
    assert sum(success for *_, success in results) >= (3 if name == "pen" else 5)
    assert all(total == float(success) and steps <= 200 for steps, total, success in results)
    states = np.random.default_rng(0).normal(size=(4, 1, envs.make(f"adroit/{name}").task.obs_dim)).astype(np.float32)
    together = policy.act({"state": states}, {}, greedy=True, rng=[])[0].action
    alone = policy.act({"state": states[2:3]}, {}, greedy=True, rng=[])[0].action
    assert np.array_equal(together[2:3], alone) and together.dtype == np.float32


def test_the_pages_script_makes_an_expert_of_a_published_pickle(shared_data, tmp_path):
    """docs/howto/adroit.md, to the last bit of what the package has."""
    page = Path(__file__).resolve().parents[2] / "docs" / "howto" / "adroit.md"
    (script,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    (tmp_path / "convert.py").write_text(script)
    folder = shared_data / "adroit_hand_dapg"
    subprocess.run([sys.executable, tmp_path / "convert.py", folder / "policies" / "door-v0.pickle", tmp_path / "door.npz"], check=True)
    made, kept = np.load(tmp_path / "door.npz"), np.load(folder / "policies_npz" / "door.npz")
    assert len(made.files) == 10 and all(np.array_equal(made[name], kept[name]) for name in made.files)
    assert envs.expert("adroit/door", tmp_path).name == "dapg-door"
    with pytest.raises(RealrlError, match=r"docs/howto/adroit\.md"):
        envs.expert("adroit/door")


@pytest.mark.parametrize(("name", "published"), [("door", 2500), ("hammer", 14000), ("relocate", 2000)])
def test_adroit_dense_reward_pays_for_coming_close(name, published, shared_data):
    """The expert's return, and the sign of the palm's term: it is minus twice a tenth of the distance away from the package's."""
    policy = envs.expert(f"adroit/{name}", shared_data / "adroit_hand_dapg" / "policies_npz")
    assert adroit_episode(name, policy, 0, reward="dense")[1] > published
    env = envs.make(f"adroit/{name}", reward="dense")
    env.reset(seed=0)
    _, ours, *_ = env.step(np.zeros(env.task.action_dim))
    data = env._inner.data
    to = data.site("S_handle").xpos if name == "door" else data.body("Object").xpos
    distance = np.linalg.norm(data.site("S_grasp").xpos - to)
    env.reset(seed=0)
    theirs = env._inner.step(np.zeros(env.task.action_dim))[1]
    assert min(abs(theirs - 0.2 * distance - ours), abs(theirs - ours)) < 1e-9  # a mended package agrees outright


def test_adroit_pen_dense_reward_is_the_packages():
    env = envs.make("adroit/pen", reward="dense")
    env.reset(seed=1)
    ours = [env.step(np.full(24, 0.2))[1] for _ in range(30)]
    env.reset(seed=1)
    theirs = [env._inner.step(np.full(24, 0.2))[1] for _ in range(30)]
    assert ours == pytest.approx(theirs)


def test_broken_expert_files(tmp_path, shared_data):
    good = dict(np.load(shared_data / "adroit_hand_dapg" / "policies_npz" / "door.npz"))

    def error(name="door", **changed):
        file = tmp_path / "expert.npz"
        np.savez(file, **{k: v for k, v in {**good, **changed}.items() if v is not None})
        with pytest.raises(RealrlError) as caught:
            envs.expert(f"adroit/{name}", file)
        return str(caught.value)

    assert "no array 'in_shift'" in error(in_shift=None)
    assert "fc_layers.0.weight is float64 [32, 39]" in error("hammer")
    assert "expected finite floats" in error(out_scale=np.full(28, np.nan))
    assert "no array 'fc_layers.1.bias'" in error(**{"fc_layers.1.bias": None})
    assert "only tanh" in error(nonlinearity=np.array("relu"))


def test_unreadable_expert_files(tmp_path):
    (tmp_path / "text.npz").write_text("not an archive")
    (tmp_path / "empty.npz").touch()
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 cut short")
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "none.npz", x=np.zeros(3))
    for file in ("text.npz", "empty.npz", "cut.npz", "array.npy", "none.npz", "absent.npz"):
        with pytest.raises(RealrlError, match=file):
            envs.expert("adroit/door", tmp_path / file)
