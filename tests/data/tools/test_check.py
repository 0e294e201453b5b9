"""The examination of a dataset finds what is wrong, and nothing in a dataset leads out of its folder."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_store import digest, episode, errors, new

from realrl.data import video
from realrl.data.formats import open_dataset
from realrl.data.store import Store
from realrl.data.tools.check import check
from realrl.types import Episode, RealrlError, Source


def found(directory: Path, **options: object) -> str:
    return " | ".join(str(p) for p in check(directory, **options))


def test_check_names_what_is_wrong(tmp_path: Path) -> None:
    store = new(tmp_path / "d", 2)
    still = episode(3, 80)
    still.obs["state"][20:], still.obs["effort"][20:] = 0.5, 0.5
    still.action[7] = 1.5
    store.append([still])
    path = tmp_path / "d/meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"total_frames": 1}))
    (tmp_path / "d/data/chunk-000/.file-009.parquet.1.tmp").touch()
    shutil.copy(tmp_path / "d/data/chunk-000/file-000.parquet", tmp_path / "d/data/chunk-000/file-007.parquet")
    found = {str(p) for p in check(tmp_path / "d")}
    for text in ("total_frames is 1", "unfinished temporary file", "no episode refers to it", "action leaves [-1, 1] in 1 frames, "
                 "first in episode 2, frame 7", "frozen for 50 frames or more"):
        assert any(text in p for p in found), text
    assert len(found) == 5 and errors(tmp_path / "d") == []
    assert Store.open(tmp_path / "d").info["total_frames"] == json.loads(path.read_text())["total_frames"] == store.frames


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_check_sees_wrong_values_and_missing_files(tmp_path: Path) -> None:
    new(tmp_path / "d", 3)
    first, second, third = sorted((tmp_path / "d").glob("data/*/*.parquet"))
    table = pq.read_table(first)
    spoiled = {"timestamp": pa.array(np.full(len(table), 9, np.float32)), "next.reward": pa.array(np.full(len(table), np.inf, np.float32)),
               "frame_index": pa.array(np.full(len(table), 3))}
    for name, values in spoiled.items():
        table = table.set_column(table.column_names.index(name), name, values)
    pq.write_table(table, first)
    pq.write_table(pq.read_table(second).drop_columns(["action"]), second)
    third.unlink()
    found = " | ".join(errors(tmp_path / "d"))
    for text in ("timestamp is not frame_index / fps", "next.reward is NaN", "frame_index is not what", "no column action", "is missing"):
        assert text in found, text
    with pytest.raises(RealrlError, match="missing"):
        Store.open(tmp_path / "d").read([2])
    next((tmp_path / "d").glob("meta/episodes/*/file-001.parquet")).unlink()
    assert any("episodes [1] have no row" in e for e in errors(tmp_path / "d"))
    with pytest.raises(RealrlError, match=r"does not number its episodes 0\.\."):
        Store.open(tmp_path / "d")


def test_a_recording_that_others_made(tmp_path: Path, shared_data: Path) -> None:
    source, root = shared_data / "reachy2_apple_storage", tmp_path / "d"
    for name, place in {"info.json": "meta/info.json", "tasks.parquet": "meta/tasks.parquet", "file-000.parquet":
                        "data/chunk-000/file-000.parquet", "episodes_file-000.parquet": "meta/episodes/chunk-000/file-000.parquet"}.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, root / place)
    (problem,) = errors(root)  # the sample has no videos
    assert "observation.image/chunk-000/file-000.mp4: the video of episodes 0 to 2 is missing" in problem
    assert any("total_frames is 14983" in p.what for p in check(root))  # the sample was cut and its info.json was not
    with pytest.raises(RealrlError, match=r"file-000\.mp4 is missing.*--option missing=camera"):
        Store.open(root).read()
    episodes = open_dataset(root).read(images=False)
    assert [len(e) for e in episodes] == [299, 300, 300] and episodes[0].obs["state"].shape == (300, 19)
    assert episodes[0].task == "place the apple in the plate" and (episodes[0].source == Source.HUMAN).all()
    with pytest.raises(RealrlError, match=r"is not in the dataset|is missing"):
        Store.open(root).append([episode(0)])


def test_statistics_that_drifted_are_named(tmp_path: Path) -> None:
    new(tmp_path / "d", 3)
    path = tmp_path / "d/meta/stats.json"
    stats = json.loads(path.read_text())
    stats["action"]["mean"][1] += 0.1
    path.write_text(json.dumps(stats))
    assert "stats.json: mean of action is off by 0.1" in found(tmp_path / "d")
    path.write_text('{"action": 3}')
    assert "stats.json: is not readable" in found(tmp_path / "d")


def test_a_dead_sensor_and_limits(tmp_path: Path) -> None:
    store = new(tmp_path / "d", 1)
    dead = episode(1, 60)
    dead.obs["effort"][:] = 0.25
    store.append([dead, episode(2, 60)])
    assert "observation.effort never changes while the actions do in 60 frames, first in episode 1, frame 0" in found(tmp_path / "d")
    dead.action[:] = 0.5  # nothing moves: nothing need be felt
    store = new(tmp_path / "e")
    store.append([dead])
    assert found(tmp_path / "e") == ""
    assert "action leaves [-0.2, 0.2]" in found(tmp_path / "e", limits=(-0.2, 0.2))


# ---- videos


def filmed(directory: Path, *, still: bool = False) -> tuple[Store, Path]:
    """Two episodes to a file, two files; the first video file."""
    store = Store.create(directory, task="t", fps=20, codec="h264")
    rng = np.random.default_rng(0)
    for i in range(2):
        pair = [dataclasses.replace(episode(2 * i + j, 30), obs={
            "state": rng.normal(size=(31, 2)).astype(np.float32), "images.top": rng.integers(0, 256, (31, 32, 32, 3), np.uint8)})
            for j in range(2)]
        if still:
            pair[1].obs["images.top"][4:] = pair[1].obs["images.top"][4]
        store.append(pair)
    return store, directory / "videos/observation.images.top/chunk-000/file-000.mp4"


def rewrite(directory: Path, **cells: float) -> None:
    """Change cells of the first episode's row."""
    path = directory / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    for name, value in cells.items():
        column = f"videos/observation.images.top/{name}"
        table = table.set_column(table.column_names.index(column), column, pa.array([value, *table[column].to_pylist()[1:]]))
    pq.write_table(table, path)


def test_videos_that_do_not_fit_the_tables(tmp_path: Path) -> None:
    _, path = filmed(tmp_path / "d")
    assert found(tmp_path / "d", decode=True) == ""
    whole = path.read_bytes()
    path.unlink()
    assert "file-000.mp4: the video of episodes 0 to 1 is missing" in found(tmp_path / "d")
    header, packets = video.header(path.with_name("file-001.mp4")), list(video.packets(path.with_name("file-001.mp4")))
    video.mux(path, header, packets[:40])
    assert "episode 1 ends at 3.000 s, the video at 2.000 s" in found(tmp_path / "d")
    video.mux(path, header, packets[:60])
    assert "episode 0 has no picture within half a frame of frame 30" in found(tmp_path / "d")  # the one after the last action
    video.mux(path, header, [p for p in packets if not 20 <= p.pts < 24])
    assert "holds 26 pictures of episode 0, its table 30 frames" in found(tmp_path / "d")
    video.encode(path, [np.zeros((32, 48, 3), np.uint8)] * 64, 20, "h264")
    assert "pictures are 32 x 48, info.json says 32 x 32" in found(tmp_path / "d")
    video.encode(path, [np.zeros((32, 32, 3), np.uint8)] * 64, 30, "h264")
    assert "runs at 30 fps, info.json says 20" in found(tmp_path / "d")
    path.write_bytes(whole[:len(whole) // 2])
    assert "file-000.mp4: is truncated or damaged" in found(tmp_path / "d")
    path.write_bytes(whole)
    shutil.copy(path, path.with_name("file-009.mp4"))
    assert "file-009.mp4: no episode refers to it" in found(tmp_path / "d")


def test_rows_that_do_not_fit_the_videos(tmp_path: Path) -> None:
    filmed(tmp_path / "d")
    rewrite(tmp_path / "d", from_timestamp=0.013)  # nearer to its own picture than to any other
    assert "episode 0 has pictures that are 13 ms off" in found(tmp_path / "d") and not errors(tmp_path / "d")
    with pytest.raises(RealrlError, match=r"file-000\.mp4: no frame within"):
        open_dataset(tmp_path / "d", tolerance=1e-4).read([0])
    rewrite(tmp_path / "d", from_timestamp=0.026)
    assert "holds 29 pictures of episode 0, its table 30 frames" in str(errors(tmp_path / "d"))
    rewrite(tmp_path / "d", from_timestamp=float("nan"))
    assert "episode 0 lies from nan s" in found(tmp_path / "d")
    rewrite(tmp_path / "d", from_timestamp=0.0, to_timestamp=9.0)
    assert "episode 0 ends at 9.000 s" in found(tmp_path / "d")
    rewrite(tmp_path / "d", chunk_index=None)
    assert "episode 0 has no video of observation.images.top" in found(tmp_path / "d")


def test_decoding_finds_frozen_cameras_and_damage_inside(tmp_path: Path) -> None:
    _, path = filmed(tmp_path / "d", still=True)
    assert found(tmp_path / "d") == ""
    text = found(tmp_path / "d", decode=True)
    assert text.count("shows one picture for 20 frames or more while the actions change") == 2 and "episode 1, near frame 4" in text
    content = bytearray(path.read_bytes())
    content[3000:3400] = bytes(400)
    path.write_bytes(content)
    assert "file-000.mp4" in " ".join(str(p) for p in check(tmp_path / "d", decode=True) if p.severity == "error")


# ---- nothing leads out of the folder


def describe_as(directory: Path, **changes: object) -> None:
    path = directory / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("changes", [
    {"data_path": "../{chunk_index}/{file_index}.parquet"}, {"data_path": "/tmp/{chunk_index}-{file_index}.parquet"},
    {"data_path": "data/{chunk_index.__class__}/{file_index}"}, {"data_path": "data/{chunk_index:999999999d}-{file_index}"},
    {"data_path": "data/{secret}/{file_index}"}, {"data_path": "data/one.parquet"}, {"data_path": "x\0{chunk_index}-{file_index}"},
    {"video_path": "videos/../../{video_key}/{chunk_index}-{file_index}.mp4"}, {"video_path": "{chunk_index}-{file_index}.mp4"},
    {"video_path": 7}, {"features": {"../../escape": {"dtype": "video", "shape": [2, 2, 3]}}},
    {"features": {"..": {"dtype": "video", "shape": [2]}}},
    {"features": {"a": {"dtype": "video", "shape": "wide"}}}, {"features": {"a": 3}}, {"fps": True}, {"fps": 0}, {"chunks_size": -1}])
def test_descriptions_that_lead_out_of_the_folder_are_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    store, _ = filmed(tmp_path / "d")
    if "features" in changes:
        changes = {"features": store.info["features"] | changes["features"]}
    elif changes.get("video_path") == "{chunk_index}-{file_index}.mp4":  # two cameras would share their files
        changes = {**changes, "features": store.info["features"] | {"b": {"dtype": "video", "shape": [32, 32, 3]}}}
    describe_as(tmp_path / "d", **changes)
    with pytest.raises(RealrlError, match=r"info\.json|leads out") as caught:
        Store.open(tmp_path / "d")
    assert "\n" not in str(caught.value)
    assert [p.severity for p in check(tmp_path / "d")] == ["error"]


@pytest.mark.parametrize("place", ["data/chunk-000/file-000.parquet", "videos/observation.images.top/chunk-000/file-000.mp4",
                                   "meta/tasks.parquet", "meta/info.json", "meta/episodes/chunk-000/file-000.parquet"])
def test_links_that_lead_out_of_the_folder_are_refused(tmp_path: Path, place: str) -> None:
    filmed(tmp_path / "d")
    (tmp_path / "d" / place).rename(tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", tmp_path / "d" / place)
    with pytest.raises(RealrlError, match="leads out of") as caught:
        Store.open(tmp_path / "d").read()
    assert "\n" not in str(caught.value) and any("leads out of" in e for e in errors(tmp_path / "d"))


def test_a_link_within_the_folder_and_a_link_to_the_folder_are_fine(tmp_path: Path) -> None:
    new(tmp_path / "d", 2)
    path = tmp_path / "d/data/chunk-000/file-000.parquet"
    path.rename(tmp_path / "d/data/kept")
    os.symlink("../kept", path)
    os.symlink(tmp_path / "d", tmp_path / "link")
    made: list[Episode] = Store.open(tmp_path / "link").read()
    assert [digest(e) for e in made] == [digest(episode(i)) for i in range(2)]
