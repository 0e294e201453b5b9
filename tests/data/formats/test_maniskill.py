"""ManiSkill's trajectories and their description, as its recorder writes them, and what may be wrong with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from realrl.cli.main import main
from realrl.data import formats
from realrl.data.store import Store
from realrl.types import Episode, RealrlError, Source

T = 5


def _tree(n: int) -> dict[str, Any]:
    """Observations of mode rgbd."""
    camera = {"rgb": np.full((n, 16, 24, 3), 90, np.uint8), "depth": np.full((n, 16, 24, 1), 700, np.int16),
              "segmentation": np.zeros((n, 16, 24, 1), np.int16)}
    frames = np.arange(n, dtype=np.float32)
    return {"agent": {"qpos": np.stack([frames, frames + 0.5], 1), "qvel": np.zeros((n, 2), np.float32)},
            "extra": {"tcp_pose": np.ones((n, 7), np.float32), "is_grasped": frames > 2},
            "sensor_param": {"base_camera": {"intrinsic_cv": np.zeros((n, 3, 3), np.float32)}}, "sensor_data": {"base_camera": camera}}


def _put(group: Any, name: str, found: Any) -> None:
    if isinstance(found, Mapping):
        inner = group.create_group(name, track_order=True)
        for key, x in found.items():
            _put(inner, key, x)
    else:
        group[name] = found


def recorded(root: Path, obs: str = "rgbd", *, wins: tuple[bool, ...] = (True, False, True), steps: tuple[int, ...] = (5, 6, 7),
             said: bool = True, flags: bool = True, actions: Any = None, described: Mapping[str, Any] | None = None) -> Path:
    root.mkdir(parents=True)
    path, told = root / f"trajectory.{obs}.pd_joint_delta_pos.physx_cpu.h5", []
    with h5py.File(path, "w") as file:
        for i, (won, n) in enumerate(zip(wins, steps, strict=True)):
            one = file.create_group(f"traj_{i}", track_order=True)
            made = {"rgbd": _tree(n + 1), "state": np.full((n + 1, 25), i, np.float32), "none": None,
                    "pointcloud": {"agent": {"qpos": np.ones((n + 1, 2))}, "pointcloud": {
                        "xyzw": np.ones((n + 1, 64, 4), np.float32), "rgb": np.zeros((n + 1, 64, 3), np.uint8)}}}[obs]
            last = np.arange(n) == n - 1
            states = {"actors": {"cube": np.zeros((n + 1, 13), np.float32)}, "articulations": {"panda": np.ones((n + 1, 31), np.float32)}}
            _put(one, "actions", np.full((n, 8), i / 10, np.float32) if actions is None else actions(n))
            for name, x in {"obs": made, "env_states": states, "terminated": last & won, "truncated": last & (not won),
                            **({"success": last & won} if flags else {})}.items():
                if x is not None:
                    _put(one, name, x)
            told.append({"episode_id": i, "episode_seed": 100 + i, "control_mode": "pd_joint_delta_pos", "elapsed_steps": n,
                         "reset_kwargs": {"seed": 100 + i}, **({"success": won} if said else {})})
    about = {"env_info": {"env_id": "PickCube-v1", "env_kwargs": {"obs_mode": obs}, "max_episode_steps": 50}, "commit_info": None,
             "episodes": told, "source_type": "motionplanning", **(described or {})}
    path.with_suffix(".json").write_text(json.dumps(about))
    return path


def read(path: Path, **options: Any) -> tuple[list[Episode], formats.Imported]:
    found = formats.read(path, **options)
    return list(found.episodes), found


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(RealrlError) as caught:
        list(formats.read(path, **options).episodes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_pictures_states_seeds_and_outcomes(tmp_path: Path) -> None:
    path = recorded(tmp_path / "d")
    assert formats.detect(path) == formats.detect(path.parent) == "maniskill"
    episodes, found = read(path.parent)
    assert (found.task, found.fps, found.count) == ("PickCube-v1", 20, 3) and "2 of 3 episodes succeeded" in found.notes
    assert [e.succeeded for e in episodes] == [True, False, True] and [e.seed for e in episodes] == [100, 101, 102]
    assert [(e.terminated, e.truncated) for e in episodes] == [(True, False), (False, True), (True, False)]
    e = episodes[1]
    assert len(e) == 6 and (e.source == Source.SCRIPT).all() and np.allclose(e.action, 0.1)
    assert e.obs["state"][-1].tolist() == [6, 6.5, 0, 0, *[1] * 7, 1]  # agent, then extra, and what followed the last action
    assert e.obs["images.base_camera"].shape == (7, 16, 24, 3) and (e.obs["depth.base_camera"] == 700).all()
    assert not any("param" in key or "seg" in key for key in e.obs)


def test_other_modes_of_observation(tmp_path: Path) -> None:
    assert (read(recorded(tmp_path / "s", "state"))[0][2].obs["state"] == 2).all()
    cloud = read(recorded(tmp_path / "p", "pointcloud"))[0][0]
    assert cloud.obs["pointcloud"].shape == (T + 1, 64, 3) and cloud.obs["state"].shape == (T + 1, 2)
    episodes, found = read(recorded(tmp_path / "n", "none"))
    assert episodes[0].obs["state"].shape == (T + 1, 44) and any("replay_trajectory" in note for note in found.notes)


def test_success_as_the_description_says_or_unknown(tmp_path: Path) -> None:
    assert [e.succeeded for e in read(recorded(tmp_path / "said", flags=False))[0]] == [True, False, True]
    episodes, found = read(recorded(tmp_path / "unknown", said=False, flags=False))
    assert not any(e.judged for e in episodes) and any("of 3 the file does not say it" in note for note in found.notes)
    assert all(e.succeeded for e in read(tmp_path / "unknown", success=True)[0])


def test_what_is_missing_or_damaged(tmp_path: Path) -> None:
    path = recorded(tmp_path / "empty", steps=(5, 0, 7))
    episodes, found = read(path)
    assert len(episodes) == 2 and "left out: 1 episodes without a step (traj_1)" in found.notes
    with h5py.File(path, "a") as file:
        del file["traj_2"]
    assert any("lists 1 episodes that the file lacks (traj_2)" in note for note in read(path)[1].notes)
    path.with_suffix(".json").write_text("{")
    assert ".json is not readable" in refused(path)
    path.with_suffix(".json").unlink()
    assert "format=maniskill" in refused(path)
    episodes, found = read(path, format="maniskill")
    assert len(episodes) == 1 and any("is not there" in note for note in found.notes)
    whole = recorded(tmp_path / "cut")
    whole.write_bytes(whole.read_bytes()[:3000])
    assert "truncated or damaged" in refused(whole)

    lacking = recorded(tmp_path / "lacking")
    with h5py.File(lacking, "a") as file:
        del file["traj_1/obs/sensor_data/base_camera/rgb"], file["traj_1/success"]
        file["traj_1/success"] = np.zeros(3, bool)
    assert "traj_1 has no obs/sensor_data/base_camera/rgb" in refused(lacking)
    assert "6 actions but 3 of success" in refused(lacking, keys=["agent.qpos"])
    assert "no observation 'agent.qqq'" in refused(lacking, keys=["agent.qqq"])


def test_actions_of_several_arms_and_the_clock(tmp_path: Path) -> None:
    def two(n: int) -> dict[str, Any]:
        return {"panda-1": np.ones((n, 2), np.float32), "panda-0": np.zeros((n, 3), np.float32)}
    about = {"env_info": {"env_id": "Two", "env_kwargs": {"sim_config": {"control_freq": 10}}}, "source_type": "human"}
    episodes, found = read(recorded(tmp_path / "d", "state", actions=two, described=about))
    assert episodes[0].action[0].tolist() == [1, 1, 0, 0, 0] and found.fps == 10 and (episodes[0].source == Source.HUMAN).all()
    assert found.meta["names"]["action"] == ["panda-1 0", "panda-1 1", "panda-0 0", "panda-0 1", "panda-0 2"]


def test_it_becomes_a_dataset(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["data", "import", str(recorded(tmp_path / "d")), "--out", str(out)]) == 0
    store = Store.open(out)
    assert (len(store), store.fps, store.cameras) == (3, 20, ["images.base_camera", "depth.base_camera"])
    assert [e.succeeded for e in store.read(images=False)] == [True, False, True]
