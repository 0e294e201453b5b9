"""Tables, clocks and texts of other people's LeRobot sets that are laid out in another way: read for what they mean, and mended."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_kinds import CAMERA, FPS, LENGTHS, Columns, filmed, material, put, refused, theirs, video, wrong
from test_lerobot import BOTH, NEW, OLD, late, made, run, seen
from test_told_alike import described, warned

from realrl.data import clocks, labels
from realrl.data.formats import open_dataset
from realrl.data.store import Store
from realrl.data.tools import edit
from realrl.data.tools.repair import repair
from realrl.types import RealrlError

VECTORS = np.arange(12, dtype=np.float64).reshape(6, 2) / 8


def mixed(e: int, columns: Columns) -> Columns:
    """Frames in another order."""
    at = np.random.default_rng(e).permutation(len(columns["index"]))
    return {name: pa.array(np.asarray(x)[at]) if isinstance(x, np.ndarray) else x.take(pa.array(at)) for name, x in columns.items()}


# ---- cells


@pytest.mark.parametrize(("cells", "names"), [
    ([{"x": x, "y": y} for x, y in VECTORS], None), ([{"y": y, "x": x} for x, y in VECTORS], ["x", "y"]),
    ([{"arm": [x], "hand": y} for x, y in VECTORS], None), ([[Decimal(str(x)), Decimal(str(y))] for x, y in VECTORS], None)])
def test_cells_with_fields_and_decimals_are_vectors(cells: list[Any], names: Any, tmp_path: Path) -> None:
    root = theirs(tmp_path / "d", put("action", lambda i, n: cells), lengths=(6, 6), numbers=(0, 1),
                  action={"dtype": "float32", "shape": [2], "names": names})
    assert (open_dataset(root).read()[1].action == VECTORS).all() and not wrong(root)


@pytest.mark.parametrize(("cell", "words"), [({"arm": "left", "hand": 1.0}, "write numbers"),
                                             ({"arm": [1.0] * 3, "hand": 1.0}, "numbers a frame")])
def test_fields_that_are_no_numbers_or_too_many_are_one_line(cell: Any, words: str, tmp_path: Path) -> None:
    root = theirs(tmp_path / "d", put("action", lambda i, n: [cell] * n))
    assert words in refused(root) and any(words in line for line in wrong(root))


def test_a_column_that_was_never_filled_in_says_nothing(tmp_path: Path) -> None:
    blank = {"dtype": "float32", "shape": [1], "names": None}
    root = theirs(tmp_path / "d", put("next.reward", lambda i, n: np.full(n, np.nan, np.float32)), **{"next.reward": blank})
    assert not open_dataset(root).read()[0].reward.any()
    root = theirs(tmp_path / "e", put("next.reward", lambda i, n: np.append(np.zeros(n - 1), np.nan).astype(np.float32)),
                  **{"next.reward": blank})
    with pytest.raises(Exception, match="episode 0: NaN or infinity in its reward at step 5"):
        material(root)


def test_a_column_of_gaps_that_nobody_needs_can_be_done_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "observation.force"
    root = theirs(tmp_path / "d", put(name, lambda i, n: np.append(np.zeros(n - 1), np.nan)), **{name: {"dtype": "float32", "shape": [1]}})
    assert f"take {name} out of meta/info.json" in run(capsys, "import", root, "--out", tmp_path / "out", code=2)
    info = json.loads((path := root / "meta/info.json").read_text())
    path.write_text(json.dumps(info | {"features": {k: f for k, f in info["features"].items() if k != name}}))
    run(capsys, "import", root, "--out", tmp_path / "out")
    assert Store.open(tmp_path / "out").read()[0].obs.keys() == {"state"}


# ---- clocks


@BOTH
@pytest.mark.parametrize("unit", [1e3, 1e9])
def test_timestamps_in_another_unit_are_read_in_it(version: str, unit: float, tmp_path: Path) -> None:
    root = made(tmp_path / "d", version, stamps=lambda t: t * unit, shown=lambda t: np.round(t * 1.04, 3))  # a film that runs on by them
    found = open_dataset(root).read()
    assert np.allclose(found[0].time, np.arange(6) / 20, atol=1e-3) and seen(found[0])[:3] == [0, 1, 2]
    assert any("the timestamps are " + ("milli" if unit == 1e3 else "nano") in line for line in warned(root))


def test_units_of_stamps() -> None:
    assert [clocks.unit(np.arange(4) * step, 10) for step in (0.1, 100, 1e5, 1e8, 0.5, 7.0)] == [
        "", "milliseconds", "microseconds", "nanoseconds", "", ""]
    assert clocks.unit(np.zeros(1), 10) == "" and clocks.unit(np.full(3, np.nan), 10) == ""


@pytest.mark.parametrize("dtype", ["float32", "timestamp[ms]"])
def test_timestamps_that_are_moments(dtype: str, tmp_path: Path) -> None:
    root = theirs(tmp_path / "d", put("timestamp", lambda i, n: (1_700_000_000_000 + 100 * np.arange(n)).astype("datetime64[ms]")),
                  timestamp={"dtype": dtype, "shape": [1]})
    assert np.allclose(open_dataset(root).read()[1].time, np.arange(4) / 10)


@pytest.mark.parametrize("told", ["30000/1001", "29.97003"])
def test_a_rate_as_video_tools_write_it(told: str, tmp_path: Path) -> None:
    described(root := made(tmp_path / "d"), fps=told)
    assert abs(open_dataset(root).fps - 30000 / 1001) < 1e-5


# ---- order


def test_frames_in_another_order_are_put_right(tmp_path: Path) -> None:
    straight, root = theirs(tmp_path / "straight"), theirs(tmp_path / "d", mixed)
    assert not wrong(root) and any("another order" in line for line in warned(root))
    for name, where in (("cut", root), ("straight cut", straight)):
        edit.trim(where, tmp_path / name, start=1)
    cut, wanted = (Store.open(tmp_path / name).read() for name in ("cut", "straight cut"))
    assert all((a.action == b.action).all() for a, b in zip(cut, wanted, strict=True))
    for _ in range(2):  # as it lies, and repaired
        for a, b in zip(open_dataset(root).read(), open_dataset(straight).read(), strict=True):
            assert (a.obs["state"] == b.obs["state"]).all() and (a.action == b.action).all()
        repair(root)
    assert not any("another order" in line for line in warned(root))


def test_episodes_whose_numbers_lie_in_another_order_are_no_error(tmp_path: Path) -> None:
    root = theirs(tmp_path / "d", numbers=(2, 1, 0))
    assert wrong(root) == [] and [len(e) for e in open_dataset(root).read()] == [*reversed(LENGTHS)]


def test_episodes_in_another_order_in_their_file_are_put_right(tmp_path: Path) -> None:
    straight, root = theirs(tmp_path / "straight"), theirs(tmp_path / "d")
    table = pq.read_table(path := root / "data/chunk-000/file-000.parquet")
    pq.write_table(pa.concat_tables([table.slice(6, 4), table.slice(0, 6), table.slice(10)]), path)
    assert "does not hold episode" in refused(root)
    assert repair(root).kept == 3
    for a, b in zip(open_dataset(root).read(), open_dataset(straight).read(), strict=True):
        assert (a.action == b.action).all()


def test_a_repair_gives_episodes_of_one_number_their_own(tmp_path: Path) -> None:
    straight, root = theirs(tmp_path / "straight"), theirs(tmp_path / "d", put("episode_index", lambda i, n: np.zeros(n, np.int64)))
    assert "does not hold episode" in refused(root)
    assert repair(root).kept == 3 and not wrong(root)
    for a, b in zip(open_dataset(root).read(), open_dataset(straight).read(), strict=True):
        assert (a.action == b.action).all()


def test_edits_and_repairs_leave_out_what_has_no_frame_and_keep_whose_label_is_whose(tmp_path: Path) -> None:
    def read(folder: str) -> list[tuple[int, bool | None]]:
        return [(len(e), e.succeeded) for e in Store.open(tmp_path / folder).read()]

    root = theirs(tmp_path / "d", lengths=(6, 0, 5, 4), numbers=(0, 1, 2, 3))
    labels.give(root, Store.open(root).rows, {0: "success", 1: "failure", 2: "success"}, "by hand")
    for done, wanted in ((edit.trim(root, tmp_path / "short", start=1), [(5, True), (4, False), (3, True)]),
                         (edit.delete_episodes(root, tmp_path / "some", "1"), [(6, True), (4, True)]),
                         (edit.split(root, tmp_path / "parts", "success")["failure"], [(5, False)]),
                         (edit.merge([root, root], tmp_path / "twice"), [(6, True), (5, False), (4, True)] * 2)):
        assert read(done.path.relative_to(tmp_path).as_posix()) == wanted
        assert "left out: 1 episode without a frame (1); the others are counted from 0" in done.notes[0]
    assert repair(root).lost == {1: "it has no frames"} and read("d") == [(6, True), (5, False), (4, True)]


def test_episodes_that_share_a_number_are_all_read(tmp_path: Path) -> None:
    straight, root = theirs(tmp_path / "straight"), theirs(tmp_path / "d", numbers=(0, 1, 1))
    assert not wrong(root) and any("[1] are several each, by one number" in line for line in warned(root))
    for _ in range(2):  # as it lies, and repaired
        for a, b in zip(open_dataset(root).read(), open_dataset(straight).read(), strict=True):
            assert (a.action == b.action).all()
        assert repair(root).kept == 3
    assert not any("several each" in line for line in warned(root))


@pytest.mark.parametrize("moments", [False, True])
def test_a_set_with_a_clock_of_its_own_is_cut_and_keeps_it_when_it_is_repaired(moments: bool, tmp_path: Path) -> None:
    def stamped(i: int, n: int) -> Any:
        ticks = 1_700_000_000_000_000_000 + 101_000_000 * np.arange(n)
        return ticks.astype("datetime64[ns]") if moments else ticks

    root = theirs(tmp_path / "d", put("timestamp", stamped), timestamp={"dtype": "float32" if moments else "int64", "shape": [1]})
    edit.trim(root, tmp_path / "cut", start=1)
    assert all(np.allclose(e.time - e.time[0], np.arange(len(e)) / 10) for e in Store.open(tmp_path / "cut").read())
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | {"chunks_size": None}))  # something to repair
    repair(root)
    assert np.allclose(np.diff(open_dataset(root).read()[0].time), 0.101)


@pytest.mark.parametrize(("name", "numbers", "sound"), [
    ("frame_index", lambda n: np.arange(n) + 1, True), ("index", lambda n: np.arange(n), True),
    ("frame_index", lambda n: np.zeros(n, int), False)])
def test_numbers_of_frames_that_count_from_elsewhere_are_no_error(name: str, numbers: Any, sound: bool, tmp_path: Path) -> None:
    root = theirs(tmp_path / "d", put(name, lambda i, n: numbers(n)))
    assert (wrong(root) == []) is sound and [len(e) for e in open_dataset(root).read()] == list(LENGTHS)


def test_a_table_that_is_longer_than_its_row_says_is_refused(tmp_path: Path) -> None:
    lines = (root := made(tmp_path / "d")) / "meta/episodes.jsonl"
    lines.write_text(lines.read_text().replace('"length": 4', '"length": 3'))
    assert "holds 4 frames, meta/episodes.jsonl says 3; correct the length" in refused(root)


# ---- texts


@pytest.mark.parametrize("more", [{}, {"category": ["x", "y"]}])
def test_tasks_by_their_numbers(more: dict[str, Any], tmp_path: Path) -> None:
    """Numbers may have holes, and the table more columns."""
    root = theirs(tmp_path / "d", lambda i, columns: columns | {"task_index": np.full(LENGTHS[i], 1 + 4 * (i % 2))},
                  row=lambda i: {"tasks": [[], None, []][i]})
    pq.write_table(pa.table({"task_index": [5, 1], **more, "task": ["five", "one"]}), root / "meta/tasks.parquet")
    assert [e.task for e in open_dataset(root).read()] == ["one", "five", "one"] and not wrong(root)
    repair(root)
    assert [e.task for e in Store.open(root).read()] == ["one", "five", "one"]


@pytest.mark.parametrize(("cell", "wanted"), [("pick it", ["pick it"] * 3), (["a", "b"], ["a", "b", "a"]),
                                              (["pick\u202eit"], ["pick\\u202eit"] * 3)])
def test_texts_of_rows(cell: Any, wanted: list[str], tmp_path: Path) -> None:
    """One by itself; of several that of the frames; signs that a terminal would obey spelt out, as an import writes them."""
    root = theirs(tmp_path / "d", lambda i, columns: columns | {"task_index": np.full(LENGTHS[i], i % 2)}, row=lambda i: {"tasks": cell})
    pq.write_table(pa.table({"task_index": [0, 1], "task": ["a", "b"]}), root / "meta/tasks.parquet")
    assert [e.task for e in open_dataset(root).read()] == wanted


@BOTH
def test_training_says_that_a_text_changes_inside_an_episode(version: str, tmp_path: Path) -> None:
    def noted(tasks: Callable[[int, Any], Any]) -> list[str]:
        root = made(tmp_path / f"d{len(list(tmp_path.iterdir()))}", version, tasks=tasks)
        return [note for note in material(root).notes if "text changes" in note]

    (note,) = noted(lambda e, frame: (frame > 2) * (e != 1))
    assert "inside episodes 0, 2 (2 in all)" in note
    assert not noted(lambda e, frame: np.full(len(frame), e % 2))


# ---- what a repair keeps


@pytest.mark.parametrize("change", [{"fps": 0}, {"fps": "ten"}, {"chunks_size": None}, {"features": {"action": {"shape": 2}}}])
def test_a_repair_of_a_wrong_info_json_keeps_what_is_sound(change: dict[str, Any], tmp_path: Path) -> None:
    names = {"dtype": "float32", "shape": [2], "names": ["shoulder", "elbow"]}
    info = json.loads((path := theirs(tmp_path / "d", **{"action": names}) / "meta/info.json").read_text())
    broken = {"action": names | change["features"]["action"]} if "features" in change else {}
    path.write_text(json.dumps(info | change | {"features": info["features"] | broken}))
    repair(tmp_path / "d")
    mended = json.loads(path.read_text())
    assert (mended["fps"], mended["robot_type"], mended["features"]["action"]) == (10, "arm", names) and not wrong(tmp_path / "d")
    assert not (tmp_path / "d/meta/stats.json").exists()  # whose rows have no statistics


def test_a_film_that_a_link_leads_to_is_not_taken_for_missing(tmp_path: Path) -> None:
    root = made(tmp_path / "d", OLD)
    (root / "videos").rename(tmp_path / "elsewhere")
    (root / "videos").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Exception, match="leads out of"):
        material(root)


@BOTH
def test_a_film_of_another_rate_whose_pictures_are_there_is_no_error(version: str, tmp_path: Path) -> None:
    root = made(tmp_path / "d", version, shown=lambda t: np.round(t + 0.01 * np.sin(9 * t), 3))
    assert not wrong(root) and any("each frame has its picture, read all the same" in line for line in warned(root))
    assert seen(open_dataset(root).read()[0])[:3] == [0, 1, 2]


def apart(root: Path, late: int = 0, **sizes: Any) -> Path:
    """A set with a film an episode. late: frames; sizes: of the pictures of "film_1", say, in the place of 16 x 24."""
    theirs(root, row=lambda i: {f"videos/{CAMERA}/{name}": value for name, value in {
        "chunk_index": 0, "file_index": i, "from_timestamp": 0.0, "to_timestamp": LENGTHS[i] / FPS}.items()},
        **{CAMERA: {"dtype": "video", "shape": [16, 24, 3]}})
    for i, n in enumerate(LENGTHS):
        video(root / f"videos/{CAMERA}/chunk-000/file-{i:03d}.mp4", range(late, late + n), sizes.get(f"film_{i}", (16, 24)))
    return root


def test_films_of_several_sizes_in_a_set_are_told_with_what_mends_it(tmp_path: Path) -> None:
    root = apart(tmp_path / "d", film_1=(32, 48))
    (said,) = wrong(root)
    assert "pictures are 32 x 48, those of the camera's first film 16 x 24" in said and "'realrl data delete-episodes'" in said
    with pytest.raises(RealrlError, match=r"its frames are \[32, 48, 3\], those of the first film \[16, 24, 3\]; make a set without"):
        material(root)
    edit.delete_episodes(root, tmp_path / "mended", "1")
    assert wrong(tmp_path / "mended") == [] and material(tmp_path / "mended").spec.obs_dim == 2
    every = apart(tmp_path / "all", film_0=(32, 48), film_1=(32, 48), film_2=(32, 48))
    assert wrong(every) == [], "info.json alone is wrong"


def test_a_film_with_a_tag_for_turning_it_is_refused(tmp_path: Path) -> None:
    film = filmed(tmp_path / "d") / f"videos/{CAMERA}/chunk-000/file-000.mp4"
    raw = bytearray(film.read_bytes())
    matrix = raw.find(b"tkhd") + 44  # version and flags, times, number, duration, layer, group, volume
    assert struct.unpack_from(">5i", raw, matrix) == (1 << 16, 0, 0, 0, 1 << 16)
    struct.pack_into(">5i", raw, matrix, 0, 1 << 16, 0, -1 << 16, 0)  # a quarter
    film.write_bytes(raw)
    assert "by a tag for turning them" in refused(tmp_path / "d") and "by a tag for turning them" in wrong(tmp_path / "d")[0]


@pytest.mark.parametrize(("most", "shades"), [(200.0, [1, 200, 200]), (0.5, [255, 128, 128]), (1.0, [255, 255, 255])])
@pytest.mark.parametrize("dtype", ["float32", "image"])
def test_floats_in_cells_are_fractions_or_levels_in_a_whole_set(most: float, shades: list[int], dtype: str, tmp_path: Path) -> None:
    picture = lambda i: np.full((8, 12, 3), most if i else 1.0, np.float32).tolist()
    root = theirs(tmp_path / "d", put(CAMERA, lambda i, n: [picture(i)] * n), **{CAMERA: {"dtype": dtype, "shape": [8, 12, 3]}})
    assert [int(e.obs["images.top"].max()) for e in open_dataset(root).read()] == shades and wrong(root) == []
    assert [int(e.obs["images.top"].min()) for e in open_dataset(root).read([0, 2])] == [shades[0], shades[2]]
    if most > 1:
        theirs(other := tmp_path / "other", put(CAMERA, lambda i, n: [np.full((8, 12, 3), 0.5, np.float32).tolist()] * n),
               **{CAMERA: {"dtype": dtype, "shape": [8, 12, 3]}})
        with pytest.raises(RealrlError, match=f"pictures of {CAMERA} are fractions of 1 there and not here"):
            edit.merge([root, other], tmp_path / "both")
    edit.delete_episodes(root, tmp_path / "dark", "1,2")
    assert int(open_dataset(tmp_path / "dark").read()[0].obs["images.top"].max()) == shades[0], "a part of a set is what the set was"


def test_a_film_that_begins_late_is_no_drift(tmp_path: Path) -> None:
    root = apart(tmp_path / "d", late=4)
    for said in (refused(root), wrong(root)[0]):
        assert "0.4000 s" in said and "write it anew with its beginning at 0" in said and "drifted" not in said
    assert "drifted" in refused(filmed_short(tmp_path / "e"))


def filmed_short(root: Path) -> Path:
    """A film whose last picture is missing."""
    video(filmed(root) / f"videos/{CAMERA}/chunk-000/file-000.mp4", range(sum(LENGTHS) - 1))
    return root


@pytest.mark.parametrize("options", [{"drift": .004}, {"stamps": late, "shown": late}])
def test_a_repair_keeps_pictures_that_are_read(options: dict[str, Any], tmp_path: Path) -> None:
    root = made(tmp_path / "d", NEW, lengths=(6,) if "shown" in options else LENGTHS, **options)
    wanted = [seen(e) for e in open_dataset(root).read()]
    described(root, chunks_size=None)
    assert repair(root).kept == len(wanted) and [seen(e) for e in open_dataset(root).read()] == wanted


def test_two_steps_are_too_few(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="1 step to imitate beside what is kept"):
        material(made(tmp_path / "d", lengths=(2,)))


def test_codecs_that_cannot_be_copied_are_encoded_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """MPEG-4's and VP9's packets are not written into a file of their own by whoever did not encode them, VP8's into no mp4 at all."""
    import av
    root = made(tmp_path / "d", lengths=(4, 4, 4))
    for i, codec in enumerate(("mpeg4", "libvpx-vp9", "libvpx")):
        with av.open(str(root / f"videos/chunk-000/observation.images.top/episode_00000{i}.mp4"), "w", "webm" if i == 2 else None) as out:
            stream: Any = out.add_stream(codec, rate=20)
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
            for k in (*range(4), None):
                out.mux(stream.encode(None if k is None else av.VideoFrame.from_ndarray(np.full((32, 48, 3), 10 * k, np.uint8))))
    assert "3 of 3 episodes are encoded again" in run(capsys, "import", root, "--out", tmp_path / "out")
    assert [seen(e) for e in Store.open(tmp_path / "out").read()] == [[0, 1, 2, 3, 3]] * 3


def test_what_mends_a_film_is_typed_to_who_takes_it(tmp_path: Path) -> None:
    root = made(tmp_path / "d", lengths=(4, 4))
    path = root / "videos/chunk-000/observation.images.top/episode_000001.mp4"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"avc1", b"zzz1"))
    told = refused(root)
    assert "encode it again (ffmpeg -i FILE -c:v libx264 NEW.mp4), else do without the camera: --sight.cameras" in told
    at = whole.index(b"moov") - 8
    path.write_bytes(whole[:at - 60] + bytes(60) + whole[at:])
    assert "--option missing=episodes of 'realrl data import'" in (told := refused(root)) and "--images" not in told
