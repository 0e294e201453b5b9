"""An action and a state that are spread over several columns: joined in one order, under their names, or one line that says how."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_kinds import CAMERA, material, put, refused, theirs, wrong
from test_kinds_arrays import buffer
from test_lerobot_v2 import old

from realrl.cli.main import main
from realrl.data.formats import arrow, diffusion_policy, open_dataset, robomimic
from realrl.data.spread import clash
from realrl.data.store import Store
from realrl.data.tools.check import check
from realrl.files import inside
from realrl.types import RealrlError

ARMS = {"action.left_arm": 3, "action.right_arm": 3, "action.gripper": 1}


def parted(root: Path, wide: dict[str, int], *, names: dict[str, Any] | None = None, dtypes: dict[str, str] | None = None) -> Path:
    """A version 3 set with these columns in the place of "action"; number j of part i is 100 i + j + t / 10."""
    dtypes = dtypes or {}

    def change(_: int, columns: dict[str, Any]) -> dict[str, Any]:
        frames = np.arange(len(columns["index"]))
        for i, (name, n) in enumerate(wide.items()):
            x = (100 * i + np.arange(n) + frames[:, None] / 10).astype(dtypes.get(name, "float32"))
            columns[name] = pa.array(x.tolist() if n > 1 else x[:, 0])
        return {name: x for name, x in columns.items() if name != "action"}

    told = {name: {"dtype": dtypes.get(name, "float32"), "shape": [n], "names": (names or {}).get(name)} for name, n in wide.items()}
    root = theirs(root, change, **told)
    info = json.loads((root / "meta/info.json").read_text())
    info["features"].pop("action")
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


def test_an_action_in_parts_is_joined_in_the_order_of_info_json(tmp_path: Path) -> None:
    root = parted(tmp_path / "d", ARMS, names={"action.left_arm": ["x", "y", "z"], "action.right_arm": {"motors": ["x", "y", "q"]}})
    data = open_dataset(root)
    assert data.info["features"]["action"] == {"dtype": "float32", "shape": [7], "names": [
        "left_arm.x", "left_arm.y", "z", "right_arm.x", "right_arm.y", "q", "gripper"]}
    assert not any(name.startswith("action.") for name in data.info["features"])
    first = data.read()[0]
    assert np.allclose(first.action[2], [0.2, 1.2, 2.2, 100.2, 101.2, 102.2, 200.2])
    assert data.notes == ["action is action.left_arm + action.right_arm + action.gripper, side by side in this order; --rename "
                          "action=COLUMN,COLUMN of 'realrl data import' and --recorded.names action=COLUMN,COLUMN of 'realrl train' say "
                          "another"]
    assert not wrong(root)
    seen = material(root)
    assert seen.robot.actions[3] == "right_arm.x" and len(seen.robot.low) == 7 and any("side by side" in note for note in seen.notes)
    assert not (root / "meta/info.json").read_text().count('"action"')  # a set of somebody else stays as it is


def test_a_person_says_which_parts_and_in_which_order(tmp_path: Path) -> None:
    root = parted(tmp_path / "d", ARMS, dtypes={"action.gripper": "int64"})
    named = {"action": "action.gripper,action.left_arm"}
    assert np.allclose(open_dataset(root, names=named).read()[0].action[1], [200, 0.1, 1.1, 2.1])
    assert material(root, names=("action=action.gripper,action.left_arm",)).robot.actions == (
        "gripper", "left_arm 0", "left_arm 1", "left_arm 2")
    out = tmp_path / "out"
    assert main(["data", "import", str(root), "--out", str(out), "--rename", "action=action.gripper,action.left_arm"]) == 0
    kept = Store.open(out)
    assert kept.info["features"]["action"]["names"][:2] == ["gripper", "left_arm 0"]
    assert np.allclose(kept.read()[0].action[1], [200, 0.1, 1.1, 2.1])
    for lost, words in (("action.gripper,action.none", "has no column 'action.none'"), (f"action.gripper,{CAMERA}", "has no column")):
        assert words in refused(root, names={"action": lost})


def test_modality_json_says_the_order(tmp_path: Path) -> None:
    root = parted(tmp_path / "d", ARMS)
    told = {"action": {"gripper": {"start": 0, "end": 1}, "right": {"original_key": "action.right_arm"}}}
    (root / "meta/modality.json").write_text(json.dumps(told))
    assert np.allclose(open_dataset(root).read()[0].action[0], [200, 100, 101, 102])
    (root / "meta/modality.json").write_text("{")
    with pytest.raises(RealrlError, match=r"modality\.json"):
        open_dataset(root)


def test_what_says_one_motion_in_two_ways_is_not_joined_unasked(tmp_path: Path) -> None:
    """DROID's columns."""
    wide = {"action.cartesian_position": 6, "action.gripper_position": 1, "action.gripper_velocity": 1, "action.joint_position": 7}
    root = parted(tmp_path / "d", wide)
    told = refused(root)
    assert "action.cartesian_position and action.joint_position say one thing in two ways" in told or "action.gripper" in told
    assert "--rename action=action.cartesian_position,action.gripper_position" in told and "--recorded.names action=action." in told
    assert any("two ways" in line for line in wrong(root))
    names = {"action": "action.joint_position,action.gripper_position"}
    assert open_dataset(root, names=names).read()[0].action.shape[1] == 8
    with pytest.raises(RealrlError, match=r"'action\.joint_position' is to be joined into action twice"):
        open_dataset(root, names={"action": "action.joint_position,action.joint_position"})


@pytest.mark.parametrize(("names", "found"), [
    (("action.arm_position", "action.base_velocity"), False), (("action.end_effector_position", "action.end_effector_rotation"), False),
    (("action.left_joint_pos", "action.right_eef_pos"), False), (("action.left_arm_joint_position", "action.left_eef_pose"), True),
    (("action.arm_abs", "action.arm_delta"), True), (("action.left_arm", "action.left_hand"), False),
    (("action.xyz", "action.rpy"), False), (("action.rot_quat", "action.rot_euler"), True),
    (("action.joint_position", "action.arm"), False), (("action.arm", "action.effector"), False),
    (("action.eef_pos", "action.delta_eef_pos"), True), (("action.left_arm", "action.left_arm_velocity"), True),
    (("action/cartesian_position", "action/target_cartesian_position"), True), (("action.joint_position", "action.joint_velocity"), True),
    (("action.qpos", "action.tcp"), True)])
def test_which_columns_say_one_thing_in_two_ways(names: tuple[str, str], found: bool) -> None:
    assert (clash(names) is not None) == found


def test_other_spellings_are_offered(tmp_path: Path) -> None:
    root = parted(tmp_path / "d", {"left_arm_action": 3, "gripper_action": 1})
    told = refused(root)
    assert "--rename action=left_arm_action,gripper_action" in told
    assert open_dataset(root, names={"action": "left_arm_action,gripper_action"}).read()[0].action.shape[1] == 4


def test_a_state_in_parts_is_one_state(tmp_path: Path) -> None:
    root = parted(tmp_path / "d", {"observation.state.joints": 3, "observation.state.cartesian_pose": 6, "action.arm": 3})
    info = json.loads((root / "meta/info.json").read_text())
    info["features"].pop("observation.state")
    (root / "meta/info.json").write_text(json.dumps(info))
    data = open_dataset(root)
    assert data.read()[0].obs["state"].shape[1] == 9 and sorted(data.read()[0].obs) == ["state"]
    assert material(root).robot.state[:4] == ("joints 0", "joints 1", "joints 2", "cartesian_pose 0")
    own = open_dataset(root, names={"observation.state": "observation.state.cartesian_pose,observation.state.joints"})
    assert own.info["features"]["observation.state"]["names"][0] == "cartesian_pose 0"


def test_an_action_that_is_there_itself_counts_and_its_parts_are_left_out(tmp_path: Path) -> None:
    root = theirs(tmp_path / "d", put("action.left", lambda _, n: [0.0] * n), **{"action.left": {"dtype": "float32", "shape": [1]}})
    assert open_dataset(root).read()[0].action.shape[1] == 2


def test_version_2_joins_alike(tmp_path: Path) -> None:
    root = old(tmp_path / "d")
    info = json.loads((root / "meta/info.json").read_text())
    features = info["features"]
    features |= {"action.arm": features.pop("action") | {"shape": [1]}, "action.hand": {"dtype": "bool", "shape": [1], "names": None}}
    features["action.arm"]["names"] = None
    (root / "meta/info.json").write_text(json.dumps(info))
    for path in root.rglob("*.parquet"):
        table = pq.read_table(path)
        arm = pa.array([row[:1] for row in table["action"].to_pylist()], pa.list_(pa.float32()))
        hand = pa.array([i % 2 == 0 for i in range(len(table))])
        pq.write_table(table.drop_columns(["action"]).append_column("action.arm", arm).append_column("action.hand", hand), path)
    data = open_dataset(root)
    assert data.info["features"]["action"]["names"] == ["arm", "hand"] and data.cameras == ["images.top"]
    assert np.allclose(data.read(images=False)[0].action[:3], [[0, 1], [0.1, 0], [0.2, 1]])
    assert not wrong(root)


def test_arrays_of_other_formats_are_joined_alike(tmp_path: Path) -> None:
    arrays = {"state": np.ones((15, 2)), "action.left": np.ones((15, 3)), "action.grip": np.zeros((15, 1), np.int64)}
    found = diffusion_policy.read(buffer(tmp_path / "a.zarr", arrays))
    assert next(found.episodes).action[0].tolist() == [0, 1, 1, 1] and found.meta["names"]["action"][:2] == ["grip", "left 0"]  # by name
    picked = diffusion_policy.read(buffer(tmp_path / "b.zarr", {**arrays, "other": np.full((15, 2), 5.0)}), action=["other", "action.grip"])
    assert next(picked.episodes).action[0].tolist() == [5, 5, 0] and picked.meta["names"]["action"] == ["other 0", "other 1", "grip"]

    with h5py.File(tmp_path / "c.hdf5", "w") as file:
        one = file.create_group("data/demo_0")
        group = one.create_group("actions", track_order=True)
        group["right"], group["left"], one["obs/qpos"] = np.ones((5, 2)), np.zeros((5, 1)), np.ones((5, 3))
    demo = robomimic.read(tmp_path / "c.hdf5")
    assert next(demo.episodes).action[0].tolist() == [1, 1, 0] and demo.meta["names"]["action"] == ["right 0", "right 1", "left"]
    assert next(robomimic.read(tmp_path / "c.hdf5", action="actions/left").episodes).action.shape == (5, 1)


def test_a_handheld_gripper_has_its_next_pose_as_the_action(tmp_path: Path) -> None:
    """UMI's buffers have no action."""
    place = np.arange(15.0)[:, None] + np.zeros(3)
    arrays = {"robot0_eef_pos": place, "robot0_eef_rot_axis_angle": place * 0, "robot0_gripper_width": np.ones((15, 1))}
    found = diffusion_policy.read(buffer(tmp_path / "umi.zarr", arrays))
    first = next(found.episodes)
    assert first.action[:, 0].tolist() == [1, 2, 3, 4, 5, 5] and first.obs["state"].shape == (7, 7)
    assert any("the state that follows is taken for the action" in note for note in found.notes)


def test_an_early_table_joins_its_columns(tmp_path: Path) -> None:
    root = tmp_path / "push"
    (root / "train").mkdir(parents=True)
    n = 6
    table = pa.table({"episode_index": np.zeros(n, np.int64), "frame_index": np.arange(n), "timestamp": np.arange(n) / 10,
                      "observation.state.arm": pa.array([[1.0, 2.0]] * n, pa.list_(pa.float32())),
                      "observation.state.hand": np.full(n, 3.0),
                      "action.hand": np.full(n, 5.0), "action.arm": pa.array([[6.0, 7.0]] * n, pa.list_(pa.float32()))})
    with pa.OSFile(str(root / "train/data-00000-of-00001.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    found = arrow.read(root)
    first = next(found.episodes)
    assert first.action[0].tolist() == [5, 6, 7] and first.obs["state"][0].tolist() == [1, 2, 3]
    assert found.meta["names"] == {"action": ["hand", "arm 0", "arm 1"], "observation.state": ["arm 0", "arm 1", "hand"]}


def test_a_check_looks_at_joined_columns(tmp_path: Path) -> None:
    def stuck(_: int, columns: dict[str, Any]) -> dict[str, Any]:
        n = len(columns["index"])
        return {name: x for name, x in columns.items() if name != "action"} | {
            "action.arm": pa.array(np.random.default_rng(0).normal(size=(n, 2)).cumsum(0).astype(np.float32).tolist()),
            "action.dead": pa.array(np.zeros(n, np.float32))}
    told = {name: {"dtype": "float32", "shape": [n], "names": None} for name, n in (("action.arm", 2), ("action.dead", 1))}
    root = theirs(tmp_path / "d", stuck, lengths=(80, 80, 80), **told)
    info = json.loads((root / "meta/info.json").read_text())
    info["features"].pop("action")
    (root / "meta/info.json").write_text(json.dumps(info))
    assert any("never moves" in str(p) and "dead" in str(p) for p in check(root)) and not wrong(root)


def test_a_snapshot_in_the_hubs_cache_is_read_where_it_lies(tmp_path: Path) -> None:
    """Its files are links to blobs, which are called by their hash."""
    real, snapshot = theirs(tmp_path / "real"), tmp_path / "hub/datasets--a--b/snapshots/0123"
    blobs = snapshot.parent.with_name("blobs")
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(p for p in real.rglob("*") if p.is_file())):
        link = snapshot / path.relative_to(real)
        link.parent.mkdir(parents=True, exist_ok=True)
        path.rename(blobs / f"{number:040x}")
        link.symlink_to(os.path.relpath(blobs / f"{number:040x}", link.parent))
    assert len(open_dataset(snapshot).read()) == 3
    inside(snapshot, "meta/info.json")
    (snapshot / "all").symlink_to(blobs)
    (snapshot.with_name("4567")).mkdir()
    (snapshot.with_name("4567") / "link").symlink_to(blobs / f"{0:040x}")
    for way in (f"../../blobs/{0:040x}", f"all/{0:040x}", "all/new", "../4567/link", "all"):  # what is written there is others', too
        with pytest.raises(RealrlError, match="leads out of"):
            inside(snapshot, way)
    (snapshot / "all").unlink()
    (tmp_path / "info.json").write_bytes((snapshot / "meta/info.json").read_bytes())
    (snapshot / "meta/info.json").unlink()
    (snapshot / "meta/info.json").symlink_to(tmp_path / "info.json")
    assert "leads out of" in refused(snapshot)
