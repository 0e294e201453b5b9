"""Off-policy evaluation on a point that walks in a square: the model is good, ranks policies, stops where it knows nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from realrl.data.views import ChunkView
from realrl.learn.ope import Estimates, Gate, OPEConfig, TransitionModel, evaluate_policies, gate, misjudged, start_conditions
from realrl.policies.diffusion import DiffusionPolicy
from realrl.types import Episode, RealrlError
from toy_runs import small_policy

CFG = OPEConfig(members=4, elites=3, hidden=(64, 64), steps=500, batch=128, starts=48, horizon=20)
NOISE = (1, 2, 2)
LENGTH, SPEED, REACH = 40, 0.1, 0.2


def walk(seed: int) -> Episode:
    """From x near -1, y in [-0.5, 0.5]: a random mixture of walking to the origin and of wandering; success ends it."""
    rng = np.random.default_rng(seed)
    at, skill = np.array([-1.0, rng.uniform(-0.5, 0.5)]), rng.uniform(0.0, 1.0)
    states, actions = [at], []
    for _ in range(LENGTH):
        action = np.clip(-skill * at / np.linalg.norm(at) + rng.normal(0, 0.4, 2), -1, 1)
        at = np.clip(at + SPEED * action, [-1.5, -0.6], [1.5, 0.6])
        states.append(at)
        actions.append(action)
        if np.linalg.norm(at) < REACH:
            break
    n, won = len(actions), bool(np.linalg.norm(at) < REACH)
    action = np.array(actions, np.float32)
    success = np.arange(n) == n - 1 if won else np.zeros(n, bool)
    return Episode(obs={"state": np.array(states, np.float32)}, action=action, proposed=action, source=np.zeros(n, np.uint8),
                   reward=success.astype(np.float32), success=success, time=np.arange(n) / 10, starts_plan=np.arange(n) % 2 == 0,
                   terminated=won, truncated=not won, task="walk", policy="test", seed=seed)


def state(frames: Mapping[str, Tensor]) -> Tensor:
    return frames["state"]


def towards(cond: Tensor, noise: Tensor) -> Tensor:
    way = -cond / cond.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    return (way[:, None] + 0.1 * noise[:, 0]).clamp(-1, 1)


def slowly(cond: Tensor, noise: Tensor) -> Tensor:
    return 0.4 * towards(cond, noise)


def idle(cond: Tensor, noise: Tensor) -> Tensor:
    return 0.3 * noise[:, 0].clamp(-1, 1)


def upwards(cond: Tensor, noise: Tensor) -> Tensor:
    return torch.tensor([0.0, 1.0]).expand(len(cond), 2, 2)


def nothing(cond: Tensor, action: Tensor) -> Tensor:
    return torch.zeros(len(cond))


@pytest.fixture(scope="module")
def view() -> ChunkView:
    return ChunkView([walk(s) for s in range(80)], chunk=2, n_obs=1, gamma=0.98)


@pytest.fixture(scope="module")
def fitted(view: ChunkView) -> tuple[TransitionModel, dict[str, float]]:
    model = TransitionModel(2, 2, 2, CFG, seed=0)
    return model, model.fit(view.encoded(state))


@pytest.fixture(scope="module")
def judged(view: ChunkView, fitted: tuple[TransitionModel, dict[str, float]]) -> Estimates:
    start = start_conditions(view.encoded(state), CFG)
    return evaluate_policies(fitted[0], nothing, [towards, slowly, idle, towards], start, NOISE, seed=3)


def true_returns(act: object, start: Tensor) -> Tensor:
    """Discounted success [N] in the real world, with the noise of a seed of its own."""
    assert callable(act)
    at, random, out, alive = start.clone(), torch.Generator().manual_seed(0), torch.zeros(len(start)), torch.ones(len(start))
    for t in range(CFG.horizon):
        chunk = act(at, torch.randn((len(start), *NOISE), generator=random))
        for j in range(2):
            at = torch.minimum(torch.maximum(at + SPEED * chunk[:, j], torch.tensor([-1.5, -0.6])), torch.tensor([1.5, 0.6]))
            won = (at.norm(dim=-1) < REACH).float() * alive
            out, alive = out + won * 0.98 ** (2 * t + j), alive - won
    return out


def test_the_model_predicts(fitted: tuple[TransitionModel, dict[str, float]]) -> None:
    _, metrics = fitted
    assert metrics["r2"] > 0.95
    assert 0.7 < metrics["done_ratio"] < 1.4


def test_estimates_are_close_to_the_truth_and_in_its_order(view: ChunkView, judged: Estimates) -> None:
    start = start_conditions(view.encoded(state), CFG)
    truth = torch.stack([true_returns(a, start) for a in (towards, slowly, idle)]).mean(1)
    estimate = judged.returns[:3].mean(1)
    assert truth.tolist() == sorted(truth.tolist(), reverse=True)
    assert estimate.tolist() == sorted(estimate.tolist(), reverse=True)
    assert (estimate - truth).abs().max() < 0.15
    assert judged.success[0].mean() > 0.85
    assert judged.success[2].mean() < 0.15


def test_the_gate_takes_the_better_and_refuses_the_worse_and_the_equal(judged: Estimates) -> None:
    ask = lambda a, b: gate(judged.returns[a], judged.returns[b], margin=CFG.margin, confidence=CFG.confidence)
    assert ask(0, 1).accepted and ask(1, 2).accepted
    assert not ask(1, 0).accepted and ask(1, 0).gain < 0
    assert not ask(3, 0).accepted
    chance = gate(judged.success[0], judged.success[1], margin=CFG.margin, confidence=CFG.confidence, ceiling=1.0)
    assert chance.delta == pytest.approx(CFG.margin * (1 - float(judged.success[1].mean())), abs=1e-6)
    amq = gate(judged.amq[0], judged.amq[1], margin=CFG.margin, confidence=CFG.confidence)
    assert amq.accepted  # with Q = 0 it counts the decisions left after success: speed pays


def test_equal_policies_differ_by_exactly_nothing(judged: Estimates) -> None:
    for estimate in (judged.amq, judged.returns, judged.success, judged.stopped):
        assert torch.equal(estimate[0], estimate[3])


def test_noise_belongs_to_the_start_not_to_who_else_still_runs(fitted: tuple[TransitionModel, dict[str, float]], view: ChunkView,
                                                               judged: Estimates) -> None:
    start = start_conditions(view.encoded(state), CFG)
    alone = evaluate_policies(fitted[0], nothing, [towards], start, NOISE, seed=3)
    assert torch.equal(alone.returns[0], judged.returns[0])
    other = evaluate_policies(fitted[0], nothing, [towards], start, NOISE, seed=4)
    assert not torch.equal(other.returns[0], judged.returns[0])


def test_what_leaves_the_data_is_stopped_and_not_believed(fitted: tuple[TransitionModel, dict[str, float]], view: ChunkView) -> None:
    """Critics that are wildly wrong where no data is: believed without the stop, not with it."""
    model, start = fitted[0], start_conditions(view.encoded(state), CFG)
    wrong = lambda cond, action: 100.0 * (cond[:, 1] > 1.2) + 0.1
    safe = evaluate_policies(model, wrong, [towards, upwards], start, NOISE, seed=0)
    assert safe.stopped[1].mean() > 0.9 > 0.5 > safe.stopped[0].mean()
    assert safe.amq[1].mean() < safe.amq[0].mean()
    gullible = TransitionModel(2, 2, 2, replace(CFG, slack=1e6, doubt=0.0), seed=0)
    gullible.load_state_dict(model.state_dict())
    gullible.limit.fill_(1e6)
    fooled = evaluate_policies(gullible, wrong, [towards, upwards], start, NOISE, seed=0)
    assert fooled.amq[1].mean() > fooled.amq[0].mean()


def test_disagreement_grows_away_from_the_data(fitted: tuple[TransitionModel, dict[str, float]]) -> None:
    model = fitted[0]
    near, far = torch.tensor([[-0.5, 0.1]]).expand(8, 2), torch.tensor([[4.0, -4.0]]).expand(8, 2)
    trust = [model.step(c, torch.zeros(8, 2, 2), torch.arange(8) % 3).trust.mean() for c in (near, far)]
    assert trust[0] > 0.98
    assert trust[1] == 0


def test_amq_sums_q_and_a_finished_task_keeps_its_reward(fitted: tuple[TransitionModel, dict[str, float]], view: ChunkView) -> None:
    start = start_conditions(view.encoded(state), replace(CFG, starts=12))
    out = evaluate_policies(fitted[0], lambda cond, action: torch.full((len(cond),), 0.5), [towards, idle], start, NOISE, seed=0)
    fast, still = out.amq.mean(1)
    assert still == pytest.approx(0.5 * CFG.horizon, rel=0.25)
    assert fast > still  # solved at once: 1 a decision from there on, not 0


def test_a_fit_is_repeatable_and_its_state_restores_it(view: ChunkView, fitted: tuple[TransitionModel, dict[str, float]]) -> None:
    cfg = replace(CFG, steps=5)
    torch.manual_seed(1)
    one, two = TransitionModel(2, 2, 2, cfg, seed=5), TransitionModel(2, 2, 2, cfg, seed=5)
    seen: list[int] = []
    first = one.fit(view.encoded(state), lambda step, metrics: seen.append(step))
    torch.manual_seed(2)
    assert two.fit(view.encoded(state)) == first
    assert seen == [0, 4]
    copy = TransitionModel(2, 2, 2, CFG, seed=9)
    copy.load_state_dict(fitted[0].state_dict())
    args = (torch.zeros(4, 2), torch.ones(4, 2, 2), torch.arange(4) % 3)
    assert torch.equal(copy.step(*args).cond, fitted[0].step(*args).cond)


def test_start_conditions_spread_over_the_episodes(view: ChunkView) -> None:
    first = view.batch(view.first.nonzero().squeeze(-1)).obs["state"].flatten(1)
    assert torch.equal(start_conditions(view.encoded(state), replace(CFG, starts=20)), first[::4])
    assert torch.equal(start_conditions(view.encoded(state), replace(CFG, starts=100)), torch.cat([first, first[:20]]))


def test_gate_by_hand() -> None:
    old, new = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 2.0, 5.0, 5.0])  # differences 1 0 2 1: mean 1, sd sqrt(2/3)
    verdict = gate(new, old, margin=0.2, confidence=1.0)
    assert verdict.gain == pytest.approx(1.0)
    assert verdict.low == pytest.approx(1 - math.sqrt(2 / 3) / 2)
    assert (verdict.incumbent, verdict.candidate, verdict.delta) == pytest.approx((2.5, 3.5, 0.5))
    assert verdict.accepted
    assert not gate(new, old, margin=0.25, confidence=1.0).accepted  # delta 0.625 > 0.592
    assert not gate(new, old, margin=0.0, confidence=3.0).accepted  # the bound is negative
    assert gate(new - 10, old - 10, margin=0.05, confidence=1.0).delta == pytest.approx(0.375)  # |J|: a negative estimate too


def test_gate_near_a_ceiling_asks_for_a_share_of_the_failures() -> None:
    old, new = torch.full((100,), 0.96), torch.full((100,), 0.97)
    assert not gate(new, old, margin=0.05, confidence=1.645).accepted
    verdict = gate(new, old, margin=0.05, confidence=1.645, ceiling=1.0)
    assert verdict.accepted and verdict.delta == pytest.approx(0.002)
    zero = torch.zeros(4)
    assert not gate(zero, zero, margin=0.05, confidence=1.0).accepted


def test_a_model_that_misjudges_what_is_known_loses_its_vote() -> None:
    truth, estimate = torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([0.5, 0.0, 0.5, 0.0])
    # differences -.5 0 -.5 -1: mean -.5, variance 1/6, squared standard error 1/24
    assert misjudged(estimate, truth) == pytest.approx((0.25 - 1 / 24) ** 0.5)
    assert misjudged(truth, truth) == misjudged(truth[:1], truth[:1]) == 0.0
    assert misjudged(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])) == 0.0, "wrong of each, right on the whole"


def test_what_a_model_without_a_vote_cannot_decide_is_left_to_trials(view: ChunkView, fitted: tuple[TransitionModel, dict[str, float]],
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """Re-imitation must pass the gate of a model that knows; one that is known to misjudge has no say in it."""
    torch.manual_seed(0)
    policy = DiffusionPolicy(small_policy(), 2, 2)
    cloned, started = ({k: v + i for k, v in policy.net.state_dict().items()} for i in (0, 1))
    told: dict[str, float] = {}
    few, first = ChunkView([walk(s) for s in range(76, 80)], chunk=2, n_obs=1, gamma=0.98), view.encoded(state).first
    for error, gain, goes_on in ((0.0, -0.02, started), (0.0, 0.1, cloned), (0.05, -0.1, cloned)):
        gate_ = Gate(policy, fitted[0], nothing, view.encoded(state), "returns", seed=0, log=lambda step, said: told.update(said),
                     tried=few)
        assert gate_.tried and len(gate_.tried[0]) == 4 and torch.equal(gate_.tried[1], view.encoded(state).returns[first][-4:])
        before = torch.linspace(0.3, 0.4, 100)
        scores = iter([{"returns": before}, {"returns": before + gain}])
        monkeypatch.setattr(gate_, "check", lambda won, gate_=gate_, error=error: setattr(gate_, "error", error))
        monkeypatch.setattr(gate_, "score", lambda scores=scores: next(scores))
        policy.net.load_state_dict(cloned)
        product, _ = gate_.begin(started, [True] * 4)
        assert all(torch.equal(v, goes_on[k]) for k, v in product.items()), (error, gain)
        assert told["accepted"] == gate_.records[-1]["accepted"] == float(goes_on is cloned)
        assert all(torch.equal(v, cloned[k]) for k, v in policy.net.state_dict().items()), "improvement goes on from re-imitation"


def test_the_model_is_asked_about_the_starts_that_were_tried(view: ChunkView, fitted: tuple[TransitionModel, dict[str, float]]) -> None:
    torch.manual_seed(0)
    told: dict[str, float] = {}
    gate_ = Gate(DiffusionPolicy(small_policy(), 2, 2), fitted[0], nothing, view.encoded(state), "success", seed=0,
                 log=lambda step, said: told.update(said),
                 tried=ChunkView([walk(s) for s in range(60, 80)], chunk=2, n_obs=1, gamma=0.98))
    gate_.check([True] * 20)
    assert told["trials_said"] == 1.0 and told["model_said"] < 0.5, "a policy that knows nothing does not succeed"
    assert told["model_error"] == gate_.error > 0.3
    gate_.check([False] * 20)
    assert gate_.error < 0.5 and told["trials_said"] == 0.0


def test_bad_input_gets_one_line(view: ChunkView) -> None:
    with pytest.raises(RealrlError, match=r"ope\.elites"):
        TransitionModel(2, 2, 2, replace(CFG, elites=9), seed=0)
    with pytest.raises(RealrlError, match="at least 2 episodes"):
        TransitionModel(2, 2, 2, CFG, seed=0).fit(ChunkView([walk(0)], chunk=2, n_obs=1, gamma=0.98).encoded(state))
    with pytest.raises(ValueError, match="equal length"):
        gate(torch.zeros(3), torch.zeros(4), margin=0.05, confidence=1.0)
