"""Stacked networks against plain ones, BatchRenorm against numpy, and one vector that is all the parameters."""

import numpy as np
import pytest
import torch
from torch import nn

from realrl.nets.stack import EPS, MOMENTUM, Flat, Stack


def numpy_renorm(x, running, r_and_d, scale=1.0, shift=0.0):
    """Ioffe's algorithm 1 on x [B, F] in float64: (y, batch mean, batch variance)."""
    x = x.astype(np.float64)
    mean, var = x.mean(0), x.var(0)
    r = np.clip(np.sqrt(var + EPS) / np.sqrt(running[1] + EPS), 1 / 3, 3) if r_and_d else 1.0
    d = np.clip((mean - running[0]) / np.sqrt(running[1] + EPS), -5, 5) if r_and_d else 0.0
    return ((x - mean) / np.sqrt(var + EPS) * r + d) * scale + shift, mean, var


def only_renorm(warmup):
    """A stack of two whose first renorm can be seen alone, and its parameters."""
    torch.manual_seed(0)
    stack = Stack(2, 3, 1, (4,), norm="renorm", warmup=warmup)
    p = dict(stack.named_parameters())
    for name in ("scale", "shift"):
        p[name].data.uniform_(0.5, 1.5)
    return stack, p


def renormed(stack, p, x, train):
    found = []
    return stack._renorm(x.expand(2, *x.shape), next(stack._norms(p, train)), train, found), found


def test_batch_renorm_is_ioffes_in_and_after_the_warm_up():
    stack, p = only_renorm(warmup=3)
    random = np.random.default_rng(0)
    running = np.stack([np.zeros(3), np.ones(3)])
    clipped = False
    for step in range(6):
        x = (random.normal(size=(16, 3)) * [0.1, 2, 30] + [0, 30, -4]).astype(np.float32)
        y, found = renormed(stack, p, torch.from_numpy(x), True)
        for member in range(2):
            scale, shift = (p[name][member, 0, :3].detach().numpy() for name in ("scale", "shift"))
            wanted, mean, var = numpy_renorm(x, running, step >= 3, scale, shift)
            assert np.allclose(y[member].detach(), wanted, rtol=1e-4, atol=1e-4), step
        clipped |= step >= 3 and bool((np.abs(mean - running[0]) > 5 * np.sqrt(running[1])).any())
        running = running + MOMENTUM * (np.stack([mean, var]) - running)
        hidden = torch.zeros(2, 2, 1, 4)
        stack.learn([*found, hidden])
        assert np.allclose(stack.running[:, 0, 0, :3], running, rtol=1e-5) and int(stack.seen) == step + 1
    assert clipped, "the bounds of r and d were never met"
    at_rest = renormed(stack, p, torch.from_numpy(x), False)[0][1].detach().numpy()
    wanted = (x - running[0]) / np.sqrt(running[1] + EPS) * scale + shift  # of the second member
    assert np.allclose(at_rest, wanted, rtol=1e-4, atol=1e-4)


def test_no_gradient_flows_through_r_and_d():
    """dL/dx of batch normalisation, times r: what the algorithm's chain rule says."""
    stack, p = only_renorm(warmup=0)
    x = torch.from_numpy(np.random.default_rng(1).normal(2, 3, size=(8, 3)).astype(np.float32)).requires_grad_()
    y, _ = renormed(stack, p, x, True)
    weight = torch.randn(8, 3)
    (y[0] * weight).sum().backward()
    g = (weight * p["scale"][0, 0, :3]).detach().numpy().astype(np.float64)
    seen = x.detach().numpy().astype(np.float64)
    deviation = np.sqrt(seen.var(0) + EPS)
    normal = (seen - seen.mean(0)) / deviation
    r = np.clip(deviation / np.sqrt(1 + EPS), 1 / 3, 3)
    assert np.allclose(x.grad, r / deviation * (g - g.mean(0) - normal * (g * normal).mean(0)), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_every_member_is_a_plain_network(norm):
    torch.manual_seed(0)
    stack = Stack(3, 5, 2, (7, 6), norm=norm)
    x = torch.randn(4, 5)
    got = stack(x)
    assert got.shape == (3, 4, 2)
    for member in range(3):
        p = {name: value[member] for name, value in stack.named_parameters()}
        h = x
        for i in range(2):
            h = h @ p[f"weight{i}"] + p[f"bias{i}"]
            if norm == "layer":
                here = slice(0, 7) if i == 0 else slice(7, 13)
                h = nn.functional.layer_norm(h, h.shape[-1:]) * p["scale"][:, here] + p["shift"][:, here]
            h = h.relu()
        assert torch.allclose(got[member], h @ p["weight2"] + p["bias2"], atol=1e-5)
    assert torch.allclose(stack(x.expand(3, 4, 5)), got)


def test_dropout_empties_the_places_it_was_given_and_keeps_the_mean():
    torch.manual_seed(0)
    stack = Stack(2, 3, 1, (50,), dropout=0.2)
    assert stack.drops(10) == [200] and Stack(2, 3, 1, (50,)).drops(10) == []
    x = torch.randn(10, 3)
    everything = torch.arange(2 * 10 * 50)
    assert torch.allclose(stack(x, drop=[everything]), stack.bias1.expand(2, 10, 1), atol=1e-6)
    drawn = torch.stack([stack(x, drop=[torch.randint(1000, (200,))])[..., 0] for _ in range(400)]).detach()
    # places are drawn with replacement, so a little fewer than a fifth of the features are missing
    assert torch.allclose(drawn.mean(0), stack(x)[..., 0], atol=0.1) and float(drawn.std(0).min()) > 0.01


def test_one_vector_is_all_the_parameters():
    torch.manual_seed(0)
    net = Stack(2, 3, 1, (4,), norm="layer")
    before = [p.clone() for p in net.parameters()]
    flat = Flat(net)
    assert len(flat.value) == sum(p.numel() for p in before)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    flat.value.add_(1.0)
    assert all(torch.equal(a + 1, b) for a, b in zip(before, net.parameters(), strict=True))
    other = Stack(2, 3, 1, (4,), norm="layer")
    net.load_state_dict(other.state_dict())
    assert torch.equal(flat.value, torch.cat([p.detach().reshape(-1) for p in other.parameters()]))
