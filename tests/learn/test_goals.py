"""Goals: which a decision is shown, that text and goal each suffice to two robots under one policy, and what a bank keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from realrl import envs
from realrl.cell.rollout import rollout
from realrl.generative.flow import FlowConfig
from realrl.learn.fit import ImitationConfig
from realrl.learn.flow import FlowFit, Lessons
from realrl.learn.goals import GoalConfig, Goals
from realrl.policies.flow import FlowPolicy, FlowPolicyConfig, Told, body_of
from realrl.policies.goals import KEPT
from realrl.robots.guard import box_guard
from realrl.scene import SightConfig
from realrl.types import Episode, RealrlError

TASKS = ("toy/red", "toy/blue", "toy/line")


def demos(task: str, count: int) -> list[Episode]:
    env = envs.make(task)
    return list(rollout([env], envs.expert(task, noise=0.2), [box_guard(env)], range(count), greedy=True))


def policy(**changes: int) -> FlowPolicy:
    specs = {task: envs.make(task).task for task in TASKS}
    bodies = list(dict.fromkeys(body_of(s) for s in specs.values()))
    cfg = FlowPolicyConfig(goals=True, reader="words", width=32, heads=2, expert=2, plan=2, chunk=2, flow=FlowConfig(steps=4, **changes))
    return FlowPolicy(cfg, bodies, {task: Told((s.text,), bodies.index(body_of(s))) for task, s in specs.items()})


def prepared(count: int = 6) -> tuple[FlowPolicy, Lessons]:
    torch.manual_seed(0)
    made = policy()
    lessons = Lessons(made, {task: demos(task, count) for task in TASKS})
    made.fit_senses(lessons.frames())
    return made, lessons.encode()


def test_a_failure_is_shown_its_own_end_alone_and_told_nothing() -> None:
    _, lessons = prepared()
    worthy = {task: np.array([True, False, True, True, False, True]) for task in TASKS}
    goals = Goals(lessons, worthy, GoalConfig(other=0.5, hide_goal=0.25, hide_text=0.4))
    index = torch.arange(len(lessons)).repeat(60)
    goal = goals.draw(index, torch.Generator().manual_seed(0))
    ends = {task: [lessons.policy.look({"state": torch.from_numpy(e.obs["state"][-1:])}, lessons.policy.tasks[task].body)["state"][0]
                   for e in demos(task, 6)] for task in TASKS}
    view = {task: v for task, v in zip(TASKS, lessons.views, strict=True)}
    others, counted = 0, 0
    for i in range(len(lessons)):
        task = TASKS[int(lessons.task[i])]
        number = int(view[task].episode[lessons.row[i]])
        rows = (index == i).nonzero().flatten()
        shown = [next(j for j, end in enumerate(ends[task]) if torch.equal(end, goal.state[r])) for r in rows]
        if worthy[task][number]:
            assert set(shown) <= {0, 2, 3, 5}, "a failure's end is nobody's goal but its own"
            if task != "toy/line":  # its ends are all the same
                others, counted = others + sum(j != number for j in shown), counted + len(shown)
        else:
            assert not goal.told[rows].any()
            assert all(torch.equal(goal.state[r], ends[task][number]) for r in rows)
    good = goals.good[index]
    assert goal.given.float().mean() == pytest.approx(0.75, abs=0.02) and goal.told[good].float().mean() == pytest.approx(0.6, abs=0.02)
    assert others / counted == pytest.approx(0.5 * 3 / 4, abs=0.06), "half are drawn, of those a quarter is its own again"


def test_text_and_goal_each_suffice_to_two_robots_under_one_policy(long: bool) -> None:
    if not long:
        pytest.skip("ten seconds: asked for with --long")
    made, lessons = prepared(60)
    goals = Goals(lessons, {task: np.ones(60, bool) for task in TASKS}, GoalConfig(hide_goal=0.3, hide_text=0.5))
    fit = FlowFit(made, lessons, ImitationConfig(steps=400, batch=128, lr=3e-3, warmup=20), seed=0, goals=goals)
    while fit.step < 400:
        fit.update()
    fit.finish()

    def success(who: FlowPolicy, task: str) -> float:
        worlds = [envs.make(task) for _ in range(16)]  # more starts than worlds: a goal is drawn anew
        return float(np.mean([e.succeeded for e in rollout(worlds, who, [box_guard(e) for e in worlds], range(1000, 1020), greedy=True)]))

    for task in TASKS:
        for means in ("text", "goal"):
            assert success(made.told(task, means=means), task) > 0.5, (task, means)  # chance is at most 0.5, and 0 where it dithers
    assert success(made.told("toy/red", goals_of="toy/blue", means="goal"), "toy/red") < 0.3, "shown the wrong end it goes there"


def test_guidance_leads_towards_the_goal_and_a_goal_belongs_to_its_episode() -> None:
    made, lessons = prepared()
    Goals(lessons, {task: np.ones(6, bool) for task in TASKS}, GoalConfig())
    torch.nn.init.normal_(made.actor.expert.tone.weight, std=0.3)  # untrained gates are closed
    guided = policy(guidance=2)
    guided.load_state_dict(made.state_dict())
    obs = {"state": np.zeros((2, 1, 6), np.float32)}

    def acts(who: FlowPolicy, seeds: tuple[int, int]) -> tuple[np.ndarray, list[int]]:
        state = who.start(2)
        rng = [np.random.default_rng(s) for s in seeds]
        plan, state = who.act(obs, state, greedy=True, rng=rng)
        _, later = who.act(obs, state, greedy=True, rng=rng)
        assert torch.equal(state["goal"], later["goal"]), "drawn once an episode"
        return plan.action, state["goal"].tolist()

    plain, drawn = acts(made.told("toy/red"), (1, 2))
    led, same = acts(guided.told("toy/red"), (1, 2))
    assert drawn == same and acts(made.told("toy/red"), (2, 1))[1] == drawn[::-1]
    assert not np.allclose(plain, led)
    assert np.array_equal(acts(guided.told("toy/red", means="text"), (1, 2))[0], acts(made.told("toy/red", means="text"), (1, 2))[0])


def test_a_bank_keeps_a_part_and_one_without_goals_says_so() -> None:
    made, lessons = prepared(KEPT + 9)
    assert made.told("toy/red").aim < 0, "none yet: it is told by text"
    with pytest.raises(RealrlError, match="keeps no goal of toy/red"):
        made.told("toy/red", means="goal")
    Goals(lessons, {task: np.ones(KEPT + 9, bool) for task in TASKS}, GoalConfig())
    assert made.goals is not None and made.goals.count.tolist() == [KEPT] * 3


def test_the_goals_shown_are_those_of_what_is_said() -> None:
    """Told another task's text it was shown the goals of the one that its folder is of: two orders at once."""
    made, lessons = prepared()
    worthy = {task: np.arange(6) < (2 if task == "toy/blue" else 6) for task in TASKS}
    Goals(lessons, worthy, GoalConfig())
    red, blue = (list(made.tasks).index(f"toy/{name}") for name in ("red", "blue"))
    assert made.told("toy/red").aim == red and made.told("toy/red", made.tasks["toy/red"].texts[0]).aim == red
    other = made.told("toy/red", made.tasks["toy/blue"].texts[0])
    assert other.aim == blue and other.told("toy/red", goals_of="toy/red").aim == red
    with pytest.warns(UserWarning, match="never seen in training.*; no goal is shown beside it"):
        unheard = made.told("toy/red", "paint the fence")
    assert unheard.aim < 0
    obs, rng = {"state": np.zeros((1, 1, 6), np.float32)}, [np.random.default_rng(0)]
    _, nothing = unheard.act(obs, unheard.start(1), greedy=True, rng=rng)
    for begun in (nothing, {"goal": torch.tensor([5])}):  # who is told something else amid an episode
        _, state = other.act(obs, begun, greedy=True, rng=rng)
        assert 0 <= int(state["goal"]) < 2, "of this task it keeps two"


def test_foresight_learns_what_comes_next_and_counts_no_numbers_that_a_robot_has_not() -> None:
    made, lessons = prepared(20)
    goals = Goals(lessons, {task: np.ones(20, bool) for task in TASKS}, GoalConfig(foresight=1.0, ahead=2))
    index = torch.arange(len(lessons))
    batch = lessons.batch(index)

    def loss() -> torch.Tensor:
        return goals.foresight(made.prefix(batch.state, batch.text, batch.pictures, batch.robot), batch.robot, lessons.order(index))

    before, optimiser = loss().item(), torch.optim.Adam(made.prefix.parameters(), 3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    assert loss().item() < 0.5 * before
    state, _ = made.prefix.foresee(made.prefix(batch.state, batch.text, batch.pictures, batch.robot), batch.robot)
    assert (state[batch.robot == 1][:, 1:] == 0).all(), "the walker has one number"
    assert float(Goals(lessons, {task: np.ones(20, bool) for task in TASKS}, GoalConfig(foresight=0.0)).foresight(
        torch.zeros(1, 1), batch.robot[:1], index[:1])) == 0


def test_a_goal_is_a_picture_where_the_policy_sees_pictures() -> None:
    """Tokens of the end's picture, through the frames' own way; another picture as the goal is another plan."""
    task = "toy/reach"
    env = envs.make(task, sight=SightConfig(kind="rgb", height=32, width=32))
    shown = list(rollout([env], envs.expert(task), [box_guard(env)], range(4), greedy=True))
    torch.manual_seed(0)
    cfg = FlowPolicyConfig(goals=True, reader="words", width=32, heads=2, expert=1, plan=2, chunk=2, flow=FlowConfig(steps=2))
    made = FlowPolicy(cfg, [body_of(env.task)], {task: Told((env.task.text,))}, senses=env.task.senses)
    lessons = Lessons(made, {task: shown})
    made.fit_senses(lessons.frames())
    goals = Goals(lessons.encode(), {task: np.array([True, True, True, False])}, GoalConfig(hide_goal=0.0, hide_text=0.0))
    torch.nn.init.normal_(made.actor.expert.tone.weight, std=0.3)
    goal = goals.draw(torch.arange(len(lessons)), torch.Generator().manual_seed(0))
    assert goal.pictures["images.top"].shape == (len(lessons), 16, 112) and goal.given.all()
    fit = FlowFit(made, lessons, ImitationConfig(steps=2, batch=8), seed=0, goals=goals)
    assert np.isfinite(fit.update()["loss"])
    fit.finish()
    ends = made.look({key: torch.from_numpy(np.stack([e.obs[key][-1] for e in shown[:3]])) for key in ("state", "images.top")}, 0)
    assert made.goals is not None and torch.allclose(made.goals.pictures[0, :3, 0].float(), ends["images.top"].float(), atol=0.05)
    obs = {key: x[:1][None] for key, x in shown[0].obs.items()}
    plans = []
    for number in (0, 2):
        state = {"goal": torch.tensor([number])}
        plans.append(made.told(task, means="goal").act(obs, state, greedy=True, rng=[np.random.default_rng(0)])[0].action)
    assert not np.allclose(*plans)
