"""Transformers for policies that see, read and act: a trunk that reads a prefix once a decision, and a small action expert.

The mask has two blocks. {pictures, text, state}: each sees all others, and nothing of what follows, so their keys and values are made once
a decision (`Expert.remember`) and serve every step of the sampler. {actions}: each sees the prefix and all actions. Time and the advantage
indicator come in by adaptive RMS norms (pi0.5, arXiv 2504.16054; DiT's gates, arXiv 2212.09748, which begin at 0), not through the prefix:
guidance doubles the expert's work alone. Letters: B batch, P prefix tokens, K action tokens, W width, L layers of the expert.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

NONE, NEGATIVE, POSITIVE = 0, 1, 2
"""What the indicator says of an action: nothing, worse than the threshold, better."""

PICTURE = (16, 112)
"""Tokens of a camera's picture, see `realrl.nets.image.ImageTokens`."""


def _heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, W] -> [B, heads, N, W / heads]."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
    """Queries [B, heads, N, D] over keys and values [B, heads, M, D] -> [B, N, W]; seen: [B, M] bool. In two products of all heads: one of
    each, as torch's fused kernel makes them, is ten times as slow where a processor's products go to oneDNN (`realrl.cell.products`)."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    said: Tensor = (scores if seen is None else scores.masked_fill(~seen[:, None, None], -math.inf)).softmax(-1) @ v
    return said.transpose(1, 2).flatten(2)


def _rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class TrunkLayer(nn.Module):
    """Attention and an MLP, both behind an RMS norm and beside a shortcut: [B, P, W] -> [B, P, W], every token seeing every other."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.gain = nn.Parameter(torch.ones(2, width))
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (_heads(part, self.heads) for part in self.qkv(_rms(x) * self.gain[0]).chunk(3, -1))
        x = x + self.out(_attend(q, k, v))
        return x + self.down(nn.functional.silu(self.up(_rms(x) * self.gain[1])))  # type: ignore[no-any-return]


class ExpertLayer(nn.Module):
    """Actions see the prefix's memory and each other: [B, K, W] -> [B, K, W], modulated by shift, scale and gate of time and indicator."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, tone: Tensor, memory: tuple[Tensor, Tensor], seen: Tensor | None) -> Tensor:
        """tone: [B, K or 1, 6 W]; memory: keys and values of the prefix, each [B, heads, P, D]; seen: [B, P + K] bool."""
        shift1, scale1, gate1, shift2, scale2, gate2 = tone.chunk(6, -1)
        q, k, v = (_heads(part, self.heads) for part in self.qkv(_rms(x) * (1 + scale1) + shift1).chunk(3, -1))
        keys, values = torch.cat([memory[0], k], 2), torch.cat([memory[1], v], 2)
        x = x + gate1 * self.out(_attend(q, keys, values, seen))
        return x + gate2 * self.down(nn.functional.silu(self.up(_rms(x) * (1 + scale2) + shift2)))  # type: ignore[no-any-return]


class Expert(nn.Module):
    """The action expert: tokens of noisy actions [B, K, W] to what the flow's head reads [B, K, W]."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.memory = nn.Linear(width, layers * 2 * width)
        self.layers = nn.ModuleList(ExpertLayer(width, heads) for _ in range(layers))
        self.register_buffer("periods", torch.logspace(math.log10(4e-3), math.log10(4.0), width // 2), persistent=False)
        self.periods: Tensor
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.mark = nn.Embedding(3, width)
        self.tone = nn.Linear(width, (6 * layers + 2) * width)
        nn.init.zeros_(self.tone.weight)
        nn.init.zeros_(self.tone.bias)

    def remember(self, prefix: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the prefix [B, P, W] for every layer: all that a decision's sampler steps need of it."""
        parts = [_heads(part, self.heads) for part in self.memory(_rms(prefix)).chunk(2 * len(self.layers), -1)]
        return list(zip(parts[::2], parts[1::2], strict=True))

    def tones(self, t: Tensor, mark: Tensor) -> Tensor:
        """What time t [B, K or 1] and indicator mark [B] (`NONE`, `NEGATIVE`, `POSITIVE`) say to the norms: [B, K or 1, (6 L + 2) W]."""
        angle = 2 * math.pi * t[..., None] / self.periods
        told = self.time(torch.cat([angle.sin(), angle.cos()], -1)) + self.mark(mark)[:, None]
        out: Tensor = self.tone(nn.functional.silu(told))
        return out

    def forward(self, x: Tensor, t: Tensor, mark: Tensor, memory: list[tuple[Tensor, Tensor]], valid: Tensor | None = None) -> Tensor:
        """x: [B, K, W]; t: [B, K] or [B, 1]; mark: [B]; valid: [B, K] bool, actions that others may see (what is padded may not be)."""
        tones = torch.split(self.tones(t, mark), [6 * self.width] * len(self.layers) + [2 * self.width], -1)
        seen = None
        if valid is not None:
            seen = torch.cat([valid.new_ones(len(valid), memory[0][0].shape[2]), valid], 1)
        for layer, tone, known in zip(self.layers, tones, memory, strict=False):  # the last tone is the head's
            x = layer(x, tone, known, seen)
        shift, scale = tones[-1].chunk(2, -1)
        out: Tensor = _rms(x) * (1 + scale) + shift
        return out


# -- between a robot's numbers and tokens


def _per_robot(x: Tensor, weight: Tensor, robot: Tensor) -> Tensor:
    """Every row by its robot's own layer. x: [B, N, I]; weight: [R, I, O]; robot: [B] -> [B, N, O]."""
    return x @ weight[0] if len(weight) == 1 else torch.bmm(x, weight[robot])


def _layers(sizes: Sequence[int], width: int) -> Tensor:
    """A layer [R, D, W] for robots of these sizes; rows of numbers that a robot has not are 0, and nothing ever moves them."""
    weight = torch.randn(len(sizes), max(sizes), width)
    for one, size in zip(weight, sizes, strict=True):
        one /= math.sqrt(size)
        one[size:] = 0
    return weight


@dataclass
class Goal:
    """How it shall look in the end, beside an instruction or in its place. state: [B, D] and pictures, each [B, 16, 112], as the network
    sees them; given, told: [B] bool, whether the goal is shown, whether the instruction is said."""

    state: Tensor
    pictures: Mapping[str, Tensor]
    given: Tensor
    told: Tensor


class Prefix(nn.Module):
    """Pictures, text, state, the robot's learned tokens, and perhaps a goal, each seeing all others: what a decision is made from."""

    def __init__(self, sizes: Sequence[int], text: int, cameras: Sequence[str], *, width: int, heads: int, layers: int,
                 prompts: int, goals: bool = False) -> None:
        """sizes: numbers in every robot's state; text: in an instruction; prompts: learned tokens a robot; goals: whether there are any."""
        super().__init__()
        w, robots, self.cameras, self.goals = width, len(sizes), list(cameras), goals
        self.state_in = nn.Parameter(_layers(sizes, w))
        self.state = nn.Sequential(nn.SiLU(), nn.Linear(w, w), nn.SiLU(), nn.Linear(w, w))
        self.text = nn.Linear(text, w)
        self.prompt = nn.Parameter(0.02 * torch.randn(robots, prompts, w))
        self.look = nn.Linear(PICTURE[1], w) if cameras else None
        self.place = nn.Parameter(0.02 * torch.randn(len(self.cameras), PICTURE[0], w))
        self.trunk = nn.ModuleList(TrunkLayer(w, heads) for _ in range(layers))
        self.tokens = 2 + prompts + PICTURE[0] * len(self.cameras)
        if goals:
            self.tokens += 1 + PICTURE[0] * len(self.cameras)
            self.goal_in = nn.Parameter(_layers(sizes, w))
            self.goal = nn.Sequential(nn.SiLU(), nn.Linear(w, w), nn.SiLU(), nn.Linear(w, w))
            self.goal_place = nn.Parameter(0.02 * torch.randn(len(self.cameras), PICTURE[0], w))
            self.absent = nn.Parameter(0.02 * torch.randn(2, w))  # in place of a goal, of an instruction, that is not given
            self.ahead = nn.Parameter(0.1 * _layers(sizes, w).transpose(1, 2).contiguous())
            self.ahead_look = nn.Linear(w, PICTURE[1]) if cameras else None

    def forward(self, state: Tensor, text: Tensor, pictures: Mapping[str, Tensor], robot: Tensor, goal: Goal | None = None) -> Tensor:
        """state: [B, D] normalised, 0 where a robot has no such number; text: [B, E]; pictures: [B, 16, 112]; robot: [B] -> [B, P W]."""
        said = self.text(text)[:, None]
        if goal is not None:
            said = torch.where(goal.told[:, None, None], said, self.absent[1])
        tokens = [self.state(_per_robot(state[:, None], self.state_in, robot)), said, self.prompt[robot]]
        if self.look is not None:
            tokens += [self.look(pictures[key].float()) + self.place[i] for i, key in enumerate(self.cameras)]
        if self.goals:
            tokens.append(self._goal(len(state), robot, goal))
        x = torch.cat(tokens, 1)
        for layer in self.trunk:
            x = layer(x)
        return x.flatten(1)

    def own(self) -> list[nn.Parameter]:
        """What every robot has for itself, [R, ...] each."""
        return [self.state_in, self.prompt, *([self.goal_in, self.ahead] if self.goals else [])]

    def _goal(self, batch: int, robot: Tensor, goal: Goal | None) -> Tensor:
        """The tokens [B, 1 + 16 cameras, W] of a goal, or of there being none."""
        none = self.absent[0].expand(batch, 1 + PICTURE[0] * len(self.cameras), -1)
        if goal is None:
            return none
        tokens = [self.goal(_per_robot(goal.state[:, None], self.goal_in, robot))]
        if self.look is not None:
            tokens += [self.look(goal.pictures[key].float()) + self.goal_place[i] for i, key in enumerate(self.cameras)]
        return torch.where(goal.given[:, None, None], torch.cat(tokens, 1), none)

    def foresee(self, cond: Tensor, robot: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is expected to be seen a little later, from what `forward` returned: the state [B, D] and, of all cameras together, the mean
        token [B, 112]. Only a policy with goals is asked."""
        x = cond.view(len(cond), self.tokens, -1)
        state = _per_robot(x[:, :1], self.ahead, robot)[:, 0]
        return state, None if self.ahead_look is None else self.ahead_look(x.mean(1))


class Actor(nn.Module):
    """The action expert between every robot's own first and last layer: the velocity of noisy actions."""

    def __init__(self, sizes: Sequence[int], plan: int, *, width: int, heads: int, layers: int) -> None:
        """sizes: numbers in every robot's action; plan: K."""
        super().__init__()
        w = width
        self.action_in = nn.Parameter(_layers(sizes, w))
        self.place = nn.Parameter(0.02 * torch.randn(plan, w))
        self.expert = Expert(w, layers, heads)
        self.head = nn.Parameter(0.1 * _layers(sizes, w).transpose(1, 2).contiguous())

    def own(self) -> list[nn.Parameter]:
        """What every robot has for itself, [R, ...] each."""
        return [self.action_in, self.head]

    def remember(self, cond: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What all sampler steps of a decision share. cond: [B, P W], see `Prefix`."""
        return self.expert.remember(cond.view(len(cond), -1, self.expert.width))

    def forward(self, x: Tensor, t: Tensor, memory: list[tuple[Tensor, Tensor]], robot: Tensor, mark: Tensor,
                valid: Tensor | None = None) -> Tensor:
        """x: [B, K, A]; t: [B, K] or [B, 1]; robot, mark: [B]; valid: [B, K] -> v [B, K, A]."""
        h = self.expert(_per_robot(x, self.action_in, robot) + self.place, t, mark, memory, valid)
        return _per_robot(h, self.head, robot)
