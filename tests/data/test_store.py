"""The dataset store: exact round trips, LeRobot's layout, and nothing lost whatever dies when."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from realrl.data import compaction
from realrl.data.store import Store
from realrl.data.tools.check import check, describe
from realrl.types import Array, Episode, RealrlError, Source

PROCESSES = multiprocessing.get_context("forkserver")


def episode(seed: int, frames: int | None = None, *, dtype: type = np.float32, film: bool = False, **changes: Any) -> Episode:
    """Random numbers; `film` adds two cameras, whose pictures say which episode and which frame they are, and exact depth."""
    rng = np.random.default_rng(seed)
    n = frames or int(rng.integers(1, 40))
    vector = lambda rows, size, kind: rng.uniform(-1, 1, (rows, size)).astype(kind)
    made = Episode(
        obs={"state": vector(n + 1, 5, dtype), "effort": vector(n + 1, 1, np.float32)}, action=vector(n, 3, np.float32),
        proposed=vector(n, 3, np.float32), source=rng.integers(0, 3, n).astype(np.uint8), reward=vector(n, 1, np.float32)[:, 0],
        success=rng.random(n) < 0.3, time=1e5 + np.cumsum(rng.uniform(0.01, 0.02, n)), starts_plan=rng.random(n) < 0.3,
        terminated=bool(seed % 2), truncated=not seed % 2, task=f"task {seed % 3}", policy=f"policy {seed}",
        seed=seed if seed % 4 else None)
    if film:
        made.obs |= {"images.top": pictures(seed, n + 1), "images.wrist": pictures(seed + 1, n + 1, width=48),
                     "depth.top": rng.integers(0, 2**16, (n + 1, 32, 32), np.uint16)}
    return dataclasses.replace(made, **changes)


def pictures(seed: int, frames: int, width: int = 32) -> Array:
    """[frames, 32, width, 3]: a shade for the episode on the left, one for the frame on the right."""
    film = np.zeros((frames, 32, width, 3), np.uint8)
    film[:, :, :16] = 40 + 23 * seed % 200
    film[:, :, 16:] = (20 + 5 * np.arange(frames) % 220)[:, None, None, None]
    return film


def one_camera(e: Episode) -> Episode:
    """The same episode with one of its films."""
    return dataclasses.replace(e, obs={k: x for k, x in e.obs.items() if k not in ("images.wrist", "depth.top")})


def digest(e: Episode) -> str:
    """One hash over everything a recording must keep, dtypes and shapes included."""
    h = hashlib.sha256()
    arrays = {**e.obs, **{name: getattr(e, name) for name in
                          ("action", "proposed", "source", "reward", "success", "time", "starts_plan")}}
    for name, x in sorted(arrays.items()):
        h.update(f"{name} {x.dtype} {x.shape}".encode() + np.ascontiguousarray(x).tobytes())
    h.update(repr((e.terminated, e.truncated, e.task, e.policy, e.seed)).encode())
    return h.hexdigest()


def digests(store: Store) -> list[str]:
    return [digest(e) for e in store.read()]


def errors(directory: Path) -> list[str]:
    return [str(p) for p in check(directory) if p.severity == "error"]


def new(directory: Path, n: int = 0, per_append: int = 1) -> Store:
    store = Store.create(directory, task="task 0", fps=50, robot_type="test arm")
    for i in range(0, n, per_append):
        store.append([episode(j) for j in range(i, min(n, i + per_append))])
    return store


# ---- round trip and layout


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_round_trip_is_exact(tmp_path: Path, dtype: type) -> None:
    episodes = [episode(i, dtype=dtype) for i in range(7)]
    store = Store.open_or_create(tmp_path / "d", task="task 0", fps=50)
    assert store.append(episodes[:3]) == range(0, 3)
    assert store.append(episodes[3:]) == range(3, 7)
    for reader in (store, Store.open(tmp_path / "d")):
        assert digests(reader) == [digest(e) for e in episodes]
        assert [digest(e) for e in reader.read([5, 0])] == [digest(episodes[5]), digest(episodes[0])]
        assert len(reader) == 7 and reader.frames == sum(map(len, episodes))
        assert reader.tasks == ["task 0", "task 1", "task 2"]
    store.read()[0].action[:] = 0  # what is read belongs to the reader
    assert check(tmp_path / "d") == []


def test_point_clouds_and_vectors_of_one_come_back_in_shape(tmp_path: Path) -> None:
    cloud = np.random.default_rng(0).normal(size=(9, 16, 3)).astype(np.float32)
    made = episode(1, 8, obs={"cloud": cloud, "one": cloud[:, 0, :1].copy()}, action=cloud[:8, 0, :1].clip(-1, 1),
                   proposed=cloud[:8, 1, :1].clip(-1, 1))
    store = Store.create(tmp_path / "d", task="t", fps=50)
    store.append([made])
    assert digests(store) == [digest(made)]
    assert check(tmp_path / "d") == []


def test_layout_is_lerobot_v3(tmp_path: Path) -> None:
    store = new(tmp_path / "d")
    store.append([episode(i) for i in range(3)])
    info = json.loads((tmp_path / "d/meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["fps"] == 50 and info["chunks_size"] == 1000
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, store.frames, 3)
    assert info["splits"] == {"train": "0:3"} and info["video_path"] is None and info["robot_type"] == "test arm"
    assert info["features"]["observation.state"] == {"dtype": "float32", "shape": [5], "names": None}
    data = pq.ParquetFile(tmp_path / "d/data/chunk-000/file-000.parquet")
    assert data.num_row_groups == 3 and data.metadata.row_group(0).column(0).compression == "SNAPPY"
    table = data.read()
    assert set(table.column_names) == set(info["features"])
    assert table.schema.field("observation.state").type == pa.list_(pa.float32(), 5)
    assert table.schema.field("action").type == pa.list_(pa.float32(), 3)
    kinds = {"observation.effort": pa.float32(), "timestamp": pa.float32(), "time": pa.float64(), "next.done": pa.bool_(),
             **dict.fromkeys(("frame_index", "episode_index", "index", "task_index", "source"), pa.int64())}
    assert {name: table.schema.field(name).type for name in kinds} == kinds
    assert table["index"].to_pylist() == list(range(store.frames))
    first = episode(0)
    assert table["intervention"].to_pylist()[:len(first)] == (first.source == Source.HUMAN).tolist()
    assert table["next.done"].to_pylist()[:len(first)] == [False] * (len(first) - 1) + [True]
    rows = pq.read_table(tmp_path / "d/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [r["tasks"] for r in rows] == [["task 0"], ["task 1"], ["task 2"]] and [r["seed"] for r in rows] == [None, 1, 2]
    assert [r["dataset_to_index"] - r["dataset_from_index"] for r in rows] == [r["length"] for r in rows]
    assert rows[0]["last/observation.state"] == first.obs["state"][-1].tolist()
    pandas = json.loads(pq.read_schema(tmp_path / "d/meta/tasks.parquet").metadata[b"pandas"])
    assert pandas["index_columns"] == ["task"]


def test_pandas_reads_the_task_text_as_index(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    new(tmp_path / "d", 3)
    frame = pandas.read_parquet(tmp_path / "d/meta/tasks.parquet")
    assert frame.index.name == "task" and frame.loc["task 2"].task_index == 2


def test_statistics_are_those_of_all_frames(tmp_path: Path) -> None:
    store = new(tmp_path / "d", 6, per_append=2)
    (tmp_path / "d/meta/stats.json").unlink()  # a writer may have died before writing it
    store = Store.open(tmp_path / "d")
    store.append([episode(6)])
    stats = json.loads((tmp_path / "d/meta/stats.json").read_text())
    x = np.concatenate([e.obs["state"][:-1] for e in store.read()]).astype(np.float64)
    got = stats["observation.state"]
    assert got["count"] == [len(x)]
    for name, true in {"min": x.min(0), "max": x.max(0), "mean": x.mean(0), "std": x.std(0)}.items():
        np.testing.assert_allclose(got[name], true, rtol=1e-9)
    assert np.all(np.array(got["q01"]) <= got["q50"]) and np.all(np.array(got["q50"]) <= got["q99"])


def test_files_roll_over_into_chunks_and_compact_into_one(tmp_path: Path) -> None:
    store = new(tmp_path / "d")
    path = tmp_path / "d/meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chunks_size": 3}))
    store = Store.open(tmp_path / "d")
    for i in range(8):
        store.append([episode(i)])
    assert (tmp_path / "d/data/chunk-002/file-001.parquet").exists()
    before = digests(store)
    reader = Store.open(tmp_path / "d")
    store.compact()
    assert len(list((tmp_path / "d").glob("data/*/*.parquet"))) == len(list((tmp_path / "d").glob("meta/episodes/*/*.parquet"))) == 1
    assert digests(store) == before == digests(reader)  # also one that was open while the files moved
    assert pq.ParquetFile(next((tmp_path / "d").glob("data/*/*.parquet"))).num_row_groups == 8
    store.append([episode(8)])
    assert check(tmp_path / "d") == [] and digests(Store.open(tmp_path / "d"))[:8] == before
    assert describe(tmp_path / "d")["episodes"] == 9


def test_compact_keeps_files_within_the_size_limit_and_in_order(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "d", task="t", fps=50)
    path = tmp_path / "d/meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data_files_size_in_mb": 1}))
    store = Store.open(tmp_path / "d")
    for i in range(8):
        store.append([episode(i, 2500)])
    before = digests(store)
    store.compact()
    files = sorted((tmp_path / "d").glob("data/*/*.parquet"))
    assert 1 < len(files) < 8 and all(f.stat().st_size < 1.1 * 2**20 for f in files)
    index = np.concatenate([pq.read_table(f)["index"].to_numpy() for f in files])
    assert (index == np.arange(20000)).all() and digests(store) == before


# ---- death


def _record(directory: str, acknowledged: str, first: int, compacting: bool) -> None:
    """Append for ever; note every episode after append() returned for it."""
    store, log = Store.open(directory), os.open(acknowledged, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for i in range(first, first + 100_000):
        (index,) = store.append([episode(i)])
        os.write(log, f"{index} {digest(episode(i))}\n".encode())
        if compacting and i % 3 == 0:
            store.compact()


@pytest.mark.parametrize("compacting", [False, True])
def test_a_killed_writer_loses_nothing_it_returned_for(tmp_path: Path, compacting: bool) -> None:
    new(tmp_path / "d")
    log, rng = tmp_path / "acknowledged", np.random.default_rng(int(compacting))
    log.touch()
    for life in range(6):
        size = log.stat().st_size
        writer = PROCESSES.Process(target=_record, args=(str(tmp_path / "d"), str(log), 1000 * life, compacting))
        writer.start()
        while log.stat().st_size == size and writer.is_alive():
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))
        assert writer.pid is not None and writer.is_alive()
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        assert errors(tmp_path / "d") == []
        promised = dict(line.split() for line in log.read_text().splitlines())
        there = digests(Store.open(tmp_path / "d"))
        assert {str(i): there[i] for i in range(len(there)) if str(i) in promised} == promised
        assert len(there) - len(promised) <= life + 1  # at most one a life was committed and not yet acknowledged
    store = Store.open(tmp_path / "d")
    store.append([episode(5)])
    store.compact()
    assert digests(Store.open(tmp_path / "d"))[-1] == digest(episode(5)) and errors(tmp_path / "d") == []


def die_at(event_number: int, directory: str, action: str, film: bool = False) -> None:
    """Do one thing and die right before the n-th rename or removal of a file; exit normally when there are fewer."""
    compaction.FAN = 4  # so that an append soon also merges small tables
    store, seen = Store.open(directory), 0

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal seen
        if event in ("os.rename", "os.remove"):
            seen += 1
            if seen == event_number:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    if action == "append":
        store.append([one_camera(episode(seed, 5, film=True)) if film else episode(seed) for seed in (70, 71)])
    else:
        store.compact()


@pytest.mark.parametrize("action", ["append", "compact"])
def test_death_at_every_rename_and_removal_leaves_a_readable_whole(tmp_path: Path, action: str) -> None:
    before = digests(new(tmp_path / "base", 4))
    after = before + ([digest(episode(70)), digest(episode(71))] if action == "append" else [])
    outcomes, n = [], 0
    while True:
        n += 1
        folder = tmp_path / f"d{n}"
        shutil.copytree(tmp_path / "base", folder)
        process = PROCESSES.Process(target=die_at, args=(n, str(folder), action))
        process.start()
        process.join()
        assert errors(folder) == []
        assert digests(Store.open(folder)) in (before, after)
        outcomes.append(digests(Store.open(folder)) == after)
        store = Store.open(folder)
        store.append([episode(99)])
        assert digests(store)[-1] == digest(episode(99))
        leftovers = {p.what for p in check(folder)}
        assert leftovers <= {"unfinished recording, set aside"}
        assert action == "append" or not leftovers  # a compaction's leftovers are copies, and are removed
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert n > (4 if action == "append" else 10) and outcomes == sorted(outcomes)  # once committed, always committed


def test_small_tables_are_merged_like_digits(tmp_path: Path) -> None:
    sizes: list[int] = []
    for _ in range(4100):
        sizes.append(1)
        if (start := compaction.small_files(sizes)) is not None:
            sizes[start:] = [sum(sizes[start:])]
        assert len(sizes) <= 3 * compaction.FAN
    assert sum(sizes) == 4100 and sizes[0] == 4096
    assert compaction.small_files([]) is None and compaction.small_files([1, 100] * 15) is None
    assert compaction.small_files([1, 100] * 16) == 0
    store = new(tmp_path / "d", 40)
    files = sorted((tmp_path / "d").glob("meta/episodes/*/*.parquet"))
    assert [pq.read_metadata(f).num_rows for f in files] == [16, 16, *[1] * 8]
    assert digests(store) == digests(Store.open(tmp_path / "d")) == [digest(episode(i)) for i in range(40)]
    rows = [row for f in files for row in pq.read_table(f).to_pylist()]  # as others read them: in the order of their names
    assert [r["episode_index"] for r in rows] == list(range(40))
    named = [f"chunk-{r['meta/episodes/chunk_index']:03d}/file-{r['meta/episodes/file_index']:03d}.parquet" for r in rows]
    assert named == [f"{f.parent.name}/{f.name}" for f in files for _ in range(pq.read_metadata(f).num_rows)]
    assert check(tmp_path / "d") == []


# ---- several writers


def _hold(directory: str, ready: Any) -> None:
    with open(Path(directory) / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(str(os.getpid()))
        lock.flush()
        ready.set()
        time.sleep(60)


def test_a_second_writer_gets_a_clear_error(tmp_path: Path) -> None:
    store = new(tmp_path / "d", 1)
    ready = PROCESSES.Event()
    holder = PROCESSES.Process(target=_hold, args=(str(tmp_path / "d"), ready))
    holder.start()
    assert ready.wait(20)
    store.lock_wait = 0.05
    with pytest.raises(RealrlError, match=f"being written by process {holder.pid}"):
        store.append([episode(1)])
    assert len(Store.open(tmp_path / "d").read()) == 1  # readers are not held up
    holder.kill()
    holder.join()
    store.append([episode(1)])
    assert digests(store) == [digest(episode(0)), digest(episode(1))]


def _append_ten(directory: str, first: int) -> None:
    store = Store.open(directory)
    for i in range(first, first + 10):
        store.append([episode(i)])


def test_two_writers_take_turns(tmp_path: Path) -> None:
    store = new(tmp_path / "d")
    writers = [PROCESSES.Process(target=_append_ten, args=(str(tmp_path / "d"), first)) for first in (0, 100)]
    for w in writers:
        w.start()
    for w in writers:
        w.join()
    store.append([episode(500)])
    expected = {digest(episode(i)) for i in (*range(10), *range(100, 110), 500)}
    assert set(digests(store)) == expected and len(store) == 21 and check(tmp_path / "d") == []


# ---- bad input


def _poison(name: str, frame: int) -> Episode:
    e = episode(1, 10)
    {"action": e.action, "observation.state": e.obs["state"], "time": e.time}[name][frame] = np.nan
    return e


@pytest.mark.parametrize(("bad", "message"), [
    (_poison("action", 4), r"episode 1 .*action holds NaN or infinity at frame 4"),
    (_poison("observation.state", 10), r"episode 1 .*observation.state holds NaN or infinity at frame 10"),
    (episode(1, 10, action=np.zeros((10, 4), np.float32)), r"action is float32 \[10, 4\], wanted float32 \[10, 3\]"),
    (episode(1, 10, dtype=np.float64), r"observation.state is float64"),
    (episode(1, 10, obs={"state": np.zeros((11, 5), np.float32)}), r"observation.effort is missing"),
    (episode(1, 10, obs={"state": np.zeros((10, 5), np.float32)}), r"observation.state has shape \(10, 5\), wanted \[11"),
    (episode(1, 10, time=np.r_[0.0, 1, 2, 2, np.arange(4.0, 10)]), r"time does not increase at frame 3"),
    (episode(1, 10, source=np.full(10, 7, np.uint8)), r"source is 7 at frame 0"),
    (episode(1, 10, proposed=np.zeros((9, 3), np.float32)), r"action.proposed"),
    (dataclasses.replace(episode(1, 10), seed=2**64), r"seed .* does not fit"),
])
def test_append_refuses_what_would_spoil_the_dataset(tmp_path: Path, bad: Episode, message: str) -> None:
    store = new(tmp_path / "d", 1)
    before = sorted(p for p in (tmp_path / "d").rglob("*"))
    with pytest.raises(RealrlError, match=message) as caught:
        store.append([bad])
    assert "\n" not in str(caught.value)
    assert sorted(p for p in (tmp_path / "d").rglob("*")) == before and len(store) == 1


def test_an_empty_episode_is_refused_and_no_episodes_are_nothing(tmp_path: Path) -> None:
    e = episode(1, 4)
    nothing = {name: getattr(e, name)[:0] for name in ("action", "proposed", "source", "reward", "success", "time", "starts_plan")}
    store = new(tmp_path / "d", 1)
    with pytest.raises(RealrlError, match="has no frames"):
        store.append([episode(2), dataclasses.replace(e, obs={k: v[:1] for k, v in e.obs.items()}, **nothing)])
    assert len(store.append([])) == 0 and len(store) == 1


@pytest.mark.parametrize("pattern", ["data/*/*.parquet", "meta/episodes/*/*.parquet", "meta/tasks.parquet"])
@pytest.mark.parametrize("keep", [0, 0.5, 0.98])
def test_a_truncated_file_is_named_in_one_line(tmp_path: Path, pattern: str, keep: float) -> None:
    new(tmp_path / "d", 3, per_append=3)
    path = next((tmp_path / "d").glob(pattern))
    os.truncate(path, int(path.stat().st_size * keep))
    with pytest.raises(RealrlError, match=path.name) as caught:
        Store.open(tmp_path / "d").read()
    assert "\n" not in str(caught.value) and "truncated" in str(caught.value)
    assert any(path.name in p.where for p in check(tmp_path / "d") if p.severity == "error")


def test_flipped_bytes_are_found(tmp_path: Path) -> None:
    new(tmp_path / "d", 1)
    path = next((tmp_path / "d").glob("data/*/*.parquet"))
    content = bytearray(path.read_bytes())
    content[60] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(RealrlError, match="damaged"):
        Store.open(tmp_path / "d").read()
    assert len(errors(tmp_path / "d")) == 1


def test_folders_that_are_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(RealrlError, match="not a LeRobot dataset"):
        Store.open(tmp_path)
    assert [p.severity for p in check(tmp_path)] == ["error"]
    (tmp_path / "old/meta").mkdir(parents=True)
    (tmp_path / "old/meta/info.json").write_text('{"codebase_version": "v2.1"}')
    with pytest.raises(RealrlError, match=r"v2\.1"):
        Store.open(tmp_path / "old")
    (tmp_path / "old/meta/info.json").write_text('{"codebase_')
    with pytest.raises(RealrlError, match="not readable JSON"):
        Store.open(tmp_path / "old")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").touch()
    with pytest.raises(RealrlError, match="not empty"):
        Store.create(tmp_path / "full", task="t", fps=10)
    new(tmp_path / "d")
    with pytest.raises(RealrlError, match="already holds"):
        new(tmp_path / "d")
    with pytest.raises(RealrlError, match="recorded at 50 fps"):
        Store.open_or_create(tmp_path / "d", task="t", fps=10)
    with pytest.raises(RealrlError, match="holds 0 episodes, there is no number 3"):
        Store.open(tmp_path / "d").read([3])
