"""LeRobot's policies learning, for benchmarks/peers.py and flow_speed.py: `PYTHON benchmarks/lib/lerobot_training.py DESCRIPTION`.

DESCRIPTION is JSON, that of lerobot_latency.py with "stored" (decisions in memory), "batch" and "threads". A unit of work is one step
of training as its script does it: a batch drawn from memory (pictures are bytes there), loss, gradients, clip, its optimiser and, where
it has one, its schedule.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from lerobot_latency import build, load_torchvision
from lerobot_peer import policies_alone
from turns import pin, serve

Batch = Callable[[torch.Tensor], dict[str, torch.Tensor]]
"""Numbers of decisions [B] -> what its loss is asked with."""


def numbers(told: dict, cfg: Any, random: torch.Generator) -> Batch:
    """Decisions of the diffusion policy, from numbers alone."""
    stored, own = told["stored"], told["state"] - told["split"]
    seen = torch.randn(stored, cfg.n_obs_steps, told["state"], generator=random)
    action = torch.rand(stored, cfg.horizon, told["action"], generator=random) * 2 - 1

    def batch(rows: torch.Tensor) -> dict[str, torch.Tensor]:
        state = seen[rows]
        return {"observation.state": state[..., :own], "observation.environment_state": state[..., own:], "action": action[rows],
                "action_is_pad": torch.zeros(len(rows), cfg.horizon, dtype=torch.bool)}

    return batch


def pictured(told: dict, cfg: Any, random: torch.Generator) -> Batch:
    """Decisions of ACT, with pictures."""
    stored = told["stored"]
    seen = torch.randn(stored, told["state"], generator=random)
    action = torch.rand(stored, cfg.chunk_size, told["action"], generator=random) * 2 - 1
    films = {f"observation.{key}": torch.randint(256, (stored, *shape), dtype=torch.uint8, generator=random)
             for key, shape in told["cameras"].items()}

    def batch(rows: torch.Tensor) -> dict[str, torch.Tensor]:
        pictures = {key: film[rows].permute(0, 3, 1, 2).float().div_(255) for key, film in films.items()}
        return {"observation.state": seen[rows], "action": action[rows], **pictures,
                "action_is_pad": torch.zeros(len(rows), cfg.chunk_size, dtype=torch.bool)}

    return batch


def main() -> None:
    """Serve."""
    told = json.loads(sys.argv[1])
    pin(told["threads"])
    torch.set_num_threads(told["threads"])
    load_torchvision()
    policies_alone()
    policy = build(told).train()
    cfg, random = policy.config, torch.Generator().manual_seed(0)
    batch = pictured(told, cfg, random) if told["cameras"] else numbers(told, cfg, random)
    optimiser = cfg.get_optimizer_preset().build(policy.parameters())
    preset, of = cfg.get_scheduler_preset(), cfg.get_optimizer_preset().grad_clip_norm
    schedule = preset.build(optimiser, 100_000) if preset else None

    def train(count: int) -> None:
        for _ in range(count):
            loss, _ = policy.forward(batch(torch.randint(told["stored"], (told["batch"],), generator=random)))
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), of)
            optimiser.step()
            optimiser.zero_grad()
            if schedule:
                schedule.step()
            loss.item(), norm.item()

    train(2)
    serve(train, {"parameters": sum(p.numel() for p in policy.parameters())})


if __name__ == "__main__":
    main()
