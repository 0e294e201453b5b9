"""Plans while moving: who does what at which step, whatever plans take."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

from realrl.cell.overlap import Overlap, OverlapConfig, steps_of
from realrl.cell.rollout import play
from realrl.types import Array, Moment, Plan, RealrlError


class Clockwork:
    """Plans that say at which step each of their actions is meant to be done; what is seen is the step."""

    name, chunk, n_obs = "clockwork", 4, 1

    def __init__(self, plan: int = 12, delay: int = 0, takes: float = 0.0) -> None:
        self.plan, self.delay, self.takes, self.told = plan, delay, takes, [[]]

    def start(self, batch: int) -> dict[str, Any]:
        return {"ahead": torch.zeros(batch, self.delay, 1), "decided": torch.zeros(batch)} if self.delay else {}

    def act(self, obs: dict[str, Array], state: Any, *, greedy: bool, rng: Any) -> tuple[Plan, Any]:
        time.sleep(self.takes)
        if state:
            self.told = [ahead[:int(n)].flatten().tolist() for ahead, n in zip(state["ahead"], state["decided"], strict=True)]
        noise = np.array([g.normal() for g in rng])
        return Plan((obs["state"][:, -1:] + np.arange(self.plan)[None, :, None] + 0.01 * noise[:, None, None] * (not greedy)), {}), state


def run(policy: Overlap, steps: int, rows: int = 1, greedy: bool = True) -> tuple[Array, Array, Array]:
    """(actions [T, rows], ages, begins) of robots that see step 0, 1, 2, ..."""
    state, found, rng = policy.start(rows), [], [np.random.default_rng(i) for i in range(rows)]
    for t in range(steps):
        plan, state = policy.act({"state": np.full((rows, 1, 1), float(t))}, state, greedy=greedy, rng=rng)
        found.append((plan.action[:, 0, 0], plan.extra["age"], plan.extra["begins"]))
    return tuple(np.stack(x) for x in zip(*found, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize("how", ["naive", "best"])
@pytest.mark.parametrize("delay", [0, 1, 2, 4, 6])
def test_every_action_is_done_at_the_step_it_was_meant_for(how: Any, delay: int) -> None:
    policy = Overlap(Clockwork(), OverlapConfig(how, delay), relative=False)
    actions, ages, begins = run(policy, 40, rows=3)
    assert (actions == np.arange(40)[:, None]).all() and policy.overruns == 0
    every = max(Clockwork.chunk, delay)
    assert begins[:, 0].nonzero()[0].tolist() == [0, *range(every, 40, every)], "plans come as often as without a delay, if they can"
    assert ages[begins[:, 0]][1:].tolist() == [[delay] * 3] * (begins[:, 0].sum() - 1)
    assert ages.max() == delay + every - 1


def test_stop_and_think_holds_the_robot_and_is_late() -> None:
    actions, ages, _ = run(Overlap(Clockwork(), OverlapConfig("stop", 3), relative=False), 18)
    assert actions[:, 0].tolist() == [0, 1, 2, 3, 3, 3, 3, 4, 5, 6, 7, 7, 7, 7, 11, 12, 13, 14]
    assert ages[[0, 7, 10]].flatten().tolist() == [0, 3, 6]
    held = run(Overlap(Clockwork(), OverlapConfig("stop", 3), relative=True), 7)[0]
    assert held[4:, 0].tolist() == [0, 0, 0], "where zeros keep it in its place"


def test_a_policy_that_can_be_told_is_told_what_is_decided() -> None:
    inner = Clockwork(delay=3)
    policy = Overlap(inner, OverlapConfig("prefix", 2), relative=False)
    run(policy, 3)
    assert inner.told == [[2, 3]], "asked at step 2 for step 4 on"
    with pytest.raises(RealrlError, match=r"trained for 3 decided actions, 4 are to be: .*--policy.flow.delay 4"):
        Overlap(inner, OverlapConfig("prefix", 4), relative=False)
    with pytest.raises(RealrlError, match=r"plans 12 steps, too few for a delay of 9: .*--policy.plan 18"):
        run(Overlap(Clockwork(), OverlapConfig("naive", 9), relative=False), 12)


def test_the_plan_that_agrees_with_what_is_done_is_taken() -> None:
    single, many = (run(Overlap(Clockwork(), OverlapConfig("best", 2, samples=n), relative=False), 400, greedy=False)[0] for n in (1, 16))
    jump = lambda x: np.abs(np.diff(x[:, 0]) - 1).sum()
    assert jump(many) < 0.5 * jump(single)


def test_with_a_thread_nothing_waits_but_the_first_plan() -> None:
    policy = Overlap(Clockwork(takes=0.05), OverlapConfig("naive", 2), relative=False, beside=True)
    state, seen = policy.start(1), []
    for t in range(16):
        begun = time.monotonic()
        plan, state = policy.act({"state": np.full((1, 1, 1), float(t))}, state, greedy=True, rng=[np.random.default_rng(0)])
        seen.append((float(plan.action[0, 0, 0]), time.monotonic() - begun))
        time.sleep(0.04)
    assert [a for a, _ in seen] == list(range(16)) and max(s for _, s in seen[1:]) < 0.04
    steps, slowest = steps_of(Clockwork(takes=0.05), {"state": np.zeros((1, 1, 1))}, 0.04)
    assert slowest >= 0.05 and steps == np.ceil(1.5 * slowest / 0.04)


class Counter:
    """An environment whose observation is the step; 12 steps an episode."""

    def reset(self, seed: int | None = None) -> tuple[dict[str, Array], dict[str, Any]]:
        self.t = 0
        return {"state": np.zeros(1, np.float32)}, {}

    def step(self, action: Array) -> Any:
        self.t += 1
        return {"state": np.full(1, self.t, np.float32)}, 0.0, False, self.t == 12, {}


class Takeover:
    """A person who acts at steps 5 and 6."""

    def poll(self, obs: dict[str, Array], proposed: Array) -> Array | None:
        return np.full(1, -1.0, np.float32) if obs["state"][0] in (5, 6) else None


def test_an_episode_begins_anew_and_after_a_person_the_old_plan_is_forgotten() -> None:
    policy, env = Overlap(Clockwork(), OverlapConfig("naive", 2), relative=False), Counter()
    loose = lambda obs, action: action  # the step's number is the action here
    steps = [m.step for m in play([env], policy, [loose], [0, 1], greedy=True, human=Takeover()) if isinstance(m, Moment)]
    proposed = [float(step.proposed[0]) for step in steps]
    assert proposed == [*range(12)] * 2
