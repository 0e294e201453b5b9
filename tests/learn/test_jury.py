"""Who says what succeeded: the share of failures that is promised, from few of them, and what nobody has shown yet."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from realrl.learn.classifier import Classifier, ClassifierConfig
from realrl.learn.jury import Jury
from realrl.types import Episode

CFG = ClassifierConfig(frames=1, steps=60, lr=3e-3, hidden=(16,), batch=32)


def episode(steps: int, succeeded: bool, seed: int = 0, *, shows: bool | None = None, odd: float = 0.0, near: float = 0.0) -> Episode:
    """It shows success in its last frame by a 1 in its first number (failures: by what comes `near` it), whether it succeeded or not. odd:
    the first number of the frame before that, beside everything else."""
    state = np.random.default_rng(seed).normal(0, 0.1, (steps + 1, 2)).astype(np.float32)
    state[-1, 0] += near if not (succeeded if shows is None else shows) else 1
    state[-2, 0] += odd
    zeros = np.zeros(steps, np.float32)
    success = np.arange(steps) == (steps - 1 if succeeded else -1)
    return Episode({"state": state}, zeros[:, None], zeros[:, None], np.zeros(steps, np.uint8), zeros, success, zeros, zeros.astype(bool),
                   succeeded, not succeeded, "t", "p", seed)


def jury(shown: list[Episode], false: float = 0.02) -> Jury:
    return Jury(CFG, [episode(6, True, i) for i in range(6)], shown, false=false, seed=0)


def test_it_keeps_to_its_false_positives_and_is_audited_on_what_it_has_not_seen() -> None:
    shown = [episode(6, i % 2 == 0, 100 + i) for i in range(30)]
    rest = [episode(6, i % 2 == 0, 200 + i, shows=i % 2 == 0 or i == 1) for i in range(30)]
    asked = jury(shown)
    said = [asked.sees(e) for e in rest]
    found = asked.audit(rest, said)
    assert said[1], "a failure that looks like a success is taken for one, and the audit says so"
    assert found["episodes"] == 30 and found["true"] == found["failures"] == found["heard"] == 15 and found["false"] >= 1
    assert found["missed"] <= 5 and found["precision"] == pytest.approx((found["taken"] - found["false"]) / found["taken"])
    blind = jury([episode(6, i % 2 == 0, 100 + i, shows=True) for i in range(30)])
    assert sum(blind.sees(episode(6, False, 300 + i, shows=True)) for i in range(20)) <= 4, "where nothing tells, hardly any is believed"


def test_its_threshold_is_the_share_that_is_allowed() -> None:
    good = [episode(6, True, 100 + i) for i in range(20)]
    bad = [episode(6, False, 200 + i, near=0.5 + 0.02 * i) for i in range(24)]
    strict, loose = jury([*good, *bad]), jury([*good, *bad], false=0.2)
    scores = sorted(strict._score(strict.members[(20 + i) % 5].logits(strict.frames(e)).numpy(), strict.frames(e))
                    for i, e in enumerate(bad))
    assert strict.heard == loose.heard == 24
    assert strict.threshold == max(0.0, scores[-1]), "2 % of 24 are none"
    assert loose.threshold == max(0.0, scores[-5]), "a fifth of these and the next one"
    assert jury([*good, bad[0]]).heard == 1 and jury(good).threshold == 0.0, "of none nothing is known but what is likelier"
    assert not jury(good).sees(episode(6, False, 300))


def test_what_is_unlike_every_success_is_none() -> None:
    """Far beyond all that it was fitted to a network is surer than anywhere: a thing that was flung from the table."""
    shown = [episode(6, i % 2 == 0, 100 + i) for i in range(40)]
    asked = jury(shown)
    flung = [episode(6, False, 300 + i, odd=9.0) for i in range(10)]
    frames = [asked.frames(e) for e in flung]
    assert all(model.logits(f).max() > asked.threshold for model in asked.members for f in frames), "alone they would say so"
    warned = jury([*shown, *flung])
    assert warned.threshold < 3 and not any(warned.sees(e) for e in flung), "nor does it make others suspect"
    assert not any(asked.sees(e) for e in flung)
    assert sum(asked.sees(episode(6, True, 400 + i)) for i in range(20)) >= 16


def test_where_there_is_nothing_to_tell_apart_it_sees_nothing() -> None:
    """All frames of one kind ended in a traceback, after the practice."""
    asked = Jury(CFG, [episode(1, True, i) for i in range(4)], [episode(1, True, 9)], false=0.02, seed=0)
    said = [asked.sees(episode(1, True, 10)), asked.sees(episode(5, False, 11))]
    assert said == [False, False] and asked.audit([episode(1, True, 10)], said[:1])["threshold"] is None
    lone = Jury(CFG, [episode(1, True, i) for i in range(4)], [episode(5, False, 9), episode(1, True, 10)], false=0.02, seed=0)
    assert not lone.sees(episode(1, True, 11)), "one of them never saw a failure"
    none = Jury(CFG, [episode(5, True, i) for i in range(4)], [episode(5, False, 10 + i) for i in range(6)], false=0.02, seed=0)
    assert none.heard == 6 and np.isfinite(none.threshold), "practice that failed throughout: only demonstrations show success"


def test_a_state_s_numbers_are_not_left_out() -> None:
    model = Classifier({"state": (4,)}, ClassifierConfig(dropout=0.9, hidden=(8, 8))).train()
    x = torch.randn(5, 4)
    assert torch.equal(model.net[0](x), x), "one of them may be all that tells"
    assert (model.net[4](torch.ones(64, 8)) == 0).any(), "the layers above do without some"
