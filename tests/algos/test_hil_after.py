"""HIL-SERL goes on from an earlier run: its learner as it was, on what happens now alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from algos.test_hil_serl import run_of, tiny, weights
from realrl.algos.hil_serl import Average, HILConfig
from realrl.cell.stream import Interleaved
from realrl.checkpoint import encode
from realrl.config import OutOfBounds
from realrl.data.store import Store
from realrl.learn.practice import Earlier
from realrl.learn.replay import Mixture
from realrl.policies.folder import load_policy
from realrl.policies.gaussian import GaussianConfig, GaussianPolicy
from realrl.types import Batch, RealrlError
from toy_runs import killed_at_saves


def test_it_goes_on_from_an_earlier_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tiny(task="contact/pick-peg", horizon=60, steps=60, save_every=20, eval_episodes=1)
    run_of(tmp_path / "first", first)
    old = weights(tmp_path / "first")
    handed, drawn, handing, sample = [], [], Earlier.hand_over, Mixture.sample

    def told(self: Earlier, agent: Any, **more: Any) -> None:
        handing(self, agent, **more)
        tensors: dict[str, torch.Tensor] = {}
        encode({"agent": agent.state_dict(), **{k: v.state_dict() for k, v in more.items()}}, tensors)
        handed.append(tensors)

    def spy(self: Mixture, *args: Any) -> Batch:
        drawn.append(self)
        return sample(self, *args)
    monkeypatch.setattr(Earlier, "hand_over", told)
    shown, publish = [], Interleaved.publish

    def show(self: Interleaved, policy: GaussianPolicy) -> None:
        shown.append((len(drawn), policy.net.weight0.detach().clone()))
        publish(self, policy)
    monkeypatch.setattr(Interleaved, "publish", show)
    monkeypatch.setattr(Mixture, "sample", spy)
    more = replace(first, after=str(tmp_path / "first"), steps=40, start=20, save_every=10)
    whole = run_of(tmp_path / "straight", more)
    assert {"agent", "average", "grasp"} == {name.split("/")[0] for name in handed[0]}
    assert all(torch.equal(old[name], value) for name, value in handed[0].items()), "as it was, optimisers, average, grasp and all"
    assert shown[0][0] == 0 and torch.equal(shown[0][1], old["agent/policy/net.weight0"]), "an actor's process begins with what was learned"
    assert whole["headline"]["utd"] == pytest.approx(more.sac.utd, abs=0.1), "updates of the earlier run are not counted again"
    assert whole["headline"]["transitions"] < 160 and len(drawn) == whole["headline"]["transitions"] - more.start, "nothing of its practice"
    killed_at_saves(monkeypatch, (2,), lambda: run_of(tmp_path / "killed", more))
    again = run_of(tmp_path / "killed", more)
    one, two = (weights(tmp_path / name) for name in ("straight", "killed"))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one) and again["headline"] == whole["headline"]


def test_an_earlier_run_that_does_not_fit_is_told(tmp_path: Path) -> None:
    with pytest.raises(RealrlError, match=r"--after .*nowhere: there is no checkpoint 'hil-serl' in it: name the folder of a finished run"):
        run_of(tmp_path / "a", tiny(after=str(tmp_path / "nowhere")))
    with pytest.raises(OutOfBounds, match="after goes on with a run's own actor, init begins one on a policy: give one of them"):
        HILConfig(after="runs/a", init="runs/b/policy")
    run_of(tmp_path / "first", tiny(steps=30, eval_episodes=1))
    with pytest.raises(RealrlError, match="part 'agent' does not fit"):
        run_of(tmp_path / "b", tiny(after=str(tmp_path / "first"), recall=2))


def test_an_average_of_old_knows_what_cloning_took() -> None:
    """Checkpoints of before told no number of updates."""
    average = Average.__new__(Average)
    average.values, average.before = {"net": torch.zeros(2)}, 7
    average.load_state_dict({"net": torch.ones(2)})
    assert average.before == 7 and average.values["net"].tolist() == [1.0, 1.0]


def test_a_state_in_metres_is_brought_to_size(tmp_path: Path) -> None:
    """Unscaled, an arm over a table did not learn to reach within 3000 steps: its goals differ by some centimetres."""
    shape = GaussianConfig(hidden=(16,), scaled=True)
    run_of(tmp_path / "arm", tiny(task="arm/panda-reach", steps=40, start=20, eval_episodes=1, policy=shape))
    policy, _ = load_policy(tmp_path / "arm/policy")
    assert isinstance(policy, GaussianPolicy) and policy.scaler is not None
    demos = np.concatenate([e.obs["state"] for e in Store.open(tmp_path / "arm/dataset").read() if e.policy == "demonstration"])
    seen = policy.scaled(torch.as_tensor(demos)[:, None])[:, 0].std(0, unbiased=False)
    assert float(demos[:, :3].std(0).max()) < 0.1 and bool((seen[:3] > 0.25).all())
    assert HILConfig().policy.scaled
