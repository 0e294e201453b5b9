"""MLPs as stacked tensors and functions of one flat vector, for learners that take very many small steps.

A `Stack` is E networks of one shape: one batched product a layer for all of them. Its parameters are handed to `forward`, so that a
learner keeps them, their gradient and the optimiser's memory as one vector each (`Flat`), and the same code runs eagerly and compiled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

Norm = Literal["none", "layer", "renorm"]
EPS, MOMENTUM, MOST_R, MOST_D = 1e-3, 0.01, 3.0, 5.0  # of BatchRenorm


class Stack(nn.Module):
    """E independent ReLU networks, x: [B, I] (shared) or [E, B, I] -> [E, B, O].

    norm: "layer", linear, LayerNorm, ReLU (DroQ, arXiv 2110.02034); "renorm", BatchRenorm of the input, then linear, ReLU, BatchRenorm
    (CrossQ, arXiv 1902.05605). What BatchRenorm has seen is the buffer `running` [2, E, 1, F], mean and variance of all its features
    one after the other, and `seen`, how often it was updated; both belong to the weights.
    """

    def __init__(self, members: int, inputs: int, outputs: int, hidden: Sequence[int] = (256, 256), *, norm: Norm = "none",
                 dropout: float = 0.0, warmup: int = 0) -> None:
        super().__init__()
        self.members, self.sizes, self.norm, self.dropout, self.warmup = members, (inputs, *hidden, outputs), norm, dropout, warmup
        self.features = [inputs, *hidden] if norm == "renorm" else list(hidden) if norm == "layer" else []
        for i, (a, b) in enumerate(pairwise(self.sizes)):
            bound = 1 / math.sqrt(a)
            self.register_parameter(f"weight{i}", nn.Parameter(torch.empty(members, a, b).uniform_(-bound, bound)))
            self.register_parameter(f"bias{i}", nn.Parameter(torch.empty(members, 1, b).uniform_(-bound, bound)))
        if self.features:
            self.register_parameter("scale", nn.Parameter(torch.ones(members, 1, sum(self.features))))
            self.register_parameter("shift", nn.Parameter(torch.zeros(members, 1, sum(self.features))))
        self.running: Tensor
        self.seen: Tensor
        if norm == "renorm":
            shape = (members, 1, sum(self.features))
            self.register_buffer("running", torch.stack([torch.zeros(shape), torch.ones(shape)]))
            self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    @property
    def hidden(self) -> tuple[int, ...]:
        """Widths of the hidden layers."""
        return self.sizes[1:-1]

    def drops(self, batch: int) -> list[int]:
        """How many places `dropout` sets to zero in each hidden layer of so many rows; [] where there is none."""
        return [round(self.dropout * self.members * batch * size) for size in self.hidden] if self.dropout else []

    def forward(self, x: Tensor, p: dict[str, Tensor] | None = None, *, drop: Sequence[Tensor] = (), train: bool = False) -> Tensor:
        """With all the statistics at rest (`train=False`)."""
        return self.run(x, p, drop=drop, train=train)[0]

    def run(self, x: Tensor, p: dict[str, Tensor] | None = None, *, drop: Sequence[Tensor] = (),
            train: bool = False) -> tuple[Tensor, list[Tensor]]:
        """(outputs [E, B, O], the batch's statistics, layer by layer, for `learn`).

        p: name -> parameter, the module's own by default; drop: for every hidden layer the flat places [k] of [E, B, H] that dropout
        sets to zero, drawn beforehand: to draw them one by one costs more than the layer.
        """
        p = p or dict(self._parameters)  # type: ignore[arg-type]  # none of them is None
        found: list[Tensor] = []
        keep = 1 / (1 - self.dropout) if len(drop) and self.norm != "layer" else 1.0  # LayerNorm would undo it
        h = x.expand(self.members, *x.shape) if x.ndim == 2 else x
        norms = self._norms(p, train)
        if self.norm == "renorm":
            h = self._renorm(h, next(norms), train, found)
        last = len(self.sizes) - 2
        for i in range(last):
            h = torch.baddbmm(p[f"bias{i}"], h, p[f"weight{i}"], beta=keep, alpha=keep)
            if len(drop):
                h = h.view(-1).index_fill(0, drop[i], 0.0).view(h.shape)
            if self.norm == "layer":
                gain, offset = next(norms)
                h = torch.addcmul(offset, nn.functional.layer_norm(h, h.shape[-1:]), gain)
            h = torch.relu(h)
            if self.norm == "renorm":
                h = self._renorm(h, next(norms), train, found)
        return _out(h, p[f"weight{last}"], p[f"bias{last}"]), found

    def _norms(self, p: dict[str, Tensor], train: bool) -> Iterator[tuple[Tensor, ...]]:
        """What the norm layers need, one after the other: scale and shift; for BatchRenorm at rest with its statistics in them, else those
        beside them. All layers at once: a small tensor costs as much as a layer of one row."""
        if not self.features:
            return iter(())
        columns = [p["scale"], p["shift"]]
        if self.norm == "renorm":
            mean, variance = self.running
            deviation = (variance + EPS).sqrt()
            if train:
                columns += [mean, deviation]
            else:
                gain = columns[0] / deviation
                columns = [gain, columns[1] - mean * gain]
        return zip(*(torch.split(column, self.features, -1) for column in columns), strict=True)

    def _renorm(self, x: Tensor, norm: tuple[Tensor, ...], train: bool, found: list[Tensor]) -> Tensor:
        """Batch Renormalisation (arXiv 1702.03275, algorithm 1) with what `_norms` gave; a batch's statistics go into `found`.

        After a warm-up on the batch's own statistics, training sees almost what acting will see: x is brought to the running mean and
        deviation by r and d, through which no gradient flows.
        """
        if not train:
            return torch.addcmul(norm[1], x, norm[0])
        scale, shift, mean, deviation = norm
        y = x - mean  # near 0, so that sums of squares in one pass lose nothing
        centre, spread = _moments(y)
        found.append(torch.stack([mean + centre.detach(), spread.detach()]))
        inverse = (spread + EPS).rsqrt()
        ready = self.seen >= self.warmup
        r = torch.where(ready, (1 / (inverse.detach() * deviation)).clamp(1 / MOST_R, MOST_R), 1.0)
        d = torch.where(ready, (centre.detach() / deviation).clamp(-MOST_D, MOST_D), 0.0)
        if not torch.compiler.is_compiling():
            out: Tensor = _Normalise.apply(y, scale, shift, centre.detach(), inverse.detach(), r, d)  # type: ignore[no-untyped-call]
            return out
        gain = inverse * r * scale
        return torch.addcmul(torch.addcmul(shift, d, scale) - centre * gain, y, gain)

    @torch.no_grad()
    def learn(self, found: list[Tensor]) -> None:
        """Move the running statistics towards a batch's, as `run` gave them; after they were used."""
        if found:
            self.running.lerp_(torch.cat(found, -1), MOMENTUM)
            self.seen.add_(1)


def _out(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The last layer, h: [E, B, H] -> [E, B, O]; one number a row is a sum: as a batch of products it costs as much as a layer of 50."""
    if weight.shape[-1] == 1:
        return (h * weight.mT).sum(-1, keepdim=True) + bias
    return torch.baddbmm(bias, h, weight)


def _moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (as in the paper, and unlike torch's own layer) over the rows of [E, B, F], each [E, 1, F]."""
    centre = y.mean(1, keepdim=True)
    return centre, (y.square().mean(1, keepdim=True) - centre.square()).clamp(min=0)


class _Normalise(torch.autograd.Function):
    """scale * (r z + d) + shift with z = (y - centre) * inverse, y: [E, B, F], and batch normalisation's gradient in as few passes as there
    are: what a compiler makes of the formula, for when nothing is compiled."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, scale: Tensor, shift: Tensor, centre: Tensor, inverse: Tensor, r: Tensor, d: Tensor) -> Tensor:
        gain = inverse * r * scale
        ctx.save_for_backward(y, gain, centre, inverse, r, d)
        return torch.addcmul(torch.addcmul(shift, d, scale) - centre * gain, y, gain)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (y, gain, centre, inverse, r, d) = gradients, ctx.saved_tensors
        total = g.sum(1, keepdim=True)
        along = inverse * ((g * y).sum(1, keepdim=True) - centre * total)  # sum of g z
        rows, slope = g.shape[1], -gain * inverse * along / g.shape[1]
        dy = torch.addcmul(-gain * total / rows - centre * slope, y, slope).addcmul_(g, gain)
        return dy, r * along + d * total, total, None, None, None, None


class Flat:
    """The parameters of a module as one vector `value`, of which they become views, and Adam's two memories of it.

    Make it when the module is on its device. What is copied into the parameters is in the vector, and the other way round.
    """

    def __init__(self, module: nn.Module) -> None:
        self.names, parameters = [*zip(*module.named_parameters(), strict=True)]
        self.shapes = [p.shape for p in parameters]
        self.sizes = [p.numel() for p in parameters]
        self.value = torch.cat([p.detach().reshape(-1) for p in parameters])
        self.mean, self.square = torch.zeros_like(self.value), torch.zeros_like(self.value)
        self.steps = 0
        for p, view in zip(parameters, self.views().values(), strict=True):
            p.data = view
            p.requires_grad_(False)

    def views(self, vector: Tensor | None = None) -> dict[str, Tensor]:
        """name -> its part of a vector like `value`, in its shape; gradients flow back into one vector."""
        parts = torch.split(self.value if vector is None else vector, self.sizes)
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Adam's memories; the parameters are the module's."""
        return {"mean": self.mean, "square": self.square, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Into the same tensors: compiled code holds them."""
        self.mean.copy_(state["mean"])
        self.square.copy_(state["square"])
        self.steps = int(state["steps"])
