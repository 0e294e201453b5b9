"""LeRobot's sets of 2.x and 3.0 as people have them: the same options and the same answers, where they lie and imported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from realrl.cli import main as cli
from realrl.data import video
from realrl.data.formats import open_dataset, read
from realrl.data.store import Store
from realrl.types import Array, Episode, RealrlError, Source

FPS, LENGTHS = 20, (6, 4, 5)
OLD, NEW = "v2.1", "v3.0"
BOTH = pytest.mark.parametrize("version", [OLD, NEW])
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
INDICES = ("timestamp", "frame_index", "episode_index", "index", "task_index")


def film(path: Path, frames: Sequence[Array], at: Sequence[float], *, g: int = 2, bframes: int = 0) -> None:
    """An H.264 film whose frames are shown at these seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", rate=FPS, options={"crf": "10", "bf": str(bframes), "b-adapt": "0", "sc_threshold": "0"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = frames[0].shape[1], frames[0].shape[0], "yuv420p", g
        stream.time_base = stream.codec_context.time_base = video.Fraction(1, 1000)
        for frame, seconds in zip(frames, at, strict=True):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = round(1000 * seconds), video.Fraction(1, 1000)
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))


def shades(episode: int, n: int) -> list[Array]:
    return [np.full((32, 48, 3), 40 * episode + 10 * t, np.uint8) for t in range(n)]


def made(root: Path, version: str = OLD, *, lengths: Sequence[int] = LENGTHS, numbers: Sequence[int] | None = None, fps: float = FPS,
         names: dict[str, str] | None = None, stamps: Callable[[Array], Array] | None = None, shown: Callable[[Array], Array] | None = None,
         drift: float = 0.0, tasks: Callable[[int, Array], Array] | None = None, more: dict[str, Any] | None = None, **film_options: int
         ) -> Path:
    """A set with one camera. names: of "action", "observation.state", "observation.images.top"; stamps, shown: from k / fps to the tables'
    timestamps and to when the video shows it; drift: seconds by which each episode of version 3 begins later than its video; more: column
    -> [n] of another column's values."""
    called = {name: (names or {}).get(name, name) for name in ("action", "observation.state", "observation.images.top")}
    camera, numbers = called["observation.images.top"], numbers or range(len(lengths))
    stamps, shown = stamps or (lambda t: t), shown or (lambda t: t)
    tables, films, start = [], [], 0
    for e, n in zip(numbers, lengths, strict=True):
        frame = np.arange(n)
        state, action = np.stack([frame, np.full(n, e)], 1), np.stack([frame / 10, frame / 20], 1)
        vectors = {called["observation.state"]: state, called["action"]: action}
        columns = {name: pa.array(x.tolist(), pa.list_(pa.float32())) for name, x in vectors.items()}
        columns |= {name: pa.array(make(n)) for name, make in (more or {}).items()}
        task = np.full(n, e % 2) if tasks is None else tasks(e, frame)
        at = np.asarray(stamps(frame / fps), np.float32)
        columns |= {"timestamp": at, "frame_index": frame, "episode_index": np.full(n, e), "index": start + frame, "task_index": task}
        tables.append(pa.table(columns))
        films.append((shades(e, n), shown(frame / fps)))
        start += n
    plain = {"dtype": "float32", "shape": [2], "names": ["shoulder", "elbow"]}
    features = {called["observation.state"]: plain, called["action"]: plain}
    features |= {camera: {"dtype": "video", "shape": [32, 48, 3], "names": ["height", "width", "channels"], "info": None}}
    features |= {name: {"dtype": str(make(1).dtype).replace("object", "string").replace("<U1", "string"), "shape": [1], "names": None}
                 for name, make in (more or {}).items()}
    features |= {k: {"dtype": "float32" if k == "timestamp" else "int64", "shape": [1], "names": None} for k in INDICES}
    info = {"codebase_version": version, "robot_type": "arm", "fps": fps, "features": features, "total_episodes": len(lengths),
            "total_frames": sum(lengths), "chunks_size": 1000}
    (root / "meta").mkdir(parents=True)
    (old if version == OLD else new)(root, info, camera, numbers, tables, films, drift, film_options)
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


def old(root: Path, info: dict[str, Any], camera: str, numbers: Sequence[int], tables: list[pa.Table], films: list[Any], _: float,
        options: dict[str, int]) -> None:
    (root / "data/chunk-000").mkdir(parents=True)
    for e, table, (frames, at) in zip(numbers, tables, films, strict=True):
        if len(table):
            pq.write_table(table, root / f"data/chunk-000/episode_{e:06d}.parquet")
            film(root / f"videos/chunk-000/{camera}/episode_{e:06d}.mp4", frames, at, **options)
    lines = {"episodes": [{"episode_index": e, "tasks": [f"task {e % 2}"], "length": len(t)} for e, t in zip(numbers, tables, strict=True)],
             "tasks": [{"task_index": i, "task": f"task {i}"} for i in range(2)]}
    for name, rows in lines.items():
        (root / f"meta/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    info |= {"data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
             "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"}


def new(root: Path, info: dict[str, Any], camera: str, numbers: Sequence[int], tables: list[pa.Table], films: list[Any], drift: float,
        options: dict[str, int]) -> None:
    fps, rows, start = float(info["fps"]), [], 0
    for e, table in zip(numbers, tables, strict=True):
        n, begin = len(table), start / fps + e * drift
        rows.append({"episode_index": e, "tasks": [f"task {e % 2}"], "length": n, "data/chunk_index": 0, "data/file_index": 0,
                     "dataset_from_index": start, "dataset_to_index": start + n, f"videos/{camera}/chunk_index": 0,
                     f"videos/{camera}/file_index": 0, f"videos/{camera}/from_timestamp": begin,
                     f"videos/{camera}/to_timestamp": begin + n / fps})
        start += n
    for name, table in {"data/chunk-000/file-000": pa.concat_tables(tables), "meta/episodes/chunk-000/file-000": pa.Table.from_pylist(rows),
                        "meta/tasks": pa.table({"task_index": [0, 1], "task": ["task 0", "task 1"]})}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, root / f"{name}.parquet")
    begins = np.cumsum([0, *(len(t) for t in tables)]) / fps
    film(root / f"videos/{camera}/chunk-000/file-000.mp4", [f for frames, _ in films for f in frames],
         [begin + t for begin, (_, at) in zip(begins, films, strict=False) for t in at], **options)
    info |= {"data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
             "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"}


def seen(episode: Episode, key: str = "images.top") -> list[int]:
    """The shades of an episode's pictures, in tens."""
    return [round(float(x) / 10) for x in episode.obs[key].mean((1, 2, 3))]


def run(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> str:
    capsys.readouterr()
    assert cli.main(["data", *map(str, words)]) == code
    told = capsys.readouterr()
    return " ".join((told.out + told.err).split())


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(RealrlError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


WANTED = [[0, 1, 2, 3, 4, 5, 5], [4, 5, 6, 7, 7], [8, 9, 10, 11, 12, 12]]


@BOTH
def test_packets_columns_and_names_are_kept(version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = {"grasp": lambda n: np.arange(n) / 4, "hint": lambda n: np.array(["x"] * n)}
    root = made(tmp_path / "d", version, more=more)
    told = run(capsys, "import", root, "--out", tmp_path / "out")
    assert "left out: grasp, hint" in told and "--option keep=grasp keeps it" in told and "encoded again" not in told
    run(capsys, "import", root, "--out", tmp_path / "kept", "--option", "keep=grasp")
    for name in ("out", "kept"):
        store = Store.open(tmp_path / name)
        assert [seen(e) for e in store.read()] == WANTED
        assert all(store.info["features"][c]["names"] == ["shoulder", "elbow"] for c in ("action", "observation.state"))
        assert store.info["features"]["observation.images.top"]["info"]["video.codec"] == "h264"
        assert ("grasp" in store.info["features"]) == (name == "kept") and store.info["robot_type"] == "arm"
    assert store.columns(0)["grasp"].tolist() == [0, .25, .5, .75, 1, 1.25]
    for a, b in zip(open_dataset(root).read(), store.read(), strict=True):
        assert (a.obs["images.top"] == b.obs["images.top"]).all() and (a.action == b.action).all() and a.task == b.task
    path, seconds = store.pictures(1, "images.top")
    assert np.allclose(seconds, [.3, .35, .4, .45, .45]) and len(video.times(path)) == sum(LENGTHS)


@BOTH
def test_the_options_of_an_import(version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = made(tmp_path / "d", version)
    run(capsys, "import", root, "--out", tmp_path / "out", "--option", "images=False", "--option", "success=true", "--option", "last=drop",
        "--option", "source=script", "--action-range", "-2", "2", "--task", "again")
    store, source = Store.open(tmp_path / "out"), open_dataset(root).read()
    assert store.cameras == [] and [len(e) for e in store.read()] == [5, 3, 4]
    for a, b in zip(store.read(), source, strict=True):
        assert a.succeeded and a.task == "again" and (a.source == Source.SCRIPT).all()
        assert np.allclose(a.action, b.action[:-1] / 2) and len(a.obs["state"]) == len(b)
    assert seen(list(read(root, last="drop", cameras=["top"]).episodes)[1]) == WANTED[1][:-1]
    assert "no camera 'left'; it has images.top" in run(capsys, "import", root, "--out", tmp_path / "x", "--option", "cameras=left", code=2)
    assert open_dataset(root, cameras=[]).cameras == [] and "images.top" not in open_dataset(root, cameras=[]).read()[0].obs


@BOTH
def test_columns_under_other_names(version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"action": "actions", "observation.state": "state", "observation.images.top": "image"}
    root = made(tmp_path / "d", version, names=names)
    flags = ["--rename", "action=actions", "--rename", "observation.state=state", "--rename", "observation.images.image=image"]
    told = run(capsys, "import", root, "--out", tmp_path / "out", code=2)
    assert "no column 'action', but 'actions' looks like it" in told and " ".join(flags) in told
    run(capsys, "import", root, "--out", tmp_path / "out", *flags)
    flagged = dict(flag.split("=") for flag in flags[1::2])
    for data in (open_dataset(root, names=flagged), open_dataset(tmp_path / "out")):
        assert data.cameras == ["images.image"] and "actions" not in data.info["features"]
        assert [seen(e, "images.image") for e in data.read()] == WANTED and data.read()[0].obs["state"].shape == (7, 2)
    assert "no column 'acts'" in refusal(lambda: open_dataset(root, names={"action": "acts"}))
    assert "not understood; write OURS=THEIRS" in run(capsys, "import", root, "--out", tmp_path / "x", "--rename", "action", code=2)
    told = run(capsys, "import", root, "--out", tmp_path / "some", *flags[:2])
    assert f"state, image might be wanted as observation.state, observation.images.image: {' '.join(flags[2:])}" in told


def test_what_was_opened_under_other_names_is_not_written_to(tmp_path: Path) -> None:
    data = open_dataset(made(tmp_path / "d", NEW, names={"action": "actions"}), names={"action": "actions"})
    assert isinstance(data, Store) and "open it as it is" in refusal(lambda: data.append(data.read(images=False)))


@BOTH
def test_a_missing_video(version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = made(tmp_path / "d", version)
    for path in sorted(root.rglob("*.mp4"))[-1:]:
        path.write_text(POINTER)
        assert "run 'git lfs pull' in" in refusal(lambda: open_dataset(root).read())
        path.unlink()
    told = run(capsys, "import", root, "--out", tmp_path / "out", code=2)
    assert "--option missing=camera" in told and "missing; " in told and "restore" not in told
    assert "images.top" not in open_dataset(root, missing="camera").read()[0].obs
    assert "left out: images.top" in run(capsys, "import", root, "--out", tmp_path / "camera", "--option", "missing=camera")
    assert len(Store.open(tmp_path / "camera")) == 3 and not Store.open(tmp_path / "camera").cameras
    if version == NEW:  # all were in one file
        assert "missing=camera" in refusal(lambda: open_dataset(root, missing="episodes"))
        return
    left = open_dataset(root, missing="episodes")
    assert [seen(e) for e in left.read()] == WANTED[:2] and (len(left), left.frames) == (2, 10) and "(2)" in left.notes[0]
    (root / "data/chunk-000/episode_000000.parquet").unlink()
    assert "--option missing=episodes" in refusal(lambda: open_dataset(root).read(images=False))
    assert "2 episodes that lack a file (0, 2)" in run(capsys, "import", root, "--out", tmp_path / "some", "--option", "missing=episodes")
    assert [seen(e) for e in Store.open(tmp_path / "some").read()] == WANTED[1:2]


@BOTH
@pytest.mark.parametrize("kind", ["parquet", "json", "jsonl", "mp4"])
def test_pointers_of_git_lfs(version: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = made(tmp_path / "d", version)
    for path in root.rglob(f"*.{kind}"):
        path.write_text(POINTER)
    told = run(capsys, "import", root, "--out", tmp_path / "out", code=2 if kind != "jsonl" or version == OLD else 0)
    assert f"is a git-lfs pointer, not the file: run 'git lfs pull' in {root}" in told or (kind, version) == ("jsonl", NEW)


@BOTH
def test_paths_that_info_json_has_wrong(version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = made(tmp_path / "d", version)
    shutil.move(root / "videos", root / "films")
    told = refusal(lambda: open_dataset(root).read())
    option = told.partition("--option '")[2].partition("'")[0]
    assert option.startswith("video_path=films/") and "lie elsewhere" in told
    run(capsys, "import", root, "--out", tmp_path / "out", "--option", option)
    assert [seen(e) for e in Store.open(tmp_path / "out").read()] == WANTED
    shutil.move(root / "data", root / "tables")
    option = refusal(lambda: open_dataset(root).read(images=False)).partition("--option '")[2].partition("'")[0]
    name, _, template = option.partition("=")
    assert name == "data_path" and len(open_dataset(root, data_path=template).read(images=False)) == 3


@BOTH
def test_a_rate_that_is_no_whole_number(version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = made(tmp_path / "d", version, fps=29.97)
    run(capsys, "import", root, "--out", tmp_path / "out")
    for data in (open_dataset(root), store := Store.open(tmp_path / "out")):
        assert data.fps == data.info["fps"] == 29.97 and [seen(e) for e in data.read()] == WANTED
    assert "nothing wrong" in run(capsys, "check", tmp_path / "out") and "29.97 steps/s" in run(capsys, "info", tmp_path / "out")
    assert np.allclose(store.columns(0)["timestamp"], np.arange(6) / 29.97)
    assert isinstance(Store.create(tmp_path / "whole", task="t", fps=30.0).fps, int)
    for kind, name in {"robomimic": "d.hdf5", "diffusion_policy": "d.zarr"}.items():
        run(capsys, "export", tmp_path / "out", "--format", kind, "--out", tmp_path / name)
        assert read(tmp_path / name).fps == 29.97
    shutil.rmtree(tmp_path / "out/meta")  # what is left are the timestamps
    run(capsys, "repair", tmp_path / "out")
    assert Store.open(tmp_path / "out").fps == 29.97


def test_holes_in_the_numbers_and_empty_episodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = made(tmp_path / "d", lengths=(6, 0, 4), numbers=(0, 1, 5))
    data = open_dataset(root)
    assert len(data) == 2 and data.read()[1].obs["state"][0].tolist() == [0, 5] and seen(data.read()[1]) == [20, 21, 22, 23, 23]
    assert "left out: 1 episode without a frame (1)" in run(capsys, "import", root, "--out", tmp_path / "out")
    assert [seen(e) for e in Store.open(tmp_path / "out").read()] == [seen(e) for e in data.read()]


def late(t: Array) -> Array:
    """A clock that lost a fifth of a second in the middle."""
    return np.where(t > .12, t + .2, t)


@BOTH
def test_pictures_lie_where_the_timestamps_say(version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"lengths": (6,), "stamps": late, "shown": late}
    root = made(tmp_path / "d", version, **options)
    assert seen(open_dataset(root).read()[0]) == WANTED[0]
    assert "encoded again" not in run(capsys, "import", root, "--out", tmp_path / "out")
    assert seen(Store.open(tmp_path / "out").read()[0]) == WANTED[0]
    own = made(tmp_path / "own", version, lengths=(6,), stamps=lambda t: t * 3)  # a clock that the video did not follow
    assert seen(open_dataset(own).read()[0]) == WANTED[0]


def test_drift_is_let_pass_up_to_a_tolerance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = made(tmp_path / "d", NEW, drift=.004)
    assert [seen(e) for e in open_dataset(root).read()] == WANTED
    assert "within 0.001 s" in refusal(lambda: open_dataset(root, tolerance=.001).read())
    strict = ["--option", "tolerance=0.001", "--codec", "h264"]
    assert "within 0.001 s" in run(capsys, "import", root, "--out", tmp_path / "x", *strict, code=2)
    run(capsys, "import", root, "--out", tmp_path / "out")
    assert [seen(e) for e in Store.open(tmp_path / "out").read()] == WANTED and not open_dataset(tmp_path / "out").notes


def test_pictures_that_refer_to_later_ones_are_copied_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = made(tmp_path / "d", lengths=(9, 8), g=30, bframes=2)
    packets = list(video.packets(root / "videos/chunk-000/observation.images.top/episode_000000.mp4"))
    assert [p.pts for p in packets] != sorted(p.pts for p in packets)
    assert "encoded again" not in run(capsys, "import", root, "--out", tmp_path / "out")
    copied, source = Store.open(tmp_path / "out"), open_dataset(root)
    for a, b in zip(copied.read(), source.read(), strict=True):
        assert (a.obs["images.top"] == b.obs["images.top"]).all()
    whole = made(tmp_path / "whole", NEW, lengths=(9, 8), g=30, bframes=2)
    assert "images.top: " in (told := run(capsys, "import", whole, "--out", tmp_path / "again")) and "encoded again" in told
    assert [seen(e)[3] for e in Store.open(tmp_path / "again").read()] == [3, 7]


def coded(metres: Array, log: bool) -> Array:
    low, high, shift = .01, 10.0, 3.5
    scale = (lambda x: np.log(x + shift)) if log else (lambda x: x)
    return np.rint((scale(metres) - scale(low)) / (scale(high) - scale(low)) * 4095).astype(np.uint16)


@BOTH
@pytest.mark.parametrize("log", [True, False])
def test_depth_in_twelve_bits(version: str, log: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = made(tmp_path / "d", version, lengths=(3,))
    (path,) = root.rglob("*.mp4")
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx265", rate=FPS, options={"x265-params": "lossless=1:log-level=none:pools=none:frame-threads=1"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "gray12le"
        for t in range(3):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(coded(np.full((32, 48), .5 + t), log), format="gray12le")))
        out.mux(stream.encode(None))
    info = json.loads((root / "meta/info.json").read_text())
    told = {"is_depth_map": True, "video.pix_fmt": "gray12le", "video.depth_min": .01, "video.depth_max": 10.0, "video.shift": 3.5,
            "video.use_log": log}
    info["features"]["observation.images.top"] |= {"shape": [32, 48, 1], "info": told}
    (root / "meta/info.json").write_text(json.dumps(info))
    run(capsys, "import", root, "--out", tmp_path / "out")
    for data in (open_dataset(root), open_dataset(tmp_path / "out")):
        x = data.read()[0].obs["images.top"]
        assert x.dtype == np.uint16 and x.shape == (4, 32, 48) and np.abs(x[:, 0, 0].astype(int) - [500, 1500, 2500, 2500]).max() <= 2
    for change in ({"video.depth_max": None}, {"video.pix_fmt": "yuv420p"}):
        info["features"]["observation.images.top"]["info"] = told | change
        (root / "meta/info.json").write_text(json.dumps(info))
        assert "coding" in (text := refusal(lambda: open_dataset(root).read())) or "coded" in text
    info["features"]["observation.images.top"]["info"] = told | {"is_depth_map": False}  # grey in 12 bits is depth whatever the flag says
    (root / "meta/info.json").write_text(json.dumps(info))
    assert np.array_equal(open_dataset(root).read()[0].obs["images.top"], x)


@BOTH
def test_a_task_that_changes_inside_an_episode_is_told(version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = made(tmp_path / "d", version, tasks=lambda e, frame: (frame > 2).astype(np.int64) if e == 1 else np.zeros(len(frame), np.int64))
    assert "the task changes inside 1 episodes" in (told := run(capsys, "import", root, "--out", tmp_path / "out")) and "'task 1'" in told


def png(x: Array) -> bytes:
    encoder: Any = av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.time_base = x.shape[1], x.shape[0], video.Fraction(1, 1)
    encoder.pix_fmt = "rgb24" if x.ndim == 3 else "gray16be"
    picture = av.VideoFrame.from_ndarray(x, format="rgb24" if x.ndim == 3 else "gray16le").reformat(format=encoder.pix_fmt)
    return b"".join(bytes(p) for p in encoder.encode(picture))


def with_cells(root: Path, picture: Array) -> Path:
    """The set with its camera in cells that name no path, one picture over and over."""
    path, info = root / "data/chunk-000/file-000.parquet", json.loads((root / "meta/info.json").read_text())
    cells = [{"bytes": png(picture), "path": None}] * sum(LENGTHS)
    column = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.null())]))
    pq.write_table(pq.read_table(path).append_column("observation.images.top", column), path)
    info["features"]["observation.images.top"] = {"dtype": "image", "shape": [*picture.shape], "names": None}
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


def test_depth_in_cells_stays_depth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = with_cells(made(tmp_path / "d", NEW), np.full((32, 48), 1234, np.uint16))
    run(capsys, "import", root, "--out", tmp_path / "out")
    for data in (open_dataset(root), Store.open(tmp_path / "out")):
        x = data.read()[1].obs["images.top"]
        assert x.dtype == np.uint16 and x.shape == (5, 32, 48) and (x == 1234).all()


def test_pictures_in_cells_without_a_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = with_cells(made(tmp_path / "d", NEW), shades(0, 2)[1])
    run(capsys, "trim", root, "--start", "1", "--out", tmp_path / "cut")
    assert [len(e) for e in Store.open(tmp_path / "cut").read()] == [5, 3, 4] and seen(Store.open(tmp_path / "cut").read()[0]) == [1] * 6
    assert "pictures in cells become video" in run(capsys, "import", root, "--out", tmp_path / "out")
