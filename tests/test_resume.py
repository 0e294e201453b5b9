"""A run that is interrupted, wherever, continues to the same numbers, bit for bit."""

import json
import shutil

import pytest
import torch

from realrl.algos import bc, rl100
from realrl.algos.rl100 import OfflineRound, Online
from realrl.cell.cell import WorkCell
from realrl.cell.judge import Judge
from realrl.data.store import Store
from realrl.data.tools.check import check
from realrl.learn.imitation import Imitation, ImitationConfig
from realrl.policies.diffusion import DiffusionPolicy
from realrl.run import Run
from realrl.scene import CollectConfig
from realrl.types import RealrlError
from toy_runs import metrics, results, tiny, weights


def interrupt(monkeypatch, cls, name, nth, *, after=False):
    """Ctrl-C at the nth call of a method, before or after its work."""
    method, calls = getattr(cls, name), []

    def wrapped(self, *args, **kwargs):
        calls.append(name)
        if len(calls) == nth and not after:
            raise KeyboardInterrupt
        result = method(self, *args, **kwargs)
        if len(calls) == nth:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(cls, name, wrapped)


POINTS = {  # moments in the order they come, each counted from the resumption that the one before made necessary
    "demonstrations, just recorded": (Store, "append", 1, True),
    "imitation, past a checkpoint": (Imitation, "update", 560, False),
    "a checkpoint, before it is written": (Run, "save", 1, False),
    "evaluation of the demonstrator": (Judge, "evaluate", 1, True),
    "evaluation of the imitation": (Judge, "evaluate", 2, False),
    "rollouts, the first twenty recorded": (Store, "append", 2, False),
    "re-imitation": (Imitation, "update", 30, False),
    "the first line of an offline round": (Run, "log", 2, True),
    "inside the offline round": (DiffusionPolicy, "explore", 5, False),
    "evaluation of the offline round": (Judge, "evaluate", 1, True),
    "the first online round": (Online, "_learn", 1, True),
    "online, past a checkpoint": (Online, "_learn", 4, False),
    "online again, logged but not saved": (Run, "log", 1, True),
    "distillation": (Run, "log", 4, True),
    "evaluation of the student": (Judge, "evaluate", 1, True),
    "the audit": (Judge, "evaluate", 2, False),
}


def test_interrupted_everywhere_equals_uninterrupted(tiny_run, tmp_path, monkeypatch):
    left = []
    for where, (cls, name, nth, after) in POINTS.items():
        torch.manual_seed(len(left))  # every process has another past
        with monkeypatch.context() as patch, Run.start(tmp_path, tiny(), resume=True) as run, WorkCell(run, tiny()) as cell:
            interrupt(patch, cls, name, nth, after=after)
            try:
                rl100.train(tiny(), cell)
            except KeyboardInterrupt:
                left.append(where)
    assert left == list(POINTS), "the table names moments that no longer come"
    with Run.start(tmp_path, tiny(), resume=True) as run, WorkCell(run, tiny()) as cell:
        rl100.train(tiny(), cell)
    same(tiny_run, tmp_path)


def same(straight, folder):
    a, b = weights(straight), weights(folder)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    expected, found = metrics(straight), metrics(folder)
    assert len(found) == len(expected), "no line twice, none lost"
    assert sorted(found, key=repr) == sorted(expected, key=repr)
    assert results(folder) == results(straight)
    assert json.loads((folder / "ope.json").read_text()) == json.loads((straight / "ope.json").read_text())
    assert recorded(folder) == recorded(straight)
    assert not [p for p in check(folder / "dataset") if p.severity == "error"]


def recorded(folder):
    """Every recorded episode, in no order."""
    return sorted((e.policy, e.seed, e.action.tobytes(), e.obs["state"].tobytes()) for e in Store.open(folder / "dataset").read())


def test_a_finished_run_is_not_repeated(tiny_run, tmp_path, monkeypatch):
    straight = shutil.copytree(tiny_run, tmp_path / "run")
    before, lines = weights(straight), metrics(straight)
    for cls, name in ((Imitation, "update"), (Online, "round"), (OfflineRound, "improve")):
        interrupt(monkeypatch, cls, name, 1)
    with Run.start(straight, tiny(), resume=True) as run, WorkCell(run, tiny()) as cell:
        rl100.train(tiny(), cell)
    after = weights(straight)
    assert all(torch.equal(before[k], after[k]) for k in before) and metrics(straight) == lines


def test_stage_by_stage_equals_all_at_once_whatever_steps_together(tiny_run, tmp_path):
    """Each command loads what the ones before it left, though it does not name their stages; how many environments step together changes
    nothing."""
    for stages in (("imitation", "offline"), ("online",), ("one-step", "offline")):
        cfg = tiny(stages=stages, collect=CollectConfig(workers=1, envs_per_worker=7))
        with Run.start(tmp_path, cfg, resume=True, ignore=("stages",)) as run, WorkCell(run, cfg) as cell:
            rl100.train(cfg, cell)
    same(tiny_run, tmp_path)


def test_other_settings_are_refused(tiny_run):
    with pytest.raises(RealrlError, match=r"differs in .*gamma") as caught:
        Run.start(tiny_run, tiny(gamma=0.5), resume=True)
    assert "\n" not in str(caught.value)


def test_behaviour_cloning_resumes(tmp_path, monkeypatch):
    cfg = bc.BCConfig(task="toy/obstacle", demos=6, policy=tiny().policy, imitation=ImitationConfig(steps=540, batch=16),
                      collect=CollectConfig(workers=1), eval_episodes=10)
    with Run.start(tmp_path / "whole", cfg) as run, WorkCell(run, cfg) as cell:
        bc.train(cfg, cell)
    for nth in (520, 530):  # past the checkpoint at 500: it goes on from there, twice
        with monkeypatch.context() as patch, Run.start(tmp_path / "parts", cfg, resume=True) as run, WorkCell(run, cfg) as cell:
            interrupt(patch, Imitation, "update", nth if nth == 520 else nth - 500)
            with pytest.raises(KeyboardInterrupt):
                bc.train(cfg, cell)
    with Run.start(tmp_path / "parts", cfg, resume=True) as run, WorkCell(run, cfg) as cell:
        bc.train(cfg, cell)
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts") and results(tmp_path / "whole") == results(tmp_path / "parts")
