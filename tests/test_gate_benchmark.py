"""What foretells an offline candidate: the rules and their tables on made-up walks, and the study itself on a toy run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.lib import common, gates
from benchmarks.studies import gate as study
from benchmarks.studies import offline_products
from realrl.run import Run
from toy_runs import through, tiny

FLAT = dict.fromkeys(gates.SIGNS, 0.0)


def row(task: str, iteration: int, solved: int, number: int = 1, **signs: float) -> dict[str, Any]:
    return {"task": task, "seed": 0, "round": number, "base": "re-imitated", "iteration": iteration,
            "ended": "1" * solved + "0" * (10 - solved), "signs": {**FLAT, **signs} if iteration >= 0 else {}}


def made_up() -> list[dict[str, Any]]:
    """Three tasks whose candidates rise to a drift of 0.1 and fall beyond it, by 0.01 more or less each; the model always sees a gain."""
    rows = []
    for i, task in enumerate(("a", "b", "c")):
        rows += [row(task, -1, 4), row(task, 0, 5), row(task, 2, 7, drift=0.05 + 0.01 * i, returns=0.1),
                 row(task, 4, 8, drift=0.1 + 0.01 * i, returns=0.2), row(task, 6, 2, drift=0.2 + 0.01 * i, returns=0.3)]
    return rows


def test_walks_are_read_in_their_order_and_only_when_they_are_done() -> None:
    rows = made_up()
    (first, *_, last) = gates.walks([rows[1], rows[4], rows[3], rows[2], rows[0], *rows[5:]])
    assert (first.task, last.task) == ("a", "c") and [s.iteration for s in first.steps] == [2, 4, 6] and first.first.iteration == 0
    assert [first.change(s) for s in first.steps] == pytest.approx([20, 30, -30]) and first.began.sum() == 4
    assert gates.walks(rows[1:5]) == [], "its last row is missing"


def test_a_limit_that_was_chosen_on_other_tasks_stops_before_the_fall() -> None:
    found = gates.walks(made_up())
    by_drift = gates.chosen(found, lambda others: gates.fitted("drift", others))
    assert [s.iteration for s in by_drift] == [4, 4, 4]
    assert [s.iteration for s in gates.chosen(found, lambda others: gates.highest("returns"))] == [6, 6, 6]
    told = gates.judged(found, by_drift)
    assert told == ["+30.0 [+30.0, +30.0]", "0 of 3", "+30.0"]
    assert gates.correlation(found, "returns").startswith("-") and gates.correlation(found, "drift").startswith("+")
    assert gates.until("drift", 0.01)(found[0]) is found[0].first, "a first candidate past the limit: no RL"


def test_no_task_chooses_its_own_limit() -> None:
    """On the third task candidates fall where the others rise; it gets the others' limit all the same."""
    rows = [r if r["task"] != "c" or r["iteration"] < 2 else {**r, "ended": "0" * 10} for r in made_up()]
    *_, third = gates.chosen(gates.walks(rows), lambda others: gates.fitted("drift", others))
    assert third.iteration == 4


def test_ridge_foresees_what_hangs_on_two_signs() -> None:
    rng, rows = np.random.default_rng(0), []
    for task in "abcdef":
        rows += [row(task, -1, 5), row(task, 0, 5)]
        for i in (2, 4, 6, 8):
            a, b = rng.normal(size=2)
            rows.append(row(task, i, int(np.clip(5 + 3 * a - 2 * b, 0, 10)), returns=a, drift=b))
    found = gates.walks(rows)
    change = [w.change(s) for w, s in zip(found, gates.chosen(found, gates.foreseen), strict=True)]
    best = [max(0, *(w.change(s) for s in w.steps)) for w in found]
    assert np.mean(change) > 0.7 * np.mean(best)


def test_tables() -> None:
    rows = made_up()
    assert gates.walked_lines(rows)[0] == ["a", "1", "40 %", "re-imitated", "50 %", "70 (0.05)", "80 (0.10)", "20 (0.20)", "-", "-", "0.00",
                                           "0.00"]
    lines = {line[0]: line[1:] for line in gates.ruled_lines(rows)}
    assert lines["no RL"][1:] == ["+0.0 [+0.0, +0.0]", "0 of 3", "+0.0"]
    assert lines["nothing: all ten iterations"][1:3] == ["-30.0 [-30.0, -30.0]", "3 of 3"]
    assert lines["(the best candidate, known afterwards)"][1].startswith("+30.0")
    assert all(len(line) == len(gates.RULED) - 1 for line in lines.values()) and gates.ruled_lines(rows[:5]) == []


def product(task: str, before: str, ended: str, **signs: float) -> dict[str, Any]:
    return {"task": task, "seed": 0, "round": 1, "product": "RL", "before": before, "ended": ended, "signs": {"returns": 0.0, **signs}}


def test_products_are_ranked_by_their_own_trials() -> None:
    rows = [product("a", "1100", "1110", returns=0.2, drift=0.1), product("b", "1111", "1000", returns=-0.1),
            product("c", "10", "101", returns=0.1)]
    assert [gates.gained(r) for r in rows] == [25, -75, 0], "start by start; what one of them was not tried from does not count"
    assert [line[0] for line in gates.produced_lines(rows)] == ["b", "c", "a"]
    assert gates.produced_lines(rows)[0] == ["b", "1", "RL", "100 %", "25 %", "-0.10", "-", "-", "-", "-"]
    (name, rank, count), *others = gates.foretold_lines(rows)
    assert (name, count) == ("gain of the discounted return in the model", "3") and rank.startswith("+1.00") and not others
    assert gates.foretold_lines(rows[:2]) == [], "two tasks rank nothing"


@pytest.mark.slow
def test_a_round_is_walked_on_past_its_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "all" / "toy-obstacle-s0-defaults"
    through(folder, tiny(stages=("imitation", "offline"), audit_episodes=0))
    monkeypatch.setattr(study, "ITERATIONS", 4)
    words = ["--out", str(tmp_path), "--results", str(tmp_path / "gate.jsonl"), "--starts", "6"]
    assert study.main(words) == 0
    rows = common.read_rows(tmp_path / "gate.jsonl")
    assert [(r["round"], r["iteration"], r["against"]) for r in rows] == [(1, 0, -1), (1, 2, 0), (1, 4, 0), (1, -1, None)]
    assert all(len(r["ended"]) == 6 for r in rows) and all(set(r["signs"]) >= set(gates.SIGNS) for r in rows[:3])
    with Run(folder, resume=True) as run:
        judged = run.read("offline-1-candidates")[1]["judged"]["records"]
    said = {int(r["iteration"]): r["ope_returns"] for r in judged}
    assert rows[0]["signs"]["returns"] == pytest.approx(said[0] - said[-1], abs=1e-5), "fitted anew, it says what the run's gate said"
    assert study.main([*words, "--base", "began", "--rounds", "1"]) == 0
    other = common.read_rows(tmp_path / "gate.jsonl")[len(rows):]
    assert [(r["base"], r["iteration"], r["against"]) for r in other] == [
        ("began", 0, 0), ("began", 2, 0), ("began", 4, 0), ("began", -1, None)]
    assert other[0]["ended"] == other[-1]["ended"] == rows[-1]["ended"] and other[0]["signs"]["drift"] == other[0]["signs"]["kl"] == 0
    rows += other
    assert study.main(words) == 0 and common.read_rows(tmp_path / "gate.jsonl") == rows, "nothing is judged twice"
    words = ["--out", str(tmp_path), "--results", str(tmp_path / "products.jsonl")]
    assert offline_products.main(words) == 0
    tried = [r for r in through(folder, tiny(stages=("imitation", "offline"), audit_episodes=0))["decisions"].values() if "trials" in r]
    found = common.read_rows(tmp_path / "products.jsonl")
    assert len(found) == len(tried) and {(len(r["before"]), len(r["ended"])) for r in found} <= {(10, 10)}
    for line, r in zip(tried, found, strict=True):
        assert f"{10 * r['ended'].count('1')} % of 10 trials against {10 * r['before'].count('1')} %" in line
        assert {"returns", "success", "amq", "value_explained", "model_r2", "model_error"} <= r["signs"].keys()
    for main in (study.main, offline_products.main):
        with pytest.raises(SystemExit):
            main(["--out", str(tmp_path / "nothing")])
