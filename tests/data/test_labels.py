"""How episodes ended: what is unknown stays so, other people's words for it are understood, and what a person says counts most."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recordings import digest, episode, errors, tree

from realrl.data import labels, schema, side, tables
from realrl.data.formats import common, diffusion_policy, minari, open_dataset, robomimic, sandbox
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
    order = {"frame_index": [4, 0, 1, 2, 3] * 2, "next.success": [True, False, False, False, False] * 2}
    folder = foreign(tmp_path / "f", {})
    path = next((folder / "data").rglob("*.parquet"))
    table, info = pq.read_table(path), json.loads((folder / "meta/info.json").read_text())
    pq.write_table(table.drop_columns(["frame_index"]).append_column("frame_index", pa.array(order["frame_index"])).append_column(
        "next.success", pa.array(order["next.success"])), path)
    info["features"]["next.success"] = {"dtype": "bool", "shape": [1], "names": None}
    (folder / "meta/info.json").write_text(json.dumps(info))
    assert ended(folder) == outcomes(folder) == [True, True], "the last frame need not lie last"
    frames = [np.nan] * 5 + [0.0] * 4 + [1.0]
    assert ended(foreign(tmp_path / "e", {}, {"is_success": frames})) == outcomes(tmp_path / "e") == [None, True]
    assert [e.success.sum() for e in Store.open(tmp_path / "a").read()] == [1, 0], "said of the episode, true of its end"
    edit.trim(tmp_path / "a", tmp_path / "short", after_success=True, start=1)
    assert [len(e) for e in Store.open(tmp_path / "short").read()] == [4, 4]
    next((tmp_path / "a/data").rglob("*.parquet")).write_bytes(b"x")
    assert outcomes(tmp_path / "a") == [None, None], "what is damaged is told by check"


# ---- what a person says


def give(folder: Path, chosen: dict[int, str], how: str = "by hand", version: int | None = None) -> int:
    return labels.give(folder, Store.open(folder).rows, chosen, how, version)


def test_a_label_counts_more_than_the_recording_and_leaves_it_alone(tmp_path: Path) -> None:
    folder = mixed(tmp_path / "d")
    before, reader = tree(folder), Store.open(folder)
    was = reader.read()
    assert give(folder, {0: "success", 1: "failure", 2: "success"}) == 1 and give(folder, {5: "failure", 2: "unknown"}, "a rule") == 2
    assert ended(folder) == outcomes(folder) == [True, False, None, None, None, False]
    assert [e.succeeded for e in reader.read([0, 1])] == [True, False], "who has it open sees it, too"
    assert {k: v for k, v in tree(folder).items() if not k.startswith("derived/")} == before
    kept = labels.read(folder, reader.rows)
    assert kept["how"] == ["by hand", "by hand", "a rule", None, None, "a rule"] and all(kept["by"][:3]) and kept["at"][3] is None
    about = describe(folder)
    assert about["outcomes"] == {"success": 1, "failure": 2, "unknown": 3} and about["labels"] == {"success": 1, "failure": 2, "unknown": 1}
    reader.labels.heeded = False
    assert [digest(e) for e in reader.read()] == [digest(e) for e in was]
    reader.append([episode(7)])
    assert ended(folder)[-2:] == [False, False] and len(labels.read(folder, reader.rows)["label"]) == 7


def test_what_a_label_means_for_learning(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "d", task="task 0", fps=20)
    made = [unknown(1), unknown(2), episode(4), episode(6), episode(8)]
    made[0].reward[:] = 0
    made[3].reward[:] = made[3].success  # sparse: paid for what the sensor took for a success
    store.append(made)
    give(store.dir, {0: "success", 1: "success", 2: "failure", 3: "failure", 4: "unknown"})
    none, dense, kept, undone, open_ = store.read()
    assert none.reward.tolist() == [0] * (len(none) - 1) + [1] and (none.terminated, none.truncated, none.success.sum()) == (True, False, 1)
    assert dense.succeeded and dense.terminated and (dense.reward == made[1].reward).all()
    assert (kept.reward == made[2].reward).all() and kept.failed and (kept.terminated, kept.truncated) == (False, True)
    assert not undone.reward.any() and undone.failed and not undone.success.any()
    assert not open_.judged and not open_.success.any() and open_.truncated


def test_labels_follow_edits_compaction_and_repair(tmp_path: Path) -> None:
    folder, other = mixed(tmp_path / "d", per_append=1), mixed(tmp_path / "other")
    give(folder, {0: "success", 3: "failure", 5: "unknown"})
    assert edit.delete_episodes(folder, tmp_path / "less", [1]).notes == []
    assert ended(tmp_path / "less") == [True, False, False, None, None]
    edit.trim(folder, tmp_path / "cut", end=2)
    assert ended(tmp_path / "cut")[0] is True and ended(tmp_path / "cut")[3] is False
    assert edit.merge([other, folder], tmp_path / "all").notes == [], "one of them has no labels"
    assert ended(tmp_path / "all") == [*ended(other), *ended(folder)] == [*ended(other), True, True, False, False, None, None]
    wanted = ended(folder)
    Store.open(folder).compact()
    assert ended(folder) == wanted
    (folder / "meta/info.json").write_text((folder / "meta/info.json").read_text().replace('"total_episodes": 6', '"total_episodes": 5'))
    repair(folder)
    assert ended(folder) == wanted and errors(folder) == []


def test_labels_survive_a_repair_that_lost_rows(tmp_path: Path) -> None:
    folder = mixed(tmp_path / "d", per_append=1)
    give(folder, {0: "success", 4: "failure", 5: "success"})
    sorted((folder / "data").rglob("*.parquet"))[1].write_bytes(b"x")  # episode 1 is lost
    sorted((folder / "meta/episodes").rglob("*.parquet"))[-1].unlink()  # and the rows of some others
    done = repair(folder)
    assert list(done.lost) == [1] and ended(folder) == [True, False, None, False, True]


def test_labels_that_are_damaged_or_of_others_are_one_line(tmp_path: Path) -> None:
    folder = mixed(tmp_path / "d")
    give(folder, {0: "success"})
    path = folder / "derived/labels/v1.parquet"
    whole = path.read_bytes()
    for cut in (0, 50, len(whole) - 3):
        path.write_bytes(whole[:cut])
        for call in (Store.open(folder).read, lambda: describe(folder), lambda: outcomes(folder), lambda: give(folder, {1: "failure"})):
            with pytest.raises(RealrlError, match=r"v1\.parquet .*set it aside") as caught:
                call()
            assert "\n" not in str(caught.value)
    assert len(errors(folder)) == 1 and "labels/v1.parquet" in errors(folder)[0]
    path.write_bytes(whole)
    assert errors(folder) == []
    shutil.copytree(folder / "derived", mixed(tmp_path / "less", per_append=6) / "derived")
    assert ended(tmp_path / "less")[0] is True, "the same episodes in other files"
    shutil.copytree(folder / "derived", foreign(tmp_path / "others", {}) / "derived")
    with pytest.raises(RealrlError, match=r"computed from other episodes .*set it aside"):
        Store.open(tmp_path / "others").read()
    side.write(folder, "labels", {"label": np.array(["fine"] * 6)})
    with pytest.raises(RealrlError, match="holds no labels of episodes"):
        Store.open(folder).read()


def test_a_session_goes_on_in_its_version_unless_somebody_else_labelled(tmp_path: Path) -> None:
    folder = mixed(tmp_path / "d")
    mine = give(folder, {0: "success"})
    assert give(folder, {1: "failure"}, version=mine) == mine == 1
    theirs = give(folder, {2: "success"})
    assert give(folder, {3: "success"}, version=mine) == 3 and theirs == 2 and side.versions(folder, "labels") == [1, 2, 3]
    assert ended(folder) == [True, False, True, True, None, None]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = mixed(tmp_path / "d")

    def refused(self: Path, *_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(RealrlError, match=r"derived could not be written \(Read-only file system\).*label a copy"):
        give(folder, {0: "success"})


def legacy(folder: Path) -> Path:
    """Three episodes in LeRobot's version 2.1; the second one's success is told in its line."""
    rows = [{"episode_index": i, "tasks": ["move"], "length": 4} for i in range(3)]
    rows[1]["episode_success"] = "failure"
    info = {"codebase_version": "v2.1", "robot_type": "arm", "fps": 10, "chunks_size": 1000,
            "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            "features": {"observation.state": {"dtype": "float32", "shape": [2]}, "action": {"dtype": "float32", "shape": [2]}}}
    (folder / "meta").mkdir(parents=True)
    (folder / "data/chunk-000").mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(info))
    (folder / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "move"}\n')
    x = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(8, dtype=np.float32)), 2)
    for i in range(3):
        pq.write_table(pa.table({"observation.state": x, "action": x}), folder / f"data/chunk-000/episode_{i:06d}.parquet")
    return folder


def test_version_2_is_labelled_where_it_lies(tmp_path: Path) -> None:
    found = open_dataset(legacy(tmp_path / "old"))
    assert [e.succeeded if e.judged else None for e in found.read()] == [None, False, None]
    labels.give(found.dir, found.labels.rows(), {0: "success", 1: "unknown"}, "by hand")
    assert [e.succeeded if e.judged else None for e in open_dataset(found.dir).read()] == [True, None, None]
    assert found.read([0])[0].reward.tolist() == [0, 0, 0, 1]
