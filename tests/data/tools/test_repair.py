"""Repair: after any damage the dataset is whole again, nothing that could be read is lost, and nothing at all is deleted."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recordings import digest, digests, episode, errors, record, tree

from realrl.data import side
from realrl.data.record.recorder import Recorder
from realrl.data.store import Store
from realrl.data.tools.check import check
from realrl.data.tools.repair import repair
from realrl.types import RealrlError, Source, Step

PROCESSES = multiprocessing.get_context("forkserver")
CAMERA = "images.front"
FILM = "observation.images.front"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight episodes of numbers in three data files."""
    return record(tmp_path_factory.mktemp("plain") / "d", range(8), per_append=3)


@pytest.fixture(scope="module")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four episodes with a camera, in three files."""
    folder = record(tmp_path_factory.mktemp("filmed") / "d", range(2), cameras=[CAMERA])
    store = Store.open(folder)
    for number in (2, 3):
        store.append([episode(number, cameras=[CAMERA])])
    return folder


def parquet(folder: Path, number: int, kind: str = "data") -> Path:
    return sorted(folder.glob(f"{kind}/chunk-*/*.parquet"))[number]


def film(folder: Path, number: int) -> Path:
    return sorted(folder.glob("videos/*/chunk-*/*.mp4"))[number]


def mended(folder: Path, kept: list[int], *, rows_lost: tuple[int, ...] = ()) -> list[str]:
    """Repair it, after a dry run that changes nothing and says the same; check what is left, and that all that was there still is."""
    before = tree(folder)
    told = repair(folder, dry_run=True)
    assert tree(folder) == before and told.backup is None
    done = repair(folder)
    assert done.lines == told.lines and done.lost.keys() == told.lost.keys() and done.kept == len(kept)
    contents = set(tree(folder).values())
    assert all(content in contents for content in before.values() if content)  # somewhere, under some name
    problems = check(folder)
    assert not problems, [str(p) for p in problems]
    now = Store.open(folder).read()
    assert [int(e.obs["state"][0, 0]) for e in now] == kept
    for e, number in zip(now, kept, strict=True):
        old = episode(number)
        if number in rows_lost:  # who recorded it, from which seed, and the last observation were in the row alone
            old.obs["state"][-1] = old.obs["state"][-2]
            old.policy, old.seed, old.task = "", None, e.task
        assert digest(e) == digest(old), number
    assert repair(folder).lines == []
    return done.lines


# -- summaries --------------------------------------------------------------------------------------------------------------------


def test_nothing_wrong_changes_nothing(plain: Path) -> None:
    before = tree(plain)
    done = repair(plain)
    assert (done.lines, done.lost, done.kept, done.backup) == ([], {}, 8, None) and tree(plain) == before


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "info.json damaged": (lambda d: (d / "meta/info.json").write_text('{"fps": '), "worked out from the data files"),
    "info.json gone": (lambda d: (d / "meta/info.json").unlink(), "meta/info.json is made anew"),
    "info.json behind": (lambda d: (d / "meta/info.json").write_text((d / "meta/info.json").read_text().replace('"total_episodes": 8',
                                                                                                                 '"total_episodes": 3')),
                         "meta/info.json is made anew"),
    "stats.json damaged": (lambda d: (d / "meta/stats.json").write_text("[1]"), "meta/stats.json is made anew"),
    "stats.json gone": (lambda d: (d / "meta/stats.json").unlink(), "meta/stats.json is made anew"),
    "tasks gone": (lambda d: (d / "meta/tasks.parquet").unlink(), "the tasks are taken from the episodes table"),
    "tasks damaged": (lambda d: (d / "meta/tasks.parquet").write_bytes(b"PAR1"), "the tasks are taken from the episodes table"),
    "leftovers": (lambda d: [(d / "data/chunk-000" / name).write_bytes(b"x") for name in
                             ("file-077.orphan-1", ".file-078.parquet.1.tmp")], "file-077.orphan-1 is set aside, no episode refers"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_summaries_are_made_anew(name: str, plain: Path, tmp_path: Path) -> None:
    damage, words = DAMAGE[name]
    folder = Path(shutil.copytree(plain, tmp_path / "d"))
    old = {k: v for k, v in json.loads((folder / "meta/info.json").read_text()).items() if k != "robot_type"}
    damage(folder)
    lines = mended(folder, list(range(8)))
    assert any(words in line for line in lines), lines
    new = json.loads((folder / "meta/info.json").read_text())
    assert {k: v for k, v in new.items() if k in old} == old


# -- tables -----------------------------------------------------------------------------------------------------------------------


def test_lost_data_drops_its_episodes_alone(plain: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "d"))
    side.write(folder, "value", {"value": np.concatenate([e.obs["state"][:-1, 0] for e in Store.open(folder).read()])})
    parquet(folder, 1).unlink()
    lines = mended(folder, [0, 1, 2, 6, 7])
    assert "episode 4 is dropped: data/chunk-000/file-001.parquet is missing" in lines
    numbers = np.concatenate([e.obs["state"][:-1, 0] for e in Store.open(folder).read()])
    assert (side.read(folder, "value").columns["value"] == numbers).all()
    Store.open(folder).append([episode(9)])
    assert errors(folder) == []


def test_one_damaged_byte_costs_one_episode(plain: Path, tmp_path: Path) -> None:
    content = parquet(plain, 0).read_bytes()
    contents = len(content) - 8 - int.from_bytes(content[-8:-4], "little")  # where the table of contents begins
    for at in (200, contents // 3, contents // 2, contents - 100):
        folder = Path(shutil.copytree(plain, tmp_path / f"{at}"))
        data = bytearray(content)
        data[at] ^= 0x10
        parquet(folder, 0).write_bytes(bytes(data))
        done = repair(folder)
        assert done.kept >= 7 and len(done.lost) == 8 - done.kept
        assert errors(folder) == [] and set(digests(folder)) <= set(digests(plain))


def test_a_damaged_table_of_contents_costs_the_episodes_of_its_file_at_most(plain: Path, tmp_path: Path) -> None:
    content = parquet(plain, 0).read_bytes()
    contents = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for at in range(contents, len(content), 397):
        folder = Path(shutil.copytree(plain, tmp_path / f"{at}"))
        data = bytearray(content)
        data[at] ^= 0x10
        parquet(folder, 0).write_bytes(bytes(data))
        done = repair(folder)
        assert set(done.lost) <= {0, 1, 2} and done.kept == 8 - len(done.lost) and errors(folder) == []


def test_a_file_that_lost_its_end_costs_its_episodes_alone(plain: Path, tmp_path: Path) -> None:
    content = parquet(plain, 1).read_bytes()
    for cut in (0, 4, len(content) // 2, len(content) - 1):
        folder = Path(shutil.copytree(plain, tmp_path / str(cut)))
        parquet(folder, 1).write_bytes(content[:cut])
        lines = mended(folder, [0, 1, 2, 6, 7])
        assert any("file-001.parquet cannot be read" in line for line in lines) and sum("is dropped" in x for x in lines) == 3


def test_a_lost_episodes_table_is_made_from_the_frames(plain: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "d"))
    parquet(folder, 1, "meta/episodes").write_bytes(b"nonsense")
    lines = mended(folder, list(range(8)), rows_lost=(3, 4, 5))
    assert "episode 4: its row is lost, it gets a new one" in lines
    assert [e.task for e in Store.open(folder).read()] == [f"task {n % 3}" for n in range(8)]


def test_data_files_alone_are_enough(plain: Path, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    shutil.copytree(plain / "data", folder / "data")
    mended(folder, list(range(8)), rows_lost=tuple(range(8)))
    tasks = [e.task for e in Store.open(folder).read()]
    assert [tasks.index(t) for t in tasks] == [0, 1, 2, 0, 1, 2, 0, 1]  # their texts are gone, but not which is which
    assert Store.open(folder).fps == 20


def test_values_that_cannot_be_are_dropped_or_set_right(plain: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "d"))
    path = parquet(folder, 0)
    table = pq.read_table(path)
    actions = np.array(table["action"].to_pylist(), np.float32)
    actions[8] = np.nan  # in episode 1
    columns = {"action": pa.FixedSizeListArray.from_arrays(pa.array(actions.reshape(-1)), 2),
               "timestamp": pa.array(np.zeros(len(table), np.float32)), "index": pa.array(np.arange(len(table)) + 5)}
    for name, column in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    pq.write_table(table, path, row_group_size=6)
    assert errors(folder)
    done = repair(folder)
    assert list(done.lost) == [1] and "action is NaN or infinite at frame 2" in done.lost[1]
    assert any("episode 0: timestamp is set right" in line for line in done.lines)
    assert errors(folder) == []
    assert digests(folder) == [d for n, d in enumerate(digests(plain)) if n != 1]


def test_nothing_left_is_an_empty_dataset_or_a_clear_refusal(plain: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "d"))
    shutil.rmtree(folder / "data")
    done = repair(folder)
    assert (done.kept, len(done.lost)) == (0, 8)
    (left,) = errors(folder)
    assert "there is no episode; record some" in left
    shutil.rmtree(folder / "meta")
    (folder / "data").mkdir()
    with pytest.raises(RealrlError, match="nothing to repair from"):
        repair(folder)
    with pytest.raises(RealrlError, match="is not a dataset"):
        repair(tmp_path)
    (folder / "meta").mkdir()
    (folder / "meta/info.json").write_text('{"codebase_version": "v2.1"}')
    with pytest.raises(RealrlError, match="version 2"):
        repair(folder)


# -- videos -----------------------------------------------------------------------------------------------------------------------


def test_episodes_without_their_video_are_dropped(filmed: Path, tmp_path: Path) -> None:
    for name, damage in {"gone": lambda p: p.unlink(), "cut": lambda p: p.write_bytes(p.read_bytes()[:-300]),
                         "empty": lambda p: p.write_bytes(b"")}.items():
        folder = Path(shutil.copytree(filmed, tmp_path / name))
        damage(film(folder, 1))
        lines = mended(folder, [0, 1, 3])
        assert any(line.startswith(f"episode 2 is dropped: videos/{FILM}/chunk-000/file-001.mp4") for line in lines), lines
        colours = [int(e.obs[CAMERA][0, 0, 0, 0]) for e in Store.open(folder).read()]
        assert np.abs(np.array(colours) - [10, 30, 70]).max() < 8


def test_videos_of_lost_rows_are_found_by_their_lengths(filmed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(filmed, tmp_path / "d"))
    shutil.rmtree(folder / "meta/episodes")
    lines = mended(folder, [0, 1, 2, 3], rows_lost=(0, 1, 2, 3))
    assert sum("belong together" in line for line in lines) == 3
    for e, old in zip(Store.open(folder).read(), Store.open(filmed).read(), strict=True):
        assert (e.obs[CAMERA][:-1] == old.obs[CAMERA][:-1]).all()


def test_a_camera_of_which_nothing_is_left_is_left_out(filmed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(filmed, tmp_path / "d"))
    shutil.rmtree(folder / "videos")
    lines = mended(folder, [0, 1, 2, 3])
    assert f"no episode has pictures of {FILM}; the dataset no longer lists that camera" in lines
    assert Store.open(folder).cameras == []


def test_damage_inside_a_video_is_found_by_decoding(filmed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(filmed, tmp_path / "d"))
    path = film(folder, 2)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 64
    data[start:start + 10] = b"\xff" * 10
    path.write_bytes(bytes(data))
    done = repair(folder, decode=True)
    assert list(done.lost) == [3] and "does not decode" in done.lost[3] and errors(folder) == []


def spoil(path: Path, rng: np.random.Generator) -> None:
    """One thing that happens to files."""
    data = bytearray(path.read_bytes())
    at = int(rng.integers(len(data)))
    kind = rng.choice(["flip", "cut", "gone", "zeros", "shift", "numbers"])
    if kind == "gone":
        path.unlink()
        return
    if kind == "flip":
        data[at] ^= 1 << int(rng.integers(8))
    elif kind == "zeros":
        data[at:at + 50] = bytes(len(data[at:at + 50]))
    elif kind == "shift":
        data[at:at] = data[:40]
    elif kind == "numbers":
        data = bytearray(bytes(data).replace(b"2", [b"-1", b"9" * 12, b"null", b"[]"][int(rng.integers(4))], 2))
    path.write_bytes(bytes(data[:at] if kind == "cut" else data))


@pytest.mark.parametrize("seed", range(24))
def test_after_any_damage_a_repair_leaves_no_error(seed: int, filmed: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    folder = Path(shutil.copytree(filmed, tmp_path / "d"))
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    touched = [files[i] for i in rng.choice(len(files), int(rng.integers(1, 3)), replace=False)]
    for path in touched:
        spoil(path, rng)
    done = repair(folder, decode=True)
    assert [str(p) for p in check(folder, decode=True) if p.severity == "error"] == []
    assert done.kept == len(Store.open(folder).read())
    if all(path.suffix == ".json" for path in touched):
        assert done.kept == 4  # summaries hold nothing that is not elsewhere


# -- recordings -------------------------------------------------------------------------------------------------------------------


def test_a_recording_that_was_left_behind_is_brought_to_its_end(plain: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "d"))
    e = episode(8)
    with Recorder(folder, task=e.task, fps=20, policy=e.policy) as recorder:
        recorder.start_episode(seed=e.seed)
        for t in range(5):
            recorder.add(Step({"state": e.obs["state"][t]}, e.proposed[t], e.action[t], Source.POLICY, 0.0, False, False, False, float(t)))
        while recorder.stats.backlog:
            time.sleep(0.01)
        left = Path(shutil.copytree(folder, tmp_path / "left"))  # as a power cut would leave it
        recorder.discard()
    assert "a recording that was interrupted is brought to its end" in repair(left, dry_run=True).lines
    lines = repair(left).lines
    assert any("1 episodes are added" in line for line in lines), lines
    last = Store.open(left).read([8])[0]
    assert (last.action == e.action[:4]).all() and last.truncated and check(left) == []
    assert repair(left).lines == []


# -- whatever dies when -----------------------------------------------------------------------------------------------------------


def _dies(folder: Path, at: int) -> None:
    """A repair that is killed at its `at`th rename."""
    real, calls = os.replace, [0]

    def replace(self: Path, target: Path) -> Path:
        calls[0] += 1
        if calls[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, target)
        return Path(target)

    Path.replace = replace  # type: ignore[method-assign]
    repair(folder)
    os._exit(0)


def test_a_killed_repair_is_finished_by_the_next(plain: Path, tmp_path: Path) -> None:
    at, code = 0, -signal.SIGKILL
    while code:
        at += 1
        folder = Path(shutil.copytree(plain, tmp_path / f"{at}"))
        parquet(folder, 1).unlink()
        process = PROCESSES.Process(target=_dies, args=(folder, at))
        process.start()
        process.join(60)
        code = process.exitcode
        assert code in (0, -signal.SIGKILL)
        repair(folder)
        assert errors(folder) == [] and digests(folder) == [d for n, d in enumerate(digests(plain)) if n not in (3, 4, 5)], at
        assert not list(folder.glob("repair-*/new")) and not list(folder.glob("repair-*/swap.json"))
        assert any(p.read_bytes() == parquet(plain, 0).read_bytes() for p in folder.glob("repair-*/old/data/*/*"))
        shutil.rmtree(folder)
    assert at > 4


def test_a_disk_that_takes_nothing_gets_one_line(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "d"))
    parquet(folder, 1).unlink()
    before = tree(folder)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RealrlError, match=r"^[^\n]*No space left on device[^\n]*$"):
            repair(folder)
    assert {k: v for k, v in tree(folder).items() if not k.startswith("repair-")} == before
    mended_lines = repair(folder).lines
    assert errors(folder) == [] and mended_lines
