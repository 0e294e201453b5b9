"""RL-100 from end to end: what a run leaves behind, the gate's bookkeeping, practice of failed starts, stages used alone."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from realrl import envs
from realrl.algos import rl100
from realrl.algos.rl100 import OfflineConfig, OfflineRound, Online, OnlineConfig
from realrl.cell.cell import WorkCell
from realrl.cell.collect import Collector
from realrl.cell.curriculum import Practice
from realrl.cell.evaluate import HELD_OUT, evaluate
from realrl.data import side
from realrl.data.store import Store
from realrl.data.tools.check import check
from realrl.data.views import ChunkView
from realrl.learn import ope
from realrl.learn.imitation import ImitationConfig, generator
from realrl.learn.ope import Verdict
from realrl.learn.ppo import fit_value
from realrl.learn.trials import Trials, TrialsConfig
from realrl.losses import spearman
from realrl.policies.diffusion import DiffusionPolicy
from realrl.policies.folder import load_policy
from realrl.run import Run, read_parts
from realrl.scene import CollectConfig
from realrl.types import RealrlError, Source
from toy_runs import Notebook, metrics, small_policy, tiny, tried_labels

ROUNDS = 2


def offline(**changes):
    return OfflineConfig(**{"rounds": ROUNDS, "rollouts": 24, "iterations": 5, "states": 128, "gate_every": 2, "reimitation": 60,
                            "max_drift": 1.0, "patience": 9, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder, summary) of one run through all four stages."""
    folder, cfg = tmp_path_factory.mktemp("whole"), tiny(offline=offline())
    with Run.start(folder, cfg) as run, WorkCell(run, cfg) as cell:
        summary = rl100.train(cfg, cell)
    return folder, summary


@pytest.mark.parametrize(("hidden", "steps"), [(48, 50), (8, 100)])
def test_a_plan_that_is_wide_for_its_net_is_imitated_longer(hidden, steps, tmp_path):
    """Four numbers, of 48 units a twelfth, of 8 a half."""
    cfg = tiny(stages=("imitation",), policy=small_policy(hidden=hidden), imitation=ImitationConfig(steps=50, batch=8, warmup=5), wide=2.0)
    with Run.start(tmp_path / "run", cfg) as run, WorkCell(run, cfg) as cell:
        rl100.train(cfg, cell)
    assert max(row["step"] for row in metrics(tmp_path / "run") if row["stage"] == "imitation") == steps


# -- what a run leaves behind -----------------------------------------------------------------------------------------------------


def test_the_summary(whole):
    folder, summary = whole
    read = json.loads((folder / "summary.json").read_text())
    assert {"task", "seed", "wall_s", "env_steps", "stages", "commit"} <= read.keys()
    assert read == summary and (read["task"], read["seed"]) == ("toy/obstacle", 0) and read["wall_s"] > 0
    assert [s["name"] for s in read["stages"]] == ["imitation", "offline-1", "offline-2", "online", "one-step"]
    for stage in read["stages"]:
        rate = stage["success"]
        assert rate["n"] == 12 and 0 <= rate["low"] <= rate["rate"] <= rate["high"] <= 1
        assert 0 < stage["latency_ms"]["p50"] <= stage["latency_ms"]["p99"] and stage["wall_s"] >= 0
        assert len(stage["failures"]) == round(12 * (1 - rate["rate"])) and all(seed >= HELD_OUT for seed in stage["failures"])
        assert (stage["cycle_steps"] is None) == (rate["rate"] == 0)
    latency = [s["latency_ms"]["p50"] for s in read["stages"][-2:]]
    assert latency[1] < latency[0], "one network call against five"


def test_every_step_of_the_robot_is_recorded_and_counted_once(whole):
    folder, summary = whole
    store = Store.open(folder / "dataset")
    assert [p for p in check(folder / "dataset") if p.severity == "error"] == []
    count = {}
    for e in store.read():
        count[e.policy] = count.get(e.policy, 0) + 1
        assert set(e.source) == {Source.SCRIPT if e.policy == "demonstration" else Source.POLICY} and e.seed < HELD_OUT
    tried = ["rollout-1-deployed", *tried_labels(summary["decisions"]), "online-1-deployed", "online-4-deployed", "rollout-one-step-5"]
    assert count == {"demonstration": 8, "rollout-1": 14, "rollout-2": 14, **dict.fromkeys(tried, 10),
                     **{f"online-{i}": 16 for i in range(5)}}
    steps = [s["env_steps"] for s in summary["stages"]]
    assert steps[0] < steps[1] < steps[2] < steps[3] < steps[4] == summary["env_steps"] == store.frames, "evaluation is not training"
    lengths, labels = (store.rows.column(name).to_pylist() for name in ("length", "policy"))
    until = lambda label: sum(lengths[: len(labels) - labels[::-1].index(label)])
    assert steps[0] == until("demonstration") and steps[3] == max(until(label) for label in count if label.startswith("online"))
    online = [line["env_steps"] for line in metrics(folder) if line["stage"] == "online"]
    assert online == [until(f"online-{i}") for i in range(5)]


def test_what_is_deployed_is_tried_and_what_was_decided_is_told(whole):
    folder, summary = whole
    stages = list(dict.fromkeys(stage.partition(",")[0] for stage in summary["decisions"]))
    assert stages == ["offline round 1", "offline round 2", "online round 2", "online round 5", "the one-step student"]
    tried = {}
    for e in Store.open(folder / "dataset").read():
        if e.policy.endswith("deployed") or e.policy.startswith("rollout-one-step"):
            tried.setdefault(e.policy, []).append(e.seed)
    starts = {tuple(sorted(seeds)) for seeds in tried.values()}
    assert len(starts) == 1 and not set(next(iter(starts))) & set(summary["stages"][3]["failures"]), "always the same, none held out"
    gaps = [line for line in metrics(folder) if line["stage"] == "trials"]
    assert [line["step"] for line in gaps] == [1, 2, 3, 4] and all(line["gap"] == line["exploring"] - line["deployed"] for line in gaps)
    last = next(line for line in summary["decisions"].values() if line.startswith("online round 5"))
    assert f"{100 * gaps[-1]['deployed']:.0f} % of 10 trials against" in last


def test_metrics_say_why_it_works_or_not(whole):
    lines, likely = metrics(whole[0]), (0, 1, 2, 3)
    find = lambda stage, field: [line for line in lines if line["stage"] == stage and field in line]
    update = {"advantage_mean", "advantage_std", "kl", "clip_fraction", "lr", "epochs", "gradient_norm", "student_gap",
              *(f"{name}_{k}" for name in ("kl", "clip_fraction", "ratio", "sigma") for k in likely)}
    for m in (1, 2):
        fits = find(f"offline-{m}", "advantage_mean")
        assert [line["step"] for line in fits] == [1, 2, 3, 4, 5] and all({*update, "drift"} <= line.keys() for line in fits)
        start = find(f"offline-{m}", "value_explained")
        assert [line["step"] for line in start] == [0]
        assert {"value_mean", "return_mean", "model_r2", "model_done_ratio"} <= start[0].keys()
        judged = find(f"offline-{m}", "accepted")
        assert [line["step"] for line in judged] == [0, 2, 4, 5], "re-imitation is judged, and the last iteration is always judged"
        assert all({"ope_estimate", "ope_gain", "ope_low"} <= line.keys() for line in judged)
        assert find(f"offline-{m}-imitation", "loss") and find(f"offline-{m}", "ope/change")
    online = find("online", "success_rate")
    assert [line["step"] for line in online] == [1, 2, 3, 4, 5]
    general = {"advantage_mean", "advantage_std", "value_explained", "value_mean", "loss_v", "student_gap", "failed_starts",
               "episode_steps", "episode_return", "env_steps", "practice_rate"}
    assert all(general <= line.keys() for line in online)
    assert "kl" not in online[0] and all(update <= line.keys() for line in online[1:]), "the first round warms V up"
    assert [line["step"] for line in find("one-step", "student_gap")] == [100]
    assert [line["step"] for line in find("imitation", "loss")] == list(range(50, 620, 50))
    numbers = [v for line in lines for v in line.values() if isinstance(v, float)]
    assert numbers and all(math.isfinite(v) for v in numbers)


def test_the_audit(whole):
    """Every judged candidate's true success stands beside its estimate, and the rank correlation is theirs."""
    told = json.loads((whole[0] / "ope.json").read_text())
    points = told["points"]
    expected = [(f"offline-{m}", i) for m in (1, 2) for i in (-1, 0, 2, 4, 5)]
    assert [(p["stage"], p["iteration"]) for p in points] == expected, "-1 is where the round began, 0 what re-imitation made"
    assert all(p["true_n"] == 6 and 0 <= p["true_success"] <= 1 for p in points)
    ranks = [spearman([p["estimate"] for p in half], [p["true_success"] for p in half]) for half in (points[:5], points[5:])]
    assert told["spearman"] == pytest.approx(np.mean(ranks))
    judged = [line for line in metrics(whole[0]) if "accepted" in line]
    assert all({"ope_amq", "ope_returns", "ope_success"} <= p.keys() for p in points)
    said = [(p["estimate"], p["accepted"]) for p in points if p["iteration"] >= 0]
    assert said == [(line["ope_estimate"], line["accepted"]) for line in judged]


def test_the_policy_folder_acts_as_the_summary_says(whole):
    folder, summary = whole
    policy, task = load_policy(folder / "policy")
    assert task == "toy/obstacle" and policy.head == "one-step"
    with Collector(task, CollectConfig(workers=1)) as collector:
        for head, stage in (("one-step", summary["stages"][4]), ("ddim", summary["stages"][3])):
            result = evaluate(collector, policy.with_head(head), 12, dt=0.1).to_dict()
            assert result["success"] == stage["success"] and result["failures"] == stage["failures"]


# -- the offline round ------------------------------------------------------------------------------------------------------------


def round_of(monkeypatch, verdicts, started=None, **options):
    """An offline round whose gate answers as it is told. started: what the policy was before re-imitation."""
    cfg = tiny(offline=offline(**options))
    with Collector(cfg.task, cfg.collect) as collector:
        data = list(collector.collect(envs.expert(cfg.task, noise=0.5), range(20), greedy=True))
    torch.manual_seed(0)
    policy = DiffusionPolicy(small_policy(), 2, 2).eval()
    stage = OfflineRound(policy, ChunkView(data, chunk=2, n_obs=1, gamma=cfg.gamma), cfg, seed=0, log=lambda step, told: None,
                         started=started)
    answers = iter(verdicts)
    monkeypatch.setattr(ope, "gate", lambda c, i, **_: Verdict(next(answers), float(c.mean()), float(i.mean()), 0.0, 0.0, 0.0))
    return stage


def net(stage):
    return torch.cat([p.detach().flatten() for p in stage.policy.net.parameters()]).clone()


def test_a_refused_candidate_is_undone_weights_and_optimiser(monkeypatch):
    stage = round_of(monkeypatch, [False, False], iterations=4)
    before = net(stage)
    stage.improve(lambda n: None)
    assert torch.equal(net(stage), before) and stage.ppo.optimiser.state_dict()["state"] == {}
    assert stage.ppo.lr == pytest.approx(stage.cfg.offline.ppo.lr / 4), "and every next try takes smaller steps"


def test_an_accepted_candidate_stays_and_a_later_refusal_goes_back_to_it(monkeypatch):
    stage = round_of(monkeypatch, [True, False, False], iterations=5)
    before, seen = net(stage), []
    stage.improve(seen.append)
    first, accepted, *refused = (torch.cat([p.flatten() for p in kept.values()]) for kept in stage.gate.nets)
    assert torch.equal(net(stage), accepted) and torch.equal(first, before) and not torch.equal(accepted, before)
    assert [r["accepted"] for r in stage.gate.records] == [1.0, 1.0, 0.0, 0.0] and sum(seen) == 5
    assert len(refused) == 2 and not any(torch.equal(r, accepted) for r in refused), "the audit keeps the refused ones too"


def test_a_round_whose_candidates_are_all_refused_gives_back_what_it_started_from(monkeypatch):
    """Re-imitation is a candidate, too: without the gate's word it would be the round's product."""
    torch.manual_seed(7)
    started = DiffusionPolicy(small_policy(), 2, 2).net.state_dict()
    stage = round_of(monkeypatch, [False] * 3, started=started, iterations=4)
    cloned = net(stage)
    (other,) = stage.improve(lambda n: None)
    assert torch.equal(torch.cat([p.flatten() for p in other.values()]), cloned), "trials may think otherwise of re-imitation"
    assert torch.equal(net(stage), torch.cat([p.flatten() for p in started.values()])) and not torch.equal(net(stage), cloned)
    assert [(r["iteration"], r["accepted"]) for r in stage.gate.records] == [(-1, 1.0), (0, 0.0), (2, 0.0), (4, 0.0)]
    stage = round_of(monkeypatch, [True, False, False], started=started, iterations=4)
    assert stage.improve(lambda n: None) == []
    assert torch.equal(net(stage), cloned), "one that passes is what the round goes on from"


def test_a_round_ends_where_it_drifts_out_of_the_data(monkeypatch):
    stage = round_of(monkeypatch, [True], max_drift=1e-9)
    seen = []
    stage.improve(seen.append)
    assert len(seen) == 1 and [r["iteration"] for r in stage.gate.records] == [0, 1], "judged once more, then over"


def test_a_round_ends_after_refusals_in_a_row(monkeypatch):
    stage = round_of(monkeypatch, [False, True, False, False, True], iterations=10, patience=2)
    stage.improve(lambda n: None)
    assert [r["iteration"] for r in stage.gate.records] == [0, 2, 4, 6, 8]


def test_a_round_repeats_whatever_was_drawn_before(monkeypatch):
    outcome = []
    for past in (1, 2):
        stage = round_of(monkeypatch, [True] * 3)
        torch.manual_seed(past)
        again = OfflineRound(stage.policy, ChunkView(data_of(), chunk=2, n_obs=1, gamma=0.98), stage.cfg, seed=3, log=lambda s, m: None)
        again.improve(lambda n: None)
        outcome.append(net(again))
    assert torch.equal(*outcome)


def data_of():
    with Collector("toy/obstacle", CollectConfig(workers=1)) as collector:
        return sorted(collector.collect(envs.expert("toy/obstacle"), range(8), greedy=True), key=lambda e: e.seed)


# -- the online stage -------------------------------------------------------------------------------------------------------------


def online(**options):
    torch.manual_seed(0)
    cfg = tiny(online=OnlineConfig(**{"episodes": 10, "practice": 0.3, **options}))
    return Online(DiffusionPolicy(small_policy(), 2, 2).eval(), None, cfg, Practice(cfg.online.practice, cfg.seed))


def test_failed_starts_come_back_until_they_are_solved():
    stage = online()
    trial = lambda seed, won: SimpleNamespace(seed=seed, succeeded=won, failed=not won)
    stage.curriculum.remember([trial(1, False), trial(2, True), trial(3, False), trial(4, False), trial(5, False)])
    assert stage.curriculum.failed == [1, 3, 4, 5]
    cell = SimpleNamespace(seeds=lambda stage, count, first: list(range(1000 + first, 1000 + first + count)))
    fresh, again = stage.starts(cell)
    assert len(fresh) == 7 and len(again) == 3 and set(again) <= {1, 3, 4, 5}, "0.3 of 10 episodes practise"
    assert stage.starts(cell) == (fresh, again), "a resumed round has the same starts"
    stage.curriculum.remember([trial(3, True), trial(5, False), trial(6, False)])
    assert stage.curriculum.failed == [1, 4, 5, 6]
    stage.iteration = 1
    assert stage.starts(cell)[0] == list(range(1010, 1017)), "no fresh start twice"
    stage.curriculum.failed = []
    assert stage.starts(cell) == (list(range(1010, 1020)), [])


def test_the_noise_cools_evenly_and_stays_cool_but_not_while_starts_need_it():
    stage = online(cool=0.2, iterations=8)
    heat, good, poor = stage.policy.diffusion.heat, [True] * 4 + [False], [True] * 3 + [False] * 2
    assert float(heat) == 1.0
    for fresh, again, left in ((good, [], 0.8), (good, [True, False], 0.6), (good, [True, False, False], 0.6), (poor, [True], 0.6),
                               (good, [True], 0.4), (good, [], 0.2), (good, [], 0.2)):
        heat.fill_(stage.cooled(fresh, again))
        assert float(heat) == pytest.approx(left)
    with pytest.raises(RealrlError, match=r"online\.cool must be above 0"):
        OnlineConfig(cool=0)


def test_the_value_fit_reaches_its_target():
    stage = online(value_lr=1e-2)
    cond = torch.linspace(-1, 1, 200)[:, None].repeat(1, 2)
    loss = fit_value(stage.value, stage.value_optimiser, cond, cond[:, 0] ** 2, 60, generator(0))
    with torch.no_grad():
        assert loss < 0.01 and (stage.value(cond)[:, 0] - cond[:, 0] ** 2).square().mean() < 0.01


def test_online_state_survives_a_checkpoint(tmp_path):
    stage, other = online(), online()
    with torch.no_grad():
        for p in (*stage.policy.parameters(), *stage.value.parameters()):
            p.add_(torch.randn(p.shape, generator=generator(1)))
    stage.curriculum.failed, stage.iteration, stage.ppo.lr = [7, 9], 3, 0.5
    with Run(tmp_path) as run:
        run.save("online", 3, stage=stage)
        assert run.load("online", stage=other) == 3
    assert (other.curriculum.failed, other.iteration, other.ppo.lr) == ([7, 9], 3, 0.5)
    for mine, theirs in ((stage.policy, other.policy), (stage.value, other.value)):
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))


def tried(*outcomes, standing, runoff=(), **options):
    """An online stage whose policy moves between its trials, which end as they are told: (stage, weights at each of them). runoff: how
    those of the newest and of the best end, from other starts."""
    stage = online(iterations=3, episodes=len(standing))
    stage.trials = Trials(Notebook(*outcomes, *runoff), TrialsConfig(**{"episodes": len(standing), "every": 1, "rest": 0.0, **options}), 0)
    stage.trials.won, seen = list(standing), []
    for stage.iteration in range(1, len(outcomes) + 1):
        with torch.no_grad():
            for p in stage.policy.net.parameters():
                p.add_(0.1)
        seen.append(net(stage))
        stage.fresh = [True] * 10
        stage._judge(stage.trials, f"round {stage.iteration}")
    return stage, seen


def test_the_best_online_policy_is_kept_and_is_the_product():
    good, better, poor = [True, True] + [False] * 6, [True] * 6 + [False] * 2, [True, True, True, True, False, False, True, False]
    stage, seen = tried(good, better, poor, standing=[True] + [False] * 7, runoff=(poor, better))
    assert torch.equal(net(stage), seen[1]) and stage.over, "the last round's is worse than the second's, and there is no other round"
    assert stage.trials.won == better and stage.trials.cell.said["round 3"] == (
        "round 3 was sent back, by other starts than the best was chosen by: 62 % of 8 trials against 75 %")
    stage, seen = tried(good, better, better, standing=[True] * 8, runoff=(good, better))
    assert not any(torch.equal(net(stage), weights) for weights in seen), "none is as good as what the stage began with"


def test_the_best_of_several_is_tried_again_from_other_starts():
    better, poor = [True] * 6 + [False] * 2, [True] * 5 + [False] * 3
    stage, seen = tried(poor, better, poor, standing=poor, runoff=(better, poor))
    assert torch.equal(net(stage), seen[2]) and stage.trials.won == poor, "it was the luck of the starts"
    assert stage.trials.cell.said["round 3"].startswith("round 3 stays, by other starts")
    (_, usual, _), (newest, mine, _), (best, its, _) = stage.trials.cell.asked[-3:]
    assert mine == its and not set(usual) & set(mine) and (newest, best) == ("online-2-deployed-newest", "online-2-deployed-best")


def test_learning_goes_on_from_a_worse_policy_unless_that_is_surely_worse():
    standing, poor, lost = [True] * 8, [True] * 7 + [False], [False] * 8
    stage, seen = tried(poor, standing=standing)
    assert torch.equal(net(stage), seen[0]) and "goes on, though it is not the best: 88 %" in stage.trials.cell.said["round 1"]
    assert stage.ppo.lr == stage.cfg.online.ppo.lr
    stage, seen = tried(lost, standing=standing)
    assert not torch.equal(net(stage), seen[0]) and stage.ppo.lr == stage.cfg.online.ppo.lr / 2
    assert stage.trials.cell.said["round 1"] == "round 1 was sent back: 0 % of 8 trials against 100 %"


def test_a_solved_task_ends_early():
    assert tried([True] * 8, standing=[True] * 8, enough=0.86)[0].over, "18 of 18: the lower bound is 0.869"
    assert not tried([True] * 8, standing=[True] * 8, enough=0.88)[0].over


def test_a_student_that_is_surely_worse_is_no_product(tmp_path, monkeypatch):
    run = Trials.run

    def outcome(self, policy, label, most, **how):
        episodes = run(self, policy, label, most, **how)
        for e in episodes:
            e.success[-1] = how.get("head") != "one-step"
        return episodes

    monkeypatch.setattr(Trials, "run", outcome)
    cfg = tiny(stages=("imitation", "one-step"))
    with Run.start(tmp_path, cfg) as run_, WorkCell(run_, cfg) as cell:
        summary = rl100.train(cfg, cell)
    assert [s["name"] for s in summary["stages"]] == ["imitation"] and load_policy(tmp_path / "policy")[0].head == "ddim"
    assert summary["decisions"] == {"the one-step student": "the one-step student was sent back: 0 % of 10 trials against 100 %"}
    with Run.start(tmp_path, cfg, resume=True) as run_, WorkCell(run_, cfg) as cell:
        rl100.train(cfg, cell)
    assert load_policy(tmp_path / "policy")[0].head == "ddim", "a resumed run remembers"


# -- stages alone -----------------------------------------------------------------------------------------------------------------


def test_one_step_alone_from_a_saved_policy(whole, tmp_path):
    """No demonstration is asked for; the teacher stays as it is, only the student moves."""
    cfg = tiny(init=str(whole[0] / "policy"), stages=("online", "one-step"), online=OnlineConfig(iterations=1, episodes=16, warmup=1))
    with Run.start(tmp_path, cfg) as run, WorkCell(run, cfg) as cell:
        summary = rl100.train(cfg, cell)
    assert [s["name"] for s in summary["stages"]] == ["online", "one-step"]
    before, after = (load_policy(folder / "policy")[0] for folder in (whole[0], tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(before.net.parameters(), after.net.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(before.student.parameters(), after.student.parameters(), strict=True))
    assert {e.policy for e in Store.open(tmp_path / "dataset").read()} == {"online-start", "online-0", "online-0-deployed",
                                                                           "rollout-one-step-1"}
    assert not (tmp_path / "ope.json").exists()


def test_checkpoints_hold_the_judged_candidates(whole):
    _, parts = read_parts(whole[0] / "checkpoints" / "offline-1-candidates")
    records, nets = parts["judged"]["records"], parts["judged"]["nets"]
    assert len(records) == len(nets) == 5 and np.isfinite([r["estimate"] for r in records]).all()
    passed = [n for r, n in zip(records, nets, strict=True) if r["accepted"]]
    told, cloned = whole[1]["decisions"], [n for r, n in zip(records, nets, strict=True) if r["iteration"] == 0]
    by_rl, by_cloning = ("stays" in told.get(f"offline round 1{words}", "") for words in ("", ", without RL,"))
    product = passed[-1] if by_rl else cloned[0] if by_cloning else passed[0]  # the first is what the round began with
    after = read_parts(whole[0] / "checkpoints" / "offline-1")[1]["policy"]
    assert all(torch.equal(after[f"net.{k}"], v) for k, v in product.items())


def test_the_value_of_the_last_round_lies_beside_the_recordings(whole):
    folder, _ = whole
    store, value = Store.open(folder / "dataset"), side.read(folder / "dataset", "value").columns["value"]
    ends, labels = np.cumsum([len(e) for e in store.read()]), store.rows.column("policy").to_pylist()
    last = "online-4"
    for episode, label, end in zip(store.read(), labels, ends, strict=True):
        mine = value[end - len(episode):end]
        assert np.isfinite(mine).all() if label == last else np.isnan(mine).all()
        if label == last:
            assert not (np.diff(mine)[~episode.starts_plan[1:]]).any() and len(np.unique(mine)) > 1
