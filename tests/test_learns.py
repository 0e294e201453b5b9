"""Every stage learns on a toy task to a threshold, in seconds."""

import numpy as np
import pytest
import torch

from realrl import envs
from realrl.algos.rl100 import OfflineConfig, OfflineRound, Online
from realrl.cell.cell import WorkCell
from realrl.cell.collect import Collector
from realrl.cell.curriculum import Practice
from realrl.data.views import ChunkView
from realrl.learn.imitation import Imitation, ImitationConfig
from realrl.learn.iql import CriticConfig
from realrl.learn.ope import OPEConfig
from realrl.policies.diffusion import DiffusionPolicy
from realrl.run import Run
from realrl.scene import CollectConfig
from toy_runs import small, small_policy

LOCAL = CollectConfig(workers=1, envs_per_worker=100)


def collect(task, policy, seeds, *, greedy):
    with Collector(task, LOCAL) as collector:
        return sorted(collector.collect(policy, seeds, greedy=greedy), key=lambda e: e.seed)


def success(task, policy, count=200):
    return np.mean([e.succeeded for e in collect(task, policy.with_head(policy.head), range(10**6, 10**6 + count), greedy=True)])


def view_of(episodes, policy, cfg, **options):
    return ChunkView(episodes, chunk=policy.chunk, n_obs=policy.n_obs, gamma=cfg.gamma, **options)


def cloned(cfg, seed, noise, demos, net):
    """(policy, demonstrations): imitation of an expert with noise on its actions."""
    tried = collect(cfg.task, envs.expert(cfg.task, noise=noise), range(demos), greedy=True)
    torch.manual_seed(seed)
    policy = DiffusionPolicy(net, tried[0].obs["state"].shape[-1], tried[0].action.shape[-1]).eval()
    view = view_of([e for e in tried if e.succeeded], policy, cfg)
    policy.normaliser.fit(view.frames["state"])
    trainer = Imitation(policy, view, cfg.imitation, seed=seed)
    for _ in range(cfg.imitation.steps):
        trainer.update()
    trainer.finish()
    return policy, tried


def test_imitation():
    cfg = small(imitation=ImitationConfig(steps=500, batch=128, lr=2e-3, warmup=30))
    policy, _ = cloned(cfg, 0, 0.0, 40, small_policy())
    assert success(cfg.task, policy) >= 0.85


@pytest.mark.parametrize("seed", [0, 1])
def test_the_offline_round_improves_a_mediocre_policy(seed, monkeypatch, long):
    """From recorded episodes alone: while it learns, no environment can be made or stepped."""
    if seed and not long:
        pytest.skip("a second seed: see `make test-long`")
    cfg = small(task="toy/identity", imitation=ImitationConfig(steps=150, batch=128, lr=2e-3, warmup=30),
                critic=CriticConfig(steps=1000, batch=256, lr=1e-3, hidden=64),
                ope=OPEConfig(members=3, elites=2, hidden=(64, 64), steps=500, starts=200, horizon=1),
                offline=OfflineConfig(iterations=10, states=512, gate_every=5, max_drift=0.5))
    policy, demos = cloned(cfg, seed, 0.1, 25, small_policy(1))
    data = demos + collect(cfg.task, policy.with_head("ddim"), range(1000, 1400), greedy=False)
    before, logged = success(cfg.task, policy), []
    assert 0.5 < before < 0.9
    with monkeypatch.context() as shut:
        for where, name in ((envs, "make"), (Collector, "collect"), (envs.RobotEnv, "reset"), (envs.RobotEnv, "step")):
            shut.setattr(where, name, touched)
        stage = OfflineRound(policy, view_of(data, policy, cfg), cfg, seed=seed, log=lambda step, told: logged.append((step, told)))
        stage.improve(lambda n: None)
    assert success(cfg.task, policy) > before + 0.1
    verdicts = [told for _, told in logged if "accepted" in told]
    assert any(v["accepted"] for v in verdicts) and all(v["ope_gain"] > 0 for v in verdicts if v["accepted"])


def touched(*args, **kwargs):
    raise AssertionError("the offline stage touched an environment")


def test_online_rl_and_the_one_step_student(tmp_path):
    """To at least 95 %, without the offline stage's V; then one network call does as well as the chain."""
    cfg = small(imitation=ImitationConfig(steps=400, batch=128, lr=2e-3, warmup=30))
    policy, _ = cloned(cfg, 0, 0.3, 20, small_policy())
    before = success(cfg.task, policy)
    stage = Online(policy, None, cfg, Practice(cfg.online.practice, cfg.seed))
    with Run(tmp_path) as run, WorkCell(run, cfg) as cell:
        told = [stage.round(cell) for _ in range(cfg.online.iterations)]
        chain = success(cfg.task, policy, 400)
        assert before < 0.8 and chain >= 0.95, (before, chain)
        assert told[-1]["success_rate"] > told[0]["success_rate"] + 0.2 and told[-1]["value_explained"] > 0.3
        assert "kl" not in told[0] and told[0]["loss_v"] < 0.5, "warming up moves V only"
        states = view_of(cell.recent(100), policy, cfg)
    gaps = []
    log = lambda step, told: gaps.append(told["student_gap"])
    policy.distillation(cfg.distill).finish(policy.encode(states.batch().obs), 0, log, lambda n: None)
    policy.head = "one-step"
    one = success(cfg.task, policy, 400)
    assert one >= chain - 0.05, (one, chain)
    assert gaps[-1] < gaps[0]
