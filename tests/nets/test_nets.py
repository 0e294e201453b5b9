"""Networks: shapes, independence of ensemble members and of rows, what conditions reach, and the normaliser."""

import math

import pytest
import torch
from torch import nn

from realrl.nets.mlp import EnsembleMLP, EnsembleNorm, SkipNet, mlp, time_table
from realrl.nets.normalise import Normaliser, Scaler, Whitener
from realrl.nets.unet1d import UNet1d


@pytest.mark.parametrize("norm", [True, False])
def test_ensemble_equals_its_members_one_by_one(norm):
    torch.manual_seed(0)
    net = EnsembleMLP(3, 4, 2, (8, 6), norm=norm)
    for p in net.parameters():
        nn.init.normal_(p)  # norms too: their affine parts must be told apart
    x = torch.randn(5, 4)
    together = net(x)
    assert together.shape == (3, 5, 2)
    for e in range(3):
        h = x
        for layer in net.layers:
            if isinstance(layer, EnsembleNorm):
                h = nn.functional.layer_norm(h, h.shape[-1:], layer.weight[e, 0], layer.bias[e, 0])
            elif isinstance(layer, nn.SiLU):
                h = nn.functional.silu(h)
            else:
                h = nn.functional.linear(h, layer.weight[e].T, layer.bias[e, 0])
        assert torch.allclose(together[e], h, atol=1e-4, rtol=1e-4)


def test_ensemble_takes_an_input_per_member_and_starts_with_different_ones():
    torch.manual_seed(0)
    net, x = EnsembleMLP(3, 4, 2), torch.randn(3, 5, 4)
    own = net(x)
    for e in range(3):
        assert torch.allclose(own[e], net(x[e])[e], atol=1e-6)
    shared = net(x[0])
    assert not torch.allclose(shared[0], shared[1], atol=1e-3)
    net(x)[1].sum().backward()
    for p in net.parameters():
        assert torch.all(p.grad[0] == 0) and torch.any(p.grad[1] != 0)


def test_mlp_layers():
    assert [type(layer) for layer in mlp(3, 2, (8, 6))] == [nn.Linear, nn.LayerNorm, nn.SiLU, nn.Linear, nn.LayerNorm, nn.SiLU, nn.Linear]
    assert not any(isinstance(layer, nn.LayerNorm) for layer in mlp(3, 2, norm=False))
    assert mlp(3, 2, (8,))(torch.zeros(7, 3)).shape == (7, 2)


def test_time_table_by_hand():
    table = time_table(5, 4)
    assert table.shape == (5, 4)
    assert table[3].tolist() == pytest.approx([math.sin(3), math.sin(3e-4), math.cos(3), math.cos(3e-4)], abs=1e-6)
    assert len(torch.unique(time_table(100, 16), dim=0)) == 100


NETS = {
    "skip": lambda k: SkipNet(k, 2, 5, steps=20, hidden=32),
    "unet": lambda k: UNet1d(2, 5, steps=20, sizes=(8, 16, 32), time=16),
}


@pytest.mark.parametrize("chunk", [1, 4, 5, 16])
@pytest.mark.parametrize("name", list(NETS))
def test_noise_nets(name, chunk):
    """Right shape for any chunk; rows do not mix; noisy action, time, condition and every action of the chunk reach the output."""
    torch.manual_seed(0)
    net = NETS[name](chunk).eval()
    x, t, cond = torch.randn(3, chunk, 2), torch.tensor([0, 7, 19]), torch.randn(3, 5)
    y = net(x, t, cond)
    assert y.shape == x.shape and net(x[:1], t[:1], cond[:1]).shape == (1, chunk, 2)
    assert torch.allclose(y[1:2], net(x[1:2], t[1:2], cond[1:2]), atol=1e-5)
    assert not torch.allclose(y, net(x, t.flip(0), cond), atol=1e-4)
    x.requires_grad_(True)
    cond.requires_grad_(True)
    net(x, t, cond)[0].sum().backward()
    assert torch.all(x.grad[0] != 0) and torch.all(x.grad[1:] == 0)
    assert torch.all(cond.grad[0] != 0) and torch.all(cond.grad[1:] == 0)


@pytest.mark.parametrize("name", list(NETS))
def test_every_weight_learns(name):
    torch.manual_seed(0)
    net = NETS[name](6)
    net(torch.randn(4, 6, 2), torch.arange(4), torch.randn(4, 5)).square().sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not torch.any(p.grad)] == []


def test_weights_of_the_time_table_are_not_saved():
    for make in NETS.values():
        assert not any("table" in key for key in make(4).state_dict())


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    net = SkipNet(2, 2, 3, steps=10, hidden=32, dropout=0.5)
    args = torch.randn(4, 2, 2), torch.arange(4), torch.randn(4, 3)
    assert not torch.equal(net(*args), net(*args))
    net.eval()
    assert torch.equal(net(*args), net(*args))


def test_normaliser_fits_floors_and_clips():
    g = torch.Generator().manual_seed(0)
    x = torch.stack([3 + 2 * torch.randn(500, generator=g), 7 + 1e-4 * torch.randn(500, generator=g)], -1)
    norm = Normaliser(2)
    assert torch.equal(norm(x[:3].clamp(-5, 5)), x[:3].clamp(-5, 5)), "before it is fitted it changes nothing inside the limit"
    norm.fit(x)
    y = norm(x)
    assert y.mean(0).abs().max() < 0.01 and y[:, 0].std().item() == pytest.approx(1, abs=0.01)
    assert y[:, 1].abs().max() < 0.1, "noise in a still feature is not blown up"
    assert norm(torch.tensor([[1e6, -1e6]])).tolist() == [[5.0, -5.0]]
    other = Normaliser(2)
    other.load_state_dict(norm.state_dict())
    assert torch.equal(other(x), y)
    assert norm(x.view(50, 10, 2)).shape == (50, 10, 2)


def test_whitened_latents_are_uncorrelated_and_of_unit_size_but_for_the_faintest():
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([10.0, 1.0, 0.3, 1e-5])
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
    x = (torch.randn(5000, 4, generator=generator) * spread) @ turn + 3
    white = Whitener(4)
    assert torch.equal(white(x), x), "nothing before it is fitted"
    white.fit(x)
    found = torch.cov(white(x).T)
    assert torch.allclose(found - found.diag().diag(), torch.zeros(4, 4), atol=1e-3)
    expected = (spread / (spread + 0.02 * 10)).square().flip(0)  # eigenvalues ascend
    assert torch.allclose(found.diag(), expected, rtol=0.1, atol=1e-6)
    before = white.axes.clone()
    white.fit(2 * x + 1)
    assert torch.equal(white.axes, before), "once"


def test_a_scaler_brings_to_size_what_is_far_off_alone() -> None:
    size, middle = torch.tensor([0.01, 0.5, 30.0, 0.0]), torch.tensor([0.4, 0.4, 9.0, 7.0])
    x = torch.randn(4000, 4, generator=torch.Generator().manual_seed(0)) * size + middle
    scaler = Scaler(4)
    assert torch.equal(scaler(x), x), "as it is, before it is fitted"
    scaler.fit(x)
    out = scaler(x)
    assert torch.equal(out[:, 1], x[:, 1]), "of a sound size: untouched"
    assert torch.allclose(out[:, [0, 2]].std(0), torch.tensor([0.3, 1.0]), atol=0.01) and float(out[:, [0, 2]].mean(0).abs().max()) < 1e-4
    assert torch.isfinite(out).all()
    assert float(scaler(torch.full((1, 4), 7.01))[0, 3]) == pytest.approx(1.0, abs=0.01), "still so far: a hundredfold"
    far = scaler(torch.tensor([[1.4, 0.0, 0.0, 0.0]]))
    assert float(far[0, 0]) > 20, "nothing is clipped: practice goes where no demonstration went"
    scaler.load_state_dict({})
    assert torch.equal(scaler(x), x), "a checkpoint of before has none: what was learned then was learned without"
