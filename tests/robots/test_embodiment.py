"""A robot's numbers: limits from what was recorded, there and back, and nonsense refused."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Sequence

import numpy as np
import pytest

from realrl import config
from realrl.robots.embodiment import Embodiment, boxed, limits
from realrl.types import Obs, Plan, RealrlError, State


def arm(**changes: object) -> Embodiment:
    told = dict(robot="arm", actions=("a", "b"), units=("deg", "mm"), low=(-90.0, 0.0), high=(90.0, 30.0), state=("a", "b"), fps=29.97)
    return Embodiment(**{**told, **changes})  # type: ignore[arg-type]


def test_there_and_back_in_the_robots_units() -> None:
    action = np.array([[-90.0, 30.0], [45.0, 7.5], [0.0, 15.0]])
    boxed = arm().to_box(action)
    assert boxed.tolist() == [[-1, 1], [0.5, -0.5], [0, 0]] and np.allclose(arm().to_robot(boxed), action)
    assert arm().to_robot(np.array([5.0, -5.0])).tolist() == [90, 0], "never beyond the limits"


class Leaning:
    """Says the same two shares of its limits always."""

    name, chunk, n_obs, head = "leaning", 1, 1, "ddim"

    def start(self, batch: int) -> State:
        return {}

    def act(self, obs: Obs, state: State, *, greedy: bool, rng: Sequence[np.random.Generator]) -> tuple[Plan, State]:
        return Plan(np.full((1, 1, 2), [1.0, -0.5], np.float32)), state


def test_in_an_environment_recorded_numbers_are_sent_as_they_are() -> None:
    robot = arm(units=("", ""), low=(-0.4, 0.0), high=(0.4, 1.2), reached=(0.4, 1.0))
    policy, said = boxed(Leaning(), robot, "p", "lab/plug", 29.97)
    plan, _ = pickle.loads(pickle.dumps(policy)).act({}, {}, greedy=True, rng=[])
    assert np.allclose(plan.action, [0.4, 0.3]) and policy.head == "ddim" and "taken for lab/plug's own" in said and "second" not in said
    assert "recorded at 29.97 actions a second, lab/plug has 10" in boxed(Leaning(), robot, "p", "lab/plug", 10)[1]
    for changes, words in (({"units": ("deg", "")}, "in deg"), ({"reached": (0.4, 30.0)}, "whose b reaches 30"), ({"reached": ()}, "1.2")):
        with pytest.raises(RealrlError, match=f"{words}.*--action-range LOW HIGH"):
            boxed(Leaning(), dataclasses.replace(robot, **changes), "p", "lab/plug", 10)


def test_limits_leave_room_and_do_not_stretch_noise() -> None:
    random = np.random.default_rng(0)
    low, high = limits(np.concatenate([random.uniform(-1, 1, (500, 3)), 5 + 1e-7 * random.normal(size=(500, 1))], 1), 50)
    assert (high[:3] - low[:3] > 2.05).all() and (high[:3] - low[:3] < 2.3).all()
    assert low[3] < 5 < high[3] and 0.01 < high[3] - low[3] < 0.05
    few = limits(random.uniform(-1, 1, (500, 3)), 2)
    assert (few[1] > 1.8).all(), "two episodes have not shown much"
    same = limits(np.full((10, 2), 3.0), 1)
    assert (same[0] < 3).all() and (same[1] > 3).all()


@pytest.mark.parametrize("changes", [dict(low=(0.0,)), dict(low=(90.0, 0.0)), dict(high=(float("nan"), 1.0)), dict(fps=0.0),
                                     dict(units=("rad",))])
def test_nonsense_is_one_line(changes: dict[str, object]) -> None:
    with pytest.raises(RealrlError) as told:
        arm(**changes)
    assert "\n" not in str(told.value)


def test_it_survives_a_file() -> None:
    assert config.from_dict(Embodiment, config.to_dict(arm()), source="policy.json") == arm()
