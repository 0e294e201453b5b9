"""The benchmark of practice: a row a method, and its table."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from benchmarks import robocat
from benchmarks.lib import common, practising
from realrl.cell import judge


def test_practice_has_a_row_a_method_and_a_line_of_the_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long: bool) -> None:
    if not long:
        pytest.skip("ten seconds: asked for with --long")
    monkeypatch.setattr(judge, "latency", partial(judge.latency, calls=5, least=1))
    assert robocat.main(["--smoke", "--out", str(tmp_path)]) == 0
    found = common.read_rows(tmp_path / "smoke" / "robocat.jsonl")
    assert {r["method"] for r in found} >= {"fine-tuned-1", "generalist-2", "demonstrations", "simulator", "goal-swapped",
                                            "variety-0", "variety-2", "classifier"}
    assert all(r["success"]["n"] == 3 for r in found if r["method"] != "classifier")
    assert next(r for r in found if r["method"] == "variety-1")["by_task"].keys() == {"obstacle"}
    before = next(r for r in found if r["method"] == "fine-tuned-1")
    good = {**before, "seed": 1, "success": {"rate": 1.0, "low": 0.3, "high": 1.0, "n": 3}}
    audit = {"taken": 5, "true": 6, "failures": 50, "false": 1, "missed": 2, "episodes": 56}
    said = practising.lines([{**before, "success": {**good["success"], "rate": 0.0}}, good,
                             {**found[-1], "method": "classifier", "by_task": {"practice-1 blue": audit}}])
    assert said[0][1:5] == ["the first generalist fine-tuned, before practice", "2", "50.0 % [18.8, 81.2]", "6"]
    assert said[1][3:] == ["1 of 50 failures taken for successes, 2 of 6 successes missed", "56", "precision 80"]
    assert robocat.main(["--smoke", "--out", str(tmp_path)]) == 0, "what is done is not done again"


def test_a_classifier_that_took_nothing_has_no_precision() -> None:
    audit = {"taken": 0, "true": 6, "failures": 50, "false": 0, "missed": 6, "episodes": 56}
    row = {"task": "toys", "sweep": "base", "seed": 0, "method": "classifier", "by_task": {"practice-1 blue": audit}}
    (line,) = practising.lines([row])
    assert line[-1] == "took nothing"


def test_every_stage_of_a_run_of_several_rounds_has_its_line() -> None:
    """What came after the second round was judged and written nowhere."""
    cfg = robocat.swept(robocat.BASE, robocat.SWEEPS["rounds-3"])
    assert cfg.rounds == 3
    stages = {*(f"generalist-{k}" for k in range(2, 5)), *(f"variety-{k}" for k in range(5)), "fine-tuned-1", "fine-tuned-4",
              "goal-alone", "text-alone", "goal-swapped", *cfg.compare} - {"fine-tuned"}
    assert stages <= practising.METHODS.keys()
    assert len(set(practising.METHODS.values())) == len(practising.METHODS)
