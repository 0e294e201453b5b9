"""Offline reinforcement learning where nothing but recordings is there: it learns from failures, too, and says what it cannot know."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from realrl.algos import rl100
from realrl.cell.collect import Collector
from realrl.cell.recorded import RecordedCell
from realrl.cell.recordings import Material, read, sized
from realrl.data import labels
from realrl.data.store import Store
from realrl.envs import expert
from realrl.learn.imitation import ImitationConfig
from realrl.report import hindsight_lines, write_report
from realrl.run import Run
from realrl.scene import CollectConfig
from realrl.types import RealrlError
from toy_runs import tiny


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve hurried demonstrations of toy/obstacle, some of which failed."""
    folder = tmp_path_factory.mktemp("recorded") / "demos"
    with Collector("toy/obstacle", CollectConfig(workers=1)) as collector:
        made = list(collector.collect(expert("toy/obstacle", noise=0.9), range(10_000_000, 10_000_012), greedy=True))
    assert 3 <= sum(e.succeeded for e in made) <= 9
    Store.create(folder, task="toy/obstacle", fps=10).append(made)
    return folder


def config(data: Path) -> rl100.RL100Config:
    return tiny(data=str(data), stages=("imitation", "offline"), imitation=ImitationConfig(steps=20, batch=32))


def run(cfg: rl100.RL100Config, folder: Path) -> tuple[dict[str, object], Material]:
    material = read(cfg.data or "", cfg.recorded, cfg.sight, folder / "cache")
    with Run.start(folder, cfg, False) as started, RecordedCell(started, cfg, material) as cell:
        return rl100.train(cfg, cell), material


def test_an_offline_round_learns_from_all_and_says_what_it_cannot_know(recorded: Path, tmp_path: Path) -> None:
    summary, material = run(config(recorded), tmp_path / "run")
    everyone = Store.open(recorded).read()
    seen = [*material.demos, *material.rest]
    assert len(seen) + len(material.held_out) == len(everyone) and all(e.failed for e in material.rest)
    told = summary["stages"][-1]["hindsight"]
    assert summary["stages"][-1]["name"] == "offline-1" and "hindsight" not in summary["stages"][0]
    assert (told["trials"], told["episodes"], told["success"], told["failure"]) == (0, len(seen), len(material.demos), len(material.rest))
    assert told["judged"] >= 1 and 0 <= told["accepted"] <= told["judged"] and told["model_r2"] is not None
    assert told["recorded"] == pytest.approx(np.mean([sum(r * 0.98 ** t for t, r in enumerate(e.reward)) for e in seen]))
    if not told["accepted"]:
        assert told["ended_with"] == told["began_with"]
    lines = hindsight_lines(summary)
    assert len(lines) == 2 and f"{len(material.rest)} failure" in lines[0] and "No trial was run" in lines[1]
    assert "No trial was run" in write_report(tmp_path / "run").read_text()


def test_what_cannot_be_learned_is_said(recorded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "silent"
    store = Store.create(folder, task="toy/obstacle", fps=10)
    for e in (made := Store.open(recorded).read()):
        e.reward[:], e.success[:], e.judged, e.terminated, e.truncated = 0, False, False, False, True
    store.append(made)
    summary, material = run(config(folder), tmp_path / "run")
    assert "nothing says how episodes ended: all 12 are imitated" in material.notes[0] and not material.rest
    assert "pays no reward" in hindsight_lines(summary)[1] and summary["stages"][-1]["hindsight"]["accepted"] == 0
    labels.give(folder, store.rows, {e: "success" for e in range(12)}, "all")
    assert read(str(folder), config(folder).recorded, config(folder).sight, tmp_path).notes == []
    summary, _ = run(config(folder), tmp_path / "again")
    assert "not seen what to avoid" in hindsight_lines(summary)[1]
    shutil.rmtree(folder / "derived")


def test_recordings_have_no_robot_to_practise_on(recorded: Path, tmp_path: Path) -> None:
    cfg = replace(config(recorded), stages=("imitation", "offline", "online"))
    with pytest.raises(RealrlError, match="no robot to practise on: leave online out of --stages"):
        run(cfg, tmp_path / "run")
    assert sized(rl100.RL100Config(data=str(recorded))).stages == ("imitation", "offline", "one-step")
