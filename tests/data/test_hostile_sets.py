"""Datasets of version 3 with what no file system guarantees: pipes, links, footers that promise too much, names that a terminal obeys."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import samples
from recordings import episode, errors, record, tree

from realrl.cli.main import main
from realrl.data import side, video
from realrl.data.cache import FrameCache
from realrl.data.record import recovery
from realrl.data.record.journal import read_log
from realrl.data.record.recorder import Recorder
from realrl.data.store import Store
from realrl.data.tables import ROW_INDICES
from realrl.data.tools import edit
from realrl.data.tools.check import check, describe
from realrl.data.tools.repair import repair
from realrl.types import RealrlError, Source, Step, printable

CAMERA = "images.front"
FILM = f"videos/observation.{CAMERA}/chunk-000/file-000.mp4"
EVIL = "\x1b[31mred\x1b[0m\x9b2J\u202e\r"
pytestmark = pytest.mark.timeout(120)  # what is waited for is waited for without end


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four episodes with a camera and derived columns."""
    root = record(tmp_path_factory.mktemp("whole") / "d", range(4), cameras=[CAMERA])
    side.write(root, "value", {"v": np.zeros(Store.open(root).frames)})
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "d"))


def complaint(call: Callable[[], object], *words: str) -> str:
    with pytest.raises(RealrlError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and all(word in text for word in words), text
    return text


def said(*words: object) -> int:
    """The exit code of a command, which is never that of a bug."""
    code = main([str(word) for word in words])
    assert code in (0, 1, 2)
    return code


def rewritten(path: Path, **columns: Any) -> None:
    """The table with other columns, and with as many rows as they have."""
    n = len(next(iter(columns.values())))
    table = pq.read_table(path, partitioning=None)
    table = table.take(pa.array(np.zeros(n, np.int64))) if n != len(table) else table
    for name, values in columns.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), pa.array(values).cast(table.schema.field(at).type))
    pq.write_table(table, path)


# ---- pipes and devices

PLACES = ["meta/info.json", "meta/stats.json", "meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet", "meta/compaction.json",
          "data/chunk-000/file-000.parquet", FILM, "derived/value/v1.parquet", ".lock", "recording/.lock"]


@pytest.mark.parametrize("place", PLACES)
def test_a_pipe_in_place_of_a_file_is_never_waited_for(place: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = root / place
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    before = sorted(p for p in root.rglob("*"))
    for words in (("info", root), ("check", root, "--images"), ("repair", root, "--dry-run"), ("repair", root),
                  ("merge", root, root, "--out", tmp_path / "m"), ("trim", root, "--start", 1, "--out", tmp_path / "t"),
                  ("split", root, "--by", "success", "--out", tmp_path / "s"),
                  ("delete-episodes", root, "--episodes", 0, "--out", tmp_path / "x"),
                  ("export", root, "--format", "robomimic", "--out", tmp_path / "e.hdf5")):
        said("data", *words)
    if place in ("data/chunk-000/file-000.parquet", FILM):  # the pages take longer
        said("data", "info", root, "--html", tmp_path / "page.html")
        said("view", root, "--out", tmp_path / "view")
    captured = capsys.readouterr()
    assert "no plain file" in captured.err + captured.out
    for call in (lambda: Store.open(root).read(), lambda: FrameCache.build(Store.open(root), progress=False),
                 lambda: side.read(root, "value"), lambda: Store.open(root).append([episode(5, cameras=[CAMERA])])):
        try:
            call()
        except RealrlError as error:
            assert "\n" not in str(error)
    if place != "meta/stats.json":  # an append writes it anew
        assert [p for p in before if not p.exists()] == []


def test_a_device_and_a_folder_are_no_plain_files_either(root: Path) -> None:
    for target in ("/dev/zero", root / "data"):
        with pytest.raises(RealrlError, match="no plain file"):
            video.times(target)
    (root / "meta/info.json").unlink()
    (root / "meta/info.json").mkdir()
    complaint(lambda: Store.open(root), "info.json is no plain file")


# ---- links

LINKED = ["meta", "meta/episodes", "meta/episodes/chunk-000", "meta/info.json", "meta/stats.json", "meta/tasks.parquet", "data",
          "data/chunk-000", "data/chunk-000/file-000.parquet", "videos", FILM, "derived", "derived/value", "recording"]


@pytest.mark.parametrize("place", LINKED)
def test_a_repair_follows_no_link_and_changes_nothing(place: str, root: Path, tmp_path: Path) -> None:
    (root / "recording").mkdir()
    (root / place).rename(tmp_path / "elsewhere")
    (root / place).symlink_to(tmp_path / "elsewhere")
    (root / "data/.chunk.1.tmp").write_bytes(b"x")  # something to do
    here, there = tree(root), tree(tmp_path)
    for dry in (True, False):
        complaint(lambda dry=dry: repair(root, dry_run=dry), f"{place} is a link; copy it there")
    assert tree(root) == here and tree(tmp_path) == there and not list(root.glob("repair-*"))


def swap(root: Path, plan: Any) -> Path:
    """A backup as a repair leaves it that was killed before its first exchange."""
    backup = root / "repair-20260101-000000"
    shutil.copytree(root / "meta", backup / "new/meta")
    whole = {name: {"had": True, "gets": name == "meta"} for name in ("meta", "data", "videos", "derived")}
    (backup / "swap.json").write_text(json.dumps(whole if plan is None else plan))
    return backup


@pytest.mark.parametrize("plan", [
    {}, [], {"meta": []}, {"../../x": {"had": True, "gets": True}}, {"meta": {"had": True, "gets": True}},
    {name: {"had": True, "gets": True} for name in ("meta", "data", "videos", "derived", "recording")},
    {name: {"had": "x", "gets": 1} for name in ("meta", "data", "videos", "derived")},
    {name: {"had": True, "gets": True} for name in ("meta", "data", "videos", "derived")} | {"meta": {"had": True, "gets": False}}])
def test_a_plan_that_no_repair_wrote_is_not_followed(plan: Any, root: Path) -> None:
    swap(root, plan)
    before = tree(root)
    complaint(lambda: repair(root), "swap.json does not fit", "move repair-20260101-000000 out of")
    assert tree(root) == before


@pytest.mark.parametrize("place", ["", "new", "old", "swap.json", "new/meta", "new/meta/info.json"])
def test_links_in_a_repair_that_was_interrupted_are_not_followed(place: str, root: Path, tmp_path: Path) -> None:
    backup = swap(root, None)
    (backup / "old").mkdir()
    (backup / place).rename(tmp_path / "elsewhere")
    (backup / place).symlink_to(tmp_path / "elsewhere")
    before = tree(tmp_path)
    complaint(lambda: repair(root), "is a link; copy it there")
    assert tree(tmp_path) == before


def test_an_interrupted_repair_as_it_is_left_is_finished(root: Path) -> None:
    swap(root, None)
    assert "a repair that was interrupted is finished" in repair(root).lines[0] and (root / "meta/info.json").exists()
    assert not (root / "repair-20260101-000000/swap.json").exists()


def test_links_where_something_is_written_are_replaced_or_refused(root: Path, tmp_path: Path) -> None:
    precious = tmp_path / "thesis"
    precious.write_bytes(b"years of work")
    (root / f"meta/.info.json.{os.getpid()}.tmp").symlink_to(precious)  # where the next summary will be written first
    (root / ".odd.1.tmp").mkdir()
    Store.open(root).append([episode(5, cameras=[CAMERA])])
    cache = FrameCache.build(Store.open(root), progress=False).files[CAMERA]
    shutil.copyfile(cache, precious)
    content = precious.read_bytes()
    cache.unlink()
    cache.symlink_to(precious)
    index = cache.with_name("index.json")
    told = json.loads(index.read_text())
    index.write_text(json.dumps(told | {"fingerprints": told["fingerprints"][:2]}))
    cache.with_name("index.json.new").symlink_to(precious)
    FrameCache.build(Store.open(root), progress=False)
    assert precious.read_bytes() == content and len(Store.open(root)) == 5


def test_a_link_where_a_damaged_log_is_kept_is_not_followed(tmp_path: Path) -> None:
    root, precious = samples.recording(tmp_path / "d"), tmp_path / "thesis"
    precious.write_text("years of work")
    folder = sorted((root / "recording").glob("0*"))[0]
    log = folder / "frames.log"
    data = bytearray(log.read_bytes())
    data[sum(9 + len(content) for _, content in list(read_log(log))[:4]) + 12] ^= 1
    log.write_bytes(bytes(data))
    (folder / "frames.log.damaged.tmp").symlink_to(precious)
    recovery.settle(Store.open(root), lambda kind, entries: None, min_frames=1)
    assert precious.read_text() == "years of work" and len(Store.open(root)) == 4


def test_a_compaction_journal_deletes_nothing_outside_and_waits_for_nothing(root: Path, tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"x")
    os.mkfifo(root / "pipe")
    for new in (["../x.parquet", str(tmp_path / "x.parquet"), "pipe/x.parquet"], ["\0.parquet"], [3], "x"):
        (root / "meta/compaction.json").write_text(json.dumps({"old": [], "new": new, "commit": ["nothing"]}))
        Store.open(root)
        (root / "meta/compaction.json").unlink(missing_ok=True)
    assert (tmp_path / "x.parquet").exists()


# ---- footers that promise too much


def test_more_tasks_than_frames_are_not_read(root: Path) -> None:
    n = 5_000_000
    pq.write_table(pa.table({"task_index": np.zeros(n, np.int64), "task": pa.array(["x"]).take(pa.array(np.zeros(n, np.int64)))}),
                   root / "meta/tasks.parquet")
    assert (root / "meta/tasks.parquet").stat().st_size < 100_000
    for call in (lambda: Store.open(root), lambda: describe(root), lambda: edit.merge([root, root], root / "m")):
        complaint(call, "tasks.parquet", "5,000,000 rows", f"run 'realrl data repair {root}'")
    assert "5,000,000 rows" in errors(root)[0]
    many = [f"task {i}" for i in range(2000)]  # these could be, but not for so few frames
    pq.write_table(pa.table({"task_index": range(2000), "task": many}), root / "meta/tasks.parquet")
    complaint(lambda: Store.open(root), "2,000 tasks for 30 frames")
    repair(root)
    assert errors(root) == [] and Store.open(root).tasks == ["task 0", "task 1", "task 2"]


def test_rows_and_values_beyond_what_the_bytes_can_hold_are_not_read(root: Path) -> None:
    data, rows = root / "data/chunk-000/file-000.parquet", root / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(data, partitioning=None)
    row = table.select(["index", "timestamp"]).slice(0, 1).take(pa.array(np.zeros(3_000_000, np.int64)))
    pq.write_table(row, data)
    complaint(lambda: Store.open(root).read(images=False), "3,000,000 rows")
    wide = pa.ListArray.from_arrays(pa.array([0, 60_000_000] + [60_000_000] * (len(table) - 1), pa.int32()),
                                    pa.array(np.zeros(60_000_000, np.float32)))
    pq.write_table(table.set_column(table.schema.get_field_index("action"), "action", wide), data, compression="zstd")
    complaint(lambda: Store.open(root).read(images=False), "60,000,2", "values need more than")
    table = pq.read_table(rows, partitioning=None)
    pq.write_table(table.select(["episode_index", "length"]).take(pa.array(np.zeros(10**7, np.int64))), rows)
    complaint(lambda: Store.open(root), "10,000,000 rows")


def test_texts_that_unfold_beyond_bounds_are_not_read(root: Path) -> None:
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    table, n = pq.read_table(path, partitioning=None), 10_000
    rng, names = np.random.default_rng(0), [name for name in ROW_INDICES if name in table.column_names and name != "length"]
    long = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array(["x" * 200_000]))
    big = pa.table({name: pa.array(rng.integers(0, 2**60, n)) for name in names} | {"length": pa.array(np.arange(n)), "policy": long})
    for store_schema in (True, False):  # read as what it is, and as texts
        with pq.ParquetWriter(path, big.schema, compression="zstd", store_schema=store_schema) as writer:
            writer.write_table(big)
        complaint(lambda: Store.open(root), "texts need more than", "run 'realrl data repair")


def test_a_length_that_no_video_can_have_takes_no_memory(root: Path) -> None:
    first, second = sorted(root.glob("meta/episodes/*/*.parquet"))
    second.unlink()
    rewritten(first, length=[2**45, 1], dataset_to_index=[2**45, 2**45 + 1], dataset_from_index=[0, 2**45])
    complaint(lambda: Store.open(root).pictures(0, CAMERA), "cannot hold")
    complaint(lambda: FrameCache.build(Store.open(root), progress=False), "cannot hold")
    said("data", "check", root)
    said("data", "info", root, "--html", root.with_name("page.html"))


# ---- what mends it


def test_a_complaint_about_what_repair_mends_says_so(root: Path, tmp_path: Path) -> None:
    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:40])

    hint = "run 'realrl data repair {}'"
    damages: dict[str, Callable[[Path], object]] = {
        "meta/info.json": Path.unlink, "meta/tasks.parquet": Path.unlink, "data/chunk-000/file-000.parquet": Path.unlink, FILM: cut}
    damages |= {f"{name} ": cut for name in damages}
    damages |= {"meta/episodes/chunk-000/file-000.parquet": cut, "meta/info.json  ": lambda p: p.write_text("[1]"),
                "meta/info.json   ": lambda p: p.write_text(p.read_text().replace('"fps": 20', '"fps": -1'))}
    for number, (place, damage) in enumerate(damages.items()):
        folder = Path(shutil.copytree(root, tmp_path / str(number)))
        damage(folder / place.strip())
        text = complaint(lambda folder=folder: [Store.open(folder).read(), video.times(folder / FILM)])
        assert text.endswith(hint.format(folder)) or "data check" in text, text
        found = [p.mend for p in check(folder) if p.severity == "error"]
        assert found and all(mend.endswith(hint.format(folder)) for mend in found), found
        if "info.json" in place:
            for call in (lambda folder=folder: Recorder(folder, task="task 0", fps=20),
                         lambda folder=folder: Store.create(folder, task="task 0", fps=20)):
                if place == "meta/info.json" or "Recorder" in str(call):
                    assert complaint(call).endswith(hint.format(folder))
        repair(folder)
        assert errors(folder) == []
    with pytest.raises(RealrlError, match=r"restore it from a copy$"):
        video.times(tmp_path / "nowhere.mp4")


# ---- names


def test_names_that_a_terminal_obeys_are_refused(tmp_path: Path) -> None:
    complaint(lambda: Store.create(tmp_path / "d", task=EVIL, fps=20), "task", "control character", "\\x1b")
    complaint(lambda: Store.create(tmp_path / "d", task="t", fps=20, robot_type="a\x9b"), "robot type")
    store = Store.create(tmp_path / "d", task="task 0", fps=20)
    for changes in ({"task": "a\u202eb"}, {"policy": "a\nb"}, {"obs": {"state\x07": episode(0).obs["state"]}}):
        complaint(lambda changes=changes: store.append([episode(0, **changes)]), next(iter(changes)).replace("obs", "observation key"))
    store.append([episode(0)])
    for more in ({"task": EVIL}, {"task": "t", "policy": EVIL}):
        complaint(lambda more=more: Recorder(tmp_path / "d", fps=20, **more), "control character")
    with Recorder(tmp_path / "new", task="t", fps=20) as recorder:
        complaint(lambda: recorder.start_episode(policy=EVIL), "policy", "control character")
        recorder.start_episode()
        step = Step({"a\x1b": np.zeros(2, np.float32)}, np.zeros(2, np.float32), np.zeros(2, np.float32), Source.HUMAN, 0.0, False, False,
                    False, 0.1)
        complaint(lambda: recorder.add(step), "observation key", "control character")
        recorder.discard()


def test_names_that_a_terminal_obeys_are_spelt_out(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever wrote it, what a set calls its tasks, policies, robot and columns reaches the screen as plain characters."""
    for path in root.glob("meta/episodes/*/*.parquet"):
        rewritten(path, policy=[EVIL] * 2, tasks=[[EVIL]] * 2)
    pq.write_table(pa.table({"task_index": [0], "task": [EVIL]}), root / "meta/tasks.parquet")
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][f"observation.{EVIL}"] = {"dtype": "float32", "shape": [2]}
    (root / "meta/info.json").write_text(json.dumps(info | {"robot_type": EVIL}))
    outs = [(words, Path(tmp_path / str(i))) for i, words in enumerate(("check", "info", "repair", "trim --start 1", "split --by success"))]
    for words, out in outs:
        said("data", words.split()[0], root, *words.split()[1:], *(["--out", out] if " " in words else []))
    said("view", root, "--out", tmp_path / "view")
    captured = capsys.readouterr()
    shown = captured.out + captured.err
    assert printable(shown.replace("\n", "")) == shown.replace("\n", "") and "\\x1b[31mred" in shown
    with pytest.raises(RealrlError) as caught:
        raise RealrlError(f"{EVIL}\ud800\n")
    assert str(caught.value) == "\\x1b[31mred\\x1b[0m\\x9b2J\\u202e\\r\\ud800\\n"


def test_an_import_spells_out_the_names_it_cannot_keep(tmp_path: Path) -> None:
    root = samples.legacy(tmp_path / "old")
    path = root / "meta/tasks.jsonl"
    texts = {json.loads(line)["task"] for line in path.read_text().splitlines()}
    for file in (path, root / "meta/episodes.jsonl"):
        for text in texts:
            file.write_text(file.read_text().replace(json.dumps(text), json.dumps(f"{text}\x1b[31m")))
    assert said("data", "import", root, "--out", tmp_path / "new") == 0
    assert all(task.endswith("\\x1b[31m") for task in Store.open(tmp_path / "new").tasks)


# ---- numbers of episodes


@pytest.mark.parametrize("numbers", ["0:99999999999", "99999999999", "3,0:999999999999999999", "9" * 5000, "0:" + "9" * 5000])
def test_numbers_that_are_not_there_make_no_list(numbers: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--out", tmp_path / "out")
    for words in (("data", "delete-episodes", root, "--episodes", numbers, *out), ("data", "split", root, "--by", numbers, *out),
                  ("data", "trim", root, "--start", 1, "--episodes", numbers, *out), ("view", root, "--episodes", numbers, *out),
                  ("data", "export", root, "--format", "robomimic", "--episodes", numbers, *out)):
        assert said(*words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert ("holds 4 episodes, there is no number" in line or "write " in line) and not (tmp_path / "out").exists()
    complaint(lambda: edit.delete_episodes(root, tmp_path / "out", range(10**12)), "there is no number 4")
