"""Editing datasets: what is kept is kept exactly, sources are never touched, and a killed edit leaves nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from recordings import digest, digests, episode, errors, record, tree
from test_conformance import all_frames, opened_by_torchrl

from realrl.data import side, video
from realrl.data.store import Store
from realrl.data.tools import edit
from realrl.data.tools.check import check
from realrl.types import Episode, RealrlError

PROCESSES = multiprocessing.get_context("forkserver")


def complaint(call, *words: str) -> None:
    with pytest.raises(RealrlError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and all(word in text for word in words), text


def sound(directory: Path) -> None:
    """Nothing wrong with it, summaries that are true, and it can be continued."""
    assert errors(directory) == []
    info = json.loads((directory / "meta/info.json").read_text())
    store = Store.open(directory)
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (len(store), store.frames, len(store.tasks))
    stats = json.loads((directory / "meta/stats.json").read_text())
    values = np.concatenate([e.obs["state"][:-1] for e in store.read()])
    assert np.allclose(stats["observation.state"]["mean"], values.mean(0), atol=1e-5)
    assert np.allclose(stats["episode_index"]["max"], len(store) - 1) and np.allclose(stats["index"]["max"], store.frames - 1)
    assert stats["action"]["count"] == [store.frames]
    last = episode(50)
    store.append([last])
    assert digest(Store.open(directory).read([len(store) - 1])[0]) == digest(last)


# -- merge ------------------------------------------------------------------------------------------------------------------------


def test_merge_keeps_every_episode_and_joins_tasks(tmp_path: Path) -> None:
    a, b = record(tmp_path / "a", range(5)), record(tmp_path / "b", [7, 8, 20])
    before = tree(a), tree(b)
    done = edit.merge([a, b], tmp_path / "out")
    assert (done.episodes, done.notes) == (8, [])
    assert digests(tmp_path / "out") == [digest(episode(n)) for n in (0, 1, 2, 3, 4, 7, 8, 20)]
    assert Store.open(tmp_path / "out").tasks == ["task 0", "task 1", "task 2"]
    assert (tree(a), tree(b)) == before
    sound(tmp_path / "out")


def test_tasks_of_other_order_get_their_own_numbers(tmp_path: Path) -> None:
    a, b = record(tmp_path / "a", [0, 1]), tmp_path / "b"
    Store.create(b, task="elsewhere", fps=20, robot_type="arm").append([episode(1), episode(0), episode(3, task="elsewhere")])
    edit.merge([a, b], tmp_path / "out")
    table = pq.read_table(tmp_path / "out/data")
    texts = np.array(Store.open(tmp_path / "out").tasks)[table["task_index"].to_numpy()]
    told = [task for e in Store.open(tmp_path / "out").read() for task in [e.task] * len(e)]
    assert texts.tolist() == told and "elsewhere" in told


def test_merge_names_the_difference(tmp_path: Path) -> None:
    a = record(tmp_path / "a", [0])
    for name, words, changes in [("fps", "fps is 30, not 20", {"fps": 30}), ("robot", "robot is leg, not arm", {"robot": "leg"}),
                                 ("wide", "shape of action.proposed is [3], not [2]", {"action": np.zeros((6, 3), np.float32),
                                                                            "proposed": np.zeros((6, 3), np.float32)}),
                                 ("less", "feature observation.state is missing", {"obs": {"other": np.zeros((7, 1), np.float32)}})]:
        other = record(tmp_path / name, [0], **changes)
        complaint(lambda other=other: edit.merge([a, other], tmp_path / "out"), str(other), words)
    complaint(lambda: edit.merge([a], tmp_path / "out"), "at least two")
    complaint(lambda: edit.merge([a, tmp_path / "nowhere"], tmp_path / "out"), "nowhere", "not a LeRobot dataset")
    assert not (tmp_path / "out").exists()


# -- delete and split -------------------------------------------------------------------------------------------------------------


def test_deleted_episodes_are_gone_and_the_rest_is_renumbered(tmp_path: Path) -> None:
    source = record(tmp_path / "d", range(7))
    edit.delete_episodes(source, tmp_path / "out", edit.episode_numbers("0,2:4"))
    assert digests(tmp_path / "out") == [digest(episode(n)) for n in (1, 4, 5, 6)]
    sound(tmp_path / "out")
    edit.delete_episodes(source, tmp_path / "good", [6], failed=True)
    assert digests(tmp_path / "good") == [digest(episode(n)) for n in (0, 2, 4)]
    complaint(lambda: edit.delete_episodes(source, tmp_path / "x", [7]), "7 episodes, there is no number 7")
    complaint(lambda: edit.delete_episodes(source, tmp_path / "x"), "no episode to delete")
    complaint(lambda: edit.delete_episodes(source, tmp_path / "x", range(7)), "all 7 episodes")
    complaint(lambda: edit.delete_episodes(tmp_path / "good", tmp_path / "x", failed=True), "none failed")
    complaint(lambda: edit.delete_episodes(source, tmp_path / "good", [1]), "not empty")


@pytest.mark.parametrize("text", ["", "a", "1,", "3:2", "4:4", "-1", "1;2"])
def test_what_is_no_list_of_episodes(text: str) -> None:
    complaint(lambda: edit.episode_numbers(text), "write them as 3,7,10:20")


def test_splits_by_episodes_fractions_and_success(tmp_path: Path) -> None:
    source = record(tmp_path / "d", range(10))
    parts = edit.split(source, tmp_path / "a", "train=0:7,7:9")
    assert {name: part.episodes for name, part in parts.items()} == {"train": 7, "part-1": 2}
    assert digests(tmp_path / "a/part-1") == [digest(episode(n)) for n in (7, 8)]
    sound(tmp_path / "a/train")
    parts = edit.split(source, tmp_path / "b", "train=0.8,test=.2", shuffle=3)
    assert {name: part.episodes for name, part in parts.items()} == {"train": 8, "test": 2}
    both = digests(tmp_path / "b/train") + digests(tmp_path / "b/test")
    assert sorted(both) == sorted(digests(source)) and both != digests(source)
    edit.split(source, tmp_path / "c", "success")
    assert digests(tmp_path / "c/failure") == [digest(episode(n)) for n in (1, 3, 5, 7, 9)]
    for by, words in {"0:5,4:9": "in two parts", "0.8,0.3": "sum to 1.1", "half": "not understood", "0:5,5:11": "there is no number 10",
                      "0.99,0.01": "part 'part-1'", "../x=0:3": "cannot name a part", "a=0:2,a=3:4": "cannot name a part"}.items():
        complaint(lambda by=by: edit.split(source, tmp_path / "x", by), words)
    complaint(lambda: edit.split(source, tmp_path / "x", "0:5,5:8", shuffle=1), "with a shuffle")
    assert not (tmp_path / "x").exists()


# -- trim -------------------------------------------------------------------------------------------------------------------------


def test_trim_moves_the_last_observation(tmp_path: Path) -> None:
    source = record(tmp_path / "d", range(4))
    edit.trim(source, tmp_path / "out", start=2, end=1)
    for old, new in zip(Store.open(source).read(), Store.open(tmp_path / "out").read(), strict=True):
        assert (new.obs["state"] == old.obs["state"][2:-1]).all()
        for name in ("action", "proposed", "source", "reward", "success", "time"):
            assert (getattr(new, name) == getattr(old, name)[2:-1]).all(), name
        assert new.starts_plan[0] and (new.starts_plan[1:] == old.starts_plan[3:-1]).all()
        assert (new.terminated, new.truncated, new.seed, new.succeeded) == (False, True, None, False)
        assert (new.task, new.policy) == (old.task, old.policy)
    table = pq.read_table(tmp_path / "out/data")
    ends = np.cumsum([len(e) for e in Store.open(tmp_path / "out").read()]) - 1
    assert np.flatnonzero(table["next.done"].to_numpy()).tolist() == ends.tolist()
    assert np.flatnonzero(table["next.truncated"].to_numpy()).tolist() == ends.tolist()
    sound(tmp_path / "out")


def test_trim_at_the_start_alone_keeps_the_end(tmp_path: Path) -> None:
    source = record(tmp_path / "d", range(3))
    edit.trim(source, tmp_path / "out", start=1, episodes=[0, 1])
    old, new = Store.open(source).read(), Store.open(tmp_path / "out").read()
    assert digest(old[2]) == digest(new[2])
    assert [(e.terminated, e.truncated, e.succeeded) for e in old] == [(e.terminated, e.truncated, e.succeeded) for e in new]
    assert (new[0].obs["state"] == old[0].obs["state"][1:]).all() and new[0].seed is None


def test_trim_after_success_and_by_hand(tmp_path: Path) -> None:
    late = episode(1, 9, success=np.arange(9) >= 4)
    Store.create(tmp_path / "d", task="task 1", fps=20).append([late, episode(3)])
    edit.trim(tmp_path / "d", tmp_path / "out", after_success=True)
    new, other = Store.open(tmp_path / "out").read()
    assert (len(new), new.succeeded, new.terminated, new.truncated, new.seed) == (5, True, True, False, 101)
    assert (new.obs["state"] == late.obs["state"][:6]).all() and digest(other) == digest(episode(3))
    sound(tmp_path / "out")
    edit.trim(tmp_path / "d", tmp_path / "hand", keep={0: (3, 6)})
    assert (Store.open(tmp_path / "hand").read([0])[0].action == late.action[3:6]).all()
    complaint(lambda: edit.trim(tmp_path / "d", tmp_path / "x", start=5, end=4), "episode 0 has 9 frames, 5:5 of it leaves none")
    complaint(lambda: edit.trim(tmp_path / "d", tmp_path / "x"), "nothing to trim")
    complaint(lambda: edit.trim(tmp_path / "d", tmp_path / "x", keep={0: (3, 60)}), "3:60")
    complaint(lambda: edit.trim(tmp_path / "d", tmp_path / "x", keep={2: (3, 6)}), "there is no number 2")


# -- videos -----------------------------------------------------------------------------------------------------------------------

CAMERA = "images.front"
FILMS = "videos/observation.images.front"


def brightness(e: Episode) -> list[int]:
    """Which frame each picture shows, as `episode` paints it."""
    return [round((float(x[-8:, :, 1].mean()) - 40) / 8) for x in e.obs[CAMERA]]


def shown(folder: Path) -> list[list[int]]:
    """Which frames the pictures of each episode show, after checking that they lie one after the other in each file."""
    rows = Store.open(folder).rows
    assert errors(folder) == [] and [p for p in check(folder, decode=True) if p.severity == "error"] == []
    ends: dict[int, float] = {}
    for row in rows.to_pylist():
        start, stop = (row[f"{FILMS}/{name}_timestamp"] for name in ("from", "to"))
        file = row[f"{FILMS}/file_index"]
        assert abs(start - ends.get(file, 0.0)) < 1e-6 and abs(stop - start - row["length"] / 20) < 1e-6
        ends[file] = stop
    return [brightness(e) for e in Store.open(folder).read()]


@pytest.fixture(scope="module")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven episodes with a camera, up to three to a file."""
    return record(tmp_path_factory.mktemp("filmed") / "d", range(7), per_append=3, cameras=[CAMERA])


def test_merged_videos_are_shared_not_copied(filmed: Path, tmp_path: Path) -> None:
    edit.merge([filmed, filmed], tmp_path / "out")
    assert shown(tmp_path / "out") == 2 * [list(range(6 + n % 5 + 1)) for n in range(7)]
    old, new = (sorted(p.rglob("*.mp4")) for p in (filmed, tmp_path / "out"))
    assert {p.stat().st_ino for p in new} == {p.stat().st_ino for p in old} and len(new) == 2 * len(old) == 6


def test_deleted_episodes_leave_the_videos_too(filmed: Path, tmp_path: Path) -> None:
    before = tree(filmed)
    done = edit.delete_episodes(filmed, tmp_path / "out", [1, 3, 4])
    assert done.notes == [] and shown(tmp_path / "out") == [list(range(6 + n % 5 + 1)) for n in (0, 2, 5, 6)]
    first, *_ = sorted((tmp_path / "out").rglob("*.mp4"))
    assert len(video.times(first)) <= 6 + 8 + 2 * 2  # two episodes and their last pictures
    pictures = [e.obs[CAMERA] for e in Store.open(filmed).read([0, 2, 5, 6])]
    for e, old in zip(Store.open(tmp_path / "out").read(), pictures, strict=True):
        assert (e.obs[CAMERA] == old).all()  # the same packets
    Store.open(tmp_path / "out").append([episode(9, cameras=[CAMERA])])
    Store.open(tmp_path / "out").compact()
    assert shown(tmp_path / "out")[-1] == list(range(11)) and tree(filmed) == before


@pytest.mark.parametrize("start", [2, 3], ids=["at a key frame", "between key frames"])
def test_trimmed_videos_show_the_frames_that_are_left(start: int, filmed: Path, tmp_path: Path) -> None:
    done = edit.trim(filmed, tmp_path / "out", start=start, end=1)
    for n, e in enumerate(Store.open(tmp_path / "out").read()):
        assert brightness(e) == list(range(start, 6 + n % 5)) == [round(t) for t in e.obs["state"][:, 1]]
    assert errors(tmp_path / "out") == []
    if start == 2:
        shown(tmp_path / "out")
    assert bool(done.notes) == (start == 3) and all("cannot be cut without encoding" in note for note in done.notes)
    stats = json.loads((tmp_path / "out/meta/stats.json").read_text())["observation.images.front"]
    assert len(stats["mean"]) == 3 and stats["count"] == [Store.open(tmp_path / "out").frames]


@pytest.mark.filterwarnings("ignore")
def test_a_reader_that_counts_pictures_finds_the_right_ones(filmed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit.delete_episodes(filmed, tmp_path / "less", [0, 4])
    edit.trim(tmp_path / "less", tmp_path / "out", start=2)
    buffer, _ = opened_by_torchrl(tmp_path / "out")
    assert "alignment may be off" not in caplog.text
    data, films = buffer._storage._storage, {}
    pictures = data.get(("observation", "image", "front"))
    for row, (file, number) in enumerate(zip(pictures.file_id.tolist(), pictures.frame_index.tolist(), strict=True)):
        films.setdefault(file, all_frames(Path(pictures.sources[file])))
        level = (float(films[file][number][-8:, :, 1].mean()) - 40) / 8
        assert abs(level - float(data["observation", "state"][row, 1])) < 0.5


def test_a_file_system_without_links_gets_copies(filmed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    edit.merge([filmed, filmed], tmp_path / "out")
    assert shown(tmp_path / "out")[7:] == shown(tmp_path / "out")[:7]
    assert not {p.stat().st_ino for p in filmed.rglob("*.mp4")} & {p.stat().st_ino for p in (tmp_path / "out").rglob("*.mp4")}


# -- side files -------------------------------------------------------------------------------------------------------------------


def test_side_files_follow_their_episodes(tmp_path: Path) -> None:
    a, b = record(tmp_path / "a", range(4)), record(tmp_path / "b", [8, 9])
    values = {}
    for folder in (a, b):
        states = np.concatenate([e.obs["state"][:-1] for e in Store.open(folder).read()])
        values[folder] = states[:, 0] * 100 + states[:, 1]  # says which episode and frame it belongs to
        side.write(folder, "value", {"value": values[folder], "both": states}, {"by": "test"})
        side.write(folder, "label", {"good": np.arange(len(Store.open(folder))) % 2 == 0})
    side.write(a, "value", {"value": -values[a]})

    def belongs(out: Path, version: int | None, sign: int = 1) -> None:
        states = np.concatenate([e.obs["state"][:-1] for e in Store.open(out).read()])
        assert (sign * side.read(out, "value", version).columns["value"] == states[:, 0] * 100 + states[:, 1]).all()

    assert edit.delete_episodes(a, tmp_path / "less", [1]).notes == []
    assert side.versions(tmp_path / "less", "value") == [1, 2]
    assert side.read(tmp_path / "less", "value", 1).meta == {"by": "test"}
    belongs(tmp_path / "less", 1)
    belongs(tmp_path / "less", 2, -1)
    assert side.read(tmp_path / "less", "label").columns["good"].tolist() == [True, True, False]
    edit.trim(a, tmp_path / "cut", start=1, end=2)
    belongs(tmp_path / "cut", 1)
    edit.split(a, tmp_path / "parts", "3:4,0:2")
    belongs(tmp_path / "parts/part-0", 1)
    done = edit.merge([a, b], tmp_path / "all")  # the newest versions have other columns
    assert len(done.notes) == 1 and "'value' stay behind" in done.notes[0]
    assert side.names(tmp_path / "all") == ["label"]
    side.write(b, "value", {"value": values[b]})
    edit.merge([b, b], tmp_path / "twice")
    belongs(tmp_path / "twice", 1)


# -- whatever dies when -----------------------------------------------------------------------------------------------------------


def _dies(source: Path, out: Path, at: int) -> None:
    """An edit that is killed at its `at`th call to the file system's fsync."""
    real, calls = os.fsync, [0]

    def fsync(fd: int) -> None:
        real(fd)
        calls[0] += 1
        if calls[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = fsync
    edit.merge([source, source], out)
    os._exit(0)


def test_a_killed_edit_leaves_nothing_and_the_next_one_clears_up(tmp_path: Path) -> None:
    source = record(tmp_path / "d", range(3))
    before = tree(source)
    for at in (1, 3, 5, 8, 10, 12, 14, 16, 18, 20, 30):
        process = PROCESSES.Process(target=_dies, args=(source, tmp_path / "out", at))
        process.start()
        process.join(60)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        if (tmp_path / "out").exists():  # killed after the rename: then it is whole
            assert digests(tmp_path / "out") == 2 * digests(source)
            shutil.rmtree(tmp_path / "out")
    assert at > 10 and process.exitcode == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "out"]  # what earlier kills left is gone
    assert digests(tmp_path / "out") == 2 * digests(source) and tree(source) == before


def test_errors_on_the_way_are_one_line_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = record(tmp_path / "d", range(6))
    files = sorted(source.glob("data/*/*.parquet"))
    whole = files[1].read_bytes()
    files[1].write_bytes(whole[:-20])
    complaint(lambda: edit.merge([source, source], tmp_path / "out"), files[1].name, "realrl data repair")
    files[1].unlink()
    complaint(lambda: edit.merge([source, source], tmp_path / "out"), files[1].name, "is missing")
    files[1].write_bytes(files[0].read_bytes())
    complaint(lambda: edit.merge([source, source], tmp_path / "out"), files[1].name, "does not hold episode 2")
    files[1].write_bytes(whole)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    complaint(lambda: edit.merge([source, source], tmp_path / "out"), "out could not be written (No space left on device)")
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    complaint(lambda: edit.merge([source, source], tmp_path / "file"), "not empty")
    complaint(lambda: edit.merge([source, source], tmp_path / "file" / "below"), "could not be written")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "file"]
    (tmp_path / "empty").mkdir()
    assert edit.merge([source, source], tmp_path / "empty").episodes == 12


def test_a_live_edit_is_not_swept_away(tmp_path: Path) -> None:
    with edit.staged(tmp_path / "out") as first:
        with edit.staged(tmp_path / "out") as second:
            (second / "x").write_text("")
        assert first.is_dir()
        shutil.rmtree(tmp_path / "out")
    assert (tmp_path / "out").is_dir()
