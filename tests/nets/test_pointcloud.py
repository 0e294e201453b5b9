"""PointNet and the cloud decoder: what they ignore, what the quick training path must not change, and the units of the workspace."""

import pytest
import torch

from realrl.losses import chamfer
from realrl.nets.pointcloud import CloudDecoder, PointNet
from realrl.types import RealrlError


def cloud(n=4, points=120, channels=3, seed=0, dtype=torch.float64):
    return torch.rand(n, points, channels, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def net(seed=0, **options):
    torch.manual_seed(seed)
    return PointNet(**{"out": 16, "hidden": (16, 32, 48), **options}).double()


def gradients(encoder, x):
    encoder.zero_grad()
    y = encoder(x)
    y.pow(3).sum().backward()
    return y.detach(), [p.grad.clone() for p in encoder.parameters()]


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("points", [1, 7, 120, 3000])
def test_value_and_gradient_through_the_winners_are_those_of_the_plain_form(norm, points):
    encoder, x = net(norm=norm, channels=6), cloud(points=points, channels=6)
    encoder.fit(x)
    value, slopes = gradients(encoder, x)
    encoder.winners = False
    plain, plain_slopes = gradients(encoder, x)
    assert torch.allclose(value, plain, rtol=1e-12, atol=1e-12)
    for a, b in zip(slopes, plain_slopes, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12) and (b.abs().sum() > 0 or points == 1)
    with torch.no_grad():
        assert torch.allclose(encoder(x), plain, rtol=1e-12, atol=1e-12)


def test_points_receive_the_same_gradient_in_both_forms():
    encoder, found = net(), []
    for winners in (True, False):
        encoder.winners = winners
        x = cloud().requires_grad_()
        encoder(x).pow(3).sum().backward()
        found.append(x.grad)
    assert torch.allclose(*found, rtol=1e-9, atol=1e-12) and (found[0].abs().sum(-1) > 0).any(1).all()


def test_only_the_winners_are_computed_with_gradients():
    encoder, x, seen = net(), cloud(points=500), []
    encoder.layers[0].register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].shape[1], output.requires_grad)))
    encoder(x)
    assert [n for n, grad in seen if grad] == [seen[-1][0]] and seen[-1][0] <= 48  # no more than the channels of the last layer


def test_a_frozen_encoder_needs_no_gradients():
    encoder, x = net(), cloud()
    encoder.layers.requires_grad_(False)
    seen = []
    encoder.layers[0].register_forward_hook(lambda _, inputs, output: seen.append(inputs[0].shape))
    encoder(x).sum().backward()
    assert len(seen) == 1 and encoder.head[0].weight.grad is not None


@pytest.mark.parametrize("channels", [3, 6])
def test_order_and_repetition_do_not_matter(channels):
    encoder, x = net(channels=channels), cloud(channels=channels)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(1))
    repeated = torch.cat([x, x[:, :30], x[:, 5:6].expand(-1, 40, -1)], 1)
    value, slopes = gradients(encoder, x)
    for other in (x[:, order], repeated):
        again, other_slopes = gradients(encoder, other)
        assert torch.allclose(again, value, rtol=1e-12, atol=1e-12)
        assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(slopes, other_slopes, strict=True))
    assert not torch.allclose(encoder(x + 0.1), value, atol=1e-3)  # but where the points are does


def test_clouds_do_not_feel_their_neighbours_in_the_batch():
    encoder, x = net(), cloud()
    assert torch.allclose(encoder(x)[1:2], encoder(x[1:2]), rtol=1e-12, atol=1e-12)


def test_fit_finds_the_workspace_and_is_saved():
    encoder = net(channels=6)
    x = cloud(50, 200, 6) * torch.tensor([0.4, 0.2, 0.1, 1, 1, 1]) + torch.tensor([1.0, 2.0, 3.0, 0, 0, 0])
    x[0, 0, 0], x[1, 0, 1] = 1e6, torch.nan  # a stray point and a broken one
    encoder.fit(x)
    assert torch.allclose(encoder.centre, torch.tensor([1.2, 2.1, 3.05], dtype=torch.float64), atol=5e-3)
    assert encoder.scale.item() == pytest.approx(0.2, abs=5e-3)
    scaled = encoder.normalise(x[2:])
    assert scaled[..., 0].abs().max() < 1.1 and torch.equal(scaled[..., 3:], x[2:, :, 3:])
    other = net(seed=1, channels=6)
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(other(x[2:]), encoder(x[2:]))


def test_a_fitted_encoder_does_not_care_where_and_how_large_the_workspace_is():
    encoder, x = net(), cloud()
    encoder.fit(x)
    here = encoder(x)
    encoder.fit(5 * x - 3)
    assert torch.allclose(encoder(5 * x - 3), here, atol=1e-9)


def test_half_precision_is_near():
    encoder, x = net().float(), cloud(dtype=torch.float32)
    exact = encoder(x)
    encoder.bf16 = True
    rough = encoder(x)
    rough.sum().backward()
    assert rough.dtype == torch.float32 and 0 < (rough - exact).abs().max() < 0.2
    assert encoder.layers[0].weight.grad.dtype == torch.float32


def test_mistakes_are_named():
    encoder = net(channels=6)
    with pytest.raises(RealrlError, match=r"\[4, 120, 3\].*colour"):
        encoder(cloud())
    with pytest.raises(RealrlError, match="points >= 1"):
        encoder(cloud(points=0, channels=6))
    with pytest.raises(RealrlError, match="no position"):
        PointNet(2)
    with pytest.raises(RealrlError, match="not one finite point"):
        encoder.fit(torch.full((2, 5, 6), torch.nan))


def test_an_autoencoder_of_clouds_learns():
    """Boxes at different places, through eight numbers and back: the decoder ends much nearer than one cloud for all could be."""
    torch.manual_seed(0)
    place = torch.rand(16, 1, 3) * 2 - 1
    x = place + 0.2 * cloud(16, 40, dtype=torch.float32)
    encoder, decoder = PointNet(out=8, hidden=(16, 32)), CloudDecoder(8, 32, (64,))
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 3e-3)
    for _ in range(100):
        loss = chamfer(decoder(encoder(x)), x).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert decoder(encoder(x)).shape == (16, 32, 3)
    blind = chamfer(x.mean(0, keepdim=True)[:, :32].expand(16, -1, -1), x).mean()
    assert loss < 0.1 * blind
