"""The benchmark on people's recordings, at toy size: every part runs, stops where it is done, and fills its table."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import human
from benchmarks.lib import common, tables


def test_the_parts_run_once_and_fill_the_table(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gym_pusht")
    words = ["--smoke", "--data", str(shared_data), "--out", str(tmp_path), "--seeds", "0", "--parts", "images", "reachy", "pusht"]
    assert human.main(words) == 0
    rows = common.read_rows(tmp_path / "smoke" / "human.jsonl")
    assert [r["what"] for r in rows] == ["pusht images"] * 3 + ["reachy"] + ["pusht"] * 3
    people = rows[4]
    assert 0.7 < people["coverage"]["mean"] < 0.95 and people["replay_px"]["largest"] < 0.01
    assert rows[0]["mean_error_of_255"] == 0 and rows[3]["loss"] < rows[3]["loss_before"]
    assert rows[1]["loss"] != rows[1]["loss_before"] and 0 < rows[1]["coverage"]["mean"] < 1
    text = tables.human_table(rows)
    assert "people, as recorded" in text and "imitation, exploring, seed 0" in text and "0.91 - 0.95" in text and tables.NOT_RUN in text
    capsys.readouterr()
    assert human.main(words) == 0 and "--" not in capsys.readouterr().out


def test_what_is_absent_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert human.main(["--smoke", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--parts", "door"]) == 1
    assert "door_human.npz is absent" in capsys.readouterr().err
