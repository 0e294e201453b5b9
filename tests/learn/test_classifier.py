"""A classifier of success: what its audit counts, how its threshold is chosen, what it looks at, when a run believes it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from realrl.learn import classifier
from realrl.learn.classifier import NO, UNLABELLED, YES, Classifier, ClassifierConfig, Labelled, Referee, Share
from realrl.types import Array, Episode, RealrlError, Source

SMALL = ClassifierConfig(hidden=(32,), dropout=0.0, steps=500, batch=64, frames=2)


def approach(seed: int, *, succeeds: bool = True, steps: int = 20) -> Episode:
    """Something comes nearer; solved is below 0.2. It is seen with a little noise."""
    rng = np.random.default_rng(seed)
    way = np.maximum(1.0 - np.arange(steps + 1) / steps * (1.0 if succeeds else 0.7), 0.0)
    state = np.stack([way + rng.normal(0, 0.01, steps + 1), rng.normal(0, 1, steps + 1)], 1).astype(np.float32)
    solved = way[1:] < 0.2
    zeros = np.zeros((steps, 1), np.float32)
    return Episode({"state": state, "privileged": state}, zeros, zeros, np.full(steps, Source.POLICY, np.uint8), solved.astype(np.float32),
                   solved, np.arange(steps) * 0.1, np.ones(steps, bool), False, True, "lab/near", "x", seed)


def labels(episodes: list[Episode]) -> list[Array]:
    return [np.where(e.success, YES, NO).astype(np.int8) for e in episodes]


@pytest.fixture(scope="module")
def fitted() -> tuple[Classifier, classifier.Audit]:
    episodes = [approach(i, succeeds=i % 3 > 0) for i in range(36)]
    return classifier.fit(episodes, labels(episodes), SMALL)


def test_it_learns_what_success_looks_like_and_says_how_well(fitted: tuple[Classifier, classifier.Audit]) -> None:
    model, found = fitted
    assert found.auc > 0.99 and found.false.count / found.false.of < 0.05 and found.missed.count / found.missed.of < 0.2
    assert found.false.of + found.missed.of == 9 * 20, "a quarter of the episodes"
    assert found.roc[0] == (0.0, 0.0) and found.roc[-1] == (1.0, 1.0) and sorted(found.roc) == found.roc
    assert list(model.shapes) == ["state"]
    elsewhere = [approach(100 + i, succeeds=i % 2 > 0) for i in range(20)]
    again = classifier.audit(model, classifier.labelled(model, elsewhere, labels(elsewhere)))
    assert again.auc > 0.99 and again.unseen.count == 0 and again.unseen.of == 10 and again.alarms.of == 20


def test_episodes_are_split_never_frames() -> None:
    label = np.tile(np.repeat([NO, YES], 5), 16).astype(np.int8)
    episode = np.repeat(np.arange(16), 10)
    label[episode >= 8] = NO
    parts = classifier.split(label, episode, seed=0)
    assert sorted(np.concatenate(parts)) == list(range(16)) and [len(p) for p in parts] == [8, 4, 4]
    assert [int((p < 8).sum()) for p in parts] == [4, 2, 2], "solved ones and others each by themselves"
    assert any((a != b).any() for a, b in zip(parts, classifier.split(label, episode, seed=1), strict=True))
    with pytest.raises(RealrlError, match=r"the episodes for the \w+ hold 0 solved .* record or label more"):
        classifier.split(label[:20], episode[:20], seed=0)


def test_the_threshold_is_the_lowest_that_keeps_false_alarms_rare() -> None:
    p = np.array([0.1, 0.2, 0.6, 0.7, 0.9, 0.95], np.float32)
    label = np.array([NO, NO, NO, NO, YES, UNLABELLED])
    assert 0.7 < classifier.threshold(p, label, 0.0) < 0.7001, "none of four"
    assert 0.6 < classifier.threshold(p, label, 0.25) < 0.6001, "one of four"
    assert classifier.threshold(p, label, 0.5) == 0.5, "but never below a half"


class Says(Classifier):
    """A classifier whose first feature is its probability."""

    def __init__(self, frames: int) -> None:
        super().__init__({"state": (1,)}, ClassifierConfig(frames=frames))

    def probability(self, features: torch.Tensor) -> Array:
        return features[:, 0].numpy()


def data(*episodes: list[tuple[float, int]]) -> Labelled:
    """Of (probability, label) of every frame."""
    rows = [frame for e in episodes for frame in e]
    return Labelled(torch.tensor([[p] for p, _ in rows]), np.array([y for _, y in rows], np.int8),
                    np.repeat(np.arange(len(episodes)), [len(e) for e in episodes]))


def test_what_an_audit_counts() -> None:
    early = [(0.9, NO), (0.9, NO), (0.1, NO), (0.9, YES), (0.9, YES)]  # it would have ended the task at the second frame
    blind = [(0.1, NO), (0.9, YES), (0.1, YES), (0.9, YES)]  # never two in a row
    good = [(0.9, NO), (0.1, NO), (0.4, UNLABELLED), (0.9, YES), (0.9, YES)]
    brief = [(0.1, NO), (0.9, YES)]  # shows success for too short a time to be judged by
    found = classifier.audit(Says(2), data(early, blind, good, brief))
    assert (found.false, found.missed) == (Share(3, 7), Share(1, 8))
    assert (found.alarms, found.unseen) == (Share(1, 4), Share(1, 3))
    no, yes = [0.9, 0.9, 0.1, 0.1, 0.9, 0.1, 0.1], [0.9, 0.9, 0.9, 0.1, 0.9, 0.9, 0.9, 0.9]
    assert found.auc == pytest.approx(np.mean([(a > b) + 0.5 * (a == b) for a in yes for b in no]))
    assert classifier.audit(Says(1), data(early, blind, good, brief)).alarms == Share(2, 4)


def test_shares_have_wilsons_interval() -> None:
    assert Share(0, 10).interval == pytest.approx((0.0, 0.2775), abs=1e-4) and Share(10, 10).interval[1] == 1.0
    assert Share(3, 7).interval == pytest.approx((0.1582, 0.7495), abs=1e-4) and Share(0, 0).interval == (0.0, 1.0)


def test_runs_of_frames() -> None:
    assert classifier.run_of(np.array([1, 1, 0, 1, 1, 1]) > 0, 2).tolist() == [False, True, False, False, True, True]
    assert classifier.run_of(np.array([1]) > 0, 3).tolist() == [False]


def test_a_run_believes_it_after_so_many_frames_in_a_row() -> None:
    referee, action = Referee(Says(2), "here"), np.zeros(1)

    def seen(*values: float) -> list[tuple[float, float]]:
        referee.begin(0)
        return [referee({}, action, {"state": np.array([v], np.float32)}) for v in values]

    assert seen(0.1, 0.9, 0.1, 0.9, 0.9) == [(0.0, 0.0)] * 4 + [(1.0, 1.0)]
    assert seen(0.9, 0.1, 0.9) == [(0.0, 0.0)] * 3, "an episode begins from nothing"
    with pytest.raises(RealrlError, match=r"here: the classifier saw success from the first step on .* the robot stops"):
        seen(0.9, 0.9)


def test_observations_are_found_by_name(fitted: tuple[Classifier, classifier.Audit]) -> None:
    model, _ = fitted
    some = {"state": np.zeros((3, 2), np.float32), "another": np.ones((3, 5), np.float32)}
    assert torch.equal(model.features(some), model.features(dict(reversed(some.items()))))
    with pytest.raises(RealrlError, match=r"looks at 'state' of shape \[2\], which has shape \[5\]"):
        model.features({"state": np.ones((3, 5), np.float32)})
    with pytest.raises(RealrlError, match="which is not among another"):
        model.features({"another": np.ones((3, 5), np.float32)})
    with pytest.raises(RealrlError, match=r"^keys privileged: the recording has no such observation that a robot has, it has state"):
        classifier.keys_of([approach(0)], ClassifierConfig(keys=("privileged",)))


def test_it_is_kept_in_a_folder(fitted: tuple[Classifier, classifier.Audit], tmp_path: Path) -> None:
    model, found = fitted
    classifier.save(model, found, tmp_path)
    again = classifier.load(tmp_path)
    features = model.features({"state": np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)})
    assert np.array_equal(model.probability(features), again.probability(features))
    assert (again.threshold, again.cfg, again.shapes) == (model.threshold, model.cfg, model.shapes)
    assert json.loads((tmp_path / "classifier.json").read_text())["audit"]["auc"] == found.auc
    (tmp_path / "weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(RealrlError, match="no success classifier that can be read"):
        classifier.load(tmp_path)
    with pytest.raises(RealrlError, match="fit one with `realrl reward fit`"):
        classifier.load(tmp_path / "nowhere")


def test_it_tells_pictures_apart() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    rng = np.random.default_rng(0)
    episodes = []
    for i in range(12):
        e = approach(i, steps=6)
        frames = rng.integers(0, 60, (7, 64, 64, 3), np.uint8)
        frames[1:, 20:44, 20:44][e.success] += 120
        e.obs["images.wrist"] = frames
        episodes.append(e)
    model, found = classifier.fit(episodes, labels(episodes), ClassifierConfig(hidden=(32,), steps=60, batch=16))
    assert list(model.shapes) == ["images.wrist"] and found.auc > 0.99
    assert not any(name.startswith("_trunks") for name in model.state_dict()), "the frozen network stays in its package"
