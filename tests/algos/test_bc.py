"""Behaviour cloning: from the expert or from a recorded data set to a policy folder."""

import json

import pytest
import torch

from realrl import envs
from realrl.algos.bc import BCConfig, train
from realrl.cell.cell import WorkCell
from realrl.cell.collect import Collector
from realrl.data.store import Store
from realrl.learn.imitation import ImitationConfig
from realrl.policies.diffusion import PolicyConfig
from realrl.policies.folder import load_policy
from realrl.run import Run
from realrl.scene import CollectConfig
from toy_runs import metrics


def config(**changes):
    base = {"task": "toy/obstacle", "demos": 40, "demo_noise": 0.0, "policy": PolicyConfig(chunk=2, hidden=64), "eval_episodes": 100,
            "imitation": ImitationConfig(steps=500, batch=128, lr=2e-3, warmup=30), "collect": CollectConfig(workers=1)}
    return BCConfig(**{**base, **changes})


def record(folder, noise, count=30):
    """A data set of the noisy expert, failures included; (path, its episodes)."""
    with Collector("toy/obstacle", CollectConfig(workers=1)) as collector:
        episodes = sorted(collector.collect(envs.expert("toy/obstacle", noise=noise), range(count), greedy=True), key=lambda e: e.seed)
    Store.create(folder, task="toy/obstacle", fps=10).append(episodes)
    return str(folder), episodes


def test_from_the_expert_to_a_policy(tmp_path):
    with Run.start(tmp_path, config()) as run, WorkCell(run, config()) as cell:
        summary = train(config(), cell)
    (stage,) = summary["stages"]
    assert stage["name"] == "imitation" and stage["success"]["n"] == 100 and stage["success"]["rate"] > 0.7
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    policy, task = load_policy(tmp_path / "policy")
    assert task == "toy/obstacle" and policy.head == "ddim" and policy.name == "bc"
    store = Store.open(tmp_path / "dataset")
    assert len(store) >= 40 and stage["env_steps"] == summary["env_steps"] == store.frames
    loss = [line["loss"] for line in metrics(tmp_path)]
    assert len(loss) == 10 and loss[-1] < loss[0]


def test_from_a_recorded_data_set(tmp_path):
    """It imitates the successes, asks no expert, and records nothing of its own."""
    data, episodes = record(tmp_path / "data", 1.0)
    assert 5 < sum(e.succeeded for e in episodes) < 30
    cfg = config(data=data, imitation=ImitationConfig(steps=10, batch=16), eval_episodes=4)
    with Run.start(tmp_path / "run", cfg) as run, WorkCell(run, cfg) as cell:
        train(cfg, cell)
    policy, _ = load_policy(tmp_path / "run" / "policy")
    seen = torch.cat([torch.from_numpy(e.obs["state"]) for e in episodes if e.succeeded])
    assert torch.allclose(policy.normaliser.mean, seen.mean(0), atol=1e-4)
    assert len(Store.open(tmp_path / "run" / "dataset")) == 0 and len(Store.open(data)) == 30


@pytest.mark.parametrize("seed", [0, 1])
def test_a_seed_repeats(tmp_path, seed):
    weights = []
    for name in ("a", "b"):
        cfg = config(seed=seed, demos=4, imitation=ImitationConfig(steps=20, batch=16), eval_episodes=2)
        torch.manual_seed(len(weights))
        with Run.start(tmp_path / name, cfg) as run, WorkCell(run, cfg) as cell:
            train(cfg, cell)
        weights.append(load_policy(tmp_path / name / "policy")[0].state_dict())
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())
