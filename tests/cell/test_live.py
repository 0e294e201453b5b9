"""A robot's steps are on disk before anyone learns from them: kills, dead sensors and refused episodes lose nothing that was recorded."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from children import Child
from realrl.cell.book import Book
from realrl.cell.cell import WorkCell
from realrl.cell.rollout import rollout
from realrl.data.store import Store
from realrl.data.tools.check import check
from realrl.envs.base import RobotEnv, ScriptedPolicy
from realrl.robots.guard import box_guard
from realrl.run import Run
from realrl.scene import CollectConfig, GuardConfig, Scene
from realrl.types import Array, RealrlError, TaskSpec

ONE = CollectConfig(workers=1, envs_per_worker=1)
CODE = """import sys, test_live; from pathlib import Path
test_live.practise(Path(sys.argv[1]), test_live.Slow)"""


class Rail(RobotEnv):
    """A cart that is pushed to the middle, four steps and more away."""

    broken: tuple[int, int] | None = None  # (seed, step) at which its sensor dies

    def __init__(self, **spec: object) -> None:
        super().__init__(TaskSpec("lab", "rail", obs_dim=2, action_dim=1, horizon=30, dt=0.1, text="to the middle", **spec))  # type: ignore[arg-type]

    def _begin(self, seed: int) -> Array:
        self.seed, self.x = seed, np.array([1.0, seed])
        return self.x

    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        self.x = self.x + np.array([0.2 * float(action[0]), 0.0])
        dead = self.broken == (self.seed, self._t)
        return np.full(2, np.nan) if dead else self.x, 0.0, False, bool(abs(self.x[0]) < 0.05)


class Slow(Rail):
    """A robot takes its time."""

    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        time.sleep(0.01)
        return super()._advance(action)


class Dying(Rail):
    """Its sensor dies in the third episode."""

    broken = (3, 2)


def home(state: Array) -> Array:
    return np.clip(-5 * state[:, :1], -1, 1)


def practise(folder: Path, make: type[Rail], collect: CollectConfig = ONE, count: int = 40) -> None:
    """Episodes from the starts 1, 2, ... as a run makes them."""
    with Run(folder, resume=True) as run, WorkCell(run, Scene(task="lab/rail", collect=collect), make=make) as cell:
        cell.practise("trial", ScriptedPolicy("hand", home), range(1, count + 1), chains=True)


def recorded(folder: Path) -> dict[str, list[int]]:
    """label -> starts in the order on disk, after whoever died was made whole."""
    book = Book(folder / "dataset", "lab/rail", Rail().task, live=True)
    assert book.recorded("trial") is not None  # the first look brings in what a killed process left
    book.close()
    found: dict[str, list[int]] = {}
    for episode in Store.open(folder / "dataset").read():
        found.setdefault(episode.policy, []).append(int(episode.seed or 0))
    assert not [p for p in check(folder / "dataset") if p.severity == "error"]
    return found


def test_killed_at_any_moment_it_loses_at_most_the_step_under_way(tmp_path: Path) -> None:
    luck = random.Random(0)
    process = Child("-c", CODE, tmp_path)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not any((tmp_path / "dataset/meta/episodes").rglob("*.parquet")):
        time.sleep(0.01)
    time.sleep(luck.uniform(0.1, 0.4))
    process.signal(signal.SIGKILL)
    assert process.wait()[0] == -signal.SIGKILL
    found = recorded(tmp_path)
    whole = found.pop("trial")
    assert whole == list(range(1, len(whole) + 1)) and whole, "everything that was finished, in order"
    assert found in ({"trial (recovered)": [len(whole) + 1]}, {}), "and what there was of the next; nothing where it had no step"
    practise(tmp_path, Rail)
    assert recorded(tmp_path)["trial"] == list(range(1, 41)), "a resumed run goes on behind it"


def test_a_dead_sensor_stops_the_robot_and_keeps_the_rest(tmp_path: Path) -> None:
    with pytest.raises(RealrlError, match=r"start 3: the reading 'state' is NaN or infinite after 3 steps.*go on with --resume") as caught:
        practise(tmp_path, Dying)
    assert "\n" not in str(caught.value)
    assert recorded(tmp_path) == {"trial": [1, 2], "trial (recovered)": [3]}


def test_copies_of_an_own_environment_are_recorded_as_they_end_and_a_bad_episode_is_set_aside(tmp_path: Path) -> None:
    with pytest.raises(RealrlError, match=r"the episode is set aside as .*trial-3-.*, the others are recorded"):
        practise(tmp_path, Dying, CollectConfig(workers=1, envs_per_worker=2), count=3)
    assert sorted(e.seed for e in Store.open(tmp_path / "dataset").read()) == [1, 2]
    (kept,) = (tmp_path / "set-aside").iterdir()
    assert kept.name.startswith("trial-3-") and kept.stat().st_size > 100


def test_an_environment_may_ask_for_it(tmp_path: Path) -> None:
    """One robot, however many copies were asked for."""
    scene = Scene(task="lab/rail", collect=CollectConfig(workers=2))
    with Run(tmp_path) as run, WorkCell(run, scene, make=lambda: Rail(live=True)) as cell:
        assert (cell.collector.workers, cell.collector.size) == (1, 1) and cell.book.live("trial", False) is not None
        assert len(cell.practise("trial", ScriptedPolicy("hand", home), [1, 2])) == 2


def test_the_first_action_of_an_episode_is_limited_from_where_the_robot_is() -> None:
    class Placed(Rail):
        def still(self) -> Array | None:
            return np.array([0.5], np.float32)

    for env, first in ((Rail(), -0.1), (Placed(control="absolute"), 0.4)):
        guard = box_guard(env, GuardConfig(max_delta=0.1))
        for episode in rollout([env], ScriptedPolicy("hand", home), [guard], [1, 2], greedy=True):
            assert episode.action[0, 0] == pytest.approx(first) and episode.proposed[0, 0] == -1.0


def test_a_state_of_another_shape_is_one_line() -> None:
    class Wide(Rail):
        def _begin(self, seed: int) -> Array:
            return np.zeros(3)

    with pytest.raises(RealrlError, match=r"lab/rail: a state of shape \[3\], its TaskSpec says 2 numbers") as caught:
        Wide().reset(seed=0)
    assert "\n" not in str(caught.value)
