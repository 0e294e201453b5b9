"""LeRobot's diffusion policy for benchmarks/real_data.py: `PYTHON benchmarks/lib/lerobot_peer.py FOLDER STEPS BATCH SEED THREADS WIDTH`.

Fits it, with its defaults but for the width of its U-Net, to the decisions in FOLDER/in.npz and writes its plans for the held-out states
to FOLDER/out.npy. Numbers alone are observed, so its image encoder is never built; where torchvision, which only that uses, cannot be
imported, its place is held empty.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import sys
import time
import types
from pathlib import Path

import numpy as np
import torch


def without_torchvision() -> None:
    """Make `import torchvision` succeed, empty."""
    def anything(attribute: str) -> type:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return type(attribute, (), {})

    for name in ("", ".transforms", ".transforms.functional", ".transforms.v2", ".models"):
        module = types.ModuleType(f"torchvision{name}")
        module.__spec__ = importlib.machinery.ModuleSpec(f"torchvision{name}", None)
        module.__path__ = []
        module.__getattr__ = anything
        sys.modules[f"torchvision{name}"] = module
        if parent := name.rpartition(".")[0]:
            setattr(sys.modules[f"torchvision{parent}"], name.rpartition(".")[2], module)
        elif name:
            setattr(sys.modules["torchvision"], name[1:], module)


def policies_alone() -> None:
    """Import lerobot.policies without its other policies and what they need."""
    found = importlib.util.find_spec("lerobot")
    module = types.ModuleType("lerobot.policies")
    module.__path__ = [f"{found.submodule_search_locations[0]}/policies"]
    sys.modules["lerobot.policies"] = module


def main() -> None:
    """Fit and plan."""
    folder, (steps, batch, seed, threads, width) = Path(sys.argv[1]), map(int, sys.argv[2:])
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    try:
        import torchvision  # noqa: F401
    except Exception:  # it breaks in many ways beside another torch
        without_torchvision()
    policies_alone()
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
    arrays = {name: torch.from_numpy(x) for name, x in np.load(folder / "in.npz").items()}
    state, action = arrays["state"], arrays["action"]
    low, high = state.flatten(0, 1).min(0).values, state.flatten(0, 1).max(0).values
    scaled = lambda x: 2 * (x - low) / (high - low).clamp(min=1e-8) - 1  # its MIN_MAX normalisation
    size = state.shape[-1]
    cfg = DiffusionConfig(input_features={"observation.state": PolicyFeature(FeatureType.STATE, (size,)),
                                          "observation.environment_state": PolicyFeature(FeatureType.ENV, (size,))},
                          output_features={"action": PolicyFeature(FeatureType.ACTION, (action.shape[-1],))},
                          down_dims=(width, 2 * width, 4 * width), device="cpu")
    policy = DiffusionPolicy(cfg)
    optimiser = torch.optim.Adam(policy.get_optim_params(), lr=cfg.optimizer_lr, betas=cfg.optimizer_betas, eps=cfg.optimizer_eps,
                                 weight_decay=cfg.optimizer_weight_decay)
    warm = lambda step: min((step + 1) / min(cfg.scheduler_warmup_steps, steps // 2 or 1), 1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: warm(step) * 0.5 * (1 + np.cos(np.pi * step / steps)))
    policy.train()
    random, began = torch.Generator().manual_seed(seed), time.monotonic()
    for _ in range(steps):
        rows = torch.randint(len(state), (batch,), generator=random)
        seen = scaled(state[rows])
        loss, _ = policy.forward({"observation.state": seen, "observation.environment_state": seen, "action": action[rows],
                                  "action_is_pad": arrays["pad"][rows]})
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 10.0)
        optimiser.step()
        schedule.step()
    fitted = time.monotonic() - began
    policy.eval()
    plans = []
    with torch.no_grad():
        for part in scaled(arrays["held_state"]).split(256):
            plans.append(policy.diffusion.generate_actions({"observation.state": part, "observation.environment_state": part}))
    np.save(folder / "out.npy", torch.cat(plans).clamp(-1, 1).numpy())
    print(json.dumps({"lerobot_parameters": sum(p.numel() for p in policy.parameters()), "lerobot_s_per_step": fitted / steps}))


if __name__ == "__main__":
    main()
