"""Readings that are late, and the actions under way beside them."""

from __future__ import annotations

import json
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from realrl import envs
from realrl.cell.collect import Collector
from realrl.cli import main as cli
from realrl.data.store import Store
from realrl.policies.folder import read_recall
from realrl.scene import CollectConfig
from realrl.types import RealrlError

TINY = "--policy.hidden 16 --policy.blocks 1 --imitation.steps 5 --imitation.batch 8 --demos 2 --eval-episodes 2 --collect.workers 1"


def walked(task: str, recall: int, late: int, actions: Any, **how: Any) -> tuple[list[Any], list[float], Any]:
    """(observations [T + 1], rewards [T], the environment) of an episode."""
    env = envs.make(task, **how)
    env.lag(recall, late)
    seen, paid = [env.reset(seed=3)[0]], []
    for action in actions:
        obs, reward, *_ = env.step(action)
        seen.append(obs)
        paid.append(reward)
    return seen, paid, env


@pytest.mark.parametrize(("recall", "late"), [(0, 3), (2, 0), (4, 3)])
def test_what_is_seen_is_old_and_ends_with_what_was_done_since(recall: int, late: int) -> None:
    actions = np.random.default_rng(0).uniform(-1.5, 1.5, (6, 2))
    fresh, paid, plain = walked("toy/reach", 0, 0, actions, reward="dense")
    seen, same, env = walked("toy/reach", recall, late, actions, reward="dense")
    size = plain.task.obs_dim
    assert "privileged" not in fresh[0] and (env.task.obs_dim, env.task.privileged) == (size + 2 * recall, size)
    assert paid == same, "what is paid is not late"
    done = [*np.zeros((recall, 2)), *actions.clip(-1, 1)]
    for t, obs in enumerate(seen):
        assert env.observation_space.contains(obs)
        assert np.array_equal(obs["state"][:size], fresh[max(t - late, 0)]["state"])
        assert np.allclose(obs["state"][size:], np.ravel(done[t:t + recall]))
        assert np.array_equal(obs["privileged"], fresh[t]["state"]), "for experts"


def test_an_episode_begins_without_the_one_before() -> None:
    env = envs.make("toy/reach")
    env.lag(2, 2)
    first, _ = env.reset(seed=1)
    for _ in range(3):
        env.step(np.ones(2))
    again, _ = env.reset(seed=1)
    assert np.array_equal(first["state"], again["state"])


def test_where_actions_are_places_the_first_ones_are_where_it_stands() -> None:
    pytest.importorskip("gymnasium_robotics")
    env = envs.make("arm/panda-reach")
    env.lag(1)
    env.still = lambda: np.full(4, 0.25, np.float32)  # type: ignore[method-assign]
    assert np.array_equal(env.reset(seed=0)[0]["state"][-4:], np.full(4, 0.25))


def test_pictures_are_as_late_as_the_rest() -> None:
    sight = envs.SightConfig(kind="rgb", height=16, width=16)
    actions = np.tile([0.7, -0.4], (4, 1))
    fresh, _, _ = walked("toy/reach", 0, 0, actions, sight=sight)
    seen, _, env = walked("toy/reach", 1, 2, actions, sight=sight)
    (key,) = (k for k in env.task.senses)
    assert all(np.array_equal(obs[key], fresh[max(t - 2, 0)][key]) for t, obs in enumerate(seen))
    assert all(np.array_equal(obs["privileged"], fresh[t]["privileged"]) for t, obs in enumerate(seen))


def test_makers_go_to_other_processes_and_take_what_they_took() -> None:
    make = partial(envs.lagged, partial(envs.make, "toy/reach"), 1, 2)
    assert make(reward="dense").reward_kind == "dense" and make().task.obs_dim == envs.make("toy/reach").task.obs_dim + 2
    with Collector("toy/reach", CollectConfig(workers=2, envs_per_worker=2), recall=1, late=2) as collector:
        found = list(collector.collect(envs.expert("toy/reach"), range(4), greedy=True))
    assert all(e.succeeded for e in found), "the script knows the state of now"
    assert {e.obs["state"].shape[1] for e in found} == {collector.spec().obs_dim}


def test_a_policy_keeps_what_it_wants_to_see_through_its_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, policy = tmp_path / "run", tmp_path / "run" / "policy"
    assert cli.main(shlex.split(f"train bc --task toy/reach --recall 3 --late 2 {TINY} --run {run}")) == 0
    assert read_recall(policy) == 3
    episode = Store.open(run / "dataset").read()[0]
    own, size = envs.make("toy/reach").task.obs_dim, episode.obs["state"].shape[1]
    assert size == own + 6 and np.allclose(episode.obs["state"][-1, -2:], episode.action[-1])
    assert np.array_equal(episode.obs["state"][3, :own], episode.obs["privileged"][1])
    capsys.readouterr()
    assert cli.main(shlex.split(f"evaluate --policy {policy} --late 2 --episodes 2 --workers 1 --json")) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 2
    assert cli.main(shlex.split(f"train hil-serl --task toy/reach --init {policy} --human none --demos 1 --run {tmp_path}/on")) == 2
    assert "--recall" in capsys.readouterr().err


def test_what_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text(json.dumps({"kind": "diffusion", "format": 1, "task": "", "head": "", "name": "", "obs_dim": 1,
                                                     "action_dim": 1, "config": {}, "recall": -1}))
    with pytest.raises(RealrlError, match="'recall' must be a whole number"):
        read_recall(tmp_path)
