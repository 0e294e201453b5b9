"""Damaged and hostile files of every kind: a normal result or one RealrlError, nothing else, ever.

Each example is a valid small file with a few changes, read in a child process (`fuzzing`). The examples are the same on every
run; the environment variable REALRL_FUZZ=2000 asks for as many new ones a test, and `benchmarks/fuzz.py` looks along coverage.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fuzzing
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import samples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from realrl.data.record.journal import END, FRAME, PACKET, Log, read_log
from realrl.data.store import Store

MORE = os.environ.get("REALRL_FUZZ")
SETTINGS = settings(max_examples=int(MORE or 12), deadline=None, derandomize=not MORE, database=None,
                    suppress_health_check=list(HealthCheck))
FEWER = settings(SETTINGS, max_examples=int(MORE or 5))
NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]


# ---- changes


@st.composite
def byte_changes(draw: Any) -> list[tuple[str, float, int, int]]:
    """A few (what, where as a share of the file, length, value)."""
    one = st.tuples(st.sampled_from(["flip", "number", "cut", "remove", "repeat", "zero"]), st.floats(0, 1, exclude_max=True),
                    st.integers(1, 64), st.integers(0, 2**16))
    return draw(st.lists(one, min_size=1, max_size=4))  # type: ignore[no-any-return]


def changed(data: bytes, changes: list[tuple[str, float, int, int]]) -> bytes:
    out = bytearray(data)
    for what, share, length, value in changes:
        at = int(share * len(out))
        if what == "flip" and out:
            out[at] ^= 1 << value % 8
        elif what == "number":
            width = (1, 2, 4, 8)[value % 4]
            number = NUMBERS[value // 4 % len(NUMBERS)] % 2 ** (8 * width)
            out[at:at + width] = number.to_bytes(width, "big" if value % 3 == 0 else "little")
        elif what == "cut" and value % 4 == 0:  # most cuts are found at once and hide the other changes
            del out[at:]
        elif what == "remove":
            del out[at:at + length]
        elif what == "repeat":
            out[at:at] = out[at:at + length]
        elif what == "zero":
            out[at:at + length] = bytes(min(length, len(out) - at))
    return bytes(out)


def deep(n: int) -> Any:
    out: Any = 0
    for _ in range(n):
        out = [out]
    return out


STRINGS = ["", "../../etc/passwd", "/etc/passwd", "{chunk_index}", "{0.__class__}", "{chunk_index:>999999999}", "{video_key.__class__}",
           "\0",
           "x" * 10_000, "object", "O", "V8", "float32", "video", "v3.0", "NaN", "data/../../x", "..", "a/b", "\ud800"]
NASTY: list[Any] = [None, True, False, -1, 0, 1, 1.5, 1e308, math.nan, math.inf, 2**31, 2**63, 2**200, -2**63, [], {}, [[]], [1, 2, 3],
                    [-1], [10**9] * 3, {"a": {}}, deep(200), *STRINGS]


def change_tree(tree: Any, steps: list[int], value: Any, how: int) -> Any:
    """The JSON tree with one node replaced, removed, renamed or added, found by walking `steps`."""
    parent, key, node = None, None, tree
    for step in steps:
        keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
        if not keys:
            break
        parent, key = node, keys[step % len(keys)]
        node = parent[key]
    if parent is None:
        return value
    if how == 1:
        del parent[key]
    elif how == 2 and isinstance(parent, dict) and isinstance(value, str):
        parent[value] = parent.pop(key)
    elif how == 3 and isinstance(node, dict):
        node["extra"] = value
    else:
        parent[key] = value
    return tree


def change_table(table: pa.Table, column: int, row: int, value: Any, how: int) -> pa.Table:
    """The table with one cell, one column's type, one row or one column changed."""
    at = column % table.num_columns
    name, kind, values = table.column_names[at], table.column(at).type, table.column(at).to_pylist()
    if how == 1:
        return table.remove_column(at)
    if how == 2:
        return table.set_column(at, name, pa.array([str(v) for v in values]))
    if how == 3:
        return table.take(pa.array([*range(table.num_rows), row % max(1, table.num_rows)])) if table.num_rows else table
    if how == 4:
        return table.slice(row % (table.num_rows + 1))
    if how == 5:
        return table.rename_columns([str(value) if i == at else n for i, n in enumerate(table.column_names)])
    if values:
        values[row % len(values)] = [value] if isinstance(values[0], list) else value
    try:
        return table.set_column(at, name, pa.array(values, kind))
    except (pa.ArrowException, ValueError, OverflowError, TypeError, UnicodeError):
        return table.set_column(at, name, pa.nulls(table.num_rows, kind))


# ---- the harness


@functools.cache
def sample(kind: str) -> Path:
    """A folder that holds a valid sample, made once; the first entry of it is what is opened."""
    root = Path(tempfile.mkdtemp(prefix=f"realrl-fuzz-{kind}-"))
    SAMPLES.append(root)
    maker: Callable[[Path], Path] = getattr(samples, kind)
    maker(root / "data" if kind in OWN else root)
    return root


OWN = ("dataset", "legacy", "side", "recording")  # kinds that are a LeRobot folder, with a reader of the same name
SAMPLES: list[Path] = []
CHILD = fuzzing.Child()


@pytest.fixture(scope="module", autouse=True)
def tidy() -> Iterator[None]:
    yield
    CHILD.close()
    sample.cache_clear()
    for root in SAMPLES:
        shutil.rmtree(root)
    SAMPLES.clear()


def files(root: Path, pattern: str) -> list[Path]:
    return sorted(p for p in root.rglob(pattern) if p.is_file() and p.name != ".lock")


def run(kind: str, reader: str, pattern: str, which: int, change: Callable[[Path], None], opened: str | None = None,
        afterwards: Callable[[Path], None] = lambda root: None) -> str:
    """Copy the sample, change one file of it, read it in the child; fails the test on anything but a result or a refusal.
    afterwards: looks at the copy once it was read."""
    with tempfile.TemporaryDirectory(prefix="realrl-fuzz-") as folder:
        root = Path(folder) / "in"
        shutil.copytree(sample(kind), root)
        there = files(root, pattern)
        file = there[which % len(there)]
        change(file)
        path = file if opened == "file" else next(p for p in sorted(root.iterdir()))
        outcome = CHILD.read(reader, path, root)
        if outcome not in ("read", "refused"):
            kept = Path(tempfile.gettempdir()) / f"realrl-found-{kind}"  # the last, which is the smallest, stays
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(root, kept)
            pytest.fail(f"{kind}: {file.relative_to(root)} changed, kept in {kept}\n{outcome}")
        afterwards(root)
        return outcome


def test_the_harness_notices_what_it_should(tmp_path: Path) -> None:
    """A check of the check: valid samples are read, and an exception, an escape, a crash and a hang are each told."""
    for kind in KINDS:
        if KINDS[kind][0] == "foreign":
            root = sample(kind)
            assert CHILD.read("foreign", next(p for p in sorted(root.iterdir())), root) == "read", kind
    for kind in OWN:
        assert run(kind, kind, "*", 0, lambda file: None) == "read", kind
    child = Faulty()
    for fault, told in (("raise", "exception"), ("open", "escape"), ("write", "escape"), ("abort", "crash"), ("unpickle", "escape"),
                        ("memory", "exception"), ("reader", "exception: ")):
        assert child.read(fault, tmp_path / "x", tmp_path / "in").startswith(told), fault
    child.close()


class Faulty(fuzzing.Child):
    """A child whose readers do what no reader may."""

    CODE = """
import os, pickle, sys
sys.path.insert(0, {folder!r})
import fuzzing
from realrl.data.formats import sandbox
fuzzing.READERS.update({{"raise": lambda p: 1 / 0, "abort": lambda p: os.abort(), "memory": lambda p: bytes(2**36),
                         "open": lambda p: open(str(p) + "y", "a"), "write": lambda p: os.open(str(p), os.O_CREAT),
                         "unpickle": lambda p: pickle.loads(pickle.dumps(p)), "reader": lambda p: sandbox.read("escape", p, {{}})}})
fuzzing._serve()
"""

    def read(self, reader: str, path: Path, inside: Path) -> str:
        if self.process is None or self.process.poll() is not None:
            self.start(["-c", self.CODE.format(folder=str(fuzzing.FOLDER))])
        return super().read(reader, path, inside)


# kind -> (reader, pattern of the files whose bytes are changed, what is opened)
KINDS: dict[str, tuple[str, str, str | None]] = {
    "robomimic": ("foreign", "*.hdf5", None), "zarr_folder": ("foreign", "*", None), "zarr_zip": ("foreign", "*.zip", None),
    "minari": ("foreign", "*", None), "dapg": ("foreign", "*.pickle", None), "hil_serl": ("foreign", "*.pkl", None),
    "rlds": ("foreign", "*", None), "arrow": ("foreign", "*", None), "aloha": ("foreign", "*.hdf5", None),
    "maniskill": ("foreign", "*", None)}


@pytest.mark.parametrize("kind", KINDS)
def test_changed_bytes_of_foreign_files(kind: str) -> None:
    reader, pattern, opened = KINDS[kind]

    @SETTINGS
    @given(st.integers(0, 99), byte_changes())
    def check(which: int, changes: list[tuple[str, float, int, int]]) -> None:
        run(kind, reader, pattern, which, lambda file: _rewrite(file, lambda raw: changed(raw, changes)), opened)
    check()


def test_findings_of_longer_searches() -> None:
    """A zip member without a name, and an array whose rows have another shape than the row after them."""
    def nameless(file: Path) -> None:
        with zipfile.ZipFile(file, "a") as packed:
            packed.writestr(zipfile.ZipInfo("x"), b"")
            packed.infolist()[-1].filename = ""

    def narrower(file: Path) -> None:
        about = json.loads(file.read_text())
        about["shape"][1] = 1
        about["chunks"][1] = 1
        file.write_text(json.dumps(about))
    assert run("zarr_zip", "foreign", "*.zip", 0, nameless) in ("read", "refused")
    assert run("zarr_folder", "foreign", "data/state/.zarray", 0, narrower) == "refused"


@pytest.mark.parametrize("pattern", ["data/**/*.parquet", "meta/episodes/**/*.parquet", "meta/tasks.parquet", "*.json", "*.mp4"])
def test_changed_bytes_of_a_dataset(pattern: str) -> None:
    @SETTINGS
    @given(st.integers(0, 99), byte_changes())
    def check(which: int, changes: list[tuple[str, float, int, int]]) -> None:
        run("dataset", "dataset", pattern, which, lambda file: _rewrite(file, lambda raw: changed(raw, changes)))
    check()


@pytest.mark.parametrize(("kind", "pattern"), [("legacy", "*.json*"), ("legacy", "*.parquet"), ("legacy", "*.mp4"),
                                               ("side", "derived/**/*.parquet")])
def test_changed_bytes_of_version_2_and_of_derived_columns(kind: str, pattern: str) -> None:
    @FEWER
    @given(st.integers(0, 99), byte_changes())
    def check(which: int, changes: list[tuple[str, float, int, int]]) -> None:
        run(kind, kind, pattern, which, lambda file: _rewrite(file, lambda raw: changed(raw, changes)))
    check()


def test_changed_bytes_of_a_recording() -> None:
    """Every step that was whole before the damage comes into the dataset as it was."""
    @FEWER
    @given(st.integers(0, 99), byte_changes())
    def check(which: int, changes: list[tuple[str, float, int, int]]) -> None:
        damaged: list[Path] = []

        def change(file: Path) -> None:
            damaged.append(file)
            _rewrite(file, lambda raw: changed(raw, changes))
            damaged.append(Path(shutil.copy(file, file.parents[3] / "of-damaged.log")))
        run("recording", "recording", "recording/*/*.log", which, change, None, lambda root: nothing_lost(root, *damaged))
    check()


def nothing_lost(root: Path, file: Path, copy_of_it: Path) -> None:
    """Each episode of the sample's recording is in the dataset as far as it was whole. file: what was damaged, and a copy of it as read."""
    there = {e.seed: e for e in Store.open(root / "data").read(images=False)}
    for number, true in enumerate(samples.episodes(steps=6)):
        frames, film = (sample("recording") / f"data/recording/{1:020d}-{number:06d}" / name for name in ("frames.log", "images.top.log"))
        whole = {}
        for log in (frames, film):
            same = log.stat().st_size
            if file.parent.name == log.parent.name and file.name == log.name:
                pairs = zip(log.read_bytes(), copy_of_it.read_bytes(), strict=False)
                same = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
            records = list(read_log(log))
            ends = itertools.accumulate(9 + len(content) for _, content in records)
            whole[log] = [kind for (kind, _), end in zip(records, ends, strict=True) if end <= same]
        steps, pictures = whole[frames].count(FRAME), whole[film].count(PACKET)
        expected = 6 if END in whole[frames] and pictures == 7 else min(steps, pictures) - 1
        found = there.get(10 + number)
        assert found is not None or expected < 1, f"the {expected} whole steps of episode {number} are lost"
        if found is not None:
            assert len(found) >= expected and (found.obs["state"] == true.obs["state"][:len(found) + 1]).all()


def test_changed_records_of_a_recording_with_true_checksums() -> None:
    """Checksums stop accidents; whoever means harm writes them anew. A record's kind, bytes and, where it is JSON, values are changed."""
    values = st.tuples(st.lists(st.integers(0, 30), max_size=4), st.sampled_from(NASTY), st.integers(0, 3))

    @FEWER
    @given(st.integers(0, 99), st.integers(0, 99), st.one_of(byte_changes(), st.lists(values, min_size=1, max_size=2)), st.integers(0, 99))
    def check(which: int, record: int, changes: list[Any], kind: int) -> None:
        def change(file: Path) -> None:
            records = list(read_log(file))
            at = record % len(records) if record % 2 else 0
            old, content = records[at]
            if len(changes[0]) == 3 and content[:1] == b"{":
                tree = json.loads(content)
                for steps, value, how in changes:
                    tree = change_tree(tree, steps, copy.deepcopy(value), how)
                content = json.dumps(tree).encode()
            elif len(changes[0]) == 4:
                content = changed(content, changes)
            records[at] = (kind if kind < 7 else old, content)
            file.unlink()
            log = Log(file)
            for one in records:
                log.append(*one)
            log.close()
        run("recording", "recording", "recording/*/*.log", which, change)
    check()


@pytest.mark.parametrize("kind", ["legacy", "side", "recording"])
def test_names_and_links_that_lead_out(kind: str) -> None:
    """A file, or the folder it lies in, becomes a link, a pipe, a folder or another name; nothing outside is read or written."""
    @FEWER
    @given(st.integers(0, 99), st.integers(0, 3), st.sampled_from(["link", "self", "nowhere", "pipe", "folder", "name", "missing"]))
    def check(which: int, up: int, what: str) -> None:
        def change(file: Path) -> None:
            data = next(p for p in file.parents if p.name == "data" and p.parent.name == "in")
            victim = [p for p in (file, *file.parents) if p.is_relative_to(data) and p != data]
            hostile(victim[up % len(victim)], Path(sample(kind)), what)
        run(kind, kind, {"legacy": "*", "side": "derived/**/*", "recording": "recording/**/*"}[kind], which, change)
    check()


def hostile(victim: Path, outside: Path, what: str) -> None:
    """Make a file or folder what it may not be. outside: a folder that is not to be touched."""
    target = {"link": outside / victim.relative_to(next(p for p in victim.parents if p.name == "in")), "self": victim,
              "nowhere": outside / "nothing"}.get(what)
    if victim.is_dir():
        shutil.rmtree(victim)
    else:
        victim.unlink()
    if target is not None:
        victim.symlink_to(target)
    elif what == "pipe":
        os.mkfifo(victim)
    elif what == "folder":
        victim.mkdir()
    elif what == "name":
        victim.with_name("v\u0661.parquet\n\udcff").mkdir()


def test_changed_bytes_of_a_video() -> None:
    @SETTINGS
    @given(byte_changes())
    def check(changes: list[tuple[str, float, int, int]]) -> None:
        run("dataset", "video", "*.mp4", 0, lambda file: _rewrite(file, lambda raw: changed(raw, changes)), "file")
    check()


@pytest.mark.parametrize(("kind", "pattern"), [("dataset", "info.json"), ("dataset", "stats.json"), ("legacy", "info.json"),
                                               ("legacy", "*.jsonl"), ("rlds", "features.json"),
                                               ("zarr_folder", ".z*"), ("minari", "*.json")])
def test_changed_values_in_json(kind: str, pattern: str) -> None:
    reader = kind if kind in OWN else "foreign"

    @(FEWER if kind == "legacy" else SETTINGS)
    @given(st.integers(0, 99), st.lists(st.tuples(st.lists(st.integers(0, 30), max_size=6), st.sampled_from(NASTY), st.integers(0, 3)),
                                        min_size=1, max_size=2))
    def check(which: int, changes: list[tuple[list[int], Any, int]]) -> None:
        def change(file: Path) -> None:
            lines = file.suffix == ".jsonl"  # a list of documents, one a line
            tree = [json.loads(text) for text in file.read_text().splitlines()] if lines else json.loads(file.read_text())
            for steps, value, how in changes:
                tree = change_tree(tree, steps, copy.deepcopy(value), how)
            file.write_text("\n".join(map(json.dumps, tree)) if lines and isinstance(tree, list) else json.dumps(tree))
        run(kind, reader, pattern, which, change)
    check()


CELLS = [None, -1, 0, 1, 2, 7, 10**6, 2**31, 2**62, 2**63 - 1, -2**63, 0.5, -1.0, 1e18, math.nan, math.inf, True, *STRINGS[:-1]]


@pytest.mark.parametrize(("kind", "pattern"), [
    ("dataset", "data/**/*.parquet"), ("dataset", "meta/episodes/**/*.parquet"), ("dataset", "meta/tasks.parquet"),
    ("legacy", "data/**/*.parquet"), ("side", "derived/**/*.parquet"), ("side", "meta/episodes/**/*.parquet")])
def test_changed_values_in_tables(kind: str, pattern: str) -> None:
    @(SETTINGS if kind == "dataset" else FEWER)
    @given(st.integers(0, 99), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 20), st.sampled_from(CELLS),
                                                  st.sampled_from([0, 0, 0, 0, 1, 2, 3, 4, 5])), min_size=1, max_size=2))
    def check(which: int, changes: list[tuple[int, int, Any, int]]) -> None:
        def change(file: Path) -> None:
            table = pq.read_table(file, partitioning=None)
            for column, row, value, how in changes:
                if table.num_columns:
                    table = change_table(table, column, row, value, how)
            pq.write_table(table, file)
        run(kind, kind, pattern, which, change)
    check()


def test_changed_headers_of_derived_columns() -> None:
    @FEWER
    @given(st.integers(0, 99), st.lists(st.integers(0, 30), max_size=3), st.sampled_from(NASTY), st.integers(0, 3))
    def check(which: int, steps: list[int], value: Any, how: int) -> None:
        def change(file: Path) -> None:
            table = pq.read_table(file, partitioning=None)
            header = change_tree(json.loads(table.schema.metadata[b"realrl"]), steps, copy.deepcopy(value), how)
            pq.write_table(table.replace_schema_metadata({"realrl": json.dumps(header)}), file)
        run("side", "side", "derived/**/*.parquet", which, change)
    check()


def test_changed_records_with_true_checksums() -> None:
    """Checksums stop accidents; whoever means harm writes them anew."""
    from realrl.data.formats.tfrecord import masked_crc, records

    def frame(record: bytes) -> bytes:
        length = len(record).to_bytes(8, "little")
        return length + masked_crc(length).to_bytes(4, "little") + record + masked_crc(record).to_bytes(4, "little")

    @SETTINGS
    @given(byte_changes())
    def check(changes: list[tuple[str, float, int, int]]) -> None:
        def change(file: Path) -> None:
            file.write_bytes(b"".join(frame(changed(r, changes)) for r in list(records(file))))
        run("rlds", "foreign", "*.tfrecord*", 0, change)
    check()


def _rewrite(file: Path, change: Callable[[bytes], bytes]) -> None:
    file.write_bytes(change(file.read_bytes()))
