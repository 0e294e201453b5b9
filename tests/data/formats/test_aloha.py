"""HDF5 with one file an episode, as ACT's, ALOHA's and others' recorders write it, and what may be wrong with it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from realrl.cli.main import main
from realrl.data import formats
from realrl.data.formats import aloha
from realrl.data.store import Store
from realrl.types import Array, Episode, RealrlError

T, CAMERAS = 6, ("top", "left_wrist")


def jpeg(colour: tuple[int, int, int], *, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (24, 16), colour if mode == "RGB" else colour[0]).save(out, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return out.getvalue()


def rows(number: int, steps: int) -> list[bytes]:
    return [jpeg((200, 20 * number, 10 * t)) for t in range(steps)]


def padded(found: list[bytes]) -> Array:
    """As ALOHA keeps them: zeros behind each."""
    out = np.zeros((len(found), max(map(len, found), default=1)), np.uint8)
    for row, data in zip(out, found, strict=True):
        row[:len(data)] = np.frombuffer(data, np.uint8)
    return out


def folder(root: Path, count: int = 3, *, compress: bool = False, change: Callable[[int, h5py.File], None] = lambda i, f: None,
           steps: Callable[[int], int] = lambda i: T + i) -> Path:
    """Episodes as ACT's recorder writes them, in files of their own; number i is T + i steps long."""
    root.mkdir(parents=True)
    for i in range(count):
        n = steps(i)
        with h5py.File(root / f"episode_{i}.hdf5", "w") as file:
            file.attrs["sim"] = not compress
            observations = file.create_group("observations")
            images = observations.create_group("images")
            for camera in CAMERAS:
                images[camera] = padded(rows(i, n)) if compress else np.full((n, 16, 24, 3), [200, 20 * i, 10], np.uint8)
            observations["qpos"] = np.arange(n)[:, None] + np.arange(4) / 10
            observations["qvel"] = np.ones((n, 4))
            file["action"] = np.arange(n)[:, None] + np.arange(4) / 10 + 0.5
            if compress:
                file.attrs["compress"] = True
                file["compress_len"] = np.full((2, n), 7.0, np.float32)  # of other cameras, perhaps
            change(i, file)
    return root


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(RealrlError) as caught:
        list(formats.read(path, **options).episodes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def read(path: Path, **options: Any) -> tuple[list[Episode], list[str]]:
    found = formats.read(path, **options)
    return list(found.episodes), found.notes


@pytest.mark.parametrize("compress", [False, True])
def test_a_folder_of_episodes(tmp_path: Path, compress: bool) -> None:
    root = folder(tmp_path / "cups", 12, compress=compress)
    assert formats.detect(root) == formats.detect(root / "episode_3.hdf5") == "aloha"
    found = formats.read(root)
    episodes = list(found.episodes)
    assert [len(e) for e in episodes] == [T + i for i in range(12)]  # 2 before 10
    assert (found.fps, found.task, found.count) == (50, "cups", 12)
    e = episodes[3]
    assert sorted(e.obs) == ["images.left_wrist", "images.top", "qpos", "qvel", "state"] and not e.judged
    assert np.allclose(e.action[2], [2.5, 2.6, 2.7, 2.8]) and np.allclose(e.obs["state"][2], [2, 2.1, 2.2, 2.3])
    assert e.obs["images.top"].shape == (T + 4, 16, 24, 3) and np.abs(e.obs["images.top"][1, 5, 5] - [200, 60, 10.0]).max() < 6
    assert any("colours=bgr" in note for note in found.notes) == compress


def test_the_rate_and_the_task_are_what_arrays_say(tmp_path: Path) -> None:
    def told(i: int, file: h5py.File) -> None:
        file["observations/timestamp"], file["language"] = np.arange(T + i) * 40_000_000, f"open drawer {i}"

    found = aloha.read(folder(tmp_path / "d", change=told))
    assert found.fps == 25 and not any("do not say how many steps" in note for note in found.notes)
    assert [e.task for e in found.episodes] == [f"open drawer {i}" for i in range(3)]


def test_red_and_blue_change_places_where_that_is_asked(tmp_path: Path) -> None:
    episodes, _ = read(folder(tmp_path / "d", compress=True), colours="bgr")
    assert np.abs(episodes[1].obs["images.top"][2, 5, 5] - [20, 20, 200.0]).max() < 6


def _bytes(_: int, file: h5py.File) -> None:
    """Pictures as bytes of one length (RoboTwin) and of any (RoboMIND), grey ones and depth as PNG, too."""
    n = len(file["action"])
    del file["observations/images"]
    file["observations/head_camera/rgb"] = np.array(rows(1, n), dtype=f"S{max(map(len, rows(1, n))) + 9}")
    any_length = h5py.vlen_dtype(np.uint8)
    for name, data in (("wrist_camera/rgb", jpeg((1, 2, 3))), ("grey_camera/rgb", jpeg((90, 0, 0), mode="L")),
                       ("depth_images/top", jpeg((700, 0, 0), kind="PNG", mode="I;16"))):
        file.create_dataset(f"observations/{name}", (n,), any_length)[...] = [np.frombuffer(data, np.uint8)] * n


def test_pictures_as_bytes(tmp_path: Path) -> None:
    episodes, _ = read(folder(tmp_path / "d", change=_bytes))
    obs = episodes[0].obs
    assert {"images.head_camera.rgb", "images.wrist_camera.rgb", "images.grey_camera.rgb"} < obs.keys()
    assert np.abs(obs["images.grey_camera.rgb"][0, 3, 3] - 90.0).max() < 4
    assert (obs["depth.depth_images.top"] == 700).all() and obs["depth.depth_images.top"].dtype == np.uint16


def test_no_step_no_file_no_camera(tmp_path: Path) -> None:
    root = folder(tmp_path / "empty", steps=lambda i: (6, 0, 4)[i], compress=True)
    episodes, notes = read(root)
    assert [len(e) for e in episodes] == [6, 4] and "left out: 1 episodes without a step (episode_1.hdf5)" in notes
    whole = (folder(tmp_path / "cut") / "episode_1.hdf5").read_bytes()
    (tmp_path / "cut/episode_1.hdf5").write_bytes(whole[:len(whole) // 2])
    assert "episode_1.hdf5: truncated or damaged" in (told := refused(tmp_path / "cut")) and "missing=episodes" in told
    assert len(read(tmp_path / "cut", missing="episodes")[0]) == 2

    def less(i: int, file: h5py.File) -> None:
        if i == 2:
            del file["observations/images/top"]
    root = folder(tmp_path / "less", change=less)
    assert "episode_2.hdf5 has no observations/images/top" in (told := refused(root)) and "missing=camera" in told
    assert [len(e) for e in read(root, missing="episodes")[0]] == [6, 7]
    episodes, notes = read(root, missing="camera")
    assert len(episodes) == 3 and "images.top" not in episodes[0].obs and any("images.top (not in episode_2.hdf5)" in n for n in notes)
    assert read(root, keys=["qpos", "images.left_wrist"])[0][2].obs.keys() == {"state", "qpos", "images.left_wrist"}


def test_damaged_pictures_and_rows_that_do_not_fit(tmp_path: Path) -> None:
    def broken(i: int, file: h5py.File) -> None:
        if i == 1:
            file["observations/images/top"][3] = 0
    assert "observations/images/top: picture 3" in refused(folder(tmp_path / "broken", compress=True, change=broken))

    def short(_: int, file: h5py.File) -> None:
        del file["observations/qpos"]
        file["observations/qpos"] = np.zeros((3, 4))
    assert "6 actions but" in refused(folder(tmp_path / "short", change=short))


@pytest.mark.parametrize("dtype", ["float16", "int32", ">f4", "bool"])
def test_other_types_of_numbers(tmp_path: Path, dtype: str) -> None:
    def other(_: int, file: h5py.File) -> None:
        for name in ("action", "observations/qpos"):
            x = file[name][()]
            del file[name]
            file[name] = x.astype(dtype)
    episode = read(folder(tmp_path / "d", change=other))[0][0]
    assert episode.action.dtype == np.float32 and episode.action[3, 0] == (1 if dtype == "bool" else np.array(3.5).astype(dtype))


def _droid(_: int, file: h5py.File) -> None:
    n = len(file["action"])
    del file["action"], file["observations"]
    for name, wide in (("joint_position", 7), ("cartesian_position", 6), ("gripper_position", 1), ("joint_velocity", 7)):
        file[f"action/{name}"] = np.random.default_rng(wide).normal(size=(n, wide) if wide > 1 else n)
    file["observation/robot_state/joint_positions"] = np.ones((n, 7))
    file["observation/timestamp/robot_state/read_start"] = np.arange(n)


def test_an_action_that_is_a_group(tmp_path: Path) -> None:
    root = folder(tmp_path / "droid/success/Fri", change=_droid).parents[1]
    assert "--option action=action/" in (told := refused(root)) and "say one thing in two ways" in told
    found = formats.read(root, action="action/joint_position,action/gripper_position")
    episodes = list(found.episodes)
    assert episodes[0].action.shape[1] == 8 and episodes[0].succeeded and episodes[0].obs.keys() == {"robot_state.joint_positions", "state"}
    assert found.meta["names"]["action"][-2:] == ["joint_position 6", "gripper_position"]

    def twin(_: int, file: h5py.File) -> None:
        n = len(file["action"])
        del file["action"]
        for name, wide in (("left_arm", 6), ("left_gripper", 1), ("right_arm", 6), ("right_gripper", 1), ("vector", 14)):
            file[f"joint_action/{name}"] = np.zeros((n, wide))
    assert read(folder(tmp_path / "twin", change=twin))[0][0].action.shape[1] == 14

    def arms(_: int, file: h5py.File) -> None:
        n = len(file["action"])
        del file["action"]
        group = file.create_group("action", track_order=True)
        group["right"], group["left"] = np.ones((n, 3)), np.zeros((n, 2))
    found = formats.read(folder(tmp_path / "arms", change=arms))
    assert next(found.episodes).action[0].tolist() == [1, 1, 1, 0, 0]  # as they were written
    assert found.meta["names"]["action"] == ["right 0", "right 1", "right 2", "left 0", "left 1"]


def test_success_rate_and_task_where_the_files_say_them(tmp_path: Path) -> None:
    def told(i: int, file: h5py.File) -> None:
        file.attrs["success"], file.attrs["fps"], file.attrs["language_instruction"] = i != 1, 30, f"put {i}"
    found = formats.read(folder(tmp_path / "d", change=told))
    episodes = list(found.episodes)
    assert [e.succeeded for e in episodes] == [True, False, True] and found.fps == 30 and episodes[2].task == "put 2"


def test_what_is_none_of_it_says_what_to_do(tmp_path: Path) -> None:
    def nothing(_: int, file: h5py.File) -> None:
        del file["action"]
        file["master/joint_position"] = np.zeros((T, 4))
    assert "say which of master/joint_position was sent: --option action=NAME" in refused(folder(tmp_path / "a", 1, change=nothing))
    one = read(tmp_path / "a", action="master/joint_position")[0][0]
    assert one.action.shape == (T, 4) and "master.joint_position" not in one.obs
    other = (folder(tmp_path / "b", 1) / "episode_0.hdf5").rename(tmp_path / "run.hdf5")
    assert "format=aloha" in refused(other) and len(read(other, format="aloha")[0]) == 1
    assert "has no option" in refused(tmp_path / "a", colors="bgr") and "colours is" in refused(tmp_path / "a", colours="grb")
    with h5py.File(tmp_path / "b/out.h5", "w") as file:
        file["action"] = h5py.ExternalLink(str(other), "/action")
    assert "is a link" in refused(tmp_path / "b")
    assert aloha.detect(tmp_path / "none") is False


def test_it_becomes_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["data", "import", str(folder(tmp_path / "d", compress=True)), "--out", str(out), "--fps", "25"]) == 0
    assert "--option colours=bgr" in " ".join(capsys.readouterr().out.split())
    store = Store.open(out)
    assert (len(store), store.fps, store.cameras) == (3, 25, ["images.left_wrist", "images.top"])
    assert np.abs(store.read()[2].obs["images.top"][2, 5, 5] - [200, 40, 20.0]).max() < 12


def test_arrays_in_npz(tmp_path: Path) -> None:
    root = tmp_path / "openx"
    root.mkdir()
    for i in range(3):
        np.savez_compressed(root / f"episode_{i}.npz", action=np.full((T, 7), i), state=np.ones((T, 8), np.float64), success=i == 1,
                            image=np.full((T, 16, 16, 3), 9, np.uint8), language_instruction="pick", info=np.array([{"a": 1}], object))
    found = formats.read(root)
    episodes = list(found.episodes)
    assert [e.action[0, 0] for e in episodes] == [0, 1, 2] and [e.succeeded for e in episodes] == [False, True, False]
    assert episodes[0].task == "pick" and episodes[0].obs["images.image"].shape == (T + 1, 16, 16, 3)
    (root / "episode_1.npz").write_bytes((root / "episode_1.npz").read_bytes()[:200])
    assert "episode_1.npz: truncated or damaged" in refused(root)


def test_an_action_beside_the_action_is_told_with_the_option_that_joins_them(tmp_path: Path) -> None:
    (root := tmp_path / "d").mkdir()
    np.savez(root / "episode_0.npz", action=np.ones((4, 2)), base_action=np.full((4, 2), 3), qpos=np.ones((4, 2)))
    (note,) = [note for note in formats.read(root).notes if "may have been sent" in note]
    option = note.split("action=")[1].split(" ")[0]
    assert next(formats.read(root, action=option.split(",")).episodes).action[0].tolist() == [1, 1, 3, 3]


def test_rewards_are_kept_and_objects_in_npz_are_named(tmp_path: Path) -> None:
    (root := tmp_path / "d").mkdir()
    np.savez(root / "episode_0.npz", action=np.ones((4, 2)), state=np.ones((4, 3)), reward=np.array([0, 0, 0, 2.0]))
    (episode,), notes = read(root)
    assert episode.reward.tolist() == [0, 0, 0, 2] and not any("reward" in note for note in notes)
    np.savez(root / "episode_0.npz", action=np.ones((4, 2)), state=np.ones((4, 3)), hand=np.array([None, 1, 2, 3]), meta={"by": "me"},
             task=np.array(b"pick it"))
    imported = formats.read(root)
    assert any("left out: hand, meta, which hold no plain numbers" in note for note in imported.notes) and imported.task == "pick it"
    np.savez(root / "episode_0.npz", action=np.array([[1, None]] * 4), state=np.ones((4, 3)))
    assert "action holds Python objects" in refused(root)
    np.savez(root / "episode_0.npz", action=np.ones((4, 2)), observation=np.array([{"state": 1}] * 4, object))
    assert "observation holds Python objects" in refused(root)


def test_files_with_many_episodes_or_a_frame_each_are_told_so(tmp_path: Path) -> None:
    ends = np.isin(np.arange(15), (6, 14))
    np.savez(tmp_path / "all.npz", actions=np.ones((15, 2)), observations=np.ones((15, 3)), terminals=ends)
    assert "many episodes one after another, by its terminals" in refused(tmp_path / "all.npz")
    with h5py.File(tmp_path / "hopper.hdf5", "w") as file:
        file["actions"], file["observations"], file["terminals"] = np.ones((15, 2)), np.ones((15, 3)), ends
    for options in ({}, {"format": "aloha"}):
        assert "by its terminals" in refused(tmp_path / "hopper.hdf5", **options)
    calvin = tmp_path / "calvin"
    calvin.mkdir()
    np.savez(calvin / "episode_0000000.npz", actions=np.zeros(7), robot_obs=np.zeros(15))
    np.save(calvin / "ep_start_end_ids.npy", [[0, 0]])
    assert "CALVIN's, a file a frame" in (told := refused(calvin)) and "missing=" not in told
    for name, words in (("a.npy", "write an npz an episode"), ("set.tar.gz", "unpack the archive"), ("x.mcap", "ROS")):
        (tmp_path / name).write_bytes(b"?")
        assert words in refused(tmp_path / name)


def test_links_in_a_folder(tmp_path: Path) -> None:
    """Those of the hub's cache lead to its blobs; those that lead elsewhere are refused, for without them the set would be another."""
    real, snapshot = folder(tmp_path / "real"), tmp_path / "hub/datasets--a--b/snapshots/0123"
    blobs = snapshot.parent.with_name("blobs")
    for place in (blobs, snapshot):
        place.mkdir(parents=True)
    for number, path in enumerate(sorted(real.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(blobs / str(number))
    assert [len(e) for e in read(snapshot)[0]] == [T, T + 1, T + 2]
    (snapshot / "episode_3.hdf5").symlink_to(folder(tmp_path / "elsewhere", 1) / "episode_0.hdf5")
    assert "leads out of" in refused(snapshot, format="aloha") and not aloha.detect(snapshot)


def test_flags_that_are_a_group_or_larger_than_what_is_stored(tmp_path: Path) -> None:
    def grouped(_: int, file: h5py.File) -> None:
        file["done/by_person"] = np.zeros(3)
    assert len(read(folder(tmp_path / "group", 1, change=grouped))[0]) == 1

    def vast(_: int, file: h5py.File) -> None:
        file.create_dataset("done", shape=(10**12,), dtype="u1", chunks=(2**20,))
    assert "only 0 bytes are stored" in refused(folder(tmp_path / "vast", 1, change=vast))


@pytest.mark.parametrize(("way", "won"), [("1", None), ("no", None), ("success/1", True), ("failed", False), ("failure/success", True)])
def test_a_folder_is_a_verdict_only_by_its_word(tmp_path: Path, way: str, won: bool | None) -> None:
    """Folders are called 0 and 1 for other reasons; of two words the nearer one counts."""
    episode, = read(folder(tmp_path / way, 1))[0]
    assert (episode.succeeded if episode.judged else None) is won
