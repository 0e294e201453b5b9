"""Success in changed scenes: which changes reach which eyes, and that they change the episode while the starts stay."""

import numpy as np
import pytest

from realrl import envs
from realrl.cell.collect import Collector
from realrl.cell.evaluate import held_out
from realrl.cell.robustness import CHANGES, changes, robustness, scene_changes
from realrl.scene import CollectConfig, SightConfig
from realrl.types import RealrlError

LOCAL = CollectConfig(workers=1)


def test_only_changes_that_can_be_noticed_are_tried():
    assert set(changes(SightConfig())) == {"friction", "mass"}
    assert set(changes(SightConfig(kind="pointcloud"))) == set(CHANGES) - {"light", "colours"}
    assert set(changes(SightConfig(kind="rgb"))) == set(CHANGES)
    assert set(changes(SightConfig(kind="pointcloud", colour=True, source="depth"))) == set(CHANGES)
    assert set(changes(SightConfig(kind="pointcloud", colour=True))) == set(CHANGES) - {"light"}, "rays see paint, but no light"
    assert set(changes(SightConfig(kind="depth", colour=True))) == set(CHANGES) - {"light", "colours"}


def test_every_change_is_judged_from_the_same_starts():
    task, sight, expert = "metaworld/push-v3", SightConfig(), envs.expert("metaworld/push-v3")
    seen = {}

    def watch(episodes, title, total):
        seen[title] = sorted(episodes, key=lambda e: e.seed)
        return seen[title]

    found = dict(robustness(expert, task, 2, sight=sight, collect=LOCAL, dt=0.0125, horizon=60, watch=watch))
    assert list(found) == list(changes(sight)) and all(e.success.n == 2 for e in found.values())
    with Collector(task, LOCAL, horizon=60) as collector:
        plain = sorted(collector.collect(expert, held_out(2), greedy=True), key=lambda e: e.seed)
    for name, episodes in seen.items():
        assert [e.seed for e in episodes] == held_out(2)
        for changed, usual in zip(episodes, plain, strict=True):
            assert np.allclose(changed.obs["state"][0], usual.obs["state"][0], atol=1e-3), name
            length = min(len(changed), len(usual))
            assert not np.array_equal(changed.obs["state"][:length], usual.obs["state"][:length]), name


def test_a_scene_that_cannot_be_changed_is_named():
    with pytest.raises(RealrlError, match="toy/reach: nothing can be randomised"):
        scene_changes("toy/reach", SightConfig())
    with pytest.raises(RealrlError, match="toy/reach: nothing can be randomised"):
        next(robustness(envs.expert("toy/reach"), "toy/reach", 1, sight=SightConfig(), collect=LOCAL, dt=0.1))
