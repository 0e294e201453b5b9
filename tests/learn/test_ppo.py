"""The objective over denoising steps: where it starts, which way it moves, when it stops, and what it tells."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

from realrl.generative.diffusion import DiffusionConfig
from realrl.learn.ppo import DenoisingPPO, PPOConfig
from realrl.policies.diffusion import DiffusionPolicy, PolicyConfig
from realrl.types import RealrlError

LOOSE = PPOConfig(max_kl=100.0, pairs=1.0, epochs=1, minibatch=10**6)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_policy(**options):
    torch.manual_seed(0)
    cfg = PolicyConfig(chunk=2, hidden=32, blocks=1, diffusion=DiffusionConfig(steps=4, sigma_min=0.05, sigma_max=0.8), **options)
    return DiffusionPolicy(cfg, 3, 2).eval()


def decisions(policy, count=300, seed=0):
    """(cond [N, C], chain [N, S+1, K, A], advantage [N]); good are the chains that end high."""
    random = generator(seed)
    cond = torch.randn(count, policy.n_obs * policy.obs_dim, generator=random)
    noise = torch.randn(count, policy.cfg.diffusion.steps + 1, policy.chunk, policy.action_dim, generator=random)
    with torch.no_grad():
        chain = policy.diffusion.sample(policy.net, cond, noise, stochastic=True)
    return cond, chain, chain[:, -1].mean((1, 2))


def logp(ppo, cond, chain):
    """Log-probability of whole chains [N]."""
    means, diffusion = ppo.means(cond, chain), ppo.policy.diffusion
    return sum(diffusion.logp(chain[:, k + 1], means[:, i], k.expand(len(cond))) for i, k in enumerate(ppo.likely))


def test_before_any_step_the_ratio_is_one_and_the_divergence_nothing():
    """Measured from inside a fit with a step size of 0, in small shuffled batches, with dropout in the net."""
    policy = make_policy(dropout=0.5)
    policy.train()
    cond, chain, advantage = decisions(make_policy(dropout=0.5))
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    ppo = DenoisingPPO(policy, PPOConfig(clip=1e-4, epochs=2, minibatch=64))
    ppo.lr = 0.0
    stats = ppo.fit(cond, chain, advantage, generator())
    assert stats["clip_fraction"] == 0.0 and 0 <= stats["kl"] < 1e-9  # no ratio is further than 1e-4 from 1
    assert all(stats[f"ratio_{k}"] == pytest.approx(1.0, abs=1e-5) for k in policy.diffusion.likely)
    assert all(torch.equal(v, before[k]) for k, v in policy.state_dict().items())


def test_a_fit_makes_good_chains_likelier_and_bad_ones_less_likely():
    policy = make_policy()
    cond, chain, advantage = decisions(policy)
    ppo = DenoisingPPO(policy, PPOConfig(lr=1e-3, max_kl=1.0, epochs=3, pairs=1.0, minibatch=300))
    student = {k: v.clone() for k, v in policy.student.state_dict().items()}
    before = logp(ppo, cond, chain)
    ppo.fit(cond, chain, advantage, generator())
    gain, good = logp(ppo, cond, chain) - before, advantage > advantage.mean()
    assert gain[good].mean() > 0.05 and gain[~good].mean() < -0.05
    _, after, higher = decisions(policy, count=2000, seed=9)
    _, _, lower = decisions(make_policy(), count=2000, seed=9)
    assert higher.mean() > lower.mean() + 0.01, "from the same noise the new policy ends higher"
    assert after.abs().max() < 10 and all(torch.equal(v, student[k]) for k, v in policy.student.state_dict().items())


def test_only_the_difference_of_advantages_counts():
    """Normalised: scale and offset change nothing, and equal advantages move nothing."""
    moved = []
    for change in (lambda a: a, lambda a: 1000 * a + 7, lambda a: 0 * a + 3):
        policy = make_policy()
        cond, chain, advantage = decisions(policy)
        before = policy.net.stem.weight.detach().clone()
        DenoisingPPO(policy, LOOSE).fit(cond, chain, change(advantage), generator())
        moved.append(policy.net.stem.weight.detach() - before)
    assert moved[0].abs().max() > 5e-5 and torch.allclose(moved[0], moved[1], atol=2e-5)
    assert moved[2].abs().max() == 0


@pytest.mark.parametrize(("target", "factor"), [(1e3, 1.3), (1e-9, 1 / 1.3), (None, 1.0)], ids=["too small", "too large", "right"])
def test_the_step_size_follows_the_divergence(target, factor):
    cfg = dataclasses.replace(LOOSE, epochs=3, lr=1e-3, minibatch=200)
    reached = fit(cfg)["kl"]
    stats = fit(dataclasses.replace(cfg, target_kl=reached if target is None else target))
    assert reached > 1e-6 and stats["lr"] == pytest.approx(1e-3 * factor)


def fit(cfg):
    policy = make_policy()
    return DenoisingPPO(policy, cfg).fit(*decisions(policy), generator())


def test_a_fit_stops_early_where_it_went_too_far():
    wild = dataclasses.replace(LOOSE, epochs=20, lr=3e-3, minibatch=100)
    free, held = fit(wild), fit(dataclasses.replace(wild, max_kl=0.01))
    assert free["epochs"] == 20 and 1 <= held["epochs"] < 10
    assert held["kl"] > 0.01, "the minibatch that crossed the line is the last"


def test_a_fit_that_leaves_the_trust_region_at_once_begins_again_with_half_the_rate():
    wild = dataclasses.replace(LOOSE, epochs=3, lr=1e-2, minibatch=100, target_kl=0.02)
    held, free = (moved(dataclasses.replace(wild, max_kl=most)) for most in (0.05, 1e3))
    assert free[0]["retries"] == 0 and free[1] > 0.3
    assert held[0]["retries"] >= 1 and held[1] < 0.1
    assert held[0]["lr"] * 2 ** held[0]["retries"] in (pytest.approx(1e-2), pytest.approx(1.3e-2), pytest.approx(1e-2 / 1.3))


def moved(cfg):
    """(statistics of a fit, the KL that it really moved)."""
    policy = make_policy()
    (cond, chain, advantage), ppo = decisions(policy), DenoisingPPO(policy, cfg)
    old, sigma = ppo.means(cond, chain), policy.diffusion.sigma[ppo.likely][None, :, None, None]
    stats = ppo.fit(cond, chain, advantage, generator())
    return stats, float(0.5 * ((ppo.means(cond, chain) - old) / sigma).square().sum((2, 3)).mean())


def test_of_a_single_decision_nothing_is_learned():
    """One advantage is no better than its mean; its spread used to be NaN, and the policy with it."""
    policy = make_policy()
    before = [p.detach().clone() for p in policy.net.parameters()]
    stats = DenoisingPPO(policy, LOOSE).fit(*(x[:1] for x in decisions(policy)), generator())
    assert all(torch.equal(a, b) for a, b in zip(before, policy.net.parameters(), strict=True)) and stats["kl"] < 1e-9
    assert all(math.isfinite(v) for v in stats.values())


def test_statistics_of_every_stochastic_step():
    policy = make_policy()
    likely = policy.diffusion.likely
    assert likely == [0, 1, 2], "the last step has no noise, so no likelihood"
    stats = fit(dataclasses.replace(LOOSE, epochs=2, lr=3e-3, minibatch=200, clip=0.05))
    names = ("kl", "clip_fraction", "ratio", "sigma")
    assert stats.keys() >= {f"{name}_{k}" for name in names for k in likely} and not any(k.endswith("_3") for k in stats)
    assert [stats[f"sigma_{k}"] for k in likely] == pytest.approx(policy.diffusion.sigma[:3].tolist())
    assert all(0.5 < stats[f"ratio_{k}"] < 2 and stats[f"ratio_{k}"] != 1 for k in likely)
    assert all(stats[f"kl_{k}"] > 0 and 0 < stats[f"clip_fraction_{k}"] < 1 for k in likely)
    assert stats["clip_fraction"] == pytest.approx(sum(stats[f"clip_fraction_{k}"] for k in likely) / 3)
    assert stats["gradient_norm"] > 0 and stats["epochs"] == 2


def test_the_objective_can_leave_out_the_early_steps():
    policy = make_policy()
    data = decisions(policy)
    ppo = DenoisingPPO(policy, dataclasses.replace(LOOSE, last=1))
    stats = ppo.fit(*data, generator())
    assert ppo.likely.tolist() == [2] and "kl_2" in stats and "kl_1" not in stats
    assert DenoisingPPO(policy, LOOSE).likely.tolist() == [0, 1, 2]
    with pytest.raises(RealrlError, match=r"ppo\.last must be .* at least 1 .*, got 0"):
        DenoisingPPO(policy, dataclasses.replace(LOOSE, last=0))


class Constant(nn.Module):
    """Predicts the same noise b everywhere: its sub-policies' means are known by hand."""

    def __init__(self, b):
        super().__init__()
        self.b = nn.Parameter(torch.tensor(b))

    def forward(self, x, t, cond):
        return self.b.expand_as(x)


def test_gradient_by_hand_in_one_dimension():
    """Two decisions, advantages +1 and -1 after normalising (over sqrt 2): dJ/db = mean over pairs of A (x' - mu) / sigma^2 * dmu/db.

    With now = abar_t and after = abar_m, x0 = (x - sqrt(1 - now) b) / sqrt(now) and mu = sqrt(after) x0 + sqrt(1 - after - sigma^2) b.
    """
    b, steps = 0.1, 2
    policy = DiffusionPolicy(PolicyConfig(chunk=1, hidden=8, diffusion=DiffusionConfig(steps=steps, sigma_max=0.8, offset=5)), 1, 1)
    policy.net, d = Constant(b), policy.diffusion
    now, after, sigma = float(d.now[0]), float(d.after[0]), float(d.sigma[0])
    assert d.likely == [0]
    x, chain = (0.2, -0.1), torch.zeros(2, steps + 1, 1, 1)
    x_next = (0.5, 0.3)
    for i in range(2):
        chain[i, 0], chain[i, 1] = x[i], x_next[i]
    slope = -math.sqrt(after * (1 - now) / now) + math.sqrt(1 - after - sigma**2)
    expected = 0.0
    for i, advantage in enumerate((1 / math.sqrt(2), -1 / math.sqrt(2))):
        clean = (x[i] - math.sqrt(1 - now) * b) / math.sqrt(now)
        assert abs(clean) < 1, "inside the clip, where the slope above holds"
        mean = math.sqrt(after) * clean + math.sqrt(1 - after - sigma**2) * b
        expected += advantage * (x_next[i] - mean) / sigma**2 * slope / 2
    ppo = DenoisingPPO(policy, dataclasses.replace(LOOSE, lr=1e-3, grad_clip=1e6))
    ppo.fit(torch.zeros(2, 1), chain, torch.tensor([1.0, -1.0]), generator())
    assert -policy.net.b.grad.item() == pytest.approx(expected, rel=1e-4)
    assert policy.net.b.item() - b == pytest.approx(math.copysign(1e-3, expected), rel=1e-3), "Adam's first step: lr, uphill"


def test_a_solved_task_takes_smaller_steps_and_the_rate_stays_that_of_a_full_one():
    """What is left to gain is a share of the full step's KL, which goes as the square of the step."""
    distance, kl, rates = [], [], []
    for left in (1.0, 0.25):
        policy = make_policy()
        before = torch.cat([p.detach().flatten() for p in policy.net.parameters()])
        ppo = DenoisingPPO(policy, dataclasses.replace(LOOSE, epochs=2, lr=1e-4, target_kl=1e-3))
        stats = ppo.fit(*decisions(policy), generator(), left=left)
        distance.append(float((torch.cat([p.detach().flatten() for p in policy.net.parameters()]) - before).norm()))
        kl.append(stats["kl"])
        rates.append(ppo.lr)
        assert stats["left_to_gain"] == left
    assert distance[1] == pytest.approx(distance[0] / 2, rel=0.05) and kl[1] == pytest.approx(kl[0] / 4, rel=0.1)
    assert rates[0] == rates[1]


def test_state_continues_to_the_same_numbers():
    cfg = dataclasses.replace(LOOSE, lr=1e-3, target_kl=1e3)
    policy = make_policy()
    data, first = decisions(policy), DenoisingPPO(policy, cfg)
    first.fit(*data, generator(1))
    other = make_policy()
    other.load_state_dict(policy.state_dict())
    second = DenoisingPPO(other, cfg)
    second.load_state_dict(copy.deepcopy(first.state_dict()))  # a checkpoint shares no memory
    assert second.lr == pytest.approx(1.3e-3)
    assert first.fit(*data, generator(2)) == second.fit(*data, generator(2))
    assert all(torch.equal(a, b) for a, b in zip(policy.net.parameters(), other.net.parameters(), strict=True))
