"""Strips of what was practised by itself: one of each outcome, of the newest round, wherever it is recorded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from realrl.data.store import Store
from realrl.report.practice import practice_films
from realrl.types import Episode


def episode(policy: str, task: str, seed: int, *, pictures: bool = True) -> Episode:
    zeros = np.zeros(4, np.float32)
    obs = {"state": np.zeros((5, 2), np.float32)} | ({"images.top": np.full((5, 16, 16, 3), 40 + seed, np.uint8)} if pictures else {})
    return Episode(obs, zeros[:, None], zeros[:, None], np.zeros(4, np.uint8), zeros, zeros > 0, np.arange(4) * 0.1, zeros == 0, False,
                   True, task, policy, seed)


def run(folder: Path, *, pictures: bool = True) -> Path:
    """Two rounds of two tasks, the second one's in a data set of its own, practised in turn."""
    lines = []
    outcomes = {"a/push": [(True, True), (False, False), (False, True), (True, True), (True, False)], "b/pull": [(False, False)] * 5}
    for name, task, label in (("dataset", "a/push", "practice-{}"), ("dataset-1", "b/pull", "practice-{}-pool")):
        store = Store.open_or_create(folder / name, task=task, fps=10)
        store.append([episode(label.format(k), task, seed, pictures=pictures) for k in (1, 2) for seed in range(10 * k, 10 * k + 5)])
        for k in (1, 2):
            for i, (success, taken) in enumerate(outcomes[task]):
                lines.append({"task": task, "origin": "practice", "round": k, "policy": f"generalist-{k}", "seed": 10 * k + i, "steps": 4,
                              "success": success, "taken_for_success": taken})
    lines.append({"task": "a/push", "origin": "demonstration", "round": 0, "seed": 0})
    (folder / "lineage.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_of_the_newest_round_one_of_each_outcome(tmp_path: Path) -> None:
    found = practice_films(run(tmp_path))
    assert found is not None and found["round"] == 2 and not found["note"]
    assert [(card["title"], card["facts"][0]) for card in found["cards"]] == [
        ("a/push, seed 20", "succeeded"), ("a/push, seed 21", "failed"), ("a/push, seed 22", "failed, and was taken for a success"),
        ("a/push, seed 24", "succeeded, and was taken for a failure"), ("b/pull, seed 20", "failed")]
    assert all(len(film["pictures"]) == 5 and not film["error"] for card in found["cards"] for film in card["films"])
    assert found["cards"][0]["facts"][1:] == ["4 steps", "by generalist-2"]


def test_where_there_is_nothing_to_show_it_says_so(tmp_path: Path) -> None:
    assert practice_films(tmp_path) is None
    without = practice_films(run(tmp_path / "plain", pictures=False))
    assert without is not None and not without["cards"] and "recorded without pictures" in without["note"]
    for damage in ("[1]\n", "no json\n"):
        (tmp_path / "lineage.jsonl").write_text(damage)
        broken = practice_films(tmp_path)
        assert broken is not None and "cannot be shown" in broken["note"]
