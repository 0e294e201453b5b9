"""One of LeRobot's policies for benchmarks/serving.py: `PYTHON benchmarks/lib/lerobot_latency.py DESCRIPTION`, on one thread.

DESCRIPTION is JSON: who ("act", "diffusion"), state and action sizes, cameras {key: [height, width, 3]}, width of the U-Net, and
where they are not the usual ones how many observations it sees, and how many of the state's numbers are the environment's ("split"). It
says how many parameters the policy has, and for every line with a number decides so often and says [wall ms, processor ms] of each
decision, from a numpy observation to a numpy action; a new plan for every decision, as ours are measured.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from lerobot_peer import policies_alone


def load_torchvision() -> None:
    """Import torchvision. A build for CUDA beside a torch without it lacks operators (of detection) that its import wants to describe."""
    register = torch.library.register_fake
    torch.library.register_fake = lambda *_, **__: lambda function: function
    try:
        import torchvision.models  # noqa: F401
    finally:
        torch.library.register_fake = register


def build(told: dict) -> torch.nn.Module:
    """The policy, untrained."""
    from lerobot.configs.types import FeatureType, PolicyFeature
    split = told.get("split", 0)
    inputs = {"observation.state": PolicyFeature(FeatureType.STATE, (told["state"] - split,))}
    for key, (height, width, _) in told["cameras"].items():
        inputs[f"observation.{key}"] = PolicyFeature(FeatureType.VISUAL, (3, height, width))
    if not told["cameras"]:
        inputs["observation.environment_state"] = PolicyFeature(FeatureType.ENV, (split or told["state"],))
    outputs = {"action": PolicyFeature(FeatureType.ACTION, (told["action"],))}
    if told["who"] == "act":
        from lerobot.policies.act.configuration_act import ACTConfig
        from lerobot.policies.act.modeling_act import ACTPolicy
        return ACTPolicy(ACTConfig(input_features=inputs, output_features=outputs, device="cpu", pretrained_backbone_weights=None))
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
    width = told["width"]
    return DiffusionPolicy(DiffusionConfig(
        input_features=inputs, output_features=outputs, device="cpu", down_dims=(width, 2 * width, 4 * width), noise_scheduler_type="DDIM",
        num_inference_steps=10, crop_shape=(84, 84) if told["cameras"] else None, n_obs_steps=told.get("observations", 1)))


def decider(policy: torch.nn.Module, told: dict) -> Callable[[], np.ndarray]:
    """A decision from a fresh observation. Cameras give bytes, which become numbers in [0, 1] as LeRobot's own pipeline makes them."""
    rng = np.random.default_rng(0)
    state = rng.standard_normal((1, told["state"]), dtype=np.float32)
    pictures = {f"observation.{key}": rng.integers(0, 256, shape, np.uint8) for key, shape in told["cameras"].items()}

    @torch.inference_mode()
    def decide() -> np.ndarray:
        policy.reset()
        seen = {"observation.state": torch.from_numpy(state)}
        if not pictures:
            seen["observation.environment_state"] = seen["observation.state"]
        for key, picture in pictures.items():
            seen[key] = torch.from_numpy(picture).permute(2, 0, 1)[None].float().div_(255)
        return policy.select_action(seen)[0].numpy()

    return decide


def main() -> None:
    """Serve."""
    told = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    load_torchvision()
    policies_alone()
    policy = build(told).eval()
    decide = decider(policy, told)
    print(json.dumps(sum(p.numel() for p in policy.parameters())), flush=True)
    for line in sys.stdin:
        found = []
        for _ in range(int(line)):
            wall, cpu = time.perf_counter(), time.thread_time()
            decide()
            found.append([(time.perf_counter() - wall) * 1e3, (time.thread_time() - cpu) * 1e3])
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
