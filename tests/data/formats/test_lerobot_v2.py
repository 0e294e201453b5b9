"""Datasets of LeRobot's version 2 read like those of version 3."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from realrl.data import store, video
from realrl.data.formats import open_dataset
from realrl.data.formats.lerobot_v2 import Legacy
from realrl.data.store import Store
from realrl.data.tools.check import check, describe
from realrl.report.dataset import write_page
from realrl.types import RealrlError, Source

FPS, LENGTHS = 20, (6, 4, 5)


def old(root: Path, chunks: int = 2) -> Path:
    """Three episodes, two files to a chunk."""
    (root / "meta").mkdir(parents=True)
    features = {"observation.state": {"dtype": "float32", "shape": [2], "names": ["a", "b"]},
                "action": {"dtype": "float32", "shape": [2], "names": {"motors": ["a", "b"]}},
                "observation.images.top": {"dtype": "video", "shape": [3, 32, 48], "names": ["channels", "height", "width"]},
                "next.reward": {"dtype": "float32", "shape": [1], "names": None}}
    features |= {k: {"dtype": "float32" if k == "timestamp" else "int64", "shape": [1], "names": None}
                 for k in ("timestamp", "frame_index", "episode_index", "index", "task_index")}
    for e, n in enumerate(LENGTHS):
        frame = np.arange(n)
        where = f"chunk-{e // chunks:03d}"
        (root / "data" / where).mkdir(parents=True, exist_ok=True)
        vectors = {"observation.state": np.stack([frame, np.full(n, e)], 1), "action": np.stack([frame / 10, frame / 20], 1)}
        pq.write_table(pa.table({**{k: pa.array(x.tolist(), pa.list_(pa.float32())) for k, x in vectors.items()},
                                 "next.reward": pa.array(frame, pa.float32()), "timestamp": pa.array(frame / FPS, pa.float32()),
                                 "frame_index": frame, "episode_index": np.full(n, e), "index": frame + sum(LENGTHS[:e]),
                                 "task_index": np.full(n, e % 2)}), root / "data" / where / f"episode_{e:06d}.parquet")
        path = root / "videos" / where / "observation.images.top" / f"episode_{e:06d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        video.encode(path, [np.full((32, 48, 3), 30 * e + 10 * t, np.uint8) for t in range(n)], FPS, "h264")
    lines = {"episodes": [{"episode_index": e, "tasks": [f"task {e % 2}"], "length": n} for e, n in enumerate(LENGTHS)],
             "tasks": [{"task_index": i, "task": f"task {i}"} for i in range(2)]}
    for name, rows in lines.items():
        (root / f"meta/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    info = {"codebase_version": "v2.1", "robot_type": "aloha", "fps": FPS, "chunks_size": chunks, "features": features, "total_episodes": 3,
            "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"}
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


def test_version_2_reads_as_version_3_does(tmp_path: Path) -> None:
    data = open_dataset(old(tmp_path / "d"))
    assert isinstance(data, Legacy)
    assert (len(data), data.frames, data.fps, data.tasks, data.cameras) == (3, 15, FPS, ["task 0", "task 1"], ["images.top"])
    assert data.info["robot_type"] == "aloha"
    episodes = data.read([2, 0, 1])
    assert [len(e) for e in episodes] == [5, 6, 4] and [e.task for e in episodes] == ["task 0", "task 0", "task 1"]
    e = episodes[0]
    assert e.obs["state"][:, 0].tolist() == [0, 1, 2, 3, 4, 4] and e.reward.tolist() == [0, 1, 2, 3, 4]
    assert (e.source == Source.HUMAN).all() and e.truncated
    shades = e.obs["images.top"].mean((1, 2, 3))
    assert e.obs["images.top"].shape == (6, 32, 48, 3) and np.abs(shades - [60, 70, 80, 90, 100, 100]).max() < 2
    path, seconds = data.pictures(2, "images.top")
    assert path.name == "episode_000002.mp4" and np.allclose(seconds, [0, 0.05, 0.1, 0.15, 0.2, 0.2])
    (path.parent / "episode_000002.mp4").unlink()
    assert "images.top" not in data.read(images=False)[2].obs
    with pytest.raises(RealrlError, match=r"episode_000002\.mp4 is missing.*images=False"):
        data.read()


def test_version_3_opens_as_a_store_and_others_get_one_line(tmp_path: Path) -> None:
    Store.create(tmp_path / "new", task="t", fps=10)
    assert isinstance(open_dataset(tmp_path / "new"), Store) and isinstance(store.open_dataset(tmp_path / "new"), Store)
    assert len(store.open_dataset(old(tmp_path / "older")).read()) == len(open_dataset(tmp_path / "older").read()) > 0
    with pytest.raises(RealrlError, match=r"v2\.1.*open_dataset"):
        Store.open(old(tmp_path / "old"))
    path = tmp_path / "old/meta/info.json"
    for version in ("v1.6", "v4.0", None):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"codebase_version": version}))
        with pytest.raises(RealrlError, match=rf"codebase_version is '{version}', only v3\.x and v2\.x"):
            open_dataset(tmp_path / "old")
    with pytest.raises(RealrlError, match="not a LeRobot dataset"):
        open_dataset(tmp_path)


def test_version_2_is_examined_like_version_3(tmp_path: Path) -> None:
    root = old(tmp_path / "d")
    edit(root / "meta/info.json", total_frames=sum(LENGTHS))
    assert check(root, limits=(-10, 10), decode=True) == []
    about = describe(root)
    assert (about["episodes"], about["frames"], about["data_files"], about["video_files"]) == (3, 15, 3, 3)
    assert about["tasks"] == ["task 0", "task 1"] and about["success_rate"] is None
    page = write_page(root, tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg") == 9 and "LeRobot dataset v2.1" in page, "three thumbnails an episode"
    path = root / "data/chunk-000/episode_000001.parquet"
    table = pq.read_table(path)
    path.unlink()
    spoiled = pa.array(np.where(np.arange(4) == 2, np.nan, 0.0), pa.float32())
    pq.write_table(table.set_column(table.column_names.index("next.reward"), "next.reward", spoiled), path)
    (root / "videos/chunk-001/observation.images.top/episode_000002.mp4").unlink()
    (root / "data/chunk-000/episode_000000.parquet").unlink()
    said = sorted(str(problem) for problem in check(root, limits=(-10, 10)))
    assert [next(text for text in ("episode_000000.parquet: is missing", "next.reward is NaN or infinite in 1 frames, first in episode 1, "
                                   "frame 2", "the video of episode 2 is missing") if text in line) for line in said]
    assert len(said) == 3 and not any("data repair" in line for line in said)


def test_descriptions_as_other_tools_write_them(tmp_path: Path) -> None:
    root = old(tmp_path / "d")
    path = root / "meta/episodes.jsonl"
    rows = [json.loads(text) for text in path.read_text().splitlines()]
    loose = [row | {"length": float(row["length"]), "tasks": row["tasks"][0]} for row in rows]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, loose)).encode())
    (root / "meta/tasks.jsonl").unlink()
    assert [e.task for e in open_dataset(root).read(images=False)] == [row["tasks"][0] for row in rows]
    path = root / "data/chunk-000/episode_000001.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RealrlError, match=r"fetch it again, or remove it and leave its episodes out: --recorded.missing episodes"):
        open_dataset(root).read(images=False)
    path.unlink()
    assert len(open_dataset(root, missing="episodes").read()) == 2


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_damage_and_paths_that_lead_out_are_one_clear_line(tmp_path: Path) -> None:
    for template in ("../{episode_index}.parquet", "/etc/passwd{episode_index}", "data/{episode_index.__class__}"):
        edit(old(tmp_path / template.replace("/", "_")) / "meta/info.json", data_path=template)
        with pytest.raises(RealrlError) as caught:
            open_dataset(tmp_path / template.replace("/", "_")).read()
        assert "\n" not in str(caught.value) and ("leads out" in str(caught.value) or "not understood" in str(caught.value))
    twice = '{"episode_index": 1, "length": 3}\n{"episode_index": 1, "length": 4}'
    for name, text in {"episodes.jsonl": twice, "tasks.jsonl": "{", "info.json": "[]"}.items():
        (old(tmp_path / name) / "meta" / name).write_text(text)
        with pytest.raises(RealrlError, match=name.replace(".", r"\.")) as caught:
            open_dataset(tmp_path / name).read()
        assert "\n" not in str(caught.value)
    path = old(tmp_path / "short") / "data/chunk-000/episode_000001.parquet"
    pq.write_table(pq.read_table(path).slice(0, 2), path)
    with pytest.raises(RealrlError, match=r"episode_000001\.parquet .*2 frames where 4 are expected"):
        open_dataset(tmp_path / "short").read()
