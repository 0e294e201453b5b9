"""An environment that realrl has never heard of: recorded demonstrations in, a policy out, as the README says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from realrl.algos import bc
from realrl.cell.cell import WorkCell
from realrl.cell.collect import Collector
from realrl.cell.evaluate import trials
from realrl.cell.rollout import rollout
from realrl.data.store import Store
from realrl.envs.base import RobotEnv, ScriptedPolicy
from realrl.learn.imitation import ImitationConfig
from realrl.policies.diffusion import PolicyConfig
from realrl.robots.guard import box_guard
from realrl.run import Run
from realrl.scene import CollectConfig
from realrl.types import Array, RealrlError, Source, TaskSpec


class Slide(RobotEnv):
    """A cart on a rail: reach the middle from a random place."""

    def __init__(self) -> None:
        super().__init__(TaskSpec("lab", "slide", obs_dim=1, action_dim=1, horizon=20, dt=0.1, text="slide to the middle"))

    def _begin(self, seed: int) -> Array:
        self.x = np.random.default_rng(seed).uniform(-1, 1, 1)
        return self.x

    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        self.x = self.x + 0.2 * action
        return self.x, 0.0, False, bool(abs(self.x[0]) < 0.05)


def _return_home(state: Array) -> Array:
    return np.clip(-5 * state, -1, 1)


@pytest.fixture
def demonstrations(tmp_path: Path) -> Path:
    env = Slide()
    episodes = list(rollout([env], ScriptedPolicy("hand", _return_home), [box_guard(env)], range(30), greedy=True, task="lab/slide",
                            source=Source.HUMAN))
    Store.create(tmp_path / "demos", task="lab/slide", fps=10).append(episodes)
    return tmp_path / "demos"


def test_an_own_environment_is_learned_from_recorded_demonstrations(demonstrations: Path, tmp_path: Path) -> None:
    cfg = bc.BCConfig(task="lab/slide", data=str(demonstrations), policy=PolicyConfig(chunk=2, hidden=64, blocks=1),
                      imitation=ImitationConfig(steps=400), collect=CollectConfig(workers=1), eval_episodes=40)
    with Run.start(tmp_path / "run", cfg) as run, WorkCell(run, cfg, make=Slide) as cell:
        summary = bc.train(cfg, cell)
    assert summary["stages"][0]["success"]["rate"] >= 0.9
    assert (tmp_path / "run" / "policy" / "policy.json").exists()


def test_what_an_environment_must_not_return() -> None:
    class Odd(Slide):
        def _begin(self, seed: int) -> Array:
            return "up" if seed == 1 else super()._begin(seed)  # type: ignore[return-value]

        def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
            return super()._advance(action)[:3]  # type: ignore[return-value]

    env = Odd()
    with pytest.raises(RealrlError, match="returned 'up' for a state"):
        env.reset(seed=1)
    env.reset(seed=2)
    with pytest.raises(RealrlError, match="wanted are four things"):
        env.step(np.zeros(1))


class Dead(Slide):
    """Its sensor dies."""

    def _advance(self, action: Array) -> tuple[Array, float, bool, bool]:
        return super()._advance(action)[0] * np.nan, 0.0, False, False


def test_an_evaluation_says_that_a_sensor_was_dead(capsys: pytest.CaptureFixture[str]) -> None:
    """Or its failures would be taken for the policy's."""
    policy = ScriptedPolicy("hand", _return_home)
    for make, dead in ((Slide, False), (Dead, True)):
        with Collector("lab/slide", CollectConfig(workers=1, envs_per_worker=1), make=make) as collector:
            assert len(trials(collector, policy, 3)) == 3
        assert ("in 3 of 3 evaluation episodes a reading was NaN or infinite" in capsys.readouterr().err) == dead


def test_demonstrations_of_another_shape_are_refused_in_one_line(demonstrations: Path, tmp_path: Path) -> None:
    cfg = replace(bc.BCConfig(), task="toy/obstacle", data=str(demonstrations), collect=CollectConfig(workers=1))
    with (Run.start(tmp_path / "run", cfg) as run, WorkCell(run, cfg) as cell,
          pytest.raises(RealrlError, match="name the task it was recorded on") as caught):
        bc.train(cfg, cell)
    assert "\n" not in str(caught.value)
