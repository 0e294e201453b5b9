"""Values over bins, what an episode was worth, what an action was worth, and a fit that stops in time."""

import math

import numpy as np
import pytest
import torch

from realrl.learn.fit import imitate
from realrl.learn.value import BINS, Bins, Value, ValueConfig, ValueFit, advantages, returns, threshold
from realrl.run import Run
from realrl.types import Episode


def episode(steps, success):
    zeros = np.zeros(steps, np.float32)
    return Episode(obs={"state": np.zeros((steps + 1, 2), np.float32)}, action=zeros[:, None], proposed=zeros[:, None],
                   source=zeros.astype(np.uint8), reward=zeros, success=np.arange(steps) == (steps - 1 if success else -1), time=zeros,
                   starts_plan=zeros.astype(bool), terminated=success, truncated=not success, task="t", policy="p", seed=0)


def test_bins():
    assert BINS.nearest(torch.tensor([-1.0, -0.9976, -0.5, 0.0, 3.0])).tolist() == [0, 0, 100, 200, 200]  # v(b) = -1 + b / 200
    some = Bins(-2.0, 2.0, 5)
    assert some.mean(torch.tensor([[0, 0, 0.75, 0.25, 0], [1, 0, 0, 0, 0]]).log()).tolist() == pytest.approx([0.25, -2.0])


def test_what_an_episode_was_worth():
    """Time is cost; a failure costs all there is, in every step of it."""
    assert returns(episode(5, True), 10).tolist() == pytest.approx([-0.4, -0.3, -0.2, -0.1, 0.0])
    assert returns(episode(3, False), 10).tolist() == [-1, -1, -1]
    assert returns(episode(20, True), 10).min() == -1.0


def test_what_an_action_was_worth():
    value, target = np.array([-0.5, -0.5, -0.2, -0.1]), np.array([-0.3, -0.2, -0.1, 0.0])
    assert advantages(value, target, 10, None) == pytest.approx(target - value)
    # two steps of -1/10 and what is there then; past the end the return
    assert advantages(value, target, 10, 2) == pytest.approx([-0.2 - 0.2 + 0.5, -0.2 - 0.1 + 0.5, -0.1 + 0.2, 0.0 + 0.1])
    assert advantages(value, target, 10, 9) == pytest.approx(target - value), "an episode shorter than the look ahead"


def test_the_threshold_leaves_the_share_above_it():
    a = np.random.default_rng(0).normal(size=1000)
    assert (a > threshold(a, 0.3)).mean() == pytest.approx(0.3, abs=0.002)


def data(episodes=30, steps=20, seed=0):
    """A state that says how much is left, and noise."""
    rng = np.random.default_rng(seed)
    left = np.tile(np.arange(steps)[::-1] / steps, episodes)
    x = np.stack([left + rng.normal(0, 0.02, left.shape), rng.normal(size=left.shape)], 1)
    return torch.from_numpy(x).float(), torch.from_numpy(-left).float(), torch.arange(episodes).repeat_interleave(steps)


def test_it_learns_how_far_from_done_a_state_is_and_stops_in_time(tmp_path):
    torch.manual_seed(0)
    x, target, which = data()
    value = Value(ValueConfig(hidden=(32,), steps=300, every=20), 2)
    fit = ValueFit(value, ValueConfig(hidden=(32,), steps=300, lr=3e-3, every=20), x, target, which, seed=0)
    assert set(which[fit.fitted].tolist()).isdisjoint(which[fit.held].tolist()), "whole episodes are held out"
    with Run(tmp_path) as run:
        imitate(run, fit, "value")
    found = fit.quality()
    assert found["spearman"] > 0.9 and found["entropy"] < found["uniform"] - 1 and found["uniform"] == pytest.approx(math.log(201))
    assert found["entropy"] == pytest.approx(fit.best_loss, abs=1e-4), "the best weights, not the last"
    assert found["spearman_within"] > 0.9 and found["success_above_failure"] == 0.5, "none failed"
    said = BINS.mean(value(x))
    assert torch.equal(value.value(x), said.amin(0)) and said.shape == (3, len(x))


def test_who_knows_how_far_it_is_and_who_will_fail_is_told():
    """Two tens of episodes, the later ones failing: a value of the state's first number knows both, its opposite neither."""
    x, target, which = data(20, 5)
    bad = which >= 10
    target = target.masked_fill(bad, -1.0)

    class Says(Value):
        def value(self, x):
            return sign * torch.where(x[:, 1] > 5, -1.0, -x[:, 0])

    x[:, 1] = 10.0 * bad
    fit = ValueFit(Says(ValueConfig(hidden=(8,)), 2), ValueConfig(held_out=0.5), x, target, which, seed=0)
    for sign, within, above in ((1, 0.99, 1.0), (-1, -0.99, 0.0)):
        found = fit.quality()
        assert found["spearman_within"] * sign > within * sign and found["success_above_failure"] == above


@pytest.mark.parametrize("count", [1, 2, 3])
def test_of_few_episodes_one_is_learned_from_however_much_is_held_out(count):
    x, target, which = data(count, 5)
    fit = ValueFit(Value(ValueConfig(hidden=(8,)), 2), ValueConfig(hidden=(8,), held_out=0.9), x, target, which, seed=0)
    assert len(fit.fitted) == 5 and len(fit.held) == 5 * (count - 1) and fit.update()["value_loss"].isfinite()


def test_what_earlier_weights_learned_from_is_never_held_out_and_what_they_did_not_still_is():
    x, target, which = data(20, 5)
    before = {i: i in (3, 7) for i in range(10)}
    fit = ValueFit(Value(ValueConfig(hidden=(8,)), 2), ValueConfig(hidden=(8,), held_out=0.2), x, target, which, seed=0, before=before)
    held = set(which[fit.held].tolist())
    assert held & set(range(10)) == {3, 7} and len(held) == 4, "a fifth of what is new beside them"


def test_a_fit_goes_on_where_it_was():
    x, target, which = data(6, 5)
    cfg = ValueConfig(hidden=(8,), every=2)

    def begun():
        torch.manual_seed(0)
        return ValueFit(Value(cfg, 2), cfg, x, target, which, seed=3)

    straight, first, second = begun(), begun(), begun()
    for _ in range(4):
        straight.update()
    for _ in range(2):
        first.update()
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        second.update()
    straight.finish()
    second.finish()
    assert all(torch.equal(a, b) for a, b in zip(straight.value.parameters(), second.value.parameters(), strict=True))
    assert straight.best_loss == second.best_loss
