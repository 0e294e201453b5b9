"""Real trials: the tests by hand, what goes on and what goes back, and that nothing gets worse where critics and gate are fooled."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from realrl.algos import rl100
from realrl.algos.rl100 import OfflineConfig, OnlineConfig
from realrl.learn import ope
from realrl.learn.iql import Critics
from realrl.learn.ppo import PPOConfig
from realrl.learn.trials import Duel, Trials, TrialsConfig, duel, left_to_gain, lower
from realrl.losses import gae
from realrl.types import RealrlError
from toy_runs import Notebook, metrics, small, through


def a_policy():
    return SimpleNamespace(with_head=lambda head: SimpleNamespace(head=head))


def test_disputed_starts_decide():
    said = duel([True, True, False, False, True], [True, False, True, False])
    assert said == Duel(n=4, new=2, old=2, gained=1, lost=1) and not said.worse(0.5), "the fifth start was tried once"
    assert Duel(100, 60, 66, gained=2, lost=8).luck() == pytest.approx((45 + 10 + 1) / 1024)
    assert Duel(100, 60, 66, 2, 8).worse(0.06) and not Duel(100, 60, 66, 2, 8).worse(0.05)
    assert Duel(9, 3, 4, 0, 1).luck() == 0.5 and Duel(9, 3, 4, 0, 1).worse(0.5), "one start fewer is fewer"
    assert not Duel(9, 4, 3, 1, 0).worse(0.5) and not Duel(100, 50, 50, 20, 20).worse(0.5)
    assert Duel(2000, 0, 1500, 0, 1500).luck() == 0.0, "a tail too small for a float is none"
    assert str(Duel(150, 87, 96, 20, 29)) == "58 % of 150 trials against 64 %"
    assert not duel([], [True]).worse(0.5), "without trials nothing is known"


def test_lower_bound_of_a_rate():
    assert lower(0, 0) == 0.0 and lower(0, 50) == pytest.approx(0.0, abs=1e-12)
    assert lower(10, 10) == pytest.approx(10 / (10 + 1.645**2))  # Wilson's bound where all succeeded
    assert lower(80, 100, z=1.959964) == pytest.approx(0.7112, abs=1e-4)
    assert lower(659, 660) < TrialsConfig().enough <= lower(660, 660)


def test_the_end_of_a_solved_task_is_told():
    trials = Trials(Notebook(), TrialsConfig(), seed=0)
    assert not trials.solved("online round 5", [True] * 600 + [False] * 30, 35) and not trials.lines
    assert trials.solved("online round 40", [True] * 630, 0) and not trials.lines, "it ends anyway"
    assert trials.solved("online round 5", [True] * 630, 35)
    assert trials.lines == {"online round 5, solved": "online round 5 is the last one, 35 before its time: 630 of the 630 episodes since "
                                                      "the trials before succeeded, at least 99.6 % of all"}


def test_a_solved_task_rests():
    won = lambda good, n: [True] * good + [False] * (n - good)
    assert left_to_gain(won(50, 100), 0.05) == left_to_gain([], 0.05) == left_to_gain(won(100, 100), 0.0) == 1.0
    assert left_to_gain(won(99, 100), 0.05) == pytest.approx(2 / 102 / 0.05)
    assert left_to_gain(won(100, 100), 0.05) == pytest.approx(1 / 102 / 0.05)
    assert left_to_gain(won(3, 3), 0.05) == 1.0, "three trials prove nothing"


def test_products_are_tried_from_the_same_starts_with_the_same_noise():
    cell = Notebook()
    trials = Trials(cell, TrialsConfig(episodes=5), seed=3)
    trials.run(a_policy(), "first", 100)
    trials.run(a_policy(), "second", 4, plans_only=False)
    (_, starts, how), (_, fewer, other) = cell.asked
    assert starts[:4] == fewer and len(starts) == 5 and how["greedy"] and how["noise_seed"] == other["noise_seed"]
    assert Trials(cell, TrialsConfig(episodes=0), seed=3).run(a_policy(), "none", 100) == [] and len(cell.asked) == 2


def test_a_worse_product_does_not_take_the_place():
    trials = Trials(Notebook(), TrialsConfig(episodes=4), seed=0)
    ended = lambda *won: [SimpleNamespace(succeeded=w) for w in won]
    trials.won, trials.tried = [True, True, True, False], "a"
    assert trials.challenge("round 1", ended(True, False, True, False), 0.5, "b").worse(0.5)
    assert trials.won == [True, True, True, False] and trials.tried == "a", "those of what stands"
    assert not trials.challenge("round 2", ended(True, True, True, True), 0.5, "c").worse(0.5)
    assert trials.won == [True] * 4 and trials.tried == "c"
    trials.tell()
    assert trials.cell.said == {"round 1": "round 1 was sent back: 50 % of 4 trials against 75 %",
                                "round 2": "round 2 stays: 100 % of 4 trials against 75 %"}
    other = Trials(Notebook(), TrialsConfig(), seed=0)
    other.load_state_dict(trials.state_dict())
    assert other.state_dict() == trials.state_dict() and other.won is not trials.won


def test_rollouts_explore_and_try_within_their_number():
    cell = Notebook([True, False, True], [True] * 5)
    trials = Trials(cell, TrialsConfig(episodes=3), seed=0)
    demos = [SimpleNamespace(succeeded=True)]
    data, tried = trials.rollouts(a_policy(), demos, 0, 8)
    assert [(label, len(seeds), how.get("greedy", False)) for label, seeds, how in cell.asked] == \
        [("rollout-1-deployed", 3, True), ("rollout-1", 5, False)]
    assert [e.succeeded for e in tried] == trials.won == [True, False, True]
    assert data[0] is demos[0] and len(data) == 1 + 5 and not any(e is d for e in tried for d in data), "nobody learns from evidence"
    few = Notebook()
    Trials(few, TrialsConfig(), seed=0).rollouts(a_policy(), [], 0, 4)
    assert [len(seeds) for _, seeds, _ in few.asked] == [2, 2], "with few rollouts some still explore"
    assert cell.said[1] == {"exploring": 1.0, "deployed": pytest.approx(2 / 3), "gap": pytest.approx(1 / 3), "env_steps": 7}


def test_what_rl_made_is_tried_first_and_what_it_began_from_next():
    """A round begins with weights 0, re-imitation makes 1, RL 2; trials say which goes on, and whose trials count as its own."""
    ended = lambda *won: [SimpleNamespace(succeeded=w) for w in won]
    for outcomes, goes_on, label in (([[True, True]], 2.0, "rollout-2-deployed"),
                                     (([False, False], [True, True]), 1.0, "rollout-2-deployed-again"),
                                     (([False, False], [False, False]), 0.0, "rollout-1-deployed")):
        policy = torch.nn.ModuleDict({part: torch.nn.Linear(1, 1, bias=False).requires_grad_(False) for part in ("net", "encoder")})
        fill = lambda net, encoder, policy=policy: {"net.weight": torch.full((1, 1), net), "encoder.weight": torch.full((1, 1), encoder)}
        began, made = fill(0.0, 0.0), fill(2.0, 5.0)
        policy.load_state_dict(made)
        trials, asked = Trials(Notebook(), TrialsConfig(episodes=2), seed=0), iter(outcomes)
        trials.won = [True, False]
        trials.run = lambda *args, asked=asked, **how: ended(*next(asked))
        assert trials.settle(policy, began, [{"weight": torch.ones(1, 1)}], 0, 60) == (goes_on == 0.0)
        assert float(policy["net"].weight) == goes_on and float(policy["encoder"].weight) == (5.0 if goes_on else 0.0), "one encoder"
        assert trials.tried == label and next(asked, None) is None
        assert ("offline round 1, without RL," in trials.lines) == (goes_on < 2.0)
    assert trials.lines["offline round 1, without RL,"] == "offline round 1, without RL, was sent back: 0 % of 2 trials against 50 %"


def test_where_the_gate_refused_everything_re_imitation_is_tried():
    for outcome, goes_on in (([True, True], 1.0), ([False, False], 0.0)):
        policy = torch.nn.ModuleDict({"net": torch.nn.Linear(1, 1, bias=False).requires_grad_(False)})
        policy["net"].weight.fill_(0.0)
        cell = Notebook(outcome)
        trials = Trials(cell, TrialsConfig(episodes=2), seed=0)
        trials.won = [True, False]
        policy.with_head = lambda head: SimpleNamespace(head=head)
        began = {key: value.clone() for key, value in policy.state_dict().items()}
        assert trials.settle(policy, began, [{"weight": torch.ones(1, 1)}], 0, 60) == (goes_on == 0.0)
        assert float(policy["net"].weight) == goes_on and [label for label, _, _ in cell.asked] == ["rollout-2-deployed-again"]
    for nothing in ([], [{"weight": torch.zeros(1, 1)}]):  # without re-imitation the other network is what the round began with
        assert not trials.settle(policy, began, nothing, 1, 60) and len(cell.asked) == 1
        assert trials.lines["offline round 2"].startswith("offline round 2 changed nothing")


def test_without_trials_the_gate_has_the_last_word():
    """What it refused used to take the place of what the round began with, as if it had been tried."""
    policy = torch.nn.ModuleDict({"net": torch.nn.Linear(1, 1, bias=False).requires_grad_(False)})
    policy.with_head = lambda head: SimpleNamespace(head=head)
    for made in (0.0, 2.0):  # nothing passed the gate, or what RL made did
        policy["net"].weight.fill_(0.0)
        began = {key: value.clone() for key, value in policy.state_dict().items()}
        policy["net"].weight.fill_(made)
        trials = Trials(Notebook(), TrialsConfig(episodes=0), seed=0)
        assert not trials.settle(policy, began, [{"weight": torch.ones(1, 1)}], 0, 60) and float(policy["net"].weight) == made
        assert not trials.cell.asked and ("offline round 1" in trials.lines) == (made == 0.0)


def test_where_nobody_ever_succeeds_a_refused_clone_does_not_win_by_a_tie():
    """Locomotion knows no success, and its clone of the better half by return took the place of what the gate had left."""
    policy = torch.nn.ModuleDict({"net": torch.nn.Linear(1, 1, bias=False).requires_grad_(False)})
    policy.with_head = lambda head: SimpleNamespace(head=head)
    for outcome, goes_on in (([False, False], 0.0), ([False, True], 1.0)):
        policy["net"].weight.fill_(0.0)
        began = {key: value.clone() for key, value in policy.state_dict().items()}
        trials = Trials(Notebook(outcome), TrialsConfig(episodes=2), seed=0)
        trials.won = [False, False]
        assert trials.settle(policy, began, [{"weight": torch.ones(1, 1)}], 0, 60) == (not goes_on)
        assert float(policy["net"].weight) == goes_on and ("none of 2 trials" in str(trials.lines)) == (not goes_on)
    policy["net"].weight.fill_(2.0)  # what the gate let pass stays
    trials = Trials(Notebook([False, False]), TrialsConfig(episodes=2), seed=0)
    trials.won = [False, False]
    assert not trials.settle(policy, began, [{"weight": torch.ones(1, 1)}], 0, 60) and float(policy["net"].weight) == 2.0


def test_who_solved_every_start_is_not_cloned_anew():
    """A tie is all that re-imitation could show there, and a tie would put it in the place of who was tried more often."""
    policy = torch.nn.ModuleDict({"net": torch.nn.Linear(1, 1, bias=False).requires_grad_(False)})
    policy["net"].weight.fill_(0.0)
    began = {key: value.clone() for key, value in policy.state_dict().items()}
    policy["net"].weight.fill_(2.0)
    cell = Notebook([True, False])
    trials = Trials(cell, TrialsConfig(episodes=2), seed=0)
    trials.won = [True, True]
    policy.with_head = lambda head: SimpleNamespace(head=head)
    assert trials.settle(policy, began, [{"weight": torch.ones(1, 1)}], 0, 60) and float(policy["net"].weight) == 0.0
    assert [label for label, _, _ in cell.asked] == ["rollout-2-deployed"] and trials.won == [True, True]
    assert not trials.settle(policy, began, [{"weight": torch.ones(1, 1)}], 1, 60) and len(cell.asked) == 1


@pytest.mark.parametrize("field", [{"back": 0.6}, {"enough": 0.0}, {"every": 0}, {"episodes": -1}])
def test_bounds(field):
    with pytest.raises(RealrlError, match=next(iter(field))):
        TrialsConfig(**field)


def fooled(monkeypatch, cloned, folder, *asked):
    """A run that goes on from an imitation, whose critics, gate and V all say the opposite of the truth: {stage: success}, decisions."""
    shutil.copytree(cloned, folder)
    true = Critics.advantage
    with monkeypatch.context() as patch:
        patch.setattr(Critics, "advantage", lambda self, cond, action: -true(self, cond, action))
        patch.setattr(ope, "gate", lambda c, i, **_: ope.Verdict(True, float(c.mean()), float(i.mean()), 1.0, 1.0, 0.0))
        patch.setattr(rl100, "gae", lambda *args: (-gae(*args)[0], gae(*args)[1]))
        summary = through(folder, foolish(*asked), ignore=("stages", "trials"))
    return {s["name"]: s["success"]["rate"] for s in summary["stages"]}, summary.get("decisions", {})


def foolish(trials, stages=("imitation", "offline", "online")):
    """What little it takes to become worse."""
    return small(demos=25, demo_noise=0.2, imitation=replace(small().imitation, steps=400), trials=trials, audit_episodes=0,
                 critic=replace(small().critic, steps=100), ope=replace(small().ope, steps=50), stages=stages,
                 eval_episodes=100, final_episodes=100,
                 offline=OfflineConfig(rounds=1, rollouts=60, iterations=6, states=512, gate_every=2, reimitation=0, max_drift=1e3,
                                       ppo=PPOConfig(lr=1e-3, target_kl=0.1, max_kl=1.0)),
                 online=OnlineConfig(iterations=6, episodes=40, warmup=1, practice=0.0, ppo=PPOConfig(lr=1e-3, target_kl=0.1, max_kl=1.0)))


@pytest.mark.slow
def test_never_worse_where_critics_and_gate_are_fooled(monkeypatch, tmp_path):
    """Every update makes the policy worse and the gate lets all of them pass; only real trials can tell."""
    through(tmp_path / "cloned", foolish(TrialsConfig(), ("imitation",)))
    rates, said = fooled(monkeypatch, tmp_path / "cloned", tmp_path / "tried", TrialsConfig(episodes=40, every=3))
    assert rates["imitation"] > 0.6
    assert rates["imitation"] == rates["offline-1"] == rates["online"], "every product went back to what it began with"
    assert "offline round 1 was sent back" in said["offline round 1"] and "online round 6 was sent back" in said["online round 6"]
    assert next(line["deployed"] for line in metrics(tmp_path / "tried") if line["stage"] == "trials") > 0.6
    untried, nothing = fooled(monkeypatch, tmp_path / "cloned", tmp_path / "untried", TrialsConfig(episodes=0), ("imitation", "offline"))
    assert untried["offline-1"] < rates["imitation"] - 0.3 and not [line for line in nothing.values() if "trials" in line]
    assert np.isfinite(list(untried.values())).all()
