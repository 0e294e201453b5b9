"""Tasks that undo one another in turn without resets: each begins where the one before ended, interventions are counted."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from realrl import envs
from realrl.cell import cell as cells
from realrl.cell.cell import WorkCell
from realrl.cell.pool import PATIENCE, in_turn
from realrl.data.store import Store
from realrl.envs.base import RobotEnv, ScriptedPolicy
from realrl.robots.guard import box_guard
from realrl.run import Run
from realrl.scene import CollectConfig, Scene
from realrl.types import Array, Episode, RealrlError, TaskSpec


class Sled(RobotEnv):
    """A sled on a rail, 0 to 1, to be brought to one end of it by steps of up to 0.2; from a start of its own it stands in the middle."""

    def __init__(self, name: str, end: float, horizon: int = 8) -> None:
        super().__init__(TaskSpec("toy", name, 1, 1, horizon, 0.1, f"bring the sled to the {name}"))
        self.end, self.at, self.entered = end, 0.5, None

    def _begin(self, seed: int) -> Array:
        self.at = 0.5 if self.entered is None else float(self.entered["at"])
        return np.array([self.at])

    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        self.at = float(np.clip(self.at + 0.2 * action[0], 0.0, 1.0))
        return np.array([self.at]), 0.0, False, abs(self.at - self.end) < 0.05

    def world(self) -> dict[str, Array]:
        return {"at": np.array(self.at)}

    def enter(self, world: Any) -> None:
        self.entered = world

    def startable(self, world: dict[str, Array]) -> bool:
        return abs(float(world["at"]) - self.end) >= 0.05


def towards(direction: float, states: Array) -> Array:
    return np.full((len(states), 1), direction)


def pool(left: float = -1.0, right: float = 1.0, count: int = 8) -> list[tuple[str, Episode, bool]]:
    worlds = {"left": Sled("left", 0.0), "right": Sled("right", 1.0)}
    who = {"left": ScriptedPolicy("l", partial(towards, left)), "right": ScriptedPolicy("r", partial(towards, right))}
    return list(in_turn(worlds, who, {name: box_guard(env) for name, env in worlds.items()}, range(count), noise_seed=0))


def test_each_begins_where_the_one_before_ended() -> None:
    found = pool()
    assert [task for task, _, _ in found] == ["left", "right"] * 4 and all(e.succeeded for _, e, _ in found)
    assert not any(helped for *_, helped in found)
    for (_, before, _), (_, after, _) in pairwise(found):
        assert after.obs["state"][0] == before.obs["state"][-1], "nobody reset it"
    assert found[0][1].obs["state"][0] == 0.5


def test_somebody_comes_where_everything_fails_and_is_counted() -> None:
    found = pool(left=0.0, right=0.0, count=3 * PATIENCE)
    assert [i for i, (*_, helped) in enumerate(found) if helped] == [PATIENCE, 2 * PATIENCE]
    stuck = pool(left=-1.0, right=-1.0, count=6)  # the right is never reached, and where the left is done nothing else is to do
    assert [task for task, *_ in stuck][:4] == ["left", "right", "right", "right"]
    assert [helped for *_, helped in stuck] == [False, False, False, False, False, True]


def test_a_world_that_cannot_be_handed_on_says_so() -> None:
    env = envs.make("toy/red")
    with pytest.raises(RealrlError, match="toy/red: its world cannot be handed on"):
        next(in_turn({"toy/red": env}, {"toy/red": envs.expert("toy/red")}, {"toy/red": box_guard(env)}, [1], noise_seed=0))


def test_a_cell_records_them_and_a_kill_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = {"toy/red": ("left", 0.0), "toy/blue": ("right", 1.0)}
    monkeypatch.setattr(envs, "make", lambda task, **_: _named(Sled(*ends[task]), task))
    monkeypatch.setattr(cells, "GROUP", 2)
    policies = {"toy/red": ScriptedPolicy("l", partial(towards, -1.0)), "toy/blue": ScriptedPolicy("r", partial(towards, 1.0))}

    def practise(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        scene = Scene(task="toy/red", collect=CollectConfig(workers=1))
        with Run.start(folder, scene, resume=True) as run, WorkCell(run, scene) as cell:
            return cell.take_turns("pool", policies, cell.seeds(1, 7)), cell.summary["pool"]["pool"]

    whole, told = practise(tmp_path / "a")
    assert [len(e) for e in whole["toy/red"]] == [3, 5, 5, 5] and len(whole["toy/blue"]) == 3
    assert told["interventions"] == 0 and told["hours"] == pytest.approx(33 * 0.1 / 3600)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        real, seen = cells.in_turn, []

        def cut(*args: Any, **options: Any) -> Any:
            for found in real(*args, **options):
                seen.append(1)
                if len(seen) == 6:
                    raise KeyboardInterrupt
                yield found

        patch.setattr(cells, "in_turn", cut)
        practise(tmp_path / "b")
    again, _ = practise(tmp_path / "b")
    assert {t: [e.seed for e in of] for t, of in again.items()} == {t: [e.seed for e in of] for t, of in whole.items()}
    assert len(Store.open(tmp_path / "b" / "dataset")) == 7
    assert practise(tmp_path / "a")[0].keys() == whole.keys(), "what is there is read back"


def _named(env: Sled, task: str) -> Sled:
    from dataclasses import replace
    env.task = replace(env.task, suite="toy", name=task.partition("/")[2])
    return env
