"""How episodes ended: what is unknown stays so, other people's words for it are understood, and what a person says counts most."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recordings import digest, episode, errors

from realrl.data import labels, schema, tables
from realrl.data.formats import common, diffusion_policy, minari, robomimic, sandbox
from realrl.data.store import Store
from realrl.data.tools import edit
from realrl.data.tools.check import describe
from realrl.data.tools.repair import repair
from realrl.learn.imitation import worthy
from realrl.report.view.clips import recorded
from realrl.report.view.page import write_set
from realrl.types import Episode, RealrlError, Source


def unknown(number: int, **changes: Any) -> Episode:
    """An episode of which nothing says how it ended."""
    made = episode(number, **changes)
    made.success[:], made.judged, made.terminated, made.truncated = False, False, False, True
    return made


def mixed(folder: Path, *, per_append: int = 2) -> Path:
    """Success, failure and four of which nothing is known."""
    store = Store.create(folder, task="task 0", fps=20, robot_type="arm")
    made = [unknown(5), episode(0), episode(1), unknown(2), unknown(3), unknown(4)]
    for i in range(0, len(made), per_append):
        store.append(made[i:i + per_append])
    return folder


def ended(folder: Path) -> list[bool | None]:
    """What a reader gets: True, False, None for unknown."""
    return [e.succeeded if e.judged else None for e in Store.open(folder).read()]


def outcomes(folder: Path) -> list[bool | None]:
    store = Store.open(folder)
    return labels.outcomes(folder, store.info, store.rows)


def foreign(folder: Path, told: dict[str, list[Any]], frames: dict[str, list[Any]] | None = None, n: int = 5) -> Path:
    """A dataset as LeRobot leaves it: two episodes, `told` in their rows, `frames` beside the action."""
    store = Store.create(folder, task="task 0", fps=20)
    store.append([episode(i, n) for i in range(2)])
    keep = ["observation.state", "action", "timestamp", "frame_index", "episode_index", "index", "task_index"]
    path = next((folder / "data").rglob("*.parquet"))
    table = pq.ParquetFile(path).read().select(keep)
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"] = {name: info["features"][name] for name in keep}
    for name, values in (frames or {}).items():
        table = table.append_column(name, pa.array(values))
        info["features"][name] = {"dtype": str(np.array(values).dtype), "shape": [1], "names": None}
    pq.write_table(table, path)
    (folder / "meta/info.json").write_text(json.dumps(info))
    path = next((folder / "meta/episodes").rglob("*.parquet"))
    rows = pq.ParquetFile(path).read()
    rows = rows.select([c for c in rows.column_names if c in (*tables.ROW_INDICES, "tasks")])
    for name, values in told.items():
        rows = rows.append_column(name, pa.array(values))
    pq.write_table(rows, path)
    return folder


# ---- unknown stays unknown


def test_what_is_unknown_comes_back_as_such_and_columns_stay_the_same(tmp_path: Path) -> None:
    folder = mixed(tmp_path / "d")
    made = [unknown(5), episode(0), episode(1), unknown(2), unknown(3), unknown(4)]
    assert [digest(e) for e in Store.open(folder).read()] == [digest(e) for e in made]
    wanted = [None, True, False, None, None, None]
    assert ended(folder) == outcomes(folder) == wanted and Store.open(folder).rows["success"].to_pylist() == wanted
    flags = pq.ParquetFile(next((folder / "data").rglob("*.parquet"))).read()["next.success"]
    assert flags.null_count == 0 and flags.type == pa.bool_(), "LeRobot stacks this column as it is"
    assert set(Store.open(folder).info["features"]) == set(schema.features(schema.columns(episode(0), {"observation.state": np.zeros(
        (7, 2), np.float32)}, 20, 0, 0, 0))) and errors(folder) == []
    about = describe(folder)
    assert about["outcomes"] == {"success": 1, "failure": 1, "unknown": 4} and about["success_rate"] == 0.5
    nothing = Store.create(tmp_path / "nothing", task="task 0", fps=20, robot_type="arm")
    nothing.append([unknown(1), unknown(2)])
    assert describe(nothing.dir)["success_rate"] is None
    nothing.append([episode(3)])  # a robot that can tell
    assert ended(nothing.dir) == [None, None, False] and describe(nothing.dir)["success_rate"] == 0.0


def test_edits_keep_what_is_unknown(tmp_path: Path) -> None:
    folder = mixed(tmp_path / "d")
    assert {name: part.episodes for name, part in edit.split(folder, tmp_path / "parts", "success").items()} == {
        "success": 1, "failure": 1, "unknown": 4}
    assert edit.delete_episodes(folder, tmp_path / "good", failed=True).episodes == 5
    assert ended(tmp_path / "good") == [None, True, None, None, None]
    edit.trim(folder, tmp_path / "cut", end=1)
    assert ended(tmp_path / "cut") == [None, False, False, None, None, None], "success came in the frame that was cut"
    alone = foreign(tmp_path / "alone", {}, {"next.success": [False] * 5 + [False] * 4 + [True]})
    assert ended(alone) == [False, True]
    other = foreign(tmp_path / "other", {"success": [None, True]}, {"next.success": [False] * 10})
    edit.merge([alone, other], tmp_path / "all")
    assert ended(tmp_path / "all") == outcomes(tmp_path / "all") == [False, True, None, True]
    blank = foreign(tmp_path / "blank", {})
    with pytest.raises(RealrlError, match=r"nothing says which episodes succeeded.*realrl data label"):
        edit.split(blank, tmp_path / "no", "success")


def test_repair_does_not_turn_unknown_into_failed(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    store = Store.create(folder, task="task 0", fps=20)
    for i in range(3):
        store.append([unknown(i)])
    sorted((folder / "meta/episodes").rglob("*.parquet"))[-1].unlink()
    repair(folder)
    assert ended(folder) == [None] * 3


@pytest.mark.parametrize("module", [robomimic, diffusion_policy, minari], ids=lambda m: m.NAME)
def test_exports_and_the_process_between_keep_what_is_unknown(module: Any, tmp_path: Path) -> None:
    made = [unknown(1), unknown(2), episode(0), episode(3)]
    module.write(iter(made), tmp_path / "out-v0", fps=20)
    back = list(module.read(tmp_path / "out-v0").episodes)
    assert [e.judged for e in back] == [False, False, True, True] and [e.succeeded for e in back] == [False, False, True, False]
    assert [sandbox._unpacked({**told, "arrays": {(g, k): x for (g, k, *_), x in zip(told["arrays"], arrays, strict=True)}}).judged
            for told, arrays in map(sandbox._packed, made)] == [False, False, True, True]


def test_formats_that_do_not_say_make_it_unknown() -> None:
    made = common.episode({"state": np.zeros((4, 2))}, np.zeros((4, 1)), fps=10, task="", policy="", source=Source.HUMAN, where="x")
    assert not (made.judged or made.succeeded or made.failed) and common.with_success(made).succeeded and common.with_success(made).judged


def test_pages_say_unknown(tmp_path: Path) -> None:
    found = recorded(mixed(tmp_path / "d"), numbers=[0, 1, 2])
    page = write_set(found, tmp_path / "view")[0].read_text()
    assert "3 episodes: 1 succeeded, 1 failed, 1 unknown." in page and page.count('class="outcome unknown">unknown') == 1
    assert recorded(tmp_path / "d", worst=3).numbers[0] == 2, "the failure is the worst, what is unknown is not"


def test_what_nobody_judged_is_imitated_only_where_nothing_is_known() -> None:
    good, bad, open_, other = episode(0), episode(1), unknown(2), unknown(3)
    assert worthy([good, bad, open_]) == [good]
    for e in (bad, open_, other):
        e.reward[:] = 0
    assert worthy([bad, open_, other]) == [open_, other] and worthy([bad]) == []


# ---- other people's words


@pytest.mark.parametrize(("name", "values", "right"), [
    ("episode_success", ["success", "failure"], [True, False]), ("success", [True, False], [True, False]),
    ("is_success", [1, 0], [True, False]),
    ("success", ["True", "FAILED"], [True, False]), ("succeeded", [1.0, 0.0], [True, False]), ("success", [None, True], [None, True]),
    ("episode_success", [[True], [False]], [True, False]), ("success", ["maybe", "success"], [None, True]),
    ("success", [0.7, 1.0], [None, True])])
def test_success_in_the_rows_of_others(name: str, values: list[Any], right: list[bool | None], tmp_path: Path) -> None:
    folder = foreign(tmp_path / "d", {name: values})
    made = Store.open(folder).read()
    assert ended(folder) == outcomes(folder) == right
    assert [(e.terminated, float(e.reward.sum())) for e in made] == [(g is True, float(g is True)) for g in right], "success ends and pays"
    known = [g for g in right if g is not None]
    assert describe(folder)["success_rate"] == sum(known) / len(known)
    assert [e.success[:-1].any() for e in made] == [False, False]


def test_success_in_every_frame_or_in_none(tmp_path: Path) -> None:
    frames = [True] * 5 + [False] * 5
    assert ended(foreign(tmp_path / "a", {}, {"episode_success": frames})) == outcomes(tmp_path / "a") == [True, False]
    assert ended(foreign(tmp_path / "b", {})) == outcomes(tmp_path / "b") == [None, None]
    assert describe(tmp_path / "b")["success_rate"] is None
    frames = [False] * 4 + [True] * 2 + [False] * 4
    assert ended(foreign(tmp_path / "c", {"success": [None, False]}, {"next.success": frames})) == [True, False]
    next((tmp_path / "a/data").rglob("*.parquet")).write_bytes(b"x")
    assert outcomes(tmp_path / "a") == [None, None], "what is damaged is told by check"


# ---- what a person says
