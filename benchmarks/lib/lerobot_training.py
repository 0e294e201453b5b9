"""LeRobot's diffusion policy learning, for benchmarks/peers.py: `PYTHON benchmarks/lib/lerobot_training.py DESCRIPTION`.

DESCRIPTION is JSON, that of lerobot_latency.py with "stored" (decisions in memory), "batch" and "threads". A unit of work is one step
of training as its script does it: a batch drawn from numbers in memory, loss, gradients, clip, its optimiser and schedule.
"""

from __future__ import annotations

import json
import sys

import torch
from lerobot_latency import build, load_torchvision
from lerobot_peer import policies_alone
from turns import pin, serve


def main() -> None:
    """Serve."""
    told = json.loads(sys.argv[1])
    pin(told["threads"])
    torch.set_num_threads(told["threads"])
    load_torchvision()
    policies_alone()
    policy = build(told).train()
    cfg, stored, random = policy.config, told["stored"], torch.Generator().manual_seed(0)
    seen = torch.randn(stored, cfg.n_obs_steps, told["state"], generator=random)
    action = torch.rand(stored, cfg.horizon, told["action"], generator=random) * 2 - 1
    optimiser = cfg.get_optimizer_preset().build(policy.parameters())
    schedule = cfg.get_scheduler_preset().build(optimiser, 100_000)
    own, of = told["state"] - told["split"], cfg.get_optimizer_preset().grad_clip_norm

    def train(count: int) -> None:
        for _ in range(count):
            rows = torch.randint(stored, (told["batch"],), generator=random)
            state = seen[rows]
            loss, _ = policy.forward({"observation.state": state[..., :own], "observation.environment_state": state[..., own:],
                                      "action": action[rows], "action_is_pad": torch.zeros(len(rows), cfg.horizon, dtype=torch.bool)})
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), of)
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
            loss.item(), norm.item()

    train(2)
    serve(train, {"parameters": sum(p.numel() for p in policy.parameters())})


if __name__ == "__main__":
    main()
