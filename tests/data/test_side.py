"""Side files: versions that are never overwritten, tied to the episodes they were computed from."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recordings import episode, record, tree

from realrl.data import side
from realrl.data.store import Store
from realrl.data.tools import edit
from realrl.types import RealrlError


def complaint(call, *words: str) -> None:
    with pytest.raises(RealrlError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and all(word in text for word in words), text


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return record(tmp_path / "d", range(4))


@pytest.mark.parametrize("values", [
    np.linspace(-1, 1, 30), np.arange(30, dtype=np.int16), np.arange(30) % 2 == 0, np.arange(90, dtype=np.float32).reshape(30, 3),
    np.arange(120, dtype=np.int64).reshape(30, 2, 2), np.array([f"label {i}" for i in range(30)])], ids=str)
def test_every_kind_of_column_comes_back(values: np.ndarray, data: Path) -> None:
    assert Store.open(data).frames == 30
    before = tree(data)
    assert side.write(data, "kind", {"x": values}, {"gamma": 0.99}) == 1
    found = side.read(data, "kind")
    assert (found.columns["x"] == values).all() and found.columns["x"].shape == values.shape
    assert found.columns["x"].dtype in (values.dtype, object)
    assert (found.name, found.version, found.per, found.meta, found.missing) == ("kind", 1, "frame", {"gamma": 0.99}, 0)
    assert {k: v for k, v in tree(data).items() if not k.startswith("derived/")} == before  # the recording is untouched


def test_versions_are_never_overwritten(data: Path) -> None:
    for k in range(3):
        assert side.write(data, "value", {"v": np.full(4, k), "w": np.arange(4.0)}) == k + 1
    assert side.versions(data, "value") == [1, 2, 3] and side.names(data) == ["value"] and side.versions(data, "none") == []
    assert [int(side.read(data, "value", v).columns["v"][0]) for v in (1, 2, 3, None)] == [0, 1, 2, 2]
    assert side.read(data, "value").per == "episode"
    (data / "derived/value/v2.parquet").unlink()
    assert side.write(data, "value", {"v": np.arange(4)}) == 4
    complaint(lambda: side.read(data, "value", 2), "no derived column file 'value' v2", "there are v1, v3, v4")
    complaint(lambda: side.read(data, "values"), "there is value")


def test_two_writers_never_take_the_same_version(data: Path) -> None:
    numbers: list[int] = []
    threads = [threading.Thread(target=lambda k=k: numbers.append(side.write(data, "value", {"v": np.full(4, k)}))) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 9))
    assert sorted(int(side.read(data, "value", v).columns["v"][0]) for v in range(1, 9)) == list(range(8))


def test_episodes_appended_since_are_missing(data: Path) -> None:
    side.write(data, "frame", {"value": np.arange(30.0), "count": np.arange(30), "both": np.zeros((30, 2))})
    side.write(data, "episode", {"good": np.ones(4, bool)})
    Store.open(data).append([episode(5), episode(6)])
    complaint(lambda: side.read(data, "frame"), "covers 4 episodes of 6", "2 were appended since")
    found = side.read(data, "frame", missing="nan")
    total = Store.open(data).frames
    assert found.missing == 2 and all(len(x) == total for x in found.columns.values())
    assert (found.columns["value"][:30] == np.arange(30)).all() and np.isnan(found.columns["value"][30:]).all()
    assert found.columns["count"][:30].tolist() == list(range(30)) and set(found.columns["count"][30:]) == {None}
    assert np.isnan(found.columns["both"][30:]).all() and found.columns["both"].shape == (total, 2)
    assert side.read(data, "episode", missing="nan").columns["good"].tolist() == [True] * 4 + [None] * 2
    assert side.write(data, "frame", {"value": np.arange(float(total))}) == 2
    assert side.read(data, "frame").missing == 0
    edit.delete_episodes(data, data.parent / "less", [1])  # and what is missing stays missing
    kept = side.read(data.parent / "less", "episode").columns["good"]
    assert kept.tolist() == [True] * 3 + [None] * 2


def test_other_episodes_are_refused(data: Path, tmp_path: Path) -> None:
    side.write(data, "value", {"v": np.arange(4)})
    for name, numbers in {"reordered": [0, 2, 1, 3], "fewer": [0, 1, 2], "others": [0, 1, 2, 8]}.items():
        other = record(tmp_path / name, numbers)
        shutil.copytree(data / "derived", other / "derived")
        complaint(lambda other=other: side.read(other, "value"), "computed from other episodes")
    Store.open(data).compact()  # does not change which episodes there are
    assert side.read(data, "value").columns["v"].tolist() == [0, 1, 2, 3]


def test_columns_that_do_not_fit(data: Path) -> None:
    for columns, words in (({"x": np.zeros(5)}, "'x' has 5 rows, wanted 30 (frames) or 4 (episodes)"), ({}, "no column"),
                           ({"x": np.zeros(30), "y": np.zeros(4)}, "write them under two names"),
                           ({"x": np.zeros(30, complex)}, "numbers, truth values or text"),
                           ({"x": [0.0] * 30}, "must be an array"), ({"x": np.array([object()] * 4)}, "cannot be stored")):
        complaint(lambda columns=columns: side.write(data, "name", columns), words)
    complaint(lambda: side.write(data, "name", {"x": np.zeros(4)}, {"f": object()}), "cannot be stored")
    complaint(lambda: side.write(data, "name", {"x": np.zeros(4)}, {"f": float("nan")}), "cannot be stored")
    complaint(lambda: side.write(data / "nowhere", "name", {"x": np.zeros(4)}), "not a LeRobot dataset")
    assert side.names(data) == []


@pytest.mark.parametrize("name", ["", "..", "a/b", "../out", ".hidden", "a\0b", "x" * 3 + "/.."])
def test_names_cannot_leave_the_dataset(name: str, data: Path) -> None:
    complaint(lambda: side.write(data, name, {"x": np.zeros(4)}), "cannot name derived columns")
    complaint(lambda: side.read(data, name), "cannot name derived columns")


def test_a_link_cannot_leave_the_dataset(data: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (data / "derived").mkdir()
    (data / "derived/value").symlink_to(tmp_path / "elsewhere")
    complaint(lambda: side.write(data, "value", {"x": np.zeros(4)}), "leads out of")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_damaged_files_get_one_line(data: Path) -> None:
    side.write(data, "value", {"v": np.arange(30.0)})
    path = data / "derived/value/v1.parquet"
    whole = path.read_bytes()
    for cut in range(0, len(whole), 61):
        path.write_bytes(whole[:cut])
        complaint(lambda: side.read(data, "value"), "v1.parquet")
    rng = np.random.default_rng(0)
    for _ in range(60):
        data_ = bytearray(whole)
        data_[int(rng.integers(len(whole)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(data_))
        try:
            found = side.read(data, "value")
        except RealrlError as error:
            assert "\n" not in str(error) and "v1.parquet" in str(error)
        else:
            assert list(found.columns) and len(next(iter(found.columns.values()))) == 30
    about = {"per": "frame", "episodes": 4, "frames": 30, "fingerprint": "", "meta": {}}
    for changes in ({"per": "year"}, {"episodes": "x"}, {"frames": 29}, {"meta": 3}, {"fingerprint": None}, {"episodes": -1}):
        table = pa.table({"v": np.arange(30.0)}).replace_schema_metadata({"realrl": json.dumps({**about, **changes})})
        pq.write_table(table, path)
        complaint(lambda: side.read(data, "value"), "v1.parquet")
    pq.write_table(pa.table({"v": np.arange(30.0)}), path)
    complaint(lambda: side.read(data, "value"), "is no file of derived columns")


def test_a_column_that_is_being_written_is_not_swept_away(data: Path) -> None:
    """Derived columns are written without the dataset's lock: whoever appends meanwhile sweeps dead writers' files only."""
    root = data
    folder = root / "derived/value"
    folder.mkdir(parents=True)
    ours, dead = folder / f".v1.parquet.{os.getpid()}.tmp", folder / ".v1.parquet.999999999.tmp"
    for path in (ours, dead):
        path.write_bytes(b"half")
    Store.open(root).append([episode(5)])
    assert ours.exists() and not dead.exists()
