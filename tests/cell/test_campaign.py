"""The judge of faults: what it calls unsafe is, and a few real faults go through it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import faults
from benchmarks.lib.common import read_rows
from realrl.cell.campaign import Trial, _names, campaign, table, unsafe
from realrl.cell.faults import Rig
from realrl.robots.driver import Channel
from realrl.robots.log import Tick

LIMITS = (Channel("x", "m", "pose", 0.0, 1.0, 0.5, 5.0, 200.0),)


def ticks(places: np.ndarray, dt: float = 0.01) -> list[Tick]:
    return [Tick(i * dt, 0.0, "armed", [], [], [float(x)], [0, 0], i) for i, x in enumerate(places)]


def test_a_command_beyond_a_limit_is_counted() -> None:
    t = np.arange(200) * 0.01
    calm = 0.5 + 0.1 * np.sin(t)
    assert unsafe(ticks(calm), LIMITS) == 0
    assert unsafe(ticks(calm + 0.6), LIMITS) > 0  # place
    assert unsafe(ticks(0.2 + 0.51 * t[:100]), LIMITS) > 0  # speed
    assert unsafe(ticks(0.5 + 0.02 * np.sin(20 * t)), LIMITS) > 0  # acceleration
    jumped = calm.copy()
    jumped[100:] += 2e-4
    assert unsafe(ticks(jumped), LIMITS) > 0  # jerk


def test_a_fault_has_to_be_called_by_its_name_first() -> None:
    assert _names("somebody pressed stop: preflight: x is asked: x moves the other way; y is 4", ("y", "x")) and _names("hot drives", ())
    assert not _names("preflight: y is 4, recorded was 0; x is asked: x moves the other way", ("x",))
    assert not _names("preflight: the index is 4", ("x",))


def test_the_table_counts() -> None:
    rows = table([Trial(1, "a", 0.1, True, False, 0), Trial(1, "a", 0.3, False, True, 2), Trial(2, "b", None, True, False, 0)])
    assert rows[0] == {"number": 1, "fault": "a", "times": 2, "median_ms": 200.0, "most_ms": 300.0, "right": 1, "unsafe": 2, "lost": 1}
    assert rows[1]["median_ms"] is None


@pytest.mark.slow
def test_some_faults_on_a_simulated_robot_in_a_process_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("websockets")
    rig = Rig("arm/panda-reach", tmp_path)
    try:
        trials = list(campaign(rig, 1, only=(3, 11, 13, 17)))
    finally:
        rig.close()
    assert len(trials) == 4 and all(t.reacted and not t.unsafe and not t.lost for t in trials), trials


def test_rounds_beside_one_another_and_the_logs_of_what_went_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No wrong reaction can be ordered of a server that reacts rightly, so the trials are made up; the bookkeeping is the script's.
    """
    class Served:
        def __init__(self, task: str, folder: Path, cameras: list[str]) -> None:
            (folder / "log").mkdir()

        def close(self) -> None:
            pass

    monkeypatch.setattr(faults, "Rig", Served)
    monkeypatch.setattr(faults, "RESULTS", tmp_path)
    monkeypatch.setattr(faults, "campaign", lambda rig, times, only, first: [Trial(9, "hand-back", 0.1, first != 3, first == 3, 0)])
    for words in (["--first", "2", "--times", "4"], ["--times", "3"]):
        monkeypatch.setattr("sys.argv", ["faults", *words, "--keep", str(tmp_path / "kept")])
        faults.main()
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["round-3"] and (tmp_path / "kept" / "round-3" / "log").is_dir()
    rows = read_rows(tmp_path / "faults.jsonl")
    assert sorted(row["round"] for row in rows) == [0, 1, 2, 3], "a round is made once, whoever makes it"
    assert faults.lines(rows) == [["arm/panda-pick", "9: hand-back", "4", "100.0", "100.0", "3 of 4", "0", "1"]]
