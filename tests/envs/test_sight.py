"""Eyes: every kind a suite gives keeps the contract, the same seed shows the same thing anywhere, and what matters is in sight."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from children import Child
from realrl import envs
from realrl.cell.rollout import rollout
from realrl.envs import clouds
from realrl.envs.mujoco import gl
from realrl.scene import SightConfig
from realrl.types import Array, RealrlError

needs_gl = pytest.mark.skipif(not (gl.egl_works() or gl.osmesa_works()), reason=f"needs OpenGL: apt-get install {gl.PACKAGES}")
PEG = "metaworld/peg-insert-side-v3"
CLOUD = SightConfig("pointcloud", points=128, colour=True)
SMALL: dict[str, SightConfig] = {
    "rgb": SightConfig("rgb", height=24, width=32), "depth": SightConfig("depth", height=24, width=32), "rays": CLOUD,
    "rendered": SightConfig("pointcloud", height=40, width=40, points=128, colour=True, source="depth")}
RENDERED = [pytest.param(kind, marks=needs_gl) for kind in ("rgb", "depth", "rendered")]
OWN = {"toy/reach": 2, PEG: 8, "adroit/door": 27, "adroit/hammer": 26, "adroit/pen": 24, "adroit/relocate": 30, "gym/HalfCheetah-v5": 17}


def digest(task: str, kind: str) -> str:
    """A fingerprint of all that an episode shows."""
    env = envs.make(task, sight=SMALL[kind])
    obs, _ = env.reset(seed=4)
    seen = hashlib.sha256()
    for action in np.random.default_rng(0).uniform(-1, 1, (4, env.task.action_dim)):
        for key in sorted(obs):
            seen.update(key.encode() + obs[key].tobytes())
        obs = env.step(action)[0]
    env.close()
    return seen.hexdigest()


@pytest.mark.parametrize("task", ["toy/reach", PEG, "adroit/door", "gym/HalfCheetah-v5"])
@pytest.mark.parametrize("kind", ["rays", *RENDERED])
def test_the_contract(task: str, kind: str) -> None:
    if task.startswith("gym/") and SMALL[kind].kind == "pointcloud":
        pytest.skip("locomotion has no workspace to crop a cloud to: refused, see test_mistakes_get_one_line")
    plain, env = envs.make(task), envs.make(task, sight=SMALL[kind])
    spec, full = env.task, plain.reset(seed=3)[0]["state"]
    obs, _ = env.reset(seed=3)
    assert spec.obs_dim == OWN[task] and spec.privileged == plain.task.obs_dim and plain.task.senses == {} and spec.senses
    assert np.array_equal(obs["privileged"], full) and set(obs["state"].tolist()) <= set(full.tolist())
    for action in np.random.default_rng(0).uniform(-1, 1, (3, spec.action_dim)):
        assert env.observation_space.contains(obs) and set(obs) == {"state", "privileged", *spec.senses}
        for key, shape in spec.senses.items():
            kind_of = {"images": np.uint8, "depth": np.uint16, "pointcloud": np.float32}[key.partition(".")[0]]
            assert obs[key].shape == shape and obs[key].dtype == kind_of and len(np.unique(obs[key])) > 2
        obs = env.step(action)[0]
        assert np.array_equal(obs["privileged"], plain.step(action)[0]["state"]), "eyes change nothing in the world"
    env.close()
    env.close()
    assert hash(spec) is not None


@pytest.mark.parametrize("task", ["adroit/hammer", "adroit/pen", "adroit/relocate"])
def test_the_hands_own_joints(task: str) -> None:
    env: Any = envs.make(task, sight=CLOUD)
    joints = env.reset(seed=0)[0]["state"]
    model, qpos = env._inner.model, env._inner.data.qpos
    things = [j for j in range(model.njnt) if model.joint(j).name.startswith(("OBJ", "nail"))]
    hand = np.delete(qpos, [model.joint(j).qposadr[0] for j in things])
    assert env.task.obs_dim == OWN[task] and np.array_equal(joints, hand.astype(np.float32))


def test_same_seed_same_sight_in_another_process() -> None:
    wanted = [("toy/reach", "rgb"), (PEG, "rays"), ("adroit/relocate", "rays")]
    if gl.egl_works() or gl.osmesa_works():
        wanted += [(PEG, "rendered"), ("adroit/relocate", "rgb"), ("adroit/relocate", "depth")]
    code = ("import sys; sys.path.insert(0, sys.argv[1]); import test_sight as t\n"
            "for pair in sys.argv[2:]: print(t.digest(*pair.split(':')))")
    status, printed, error = Child("-c", code, Path(__file__).parent, *map(":".join, wanted)).wait()
    assert status == 0, error
    assert printed.split() == [digest(*pair) for pair in wanted]


@needs_gl
def test_pusht_shows_its_table() -> None:
    pytest.importorskip("gym_pusht", reason="needs gym-pusht (pip install 'realrl[sim]')")
    env: Any = envs.make("pusht/keypoints", sight=SightConfig("rgb", height=96, width=96))
    obs, _ = env.reset(seed=1)
    assert np.array_equal(obs["images.top"], env.image()) and env.task.obs_dim == 2 and env.task.privileged == 18
    assert np.array_equal(obs["state"], obs["privileged"][:2])
    small, _ = envs.make("pusht/pusht", sight=SightConfig("rgb", height=48, width=64)).reset(seed=1)
    assert small["images.top"].shape == (48, 64, 3)


@pytest.mark.parametrize("task", ["toy/reach", "metaworld/reach-v3", "metaworld/door-open-v3"])
def test_experts_do_not_mind_eyes(task: str) -> None:
    env = envs.make(task, sight=CLOUD)
    done = list(rollout([env], envs.expert(task), [lambda obs, action: action], range(2), greedy=True))
    blind = list(rollout([envs.make(task)], envs.expert(task), [lambda obs, action: action], range(2), greedy=True))
    assert all(e.succeeded for e in done)
    assert [e.action.tolist() for e in done] == [e.action.tolist() for e in blind]
    assert done[0].obs["pointcloud"].shape == (len(done[0]) + 1, 128, 6)


def near(cloud: Array, place: Array, within: float) -> int:
    """How many points lie around a place."""
    return int((np.linalg.norm(cloud[:, :3] - place, axis=-1) < within).sum())


MATTERS = {  # task -> what must be in its cloud: bodies or sites, and how far their points may be from their origin, m
    PEG: {"peg": 0.12, "hole": 0.2}, "metaworld/box-close-v3": {"top_link": 0.1, "boxbody": 0.15},
    "metaworld/hammer-v3": {"hammer": 0.15, "nail_link": 0.08}, "adroit/door": {"S_handle": 0.05},
    "adroit/pen": {"Object": 0.06, "target": 0.06},
    "adroit/hammer": {"Object": 0.1, "nail_board": 0.06, "S_target": 0.04}, "adroit/relocate": {"Object": 0.04, "target": 0.075},
}


def place(env: Any, name: str) -> Array:
    """Where a body or a site of a task's simulator is."""
    sim = getattr(env, "_sim", None) or env._inner
    names = {sim.model.body(i).name for i in range(sim.model.nbody)}
    thing: Array = (sim.data.body(name) if name in names else sim.data.site(name)).xpos
    return thing


@pytest.mark.parametrize("task", MATTERS)
@pytest.mark.parametrize("source", ["rays", pytest.param("depth", marks=needs_gl)])
def test_what_matters_is_in_the_cloud(task: str, source: Any) -> None:
    if source == "depth" and task not in (PEG, "adroit/door", "adroit/pen"):
        pytest.skip("that rendered depth sees what rays see is tested elsewhere; three tasks do here")
    env = envs.make(task, sight=SightConfig("pointcloud", source=source))
    for seed in range(3):
        cloud = env.reset(seed=seed)[0]["pointcloud"]
        for name, within in MATTERS[task].items():
            assert near(cloud, place(env, name), within) >= 7, f"{name} with seed {seed}"
    env.close()


@pytest.mark.parametrize("source", ["rays", pytest.param("depth", marks=needs_gl)])
@pytest.mark.parametrize("task", ["metaworld/push-wall-v3", "metaworld/sweep-v3"])
def test_a_goal_in_the_air_is_seen(task: str, source: Any) -> None:
    env: Any = envs.make(task, sight=SightConfig("pointcloud", source=source))
    for seed in range(3):
        cloud = env.reset(seed=seed)[0]["pointcloud"]
        assert near(cloud, env._sim._target_pos, 0.025) >= 3
    env.close()


@needs_gl
def test_rays_and_rendered_depth_see_the_same_surfaces() -> None:
    for task in (PEG, "adroit/door"):
        both = []
        for source in ("rays", "depth"):
            env = envs.make(task, sight=SightConfig("pointcloud", source=source, height=240, width=240, points=1024))  # type: ignore[arg-type]
            both.append(env.reset(seed=0)[0]["pointcloud"].astype(np.float64))
            env.close()
        apart = np.linalg.norm(both[0][:, None] - both[1][None], axis=-1)
        assert np.quantile(apart.min(1), 0.95) < 0.02 and np.quantile(apart.min(0), 0.95) < 0.02


@needs_gl
def test_rendered_depth_lies_on_the_geometry() -> None:
    """The upper face of the wall in front of the goal, 12 cm high, through the code that a real camera takes."""
    env: Any = envs.make("metaworld/push-wall-v3", sight=SightConfig("depth", height=200, width=200))
    obs, _ = env.reset(seed=0)
    sim = env._sim
    camera = sim.model.camera("corner2").id
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = sim.data.cam_xmat[camera].reshape(3, 3) * (1.0, -1.0, -1.0), sim.data.cam_xpos[camera]
    points = clouds.deproject(obs["depth.corner2"], clouds.Pinhole.upright(200, 200, float(sim.model.cam_fovy[camera]), pose))
    wall = next(g for g in range(sim.model.ngeom) if sim.model.body(sim.model.geom_bodyid[g]).name == "wall")
    centre, half = sim.data.geom_xpos[wall], sim.model.geom_size[wall]
    top = points[(np.abs(points[:, :2] - centre[:2]) < half[:2] - 0.003).all(-1)]
    top = top[top[:, 2] > centre[2]]
    assert len(top) > 50 and np.abs(top[:, 2] - (centre[2] + half[2])).max() < 0.003
    env.close()


def test_clouds_hold_the_workspace_alone() -> None:
    for task in (PEG, "adroit/door"):
        env: Any = envs.make(task, sight=CLOUD)
        cloud = env.reset(seed=0)[0]["pointcloud"]
        low, high = np.asarray(env._eyes._stage.box)
        assert (cloud[:, :3] >= low - 1e-6).all() and (cloud[:, :3] <= high + 1e-6).all()
        assert (cloud[:, 3:] >= 0).all() and (cloud[:, 3:] <= 1).all() and len(np.unique(cloud[:, 3:], axis=0)) >= 3


@needs_gl
def test_environments_share_a_studio_until_the_last_has_gone() -> None:
    from realrl.envs.mujoco import render
    sight = SightConfig("rgb", height=20, width=20)
    one, two = (envs.make("gym/HalfCheetah-v5", sight=sight) for _ in range(2))
    first = one.reset(seed=0)[0]["images.track"]
    two.reset(seed=1)
    assert sum(key[0] == "gym/HalfCheetah-v5" for key in render._STUDIOS) == 1
    one.close()
    assert np.array_equal(two.reset(seed=0)[0]["images.track"], first)
    with pytest.raises(RealrlError, match="is closed"):
        one.reset(seed=0)
    two.close()
    assert not any(key[0] == "gym/HalfCheetah-v5" for key in render._STUDIOS)


@pytest.mark.parametrize("task", [PEG, "adroit/door", "toy/reach"])
def test_a_cloud_seen_from_the_hand_is_the_worlds_moved_there(task: str) -> None:
    world, hand = (envs.make(task, sight=SightConfig("pointcloud", points=64, colour=True, frame=frame)) for frame in ("world", "hand"))
    there, here = (env.reset(seed=1)[0] for env in (world, hand))
    random, origins = np.random.default_rng(0), []
    for _ in range(4):
        gap = there["pointcloud"].astype(np.float64) - here["pointcloud"]
        origins.append(gap[:, :3].mean(0))
        assert np.allclose(gap[:, :3], origins[-1], atol=1e-5) and not gap[:, 3:].any()
        if task != "adroit/door":  # whose joints do not say where the hand is
            n = 2 if task == "toy/reach" else 3
            assert np.allclose(origins[-1][:n], here["state"][:n], atol=1e-5)
        action = random.uniform(-1, 1, world.action_space.shape)
        there, here = (env.step(action)[0] for env in (world, hand))
    assert np.linalg.norm(origins[0] - origins[-1]) > 1e-3, "it moves with the hand"


def test_cameras_can_be_chosen() -> None:
    env = envs.make(PEG, sight=SightConfig("pointcloud", cameras=("topview",), points=64))
    cloud = env.reset(seed=0)[0]["pointcloud"]
    assert cloud.shape == (64, 3) and cloud[:, 2].max() > 0.25


def test_mistakes_get_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RealrlError, match="no camera 'nose', it has topview, corner"):
        envs.make(PEG, sight=SightConfig("pointcloud", cameras=("nose",)))
    with pytest.raises(RealrlError, match="toy/line: no 'rgb' observations, it gives 'state'; toy/reach can"):
        envs.make("toy/line", sight=SightConfig("rgb"))
    with pytest.raises(RealrlError, match="no 'pointcloud' observations, it gives 'state' and 'rgb' and 'depth'"):
        envs.make("gym/HalfCheetah-v5", sight=SightConfig("pointcloud"))
    with pytest.raises(RealrlError, match="model has no camera"):
        envs.make("gym/Pusher-v5", sight=SightConfig("rgb"))
    monkeypatch.setattr(gl, "egl_works", lambda: False)
    monkeypatch.setattr(gl, "osmesa_works", lambda: False)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    gl.backend.cache_clear()
    with pytest.raises(RealrlError, match="no OpenGL to take pictures with: apt-get install libosmesa6"):
        gl.backend()
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(RealrlError, match="MUJOCO_GL=osmesa, but osmesa does not work here"):
        gl.backend()
    gl.backend.cache_clear()


@pytest.mark.parametrize(("wrong", "words"), [
    ({"kind": "lidar"}, "one of 'state', 'rgb', 'depth', 'pointcloud'"), ({"source": "lidar"}, "one of 'rays', 'depth'"),
    ({"cameras": "corner"}, "tuple of names"), ({"cameras": ()}, "tuple of names"), ({"height": 84.0}, "whole number"),
    ({"points": 0}, "at least 1"), ({"height": 0}, "at least 1"), ({"frame": "camera"}, "one of 'world', 'hand'")])
def test_a_sight_that_cannot_be_is_named(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(RealrlError, match=f"sight.{next(iter(wrong))} must be .*{words}"):
        SightConfig(**wrong)
