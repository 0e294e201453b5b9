"""Randomisation: drawn from the episode's seed alone, undone before the next one, and really there."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
import pytest

from realrl import envs
from realrl.envs.mujoco import gl
from realrl.scene import RandomiseConfig, SightConfig
from realrl.types import Array, RealrlError

needs_gl = pytest.mark.skipif(not (gl.egl_works() or gl.osmesa_works()), reason=f"needs OpenGL: apt-get install {gl.PACKAGES}")
PUSH, CHEETAH = "metaworld/push-v3", "gym/HalfCheetah-v5"
ALL = RandomiseConfig(light=0.3, colour=0.2, camera=0.02, angle=2.0, distractors=3, friction=0.5, mass=0.5)
CLOUD = SightConfig("pointcloud", points=256, colour=True)


def episode(env: Any, seed: int, steps: int = 20) -> dict[str, Array]:
    """Everything seen along fixed actions: key -> [T+1, ...]."""
    frames = [env.reset(seed=seed)[0]]
    frames += [env.step(a)[0] for a in np.random.default_rng(0).uniform(-1, 1, (steps, env.task.action_dim))]
    return {key: np.stack([f[key] for f in frames]) for key in frames[0]}


def numbers(model: Any) -> dict[str, Array]:
    """Every array of a MuJoCo model, and its statistics."""
    found = {name: np.copy(getattr(model, name)) for name in dir(model) if isinstance(getattr(model, name), np.ndarray)}
    return {**found, **{f"stat.{name}": np.copy(getattr(model.stat, name)) for name in ("extent", "meaninertia", "meanmass", "center")}}


def same(a: dict[str, Array], b: dict[str, Array]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("task", [PUSH, "adroit/pen", "gym/Hopper-v5"])
def test_a_seed_is_an_episode_whatever_came_before(task: str) -> None:
    sight = None if task.startswith("gym/") else CLOUD
    env = envs.make(task, reward="dense", sight=sight, randomise=ALL)
    first, other = episode(env, 3), episode(env, 4)
    assert same(episode(env, 3), first)
    assert same(episode(envs.make(task, reward="dense", sight=sight, randomise=ALL), 4), other)


@pytest.mark.parametrize("task", [PUSH, "adroit/hammer"])
def test_all_off_is_no_randomiser(task: str) -> None:
    plain, off = (envs.make(task, reward="dense", sight=CLOUD, randomise=r) for r in (None, RandomiseConfig()))
    assert same(episode(plain, 2), episode(off, 2))


@pytest.mark.parametrize("task", [PUSH, "adroit/hammer", "gym/Hopper-v5"])
def test_restore_leaves_no_trace(task: str) -> None:
    env: Any = envs.make(task, reward="dense", randomise=ALL)
    model = (getattr(env, "_sim", None) or env._inner).model
    pristine = numbers(model)
    env._whims.apply(5)
    changed = {k for k, v in numbers(model).items() if not np.array_equal(v, pristine[k])}
    assert {"body_mass", "geom_friction", "geom_rgba", "dof_M0"} <= changed
    env._whims.restore()
    assert [k for k, v in numbers(model).items() if not np.array_equal(v, pristine[k])] == []


@pytest.mark.parametrize(("what", "task"), [("friction", PUSH), ("mass", PUSH), ("friction", CHEETAH), ("mass", CHEETAH)])
def test_physics_really_change(what: str, task: str) -> None:
    def pushed(**magnitudes: float) -> Array:
        env: Any = envs.make(task, reward="dense", randomise=RandomiseConfig(**magnitudes))  # type: ignore[arg-type]
        start = env.reset(seed=1)[0]["state"]
        down = np.array([0.0, 0.0, -1.0, 1.0])
        actions = np.random.default_rng(0).uniform(-1, 1, (60, env.task.action_dim))
        if task == PUSH:  # over the puck, down on it, and along with it
            actions[:30], actions[30:] = down, (0.5, 1.0, -0.2, 1.0)
            actions[:15, :2] = np.clip((start[4:6] - start[:2]) * 8, -1, 1)
        return np.stack([env.step(a)[0]["state"] for a in actions])

    plain = pushed()
    assert np.abs(pushed(**{what: 0.8}) - plain).max() > 1e-3
    assert np.array_equal(pushed(colour=0.3), plain), "colours do not move anything"


def test_friction_and_mass_stay_within_their_range() -> None:
    env: Any = envs.make(PUSH, randomise=RandomiseConfig(friction=0.3, mass=0.2))
    model = env._sim.model
    friction, mass = model.geom_friction.copy(), model.body_mass.copy()
    env.reset(seed=0)
    assert np.abs(model.geom_friction[:, 0] / friction[:, 0] - 1).max() <= 0.3 + 1e-9 and not np.array_equal(model.geom_friction, friction)
    ratio = model.body_mass[mass > 0] / mass[mass > 0]
    assert 0.05 < np.abs(ratio - 1).max() <= 0.2 + 1e-9
    assert np.array_equal(model.geom_friction[:, 1:], friction[:, 1:])


def test_distractors_are_in_the_cloud_and_in_nobodys_way() -> None:
    plain, with_three = (envs.make(PUSH, reward="dense", sight=CLOUD, randomise=RandomiseConfig(distractors=n)) for n in (0, 3))
    a, b = episode(plain, 1), episode(with_three, 1)
    assert np.array_equal(a["privileged"], b["privileged"])
    solids = with_three._eyes.solids  # type: ignore[union-attr]
    assert len(solids) == 3
    for solid in solids:
        close = np.linalg.norm(b["pointcloud"][0, :, :3] - solid.centre, axis=-1) < np.linalg.norm(solid.size) + 1e-3
        assert close.sum() >= 3 and np.allclose(b["pointcloud"][0, close, 3:], solid.rgba[:3], atol=1e-6)


def test_a_moved_camera_moves_the_cloud_as_a_wrong_calibration_does() -> None:
    plain, moved = (envs.make(PUSH, sight=SightConfig("pointcloud", cameras=("corner2",)), randomise=r)
                    for r in (None, RandomiseConfig(camera=0.05)))
    a, b = (e.reset(seed=2)[0]["pointcloud"].astype(np.float64) for e in (plain, moved))
    model: Any = moved._sim.model  # type: ignore[attr-defined]
    shift = model.camera("corner2").pos - plain._sim.model.camera("corner2").pos  # type: ignore[attr-defined]
    apart = lambda p, q: np.median(np.linalg.norm(p[:, None] - q[None], axis=-1).min(1))
    assert np.linalg.norm(shift) > 0.01 and apart(b + shift, a) < 0.6 * apart(b, a)


@needs_gl
@pytest.mark.parametrize("what", [{"light": 0.5}, {"colour": 0.3}, {"camera": 0.03}, {"angle": 3.0}, {"distractors": 4}])
def test_pictures_change(what: dict[str, Any]) -> None:
    sight = SightConfig("rgb", height=48, width=48)
    plain, changed = (envs.make(PUSH, sight=sight, randomise=r) for r in (None, RandomiseConfig(**what)))
    pictures = [e.reset(seed=1)[0]["images.corner2"].astype(float) for e in (plain, changed)]
    assert np.abs(pictures[0] - pictures[1]).max() > 20
    assert np.array_equal(changed.reset(seed=1)[0]["images.corner2"], pictures[1])
    assert not np.array_equal(changed.reset(seed=2)[0]["images.corner2"], pictures[1])
    for env in (plain, changed):
        env.close()


def test_mistakes_get_one_line() -> None:
    for bad, words in (({"mass": -0.1}, "randomise.mass must be at least 0 .*, got -0.1"),
                       ({"friction": 1.0}, "randomise.friction must be .* below 1"),
                       ({"light": float("nan")}, "randomise.light must be .*, got nan")):
        with pytest.raises(RealrlError, match=words):
            RandomiseConfig(**bad)  # type: ignore[arg-type]
    for task in ("toy/reach", "pusht/pusht"):
        with pytest.raises(RealrlError, match="nothing can be randomised here"):
            envs.make(task, randomise=RandomiseConfig(colour=0.1))


def test_a_touch_of_colour_leaves_materials_in_sight() -> None:
    """The renderer takes a geom's own colour for its material's as soon as it is not the default."""
    for task in (PUSH, "adroit/door"):
        plain, changed = (envs.make(task, sight=CLOUD, randomise=r) for r in (None, RandomiseConfig(colour=1e-4)))
        models: Any = [e._eyes._model for e in (plain, changed)]  # type: ignore[union-attr]
        for env in (plain, changed):
            env.reset(seed=1)
        default = np.all(models[0].geom_rgba == 0.5 + 0.5 * np.eye(4)[3], axis=-1) & (models[0].geom_matid >= 0)
        assert default.sum() > 5 and np.array_equal(models[0].geom_rgba[default], models[1].geom_rgba[default])
        assert not np.array_equal(models[0].mat_rgba, models[1].mat_rgba) and not np.array_equal(models[0].geom_rgba, models[1].geom_rgba)
        before, after = (e.reset(seed=1)[0]["pointcloud"] for e in (plain, changed))
        assert np.abs(before[:, 3:] - after[:, 3:]).max() < 1e-3


@pytest.mark.parametrize("what", [{"camera": 0.05}, {"angle": 3.0}])
def test_a_camera_that_follows_a_body_moves_too(what: dict[str, float]) -> None:
    places = []
    for randomise in (None, RandomiseConfig(**what)):
        env: Any = envs.make(CHEETAH, randomise=randomise)
        env.reset(seed=1)
        inner = env._inner
        mujoco.mj_forward(inner.model, inner.data)
        places.append(np.concatenate([inner.data.cam_xpos[0], inner.data.cam_xmat[0]]))
    assert np.abs(places[0] - places[1]).max() > 0.001


def test_more_distractors_than_a_scene_holds() -> None:
    with pytest.raises(RealrlError, match="at most 100"):
        RandomiseConfig(distractors=300)
