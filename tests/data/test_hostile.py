"""What fuzzing found in the readers of LeRobot 2.1, of derived columns and of a recorder's logs, each finding with a test of its own."""

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
import test_lerobot_v2

from realrl.data import side
from realrl.data.formats.lerobot_v2 import Legacy
from realrl.data.record import recovery
from realrl.data.record.journal import END, FRAME, HEADER, START, Log, damaged, read_log
from realrl.data.record.recorder import Recorder
from realrl.data.store import Store
from realrl.types import RealrlError, Source, Step


def complaint(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(RealrlError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and all(word in text for word in words), text


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---- LeRobot 2.1


def test_lines_are_cut_at_line_feeds_only(tmp_path: Path) -> None:
    path = test_lerobot_v2.old(tmp_path / "d") / "meta/tasks.jsonl"
    path.write_text('{"task_index": 0, "task": "a\u2028b"}\n{"task_index": 1, "task": "c\u0085d"}\n')
    assert Legacy(tmp_path / "d").tasks == ["a\u2028b", "c\u0085d"]


def test_a_length_that_no_video_can_have_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    root = test_lerobot_v2.old(tmp_path / "d")
    lines = [json.loads(text) for text in (root / "meta/episodes.jsonl").read_text().splitlines()]
    for length in (2**45, 10**400):
        lines[0]["length"] = length
        (root / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, lines)))
        complaint(lambda: Legacy(root).pictures(0, "images.top"), "cannot hold", "episodes.jsonl")
    shutil.rmtree(root / "videos")
    complaint(lambda: Legacy(root).pictures(0, "images.top"), "cannot hold")


@pytest.mark.parametrize("dtype", ["f4,(", "(1,f4", "\ud800"])
def test_a_dtype_that_numpy_does_not_parse(dtype: str, tmp_path: Path) -> None:
    root = test_lerobot_v2.old(tmp_path / "d")
    features = json.loads((root / "meta/info.json").read_text())["features"]
    edit(root / "meta/info.json", features=features | {"next.reward": {"dtype": dtype, "shape": [1]}})
    complaint(lambda: Legacy(root), "info.json", "dtype")


def test_pipes_long_names_and_line_feeds_in_paths(tmp_path: Path) -> None:
    root = test_lerobot_v2.old(tmp_path / "d")
    for template in ("x" * 3000 + "{episode_index}", "a\nb{episode_index}"):
        edit(root / "meta/info.json", video_path=template)
        complaint(lambda: Legacy(root).read())
    edit(root / "meta/info.json", video_path=None)
    for name in ("data/chunk-000/episode_000000.parquet", "meta/tasks.jsonl"):
        (root / name).unlink()
        os.mkfifo(root / name)
        complaint(lambda: Legacy(root).read(), name, "is no file")


# ---- derived columns


@pytest.fixture
def derived(tmp_path: Path) -> Path:
    return samples.side(tmp_path / "d") / "derived/value/v2.parquet"


def rewrite(path: Path, table: pa.Table, **changes: Any) -> None:
    """Another table under the header that is there, or a changed one."""
    header = json.loads(pq.read_schema(path).metadata[b"realrl"]) | changes
    pq.write_table(table.replace_schema_metadata({"realrl": json.dumps(header)}), path)


def test_headers_that_are_no_numbers(derived: Path) -> None:
    table = pq.read_table(derived, partitioning=None)
    for value in (float("inf"), 1.5, "3", None, True, [3]):
        rewrite(derived, table, episodes=value)
        complaint(lambda: side.read(derived.parents[2], "value"), "v2.parquet")
    pq.write_table(table.replace_schema_metadata({"realrl": "[" * 5000}), derived)
    complaint(lambda: side.read(derived.parents[2], "value"), "v2.parquet")


def test_columns_that_no_writer_makes(derived: Path) -> None:
    n = len(pq.read_table(derived, partitioning=None))
    for column in ([{"a": 1}] * n, pa.array([[("a", 1)]] * n, pa.map_(pa.string(), pa.int64())),
                   pa.array([2**62, None] * (n // 2), pa.timestamp("us"))):
        rewrite(derived, pa.table({"v": column}))
        complaint(lambda: side.read(derived.parents[2], "value"), "v2.parquet")
    rewrite(derived, pa.table([pa.array(range(n))] * 2, names=["v", "v"]))
    complaint(lambda: side.read(derived.parents[2], "value"), "v2.parquet")


def test_more_rows_than_there_are_frames(derived: Path) -> None:
    """A small file that unfolds into many rows, and an episodes table that says there are many frames to fill with NaN."""
    rewrite(derived, pa.table({"v": np.zeros(10**7)}))
    assert derived.stat().st_size < 200_000
    complaint(lambda: side.read(derived.parents[2], "value"), "10,000,000 rows")
    path = sorted((derived.parents[2] / "meta/episodes").rglob("*.parquet"))[-1]
    table = pq.read_table(path, partitioning=None)
    lengths = table["length"].to_pylist()
    at = table.schema.get_field_index("length")
    pq.write_table(table.set_column(at, "length", pa.array([*lengths[:-1], 2**40])), path)
    complaint(lambda: side.read(derived.parents[2], "value", 1, missing="nan"), "the data files hold")


def test_links_pipes_and_strange_names_beside_derived_columns(derived: Path, tmp_path: Path) -> None:
    root = derived.parents[2]
    (root / "derived/.DS_Store").write_bytes(b"x")
    (derived.parent / "v1\u0663.parquet").write_bytes(b"x")  # an Arabic three
    assert side.names(root) == ["label", "value"] and side.versions(root, "value") == [1, 2]
    shutil.move(derived, tmp_path / "elsewhere.parquet")
    derived.symlink_to(tmp_path / "elsewhere.parquet")
    complaint(lambda: side.read(root, "value"), "leads out of")
    derived.unlink()
    derived.symlink_to(derived.parent / "nothing")
    complaint(lambda: side.read(root, "value"), "v2.parquet")
    derived.unlink()
    os.mkfifo(derived)
    complaint(lambda: side.read(root, "value"), "v2.parquet", "no plain file")


# ---- a recorder's logs


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return samples.recording(tmp_path_factory.mktemp("whole") / "d")


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "d"))


def settled(root: Path, min_frames: int = 1) -> list[tuple[str, str]]:
    """What was told, as (kind, text)."""
    told: list[tuple[str, str]] = []
    recovery.settle(Store.open(root), lambda kind, entries: told.append((kind, entries.get("text", ""))), min_frames=min_frames)
    assert not any("\n" in text for _, text in told)
    return told


def finished(root: Path) -> Path:
    """The folder of the finished episode."""
    return sorted((root / "recording").glob("0*"))[0]


def replaced(log: Path, kind: int, content: bytes) -> None:
    """The log with the first record of a kind changed and its checksum right."""
    records = list(read_log(log))
    log.unlink()
    new = Log(log)
    for k, c in records:
        new.append(k, content if k == kind else c)
    new.close()


def about(root: Path) -> dict[str, Any]:
    return dict(json.loads(next(read_log(finished(root) / "frames.log"))[1]))


def flipped(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("changes", [
    {"cameras": [{"key": "images.top/../../../../x", "shape": [32, 32], "depth": False}]}, {"cameras": [{"key": "images.top"}]},
    {"cameras": 2 * [{"key": "images.top", "shape": [32, 32], "depth": False}]}, {"task": None}, {"policy": ["x"]}, {"task": "\ud800"},
    {"seed": "1"}, {"seed": 2**70}, {"columns": [["obs/state", "O", [3]]]}, {"columns": [["obs/state", "f4,(", [3]]]}, {"columns": []},
    {"columns": [["action", "<f4", [2]]]}, {"cameras": [{"key": "images.top", "shape": [10**6, 10**6], "depth": False}]}])
def test_a_beginning_that_is_not_a_recorders_is_refused(changes: dict[str, Any], root: Path) -> None:
    replaced(finished(root) / "frames.log", START, json.dumps(about(root) | changes).encode())
    told = settled(root)
    assert [kind for kind, _ in told] == ["refused", "recovered"] and "is damaged" in told[0][1] and finished(root).exists()
    assert [e.seed for e in Store.open(root).read(images=False)] == [0, 1, 11]


@pytest.mark.parametrize("changes", [{"fps": [1, 0]}, {"fps": [10**30 + 1, 10**29]}, {"width": 1e999}, {"width": 31}, {"codec": "x"},
                                     {"pix_fmt": 3}, {"extradata": "zz"}])
def test_a_camera_that_cannot_be_is_refused(changes: dict[str, Any], root: Path) -> None:
    log = finished(root) / "images.top.log"
    replaced(log, HEADER, json.dumps(json.loads(next(read_log(log))[1]) | changes).encode())
    assert [kind for kind, _ in settled(root)] == ["refused", "recovered"] and finished(root).exists()


def test_records_of_other_sizes_and_too_deep_ones(root: Path) -> None:
    log = finished(root) / "frames.log"
    frame = next(content for kind, content in read_log(log) if kind == FRAME)
    for kind, content in ((FRAME, frame[:-1]), (END, b"\0\1" + frame[:5]), (START, b"[" * 5000)):
        copy = Path(shutil.copytree(root, root.with_name(f"kind {kind}")))
        replaced(finished(copy) / "frames.log", kind, content)
        assert [k for k, _ in settled(copy)] == ["refused", "recovered"]


def test_a_damaged_beginning_does_not_delete_what_follows(root: Path) -> None:
    flipped(finished(root) / "frames.log", 20)
    told = settled(root)
    assert told[0][0] == "refused" and "frames follow" in told[0][1] and finished(root).exists()
    log = finished(root) / "frames.log"
    log.write_bytes(log.read_bytes()[:40])  # one that was cut off while it was written, as a crash leaves it
    assert [kind for kind, _ in settled(root)] == ["dropped"] and not list((root / "recording").glob("0*"))


@pytest.mark.parametrize(("name", "steps"), [("frames.log", 2), ("images.top.log", 2)])
def test_what_follows_damage_in_the_middle_is_kept_aside(name: str, steps: int, root: Path) -> None:
    log = finished(root) / name
    records = list(read_log(log))
    flipped(log, sum(9 + len(content) for _, content in records[:4]) + 12)  # the fourth frame
    bad = log.read_bytes()
    assert damaged(log)
    kind, text = settled(root)[0]
    (kept,) = (root / "recording").glob(".damaged-*")
    assert kind == "recovered" and str(kept) in text and f"{steps} steps" in text
    assert (kept / ("frames.log.damaged" if name == "frames.log" else name)).read_bytes() == bad
    assert [(e.seed, len(e)) for e in Store.open(root).read(images=False)] == [(0, 4), (1, 4), (10, steps), (11, 5)]
    assert settled(root) == [] and kept.exists()


def test_a_first_record_of_a_camera_that_is_damaged_is_told_and_kept(root: Path) -> None:
    flipped(finished(root) / "images.top.log", 20)
    kind, text = settled(root)[0]
    assert kind == "dropped" and "kept in" in text and list((root / "recording").glob(".damaged-*/frames.log"))


def test_a_link_to_recordings_elsewhere_is_not_emptied(root: Path, tmp_path: Path) -> None:
    """The worst of them: folders without a log were deleted, wherever the link led."""
    precious = tmp_path / "home/thesis"
    precious.mkdir(parents=True)
    (precious / "text.tex").write_text("years of work")
    (root / "recording/notes").mkdir()
    (root / f"recording/{5:020d}-000000").symlink_to(precious)
    kinds = [kind for kind, _ in settled(root)]
    assert kinds == ["committed", "recovered", "refused", "refused"] and (root / "recording/notes").is_dir()
    shutil.rmtree(root / "recording")
    (root / "recording").symlink_to(tmp_path / "home")
    complaint(lambda: settled(root), "is a link")
    complaint(lambda: Recorder(root, task="pick", fps=10), "is a link")
    assert (precious / "text.tex").read_text() == "years of work" and list((tmp_path / "home").iterdir()) == [precious]


def test_links_in_place_of_logs_and_of_the_lock_are_not_followed(root: Path, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    for name in ("frames.log", "images.top.log"):
        copy = Path(shutil.copytree(root, tmp_path / f"of {name}"))
        shutil.move(finished(copy) / name, target)
        before = target.read_bytes()
        (finished(copy) / name).symlink_to(target)
        told = settled(copy)
        assert told[0][0] == "refused" and "is a link" in told[0][1] and target.read_bytes() == before
        (finished(copy) / name).unlink()
        os.mkfifo(finished(copy) / name)
        assert settled(copy)[0][0] == "refused"
    target.write_text("not 32 bytes")
    (root / "recording/.lock").unlink()
    (root / "recording/.lock").symlink_to(target)
    complaint(lambda: recovery.alone(root, 1.0).__enter__(), ".lock is a link")
    with pytest.raises(OSError):
        Log(root / "recording/.lock")
    assert target.read_text() == "not 32 bytes"
    (root / "recording/.lock").unlink()
    (root / "recording/.lock").write_bytes(b"\xff" * 32)
    assert len(recovery.owner(root / "recording")) == 24


def test_a_name_for_deletion_that_is_taken(root: Path) -> None:
    (root / "recording" / f"done-{finished(root).name}").write_text("in the way")
    assert [kind for kind, _ in settled(root)] == ["committed", "recovered"] and not list((root / "recording").glob("0*"))


def test_a_note_of_a_commit_into_a_dataset_of_another_robot(root: Path) -> None:
    log = Log(finished(root) / "frames.log")
    log.append(6, b'{"episodes": -1}')
    log.close()
    other = samples.episodes(1, steps=6)[0]
    shutil.rmtree(root / "data")
    shutil.rmtree(root / "meta")
    wide = np.zeros((6, 5), np.float32)
    (root / ".lock").unlink(missing_ok=True)
    recording = root.with_name("recording")
    shutil.move(root / "recording", recording)
    shutil.rmtree(root)
    store = Store.create(root, task="pick", fps=10, codec="h264")
    store.append([type(other)(**{**vars(other), "action": wide, "proposed": wide})])
    shutil.move(recording, root / "recording")
    assert {kind for kind, _ in settled(root)} == {"refused"}


def test_a_file_with_holes_asks_for_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "frames.log"
    path.write_bytes(b"\xff\xff\xff\x7f" + bytes(5))
    os.truncate(path, 2**32)
    assert list(read_log(path)) == [] and not damaged(path)


def test_a_recorder_refuses_what_a_dataset_cannot_keep(tmp_path: Path) -> None:
    """It used to take them; then the encoder process died of them, again at every opening, and an empty column spoiled info.json."""
    action = np.zeros(2, np.float32)
    with Recorder(tmp_path / "d", task="pick", fps=10) as r:
        for state in (np.zeros(3, np.complex64), np.zeros(3, ">f4"), np.array(["a"]), np.zeros(0, np.float32)):
            step = Step({"state": state}, action, action, Source.HUMAN, 0.0, False, False, False, 0.1)
            r.start_episode()
            complaint(lambda step=step: r.add(step), "state", "cannot keep")
            r.discard()


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "d", task="pick", fps=10, codec="h264")
    precious = tmp_path / "precious"
    precious.write_text("keep me")
    (tmp_path / "d" / ".lock").unlink(missing_ok=True)
    (tmp_path / "d" / ".lock").symlink_to(precious)
    complaint(lambda: store.append(samples.episodes(1, steps=3)), "lock is a link")
    assert precious.read_text() == "keep me"


def test_an_empty_observation_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    store, episode = Store.create(tmp_path / "d", task="pick", fps=10, codec="h264"), samples.episodes(1, steps=3)[0]
    episode.obs["nothing"] = np.zeros((4, 0), np.float32)
    complaint(lambda: store.append([episode]), "observation.nothing", "leave it out")
    assert len(Store.open(tmp_path / "d")) == 0
