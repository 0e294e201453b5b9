"""What other people's LeRobot sets have that the format does not foresee: read rightly, or refused with what mends it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from recordings import record

from realrl.cell import recordings
from realrl.data import depth
from realrl.data.cache import cameras
from realrl.data.errors import POINTER
from realrl.data.formats import open_dataset
from realrl.data.schema import DATA_PATH, VIDEO_PATH
from realrl.data.tools.check import check, describe
from realrl.data.tools.repair import repair
from realrl.scene import RecordedConfig, SightConfig, SightKind
from realrl.types import Array, Episode, RealrlError

LENGTHS, FPS = (6, 4, 5), 10
CAMERA = "observation.images.top"
Columns = dict[str, Any]


def theirs(root: Path, change: Callable[[int, Columns], Columns] = lambda _, c: c, *, numbers: Sequence[int] = (0, 1, 2),
           lengths: Sequence[int] = LENGTHS, row: Callable[[int], Mapping[str, Any]] = lambda _: {}, **told: Any) -> Path:
    """A version 3 set as somebody else would write it. change: of an episode's columns; row: more of its row; told: of its features."""
    tables, rows, start = [], [], 0
    for i, (number, n) in enumerate(zip(numbers, lengths, strict=True)):
        rng, frame = np.random.default_rng(i), np.arange(n)
        vectors = {name: pa.array(rng.uniform(-1, 1, (n, 2)).astype(np.float32).tolist(), pa.list_(pa.float32()))
                   for name in ("action", "observation.state")}
        tables.append(pa.table(change(i, vectors | {
            "timestamp": pa.array((frame / FPS).astype(np.float32)), "frame_index": frame, "episode_index": np.full(n, number),
            "index": start + frame, "task_index": np.zeros(n, np.int64)})))
        rows.append({"episode_index": number, "tasks": ["t"], "length": n, "data/chunk_index": 0, "data/file_index": 0,
                     "dataset_from_index": start, "dataset_to_index": start + n, "meta/episodes/chunk_index": 0,
                     "meta/episodes/file_index": 0, **row(i)})
        start += n
    for name, table in {"data/chunk-000/file-000.parquet": pa.concat_tables(tables), "meta/tasks.parquet": pa.table(
            {"task_index": [0], "task": ["t"]}), "meta/episodes/chunk-000/file-000.parquet": pa.Table.from_pylist(rows)}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, root / name)
    features = {"action": {"dtype": "float32", "shape": [2]}, "observation.state": {"dtype": "float32", "shape": [2]},
                "timestamp": {"dtype": "float32", "shape": [1]},
                **{name: {"dtype": "int64", "shape": [1]} for name in ("frame_index", "episode_index", "index", "task_index")}}
    info = {"codebase_version": "v3.0", "robot_type": "arm", "fps": FPS, "total_episodes": len(rows), "total_frames": start,
            "chunks_size": 1000, "data_path": DATA_PATH, "video_path": VIDEO_PATH, "features": features | told}
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


def put(name: str, make: Callable[[int, int], Any]) -> Callable[[int, Columns], Columns]:
    """A change that sets a column. make: (episode, frames) -> cells."""
    return lambda i, columns: columns | {name: pa.array(make(i, len(columns["index"])))}


def refused(root: Path, **options: Any) -> str:
    """The one line in which a set is refused."""
    with pytest.raises(RealrlError) as caught:
        open_dataset(root, **options).read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def material(root: Path, kind: SightKind | None = None, **recorded: Any) -> recordings.Material:
    told = json.loads((root / "meta/info.json").read_text())["features"]
    kind = kind or ("rgb" if any(f["dtype"] in ("video", "image") for f in told.values()) else "state")
    return recordings.read(str(root), RecordedConfig(**recorded), SightConfig(kind=kind, height=8, width=8), root.parent / "spare")


def wrong(root: Path) -> list[str]:
    return [str(p) for p in check(root, limits=(-100, 100)) if p.severity == "error"]


# ---- numbers


def test_numbers_in_another_type_are_read_where_the_type_said_can_hold_them(tmp_path: Path) -> None:
    whole = put("action", lambda i, n: [[i, t] for t in range(n)])
    (first, *_) = open_dataset(theirs(tmp_path / "a", whole)).read()
    assert first.action.dtype == np.float32 and first.action[3].tolist() == [0, 3]
    done = {"dtype": "int64", "shape": [1]}
    last = put("next.done", lambda _, n: np.arange(n) == n - 1)
    assert open_dataset(theirs(tmp_path / "b", last, **{"next.done": done})).read()[0].truncated and wrong(tmp_path / "b") == []
    told = refused(theirs(tmp_path / "c", put("next.done", lambda _, n: np.full(n, 2)), **{"next.done": {"dtype": "bool", "shape": [1]}}))
    assert "next.done is int64, info.json says bool; correct its dtype in meta/info.json" in told


@pytest.mark.parametrize("word", ["list", "torch.float32", "bfloat16"])
def test_a_type_that_is_none_is_that_of_the_column(word: str, tmp_path: Path) -> None:
    told = {"dtype": word, "shape": [2]}
    straight, root = theirs(tmp_path / "straight"), theirs(tmp_path / "d", **{"action": told, "observation.state": told})
    for a, b in zip(open_dataset(root).read(), open_dataset(straight).read(), strict=True):
        assert (a.action == b.action).all() and (a.obs["state"] == b.obs["state"]).all()
    assert not wrong(root)
    words = theirs(tmp_path / "words", put("action", lambda i, n: ["left"] * n), action={"dtype": "string", "shape": [1]})
    assert "action is of dtype string in meta/info.json, and only numbers can be imitated; name the column" in refused(words)
    assert len(wrong(words)) == 1


def test_a_shape_that_info_json_has_wrong_is_named_and_no_repair_drops_what_is_whole(tmp_path: Path) -> None:
    told = refused(theirs(tmp_path / "a", action={"dtype": "float32", "shape": [7]}))
    assert "action has 2 numbers a frame, info.json says [7]; correct its shape in meta/info.json" in told and "repair" not in told
    assert any("correct its shape" in line and "repair" not in line for line in wrong(tmp_path / "a"))
    ragged = put("observation.state", lambda i, n: [[0.5] * (1 + (t == 2)) for t in range(n)])
    told = refused(theirs(tmp_path / "b", ragged))
    assert "frames of several lengths" in told and "write vectors of one length there, or take it out of meta/info.json" in told
    told = refused(theirs(tmp_path / "d", put("action", lambda i, n: ["0.1 0.2"] * n)))
    assert "action is text, info.json says float32; write numbers there" in told
    told = refused(theirs(tmp_path / "c", extra={"dtype": "float32", "shape": [1]}))
    assert "has no column extra, which info.json lists; take it out of meta/info.json" in told and "repair" not in told


def test_empty_cells_are_nan_and_training_says_where(tmp_path: Path) -> None:
    def rows(i: int, n: int) -> Any:
        return [None if (i, t) == (1, 2) else [0.1, None if (i, t) == (2, 3) else 0.2] for t in range(n)]
    root = theirs(tmp_path / "a", put("action", rows))
    actions = [e.action for e in open_dataset(root).read()]
    assert np.isnan(actions[1]).sum() == 2 and np.isnan(actions[2]).sum() == 1 and actions[2][3, 0] == np.float32(0.1)
    with pytest.raises(RealrlError, match=r"episode 1: NaN or infinity in its action at step 2: leave it out, with .* --leave-out 1'"):
        material(root)
    told = refused(theirs(tmp_path / "b", put("task_index", lambda i, n: [None] * n)))
    assert "task_index has empty cells; leave it out of meta/info.json if nobody needs it" in told


def test_an_action_is_one_vector_a_frame(tmp_path: Path) -> None:
    flat = put("action", lambda i, n: [[[0.1, 0.2]]] * n)
    assert open_dataset(theirs(tmp_path / "a", flat, action={"dtype": "float32", "shape": [1, 2]})).read()[0].action.shape == (6, 2)
    plans = theirs(tmp_path / "b", put("action", lambda i, n: [[[0.1, 0.2]] * 3] * n), action={"dtype": "float32", "shape": [3, 2]})
    assert "an action is [3, 2] numbers, plans perhaps; write the one vector" in refused(plans) and len(wrong(plans)) == 1
    state = put("observation.state", lambda i, n: np.random.default_rng(i).uniform(size=(n, 2, 1)).tolist())
    tall = theirs(tmp_path / "c", state, **{"observation.state": {"dtype": "float64", "shape": [2, 1]}})
    assert wrong(tall) == [] and material(tall).spec.obs_dim == 2


# ---- how episodes are told


def test_holes_and_empty_episodes_are_read_but_ours_lost_something(tmp_path: Path) -> None:
    root = theirs(tmp_path / "a", numbers=(2, 5, 9))
    data = open_dataset(root)
    assert [len(e) for e in data.read()] == list(LENGTHS) and data.frames == sum(LENGTHS) and wrong(root) == []
    with pytest.raises(RealrlError, match="has holes in its episodes' numbers"):
        data.append([Episode(**vars(data.read([0])[0]))])  # type: ignore[attr-defined]
    none = theirs(tmp_path / "b", lengths=(6, 0, 5))
    assert [len(e) for e in open_dataset(none).read()] == [6, 5] and wrong(none) == []
    assert open_dataset(none).notes == ["left out: 1 episode without a frame (1)"]
    own = record(tmp_path / "ours", [0, 1, 2, 3], per_append=1)
    (sorted((own / "meta/episodes/chunk-000").glob("*.parquet"))[1]).unlink()
    assert "does not number its episodes" in refused(own) and any("have no row" in line for line in wrong(own))


@pytest.mark.parametrize(("name", "cells"), [
    ("outcome", ("success", "failure")), ("is_episode_successful", (True, False)), ("episode_outcome", (1, 0)), ("failed", (False, True)),
    ("task_success", ("passed", "failed")), ("failed", ("false", "yes")), ("failure", ("success", "failure")), ("result", ("good", "bad")),
    ("is_success", ("y", "n"))])
def test_outcomes_under_other_names(tmp_path: Path, name: str, cells: tuple[Any, Any]) -> None:
    root = theirs(tmp_path / "row", row=lambda i: {name: cells[i == 1]})
    assert [e.succeeded for e in open_dataset(root).read()] == [True, False, True]


@pytest.mark.parametrize("name", ["is_episode_successful", "episode_outcome", "annotation.success", "successful"])
def test_outcomes_in_every_frame_under_other_names(tmp_path: Path, name: str) -> None:
    root = theirs(tmp_path / "d", put(name, lambda i, n: np.full(n, i != 1)), **{name: {"dtype": "bool", "shape": [1]}})
    assert [e.succeeded for e in open_dataset(root).read()] == [True, False, True]


@pytest.mark.parametrize(("dtype", "cells", "wanted"), [
    ("string", lambda i, n: ["failure" if i == 1 else "success"] * n, [True, False, True]),
    ("string", lambda i, n: [""] * (n - 1) + [("Success", "", "failed")[i]], [True, None, False]),
    ("float32", lambda i, n: np.full(n, (1.0, np.nan, 0.0)[i], np.float32), [True, None, False]),
    ("float32", lambda i, n: np.full(n, (0.2, 0.9, 1.0)[i], np.float32), [None, None, True])])
def test_outcomes_in_every_frame_as_words_gaps_and_guesses(dtype: str, cells: Any, wanted: list[bool | None], tmp_path: Path) -> None:
    root = theirs(tmp_path / "d", put("next.success", cells), **{"next.success": {"dtype": dtype, "shape": [1]}})
    for _ in range(2):  # as it lies, and repaired
        assert [e.succeeded if e.judged else None for e in open_dataset(root).read()] == wanted
        assert [good for good, n in describe(root)["outcomes"].items() if n] == sorted(
            {"success" if w else "unknown" if w is None else "failure" for w in wanted}, key=["success", "failure", "unknown"].index)
        assert not wrong(root)
        assert repair(root).kept == 3


@pytest.mark.parametrize("stamps", [lambda n: np.full(n, 1.7e9) + np.arange(n) / FPS, lambda n: np.full(n, np.nan), np.zeros])
def test_stamps_that_say_nothing_are_counted_from_the_rate(tmp_path: Path, stamps: Callable[[int], Array]) -> None:
    root = theirs(tmp_path / "d", put("timestamp", lambda _, n: stamps(n).astype(np.float32)))
    assert open_dataset(root).read()[0].time.tolist() == [t / FPS for t in range(6)]
    assert wrong(root) == [] and any("timestamp is not frame_index / fps" in str(p) for p in check(root)), "told, but no error"


# ---- files


def test_advice_quotes_a_folder_with_spaces_and_check_says_which_file(tmp_path: Path) -> None:
    root = theirs(tmp_path / "my set")
    (root / "data/chunk-000/file-000.parquet").write_bytes(b"PAR1")
    assert f"run 'realrl data repair \"{root}\"'" in refused(root)
    assert wrong(root)[0].startswith(f"error: {root}/data/chunk-000/file-000.parquet: is truncated")


def test_a_wrong_data_path_is_mended_by_the_flag_that_is_named(tmp_path: Path) -> None:
    root = theirs(tmp_path / "d")
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | {"data_path": "data/part-{chunk_index:05d}-{file_index:05d}.parquet"}))
    told = refused(root)
    assert f"--recorded.data-path '{DATA_PATH}' of 'realrl train'" in told and f"--option 'data_path={DATA_PATH}'" in told
    assert len(open_dataset(root, data_path=DATA_PATH).read()) == 3
    with pytest.raises(RealrlError, match="lie elsewhere"):  # an import reads so
        open_dataset(root).columns(0)


def video(path: Path, at: Sequence[int], size: tuple[int, int] = (16, 24)) -> None:
    """A film of frames that get lighter. at: when each is shown, in frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=Fraction(FPS))
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for i, pts in enumerate(at):
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), 10 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = pts, Fraction(1, FPS)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def test_pictures_at_times_of_their_own_are_no_error(tmp_path: Path) -> None:
    root = filmed(tmp_path / "d")
    path, late = root / "data/chunk-000/file-000.parquet", np.concatenate([np.arange(6), np.arange(4), [0, 1, 2, 6, 7]]) / FPS
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index("timestamp"), "timestamp", pa.array(late.astype(np.float32))), path)
    film = root / f"videos/{CAMERA}/chunk-000/file-000.mp4"
    video(film, at=[*range(13), 18, 19])
    assert any("holds 3 pictures of episode 2, its table 5 frames" in line for line in wrong(root)), "no stamp says where they are"
    video(film, at=[*range(13), 16, 17])
    assert wrong(root) == [] and [round(x[0, 0, 0] / 10) for x in open_dataset(root).read()[2].obs["images.top"]] == [*range(10, 15), 14]


def filmed(root: Path, shape: Sequence[int] = (16, 24, 3)) -> Path:
    ends = np.cumsum(LENGTHS) / FPS
    row = lambda i: {f"videos/{CAMERA}/{name}": value for name, value in zip(
        ("chunk_index", "file_index", "from_timestamp", "to_timestamp"), (0, 0, ends[i] - LENGTHS[i] / FPS, ends[i]), strict=True)}
    theirs(root, row=row, **{CAMERA: {"dtype": "video", "shape": list(shape)}})
    video(root / f"videos/{CAMERA}/chunk-000/file-000.mp4", range(sum(LENGTHS)))
    return root


def test_a_camera_whose_files_are_not_where_they_should_be_is_not_left_out_in_silence(tmp_path: Path) -> None:
    moved = filmed(tmp_path / "moved")
    (moved / "videos" / CAMERA).rename(moved / "videos/top")
    with pytest.raises(RealrlError, match=f"lie elsewhere; rename the folder {moved}/videos/top to {CAMERA}"):
        material(moved)
    assert any("rename the folder" in line for line in wrong(moved))
    films = filmed(tmp_path / "films")
    (films / "videos").rename(films / "films")
    with pytest.raises(RealrlError, match=r"--recorded.video-path 'films/\{video_key\}/"):
        material(films)
    lfs = filmed(tmp_path / "lfs")
    (lfs / f"videos/{CAMERA}/chunk-000/file-000.mp4").write_bytes(POINTER + b"v1\n")
    with pytest.raises(RealrlError, match="git-lfs pointer, not the file: run 'git lfs pull'"):
        material(lfs)
    (lfs / f"videos/{CAMERA}/chunk-000/file-000.mp4").unlink()
    assert any("left out" in note for note in material(lfs).notes), "a camera that nobody filmed is one that the set only lists"


@pytest.mark.parametrize("shape", [(480, 640, 3), (16, 24)])
def test_pictures_have_the_size_of_the_video(tmp_path: Path, shape: Sequence[int]) -> None:
    data = open_dataset(filmed(tmp_path / "d", shape))
    assert cameras(data)["images.top"].shape == (16, 24, 3)
    assert material(tmp_path / "d").demos[0].obs["images.top"].shape[1:] == (8, 8, 3)


def test_a_video_that_ends_early_is_read_as_far_as_one_lets_it(tmp_path: Path) -> None:
    root = filmed(tmp_path / "d")
    video(root / f"videos/{CAMERA}/chunk-000/file-000.mp4", range(sum(LENGTHS) - 1))
    with pytest.raises(RealrlError, match=r"ends after 4 of the 5 frames of episode 2; .* --recorded.tolerance 0.11 of 'realrl train'"):
        material(root)
    assert "lets that pass; else do without the camera" in refused(root)
    films = [e.obs["images.top"] for e in material(root, tolerance=0.11).demos + material(root, tolerance=0.11).held_out]
    assert sorted(len(x) for x in films) == [5, 6, 7]
    assert len(open_dataset(root, tolerance=0.11).read()) == 3, "and an import alike"


def test_training_offers_the_cameras_names_too(tmp_path: Path) -> None:
    root = theirs(tmp_path / "d", image={"dtype": "image", "shape": [16, 24, 3]})
    told = json.loads((root / "meta/info.json").read_text())
    told["features"]["actions"] = told["features"].pop("action")
    (root / "meta/info.json").write_text(json.dumps(told))
    with pytest.raises(RealrlError, match=r"--rename observation.images.image=image"):
        recordings.read(str(root), RecordedConfig(), SightConfig(kind="state"), tmp_path)


def test_a_missing_table_leaves_out_its_episodes_in_training_too(tmp_path: Path) -> None:
    root = filmed(tmp_path / "d")
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(path).to_pylist()
    pq.write_table(pa.Table.from_pylist([*rows[:2], rows[2] | {"data/file_index": 1}]), path)
    with pytest.raises(RealrlError, match=r"--recorded.missing episodes of 'realrl train'"):
        material(root)
    assert "left out: 1 episodes that lack a file (2)" in material(root, missing="episodes").notes


# ---- pictures in cells


def png(picture: Array) -> bytes:
    codec: Any = av.CodecContext.create("png", "w")
    codec.height, codec.width, codec.pix_fmt, codec.time_base = *picture.shape[:2], "rgb24", Fraction(1, FPS)
    return b"".join(bytes(p) for p in [*codec.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")), *codec.encode(None)])


def celled(root: Path, cell: Callable[[int, int], Any]) -> Path:
    """A set with pictures in cells. cell: (episode, frame) -> what the cell holds."""
    return theirs(root, put(CAMERA, lambda i, n: [cell(i, t) for t in range(n)]), **{CAMERA: {"dtype": "image", "shape": [16, 24, 3]}})


def shade(t: int, height: int = 16) -> bytes:
    return png(np.full((height, 24, 3), 10 * t, np.uint8))


def test_picture_files_that_cells_name_are_read(tmp_path: Path) -> None:
    root = celled(tmp_path / "d", lambda i, t: {"bytes": None, "path": f"images/{i}/{t}.png"})
    told = refused(root)
    assert "names the picture file 'images/0/0.png', which is not there; do without the camera: --sight.cameras" in told
    assert [line for line in wrong(root) if "do without the camera" in line]
    for i, n in enumerate(LENGTHS):
        (root / f"images/{i}").mkdir(parents=True)
        for t in range(n):
            (root / f"images/{i}/{t}.png").write_bytes(shade(t))
    assert [int(x[0, 0, 0]) for x in open_dataset(root).read()[1].obs["images.top"]] == [0, 10, 20, 30, 30] and wrong(root) == []
    outside = celled(tmp_path / "outside", lambda i, t: {"bytes": None, "path": "../d/images/0/0.png"})
    assert "leads out" in refused(outside)


@pytest.mark.parametrize("wrap", [lambda x: {"image": {"bytes": x, "path": None}}, lambda x: {"bytes": x}, lambda x: x])
def test_cells_in_other_wraps_are_read(wrap: Callable[[bytes], Any], tmp_path: Path) -> None:
    root = theirs(tmp_path / "d", put(CAMERA, lambda i, n: [wrap(shade(9))] * n), **{CAMERA: {"dtype": "image", "shape": [16, 24, 3]}})
    assert open_dataset(root).read()[0].obs["images.top"][0, 0, 0].tolist() == [90, 90, 90] and not wrong(root)


def test_text_in_place_of_a_picture_and_distances_among_colours_are_said(tmp_path: Path) -> None:
    root = theirs(tmp_path / "d", put(CAMERA, lambda i, n: ["iVBORw0KGgo="] * n), **{CAMERA: {"dtype": "image", "shape": [2, 2, 3]}})
    assert "holds text, no picture" in refused(root) and "holds text" in wrong(root)[0]
    kept = io.BytesIO()
    Image.fromarray(np.full((8, 8), 700, np.uint16)).save(kept, "PNG")
    told: dict[str, Any] = {"dtype": "image", "shape": [8, 8, 1]}
    root = theirs(tmp_path / "e", put(CAMERA, lambda i, n: [kept.getvalue()] * n), **{CAMERA: told})
    assert (material(root, "depth").demos[0].obs["depth.top"] == 700).all() and not wrong(root), "grey of 16 bits is nothing else"
    root = theirs(tmp_path / "f", put(CAMERA, lambda i, n: [kept.getvalue() if i else shade(1, 8)] * n), **{CAMERA: told})
    with pytest.raises(RealrlError, match=r'"info": \{"is_depth_map": true\}'):
        material(root)
    assert any('"is_depth_map": true' in line for line in wrong(root))


@pytest.mark.parametrize(("about", "wanted"), [
    ({"depth_scale": 0.00025}, 175), ({"is_depth_map": True, "depth_unit": "m"}, "how many metres a step is"),
    ({"pix_fmt": "gray12le", "depth_min": 0.0, "depth_max": 4.095, "shift": 0.0, "use_log": False}, 700)])
def test_depth_in_cells_is_read_in_its_unit(about: dict[str, Any], wanted: int | str, tmp_path: Path) -> None:
    kept = io.BytesIO()
    Image.fromarray(np.full((8, 8), 700, np.uint16)).save(kept, "PNG")
    told = {"dtype": "image", "shape": [8, 8, 1], "info": about}
    root = theirs(tmp_path / "d", put(CAMERA, lambda i, n: [kept.getvalue()] * n), **{CAMERA: told})
    if isinstance(wanted, str):
        assert wanted in refused(root) and any(wanted in line for line in wrong(root))
    else:
        assert (open_dataset(root).read()[1].obs["images.top"] == wanted).all() and not wrong(root)
    eight = theirs(tmp_path / "e", put(CAMERA, lambda i, n: [shade(3)] * n), **{CAMERA: told | {"info": {"is_depth_map": True}}})
    assert "in pictures of 8 bits, whose unit nobody tells; do without the camera" in refused(eight) and wrong(eight)


def test_cells_without_a_picture_and_pictures_of_several_sizes_are_refused(tmp_path: Path) -> None:
    told = refused(celled(tmp_path / "a", lambda i, t: None if (i, t) == (1, 1) else {"bytes": shade(t), "path": None}))
    assert f"{CAMERA}, row 7 is empty; do without the camera" in told and "row 7 is empty" in wrong(tmp_path / "a")[0]
    assert [len(e) for e in open_dataset(tmp_path / "a", cameras=()).read()] == list(LENGTHS)
    told = refused(celled(tmp_path / "b", lambda i, t: {"bytes": shade(t, 16 + 2 * (t % 2)), "path": None}))
    assert "has pictures of several sizes (16 x 24 and 18 x 24)" in told
    other = celled(tmp_path / "c", lambda i, t: {"bytes": b"\xff\x4f\xff\x51", "path": None})
    assert "of a kind that is not read, JPEG 2000" in refused(other)


# ---- depth


@pytest.mark.parametrize("about", [
    {"video_info": {"video.is_depth_map": True, "video.pix_fmt": "yuv420p"}}, {"info": {"is_depth_map": True, "pix_fmt": "gray10le"}},
    {"info": {"video.is_depth_map": True, "video.pix_fmt": "gray16le", "depth_min": 0.1, "depth_max": 5.0}}])
def test_depth_in_an_untold_coding_is_refused(about: dict[str, Any]) -> None:
    with pytest.raises(RealrlError, match=r"coded in a way that info.json does not tell; do without the camera"):
        depth.coding(CAMERA, about)


def test_grey_of_16_bits_is_depth_in_millimetres_said_or_not() -> None:
    for flag in ({}, {"video.is_depth_map": False}, {"video.is_depth_map": True, "depth_unit": "mm"}):
        feature = {"dtype": "video", "shape": [16, 24, 1], "info": {"video.pix_fmt": "gray16le", **flag}}
        assert depth.is_depth(feature) and depth.coding(CAMERA, feature) is None


def test_grey_of_16_bits_in_other_steps_asks_for_the_step() -> None:
    about = {"video.is_depth_map": True, "video.pix_fmt": "gray16le", "depth_unit": "m"}
    with pytest.raises(RealrlError, match=r'write how many metres a step is into its info in meta/info.json \("depth_scale": 0.001'):
        depth.coding(CAMERA, {"info": about})
    found = depth.coding(CAMERA, {"info": about | {"depth_scale": 0.0025}})
    assert found is not None and depth._table(found)[[0, 2, 400]].tolist() == [0, 5, 1000]
    assert depth.coding(CAMERA, {"info": about | {"depth_scale": 0.001}}) is None


def test_a_run_that_shall_look_and_sees_nothing_is_told_why(tmp_path: Path) -> None:
    plain, about = theirs(tmp_path / "plain"), {"dtype": "float32", "shape": [16, 3]}
    name = "observation.point_cloud"
    cloud = theirs(tmp_path / "cloud", put(name, lambda _, n: [np.ones((16, 3), np.float32).tolist()] * n), **{name: about})
    depth = theirs(tmp_path / "depth", put("observation.depth", lambda _, n: [np.ones((8, 12), np.float32).tolist()] * n),
                   **{"observation.depth": about | {"shape": [8, 12]}})
    wanted: list[tuple[Path, SightKind, str]] = [
        (plain, "rgb", "no camera in it sees colours; --sight.kind state"), (plain, "pointcloud", "no observation.pointcloud in it"),
        (cloud, "pointcloud", f"{name} looks like a point cloud: --rename observation.pointcloud={name}"),
        (depth, "depth", "no camera in it sees distances; observation.depth: written as plain numbers")]
    for root, kind, words in wanted:
        with pytest.raises(RealrlError, match=re.escape(words)):
            material(root, kind)
    seen = material(cloud, "pointcloud", names=(f"observation.pointcloud={name}",)).demos[0]
    assert seen.obs["pointcloud"].shape == (7, 16, 3) and any("look at it" in note for note in material(cloud, "state").notes)


def test_what_is_in_another_format_is_to_be_imported_and_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    (file := tmp_path / "lift.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n")
    assert refused(file).endswith(f"realrl data import {file} --out NEW")
    assert "does not exist" in refused(tmp_path / "typo")
