"""What is said of other people's LeRobot sets is true, the same in every layout, and can be typed as it stands."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_lerobot import BOTH, NEW, OLD, made, refusal, run, seen

from realrl.cell import recordings
from realrl.data.errors import mend
from realrl.data.formats import open_dataset
from realrl.data.tools.check import check, describe
from realrl.scene import RecordedConfig, SightConfig

LAST = "meta/episodes/chunk-000/file-000.parquet"


def rows(root: Path, change: Callable[[int], Mapping[str, Any]]) -> None:
    """Add to every episode's row, in either layout."""
    if (lines := root / "meta/episodes.jsonl").exists():
        told = [json.loads(text) for text in lines.read_text().splitlines()]
        lines.write_text("".join(json.dumps(row | change(i)) + "\n" for i, row in enumerate(told)))
    else:
        pq.write_table(pa.Table.from_pylist([row | change(i) for i, row in enumerate(pq.read_table(root / LAST).to_pylist())]), root / LAST)


def described(root: Path, **changes: Any) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def warned(root: Path) -> list[str]:
    return [str(p) for p in check(root, limits=(-100, 100)) if p.severity == "warning"]


def material(root: Path) -> recordings.Material:
    return recordings.read(str(root), RecordedConfig(), SightConfig(), root.parent / "spare")


@BOTH
@pytest.mark.parametrize(("name", "cells"), [("is_success", (True, False, None)), ("success", ("success", "failed", "no idea")),
                                             ("failed", (0, 1, None)), ("task_result", ("Success", "FAIL", "-"))])
def test_what_rows_say_of_how_episodes_ended_is_counted(version: str, name: str, cells: tuple[Any, ...], tmp_path: Path) -> None:
    rows(root := made(tmp_path / "d", version), lambda i: {name: cells[i], "label": "success"})
    assert describe(root)["outcomes"] == {"success": 1, "failure": 1, "unknown": 1} and describe(root)["success_rate"] == 0.5


@BOTH
def test_a_rate_in_quotes_is_a_rate(version: str, tmp_path: Path) -> None:
    described(root := made(tmp_path / "d", version), fps="20")
    assert open_dataset(root).fps == 20 and not [p for p in check(root) if p.severity == "error"]
    described(root, fps="many")
    assert "'fps' is missing or of the wrong type" in refusal(lambda: open_dataset(root))


def test_nobody_is_sent_to_a_copy_of_what_was_fetched(tmp_path: Path) -> None:
    root = made(tmp_path / "d", OLD)
    assert mend(root / "meta/info.json") == "correct it, or fetch it again"
    (root / "meta/info.json").write_text("{")
    assert mend(root / "meta/info.json").startswith("fetch it again")


@BOTH
def test_a_row_that_was_written_twice_counts_once(version: str, tmp_path: Path) -> None:
    root = made(tmp_path / "d", version)
    if version == OLD:
        lines = (root / "meta/episodes.jsonl").read_text().splitlines()
        (root / "meta/episodes.jsonl").write_text("\n".join([*lines, lines[-1], ""]))
    else:
        table = pq.read_table(root / LAST)
        pq.write_table(pa.concat_tables([table, table.slice(2)]), root / LAST)
    assert [len(e) for e in open_dataset(root).read()] == [6, 4, 5] and not [p for p in check(root) if p.severity == "error"]


@BOTH
def test_episodes_without_a_frame_are_told_alike(version: str, tmp_path: Path) -> None:
    root = made(tmp_path / "d", version, lengths=(6, 0, 5))
    assert open_dataset(root).notes == ["left out: 1 episode without a frame (1)"]
    told = warned(root)
    assert not [text for text in told if "total_episodes" in text or "newer" in text], told
    assert any("without a frame" in text or "has no frames" in text for text in told)


@BOTH
def test_a_set_without_an_episode_is_an_error(version: str, tmp_path: Path) -> None:
    root = made(tmp_path / "d", version)
    if version == OLD:
        (root / "meta/episodes.jsonl").write_text("")
    else:
        pq.write_table(pq.read_table(root / LAST).slice(0, 0), root / LAST)
    assert any("there is no episode" in str(p) for p in check(root) if p.severity == "error")


def test_what_others_wrote_stays_as_it_is_when_it_is_read(tmp_path: Path) -> None:
    described(root := made(tmp_path / "d", NEW), total_frames=1)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    open_dataset(root).read(images=False)
    assert before == {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert any("total_frames is 1" in text and "nobody here reads it" in text for text in warned(root))


@BOTH
def test_names_are_offered_by_everybody_who_misses_them(version: str, tmp_path: Path) -> None:
    root = made(tmp_path / "d", version, names={"action": "actions", "observation.state": "joint_position",
                                                "observation.images.top": "wrist_image"},
                more={"gripper_position": np.zeros})
    pairs = ["action=actions", "observation.state=joint_position,gripper_position", "observation.images.wrist_image=wrist_image"]
    errors = [str(p) for p in check(root) if p.severity == "error"]
    told = refusal(lambda: open_dataset(root).read())
    assert len(errors) == 1 and told.partition("column")[2] == errors[0].replace("; -", ": -").partition("column")[2]
    assert re.findall(r"--rename (\S+)", errors[0]) == pairs
    taken = shlex.split(errors[0].partition("--recorded.names ")[2].partition(" (of")[0])
    assert taken == pairs and len(open_dataset(root, names=dict(pair.split("=") for pair in taken)).read()[0].obs["state"][0]) == 3


@BOTH
def test_a_state_of_another_name_beside_an_action_is_offered(version: str, tmp_path: Path) -> None:
    root = made(tmp_path / "d", version, names={"observation.state": "state"})
    assert "--recorded.names observation.state=state" in refusal(lambda: material(root))


@BOTH
def test_no_action_at_all_is_said_with_what_could_be_one(version: str, tmp_path: Path) -> None:
    root = made(tmp_path / "d", version, names={"action": "observation.force"})
    told = refusal(lambda: material(root))
    assert "say which of observation.state, observation.force it is" in told.replace("observation.force, observation.state",
                                                                                   "observation.state, observation.force")
    assert "--rename action=COLUMN" in told and "--recorded.names action=COLUMN" in told and "images" not in told


@BOTH
def test_nan_is_named_with_a_command_that_leaves_it_out(version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = made(tmp_path / "d", version)
    for path in root.rglob("data/*/*.parquet"):
        table = pq.read_table(path)
        at = table.column_names.index("observation.state")
        spoiled = [[None, 1.0] if (e, t) == (1, 2) else x for x, e, t in zip(
            table["observation.state"].to_pylist(), table["episode_index"].to_pylist(), table["frame_index"].to_pylist(), strict=True)]
        pq.write_table(table.set_column(at, "observation.state", pa.array(spoiled, pa.list_(pa.float32()))), path)
    told = refusal(lambda: material(root))
    words = shlex.split(re.findall(r"'realrl data (import .*?)'$", told)[0])
    words[words.index("NEW")] = str(tmp_path / "new")
    assert "2 episodes" in run(capsys, *words) and len(material(tmp_path / "new").demos) == 1
    assert not [text for text in warned(root) if "never moves" in text]


def test_a_file_an_episode_is_no_line_an_episode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = made(tmp_path / "d", OLD, lengths=(5,) * 6)
    for path in root.rglob("data/*/*.parquet"):
        table = pq.read_table(path)
        flat = pa.array([[5.0 + t, 0.0] for t in range(len(table))], pa.list_(pa.float32()))
        pq.write_table(table.set_column(table.column_names.index("action"), "action", flat), path)
    told = run(capsys, "check", root)
    assert told.count("action leaves [-1, 1]") == 3 and "warning: 3 more like the one before, up to" in told
    assert len([p for p in json.loads(run(capsys, "check", root, "--json"))["problems"] if "leaves" in p["what"]]) == 6


# ---- pictures


PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 3)).astype(np.uint8)


def with_pictures(root: Path, version: str, cells: Callable[[int], Any], dtype: str, shape: list[int]) -> Path:
    """A set whose second camera, observation.images.side, is a column of the tables."""
    made(root, version)
    for path in root.rglob("data/*/*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.append_column("observation.images.side", pa.array([cells(t) for t in range(len(table))])), path)
    told = json.loads((root / "meta/info.json").read_text())["features"]
    described(root, features=told | {"observation.images.side": {"dtype": dtype, "shape": shape, "names": None}})
    return root


@BOTH
@pytest.mark.parametrize("dtype", ["uint8", "float32", "image"])
@pytest.mark.parametrize("first", [True, False])
def test_pictures_written_as_numbers_are_pictures(version: str, dtype: str, first: bool, tmp_path: Path,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    x = np.moveaxis(PIXELS, 2, 0) if first else PIXELS
    cell = (x / np.float32(255) if dtype == "float32" else x).tolist()
    root = with_pictures(tmp_path / "d", version, lambda _: cell, dtype, list(x.shape))
    side = open_dataset(root).read()[1].obs["images.side"]
    assert side.dtype == np.uint8 and side.shape == (5, 12, 16, 3) and (side == PIXELS).all()
    sight = SightConfig(kind="rgb", height=12, width=16)
    assert (recordings.read(str(root), RecordedConfig(), sight, tmp_path).demos[0].obs["images.side"] == PIXELS).all()
    assert "pictures in cells become video" in run(capsys, "import", root, "--out", tmp_path / "new") and not [
        p for p in check(root) if p.severity == "error"]


@BOTH
@pytest.mark.parametrize(("cell", "words"), [
    ((PIXELS / np.float32(127.5) - 1).tolist(), "values outside 0 to 255"), ([[[0.0] * 16] * 12] * 2, "no picture in three colours"),
    (b"\0\0\0\x1cftypavif" + bytes(20), "AVIF or HEIF"), (b"\xff\x0a" + bytes(20), "JPEG XL")])
def test_pictures_that_are_not_read_are_named_and_the_camera_can_be_left_out(version: str, cell: Any, words: str, tmp_path: Path,
                                                                             capsys: pytest.CaptureFixture[str]) -> None:
    root = with_pictures(tmp_path / "d", version, lambda _: cell, "float32" if "outside" in words else "image", [12, 16, 3])
    told = refusal(lambda: open_dataset(root).read())
    assert words in told and any(words in str(p) for p in check(root) if p.severity == "error")
    assert "3 episodes" in run(capsys, "import", root, "--out", tmp_path / "new", "--option", "cameras=top")


@BOTH
def test_a_camera_that_is_only_listed_is_told_alike(version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = made(tmp_path / "d", version)
    told = json.loads((root / "meta/info.json").read_text())["features"]
    described(root, features=told | {"observation.images.ghost": told["observation.images.top"]})
    if version == NEW:
        rows(root, lambda i: {f"videos/observation.images.ghost/{key}": 0.0 if "stamp" in key else 0 for key in
                              ("chunk_index", "file_index", "from_timestamp", "to_timestamp")})
    said = refusal(lambda: open_dataset(root).read())
    assert "it is like that with its whole camera" in said and "--option missing=camera" in said and "missing=episodes" not in said
    assert "3 episodes" in run(capsys, "import", root, "--out", tmp_path / "new", "--option", "missing=camera")
    described(root, features=told | {"observation.images.ghost": told["observation.images.top"] | {"dtype": "image"}})
    said = refusal(lambda: open_dataset(root).read())
    assert "no column observation.images.ghost" in said and "--sight.cameras" in said
    assert any("no column observation.images.ghost" in str(p) for p in check(root) if p.severity == "error")


def test_tables_that_were_not_fetched_are_all_that_is_wrong(tmp_path: Path) -> None:
    root = made(tmp_path / "d", NEW)
    (root / LAST).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
    errors = [str(p) for p in check(root) if p.severity == "error"]
    assert len(errors) == 1 and "git lfs pull" in errors[0]


@BOTH
def test_a_clock_that_leads_into_the_next_episodes_film_is_not_followed(version: str, tmp_path: Path) -> None:
    """Timestamps 6 % fast, beside a film that is not: by the end of an episode they are nearer to another picture, or another episode's."""
    root = made(tmp_path / "d", version, lengths=(12, 12, 12), stamps=lambda t: 1.06 * t)
    data = open_dataset(root)
    assert [seen(e) for e in data.read()] == [[4 * i + t for t in (*range(12), 11)] for i in range(3)]
    sight = SightConfig(kind="rgb", height=8, width=8)
    assert len(recordings.read(str(root), RecordedConfig(), sight, tmp_path).demos) == 2 and not [
        p for p in check(root) if p.severity == "error"]
