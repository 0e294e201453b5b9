"""The benchmark beside others' code: our side of it, its turns and its tables."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest

from benchmarks import peers
from benchmarks.lib import beside, common, our_turns
from benchmarks.lib.turns import Child
from realrl.data.store import Store
from realrl.run import Run
from realrl.types import RealrlError


@pytest.mark.parametrize("recorded", [True, False])
def test_a_round_of_ours_says_what_collection_took(tmp_path: Path, recorded: bool) -> None:
    cfg = our_turns.settings({"task": "toy/line", "threads": 1, "episodes": 3})
    with Run.start(tmp_path / "run", cfg) as run, our_turns.Timed(run, cfg) as cell:
        cell.recorded = recorded
        work, about = our_turns.online(cfg, cell)
        said = work(1)
        assert said is not None and min(said["collect"].values()) > 0 and said["epochs"] <= about["epochs"] == 5
        assert said["steps"] == (cell.book.frames if recorded else said["steps"]) > 3
        assert len(Store.open(tmp_path / "run" / "dataset")) == (3 if recorded else 0), "what made the environments is not recorded"


def test_our_side_alone_has_its_rows_and_says_who_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "peers.jsonl"
    words = ["--contests", "imitation", "plan", "--rounds", "1", "--fits", "1", "--calls", "8", "--out", str(out)]
    assert peers.main(words) == 0
    told = capsys.readouterr().err.splitlines()
    assert told == [f"{name}: nobody to compare with, give --lerobot PYTHON" for name in ("imitation", "plan")]
    fit, ten, one = rows = common.read_rows(out)
    assert (fit["what"], fit["who"], fit["threads"]) == ("imitation", "realrl", 1) and fit["cpu_ms"] > 0 and fit["parameters"] > 4e6
    assert (ten["who"], one["who"]) == ("10 steps, realrl", "one step, realrl") and ten["parameters"] == one["parameters"]
    assert [line[4:6] for line in beside.imitation(rows) + beside.plan(rows)] == [["-", "-"]] * 3
    assert beside.online(rows) == []


def test_turns_alternate_and_a_dead_contestant_is_named(tmp_path: Path) -> None:
    child = tmp_path / "child.py"
    child.write_text(f"import sys, time\nsys.path.insert(0, {str(peers.LIB)!r})\nfrom turns import serve\n"
                     "def work(n):\n    if n > 5: sys.exit(3)\n    time.sleep(0.05 * n)\n    return {'at': time.monotonic()}\n"
                     "print('a line that is no answer')\nserve(work, {'who': sys.argv[1]})\n")
    make = partial(Child, threads=1, own=False, mend="mend it")
    first, second = found = peers.race([(who, partial(make, [sys.executable, str(child), who])) for who in "ab"], 2, 2)
    assert [c.child.about["who"] for c in found] == ["a", "b"] and all(t["wall"] > 0.09 for c in found for t in c.spent)
    assert first.spent[0]["at"] < second.spent[0]["at"] < second.spent[1]["at"] < first.spent[1]["at"], "the order is reversed"
    with pytest.raises(RealrlError, match="c: its process ended, see above; mend it"):
        peers.race([("c", partial(make, [sys.executable, str(child), "c"]))], 6, 1)


def test_costs_are_told_apart_and_compared() -> None:
    turn = {"steps": 1000, "cpu": 3.0, "wall": 6.0, "collect": {"cpu": 1.0, "wall": 2.0}}
    found = peers.milliseconds([turn, {**turn, "cpu": 5.0}])
    assert found["cpu"] == {"all": [3.0, 5.0], "collect": [1.0, 1.0], "update": [2.0, 4.0]} and found["wall"]["update"] == [4.0, 4.0]
    half = {clock: {part: 0.5 for part in beside.PARTS} for clock in ("cpu", "wall")}
    row = {"what": "online", "who": "DPPO", "threads": 1, "cpu_ms": half["cpu"], "wall_ms": half["wall"], "parameters": 2_000_000,
           "steps": 8000, "envs": 50, "denoising": 20, "learned": 10, "epochs": 10, "minibatch": 10_000,
           "times realrl": half, "times realrl, not recorded": {"cpu": {**half["cpu"], "collect": 0.75}, "wall": half["wall"]}}
    (line,) = beside.online([row])
    assert line[6:10] == ["**0.50**", "0.50", "0.50, 0.75", "0.50"] and len(line) == len(beside.ONLINE)
    assert line[-1] == "8,000 steps of 50 environments, 20 denoising steps, 10 of them learn, 10 epochs, minibatches of 10,000"
