"""Independent readers open what we record, and we open what was written without our writer."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_store import episode

from realrl.data.store import Store
from realrl.data.tools.check import check
from realrl.types import Array, Episode, RealrlError, Source

FPS = 50


# ---- torchrl reads ours


class Frames:
    """The data files as one table, in the order of their names; what the Hugging Face library does for torchrl."""

    def __init__(self, root: Path) -> None:
        self.table = pa.concat_tables([pq.read_table(p) for p in sorted((root / "data").rglob("*.parquet"))])
        self.column_names = self.table.column_names

    def with_format(self, _kind: str) -> Frames:
        return self

    def __getitem__(self, name: str) -> Any:
        import torch
        return torch.tensor(self.table[name].to_pylist())


def opened_by_torchrl(root: Path, **key_map: str) -> tuple[Any, Any]:
    """(its replay buffer, its description of the folder); all but the download is torchrl's own code."""
    lerobot = pytest.importorskip("torchrl.data.datasets.lerobot")

    class Local(lerobot._LeRobotSnapshot):
        def __init__(self) -> None:
            self.repo_id, self.root = "local", root
            self.info = json.loads((root / "meta/info.json").read_text())
            self.major_version, self.fps = int(self.info["codebase_version"][1]), float(self.info["fps"])
            self.video_keys = [k for k, f in self.info["features"].items() if f["dtype"] == "video"]
            self.hf_dataset, self.episodes, self.tasks = Frames(root), self._load_episodes(), self._load_tasks()

    snapshot = Local()
    columns = lerobot.LeRobotExperienceReplay._extract_columns(snapshot)
    names = {k.replace("__", "."): v for k, v in key_map.items()}
    return lerobot.LeRobotExperienceReplay.from_columns(columns, slice_len=2, batch_size=4, decode_video=False, key_map=names), snapshot


def all_frames(path: Path) -> list[Array]:
    with av.open(str(path)) as container:
        return [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]


@pytest.mark.filterwarnings("ignore")
def test_torchrl_reads_what_we_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store.create(tmp_path / "d", task="task 0", fps=FPS, codec="h264")
    made = [episode(i, 5 + i, film=True) for i in range(7)]
    for a, b in ((0, 3), (3, 4), (4, 7)):
        store.append(made[a:b])
        if b == 4:
            store.compact()
    buffer, snapshot = opened_by_torchrl(tmp_path / "d")
    assert "alignment may be off" not in caplog.text
    data, read = buffer._storage._storage, store.read()
    renamed = opened_by_torchrl(tmp_path / "d", action__proposed="proposed")[0]._storage._storage
    wanted = {("observation", "state"): [e.obs["state"][:-1] for e in made], "action": [e.action for e in made], "proposed":
              [e.proposed for e in made], ("next", "reward"): [e.reward[:, None] for e in made], ("next", "success"):
              [e.success[:, None] for e in made], "episode": [np.full(len(e), i) for i, e in enumerate(made)]}
    for key, arrays in wanted.items():
        got = renamed if key == "proposed" else data
        assert np.array_equal(got[key].numpy(), np.concatenate(arrays)), key
    assert data.get("language_instruction").tolist() == [e.task for e in made for _ in range(len(e))]
    for camera in ("top", "wrist"):
        ref, films = data.get(("observation", "image", camera)), {}
        for row, (file, number) in enumerate(zip(ref.file_id.tolist(), ref.frame_index.tolist(), strict=True)):
            films.setdefault(file, all_frames(Path(ref.sources[file])))
            who, frame = int(data["episode"][row]), int(data["frame"][row])
            assert np.array_equal(films[file][number], read[who].obs[f"images.{camera}"][frame]), (camera, who, frame)
    assert [int(r["length"]) for r in snapshot.episodes] == [len(e) for e in made] and snapshot.tasks[1] == "task 1"
    assert buffer.sample()["action"].shape == (4, 3)


# ---- we read what others wrote


def column(x: Array) -> Any:
    return pa.array(x.tolist())


def film(path: Path, frames: Array, gop: int = 12, b_frames: int = 2) -> None:
    """As an ordinary tool encodes: frames refer to later ones."""
    path.parent.mkdir(parents=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=FPS, options={"g": str(gop), "bf": str(b_frames), "crf": "10"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode(None))


def png(image: Array) -> bytes:
    context = av.CodecContext.create("png", "w")
    context.height, context.width, context.pix_fmt, context.time_base = *image.shape[:2], "rgb24", Fraction(1, 25)
    return b"".join(bytes(p) for p in [*context.encode(av.VideoFrame.from_ndarray(image, format="rgb24")), *context.encode(None)])


def foreign(root: Path, **columns: Array) -> tuple[Array, Array, Array]:
    """A dataset of two episodes (7 and 5 frames) by plain pyarrow and PyAV, as the format's description has it; more columns on top.

    Gives (state [12, 3], action [12, 2], pictures [12, 32, 48, 3])."""
    rng, lengths, n = np.random.default_rng(0), [7, 5], 12
    state, action = (rng.normal(size=(n, d)).astype(np.float32) for d in (3, 2))
    pictures = np.zeros((n, 32, 48, 3), np.uint8)
    pictures[:] = (15 * np.arange(n) + 40)[:, None, None, None]
    frame = np.concatenate([np.arange(k) for k in lengths])
    numbers = {"observation.state": state, "action": action, "timestamp": (frame / FPS).astype(np.float32), "frame_index": frame,
               "episode_index": np.repeat([0, 1], lengths), "index": np.arange(n), "task_index": np.repeat([1, 0], lengths), **columns}
    features = {k: {"dtype": str(x.dtype), "shape": list(x.shape[1:]) or [1], "names": None} for k, x in numbers.items()}
    features |= {"observation.images.front": {"dtype": "video", "shape": [3, 32, 48], "names": ["channels", "height", "width"],
                                              "info": {"video.codec": "h264", "video.is_depth_map": False}},
                 "observation.images.still": {"dtype": "image", "shape": [32, 48, 3], "names": ["height", "width", "channels"]},
                 "comment": {"dtype": "string", "shape": [1], "names": None}, "language_events": {"dtype": "language", "shape": [1]}}
    cells = pa.array([{"bytes": png(p), "path": f"{i}.png"} for i, p in enumerate(pictures)])
    table = {**{k: pa.array(x.tolist(), pa.from_numpy_dtype(x.dtype) if x.ndim == 1 else pa.list_(pa.from_numpy_dtype(x.dtype)))
                for k, x in numbers.items()}, "observation.images.still": cells, "comment": pa.array(["fine"] * n)}
    for folder in ("data/chunk-000", "meta/episodes/chunk-000"):
        (root / folder).mkdir(parents=True)
    pq.write_table(pa.table(table), root / "data/chunk-000/file-000.parquet")
    film(root / "videos/observation.images.front/chunk-000/file-000.mp4", pictures)
    camera = "videos/observation.images.front"
    rows = pa.table({
        "episode_index": [0, 1], "tasks": [["stack"], ["sort"]], "length": lengths, "data/chunk_index": [0, 0], "data/file_index": [0, 0],
        "dataset_from_index": [0, 7], "dataset_to_index": [7, 12], f"{camera}/chunk_index": [0, 0], f"{camera}/file_index": [0, 0],
        f"{camera}/from_timestamp": [0.0, 7 / FPS], f"{camera}/to_timestamp": [7 / FPS, 12 / FPS], "operator": ["Ada", None],
        "stats/action/min": [action[:7].min(0).tolist(), action[7:].min(0).tolist()]})
    pq.write_table(rows, root / "meta/episodes/chunk-000/file-000.parquet")
    tasks = pa.table({"task_index": [0, 1], "__index_level_0__": ["sort", "stack"]})
    pq.write_table(tasks, root / "meta/tasks.parquet")
    info = {"codebase_version": "v3.0", "robot_type": "other", "total_episodes": 2, "total_frames": 12, "total_tasks": 2,
            "chunks_size": 1000, "fps": FPS, "splits": {"train": "0:2"},
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4", "features": features}
    (root / "meta/info.json").write_text(json.dumps(info))
    return state, action, pictures


def test_a_dataset_of_another_writer_reads(tmp_path: Path) -> None:
    state, action, pictures = foreign(tmp_path / "d")
    first, second = Store.open(tmp_path / "d").read()
    assert np.array_equal(first.obs["state"], np.concatenate([state[:7], state[6:7]]))
    assert np.array_equal(second.action, action[7:]) and np.array_equal(second.proposed, action[7:])
    assert (first.task, second.task) == ("stack", "sort") and (first.source == Source.HUMAN).all()
    assert np.array_equal(second.obs["images.still"], np.concatenate([pictures[7:], pictures[-1:]]))
    for e, true in ((first, pictures[:7]), (second, pictures[7:])):
        got = e.obs["images.front"]
        assert got.shape == (len(e) + 1, 32, 48, 3) and np.abs(got[:-1].astype(int) - true).max() < 4
        assert np.array_equal(got[-1], got[-2])
    assert [p for p in check(tmp_path / "d", decode=True) if p.severity == "error"] == []
    plain = Store.open(tmp_path / "d").read([1], images=False)[0]
    assert set(plain.obs) == {"state"}
    before = Store.open(tmp_path / "d").info
    store = Store.open(tmp_path / "d")
    store.compact()  # one file each: nothing to do, and other people's videos stay as they are
    assert store.info == before and np.array_equal(store.read()[1].obs["images.front"], second.obs["images.front"])


def words(**columns: Any) -> list[Episode]:
    """Columns given in the field's various words, through a folder and back."""
    import tempfile
    with tempfile.TemporaryDirectory() as folder:
        foreign(Path(folder) / "d", **{k.replace("__", "."): np.asarray(v) for k, v in columns.items()})
        return Store.open(Path(folder) / "d").read(images=False)


@pytest.mark.parametrize("name", ["intervention", "is_intervention", "complementary_info__is_intervention"])
def test_interventions_under_other_names(name: str) -> None:
    flags = np.arange(12) % 3 == 0
    first, second = words(**{name: flags})
    assert (first.source == np.where(flags[:7], Source.HUMAN, Source.POLICY)).all()
    assert (second.source == np.where(flags[7:], Source.HUMAN, Source.POLICY)).all()


def test_the_persons_action_counts_where_it_was_given() -> None:
    theirs = np.full((12, 2), np.nan, np.float32)
    theirs[3:5] = 9.0
    first, _ = words(intervene_action=theirs)
    assert first.source.tolist() == [0, 0, 0, 1, 1, 0, 0] and (first.action[3:5] == 9).all() and (first.proposed[3:5] != 9).all()
    first, _ = words(intervene_action=np.nan_to_num(theirs), is_intervention=np.arange(12) == 4)
    assert first.source.tolist() == [0, 0, 0, 0, 1, 0, 0] and (first.action[4] == 9).all() and (first.action[3] != 9).all()


def test_outcomes_under_other_names() -> None:
    ends, n = np.isin(np.arange(12), (6, 11)), 12
    for success, reward in (("succeed", "reward"), ("success", "rewards"), ("next__success", "next__reward")):
        first, second = words(**{success: np.arange(n) == 6, reward: np.arange(n).astype(np.float32)})
        assert first.succeeded and first.terminated and not first.truncated and not second.succeeded and second.truncated
        assert second.reward.tolist() == [7, 8, 9, 10, 11]
    first, second = words(next__done=ends, next__truncated=np.arange(n) == 11)
    assert (first.terminated, first.truncated, second.terminated, second.truncated) == (True, False, False, True)
    first, second = words(terminated=np.arange(n) == 6, truncated=np.arange(n) == 11)
    assert (first.terminated, first.truncated, second.terminated, second.truncated) == (True, False, False, True)


def test_wider_numbers_than_described_are_taken_and_others_refused(tmp_path: Path) -> None:
    foreign(tmp_path / "d")
    path = tmp_path / "d/data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    at = table.column_names.index("action")
    pq.write_table(table.set_column(at, "action", table["action"].cast(pa.list_(pa.float64()))), path)
    assert Store.open(tmp_path / "d").read(images=False)[0].action.dtype == np.float32
    pq.write_table(table.set_column(at, "action", pa.array([["a", "b"]] * 12)), path)
    with pytest.raises(RealrlError, match=r"file-000\.parquet: action is text, info\.json says float32; write numbers there"):
        Store.open(tmp_path / "d").read(images=False)
    pq.write_table(table.drop_columns(["action"]), path)
    with pytest.raises(RealrlError, match="no column action"):
        Store.open(tmp_path / "d").read(images=False)
