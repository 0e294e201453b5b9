"""What a dreamer is held against: it runs, goes on after a kill as if there had been none, and a DQN finds what is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import daydreamer
from benchmarks.lib import dreamless
from realrl.cell.cell import WorkCell
from realrl.run import Run
from realrl.scene import CollectConfig
from realrl.types import RealrlError
from toy_runs import killed_at_saves


@pytest.mark.parametrize(("task", "method"), [("toy/reach", "crossq"), ("toy/reach", "sac"), ("bins/panda-one", "dqn")])
def test_rivals_of_a_dreamer_run_and_go_on(task: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = replace(daydreamer.toy_size(daydreamer.METHODS[method]), task=task, save_every=20, collect=CollectConfig(workers=1), horizon=20,
                  steps=80)

    def run_of(folder: Path) -> dict[str, Any]:
        with Run.start(folder, cfg, resume=True) as run, WorkCell(run, cfg) as cell:
            return dreamless.train(cfg, cell)
    head = run_of(tmp_path / "whole")["headline"]
    assert 80 <= head["env_steps"] < 100 and head["train_ratio"] == pytest.approx(8.0 * (1 if method != "sac" else 2), rel=0.05)
    killed_at_saves(monkeypatch, (1,), lambda: run_of(tmp_path / "killed"))
    clock = ("wall_min", "updates_per_s")
    assert {k: v for k, v in run_of(tmp_path / "killed")["headline"].items() if k not in clock} == {
        k: v for k, v in head.items() if k not in clock}
    with pytest.raises(RealrlError, match="dqn is for robots that choose, crossq and sac for others"):
        cfg = replace(cfg, task="toy/reach" if method == "dqn" else "bins/panda-one")
        run_of(tmp_path / "wrong")


def test_a_dqn_knows_what_choices_are_worth() -> None:
    """Two choices, of which one pays 1 for as long as it is made: that is worth 1 / (1 - 0.5)."""
    torch.manual_seed(0)
    cfg, rng = dreamless.RivalConfig(learner="dqn", gamma=0.5, n_step=2, units=16, lr=3e-3, rate=0.05), np.random.default_rng(0)
    agent = dreamless.DQN(dreamless.Chooser(16, 1, 2, {}), cfg)
    replay = agent.replay()
    for _ in range(10):
        replay.begin({"state": np.ones(1, np.float32)})
        for t in range(20):
            choice = int(rng.integers(2))
            replay.add(np.eye(2, dtype=np.float32)[choice], float(choice), {"state": np.ones(1, np.float32)}, truncated=t == 19)
    for step in range(400):
        agent.update(replay.sample(64, torch.Generator().manual_seed(step)))
    values = agent.policy({"state": torch.ones(1, 1, 1)})[0].detach()
    assert values[1] > values[0] + 0.5 and 1.5 < float(values[1]) < 2.1, values
    rngs = [np.random.default_rng(i) for i in range(200)]
    agent.policy.loose = dreamless.loose(cfg, 10**6)
    seen = {"state": np.ones((200, 1, 1), np.float32)}
    share = [agent.policy.act(seen, {}, greedy=greedy, rng=rngs)[0].action[:, 0, 1].mean() for greedy in (True, False)]
    assert share[0] == 1.0 and 0.9 < share[1] < 1.0
    assert dreamless.loose(cfg, cfg.prefill) == 1.0
