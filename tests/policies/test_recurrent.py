"""A policy that remembers: rows are independent, a saved one acts the same, it wanders before it knows anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from realrl import envs
from realrl.cell.actor import Acting
from realrl.cell.latency import Ahead
from realrl.cell.rollout import rollout
from realrl.nets.rssm import RSSMConfig
from realrl.policies.folder import load_policy, save_policy
from realrl.policies.recurrent import RecurrentConfig, RecurrentPolicy
from realrl.robots.guard import box_guard
from realrl.scene import GuardConfig
from realrl.types import Array, Policy, RealrlError

TINY = RecurrentConfig(RSSMConfig(deter=16, stoch=3, classes=4, hidden=12, units=12, depth=2), hold=(2, 4))


def make(**options: Any) -> RecurrentPolicy:
    torch.manual_seed(0)
    made = RecurrentPolicy(TINY, 3, 4, **options)
    torch.nn.init.normal_(made.actor[-1].weight)  # type: ignore[arg-type]
    return made


def see(batch: int, steps: int = 6, seed: int = 0, pictures: bool = False) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    eyes = {"images.top": rng.integers(0, 256, (steps, batch, 1, 16, 16, 3), np.uint8)} if pictures else {}
    found = {"state": rng.normal(size=(steps, batch, 1, 3)).astype(np.float32), **eyes}
    return [{key: values[t] for key, values in found.items()} for t in range(steps)]


def play(policy: RecurrentPolicy, seen: list[dict[str, Array]], *, greedy: bool = False, seeds: range = range(5)) -> Array:
    rng, state, out = [np.random.default_rng(s) for s in seeds], policy.start(len(seeds)), []
    for obs in seen:
        plan, state = policy.act(obs, state, greedy=greedy, rng=rng)
        out.append(plan.action[:, 0])
    return np.stack(out)


def test_rows_are_independent_and_it_remembers() -> None:
    policy, seen = make(), see(5)
    assert isinstance(policy, Policy)
    whole = play(policy, seen)
    alone = play(policy, [{"state": obs["state"][2:3]} for obs in seen], seeds=range(2, 3))
    assert np.allclose(whole[:, 2:3], alone, atol=1e-5) and np.abs(whole).max() <= 1
    other = [{"state": obs["state"].copy()} for obs in seen]
    other[0]["state"] += 1.0
    assert np.abs(play(policy, other, greedy=True)[-1] - play(policy, seen, greedy=True)[-1]).max() > 1e-4, "what was seen at first"


@pytest.mark.parametrize("discrete", [False, True])
def test_a_saved_one_acts_bit_for_bit_the_same(tmp_path: Path, discrete: bool) -> None:
    policy = make(discrete=discrete, senses={"images.top": (16, 16, 3)}, name="mine")
    save_policy(policy, tmp_path, task="toy/reach")
    loaded, task = load_policy(tmp_path)
    assert isinstance(loaded, RecurrentPolicy) and task == "toy/reach" and (loaded.cfg, loaded.name) == (TINY, "mine")
    for greedy in (True, False):
        one, two = (play(p, see(5, pictures=True), greedy=greedy) for p in (policy, loaded))
        assert np.array_equal(one, two)
        assert not discrete or ((one.sum(-1) == 1).all() and set(np.unique(one)) == {0.0, 1.0})


def test_it_wanders_by_holding_what_it_drew() -> None:
    policy = make()
    policy.wander.fill_(1.0)
    actions = play(policy, see(5, steps=40))[:, 0]
    changes = np.flatnonzero(np.any(actions[1:] != actions[:-1], 1))
    assert set(np.diff(changes)) <= {2, 3, 4} and len(changes) > 8 and 0.3 < (np.abs(actions) == 1).mean() < 0.7, "half at an end"
    chooser = make(discrete=True)
    chooser.wander.fill_(1.0)
    chosen = play(chooser, see(5, steps=40))[:, 0].argmax(1)
    assert 20 < (np.diff(chosen) != 0).sum() < 39, "a choice is drawn anew at every step"
    assert np.array_equal(play(policy, see(5), greedy=True), play(make(), see(5), greedy=True)), "not when it shows what it can"


def test_densities() -> None:
    policy, feature = make(), torch.randn(7, TINY.rssm.feature)
    mean, std = told = policy.distribution(feature)
    truth, action = torch.distributions.Normal(mean, std), torch.randn(7, 4)
    logp, entropy = policy.logp(told, action)
    assert torch.allclose(logp, truth.log_prob(action).sum(-1), atol=1e-4) and torch.allclose(entropy, truth.entropy().sum(-1), atol=1e-4)
    assert float(std.detach().min()) > 0.1 and float(std.detach().max()) < 1.0
    chooser = make(discrete=True)
    told = chooser.distribution(feature)
    truth, action = torch.distributions.Categorical(logits=told[0]), torch.eye(4)[[0, 1, 2, 3, 0, 1, 2]]
    logp, entropy = chooser.logp(told, action)
    assert torch.allclose(logp, truth.log_prob(action.argmax(-1)), atol=1e-5) and torch.allclose(entropy, truth.entropy(), atol=1e-5)
    assert float(told[0].exp().min()) >= 0.01 / 4 - 1e-6


def test_asked_wrongly() -> None:
    with pytest.raises(RealrlError, match=r"sides are multiples of 16, not images\.top \[84, 84, 3\]: give --sight\.kind rgb"):
        make(senses={"images.top": (84, 84, 3)})
    with pytest.raises(RealrlError, match=r"has shape \[1, 2\] but the policy was trained on \[1, 3\]"):
        play(make(), [{"state": np.zeros((5, 1, 2), np.float32)}])
    with pytest.raises(RealrlError, match="hold must be two numbers, the least first"):
        RecurrentConfig(hold=(5, 2))


@pytest.mark.parametrize("task", ["toy/reach", "bins/panda-one"])
def test_it_remembers_what_was_sent_not_what_it_wanted(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard that limits changes, and a person who decides otherwise."""
    env = envs.make(task, horizon=12)
    torch.manual_seed(0)
    policy = RecurrentPolicy(TINY, env.task.obs_dim, env.task.action_dim, discrete=env.task.discrete)
    policy.wander.fill_(1.0)
    remembered, acted = list[Array](), RecurrentPolicy.act

    def spy(self: RecurrentPolicy, obs: Any, state: Any, **how: Any) -> Any:
        remembered.append(state["action"][0].numpy().copy())
        return acted(self, obs, state, **how)
    monkeypatch.setattr(RecurrentPolicy, "act", spy)

    class Person:
        def __init__(self) -> None:
            self.asked = 0

        def poll(self, obs: Any, proposed: Array) -> Array | None:
            self.asked += 1
            return np.roll(proposed, 1) if self.asked % 3 == 0 else None
    limits = GuardConfig(max_delta=None if env.task.discrete else 0.1)
    for wrapped in (policy, Ahead(policy, 0.0, 0.05), Acting(policy, 0, env.task.action_dim, lambda: 0)):
        remembered.clear()
        episode = next(rollout([env], wrapped, [box_guard(env, limits)], [3], greedy=False, human=Person()))  # type: ignore[arg-type]
        assert not np.array_equal(episode.action, episode.proposed) and len(remembered) == len(episode)
        assert not remembered[0].any() and np.allclose(remembered[1:], episode.action[:-1])
    env.close()
