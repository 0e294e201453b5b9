"""The toy tasks: their experts, their closed-form answers, and that the obstacle task is what it claims to be."""

import numpy as np
import pytest

from realrl import envs
from realrl.envs.toy import LineEnv, line_value
from realrl.types import RealrlError


def play(task, policy, seed, **options):
    """One episode: (states [T+1, D], actions [T, A], rewards [T], terminated, truncated, success)."""
    env = envs.make(task, **options)
    rng = [np.random.default_rng((seed, 1))]
    obs, _ = env.reset(seed=seed)
    states, actions, rewards, memory = [obs["state"]], [], [], policy.start(1)
    while True:
        plan, memory = policy.act({"state": obs["state"][None, None]}, memory, greedy=True, rng=rng)
        obs, reward, terminated, truncated, info = env.step(plan.action[0, 0])
        states.append(obs["state"])
        actions.append(plan.action[0, 0])
        rewards.append(reward)
        if terminated or truncated:
            return np.array(states), np.array(actions), np.array(rewards), terminated, truncated, info["success"]


@pytest.mark.parametrize("name", ["identity", "obstacle", "line", "reach"])
def test_expert_always_succeeds(name):
    for seed in range(100):
        *_, rewards, terminated, truncated, success = play(f"toy/{name}", envs.expert(f"toy/{name}"), seed)
        assert success and terminated and not truncated
        assert rewards.sum() == rewards[-1] == 1.0


def test_noise_makes_a_worse_demonstrator_and_belongs_to_the_episode():
    noisy = envs.expert("toy/obstacle", noise=1.5)
    rate = np.mean([play("toy/obstacle", noisy, seed)[-1] for seed in range(60)])
    assert 0.05 < rate < 0.95
    first, again = (play("toy/obstacle", noisy, 3)[1] for _ in range(2))
    assert np.array_equal(first, again) and np.abs(first).max() <= 1.0 and first.dtype == np.float32
    assert np.mean([play("toy/identity", envs.expert("toy/identity", noise=0.1), s)[-1] for s in range(100)]) < 0.8
    with pytest.raises(RealrlError, match="cannot be negative"):
        envs.expert("toy/line", noise=-0.1)


def test_obstacle_demonstrations_pass_on_both_sides():
    ys = [states[np.abs(states[:, 0]).argmin(), 1] for states, *_ in
          (play("toy/obstacle", envs.expert("toy/obstacle"), seed) for seed in range(60))]
    assert np.abs(ys).min() > 0.3
    assert 0.3 < np.mean(np.array(ys) > 0) < 0.7


def test_obstacle_stops_the_straight_line_and_the_mean_of_both_sides():
    env = envs.make("toy/obstacle")
    for seed in range(20):
        state = env.reset(seed=seed)[0]["state"]
        while True:
            way = np.array([1.0, 0.0]) - state
            obs, reward, terminated, _, info = env.step(way / np.linalg.norm(way))
            state = obs["state"]
            if terminated:
                break
        assert not info["success"] and reward == 0.0 and state[0] < 0


def test_obstacle_expert_rows_are_independent():
    policy = envs.expert("toy/obstacle")
    states = np.random.default_rng(0).uniform(-1, 1, (5, 1, 2)).astype(np.float32)
    rng = lambda: [np.random.default_rng(i) for i in range(5)]
    together, memory = policy.act({"state": states}, policy.start(5), greedy=False, rng=rng())
    for i, generator in enumerate(rng()):
        alone, one = policy.act({"state": states[i:i + 1]}, policy.start(1), greedy=False, rng=[generator])
        assert np.array_equal(alone.action[0], together.action[i]) and one["side"][0] == memory["side"][i]
    later, kept = policy.act({"state": states}, memory, greedy=False, rng=[np.random.default_rng(99)] * 5)
    assert np.array_equal(later.action, together.action) and kept["side"].equal(memory["side"])


def test_identity_success_is_within_its_tolerance():
    env = envs.make("toy/identity")
    for offset, success in ((0.0, True), (0.09, True), (0.11, False)):
        point = env.reset(seed=5)[0]["state"]
        toward_middle = -np.sign(point) * np.array([1.0, 0.0])
        _, reward, terminated, _, info = env.step(point + offset * toward_middle)
        assert terminated and info["success"] is success and reward == float(success)


def test_line_value_by_hand():
    assert line_value(np.array([0.2, 0.4, 1.0, 0.0]), 0.9) == pytest.approx([1.0, 0.9, 0.9**4, 0.0])
    assert line_value(np.array([0.2, 0.4, 0.4, 1.0]), 0.9, np.array([1.0, 1.0, -1.0, -1.0])) == pytest.approx(
        [1.0, 0.9, 0.9**3, 0.9**5])
    assert line_value(np.float32(0.6), 0.5) == pytest.approx(0.25)  # as observed, in float32


def test_line_value_is_what_the_optimal_policy_earns():
    seen = set()
    for seed in range(40):
        states, _, rewards, *_ = play("toy/line", envs.expert("toy/line"), seed)
        earned = (rewards * 0.9 ** np.arange(len(rewards))).sum()
        assert earned == pytest.approx(line_value(states[0], 0.9)[0])
        seen.add(len(rewards))
    assert seen == set(range(1, LineEnv.CELLS + 1))


def test_line_dense_reward_goes_on_after_success():
    *_, rewards, terminated, truncated, success = play("toy/line", envs.expert("toy/line"), 0, reward="dense", horizon=8)
    assert not terminated and truncated and success
    assert set(rewards) == {-1.0, 0.0} and rewards[-1] == 0.0 and len(rewards) == 8


def test_script_takes_no_file():
    with pytest.raises(RealrlError, match="takes no file"):
        envs.expert("toy/line", "expert.npz")


def test_reach_is_seen_where_it_is():
    """The target's place is in the picture, the depth and the cloud, and not in the state."""
    for kind in ("rgb", "depth", "pointcloud"):
        env = envs.make("toy/reach", sight=envs.SightConfig(kind, height=40, width=40, points=16, colour=True))
        for seed in range(5):
            obs, _ = env.reset(seed=seed)
            hand, target = obs["privileged"][:2], obs["privileged"][2:]
            assert np.array_equal(obs["state"], hand)
            if kind == "pointcloud":
                cloud = obs["pointcloud"]
                found = cloud[:8, :2].mean(0)
                assert np.allclose(cloud[:8, 3:], (0.9, 0.1, 0.1)) and np.allclose(cloud[8:, :2].mean(0), hand, atol=0.03)
            elif np.linalg.norm(hand - target) < 0.35:
                continue  # the hand hides it
            else:
                redder = np.subtract(*np.moveaxis(obs["images.top"][..., ::2].astype(int), -1, 0)) if kind == "rgb" else None
                rows, columns = np.nonzero(redder > 100 if kind == "rgb" else obs["depth.top"] == 950)
                found = np.array([columns.mean() + 0.5, 40 - rows.mean() - 0.5]) / 20 - 1
            assert np.abs(found - target).max() < 0.04
