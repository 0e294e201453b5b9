"""robomimic's and robosuite's HDF5, in and out, and files that mean harm."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from format_samples import assert_same, sample, small_disk

from realrl.data import formats
from realrl.data.formats import robomimic
from realrl.data.store import Store
from realrl.types import Episode, RealrlError, Source

h5py = pytest.importorskip("h5py")
TASKS = {"door": ("Door", 261), "lift": ("Lift", 412), "nut-assembly": ("NutAssembly", 1036), "pick-place": ("PickPlace", 1482),
         "stack": ("Stack", 532), "wipe": ("Wipe", 174)}


def documented(path: Path, demos: int = 3, steps: int = 5, **without: bool) -> Path:
    """A file in the layout that robomimic's documentation describes."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {"control_freq": 25, "robots": ["Panda"]}})
        for i in (10, *range(demos - 1)):  # demo_10 comes after demo_2
            demo = data.create_group(f"demo_{i}")
            demo.attrs["num_samples"] = steps
            demo["actions"] = rng.uniform(-1, 1, (steps, 7))
            if not without.get("rewards"):
                demo["rewards"] = np.eye(steps)[-1]
                demo["dones"] = np.eye(steps, dtype=np.int64)[-1]
            frames = {"object": rng.normal(size=(steps + 1, 10)), "robot0_eef_pos": rng.normal(size=(steps + 1, 3)),
                      "robot0_joint_pos": rng.normal(size=(steps + 1, 7)),
                      "agentview_image": rng.integers(0, 256, (steps + 1, 16, 16, 3), dtype=np.uint8),
                      "agentview_depth": rng.uniform(0, 2, (steps + 1, 16, 16, 1)).astype(np.float32)}
            for key, x in frames.items():
                demo[f"obs/{key}"] = x[:-1]
                if not without.get("next_obs"):
                    demo[f"next_obs/{key}"] = x[1:]
        file["mask/train"] = np.array([b"demo_0", b"demo_10"])
        file["mask/valid"] = np.array([b"demo_1"])
    return path


def test_the_documented_layout_is_read(tmp_path: Path) -> None:
    path = documented(tmp_path / "low_dim.hdf5")
    imported = formats.read(path)
    assert (imported.task, imported.fps, imported.robot_type, imported.count) == ("Lift", 25, "Panda", 3)
    assert imported.meta["demos"] == ["demo_0", "demo_1", "demo_10"]
    assert any("train (2 demos)" in note for note in imported.notes)
    first = next(imported.episodes)
    assert {k: x.shape for k, x in first.obs.items()} == {
        "object": (6, 10), "robot0_eef_pos": (6, 3), "robot0_joint_pos": (6, 7), "images.agentview": (6, 16, 16, 3),
        "depth.agentview": (6, 16, 16), "state": (6, 13)}
    with h5py.File(path) as file:
        demo = file["data/demo_0"]
        np.testing.assert_array_equal(first.obs["images.agentview"][-1], demo["next_obs/agentview_image"][-1])
        metres = demo["obs/agentview_depth"][2, ..., 0]
        assert np.abs(first.obs["depth.agentview"][2] - 1000 * metres).max() <= 0.5
        np.testing.assert_array_equal(first.extra["recorded_action"], demo["actions"])
        np.testing.assert_array_equal(first.action, demo["actions"][:].astype(np.float32))
    np.testing.assert_array_equal(first.obs["state"], np.concatenate([first.obs["robot0_eef_pos"], first.obs["object"]], axis=1))
    assert first.succeeded and first.terminated and not first.truncated and first.success.sum() == 1
    assert (first.source == Source.HUMAN).all()


def test_options_choose(tmp_path: Path) -> None:
    path = documented(tmp_path / "x.hdf5")
    imported = formats.read(path, "robomimic", filter="train", keys=["object", "robot0_eef_pos"], state=["object"], task="lift it",
                            fps=5, source="script", action_range=(-2, 2))
    episodes = list(imported.episodes)
    assert imported.meta["demos"] == ["demo_0", "demo_10"] and {e.task for e in episodes} == {"lift it"} and imported.fps == 5
    assert sorted(episodes[0].obs) == ["object", "robot0_eef_pos", "state"]
    np.testing.assert_array_equal(episodes[0].obs["state"], episodes[0].obs["object"])
    np.testing.assert_allclose(episodes[0].action, episodes[0].extra["recorded_action"] / 2, rtol=1e-6)
    assert (episodes[0].source == Source.SCRIPT).all() and episodes[0].time[1] == 0.2


@pytest.mark.parametrize(("options", "words"), [
    ({"filter": "test"}, "train, valid"), ({"keys": ["gripper"]}, "agentview_image"), ({"state": ["images.agentview"]}, "robot0_eef_pos"),
    ({"fps": -2}, "number above 0"), ({"source": "me"}, "human"), ({"action_range": (1, 1)}, "low below high"), ({"last": "no"}, "drop"),
    ({"colour": 1}, "action_range")])
def test_wrong_options_are_answered_with_what_there_is(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    path = documented(tmp_path / "x.hdf5")
    with pytest.raises(RealrlError, match=words):
        formats.read(path, **options)


@pytest.mark.parametrize(("last", "steps"), [("repeat", 5), ("drop", 4)])
def test_without_next_obs(tmp_path: Path, last: str, steps: int) -> None:
    imported = robomimic.read(documented(tmp_path / "x.hdf5", next_obs=True), last=last)
    assert any("last='repeat'" in note for note in imported.notes)
    for episode in imported.episodes:
        assert len(episode) == steps and len(episode.obs["object"]) == steps + 1
        assert (episode.obs["object"][-1] == episode.obs["object"][-2]).all() == (last == "repeat")


def test_round_trip_is_exact(tmp_path: Path) -> None:
    episodes = [sample(i, 4 + i, terminated=bool(i % 2)) for i in range(3)]
    formats.write("robomimic", episodes, tmp_path / "x.hdf5", fps=30)
    imported = formats.read(tmp_path / "x.hdf5")
    assert imported.fps == 30 and imported.count == 3
    for one, other in zip(episodes, imported.episodes, strict=True):
        assert_same(one, other)


def test_written_files_are_what_robomimic_documents(tmp_path: Path) -> None:
    episode = sample(1)
    robomimic.write([episode], tmp_path / "x.hdf5", fps=10, action_range=(0, 10))
    with h5py.File(tmp_path / "x.hdf5") as file:
        data, demo = file["data"], file["data/demo_0"]
        assert data.attrs["total"] == demo.attrs["num_samples"] == len(episode)
        assert json.loads(data.attrs["env_args"]).keys() == {"env_name", "type", "env_kwargs"}
        assert demo["dones"][:].tolist() == [0] * 6 + [1]
        np.testing.assert_allclose(demo["actions"], 5 + 5 * episode.action, rtol=1e-6)
        assert demo["obs/front_image"].shape == (7, 32, 40, 3) and demo["obs/front_image"].dtype == np.uint8
        assert demo["obs/front_depth"].shape == (7, 32, 40, 1)
        np.testing.assert_array_equal(demo["next_obs/state"][:-1], demo["obs/state"][1:])
    back = next(robomimic.read(tmp_path / "x.hdf5", action_range=(0, 10)).episodes)
    np.testing.assert_allclose(back.action, episode.action, atol=1e-6)
    np.testing.assert_allclose(back.proposed, episode.proposed, atol=1e-6)


@pytest.mark.parametrize("folder", TASKS)
def test_human_robosuite_episodes(shared_data: Path, tmp_path: Path, folder: str) -> None:
    path = shared_data / "robosuite_human" / folder / "panda/demo.hdf5"
    assert formats.detect(path) == "robomimic"
    imported = formats.read(path)
    episode = next(imported.episodes)
    assert (imported.task, len(episode)) == TASKS[folder] and (imported.fps, imported.robot_type) == (20, "Panda")
    with h5py.File(path) as file:
        demo = file["data/demo_1"]
        np.testing.assert_array_equal(episode.extra["recorded_action"], demo["actions"])
        np.testing.assert_array_equal(episode.extra["sim_state"], demo["states"])
        np.testing.assert_array_equal(episode.obs["state"][:-1], demo["states"][:, 1:].astype(np.float32))
    assert str(episode.extra["model_file"]).lstrip().startswith("<mujoco")
    assert any("[-1, 1]" in note for note in imported.notes) == (folder == "wipe")
    store = Store.create(tmp_path / "store", task=imported.task, fps=imported.fps)
    store.append([episode])
    assert_same(episode, store.read()[0])
    robomimic.write([episode], tmp_path / "x.hdf5", fps=20, env_args=imported.meta["env_args"])
    again = next((reread := robomimic.read(tmp_path / "x.hdf5")).episodes)
    assert_same(episode, again)
    assert reread.meta["env_args"] == imported.meta["env_args"]
    np.testing.assert_array_equal(again.extra["sim_state"], episode.extra["sim_state"])
    assert again.extra["model_file"] == episode.extra["model_file"]


def test_success_can_be_given_to_a_file_without_rewards(tmp_path: Path) -> None:
    path = documented(tmp_path / "x.hdf5", rewards=True)
    assert not any(e.succeeded or e.terminated for e in robomimic.read(path).episodes)
    for episode in robomimic.read(path, success=True).episodes:
        assert episode.succeeded and episode.terminated and episode.reward.tolist() == [0, 0, 0, 0, 1]


# ---- harm


def external_link(file: Any, secret: Path) -> None:
    del file["data/demo_0/actions"]
    file["data/demo_0/actions"] = h5py.ExternalLink(str(secret), "data/demo_0/actions")


def soft_link(file: Any, _: Path) -> None:
    del file["data/demo_0/obs/object"]
    file["data/demo_0/obs/object"] = h5py.SoftLink("/data/demo_1/obs/object")


def external_storage(file: Any, secret: Path) -> None:
    del file["data/demo_0/actions"]
    file["data/demo_0"].create_dataset("actions", (5, 7), "f8", external=[(str(secret), 0, 5 * 7 * 8)])


def virtual(file: Any, secret: Path) -> None:
    del file["data/demo_0/actions"]
    layout = h5py.VirtualLayout((5, 7), "f8")
    layout[:] = h5py.VirtualSource(str(secret), "data/demo_0/actions", (5, 7))
    file["data/demo_0"].create_virtual_dataset("actions", layout)


def huge(file: Any, _: Path) -> None:
    del file["data/demo_0/actions"]
    file["data/demo_0"].create_dataset("actions", (2**40, 7), "f8", chunks=(1000, 7))


def objects(file: Any, _: Path) -> None:
    del file["data/demo_0/actions"]
    file["data/demo_0"].create_dataset("actions", data=np.array([b"cos\nsystem\n"] * 5, dtype=object), dtype=h5py.special_dtype(vlen=bytes))


def no_json(file: Any, _: Path) -> None:
    file["data"].attrs["env_args"] = b"\xff\xfe{"


def shorter(file: Any, _: Path) -> None:
    del file["data/demo_0/rewards"]
    file["data/demo_0/rewards"] = np.zeros(3)


def odd_name(file: Any, _: Path) -> None:
    file["data/demo_0/obs"].move("object", "../../etc")


@pytest.mark.parametrize("harm", [external_link, soft_link, external_storage, virtual, huge, objects, no_json, shorter, odd_name],
                         ids=lambda f: f.__name__)
def test_harm_is_one_line(tmp_path: Path, harm: Callable[[Any, Path], None]) -> None:
    documented(tmp_path / "secret.hdf5")
    path = documented(tmp_path / "x.hdf5")
    with h5py.File(path, "a") as file:
        harm(file, tmp_path / "secret.hdf5")
    with pytest.raises(RealrlError) as caught:
        list(robomimic.read(path).episodes)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_model_beside_the_file_must_be_beside_it(tmp_path: Path) -> None:
    (tmp_path / "secret.xml").write_text("<mujoco/>")
    (tmp_path / "set/models").mkdir(parents=True)
    path = documented(tmp_path / "set/x.hdf5")
    (tmp_path / "set/models/link.xml").symlink_to(tmp_path / "secret.xml")
    (tmp_path / "set/models/good.xml").write_text("<mujoco model='good'/>")
    found = []
    for name in ("../../secret.xml", str(tmp_path / "secret.xml"), "link.xml", "good.xml"):
        with h5py.File(path, "a") as file:
            file["data/demo_0"].attrs["model_file"] = name
        found.append("model_file" in next(robomimic.read(path).episodes).extra)
    assert found == [False, False, False, True]


def test_a_file_cut_anywhere_is_one_line(tmp_path: Path) -> None:
    whole = documented(tmp_path / "x.hdf5").read_bytes()
    cut = tmp_path / "cut.hdf5"
    for length in np.linspace(0, len(whole) - 1, 40).astype(int):
        cut.write_bytes(whole[:length])
        with pytest.raises(RealrlError):
            list(formats.read(cut, "robomimic").episodes)


def test_other_files_are_told_from_it(tmp_path: Path) -> None:
    (tmp_path / "text.hdf5").write_text("no")
    os.mkfifo(tmp_path / "pipe.hdf5")
    for name in ("text.hdf5", "pipe.hdf5", "."):
        assert not robomimic.detect(tmp_path / name)
    with h5py.File(tmp_path / "aloha.hdf5", "w") as file:
        file["observations/qpos"] = np.zeros((5, 14))
    with pytest.raises(RealrlError, match=r"data/demo_0.* it holds observations"):
        formats.read(tmp_path / "aloha.hdf5")
    with pytest.raises(RealrlError, match="does not exist"):
        formats.read(tmp_path / "nothing.hdf5")


def test_writing_never_overwrites_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    (tmp_path / "x.hdf5").write_text("mine")
    with pytest.raises(RealrlError, match="exists already"):
        robomimic.write([sample()], tmp_path / "x.hdf5", fps=10)
    with pytest.raises(RealrlError, match="no episodes"):
        robomimic.write([], tmp_path / "y.hdf5", fps=10)

    def broken() -> Any:
        yield sample()
        raise RealrlError("the source broke")

    with pytest.raises(RealrlError, match="broke"):
        robomimic.write(broken(), tmp_path / "y.hdf5", fps=10)
    assert [p.name for p in tmp_path.iterdir()] == ["x.hdf5"] and (tmp_path / "x.hdf5").read_text() == "mine"


@pytest.mark.parametrize("size", [100, 3_000, 20_000, 150_000])
def test_a_full_disk_is_one_line(tmp_path: Path, size: int) -> None:
    """The library would end the interpreter it runs in."""
    with small_disk(size), pytest.raises(RealrlError, match="free space"):
        formats.write("robomimic", [sample(i, 20) for i in range(2)], tmp_path / "x.hdf5", fps=10)
    assert not list(tmp_path.iterdir())


def test_bytes_changed_anywhere_are_one_line_or_harmless(tmp_path: Path) -> None:
    whole, path, rng, refused = documented(tmp_path / "x.hdf5").read_bytes(), tmp_path / "changed.hdf5", np.random.default_rng(0), 0
    for _ in range(60):
        data = bytearray(whole)
        for at in rng.integers(20_000, size=20):  # most of what is not pixels
            data[at] = rng.integers(256)
        path.write_bytes(data)
        try:
            list(formats.read(path, "robomimic").episodes)
        except RealrlError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 20


def test_reading_is_lazy(tmp_path: Path) -> None:
    """The last demo is damaged in its images; the ones before it come all the same."""
    path = documented(tmp_path / "x.hdf5")
    with h5py.File(path, "a") as file:
        del file["data/demo_10/obs/agentview_image"]
    got: list[Episode] = []
    with pytest.raises(RealrlError, match="demo_10"):
        for episode in robomimic.read(path).episodes:
            got.append(episode)
    assert len(got) == 2


# ---- other people's kinds


def isaaclab(path: Path, *, obs: bool = True, states: bool = True, datagen: bool = True, first: bool = True, success: Any = True) -> Path:
    """What IsaacLab's recorder writes: groups of groups, whether it succeeded as an attribute, no rewards, no next_obs."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Isaac-Stack", "type": 2, "sim_args": {"dt": 0.01, "decimation": 4}})
        for number, steps in enumerate((6, 4)):
            demo = data.create_group(f"demo_{number}")
            if success is not None:
                demo.attrs["success"] = np.bool_(success if number else True)
            demo["actions"] = rng.uniform(-1, 1, (steps, 7)).astype(np.float32)
            for name, size in {"actions": 7, "object": 5, "eef_quat": 4, "eef_pos": 3, "gripper_pos": 2}.items() if obs else ():
                demo[f"obs/{name}"] = rng.normal(size=(steps, size)).astype(np.float32)
            if obs:
                demo["obs/wrist/rgb"] = rng.integers(0, 256, (steps, 16, 16, 3), dtype=np.uint8)
            if obs and datagen:
                demo["obs/datagen_info/eef_pose/franka"] = rng.normal(size=(steps, 4, 4)).astype(np.float32)
            if states:
                demo["states/articulation/robot/joint_position"] = np.tile(np.arange(1, steps + 1, dtype=np.float32)[:, None], 9)
            if first:
                demo["initial_state/articulation/robot/joint_position"] = np.zeros((1, 9), np.float32)
    return path


@pytest.mark.parametrize("without", [{}, {"states": False}, {"datagen": False}, {"states": False, "first": False}])
def test_groups_of_groups_are_read(tmp_path: Path, without: dict[str, bool]) -> None:
    imported = formats.read(isaaclab(tmp_path / "x.hdf5", **without))
    episodes = list(imported.episodes)
    assert [len(e) for e in episodes] == [6, 4] and imported.fps == 25 and all(e.succeeded and e.terminated for e in episodes)
    assert {k: x.shape for k, x in episodes[0].obs.items()} == {
        "actions": (7, 7), "object": (7, 5), "eef_quat": (7, 4), "eef_pos": (7, 3), "gripper_pos": (7, 2),
        "images.wrist.rgb": (7, 16, 16, 3), "state": (7, 14)}
    np.testing.assert_array_equal(episodes[1].obs["state"][:, 9:], episodes[1].obs["object"])
    assert any("datagen_info" in note for note in imported.notes) == without.get("datagen", True)
    named = next(formats.read(tmp_path / "x.hdf5", keys=["eef_pos", "wrist.rgb"]).episodes)
    assert sorted(named.obs) == ["eef_pos", "images.wrist.rgb", "state"]


def test_an_object_alone_is_no_state_and_pictures_of_one_channel_are_none(tmp_path: Path) -> None:
    """Joints under a name that nobody foresaw count with the object; the last action among the observations and pictures do not."""
    path = isaaclab(tmp_path / "x.hdf5")
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            for name in ("eef_quat", "eef_pos", "gripper_pos"):
                del demo[f"obs/{name}"]
            steps = len(demo["actions"])
            demo["obs/joints"] = np.ones((steps, 9), np.float32)
            demo["obs/wrist_gray"], demo["obs/wrist_seg"] = np.ones((steps, 16, 16), np.uint8), np.ones((steps, 16, 16), np.int32)
    obs = next(formats.read(path).episodes).obs
    assert obs["state"].shape == (7, 14) and obs["images.wrist_gray"].shape == (7, 16, 16, 3) and obs["masks.wrist_seg"].dtype == np.int32


@pytest.mark.parametrize(("told", "succeeded"), [(True, [True, True]), (False, [True, False]), (None, [False, False])])
def test_success_is_what_the_demonstration_says(tmp_path: Path, told: Any, succeeded: list[bool]) -> None:
    imported = formats.read(isaaclab(tmp_path / "x.hdf5", success=told))
    assert [e.succeeded for e in imported.episodes] == succeeded
    assert any("attribute" in note for note in imported.notes) == (told is not None)
    assert all(e.succeeded for e in formats.read(tmp_path / "x.hdf5", success=True).episodes)


def test_the_simulators_groups_stand_for_observations_that_are_missing(tmp_path: Path) -> None:
    """IsaacLab's states are those after each step: the initial one stands before them."""
    episode = next(formats.read(isaaclab(tmp_path / "x.hdf5", obs=False)).episodes)
    np.testing.assert_array_equal(episode.obs["articulation.robot.joint_position"][:, 0], np.arange(7))
    np.testing.assert_array_equal(episode.obs["state"], episode.obs["articulation.robot.joint_position"])
    with pytest.raises(RealrlError, match="initial_state"):
        formats.read(isaaclab(tmp_path / "y.hdf5", obs=False, first=False))


def test_pictures_are_turned_and_clouds_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = documented(tmp_path / "x.hdf5")
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            for group in ("obs", "next_obs"):
                last = demo[group]["agentview_image"][:]
                del demo[group]["agentview_image"]
                demo[group]["agentview_image"] = np.moveaxis(last, 3, 1)
                demo[group]["agentview_depth_raw"] = rng.integers(300, 900, (5, 1, 16, 16)).astype(np.uint16)
                demo[group]["pcd"] = rng.normal(size=(5, 12, 6))
    turned = next(formats.read(path).episodes)
    assert turned.obs["images.agentview"].shape == (6, 16, 16, 3) and turned.obs["depth.agentview_depth_raw"].shape == (6, 16, 16)
    assert turned.obs["pointcloud"].shape == (6, 12, 6) and turned.obs["pointcloud"].dtype == np.float32
    with h5py.File(path) as file:
        np.testing.assert_array_equal(np.moveaxis(turned.obs["images.agentview"][:-1], 3, 1), file["data/demo_0/obs/agentview_image"])
        np.testing.assert_array_equal(turned.obs["depth.agentview_depth_raw"][:-1], file["data/demo_0/obs/agentview_depth_raw"][:, 0])


def test_a_demonstration_without_actions_is_left_out(tmp_path: Path) -> None:
    path = documented(tmp_path / "x.hdf5")
    with h5py.File(path, "a") as file:
        del file["data/demo_1/actions"]
    imported = formats.read(path)
    assert imported.count == len(list(imported.episodes)) == 2 and any("demo_1" in note for note in imported.notes)
    with pytest.raises(RealrlError, match="choose another filter"):
        formats.read(path, filter="valid")
