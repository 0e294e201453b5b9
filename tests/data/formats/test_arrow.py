"""LeRobot's early single-table sets: rows and videos come back, names in the table lead nowhere else."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from realrl.data import formats, video
from realrl.types import Array, RealrlError, Source

N, FPS = 12, 10
GREY = np.linspace(20, 230, N).astype(np.uint8)  # each frame is told by its brightness


def pictures() -> Array:
    return np.broadcast_to(GREY[:, None, None, None], (N, 32, 48, 3)).copy()


def table(episodes: int = 2, **changes: Any) -> pa.Table:
    """Two episodes of 12 frames, with changed columns (None: left out)."""
    rows = np.arange(N * episodes)
    t = (rows % N / FPS).astype(np.float32)
    columns: dict[str, Any] = {
        "observation.images.top": [{"path": f"videos/top_{i // N}.mp4", "timestamp": float(t[i])} for i in rows.tolist()],
        "observation.state": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(3.0 * len(rows), dtype=np.float32)), 3),
        "action": pa.array(np.linspace(-1, 1, 2 * len(rows), dtype=np.float32).reshape(-1, 2).tolist(), pa.list_(pa.float32())),
        "episode_index": rows // N, "frame_index": rows % N, "timestamp": t, "next.reward": (rows % N).astype(np.float32),
        "next.done": rows % N == N - 1, "next.success": rows == N - 1, "index": rows, "gripper_width": np.zeros(len(rows))} | changes
    return pa.table({k: v for k, v in columns.items() if v is not None})


def folder(path: Path, rows: pa.Table | None = None, *, stream: bool = True) -> Path:
    (path / "train").mkdir(parents=True)
    (path / "videos").mkdir()
    rows = table() if rows is None else rows
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path / "train/data-00000-of-00001.arrow"), "wb") as file, new(file, rows.schema) as writer:
        writer.write_table(rows)
    for i in range(2):
        with (path / f"videos/top_{i}.mp4").open("wb") as out:
            video.encode(out, iter(pictures()), FPS, "h264")
    return path


@pytest.mark.parametrize("stream", [True, False])
def test_rows_and_frames(tmp_path: Path, stream: bool) -> None:
    path = folder(tmp_path / "push", stream=stream)
    assert formats.detect(path) == "lerobot-arrow"
    read = formats.read(path)
    assert (read.task, read.fps, read.count) == ("push", 10, 2) and any("gripper_width" in n for n in read.notes)
    first, second = read.episodes
    for number, episode in enumerate((first, second)):
        assert len(episode) == N and (episode.source == Source.HUMAN).all() and episode.extra["gripper_width"].shape == (N,)
        np.testing.assert_allclose(episode.obs["state"][:-1], np.arange(72.0).reshape(24, 3)[number * N:][:N])
        np.testing.assert_allclose(episode.obs["images.top"].mean((1, 2, 3)), [*GREY, GREY[-1]], atol=4)
        np.testing.assert_allclose(episode.action, np.linspace(-1, 1, 48).reshape(24, 2)[number * N:][:N], rtol=1e-5)
        np.testing.assert_allclose(episode.reward, np.arange(N))
    assert first.succeeded and first.terminated and not first.truncated and not second.succeeded and second.truncated


def test_pictures_and_clouds_in_lists_of_lists(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures, cloud = rng.integers(0, 256, (2 * N, 3, 10, 12), np.uint8), rng.normal(size=(2 * N, 32, 3)).astype(np.float32)
    fixed: Any = pa.array(cloud.reshape(-1))
    for size in (3, 32):
        fixed = pa.FixedSizeListArray.from_arrays(fixed, size)
    lists = pa.array(pictures.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8()))))
    rows = table(**{"observation.images.side": lists, "observation.cloud": fixed})
    episode = list(formats.read(folder(tmp_path / "push", rows)).episodes)[1]
    np.testing.assert_array_equal(episode.obs["images.side"][:-1], np.moveaxis(pictures[N:], 1, 3))
    np.testing.assert_array_equal(episode.obs["pointcloud"][:-1], cloud[N:])


def test_options(tmp_path: Path) -> None:
    path = folder(tmp_path / "push")
    read = formats.read(path, images=False, task="mine", fps=10, last="drop", source="script", action_range=(-2, 2))
    episode = next(read.episodes)
    assert list(episode.obs) == ["state"] and len(episode) == N - 1 and episode.task == "mine" and (episode.source == Source.SCRIPT).all()
    assert np.abs(episode.action).max() <= 0.5
    shutil.rmtree(path / "videos")
    assert len(list(formats.read(path, images=False).episodes)) == 2
    with pytest.raises(RealrlError, match="not an mp4 file inside"):
        list(formats.read(path).episodes)


def test_without_actions_the_next_state_is_the_action(tmp_path: Path) -> None:
    read = formats.read(folder(tmp_path / "cup", table(action=None)), images=False)
    episode = next(read.episodes)
    np.testing.assert_array_equal(episode.action, episode.obs["state"][1:])
    assert len(episode) == N - 1 and any("no action column" in n for n in read.notes)


@pytest.mark.parametrize("name", ["../outside.mp4", "videos/../../outside.mp4", "/etc/passwd", "videos/link.mp4", "videos", "",
                                  "videos/no.mp4", "\0.mp4", "x" * 5000 + ".mp4", "http://localhost/a.mp4"])
def test_no_video_outside_the_folder_is_opened(tmp_path: Path, name: str) -> None:
    cells = [{"path": name, "timestamp": i / FPS} for i in range(N)]
    path = folder(tmp_path / "in", table(1, **{"observation.images.top": cells}))
    shutil.copy(path / "videos/top_0.mp4", tmp_path / "outside.mp4")
    (path / "videos/link.mp4").symlink_to(tmp_path / "outside.mp4")
    with pytest.raises(RealrlError, match="not an mp4 file inside this folder"):
        list(formats.read(path).episodes)


ROWS = 2 * N


@pytest.mark.parametrize(("changes", "says"), [
    ({"timestamp": None}, "'timestamp'"), ({"episode_index": None}, "'episode_index'"), ({"action": ["a"] * ROWS}, "'action'"),
    ({"action": [[1.0]] * (ROWS - 1) + [[1.0, 2.0]]}, "differ in length"), ({"action": [None] + [[1.0]] * (ROWS - 1)}, "empty cells"),
    ({"next.reward": [None] + [1.0] * (ROWS - 1)}, "not numbers in every cell"),
    ({"action": None, "observation.state": None}, "neither action"),
    ({"timestamp": np.zeros(ROWS)}, "give fps="), ({"timestamp": np.full(ROWS, np.nan)}, "give fps="),
    ({"episode_index": np.arange(ROWS) % 2}, "next to one another"), ({"observation.../x": np.zeros(ROWS)}, "can not be the name"),
    ({"observation.images.top": [{"a": 1}] * ROWS}, "no video frames"),
    ({"observation.images.top": [{"path": None, "timestamp": 0.1}] * ROWS}, "lack a path"),
    ({"observation.images.top": [{"path": "videos/top_0.mp4", "timestamp": 99.0}] * ROWS}, "no frame within"),
    ({"observation.images.top": [{"path": "videos/top_0.mp4", "timestamp": float("nan")}] * ROWS}, "finite")])
def test_wrong_tables_are_one_line(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RealrlError, match=says) as error:
        list(formats.read(folder(tmp_path / "a", table(**changes))).episodes)
    assert "\n" not in str(error.value)


def test_every_cut_is_one_line(tmp_path: Path, long: bool) -> None:
    path = folder(tmp_path / "a", table(1, **{"observation.images.top": None}))
    file = path / "train/data-00000-of-00001.arrow"
    whole = file.read_bytes()
    for n in range(0, len(whole) - 8, 7 if long else 37):  # a stream's last eight bytes are an end mark that may be missing
        file.write_bytes(whole[:n])
        with pytest.raises(RealrlError):
            list(formats.read(path).episodes)


def test_four_published_episodes(shared_data: Path) -> None:
    wanted = {"aloha_sim_insertion_human": (500, 50, 14, "images.top", (480, 640)), "pusht": (161, 10, 2, "images.image", (96, 96)),
              "aloha_sim_transfer_cube_human": (400, 50, 14, "images.top", (480, 640)),
              "umi_cup_in_the_wild": (399, 10, 7, "images.image", (224, 224))}
    for name, (steps, fps, size, camera, shape) in wanted.items():
        read = formats.read(shared_data / "lerobot_single_episodes" / name, images=name in ("pusht", "umi_cup_in_the_wild"))
        episode = next(read.episodes)
        assert (len(episode), read.fps, episode.action.shape[1]) == (steps, fps, size)
        if camera in episode.obs:
            assert episode.obs[camera].shape == (steps + 1, *shape, 3) and episode.obs[camera].std() > 10
    assert episode.extra["end_pose"].shape == (400, 6)
