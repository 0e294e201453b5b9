"""What a policy makes of its senses: one latent a frame from pictures or a point cloud and the robot's own joints.

RL-100 (arXiv 2510.14830), section 3: DP3's PointNet or an image network beside a small MLP for the proprioception, a variational
information bottleneck over both (`L_KL`), and decoders that rebuild what was seen (`L_recon`). The bottleneck's noise is on only
where its losses are asked for (`embed`); acting and RL see its mean, so that an encoder at rest is a function.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from realrl.config import OutOfBounds, check
from realrl.losses import chamfer, kl_to_standard
from realrl.nets.augment import colour_jitter, point_dropout, point_jitter, random_crop, random_shift
from realrl.nets.mlp import mlp
from realrl.nets.pointcloud import CloudDecoder, PointNet
from realrl.types import RealrlError

CLOUD = "pointcloud"
WHOLE = 256
"""Frames that `latents` encodes at a time: a whole data set of clouds at once would not fit into memory."""


@dataclass(frozen=True)
class EncoderConfig:
    """How a policy sees, where its task has senses beyond the state; without any, nothing here is used."""

    image: str = "cnn"
    """Network for pictures and depth: cnn, resnet18, resnet18-small, efficientnet-lite0, torchvision/NAME or timm/NAME."""
    pretrained: bool = True
    """Whether networks of torchvision and timm begin with ImageNet's weights, which may be downloaded, once: policies hold them."""
    frozen: bool = False
    """Whether the image network stays as it came, and only its projection learns."""
    size: int = 64
    """Features of every camera or cloud."""
    hidden: tuple[int, ...] = (64, 64)
    """Layers of the MLP over the proprioception; the last is its features."""
    norm: bool = True
    """LayerNorm in the PointNet's layers, as in DP3; somewhat slower with it on a CPU."""
    latent: int = 64
    """Size of the bottleneck, one frame."""
    recon: float = 0.5
    """beta_recon, weight of the reconstruction losses in imitation; 0 = no decoders."""
    kl: float = 1e-4
    """beta_KL, weight of the information bottleneck in imitation; 0 = no bottleneck noise either."""
    in_rl: float = 0.1
    """Both weights are multiplied by this while RL trains the encoder."""
    crop: int = 0
    """Pixels that pictures lose in height and width: a window anywhere while training, the middle when acting; 0 = none."""
    shift: int = 4
    """Random shift of pictures while training, pixels; 0 = none."""
    colour: float = 0.0
    """Brightness, contrast and saturation of pictures while training, times 1 +- this; 0 = none."""
    jitter: float = 0.002
    """Noise on the points of a cloud while training, m; 0 = none."""
    dropout: float = 0.1
    """Share of a cloud's points that are left out while training."""
    bf16: bool = False
    """The PointNet's layers or a picture network's trunk in half the precision: for GPUs."""

    def __post_init__(self) -> None:
        check(self, size="[1, 8192]", latent="[1, 8192]", hidden="[1, 8192]", recon="[0, 1e6]", kl="[0, 1e6]", in_rl="[0, 1e6]",
              crop="[0, 4096]", shift="[0, 4096]", colour="[0, 10]", jitter="[0, 10]", dropout="[0, 1)")
        if not 1 <= len(self.hidden) <= 20:
            raise OutOfBounds(EncoderConfig, "hidden", f"must have at least one layer and at most 20, got {len(self.hidden)}")


class Encoder(nn.Module):
    """Senses [B, ...] and normalised proprioception [B, D] -> latent z [B, E], frame by frame.

    senses: key -> shape of one frame, as `TaskSpec.senses`: "pointcloud" [N, 3 or 6], "images.<cam>" uint8 [H, W, 3], "depth.<cam>"
    uint16 [H, W] in mm. fetch: False leaves a pretrained image network's weights to whoever loads them. Raises RealrlError on another key.
    """

    def __init__(self, cfg: EncoderConfig, obs_dim: int, senses: Mapping[str, tuple[int, ...]], *, fetch: bool = True) -> None:
        super().__init__()
        self.cfg, self.senses = cfg, dict(senses)
        self.eyes, self.decoders = nn.ModuleDict(), nn.ModuleDict()
        for key, shape in self.senses.items():
            self.eyes[_slot(key)] = _eye(cfg, key, shape, fetch)
            if cfg.recon > 0:
                self.decoders[_slot(key)] = _decoder(cfg, key, shape)
        self.body = mlp(obs_dim, cfg.hidden[-1], cfg.hidden[:-1])
        features = cfg.size * len(self.senses) + cfg.hidden[-1]
        self.mean = nn.Linear(features, cfg.latent)
        self.log_std = nn.Linear(features, cfg.latent)
        nn.init.constant_(self.log_std.bias, -3.0)  # a wide open bottleneck at first: noise of 0.05 on features of about 1
        if cfg.recon > 0:
            self.decoders["body"] = mlp(cfg.latent, obs_dim, (cfg.hidden[0],))

    @torch.no_grad()
    def fit(self, frames: Mapping[str, Tensor]) -> None:
        """Learn where the clouds lie from some frames [F, ...], once, on the demonstrations (as `Normaliser.fit`)."""
        if CLOUD in self.senses:
            eye = self.eyes[CLOUD]
            assert isinstance(eye, PointNet)
            eye.fit(frames[CLOUD])

    def forward(self, state: Tensor, seen: Mapping[str, Tensor]) -> Tensor:
        """The latent's mean [B, E]. state: [B, D] normalised; seen: each [B, *shape]."""
        z: Tensor = self.mean(self._features(state, seen))
        return z

    def embed(self, state: Tensor, seen: Mapping[str, Tensor], random: torch.Generator, *,
             stack: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
        """A latent for imitation and its regularisers: (z [B, E] with the bottleneck's noise, {"recon": [], "kl": []}, both weighted).

        What is rebuilt is the frame as it was; what is encoded was augmented before. stack: so many frames in a row are one decision's
        history, and their pictures are shifted and coloured alike, or a thing at rest would seem to move.
        """
        features = self._features(state, self._augment(seen, random, stack))
        mean = self.mean(features)
        if self.cfg.kl == 0:
            return mean, self._rebuild(mean, state, seen)
        log_std = self.log_std(features).clamp(-6.0, 2.0)
        noise = torch.randn(mean.shape, generator=random, device=mean.device)
        z = mean + log_std.exp() * noise
        return z, {"kl": self.cfg.kl * kl_to_standard(mean, log_std).mean(), **self._rebuild(z, state, seen)}

    def regularise(self, state: Tensor, seen: Mapping[str, Tensor], random: torch.Generator) -> tuple[Tensor, Tensor]:
        """What RL needs of a frame, in one pass: (the mean [B, E], both regularisers, weighted for RL, []).

        Nothing is augmented and the mean carries no noise: either would shake the likelihood ratio.
        """
        features = self._features(state, seen)
        mean, log_std = self.mean(features), self.log_std(features).clamp(-6.0, 2.0)
        z = mean + log_std.exp() * torch.randn(mean.shape, generator=random, device=mean.device) * (self.cfg.kl > 0)
        losses = [self.cfg.kl * kl_to_standard(mean, log_std).mean(), *self._rebuild(z, state, seen).values()]
        return mean, self.cfg.in_rl * torch.stack(losses).sum()

    def _features(self, state: Tensor, seen: Mapping[str, Tensor]) -> Tensor:
        looks = [self.eyes[_slot(key)](self._middle(seen[key], key)) for key in self.senses]
        return torch.cat([*looks, self.body(state)], -1)

    def _middle(self, x: Tensor, key: str) -> Tensor:
        """The middle of pictures [B, H, W, ...] that were not cropped yet."""
        shape = self.senses[key]
        if key == CLOUD or not self.cfg.crop or x.shape[1] < shape[0]:
            return x
        half, rest = self.cfg.crop // 2, self.cfg.crop - self.cfg.crop // 2
        return x[:, half:shape[0] - rest, half:shape[1] - rest]

    def _augment(self, seen: Mapping[str, Tensor], random: torch.Generator, stack: int = 1) -> dict[str, Tensor]:
        cfg, out = self.cfg, dict(seen)
        for key, shape in self.senses.items():
            x = out[key]
            if key == CLOUD:
                x = point_jitter(x, cfg.jitter, 4 * cfg.jitter, random) if cfg.jitter else x
                x = point_dropout(x, cfg.dropout, random) if cfg.dropout else x
            else:
                x = x.view(-1, stack, *x.shape[1:]).movedim(1, 3)  # [B, H, W, stack, ...]: a history moves as one
                x = random_crop(x, shape[0] - cfg.crop, shape[1] - cfg.crop, random) if cfg.crop else x
                x = random_shift(x, cfg.shift, random) if cfg.shift else x
                x = x.movedim(3, 1)
                if cfg.colour and key.startswith("images."):  # one tall picture a history
                    tall = x.flatten(1, 2)
                    x = colour_jitter(tall, random, brightness=cfg.colour, contrast=cfg.colour, saturation=cfg.colour).view(x.shape)
                x = x.flatten(0, 1)
            out[key] = x
        return out

    def _rebuild(self, z: Tensor, state: Tensor, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """beta_recon (Chamfer(o^, o) + ||q^ - q||^2), clouds in the PointNet's own units."""
        if not self.cfg.recon:
            return {}
        total = (self.decoders["body"](z) - state).square().mean()
        for key in self.senses:
            decoded = self.decoders[_slot(key)](z)
            if key == CLOUD:
                eye = self.eyes[CLOUD]
                assert isinstance(eye, PointNet)
                total = total + chamfer(decoded, eye.normalise(seen[key])[..., :3]).mean()
            else:
                from realrl.nets.image import reconstruction_loss
                total = total + reconstruction_loss(decoded, seen[key]).mean()
        return {"recon": self.cfg.recon * total}


def _eye(cfg: EncoderConfig, key: str, shape: tuple[int, ...], fetch: bool) -> nn.Module:
    if key == CLOUD:
        return PointNet(shape[-1], cfg.size, norm=cfg.norm, bf16=cfg.bf16)
    if key.startswith(("images.", "depth.")):
        from realrl.nets.image import image_net  # who has no cameras need not read it
        height, width = shape[0] - cfg.crop, shape[1] - cfg.crop
        return image_net(cfg.image, height, width, cfg.size, depth=key.startswith("depth."), pretrained=cfg.pretrained, frozen=cfg.frozen,
                         bf16=cfg.bf16, fetch=fetch)
    raise RealrlError(f"observation {key!r} is neither pointcloud, images.<camera> nor depth.<camera>: no encoder knows it")


def _decoder(cfg: EncoderConfig, key: str, shape: tuple[int, ...]) -> nn.Module:
    """Rebuilds a cloud, or the whole picture whatever was cropped."""
    if key == CLOUD:
        return CloudDecoder(cfg.latent)
    from realrl.nets.image import ImageDecoder
    return ImageDecoder(cfg.latent, shape[0], shape[1], 1 if key.startswith("depth.") else 3)


def _slot(key: str) -> str:
    """A module's name may hold no dots."""
    return key.replace(".", "-")
