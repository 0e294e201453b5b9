"""Lessons of several tasks and robots as one table, and a fit that padding cannot change."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from realrl.generative.diffusion import DistillConfig
from realrl.learn.fit import ImitationConfig, imitate
from realrl.learn.flow import FlowFit, Lessons, distil, listed, together
from realrl.nets.transformer import NEGATIVE, NONE, POSITIVE
from realrl.policies.flow import Body, FlowPolicy, FlowPolicyConfig, Told
from realrl.run import Run
from realrl.types import Episode, RealrlError, TaskSpec


def episode(steps, obs=3, act=2, seed=0):
    rng = np.random.default_rng(seed)
    return Episode(obs={"state": rng.normal(size=(steps + 1, obs)).astype(np.float32)},
                   action=rng.uniform(-1, 1, (steps, act)).astype(np.float32), proposed=np.zeros((steps, act), np.float32),
                   source=np.zeros(steps, np.uint8), reward=np.zeros(steps, np.float32), success=np.zeros(steps, bool),
                   time=np.arange(steps) * 0.1, starts_plan=np.ones(steps, bool), terminated=True, truncated=False, task="t", policy="p",
                   seed=seed)


def make(**changes):
    torch.manual_seed(0)
    cfg = FlowPolicyConfig(**{"plan": 4, "chunk": 4, "width": 16, "heads": 2, "expert": 1, "reader": "words", **changes})
    return FlowPolicy(cfg, [Body("arm", 3, 2), Body("hand", 2, 1)],
                      {"a": Told(("open it", "pull it open")), "b": Told(("close it",)), "c": Told(("wave",), 1)})


def lessons(policy):
    found = Lessons(policy, {"a": [episode(5), episode(3, seed=1)], "b": [episode(4, seed=2)], "c": [episode(6, 2, 1, seed=3)]})
    policy.fit_senses(found.frames())
    return found.encode()


def test_a_table_of_all_decisions():
    policy = make()
    table = lessons(policy)
    assert len(table) == 18 and table.task.tolist() == [0] * 8 + [1] * 4 + [2] * 6
    index = torch.tensor([17, 0, 9, 7])
    order = table.order(index)
    batch = table.batch(index)
    assert order.tolist() == [0, 7, 9, 17] and batch.robot.tolist() == [0, 0, 0, 1]
    assert batch.action.shape == (4, 4, 2) and batch.state.shape == (4, 3)
    assert torch.equal(batch.action[0], torch.from_numpy(episode(5).action[:4])) and batch.valid[1].tolist() == [True, False, False, False]
    assert batch.real.tolist() == [[True, True]] * 3 + [[True, False]] and (batch.action[3, :, 1] == 0).all() and batch.state[3, 2] == 0
    assert torch.equal(batch.text[2], table.texts[2]) and not torch.equal(batch.text[2], batch.text[0])


def test_what_is_kept_of_a_frame_is_what_acting_makes_of_it():
    """The conditions of a fit, from what was looked at once, are those of a decision there and then, for every robot."""
    policy = make()
    table = lessons(policy)
    cond = table.conditions()
    for task, index in (("a", 0), ("b", 9), ("c", 13)):
        view, row = table.views[table.task[index]], table.row[index:index + 1]
        seen = {"state": view.frames["state"][view.rows(row)[0]]}
        assert torch.allclose(policy.told(task).encode(seen), cond[index:index + 1, :-1], atol=1e-5)
        assert int(cond[index, -1]) == policy.tasks[task].body


def test_the_one_step_head_is_taught_under_every_text(monkeypatch):
    """Under the first alone it met the others only where it was deployed."""
    policy, shown = make(), []
    table = lessons(policy)

    class Taught:
        def finish(self, cond, *_):
            shown.append(cond)

    class Cell:
        run = SimpleNamespace(rewind=lambda *_: None, bar=lambda *_: nullcontext(), logger=lambda _: None)
        timed = staticmethod(lambda _: nullcontext())

    monkeypatch.setattr(policy, "distillation", lambda cfg: Taught())
    distil(Cell(), policy, table, DistillConfig(), 0)
    first, other = (policy.prefix(table.seen[0]["state"], table.texts[row].expand(10, -1), {}, torch.zeros(10, dtype=torch.int64))
                    for row in (0, 1))
    said = [next(i for i, of in enumerate((first, other)) if any(torch.allclose(cond[:-1], x, atol=1e-6) for x in of))
            for cond in shown[0][:8]]
    assert set(said) == {0, 1} and policy.distilled


def test_every_task_is_drawn_as_often_and_every_text():
    table = lessons(make())
    index = table.draw(3000, torch.Generator().manual_seed(0))
    assert table.task[index].bincount().tolist() == pytest.approx([1000] * 3, rel=0.1)
    batch = table.batch(index[table.task[index] == 0], torch.Generator().manual_seed(0))
    assert float((batch.text == table.texts[0]).all(1).float().mean()) == pytest.approx(0.5, abs=0.05)


def test_padding_cannot_change_the_loss():
    """Neither actions beyond an episode's end, nor numbers that a robot has not."""
    policy = make()
    table = lessons(policy)
    fit = FlowFit(policy, table, ImitationConfig(batch=8), seed=0)
    index = torch.arange(len(table))
    before = float(fit.loss(index, torch.Generator().manual_seed(0)).detach())
    true = table.batch

    def padded(index, random=None):
        batch = true(index, random)
        counts = batch.valid[..., None] & batch.real[:, None]
        batch.action = torch.where(counts, batch.action, 7.0)
        return batch

    table.batch = padded
    torch.nn.init.normal_(policy.actor.expert.tone.weight, std=0.3)
    table.batch, one = true, float(fit.loss(index, torch.Generator().manual_seed(0)).detach())
    table.batch = padded
    assert float(fit.loss(index, torch.Generator().manual_seed(0)).detach()) == pytest.approx(one, abs=1e-6) and one != before


def test_the_indicator_is_dropped_as_often_as_said(monkeypatch):
    policy = make()
    table = lessons(policy)
    told = []
    monkeypatch.setattr(policy.actor, "forward", lambda x, t, memory, robot, mark, valid: told.append(mark) or x * 0)
    mark = torch.where(torch.arange(len(table)) % 2 == 0, POSITIVE, NEGATIVE)
    fit = FlowFit(policy, table, ImitationConfig(batch=8), seed=0, mark=mark, dropout=0.3)
    index = torch.arange(len(table)).repeat(200)
    fit.loss(index, torch.Generator().manual_seed(0))
    assert float((told[0] == NONE).float().mean()) == pytest.approx(0.3, abs=0.03)
    heard = told[0] != NONE
    assert torch.equal(told[0][heard], mark[table.order(index)][heard]), "each decision its own"


def test_the_state_is_hidden_as_often_as_said_from_who_has_pictures(monkeypatch):
    """A policy that has its joints' numbers may never look."""
    policy = make(state_dropout=0.4)
    table, seen = lessons(policy), []
    true = policy.prefix.forward
    monkeypatch.setattr(policy.prefix, "forward", lambda state, *rest: seen.append(state) or true(state, *rest))
    index = torch.arange(len(table)).repeat(100)
    fit = FlowFit(policy, table, ImitationConfig(batch=8), seed=0)
    fit.loss(index, torch.Generator().manual_seed(0))
    batch = table.batch

    def without(*args):  # decisions of a policy whose pictures nobody recorded
        policy.eyes.slots = []
        found = batch(*args)
        policy.eyes.slots = ["images.top"]
        return found

    policy.eyes.slots = ["images.top"]  # as if it had some: the prefix is not asked for them
    monkeypatch.setattr(table, "batch", without)
    fit.loss(index, torch.Generator().manual_seed(0))
    hidden = [float((state == 0).all(1).float().mean()) for state in seen]
    assert hidden[0] == 0 and hidden[1] == pytest.approx(0.4, abs=0.03)


def test_weights_and_a_choice_of_decisions():
    policy = make()
    table = lessons(policy)
    fit = FlowFit(policy, table, ImitationConfig(batch=8), seed=0, among=torch.tensor([3, 5]))
    assert set(table.draw(100, torch.Generator().manual_seed(0), fit.among).tolist()) == {3, 5}
    fit.weight = torch.zeros(len(table))
    assert float(fit.loss(torch.arange(8), torch.Generator().manual_seed(0)).detach()) == 0


def test_a_task_of_another_robot_is_refused():
    with pytest.raises(RealrlError, match="c: an episode of 3 observation and 2 action numbers, its robot has 2 and 1"):
        Lessons(make(), {"c": [episode(3)]})


def test_what_tasks_are_named():
    assert listed("", ("a,b", "c"), ("x",)) == ("a", "b", "c") and listed("", ("x",), ("x",)) == ("x",)
    assert listed("a", ("x", "y"), ("x", "y")) == ("a",) and listed("y", ("x", "y"), ("x", "y")) == ("x", "y")
    assert listed("", (), ()) == ()
    with pytest.raises(RealrlError, match="an empty list of tasks: name some, or leave its flag out, which means x y"):
        listed("", ("",), ("x", "y"))


def test_tasks_that_one_run_would_mix_up_and_what_is_no_picture_are_refused():
    """A run calls its stages by a task's name without its suite: the second of one name would take the first one's result for its own."""
    def spec(suite: str, name: str, **senses: tuple[int, ...]) -> TaskSpec:
        return TaskSpec(suite, name, 2, 1, 5, 0.1, "do it", senses={key.replace("_", "."): shape for key, shape in senses.items()})

    one = spec("a", "reach", images_top=(8, 8, 3))
    for other in ({"images_top": (8, 8, 3)}, {"images_side": (8, 9, 3)}, {}):
        together({"a/reach": one, "b/push": spec("b", "push", **other)})
    with pytest.raises(RealrlError, match="a/reach and b/reach are both called reach"):
        together({"a/reach": one, "b/reach": spec("b", "reach", images_top=(8, 8, 3))})
    for senses in ({"pointcloud": (512, 3)}, {"depth_top": (8, 8)}):
        with pytest.raises(RealrlError, match="a flow policy looks at pictures: train it with"):
            together({"b/push": spec("b", "push", **senses)})


def test_layers_of_robots_learn_faster_where_it_is_asked_for_and_nothing_else_does():
    def moved(own):
        policy = make(goals=True)
        torch.nn.init.normal_(policy.actor.expert.tone.weight, std=0.3)  # gates that begin closed keep what is behind them still
        before = {name: p.detach().clone() for name, p in policy.named_parameters()}
        FlowFit(policy, lessons(policy), ImitationConfig(batch=8, steps=4, warmup=0), seed=3, own=own).update()
        return {name: float((p.detach() - before[name]).norm()) for name, p in policy.named_parameters()}

    slow, fast = moved(1.0), moved(10.0)  # Adam's first step is as long as its rate
    own = {"prefix.state_in", "prefix.prompt", "actor.action_in", "actor.head"}
    for name, far in slow.items():
        assert fast[name] == pytest.approx(far * (10 if name in own else 1), rel=1e-3), name
    assert all(slow[name] > 0 for name in own)


def test_a_fit_goes_on_where_it_was():
    weights = []
    for first in (4, 2):
        policy = make()
        fit = FlowFit(policy, lessons(policy), ImitationConfig(batch=8, steps=4, warmup=1), seed=3)
        for _ in range(first):
            fit.update()
        if first < 4:
            state = fit.state_dict()
            policy = make()
            fit = FlowFit(policy, lessons(policy), ImitationConfig(batch=8, steps=4, warmup=1), seed=3)
            fit.load_state_dict(state)
            for _ in range(4 - first):
                fit.update()
        fit.finish()
        weights.append(policy.state_dict())
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())


def test_a_fit_that_is_done_is_not_repeated(tmp_path, monkeypatch):
    """Saved every 500 steps alone, one of 700 was resumed for its last 200, however often a run was cut off behind it."""
    cfg, asked = ImitationConfig(batch=4, steps=100, warmup=0), []
    run = Run.start(tmp_path, cfg)
    with run:
        for _ in range(2):
            policy = make()
            fit = FlowFit(policy, lessons(policy), cfg, seed=3)
            true = fit.update
            monkeypatch.setattr(fit, "update", lambda true=true: asked.append(1) or true())
            imitate(run, fit, "generalist-1")
            assert fit.step == 100
    assert len(asked) == 100
