"""What an update of a dreamer costs is measured, here of this project's alone: its peer is somebody's checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import dream_speed
from benchmarks.lib import dream_costs
from benchmarks.lib.common import read_rows

pytestmark = pytest.mark.slow


def test_an_update_and_its_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"--who realrl --sizes small --actors through --rounds 2 --units 1 --code {tmp_path} --out {tmp_path}/rows.jsonl".split()
    assert dream_speed.main(words) == 0
    (row,) = read_rows(tmp_path / "rows.jsonl")
    parts = row["parts_ms"]
    assert set(parts) == {"draw", "model", "behaviour", "backward", "optimiser"} and min(parts.values()) > 0
    assert row["cpu_ms"] / 3 < sum(parts.values()) < 3 * row["cpu_ms"], "together they are an update"
    assert "times" not in row and f"{row['wall_ms']:.1f} ms by the clock" in capsys.readouterr().out
    (line,) = dream_costs.lines([row])
    assert len(line) == len(dream_costs.HEAD) and line[:3] == [
        "cpu, small: 16 x 32, 128 and 128 wide, 16 x 8", "gradients through the dream", "realrl"] and "-" not in line[5]
    (line,) = dream_costs.lines([row | {"device": "cuda", "parts_ms": parts | {"model": 0.0}}])
    assert line[5].split("; ")[1] == "-", "what was not told apart is not said to cost nothing"


def test_a_peer_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"--sizes small --actors reinforce --rounds 1 --units 1 --code {tmp_path} --out {tmp_path}/rows.jsonl".split()
    assert dream_speed.main(words) == 1
    assert "is --code the checkout?" in capsys.readouterr().err and not (tmp_path / "rows.jsonl").exists()
