"""Flow matching: which way time runs, what counts in the loss, what is decided already."""

import pytest
import torch

from realrl.config import OutOfBounds
from realrl.generative.flow import FlowConfig, draw_fixed, draw_time, euler, flow_loss, mix


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_at_time_0_there_is_the_action_and_at_1_the_noise():
    action, noise = torch.randn(4, 3, 2), torch.randn(4, 3, 2)
    assert torch.equal(mix(action, noise, torch.zeros(4, 1)), action)
    assert torch.equal(mix(action, noise, torch.ones(4, 3)), noise)


def test_the_sampler_goes_from_noise_to_the_action():
    """With the right velocity, e - a, any number of steps ends at the action; with its negative, the papers' direction, far from it."""
    action, noise = torch.randn(5, 3, 2), torch.randn(5, 3, 2)
    for steps in (1, 10):
        chain = euler(lambda x, t: noise - action, noise, steps)
        assert chain.shape == (5, steps + 1, 3, 2) and torch.equal(chain[:, 0], noise)
        assert torch.allclose(chain[:, -1], action, atol=1e-5)
    assert not torch.allclose(euler(lambda x, t: action - noise, noise, 10)[:, -1], action, atol=0.5)


def test_the_sampler_asks_at_falling_times():
    asked = []
    euler(lambda x, t: asked.append(float(t[0, 0])) or torch.zeros_like(x), torch.zeros(1, 2, 1), 4)
    assert asked == [1.0, 0.75, 0.5, 0.25]


def test_times_are_drawn_more_at_the_noisy_end():
    t = draw_time(20_000, seeded())
    assert t.min() >= 0.001 and t.max() <= 1 and abs(float(t.mean()) - (0.001 + 0.999 * 0.6)) < 0.01  # Beta(1.5, 1)'s mean is 0.6


def test_what_does_not_count_cannot_change_the_loss():
    action, noise, t = torch.randn(4, 3, 2), torch.randn(4, 3, 2), torch.rand(4, 3)
    counts = torch.rand(4, 3, 2, generator=seeded()) > 0.4
    velocity = lambda x, t: 0.5 * x
    loss = flow_loss(velocity, action, noise, t, counts)
    by_hand = ((0.5 * mix(action, noise, t) - (noise - action)) ** 2)[counts].mean()
    assert torch.allclose(loss, by_hand)
    assert torch.equal(flow_loss(velocity, torch.where(counts, action, 99.0), noise, t, counts), loss)


def test_decided_actions_stay_and_the_others_are_drawn():
    known, noise = torch.randn(2, 4, 1), torch.randn(2, 4, 1)
    fixed = torch.tensor([[True, True, False, False], [False] * 4])
    times = []
    chain = euler(lambda x, t: times.append(t) or torch.ones_like(x), noise, 5, known, fixed)
    assert torch.equal(chain[0, -1, :2], known[0, :2]) and torch.allclose(chain[0, -1, 2:], noise[0, 2:] - 1)
    assert torch.allclose(chain[1, -1], noise[1] - 1, atol=1e-6)
    assert all((t[0, :2] == 0).all() for t in times), "decided ones stand at t = 0"


def test_delays_are_all_as_likely():
    fixed = draw_fixed(6000, 8, 3, seeded())
    assert fixed.sum(1).bincount().tolist() == pytest.approx([1500] * 4, rel=0.1)
    assert (fixed.int().diff(dim=1) <= 0).all(), "the first ones"


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"guidance": -1.0}, {"delay": 101}])
def test_bounds(wrong):
    with pytest.raises(OutOfBounds):
        FlowConfig(**wrong)
