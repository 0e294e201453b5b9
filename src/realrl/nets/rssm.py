"""A recurrent state-space model and what stands around it: encoders, decoders and heads, after DayDreamer (arXiv 2206.14176) and DreamerV3
(arXiv 2301.04104).

The state is a deterministic memory (deter, [B, D]) and S categoricals of C classes (stoch, [B, S*C], one-hot). The memory goes on by a GRU;
what is seen then says which classes hold (posterior), and what is expected without seeing is learned from that (prior). A linear map of two
things side by side is kept as two maps, of which the one whose input is known beforehand is done for all times at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from realrl.config import OutOfBounds, check
from realrl.nets.twohot import symlog


@dataclass(frozen=True)
class RSSMConfig:
    """Sizes of a world model."""

    deter: int = 256
    """Numbers of the deterministic memory."""
    stoch: int = 16
    """Categoricals of the stochastic state."""
    classes: int = 16
    """Classes of each."""
    hidden: int = 256
    """Width inside the recurrent model."""
    blocks: int = 0
    """Blocks of DreamerV3's block GRU; 0 = DayDreamer's plain one."""
    prior_layers: int = 1
    """Layers that guess the state without seeing."""
    units: int = 256
    """Width of encoder, decoder, heads, actor and critic."""
    layers: int = 2
    """Their layers."""
    depth: int = 16
    """Channels after a camera's first convolution; they double with every one that follows."""
    unimix: float = 0.01
    """Share of even chance in every categorical, so that none is ever sure."""
    sharp: float = 1.0
    """By how much larger the first weights of what is seen are: the surer categoricals are at first, the more they tell from the start."""

    def __post_init__(self) -> None:
        check(self, deter="[1, 16384]", stoch="[1, 256]", classes="[2, 256]", hidden="[1, 16384]", blocks="[0, 64]", prior_layers="[1, 10]",
              units="[1, 16384]", layers="[1, 20]", depth="[1, 256]", unimix="(0, 0.5]",
              sharp="(0, 100]")
        if self.blocks and self.deter % self.blocks:
            raise OutOfBounds(RSSMConfig, "blocks", f"must divide deter = {self.deter}, got {self.blocks}")

    @property
    def feature(self) -> int:
        """Numbers that heads see: deter and stoch side by side."""
        return self.deter + self.stoch * self.classes


# ---- layers


class Layer(nn.Module):
    """Linear, LayerNorm, SiLU: [..., I] -> [..., O]. (RMSNorm, DreamerV3's, costs twice as much on a CPU.)"""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear, self.norm = linear(inputs, outputs), nn.LayerNorm(outputs, eps=1e-4)

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(self.norm(self.linear(x)))


def linear(inputs: int, outputs: int, scale: float = 1.0) -> nn.Linear:
    """A linear layer whose weights come from a truncated normal of variance scale^2 / inputs; its bias is 0."""
    made = nn.Linear(inputs, outputs)
    std = scale / (0.8796 * inputs ** 0.5)  # what is cut off would have been that much of it
    nn.init.trunc_normal_(made.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(made.bias)
    return made


def head(cfg: RSSMConfig, outputs: int, scale: float = 1.0) -> nn.Sequential:
    """An MLP from features [..., F] to [..., outputs]; scale: of the last layer's first weights, 0 for a head that begins with nothing."""
    sizes = [cfg.feature, *[cfg.units] * cfg.layers]
    inner = [Layer(a, b) for a, b in pairwise(sizes)]
    last = linear(cfg.units, outputs, scale or 1.0)
    if not scale:
        nn.init.zeros_(last.weight)
    return nn.Sequential(*inner, last)


class BlockLinear(nn.Module):
    """G independent linear maps side by side: [..., G, I] -> [..., G, O]."""

    def __init__(self, blocks: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([linear(inputs, outputs).weight.detach().T for _ in range(blocks)]))
        self.bias = nn.Parameter(torch.zeros(blocks, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return (x.movedim(-2, 0).flatten(1, -2) @ self.weight).view(len(self.weight), *x.shape[:-2], -1).movedim(0, -2) + self.bias


# ---- the recurrent model


class Latent(NamedTuple):
    """The model's state. deter: [..., D]; stoch: [..., S*C], one-hot by categorical."""

    deter: Tensor
    stoch: Tensor

    @property
    def feature(self) -> Tensor:
        """What heads see, [..., F]."""
        return torch.cat([self.deter, self.stoch.to(self.deter.dtype)], -1)

    def detach(self) -> Latent:
        """Without its history."""
        return Latent(self.deter.detach(), self.stoch.detach())


class RSSM(nn.Module):
    """See the module. embed, action: numbers of what is seen and done at a step."""

    def __init__(self, cfg: RSSMConfig, embed: int, action: int) -> None:
        super().__init__()
        self.cfg = cfg
        codes, hidden, g = cfg.stoch * cfg.classes, cfg.hidden, cfg.blocks
        self.act_in = linear(action, hidden)
        self.stoch_in = linear(codes, hidden)
        self.in_norm = nn.LayerNorm(hidden, eps=1e-4)
        if g:
            self.act_norm = nn.LayerNorm(hidden, eps=1e-4)
            self.deter_in = Layer(cfg.deter, hidden)
            self.inner = BlockLinear(g, cfg.deter // g + 3 * hidden, cfg.deter // g)
            self.inner_norm = nn.LayerNorm(cfg.deter, eps=1e-4)
            self.gates: nn.Module = BlockLinear(g, cfg.deter // g, 3 * cfg.deter // g)
            nn.init.constant_(self.gates.bias[:, 2 * cfg.deter // g:], -1.0)
        else:
            self.gates = linear(hidden + cfg.deter, 3 * cfg.deter)
            self.gate_norm = nn.LayerNorm(3 * cfg.deter, eps=1e-4)
            nn.init.constant_(self.gate_norm.bias[2 * cfg.deter:], -1.0)  # at first it remembers rather than updates
        sizes = [cfg.deter, *[hidden] * cfg.prior_layers]
        self.prior_net = nn.Sequential(*(Layer(a, b) for a, b in pairwise(sizes)), linear(hidden, codes))
        self.post_deter, self.post_embed = linear(cfg.deter, hidden), linear(embed, hidden)
        self.post_norm, self.post_out = nn.LayerNorm(hidden, eps=1e-4), linear(hidden, codes, cfg.sharp)
        self.register_buffer("_even", torch.full((), 1 / cfg.classes), persistent=False)
        self._even: Tensor

    def start(self, batch: int) -> Latent:
        """An empty memory."""
        like = self.act_in.weight
        return Latent(like.new_zeros(batch, self.cfg.deter), like.new_zeros(batch, self.cfg.stoch * self.cfg.classes))

    def act(self, action: Tensor) -> Tensor:
        """What `step` wants to know of actions [..., A]; numbers beyond [-1, 1] are as if at the edge."""
        told: Tensor = self.act_in(action / action.abs().clamp(min=1.0))
        return told

    def step(self, state: Latent, act: Tensor) -> Tensor:
        """The memory [B, D] after an action, of which `act` told [B, hidden]."""
        deter, drive = state.deter, self.stoch_in(state.stoch)
        if self.cfg.blocks:
            x = torch.cat([self.deter_in(deter), functional.silu(self.in_norm(drive)), functional.silu(self.act_norm(act))], -1)
            beside = x[:, None].expand(-1, self.cfg.blocks, -1)
            inner = self.inner(torch.cat([deter.view(len(deter), self.cfg.blocks, -1).to(x.dtype), beside], -1)).flatten(1)
            parts = self.gates(functional.silu(self.inner_norm(inner)).view(len(deter), self.cfg.blocks, -1))
            reset, cand, update = (p.flatten(1) for p in parts.chunk(3, -1))
        else:
            x = functional.silu(self.in_norm(drive + act))
            reset, cand, update = self.gate_norm(self.gates(torch.cat([x, deter.to(x.dtype)], -1))).chunk(3, -1)
        after: Tensor = torch.lerp(deter, (reset.sigmoid() * cand).tanh().to(deter.dtype), update.sigmoid().to(deter.dtype))
        return after

    def chances(self, logits: Tensor) -> Tensor:
        """Probabilities [..., S, C] of raw outputs [..., S*C], a share of even chance mixed in."""
        rows = logits.float().view(*logits.shape[:-1], self.cfg.stoch, self.cfg.classes)
        if self.cfg.classes < 16 and rows.device.type == "cpu":  # fewer than its registers hold: several times as fast the other way round
            probs = rows.mT.contiguous().softmax(-2).mT.contiguous()
        else:
            probs = rows.softmax(-1)
        return torch.lerp(probs, self._even, self.cfg.unimix)

    def prior(self, deter: Tensor) -> Tensor:
        """What is expected, probabilities [..., S, C]."""
        return self.chances(self.prior_net(deter))

    def posterior(self, deter: Tensor, seen: Tensor) -> Tensor:
        """What holds after seeing, probabilities [..., S, C]. seen: `post_embed` of what was seen [..., hidden]."""
        return self.chances(self.post_out(functional.silu(self.post_norm(self.post_deter(deter) + seen))))

    def observe(self, embed: Tensor, action: Tensor, first: Tensor | None, noise: Tensor,
                known: tuple[Latent, Tensor] | None = None) -> tuple[Latent, Tensor]:
        """Through a stretch of time: the states (posteriors drawn, gradients straight through) and their probabilities [T, B, S, C].

        embed: [T, B, E]; action: [T, B, A], what led to each row; first: [T, B] bool, where memory and action are forgotten, as they are
        before the first row (None: nowhere else); noise: [T, B, S, C], exponential; known: the first row's state, remembered, and in which
        columns [B] it is to be taken instead.
        """
        seen, state = self.post_embed(embed), self.start(embed.shape[1])
        keep = None if first is None else (~first)[..., None]
        begins = [False] * len(embed) if first is None else first.any(1).tolist()
        act = self.act(action if keep is None else action * keep)
        deters, stochs, chances = list[Tensor](), list[Tensor](), list[Tensor]()
        for t in range(len(embed)):
            if keep is not None and begins[t]:
                state = Latent(state.deter * keep[t], state.stoch * keep[t])
            deter = self.step(state, act[t])
            probs = self.posterior(deter, seen[t])
            state = Latent(deter, drawn(probs, noise[t]))
            if t == 0 and known:
                state = Latent(*(torch.where(known[1][:, None], old, new) for old, new in zip(known[0], state, strict=True)))
            for kept, value in ((deters, state.deter), (stochs, state.stoch), (chances, probs)):
                kept.append(value)
        return Latent(torch.stack(deters), torch.stack(stochs)), torch.stack(chances)

    def dream(self, state: Latent, action: Tensor, noise: Tensor) -> Latent:
        """The next state as it is expected, drawn. state: [B, ...]; action: [B, A]; noise: [B, S, C], exponential."""
        deter = self.step(state, self.act(action))
        return Latent(deter, drawn(self.prior(deter), noise))


def drawn(probs: Tensor, noise: Tensor) -> Tensor:
    """A draw [..., S*C], one-hot, from probabilities [..., S, C], with gradients straight through to them: of clocks that ring after
    noise / p the first one rings with chance p. noise: exponential."""
    with torch.no_grad():
        hard = torch.zeros_like(probs).scatter_(-1, (probs / noise).argmax(-1, keepdim=True), 1.0)
    return (hard + (probs - probs.detach()) if probs.requires_grad else hard).flatten(-2)


# ---- what is seen


class Encoder(nn.Module):
    """Readings and pictures into one vector. senses: camera -> (height, width, channels); pictures are uint8 [..., H, W, C] whose sides are
    a multiple of 16."""

    def __init__(self, cfg: RSSMConfig, state: int, senses: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        sizes = [state, *[cfg.units] * cfg.layers]
        self.state = nn.Sequential(*(Layer(a, b) for a, b in pairwise(sizes)))
        self.cameras = tuple(senses)
        self.eyes = nn.ModuleList(_eye(cfg.depth, shape[2]) for shape in senses.values())
        self.size = cfg.units + sum(8 * cfg.depth * (s[0] // 16) * (s[1] // 16) for s in senses.values())

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        """obs["state"]: [..., D]; pictures: [..., H, W, C] -> [..., E]."""
        parts = [self.state(symlog(obs["state"].float()))]
        for key, eye in zip(self.cameras, self.eyes, strict=True):
            picture = obs[key]
            rows = eye(picture.flatten(0, -4).permute(0, 3, 1, 2) / 255.0 - 0.5)
            parts.append(rows.flatten(1).view(*picture.shape[:-3], -1).to(parts[0].dtype))
        return torch.cat(parts, -1)


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of a map [N, C, H, W], which lies channels-last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.permute(0, 2, 3, 1))
        return y.permute(0, 3, 1, 2)


def _eye(depth: int, channels: int) -> nn.Sequential:
    """Four convolutions 4x4 with stride 2: a sixteenth of the side, eight times the depth."""
    sizes = [channels, depth, 2 * depth, 4 * depth, 8 * depth]
    return nn.Sequential(*(nn.Sequential(nn.Conv2d(a, b, 4, 2, 1), ChannelNorm(b), nn.SiLU())
                           for a, b in pairwise(sizes)))


def slot(camera: str) -> str:
    """A camera's name as a module may be called."""
    return camera.replace(".", "_")


class Painter(nn.Module):
    """A picture from features [..., F] -> [..., H, W, C] in about [0, 1]: `_eye` the other way."""

    def __init__(self, cfg: RSSMConfig, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape, self.low = tuple(shape), (8 * cfg.depth, shape[0] // 16, shape[1] // 16)
        self.spread = linear(cfg.feature, self.low[0] * self.low[1] * self.low[2])
        sizes = [8 * cfg.depth, 4 * cfg.depth, 2 * cfg.depth, cfg.depth]
        inner = [nn.Sequential(nn.ConvTranspose2d(a, b, 4, 2, 1), ChannelNorm(b), nn.SiLU()) for a, b in pairwise(sizes)]
        self.net = nn.Sequential(*inner, nn.ConvTranspose2d(cfg.depth, shape[2], 4, 2, 1))

    def forward(self, feature: Tensor) -> Tensor:
        rows: Tensor = self.net(self.spread(feature).view(-1, *self.low))
        return rows.permute(0, 2, 3, 1).reshape(*feature.shape[:-1], *self.shape) + 0.5
