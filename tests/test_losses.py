"""Losses and targets against hand-computed numbers, slow reference loops and torch.distributions."""

import math

import pytest
import torch
from scipy import stats
from torch import tensor
from torch.distributions import Normal, kl_divergence

from realrl import losses
from realrl.learn import dreaming

GAMMA = 0.9


def columns(seed=0, lengths=(4, 1, 6), terminated=(True, False, False)):
    """(reward, discount, value, next_value, last) of several episodes in a row, decisions of one to three steps."""
    g = torch.Generator().manual_seed(seed)
    n = sum(lengths)
    reward, value, next_value = torch.randn(3, n, generator=g, dtype=torch.float64)
    discount = GAMMA ** torch.randint(1, 4, (n,), generator=g).double()
    ends = tensor(lengths).cumsum(0) - 1
    last = torch.zeros(n, dtype=torch.bool)
    last[ends] = True
    discount[ends[tensor(terminated)]] = 0.0
    return reward, discount, value, next_value, last


def episodes(lengths):
    stop = tensor(lengths).cumsum(0).tolist()
    return [range(b - n, b) for n, b in zip(lengths, stop, strict=True)]


def test_td_target_by_hand():
    assert losses.td_target(tensor([1.0, 2.0]), tensor([0.9, 0.0]), tensor([10.0, 10.0])).tolist() == pytest.approx([10.0, 2.0])


def test_expectile_by_hand():
    assert losses.expectile(tensor([2.0, -1.0]), 0.7).item() == pytest.approx((0.7 * 4 + 0.3 * 1) / 2)
    error = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert losses.expectile(error, 0.5).item() == pytest.approx(0.5 * error.square().mean().item())


@pytest.mark.parametrize("tau", [0.1, 0.7, 0.9])
def test_minimiser_is_the_expectile(tau):
    """The expectile m is defined by tau E[(x - m)+] = (1 - tau) E[(m - x)+]."""
    x = torch.randn(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    m = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for _ in range(300):
        slope, = torch.autograd.grad(losses.expectile(x - m, tau), m)
        m.data -= 0.5 * slope
    above, below = (x - m).clamp(min=0).mean(), (m - x).clamp(min=0).mean()
    assert (tau * above).item() == pytest.approx(((1 - tau) * below).item(), rel=1e-5)
    assert (m.item() > x.mean().item()) == (tau > 0.5)


def test_gae_by_hand():
    reward, discount, value, after = tensor([0.0, 1.0]), tensor([0.5, 0.0]), tensor([2.0, 3.0]), tensor([3.0, 99.0])
    advantage, returns = losses.gae(reward, discount, value, after, tensor([False, True]), 0.8)
    # delta_1 = 1 - 3 = -2 (terminated: 99 is not looked at); delta_0 = 0 + .5 * 3 - 2 = -.5; A_0 = -.5 + .5 * .8 * -2
    assert advantage.tolist() == pytest.approx([-1.3, -2.0]) and returns.tolist() == pytest.approx([0.7, 1.0])


@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
def test_gae_against_the_sum_of_its_definition(lam):
    lengths = (4, 1, 6)
    reward, discount, value, after, last = columns(lengths=lengths)
    advantage, returns = losses.gae(reward, discount, value, after, last, lam)
    for steps in episodes(lengths):
        for i in steps:
            total, weight = 0.0, 1.0
            for j in range(i, steps.stop):
                total += weight * (reward[j] + discount[j] * after[j] - value[j])
                weight *= discount[j] * lam
            assert advantage[i].item() == pytest.approx(float(total))
    assert torch.equal(returns, advantage + value)


@pytest.mark.parametrize("terminated", [(True, True, True), (False, False, False), (True, False, True)])
def test_lambda_one_is_monte_carlo(terminated):
    lengths = (4, 1, 6)
    reward, discount, value, after, last = columns(2, lengths, terminated)
    for steps in episodes(lengths):  # inside an episode the next value is the next decision's
        after[list(steps)[:-1]] = value[list(steps)[1:]]
    expected = torch.zeros_like(reward)
    for steps in episodes(lengths):
        running = after[steps[-1]]  # a truncated end bootstraps; a terminated one has discount 0
        for i in reversed(steps):
            running = reward[i] + discount[i] * running
            expected[i] = running
    advantage, returns = losses.gae(reward, discount, value, after, last, 1.0)
    assert torch.allclose(returns, expected) and torch.allclose(advantage, expected - value)
    assert torch.allclose(losses.monte_carlo(reward, discount, after, last), expected)


def test_an_episode_does_not_feel_its_neighbours():
    whole = columns()
    alone = losses.gae(*(c[:4] for c in whole), 0.95)[0]
    assert torch.equal(losses.gae(*whole, 0.95)[0][:4], alone)


def test_clipped_surrogate_by_hand():
    ratio, advantage = tensor([2.0, 2.0, 0.5, 0.5, 1.1]), tensor([1.0, -1.0, 1.0, -1.0, 3.0])
    assert losses.clipped_surrogate(ratio, advantage, 0.2).tolist() == pytest.approx([1.2, -2.0, 0.5, -0.8, 3.3])


def test_clipped_surrogate_stops_pushing_outside_the_clip():
    ratio = tensor([1.5, 1.5, 0.5, 0.5], requires_grad=True)
    losses.clipped_surrogate(ratio, tensor([1.0, -1.0, 1.0, -1.0]), 0.2).sum().backward()
    assert ratio.grad.tolist() == [0.0, -1.0, 1.0, 0.0]


def test_gaussians_against_torch():
    g = torch.Generator().manual_seed(0)
    x, mean, other = torch.randn(3, 5, 4, 2, generator=g, dtype=torch.float64)
    sigma = torch.rand(5, generator=g, dtype=torch.float64) + 0.05
    normal = Normal(mean, sigma[:, None, None])
    assert torch.allclose(losses.gaussian_logp(x, mean, sigma), normal.log_prob(x).sum((-2, -1)))
    divergence = kl_divergence(normal, Normal(other, sigma[:, None, None])).sum((-2, -1))
    assert torch.allclose(losses.gaussian_kl(mean, other, sigma), divergence)


def test_explained_variance():
    target = tensor([1.0, 2.0, 3.0, 4.0])
    assert losses.explained_variance(target + 5, target) == pytest.approx(1.0)  # an offset explains all variance
    assert losses.explained_variance(torch.zeros(4), target) == pytest.approx(0.0)
    assert losses.explained_variance(-target, target) == pytest.approx(-3.0)
    assert losses.explained_variance(target, torch.ones(4)) == 0.0


def clouds(n, m, batch=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, n, 3, generator=g, dtype=torch.float64), torch.randn(batch, m, 3, generator=g, dtype=torch.float64)


def test_chamfer_by_hand():
    a, b = tensor([[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]]), tensor([[[0.0, 0.0, 2.0]]])
    assert losses.chamfer(a, b).tolist() == pytest.approx([(4 + 5) / 2 + 4])
    assert losses.chamfer(a, a).tolist() == [0.0]


@pytest.mark.parametrize(("n", "m", "batch"), [(1, 1, 1), (20, 7, 3), (7, 20, 3), (600, 500, 2)])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_chamfer_against_all_pairs(n, m, batch, offset):
    """The value and both gradients of a brute-force search, also for clouds far from the origin."""
    found = []
    for method in (losses.chamfer, brute_force_chamfer):
        a, b = (c.add(offset).requires_grad_() for c in clouds(n, m, batch))
        value = method(a, b)
        (value * torch.arange(1.0, batch + 1)).sum().backward()
        found.append((value.detach(), a.grad, b.grad))
    for mine, slow in zip(*found, strict=True):
        assert torch.allclose(mine, slow, rtol=1e-9, atol=1e-12)
    assert torch.allclose(found[0][0], losses.chamfer(*reversed([c + offset for c in clouds(n, m, batch)])))  # symmetric


def brute_force_chamfer(a, b):
    square = (a[:, :, None] - b[:, None]).square().sum(-1)
    return square.min(2).values.mean(1) + square.min(1).values.mean(1)


def test_chamfer_is_exact_in_single_precision_far_from_the_origin():
    a, b = (c.mul(0.01).add(tensor([1.0, -2.0, 0.5])).float() for c in clouds(200, 100))
    assert torch.allclose(losses.chamfer(a, b), brute_force_chamfer(a.double(), b.double()).float(), rtol=1e-4)


def test_chamfer_does_not_feel_order_and_refuses_what_does_not_match():
    a, b = clouds(20, 7)
    assert torch.allclose(losses.chamfer(a.flip(1), b), losses.chamfer(a, b))
    for wrong in (b[:2], b[..., :2], b[:, :0], b[0]):
        with pytest.raises(ValueError, match="chamfer: clouds of shapes"):
            losses.chamfer(a, wrong)


def test_rank_correlation():
    assert losses.spearman([1, 2, 3, 4], [10, 20, 40, 30]) == pytest.approx(0.8)
    assert losses.spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert losses.spearman([1, 1, 2], [5, 5, 9]) == pytest.approx(1.0)
    assert losses.spearman([1, 1, 1], [1, 2, 3]) == 0.0
    x, y = ([i * i % 7 for i in range(20)], [i * 5 % 11 for i in range(20)])  # many of them equal
    assert losses.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    with pytest.raises(ValueError, match="equal length"):
        losses.spearman([1], [1])


# ---- lambda-returns, categoricals


def test_lambda_returns_by_hand():
    reward, discount, value = tensor([1.0, 2.0, 3.0]), tensor([0.5, 0.0, 0.9]), tensor([10.0, 20.0, 30.0])
    last = 3.0 + 0.9 * 30.0
    second = 2.0
    first = 1.0 + 0.5 * (0.2 * 10.0 + 0.8 * second)
    assert torch.allclose(dreaming.lambda_return(reward, discount, value, 0.8), tensor([first, second, last]))
    assert torch.allclose(dreaming.lambda_return(reward, discount, value, 0.0), reward + discount * value), "one step"


def test_the_kl_of_categoricals_by_hand():
    p, q = tensor([[[0.5, 0.5], [0.9, 0.1]]]), tensor([[[0.25, 0.75], [0.5, 0.5]]])
    one = 0.5 * math.log(2.0) + 0.5 * math.log(0.5 / 0.75)
    two = 0.9 * math.log(1.8) + 0.1 * math.log(0.2)
    assert dreaming.categorical_kl(p, q)[0].item() == pytest.approx(one + two), "summed over the categoricals"
    assert dreaming.categorical_kl(p, p).item() == 0.0
