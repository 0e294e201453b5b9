"""The scripted person: late, slow to react, brief, unsteady, and less watchful the better it goes; all of it from its seeds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from realrl import envs
from realrl.algos import hil_serl
from realrl.algos.hil_serl import HILConfig
from realrl.config import OutOfBounds
from realrl.envs import contact
from realrl.envs.base import ScriptedPolicy
from realrl.robots.human import Attendant, OperatorConfig, ScriptedOperator
from realrl.types import Array

STEADY = OperatorConfig(patience=4, reaction=0, late=0, hold=(3, 3), rest=5, noise=0.0, grain=0.0, finish=0.0, fade=0.0)
PROPOSED = np.zeros(1, np.float32)


def operator(cfg: OperatorConfig, *, seed: int = 0) -> ScriptedOperator:
    """Its expert answers with what it sees, a tenth of it; how far a state is, its number says."""
    return ScriptedOperator(cfg, ScriptedPolicy("expert", lambda states: states / 10), lambda state: float(state[0]), seed=seed)


def watched(who: ScriptedOperator, values: list[float]) -> list[float | None]:
    """What it does over states of these numbers, None where it lets the policy act."""
    found: list[Array | None] = [who.poll({"state": np.array([v], np.float32)}, PROPOSED) for v in values]
    return [None if a is None else float(a[0]) for a in found]


def acts(found: list[float | None]) -> str:
    return "".join("." if a is None else "h" for a in found)


def test_it_helps_when_nothing_goes_on_for_a_while_then_lets_it_try() -> None:
    who = operator(STEADY)
    assert isinstance(who, Attendant)
    assert acts(watched(who, [1.0] * 20)) == "....hhh.....hhh.....", "four steps of nothing, three of help, five of watching"
    who.begin(1)
    assert acts(watched(who, [float(i) for i in range(20)])) == "." * 20, "it goes on: no help"


def test_it_helps_at_once_when_much_is_lost() -> None:
    assert acts(watched(operator(STEADY), [20, 21, 22, 11, 11, 11])) == "...hhh"
    assert acts(watched(operator(STEADY), [20, 21, 22, 13, 24, 25])) == "......"


def test_it_sees_late_and_makes_up_for_most_of_it() -> None:
    cfg = replace(STEADY, patience=1, late=3, foresight=0.8, hold=(1, 1), cap=1.0)
    found = watched(operator(cfg), [0.0, 1.0, 2.0, 3.0, 3.0])
    assert acts(found[:4]) == ".h..", "of the second state it knows only the first: nothing goes on"
    found = watched(operator(replace(cfg, hold=(9, 9))), [0.0, 1.0, 2.0, 3.0, 4.0])
    assert found[4] == pytest.approx((1.0 + 0.8 * 3.0) / 10), "of the way since, four fifths"


def test_its_hand_takes_a_while_to_be_there() -> None:
    first = [acts(watched(operator(replace(STEADY, reaction=3), seed=seed), [1.0] * 12)).index("h") for seed in range(40)]
    assert set(first) == {4, 5, 6, 7}


def test_corrections_are_as_long_as_told_and_go_on_to_the_end_while_little_is_rewarded() -> None:
    lengths = {acts(watched(operator(replace(STEADY, hold=(2, 5)), seed=seed), [1.0] * 11)).count("h") for seed in range(40)}
    assert lengths == {2, 3, 4, 5}
    who = operator(replace(STEADY, finish=0.33))
    assert acts(watched(who, [1.0] * 40)) == "...." + "h" * 36
    for _ in range(3):
        who.end(True)
    who.begin(1)
    assert acts(watched(who, [1.0] * 8)) == "....hhh.", "a third was rewarded: no more than a nudge"


def test_its_hand_is_slow_unsteady_and_coarse() -> None:
    cfg = replace(STEADY, patience=1, hold=(400, 400), noise=0.1, grain=0.05, cap=0.5)
    steps = np.array([a for a in watched(operator(cfg), [2.0] * 300) if a is not None])
    assert np.allclose(steps / 0.05, np.round(steps / 0.05), atol=1e-5) and 0.08 < steps.std() < 0.12
    assert abs(steps.mean() - 0.2) < 0.03
    assert np.abs([a for a in watched(operator(cfg), [9.0] * 300) if a is not None]).max() == 0.5


def test_it_looks_on_less_the_better_the_robot_does_alone() -> None:
    def noticed(alone: bool) -> float:
        who = operator(replace(STEADY, fade=0.5))
        for seed in range(20):
            who.begin(seed)
            who.end(alone)
        helped = []
        for seed in range(200):
            who.begin(seed)
            helped.append("h" in acts(watched(who, [1.0] * 5)))
        return float(np.mean(helped))

    assert noticed(False) == 1.0 and abs(noticed(True) - 0.5) < 0.12


def test_it_goes_home_after_so_many_steps_at_the_device_in_all_episodes_of_a_resumed_run_too() -> None:
    cfg = replace(STEADY, shift=5)
    who = operator(cfg)
    assert acts(watched(who, [1.0] * 14)) == "....hhh.....hh", "five steps, and off in the middle of a correction"
    again = operator(cfg)
    again.load_state_dict(who.state_dict())
    for one in (who, again):
        one.begin(1)
        assert acts(watched(one, [1.0] * 20)) == "." * 20
    again.load_state_dict({k: v for k, v in who.state_dict().items() if k != "worked"})
    again.begin(1)
    assert acts(watched(again, [1.0] * 20)) == "....hhh.....hh......", "what was saved before there were shifts begins a whole one"


def test_what_it_does_follows_from_its_seeds_and_what_it_remembers() -> None:
    one = operator(OperatorConfig(), seed=1)
    for seed in range(8):
        one.begin(seed)
        watched(one, [1.0] * 30)
        one.end(seed % 2 == 0)
    two = operator(OperatorConfig(), seed=1)
    two.load_state_dict(one.state_dict())
    for seed in (8, 9):
        one.begin(seed)
        two.begin(seed)
        assert watched(one, [1.0] * 40) == watched(two, [1.0] * 40)
    other = operator(OperatorConfig(), seed=2)
    other.load_state_dict(one.state_dict())
    other.begin(9)
    one.begin(9)
    assert watched(one, [1.0] * 40) != watched(other, [1.0] * 40)


def test_least_comes_before_most() -> None:
    with pytest.raises(OutOfBounds, match="hold must be least and most steps"):
        OperatorConfig(hold=(5, 3))


def test_corrections_are_in_the_manner_of_the_demonstrations() -> None:
    env = envs.make("contact/peg-hard")
    obs = env.reset(seed=4)[0]
    obs["privileged"] = obs["privileged"].copy()
    obs["privileged"][contact.TILT] = 0.0  # it is upright, and away from its slot
    quick, turned = OperatorConfig(patience=1, reaction=0, late=0, noise=0.0), {}
    for manner in contact.MANNERS:
        with hil_serl.operator(HILConfig(task="contact/peg-hard", expert=manner, operator=quick), env.task) as person:
            assert person is not None
            said = [person.poll(obs, np.zeros(6)) for _ in range(5)]
        turned[manner] = next(action for action in said if action is not None)[3:5].tolist()
    assert turned == {"upright": [0, 0], "tilting": [0.5, -0.5]}
