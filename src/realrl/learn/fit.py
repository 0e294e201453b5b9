"""Fits that continue: a learning rate that warms up and cools down, weights that are averaged, and the loop that logs and saves.

Every batch is a function of (seed, stage, step), so a run that is resumed from a checkpoint continues to the same numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from realrl.config import check
from realrl.files import derive
from realrl.types import Logbook, Stateful


class Fit(Stateful, Protocol):
    """What `imitate` runs: updates until `step` is `steps`, which may sink on the way, then `finish`. update: a gradient step's losses, not
    waited for; validate: that on what the fit does not see, if it does not see all; finish: what was fitted gets its final weights."""

    step: int
    steps: int

    def update(self) -> dict[str, Tensor]: ...

    def validate(self) -> dict[str, float]: ...

    def finish(self) -> None: ...


@dataclass(frozen=True)
class ImitationConfig:
    """Behaviour cloning with the denoising loss."""

    steps: int = 1500
    """Gradient steps."""
    batch: int = 256
    """Chunks per step."""
    lr: float = 1e-3
    """Peak learning rate of AdamW (cosine decay after the warm-up)."""
    warmup: int = 100
    """Steps of linear warm-up."""
    weight_decay: float = 1e-6
    """AdamW's."""
    ema: float = 0.75
    """Power of the weight average: decay = min(1 - (1 + step)^-power, 0.9999)."""
    validation: float = 0.0
    """Share of the episodes that the fit does not see; they tell when it only remembers, and how far to follow it beyond a reference."""

    def __post_init__(self) -> None:
        check(self, steps="[1, 1e9]", batch="[1, 1e6]", lr="(0, 1]", warmup="[0, 1e9]", weight_decay="[0, 1]", ema="(0, 10]",
              validation="[0, 0.9]")


def cosine(step: int, steps: int, warmup: int) -> float:
    """Learning-rate factor at `step` of `steps`: linear warm-up, then half a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


class Averaged(AveragedModel):
    """The weight average of the module it is made of, Diffusion Policy's decay; torch's own looks for all parameters at every step."""

    def __init__(self, module: torch.nn.Module, power: float) -> None:
        super().__init__(module)
        self.power, self.pairs = power, (list[Tensor](self.module.parameters()), list[Tensor](module.parameters()))
        self.still = list(zip(self.module.buffers(), module.buffers(), strict=True))

    @torch.no_grad()
    def update_parameters(self, model: torch.nn.Module) -> None:
        torch._foreach_lerp_(*self.pairs, 1 - min(1 - (1 + int(self.n_averaged)) ** -self.power, 0.9999))  # one call: a GPU waits for calls
        self.n_averaged += 1
        for mine, its in self.still:  # what is counted or fitted beside the weights is not averaged
            mine.copy_(its)


def generator(seed: int, *tags: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh generator for one purpose, see `files.derive`."""
    return torch.Generator(device).manual_seed(derive(seed, *tags))


def reseed(seed: int, device: torch.device) -> None:
    """torch.manual_seed for one device: the original asks every backend, a millisecond and some memory for those that are not there."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def imitate(run: Logbook, trainer: Fit, stage: str, what: str = "cloning") -> None:
    """Run a fit to its end, logging its loss under `stage` and saving it every 500 steps and there; continues an interrupted one."""
    name = f"{stage}-fit"
    run.load(name, trainer=trainer)
    run.rewind(stage, trainer.step)
    with run.bar(f"{stage}: {what}", trainer.steps, trainer.step) as advance:
        while trainer.step < trainer.steps:
            losses = trainer.update()
            advance(1)
            if trainer.step % 50 == 0:
                run.log(trainer.step, {**losses, **(trainer.validate() if trainer.step % 250 == 0 else {})}, stage)
            if trainer.step % 500 == 0 or trainer.step >= trainer.steps >= 100:  # a shorter one is as soon repeated
                run.save(name, trainer.step, trainer=trainer)
    trainer.finish()
