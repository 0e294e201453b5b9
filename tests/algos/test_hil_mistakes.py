"""What goes wrong around a run with a person in the loop: what is not there, a classifier that was wrong, another device."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_hil_serl import episode, run_of, tiny

from realrl import config, envs
from realrl.algos import hil_serl
from realrl.algos.hil_serl import HILConfig, train
from realrl.cell.cell import WorkCell
from realrl.cli import main as cli
from realrl.data.store import Store
from realrl.learn.classifier import Classifier, ClassifierConfig, Labelled, audit, save
from realrl.learn.corrections import refuse_contradictions
from realrl.robots.human import OperatorConfig
from realrl.run import Run
from realrl.types import RealrlError, TaskSpec

FLAGS = "--steps 20 --start 9 --horizon 20 --demos 2 --sac.batch 8 --sac.hidden 16 --policy.hidden 16 --eval-episodes 2 --collect.workers 1"


def deep(folder: Path, depth: float, **changes: Any) -> str:
    """A classifier that believes in success where the tip seems to be so deep, in units of 20 mm; its folder."""
    model = Classifier({"state": (27,)}, ClassifierConfig(hidden=(), frames=2, **changes))
    weight = torch.zeros(1, 27)
    weight[0, 2] = 100.0
    model.load_state_dict({**model.state_dict(), "net.0.weight": weight, "net.0.bias": torch.tensor([-100.0 * depth])})
    save(model, audit(model, Labelled(torch.zeros(2, 27), np.array([0, 1]), np.array([0, 1]))), folder)
    return str(folder)


@pytest.mark.parametrize("flags, said", [
    (["--reward", "nowhere"], "no success classifier that can be read"), (["--after", "nowhere"], "there is no checkpoint 'hil-serl'"),
    (["--reward", "camera"], "'images.wrist' of shape [8, 8, 3], which is not among"), (["--init", "nowhere"], "no policy here"),
    (["--human", "keyboard"], "needs a terminal to type in")])
def test_what_is_not_there_is_told_before_anybody_demonstrates(flags: list[str], said: str, tmp_path: Path,
                                                               capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing has come of such a run, so that the same command, mended, begins in its folder."""
    if "camera" in flags:
        model = Classifier({"images.wrist": (8, 8, 3)}, ClassifierConfig(hidden=()))
        save(model, audit(model, Labelled(torch.zeros(2, 16 * 112), np.array([0, 1]), np.array([0, 1]))), tmp_path / "camera")
        flags = ["--reward", str(tmp_path / "camera")]
    command = ["train", "hil-serl", "--run", str(tmp_path / "run"), *FLAGS.split()]
    assert cli.main([*command, *flags]) == 2
    out, err = capsys.readouterr()
    assert said in err and "demonstration" not in out
    assert cli.main([*command, "--human", "none"]) == 0


def test_nobody_is_scripted_for_a_task_of_ones_own() -> None:
    """`--env` without `--human`: that the toolkit knows no such task is no help."""
    own = TaskSpec("lab", "plug", obs_dim=4, action_dim=2, horizon=40, dt=0.1, text="plug it in")
    for spec in (own, replace(own, live=True)):
        with pytest.raises(RealrlError, match=r"lab/plug: nobody wrote a script for a task of your own: .* --human"):
            envs.scripted(spec)
    assert envs.scripted(replace(own, twin="contact/peg")) == "contact/peg"


def test_demonstrations_that_stay_where_they_ended_are_cut_by_the_command_that_is_named(tmp_path: Path) -> None:
    """As they are recorded for a classifier: solved from the second step on, until a clock ends it."""
    stays = replace(episode("hhhh"), success=np.array([False, True, True, True]), reward=np.array([0.5, 1, 1, 1], np.float32))
    with pytest.raises(RealrlError, match=r"a clock ended it: .*; cut what follows success \(`realrl data trim --after-success`\)"):
        refuse_contradictions([stays])
    Store.create(tmp_path / "long", task="lab", fps=10).append([stays])
    assert cli.main(["data", "trim", str(tmp_path / "long"), "--after-success", "--out", str(tmp_path / "short")]) == 0
    cut = Store.open(tmp_path / "short").read()
    refuse_contradictions(cut)
    assert len(cut[0]) == 2 and cut[0].terminated and cut[0].succeeded


def test_a_run_goes_on_with_another_classifier_and_keeps_what_was_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first believes in success above the slot. What it ended too soon was recorded and is not done again; said to be failures, these
    episodes pay nothing."""
    shallow, right = deep(tmp_path / "shallow", 0.0), deep(tmp_path / "right", 1.0)
    cfg = tiny(reward=shallow, steps=150, save_every=10**6, operator=OperatorConfig(patience=2, cap=1.0))
    folder, seen, before = tmp_path / "run", [], hil_serl.Pen.note

    def note(self: Any, found: Any) -> str:
        seen.extend(found)
        if len(seen) > 110 and self._stream.between:
            raise KeyboardInterrupt
        return before(self, found)

    monkeypatch.setattr(hil_serl.Pen, "note", note)
    with pytest.raises(KeyboardInterrupt):
        run_of(folder, cfg)
    monkeypatch.setattr(hil_serl.Pen, "note", before)
    store = Store.open(folder / "dataset")
    wrong = [i for i, e in enumerate(store.read()) if e.policy == "hil-serl" and e.succeeded]
    assert wrong
    assert cli.main(["reward", "label", str(folder / "dataset"), "--wrong", ",".join(map(str, wrong))]) == 0
    memories = []
    monkeypatch.setattr(hil_serl, "Memory", lambda *given: (memories.append(hil_serl_memory(*given)), memories[-1])[1])
    other = replace(cfg, reward=right)
    with Run.start(folder, other, True, renewed=("reward",)) as run, WorkCell(run, other) as cell:
        summary = train(other, cell)
    assert config.load(HILConfig, folder / "config.yaml").reward == right, "from now on"
    done = [e for e in Store.open(folder / "dataset").read() if e.policy == "hil-serl"]
    assert len({e.seed for e in done}) == len(done) and summary["headline"]["transitions"] == sum(map(len, done))
    assert sum(t.success for t in memories[0].trials) == sum(e.succeeded for e in done)
    early = [e for e in done if e.seed in {m.seed for m in seen}]
    assert len(early) >= len(wrong) and not any(e.succeeded or e.reward.any() or e.terminated for e in early)


hil_serl_memory = hil_serl.Memory


def test_a_resumed_run_takes_another_device_but_no_other_person(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert cli.main(["train", "hil-serl", "--run", str(folder), "--human", "none", *FLAGS.split()]) == 0
    again = ["train", "hil-serl", "--run", str(folder), "--resume"]
    assert cli.main([*again, "--human", "scripted"]) == 2
    assert "differs in human: 'none' -> 'scripted'" in capsys.readouterr().err
    file = folder / "config.yaml"
    file.write_text(file.read_text().replace("human: none", "human: gamepad"))
    assert cli.main([*again, "--human", "keyboard"]) == 2
    assert "needs a terminal to type in" in capsys.readouterr().err, "that it is another device is no matter"
    assert config.load(HILConfig, file).human == "keyboard"
    assert json.loads((folder / "summary.json").read_text())["headline"]
