"""HIL-SERL before a person: what the line beside the bar says from the first step on, and what is said where something cannot go well."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from algos.test_hil_serl import kept_notes, run_of, tiny
from realrl.algos.hil_serl import LEARNER, advice
from realrl.cell.actor import Experienced
from realrl.cell.stream import _weights
from realrl.data.store import Store
from realrl.envs import expert, progress
from realrl.learn.corrections import Trial
from realrl.learn.sac import SAC, sound
from realrl.policies.gaussian import GaussianConfig, GaussianPolicy
from realrl.robots.human import OperatorConfig, ScriptedOperator
from realrl.run import Run
from realrl.types import RealrlError


def test_advice_is_there_from_the_first_step_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = kept_notes(monkeypatch)
    run_of(tmp_path, tiny(steps=1, start=10**6, eval_episodes=1))
    assert "let it try, help where it gets stuck" in notes[0] and "0 + " in notes[0]


@pytest.mark.parametrize("trials, said", [([], "nobody helps"), ([Trial(30, 0, 0, True)], "nobody helps"),
                                          ([Trial(30, 0, 0, False)] * 3, "too few rewarded episodes: more demonstrations")])
def test_where_nobody_is_there_nobody_is_told_to_help(trials: list[Trial], said: str) -> None:
    assert advice(trials, attended=False).startswith(said)


def test_a_person_too_slow_for_the_clock_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever takes over then would hold the robot until the clock ends the episode, each time anew, and no correction be rewarded."""
    cfg = tiny(steps=1, start=10**6, eval_episodes=1, operator=OperatorConfig(cap=1.0))
    run_of(tmp_path / "soon", cfg)
    assert "--operator.cap" not in capsys.readouterr().err
    run_of(tmp_path / "late", replace(cfg, operator=OperatorConfig(cap=0.2)))
    assert "an episode has 25, and the scripted person moves at 0.2 of full speed at most" in " ".join(capsys.readouterr().err.split())


def test_a_scripted_person_learns_from_the_recording_what_a_checkpoint_would_tell(tmp_path: Path) -> None:
    """In real time none tells it: a new actor's person began anew, finished every task, and came back after going home."""
    run_of(tmp_path, tiny())
    with Run(tmp_path, resume=True) as run:
        found = run.read("hil-serl")
    assert found
    person = ScriptedOperator(OperatorConfig(), expert("contact/peg"), progress("contact/peg"), seed=0)
    person.recall([e for e in Store.open(tmp_path / "dataset").read() if e.policy == "hil-serl"])
    assert person.state_dict() == found[1]["stream"]["human"] and person.worked > 0 and isinstance(person, Experienced)


def test_updates_that_are_no_numbers_end_the_run_before_the_robot_hears_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"q": torch.tensor(1.0), "critic_loss": torch.tensor(float("nan"))}
    with pytest.raises(RealrlError, match="after 7 control steps the updates' critic_loss is nan: learning diverged"):
        sound(told, 7)
    assert sound({"q": told["q"]}, 7) == {"q": told["q"]}
    usual = SAC.update

    def poisoned(self: SAC, batch: object) -> object:
        with torch.no_grad():
            if self.step > 40:
                self.actor_weights.value.fill_(float("inf"))
        return usual(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(SAC, "update", poisoned)
    with pytest.raises(RealrlError, match="learning diverged, and the robot stops"):
        run_of(tmp_path, tiny())


def test_the_temperature_begins_low_and_commands_go_to_the_robot_with_the_motions() -> None:
    """At 1 a person's actions drown in noise; and a grasp critic that stays with the learner never shuts a hand."""
    policy = GaussianPolicy(GaussianConfig(hidden=(16,)), 2, 2, gripper=True)
    agent = SAC(policy, LEARNER, seed=0)
    assert float(agent.temperature.log.detach().exp()) == pytest.approx(0.01)
    sent = _weights(policy)
    assert any(name.startswith("grasp.") for name in sent) and any(name.startswith("net.") for name in sent)
