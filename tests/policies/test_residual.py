"""A residual on a frozen policy: the base at first, its plans step by step, its folder, and what it does not stand on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from realrl.learn.sac import SAC, SACConfig
from realrl.policies.diffusion import DiffusionPolicy, PolicyConfig
from realrl.policies.folder import load_policy, save_policy
from realrl.policies.gaussian import GaussianConfig, GaussianPolicy
from realrl.policies.recurrent import RecurrentConfig, RecurrentPolicy
from realrl.policies.residual import Observer, ResidualPolicy, residual_on
from realrl.types import Array, Episode, RealrlError, Source, TaskSpec

SPEC = TaskSpec("lab", "push", 3, 2, 50, 0.1, "push it")


def under(chunk: int = 3, n_obs: int = 2) -> DiffusionPolicy:
    torch.manual_seed(0)
    return DiffusionPolicy(PolicyConfig(chunk=chunk, n_obs=n_obs, hidden=16, blocks=1), 3, 2, name="base").eval()


def made(scale: float = 0.2, n_obs: int = 1, **sizes: int) -> ResidualPolicy:
    return ResidualPolicy(under(**sizes), GaussianConfig(n_obs=n_obs, hidden=(8,), norm="layer"), scale).eval()


def walk(policy: Any, steps: int, *, greedy: bool = True, helped: tuple[int, ...] = ()) -> Array:
    """Actions [T, A] along observations that nobody changes; where it is helped, its plan is off."""
    seen, rng, state = observations(steps), [np.random.default_rng(5)], policy.start(1)
    out = list[Array]()
    while len(out) < steps:
        history = np.stack([seen[max(len(out) - k, 0)] for k in range(policy.n_obs - 1, -1, -1)])[None]
        plan, state = policy.act({"state": history}, state, greedy=greedy, rng=rng)
        if len(out) in helped:
            policy.interrupt(state, 0)
        out += list(plan.action[0, :policy.chunk])
    return np.stack(out[:steps])


def observations(steps: int) -> Array:
    return np.random.default_rng(1).normal(size=(steps, 3)).astype(np.float32)


def test_it_begins_as_its_base_plans_and_noise_included() -> None:
    for n_obs in (1, 4):
        assert np.array_equal(walk(made(n_obs=n_obs), 11), walk(under(), 11)), "to the bit"
    assert np.array_equal(walk(made(chunk=1, n_obs=1), 5), walk(under(chunk=1), 5))


def test_the_correction_is_bounded_and_step_by_step() -> None:
    policy = made(0.1)
    policy.net.get_parameter("bias1").data[..., :2] = torch.tensor([9.0, -9.0])  # tanh is 1 there
    moved, base = walk(policy, 9), walk(under(), 9)
    assert np.allclose(moved, np.clip(base + np.array([0.1, -0.1]), -1, 1), atol=1e-6)
    noisy = walk(made(0.1), 9, greedy=False)
    assert 0.02 < np.abs(noisy - base)[:3].mean() < 0.1 and np.abs(noisy).max() <= 1, "the first plan's; later ones draw other noise"


def test_somebody_else_ends_the_plan_of_its_own_row_alone() -> None:
    policy, seen = made(), observations(2)
    obs = {"state": np.stack([seen[:1], seen[:1]]).repeat(2, 1)}
    rng = [np.random.default_rng(0), np.random.default_rng(0)]
    _, state = policy.act(obs, policy.start(2), greedy=True, rng=rng)
    policy.interrupt(state, 1)
    assert state["at"].tolist() == [1, 3]
    plan, after = policy.act(obs, state, greedy=True, rng=[rng[0], np.random.default_rng(0)])
    assert after["at"].tolist() == [2, 1]
    assert np.array_equal(plan.action[0, 0], state["plan"][0, 1]) and np.allclose(plan.action[1, 0], state["plan"][0, 0], atol=1e-6)


def test_a_learner_keeps_what_the_base_said() -> None:
    """Of a recorded episode, by the acting policy's own noise; a person's step ends the plan."""
    policy, helped, n = made(), (2, 3), 8
    seen, rng, state, said = observations(n + 1), [np.random.default_rng([7, 3])], policy.start(1), list[Array]()
    for i in range(n + 1):
        _, state = policy.act({"state": np.stack([seen[max(i - 1, 0)], seen[i]])[None]}, state, greedy=False, rng=rng)
        said.append(state["plan"][0, state["at"][0] - 1].numpy())
        if i in helped:
            policy.interrupt(state, 0)
    who, none = np.full(n, Source.POLICY), np.zeros(n, np.float32)
    who[list(helped)] = Source.HUMAN
    action = np.zeros((n, 2), np.float32)
    episode = Episode({"state": seen}, action, action, who, none, none > 0, none, none == 0, False, True, "lab/push", "hil-serl", 3)
    observer = Observer(policy, 7)
    for _ in range(2):
        kept = observer.whole(episode)
        assert kept.keys() == {"state", "base"} and np.array_equal(kept["state"], seen) and np.array_equal(kept["base"], np.stack(said))
    assert observer.whole(replace(episode, seed=4))["base"][0] != pytest.approx(said[0])
    assert list(Observer(GaussianPolicy(GaussianConfig(), 3, 2), 0).whole(episode)) == ["state"]


def test_what_critics_see_is_what_is_sent() -> None:
    torch.manual_seed(0)
    policy = made(0.5)
    cond = policy.encode({"state": torch.zeros(4, 2, 3), "base": torch.tensor([[[0.9, -0.2]]]).repeat(4, 2, 1)})
    assert torch.allclose(policy.sent(cond, torch.tensor([[1.0, -0.4]] * 4)), torch.tensor([[1.0, -0.4]] * 4))
    assert torch.allclose(policy.meant(cond, torch.tensor([[0.65, -0.4]] * 4)), torch.tensor([[-0.5, -0.4]] * 4))
    agent = SAC(made(0.5, chunk=1, n_obs=1), SACConfig(hidden=(8,), batch=4, actor_lr=1e-2), seed=0)
    replay = agent.replay()
    for _ in range(3):
        replay.begin({"state": np.zeros(3, np.float32), "base": np.full(2, 0.2, np.float32)})
        replay.add(np.full(2, 0.4, np.float32), 1.0, {"state": np.zeros(3, np.float32), "base": np.zeros(2, np.float32)}, terminated=True)
    agent.update(replay.sample(4, torch.Generator().manual_seed(0)))
    for _ in range(200):
        found = agent.imitate(replay.sample(4, torch.Generator().manual_seed(0)))
    mean = agent.policy.distribution(agent.policy.encode(replay.batch(torch.tensor([0])).obs))[0].tanh()
    assert torch.allclose(mean, torch.full((1, 2), 0.4), atol=0.05) and "imitation_loss" in found, "(0.4 - 0.2) / 0.5"


def test_its_folder_holds_both(tmp_path: Path) -> None:
    policy = made(n_obs=2)
    policy.net.get_parameter("bias1").data.normal_()
    save_policy(policy, tmp_path, task="lab/push")
    again, task = load_policy(tmp_path)
    assert isinstance(again, ResidualPolicy) and task == "lab/push" and again.base.chunk == 3 and again.name == policy.name
    assert np.array_equal(walk(again, 7, greedy=False), walk(policy, 7, greedy=False))
    text = (tmp_path / "policy.json").read_text()
    for old, new, said in (('"kind": "diffusion"', '"kind": "onnx"', "base must be a diffusion or gaussian policy, got 'onnx'"),
                           ('"scale": 0.2', '"scale": 2.0', "scale must be above 0 and at most 1"),
                           ('"obs_dim": 3', '"obs_dim": 4', "4 observation and 2 action numbers, its base 3 and 2")):
        assert old in text
        (tmp_path / "policy.json").write_text(text.replace(old, new, 1))
        with pytest.raises(RealrlError, match=said) as caught:
            load_policy(tmp_path)
        assert "\n" not in str(caught.value) and "policy.json" in str(caught.value)


def test_what_it_does_not_stand_on(tmp_path: Path) -> None:
    cfg = GaussianConfig(hidden=(8,))
    with pytest.raises(RealrlError, match=r"corrects one action at a time, got policy\.chunk 2"):
        ResidualPolicy(under(), replace(cfg, chunk=2), 0.1)
    save_policy(RecurrentPolicy(RecurrentConfig(), 3, 2), tmp_path / "recurrent", task="lab/push")
    save_policy(made(), tmp_path / "residual", task="lab/push")
    for kind in ("recurrent", "residual"):
        with pytest.raises(RealrlError, match=f"a {kind} policy, a residual needs a diffusion or gaussian policy under it"):
            residual_on(tmp_path / kind, SPEC, cfg, 0.1, name="x")
    save_policy(under(), tmp_path / "base", task="lab/push")
    with pytest.raises(RealrlError, match="lab/pull has 5 and 2"):
        residual_on(tmp_path / "base", replace(SPEC, name="pull", obs_dim=5), cfg, 0.1, name="x")
    assert residual_on(tmp_path / "base", SPEC, cfg, 0.1, name="x").name == "x"
    eyes = DiffusionPolicy(PolicyConfig(hidden=16, blocks=1), 3, 2, senses={"pointcloud": (32, 3)})
    with pytest.raises(RealrlError, match="looks at the state alone, its base also at pointcloud"):
        ResidualPolicy(eyes, cfg, 0.1)
