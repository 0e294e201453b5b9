"""A policy that sees late, taught by one that does not: what it is taught, that it helps, that it goes on after a kill."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from realrl.algos.dida import Blind, DIDAConfig, Lessons, teacher_of, train
from realrl.cell.cell import WorkCell
from realrl.learn.imitation import Imitation, ImitationConfig
from realrl.policies.diffusion import DiffusionPolicy
from realrl.policies.folder import load_diffusion, load_policy, read_recall, save_policy
from realrl.policies.gaussian import GaussianConfig, GaussianPolicy
from realrl.run import Run
from realrl.scene import CollectConfig
from realrl.types import Array, Episode, Obs, Plan, RealrlError, State
from toy_runs import metrics, small_policy

LATE = 3


class Reach(GaussianPolicy):
    """Goes straight to the goal of toy/reach: [x, y, goal x, goal y]."""

    def act(self, obs: Obs, state: State, *, greedy: bool, rng: Any) -> tuple[Plan, State]:
        """As the script does, from the last of what is seen."""
        at = obs["state"][:, -1]
        return Plan(np.clip((at[:, 2:4] - at[:, :2]) / 0.1, -1, 1)[:, None].astype(np.float32)), state


def taught(folder: Path, **changes: Any) -> DIDAConfig:
    """A few seconds on toy/reach, three steps late. The teacher's folder holds a policy whose weights say nothing."""
    if not folder.exists():
        save_policy(GaussianPolicy(GaussianConfig(hidden=(8,)), 4, 2), folder, task="toy/reach")
    base: dict[str, Any] = {"task": "toy/reach", "init": str(folder), "recall": LATE, "late": LATE, "rounds": 2, "episodes": 12,
                            "policy": small_policy(), "imitation": ImitationConfig(steps=520, batch=64, lr=2e-3, warmup=30),
                            "collect": CollectConfig(workers=1), "eval_episodes": 30}
    return DIDAConfig(**{**base, **changes})


@pytest.fixture
def reaching(monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher that is loaded knows its task."""
    monkeypatch.setattr("realrl.algos.dida.load_policy", lambda *_: (Reach(GaussianConfig(), 4, 2, name="reach"), "toy/reach"))


def run(folder: Path, cfg: DIDAConfig) -> dict[str, Any]:
    with Run.start(folder, cfg, resume=True) as run, WorkCell(run, cfg) as cell:
        return train(cfg, cell)


def episode(length: int, size: int = 2, actions: int = 1) -> Episode:
    """States that count: what is seen at step t is 10 t, behind it the last `LATE` actions, zeros."""
    states = np.concatenate([np.repeat(10.0 * np.arange(length + 1)[:, None], size, 1), np.zeros((length + 1, LATE * actions))], 1)
    flat = np.zeros(length, np.float32)
    return Episode(obs={"state": states.astype(np.float32)}, action=np.zeros((length, actions), np.float32),
                   proposed=np.zeros((length, actions), np.float32), source=flat.astype(np.uint8), reward=flat, success=flat.astype(bool),
                   time=flat.astype(np.float64), starts_plan=np.ones(length, bool), terminated=False, truncated=True, task="", policy="")


class Says(GaussianPolicy):
    """Says a hundredth of the oldest and of the newest that it is shown."""

    def act(self, obs: Obs, state: State, *, greedy: bool, rng: Any) -> tuple[Plan, State]:
        said: Array = obs["state"][:, [0, -1], 0] / 100
        return Plan(said[:, :1, None] + 0 * said[:, 1:, None] if self.action_dim == 1 else said[:, None]), state


def test_the_teacher_is_asked_with_what_came_later() -> None:
    teacher = Says(GaussianConfig(n_obs=2), 2, 2)
    lessons = Lessons(teacher, [episode(6, actions=2), episode(LATE - 1, actions=2)], LATE, 2, seed=0)
    assert len(lessons) == 4 and lessons.episode.tolist() == [0] * 4, "seven frames, of which three never were seen as they were"
    batch = lessons.batch(torch.arange(4))
    assert batch.obs["state"].shape == (4, 2, 2 + LATE * 2) and bool(batch.valid.all())
    assert batch.obs["state"][:, :, 0].tolist() == [[0, 0], [0, 10], [10, 20], [20, 30]]
    assert torch.allclose(batch.action[:, 0], torch.tensor([[0.3, 0.3], [0.3, 0.4], [0.4, 0.5], [0.5, 0.6]]))
    with pytest.raises(RealrlError, match="nothing of them was ever seen"):
        Lessons(teacher, [episode(2, actions=2)], LATE, 1, seed=0)


def test_late_readings_cost_the_teacher_its_task_and_the_student_nothing(reaching: None, tmp_path: Path) -> None:
    cfg = taught(tmp_path / "teacher", rounds=3, episodes=20)
    summary = run(tmp_path / "run", cfg)
    first, *_, last = [line for line in metrics(tmp_path / "run") if line["stage"] == "dida"]
    (stage,) = summary["stages"]
    assert stage["success"]["rate"] >= 0.9 and last["episode_steps"] < first["episode_steps"]
    policy, task = load_policy(tmp_path / "run/policy")
    assert task == "toy/reach" and isinstance(policy, DiffusionPolicy) and policy.chunk == 1
    assert read_recall(tmp_path / "run/policy") == LATE


def test_blind_the_teacher_sees_its_own_numbers_alone() -> None:
    teacher = Reach(GaussianConfig(), 4, 2)
    seen = np.random.default_rng(0).uniform(-1, 1, (3, 1, 4 + 2 * LATE)).astype(np.float32)
    rng = [np.random.default_rng(0)] * 3
    plan, _ = Blind(teacher).act({"state": seen}, {}, greedy=True, rng=rng)
    assert np.array_equal(plan.action, teacher.act({"state": seen[..., :4]}, {}, greedy=True, rng=rng)[0].action)


@pytest.mark.parametrize(("cls", "name", "nth"), [(Imitation, "update", 510), (Run, "save", 2), (WorkCell, "practise", 2)])
def test_a_killed_run_goes_on_to_the_same_numbers(cls: type, name: str, nth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                  long: bool) -> None:
    if not long and cls is WorkCell:
        pytest.skip("what practice leaves when it is killed others try, but for --long")
    cfg = taught(tmp_path / "teacher", episodes=3, eval_episodes=2, horizon=12)
    run(tmp_path / "straight", cfg)
    counted = 0
    real: Callable[..., Any] = getattr(cls, name)

    def killed(*args: Any, **named: Any) -> Any:
        nonlocal counted
        counted += 1
        if counted == nth:
            raise KeyboardInterrupt
        return real(*args, **named)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cls, name, killed)
        run(tmp_path / "cut", cfg)
    run(tmp_path / "cut", cfg)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "straight")
    one, other = (load_diffusion(tmp_path / folder / "policy")[0].state_dict() for folder in ("cut", "straight"))
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_who_cannot_teach_is_told(tmp_path: Path) -> None:
    cfg = taught(tmp_path / "teacher")
    with Run.start(tmp_path / "run", cfg) as begun, WorkCell(begun, cfg) as cell:
        with pytest.raises(RealrlError, match="--init FOLDER"):
            teacher_of(replace(cfg, init=""), cell.spec)
        with pytest.raises(RealrlError, match="without --recall"):
            teacher_of(replace(cfg, recall=LATE - 1), cell.spec)
        with pytest.raises(RealrlError, match="another"):
            teacher_of(cfg, replace(cell.spec, senses={"pointcloud": (4, 3)}))
    with pytest.raises(RealrlError, match="there is nothing to teach"):
        taught(tmp_path / "teacher", recall=0)
